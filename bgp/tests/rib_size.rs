//! What many prefixes and large attributes do to the RIB: memory that is given back, ids that are used
//! again, and routes that are too large for some peers.

use std::collections::BTreeMap;
use std::net::Ipv4Addr;
use std::sync::Arc;
use std::time::Instant;

use cairn_bgp::config::{Multipath, PeerConfig, SpeakerConfig};
use cairn_bgp::prefix::{Families, Family, Ipv4Prefix, Prefix};
use cairn_bgp::rib::{
    Output, PeerId, PeerSession, Rib, RibConfig, RibPeerConfig, RouteAttributes, UpdateBatch,
};
use cairn_bgp::session::LocalAddresses;
use cairn_bgp::wire::{
    AttributeTypes, Community, EncodeError, HEADER_OCTETS, MESSAGE_OCTETS_MAX,
    MESSAGE_OCTETS_MAX_EXTENDED, MessageFormat, NextHop, Origin, PathAttributes, SessionSort,
    UpdateBody, UpdateContext,
};

const V4: Family = Family::Ipv4Unicast;

/// A RIB with iBGP clients of a reflector, each with what it has been told: prefix and MED.
struct Reflector {
    rib: Rib,
    peers: Vec<(PeerId, BTreeMap<Prefix, Option<u32>>)>,
}

impl Reflector {
    /// One client for each message size.
    fn new(octets_max: &[usize]) -> Reflector {
        let multipath = Multipath { paths_max: 1, same_as_path: false };
        let router_id = Ipv4Addr::new(192, 0, 2, 99);
        let config = RibConfig {
            router_id,
            multipath,
            seed: 1,
            deferral_until: Instant::now(),
            restarting: false,
        };
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
        let mut rib = Rib::new(config);
        rib.tick(Instant::now());
        let peers = octets_max.iter().zip(1..).map(|(octets_max, number)| {
            let address = Ipv4Addr::new(192, 0, 2, number);
            let peer = PeerConfig {
                route_reflector_client: true,
                ..PeerConfig::new(address.into(), 65001)
            };
            let name = format!("p{number}").as_str().into();
            let id = rib.add_peer(RibPeerConfig::new(&speaker, &name, &peer));
            rib.peer_up(
                id,
                PeerSession {
                    router_id: address,
                    families: Families::NONE.with(V4),
                    format: MessageFormat {
                        octets_max: *octets_max,
                        as4: true,
                        extended_next_hop: false,
                    },
                    addresses: LocalAddresses { ipv4: Some(router_id), ipv6: None, link: None },
                    promises_end_of_rib: true,
                    sends_end_of_rib: true,
                    stale_kept: Families::NONE,
                    enhanced_route_refresh: false,
                    ipv4_via_ipv6: false,
                    knows_long_lived: false,
                    add_path: Default::default(),
                },
            );
            (id, BTreeMap::new())
        });
        let peers = peers.collect();
        Reflector { rib, peers }
    }

    fn announce(&mut self, peer: usize, numbers: impl Iterator<Item = u32>, med: u32, extra: u32) {
        let plain = PathAttributes::originated(Origin::Igp);
        let mut builder = plain.edit();
        let communities: Vec<Community> = (0..extra).map(Community).collect();
        builder.med(Some(med)).add_communities(&communities);
        let next_hop = NextHop::new(Ipv4Addr::new(192, 0, 2, 200).into());
        let attributes = Arc::new(RouteAttributes::new(next_hop, builder.build()));
        let mut batch = UpdateBatch::default();
        batch.push_announcements(attributes, numbers.map(prefix));
        self.rib.update(self.peers[peer].0, batch).expect("no limit");
    }

    fn withdraw(&mut self, peer: usize, numbers: impl Iterator<Item = u32>) {
        let mut batch = UpdateBatch::default();
        batch.push_withdrawals(numbers.map(prefix));
        self.rib.update(self.peers[peer].0, batch).expect("no limit");
    }

