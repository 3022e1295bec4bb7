//! Every reaction to a malformed message, by the RFC section that asks for it.

use bytes::BytesMut;
use cairn_bgp::prefix::{Families, Family};
use cairn_bgp::wire::{
    AttributeFault as Fault, AttributeVerdict, Frame, HEADER_OCTETS, HeaderError,
    MESSAGE_OCTETS_MAX, MESSAGE_OCTETS_MAX_EXTENDED, Notification, NotificationError, Open,
    OpenError, RouteRefresh, RouteRefreshError, UpdateBody, UpdateContext, UpdateError,
};

use super::build::{EBGP, IBGP, attribute, body, hex, message};

/// What has to come of an UPDATE.
#[derive(Clone, Copy, Debug, PartialEq)]
enum Outcome {
    /// Used as it is.
    Used,
    /// Used without this attribute.
    Discard(u8, Fault),
    /// Its prefixes are withdrawn because of this attribute.
    Withdraw(u8, Fault),
    /// The session ends.
    Reset(UpdateError),
}
use Outcome::{Discard, Reset, Used, Withdraw};

const AS2: UpdateContext = UpdateContext { as4: false, ..EBGP };
const FIRST_AS: UpdateContext = UpdateContext { first_as: Some(65001), ..EBGP };

#[test]
fn updates() {
    // The section, the context, attributes to put in (instead of the valid one of the same type), or
    // to leave out, and what has to come of it.
    #[rustfmt::skip]
    let rows: &[(&str, UpdateContext, &[&str], Outcome)] = &[
        ("RFC 4271 5: all valid",             EBGP, &[], Used),
        ("RFC 4271 5: all valid",             IBGP, &[], Used),
        ("RFC 7606 3c: ORIGIN optional",      EBGP, &["c00101 00"], Withdraw(1, Fault::Flags)),
        ("RFC 7606 3c: AS_PATH not trans.",   EBGP, &["000206 02010000fde9"], Withdraw(2, Fault::Flags)),
        ("RFC 7606 3c: NEXT_HOP optional",    EBGP, &["c00304 0a000001"], Withdraw(3, Fault::Flags)),
        ("RFC 7606 3c: MED transitive",       EBGP, &["c00404 00000001"], Withdraw(4, Fault::Flags)),
        ("RFC 7606 3c: before discard",       EBGP, &["c00504 00000001"], Withdraw(5, Fault::Flags)),
        ("RFC 7606 3c: ATOMIC_AGGREGATE",     EBGP, &["800600"], Withdraw(6, Fault::Flags)),
        ("RFC 7606 3c: COMMUNITIES",          EBGP, &["800804 00010001"], Withdraw(8, Fault::Flags)),
        ("RFC 7606 3c: LARGE_COMMUNITY",      EBGP, &["80200c 000000010000000200000003"], Withdraw(32, Fault::Flags)),
        ("RFC 4271 4.3: partial is no error", EBGP, &["e00804 00010001"], Used),
        ("RFC 4271 4.3: low bits ignored",    EBGP, &["4f0101 00"], Used),
        ("RFC 7606 3d: no ORIGIN",            EBGP, &["-1"], Withdraw(1, Fault::Missing)),
        ("RFC 7606 3d: no AS_PATH",           EBGP, &["-2"], Withdraw(2, Fault::Missing)),
        ("RFC 7606 3d: no NEXT_HOP",          EBGP, &["-3"], Withdraw(3, Fault::Missing)),
        ("RFC 4271 5.1.5: no LOCAL_PREF",     IBGP, &[], Used),
        ("RFC 7606 3g: MED twice",            EBGP, &["800404 00000001", "+800404 00000002"], Discard(4, Fault::Duplicate)),
        ("RFC 7606 3g: unknown twice",        EBGP, &["c06300", "+c06300"], Discard(99, Fault::Duplicate)),
        ("RFC 7606 3g: MP_REACH twice",       EBGP, &["800e09 0001010400000000 00", "+800e09 0001010400000000 00"], Reset(UpdateError::MalformedAttributeList)),
        ("RFC 7606 3g: MP_UNREACH twice",     EBGP, &["800f03 000201", "+800f03 000201"], Reset(UpdateError::MalformedAttributeList)),
        ("RFC 7606 4: overrun",               EBGP, &["+c00808 00010001"], Withdraw(8, Fault::Overrun)),
        ("RFC 7606 4: no room for a length",  EBGP, &["+c008"], Withdraw(8, Fault::Overrun)),
        ("RFC 7606 4: one octet left",        EBGP, &["+c0"], Withdraw(0xc0, Fault::Overrun)),
        ("RFC 7606 4: half extended length",  EBGP, &["+d00800"], Withdraw(8, Fault::Overrun)),
        ("RFC 7606 7.1: ORIGIN of 0",         EBGP, &["400100"], Withdraw(1, Fault::Length)),
        ("RFC 7606 7.1: ORIGIN of 2",         EBGP, &["400102 0000"], Withdraw(1, Fault::Length)),
        ("RFC 7606 7.1: ORIGIN 3",            EBGP, &["400101 03"], Withdraw(1, Fault::Value)),
        ("RFC 7606 7.2: empty is valid",      IBGP, &["400200"], Used),
        ("RFC 7606 7.2: segment type 5",      EBGP, &["400206 05010000fde9"], Withdraw(2, Fault::Value)),
        ("RFC 7606 7.2: segment overrun",     EBGP, &["400206 02020000fde9"], Withdraw(2, Fault::Length)),
        ("RFC 7606 7.2: one octet",           EBGP, &["400207 02010000fde9 02"], Withdraw(2, Fault::Length)),
        ("RFC 7606 7.2: segment of 0",        EBGP, &["400208 02010000fde9 0200"], Withdraw(2, Fault::Value)),
        ("RFC 7607 2: AS 0",                  EBGP, &["40020a 0202 0000fde9 00000000"], Withdraw(2, Fault::Value)),
        ("RFC 9774 3: AS_SET",                EBGP, &["40020c 02010000fde9 01010000fde8"], Withdraw(2, Fault::Segment)),
        ("RFC 9774 3: AS_CONFED_SET",         IBGP, &["400206 04010000fde9"], Withdraw(2, Fault::Segment)),
        ("RFC 5065 5: AS_CONFED_SEQUENCE",    EBGP, &["400206 03010000fde9"], Withdraw(2, Fault::Segment)),
        ("RFC 4271 6.3: first AS",            FIRST_AS, &["400206 02010000fdea"], Withdraw(2, Fault::FirstAs)),
        ("RFC 4271 6.3: first AS, empty",     FIRST_AS, &["400200"], Withdraw(2, Fault::FirstAs)),
        ("RFC 4271 6.3: first AS is right",   FIRST_AS, &[], Used),
        ("RFC 7606 7.3: NEXT_HOP of 5",       EBGP, &["400305 0a00000100"], Withdraw(3, Fault::Length)),
        ("RFC 4271 6.3: NEXT_HOP 0.0.0.0",    EBGP, &["400304 00000000"], Withdraw(3, Fault::Value)),
        ("RFC 4271 6.3: NEXT_HOP multicast",  EBGP, &["400304 e0000001"], Withdraw(3, Fault::Value)),
        ("RFC 4271 6.3: NEXT_HOP broadcast",  EBGP, &["400304 ffffffff"], Withdraw(3, Fault::Value)),
        ("RFC 4271 6.3: NEXT_HOP loopback",   EBGP, &["400304 7f000001"], Withdraw(3, Fault::Value)),
        ("RFC 7606 7.4: MED of 3",            EBGP, &["800403 000000"], Withdraw(4, Fault::Length)),
        ("RFC 7606 7.5: LOCAL_PREF by eBGP",  EBGP, &["400504 00000064"], Discard(5, Fault::NotOnThisSession)),
        ("RFC 7606 7.5: whatever its length", EBGP, &["400500"], Discard(5, Fault::NotOnThisSession)),
        ("RFC 7606 7.5: LOCAL_PREF of 5",     IBGP, &["400505 0000006400"], Withdraw(5, Fault::Length)),
        ("RFC 7606 7.6: ATOMIC_AGGREGATE 1",  EBGP, &["400601 00"], Discard(6, Fault::Length)),
        ("RFC 7606 7.7: AGGREGATOR of 6",     EBGP, &["c00706 fde90a000001"], Discard(7, Fault::Length)),
        ("RFC 7606 7.7: AGGREGATOR of 8",     AS2,  &["-2", "400204 0201fde9", "c00708 0000fde90a000001"], Discard(7, Fault::Length)),
        ("RFC 7607 2: AGGREGATOR AS 0",       EBGP, &["c00708 000000000a000001"], Discard(7, Fault::Value)),
        ("RFC 7606 7.8: COMMUNITIES of 0",    EBGP, &["c00800"], Withdraw(8, Fault::Length)),
        ("RFC 7606 7.8: COMMUNITIES of 6",    EBGP, &["c00806 000100010001"], Withdraw(8, Fault::Length)),
        ("RFC 7606 7.9: ORIGINATOR_ID, eBGP", EBGP, &["800904 0a000001"], Discard(9, Fault::NotOnThisSession)),
        ("RFC 7606 7.9: ORIGINATOR_ID of 5",  IBGP, &["800905 0a00000100"], Withdraw(9, Fault::Length)),
        ("RFC 7606 7.10: CLUSTER_LIST, eBGP", EBGP, &["800a03 000000"], Discard(10, Fault::NotOnThisSession)),
        ("RFC 7606 7.10: CLUSTER_LIST of 0",  IBGP, &["800a00"], Withdraw(10, Fault::Length)),
        ("RFC 7606 7.10: CLUSTER_LIST of 6",  IBGP, &["800a06 0a0000010a00"], Withdraw(10, Fault::Length)),
        ("RFC 7606 7.11: next hop of 5",      EBGP, &["800e0a 000101050000000000 00"], Reset(UpdateError::OptionalAttribute)),
        ("RFC 7606 7.11: IPv6 next hop of 4", EBGP, &["800e09 00020104 0a000001 00"], Reset(UpdateError::OptionalAttribute)),
        ("RFC 7606 7.11: cut in next hop",    EBGP, &["800e06 000201100000"], Reset(UpdateError::OptionalAttribute)),
        ("RFC 7606 5.3: MP_REACH prefix 129", EBGP, &["800e26 00020110 20010db8000000000000000000000001 00 81 00000000000000000000000000000000"], Reset(UpdateError::OptionalAttribute)),
        ("RFC 7606 5.3: MP_REACH prefix cut", EBGP, &["800e17 00020110 20010db8000000000000000000000001 00 1020"], Reset(UpdateError::OptionalAttribute)),
        ("RFC 4271 6.3: MP next hop ::",      EBGP, &["800e17 00020110 00000000000000000000000000000000 00 0820"], Withdraw(14, Fault::Value)),
        ("RFC 4271 6.3: MP next hop ff02::1", EBGP, &["800e17 00020110 ff020000000000000000000000000001 00 0820"], Withdraw(14, Fault::Value)),
        ("RFC 7606 3c: MP_REACH transitive",  EBGP, &["c00e17 00020110 20010db8000000000000000000000001 00 0820"], Withdraw(14, Fault::Flags)),
        ("RFC 7606 3c: MP_UNREACH trans.",    EBGP, &["c00f05 000201 0820"], Withdraw(15, Fault::Flags)),
        ("RFC 7606 7.12: MP_UNREACH of 2",    EBGP, &["800f02 0002"], Reset(UpdateError::OptionalAttribute)),
        ("RFC 7606 5.3: MP_UNREACH prefix",   EBGP, &["800f04 000201 81"], Reset(UpdateError::OptionalAttribute)),
        ("RFC 4760 6: unknown family",        EBGP, &["800e09 0063 80 0400000000 00"], Used),
        ("RFC 4760 6: unknown, unreachable",  EBGP, &["800f06 0063 80 ffffff"], Used),
        ("RFC 7606 7.14: EXTENDED of 0",      EBGP, &["c01000"], Withdraw(16, Fault::Length)),
        ("RFC 7606 7.14: EXTENDED of 9",      EBGP, &["c01009 000000000000000000"], Withdraw(16, Fault::Length)),
        ("RFC 7606 7.15: IPv6 EXTENDED of 8", EBGP, &["c01908 0000000000000000"], Withdraw(25, Fault::Length)),
        ("RFC 8092 6: LARGE of 8",            EBGP, &["c02008 0000000100000002"], Withdraw(32, Fault::Length)),
        ("RFC 8092 6: LARGE of 0",            EBGP, &["c02000"], Withdraw(32, Fault::Length)),
        ("RFC 9234 5: ONLY_TO_CUSTOMER of 3", EBGP, &["c02303 000000"], Withdraw(35, Fault::Length)),
        ("RFC 6793 4.1: AS4_PATH, new peer",  EBGP, &["c01106 02010000fde9"], Discard(17, Fault::NotOnThisSession)),
        ("RFC 6793 4.1: AS4_AGGREGATOR",      EBGP, &["c01208 0000fde90a000001"], Discard(18, Fault::NotOnThisSession)),
        ("RFC 6793 6: AS4_PATH cut",          AS2,  &["400204 0201fde9", "c01105 02010000fd"], Discard(17, Fault::Length)),
        ("RFC 6793 6: AS4_PATH empty",        AS2,  &["400204 0201fde9", "c01100"], Discard(17, Fault::Length)),
        ("RFC 6793 6: AS4_PATH segment type", AS2,  &["400204 0201fde9", "c01106 07010000fde9"], Discard(17, Fault::Value)),
        ("RFC 9774 3: AS4_PATH with a set",   AS2,  &["400204 0201fde9", "c01106 01010000fde9"], Withdraw(17, Fault::Segment)),
        ("RFC 6793 4.2.3: AS4_PATH confed",   AS2,  &["400204 0201fde9", "c01106 03010000fde9"], Used),
        ("RFC 6793 6: AS4_AGGREGATOR of 6",   AS2,  &["400204 0201fde9", "c01206 fde90a000001"], Discard(18, Fault::Length)),
        ("RFC 4271 6.3: unknown well-known",  EBGP, &["406300"], Reset(UpdateError::UnrecognizedWellKnownAttribute)),
        ("RFC 4271 5: unknown transitive",    EBGP, &["c06302 0001"], Used),
        ("RFC 4271 5: unknown not transitive", EBGP, &["806302 0001"], Used),
        ("RFC 7606 3h: the stronger one",     EBGP, &["400601 00", "c00800"], Withdraw(8, Fault::Length)),
    ];
    for (section, context, attributes, outcome) in rows {
        let attributes = attributes_of(attributes, context);
        let octets = body(&[], &attributes, &hex("10 0a01"));
        assert_outcome(section, &octets, context, *outcome);
    }
}

