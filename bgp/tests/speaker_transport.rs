//! What a session demands of the packets under it: TTL security and MD5 signatures.

mod speaker_net;

use std::net::SocketAddr;
use std::time::Duration;

use cairn_bgp::config::{Password, SpeakerConfig};
use cairn_bgp::prefix::Family;
use cairn_bgp::session::SessionState;
use cairn_bgp::wire::{Capability, Open, keepalive};
use speaker_net::{Net, Node, Setup, settled, until};
use tokio::io::AsyncWriteExt;

async fn state(node: &Node) -> SessionState {
    let snapshot = node.handle.snapshot().await.expect("the speaker runs");
    snapshot.peers.values().next().expect("one peer").state
}

async fn until_established(node: &Node) {
    until("the session is established", || async {
        state(node).await == SessionState::Established
    })
    .await;
}

async fn stays_down(node: &Node) {
    settled(Duration::from_millis(1500)).await;
    let snapshot = node.handle.snapshot().await.expect("the speaker runs");
    assert_eq!(snapshot.peers.values().next().map(|peer| peer.established_count), Some(0));
}

fn secure(setup: &mut Setup) {
    setup.config.peers.values_mut().for_each(|peer| peer.ttl_security = true);
}

fn sign(config: &mut SpeakerConfig, password: &str) {
    let password = Some(Password(password.into()));
    config.peers.values_mut().for_each(|peer| peer.password.clone_from(&password));
}

/// RFC 5082: also what answers before any peer is known, the SYN-ACK, has to carry the full TTL.
#[tokio::test]
async fn two_sides_with_ttl_security_come_together() {
    let net = Net::new();
    let (mut a, mut b) = net.pair(65001, 65002);
    secure(&mut a);
    secure(&mut b);
    let (a, b) = (Node::start(a), Node::start(b));
    until_established(&a).await;
    until_established(&b).await;
}

#[tokio::test]
async fn ttl_security_on_one_side_refuses_the_other() {
    for connecting in [true, false] {
        let net = Net::new();
        let (mut a, mut b) = net.pair(65001, 65002);
        secure(if connecting { &mut a } else { &mut b });
        let (a, b) = (Node::start(a), Node::start(b));
        stays_down(&a).await;
        stays_down(&b).await;
    }
}

/// A whole handshake in one piece, there before the speaker can have told the kernel what to demand.
#[tokio::test]
async fn nothing_from_afar_is_read_under_ttl_security() {
    let net = Net::new();
    let (mut a, mut b) = net.pair(65001, 65002);
    secure(&mut b);
    a.config.listen.clear();
    let (from, to) = (a.config.router_id, b.config.listen[0]);
    let b = Node::start(b);
    until("b listens", || async {
        let snapshot = b.handle.snapshot().await.expect("b runs");
        snapshot.listeners.iter().all(|listener| listener.error.is_none())
    })
    .await;
    let open = Open {
        asn: 65001,
        hold_time_secs: 90,
        router_id: from,
        capabilities: vec![
            Capability::multiprotocol(Family::Ipv4Unicast),
            Capability::FourOctetAs(65001),
        ],
    };
    let handshake = [open.encode(), keepalive()].concat();
    // With the full TTL the same octets do make a session.
    for (ttl, count) in [(254, 0), (255, 1)] {
        let socket = socket2::Socket::new(socket2::Domain::IPV4, socket2::Type::STREAM, None)
            .expect("a socket");
        socket.set_ttl_v4(ttl).expect("a TTL");
        socket.bind(&SocketAddr::new(from.into(), 0).into()).expect("the peer's address");
        socket.connect(&to.into()).expect("a listener");
        socket.set_nonblocking(true).expect("a socket");
        let mut stream =
            tokio::net::TcpStream::from_std(socket.into()).expect("a registered socket");
        // A listener that has closed already refuses it, which is as good.
        let _ = stream.write_all(&handshake).await;
        settled(Duration::from_millis(300)).await;
        let snapshot = b.handle.snapshot().await.expect("b runs");
        assert_eq!(snapshot.peers["a"].established_count, count, "TTL {ttl}");
    }
}

