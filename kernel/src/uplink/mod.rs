//! Next-hop objects on uplinks: one for each next hop, and a group of them for each set that shares
//! packets.
//!
//! ```text
//!  lead(prefix, next hops) ─► ways ─► hops ──► groups ──prepare()─► kernel
//!      ▲                        │                                    ▲
//!      └── the object's number ◄┘   clean(in use) ─ what no route names
//! ```
//!
//! When a link loses its carrier the kernel deletes the objects on it, takes them out of groups, and
//! deletes the routes that have nothing left, of IPv4 without a word. So a group here holds those of its
//! members that the kernel has: packets go by the others at once, and routes through it stay. A route whose
//! next hops are all on links without carrier is not written until one is back. One whose object the
//! kernel refuses for another reason names its next hops itself.
//!
//! Who uses an object is not counted: the routes say it ([`crate::reconcile::RouteReconciler::objects`]).
//! Only prefixes that lead through no object yet are remembered. All of it is pure except
//! [`UplinkObjects::prepare`] and [`UplinkObjects::clean`].

mod converge;
#[cfg(test)]
mod tests;

use std::collections::{BTreeMap, BTreeSet};
use std::ops::Range;
use std::sync::Arc;
use std::time::Instant;

use ipnet::IpNet;

use crate::UPLINK_OBJECTS;
use crate::delta::{Delta, News};
use crate::error::Error;
use crate::link::Link;
use crate::monitor::{KernelEvent, LinkState};
use crate::nexthop::{self, ObjectUse, Way};
use crate::objects::{self, ObjectId};
use crate::reconcile::Pass;
use crate::route::NextHop;
use crate::socket::Netlink;
use crate::tunnel::{Inventory, Part};

/// How a route leads to its next hops.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Lead {
    /// It names the object of this number, which is in the kernel.
    Object(u32),
    /// As before: the object is written next.
    Pending,
    /// It names the next hops itself: there is no object for them.
    Plain,
    /// Not at all: no link that it would leave by has a carrier.
    NoCarrier,
}

/// Which prefixes lead otherwise than before.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub enum Moved {
    /// None.
    #[default]
    Nothing,
    /// Of those that led through no object.
    These(Vec<IpNet>),
    /// Also of others.
    All,
}

/// The objects that routes by uplinks name, and a model of the kernel's.
#[derive(Debug)]
pub struct UplinkObjects {
    object_use: ObjectUse,
    /// What routes lead to: next hops with weights, in the order of [`crate::route::Target::normalized`].
    ways: BTreeMap<Arc<[NextHop]>, WayState>,
    /// The numbers of single next hops, by themselves or in groups.
    numbers: BTreeMap<NextHop, Option<u32>>,
    /// Prefixes that lead through no object, and where they should.
    pending: BTreeMap<IpNet, Arc<[NextHop]>>,
    hops: Delta<ObjectId>,
    groups: Delta<ObjectId>,
    /// Numbers of our range that others' objects have.
    taken: BTreeSet<u32>,
    /// No number is free for some.
    used_up: bool,
    /// Some way is led to otherwise than before; and not by its object any more.
    moved: bool,
    lost: bool,
    needs_read: bool,
    /// Why the kernel could not be read or written.
    unread: Option<String>,
    /// Other ways are wanted, or something may succeed now.
    dirty: bool,
    /// Somebody changed an object of ours.
    unwritten: bool,
    sweep_allowed: bool,
    /// Something may be there that no route names.
    unclean: bool,
    edits: u64,
}

#[derive(Clone, Copy, Debug)]
struct WayState {
    /// The number of its group.
    group: Option<u32>,
    lead: Lead,
}

impl UplinkObjects {
    /// No objects. Nothing is known of the kernel yet.
    pub fn new(object_use: ObjectUse) -> UplinkObjects {
        let has_objects = object_use == ObjectUse::Objects;
        UplinkObjects {
            object_use,
            ways: BTreeMap::new(),
            numbers: BTreeMap::new(),
            pending: BTreeMap::new(),
            hops: Delta::new(),
            groups: Delta::new(),
            taken: BTreeSet::new(),
            used_up: false,
            moved: false,
            lost: false,
            needs_read: has_objects,
            unread: None,
            dirty: false,
            unwritten: false,
            sweep_allowed: false,
            unclean: has_objects,
            edits: 0,
        }
    }

