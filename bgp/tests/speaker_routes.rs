//! Speakers on real sockets: sessions, routes both ways, reconfiguration, restarts, bad peers.

mod speaker_net;

use std::time::Duration;

use cairn_bgp::config::{PrefixLimit, PrefixLimitAction};
use cairn_bgp::rib::{PrefixFilter, RouteFilter};
use cairn_bgp::session::SessionState;
use cairn_bgp::speaker::{Shutdown, SpeakerOptions};
use speaker_net::{Fib, Net, Node, Setup, connect, originate, settled, until};

fn established(
    node: &Node,
    peer: &str,
) -> impl Fn() -> std::pin::Pin<Box<dyn Future<Output = bool>>> {
    let (handle, peer) = (node.handle.clone(), peer.to_owned());
    move || {
        let (handle, peer) = (handle.clone(), peer.clone());
        Box::pin(async move {
            let snapshot = handle.snapshot().await.expect("speaker runs");
            snapshot.peers[&peer].state == SessionState::Established
        })
    }
}

#[tokio::test]
async fn routes_of_both_families_are_announced_and_withdrawn() {
    let net = Net::new();
    let (mut a, mut b) = net.pair(65001, 65001);
    originate(&mut a.config, &["10.1.0.0/26", "10.1.0.64/26", "fd00:1::/122"]);
    originate(&mut b.config, &["10.2.0.0/26"]);
    let (a, b) = (Node::start(a), Node::start(b));
    until("a is established", established(&a, "b")).await;
    let mut fib = Fib::new(b.feed);
    fib.until_has(&["10.1.0.0/26", "10.1.0.64/26", "fd00:1::/122"]).await;
    let mut fib_a = Fib::new(a.feed);
    fib_a.until_has(&["10.2.0.0/26"]).await;
    assert_eq!(fib.next_hop("10.1.0.0/26"), a.config.listen[0].ip().to_string());

    let mut config = a.config.clone();
    config.originate.clear();
    originate(&mut config, &["10.1.0.64/26"]);
    a.handle.apply(config).expect("a valid configuration");
    fib.until_exactly(&["10.1.0.64/26"]).await;
    assert!(fib.in_sync, "all peers have sent End-of-RIB");

    let routes = b.handle.routes(RouteFilter::default()).await.expect("b runs");
    let learned: Vec<_> = routes.iter().filter(|r| r.candidates[0].peer.is_some()).collect();
    assert_eq!(learned.len(), 1);
    assert!(learned[0].candidates[0].best);
    let snapshot = b.handle.snapshot().await.expect("b runs");
    let counts = snapshot.peers["a"].routes[&cairn_bgp::prefix::Family::Ipv4Unicast];
    assert_eq!((counts.received, counts.accepted, counts.advertised), (1, 1, 1));
}

#[tokio::test]
async fn a_peer_with_another_as_is_refused_with_a_sentence() {
    let net = Net::new();
    let (mut a, b) = net.pair(65001, 65002);
    a.config.peers.values_mut().for_each(|peer| peer.asn = 65003);
    let (a, _b) = (Node::start(a), Node::start(b));
    let handle = a.handle.clone();
    until("the error is reported", || {
        let handle = handle.clone();
        async move {
            let snapshot = handle.snapshot().await.expect("a runs");
            let error = snapshot.peers["b"].last_error.as_ref().map(|e| e.text.clone());
            error.is_some_and(|e| e.starts_with("peer says AS 65002, configured is 65003: correct"))
        }
    })
    .await;
}

