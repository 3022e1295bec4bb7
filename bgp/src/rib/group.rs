//! Adj-RIB-Out: update groups.
//!
//! Peers whose messages would be the same are members of one group and family. A change of Loc-RIB
//! marks its prefix in each group, once, however often it changes before it is written; when a member
//! can take octets, the marked prefixes are encoded once and handed to every member that keeps up.
//!
//! ```text
//! Loc-RIB ──mark──► queue ──encode once──► stream ──► member (in stream) ──► socket
//!                     │                      └──────► member (in stream) ──► socket
//!                     └──prefixes──► pending of a member that lags ─encode for it─► socket
//! ```
//!
//! A member that stops reading costs its prefixes in `pending` and nothing more; it is encoded for on
//! its own from what the group has sent, until it has caught up and is in the stream again. A member
//! that joins late starts as one that lags behind by the whole table.

use std::collections::VecDeque;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::ops::Range;
use std::sync::Arc;

use bytes::Bytes;
use foldhash::fast::FixedState;
use hashbrown::{HashMap, HashSet};

use crate::prefix::Family;
use crate::wire::{
    Announcements, NextHop, RefreshKind, RouteRefresh, SessionSort, Withdrawals, end_of_rib,
};

use super::attributes::RouteAttributes;
use super::export::{ExportContext, GroupKey};
use super::family::AddressFamily;
use super::peer::PeerId;
use super::table::Entries;

/// Messages for one peer, shared with all that get the same.
#[derive(Clone, Debug)]
pub struct Output {
    /// Whom it is for.
    pub peer: PeerId,
    /// What to write.
    pub chunk: Arc<Chunk>,
}

/// Encoded messages in the order in which they have to be written.
#[derive(Debug, Default)]
pub struct Chunk {
    /// The messages.
    pub messages: Vec<WireMessage>,
    /// Octets of all messages.
    pub octets: usize,
}

/// One encoded message.
#[derive(Clone, Debug)]
pub struct WireMessage {
    /// The whole message.
    pub bytes: Bytes,
    /// Where the session's own next hop has to be written, 4 octets of an IPv4 address or 16 of an
    /// IPv6 one (also for IPv4 routes, RFC 8950); `None` when the message goes out as it is.
    pub next_hop: Option<Range<usize>>,
}

/// An update group of one family.
#[derive(Debug)]
pub(crate) struct Group<A: AddressFamily> {
    pub(crate) key: GroupKey,
    out: HashMap<A::Key, Out, FixedState>,
    /// Marked prefixes, each once: `Out::queued` says so.
    queue: VecDeque<A::Key>,
    members: Vec<Member<A>>,
    sent: usize,
    sent_by_source: HashMap<PeerId, usize, FixedState>,
}

/// What the group's stream has said about a prefix.
#[derive(Debug, Default)]
struct Out {
    sent: Option<Sent>,
    queued: bool,
    /// To be said again although it is the same route: its source has another identifier.
    repeats: bool,
}

#[derive(Clone, Debug)]
struct Sent {
    attributes: Arc<RouteAttributes>,
    /// This member does not get the route: it is where it came from.
    source: PeerId,
}

#[derive(Debug)]
struct Member<A: AddressFamily> {
    peer: PeerId,
    /// What a member that lags has not been told yet; `None` in the stream.
    pending: Option<Pending<A>>,
    /// The initial routes have not been followed by End-of-RIB yet.
    owes_end_of_rib: bool,
    /// It came from another group with what it knew there. What is queued goes into the stream before
    /// it is told anything: else it would be told to forget what it is about to be told again.
    moved: bool,
    /// Everything is wanted again once what is pending has been told: however often a peer asks
    /// meanwhile, the table is walked once for each time that it has taken all of it.
    wants_refresh: bool,
}

#[derive(Debug)]
struct Pending<A: AddressFamily> {
    queue: VecDeque<A::Key>,
    known: HashSet<A::Key, FixedState>,
}

/// Routes to announce with equal attributes, and routes to withdraw.
#[derive(Debug)]
struct Batch<A: AddressFamily> {
    announce: HashMap<(usize, PeerId), Bucket<A>, FixedState>,
    withdraw: Vec<A::Key>,
    /// Withdrawals for the new source alone, of what it had from another one.
    withdraw_from: HashMap<PeerId, Vec<A::Key>, FixedState>,
}

