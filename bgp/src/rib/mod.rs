//! The routing information base: what was learned, what is best, what each peer and the kernel are
//! to be told. No IO and no clock.
//!
//! ```text
//!  UpdateBatch ──import: loops, policy──► candidates ──decision──► best ──┬─ mark ─► update groups ─► Output
//!  (one peer)                             (Adj-RIB-In)            (Loc-RIB)│                          (Chunk)
//!  Origination ────────────────────────────────────────────────────────────┴─ mark ─► FibChange
//! ```
//!
//! Input comes in batches, output is pulled: [`Rib::flush`] fills what peers can take, as told by
//! [`Rib::set_room`], and [`Rib::take_fib`] reads changed forwarding entries. Between two pulls a
//! prefix that changes a hundred times is told once.
//!
//! Rejected routes are kept with their verdict, so that a change of policy is applied by evaluation
//! and never needs a session reset.

#![cfg_attr(
    not(test),
    deny(clippy::unwrap_used, clippy::expect_used, clippy::indexing_slicing, clippy::panic)
)]

mod advertised;
mod attributes;
mod batch;
mod decision;
mod entries;
mod export;
mod family;
mod fib;
mod group;
mod heard;
mod import;
mod index;
mod limit;
mod listing;
mod long_lived;
mod loss;
mod origin;
mod outgoing;
mod peer;
mod query;
mod secrets;
mod sent;
mod table;
mod underlay;
mod verdict;

use std::collections::BTreeMap;
use std::net::Ipv4Addr;
use std::sync::Arc;
use std::time::Instant;

use foldhash::fast::FixedState;

use crate::config::{Multipath, Origination};
use crate::prefix::{Families, Family, Prefix};
use crate::wire::{Community, Origin, PathAttributes, SessionSort};

use attributes::Interner;
use export::{ExportContext, GroupKey};
use family::{AddressFamily, Ipv4, Ipv6};
use group::{Group, Known};
use peer::{Peer, PeerFamily, Peers};
use secrets::Secrets;
use table::{Candidate, Delta, PathKey, RankContext, Table};
use verdict::Verdicts;

pub use attributes::{DEFAULT_LOCAL_PREF, RouteAttributes};
pub use batch::UpdateBatch;
pub use decision::Step;
pub use export::ExportVerdict;
pub use fib::{FibChange, FibPath, FibRoute};
pub use heard::{HEARD_PREFIXES_MAX, HEARD_ROUTES_MAX, HeardRoute, HeardRoutes};
pub use limit::{PATHS_A_PREFIX_MAX, PrefixLimitExceeded, UpdateOutcome};
pub use listing::{
    Advertised, AdvertisedRoute, BestChange, NotTold, PrefixKeys, ReceivedRoute, RouteExplanation,
    RouteQuery, TableFilter, TableKind, TableRow, Told,
};
pub use loss::{Leaving, Loss};
pub use origin::{BlockOwner, OriginTable, OriginVerdict};
pub use outgoing::{Chunk, Output, Unsayable, WireMessage};
pub use peer::{PeerId, PeerSession, RibPeerConfig};
pub use query::{CandidateInfo, PrefixFilter, RouteFilter, RouteInfo};
pub use underlay::{LocalNetworks, Underlay};
pub use verdict::Verdict;

/// The routes of a speaker.
#[derive(Debug)]
pub struct Rib {
    router_id: Ipv4Addr,
    cluster_id: Ipv4Addr,
    multipath: Multipath,
    peers: Peers,
    interner: Interner,
    verdicts: Verdicts,
    ipv4: Table<Ipv4>,
    ipv6: Table<Ipv6>,
    originated: BTreeMap<Prefix, Origination>,
    deferral: Deferral,
    /// Peers may come that nobody has named: only the time ends the deferral.
    awaits_unnamed: bool,
    underlay: Option<Arc<dyn Underlay>>,
    origins: Arc<OriginTable>,
}

/// How a RIB begins.
#[derive(Clone, Copy, Debug)]
pub struct RibConfig {
    /// The speaker's BGP identifier.
    pub router_id: Ipv4Addr,
    /// Paths of equal cost in one route.
    pub multipath: Multipath,
    /// Seed of the hash maps, from outside because the core has no randomness.
    pub seed: u64,
    /// When to stop waiting for End-of-RIB markers (RFC 4724 section 4.1).
    pub deferral_until: Instant,
    /// Whether the speaker restarts gracefully: learned routes are then announced only after the
    /// deferral. A first start has nothing to keep and announces at once.
    pub restarting: bool,
}

