//! Adj-RIB-In of all peers and Loc-RIB of one family, in one map.

use std::sync::Arc;

use foldhash::fast::FixedState;
use hashbrown::HashMap;
use hashbrown::hash_map::Entry as MapEntry;

use crate::config::Multipath;
use crate::wire::NextHop;

use super::attributes::RouteAttributes;
use super::decision::{CandidateView, RouteOrigin, rank};
use super::family::AddressFamily;
use super::fib::{FibChange, FibPath, FibRoute};
use super::group::Group;
use super::peer::{PeerId, Peers};
use super::verdict::VerdictId;

/// The routes of one family and what has to be told about them.
#[derive(Debug)]
pub(crate) struct Table<A: AddressFamily> {
    pub(crate) entries: Entries<A>,
    pub(crate) groups: Vec<Group<A>>,
    pub(crate) marks: Marks<A>,
}

pub(crate) type Entries<A> = HashMap<<A as AddressFamily>::Key, Entry, FixedState>;

/// Prefixes whose forwarding entry has changed and has not been read yet.
#[derive(Debug)]
pub(crate) struct Marks<A: AddressFamily> {
    fib: Vec<A::Key>,
    /// What was selected before a change, kept to save the allocation.
    before: Vec<Identity>,
    /// Prefixes whose best route has changed, while somebody watches.
    pub(crate) watched: Option<Watched<A::Key>>,
}

/// Prefixes for those who watch: so many as [`WATCHED_MAX`], and how many more there were.
#[derive(Debug)]
pub(crate) struct Watched<K> {
    pub(crate) keys: Vec<K>,
    pub(crate) missed: u64,
}

/// Who gave a selected route and where its interned attributes lie: enough to see a change.
type Identity = (PeerId, usize);

/// What is known of one prefix.
#[derive(Debug)]
pub(crate) struct Entry {
    candidates: Candidates,
    /// How many candidates, from the first, are the best one and its equals.
    selected: u16,
    fib_queued: bool,
}

/// Most prefixes have one candidate, which then needs no allocation of its own.
#[derive(Debug)]
enum Candidates {
    One(Candidate),
    Many(Vec<Candidate>),
}

/// A route from one source.
#[derive(Clone, Debug)]
pub(crate) struct Candidate {
    pub(crate) source: PeerId,
    pub(crate) verdict: VerdictId,
    /// [`super::peer::PeerFamily::epoch`] when the route came.
    pub(crate) epoch: u8,
    /// As the peer sent it, so that policy can be asked again.
    pub(crate) received: Arc<RouteAttributes>,
    /// After import policy; `None` when the route may not be used.
    pub(crate) used: Option<Arc<RouteAttributes>>,
}

/// How many routes of a source a change added or removed.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Delta {
    pub(crate) received: i32,
    pub(crate) accepted: i32,
}

/// What ranking has to look up.
#[derive(Clone, Copy)]
pub(crate) struct RankContext<'a> {
    pub(crate) peers: &'a Peers,
    pub(crate) multipath: Multipath,
}

impl CandidateView<Candidate> for RankContext<'_> {
    fn attributes<'c>(&self, candidate: &'c Candidate) -> Option<&'c RouteAttributes> {
        candidate.used.as_deref()
    }

    fn origin(&self, candidate: &Candidate) -> RouteOrigin {
        self.peers.peer(candidate.source).map_or(RouteOrigin::Local, |peer| peer.origin())
    }
}

impl<A: AddressFamily> Table<A> {
    pub(crate) fn new(hasher: FixedState) -> Table<A> {
        Table {
            entries: HashMap::with_hasher(hasher),
            groups: Vec::new(),
            marks: Marks { fib: Vec::new(), before: Vec::new(), watched: None },
        }
    }

    /// Puts in, replaces or removes the route of `source` to a prefix.
    pub(crate) fn change(
        &mut self,
        context: RankContext<'_>,
        key: A::Key,
        source: PeerId,
        new: Option<Candidate>,
    ) -> Delta {
        match (self.entries.entry(key), new) {
            (MapEntry::Vacant(_), None) => Delta::default(),
            (MapEntry::Vacant(vacant), Some(new)) => {
                let accepted = i32::from(new.used.is_some());
                let entry = vacant.insert(Entry {
                    candidates: Candidates::One(new),
                    selected: accepted as u16,
                    fib_queued: false,
                });
                if accepted > 0 {
                    self.marks.mark_best(key, &mut self.groups);
                    if source != PeerId::LOCAL {
                        self.marks.mark_fib(key, entry);
                    }
                }
                Delta { received: 1, accepted }
            }
            (MapEntry::Occupied(mut occupied), new) => {
                let entry = occupied.get_mut();
                self.marks.remember(entry);
                let (delta, empty) = entry.replace(source, new);
                if empty {
                    self.marks.settle_removed(key, entry, &mut self.groups);
                    occupied.remove();
                    return delta;
                }
                entry.rank(context);
                self.marks.settle(key, entry, &mut self.groups);
                delta
            }
        }
    }

