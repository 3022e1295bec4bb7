//! What agents and speakers say of themselves on their control sockets, at this moment.
//!
//! BGPNodeStatus objects say the same, but are written at most once a second.

use std::io::{self, Read, Write};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::time::Duration;

use cairn_api::BGPNodeStatusSpec;
use ipnet::IpNet;
use serde::Deserialize;
use serde::de::DeserializeOwned;
use serde_json::{Value, json};

/// Asks the daemon whose run directory is `run_dir`; `None` while no daemon answers there.
pub fn ask(run_dir: &Path) -> Option<BGPNodeStatusSpec> {
    first(run_dir, &json!("status"))
}

/// The communities of the best route to a block; `None` without one.
pub fn communities(run_dir: &Path, block: &IpNet) -> Option<Vec<String>> {
    let route: Route = first(run_dir, &json!({"routes": {"within": block}}))?;
    route.candidates.into_iter().find(|candidate| candidate.best).map(|best| best.communities)
}

/// The first record of the answer.
fn first<T: DeserializeOwned>(run_dir: &Path, ask: &Value) -> Option<T> {
    let answer = || -> io::Result<Vec<u8>> {
        let mut stream = UnixStream::connect(run_dir.join(SOCKET))?;
        stream.set_read_timeout(Some(TIMEOUT))?;
        // The protocol is agent/src/control/protocol.rs.
        let request = json!({"version": 1, "ask": ask});
        stream.write_all(format!("{request}\n").as_bytes())?;
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
struct Line<T> {
    record: T,
}

#[derive(Deserialize)]
struct Route {
    candidates: Vec<Candidate>,
}

#[derive(Deserialize)]
struct Candidate {
    best: bool,
    #[serde(default)]
    communities: Vec<String>,
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

const SOCKET: &str = "cairn.sock";
const TIMEOUT: Duration = Duration::from_secs(1);
