//! Adj-RIB-In of all peers and Loc-RIB of one family, in one place.

use std::collections::VecDeque;
use std::sync::Arc;

use foldhash::fast::FixedState;

use crate::config::Multipath;
use crate::wire::NextHop;

use super::attributes::RouteAttributes;
use super::decision::{CandidateView, RouteOrigin, rank};
use super::entries::{Entries, RouteId};
use super::family::AddressFamily;
use super::fib::{FibChange, FibPath, FibRoute};
use super::group::Group;
use super::limit::PATHS_A_PREFIX_MAX;
use super::peer::{PeerId, Peers};
use super::secrets::Secrets;
use super::verdict::VerdictId;

/// The routes of one family and what has to be told about them.
#[derive(Debug)]
pub(crate) struct Table<A: AddressFamily> {
    pub(crate) entries: Entries<A>,
    pub(crate) groups: Vec<Group<A>>,
    pub(crate) marks: Marks<A>,
}

/// Prefixes whose forwarding entry has changed and has not been read yet.
#[derive(Debug)]
pub(crate) struct Marks<A: AddressFamily> {
    /// The one that has waited longest first: a peer that never rests keeps nobody else's changes back.
    fib: VecDeque<RouteId>,
    /// Whether anybody reads changed forwarding entries.
    fib_wanted: bool,
    /// For what was selected before a change, kept to save the allocation.
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
#[derive(Debug, Default)]
pub(crate) struct Entry {
    candidates: Candidates,
    /// How many candidates, from the first, are the best one and its equals.
    selected: u16,
    pub(super) fib_queued: bool,
    /// It is among the prefixes that have gone, be it that it has come again.
    pub(super) is_gone: bool,
}

/// Most prefixes have one candidate, which then needs no allocation of its own.
#[derive(Debug, Default)]
enum Candidates {
    #[default]
    None,
    One(Candidate),
    Many(Box<Several>),
}

/// Two candidates or more. Behind one pointer, so that an entry is no larger than with one candidate.
#[derive(Debug)]
struct Several(Vec<Candidate>);

/// A route from one source.
#[derive(Clone, Debug)]
pub(crate) struct Candidate {
    pub(crate) source: PeerId,
    pub(crate) verdict: VerdictId,
    /// [`super::peer::PeerFamily::epoch`] when the route came.
    pub(crate) epoch: u8,
    /// [`RouteAttributes::path_id`] of `received` is not 0: else nobody has to look there.
    pub(crate) has_path_id: bool,
    /// As the peer sent it, so that policy can be asked again.
    pub(crate) received: Arc<RouteAttributes>,
    /// After import policy; `None` when the route may not be used.
    pub(crate) used: Option<Arc<RouteAttributes>>,
}

/// Which candidate of a prefix: who gave it and, among several paths of one peer, which path.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct PathKey {
    pub(crate) source: PeerId,
    /// 0 where the source gives one path.
    pub(crate) path_id: u32,
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

    fn path_id(&self, candidate: &Candidate) -> u32 {
        candidate.path_id()
    }
}

impl CandidateView<&Candidate> for RankContext<'_> {
    fn attributes<'c>(&self, candidate: &'c &Candidate) -> Option<&'c RouteAttributes> {
        CandidateView::<Candidate>::attributes(self, candidate)
    }

    fn origin(&self, candidate: &&Candidate) -> RouteOrigin {
        CandidateView::<Candidate>::origin(self, candidate)
    }

    fn path_id(&self, candidate: &&Candidate) -> u32 {
        candidate.path_id()
    }
}

impl<A: AddressFamily> Table<A> {
    pub(crate) fn new(hasher: FixedState, secrets: Secrets) -> Table<A> {
        Table {
            entries: Entries::new(hasher, secrets),
            groups: Vec::new(),
            marks: Marks {
                fib: VecDeque::new(),
                fib_wanted: true,
                before: Vec::new(),
                watched: None,
            },
        }
    }

    /// Puts in, replaces or removes a path to a prefix.
    pub(crate) fn change(
        &mut self,
        context: RankContext<'_>,
        key: A::Key,
        path: PathKey,
        new: Option<Candidate>,
    ) -> Delta {
        let id = match &new {
            Some(_) => self.entries.id_or_insert(key),
            None => match self.entries.id(&key) {
                Some(id) => id,
                None => return Delta::default(),
            },
        };
        let Some(entry) = self.entries.by_id_mut(id) else { return Delta::default() };
        let was_empty = entry.is_empty();
        let delta = if entry.is_alone(path) {
            let before = entry.best().map(Candidate::identity);
            let delta = entry.put_alone(new);
            self.marks.settle(id, key, entry, before.as_slice(), &mut self.groups);
            delta
        } else {
            let before = self.marks.remember(entry);
            let delta = entry.replace(path, new);
            entry.rank(context);
            self.marks.settle(id, key, entry, &before, &mut self.groups);
            self.marks.before = before;
            delta
        };
        match (was_empty, entry.is_empty()) {
            (true, false) => self.entries.note_filled(key),
            (false, true) => self.entries.note_emptied(id),
            _ => {}
        }
        delta
    }

