//! The numbers of path attributes, and sets of them.

/// Path attribute types as a set of 256 bits.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub struct AttributeTypes([u64; 4]);

impl AttributeTypes {
    /// The empty set.
    pub const NONE: AttributeTypes = AttributeTypes([0; 4]);

    /// Those of `types` that a peer's routes can do without. The others (ORIGIN, AS_PATH, NEXT_HOP,
    /// MP_REACH_NLRI and MP_UNREACH_NLRI) are left out: without them there is no route.
    pub fn discardable(types: impl IntoIterator<Item = u8>) -> AttributeTypes {
        let mut set = AttributeTypes::NONE;
        for attribute_type in types {
            if !INDISPENSABLE.contains(&attribute_type) {
                set.insert(attribute_type);
            }
        }
        set
    }

    /// Whether `attribute_type` is in the set.
    pub const fn contains(self, attribute_type: u8) -> bool {
        let AttributeTypes([a, b, c, d]) = self;
        let word = match attribute_type >> 6 {
            0 => a,
            1 => b,
            2 => c,
            _ => d,
        };
        word >> (attribute_type & 63) & 1 == 1
    }

    /// Adds `attribute_type`; says whether it is new.
    pub(super) const fn insert(&mut self, attribute_type: u8) -> bool {
        let is_new = !self.contains(attribute_type);
        let AttributeTypes([a, b, c, d]) = self;
        let word = match attribute_type >> 6 {
            0 => a,
            1 => b,
            2 => c,
            _ => d,
        };
        *word |= 1 << (attribute_type & 63);
        is_new
    }
}

/// Attributes that a route cannot be without, or that carry the routes.
const INDISPENSABLE: [u8; 5] = [
    attribute_type::ORIGIN,
    attribute_type::AS_PATH,
    attribute_type::NEXT_HOP,
    attribute_type::MP_REACH_NLRI,
    attribute_type::MP_UNREACH_NLRI,
];

/// Attribute flags (RFC 4271 section 4.3).
pub(super) mod flag {
    pub(in crate::wire) const OPTIONAL: u8 = 0x80;
    pub(in crate::wire) const TRANSITIVE: u8 = 0x40;
    pub(in crate::wire) const PARTIAL: u8 = 0x20;
    pub(in crate::wire) const EXTENDED_LENGTH: u8 = 0x10;
}

/// AS_PATH segment types (RFC 4271 section 4.3, RFC 5065 section 3).
pub(super) mod segment_type {
    pub(in crate::wire) const AS_SET: u8 = 1;
    pub(in crate::wire) const AS_SEQUENCE: u8 = 2;
    pub(in crate::wire) const AS_CONFED_SEQUENCE: u8 = 3;
    pub(in crate::wire) const AS_CONFED_SET: u8 = 4;
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
    /// RFC 6514; of families that this speaker does not carry.
    pub const PMSI_TUNNEL: u8 = 22;
    /// RFC 9012; checked and passed on, never used.
    pub const TUNNEL_ENCAPSULATION: u8 = 23;
    /// RFC 5543; never used.
    pub const TRAFFIC_ENGINEERING: u8 = 24;
    /// RFC 5701.
    pub const IPV6_EXTENDED_COMMUNITIES: u8 = 25;
    /// RFC 7311; checked, never used.
    pub const AIGP: u8 = 26;
    /// RFC 9552; of a family that this speaker does not carry.
    pub const BGP_LS: u8 = 29;
    /// RFC 8092.
    pub const LARGE_COMMUNITY: u8 = 32;
    /// RFC 9234.
    pub const ONLY_TO_CUSTOMER: u8 = 35;
    /// RFC 8669; checked and passed on inside the AS, never used.
    pub const PREFIX_SID: u8 = 40;
    /// RFC 6368; checked and passed on, never used.
    pub const ATTR_SET: u8 = 128;

    /// How an RFC calls the attribute; `None` for one that this speaker does not know.
    pub const fn name(attribute_type: u8) -> Option<&'static str> {
        Some(match attribute_type {
            ORIGIN => "ORIGIN",
            AS_PATH => "AS_PATH",
            NEXT_HOP => "NEXT_HOP",
            MED => "MULTI_EXIT_DISC",
            LOCAL_PREF => "LOCAL_PREF",
            ATOMIC_AGGREGATE => "ATOMIC_AGGREGATE",
            AGGREGATOR => "AGGREGATOR",
            COMMUNITIES => "COMMUNITIES",
            ORIGINATOR_ID => "ORIGINATOR_ID",
            CLUSTER_LIST => "CLUSTER_LIST",
            MP_REACH_NLRI => "MP_REACH_NLRI",
            MP_UNREACH_NLRI => "MP_UNREACH_NLRI",
            EXTENDED_COMMUNITIES => "EXTENDED COMMUNITIES",
            AS4_PATH => "AS4_PATH",
            AS4_AGGREGATOR => "AS4_AGGREGATOR",
            PMSI_TUNNEL => "PMSI_TUNNEL",
            TUNNEL_ENCAPSULATION => "TUNNEL_ENCAPSULATION",
            TRAFFIC_ENGINEERING => "TRAFFIC_ENGINEERING",
            IPV6_EXTENDED_COMMUNITIES => "IPv6 EXTENDED COMMUNITIES",
            AIGP => "AIGP",
            BGP_LS => "BGP-LS",
            LARGE_COMMUNITY => "LARGE_COMMUNITY",
            ONLY_TO_CUSTOMER => "ONLY_TO_CUSTOMER",
            PREFIX_SID => "PREFIX_SID",
            ATTR_SET => "ATTR_SET",
            _ => return None,
        })
    }
}