    /// How a route to `prefix` leads to `hops`, which are sorted and none twice
    /// ([`crate::route::Target::normalized`]).
    pub fn lead(&mut self, prefix: IpNet, hops: &[NextHop]) -> Lead {
        if self.object_use == ObjectUse::Plain || hops.is_empty() {
            return Lead::Plain;
        }
        let way = match self.ways.get_key_value(hops) {
            Some((_, WayState { lead: lead @ Lead::Object(_), .. })) => {
                let lead = *lead;
                self.forget(prefix);
                return lead;
            }
            Some((way, _)) => Arc::clone(way),
            None => {
                let way: Arc<[NextHop]> = hops.into();
                let state = WayState { group: None, lead: Lead::Pending };
                self.ways.insert(Arc::clone(&way), state);
                self.dirty = true;
                way
            }
        };
        let lead = self.ways.get(&way).map_or(Lead::Pending, |state| state.lead);
        if self.pending.insert(prefix, Arc::clone(&way)).is_some_and(|before| before != way) {
            self.unclean = true;
        }
        lead
    }

    /// Nothing leads to `prefix` by an uplink any more, or not as [`UplinkObjects::lead`] said.
    pub fn forget(&mut self, prefix: IpNet) {
        self.unclean |= self.pending.remove(&prefix).is_some();
    }

    /// Routes were replaced or removed: no route may name some object any more.
    pub fn routes_changed(&mut self) {
        let tables = [&self.hops, &self.groups];
        self.unclean |= tables.iter().any(|table| !table.present().is_empty());
    }

    /// The prefixes for which [`UplinkObjects::lead`] may say something else since the last call.
    pub fn take_moved(&mut self) -> Moved {
        let (moved, lost) = (std::mem::take(&mut self.moved), std::mem::take(&mut self.lost));
        match (lost, moved) {
            (true, _) => Moved::All,
            (false, true) => Moved::These(self.pending.keys().copied().collect()),
            (false, false) => Moved::Nothing,
        }
    }

    /// Allows to remove objects that no route names, now and later. To be called once every input has
    /// said what it wants.
    pub fn allow_sweep(&mut self) {
        self.sweep_allowed = true;
    }

    /// Asks for a look at the kernel.
    pub fn request_resync(&mut self) {
        self.needs_read = self.object_use == ObjectUse::Objects;
    }

    /// Tries at once what failed: gateways may be reached otherwise than before.
    pub fn retry_failures(&mut self) {
        self.dirty |= self.hops.retry(|_| true) | self.groups.retry(|_| true);
    }

    /// Takes what the kernel tells. Returns whether somebody changed an object of ours, which the next
    /// [`UplinkObjects::prepare`] puts right.
    pub fn observe(&mut self, event: &KernelEvent) -> bool {
        if self.object_use == ObjectUse::Plain {
            return false;
        }
        match event {
            KernelEvent::Overrun => self.needs_read = true,
            KernelEvent::Link { index, state: LinkState::Running, .. } => {
                self.dirty |= self.hops.retry(|way| leaves_by(way, *index));
            }
            KernelEvent::Link { index, .. } | KernelEvent::RoutesLost { ifindex: Some(index) } => {
                self.lose(*index)
            }
            KernelEvent::Object { id, object } if UPLINK_OBJECTS.contains(id) => {
                let object = object.clone();
                let way = object.and_then(|object| objects::own_way(object, &UPLINK_OBJECTS));
                let of_group = group_numbers().contains(id);
                let table = if of_group { &mut self.groups } else { &mut self.hops };
                let news = table.tell(ObjectId(*id), way);
                self.edits += u64::from(news == News::Undone);
                self.unwritten |= news != News::Known;
                self.unclean |= news != News::Known;
                return news != News::Known;
            }
            _ => {}
        }
        false
    }

    /// The kernel may have deleted the objects on a link, and says nothing of it.
    fn lose(&mut self, index: u32) {
        let lost = |way: &Way| leaves_by(way, index);
        let gone: BTreeSet<u32> = self
            .hops
            .present()
            .iter()
            .filter(|(_, way)| lost(way))
            .map(|(ObjectId(id), _)| *id)
            .collect();
        if gone.is_empty() {
            return;
        }
        self.needs_read = true;
        self.hops.lose(|_, way| lost(way));
        self.groups.lose(|_, way| match way {
            Way::Group(members) => members.iter().any(|(id, _)| gone.contains(id)),
            _ => false,
        });
    }

    /// Whether some prefix may still lead where it did before [`UplinkObjects::lead`] was asked.
    pub fn is_unsure(&self) -> bool {
        self.needs_read || self.dirty || self.unwritten
    }

    /// Whether there is something to do before any deadline.
    pub fn is_dirty(&self) -> bool {
        self.is_unsure() || (self.unclean && self.sweep_allowed)
    }

    /// When something that failed is tried again.
    pub fn next_deadline(&self) -> Option<Instant> {
        if self.needs_read {
            // It is tried as a whole.
            return None;
        }
        let deadlines = [self.hops.next_deadline(), self.groups.next_deadline()];
        deadlines.into_iter().flatten().min()
    }

