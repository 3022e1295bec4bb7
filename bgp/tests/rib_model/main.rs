//! The RIB against a naive model: random histories of sessions, routes, policies and slow readers,
//! then what each peer has been told and what the kernel has been told must be what follows from the
//! last state alone.

use std::collections::BTreeMap;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::sync::Arc;
use std::time::{Duration, Instant};

use cairn_bgp::config::{
    ExportScope, Multipath, NextHopMode, Origination, PrefixLimit, PrefixLimitAction,
};
use cairn_bgp::policy::{Action, Changes, Match, Policy, Rule};
use cairn_bgp::prefix::{Families, Family, Prefix};
use cairn_bgp::rib::{
    FibRoute, Output, PeerId, PeerSession, PrefixLimitExceeded, Rib, RibConfig, RibPeerConfig,
    RouteAttributes, RouteFilter, UpdateBatch, UpdateOutcome, WireMessage,
};
use cairn_bgp::session::LocalAddresses;
use cairn_bgp::wire::{
    AddPathFamilies, AttributeTypes, Community, HEADER_OCTETS, MessageFormat, NextHop, Origin,
    PathAttributes, SessionSort, UpdateBody, UpdateContext,
};
use proptest::prelude::*;

mod cases;

const LOCAL_ASN: u32 = 65000;
const LOCAL_ID: Ipv4Addr = Ipv4Addr::new(192, 0, 2, 254);

/// A small generator: a failing seed is enough to repeat a run.
struct Dice(u64);

impl Dice {
    fn roll(&mut self, sides: usize) -> usize {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        (self.0 >> 33) as usize % sides
    }
}

/// A route as the model keeps it.
#[derive(Clone, Debug)]
struct Route {
    next_hop: IpAddr,
    local_pref: Option<u32>,
    as_path: Vec<u32>,
    origin: Origin,
    med: Option<u32>,
    communities: Vec<Community>,
    /// 0 of peers that send one path to a prefix.
    path_id: u32,
}

#[derive(Clone, Copy, Debug, PartialEq)]
enum Sort {
    Ebgp(u32),
    Ibgp,
    Client,
}

struct ModelPeer {
    id: PeerId,
    index: usize,
    sort: Sort,
    up: bool,
    config: RibPeerConfig,
    accepts: bool,
    exports: bool,
    /// Routes as received, by the identifier of the path.
    routes: BTreeMap<(Prefix, u32), Route>,
    /// What the peer has been told, as it reads it, by the identifier of the path.
    told: BTreeMap<(Prefix, u32), Told>,
}

/// What a peer reads.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
struct Told {
    next_hop: IpAddr,
    local_pref: Option<u32>,
    as_path: String,
    origin: Origin,
    med: Option<u32>,
    communities: Vec<Community>,
    originator_id: Option<Ipv4Addr>,
    clusters: Vec<Ipv4Addr>,
}

impl ModelPeer {
    fn router_id(&self) -> Ipv4Addr {
        Ipv4Addr::new(192, 0, 2, self.index as u8 + 1)
    }

    fn local(&self) -> LocalAddresses {
        LocalAddresses {
            ipv4: Some(Ipv4Addr::new(203, 0, 113, self.index as u8 + 1)),
            ipv6: Some(Ipv6Addr::new(0x2001, 0xdb8, 0xffff, 0, 0, 0, 0, self.index as u16 + 1)),
            link: None,
        }
    }

    fn session(&self) -> PeerSession {
        PeerSession {
            router_id: self.router_id(),
            families: Families::from_iter(Family::ALL),
            format: MessageFormat { octets_max: 4096, as4: true, extended_next_hop: false },
            addresses: self.local(),
            promises_end_of_rib: true,
            sends_end_of_rib: true,
            stale_kept: Families::NONE,
            enhanced_route_refresh: false,
            ipv4_via_ipv6: false,
            knows_long_lived: false,
            add_path: AddPathFamilies { receive: self.receives_paths(), send: self.sent_paths() },
        }
    }

