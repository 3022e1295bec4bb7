//! What a daemon says of itself: for `cairn status`, and for the BGPNodeStatus object.

use std::time::{Duration, SystemTime, UNIX_EPOCH};

use cairn_api::{BGPNodeStatusSpec, FailedRoute, RoutesStatus, SessionStatus};
use serde::{Deserialize, Serialize};

/// The state of an agent or a speaker at one moment.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Report {
    /// The node, for an agent.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub node: Option<String>,
    /// Own blocks.
    pub blocks: Vec<BlockReport>,
    /// Sessions and routes.
    #[serde(flatten)]
    pub bgp: BGPNodeStatusSpec,
}

/// One own block.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct BlockReport {
    /// The block.
    pub cidr: String,
    /// Addresses in use.
    pub used: String,
    /// Addresses not in use.
    pub free: String,
}

/// The failed routes that a report names at most.
pub const FAILURES_MAX: usize = 16;

impl Report {
    /// The report as a screen of text.
    pub fn to_text(&self) -> String {
        use std::fmt::Write;
        let mut text = String::new();
        // Writing to a String cannot fail.
        if let Some(node) = &self.node {
            let _ = writeln!(text, "node {node}");
        }
        let _ = writeln!(text, "sessions {}", self.bgp.peers);
        for session in &self.bgp.sessions {
            let _ = writeln!(
                text,
                "  {:<24} {:<20} AS {:<10} {:<12} received {} accepted {} advertised {}{}",
                session.peer,
                session.address,
                session.asn,
                session.state,
                session.received,
                session.accepted,
                session.advertised,
                session.last_error.as_ref().map(|e| format!("\n    {e}")).unwrap_or_default()
            );
        }
        for block in &self.blocks {
            let _ = writeln!(text, "block {} used {} free {}", block.cidr, block.used, block.free);
        }
        let RoutesStatus { installed, failed, failures } = &self.bgp.routes;
        let _ = writeln!(text, "routes installed {installed} failed {failed}");
        for FailedRoute { prefix, reason } in failures {
            let _ = writeln!(text, "  {prefix}: {reason}");
        }
        for problem in &self.bgp.problems {
            let _ = writeln!(text, "problem: {problem}");
        }
        text
    }

    /// `n/m` of these sessions.
    pub fn established(sessions: &[SessionStatus]) -> String {
        let up = sessions.iter().filter(|s| s.state == "Established").count();
        format!("{up}/{}", sessions.len())
    }
}

/// Wall-clock seconds since 1970, for timestamps in objects only.
pub fn wall_clock() -> Duration {
    SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default()
}
