//! Our speaker and ExaBGP.

mod interop;

use cairn_tests::daemon::{Setup, Transport};
use cairn_tests::exabgp::ExaBgp;

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
    interop::exchange::<ExaBgp>(ebgp()).await;
}

#[tokio::test]
async fn ebgp_over_ipv6_with_4_octet_as() {
    interop::exchange::<ExaBgp>(Setup::new(Transport::V6, 4_200_000_002, 65001)).await;
}

#[tokio::test]
async fn ibgp_over_ipv4() {
    interop::exchange::<ExaBgp>(ibgp()).await;
}

#[tokio::test]
async fn ibgp_over_ipv6() {
    interop::exchange::<ExaBgp>(Setup::new(Transport::V6, 65001, 65001)).await;
}

#[tokio::test]
async fn killed_and_back() {
    interop::restart::killed_and_back::<ExaBgp>(ebgp()).await;
}

#[tokio::test]
async fn refresh_of_ours() {
    interop::restart::refresh_of_ours::<ExaBgp>(ebgp()).await;
}

#[tokio::test]
async fn password_over_ipv4() {
    interop::sessions::comes_up::<ExaBgp>(Setup { password: Some("secret".into()), ..ebgp() })
        .await;
}

#[tokio::test]
async fn password_over_ipv6() {
    interop::sessions::comes_up::<ExaBgp>(Setup { password: Some("secret".into()), ..over_ipv6() })
        .await;
}

#[tokio::test]
async fn password_differs() {
    interop::sessions::password_differs::<ExaBgp>(ebgp()).await;
}

#[tokio::test]
async fn password_missing() {
    interop::sessions::password_missing::<ExaBgp>(ebgp()).await;
}

#[tokio::test]
async fn password_changes_live() {
    interop::sessions::password_changes_live::<ExaBgp>(ebgp()).await;
}

#[tokio::test]
async fn ttl_security_over_ipv4() {
    interop::sessions::comes_up::<ExaBgp>(Setup { ttl_security: true, ..ebgp() }).await;
}

#[tokio::test]
async fn ttl_security_over_ipv6() {
    interop::sessions::comes_up::<ExaBgp>(Setup { ttl_security: true, ..over_ipv6() }).await;
}

#[tokio::test]
async fn collision() {
    interop::sessions::collision::<ExaBgp>(ebgp()).await;
}

#[tokio::test]
async fn our_prefix_limit() {
    interop::sessions::our_prefix_limit::<ExaBgp>(ebgp()).await;
}

#[tokio::test]
async fn passes_on() {
    interop::transit::passes_on::<ExaBgp>(ebgp()).await;
}

#[tokio::test]
async fn old_speaker() {
    interop::transit::passes_on::<ExaBgp>(Setup { four_octet_as: false, ..ebgp() }).await;
}

#[tokio::test]
async fn old_speaker_of_our_as() {
    interop::sessions::old_speaker_of_our_as::<ExaBgp>(ebgp()).await;
}

#[tokio::test]
async fn extended_messages() {
    interop::transit::long_route::<ExaBgp>(Setup { extended_messages: true, ..ebgp() }).await;
}

#[tokio::test]
async fn reflects() {
    interop::transit::reflects::<ExaBgp>(ibgp()).await;
}
