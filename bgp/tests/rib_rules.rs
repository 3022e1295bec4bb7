//! What the RIB does to single routes on their way in and out: loops, limits, local-as, private AS
//! numbers, graceful shutdown, next hops, and the words that say why.

mod rib_bench;

use cairn_bgp::config::{ExportScope, Multipath, NextHopMode};
use cairn_bgp::policy::{
    Action, Changes, CommunityChange, Match, MedChange, NextHopChange, PrefixList, PrefixRange,
    Prepend, Rule,
};
use cairn_bgp::prefix::{Families, Family};
use cairn_bgp::rib::{Leaving, Loss, RibPeerConfig as Config, Step};
use cairn_bgp::wire::{Community, SessionSort};
use rib_bench::{Bench, Path, accept, policy};

/// Each row: what the route brings, what is configured, the import verdict.
#[test]
fn what_stops_a_route_before_policy() {
    let ebgp = || Path::of(&[65001, 65010]);
    type Row<'a> = (&'a str, SessionSort, Path, &'a dyn Fn(&mut Config), &'a str);
    #[rustfmt::skip]
    let rows: [Row<'_>; 14] = [
        ("nothing", SessionSort::Ebgp, ebgp(), &|_| {}, "accepted by accept rule 0"),
        ("own AS", SessionSort::Ebgp, Path::of(&[65001, 65000]), &|_| {}, "rejected: our own AS is in AS_PATH"),
        ("own AS once is allowed", SessionSort::Ebgp, Path::of(&[65001, 65000]), &|c| c.own_as_max = 1, "accepted by accept rule 0"),
        ("own AS twice is not", SessionSort::Ebgp, Path::of(&[65001, 65000, 65000]), &|c| c.own_as_max = 1, "rejected: our own AS is in AS_PATH more than 1 times"),
        ("local AS counts on its own", SessionSort::Ebgp, Path::of(&[65001, 64999, 65000]), &|c| { c.own_as_max = 1; c.prepend = vec![64999, 65000]; }, "accepted by accept rule 0"),
        ("local AS in the path", SessionSort::Ebgp, Path::of(&[65001, 64999]), &|c| c.prepend = vec![64999, 65000], "rejected: our own AS is in AS_PATH"),
        ("as long as it may be", SessionSort::Ebgp, ebgp(), &|c| c.as_path_len_max = Some(2), "accepted by accept rule 0"),
        ("longer", SessionSort::Ebgp, ebgp(), &|c| c.as_path_len_max = Some(1), "rejected: AS_PATH is longer than 1"),
        ("own next hop", SessionSort::Ebgp, ebgp().via("203.0.113.1"), &|_| {}, "rejected: its next hop is our own address"),
        ("originator", SessionSort::Ibgp, Path::of(&[]).originator("192.0.2.254"), &|_| {}, "rejected: we are its ORIGINATOR_ID"),
        ("another originator", SessionSort::Ibgp, Path::of(&[]).originator("192.0.2.253"), &|_| {}, "accepted by accept rule 0"),
        ("cluster", SessionSort::Ibgp, Path::of(&[]).clusters(&["192.0.2.9", "192.0.2.254"]), &|_| {}, "rejected: our cluster is in CLUSTER_LIST"),
        ("eBGP without policy", SessionSort::Ebgp, ebgp(), &|c| c.import.clear(), "rejected: no import policy of this eBGP peer accepts it (RFC 8212)"),
        ("iBGP without policy", SessionSort::Ibgp, Path::of(&[]), &|c| c.import.clear(), "accepted: no import policy"),
    ];
    for (name, sort, path, configure, verdict) in rows {
        let mut bench = Bench::new();
        let asn = if sort == SessionSort::Ebgp { 65001 } else { 65000 };
        let peer = bench.peer_with(asn, configure);
        bench.announce(peer, "10.1.0.0/16", &path);
        let candidate = bench.candidate("10.1.0.0/16", 0);
        assert_eq!(candidate.verdict, verdict, "{name}");
        assert_eq!(candidate.best, verdict.starts_with("accepted"), "{name}");
    }
}

