//! Errors in attributes of features that this speaker does not have, by the clause of their own RFC.

use cairn_bgp::wire::{AttributeFault as Fault, AttributesBuilder, PathAttributes, UpdateBody};

use super::build::{EBGP, IBGP, attribute, body, hex};
use super::errors::Outcome::{Discard, Used, Withdraw};
use super::errors::{BOTH, E, I, assert_rows, attributes_of};

#[test]
fn pmsi_tunnel() {
    #[rustfmt::skip]
    assert_rows(&[
        ("RFC 7606 3c: flags",                BOTH, &["801605 0000000000"], Withdraw(22, Fault::Flags)),
        ("RFC 6514 5: of 0",                  BOTH, &["c01600"], Withdraw(22, Fault::Length)),
        ("RFC 6514 5: of 4",                  BOTH, &["c01604 00000000"], Withdraw(22, Fault::Length)),
        ("RFC 6514 5: no tunnel",             BOTH, &["c01605 0000000000"], Used),
        ("RFC 6514 5: no tunnel, identifier", BOTH, &["c01609 0000000000 0a000001"], Withdraw(22, Fault::Length)),
        ("RFC 6514 5: RSVP-TE",               BOTH, &["c01611 0001000000 0a000001 00000001 00000001"], Used),
        ("RFC 6514 5: RSVP-TE of 11",         BOTH, &["c01610 0001000000 0a000001 00000001 000001"], Withdraw(22, Fault::Length)),
        ("RFC 6514 5: mLDP",                  BOTH, &["c0160f 0002000000 06000104 0a000001 0000"], Used),
        ("RFC 6388 2.2: root of 5",           BOTH, &["c01610 0002000000 06000105 0a00000100 0000"], Withdraw(22, Fault::Length)),
        ("RFC 6388 2.2: opaque cut",          BOTH, &["c0160f 0007000000 06000104 0a000001 0001"], Withdraw(22, Fault::Length)),
        ("RFC 6514 5: PIM-SSM",               BOTH, &["c0160d 0003000000 0a000001 e8000001"], Used),
        ("RFC 6514 5: PIM-SM of 7",           BOTH, &["c0160c 0004000000 0a000001 e80000"], Withdraw(22, Fault::Length)),
        ("RFC 6514 5: ingress replication",   BOTH, &["c01609 0006000000 0a000001"], Used),
        ("RFC 6514 5: replication of 5",      BOTH, &["c0160a 0006000000 0a00000100"], Withdraw(22, Fault::Length)),
        ("RFC 7385 3: registered later",      BOTH, &["c01608 000b000000 010203"], Used),
        ("RFC 7385 3: for experiments",       BOTH, &["c01605 00fb000000"], Used),
        ("RFC 8317 5: composite",             BOTH, &["c0160c 0086000000 000010 0a000001"], Used),
        ("RFC 6514 5: undefined type",        BOTH, &["c01605 0050000000"], Withdraw(22, Fault::Value)),
        ("RFC 7385 3: reserved type",         BOTH, &["c01605 00ff000000"], Withdraw(22, Fault::Value)),
    ]);
}

#[test]
fn tunnel_encapsulation() {
    // GRE with one egress endpoint 10.0.0.9.
    const GRE: &str = "0002 000c 060a 00000000 0001 0a000009";
    let gre = format!("c01710 {GRE}");
    let row = |octets: &str| {
        attribute(0xc0, 23, &hex(octets)).iter().map(|o| format!("{o:02x}")).collect::<String>()
    };
    let unknown_sub_tlv = row("0002 0010 060a 00000000 0001 0a000009 8000 0100");
    let (two_octet_cut, overrun) =
        (row("0002 0003 80 0001"), row("0002 000d 060a 00000000 0001 0a000009"));
    #[rustfmt::skip]
    assert_rows(&[
        ("RFC 9012 13: not transitive",       BOTH, &["801710 0002 000c 060a 00000000 0001 0a000009"], Withdraw(23, Fault::Flags)),
        ("RFC 9012 13: valid",                I,    &[&gre], Used),
        ("RFC 9012 11: filtered by eBGP",     E,    &[&gre], Discard(23, Fault::NotOnThisSession)),
        ("RFC 9012 13: no TLV",               BOTH, &["c01700"], Withdraw(23, Fault::Value)),
        ("RFC 9012 13: TLV cut",              BOTH, &[&overrun], Withdraw(23, Fault::Length)),
        ("RFC 9012 13: head cut",             BOTH, &["c01703 000200"], Withdraw(23, Fault::Length)),
        ("RFC 9012 13: sub-TLV overruns",     BOTH, &["c01708 0002 0004 060a 0000"], Withdraw(23, Fault::Length)),
        ("RFC 9012 2: two octets of length",  BOTH, &[&two_octet_cut], Withdraw(23, Fault::Length)),
        ("RFC 9012 13: unknown sub-TLV",      I,    &[&unknown_sub_tlv], Used),
        ("RFC 9012 13: unknown tunnel type",  I,    &["c01710 7fff 000c 060a 00000000 0001 0a000009"], Used),
        ("RFC 9012 3.1: no endpoint",         BOTH, &["c01704 0002 0000"], Withdraw(23, Fault::Value)),
        ("RFC 9012 3.1: the next hop",        I,    &["c0170c 0002 0008 0606 00000000 0000"], Used),
        ("RFC 9012 3.1: IPv4 of 5",           BOTH, &["c01711 0002 000d 060b 00000000 0001 0a00000900"], Withdraw(23, Fault::Value)),
        ("RFC 9012 13: endpoint no host",     BOTH, &["c01710 0002 000c 060a 00000000 0001 e0000001"], Withdraw(23, Fault::Value)),
        ("RFC 9012 3.1: two endpoints",       BOTH, &["c01714 0002 0010 0606 00000000 0000 0606 00000000 0000"], Withdraw(23, Fault::Value)),
    ]);
    // RFC 9012 section 13: a TLV whose endpoint is malformed is removed, the others stay.
    let bad = "0008 0000";
    for order in [format!("{bad}{GRE}"), format!("{GRE}{bad}"), format!("{bad}{GRE}{bad}")] {
        let octets = attribute(0xc0, 23, &hex(&order));
        let octets = [attributes_of(&[], &IBGP), octets].concat();
        let octets = body(&[], &octets, &hex("10 0a01"));
        let update = UpdateBody::split(&octets).unwrap().decode(&IBGP).unwrap();
        let attributes = update.attributes.expect("used");
        assert_eq!(attributes.value(23), Some(hex(GRE).as_slice()), "{order}");
    }
}

