//! Adj-RIB-Out: update groups.
//!
//! Peers whose messages would be the same are members of one group and family. A change of Loc-RIB
//! marks its prefix in each group, once, however often it changes before it is written; when a member
//! can take octets, the marked prefixes are encoded once and handed to every member that keeps up.
//!
//! ```text
//! Loc-RIB ──mark──► queue ──encode once──► stream ──► member (in stream) ──► socket
//!                     │                      └──────► member (in stream) ──► socket
//!                     └──ids──► pending of a member that lags ─encode for it─► socket
//! ```
//!
//! A member that stops reading costs a bit for each prefix and four octets for each one that has
//! changed meanwhile; it is encoded for on its own from what the group has sent, until it has caught
//! up and is in the stream again. A member that joins late is one that lags by the whole table, which
//! is walked for it and copied nowhere.

use std::collections::VecDeque;
use std::marker::PhantomData;
use std::ops::Range;
use std::sync::Arc;

use foldhash::fast::FixedState;
use hashbrown::HashMap;

use crate::prefix::Prefix;
use crate::wire::{EncodeError, SessionSort, end_of_rib};

use super::entries::{Entries, IdSet, Renumbering, RouteId};
use super::export::{ExportContext, Exported, GroupKey, Memo};
use super::family::AddressFamily;
use super::outgoing::{Batch, Chunk, Output, Unsayable};
use super::peer::PeerId;
use super::sent::{self, PathIds, Sent, SentPath, SentRoutes};
use super::table::PathKey;

/// An update group of one family.
#[derive(Debug)]
pub(crate) struct Group<A: AddressFamily> {
    pub(crate) key: GroupKey,
    /// What the stream has said about each prefix.
    sent: SentRoutes,
    /// Marked prefixes, each once: `queued` says so.
    queue: VecDeque<RouteId>,
    queued: IdSet,
    /// Queued prefixes to be said again although the route is the same: its source has another
    /// identifier.
    repeats: IdSet,
    members: Vec<Member>,
    sent_count: usize,
    sent_by_source: HashMap<PeerId, usize, FixedState>,
    /// Routes that are withdrawn because no message of this group has room for their attributes.
    too_large: IdSet,
    /// What could not be said and has not been reported.
    unsayable: Option<(usize, Prefix, EncodeError)>,
    hasher: FixedState,
    family: PhantomData<A>,
}

#[derive(Debug)]
struct Member {
    peer: PeerId,
    /// What a member that lags has not been told yet; `None` in the stream.
    pending: Option<Pending>,
    /// The initial routes have not been followed by End-of-RIB yet.
    owes_end_of_rib: bool,
    /// It came from another group with what it knew there. What is queued goes into the stream before
    /// it is told anything: else it would be told to forget what it is about to be told again.
    moved: bool,
    /// Everything is wanted again once what is pending has been told: however often a peer asks
    /// meanwhile, the table is walked once for each time that it has taken all of it.
    wants_refresh: bool,
}

/// What a member has to be told from what the stream has said.
#[derive(Debug, Default)]
struct Pending {
    /// All routes with ids in this range, unless they are queued.
    walk: Range<usize>,
    /// Changed prefixes, each once: `queued` says so.
    queue: VecDeque<RouteId>,
    queued: IdSet,
    /// Of groups that tell several paths: those that may be known to the member and are sent no more,
    /// or mean another path now.
    left: HashMap<RouteId, PathIds, FixedState>,
}

/// A prefix that a member has been told, and under which identifiers.
pub(crate) type Known = (RouteId, PathIds);

impl<A: AddressFamily> Group<A> {
    /// A group whose first members will be told everything that `entries` holds.
    pub(crate) fn new(key: GroupKey, entries: &Entries<A>) -> Group<A> {
        let mut group = Group {
            sent: SentRoutes::new(key.paths_max),
            key,
            queue: VecDeque::new(),
            queued: IdSet::default(),
            repeats: IdSet::default(),
            members: Vec::new(),
            sent_count: 0,
            sent_by_source: HashMap::with_hasher(entries.hasher().clone()),
            too_large: IdSet::default(),
            unsayable: None,
            hasher: entries.hasher().clone(),
            family: PhantomData,
        };
        group.mark_all(entries);
        group
    }

