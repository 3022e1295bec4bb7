//! Known messages and what they say.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use bytes::{Bytes, BytesMut};
use cairn_bgp::prefix::{Families, Family, Prefix};
use cairn_bgp::wire::{
    AddPathFamilies, AddPathMode, Announcements, Capability, CeaseReason, Community, Frame,
    GracefulRestart, GracefulRestartFamily, LargeCommunity, MESSAGE_OCTETS_MAX,
    MESSAGE_OCTETS_MAX_EXTENDED, MessageFormat, MessageType, Negotiated, NextHop, Notification,
    NotificationError, Open, Origin, RefreshKind, RouteRefresh, SessionSort, Update, UpdateBody,
    UpdateContext, Withdrawals, attribute_type, end_of_rib, keepalive,
};

use super::build::{EBGP, IBGP};
use super::corpus;

#[test]
fn open_of_bird() {
    let open = open(corpus::OPEN_BIRD);
    assert_eq!((open.asn, open.hold_time_secs), (65001, 240));
    assert_eq!(open.router_id, Ipv4Addr::new(10, 0, 0, 1));
    assert_eq!(open.families(), Family::ALL.into_iter().collect::<Families>());
    let families = vec![
        GracefulRestartFamily { afi: 1, safi: 1, forwarding: false },
        GracefulRestartFamily { afi: 2, safi: 1, forwarding: true },
    ];
    let restart = GracefulRestart { restart_time_secs: 120, families, ..Default::default() };
    assert_eq!(open.graceful_restart(), Some(&restart));
    assert_eq!(
        open.capabilities,
        [
            Capability::multiprotocol(Family::Ipv4Unicast),
            Capability::multiprotocol(Family::Ipv6Unicast),
            Capability::RouteRefresh,
            Capability::ExtendedMessage,
            Capability::GracefulRestart(restart),
            Capability::FourOctetAs(65001),
            Capability::EnhancedRouteRefresh,
            Capability::LongLivedGracefulRestart(Vec::new()),
        ]
    );
    assert_eq!(open.encode(), corpus::octets(corpus::OPEN_BIRD));
}

/// What BIRD sent, decoded and encoded again, is what BIRD sent.
#[test]
fn recordings_of_bird() {
    let open = open(corpus::BIRD_OPEN);
    assert_eq!(open.asn, 4_200_000_001);
    assert!(open.offers_extended_next_hop() && open.offers(&Capability::ExtendedMessage));
    assert_eq!(open.encode(), corpus::octets(corpus::BIRD_OPEN));
    for (text, family, as4) in [
        (corpus::BIRD_UPDATE_IPV4, Family::Ipv4Unicast, true),
        (corpus::BIRD_UPDATE_IPV6, Family::Ipv6Unicast, true),
        (corpus::BIRD_UPDATE_IPV4_AS2, Family::Ipv4Unicast, false),
        (corpus::BIRD_UPDATE_IPV6_AS2, Family::Ipv6Unicast, false),
    ] {
        let octets = corpus::octets(text);
        let first_as = Some(4_200_000_001);
        let update = update(&octets, &UpdateContext { as4, first_as, ..EBGP });
        assert!(update.errors.is_empty());
        let attributes = update.attributes.clone().unwrap();
        assert_eq!(attributes.as_path().to_string(), "4200000001");
        assert_eq!(encode_as(MessageFormat { as4, ..FORMAT }, family, &update), octets);
    }
}

#[test]
fn open_of_frr() {
    let open = open(corpus::OPEN_FRR);
    assert_eq!(open.asn, 4_200_000_001);
    assert!(open.offers(&Capability::AddPath(vec![(1, 1, AddPathMode::Receive)])));
    let restart = open.graceful_restart().unwrap();
    assert!(restart.restarting && restart.notification);
    assert_eq!((restart.restart_time_secs, restart.families.len()), (120, 0));
    // The other form of the same capabilities says the same.
    assert_eq!(Open::decode(&open.encode()[19..]), Ok(open));
}

