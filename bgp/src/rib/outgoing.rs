//! From changes of one update group to messages: routes with equal attributes and one source share
//! messages, and all of a source's messages are one [`Chunk`], which its members do not get. The same goes for
//! withdrawals of a few sources; those of many sources share messages, that they stay few.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::ops::Range;
use std::sync::Arc;

use bytes::{Bytes, BytesMut};
use foldhash::fast::FixedState;
use hashbrown::HashMap;

use crate::prefix::{Family, Prefix};
use crate::wire::{
    Announcements, EncodeError, NextHop, Nlri, PathPrefix, RefreshKind, RouteRefresh, Withdrawals,
};

use super::entries::RouteId;
use super::export::{ExportContext, GroupKey};
use super::family::AddressFamily;
use super::peer::PeerId;
use super::sent::Sent;

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

/// Routes that cannot be said to some peers, and were withdrawn from them instead.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Unsayable {
    /// The peers.
    pub peers: Vec<PeerId>,
    /// One of the prefixes.
    pub prefix: Prefix,
    /// How many prefixes there were since this was last asked for.
    pub routes: usize,
    /// What is wrong with this one.
    pub error: EncodeError,
}

/// Routes to announce and to withdraw.
#[derive(Debug)]
pub(super) struct Batch<A: AddressFamily> {
    /// Different attributes, sources and next hops, in the order in which they came.
    buckets: Vec<Sent>,
    /// The place in `buckets` of the attributes at an address, of a source and a sort of next hop.
    known: HashMap<(usize, PeerId, bool), usize, FixedState>,
    /// The bucket of each route, and the identifier of the path where there are several.
    announce: Vec<(usize, RouteId, A::Key, u8)>,
    withdraw: Vec<Withdrawn<A>>,
    /// Withdrawals for the new source alone, of what it had from another one.
    withdraw_from: HashMap<PeerId, Vec<A::Key>, FixedState>,
}

/// A path that is not to be used any more: its prefix, its identifier, and who has given it.
type Withdrawn<A> = (<A as AddressFamily>::Key, u8, PeerId);

/// A batch as messages.
#[derive(Debug, Default)]
pub(super) struct Encoded {
    /// For all, or for all but the source of each.
    pub(super) withdrawals: Vec<(Option<PeerId>, Arc<Chunk>)>,
    /// For all but the source of each.
    pub(super) announcements: Vec<(PeerId, Arc<Chunk>)>,
    /// For one peer each.
    pub(super) withdrawals_from: Vec<(PeerId, Arc<Chunk>)>,
    /// What could not be said.
    pub(super) unsayable: Vec<(RouteId, u8, Prefix, EncodeError)>,
}

impl<A: AddressFamily> Batch<A> {
    pub(super) fn new(hasher: FixedState) -> Batch<A> {
        Batch {
            buckets: Vec::new(),
            known: HashMap::with_hasher(hasher.clone()),
            announce: Vec::new(),
            withdraw: Vec::new(),
            withdraw_from: HashMap::with_hasher(hasher),
        }
    }

    pub(super) fn announce(&mut self, route: &Sent, id: RouteId, key: A::Key) {
        let is_same = |bucket: &Sent| bucket.is_same(route);
        // Routes mostly come in the order in which a peer sent them.
        let last = self.announce.last().map(|(bucket, ..)| *bucket);
        let bucket = match last.filter(|last| self.buckets.get(*last).is_some_and(is_same)) {
            Some(last) => last,
            None => {
                let address = Arc::as_ptr(&route.attributes).addr();
                let new = self.buckets.len();
                let bucket_key = (address, route.source, route.own_next_hop);
                let bucket = *self.known.entry(bucket_key).or_insert(new);
                if bucket == new {
                    self.buckets.push(route.clone());
                }
                bucket
            }
        };
        self.announce.push((bucket, id, key, route.path_id));
    }

    /// Withdraws what `source` has given.
    pub(super) fn withdraw(&mut self, key: A::Key, path_id: u8, source: PeerId) {
        self.withdraw.push((key, path_id, source));
    }

    pub(super) fn withdraw_from(&mut self, peer: PeerId, key: A::Key) {
        self.withdraw_from.entry(peer).or_default().push(key);
    }