#[test]
fn aigp() {
    #[rustfmt::skip]
    assert_rows(&[
        ("RFC 7606 3c: not optional",         BOTH, &["001a0b 01000b 0000000000000064"], Withdraw(26, Fault::Flags)),
        ("RFC 7606 3c: well-known",           BOTH, &["401a0b 01000b 0000000000000064"], Withdraw(26, Fault::Flags)),
        ("RFC 7311 3.2: transitive",          BOTH, &["c01a0b 01000b 0000000000000064"], Discard(26, Fault::Flags)),
        ("RFC 7311 3: valid, not used",       BOTH, &["801a0b 01000b 0000000000000064"], Used),
        ("RFC 7311 3.2: several, unknown",    BOTH, &["801a19 020003 01000b 0000000000000064 01000b ffffffffffffffff"], Used),
        ("RFC 7606 4: of 0",                  BOTH, &["801a00"], Discard(26, Fault::Length)),
        ("RFC 7311 3: TLV length of 2",       BOTH, &["801a03 020002"], Discard(26, Fault::Length)),
        ("RFC 7311 3: TLV overruns",          BOTH, &["801a03 020004"], Discard(26, Fault::Length)),
        ("RFC 7311 3: metric of 7",           BOTH, &["801a0a 01000a 00000000000064"], Discard(26, Fault::Length)),
        ("RFC 7311 3.2: largest metric",      BOTH, &["801a0b 01000b ffffffffffffffff"], Discard(26, Fault::Value)),
    ]);
}

#[test]
fn link_state() {
    #[rustfmt::skip]
    assert_rows(&[
        ("RFC 7606 3c: transitive",           BOTH, &["c01d04 04000000"], Withdraw(29, Fault::Flags)),
        ("RFC 9552 8.2.2: valid, not used",   BOTH, &["801d05 0400000100"], Used),
        ("RFC 9552 8.2.2: any order",         BOTH, &["801d08 04010000 04000000"], Used),
        ("RFC 9552 8.2.2: sum of TLVs",       BOTH, &["801d05 0400000200"], Discard(29, Fault::Length)),
        ("RFC 9552 8.2.2: head cut",          BOTH, &["801d03 040000"], Discard(29, Fault::Length)),
        ("RFC 7606 4: of 0",                  BOTH, &["801d00"], Discard(29, Fault::Length)),
    ]);
}

#[test]
fn prefix_sid() {
    #[rustfmt::skip]
    assert_rows(&[
        ("RFC 7606 3c: not transitive",       BOTH, &["80280a 010007 00000000000064"], Withdraw(40, Fault::Flags)),
        ("RFC 8669 4: from another AS",       E,    &["c0280a 010007 00000000000064"], Discard(40, Fault::NotOnThisSession)),
        ("RFC 8669 4: whatever it holds",     E,    &["c02800"], Discard(40, Fault::NotOnThisSession)),
        ("RFC 8669 3: inside the AS",         I,    &["c0280a 010007 00000000000064"], Used),
        ("RFC 8669 3: unknown TLV",           I,    &["c02804 630001 00"], Used),
        ("RFC 8669 6: of 0",                  I,    &["c02800"], Discard(40, Fault::Length)),
        ("RFC 8669 6: TLV overruns",          I,    &["c02804 630002 00"], Discard(40, Fault::Length)),
        ("RFC 8669 6: head cut",              I,    &["c02802 6300"], Discard(40, Fault::Length)),
        ("RFC 8669 3.1: label index of 6",    I,    &["c02809 010006 000000000064"], Discard(40, Fault::Length)),
        ("RFC 8669 3.2: SRGB of 2",           I,    &["c02805 030002 0000"], Discard(40, Fault::Length)),
        ("RFC 8669 3.2: SRGB of 8",           I,    &["c0280b 030008 0000 003e80 001f40"], Used),
        ("RFC 8669 3.2: SRGB of 9",           I,    &["c0280c 030009 0000 003e80 001f40 00"], Discard(40, Fault::Length)),
    ]);
}

