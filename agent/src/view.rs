//! What an agent knows of the cluster: one value, replaced as a whole when a watch changes it.

use std::collections::BTreeMap;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::sync::Arc;

use cairn_api::{
    ANNOTATION_DRAIN, BGPAdvertisement, BGPConfiguration, BGPNodeSpec, BGPPeer, BGPPolicy, IPBlock,
    IPPool, IPReservation, LABEL_ROUTE_REFLECTOR, NodeConfiguration, TunnelKind,
};
use cairn_ipam::reflectors::Wish;
use ipnet::IpNet;
use k8s_openapi::api::core::v1::Node;
use serde::{Deserialize, Serialize};

use crate::objects::Passwords;

/// The objects that an agent watches, as its caches hold them.
///
/// Foreign IPBlocks are not in it: an agent watches its own only (docs/adr/0006). Of BGPNodes it holds
/// those that this node may peer with. Kinds of which a large cluster has thousands are shared between
/// views, as each change makes a new one.
/// Serialised it is what outlives the process: without passwords, which no file holds, and without
/// what is true of one process only.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct ClusterView {
    /// Every watch has delivered its first list. Nothing is swept or given back before that.
    #[serde(skip)]
    pub synced: bool,
    /// How often everything was dropped and listed anew, because history went backwards (IPAM
    /// rule 3). What is known counts for nothing before the view of the newest number is synced.
    #[serde(skip)]
    pub epoch: u64,
    /// The view is the last good one of an earlier process of this boot, from the run directory, and
    /// holds until the first that is synced.
    #[serde(skip)]
    pub restored: bool,
    /// A list of this epoch is older than what had been seen before it was asked for.
    #[serde(skip)]
    pub went_back: bool,
    /// How often this process had a list of this node's blocks.
    #[serde(skip)]
    pub own_lists: u64,
    /// The agent's own Node; `None` when it does not exist.
    pub node: Option<Node>,
    /// Pools by name.
    pub pools: BTreeMap<String, IPPool>,
    /// Blocks whose spec names this node, by name.
    pub own_blocks: BTreeMap<String, IPBlock>,
    /// Reservations by name.
    pub reservations: BTreeMap<String, IPReservation>,
    /// What pods' addresses need to know of namespaces, by name.
    #[serde(with = "shared")]
    pub namespaces: Arc<BTreeMap<String, Arc<Namespace>>>,
    /// The one BGPConfiguration.
    pub bgp_configuration: Option<BGPConfiguration>,
    /// This node's own BGPNode, as the API server shows it.
    pub own_bgp_node: Option<BGPNodeSpec>,
    /// The other nodes of this node's AS, by name.
    #[serde(with = "shared_peers")]
    pub peer_nodes: Arc<BTreeMap<Arc<str>, PeerNode>>,
    /// Every node, with what it takes to reach its blocks; while no pool needs it, none.
    #[serde(with = "shared_members")]
    pub members: Arc<BTreeMap<Arc<str>, Arc<Member>>>,
    /// NodeConfigurations by name.
    pub node_configurations: BTreeMap<String, NodeConfiguration>,
    /// This node is among the few that stand for leader.
    #[serde(skip)]
    pub stands: bool,
    /// Peers by name.
    pub bgp_peers: BTreeMap<String, BGPPeer>,
    /// Policies by name.
    pub bgp_policies: BTreeMap<String, BGPPolicy>,
    /// Advertisements by name.
    pub bgp_advertisements: BTreeMap<String, BGPAdvertisement>,
    /// Passwords of BGPPeers, from the Secrets of Cairn's own namespace.
    #[serde(skip)]
    pub passwords: Passwords,
    /// Kinds that cannot be watched now: what the view says of them may be old.
    #[serde(skip)]
    pub unwatched: BTreeMap<String, WatchFailure>,
}

/// Another node, as its BGPNode tells how to peer with it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct PeerNode {
    /// Its AS number.
    pub asn: u32,
    /// Its IPv4 address.
    pub ipv4: Option<Ipv4Addr>,
    /// Its IPv6 address.
    pub ipv6: Option<Ipv6Addr>,
    /// It is not to become a route reflector: people want it so, or it is being drained.
    #[serde(default)]
    pub no_reflector: bool,
}

/// A node, as its BGPNode tells how to reach its blocks.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Member {
    /// Its IPv4 address.
    pub ipv4: Option<Ipv4Addr>,
    /// Its IPv6 address.
    pub ipv6: Option<Ipv6Addr>,
    /// The tunnels from which it takes packets.
    pub tunnels: Vec<TunnelKind>,
    /// Its blocks of pools with an encapsulation, in order.
    pub blocks: Vec<IpNet>,
}

