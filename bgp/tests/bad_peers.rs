//! Peers that are broken, hostile or merely slow: what each costs, and that nobody else pays.

mod speaker_net;

use std::net::{Ipv4Addr, SocketAddr};
use std::time::{Duration, Instant};

use cairn_bgp::config::{PeerName, PrefixLimit, PrefixLimitAction};
use cairn_bgp::prefix::Family;
use cairn_bgp::rib::RouteFilter;
use cairn_bgp::session::{ErrorKind, SessionState};
use cairn_bgp::speaker::Reset;
use cairn_bgp::status::{ErrorRecord, PeerSnapshot};
use cairn_bgp::wire::{
    Capability, CeaseReason, MessageType, Notification, NotificationError, Open, OpenError,
    UpdateError, keepalive,
};
use speaker_net::{FakePeer, Fib, Net, Node, Setup, fake_open, originate, peer, settled, until};

/// A speaker with a peer `bad` that it waits for, and where that peer connects from.
struct Victim {
    setup: Setup,
    from: Ipv4Addr,
    to: SocketAddr,
}

impl Victim {
    fn new(net: &Net, asn: u32) -> Victim {
        let mut setup = net.speaker(65001);
        let from = net.address();
        let to = setup.config.listen[0];
        let bad = peer(to.ip(), from.into(), asn, true);
        setup.config.peers.insert(PeerName::from("bad"), bad);
        Victim { setup, from, to }
    }

    /// The same with a second peer, a speaker that behaves, and its own table.
    fn with_good_peer(net: &Net, asn: u32) -> (Victim, Node) {
        let mut victim = Victim::new(net, asn);
        let mut good = net.speaker(65001);
        speaker_net::connect(&mut good, "good", &mut victim.setup, "victim");
        good.config.peers.values_mut().for_each(|peer| peer.hold_time_secs = 3);
        originate(&mut good.config, &["10.9.0.0/26"]);
        (victim, Node::start(good))
    }

    async fn establish(&self, open: Open) -> FakePeer {
        FakePeer::established(self.from, self.to, open).await
    }

    fn open(&self) -> Open {
        fake_open(65001, self.from)
    }
}

async fn snapshot(node: &Node, name: &str) -> PeerSnapshot {
    node.handle.snapshot().await.expect("the speaker runs").peers[name].clone()
}

async fn records(node: &Node) -> Vec<ErrorRecord> {
    node.handle.errors("bad".into()).await.expect("a peer")
}

async fn until_state(node: &Node, name: &str, state: SessionState) {
    until(&format!("{name} is {state:?}"), || async { snapshot(node, name).await.state == state })
        .await;
}

/// A message of any type.
fn message(kind: u8, body: &[u8]) -> Vec<u8> {
    let octets = u16::try_from(19 + body.len()).expect("a length");
    [&[0xff; 16], &octets.to_be_bytes()[..], &[kind], body].concat()
}

/// An UPDATE that announces IPv4 prefixes.
fn update(attributes: &[u8], prefixes: impl IntoIterator<Item = [u8; 3]>) -> Vec<u8> {
    let octets = u16::try_from(attributes.len()).expect("a length");
    let mut body = [&[0, 0], &octets.to_be_bytes()[..], attributes].concat();
    for [a, b, c] in prefixes {
        body.extend([24, a, b, c]);
    }
    message(2, &body)
}

/// ORIGIN, AS_PATH of these segments, NEXT_HOP and LOCAL_PREF.
fn attributes(as_path: &[u8], next_hop: Ipv4Addr) -> Vec<u8> {
    let octets = u16::try_from(as_path.len()).expect("a length").to_be_bytes();
    let origin = [0x40, 1, 1, 0];
    let next_hop = [&[0x40, 3, 4], &next_hop.octets()[..]].concat();
    let local_pref = [0x40, 5, 4, 0, 0, 0, 100];
    [&origin[..], &[0x50, 2], &octets[..], as_path, &next_hop, &local_pref].concat()
}

fn plain(from: Ipv4Addr) -> Vec<u8> {
    attributes(&[], from)
}

/// Prefixes 11.0.0.0/24, 11.0.1.0/24 and on.
fn prefixes(range: std::ops::Range<u32>) -> impl Iterator<Item = [u8; 3]> {
    range.map(|number| {
        let [_, a, b, c] = ((11 << 16) + number).to_be_bytes();
        [a, b, c]
    })
}

