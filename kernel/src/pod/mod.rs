//! Pods' interfaces: a veth pair, the pod's addresses, and the host's routes to them.
//!
//! ```text
//!  node                                         pod
//!  route 10.244.0.5/32 dev cairn1a2b3c4d5e      10.244.0.5/32
//!  cairn1a2b3c4d5e, alias: who holds what ────► eth0
//!  fe80::1                                      default via 169.254.1.1, fe80::1
//! ```
//!
//! The kernel is the database of the node's pods: the alias of a host interface says which container
//! holds which addresses, and the host routes say the same ([`crate::POD_ROUTE_PROTOCOL`]). Creation,
//! alias and host routes go to the kernel in one system call, so that a process that is killed leaves
//! all or nothing of them; [`list`] reads it all back. An interface of ours with neither alias nor
//! host route is half done and belongs to nobody.
//!
//! Functions that take `host` act in that socket's namespace, in which the calling thread must be
//! too. They block; call them where that is allowed. One process at a time may use them in a
//! namespace.

mod alias;
mod attach;

use std::collections::HashMap;
use std::net::IpAddr;

use ipnet::IpNet;
use rustix::io::Errno;

use crate::batch::Batch;
use crate::error::Error;
use crate::link::{self, Link, Mac};
use crate::route::{self, NextHop, Route, Target};
use crate::socket::Netlink;
use crate::{BLACKHOLE_METRIC, POD_ROUTE_PROTOCOL};

pub use alias::{ALIAS_MAX, Alias, AliasError};
pub use attach::{AttachError, Attached, PodSpec, attach, gateway_of};

/// What the name of every pod's host interface begins with.
pub const HOST_INTERFACE_PREFIX: &str = "cairn";

/// A pod's host interface as the kernel holds it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PodAttachment {
    /// The host interface's name.
    pub host_ifname: String,
    /// Its index.
    pub ifindex: u32,
    /// Its MTU in bytes.
    pub mtu: u32,
    /// Its record; `None` when the alias is not there or not ours.
    pub alias: Option<Alias>,
    /// An alias that could not be read as a record: another tool's, or another version's.
    pub alias_unread: Option<String>,
    /// The addresses to which a host route leads through the interface, in order.
    pub routes: Vec<IpAddr>,
}

impl PodAttachment {
    /// Whether the interface is the rest of an interrupted creation, which holds no address.
    pub fn is_half_done(&self) -> bool {
        self.alias.is_none() && self.alias_unread.is_none() && self.routes.is_empty()
    }

    /// Every address that the interface holds, by alias or route.
    pub fn addresses(&self) -> Vec<IpAddr> {
        let recorded = self.alias.iter().flat_map(|alias| &alias.addresses);
        let mut addresses: Vec<IpAddr> = recorded.chain(&self.routes).copied().collect();
        addresses.sort_unstable();
        addresses.dedup();
        addresses
    }

    /// The addresses that the alias records and no host route leads to.
    pub fn missing_routes(&self) -> Vec<IpAddr> {
        let recorded = self.alias.iter().flat_map(|alias| &alias.addresses);
        recorded.filter(|address| !self.routes.contains(address)).copied().collect()
    }
}

/// A difference between a record and the kernel.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Difference {
    /// The host interface is gone.
    #[error("the host interface {0} does not exist")]
    NoInterface(String),
    /// The host interface is down.
    #[error("the host interface {0} is down")]
    Down(String),
    /// The alias is not the record's.
    #[error("the host interface {host_ifname} has the alias {found:?}")]
    Alias {
        /// The interface.
        host_ifname: String,
        /// Its alias.
        found: Option<String>,
    },
    /// No host route leads to an address through the interface.
    #[error("no host route leads to {address} through {host_ifname}")]
    NoRoute {
        /// The interface.
        host_ifname: String,
        /// The address.
        address: IpAddr,
    },
}

