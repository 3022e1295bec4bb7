//! What an agent knows of the cluster: one value, replaced as a whole when a watch changes it.

use std::collections::BTreeMap;

use cairn_api::{BGPAdvertisement, BGPConfiguration, BGPNode, BGPPeer, BGPPolicy, IPBlock, IPPool};
use k8s_openapi::api::core::v1::Node;

use crate::objects::Passwords;

/// The objects that an agent watches, as its caches hold them.
///
/// Foreign IPBlocks are not in it: an agent watches its own only (docs/adr/0006).
#[derive(Clone, Debug, Default, PartialEq)]
pub struct ClusterView {
    /// Every watch has delivered its first list. Nothing is swept or given back before that.
    pub synced: bool,
    /// The agent's own Node; `None` when it does not exist.
    pub node: Option<Node>,
    /// Pools by name.
    pub pools: BTreeMap<String, IPPool>,
    /// Blocks whose spec names this node, by name.
    pub own_blocks: BTreeMap<String, IPBlock>,
    /// The one BGPConfiguration.
    pub bgp_configuration: Option<BGPConfiguration>,
    /// Nodes to peer with, by name; this node's own is among them.
    pub bgp_nodes: BTreeMap<String, BGPNode>,
    /// Peers by name.
    pub bgp_peers: BTreeMap<String, BGPPeer>,
    /// Policies by name.
    pub bgp_policies: BTreeMap<String, BGPPolicy>,
    /// Advertisements by name.
    pub bgp_advertisements: BTreeMap<String, BGPAdvertisement>,
    /// Passwords of BGPPeers, from the Secrets of Cairn's own namespace.
    pub passwords: Passwords,
    /// Kinds that cannot be watched now: what the view says of them may be old.
    pub unwatched: BTreeMap<String, WatchFailure>,
}

/// Why a kind cannot be watched.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum WatchFailure {
    /// The API server gives no answer: the reason.
    Unreachable(String),
    /// The API server refuses: what it says and what to do.
    Refused(String),
}