    /// Whether there is such a path to a prefix and it may be used.
    pub(crate) fn uses(&self, key: A::Key, path: PathKey) -> bool {
        let candidate = self.entries.get(&key).and_then(|entry| entry.candidates.at(path));
        candidate.is_some_and(|candidate| candidate.used.is_some())
    }

    /// The epoch of a path to a prefix.
    pub(crate) fn epoch_of(&self, key: A::Key, path: PathKey) -> Option<u8> {
        Some(self.entries.get(&key)?.candidates.at(path)?.epoch)
    }

    /// Whether a path would be one more than its source may have to a prefix. Stale ones do not count,
    /// as long as they are not many: a peer that restarts again and again may have new identifiers each
    /// time.
    pub(crate) fn is_crowded(&self, key: A::Key, path: PathKey, epoch: u8) -> bool {
        let candidates = self.entries.get(&key).map(Entry::candidates).unwrap_or_default();
        let mut there = candidates.iter().filter(|c| c.source == path.source);
        let (all, fresh) = (there.clone(), there.clone().filter(|c| c.epoch == epoch));
        match there.find(|c| c.is_at(path)) {
            Some(known) => known.epoch != epoch && fresh.count() >= PATHS_A_PREFIX_MAX,
            None => fresh.count() >= PATHS_A_PREFIX_MAX || all.count() >= STALE_PATHS_A_PREFIX_MAX,
        }
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
        for id in (0..self.entries.ids_end()).map(RouteId::at) {
            let Some(key) = self.entries.key(id) else { continue };
            let Some(entry) = self.entries.by_id_mut(id) else { continue };
            if !entry.candidates().iter().any(|c| c.source == source) {
                continue;
            }
            let before = marks.remember(entry);
            if let Some(delta) = entry.revise(source, |old| f(key, old)) {
                total.add(delta);
                entry.rank(context);
                marks.settle(id, key, entry, &before, groups);
            }
            marks.before = before;
            if entry.is_empty() {
                self.entries.note_emptied(id);
            }
        }
        total
    }

    /// Ranks everything again, after a change of what ranking looks up.
    pub(crate) fn rank_all(&mut self, context: RankContext<'_>) {
        let (groups, marks) = (&mut self.groups, &mut self.marks);
        for id in (0..self.entries.ids_end()).map(RouteId::at) {
            let Some(key) = self.entries.key(id) else { continue };
            let Some(entry) = self.entries.by_id_mut(id) else { continue };
            let before = marks.remember(entry);
            entry.rank(context);
            marks.settle(id, key, entry, &before, groups);
            marks.before = before;
        }
    }

    /// Frees what prefixes that have gone still take, when nobody has to hear of them any more.
    pub(crate) fn reap(&mut self) {
        let groups = &self.groups;
        let idle = groups.iter().all(Group::has_told_everybody) && !self.fib_pending();
        if self.entries.has_many_gone() || idle && self.entries.has_gone() {
            self.entries.reap(|id| groups.iter().any(|group| group.holds(id)));
        }
    }

    /// Gives back the memory of prefixes that have gone.
    pub(crate) fn shrink(&mut self) {
        self.reap();
        let renumbering = self.entries.close_gaps();
        self.groups.iter_mut().for_each(|group| group.renumber(&renumbering));
        for id in &mut self.marks.fib {
            *id = renumbering.new_id(*id).unwrap_or(*id);
        }
    }

    /// Says that nobody reads changed forwarding entries: they are not noted any more.
    pub(crate) fn ignore_fib(&mut self) {
        self.marks.fib_wanted = false;
        self.take_fib(&Peers::default(), usize::MAX, &mut Vec::new());
    }

    /// Whether [`Table::take_fib`] has something.
    pub(crate) fn fib_pending(&self) -> bool {
        !self.marks.fib.is_empty()
    }

    /// How many changes [`Table::take_fib`] has.
    pub(crate) fn fib_pending_len(&self) -> usize {
        self.marks.fib.len()
    }