    /// Gives everybody but `slow` room, and reads what they are told; says how many messages each was sent, and
    /// how many prefixes were withdrawn by them.
    fn flush(&mut self, slow: Option<usize>) -> Vec<(usize, usize)> {
        let mut read = vec![(0, 0); self.peers.len()];
        for (index, (id, _)) in self.peers.iter().enumerate() {
            self.rib.set_room(*id, if slow == Some(index) { 0 } else { usize::MAX });
        }
        let mut output = Vec::new();
        self.rib.flush(&mut output);
        let context = UpdateContext {
            sort: SessionSort::Ibgp,
            as4: true,
            families: Families::NONE.with(V4),
            extended_next_hop: false,
            first_as: None,
            discard_attributes: AttributeTypes::NONE,
            path_ids: Families::NONE,
        };
        for Output { peer, chunk } in output {
            let index = self.peers.iter().position(|(id, _)| *id == peer).expect("a peer");
            let (told, read) = (&mut self.peers[index].1, &mut read[index]);
            read.0 += chunk.messages.len();
            for message in &chunk.messages {
                let body = UpdateBody::split(&message.bytes[HEADER_OCTETS..]).expect("an UPDATE");
                let update = body.decode(&context).expect("well-formed");
                for prefix in update.withdrawn() {
                    told.remove(&prefix);
                    read.1 += 1;
                }
                let med = update.attributes.as_ref().and_then(|attributes| attributes.med());
                let announced = update.announcements().flat_map(|a| a.prefixes.iter());
                told.extend(announced.map(|prefix| (prefix, med)));
            }
        }
        while self.rib.fib_pending() {
            self.rib.take_fib(usize::MAX);
        }
        // With nothing left to tell, memory is given back.
        self.rib.flush(&mut Vec::new());
        read
    }
}

fn prefix(number: u32) -> Prefix {
    Ipv4Prefix::new(0x1400_0000 + (number << 8), 24).map(Prefix::V4).expect("a length in range")
}

#[test]
fn ids_are_used_again_and_gaps_closed_under_a_member_that_lags() {
    let mut world = Reflector::new(&[MESSAGE_OCTETS_MAX; 3]);
    let mut expected = BTreeMap::new();
    let (source, quick, slow) = (0, 1, 2);
    let sparse = |number: &u32| number.is_multiple_of(7);
    for round in 0..4 {
        let numbers = || round * 3000..round * 3000 + 20_000;
        world.announce(source, numbers(), round, 0);
        expected.extend(numbers().map(|number| (prefix(number), Some(round))));
        // The last round leaves the slow one behind with the whole table still to be told.
        world.flush(Some(slow).filter(|_| round != 2));
        assert_eq!(world.peers[quick].1, expected, "round {round}");
        world.withdraw(source, numbers().filter(|number| !sparse(number)));
        for number in numbers().filter(|number| !sparse(number)) {
            expected.remove(&prefix(number));
        }
        world.flush(Some(slow));
        assert_eq!(world.peers[quick].1, expected, "round {round}");
        assert_eq!(world.rib.sizes().0, expected.len());
        // New prefixes get ids that others had.
        world.announce(source, 50_000 + round..50_040 + round, round, 0);
        let some = 50_000 + round..50_040 + round;
        expected.extend(some.map(|number| (prefix(number), Some(round))));
        world.flush(Some(slow));
        assert_eq!(world.peers[quick].1, expected, "round {round}");
    }
    world.flush(None);
    assert_eq!(world.peers[slow].1, expected);
    assert!(world.peers[source].1.is_empty(), "nobody gets its own routes");
    world.withdraw(source, 0..60_000);
    world.flush(None);
    assert!(world.peers.iter().all(|(_, told)| told.is_empty()));
    assert_eq!(world.rib.sizes().0, 0);
}

#[test]
fn nobody_is_told_that_its_own_routes_go_unless_those_of_many_do() {
    const PEERS: usize = 40;
    let mut world = Reflector::new(&[MESSAGE_OCTETS_MAX; PEERS]);
    let own = |peer: usize| 3 * peer as u32..3 * peer as u32 + 3;
    for goes in [1, 8, 9, PEERS] {
        for peer in 0..PEERS {
            world.announce(peer, own(peer), 7, 0);
        }
        world.flush(None);
        for peer in 0..goes {
            world.withdraw(peer, own(peer));
        }
        let read = world.flush(None);
        let stay = |other: usize| move |peer: &usize| *peer >= goes && *peer != other;
        for (peer, (messages, withdrawn)) in read.into_iter().enumerate() {
            let others = goes - usize::from(peer < goes);
            let apart = goes.min(8);
            assert!(messages <= apart + 1, "{goes}: {messages} messages");
            let may_be = if peer < apart { 3 * others } else { 3 * goes };
            assert!((3 * others..=may_be).contains(&withdrawn), "{goes}: {withdrawn} of {peer}");
            let left = (0..PEERS).filter(stay(peer)).flat_map(own);
            let left = left.map(|number| (prefix(number), Some(7)));
            assert_eq!(world.peers[peer].1, left.collect(), "{goes}: {peer}");
        }
    }
}

