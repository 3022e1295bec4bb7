//! The host's routes to pods' addresses, and where else the host routes an address.

use std::collections::HashMap;
use std::net::IpAddr;

use ipnet::IpNet;
use rustix::io::Errno;

use super::PodAttachment;
use crate::batch::Batch;
use crate::error::Error;
use crate::link;
use crate::route::{self, NextHop, Route, Target};
use crate::socket::Netlink;
use crate::{BLACKHOLE_METRIC, POD_ROUTE_PROTOCOL};

/// A host route to a pod's address.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct HostRoute {
    /// The destination.
    pub address: IpAddr,
    /// The source of what the node itself sends there; without it the kernel chooses.
    pub source: Option<IpAddr>,
}

/// What [`restore_routes`] did.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Restored {
    /// The addresses to which it wrote a route.
    pub written: Vec<IpAddr>,
    /// The addresses whose route has to do without its source, which the node does not have now.
    pub sourceless: Vec<IpAddr>,
}

/// Whether this node has a route for exactly `address`, or has the address itself.
///
/// # Errors
/// Those of [`Netlink::query`].
pub fn is_in_use(host: &mut Netlink, address: IpAddr) -> Result<bool, Error> {
    Ok(exact(host, address)?.is_some())
}

/// The route by which this node sends packets to `address` elsewhere than to its block's own blackhole:
/// one for exactly the address, or one that is more specific than the network of `blocks` in which it
/// lies. One lookup; blackhole and unreachable routes of others are not seen by it in IPv4.
///
/// # Errors
/// Those of [`Netlink::query`].
pub fn elsewhere(
    host: &mut Netlink,
    address: IpAddr,
    blocks: &[IpNet],
) -> Result<Option<IpNet>, Error> {
    let Some(Route { prefix, .. }) = matched(host, address)? else { return Ok(None) };
    let inside =
        |block: &IpNet| block.contains(&address) && prefix.prefix_len() > block.prefix_len();
    Ok((is_exact(prefix) || blocks.iter().any(inside)).then_some(prefix))
}

/// Writes the host routes that somebody took away, and those that have another source than the address of
/// their family that comes first in `node_addresses`. A route that came back meanwhile is fine.
///
/// Without a source while the node does not have that address, as its lease ran out or it moves: the
/// kernel takes such routes away with the address, but pods must stay reachable. Call it again then.
///
/// # Errors
/// [`Error::Refused`], with EEXIST when another interface has the route now.
pub fn restore_routes(
    host: &mut Netlink,
    attachment: &PodAttachment,
    node_addresses: &[IpAddr],
) -> Result<Restored, Error> {
    let mut restored = Restored::default();
    for address in attachment.wrong_routes(node_addresses) {
        let route = host_route(address, attachment.ifindex, node_addresses);
        if attachment.route_to(address).is_some() {
            match replace(host, &route) {
                Ok(()) => restored.written.push(address),
                // It leads there, from another address.
                Err(error) if is_source_missing(&error) => restored.sourceless.push(address),
                // It went meanwhile, of which the caller will hear.
                Err(error) if error.is_absent() => {}
                Err(error) => return Err(error),
            }
            continue;
        }
        let mut written = link::add_route(host, &route);
        if route.prefsrc.is_some()
            && let Err(error) = &written
            && is_source_missing(error)
        {
            restored.sourceless.push(address);
            written = link::add_route(host, &Route { prefsrc: None, ..route });
        }
        match written {
            Err(error) if error.is_present() => {
                let through = exact(host, address)?.map(|route| ifindex_of(&route));
                if through != Some(attachment.ifindex) {
                    return Err(error);
                }
            }
            Err(error) => return Err(error),
            Ok(()) => restored.written.push(address),
        }
    }
    Ok(restored)
}

/// The host route to a pod's address.
pub(super) fn host_route(address: IpAddr, ifindex: u32, node_addresses: &[IpAddr]) -> Route {
    Route {
        prefix: address.into(),
        table: route::TABLE_MAIN,
        metric: 0,
        protocol: POD_ROUTE_PROTOCOL,
        target: Target::Unicast(vec![NextHop::link(ifindex)]),
        prefsrc: source_towards(address, node_addresses),
    }
}