impl Member {
    /// Its addresses.
    pub fn addresses(&self) -> impl Iterator<Item = IpAddr> {
        let v4 = self.ipv4.map(IpAddr::V4);
        v4.into_iter().chain(self.ipv6.map(IpAddr::V6))
    }
}

impl From<&BGPNodeSpec> for Member {
    fn from(spec: &BGPNodeSpec) -> Member {
        let PeerNode { ipv4, ipv6, .. } = PeerNode::from(spec);
        let mut blocks: Vec<IpNet> = spec.blocks.iter().filter_map(|b| b.parse().ok()).collect();
        blocks.sort_unstable();
        Member { ipv4, ipv6, tunnels: spec.tunnels.clone(), blocks }
    }
}

impl From<&BGPNodeSpec> for PeerNode {
    /// Of each family the first address counts.
    fn from(spec: &BGPNodeSpec) -> PeerNode {
        let label = |key| spec.topology.get(key).map(String::as_str);
        let unwanted = Wish::of_label(label(LABEL_ROUTE_REFLECTOR)) == Wish::Never;
        let no_reflector = unwanted || label(ANNOTATION_DRAIN).is_some();
        let mut node = PeerNode { asn: spec.asn, ipv4: None, ipv6: None, no_reflector };
        for address in spec.addresses.iter().filter_map(|text| text.parse().ok()) {
            match address {
                IpAddr::V4(address) => drop(node.ipv4.get_or_insert(address)),
                IpAddr::V6(address) => drop(node.ipv6.get_or_insert(address)),
            }
        }
        node
    }
}

/// A Namespace, as the choice of its pods' addresses needs it.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Namespace {
    /// Its labels.
    pub labels: BTreeMap<String, String>,
    /// Its annotation [`cairn_api::ANNOTATION_IPPOOLS`].
    pub pools: Option<String>,
}

/// Why a kind cannot be watched.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum WatchFailure {
    /// The API server gives no answer: the reason.
    Unreachable(String),
    /// The API server refuses: what it says and what to do.
    Refused(String),
}

/// Objects that views share, as plain ones.
mod shared {
    use std::collections::BTreeMap;
    use std::sync::Arc;

    use serde::{Deserialize, Deserializer, Serialize, Serializer};

    type Shared<T> = Arc<BTreeMap<String, Arc<T>>>;

    pub(super) fn serialize<T: Serialize, S: Serializer>(
        objects: &Shared<T>,
        to: S,
    ) -> Result<S::Ok, S::Error> {
        to.collect_map(objects.iter().map(|(name, object)| (name, object.as_ref())))
    }

    pub(super) fn deserialize<'de, T: Deserialize<'de>, D: Deserializer<'de>>(
        from: D,
    ) -> Result<Shared<T>, D::Error> {
        let objects = BTreeMap::<String, T>::deserialize(from)?;
        let objects = objects.into_iter().map(|(name, object)| (name, Arc::new(object)));
        Ok(Arc::new(objects.collect()))
    }
}

/// Peers that views share, as plain ones.
mod shared_peers {
    use std::collections::BTreeMap;
    use std::sync::Arc;

    use serde::{Deserialize, Deserializer, Serializer};

    use super::PeerNode;

    type Shared = Arc<BTreeMap<Arc<str>, PeerNode>>;

    pub(super) fn serialize<S: Serializer>(peers: &Shared, to: S) -> Result<S::Ok, S::Error> {
        to.collect_map(peers.iter().map(|(name, peer)| (name.as_ref(), peer)))
    }

    pub(super) fn deserialize<'de, D: Deserializer<'de>>(from: D) -> Result<Shared, D::Error> {
        let peers = BTreeMap::<String, PeerNode>::deserialize(from)?;
        Ok(Arc::new(peers.into_iter().map(|(name, peer)| (name.into(), peer)).collect()))
    }
}

/// Members that views share, as plain ones.
mod shared_members {
    use std::collections::BTreeMap;
    use std::sync::Arc;

    use serde::{Deserialize, Deserializer, Serializer};

    use super::Member;

    type Shared = Arc<BTreeMap<Arc<str>, Arc<Member>>>;

    pub(super) fn serialize<S: Serializer>(members: &Shared, to: S) -> Result<S::Ok, S::Error> {
        to.collect_map(members.iter().map(|(name, member)| (name.as_ref(), member.as_ref())))
    }

    pub(super) fn deserialize<'de, D: Deserializer<'de>>(from: D) -> Result<Shared, D::Error> {
        let members = BTreeMap::<String, Member>::deserialize(from)?;
        let members = members.into_iter().map(|(name, member)| (name.into(), Arc::new(member)));
        Ok(Arc::new(members.collect()))
    }
}
