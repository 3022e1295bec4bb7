//! Routes as netlink messages.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use ipnet::IpNet;

use super::{Family, NextHop, Route, RouteKey, Target};
use crate::batch::{Batch, attributes, read_ip, read_u32};
use crate::error::Error;

/// Reads the body of an RTM_NEWROUTE or RTM_DELROUTE message; `None` for a route that
/// [`RouteSocket::dump`] leaves out.
pub(crate) fn parse(body: &[u8]) -> Result<Option<Route>, Error> {
    let Some((header, rest)) = body.split_first_chunk::<HEADER_BYTES>() else {
        return Err(Error::Malformed("a short route"));
    };
    let [family, len, _, tos, table, protocol, _, route_type, hop_flags, flags @ ..] = *header;
    let cloned = u32::from_ne_bytes([hop_flags, flags[0], flags[1], flags[2]]) & RTM_F_CLONED != 0;
    let v4 = match i32::from(family) {
        libc::AF_INET => true,
        libc::AF_INET6 => false,
        _ => return Ok(None),
    };
    if cloned || tos != 0 || route_type == libc::RTN_MULTICAST {
        return Ok(None);
    }
    let any = if v4 { Ipv4Addr::UNSPECIFIED.into() } else { Ipv6Addr::UNSPECIFIED.into() };
    let (mut address, mut table, mut metric, mut prefsrc) = (any, u32::from(table), 0, None);
    let mut hop = NextHop { gateway: None, ifindex: 0, onlink: false, weight: 1 };
    let (mut multipath, mut object) = (None, None);
    for (kind, value) in attributes(rest) {
        match kind {
            libc::RTA_DST => address = read_ip(value).unwrap_or(any),
            libc::RTA_TABLE => table = read_u32(value).unwrap_or(table),
            libc::RTA_PRIORITY => metric = read_u32(value).unwrap_or(0),
            libc::RTA_PREFSRC => prefsrc = read_ip(value),
            libc::RTA_GATEWAY => hop.gateway = read_ip(value),
            libc::RTA_VIA => hop.gateway = value.get(2..).and_then(read_ip),
            libc::RTA_OIF => hop.ifindex = read_u32(value).unwrap_or(0),
            libc::RTA_MULTIPATH => multipath = Some(value),
            RTA_NH_ID => object = read_u32(value),
            _ => {}
        }
    }
    let target = match (route_type, object) {
        // With nexthop_compat_mode=1 the kernel adds the object's own next hops, which are no property of
        // the route; with 0 there is the number only.
        (libc::RTN_UNICAST | libc::RTN_BLACKHOLE, Some(id)) => Target::Object(id),
        (libc::RTN_BLACKHOLE, None) => Target::Blackhole,
        (libc::RTN_UNICAST, None) => {
            let hops = match multipath {
                Some(hops) => parse_hops(hops)?,
                None => {
                    hop.onlink = hop_flags & RTNH_F_ONLINK != 0;
                    vec![hop]
                }
            };
            Target::Unicast(hops).normalized()
        }
        (other, _) => Target::Other(other),
    };
    let prefix = IpNet::new(address, len)
        .map_err(|_| Error::Malformed("a route with an impossible prefix length"))?;
    Ok(Some(Route { prefix, table, metric, protocol, target, prefsrc }))
}

/// Reads the `struct rtnexthop` sequence of RTA_MULTIPATH.
fn parse_hops(mut bytes: &[u8]) -> Result<Vec<NextHop>, Error> {
    let mut hops = Vec::new();
    while let Some(header) = bytes.first_chunk::<8>() {
        let len = usize::from(u16::from_ne_bytes([header[0], header[1]]));
        let body = bytes.get(8..len).ok_or(Error::Malformed("a next hop with a wrong length"))?;
        let mut hop = NextHop {
            gateway: None,
            ifindex: u32::from_ne_bytes([header[4], header[5], header[6], header[7]]),
            onlink: header[2] & RTNH_F_ONLINK != 0,
            weight: header[3].saturating_add(1),
        };
        for (kind, value) in attributes(body) {
            match kind {
                libc::RTA_GATEWAY => hop.gateway = read_ip(value),
                libc::RTA_VIA => hop.gateway = value.get(2..).and_then(read_ip),
                _ => {}
            }
        }
        hops.push(hop);
        bytes = bytes.get(len.next_multiple_of(4)..).unwrap_or_default();
    }
    Ok(hops)
}