    /// How many objects somebody else removed or changed.
    pub fn edits(&self) -> u64 {
        self.edits
    }

    /// What is not as wanted, each with what to do about it.
    pub fn problems(&self) -> Vec<String> {
        let used_up = self.used_up.then(|| NUMBERS_USED_UP.to_owned());
        let tables = [&self.hops, &self.groups];
        let unread = self.unread.as_ref().map(|error| {
            format!("next-hop objects on uplinks cannot be read or written, retrying: {error}")
        });
        tables.into_iter().filter_map(Delta::problem).chain(used_up).chain(unread).collect()
    }

    /// What is wanted now; `link` names links by their index.
    pub fn inventory(&self, link: impl Fn(u32) -> String) -> Inventory {
        let wanted = self.hops.wanted().iter().chain(self.groups.wanted());
        wanted.map(|(ObjectId(id), way)| part(*id, way, &link)).collect()
    }

    /// Reads the kernel if needed, and makes and changes what routes are to name. To be called before
    /// routes are written. What fails is retried with backoff and holds back nothing else.
    ///
    /// # Errors
    /// When the kernel could not be read, or its answers were lost; the next call begins by reading.
    pub fn prepare(&mut self, netlink: &mut Netlink, now: Instant) -> Result<Pass, Error> {
        let mut pass = Pass::default();
        let due = self.next_deadline().is_some_and(|at| at <= now);
        if !(self.is_unsure() || due) {
            return Ok(pass);
        }
        let done = self.converge(netlink, now, &mut pass);
        self.needs_read |= done.is_err();
        self.unread = done.as_ref().err().map(ToString::to_string);
        done?;
        self.publish();
        Ok(pass)
    }

    /// Removes objects that no route names: `used` are those that one does. Does nothing before
    /// [`UplinkObjects::allow_sweep`]. To be called after routes were written: an object takes the routes
    /// through it along.
    ///
    /// # Errors
    /// As [`UplinkObjects::prepare`].
    pub fn clean(
        &mut self,
        netlink: &mut Netlink,
        now: Instant,
        used: impl IntoIterator<Item = u32>,
    ) -> Result<Pass, Error> {
        let mut pass = Pass::default();
        // While the model may be wrong nothing is removed by it.
        if !self.sweep_allowed || self.is_unsure() {
            return Ok(pass);
        }
        let due = self.next_deadline().is_some_and(|at| at <= now);
        if self.unclean || due {
            let used = used.into_iter().collect();
            self.keep(&used);
            let needed = self.with_members(used);
            let needed = |key: &ObjectId| needed.contains(&key.0);
            let mut sweep = || {
                self.groups.sweep(netlink, now, &mut pass, needed)?;
                self.hops.sweep(netlink, now, &mut pass, needed)
            };
            let done = sweep();
            self.unclean = false;
            self.needs_read |= done.is_err();
            done?;
        }
        Ok(pass)
    }
}

/// The objects of ours that the kernel has on uplinks, in the namespace of `netlink`; `link` names links by
/// their index.
///
/// # Errors
/// Those of the dump.
pub fn inventory(netlink: &mut Netlink, link: impl Fn(u32) -> String) -> Result<Inventory, Error> {
    let found = nexthop::list(netlink)?.into_iter();
    let ours = found.filter_map(|object| {
        let id = object.id;
        Some(part(id, &objects::own_way(object, &UPLINK_OBJECTS)?, &link))
    });
    Ok(ours.collect())
}

/// The name of a link for people, by its index.
pub fn names(links: &[Link]) -> impl Fn(u32) -> String {
    let names: BTreeMap<u32, String> =
        links.iter().map(|link| (link.index, link.name.clone())).collect();
    move |index| names.get(&index).cloned().unwrap_or_else(|| format!("link {index}"))
}

fn part(id: u32, way: &Way, link: impl Fn(u32) -> String) -> ((Part, String), String) {
    ((Part::Object, id.to_string()), objects::words(way, link))
}

fn leaves_by(way: &Way, index: u32) -> bool {
    matches!(way, Way::Hop(hop) if hop.ifindex == index)
}

fn hop_numbers() -> Range<u32> {
    UPLINK_OBJECTS.start..group_numbers().start
}

fn group_numbers() -> Range<u32> {
    UPLINK_OBJECTS.start + (UPLINK_OBJECTS.end - UPLINK_OBJECTS.start) / 2..UPLINK_OBJECTS.end
}

const NUMBERS_USED_UP: &str = "no number is free for a next-hop object on an uplink, so that routes name \
     their next hops: there are too many next hops, or other programs take numbers from 0x43420000 up";