    /// Every second peer sends several paths (RFC 7911), one of them of one family.
    fn receives_paths(&self) -> Families {
        match self.index {
            1 | 5 => Families::from_iter(Family::ALL),
            3 => Families::NONE.with(Family::Ipv6Unicast),
            _ => Families::NONE,
        }
    }

    /// One of each sort is told several paths; both clients, so that they may share messages.
    fn sent_paths(&self) -> Families {
        match self.index {
            2 | 5 | 6 => Families::from_iter(Family::ALL),
            4 => Families::NONE.with(Family::Ipv4Unicast),
            _ => Families::NONE,
        }
    }

    /// The first of the paths that it has been told.
    fn told_of(&self, prefix: Prefix) -> Option<&Told> {
        self.told.range((prefix, 0)..=(prefix, u32::MAX)).next().map(|(_, told)| told)
    }

    fn is_ebgp(&self) -> bool {
        matches!(self.sort, Sort::Ebgp(_))
    }
}

fn policy(name: &str, action: Action) -> Arc<Policy> {
    let (matches, set) = (Match::default(), Changes::default());
    Arc::new(Policy { name: name.into(), rules: vec![Rule { matches, action, set }] })
}

struct World {
    dice: Dice,
    now: Instant,
    rib: Rib,
    peers: Vec<ModelPeer>,
    originated: BTreeMap<Prefix, Origination>,
    fib: BTreeMap<Prefix, FibRoute>,
    multipath_max: u16,
}

impl World {
    fn new(seed: u64) -> World {
        let now = Instant::now();
        let multipath_max = 1 + (seed % 3) as u16;
        let mut world = World {
            dice: Dice(seed | 1),
            now,
            rib: Rib::new(RibConfig {
                router_id: LOCAL_ID,
                multipath: Multipath { paths_max: multipath_max, same_as_path: false },
                seed,
                deferral_until: now + Duration::from_secs(10),
                restarting: seed.is_multiple_of(2),
            }),
            peers: Vec::new(),
            originated: BTreeMap::new(),
            fib: BTreeMap::new(),
            multipath_max,
        };
        let sorts =
            [Sort::Ebgp(65001), Sort::Ebgp(65001), Sort::Ebgp(65002), Sort::Ibgp, Sort::Ibgp]
                .into_iter()
                .chain([Sort::Client, Sort::Client]);
        for (index, sort) in sorts.enumerate() {
            let sort_of_session = match sort {
                Sort::Ebgp(_) => SessionSort::Ebgp,
                _ => SessionSort::Ibgp,
            };
            let config = RibPeerConfig {
                name: format!("p{index}").into(),
                address: Ipv4Addr::new(198, 51, 100, index as u8 + 1).into(),
                sort: sort_of_session,
                asn: match sort {
                    Sort::Ebgp(asn) => asn,
                    _ => LOCAL_ASN,
                },
                prepend: vec![LOCAL_ASN],
                prepend_received: None,
                route_reflector_client: sort == Sort::Client,
                next_hop: NextHopMode::Auto,
                export_scope: ExportScope::All,
                sent_paths_max: 2,
                prefix_limit: None,
                own_as_max: 0,
                as_path_len_max: None,
                remove_private_as: false,
                graceful_shutdown: false,
                long_lived_within: None,
                import: vec![policy("in", Action::Accept)],
                export: vec![policy("out", Action::Accept)],
            };
            let id = world.rib.add_peer(config.clone());
            world.peers.push(ModelPeer {
                id,
                index,
                sort,
                up: false,
                config,
                accepts: true,
                exports: true,
                routes: BTreeMap::new(),
                told: BTreeMap::new(),
            });
        }
        world
    }

    fn prefix(&mut self) -> Prefix {
        let number = self.dice.roll(6);
        let text = match self.dice.roll(2) {
            0 => format!("10.{number}.0.0/24"),
            _ => format!("fd00:{number}::/64"),
        };
        text.parse().expect("a prefix")
    }

    /// The identifier of a path in what a peer sends.
    fn path_id(&mut self, index: usize, prefix: Prefix) -> u32 {
        match self.peers[index].receives_paths().contains(prefix.family()) {
            true => [0, 1, 7, u32::MAX][self.dice.roll(4)],
            false => 0,
        }
    }

