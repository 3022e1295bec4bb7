//! The decision process against a naive one: which route is best, which are its equals, and at which
//! step each of the others lost, in whatever order they came.

use std::collections::{BTreeMap, BTreeSet};
use std::net::{IpAddr, Ipv4Addr};
use std::sync::Arc;
use std::time::Instant;

use cairn_bgp::config::{Multipath, PeerConfig, SpeakerConfig};
use cairn_bgp::policy::{Action, Changes, Match, Policy, Rule};
use cairn_bgp::prefix::{Families, Family, Prefix};
use cairn_bgp::rib::{
    PeerId, PeerSession, Rib, RibConfig, RibPeerConfig, RouteAttributes, RouteFilter, Step,
    UpdateBatch,
};
use cairn_bgp::session::LocalAddresses;
use cairn_bgp::wire::{MessageFormat, NextHop, Origin, PathAttributes};
use proptest::prelude::*;

struct Dice(u64);

impl Dice {
    fn roll(&mut self, sides: usize) -> usize {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        (self.0 >> 33) as usize % sides
    }

    fn pick<T: Copy>(&mut self, from: &[T]) -> T {
        from[self.roll(from.len())]
    }
}

/// A peer and its route, as the naive process looks at them. Few values, so that steps are reached.
#[derive(Clone, Debug)]
struct Candidate {
    name: String,
    asn: u32,
    address: Ipv4Addr,
    router_id: Ipv4Addr,
    looped: bool,
    local_pref: u32,
    as_path: Vec<u32>,
    origin: Origin,
    med: u32,
    originator: Option<Ipv4Addr>,
    clusters: Vec<Ipv4Addr>,
}

impl Candidate {
    fn new(dice: &mut Dice, index: usize) -> Candidate {
        let asn = dice.pick(&[65001, 65001, 65002, LOCAL_ASN, LOCAL_ASN]);
        let inside = asn == LOCAL_ASN;
        let id = |dice: &mut Dice| Ipv4Addr::new(192, 0, 2, 1 + dice.roll(3) as u8);
        let mut as_path = if inside { vec![dice.pick(&[65001, 65002])] } else { vec![asn] };
        (0..dice.roll(2)).for_each(|_| as_path.push(65010));
        let looped = dice.roll(8) == 0;
        if looped {
            as_path.push(LOCAL_ASN);
        }
        let clusters = if inside { dice.roll(3) } else { 0 };
        Candidate {
            name: format!("p{index}"),
            asn,
            address: Ipv4Addr::new(198, 51, 100, 200 - index as u8),
            router_id: id(dice),
            looped,
            local_pref: if inside { dice.pick(&[100, 100, 110]) } else { 100 },
            as_path,
            origin: dice.pick(&[Origin::Igp, Origin::Igp, Origin::Egp, Origin::Incomplete]),
            med: dice.pick(&[0, 0, 5, 10]),
            originator: (inside && dice.roll(2) == 0).then(|| id(dice)),
            clusters: (0..clusters).map(|n| Ipv4Addr::new(192, 0, 2, 100 + n as u8)).collect(),
        }
    }

    fn attributes(&self) -> Arc<RouteAttributes> {
        let plain = PathAttributes::originated(self.origin);
        let mut builder = plain.edit();
        for asn in self.as_path.iter().rev() {
            builder.prepend(*asn, 1);
        }
        if self.asn == LOCAL_ASN {
            builder.local_pref(Some(self.local_pref)).originator_id(self.originator);
            for cluster in self.clusters.iter().rev() {
                builder.prepend_cluster(*cluster);
            }
        }
        builder.med(Some(self.med));
        let next_hop = NextHop::new(IpAddr::V4(self.address));
        Arc::new(RouteAttributes::new(next_hop, builder.build()))
    }
}

/// RFC 4271 section 9.1.2.2 with RFC 4456 section 9, one list after the other: at which step each
/// one lost, and who is left before the tie-breaks.
fn decide(all: &[Candidate]) -> (BTreeMap<String, Option<Step>>, BTreeSet<String>) {
    let mut lost = BTreeMap::new();
    let mut left: Vec<&Candidate> = all.iter().collect();
    let mut keep = |left: &mut Vec<&Candidate>, step, wins: &dyn Fn(&Candidate) -> bool| {
        let losers = left.iter().filter(|c| !wins(c));
        lost.extend(losers.map(|c| (c.name.clone(), Some(step))));
        left.retain(|c| wins(c));
    };
    fn least<K: Ord>(left: &[&Candidate], key: impl Fn(&Candidate) -> K) -> Option<K> {
        left.iter().map(|c| key(c)).min()
    }
    keep(&mut left, Step::NotEligible, &|c| !c.looped);
    let most = left.iter().map(|c| c.local_pref).max();
    keep(&mut left, Step::LocalPref, &|c| Some(c.local_pref) == most);
    let shortest = least(&left, |c| c.as_path.len());
    keep(&mut left, Step::AsPathLength, &|c| Some(c.as_path.len()) == shortest);
    let origin = least(&left, |c| c.origin);
    keep(&mut left, Step::Origin, &|c| Some(c.origin) == origin);
    let others: Vec<(u32, u32)> = left.iter().map(|c| (c.as_path[0], c.med)).collect();
    keep(&mut left, Step::Med, &|c| {
        !others.iter().any(|(neighbour, med)| *neighbour == c.as_path[0] && *med < c.med)
    });
    let outside = left.iter().any(|c| c.asn != LOCAL_ASN);
    keep(&mut left, Step::Ibgp, &|c| !outside || c.asn != LOCAL_ASN);
    let equals = left.iter().map(|c| c.name.clone()).collect();
    let identifier = |c: &Candidate| c.originator.unwrap_or(c.router_id);
    let lowest = least(&left, identifier);
    keep(&mut left, Step::RouterId, &|c| Some(identifier(c)) == lowest);
    let shortest = least(&left, |c| c.clusters.len());
    keep(&mut left, Step::ClusterListLength, &|c| Some(c.clusters.len()) == shortest);
    let lowest = least(&left, |c| c.address);
    keep(&mut left, Step::PeerAddress, &|c| Some(c.address) == lowest);
    lost.extend(left.into_iter().map(|c| (c.name.clone(), None)));
    (lost, equals)
}

