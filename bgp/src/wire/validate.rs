//! Checking attributes one by one (RFC 7606 sections 3 and 7).
//!
//! What is looked at here are octets and an [`UpdateContext`], nothing else, so that equal octets have
//! equal verdicts.

use std::borrow::Cow;
use std::net::Ipv4Addr;
use std::sync::Arc;

use bytes::Bytes;
use smallvec::SmallVec;

use super::AS_TRANS;
use super::attributes::{
    AsPath, Origin, PathAttributes, Tlvs, attribute_type as code, flag, put_attribute, segment_type,
};
use super::codes::AttributeTypes;
use super::foreign;
use super::notification::{Notification, NotificationError, UpdateError};
use super::reader::Reader;
use super::update::{
    AttributeError, AttributeFault as Fault, AttributeVerdict as Verdict, SessionSort,
    UpdateContext,
};

/// What the attributes other than MP_REACH_NLRI and MP_UNREACH_NLRI say.
#[derive(Clone, Debug)]
pub(super) struct Checked {
    /// `None` when the attributes cannot go with a route.
    pub(super) attributes: Option<Arc<PathAttributes>>,
    /// NEXT_HOP, not yet looked at: whether it counts depends on the prefixes.
    pub(super) next_hop: Option<Ipv4Addr>,
    /// NEXT_HOP is there, its error is listed.
    pub(super) next_hop_is_wrong: bool,
    /// Attributes that any announcement must have.
    pub(super) missing: [Option<u8>; 2],
    /// What is wrong.
    pub(super) errors: AttributeErrors,
}

/// The errors of one UPDATE: the first ones, and always the one that decides.
#[derive(Clone, Debug, Default)]
pub(super) struct AttributeErrors {
    pub(super) listed: Vec<AttributeError>,
    deciding: Option<AttributeError>,
}

impl AttributeErrors {
    pub(super) fn push(&mut self, attribute_type: u8, fault: Fault, verdict: Verdict) {
        let error = AttributeError { attribute_type, fault, verdict };
        if verdict == Verdict::TreatAsWithdraw && self.deciding.is_none() {
            self.deciding = Some(error);
        }
        if self.listed.len() < ERRORS_MAX {
            self.listed.push(error);
        }
    }

    /// Whether the routes count as withdrawn.
    pub(super) fn withdraws(&self) -> bool {
        self.deciding.is_some()
    }

    /// The NOTIFICATION of RFC 4271 section 6.3 for the error that decides, where RFC 7606 cannot
    /// replace it by anything milder. `octets` are all attributes that were checked.
    pub(super) fn into_reset(self, octets: &[u8]) -> Notification {
        let Some(AttributeError { attribute_type, fault, .. }) = self.deciding else {
            return UpdateError::MalformedAttributeList.into();
        };
        let error = match (fault, attribute_type) {
            (Fault::Flags, _) => UpdateError::AttributeFlags,
            (Fault::Length, code::AS_PATH) => UpdateError::MalformedAsPath,
            (Fault::Length, _) => UpdateError::AttributeLength,
            (Fault::Overrun | Fault::Duplicate, _) => UpdateError::MalformedAttributeList,
            (Fault::Missing, _) => UpdateError::MissingWellKnownAttribute,
            (Fault::FirstAs | Fault::Segment, _) => UpdateError::MalformedAsPath,
            (Fault::Value, code::ORIGIN) => UpdateError::InvalidOrigin,
            (Fault::Value, code::AS_PATH) => UpdateError::MalformedAsPath,
            (Fault::Value, code::NEXT_HOP) => UpdateError::InvalidNextHop,
            (Fault::Value | Fault::NotOnThisSession, _) => UpdateError::OptionalAttribute,
        };
        let data = match error {
            UpdateError::MissingWellKnownAttribute => Bytes::copy_from_slice(&[attribute_type]),
            UpdateError::MalformedAttributeList | UpdateError::MalformedAsPath => Bytes::new(),
            // Where it is not the flags that are wrong, it is the first one of its type.
            _ => Tlvs(Reader(octets))
                .find_octets(|flags, code| {
                    let is_culprit = fault != Fault::Flags || flags_verdict(code, flags).is_some();
                    code == attribute_type && is_culprit
                })
                .map(Bytes::copy_from_slice)
                .unwrap_or_default(),
        };
        Notification::with_data(NotificationError::Update(error), data)
    }
}