/// RFC 4456 section 7: one cluster with several reflectors has an identifier of its own.
#[test]
fn a_cluster_id_takes_the_place_of_the_identifier() {
    let mut bench = Bench::new();
    bench.rib.set_cluster_id("192.0.2.77".parse().unwrap());
    let client = bench.peer_with(65000, |config| config.route_reflector_client = true);
    let other = bench.peer(65000);
    for (prefix, cluster, verdict) in [
        ("10.1.0.0/16", "192.0.2.77", "rejected: our cluster is in CLUSTER_LIST"),
        ("10.2.0.0/16", "192.0.2.254", "accepted by accept rule 0"),
    ] {
        bench.announce(client, prefix, &Path::of(&[]).clusters(&[cluster]));
        assert_eq!(bench.candidate(prefix, 0).verdict, verdict);
    }
    let told = bench.told(other);
    assert_eq!(
        told["10.2.0.0/16"].cluster_list,
        ["192.0.2.77", "192.0.2.254"].map(|id| id.parse::<std::net::Ipv4Addr>().unwrap())
    );
    assert!(!told.contains_key("10.1.0.0/16"));
}

/// RFC 4456 section 8: ORIGINATOR_ID is the client's identifier, also when that changes while those who are
/// to be told cannot hear that its routes had gone.
#[test]
fn a_client_that_comes_back_under_another_identifier_is_told_so() {
    let mut bench = Bench::new();
    let client = bench.peer_with(65000, |config| config.route_reflector_client = true);
    let other = bench.peer(65000);
    let path = Path::of(&[64999]);
    bench.announce(client, "10.1.0.0/16", &path);
    let before = bench.told(other)["10.1.0.0/16"].originator;
    assert!(before.is_some());
    bench.down(client);
    let identifier = "192.0.2.200".parse().unwrap();
    bench.up_again(client, |session| session.router_id = identifier);
    bench.announce(client, "10.1.0.0/16", &path);
    assert_eq!(bench.told(other)["10.1.0.0/16"].originator, Some(identifier));
}

/// Before a peer is let go it can be asked what only it leads to.
#[test]
fn what_would_be_lost_without_some_peers() {
    let mut bench = Bench::new();
    let (node, reflector) = (bench.peer(65000), bench.peer(65000));
    let rejecting = bench.peer_with(65000, |config| {
        config.import =
            vec![policy("none", [Rule { action: Action::Reject, ..accept().rules[0].clone() }])];
    });
    let loss = |bench: &Bench, leaving: &[(&str, Leaving)]| {
        let leaving = leaving.iter().map(|(peer, leaving)| ((*peer).into(), *leaving)).collect();
        let Loss { prefixes, first } = bench.rib.loss(&leaving);
        (prefixes, first.map(|prefix| prefix.to_string()))
    };
    let own = Path::of(&[]);
    let reflected = Path::of(&[]).originator("192.0.2.99").clusters(&["192.0.2.98"]);
    for prefix in ["10.2.0.0/16", "10.1.0.0/16", "2001:db8::/32"] {
        bench.announce(node, prefix, &own);
    }
    let session = [("p1", Leaving::Session)];
    assert_eq!(loss(&bench, &[]), (0, None));
    assert_eq!(loss(&bench, &session), (3, Some("10.1.0.0/16".into())));
    bench.announce(rejecting, "10.1.0.0/16", &own);
    assert_eq!(loss(&bench, &session).0, 3, "what is not used leads nowhere");
    bench.announce(reflector, "10.1.0.0/16", &reflected);
    bench.announce(reflector, "2001:db8::/32", &reflected);
    assert_eq!(loss(&bench, &session), (1, Some("10.2.0.0/16".into())));
    bench.originate("10.2.0.0/16");
    assert_eq!(loss(&bench, &session), (0, None));

    // What a reflector has from others ends, what it has itself stays.
    bench.announce(reflector, "10.3.0.0/16", &reflected);
    bench.announce(reflector, "10.4.0.0/16", &own);
    assert_eq!(loss(&bench, &[("p2", Leaving::Reflection)]), (1, Some("10.3.0.0/16".into())));
    assert_eq!(loss(&bench, &[("p2", Leaving::Session)]).0, 2);
    let all = [("p1", Leaving::Session), ("p2", Leaving::Session), ("unknown", Leaving::Session)];
    assert_eq!(loss(&bench, &all), (4, Some("10.1.0.0/16".into())));

    // Routes of a peer that restarts do not count.
    bench.rib.peer_down(reflector, Families::from_iter(Family::ALL));
    assert_eq!(loss(&bench, &session), (2, Some("10.1.0.0/16".into())));
}

