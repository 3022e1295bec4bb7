//! What the kernel side is told.

use std::net::{IpAddr, Ipv6Addr};
use std::sync::Arc;

use crate::config::PeerName;
use crate::prefix::Prefix;
use crate::wire::SessionSort;

use super::attributes::RouteAttributes;

/// The wanted state of one prefix in the forwarding table.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct FibChange {
    /// The prefix.
    pub prefix: Prefix,
    /// The route; `None` when there is none, or when this speaker originates the prefix: what it
    /// originates is in the kernel by other means.
    pub route: Option<FibRoute>,
}

/// A learned route, to be installed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct FibRoute {
    /// The best path first, then its equals with other next hops, up to `Multipath::paths_max`.
    pub paths: Vec<FibPath>,
}

/// One path of a route.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct FibPath {
    /// The next hop as the peer gave it.
    pub next_hop: IpAddr,
    /// The link-local address beside a global IPv6 next hop (RFC 2545).
    pub link_local: Option<Ipv6Addr>,
    /// The index of the interface on which a link-local next hop is, where the session says so.
    pub link: Option<u32>,
    /// Who announced it.
    pub peer: PeerName,
    /// Over which sort of session.
    pub sort: SessionSort,
    /// The attributes after import policy.
    pub attributes: Arc<RouteAttributes>,
}
