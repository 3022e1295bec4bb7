//! From a peer's UPDATEs to candidates: loop checks, then policy.

use std::net::{IpAddr, Ipv4Addr};
use std::sync::Arc;

use foldhash::fast::FixedState;

use crate::config::PrefixLimit;
use crate::policy::{Action, RouteView};
use crate::prefix::{Families, Family, Prefix};
use crate::wire::SessionSort;

use super::attributes::{Interner, RouteAttributes};
use super::batch::Change;
use super::limit::{PrefixLimitExceeded, UpdateOutcome};
use super::peer::{Peer, PeerId};
use super::table::{Candidate, Delta, RankContext};
use super::verdict::{Verdict, VerdictId, Verdicts};
use super::{AddressFamily, Rib, TableOf, UpdateBatch};

pub(super) fn update(
    rib: &mut Rib,
    id: PeerId,
    batch: UpdateBatch,
) -> Result<UpdateOutcome, PrefixLimitExceeded> {
    let mut outcome = UpdateOutcome::default();
    let mut prefixes = batch.prefixes.as_slice();
    for run in batch.runs {
        let Some((these, rest)) = prefixes.split_at_checked(run.prefixes) else { break };
        prefixes = rest;
        let received = match run.change {
            Change::Announce(attributes) => Some(rib.interner.intern(attributes)),
            Change::Withdraw => None,
            Change::EndOfRib(family) => {
                end_of_rib(rib, id, family);
                continue;
            }
        };
        outcome.add(apply(rib, id, received.as_ref(), these)?);
    }
    Ok(outcome)
}

/// Announces or withdraws a run of prefixes.
fn apply(
    rib: &mut Rib,
    id: PeerId,
    received: Option<&Arc<RouteAttributes>>,
    prefixes: &[Prefix],
) -> Result<UpdateOutcome, PrefixLimitExceeded> {
    let Rib { peers, interner, verdicts, ipv4, ipv6, router_id, multipath, .. } = rib;
    let Some(peer) = peers.peer(id) else { return Ok(UpdateOutcome::default()) };
    let context = RankContext { peers, multipath: *multipath };
    let looped = received.and_then(|received| loop_verdict(peer, *router_id, received));
    let mut deltas = [Delta::default(); 2];
    let [delta4, delta6] = &mut deltas;
    let drops_from = peer.config.prefix_limit.and_then(PrefixLimit::drops_from);
    let mut dropped = [0_u32; 2];
    for prefix in prefixes {
        let state = peer.family(prefix.family());
        if let (Some(drops_from), Some(_)) = (drops_from, received) {
            let [dropped4, dropped6] = &mut dropped;
            let (delta, dropped, known): (_, _, &dyn Fn() -> bool) = match prefix {
                Prefix::V4(key) => (&*delta4, dropped4, &|| ipv4.has(*key, id)),
                Prefix::V6(key) => (&*delta6, dropped6, &|| ipv6.has(*key, id)),
            };
            if state.received.saturating_add_signed(delta.received) >= drops_from && !known() {
                *dropped += 1;
                continue;
            }
        }
        let epoch = state.epoch;
        let candidate = received.map(|received| {
            let (verdict, used) =
                judge(peer, looped.as_ref(), *prefix, received, interner, verdicts);
            Candidate { source: id, verdict, epoch, received: Arc::clone(received), used }
        });
        match prefix {
            Prefix::V4(key) => delta4.add(ipv4.change(context, *key, id, candidate)),
            Prefix::V6(key) => delta6.add(ipv6.change(context, *key, id, candidate)),
        }
    }
    let limit = peer.config.prefix_limit;
    let mut outcome = UpdateOutcome::default();
    let mut within = Ok(());
    for ((family, delta), dropped) in Family::ALL.into_iter().zip(deltas).zip(dropped) {
        rib.count(id, family, delta);
        let (Some(limit), Some(peer)) = (limit, rib.peers.peer_mut(id)) else { continue };
        let state = peer.family_mut(family);
        state.dropped = state.dropped.saturating_add(dropped);
        outcome.dropped += dropped;
        let over_limit = state.received > limit.prefixes_max || dropped > 0;
        if over_limit && !state.over_limit {
            outcome.over_limit = outcome.over_limit.with(family);
        }
        // What was dropped is not counted: only fewer prefixes than the limit are an end of it.
        state.over_limit = over_limit || (state.over_limit && state.received >= limit.prefixes_max);
        // What is in the table is counted in both families, also when one of them ends the session.
        within = within.and(limit.check(family, state.received));
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
        peer.family_mut(family).awaits_end_of_rib = false;
    }
}

