//! Tunnels to other nodes: one device a kind, a few entries a peer.
//!
//! ```text
//!  set_device() ─► devices: wanted against present ─► plan() ─► steps ──┐
//!  set_peer() ───► peers ─► neighbours, forwarding entries, objects ────┼─► kernel
//!  observe() ────► read again                                           │
//!  target() ◄──── what of a peer is in the kernel ◄─────────────────────┘
//! ```
//!
//! A route to a peer's addresses leads to a gateway on the device. A permanent neighbour entry gives the
//! gateway's Ethernet address and a permanent forwarding entry the node where the tunnel to that ends;
//! an IP-in-IP gateway is that node itself and needs neither. Where the kernel has next-hop objects, one
//! holds the gateway, and routes name the object. What cannot be known for sure is read from the kernel
//! and never guessed; nothing is written while nothing differs. All of it is pure except
//! [`Tunnels::prepare`] and [`Tunnels::clean`], which act in the namespace of the socket they are given.

mod delta;
mod device;
#[cfg(test)]
mod device_tests;
mod entries;
mod peers;

use std::collections::{BTreeMap, BTreeSet, HashMap, HashSet};
use std::net::IpAddr;
use std::time::Instant;

use rustix::io::Errno;

pub(crate) use self::device::ALIAS;
#[cfg(test)]
pub(crate) use self::device::parse_settings;
pub use self::device::{Device, Encapsulation, TunnelKind, VxlanSettings};
pub(crate) use self::entries::parse_forwarding;
pub use self::peers::{link_local, mac_of};

use self::delta::Delta;
use self::device::{Present, Step};
use self::entries::{Forwarding, Neighbour, ObjectId};
use self::peers::{Claims, Gateways};
use crate::TUNNEL_OBJECTS;
use crate::batch::Batch;
use crate::error::{Error, Refusal};
use crate::link::Mac;
use crate::monitor::{KernelEvent, LinkState};
use crate::nexthop;
use crate::reconcile::{Failure, Pass};
use crate::route::{Family, NextHop, Target};
use crate::socket::{Acknowledge, Netlink};

/// Another node, as tunnels see it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Peer {
    /// The node's address, at which the tunnel ends.
    pub outer: IpAddr,
    /// The Ethernet address of its VXLAN device ([`mac_of`]).
    pub mac: Mac,
}

