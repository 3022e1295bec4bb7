//! What is written can be read again and says the same.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::sync::Arc;

use bytes::{Bytes, BytesMut};
use cairn_bgp::prefix::{Families, Family, Ipv4Prefix, Ipv6Prefix, Prefix};
use cairn_bgp::wire::{
    AddPathMode, Announcements, Capability, Community, EncodeError, ExtendedNextHop, Frame,
    GracefulRestart, GracefulRestartFamily, LargeCommunity, MESSAGE_OCTETS_MAX,
    MESSAGE_OCTETS_MAX_EXTENDED, MessageFormat, NextHop, Notification, NotificationError, Open,
    Origin, PathAttributes, PathPrefix, RefreshKind, RouteRefresh, SessionSort, UpdateBody,
    UpdateContext, Withdrawals,
};
use proptest::collection::vec;
use proptest::option;
use proptest::prelude::*;

use super::build::{IBGP, attribute, body, split_attributes};

proptest! {
    #[test]
    fn opens(open in open()) {
        let octets = open.encode();
        prop_assert!(octets.len() <= MESSAGE_OCTETS_MAX);
        prop_assert_eq!(Open::decode(&octets[19..]), Ok(open));
    }

    #[test]
    fn notifications(code: u8, subcode: u8, data in vec(any::<u8>(), 0..300)) {
        let error = NotificationError::from_codes(code, subcode);
        prop_assert_eq!((error.code(), error.subcode()), (code, subcode));
        let notification = Notification::with_data(error, data.into());
        prop_assert!(!notification.to_string().is_empty());
        let octets = notification.encode();
        prop_assert_eq!(Notification::decode(&octets[19..]), Some(notification));
    }

    #[test]
    fn refreshes(afi: u16, safi: u8, subtype: u8) {
        let octets = [&afi.to_be_bytes(), [subtype, safi].as_slice()].concat();
        let refresh = RouteRefresh::decode(&octets).unwrap();
        prop_assert_eq!(&refresh.encode()[19..], octets.as_slice());
        prop_assert_eq!(matches!(refresh.kind, RefreshKind::Unknown(_)), subtype > 2);
    }

    #[test]
    fn announcements(
        attributes in path_attributes(),
        (family, next_hop, prefixes) in routes(),
        as4: bool,
        octets_max in 1200_usize..5000,
    ) {
        let format = MessageFormat { octets_max, as4, extended_next_hop: true };
        let context = UpdateContext { as4, extended_next_hop: true, ..IBGP };
        let messages =
            Announcements::new(format, family, &attributes, next_hop, prefixes.iter().copied());
        let messages = match messages {
            Ok(messages) => messages.collect::<Vec<_>>(),
            Err(EncodeError::TooLarge { octets, octets_max }) => {
                prop_assert!(octets > octets_max && attributes.as_bytes().len() > 300);
                return Ok(());
            }
            Err(error) => return Err(TestCaseError::fail(error.to_string())),
        };
        let mut read = Vec::new();
        for (at, message) in messages.iter().enumerate() {
            prop_assert!(message.bytes.len() <= octets_max);
            let full = octets_max - message.bytes.len() < 17;
            prop_assert!(full || at + 1 == messages.len(), "only the last one has room left");
            let address = match next_hop.address {
                IpAddr::V4(address) => address.octets().to_vec(),
                IpAddr::V6(address) => {
                    let link_local = next_hop.link_local.map(|a| a.octets()).into_iter().flatten();
                    address.octets().into_iter().chain(link_local).collect()
                }
            };
            prop_assert_eq!(&message.bytes[message.next_hop.clone()], address.as_slice());
            let update = UpdateBody::split(&message.bytes[19..]).unwrap().decode(&context).unwrap();
            prop_assert_eq!(&update.errors, &[]);
            prop_assert_eq!(update.attributes.as_deref(), Some(&attributes));
            prop_assert_eq!(update.withdrawn_len(), 0);
            let announced = update.announcements().collect::<Vec<_>>();
            prop_assert_eq!(announced.len(), 1);
            prop_assert_eq!(announced[0].next_hop, next_hop);
            prop_assert_eq!(announced[0].prefixes.len(), message.prefixes);
            read.extend(announced[0].prefixes);
        }
        prop_assert_eq!(read, prefixes);
    }

    /// With identifiers of paths (RFC 7911), both ways.
    #[test]
    fn paths((family, next_hop, prefixes) in routes(), ids: [u32; 3], octets_max in 300_usize..5000) {
        let format = MessageFormat { octets_max, as4: true, extended_next_hop: true };
        let families = Families::NONE.with(family);
        let context = UpdateContext { extended_next_hop: true, path_ids: families, ..IBGP };
        let numbered = prefixes.iter().zip(ids.iter().cycle());
        let paths = numbered.map(|(prefix, path_id)| PathPrefix { prefix: *prefix, path_id: *path_id });
        let paths: Vec<PathPrefix> = paths.collect();
        let attributes = PathAttributes::originated(Origin::Igp);
        let mut read = Vec::new();
        let announcements =
            Announcements::new(format, family, &attributes, next_hop, paths.iter().copied());
        for message in announcements.unwrap() {
            prop_assert!(message.bytes.len() <= octets_max);
            let update = UpdateBody::split(&message.bytes[19..]).unwrap().decode(&context).unwrap();
            prop_assert_eq!(&update.errors, &[]);
            let announced = update.announcements().collect::<Vec<_>>();
            prop_assert_eq!((announced.len(), announced[0].prefixes.len()), (1, message.prefixes));
            prop_assert!(announced[0].prefixes.has_path_ids());
            read.extend(announced[0].prefixes.paths());
        }
        prop_assert_eq!(&read, &paths);
        read.clear();
        for message in Withdrawals::new(format, family, paths.iter().copied()) {
            prop_assert!(message.len() <= octets_max);
            let update = UpdateBody::split(&message[19..]).unwrap().decode(&context).unwrap();
            prop_assert_eq!((update.announcements().count(), update.end_of_rib), (0, None));
            read.extend(update.withdrawn_runs().flat_map(|prefixes| prefixes.paths()));
        }
        prop_assert_eq!(read, paths);
    }

    #[test]
    fn withdrawals((family, _, prefixes) in routes(), octets_max in 100_usize..5000) {
        let format = MessageFormat { octets_max, as4: true, extended_next_hop: false };
        let mut read = Vec::new();
        for message in Withdrawals::new(format, family, prefixes.iter().copied()) {
            prop_assert!(message.len() <= octets_max);
            let update = UpdateBody::split(&message[19..]).unwrap().decode(&IBGP).unwrap();
            prop_assert_eq!((update.announcements().count(), update.end_of_rib), (0, None));
            read.extend(update.withdrawn());
        }
        prop_assert_eq!(read, prefixes);
    }

    /// The two texts of a prefix, and the range of its length.
    #[test]
    fn prefix_texts(prefix in prefix(), longer: u8) {
        let text = prefix.to_string();
        prop_assert_eq!(text.parse::<Prefix>(), Ok(prefix));
        prop_assert_eq!(Prefix::from(ipnet::IpNet::from(prefix)), prefix);
        let bits = prefix.family().bits();
        prop_assert_eq!(Ipv4Prefix::new(0, longer).is_some(), longer <= 32);
        prop_assert_eq!(Ipv6Prefix::new(0, longer).is_some(), longer <= 128);
        // A prefix holds what it becomes by more bits, and not the other way round.
        let len = longer.clamp(prefix.len(), bits);
        let inside = match prefix {
            Prefix::V4(p) => Prefix::V4(Ipv4Prefix::new(p.addr(), len).unwrap()),
            Prefix::V6(p) => Prefix::V6(Ipv6Prefix::new(p.addr(), len).unwrap()),
        };
        prop_assert!(prefix.contains(inside));
        prop_assert_eq!(inside.contains(prefix), inside == prefix);
    }

    #[test]
    fn other_families_are_left_out(prefixes in vec(prefix(), 0..200)) {
        let of = |family| prefixes.iter().copied().filter(move |p: &Prefix| p.family() == family);
        for family in Family::ALL {
            let format = MessageFormat { octets_max: 200, as4: true, extended_next_hop: false };
            let next_hop = match family {
                Family::Ipv4Unicast => NextHop::new(IpAddr::V4(Ipv4Addr::new(10, 0, 0, 1))),
                Family::Ipv6Unicast => NextHop::new("2001:db8::1".parse().unwrap()),
            };
            let attributes = PathAttributes::originated(Origin::Igp);
            let messages =
                Announcements::new(format, family, &attributes, next_hop, prefixes.iter().copied());
            let count = messages.unwrap().map(|message| message.prefixes).sum::<usize>();
            prop_assert_eq!(count, of(family).count());
        }
    }

    /// Where the multiprotocol attributes stand changes nothing in what the others say.
    #[test]
    fn attributes_do_not_depend_on_their_neighbours(
        attributes in path_attributes(),
        reach_at in 0_usize..8,
        unreach_at in 0_usize..8,
    ) {
        let reach = [&[0, 2, 1, 16, 0x20, 1], [0; 13].as_slice(), &[1, 0, 8, 0x20]].concat();
        let unreach = [0, 2, 1, 8, 0x30];
        let mut tlvs = split_attributes(attributes.as_bytes());
        tlvs.insert(reach_at.min(tlvs.len()), attribute(0x80, 14, &reach));
        tlvs.insert(unreach_at.min(tlvs.len()), attribute(0x80, 15, &unreach));
        let octets = body(&[], &tlvs.concat(), &[]);
        let located = UpdateBody::split(&octets).unwrap().locate().unwrap();
        prop_assert_eq!(located.attribute_octets(), attributes.as_bytes());
        let checked = located.check(&IBGP).unwrap();
        let update = located.finish(&IBGP, &checked).unwrap();
        prop_assert_eq!(update.attributes.as_deref(), Some(&attributes));
        prop_assert_eq!((update.announcements().count(), update.withdrawn_len()), (1, 1));
    }

    /// The order of attributes in the message changes nothing (RFC 4271 section 5).
    #[test]
    fn attributes_do_not_depend_on_their_order(attributes in path_attributes(), turn in 0_usize..8) {
        let mut tlvs = split_attributes(attributes.as_bytes());
        tlvs.push(attribute(0x40, 3, &[10, 0, 0, 1]));
        let turn = turn % tlvs.len();
        tlvs.rotate_left(turn);
        let octets = body(&[], &tlvs.concat(), &[8, 10]);
        let update = UpdateBody::split(&octets).unwrap().decode(&IBGP).unwrap();
        prop_assert_eq!(update.attributes.as_deref(), Some(&attributes));
    }

    #[test]
    fn builder_sets_what_it_is_told(
        attributes in path_attributes(),
        asn in 1_u32..,
        times in 0_u8..=255,
        local_pref in option::of(any::<u32>()),
        med in option::of(any::<u32>()),
        community: u32,
        cluster: u32,
    ) {
        let community = Community(community);
        let cluster = Ipv4Addr::from(cluster);
        let mut builder = attributes.edit();
        builder.prepend(asn, times).local_pref(local_pref).med(med);
        builder.add_communities(&[community, community]).prepend_cluster(cluster);
        let changed = builder.build();
        let path = std::iter::repeat_n(asn, usize::from(times)).chain(attributes.as_path().asns());
        prop_assert_eq!(changed.as_path().asns().collect::<Vec<_>>(), path.collect::<Vec<_>>());
        prop_assert_eq!(changed.as_path_len(), attributes.as_path_len() + u32::from(times));
        prop_assert_eq!((changed.local_pref(), changed.med()), (local_pref, med));
        prop_assert_eq!(changed.communities().filter(|c| *c == community).count(), 1);
        prop_assert_eq!(changed.cluster_list().next(), Some(cluster));
        prop_assert_eq!(changed.cluster_list_len(), attributes.cluster_list_len() + 1);
        // Taking it back gives the old value, to the octet.
        let mut builder = attributes.edit();
        builder.add_communities(&[community]).remove_communities(&[community]);
        let without = attributes.edit().remove_communities(&[community]).build();
        prop_assert_eq!(builder.build(), without);
        let twice = changed.edit().remove_internal().build();
        prop_assert_eq!((twice.originator_id(), twice.cluster_list_len()), (None, 0));
    }
}

