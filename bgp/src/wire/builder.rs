//! Deriving path attributes from others.

use std::net::Ipv4Addr;

use smallvec::{SmallVec, smallvec};

use super::attributes::{
    AsPath, AttributeOctets, Community, LargeCommunity, Origin, PathAttributes, Tlvs,
    attribute_type, flag, put_attribute, segment_type,
};

/// Path attributes under change; what is not changed is borrowed.
///
/// A value never grows beyond what the length field of an attribute can say: what would not fit is
/// left out.
#[derive(Clone, Debug)]
pub struct AttributesBuilder<'a> {
    /// Sorted by type code, each at most once.
    attributes: SmallVec<[Attribute<'a>; 10]>,
}

#[derive(Clone, Debug)]
struct Attribute<'a> {
    flags: u8,
    code: u8,
    value: Value<'a>,
}

/// The octets of an attribute, borrowed or new.
#[derive(Clone, Debug)]
enum Value<'a> {
    Borrowed(&'a [u8]),
    New(Octets),
}

/// An AS_PATH of six numbers takes no allocation: this is done for each attribute set that goes out.
type Octets = SmallVec<[u8; 32]>;

/// A value of an optional transitive attribute that is a list of values of one size.
pub trait CommunityValue: Copy + PartialEq {
    /// The type code of the attribute.
    const ATTRIBUTE: u8;
    /// Octets of one value.
    const OCTETS: usize;

    /// Appends the value in wire form: [`CommunityValue::OCTETS`] octets.
    fn put(self, out: &mut Vec<u8>);
}

impl Default for AttributesBuilder<'_> {
    /// ORIGIN IGP and an empty AS_PATH.
    fn default() -> Self {
        let mut builder = AttributesBuilder { attributes: SmallVec::new() };
        builder.origin(Origin::Igp);
        builder.set(flag::TRANSITIVE, attribute_type::AS_PATH, Octets::new());
        builder
    }
}