/// Checks attributes and brings them into canonical form.
pub(super) fn check(octets: &[u8], context: &UpdateContext) -> Result<Checked, Notification> {
    let mut errors = AttributeErrors::default();
    let mut seen = AttributeTypes::NONE;
    let mut kept = KeptList::new();
    let mut next_hop = None;
    let mut as4_path = None;
    let mut as4_aggregator = None;
    let mut tlvs = Tlvs(Reader(octets));
    for (flags, attribute_type, value) in &mut tlvs {
        if context.discard_attributes.contains(attribute_type) {
            continue;
        }
        // Flags come before everything else (RFC 7606 section 3 c), then duplicates (3 g).
        if let Some(verdict) = flags_verdict(attribute_type, flags) {
            errors.push(attribute_type, Fault::Flags, verdict);
            seen.insert(attribute_type);
            continue;
        }
        if !seen.insert(attribute_type) {
            errors.push(attribute_type, Fault::Duplicate, Verdict::Discard);
            continue;
        }
        if let Err((fault, verdict)) = check_value(attribute_type, value, context) {
            errors.push(attribute_type, fault, verdict);
            continue;
        }
        let mut keep = |flags, value| kept.push(Kept { flags, attribute_type, value });
        match attribute_type {
            code::NEXT_HOP => next_hop = Reader(value).ipv4(),
            code::AS4_PATH => as4_path = Some(value),
            code::AS4_AGGREGATOR => as4_aggregator = Some(value),
            code::LARGE_COMMUNITY => keep(flags, without_repetitions(value)),
            code::TUNNEL_ENCAPSULATION => {
                // An error was returned above.
                let value = foreign::valid_tunnels(value).unwrap_or_default();
                keep(flags | flag::PARTIAL, value);
            }
            _ if is_used(attribute_type) => keep(flags, Cow::Borrowed(value)),
            // RFC 4271 section 6.3.
            _ if flags & flag::OPTIONAL == 0 => {
                let error = UpdateError::UnrecognizedWellKnownAttribute;
                let octets = Tlvs(Reader(octets)).find_octets(|_, code| code == attribute_type);
                let data = octets.map(Bytes::copy_from_slice).unwrap_or_default();
                return Err(Notification::with_data(NotificationError::Update(error), data));
            }
            // RFC 4271 section 5: passed on as it is, marked as not understood.
            _ if flags & flag::TRANSITIVE != 0 => {
                keep(flags | flag::PARTIAL, Cow::Borrowed(value));
            }
            _ => {}
        }
    }
    if let Reader(&[_, ref rest @ ..]) = tlvs.0 {
        // A lone octet of flags leaves the type open, and 0 is none.
        let attribute_type = rest.first().copied().unwrap_or_default();
        // RFC 7606 section 3 j: without its prefixes there is nothing to treat as withdrawn.
        if matches!(attribute_type, code::MP_REACH_NLRI | code::MP_UNREACH_NLRI) {
            return Err(UpdateError::MalformedAttributeList.into());
        }
        errors.push(attribute_type, Fault::Overrun, Verdict::TreatAsWithdraw);
    }

    if !context.as4 {
        widen(&mut kept, as4_path, as4_aggregator, &mut errors);
    }
    if let Some(path) = kept.iter().find(|k| k.attribute_type == code::AS_PATH)
        && context.first_as.is_some()
        && AsPath::new(&path.value).asns().next() != context.first_as
    {
        errors.push(code::AS_PATH, Fault::FirstAs, Verdict::TreatAsWithdraw);
    }
    let missing = [code::ORIGIN, code::AS_PATH].map(|c| (!seen.contains(c)).then_some(c));
    let complete = !errors.withdraws() && missing.iter().all(Option::is_none);
    Ok(Checked {
        attributes: complete.then(|| Arc::new(canonical(&mut kept))),
        next_hop,
        next_hop_is_wrong: seen.contains(code::NEXT_HOP) && next_hop.is_none(),
        missing,
        errors,
    })
}

/// What goes with the route. More are rare, and then they are in an allocation.
type KeptList<'a> = SmallVec<[Kept<'a>; 12]>;

/// An attribute that goes with the route.
struct Kept<'a> {
    flags: u8,
    attribute_type: u8,
    value: Cow<'a, [u8]>,
}

