//! Which free block of a pool a node tries next.

use std::net::IpAddr;

use ipnet::{IpNet, Ipv4Net, Ipv6Net};

use crate::free_index::FreeIndex;
use crate::pool::Pool;

/// Blocks that are tried from one pool in one go.
pub const CANDIDATES_MAX: usize = 32;

/// The block that `node` tries as its `attempt`-th in `pool`, given those that are known to be
/// taken. Nodes that know the same try blocks spread over all free ones, so that of many nodes that
/// claim at once few meet.
pub fn candidate(node: &str, pool: &Pool, index: &FreeIndex, attempt: u32) -> Option<IpNet> {
    let free = index.free();
    if free == 0 {
        return None;
    }
    let seed = spread(&[node.as_bytes(), pool.uid.as_bytes(), &attempt.to_be_bytes()]);
    index.nth_free(seed % free)
}

/// The index of `pool`'s blocks that `taken` prefixes lie in.
pub fn free_index<'a>(pool: &Pool, taken: impl IntoIterator<Item = &'a IpNet>) -> FreeIndex {
    let mut index = FreeIndex::new(pool.cidr, pool.block_size);
    for prefix in taken {
        index.take(*prefix);
    }
    index
}

/// The network of the pool's block that holds `address`, if one does.
pub fn block_of(pool: &Pool, address: IpAddr) -> Option<IpNet> {
    let block = IpNet::new(address, pool.block_size).ok()?.trunc();
    pool.cidr.contains(&block).then_some(block)
}

/// 128 well mixed bits of `parts`. Every version of the agent may choose otherwise; nothing depends
/// on two nodes agreeing.
pub(crate) fn spread(parts: &[&[u8]]) -> u128 {
    // FNV-1a (public domain) collects, the finaliser of SplitMix64 mixes.
    let mut hash = 0xcbf2_9ce4_8422_2325u64;
    for part in parts {
        for byte in part.iter().chain(&[0xff]) {
            hash = (hash ^ u64::from(*byte)).wrapping_mul(0x0000_0100_0000_01b3);
        }
    }
    let mix = |seed: u64| {
        let mut word = seed;
        word = (word ^ (word >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        word = (word ^ (word >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        word ^ (word >> 31)
    };
    let high = mix(hash.wrapping_add(0x9e37_79b9_7f4a_7c15));
    let low = mix(hash.wrapping_add(0x3c6e_f372_fe94_f82a));
    u128::from(high) << 64 | u128::from(low)
}

/// The `number`-th network of length `len` inside `pool`.
pub(crate) fn network_at(pool: IpNet, len: u8, number: u128) -> Option<IpNet> {
    let below = u32::from(pool.max_prefix_len().checked_sub(len)?);
    let offset = number.checked_shl(below).filter(|offset| offset >> below == number)?;
    match pool {
        IpNet::V4(pool) => {
            let base = u32::from(pool.network());
            let address = base.checked_add(u32::try_from(offset).ok()?)?;
            Ipv4Net::new(address.into(), len).ok().map(IpNet::V4)
        }
        IpNet::V6(pool) => {
            let address = u128::from(pool.network()).checked_add(offset)?;
            Ipv6Net::new(address.into(), len).ok().map(IpNet::V6)
        }
    }
}