/// The wait for all peers' routes after the start.
#[derive(Clone, Copy, Debug)]
enum Deferral {
    Waiting {
        until: Instant,
        holds_announcements: bool,
    },
    /// Routes are chosen and told. Peers that restarted at the same moment, and were not waited for,
    /// have not sent all of theirs yet.
    Completing {
        until: Instant,
        restarting: bool,
    },
    Over,
}

/// How many routes of one family are exchanged with a peer.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub struct RouteCounts {
    /// Received and kept, rejected ones included.
    pub received: usize,
    /// Received and accepted by policy.
    pub accepted: usize,
    /// Announcements of this session that were not taken in, beyond the prefix limit.
    pub dropped: usize,
    /// Announced to the peer.
    pub advertised: usize,
    /// Withheld from the peer because no message to it has room for the attributes (RFC 8654).
    #[serde(default)]
    pub too_large: usize,
}

impl Rib {
    /// An empty RIB.
    pub fn new(config: RibConfig) -> Rib {
        let hasher = FixedState::with_seed(config.seed);
        let secrets = Secrets::new(config.seed);
        Rib {
            router_id: config.router_id,
            cluster_id: config.router_id,
            multipath: config.multipath,
            peers: Peers::default(),
            interner: Interner::new(secrets.clone()),
            verdicts: Verdicts::default(),
            ipv4: Table::new(hasher.clone(), secrets.clone()),
            ipv6: Table::new(hasher, secrets),
            originated: BTreeMap::new(),
            deferral: Deferral::Waiting {
                until: config.deferral_until,
                holds_announcements: config.restarting,
            },
            awaits_unnamed: false,
            underlay: None,
            origins: Arc::default(),
        }
    }

    /// Says whether peers may come, after a restart, that are not known by name: what these kept, and what
    /// the kernel has through them, waits for them until the deferral's time is over.
    pub fn await_unnamed(&mut self, awaits: bool) {
        self.awaits_unnamed = awaits;
    }

    /// Changes what all routes depend on; the best paths are worked out again.
    pub fn configure(&mut self, router_id: Ipv4Addr, multipath: Multipath) {
        self.router_id = router_id;
        if std::mem::replace(&mut self.multipath, multipath) != multipath {
            let context = RankContext { peers: &self.peers, multipath };
            self.ipv4.rank_all(context);
            self.ipv6.rank_all(context);
        }
    }

    /// The cluster of which this speaker is a reflector (RFC 4456 section 7), before a peer has a
    /// session; at first the BGP identifier's.
    pub fn set_cluster_id(&mut self, cluster_id: Ipv4Addr) {
        self.cluster_id = cluster_id;
    }

    /// Replaces what is known of the machine's own routes and addresses. Routes are judged again when
    /// an answer about one of them differs: that a pod's interface comes or goes costs nothing here.
    pub fn set_underlay(&mut self, underlay: Arc<dyn Underlay>) {
        let old = self.underlay.replace(Arc::clone(&underlay));
        let reached = |by: &Option<Arc<dyn Underlay>>, next_hop| {
            by.as_ref().is_none_or(|underlay| underlay.reaches(next_hop))
        };
        let same_networks = match &old {
            Some(old) => old.networks() == underlay.networks(),
            None => *underlay.networks() == LocalNetworks::default(),
        };
        let same_next_hops = || {
            let in_use = self.interner.next_hops();
            in_use.into_iter().all(|hop| reached(&old, hop) == underlay.reaches(hop))
        };
        if !(same_networks && same_next_hops()) {
            self.import_all_again();
        }
    }

    /// Replaces what is known of the owners of blocks; routes are judged again when it differs.
    pub fn set_origins(&mut self, origins: &Arc<OriginTable>) {
        if self.origins != *origins {
            self.origins = Arc::clone(origins);
            self.import_all_again();
        }
    }

    fn import_all_again(&mut self) {
        let ids: Vec<PeerId> = self.peers.iter().map(|(id, _)| id).collect();
        ids.into_iter().for_each(|id| self.import_again(id));
    }

