//! Messages put together octet by octet, without the encoder that is under test.
#![allow(dead_code, reason = "each test binary uses a part of it")]

use cairn_bgp::prefix::{Families, Family};
use cairn_bgp::wire::{AttributeTypes, SessionSort, UpdateContext};

pub const EBGP: UpdateContext = UpdateContext {
    sort: SessionSort::Ebgp,
    as4: true,
    families: Families::NONE.with(Family::Ipv4Unicast).with(Family::Ipv6Unicast),
    extended_next_hop: false,
    first_as: None,
    discard_attributes: AttributeTypes::NONE,
    path_ids: Families::NONE,
};
pub const IBGP: UpdateContext = UpdateContext { sort: SessionSort::Ibgp, ..EBGP };

/// A path attribute with a length of one octet, or of two where needed.
pub fn attribute(flags: u8, code: u8, value: &[u8]) -> Vec<u8> {
    match u8::try_from(value.len()) {
        Ok(octets) => [&[flags, code, octets], value].concat(),
        Err(_) => {
            let octets = u16::try_from(value.len()).unwrap().to_be_bytes();
            [&[flags | 0x10, code], octets.as_slice(), value].concat()
        }
    }
}

/// The body of an UPDATE.
pub fn body(withdrawn: &[u8], attributes: &[u8], nlri: &[u8]) -> Vec<u8> {
    let octets = |part: &[u8]| u16::try_from(part.len()).unwrap().to_be_bytes();
    [&octets(withdrawn), withdrawn, &octets(attributes), attributes, nlri].concat()
}

/// A whole message.
pub fn message(message_type: u8, body: &[u8]) -> Vec<u8> {
    let octets = u16::try_from(19 + body.len()).unwrap().to_be_bytes();
    [&[0xff; 16], octets.as_slice(), &[message_type], body].concat()
}

/// Octets of hexadecimal digits; blanks are for the reader.
pub fn hex(text: &str) -> Vec<u8> {
    let digits: Vec<u8> =
        text.chars().filter_map(|c| c.to_digit(16)).map(|d| u8::try_from(d).unwrap()).collect();
    assert!(digits.len().is_multiple_of(2), "half an octet in {text}");
    digits.chunks(2).map(|pair| pair[0] << 4 | pair[1]).collect()
}

/// The attributes in `octets`, up to one that is cut off.
pub fn split_attributes(octets: &[u8]) -> Vec<Vec<u8>> {
    let (mut rest, mut all) = (octets, Vec::new());
    while rest.len() >= 3 && (rest[0] & 0x10 == 0 || rest.len() >= 4) {
        let end = match rest[0] & 0x10 {
            0 => 3 + usize::from(rest[2]),
            _ => 4 + usize::from(u16::from_be_bytes([rest[2], rest[3]])),
        };
        let Some((attribute, behind)) = rest.split_at_checked(end) else { break };
        all.push(attribute.to_vec());
        rest = behind;
    }
    all
}

/// The other way round, as files of the corpus have it.
pub fn digits(octets: &[u8]) -> String {
    octets.iter().map(|octet| format!("{octet:02x}")).collect()
}
