//! Our speaker and FRR.

mod interop;

use cairn_bgp::config::{AddPath, PrefixLimit, PrefixLimitAction};
use cairn_bgp::prefix::Family;
use cairn_bgp::rib::CandidateInfo;
use cairn_bgp::speaker::SpeakerOptions;
use cairn_bgp::status::PeerSnapshot;
use cairn_tests::bird::Bird;
use cairn_tests::daemon::{Daemon, Setup, Transport, text};
use cairn_tests::frr::Frr;
use cairn_tests::link::Link;
use cairn_tests::us::{self, Us};

fn ebgp() -> Setup {
    Setup::new(Transport::V4, 65002, 65001)
}

fn ibgp() -> Setup {
    Setup::new(Transport::V4, 65001, 65001)
}

fn over_ipv6() -> Setup {
    Setup::new(Transport::V6, 65002, 65001)
}

#[tokio::test]
async fn ebgp_over_ipv4() {
    interop::exchange::<Frr>(ebgp()).await;
}

#[tokio::test]
async fn ebgp_over_ipv6_with_4_octet_as() {
    interop::exchange::<Frr>(Setup::new(Transport::V6, 4_200_000_002, 65001)).await;
}

#[tokio::test]
async fn ibgp_over_ipv4() {
    interop::exchange::<Frr>(ibgp()).await;
}

#[tokio::test]
async fn ibgp_over_ipv6() {
    interop::exchange::<Frr>(Setup::new(Transport::V6, 65001, 65001)).await;
}

#[tokio::test]
async fn killed_and_back() {
    interop::restart::killed_and_back::<Frr>(ebgp()).await;
}

#[tokio::test]
async fn our_restart() {
    interop::restart::our_restart::<Frr>(ebgp()).await;
}

#[tokio::test]
async fn refresh_of_ours() {
    interop::restart::refresh_of_ours::<Frr>(ebgp()).await;
}

#[tokio::test]
async fn refresh_of_theirs() {
    interop::restart::refresh_of_theirs::<Frr>(Setup { graceful_restart: true, ..ebgp() }).await;
}

#[tokio::test]
async fn password_over_ipv4() {
    interop::sessions::comes_up::<Frr>(Setup { password: Some("secret".into()), ..ebgp() }).await;
}

#[tokio::test]
async fn password_over_ipv6() {
    interop::sessions::comes_up::<Frr>(Setup { password: Some("secret".into()), ..over_ipv6() })
        .await;
}

#[tokio::test]
async fn password_differs() {
    interop::sessions::password_differs::<Frr>(ebgp()).await;
}

#[tokio::test]
async fn password_missing() {
    interop::sessions::password_missing::<Frr>(ebgp()).await;
}

#[tokio::test]
async fn password_changes() {
    interop::sessions::password_changes::<Frr>(ebgp()).await;
}

#[tokio::test]
async fn password_changes_live() {
    interop::sessions::password_changes_live::<Frr>(ebgp()).await;
}

#[tokio::test]
async fn ttl_security_over_ipv4() {
    interop::sessions::comes_up::<Frr>(Setup { ttl_security: true, ..ebgp() }).await;
}

#[tokio::test]
async fn ttl_security_over_ipv6() {
    interop::sessions::comes_up::<Frr>(Setup { ttl_security: true, ..over_ipv6() }).await;
}

#[tokio::test]
async fn collision() {
    interop::sessions::collision::<Frr>(ebgp()).await;
}

#[tokio::test]
async fn shutdown_text() {
    interop::sessions::shutdown_text::<Frr>(ebgp()).await;
}

#[tokio::test]
async fn our_prefix_limit() {
    interop::sessions::our_prefix_limit::<Frr>(ebgp()).await;
}

#[tokio::test]
async fn their_prefix_limit() {
    interop::sessions::their_prefix_limit::<Frr>(ebgp()).await;
}

#[tokio::test]
async fn passes_on() {
    interop::transit::passes_on::<Frr>(ebgp()).await;
}

#[tokio::test]
async fn old_speaker() {
    interop::transit::passes_on::<Frr>(Setup { four_octet_as: false, ..ebgp() }).await;
}

#[tokio::test]
async fn old_speaker_of_our_as() {
    interop::sessions::old_speaker_of_our_as::<Frr>(ebgp()).await;
}

#[tokio::test]
async fn extended_next_hop() {
    interop::exchange::<Frr>(Setup { extended_next_hop: true, ..over_ipv6() }).await;
}

#[tokio::test]
async fn extended_messages() {
    interop::transit::long_route::<Frr>(Setup { extended_messages: true, ..ebgp() }).await;
}

