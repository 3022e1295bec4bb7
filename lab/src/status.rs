//! What agents and speakers say of themselves on their control sockets, at this moment.
//!
//! BGPNodeStatus objects say the same, but are written at most once a second.

use std::io::{self, Read};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::time::Duration;

use cairn_api::BGPNodeStatusSpec;

/// Asks the daemon whose run directory is `run_dir`; `None` while no daemon answers there.
pub fn ask(run_dir: &Path) -> Option<BGPNodeStatusSpec> {
    let answer = || -> io::Result<Vec<u8>> {
        let mut stream = UnixStream::connect(run_dir.join(SOCKET))?;
        stream.set_read_timeout(Some(TIMEOUT))?;
        let mut document = Vec::new();
        stream.read_to_end(&mut document)?;
        Ok(document)
    };
    serde_json::from_slice(&answer().ok()?).ok()
}

/// How many of the reported sessions are established.
pub fn established(report: &BGPNodeStatusSpec) -> usize {
    report.sessions.iter().filter(|session| session.state == "Established").count()
}

const SOCKET: &str = "cairn.sock";
const TIMEOUT: Duration = Duration::from_secs(1);