#[tokio::test]
async fn an_open_that_cannot_be_accepted_is_answered_with_its_code() {
    let net = Net::new();
    let victim = Victim::new(&net, 65001);
    let own = victim.setup.config.router_id;
    let node = Node::start(victim.setup.clone());
    let table = [
        (fake_open(65009, victim.from), OpenError::BadPeerAs, "peer says AS 65009"),
        // RFC 6286: inside an AS identifiers differ.
        (fake_open(65001, own), OpenError::BadIdentifier, "peer has our own BGP identifier"),
        (
            Open { hold_time_secs: 1, ..victim.open() },
            OpenError::UnacceptableHoldTime,
            "unacceptable hold time",
        ),
    ];
    for (open, error, text) in table {
        speaker_net::until_listens(victim.to).await;
        let mut peer = FakePeer::connect(victim.from, victim.to).await;
        peer.send(&open.encode()).await;
        assert_eq!(peer.notification().await.error, NotificationError::Open(error));
        until(text, || async {
            let error = snapshot(&node, "bad").await.last_error;
            error.is_some_and(|error| error.text.contains(text))
        })
        .await;
    }
    victim.establish(victim.open()).await;
    until_state(&node, "bad", SessionState::Established).await;
}

/// Silence on a connection does not keep the peer's next one from becoming a session.
#[tokio::test]
async fn a_half_open_connection_holds_up_nothing() {
    let net = Net::new();
    let (victim, good) = Victim::with_good_peer(&net, 65001);
    let node = Node::start(victim.setup.clone());
    speaker_net::until_listens(victim.to).await;
    let silent = FakePeer::connect(victim.from, victim.to).await;
    let _peer = victim.establish(victim.open()).await;
    until_state(&node, "bad", SessionState::Established).await;
    until_state(&good, "victim", SessionState::Established).await;
    silent.until_closed().await;
}

#[tokio::test]
async fn silence_after_the_open_ends_after_the_hold_time() {
    let net = Net::new();
    let victim = Victim::new(&net, 65001);
    let node = Node::start(victim.setup.clone());
    speaker_net::until_listens(victim.to).await;
    let mut peer = FakePeer::connect(victim.from, victim.to).await;
    peer.send(&Open { hold_time_secs: 3, ..victim.open() }.encode()).await;
    assert_eq!(peer.notification().await.error, NotificationError::HoldTimerExpired);
    assert_eq!(snapshot(&node, "bad").await.established_count, 0);
}

/// Octets one by one are a handshake all the same. In a session they are no sign of life before they
/// make a message (RFC 4271 section 6.5).
#[tokio::test]
async fn octets_that_drip_in_are_read_and_do_not_feed_the_hold_timer() {
    let net = Net::new();
    let (victim, good) = Victim::with_good_peer(&net, 65001);
    let node = Node::start(victim.setup.clone());
    speaker_net::until_listens(victim.to).await;
    let mut peer = FakePeer::connect(victim.from, victim.to).await;
    let open = Open { hold_time_secs: 3, ..victim.open() };
    for octet in [open.encode(), keepalive()].concat() {
        peer.send(&[octet]).await;
        settled(Duration::from_millis(5)).await;
    }
    until_state(&node, "bad", SessionState::Established).await;
    let started = Instant::now();
    let endless = update(&plain(victim.from), prefixes(0..900));
    for octet in endless {
        if !peer.try_send(&[octet]).await {
            break;
        }
        settled(Duration::from_millis(100)).await;
        if snapshot(&node, "bad").await.state != SessionState::Established {
            break;
        }
    }
    assert!(started.elapsed() < Duration::from_secs(15), "{:?}", started.elapsed());
    let kept = records(&node).await;
    let text = &kept.last().expect("an error").text;
    assert!(text.contains("nothing was heard from the peer for 3 s"), "{text}");
    assert_eq!(snapshot(&good, "victim").await.established_count, 1, "others are not delayed");
}