/// Asks the import policies again for all routes of a peer.
pub(super) fn again<A: TableOf>(rib: &mut Rib, id: PeerId) -> Delta {
    let router_id = rib.router_id;
    // Taken out for the walk: table, peers and these are borrowed at once.
    let mut interner = std::mem::replace(&mut rib.interner, Interner::new(FixedState::default()));
    let mut verdicts = std::mem::take(&mut rib.verdicts);
    let (table, peers, multipath) = A::table(rib);
    let mut delta = Delta::default();
    if let Some(peer) = peers.peer(id) {
        let context = RankContext { peers, multipath };
        delta = table.change_all(context, id, |key, old| {
            let prefix = <A as AddressFamily>::prefix(key);
            let looped = loop_verdict(peer, router_id, &old.received);
            let (verdict, used) =
                judge(peer, looped.as_ref(), prefix, &old.received, &mut interner, &mut verdicts);
            Some(Candidate { verdict, used, ..old.clone() })
        });
    }
    rib.interner = interner;
    rib.verdicts = verdicts;
    delta
}

/// Why a route with these attributes may not be used whatever policy says.
fn loop_verdict(peer: &Peer, router_id: Ipv4Addr, attributes: &RouteAttributes) -> Option<Verdict> {
    // RFC 4271 section 9.1.2: both numbers where local-as differs from the speaker's own.
    if attributes.path.as_path().asns().any(|asn| peer.config.prepend.contains(&asn)) {
        return Some(Verdict::AsLoop);
    }
    if peer.config.sort == SessionSort::Ibgp {
        if attributes.originator_id() == Some(router_id) {
            return Some(Verdict::OriginatorLoop);
        }
        if attributes.path.cluster_list().any(|cluster| cluster == router_id) {
            return Some(Verdict::ClusterLoop);
        }
    }
    let own = peer.session.map(|session| session.addresses).unwrap_or_default();
    let is_own = match attributes.next_hop.address {
        IpAddr::V4(address) => own.ipv4 == Some(address),
        IpAddr::V6(address) => own.ipv6 == Some(address),
    };
    is_own.then_some(Verdict::OwnNextHop)
}

fn judge(
    peer: &Peer,
    looped: Option<&Verdict>,
    prefix: Prefix,
    received: &Arc<RouteAttributes>,
    interner: &mut Interner,
    verdicts: &mut Verdicts,
) -> (VerdictId, Option<Arc<RouteAttributes>>) {
    if let Some(verdict) = looped {
        return (verdicts.id(verdict), None);
    }
    if prefix.is_martian() {
        return (verdicts.id(&Verdict::Martian), None);
    }
    if peer.config.import.is_empty() {
        return match peer.config.default_action() {
            Action::Accept => {
                (verdicts.id(&Verdict::AcceptedByDefault), Some(Arc::clone(received)))
            }
            Action::Reject => (verdicts.id(&Verdict::RejectedByDefault), None),
        };
    }
    let decision = peer.config.import(&RouteView {
        prefix,
        sort: peer.config.route_sort(),
        next_hop: Some(received.next_hop),
        attributes: &received.path,
    });
    let verdict = match (decision.action, decision.by) {
        (Action::Accept, Some(by)) => Verdict::Accepted { policy: by.policy, rule: by.rule },
        (Action::Accept, None) => Verdict::AcceptedByDefault,
        (Action::Reject, Some(by)) => Verdict::Rejected { policy: by.policy, rule: by.rule },
        (Action::Reject, None) => Verdict::RejectedByDefault,
    };
    let used = match (decision.action, decision.attributes) {
        (Action::Reject, _) => None,
        (Action::Accept, None) => Some(Arc::clone(received)),
        (Action::Accept, Some(path)) => {
            Some(interner.intern(Arc::new(RouteAttributes::new(received.next_hop, path))))
        }
    };
    (verdicts.id(&verdict), used)
}
