//! What the kernel says about the way below BGP: for the speaker's judgement of routes, and for where
//! tunnels begin.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::sync::Arc;

use cairn_bgp::prefix::Prefix;
use cairn_bgp::rib::{LocalNetworks, Underlay};
use cairn_bgp::speaker::SpeakerHandle;
use cairn_kernel::link::{self, Link};
use cairn_kernel::nexthop;
use cairn_kernel::pod::HOST_INTERFACE_PREFIX;
use cairn_kernel::resolve::Resolver;
use cairn_kernel::route::{DumpFilter, Family, Route, RouteSocket, TABLE_MAIN, Target};
use tokio::sync::watch;

use crate::node_address::{self, OwnAddress};
use crate::tunnels;

/// Addresses and the routes of others, at one moment.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct KernelUnderlay {
    /// How next hops are reached.
    pub resolver: Resolver,
    /// The node's own addresses, but those of pods' and tunnels' interfaces and link-local ones.
    pub own: Vec<OwnAddress>,
    networks: LocalNetworks,
    /// The MTU of the link that has an address.
    mtus: BTreeMap<IpAddr, u32>,
}

impl KernelUnderlay {
    /// Reads the network namespace of `socket`, in which our routes have the protocol numbers `own`.
    ///
    /// # Errors
    /// The kernel does not answer.
    pub fn read(
        socket: &mut RouteSocket,
        own: &BTreeSet<u8>,
    ) -> Result<KernelUnderlay, cairn_kernel::error::Error> {
        let addresses = link::addresses(socket.netlink())?;
        let mut routes = Vec::new();
        for family in Family::ALL {
            let filter = DumpFilter { table: Some(TABLE_MAIN), ..DumpFilter::default() };
            routes.append(&mut socket.dump(family, filter)?);
        }
        let networks = LocalNetworks::new(
            addresses.iter().map(|own| (own.address.addr(), Prefix::from(own.address))),
        );
        let through_object = |route: &Route| {
            matches!(route.target, Target::Object(_)) && !own.contains(&route.protocol)
        };
        let objects = if routes.iter().any(through_object) {
            nexthop::list(socket.netlink())?
        } else {
            Vec::new()
        };
        let links = link::list(socket.netlink())?;
        let links: BTreeMap<u32, &Link> = links.iter().map(|link| (link.index, link)).collect();
        let mut underlay = KernelUnderlay {
            resolver: Resolver::new(&addresses, &routes, &objects, own),
            own: Vec::new(),
            networks,
            mtus: BTreeMap::new(),
        };
        for held in &addresses {
            let Some(link) = links.get(&held.ifindex).filter(|link| is_underlay(link)) else {
                continue;
            };
            if !tunnels::is_link_local(held.address.addr()) {
                underlay.mtus.insert(held.address.addr(), link.mtu);
                underlay.own.push(OwnAddress {
                    interface: link.name.clone(),
                    address: held.address,
                    lasting: held.is_lasting(),
                });
            }
        }
        Ok(underlay)
    }

    /// Whether `address` is in a subnet of this node, so that no router is between.
    pub fn is_near(&self, address: IpAddr) -> bool {
        node_address::is_near(&self.own, address)
    }

    /// The MTU in bytes of the link that has `address`.
    pub fn mtu(&self, address: IpAddr) -> Option<u32> {
        self.mtus.get(&address).copied()
    }
}

/// Whether a link is neither a pod's nor a tunnel.
fn is_underlay(link: &Link) -> bool {
    !link.is_loopback() && !link.name.starts_with(HOST_INTERFACE_PREFIX) && !tunnels::is_ours(link)
}

impl Underlay for KernelUnderlay {
    fn reaches(&self, next_hop: IpAddr) -> bool {
        // A link-local one has no meaning without its link, which the session knows and this does not.
        let is_link_local = matches!(next_hop, IpAddr::V6(v6) if v6.is_unicast_link_local());
        is_link_local || self.resolver.resolve(next_hop).is_some()
    }

    fn networks(&self) -> &LocalNetworks {
        &self.networks
    }
}

/// Tells the speaker whenever the underlay changes, until one of both ends.
pub fn follow(mut underlay: watch::Receiver<Arc<KernelUnderlay>>, speaker: SpeakerHandle) {
    tokio::spawn(async move {
        let mut changes = speaker.changes();
        loop {
            let now = Arc::clone(&underlay.borrow_and_update());
            if speaker.set_underlay(now).await.is_err() {
                return;
            }
            // The second one fails when the speaker has ended.
            loop {
                tokio::select! {
                    changed = underlay.changed() => match changed {
                        Ok(()) => break,
                        Err(_) => return,
                    },
                    changed = changes.changed() => if changed.is_err() {
                        return;
                    },
                }
            }
        }
    });
}
