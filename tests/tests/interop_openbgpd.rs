//! Our speaker and OpenBGPD.

mod interop;

use cairn_tests::daemon::{Setup, Transport};
use cairn_tests::openbgpd::OpenBgpd;

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
    interop::exchange::<OpenBgpd>(ebgp()).await;
}

#[tokio::test]
async fn ebgp_over_ipv6_with_4_octet_as() {
    interop::exchange::<OpenBgpd>(Setup::new(Transport::V6, 4_200_000_002, 65001)).await;
}

#[tokio::test]
async fn ibgp_over_ipv4() {
    interop::exchange::<OpenBgpd>(ibgp()).await;
}

#[tokio::test]
async fn ibgp_over_ipv6() {
    interop::exchange::<OpenBgpd>(Setup::new(Transport::V6, 65001, 65001)).await;
}

#[tokio::test]
async fn our_restart() {
    interop::restart::our_restart::<OpenBgpd>(ibgp()).await;
}

#[tokio::test]
async fn refresh_of_ours() {
    interop::restart::refresh_of_ours::<OpenBgpd>(ebgp()).await;
}

#[tokio::test]
async fn password_over_ipv4() {
    interop::sessions::comes_up::<OpenBgpd>(Setup { password: Some("secret".into()), ..ebgp() })
        .await;
}

#[tokio::test]
async fn password_over_ipv6() {
    interop::sessions::comes_up::<OpenBgpd>(Setup {
        password: Some("secret".into()),
        ..over_ipv6()
    })
    .await;
}

#[tokio::test]
async fn password_differs() {
    interop::sessions::password_differs::<OpenBgpd>(ebgp()).await;
}

#[tokio::test]
async fn password_changes() {
    interop::sessions::password_changes::<OpenBgpd>(ebgp()).await;
}

#[tokio::test]
async fn password_changes_live() {
    interop::sessions::password_changes_live::<OpenBgpd>(ibgp()).await;
}

#[tokio::test]
async fn ttl_security_over_ipv4() {
    interop::sessions::comes_up::<OpenBgpd>(Setup { ttl_security: true, ..ebgp() }).await;
}

#[tokio::test]
async fn ttl_security_over_ipv6() {
    interop::sessions::comes_up::<OpenBgpd>(Setup { ttl_security: true, ..over_ipv6() }).await;
}

#[tokio::test]
async fn shutdown_text() {
    interop::sessions::shutdown_text::<OpenBgpd>(ebgp()).await;
}

#[tokio::test]
async fn our_prefix_limit() {
    interop::sessions::our_prefix_limit::<OpenBgpd>(ebgp()).await;
}

#[tokio::test]
async fn their_prefix_limit() {
    interop::sessions::their_prefix_limit::<OpenBgpd>(ebgp()).await;
}

#[tokio::test]
async fn passes_on() {
    interop::transit::passes_on::<OpenBgpd>(ebgp()).await;
}

#[tokio::test]
async fn old_speaker() {
    interop::transit::passes_on::<OpenBgpd>(Setup { four_octet_as: false, ..ebgp() }).await;
}

#[tokio::test]
async fn old_speaker_of_our_as() {
    interop::sessions::old_speaker_of_our_as::<OpenBgpd>(ebgp()).await;
}

#[tokio::test]
async fn reflects() {
    interop::transit::reflects::<OpenBgpd>(ibgp()).await;
}
