//! How long something takes.

use std::time::Duration;

use rustix::time::{ClockId, clock_gettime};

/// The CPU time that `work` takes on this thread, and what it returns.
pub fn cpu_time<T>(work: impl FnOnce() -> T) -> (Duration, T) {
    let before = now();
    let result = work();
    (now().saturating_sub(before), result)
}

/// Nanoseconds for each of `count` parts of `time`.
pub fn nanos_each(time: Duration, count: usize) -> f64 {
    time.as_nanos() as f64 / count as f64
}

fn now() -> Duration {
    let time = clock_gettime(ClockId::ThreadCPUTime);
    Duration::new(time.tv_sec.unsigned_abs(), time.tv_nsec.unsigned_abs() as u32)
}
