//! From a peer's UPDATEs to candidates. A route is judged in this order: loops and a next hop that can
//! be reached; sanity (prefixes that nobody forwards, that are the machine's own, a default route that
//! no rule names); its origin; policy.

use std::net::{IpAddr, Ipv4Addr};
use std::sync::Arc;

use smallvec::SmallVec;

use crate::config::PrefixLimit;
use crate::policy::{self, Action, AsPathText, Decision, RouteView, Rule};
use crate::prefix::{Families, Family, Prefix};
use crate::wire::{Community, SessionSort};

use super::attributes::{Interner, RouteAttributes};
use super::batch::Change;
use super::entries::{Entries, TOUCHED_MAX};
use super::family::{Ipv4, Ipv6};
use super::limit::{PrefixLimitExceeded, UpdateOutcome};
use super::origin::{OriginTable, OriginVerdict};
use super::peer::{Peer, PeerId};
use super::table::{Candidate, Delta, PathKey, RankContext};
use super::underlay::{Own, Underlay};
use super::verdict::{Verdict, VerdictId, Verdicts};
use super::{AddressFamily, Rib, TableOf, UpdateBatch, long_lived};

pub(super) fn update(
    rib: &mut Rib,
    id: PeerId,
    batch: UpdateBatch,
) -> Result<UpdateOutcome, PrefixLimitExceeded> {
    let mut outcome = UpdateOutcome::default();
    let mut ahead = Ahead { prefixes: &batch.prefixes, touched: 0 };
    for run in batch.runs {
        let count = run.prefixes;
        let (path_id, received) = match run.change {
            Change::Announce(attributes) => {
                (attributes.path_id(), Some(rib.interner.intern(attributes)))
            }
            Change::Withdraw(path_id) => (path_id, None),
            Change::EndOfRib(family) => {
                end_of_rib(rib, id, family);
                continue;
            }
        };
        let path = PathKey { source: id, path_id };
        outcome.add(apply(rib, path, received.as_ref(), count, &mut ahead)?);
    }
    Ok(outcome)
}

/// The prefixes of a batch that are still to be taken in.
struct Ahead<'b> {
    prefixes: &'b [Prefix],
    /// How many at the front have been touched.
    touched: usize,
}

impl Ahead<'_> {
    /// The next one, which has been touched by now with some of those behind it.
    #[inline]
    fn next(&mut self, ipv4: &Entries<Ipv4>, ipv6: &Entries<Ipv6>) -> Option<Prefix> {
        if self.touched == 0 {
            let some = self.prefixes.get(..TOUCHED_MAX).unwrap_or(self.prefixes);
            ipv4.touch(some.iter().filter_map(|prefix| Ipv4::key(*prefix)));
            ipv6.touch(some.iter().filter_map(|prefix| Ipv6::key(*prefix)));
            self.touched = some.len();
        }
        let (first, rest) = self.prefixes.split_first()?;
        self.prefixes = rest;
        self.touched -= 1;
        Some(*first)
    }
}

