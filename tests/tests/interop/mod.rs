//! What is the same with every daemon.
#![allow(dead_code, reason = "each daemon's tests use what the daemon can do")]

use cairn_bgp::session::SessionState;
use cairn_bgp::speaker::{Shutdown, SpeakerOptions};
use cairn_tests::daemon::{Daemon, Setup, Transport};
use cairn_tests::link::Link;
use cairn_tests::us::{self, Us};

/// What we announce.
pub const OURS: [&str; 3] = ["10.1.0.0/26", "10.1.0.64/26", "fd00:1::/122"];
/// What the daemon announces.
pub const THEIRS: [&str; 3] = ["10.2.0.0/24", "10.2.1.0/24", "fd00:2::/64"];

/// Routes of both families both ways with their attributes, withdrawals both ways on the same
/// session, and a shutdown that says why.
pub async fn exchange<D: Daemon>(setup: Setup) {
    let link = Link::new();
    let same_as = setup.asn == setup.our_asn;
    let sent = |prefix: &&str| {
        same_as || D::SENDS_OTHER_FAMILY_ON_EBGP || Transport::of(prefix) == setup.transport
    };
    let theirs: Vec<&str> = THEIRS.into_iter().filter(sent).collect();
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

/// Our role as helper (RFC 4724 section 4.2): a daemon that is killed keeps its routes here until it
/// is back, and then loses the one that it no longer has.
pub async fn killed_and_back<D: Daemon>(setup: Setup) {
    let link = Link::new();
    let setup = Setup { graceful_restart: true, ..setup.announcing(&THEIRS) };
    let mut daemon = D::start(&link, &setup);
    let mut us = Us::start(&setup, &OURS);
    us.until_routes(&THEIRS).await;
    daemon.kill();
    us.until_peer("the session is over", |peer| peer.state != SessionState::Established).await;
    for prefix in THEIRS {
        assert!(us.candidates(prefix).await.iter().all(|c| c.stale), "{prefix} is stale");
    }
    daemon.parts().setup.routes.remove(0);
    daemon.start_again();
    us.until_routes(&THEIRS[1..]).await;
    assert_eq!(us.removed, [THEIRS[0]], "{}\n{}", daemon.state(), daemon.log());
    for prefix in OURS {
        daemon.until_learned(prefix).await;
    }
}

/// The daemon's role as helper: it keeps our routes while we restart, and loses only the one that we
/// no longer have, at our End-of-RIB.
pub async fn our_restart<D: Daemon>(setup: Setup) {
    let link = Link::new();
    let setup = Setup { graceful_restart: true, ..setup.announcing(&THEIRS) };
    let daemon = D::start(&link, &setup);
    let mut us = Us::start(&setup, &OURS);
    us.until_routes(&THEIRS).await;
    for prefix in OURS {
        daemon.until_learned(prefix).await;
    }
    us.handle.shutdown(Shutdown::KeepRoutes).await;
    drop(us);
    let all_there = |daemon: &D, prefixes: &[&str]| {
        for prefix in prefixes {
            assert!(daemon.learned(prefix).is_some(), "{prefix} is lost\n{}", daemon.state());
        }
    };
    daemon.until("the session is over", |daemon| !daemon.is_established()).await;
    all_there(&daemon, &OURS);
    let options = SpeakerOptions {
        forwarding_preserved: true,
        restarting: true,
        ..SpeakerOptions::default()
    };
    let mut us = Us::with(us::config(&[&setup], &OURS[1..]), options);
    us.until_routes(&THEIRS).await;
    daemon
        .until("the route that is gone is dropped", |daemon| {
            all_there(daemon, &OURS[1..]);
            daemon.learned(OURS[0]).is_none()
        })
        .await;
    all_there(&daemon, &OURS[1..]);
}

/// The daemon asks for all our routes again, and gets them on the same session.
pub async fn refresh_of_ours<D: Daemon>(setup: Setup) {
    let link = Link::new();
    let daemon = D::start(&link, &setup);
    let us = Us::start(&setup, &OURS);
    for prefix in OURS {
        daemon.until_learned(prefix).await;
    }
    let before = daemon.updates_received();
    assert!(before > 0);
    daemon.ask_again();
    // Whether it counts routes or messages: these are two families at least.
    daemon.until("they come again", |daemon| daemon.updates_received() >= before + 2).await;
    assert_eq!(us.until_established().await.established_count, 1);
}