    /// Notes that the best route to a prefix has changed.
    pub(crate) fn mark(&mut self, id: RouteId) {
        if self.queued.insert(id) {
            self.queue.push_back(id);
        }
    }

    /// Notes that routes of `source` are written differently: its identifier, which stands in
    /// ORIGINATOR_ID, has changed.
    pub(crate) fn repeat(&mut self, source: PeerId) {
        let is_told = self.sent_by_source.get(&source).is_some_and(|count| *count > 0);
        if self.key.sort == SessionSort::Ebgp || !is_told {
            return;
        }
        for index in 0..self.sent.len() {
            if self.sent.of(RouteId::at(index)).any(|sent| sent.source == source) {
                self.repeats.insert(RouteId::at(index));
                self.mark(RouteId::at(index));
            }
        }
    }

    /// Notes that every route may be exported differently.
    pub(crate) fn mark_all(&mut self, entries: &Entries<A>) {
        for id in (0..entries.ids_end()).map(RouteId::at) {
            if entries.by_id(id).is_some_and(|entry| entry.best().is_some()) {
                self.mark(id);
            }
        }
    }

    /// Adds a member that knows nothing yet, or at most what `known` lists from a former group.
    pub(crate) fn join(&mut self, peer: PeerId, known: Vec<Known>, owes_end_of_rib: bool) {
        let mut pending = self.everything();
        let moved = !known.is_empty();
        for (id, path_ids) in known {
            pending.extend(&[id]);
            pending.note_left(self.key.paths_max, id, path_ids);
        }
        let pending = Some(pending).filter(|pending| !pending.is_empty());
        self.members.push(Member { peer, pending, owes_end_of_rib, moved, wants_refresh: false });
    }

    /// All that the stream has said.
    fn everything(&self) -> Pending {
        let end = if self.sent_count == 0 { 0 } else { self.sent.len() };
        Pending { walk: 0..end, ..Pending::default() }
    }

    /// Removes a member and says what it may have been told.
    pub(crate) fn leave(&mut self, peer: PeerId) -> Option<Vec<Known>> {
        let index = self.members.iter().position(|member| member.peer == peer)?;
        let member = self.members.swap_remove(index);
        let sent = (0..self.sent.len()).map(RouteId::at).filter(|id| self.sent.has(*id));
        let sent = sent.map(|id| (id, self.sent.path_ids(id)));
        let pending = member.pending.into_iter().flat_map(|pending| {
            let left = move |id: RouteId| pending.left.get(&id).copied().unwrap_or_default();
            pending.queue.into_iter().map(move |id| (id, left(id)))
        });
        Some(sent.chain(pending).collect())
    }

    /// Removes a member whose session is over.
    pub(crate) fn drop_member(&mut self, peer: PeerId) {
        self.members.retain(|member| member.peer != peer);
    }

    /// Whether nobody is left.
    pub(crate) fn is_empty(&self) -> bool {
        self.members.is_empty()
    }

    /// Whether the member still waits for its End-of-RIB marker.
    pub(crate) fn owes_end_of_rib(&self, peer: PeerId) -> bool {
        self.members.iter().any(|m| m.peer == peer && m.owes_end_of_rib)
    }

    /// Whether no change waits for the stream.
    pub(crate) fn is_told(&self) -> bool {
        self.queue.is_empty()
    }

    /// Whether no change waits for any member.
    pub(crate) fn has_told_everybody(&self) -> bool {
        self.is_told() && self.members.iter().all(|member| member.pending.is_none())
    }

    /// Whether somebody has to hear of a prefix, or has heard of it and not that it has gone.
    pub(crate) fn holds(&self, id: RouteId) -> bool {
        self.sent.has(id)
            || self.queued.contains(id)
            || self
                .members
                .iter()
                .any(|m| m.pending.as_ref().is_some_and(|p| p.queued.contains(id)))
    }