/// Each connection is refused or replaced by the next; others go on, and the end of it is enough for
/// a session.
#[tokio::test]
async fn a_flood_of_connections_costs_others_nothing() {
    let net = Net::new();
    let (victim, good) = Victim::with_good_peer(&net, 65001);
    let node = Node::start(victim.setup.clone());
    until_state(&good, "victim", SessionState::Established).await;
    let open = victim.open().encode();
    let before = descriptors();
    let started = Instant::now();
    for _ in 0..1000 {
        let mut peer = FakePeer::connect(victim.from, victim.to).await;
        peer.try_send(&open).await;
    }
    let grown = descriptors().saturating_sub(before);
    let a_second = 1 + started.elapsed().as_secs() as usize;
    assert!(grown < 100 * a_second, "{grown} descriptors are kept for connections that have gone");
    let _peer = loop {
        settled(Duration::from_millis(200)).await;
        let mut peer = FakePeer::connect(victim.from, victim.to).await;
        if peer.try_send(&[open.clone(), keepalive()].concat()).await
            && peer.message().await.is_some_and(|m| m.message_type == MessageType::Open)
            && peer.message().await.is_some_and(|m| m.message_type == MessageType::Keepalive)
        {
            break peer;
        }
    };
    until_state(&node, "bad", SessionState::Established).await;
    let good = snapshot(&good, "victim").await;
    assert_eq!((good.state, good.established_count), (SessionState::Established, 1));
}

fn descriptors() -> usize {
    std::fs::read_dir("/proc/self/fd").expect("the process").count()
}

#[tokio::test]
async fn a_flood_of_notifications_ends_one_session_and_nothing_else() {
    let net = Net::new();
    let (victim, good) = Victim::with_good_peer(&net, 65001);
    let node = Node::start(victim.setup.clone());
    until_state(&good, "victim", SessionState::Established).await;
    let farewell = Notification::cease(CeaseReason::AdministrativeReset, Some("again")).encode();
    for _ in 0..20 {
        let mut peer = victim.establish(victim.open()).await;
        peer.try_send(&farewell.repeat(1000)).await;
        until("the session is down", || async {
            snapshot(&node, "bad").await.state != SessionState::Established
        })
        .await;
        settled(Duration::from_millis(150)).await;
    }
    let kept = records(&node).await;
    let received = kept.iter().find(|r| r.kind == ErrorKind::NotificationReceived);
    assert_eq!(received.map(|r| r.count), Some(20), "one a session: {kept:?}");
    assert_eq!(snapshot(&good, "victim").await.established_count, 1);
}

/// RFC 7606: a wrong ORIGIN is no reason to reset. All octets of the message are kept.
#[tokio::test]
async fn a_malformed_update_is_kept_with_all_its_octets() {
    let net = Net::new();
    let victim = Victim::new(&net, 65001);
    let node = Node::start(victim.setup.clone());
    let mut peer = victim.establish(victim.open()).await;
    let good = update(&plain(victim.from), prefixes(0..3));
    let mut bad = good.clone();
    bad[26] = 7; // ORIGIN's value, behind header, two lengths and three octets of the attribute
    peer.send(&good).await;
    for _ in 0..5000 {
        peer.send(&bad).await;
    }
    peer.send(&update(&plain(victim.from), prefixes(7..8))).await;
    until("the last route has come", || async {
        snapshot(&node, "bad").await.routes[&Family::Ipv4Unicast].received == 1
    })
    .await;
    assert_eq!(snapshot(&node, "bad").await.errors, 5000);
    let kept = records(&node).await;
    assert!(kept.len() <= 32, "{}", kept.len());
    let last = kept.last().expect("an error");
    assert_eq!(last.kind, ErrorKind::TreatedAsWithdraw);
    assert_eq!((&last.message.0[..], last.message_octets), (&bad[..], bad.len()));
    let named: Vec<String> = last.prefixes.iter().map(ToString::to_string).collect();
    assert_eq!(named, ["11.0.0.0/24", "11.0.1.0/24", "11.0.2.0/24"]);
    assert!(last.text.contains("ORIGIN"), "{}", last.text);
    assert_eq!(snapshot(&node, "bad").await.established_count, 1);
}

/// No penalty: a peer whose session ended by an error is welcome as soon as it connects again, however
/// long our own connect retry is.
#[tokio::test]
async fn a_peer_that_was_reset_may_come_back_at_once() {
    let net = Net::new();
    let mut victim = Victim::new(&net, 65001);
    victim.setup.config.peers.values_mut().for_each(|peer| peer.connect_retry_secs = 3600);
    let node = Node::start(victim.setup.clone());
    let overrun = message(2, &[0, 9, 0, 0]);
    for count in 1..=3 {
        let mut peer = victim.establish(victim.open()).await;
        until("it is established again", || async {
            snapshot(&node, "bad").await.established_count == count
        })
        .await;
        peer.send(&overrun).await;
        let expected = NotificationError::Update(UpdateError::MalformedAttributeList);
        assert_eq!(peer.notification().await.error, expected);
    }
    let kept = records(&node).await;
    let last = kept.last().expect("an error");
    assert_eq!((last.kind, &last.message.0[..]), (ErrorKind::MalformedMessage, &overrun[..]));
}

