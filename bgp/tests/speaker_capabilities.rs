//! What sessions agree on beyond plain BGP-4: next hops, long messages, marked refreshes.

mod speaker_net;

use std::net::IpAddr;

use bytes::Bytes;
use cairn_bgp::prefix::{Family, Prefix};
use cairn_bgp::rib::RouteFilter;
use cairn_bgp::status::NegotiatedSnapshot;
use cairn_bgp::wire::{
    AddPathMode, Announcements, Capability, MESSAGE_OCTETS_MAX_EXTENDED, MessageFormat,
    MessageType, NextHop, Origin, PathAttributes, PathPrefix, RefreshKind, RouteRefresh,
    Withdrawals,
};
use speaker_net::{FakePeer, Fib, Net, Node, Setup, accept_all, fake_open, originate, until};

async fn negotiated(node: &Node, name: &str) -> NegotiatedSnapshot {
    until("the session is established", || async {
        let snapshot = node.handle.snapshot().await.expect("the speaker runs");
        snapshot.peers[name].negotiated.is_some()
    })
    .await;
    let snapshot = node.handle.snapshot().await.expect("the speaker runs");
    snapshot.peers[name].negotiated.clone().expect("established")
}

fn extended_next_hop(setup: &mut Setup) {
    setup.config.peers.values_mut().for_each(|peer| peer.extended_next_hop = true);
}

/// Takes the IPv4 address away from a speaker's interface.
fn without_ipv4(setup: &Setup) {
    let address = setup.config.router_id;
    speaker_net::ip(&format!("addr del {address}/32 dev d{}", address.octets()[3]));
}

/// Two speakers whose session runs over IPv6.
fn over_ipv6(net: &Net) -> (Setup, Setup) {
    let (mut a, mut b) = (net.speaker(65001), net.speaker(65001));
    speaker_net::connect_over_ipv6(&mut a, "a", &mut b, "b");
    originate(&mut a.config, &["10.1.0.0/26", "fd00:1::/122"]);
    (a, b)
}

/// RFC 8950, with and without IPv4 addresses on the interfaces.
#[tokio::test]
async fn ipv4_routes_have_ipv6_next_hops_where_both_sides_want_it() {
    for has_ipv4 in [true, false] {
        let net = Net::new();
        let (mut a, mut b) = over_ipv6(&net);
        extended_next_hop(&mut a);
        extended_next_hop(&mut b);
        if !has_ipv4 {
            without_ipv4(&a);
            without_ipv4(&b);
        }
        let own = a.config.listen[0].ip().to_string();
        let (a, b) = (Node::start(a), Node::start(b));
        assert!(negotiated(&a, "b").await.ipv4_via_ipv6);
        let mut fib = Fib::new(b.feed);
        fib.until_exactly(&["10.1.0.0/26", "fd00:1::/122"]).await;
        assert_eq!(fib.next_hop("10.1.0.0/26"), own);
        assert_eq!(fib.next_hop("fd00:1::/122"), own);
        let mut config = a.config.clone();
        config.originate.remove(&"10.1.0.0/26".parse().expect("a prefix"));
        a.handle.apply(config).expect("a valid configuration");
        fib.until_exactly(&["fd00:1::/122"]).await;
    }
}

/// IPv4 over an IPv6 session needs an IPv4 next hop, or RFC 8950 on both sides.
#[tokio::test]
async fn a_family_without_a_next_hop_is_left_out_with_the_reason() {
    for (offered, reason) in [(false, "no own address of this family"), (true, "RFC 8950")] {
        let net = Net::new();
        let (mut a, mut b) = over_ipv6(&net);
        // Nobody waits for the end of routes that will not come.
        b.config.selection_deferral_secs = 3600;
        if offered {
            extended_next_hop(&mut a);
        }
        without_ipv4(&a);
        let (a, b) = (Node::start(a), Node::start(b));
        let agreed = negotiated(&a, "b").await;
        assert_eq!(agreed.families, [Family::Ipv6Unicast]);
        let [missing] = &agreed.missing[..] else { panic!("{agreed:?}") };
        assert_eq!(missing.family, Family::Ipv4Unicast);
        assert!(missing.reason.contains(reason), "{}", missing.reason);
        let mut fib = Fib::new(b.feed);
        fib.until_in_sync().await;
        fib.until_exactly(&["fd00:1::/122"]).await;
    }
}

