//! Questions to the RIB: which routes there are, which is best, and why the others lost.

use std::borrow::Cow;

use serde::{Deserialize, Serialize};

use crate::config::{Multipath, PeerName};
use crate::policy::ExtendedCommunity;
use crate::prefix::Prefix;
use crate::wire::PathAttributes;

use super::attributes::RouteAttributes;
use super::decision::{Step, rank};
use super::peer::Peer;
use super::table::{Candidate, Entry, PathKey, RankContext, Table};
use super::{AddressFamily, Rib};

/// Which routes to show.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RouteFilter {
    /// By prefix.
    pub prefix: PrefixFilter,
    /// Only prefixes with a route from this peer.
    pub peer: Option<PeerName>,
    /// At most so many prefixes.
    pub prefixes_max: usize,
}

/// Which prefixes to show.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum PrefixFilter {
    /// All.
    Any,
    /// This one.
    Exact(Prefix),
    /// This one and all inside it.
    Within(Prefix),
    /// This one and all that contain it.
    Covering(Prefix),
}

/// Routes to a prefix.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct RouteInfo {
    /// The prefix.
    pub prefix: Prefix,
    /// The routes, best first.
    pub candidates: Vec<CandidateInfo>,
}

/// One route to a prefix.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct CandidateInfo {
    /// The peer that announced it; `None` when this speaker originates it.
    pub peer: Option<String>,
    /// What asked for an originated prefix, for example `ipblock/10.244.3.64-26`.
    pub source: Option<String>,
    /// The identifier of the path among several that the peer announced (RFC 7911).
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub path_id: Option<u32>,
    /// The next hop; `None` when this speaker originates it.
    pub next_hop: Option<String>,
    /// AS_PATH as text.
    pub as_path: String,
    /// ORIGIN.
    pub origin: Cow<'static, str>,
    /// LOCAL_PREF, the default where there is none.
    pub local_pref: u32,
    /// MULTI_EXIT_DISC.
    pub med: Option<u32>,
    /// COMMUNITIES as text.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub communities: Vec<String>,
    /// LARGE_COMMUNITY as text.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub large_communities: Vec<String>,
    /// EXTENDED COMMUNITIES as text: rt:65000:1, or 16 hexadecimal digits.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub extended_communities: Vec<String>,
    /// This is the best route.
    pub best: bool,
    /// This route is in use beside the best one.
    pub multipath: bool,
    /// Kept over the peer's restart and not confirmed yet.
    pub stale: bool,
    /// What import decided.
    pub verdict: String,
    /// The step of the decision process at which it lost against the best route.
    pub lost_at: Option<Step>,
}

impl Default for RouteFilter {
    fn default() -> RouteFilter {
        RouteFilter { prefix: PrefixFilter::Any, peer: None, prefixes_max: usize::MAX }
    }
}

impl PrefixFilter {
    fn matches(&self, prefix: Prefix) -> bool {
        match self {
            PrefixFilter::Any => true,
            PrefixFilter::Exact(wanted) => *wanted == prefix,
            PrefixFilter::Within(outer) => outer.contains(prefix),
            PrefixFilter::Covering(inner) => prefix.contains(*inner),
        }
    }
}

impl Rib {
    /// The routes that `filter` names, in the order of their prefixes.
    pub fn routes(&self, filter: &RouteFilter) -> Vec<RouteInfo> {
        let mut routes = Vec::new();
        self.collect(&self.ipv4, filter, &mut routes);
        self.collect(&self.ipv6, filter, &mut routes);
        routes
    }

