//! Single cases of what the random histories check, each for its own reason.

use super::*;

/// A peer that never reads costs its prefixes, and gets the last state when it reads again.
#[test]
fn a_peer_that_does_not_read_is_told_the_last_state_later() {
    let mut world = World::new(2);
    world.toggle(0);
    world.toggle(3);
    world.settle();
    let slow = world.peers[3].id;
    world.rib.set_room(slow, 0);
    let mut handed_out = 0;
    for _ in 0..2000 {
        world.announce(0);
        world.rib.set_room(world.peers[0].id, usize::MAX);
        let mut output = Vec::new();
        world.rib.flush(&mut output);
        handed_out += output.iter().filter(|output| output.peer == slow).count();
    }
    assert_eq!(handed_out, 0);
    world.settle();
    world.check();
}

/// RFC 4724 section 4.1: nothing learned is announced before the deferral is over.
#[test]
fn a_restarting_speaker_announces_after_the_deferral() {
    let mut world = World::new(4);
    world.toggle(0);
    world.toggle(2);
    for _ in 0..20 {
        world.announce(0);
    }
    let prefix: Prefix = "10.77.0.0/24".parse().expect("a prefix");
    let origination = Origination { source: "t".into(), communities: vec![7], local_pref: None };
    world.originated.insert(prefix, origination);
    world.rib.set_originated(&world.originated);
    world.rib.tick(world.now);
    for peer in &world.peers {
        world.rib.set_room(peer.id, usize::MAX);
    }
    world.flush();
    assert!(!world.rib.in_sync());
    assert_eq!(world.peers[2].told.keys().map(|(prefix, _)| *prefix).collect::<Vec<_>>(), [prefix]);
    assert!(!world.rib.is_told(world.peers[2].id), "no End-of-RIB yet");
    world.settle();
    assert!(world.rib.in_sync() && world.rib.is_told(world.peers[2].id));
    world.check();
}

/// What a restarting speaker does not announce yet it does not withdraw either, also to a peer whose
/// socket was full for a moment: the peer keeps its stale route.
#[test]
fn a_restarting_speaker_withdraws_nothing_that_it_has_not_told() {
    let mut world = World::new(4);
    for index in 0..3 {
        world.toggle(index);
    }
    announce_many(&mut world, 10);
    let mut output = Vec::new();
    // All three are in one group: one takes what there is, and another one lags.
    for rooms in [[usize::MAX, usize::MAX, 0], [usize::MAX; 3]] {
        for (peer, room) in world.peers.iter().zip(rooms) {
            world.rib.set_room(peer.id, room);
        }
        world.rib.flush(&mut output);
    }
    assert!(output.is_empty(), "{output:?}");
}

/// RFC 4724 section 4.2: stale routes stay until End-of-RIB, and only those not sent again go.
#[test]
fn stale_routes_are_swept_at_end_of_rib() {
    let mut world = World::new(2);
    world.toggle(0);
    let prefixes: Vec<Prefix> =
        ["10.1.0.0/24", "10.2.0.0/24"].iter().map(|p| p.parse().expect("a prefix")).collect();
    let route = world.route(Sort::Ebgp(65001), Family::Ipv4Unicast);
    let route = Route { as_path: vec![65001], ..route };
    let announce = |world: &mut World, prefixes: &[Prefix]| {
        let mut batch = UpdateBatch::default();
        batch.push_announcements(World::attributes(&route), prefixes.iter().copied());
        world.rib.update(world.peers[0].id, batch).expect("no limit is set");
    };
    announce(&mut world, &prefixes);
    world.settle();
    assert_eq!(world.fib.len(), 2);
    let id = world.peers[0].id;
    let both = Families::from_iter(Family::ALL);
    world.rib.peer_down(id, both);
    world.settle();
    assert_eq!(world.fib.len(), 2, "kept while the peer restarts");
    world.rib.peer_up(id, PeerSession { stale_kept: both, ..world.peers[0].session() });
    announce(&mut world, &prefixes[1..]);
    world.settle();
    assert_eq!(world.fib.len(), 2, "kept until End-of-RIB");
    let mut batch = UpdateBatch::default();
    batch.push_end_of_rib(Family::Ipv4Unicast);
    world.rib.update(id, batch).expect("no limit is set");
    world.settle();
    assert_eq!(world.fib.keys().copied().collect::<Vec<_>>(), prefixes[1..]);
    // A second restart before the first one is over: what was stale already goes.
    world.rib.peer_down(id, both);
    world.rib.peer_up(id, PeerSession { stale_kept: both, ..world.peers[0].session() });
    announce(&mut world, &prefixes[..1]);
    world.rib.peer_down(id, both);
    world.settle();
    assert_eq!(world.fib.keys().copied().collect::<Vec<_>>(), prefixes[..1]);
}

