//! Path attributes as one immutable value (RFC 4271 section 5).

use std::fmt;
use std::hash::{Hash, Hasher};
use std::net::Ipv4Addr;

use super::builder::AttributesBuilder;

/// The path attributes that go with a route from router to router: everything but the next hop and
/// the prefixes themselves.
///
/// Equality and hash are those of [`PathAttributes::as_bytes`].
#[derive(Clone)]
pub struct PathAttributes {
    bytes: Box<[u8]>,
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
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
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
        todo!("{origin:?}")
    }

    /// A builder that begins with these attributes.
    pub fn edit(&self) -> AttributesBuilder<'_> {
        todo!()
    }

    /// The attributes in wire form: ascending type codes, 4-octet AS numbers, shortest lengths,
    /// without NEXT_HOP, MP_REACH_NLRI and MP_UNREACH_NLRI.
    pub fn as_bytes(&self) -> &[u8] {
        &self.bytes
    }

    /// ORIGIN.
    pub fn origin(&self) -> Origin {
        todo!()
    }

    /// LOCAL_PREF, if there is one.
    pub fn local_pref(&self) -> Option<u32> {
        todo!()
    }

    /// MULTI_EXIT_DISC, if there is one.
    pub fn med(&self) -> Option<u32> {
        todo!()
    }

    /// ORIGINATOR_ID, if there is one (RFC 4456).
    pub fn originator_id(&self) -> Option<Ipv4Addr> {
        todo!()
    }

    /// AS_PATH; empty on a route that was originated in the own AS.
    pub fn as_path(&self) -> AsPath<'_> {
        todo!()
    }

    /// Length of AS_PATH for the decision process (RFC 4271 section 9.1.2.2).
    pub fn as_path_len(&self) -> u32 {
        todo!()
    }

    /// The first AS of AS_PATH: the neighbour that the route came from, which MED is compared within.
    pub fn neighbour_as(&self) -> Option<u32> {
        todo!()
    }

    /// The last AS of AS_PATH.
    pub fn origin_as(&self) -> Option<u32> {
        todo!()
    }

    /// CLUSTER_LIST (RFC 4456); empty when there is none.
    pub fn cluster_list(&self) -> ClusterList<'_> {
        todo!()
    }

    /// Entries of CLUSTER_LIST.
    pub fn cluster_list_len(&self) -> u32 {
        todo!()
    }

    /// COMMUNITIES in their order.
    pub fn communities(&self) -> Communities<'_> {
        todo!()
    }

    /// Whether `community` is among [`PathAttributes::communities`].
    pub fn has_community(&self, community: Community) -> bool {
        self.communities().any(|c| c == community)
    }

    /// LARGE_COMMUNITY in their order.
    pub fn large_communities(&self) -> impl Iterator<Item = LargeCommunity> + '_ {
        std::iter::empty()
    }

    /// EXTENDED COMMUNITIES in their order, eight octets each (RFC 4360).
    pub fn extended_communities(&self) -> impl Iterator<Item = u64> + '_ {
        std::iter::empty()
    }

    /// The value of an attribute in its 4-octet AS form, if there is one.
    pub fn value(&self, attribute_type: u8) -> Option<&[u8]> {
        todo!("{attribute_type}")
    }
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
        write!(f, "{:02x?}", self.bytes)
    }
}

impl<'a> AsPath<'a> {
    /// The segments in the order of the path.
    pub fn segments(self) -> impl Iterator<Item = AsSegment<'a>> {
        std::iter::empty()
    }

    /// Every AS number in the order of the path, those of sets too.
    pub fn asns(self) -> impl Iterator<Item = u32> + 'a {
        std::iter::empty()
    }

    /// Whether `asn` is in the path: a loop when it is one's own.
    pub fn contains(self, asn: u32) -> bool {
        self.asns().any(|a| a == asn)
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
}

impl fmt::Debug for Community {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}:{}", self.0 >> 16, self.0 & 0xffff)
    }
}

impl Iterator for Communities<'_> {
    type Item = Community;

    fn next(&mut self) -> Option<Community> {
        todo!("{:?}", self.0)
    }
}

impl Iterator for ClusterList<'_> {
    type Item = Ipv4Addr;

    fn next(&mut self) -> Option<Ipv4Addr> {
        todo!("{:?}", self.0)
    }
}

/// Attribute type codes (IANA, BGP Path Attributes).
pub mod attribute_type {
    /// RFC 4271.
    pub const ORIGIN: u8 = 1;
    /// RFC 4271.
    pub const AS_PATH: u8 = 2;
    /// RFC 4271.
    pub const NEXT_HOP: u8 = 3;
    /// RFC 4271.
    pub const MED: u8 = 4;
    /// RFC 4271.
    pub const LOCAL_PREF: u8 = 5;
    /// RFC 4271.
    pub const ATOMIC_AGGREGATE: u8 = 6;
    /// RFC 4271.
    pub const AGGREGATOR: u8 = 7;
    /// RFC 1997.
    pub const COMMUNITIES: u8 = 8;
    /// RFC 4456.
    pub const ORIGINATOR_ID: u8 = 9;
    /// RFC 4456.
    pub const CLUSTER_LIST: u8 = 10;
    /// RFC 4760.
    pub const MP_REACH_NLRI: u8 = 14;
    /// RFC 4760.
    pub const MP_UNREACH_NLRI: u8 = 15;
    /// RFC 4360.
    pub const EXTENDED_COMMUNITIES: u8 = 16;
    /// RFC 6793.
    pub const AS4_PATH: u8 = 17;
    /// RFC 6793.
    pub const AS4_AGGREGATOR: u8 = 18;
    /// RFC 5701.
    pub const IPV6_EXTENDED_COMMUNITIES: u8 = 25;
    /// RFC 8092.
    pub const LARGE_COMMUNITY: u8 = 32;
    /// RFC 9234.
    pub const ONLY_TO_CUSTOMER: u8 = 35;
}