    fn route(&mut self, sort: Sort, family: Family) -> Route {
        let dice = &mut self.dice;
        let mut as_path = Vec::new();
        if let Sort::Ebgp(asn) = sort {
            as_path.push(asn);
        }
        for _ in 0..dice.roll(3) {
            as_path.push([65010, 65011, 65001][dice.roll(3)]);
        }
        if dice.roll(12) == 0 {
            as_path.push(LOCAL_ASN);
        }
        let host = dice.roll(3) as u8 + 1;
        let communities = match dice.roll(8) {
            0 => vec![Community::NO_EXPORT],
            1 => vec![Community::NO_ADVERTISE],
            2 => vec![Community(7)],
            _ => Vec::new(),
        };
        Route {
            next_hop: match family {
                Family::Ipv4Unicast => Ipv4Addr::new(198, 51, 100, 100 + host).into(),
                Family::Ipv6Unicast => {
                    Ipv6Addr::new(0x2001, 0xdb8, 1, 0, 0, 0, 0, host.into()).into()
                }
            },
            local_pref: match sort {
                Sort::Ebgp(_) => None,
                _ => Some(100 + 10 * dice.roll(2) as u32),
            },
            as_path,
            origin: [Origin::Igp, Origin::Incomplete][dice.roll(2)],
            med: [None, Some(0), Some(5)][dice.roll(3)],
            communities,
            path_id: 0,
        }
    }

    fn attributes(route: &Route) -> Arc<RouteAttributes> {
        let plain = PathAttributes::originated(route.origin);
        let mut builder = plain.edit();
        for asn in route.as_path.iter().rev() {
            builder.prepend(*asn, 1);
        }
        builder.local_pref(route.local_pref).med(route.med).add_communities(&route.communities);
        let attributes = RouteAttributes::new(NextHop::new(route.next_hop), builder.build());
        Arc::new(attributes.with_path_id(route.path_id))
    }

    fn step(&mut self) {
        let index = self.dice.roll(self.peers.len());
        match self.dice.roll(24) {
            0 => self.toggle(index),
            1 => {
                let accepts = !self.peers[index].accepts;
                let peer = &mut self.peers[index];
                peer.accepts = accepts;
                let action = if accepts { Action::Accept } else { Action::Reject };
                peer.config.import = vec![policy("in", action)];
                self.rib.configure_peer(peer.id, peer.config.clone());
            }
            2 => {
                let peer = &mut self.peers[index];
                peer.exports = !peer.exports;
                let action = if peer.exports { Action::Accept } else { Action::Reject };
                peer.config.export = vec![policy("out", action)];
                self.rib.configure_peer(peer.id, peer.config.clone());
            }
            3 => {
                let prefix = self.prefix();
                if self.originated.remove(&prefix).is_none() {
                    let origination =
                        Origination { source: "t".into(), communities: vec![7], local_pref: None };
                    self.originated.insert(prefix, origination);
                }
                self.rib.set_originated(&self.originated);
            }
            4 => {
                let family = Family::ALL[self.dice.roll(2)];
                self.rib.refresh(self.peers[index].id, family);
            }
            5 => {
                let peer = &mut self.peers[index];
                peer.config.sent_paths_max = 1 + self.dice.roll(3) as u8;
                self.rib.configure_peer(peer.id, peer.config.clone());
            }
            6..=8 => self.exchange(),
            9..=12 => self.withdraw(index),
            _ => self.announce(index),
        }
    }

    fn toggle(&mut self, index: usize) {
        let peer = &mut self.peers[index];
        peer.up = !peer.up;
        if peer.up {
            peer.told.clear();
            self.rib.peer_up(peer.id, peer.session());
        } else {
            peer.routes.clear();
            self.rib.peer_down(peer.id, Families::NONE);
        }
    }

    fn announce(&mut self, index: usize) {
        if !self.peers[index].up {
            return;
        }
        let prefix = self.prefix();
        let path_id = self.path_id(index, prefix);
        let route = Route { path_id, ..self.route(self.peers[index].sort, prefix.family()) };
        let mut batch = UpdateBatch::default();
        batch.push_announcements(Self::attributes(&route), [prefix]);
        self.peers[index].routes.insert((prefix, path_id), route);
        self.rib.update(self.peers[index].id, batch).expect("no limit is set");
    }

