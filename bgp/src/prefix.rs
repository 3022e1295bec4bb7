//! Address families and prefixes in the packed form that the codec and the RIB use.

use std::fmt;
use std::hash::{Hash, Hasher};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::str::FromStr;

use ipnet::{IpNet, Ipv4Net, Ipv6Net};
use serde::{Deserialize, Deserializer, Serialize, Serializer};

/// An address family that this speaker carries (AFI and SAFI of RFC 4760).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
pub enum Family {
    /// AFI 1, SAFI 1.
    #[serde(rename = "IPv4Unicast")]
    Ipv4Unicast,
    /// AFI 2, SAFI 1.
    #[serde(rename = "IPv6Unicast")]
    Ipv6Unicast,
}

impl Family {
    /// Every family, in the order of their AFI.
    pub const ALL: [Family; 2] = [Family::Ipv4Unicast, Family::Ipv6Unicast];

    /// The Address Family Identifier (RFC 4760 section 3).
    pub const fn afi(self) -> u16 {
        match self {
            Family::Ipv4Unicast => 1,
            Family::Ipv6Unicast => 2,
        }
    }

    /// The Subsequent Address Family Identifier (RFC 4760 section 6).
    pub const fn safi(self) -> u8 {
        1
    }

    /// The family of an AFI and SAFI pair, if it is one that this speaker carries.
    pub const fn from_afi_safi(afi: u16, safi: u8) -> Option<Family> {
        match (afi, safi) {
            (1, 1) => Some(Family::Ipv4Unicast),
            (2, 1) => Some(Family::Ipv6Unicast),
            _ => None,
        }
    }

    /// Bits in an address of this family.
    pub const fn bits(self) -> u8 {
        match self {
            Family::Ipv4Unicast => 32,
            Family::Ipv6Unicast => 128,
        }
    }
}

impl fmt::Display for Family {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Family::Ipv4Unicast => "IPv4Unicast",
            Family::Ipv6Unicast => "IPv6Unicast",
        })
    }
}

/// A set of families, one bit each.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub struct Families(u8);

impl Families {
    /// No family.
    pub const NONE: Families = Families(0);

    /// This set with `family` in it.
    #[must_use]
    pub const fn with(self, family: Family) -> Families {
        Families(self.0 | 1 << family as u8)
    }

    /// Whether `family` is in the set.
    pub const fn contains(self, family: Family) -> bool {
        self.0 & (1 << family as u8) != 0
    }

    /// The families in either set.
    #[must_use]
    pub const fn union(self, other: Families) -> Families {
        Families(self.0 | other.0)
    }

    /// The families in both sets.
    #[must_use]
    pub const fn intersection(self, other: Families) -> Families {
        Families(self.0 & other.0)
    }

    /// Whether no family is in the set.
    pub const fn is_empty(self) -> bool {
        self.0 == 0
    }

    /// The families in the set, in the order of their AFI.
    pub fn iter(self) -> impl Iterator<Item = Family> {
        Family::ALL.into_iter().filter(move |family| self.contains(*family))
    }
}

impl FromIterator<Family> for Families {
    fn from_iter<T: IntoIterator<Item = Family>>(families: T) -> Self {
        families.into_iter().fold(Families::NONE, Families::with)
    }
}

/// An IPv4 prefix: host bits are always zero and `len` is at most 32.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct Ipv4Prefix {
    addr: u32,
    len: u8,
}

/// An IPv6 prefix: host bits are always zero and `len` is at most 128.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct Ipv6Prefix {
    // Two words keep the alignment at 8 octets, which makes a key 24 octets and not 32.
    addr: [u64; 2],
    len: u8,
}

impl Ipv4Prefix {
    /// The prefix of `len` bits that holds `addr`; `None` when `len` is above 32.
    pub const fn new(addr: u32, len: u8) -> Option<Ipv4Prefix> {
        if len > 32 {
            return None;
        }
        let mask = if len == 0 { 0 } else { u32::MAX << (32 - len) };
        Some(Ipv4Prefix { addr: addr & mask, len })
    }

    /// The prefix of one address.
    pub const fn host(addr: u32) -> Ipv4Prefix {
        Ipv4Prefix { addr, len: 32 }
    }

    /// The network address in host byte order.
    pub const fn addr(self) -> u32 {
        self.addr
    }

    /// The prefix length in bits.
    #[expect(clippy::len_without_is_empty, reason = "a prefix length is not a container's size")]
    pub const fn len(self) -> u8 {
        self.len
    }
}

impl Ipv6Prefix {
    /// The prefix of `len` bits that holds `addr`; `None` when `len` is above 128.
    pub const fn new(addr: u128, len: u8) -> Option<Ipv6Prefix> {
        if len > 128 {
            return None;
        }
        let mask = if len == 0 { 0 } else { u128::MAX << (128 - len) };
        let addr = addr & mask;
        Some(Ipv6Prefix { addr: [(addr >> 64) as u64, addr as u64], len })
    }

    /// The prefix of one address.
    pub const fn host(addr: u128) -> Ipv6Prefix {
        Ipv6Prefix { addr: [(addr >> 64) as u64, addr as u64], len: 128 }
    }

    /// The network address in host byte order.
    pub const fn addr(self) -> u128 {
        (self.addr[0] as u128) << 64 | self.addr[1] as u128
    }

    /// The prefix length in bits.
    #[expect(clippy::len_without_is_empty, reason = "a prefix length is not a container's size")]
    pub const fn len(self) -> u8 {
        self.len
    }
}

/// A prefix of either family.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Prefix {
    /// An IPv4 prefix.
    V4(Ipv4Prefix),
    /// An IPv6 prefix.
    V6(Ipv6Prefix),
}

