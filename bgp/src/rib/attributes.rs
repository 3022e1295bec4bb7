//! What a route carries besides its prefix, shared among all the routes that carry the same.

use std::collections::BTreeSet;
use std::hash::{Hash, Hasher};
use std::net::{IpAddr, Ipv4Addr};
use std::sync::Arc;

use hashbrown::HashTable;

use crate::wire::{Community, NextHop, Origin, PathAttributes};

use super::secrets::Secrets;

/// The next hop and path attributes of a route. Values are interned: inside one RIB, equal attributes
/// are one allocation.
#[derive(Clone, Debug)]
pub struct RouteAttributes {
    /// Where to; unspecified on a route that this speaker originates.
    pub next_hop: NextHop,
    /// Everything that goes from router to router unchanged.
    pub path: Arc<PathAttributes>,
    scope: CommunityScope,
    long_lived: bool,
    /// Tells routes of one peer to one prefix from each other (RFC 7911); 0 on those that are the only
    /// one, and on what is used of a route. It lies here because here it costs no memory in the routes
    /// of peers that send one path.
    path_id: u32,
}

/// How far the well-known communities let a route travel (RFC 1997), narrowest last.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum CommunityScope {
    Everywhere,
    OwnAs,
    Nowhere,
}

impl RouteAttributes {
    /// Attributes with a next hop.
    pub fn new(next_hop: NextHop, path: impl Into<Arc<PathAttributes>>) -> RouteAttributes {
        let path = path.into();
        let mut scope = CommunityScope::Everywhere;
        let mut long_lived = false;
        for community in path.communities() {
            long_lived |= community == Community::LLGR_STALE;
            scope = scope.max(match community {
                Community::NO_ADVERTISE => CommunityScope::Nowhere,
                Community::NO_EXPORT | Community::NO_EXPORT_SUBCONFED => CommunityScope::OwnAs,
                _ => CommunityScope::Everywhere,
            });
        }
        RouteAttributes { next_hop, path, scope, long_lived, path_id: 0 }
    }

    /// The same attributes of the path with this identifier.
    #[must_use]
    pub fn with_path_id(self, path_id: u32) -> RouteAttributes {
        RouteAttributes { path_id, ..self }
    }

    /// The identifier of the path as the peer gave it (RFC 7911); 0 where there is none.
    pub fn path_id(&self) -> u32 {
        self.path_id
    }

    /// Attributes of a route that this speaker originates.
    pub fn originated(path: impl Into<Arc<PathAttributes>>) -> RouteAttributes {
        RouteAttributes::new(NextHop::new(IpAddr::V4(Ipv4Addr::UNSPECIFIED)), path)
    }

    /// LOCAL_PREF, [`DEFAULT_LOCAL_PREF`] when there is none.
    pub fn local_pref(&self) -> u32 {
        self.path.local_pref().unwrap_or(DEFAULT_LOCAL_PREF)
    }

    /// Length of AS_PATH as the decision process counts it.
    pub fn as_path_len(&self) -> u32 {
        self.path.as_path_len()
    }

    /// MULTI_EXIT_DISC, 0 when there is none (RFC 4271 section 9.1.2.2 c).
    pub fn med(&self) -> u32 {
        self.path.med().unwrap_or(0)
    }

    /// The AS that MED is compared within.
    pub fn neighbour_as(&self) -> Option<u32> {
        self.path.neighbour_as()
    }

    /// ORIGINATOR_ID, if there is one.
    pub fn originator_id(&self) -> Option<Ipv4Addr> {
        self.path.originator_id()
    }

    /// Entries of CLUSTER_LIST.
    pub fn cluster_list_len(&self) -> u32 {
        self.path.cluster_list_len()
    }

    /// ORIGIN.
    pub fn origin(&self) -> Origin {
        self.path.origin()
    }

    /// Whether somebody has waited for long for the peer that announced it: it is a last resort
    /// (LLGR_STALE, RFC 9494 section 4).
    pub fn is_long_lived_stale(&self) -> bool {
        self.long_lived
    }

    pub(crate) fn scope(&self) -> CommunityScope {
        self.scope
    }
}

