//! The BGP codec against another one, netgauze-bgp-pkt: what we write means the same to them, what they
//! write means the same to us, and of damaged messages both say the same, or the RFC says who is right.
//!
//! They decode messages to look at them, we to route by them: they have no sessions, so that what is
//! wrong only on a session of one sort, or means dropping an attribute, is no matter to them.

#[path = "../../bgp/tests/wire/build.rs"]
mod build;
#[path = "../../bgp/tests/wire/corpus.rs"]
mod corpus;
#[path = "../../bgp/tests/mutation/mutate.rs"]
#[expect(dead_code, reason = "sessions of all sorts are for the tests of the codec")]
mod mutate;

use std::collections::{BTreeMap, HashMap};
use std::io::Cursor;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use cairn_bgp::prefix::{Family, Ipv4Prefix, Ipv6Prefix, Prefix};
use cairn_bgp::wire::{
    Announcements, AttributeError, AttributesBuilder, Community, LargeCommunity,
    MESSAGE_OCTETS_MAX_EXTENDED, MessageFormat, NextHop, Notification, NotificationError, Open,
    Origin, PathAttributes, RouteRefresh, UpdateBody, UpdateContext, Withdrawals, end_of_rib,
    keepalive,
};
use netgauze_bgp_pkt::BgpMessage;
use netgauze_bgp_pkt::path_attribute::{MpReach, MpUnreach, PathAttribute, PathAttributeValue};
use netgauze_bgp_pkt::update::BgpUpdateMessage;
use netgauze_bgp_pkt::wire::deserializer::BgpParsingContext;
use netgauze_iana::address_family::AddressType;
use netgauze_parse_utils::WritablePdu;
use netgauze_parse_utils::reader::SliceReader;
use netgauze_parse_utils::traits::ParseFromWithOneInput;

use build::IBGP;
use mutate::Random;

/// What an UPDATE says, whoever has read it.
#[derive(Debug, Default, PartialEq)]
struct Meaning {
    withdrawn: Vec<String>,
    announced: Vec<(String, String)>,
    /// Values by type code, without next hops and prefixes.
    attributes: BTreeMap<u8, Vec<u8>>,
    end_of_rib: Option<Family>,
}

#[test]
fn what_we_write_means_the_same_to_them() {
    let mut random = Random::new(0x0a11_0001);
    let mut prefixes_seen = 0;
    for round in 0..2_000 {
        let attributes = random_attributes(&mut random);
        let (family, next_hop, prefixes) = random_routes(&mut random);
        let format = MessageFormat {
            octets_max: if round % 2 == 0 { 4096 } else { MESSAGE_OCTETS_MAX_EXTENDED },
            as4: true,
            extended_next_hop: true,
        };
        let messages =
            Announcements::new(format, family, &attributes, next_hop, prefixes.iter().copied());
        let announced = messages.unwrap().map(|message| message.bytes);
        let withdrawn = Withdrawals::new(format, family, prefixes.iter().copied());
        for octets in announced.chain(withdrawn).chain([end_of_rib(family)]) {
            let ours = ours(&octets, &context()).expect("what we write");
            let theirs = theirs(&octets).unwrap_or_else(|error| {
                panic!("round {round}: {error} for {}", build::digits(&octets))
            });
            prefixes_seen += ours.announced.len() + ours.withdrawn.len();
            assert_eq!(ours, theirs, "round {round}: {}", build::digits(&octets));
        }
    }
    assert!(prefixes_seen > 100_000);
}