    /// Takes up new ids, and gives memory back.
    pub(crate) fn renumber(&mut self, renumbering: &Renumbering) {
        self.sent.renumber(renumbering);
        self.queue = self.queue.iter().filter_map(|id| renumbering.new_id(*id)).collect();
        self.queued.renumber(renumbering);
        self.repeats.renumber(renumbering);
        self.too_large.renumber(renumbering);
        for pending in self.members.iter_mut().filter_map(|member| member.pending.as_mut()) {
            let Range { start, end } = pending.walk;
            let first_from = |index| renumbering.first_from(index).index();
            pending.walk = first_from(start)..first_from(end);
            pending.queue = pending.queue.iter().filter_map(|id| renumbering.new_id(*id)).collect();
            pending.queued.renumber(renumbering);
            let left = std::mem::take(&mut pending.left).into_iter();
            let left = left.filter_map(|(id, left)| Some((renumbering.new_id(id)?, left)));
            pending.left = left.collect();
        }
    }

    /// Sends everything again to a member that asked for it (RFC 2918).
    pub(crate) fn refresh(&mut self, peer: PeerId) {
        if let Some(member) = self.members.iter_mut().find(|member| member.peer == peer) {
            member.wants_refresh = true;
        }
    }

    /// Whether a member has asked for everything and the answer has not begun yet.
    pub(crate) fn wants_refresh(&self, peer: PeerId) -> bool {
        self.members.iter().any(|member| member.peer == peer && member.wants_refresh)
    }

    /// How many routes a member has been told.
    pub(crate) fn advertised(&self, peer: PeerId) -> Option<usize> {
        self.members.iter().find(|member| member.peer == peer)?;
        Some(self.sent_count - self.sent_by_source.get(&peer).copied().unwrap_or(0))
    }

    /// How many routes a member is not told because its messages have no room for them.
    pub(crate) fn too_large(&self, peer: PeerId) -> Option<usize> {
        self.members.iter().find(|member| member.peer == peer)?;
        Some(self.too_large.len())
    }

    /// What could not be said since the last call.
    pub(crate) fn take_unsayable(&mut self) -> Option<Unsayable> {
        let (routes, prefix, error) = self.unsayable.take()?;
        let peers = self.members.iter().map(|member| member.peer).collect();
        Some(Unsayable { peers, prefix, routes, error })
    }

    /// What a member has been told about a prefix, or is about to be told when it lags: best first, where
    /// there are several paths.
    pub(crate) fn advertised_routes(
        &self,
        peer: PeerId,
        id: RouteId,
    ) -> impl Iterator<Item = &Sent> {
        let is_member = self.members.iter().any(|member| member.peer == peer);
        self.sent.of(id).filter(move |sent| is_member && sent.source != peer)
    }

    /// Which of a prefix's candidates a path is that the group tells under this identifier.
    pub(crate) fn path_of(&self, id: RouteId, sent: &Sent) -> PathKey {
        let mut paths = self.sent.paths(id).iter();
        let path = paths.find(|path| path.sent.path_id == sent.path_id);
        path.map_or(PathKey::only(sent.source), SentPath::path)
    }

    /// Whether a member has been given a route to a prefix, and no later word about it is to follow.
    pub(crate) fn has_told(&self, peer: PeerId, id: RouteId) -> bool {
        let Some(member) = self.members.iter().find(|member| member.peer == peer) else {
            return false;
        };
        let waits = self.queued.contains(id)
            || member.pending.as_ref().is_some_and(|pending| pending.contains(id));
        !waits && self.advertised_routes(peer, id).next().is_some()
    }

    /// Whether nothing is left that a peer is to be told, End-of-RIB included: until then it keeps what it knew of an
    /// earlier session. Of one that is no member there is nothing.
    pub(crate) fn has_told_all(&self, peer: PeerId) -> bool {
        let member = self.members.iter().find(|member| member.peer == peer);
        member.is_none_or(|member| {
            self.is_told() && member.pending.is_none() && !member.owes_end_of_rib
        })
    }

    /// The prefixes that a member has been told, in no order.
    pub(crate) fn advertised_ids(&self, peer: PeerId) -> impl Iterator<Item = RouteId> {
        let is_told = move |id: &RouteId| self.advertised_routes(peer, *id).next().is_some();
        (0..self.sent.len()).map(RouteId::at).filter(is_told)
    }