#[tokio::test]
async fn without_policies_nothing_passes_between_ases() {
    let net = Net::new();
    let (mut a, b) = net.pair(65001, 65002);
    originate(&mut a.config, &["10.1.0.0/26"]);
    let (a, b) = (Node::start(a), Node::start(b));
    until("b is established", established(&b, "a")).await;
    let mut fib = Fib::new(b.feed);
    fib.until_in_sync().await;
    assert!(fib.routes.is_empty());

    // The export side opens: b keeps the route and says why it is not used.
    let mut config = a.config.clone();
    config.peers.values_mut().for_each(|peer| peer.export = vec![speaker_net::accept_all()]);
    a.handle.apply(config).expect("a valid configuration");
    let handle = b.handle.clone();
    until("b has the route", || {
        let handle = handle.clone();
        async move {
            let prefix = PrefixFilter::Exact("10.1.0.0/26".parse().expect("a prefix"));
            let filter = RouteFilter { prefix, ..RouteFilter::default() };
            let routes = handle.routes(filter).await.expect("b runs");
            routes.first().is_some_and(|r| r.candidates[0].verdict.contains("RFC 8212"))
        }
    })
    .await;

    let mut config = b.config.clone();
    config.peers.values_mut().for_each(|peer| peer.import = vec![speaker_net::accept_all()]);
    b.handle.apply(config).expect("a valid configuration");
    fib.until_exactly(&["10.1.0.0/26"]).await;
    let snapshot = b.handle.snapshot().await.expect("b runs");
    assert_eq!(snapshot.peers["a"].established_count, 1, "policies need no reset");
    let routes = b.handle.routes(RouteFilter::default()).await.expect("b runs");
    assert_eq!(routes[0].candidates[0].as_path, "65001");
}

#[tokio::test]
async fn a_restart_with_graceful_restart_keeps_routes_and_sweeps_what_is_gone() {
    let net = Net::new();
    let (mut a, b) = net.pair(65001, 65001);
    originate(&mut a.config, &["10.1.0.0/26", "10.1.0.64/26"]);
    let again = a.clone();
    let (a, b) = (Node::start(a), Node::start(b));
    let mut fib = Fib::new(b.feed);
    fib.until_has(&["10.1.0.0/26", "10.1.0.64/26"]).await;
    fib.removed.clear();
    a.handle.shutdown(Shutdown::KeepRoutes).await;
    let handle = b.handle.clone();
    until("b has noticed", || {
        let handle = handle.clone();
        async move {
            let snapshot = handle.snapshot().await.expect("b runs");
            snapshot.peers["a"].state != SessionState::Established
        }
    })
    .await;
    let routes = b.handle.routes(RouteFilter::default()).await.expect("b runs");
    assert!(routes.iter().all(|route| route.candidates[0].stale), "{routes:?}");
    let mut again = again;
    again.config.originate.clear();
    originate(&mut again.config, &["10.1.0.64/26", "10.1.0.128/26"]);
    again.options = SpeakerOptions {
        forwarding_preserved: true,
        restarting: true,
        ..SpeakerOptions::default()
    };
    let _a = Node::start(again);
    fib.until_exactly(&["10.1.0.64/26", "10.1.0.128/26"]).await;
    assert!(!fib.removed.contains("10.1.0.64/26"), "a route that still exists was never removed");
}

#[tokio::test]
async fn a_cease_removes_routes_at_once() {
    let net = Net::new();
    let (mut a, b) = net.pair(65001, 65001);
    originate(&mut a.config, &["10.1.0.0/26"]);
    let (a, b) = (Node::start(a), Node::start(b));
    let mut fib = Fib::new(b.feed);
    fib.until_has(&["10.1.0.0/26"]).await;
    a.handle.shutdown(Shutdown::Cease { text: "maintenance".into() }).await;
    fib.until_exactly(&[]).await;
    let snapshot = b.handle.snapshot().await.expect("b runs");
    let error = snapshot.peers["a"].last_error.as_ref().expect("an error").text.clone();
    assert!(error.contains("maintenance"), "{error}");
}

#[tokio::test]
async fn a_changed_hold_time_resets_and_an_unchanged_peer_stays() {
    let net = Net::new();
    let (a, b) = net.pair(65001, 65001);
    let (a, b) = (Node::start(a), Node::start(b));
    until("a is established", established(&a, "b")).await;
    let mut config = a.config.clone();
    config.multipath.paths_max = 4;
    originate(&mut config, &["10.9.0.0/26"]);
    a.handle.apply(config.clone()).expect("a valid configuration");
    let mut fib = Fib::new(b.feed);
    fib.until_has(&["10.9.0.0/26"]).await;
    let snapshot = a.handle.snapshot().await.expect("a runs");
    assert_eq!(snapshot.peers["b"].established_count, 1);
    config.peers.values_mut().for_each(|peer| peer.hold_time_secs = 30);
    a.handle.apply(config).expect("a valid configuration");
    let handle = a.handle.clone();
    until("a new session has the new hold time", || {
        let handle = handle.clone();
        async move {
            let snapshot = handle.snapshot().await.expect("a runs");
            let peer = &snapshot.peers["b"];
            peer.negotiated.as_ref().is_some_and(|n| n.hold_time_secs == 30)
        }
    })
    .await;
}