#[tokio::test]
async fn a_password_has_to_be_the_same_and_can_be_corrected() {
    let net = Net::new();
    let (mut a, mut b) = net.pair(65001, 65002);
    sign(&mut a.config, "one");
    sign(&mut b.config, "other");
    let (a, b) = (Node::start(a), Node::start(b));
    stays_down(&a).await;
    let mut config = a.config.clone();
    sign(&mut config, "other");
    a.handle.apply(config).expect("a valid configuration");
    until_established(&a).await;
    until_established(&b).await;
}

#[tokio::test]
async fn who_does_not_sign_is_not_heard() {
    let net = Net::new();
    let (a, mut b) = net.pair(65001, 65002);
    sign(&mut b.config, "secret");
    let (a, _b) = (Node::start(a), Node::start(b));
    stays_down(&a).await;
}

/// Local and remote port of the one connection between two addresses.
fn connection_ports(node: &Node) -> Vec<String> {
    let table = std::fs::read_to_string("/proc/thread-self/net/tcp").expect("the kernel's table");
    let lines = table.lines().skip(1).map(|line| line.split_whitespace().collect::<Vec<_>>());
    let word = u32::from_ne_bytes(node.config.router_id.octets());
    let own = format!("{word:08X}:");
    lines
        .filter(|fields| fields[3] == "01" && fields[1].starts_with(&own))
        .map(|fields| format!("{} {}", fields[1], fields[2]))
        .collect()
}

/// RFC 2385: both sides change the key one after the other, and the TCP connection goes on.
#[tokio::test]
async fn a_changed_password_is_set_on_the_live_connection() {
    let net = Net::new();
    let (mut a, mut b) = net.pair(65001, 65001);
    for config in [&mut a.config, &mut b.config] {
        sign(config, "one");
        config.peers.values_mut().for_each(|peer| peer.hold_time_secs = 6);
    }
    let (a, b) = (Node::start(a), Node::start(b));
    until_established(&a).await;
    until_established(&b).await;
    let before = connection_ports(&a);
    assert_eq!(before.len(), 1, "{before:?}");
    let (mut config_a, mut config_b) = (a.config.clone(), b.config.clone());
    sign(&mut config_a, "other");
    sign(&mut config_b, "other");
    speaker_net::originate(&mut config_a, &["10.1.0.0/26"]);
    a.handle.apply(config_a).expect("a valid configuration");
    // Within the hold time, while what a sends is not accepted.
    settled(Duration::from_millis(500)).await;
    let received = async || {
        let snapshot = b.handle.snapshot().await.expect("b runs");
        snapshot.peers["a"].routes[&Family::Ipv4Unicast].received
    };
    assert_eq!(received().await, 0, "signed with a key that b does not have");
    b.handle.apply(config_b).expect("a valid configuration");
    until("the route has come", async || received().await == 1).await;
    // Longer than the hold time: KEEPALIVEs pass in both directions.
    settled(Duration::from_secs(7)).await;
    assert_eq!(connection_ports(&a), before, "the same connection");
    for node in [&a, &b] {
        let snapshot = node.handle.snapshot().await.expect("it runs");
        let peer = snapshot.peers.values().next().expect("one peer");
        assert_eq!((peer.state, peer.established_count), (SessionState::Established, 1));
    }
    // Listeners have the new key, too.
    let reset = cairn_bgp::speaker::Reset::Hard { text: String::new() };
    a.handle.reset("b".into(), reset).await.expect("a peer");
    until("a second session is established", || async {
        let snapshot = a.handle.snapshot().await.expect("a runs");
        snapshot.peers["b"].established_count == 2
    })
    .await;
}

async fn until_last_error(node: &Node, wanted: &str) {
    until(wanted, || async {
        let snapshot = node.handle.snapshot().await.expect("it runs");
        let error = snapshot.peers.values().next().and_then(|peer| peer.last_error.clone());
        error.is_some_and(|error| error.text.contains(wanted))
    })
    .await;
}