    /// Reads up to `max` changed forwarding entries in their latest state.
    pub(crate) fn take_fib(&mut self, peers: &Peers, max: usize, changes: &mut Vec<FibChange>) {
        let count = self.marks.fib.len().min(max);
        for id in self.marks.fib.drain(..count) {
            let Some(key) = self.entries.key(id) else { continue };
            let Some(entry) = self.entries.by_id_mut(id) else { continue };
            entry.fib_queued = false;
            let route = fib_route(peers, entry);
            changes.push(FibChange { prefix: A::prefix(key), route });
        }
        if self.marks.fib.is_empty() {
            self.marks.fib.shrink_to(FIB_QUEUE_KEPT);
        }
    }
}

impl<A: AddressFamily> Marks<A> {
    /// What is selected now, for [`Marks::settle`] after a change.
    fn remember(&mut self, entry: &Entry) -> Vec<Identity> {
        let mut before = std::mem::take(&mut self.before);
        before.clear();
        before.extend(entry.selected().iter().map(Candidate::identity));
        before
    }

    /// Compares with what was selected `before`, and marks what has to be told.
    #[inline]
    fn settle(
        &mut self,
        id: RouteId,
        key: A::Key,
        entry: &mut Entry,
        before: &[Identity],
        groups: &mut [Group<A>],
    ) {
        let is_new = entry.best().map(Candidate::identity) != before.first().copied();
        // Where several paths are told, any of them may be another one.
        let of_interest = |group: &&mut Group<A>| is_new || group.key.paths_max > 0;
        groups.iter_mut().filter(of_interest).for_each(|group| group.mark(id));
        if let Some(watched) = self.watched.as_mut().filter(|_| is_new) {
            watched.push(key);
        }
        if !self.fib_wanted {
            return;
        }
        let now = entry.selected();
        let same = match (before, now) {
            // The usual case without a loop: one route or none, before and after.
            ([] | [_], [] | [_]) => {
                let of =
                    |identity: Option<Identity>| identity.filter(|(by, _)| *by != PeerId::LOCAL);
                of(now.first().map(Candidate::identity)) == of(before.first().copied())
            }
            _ => {
                let now = now.iter().map(Candidate::identity);
                forwarded(now).eq(forwarded(before.iter().copied()))
            }
        };
        if !same && !std::mem::replace(&mut entry.fib_queued, true) {
            self.fib.push_back(id);
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
        let link = peer.link.filter(|_| attributes.next_hop.is_link_local());
        // Two reflectors may show the same next hop: one path is enough.
        let same = |p: &FibPath| (p.next_hop, p.link_local, p.link) == (address, link_local, link);
        if paths.iter().any(same) {
            continue;
        }
        paths.push(FibPath {
            next_hop: address,
            link_local,
            link,
            peer: Arc::clone(&peer.config.name),
            sort: peer.config.sort,
            attributes: Arc::clone(attributes),
        });
    }
    (!paths.is_empty()).then_some(FibRoute { paths })
}

impl Entry {
    /// Whether there is no route.
    pub(crate) fn is_empty(&self) -> bool {
        matches!(self.candidates, Candidates::None)
    }

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
            Candidates::None => 0,
            Candidates::One(candidate) => usize::from(candidate.used.is_some()),
            Candidates::Many(several) => {
                rank(&context, &mut several.0, context.multipath, |_, _| {}).selected
            }
        };
        self.selected = selected.try_into().unwrap_or(u16::MAX);
    }

    /// Whether there is no other path than this one.
    fn is_alone(&self, path: PathKey) -> bool {
        match &self.candidates {
            Candidates::None => true,
            Candidates::One(one) => one.is_at(path),
            Candidates::Many(_) => false,
        }
    }

    /// Puts in, replaces or removes the only path there is.
    fn put_alone(&mut self, new: Option<Candidate>) -> Delta {
        let delta = Delta::of(self.candidates.as_slice().first(), new.as_ref());
        self.selected = new.as_ref().is_some_and(|new| new.used.is_some()).into();
        self.candidates = new.map_or(Candidates::None, Candidates::One);
        delta
    }

    /// Puts in, replaces or removes a path.
    fn replace(&mut self, path: PathKey, new: Option<Candidate>) -> Delta {
        let delta = Delta::of(self.candidates.at(path), new.as_ref());
        self.candidates.replace(path, new);
        delta
    }

    /// Changes or removes the paths of `source` as `f` says; `None` when all stay as they are.
    fn revise(
        &mut self,
        source: PeerId,
        mut f: impl FnMut(&Candidate) -> Option<Candidate>,
    ) -> Option<Delta> {
        let mut total = None;
        let mut revised = |old: &Candidate| {
            let new = f(old);
            if !new.as_ref().is_some_and(|new| new.is_same(old)) {
                total.get_or_insert_with(Delta::default).add(Delta::of(Some(old), new.as_ref()));
            }
            new
        };
        self.candidates = match std::mem::take(&mut self.candidates) {
            Candidates::One(one) if one.source == source => {
                revised(&one).map_or(Candidates::None, Candidates::One)
            }
            Candidates::Many(mut several) => {
                several.0.retain_mut(|candidate| {
                    let new = match candidate.source == source {
                        true => revised(candidate),
                        false => return true,
                    };
                    new.map(|new| *candidate = new).is_some()
                });
                Candidates::of(several)
            }
            others => others,
        };
        total
    }
}

