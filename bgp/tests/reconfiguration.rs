//! Reconfiguration against a fresh start: whatever the order in which a configuration came about, the
//! RIB holds and tells what one that begins with it would.

use std::collections::BTreeMap;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::sync::Arc;
use std::time::{Duration, Instant};

use bytes::BytesMut;
use cairn_bgp::config::{
    ExportScope, Multipath, NextHopMode, Origination, PeerConfig, PrefixLimit, PrefixLimitAction,
    SpeakerConfig,
};
use cairn_bgp::policy::{
    Action, Changes, CommunityChange, Match, MedChange, Policy, Prepend, Rule,
};
use cairn_bgp::prefix::{Families, Family, Prefix};
use cairn_bgp::rib::{
    CandidateInfo, Output, PeerId, PeerSession, Rib, RibConfig, RibPeerConfig, RouteAttributes,
    RouteCounts, RouteFilter, UpdateBatch,
};
use cairn_bgp::session::LocalAddresses;
use cairn_bgp::stream;
use cairn_bgp::wire::{
    AttributeTypes, Community, HEADER_OCTETS, MessageFormat, NextHop, Origin, PathAttributes,
    SessionSort, UpdateBody, UpdateContext,
};
use proptest::prelude::*;

/// What a limit has dropped comes again when there is room for it.
#[test]
fn a_limit_that_drops_less_asks_for_the_rest() {
    let address = Ipv4Addr::new(192, 0, 2, 1).into();
    let with = |limit| PeerConfig { prefix_limit: limit, ..PeerConfig::new(address, 65001) };
    let drops = |prefixes_max| Some(PrefixLimit { prefixes_max, action: PrefixLimitAction::Drop });
    let warns = Some(PrefixLimit { prefixes_max: 1, action: PrefixLimitAction::Warn });
    for (old, new, asks) in [
        (drops(5), drops(6), true),
        (drops(5), None, true),
        (drops(5), warns, true),
        (drops(5), drops(5), false),
        (drops(5), drops(4), false),
        (None, drops(5), false),
        (warns, None, false),
    ] {
        assert_eq!(with(old).needs_refresh(&with(new)), asks, "{old:?} to {new:?}");
    }
}

/// One of a few policies; number 0 accepts everything.
fn policy(number: usize) -> Arc<Policy> {
    let with = |matches, action, set| Rule { matches, action, set };
    let all = Match::default;
    let community = || Match { communities: vec![Community(7)], ..Match::default() };
    let far = || Match { origin_as: vec![65010], ..Match::default() };
    let keep = Changes::default;
    let rules = match number % 6 {
        0 => vec![with(all(), Action::Accept, keep())],
        1 => vec![with(community(), Action::Reject, keep()), with(all(), Action::Accept, keep())],
        2 => vec![with(
            all(),
            Action::Accept,
            Changes {
                local_pref: Some(150),
                communities: CommunityChange::add([Community(8)]),
                ..keep()
            },
        )],
        3 => vec![
            with(far(), Action::Accept, Changes { med: Some(MedChange::Set(9)), ..keep() }),
            with(
                all(),
                Action::Accept,
                Changes { prepend: Some(Prepend { asn: 65500, times: 2 }), ..keep() },
            ),
        ],
        4 => vec![with(far(), Action::Accept, keep())],
        _ => vec![with(all(), Action::Reject, keep())],
    };
    Arc::new(Policy { name: format!("policy{number}").into(), rules })
}

struct Dice(u64);

impl Dice {
    fn roll(&mut self, sides: usize) -> usize {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        (self.0 >> 33) as usize % sides
    }

    fn flip(&mut self) -> bool {
        self.roll(2) == 0
    }
}

/// What was asked of a RIB, as the latest state.
#[derive(Clone, Debug)]
struct Wanted {
    router_id: Ipv4Addr,
    multipath: Multipath,
    peers: Vec<WantedPeer>,
    originated: BTreeMap<Prefix, Origination>,
}

#[derive(Clone, Debug)]
struct WantedPeer {
    config: PeerConfig,
    up: bool,
    routes: BTreeMap<Prefix, Arc<RouteAttributes>>,
}