/// A million prefixes against a limit of a thousand, for each action.
#[tokio::test]
async fn a_million_prefixes_against_a_limit() {
    let stop = PrefixLimitAction::Stop { restart_after_secs: Some(3) };
    for action in [stop, PrefixLimitAction::Drop, PrefixLimitAction::Warn] {
        let net = Net::new();
        let (mut victim, good) = Victim::with_good_peer(&net, 65001);
        let bad = victim.setup.config.peers.get_mut("bad").expect("a peer");
        bad.prefix_limit = Some(PrefixLimit { prefixes_max: 1000, action });
        let node = Node::start(victim.setup.clone());
        let mut peer = victim.establish(victim.open()).await;
        // What is only warned about is taken in, which is not the point here.
        let count = if action == PrefixLimitAction::Warn { 20_000 } else { 1_000_000 };
        let reading = async {
            for first in (0..count).step_by(1000) {
                let octets = update(&plain(victim.from), prefixes(first..first + 1000));
                if !peer.try_send(&octets).await {
                    break;
                }
            }
            peer
        };
        let peer = reading.await;
        match action {
            PrefixLimitAction::Stop { .. } => {
                let told = peer.notification().await;
                let expected = NotificationError::Cease(CeaseReason::MaximumPrefixes);
                assert_eq!((told.error, &told.data[..]), (expected, &[0, 1, 1, 0, 0, 3, 232][..]));
                let stopped = snapshot(&node, "bad").await;
                assert_eq!(stopped.state, SessionState::Idle);
                assert!(stopped.comes_back_in_secs.is_some_and(|secs| secs <= 3));
                assert!(
                    node.handle.routes(RouteFilter::default()).await.expect("it runs").len() < 9
                );
                until_state(&node, "bad", SessionState::Active).await;
                victim.establish(victim.open()).await;
            }
            PrefixLimitAction::Drop | PrefixLimitAction::Warn => {
                let (received, dropped) = match action {
                    PrefixLimitAction::Drop => (1000, 999_000),
                    _ => (20_000, 0),
                };
                until("all has been looked at", || async {
                    let counts = snapshot(&node, "bad").await.routes[&Family::Ipv4Unicast];
                    (counts.received, counts.dropped) == (received, dropped)
                })
                .await;
                let kept = records(&node).await;
                let told: Vec<_> = kept.iter().map(|r| (r.kind, r.count)).collect();
                assert_eq!(told, [(ErrorKind::PrefixLimit, 1)], "told once");
                let bad = snapshot(&node, "bad").await;
                assert!(bad.last_error.is_some_and(|e| e.text.contains("1000 prefixes")));
                assert_eq!(bad.state, SessionState::Established);
            }
        }
        assert_eq!(snapshot(&good, "victim").await.established_count, 1);
    }
}

#[tokio::test]
async fn a_session_stopped_at_its_limit_waits_for_an_operator_or_another_limit() {
    let net = Net::new();
    let mut victim = Victim::new(&net, 65001);
    let action = PrefixLimitAction::Stop { restart_after_secs: None };
    let bad = victim.setup.config.peers.get_mut("bad").expect("a peer");
    bad.prefix_limit = Some(PrefixLimit { prefixes_max: 1, action });
    let node = Node::start(victim.setup.clone());
    let overflow = async || {
        let mut peer = victim.establish(victim.open()).await;
        peer.send(&update(&plain(victim.from), prefixes(0..2))).await;
        peer.until_closed().await;
        let stopped = snapshot(&node, "bad").await;
        assert_eq!((stopped.state, stopped.comes_back_in_secs), (SessionState::Idle, None));
        let text = stopped.last_error.expect("an error").text;
        assert!(text.contains("when an operator resets it"), "{text}");
    };
    overflow().await;
    let reset = Reset::Hard { text: String::new() };
    node.handle.reset("bad".into(), reset).await.expect("a peer");
    overflow().await;
    let mut config = node.config.clone();
    let bad = config.peers.get_mut("bad").expect("a peer");
    bad.prefix_limit = Some(PrefixLimit { prefixes_max: 2, action });
    node.handle.apply(config).expect("a valid configuration");
    until_state(&node, "bad", SessionState::Active).await;
    let mut peer = victim.establish(victim.open()).await;
    peer.send(&update(&plain(victim.from), prefixes(0..2))).await;
    until("both routes are there", || async {
        snapshot(&node, "bad").await.routes[&Family::Ipv4Unicast].received == 2
    })
    .await;
}