/// Announces or withdraws the next `count` prefixes.
fn apply(
    rib: &mut Rib,
    path: PathKey,
    received: Option<&Arc<RouteAttributes>>,
    count: usize,
    ahead: &mut Ahead<'_>,
) -> Result<UpdateOutcome, PrefixLimitExceeded> {
    let Rib {
        peers,
        interner,
        verdicts,
        ipv4,
        ipv6,
        router_id,
        cluster_id,
        multipath,
        underlay,
        origins,
        ..
    } = rib;
    let PathKey { source: id, path_id } = path;
    let Some(peer) = peers.peer(id) else { return Ok(UpdateOutcome::default()) };
    let context = RankContext { peers, multipath: *multipath };
    let (router_id, cluster_id) = (*router_id, *cluster_id);
    let surroundings =
        Surroundings { router_id, cluster_id, underlay: underlay.as_deref(), origins };
    let mut judge = received.map(|received| Judge::new(peer, surroundings, received, interner));
    let mut deltas = [Delta::default(); 2];
    let [delta4, delta6] = &mut deltas;
    let drops_from = peer.config.prefix_limit.and_then(PrefixLimit::drops_from);
    let (mut dropped, mut renewed, mut crowded) = ([0_u32; 2], [0_u32; 2], [0_u32; 2]);
    let receives_paths = peer.session.map(|s| s.add_path.receive).unwrap_or_default();
    for _ in 0..count {
        let Some(prefix) = ahead.next(&ipv4.entries, &ipv6.entries) else { break };
        let state = peer.family(prefix.family());
        let epoch = state.epoch;
        if received.is_some() && receives_paths.contains(prefix.family()) {
            let (crowded, is_crowded) = match prefix {
                Prefix::V4(key) => (&mut crowded[0], ipv4.is_crowded(key, path, epoch)),
                Prefix::V6(key) => (&mut crowded[1], ipv6.is_crowded(key, path, epoch)),
            };
            if is_crowded {
                *crowded += 1;
                continue;
            }
        }
        if drops_from.is_some() || state.stale > 0 {
            let ([dropped4, dropped6], [renewed4, renewed6]) = (&mut dropped, &mut renewed);
            let (delta, dropped, renewed, known) = match prefix {
                Prefix::V4(key) => (&*delta4, dropped4, renewed4, ipv4.epoch_of(key, path)),
                Prefix::V6(key) => (&*delta6, dropped6, renewed6, ipv6.epoch_of(key, path)),
            };
            let stale = state.stale.saturating_sub(*renewed);
            let was_stale = stale > 0 && known.is_some_and(|known| known != epoch);
            let held = state.received.saturating_add_signed(delta.received).saturating_sub(stale);
            let is_full = drops_from.is_some_and(|drops_from| held >= drops_from);
            if is_full && received.is_some() && (was_stale || known.is_none()) {
                *dropped += 1;
                continue;
            }
            *renewed += u32::from(was_stale);
        }
        let candidate = judge.as_mut().map(|judge| {
            let is_used = || match prefix {
                Prefix::V4(key) => ipv4.uses(key, path),
                Prefix::V6(key) => ipv6.uses(key, path),
            };
            let (verdict, used) = judge.prefix(prefix, is_used, interner, verdicts);
            let received = Arc::clone(judge.received);
            Candidate { source: id, verdict, epoch, has_path_id: path_id != 0, received, used }
        });
        match prefix {
            Prefix::V4(key) => delta4.add(ipv4.change(context, key, path, candidate)),
            Prefix::V6(key) => delta6.add(ipv6.change(context, key, path, candidate)),
        }
    }
    drop(judge);
    let limit = peer.config.prefix_limit;
    let mut outcome = UpdateOutcome::default();
    let mut within = Ok(());
    let counts = deltas.into_iter().zip(dropped).zip(renewed).zip(crowded);
    for (family, (((delta, dropped), renewed), crowded)) in Family::ALL.into_iter().zip(counts) {
        rib.count(id, family, delta);
        let Some(peer) = rib.peers.peer_mut(id) else { continue };
        let state = peer.family_mut(family);
        state.stale = state.stale.saturating_sub(renewed);
        state.dropped = state.dropped.saturating_add(dropped).saturating_add(crowded);
        outcome.dropped += dropped + crowded;
        if crowded > 0 && !std::mem::replace(&mut state.over_paths, true) {
            outcome.over_paths = outcome.over_paths.with(family);
        }
        let Some(limit) = limit else { continue };
        let held = state.counted();
        let over_limit = held > limit.prefixes_max || dropped > 0;
        if over_limit && !state.over_limit {
            outcome.over_limit = outcome.over_limit.with(family);
        }
        // What was dropped is not counted: only fewer prefixes than the limit are an end of it.
        state.over_limit = over_limit || (state.over_limit && held >= limit.prefixes_max);
        // What is in the table is counted in both families, also when one of them ends the session.
        within = within.and(limit.check(family, held));
    }
    within.map(|()| outcome)
}