#[test]
fn prefixes_that_nobody_may_take_from_a_peer() {
    let named: PrefixList = ["0.0.0.0/0", "::/0"]
        .map(|p| PrefixRange::new(p.parse().unwrap(), None, None))
        .into_iter()
        .collect();
    let matches = Match { prefixes: Some(named), ..Match::default() };
    let naming = Rule { matches, action: Action::Accept, set: Changes::default() };
    for (prefix, by_all, by_name) in [
        (
            "10.1.0.0/16",
            "accepted by accept rule 0",
            "rejected: no import policy of this eBGP peer accepts it (RFC 8212)",
        ),
        (
            "0.0.0.0/0",
            "rejected: a default route passes only by a rule whose prefixes name it",
            "accepted by named rule 0",
        ),
        (
            "::/0",
            "rejected: a default route passes only by a rule whose prefixes name it",
            "accepted by named rule 0",
        ),
        (
            "127.0.0.0/8",
            "rejected: nobody forwards to loopback, link-local or multicast prefixes",
            "rejected: nobody forwards to loopback, link-local or multicast prefixes",
        ),
        (
            "fe80::/64",
            "rejected: nobody forwards to loopback, link-local or multicast prefixes",
            "rejected: nobody forwards to loopback, link-local or multicast prefixes",
        ),
    ] {
        for (import, verdict) in [(accept(), by_all), (policy("named", [naming.clone()]), by_name)]
        {
            let mut bench = Bench::new();
            let peer = bench.peer_with(65001, |c| c.import = vec![import.clone()]);
            bench.announce(peer, prefix, &Path::of(&[65001]));
            assert_eq!(bench.candidate(prefix, 0).verdict, verdict, "{prefix}");
        }
    }
    let mut bench = Bench::new();
    let peer = bench.peer_with(65000, |c| c.import.clear());
    bench.announce(peer, "0.0.0.0/0", &Path::of(&[]));
    let verdict = bench.candidate("0.0.0.0/0", 0).verdict;
    assert!(verdict.starts_with("rejected: a default route"), "without policies too: {verdict}");
}

/// RFC 8326 section 4.2 and our own side of a session that is about to end.
#[test]
fn what_is_about_to_go_away_is_used_last() {
    let marked = Path::of(&[65001]).community(Community::GRACEFUL_SHUTDOWN);
    let mut bench = Bench::new();
    let ebgp = bench.peer(65001);
    let ibgp = bench.peer(65000);
    bench.announce(ebgp, "10.1.0.0/16", &marked);
    bench.announce(
        ibgp,
        "10.2.0.0/16",
        &Path::of(&[65009]).community(Community::GRACEFUL_SHUTDOWN),
    );
    assert_eq!(bench.candidate("10.1.0.0/16", 0).local_pref, 0);
    assert_eq!(bench.candidate("10.2.0.0/16", 0).local_pref, 100, "iBGP brings its own preference");
    // Policy is asked after that and has the last word.
    let set = Changes { local_pref: Some(200), ..Changes::default() };
    let rule = Rule { matches: Match::default(), action: Action::Accept, set };
    bench.configure(ebgp, |c| c.import = vec![policy("prefer", [rule])]);
    let candidate = bench.candidate("10.1.0.0/16", 0);
    assert_eq!(candidate.local_pref, 200);
    assert_eq!(candidate.verdict, "accepted and changed by prefer rule 0");

    bench.announce(ebgp, "10.3.0.0/16", &Path::of(&[65001]));
    bench.configure(ebgp, |c| {
        c.import = vec![accept()];
        c.graceful_shutdown = true;
    });
    assert_eq!(bench.candidate("10.3.0.0/16", 0).local_pref, 0, "taken up without a reset");
    bench.originate("10.4.0.0/16");
    let told = bench.told(ebgp);
    assert_eq!(told["10.4.0.0/16"].communities, [Community::GRACEFUL_SHUTDOWN]);
    bench.configure(ibgp, |c| c.graceful_shutdown = true);
    let told = bench.told(ibgp);
    assert_eq!(told["10.4.0.0/16"].communities, [Community::GRACEFUL_SHUTDOWN]);
    assert_eq!(told["10.4.0.0/16"].local_pref, Some(0));
    bench.configure(ibgp, |c| c.graceful_shutdown = false);
    let told = bench.told(ibgp);
    assert!(
        told["10.4.0.0/16"].communities.is_empty() && told["10.4.0.0/16"].local_pref == Some(100)
    );
}

