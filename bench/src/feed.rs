//! The routes that are measured with: synthetic, and the same in every run.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::ops::Range;

use cairn_bgp::prefix::{Family, Ipv4Prefix, Ipv6Prefix, Prefix};
use cairn_bgp::wire::{AttributesBuilder, Community, NextHop, PathAttributes};

/// Prefixes that share their attributes.
#[derive(Debug)]
pub struct AttributeSet {
    /// The attributes, unlike those of any other set.
    pub path: PathAttributes,
    /// The prefixes.
    pub prefixes: Vec<Prefix>,
}

/// A table of `prefixes` prefixes, at most [`PREFIXES_MAX`], `per_set` of them with the same
/// attributes. `path_asns` are the first AS numbers of every path, the neighbour first; one that
/// differs from set to set follows.
pub fn table(
    family: Family,
    prefixes: u32,
    per_set: usize,
    path_asns: &[u32],
) -> Vec<AttributeSet> {
    table_of(family, 0..prefixes, per_set, path_asns)
}

/// As [`table`], of the prefixes with these numbers.
pub fn table_of(
    family: Family,
    numbers: Range<u32>,
    per_set: usize,
    path_asns: &[u32],
) -> Vec<AttributeSet> {
    let numbers: Vec<u32> = numbers.collect();
    let sets = numbers.chunks(per_set).zip(0..);
    sets.map(|(numbers, set)| AttributeSet {
        path: attributes(set, path_asns),
        prefixes: numbers.iter().filter_map(|number| prefix(family, *number)).collect(),
    })
    .collect()
}

/// A next hop of the family.
pub fn next_hop(family: Family) -> NextHop {
    NextHop::new(match family {
        Family::Ipv4Unicast => IpAddr::V4(Ipv4Addr::new(192, 0, 2, 7)),
        Family::Ipv6Unicast => IpAddr::V6(Ipv6Addr::new(0x2001, 0xdb8, 0, 0, 0, 0, 0, 7)),
    })
}

/// `count` as in the rows' names: 2000 is 2k.
pub fn thousands(count: u32) -> String {
    match count {
        1_000_000.. => format!("{}M", count / 1_000_000),
        _ => format!("{}k", count / 1000),
    }
}

fn prefix(family: Family, number: u32) -> Option<Prefix> {
    // An odd factor permutes the numbers below a power of two: neighbours in a message are none in
    // the address space, as in a real feed.
    let scattered = number.wrapping_mul(0x9e37_79b1) & (PREFIXES_MAX - 1);
    match family {
        Family::Ipv4Unicast => {
            Ipv4Prefix::new(u32::from_be_bytes([20, 0, 0, 0]) + (scattered << 8), 24)
                .map(Prefix::V4)
        }
        Family::Ipv6Unicast => {
            Ipv6Prefix::new(0x2a00 << 112 | u128::from(scattered) << 80, 48).map(Prefix::V6)
        }
    }
}

fn attributes(set: u32, path_asns: &[u32]) -> PathAttributes {
    let mut builder = AttributesBuilder::default();
    builder.prepend(100_000 + set, 1);
    for asn in path_asns.iter().rev() {
        builder.prepend(*asn, 1);
    }
    builder.add_communities(&[Community(0xfc01_0001), Community(0xfc01_0064)]);
    builder.build()
}

/// Different prefixes of a family.
pub const PREFIXES_MAX: u32 = 1 << 20;

#[cfg(test)]
mod tests {
    use std::collections::HashSet;

    use super::*;

    #[test]
    fn a_table_has_no_prefix_and_no_attributes_twice() {
        for family in Family::ALL {
            let sets = table(family, PREFIXES_MAX, 4, &[64501]);
            let prefixes: HashSet<Prefix> =
                sets.iter().flat_map(|set| set.prefixes.iter().copied()).collect();
            assert_eq!(prefixes.len(), PREFIXES_MAX as usize);
            let paths: HashSet<&PathAttributes> = sets.iter().map(|set| &set.path).collect();
            assert_eq!(paths.len(), PREFIXES_MAX as usize / 4);
        }
    }
}
