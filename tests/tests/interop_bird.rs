//! Our speaker and BIRD 2.

mod interop;

use cairn_bgp::speaker::Reset;
use cairn_tests::bird::Bird;
use cairn_tests::daemon::{Daemon, Setup, Transport};
use cairn_tests::link::Link;
use cairn_tests::us::{PEER, Us};

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
