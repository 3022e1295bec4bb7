//! A network namespace for one measurement. It has no name: it goes with the thread and the daemon
//! that are in it, whatever happens.

use std::process::Command;

pub use super::cell::DAEMON_ADDRESS as ADDRESS;
use super::cell::DAEMON_ADDRESS;
use crate::Result;

/// Moves the calling thread into a new network namespace where the daemon's address and any number of
/// peers' addresses are local.
///
/// # Errors
/// Without root, or without the `ip` command.
pub fn enter() -> Result<()> {
    // SAFETY: it takes no memory and concerns this thread alone.
    if unsafe { libc::unshare(libc::CLONE_NEWNET) } != 0 {
        let error = std::io::Error::last_os_error();
        return Err(format!("network namespaces need root: {error}").into());
    }
    ip("link set lo up")?;
    ip("link add peers type bridge")?;
    ip(&format!("addr add {DAEMON_ADDRESS}/16 dev peers"))?;
    ip("link set peers up")?;
    ip("route add local 10.99.0.0/16 dev lo")
}

fn ip(arguments: &str) -> Result<()> {
    let output = Command::new("ip").args(arguments.split(' ')).output();
    let output = output.map_err(|error| format!("the ip command: {error}"))?;
    match output.status.success() {
        true => Ok(()),
        false => Err(format!("ip {arguments}: {}", String::from_utf8_lossy(&output.stderr)).into()),
    }
}