    fn withdraw(&mut self, index: usize) {
        let prefix = self.prefix();
        let path_id = self.path_id(index, prefix);
        let peer = &mut self.peers[index];
        if peer.up {
            let mut batch = UpdateBatch::default();
            batch.push_path_withdrawals(path_id, [prefix]);
            peer.routes.remove(&(prefix, path_id));
            self.rib.update(peer.id, batch).expect("no limit is set");
        }
    }

    /// Some peers can take something, some not; the kernel side reads a little.
    fn exchange(&mut self) {
        for index in 0..self.peers.len() {
            let room = [0, 1, 100, 100_000][self.dice.roll(4)];
            self.rib.set_room(self.peers[index].id, room);
        }
        self.flush();
        let max = self.dice.roll(4);
        self.read_fib(max);
    }

    fn flush(&mut self) {
        let mut output = Vec::new();
        self.rib.flush(&mut output);
        for Output { peer, chunk } in output {
            let peer = self.peers.iter_mut().find(|p| p.id == peer).expect("a known peer");
            assert!(peer.up, "nothing is sent to a peer that is down");
            chunk.messages.iter().for_each(|message| peer.read_as_sent(message));
        }
    }

    fn read_fib(&mut self, max: usize) {
        for change in self.rib.take_fib(max) {
            match change.route {
                Some(route) => drop(self.fib.insert(change.prefix, route)),
                None => drop(self.fib.remove(&change.prefix)),
            }
        }
    }

    fn settle(&mut self) {
        self.rib.tick(self.now + Duration::from_secs(11));
        for index in 0..self.peers.len() {
            self.rib.set_room(self.peers[index].id, usize::MAX);
        }
        self.flush();
        while self.rib.fib_pending() {
            self.read_fib(3);
        }
    }

    /// The usable routes to a prefix: peer index and route; `None` is our own.
    fn candidates(&self, prefix: Prefix) -> Vec<(&ModelPeer, &Route)> {
        let of_peer = |peer: &'_ ModelPeer| peer.up && peer.accepts;
        let peers = self.peers.iter().filter(|peer| of_peer(peer));
        let to_prefix = (prefix, 0)..=(prefix, u32::MAX);
        let routes = peers.flat_map(|peer| {
            peer.routes.range(to_prefix.clone()).map(move |(_, route)| (peer, route))
        });
        routes.filter(|(_, route)| !route.as_path.contains(&LOCAL_ASN)).collect()
    }

    fn best(&self, prefix: Prefix) -> Vec<(&ModelPeer, &Route)> {
        Self::best_of(self.candidates(prefix))
    }

