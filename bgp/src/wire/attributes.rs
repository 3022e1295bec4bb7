//! Path attributes as one immutable value (RFC 4271 section 5).

use std::fmt;
use std::hash::{Hash, Hasher};
use std::net::Ipv4Addr;
use std::sync::Arc;

use bytes::BufMut;

use super::builder::AttributesBuilder;
use super::reader::Reader;

pub(super) use super::codes::{attribute_type, flag, segment_type};

/// The path attributes that go with a route from router to router: everything but the next hop and
/// the prefixes themselves.
///
/// They are kept as octets in a canonical form, so that equal attributes of different peers are equal
/// values, with the few fields beside them that the decision process reads for every path. Equality
/// and hash are those of [`PathAttributes::as_bytes`].
#[derive(Clone)]
pub struct PathAttributes {
    bytes: Box<[u8]>,
    origin: Origin,
    local_pref: Option<u32>,
    med: Option<u32>,
    originator_id: Option<Ipv4Addr>,
    neighbour_as: Option<u32>,
    origin_as: Option<u32>,
    as_path_len: u32,
    cluster_list_len: u32,
}

/// ORIGIN (RFC 4271 section 5.1.1), best first.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Origin {
    /// Originated inside the AS.
    Igp,
    /// Learned by EGP (RFC 904).
    Egp,
    /// Learned in another way.
    Incomplete,
}

/// One COMMUNITIES value (RFC 1997).
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Community(pub u32);

/// One LARGE_COMMUNITY value (RFC 8092).
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct LargeCommunity {
    /// Global Administrator: an AS number.
    pub global: u32,
    /// Local Data Part 1.
    pub local1: u32,
    /// Local Data Part 2.
    pub local2: u32,
}

/// An AS_PATH in wire form with 4-octet AS numbers.
#[derive(Clone, Copy, PartialEq, Eq)]
pub struct AsPath<'a>(&'a [u8]);

/// A segment of an [`AsPath`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct AsSegment<'a> {
    segment_type: u8,
    octets: &'a [u8],
}

/// The values of COMMUNITIES.
#[derive(Clone, Debug)]
pub struct Communities<'a>(&'a [u8]);

/// The values of CLUSTER_LIST, nearest reflector first.
#[derive(Clone, Debug)]
pub struct ClusterList<'a>(&'a [u8]);

impl PathAttributes {
    /// The attributes of a route that this speaker originates: an empty AS_PATH and `origin`.
    pub fn originated(origin: Origin) -> PathAttributes {
        let mut builder = AttributesBuilder::default();
        builder.origin(origin);
        builder.build()
    }