#[test]
fn updates_without_a_prefix_to_withdraw() {
    // RFC 7606 section 5.2: nothing to treat as withdrawn, so the session ends.
    let reset = |attributes: &[&str], error| {
        let octets = body(&hex("08 0b"), &attributes_of(attributes, &EBGP), &[]);
        assert_outcome("RFC 7606 5.2", &octets, &EBGP, Reset(error));
    };
    reset(&["400101 09"], UpdateError::InvalidOrigin);
    reset(&["c00800"], UpdateError::AttributeLength);
    reset(&["c00404 00000001"], UpdateError::AttributeFlags);
    reset(&["+c00808 00"], UpdateError::MalformedAttributeList);
    reset(&["400206 05010000fde9"], UpdateError::MalformedAsPath);
    reset(&["400304 00000000"], UpdateError::InvalidNextHop);
    // An MP_REACH_NLRI without prefixes shows none either.
    let empty = "800e15 00020110 20010db8000000000000000000000001 00";
    reset(&[empty, "400101 09"], UpdateError::InvalidOrigin);
    let octets = body(&hex("08 0b"), &attributes_of(&[empty, "-1"], &EBGP), &[]);
    assert_outcome("RFC 7606 5.2", &octets, &EBGP, Used);
    // A discarded attribute is no reason to end it, and nothing is mandatory without prefixes.
    let octets = body(&hex("08 0b"), &hex("400600 400504 00000000"), &[]);
    assert_outcome("RFC 7606 5.2", &octets, &EBGP, Discard(5, Fault::NotOnThisSession));
}

