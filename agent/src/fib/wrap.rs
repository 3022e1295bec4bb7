//! Packets in packets: which prefixes are reached through a tunnel, and the devices and peers that
//! takes.
//!
//! ```text
//!  Ways, TunnelAddresses, underlay ──set()──► wanted devices and peers ──prepare()──► kernel
//!  learned prefix ──target()──► plain | through the peer's object | not yet
//!                                             clean() ◄── after the routes
//! ```
//!
//! A device goes some time after the last pool that needs it, as other nodes hear of that later. What
//! a prefix was reached by stays while there is no better answer, as when the owner's BGPNode is gone
//! and BGP still says that the block can be reached.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::sync::Arc;
use std::time::Instant;

use cairn_api::TunnelKind;
use cairn_ipam::Family as AddressFamily;
use cairn_kernel::monitor::KernelEvent;
use cairn_kernel::route::{Family, RouteSocket, Target};
use cairn_kernel::tunnel::{self, Device, ObjectUse, Peer, Tunnels, VxlanSettings};
use cairn_kernel::{nexthop, sysctl};
use ipnet::IpNet;

use crate::pods::TunnelAddresses;
use crate::tunnels::{Covering, LINGER, Owners, Way, Ways, device_name, kind_of, overhead};
use crate::underlay::KernelUnderlay;

/// What the planner tells of tunnels.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Wrapping {
    /// The node's name, from which the address of its VXLAN device follows.
    pub node: String,
    /// How others' blocks are reached.
    pub ways: Ways,
    /// What the devices are to have.
    pub addresses: TunnelAddresses,
    /// The devices that are to have an address of a family, as the node has blocks for it.
    pub lodging: BTreeSet<(TunnelKind, AddressFamily)>,
}

/// Which prefixes may be reached another way than before.
pub(super) enum Moved {
    /// None.
    Nothing,
    /// Those in these networks.
    Within(Covering<()>),
    /// Every one.
    All,
}

impl Moved {
    fn between(before: &Wrapping, after: &Wrapping) -> Moved {
        let (old, new) = (&before.ways, &after.ways);
        if (&old.addresses, &old.pools) != (&new.addresses, &new.pools)
            || before.addresses != after.addresses
        {
            return Moved::All;
        }
        let mut blocks: BTreeSet<IpNet> = BTreeSet::new();
        if !Arc::ptr_eq(&old.members, &new.members) {
            for (these, others) in [(&old.members, &new.members), (&new.members, &old.members)] {
                let changed = these.iter().filter(|(name, member)| {
                    !others.get(*name).is_some_and(|other| Arc::ptr_eq(member, other))
                });
                blocks.extend(changed.flat_map(|(_, member)| member.blocks.iter().copied()));
            }
        }
        if blocks.is_empty() {
            return Moved::Nothing;
        }
        Moved::Within(blocks.into_iter().collect())
    }

    /// Whether it is said of `prefix`.
    pub(super) fn concerns(&self, prefix: IpNet) -> bool {
        match self {
            Moved::Nothing => false,
            Moved::Within(blocks) => blocks.of(prefix).next().is_some(),
            Moved::All => true,
        }
    }
}

/// The tunnels of this node.
pub(super) struct Wrap {
    wanted: Wrapping,
    owners: Owners,
    tunnels: Tunnels,
    peers: BTreeMap<(TunnelKind, Arc<str>), Peer>,
    /// Why there is no device that should be.
    missing: Vec<String>,
    /// Prefixes that are reached through a tunnel.
    through: BTreeMap<IpNet, (TunnelKind, Arc<str>)>,
    /// Kinds that no pool needs any more, and until when they stay.
    lingering: BTreeMap<TunnelKind, Instant>,
    /// Kinds that others were told of.
    offered: BTreeSet<TunnelKind>,
}

impl Wrap {
    /// Finds out whether this kernel has next-hop objects.
    pub(super) fn new(socket: &mut RouteSocket) -> Result<Wrap, cairn_kernel::Error> {
        let objects = if nexthop::supported(socket.netlink())? {
            ObjectUse::Objects
        } else {
            tracing::info!("this kernel has no next-hop objects: routes name tunnels' gateways");
            ObjectUse::Plain
        };
        Ok(Wrap {
            wanted: Wrapping::default(),
            owners: Owners::default(),
            tunnels: Tunnels::new(objects),
            peers: BTreeMap::new(),
            missing: Vec::new(),
            through: BTreeMap::new(),
            lingering: BTreeMap::new(),
            offered: BTreeSet::new(),
        })
    }