    /// Adds a peer without a session.
    pub fn add_peer(&mut self, config: RibPeerConfig) -> PeerId {
        let awaits_end_of_rib = !self.in_sync();
        let lacks_routes = awaits_end_of_rib;
        let family = PeerFamily { awaits_end_of_rib, lacks_routes, ..PeerFamily::default() };
        self.peers.insert(Peer {
            config,
            session: None,
            router_id: Ipv4Addr::UNSPECIFIED,
            link: None,
            families: [family; 2],
            room: 0,
            catch_up_room: 0,
        })
    }

    /// The start's deferral does not wait for this peer: nobody wants a session with it.
    pub fn awaits_nothing_from(&mut self, id: PeerId) {
        let Some(peer) = self.peers.peer_mut(id) else { return };
        for family in &mut peer.families {
            (family.awaits_end_of_rib, family.lacks_routes) = (false, false);
        }
    }

    /// Replaces a peer's configuration. Policies are asked again for what is there; nothing is reset.
    pub fn configure_peer(&mut self, id: PeerId, config: RibPeerConfig) {
        let Some(peer) = self.peers.peer_mut(id) else { return };
        let old = std::mem::replace(&mut peer.config, config);
        if old.imports_differently(&peer.config) {
            self.import_again(id);
        }
        let Some(peer) = self.peers.peer(id) else { return };
        let context = RankContext { peers: &self.peers, multipath: self.multipath };
        if old.address != peer.config.address {
            self.ipv4.rank_all(context);
            self.ipv6.rank_all(context);
        }
        if old.route_reflector_client != peer.config.route_reflector_client {
            // What was learned from this peer may now go elsewhere, or no longer; also what is stale.
            self.ipv4.mark_all();
            self.ipv6.mark_all();
        }
        let Some(session) = peer.session else { return };
        let [ipv4, ipv6] = Family::ALL.map(|family| GroupKey::new(peer, &session, family));
        self.ipv4.regroup(id, &ipv4);
        self.ipv6.regroup(id, &ipv6);
    }

    /// Removes a peer with all its routes.
    pub fn remove_peer(&mut self, id: PeerId) {
        self.peer_down(id, Families::NONE);
        self.peers.remove(id);
    }

    /// Notes that a peer's session is established, and prepares to send it everything.
    pub fn peer_up(&mut self, id: PeerId, session: PeerSession) {
        let Some(peer) = self.peers.peer_mut(id) else { return };
        let identity_changed = peer.router_id != session.router_id;
        // Of a peer that has no routes no rank depends on it, and most of those that come up have none.
        let has_routes = peer.families.iter().any(|family| family.received > 0);
        peer.session = Some(session);
        peer.router_id = session.router_id;
        // Within an AS a link-local next hop may be of another router's link, passed on by mistake.
        let speaks_of_link = peer.config.sort == SessionSort::Ebgp || peer.config.is_link_local();
        peer.link = session.addresses.link.filter(|_| speaks_of_link);
        (peer.room, peer.catch_up_room) = (0, 0);
        for family in Family::ALL {
            let in_use = session.families.contains(family);
            let state = peer.family_mut(family);
            state.awaits_end_of_rib &= in_use && session.promises_end_of_rib;
            state.lacks_routes &= in_use && session.sends_end_of_rib;
            state.dropped = 0;
            (state.over_limit, state.over_paths) = (false, false);
        }
        if identity_changed {
            if has_routes {
                let context = RankContext { peers: &self.peers, multipath: self.multipath };
                self.ipv4.rank_all(context);
                self.ipv6.rank_all(context);
            }
            self.ipv4.groups.iter_mut().for_each(|group| group.repeat(id));
            self.ipv6.groups.iter_mut().for_each(|group| group.repeat(id));
        }
        let stale = Family::ALL.into_iter().filter(|f| !session.stale_kept.contains(*f)).collect();
        self.flush_stale(id, stale);
        let Some(peer) = self.peers.peer(id) else { return };
        let [ipv4, ipv6] = Family::ALL.map(|family| GroupKey::new(peer, &session, family));
        if session.families.contains(Family::Ipv4Unicast) {
            self.ipv4.join(id, &ipv4, Vec::new(), true);
        }
        if session.families.contains(Family::Ipv6Unicast) {
            self.ipv6.join(id, &ipv6, Vec::new(), true);
        }
    }