/// The name of the host interface of interface `ifname` in container `container_id`: the prefix
/// `cairn` and 50 bits of a hash as ten digits of base 32. It must never change between releases:
/// DEL finds the interface by it.
pub fn host_interface_name(container_id: &str, ifname: &str) -> String {
    let mut hash = identity_hash(container_id, ifname);
    let mut name = String::from(HOST_INTERFACE_PREFIX);
    for _ in 0..HASH_DIGITS {
        let digit = (hash & 31) as u32;
        name.push(char::from_digit(digit, 32).unwrap_or('0'));
        hash >>= 5;
    }
    name
}

/// Whether `name` can be one of [`host_interface_name`].
pub fn is_host_interface_name(name: &str) -> bool {
    name.strip_prefix(HOST_INTERFACE_PREFIX).is_some_and(|digits| {
        digits.len() == HASH_DIGITS
            && digits.bytes().all(|digit| matches!(digit, b'0'..=b'9' | b'a'..=b'v'))
    })
}

/// Every host interface of a pod, from one dump of links and one of routes for each family.
///
/// # Errors
/// Those of [`Netlink::dump`].
pub fn list(host: &mut Netlink) -> Result<Vec<PodAttachment>, Error> {
    // Links first: a route that appears in between belongs to a link that is not listed and is then
    // not listed either.
    let links = link::list(host)?;
    let mut routes = host_routes(host)?;
    let mut attachments = Vec::new();
    for link in links.into_iter().filter(is_ours) {
        let mut addresses = routes.remove(&link.index).unwrap_or_default();
        addresses.sort_unstable();
        let text = link.alias.filter(|text| !text.is_empty());
        let alias = text.as_deref().and_then(|text| text.parse().ok());
        attachments.push(PodAttachment {
            host_ifname: link.name,
            ifindex: link.index,
            mtu: link.mtu,
            alias_unread: if alias.is_none() { text } else { None },
            alias,
            routes: addresses,
        });
    }
    Ok(attachments)
}

/// Removes a pod's host interface, and with it the pod's and all routes through them. One that does
/// not exist is fine. Takes about 30 ms, in which the kernel waits for readers.
///
/// # Errors
/// [`Error::Unencodable`] for a name that is not a pod's, and those of [`Netlink::request`].
pub fn detach(host: &mut Netlink, host_ifname: &str) -> Result<(), Error> {
    if !is_host_interface_name(host_ifname) {
        return Err(Error::Unencodable("the interface's name is not that of a pod's interface"));
    }
    match link::find(host, host_ifname)? {
        Some(link) if is_ours(&link) => link::delete(host, link.index),
        _ => Ok(()),
    }
}

/// As [`detach`], for interface `ifname` of container `container_id`: an interface whose alias names
/// another container stays.
///
/// # Errors
/// Those of [`Netlink::request`].
pub fn detach_container(host: &mut Netlink, container_id: &str, ifname: &str) -> Result<(), Error> {
    let Some(link) = link::find(host, &host_interface_name(container_id, ifname))? else {
        return Ok(());
    };
    let alias = link.alias.as_deref().and_then(|text| text.parse::<Alias>().ok());
    let others =
        alias.is_some_and(|alias| alias.container_id != container_id || alias.ifname != ifname);
    if others || !is_ours(&link) { Ok(()) } else { link::delete(host, link.index) }
}

/// Whether interface `ifname` of container `container_id` has its host interface.
///
/// # Errors
/// Those of [`Netlink::query`].
pub fn exists(host: &mut Netlink, container_id: &str, ifname: &str) -> Result<bool, Error> {
    Ok(link::find(host, &host_interface_name(container_id, ifname))?.is_some_and(|l| is_ours(&l)))
}

/// Whether this node has a route for exactly `address`, or has the address itself.
///
/// # Errors
/// Those of [`Netlink::query`].
pub fn is_in_use(host: &mut Netlink, address: IpAddr) -> Result<bool, Error> {
    Ok(exact_route(host, address)?.is_some())
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
    let Some((prefix, _)) = matched_route(host, address)? else { return Ok(None) };
    let inside =
        |block: &IpNet| block.contains(&address) && prefix.prefix_len() > block.prefix_len();
    let exact = prefix.prefix_len() == prefix.max_prefix_len();
    Ok((exact || blocks.iter().any(inside)).then_some(prefix))
}

