//! The decision process of RFC 4271 section 9.1.2, with RFC 4456 section 9.
//!
//! Candidates are put into order in place: step after step moves what loses behind what stays. The
//! result is the same in whatever order the candidates came (MED is compared among all candidates
//! of a neighbour AS at once, not pairwise).

use std::net::{IpAddr, Ipv4Addr};

use crate::config::Multipath;
use crate::wire::attribute_type;

use super::attributes::RouteAttributes;

/// How the decision process looks at candidates of type `C`.
pub(crate) trait CandidateView<C> {
    /// The attributes to compare; `None` on a route that may not be used.
    fn attributes<'c>(&self, candidate: &'c C) -> Option<&'c RouteAttributes>;
    /// Where the route comes from.
    fn origin(&self, candidate: &C) -> RouteOrigin;
    /// The identifier of the path among several of its source (RFC 7911).
    fn path_id(&self, candidate: &C) -> u32;
}

/// What the decision process has to know of a route's source.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum RouteOrigin {
    Local,
    Peer { ibgp: bool, router_id: Ipv4Addr, address: IpAddr },
}

/// The step at which a candidate lost against the best one.
#[derive(
    Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, serde::Serialize, serde::Deserialize,
)]
pub enum Step {
    /// It may not be used at all: rejected by policy, or a loop.
    NotEligible,
    /// It is stale for long, and another one is not (RFC 9494 section 4.3).
    LongLivedStale,
    /// The speaker originates the prefix itself.
    Originated,
    /// Lower LOCAL_PREF (RFC 4271 section 9.1.1).
    LocalPref,
    /// Longer AS_PATH (section 9.1.2.2 a).
    AsPathLength,
    /// Higher ORIGIN (b).
    Origin,
    /// Higher MULTI_EXIT_DISC from the same neighbour AS (c).
    Med,
    /// Learned by iBGP where an eBGP route exists (d).
    Ibgp,
    /// Higher BGP identifier or ORIGINATOR_ID (f).
    RouterId,
    /// Longer CLUSTER_LIST (RFC 4456 section 9).
    ClusterListLength,
    /// Higher peer address (g).
    PeerAddress,
    /// Higher path identifier, among several paths of one peer: no RFC says which one is best.
    PathId,
}

/// How many of the ordered candidates are in use.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Ranking {
    /// 0 when none is eligible; else the best one and its equals, which come first.
    pub(crate) selected: usize,
}

/// Orders `candidates`: the best one first, then those that are as good for forwarding (up to
/// `multipath.paths_max` in all), then the others. `lost` hears for each step how many are still in;
/// with `multipath.same_as_path` what is equal but for its AS_PATH is then moved behind what is equal.
pub(crate) fn rank<C, V: CandidateView<C>>(
    view: &V,
    candidates: &mut [C],
    multipath: Multipath,
    mut lost: impl FnMut(Step, usize),
) -> Ranking {
    let mut alive = keep(candidates, |c| view.attributes(c).is_some());
    lost(Step::NotEligible, alive);
    if alive == 0 {
        return Ranking::default();
    }
    if alive > 1 {
        alive = least_of(view, candidates, alive, |a| u64::from(a.is_long_lived_stale()));
        lost(Step::LongLivedStale, alive);
        alive = keep_least(candidates, alive, |c| u64::from(view.origin(c) != RouteOrigin::Local));
        lost(Step::Originated, alive);
        alive = least_of(view, candidates, alive, |a| u64::from(u32::MAX - a.local_pref()));
        lost(Step::LocalPref, alive);
        alive = least_of(view, candidates, alive, |a| u64::from(a.as_path_len()));
        lost(Step::AsPathLength, alive);
        alive = least_of(view, candidates, alive, |a| a.origin() as u64);
        lost(Step::Origin, alive);
        alive = keep_least_med(view, candidates, alive);
        lost(Step::Med, alive);
        alive = keep_least(candidates, alive, |c| match view.origin(c) {
            RouteOrigin::Peer { ibgp: true, .. } => 1,
            _ => 0,
        });
        lost(Step::Ibgp, alive);
    }
    // Cost to the next hop (e) is the same for all: no IGP runs below this speaker.
    if let Some(equals) = candidates.get_mut(..alive)
        && alive > 1
    {
        equals.sort_unstable_by_key(|c| tie_break(view, c));
    }
    let mut equals = alive;
    for step in [Step::RouterId, Step::ClusterListLength, Step::PeerAddress, Step::PathId] {
        alive = tie_survivors(view, candidates, alive, step);
        lost(step, alive);
    }
    if multipath.same_as_path {
        equals = same_as_path_first(view, candidates, equals);
    }
    let paths_max = usize::from(multipath.paths_max.max(1));
    if paths_max > 1 && equals > paths_max {
        distinct_next_hops_first(view, candidates, equals, paths_max);
    }
    Ranking { selected: equals.min(paths_max) }
}

/// Of more equals than there is room for, moves those that repeat a next hop behind the others, which stay in
/// their order: several reflectors that show one next hop leave room for another. Equal link-local ones may be of
/// different links.
fn distinct_next_hops_first<C>(
    view: &impl CandidateView<C>,
    candidates: &mut [C],
    equals: usize,
    paths_max: usize,
) {
    let next_hop = |c: &C| view.attributes(c).map(|attributes| attributes.next_hop);
    let mut distinct = 1;
    for index in 1..equals {
        let Some((before, [candidate, ..])) = candidates.split_at_checked(index) else { return };
        let mut known = before.iter().take(distinct).map(next_hop);
        let here = next_hop(candidate);
        if here.is_some_and(|here| !here.is_link_local()) && known.any(|known| known == here) {
            continue;
        }
        if let Some(between) = candidates.get_mut(distinct..=index) {
            between.rotate_right(1);
        }
        distinct += 1;
        if distinct == paths_max {
            return;
        }
    }
}

