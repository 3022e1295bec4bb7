//! The naive model: what follows from the plan alone, with lists and no cleverness.

use std::collections::{BTreeMap, BTreeSet};
use std::net::{IpAddr, Ipv4Addr};

use cairn_bgp::config::{ExportScope, NextHopMode};
use cairn_bgp::prefix::{Families, Family, Prefix};
use cairn_bgp::wire::Origin;

use super::plan::{Drain, PeerPlan, Plan, RulePlan, SpeakerPlan, Then, When, local_addresses};

/// A route as it is on the wire.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Route {
    pub next_hop: IpAddr,
    pub local_pref: Option<u32>,
    pub as_path: Vec<u32>,
    pub origin: Origin,
    pub med: Option<u32>,
    pub communities: BTreeSet<u32>,
    pub originator: Option<Ipv4Addr>,
    pub clusters: Vec<Ipv4Addr>,
}

/// What a host has heard of each peer host, with the families of the session; only peers with a
/// session are in it.
pub type Heard = BTreeMap<usize, (Families, BTreeMap<Prefix, Route>)>;

/// A candidate: the peer host it came from, `None` for the own one.
pub type Candidate = (Option<usize>, Route);

/// A deliberate mistake, to show that the comparison finds it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Mistake {
    None,
    IgnoresMed,
    IgnoresClusterListLength,
    ReflectsEverything,
    KeepsMed,
    PrefersHigherIdentifier,
    ForgetsNoExport,
    IgnoresDrains,
}

pub struct Model<'a> {
    pub plan: &'a Plan,
    pub mistake: Mistake,
}