/// The peer has sent everything: what it did not send again is gone (RFC 4724 section 4.2).
fn end_of_rib(rib: &mut Rib, id: PeerId, family: Family) {
    // RFC 7313 section 4: the end of a refresh is EoRR and nothing else.
    if !rib.peers.peer(id).is_some_and(|peer| peer.family(family).refreshing) {
        rib.flush_stale(id, Families::NONE.with(family));
    }
    if let Some(peer) = rib.peers.peer_mut(id) {
        let state = peer.family_mut(family);
        (state.awaits_end_of_rib, state.lacks_routes) = (false, false);
    }
}

/// Asks the import policies again for all routes of a peer.
pub(super) fn again<A: TableOf>(rib: &mut Rib, id: PeerId) -> Delta {
    let (router_id, cluster_id) = (rib.router_id, rib.cluster_id);
    let (origins, underlay) = (Arc::clone(&rib.origins), rib.underlay.clone());
    let surroundings =
        Surroundings { router_id, cluster_id, underlay: underlay.as_deref(), origins: &origins };
    // Taken out for the walk: table, peers and these are borrowed at once.
    let mut interner = rib.interner.take();
    let mut verdicts = std::mem::take(&mut rib.verdicts);
    let (table, peers, multipath) = A::table(rib);
    let mut delta = Delta::default();
    if let Some(peer) = peers.peer(id) {
        let context = RankContext { peers, multipath };
        delta = table.change_all(context, id, |key, old| {
            let prefix = <A as AddressFamily>::prefix(key);
            let mut judge = Judge::new(peer, surroundings, &old.received, &mut interner);
            let is_used = || old.used.is_some();
            let (verdict, used) = judge.prefix(prefix, is_used, &mut interner, &mut verdicts);
            Some(Candidate { verdict, used, ..old.clone() })
        });
    }
    rib.interner = interner;
    rib.verdicts = verdicts;
    delta
}

/// What import has to know besides the route and its peer.
#[derive(Clone, Copy)]
struct Surroundings<'a> {
    router_id: Ipv4Addr,
    cluster_id: Ipv4Addr,
    underlay: Option<&'a dyn Underlay>,
    origins: &'a OriginTable,
}

/// Judges routes with the same attributes from one peer: what the attributes alone decide is decided
/// once.
struct Judge<'a> {
    peer: &'a Peer,
    surroundings: Surroundings<'a>,
    received: &'a Arc<RouteAttributes>,
    /// Why none of them may be used, whatever policy says.
    stopped: Option<Verdict>,
    /// As policy sees them.
    entering: Arc<RouteAttributes>,
    as_path_text: AsPathText,
    /// What the rules that decided so far said. Mostly it is one.
    said: SmallVec<[Said<'a>; 1]>,
    looks_at_prefixes: Option<bool>,
    /// What policy says of every prefix, known with the first one where no rule looks at prefixes.
    settled: Option<(VerdictId, Option<Arc<RouteAttributes>>)>,
}

/// A rule, `None` for the default, its verdict, and the attributes under which a route is used.
type Said<'a> = (Option<&'a Rule>, VerdictId, Option<Arc<RouteAttributes>>);