#[test]
fn update_lengths_and_prefixes() {
    let attributes = attributes_of(&[], &EBGP);
    let malformed = Reset(UpdateError::MalformedAttributeList);
    let network = Reset(UpdateError::InvalidNetworkField);
    #[rustfmt::skip]
    let rows = [
        ("RFC 4271 4.3: no body",              vec![], malformed),
        ("RFC 7606 3a: withdrawn too long",    hex("0001 0000"), Reset(UpdateError::MalformedAttributeList)),
        ("RFC 7606 3a: withdrawn too long",    hex("ffff 0000"), malformed),
        ("RFC 7606 3b: attributes too long",   hex("0000 0001"), malformed),
        ("RFC 7606 3i: withdrawn prefix 33",   body(&hex("21 0a00000000"), &[], &[]), network),
        ("RFC 7606 3i: withdrawn prefix cut",  body(&hex("18 0a00"), &[], &[]), network),
        ("RFC 7606 5.3: prefix of 33",         body(&[], &attributes, &hex("21 0a00000000")), network),
        ("RFC 7606 5.3: prefix cut",           body(&[], &attributes, &hex("10 0a")), network),
        ("RFC 4271 4.3: host bits are nothing", body(&[], &attributes, &hex("09 0aff")), Used),
    ];
    for (section, octets, outcome) in rows {
        assert_outcome(section, &octets, &EBGP, outcome);
    }
    let octets = body(&[], &attributes, &hex("09 0aff"));
    let update = UpdateBody::split(&octets).unwrap().decode(&EBGP).unwrap();
    let prefix = update.announcements().next().unwrap().prefixes.iter().next().unwrap();
    assert_eq!(prefix.to_string(), "10.128.0.0/9");
}