/// A world whose first peer is up with a limit of two prefixes, and announcements for it.
fn limited(action: PrefixLimitAction) -> (World, impl Fn(&[&str]) -> UpdateBatch) {
    let mut world = World::new(2);
    world.toggle(0);
    let peer = &mut world.peers[0];
    peer.config.prefix_limit = Some(PrefixLimit { prefixes_max: 2, action });
    peer.config.import = vec![policy("in", Action::Reject)];
    world.rib.configure_peer(peer.id, peer.config.clone());
    let route = world.route(Sort::Ebgp(65001), Family::Ipv4Unicast);
    let announce = move |prefixes: &[&str]| {
        let mut batch = UpdateBatch::default();
        let prefixes = prefixes.iter().map(|p| p.parse().expect("a prefix"));
        batch.push_announcements(World::attributes(&route), prefixes);
        batch
    };
    (world, announce)
}

#[test]
fn the_prefix_limit_counts_what_policy_rejects() {
    let restart_after_secs = Some(60);
    let (mut world, announce) = limited(PrefixLimitAction::Stop { restart_after_secs });
    let id = world.peers[0].id;
    world.rib.update(id, announce(&["10.0.0.0/24", "10.0.1.0/24"])).expect("within the limit");
    world.rib.update(id, announce(&["10.0.0.0/24"])).expect("no new prefix");
    let exceeded = world.rib.update(id, announce(&["10.0.2.0/24"])).expect_err("over the limit");
    let family = Family::Ipv4Unicast;
    assert_eq!(exceeded, PrefixLimitExceeded { family, prefixes_max: 2, restart_after_secs });
}

#[test]
fn a_prefix_limit_that_warns_says_so_once() {
    let (mut world, announce) = limited(PrefixLimitAction::Warn);
    let id = world.peers[0].id;
    let over = |outcome: UpdateOutcome| outcome.over_limit.contains(Family::Ipv4Unicast);
    let three = announce(&["10.0.0.0/24", "10.0.1.0/24", "10.0.2.0/24"]);
    assert!(over(world.rib.update(id, three).expect("no stop")));
    assert!(!over(world.rib.update(id, announce(&["10.0.3.0/24"])).expect("no stop")), "told");
    assert_eq!(world.rib.counts(id, Family::Ipv4Unicast).received, 4);
    let mut batch = UpdateBatch::default();
    let gone = ["10.0.0.0/24", "10.0.1.0/24", "10.0.2.0/24"];
    batch.push_withdrawals(gone.map(|p| p.parse().expect("a prefix")));
    world.rib.update(id, batch).expect("no stop");
    let again = announce(&["10.0.0.0/24", "10.0.1.0/24"]);
    assert!(over(world.rib.update(id, again).expect("no stop")), "news again");
}

#[test]
fn a_prefix_limit_that_drops_keeps_what_is_known() {
    let (mut world, announce) = limited(PrefixLimitAction::Drop);
    let id = world.peers[0].id;
    let three = announce(&["10.0.0.0/24", "10.0.1.0/24", "10.0.2.0/24"]);
    let outcome = world.rib.update(id, three).expect("no stop");
    assert_eq!((outcome.dropped, outcome.over_limit.is_empty()), (1, false));
    // Those that are there may change, and the other family has a limit of its own.
    let known = announce(&["10.0.0.0/24", "10.0.1.0/24", "fd00::/64", "fd00:1::/64"]);
    assert_eq!(world.rib.update(id, known).expect("no stop"), UpdateOutcome::default());
    let counts = world.rib.counts(id, Family::Ipv4Unicast);
    assert_eq!((counts.received, counts.dropped), (2, 1));
    let mut batch = UpdateBatch::default();
    batch.push_withdrawals(["10.0.0.0/24".parse().expect("a prefix")]);
    world.rib.update(id, batch).expect("no stop");
    let outcome = world.rib.update(id, announce(&["10.0.2.0/24"])).expect("no stop");
    assert_eq!(outcome, UpdateOutcome::default(), "there is room for one again");
}

