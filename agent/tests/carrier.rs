//! A link loses its carrier: the sessions with peers next to it end at once.

use std::cell::Cell;
use std::collections::{BTreeMap, BTreeSet};
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::process::Command;
use std::sync::Arc;
use std::time::Duration;

use cairn_agent::carrier;
use cairn_bgp::config::{GracefulRestart, Multipath, Origination, PeerConfig, SpeakerConfig};
use cairn_bgp::session::{ErrorKind, SessionState};
use cairn_bgp::speaker::{FibFeed, Speaker, SpeakerHandle, SpeakerOptions};
use cairn_kernel::monitor::{KernelEvent, LinkState, Monitor};
use cairn_kernel::{Netlink, link};
use tokio::sync::mpsc;

const OURS: Ipv4Addr = Ipv4Addr::new(192, 0, 2, 1);
const THEIRS: Ipv4Addr = Ipv4Addr::new(192, 0, 2, 2);

fn ip(arguments: &str) {
    let status = Command::new("ip").args(arguments.split(' ')).status();
    assert!(status.expect("the ip command: apt-get install iproute2").success(), "ip {arguments}");
}

/// Two interfaces in one subnet, in a network namespace that goes with this thread.
fn two_links() {
    // SAFETY: no memory is passed; the runtime of one thread opens all its sockets on it.
    let result = unsafe { libc::unshare(libc::CLONE_NEWNET) };
    let error = std::io::Error::last_os_error();
    assert_eq!(result, 0, "a network namespace needs root: run the tests as root ({error})");
    ip("link set lo up");
    for (number, address) in [(1, OURS), (2, THEIRS)] {
        ip(&format!("link add d{number} type veth peer name p{number}"));
        ip(&format!("link set p{number} up"));
        ip(&format!("link set d{number} up"));
        ip(&format!("addr add {address}/24 dev d{number}"));
    }
}

fn start(own: Ipv4Addr, other: Ipv4Addr, passive: bool) -> (SpeakerHandle, FibFeed) {
    let peer = PeerConfig {
        port: 1790,
        source_address: Some(own.into()),
        passive,
        connect_retry_secs: 1,
        graceful_restart: Some(GracefulRestart::new(120)),
        ..PeerConfig::new(IpAddr::V4(other), 65001)
    };
    let origination =
        Origination { source: Arc::from("test"), communities: Vec::new(), local_pref: None };
    let prefix = format!("10.{}.0.0/26", own.octets()[3]).parse().expect("a prefix");
    let config = SpeakerConfig {
        origins: Default::default(),
        ranges: Default::default(),
        asn: 65001,
        router_id: own,
        cluster_id: None,
        listen: vec![SocketAddr::new(own.into(), 1790)],
        peers: BTreeMap::from([("peer".into(), peer)]),
        originate: BTreeMap::from([(prefix, origination)]),
        selection_deferral_secs: 1,
        multipath: Multipath { paths_max: 1, same_as_path: false },
    };
    Speaker::start(config, SpeakerOptions::default()).expect("a valid configuration")
}

/// State of the session and routes accepted from the peer.
async fn session(speaker: &SpeakerHandle) -> (SessionState, usize, Option<String>) {
    let snapshot = speaker.snapshot().await.expect("the speaker runs");
    let peer = &snapshot.peers["peer"];
    let accepted = peer.routes.values().map(|counts| counts.accepted).sum();
    (peer.state, accepted, peer.last_error.as_ref().map(|error| error.text.clone()))
}

async fn until(what: &str, mut holds: impl AsyncFnMut() -> bool) {
    let waiting = async {
        while !holds().await {
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    };
    assert!(tokio::time::timeout(Duration::from_secs(20), waiting).await.is_ok(), "never: {what}");
}

#[tokio::test]
async fn a_lost_carrier_ends_the_session_in_spite_of_graceful_restart() {
    two_links();
    let (ours, _feed) = start(OURS, THEIRS, false);
    let (_theirs, _their_feed) = start(THEIRS, OURS, true);
    carrier::watch(ours.clone());
    until("the route is there", async || session(&ours).await.1 == 1).await;
    // Neither a link that nobody uses nor one that comes up is a reason.
    ip("link add d3 type veth peer name p3");
    ip("link set d3 up");
    ip("link set p3 up");
    ip("link set p3 down");
    // The other side of our link goes: the address stays, and the hold time is 90 s.
    ip("link set p1 down");
    until("the route has gone", async || session(&ours).await.1 == 0).await;
    let (_, _, error) = session(&ours).await;
    assert!(error.is_some_and(|error| error.contains("lost its carrier")), "and it is said why");
    let errors = ours.errors("peer".into()).await.expect("a peer");
    let lost: Vec<_> = errors.iter().filter(|e| e.kind == ErrorKind::CarrierLost).collect();
    assert_eq!(lost.iter().map(|e| e.count).sum::<u64>(), 1, "for this link only: {errors:?}");
}

/// Notifications fail when the kernel never stands still while links are read, or gives no socket.
#[tokio::test]
async fn links_are_watched_although_that_failed_at_first() {
    two_links();
    let attempts = Cell::new(0);
    let open = || match attempts.replace(attempts.get() + 1) {
        0 => Err(cairn_kernel::Error::Interrupted(3)),
        _ => Monitor::open_links(),
    };
    let (lost, mut links) = mpsc::channel(8);
    let listen = async {
        until("the second attempt", async || attempts.get() == 2).await;
        ip("link set p2 down");
        let mut awaited = indices(["d2", "p2"]);
        while !awaited.is_empty() {
            let index = links.recv().await.expect("it goes on");
            awaited.remove(&index);
        }
    };
    tokio::select! {
        () = carrier::follow(open, lost) => {}
        heard = tokio::time::timeout(Duration::from_secs(20), listen) => heard.expect("it is told"),
    }
}

#[tokio::test]
async fn what_a_monitor_has_missed_is_told_when_it_is_opened_again() {
    two_links();
    ip("link add d3 type veth peer name p3");
    let mut monitor = Monitor::open_links().expect("a monitor");
    let gone = indices(["d1", "p1"]);
    ip("link del d1");
    ip("link set p2 down");
    let mut events = monitor.reopen().expect("the same again");
    assert_eq!(events.remove(0), KernelEvent::Overrun);
    let link = |event: KernelEvent| match event {
        KernelEvent::Link { index, state, .. } => Some((index, state)),
        KernelEvent::RoutesLost { .. } => None,
        other => panic!("{other:?}"),
    };
    let changed: BTreeMap<u32, LinkState> = events.into_iter().filter_map(link).collect();
    let removed = gone.into_iter().map(|index| (index, LinkState::Removed));
    let [d2, p2] = ["d2", "p2"].map(|name| indices([name]).pop_first().expect("a link"));
    let others = [(d2, LinkState::NoCarrier), (p2, LinkState::Down)];
    // d3 and p3 are down as they were.
    assert_eq!(changed, removed.chain(others).collect());
    ip("link set p2 up");
    let events = tokio::time::timeout(Duration::from_secs(20), monitor.next()).await;
    let mut events = events.expect("it is told").expect("it works").into_iter().filter_map(link);
    assert!(events.any(|(index, state)| index == p2 && state == LinkState::Running));
}

fn indices<const N: usize>(names: [&str; N]) -> BTreeSet<u32> {
    let mut netlink = Netlink::open().expect("a socket");
    let mut index = |name| link::find(&mut netlink, name).expect("links").expect("there is").index;
    names.map(&mut index).into()
}