/// Routes that fill the largest message are taken in. Who cannot be told them is told nothing, and
/// keeps its session.
#[tokio::test]
async fn the_longest_path_and_the_largest_attributes_reset_nobody() {
    let net = Net::new();
    let (mut victim, good) = Victim::with_good_peer(&net, 65009);
    let bad = victim.setup.config.peers.get_mut("bad").expect("a peer");
    bad.import = vec![speaker_net::accept_all()];
    // A reader without long messages, in another AS.
    let small_from = net.address();
    let mut small = peer(victim.to.ip(), small_from.into(), 65010, true);
    small.export = vec![speaker_net::accept_all()];
    victim.setup.config.peers.insert("small".into(), small);
    let node = Node::start(victim.setup.clone());
    let mut open = fake_open(65009, victim.from);
    open.capabilities.push(Capability::ExtendedMessage);
    let mut peer = victim.establish(open).await;
    let mut small =
        FakePeer::established(small_from, victim.to, fake_open(65010, small_from)).await;
    // 4,096 AS numbers of four octets.
    let mut path = Vec::new();
    for segment in 0..16_u32 {
        path.extend([2, 255]);
        path.extend(
            (0..255).flat_map(|i| if segment + i == 0 { 65009 } else { 70_000 + i }.to_be_bytes()),
        );
    }
    path.extend([2, 16]);
    path.extend((0..16_u32).flat_map(|i| (70_000 + i).to_be_bytes()));
    let long = attributes(&path, victim.from);
    peer.send(&update(&long, prefixes(0..1))).await;
    // COMMUNITIES up to the end of a message of 65,535 octets.
    let first = [&[2, 1], &65009_u32.to_be_bytes()[..]].concat();
    let mut wide = attributes(&first, victim.from);
    let room = (65_535 - 23 - 4 - 4 - wide.len()) / 4 * 4;
    wide.extend([0xd0, 8]);
    wide.extend(u16::try_from(room).expect("a length").to_be_bytes());
    wide.extend((0..room as u32 / 4).flat_map(|i| (0x1_0000 + i).to_be_bytes()));
    peer.send(&update(&wide, prefixes(1..2))).await;
    let short = attributes(&first, victim.from);
    peer.send(&update(&short, prefixes(2..3))).await;
    let mut fib = Fib::new(good.feed);
    fib.until_has(&["11.0.0.0/24", "11.0.2.0/24"]).await;
    let routes = node.handle.routes(RouteFilter::default()).await.expect("it runs");
    let longest = routes.iter().find(|r| r.prefix.to_string() == "11.0.0.0/24").expect("a route");
    assert_eq!(longest.candidates[0].as_path.split(' ').count(), 4096);
    assert!(routes.iter().any(|r| r.prefix.to_string() == "11.0.1.0/24"), "taken in as well");
    // The one with short messages hears of the short route, and of the others at most a withdrawal.
    let heard = loop {
        let frame = small.until_message(MessageType::Update).await;
        assert!(frame.body.len() <= 4096 - 19);
        if frame.body.ends_with(&[24, 11, 0, 2]) {
            break frame;
        }
        let of_good_peer = frame.body.ends_with(&[26, 10, 9, 0, 0]);
        let withdraws = frame.body[..2] != [0, 0] && frame.body.ends_with(&[0, 0]);
        let end_of_rib = frame.body[..] == [0; 4];
        assert!(of_good_peer || withdraws || end_of_rib, "{frame:?}");
    };
    assert!(heard.body.len() < 100);
    for name in ["bad", "small", "good"] {
        let peer = snapshot(&node, name).await;
        assert_eq!((peer.state, peer.established_count), (SessionState::Established, 1), "{name}");
    }
}
