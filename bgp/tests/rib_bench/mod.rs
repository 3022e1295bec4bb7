//! A RIB with a few peers whose sessions are up, and what they read.

#![allow(dead_code, reason = "shared by several test files")]

use std::collections::BTreeMap;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::sync::Arc;
use std::time::Instant;

use cairn_bgp::config::{Multipath, Origination, PeerConfig, SpeakerConfig};
use cairn_bgp::policy::{Action, Changes, Match, Policy, Rule};
use cairn_bgp::prefix::{Families, Family, Prefix};
use cairn_bgp::rib::{
    CandidateInfo, Output, PeerId, PeerSession, PrefixFilter, Rib, RibConfig, RibPeerConfig,
    RouteAttributes, RouteFilter, UpdateBatch, UpdateOutcome,
};
use cairn_bgp::session::LocalAddresses;
use cairn_bgp::wire::{
    Community, CommunityValue, HEADER_OCTETS, MessageFormat, NextHop, Origin, PathAttributes,
    PathPrefix, UpdateBody, UpdateContext, attribute_type,
};

const ASN: u32 = 65000;
const ROUTER_ID: Ipv4Addr = Ipv4Addr::new(192, 0, 2, 254);

pub struct Bench {
    pub rib: Rib,
    peers: Vec<Peer>,
    originated: BTreeMap<Prefix, Origination>,
}

struct Peer {
    id: PeerId,
    config: RibPeerConfig,
    session: PeerSession,
    /// By prefix, with the identifier of the path behind it where there are several.
    told: BTreeMap<String, Told>,
    room: usize,
}

/// What a peer reads of a route.
#[derive(Clone, Debug)]
pub struct Told {
    pub next_hop: String,
    /// Beside a global IPv6 one.
    pub link_local: Option<Ipv6Addr>,
    pub local_pref: Option<u32>,
    pub med: Option<u32>,
    pub as_path: String,
    pub communities: Vec<Community>,
    pub cluster_list: Vec<Ipv4Addr>,
    pub originator: Option<Ipv4Addr>,
    pub only_to_customer: Option<u32>,
}

/// What a route brings with it.
#[derive(Clone)]
pub struct Path {
    next_hop: Option<IpAddr>,
    link_local: Option<Ipv6Addr>,
    attributes: PathAttributes,
}

/// ONLY_TO_CUSTOMER has the form of a list of AS numbers with one member.
#[derive(Clone, Copy, PartialEq)]
struct OnlyToCustomer(u32);

impl CommunityValue for OnlyToCustomer {
    const ATTRIBUTE: u8 = attribute_type::ONLY_TO_CUSTOMER;
    const OCTETS: usize = 4;

    fn put(self, out: &mut Vec<u8>) {
        out.extend(self.0.to_be_bytes());
    }
}

impl Path {
    pub fn of(asns: &[u32]) -> Path {
        let plain = PathAttributes::originated(Origin::Igp);
        let mut builder = plain.edit();
        for asn in asns.iter().rev() {
            builder.prepend(*asn, 1);
        }
        Path { next_hop: None, link_local: None, attributes: builder.build() }
    }

    pub fn via(self, next_hop: &str) -> Path {
        Path { next_hop: Some(next_hop.parse().unwrap()), ..self }
    }

    /// With a link-local address beside its next hop.
    pub fn beside(self, link_local: &str) -> Path {
        Path { link_local: Some(link_local.parse().unwrap()), ..self }
    }

    pub fn med(self, med: u32) -> Path {
        Path { attributes: self.attributes.edit().med(Some(med)).build(), ..self }
    }

    pub fn community(self, community: Community) -> Path {
        let attributes = self.attributes.edit().add_communities(&[community]).build();
        Path { attributes, ..self }
    }

    pub fn originator(self, id: &str) -> Path {
        let id = Some(id.parse().unwrap());
        Path { attributes: self.attributes.edit().originator_id(id).build(), ..self }
    }

    pub fn clusters(self, ids: &[&str]) -> Path {
        let mut builder = self.attributes.edit();
        for id in ids.iter().rev() {
            builder.prepend_cluster(id.parse().unwrap());
        }
        Path { attributes: builder.build(), ..self }
    }

    pub fn only_to_customer(self, asn: u32) -> Path {
        let attributes = self.attributes.edit().add_values(&[OnlyToCustomer(asn)]).build();
        Path { attributes, ..self }
    }
}

pub fn policy(name: &str, rules: impl Into<Vec<Rule>>) -> Arc<Policy> {
    Arc::new(Policy { name: name.into(), rules: rules.into() })
}

/// Everything passes.
pub fn accept() -> Arc<Policy> {
    let (matches, set) = (Match::default(), Changes::default());
    policy("accept", [Rule { matches, action: Action::Accept, set }])
}

