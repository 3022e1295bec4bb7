//! The program `cairn speaker` as its guide shows it, between two real daemons.

use cairn_tests::bird::Bird;
use cairn_tests::daemon::{Daemon, Learned, Setup, Transport};
use cairn_tests::frr::Frr;
use cairn_tests::link::Link;
use cairn_tests::program::Program;

/// Passes everything between its peers.
const FILE: &str = "\
apiVersion: cairn.network/v1alpha1
kind: BGPConfiguration
metadata: {name: default}
spec: {asn: 65000, routerID: 10.99.0.1, listenAddresses: [10.99.0.1], listenPort: 1790, topology: Disabled}
---
apiVersion: cairn.network/v1alpha1
kind: BGPPolicy
metadata: {name: all}
spec: {rules: [{action: Accept}]}
---
apiVersion: cairn.network/v1alpha1
kind: BGPPeer
metadata: {name: p1}
spec: {address: 10.99.1.1, asn: 65001, passive: true, multihop: 2, families: [IPv4Unicast, IPv6Unicast], importPolicies: [all], exportPolicies: [all]}
---
apiVersion: cairn.network/v1alpha1
kind: BGPPeer
metadata: {name: p2}
spec: {address: 10.99.1.2, asn: 65000, passive: true, families: [IPv4Unicast, IPv6Unicast], importPolicies: [all], exportPolicies: [all]}
";

/// A BIRD of another AS as p1, an FRR of the same AS as p2: routes of both families pass, to the
/// other AS with our next hop; the file's changes are taken up without a reset, a broken file is not;
/// and both read why it ends.
#[tokio::test]
async fn the_example_between_bird_and_frr() {
    let link = Link::without_addresses();
    link.here("ip addr add 10.99.0.1/16 dev uplink");
    link.here("ip addr add fd99::1/64 dev uplink nodad");
    for address in ["10.99.1.1/16", "10.99.1.2/16", "fd99::12/64"] {
        link.inside(&format!("ip addr add {address} dev uplink nodad"));
    }
    let mut program = Program::start(&link, FILE);
    // Next hops that nobody has: an FRR beside them takes no route over its own machine.
    let p1 = Setup {
        addresses: ["10.99.1.1".into(), "fd99::11".into()],
        next_hops: ["10.99.1.77".into(), "fd99::77".into()],
        remote: "10.99.0.1".into(),
        port: 1790,
        more: "multihop 2;".into(),
        ..Setup::new(Transport::V4, 65001, 65000)
    };
    let p2 = Setup {
        addresses: ["10.99.1.2".into(), "fd99::12".into()],
        remote: "10.99.0.1".into(),
        port: 1790,
        ..Setup::new(Transport::V4, 65000, 65000)
    };
    let bird = Bird::start(&link, &p1.announcing(&["172.16.1.0/24", "fd01::/64"]));
    let frr = Frr::start(&link, &p2.announcing(&["172.16.2.0/24", "fd02::/64"]));

    let expected = |next_hop: &str, as_path: &str, learned: &Learned| Learned {
        next_hop: next_hop.into(),
        as_path: as_path.into(),
        local_pref: learned.local_pref,
        ..Learned::default()
    };
    for (prefix, next_hop) in [("172.16.2.0/24", "10.99.0.1"), ("fd02::/64", "fd99::1")] {
        let learned = bird.until_learned(prefix).await;
        assert_eq!(learned, expected(next_hop, "65000", &learned), "{prefix}");
    }
    for (prefix, next_hop) in [("172.16.1.0/24", "10.99.1.77"), ("fd01::/64", "fd99::77")] {
        let learned = frr.until_learned(prefix).await;
        assert_eq!(learned, expected(next_hop, "65001", &learned), "{prefix}");
        assert_eq!(learned.local_pref, Some(100), "{prefix}");
    }
    let prefixes = |words: &[&str]| {
        let routes = program.ask(words).expect("the speaker answers");
        let prefix = |route: &serde_json::Value| route["prefix"].as_str().map(str::to_owned);
        routes.iter().filter_map(prefix).collect::<Vec<_>>()
    };
    assert_eq!(prefixes(&["routes"]), ["172.16.1.0/24", "172.16.2.0/24", "fd01::/64", "fd02::/64"]);
    assert_eq!(prefixes(&["adj-in", "p2"]), ["172.16.2.0/24", "fd02::/64"]);
    assert_eq!(prefixes(&["adj-out", "p2"]), ["172.16.1.0/24", "fd01::/64"]);
    assert_eq!(program.peer("p1")["negotiated"]["families"].as_array().map(Vec::len), Some(2));

    // A broken file changes nothing; a new policy is applied to what is there.
    program.reload(&FILE.replace("kind: BGPPolicy", "kind: BGPPollicy"));
    program.reload(&FILE.replace(
        "rules: [",
        "rules: [{match: {prefixes: [{prefix: 172.16.1.0/24}]}, action: Reject}, ",
    ));
    frr.until("the rejected route is withdrawn", |frr| frr.learned("172.16.1.0/24").is_none())
        .await;
    assert!(frr.learned("fd01::/64").is_some());
    for name in ["p1", "p2"] {
        let peer = program.peer(name);
        assert_eq!((&peer["state"], &peer["establishedCount"]), (&"Established".into(), &1.into()));
    }

    // A reset by an operator, who says so; the peer is back by itself.
    program.ask(&["reset", "p1"]).expect("the speaker resets the peer");
    program.until_peer("p1", "is back", |peer| {
        peer["state"] == "Established" && peer["establishedCount"] == 2
    });
    bird.until_learned("fd02::/64").await;

    assert!(program.terminate().success(), "{}", program.log());
    bird.until("BIRD reads the reason", |bird| bird.log().contains(REASON)).await;
    frr.until("FRR reads the reason", |frr| frr.log().contains(REASON)).await;
}

/// What `cairn speaker` says at SIGTERM.
const REASON: &str = "stopped by its operator";
