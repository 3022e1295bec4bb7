//! Peers that are not named: whoever connects from an address of a range.

mod speaker_net;

use std::net::{IpAddr, Ipv4Addr};
use std::sync::Arc;
use std::time::Duration;

use cairn_bgp::config::{Password, PeerConfig, PeerName, PeerRange};
use cairn_bgp::prefix::Prefix;
use cairn_bgp::session::SessionState;
use cairn_bgp::speaker::SpeakerHandle;
use cairn_bgp::wire::{CeaseReason, NotificationError};
use speaker_net::{
    FakePeer, Fib, Net, Node, Setup, fake_open, originate, peer, settled, until, until_listens,
};

/// Lets peers of its AS in `addresses` connect to a speaker.
fn admit(setup: &mut Setup, addresses: &str, peers_max: u32) {
    let addresses: Prefix = addresses.parse().expect("a prefix");
    let local = setup.config.listen[0].ip();
    let any = IpAddr::V4(Ipv4Addr::UNSPECIFIED);
    let template = peer(local, any, setup.config.asn, true);
    let range = PeerRange { addresses, peers_max, template };
    setup.config.ranges.insert("leaves".into(), range);
}

/// Makes `other` connect to `hub`, which does not know it.
fn call(hub: &Setup, other: &mut Setup, change: impl Fn(&mut PeerConfig)) {
    let (from, to) = (other.config.listen[0].ip(), hub.config.listen[0].ip());
    let mut config = peer(from, to, hub.config.asn, false);
    change(&mut config);
    other.config.peers.insert("hub".into(), config);
}

/// The peers of a speaker and their states.
async fn peers(handle: &SpeakerHandle) -> Vec<(String, SessionState)> {
    let snapshot = handle.snapshot().await.expect("it runs");
    snapshot.peers.into_iter().map(|(name, peer)| (name, peer.state)).collect()
}

async fn until_up(handle: &SpeakerHandle, count: usize) {
    until("so many sessions are up", || async {
        let peers = peers(handle).await;
        peers.iter().filter(|(_, state)| *state == SessionState::Established).count() == count
    })
    .await;
}

#[tokio::test]
async fn whoever_is_in_the_range_may_connect_and_so_many_at_a_time() {
    let net = Net::new();
    let mut hub = net.speaker(65001);
    let mut others: Vec<Setup> = (0..3).map(|_| net.speaker(65001)).collect();
    for (number, other) in others.iter_mut().enumerate() {
        call(&hub, other, |_| {});
        originate(&mut other.config, &[&format!("10.1.{number}.0/26")]);
    }
    admit(&mut hub, "192.0.2.0/24", 2);
    let hub = Node::start(hub);
    let names = |some: &[Setup]| -> Vec<String> {
        some.iter().map(|other| format!("leaves@{}", other.config.listen[0].ip())).collect()
    };
    let expected = names(&others);
    let mut fib = Fib::new(hub.feed);
    let third = others.pop().expect("three");
    let mut nodes: Vec<Node> = others.into_iter().map(Node::start).collect();
    until_up(&hub.handle, 2).await;
    fib.until_exactly(&["10.1.0.0/26", "10.1.1.0/26"]).await;
    let known: Vec<String> = peers(&hub.handle).await.into_iter().map(|(name, _)| name).collect();
    assert_eq!(known, expected[..2]);
    // There is no room for a third, and it costs the others nothing.
    let third = Node::start(third);
    settled(Duration::from_secs(2)).await;
    assert_eq!(peers(&hub.handle).await.len(), 2);
    // One that says goodbye makes room at once: nobody waits for it.
    let gone = nodes.remove(0);
    gone.handle.shutdown(cairn_bgp::speaker::Shutdown::Cease { text: "gone".into() }).await;
    fib.until_exactly(&["10.1.1.0/26", "10.1.2.0/26"]).await;
    let known: Vec<String> = peers(&hub.handle).await.into_iter().map(|(name, _)| name).collect();
    assert_eq!(known, expected[1..]);
    drop(third);
}

