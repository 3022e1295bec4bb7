//! What peers announce for a block or a part of it, whatever became of it.

mod rib_bench;

use std::net::{IpAddr, Ipv4Addr};
use std::time::Instant;

use cairn_bgp::prefix::{Families, Family, Prefix};
use cairn_bgp::rib::{HEARD_ROUTES_MAX, HeardRoute, RouteAttributes, UpdateBatch};
use cairn_bgp::wire::{NextHop, Origin, PathAttributes};
use rib_bench::{Bench, Path};

fn prefix(text: &str) -> Prefix {
    text.parse().expect("a prefix")
}

/// Prefix, peer, whether it is looped.
fn heard(bench: &Bench, asked: &[&str]) -> Vec<(String, String, bool)> {
    let asked: Vec<Prefix> = asked.iter().map(|text| prefix(text)).collect();
    let found = bench.rib.heard(&asked);
    assert_eq!(found.left_out, 0);
    let row = |route: HeardRoute| (route.prefix.to_string(), route.peer, route.looped);
    found.routes.into_iter().map(row).collect()
}

fn row(prefix: &str, peer: &str, looped: bool) -> (String, String, bool) {
    (prefix.to_owned(), peer.to_owned(), looped)
}

/// Each row: what the route brings, whether it is iBGP, whether it is looped.
#[test]
fn a_route_is_heard_whatever_became_of_it_and_looped_when_it_may_have_begun_here() {
    #[rustfmt::skip]
    let rows = [
        ("used", false, Path::of(&[65001]), false, "accepted by accept rule 0"),
        ("own AS", false, Path::of(&[65001, 65000]), true, "rejected: our own AS is in AS_PATH"),
        ("own next hop", false, Path::of(&[65001]).via("203.0.113.1"), true, "rejected: its next hop is our own address"),
        ("originator", true, Path::of(&[]).originator("192.0.2.254"), true, "rejected: we are its ORIGINATOR_ID"),
        ("another originator", true, Path::of(&[]).originator("192.0.2.253"), false, "accepted by accept rule 0"),
        ("cluster", true, Path::of(&[]).clusters(&["192.0.2.9", "192.0.2.254"]), true, "rejected: our cluster is in CLUSTER_LIST"),
    ];
    for (name, ibgp, path, looped, verdict) in rows {
        let mut bench = Bench::new();
        let peer = bench.peer(if ibgp { 65000 } else { 65001 });
        bench.announce(peer, "10.1.0.64/26", &path);
        let found = bench.rib.heard(&[prefix("10.1.0.64/26")]).routes;
        let [route] = &found[..] else { panic!("{name}: {found:?}") };
        assert_eq!((route.looped, route.verdict.as_str()), (looped, verdict), "{name}");
        assert_eq!((route.peer.as_str(), route.stale), ("p1", false), "{name}");
        bench.withdraw(peer, "10.1.0.64/26");
        assert!(heard(&bench, &["10.1.0.64/26"]).is_empty(), "{name}: withdrawn");
    }
}

#[test]
fn an_own_as_that_import_allows_is_still_a_loop() {
    let mut bench = Bench::new();
    let peer = bench.peer_with(65001, |config| config.own_as_max = 1);
    bench.announce(peer, "10.1.0.64/26", &Path::of(&[65001, 65000]));
    assert_eq!(heard(&bench, &["10.1.0.64/26"]), [row("10.1.0.64/26", "p1", true)]);
}

#[test]
fn what_policy_and_origin_validation_reject_is_heard() {
    let mut bench = Bench::new();
    let peer = bench.peer_with(65001, |config| config.import.clear());
    bench.announce(peer, "10.1.0.64/26", &Path::of(&[65001]));
    assert_eq!(heard(&bench, &["10.1.0.64/26"]), [row("10.1.0.64/26", "p1", false)]);
    let mut origins = cairn_bgp::rib::OriginTable::default();
    let owner = cairn_bgp::rib::BlockOwner { name: "n9".into(), asn: 65009, addresses: Vec::new() };
    origins.blocks.insert(prefix("10.2.0.0/26"), owner);
    bench.rib.set_origins(&origins.into());
    let other = bench.peer(65002);
    bench.announce(other, "10.2.0.0/26", &Path::of(&[65002]));
    let found = bench.rib.heard(&[prefix("10.2.0.0/26")]).routes;
    assert!(found[0].verdict.contains("belongs to n9"), "{found:?}");
    assert_eq!(found[0].origin_as, Some(65002));
}

#[test]
fn stale_routes_are_heard_until_they_are_swept() {
    let mut bench = Bench::new();
    let peer = bench.peer(65001);
    bench.announce(peer, "10.1.0.64/26", &Path::of(&[65001]));
    bench.rib.peer_down(peer, Families::NONE.with(Family::Ipv4Unicast));
    let found = bench.rib.heard(&[prefix("10.1.0.64/26")]).routes;
    assert!(found.len() == 1 && found[0].stale, "{found:?}");
    bench.rib.flush_stale(peer, Families::NONE.with(Family::Ipv4Unicast));
    assert!(heard(&bench, &["10.1.0.64/26"]).is_empty());
}