    /// A builder that begins with these attributes.
    #[inline]
    pub fn edit(&self) -> AttributesBuilder<'_> {
        AttributesBuilder::new(self.tlvs())
    }

    /// Attributes of octets that are in canonical form and have been checked.
    pub(super) fn from_canonical(bytes: Vec<u8>) -> PathAttributes {
        let mut attributes = PathAttributes {
            bytes: Box::default(),
            origin: Origin::Incomplete,
            local_pref: None,
            med: None,
            originator_id: None,
            neighbour_as: None,
            origin_as: None,
            as_path_len: 0,
            cluster_list_len: 0,
        };
        for (_, code, value) in Tlvs(Reader(&bytes)) {
            let mut reader = Reader(value);
            match code {
                attribute_type::ORIGIN => {
                    attributes.origin =
                        reader.u8().and_then(Origin::from_code).unwrap_or(Origin::Incomplete);
                }
                attribute_type::AS_PATH => {
                    let path = AsPath(value);
                    attributes.as_path_len = path.len();
                    attributes.neighbour_as = path.first();
                    attributes.origin_as = path.asns().last();
                }
                attribute_type::MED => attributes.med = reader.u32(),
                attribute_type::LOCAL_PREF => attributes.local_pref = reader.u32(),
                attribute_type::ORIGINATOR_ID => attributes.originator_id = reader.ipv4(),
                attribute_type::CLUSTER_LIST => {
                    attributes.cluster_list_len = (value.len() / 4) as u32;
                }
                _ => {}
            }
        }
        attributes.bytes = bytes.into_boxed_slice();
        attributes
    }

    /// The attributes in wire form: ascending type codes, 4-octet AS numbers, shortest lengths,
    /// without NEXT_HOP, MP_REACH_NLRI and MP_UNREACH_NLRI.
    pub fn as_bytes(&self) -> &[u8] {
        &self.bytes
    }

    /// ORIGIN.
    pub fn origin(&self) -> Origin {
        self.origin
    }

    /// LOCAL_PREF, if there is one.
    pub fn local_pref(&self) -> Option<u32> {
        self.local_pref
    }

    /// MULTI_EXIT_DISC, if there is one.
    pub fn med(&self) -> Option<u32> {
        self.med
    }

    /// ORIGINATOR_ID, if there is one (RFC 4456).
    pub fn originator_id(&self) -> Option<Ipv4Addr> {
        self.originator_id
    }

    /// AS_PATH; empty on a route that was originated in the own AS.
    pub fn as_path(&self) -> AsPath<'_> {
        AsPath(self.value(attribute_type::AS_PATH).unwrap_or_default())
    }

    /// Length of AS_PATH for the decision process (RFC 4271 section 9.1.2.2).
    pub fn as_path_len(&self) -> u32 {
        self.as_path_len
    }

    /// The first AS of AS_PATH: the neighbour that the route came from, which MED is compared within.
    pub fn neighbour_as(&self) -> Option<u32> {
        self.neighbour_as
    }

    /// The last AS of AS_PATH.
    pub fn origin_as(&self) -> Option<u32> {
        self.origin_as
    }

    /// CLUSTER_LIST (RFC 4456); empty when there is none.
    pub fn cluster_list(&self) -> ClusterList<'_> {
        ClusterList(self.value(attribute_type::CLUSTER_LIST).unwrap_or_default())
    }

    /// Entries of CLUSTER_LIST.
    pub fn cluster_list_len(&self) -> u32 {
        self.cluster_list_len
    }

    /// COMMUNITIES in their order.
    pub fn communities(&self) -> Communities<'_> {
        Communities(self.value(attribute_type::COMMUNITIES).unwrap_or_default())
    }

    /// Whether `community` is among [`PathAttributes::communities`].
    pub fn has_community(&self, community: Community) -> bool {
        self.communities().any(|c| c == community)
    }

    /// LARGE_COMMUNITY in their order.
    pub fn large_communities(&self) -> impl Iterator<Item = LargeCommunity> + '_ {
        let octets = self.value(attribute_type::LARGE_COMMUNITY).unwrap_or_default();
        octets.as_chunks::<12>().0.iter().map(LargeCommunity::from_octets)
    }

    /// EXTENDED COMMUNITIES in their order, eight octets each (RFC 4360).
    pub fn extended_communities(&self) -> impl Iterator<Item = u64> + '_ {
        let octets = self.value(attribute_type::EXTENDED_COMMUNITIES).unwrap_or_default();
        octets.as_chunks::<8>().0.iter().map(|octets| u64::from_be_bytes(*octets))
    }

    /// The value of an attribute in its 4-octet AS form, if there is one.
    pub fn value(&self, attribute_type: u8) -> Option<&[u8]> {
        self.tlvs()
            .take_while(|(_, code, _)| *code <= attribute_type)
            .find_map(|(_, code, value)| (code == attribute_type).then_some(value))
    }

    /// Flags, type code and value of each attribute.
    pub(super) fn tlvs(&self) -> Tlvs<'_> {
        Tlvs(Reader(&self.bytes))
    }
}

/// The octets of [`PathAttributes`] and nothing beside them: what a message needs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct AttributeOctets<'a>(&'a [u8]);

impl<'a> AttributeOctets<'a> {
    /// Octets in canonical form.
    pub(super) const fn new(octets: &'a [u8]) -> AttributeOctets<'a> {
        AttributeOctets(octets)
    }

    pub(super) const fn as_bytes(self) -> &'a [u8] {
        self.0
    }

    pub(super) const fn tlvs(self) -> Tlvs<'a> {
        Tlvs(Reader(self.0))
    }
}

impl<'a> From<&'a PathAttributes> for AttributeOctets<'a> {
    fn from(attributes: &'a PathAttributes) -> AttributeOctets<'a> {
        AttributeOctets(&attributes.bytes)
    }
}

impl<'a> From<&'a Arc<PathAttributes>> for AttributeOctets<'a> {
    fn from(attributes: &'a Arc<PathAttributes>) -> AttributeOctets<'a> {
        AttributeOctets(&attributes.bytes)
    }
}

/// The attributes in octets, up to the first one that is cut off.
#[derive(Clone, Debug)]
pub(super) struct Tlvs<'a>(pub(super) Reader<'a>);

