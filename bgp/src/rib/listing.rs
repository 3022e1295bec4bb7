//! The tables of a RIB for people: which prefixes are in one, and rows of it.
//!
//! A table of a million routes cannot be described in one go without holding up its owner. So the
//! prefixes are copied out once, by [`Rib::prefixes`], a walk without allocations of its own per
//! route; whoever asked puts them into order elsewhere, and comes back for [`Rib::rows`] of some of
//! them at a time. A row is the state at that time; what has gone meanwhile has none.

use std::borrow::Cow;
use std::net::IpAddr;
use std::sync::Arc;

use serde::{Deserialize, Serialize};

use crate::config::PeerName;
use crate::prefix::{Family, Ipv4Prefix, Ipv6Prefix, Prefix};

use super::Rib;
use super::advertised::own_or_given;
use super::export::{Exported, GroupKey};
use super::family::AddressFamily;
use super::peer::{PeerId, PeerSession};
use super::query::{CandidateInfo, RouteInfo, extended_communities};
use super::sent::Sent;
use super::table::{Candidate, Entry, PathKey, Table, Watched};

/// A table of a RIB.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum TableKind {
    /// What is in use: the best routes and their equals.
    LocRib {
        /// Only those from this peer.
        peer: Option<PeerName>,
    },
    /// What a peer has announced, rejected routes included.
    AdjIn(PeerName),
    /// What a peer has been told.
    AdjOut(PeerName),
}

/// A part of a table.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TableFilter {
    /// Of which table.
    pub table: TableKind,
    /// Only routes of this family.
    pub family: Option<Family>,
    /// Only this prefix and those inside it.
    pub within: Option<Prefix>,
}

/// The prefixes of a table at one moment, in as little memory as they need.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct PrefixKeys {
    ipv4: Vec<Ipv4Prefix>,
    ipv6: Vec<Ipv6Prefix>,
}

/// One line of a table.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(untagged)]
pub enum TableRow {
    /// Of what is in use.
    LocRib(RouteInfo),
    /// Of what a peer has announced.
    AdjIn(ReceivedRoute),
    /// Of what a peer has been told.
    AdjOut(AdvertisedRoute),
}

/// A route as a peer announced it, and what became of it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ReceivedRoute {
    /// The prefix.
    pub prefix: Prefix,
    /// The route; its attributes are those that the peer sent.
    pub received: CandidateInfo,
}

/// A route as a peer was told it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct AdvertisedRoute {
    /// The prefix.
    pub prefix: Prefix,
    /// The attributes.
    pub advertised: Advertised,
}

/// The attributes that a peer was told.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Advertised {
    /// The peer that the route was learned from; `None` when this speaker originates it.
    pub from: Option<String>,
    /// Which export rule let it pass, or why it is about to be withdrawn.
    pub verdict: String,
    /// The identifier of the path, where the peer is sent several (RFC 7911).
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub path_id: Option<u32>,
    /// NEXT_HOP.
    pub next_hop: Option<String>,
    /// AS_PATH as text.
    pub as_path: String,
    /// ORIGIN.
    pub origin: Cow<'static, str>,
    /// LOCAL_PREF.
    pub local_pref: Option<u32>,
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
}

/// Which prefix is asked about.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum RouteQuery {
    /// This one.
    Prefix(Prefix),
    /// The longest one in use that holds this address, else the longest one that is known.
    Address(IpAddr),
}

/// Everything about one prefix.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct RouteExplanation {
    /// The routes, best first, each with the reason why it is used or not.
    #[serde(flatten)]
    pub route: RouteInfo,
    /// What other peers are told about the prefix.
    pub told: Vec<Told>,
    /// Peers with a session that are told nothing about it.
    pub not_told: Vec<NotTold>,
}

/// What one peer is told about a prefix.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Told {
    /// The peer.
    pub peer: String,
    /// The attributes that it was told.
    pub advertised: Advertised,
}

/// A peer that is told nothing about a prefix.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct NotTold {
    /// The peer.
    pub peer: String,
    /// Why: the rule, or what else keeps the route from it.
    pub verdict: String,
}

/// The best route to a prefix has changed.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct BestChange {
    /// The prefix.
    pub prefix: Prefix,
    /// The best route; `None` when there is none any more.
    pub best: Option<Box<CandidateInfo>>,
}

impl PrefixKeys {
    /// How many there are.
    pub fn len(&self) -> usize {
        self.ipv4.len() + self.ipv6.len()
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Puts them into order: IPv4 first, then by address and length.
    pub fn sort(&mut self) {
        self.ipv4.sort_unstable();
        self.ipv6.sort_unstable();
    }

    /// Up to `max` of them from the place `at` on.
    pub fn some(&self, at: usize, max: usize) -> Vec<Prefix> {
        let ipv4 = self.ipv4.iter().skip(at).map(|key| Prefix::V4(*key));
        let at = at.saturating_sub(self.ipv4.len());
        ipv4.chain(self.ipv6.iter().skip(at).map(|key| Prefix::V6(*key))).take(max).collect()
    }
}

impl Rib {
    /// The prefixes of a part of a table, in no order.
    pub fn prefixes(&self, filter: &TableFilter) -> PrefixKeys {
        let mut keys = PrefixKeys::default();
        if filter.wants(Family::Ipv4Unicast) {
            self.collect_keys(&self.ipv4, filter, &mut keys.ipv4);
        }
        if filter.wants(Family::Ipv6Unicast) {
            self.collect_keys(&self.ipv6, filter, &mut keys.ipv6);
        }
        keys
    }