#[test]
fn opens_and_small_messages_mean_the_same() {
    let octets = keepalive();
    assert!(matches!(parse(&octets), Ok(BgpMessage::KeepAlive)));
    for text in [corpus::OPEN_BIRD, corpus::BIRD_OPEN, corpus::OPEN_FRR, corpus::OPEN_PLAIN] {
        let octets = corpus::octets(text);
        let ours = Open::decode(&octets[19..]).expect("a valid OPEN");
        let Ok(BgpMessage::Open(theirs)) = parse(&octets) else { panic!("{text}") };
        assert_eq!((theirs.my_asn4(), theirs.hold_time()), (ours.asn, ours.hold_time_secs));
        assert_eq!(theirs.bgp_id(), ours.router_id);
        assert_eq!(theirs.capabilities().len(), ours.capabilities.len(), "{text}");
        // Both write it so that the other one reads it again.
        let again = written(&BgpMessage::Open(theirs.clone()));
        assert_eq!(Open::decode(&again[19..]).as_ref(), Ok(&ours), "{text}");
        let Ok(BgpMessage::Open(again)) = parse(&ours.encode()) else { panic!("{text}") };
        let capabilities = |open: &netgauze_bgp_pkt::open::BgpOpenMessage| {
            open.capabilities().into_iter().cloned().collect::<Vec<_>>()
        };
        assert_eq!(capabilities(&again), capabilities(&theirs), "{text}");
    }
    // Known: they have no extended parameters. RFC 9072 section 2: the parameter type 255 says it.
    let octets = corpus::octets(corpus::OPEN_EXTENDED);
    assert!(Open::decode(&octets[19..]).is_ok() && parse(&octets).is_err());
    for text in [corpus::ROUTE_REFRESH, corpus::REFRESH_BEGIN, corpus::REFRESH_END] {
        let octets = corpus::octets(text);
        let ours = RouteRefresh::decode(&octets[19..]).expect("a valid ROUTE-REFRESH");
        let Ok(message @ BgpMessage::RouteRefresh(_)) = parse(&octets) else { panic!("{text}") };
        assert_eq!((written(&message), ours.encode().to_vec()), (octets.clone(), octets));
    }
    for (code, subcodes) in [(1, 0..=3), (2, 0..=4), (3, 1..=6), (4, 0..=0), (5, 0..=3), (6, 1..=9)]
    {
        for subcode in subcodes {
            let octets = build::message(3, &[code, subcode, 1, 2]);
            let ours = Notification::decode(&octets[19..]).expect("two octets are enough");
            let message = parse(&octets);
            let Ok(message @ BgpMessage::Notification(_)) = message else { panic!("{message:?}") };
            assert_eq!((written(&message), ours.encode().to_vec()), (octets.clone(), octets));
        }
    }
}

#[test]
fn what_they_write_means_the_same_to_us() {
    // Each message of the corpus and each valid attribute, taken in by them and written again.
    let mut random = Random::new(0x0a11_0002);
    let seeds: Vec<Vec<u8>> = corpus::ALL.iter().map(|text| corpus::octets(text)).collect();
    let pool = mutate::attribute_pool(&seeds);
    let (mut compared, mut codes) = (0, std::collections::BTreeSet::new());
    for _ in 0..100_000 {
        let octets = random.assembled(&pool);
        let Ok(message @ BgpMessage::Update(_)) = parse(&octets) else { continue };
        let again = written(&message);
        let BgpMessage::Update(update) = &message else { unreachable!("matched above") };
        let Ok(ours) = ours(&again, &context()) else { continue };
        let theirs = meaning(update);
        // Known: in a family that they do not know, they count an octet too many for its prefixes, and do not
        // read themselves what they have written.
        match parse(&again) {
            Ok(BgpMessage::Update(back)) if meaning(&back) == theirs => {}
            _ => continue,
        }
        let same = ours == theirs || read_differently(&ours, &theirs).is_some();
        assert!(same, "{}: {ours:?} {theirs:?}", build::digits(&again));
        compared += usize::from(ours == theirs);
        codes.extend(ours.attributes.into_keys());
    }
    assert!(compared > 5_000, "{compared}");
    let all = [1, 2, 4, 5, 6, 7, 8, 9, 10, 16, 25, 32, 35, 99];
    assert!(all.iter().all(|code| codes.contains(code)), "{codes:?}");
}