/// RFC 7705 section 3: our other AS stands in both directions.
#[test]
fn a_local_as_is_seen_by_both_sides() {
    let mut bench = Bench::new();
    let customer = bench.peer_with(65001, |c| {
        c.prepend = vec![64999, 65000];
        c.prepend_received = Some(64999);
    });
    let other = bench.peer(65002);
    bench.announce(customer, "10.1.0.0/16", &Path::of(&[65001]));
    bench.announce(other, "10.2.0.0/16", &Path::of(&[65002]));
    assert_eq!(bench.candidate("10.1.0.0/16", 0).as_path, "64999 65001");
    assert_eq!(bench.told(other)["10.1.0.0/16"].as_path, "65000 64999 65001");
    assert_eq!(bench.told(customer)["10.2.0.0/16"].as_path, "64999 65000 65002");
}

/// RFC 6996: all private numbers go, but for the peer's own, by which it sees a loop.
#[test]
fn private_as_numbers_stay_inside() {
    for (peer_asn, path, told) in [
        (100, vec![65001, 200, 4_200_000_000, 64_512], "65000 200"),
        (100, vec![65001, 64_512], "65000"),
        (100, vec![65001, 64_511, 65_535, 4_199_999_999], "65000 64511 65535 4199999999"),
        (64_600, vec![65001, 64_600, 300], "65000 64600 300"),
    ] {
        let mut bench = Bench::new();
        let source = bench.peer(65001);
        let peer = bench.peer_with(peer_asn, |c| c.remove_private_as = true);
        let plain = bench.peer(101);
        let internal = bench.peer_with(65000, |c| c.remove_private_as = true);
        bench.announce(source, "10.1.0.0/16", &Path::of(&path));
        assert_eq!(bench.told(peer)["10.1.0.0/16"].as_path, told);
        let whole = path.iter().map(u32::to_string).collect::<Vec<_>>().join(" ");
        assert_eq!(bench.told(plain)["10.1.0.0/16"].as_path, format!("65000 {whole}"));
        assert_eq!(bench.told(internal)["10.1.0.0/16"].as_path, whole, "iBGP changes no AS_PATH");
    }
    // What policy prepends afterwards stays, were it private or not.
    let mut bench = Bench::new();
    let source = bench.peer(65001);
    let set = Changes { prepend: Some(Prepend { asn: 65000, times: 2 }), ..Changes::default() };
    let rule = Rule { matches: Match::default(), action: Action::Accept, set };
    let peer = bench.peer_with(100, |c| {
        c.remove_private_as = true;
        c.export = vec![policy("longer", [rule])];
    });
    bench.announce(source, "10.1.0.0/16", &Path::of(&[65001, 200]));
    assert_eq!(bench.told(peer)["10.1.0.0/16"].as_path, "65000 65000 65000 200");
}

/// RFC 4271 section 5.1.3, with what a rule says going before the peer's mode.
#[test]
fn next_hops_by_mode_and_by_rule() {
    let (auto, own, unchanged) =
        (NextHopMode::Auto, NextHopMode::SelfAddress, NextHopMode::Unchanged);
    let (by_self, by_unchanged) = (NextHopChange::SelfAddress, NextHopChange::Unchanged);
    for (asn, mode, rule, is_own) in [
        (65002, auto, None, true),
        (65002, own, None, true),
        (65002, unchanged, None, false),
        (65002, auto, Some(by_unchanged), false),
        (65002, unchanged, Some(by_self), true),
        (65000, auto, None, false),
        (65000, own, None, true),
        (65000, auto, Some(by_self), true),
        (65000, own, Some(by_unchanged), false),
    ] {
        let mut bench = Bench::new();
        let source = bench.peer(65001);
        let set = Changes { next_hop: rule, ..Changes::default() };
        let rule = Rule { matches: Match::default(), action: Action::Accept, set };
        let peer = bench.peer_with(asn, |c| {
            c.next_hop = mode;
            c.export = vec![policy("out", [rule.clone()])];
        });
        let path = Path::of(&[65001]).via("198.51.100.77");
        bench.announce(source, "10.1.0.0/16", &path);
        bench.originate("10.9.0.0/16");
        let told = bench.told(peer);
        let expected = if is_own { bench.own_address(peer) } else { "198.51.100.77".into() };
        assert_eq!(told["10.1.0.0/16"].next_hop, expected, "{asn} {mode:?} {rule:?}");
        assert_eq!(told["10.9.0.0/16"].next_hop, bench.own_address(peer), "of our own routes");
    }
}