    /// Whether `source` has a route to a prefix.
    pub(crate) fn has(&self, key: A::Key, source: PeerId) -> bool {
        self.entries.get(&key).is_some_and(|entry| entry.candidates.of(source).is_some())
    }

    /// Changes or removes all the routes of `source`: `f` is asked for each, and removes it by
    /// `None`. The walk is over the whole table; an index per peer would cost memory for every route
    /// and save time only when a peer goes down.
    pub(crate) fn change_all(
        &mut self,
        context: RankContext<'_>,
        source: PeerId,
        mut f: impl FnMut(A::Key, &Candidate) -> Option<Candidate>,
    ) -> Delta {
        let mut total = Delta::default();
        let (groups, marks) = (&mut self.groups, &mut self.marks);
        self.entries.retain(|key, entry| {
            let Some(old) = entry.candidates.of(source) else { return true };
            let new = f(*key, old);
            if new.as_ref().is_some_and(|new| new.is_same(old)) {
                return true;
            }
            marks.remember(entry);
            let (delta, empty) = entry.replace(source, new);
            total.add(delta);
            if empty {
                marks.settle_removed(*key, entry, groups);
                return false;
            }
            entry.rank(context);
            marks.settle(*key, entry, groups);
            true
        });
        total
    }

    /// Ranks everything again, after a change of what ranking looks up.
    pub(crate) fn rank_all(&mut self, context: RankContext<'_>) {
        let (groups, marks) = (&mut self.groups, &mut self.marks);
        for (key, entry) in &mut self.entries {
            marks.remember(entry);
            entry.rank(context);
            marks.settle(*key, entry, groups);
        }
    }

    /// Whether [`Table::take_fib`] has something.
    pub(crate) fn fib_pending(&self) -> bool {
        !self.marks.fib.is_empty()
    }

    /// Reads up to `max` changed forwarding entries in their latest state.
    pub(crate) fn take_fib(&mut self, peers: &Peers, max: usize, changes: &mut Vec<FibChange>) {
        let keep = self.marks.fib.len().saturating_sub(max);
        for key in self.marks.fib.drain(keep..) {
            let route = match self.entries.get_mut(&key) {
                Some(entry) => {
                    entry.fib_queued = false;
                    fib_route(peers, entry)
                }
                None => None,
            };
            changes.push(FibChange { prefix: A::prefix(key), route });
        }
        if self.marks.fib.is_empty() {
            self.marks.fib.shrink_to(FIB_QUEUE_KEPT);
        }
    }
}

impl<A: AddressFamily> Marks<A> {
    fn remember(&mut self, entry: &Entry) {
        self.before.clear();
        self.before.extend(entry.selected().iter().map(Candidate::identity));
    }

    fn best_before(&self) -> Option<Identity> {
        self.before.first().copied()
    }

    /// Compares with what was remembered and marks what has to be told.
    fn settle(&mut self, key: A::Key, entry: &mut Entry, groups: &mut [Group<A>]) {
        if entry.best().map(Candidate::identity) != self.best_before() {
            self.mark_best(key, groups);
        }
        let now = entry.selected().iter().map(Candidate::identity);
        let same = forwarded(now).eq(forwarded(self.before.iter().copied()));
        self.before.clear();
        if !same {
            self.mark_fib(key, entry);
        }
    }

    /// As [`Marks::settle`], for an entry that is about to be removed.
    fn settle_removed(&mut self, key: A::Key, entry: &Entry, groups: &mut [Group<A>]) {
        if self.best_before().is_some() {
            self.mark_best(key, groups);
        }
        if forwarded(self.before.iter().copied()).next().is_some() && !entry.fib_queued {
            self.fib.push(key);
        }
        self.before.clear();
    }

    /// The best route to `key` is another one.
    fn mark_best(&mut self, key: A::Key, groups: &mut [Group<A>]) {
        groups.iter_mut().for_each(|group| group.mark(key));
        if let Some(watched) = &mut self.watched {
            watched.push(key);
        }
    }

    fn mark_fib(&mut self, key: A::Key, entry: &mut Entry) {
        if !std::mem::replace(&mut entry.fib_queued, true) {
            self.fib.push(key);
        }
    }
}

/// What of a selection is in the forwarding table: nothing while we originate the prefix ourselves.
fn forwarded(selected: impl Iterator<Item = Identity>) -> impl Iterator<Item = Identity> {
    selected.take_while(|(source, _)| *source != PeerId::LOCAL)
}