    /// Encodes what members can take now.
    pub(crate) fn flush(
        &mut self,
        context: &mut ExportContext<'_>,
        entries: &Entries<A>,
        output: &mut Vec<Output>,
    ) {
        loop {
            while self.stream_can_move(context) {
                self.flush_stream(context, entries, output);
            }
            for index in 0..self.members.len() {
                self.flush_member(context, entries, index, output);
            }
            // A member that has just caught up may be the first one to move the stream.
            if !self.stream_can_move(context) {
                break;
            }
        }
        if self.queue.is_empty() {
            self.queue.shrink_to(QUEUE_KEPT);
        }
    }

    /// Whether what is queued can be encoded. As long as nobody in the stream runs dry, it waits for
    /// those who have no room: who leaves the stream costs an encoding of its own.
    fn stream_can_move(&self, context: &ExportContext<'_>) -> bool {
        let (mut any_room, mut all_room, mut any_dry) = (false, true, false);
        for member in self.members.iter().filter(|m| m.pending.is_none() || m.moved) {
            let has_room = member.has_room(context);
            any_room |= has_room;
            all_room &= has_room;
            any_dry |= context.peers.peer(member.peer).is_some_and(|peer| peer.catch_up_room > 0);
        }
        !self.queue.is_empty() && any_room && (all_room || any_dry)
    }

    fn flush_stream(
        &mut self,
        context: &mut ExportContext<'_>,
        entries: &Entries<A>,
        output: &mut Vec<Output>,
    ) {
        let count = self.queue.len().min(BATCH_PREFIXES_MAX);
        let mut ids: Vec<RouteId> = self.queue.drain(..count).collect();
        self.sent.grow(entries.ids_end());
        let mut batch = Batch::new(self.hasher.clone());
        let mut memos: Vec<Memo> =
            (0..self.key.paths_max.max(1)).map(|_| Memo::new(&self.key)).collect();
        // Identifiers of paths that are sent no more.
        let mut left: Vec<Known> = Vec::new();
        // What was never told is not withdrawn either: a peer that keeps stale routes of ours until
        // End-of-RIB would lose one that is only not announced yet (RFC 4724 section 4.1).
        ids.retain(|id| {
            self.queued.remove(*id);
            let (Some(key), Some(entry)) = (entries.key(*id), entries.by_id(*id)) else {
                return false;
            };
            if self.key.paths_max > 0 {
                let new = self.key.paths(context, A::prefix(key), entry, &mut memos);
                return self.replace_paths(*id, key, new, &mut batch, &mut left);
            }
            let new = entry.best().zip(memos.first_mut()).and_then(|(best, memo)| {
                let Exported { attributes, own_next_hop } =
                    self.key.export(context, A::prefix(key), best, memo)?;
                Some(Sent { attributes, source: best.source, own_next_hop, path_id: 0 })
            });
            self.replace_sent(*id, key, new, &mut batch)
        });
        let encoded = batch.encode(&self.key, context);
        for (id, path_id, prefix, error) in encoded.unsayable {
            self.note_unsayable(id, path_id, prefix, error);
            left.push((id, PathIds::from_iter([path_id])));
        }
        for (peer, chunk) in &encoded.withdrawals_from {
            if self.members.iter().any(|m| m.peer == *peer && m.pending.is_none()) {
                context.hand_out(*peer, chunk, output);
            }
        }
        for member in &mut self.members {
            if member.pending.is_none() && member.has_room(context) {
                for (source, chunk) in &encoded.withdrawals {
                    if *source != Some(member.peer) {
                        context.hand_out(member.peer, chunk, output);
                    }
                }
                for (source, chunk) in &encoded.announcements {
                    if *source != member.peer {
                        context.hand_out(member.peer, chunk, output);
                    }
                }
            } else {
                let pending = member.pending.get_or_insert_default();
                pending.extend(&ids);
                for (id, path_ids) in &left {
                    pending.note_left(self.key.paths_max, *id, *path_ids);
                }
            }
        }
    }