/// RFC 2545 section 3: a link-local address is for who shares the link, which another peer need not;
/// RFC 8950 section 4: nobody is told an IPv6 next hop of an IPv4 route who has not agreed to it.
#[test]
fn a_next_hop_that_the_peer_could_not_use_does_not_go_to_it() {
    let mut bench = Bench::new();
    let source = bench.peer(65001);
    let peer = bench.peer(65000);
    let path = || Path::of(&[65001]);
    bench.announce(source, "2001:db8:a::/48", &path().via("2001:db8:7::7").beside("fe80::7"));
    bench.announce(source, "2001:db8:b::/48", &path().via("fe80::7"));
    bench.announce(source, "10.1.0.0/16", &path().via("2001:db8:7::7"));
    bench.announce(source, "10.2.0.0/16", &path().via("fe80::7"));
    let told = bench.told(peer);
    let beside = &told["2001:db8:a::/48"];
    assert_eq!((&*beside.next_hop, beside.link_local), ("2001:db8:7::7", None));
    assert_eq!(told["2001:db8:b::/48"].next_hop, "2001:db8:ffff::2", "our own address");
    assert_eq!(told["10.2.0.0/16"].next_hop, bench.own_address(peer));
    assert!(!told.contains_key("10.1.0.0/16"), "{told:?}");
    let verdict = bench.export_verdict(peer, "10.1.0.0/16");
    assert!(verdict.starts_with("not announced: its next hop is of the other family"), "{verdict}");
}

/// The kernel is told of what changed first, and of both families, however much else changes.
#[test]
fn no_forwarding_entry_waits_behind_later_ones() {
    let mut bench = Bench::new();
    let source = bench.peer(65001);
    let path = Path::of(&[65001]);
    let mut told = Vec::new();
    for round in 0..8 {
        for prefix in [format!("10.{round}.0.0/16"), format!("10.{round}.1.0/24")] {
            bench.announce(source, &prefix, &path);
        }
        if round == 0 {
            bench.announce(source, "2001:db8::/48", &path);
        }
        told.extend(bench.rib.take_fib(2).iter().map(|change| change.prefix.to_string()));
    }
    assert_eq!(told[..3], ["10.0.0.0/16", "2001:db8::/48", "10.0.1.0/24"]);
    assert_eq!(told.len(), 16);
}

/// A change of the next hop alone is told, too.
#[test]
fn a_rule_that_changes_only_the_next_hop_is_told() {
    let mut bench = Bench::new();
    let source = bench.peer(65001);
    let peer = bench.peer(65002);
    bench.announce(source, "10.1.0.0/16", &Path::of(&[65001]).via("198.51.100.77"));
    assert_eq!(bench.told(peer)["10.1.0.0/16"].next_hop, bench.own_address(peer));
    let set = Changes { next_hop: Some(NextHopChange::Unchanged), ..Changes::default() };
    let rule = Rule { matches: Match::default(), action: Action::Accept, set };
    bench.configure(peer, |c| c.export = vec![policy("out", [rule])]);
    assert_eq!(bench.told(peer)["10.1.0.0/16"].next_hop, "198.51.100.77");
    let verdict = bench.export_verdict(peer, "10.1.0.0/16");
    assert_eq!(verdict, "announced and changed by out rule 0");
}

