//! What has to do with the session and its connection, and not with routes.

use cairn_bgp::config::{PrefixLimit, PrefixLimitAction};
use cairn_bgp::session::SessionState;
use cairn_bgp::speaker::{Reset, SpeakerOptions};
use cairn_tests::daemon::{Daemon, Setup};
use cairn_tests::link::Link;
use cairn_tests::sockets;
use cairn_tests::us::{self, PEER, Us, password};

use super::{OURS, THEIRS};

/// The session comes up as both sides are told, with routes both ways.
pub async fn comes_up<D: Daemon>(setup: Setup) {
    let link = Link::new();
    let theirs = super::sent::<D>(&setup);
    let setup = setup.announcing(&theirs);
    let daemon = D::start(&link, &setup);
    let mut us = Us::start(&setup, &OURS);
    us.until_routes(&theirs).await;
    for prefix in OURS {
        daemon.until_learned(prefix).await;
    }
}

/// A password that is wrong here: it is named, and the right one needs nothing else.
pub async fn password_differs<D: Daemon>(setup: Setup) {
    until_password_is_right::<D>(setup, Some("ours")).await;
}

/// The same without a password here.
pub async fn password_missing<D: Daemon>(setup: Setup) {
    until_password_is_right::<D>(setup, None).await;
}

async fn until_password_is_right<D: Daemon>(setup: Setup, ours: Option<&str>) {
    let link = Link::new();
    let setup = Setup { password: Some("theirs".into()), ..setup };
    let daemon = D::start(&link, &setup);
    let ours = ours.map(str::to_owned);
    let mut us = Us::start(&Setup { password: ours, ..setup }, &OURS);
    super::until_error(&us.handle, "what is wrong is named", PASSWORD_ERROR).await;
    assert_eq!(us.peer().await.established_count, 0);
    us.apply_to_peer(|peer| peer.password = Some(password("theirs")));
    for prefix in OURS {
        daemon.until_learned(prefix).await;
    }
}

/// Both sides get another password; the daemon ends its session for it, ours does not.
pub async fn password_changes<D: Daemon>(setup: Setup) {
    let link = Link::new();
    let setup = Setup { password: Some("first".into()), ..setup };
    let mut daemon = D::start(&link, &setup);
    let mut us = Us::start(&setup, &OURS);
    us.until_established().await;
    us.apply_to_peer(|peer| peer.password = Some(password("second")));
    daemon.apply(|setup| setup.password = Some("second".into()));
    us.until_peer("established again", |peer| {
        peer.state == SessionState::Established && peer.established_count == 2
    })
    .await;
    for prefix in OURS {
        daemon.until_learned(prefix).await;
    }
}

/// Both sides set another key on the connection that there is: it stays, and routes flow over it.
pub async fn password_changes_live<D: Daemon>(setup: Setup) {
    let link = Link::new();
    let setup = Setup { password: Some("first".into()), ..setup }.announcing(&THEIRS);
    let mut daemon = D::start(&link, &setup);
    let mut us = Us::start(&setup, &OURS[1..]);
    us.until_routes(&THEIRS).await;
    daemon.until_learned(OURS[1]).await;
    let before = sockets::sessions();
    assert_eq!(before.len(), 1, "{before:?}");
    let process = daemon.seen().processes.last().expect("the daemon runs");
    process.set_md5_key(setup.remote.parse().expect("an IPv4 address"), "second");
    us.apply(|config| {
        config.peers.get_mut(PEER).expect("the peer").password = Some(password("second"));
        let origination = config.originate.values().next().expect("a route").clone();
        config.originate.insert(OURS[0].parse().expect("a prefix"), origination);
    });
    daemon.until_learned(OURS[0]).await;
    daemon.apply(|setup| drop(setup.routes.remove(0)));
    us.until_routes(&THEIRS[1..]).await;
    assert_eq!(us.peer().await.established_count, 1);
    let ports = |c: &sockets::Connection| (c.local_port, c.remote_port);
    let after = sockets::sessions();
    assert_eq!(
        after.iter().map(ports).collect::<Vec<_>>(),
        before.iter().map(ports).collect::<Vec<_>>()
    );
}

/// The daemon's operator says why the session ends, and it stands in our status.
pub async fn shutdown_text<D: Daemon>(setup: Setup) {
    let link = Link::new();
    let daemon = D::start(&link, &setup);
    let us = Us::start(&setup, &OURS);
    us.until_established().await;
    daemon.shut_down(SHUTDOWN_TEXT);
    super::until_error(&us.handle, "the daemon's words", SHUTDOWN_TEXT).await;
}