/// Of equal candidates in tie-break order, moves those with the AS_PATH of the first one before the
/// others and counts them.
fn same_as_path_first<C>(
    view: &impl CandidateView<C>,
    candidates: &mut [C],
    equals: usize,
) -> usize {
    let Some(equal) = candidates.get_mut(..equals).filter(|c| c.len() > 1) else { return equals };
    let best = equal.first().and_then(|c| as_path(view, c)).map(<[u8]>::to_vec);
    let differs = |c: &C| as_path(view, c) != best.as_deref();
    // Stable: among themselves they stay in tie-break order.
    equal.sort_by_key(differs);
    equal.iter().take_while(|c| !differs(c)).count()
}

fn as_path<'c, C>(view: &impl CandidateView<C>, candidate: &'c C) -> Option<&'c [u8]> {
    view.attributes(candidate)?.path.value(attribute_type::AS_PATH)
}

/// The last steps as one key: the order is that of the RFC.
fn tie_break<C>(view: &impl CandidateView<C>, candidate: &C) -> (Ipv4Addr, u32, IpAddr, u32) {
    match (view.origin(candidate), view.attributes(candidate)) {
        (RouteOrigin::Peer { router_id, address, .. }, Some(attributes)) => (
            attributes.originator_id().unwrap_or(router_id),
            attributes.cluster_list_len(),
            address,
            view.path_id(candidate),
        ),
        _ => (Ipv4Addr::UNSPECIFIED, 0, IpAddr::V4(Ipv4Addr::UNSPECIFIED), 0),
    }
}

/// Of candidates in tie-break order, how many equal the first one up to and including `step`.
fn tie_survivors<C>(
    view: &impl CandidateView<C>,
    candidates: &[C],
    alive: usize,
    step: Step,
) -> usize {
    let Some((first, rest)) = candidates.get(..alive).and_then(|c| c.split_first()) else {
        return alive;
    };
    let best = tie_break(view, first);
    let equal = |c: &C| {
        let key = tie_break(view, c);
        match step {
            Step::RouterId => key.0 == best.0,
            Step::ClusterListLength => (key.0, key.1) == (best.0, best.1),
            Step::PeerAddress => (key.0, key.1, key.2) == (best.0, best.1, best.2),
            _ => key == best,
        }
    };
    1 + rest.iter().take_while(|c| equal(c)).count()
}

/// Moves those that `wanted` names to the front and counts them.
fn keep<C>(candidates: &mut [C], wanted: impl Fn(&C) -> bool) -> usize {
    let mut kept = 0;
    for index in 0..candidates.len() {
        if candidates.get(index).is_some_and(&wanted) {
            candidates.swap(kept, index);
            kept += 1;
        }
    }
    kept
}

fn keep_least<C>(candidates: &mut [C], alive: usize, key: impl Fn(&C) -> u64) -> usize {
    let Some(candidates) = candidates.get_mut(..alive) else { return alive };
    let Some(least) = candidates.iter().map(&key).min() else { return alive };
    keep(candidates, |c| key(c) == least)
}

fn least_of<C>(
    view: &impl CandidateView<C>,
    candidates: &mut [C],
    alive: usize,
    key: impl Fn(&RouteAttributes) -> u64,
) -> usize {
    if alive < 2 {
        return alive;
    }
    keep_least(candidates, alive, |c| view.attributes(c).map_or(u64::MAX, &key))
}

/// RFC 4271 section 9.1.2.2 c: a route loses against any other of the same neighbour AS with a lower
/// MED, whether or not that other one stays in.
fn keep_least_med<C>(view: &impl CandidateView<C>, candidates: &mut [C], alive: usize) -> usize {
    let Some(candidates) = candidates.get_mut(..alive).filter(|c| c.len() > 1) else {
        return alive;
    };
    let key = |c: &C| view.attributes(c).map(|a| (a.neighbour_as(), a.med()));
    // Sorted by neighbour AS and MED, the first of each neighbour has the lowest.
    candidates.sort_unstable_by_key(key);
    let mut kept = 0;
    let mut least = None;
    for index in 0..candidates.len() {
        let Some(current) = candidates.get(index).and_then(key) else { continue };
        match least {
            Some((neighbour, med)) if neighbour == current.0 && med < current.1 => continue,
            Some((neighbour, _)) if neighbour == current.0 => {}
            _ => least = Some(current),
        }
        candidates.swap(kept, index);
        kept += 1;
    }
    kept
}

impl std::fmt::Display for Step {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Step::NotEligible => "not eligible",
            Step::LongLivedStale => "stale for long (LLGR_STALE)",
            Step::Originated => "the speaker originates the prefix itself",
            Step::LocalPref => "lower LOCAL_PREF",
            Step::AsPathLength => "longer AS_PATH",
            Step::Origin => "worse ORIGIN",
            Step::Med => "higher MED from the same neighbour AS",
            Step::Ibgp => "iBGP loses against eBGP",
            Step::RouterId => "higher BGP identifier",
            Step::ClusterListLength => "longer CLUSTER_LIST",
            Step::PeerAddress => "higher peer address",
            Step::PathId => "higher path identifier",
        })
    }
}
