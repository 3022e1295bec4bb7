//! Several paths to a prefix (RFC 7911), from a peer and to one: which one is best, which one goes, and
//! how many there may be.

mod rib_bench;

use cairn_bgp::config::{PrefixLimit, PrefixLimitAction};
use cairn_bgp::prefix::{Families, Family, Prefix};
use cairn_bgp::rib::{
    PATHS_A_PREFIX_MAX, PeerId, PrefixFilter, RouteFilter, Step, TableKind, TableRow, UpdateBatch,
};
use cairn_bgp::wire::Community;
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

/// A bench with three sources of equal routes but for the length of their paths, and one that is told
/// the best two.
fn sending() -> (Bench, [PeerId; 3], PeerId) {
    let mut bench = Bench::new();
    let sources = [65001, 65002, 65003].map(|asn| bench.peer(asn));
    let to = bench.peer_with(65009, |config| config.sent_paths_max = 2);
    bench.send_paths(to);
    for (source, asns) in sources.iter().zip([&[65001][..], &[65002, 1], &[65003, 1, 2]]) {
        bench.announce(*source, ONE, &Path::of(asns));
    }
    (bench, sources, to)
}

/// Identifier and first AS behind our own of what a peer has been told.
fn told(bench: &mut Bench, id: PeerId) -> Vec<String> {
    let told = bench.told(id).into_iter();
    let text = |(name, told): (String, rib_bench::Told)| {
        let asn = told.as_path.split(' ').nth(1).unwrap_or("-").to_owned();
        format!("{}: {asn}", name.split(" path ").nth(1).expect("an identifier"))
    };
    told.map(text).collect()
}

/// RFC 7911 section 3: an identifier means one path as long as that path is told.
#[test]
fn the_best_paths_are_told_and_keep_their_identifiers() {
    let (mut bench, [first, second, third], to) = sending();
    assert_eq!(told(&mut bench, to), ["1: 65001", "2: 65002"]);
    assert_eq!(bench.rib.counts(to, V4).advertised, 2);
    // The best one goes, and the third comes in; the second is the same as before.
    bench.withdraw(first, ONE);
    assert_eq!(told(&mut bench, to), ["2: 65002", "3: 65003"]);
    // It comes back, and the third goes.
    bench.announce(first, ONE, &Path::of(&[65001]));
    assert_eq!(told(&mut bench, to), ["1: 65001", "2: 65002"]);
    // A change in the order alone says nothing; a change of attributes keeps the identifier.
    bench.announce(first, ONE, &Path::of(&[65001, 1, 1]));
    assert_eq!(told(&mut bench, to), ["1: 65001", "2: 65002"]);
    assert_eq!(bench.told(to)[&format!("{ONE} path 1")].as_path, "65000 65001 1 1");
    bench.withdraw(third, ONE);
    bench.withdraw(second, ONE);
    assert_eq!(told(&mut bench, to), ["1: 65001"]);
    bench.withdraw(first, ONE);
    assert_eq!(told(&mut bench, to), [""; 0]);
    assert_eq!(bench.rib.counts(to, V4).advertised, 0);
}

#[test]
fn a_peer_is_told_no_path_of_its_own() {
    let (mut bench, _, to) = sending();
    bench.announce(to, ONE, &Path::of(&[65009]));
    assert_eq!(told(&mut bench, to), ["1: 65001"], "the own path is one of the best two");
    let rows = bench.rib.rows(&TableKind::AdjOut("p4".into()), &[prefix(ONE)]);
    let [TableRow::AdjOut(route)] = &rows[..] else { panic!("one row and not {rows:?}") };
    assert_eq!(route.advertised.path_id, Some(1));
    assert_eq!(bench.export_verdict(to, ONE), "announced by accept rule 0");
}

#[test]
fn paths_that_policy_stops_leave_their_place_to_others() {
    let (mut bench, [first, ..], to) = sending();
    assert_eq!(told(&mut bench, to), ["1: 65001", "2: 65002"]);
    bench.announce(first, ONE, &Path::of(&[65001]).community(Community::NO_EXPORT));
    assert_eq!(told(&mut bench, to), ["2: 65002", "3: 65003"]);
}

/// Who lags is told the difference once it reads again: also which identifiers mean nothing any more.
#[test]
fn a_peer_that_lags_forgets_what_has_gone_meanwhile() {
    let (mut bench, [first, second, third], slow) = sending();
    let fast = bench.peer_with(65009, |config| config.sent_paths_max = 2);
    bench.send_paths(fast);
    assert_eq!(told(&mut bench, slow), ["1: 65001", "2: 65002"]);
    bench.room(slow, 0);
    bench.withdraw(first, ONE);
    assert_eq!(told(&mut bench, fast), ["2: 65002", "3: 65003"]);
    bench.withdraw(second, ONE);
    assert_eq!(told(&mut bench, fast), ["3: 65003"]);
    bench.withdraw(third, ONE);
    bench.announce(second, ONE, &Path::of(&[65002]));
    assert_eq!(told(&mut bench, fast), ["1: 65002"]);
    assert_eq!(told(&mut bench, slow), ["1: 65001", "2: 65002"], "it has read nothing");
    bench.room(slow, usize::MAX);
    assert_eq!(told(&mut bench, slow), ["1: 65002"]);
}

/// Another number of paths on a live session: the other group's identifiers take the place of the former.
#[test]
fn the_number_of_paths_changes_on_a_live_session() {
    let (mut bench, [first, ..], to) = sending();
    assert_eq!(told(&mut bench, to), ["1: 65001", "2: 65002"]);
    bench.withdraw(first, ONE);
    bench.announce(first, ONE, &Path::of(&[65001]));
    assert_eq!(told(&mut bench, to).len(), 2);
    bench.configure(to, |config| config.sent_paths_max = 3);
    assert_eq!(told(&mut bench, to).len(), 3);
    bench.configure(to, |config| config.sent_paths_max = 1);
    let left = told(&mut bench, to);
    assert!(left.len() == 1 && left[0].ends_with("65001"), "{left:?}");
    assert_eq!(bench.rib.counts(to, V4).advertised, 1);
}
