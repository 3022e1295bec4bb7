//! Every reaction to a malformed message other than an UPDATE, by the RFC section that asks for it.

use bytes::BytesMut;
use cairn_bgp::wire::{
    Frame, FrameHeader, HeaderError, MESSAGE_OCTETS_MAX, MESSAGE_OCTETS_MAX_EXTENDED, Notification,
    NotificationError, Open, OpenError, RefreshKind, RouteRefresh, RouteRefreshError,
};

use super::build::{hex, message};

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
        ("RFC 4271 6.1: ROUTE-REFRESH of 22", header(22, 5), length, vec![0, 22]),
        ("RFC 4271 6.1: length before type", header(18, 0), length, vec![0, 18]),
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
        ("RFC 7607 2: AS 0 in front of one",  "04 0000 005a 0a000001 08 0206 4104 0000fde9", BadPeerAs, &[]),
        ("RFC 7607 2: 4-octet AS 0",          "04 fde9 005a 0a000001 08 0206 4104 00000000", BadPeerAs, &[]),
        ("RFC 4271 6.2: cut",                 "04 fde9 005a 0a0000", Unspecific, &[]),
        ("RFC 4271 6.2: parameters too long", "04 fde9 005a 0a000001 02", Unspecific, &[]),
        ("RFC 4271 6.2: octets left over",    "04 fde9 005a 0a000001 00 00", Unspecific, &[]),
        ("RFC 4271 6.2: parameter cut",       "04 fde9 005a 0a000001 02 0201", Unspecific, &[]),
        ("RFC 4271 6.2: capability cut",      "04 fde9 005a 0a000001 04 0202 4104", Unspecific, &[]),
        ("RFC 5492 4: unknown parameter",     "04 fde9 005a 0a000001 02 0100", UnsupportedOptionalParameter, &[]),
        ("RFC 6793 3: 4-octet AS of 2",       "04 fde9 005a 0a000001 06 0204 4102 fde9", Unspecific, &[]),
        ("RFC 4760 8: multiprotocol of 3",    "04 fde9 005a 0a000001 07 0205 0103 000100", Unspecific, &[]),
        ("RFC 4271 6.2: parameter length cut", "04 fde9 005a 0a000001 01 02", Unspecific, &[]),
        ("RFC 4271 6.2: version 5",           "05 fde9 005a 0a000001 00", UnsupportedVersion, &[0, 4]),
        ("RFC 4271 6.2: version before rest", "03 0000 0001 00000000 00", UnsupportedVersion, &[0, 4]),
        ("RFC 9072 2: unknown parameter",     "04 fde9 005a 0a000001 ff ff0003 010000", UnsupportedOptionalParameter, &[]),
        ("RFC 9072 2: parameter cut",         "04 fde9 005a 0a000001 ff ff0003 020001", Unspecific, &[]),
        ("RFC 9072 2: octets left over",      "04 fde9 005a 0a000001 ff ff0000 00", Unspecific, &[]),
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
    // RFC 9072 section 2: the type of the first parameter says it, whatever the length before it.
    for octets in ["04 fde9 005a 0a000001 ff ff0000", "04 fde9 005a 0a000001 05 ff0005 020002 0600"]
    {
        Open::decode(&hex(octets)).expect("RFC 9072 2");
    }
    // RFC 5492 section 3: unknown capabilities, repeated ones and empty parameters are no error.
    let open =
        Open::decode(&hex("04 fde9 005a 0a000001 0e 0200 0204 0200 0200 0204 c802 0102")).unwrap();
    assert_eq!(open.capabilities.len(), 3);
    let own = "10.0.0.1".parse().unwrap();
    let other = "10.0.0.2".parse().unwrap();
    assert_eq!(open.check_peer(65001, 65001, other), Ok(()));
    assert_eq!(open.check_peer(65002, 65001, other), Err(BadPeerAs.into()), "RFC 4271 6.2");
    assert_eq!(open.check_peer(65001, 65001, own), Err(BadIdentifier.into()), "RFC 6286 2.2");
    assert_eq!(open.check_peer(65001, 65002, own), Ok(()), "RFC 6286 2.2: between ASes");
}

#[test]
fn refreshes() {
    // RFC 7313 section 5: for the marks an error of their own, with the whole message.
    for octets in ["0001010100", "000102010000"] {
        let notification = RouteRefresh::decode(&hex(octets)).expect_err("RFC 7313 5");
        let error = NotificationError::RouteRefresh(RouteRefreshError::InvalidMessageLength);
        assert_eq!(notification.error, error);
        assert_eq!(notification.data, message(5, &hex(octets)), "the whole message");
    }
    // RFC 4271 section 6.1 for a plain request, whose sender need not know RFC 7313.
    for (octets, length) in [("", 19), ("000100", 22), ("0001000101", 24)] {
        let notification = RouteRefresh::decode(&hex(octets)).expect_err("RFC 4271 6.1");
        let error = NotificationError::Header(HeaderError::BadMessageLength);
        assert_eq!(notification, Notification::with_data(error, vec![0, length].into()));
    }
    // RFC 7313 section 5: an unknown subtype is ignored.
    let refresh = RouteRefresh::decode(&hex("0001090100")).unwrap();
    assert_eq!(refresh.kind, RefreshKind::Unknown(9));
    // RFC 2918 section 4: an unknown family is ignored, not an error.
    assert_eq!(RouteRefresh::decode(&hex("00630080")).unwrap().family(), None);
}

#[test]
fn the_whole_message_for_the_error_history() {
    let octets = message(2, &hex("0000 0000"));
    let mut buffer = BytesMut::from([octets.as_slice(), &[0xff]].concat().as_slice());
    let frame = Frame::split(&mut buffer, MESSAGE_OCTETS_MAX).unwrap().unwrap();
    assert_eq!(frame.to_message(), octets);
    assert_eq!(buffer.len(), 1);
}

#[test]
fn sizes_of_extended_messages() {
    // RFC 8654 section 4: all but OPEN and KEEPALIVE may be long, where that was negotiated.
    for code in [2, 3, 5] {
        let long = message(code, &[0; 65_535 - 19]);
        let header = FrameHeader::peek(&long, MESSAGE_OCTETS_MAX_EXTENDED).unwrap().unwrap();
        assert_eq!(header.octets, 65_535);
        let error = FrameHeader::peek(&long, MESSAGE_OCTETS_MAX).unwrap_err();
        assert_eq!(error.error, NotificationError::Header(HeaderError::BadMessageLength));
        assert_eq!(error.data, [0xff, 0xff].as_slice());
    }
    let open = message(1, &[0; 4096 - 19]);
    assert!(FrameHeader::peek(&open, MESSAGE_OCTETS_MAX_EXTENDED).unwrap().is_some());
}