/// A received MED does not leave the AS; one that policy sets does (RFC 4271 section 5.1.4).
#[test]
fn med_stays_inside_unless_policy_sets_it() {
    let mut bench = Bench::new();
    let source = bench.peer(65001);
    let plain = bench.peer(65002);
    let set = Changes {
        med: Some(MedChange::Set(7)),
        communities: CommunityChange::add([Community(9)]),
        ..Changes::default()
    };
    let rule = Rule { matches: Match::default(), action: Action::Accept, set };
    let changed = bench.peer_with(65003, |c| c.export = vec![policy("med", [rule])]);
    let internal = bench.peer(65000);
    for (prefix, med) in [("10.1.0.0/16", 5), ("10.2.0.0/16", 5), ("10.3.0.0/16", 6)] {
        bench.announce(source, prefix, &Path::of(&[65001]).med(med));
        assert_eq!(bench.told(plain)[prefix].med, None);
        assert_eq!(bench.told(changed)[prefix].med, Some(7));
        assert_eq!(bench.told(changed)[prefix].communities, [Community(9)]);
        assert_eq!(bench.told(internal)[prefix].med, Some(med));
    }
}

/// For every peer the reason is there, and it agrees with what the peer has been told.
#[test]
fn every_peer_is_told_a_route_or_there_is_a_reason() {
    let mut bench = Bench::new();
    let source = bench.peer(65001);
    let internal_source = bench.peer(65000);
    let reject =
        Rule { matches: Match::default(), action: Action::Reject, set: Changes::default() };
    #[rustfmt::skip]
    let peers = [
        (bench.peer(65002), "announced by accept rule 0"),
        (bench.peer_with(65003, |c| c.export.clear()), "not announced: no export policy of this eBGP peer accepts it (RFC 8212)"),
        (bench.peer_with(65004, |c| c.export = vec![policy("out", [reject.clone()])]), "not announced: out rule 0 rejects it"),
        (bench.peer_with(65005, |c| c.export_scope = ExportScope::OriginatedOnly), "not announced: only routes that originate here go to this peer"),
        (bench.peer_with(65000, |c| c.export.clear()), "announced: no export policy"),
        (source, "not announced: the best route came from this peer"),
    ];
    bench.announce(source, "10.1.0.0/16", &Path::of(&[65001]));
    for (peer, verdict) in peers {
        assert_eq!(bench.export_verdict(peer, "10.1.0.0/16"), verdict);
        let told = bench.told(peer).contains_key("10.1.0.0/16");
        assert_eq!(told, verdict.starts_with("announced"), "{verdict}");
    }
    for (prefix, community, ebgp, ibgp) in [
        (
            "10.2.0.0/16",
            Community::NO_ADVERTISE,
            "not announced: it carries NO_ADVERTISE",
            "not announced: it carries NO_ADVERTISE",
        ),
        (
            "10.3.0.0/16",
            Community::NO_EXPORT,
            "not announced: it carries NO_EXPORT",
            "announced: no export policy",
        ),
        (
            "10.4.0.0/16",
            Community::NO_EXPORT_SUBCONFED,
            "not announced: it carries NO_EXPORT",
            "announced: no export policy",
        ),
    ] {
        bench.announce(source, prefix, &Path::of(&[65001]).community(community));
        assert_eq!(bench.export_verdict(peers[0].0, prefix), ebgp);
        assert_eq!(bench.export_verdict(peers[4].0, prefix), ibgp);
    }
    bench.announce(internal_source, "10.5.0.0/16", &Path::of(&[65009]));
    let verdict = bench.export_verdict(peers[4].0, "10.5.0.0/16");
    assert!(verdict.contains("only from or to a route reflector client"), "{verdict}");
    assert_eq!(
        bench.export_verdict(peers[0].0, "10.6.0.0/16"),
        "not announced: there is no usable route"
    );
    bench.down(peers[0].0);
    let verdict = bench.export_verdict(peers[0].0, "10.1.0.0/16");
    assert_eq!(verdict, "not announced: no session carries this family to the peer");
}