impl<'a> Tlvs<'a> {
    /// All octets of the first attribute whose flags and type are `wanted`, for a NOTIFICATION.
    pub(super) fn find_octets(mut self, wanted: impl Fn(u8, u8) -> bool) -> Option<&'a [u8]> {
        loop {
            let before = self.0.0;
            let (flags, code, _) = self.next()?;
            if wanted(flags, code) {
                return before.get(..before.len() - self.0.0.len());
            }
        }
    }
}

impl<'a> Iterator for Tlvs<'a> {
    type Item = (u8, u8, &'a [u8]);

    fn next(&mut self) -> Option<(u8, u8, &'a [u8])> {
        let mut reader = self.0;
        let [flags, code] = reader.array::<2>()?;
        let value = match flags & flag::EXTENDED_LENGTH {
            0 => reader.counted_u8()?,
            _ => reader.counted_u16()?,
        };
        self.0 = reader;
        Some((flags, code, value))
    }
}

/// Appends an attribute in canonical form: no flags but those that mean something, shortest length.
pub(super) fn put_attribute(out: &mut impl BufMut, flags: u8, code: u8, value: &[u8]) {
    let flags = flags & (flag::OPTIONAL | flag::TRANSITIVE | flag::PARTIAL);
    match u8::try_from(value.len()) {
        Ok(octets) => out.put_slice(&[flags, code, octets]),
        Err(_) => {
            debug_assert!(value.len() <= usize::from(u16::MAX));
            out.put_slice(&[flags | flag::EXTENDED_LENGTH, code]);
            out.put_u16(value.len() as u16);
        }
    }
    out.put_slice(value);
}

impl PartialEq for PathAttributes {
    fn eq(&self, other: &PathAttributes) -> bool {
        self.bytes == other.bytes
    }
}

impl Eq for PathAttributes {}

impl Hash for PathAttributes {
    fn hash<H: Hasher>(&self, state: &mut H) {
        self.bytes.hash(state);
    }
}

impl fmt::Debug for PathAttributes {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut out = f.debug_struct("PathAttributes");
        out.field("origin", &self.origin).field("as_path", &self.as_path());
        if let Some(local_pref) = self.local_pref {
            out.field("local_pref", &local_pref);
        }
        if let Some(med) = self.med {
            out.field("med", &med);
        }
        let others = |code: &u8| *code > attribute_type::LOCAL_PREF;
        for (_, code, value) in self.tlvs().filter(|(_, code, _)| others(code)) {
            out.field(&format!("attribute {code}"), &format_args!("{value:02x?}"));
        }
        out.finish()
    }
}

impl<'a> AsPath<'a> {
    /// A path in wire form with 4-octet AS numbers.
    pub(super) const fn new(octets: &'a [u8]) -> AsPath<'a> {
        AsPath(octets)
    }

    /// Whether there is no AS in the path.
    pub const fn is_empty(self) -> bool {
        self.0.is_empty()
    }

    /// The segments in the order of the path.
    pub fn segments(self) -> impl Iterator<Item = AsSegment<'a>> {
        let mut reader = Reader(self.0);
        std::iter::from_fn(move || {
            let [segment_type, count] = reader.array::<2>()?;
            let octets = reader.take(usize::from(count) * 4)?;
            Some(AsSegment { segment_type, octets })
        })
    }

    /// Every AS number in the order of the path, those of sets too.
    pub fn asns(self) -> impl Iterator<Item = u32> + 'a {
        self.segments().flat_map(AsSegment::asns)
    }

    /// Whether `asn` is in the path: a loop when it is one's own.
    pub fn contains(self, asn: u32) -> bool {
        self.asns().any(|a| a == asn)
    }

    /// Length for the decision process: a set counts as one (RFC 4271 section 9.1.2.2).
    pub fn len(self) -> u32 {
        self.segments()
            .map(|segment| match segment.segment_type {
                segment_type::AS_SEQUENCE => (segment.octets.len() / 4) as u32,
                segment_type::AS_SET => 1,
                _ => 0,
            })
            .fold(0, u32::saturating_add)
    }

    /// The first AS, when the path begins with a sequence.
    fn first(self) -> Option<u32> {
        let segment = self.segments().next()?;
        (segment.segment_type == segment_type::AS_SEQUENCE).then(|| segment.asns().next())?
    }
}