impl Prefix {
    /// The prefix of `len` bits that holds `address`; `None` when an address has fewer bits.
    pub fn of(address: IpAddr, len: u8) -> Option<Prefix> {
        match address {
            IpAddr::V4(address) => Ipv4Prefix::new(address.to_bits(), len).map(Prefix::V4),
            IpAddr::V6(address) => Ipv6Prefix::new(address.to_bits(), len).map(Prefix::V6),
        }
    }

    /// The family that carries this prefix.
    pub const fn family(self) -> Family {
        match self {
            Prefix::V4(_) => Family::Ipv4Unicast,
            Prefix::V6(_) => Family::Ipv6Unicast,
        }
    }

    /// The prefix length in bits.
    #[expect(clippy::len_without_is_empty, reason = "a prefix length is not a container's size")]
    pub const fn len(self) -> u8 {
        match self {
            Prefix::V4(p) => p.len(),
            Prefix::V6(p) => p.len(),
        }
    }

    /// The network address.
    pub const fn addr(self) -> IpAddr {
        match self {
            Prefix::V4(p) => IpAddr::V4(Ipv4Addr::from_bits(p.addr())),
            Prefix::V6(p) => IpAddr::V6(Ipv6Addr::from_bits(p.addr())),
        }
    }

    /// The prefix of one address.
    pub const fn host(address: IpAddr) -> Prefix {
        match address {
            IpAddr::V4(address) => Prefix::V4(Ipv4Prefix::host(address.to_bits())),
            IpAddr::V6(address) => Prefix::V6(Ipv6Prefix::host(address.to_bits())),
        }
    }

    /// Whether it lies in a range that no router forwards: "this network", loopback, link-local and
    /// multicast addresses, limited broadcast, IPv4 in IPv6 (RFC 6890). The default route and others
    /// that merely cover such a range do not.
    pub const fn is_martian(self) -> bool {
        match self {
            Prefix::V4(prefix) => {
                let addr = prefix.addr();
                match prefix.len() {
                    32 if addr == u32::MAX => true,
                    16..=32 if addr >> 16 == 0xa9fe => true,
                    8..=32 if matches!(addr >> 24, 0 | 127) => true,
                    4..=32 => addr >> 28 == 0xe,
                    _ => false,
                }
            }
            Prefix::V6(prefix) => {
                let addr = prefix.addr();
                match prefix.len() {
                    128 if addr <= 1 => true,
                    96..=128 if addr >> 32 == 0xffff => true,
                    10..=128 if addr >> 118 == 0x3fa => true,
                    8..=128 => addr >> 120 == 0xff,
                    _ => false,
                }
            }
        }
    }

    /// Whether every address of `other` is in this prefix.
    pub fn contains(self, other: Prefix) -> bool {
        match (self, other) {
            (Prefix::V4(a), Prefix::V4(b)) => {
                a.len <= b.len && Ipv4Prefix::new(b.addr, a.len) == Some(a)
            }
            (Prefix::V6(a), Prefix::V6(b)) => {
                a.len <= b.len && Ipv6Prefix::new(b.addr(), a.len) == Some(a)
            }
            _ => false,
        }
    }
}

// In as few words as there are: prefixes are hashed more often than anything else.

impl Hash for Ipv4Prefix {
    #[inline]
    fn hash<H: Hasher>(&self, state: &mut H) {
        state.write_u64(u64::from(self.addr) << 8 | u64::from(self.len));
    }
}

impl Hash for Ipv6Prefix {
    #[inline]
    fn hash<H: Hasher>(&self, state: &mut H) {
        let [high, low] = self.addr;
        state.write_u64(high);
        state.write_u64(low);
        state.write_u8(self.len);
    }
}

impl Hash for Prefix {
    #[inline]
    fn hash<H: Hasher>(&self, state: &mut H) {
        match self {
            Prefix::V4(prefix) => prefix.hash(state),
            Prefix::V6(prefix) => prefix.hash(state),
        }
    }
}

impl From<IpNet> for Prefix {
    /// Host bits of `net` are dropped.
    fn from(net: IpNet) -> Prefix {
        match net.trunc() {
            IpNet::V4(n) => {
                Prefix::V4(Ipv4Prefix { addr: n.addr().to_bits(), len: n.prefix_len() })
            }
            IpNet::V6(n) => {
                let addr = n.addr().to_bits();
                Prefix::V6(Ipv6Prefix {
                    addr: [(addr >> 64) as u64, addr as u64],
                    len: n.prefix_len(),
                })
            }
        }
    }
}

impl From<Prefix> for IpNet {
    fn from(prefix: Prefix) -> IpNet {
        match prefix {
            Prefix::V4(p) => IpNet::V4(Ipv4Net::new_assert(Ipv4Addr::from_bits(p.addr()), p.len())),
            Prefix::V6(p) => IpNet::V6(Ipv6Net::new_assert(Ipv6Addr::from_bits(p.addr()), p.len())),
        }
    }
}

impl FromStr for Prefix {
    type Err = ipnet::AddrParseError;

    fn from_str(text: &str) -> Result<Prefix, Self::Err> {
        text.parse::<IpNet>().map(Prefix::from)
    }
}

impl fmt::Display for Prefix {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.addr(), self.len())
    }
}

impl fmt::Debug for Prefix {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

impl fmt::Debug for Ipv4Prefix {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(&Prefix::V4(*self), f)
    }
}

impl fmt::Debug for Ipv6Prefix {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(&Prefix::V6(*self), f)
    }
}

impl Serialize for Prefix {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl<'de> Deserialize<'de> for Prefix {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Prefix, D::Error> {
        IpNet::deserialize(deserializer).map(Prefix::from)
    }
}