#[tokio::test]
async fn a_named_peer_goes_first_and_a_range_that_goes_takes_its_peers_along() {
    let net = Net::new();
    let mut hub = net.speaker(65001);
    let (mut named, mut other) = (net.speaker(65001), net.speaker(65001));
    call(&hub, &mut named, |_| {});
    call(&hub, &mut other, |_| {});
    let (local, remote) = (hub.config.listen[0].ip(), named.config.listen[0].ip());
    hub.config.peers.insert(PeerName::from("named"), peer(local, remote, 65001, true));
    admit(&mut hub, "192.0.2.0/24", 5);
    let other_name = format!("leaves@{}", other.config.listen[0].ip());
    let config = hub.config.clone();
    let hub = Node::start(hub);
    let (_named, _other) = (Node::start(named), Node::start(other));
    until_up(&hub.handle, 2).await;
    let known: Vec<String> = peers(&hub.handle).await.into_iter().map(|(name, _)| name).collect();
    assert_eq!(known, [other_name.as_str(), "named"]);
    // A change that needs no reset is taken up by the sessions that stand.
    let mut changed = config.clone();
    changed.ranges.get_mut("leaves").expect("it").template.route_reflector_client = true;
    hub.handle.apply(changed).expect("a valid configuration");
    settled(Duration::from_millis(200)).await;
    let snapshot = hub.handle.snapshot().await.expect("it runs");
    assert_eq!(snapshot.peers[&other_name].established_count, 1);
    assert_eq!(snapshot.peers[&other_name].state, SessionState::Established);
    let mut without = config;
    without.ranges.clear();
    hub.handle.apply(without).expect("a valid configuration");
    until("the range's peer is gone", || async {
        let known = peers(&hub.handle).await;
        known.len() == 1 && known[0].0 == "named"
    })
    .await;
}

/// The kernel is told one key for the whole range.
#[tokio::test]
async fn a_range_has_a_password() {
    let net = Net::new();
    let mut hub = net.speaker(65001);
    let key = Some(Password(Arc::from("secret")));
    let (mut right, mut wrong) = (net.speaker(65001), net.speaker(65001));
    call(&hub, &mut right, |config| config.password = key.clone());
    call(&hub, &mut wrong, |config| config.password = Some(Password(Arc::from("other"))));
    admit(&mut hub, "192.0.2.0/24", 5);
    hub.config.ranges.get_mut("leaves").expect("it").template.password = key;
    let hub = Node::start(hub);
    let (_right, _wrong) = (Node::start(right), Node::start(wrong));
    until_up(&hub.handle, 1).await;
    settled(Duration::from_secs(2)).await;
    assert_eq!(peers(&hub.handle).await.len(), 1, "who has another key is not heard");
}

/// Outside of the range, of another AS: refused as ever.
#[tokio::test]
async fn others_are_refused() {
    let net = Net::new();
    let mut hub = net.speaker(65001);
    let (outside, inside) = (net.address(), net.address());
    admit(&mut hub, &format!("{inside}/32"), 5);
    let listen = hub.config.listen[0];
    let hub = Node::start(hub);
    until_listens(listen).await;
    FakePeer::connect(outside, listen).await.until_closed().await;
    assert_eq!(peers(&hub.handle).await.len(), 0);
    let mut stranger = FakePeer::connect(inside, listen).await;
    stranger.send(&fake_open(65009, inside).encode()).await;
    let told = stranger.notification().await;
    assert!(matches!(told.error, NotificationError::Open(_)), "{told}");
    let known = peers(&hub.handle).await;
    assert_eq!(known.len(), 1, "what went wrong can be asked for a while");
    assert_ne!(told.error, NotificationError::Cease(CeaseReason::ConnectionRejected));
}

/// Nobody knows by name who will come: after a restart the kernel's routes, and what peers kept, wait for them.
#[tokio::test]
async fn after_a_restart_peers_of_ranges_are_waited_for() {
    let net = Net::new();
    let mut hub = net.speaker(65001);
    let mut other = net.speaker(65001);
    call(&hub, &mut other, |_| {});
    originate(&mut other.config, &["10.1.0.0/26"]);
    admit(&mut hub, "192.0.2.0/24", 5);
    hub.config.selection_deferral_secs = 3;
    hub.options.restarting = true;
    hub.options.forwarding_preserved = true;
    let hub = Node::start(hub);
    let mut fib = Fib::new(hub.feed);
    settled(Duration::from_millis(1500)).await;
    let _other = Node::start(other);
    fib.until_in_sync().await;
    let known: Vec<&str> = fib.routes.keys().map(String::as_str).collect();
    assert_eq!(known, ["10.1.0.0/26"], "the sweep came before the peer");
}

#[tokio::test]
async fn what_cannot_work_is_refused() {
    let net = Net::new();
    let mut hub = net.speaker(65001);
    admit(&mut hub, "192.0.2.0/24", 5);
    hub.config.ranges.get_mut("leaves").expect("it").template.password =
        Some(Password(Arc::from("secret")));
    let local = hub.config.listen[0].ip();
    let named = peer(local, IpAddr::V4(Ipv4Addr::new(192, 0, 2, 9)), 65001, true);
    hub.config.peers.insert("plain".into(), named);
    let start = |setup: &Setup| {
        let started = cairn_bgp::speaker::Speaker::start(setup.config.clone(), Default::default());
        started.err().map(|error| error.to_string()).unwrap_or_default()
    };
    assert!(start(&hub).contains("has no password"), "{}", start(&hub));
    hub.config.peers.clear();
    let again = hub.config.ranges["leaves"].clone();
    hub.config.ranges.insert("again".into(), again);
    assert!(start(&hub).contains("same addresses"), "{}", start(&hub));
}
