//! Packet filtering and address translation: one nftables table of ours, and one rule each way in
//! iptables' FORWARD chain where that drops.
//!
//! ```text
//!  Firewall ──script()──► nft -f -  ──► table inet cairn
//!     │  └────update()──►    (set elements only)
//!     │                                       ┌─ nftables' notifications
//!     └──► FirewallKeeper ◄── dirty ◄─────────┘
//! ```
//!
//! What the table does, hook by hook:
//!
//! | chain | what |
//! |---|---|
//! | prerouting, raw | drops what a pod sends from an address that is not its own; takes tunnel packets of nodes out of connection tracking |
//! | output, raw | the same for tunnel packets to nodes |
//! | input | tunnel packets only from nodes |
//! | forward | no tunnel packets from pods to anything but pods: masqueraded, they would come from a node |
//! | postrouting, srcnat + 10 | masquerades, behind kube-proxy's rules, which have priority srcnat |
//!
//! Tables of others are never written, with one exception that can be turned off: an accept in a table
//! of ours does not override the drop of another, so that iptables' FORWARD gets its rules. Written is
//! by the `nft` command: docs/adr/0011-nft-command.md.

mod command;
mod conntrack;
mod forward;
mod hook;
mod keeper;
mod script;
mod watch;

use std::collections::BTreeSet;
use std::net::IpAddr;

use ipnet::IpNet;

pub use command::CommandError;
pub use keeper::{FirewallKeeper, FirewallPass, remove};
pub use script::{script, update};

/// The name of our table, of family `inet`.
pub const TABLE: &str = "cairn";

/// What the table and rules in chains of others carry as their comment.
pub const COMMENT: &str = "cairn.network";

/// What the firewall should be.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Firewall {
    /// The networks of every pool.
    pub pools: BTreeSet<IpNet>,
    /// Those of pools whose pods leave the cluster with the node's address.
    pub nat_pools: BTreeSet<IpNet>,
    /// Other destinations that see the pods' own addresses.
    pub excluded: BTreeSet<IpNet>,
    /// The addresses of all nodes, this one's too: who may send tunnel packets.
    pub nodes: BTreeSet<IpAddr>,
    /// The networks of pools whose blocks are reached by tunnel.
    pub tunnel_pools: BTreeSet<IpNet>,
    /// The addresses of nodes to whose blocks a tunnel leads: the network in between does not carry
    /// addresses of `tunnel_pools`, so that their pods reach these nodes with this node's address.
    pub tunnel_nodes: BTreeSet<IpAddr>,
    /// The tunnel devices.
    pub tunnels: Vec<TunnelRule>,
    /// What the name of every pod's host interface begins with, and none but those and
    /// `PREFIX.SOMETHING`, which are taken for tunnel devices.
    pub pod_interfaces: &'static str,
    /// Whether iptables' FORWARD chain gets a rule each way where its policy is DROP.
    pub accept_forwarded: bool,
}

impl Firewall {
    /// A firewall that only checks the sources of pods behind interfaces whose names begin with
    /// `pod_interfaces`.
    pub fn new(pod_interfaces: &'static str) -> Firewall {
        Firewall {
            pools: BTreeSet::new(),
            nat_pools: BTreeSet::new(),
            excluded: BTreeSet::new(),
            nodes: BTreeSet::new(),
            tunnel_pools: BTreeSet::new(),
            tunnel_nodes: BTreeSet::new(),
            tunnels: Vec::new(),
            pod_interfaces,
            accept_forwarded: true,
        }
    }

    /// Whether packets of a pod from `source` to `destination` leave with this node's address.
    fn hides(&self, source: IpAddr, destination: IpAddr) -> bool {
        let within =
            |nets: &BTreeSet<IpNet>, address| nets.iter().any(|net| net.contains(&address));
        let outside = || {
            !within(&self.pools, destination)
                && !within(&self.excluded, destination)
                && !self.nodes.contains(&destination)
        };
        within(&self.tunnel_pools, source) && self.tunnel_nodes.contains(&destination)
            || within(&self.nat_pools, source) && outside()
    }

    /// Whether it hides any source.
    fn hides_some(&self) -> bool {
        !self.nat_pools.is_empty() || !self.tunnel_pools.is_empty() && !self.tunnel_nodes.is_empty()
    }

    /// Whether it may hide a source that `other` does not.
    fn hides_beyond(&self, other: &Firewall) -> bool {
        !(self.tunnel_pools.is_subset(&other.tunnel_pools)
            && self.tunnel_nodes.is_subset(&other.tunnel_nodes)
            && self.nat_pools.is_subset(&other.nat_pools)
            && self.pools.is_superset(&other.pools)
            && self.excluded.is_superset(&other.excluded)
            && self.nodes.is_superset(&other.nodes))
    }
}

/// What a tunnel device needs.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TunnelRule {
    /// Its name.
    pub device: &'static str,
    /// This node's addresses on it, at most one a family: what the node itself sends through the
    /// tunnel leaves with them.
    pub addresses: Vec<IpAddr>,
    /// The node's outer address.
    pub local: IpAddr,
    /// By what its outer packets are known.
    pub protect: Outer,
}

/// What tells the outer packets of a tunnel from other packets to the node.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Outer {
    /// VXLAN.
    Vxlan {
        /// The UDP port.
        port: u16,
        /// The network identifier, of 24 bits.
        vni: u32,
    },
    /// IPv4 in IPv4.
    Ipip,
}
