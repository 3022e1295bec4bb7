//! Tunnels to other nodes: one device a kind, a few entries a peer.
//!
//! ```text
//!  set_device() ─► devices: wanted against present ─► plan() ─► steps ──┐
//!  set_peer() ───► peers ─► neighbours, forwarding entries, objects ────┼─► kernel
//!  observe() ────► an entry is written, a device read again ────────────┤
//!  target() ◄──── what of a peer is in the kernel ◄─────────────────────┘
//! ```
//!
//! A route to a peer's addresses leads to a gateway on the device. A permanent neighbour entry gives the
//! gateway's Ethernet address and a permanent forwarding entry the node where the tunnel to that ends;
//! an IP-in-IP gateway is that node itself and needs neither. Where the kernel has next-hop objects, one
//! holds the gateway, and routes name the object. Nothing is written while nothing differs. All of it is
//! pure except [`Tunnels::prepare`] and [`Tunnels::clean`], which act in the namespace of the socket they
//! are given.

mod converge;
mod device;
#[cfg(test)]
mod device_tests;
mod entries;
mod inventory;
mod peers;
mod wanted;

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::time::Instant;

pub(crate) use self::device::ALIAS;
#[cfg(test)]
pub(crate) use self::device::parse_settings;
pub use self::device::{Device, Encapsulation, TunnelKind, VxlanSettings};
pub(crate) use self::entries::parse_forwarding;
pub use self::inventory::{Inventory, Part, inventory};
pub use self::peers::{link_local, mac_of};
pub use crate::nexthop::ObjectUse;

use self::device::{Present, Step};
use self::entries::{Forwarding, Neighbour};
use self::peers::Gateways;
use self::wanted::slot;
use ipnet::IpNet;

use crate::TUNNEL_OBJECTS;
use crate::delta::{Delta, News};
use crate::error::Error;
use crate::link::Mac;
use crate::monitor::{KernelEvent, LinkState};
use crate::objects::{self, ObjectId};
use crate::reconcile::{Failure, Pass};
use crate::route::{Family, Target};
use crate::socket::Netlink;

/// Another node, as tunnels see it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Peer {
    /// The node's address, at which the tunnel ends.
    pub outer: IpAddr,
    /// The Ethernet address of its VXLAN device ([`mac_of`]).
    pub mac: Mac,
}

/// The wanted tunnels and a model of the kernel's.
#[derive(Debug)]
pub struct Tunnels {
    object_use: ObjectUse,
    devices: BTreeMap<TunnelKind, DeviceState>,
    peers: BTreeMap<(TunnelKind, String), PeerState>,
    neighbours: Delta<Neighbour>,
    forwarding: Delta<Forwarding>,
    objects: Delta<ObjectId>,
    /// Numbers of our range that others' objects have.
    taken: BTreeSet<u32>,
    /// Peers whose targets changed since somebody asked.
    changed: BTreeSet<(TunnelKind, String)>,
    peer_problems: Vec<String>,
    needs_read: bool,
    /// Something else is wanted than when [`Tunnels::prepare`] last succeeded.
    dirty: bool,
    /// Somebody changed an entry of ours.
    unwritten: bool,
    sweep_allowed: bool,
    /// Something may be there that nobody wants.
    unclean: bool,
    edits: u64,
    /// Edits of entries that may turn out to be a device's, which took them along.
    undone: u64,
}

#[derive(Debug, Default)]
struct DeviceState {
    wanted: Option<Device>,
    present: Option<Present>,
    /// The steps that were tried last, as long as they have not led to the goal.
    tried: Vec<Step>,
    /// Whether the failure is that of these steps.
    failed: bool,
    failure: Option<Failure>,
    problem: Option<String>,
}

impl DeviceState {
    /// The index of the device, if it is ours.
    fn index(&self) -> Option<u32> {
        let present = self.present.as_ref()?;
        present.is_ours(self.wanted.as_ref()).then_some(present.link.index)
    }

    /// The device and its index, if peers can be reached through it.
    fn ready(&self) -> Option<(&Device, u32)> {
        let (wanted, present) = (self.wanted.as_ref()?, self.present.as_ref()?);
        present.is_ready(wanted).then_some((wanted, present.link.index))
    }
}

#[derive(Debug)]
struct PeerState {
    peer: Peer,
    gateways: Gateways,
    /// The numbers of its objects: of that with an IPv4 gateway, and of that with an IPv6 gateway, which
    /// serves both families inside.
    objects: [Option<u32>; 2],
    /// What routes point to, by the family inside.
    targets: [Option<Target>; 2],
}

