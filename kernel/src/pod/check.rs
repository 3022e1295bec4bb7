//! Comparing a pod's interface with what was answered when it was made.

use std::net::IpAddr;

use super::identity::macs_of;
use super::{Alias, NetworkHash, gateway_of, host_interface_name, is_ours, routes};
use crate::POD_ROUTE_PROTOCOL;
use crate::batch::Batch;
use crate::error::Error;
use crate::link::{self, Link, Mac};
use crate::netns::NetNs;
use crate::route::{self, Route, Target};
use crate::socket::Netlink;

/// What was answered when the interface was made.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Expected {
    /// The container id of the pod's sandbox.
    pub container_id: String,
    /// The interface's name inside the pod.
    pub ifname: String,
    /// The name of the network configuration.
    pub network: String,
    /// The pod's addresses.
    pub addresses: Vec<IpAddr>,
    /// The gateways of the default routes that were answered. Others' default routes do not matter.
    pub gateways: Vec<IpAddr>,
    /// The MTU in bytes, where known.
    pub mtu: Option<u32>,
}

/// A difference between what was answered and the kernel: the sentence says what to do.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Difference {
    /// The host interface is gone.
    #[error("the host interface {0} does not exist: {REPLACE}")]
    NoInterface(String),
    /// The interface of that name is no pod's.
    #[error("the host interface {0} is not a veth interface: remove it, and {REPLACE}")]
    NotOurs(String),
    /// The alias is not the record of this pod with these addresses.
    #[error(
        "the host interface {host_ifname} has the alias {found:?} and not the pod's record: {REPLACE}"
    )]
    Alias {
        /// The interface.
        host_ifname: String,
        /// Its alias.
        found: Option<String>,
    },
    /// The host interface is down.
    #[error("the host interface {0} is down: `ip link set {0} up` on the node")]
    Down(String),
    /// No host route leads to an address through the interface.
    #[error(
        "no host route leads to {address} through {host_ifname}: the Cairn agent writes it again within \
         seconds, and if it does not, its log says why"
    )]
    NoRoute {
        /// The interface.
        host_ifname: String,
        /// The address.
        address: IpAddr,
    },
    /// The host route to an address is not one that Cairn wrote for this interface.
    #[error(
        "the host route to {address} is another program's (protocol {protocol}), not Cairn's through \
         {host_ifname}: remove it on the node, and the Cairn agent writes its own"
    )]
    ForeignRoute {
        /// The interface.
        host_ifname: String,
        /// The address.
        address: IpAddr,
        /// Who made the route (`rtm_protocol`).
        protocol: u8,
    },
    /// The pod has no interface of that name.
    #[error("the pod has no interface {0}: {REPLACE}")]
    NoPodInterface(String),
    /// The pod's interface is not the other end of the host interface.
    #[error("the pod's interface {ifname} is not the other end of {host_ifname}: {REPLACE}")]
    NotPeer {
        /// The interface in the pod.
        ifname: String,
        /// The interface on the node.
        host_ifname: String,
    },
    /// The pod's interface is down.
    #[error("the pod's interface {0} is down: `ip link set {0} up` in the pod, or {REPLACE}")]
    PodDown(String),
    /// The MTU is larger than what was answered, so that long packets are lost.
    #[error(
        "the interface {interface} has the MTU {found}, {allowed} at most: set it, or {REPLACE}"
    )]
    Mtu {
        /// The interface.
        interface: String,
        /// Its MTU in bytes.
        found: u32,
        /// The largest MTU that may be, in bytes.
        allowed: u32,
    },
    /// The pod's interface lacks an address.
    #[error("the pod's interface {ifname} does not have the address {address}: {REPLACE}")]
    NoAddress {
        /// The interface in the pod.
        ifname: String,
        /// The address.
        address: IpAddr,
    },
    /// The pod has no default route through its interface.
    #[error("the pod has no default route via {gateway} through {ifname}: {REPLACE}")]
    NoDefaultRoute {
        /// The interface in the pod.
        ifname: String,
        /// The gateway.
        gateway: IpAddr,
    },
    /// The pod sends to an Ethernet address that the host interface does not have.
    #[error(
        "the host interface {host_ifname} has the Ethernet address {found}, the pod sends to {expected}: \
         `ip link set {host_ifname} address {expected}` on the node"
    )]
    HostMac {
        /// The interface.
        host_ifname: String,
        /// Its address.
        found: Mac,
        /// The address that it was made with, which the pod's neighbour entries hold.
        expected: Mac,
    },
}

/// Compares both ends of a pod's interface with what was answered, and returns the first difference. What
/// other plugins of the chain change is none: the pod's Ethernet address, a smaller MTU, more addresses
/// and routes.
///
/// # Errors
/// Those of [`Netlink::query`], [`Netlink::dump`] and [`NetNs::run`].
pub fn check(
    host: &mut Netlink,
    netns: &NetNs,
    expected: &Expected,
) -> Result<Result<(), Difference>, Error> {
    let link = match host_side(host, expected)? {
        Ok(link) => link,
        Err(difference) => return Ok(Err(difference)),
    };
    netns.run(|| pod_side(&mut Netlink::open()?, &link, expected))?
}