#[tokio::test]
async fn both_sides_connecting_at_once_end_with_one_session() {
    for _ in 0..5 {
        let net = Net::new();
        let (mut a, mut b) = net.pair(65001, 65001);
        a.config.peers.values_mut().for_each(|peer| peer.passive = false);
        b.config.peers.values_mut().for_each(|peer| peer.passive = false);
        let (a, b) = (Node::start(a), Node::start(b));
        until("a is established", established(&a, "b")).await;
        until("b is established", established(&b, "a")).await;
        settled(Duration::from_millis(300)).await;
        assert!(established(&a, "b")().await && established(&b, "a")().await);
    }
}

#[tokio::test]
async fn a_silent_peer_is_given_up_after_the_hold_time() {
    let net = Net::new();
    let (mut a, b) = net.pair(65001, 65001);
    a.config.peers.values_mut().for_each(|peer| peer.hold_time_secs = 3);
    let listen = b.config.listen[0];
    let a = Node::start(a);
    // A peer that opens a session and never speaks again.
    let fake = speaker_net::FakePeer::accept(listen, 65001, b.config.router_id).await;
    until("a is established", established(&a, "b")).await;
    let started = std::time::Instant::now();
    let notification = fake.notification().await;
    assert!(started.elapsed() > Duration::from_secs(2), "{:?}", started.elapsed());
    assert_eq!(notification.error, cairn_bgp::wire::NotificationError::HoldTimerExpired);
    let snapshot = a.handle.snapshot().await.expect("a runs");
    let error = snapshot.peers["b"].last_error.as_ref().expect("an error").text.clone();
    assert!(error.contains("for 3 s"), "{error}");
}

/// As after a SIGSTOP: the hold time has passed without a read, and the peer has spoken all the while.
#[tokio::test]
async fn a_speaker_that_was_stopped_reads_before_it_judges() {
    let net = Net::new();
    let (a, mut b) = net.pair(65001, 65001);
    b.config.peers.values_mut().for_each(|peer| peer.hold_time_secs = 3);
    let (from, to) = (a.config.router_id, b.config.listen[0]);
    let b = Node::start(b);
    let open = speaker_net::fake_open(65001, from);
    let peer = speaker_net::FakePeer::established(from, to, open).await;
    until("b is established", established(&b, "a")).await;
    let speaking = peer.keep_alive(Duration::from_millis(500), 20);
    for _ in 0..2 {
        // The one thread of the runtime, with all tasks of the speaker.
        std::thread::sleep(Duration::from_millis(3500));
        settled(Duration::from_millis(300)).await;
    }
    let snapshot = b.handle.snapshot().await.expect("b runs");
    let a = &snapshot.peers["a"];
    assert_eq!((a.state, a.established_count), (SessionState::Established, 1), "{a:?}");
    speaking.join().expect("the peer's thread");
}

#[tokio::test]
async fn a_taken_port_is_reported_and_outgoing_sessions_go_on() {
    let net = Net::new();
    let (a, b) = net.pair(65001, 65001);
    let taken = speaker_net::PortHolder::new(a.config.listen[0]);
    let (mut a, mut b) = (a, b);
    a.config.peers.values_mut().for_each(|peer| peer.passive = false);
    b.config.peers.values_mut().for_each(|peer| peer.passive = true);
    let (a, _b) = (Node::start(a), Node::start(b));
    until("a is established", established(&a, "b")).await;
    let snapshot = a.handle.snapshot().await.expect("a runs");
    let error = snapshot.listeners[0].error.clone().expect("the port is taken");
    let holder = format!("process {})", taken.pid());
    assert!(error.contains("taken by another process") && error.contains(&holder), "{error}");
    drop(taken);
}