#[test]
fn a_route_too_large_for_the_peer_is_an_error() {
    let mut builder = PathAttributes::originated(Origin::Igp);
    for asn in 1..=3 {
        let longer = builder.edit().prepend(asn, 255).build();
        builder = longer;
    }
    let builder = builder.edit().prepend(4, 240).build();
    let next_hop = NextHop::new(IpAddr::V4(Ipv4Addr::new(10, 0, 0, 1)));
    let prefix = "10.0.0.0/8".parse::<Prefix>().unwrap();
    let encode = |format, attributes: &PathAttributes| {
        Announcements::new(format, Family::Ipv4Unicast, attributes, next_hop, [prefix])
            .map(|messages| messages.count())
    };
    let format =
        MessageFormat { octets_max: MESSAGE_OCTETS_MAX, as4: true, extended_next_hop: false };
    assert_eq!(encode(format, &builder), Ok(1));
    let builder = builder.edit().prepend(5, 15).build();
    let larger = builder.edit().prepend(6, 20).build();
    let error = encode(format, &larger).unwrap_err();
    let EncodeError::TooLarge { octets, octets_max: 4096 } = error else { panic!("{error}") };
    assert!(octets > 4096);
    assert_eq!(encode(MessageFormat { octets_max: 65_535, ..format }, &larger), Ok(1));
}