#[test]
fn what_is_kept_of_unknown_attributes() {
    let octets = body(&[], &attributes_of(&["c06302 0001", "806401 07"], &EBGP), &hex("10 0a01"));
    let update = UpdateBody::split(&octets).unwrap().decode(&EBGP).unwrap();
    let attributes = update.attributes.unwrap();
    assert_eq!(attributes.value(99), Some([0, 1].as_slice()));
    let kept = attributes.as_bytes().windows(5).any(|w| w == [0xe0, 99, 2, 0, 1]);
    assert!(kept, "passed on with the partial bit");
    assert_eq!(attributes.value(100), None);
}

#[test]
fn families_that_were_not_negotiated() {
    let only_ipv6 = UpdateContext { families: Families::NONE.with(Family::Ipv6Unicast), ..EBGP };
    let octets = body(&hex("08 0b"), &attributes_of(&[], &EBGP), &hex("10 0a01"));
    let update = UpdateBody::split(&octets).unwrap().decode(&only_ipv6).unwrap();
    assert_eq!((update.withdrawn_len(), update.announcements().count()), (0, 0));
    assert!(update.attributes.is_none() && update.errors.is_empty());
}

#[test]
fn very_many_errors_stay_few() {
    let duplicates = "c06300".repeat(4_000);
    let octets = body(&[], &attributes_of(&[&format!("+{duplicates}")], &EBGP), &hex("10 0a01"));
    let update = UpdateBody::split(&octets).unwrap().decode(&EBGP).unwrap();
    assert_eq!(update.errors.len(), 16);
    assert!(!update.is_treated_as_withdraw());
    // The one that decides is found behind them.
    let flags = "c00100".repeat(4_000);
    let octets = body(&[], &hex(&format!("{duplicates}{flags}")), &hex("10 0a01"));
    let update = UpdateBody::split(&octets).unwrap().decode(&EBGP).unwrap();
    assert!(update.is_treated_as_withdraw() && update.attributes.is_none());
}

