//! Our speaker and BIRD 2.

mod interop;

use cairn_tests::bird::Bird;
use cairn_tests::daemon::{Setup, Transport};

fn ebgp() -> Setup {
    Setup::new(Transport::V4, 65002, 65001)
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
    interop::exchange::<Bird>(Setup::new(Transport::V4, 65001, 65001)).await;
}

#[tokio::test]
async fn ibgp_over_ipv6() {
    interop::exchange::<Bird>(Setup::new(Transport::V6, 65001, 65001)).await;
}

#[tokio::test]
async fn killed_and_back() {
    interop::killed_and_back::<Bird>(ebgp()).await;
}

#[tokio::test]
async fn our_restart() {
    interop::our_restart::<Bird>(ebgp()).await;
}

#[tokio::test]
async fn refresh_of_ours() {
    interop::refresh_of_ours::<Bird>(ebgp()).await;
}