/// RFC 8654: messages are filled up to the last octet that both sides agreed on, and read again.
#[test]
fn extended_messages_are_written_and_read_in_full() {
    let attributes = PathAttributes::originated(Origin::Igp);
    let v4 = NextHop::new(IpAddr::V4(Ipv4Addr::new(10, 0, 0, 1)));
    let v6 = NextHop::new(IpAddr::V6(Ipv6Addr::from_bits(0x2001 << 112 | 1)));
    let host4 = |n: u32| Prefix::V4(Ipv4Prefix::new(0x0a00_0000 | n, 32).unwrap());
    let host6 =
        |n: u32| Prefix::V6(Ipv6Prefix::new(0x2001_0db8 << 96 | u128::from(n), 128).unwrap());
    for octets_max in [MESSAGE_OCTETS_MAX, MESSAGE_OCTETS_MAX_EXTENDED] {
        let format = MessageFormat { octets_max, as4: true, extended_next_hop: false };
        for (family, next_hop, prefixes) in [
            (Family::Ipv4Unicast, v4, (0..30_000).map(host4).collect::<Vec<_>>()),
            (Family::Ipv6Unicast, v6, (0..9_000).map(host6).collect()),
        ] {
            let announced =
                Announcements::new(format, family, &attributes, next_hop, prefixes.clone())
                    .unwrap();
            let announced = announced.map(|message| message.bytes).collect::<Vec<_>>();
            let withdrawn = Withdrawals::new(format, family, prefixes.clone()).collect::<Vec<_>>();
            for (messages, are_withdrawn) in [(announced, false), (withdrawn, true)] {
                let largest = messages.iter().map(Bytes::len).max().unwrap();
                assert!(largest <= octets_max && largest > octets_max - 17, "{largest}");
                // Through the framing, as a peer that agreed reads them; another one refuses.
                let mut stream = BytesMut::from(messages.concat().as_slice());
                let mut read = Vec::new();
                while let Some(frame) = Frame::split(&mut stream, octets_max).unwrap() {
                    let update = UpdateBody::split(&frame.body).unwrap().decode(&IBGP).unwrap();
                    assert_eq!(update.errors, []);
                    match are_withdrawn {
                        true => read.extend(update.withdrawn()),
                        false => read.extend(update.announcements().flat_map(|a| a.prefixes)),
                    }
                }
                assert!(stream.is_empty() && read == prefixes);
                let long = messages.iter().any(|message| message.len() > MESSAGE_OCTETS_MAX);
                assert_eq!(long, octets_max > MESSAGE_OCTETS_MAX);
                let mut stream = BytesMut::from(messages.concat().as_slice());
                assert_eq!(Frame::split(&mut stream, MESSAGE_OCTETS_MAX).is_err(), long);
            }
        }
    }
}