fn host_side(host: &mut Netlink, expected: &Expected) -> Result<Result<Link, Difference>, Error> {
    let host_ifname = host_interface_name(&expected.container_id, &expected.ifname);
    let Some(link) = link::find(host, &host_ifname)? else {
        return Ok(Err(Difference::NoInterface(host_ifname)));
    };
    if !is_ours(&link) {
        return Ok(Err(Difference::NotOurs(host_ifname)));
    }
    let alias = link.alias.as_deref().and_then(|text| text.parse().ok());
    if !alias.is_some_and(|alias| records(&alias, expected)) {
        return Ok(Err(Difference::Alias { host_ifname, found: link.alias }));
    }
    if !link.is_up() {
        return Ok(Err(Difference::Down(host_ifname)));
    }
    let (made_with, _) = macs_of(&expected.container_id, &expected.ifname);
    if let Some(found) = link.mac.filter(|mac| *mac != made_with) {
        return Ok(Err(Difference::HostMac { host_ifname, found, expected: made_with }));
    }
    for &address in &expected.addresses {
        match routes::exact(host, address)? {
            None => return Ok(Err(Difference::NoRoute { host_ifname, address })),
            Some(Route { protocol, .. }) if protocol != POD_ROUTE_PROTOCOL => {
                return Ok(Err(Difference::ForeignRoute { host_ifname, address, protocol }));
            }
            Some(route) if routes::ifindex_of(&route) != link.index => {
                return Ok(Err(Difference::NoRoute { host_ifname, address }));
            }
            Some(_) => {}
        }
    }
    Ok(Ok(link))
}

/// Whether `alias` records the pod, its network and its addresses, in whatever order.
fn records(alias: &Alias, expected: &Expected) -> bool {
    let sorted = |addresses: &[IpAddr]| {
        let mut addresses = addresses.to_vec();
        addresses.sort_unstable();
        addresses
    };
    alias.container_id == expected.container_id
        && alias.ifname == expected.ifname
        && alias.network == NetworkHash::of(&expected.network)
        && sorted(&alias.addresses) == sorted(&expected.addresses)
}

fn pod_side(
    pod: &mut Netlink,
    host: &Link,
    expected: &Expected,
) -> Result<Result<(), Difference>, Error> {
    let ifname = expected.ifname.clone();
    let Some(link) = link::find(pod, &ifname)? else {
        return Ok(Err(Difference::NoPodInterface(ifname)));
    };
    if link.kind.as_deref() != Some("veth") || link.peer != Some(host.index) {
        return Ok(Err(Difference::NotPeer { ifname, host_ifname: host.name.clone() }));
    }
    if !link.is_up() {
        return Ok(Err(Difference::PodDown(ifname)));
    }
    if let Some(allowed) = expected.mtu.filter(|allowed| link.mtu > *allowed) {
        return Ok(Err(Difference::Mtu { interface: ifname, found: link.mtu, allowed }));
    }
    let held = link::addresses(pod)?;
    for &address in &expected.addresses {
        let is_it =
            |found: &link::Address| found.ifindex == link.index && found.address.addr() == address;
        if !held.iter().any(is_it) {
            return Ok(Err(Difference::NoAddress { ifname, address }));
        }
    }
    for &gateway in &expected.gateways {
        let leads = |route: &Route| leads_to(route, gateway, link.index);
        if !default_routes(pod, gateway)?.iter().any(leads) {
            return Ok(Err(Difference::NoDefaultRoute { ifname, gateway }));
        }
    }
    Ok(Ok(()))
}

/// The gateways, of those of `addresses`, to which a default route leads through the link `ifindex`.
pub(super) fn gateways_through(
    pod: &mut Netlink,
    addresses: &[IpAddr],
    ifindex: u32,
) -> Result<Vec<IpAddr>, Error> {
    let mut gateways = Vec::new();
    for gateway in addresses.iter().copied().map(gateway_of) {
        let leads = |route: &Route| leads_to(route, gateway, ifindex);
        if default_routes(pod, gateway)?.iter().any(leads) {
            gateways.push(gateway);
        }
    }
    Ok(gateways)
}

fn leads_to(route: &Route, gateway: IpAddr, ifindex: u32) -> bool {
    let Target::Unicast(hops) = &route.target else { return false };
    hops.iter().any(|hop| hop.gateway == Some(gateway) && hop.ifindex == ifindex)
}

/// The default routes of the main table, of the family of `gateway`.
fn default_routes(pod: &mut Netlink, gateway: IpAddr) -> Result<Vec<Route>, Error> {
    let mut header = [0; 12];
    header[0] = route::family_of(gateway);
    let mut batch = Batch::new();
    batch.begin(libc::RTM_GETROUTE, 0, &header);
    batch.attr_u32(libc::RTA_TABLE, route::TABLE_MAIN);
    let found = pod.dump(&mut batch, |kind, body| {
        let route = if kind == libc::RTM_NEWROUTE { route::parse(body)? } else { None };
        // Kernels before 4.20 tell of every table.
        Ok(route.filter(|route| route.table == route::TABLE_MAIN && route.prefix.prefix_len() == 0))
    });
    match found {
        // The table has never had a route, or the kernel lacks the family.
        Err(error) if error.is_absent() => Ok(Vec::new()),
        found => found,
    }
}

/// What mends whatever of a pod's interface is gone.
const REPLACE: &str = "delete the pod, so that it is made anew";