impl Model<'_> {
    fn is_ebgp(&self, host: usize, peer: usize) -> bool {
        self.plan[host].asn != self.plan[peer].asn
    }

    fn own_address(&self, host: usize, family: Family) -> Option<IpAddr> {
        let own = local_addresses(host);
        match family {
            Family::Ipv4Unicast => own.ipv4.map(IpAddr::V4),
            Family::Ipv6Unicast => own.ipv6.map(IpAddr::V6),
        }
    }

    /// What `host` makes of a route from `peer`.
    fn import(&self, host: usize, peer: usize, prefix: Prefix, route: &Route) -> Option<Route> {
        let here = &self.plan[host];
        let looped = route.as_path.contains(&here.asn)
            || (!self.is_ebgp(host, peer)
                && (route.originator == Some(here.router_id)
                    || route.clusters.contains(&here.router_id)))
            || self.own_address(host, prefix.family()) == Some(route.next_hop);
        if looped {
            return None;
        }
        let mut route = route.clone();
        let marked = self.is_ebgp(host, peer) && route.communities.contains(&GRACEFUL_SHUTDOWN);
        if (marked || here.drain != Drain::InUse) && self.mistake != Mistake::IgnoresDrains {
            route.local_pref = Some(0);
        }
        apply(&here.peers.get(&peer)?.import, prefix, &route)
    }

    /// The usable routes to a prefix, best first, then the equals.
    pub fn selected(&self, host: usize, heard: &Heard, prefix: Prefix) -> Vec<Candidate> {
        let here = &self.plan[host];
        if let Some(communities) = here.announces(prefix) {
            return vec![(None, originated(communities))];
        }
        let mut left: Vec<(usize, Route)> = heard
            .iter()
            .filter_map(|(peer, (_, routes))| {
                Some((*peer, self.import(host, *peer, prefix, routes.get(&prefix)?)?))
            })
            .collect();
        let local_pref = |route: &Route| route.local_pref.unwrap_or(100);
        let most = left.iter().map(|(_, r)| local_pref(r)).max();
        left.retain(|(_, r)| Some(local_pref(r)) == most);
        let shortest = left.iter().map(|(_, r)| r.as_path.len()).min();
        left.retain(|(_, r)| Some(r.as_path.len()) == shortest);
        let origin = left.iter().map(|(_, r)| r.origin).min();
        left.retain(|(_, r)| Some(r.origin) == origin);
        if self.mistake != Mistake::IgnoresMed {
            let all = left.clone();
            left.retain(|(_, r)| {
                !all.iter().any(|(_, other)| {
                    other.as_path.first() == r.as_path.first()
                        && other.med.unwrap_or(0) < r.med.unwrap_or(0)
                })
            });
        }
        if left.iter().any(|(peer, _)| self.is_ebgp(host, *peer)) {
            left.retain(|(peer, _)| self.is_ebgp(host, *peer));
        }
        left.sort_by_key(|(peer, route)| {
            let identifier = route.originator.unwrap_or(self.plan[*peer].router_id);
            let clusters = match self.mistake {
                Mistake::IgnoresClusterListLength => 0,
                _ => route.clusters.len(),
            };
            (identifier, clusters, local_addresses(*peer).ipv4)
        });
        if self.mistake == Mistake::PrefersHigherIdentifier {
            left.reverse();
        }
        left.into_iter().map(|(peer, route)| (Some(peer), route)).collect()
    }

    /// What `host` tells `to` about a prefix.
    fn export(&self, host: usize, to: usize, prefix: Prefix, best: &Candidate) -> Option<Route> {
        let here = &self.plan[host];
        let peer = here.peers.get(&to)?;
        let (source, route) = best;
        let from = source.and_then(|source| here.peers.get(&source));
        let ebgp = self.is_ebgp(host, to);
        let learned_inside = source.is_some_and(|source| !self.is_ebgp(host, source));
        let reflects = peer.client
            || from.is_some_and(|from| from.client)
            || self.mistake == Mistake::ReflectsEverything;
        let no_export = [0xffff_ff01, 0xffff_ff03];
        if *source == Some(to)
            || (source.is_some()
                && here.scope(self.plan[to].asn, peer) == ExportScope::OriginatedOnly)
            || (learned_inside && !ebgp && !reflects)
            || route.communities.contains(&0xffff_ff02)
            || (ebgp
                && self.mistake != Mistake::ForgetsNoExport
                && no_export.iter().any(|community| route.communities.contains(community)))
        {
            return None;
        }
        let mut route = route.clone();
        if ebgp && source.is_some() && self.mistake != Mistake::KeepsMed {
            route.med = None;
        }
        let mut route = apply(&peer.export, prefix, &route)?;
        if ebgp {
            route.local_pref = None;
            route.originator = None;
            route.clusters.clear();
            route.as_path.insert(0, here.asn);
        } else {
            route.local_pref.get_or_insert(100);
            if let (true, Some(source)) = (learned_inside, *source) {
                route.originator.get_or_insert(self.plan[source].router_id);
                route.clusters.insert(0, here.router_id);
            }
        }
        if here.drain != Drain::InUse {
            route.communities.insert(GRACEFUL_SHUTDOWN);
            route.local_pref = route.local_pref.map(|_| 0);
        }
        let own = match (source, peer.next_hop) {
            (None, _) | (_, NextHopMode::SelfAddress) => true,
            (_, NextHopMode::Auto) => ebgp,
            (_, NextHopMode::Unchanged) => false,
        };
        if own {
            route.next_hop = self.own_address(host, prefix.family())?;
        }
        Some(route)
    }

    /// All that `host` tells `to`, from what it has heard itself.
    pub fn told(&self, host: usize, to: usize, heard: &Heard) -> BTreeMap<Prefix, Route> {
        let Some((families, _)) = heard.get(&to) else { return BTreeMap::new() };
        let prefixes = self.prefixes(host, heard).into_iter();
        prefixes
            .filter(|prefix| families.contains(prefix.family()))
            .filter_map(|prefix| {
                let selected = self.selected(host, heard, prefix);
                Some((prefix, self.export(host, to, prefix, selected.first()?)?))
            })
            .collect()
    }

    /// Everything that a host knows of.
    pub fn prefixes(&self, host: usize, heard: &Heard) -> BTreeSet<Prefix> {
        let learned = heard.values().flat_map(|(_, routes)| routes.keys());
        let here = &self.plan[host];
        let own = here.originate.keys().filter(|prefix| here.announces(**prefix).is_some());
        learned.chain(own).copied().collect()
    }

    /// The next hops that a host forwards to: of the best route and its equals.
    pub fn forwards(&self, host: usize, heard: &Heard, prefix: Prefix) -> Vec<IpAddr> {
        let mut next_hops = Vec::new();
        let paths_max = usize::from(self.plan[host].paths_max);
        for (source, route) in self.selected(host, heard, prefix) {
            if source.is_some() && !next_hops.contains(&route.next_hop) {
                next_hops.push(route.next_hop);
            }
        }
        next_hops.truncate(paths_max);
        next_hops
    }

    /// How many routes of a peer and family pass import.
    pub fn accepted(&self, host: usize, peer: usize, heard: &Heard, family: Family) -> usize {
        let Some((_, routes)) = heard.get(&peer) else { return 0 };
        let of_family = routes.iter().filter(|(prefix, _)| prefix.family() == family);
        of_family.filter(|(prefix, r)| self.import(host, peer, **prefix, r).is_some()).count()
    }

    /// From nothing to where nothing changes any more: what all hosts hear in the end; `None` when
    /// the rounds do not come to rest.
    pub fn fixpoint(&self) -> Option<Vec<Heard>> {
        let mut world: Vec<Heard> = (0..self.plan.len())
            .map(|host| {
                let peers = self.plan[host].peers.keys();
                let up = peers.filter_map(|peer| {
                    let families = session_families(self.plan, host, *peer)?;
                    Some((*peer, (families, BTreeMap::new())))
                });
                up.collect()
            })
            .collect();
        for _ in 0..ROUNDS_MAX {
            let mut next = world.clone();
            for (host, heard) in next.iter_mut().enumerate() {
                for (peer, (_, routes)) in heard.iter_mut() {
                    *routes = self.told(*peer, host, &world[*peer]);
                }
            }
            if next == world {
                return Some(world);
            }
            world = next;
        }
        None
    }
}

