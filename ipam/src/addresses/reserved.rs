//! Addresses that are never handed out, as ranges: a reservation may hold more than memory could.

use std::collections::BTreeMap;
use std::net::IpAddr;

use ipnet::IpNet;

use super::bits_of;

/// Disjoint ranges: first and last address, both part of it.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Reserved {
    ranges: BTreeMap<IpAddr, IpAddr>,
}

impl Reserved {
    /// The union of `cidrs`.
    pub(super) fn new(mut cidrs: Vec<IpNet>) -> Reserved {
        // The longer one of two networks that overlap lies in the other.
        cidrs.sort_by_key(|cidr| (cidr.network(), cidr.prefix_len()));
        let mut ranges = BTreeMap::new();
        let mut last: Option<IpNet> = None;
        for cidr in cidrs {
            if last.is_none_or(|last| !last.contains(&cidr)) {
                ranges.insert(cidr.network(), cidr.broadcast());
                last = Some(cidr);
            }
        }
        Reserved { ranges }
    }

    /// The last address of the range in which `address` lies, if it is reserved.
    pub(super) fn end_of(&self, address: IpAddr) -> Option<IpAddr> {
        let (_, last) = self.ranges.range(..=address).next_back()?;
        // IPv4 addresses come before IPv6 ones, so that a range is of one family.
        (address <= *last).then_some(*last)
    }

    pub(super) fn contains(&self, address: IpAddr) -> bool {
        self.end_of(address).is_some()
    }

    /// The ranges inside `cidr`, cut to it, in order.
    pub(super) fn within(&self, cidr: IpNet) -> impl Iterator<Item = (IpAddr, IpAddr)> {
        let (first, last) = (cidr.network(), cidr.broadcast());
        let around = self.end_of(first).map(|end| (first, end.min(last)));
        let rest = self.ranges.range(first..=last).filter(move |(start, _)| **start != first);
        around.into_iter().chain(rest.map(move |(start, end)| (*start, *(end.min(&last)))))
    }

    /// How many addresses of `cidr` are reserved.
    pub(super) fn count_in(&self, cidr: IpNet) -> u128 {
        self.within(cidr).fold(0u128, |sum, (first, last)| {
            let more = bits_of(last).wrapping_sub(bits_of(first)).saturating_add(1);
            sum.saturating_add(more)
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn reserved(cidrs: &[&str]) -> Reserved {
        Reserved::new(cidrs.iter().map(|cidr| cidr.parse().expect("a network")).collect())
    }

    fn count(held: &Reserved, cidr: &str) -> u128 {
        held.count_in(cidr.parse().expect("a network"))
    }

    #[test]
    fn overlapping_reservations_count_once_and_only_inside_the_block() {
        let held = reserved(&["10.0.0.4/30", "10.0.0.0/29", "10.0.0.5/32", "10.0.0.64/32"]);
        assert_eq!(count(&held, "10.0.0.0/26"), 8);
        assert_eq!(count(&held, "10.0.0.4/31"), 2);
        assert_eq!(count(&held, "10.0.0.0/24"), 9);
        assert_eq!(count(&held, "10.0.1.0/24"), 0);
        assert_eq!(count(&held, "fd00::/64"), 0);
        assert_eq!(count(&reserved(&["::/0"]), "fd00::/64"), 1 << 64);
        assert_eq!(count(&reserved(&["0.0.0.0/0"]), "::/0"), 0);
    }

    #[test]
    fn the_end_of_a_range_is_where_the_next_free_address_may_be() {
        let held = reserved(&["10.0.0.8/29", "fd00::/65"]);
        let end = |text: &str| held.end_of(text.parse().expect("an address"));
        assert_eq!(end("10.0.0.7"), None);
        assert_eq!(end("10.0.0.8"), Some("10.0.0.15".parse().expect("an address")));
        assert_eq!(end("10.0.0.16"), None);
        assert_eq!(end("fd00::1"), Some("fd00::7fff:ffff:ffff:ffff".parse().expect("an address")));
        assert_eq!(end("fd00::8000:0:0:0"), None);
    }
}