#[test]
fn open_without_capabilities_means_ipv4() {
    let old = open(corpus::OPEN_PLAIN);
    assert_eq!(old.families(), Families::NONE.with(Family::Ipv4Unicast));
    assert_eq!(old.encode(), corpus::octets(corpus::OPEN_PLAIN));
    let ours = open(corpus::OPEN_BIRD);
    let both = Negotiated::new(&ours, &old);
    assert_eq!(both.families, Families::NONE.with(Family::Ipv4Unicast));
    assert_eq!((both.hold_time_secs, both.sort), (90, SessionSort::Ibgp));
    assert!(!both.as4 && !both.route_refresh && !both.enhanced_route_refresh);
    // Who offers long messages receives them; the old speaker does not.
    assert_eq!(both.receive_octets_max, MESSAGE_OCTETS_MAX_EXTENDED);
    assert_eq!(both.send_octets_max, MESSAGE_OCTETS_MAX);
    let both = Negotiated::new(&ours, &open(corpus::OPEN_FRR));
    assert!(both.as4 && both.route_refresh && both.sort == SessionSort::Ebgp);
}

/// RFC 7911 section 4: what one side sends and the other receives, of families that both have.
#[test]
fn add_path_takes_both_sides() {
    use AddPathMode::{Both, Receive, Send};
    let (v4, v6) = (Family::Ipv4Unicast, Family::Ipv6Unicast);
    let side = |modes: &[(Family, AddPathMode)], families: &[Family]| {
        let entries = modes.iter().map(|(f, mode)| (f.afi(), f.safi(), *mode)).collect();
        let families = families.iter().copied().map(Capability::multiprotocol);
        let capabilities = families.chain([Capability::AddPath(entries)]).collect();
        Open { capabilities, ..open(corpus::OPEN_PLAIN) }
    };
    let ours = side(&[(v4, Both), (v6, Receive)], &[v4, v6]);
    let agreed = |theirs: &Open| {
        let AddPathFamilies { receive, send } = Negotiated::new(&ours, theirs).add_path;
        (receive.iter().collect::<Vec<_>>(), send.iter().collect::<Vec<_>>())
    };
    assert_eq!(agreed(&side(&[(v4, Both), (v6, Both)], &[v4, v6])), (vec![v4, v6], vec![v4]));
    assert_eq!(agreed(&side(&[(v4, Receive), (v6, Receive)], &[v4, v6])), (vec![], vec![v4]));
    assert_eq!(agreed(&side(&[(v4, Send), (v6, Send)], &[v4])), (vec![v4], vec![]));
    assert_eq!(agreed(&open(corpus::OPEN_PLAIN)), (vec![], vec![]));
}

#[test]
fn open_with_extended_parameters() {
    let open = open(corpus::OPEN_EXTENDED);
    assert_eq!(open.capabilities, [Capability::FourOctetAs(65001)]);
    let many =
        (0..40).map(|code| Capability::Unknown { code: 128 + code, value: vec![code; 20].into() });
    let open = Open { capabilities: open.capabilities.into_iter().chain(many).collect(), ..open };
    let octets = open.encode();
    assert_eq!(octets[28..30], [255, 255], "announced as RFC 9072 has it");
    assert_eq!(Open::decode(&octets[19..]), Ok(open));
}