#[test]
fn headers() {
    let header = |octets: u16, code: u8| {
        let mut message = message(code, &[]);
        message[16..18].copy_from_slice(&octets.to_be_bytes());
        message
    };
    let mut marker = message(4, &[]);
    marker[15] = 0xfe;
    let (length, kind) = (HeaderError::BadMessageLength, HeaderError::BadMessageType);
    #[rustfmt::skip]
    let rows = [
        ("RFC 4271 6.1: marker",             marker, HeaderError::ConnectionNotSynchronized, vec![]),
        ("RFC 4271 6.1: below 19",           header(18, 4), length, vec![0, 18]),
        ("RFC 4271 6.1: above the maximum",  header(4097, 2), length, vec![0x10, 1]),
        ("RFC 4271 6.1: type 0",             header(19, 0), kind, vec![0]),
        ("RFC 4271 6.1: type 6",             header(19, 6), kind, vec![6]),
        ("RFC 4271 6.1: OPEN of 28",         header(28, 1), length, vec![0, 28]),
        ("RFC 4271 6.1: UPDATE of 22",       header(22, 2), length, vec![0, 22]),
        ("RFC 4271 6.1: NOTIFICATION of 20", header(20, 3), length, vec![0, 20]),
        ("RFC 4271 6.1: KEEPALIVE of 20",    header(20, 4), length, vec![0, 20]),
    ];
    for (section, octets, error, data) in rows {
        let mut buffer = BytesMut::from(octets.as_slice());
        let notification = Frame::split(&mut buffer, MESSAGE_OCTETS_MAX).expect_err(section);
        assert_eq!(notification.error, NotificationError::Header(error), "{section}");
        assert_eq!(notification.data, data, "{section}");
    }
    // A wrong marker shows before the header is complete.
    Frame::split(&mut BytesMut::from([0xff, 0x00].as_slice()), MESSAGE_OCTETS_MAX).unwrap_err();
    assert_eq!(
        Frame::split(&mut BytesMut::from([0xff; 18].as_slice()), MESSAGE_OCTETS_MAX),
        Ok(None)
    );
    // RFC 8654 section 4: UPDATEs may become long, OPEN and KEEPALIVE not.
    let split = |octets: u16, code| {
        Frame::split(
            &mut BytesMut::from(header(octets, code).as_slice()),
            MESSAGE_OCTETS_MAX_EXTENDED,
        )
    };
    assert_eq!(split(u16::MAX, 2), Ok(None));
    split(4097, 1).unwrap_err();
    split(4097, 4).unwrap_err();
}