    /// The rows of a table for these prefixes.
    pub fn rows(&self, table: &TableKind, prefixes: &[Prefix]) -> Vec<TableRow> {
        prefixes.iter().flat_map(|prefix| self.rows_of(table, *prefix)).collect()
    }

    fn rows_of(&self, table: &TableKind, prefix: Prefix) -> Vec<TableRow> {
        match table {
            TableKind::LocRib { .. } => {
                self.in_use(prefix).map(TableRow::LocRib).into_iter().collect()
            }
            TableKind::AdjIn(name) => {
                let Some(id) = self.peer_id(name) else { return Vec::new() };
                self.received_from(id, prefix)
            }
            TableKind::AdjOut(name) => {
                let Some(id) = self.peer_id(name) else { return Vec::new() };
                let row = |advertised| TableRow::AdjOut(AdvertisedRoute { prefix, advertised });
                self.advertised_to(id, prefix).into_iter().map(row).collect()
            }
        }
    }

    /// What a peer has announced for a prefix: more than one route where it sends several paths.
    fn received_from(&self, id: PeerId, prefix: Prefix) -> Vec<TableRow> {
        let candidates = self.entry(prefix).map(Entry::candidates).unwrap_or_default();
        let mut from: Vec<&Candidate> = candidates.iter().filter(|c| c.source == id).collect();
        from.sort_unstable_by_key(|candidate| candidate.path_id());
        let row = |candidate: &Candidate| {
            let received = self.describe_with(prefix, candidate, &candidate.received);
            TableRow::AdjIn(ReceivedRoute { prefix, received })
        };
        from.into_iter().map(row).collect()
    }

    /// Everything about one prefix; `None` when there is no route to it.
    pub fn explanation(&self, query: RouteQuery) -> Option<RouteExplanation> {
        let prefix = match query {
            RouteQuery::Prefix(prefix) => prefix,
            RouteQuery::Address(address) => self.longest_match(address)?,
        };
        let route = self.explain(prefix, self.entry(prefix)?);
        let told = self.peers.iter().flat_map(|(id, peer)| {
            let told = self.advertised_to(id, prefix).into_iter();
            told.map(|advertised| Told { peer: peer.config.name.to_string(), advertised })
        });
        let not_told = self.peers.iter().filter_map(|(id, peer)| {
            peer.session?;
            let verdict = self.export_verdict(id, prefix).err()?.to_string();
            Some(NotTold { peer: peer.config.name.to_string(), verdict })
        });
        Some(RouteExplanation { route, told: told.collect(), not_told: not_told.collect() })
    }

    /// Begins or ends to note changes of best routes.
    pub fn watch_best(&mut self, wanted: bool) {
        self.ipv4.marks.watched = wanted.then(Watched::new);
        self.ipv6.marks.watched = wanted.then(Watched::new);
    }

    /// The best routes that have changed since the last call, and how many more have.
    pub fn take_best_changes(&mut self) -> (Vec<BestChange>, u64) {
        let mut prefixes = Vec::new();
        let missed = take_watched(&mut self.ipv4, &mut prefixes)
            .saturating_add(take_watched(&mut self.ipv6, &mut prefixes));
        let change = |prefix: Prefix| {
            let best = self.entry(prefix).and_then(Entry::best);
            let describe = |best| CandidateInfo { best: true, ..self.describe(prefix, best) };
            BestChange { prefix, best: best.map(describe).map(Box::new) }
        };
        (prefixes.into_iter().map(change).collect(), missed)
    }

    fn collect_keys<A: AddressFamily>(
        &self,
        table: &Table<A>,
        filter: &TableFilter,
        keys: &mut Vec<A::Key>,
    ) {
        let within =
            |key: &A::Key| filter.within.is_none_or(|outer| outer.contains(A::prefix(*key)));
        let entries = table.entries.iter().filter(|(key, _)| within(key));
        match &filter.table {
            TableKind::LocRib { peer: None } => {
                keys.extend(entries.filter(|(_, e)| e.best().is_some()).map(|(key, _)| *key));
            }
            TableKind::LocRib { peer: Some(name) } => {
                let Some(id) = self.peer_id(name) else { return };
                let from = |c: &Candidate| c.source == id;
                keys.extend(
                    entries.filter(|(_, e)| e.selected().iter().any(from)).map(|(k, _)| *k),
                );
            }
            TableKind::AdjIn(name) => {
                let Some(id) = self.peer_id(name) else { return };
                let from = |c: &Candidate| c.source == id;
                let received = entries.filter(|(_, e)| e.candidates().iter().any(from));
                keys.extend(received.map(|(key, _)| *key));
            }
            TableKind::AdjOut(name) => {
                let Some(id) = self.peer_id(name) else { return };
                let told = table.groups.iter().flat_map(|group| group.advertised_ids(id));
                keys.extend(told.filter_map(|route| table.entries.key(route)).filter(within));
            }
        }
    }