fn canonical(kept: &mut [Kept<'_>]) -> PathAttributes {
    if !kept.is_sorted_by_key(|kept| kept.attribute_type) {
        kept.sort_unstable_by_key(|kept| kept.attribute_type);
    }
    let octets = kept.iter().map(|kept| 3 + usize::from(kept.value.len() > 255) + kept.value.len());
    let mut bytes = Vec::with_capacity(octets.sum());
    for Kept { flags, attribute_type, value } in kept {
        // RFC 4271 section 4.3: the partial bit means something on optional transitive ones only.
        let flags = match *flags & OPTIONAL_TRANSITIVE {
            OPTIONAL_TRANSITIVE => *flags,
            other => other,
        };
        put_attribute(&mut bytes, flags, *attribute_type, value);
    }
    PathAttributes::from_canonical(bytes)
}

/// What follows when the Optional or Transitive bit contradicts what the attribute's RFC says.
pub(super) fn flags_verdict(attribute_type: u8, flags: u8) -> Option<Verdict> {
    let specified = specified_flags(attribute_type)?;
    match (flags ^ specified) & OPTIONAL_TRANSITIVE {
        0 => None,
        // RFC 7311 section 3.2 asks for this, which RFC 7606 section 3 c leaves room for.
        flag::TRANSITIVE if attribute_type == code::AIGP => Some(Verdict::Discard),
        _ => Some(Verdict::TreatAsWithdraw),
    }
}

const fn specified_flags(attribute_type: u8) -> Option<u8> {
    match attribute_type {
        code::ORIGIN
        | code::AS_PATH
        | code::NEXT_HOP
        | code::LOCAL_PREF
        | code::ATOMIC_AGGREGATE => Some(flag::TRANSITIVE),
        code::MED
        | code::ORIGINATOR_ID
        | code::CLUSTER_LIST
        | code::MP_REACH_NLRI
        | code::MP_UNREACH_NLRI
        | code::TRAFFIC_ENGINEERING
        | code::AIGP
        | code::BGP_LS => Some(flag::OPTIONAL),
        code::AGGREGATOR
        | code::COMMUNITIES
        | code::EXTENDED_COMMUNITIES
        | code::AS4_PATH
        | code::AS4_AGGREGATOR
        | code::IPV6_EXTENDED_COMMUNITIES
        | code::LARGE_COMMUNITY
        | code::ONLY_TO_CUSTOMER
        | code::PMSI_TUNNEL
        | code::TUNNEL_ENCAPSULATION
        | code::PREFIX_SID
        | code::ATTR_SET => Some(OPTIONAL_TRANSITIVE),
        _ => None,
    }
}

/// Whether a checked attribute means something to this speaker. The others of [`specified_flags`] go
/// the way of the unknown ones.
const fn is_used(attribute_type: u8) -> bool {
    specified_flags(attribute_type).is_some()
        && !matches!(
            attribute_type,
            code::PMSI_TUNNEL
                | code::TUNNEL_ENCAPSULATION
                | code::TRAFFIC_ENGINEERING
                | code::AIGP
                | code::BGP_LS
                | code::PREFIX_SID
                | code::ATTR_SET
        )
}

/// The clauses of RFC 7606 section 7, RFC 6793 section 6, RFC 8092 section 5 and RFC 9234 section 5.
fn check_value(
    attribute_type: u8,
    value: &[u8],
    context: &UpdateContext,
) -> Result<(), (Fault, Verdict)> {
    let external = context.sort == SessionSort::Ebgp;
    let withdraw_unless = |fault: Fault, right: bool| match right {
        true => Ok(()),
        false => Err((fault, Verdict::TreatAsWithdraw)),
    };
    let discard_unless = |fault: Fault, right: bool| match right {
        true => Ok(()),
        false => Err((fault, Verdict::Discard)),
    };
    let has_members = |octets: usize| !value.is_empty() && value.len().is_multiple_of(octets);
    match attribute_type {
        code::ORIGIN => {
            withdraw_unless(Fault::Length, value.len() == 1)?;
            let origin = value.first().copied().and_then(Origin::from_code);
            withdraw_unless(Fault::Value, origin.is_some())
        }
        code::AS_PATH => {
            let asn_octets = if context.as4 { 4 } else { 2 };
            check_path(value, asn_octets).map_err(|fault| (fault, Verdict::TreatAsWithdraw))
        }
        code::NEXT_HOP | code::MED | code::ONLY_TO_CUSTOMER => {
            withdraw_unless(Fault::Length, value.len() == 4)
        }
        code::LOCAL_PREF | code::ORIGINATOR_ID => {
            discard_unless(Fault::NotOnThisSession, !external)?;
            withdraw_unless(Fault::Length, value.len() == 4)
        }
        code::CLUSTER_LIST => {
            discard_unless(Fault::NotOnThisSession, !external)?;
            withdraw_unless(Fault::Length, has_members(4))
        }
        code::ATOMIC_AGGREGATE => discard_unless(Fault::Length, value.is_empty()),
        code::AGGREGATOR => {
            let asn_octets = if context.as4 { 4 } else { 2 };
            discard_unless(Fault::Length, value.len() == asn_octets + 4)?;
            // RFC 7607 section 2.
            discard_unless(Fault::Value, value.iter().take(asn_octets).any(|octet| *octet != 0))
        }
        code::COMMUNITIES => withdraw_unless(Fault::Length, has_members(4)),
        code::EXTENDED_COMMUNITIES => withdraw_unless(Fault::Length, has_members(8)),
        code::IPV6_EXTENDED_COMMUNITIES => withdraw_unless(Fault::Length, has_members(20)),
        code::LARGE_COMMUNITY => withdraw_unless(Fault::Length, has_members(12)),
        code::AS4_PATH => {
            // RFC 6793 section 4.1: who has four octets has no use for it.
            discard_unless(Fault::NotOnThisSession, !context.as4)?;
            match check_path(value, 4) {
                Ok(()) if value.is_empty() => Err((Fault::Length, Verdict::Discard)),
                Ok(()) => Ok(()),
                // RFC 9774 section 3 names AS4_PATH, too. Confederation sequences are left out
                // later, by RFC 6793 section 4.2.3.
                Err(Fault::Segment) if holds_only_sequences(value) => Ok(()),
                Err(Fault::Segment) => Err((Fault::Segment, Verdict::TreatAsWithdraw)),
                Err(fault) => Err((fault, Verdict::Discard)),
            }
        }
        code::AS4_AGGREGATOR => {
            discard_unless(Fault::NotOnThisSession, !context.as4)?;
            discard_unless(Fault::Length, value.len() == 8)?;
            discard_unless(Fault::Value, value.iter().take(4).any(|octet| *octet != 0))
        }
        _ => foreign::check(attribute_type, value, context.sort),
    }
}

/// RFC 8092 section 3: repeated values are silently removed. The first ones stay, in their order.
fn without_repetitions(value: &[u8]) -> Cow<'_, [u8]> {
    let (members, _) = value.as_chunks::<12>();
    let is_new = |(at, member)| members.iter().take(at).all(|earlier| earlier != member);
    if members.len() <= COMPARED_MEMBERS_MAX && members.iter().enumerate().all(is_new) {
        return Cow::Borrowed(value);
    }
    let mut sorted =
        members.iter().enumerate().map(|(at, member)| (member, at)).collect::<Vec<_>>();
    sorted.sort_unstable();
    let is_repetition = |pair: &[(&[u8; 12], usize)]| match pair {
        [(a, _), (b, at)] if a == b => Some(*at),
        _ => None,
    };
    let mut repetitions = sorted.windows(2).filter_map(is_repetition).collect::<Vec<_>>();
    if repetitions.is_empty() {
        return Cow::Borrowed(value);
    }
    repetitions.sort_unstable();
    let mut repetitions = repetitions.into_iter().peekable();
    let first = |(at, _): &(usize, _)| repetitions.next_if_eq(at).is_none();
    members.iter().enumerate().filter(first).flat_map(|(_, member)| *member).collect()
}