    pub(super) fn encode(mut self, group: &GroupKey, context: &ExportContext<'_>) -> Encoded {
        let mut encoded = Encoded::default();
        let places = self.place();
        let mut order: Vec<usize> = (0..self.buckets.len()).collect();
        // By source, so that each source's routes are one chunk. Otherwise the order is that in which
        // they came, so that a run can be repeated whatever the addresses of allocations are.
        order.sort_by_key(|bucket| self.buckets.get(*bucket).map(|sent| sent.source));
        let mut writing: Option<(PeerId, Writing)> = None;
        // Those of the set that is being written, in one allocation for all sets.
        let mut attributes = Vec::new();
        for bucket in order {
            let (Some(sent), Some(place)) = (self.buckets.get(bucket), places.get(bucket)) else {
                continue;
            };
            let routes = self.announce.get(place.clone()).unwrap_or_default();
            if writing.as_ref().is_none_or(|(source, _)| *source != sent.source) {
                encoded.end_announcements(writing.take());
            }
            let (_, chunk) = writing.get_or_insert_with(|| (sent.source, Writing::default()));
            let written = announce::<A>(group, context, sent, routes, chunk, &mut attributes);
            if let Err(error) = written {
                // RFC 8654 section 4: such a route is withdrawn from these peers.
                let withdrawn = routes.iter().map(|(_, _, key, id)| (*key, *id, sent.source));
                self.withdraw.extend(withdrawn);
                let unsayable = |(_, id, key, path_id): &(_, RouteId, A::Key, u8)| {
                    (*id, *path_id, A::prefix(*key), error)
                };
                encoded.unsayable.extend(routes.iter().map(unsayable));
            }
        }
        encoded.end_announcements(writing);
        for (peer, keys) in self.withdraw_from {
            let paths = keys.into_iter().map(|key| (key, 0));
            encoded.withdrawals_from.push((peer, Arc::new(withdrawals::<A>(group, paths))));
        }
        // By peer, as the map's order is none.
        encoded.withdrawals_from.sort_unstable_by_key(|(peer, _)| *peer);
        encoded.withdrawals = by_source::<A>(self.withdraw)
            .map(|(source, paths)| {
                let paths = paths.into_iter().map(|(key, path_id, _)| (key, path_id));
                (source, Arc::new(withdrawals::<A>(group, paths)))
            })
            .collect();
        encoded
    }

    /// Puts each bucket's routes next to each other, in their order; says where each bucket's are.
    fn place(&mut self) -> Vec<Range<usize>> {
        if !self.announce.is_sorted_by_key(|(bucket, ..)| *bucket) {
            self.announce.sort_by_key(|(bucket, ..)| *bucket);
        }
        let mut places = vec![0..0; self.buckets.len()];
        for (at, (bucket, ..)) in self.announce.iter().enumerate() {
            let Some(place) = places.get_mut(*bucket) else { continue };
            if place.start == place.end {
                place.start = at;
            }
            place.end = at + 1;
        }
        places
    }
}

impl Encoded {
    fn end_announcements(&mut self, writing: Option<(PeerId, Writing)>) {
        if let Some((source, writing)) = writing
            && !writing.messages.is_empty()
        {
            self.announcements.push((source, Arc::new(writing.chunk())));
        }
    }
}

/// A chunk that is being written: all its messages in one allocation.
#[derive(Debug, Default)]
struct Writing {
    octets: BytesMut,
    /// End of each message, and where its next hop is if it is to be patched.
    messages: Vec<(usize, Option<Range<usize>>)>,
}

impl Writing {
    /// Writes messages, in which our own next hop is to be patched or not.
    fn append<I: Iterator<Item: Nlri>>(&mut self, mut updates: Announcements<'_, I>, own: bool) {
        while let Some(update) = updates.append_to(&mut self.octets) {
            self.messages.push((self.octets.len(), own.then_some(update.next_hop)));
        }
    }

    fn chunk(self) -> Chunk {
        let octets = self.octets.len();
        let all = self.octets.freeze();
        let mut start = 0;
        let messages = self.messages.into_iter().map(|(end, next_hop)| {
            let bytes = all.slice(start..end);
            start = end;
            WireMessage { bytes, next_hop }
        });
        Chunk { messages: messages.collect(), octets }
    }
}

