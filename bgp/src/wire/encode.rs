//! Writing messages.

use std::borrow::Cow;
use std::net::{IpAddr, Ipv6Addr};
use std::ops::Range;

use bytes::{BufMut, Bytes, BytesMut};

use super::AS_TRANS;
use super::attributes::{AsPath, AttributeOctets, Tlvs, attribute_type, flag, put_attribute};
use super::frame::{HEADER_OCTETS, MessageType};
use super::nlri::{NLRI_OCTETS_BEYOND, Nlri, nlri_octets, nlri_octets_max, put_nlri};
use super::reader::Reader;
use super::update::NextHop;
use crate::prefix::Family;

/// How UPDATEs to a peer are written.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct MessageFormat {
    /// The largest message, in octets.
    pub octets_max: usize,
    /// AS numbers take four octets; else AS_TRANS and AS4_PATH are used (RFC 6793).
    pub as4: bool,
    /// IPv4 routes may have IPv6 next hops (RFC 8950).
    pub extended_next_hop: bool,
}

/// An UPDATE that announces.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct EncodedUpdate {
    /// The whole message.
    pub bytes: Bytes,
    /// Where in `bytes` the octets of the next hop stand, to be patched per peer.
    pub next_hop: Range<usize>,
    /// How many prefixes are in it.
    pub prefixes: usize,
}

/// An UPDATE that has been appended to a buffer.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct AppendedUpdate {
    /// Where in the message the octets of the next hop stand, to be patched per peer.
    pub next_hop: Range<usize>,
    /// How many prefixes are in it.
    pub prefixes: usize,
}

/// Why UPDATEs cannot be written.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum EncodeError {
    /// Even one prefix does not fit beside the attributes. The route has to be withdrawn from the
    /// peer (RFC 8654 section 4).
    #[error("a message of {octets} octets is needed, the peer takes at most {octets_max}")]
    TooLarge {
        /// Octets of the message with one prefix of the longest length.
        octets: usize,
        /// The largest message.
        octets_max: usize,
    },
    /// The next hop is of a family that routes of this one cannot have on this session.
    #[error("{family} routes cannot have the next hop {next_hop} on this session")]
    NextHopFamily {
        /// Family of the routes.
        family: Family,
        /// Their next hop.
        next_hop: IpAddr,
    },
}

/// UPDATEs that announce prefixes, as many as fit into each message.
#[derive(Debug)]
pub struct Announcements<'a, I: Iterator<Item: Nlri>> {
    layout: Layout<'a>,
    prefixes: Chunks<I>,
}

/// UPDATEs that withdraw prefixes, as many as fit into each message.
#[derive(Debug)]
pub struct Withdrawals<I: Iterator<Item: Nlri>> {
    prefixes: Chunks<I>,
}

/// The octets of an announcement around its prefixes.
#[derive(Debug)]
struct Layout<'a> {
    /// Borrowed where the peer takes them as they are, which is nearly always: each message copies them
    /// once, and nothing is copied before.
    attributes: Cow<'a, [u8]>,
    next_hop: NextHopPlace,
}

/// Where the next hop of an announcement stands.
#[derive(Debug)]
enum NextHopPlace {
    /// In NEXT_HOP, in front of the last `behind` octets of the attributes. The prefixes follow these.
    Attribute { octets: [u8; 4], behind: usize },
    /// In MP_REACH_NLRI, with the prefixes behind it. It comes first (RFC 7606 section 5.1), then the
    /// attributes.
    MpReach { family: Family, address: Ipv6Addr, link_local: Option<Ipv6Addr> },
}

/// Prefixes of one family, in portions that fit into a message.
#[derive(Debug)]
struct Chunks<I: Iterator<Item: Nlri>> {
    family: Family,
    /// The first one that is still to be written.
    next: Option<I::Item>,
    behind: I,
    /// Octets of a message that are left to prefixes.
    octets_max: usize,
}