/// A RIB with what its peers have read.
struct Running {
    rib: Rib,
    ids: Vec<PeerId>,
    told: Vec<BTreeMap<Prefix, (NextHop, Vec<u8>)>>,
    fib: BTreeMap<Prefix, Vec<IpAddr>>,
}

impl Wanted {
    fn new() -> Wanted {
        let peers = [65001, 65001, 65002, LOCAL_ASN, LOCAL_ASN].into_iter().enumerate();
        let peers = peers.map(|(index, asn)| WantedPeer {
            config: PeerConfig {
                import: vec![policy(0)],
                export: vec![policy(0)],
                ..PeerConfig::new(Ipv4Addr::new(198, 51, 100, index as u8 + 1).into(), asn)
            },
            up: false,
            routes: BTreeMap::new(),
        });
        Wanted {
            router_id: Ipv4Addr::new(192, 0, 2, 254),
            multipath: Multipath { paths_max: 1, same_as_path: false },
            peers: peers.collect(),
            originated: BTreeMap::new(),
        }
    }

    fn rib_config(&self, index: usize) -> RibPeerConfig {
        let speaker = SpeakerConfig {
            origins: Default::default(),
            ranges: Default::default(),
            asn: LOCAL_ASN,
            router_id: self.router_id,
            cluster_id: None,
            listen: Vec::new(),
            peers: BTreeMap::new(),
            originate: BTreeMap::new(),
            selection_deferral_secs: 0,
            multipath: self.multipath,
        };
        RibPeerConfig::new(&speaker, &format!("p{index}").into(), &self.peers[index].config)
    }

    /// A RIB that begins with all this.
    fn start(&self) -> Running {
        let now = Instant::now();
        let rib = Rib::new(RibConfig {
            router_id: self.router_id,
            multipath: self.multipath,
            seed: 1,
            deferral_until: now,
            restarting: false,
        });
        let told = vec![BTreeMap::new(); self.peers.len()];
        let mut running = Running { rib, ids: Vec::new(), told, fib: BTreeMap::new() };
        running.rib.tick(now + Duration::from_secs(1));
        running.rib.set_originated(&self.originated);
        for (index, peer) in self.peers.iter().enumerate() {
            running.ids.push(running.rib.add_peer(self.rib_config(index)));
            if peer.up {
                running.up(index);
                for (prefix, route) in &peer.routes {
                    running.announce(index, *prefix, Arc::clone(route));
                }
            }
        }
        running
    }
}

impl Running {
    fn up(&mut self, index: usize) {
        self.told[index].clear();
        self.rib.peer_up(self.ids[index], session(index));
    }

    fn announce(&mut self, index: usize, prefix: Prefix, route: Arc<RouteAttributes>) {
        let mut batch = UpdateBatch::default();
        batch.push_announcements(route, [prefix]);
        self.rib.update(self.ids[index], batch).expect("no limit is set");
    }

    fn flush(&mut self, wanted: &Wanted) {
        let mut output = Vec::new();
        self.rib.flush(&mut output);
        for Output { peer, chunk } in output {
            let index = self.ids.iter().position(|id| *id == peer).expect("a known peer");
            let sort = match wanted.peers[index].config.asn {
                LOCAL_ASN => SessionSort::Ibgp,
                _ => SessionSort::Ebgp,
            };
            let mut octets = BytesMut::new();
            stream::write(&chunk, session(index).addresses, &mut octets);
            let mut rest = &octets[..];
            while !rest.is_empty() {
                let length = usize::from(u16::from_be_bytes([rest[16], rest[17]]));
                read(&mut self.told[index], &rest[HEADER_OCTETS..length], sort);
                rest = &rest[length..];
            }
        }
    }

    fn settle(&mut self, wanted: &Wanted) {
        for id in &self.ids {
            self.rib.set_room(*id, usize::MAX);
        }
        self.flush(wanted);
        for change in self.rib.take_fib(usize::MAX) {
            match change.route {
                Some(route) => {
                    let next_hops = route.paths.iter().map(|path| path.next_hop).collect();
                    self.fib.insert(change.prefix, next_hops);
                }
                None => drop(self.fib.remove(&change.prefix)),
            }
        }
    }