impl<'a> Judge<'a> {
    fn new(
        peer: &'a Peer,
        surroundings: Surroundings<'a>,
        received: &'a Arc<RouteAttributes>,
        interner: &mut Interner,
    ) -> Judge<'a> {
        let stopped = stop(peer, surroundings, received);
        let entering = match &stopped {
            Some(_) => Arc::clone(received),
            None => enter(peer, received, interner),
        };
        Judge {
            peer,
            surroundings,
            received,
            stopped,
            entering,
            as_path_text: AsPathText::default(),
            said: SmallVec::new(),
            looks_at_prefixes: None,
            settled: None,
        }
    }

    /// The verdict about one prefix, and the attributes under which it is used. The order is that of
    /// the module's description. `is_used` says whether a route of this peer to it is in use now.
    fn prefix(
        &mut self,
        prefix: Prefix,
        is_used: impl Fn() -> bool,
        interner: &mut Interner,
        verdicts: &mut Verdicts,
    ) -> (VerdictId, Option<Arc<RouteAttributes>>) {
        if let Some(verdict) = &self.stopped {
            return (verdicts.id(verdict), None);
        }
        if prefix.is_martian() {
            return (verdicts.id(&Verdict::Martian), None);
        }
        let networks = self.surroundings.underlay.map(|underlay| underlay.networks());
        match networks.and_then(|networks| networks.own(prefix)) {
            Some(Own::Subnet(subnet)) => {
                return (verdicts.id(&Verdict::ConnectedSubnet { subnet }), None);
            }
            Some(Own::Addresses) => return (verdicts.id(&Verdict::OwnAddresses), None),
            None => {}
        }
        let conflict = match self.surroundings.origins.verdict(prefix, self.received) {
            OriginVerdict::Valid | OriginVerdict::NotFound => None,
            OriginVerdict::Invalid { owner } if is_used() => Some(owner),
            OriginVerdict::Invalid { owner } => {
                return (verdicts.id(&Verdict::OriginInvalid { owner }), None);
            }
        };
        let (verdict, used) = self.policy(prefix, interner, verdicts);
        match conflict.filter(|_| used.is_some()) {
            Some(owner) => (verdicts.id(&Verdict::OriginInvalidKept { owner }), used),
            None => (verdict, used),
        }
    }

    /// What policy says.
    fn policy(
        &mut self,
        prefix: Prefix,
        interner: &mut Interner,
        verdicts: &mut Verdicts,
    ) -> (VerdictId, Option<Arc<RouteAttributes>>) {
        if let Some(settled) = self.settled.as_ref().filter(|_| prefix.len() > 0) {
            return settled.clone();
        }
        let said = self.policy_anew(prefix, interner, verdicts);
        let look = || policy::look_at_prefixes(&self.peer.config.import);
        if prefix.len() > 0 && !*self.looks_at_prefixes.get_or_insert_with(look) {
            self.settled = Some(said.clone());
        }
        said
    }

    /// As [`Judge::policy`], without regard to what it has said about other prefixes.
    fn policy_anew(
        &mut self,
        prefix: Prefix,
        interner: &mut Interner,
        verdicts: &mut Verdicts,
    ) -> (VerdictId, Option<Arc<RouteAttributes>>) {
        let config = &self.peer.config;
        let decision = policy::decide_import(
            &config.import,
            config.default_action(),
            &RouteView {
                prefix,
                sort: config.route_sort(),
                peer: Some(&config.name),
                next_hop: Some(self.entering.next_hop),
                attributes: &self.entering.path,
                as_path_text: &self.as_path_text,
            },
        );
        if prefix.len() == 0 && decision.by.is_none() {
            return (verdicts.id(&Verdict::DefaultRouteNotNamed), None);
        }
        let rule = decision.by.map(|by| by.rule);
        let is_same = |said: &Option<&Rule>| match (said, rule) {
            (Some(a), Some(b)) => std::ptr::eq(*a, b),
            (a, b) => a.is_none() && b.is_none(),
        };
        if let Some((_, verdict, used)) = self.said.iter().find(|(by, ..)| is_same(by)) {
            return (*verdict, used.clone());
        }
        let (verdict, used) = self.follow(decision, interner);
        let verdict = verdicts.id(&verdict);
        if self.said.len() < SAID_MAX {
            self.said.push((rule, verdict, used.clone()));
        }
        (verdict, used)
    }

    /// What a decision comes to.
    fn follow(
        &self,
        decision: Decision<'_>,
        interner: &mut Interner,
    ) -> (Verdict, Option<Arc<RouteAttributes>>) {
        match (decision.action, decision.by) {
            (Action::Reject, Some(by)) => (Verdict::Rejected { by: by.to_ref() }, None),
            (Action::Reject, None) => (Verdict::RejectedByDefault, None),
            (Action::Accept, None) => {
                (Verdict::AcceptedByDefault, Some(Arc::clone(&self.entering)))
            }
            (Action::Accept, Some(by)) => {
                let changed = by.rule.set.apply(&self.entering.path);
                let verdict = Verdict::Accepted { by: by.to_ref(), changed: changed.is_some() };
                let used = match changed {
                    None => Arc::clone(&self.entering),
                    Some(path) => {
                        let next_hop = self.entering.next_hop;
                        let used = Arc::new(RouteAttributes::new(next_hop, path));
                        match self.entering.is_long_lived_stale() {
                            // RFC 9494 section 4.2: no policy may take the mark off.
                            true => long_lived::marked(&used, interner),
                            false => interner.intern(used),
                        }
                    }
                };
                (verdict, Some(used))
            }
        }
    }
}