impl Tunnels {
    /// No tunnels. Nothing is known of the kernel yet.
    pub fn new(object_use: ObjectUse) -> Tunnels {
        Tunnels {
            object_use,
            devices: TunnelKind::ALL
                .into_iter()
                .map(|kind| (kind, DeviceState::default()))
                .collect(),
            peers: BTreeMap::new(),
            neighbours: Delta::new(),
            forwarding: Delta::new(),
            objects: Delta::new(),
            taken: BTreeSet::new(),
            changed: BTreeSet::new(),
            peer_problems: Vec::new(),
            needs_read: true,
            dirty: true,
            unwritten: false,
            sweep_allowed: false,
            unclean: true,
            edits: 0,
            undone: 0,
        }
    }

    /// Wants `device` from now on, in place of another of its kind. The same again changes nothing.
    pub fn set_device(&mut self, device: Device) {
        self.want_device(device.kind(), Some(device));
    }

    /// Wants no device of `kind` any more.
    pub fn remove_device(&mut self, kind: TunnelKind) {
        self.want_device(kind, None);
    }

    fn want_device(&mut self, kind: TunnelKind, wanted: Option<Device>) {
        let state = self.devices.entry(kind).or_default();
        if state.wanted != wanted {
            *state =
                DeviceState { wanted, present: state.present.take(), ..DeviceState::default() };
            // What stands on a device that nobody wanted was not read.
            self.needs_read = true;
            self.touch();
        }
    }

    /// Says how `node` is reached through the tunnel of `kind` from now on; `None`: not at all. Where
    /// its address changes, its objects keep their numbers, so that no route has to be written.
    pub fn set_peer(&mut self, kind: TunnelKind, node: &str, wanted: Option<Peer>) {
        let key = (kind, node.to_owned());
        match (wanted, self.peers.get_mut(&key)) {
            (None, None) => return,
            (None, Some(_)) => {
                self.peers.remove(&key);
                self.changed.insert(key);
            }
            (Some(peer), Some(state)) if state.peer == peer => return,
            (Some(peer), Some(state)) => state.peer = peer,
            (Some(peer), None) => {
                let (gateways, objects, targets) = Default::default();
                self.peers.insert(key, PeerState { peer, gateways, objects, targets });
            }
        }
        self.touch();
    }

    fn touch(&mut self) {
        self.dirty = true;
        self.unclean = true;
    }

    /// Where a route for packets of `inner` to the node's addresses has to lead; `None` until all that
    /// takes is in the kernel.
    pub fn target(&self, kind: TunnelKind, node: &str, inner: Family) -> Option<&Target> {
        self.peers.get(&(kind, node.to_owned()))?.targets[slot(inner)].as_ref()
    }

    /// The peers whose targets may have changed since the last call.
    pub fn take_changed(&mut self) -> BTreeSet<(TunnelKind, String)> {
        std::mem::take(&mut self.changed)
    }

    /// The index of the device of `kind`, if it is up and as it should be: packets of peers arrive.
    pub fn ready(&self, kind: TunnelKind) -> Option<u32> {
        self.devices.get(&kind)?.ready().map(|(_, index)| index)
    }

    /// The addresses that the device of `kind` has, but link-local ones, as far as it is ours. `None`
    /// while the kernel may hold others than were read or written.
    pub fn held(&self, kind: TunnelKind) -> Option<Vec<IpAddr>> {
        if self.needs_read || self.dirty {
            return None;
        }
        let held = self.devices.get(&kind).and_then(|state| {
            let present = state.present.as_ref()?;
            present.is_ours(state.wanted.as_ref()).then_some(&present.addresses)
        });
        Some(held.into_iter().flatten().map(IpNet::addr).collect())
    }

    /// Allows to remove what nobody wants, now and later. To be called once every input has said what
    /// it wants.
    pub fn allow_sweep(&mut self) {
        self.sweep_allowed = true;
    }

    /// Asks for a look at the kernel.
    pub fn request_resync(&mut self) {
        self.needs_read = true;
    }