#[test]
fn ipv4_update() {
    let octets = corpus::octets(corpus::UPDATE_IPV4);
    let update = update(&octets, &EBGP);
    let attributes = update.attributes.clone().unwrap();
    assert_eq!(attributes.origin(), Origin::Igp);
    assert_eq!(attributes.as_path().to_string(), "65001 65010");
    assert_eq!((attributes.neighbour_as(), attributes.origin_as()), (Some(65001), Some(65010)));
    assert_eq!((attributes.as_path_len(), attributes.med()), (2, Some(50)));
    assert_eq!(attributes.local_pref(), None);
    assert!(attributes.has_community(Community(65001 << 16 | 100)));
    let large = LargeCommunity { global: 65001, local1: 1, local2: 2 };
    assert_eq!(attributes.large_communities().collect::<Vec<_>>(), [large]);
    let next_hop = NextHop::new(IpAddr::V4(Ipv4Addr::new(10, 0, 0, 1)));
    assert_eq!(announced(&update), [(next_hop, prefixes(&["10.1.0.0/16", "10.2.3.0/24"]))]);
    assert_eq!(update.withdrawn_len(), 0);
    assert!(update.errors.is_empty() && update.end_of_rib.is_none());
    // What is said back is what was heard, to the octet.
    let again = encode(Family::Ipv4Unicast, &update);
    assert_eq!(again, octets);
}

#[test]
fn ipv6_update() {
    let octets = corpus::octets(corpus::UPDATE_IPV6);
    let update = update(&octets, &IBGP);
    let next_hop = NextHop {
        address: "2001:db8::1".parse().unwrap(),
        link_local: Some("fe80::1".parse().unwrap()),
    };
    assert_eq!(announced(&update), [(next_hop, prefixes(&["2001:db8:1::/48", "::/0"]))]);
    assert_eq!(update.attributes.as_ref().unwrap().local_pref(), Some(200));
    assert_eq!(encode(Family::Ipv6Unicast, &update), octets);
}

#[test]
fn withdrawals() {
    let octets = corpus::octets(corpus::WITHDRAW_IPV4);
    let gone = prefixes(&["10.1.0.0/16", "0.0.0.0/0"]);
    assert_eq!(update(&octets, &EBGP).withdrawn().collect::<Vec<_>>(), gone);
    let again: Vec<_> = Withdrawals::new(FORMAT, Family::Ipv4Unicast, gone).collect();
    assert_eq!(again, [octets]);
    let octets = corpus::octets(corpus::WITHDRAW_IPV6);
    let gone = prefixes(&["2001:db8:1::/48"]);
    let update = update(&octets, &EBGP);
    assert_eq!(update.withdrawn().collect::<Vec<_>>(), gone);
    assert!(update.attributes.is_none() && update.end_of_rib.is_none());
}

#[test]
fn end_of_rib_markers() {
    for (text, family) in [
        (corpus::END_OF_RIB_IPV4, Family::Ipv4Unicast),
        (corpus::END_OF_RIB_IPV6, Family::Ipv6Unicast),
    ] {
        let octets = corpus::octets(text);
        assert_eq!(update(&octets, &EBGP).end_of_rib, Some(family));
        assert_eq!(end_of_rib(family), octets);
        let extended = corpus::octets(corpus::END_OF_RIB_IPV6_EXTENDED);
        assert_eq!(self::update(&extended, &EBGP).end_of_rib, Some(Family::Ipv6Unicast));
        let foreign = UpdateContext { families: Families::NONE, ..EBGP };
        assert_eq!(update(&octets, &foreign).end_of_rib, None, "of a family that is not there");
    }
}

/// RFC 6793 section 4.2.3: AS4_PATH is ignored only where both aggregators came and the 2-octet one is
/// not AS_TRANS.
#[test]
fn when_as4_path_is_ignored() {
    let path = |octets: &[u8]| {
        let update = update(octets, &UpdateContext { as4: false, ..EBGP });
        assert_eq!(update.errors, []);
        update.attributes.unwrap().as_path().to_string()
    };
    let octets = corpus::octets(corpus::REGRESSION_AS4_PATH_TWO_OCTET_AGGREGATOR);
    assert_eq!(path(&octets), "65001 4200000001 65010");
    let mut both = octets[..octets.len() - 4].to_vec();
    both.extend(super::build::hex("c01208 fa56ea01 0a000009 18c00002"));
    let length = u16::try_from(both.len()).unwrap().to_be_bytes();
    both[16..18].copy_from_slice(&length);
    both[22] += 11;
    assert_eq!(path(&both), "65001 23456 65010");
}