    /// Notes that a peer's session is over. Its routes of the families in `keep` become stale and
    /// stay, unless they were stale already (RFC 4724 section 4.2); all others go.
    pub fn peer_down(&mut self, id: PeerId, keep: Families) {
        self.peer_down_again(id, keep, Families::NONE);
    }

    /// As [`Rib::peer_down`]; of the families in `keep_older` what was stale already stays, too
    /// (RFC 8538 section 4.1).
    pub fn peer_down_again(&mut self, id: PeerId, keep: Families, keep_older: Families) {
        self.ipv4.drop_member(id);
        self.ipv6.drop_member(id);
        // What a refresh has not brought again was valid until now: it is as stale as the rest.
        let stays = |family: &Family| {
            let state = self.peers.peer(id).map(|peer| *peer.family(*family)).unwrap_or_default();
            state.refreshing || keep_older.contains(*family) && state.restarts < RESTARTS_MAX
        };
        let twice_stale = keep.iter().filter(|family| !stays(family)).collect();
        self.flush_stale(id, twice_stale);
        let Some(peer) = self.peers.peer_mut(id) else { return };
        peer.session = None;
        let mut gone = Families::NONE;
        for family in Family::ALL {
            let state = peer.family_mut(family);
            // Also what the flush of a family that is not kept looks for.
            state.epoch = state.epoch.wrapping_add(1);
            state.restarts = state.restarts.saturating_add(1);
            state.has_stale = state.received > 0;
            state.stale = state.received;
            (state.refreshing, state.refresh_sent) = (false, false);
            if !keep.contains(family) {
                gone = gone.with(family);
            }
        }
        self.flush_stale(id, gone);
    }

    /// Removes the stale routes of a peer.
    pub fn flush_stale(&mut self, id: PeerId, families: Families) {
        if families.contains(Family::Ipv4Unicast) {
            self.sweep::<Ipv4>(id);
        }
        if families.contains(Family::Ipv6Unicast) {
            self.sweep::<Ipv6>(id);
        }
    }

    /// Stale routes of a peer have waited for the restart time: they become a last resort, marked with
    /// LLGR_STALE, but for those that carry NO_LLGR or are not within the configured prefixes, which go
    /// (RFC 9494 section 4.2).
    pub fn long_lived_stale(&mut self, id: PeerId, families: Families) {
        if families.contains(Family::Ipv4Unicast) {
            long_lived::mark::<Ipv4>(self, id);
        }
        if families.contains(Family::Ipv6Unicast) {
            long_lived::mark::<Ipv6>(self, id);
        }
    }

    /// Takes in what a peer announced and withdrew.
    ///
    /// # Errors
    /// The peer's prefix limit is exceeded and ends the session; the rest of the batch was not taken in.
    pub fn update(
        &mut self,
        id: PeerId,
        batch: UpdateBatch,
    ) -> Result<UpdateOutcome, PrefixLimitExceeded> {
        import::update(self, id, batch)
    }

    /// Judges all routes of a peer again, as if they had come anew (a soft reset inbound).
    pub fn import_again(&mut self, id: PeerId) {
        let delta = import::again::<Ipv4>(self, id);
        self.count(id, Family::Ipv4Unicast, delta);
        let delta = import::again::<Ipv6>(self, id);
        self.count(id, Family::Ipv6Unicast, delta);
    }

    /// Sends a family's routes again to a peer that asked (RFC 2918).
    pub fn refresh(&mut self, id: PeerId, family: Family) {
        match family {
            Family::Ipv4Unicast => self.ipv4.groups.iter_mut().for_each(|g| g.refresh(id)),
            Family::Ipv6Unicast => self.ipv6.groups.iter_mut().for_each(|g| g.refresh(id)),
        }
    }

    /// The peer is about to send all routes of a family again (BoRR, RFC 7313 section 4): those that
    /// are there are stale until it has. A refresh that begins while another one goes on, or while
    /// routes wait for End-of-RIB, is one with it.
    pub fn begin_refresh(&mut self, id: PeerId, family: Family) {
        let Some(peer) = self.peers.peer_mut(id) else { return };
        let state = peer.family_mut(family);
        if !state.has_stale {
            state.epoch = state.epoch.wrapping_add(1);
            state.has_stale = state.received > 0;
            state.refreshing = state.has_stale;
        }
    }