impl<'a> AsSegment<'a> {
    /// The AS numbers of the segment.
    pub fn asns(self) -> impl Iterator<Item = u32> + 'a {
        self.octets.as_chunks::<4>().0.iter().map(|octets| u32::from_be_bytes(*octets))
    }

    pub(super) const fn segment_type(self) -> u8 {
        self.segment_type
    }

    pub(super) const fn is_sequence(self) -> bool {
        matches!(self.segment_type, segment_type::AS_SEQUENCE)
    }

    pub(super) const fn is_confed_sequence(self) -> bool {
        matches!(self.segment_type, segment_type::AS_CONFED_SEQUENCE)
    }

    /// Whether the order of the AS numbers means nothing.
    pub const fn is_set(self) -> bool {
        matches!(self.segment_type, segment_type::AS_SET)
    }
}

impl fmt::Display for AsPath<'_> {
    /// As operators write it: `65001 65002`, sets in braces.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (at, segment) in self.segments().enumerate() {
            if at > 0 {
                f.write_str(" ")?;
            }
            let (open, close) = if segment.is_set() { ("{", "}") } else { ("", "") };
            f.write_str(open)?;
            for (at, asn) in segment.asns().enumerate() {
                write!(f, "{}{asn}", if at > 0 { " " } else { "" })?;
            }
            f.write_str(close)?;
        }
        Ok(())
    }
}

impl fmt::Debug for AsPath<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

impl Origin {
    pub(super) const fn from_code(code: u8) -> Option<Origin> {
        match code {
            0 => Some(Origin::Igp),
            1 => Some(Origin::Egp),
            2 => Some(Origin::Incomplete),
            _ => None,
        }
    }

    /// How operators write it.
    pub const fn name(self) -> &'static str {
        match self {
            Origin::Igp => "IGP",
            Origin::Egp => "EGP",
            Origin::Incomplete => "Incomplete",
        }
    }

    pub(super) const fn code(self) -> u8 {
        match self {
            Origin::Igp => 0,
            Origin::Egp => 1,
            Origin::Incomplete => 2,
        }
    }
}

impl LargeCommunity {
    fn from_octets(octets: &[u8; 12]) -> LargeCommunity {
        let mut reader = Reader(octets);
        let mut word = || reader.u32().unwrap_or_default();
        LargeCommunity { global: word(), local1: word(), local2: word() }
    }

    pub(super) fn octets(self) -> [u8; 12] {
        let mut octets = [0; 12];
        let words = [self.global, self.local1, self.local2];
        for (chunk, word) in octets.as_chunks_mut::<4>().0.iter_mut().zip(words) {
            *chunk = word.to_be_bytes();
        }
        octets
    }
}

impl fmt::Display for LargeCommunity {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}:{}:{}", self.global, self.local1, self.local2)
    }
}

impl fmt::Debug for LargeCommunity {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

impl Community {
    /// Do not announce to other ASes (RFC 1997).
    pub const NO_EXPORT: Community = Community(0xffff_ff01);
    /// Do not announce to anybody (RFC 1997).
    pub const NO_ADVERTISE: Community = Community(0xffff_ff02);
    /// Do not announce to other members of a confederation either (RFC 1997).
    pub const NO_EXPORT_SUBCONFED: Community = Community(0xffff_ff03);
    /// The path is about to go away (RFC 8326).
    pub const GRACEFUL_SHUTDOWN: Community = Community(0xffff_0000);
    /// The route has been stale for long: a last resort (RFC 9494 section 4).
    pub const LLGR_STALE: Community = Community(0xffff_0006);
    /// The route may not be stale for long (RFC 9494 section 4).
    pub const NO_LLGR: Community = Community(0xffff_0007);
}

impl fmt::Display for Community {
    /// The two halves in decimal, as operators write it.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}:{}", self.0 >> 16, self.0 & 0xffff)
    }
}

impl fmt::Debug for Community {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

impl Iterator for Communities<'_> {
    type Item = Community;

    fn next(&mut self) -> Option<Community> {
        let (octets, rest) = self.0.split_first_chunk::<4>()?;
        self.0 = rest;
        Some(Community(u32::from_be_bytes(*octets)))
    }
}

impl Iterator for ClusterList<'_> {
    type Item = Ipv4Addr;

    fn next(&mut self) -> Option<Ipv4Addr> {
        let (octets, rest) = self.0.split_first_chunk::<4>()?;
        self.0 = rest;
        Some(Ipv4Addr::from(*octets))
    }
}
