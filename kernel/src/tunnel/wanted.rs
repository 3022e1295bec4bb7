//! What peers need on the devices that are ready, and what routes to them point to. Pure.

use std::collections::{BTreeMap, BTreeSet, HashMap, HashSet};
use std::net::IpAddr;

use super::delta::Delta;
use super::device::TunnelKind;
use super::entries::{Forwarding, Neighbour, ObjectId};
use super::peers::{Claims, Gateways};
use super::{ObjectUse, PeerState, Tunnels};
use crate::TUNNEL_OBJECTS;
use crate::route::{Family, NextHop, Target};

impl Tunnels {
    /// What the peers need on the devices that are ready.
    pub(super) fn want_entries(&mut self) {
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
    pub(super) fn publish(&mut self) {
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

pub(super) fn slot(family: Family) -> usize {
    usize::from(family == Family::V6)
}

fn gateway_slot(gateway: IpAddr) -> usize {
    usize::from(gateway.is_ipv6())
}

const PROBLEMS_MAX: usize = 8;
const NUMBERS_USED_UP: &str = "no number is free for a next-hop object that leads into a tunnel: nodes \
     with tunnels are too many, or other programs take numbers from 0x43410000 up";