/// Removes the rest of an interrupted creation, unless it has become whole since it was listed.
/// Returns whether it was removed.
///
/// # Errors
/// Those of [`Netlink::request`].
pub fn remove_half_done(host: &mut Netlink, attachment: &PodAttachment) -> Result<bool, Error> {
    let Some(link) = link::find_index(host, attachment.ifindex)? else { return Ok(false) };
    let unchanged = is_ours(&link) && link.name == attachment.host_ifname;
    let bare = link.alias.is_none_or(|alias| alias.is_empty());
    if !unchanged || !bare || !attachment.routes.is_empty() {
        return Ok(false);
    }
    link::delete(host, link.index)?;
    Ok(true)
}

/// Writes the host routes that somebody took away, with a source address of the route's family from
/// `node_addresses`. A route that came back meanwhile is fine.
///
/// Without a source while the node does not have that address, as its lease ran out or it moves: the
/// kernel takes such routes away with the address, but pods must stay reachable.
///
/// # Errors
/// [`Error::Refused`], with EEXIST when another interface has the route now.
pub fn restore_routes(
    host: &mut Netlink,
    attachment: &PodAttachment,
    node_addresses: &[IpAddr],
) -> Result<(), Error> {
    for address in attachment.missing_routes() {
        let route = host_route(address, attachment.ifindex, node_addresses);
        let mut written = link::add_route(host, &route);
        if route.prefsrc.is_some() && is_source_missing(&written) {
            written = link::add_route(host, &Route { prefsrc: None, ..route });
        }
        match written {
            Err(error) if error.is_present() => {
                if exact_route(host, address)?.is_none_or(|ifindex| ifindex != attachment.ifindex) {
                    return Err(error);
                }
            }
            done => done?,
        }
    }
    Ok(())
}

/// Whether a route was refused for its source, which is EINVAL in both families.
fn is_source_missing(written: &Result<(), Error>) -> bool {
    matches!(written, Err(Error::Refused { refusal, .. }) if refusal.errno == Errno::INVAL)
}

/// Compares the host side of one attachment with the kernel.
///
/// # Errors
/// Those of [`Netlink::query`].
pub fn check(host: &mut Netlink, wanted: &Alias) -> Result<Result<(), Difference>, Error> {
    let host_ifname = host_interface_name(&wanted.container_id, &wanted.ifname);
    let Some(link) = link::find(host, &host_ifname)? else {
        return Ok(Err(Difference::NoInterface(host_ifname)));
    };
    if link.alias.as_deref().and_then(|text| text.parse().ok()).as_ref() != Some(wanted) {
        return Ok(Err(Difference::Alias { host_ifname, found: link.alias }));
    }
    if !link.is_up() {
        return Ok(Err(Difference::Down(host_ifname)));
    }
    for &address in &wanted.addresses {
        if exact_route(host, address)? != Some(link.index) {
            return Ok(Err(Difference::NoRoute { host_ifname, address }));
        }
    }
    Ok(Ok(()))
}

/// The host route to a pod's address.
fn host_route(address: IpAddr, ifindex: u32, node_addresses: &[IpAddr]) -> Route {
    let same_family = |node: &&IpAddr| node.is_ipv4() == address.is_ipv4();
    Route {
        prefix: address.into(),
        table: route::TABLE_MAIN,
        metric: 0,
        protocol: POD_ROUTE_PROTOCOL,
        target: Target::Unicast(vec![NextHop::link(ifindex)]),
        prefsrc: node_addresses.iter().find(same_family).copied(),
    }
}

/// The interface of the route for exactly `address`, of whatever table, if there is one. A blackhole
/// of ours that holds a block of this one address does not count.
fn exact_route(host: &mut Netlink, address: IpAddr) -> Result<Option<u32>, Error> {
    let matched = matched_route(host, address)?;
    let exact = |(prefix, _): &(IpNet, u32)| prefix.prefix_len() == prefix.max_prefix_len();
    Ok(matched.filter(exact).map(|(_, ifindex)| ifindex))
}

