//! Route refresh with its beginning and end marked (RFC 7313), in both roles.

use std::net::Ipv4Addr;
use std::sync::Arc;
use std::time::Instant;

use bytes::BytesMut;
use cairn_bgp::config::{Multipath, NextHopMode, PeerConfig, SpeakerConfig};
use cairn_bgp::prefix::{Families, Family, Prefix};
use cairn_bgp::rib::{
    Output, PeerId, PeerSession, Rib, RibConfig, RibPeerConfig, RouteAttributes, RouteFilter,
    UpdateBatch,
};
use cairn_bgp::session::LocalAddresses;
use cairn_bgp::wire::{
    Frame, MessageFormat, MessageType, NextHop, Origin, PathAttributes, RefreshKind, RouteRefresh,
};

const V4: Family = Family::Ipv4Unicast;

/// A RIB with two iBGP peers, of which the second one is a reflector client.
struct Bench {
    rib: Rib,
    peers: [PeerId; 2],
    configs: [RibPeerConfig; 2],
}

impl Bench {
    fn new() -> Bench {
        let multipath = Multipath { paths_max: 1, same_as_path: false };
        let router_id = Ipv4Addr::new(192, 0, 2, 9);
        let mut rib = Rib::new(RibConfig {
            router_id,
            multipath,
            seed: 1,
            deferral_until: Instant::now(),
            restarting: false,
        });
        rib.tick(Instant::now());
        let speaker = SpeakerConfig {
            origins: Default::default(),
            ranges: Default::default(),
            asn: 65001,
            router_id,
            cluster_id: None,
            listen: Vec::new(),
            peers: Default::default(),
            originate: Default::default(),
            selection_deferral_secs: 0,
            multipath,
        };
        let configs = [1, 2].map(|number| {
            let peer = PeerConfig {
                route_reflector_client: number == 2,
                ..PeerConfig::new(Ipv4Addr::new(192, 0, 2, number).into(), 65001)
            };
            RibPeerConfig::new(&speaker, &format!("p{number}").as_str().into(), &peer)
        });
        let peers = configs.clone().map(|config| rib.add_peer(config));
        Bench { rib, peers, configs }
    }

    fn up(&mut self, peer: usize, enhanced_route_refresh: bool) {
        let session = PeerSession {
            router_id: Ipv4Addr::new(192, 0, 2, peer as u8 + 1),
            families: Families::NONE.with(V4),
            format: MessageFormat { octets_max: 4096, as4: true, extended_next_hop: false },
            addresses: LocalAddresses {
                ipv4: Some(Ipv4Addr::new(192, 0, 2, 9)),
                ipv6: None,
                link: None,
            },
            promises_end_of_rib: true,
            sends_end_of_rib: true,
            stale_kept: Families::NONE.with(V4),
            enhanced_route_refresh,
            ipv4_via_ipv6: false,
            knows_long_lived: false,
            add_path: Default::default(),
        };
        self.rib.peer_up(self.peers[peer], session);
        self.rib.set_room(self.peers[peer], usize::MAX);
    }

    fn announce(&mut self, prefixes: &[&str]) {
        let mut batch = UpdateBatch::default();
        let path = PathAttributes::originated(Origin::Igp);
        let next_hop = NextHop::new(Ipv4Addr::new(192, 0, 2, 1).into());
        let attributes = Arc::new(RouteAttributes::new(next_hop, path));
        batch.push_announcements(attributes, prefixes.iter().map(|p| prefix(p)));
        self.rib.update(self.peers[0], batch).expect("no limit");
    }

    /// Prefixes with whether the route is stale.
    fn routes(&self) -> Vec<(String, bool)> {
        let routes = self.rib.routes(&RouteFilter::default());
        routes.iter().map(|r| (r.prefix.to_string(), r.candidates[0].stale)).collect()
    }

    /// What goes to a peer, each message as a word.
    fn told(&mut self, peer: usize) -> Vec<&'static str> {
        let mut words = Vec::new();
        loop {
            let mut output = Vec::new();
            self.rib.flush(&mut output);
            if output.is_empty() {
                return words;
            }
            for Output { peer: to, chunk } in output {
                if to == self.peers[peer] {
                    words.extend(chunk.messages.iter().map(|m| word(&m.bytes)));
                }
            }
        }
    }
}

fn prefix(text: &str) -> Prefix {
    text.parse().expect("a prefix")
}

fn word(octets: &[u8]) -> &'static str {
    let mut buffer = BytesMut::from(octets);
    let frame = Frame::split(&mut buffer, 4096).expect("a frame").expect("a whole one");
    match frame.message_type {
        MessageType::RouteRefresh => {
            match RouteRefresh::decode(&frame.body).expect("a refresh").kind {
                RefreshKind::Begin => "begin",
                RefreshKind::End => "end",
                other => panic!("{other:?}"),
            }
        }
        MessageType::Update if frame.body.len() == 4 => "end-of-rib",
        MessageType::Update => "update",
        other => panic!("{other:?}"),
    }
}

