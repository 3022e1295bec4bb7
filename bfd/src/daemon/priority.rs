//! Real-time priority: packets go in time also when every core is busy.

use std::io;

/// Gives the calling thread real-time priority.
///
/// # Errors
/// What is missing, and what to do.
pub(super) fn raise() -> Result<(), String> {
    // SAFETY: all of it are integers.
    let mut param: libc::sched_param = unsafe { std::mem::zeroed() };
    param.sched_priority = PRIORITY;
    // SAFETY: the parameter lives until the call returns. 0 is the calling thread.
    match unsafe { libc::sched_setscheduler(0, libc::SCHED_FIFO, &raw const param) } {
        0 => Ok(()),
        _ => Err(format!(
            "no real-time priority (SCHED_FIFO: {}): on a machine with every core busy, sessions of short intervals \
             may flap; grant CAP_SYS_NICE, or set a longer interval",
            io::Error::last_os_error()
        )),
    }
}

/// Above all ordinary threads, below what the kernel itself runs with real-time priority (50 for its interrupt
/// threads).
const PRIORITY: libc::c_int = 20;