/// Both sides connect at the same moment: each finds a connection that the other one opened beside
/// its own. One of both stays, and the session comes up over it and stays up. Again and again.
pub async fn collision<D: Daemon>(setup: Setup) {
    let link = Link::new();
    let theirs = super::sent::<D>(&setup);
    let setup = Setup { connect_retry_secs: 30, ..setup.announcing(&theirs) };
    let daemon = D::start(&link, &setup);
    let far = daemon.seen().far.clone();
    let mut us = Us::start(&setup, &OURS);
    us.until_routes(&theirs).await;
    for round in 1..=COLLISIONS {
        // The session ends and begins anew on both sides, and no connection comes up.
        link.silence(true);
        us.handle.reset(PEER.into(), Reset::Hard { text: "again".into() }).await.expect("running");
        let tried = || sockets::connections(&far.tcp());
        daemon
            .until("the daemon tries to connect, and has tried again", |_| {
                tried().iter().any(|c| c.state == sockets::SYN_SENT && c.retransmits == 1)
            })
            .await;
        // The kernels go on: ours connects at its next attempt, at most a second later, and the
        // daemon's at its next one, two seconds later.
        daemon.seen().signal(libc::SIGSTOP);
        link.silence(false);
        cairn_tests::link::until(
            "two connections",
            || sockets::sessions().len() == 2,
            || format!("round {round}: {:?}", sockets::sessions()),
        )
        .await;
        daemon.seen().signal(libc::SIGCONT);
        us.until_routes(&theirs).await;
        us.until_established().await;
        cairn_tests::link::until(
            "one connection",
            || sockets::sessions().len() == 1,
            || format!("round {round}: {:?}", sockets::sessions()),
        )
        .await;
        for prefix in OURS {
            daemon.until_learned(prefix).await;
        }
    }
}

/// The daemon sends more than prefixesMax; the session ends with the code for it, and comes back
/// after a reset when the limit is right.
pub async fn our_prefix_limit<D: Daemon>(setup: Setup) {
    let link = Link::new();
    let setup = setup.announcing(&LIMITED);
    let daemon = D::start(&link, &setup);
    let limit = |prefixes_max| {
        let action = PrefixLimitAction::Stop { restart_after_secs: None };
        Some(PrefixLimit { prefixes_max, action })
    };
    let mut config = us::config(&[&setup], &[]);
    config.peers.get_mut(PEER).expect("the peer").prefix_limit = limit(1);
    let mut us = Us::with(config, SpeakerOptions::default());
    super::until_error(&us.handle, "the limit", "more than the 1 prefixes").await;
    daemon.until("the session is over", |daemon| !daemon.is_established()).await;
    us.until_routes(&[]).await;
    us.apply_to_peer(|peer| peer.prefix_limit = limit(2));
    us.handle.reset(PEER.into(), Reset::Hard { text: String::new() }).await.expect("running");
    us.until_routes(&LIMITED).await;
}

/// We send more than the daemon takes, and show what it says about it.
pub async fn their_prefix_limit<D: Daemon>(setup: Setup) {
    let link = Link::new();
    let _daemon = D::start(&link, &Setup { prefixes_max: Some(1), ..setup.clone() });
    let us = Us::start(&setup, &FAR_TOO_MANY);
    super::until_error(&us.handle, "the daemon's limit", "maximum number of prefixes").await;
}

/// FRR looks at its limit before it counts a prefix.
const FAR_TOO_MANY: [&str; 3] = ["10.1.0.0/26", "10.1.0.64/26", "10.1.0.128/26"];
/// Our AS number has four octets and the daemon is an OLD speaker (RFC 6793): in our OPEN and our
/// AS_PATH stands AS_TRANS, and the number itself in a capability and in AS4_PATH, for who reads
/// these all the same.
pub async fn old_speaker_of_our_as<D: Daemon>(setup: Setup) {
    let link = Link::new();
    let our_asn = if D::READS_FOUR_OCTETS { OUR_ASN } else { AS_TRANS };
    let setup = Setup { four_octet_as: false, our_asn, ..setup };
    let setup = setup.announcing(&LIMITED);
    let daemon = D::start(&link, &setup);
    let mut config = us::config(&[&setup], &OURS);
    config.asn = OUR_ASN;
    let mut us = Us::with(config, SpeakerOptions::default());
    us.until_routes(&LIMITED).await;
    let negotiated = us.until_established().await.negotiated.expect("an established session");
    assert!(!negotiated.four_octet_as);
    let learned = daemon.until_learned(OURS[0]).await;
    let seen = if D::MERGES_AS4_PATH { OUR_ASN } else { AS_TRANS };
    assert_eq!(learned.as_path, seen.to_string(), "{learned:?}");
}

/// What stands for an AS number of four octets where there is only room for two.
pub const AS_TRANS: u32 = 23456;
const OUR_ASN: u32 = 4_200_000_001;
/// Of one family, as a limit counts.
const LIMITED: [&str; 2] = ["10.2.0.0/24", "10.2.1.0/24"];
const PASSWORD_ERROR: &str = "password differs or missing";
const SHUTDOWN_TEXT: &str = "maintenance-until-noon";
const COLLISIONS: u32 = 2;