/// RFC 7606 section 7.2, RFC 7607, and RFC 9774 with RFC 5065 section 5: sets and confederation
/// segments are refused, after the rest has been found well-formed.
fn check_path(value: &[u8], asn_octets: usize) -> Result<(), Fault> {
    let mut reader = Reader(value);
    let mut refused = false;
    while !reader.is_empty() {
        let [segment_type, count] = reader.array::<2>().ok_or(Fault::Length)?;
        match segment_type {
            segment_type::AS_SEQUENCE => {}
            segment_type::AS_SET
            | segment_type::AS_CONFED_SEQUENCE
            | segment_type::AS_CONFED_SET => refused = true,
            _ => return Err(Fault::Value),
        }
        let asns = reader.take(usize::from(count) * asn_octets).ok_or(Fault::Length)?;
        let is_zero = |asn: &[u8]| asn.iter().all(|octet| *octet == 0);
        if count == 0 || asns.chunks_exact(asn_octets).any(is_zero) {
            return Err(Fault::Value);
        }
    }
    if refused { Err(Fault::Segment) } else { Ok(()) }
}

/// Whether a well-formed path of 4-octet AS numbers holds neither kind of set.
fn holds_only_sequences(value: &[u8]) -> bool {
    AsPath::new(value)
        .segments()
        .all(|segment| segment.is_sequence() || segment.is_confed_sequence())
}