#[tokio::test]
async fn more_prefixes_than_allowed_end_the_session() {
    let net = Net::new();
    let (mut a, mut b) = net.pair(65001, 65001);
    originate(&mut a.config, &["10.1.0.0/26", "10.1.0.64/26", "10.1.0.128/26"]);
    b.config.peers.values_mut().for_each(|peer| {
        let action = PrefixLimitAction::Stop { restart_after_secs: None };
        peer.prefix_limit = Some(PrefixLimit { prefixes_max: 2, action });
    });
    let (_a, b) = (Node::start(a), Node::start(b));
    let handle = b.handle.clone();
    until("b has stopped the session", || {
        let handle = handle.clone();
        async move {
            let snapshot = handle.snapshot().await.expect("b runs");
            let peer = &snapshot.peers["a"];
            peer.state == SessionState::Idle
                && peer.last_error.as_ref().is_some_and(|e| e.text.contains("2 prefixes"))
        }
    })
    .await;
}

/// More than any queue between the two holds: writer, sockets, feed.
#[tokio::test]
async fn a_large_table_passes_queues_that_are_smaller() {
    let net = Net::new();
    let (mut a, mut b) = net.pair(65001, 65001);
    // A second listener to the same table, and one that joins when it stands.
    let (mut c, mut d) = (net.speaker(65001), net.speaker(65001));
    speaker_net::connect(&mut a, "a", &mut c, "c");
    speaker_net::connect(&mut a, "a", &mut d, "d");
    b.config.multipath.paths_max = 2;
    for number in 0..60_000_u32 {
        let prefix = format!("10.{}.{}.{}/32", number >> 16, number >> 8 & 255, number & 255);
        originate(&mut a.config, &[&prefix]);
        // A community of its own for each pair: attributes do not shrink the stream.
        let prefix = prefix.parse().expect("a prefix");
        let origination = a.config.originate.get_mut(&prefix).expect("just put in");
        origination.communities = vec![number / 2];
    }
    let a = Node::start(a);
    for setup in [b, c] {
        let node = Node::start(setup);
        let mut fib = Fib::new(node.feed);
        fib.until_in_sync().await;
        assert_eq!(fib.routes.len(), 60_000);
    }
    let d = Node::start(d);
    let mut fib = Fib::new(d.feed);
    fib.until_in_sync().await;
    assert_eq!(fib.routes.len(), 60_000);
    let mut config = a.config.clone();
    config.originate.clear();
    a.handle.apply(config).expect("a valid configuration");
    fib.until_exactly(&[]).await;
}

/// All nodes of a rack lose and get power back, or an upgrade takes all agents at once: each waits for
/// the others' routes only as far as these do not wait for it (RFC 4724 section 4.1), and what the kernel
/// has from before stays until their routes are there.
#[tokio::test]
async fn five_speakers_restarted_together_converge_without_the_timer_and_miss_no_route() {
    let net = Net::new();
    let mut setups: Vec<Setup> = (0..5).map(|_| net.speaker(65001)).collect();
    let prefixes: Vec<String> = (0..5).map(|number| format!("10.1.{number}.0/26")).collect();
    for (number, setup) in setups.iter_mut().enumerate() {
        originate(&mut setup.config, &[&prefixes[number]]);
        setup.config.selection_deferral_secs = 3600;
        setup.options.restarting = true;
        setup.options.forwarding_preserved = true;
    }
    for a in 0..5 {
        let (below, above) = setups.split_at_mut(a + 1);
        for (b, other) in above.iter_mut().enumerate() {
            let (name_a, name_b) = (format!("n{a}"), format!("n{}", a + 1 + b));
            connect(&mut below[a], &name_a, other, &name_b);
        }
    }
    let nodes = setups.into_iter().map(Node::start);
    let (_handles, feeds): (Vec<_>, Vec<_>) = nodes.map(|node| (node.handle, node.feed)).unzip();
    for (number, feed) in feeds.into_iter().enumerate() {
        let mut fib = Fib::new(feed);
        fib.until_in_sync().await;
        let others = prefixes.iter().enumerate().filter(|(other, _)| *other != number);
        let others: Vec<&str> = others.map(|(_, prefix)| prefix.as_str()).collect();
        let known: Vec<&str> = fib.routes.keys().map(String::as_str).collect();
        assert_eq!(known, others, "the kernel would lose the rest");
    }
}