    fn collect<A: AddressFamily>(
        &self,
        table: &Table<A>,
        filter: &RouteFilter,
        routes: &mut Vec<RouteInfo>,
    ) {
        let peer = match &filter.peer {
            Some(name) => match self.peers.iter().find(|(_, p)| p.config.name == *name) {
                Some((id, _)) => Some(id),
                None => return,
            },
            None => None,
        };
        let wanted = |entry: &Entry| {
            peer.is_none_or(|peer| entry.candidates().iter().any(|c| c.source == peer))
        };
        let mut keys: Vec<A::Key> = match filter.prefix {
            PrefixFilter::Exact(prefix) => A::key(prefix)
                .filter(|key| table.entries.get(key).is_some_and(wanted))
                .into_iter()
                .collect(),
            ref prefixes => table
                .entries
                .iter()
                .filter(|(key, entry)| prefixes.matches(A::prefix(**key)) && wanted(entry))
                .map(|(key, _)| *key)
                .collect(),
        };
        keys.sort_unstable();
        keys.truncate(filter.prefixes_max.saturating_sub(routes.len()));
        for key in keys {
            if let Some(entry) = table.entries.get(&key) {
                routes.push(self.explain(A::prefix(key), entry));
            }
        }
    }

    /// Runs the decision once more and writes down where each candidate dropped out.
    pub(super) fn explain(&self, prefix: Prefix, entry: &Entry) -> RouteInfo {
        let context = RankContext { peers: &self.peers, multipath: self.multipath };
        // The steps know nothing of which equals are used beside the best one.
        let plain = Multipath { same_as_path: false, ..self.multipath };
        let mut steps = Vec::new();
        let mut in_order = entry.candidates().to_vec();
        rank(&context, &mut in_order, plain, |step, left| steps.push((step, left)));
        let lost_at = |path: PathKey| {
            let place = in_order.iter().position(|candidate| candidate.key() == path)?;
            steps.iter().find(|(_, left)| place >= *left).map(|(step, _)| *step)
        };
        let mut candidates = entry.candidates().to_vec();
        let ranking = rank(&context, &mut candidates, self.multipath, |_, _| {});
        let candidates = candidates.iter().enumerate().map(|(index, candidate)| {
            let best = index == 0 && ranking.selected > 0;
            let lost_at = lost_at(candidate.key());
            let multipath = !best && index < ranking.selected;
            CandidateInfo { best, multipath, lost_at, ..self.describe(prefix, candidate) }
        });
        RouteInfo { prefix, candidates: candidates.collect() }
    }

    /// A candidate as it is used, or as it was received where it is not.
    pub(super) fn describe(&self, prefix: Prefix, candidate: &Candidate) -> CandidateInfo {
        let attributes = candidate.used.as_ref().unwrap_or(&candidate.received);
        self.describe_with(prefix, candidate, attributes)
    }

    pub(super) fn describe_with(
        &self,
        prefix: Prefix,
        candidate: &Candidate,
        attributes: &RouteAttributes,
    ) -> CandidateInfo {
        let peer = self.peers.peer(candidate.source);
        let path = &attributes.path;
        let verdict = self.verdicts.verdict(candidate.verdict);
        CandidateInfo {
            peer: peer.map(|peer| peer.config.name.to_string()),
            source: match peer {
                Some(_) => None,
                None => self.originated.get(&prefix).map(|o| o.source.to_string()),
            },
            path_id: peer.and_then(|peer| shown_path_id(peer, prefix, candidate)),
            next_hop: peer.map(|_| attributes.next_hop.address.to_string()),
            as_path: path.as_path().to_string(),
            origin: Cow::Borrowed(path.origin().name()),
            local_pref: attributes.local_pref(),
            med: path.med(),
            communities: path.communities().map(|c| c.to_string()).collect(),
            large_communities: path.large_communities().map(|c| c.to_string()).collect(),
            extended_communities: extended_communities(path),
            best: false,
            multipath: false,
            stale: peer.is_some_and(|p| p.family(prefix.family()).epoch != candidate.epoch),
            verdict: verdict.map(ToString::to_string).unwrap_or_default(),
            lost_at: None,
        }
    }
}

/// 0 is an identifier like any other where the session has them.
fn shown_path_id(peer: &Peer, prefix: Prefix, candidate: &Candidate) -> Option<u32> {
    let path_id = candidate.path_id();
    let receives = peer.session.map(|session| session.add_path.receive).unwrap_or_default();
    (path_id != 0 || receives.contains(prefix.family())).then_some(path_id)
}

pub(super) fn extended_communities(path: &PathAttributes) -> Vec<String> {
    path.extended_communities().map(|c| ExtendedCommunity(c).to_string()).collect()
}