    /// RFC 4271 section 9.1.2.2, step by step, one list after the other.
    fn best_of<'a>(mut left: Vec<(&'a ModelPeer, &'a Route)>) -> Vec<(&'a ModelPeer, &'a Route)> {
        let most = left.iter().map(|(_, r)| r.local_pref.unwrap_or(100)).max();
        left.retain(|(_, r)| Some(r.local_pref.unwrap_or(100)) == most);
        let shortest = left.iter().map(|(_, r)| r.as_path.len()).min();
        left.retain(|(_, r)| Some(r.as_path.len()) == shortest);
        let origin = left.iter().map(|(_, r)| r.origin).min();
        left.retain(|(_, r)| Some(r.origin) == origin);
        let all = left.clone();
        left.retain(|(_, r)| {
            !all.iter().any(|(_, other)| {
                other.as_path.first() == r.as_path.first()
                    && other.med.unwrap_or(0) < r.med.unwrap_or(0)
            })
        });
        if left.iter().any(|(peer, _)| peer.is_ebgp()) {
            left.retain(|(peer, _)| peer.is_ebgp());
        }
        left.sort_by_key(|(peer, route)| (peer.router_id(), route.path_id));
        left
    }

    /// What a peer is told about a prefix: the best route or nothing, or so many of the best paths that
    /// may go to it, without its own.
    fn expected(&self, to: &ModelPeer, prefix: Prefix) -> Vec<Told> {
        if !to.up || !to.exports {
            return Vec::new();
        }
        let mut left = self.candidates(prefix);
        let mut told = Vec::new();
        let mut chosen = 0;
        let max = match to.sent_paths().contains(prefix.family()) {
            true => to.config.sent_paths_max,
            false => 1,
        };
        if self.originated.contains_key(&prefix) {
            told.push(self.told_of_ours(to, prefix));
            chosen += 1;
        }
        while chosen < max
            && let Some((from, route)) = Self::best_of(left.clone()).first().copied()
        {
            let path = self.told_of(to, from, route, prefix);
            if path.is_none() && max == 1 && !to.sent_paths().contains(prefix.family()) {
                break;
            }
            chosen += u8::from(path.is_some());
            told.extend(path.filter(|_| from.index != to.index));
            left.retain(|(peer, other)| (peer.index, other.path_id) != (from.index, route.path_id));
        }
        told.sort_unstable();
        told
    }

    fn own_next_hop(to: &ModelPeer, prefix: Prefix) -> IpAddr {
        match prefix.family() {
            Family::Ipv4Unicast => IpAddr::V4(to.local().ipv4.expect("set")),
            Family::Ipv6Unicast => IpAddr::V6(to.local().ipv6.expect("set")),
        }
    }

    fn told_of_ours(&self, to: &ModelPeer, prefix: Prefix) -> Told {
        Told {
            next_hop: Self::own_next_hop(to, prefix),
            local_pref: (!to.is_ebgp()).then_some(100),
            as_path: if to.is_ebgp() { LOCAL_ASN.to_string() } else { String::new() },
            origin: Origin::Igp,
            med: None,
            communities: vec![Community(7)],
            originator_id: None,
            clusters: Vec::new(),
        }
    }

    /// How a route goes to a peer, which may be where it came from; `None` when it may not.
    fn told_of(
        &self,
        to: &ModelPeer,
        from: &ModelPeer,
        route: &Route,
        prefix: Prefix,
    ) -> Option<Told> {
        let inside = !from.is_ebgp() && !to.is_ebgp();
        let reflects = from.sort == Sort::Client || to.sort == Sort::Client;
        if (inside && !reflects)
            || route.communities.contains(&Community::NO_ADVERTISE)
            || (to.is_ebgp() && route.communities.contains(&Community::NO_EXPORT))
        {
            return None;
        }
        let mut as_path: Vec<String> = route.as_path.iter().map(ToString::to_string).collect();
        if to.is_ebgp() {
            as_path.insert(0, LOCAL_ASN.to_string());
        }
        Some(Told {
            next_hop: if to.is_ebgp() { Self::own_next_hop(to, prefix) } else { route.next_hop },
            local_pref: (!to.is_ebgp()).then(|| route.local_pref.unwrap_or(100)),
            as_path: as_path.join(" "),
            origin: route.origin,
            med: if to.is_ebgp() { None } else { route.med },
            communities: route.communities.clone(),
            originator_id: inside.then(|| from.router_id()),
            clusters: if inside { vec![LOCAL_ID] } else { Vec::new() },
        })
    }

    fn check(&self) {
        let mut prefixes: Vec<Prefix> = self.originated.keys().copied().collect();
        prefixes.extend(
            self.peers.iter().flat_map(|peer| peer.routes.keys().map(|(prefix, _)| *prefix)),
        );
        prefixes.sort_unstable();
        prefixes.dedup();
        for peer in self.peers.iter().filter(|peer| peer.up) {
            let expected = |prefix: &Prefix| (*prefix, self.expected(peer, *prefix));
            let expected: BTreeMap<Prefix, Vec<Told>> =
                prefixes.iter().map(expected).filter(|(_, told)| !told.is_empty()).collect();
            let mut told: BTreeMap<Prefix, Vec<Told>> = BTreeMap::new();
            for ((prefix, path_id), path) in &peer.told {
                told.entry(*prefix).or_default().push(path.clone());
                let has_paths = peer.sent_paths().contains(prefix.family());
                assert_eq!(*path_id != 0, has_paths, "an identifier where there are paths");
                assert!(*path_id <= 6, "one of twice as many as there are paths");
            }
            told.values_mut().for_each(|paths| paths.sort_unstable());
            assert_eq!(told, expected, "what {} has been told", peer.config.name);
            for family in Family::ALL {
                let counts = self.rib.counts(peer.id, family);
                let of_family = |p: &&Prefix| p.family() == family;
                let received = peer.routes.keys().map(|(prefix, _)| prefix).filter(of_family);
                assert_eq!(counts.received, received.count());
                let told = expected.iter().filter(|(prefix, _)| of_family(prefix));
                assert_eq!(counts.advertised, told.map(|(_, paths)| paths.len()).sum::<usize>());
            }
        }
        let mut fib = BTreeMap::new();
        for prefix in &prefixes {
            let mut next_hops = Vec::new();
            for (_, route) in self.best(*prefix) {
                if !next_hops.contains(&route.next_hop) {
                    next_hops.push(route.next_hop);
                }
            }
            next_hops.truncate(self.multipath_max.into());
            if !next_hops.is_empty() && !self.originated.contains_key(prefix) {
                fib.insert(*prefix, next_hops);
            }
        }
        let told: BTreeMap<Prefix, Vec<IpAddr>> = self
            .fib
            .iter()
            .map(|(prefix, route)| (*prefix, route.paths.iter().map(|p| p.next_hop).collect()))
            .collect();
        assert_eq!(told, fib, "forwarding table");
        self.check_explanations();
    }

    /// Exactly the best route has not lost, and its equals are those in use.
    fn check_explanations(&self) {
        for route in self.rib.routes(&RouteFilter::default()) {
            for (index, candidate) in route.candidates.iter().enumerate() {
                assert_eq!(candidate.lost_at.is_none(), candidate.best, "{route:?}");
                assert!(!candidate.best || index == 0, "{route:?}");
            }
        }
    }
}

