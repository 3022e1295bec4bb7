//! What agents and speakers say of themselves on their control sockets, at this moment.
//!
//! BGPNodeStatus objects say the same, but are written at most once a second.

use std::io::{self, Read, Write};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::time::Duration;

use cairn_api::BGPNodeStatusSpec;
use serde::Deserialize;

/// Asks the daemon whose run directory is `run_dir`; `None` while no daemon answers there.
pub fn ask(run_dir: &Path) -> Option<BGPNodeStatusSpec> {
    let answer = || -> io::Result<Vec<u8>> {
        let mut stream = UnixStream::connect(run_dir.join(SOCKET))?;
        stream.set_read_timeout(Some(TIMEOUT))?;
        stream.write_all(REQUEST)?;
        let mut lines = Vec::new();
        stream.read_to_end(&mut lines)?;
        Ok(lines)
    };
    let lines = answer().ok()?;
    let first = lines.split(|octet| *octet == b'\n').next()?;
    serde_json::from_slice(first).ok().map(|Line { record }| record)
}

/// The line of an answer that holds what was asked for.
#[derive(Deserialize)]
struct Line {
    record: BGPNodeStatusSpec,
}

/// How many of the reported sessions are established.
pub fn established(report: &BGPNodeStatusSpec) -> usize {
    report.sessions.iter().filter(|session| session.state == "Established").count()
}

/// The established sessions by their peers, with when each came up.
pub fn ups(report: BGPNodeStatusSpec) -> Vec<(String, String)> {
    let up = report.sessions.into_iter().filter(|session| session.state == "Established");
    up.map(|session| (session.peer, session.since.map(|at| at.0.to_string()).unwrap_or_default()))
        .collect()
}

/// The control socket's protocol is agent/src/control/protocol.rs.
const REQUEST: &[u8] = b"{\"version\":1,\"ask\":\"status\"}\n";
const SOCKET: &str = "cairn.sock";
const TIMEOUT: Duration = Duration::from_secs(1);
