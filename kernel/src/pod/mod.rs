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
mod check;
mod detach;
mod foreign;
mod identity;
mod routes;
mod settle;

use std::net::IpAddr;

use crate::error::Error;
use crate::link;
use crate::socket::Netlink;
use identity::is_ours;
use routes::source_towards;

pub use alias::{ALIAS_MAX, Alias, AliasError};
pub use attach::{AttachError, Attached, PodSpec, attach, gateway_of};
pub use check::{Difference, Expected, check};
pub use detach::{detach, detach_container, detach_many, remove_half_done};
pub use identity::{
    HOST_INTERFACE_PREFIX, NetworkHash, host_interface_name, is_host_interface_name,
};
pub use routes::{HostRoute, Restored, elsewhere, is_in_use, restore_routes};

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
    /// The host routes through the interface, in the order of their addresses.
    pub routes: Vec<HostRoute>,
}

impl PodAttachment {
    /// Whether the interface is the rest of an interrupted creation, which holds no address.
    pub fn is_half_done(&self) -> bool {
        self.alias.is_none() && self.alias_unread.is_none() && self.routes.is_empty()
    }

    /// Every address that the interface holds, by alias or route.
    pub fn addresses(&self) -> Vec<IpAddr> {
        let routed = self.routes.iter().map(|route| &route.address);
        let mut addresses: Vec<IpAddr> = self.recorded().chain(routed).copied().collect();
        addresses.sort_unstable();
        addresses.dedup();
        addresses
    }

    /// The addresses that the alias records and no host route leads to.
    pub fn missing_routes(&self) -> Vec<IpAddr> {
        let missing = |address: &&IpAddr| self.route_to(**address).is_none();
        self.recorded().filter(missing).copied().collect()
    }

    /// The addresses that the alias records and to which no host route leads whose source is the first
    /// of `node_addresses` of its family. Without one the source does not matter.
    pub fn wrong_routes(&self, node_addresses: &[IpAddr]) -> Vec<IpAddr> {
        let wrong = |address: &&IpAddr| match self.route_to(**address) {
            None => true,
            Some(route) => {
                let source = source_towards(**address, node_addresses);
                source.is_some() && route.source != source
            }
        };
        self.recorded().filter(wrong).copied().collect()
    }

    fn recorded(&self) -> impl Iterator<Item = &IpAddr> {
        self.alias.iter().flat_map(|alias| &alias.addresses)
    }

    fn route_to(&self, address: IpAddr) -> Option<&HostRoute> {
        self.routes.iter().find(|route| route.address == address)
    }
}

/// Every host interface of a pod, from one dump of links and one of routes for each family.
///
/// # Errors
/// Those of [`Netlink::dump`].
pub fn list(host: &mut Netlink) -> Result<Vec<PodAttachment>, Error> {
    // Links first: a route that appears in between belongs to a link that is not listed and is then
    // not listed either.
    let links = link::list(host)?;
    let mut routes = routes::list(host)?;
    let mut attachments = Vec::new();
    for link in links.into_iter().filter(is_ours) {
        let mut routes = routes.remove(&link.index).unwrap_or_default();
        routes.sort_unstable();
        let text = link.alias.filter(|text| !text.is_empty());
        let alias = text.as_deref().and_then(|text| text.parse().ok());
        attachments.push(PodAttachment {
            host_ifname: link.name,
            ifindex: link.index,
            mtu: link.mtu,
            alias_unread: if alias.is_none() { text } else { None },
            alias,
            routes,
        });
    }
    Ok(attachments)
}

/// Whether interface `ifname` of container `container_id` has its host interface.
///
/// # Errors
/// Those of [`Netlink::query`].
pub fn exists(host: &mut Netlink, container_id: &str, ifname: &str) -> Result<bool, Error> {
    Ok(link::find(host, &host_interface_name(container_id, ifname))?.is_some_and(|l| is_ours(&l)))
}