/// What a restarted peer has not announced again is not what it announces: it may come back with other
/// prefixes, as many as its limit allows.
#[test]
fn a_prefix_limit_does_not_count_stale_routes() {
    let restart_after_secs = None;
    for action in [
        PrefixLimitAction::Stop { restart_after_secs },
        PrefixLimitAction::Warn,
        PrefixLimitAction::Drop,
    ] {
        let (mut world, announce) = limited(action);
        let (id, both) = (world.peers[0].id, Families::from_iter(Family::ALL));
        let session = PeerSession { stale_kept: both, ..world.peers[0].session() };
        world.rib.update(id, announce(&["10.0.0.0/24", "10.0.1.0/24"])).expect("within the limit");
        world.rib.peer_down(id, both);
        world.rib.peer_up(id, session);
        // One of them again, and a new one.
        for prefix in ["10.0.1.0/24", "10.0.2.0/24"] {
            let outcome = world.rib.update(id, announce(&[prefix])).expect("within the limit");
            assert_eq!(outcome, UpdateOutcome::default(), "{action:?}");
        }
        assert_eq!(world.rib.counts(id, Family::Ipv4Unicast).received, 3, "one is stale");
        // That one would be a third.
        match (action, world.rib.update(id, announce(&["10.0.0.0/24"]))) {
            (PrefixLimitAction::Stop { .. }, Err(_)) => continue,
            (PrefixLimitAction::Warn, Ok(outcome)) => assert!(!outcome.over_limit.is_empty()),
            (PrefixLimitAction::Drop, Ok(outcome)) => assert_eq!(outcome.dropped, 1),
            (_, other) => panic!("{action:?}: {other:?}"),
        }
        let left = if action == PrefixLimitAction::Drop { 2 } else { 3 };
        world.rib.flush_stale(id, both);
        assert_eq!(world.rib.counts(id, Family::Ipv4Unicast).received, left, "{action:?}");
        // After the end of the restart all count.
        let outcome = world.rib.update(id, announce(&["10.0.4.0/24"])).expect("no stop");
        assert_eq!(outcome.dropped, u32::from(action == PrefixLimitAction::Drop), "{action:?}");
    }
}

/// A limit that is put below what is there ends the session at the next UPDATE, of whatever family;
/// nothing of the peer stays.
#[test]
fn a_limit_of_one_family_leaves_nothing_of_the_other_behind() {
    let mut world = World::new(2);
    world.toggle(0);
    let announce = |world: &mut World, prefix: &str| {
        let prefix: Prefix = prefix.parse().expect("a prefix");
        let route =
            Route { as_path: vec![65001], ..world.route(Sort::Ebgp(65001), prefix.family()) };
        let mut batch = UpdateBatch::default();
        batch.push_announcements(World::attributes(&route), [prefix]);
        world.rib.update(world.peers[0].id, batch)
    };
    announce(&mut world, "10.0.0.0/24").expect("no limit is set");
    let peer = &mut world.peers[0];
    let action = PrefixLimitAction::Stop { restart_after_secs: None };
    peer.config.prefix_limit = Some(PrefixLimit { prefixes_max: 0, action });
    world.rib.configure_peer(peer.id, peer.config.clone());
    announce(&mut world, "2001:db8::/64").expect_err("over the limit");
    let id = world.peers[0].id;
    world.rib.peer_down(id, Families::NONE);
    assert_eq!(world.rib.routes(&RouteFilter::default()), []);
    assert_eq!(world.rib.counts(id, Family::Ipv6Unicast).received, 0);
}

/// A table of attributes of its own for each prefix, from the first peer.
fn announce_many(world: &mut World, count: u32) {
    let route = world.route(Sort::Ebgp(65001), Family::Ipv4Unicast);
    let mut batch = UpdateBatch::default();
    for number in 0..count {
        let route = Route { as_path: vec![65001, 70_000 + number], ..route.clone() };
        let prefix = format!("20.{}.{}.0/24", number >> 8, number & 255);
        let prefix: Prefix = prefix.parse().expect("a prefix");
        batch.push_announcements(World::attributes(&route), [prefix]);
    }
    world.rib.update(world.peers[0].id, batch).expect("no limit is set");
}