    /// Lets go of what has stayed long enough.
    pub(super) fn linger(&mut self, underlay: &KernelUnderlay, now: Instant) {
        if self.lingering.values().any(|until| *until <= now) {
            self.place(underlay, now);
        }
    }

    /// Takes in what is wanted, and what the devices stand on. Says which prefixes may be reached
    /// another way now.
    pub(super) fn set(
        &mut self,
        wanted: Wrapping,
        underlay: &KernelUnderlay,
        now: Instant,
    ) -> Moved {
        let before = std::mem::replace(&mut self.wanted, wanted);
        let moved = Moved::between(&before, &self.wanted);
        if !matches!(moved, Moved::Nothing) {
            self.owners = Owners::new(&self.wanted.ways.members);
        }
        let kinds = self.wanted.ways.kinds();
        for gone in before.ways.kinds().difference(&kinds) {
            self.lingering.insert(*gone, now + LINGER);
        }
        self.lingering.retain(|kind, _| !kinds.contains(kind));
        self.place(underlay, now);
        moved
    }

    /// Says which devices and peers are wanted on this underlay.
    pub(super) fn place(&mut self, underlay: &KernelUnderlay, now: Instant) {
        self.lingering.retain(|_, until| *until > now);
        let (mut peers, mut missing) = (BTreeMap::new(), Vec::new());
        for kind in [TunnelKind::VXLAN, TunnelKind::IPIP] {
            let stays = self.kinds().contains(&kind);
            let device = if stays { self.device(kind, underlay) } else { None };
            if stays && device.is_none() {
                missing.push(match self.wanted.ways.local(kind) {
                    Some(local) => format!(
                        "there is no {kind:?} tunnel: no link of this node but its loopback has the \
                         address {local}, which others reach it at; see nodeAddress of a \
                         NodeConfiguration"
                    ),
                    None => format!("there is no {kind:?} tunnel: this node has no address for it"),
                });
            }
            match device {
                Some(device) => self.tunnels.set_device(device),
                None => {
                    self.tunnels.remove_device(of_kernel(kind));
                    continue;
                }
            }
            let ways = &self.wanted.ways;
            for (name, member) in ways.members.iter() {
                if let Some(outer) = ways.outer(kind, member)
                    && member.tunnels.contains(&kind)
                {
                    let peer = Peer { outer, mac: tunnel::mac_of(name) };
                    peers.insert((kind, Arc::clone(name)), peer);
                }
            }
            // Where a route leads as long as nothing better is known.
            for (by, node) in self.through.values().filter(|(by, _)| *by == kind) {
                let held = self.peers.get(&(*by, Arc::clone(node))).copied();
                if let Some(held) = held {
                    peers.entry((kind, Arc::clone(node))).or_insert(held);
                }
            }
        }
        for ((kind, node), peer) in &peers {
            self.tunnels.set_peer(of_kernel(*kind), node, Some(*peer));
        }
        for (kind, node) in self.peers.keys().filter(|key| !peers.contains_key(*key)) {
            self.tunnels.set_peer(of_kernel(*kind), node, None);
        }
        self.peers = peers;
        self.missing = missing;
    }

    fn kinds(&self) -> BTreeSet<TunnelKind> {
        let lingering = self.lingering.keys().copied();
        self.wanted.ways.kinds().into_iter().chain(lingering).collect()
    }

    fn device(&self, kind: TunnelKind, underlay: &KernelUnderlay) -> Option<Device> {
        let Wrapping { node, ways, addresses, .. } = &self.wanted;
        let local = ways.local(kind)?;
        let mtu = underlay.mtu(local)?.saturating_sub(overhead(kind, local));
        let held = [AddressFamily::V4, AddressFamily::V6]
            .into_iter()
            .filter_map(|family| addresses.held.get(&(kind, family)).copied());
        let encapsulation = match kind {
            TunnelKind::IPIP => tunnel::Encapsulation::Ipip,
            TunnelKind::VXLAN => tunnel::Encapsulation::Vxlan(VxlanSettings {
                vni: ways.vxlan.vni,
                port: ways.vxlan.port,
                mac: tunnel::mac_of(node),
                dont_fragment: learns_path_mtu(),
            }),
        };
        let families = ways.pools.iter().filter(|(_, wrapped)| kind_of(**wrapped) == Some(kind));
        let mut inner: BTreeSet<Family> =
            families.map(|(pool, _)| Family::of(pool.addr())).collect();
        if inner.is_empty() {
            // It only stays for a while.
            inner = Family::ALL.into();
        }
        Some(Device { local, mtu, addresses: held.collect(), inner, encapsulation })
    }