/// RFC 8654 section 4: what does not fit for one peer is not announced to it, and goes to others.
#[test]
fn a_route_that_is_too_large_for_a_message_is_named() {
    let mut bench = Bench::new();
    let source = bench.peer(65001);
    let small = bench.peer(65002);
    // 4 octets each: with the rest just beyond 4,096.
    let communities: Vec<Community> = (0..1015).map(Community).collect();
    let path = communities.iter().fold(Path::of(&[65001]), |path, c| path.community(*c));
    bench.announce(source, "10.1.0.0/16", &path);
    let verdict = bench.export_verdict(small, "10.1.0.0/16");
    assert_eq!(verdict, "not announced: its attributes do not fit into a message of this session");
    assert!(!bench.told(small).contains_key("10.1.0.0/16"));
}

/// RFC 9234: without a role the attribute is passed on as it is, on every sort of session.
#[test]
fn only_to_customer_passes_unchanged() {
    let mut bench = Bench::new();
    let source = bench.peer(65001);
    let (external, internal) = (bench.peer(65002), bench.peer(65000));
    bench.announce(source, "10.1.0.0/16", &Path::of(&[65001]).only_to_customer(65077));
    for peer in [external, internal] {
        assert_eq!(bench.told(peer)["10.1.0.0/16"].only_to_customer, Some(65077));
    }
}

/// Multipath compares the length of AS_PATH, or its content where that is asked for; the reasons why
/// routes lost are the same.
#[test]
fn equal_paths_may_have_to_be_the_same_paths() {
    let mut bench = Bench::new();
    let peers: Vec<_> = (0..4).map(|_| bench.peer(65001)).collect();
    let paths: [&[u32]; 4] = [&[65001, 1], &[65001, 2], &[65001, 1], &[65001, 1, 1]];
    for (index, (peer, path)) in peers.iter().zip(paths).enumerate() {
        let path = Path::of(path).via(&format!("198.51.100.{}", 101 + index));
        bench.announce(*peer, "10.1.0.0/16", &path);
    }
    let in_use = |bench: &Bench| {
        let all = (0..4).map(|index| bench.candidate("10.1.0.0/16", index));
        let used = all.filter(|c| c.best || c.multipath).map(|c| c.peer.unwrap());
        used.collect::<Vec<_>>()
    };
    let reasons = |bench: &Bench| {
        let all = (0..4).map(|index| bench.candidate("10.1.0.0/16", index));
        let mut reasons: Vec<_> = all.map(|c| (c.peer.unwrap(), c.lost_at)).collect();
        reasons.sort_by(|a, b| a.0.cmp(&b.0));
        reasons
    };
    assert_eq!(in_use(&bench), ["p1", "p2", "p3"], "as long as the best one's");
    let before = reasons(&bench);
    assert_eq!(before[1].1, Some(Step::RouterId));
    assert_eq!(before[3].1, Some(Step::AsPathLength));
    bench.multipath(Multipath { paths_max: 4, same_as_path: true });
    assert_eq!(in_use(&bench), ["p1", "p3"], "the best one's content");
    assert_eq!(reasons(&bench), before);
    bench.multipath(Multipath { paths_max: 1, same_as_path: true });
    assert_eq!(in_use(&bench), ["p1"]);
    bench.multipath(Multipath { paths_max: 4, same_as_path: false });
    assert_eq!(in_use(&bench), ["p1", "p2", "p3"], "and back");
}

/// Several reflectors that show one next hop leave room for another.
#[test]
fn equal_paths_have_different_next_hops_where_there_are_some() {
    let mut bench = Bench::new();
    let peers: Vec<_> = (0..5).map(|_| bench.peer(65001)).collect();
    for (peer, last) in peers.iter().zip([101, 101, 101, 102, 103]) {
        let path = Path::of(&[65001]).via(&format!("198.51.100.{last}"));
        bench.announce(*peer, "10.1.0.0/16", &path);
    }
    for (paths_max, expected) in [
        (1, &["p1"][..]),
        (2, &["p1", "p4"]),
        (3, &["p1", "p4", "p5"]),
        (4, &["p1", "p4", "p5", "p2"]),
        (5, &["p1", "p2", "p3", "p4", "p5"]),
    ] {
        bench.multipath(Multipath { paths_max, same_as_path: false });
        let all = (0..5).map(|index| bench.candidate("10.1.0.0/16", index));
        let used = all.filter(|c| c.best || c.multipath).map(|c| c.peer.unwrap());
        assert_eq!(used.collect::<Vec<_>>(), expected, "{paths_max}");
    }
}
