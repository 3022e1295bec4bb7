//! Communities as people write them.

use std::fmt;
use std::net::Ipv4Addr;
use std::str::FromStr;

use crate::wire::{Community, CommunityValue, LargeCommunity, attribute_type};

/// One EXTENDED COMMUNITIES value: eight octets (RFC 4360).
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct ExtendedCommunity(pub u64);

/// A text that is no community.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum CommunityError {
    /// No COMMUNITIES value.
    #[error(
        "\"{0}\" is no community: write two numbers up to 65535 as 65000:1, or a well-known name \
         such as no-export"
    )]
    Plain(String),
    /// No EXTENDED COMMUNITIES value.
    #[error(
        "\"{0}\" is no extended community: write a route target as rt:65000:1 or rt:192.0.2.1:1, a \
         route origin as ro:65000:1, or all 16 hexadecimal digits"
    )]
    Extended(String),
    /// No LARGE_COMMUNITY value.
    #[error("\"{0}\" is no large community: write three numbers as 65000:1:2")]
    Large(String),
}

impl CommunityValue for ExtendedCommunity {
    const ATTRIBUTE: u8 = attribute_type::EXTENDED_COMMUNITIES;
    const OCTETS: usize = 8;

    fn put(self, out: &mut Vec<u8>) {
        out.extend(self.0.to_be_bytes());
    }
}

impl FromStr for Community {
    type Err = CommunityError;

    /// Two 16-bit numbers as `65000:1`, or a name that IANA registered, in lower case with hyphens.
    fn from_str(text: &str) -> Result<Community, CommunityError> {
        let named = WELL_KNOWN.iter().find(|(name, _)| *name == text);
        let value = named.map(|(_, value)| *value).or_else(|| {
            let (high, low) = text.split_once(':')?;
            Some(u32::from(number::<u16>(high)?) << 16 | u32::from(number::<u16>(low)?))
        });
        value.map(Community).ok_or_else(|| CommunityError::Plain(text.to_owned()))
    }
}

impl FromStr for LargeCommunity {
    type Err = CommunityError;

    /// Three 32-bit numbers in decimal (RFC 8092 section 5).
    fn from_str(text: &str) -> Result<LargeCommunity, CommunityError> {
        let mut numbers = text.split(':').map(number::<u32>);
        let mut next = || numbers.next().flatten();
        match (next(), next(), next(), numbers.next()) {
            (Some(global), Some(local1), Some(local2), None) => {
                Ok(LargeCommunity { global, local1, local2 })
            }
            _ => Err(CommunityError::Large(text.to_owned())),
        }
    }
}

impl FromStr for ExtendedCommunity {
    type Err = CommunityError;

    /// `rt:` or `ro:` before an AS number or an IPv4 address and a number (RFC 4360 sections 4 and
    /// 5, RFC 5668), or all eight octets in hexadecimal.
    fn from_str(text: &str) -> Result<ExtendedCommunity, CommunityError> {
        let value = match text.split_once(':') {
            None if text.len() == 16 && text.bytes().all(|b| b.is_ascii_hexdigit()) => {
                u64::from_str_radix(text, 16).ok()
            }
            None => None,
            Some((kind, value)) => kind_code(kind).and_then(|sub_type| encode(sub_type, value)),
        };
        value.map(ExtendedCommunity).ok_or_else(|| CommunityError::Extended(text.to_owned()))
    }
}

fn kind_code(name: &str) -> Option<u8> {
    KINDS.iter().find(|(_, kind)| *kind == name).map(|(code, _)| *code)
}

/// An AS number below 65536 has two octets and leaves four for the number after it.
fn encode(sub_type: u8, value: &str) -> Option<u64> {
    let (administrator, assigned) = value.rsplit_once(':')?;
    let head = |kind: u8| u64::from(kind) << 56 | u64::from(sub_type) << 48;
    if let Ok(address) = administrator.parse::<Ipv4Addr>() {
        let low = u64::from(number::<u16>(assigned)?);
        return Some(head(IPV4_SPECIFIC) | u64::from(address.to_bits()) << 16 | low);
    }
    let asn = number::<u32>(administrator)?;
    match u16::try_from(asn) {
        Ok(asn) => {
            let low = u64::from(number::<u32>(assigned)?);
            Some(head(TWO_OCTET_AS) | u64::from(asn) << 32 | low)
        }
        Err(_) => {
            let low = u64::from(number::<u16>(assigned)?);
            Some(head(FOUR_OCTET_AS) | u64::from(asn) << 16 | low)
        }
    }
}

/// A decimal number without a sign.
fn number<T: FromStr>(text: &str) -> Option<T> {
    text.bytes().all(|b| b.is_ascii_digit()).then(|| text.parse().ok())?
}

impl fmt::Display for ExtendedCommunity {
    /// As it is read; sorts without a name in hexadecimal.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let [kind, sub_type, a, b, c, d, e, g] = self.0.to_be_bytes();
        let Some((_, name)) = KINDS.iter().find(|(code, _)| *code == sub_type) else {
            return write!(f, "{:016x}", self.0);
        };
        match kind {
            TWO_OCTET_AS => {
                let (asn, low) = (u16::from_be_bytes([a, b]), u32::from_be_bytes([c, d, e, g]));
                write!(f, "{name}:{asn}:{low}")
            }
            IPV4_SPECIFIC => {
                write!(f, "{name}:{}:{}", Ipv4Addr::new(a, b, c, d), u16::from_be_bytes([e, g]))
            }
            // A small AS number in the long form would be read back as the short one.
            FOUR_OCTET_AS if (a, b) != (0, 0) => {
                let (asn, low) = (u32::from_be_bytes([a, b, c, d]), u16::from_be_bytes([e, g]));
                write!(f, "{name}:{asn}:{low}")
            }
            _ => write!(f, "{:016x}", self.0),
        }
    }
}

impl fmt::Debug for ExtendedCommunity {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

/// Types of RFC 4360 section 3 and RFC 5668: transitive, with the administrator's form.
const TWO_OCTET_AS: u8 = 0x00;
const IPV4_SPECIFIC: u8 = 0x01;
const FOUR_OCTET_AS: u8 = 0x02;
/// Sub-types: route target and route origin.
const KINDS: [(u8, &str); 2] = [(0x02, "rt"), (0x03, "ro")];
/// IANA, BGP Well-known Communities.
const WELL_KNOWN: [(&str, u32); 9] = [
    ("graceful-shutdown", 0xffff_0000),
    ("accept-own", 0xffff_0001),
    ("llgr-stale", 0xffff_0006),
    ("no-llgr", 0xffff_0007),
    ("blackhole", 0xffff_029a),
    ("no-export", 0xffff_ff01),
    ("no-advertise", 0xffff_ff02),
    ("no-export-subconfed", 0xffff_ff03),
    ("no-peer", 0xffff_ff04),
];