impl PartialEq for RouteAttributes {
    fn eq(&self, other: &RouteAttributes) -> bool {
        self.next_hop == other.next_hop && self.path_id == other.path_id && self.path == other.path
    }
}

impl Eq for RouteAttributes {}

impl Hash for RouteAttributes {
    fn hash<H: Hasher>(&self, state: &mut H) {
        // In few words: a hash for each UPDATE counts when there are millions.
        let bits = |address| match address {
            IpAddr::V4(address) => u128::from(address.to_bits()),
            IpAddr::V6(address) => address.to_bits(),
        };
        state.write_u128(bits(self.next_hop.address));
        if let Some(link_local) = self.next_hop.link_local {
            state.write_u128(link_local.to_bits());
        }
        if self.path_id != 0 {
            state.write_u32(self.path_id);
        }
        self.path.hash(state);
    }
}

/// Attributes with half of their hash: the table grows, and most others are told apart, without a look at
/// them.
#[derive(Debug)]
struct Interned {
    hash: u32,
    attributes: Arc<RouteAttributes>,
}

/// The attributes in use, each once.
#[derive(Debug)]
pub(crate) struct Interner {
    known: HashTable<Interned>,
    sweep_at: usize,
    /// The most prefixes that there were since the last sweep.
    prefixes_peak: usize,
    secrets: Secrets,
}

impl Interner {
    pub(crate) fn new(secrets: Secrets) -> Interner {
        Interner { known: HashTable::new(), sweep_at: INTERNED_MIN, prefixes_peak: 0, secrets }
    }

    /// Takes everything out, to be put back: for who borrows the rest of the RIB.
    pub(crate) fn take(&mut self) -> Interner {
        let empty = Interner::new(self.secrets.clone());
        std::mem::replace(self, empty)
    }

    /// The one shared value that equals `attributes`.
    pub(crate) fn intern(&mut self, attributes: Arc<RouteAttributes>) -> Arc<RouteAttributes> {
        let hash = self.secrets.hash(&*attributes);
        let is_same = |known: &Interned| known.hash == hash && *known.attributes == *attributes;
        if let Some(known) = self.known.find(spread(hash), is_same) {
            return Arc::clone(&known.attributes);
        }
        if self.known.len() >= self.sweep_at {
            // Amortised: the table doubles between two sweeps.
            self.sweep();
        }
        let interned = Interned { hash, attributes: Arc::clone(&attributes) };
        self.known.insert_unique(spread(hash), interned, |known| spread(known.hash));
        attributes
    }

    /// Whether half of the prefixes have gone since the last [`Interner::shrink`]: without new ones,
    /// their attributes would stay for good.
    pub(crate) fn is_sparse(&mut self, prefixes: usize) -> bool {
        self.prefixes_peak = self.prefixes_peak.max(prefixes);
        self.prefixes_peak >= INTERNED_MIN && prefixes <= self.prefixes_peak / 2
    }

    /// Gives memory back, with so many prefixes left.
    pub(crate) fn shrink(&mut self, prefixes: usize) {
        self.prefixes_peak = prefixes;
        self.sweep();
        self.known.shrink_to(self.sweep_at, |known| spread(known.hash));
    }

    fn sweep(&mut self) {
        self.known.retain(|known| Arc::strong_count(&known.attributes) > 1);
        self.sweep_at = (2 * self.known.len()).max(INTERNED_MIN);
    }

    /// The next hops of all that is known, each once.
    pub(crate) fn next_hops(&self) -> BTreeSet<IpAddr> {
        self.known.iter().map(|known| known.attributes.next_hop.address).collect()
    }

    /// How many different attributes are known, those not used any more and not swept included.
    pub(crate) fn len(&self) -> usize {
        self.known.len()
    }
}

/// The half of a hash that is kept, with its bits where the table looks for them: at both ends.
fn spread(hash: u32) -> u64 {
    u64::from(hash).wrapping_mul(0x9e37_79b9_7f4a_7c15)
}

/// LOCAL_PREF of a route that has none (RFC 4271 leaves it to configuration; all know 100).
pub const DEFAULT_LOCAL_PREF: u32 = 100;
/// Below so many there is nothing to win by sweeping.
const INTERNED_MIN: usize = 1024;