    fn counts(&self) -> Vec<[RouteCounts; 2]> {
        let of = |id: &PeerId| Family::ALL.map(|family| self.rib.counts(*id, family));
        self.ids.iter().map(of).collect()
    }

    /// All routes with their verdicts; losers are in no fixed order.
    fn routes(&self) -> BTreeMap<Prefix, BTreeMap<Option<String>, CandidateInfo>> {
        let routes = self.rib.routes(&RouteFilter::default()).into_iter();
        let by_peer = |c: Vec<CandidateInfo>| c.into_iter().map(|c| (c.peer.clone(), c)).collect();
        routes.map(|route| (route.prefix, by_peer(route.candidates))).collect()
    }
}

fn session(index: usize) -> PeerSession {
    PeerSession {
        router_id: Ipv4Addr::new(192, 0, 2, index as u8 + 1),
        families: Families::from_iter(Family::ALL),
        // Two peers of one kind take other messages than their like.
        format: MessageFormat { octets_max: 4096, as4: index != 1, extended_next_hop: false },
        addresses: LocalAddresses {
            ipv4: Some(Ipv4Addr::new(203, 0, 113, index as u8 + 1)),
            ipv6: Some(Ipv6Addr::new(0x2001, 0xdb8, 0xffff, 0, 0, 0, 0, index as u16 + 1)),
            link: None,
        },
        promises_end_of_rib: true,
        sends_end_of_rib: true,
        stale_kept: Families::NONE,
        enhanced_route_refresh: false,
        ipv4_via_ipv6: false,
        knows_long_lived: false,
        add_path: Default::default(),
    }
}

fn read(told: &mut BTreeMap<Prefix, (NextHop, Vec<u8>)>, body: &[u8], sort: SessionSort) {
    let context = UpdateContext {
        sort,
        as4: true,
        families: Families::from_iter(Family::ALL),
        extended_next_hop: false,
        first_as: None,
        discard_attributes: AttributeTypes::NONE,
        path_ids: Families::NONE,
    };
    let body = UpdateBody::split(body).expect("a well-formed UPDATE");
    // A peer with two-octet AS numbers says nothing about them by itself.
    let update = [true, false].map(|as4| body.decode(&UpdateContext { as4, ..context }));
    let mut update = update.into_iter().flatten().filter(|update| update.errors.is_empty());
    let update = update.next().expect("a valid UPDATE");
    for prefix in update.withdrawn() {
        told.remove(&prefix);
    }
    for announcement in update.announcements() {
        let path = update.attributes.as_ref().expect("attributes").as_bytes().to_vec();
        for prefix in announcement.prefixes.iter() {
            told.insert(prefix, (announcement.next_hop, path.clone()));
        }
    }
}

fn prefix(dice: &mut Dice) -> Prefix {
    let number = dice.roll(5);
    let text = match dice.flip() {
        true => format!("10.{number}.0.0/24"),
        false => format!("2001:db8:{number}::/64"),
    };
    text.parse().expect("a prefix")
}

fn route(dice: &mut Dice, asn: u32, prefix: Prefix) -> Arc<RouteAttributes> {
    let plain = PathAttributes::originated([Origin::Igp, Origin::Incomplete][dice.roll(2)]);
    let mut builder = plain.edit();
    for _ in 0..dice.roll(4) {
        builder.prepend([65010, LOCAL_ASN, 64512, 70_000][dice.roll(4)], 1);
    }
    match asn {
        LOCAL_ASN => builder.local_pref(Some(100 + 10 * dice.roll(2) as u32)),
        _ => builder.prepend(asn, 1),
    };
    builder.med([None, Some(3)][dice.roll(2)]);
    let communities = [Community(7), Community::NO_EXPORT, Community::GRACEFUL_SHUTDOWN];
    if let Some(community) = communities.get(dice.roll(5)) {
        builder.add_communities(&[*community]);
    }
    let host = dice.roll(3) as u8;
    let next_hop: IpAddr = match prefix.family() {
        Family::Ipv4Unicast => Ipv4Addr::new(198, 51, 100, 100 + host).into(),
        Family::Ipv6Unicast => Ipv6Addr::new(0x2001, 0xdb8, 1, 0, 0, 0, 0, host.into()).into(),
    };
    Arc::new(RouteAttributes::new(NextHop::new(next_hop), builder.build()))
}