impl Bench {
    pub fn new() -> Bench {
        let mut rib = Rib::new(RibConfig {
            router_id: ROUTER_ID,
            multipath: Multipath { paths_max: 4, same_as_path: false },
            seed: 7,
            deferral_until: Instant::now(),
            restarting: false,
        });
        rib.tick(Instant::now());
        Bench { rib, peers: Vec::new(), originated: BTreeMap::new() }
    }

    /// A peer of this AS that takes and gets everything.
    pub fn peer(&mut self, asn: u32) -> PeerId {
        self.peer_with(asn, |_| {})
    }

    pub fn peer_with(&mut self, asn: u32, configure: impl FnOnce(&mut RibPeerConfig)) -> PeerId {
        let number = self.peers.len() as u8 + 1;
        let speaker = SpeakerConfig {
            origins: Default::default(),
            ranges: Default::default(),
            asn: ASN,
            router_id: ROUTER_ID,
            cluster_id: None,
            listen: Vec::new(),
            peers: BTreeMap::new(),
            originate: BTreeMap::new(),
            selection_deferral_secs: 0,
            multipath: Multipath { paths_max: 4, same_as_path: false },
        };
        let peer = PeerConfig {
            import: vec![accept()],
            export: vec![accept()],
            ..PeerConfig::new(Ipv4Addr::new(198, 51, 100, number).into(), asn)
        };
        let mut config = RibPeerConfig::new(&speaker, &format!("p{number}").into(), &peer);
        configure(&mut config);
        let id = self.rib.add_peer(config.clone());
        let session = PeerSession {
            router_id: Ipv4Addr::new(192, 0, 2, number),
            families: Families::from_iter(Family::ALL),
            format: MessageFormat { octets_max: 4096, as4: true, extended_next_hop: false },
            addresses: LocalAddresses {
                ipv4: Some(Ipv4Addr::new(203, 0, 113, number)),
                ipv6: Some(Ipv6Addr::new(0x2001, 0xdb8, 0xffff, 0, 0, 0, 0, number.into())),
                link: None,
            },
            ipv4_via_ipv6: false,
            knows_long_lived: false,
            promises_end_of_rib: false,
            sends_end_of_rib: false,
            enhanced_route_refresh: false,
            stale_kept: Families::NONE,
            add_path: Default::default(),
        };
        self.rib.peer_up(id, session);
        self.rib.set_room(id, usize::MAX);
        self.peers.push(Peer { id, config, session, told: BTreeMap::new(), room: usize::MAX });
        id
    }

    pub fn configure(&mut self, id: PeerId, change: impl FnOnce(&mut RibPeerConfig)) {
        let peer = self.peers.iter_mut().find(|peer| peer.id == id).unwrap();
        change(&mut peer.config);
        self.rib.configure_peer(id, peer.config.clone());
    }

    pub fn multipath(&mut self, multipath: Multipath) {
        self.rib.configure(ROUTER_ID, multipath);
    }

    pub fn down(&mut self, id: PeerId) {
        self.rib.peer_down(id, Families::NONE);
        self.peers.iter_mut().find(|peer| peer.id == id).unwrap().told.clear();
    }

    /// The peer's session comes up once more, with what `change` makes of it.
    pub fn up_again(&mut self, id: PeerId, change: impl FnOnce(&mut PeerSession)) {
        let peer = self.peers.iter_mut().find(|peer| peer.id == id).unwrap();
        peer.told.clear();
        change(&mut peer.session);
        self.rib.peer_up(id, peer.session);
        self.rib.set_room(id, usize::MAX);
    }

    /// A session in which the peer sends several paths to a prefix; what was kept of a former one waits
    /// for End-of-RIB.
    pub fn receive_paths(&mut self, id: PeerId) {
        let both = Families::from_iter(Family::ALL);
        let peer = self.peers.iter_mut().find(|peer| peer.id == id).unwrap();
        peer.session.add_path.receive = both;
        self.rib.peer_up(id, PeerSession { stale_kept: both, ..peer.session });
    }

    /// A session in which the peer is sent several paths to a prefix.
    pub fn send_paths(&mut self, id: PeerId) {
        let peer = self.peers.iter_mut().find(|peer| peer.id == id).unwrap();
        peer.session.add_path.send = Families::from_iter(Family::ALL);
        peer.told.clear();
        self.rib.peer_down(id, Families::NONE);
        self.rib.peer_up(id, peer.session);
    }

    /// Room that a peer has from now on, in octets.
    pub fn room(&mut self, id: PeerId, octets: usize) {
        let peer = self.peers.iter_mut().find(|peer| peer.id == id).unwrap();
        peer.room = octets;
    }

    pub fn withdraw_path(&mut self, id: PeerId, path_id: u32, prefix: &str) {
        let mut batch = UpdateBatch::default();
        batch.push_path_withdrawals(path_id, [prefix.parse::<Prefix>().unwrap()]);
        self.rib.update(id, batch).expect("a withdrawal exceeds no limit");
    }

    pub fn announce(&mut self, id: PeerId, prefix: &str, path: &Path) {
        self.announce_path(id, 0, prefix, path);
    }