/// The source of what the node itself sends to `address`.
pub(super) fn source_towards(address: IpAddr, node_addresses: &[IpAddr]) -> Option<IpAddr> {
    node_addresses.iter().find(|node| node.is_ipv4() == address.is_ipv4()).copied()
}

/// The route for exactly `address`, of whatever table, if there is one. A blackhole of ours that holds a
/// block of this one address does not count.
pub(super) fn exact(host: &mut Netlink, address: IpAddr) -> Result<Option<Route>, Error> {
    Ok(matched(host, address)?.filter(|route| is_exact(route.prefix)))
}

/// The interface of a route, 0 if it has none.
pub(super) fn ifindex_of(route: &Route) -> u32 {
    match &route.target {
        Target::Unicast(hops) => hops.first().map_or(0, |hop| hop.ifindex),
        // Addresses of the host itself are routes of type local.
        Target::Object(_) | Target::Blackhole | Target::Other(_) => 0,
    }
}

/// The host routes to pods by interface index.
pub(super) fn list(host: &mut Netlink) -> Result<HashMap<u32, Vec<HostRoute>>, Error> {
    let mut routes: HashMap<u32, Vec<HostRoute>> = HashMap::new();
    for family in [libc::AF_INET, libc::AF_INET6] {
        let mut header = [0; 12];
        header[0] = family as u8;
        header[5] = POD_ROUTE_PROTOCOL;
        let mut batch = Batch::new();
        batch.begin(libc::RTM_GETROUTE, 0, &header);
        let found = host.dump(&mut batch, |kind, body| match kind {
            libc::RTM_NEWROUTE => route::parse(body),
            _ => Ok(None),
        });
        let found = match found {
            // The kernel lacks the family.
            Err(error) if error.is_absent() => continue,
            found => found?,
        };
        for route in found {
            if let Target::Unicast(hops) = route.target
                && let [hop] = hops.as_slice()
                && route.protocol == POD_ROUTE_PROTOCOL
                && is_exact(route.prefix)
            {
                let found = HostRoute { address: route.prefix.addr(), source: route.prefsrc };
                routes.entry(hop.ifindex).or_default().push(found);
            }
        }
    }
    Ok(routes)
}

/// The route that the kernel takes to `address`, of whatever table. Blackholes of ours do not count.
fn matched(host: &mut Netlink, address: IpAddr) -> Result<Option<Route>, Error> {
    let length = if address.is_ipv4() { 32 } else { 128 };
    let mut header = [0; 12];
    header[0] = route::family_of(address);
    header[1] = length;
    header[8..].copy_from_slice(&RTM_F_FIB_MATCH.to_ne_bytes());
    let mut batch = Batch::new();
    batch.begin(libc::RTM_GETROUTE, 0, &header).attr_ip(libc::RTA_DST, address);
    let body = match host.query(&mut batch, || format!("look up the route to {address}")) {
        Ok(Some(body)) => body,
        Ok(None) => return Ok(None),
        // No route, a blackhole, an unreachable route: each is answered by an error of its own.
        Err(Error::Refused { .. }) => return Ok(None),
        Err(error) => return Err(error),
    };
    let found = route::parse(&body)?.filter(|found| found.prefix.contains(&address));
    let own_hole =
        |found: &Route| found.target == Target::Blackhole && found.metric == BLACKHOLE_METRIC;
    Ok(found.filter(|found| !own_hole(found)))
}

/// Replaces the route of this key, which a dump showed to be ours.
fn replace(host: &mut Netlink, route: &Route) -> Result<(), Error> {
    let mut batch = Batch::new();
    route::encode_replace(&mut batch, route.key(), route.protocol, &route.attributes());
    host.request(&mut batch, || format!("change the route {}", route.prefix))
}

fn is_exact(prefix: IpNet) -> bool {
    prefix.prefix_len() == prefix.max_prefix_len()
}

/// Whether a route was refused for its source, which is EINVAL in both families.
fn is_source_missing(error: &Error) -> bool {
    matches!(error, Error::Refused { refusal, .. } if refusal.errno == Errno::INVAL)
}

const RTM_F_FIB_MATCH: u32 = 0x2000;