/// Changes one field that needs no new session.
fn change_config(dice: &mut Dice, peer: &mut PeerConfig) {
    let inside = peer.asn == LOCAL_ASN;
    let modes = [NextHopMode::Auto, NextHopMode::SelfAddress, NextHopMode::Unchanged];
    match dice.roll(10) {
        0 => peer.route_reflector_client = inside && dice.flip(),
        1 => peer.next_hop = modes[dice.roll(3)],
        2 => peer.export_scope = [ExportScope::All, ExportScope::OriginatedOnly][dice.roll(2)],
        3 => peer.own_as_max = dice.roll(3) as u8,
        4 => peer.as_path_len_max = [None, Some(1), Some(3)][dice.roll(3)],
        5 => peer.remove_private_as = dice.flip(),
        6 => peer.graceful_shutdown = dice.flip(),
        7 => peer.import = (0..dice.roll(3)).map(|_| policy(dice.roll(6))).collect(),
        _ => peer.export = (0..dice.roll(3)).map(|_| policy(dice.roll(6))).collect(),
    }
}

/// One step of a history, done to what is wanted and to what runs.
fn step(dice: &mut Dice, wanted: &mut Wanted, running: &mut Running) {
    let index = dice.roll(wanted.peers.len());
    let id = running.ids[index];
    match dice.roll(16) {
        0 => {
            let peer = &mut wanted.peers[index];
            peer.up = !peer.up;
            if peer.up {
                running.up(index);
            } else {
                peer.routes.clear();
                running.rib.peer_down(id, Families::NONE);
            }
        }
        1 => {
            let prefix = prefix(dice);
            if wanted.originated.remove(&prefix).is_none() {
                let communities = vec![dice.roll(9) as u32];
                let origination = Origination { source: "t".into(), communities, local_pref: None };
                wanted.originated.insert(prefix, origination);
            }
            running.rib.set_originated(&wanted.originated);
        }
        2 => {
            wanted.multipath =
                Multipath { paths_max: 1 + dice.roll(3) as u16, same_as_path: dice.flip() };
            running.rib.configure(wanted.router_id, wanted.multipath);
        }
        3 => running.rib.refresh(id, Family::ALL[dice.roll(2)]),
        4..=7 => {
            change_config(dice, &mut wanted.peers[index].config);
            running.rib.configure_peer(id, wanted.rib_config(index));
        }
        8 | 9 => {
            for id in running.ids.clone() {
                running.rib.set_room(id, [0, 1, 100_000][dice.roll(3)]);
            }
            running.flush(wanted);
        }
        10 => {
            let prefix = prefix(dice);
            if wanted.peers[index].routes.remove(&prefix).is_some() {
                let mut batch = UpdateBatch::default();
                batch.push_withdrawals([prefix]);
                running.rib.update(id, batch).expect("no limit is set");
            }
        }
        _ if wanted.peers[index].up => {
            let prefix = prefix(dice);
            let route = route(dice, wanted.peers[index].config.asn, prefix);
            wanted.peers[index].routes.insert(prefix, Arc::clone(&route));
            running.announce(index, prefix, route);
        }
        _ => {}
    }
}

proptest! {
    #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::with_cases(2000) })]

    #[test]
    fn any_way_to_a_configuration_ends_as_a_start_with_it(seed: u64, steps in 1usize..250) {
        let mut dice = Dice(seed | 1);
        let mut wanted = Wanted::new();
        let mut running = wanted.start();
        for _ in 0..steps {
            step(&mut dice, &mut wanted, &mut running);
        }
        running.settle(&wanted);
        let mut fresh = wanted.start();
        fresh.settle(&wanted);
        prop_assert_eq!(running.routes(), fresh.routes());
        prop_assert_eq!(running.counts(), fresh.counts());
        prop_assert_eq!(&running.fib, &fresh.fib);
        for (index, (running, fresh)) in running.told.iter().zip(&fresh.told).enumerate() {
            if wanted.peers[index].up {
                prop_assert_eq!(running, fresh, "what p{} has been told", index);
            }
        }
    }
}

const LOCAL_ASN: u32 = 65000;
