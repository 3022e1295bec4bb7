//! What the daemon tells of the routes and tunnels that it wants: the records of [`Ask::Kernel`].
//!
//! [`Ask::Kernel`]: crate::control::protocol::Ask::Kernel

use std::net::IpAddr;

use cairn_kernel::route::{NextHop, Route, RouteKey, Target};
use ipnet::IpNet;
use serde::{Deserialize, Serialize};

/// One record.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub enum KernelRecord {
    /// First.
    Node(NodeKernel),
    /// A route that is wanted.
    Route(WantedRoute),
    /// A route of ours that nobody wants and that cannot be removed.
    Stuck(StuckRoute),
    /// A part of a tunnel, or a next-hop object on an uplink, that is wanted.
    Tunnel(TunnelPart),
}

/// What is the same for all of it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct NodeKernel {
    /// The inode of the daemon's network namespace.
    pub netns: Option<u64>,
    /// The protocol number of its routes.
    pub protocol: u8,
    /// Numbers that routes of former settings have.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub former: Vec<u8>,
    /// Whether all inputs have said what they want: before that nothing of an earlier process goes.
    pub settled: bool,
}

/// A route that is wanted.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct WantedRoute {
    /// The destination.
    pub prefix: IpNet,
    /// The routing table.
    pub table: u32,
    /// The metric.
    pub metric: u32,
    /// Where it leads; nothing while that cannot be said.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub leads: Option<Leads>,
    /// The source of the node's own packets.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub source: Option<IpAddr>,
    /// Who wants it.
    pub origin: Origin,
    /// Why it leads nowhere yet.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub waits: Option<String>,
    /// Why it is not in the kernel.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub failure: Option<WriteFailure>,
}

/// Where a route leads.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub enum Leads {
    /// To one of these.
    Hops(Vec<Hop>),
    /// Where the next-hop object of this number does.
    Object(u32),
    /// Nowhere.
    Blackhole,
    /// Something else, as a type of route (`rtm_type`).
    Other(u8),
}

/// One way out.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Hop {
    /// The router.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub gateway: Option<IpAddr>,
    /// The index of the link.
    pub link: u32,
    /// Whether no subnet of the link has to hold the router.
    #[serde(default)]
    pub onlink: bool,
    /// The share of the packets.
    pub weight: u8,
}

/// Who wants a route.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub enum Origin {
    /// BGP.
    #[serde(rename_all = "camelCase")]
    Bgp {
        /// The best path first.
        paths: Vec<Path>,
        /// The tunnel and the node at its other end.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        tunnel: Option<Tunnel>,
    },
    /// This node has the block.
    OwnBlock,
}

/// A path of BGP.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Path {
    /// The peer that announced it.
    pub peer: String,
    /// The next hop as it was announced.
    pub next_hop: IpAddr,
}

/// A tunnel to a node.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Tunnel {
    /// The kind.
    pub kind: cairn_api::TunnelKind,
    /// The node, which owns the block.
    pub node: String,
}

/// A write that the kernel refuses.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct WriteFailure {
    /// The kernel's answer.
    pub errno: i32,
    /// The same in words.
    pub reason: String,
    /// Since when.
    pub since_unix_secs: u64,
    /// How often it was tried.
    pub attempts: u32,
}

/// A route of ours that nobody wants and that cannot be removed.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct StuckRoute {
    /// The destination.
    pub prefix: IpNet,
    /// The routing table.
    pub table: u32,
    /// The metric.
    pub metric: u32,
    /// Why.
    pub failure: WriteFailure,
}

/// A part of a tunnel, or a next-hop object on an uplink.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct TunnelPart {
    /// What it is: device, address, neighbour, forwarding entry, next-hop object.
    pub part: String,
    /// Which one.
    pub name: String,
    /// What it does, in words.
    pub words: String,
}

impl WantedRoute {
    /// What the kernel allows only one route of.
    pub fn key(&self) -> RouteKey {
        RouteKey { prefix: self.prefix, table: self.table, metric: self.metric }.normalized()
    }

    /// The route, unless it leads nowhere yet.
    pub fn route(&self, protocol: u8) -> Option<Route> {
        Some(Route {
            prefix: self.prefix,
            table: self.table,
            metric: self.metric,
            protocol,
            target: self.leads.clone()?.into(),
            prefsrc: self.source,
        })
    }
}

impl StuckRoute {
    /// What the kernel allows only one route of.
    pub fn key(&self) -> RouteKey {
        RouteKey { prefix: self.prefix, table: self.table, metric: self.metric }.normalized()
    }
}

impl From<Target> for Leads {
    fn from(target: Target) -> Leads {
        match target {
            Target::Unicast(hops) => Leads::Hops(
                hops.into_iter()
                    .map(|hop| Hop {
                        gateway: hop.gateway,
                        link: hop.ifindex,
                        onlink: hop.onlink,
                        weight: hop.weight,
                    })
                    .collect(),
            ),
            Target::Object(id) => Leads::Object(id),
            Target::Blackhole => Leads::Blackhole,
            Target::Other(kind) => Leads::Other(kind),
        }
    }
}

impl From<Leads> for Target {
    fn from(leads: Leads) -> Target {
        match leads {
            Leads::Hops(hops) => Target::Unicast(
                hops.into_iter()
                    .map(|hop| NextHop {
                        gateway: hop.gateway,
                        ifindex: hop.link,
                        onlink: hop.onlink,
                        weight: hop.weight,
                    })
                    .collect(),
            ),
            Leads::Object(id) => Target::Object(id),
            Leads::Blackhole => Target::Blackhole,
            Leads::Other(kind) => Target::Other(kind),
        }
    }
}