#[test]
fn of_damaged_updates_both_say_the_same() {
    let mut random = Random::new(0x0a11_0003);
    let seeds: Vec<Vec<u8>> = corpus::ALL.iter().map(|text| corpus::octets(text)).collect();
    let pool = mutate::attribute_pool(&seeds);
    let mut named: BTreeMap<&str, usize> = BTreeMap::new();
    let (mut same, mut refused_by_both, mut unnamed) = (0, 0, Vec::new());
    for _ in 0..300_000 {
        let octets = match random.below(2) {
            0 => random.mutated(&seeds),
            _ => random.assembled(&pool),
        };
        // Whole UPDATEs: what is wrong around them, neither would look into.
        if octets.len() < 23 || octets != build::message(2, &octets[19..]) {
            continue;
        }
        let disagreement = match (ours(&octets, &context()), theirs(&octets)) {
            (Ok(ours), Ok(theirs)) if ours == theirs => {
                same += 1;
                continue;
            }
            (Err(_), Err(_)) => {
                refused_by_both += 1;
                continue;
            }
            (Ok(ours), Ok(theirs)) => read_differently(&ours, &theirs),
            (Ok(_), Err(error)) => refused_by_them(&error),
            (Err(error), Ok(_)) => refused_by_us(&error),
        };
        let Some(name) = disagreement else {
            let (ours, theirs) = (ours(&octets, &context()), theirs(&octets));
            unnamed.push(format!("{}\n  {ours:?}\n  {theirs:?}", build::digits(&octets)));
            continue;
        };
        *named.entry(name).or_default() += 1;
    }
    println!("{same} the same, {refused_by_both} refused by both, {named:#?}");
    unnamed.truncate(UNNAMED_SHOWN_MAX);
    assert!(unnamed.is_empty(), "disagreements without a name:\n{}", unnamed.join("\n"));
    assert!(same > 20_000 && refused_by_both > 20_000, "{same} {refused_by_both}");
}

/// What both take, but not for the same.
fn read_differently(ours: &Meaning, theirs: &Meaning) -> Option<&'static str> {
    let without = |meaning: &Meaning, code| {
        let mut attributes = meaning.attributes.clone();
        attributes.remove(&code);
        attributes
    };
    let routes_are_the_same =
        ours.withdrawn == theirs.withdrawn && ours.announced == theirs.announced;
    if ours.end_of_rib != theirs.end_of_rib {
        return (ours.end_of_rib.is_none() && ours.attributes == theirs.attributes).then_some(
            "RFC 4724 2: End-of-RIB holds nothing but MP_UNREACH_NLRI; they look past others",
        );
    }
    if !routes_are_the_same {
        let global = |routes: &[(String, String)]| {
            let first = |(next_hop, prefix): &(String, String)| {
                (next_hop.split(' ').next().unwrap_or_default().to_owned(), prefix.clone())
            };
            routes.iter().map(first).collect::<Vec<_>>()
        };
        return (global(&ours.announced) == global(&theirs.announced))
            .then_some("RFC 2545 3: the second next hop is a link-local address; they take any");
    }
    [
        (32, "RFC 8092 3: repeated values are removed; they keep them"),
        (40, "RFC 8669 3: passed on as it is; they clear what is reserved"),
    ]
    .into_iter()
    .find(|(code, _)| without(ours, *code) == without(theirs, *code))
    .map(|(_, name)| name)
}

/// What we take without a word and they refuse.
fn refused_by_them(error: &str) -> Option<&'static str> {
    THEY_REFUSE.iter().find(|(part, _)| error.contains(part)).map(|(_, name)| *name)
}

/// What they take and we refuse, or take without an attribute: every error has to have a name.
fn refused_by_us(errors: &[(u8, String)]) -> Option<&'static str> {
    let name = |(code, text): &(u8, String)| {
        let known = |(part, codes, _): &&(&str, &[u8], &str)| {
            text.contains(part) && (codes.is_empty() || codes.contains(code))
        };
        WE_REFUSE.iter().find(known).map(|(_, _, name)| *name)
    };
    let names = errors.iter().map(name).collect::<Option<Vec<_>>>()?;
    names.first().copied()
}

/// Part of their error, and the clause that makes us right.
const THEY_REFUSE: &[(&str, &str)] = &[
    (
        "UnicastNetwork",
        "RFC 4271 6.3: a multicast prefix is well-formed; whether to use it is policy",
    ),
    ("UndefinedAddressFamily", "RFC 4760 6: what was not negotiated is ignored"),
    ("UndefinedSubsequentAddressFamily", "RFC 4760 6: what was not negotiated is ignored"),
    ("MpReachErrorError", "RFC 4760 6: what was not negotiated is ignored"),
    ("MpUnreachErrorError", "RFC 4760 6: what was not negotiated is ignored"),
    ("InvalidPartialFlagValue", "RFC 7606 3c: of the flags, Optional and Transitive can be wrong"),
    ("UndefinedAigpAttributeType", "RFC 7311 3.2: unknown TLVs are no error"),
    ("BgpLsError", "RFC 9552 8.2.2: only the lengths of TLVs are judged by who passes them on"),
    ("SegmentIdentifierParsingError", "RFC 8669 3: unknown TLVs are passed on"),
];