    /// Announces one of several paths.
    pub fn announce_path(
        &mut self,
        id: PeerId,
        path_id: u32,
        prefix: &str,
        path: &Path,
    ) -> UpdateOutcome {
        let prefix: Prefix = prefix.parse().unwrap();
        let usual = match prefix.family() {
            Family::Ipv4Unicast => "198.51.100.100",
            Family::Ipv6Unicast => "2001:db8:1::1",
        };
        let address = path.next_hop.unwrap_or_else(|| usual.parse().unwrap());
        let next_hop = NextHop { address, link_local: path.link_local };
        let attributes = RouteAttributes::new(next_hop, path.attributes.clone());
        let mut batch = UpdateBatch::default();
        batch.push_announcements(Arc::new(attributes.with_path_id(path_id)), [prefix]);
        self.rib.update(id, batch).expect("no limit ends the session")
    }

    pub fn withdraw(&mut self, id: PeerId, prefix: &str) {
        let mut batch = UpdateBatch::default();
        batch.push_withdrawals([prefix.parse::<Prefix>().unwrap()]);
        self.rib.update(id, batch).expect("a withdrawal exceeds no limit");
    }

    pub fn originate(&mut self, prefix: &str) {
        let origination =
            Origination { source: "t".into(), communities: Vec::new(), local_pref: None };
        self.originated.insert(prefix.parse().unwrap(), origination);
        self.rib.set_originated(&self.originated);
    }

    /// A candidate for a prefix, the best one first.
    pub fn candidate(&self, prefix: &str, index: usize) -> CandidateInfo {
        let prefix = PrefixFilter::Exact(prefix.parse().unwrap());
        let routes = self.rib.routes(&RouteFilter { prefix, ..RouteFilter::default() });
        routes[0].candidates[index].clone()
    }

    pub fn export_verdict(&self, id: PeerId, prefix: &str) -> String {
        let verdict = self.rib.export_verdict(id, prefix.parse().unwrap());
        verdict.unwrap_or_else(|not| not).to_string()
    }

    pub fn own_address(&self, id: PeerId) -> String {
        let peer = self.peers.iter().find(|peer| peer.id == id).unwrap();
        peer.session.addresses.ipv4.unwrap().to_string()
    }

    /// What a peer has been told so far.
    pub fn told(&mut self, id: PeerId) -> BTreeMap<String, Told> {
        let mut output = Vec::new();
        for peer in &self.peers {
            self.rib.set_room(peer.id, peer.room);
        }
        self.rib.flush(&mut output);
        for Output { peer, chunk } in output {
            let peer = self.peers.iter_mut().find(|p| p.id == peer).unwrap();
            for message in &chunk.messages {
                let mut bytes = message.bytes.to_vec();
                if let Some(range) = message.next_hop.clone() {
                    let own = peer.session.addresses;
                    match range.len() {
                        4 => bytes[range].copy_from_slice(&own.ipv4.unwrap().octets()),
                        _ => bytes[range].copy_from_slice(&own.ipv6.unwrap().octets()),
                    }
                }
                peer.read(&bytes);
            }
        }
        self.peers.iter().find(|peer| peer.id == id).unwrap().told.clone()
    }
}

impl Peer {
    fn read(&mut self, message: &[u8]) {
        let context = UpdateContext {
            sort: self.config.sort,
            as4: true,
            families: Families::from_iter(Family::ALL),
            extended_next_hop: false,
            first_as: None,
            discard_attributes: Default::default(),
            path_ids: self.session.add_path.send,
        };
        let body = UpdateBody::split(&message[HEADER_OCTETS..]).expect("a well-formed UPDATE");
        let update = body.decode(&context).expect("a valid UPDATE");
        assert!(update.errors.is_empty(), "{:?}", update.errors);
        for path in update.withdrawn_runs().flat_map(|prefixes| prefixes.paths()) {
            self.told.remove(&name(path));
        }
        for announcement in update.announcements() {
            let path = update.attributes.as_ref().expect("attributes");
            let only_to_customer = path.value(attribute_type::ONLY_TO_CUSTOMER);
            let told = Told {
                next_hop: announcement.next_hop.address.to_string(),
                link_local: announcement.next_hop.link_local,
                local_pref: path.local_pref(),
                med: path.med(),
                as_path: path.as_path().to_string(),
                communities: path.communities().collect(),
                cluster_list: path.cluster_list().collect(),
                originator: path.originator_id(),
                only_to_customer: only_to_customer
                    .map(|octets| u32::from_be_bytes(octets.try_into().unwrap())),
            };
            for path in announcement.prefixes.paths() {
                self.told.insert(name(path), told.clone());
            }
        }
    }
}

fn name(path: PathPrefix) -> String {
    match path {
        PathPrefix { prefix, path_id: 0 } => prefix.to_string(),
        PathPrefix { prefix, path_id } => format!("{prefix} path {path_id}"),
    }
}