#[test]
fn two_octet_as_numbers() {
    let octets = corpus::octets(corpus::UPDATE_AS2);
    let update = update(&octets, &UpdateContext { as4: false, ..EBGP });
    let attributes = update.attributes.clone().unwrap();
    assert_eq!(attributes.as_path().to_string(), "65001 4200000001 65010");
    let aggregator = [4_200_000_001_u32.to_be_bytes(), [10, 0, 0, 9]].concat();
    assert_eq!(attributes.value(attribute_type::AGGREGATOR), Some(aggregator.as_slice()));
    assert_eq!(attributes.value(attribute_type::AS4_PATH), None);
    assert!(update.errors.is_empty());
    // AS4_PATH is longer on the way back, because it then holds the whole path.
    let format = MessageFormat { as4: false, ..FORMAT };
    let next_hop = update.announcements().next().unwrap().next_hop;
    let mut again = Announcements::new(
        format,
        Family::Ipv4Unicast,
        &attributes,
        next_hop,
        prefixes(&["10.0.0.0/8"]),
    )
    .unwrap();
    let again = again.next().unwrap().bytes;
    let again = self::update(&again, &UpdateContext { as4: false, ..EBGP });
    assert_eq!(again.attributes, Some(attributes));
}

#[test]
fn reflected_update() {
    let octets = corpus::octets(corpus::UPDATE_REFLECTED);
    let update = update(&octets, &IBGP);
    let attributes = update.attributes.clone().unwrap();
    assert_eq!(attributes.originator_id(), Some(Ipv4Addr::new(10, 0, 0, 7)));
    let clusters = [Ipv4Addr::new(10, 0, 0, 200), Ipv4Addr::new(10, 0, 0, 201)];
    assert_eq!(attributes.cluster_list().collect::<Vec<_>>(), clusters);
    assert_eq!(attributes.cluster_list_len(), 2);
    assert!(attributes.as_path().is_empty() && attributes.neighbour_as().is_none());
    assert_eq!(attributes.value(99), Some([0, 1].as_slice()));
    assert_eq!(encode(Family::Ipv4Unicast, &update), octets);
}

#[test]
fn ipv4_by_an_ipv6_next_hop() {
    let octets = corpus::octets(corpus::UPDATE_EXTENDED_NEXT_HOP);
    let context = UpdateContext { extended_next_hop: true, ..EBGP };
    let next_hop = NextHop::new("fe80::2".parse().unwrap());
    assert_eq!(announced(&update(&octets, &context)), [(next_hop, prefixes(&["10.5.0.0/16"]))]);
    let body = &octets[19..];
    UpdateBody::split(body).unwrap().decode(&EBGP).expect_err("not negotiated (RFC 8950)");
}

#[test]
fn link_local_next_hop_behind_an_unspecified_one() {
    let mut octets = corpus::octets(corpus::UPDATE_IPV6);
    let global = octets.windows(4).position(|w| w == [0x20, 0x01, 0x0d, 0xb8]).unwrap();
    octets[global..global + 16].fill(0);
    let update = update(&octets, &IBGP);
    let next_hop = NextHop::new(IpAddr::V6("fe80::1".parse::<Ipv6Addr>().unwrap()));
    assert_eq!(update.announcements().next().unwrap().next_hop, next_hop);
}

#[test]
fn notifications() {
    let octets = corpus::octets(corpus::NOTIFICATION_SHUTDOWN);
    let shutdown = Notification::decode(&octets[19..]).unwrap();
    assert_eq!(shutdown.to_string(), "cease: administrative shutdown: \"upgrade!\"");
    assert_eq!(shutdown.encode(), octets);
    let reason = CeaseReason::AdministrativeShutdown;
    assert_eq!(Notification::cease(reason, Some("upgrade!")), shutdown);
    let octets = corpus::octets(corpus::NOTIFICATION_HARD_RESET);
    let reset = Notification::decode(&octets[19..]).unwrap();
    assert_eq!(reset.to_string(), "cease: hard reset: hold timer expired");
    let expired = Notification::new(NotificationError::HoldTimerExpired);
    assert_eq!(expired.into_hard_reset().encode(), octets);
    assert_eq!(Notification::decode(&[6]), None);
}