/// RFC 9072: the form follows from how much there is to say, and each is read again. An OPEN stays
/// within 4,096 octets whatever it should say (RFC 8654 section 4).
#[test]
fn opens_of_both_forms() {
    let unknown = |octets: usize| Capability::Unknown { code: 200, value: vec![7; octets].into() };
    let open = |capabilities| Open {
        asn: 65001,
        hold_time_secs: 90,
        router_id: Ipv4Addr::new(10, 0, 0, 1),
        capabilities,
    };
    // The head of an extended form: both lengths 255 in front of 16 bits.
    let is_extended = |octets: &[u8]| octets.get(28..30) == Some(&[255, 255]);
    for (capabilities, extended, octets) in [
        (vec![], false, 29),
        (vec![unknown(250)], false, 29 + 2 + 252),
        (vec![unknown(251)], true, 29 + 6 + 253),
        (vec![unknown(255); 15], true, 29 + 6 + 15 * 257),
    ] {
        let open = open(capabilities);
        let message = open.encode();
        assert_eq!((is_extended(&message), message.len()), (extended, octets));
        assert_eq!(Open::decode(&message[19..]), Ok(open));
    }
    let message = open(vec![unknown(255); 40]).encode();
    assert!(message.len() <= MESSAGE_OCTETS_MAX);
    assert_eq!(Open::decode(&message[19..]).unwrap().capabilities.len(), 15);
}