impl<'a, I: Iterator<Item: Nlri>> Announcements<'a, I> {
    /// Prepares messages about `prefixes`, which have to be of `family`; others are left out.
    ///
    /// IPv4 prefixes with an IPv4 next hop stand in the NLRI field, all others in MP_REACH_NLRI.
    ///
    /// # Errors
    /// [`EncodeError`]: these routes cannot be said to the peer, and what it knows of them has to be
    /// withdrawn.
    pub fn new(
        format: MessageFormat,
        family: Family,
        attributes: impl Into<AttributeOctets<'a>>,
        next_hop: NextHop,
        prefixes: impl IntoIterator<Item = I::Item, IntoIter = I>,
    ) -> Result<Announcements<'a, I>, EncodeError> {
        let attributes = attributes.into();
        let octets = match format.as4 {
            true => Cow::Borrowed(attributes.as_bytes()),
            false => Cow::Owned(narrow(attributes)),
        };
        let place = match (family, next_hop.address) {
            (Family::Ipv4Unicast, IpAddr::V4(address)) => NextHopPlace::Attribute {
                octets: address.octets(),
                behind: octets_behind(&octets, attribute_type::NEXT_HOP),
            },
            (_, IpAddr::V6(address))
                if family == Family::Ipv6Unicast || format.extended_next_hop =>
            {
                NextHopPlace::MpReach { family, address, link_local: next_hop.link_local }
            }
            (family, next_hop) => return Err(EncodeError::NextHopFamily { family, next_hop }),
        };
        let layout = Layout { attributes: octets, next_hop: place };
        let fixed = UPDATE_OCTETS_MIN + layout.octets();
        let octets_max = format.octets_max.min(usize::from(u16::MAX));
        let octets = fixed + nlri_octets_max::<I::Item>(family);
        if octets > octets_max {
            return Err(EncodeError::TooLarge { octets, octets_max });
        }
        let prefixes = Chunks::new(family, prefixes.into_iter(), octets_max - fixed);
        Ok(Announcements { layout, prefixes })
    }
}

impl<I: Iterator<Item: Nlri>> Iterator for Announcements<'_, I> {
    type Item = EncodedUpdate;

    fn next(&mut self) -> Option<EncodedUpdate> {
        self.prefixes.more()?;
        let octets = UPDATE_OCTETS_MIN + self.layout.octets() + self.prefixes.octets_hint();
        let octets = octets + NLRI_OCTETS_BEYOND;
        let mut out = BytesMut::with_capacity(octets);
        let AppendedUpdate { next_hop, prefixes } = self.append_to(&mut out)?;
        Some(EncodedUpdate { bytes: out.freeze(), next_hop, prefixes })
    }
}

impl<I: Iterator<Item: Nlri>> Announcements<'_, I> {
    /// Writes the next message behind what is in `out`; `None` when there is none.
    pub fn append_to(&mut self, out: &mut BytesMut) -> Option<AppendedUpdate> {
        self.prefixes.more()?;
        let message = out.len();
        append_header(out, MessageType::Update);
        out.put_u16(0);
        let attributes = &*self.layout.attributes;
        let (next_hop, prefixes) = match self.layout.next_hop {
            NextHopPlace::Attribute { octets, behind } => {
                let at = attributes.len() - behind;
                let (head, tail) = attributes.split_at_checked(at).unwrap_or((attributes, &[]));
                out.put_u16((attributes.len() + NEXT_HOP_OCTETS) as u16);
                out.put_slice(head);
                out.put_slice(&[flag::TRANSITIVE, attribute_type::NEXT_HOP, 4]);
                let start = out.len();
                out.put_slice(&octets);
                let end = out.len();
                out.put_slice(tail);
                (start..end, self.prefixes.put(out))
            }
            NextHopPlace::MpReach { family, address, link_local } => {
                let length_at = out.len();
                out.put_u16(0);
                let mp_reach = begin_mp(out, attribute_type::MP_REACH_NLRI, family);
                out.put_u8(if link_local.is_some() { 32 } else { 16 });
                let start = out.len();
                out.put_slice(&address.octets());
                link_local.iter().for_each(|address| out.put_slice(&address.octets()));
                let end = out.len();
                out.put_u8(0);
                let prefixes = self.prefixes.put(out);
                end_length(out, mp_reach);
                out.put_slice(attributes);
                end_length(out, length_at);
                (start..end, prefixes)
            }
        };
        end_message(out, message);
        let next_hop = next_hop.start - message..next_hop.end - message;
        Some(AppendedUpdate { next_hop, prefixes })
    }
}

impl<I: Iterator<Item: Nlri>> Withdrawals<I> {
    /// Prepares messages about `prefixes`, which have to be of `family`; others are left out.
    pub fn new(
        format: MessageFormat,
        family: Family,
        prefixes: impl IntoIterator<Item = I::Item, IntoIter = I>,
    ) -> Withdrawals<I> {
        let fixed = match family {
            Family::Ipv4Unicast => UPDATE_OCTETS_MIN,
            Family::Ipv6Unicast => UPDATE_OCTETS_MIN + MP_UNREACH_OCTETS_MIN,
        };
        // Below the smallest limit that exists one prefix per message would still be right.
        let octets_max = format.octets_max.min(usize::from(u16::MAX)).saturating_sub(fixed);
        let octets_max = octets_max.max(nlri_octets_max::<I::Item>(family));
        Withdrawals { prefixes: Chunks::new(family, prefixes.into_iter(), octets_max) }
    }
}

