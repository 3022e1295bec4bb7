//! What an operator does with single peers of a running speaker.

mod speaker_net;

use std::time::Instant;

use cairn_bgp::prefix::Family;
use cairn_bgp::rib::RouteFilter;
use cairn_bgp::session::{ErrorKind, SessionState};
use cairn_bgp::speaker::{DeadPath, Error, NoSuchPeer, Reset, Shutdown, SpeakerHandle};
use cairn_bgp::status::PeerSnapshot;
use cairn_bgp::wire::{MessageType, keepalive};
use speaker_net::{FakePeer, Fib, Net, Node, fake_open, originate, until, until_listens};

async fn peer(node: &Node, name: &str) -> PeerSnapshot {
    node.handle.snapshot().await.expect("the speaker runs").peers[name].clone()
}

async fn until_established(node: &Node, name: &str, count: u64) {
    until("the session is established", || async {
        let peer = peer(node, name).await;
        peer.state == SessionState::Established && peer.established_count == count
    })
    .await;
}

#[tokio::test]
async fn a_disabled_peer_has_no_session_whatever_the_configuration_says() {
    let net = Net::new();
    let (mut a, mut b) = net.pair(65001, 65001);
    a.config.peers.values_mut().for_each(|peer| peer.passive = false);
    b.config.peers.values_mut().for_each(|peer| peer.passive = false);
    let (a, b) = (Node::start(a), Node::start(b));
    until_established(&a, "b", 1).await;
    a.handle.set_enabled("b".into(), false).await.expect("b is a peer");
    let disabled = peer(&a, "b").await;
    assert_eq!((disabled.state, disabled.disabled), (SessionState::Idle, true));
    let error = disabled.last_error.expect("an error");
    assert_eq!(error.kind, ErrorKind::Disabled);
    // RFC 4486 and RFC 9003: the other side hears of it, and is refused when it tries again.
    until("b was told, and was refused", || async {
        let records = b.handle.errors("a".into()).await.expect("a is a peer");
        let has = |text: &str| records.iter().any(|record| record.text.contains(text));
        has("administrative shutdown: \"disabled by an operator\"") && has("rejects our connection")
    })
    .await;
    let mut config = a.config.clone();
    config.peers.values_mut().for_each(|peer| peer.hold_time_secs = 30);
    a.handle.apply(config).expect("a valid configuration");
    let after = peer(&a, "b").await;
    assert_eq!((after.state, after.disabled), (SessionState::Idle, true), "a reset starts nothing");
    a.handle.set_enabled("b".into(), true).await.expect("b is a peer");
    until_established(&a, "b", 2).await;
    assert!(!peer(&a, "b").await.disabled);
}

#[tokio::test]
async fn a_peer_disabled_before_the_start_waits_to_be_enabled() {
    let net = Net::new();
    let (mut a, b) = net.pair(65001, 65001);
    a.options.disabled.insert("b".into());
    a.options.restarting = true;
    let (a, _b) = (Node::start(a), Node::start(b));
    let disabled = peer(&a, "b").await;
    assert_eq!((disabled.state, disabled.disabled), (SessionState::Idle, true));
    // Nor does a restart wait for what it never sends (RFC 4724 section 4.1).
    until("a waits for nobody", || async {
        a.handle.snapshot().await.expect("the speaker runs").in_sync
    })
    .await;
    a.handle.set_enabled("b".into(), true).await.expect("b is a peer");
    until_established(&a, "b", 1).await;
}

/// Octets that nobody reads would make the kernel reset the connection, and the peer may never see why
/// it is rejected.
#[tokio::test]
async fn what_a_rejected_peer_sends_is_read_until_it_closes() {
    let net = Net::new();
    let (mut a, b) = net.pair(65001, 65002);
    a.options.disabled.insert("b".into());
    let (from, to) = (b.config.router_id, a.config.listen[0]);
    let _a = Node::start(a);
    until_listens(to).await;
    for _ in 0..6 {
        let mut peer = FakePeer::connect(from, to).await;
        peer.send(&fake_open(65002, from).encode()).await;
        peer.until_message(MessageType::Notification).await;
        assert!(peer.message().await.is_none(), "it is closed");
        for _ in 0..20 {
            assert!(peer.try_send(&keepalive()).await, "the connection was reset");
            tokio::task::yield_now().await;
        }
    }
}

