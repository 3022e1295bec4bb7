//! Peers on interfaces: what a speaker is told of them. Sessions over real links are among the tests with
//! other daemons.

mod speaker_net;

use std::net::Ipv6Addr;
use std::sync::Arc;

use cairn_bgp::config::{Password, PeerConfig};
use cairn_bgp::session::SessionState;
use cairn_bgp::speaker::{Located, Neighbour, Speaker, SpeakerHandle};
use cairn_bgp::status::PeerSnapshot;
use speaker_net::{Net, Node, Setup};

fn on_interface(name: &str) -> PeerConfig {
    PeerConfig::on_interface(name, 65002)
}

async fn leaf(handle: &SpeakerHandle) -> PeerSnapshot {
    handle.snapshot().await.expect("it runs").peers["leaf"].clone()
}

fn error(peer: &PeerSnapshot) -> Option<&str> {
    peer.last_error.as_ref().map(|error| error.text.as_str())
}

async fn tell(handle: &SpeakerHandle, remote: Option<u16>, problem: Option<&str>) {
    let address = |last| Ipv6Addr::new(0xfe80, 0, 0, 0, 0, 0, 0, last);
    // Nothing is there: no attempt to connect comes to an end in this test.
    let located = remote.map(|last| Located { index: 1, local: address(1), remote: address(last) });
    let known = Neighbour { located, problem: problem.map(str::to_owned) };
    handle.set_neighbours([("eth0".into(), known)].into()).await.expect("it runs");
}

#[tokio::test]
async fn what_is_known_of_a_link_shows() {
    let net = Net::new();
    let mut setup = net.speaker(65001);
    setup.config.peers.insert("leaf".into(), on_interface("eth0"));
    let node = Node::start(setup);
    let peer = leaf(&node.handle).await;
    assert_eq!((peer.state, peer.place().as_str()), (SessionState::Idle, "eth0"));
    assert!(error(&peer).is_some_and(|text| text.contains("nobody has said")), "{peer:?}");
    for _ in 0..3 {
        tell(&node.handle, None, Some("no cable")).await;
        assert_eq!(error(&leaf(&node.handle).await), Some("no cable"));
    }
    assert_eq!(leaf(&node.handle).await.errors, 2, "each is told once");
    tell(&node.handle, Some(2), None).await;
    let peer = leaf(&node.handle).await;
    assert_eq!(peer.place(), "fe80::2%eth0");
    assert_ne!(peer.state, SessionState::Idle);
    tell(&node.handle, Some(3), Some("a crowd")).await;
    let peer = leaf(&node.handle).await;
    assert_eq!((peer.place().as_str(), peer.doubt.as_deref()), ("fe80::3%eth0", Some("a crowd")));
    tell(&node.handle, None, Some("no carrier")).await;
    let peer = leaf(&node.handle).await;
    assert_eq!((peer.state, peer.place().as_str()), (SessionState::Idle, "eth0"));
    assert_eq!((error(&peer), peer.doubt.as_deref()), (Some("no carrier"), None));
}

#[tokio::test]
async fn what_cannot_work_on_an_interface_is_refused() {
    let net = Net::new();
    let mut setup = net.speaker(65001);
    let start = |setup: &Setup| {
        let started = Speaker::start(setup.config.clone(), Default::default());
        started.err().map(|error| error.to_string()).unwrap_or_default()
    };
    setup.config.peers.insert("leaf".into(), on_interface("eth0"));
    setup.config.peers.insert("other".into(), on_interface("eth0"));
    assert!(start(&setup).contains("on the same interface eth0"), "{}", start(&setup));
    let password = Some(Password(Arc::from("secret")));
    setup.config.peers.insert("other".into(), PeerConfig { password, ..on_interface("eth1") });
    assert!(start(&setup).contains("peer other has a password"), "{}", start(&setup));
    setup.config.peers.insert("other".into(), on_interface("eth1"));
    assert_eq!(start(&setup), "");
}