    /// What a peer has been told about a prefix, with what is different for each session: more than one
    /// route where several paths are sent to it.
    fn advertised_to(&self, id: PeerId, prefix: Prefix) -> Vec<Advertised> {
        match prefix {
            Prefix::V4(key) => self.advertised_in(&self.ipv4, id, key),
            Prefix::V6(key) => self.advertised_in(&self.ipv6, id, key),
        }
    }

    fn advertised_in<A: AddressFamily>(
        &self,
        table: &Table<A>,
        id: PeerId,
        key: A::Key,
    ) -> Vec<Advertised> {
        let session = self.peers.peer(id).and_then(|peer| peer.session);
        let Some((route, session)) = table.entries.id(&key).zip(session) else { return Vec::new() };
        let told = table.groups.iter().flat_map(|group| {
            let routes = group.advertised_routes(id, route);
            routes.map(move |sent| (group, sent))
        });
        let advertised = told.map(|(group, sent)| {
            let path = group.path_of(route, sent);
            self.describe_sent(id, &session, A::prefix(key), &group.key, (sent, path))
        });
        advertised.collect()
    }

    fn describe_sent(
        &self,
        id: PeerId,
        session: &PeerSession,
        prefix: Prefix,
        key: &GroupKey,
        (sent, path): (&Sent, PathKey),
    ) -> Advertised {
        let verdict = match key.paths_max {
            0 => self.export_verdict(id, prefix),
            _ => self.path_verdict(id, prefix, path),
        };
        let verdict = verdict.unwrap_or_else(|not| not);
        let exported =
            Exported { attributes: Arc::clone(&sent.attributes), own_next_hop: sent.own_next_hop };
        let next_hop = own_or_given(session, prefix.family(), &exported);
        let path = key.path(&self.peers, self.cluster_id, &sent.attributes, sent.source).build();
        Advertised {
            from: self.peers.peer(sent.source).map(|peer| peer.config.name.to_string()),
            verdict: verdict.to_string(),
            path_id: (key.paths_max > 0).then_some(sent.path_id.into()),
            next_hop: (!next_hop.address.is_unspecified()).then(|| next_hop.address.to_string()),
            as_path: path.as_path().to_string(),
            origin: Cow::Borrowed(path.origin().name()),
            local_pref: path.local_pref(),
            med: path.med(),
            communities: path.communities().map(|c| c.to_string()).collect(),
            large_communities: path.large_communities().map(|c| c.to_string()).collect(),
            extended_communities: extended_communities(&path),
        }
    }

    /// The selected routes to a prefix.
    fn in_use(&self, prefix: Prefix) -> Option<RouteInfo> {
        let selected = self.entry(prefix)?.selected();
        let candidates = selected.iter().enumerate().map(|(index, candidate)| CandidateInfo {
            best: index == 0,
            multipath: index > 0,
            ..self.describe(prefix, candidate)
        });
        let candidates: Vec<_> = candidates.collect();
        (!candidates.is_empty()).then_some(RouteInfo { prefix, candidates })
    }

    pub(super) fn entry(&self, prefix: Prefix) -> Option<&Entry> {
        match prefix {
            Prefix::V4(key) => self.ipv4.entries.get(&key),
            Prefix::V6(key) => self.ipv6.entries.get(&key),
        }
    }

    fn longest_match(&self, address: IpAddr) -> Option<Prefix> {
        let bits = match address {
            IpAddr::V4(_) => Family::Ipv4Unicast.bits(),
            IpAddr::V6(_) => Family::Ipv6Unicast.bits(),
        };
        let prefixes = || (0..=bits).rev().filter_map(|len| Prefix::of(address, len));
        let used = |prefix: &Prefix| self.entry(*prefix).is_some_and(|e| e.best().is_some());
        prefixes().find(used).or_else(|| prefixes().find(|prefix| self.entry(*prefix).is_some()))
    }

    fn peer_id(&self, name: &PeerName) -> Option<PeerId> {
        self.peers.iter().find(|(_, peer)| peer.config.name == *name).map(|(id, _)| id)
    }
}

impl TableFilter {
    fn wants(&self, family: Family) -> bool {
        self.family.is_none_or(|wanted| wanted == family)
            && self.within.is_none_or(|outer| outer.family() == family)
    }
}

fn take_watched<A: AddressFamily>(table: &mut Table<A>, prefixes: &mut Vec<Prefix>) -> u64 {
    let Some(watched) = &mut table.marks.watched else { return 0 };
    prefixes.extend(watched.keys.drain(..).map(A::prefix));
    std::mem::take(&mut watched.missed)
}
