//! What peers announce for given prefixes or parts of them, whatever became of it: a witness of who
//! uses an address range that asks no policy.
//!
//! Every route of every Adj-RIB-In is kept with its verdict, so a rejected, looped or stale one is
//! found like any other. Three sorts are not kept, and are not found: withdrawn ones, those whose
//! UPDATE was malformed and is treated as a withdrawal (RFC 7606), and those beyond a prefix limit
//! that drops, of which there is only a count ([`super::RouteCounts::dropped`]).
//!
//! The table is a hash of prefixes and not a tree. A block has few possible parts, of which only those
//! lengths are looked up that occur in the table; when these would be more than a quarter of the
//! table's prefixes, what is asked for shares one walk over it.

use std::collections::BTreeSet;
use std::net::{IpAddr, Ipv4Addr};

use serde::{Deserialize, Serialize};

use crate::prefix::{Family, Prefix};

use super::Rib;
use super::attributes::RouteAttributes;
use super::family::AddressFamily;
use super::peer::{Peer, PeerId};
use super::table::{Candidate, Table};

/// A route that a peer announces.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct HeardRoute {
    /// The prefix.
    pub prefix: Prefix,
    /// The peer's name.
    pub peer: String,
    /// Its next hop.
    pub next_hop: IpAddr,
    /// The AS in which it originates; `None` inside our own.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub origin_as: Option<u32>,
    /// An own AS is in AS_PATH, our identifier is its ORIGINATOR_ID or in its CLUSTER_LIST, or our
    /// address its next hop: it may be our own announcement on its way back. Where several routers
    /// share the AS it may also be another one's.
    pub looped: bool,
    /// It is from before the end of the session, and kept (RFC 4724, RFC 7313).
    pub stale: bool,
    /// What import decided.
    pub verdict: String,
}

/// The routes that [`Rib::heard`] found.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct HeardRoutes {
    /// At most [`HEARD_ROUTES_MAX`] that are not looped, and as many that are; by prefix and peer.
    pub routes: Vec<HeardRoute>,
    /// How many more there are.
    pub left_out: usize,
}

impl Rib {
    /// The routes in every Adj-RIB-In to `prefixes` and parts of them. Ask for at most
    /// [`HEARD_PREFIXES_MAX`] at once. It takes at most twice as long as a walk over the table.
    pub fn heard(&self, prefixes: &[Prefix]) -> HeardRoutes {
        let mut found = Found::default();
        self.hear(&self.ipv4, prefixes, &mut found);
        self.hear(&self.ipv6, prefixes, &mut found);
        let Found { mut routes, left_out, .. } = found;
        routes.sort_by(|a, b| (a.prefix, &a.peer).cmp(&(b.prefix, &b.peer)));
        HeardRoutes { routes, left_out }
    }

    fn hear<A: AddressFamily>(&self, table: &Table<A>, asked: &[Prefix], found: &mut Found) {
        // A route inside of two that were asked about is one route.
        let mut keys = BTreeSet::new();
        let mut walk_for = BTreeSet::new();
        let mut budget = (table.entries.ids_end() as u64 / WALK_STEPS_A_LOOKUP).max(LOOKUPS_MIN);
        for outer in asked.iter().filter(|outer| outer.family() == A::FAMILY) {
            let lengths = || (outer.len()..=A::FAMILY.bits()).filter(|len| table.entries.has(*len));
            let parts = |len| 1_u64.checked_shl(u32::from(len - outer.len()));
            let lookups = lengths().map(parts).try_fold(0, |sum: u64, n| sum.checked_add(n?));
            match lookups.and_then(|lookups| budget.checked_sub(lookups)) {
                Some(rest) => {
                    budget = rest;
                    let parts = lengths().flat_map(|len| parts_of(*outer, len));
                    let known = |key: &A::Key| table.entries.get(key).is_some();
                    keys.extend(parts.filter_map(A::key).filter(known));
                }
                None => drop(walk_for.insert(*outer)),
            }
        }
        if !walk_for.is_empty() {
            let lengths: BTreeSet<u8> = walk_for.iter().map(|outer| outer.len()).collect();
            let is_asked = |prefix: Prefix| {
                let outer = |len: &u8| Prefix::of(prefix.addr(), *len);
                let mut outers = lengths.range(..=prefix.len()).filter_map(outer);
                outers.any(|outer| walk_for.contains(&outer))
            };
            let all = table.entries.iter().map(|(key, _)| *key);
            keys.extend(all.filter(|key| is_asked(A::prefix(*key))));
        }
        for key in keys {
            let candidates = table.entries.get(&key).map(|entry| entry.candidates());
            for candidate in candidates.unwrap_or_default() {
                if candidate.source != PeerId::LOCAL {
                    self.note_heard(A::prefix(key), candidate, found);
                }
            }
        }
    }