#[test]
fn opens() {
    use OpenError::{
        BadIdentifier, BadPeerAs, UnacceptableHoldTime, Unspecific, UnsupportedOptionalParameter,
        UnsupportedVersion,
    };
    #[rustfmt::skip]
    let rows: &[(&str, &str, OpenError, &[u8])] = &[
        ("RFC 4271 6.2: version 3",           "03 fde9 005a 0a000001 00", UnsupportedVersion, &[0, 4]),
        ("RFC 4271 6.2: hold time 1",         "04 fde9 0001 0a000001 00", UnacceptableHoldTime, &[]),
        ("RFC 4271 6.2: hold time 2",         "04 fde9 0002 0a000001 00", UnacceptableHoldTime, &[]),
        ("RFC 6286 2.2: identifier 0",        "04 fde9 005a 00000000 00", BadIdentifier, &[]),
        ("RFC 7607 2: AS 0",                  "04 0000 005a 0a000001 00", BadPeerAs, &[]),
        ("RFC 7607 2: 4-octet AS 0",          "04 fde9 005a 0a000001 08 0206 4104 00000000", BadPeerAs, &[]),
        ("RFC 4271 6.2: cut",                 "04 fde9 005a 0a0000", Unspecific, &[]),
        ("RFC 4271 6.2: parameters too long", "04 fde9 005a 0a000001 02", Unspecific, &[]),
        ("RFC 4271 6.2: octets left over",    "04 fde9 005a 0a000001 00 00", Unspecific, &[]),
        ("RFC 4271 6.2: parameter cut",       "04 fde9 005a 0a000001 02 0201", Unspecific, &[]),
        ("RFC 4271 6.2: capability cut",      "04 fde9 005a 0a000001 04 0202 4104", Unspecific, &[]),
        ("RFC 5492 4: unknown parameter",     "04 fde9 005a 0a000001 02 0100", UnsupportedOptionalParameter, &[]),
        ("RFC 6793 3: 4-octet AS of 2",       "04 fde9 005a 0a000001 06 0204 4102 fde9", Unspecific, &[]),
        ("RFC 4760 8: multiprotocol of 3",    "04 fde9 005a 0a000001 07 0205 0103 000100", Unspecific, &[]),
        ("RFC 9072 2: cut length",            "04 fde9 005a 0a000001 ff ff00", Unspecific, &[]),
        ("RFC 9072 2: parameters too long",   "04 fde9 005a 0a000001 ff ff0004 02", Unspecific, &[]),
    ];
    for (section, octets, error, data) in rows {
        let notification = Open::decode(&hex(octets)).expect_err(section);
        assert_eq!(notification.error, NotificationError::Open(*error), "{section}");
        assert_eq!(notification.data, *data, "{section}");
    }
    let open = Open::decode(&hex("04 fde9 0000 0a000001 00")).unwrap();
    assert_eq!(open.hold_time_secs, 0, "RFC 4271 4.2: no hold time");
    let own = "10.0.0.1".parse().unwrap();
    let other = "10.0.0.2".parse().unwrap();
    assert_eq!(open.check_peer(65001, 65001, other), Ok(()));
    assert_eq!(open.check_peer(65002, 65001, other), Err(BadPeerAs.into()), "RFC 4271 6.2");
    assert_eq!(open.check_peer(65001, 65001, own), Err(BadIdentifier.into()), "RFC 6286 2.2");
    assert_eq!(open.check_peer(65001, 65002, own), Ok(()), "RFC 6286 2.2: between ASes");
}