#[test]
fn a_route_too_large_for_a_peer_is_withdrawn_from_it_counted_and_told_to_others() {
    let sizes = [MESSAGE_OCTETS_MAX_EXTENDED, MESSAGE_OCTETS_MAX_EXTENDED, MESSAGE_OCTETS_MAX];
    let mut world = Reflector::new(&sizes);
    let (source, large, small) = (0, 1, 2);
    let told = |med| BTreeMap::from([(prefix(1), Some(med))]);
    let too_large = |world: &Reflector| {
        [large, small].map(|peer| world.rib.counts(world.peers[peer].0, V4).too_large)
    };
    let advertised = |world: &Reflector| {
        [large, small].map(|peer| world.rib.counts(world.peers[peer].0, V4).advertised)
    };
    world.announce(source, 1..2, 1, 0);
    world.flush(None);
    assert_eq!([&world.peers[large].1, &world.peers[small].1], [&told(1), &told(1)]);
    assert_eq!((too_large(&world), advertised(&world)), ([0, 0], [1, 1]));
    assert_eq!(world.rib.take_unsayable(), []);

    // 1,020 communities of four octets leave no room for the rest in 4,096.
    world.announce(source, 1..2, 2, 1020);
    world.flush(None);
    assert_eq!(world.peers[large].1, told(2));
    assert!(world.peers[small].1.is_empty(), "the old route is withdrawn");
    assert_eq!((too_large(&world), advertised(&world)), ([0, 1], [1, 0]));
    let unsayable = world.rib.take_unsayable();
    let [only] = unsayable.as_slice() else { panic!("one group of peers: {unsayable:?}") };
    assert_eq!((&only.peers[..], only.prefix), (&[world.peers[small].0][..], prefix(1)));
    assert_eq!(only.routes, 1);
    assert!(matches!(only.error, EncodeError::TooLarge { octets_max: MESSAGE_OCTETS_MAX, .. }));
    assert_eq!(world.rib.take_unsayable(), [], "it is reported once");

    // A refresh does not bring it either.
    let id = world.peers[small].0;
    world.rib.refresh(id, V4);
    world.flush(None);
    assert!(world.peers[small].1.is_empty());

    world.announce(source, 1..2, 3, 0);
    world.flush(None);
    assert_eq!([&world.peers[large].1, &world.peers[small].1], [&told(3), &told(3)]);
    assert_eq!((too_large(&world), advertised(&world)), ([0, 0], [1, 1]));

    world.announce(source, 1..2, 4, 1020);
    world.withdraw(source, 1..2);
    world.flush(None);
    assert!(world.peers[large].1.is_empty() && world.peers[small].1.is_empty());
    world.announce(source, 1..2, 5, 1020);
    world.flush(None);
    assert_eq!(too_large(&world), [0, 1]);
    world.withdraw(source, 1..2);
    world.flush(None);
    assert_eq!(too_large(&world), [0, 0], "what has gone is not counted");
}

#[test]
fn the_stream_waits_for_who_is_full_until_somebody_runs_dry() {
    let mut world = Reflector::new(&[MESSAGE_OCTETS_MAX; 3]);
    let [source, quick, slow] = [0, 1, 2].map(|peer| world.peers[peer].0);
    world.flush(None);
    world.announce(0, 0..100, 1, 0);
    let outputs = |world: &mut Reflector| {
        let mut output = Vec::new();
        world.rib.flush(&mut output);
        output.into_iter().map(|output| output.peer).collect::<Vec<PeerId>>()
    };
    world.rib.set_rooms(source, 1000, 0);
    world.rib.set_rooms(quick, 1000, 0);
    world.rib.set_rooms(slow, 0, 0);
    assert_eq!(outputs(&mut world), [], "one has no room, the others have something to write");
    world.rib.set_rooms(slow, 1, 0);
    assert_eq!(outputs(&mut world), [quick, slow], "all have room");
    world.announce(0, 0..100, 2, 0);
    world.rib.set_rooms(slow, 0, 0);
    assert_eq!(outputs(&mut world), []);
    world.rib.set_rooms(quick, 1000, 1000);
    assert_eq!(outputs(&mut world), [quick], "one has run dry");
    world.rib.set_rooms(slow, 1000, 0);
    assert_eq!(outputs(&mut world), [], "who lags has to write all that it has");
    world.flush(None);
    assert_eq!(world.peers[2].1.len(), 100);
    assert!(world.peers[2].1.values().all(|med| *med == Some(2)));
}