    /// What leads to `prefix`: a target through a tunnel, `None` where it is reached plainly, which
    /// `is_plain_now` says of the kernel.
    ///
    /// # Errors
    /// It cannot be reached yet: why, as a clause.
    pub(super) fn target(
        &mut self,
        prefix: IpNet,
        underlay: &KernelUnderlay,
        is_plain_now: impl FnOnce() -> bool,
    ) -> Result<Option<Target>, String> {
        let encapsulated = kind_of(self.wanted.ways.encapsulation(prefix)).is_some();
        let is_plain = encapsulated && !self.through.contains_key(&prefix) && is_plain_now();
        let is_near = |address: IpAddr| underlay.is_near(address);
        let way = match self.wanted.ways.way(prefix, &self.owners, is_near, is_plain) {
            Ok(way) => way,
            Err(why) => match self.through.get(&prefix) {
                Some((kind, node)) => Way::Tunnel(*kind, Arc::clone(node)),
                None => return Err(why),
            },
        };
        match way {
            Way::Plain => {
                self.through.remove(&prefix);
                Ok(None)
            }
            Way::Tunnel(kind, node) => {
                let target =
                    self.tunnels.target(of_kernel(kind), &node, Family::of(prefix.addr())).cloned();
                let Some(target) = target else {
                    return Err(format!(
                        "the way through {kind:?} to {node} is not in the kernel yet"
                    ));
                };
                self.through.insert(prefix, (kind, node));
                Ok(Some(target))
            }
        }
    }

    /// The source that this node's own packets to `prefix` have.
    pub(super) fn source(&self, prefix: IpNet) -> Option<IpAddr> {
        let (kind, _) = self.through.get(&prefix)?;
        let family = AddressFamily::of_net(prefix);
        self.wanted.addresses.held.get(&(*kind, family)).copied()
    }

    /// The tunnel that `prefix` is reached through, and the node at its other end.
    pub(super) fn tunnel_of(&self, prefix: IpNet) -> Option<(TunnelKind, &str)> {
        self.through.get(&prefix).map(|(kind, node)| (*kind, &**node))
    }

    /// How much of the tunnels somebody else removed or changed.
    pub(super) fn edits(&self) -> u64 {
        self.tunnels.edits()
    }

    /// What tunnels should consist of.
    pub(super) fn inventory(&self) -> tunnel::Inventory {
        self.tunnels.inventory()
    }

    /// Nobody announces `prefix` any more.
    pub(super) fn forget(&mut self, prefix: IpNet) {
        self.through.remove(&prefix);
    }

    /// Before the routes: creates what they lead through. Returns the prefixes whose target has changed,
    /// and whether others may have one now.
    pub(super) fn prepare(
        &mut self,
        socket: &mut RouteSocket,
        now: Instant,
    ) -> Result<(Vec<IpNet>, bool), cairn_kernel::Error> {
        if !self.tunnels.is_dirty() && !self.is_due(now) {
            return Ok((Vec::new(), false));
        }
        self.tunnels.prepare(socket.netlink(), now)?;
        let changed = self.tunnels.take_changed();
        let concerned = self
            .through
            .iter()
            .filter(|(_, (kind, node))| changed.contains(&(of_kernel(*kind), node.to_string())))
            .map(|(prefix, _)| *prefix);
        Ok((concerned.collect(), !changed.is_empty()))
    }

    /// After the routes: removes what no route leads through.
    pub(super) fn clean(
        &mut self,
        socket: &mut RouteSocket,
        now: Instant,
    ) -> Result<(), cairn_kernel::Error> {
        if self.tunnels.is_dirty() || self.is_due(now) {
            self.tunnels.clean(socket.netlink(), now)?;
        }
        Ok(())
    }

    fn is_due(&self, now: Instant) -> bool {
        self.tunnels.next_deadline().is_some_and(|at| at <= now)
    }