#[tokio::test]
async fn ipv6_next_hops_of_an_ipv4_session_are_the_configured_one_else_that_of_the_interface() {
    let net = Net::new();
    for configured in [None, Some("2001:db8:ffff::1")] {
        let (mut a, b) = net.pair(65001, 65001);
        originate(&mut a.config, &["fd00:1::/122"]);
        let address = configured.map(|address| address.parse().expect("an address"));
        a.config.peers.values_mut().for_each(|peer| peer.next_hop_ipv6 = address);
        let number = a.config.router_id.octets()[3];
        let own = format!("2001:db8::{number}");
        let (_a, b) = (Node::start(a), Node::start(b));
        let mut fib = Fib::new(b.feed);
        fib.until_has(&["fd00:1::/122"]).await;
        assert_eq!(fib.next_hop("fd00:1::/122"), configured.unwrap_or(&own));
    }
}

/// RFC 8654: a route that needs a long message.
#[tokio::test]
async fn long_messages_are_offered_and_used() {
    let net = Net::new();
    let (mut a, b) = net.pair(65001, 65001);
    originate(&mut a.config, &["10.1.0.0/26"]);
    let originations = a.config.originate.values_mut();
    originations
        .for_each(|origination| origination.communities = (1 << 16..(1 << 16) + 5000).collect());
    let (a, b) = (Node::start(a), Node::start(b));
    assert_eq!(negotiated(&a, "b").await.send_octets_max, MESSAGE_OCTETS_MAX_EXTENDED);
    let mut fib = Fib::new(b.feed);
    fib.until_has(&["10.1.0.0/26"]).await;
    let communities = fib.routes["10.1.0.0/26"].paths[0].attributes.path.communities().count();
    assert_eq!(communities, 5000);
}

/// RFC 7911 with a peer on the wire that sends several paths.
#[tokio::test]
async fn several_paths_are_received_where_both_sides_want_it() {
    let net = Net::new();
    for wanted in [true, false] {
        let mut victim = net.speaker(65001);
        let from = net.address();
        let to = victim.config.listen[0];
        let mut peer = speaker_net::peer(to.ip(), IpAddr::V4(from), 65001, true);
        peer.add_path.receive = wanted;
        victim.config.peers.insert("peer".into(), peer);
        let node = Node::start(victim);
        let mut open = fake_open(65001, from);
        open.capabilities.push(Capability::AddPath(vec![(1, 1, AddPathMode::Both)]));
        let mut peer = FakePeer::established(from, to, open).await;
        let agreed = negotiated(&node, "peer").await;
        assert_eq!(agreed.receives_paths.len(), usize::from(wanted));
        assert!(agreed.sends_paths.is_empty());
        if !wanted {
            continue;
        }
        let prefix: Prefix = "10.9.1.0/24".parse().expect("a prefix");
        let path = |path_id| PathPrefix { prefix, path_id };
        let format = MessageFormat { octets_max: 4096, as4: true, extended_next_hop: false };
        let plain = PathAttributes::originated(Origin::Igp);
        let family = Family::Ipv4Unicast;
        for (path_id, host) in [(7, 70), (3, 30)] {
            let next_hop = NextHop::new(IpAddr::from([198, 51, 100, host]));
            let mut messages =
                Announcements::new(format, family, &plain, next_hop, [path(path_id)])
                    .expect("it fits");
            peer.send(&messages.next().expect("a message").bytes).await;
        }
        let candidates = async || {
            let routes = node.handle.routes(RouteFilter::default()).await.expect("it runs");
            let candidates = routes.into_iter().flat_map(|route| route.candidates);
            candidates.map(|c| (c.path_id, c.next_hop)).collect::<Vec<_>>()
        };
        let hop = |host: u8| Some(format!("198.51.100.{host}"));
        let both = [(Some(3), hop(30)), (Some(7), hop(70))];
        until("both paths are there", async || candidates().await == both).await;
        let withdrawal = Withdrawals::new(format, family, [path(3)]).next().expect("a message");
        peer.send(&withdrawal).await;
        until("the other one is left", async || candidates().await == both[1..]).await;
    }
}