    /// The peer has sent all routes of a family again (EoRR): what it has not sent is gone.
    pub fn end_refresh(&mut self, id: PeerId, family: Family) {
        let Some(peer) = self.peers.peer_mut(id) else { return };
        if std::mem::take(&mut peer.family_mut(family).refreshing) {
            self.flush_stale(id, Families::NONE.with(family));
        }
    }

    /// Replaces the set of originated prefixes; only differences are touched.
    pub fn set_originated(&mut self, wanted: &BTreeMap<Prefix, Origination>) {
        let removed: Vec<Prefix> =
            self.originated.keys().filter(|prefix| !wanted.contains_key(prefix)).copied().collect();
        for prefix in removed {
            self.originated.remove(&prefix);
            self.originate(prefix, None);
        }
        for (prefix, origination) in wanted {
            if self.originated.get(prefix) != Some(origination) {
                self.originated.insert(*prefix, origination.clone());
                let attributes = Arc::new(originated_attributes(origination));
                let attributes = self.interner.intern(attributes);
                self.originate(*prefix, Some(attributes));
            }
        }
    }

    fn originate(&mut self, prefix: Prefix, attributes: Option<Arc<RouteAttributes>>) {
        let verdict = self.verdicts.id(&Verdict::AcceptedByDefault);
        let candidate = attributes.map(|attributes| Candidate {
            source: PeerId::LOCAL,
            verdict,
            epoch: 0,
            has_path_id: false,
            received: Arc::clone(&attributes),
            used: Some(attributes),
        });
        let context = RankContext { peers: &self.peers, multipath: self.multipath };
        let path = PathKey::only(PeerId::LOCAL);
        match prefix {
            Prefix::V4(key) => self.ipv4.change(context, key, path, candidate),
            Prefix::V6(key) => self.ipv6.change(context, key, path, candidate),
        };
    }

    /// Says how many octets may be handed out for a peer from now on.
    pub fn set_room(&mut self, id: PeerId, octets: usize) {
        self.set_rooms(id, octets, octets);
    }

    /// As [`Rib::set_room`], with another bound while the peer lags behind its group: messages of the
    /// group are shared, what is encoded for a peer that lags is its alone.
    pub fn set_rooms(&mut self, id: PeerId, octets: usize, catch_up_octets: usize) {
        if let Some(peer) = self.peers.peer_mut(id) {
            (peer.room, peer.catch_up_room) = (octets, catch_up_octets);
        }
    }

    /// Encodes what peers have room for.
    pub fn flush(&mut self, output: &mut Vec<Output>) {
        let deferring = self.holds_announcements();
        let lacking = match self.deferral {
            Deferral::Completing { restarting: true, .. } => {
                Family::ALL.map(|family| self.peers.lacking(family))
            }
            _ => Default::default(),
        };
        let mut context = ExportContext {
            peers: &mut self.peers,
            interner: &mut self.interner,
            cluster_id: self.cluster_id,
            deferring,
            lacking,
        };
        for group in &mut self.ipv4.groups {
            group.flush(&mut context, &self.ipv4.entries, output);
        }
        for group in &mut self.ipv6.groups {
            group.flush(&mut context, &self.ipv6.entries, output);
        }
        // What still has to be told holds attributes of what has gone.
        let idle = self.ipv4.is_told() && self.ipv6.is_told() && !self.fib_pending();
        self.ipv4.reap();
        self.ipv6.reap();
        let prefixes = self.ipv4.entries.len() + self.ipv6.entries.len();
        if self.interner.is_sparse(prefixes) && idle {
            self.interner.shrink(prefixes);
            self.ipv4.shrink();
            self.ipv6.shrink();
        }
    }

    /// Whether [`Rib::take_fib`] has something.
    pub fn fib_pending(&self) -> bool {
        self.ipv4.fib_pending() || self.ipv6.fib_pending()
    }

    /// Says that nobody will read changed forwarding entries: they need not be noted.
    pub fn ignore_fib(&mut self) {
        self.ipv4.ignore_fib();
        self.ipv6.ignore_fib();
    }