impl<'a> AttributesBuilder<'a> {
    #[inline]
    pub(super) fn new(tlvs: Tlvs<'a>) -> AttributesBuilder<'a> {
        let attribute =
            |(flags, code, value)| Attribute { flags, code, value: Value::Borrowed(value) };
        AttributesBuilder { attributes: tlvs.map(attribute).collect() }
    }

    /// Sets ORIGIN.
    pub fn origin(&mut self, origin: Origin) -> &mut Self {
        self.set(flag::TRANSITIVE, attribute_type::ORIGIN, smallvec![origin.code()])
    }

    /// Puts `asn` in front of AS_PATH, `times` times (RFC 4271 section 5.1.2).
    pub fn prepend(&mut self, asn: u32, times: u8) -> &mut Self {
        if times == 0 {
            return self;
        }
        let old = self.value(attribute_type::AS_PATH);
        // A segment holds 255 AS numbers; when the first one has no room, a new one stands before it.
        let (count, rest) = match old.split_first_chunk::<2>() {
            Some((&[segment_type::AS_SEQUENCE, count], rest)) => match count.checked_add(times) {
                Some(count) => (count, rest),
                None => (times, old),
            },
            _ => (times, old),
        };
        let mut path = Octets::with_capacity(2 + usize::from(times) * 4 + rest.len());
        path.extend([segment_type::AS_SEQUENCE, count]);
        for _ in 0..times {
            path.extend_from_slice(&asn.to_be_bytes());
        }
        path.extend_from_slice(rest);
        if path.len() > VALUE_OCTETS_MAX {
            return self;
        }
        self.set(flag::TRANSITIVE, attribute_type::AS_PATH, path)
    }

    /// Sets or removes LOCAL_PREF.
    pub fn local_pref(&mut self, local_pref: Option<u32>) -> &mut Self {
        self.set_u32(flag::TRANSITIVE, attribute_type::LOCAL_PREF, local_pref)
    }

    /// Sets or removes MULTI_EXIT_DISC.
    pub fn med(&mut self, med: Option<u32>) -> &mut Self {
        self.set_u32(flag::OPTIONAL, attribute_type::MED, med)
    }

    /// Adds communities that are not there yet.
    pub fn add_communities(&mut self, communities: &[Community]) -> &mut Self {
        self.add_values(communities)
    }

    /// Removes communities.
    pub fn remove_communities(&mut self, communities: &[Community]) -> &mut Self {
        self.remove_values(communities)
    }

    /// Adds large communities that are not there yet.
    pub fn add_large_communities(&mut self, communities: &[LargeCommunity]) -> &mut Self {
        self.add_values(communities)
    }

    /// Adds communities of any kind that are not there yet.
    pub fn add_values<T: CommunityValue>(&mut self, values: &[T]) -> &mut Self {
        let old = self.value(T::ATTRIBUTE);
        let mut all = old.to_vec();
        let mut octets = Vec::with_capacity(T::OCTETS);
        for value in values {
            octets.clear();
            value.put(&mut octets);
            let known = all.chunks_exact(T::OCTETS).any(|known| known == octets);
            if !known && all.len() + octets.len() <= VALUE_OCTETS_MAX {
                all.extend_from_slice(&octets);
            }
        }
        if all.len() == old.len() {
            return self;
        }
        self.set(OPTIONAL_TRANSITIVE, T::ATTRIBUTE, all.into())
    }

    /// Removes communities of any kind.
    pub fn remove_values<T: CommunityValue>(&mut self, values: &[T]) -> &mut Self {
        let mut gone = Vec::with_capacity(values.len() * T::OCTETS);
        values.iter().for_each(|value| value.put(&mut gone));
        let goes = |member: &&[u8]| gone.chunks_exact(T::OCTETS).any(|value| value == *member);
        let mut members = self.value(T::ATTRIBUTE).chunks_exact(T::OCTETS);
        if !members.clone().any(|member| goes(&member)) {
            return self;
        }
        let left = members.by_ref().filter(|member| !goes(member)).collect::<Vec<_>>().concat();
        self.set_or_remove(OPTIONAL_TRANSITIVE, T::ATTRIBUTE, left.into())
    }

    /// Puts communities of any kind in the place of those that are there.
    pub fn replace_values<T: CommunityValue>(&mut self, values: &[T]) -> &mut Self {
        self.remove(T::ATTRIBUTE).add_values(values)
    }

    /// Leaves only those AS numbers in AS_PATH that `keep` names, and no segment without any.
    pub fn retain_asns(&mut self, keep: impl Fn(u32) -> bool) -> &mut Self {
        let old = self.value(attribute_type::AS_PATH);
        let mut path = Vec::with_capacity(old.len());
        for segment in AsPath::new(old).segments() {
            let kept: Vec<u32> = segment.asns().filter(|asn| keep(*asn)).collect();
            // No more than the segment had, and so a number of one octet.
            if let (Ok(count @ 1..), segment_type) =
                (u8::try_from(kept.len()), segment.segment_type())
            {
                path.extend([segment_type, count]);
                path.extend(kept.iter().flat_map(|asn| asn.to_be_bytes()));
            }
        }
        if path.len() == old.len() {
            return self;
        }
        self.set(flag::TRANSITIVE, attribute_type::AS_PATH, path.into())
    }

    /// Sets or removes ORIGINATOR_ID (RFC 4456).
    pub fn originator_id(&mut self, originator_id: Option<Ipv4Addr>) -> &mut Self {
        let value = originator_id.map(u32::from);
        self.set_u32(flag::OPTIONAL, attribute_type::ORIGINATOR_ID, value)
    }

    /// Puts `cluster_id` in front of CLUSTER_LIST (RFC 4456).
    pub fn prepend_cluster(&mut self, cluster_id: Ipv4Addr) -> &mut Self {
        let mut list = Octets::from_slice(&cluster_id.octets());
        list.extend_from_slice(self.value(attribute_type::CLUSTER_LIST));
        if list.len() > VALUE_OCTETS_MAX {
            return self;
        }
        self.set(flag::OPTIONAL, attribute_type::CLUSTER_LIST, list)
    }

    /// Removes what does not leave the AS: ORIGINATOR_ID and CLUSTER_LIST (RFC 4456 section 8),
    /// TUNNEL_ENCAPSULATION (RFC 9012 section 11), PREFIX_SID (RFC 8669 section 5.1) and extended
    /// communities that are not transitive (RFC 4360 section 6).
    pub fn remove_internal(&mut self) -> &mut Self {
        self.attributes.retain(|attribute| !INTERNAL.contains(&attribute.code));
        self.remove_non_transitive::<8>(attribute_type::EXTENDED_COMMUNITIES);
        self.remove_non_transitive::<20>(attribute_type::IPV6_EXTENDED_COMMUNITIES)
    }

    /// The new attributes.
    pub fn build(&self) -> PathAttributes {
        let octets = self.attributes.iter().map(|attribute| 4 + attribute.value.octets().len());
        let mut bytes = Vec::with_capacity(octets.sum());
        self.write(&mut bytes);
        PathAttributes::from_canonical(bytes)
    }

    /// The octets of the new attributes, for those who only send them, in the place of what was in
    /// `buffer`.
    pub(crate) fn write<'b>(&self, buffer: &'b mut Vec<u8>) -> AttributeOctets<'b> {
        buffer.clear();
        for Attribute { flags, code, value } in &self.attributes {
            put_attribute(buffer, *flags, *code, value.octets());
        }
        AttributeOctets::new(buffer)
    }

    fn value(&self, code: u8) -> &[u8] {
        let found = self.attributes.iter().find(|attribute| attribute.code == code);
        found.map(|attribute| attribute.value.octets()).unwrap_or_default()
    }

    /// Puts an attribute in the place of its type code. The partial bit of an old one stays: once set
    /// it is never reset (RFC 4271 section 5).
    fn put(&mut self, flags: u8, code: u8, value: Value<'a>) -> &mut Self {
        let at = self.attributes.partition_point(|attribute| attribute.code < code);
        match self.attributes.get_mut(at) {
            Some(attribute) if attribute.code == code => attribute.value = value,
            _ => self.attributes.insert(at, Attribute { flags, code, value }),
        }
        self
    }

    fn set(&mut self, flags: u8, code: u8, value: Octets) -> &mut Self {
        self.put(flags, code, Value::New(value))
    }

    fn set_u32(&mut self, flags: u8, code: u8, value: Option<u32>) -> &mut Self {
        match value {
            Some(value) => self.set(flags, code, Octets::from_slice(&value.to_be_bytes())),
            None => self.remove(code),
        }
    }

    fn set_or_remove(&mut self, flags: u8, code: u8, value: Octets) -> &mut Self {
        if value.is_empty() { self.remove(code) } else { self.set(flags, code, value) }
    }

    fn remove(&mut self, code: u8) -> &mut Self {
        self.attributes.retain(|attribute| attribute.code != code);
        self
    }

    fn remove_non_transitive<const N: usize>(&mut self, code: u8) -> &mut Self {
        let (members, _) = self.value(code).as_chunks::<N>();
        let is_internal = |member: &[u8; N]| member.iter().take(1).any(|o| o & NON_TRANSITIVE != 0);
        if !members.iter().any(is_internal) {
            return self;
        }
        let left = members.iter().filter(|member| !is_internal(member)).copied();
        let left = left.collect::<Vec<_>>().into_flattened();
        self.set_or_remove(OPTIONAL_TRANSITIVE, code, left.into())
    }
}