fn fib_route(peers: &Peers, entry: &Entry) -> Option<FibRoute> {
    let mut paths: Vec<FibPath> = Vec::with_capacity(entry.selected().len());
    for candidate in entry.selected() {
        // A prefix of our own is in the kernel by other means; its equals are not looked at either.
        let peer = peers.peer(candidate.source)?;
        let attributes = candidate.used.as_ref()?;
        let NextHop { address, link_local } = attributes.next_hop;
        // Two reflectors may show the same next hop: one path is enough.
        if paths.iter().any(|p| (p.next_hop, p.link_local) == (address, link_local)) {
            continue;
        }
        paths.push(FibPath {
            next_hop: address,
            link_local,
            peer: Arc::clone(&peer.config.name),
            sort: peer.config.sort,
            attributes: Arc::clone(attributes),
        });
    }
    (!paths.is_empty()).then_some(FibRoute { paths })
}

impl Entry {
    /// The best route.
    pub(crate) fn best(&self) -> Option<&Candidate> {
        self.selected().first()
    }

    /// The best route and its equals.
    pub(crate) fn selected(&self) -> &[Candidate] {
        self.candidates.as_slice().get(..usize::from(self.selected)).unwrap_or_default()
    }

    /// All routes, the selected ones first.
    pub(crate) fn candidates(&self) -> &[Candidate] {
        self.candidates.as_slice()
    }

    fn rank(&mut self, context: RankContext<'_>) {
        let selected = match &mut self.candidates {
            Candidates::One(candidate) => usize::from(candidate.used.is_some()),
            Candidates::Many(candidates) => {
                rank(&context, candidates, context.multipath, |_, _| {}).selected
            }
        };
        self.selected = selected.try_into().unwrap_or(u16::MAX);
    }

    /// Replaces the route of `source`; true when no candidate is left.
    fn replace(&mut self, source: PeerId, new: Option<Candidate>) -> (Delta, bool) {
        let mut delta = Delta::default();
        if let Some(old) = self.candidates.of(source) {
            delta.received -= 1;
            delta.accepted -= i32::from(old.used.is_some());
        }
        if let Some(new) = &new {
            delta.received += 1;
            delta.accepted += i32::from(new.used.is_some());
        }
        (delta, self.candidates.replace(source, new))
    }
}

impl Candidates {
    fn as_slice(&self) -> &[Candidate] {
        match self {
            Candidates::One(candidate) => std::slice::from_ref(candidate),
            Candidates::Many(candidates) => candidates,
        }
    }

    fn of(&self, source: PeerId) -> Option<&Candidate> {
        self.as_slice().iter().find(|c| c.source == source)
    }

    /// True when nothing is left; `self` is then to be dropped.
    fn replace(&mut self, source: PeerId, new: Option<Candidate>) -> bool {
        match (&mut *self, new) {
            (Candidates::One(one), Some(new)) if one.source == source => *one = new,
            (Candidates::One(one), Some(new)) => {
                *self = Candidates::Many(vec![one.clone(), new]);
            }
            (Candidates::One(one), None) => return one.source == source,
            (Candidates::Many(many), new) => {
                many.retain(|c| c.source != source);
                many.extend(new);
                match many.len() {
                    0 => return true,
                    1 => {
                        if let Some(last) = many.pop() {
                            *self = Candidates::One(last);
                        }
                    }
                    _ => {}
                }
            }
        }
        false
    }
}

impl Candidate {
    fn identity(&self) -> Identity {
        (self.source, self.used.as_ref().map_or(0, |used| Arc::as_ptr(used).addr()))
    }

    fn is_same(&self, other: &Candidate) -> bool {
        self.source == other.source
            && self.verdict == other.verdict
            && self.epoch == other.epoch
            && Arc::ptr_eq(&self.received, &other.received)
            && self.identity() == other.identity()
    }
}

impl<K> Watched<K> {
    pub(crate) fn new() -> Watched<K> {
        Watched { keys: Vec::new(), missed: 0 }
    }

    fn push(&mut self, key: K) {
        if self.keys.len() < WATCHED_MAX {
            self.keys.push(key);
        } else {
            self.missed = self.missed.saturating_add(1);
        }
    }
}

impl Delta {
    pub(crate) fn add(&mut self, other: Delta) {
        self.received = self.received.saturating_add(other.received);
        self.accepted = self.accepted.saturating_add(other.accepted);
    }
}

/// Capacity of an empty queue that is kept for the next changes.
const FIB_QUEUE_KEPT: usize = 4096;
/// Changed prefixes of one family that wait for those who watch: what is told between two batches
/// costs the owner about a millisecond.
const WATCHED_MAX: usize = 512;