impl<I: Iterator<Item: Nlri>> Iterator for Withdrawals<I> {
    type Item = Bytes;

    fn next(&mut self) -> Option<Bytes> {
        self.prefixes.more()?;
        let fixed = UPDATE_OCTETS_MIN + MP_UNREACH_OCTETS_MIN;
        let mut out =
            begin(MessageType::Update, fixed + self.prefixes.octets_hint() + NLRI_OCTETS_BEYOND);
        let length_at = out.len();
        out.put_u16(0);
        match self.prefixes.family {
            Family::Ipv4Unicast => {
                self.prefixes.put(&mut out);
                end_length(&mut out, length_at);
                out.put_u16(0);
            }
            family @ Family::Ipv6Unicast => {
                let length_at = out.len();
                out.put_u16(0);
                let unreach = begin_mp(&mut out, attribute_type::MP_UNREACH_NLRI, family);
                self.prefixes.put(&mut out);
                end_length(&mut out, unreach);
                end_length(&mut out, length_at);
            }
        }
        Some(finish(out))
    }
}

impl Layout<'_> {
    /// Octets beyond those of an empty UPDATE.
    fn octets(&self) -> usize {
        let next_hop = match self.next_hop {
            NextHopPlace::Attribute { .. } => NEXT_HOP_OCTETS,
            // Flags, type, two octets of length, AFI, SAFI, length of the next hop, reserved octet.
            NextHopPlace::MpReach { link_local: None, .. } => 9 + 16,
            NextHopPlace::MpReach { link_local: Some(_), .. } => 9 + 32,
        };
        next_hop + self.attributes.len()
    }
}

impl<I: Iterator<Item: Nlri>> Chunks<I> {
    fn new(family: Family, prefixes: I, octets_max: usize) -> Chunks<I> {
        let mut chunks = Chunks { family, next: None, behind: prefixes, octets_max };
        chunks.step();
        chunks
    }

    /// Goes to the next prefix of the family.
    #[inline]
    fn step(&mut self) {
        let family = self.family;
        self.next = self.behind.find(|nlri| nlri.prefix().family() == family);
    }

    /// `None` at the end.
    fn more(&self) -> Option<()> {
        self.next.map(|_| ())
    }

    /// Octets that the next portion takes at most.
    fn octets_hint(&self) -> usize {
        let (at_least, at_most) = self.behind.size_hint();
        let prefixes = at_most.unwrap_or(at_least.saturating_mul(2)).saturating_add(1);
        prefixes.saturating_mul(nlri_octets_max::<I::Item>(self.family)).min(self.octets_max)
    }

    /// Appends as many prefixes as there is room for; says how many.
    fn put(&mut self, out: &mut BytesMut) -> usize {
        let end = out.len() + self.octets_max;
        let mut count = 0;
        while let Some(nlri) = self.next
            && out.len() + nlri_octets(&nlri) <= end
        {
            put_nlri(out, &nlri);
            count += 1;
            self.step();
        }
        count
    }
}

/// How many octets of attributes, which are in ascending order, stand behind the place of this type.
fn octets_behind(octets: &[u8], attribute_type: u8) -> usize {
    let mut tlvs = Tlvs(Reader(octets));
    let mut behind = octets.len();
    while tlvs.next().is_some_and(|(_, code, _)| code < attribute_type) {
        behind = tlvs.0.0.len();
    }
    behind
}

/// Attributes with 2-octet AS numbers, and AS4_PATH and AS4_AGGREGATOR where these lose something
/// (RFC 6793 section 4.2.2).
fn narrow(attributes: AttributeOctets<'_>) -> Vec<u8> {
    let mut out = Vec::with_capacity(attributes.as_bytes().len());
    let mut as4 = As4::default();
    for (flags, code, value) in attributes.tlvs() {
        if code > attribute_type::AS4_AGGREGATOR {
            as4.put(&mut out);
        }
        match code {
            attribute_type::AS_PATH => {
                let path = AsPath::new(value);
                put_attribute(&mut out, flags, code, &narrow_path(path));
                if path.asns().any(|asn| asn > u32::from(u16::MAX)) {
                    as4.path = Some(value);
                }
            }
            attribute_type::AGGREGATOR => {
                let (asn, address) = value.split_at_checked(4).unwrap_or_default();
                let asn = asn.as_array().map_or(0, |asn| u32::from_be_bytes(*asn));
                let narrow = u16::try_from(asn).unwrap_or_else(|_| {
                    as4.aggregator = Some(value);
                    AS_TRANS
                });
                put_attribute(&mut out, flags, code, &[&narrow.to_be_bytes(), address].concat());
            }
            _ => put_attribute(&mut out, flags, code, value),
        }
    }
    as4.put(&mut out);
    out
}