    /// Routes that some peers have not been told because no message to them has room, since the last
    /// call.
    pub fn take_unsayable(&mut self) -> Vec<Unsayable> {
        let ipv4 = self.ipv4.groups.iter_mut().filter_map(Group::take_unsayable);
        ipv4.chain(self.ipv6.groups.iter_mut().filter_map(Group::take_unsayable)).collect()
    }

    /// Reads up to `max` changed forwarding entries in their latest state.
    pub fn take_fib(&mut self, max: usize) -> Vec<FibChange> {
        let mut changes = Vec::new();
        // Neither family waits for the other one to come to rest.
        let of_ipv6 = self.ipv6.fib_pending_len().min(max / 2);
        self.ipv4.take_fib(&self.peers, max - of_ipv6, &mut changes);
        self.ipv6.take_fib(&self.peers, max.saturating_sub(changes.len()), &mut changes);
        changes
    }

    /// Whether the start's deferral is over: routes are chosen and told (RFC 4724 section 4.1).
    pub fn in_sync(&self) -> bool {
        !matches!(self.deferral, Deferral::Waiting { .. })
    }

    /// Whether what the RIB says about the forwarding table is complete once [`Rib::take_fib`] has been
    /// drained: peers that restarted at the same moment, which the deferral does not wait for, have
    /// sent their routes, too.
    pub fn is_complete(&self) -> bool {
        matches!(self.deferral, Deferral::Over)
    }

    /// Ends the start's deferral when its time has come or nobody has to be waited for any more.
    pub fn tick(&mut self, now: Instant) {
        let any = |peers: &Peers, awaited: fn(&PeerFamily) -> bool| {
            peers.iter().any(|(_, peer)| peer.families.iter().any(awaited))
        };
        if let Deferral::Waiting { until, holds_announcements } = self.deferral {
            let named = any(&self.peers, |family| family.awaits_end_of_rib);
            if until > now && (named || self.awaits_unnamed) {
                return;
            }
            self.deferral = Deferral::Completing { until, restarting: holds_announcements };
            for (_, peer) in self.peers.iter_mut() {
                peer.families.iter_mut().for_each(|family| family.awaits_end_of_rib = false);
            }
            if holds_announcements {
                self.ipv4.mark_all();
                self.ipv6.mark_all();
            }
        }
        if let Deferral::Completing { until, .. } = self.deferral
            && (until <= now || !any(&self.peers, |family| family.lacks_routes))
        {
            self.deferral = Deferral::Over;
        }
    }

    /// When [`Rib::tick`] has to be called at the latest.
    pub fn next_deadline(&self) -> Option<Instant> {
        match self.deferral {
            Deferral::Waiting { until, .. } | Deferral::Completing { until, .. } => Some(until),
            Deferral::Over => None,
        }
    }

    /// Whether the initial routes have been handed out for a peer, with End-of-RIB, in all families.
    pub fn is_told(&self, id: PeerId) -> bool {
        !self.ipv4.groups.iter().any(|group| group.owes_end_of_rib(id))
            && !self.ipv6.groups.iter().any(|group| group.owes_end_of_rib(id))
    }

    /// How many routes of a family are exchanged with a peer.
    pub fn counts(&self, id: PeerId, family: Family) -> RouteCounts {
        let Some(peer) = self.peers.peer(id) else { return RouteCounts::default() };
        let advertised = match family {
            Family::Ipv4Unicast => self.ipv4.groups.iter().find_map(|g| g.advertised(id)),
            Family::Ipv6Unicast => self.ipv6.groups.iter().find_map(|g| g.advertised(id)),
        };
        let too_large = match family {
            Family::Ipv4Unicast => self.ipv4.groups.iter().find_map(|g| g.too_large(id)),
            Family::Ipv6Unicast => self.ipv6.groups.iter().find_map(|g| g.too_large(id)),
        };
        let state = peer.family(family);
        RouteCounts {
            too_large: too_large.unwrap_or(0),
            received: state.received as usize,
            accepted: state.accepted as usize,
            dropped: state.dropped as usize,
            advertised: advertised.unwrap_or(0),
        }
    }

    /// Prefixes with at least one route, and different attribute values held.
    pub fn sizes(&self) -> (usize, usize) {
        (self.ipv4.entries.len() + self.ipv6.entries.len(), self.interner.len())
    }