    /// Takes what the kernel tells. Returns whether something of ours may be otherwise than it was
    /// left: then the next [`Tunnels::prepare`] puts it right. Single entries are written anew at once, all
    /// else is looked at first.
    pub fn observe(&mut self, event: &KernelEvent) -> bool {
        if let KernelEvent::Link { state: LinkState::Removed | LinkState::Down, .. } = event {
            // It may have been in the way of one of ours.
            self.retry_devices();
        }
        let is_ours = |index: u32| self.devices.values().any(|state| state.index() == Some(index));
        let concerns = match event {
            KernelEvent::Overrun => true,
            KernelEvent::Link { index, name, .. } => {
                let named = |kind: TunnelKind| {
                    let known = self.devices.get(&kind);
                    known.is_some_and(|state| state.wanted.is_some() || state.present.is_some())
                };
                is_ours(*index) || TunnelKind::of_device(name).is_some_and(named)
            }
            KernelEvent::AddressesChanged { ifindex }
            | KernelEvent::RoutesLost { ifindex: Some(ifindex) } => is_ours(*ifindex),
            KernelEvent::Neighbour { ifindex, address, permanent, mac, .. } => {
                let key = Neighbour { ifindex: *ifindex, address: *address };
                let mac = mac.filter(|_| *permanent);
                let news = is_ours(*ifindex).then(|| self.neighbours.tell(key, mac));
                return self.take(news);
            }
            KernelEvent::Forwarding { ifindex, mac, outer } => {
                let key = Forwarding { ifindex: *ifindex, mac: *mac };
                let news = is_ours(*ifindex).then(|| self.forwarding.tell(key, *outer));
                return self.take(news);
            }
            KernelEvent::Object { id, object } => {
                let ours = self.object_use == ObjectUse::Objects && TUNNEL_OBJECTS.contains(id);
                let object = object.clone();
                let way = object.and_then(|object| objects::own_way(object, &TUNNEL_OBJECTS));
                let news = ours.then(|| self.objects.tell(ObjectId(*id), way));
                return self.take(news);
            }
            _ => false,
        };
        self.needs_read |= concerns;
        concerns
    }

    /// Notes what a notification about an entry means; whether there is something to do.
    fn take(&mut self, news: Option<News>) -> bool {
        let news = news.unwrap_or(News::Known);
        self.undone += u64::from(news == News::Undone);
        self.unwritten |= news != News::Known;
        self.unclean |= news != News::Known;
        news != News::Known
    }

    fn retry_devices(&mut self) {
        for state in self.devices.values_mut().filter(|state| state.failure.is_some()) {
            state.settle();
            self.dirty = true;
        }
    }

    /// Whether there is something to do before any deadline.
    pub fn is_dirty(&self) -> bool {
        self.needs_read || self.dirty || self.unwritten || (self.unclean && self.sweep_allowed)
    }

    /// When something that failed is tried again.
    pub fn next_deadline(&self) -> Option<Instant> {
        let devices = self.devices.values().filter_map(|state| state.failure.as_ref()?.retry_at);
        let entries = [
            self.neighbours.next_deadline(),
            self.forwarding.next_deadline(),
            self.objects.next_deadline(),
        ];
        devices.chain(entries.into_iter().flatten()).min()
    }

    /// How much of ours somebody else removed or changed.
    pub fn edits(&self) -> u64 {
        self.edits
    }

    /// What is not as wanted, each with what to do about it.
    pub fn problems(&self) -> Vec<String> {
        let devices = self.devices.values().filter_map(|state| state.problem.clone());
        let entries =
            [self.neighbours.problem(), self.forwarding.problem(), self.objects.problem()];
        devices.chain(entries.into_iter().flatten()).chain(self.peer_problems.clone()).collect()
    }

    /// Reads the kernel if needed, and makes and changes what is wanted. To be called before routes are
    /// written. What fails is retried with backoff and holds back nothing else.
    ///
    /// # Errors
    /// When the kernel could not be read, or its answers were lost; the next call begins by reading.
    pub fn prepare(&mut self, netlink: &mut Netlink, now: Instant) -> Result<Pass, Error> {
        let mut pass = Pass::default();
        let due = self.next_deadline().is_some_and(|at| at <= now);
        if !(self.needs_read || self.dirty || self.unwritten || due) {
            return Ok(pass);
        }
        let done = self.converge(netlink, now, &mut pass);
        self.needs_read |= done.is_err();
        self.publish();
        done.map(|()| pass)
    }

    /// Removes what nobody wants: entries, objects, addresses and devices. Does nothing before
    /// [`Tunnels::allow_sweep`]. To be called after routes were written: an object takes the routes
    /// through it along.
    ///
    /// # Errors
    /// As [`Tunnels::prepare`].
    pub fn clean(&mut self, netlink: &mut Netlink, now: Instant) -> Result<Pass, Error> {
        let mut pass = Pass::default();
        // While the model may be wrong nothing is removed by it.
        if !self.sweep_allowed || self.needs_read || self.dirty || self.unwritten {
            return Ok(pass);
        }
        let due = self.next_deadline().is_some_and(|at| at <= now);
        if self.unclean || due {
            let done = self.sweep(netlink, now, &mut pass);
            self.unclean = false;
            self.needs_read |= done.is_err();
            done?;
        }
        Ok(pass)
    }
}
