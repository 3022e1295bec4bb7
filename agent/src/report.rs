//! What a daemon says of itself: for `cairn status`, and for the BGPNodeStatus object.

use cairn_api::{
    BGPNodeStatusSpec, ChangeOver, DrainStatus, FailedRoute, RepairsStatus, RoutesStatus,
    SessionStatus, SessionTurn,
};
use cairn_bgp::prefix::Family;
use cairn_bgp::rib::RouteCounts;
use cairn_bgp::status::{PeerSnapshot, SessionChange, SessionRecord, SpeakerSnapshot};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;
use k8s_openapi::jiff::Timestamp;
use serde::{Deserialize, Serialize};

use crate::bfd::follow::View;

/// The state of an agent or a speaker at one moment.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Report {
    /// The node, for an agent.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub node: Option<String>,
    /// Whether pods start, for an agent.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub pod_network: Option<PodNetworkReport>,
    /// Own blocks.
    pub blocks: Vec<BlockReport>,
    /// Sessions and routes.
    #[serde(flatten)]
    pub bgp: BGPNodeStatusSpec,
}

/// Whether the node's pod network is ready: since it was once since the boot, for good.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct PodNetworkReport {
    /// Pods start.
    pub ready: bool,
    /// What they wait for.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub reason: Option<String>,
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

/// The state of a session that an operator does not want.
pub const DISABLED: &str = "Disabled";

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
        if let Some(PodNetworkReport { ready, reason }) = &self.pod_network {
            let ready = if *ready { "ready" } else { "not ready" };
            let reason = reason.as_ref().map(|reason| format!(": {reason}")).unwrap_or_default();
            let _ = writeln!(text, "pod network {ready}{reason}");
        }
        let _ = writeln!(text, "sessions {}", self.bgp.peers);
        for session in &self.bgp.sessions {
            let _ = writeln!(
                text,
                "  {:<24} {:<20} AS {:<10} {:<12} received {} accepted {} advertised {}{}{}",
                session.peer,
                session.address,
                session.asn,
                session.state,
                session.received,
                session.accepted,
                session.advertised,
                session.bfd.as_ref().map(|state| format!(" BFD {state}")).unwrap_or_default(),
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
        let RepairsStatus { routes, tunnels, packet_filter } = self.bgp.repairs;
        if self.bgp.repairs != RepairsStatus::default() {
            let _ = writeln!(
                text,
                "changed by others and put back: routes {routes} tunnels {tunnels} packet filter {packet_filter}"
            );
        }
        if let Some(ChangeOver { revision, losing }) = self.bgp.change_over {
            let _ = writeln!(
                text,
                "topology changes over to revision {revision}: {losing} prefixes still need the one before"
            );
        }
        if let Some(DrainStatus { phase, since, message }) = &self.bgp.drain {
            let _ = writeln!(text, "drain {phase:?} since {}: {message}", since.0);
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

/// The sessions of a speaker with those of BFD, and what keeps it from having all that are configured.
pub fn sessions(snapshot: &SpeakerSnapshot, bfd: &View) -> (Vec<SessionStatus>, Vec<String>) {
    let bfd_of = |name: &str| bfd.sessions.get(name).map(|session| format!("{:?}", session.state));
    let sessions = snapshot
        .peers
        .iter()
        .map(|(name, peer)| SessionStatus { bfd: bfd_of(name), ..session(name, peer) })
        .collect();
    let listeners = snapshot.listeners.iter().filter_map(|listener| listener.error.clone());
    let disabled = snapshot.peers.iter().filter(|(_, peer)| peer.disabled).map(|(name, _)| {
        format!("{name} is disabled by an operator: `cairn bgp enable {name}` brings it back")
    });
    let doubts = snapshot
        .peers
        .iter()
        .filter_map(|(name, peer)| Some(format!("{name}: {}", peer.doubt.as_ref()?)));
    (sessions, listeners.chain(disabled).chain(doubts).collect())
}

fn time(unix_secs: u64) -> Option<Time> {
    let secs = i64::try_from(unix_secs).ok()?;
    Timestamp::from_second(secs).ok().map(Time)
}

fn turn(record: &SessionRecord) -> Option<SessionTurn> {
    let SessionChange { at_unix_secs, to, reason, .. } = &record.change;
    let reason = reason.as_ref().map(|reason| reason.chars().take(REASON_CHARS_MAX).collect());
    Some(SessionTurn { time: time(*at_unix_secs)?, state: format!("{to:?}"), reason })
}

fn session(name: &str, peer: &PeerSnapshot) -> SessionStatus {
    let sum = |count: fn(&RouteCounts) -> usize| {
        peer.routes.values().map(|counts| count(counts) as u64).sum()
    };
    let negotiated = peer.negotiated.as_ref();
    SessionStatus {
        peer: name.into(),
        address: peer.place(),
        asn: peer.remote_asn,
        state: match peer.disabled {
            true => DISABLED.into(),
            false => format!("{:?}", peer.state),
        },
        since: time(peer.since_unix_secs),
        last_error: peer.last_error.as_ref().map(|error| error.text.clone()),
        history: peer.turns.iter().filter_map(turn).collect(),
        bfd: None,
        hold_time_secs: negotiated.map(|n| n.hold_time_secs),
        families: negotiated
            .iter()
            .flat_map(|n| n.families.iter().map(Family::to_string))
            .collect(),
        received: sum(|counts| counts.received),
        accepted: sum(|counts| counts.accepted),
        advertised: sum(|counts| counts.advertised),
    }
}

/// Characters of a reason in a session's history: enough to tell why, and few enough that a node with hundreds of
/// sessions stays far below the limit of an object.
const REASON_CHARS_MAX: usize = 160;
