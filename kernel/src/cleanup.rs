//! What Cairn leaves in the kernel, apart from packet filters ([`crate::firewall::remove`]): found by
//! the marks that everything of ours carries, and removed.
//!
//! Nothing else is touched: a link with the name of a tunnel device and without its mark, and an
//! interface with a pod's name and the alias of somebody else, are others'.

use std::collections::BTreeSet;
use std::fmt;

use crate::POD_ROUTE_PROTOCOL;
use crate::batch::Batch;
use crate::error::Error;
use crate::link;
use crate::nexthop;
use crate::objects;
use crate::pod::{self, PodAttachment};
use crate::route::{Change, DumpFilter, Family, Route, RouteSocket, Target};
use crate::tunnel::{self, TunnelKind};

/// Something of ours.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Remnant {
    /// A route.
    Route(Route),
    /// A next-hop object, by its number.
    Object(u32),
    /// A tunnel device and its index; its neighbour and forwarding entries go with it.
    Tunnel(TunnelKind, u32),
    /// A pod's interface; the end in the pod and the routes to it go with it.
    Pod(PodAttachment),
}

impl fmt::Display for Remnant {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Remnant::Route(route) => {
                let kind = if route.target == Target::Blackhole { "blackhole " } else { "" };
                write!(f, "{kind}route {} proto {}", route.key(), route.protocol)
            }
            Remnant::Object(id) => write!(f, "next-hop object {id}"),
            Remnant::Tunnel(kind, _) => write!(f, "tunnel device {}", kind.device_name()),
            Remnant::Pod(pod) => {
                write!(f, "pod interface {}", pod.host_ifname)?;
                let mut before = " of ";
                for address in pod.addresses() {
                    write!(f, "{before}{address}")?;
                    before = ", ";
                }
                Ok(())
            }
        }
    }
}

/// Everything of ours in the namespace of `socket` that is not a pod's, in the order in which it must
/// go: routes before what they lead to. `protocols` are the numbers of the routes.
///
/// # Errors
/// Those of the dumps.
pub fn find(socket: &mut RouteSocket, protocols: &BTreeSet<u8>) -> Result<Vec<Remnant>, Error> {
    let mut found = Vec::new();
    for protocol in protocols {
        found.append(&mut routes(socket, *protocol)?);
    }
    let netlink = socket.netlink();
    // Groups, which have the higher numbers, before their members.
    let listed = nexthop::list(netlink)?.into_iter().rev();
    let ours = listed.filter(objects::is_ours);
    found.extend(ours.map(|object| Remnant::Object(object.id)));
    for kind in TunnelKind::ALL {
        let link = link::find(netlink, kind.device_name())?;
        let ours = link.filter(|link| link.alias.as_deref() == Some(tunnel::ALIAS));
        found.extend(ours.map(|link| Remnant::Tunnel(kind, link.index)));
    }
    Ok(found)
}

/// The interfaces of pods, and routes to pods that do not lead through one of these.
///
/// # Errors
/// Those of the dumps.
pub fn find_pods(socket: &mut RouteSocket) -> Result<Vec<Remnant>, Error> {
    let mut pods = pod::list(socket.netlink())?;
    pods.retain(|pod| pod.alias_unread.is_none());
    let mut found = routes(socket, POD_ROUTE_PROTOCOL)?;
    found.retain(|remnant| match remnant {
        Remnant::Route(Route { target: Target::Unicast(hops), .. }) => {
            !hops.iter().all(|hop| pods.iter().any(|pod| pod.ifindex == hop.ifindex))
        }
        _ => true,
    });
    found.extend(pods.into_iter().map(Remnant::Pod));
    Ok(found)
}

fn routes(socket: &mut RouteSocket, protocol: u8) -> Result<Vec<Remnant>, Error> {
    let mut found = Vec::new();
    for family in Family::ALL {
        let filter = DumpFilter { table: None, protocol: Some(protocol) };
        found.extend(socket.dump(family, filter)?.into_iter().map(Remnant::Route));
    }
    Ok(found)
}

/// Removes one thing that [`find`] found. One that is gone is fine.
///
/// # Errors
/// The kernel's refusal.
pub fn remove(socket: &mut RouteSocket, remnant: &Remnant) -> Result<(), Error> {
    let removed = match remnant {
        Remnant::Route(route) => {
            let change = Change::Delete { key: route.key(), protocol: route.protocol };
            let mut refusals = socket.apply(&[change])?;
            match refusals.pop() {
                None => Ok(()),
                Some(refusal) => {
                    Err(Error::Refused { action: format!("remove {remnant}"), refusal })
                }
            }
        }
        Remnant::Object(id) => {
            let mut batch = Batch::new();
            batch.delete_object(*id);
            socket.netlink().request(&mut batch, || format!("remove {remnant}"))
        }
        Remnant::Tunnel(_, index) => link::delete(socket.netlink(), *index),
        Remnant::Pod(pod) => pod::detach(socket.netlink(), &pod.host_ifname),
    };
    match removed {
        Err(error) if error.is_absent() => Ok(()),
        removed => removed,
    }
}
