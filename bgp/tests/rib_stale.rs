//! Stale routes in the RIB: over several restarts (RFC 8538 section 4.1) and as a last resort (RFC 9494).

mod rib_bench;

use cairn_bgp::policy::{Action, Changes, CommunityChange, Match, Rule};
use cairn_bgp::prefix::{Families, Family};
use cairn_bgp::rib::{PeerId, Step, UpdateBatch};
use cairn_bgp::wire::Community;
use rib_bench::{Bench, Path, policy};

const V4: Families = Families::NONE.with(Family::Ipv4Unicast);

fn end_of_rib(bench: &mut Bench, id: PeerId) {
    let mut batch = UpdateBatch::default();
    batch.push_end_of_rib(Family::Ipv4Unicast);
    bench.rib.update(id, batch).expect("no limit");
}

fn routes(bench: &Bench) -> Vec<String> {
    let all = bench.rib.routes(&cairn_bgp::rib::RouteFilter::default());
    all.into_iter().map(|route| route.prefix.to_string()).collect()
}

#[test]
fn older_stale_routes_stay_over_another_restart_where_that_is_agreed() {
    for (agreed, left) in
        [(V4, vec!["10.1.0.0/16", "10.2.0.0/16"]), (Families::NONE, vec!["10.2.0.0/16"])]
    {
        let mut bench = Bench::new();
        let peer = bench.peer(65001);
        bench.announce(peer, "10.1.0.0/16", &Path::of(&[65001]));
        bench.rib.peer_down_again(peer, V4, Families::NONE);
        bench.up_again(peer, |session| session.stale_kept = V4);
        bench.announce(peer, "10.2.0.0/16", &Path::of(&[65001]));
        bench.rib.peer_down_again(peer, V4, agreed);
        assert_eq!(routes(&bench), left);
        bench.up_again(peer, |session| session.stale_kept = V4);
        bench.announce(peer, "10.2.0.0/16", &Path::of(&[65001]));
        end_of_rib(&mut bench, peer);
        assert_eq!(routes(&bench), ["10.2.0.0/16"], "End-of-RIB takes what did not come again");
    }
}

/// A route's generation is one of 256: one that is that old must not look new.
#[test]
fn a_route_does_not_become_new_again_by_very_many_restarts() {
    let mut bench = Bench::new();
    let peer = bench.peer(65001);
    bench.announce(peer, "10.1.0.0/16", &Path::of(&[65001]));
    for restart in 0..600 {
        bench.announce(peer, "10.2.0.0/16", &Path::of(&[65001]));
        bench.rib.peer_down_again(peer, V4, V4);
        if restart < 100 {
            assert_eq!(routes(&bench).len(), 2, "{restart}");
        }
        bench.up_again(peer, |session| session.stale_kept = V4);
    }
    end_of_rib(&mut bench, peer);
    assert!(routes(&bench).is_empty(), "neither came again");
}

#[test]
fn a_last_resort_is_marked_loses_and_goes_only_to_those_that_know_it() {
    let mut bench = Bench::new();
    let [away, other] = [bench.peer(65001), bench.peer(65002)];
    let [knows, plain] = [bench.peer(65003), bench.peer(65004)];
    bench.down(knows);
    bench.up_again(knows, |session| session.knows_long_lived = true);
    for prefix in ["10.1.0.0/16", "10.2.0.0/16"] {
        bench.announce(away, prefix, &Path::of(&[65001]));
    }
    bench.announce(other, "10.2.0.0/16", &Path::of(&[65002, 65009, 65010]));
    bench.announce(away, "10.3.0.0/16", &Path::of(&[65001]).community(Community::NO_LLGR));
    bench.rib.peer_down(away, V4);
    assert_eq!(bench.told(plain).len(), 3);
    assert!(bench.candidate("10.2.0.0/16", 0).peer.as_deref() == Some("p1"), "as good as before");

    bench.rib.long_lived_stale(away, V4);
    assert_eq!(routes(&bench), ["10.1.0.0/16", "10.2.0.0/16"], "NO_LLGR goes");
    let best = bench.candidate("10.2.0.0/16", 0);
    assert_eq!(best.peer.as_deref(), Some("p2"), "any other route is better");
    assert_eq!(bench.candidate("10.2.0.0/16", 1).lost_at, Some(Step::LongLivedStale));
    let told = bench.told(knows);
    assert!(told["10.1.0.0/16"].communities.contains(&Community::LLGR_STALE));
    assert!(!told["10.2.0.0/16"].communities.contains(&Community::LLGR_STALE));
    assert_eq!(bench.told(plain).keys().collect::<Vec<_>>(), ["10.2.0.0/16"]);
    let why = bench.export_verdict(plain, "10.1.0.0/16");
    assert!(why.contains("stale for long"), "{why}");

    // What policies decide anew does not take the mark off.
    let strips = Changes {
        communities: CommunityChange { remove: vec![Community::LLGR_STALE], ..Default::default() },
        ..Changes::default()
    };
    let rule = Rule { matches: Match::default(), action: Action::Accept, set: strips };
    bench.configure(away, |config| config.import = vec![policy("strips", [rule])]);
    assert_eq!(bench.candidate("10.2.0.0/16", 0).peer.as_deref(), Some("p2"));
    assert!(bench.told(knows)["10.1.0.0/16"].communities.contains(&Community::LLGR_STALE));

    // Back, and announced again: as good as any.
    bench.up_again(away, |session| session.stale_kept = V4);
    bench.announce(away, "10.2.0.0/16", &Path::of(&[65001]));
    assert_eq!(bench.candidate("10.2.0.0/16", 0).peer.as_deref(), Some("p1"));
    end_of_rib(&mut bench, away);
    assert_eq!(routes(&bench), ["10.2.0.0/16"]);
    assert_eq!(bench.told(plain).keys().collect::<Vec<_>>(), ["10.2.0.0/16"]);
}

/// As agents have it: only pods' blocks.
#[test]
fn only_what_is_within_the_configured_prefixes_is_a_last_resort() {
    let mut bench = Bench::new();
    let within = ["10.0.0.0/8".parse().unwrap()];
    let peer = bench.peer_with(65001, |config| config.long_lived_within = Some(within.into()));
    for prefix in ["10.1.0.0/16", "192.168.0.0/24"] {
        bench.announce(peer, prefix, &Path::of(&[65001]));
    }
    bench.rib.peer_down(peer, V4);
    bench.rib.long_lived_stale(peer, V4);
    assert_eq!(routes(&bench), ["10.1.0.0/16"]);
    bench.rib.flush_stale(peer, V4);
    assert!(routes(&bench).is_empty());
}