    /// Writes down what the stream now says about a prefix, and puts the difference into `batch`;
    /// false when there is none.
    fn replace_sent(
        &mut self,
        id: RouteId,
        key: A::Key,
        new: Option<Sent>,
        batch: &mut Batch<A>,
    ) -> bool {
        let repeats = self.repeats.remove(id);
        self.too_large.remove(id);
        let Some(sent) = self.sent.one_mut(id) else { return false };
        let is_same = match (&new, &*sent) {
            (Some(new), Some(old)) => new.is_same(old),
            (None, None) => return false,
            _ => false,
        };
        if is_same && !repeats {
            return false;
        }
        let old = std::mem::replace(sent, new).map(|old| old.source);
        let new = sent.as_ref().map(|new| new.source);
        match (sent, old) {
            (Some(sent), _) => batch.announce(sent, id, key),
            (None, Some(old)) => batch.withdraw(key, 0, old),
            (None, None) => {}
        }
        if let (Some(old), Some(new)) = (old, new)
            && old != new
        {
            batch.withdraw_from(new, key);
        }
        self.count(old, new);
        true
    }

    /// As [`Group::replace_sent`], of several paths; what is sent no more is added to `left`.
    fn replace_paths(
        &mut self,
        id: RouteId,
        key: A::Key,
        mut new: Vec<SentPath>,
        batch: &mut Batch<A>,
        left: &mut Vec<Known>,
    ) -> bool {
        let repeats = self.repeats.remove(id);
        self.too_large.remove(id);
        let Some(place) = self.sent.several_mut(id) else { return false };
        let old = std::mem::take(place);
        sent::number(&old, &mut new);
        let before = |path: &SentPath| old.iter().find(|old| old.path() == path.path());
        let is_same = |path: &&SentPath| before(path).is_some_and(|b| b.sent.is_same(&path.sent));
        let mut differs = false;
        for path in new.iter().filter(|path| repeats || !is_same(path)) {
            batch.announce(&path.sent, id, key);
            differs = true;
        }
        let stay: PathIds = new.iter().map(|path| path.sent.path_id).collect();
        let mut gone = PathIds::default();
        for SentPath { sent, .. } in old.iter().filter(|path| !stay.contains(path.sent.path_id)) {
            batch.withdraw(key, sent.path_id, sent.source);
            gone.insert(sent.path_id);
        }
        if !gone.is_empty() {
            left.push((id, gone));
        }
        let sources = |paths: &[SentPath]| -> Vec<PeerId> {
            paths.iter().map(|path| path.sent.source).collect()
        };
        let (was, is) = (sources(&old), sources(&new));
        *place = new.into_boxed_slice();
        is.into_iter().for_each(|source| self.count(None, Some(source)));
        was.into_iter().for_each(|source| self.count(Some(source), None));
        differs || !gone.is_empty()
    }

    fn count(&mut self, old: Option<PeerId>, new: Option<PeerId>) {
        self.sent_count += usize::from(new.is_some());
        self.sent_count -= usize::from(old.is_some());
        if old == new {
            return;
        }
        if let Some(count) = old.and_then(|old| self.sent_by_source.get_mut(&old)) {
            *count -= 1;
        }
        if let Some(new) = new {
            *self.sent_by_source.entry(new).or_default() += 1;
        }
    }

    /// Takes back that the stream has said something about a prefix: it could not.
    fn note_unsayable(&mut self, id: RouteId, path_id: u8, prefix: Prefix, error: EncodeError) {
        let source = self.sent.remove(id, path_id);
        self.count(source, None);
        if matches!(error, EncodeError::TooLarge { .. }) {
            self.too_large.insert(id);
        }
        let (routes, ..) = self.unsayable.get_or_insert((0, prefix, error));
        *routes += 1;
    }

