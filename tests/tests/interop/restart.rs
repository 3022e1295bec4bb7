//! Restarts of either side, and routes again without one.

use cairn_bgp::session::SessionState;
use cairn_bgp::speaker::{Reset, Shutdown, SpeakerOptions};
use cairn_tests::daemon::{Daemon, Setup};
use cairn_tests::link::Link;
use cairn_tests::us::{self, PEER, Us};

use super::{OURS, THEIRS};

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
    let peer = us.until_established().await;
    assert_eq!(peer.established_count, 1, "{peer:#?}\n{}", daemon.log());
}

/// We ask for all routes of the daemon again, and get them on the same session.
pub async fn refresh_of_theirs<D: Daemon>(setup: Setup) {
    let link = Link::new();
    let setup = setup.announcing(&THEIRS);
    let daemon = D::start(&link, &setup);
    let mut us = Us::start(&setup, &OURS);
    us.until_routes(&THEIRS).await;
    let negotiated = us.until_established().await.negotiated.expect("an established session");
    assert_eq!(negotiated.enhanced_route_refresh, D::ENHANCED_REFRESH);
    daemon.until("it has told us everything", D::has_told_all).await;
    let before = daemon.updates_sent();
    us.handle.reset(PEER.into(), Reset::SoftIn).await.expect("the speaker runs");
    daemon.until("they go again", |daemon| daemon.updates_sent() >= before + 2).await;
    us.until_routes(&THEIRS).await;
    assert!(us.removed.is_empty(), "{:?}", us.removed);
    let peer = us.until_established().await;
    assert_eq!(peer.established_count, 1, "{peer:#?}\n{}", daemon.log());
}
