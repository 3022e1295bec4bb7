//! What is the same with every daemon.
#![allow(dead_code, reason = "each daemon's tests use what the daemon can do")]

pub mod restart;
pub mod sessions;
pub mod transit;

use std::time::Instant;

use cairn_bgp::speaker::{Shutdown, SpeakerHandle};
use cairn_tests::daemon::{Daemon, Setup, Transport};
use cairn_tests::link::{Link, PATIENCE, POLL_PAUSE};
use cairn_tests::us::{PEER, Us};

/// What we announce.
pub const OURS: [&str; 3] = ["10.1.0.0/26", "10.1.0.64/26", "fd00:1::/122"];
/// What the daemon announces.
pub const THEIRS: [&str; 3] = ["10.2.0.0/24", "10.2.1.0/24", "fd00:2::/64"];

/// Those of [`THEIRS`] that the daemon can announce.
fn sent<D: Daemon>(setup: &Setup) -> Vec<&'static str> {
    let all = setup.asn == setup.our_asn || D::SENDS_OTHER_FAMILY_ON_EBGP;
    let sent = |prefix: &&str| all || Transport::of(prefix) == setup.transport;
    THEIRS.into_iter().filter(sent).collect()
}

/// Waits until a text stands in the peer's last error or in why its session ended.
async fn until_error(handle: &SpeakerHandle, what: &str, text: &str) {
    let started = Instant::now();
    loop {
        let snapshot = handle.snapshot().await.expect("the speaker runs");
        let peer = &snapshot.peers[PEER];
        let error = peer.last_error.as_ref().map(|error| &error.text);
        let down = peer.last_down.as_ref().map(|down| &down.reason);
        if error.into_iter().chain(down).any(|found| found.contains(text)) {
            return;
        }
        assert!(started.elapsed() < PATIENCE, "never: {what}: {text:?} in {peer:#?}");
        tokio::time::sleep(POLL_PAUSE).await;
    }
}

/// Routes of both families both ways with their attributes, withdrawals both ways on the same
/// session, and a shutdown that says why.
pub async fn exchange<D: Daemon>(setup: Setup) {
    let link = Link::new();
    let same_as = setup.asn == setup.our_asn;
    let theirs = sent::<D>(&setup);
    let mut setup = setup.announcing(&theirs);
    for route in &mut setup.routes {
        route.communities.push("65002:3".into());
        route.large_communities.push("4200000001:4294967295:2".into());
    }
    let mut daemon = D::start(&link, &setup);
    let mut us = Us::start(&setup, &OURS);
    us.until_routes(&theirs).await;
    for prefix in theirs.iter().copied() {
        let learned = us.learned(prefix).await.unwrap_or_default();
        assert_eq!(learned.next_hop, setup.next_hop(prefix), "{prefix}: {learned:?}");
        let as_path = if same_as { String::new() } else { setup.asn.to_string() };
        assert_eq!(learned.as_path, as_path, "{prefix}");
        assert_eq!(learned.communities, ["65002:3"], "{prefix}");
        assert_eq!(learned.large_communities, ["4200000001:4294967295:2"], "{prefix}");
    }
    for prefix in OURS {
        let learned = daemon.until_learned(prefix).await;
        let next_hop = match setup.extended_next_hop {
            true => Transport::V6.address(1),
            false => Transport::of(prefix).address(1),
        };
        assert_eq!(learned.next_hop, next_hop, "{prefix}: {learned:?}");
        let as_path = if same_as { String::new() } else { setup.our_asn.to_string() };
        assert_eq!(learned.as_path, as_path, "{prefix}: {learned:?}");
        assert_eq!(learned.communities, ["65001:7"], "{prefix}: {learned:?}");
        if same_as {
            assert_eq!(learned.local_pref, Some(100), "{prefix}: {learned:?}");
        }
    }
    us.apply(|config| {
        config.originate.remove(&OURS[0].parse().expect("a prefix"));
        config.originate.remove(&OURS[2].parse().expect("a prefix"));
    });
    daemon
        .until("our withdrawals arrive", |daemon| {
            daemon.learned(OURS[0]).is_none() && daemon.learned(OURS[2]).is_none()
        })
        .await;
    assert!(daemon.learned(OURS[1]).is_some());
    daemon.apply(|setup| drop(setup.routes.pop()));
    us.until_routes(&theirs[..theirs.len() - 1]).await;
    assert_eq!(us.peer().await.established_count, 1);
    us.handle.shutdown(Shutdown::Cease { text: "test over".into() }).await;
    daemon.until("the session is over", |daemon| !daemon.is_established()).await;
    if D::READS_SHUTDOWN_TEXT {
        daemon.until("it reads the reason", |daemon| daemon.log().contains("test over")).await;
    }
}
