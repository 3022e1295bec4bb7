//! What a pod's interface is known by: names and Ethernet addresses that follow from a container and
//! its interface, and the digits that stand for a network configuration's name.

use std::fmt;
use std::str::FromStr;

use super::AliasError;
use crate::link::{Link, Mac};

/// What the name of every pod's host interface begins with.
pub const HOST_INTERFACE_PREFIX: &str = "cairn";

/// Six digits that stand for the name of a network configuration in a host interface's alias, which has
/// no room for the name itself. Two names share them once in 2^30.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct NetworkHash(u32);

impl NetworkHash {
    /// The digits of the network configuration `name`. They must never change between releases: garbage
    /// collection tells its own network's interfaces by them.
    pub fn of(name: &str) -> NetworkHash {
        NetworkHash((mix(fnv(name.bytes())) & NETWORK_MASK) as u32)
    }
}

impl fmt::Display for NetworkHash {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&digits(self.0.into(), NETWORK_DIGITS))
    }
}

impl FromStr for NetworkHash {
    type Err = AliasError;

    fn from_str(text: &str) -> Result<NetworkHash, AliasError> {
        let refuse = || AliasError::Network(text.into());
        if !are_digits(text, NETWORK_DIGITS) {
            return Err(refuse());
        }
        // The least significant digit comes first.
        let significant: String = text.chars().rev().collect();
        u32::from_str_radix(&significant, DIGIT_BASE).map(NetworkHash).map_err(|_| refuse())
    }
}

/// The name of the host interface of interface `ifname` in container `container_id`: the prefix
/// `cairn` and 50 bits of a hash as ten digits of base 32. It must never change between releases:
/// DEL finds the interface by it, also by the plugin alone (cni/src/orphan.rs).
pub fn host_interface_name(container_id: &str, ifname: &str) -> String {
    let hash = identity_hash(container_id, ifname);
    format!("{HOST_INTERFACE_PREFIX}{}", digits(hash, NAME_DIGITS))
}

/// Whether `name` can be one of [`host_interface_name`].
pub fn is_host_interface_name(name: &str) -> bool {
    name.strip_prefix(HOST_INTERFACE_PREFIX).is_some_and(|rest| are_digits(rest, NAME_DIGITS))
}

/// Whether a link can be a pod's host interface.
pub(super) fn is_ours(link: &Link) -> bool {
    link.kind.as_deref() == Some("veth") && is_host_interface_name(&link.name)
}

/// The Ethernet addresses of the host's and the pod's end: the same whenever the interface is made again.
pub(super) fn macs_of(container_id: &str, ifname: &str) -> (Mac, Mac) {
    let hash = identity_hash(container_id, ifname);
    (mac_of(mix(hash ^ HOST_MAC_SALT)), mac_of(mix(hash ^ POD_MAC_SALT)))
}

/// 64 bits that identify an interface of a container.
pub(super) fn identity_hash(container_id: &str, ifname: &str) -> u64 {
    // Neither part can hold a zero byte.
    mix(fnv(container_id.bytes().chain([0]).chain(ifname.bytes())))
}

/// The finalizer of SplitMix64: every bit of its result depends on every bit of `hash`.
pub(super) fn mix(mut hash: u64) -> u64 {
    hash = (hash ^ (hash >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    hash = (hash ^ (hash >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    hash ^ (hash >> 31)
}

/// FNV-1a.
fn fnv(bytes: impl Iterator<Item = u8>) -> u64 {
    let step = |hash: u64, byte: u8| (hash ^ u64::from(byte)).wrapping_mul(0x0100_0000_01b3);
    bytes.fold(0xcbf2_9ce4_8422_2325, step)
}

/// The lowest `count` digits of base 32, the least significant first.
fn digits(mut hash: u64, count: usize) -> String {
    let mut text = String::with_capacity(count);
    for _ in 0..count {
        text.push(char::from_digit((hash & 31) as u32, DIGIT_BASE).unwrap_or('0'));
        hash >>= 5;
    }
    text
}

fn are_digits(text: &str, count: usize) -> bool {
    text.len() == count && text.bytes().all(|digit| matches!(digit, b'0'..=b'9' | b'a'..=b'v'))
}

/// A locally administered Ethernet address of 46 bits of `hash`.
fn mac_of(hash: u64) -> Mac {
    let [_, _, first, rest @ ..] = hash.to_be_bytes();
    let [b, c, d, e, f] = rest;
    Mac([(first & 0xfc) | 0x02, b, c, d, e, f])
}

const DIGIT_BASE: u32 = 32;
const NAME_DIGITS: usize = 10;
const NETWORK_DIGITS: usize = 6;
/// As many bits as six digits have.
const NETWORK_MASK: u64 = (1 << 30) - 1;
const HOST_MAC_SALT: u64 = 0x0068_6f73_7420_6d61;
const POD_MAC_SALT: u64 = 0x0070_6f64_206d_6163;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn host_interface_names_are_stable_and_told_apart() {
        // Interfaces made by one release are found by the next.
        assert_eq!(host_interface_name("c0ffee", "eth0"), NAME_OF_C0FFEE);
        let mut names = std::collections::HashSet::new();
        for number in 0..5_000 {
            for ifname in ["eth0", "eth1"] {
                let name = host_interface_name(&format!("{number:064x}"), ifname);
                assert!(name.len() == 15 && is_host_interface_name(&name), "{name}");
                assert!(names.insert(name));
            }
        }
        for name in ["cairn", "cairn.vxlan", "cairn-ipip", "cairn000000000z", "veth0123456789a"] {
            assert!(!is_host_interface_name(name), "{name}");
        }
    }

    #[test]
    fn networks_are_stable_told_apart_and_read_as_written() {
        assert_eq!(NetworkHash::of("cairn").to_string(), DIGITS_OF_CAIRN);
        let mut seen = std::collections::HashSet::new();
        for number in 0..1_000 {
            let network = NetworkHash::of(&format!("network-{number}"));
            let text = network.to_string();
            assert_eq!(text.len(), 6);
            assert_eq!(text.parse::<NetworkHash>(), Ok(network));
            assert!(seen.insert(network));
        }
        for text in ["", "cairn", "wwwwww", "ABCDEF", "0000000", "00000é"] {
            assert_eq!(text.parse::<NetworkHash>(), Err(AliasError::Network(text.into())));
        }
    }

    #[test]
    fn ethernet_addresses_are_local_unicast_and_differ() {
        for number in 0..1_000 {
            let (host, pod) = macs_of(&format!("{number:064x}"), "eth0");
            assert!(host != pod && [host, pod].iter().all(|mac| mac.0[0] & 0b11 == 0b10));
        }
    }

    const NAME_OF_C0FFEE: &str = "cairn4o7ongurrm";
    const DIGITS_OF_CAIRN: &str = "mqbmck";
}
