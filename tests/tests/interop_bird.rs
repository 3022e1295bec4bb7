//! Our speaker and BIRD 2.

mod interop;

use cairn_bgp::prefix::Family;
use cairn_bgp::speaker::{Reset, SpeakerOptions};
use cairn_tests::bird::Bird;
use cairn_tests::daemon::{Daemon, Setup, Transport};
use cairn_tests::link::Link;
use cairn_tests::us::{self, PEER, Us};

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
    interop::exchange::<Bird>(ebgp()).await;
}

#[tokio::test]
async fn ebgp_over_ipv6_with_4_octet_as() {
    interop::exchange::<Bird>(Setup::new(Transport::V6, 4_200_000_002, 65001)).await;
}

#[tokio::test]
async fn ibgp_over_ipv4() {
    interop::exchange::<Bird>(ibgp()).await;
}

#[tokio::test]
async fn ibgp_over_ipv6() {
    interop::exchange::<Bird>(Setup::new(Transport::V6, 65001, 65001)).await;
}

#[tokio::test]
async fn killed_and_back() {
    interop::restart::killed_and_back::<Bird>(ebgp()).await;
}

#[tokio::test]
async fn our_restart() {
    interop::restart::our_restart::<Bird>(ebgp()).await;
}

#[tokio::test]
async fn refresh_of_ours() {
    interop::restart::refresh_of_ours::<Bird>(ebgp()).await;
}

#[tokio::test]
async fn refresh_of_theirs() {
    interop::restart::refresh_of_theirs::<Bird>(ebgp()).await;
}

#[tokio::test]
async fn password_over_ipv4() {
    interop::sessions::comes_up::<Bird>(Setup { password: Some("secret".into()), ..ebgp() }).await;
}

#[tokio::test]
async fn password_over_ipv6() {
    interop::sessions::comes_up::<Bird>(Setup { password: Some("secret".into()), ..over_ipv6() })
        .await;
}

#[tokio::test]
async fn password_differs() {
    interop::sessions::password_differs::<Bird>(ebgp()).await;
}

#[tokio::test]
async fn password_missing() {
    interop::sessions::password_missing::<Bird>(ebgp()).await;
}

#[tokio::test]
async fn password_changes() {
    interop::sessions::password_changes::<Bird>(ebgp()).await;
}

#[tokio::test]
async fn password_changes_live() {
    interop::sessions::password_changes_live::<Bird>(ebgp()).await;
}

#[tokio::test]
async fn ttl_security_over_ipv4() {
    interop::sessions::comes_up::<Bird>(Setup { ttl_security: true, ..ebgp() }).await;
}

#[tokio::test]
async fn ttl_security_over_ipv6() {
    interop::sessions::comes_up::<Bird>(Setup { ttl_security: true, ..over_ipv6() }).await;
}

#[tokio::test]
async fn collision() {
    interop::sessions::collision::<Bird>(ebgp()).await;
}

#[tokio::test]
async fn shutdown_text() {
    interop::sessions::shutdown_text::<Bird>(ebgp()).await;
}

#[tokio::test]
async fn our_prefix_limit() {
    interop::sessions::our_prefix_limit::<Bird>(ebgp()).await;
}

#[tokio::test]
async fn their_prefix_limit() {
    interop::sessions::their_prefix_limit::<Bird>(ebgp()).await;
}

#[tokio::test]
async fn passes_on() {
    interop::transit::passes_on::<Bird>(ebgp()).await;
}

#[tokio::test]
async fn old_speaker() {
    interop::transit::passes_on::<Bird>(Setup { four_octet_as: false, ..ebgp() }).await;
}

#[tokio::test]
async fn extended_next_hop() {
    interop::exchange::<Bird>(Setup { extended_next_hop: true, ..over_ipv6() }).await;
}

#[tokio::test]
async fn extended_messages() {
    interop::transit::long_route::<Bird>(Setup { extended_messages: true, ..ebgp() }).await;
}

#[tokio::test]
async fn reflects() {
    interop::transit::reflects::<Bird>(ibgp()).await;
}

/// RFC 7313, both ways: BIRD is told where our routes begin and end, and we hear it from BIRD.
#[tokio::test]
async fn enhanced_refresh() {
    let link = Link::new();
    let setup = ebgp().announcing(&interop::THEIRS);
    let bird = Bird::start(&link, &setup);
    let mut us = Us::start(&setup, &interop::OURS);
    us.until_routes(&interop::THEIRS).await;
    let negotiated = us.until_established().await.negotiated.expect("an established session");
    assert!(negotiated.enhanced_route_refresh);
    bird.until_learned(interop::OURS[0]).await;
    bird.ask_again();
    bird.until("BIRD sees both marks", |bird| {
        ["Got BEGIN-OF-RR", "Got END-OF-RR"].iter().all(|mark| bird.log().contains(mark))
    })
    .await;
    us.handle.reset(PEER.into(), Reset::SoftIn).await.expect("the speaker runs");
    bird.until("BIRD sends both marks", |bird| {
        ["Sending BEGIN-OF-RR", "Sending END-OF-RR"].iter().all(|mark| bird.log().contains(mark))
    })
    .await;
    us.until_routes(&interop::THEIRS).await;
    assert!(us.removed.is_empty(), "{:?}", us.removed);
    assert_eq!(us.until_established().await.established_count, 1);
}

/// RFC 7911, both ways: two paths of one BIRD go through us to another one, and one of them goes again.
#[tokio::test]
async fn several_paths() {
    const PREFIX: &str = "10.2.0.0/24";
    let link = Link::new();
    let mut first = Setup { add_path: true, ..ebgp() }.announcing(&[PREFIX, PREFIX]);
    first.routes[1].as_path = vec![65010];
    // Where nobody is: what has an address takes no route with it as next hop.
    first.next_hops = Transport::ALL.map(|family| family.address(9));
    let second = Setup { add_path: true, ..ibgp().at(3) };
    link.host(3);
    let mut bird = Bird::start(&link, &first);
    let other = Bird::start(&link, &second);
    let mut us = Us::with(us::config(&[&first, &second], &[]), SpeakerOptions::default());
    us.until_routes(&[PREFIX]).await;
    us.until_peer("both paths", |peer| peer.routes[&Family::Ipv4Unicast].received == 2).await;
    let candidates = us.candidates(PREFIX).await;
    let paths: Vec<&str> = candidates.iter().map(|c| c.as_path.as_str()).collect();
    assert_eq!(paths, ["65002", "65002 65010"]);
    assert!(candidates.iter().all(|candidate| candidate.path_id.is_some()));
    let negotiated = us.peer().await.negotiated.expect("an established session");
    assert_eq!(negotiated.receives_paths, [Family::Ipv4Unicast]);
    assert_eq!(negotiated.sends_paths, [Family::Ipv4Unicast]);
    let paths = |bird: &Bird| {
        let question = format!("show route {PREFIX} protocol cairn all");
        let answer = bird.ask(&question).unwrap_or_default();
        answer.matches("BGP.as_path:").count()
    };
    other.until("both paths arrive", |bird| paths(bird) == 2).await;
    bird.apply(|setup| drop(setup.routes.pop()));
    other.until("one path is left", |bird| paths(bird) == 1).await;
    us.until_peer("one path", |peer| peer.routes[&Family::Ipv4Unicast].received == 1).await;
    assert_eq!(us.peer().await.established_count, 1);
}
