//! The control packet on the wire (RFC 5880 sections 4.1 and 6.8.6).

use cairn_bfd::wire::{ControlPacket, DecodeError, Diagnostic, PACKET_OCTETS, State};
use proptest::prelude::*;

/// A packet as another implementation sends it: Up, Poll and C bits, multiplier 3.
const PACKET: [u8; PACKET_OCTETS] =
    [0x23, 0xe8, 3, 24, 0, 0, 0, 1, 0, 0, 0, 2, 0, 4, 0x93, 0xe0, 0, 0, 0xc3, 0x50, 0, 0, 0, 0];

fn changed(at: usize, octet: u8) -> Vec<u8> {
    let mut octets = PACKET.to_vec();
    octets[at] = octet;
    octets
}

/// Section 4.1: every field has its place.
#[test]
fn fields() {
    let packet = ControlPacket::decode(&PACKET).expect("a good packet");
    assert_eq!(packet.diagnostic, Diagnostic::NeighborDown);
    assert_eq!(packet.state, State::Up);
    assert!(packet.poll && packet.control_plane_independent);
    assert!(!packet.is_final && !packet.demand);
    assert_eq!(packet.detect_multiplier.get(), 3);
    assert_eq!(packet.my_discriminator.get(), 1);
    assert_eq!(packet.your_discriminator.map(|d| d.get()), Some(2));
    assert_eq!(packet.desired_min_tx_micros, 300_000);
    assert_eq!(packet.required_min_rx_micros, 50_000);
    assert_eq!(packet.required_min_echo_rx_micros, 0);
    assert_eq!(packet.encode(), PACKET);
}

/// Section 6.8.6: each reason to discard, in the order of the RFC.
#[test]
fn discarded() {
    let error = |octets: &[u8]| ControlPacket::decode(octets).expect_err("discarded");
    assert_eq!(error(&PACKET[..23]), DecodeError::TooShort(23));
    assert_eq!(error(&[]), DecodeError::TooShort(0));
    for version in [0, 2, 7] {
        assert_eq!(error(&changed(0, version << 5)), DecodeError::Version(version));
    }
    assert_eq!(error(&changed(3, 23)), DecodeError::Length(23));
    assert_eq!(error(&changed(3, 25)), DecodeError::Length(25));
    assert_eq!(error(&changed(2, 0)), DecodeError::MultiplierZero);
    assert_eq!(error(&changed(1, 0xc1)), DecodeError::Multipoint);
    assert_eq!(error(&changed(7, 0)), DecodeError::DiscriminatorZero);
    for (bits, state) in [(0xc0, State::Up), (0x80, State::Init)] {
        let mut octets = changed(1, bits);
        octets[11] = 0;
        assert_eq!(error(&octets), DecodeError::StateWithoutDiscriminator(state));
    }
    // With authentication the least length is 26.
    assert_eq!(error(&changed(1, 0xc4)), DecodeError::Length(24));
    let mut authenticated = changed(1, 0xc4);
    authenticated[3] = 26;
    authenticated.extend([1, 2]);
    assert_eq!(error(&authenticated), DecodeError::Authenticated);
}

/// Section 6.8.6: Down and AdminDown do not need our discriminator, and what follows the packet's own
/// length is ignored.
#[test]
fn accepted() {
    for (bits, state) in [(0x40, State::Down), (0x00, State::AdminDown)] {
        let mut octets = changed(1, bits);
        octets[11] = 0;
        octets.extend([0xff; 40]);
        let packet = ControlPacket::decode(&octets).expect("a good packet");
        assert_eq!((packet.state, packet.your_discriminator), (state, None));
    }
}

proptest! {
    /// No octets make the decoder panic, and what it takes comes out again the same.
    #[test]
    fn any_octets(octets in proptest::collection::vec(any::<u8>(), 0..64)) {
        if let Ok(packet) = ControlPacket::decode(&octets) {
            prop_assert_eq!(ControlPacket::decode(&packet.encode()), Ok(packet));
        }
    }

    /// The same near a good packet, where most octets are taken.
    #[test]
    fn mutated(at in 0..PACKET_OCTETS, octet: u8) {
        if let Ok(packet) = ControlPacket::decode(&changed(at, octet)) {
            prop_assert_eq!(ControlPacket::decode(&packet.encode()), Ok(packet));
            prop_assert_eq!(&packet.encode()[..], &changed(at, octet)[..]);
        }
    }
}
