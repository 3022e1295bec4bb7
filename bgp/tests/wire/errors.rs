//! Every reaction to a malformed UPDATE, by the RFC section that asks for it.

use cairn_bgp::prefix::{Families, Family};
use cairn_bgp::wire::{
    AttributeFault as Fault, AttributeTypes, AttributeVerdict, Notification, NotificationError,
    PathPrefix, UpdateBody, UpdateContext, UpdateError,
};

use super::build::{EBGP, IBGP, attribute, body, hex};

/// What has to come of an UPDATE.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Outcome {
    /// Used as it is.
    Used,
    /// Used without this attribute.
    Discard(u8, Fault),
    /// Its prefixes are withdrawn because of this attribute.
    Withdraw(u8, Fault),
    /// The session ends with this NOTIFICATION, whose data are these hexadecimal digits.
    Reset(UpdateError, &'static str),
}
use Outcome::{Discard, Reset, Used, Withdraw};

/// The RFC section, the sessions, attributes to put in (instead of the valid one of the same type) or
/// to leave out, and what has to come of it.
pub type Row<'a> = (&'a str, &'a [UpdateContext], &'a [&'a str], Outcome);

/// Sessions of both sorts.
pub const BOTH: &[UpdateContext] = &[EBGP, IBGP];
pub const E: &[UpdateContext] = &[EBGP];
pub const I: &[UpdateContext] = &[IBGP];
/// Peers with 2-octet AS numbers.
const AS2: &[UpdateContext] =
    &[UpdateContext { as4: false, ..EBGP }, UpdateContext { as4: false, ..IBGP }];
const FIRST_AS: &[UpdateContext] = &[UpdateContext { first_as: Some(65001), ..EBGP }];
/// Sessions on which IPv4 may have IPv6 next hops.
const RFC8950: &[UpdateContext] = &[
    UpdateContext { extended_next_hop: true, ..EBGP },
    UpdateContext { extended_next_hop: true, ..IBGP },
];

#[test]
fn flags() {
    use UpdateError::AttributeFlags as Flags;
    #[rustfmt::skip]
    assert_rows(&[
        ("RFC 7606 3c: ORIGIN optional",       BOTH, &["c00101 00"], Withdraw(1, Fault::Flags)),
        ("RFC 7606 3c: ORIGIN not transitive", BOTH, &["000101 00"], Withdraw(1, Fault::Flags)),
        ("RFC 7606 3c: AS_PATH",               BOTH, &["000206 02010000fde9"], Withdraw(2, Fault::Flags)),
        ("RFC 7606 3c: NEXT_HOP",              BOTH, &["c00304 0a000001"], Withdraw(3, Fault::Flags)),
        ("RFC 7606 3c: MED transitive",        BOTH, &["c00404 00000001"], Withdraw(4, Fault::Flags)),
        ("RFC 7606 3c: before discard",        BOTH, &["c00504 00000001"], Withdraw(5, Fault::Flags)),
        ("RFC 7606 3c: ATOMIC_AGGREGATE",      BOTH, &["800600"], Withdraw(6, Fault::Flags)),
        ("RFC 7606 3c: AGGREGATOR",            BOTH, &["800708 0000fde9 0a000001"], Withdraw(7, Fault::Flags)),
        ("RFC 7606 3c: COMMUNITIES",           BOTH, &["800804 00010001"], Withdraw(8, Fault::Flags)),
        ("RFC 7606 3c: ORIGINATOR_ID",         BOTH, &["c00904 0a000001"], Withdraw(9, Fault::Flags)),
        ("RFC 7606 3c: CLUSTER_LIST",          BOTH, &["c00a04 0a000001"], Withdraw(10, Fault::Flags)),
        ("RFC 7606 3c: EXTENDED COMMUNITIES",  BOTH, &["801008 0002fde900000001"], Withdraw(16, Fault::Flags)),
        ("RFC 7606 3c: AS4_PATH",              AS2,  &["400204 0201fde9", "801106 02010000fde9"], Withdraw(17, Fault::Flags)),
        ("RFC 7606 3c: AS4_AGGREGATOR",        AS2,  &["400204 0201fde9", "801208 0000fde90a000001"], Withdraw(18, Fault::Flags)),
        ("RFC 7606 3c: IPv6 EXTENDED",         BOTH, &["801914 000220010db8000000000000000000000001 0064"], Withdraw(25, Fault::Flags)),
        ("RFC 7606 3c: LARGE_COMMUNITY",       BOTH, &["80200c 000000010000000200000003"], Withdraw(32, Fault::Flags)),
        ("RFC 7606 3c: ONLY_TO_CUSTOMER",      BOTH, &["802304 0000fde9"], Withdraw(35, Fault::Flags)),
        ("RFC 7606 3c: before the length",     BOTH, &["c00102 0000"], Withdraw(1, Fault::Flags)),
        ("RFC 7606 3c: before the duplicate",  BOTH, &["+c00101 00"], Withdraw(1, Fault::Flags)),
        ("RFC 4271 4.3: partial is no error",  BOTH, &["e00804 00010001"], Used),
        ("RFC 4271 4.3: low bits ignored",     BOTH, &["4f0101 00"], Used),
        ("RFC 7606 5.3: MP_REACH transitive",  BOTH, &["c00e09 00010104 0a000001 00"], Reset(Flags, "c00e09 00010104 0a000001 00")),
        ("RFC 7606 5.3: MP_UNREACH transitive", BOTH, &["c00f05 000201 0820"], Reset(Flags, "c00f05 000201 0820")),
        ("RFC 7606 5.3: MP_UNREACH well-known", BOTH, &["100f0005 000201 0820"], Reset(Flags, "100f0005 000201 0820")),
    ]);
}

#[test]
fn structure() {
    use UpdateError::MalformedAttributeList as List;
    #[rustfmt::skip]
    assert_rows(&[
        ("RFC 4271 5: all valid",             BOTH, &[], Used),
        ("RFC 7606 3d: no ORIGIN",            BOTH, &["-1"], Withdraw(1, Fault::Missing)),
        ("RFC 7606 3d: no AS_PATH",           BOTH, &["-2"], Withdraw(2, Fault::Missing)),
        ("RFC 7606 3d: no NEXT_HOP",          BOTH, &["-3"], Withdraw(3, Fault::Missing)),
        ("RFC 4271 5.1.5: no LOCAL_PREF",     I,    &[], Used),
        ("RFC 7606 3g: ORIGIN twice",         BOTH, &["+400101 02"], Discard(1, Fault::Duplicate)),
        ("RFC 7606 3g: MED twice",            BOTH, &["800404 00000001", "+800404 00000002"], Discard(4, Fault::Duplicate)),
        ("RFC 7606 3g: the second malformed", BOTH, &["800404 00000001", "+800403 000000"], Discard(4, Fault::Duplicate)),
        ("RFC 7606 3g: the first malformed",  BOTH, &["800403 000000", "+800404 00000001"], Withdraw(4, Fault::Length)),
        ("RFC 7606 3g: unknown twice",        BOTH, &["c06300", "+c06300"], Discard(99, Fault::Duplicate)),
        ("RFC 7606 3g: MP_REACH twice",       BOTH, &["800e09 0001010400000000 00", "+800e09 0001010400000000 00"], Reset(List, "")),
        ("RFC 7606 3g: MP_UNREACH twice",     BOTH, &["800f03 000201", "+800f03 000201"], Reset(List, "")),
        ("RFC 7606 3g: of other families",    BOTH, &["800f03 004004", "+800f03 006380"], Reset(List, "")),
        ("RFC 7606 4: overrun",               BOTH, &["+c00808 00010001"], Withdraw(8, Fault::Overrun)),
        ("RFC 7606 4: no room for a length",  BOTH, &["+c008"], Withdraw(8, Fault::Overrun)),
        ("RFC 7606 4: one octet left",        BOTH, &["+c0"], Withdraw(0, Fault::Overrun)),
        ("RFC 7606 4: half extended length",  BOTH, &["+d00800"], Withdraw(8, Fault::Overrun)),
        ("RFC 7606 3j: MP_REACH overruns",    BOTH, &["+800e20 000201"], Reset(List, "")),
        ("RFC 7606 3j: MP_UNREACH overruns",  BOTH, &["+800f04 000201"], Reset(List, "")),
        ("RFC 7606 3h: the stronger one",     BOTH, &["400601 00", "c00800"], Withdraw(8, Fault::Length)),
        ("RFC 7606 3h: reset is the strongest", BOTH, &["400101 09", "800f02 0002"], Reset(UpdateError::OptionalAttribute, "800f02 0002")),
        ("RFC 4271 6.3: unknown well-known",  BOTH, &["406302 0102"], Reset(UpdateError::UnrecognizedWellKnownAttribute, "406302 0102")),
        ("RFC 4271 5: unknown transitive",    BOTH, &["c06302 0001"], Used),
        ("RFC 4271 5: unknown not transitive", BOTH, &["806302 0001"], Used),
    ]);
}

#[test]
fn each_attribute() {
    #[rustfmt::skip]
    assert_rows(&[
        ("RFC 7606 7.1: ORIGIN of 0",         BOTH, &["400100"], Withdraw(1, Fault::Length)),
        ("RFC 7606 7.1: ORIGIN of 2",         BOTH, &["400102 0000"], Withdraw(1, Fault::Length)),
        ("RFC 7606 7.1: ORIGIN 3",            BOTH, &["400101 03"], Withdraw(1, Fault::Value)),
        ("RFC 7606 7.2: empty is valid",      BOTH, &["400200"], Used),
        ("RFC 7606 7.2: segment type 0",      BOTH, &["400206 00010000fde9"], Withdraw(2, Fault::Value)),
        ("RFC 7606 7.2: segment type 5",      BOTH, &["400206 05010000fde9"], Withdraw(2, Fault::Value)),
        ("RFC 7606 7.2: segment overrun",     BOTH, &["400206 02020000fde9"], Withdraw(2, Fault::Length)),
        ("RFC 7606 7.2: one octet left",      BOTH, &["400207 02010000fde9 02"], Withdraw(2, Fault::Length)),
        ("RFC 7606 7.2: segment of 0",        BOTH, &["400208 02010000fde9 0200"], Withdraw(2, Fault::Value)),
        ("RFC 7606 7.2: 4-octet path, old peer", AS2, &["400206 02010000fde9"], Withdraw(2, Fault::Value)),
        ("RFC 7606 7.2: first AS",            FIRST_AS, &["400206 02010000fdea"], Withdraw(2, Fault::FirstAs)),
        ("RFC 7606 7.2: first AS, empty",     FIRST_AS, &["400200"], Withdraw(2, Fault::FirstAs)),
        ("RFC 4271 6.3: first AS is right",   FIRST_AS, &[], Used),
        ("RFC 7607 2: AS 0",                  BOTH, &["40020a 0202 0000fde9 00000000"], Withdraw(2, Fault::Value)),
        ("RFC 9774 3: AS_SET",                BOTH, &["40020c 02010000fde9 01010000fde8"], Withdraw(2, Fault::Segment)),
        ("RFC 9774 3: AS_CONFED_SET",         BOTH, &["400206 04010000fde9"], Withdraw(2, Fault::Segment)),
        ("RFC 5065 5: AS_CONFED_SEQUENCE",    BOTH, &["400206 03010000fde9"], Withdraw(2, Fault::Segment)),
        ("RFC 7606 7.3: NEXT_HOP of 0",       BOTH, &["400300"], Withdraw(3, Fault::Length)),
        ("RFC 7606 7.3: NEXT_HOP of 5",       BOTH, &["400305 0a00000100"], Withdraw(3, Fault::Length)),
        ("RFC 4271 6.3: NEXT_HOP 0.0.0.0",    BOTH, &["400304 00000000"], Withdraw(3, Fault::Value)),
        ("RFC 4271 6.3: NEXT_HOP multicast",  BOTH, &["400304 e0000001"], Withdraw(3, Fault::Value)),
        ("RFC 4271 6.3: NEXT_HOP broadcast",  BOTH, &["400304 ffffffff"], Withdraw(3, Fault::Value)),
        ("RFC 4271 6.3: NEXT_HOP loopback",   BOTH, &["400304 7f000001"], Withdraw(3, Fault::Value)),
        ("RFC 7606 7.4: MED of 0",            BOTH, &["800400"], Withdraw(4, Fault::Length)),
        ("RFC 7606 7.4: MED of 3",            BOTH, &["800403 000000"], Withdraw(4, Fault::Length)),
        ("RFC 7606 7.5: LOCAL_PREF by eBGP",  E,    &["400504 00000064"], Discard(5, Fault::NotOnThisSession)),
        ("RFC 7606 7.5: whatever its length", E,    &["400500"], Discard(5, Fault::NotOnThisSession)),
        ("RFC 7606 7.5: LOCAL_PREF of 0",     I,    &["400500"], Withdraw(5, Fault::Length)),
        ("RFC 7606 7.5: LOCAL_PREF of 5",     I,    &["400505 0000006400"], Withdraw(5, Fault::Length)),
        ("RFC 7606 7.5: LOCAL_PREF by iBGP",  I,    &["400504 00000064"], Used),
        ("RFC 7606 7.6: ATOMIC_AGGREGATE 1",  BOTH, &["400601 00"], Discard(6, Fault::Length)),
        ("RFC 7606 7.6: ATOMIC_AGGREGATE",    BOTH, &["400600"], Used),
        ("RFC 7606 7.7: AGGREGATOR of 6",     BOTH, &["c00706 fde90a000001"], Discard(7, Fault::Length)),
        ("RFC 7606 7.7: AGGREGATOR of 8",     AS2,  &["400204 0201fde9", "c00708 0000fde90a000001"], Discard(7, Fault::Length)),
        ("RFC 7607 2: AGGREGATOR AS 0",       BOTH, &["c00708 000000000a000001"], Discard(7, Fault::Value)),
        ("RFC 7606 7.8: COMMUNITIES of 0",    BOTH, &["c00800"], Withdraw(8, Fault::Length)),
        ("RFC 7606 7.8: COMMUNITIES of 6",    BOTH, &["c00806 000100010001"], Withdraw(8, Fault::Length)),
        ("RFC 7606 7.9: ORIGINATOR_ID, eBGP", E,    &["800904 0a000001"], Discard(9, Fault::NotOnThisSession)),
        ("RFC 7606 7.9: ORIGINATOR_ID of 5",  I,    &["800905 0a00000100"], Withdraw(9, Fault::Length)),
        ("RFC 7606 7.10: CLUSTER_LIST, eBGP", E,    &["800a03 000000"], Discard(10, Fault::NotOnThisSession)),
        ("RFC 7606 7.10: CLUSTER_LIST of 0",  I,    &["800a00"], Withdraw(10, Fault::Length)),
        ("RFC 7606 7.10: CLUSTER_LIST of 6",  I,    &["800a06 0a0000010a00"], Withdraw(10, Fault::Length)),
        ("RFC 7606 7.14: EXTENDED of 0",      BOTH, &["c01000"], Withdraw(16, Fault::Length)),
        ("RFC 7606 7.14: EXTENDED of 9",      BOTH, &["c01009 000000000000000000"], Withdraw(16, Fault::Length)),
        ("RFC 7606 7.14: unknown EXTENDED",   BOTH, &["c01008 3fff000000000000"], Used),
        ("RFC 7606 7.15: IPv6 EXTENDED of 0", BOTH, &["c01900"], Withdraw(25, Fault::Length)),
        ("RFC 7606 7.15: IPv6 EXTENDED of 8", BOTH, &["c01908 0000000000000000"], Withdraw(25, Fault::Length)),
        ("RFC 8092 5: LARGE of 0",            BOTH, &["c02000"], Withdraw(32, Fault::Length)),
        ("RFC 8092 5: LARGE of 8",            BOTH, &["c02008 0000000100000002"], Withdraw(32, Fault::Length)),
        ("RFC 9234 5: ONLY_TO_CUSTOMER of 3", BOTH, &["c02303 000000"], Withdraw(35, Fault::Length)),
        ("RFC 9234 5: ONLY_TO_CUSTOMER",      BOTH, &["c02304 0000fde9"], Used),
        ("RFC 6793 4.1: AS4_PATH, new peer",  BOTH, &["c01106 02010000fde9"], Discard(17, Fault::NotOnThisSession)),
        ("RFC 6793 4.1: AS4_AGGREGATOR",      BOTH, &["c01208 0000fde90a000001"], Discard(18, Fault::NotOnThisSession)),
        ("RFC 6793 6: AS4_PATH cut",          AS2,  &["400204 0201fde9", "c01105 02010000fd"], Discard(17, Fault::Length)),
        ("RFC 6793 6: AS4_PATH empty",        AS2,  &["400204 0201fde9", "c01100"], Discard(17, Fault::Length)),
        ("RFC 6793 6: AS4_PATH segment type", AS2,  &["400204 0201fde9", "c01106 07010000fde9"], Discard(17, Fault::Value)),
        ("RFC 7607 2: AS4_PATH with AS 0",    AS2,  &["400204 0201fde9", "c01106 020100000000"], Discard(17, Fault::Value)),
        ("RFC 9774 3: AS4_PATH with a set",   AS2,  &["400204 0201fde9", "c01106 01010000fde9"], Withdraw(17, Fault::Segment)),
        ("RFC 6793 6: AS4_PATH, confederation", AS2, &["400204 0201fde9", "c01106 03010000fde9"], Used),
        ("RFC 6793 6: AS4_AGGREGATOR of 6",   AS2,  &["400204 0201fde9", "c01206 fde90a000001"], Discard(18, Fault::Length)),
        ("RFC 7607 2: AS4_AGGREGATOR AS 0",   AS2,  &["400204 0201fde9", "c01208 000000000a000001"], Discard(18, Fault::Value)),
    ]);
}

#[test]
fn multiprotocol() {
    let optional = |data| Reset(UpdateError::OptionalAttribute, data);
    const LINK_LOCAL: &str = "800e2a 00020120 20010db8000000000000000000000001 fe800000000000000000000000000001 00 20 20010db8";
    const PREFIX_129: &str =
        "800e26 00020110 20010db8000000000000000000000001 00 81 00000000000000000000000000000000";
    const PREFIX_CUT: &str = "800e17 00020110 20010db8000000000000000000000001 00 1020";
    #[rustfmt::skip]
    assert_rows(&[
        ("RFC 7606 7.11: next hop of 0",      BOTH, &["800e05 000101 00 00"], optional("800e05 000101 00 00")),
        ("RFC 7606 7.11: next hop of 5",      BOTH, &["800e0a 000101050000000000 00"], optional("800e0a 000101050000000000 00")),
        ("RFC 7606 7.11: IPv6 next hop of 4", BOTH, &["800e09 00020104 0a000001 00"], optional("800e09 00020104 0a000001 00")),
        ("RFC 8950 4: not negotiated",        BOTH, &["800e15 00010110 20010db8000000000000000000000001 00"], optional("800e15 00010110 20010db8000000000000000000000001 00")),
        ("RFC 8950 4: negotiated",            RFC8950, &["800e15 00010110 20010db8000000000000000000000001 00"], Used),
        ("RFC 8950 3: next hop of 24",        RFC8950, &["800e1d 00010118 20010db800000000000000000000000100000000 00000000 00"], optional("800e1d 00010118 20010db800000000000000000000000100000000 00000000 00")),
        ("RFC 7606 5.3: MP_REACH of 4",       BOTH, &["800e04 00020100"], optional("800e04 00020100")),
        ("RFC 7606 5.3: MP_REACH of 0",       BOTH, &["800e00"], optional("800e00")),
        ("RFC 7606 7.11: cut in next hop",    BOTH, &["800e06 000201100000"], optional("800e06 000201100000")),
        ("RFC 7606 5.3: MP_REACH prefix 129", BOTH, &[PREFIX_129], optional(PREFIX_129)),
        ("RFC 7606 5.3: MP_REACH prefix cut", BOTH, &[PREFIX_CUT], optional(PREFIX_CUT)),
        ("RFC 2545 3: global and link-local", BOTH, &[LINK_LOCAL], Used),
        ("RFC 4271 6.3: MP next hop ::",      BOTH, &["800e17 00020110 00000000000000000000000000000000 00 0820"], Withdraw(14, Fault::Value)),
        ("RFC 4271 6.3: MP next hop ff02::1", BOTH, &["800e17 00020110 ff020000000000000000000000000001 00 0820"], Withdraw(14, Fault::Value)),
        ("RFC 7606 5.3: MP_UNREACH of 0",     BOTH, &["800f00"], optional("800f00")),
        ("RFC 7606 5.3: MP_UNREACH of 2",     BOTH, &["900f0002 0002"], optional("900f0002 0002")),
        ("RFC 7606 5.3: MP_UNREACH of 3",     BOTH, &["800f03 000201"], Used),
        ("RFC 7606 5.3: MP_UNREACH prefix",   BOTH, &["800f04 000201 81"], optional("800f04 000201 81")),
        ("RFC 4760 6: unknown family",        BOTH, &["800e09 0063 80 0400000000 00"], Used),
        ("RFC 4760 6: unknown, unreachable",  BOTH, &["800f06 0063 80 ffffff"], Used),
        ("RFC 7606 5.1: any position",        BOTH, &["+800f05 000201 0820"], Used),
    ]);
}

#[test]
fn next_hop_beside_mp_reach() {
    let reach = "800e17 00020110 20010db8000000000000000000000001 00 0820";
    let decode = |changes: &[&str], nlri: &str| {
        let octets = body(&[], &attributes_of(&[&[reach], changes].concat(), &EBGP), &hex(nlri));
        let update = UpdateBody::split(&octets).unwrap().decode(&EBGP).unwrap();
        (update.announcements().count(), update.errors)
    };
    // RFC 4760 section 3: NEXT_HOP is ignored, and need not be there, when all prefixes have another.
    assert_eq!(decode(&["-3"], ""), (1, vec![]));
    assert_eq!(decode(&["400304 00000000"], ""), (1, vec![]));
    // RFC 7606 sections 3c and 7.3 know no such exception for flags and length.
    assert_eq!(decode(&["400305 0000000000"], "").0, 0);
    assert_eq!(decode(&["c00304 0a000001"], "").0, 0);
    // Where NLRI needs it, all routes of the UPDATE go (RFC 7606 section 2).
    assert_eq!(decode(&["400304 00000000"], "10 0a01").0, 0);
    assert_eq!(decode(&[], "10 0a01"), (2, vec![]));
}

#[test]
fn updates_without_a_prefix_to_withdraw() {
    // RFC 7606 section 5.2: nothing to treat as withdrawn, so the session ends.
    let reset = |attributes: &[&str], error, data| {
        let octets = body(&hex("08 0b"), &attributes_of(attributes, &EBGP), &[]);
        assert_outcome("RFC 7606 5.2", &octets, &EBGP, Reset(error, data));
    };
    reset(&["400101 09"], UpdateError::InvalidOrigin, "400101 09");
    reset(&["c00800"], UpdateError::AttributeLength, "c00800");
    reset(&["c00404 00000001"], UpdateError::AttributeFlags, "c00404 00000001");
    reset(&["+c00101 00"], UpdateError::AttributeFlags, "c00101 00");
    reset(&["+c00808 00"], UpdateError::MalformedAttributeList, "");
    reset(&["400206 05010000fde9"], UpdateError::MalformedAsPath, "");
    reset(&["400205 020100fde9"], UpdateError::MalformedAsPath, "");
    reset(&["400304 00000000"], UpdateError::InvalidNextHop, "400304 00000000");
    reset(&["c01605 0050000000"], UpdateError::OptionalAttribute, "c01605 0050000000");
    // An MP_REACH_NLRI without prefixes shows none either.
    let empty = "800e15 00020110 20010db8000000000000000000000001 00";
    reset(&[empty, "400101 09"], UpdateError::InvalidOrigin, "400101 09");
    let octets = body(&hex("08 0b"), &attributes_of(&[empty, "-1"], &EBGP), &[]);
    assert_outcome("RFC 7606 5.2", &octets, &EBGP, Used);
    // A discarded attribute is no reason to end it, and nothing is mandatory without prefixes.
    let octets = body(&hex("08 0b"), &hex("400600 400504 00000000"), &[]);
    assert_outcome("RFC 7606 5.2", &octets, &EBGP, Discard(5, Fault::NotOnThisSession));
    // RFC 7606 section 3 d: the type code of what is missing; only with prefixes anything is.
    let octets = body(&[], &attributes_of(&["-1"], &EBGP), &hex("10 0a01"));
    assert_outcome("RFC 7606 3d", &octets, &EBGP, Withdraw(1, Fault::Missing));
}

#[test]
fn discarded_by_configuration() {
    let discard = |types: &[u8]| UpdateContext {
        discard_attributes: AttributeTypes::discardable(types.iter().copied()),
        ..EBGP
    };
    let decode = |types: &[u8], changes: &[&str]| {
        let octets = body(&[], &attributes_of(changes, &EBGP), &hex("10 0a01"));
        let update = UpdateBody::split(&octets).unwrap().decode(&discard(types)).unwrap();
        (update.attributes.map(|attributes| attributes.as_bytes().to_vec()), update.errors)
    };
    let plain = decode(&[], &[]);
    assert!(plain.0.is_some() && plain.1.is_empty());
    // Valid, wrong by its flags, by its length, twice: whatever it is, it was never there.
    for change in ["c00804 00010001", "400804 00010001", "c00803 000100", "406302 0001"] {
        let twice = format!("+{change}");
        assert_eq!(decode(&[8, 99], &[change]), plain, "{change}");
        assert_eq!(decode(&[8, 99], &[change, &twice]), plain, "{change}");
    }
    // What a route cannot be without stays, and is checked.
    assert_eq!(decode(&[1, 2, 3, 14, 15], &[]), plain);
    assert_eq!(decode(&[1], &["400101 09"]).1.len(), 1);
    for attribute_type in 0..=u8::MAX {
        let stays = [1, 2, 3, 14, 15].contains(&attribute_type);
        let set = AttributeTypes::discardable([attribute_type]);
        let found = (0..=u8::MAX).filter(|t| set.contains(*t)).collect::<Vec<_>>();
        assert_eq!(found, if stays { vec![] } else { vec![attribute_type] });
    }
}

#[test]
fn update_lengths_and_prefixes() {
    let attributes = attributes_of(&[], &EBGP);
    let malformed = Reset(UpdateError::MalformedAttributeList, "");
    let network = Reset(UpdateError::InvalidNetworkField, "");
    #[rustfmt::skip]
    let rows = [
        ("RFC 4271 4.3: no body",              vec![], malformed),
        ("RFC 7606 3a: withdrawn too long",    hex("0001 0000"), Reset(UpdateError::MalformedAttributeList, "")),
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

/// The valid attributes of a route, with `changes`: an attribute replaces that of the same type,
/// `-3` leaves type 3 out, `+` appends at the end whatever is there.
pub fn attributes_of(changes: &[&str], context: &UpdateContext) -> Vec<u8> {
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

pub fn assert_rows(rows: &[Row<'_>]) {
    for (section, contexts, attributes, outcome) in rows {
        for context in *contexts {
            let attributes = attributes_of(attributes, context);
            let octets = body(&[], &attributes, &hex("10 0a01"));
            assert_outcome(section, &octets, context, *outcome);
        }
    }
}

fn assert_outcome(section: &str, octets: &[u8], context: &UpdateContext, outcome: Outcome) {
    let decoded: Result<_, Notification> =
        UpdateBody::split(octets).and_then(|body| body.decode(context));
    let update = match (decoded, outcome) {
        (Err(notification), Reset(error, data)) => {
            assert_eq!(notification.error, NotificationError::Update(error), "{section}");
            assert_eq!(notification.data, hex(data), "{section}");
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
    // What the error history shows: the announced prefixes, and no others.
    let treated = update.treated_as_withdrawn().collect::<Vec<_>>();
    assert_eq!(treated.is_empty(), !withdraws, "{section}");
    assert_eq!(update.affected().next().is_some(), announces, "{section}");
    assert!(treated.iter().all(|p| update.affected().any(|a| a == *p)), "{section}");
    let verdict = match outcome {
        Used => {
            assert_eq!(update.errors, [], "{section}");
            return;
        }
        Discard(code, fault) => (code, fault, AttributeVerdict::Discard),
        Withdraw(code, fault) => (code, fault, AttributeVerdict::TreatAsWithdraw),
        Reset(..) => unreachable!("returned above"),
    };
    let found =
        update.errors.iter().map(|e| (e.attribute_type, e.fault, e.verdict)).max_by_key(|e| e.2);
    assert_eq!(found, Some(verdict), "{section}");
    if let (Some(attributes), Discard(code, fault)) = (&update.attributes, outcome) {
        let gone = fault != Fault::Duplicate;
        assert_eq!(attributes.value(code).is_none(), gone, "{section}");
    }
}

/// RFC 7911 section 3: an identifier in front of each prefix, as negotiated for its family; what does not
/// fit is as bad as a prefix that does not (RFC 7606 section 5.3).
#[test]
fn identifiers_of_paths() {
    let context = UpdateContext { path_ids: Families::NONE.with(Family::Ipv4Unicast), ..EBGP };
    let attributes = hex("400101 00 400206 02010000fde9 400304 0a000001");
    let octets = body(&hex("00000007 08 0a"), &attributes, &hex("00000001 08 0a 00000002 10 0a01"));
    let update = UpdateBody::split(&octets).unwrap().decode(&context).unwrap();
    let text = |path: PathPrefix| format!("{} {}", path.path_id, path.prefix);
    let withdrawn = update.withdrawn_runs().flat_map(|prefixes| prefixes.paths()).map(text);
    assert_eq!(withdrawn.collect::<Vec<_>>(), ["7 10.0.0.0/8"]);
    let announced = update.announcements().flat_map(|a| a.prefixes.paths()).map(text);
    assert_eq!(announced.collect::<Vec<_>>(), ["1 10.0.0.0/8", "2 10.1.0.0/16"]);
    for wrong in ["00", "00000001", "00000001 21 0a000000 00", "00000001 08 0a 000000"] {
        for (withdrawn, nlri) in [(wrong, ""), ("", wrong)] {
            let octets = body(&hex(withdrawn), &attributes, &hex(nlri));
            let error = UpdateBody::split(&octets).unwrap().decode(&context).unwrap_err();
            assert_eq!(
                error.error,
                NotificationError::Update(UpdateError::InvalidNetworkField),
                "{wrong}"
            );
        }
    }
    // An error in the attributes withdraws the paths that were announced.
    let bad = hex("400101 09 400206 02010000fde9 400304 0a000001");
    let octets = body(&[], &bad, &hex("00000001 08 0a"));
    let update = UpdateBody::split(&octets).unwrap().decode(&context).unwrap();
    let withdrawn = update.withdrawn_runs().flat_map(|prefixes| prefixes.paths()).map(text);
    assert_eq!(withdrawn.collect::<Vec<_>>(), ["1 10.0.0.0/8"]);
    // The other family has none.
    let reach = hex("800e 1a 000201 10 20010db8000000000000000000000001 00 20 20010db8");
    let octets = body(&[], &[reach, attributes].concat(), &[]);
    let update = UpdateBody::split(&octets).unwrap().decode(&context).unwrap();
    let announced = update.announcements().flat_map(|a| a.prefixes.paths()).map(text);
    assert_eq!(announced.collect::<Vec<_>>(), ["0 2001:db8::/32"]);
}