struct Bench {
    rib: Rib,
    ids: Vec<PeerId>,
}

impl Bench {
    fn new(candidates: &[Candidate], multipath: Multipath) -> Bench {
        let now = Instant::now();
        let router_id = Ipv4Addr::new(192, 0, 2, 254);
        let mut rib = Rib::new(RibConfig {
            router_id,
            multipath,
            seed: 1,
            deferral_until: now,
            restarting: false,
        });
        let speaker = SpeakerConfig {
            origins: Default::default(),
            ranges: Default::default(),
            asn: LOCAL_ASN,
            router_id,
            cluster_id: None,
            listen: Vec::new(),
            peers: BTreeMap::new(),
            originate: BTreeMap::new(),
            selection_deferral_secs: 0,
            multipath,
        };
        let (matches, set) = (Match::default(), Changes::default());
        let rule = Rule { matches, action: Action::Accept, set };
        let policy = Arc::new(Policy { name: "all".into(), rules: vec![rule] });
        let up = |candidate: &Candidate| {
            let config = PeerConfig {
                import: vec![Arc::clone(&policy)],
                ..PeerConfig::new(candidate.address.into(), candidate.asn)
            };
            let name: Arc<str> = candidate.name.as_str().into();
            let id = rib.add_peer(RibPeerConfig::new(&speaker, &name, &config));
            rib.peer_up(
                id,
                PeerSession {
                    router_id: candidate.router_id,
                    families: Families::NONE.with(Family::Ipv4Unicast),
                    format: MessageFormat { octets_max: 4096, as4: true, extended_next_hop: false },
                    addresses: LocalAddresses::default(),
                    promises_end_of_rib: false,
                    sends_end_of_rib: false,
                    stale_kept: Families::NONE,
                    enhanced_route_refresh: false,
                    ipv4_via_ipv6: false,
                    knows_long_lived: false,
                    add_path: Default::default(),
                },
            );
            id
        };
        let ids = candidates.iter().map(up).collect();
        Bench { rib, ids }
    }

    fn announce(&mut self, index: usize, candidate: &Candidate) {
        let mut batch = UpdateBatch::default();
        batch.push_announcements(candidate.attributes(), [prefix()]);
        self.rib.update(self.ids[index], batch).expect("no limit is set");
    }

    fn withdraw(&mut self, index: usize) {
        let mut batch = UpdateBatch::default();
        batch.push_withdrawals([prefix()]);
        self.rib.update(self.ids[index], batch).expect("no limit is set");
    }
}

fn prefix() -> Prefix {
    "10.0.0.0/24".parse().expect("a prefix")
}

proptest! {
    #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::with_cases(20_000) })]

    #[test]
    fn the_order_of_arrival_does_not_matter(seed: u64, count in 1usize..9, paths_max in 1u16..5) {
        let mut dice = Dice(seed | 1);
        let candidates: Vec<_> = (0..count).map(|index| Candidate::new(&mut dice, index)).collect();
        let multipath = Multipath { paths_max, same_as_path: false };
        let mut bench = Bench::new(&candidates, multipath);
        // Everything comes in some order, and some of it goes and comes again.
        let mut missing: Vec<usize> = (0..count).collect();
        while !missing.is_empty() {
            let index = missing.swap_remove(dice.roll(missing.len()));
            if dice.roll(3) == 0 {
                let other = Candidate { asn: candidates[index].asn, ..Candidate::new(&mut dice, 0) };
                bench.announce(index, &other);
            }
            bench.announce(index, &candidates[index]);
            let (again, back) = (dice.roll(count), dice.roll(4) == 0);
            if back && !missing.contains(&again) {
                bench.withdraw(again);
                missing.push(again);
            }
        }
        let (lost, equals) = decide(&candidates);
        let routes = bench.rib.routes(&RouteFilter::default());
        prop_assert_eq!(routes.len(), 1);
        let told = &routes[0].candidates;
        let found: BTreeMap<String, Option<Step>> =
            told.iter().map(|c| (c.peer.clone().unwrap_or_default(), c.lost_at)).collect();
        prop_assert_eq!(&found, &lost, "{:#?}", candidates);
        let used: Vec<&String> = told
            .iter()
            .filter(|c| c.best || c.multipath)
            .filter_map(|c| c.peer.as_ref())
            .collect();
        prop_assert_eq!(used.len(), equals.len().min(paths_max.into()));
        prop_assert!(used.iter().all(|name| equals.contains(*name)));
    }
}

const LOCAL_ASN: u32 = 65000;
