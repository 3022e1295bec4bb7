//! Several paths to a prefix from one peer (RFC 7911): which one is best, which one goes, and how many
//! there may be.

mod rib_bench;

use cairn_bgp::config::{PrefixLimit, PrefixLimitAction};
use cairn_bgp::prefix::{Families, Family, Prefix};
use cairn_bgp::rib::{
    PATHS_A_PREFIX_MAX, PeerId, PrefixFilter, RouteFilter, Step, TableKind, TableRow, UpdateBatch,
};
use rib_bench::{Bench, Path};

const V4: Family = Family::Ipv4Unicast;
const ONE: &str = "10.1.0.0/24";

/// A bench with a peer that sends several paths, and another one that hears of the best.
fn bench() -> (Bench, PeerId, PeerId) {
    let mut bench = Bench::new();
    let peer = bench.peer(65001);
    let other = bench.peer(65002);
    bench.receive_paths(peer);
    (bench, peer, other)
}

fn prefix(text: &str) -> Prefix {
    text.parse().expect("a prefix")
}

/// Next hop and identifier of each candidate, the best one first.
fn candidates(bench: &Bench) -> Vec<(String, u32)> {
    let filter = RouteFilter { prefix: PrefixFilter::Exact(prefix(ONE)), ..RouteFilter::default() };
    let routes = bench.rib.routes(&filter);
    let candidates = routes.into_iter().flat_map(|route| route.candidates);
    let shown = candidates.map(|c| (c.next_hop.expect("learned"), c.path_id.expect("a path")));
    shown.collect()
}

/// The next hops of the route in the forwarding table.
fn forwarded(bench: &mut Bench) -> Vec<String> {
    let changes = bench.rib.take_fib(usize::MAX);
    let [change] = &changes[..] else { panic!("one change and not {changes:?}") };
    let paths = change.route.iter().flat_map(|route| &route.paths);
    paths.map(|path| path.next_hop.to_string()).collect()
}

#[test]
fn paths_of_one_peer_are_candidates_of_their_own() {
    let (mut bench, peer, other) = bench();
    let path = Path::of(&[65001]);
    bench.announce_path(peer, 9, ONE, &path.clone().via("198.51.100.9"));
    bench.announce_path(peer, 4, ONE, &path.clone().via("198.51.100.4"));
    bench.announce_path(peer, 5, ONE, &Path::of(&[65001, 65009]).via("198.51.100.5"));
    assert_eq!(forwarded(&mut bench), ["198.51.100.4", "198.51.100.9"], "equals, by identifier");
    let all: Vec<u32> = candidates(&bench).into_iter().map(|(_, path_id)| path_id).collect();
    assert_eq!(all, [4, 9, 5]);
    assert_eq!(bench.candidate(ONE, 1).lost_at, Some(Step::PathId));
    assert_eq!(bench.candidate(ONE, 2).lost_at, Some(Step::AsPathLength));
    assert_eq!(bench.rib.counts(peer, V4).received, 3);
    assert!(bench.told(other).contains_key(ONE));
    // Each is replaced and withdrawn by its own identifier.
    bench.announce_path(peer, 4, ONE, &path.via("198.51.100.44"));
    assert_eq!(forwarded(&mut bench), ["198.51.100.44", "198.51.100.9"]);
    bench.withdraw_path(peer, 4, ONE);
    assert_eq!(forwarded(&mut bench), ["198.51.100.9"]);
    bench.withdraw_path(peer, 77, ONE);
    bench.withdraw_path(peer, 9, ONE);
    assert_eq!(forwarded(&mut bench), ["198.51.100.5"]);
    bench.withdraw_path(peer, 5, ONE);
    assert_eq!(forwarded(&mut bench), [""; 0]);
    assert_eq!(bench.rib.counts(peer, V4).received, 0);
    assert!(bench.told(other).is_empty());
}

#[test]
fn a_table_of_what_a_peer_announced_has_a_row_for_each_path() {
    let (mut bench, peer, _) = bench();
    for path_id in [3, 1, 2] {
        bench.announce_path(peer, path_id, ONE, &Path::of(&[65001]));
    }
    let rows = bench.rib.rows(&TableKind::AdjIn("p1".into()), &[prefix(ONE)]);
    let ids = rows.iter().map(|row| match row {
        TableRow::AdjIn(route) => route.received.path_id,
        _ => None,
    });
    assert_eq!(ids.collect::<Vec<_>>(), [Some(1), Some(2), Some(3)]);
}

/// What is beyond is dropped and told once; what is there goes on, also when it changes.
#[test]
fn a_prefix_has_so_many_paths_and_no_more() {
    let (mut bench, peer, _) = bench();
    let path = Path::of(&[65001]);
    let most = PATHS_A_PREFIX_MAX as u32;
    for path_id in 0..most {
        let outcome = bench.announce_path(peer, path_id, ONE, &path);
        assert_eq!((outcome.dropped, outcome.over_paths), (0, Families::NONE));
    }
    let beyond = bench.announce_path(peer, most, ONE, &path);
    assert_eq!((beyond.dropped, beyond.over_paths), (1, Families::NONE.with(V4)));
    let beyond = bench.announce_path(peer, most + 1, ONE, &path);
    assert_eq!((beyond.dropped, beyond.over_paths), (1, Families::NONE), "told once");
    assert_eq!(bench.announce_path(peer, 7, ONE, &path.clone().med(1)).dropped, 0, "it is there");
    assert_eq!(bench.announce_path(peer, most, "10.2.0.0/24", &path).dropped, 0, "another prefix");
    let counts = bench.rib.counts(peer, V4);
    assert_eq!((counts.received, counts.dropped), (PATHS_A_PREFIX_MAX + 1, 2));
    bench.withdraw_path(peer, 0, ONE);
    assert_eq!(bench.announce_path(peer, most, ONE, &path).dropped, 0, "there is room again");
}