/// The kernel drops such segments without a word; its counters say why.
#[tokio::test]
async fn a_wrong_or_missing_password_is_named() {
    let table = [
        (Some("one"), Some("other"), "does not fit"),
        (None, Some("other"), "likely missing at the peer"),
        (Some("one"), None, "no password is configured here"),
    ];
    for (password_a, password_b, wanted) in table {
        let net = Net::new();
        let (mut a, mut b) = net.pair(65001, 65002);
        a.config.peers.values_mut().for_each(|peer| peer.connect_retry_secs = 2);
        for (config, password) in [(&mut a.config, password_a), (&mut b.config, password_b)] {
            if let Some(password) = password {
                sign(config, password);
            }
        }
        let (_a, b) = (Node::start(a), Node::start(b));
        until_last_error(&b, wanted).await;
        until_last_error(&b, "password differs or missing").await;
    }
}

/// RFC 9687: the peer speaks, so that the hold timer is content, and reads nothing.
#[tokio::test]
async fn a_peer_that_reads_nothing_is_given_up() {
    let net = Net::new();
    let (a, mut b) = net.pair(65001, 65001);
    b.config.peers.values_mut().for_each(|peer| {
        peer.hold_time_secs = 3;
        peer.send_hold_time_secs = 1;
    });
    // More than the kernel's buffers take.
    for number in 0..200_000_u32 {
        let prefix = format!("11.{}.{}.{}/32", number >> 16, number >> 8 & 255, number & 255);
        speaker_net::originate(&mut b.config, &[&prefix]);
        let prefix = prefix.parse().expect("a prefix");
        let origination = b.config.originate.get_mut(&prefix).expect("just put in");
        origination.communities = vec![number];
    }
    let (from, to) = (a.config.router_id, b.config.listen[0]);
    let b = Node::start(b);
    let open = speaker_net::fake_open(65001, from);
    let mut peer = speaker_net::FakePeer::established(from, to, open).await;
    until_established(&b).await;
    let started = std::time::Instant::now();
    // Twice the hold time is the least.
    while peer.try_send(&keepalive()).await && started.elapsed() < PATIENCE {
        settled(Duration::from_millis(200)).await;
    }
    let took = started.elapsed();
    assert!(took > Duration::from_secs(6) && took < PATIENCE, "{took:?}");
    until_last_error(&b, "send hold time").await;
}

/// The interface's end, told by whoever watches the kernel.
#[tokio::test]
async fn a_lost_carrier_takes_the_routes_of_peers_on_that_link_at_once() {
    let net = Net::new();
    // eBGP with one hop: next to the link, although the addresses are in no common subnet.
    let (mut a, mut b) = net.pair(65001, 65002);
    for config in [&mut a.config, &mut b.config] {
        for peer in config.peers.values_mut() {
            peer.import = vec![speaker_net::accept_all()];
            peer.export = vec![speaker_net::accept_all()];
        }
    }
    speaker_net::originate(&mut a.config, &["10.1.0.0/26"]);
    let link = |node: &Node| {
        let number = node.config.router_id.octets()[3];
        let name = std::ffi::CString::new(format!("d{number}")).expect("a name");
        // SAFETY: a string that ends in 0.
        let index = unsafe { libc::if_nametoindex(name.as_ptr()) };
        assert_ne!(index, 0, "d{number} is there");
        index
    };
    let (a, b) = (Node::start(a), Node::start(b));
    until_established(&a).await;
    let (on_a, on_b) = (link(&a), link(&b));
    let (b, mut fib) = (b.handle, speaker_net::Fib::new(b.feed));
    fib.until_has(&["10.1.0.0/26"]).await;
    let state = async || {
        let snapshot = b.snapshot().await.expect("b runs");
        let peer = &snapshot.peers["a"];
        (peer.state, peer.last_error.as_ref().map(|error| error.text.clone()))
    };
    b.carrier_lost(on_a).await.expect("b runs");
    assert_eq!(state().await, (SessionState::Established, None), "another link than b's");
    b.carrier_lost(on_b).await.expect("b runs");
    let (down, error) = state().await;
    assert_ne!(down, SessionState::Established);
    assert!(error.is_some_and(|error| error.contains("carrier")), "told");
    // Both sides have graceful restart, which would keep it for 30 s.
    fib.until_exactly(&[]).await;
    fib.until_exactly(&["10.1.0.0/26"]).await;
    assert_eq!(state().await.0, SessionState::Established, "a new session");
}

/// Only a failing test takes it.
const PATIENCE: Duration = Duration::from_secs(60);
