//! The kernel is read and written until it is as wanted.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Instant;

use rustix::io::Errno;

use super::{Lead, UplinkObjects, group_numbers, hop_numbers};
use crate::UPLINK_OBJECTS;
use crate::delta::Delta;
use crate::error::Error;
use crate::nexthop::{self, Way};
use crate::objects::{self, Numbers, ObjectId};
use crate::reconcile::Pass;
use crate::route::NextHop;
use crate::socket::Netlink;

impl UplinkObjects {
    pub(super) fn converge(
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
            self.want_hops();
            self.needs_read |= self.hops.write(netlink, now, pass)?;
            // Of members that are there by now.
            self.want_groups();
            self.needs_read |= self.groups.write(netlink, now, pass)?;
            if !self.needs_read {
                (self.dirty, self.unwritten) = (false, false);
                return Ok(());
            }
        }
        // Somebody changes things as fast as they are read; go on with the next event.
        Ok(())
    }

    fn read(&mut self, netlink: &mut Netlink) -> Result<(), Error> {
        let (mut hops, mut groups) = (BTreeMap::new(), BTreeMap::new());
        self.taken.clear();
        for object in nexthop::list(netlink)? {
            let id = object.id;
            match objects::own_way(object, &UPLINK_OBJECTS) {
                Some(way) if group_numbers().contains(&id) => {
                    groups.insert(ObjectId(id), way);
                }
                Some(way) => drop(hops.insert(ObjectId(id), way)),
                None if UPLINK_OBJECTS.contains(&id) => drop(self.taken.insert(id)),
                None => {}
            }
        }
        self.edits += self.hops.read(hops) + self.groups.read(groups);
        (self.needs_read, self.unclean) = (false, true);
        Ok(())
    }

    /// Wants each next hop of each way.
    pub(super) fn want_hops(&mut self) {
        self.used_up = false;
        let hops: BTreeSet<NextHop> =
            self.ways.keys().flat_map(|way| way.iter().map(single)).collect();
        self.numbers.retain(|hop, id| {
            *id = id.filter(|id| !self.taken.contains(id));
            hops.contains(hop)
        });
        let held = self.numbers.values().flatten().copied().collect();
        let mut numbers = Numbers::new(hop_numbers(), &self.hops, held, &self.taken);
        let mut wanted = BTreeMap::new();
        for hop in hops {
            let way = Way::Hop(hop);
            let number = self.numbers.entry(hop).or_default();
            *number = number.or_else(|| numbers.take(&way));
            match *number {
                Some(id) => drop(wanted.insert(ObjectId(id), way)),
                None => self.used_up = true,
            }
        }
        self.hops.want(wanted);
    }

    /// Wants a group for each way of several next hops, of those that the kernel has.
    pub(super) fn want_groups(&mut self) {
        let taken = &self.taken;
        self.ways.values_mut().for_each(|state| {
            state.group = state.group.filter(|id| !taken.contains(id));
        });
        let held = self.ways.values().filter_map(|state| state.group).collect();
        let mut numbers = Numbers::new(group_numbers(), &self.groups, held, &self.taken);
        let mut wanted = BTreeMap::new();
        for (way, state) in &mut self.ways {
            let members = members(way, &self.numbers, &self.hops);
            if way.len() < 2 || members.is_empty() {
                continue;
            }
            let group = Way::Group(members);
            state.group = state.group.or_else(|| numbers.take(&group));
            match state.group {
                Some(id) => drop(wanted.insert(ObjectId(id), group)),
                None => self.used_up = true,
            }
        }
        self.groups.want(wanted);
    }

    /// Says how each way is led to now.
    pub(super) fn publish(&mut self) {
        for (way, state) in &mut self.ways {
            let alone = |hop: &NextHop| {
                let hop = single(hop);
                let number = self.numbers.get(&hop).copied().flatten();
                standing(&self.hops, number, &Way::Hop(hop), state.lead)
            };
            let lead = match &**way {
                [hop] => alone(hop),
                several => match members(several, &self.numbers, &self.hops) {
                    found if found.is_empty() => none_of(several.iter().map(alone)),
                    found => standing(&self.groups, state.group, &Way::Group(found), state.lead),
                },
            };
            if lead != state.lead {
                self.moved = true;
                self.lost |= matches!(state.lead, Lead::Object(_));
                state.lead = lead;
            }
        }
    }

    /// Forgets the ways that neither a route nor a prefix without one needs.
    pub(super) fn keep(&mut self, used: &BTreeSet<u32>) {
        let pending: BTreeSet<&Arc<[NextHop]>> = self.pending.values().collect();
        let before = self.ways.len();
        self.ways.retain(|way, state| {
            let object = match state.lead {
                Lead::Object(id) => Some(id),
                _ => None,
            };
            object.is_some_and(|id| used.contains(&id)) || pending.contains(way)
        });
        if self.ways.len() < before {
            self.want_hops();
            self.want_groups();
        }
    }

    /// Objects of `used`, and what groups among them consist of.
    pub(super) fn with_members(&self, used: BTreeSet<u32>) -> BTreeSet<u32> {
        let of_group = |id: &u32| match self.groups.present().get(&ObjectId(*id)) {
            Some(Way::Group(members)) => members.iter().map(|(id, _)| *id).collect(),
            _ => Vec::new(),
        };
        let members: Vec<u32> = used.iter().flat_map(of_group).collect();
        used.into_iter().chain(members).collect()
    }
}

/// How something leads to an object of its own.
fn standing(table: &Delta<ObjectId>, number: Option<u32>, way: &Way, before: Lead) -> Lead {
    let Some(id) = number else { return Lead::Plain };
    if table.holds(ObjectId(id), way) {
        return Lead::Object(id);
    }
    match table.failure(ObjectId(id)).map(|failure| failure.errno) {
        Some(Errno::NETDOWN) => Lead::NoCarrier,
        None if before == Lead::Pending => Lead::Pending,
        _ => Lead::Plain,
    }
}

/// How a route leads to next hops none of which has an object; `alone` is how it would lead to each.
fn none_of(alone: impl Iterator<Item = Lead>) -> Lead {
    alone.fold(Lead::NoCarrier, |all, each| match (all, each) {
        (Lead::NoCarrier, each) => each,
        (Lead::Pending, Lead::NoCarrier | Lead::Pending) => Lead::Pending,
        _ => Lead::Plain,
    })
}

/// The members of the group for `way` that the kernel has, with their weights.
fn members(
    way: &[NextHop],
    numbers: &BTreeMap<NextHop, Option<u32>>,
    hops: &Delta<ObjectId>,
) -> Vec<(u32, u16)> {
    let member = |hop: &NextHop| {
        let id = numbers.get(&single(hop)).copied().flatten()?;
        let present = hops.holds(ObjectId(id), &Way::Hop(single(hop)));
        present.then_some((id, hop.weight.into()))
    };
    way.iter().filter_map(member).collect()
}

/// A next hop as an object has it, whatever its share of a group is.
fn single(hop: &NextHop) -> NextHop {
    NextHop { weight: 1, ..*hop }
}

/// How often one pass reads and writes: once more after a link was found down.
const ROUNDS_MAX: usize = 4;
