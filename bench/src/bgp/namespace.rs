//! A network namespace for one measurement. It has no name: it goes with the thread and the daemon
//! that are in it, whatever happens.

use std::fmt::Write as _;
use std::io::Write as _;
use std::process::{Command, Stdio};

pub use super::cell::DAEMON_ADDRESS as ADDRESS;
use super::cell::{Cell, DAEMON_ADDRESS};
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
    ip(&format!(
        "\
link set lo up
link add peers type bridge
addr add {DAEMON_ADDRESS}/16 dev peers
link set peers up
route add local 10.99.0.0/16 dev lo
"
    ))
}

/// Adds the subnets of a cell whose peers have one each: the daemon's end on the bridge, the peer's local as well.
///
/// # Errors
/// See [`enter`].
pub fn add_own_subnets(cell: &Cell) -> Result<()> {
    let mut lines = String::new();
    for ends in (0..cell.peers()).map(|peer| cell.ends(peer)) {
        // Writing to a string cannot fail.
        let _ = writeln!(lines, "addr add {}/31 dev peers", ends.daemon);
        let _ = writeln!(lines, "route add local {} dev lo", ends.peer);
    }
    ip(&lines)
}

/// Carries out one `ip` command a line.
fn ip(lines: &str) -> Result<()> {
    let mut command = Command::new("ip");
    command.args(["-batch", "-"]).stdin(Stdio::piped()).stderr(Stdio::piped());
    let failed = |error: std::io::Error| format!("the ip command: {error}");
    let mut child = command.spawn().map_err(failed)?;
    if let Some(mut input) = child.stdin.take() {
        input.write_all(lines.as_bytes()).map_err(failed)?;
    }
    let output = child.wait_with_output().map_err(failed)?;
    match output.status.success() {
        true => Ok(()),
        false => Err(format!("ip: {}", String::from_utf8_lossy(&output.stderr)).into()),
    }
}