#[test]
fn refreshes() {
    for octets in ["", "000100", "0001000101"] {
        let notification = RouteRefresh::decode(&hex(octets)).expect_err("RFC 7313 5");
        let error = NotificationError::RouteRefresh(RouteRefreshError::InvalidMessageLength);
        assert_eq!(notification.error, error);
        assert_eq!(notification.data, message(5, &hex(octets)), "the whole message");
    }
    // RFC 2918 section 4: an unknown family is ignored, not an error.
    assert_eq!(RouteRefresh::decode(&hex("00630080")).unwrap().family(), None);
}

/// The valid attributes of a route, with `changes`: an attribute replaces that of the same type,
/// `-3` leaves type 3 out, `+` appends at the end whatever is there.
fn attributes_of(changes: &[&str], context: &UpdateContext) -> Vec<u8> {
    let path = if context.as4 { hex("0201 0000fde9") } else { hex("0201 fde9") };
    let mut attributes = vec![
        (1, attribute(0x40, 1, &[0])),
        (2, attribute(0x40, 2, &path)),
        (3, attribute(0x40, 3, &[10, 0, 0, 1])),
    ];
    let mut appended = Vec::new();
    for change in changes {
        if let Some(code) = change.strip_prefix('-') {
            let code: u8 = code.parse().unwrap();
            attributes.retain(|(c, _)| *c != code);
        } else if let Some(octets) = change.strip_prefix('+') {
            appended.extend(hex(octets));
        } else {
            let octets = hex(change);
            attributes.retain(|(c, _)| *c != octets[1]);
            attributes.push((octets[1], octets));
        }
    }
    let mut all: Vec<u8> = attributes.into_iter().flat_map(|(_, octets)| octets).collect();
    all.extend(appended);
    all
}

fn assert_outcome(section: &str, octets: &[u8], context: &UpdateContext, outcome: Outcome) {
    let decoded: Result<_, Notification> =
        UpdateBody::split(octets).and_then(|body| body.decode(context));
    let update = match (decoded, outcome) {
        (Err(notification), Reset(error)) => {
            assert_eq!(notification.error, NotificationError::Update(error), "{section}");
            return;
        }
        (Ok(update), Used | Discard(..) | Withdraw(..)) => update,
        (decoded, outcome) => panic!("{section}: {outcome:?} wanted, got {decoded:?}"),
    };
    let withdraws = matches!(outcome, Withdraw(..));
    assert_eq!(update.is_treated_as_withdraw(), withdraws, "{section}: {:?}", update.errors);
    let announces = UpdateBody::split(octets).is_ok_and(|body| !body.nlri.is_empty());
    assert_eq!(update.attributes.is_some(), announces && !withdraws, "{section}");
    assert_eq!(update.announcements().count() > 0, announces && !withdraws, "{section}");
    if withdraws {
        assert!(update.withdrawn().any(|p| p.to_string() == "10.1.0.0/16"), "{section}");
    }
    let verdict = match outcome {
        Used => {
            assert_eq!(update.errors, [], "{section}");
            return;
        }
        Discard(code, fault) => (code, fault, AttributeVerdict::Discard),
        Withdraw(code, fault) => (code, fault, AttributeVerdict::TreatAsWithdraw),
        Reset(_) => unreachable!("returned above"),
    };
    let found =
        update.errors.iter().map(|e| (e.attribute_type, e.fault, e.verdict)).max_by_key(|e| e.2);
    assert_eq!(found, Some(verdict), "{section}");
    if let (Some(attributes), Discard(code, fault)) = (&update.attributes, outcome) {
        let gone = fault != Fault::Duplicate;
        assert_eq!(attributes.value(code).is_none(), gone, "{section}");
    }
    assert!(octets.len() + HEADER_OCTETS < 65_536);
}