#[test]
fn what_has_gone_leaves_no_attributes_behind() {
    let mut world = World::new(4);
    world.toggle(0);
    world.toggle(2);
    announce_many(&mut world, 3000);
    world.settle();
    assert_eq!(world.rib.sizes().0, 3000);
    world.rib.peer_down(world.peers[0].id, Families::NONE);
    world.settle();
    // The last changes of the forwarding table have been read by now.
    world.flush();
    assert_eq!(world.rib.sizes(), (0, 0));
}

/// RFC 2918: a refresh repeats what was said, and to the source of all routes nothing was.
#[test]
fn a_refresh_is_no_withdrawal_of_the_own_routes() {
    let mut world = World::new(2);
    world.toggle(0);
    announce_many(&mut world, 10);
    world.settle();
    let id = world.peers[0].id;
    world.rib.refresh(id, Family::Ipv4Unicast);
    world.rib.set_room(id, usize::MAX);
    let mut output = Vec::new();
    world.rib.flush(&mut output);
    assert!(output.is_empty(), "{output:?}");
}

/// Policies are applied by evaluation: what passes before and after is never withdrawn in between,
/// though the peer now has a group of its own.
#[test]
fn a_new_policy_is_no_withdrawal() {
    let mut world = World::new(2);
    world.toggle(0);
    world.toggle(2);
    announce_many(&mut world, 10);
    world.settle();
    assert_eq!(world.peers[2].told.len(), 10);
    let peer = &mut world.peers[2];
    peer.config.export = vec![policy("another", Action::Accept)];
    world.rib.configure_peer(peer.id, peer.config.clone());
    let mut output = Vec::new();
    for _ in 0..100 {
        world.rib.set_room(world.peers[2].id, 1);
        world.rib.flush(&mut output);
        for output in output.drain(..) {
            output.chunk.messages.iter().for_each(|m| world.peers[2].read_as_sent(m));
        }
        assert_eq!(world.peers[2].told.len(), 10, "nothing is withdrawn");
    }
    let id = world.peers[2].id;
    assert_eq!(world.rib.counts(id, Family::Ipv4Unicast).advertised, 10);
}

/// What a reflector says about a route names its source, also when that is another speaker now.
#[test]
fn a_peer_with_another_identifier_is_another_originator() {
    let mut world = World::new(2);
    let both = Families::from_iter(Family::ALL);
    world.toggle(3);
    world.toggle(5);
    let prefix: Prefix = "10.1.0.0/24".parse().expect("a prefix");
    let route = Route { as_path: vec![65010], ..world.route(Sort::Ibgp, prefix.family()) };
    let mut batch = UpdateBatch::default();
    batch.push_announcements(World::attributes(&route), [prefix]);
    let id = world.peers[3].id;
    world.rib.update(id, batch).expect("no limit is set");
    world.settle();
    let originator = |world: &World| world.peers[5].told_of(prefix).expect("told").originator_id;
    assert_eq!(originator(&world), Some(world.peers[3].router_id()));
    // It restarts gracefully and has been given another identifier.
    world.rib.peer_down(id, both);
    let other = Ipv4Addr::new(192, 0, 2, 77);
    let session = world.peers[3].session();
    world.rib.peer_up(id, PeerSession { router_id: other, stale_kept: both, ..session });
    world.settle();
    assert_eq!(originator(&world), Some(other));
}

/// A peer that becomes a client while its session is down: its stale routes are reflected.
#[test]
fn what_a_peer_left_behind_follows_its_configuration() {
    let mut world = World::new(2);
    world.toggle(3);
    world.toggle(4);
    let prefix: Prefix = "10.1.0.0/24".parse().expect("a prefix");
    let route = Route {
        as_path: vec![65010],
        communities: Vec::new(),
        ..world.route(Sort::Ibgp, prefix.family())
    };
    let mut batch = UpdateBatch::default();
    batch.push_announcements(World::attributes(&route), [prefix]);
    let id = world.peers[3].id;
    world.rib.update(id, batch).expect("no limit is set");
    world.rib.peer_down(id, Families::from_iter(Family::ALL));
    world.settle();
    assert!(world.peers[4].told.is_empty());
    world.peers[3].config.route_reflector_client = true;
    world.rib.configure_peer(id, world.peers[3].config.clone());
    world.settle();
    assert!(world.peers[4].told_of(prefix).is_some());
}