#[test]
fn attributes_of_rfc_7606_that_nobody_uses() {
    #[rustfmt::skip]
    assert_rows(&[
        ("RFC 7606 7.13: TE transitive",      BOTH, &["c01801 00"], Withdraw(24, Fault::Flags)),
        ("RFC 7606 7.13: TE, not used",       BOTH, &["801801 00"], Used),
        ("RFC 7606 7.16: ATTR_SET flags",     BOTH, &["808004 0000fde9"], Withdraw(128, Fault::Flags)),
        ("RFC 7606 7.16: ATTR_SET",           BOTH, &["c08008 0000fde9 400101 00"], Used),
        ("RFC 7606 7.16: ATTR_SET of 3",      BOTH, &["c08003 00fde9"], Withdraw(128, Fault::Length)),
        ("RFC 7606 7.16: inner overrun",      BOTH, &["c08008 0000fde9 400102 00"], Withdraw(128, Fault::Length)),
    ]);
}

/// A malformed one is in no attributes that could go to a peer, a valid one only where it may go.
#[test]
fn what_is_passed_on() {
    let kept = |context, octets: &str| -> Option<PathAttributes> {
        let octets = body(&[], &attributes_of(&[octets], context), &hex("10 0a01"));
        let update = UpdateBody::split(&octets).unwrap().decode(context).unwrap();
        update.attributes.map(|attributes| (*attributes).clone())
    };
    // Optional, transitive, and partial: who comes next shall know that it was not understood.
    for octets in ["c01605 0000000000", "c08004 0000fde9"] {
        for context in BOTH {
            let attributes = kept(context, octets).expect("used");
            let partial = hex(&octets.replacen('c', "e", 1));
            assert!(attributes.as_bytes().ends_with(&partial), "{octets}");
        }
    }
    for octets in ["801a0b 01000b 0000000000000064", "801d05 0400000100", "801801 00"] {
        for context in BOTH {
            let attributes = kept(context, octets).expect("used");
            assert_eq!(attributes.value(hex(octets)[1]), None, "not transitive: {octets}");
        }
    }
    let sid = kept(&IBGP, "c0280a 010007 00000000000064").expect("used");
    assert!(sid.value(40).is_some());
    assert_eq!(kept(&EBGP, "c0280a 010007 00000000000064").expect("used").value(40), None);
    // RFC 8669 section 5.1, RFC 9012 section 11: nor do they leave the AS.
    let tunnel = kept(&IBGP, "c0170c 0002 0008 0606 00000000 0000").expect("used");
    for attributes in [sid, tunnel] {
        let outside = attributes.edit().remove_internal().build();
        assert_eq!((outside.value(40), outside.value(23)), (None, None));
    }
    // RFC 4360 section 6: extended communities that are not transitive stay inside, the others go on.
    let both = "c01010 0002fde900000001 4004fde900000001";
    let attributes = kept(&IBGP, both).expect("used").edit().remove_internal().build();
    assert_eq!(attributes.extended_communities().collect::<Vec<_>>(), [0x0002_fde9_0000_0001]);
    let only = kept(&IBGP, "c01008 4004fde900000001").expect("used");
    let mut builder: AttributesBuilder<'_> = only.edit();
    assert_eq!(builder.remove_internal().build().value(16), None);
}

/// RFC 8092 section 3: repeated values go, the first ones stay in their order.
#[test]
fn repeated_large_communities() {
    let value = |n: u32| [n.to_be_bytes(), [0; 4], [7; 4]].concat();
    let decode = |values: &[u32]| {
        let octets = values.iter().flat_map(|n| value(*n)).collect::<Vec<_>>();
        let octets = [attributes_of(&[], &EBGP), attribute(0xc0, 32, &octets)].concat();
        let octets = body(&[], &octets, &hex("10 0a01"));
        let update = UpdateBody::split(&octets).unwrap().decode(&EBGP).unwrap();
        assert_eq!(update.errors, []);
        let attributes = update.attributes.expect("used");
        attributes.large_communities().map(|c| c.global).collect::<Vec<_>>()
    };
    assert_eq!(decode(&[3, 1, 2]), [3, 1, 2]);
    assert_eq!(decode(&[3, 1, 3, 3, 2, 1]), [3, 1, 2]);
    let many = (0..2000).map(|n| n * 7 % 1000).collect::<Vec<_>>();
    assert_eq!(decode(&many), many[..1000]);
    let different = (0..1000).rev().collect::<Vec<_>>();
    assert_eq!(decode(&different), different);
}