#[derive(Debug)]
struct Bucket<A: AddressFamily> {
    attributes: Arc<RouteAttributes>,
    keys: Vec<A::Key>,
}

impl<A: AddressFamily> Group<A> {
    /// A group whose first members will be told everything that `entries` holds.
    pub(crate) fn new(key: GroupKey, entries: &Entries<A>) -> Group<A> {
        let hasher = entries.hasher().clone();
        let mut group = Group {
            key,
            out: HashMap::with_hasher(hasher.clone()),
            queue: VecDeque::new(),
            members: Vec::new(),
            sent: 0,
            sent_by_source: HashMap::with_hasher(hasher),
        };
        group.mark_all(entries);
        group
    }

    /// Notes that the best route to `key` has changed.
    pub(crate) fn mark(&mut self, key: A::Key) {
        let out = self.out.entry(key).or_default();
        if !std::mem::replace(&mut out.queued, true) {
            self.queue.push_back(key);
        }
    }

    /// Notes that routes of `source` are written differently: its identifier, which stands in
    /// ORIGINATOR_ID, has changed.
    pub(crate) fn repeat(&mut self, source: PeerId) {
        if self.key.sort == SessionSort::Ebgp {
            return;
        }
        for (key, out) in &mut self.out {
            if out.sent.as_ref().is_some_and(|sent| sent.source == source) {
                out.repeats = true;
                if !std::mem::replace(&mut out.queued, true) {
                    self.queue.push_back(*key);
                }
            }
        }
    }

    /// Notes that every route may be exported differently.
    pub(crate) fn mark_all(&mut self, entries: &Entries<A>) {
        for (key, entry) in entries {
            if entry.best().is_some() {
                self.mark(*key);
            }
        }
    }

    /// Adds a member that knows nothing yet, or at most what `known` lists from a former group.
    pub(crate) fn join(&mut self, peer: PeerId, known: Vec<A::Key>, owes_end_of_rib: bool) {
        let mut pending = self.all_for(peer);
        let moved = !known.is_empty();
        pending.extend(known);
        let pending = (!pending.queue.is_empty()).then_some(pending);
        self.members.push(Member { peer, pending, owes_end_of_rib, moved, wants_refresh: false });
    }

    /// All that the stream has said to a member.
    fn all_for(&self, peer: PeerId) -> Pending<A> {
        let mut pending = Pending::new(self.out.hasher().clone());
        let is_for = |out: &Out| out.sent.as_ref().is_some_and(|sent| sent.source != peer);
        pending.extend(self.out.iter().filter(|(_, out)| is_for(out)).map(|(key, _)| *key));
        pending
    }