#[tokio::test]
async fn resets_end_the_session_or_do_not() {
    let net = Net::new();
    let (mut a, b) = net.pair(65001, 65001);
    originate(&mut a.config, &["10.1.0.0/26"]);
    let (a, b) = (Node::start(a), Node::start(b));
    let mut fib = Fib::new(b.feed);
    fib.until_has(&["10.1.0.0/26"]).await;
    for reset in [Reset::SoftIn, Reset::SoftOut] {
        b.handle.reset("a".into(), reset.clone()).await.expect("a is a peer");
        a.handle.reset("b".into(), reset).await.expect("b is a peer");
    }
    // What follows the soft resets has passed them in the stream.
    let mut config = a.config.clone();
    originate(&mut config, &["10.1.0.64/26"]);
    a.handle.apply(config).expect("a valid configuration");
    fib.until_exactly(&["10.1.0.0/26", "10.1.0.64/26"]).await;
    assert_eq!(peer(&a, "b").await.established_count, 1);
    let reset = Reset::Hard { text: "new cables".into() };
    b.handle.reset("a".into(), reset).await.expect("a is a peer");
    until_established(&a, "b", 2).await;
    let records = a.handle.errors("b".into()).await.expect("b is a peer");
    let told = records.iter().find(|record| record.kind == ErrorKind::NotificationReceived);
    let text = &told.expect("the reset's NOTIFICATION").text;
    assert!(text.contains("administrative reset: \"new cables\""), "{text}");
    assert_eq!(peer(&a, "b").await.routes[&Family::Ipv4Unicast].advertised, 2);
}

#[tokio::test]
async fn an_unknown_peer_is_an_error() {
    let net = Net::new();
    let (a, _) = net.pair(65001, 65001);
    let a = Node::start(a);
    let unknown = a.handle.set_enabled("c".into(), false).await;
    assert_eq!(unknown, Err(Error::NoSuchPeer(NoSuchPeer("c".into()))));
    assert!(a.handle.errors("c".into()).await.is_err());
    assert!(a.handle.reset("c".into(), Reset::SoftIn).await.is_err());
}

/// What BFD has lost ends a session that it has seen, and no later one.
#[tokio::test]
async fn a_dead_path_ends_a_session_that_was_there_while_it_was_alive() {
    let net = Net::new();
    let (a, b) = net.pair(65001, 65001);
    let before = Instant::now();
    let (_a, b) = (Node::start(a), Node::start(b));
    until_established(&b, "a", 1).await;
    // Of a former life of the peer: BFD noticed its end only now.
    path_dead(&b.handle, before, true).await;
    assert_eq!(peer(&b, "a").await.state, SessionState::Established);
    let alive_at = Instant::now();
    path_dead(&b.handle, alive_at, false).await;
    let error = peer(&b, "a").await.last_error.expect("an error");
    assert_eq!(error.kind, ErrorKind::PathDead);
    until_established(&b, "a", 2).await;
    path_dead(&b.handle, alive_at, true).await;
    let after = peer(&b, "a").await;
    assert_eq!(
        (after.state, after.established_count),
        (SessionState::Established, 2),
        "told twice"
    );
}

/// RFC 5882 section 4.3: BFD that shares fate with the peer's BGP fails when that restarts, which says nothing.
#[tokio::test]
async fn routes_of_a_peer_that_restarts_go_when_bfd_that_is_independent_of_it_fails() {
    let net = Net::new();
    let (mut a, b) = net.pair(65001, 65001);
    originate(&mut a.config, &["10.1.0.0/26"]);
    let before = Instant::now();
    let a = Node::start(a);
    let b = Node::start(b);
    let mut fib = Fib::new(b.feed);
    let b = b.handle;
    fib.until_has(&["10.1.0.0/26"]).await;
    a.handle.shutdown(Shutdown::KeepRoutes).await;
    until("b has noticed", || async {
        b.snapshot().await.expect("b runs").peers["a"].state != SessionState::Established
    })
    .await;
    for (alive_at, independent) in [(before, true), (Instant::now(), false)] {
        path_dead(&b, alive_at, independent).await;
        let routes = b.routes(RouteFilter::default()).await.expect("b runs");
        assert!(routes.len() == 1 && routes[0].candidates[0].stale, "{independent}: {routes:?}");
    }
    path_dead(&b, Instant::now(), true).await;
    fib.until_exactly(&[]).await;
    let error =
        b.snapshot().await.expect("b runs").peers["a"].last_error.clone().expect("an error");
    assert_eq!(error.kind, ErrorKind::PathDead, "{error:?}");
}

async fn path_dead(handle: &SpeakerHandle, alive_at: Instant, peer_independent: bool) {
    let path = DeadPath { alive_at, peer_independent, text: "silence".into() };
    handle.path_dead("a".into(), path).await.expect("a is a peer");
}