/// The families of the session between two hosts, if both want it.
pub fn session_families(plan: &Plan, a: usize, b: usize) -> Option<Families> {
    let of = |x: usize, y: usize| -> Option<&PeerPlan> { plan[x].peers.get(&y) };
    let families = of(a, b)?.families.intersection(of(b, a)?.families);
    let connects = !of(a, b)?.passive || !of(b, a)?.passive;
    (connects && !families.is_empty()).then_some(families)
}

fn originated(communities: &[u32]) -> Route {
    Route {
        next_hop: IpAddr::V4(Ipv4Addr::UNSPECIFIED),
        local_pref: None,
        as_path: Vec::new(),
        origin: Origin::Igp,
        med: None,
        communities: communities.iter().copied().collect(),
        originator: None,
        clusters: Vec::new(),
    }
}

/// The first rule that matches decides; a route that none names passes.
fn apply(rules: &[RulePlan], prefix: Prefix, route: &Route) -> Option<Route> {
    let rule = rules.iter().find(|rule| match rule.when {
        When::Always => true,
        When::Prefix(wanted) => wanted == prefix,
        When::Community(community) => route.communities.contains(&community),
    });
    let mut route = route.clone();
    let Some(rule) = rule else { return Some(route) };
    let Then::Accept(set) = rule.then else { return None };
    if set.local_pref.is_some() {
        route.local_pref = set.local_pref;
    }
    if set.med.is_some() {
        route.med = set.med;
    }
    if let Some(community) = set.remove {
        route.communities.remove(&community);
    }
    route.communities.extend(set.add);
    if let Some((asn, times)) = set.prepend {
        for _ in 0..times {
            route.as_path.insert(0, asn);
        }
    }
    Some(route)
}

/// Whether the routes of all these speakers have one possible end, whatever came first: MED and
/// LOCAL_PREF of one's own can make several.
pub fn has_one_end(plan: &[SpeakerPlan]) -> bool {
    if plan.iter().any(|speaker| speaker.drain != Drain::InUse) {
        return false;
    }
    let rules = plan.iter().flat_map(|s| s.peers.values());
    let mut rules = rules.flat_map(|p| p.import.iter().chain(&p.export));
    rules.all(|rule| match rule.then {
        Then::Reject => true,
        Then::Accept(set) => set.local_pref.is_none() && set.med.is_none(),
    })
}

/// RFC 8326.
pub const GRACEFUL_SHUTDOWN: u32 = 0xffff_0000;
/// More than the longest path through any of the topologies, several times over.
const ROUNDS_MAX: usize = 100;