impl ModelPeer {
    fn read_as_sent(&mut self, message: &WireMessage) {
        let mut bytes = message.bytes.to_vec();
        if let Some(range) = message.next_hop.clone() {
            let local = self.local();
            match range.len() {
                4 => bytes[range].copy_from_slice(&local.ipv4.expect("set").octets()),
                _ => bytes[range].copy_from_slice(&local.ipv6.expect("set").octets()),
            }
        }
        self.read(&bytes);
    }

    fn read(&mut self, message: &[u8]) {
        let context = UpdateContext {
            sort: self.config.sort,
            as4: true,
            families: Families::from_iter(Family::ALL),
            extended_next_hop: false,
            first_as: self.is_ebgp().then_some(LOCAL_ASN),
            discard_attributes: AttributeTypes::NONE,
            path_ids: self.sent_paths(),
        };
        let body = UpdateBody::split(&message[HEADER_OCTETS..]).expect("a well-formed UPDATE");
        let update = body.decode(&context).expect("a valid UPDATE");
        assert!(update.errors.is_empty(), "{:?}", update.errors);
        for path in update.withdrawn_runs().flat_map(|prefixes| prefixes.paths()) {
            self.told.remove(&(path.prefix, path.path_id));
        }
        for announcement in update.announcements() {
            let path = update.attributes.as_ref().expect("attributes");
            let told = Told {
                next_hop: announcement.next_hop.address,
                local_pref: path.local_pref(),
                as_path: path.as_path().to_string(),
                origin: path.origin(),
                med: path.med(),
                communities: path.communities().collect(),
                originator_id: path.originator_id(),
                clusters: path.cluster_list().collect(),
            };
            for path in announcement.prefixes.paths() {
                self.told.insert((path.prefix, path.path_id), told.clone());
            }
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::with_cases(3000) })]

    #[test]
    fn any_history_ends_in_what_its_last_state_says(seed: u64, steps in 1usize..400) {
        let mut world = World::new(seed);
        for _ in 0..steps {
            world.step();
        }
        world.settle();
        world.check();
    }
}