#[test]
fn shutdown_texts_are_cut_and_cleaned() {
    let long = "ä".repeat(200);
    let cease = Notification::cease(CeaseReason::AdministrativeReset, Some(&long));
    assert_eq!((cease.data.len(), cease.data[0]), (255, 254), "cut between two characters");
    assert_eq!(cease.shutdown_text(), Some("ä".repeat(127)));
    let hostile = Notification::decode(b"\x06\x02\x05a\x1b[2m\xff").unwrap();
    assert_eq!(hostile.shutdown_text().as_deref(), Some("a\u{fffd}[2m"));
    let overlong = Notification::decode(b"\x06\x02\xffa").unwrap();
    assert_eq!(overlong.shutdown_text(), None);
    // Other reasons have no text: the octets are no length.
    assert_eq!(Notification::cease(CeaseReason::MaximumPrefixes, Some("x")).data.len(), 0);
}

#[test]
fn keepalive_and_refresh() {
    assert_eq!(keepalive(), corpus::octets(corpus::KEEPALIVE));
    let octets = corpus::octets(corpus::ROUTE_REFRESH);
    let refresh = RouteRefresh::decode(&octets[19..]).unwrap();
    assert_eq!(refresh, RouteRefresh::new(Family::Ipv6Unicast, RefreshKind::Request));
    assert_eq!(refresh.encode(), octets);
}

#[test]
fn frames_in_a_stream() {
    let stream: Vec<u8> = corpus::ALL.iter().flat_map(|text| corpus::octets(text)).collect();
    // Whole, and octet by octet, the same messages come out.
    for portion in [stream.len(), 1, 7] {
        let mut buffer = BytesMut::new();
        let mut frames = Vec::new();
        for portion in stream.chunks(portion) {
            buffer.extend_from_slice(portion);
            while let Some(frame) = Frame::split(&mut buffer, MESSAGE_OCTETS_MAX).unwrap() {
                frames.push(frame);
            }
        }
        assert!(buffer.is_empty());
        let bodies = frames.iter().map(|frame| frame.body.to_vec()).collect::<Vec<_>>();
        let expected =
            corpus::ALL.iter().map(|text| corpus::octets(text)[19..].to_vec()).collect::<Vec<_>>();
        assert_eq!(bodies, expected);
        assert_eq!(frames[0].message_type, MessageType::Open);
    }
}

const FORMAT: MessageFormat =
    MessageFormat { octets_max: MESSAGE_OCTETS_MAX, as4: true, extended_next_hop: false };

fn open(text: &str) -> Open {
    Open::decode(&corpus::octets(text)[19..]).unwrap()
}

fn update<'a>(octets: &'a [u8], context: &UpdateContext) -> Update<'a> {
    UpdateBody::split(&octets[19..]).unwrap().decode(context).unwrap()
}

fn announced(update: &Update<'_>) -> Vec<(NextHop, Vec<Prefix>)> {
    update.announcements().map(|a| (a.next_hop, a.prefixes.iter().collect())).collect()
}

fn encode(family: Family, update: &Update<'_>) -> Bytes {
    encode_as(FORMAT, family, update)
}

fn encode_as(format: MessageFormat, family: Family, update: &Update<'_>) -> Bytes {
    let announcement = update.announcements().next().unwrap();
    let attributes = update.attributes.as_ref().unwrap();
    let mut messages = Announcements::new(
        format,
        family,
        attributes,
        announcement.next_hop,
        announcement.prefixes,
    )
    .unwrap();
    let message = messages.next().unwrap();
    assert_eq!(messages.next(), None);
    message.bytes
}

fn prefixes(texts: &[&str]) -> Vec<Prefix> {
    texts.iter().map(|text| text.parse().unwrap()).collect()
}
