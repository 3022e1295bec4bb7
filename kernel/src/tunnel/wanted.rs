//! What peers need on the devices that are ready, and what routes to them point to. Pure.

use std::collections::BTreeMap;
use std::net::IpAddr;

use super::device::TunnelKind;
use super::entries::{Forwarding, Neighbour};
use super::peers::{Claims, Gateways};
use super::{PeerState, Tunnels};
use crate::TUNNEL_OBJECTS;
use crate::nexthop::{ObjectUse, Way};
use crate::objects::{Numbers, ObjectId};
use crate::route::{Family, NextHop, Target};

impl Tunnels {
    /// What the peers need on the devices that are ready.
    pub(super) fn want_entries(&mut self) {
        let (mut neighbours, mut forwarding) = (BTreeMap::new(), BTreeMap::new());
        let mut objects = BTreeMap::new();
        let held = self.peers.values().flat_map(|state| state.objects.into_iter().flatten());
        let held = held.collect();
        let mut numbers = Numbers::new(TUNNEL_OBJECTS, &self.objects, held, &self.taken);
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
                        let way = Way::Hop(hop(gateway, ifindex));
                        let number = &mut state.objects[gateway_slot(gateway)];
                        *number = number.filter(|id| !self.taken.contains(id));
                        *number = number.or_else(|| numbers.take(&way));
                        match *number {
                            Some(id) => drop(objects.insert(ObjectId(id), way)),
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
                            .holds(Neighbour { ifindex, address: gateway }, &state.peer.mac)
                            && self.forwarding.holds(
                                Forwarding { ifindex, mac: state.peer.mac },
                                &state.peer.outer,
                            );
                    let hop = hop(gateway, ifindex);
                    match self.object_use {
                        _ if !reached => None,
                        ObjectUse::Plain => Some(Target::Unicast(vec![hop])),
                        ObjectUse::Objects => {
                            let id = state.objects[gateway_slot(gateway)]?;
                            self.objects
                                .holds(ObjectId(id), &Way::Hop(hop))
                                .then_some(Target::Object(id))
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