impl Candidates {
    fn as_slice(&self) -> &[Candidate] {
        match self {
            Candidates::None => &[],
            Candidates::One(candidate) => std::slice::from_ref(candidate),
            Candidates::Many(several) => &several.0,
        }
    }

    fn of(mut several: Box<Several>) -> Candidates {
        match several.0.len() {
            0 | 1 => several.0.pop().map_or(Candidates::None, Candidates::One),
            _ => Candidates::Many(several),
        }
    }

    fn at(&self, path: PathKey) -> Option<&Candidate> {
        self.as_slice().iter().find(|c| c.is_at(path))
    }

    fn replace(&mut self, path: PathKey, new: Option<Candidate>) {
        *self = match (std::mem::take(self), new) {
            (Candidates::None, None) => Candidates::None,
            (Candidates::None, Some(new)) => Candidates::One(new),
            (Candidates::One(one), None) if one.is_at(path) => Candidates::None,
            (Candidates::One(one), Some(new)) if one.is_at(path) => Candidates::One(new),
            (Candidates::One(one), None) => Candidates::One(one),
            (Candidates::One(one), Some(new)) => {
                Candidates::Many(Box::new(Several(vec![one, new])))
            }
            (Candidates::Many(mut several), new) => {
                several.0.retain(|c| !c.is_at(path));
                several.0.extend(new);
                Candidates::of(several)
            }
        };
    }
}

impl PathKey {
    /// The only path of a source.
    pub(crate) fn only(source: PeerId) -> PathKey {
        PathKey { source, path_id: 0 }
    }
}

impl Candidate {
    /// The identifier of the path as the peer gave it, 0 where there is none.
    pub(crate) fn path_id(&self) -> u32 {
        if self.has_path_id { self.received.path_id() } else { 0 }
    }

    /// Which of its prefix's candidates it is.
    pub(crate) fn key(&self) -> PathKey {
        PathKey { source: self.source, path_id: self.path_id() }
    }

    fn is_at(&self, path: PathKey) -> bool {
        self.source == path.source && self.path_id() == path.path_id
    }

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
    fn of(old: Option<&Candidate>, new: Option<&Candidate>) -> Delta {
        let received = |candidate: Option<&Candidate>| i32::from(candidate.is_some());
        let accepted = |c: Option<&Candidate>| i32::from(c.is_some_and(|c| c.used.is_some()));
        Delta { received: received(new) - received(old), accepted: accepted(new) - accepted(old) }
    }

    pub(crate) fn add(&mut self, other: Delta) {
        self.received = self.received.saturating_add(other.received);
        self.accepted = self.accepted.saturating_add(other.accepted);
    }
}

/// From so many paths of one peer to one prefix on, stale ones included, no further one is taken in.
const STALE_PATHS_A_PREFIX_MAX: usize = 4 * PATHS_A_PREFIX_MAX;
/// Capacity of an empty queue that is kept for the next changes.
const FIB_QUEUE_KEPT: usize = 4096;
/// Changed prefixes of one family that wait for those who watch: what is told between two batches
/// costs the owner about a millisecond.
const WATCHED_MAX: usize = 512;

#[cfg(test)]
impl Entry {
    /// An entry with a route that nobody may use.
    pub(crate) fn for_test() -> Entry {
        use super::attributes::RouteAttributes;
        use super::verdict::{Verdict, Verdicts};
        use crate::wire::{Origin, PathAttributes};
        let received =
            Arc::new(RouteAttributes::originated(PathAttributes::originated(Origin::Igp)));
        let verdict = Verdicts::default().id(&Verdict::Martian);
        let source = PeerId::LOCAL;
        let candidate =
            Candidate { source, verdict, epoch: 0, has_path_id: false, received, used: None };
        Entry { candidates: Candidates::One(candidate), ..Entry::default() }
    }
}