#[test]
fn the_prefix_limit_counts_paths() {
    let mut bench = Bench::new();
    let limit = PrefixLimit { prefixes_max: 2, action: PrefixLimitAction::Drop };
    let peer = bench.peer_with(65001, |config| config.prefix_limit = Some(limit));
    bench.receive_paths(peer);
    let path = Path::of(&[65001]);
    assert_eq!(bench.announce_path(peer, 1, ONE, &path).dropped, 0);
    assert_eq!(bench.announce_path(peer, 2, ONE, &path).dropped, 0);
    let outcome = bench.announce_path(peer, 3, ONE, &path);
    assert_eq!((outcome.dropped, outcome.over_limit), (1, Families::NONE.with(V4)));
    assert_eq!(bench.announce_path(peer, 2, ONE, &path.med(1)).dropped, 0);
}

/// RFC 7313: of a prefix that is sent again, the paths that are not go.
#[test]
fn a_refresh_sweeps_single_paths() {
    let (mut bench, peer, _) = bench();
    let path = Path::of(&[65001]);
    for path_id in 1..=3 {
        bench.announce_path(peer, path_id, ONE, &path.clone().via("198.51.100.7"));
    }
    bench.rib.begin_refresh(peer, V4);
    bench.announce_path(peer, 2, ONE, &path.via("198.51.100.7"));
    assert!(bench.candidate(ONE, 0).stale && !bench.candidate(ONE, 1).stale);
    bench.rib.end_refresh(peer, V4);
    assert_eq!(candidates(&bench), [("198.51.100.7".to_owned(), 2)]);
    assert_eq!(bench.rib.counts(peer, V4).received, 1);
}

/// RFC 4724: a peer that comes back may number its paths anew, and as many as before are taken in beside
/// those that wait for End-of-RIB.
#[test]
fn a_restart_may_bring_other_identifiers() {
    let (mut bench, peer, _) = bench();
    let path = Path::of(&[65001]).via("198.51.100.7");
    let count = PATHS_A_PREFIX_MAX as u32;
    for path_id in 0..count {
        bench.announce_path(peer, path_id, ONE, &path);
    }
    let both = Families::from_iter(Family::ALL);
    bench.rib.peer_down(peer, both);
    bench.receive_paths(peer);
    for path_id in 1000..1000 + count {
        assert_eq!(bench.announce_path(peer, path_id, ONE, &path).dropped, 0);
    }
    assert_eq!(bench.announce_path(peer, 2000, ONE, &path).dropped, 1);
    assert_eq!(bench.rib.counts(peer, V4).received, 2 * PATHS_A_PREFIX_MAX);
    let mut end = UpdateBatch::default();
    end.push_end_of_rib(V4);
    bench.rib.update(peer, end).expect("no limit");
    let left = candidates(&bench);
    assert_eq!(left.len(), PATHS_A_PREFIX_MAX);
    assert!(left.iter().all(|(_, path_id)| *path_id >= 1000));
}

/// RFC 9494: what is stale for long stays the path that it was, and each comes again by its identifier.
#[test]
fn paths_that_are_stale_for_long_keep_their_identifiers() {
    let (mut bench, peer, _) = bench();
    let both = Families::from_iter(Family::ALL);
    for path_id in [3, 8] {
        bench.announce_path(peer, path_id, ONE, &Path::of(&[65001]).via("198.51.100.7"));
    }
    bench.rib.peer_down(peer, both);
    bench.rib.long_lived_stale(peer, both);
    let next_hop = "198.51.100.7".to_owned();
    assert_eq!(candidates(&bench), [(next_hop.clone(), 3), (next_hop.clone(), 8)]);
    bench.receive_paths(peer);
    bench.announce_path(peer, 8, ONE, &Path::of(&[65001]).via("198.51.100.7"));
    assert_eq!(candidates(&bench), [(next_hop.clone(), 8), (next_hop, 3)], "fresh before stale");
    assert_eq!(bench.rib.counts(peer, V4).received, 2);
}

/// A peer that restarts again and again under other identifiers does not fill the memory.
#[test]
fn stale_paths_are_bounded_too() {
    let (mut bench, peer, _) = bench();
    let both = Families::from_iter(Family::ALL);
    for restart in 0..10 {
        for path_id in 0..PATHS_A_PREFIX_MAX as u32 {
            bench.announce_path(peer, 1000 * restart + path_id, ONE, &Path::of(&[65001]));
        }
        bench.rib.peer_down_again(peer, both, both);
        bench.receive_paths(peer);
    }
    assert_eq!(bench.rib.counts(peer, V4).received, 4 * PATHS_A_PREFIX_MAX);
}