    fn note_heard(&self, prefix: Prefix, candidate: &Candidate, found: &mut Found) {
        let Some(peer) = self.peers.peer(candidate.source) else { return };
        let looped = is_looped(peer, self.router_id, self.cluster_id, &candidate.received);
        let count = if looped { &mut found.looped } else { &mut found.straight };
        if *count >= HEARD_ROUTES_MAX {
            found.left_out += 1;
            return;
        }
        *count += 1;
        let verdict = self.verdicts.verdict(candidate.verdict);
        found.routes.push(HeardRoute {
            prefix,
            peer: peer.config.name.to_string(),
            next_hop: candidate.received.next_hop.address,
            origin_as: candidate.received.path.origin_as(),
            looped,
            stale: peer.family(prefix.family()).epoch != candidate.epoch,
            verdict: verdict.map(ToString::to_string).unwrap_or_default(),
        });
    }
}

/// Looped routes never take the place of those that speak for somebody else.
#[derive(Default)]
struct Found {
    routes: Vec<HeardRoute>,
    looped: usize,
    straight: usize,
    left_out: usize,
}

/// Whether a route may have begun here. Unlike in import it does not matter how often an own AS may be
/// in AS_PATH, nor over which sort of session the route came.
fn is_looped(
    peer: &Peer,
    router_id: Ipv4Addr,
    cluster_id: Ipv4Addr,
    received: &RouteAttributes,
) -> bool {
    let path = &received.path;
    let own = peer.session.map(|session| session.addresses).unwrap_or_default();
    let is_own_next_hop = match received.next_hop.address {
        IpAddr::V4(address) => own.ipv4 == Some(address),
        IpAddr::V6(address) => own.ipv6 == Some(address),
    };
    path.as_path().asns().any(|asn| peer.config.prepend.contains(&asn))
        || received.originator_id() == Some(router_id)
        || path.cluster_list().any(|cluster| cluster == cluster_id)
        || is_own_next_hop
}

/// The parts of `outer` that are `len` bits long; the caller bounds how many that is.
fn parts_of(outer: Prefix, len: u8) -> impl Iterator<Item = Prefix> {
    let count = 1_u64.checked_shl(u32::from(len - outer.len())).unwrap_or(0);
    (0..count).filter_map(move |number| {
        let address = match outer.addr() {
            IpAddr::V4(address) => {
                let part = u32::try_from(number).ok()?;
                let shift = u32::from(Family::Ipv4Unicast.bits() - len);
                IpAddr::V4(Ipv4Addr::from_bits(
                    address.to_bits() | part.checked_shl(shift).unwrap_or(0),
                ))
            }
            IpAddr::V6(address) => {
                let shift = u32::from(Family::Ipv6Unicast.bits() - len);
                let part = u128::from(number).checked_shl(shift).unwrap_or(0);
                IpAddr::V6((address.to_bits() | part).into())
            }
        };
        Prefix::of(address, len)
    })
}

/// Prefixes that one question may name.
pub const HEARD_PREFIXES_MAX: usize = 256;
/// Routes of one answer that are not looped, and as many that are.
pub const HEARD_ROUTES_MAX: usize = 1024;
/// Steps of a walk that take as long as a look-up, which misses the cache. A walk over a million
/// prefixes takes 20 ms.
const WALK_STEPS_A_LOOKUP: u64 = 4;
/// Look-ups that nobody needs to save: below a tenth of a millisecond.
const LOOKUPS_MIN: u64 = 1024;