/// Part of our error, the attributes that it may be about (none means any), and the clause.
const WE_REFUSE: &[(&str, &[u8], &str)] = &[
    ("stands there twice", &[], "RFC 7606 3g: all but the first are discarded; they list all"),
    (
        "not allowed on this session",
        &[17, 18],
        "RFC 6793 4.1: with 4-octet AS numbers there is no AS4_",
    ),
    ("missing", &[1, 2, 3], "RFC 7606 3d: routes need mandatory attributes; they need none"),
    ("wrong flags", UNKNOWN_TO_THEM, "RFC 7606 3c: attributes that they do not know"),
    (
        "wrong length",
        UNKNOWN_TO_THEM,
        "RFC 6514 5, 9012 13, 6368 5: attributes that they do not know",
    ),
    ("wrong length", EMPTY_TO_THEM, "RFC 7606 4: these may not be empty"),
    ("wrong length", &[9], "RFC 7606 7.9: four octets; they leave more of them unread"),
    ("value not allowed", UNKNOWN_TO_THEM, "RFC 6514 5, 9012 13: attributes that they do not know"),
    ("value not allowed", &[3, 14], "RFC 4271 6.3: a next hop is a host; they take any"),
    ("value not allowed", &[7, 2], "RFC 7607 2: AS 0 is nobody's"),
    ("value not allowed", &[26], "RFC 7311 3.2: the largest metric is malformed"),
    ("holds a set", &[2], "RFC 9774 3: sets are refused"),
    ("reset: unrecognized well-known", &[], "RFC 4271 6.3: a well-known attribute has to be known"),
    ("reset: attribute flags error", UNKNOWN_TO_THEM, "RFC 7606 5.2: as above, without prefixes"),
    ("reset: attribute length error", UNKNOWN_TO_THEM, "RFC 7606 5.2: as above, without prefixes"),
    ("reset: attribute length error", EMPTY_TO_THEM, "RFC 7606 5.2: as above, without prefixes"),
    (
        "reset: optional attribute error",
        UNKNOWN_TO_THEM,
        "RFC 7606 5.2: as above, without prefixes",
    ),
    (
        "reset: optional attribute error",
        &[14],
        "RFC 7606 7.11: lengths of next hops; they take what is there",
    ),
    (
        "reset: malformed attribute list",
        &[0],
        "RFC 7606 3g: MP_REACH_NLRI or MP_UNREACH_NLRI twice",
    ),
    ("reset: malformed AS_PATH", &[0], "RFC 7606 5.2: a set or AS 0, without prefixes"),
    ("reset: invalid NEXT_HOP", &[3], "RFC 7606 5.2: no host, without prefixes"),
];
/// AS4_AGGREGATOR, PMSI_TUNNEL, TUNNEL_ENCAPSULATION, TRAFFIC_ENGINEERING, ATTR_SET.
const UNKNOWN_TO_THEM: &[u8] = &[18, 22, 23, 24, 128];
/// As many disagreements say where to look.
const UNNAMED_SHOWN_MAX: usize = 20;
/// Lists that they take without members.
const EMPTY_TO_THEM: &[u8] = &[8, 10, 16, 25, 32];

fn context() -> UpdateContext {
    UpdateContext { extended_next_hop: true, ..IBGP }
}