fn named(routes: &[(&str, bool)]) -> Vec<(String, bool)> {
    routes.iter().map(|(prefix, stale)| ((*prefix).to_owned(), *stale)).collect()
}

const ONE: &str = "10.1.0.0/26";
const TWO: &str = "10.2.0.0/26";

#[test]
fn what_a_refresh_does_not_bring_again_is_swept_at_its_end() {
    let mut bench = Bench::new();
    bench.up(0, true);
    bench.announce(&[ONE, TWO]);
    let id = bench.peers[0];
    bench.rib.begin_refresh(id, V4);
    assert_eq!(bench.routes(), named(&[(ONE, true), (TWO, true)]));
    bench.announce(&[ONE]);
    // One more beginning is one with the first.
    bench.rib.begin_refresh(id, V4);
    assert_eq!(bench.routes(), named(&[(ONE, false), (TWO, true)]));
    // End-of-RIB is not the end of a refresh.
    let mut batch = UpdateBatch::default();
    batch.push_end_of_rib(V4);
    bench.rib.update(id, batch).expect("no limit");
    assert_eq!(bench.routes().len(), 2);
    bench.rib.end_refresh(id, V4);
    assert_eq!(bench.routes(), named(&[(ONE, false)]));
    assert_eq!(bench.rib.counts(id, V4).received, 1);
    bench.rib.end_refresh(id, V4);
    assert_eq!(bench.routes(), named(&[(ONE, false)]), "an end without a beginning is nothing");
}

#[test]
fn a_session_cut_in_a_refresh_keeps_what_was_valid() {
    let mut bench = Bench::new();
    bench.up(0, true);
    bench.announce(&[ONE, TWO]);
    let id = bench.peers[0];
    bench.rib.begin_refresh(id, V4);
    bench.announce(&[ONE]);
    bench.rib.peer_down(id, Families::NONE.with(V4));
    assert_eq!(bench.routes(), named(&[(ONE, true), (TWO, true)]), "graceful restart keeps both");
    bench.up(0, true);
    bench.announce(&[TWO]);
    bench.rib.end_refresh(id, V4);
    assert_eq!(bench.routes().len(), 2, "the refresh went with its session");
    let mut batch = UpdateBatch::default();
    batch.push_end_of_rib(V4);
    bench.rib.update(id, batch).expect("no limit");
    assert_eq!(bench.routes(), named(&[(TWO, false)]));
}

#[test]
fn a_refresh_that_a_peer_asks_for_is_marked() {
    let mut bench = Bench::new();
    bench.up(0, true);
    bench.up(1, true);
    bench.announce(&[ONE]);
    let id = bench.peers[1];
    // Asked for before the initial routes are out: first they, with End-of-RIB.
    bench.rib.refresh(id, V4);
    assert_eq!(bench.told(1), ["update", "end-of-rib", "begin", "update", "end"]);
    bench.rib.refresh(id, V4);
    assert_eq!(bench.told(1), ["begin", "update", "end"]);
    // A member that moves to another group in the middle is told the end there.
    bench.rib.set_room(id, 1);
    bench.rib.refresh(id, V4);
    assert_eq!(bench.told(1), ["begin"]);
    bench.configs[1].route_reflector_client = false;
    bench.rib.configure_peer(id, bench.configs[1].clone());
    bench.rib.set_room(id, usize::MAX);
    let told = bench.told(1);
    assert_eq!(told.last(), Some(&"end"), "{told:?}");
    assert_eq!(told.iter().filter(|word| **word == "end").count(), 1);
}

/// What a member has asked for goes with it into another group, marks included.
#[test]
fn a_refresh_that_has_not_begun_is_not_forgotten_in_another_group() {
    let mut bench = Bench::new();
    bench.up(0, true);
    bench.up(1, true);
    bench.announce(&[ONE]);
    let id = bench.peers[1];
    assert_eq!(bench.told(1), ["update", "end-of-rib"]);
    bench.rib.set_room(id, 0);
    bench.rib.refresh(id, V4);
    assert!(bench.told(1).is_empty(), "there is no room");
    bench.configs[1].next_hop = NextHopMode::SelfAddress;
    bench.rib.configure_peer(id, bench.configs[1].clone());
    bench.rib.set_room(id, usize::MAX);
    let told = bench.told(1);
    assert_eq!(told[told.len() - 3..], ["begin", "update", "end"], "{told:?}");
}

#[test]
fn a_peer_without_the_capability_gets_plain_routes() {
    let mut bench = Bench::new();
    bench.up(0, false);
    bench.up(1, false);
    bench.announce(&[ONE]);
    assert_eq!(bench.told(1), ["update", "end-of-rib"]);
    bench.rib.refresh(bench.peers[1], V4);
    assert_eq!(bench.told(1), ["update"]);
}