/// Whether routes into tunnels name next-hop objects.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ObjectUse {
    /// They do: the kernel has them ([`nexthop::supported`]).
    Objects,
    /// They name the gateway itself.
    Plain,
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
    sweep_allowed: bool,
    /// Something may be there that nobody wants.
    unclean: bool,
    edits: u64,
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
            sweep_allowed: false,
            unclean: true,
            edits: 0,
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
    /// left: then the next [`Tunnels::prepare`] looks.
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
                is_ours(*ifindex) && self.neighbours.contradicts(key, mac)
            }
            KernelEvent::Forwarding { ifindex, mac, outer } => {
                let key = Forwarding { ifindex: *ifindex, mac: *mac };
                is_ours(*ifindex) && self.forwarding.contradicts(key, *outer)
            }
            KernelEvent::Object { id, object } => {
                let hop = object.as_ref().and_then(entries::own_hop);
                TUNNEL_OBJECTS.contains(id) && self.objects.contradicts(ObjectId(*id), hop)
            }
            _ => false,
        };
        self.needs_read |= concerns;
        concerns
    }

    fn retry_devices(&mut self) {
        for state in self.devices.values_mut().filter(|state| state.failure.is_some()) {
            state.settle();
            self.dirty = true;
        }
    }

    /// Whether there is something to do before any deadline.
    pub fn is_dirty(&self) -> bool {
        self.needs_read || self.dirty || (self.unclean && self.sweep_allowed)
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
        if !(self.needs_read || self.dirty || due) {
            return Ok(pass);
        }
        let done = self.converge(netlink, now, &mut pass);
        self.needs_read |= done.is_err();
        self.publish();
        done.map(|()| pass)
    }

    fn converge(
        &mut self,
        netlink: &mut Netlink,
        now: Instant,
        pass: &mut Pass,
    ) -> Result<(), Error> {
        for _ in 0..ROUNDS_MAX {
            if self.needs_read {
                self.read(netlink)?;
                pass.resyncs += 1;
            }
            for kind in TunnelKind::ALL {
                self.needs_read |= self.write_device(kind, netlink, now, pass)?;
            }
            if self.needs_read {
                continue;
            }
            self.want_entries();
            // Objects last: routes may point to them as soon as they are there.
            self.needs_read |= self.neighbours.write(netlink, now, pass)?;
            self.needs_read |= self.forwarding.write(netlink, now, pass)?;
            self.needs_read |= self.objects.write(netlink, now, pass)?;
            if !self.needs_read {
                self.dirty = false;
                return Ok(());
            }
        }
        // Somebody changes things as fast as they are read; go on with the next event.
        Ok(())
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
        if !self.sweep_allowed || self.needs_read || self.dirty {
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

    fn sweep(&mut self, netlink: &mut Netlink, now: Instant, pass: &mut Pass) -> Result<(), Error> {
        let mut batch = Batch::new();
        for state in self.devices.values() {
            let Some(present) = &state.present else { continue };
            match &state.wanted {
                None if present.has_alias() => {
                    batch.delete_link(present.link.index);
                }
                Some(wanted) if present.is_ours(Some(wanted)) => {
                    let index = present.link.index;
                    for address in present.stale_addresses(wanted) {
                        batch.delete_address(index, address);
                        // With its last address a link loses its neighbours.
                        let of_family = address.addr().is_ipv4();
                        self.neighbours.lose(|key, _| {
                            key.ifindex == index && key.address.is_ipv4() == of_family
                        });
                    }
                }
                _ => {}
            }
        }
        let refusals = netlink.execute(&mut batch, Acknowledge::Each)?;
        pass.deleted += batch.len() - refusals.len();
        pass.refused += refusals.len();
        if batch.len() > refusals.len() {
            // A device took all that was on it along.
            self.needs_read = true;
            return Ok(());
        }
        self.objects.sweep(netlink, now, pass)?;
        self.neighbours.sweep(netlink, now, pass)?;
        self.forwarding.sweep(netlink, now, pass)
    }

    /// Reads devices, what stands on those that are wanted, and objects.
    fn read(&mut self, netlink: &mut Netlink) -> Result<(), Error> {
        let (mut neighbours, mut forwarding) = (BTreeMap::new(), BTreeMap::new());
        for (kind, state) in &mut self.devices {
            let present = device::read(netlink, *kind)?;
            let (index, was_settled) = (state.index(), state.is_settled());
            state.present = present;
            if state.index() != index {
                // All that was on it went with it: that is one edit and not thousands.
                self.neighbours.lose(|key, _| Some(key.ifindex) == index);
                self.forwarding.lose(|key, _| Some(key.ifindex) == index);
                self.objects.lose(|_, hop| Some(hop.ifindex) == index);
            }
            self.edits += u64::from(was_settled && !state.is_settled());
            if let Some(index) = state.index() {
                neighbours.append(&mut entries::neighbours(netlink, index)?);
                if *kind == TunnelKind::Vxlan {
                    forwarding.append(&mut entries::forwarding(netlink, index)?);
                }
            }
        }
        self.edits += self.neighbours.read(neighbours);
        self.edits += self.forwarding.read(forwarding);
        if self.object_use == ObjectUse::Objects {
            self.taken.clear();
            let mut objects = BTreeMap::new();
            for object in nexthop::list(netlink)? {
                match entries::own_hop(&object) {
                    Some(hop) => drop(objects.insert(ObjectId(object.id), hop)),
                    None if TUNNEL_OBJECTS.contains(&object.id) => {
                        self.taken.insert(object.id);
                    }
                    None => {}
                }
            }
            self.edits += self.objects.read(objects);
        }
        self.needs_read = false;
        self.unclean = true;
        Ok(())
    }

    /// Brings a device one round nearer to what is wanted; true when it must be read again.
    fn write_device(
        &mut self,
        kind: TunnelKind,
        netlink: &mut Netlink,
        now: Instant,
        pass: &mut Pass,
    ) -> Result<bool, Error> {
        let Some(state) = self.devices.get_mut(&kind) else { return Ok(false) };
        let Some(wanted) = state.wanted.clone() else { return Ok(false) };
        let steps = match device::plan(&wanted, state.present.as_ref()) {
            Err(problem) => {
                state.settle();
                state.problem = Some(problem);
                return Ok(false);
            }
            Ok(steps) => steps,
        };
        if steps.is_empty() {
            state.settle();
            return Ok(false);
        }
        if steps.iter().all(|step| state.tried.contains(step)) {
            if !state.failed {
                let text = format!(
                    "the kernel takes settings of {} and does not keep them: find out which program \
                     changes them back",
                    kind.device_name()
                );
                state.fail(now, Refusal { index: 0, errno: Errno::AGAIN, text: None }, text);
                return Ok(false);
            }
            if state.failure.as_ref().is_some_and(|failure| failure.waits(now)) {
                return Ok(false);
            }
        }
        let (mut batch, mut actions) = (Batch::new(), Vec::new());
        for step in &steps {
            step.encode(&wanted, &mut batch, &mut actions);
        }
        let refusals = netlink.execute(&mut batch, Acknowledge::Each)?;
        pass.created += actions.len() - refusals.len();
        pass.refused += refusals.len();
        (state.tried, state.failed) = (steps, false);
        if let Some(refusal) = refusals.into_iter().next() {
            let rivals = match wanted.encapsulation {
                Encapsulation::Vxlan(vxlan) => device::rivals(netlink, vxlan.port)?,
                Encapsulation::Ipip => Vec::new(),
            };
            let action = actions.get(refusal.index).map_or("change", String::as_str);
            let text = device::explain(&wanted, action, &refusal, &rivals);
            state.fail(now, refusal, text);
        }
        Ok(true)
    }

    /// What the peers need on the devices that are ready.
    fn want_entries(&mut self) {
        let (mut neighbours, mut forwarding) = (BTreeMap::new(), BTreeMap::new());
        let mut objects = BTreeMap::new();
        let mut numbers = Numbers::new(&self.objects, &self.taken, &self.peers);
        self.peer_problems.clear();
        for (kind, state) in &self.devices {
            let ready = state.ready();
            let mut claims = Claims::default();
            let of_kind = |(key, _): &(&(TunnelKind, String), &mut PeerState)| key.0 == *kind;
            for ((_, node), state) in self.peers.iter_mut().filter(of_kind) {
                let Some((device, ifindex)) = ready else {
                    state.gateways = Gateways::default();
                    continue;
                };
                let peer = state.peer;
                state.gateways = claims.gateways(device, node, peer).unwrap_or_else(|problem| {
                    self.peer_problems.push(problem);
                    Gateways::default()
                });
                for gateway in Family::ALL.into_iter().filter_map(|f| state.gateways.of(f)) {
                    if *kind == TunnelKind::Vxlan {
                        neighbours.insert(Neighbour { ifindex, address: gateway }, peer.mac);
                        forwarding.insert(Forwarding { ifindex, mac: peer.mac }, peer.outer);
                    }
                    if self.object_use == ObjectUse::Objects {
                        let hop = hop(gateway, ifindex);
                        let number = &mut state.objects[gateway_slot(gateway)];
                        *number = number.filter(|id| !self.taken.contains(id));
                        *number = number.or_else(|| numbers.take(hop));
                        match *number {
                            Some(id) => drop(objects.insert(ObjectId(id), hop)),
                            None => self.peer_problems.push(NUMBERS_USED_UP.to_owned()),
                        }
                    }
                }
            }
        }
        self.peer_problems.dedup();
        self.peer_problems.truncate(PROBLEMS_MAX);
        self.neighbours.want(neighbours);
        self.forwarding.want(forwarding);
        self.objects.want(objects);
    }

    /// Says of each peer what routes to it point to now.
    fn publish(&mut self) {
        for (key, state) in &mut self.peers {
            let ifindex = self.devices.get(&key.0).and_then(|device| device.ready());
            for inner in Family::ALL {
                let target = ifindex.and_then(|(_, ifindex)| {
                    let gateway = state.gateways.of(inner)?;
                    let reached = key.0 == TunnelKind::Ipip
                        || self
                            .neighbours
                            .holds(Neighbour { ifindex, address: gateway }, state.peer.mac)
                            && self.forwarding.holds(
                                Forwarding { ifindex, mac: state.peer.mac },
                                state.peer.outer,
                            );
                    let hop = hop(gateway, ifindex);
                    match self.object_use {
                        _ if !reached => None,
                        ObjectUse::Plain => Some(Target::Unicast(vec![hop])),
                        ObjectUse::Objects => {
                            let id = state.objects[gateway_slot(gateway)]?;
                            self.objects.holds(ObjectId(id), hop).then_some(Target::Object(id))
                        }
                    }
                });
                let before = &mut state.targets[slot(inner)];
                if *before != target {
                    *before = target;
                    self.changed.insert(key.clone());
                }
            }
        }
    }
}

impl DeviceState {
    fn fail(&mut self, now: Instant, refusal: Refusal, problem: String) {
        let failure = Failure::again(self.failure.as_ref(), now, refusal.errno, refusal.text);
        self.failure = Some(failure);
        (self.failed, self.problem) = (true, Some(problem));
    }

    /// Forgets what failed.
    fn settle(&mut self) {
        self.tried.clear();
        (self.failed, self.failure, self.problem) = (false, None, None);
    }

    /// Whether the device is as wanted.
    fn is_settled(&self) -> bool {
        let plan = self.wanted.as_ref().map(|wanted| device::plan(wanted, self.present.as_ref()));
        plan.is_some_and(|plan| plan.is_ok_and(|steps| steps.is_empty()))
    }
}

/// Numbers for objects: first those of present objects that do the same and nobody holds, as after a
/// restart, then free ones.
struct Numbers {
    present: HashMap<NextHop, u32>,
    used: HashSet<u32>,
    next: std::ops::Range<u32>,
}

impl Numbers {
    fn new(
        objects: &Delta<ObjectId>,
        taken: &BTreeSet<u32>,
        peers: &BTreeMap<(TunnelKind, String), PeerState>,
    ) -> Numbers {
        let held: HashSet<u32> =
            peers.values().flat_map(|state| state.objects.into_iter().flatten()).collect();
        let present = objects.present();
        Numbers {
            present: present
                .iter()
                .rev()
                .filter(|(id, _)| !held.contains(&id.0))
                .map(|(id, hop)| (*hop, id.0))
                .collect(),
            used: held
                .into_iter()
                .chain(present.keys().map(|id| id.0))
                .chain(taken.clone())
                .collect(),
            next: TUNNEL_OBJECTS,
        }
    }

    fn take(&mut self, hop: NextHop) -> Option<u32> {
        self.present.remove(&hop).or_else(|| self.next.find(|id| !self.used.contains(id)))
    }
}

fn hop(gateway: IpAddr, ifindex: u32) -> NextHop {
    NextHop { onlink: true, ..NextHop::via(gateway, ifindex) }
}

fn slot(family: Family) -> usize {
    usize::from(family == Family::V6)
}

fn gateway_slot(gateway: IpAddr) -> usize {
    usize::from(gateway.is_ipv6())
}

/// How often one pass reads and writes: creating a device takes three rounds.
const ROUNDS_MAX: usize = 6;
const PROBLEMS_MAX: usize = 8;
const NUMBERS_USED_UP: &str = "no number is free for a next-hop object that leads into a tunnel: nodes \
     with tunnels are too many, or other programs take numbers from 0x43410000 up";
