//! Attributes of features that this speaker does not have: each is checked by the error clause of its
//! own RFC, so that a malformed one goes no further, and is never used.

use std::borrow::Cow;
use std::net::IpAddr;

use super::attributes::{Tlvs, attribute_type as code};
use super::reader::Reader;
use super::update::{AttributeFault as Fault, AttributeVerdict as Verdict, NextHop, SessionSort};

/// Checks the value of an attribute; `Ok` for the types that are no matter of this module.
pub(super) fn check(
    attribute_type: u8,
    value: &[u8],
    sort: SessionSort,
) -> Result<(), (Fault, Verdict)> {
    let external = sort == SessionSort::Ebgp;
    match attribute_type {
        // RFC 6514 section 5.
        code::PMSI_TUNNEL => check_pmsi(value).map_err(|fault| (fault, Verdict::TreatAsWithdraw)),
        // RFC 9012 section 13. Between ASes it is filtered by default (section 11).
        code::TUNNEL_ENCAPSULATION => match valid_tunnels(value) {
            Err(fault) => Err((fault, Verdict::TreatAsWithdraw)),
            Ok(_) if external => Err((Fault::NotOnThisSession, Verdict::Discard)),
            Ok(_) => Ok(()),
        },
        // RFC 7311 section 3.2.
        code::AIGP => check_aigp(value).map_err(|fault| (fault, Verdict::Discard)),
        // RFC 9552 section 8.2.2.
        code::BGP_LS => check_link_state(value).map_err(|fault| (fault, Verdict::Discard)),
        // RFC 8669 section 4: whoever is not configured to take it from another AS discards it.
        code::PREFIX_SID if external => Err((Fault::NotOnThisSession, Verdict::Discard)),
        // RFC 8669 section 6.
        code::PREFIX_SID => check_prefix_sid(value).map_err(|fault| (fault, Verdict::Discard)),
        // RFC 7606 section 7.16: the origin AS, then attributes.
        code::ATTR_SET => check_attr_set(value).map_err(|fault| (fault, Verdict::TreatAsWithdraw)),
        _ => Ok(()),
    }
}

/// An undefined tunnel type is malformed, and so is an identifier that is none of its type.
fn check_pmsi(value: &[u8]) -> Result<(), Fault> {
    let mut reader = Reader(value);
    let [_flags, tunnel_type] = reader.array().ok_or(Fault::Length)?;
    let _label = reader.array::<3>().ok_or(Fault::Length)?;
    let octets = reader.0.len();
    let is_right = match tunnel_type {
        pmsi::NONE => octets == 0,
        pmsi::RSVP_TE => matches!(octets, 12 | 24),
        pmsi::MLDP_P2MP | pmsi::MLDP_MP2MP => is_mldp_fec(reader),
        pmsi::PIM_SSM | pmsi::PIM_SM | pmsi::BIDIR_PIM => matches!(octets, 8 | 32),
        pmsi::INGRESS_REPLICATION => matches!(octets, 4 | 16),
        // Later entries of the registry (RFC 7385), types for experiments, composite tunnels (RFC
        // 8317): defined, but nothing is known of their identifiers here.
        8..=13 | 0x7b..=0x7e | 0x80..=0x8d | 0xfb..=0xfe => true,
        _ => return Err(Fault::Value),
    };
    if is_right { Ok(()) } else { Err(Fault::Length) }
}

/// RFC 6388 section 2.2: type, address family, root address and opaque value, both counted.
fn is_mldp_fec(mut reader: Reader<'_>) -> bool {
    let fec = reader.array::<3>().zip(reader.counted_u8()).zip(reader.counted_u16());
    let Some((([_, afi_high, afi_low], root), _opaque)) = fec else { return false };
    let root_octets = match u16::from_be_bytes([afi_high, afi_low]) {
        1 => 4,
        2 => 16,
        _ => return false,
    };
    root.len() == root_octets && reader.is_empty()
}

/// The TLVs whose Tunnel Egress Endpoint is valid; others are to be removed from what is passed on.
/// One that does not end with its last sub-TLV is malformed, and so is an attribute without any valid
/// TLV. No tunnel type is known here, which is no error (RFC 9012 section 13).
pub(super) fn valid_tunnels(value: &[u8]) -> Result<Cow<'_, [u8]>, Fault> {
    let mut kept = Cow::Borrowed(value);
    let mut reader = Reader(value);
    // As long as nothing has been left out, what is kept is the front of the value.
    let mut is_whole = true;
    let mut count = 0;
    while !reader.is_empty() {
        let before = reader.0;
        let _tunnel_type = reader.u16().ok_or(Fault::Length)?;
        let sub_tlvs = reader.counted_u16().ok_or(Fault::Length)?;
        let octets = before.len() - reader.0.len();
        let is_valid = has_one_endpoint(Reader(sub_tlvs))?;
        match (is_valid, is_whole) {
            (true, true) => {}
            (true, false) => kept.to_mut().extend(before.iter().take(octets)),
            (false, true) => {
                is_whole = false;
                let front = value.len() - before.len();
                kept = Cow::Owned(value.iter().take(front).copied().collect());
            }
            (false, false) => {}
        }
        count += usize::from(is_valid);
    }
    if count == 0 { Err(Fault::Value) } else { Ok(kept) }
}