    /// The tunnels from which packets are taken: the device is there, with an address of each family in
    /// which it is to have one. What has been offered is so as long as there is any, as others send.
    pub(super) fn ready(&mut self) -> BTreeSet<TunnelKind> {
        let Wrapping { addresses, lodging, .. } = &self.wanted;
        let lacks = |kind: TunnelKind| {
            lodging.iter().any(|place| place.0 == kind && !addresses.held.contains_key(place))
        };
        let mut ready = self.usable();
        ready.retain(|kind| self.offered.contains(kind) || !lacks(*kind));
        self.offered.clone_from(&ready);
        ready
    }

    /// The tunnels whose device is there with an address.
    fn usable(&self) -> BTreeSet<TunnelKind> {
        let has_address =
            |kind: &TunnelKind| self.wanted.addresses.held.keys().any(|(of, _)| of == kind);
        let ready = |kind: &TunnelKind| self.tunnels.ready(of_kernel(*kind)).is_some();
        self.kinds().into_iter().filter(has_address).filter(ready).collect()
    }

    /// Whether tunnel packets forbid to be fragmented, which takes a setting of the machine.
    pub(super) fn needs_path_mtu(&self) -> bool {
        self.kinds().contains(&TunnelKind::VXLAN)
    }

    /// The interfaces that must take packets whose answers leave by another one, as some nodes send
    /// through a tunnel what others still send plainly: the tunnels that have their address, and the
    /// uplinks.
    pub(super) fn loose(&self, underlay: &KernelUnderlay) -> BTreeSet<String> {
        let kinds = self.kinds();
        let ready = self.usable();
        let devices =
            kinds.iter().filter(|kind| ready.contains(kind)).map(|kind| device_name(*kind));
        let uplinks = underlay.own.iter().filter(|own| {
            let address = own.address.addr();
            !kinds.is_empty() && address.is_ipv4() && self.wanted.ways.addresses.contains(&address)
        });
        let uplinks = uplinks.map(|own| own.interface.as_str());
        devices.chain(uplinks).map(str::to_owned).collect()
    }

    /// How many other nodes this node knows.
    pub(super) fn members(&self) -> usize {
        self.wanted.ways.members.len()
    }

    /// The revision of the addresses that the devices have, once they have no others.
    pub(super) fn applied(&self) -> Option<u64> {
        let alone = [TunnelKind::VXLAN, TunnelKind::IPIP].into_iter().all(|kind| {
            let wanted = |address: &IpAddr| {
                let held = self.wanted.addresses.held.iter();
                held.filter(|((of, _), _)| *of == kind).any(|(_, own)| own == address)
            };
            self.tunnels.held(of_kernel(kind)).is_some_and(|held| held.iter().all(wanted))
        });
        alone.then_some(self.wanted.addresses.revision)
    }

    pub(super) fn observe(&mut self, event: &KernelEvent) -> bool {
        self.tunnels.observe(event)
    }

    pub(super) fn request_resync(&mut self) {
        self.tunnels.request_resync();
    }

    pub(super) fn allow_sweep(&mut self) {
        self.tunnels.allow_sweep();
    }

    pub(super) fn is_dirty(&self) -> bool {
        self.tunnels.is_dirty()
    }

    pub(super) fn next_deadline(&self) -> Option<Instant> {
        let lingers = self.lingering.values().copied();
        lingers.chain(self.tunnels.next_deadline()).min()
    }

    pub(super) fn problems(&self) -> Vec<String> {
        self.missing.iter().cloned().chain(self.tunnels.problems()).collect()
    }
}

fn of_kernel(kind: TunnelKind) -> tunnel::TunnelKind {
    match kind {
        TunnelKind::VXLAN => tunnel::TunnelKind::Vxlan,
        TunnelKind::IPIP => tunnel::TunnelKind::Ipip,
    }
}

/// Whether the host tells senders behind it how long a packet in a tunnel may be. Only then the outer
/// packets may forbid to be fragmented: elsewhere too long ones would vanish.
fn learns_path_mtu() -> bool {
    match sysctl::ensure(sysctl::FORWARD_USE_PMTU, 1) {
        Ok(_) => true,
        Err(error) => {
            tracing::warn!(%error, "tunnel packets are fragmented where the path is narrower");
            false
        }
    }
}
