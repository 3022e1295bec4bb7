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
    interop::exchange::<OpenBgpd>(Setup::new(Transport::V4, 65001, 65001)).await;
}

#[tokio::test]
async fn ibgp_over_ipv6() {
    interop::exchange::<OpenBgpd>(Setup::new(Transport::V6, 65001, 65001)).await;
}

#[tokio::test]
async fn our_restart() {
    interop::our_restart::<OpenBgpd>(ibgp()).await;
}

#[tokio::test]
async fn refresh_of_ours() {
    interop::refresh_of_ours::<OpenBgpd>(ebgp()).await;
}