/// Whether exactly one Tunnel Egress Endpoint is among the sub-TLVs, and is well-formed (RFC 9012
/// section 3.1).
fn has_one_endpoint(mut sub_tlvs: Reader<'_>) -> Result<bool, Fault> {
    let (mut count, mut are_valid) = (0_usize, true);
    while let Some(sub_tlv_type) = sub_tlvs.u8() {
        // RFC 9012 section 2: types from 128 on have a length of two octets.
        let value = match sub_tlv_type {
            0..=127 => sub_tlvs.counted_u8(),
            _ => sub_tlvs.counted_u16(),
        };
        let value = value.ok_or(Fault::Length)?;
        if sub_tlv_type == TUNNEL_EGRESS_ENDPOINT {
            count += 1;
            are_valid &= is_endpoint(Reader(value));
        }
    }
    Ok(count == 1 && are_valid)
}

fn is_endpoint(mut value: Reader<'_>) -> bool {
    let (Some(_reserved), Some(afi)) = (value.u32(), value.u16()) else { return false };
    let address = match afi {
        // The next hop of the route.
        0 => return value.is_empty(),
        1 => value.ipv4().map(IpAddr::V4),
        2 => value.ipv6().map(IpAddr::V6),
        _ => return false,
    };
    value.is_empty() && address.is_some_and(|a| NextHop::new(a).checked().is_some())
}

/// TLVs of a type, a length that counts its own three octets, and a value; the first metric says that
/// there is a way at all. Several of a type and unknown ones are no error.
fn check_aigp(value: &[u8]) -> Result<(), Fault> {
    let mut reader = Reader(value);
    let mut metric = None;
    if value.is_empty() {
        return Err(Fault::Length);
    }
    while let Some(tlv_type) = reader.u8() {
        let octets = reader.u16().and_then(|octets| octets.checked_sub(3)).ok_or(Fault::Length)?;
        let value = reader.take(usize::from(octets)).ok_or(Fault::Length)?;
        if tlv_type == AIGP_METRIC {
            let value = value.as_array::<8>().ok_or(Fault::Length)?;
            metric.get_or_insert(u64::from_be_bytes(*value));
        }
    }
    if metric == Some(u64::MAX) { Err(Fault::Value) } else { Ok(()) }
}

/// TLVs of two octets each for type and length; their order does not matter.
fn check_link_state(value: &[u8]) -> Result<(), Fault> {
    let mut reader = Reader(value);
    while !reader.is_empty() {
        reader.u16().zip(reader.counted_u16()).ok_or(Fault::Length)?;
    }
    if value.is_empty() { Err(Fault::Length) } else { Ok(()) }
}

/// TLVs of one octet for the type and two for the length; unknown ones are passed on.
fn check_prefix_sid(value: &[u8]) -> Result<(), Fault> {
    let mut reader = Reader(value);
    while !reader.is_empty() {
        let (tlv_type, value) = reader.u8().zip(reader.counted_u16()).ok_or(Fault::Length)?;
        let is_right = match (tlv_type, value.len()) {
            (LABEL_INDEX, octets) => octets == 7,
            (ORIGINATOR_SRGB, octets) => octets >= 8 && (octets - 2).is_multiple_of(6),
            _ => true,
        };
        if !is_right {
            return Err(Fault::Length);
        }
    }
    if value.is_empty() { Err(Fault::Length) } else { Ok(()) }
}

fn check_attr_set(value: &[u8]) -> Result<(), Fault> {
    let mut reader = Reader(value);
    reader.u32().ok_or(Fault::Length)?;
    let mut tlvs = Tlvs(reader);
    tlvs.by_ref().for_each(drop);
    if tlvs.0.is_empty() { Ok(()) } else { Err(Fault::Length) }
}

/// P-Multicast Service Interface tunnel types (RFC 6514 section 5).
mod pmsi {
    pub(super) const NONE: u8 = 0;
    pub(super) const RSVP_TE: u8 = 1;
    pub(super) const MLDP_P2MP: u8 = 2;
    pub(super) const PIM_SSM: u8 = 3;
    pub(super) const PIM_SM: u8 = 4;
    pub(super) const BIDIR_PIM: u8 = 5;
    pub(super) const INGRESS_REPLICATION: u8 = 6;
    pub(super) const MLDP_MP2MP: u8 = 7;
}

/// Sub-TLV of a tunnel (RFC 9012 section 3.1).
const TUNNEL_EGRESS_ENDPOINT: u8 = 6;
/// TLV of AIGP (RFC 7311 section 3).
const AIGP_METRIC: u8 = 1;
/// TLV of PREFIX_SID (RFC 8669 section 3.1).
const LABEL_INDEX: u8 = 1;
/// TLV of PREFIX_SID (RFC 8669 section 3.2).
const ORIGINATOR_SRGB: u8 = 3;