    fn holds_announcements(&self) -> bool {
        matches!(self.deferral, Deferral::Waiting { holds_announcements: true, .. })
    }

    /// Removes the routes of former epochs.
    fn sweep<A: TableOf>(&mut self, id: PeerId) {
        let Some(state) = self.peers.peer(id).map(|peer| *peer.family(A::FAMILY)) else { return };
        if !state.has_stale {
            if let Some(peer) = self.peers.peer_mut(id) {
                peer.family_mut(A::FAMILY).restarts = 0;
            }
            return;
        }
        let (table, peers, multipath) = A::table(self);
        let context = RankContext { peers, multipath };
        let delta = table.change_all(context, id, |_, candidate| {
            (candidate.epoch == state.epoch).then(|| candidate.clone())
        });
        self.count(id, A::FAMILY, delta);
        if let Some(peer) = self.peers.peer_mut(id) {
            let state = peer.family_mut(A::FAMILY);
            (state.has_stale, state.stale, state.restarts) = (false, 0, 0);
        }
    }

    fn count(&mut self, id: PeerId, family: Family, delta: Delta) {
        if let Some(peer) = self.peers.peer_mut(id) {
            let state = peer.family_mut(family);
            state.received = state.received.saturating_add_signed(delta.received);
            state.accepted = state.accepted.saturating_add_signed(delta.accepted);
        }
    }
}

impl<A: AddressFamily> Table<A> {
    /// Whether all groups have said what there is to say.
    fn is_told(&self) -> bool {
        self.groups.iter().all(Group::is_told)
    }

    fn mark_all(&mut self) {
        self.groups.iter_mut().for_each(|group| group.mark_all(&self.entries));
    }

    fn join(&mut self, id: PeerId, key: &GroupKey, known: Vec<Known>, owes_end_of_rib: bool) {
        if let Some(group) = self.groups.iter_mut().find(|group| group.key == *key) {
            group.join(id, known, owes_end_of_rib);
        } else {
            let mut group = Group::new(key.clone(), &self.entries);
            group.join(id, known, owes_end_of_rib);
            self.groups.push(group);
        }
    }

    fn drop_member(&mut self, id: PeerId) {
        self.groups.iter_mut().for_each(|group| group.drop_member(id));
        self.groups.retain(|group| !group.is_empty());
    }

    /// Moves a member into the group of `key`, where it is told the difference.
    fn regroup(&mut self, id: PeerId, key: &GroupKey) {
        let Some(group) = self.groups.iter_mut().find(|g| g.advertised(id).is_some()) else {
            return;
        };
        if group.key == *key {
            return;
        }
        let (owes_end_of_rib, wants_refresh) = (group.owes_end_of_rib(id), group.wants_refresh(id));
        let known = group.leave(id).unwrap_or_default();
        self.groups.retain(|group| !group.is_empty());
        self.join(id, key, known, owes_end_of_rib);
        if wants_refresh {
            // It is told everything anyhow, but waits for the marks of RFC 7313.
            self.groups.iter_mut().for_each(|group| group.refresh(id));
        }
    }
}

/// A route's epoch is one of 256.
const RESTARTS_MAX: u8 = 200;

/// The table of a family, with what ranking in it needs.
trait TableOf: AddressFamily + Sized {
    fn table(rib: &mut Rib) -> (&mut Table<Self>, &Peers, Multipath);
}

impl TableOf for Ipv4 {
    fn table(rib: &mut Rib) -> (&mut Table<Ipv4>, &Peers, Multipath) {
        (&mut rib.ipv4, &rib.peers, rib.multipath)
    }
}

impl TableOf for Ipv6 {
    fn table(rib: &mut Rib) -> (&mut Table<Ipv6>, &Peers, Multipath) {
        (&mut rib.ipv6, &rib.peers, rib.multipath)
    }
}

fn originated_attributes(origination: &Origination) -> RouteAttributes {
    let plain = PathAttributes::originated(Origin::Igp);
    let communities: Vec<_> = origination.communities.iter().map(|c| Community(*c)).collect();
    let mut builder = plain.edit();
    builder.add_communities(&communities).local_pref(origination.local_pref);
    RouteAttributes::originated(builder.build())
}