pub(crate) fn family_of(address: IpAddr) -> u8 {
    (if address.is_ipv4() { libc::AF_INET } else { libc::AF_INET6 }) as u8
}

/// What a request says about a route besides its key and owner, as the kernel is told it.
#[derive(Debug)]
pub(crate) struct Attributes {
    scope: u8,
    route_type: u8,
    hop_flags: u8,
    octets: Box<[u8]>,
}

impl Attributes {
    /// Those of a route of `family` that leads to `target`.
    pub(crate) fn new(family: Family, target: &Target, prefsrc: Option<IpAddr>) -> Attributes {
        let (route_type, hops) = match target {
            Target::Unicast(hops) => (libc::RTN_UNICAST, hops.as_slice()),
            Target::Object(_) => (libc::RTN_UNICAST, &[][..]),
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
        let mut batch = Batch::new();
        if let Some(source) = prefsrc {
            batch.attr_ip(libc::RTA_PREFSRC, source);
        }
        if let Target::Object(id) = target {
            batch.attr_u32(RTA_NH_ID, *id);
        }
        let v4 = family == Family::V4;
        match hops {
            [] => {}
            [hop] => {
                encode_gateway(&mut batch, hop, v4);
                batch.attr_u32(libc::RTA_OIF, hop.ifindex);
            }
            hops => {
                let multipath = batch.open(libc::RTA_MULTIPATH);
                for hop in hops {
                    encode_hop(&mut batch, hop, v4);
                }
                batch.close(multipath);
            }
        }
        Attributes { scope, route_type, hop_flags, octets: batch.into_octets() }
    }
}

/// Appends a request that creates a route and is refused when its key is taken.
pub(crate) fn encode_create(batch: &mut Batch, key: RouteKey, protocol: u8, is: &Attributes) {
    let flags = libc::NLM_F_CREATE as u16 | libc::NLM_F_EXCL as u16;
    encode(batch, libc::RTM_NEWROUTE, flags, key, protocol, is);
}

/// Appends a request that replaces the route of `key` and is refused when there is none.
pub(crate) fn encode_replace(batch: &mut Batch, key: RouteKey, protocol: u8, is: &Attributes) {
    encode(batch, libc::RTM_NEWROUTE, libc::NLM_F_REPLACE as u16, key, protocol, is);
}

/// Appends a request that deletes the route of `key` if its protocol is `protocol`.
pub(crate) fn encode_delete(batch: &mut Batch, key: RouteKey, protocol: u8) {
    // The type stays 0 (any); scope NOWHERE matches any scope.
    let (scope, octets) = (libc::RT_SCOPE_NOWHERE, Box::default());
    let any = Attributes { scope, route_type: 0, hop_flags: 0, octets };
    encode(batch, libc::RTM_DELROUTE, 0, key, protocol, &any);
}

fn encode(batch: &mut Batch, kind: u16, flags: u16, key: RouteKey, protocol: u8, is: &Attributes) {
    let table = u8::try_from(key.table).unwrap_or(libc::RT_TABLE_COMPAT);
    let family = family_of(key.prefix.addr());
    let len = key.prefix.prefix_len();
    let Attributes { scope, route_type, hop_flags, .. } = *is;
    let header = [family, len, 0, 0, table, protocol, scope, route_type, hop_flags, 0, 0, 0];
    batch.begin(kind, flags, &header);
    batch.attr_ip(libc::RTA_DST, key.prefix.network());
    batch.attr_u32(libc::RTA_TABLE, key.table);
    batch.attr_u32(libc::RTA_PRIORITY, key.metric);
    batch.raw(&is.octets);
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

/// `struct rtmsg`.
pub(super) const HEADER_BYTES: usize = 12;
pub(crate) const RTNH_F_ONLINK: u8 = 4;
const RTM_F_CLONED: u32 = 0x200;
const RTA_NH_ID: u16 = 30;
