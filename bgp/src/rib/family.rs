//! One code path for IPv4 and IPv6: the RIB is generic over an [`AddressFamily`].

use std::fmt::Debug;
use std::hash::Hash;

use crate::prefix::{Family, Ipv4Prefix, Ipv6Prefix, Prefix};

/// A family with its packed prefix, which is the key of every map.
pub trait AddressFamily: 'static {
    /// The packed prefix.
    type Key: Copy + Eq + Ord + Hash + Debug + Send;
    /// The family.
    const FAMILY: Family;
    /// The key of a prefix; `None` when it is of the other family.
    fn key(prefix: Prefix) -> Option<Self::Key>;
    /// The prefix of a key.
    fn prefix(key: Self::Key) -> Prefix;
}

/// IPv4 unicast.
#[derive(Clone, Copy, Debug)]
pub enum Ipv4 {}

/// IPv6 unicast.
#[derive(Clone, Copy, Debug)]
pub enum Ipv6 {}

impl AddressFamily for Ipv4 {
    type Key = Ipv4Prefix;
    const FAMILY: Family = Family::Ipv4Unicast;

    fn key(prefix: Prefix) -> Option<Ipv4Prefix> {
        match prefix {
            Prefix::V4(key) => Some(key),
            Prefix::V6(_) => None,
        }
    }

    fn prefix(key: Ipv4Prefix) -> Prefix {
        Prefix::V4(key)
    }
}

impl AddressFamily for Ipv6 {
    type Key = Ipv6Prefix;
    const FAMILY: Family = Family::Ipv6Unicast;

    fn key(prefix: Prefix) -> Option<Ipv6Prefix> {
        match prefix {
            Prefix::V6(key) => Some(key),
            Prefix::V4(_) => None,
        }
    }

    fn prefix(key: Ipv6Prefix) -> Prefix {
        Prefix::V6(key)
    }
}