#[tokio::test]
async fn reflects() {
    interop::transit::reflects::<Frr>(ibgp()).await;
}

/// RFC 7911, both ways: two paths of a BIRD go through us to FRR, and two of FRR come to us; one goes and leaves the
/// other, our limits hold, and no session ends.
#[tokio::test]
async fn several_paths() {
    const PASSED: &str = "10.2.0.0/24";
    const OWN: &str = "10.3.0.0/24";
    let link = Link::new();
    link.host(3);
    let mut theirs = Setup { add_path: true, ..ebgp() }.announcing(&[OWN]);
    theirs.routes[0].as_path = vec![65020];
    let other = Setup { add_path: true, ..Setup::new(Transport::V4, 65003, 65001).at(3) };
    let mut other = other.announcing(&[PASSED, PASSED]);
    other.routes[1].as_path = vec![65010];
    // Where nobody is: what has an address takes no route with it as next hop.
    other.next_hops = Transport::ALL.map(|family| family.address(9));
    let frr = Frr::start(&link, &theirs);
    let mut bird = Bird::start(&link, &other);
    let mut us = Us::with(us::config(&[&theirs, &other], &[]), SpeakerOptions::default());
    let negotiated = us.until_established().await.negotiated.expect("an established session");
    assert!(negotiated.receives_paths.contains(&Family::Ipv4Unicast), "{negotiated:?}");
    assert!(negotiated.sends_paths.contains(&Family::Ipv4Unicast), "{negotiated:?}");

    // From us: both, no more than we may send, both again, and one when the other has gone.
    let learned = |frr: &Frr| {
        let answer = frr.json(&format!("show bgp ipv4 unicast {PASSED} json"));
        let paths = answer["paths"].as_array().cloned().unwrap_or_default();
        let mut paths: Vec<_> = paths.iter().map(|path| text(&path["aspath"]["string"])).collect();
        paths.sort();
        paths
    };
    let (short, long) = ("65001 65003", "65001 65003 65010");
    frr.until("both paths arrive", |frr| learned(frr) == [short, long]).await;
    us.apply_to_peer(|peer| peer.add_path = AddPath { send_max: 1, ..peer.add_path });
    frr.until("only the best path is left", |frr| learned(frr) == [short]).await;
    us.apply_to_peer(|peer| peer.add_path = AddPath { send_max: 4, ..peer.add_path });
    frr.until("both paths are back", |frr| learned(frr) == [short, long]).await;
    bird.apply(|setup| drop(setup.routes.pop()));
    frr.until("one path is left", |frr| learned(frr) == [short]).await;

    // From FRR: the second path is a route of its kernel.
    let redistribute = |word: &str| {
        let family = "address-family ipv4 unicast";
        let line = format!("{word}redistribute kernel");
        let answer = frr.ask(&["configure terminal", "router bgp 65002", family, &line]);
        assert!(answer.is_some(), "FRR refuses {line}");
    };
    // With all paths FRR sends ours back, too, which we receive, and refuse as loops.
    let routes_of = |accepted: usize, drops: bool| {
        move |peer: &PeerSnapshot| {
            let routes = peer.routes[&Family::Ipv4Unicast];
            (routes.received, routes.accepted) == (accepted + 1, accepted)
                && (routes.dropped > 0) == drops
        }
    };
    us.until_peer("one path", routes_of(1, false)).await;
    link.inside(&format!("ip route add {OWN} via 10.0.0.9"));
    redistribute("");
    us.until_peer("both paths", routes_of(2, false)).await;
    let paths = |candidates: &[CandidateInfo]| {
        candidates.iter().map(|candidate| candidate.as_path.clone()).collect::<Vec<_>>()
    };
    let candidates = us.candidates(OWN).await;
    assert_eq!(paths(&candidates), ["65002", "65002 65020"]);
    assert!(candidates.iter().all(|candidate| candidate.path_id.is_some()), "{candidates:?}");
    redistribute("no ");
    us.until_peer("one path again", routes_of(1, false)).await;
    assert_eq!(paths(&us.candidates(OWN).await), ["65002 65020"]);
    let limit = PrefixLimit { prefixes_max: 2, action: PrefixLimitAction::Drop };
    us.apply_to_peer(|peer| peer.prefix_limit = Some(limit));
    redistribute("");
    us.until_peer("the second path is dropped", routes_of(1, true)).await;
    assert_eq!(paths(&us.candidates(OWN).await), ["65002 65020"]);
    assert_eq!(us.peer().await.established_count, 1);
}
