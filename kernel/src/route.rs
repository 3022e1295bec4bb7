//! Routes, written to and read from the kernel by hand, in bulk.
//!
//! The kernel's routes do not say who made them except by their protocol number, and its requests
//! are easily misunderstood: a replacement takes whatever route has the same key, an append merges
//! IPv6 routes, a deletion without protocol removes a stranger's. So routes are created exclusively,
//! replaced only where a dump showed ours, and deleted with their protocol.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use ipnet::IpNet;

use crate::batch::{Batch, attributes, read_ip, read_u32};
use crate::error::Error;

/// The table of routes that the kernel consults by default (`RT_TABLE_MAIN`).
pub const TABLE_MAIN: u32 = 254;
/// The table of the host's own and broadcast addresses (`RT_TABLE_LOCAL`).
pub const TABLE_LOCAL: u32 = 255;
/// The protocol number of routes that an administrator or a setup script makes.
pub const PROTOCOL_STATIC: u8 = libc::RTPROT_STATIC;

/// A route as the kernel holds it.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Route {
    /// The destination, host bits zero.
    pub prefix: IpNet,
    /// The routing table.
    pub table: u32,
    /// The metric; smaller is preferred.
    pub metric: u32,
    /// Who made the route (`rtm_protocol`).
    pub protocol: u8,
    /// What happens to packets.
    pub target: Target,
    /// The source address that local senders get.
    pub prefsrc: Option<IpAddr>,
}

/// What a route does with packets.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum Target {
    /// Send to one of these, by weight.
    Unicast(Vec<NextHop>),
    /// Drop silently.
    Blackhole,
    /// Another type of route (`rtm_type`): only read, never written.
    Other(u8),
}

/// One way out.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct NextHop {
    /// The router, `None` when the destination is on the link. May be IPv6 for an IPv4 route
    /// (RFC 8950).
    pub gateway: Option<IpAddr>,
    /// The interface index.
    pub ifindex: u32,
    /// Take the gateway as reachable on the link even where no subnet of the link covers it.
    pub onlink: bool,
    /// The share of packets among several next hops, 1 to 255. A single next hop has 1.
    pub weight: u8,
}

impl NextHop {
    /// The next hop `gateway` on the link `ifindex`, weight 1.
    pub fn via(gateway: IpAddr, ifindex: u32) -> NextHop {
        NextHop { gateway: Some(gateway), ifindex, onlink: false, weight: 1 }
    }

    /// The link `ifindex` itself, weight 1.
    pub fn link(ifindex: u32) -> NextHop {
        NextHop { gateway: None, ifindex, onlink: false, weight: 1 }
    }
}

/// What the kernel allows only one route of (type of service zero).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct RouteKey {
    /// The destination, host bits zero.
    pub prefix: IpNet,
    /// The routing table.
    pub table: u32,
    /// The metric.
    pub metric: u32,
}

impl Route {
    /// The key of this route.
    pub fn key(&self) -> RouteKey {
        RouteKey { prefix: self.prefix, table: self.table, metric: self.metric }
    }
}

pub(crate) fn family_of(address: IpAddr) -> u8 {
    (if address.is_ipv4() { libc::AF_INET } else { libc::AF_INET6 }) as u8
}

/// Appends a request that creates `route` and is refused when its key is taken.
pub(crate) fn encode_create(batch: &mut Batch, route: &Route) {
    encode(batch, libc::RTM_NEWROUTE, libc::NLM_F_CREATE as u16 | libc::NLM_F_EXCL as u16, route);
}

/// Appends a request that deletes the route of `key` if its protocol is `protocol`.
pub(crate) fn encode_delete(batch: &mut Batch, key: RouteKey, protocol: u8) {
    // The type stays 0 (any); scope NOWHERE matches any scope.
    begin(batch, libc::RTM_DELROUTE, 0, key, protocol, libc::RT_SCOPE_NOWHERE, 0, 0);
}

fn encode(batch: &mut Batch, kind: u16, flags: u16, route: &Route) {
    let (route_type, hops) = match &route.target {
        Target::Unicast(hops) => (libc::RTN_UNICAST, hops.as_slice()),
        Target::Blackhole => (libc::RTN_BLACKHOLE, &[][..]),
        Target::Other(route_type) => (*route_type, &[][..]),
    };
    // The kernel accepts a gateway only through a route whose scope is narrower than its own.
    let on_link = !hops.is_empty() && hops.iter().all(|hop| hop.gateway.is_none());
    let scope = if on_link { libc::RT_SCOPE_LINK } else { libc::RT_SCOPE_UNIVERSE };
    let hop_flags = match hops {
        [hop] if hop.onlink => RTNH_F_ONLINK,
        _ => 0,
    };
    begin(batch, kind, flags, route.key(), route.protocol, scope, route_type, hop_flags);
    if let Some(source) = route.prefsrc {
        batch.attr_ip(libc::RTA_PREFSRC, source);
    }
    let v4 = route.prefix.addr().is_ipv4();
    match hops {
        [] => {}
        [hop] => {
            encode_gateway(batch, hop, v4);
            batch.attr_u32(libc::RTA_OIF, hop.ifindex);
        }
        hops => {
            let multipath = batch.open(libc::RTA_MULTIPATH);
            for hop in hops {
                encode_hop(batch, hop, v4);
            }
            batch.close(multipath);
        }
    }
}

#[expect(clippy::too_many_arguments, reason = "these are the fields of one fixed header")]
fn begin(
    batch: &mut Batch,
    kind: u16,
    flags: u16,
    key: RouteKey,
    protocol: u8,
    scope: u8,
    route_type: u8,
    hop_flags: u8,
) {
    let table = u8::try_from(key.table).unwrap_or(libc::RT_TABLE_COMPAT);
    let family = family_of(key.prefix.addr());
    let len = key.prefix.prefix_len();
    let header = [family, len, 0, 0, table, protocol, scope, route_type, hop_flags, 0, 0, 0];
    batch.begin(kind, flags, &header);
    batch.attr_ip(libc::RTA_DST, key.prefix.network());
    batch.attr_u32(libc::RTA_TABLE, key.table);
    batch.attr_u32(libc::RTA_PRIORITY, key.metric);
}

fn encode_gateway(batch: &mut Batch, hop: &NextHop, v4: bool) {
    match hop.gateway {
        Some(IpAddr::V6(gateway)) if v4 => {
            let mut via = [0; 18];
            via[..2].copy_from_slice(&(libc::AF_INET6 as u16).to_ne_bytes());
            via[2..].copy_from_slice(&gateway.octets());
            batch.attr(libc::RTA_VIA, &via);
        }
        Some(gateway) => {
            batch.attr_ip(libc::RTA_GATEWAY, gateway);
        }
        None => {}
    }
}

/// Appends one `struct rtnexthop` with its attributes.
fn encode_hop(batch: &mut Batch, hop: &NextHop, v4: bool) {
    let gateway_len: u16 = match hop.gateway {
        None => 0,
        Some(IpAddr::V4(_)) => 8,
        Some(IpAddr::V6(_)) if v4 => 24,
        Some(IpAddr::V6(_)) => 20,
    };
    let mut header = [0; 8];
    header[..2].copy_from_slice(&(8 + gateway_len).to_ne_bytes());
    header[2] = if hop.onlink { RTNH_F_ONLINK } else { 0 };
    // The kernel counts weights from 0.
    header[3] = hop.weight.saturating_sub(1);
    header[4..].copy_from_slice(&hop.ifindex.to_ne_bytes());
    batch.raw(&header);
    encode_gateway(batch, hop, v4);
}

const RTNH_F_ONLINK: u8 = 4;
