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
