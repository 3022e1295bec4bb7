//! What lies below BGP: how next hops are reached, and which networks are the machine's own.

use std::fmt;
use std::net::IpAddr;

use crate::prefix::Prefix;

/// A snapshot of the machine's own routes and addresses, which somebody else reads from the kernel.
///
/// Without one every next hop counts as reachable and no network as the machine's own: a route
/// reflector that forwards nothing has no use for it.
pub trait Underlay: fmt::Debug + Send + Sync {
    /// Whether packets to `next_hop` have a way that BGP did not make, the default route included
    /// (RFC 4271 section 9.1.2.1: not through the route itself).
    fn reaches(&self, next_hop: IpAddr) -> bool;

    /// The networks that are the machine's own.
    fn networks(&self) -> &LocalNetworks;
}

/// The networks that are a machine's own: no peer may draw their traffic elsewhere.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct LocalNetworks {
    connected: Vec<Prefix>,
    addresses: Vec<IpAddr>,
}

/// Why a prefix may not be learned.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Own {
    /// It is a connected subnet, or lies inside of one.
    Subnet(Prefix),
    /// It holds nothing but own addresses.
    Addresses,
}

impl LocalNetworks {
    /// From the addresses of all interfaces, each with the length of its subnet. A single address,
    /// such as one on the loopback device, is no subnet.
    pub fn new(addresses: impl IntoIterator<Item = (IpAddr, Prefix)>) -> LocalNetworks {
        let mut networks = LocalNetworks::default();
        for (address, subnet) in addresses {
            networks.addresses.push(address);
            if subnet.len() > 0 && subnet.len() < subnet.family().bits() {
                networks.connected.push(subnet);
            }
        }
        networks.connected.sort_unstable();
        networks.connected.dedup();
        networks.addresses.sort_unstable();
        networks.addresses.dedup();
        networks
    }

    /// Why `prefix` may not be learned; `None` when it may.
    pub(crate) fn own(&self, prefix: Prefix) -> Option<Own> {
        if let Some(subnet) = self.connected.iter().find(|subnet| subnet.contains(prefix)) {
            return Some(Own::Subnet(*subnet));
        }
        // A machine has few addresses, so only small prefixes can hold no others.
        let host_bits = prefix.family().bits() - prefix.len();
        if host_bits > OWN_HOST_BITS_MAX {
            return None;
        }
        let inside = self.addresses.iter().filter(|own| prefix.contains(Prefix::host(**own)));
        (inside.count() == 1 << host_bits).then_some(Own::Addresses)
    }
}

/// Prefixes with more host bits hold more addresses than a machine has in a row.
const OWN_HOST_BITS_MAX: u8 = 8;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn subnets_and_own_addresses_are_told_from_the_rest() {
        let address = |text: &str| {
            let (address, _) = text.split_once('/').expect("an address with a length");
            let subnet = text.parse::<Prefix>().expect("a prefix");
            (address.parse().expect("an address"), subnet)
        };
        let networks = LocalNetworks::new(
            ["192.0.2.1/24", "10.0.0.2/32", "10.0.0.3/32", "2001:db8::1/64"].map(address),
        );
        let own = |text: &str| networks.own(text.parse().expect("a prefix"));
        let subnet = |text: &str| Some(Own::Subnet(text.parse().expect("a prefix")));
        assert_eq!(own("192.0.2.0/24"), subnet("192.0.2.0/24"));
        assert_eq!(own("192.0.2.128/25"), subnet("192.0.2.0/24"));
        assert_eq!(own("2001:db8::7/128"), subnet("2001:db8::/64"));
        assert_eq!(own("10.0.0.2/32"), Some(Own::Addresses));
        assert_eq!(own("10.0.0.2/31"), Some(Own::Addresses));
        for other in ["192.0.2.0/23", "10.0.0.0/30", "10.0.0.4/32", "0.0.0.0/0", "2001:db8::/32"] {
            assert_eq!(own(other), None, "{other}");
        }
    }
}
