//! Our speaker and FRR.

mod interop;

use cairn_tests::daemon::{Setup, Transport};
use cairn_tests::frr::Frr;

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