#[test]
fn parts_of_a_block_are_heard_and_neighbours_covers_and_own_ones_are_not() {
    let mut bench = Bench::new();
    let (a, b) = (bench.peer(65001), bench.peer(65002));
    let path = Path::of(&[65001]);
    for other in ["0.0.0.0/1", "10.0.0.0/8", "10.1.0.0/26", "10.1.0.128/26", "10.1.0.0/24"] {
        bench.announce(a, other, &path);
    }
    bench.announce(a, "10.1.0.127/32", &path);
    bench.announce(b, "10.1.0.127/32", &Path::of(&[65002]));
    bench.announce(b, "10.1.0.64/27", &Path::of(&[65002]));
    bench.originate("10.1.0.64/26");
    assert_eq!(
        heard(&bench, &["10.1.0.64/26"]),
        [
            row("10.1.0.64/27", "p2", false),
            row("10.1.0.127/32", "p1", false),
            row("10.1.0.127/32", "p2", false),
        ]
    );
    // Asked about both a block and a part of it, a route is one route.
    assert_eq!(heard(&bench, &["10.1.0.64/26", "10.1.0.64/27", "10.1.0.64/26"]).len(), 3);
}

/// More parts than can be looked up are found by a walk, to the same effect.
#[test]
fn blocks_of_any_size_are_asked_about() {
    let mut bench = Bench::new();
    let peer = bench.peer(65001);
    let path = Path::of(&[65001]);
    for announced in ["fd00:1::/64", "fd00:1::5/128", "fd00:1:0:1::/64", "fd00:2::40/122"] {
        bench.announce(peer, announced, &path);
    }
    bench.announce(peer, "10.1.2.3/32", &path);
    let v6 = |asked| heard(&bench, &[asked]).into_iter().map(|row| row.0).collect::<Vec<_>>();
    assert_eq!(v6("fd00:1::/64"), ["fd00:1::/64", "fd00:1::5/128"]);
    assert_eq!(v6("fd00:1::/48"), ["fd00:1::/64", "fd00:1::5/128", "fd00:1:0:1::/64"]);
    assert_eq!(v6("fd00:2::40/122"), ["fd00:2::40/122"]);
    assert_eq!(v6("::/0").len(), 4);
    assert_eq!(v6("0.0.0.0/0"), ["10.1.2.3/32"]);
    assert_eq!(v6("10.1.2.3/32"), ["10.1.2.3/32"]);
    assert!(v6("10.0.0.0/16").is_empty());
    assert_eq!(heard(&bench, &["fd00:1::/64", "10.1.0.0/16", "fd00:2::/32"]).len(), 4);
}

#[test]
fn looped_routes_take_no_room_from_others() {
    let mut bench = Bench::new();
    let (looping, other) = (bench.peer(65001), bench.peer(65002));
    for number in 0..HEARD_ROUTES_MAX + 5 {
        let host = format!("10.1.{}.{}/32", number / 256, number % 256);
        bench.announce(looping, &host, &Path::of(&[65001, 65000]));
    }
    bench.announce(other, "10.1.16.0/20", &Path::of(&[65002]));
    let found = bench.rib.heard(&[prefix("10.1.0.0/16")]);
    assert_eq!((found.routes.len(), found.left_out), (HEARD_ROUTES_MAX + 1, 5));
    assert_eq!(found.routes.iter().filter(|route| !route.looped).count(), 1);
}

/// A question about a block costs look-ups and no walk, also in a table of 300,000 prefixes.
#[test]
fn a_question_does_not_grow_with_the_table() {
    let mut bench = Bench::new();
    let peer = bench.peer(65001);
    let address = IpAddr::V4(Ipv4Addr::new(198, 51, 100, 100));
    let path = PathAttributes::originated(Origin::Igp).edit().prepend(65001, 1).build();
    let attributes = RouteAttributes::new(NextHop::new(address), path);
    let mut batch = UpdateBatch::default();
    let many = (0..300_000_u32)
        .filter_map(|n| Prefix::of(IpAddr::V4(Ipv4Addr::from_bits((20 << 24) + (n << 6))), 26));
    batch.push_announcements(attributes.into(), many);
    bench.rib.update(peer, batch).expect("no limit");
    bench.announce(peer, "10.1.0.65/32", &Path::of(&[65001]));
    let asked: Vec<Prefix> = (0..4_u8)
        .filter_map(|n| Prefix::of(IpAddr::V4(Ipv4Addr::new(10, 1, 0, n * 64)), 26))
        .collect();
    let time = |rounds: u32, ask: &dyn Fn()| {
        let start = Instant::now();
        (0..rounds).for_each(|_| ask());
        start.elapsed() / rounds
    };
    let looked_up = time(50, &|| assert_eq!(bench.rib.heard(&asked).routes.len(), 1));
    let walked = time(2, &|| assert_eq!(bench.rib.heard(&[prefix("10.0.0.0/8")]).routes.len(), 1));
    assert!(looked_up * 10 < walked, "{looked_up:?} looked up, {walked:?} walked");
}