fn announce<A: AddressFamily>(
    group: &GroupKey,
    context: &ExportContext<'_>,
    sent: &Sent,
    routes: &[(usize, RouteId, A::Key, u8)],
    writing: &mut Writing,
    buffer: &mut Vec<u8>,
) -> Result<(), EncodeError> {
    let new = group.path(context.peers, context.cluster_id, &sent.attributes, sent.source);
    let attributes = new.write(buffer);
    let own = sent.own_next_hop;
    let next_hop = match (own, A::FAMILY) {
        (false, _) => sent.attributes.next_hop.beyond_its_link(),
        (true, Family::Ipv4Unicast) if !group.ipv4_via_ipv6 => {
            NextHop::new(IpAddr::V4(Ipv4Addr::UNSPECIFIED))
        }
        (true, _) => NextHop::new(IpAddr::V6(Ipv6Addr::UNSPECIFIED)),
    };
    if group.paths_max == 0 {
        let prefixes = routes.iter().map(|(_, _, key, _)| A::prefix(*key));
        let updates = Announcements::new(group.format, A::FAMILY, attributes, next_hop, prefixes)?;
        writing.append(updates, own);
    } else {
        let paths = routes.iter().map(|(_, _, key, path_id)| path::<A>(*key, *path_id));
        let updates = Announcements::new(group.format, A::FAMILY, attributes, next_hop, paths)?;
        writing.append(updates, own);
    }
    Ok(())
}

fn path<A: AddressFamily>(key: A::Key, path_id: u8) -> PathPrefix {
    PathPrefix { prefix: A::prefix(key), path_id: path_id.into() }
}

/// The withdrawals that share messages: those of one source, or of all but the first sources.
fn by_source<A: AddressFamily>(
    mut withdrawn: Vec<Withdrawn<A>>,
) -> impl Iterator<Item = (Option<PeerId>, Vec<Withdrawn<A>>)> {
    // Each in the order in which they came.
    if !withdrawn.is_sorted_by_key(|(.., source)| *source) {
        withdrawn.sort_by_key(|(.., source)| *source);
    }
    let mut apart = 0;
    std::iter::from_fn(move || {
        let (.., source) = *withdrawn.first()?;
        let end = withdrawn.partition_point(|(.., other)| *other == source);
        if end < withdrawn.len() && apart == APART_MAX {
            return Some((None, std::mem::take(&mut withdrawn)));
        }
        apart += 1;
        let behind = withdrawn.split_off(end);
        Some((Some(source), std::mem::replace(&mut withdrawn, behind)))
    })
}

fn withdrawals<A: AddressFamily>(
    group: &GroupKey,
    paths: impl Iterator<Item = (A::Key, u8)>,
) -> Chunk {
    let mut chunk = Chunk::default();
    let mut push = |bytes: Bytes| {
        chunk.octets += bytes.len();
        chunk.messages.push(WireMessage { bytes, next_hop: None });
    };
    if group.paths_max == 0 {
        let prefixes = paths.map(|(key, _)| A::prefix(key));
        Withdrawals::new(group.format, A::FAMILY, prefixes).for_each(&mut push);
    } else {
        let paths = paths.map(|(key, path_id)| path::<A>(key, path_id));
        Withdrawals::new(group.format, A::FAMILY, paths).for_each(&mut push);
    }
    chunk
}

/// Sources in a batch whose withdrawals have messages of their own when there are more than one further source:
/// of a thousand peers that go at once, each would cost the others a message.
const APART_MAX: usize = 8;

impl Chunk {
    /// A chunk of one message that goes out as it is.
    pub fn of(bytes: Bytes) -> Chunk {
        Chunk { octets: bytes.len(), messages: vec![WireMessage { bytes, next_hop: None }] }
    }
}

impl ExportContext<'_> {
    pub(super) fn marks_refresh(&self, peer: PeerId) -> bool {
        let session = self.peers.peer(peer).and_then(|peer| peer.session);
        session.is_some_and(|session| session.enhanced_route_refresh)
    }

    /// Says that everything is sent again from here on, to a peer that understands it (RFC 7313).
    pub(super) fn begin_refresh(&mut self, peer: PeerId, family: Family, output: &mut Vec<Output>) {
        if self.marks_refresh(peer)
            && let Some(state) = self.peers.peer_mut(peer)
        {
            state.family_mut(family).refresh_sent = true;
            self.hand_out_refresh(peer, family, RefreshKind::Begin, output);
        }
    }

    /// Says that everything has been sent, if a refresh has begun.
    pub(super) fn end_refresh(&mut self, peer: PeerId, family: Family, output: &mut Vec<Output>) {
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

    pub(super) fn hand_out(&mut self, peer: PeerId, chunk: &Arc<Chunk>, output: &mut Vec<Output>) {
        if let Some(peer) = self.peers.peer_mut(peer) {
            peer.room = peer.room.saturating_sub(chunk.octets);
            peer.catch_up_room = peer.catch_up_room.saturating_sub(chunk.octets);
        }
        output.push(Output { peer, chunk: Arc::clone(chunk) });
    }
}