impl Value<'_> {
    fn octets(&self) -> &[u8] {
        match self {
            Value::Borrowed(octets) => octets,
            Value::New(octets) => octets,
        }
    }
}

impl CommunityValue for Community {
    const ATTRIBUTE: u8 = attribute_type::COMMUNITIES;
    const OCTETS: usize = 4;

    fn put(self, out: &mut Vec<u8>) {
        out.extend(self.0.to_be_bytes());
    }
}

impl CommunityValue for LargeCommunity {
    const ATTRIBUTE: u8 = attribute_type::LARGE_COMMUNITY;
    const OCTETS: usize = 12;

    fn put(self, out: &mut Vec<u8>) {
        out.extend(self.octets());
    }
}

const OPTIONAL_TRANSITIVE: u8 = flag::OPTIONAL | flag::TRANSITIVE;
/// The bit of an extended community's type that keeps it inside the AS (RFC 4360 section 2).
const NON_TRANSITIVE: u8 = 0x40;
/// Attributes that do not leave the AS.
const INTERNAL: [u8; 4] = [
    attribute_type::ORIGINATOR_ID,
    attribute_type::CLUSTER_LIST,
    attribute_type::TUNNEL_ENCAPSULATION,
    attribute_type::PREFIX_SID,
];
/// The extended length of an attribute has two octets (RFC 4271 section 4.3).
const VALUE_OCTETS_MAX: usize = u16::MAX as usize;