    /// Encodes for one member that lags, and takes it back into the stream when it has caught up.
    fn flush_member(
        &mut self,
        context: &mut ExportContext<'_>,
        entries: &Entries<A>,
        index: usize,
        output: &mut Vec<Output>,
    ) {
        loop {
            let everything = self.everything();
            let Some(member) = self.members.get_mut(index) else { return };
            let peer = member.peer;
            if !member.has_room(context) {
                return;
            }
            // RFC 7313 section 4: no BoRR before the initial End-of-RIB.
            let may_refresh = !member.owes_end_of_rib || !context.marks_refresh(peer);
            if member.pending.is_none() && may_refresh && std::mem::take(&mut member.wants_refresh)
            {
                context.begin_refresh(peer, A::FAMILY, output);
                member.pending = Some(everything);
                continue;
            }
            let Some(pending) = &mut member.pending else { break };
            let mut batch = Batch::<A>::new(self.hasher.clone());
            let some = pending.take_some(&self.sent, peer);
            if some.is_empty() {
                member.pending = None;
                member.moved = false;
                continue;
            }
            for id in some {
                let Some(key) = entries.key(id) else { continue };
                // It may have been told before it lagged, or not: withdrawing what it does not have
                // does no harm.
                let mut withdrawn = match self.key.paths_max {
                    0 => PathIds::ONLY,
                    _ => pending.left.remove(&id).unwrap_or_default(),
                };
                for sent in self.sent.of(id).filter(|sent| sent.source != peer) {
                    batch.announce(sent, id, key);
                    withdrawn.remove(sent.path_id);
                }
                // They are this member's alone, whoever has given the routes.
                let withdrawn = withdrawn.iter();
                withdrawn.for_each(|path_id| batch.withdraw(key, path_id, PeerId::LOCAL));
            }
            // What the stream holds could be said; it can be said again.
            let encoded = batch.encode(&self.key, context);
            let announcements = encoded.announcements.iter().map(|(_, chunk)| chunk);
            let withdrawals = encoded.withdrawals.iter().map(|(_, chunk)| chunk);
            for chunk in withdrawals.chain(announcements) {
                context.hand_out(peer, chunk, output);
            }
        }
        let Some(member) = self.members.get_mut(index) else { return };
        if self.queue.is_empty() {
            context.end_refresh(member.peer, A::FAMILY, output);
        }
        let may_end = !context.deferring && !context.may_miss(&self.key, member.peer, A::FAMILY);
        if member.owes_end_of_rib && self.queue.is_empty() && may_end {
            member.owes_end_of_rib = false;
            let chunk = Arc::new(Chunk::of(end_of_rib(A::FAMILY)));
            context.hand_out(member.peer, &chunk, output);
        }
    }
}

impl Member {
    fn has_room(&self, context: &ExportContext<'_>) -> bool {
        context.peers.peer(self.peer).is_some_and(|peer| match self.pending {
            Some(_) => peer.catch_up_room > 0,
            None => peer.room > 0,
        })
    }
}

impl Pending {
    fn extend(&mut self, ids: &[RouteId]) {
        for id in ids {
            if self.queued.insert(*id) {
                self.queue.push_back(*id);
            }
        }
    }

    /// Notes under which identifiers a queued prefix may be known that it has no more.
    fn note_left(&mut self, paths_max: u8, id: RouteId, path_ids: PathIds) {
        if paths_max > 0 && !path_ids.is_empty() {
            let left = self.left.entry(id).or_default();
            *left = left.union(path_ids);
        }
    }

    fn is_empty(&self) -> bool {
        self.walk.is_empty() && self.queue.is_empty()
    }

    fn contains(&self, id: RouteId) -> bool {
        self.walk.contains(&id.index()) || self.queued.contains(id)
    }

    /// The next prefixes to tell `peer`; none at the end.
    fn take_some(&mut self, sent: &SentRoutes, peer: PeerId) -> Vec<RouteId> {
        let mut some = Vec::new();
        while some.len() < BATCH_PREFIXES_MAX
            && let Some(index) = self.walk.next()
        {
            if sent.of(RouteId::at(index)).any(|sent| sent.source != peer)
                && !self.queued.contains(RouteId::at(index))
            {
                some.push(RouteId::at(index));
            }
        }
        while some.len() < BATCH_PREFIXES_MAX
            && let Some(id) = self.queue.pop_front()
        {
            self.queued.remove(id);
            some.push(id);
        }
        some
    }
}

/// Prefixes that are encoded between two looks at who can take more. With five prefixes an attribute
/// set that is about 64 KiB, a socket buffer's worth.
const BATCH_PREFIXES_MAX: usize = 4096;
/// Capacity of an empty queue that is kept for the next changes.
const QUEUE_KEPT: usize = 4096;