#[derive(Default)]
struct As4<'a> {
    path: Option<&'a [u8]>,
    aggregator: Option<&'a [u8]>,
}

impl As4<'_> {
    /// Appends what is there, once.
    fn put(&mut self, out: &mut Vec<u8>) {
        let flags = flag::OPTIONAL | flag::TRANSITIVE;
        if let Some(path) = self.path.take() {
            put_attribute(out, flags, attribute_type::AS4_PATH, path);
        }
        if let Some(aggregator) = self.aggregator.take() {
            put_attribute(out, flags, attribute_type::AS4_AGGREGATOR, aggregator);
        }
    }
}

fn narrow_path(path: AsPath<'_>) -> Vec<u8> {
    let mut out = Vec::new();
    for segment in path.segments() {
        let start = out.len();
        out.extend([segment.segment_type(), 0]);
        for asn in segment.asns() {
            out.extend(u16::try_from(asn).unwrap_or(AS_TRANS).to_be_bytes());
        }
        let count = ((out.len() - start - 2) / 2) as u8;
        if let Some(field) = out.get_mut(start + 1) {
            *field = count;
        }
    }
    out
}

/// The End-of-RIB marker of a family (RFC 4724 section 2).
pub fn end_of_rib(family: Family) -> Bytes {
    message(MessageType::Update, |out| {
        let [afi_high, afi_low] = family.afi().to_be_bytes();
        let unreach = [afi_high, afi_low, family.safi()];
        out.put_u16(0);
        if family == Family::Ipv4Unicast {
            out.put_u16(0);
        } else {
            out.put_u16(3 + unreach.len() as u16);
            put_attribute(out, flag::OPTIONAL, attribute_type::MP_UNREACH_NLRI, &unreach);
        }
    })
}

/// A KEEPALIVE.
pub fn keepalive() -> Bytes {
    message(MessageType::Keepalive, |_| {})
}

/// A message whose body `write` puts down; its length is filled in.
pub(super) fn message(message_type: MessageType, write: impl FnOnce(&mut BytesMut)) -> Bytes {
    let mut out = begin(message_type, HEADER_OCTETS);
    write(&mut out);
    finish(out)
}

/// A message with a header whose length is still open.
fn begin(message_type: MessageType, octets_hint: usize) -> BytesMut {
    let mut out = BytesMut::with_capacity(octets_hint);
    append_header(&mut out, message_type);
    out
}

fn append_header(out: &mut BytesMut, message_type: MessageType) {
    out.put_slice(&[0xff; 16]);
    out.put_u16(0);
    out.put_u8(message_type.code());
}

fn finish(mut out: BytesMut) -> Bytes {
    end_message(&mut out, 0);
    out.freeze()
}

/// Writes the length of the message that begins at `start` and ends with `out`.
fn end_message(out: &mut BytesMut, start: usize) {
    let octets = out.len() - start;
    debug_assert!(octets >= HEADER_OCTETS && octets <= usize::from(u16::MAX));
    if let Some(field) = out.get_mut(start + 16..start + 18) {
        field.copy_from_slice(&(octets as u16).to_be_bytes());
    }
}

/// Appends MP_REACH_NLRI or MP_UNREACH_NLRI up to its SAFI; returns where its length stands, which
/// always takes two octets because the prefixes are not counted yet.
fn begin_mp(out: &mut BytesMut, attribute_type: u8, family: Family) -> usize {
    out.put_slice(&[flag::OPTIONAL | flag::EXTENDED_LENGTH, attribute_type]);
    let length_at = out.len();
    out.put_u16(0);
    out.put_u16(family.afi());
    out.put_u8(family.safi());
    length_at
}

/// Writes into the two octets at `length_at` how many octets follow them.
fn end_length(out: &mut BytesMut, length_at: usize) {
    let octets = ((out.len() - length_at - 2) as u16).to_be_bytes();
    if let Some(field) = out.get_mut(length_at..length_at + 2) {
        field.copy_from_slice(&octets);
    }
}

/// Octets of NEXT_HOP.
const NEXT_HOP_OCTETS: usize = 7;
/// Octets of an UPDATE that says nothing: header and two lengths.
const UPDATE_OCTETS_MIN: usize = HEADER_OCTETS + 4;
/// Octets of MP_UNREACH_NLRI without prefixes.
const MP_UNREACH_OCTETS_MIN: usize = 7;