#[test]
fn next_hops_of_the_wrong_family_are_errors() {
    let attributes = PathAttributes::originated(Origin::Igp);
    let format =
        MessageFormat { octets_max: MESSAGE_OCTETS_MAX, as4: true, extended_next_hop: false };
    let v4 = NextHop::new(IpAddr::V4(Ipv4Addr::new(10, 0, 0, 1)));
    let v6 = NextHop::new(IpAddr::V6(Ipv6Addr::from_bits(0x2001 << 112 | 1)));
    for (family, next_hop) in [(Family::Ipv6Unicast, v4), (Family::Ipv4Unicast, v6)] {
        let nothing = std::iter::empty::<Prefix>();
        let error = Announcements::new(format, family, &attributes, next_hop, nothing).unwrap_err();
        assert_eq!(error, EncodeError::NextHopFamily { family, next_hop: next_hop.address });
    }
}

#[test]
fn equal_attributes_are_one_value_whoever_sent_them() {
    // Another order, an extended length that is not needed, a partial bit where it means nothing.
    let plain =
        body(&[], &super::build::hex("400101 00 400206 02010000fde9 400304 0a000001"), &[0]);
    let odd =
        body(&[], &super::build::hex("40030 40a000002 50020006 02010000fde9 600101 00"), &[0]);
    let decode = |octets: &[u8]| {
        let update = UpdateBody::split(octets).unwrap().decode(&IBGP).unwrap();
        update.attributes.unwrap()
    };
    assert_eq!(decode(&plain), decode(&odd));
    let mut interned = std::collections::HashSet::new();
    assert!(interned.insert(decode(&plain)) && !interned.insert(decode(&odd)));
    assert_eq!(Arc::clone(interned.iter().next().unwrap()).as_path().to_string(), "65001");
    assert_eq!(IBGP.sort, SessionSort::Ibgp);
}

fn open() -> impl Strategy<Value = Open> {
    let hold_time_secs = prop_oneof![Just(0_u16), 3_u16..];
    (1_u32.., hold_time_secs, 1_u32.., vec(capability(), 0..30)).prop_map(
        |(asn, hold_time_secs, router_id, mut capabilities)| {
            if asn > 65_535 || asn % 2 == 0 {
                capabilities.push(Capability::FourOctetAs(asn));
            }
            Open { asn, hold_time_secs, router_id: router_id.into(), capabilities }
        },
    )
}