/// RFC 7911 between three speakers: what one announces and the middle one learns and originates reaches the
/// third one as two paths, and goes path by path.
#[tokio::test]
async fn several_paths_are_sent_where_both_sides_want_it() {
    let net = Net::new();
    let (mut a, mut middle) = net.pair(65001, 65002);
    let mut c = net.speaker(65002);
    speaker_net::connect(&mut middle, "middle", &mut c, "c");
    originate(&mut a.config, &["10.1.0.0/26"]);
    originate(&mut middle.config, &["10.1.0.0/26"]);
    let all = accept_all();
    for setup in [&mut a, &mut middle, &mut c] {
        for peer in setup.config.peers.values_mut() {
            (peer.import, peer.export) = (vec![all.clone()], vec![all.clone()]);
        }
    }
    let to_c = middle.config.peers.get_mut("c").expect("a peer");
    to_c.add_path.send_max = 4;
    c.config.peers.values_mut().for_each(|peer| peer.add_path.receive = true);
    let (_a, middle, c) = (Node::start(a), Node::start(middle), Node::start(c));
    let agreed = negotiated(&c, "middle").await;
    assert!(!agreed.receives_paths.is_empty() && agreed.sends_paths.is_empty());
    let paths = async || {
        let routes = c.handle.routes(RouteFilter::default()).await.expect("it runs");
        let candidates = routes.into_iter().flat_map(|route| route.candidates);
        candidates.map(|c| (c.path_id.is_some(), c.as_path)).collect::<Vec<_>>()
    };
    let both = [(true, String::new()), (true, "65001".to_owned())];
    until("both paths are there", async || paths().await == both).await;
    let mut config = middle.config.clone();
    config.originate.clear();
    middle.handle.apply(config).expect("a valid configuration");
    until("the learned one is left", async || paths().await == both[1..]).await;
}

/// RFC 7313 with a peer on the wire, in both roles.
#[tokio::test]
async fn refreshes_are_marked_and_their_marks_are_heeded() {
    let net = Net::new();
    let mut victim = net.speaker(65001);
    let from = net.address();
    let to = victim.config.listen[0];
    let peer = speaker_net::peer(to.ip(), IpAddr::V4(from), 65001, true);
    victim.config.peers.insert("peer".into(), peer);
    originate(&mut victim.config, &["10.1.0.0/26"]);
    let node = Node::start(victim);
    let mut open = fake_open(65001, from);
    open.capabilities.extend([Capability::RouteRefresh, Capability::EnhancedRouteRefresh]);
    let mut peer = FakePeer::established(from, to, open).await;
    // The initial route and End-of-RIB.
    let first = peer.until_message(MessageType::Update).await.body;
    let end = peer.until_message(MessageType::Update).await.body;
    assert_eq!(&end[..], [0; 4]);
    let refresh = |kind| RouteRefresh::new(Family::Ipv4Unicast, kind).encode();
    peer.send(&refresh(RefreshKind::Request)).await;
    for expected in [Some(RefreshKind::Begin), None, Some(RefreshKind::End)] {
        let frame = peer.message().await.expect("a message");
        match expected {
            Some(kind) => {
                assert_eq!(RouteRefresh::decode(&frame.body).map(|r| r.kind), Ok(kind));
            }
            None => assert_eq!(frame.body, first, "the route again"),
        }
    }
    let announce = |prefixes: &[u8]| {
        let attributes = [
            &[0x40, 1, 1, 0, 0x40, 2, 0, 0x40, 3, 4][..],
            &from.octets(),
            &[0x40, 5, 4, 0, 0, 0, 100],
        ]
        .concat();
        let nlri = prefixes.iter().flat_map(|third| [24, 10, 9, *third]);
        let mut message = [&[0xff; 16][..], &[0, 0, 2, 0, 0, 0, attributes.len() as u8]].concat();
        message.extend(attributes);
        message.extend(nlri);
        message[17] = message.len() as u8;
        Bytes::from(message)
    };
    let received = async || {
        let snapshot = node.handle.snapshot().await.expect("it runs");
        snapshot.peers["peer"].routes[&Family::Ipv4Unicast].received
    };
    peer.send(&announce(&[1, 2])).await;
    until("both routes are there", async || received().await == 2).await;
    // Without a beginning, an end sweeps nothing: what follows it has been read after it.
    peer.send(&[refresh(RefreshKind::End), announce(&[3])].concat()).await;
    until("the third route is there", async || received().await == 3).await;
    peer.send(&[refresh(RefreshKind::Begin), announce(&[2])].concat()).await;
    peer.send(&refresh(RefreshKind::End)).await;
    until("only what was sent again is left", async || received().await == 1).await;
}