    /// Removes a member and says what it may have been told.
    pub(crate) fn leave(&mut self, peer: PeerId) -> Option<Vec<A::Key>> {
        let index = self.members.iter().position(|member| member.peer == peer)?;
        let member = self.members.swap_remove(index);
        let sent = self.out.iter().filter(|(_, out)| out.sent.is_some()).map(|(key, _)| *key);
        Some(sent.chain(member.pending.into_iter().flat_map(|p| p.queue)).collect())
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

    /// Gives back the memory of prefixes that have gone.
    pub(crate) fn shrink(&mut self) {
        self.out.shrink_to(2 * self.out.len());
    }

    /// Sends everything again to a member that asked for it (RFC 2918).
    pub(crate) fn refresh(&mut self, peer: PeerId) {
        if let Some(member) = self.members.iter_mut().find(|member| member.peer == peer) {
            member.wants_refresh = true;
        }
    }

    /// How many routes a member has been told.
    pub(crate) fn advertised(&self, peer: PeerId) -> Option<usize> {
        self.members.iter().find(|member| member.peer == peer)?;
        Some(self.sent - self.sent_by_source.get(&peer).copied().unwrap_or(0))
    }

    /// What a member has been told about a prefix, or is about to be told when it lags.
    pub(crate) fn advertised_route(
        &self,
        peer: PeerId,
        key: A::Key,
    ) -> Option<&Arc<RouteAttributes>> {
        self.members.iter().find(|member| member.peer == peer)?;
        let sent = self.out.get(&key)?.sent.as_ref()?;
        (sent.source != peer).then_some(&sent.attributes)
    }

    /// The prefixes that a member has been told, in no order.
    pub(crate) fn advertised_keys(&self, peer: PeerId) -> impl Iterator<Item = A::Key> {
        let is_member = self.members.iter().any(|member| member.peer == peer);
        let told = self.out.iter().filter(move |(_, out)| {
            is_member && out.sent.as_ref().is_some_and(|sent| sent.source != peer)
        });
        told.map(|(key, _)| *key)
    }

    /// Where the route comes from that the stream holds for a prefix.
    pub(crate) fn advertised_source(&self, key: A::Key) -> Option<PeerId> {
        Some(self.out.get(&key)?.sent.as_ref()?.source)
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
                self.flush_member(context, index, output);
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

    fn stream_can_move(&self, context: &ExportContext<'_>) -> bool {
        !self.queue.is_empty()
            && self.members.iter().any(|m| (m.pending.is_none() || m.moved) && m.has_room(context))
    }

    fn flush_stream(
        &mut self,
        context: &mut ExportContext<'_>,
        entries: &Entries<A>,
        output: &mut Vec<Output>,
    ) {
        let count = self.queue.len().min(BATCH_PREFIXES_MAX);
        let mut keys: Vec<A::Key> = self.queue.drain(..count).collect();
        let mut batch = Batch::new(self.out.hasher().clone());
        // What was never told is not withdrawn either: a peer that keeps stale routes of ours until
        // End-of-RIB would lose one that is only not announced yet (RFC 4724 section 4.1).
        keys.retain(|key| {
            let best = entries.get(key).and_then(|entry| entry.best());
            let new = best.and_then(|best| {
                let attributes = self.key.export(context, A::prefix(*key), best)?;
                Some(Sent { attributes, source: best.source })
            });
            self.replace_sent(*key, new, &mut batch)
        });
        let chunks = self.encode(context, batch, output);
        for member in &mut self.members {
            if let Some(pending) = &mut member.pending {
                pending.extend(keys.iter().copied());
            } else if member.has_room(context) {
                for (source, chunk) in &chunks {
                    if *source != Some(member.peer) {
                        context.hand_out(member.peer, chunk, output);
                    }
                }
            } else {
                let mut pending = Pending::new(self.out.hasher().clone());
                pending.extend(keys.iter().copied());
                member.pending = Some(pending);
            }
        }
    }

    /// Writes down what the stream now says about a prefix, and puts the difference into `batch`;
    /// false when there is none.
    fn replace_sent(&mut self, key: A::Key, new: Option<Sent>, batch: &mut Batch<A>) -> bool {
        let Some(out) = self.out.get_mut(&key) else { return false };
        out.queued = false;
        if let (Some(new), Some(old), false) = (&new, &out.sent, std::mem::take(&mut out.repeats))
            && new.source == old.source
            && Arc::ptr_eq(&new.attributes, &old.attributes)
        {
            return false;
        }
        let old = std::mem::replace(&mut out.sent, new.clone());
        if let Some(old) = &old {
            self.sent -= 1;
            if let Some(count) = self.sent_by_source.get_mut(&old.source) {
                *count -= 1;
            }
        }
        match new {
            Some(new) => {
                self.sent += 1;
                *self.sent_by_source.entry(new.source).or_default() += 1;
                if old.is_some_and(|old| old.source != new.source) {
                    batch.withdraw_from.entry(new.source).or_default().push(key);
                }
                batch.announce(new, key);
                true
            }
            None => {
                self.out.remove(&key);
                if old.is_some() {
                    batch.withdraw.push(key);
                }
                old.is_some()
            }
        }
    }

    /// Encodes for one member that lags, and takes it back into the stream when it has caught up.
    fn flush_member(
        &mut self,
        context: &mut ExportContext<'_>,
        index: usize,
        output: &mut Vec<Output>,
    ) {
        loop {
            let Some(member) = self.members.get_mut(index) else { return };
            let peer = member.peer;
            if !member.has_room(context) {
                return;
            }
            // RFC 7313 section 4: no BoRR before the initial End-of-RIB.
            let may_refresh = !member.owes_end_of_rib || !context.marks_refresh(peer);
            if member.pending.is_none() && may_refresh && std::mem::take(&mut member.wants_refresh)
            {
                let all = self.all_for(peer);
                context.begin_refresh(peer, A::FAMILY, output);
                if let Some(member) = self.members.get_mut(index) {
                    member.pending = Some(all);
                }
                continue;
            }
            let Some(pending) = &mut member.pending else { break };
            let count = pending.queue.len().min(BATCH_PREFIXES_MAX);
            if count == 0 {
                member.pending = None;
                member.moved = false;
                continue;
            }
            let mut batch = Batch::new(self.out.hasher().clone());
            for key in pending.queue.drain(..count) {
                pending.known.remove(&key);
                match self.out.get(&key).and_then(|out| out.sent.as_ref()) {
                    Some(sent) if sent.source != peer => batch.announce(sent.clone(), key),
                    // It may have been told before it lagged, or not: withdrawing what it does not
                    // have does no harm.
                    _ => batch.withdraw.push(key),
                }
            }
            for (_, chunk) in self.encode(context, batch, output) {
                context.hand_out(peer, &chunk, output);
            }
        }
        let Some(member) = self.members.get_mut(index) else { return };
        if self.queue.is_empty() {
            context.end_refresh(member.peer, A::FAMILY, output);
        }
        if member.owes_end_of_rib && self.queue.is_empty() && !context.deferring {
            member.owes_end_of_rib = false;
            let chunk = Arc::new(Chunk::of(end_of_rib(A::FAMILY)));
            context.hand_out(member.peer, &chunk, output);
        }
    }

    /// Encodes a batch: each chunk with the member that must not get it. What is for a single member
    /// goes to `output` at once.
    fn encode(
        &self,
        context: &mut ExportContext<'_>,
        batch: Batch<A>,
        output: &mut Vec<Output>,
    ) -> Vec<(Option<PeerId>, Arc<Chunk>)> {
        let Batch { announce, mut withdraw, withdraw_from } = batch;
        let mut buckets: Vec<_> = announce.into_iter().collect();
        // By source, so that each source's routes are one chunk; by prefix, so that a run can be
        // repeated whatever the addresses of allocations are.
        buckets
            .sort_unstable_by_key(|((_, source), bucket)| (*source, bucket.keys.first().copied()));
        let mut announcements: Vec<(Option<PeerId>, Chunk)> = Vec::new();
        for ((_, source), bucket) in buckets {
            let path = self.key.path(context.peers, context.router_id, &bucket.attributes, source);
            let own = self.key.shows_own_next_hop(source);
            let next_hop = match (own, A::FAMILY) {
                (false, _) => bucket.attributes.next_hop,
                (true, Family::Ipv4Unicast) if !self.key.ipv4_via_ipv6 => {
                    NextHop::new(IpAddr::V4(Ipv4Addr::UNSPECIFIED))
                }
                (true, _) => NextHop::new(IpAddr::V6(Ipv6Addr::UNSPECIFIED)),
            };
            let prefixes = bucket.keys.iter().map(|key| A::prefix(*key));
            let format = self.key.format;
            match Announcements::new(format, A::FAMILY, &path, next_hop, prefixes) {
                Ok(updates) => {
                    if announcements.last().is_none_or(|(last, _)| *last != Some(source)) {
                        announcements.push((Some(source), Chunk::default()));
                    }
                    let Some((_, chunk)) = announcements.last_mut() else { continue };
                    for update in updates {
                        chunk.push(update.bytes, own.then_some(update.next_hop));
                    }
                }
                Err(error) => {
                    // RFC 8654 section 4: such a route is withdrawn from these peers.
                    tracing::warn!(
                        prefixes = bucket.keys.len(),
                        first = %bucket.keys.first().map(|k| A::prefix(*k).to_string()).unwrap_or_default(),
                        %error,
                        "route is too large for its message and not announced"
                    );
                    withdraw.extend(bucket.keys);
                }
            }
        }
        for (peer, keys) in withdraw_from {
            let lags = self.members.iter().any(|m| m.peer == peer && m.pending.is_some());
            let is_member = self.members.iter().any(|m| m.peer == peer);
            if is_member && !lags {
                let chunk = Arc::new(self.encode_withdrawals(keys));
                context.hand_out(peer, &chunk, output);
            }
        }
        let mut chunks = Vec::with_capacity(1 + announcements.len());
        if !withdraw.is_empty() {
            chunks.push((None, Arc::new(self.encode_withdrawals(withdraw))));
        }
        let announcements = announcements.into_iter();
        chunks.extend(announcements.map(|(source, chunk)| (source, Arc::new(chunk))));
        chunks
    }

    fn encode_withdrawals(&self, keys: Vec<A::Key>) -> Chunk {
        let mut chunk = Chunk::default();
        let prefixes = keys.into_iter().map(A::prefix);
        for bytes in Withdrawals::new(self.key.format, A::FAMILY, prefixes) {
            chunk.push(bytes, None);
        }
        chunk
    }
}

impl<A: AddressFamily> Member<A> {
    fn has_room(&self, context: &ExportContext<'_>) -> bool {
        context.peers.peer(self.peer).is_some_and(|peer| peer.room > 0)
    }
}

impl<A: AddressFamily> Pending<A> {
    fn new(hasher: FixedState) -> Pending<A> {
        Pending { queue: VecDeque::new(), known: HashSet::with_hasher(hasher) }
    }

    fn extend(&mut self, keys: impl IntoIterator<Item = A::Key>) {
        for key in keys {
            if self.known.insert(key) {
                self.queue.push_back(key);
            }
        }
    }
}

impl<A: AddressFamily> Batch<A> {
    fn new(hasher: FixedState) -> Batch<A> {
        Batch {
            announce: HashMap::with_hasher(hasher.clone()),
            withdraw: Vec::new(),
            withdraw_from: HashMap::with_hasher(hasher),
        }
    }

    fn announce(&mut self, route: Sent, key: A::Key) {
        let address = Arc::as_ptr(&route.attributes).addr();
        let bucket = self
            .announce
            .entry((address, route.source))
            .or_insert_with(|| Bucket { attributes: route.attributes, keys: Vec::new() });
        bucket.keys.push(key);
    }
}

impl Chunk {
    /// A chunk of one message that goes out as it is.
    pub fn of(bytes: Bytes) -> Chunk {
        let mut chunk = Chunk::default();
        chunk.push(bytes, None);
        chunk
    }

    fn push(&mut self, bytes: Bytes, next_hop: Option<Range<usize>>) {
        self.octets += bytes.len();
        self.messages.push(WireMessage { bytes, next_hop });
    }
}

impl ExportContext<'_> {
    fn marks_refresh(&self, peer: PeerId) -> bool {
        let session = self.peers.peer(peer).and_then(|peer| peer.session);
        session.is_some_and(|session| session.enhanced_route_refresh)
    }

    /// Says that everything is sent again from here on, to a peer that understands it (RFC 7313).
    fn begin_refresh(&mut self, peer: PeerId, family: Family, output: &mut Vec<Output>) {
        if self.marks_refresh(peer)
            && let Some(state) = self.peers.peer_mut(peer)
        {
            state.family_mut(family).refresh_sent = true;
            self.hand_out_refresh(peer, family, RefreshKind::Begin, output);
        }
    }

    /// Says that everything has been sent, if a refresh has begun.
    fn end_refresh(&mut self, peer: PeerId, family: Family, output: &mut Vec<Output>) {
        if let Some(state) = self.peers.peer_mut(peer)
            && std::mem::take(&mut state.family_mut(family).refresh_sent)
        {
            self.hand_out_refresh(peer, family, RefreshKind::End, output);
        }
    }

    fn hand_out_refresh(
        &mut self,
        peer: PeerId,
        family: Family,
        kind: RefreshKind,
        output: &mut Vec<Output>,
    ) {
        let chunk = Arc::new(Chunk::of(RouteRefresh::new(family, kind).encode()));
        self.hand_out(peer, &chunk, output);
    }

    fn hand_out(&mut self, peer: PeerId, chunk: &Arc<Chunk>, output: &mut Vec<Output>) {
        if let Some(peer) = self.peers.peer_mut(peer) {
            peer.room = peer.room.saturating_sub(chunk.octets);
        }
        output.push(Output { peer, chunk: Arc::clone(chunk) });
    }
}

/// Prefixes that are encoded between two looks at who can take more. With five prefixes an attribute
/// set that is about 64 KiB, a socket buffer's worth.
const BATCH_PREFIXES_MAX: usize = 4096;
/// Capacity of an empty queue that is kept for the next changes.
const QUEUE_KEPT: usize = 4096;