fn capability() -> impl Strategy<Value = Capability> {
    let mode =
        prop_oneof![Just(AddPathMode::Receive), Just(AddPathMode::Send), Just(AddPathMode::Both)];
    let family = (any::<u16>(), any::<u8>(), any::<bool>())
        .prop_map(|(afi, safi, forwarding)| GracefulRestartFamily { afi, safi, forwarding });
    let next_hop = (any::<u16>(), any::<u16>(), any::<u16>())
        .prop_map(|(afi, safi, next_hop_afi)| ExtendedNextHop { afi, safi, next_hop_afi });
    let known = [1, 2, 5, 6, 64, 65, 69, 70, 71];
    prop_oneof![
        (any::<u16>(), any::<u8>()).prop_map(|(afi, safi)| Capability::Multiprotocol { afi, safi }),
        Just(Capability::RouteRefresh),
        Just(Capability::ExtendedMessage),
        Just(Capability::EnhancedRouteRefresh),
        vec(next_hop, 0..4).prop_map(Capability::ExtendedNextHop),
        (any::<bool>(), any::<bool>(), 0_u16..4096, vec(family, 0..4)).prop_map(
            |(restarting, notification, restart_time_secs, families)| {
                Capability::GracefulRestart(GracefulRestart {
                    restarting,
                    notification,
                    restart_time_secs,
                    families,
                })
            }
        ),
        vec((any::<u16>(), any::<u8>(), mode), 0..4).prop_map(Capability::AddPath),
        (any::<u8>(), vec(any::<u8>(), 0..100))
            .prop_filter("known codes have their own forms", move |(code, _)| !known.contains(code))
            .prop_map(|(code, value)| Capability::Unknown { code, value: Bytes::from(value) }),
    ]
}

fn path_attributes() -> impl Strategy<Value = PathAttributes> {
    let origin = prop_oneof![Just(Origin::Igp), Just(Origin::Egp), Just(Origin::Incomplete)];
    let asn = prop_oneof![1_u32..65_536, 65_536_u32.., Just(23_456)];
    let large = (any::<u32>(), any::<u32>(), any::<u32>())
        .prop_map(|(global, local1, local2)| LargeCommunity { global, local1, local2 });
    (
        origin,
        vec((asn, 1_u8..4), 0..12),
        option::of(any::<u32>()),
        option::of(any::<u32>()),
        vec(any::<u32>().prop_map(Community), 0..80),
        vec(large, 0..8),
        option::of(any::<u32>()),
        vec(any::<u32>(), 0..4),
    )
        .prop_map(
            |(origin, path, med, local_pref, communities, large, originator, clusters)| {
                let start = PathAttributes::originated(origin);
                let mut builder = start.edit();
                for (asn, times) in path {
                    builder.prepend(asn, times);
                }
                builder.med(med).local_pref(local_pref);
                builder.add_communities(&communities).add_large_communities(&large);
                builder.originator_id(originator.map(Ipv4Addr::from));
                for cluster in clusters {
                    builder.prepend_cluster(cluster.into());
                }
                builder.build()
            },
        )
}

fn prefix() -> impl Strategy<Value = Prefix> {
    prop_oneof![ipv4_prefix(), ipv6_prefix()]
}

fn ipv4_prefix() -> impl Strategy<Value = Prefix> {
    (any::<u32>(), 0_u8..=32)
        .prop_map(|(addr, len)| Prefix::V4(Ipv4Prefix::new(addr, len).unwrap()))
}

fn ipv6_prefix() -> impl Strategy<Value = Prefix> {
    (any::<u128>(), 0_u8..=128)
        .prop_map(|(addr, len)| Prefix::V6(Ipv6Prefix::new(addr, len).unwrap()))
}

/// Prefixes of one family with a next hop that they can have.
fn routes() -> impl Strategy<Value = (Family, NextHop, Vec<Prefix>)> {
    let v4 = (1_u32..0x7f00_0000).prop_map(|a| NextHop::new(IpAddr::V4(a.into())));
    let v6 = (any::<u64>(), option::of(any::<u64>())).prop_map(|(global, link_local)| NextHop {
        address: IpAddr::V6(Ipv6Addr::from_bits(0x2001 << 112 | u128::from(global))),
        link_local: link_local.map(|a| Ipv6Addr::from_bits(0xfe80 << 112 | u128::from(a))),
    });
    prop_oneof![
        (Just(Family::Ipv4Unicast), prop_oneof![v4, v6.clone()], vec(ipv4_prefix(), 1..1500)),
        (Just(Family::Ipv6Unicast), v6, vec(ipv6_prefix(), 1..600)),
    ]
}