/// Brings AS_PATH and AGGREGATOR of a peer with 2-octet AS numbers into the 4-octet form (RFC 6793
/// section 4.2.3).
fn widen(
    kept: &mut KeptList<'_>,
    as4_path: Option<&[u8]>,
    as4_aggregator: Option<&[u8]>,
    errors: &mut AttributeErrors,
) {
    let mut ignore_as4 = false;
    if let Some(aggregator) = kept.iter_mut().find(|k| k.attribute_type == code::AGGREGATOR) {
        let mut reader = Reader(&aggregator.value);
        let asn = reader.u16().unwrap_or(AS_TRANS);
        let address = reader.ipv4().unwrap_or(Ipv4Addr::UNSPECIFIED);
        // Only both aggregators together tell that an old speaker has aggregated since.
        ignore_as4 = asn != AS_TRANS && as4_aggregator.is_some();
        let widened = [u32::from(asn).to_be_bytes(), address.octets()].concat();
        let as4 = as4_aggregator.filter(|_| !ignore_as4).map(<[u8]>::to_vec);
        aggregator.value = Cow::Owned(as4.unwrap_or(widened));
    }
    let Some(at) = kept.iter().position(|k| k.attribute_type == code::AS_PATH) else { return };
    let Some(path) = kept.get_mut(at) else { return };
    let widened = match as4_path.filter(|_| !ignore_as4) {
        Some(as4_path) => merge_paths(&path.value, as4_path),
        None => None,
    };
    let widened = widened.unwrap_or_else(|| widen_path(&path.value));
    if widened.len() > usize::from(u16::MAX) {
        // Only a message beyond 4,096 octets can hold so many AS numbers; no peer could be told.
        errors.push(code::AS_PATH, Fault::Length, Verdict::TreatAsWithdraw);
        kept.remove(at);
    } else {
        path.value = Cow::Owned(widened);
    }
}

fn widen_path(path: &[u8]) -> Vec<u8> {
    let mut widened = Vec::with_capacity(path.len() * 2);
    let mut reader = Reader(path);
    while let Some(head @ [_, count]) = reader.array::<2>() {
        widened.extend(head);
        for asn in (0..count).map_while(|_| reader.u16()) {
            widened.extend(u32::from(asn).to_be_bytes());
        }
    }
    widened
}

/// The leading AS numbers of AS_PATH in front of those of AS4_PATH; `None` when AS4_PATH is the longer
/// one and so not to be believed. Neither holds sets here.
fn merge_paths(path: &[u8], as4_path: &[u8]) -> Option<Vec<u8>> {
    let widened = widen_path(path);
    let asns = AsPath::new(&widened).asns().collect::<Vec<_>>();
    let as4_asns = AsPath::new(as4_path)
        .segments()
        .filter(|segment| segment.is_sequence())
        .flat_map(|segment| segment.asns())
        .collect::<Vec<_>>();
    let leading = asns.get(..asns.len().checked_sub(as4_asns.len())?)?;
    if leading.is_empty() && as4_asns.len() == AsPath::new(as4_path).asns().count() {
        return Some(as4_path.to_vec());
    }
    let merged = [leading, &as4_asns].concat();
    let mut octets = Vec::with_capacity(merged.len() * 4 + 2);
    for segment in merged.chunks(usize::from(u8::MAX)) {
        octets.extend([segment_type::AS_SEQUENCE, segment.len() as u8]);
        octets.extend(segment.iter().flat_map(|asn| asn.to_be_bytes()));
    }
    Some(octets)
}

const OPTIONAL_TRANSITIVE: u8 = flag::OPTIONAL | flag::TRANSITIVE;
/// As many values are compared with one another before sorting pays.
const COMPARED_MEMBERS_MAX: usize = 16;
/// More errors than this in one UPDATE tell an operator nothing new.
const ERRORS_MAX: usize = 16;
