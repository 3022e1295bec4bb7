//! BGPNodeStatus: what a node's speaker and kernel look like now.

use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;
use kube::{CustomResource, KubeSchema};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

/// What a node's speaker and kernel look like now. Its agent writes it, no agent watches it.
#[derive(CustomResource, Clone, Debug, Default, PartialEq, Serialize, Deserialize, KubeSchema)]
#[kube(
    group = "cairn.network",
    version = "v1alpha1",
    kind = "BGPNodeStatus",
    plural = "bgpnodestatuses",
    shortname = "bgpns",
    category = "cairn",
    derive = "PartialEq",
    doc = "What a node's speaker and kernel look like now. Written by the node's agent.",
    printcolumn(name = "Peers", type_ = "string", json_path = ".spec.peers"),
    printcolumn(name = "Routes", type_ = "integer", json_path = ".spec.routes.installed"),
    printcolumn(name = "Failed", type_ = "integer", json_path = ".spec.routes.failed"),
    printcolumn(name = "Drain", type_ = "string", json_path = ".spec.drain.phase"),
    printcolumn(name = "Age", type_ = "date", json_path = ".metadata.creationTimestamp")
)]
#[serde(rename_all = "camelCase")]
pub struct BGPNodeStatusSpec {
    /// Established sessions of configured ones, for example `4/4`.
    pub peers: String,
    /// The sessions.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(extend("x-kubernetes-list-type" = "atomic"))]
    pub sessions: Vec<SessionStatus>,
    /// Routes in the kernel.
    #[serde(default)]
    pub routes: RoutesStatus,
    /// How often others changed or removed what Cairn has in the kernel, and it was put back, since the
    /// start of the agent. What grows again and again is another program's work.
    #[serde(default)]
    pub repairs: RepairsStatus,
    /// While the topology of the node's AS changes over: how far the node is.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub change_over: Option<ChangeOver>,
    /// While the node is drained: how far that is.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub drain: Option<DrainStatus>,
    /// What is wrong on this node and what to do, one sentence each.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(extend("x-kubernetes-list-type" = "atomic"))]
    pub problems: Vec<String>,
}

/// How far a node is with a change of its AS's topology.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct ChangeOver {
    /// The revision of the topology to which it has changed.
    pub revision: i64,
    /// The prefixes that it would lose if the sessions of the topology before ended now.
    pub losing: u64,
}

/// How far a node is drained.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct DrainStatus {
    /// The step.
    pub phase: DrainPhase,
    /// Since when.
    pub since: Time,
    /// What is the case, and what it waits for.
    pub message: String,
}

/// A step of draining a node.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub enum DrainPhase {
    /// All is announced, to be used last: with the community GRACEFUL_SHUTDOWN and LOCAL_PREF 0 (RFC 8326).
    Leaving,
    /// What no pod needs is withdrawn, the rest is announced to be used last.
    Withdrawing,
    /// Nothing is announced.
    Drained,
}

impl ChangeOver {
    /// The value of the label [`crate::LABEL_CHANGE_OVER`].
    pub fn label(&self) -> String {
        let state = if self.losing == 0 { "ready" } else { "waits" };
        format!("{}-{state}", self.revision)
    }
}

/// One BGP session.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct SessionStatus {
    /// The peer: `mesh/NODE` or `bgppeer/NAME`.
    pub peer: String,
    /// The peer's address.
    pub address: String,
    /// The peer's autonomous system number.
    pub asn: u32,
    /// The state of the finite state machine (RFC 4271 section 8.2.2).
    pub state: String,
    /// Since when the session is in this state.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub since: Option<Time>,
    /// Why the session was last lost or could not come up.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub last_error: Option<String>,
    /// The last times that the session was established or ended, latest last; `cairn bgp history` on the node shows more.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(extend("x-kubernetes-list-type" = "atomic"))]
    pub history: Vec<SessionTurn>,
    /// The state of the peer's BFD session (RFC 5880 section 4.1), where one is wanted.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub bfd: Option<String>,
    /// The negotiated hold time in seconds.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub hold_time_secs: Option<u16>,
    /// The negotiated families.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub families: Vec<String>,
    /// Prefixes received from the peer.
    pub received: u64,
    /// Prefixes received and passed by the import policy.
    pub accepted: u64,
    /// Prefixes announced to the peer.
    pub advertised: u64,
}

/// The beginning or the end of a session.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct SessionTurn {
    /// When.
    pub time: Time,
    /// The state from then on.
    pub state: String,
    /// Why the session ended.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub reason: Option<String>,
}

/// Routes in a node's kernel.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct RoutesStatus {
    /// Routes of ours that the kernel holds.
    pub installed: u64,
    /// Routes that are wanted and are not there.
    pub failed: u64,
    /// The first of the failed ones.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(extend("x-kubernetes-list-type" = "atomic"))]
    pub failures: Vec<FailedRoute>,
}

/// How often something of Cairn's in a node's kernel was put back.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct RepairsStatus {
    /// Routes, and next-hop objects on uplinks.
    #[serde(default)]
    pub routes: u64,
    /// Tunnel devices with their neighbour and forwarding entries and next-hop objects.
    #[serde(default)]
    pub tunnels: u64,
    /// The packet filter.
    #[serde(default)]
    pub packet_filter: u64,
}

/// A route that the kernel does not take.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct FailedRoute {
    /// The destination.
    pub prefix: String,
    /// Why, and what to do.
    pub reason: String,
}