/// What we read, or what is wrong by attribute type.
fn ours(octets: &[u8], context: &UpdateContext) -> Result<Meaning, Vec<(u8, String)>> {
    let update = UpdateBody::split(&octets[19..]).and_then(|body| body.decode(context));
    let update = update.map_err(|notification| {
        let NotificationError::Update(error) = notification.error else {
            panic!("not about an UPDATE: {notification}")
        };
        // The data of these errors is the attribute.
        let code = notification.data.get(1).copied().unwrap_or_default();
        vec![(code, format!("reset: {error}"))]
    })?;
    if !update.errors.is_empty() {
        let named = |error: &AttributeError| (error.attribute_type, error.to_string());
        return Err(update.errors.iter().map(named).collect());
    }
    let mut meaning = Meaning { end_of_rib: update.end_of_rib, ..Meaning::default() };
    meaning.withdrawn.extend(update.withdrawn().map(|prefix| prefix.to_string()));
    for announcement in update.announcements() {
        let NextHop { address, link_local } = announcement.next_hop;
        let next_hop = next_hop(address, link_local);
        let prefixes = announcement.prefixes.iter();
        meaning.announced.extend(prefixes.map(|prefix| (next_hop.clone(), prefix.to_string())));
    }
    if let Some(attributes) = &update.attributes {
        let mut rest = attributes.as_bytes();
        while let [flags, code, ..] = *rest {
            let head = if flags & 0x10 == 0 { 3 } else { 4 };
            let value = attributes.value(code).expect("the code is there");
            meaning.attributes.insert(code, value.to_vec());
            rest = &rest[head + value.len()..];
        }
    }
    Ok(meaning)
}

fn next_hop(address: IpAddr, link_local: Option<Ipv6Addr>) -> String {
    let link_local = link_local.map(|address| format!(" {address}")).unwrap_or_default();
    format!("{address}{link_local}")
}

fn theirs(octets: &[u8]) -> Result<Meaning, String> {
    match parse(octets)? {
        BgpMessage::Update(update) => Ok(meaning(&update)),
        other => Err(format!("no UPDATE: {other:?}")),
    }
}

fn parse(octets: &[u8]) -> Result<BgpMessage, String> {
    let (labels, add_path) = (HashMap::new(), HashMap::new());
    let mut context = BgpParsingContext::new(true, labels, add_path, true, true, true, true);
    BgpMessage::parse(&mut SliceReader::new(octets), &mut context).map_err(|e| format!("{e:?}"))
}

fn written(message: &BgpMessage) -> Vec<u8> {
    let mut octets = Vec::new();
    message.write(&mut Cursor::new(&mut octets)).expect("what was read can be written");
    octets
}

/// What their UPDATE says, in our words: attributes that are not passed on left out.
fn meaning(update: &BgpUpdateMessage) -> Meaning {
    let mut meaning = Meaning::default();
    let v4 = |net: ipnet::Ipv4Net| net.trunc().to_string();
    let v6 = |net: ipnet::Ipv6Net| net.trunc().to_string();
    meaning.withdrawn.extend(update.withdraw_routes().iter().map(|p| v4(p.network().address())));
    let (mut reached, mut nlri_next_hop) = (Vec::new(), None);
    for attribute in update.path_attributes() {
        match attribute.value() {
            PathAttributeValue::NextHop(value) => nlri_next_hop = Some(value.next_hop()),
            PathAttributeValue::MpReach(MpReach::Ipv4Unicast {
                next_hop,
                next_hop_local,
                nlri,
            }) => {
                let next_hop = self::next_hop(*next_hop, *next_hop_local);
                reached.extend(nlri.iter().map(|p| (next_hop.clone(), v4(p.network().address()))));
            }
            PathAttributeValue::MpReach(MpReach::Ipv6Unicast {
                next_hop_global,
                next_hop_local,
                nlri,
            }) => {
                let next_hop = self::next_hop(IpAddr::V6(*next_hop_global), *next_hop_local);
                reached.extend(nlri.iter().map(|p| (next_hop.clone(), v6(p.network().address()))));
            }
            PathAttributeValue::MpUnreach(MpUnreach::Ipv4Unicast { nlri }) => {
                meaning.withdrawn.extend(nlri.iter().map(|p| v4(p.network().address())));
            }
            PathAttributeValue::MpUnreach(MpUnreach::Ipv6Unicast { nlri }) => {
                meaning.withdrawn.extend(nlri.iter().map(|p| v6(p.network().address())));
            }
            PathAttributeValue::MpReach(_) | PathAttributeValue::MpUnreach(_) => {}
            // RFC 4271 section 5: what is not known is not passed on when it is not transitive.
            _ if attribute.optional() && !attribute.transitive() && !is_known(attribute) => {}
            _ => {
                let mut octets = Vec::new();
                attribute.write(&mut Cursor::new(&mut octets)).expect("it was read");
                let head = if octets[0] & 0x10 == 0 { 3 } else { 4 };
                meaning.attributes.entry(octets[1]).or_insert_with(|| octets[head..].to_vec());
            }
        }
    }
    let nlri = update.nlri().iter().map(|p| v4(p.network().address()));
    let nlri_next_hop = nlri_next_hop.map(|a: Ipv4Addr| a.to_string()).unwrap_or_default();
    meaning.announced.extend(nlri.map(|prefix| (nlri_next_hop.clone(), prefix)));
    meaning.announced.extend(reached);
    meaning.end_of_rib = match update.end_of_rib() {
        Some(AddressType::Ipv4Unicast) => Some(Family::Ipv4Unicast),
        Some(AddressType::Ipv6Unicast) => Some(Family::Ipv6Unicast),
        _ => None,
    };
    if meaning.announced.is_empty() {
        meaning.attributes.clear();
    }
    meaning
}