/// Why routes with these attributes may not be used whatever policy says.
fn stop(
    peer: &Peer,
    surroundings: Surroundings<'_>,
    attributes: &RouteAttributes,
) -> Option<Verdict> {
    let config = &peer.config;
    // RFC 4271 section 9.1.2: each of the numbers where local-as differs from the speaker's own.
    let own_as_max = config.own_as_max;
    let path = attributes.path.as_path();
    let looped =
        |own: &u32| path.asns().filter(|asn| asn == own).nth(usize::from(own_as_max)).is_some();
    if config.prepend.iter().any(looped) {
        return Some(Verdict::AsLoop { own_as_max });
    }
    if let Some(len_max) = config.as_path_len_max.filter(|max| attributes.as_path_len() > *max) {
        return Some(Verdict::AsPathTooLong { len_max });
    }
    if config.sort == SessionSort::Ibgp {
        if attributes.originator_id() == Some(surroundings.router_id) {
            return Some(Verdict::OriginatorLoop);
        }
        if attributes.path.cluster_list().any(|cluster| cluster == surroundings.cluster_id) {
            return Some(Verdict::ClusterLoop);
        }
    }
    let own = peer.session.map(|session| session.addresses).unwrap_or_default();
    let is_own = match attributes.next_hop.address {
        IpAddr::V4(address) => own.ipv4 == Some(address),
        IpAddr::V6(address) => own.ipv6 == Some(address),
    };
    if is_own {
        return Some(Verdict::OwnNextHop);
    }
    let next_hop = attributes.next_hop.address;
    let unreachable = surroundings.underlay.is_some_and(|underlay| !underlay.reaches(next_hop));
    unreachable.then_some(Verdict::NextHopUnreachable)
}

/// What changes before policy is asked: local-as, and the preference of what is about to go away.
fn enter(
    peer: &Peer,
    received: &Arc<RouteAttributes>,
    interner: &mut Interner,
) -> Arc<RouteAttributes> {
    let config = &peer.config;
    // RFC 8326 section 4.2 for what an eBGP peer marked; section 4.1 for our own side of a session
    // that is about to end.
    let leaves = config.graceful_shutdown
        || config.sort == SessionSort::Ebgp
            && received.path.has_community(Community::GRACEFUL_SHUTDOWN);
    if !leaves && config.prepend_received.is_none() {
        if received.path_id() == 0 {
            return Arc::clone(received);
        }
        // What is used is shared among the paths, whatever their identifiers.
        let (next_hop, path) = (received.next_hop, Arc::clone(&received.path));
        return interner.intern(Arc::new(RouteAttributes::new(next_hop, path)));
    }
    let mut builder = received.path.edit();
    if leaves {
        builder.local_pref(Some(0));
    }
    if let Some(asn) = config.prepend_received {
        builder.prepend(asn, 1);
    }
    interner.intern(Arc::new(RouteAttributes::new(received.next_hop, builder.build())))
}

/// Rules whose word about the same attributes is kept; the others are asked again.
const SAID_MAX: usize = 8;