/// The destination and the interface, 0 if it has none, of the route that the kernel takes to
/// `address`, of whatever table. Blackholes of ours do not count.
fn matched_route(host: &mut Netlink, address: IpAddr) -> Result<Option<(IpNet, u32)>, Error> {
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
    let Some(found) = route::parse(&body)? else { return Ok(None) };
    let ifindex = match found.target {
        Target::Unicast(hops) => hops.first().map_or(0, |hop| hop.ifindex),
        Target::Blackhole if found.metric == BLACKHOLE_METRIC => return Ok(None),
        // Addresses of the host itself are routes of type local.
        Target::Object(_) | Target::Blackhole | Target::Other(_) => 0,
    };
    Ok(found.prefix.contains(&address).then_some((found.prefix, ifindex)))
}

/// The destinations of pods' host routes by interface index.
fn host_routes(host: &mut Netlink) -> Result<HashMap<u32, Vec<IpAddr>>, Error> {
    let mut routes: HashMap<u32, Vec<IpAddr>> = HashMap::new();
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
            let one = route.prefix.prefix_len() == route.prefix.max_prefix_len();
            if let Target::Unicast(hops) = route.target
                && let [hop] = hops.as_slice()
                && route.protocol == POD_ROUTE_PROTOCOL
                && one
            {
                routes.entry(hop.ifindex).or_default().push(route.prefix.addr());
            }
        }
    }
    Ok(routes)
}

fn is_ours(link: &Link) -> bool {
    link.kind.as_deref() == Some("veth") && is_host_interface_name(&link.name)
}

/// 64 bits that identify an interface of a container: FNV-1a, mixed once more so that every bit
/// depends on every byte.
fn identity_hash(container_id: &str, ifname: &str) -> u64 {
    let mut hash: u64 = 0xcbf2_9ce4_8422_2325;
    // Neither part can hold a zero byte.
    for byte in container_id.bytes().chain([0]).chain(ifname.bytes()) {
        hash = (hash ^ u64::from(byte)).wrapping_mul(0x0100_0000_01b3);
    }
    mix(hash)
}

/// The finalizer of SplitMix64.
fn mix(mut hash: u64) -> u64 {
    hash = (hash ^ (hash >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    hash = (hash ^ (hash >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    hash ^ (hash >> 31)
}

/// A locally administered Ethernet address of 46 bits of `hash`.
fn mac_of(hash: u64) -> Mac {
    let [_, _, first, rest @ ..] = hash.to_be_bytes();
    let [b, c, d, e, f] = rest;
    Mac([(first & 0xfc) | 0x02, b, c, d, e, f])
}

const HASH_DIGITS: usize = 10;
const RTM_F_FIB_MATCH: u32 = 0x2000;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn host_interface_names_are_stable_and_told_apart() {
        // Interfaces made by one release are found by the next.
        assert_eq!(host_interface_name("c0ffee", "eth0"), NAME_OF_C0FFEE);
        let mut names = std::collections::HashSet::new();
        for number in 0..5_000 {
            for ifname in ["eth0", "eth1"] {
                let name = host_interface_name(&format!("{number:064x}"), ifname);
                assert!(name.len() == 15 && is_host_interface_name(&name), "{name}");
                assert!(names.insert(name));
            }
        }
        for name in ["cairn", "cairn.vxlan", "cairn-ipip", "cairn000000000z", "veth0123456789a"] {
            assert!(!is_host_interface_name(name), "{name}");
        }
    }

    #[test]
    fn ethernet_addresses_are_local_and_unicast() {
        for number in 0..1_000 {
            let Mac([first, ..]) = mac_of(mix(number));
            assert_eq!(first & 0b11, 0b10);
        }
    }

    const NAME_OF_C0FFEE: &str = "cairn4o7ongurrm";
}