/// Attributes that are not transitive and mean something to us.
fn is_known(attribute: &PathAttribute) -> bool {
    matches!(
        attribute.value(),
        PathAttributeValue::MultiExitDiscriminator(_)
            | PathAttributeValue::Originator(_)
            | PathAttributeValue::ClusterList(_)
    )
}

fn random_attributes(random: &mut Random) -> PathAttributes {
    let origin = [Origin::Igp, Origin::Egp, Origin::Incomplete][random.below(3)];
    let start = PathAttributes::originated(origin);
    let mut builder: AttributesBuilder<'_> = start.edit();
    let mut word = || random.next() as u32;
    for _ in 0..word() % 12 {
        builder.prepend(word().max(1), 1 + (word() % 3) as u8);
    }
    let optional = |word: u32, value| word.is_multiple_of(2).then_some(value);
    builder.med(optional(word(), word())).local_pref(optional(word(), word()));
    let communities = (0..word() % 80).map(|_| Community(word())).collect::<Vec<_>>();
    builder.add_communities(&communities);
    let large = (0..word() % 8)
        .map(|_| LargeCommunity { global: word(), local1: word(), local2: word() })
        .collect::<Vec<_>>();
    builder.add_large_communities(&large);
    builder.originator_id(optional(word(), word()).map(Ipv4Addr::from));
    for _ in 0..word() % 4 {
        builder.prepend_cluster(word().into());
    }
    builder.build()
}

/// Prefixes of unicast addresses, which is all that they take.
fn random_routes(random: &mut Random) -> (Family, NextHop, Vec<Prefix>) {
    let count = 1 + random.below(300);
    let global = Ipv6Addr::from_bits(0x2001 << 112 | u128::from(random.next()));
    let link_local = Ipv6Addr::from_bits(0xfe80 << 112 | u128::from(random.next()));
    let via_ipv6 = NextHop {
        address: IpAddr::V6(global),
        link_local: (random.below(2) == 0).then_some(link_local),
    };
    let via_ipv4 =
        NextHop::new(IpAddr::V4(Ipv4Addr::from(0x0a00_0000 | random.next() as u32 >> 8)));
    let v4 = |random: &mut Random| {
        let address = random.next() as u32 % 0xe000_0000;
        let len = 4 + random.below(29) as u8;
        Prefix::V4(Ipv4Prefix::new(address, len).expect("up to 32"))
    };
    let v6 = |random: &mut Random| {
        let address = 0x2001 << 112 | u128::from(random.next()) << 40;
        let len = 8 + random.below(121) as u8;
        Prefix::V6(Ipv6Prefix::new(address, len).expect("up to 128"))
    };
    match random.below(3) {
        0 => (Family::Ipv4Unicast, via_ipv4, (0..count).map(|_| v4(random)).collect()),
        1 => (Family::Ipv4Unicast, via_ipv6, (0..count).map(|_| v4(random)).collect()),
        _ => (Family::Ipv6Unicast, via_ipv6, (0..count).map(|_| v6(random)).collect()),
    }
}
