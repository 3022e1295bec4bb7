//! Which blocks of a pool are not known to be taken, and the n-th of them, without a scan.
//!
//! The index holds counts of taken blocks in a tree of sixteen children a node, and only nodes that
//! have one below them: its memory follows the taken blocks, not the pool. A pool of 2^80 blocks
//! costs twenty steps of sixteen look-ups.

use std::collections::HashMap;

use ipnet::IpNet;

use crate::candidates::network_at;

const CHILD_BITS: u8 = 4;
const CHILDREN: u128 = 1 << CHILD_BITS;

/// The blocks of one pool that are known to be taken.
#[derive(Clone, Debug)]
pub struct FreeIndex {
    pool: IpNet,
    block_size: u8,
    /// Bits of a block's number inside the pool.
    bits: u8,
    /// Taken blocks below a node. Level 0 is the blocks themselves; a node of level n is named by
    /// the block number shifted by n times [`CHILD_BITS`].
    counts: HashMap<(u8, u128), u128>,
    taken: u128,
}

impl FreeIndex {
    /// An index in which every block of `pool` is free. `block_size` is the blocks' prefix length;
    /// one that does not fit the pool makes an index without any block.
    pub fn new(pool: IpNet, block_size: u8) -> FreeIndex {
        let pool = pool.trunc();
        let fits = block_size >= pool.prefix_len() && block_size <= pool.max_prefix_len();
        // 2^128 blocks of one address do not fit a number; no pool may be that large.
        let bits = if fits { (block_size - pool.prefix_len()).min(127) } else { 0 };
        let taken = if fits { 0 } else { 1 };
        FreeIndex { pool, block_size, bits, counts: HashMap::new(), taken }
    }

    /// Blocks in all.
    pub fn total(&self) -> u128 {
        1 << self.bits
    }

    /// Blocks that are not known to be taken.
    pub fn free(&self) -> u128 {
        self.total().saturating_sub(self.taken)
    }

    /// Notes that `prefix` is in use: the block that it is or lies in is taken. A prefix shorter
    /// than a block takes none, since an aggregate may stand over blocks that nobody owns.
    pub fn take(&mut self, prefix: IpNet) {
        if prefix.prefix_len() >= self.block_size && self.pool.contains(&prefix) {
            self.take_node(0, self.number_of(prefix));
        }
    }

    /// Takes every block that lies in `prefix` as a whole, without a walk over them: a node of the
    /// tree whose count is its size is full, whatever is below it.
    pub fn take_inside(&mut self, prefix: IpNet) {
        if prefix.contains(&self.pool) {
            self.taken = self.taken.max(self.total());
            return;
        }
        if prefix.prefix_len() > self.block_size || !self.pool.contains(&prefix) {
            return;
        }
        let bits = self.block_size - prefix.prefix_len();
        let (level, siblings) = (bits / CHILD_BITS, 1u128 << (bits % CHILD_BITS));
        let first = self.number_of(prefix) >> shift_of(level);
        for node in first..first + siblings {
            self.take_node(level, node);
        }
    }

    /// Takes all blocks below a node that are not taken yet.
    fn take_node(&mut self, level: u8, node: u128) {
        let above = |upper: u8| (upper, node.checked_shr(shift_of(upper - level)).unwrap_or(0));
        let levels = self.levels();
        let count = |index: &FreeIndex, node| index.counts.get(&node).copied().unwrap_or(0);
        if (level..=levels).any(|upper| count(self, above(upper)) >= size_of(upper)) {
            return;
        }
        let added = size_of(level) - count(self, above(level));
        for upper in level..=levels {
            *self.counts.entry(above(upper)).or_insert(0) += added;
        }
        self.taken = self.taken.saturating_add(added);
    }

    /// The `n`-th free block, counted from 0 in the order of addresses.
    pub fn nth_free(&self, n: u128) -> Option<IpNet> {
        if n >= self.free() {
            return None;
        }
        let mut rest = n;
        let mut node = 0u128;
        for level in (0..self.levels()).rev() {
            let size = size_of(level);
            let first = node << CHILD_BITS;
            node = (first..first + CHILDREN).find(|child| {
                let taken = self.counts.get(&(level, *child)).copied().unwrap_or(0);
                let free = size.saturating_sub(taken);
                let here = rest < free;
                if !here {
                    rest -= free;
                }
                here
            })?;
        }
        (node < self.total()).then(|| network_at(self.pool, self.block_size, node))?
    }

    fn levels(&self) -> u8 {
        self.bits.div_ceil(CHILD_BITS)
    }

    fn number_of(&self, prefix: IpNet) -> u128 {
        let bits = |net: IpNet| match net {
            IpNet::V4(net) => u128::from(u32::from(net.network())),
            IpNet::V6(net) => u128::from(net.network()),
        };
        let below = self.pool.max_prefix_len() - self.block_size;
        (bits(prefix) - bits(self.pool)).checked_shr(below.into()).unwrap_or(0)
    }
}

fn shift_of(levels: u8) -> u32 {
    u32::from(levels) * u32::from(CHILD_BITS)
}

/// Blocks below a node of `level`.
fn size_of(level: u8) -> u128 {
    1u128.checked_shl(shift_of(level)).unwrap_or(u128::MAX)
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use proptest::prelude::*;

    use super::*;

    fn net(text: &str) -> IpNet {
        text.parse().expect("a network")
    }

    #[test]
    fn a_huge_pool_costs_what_is_taken() {
        let mut index = FreeIndex::new(net("fd00:10:244::/48"), 128);
        assert_eq!(index.total(), 1 << 80);
        index.take(net("fd00:10:244::/128"));
        index.take(net("fd00:10:244::2/128"));
        index.take(net("fd00:10:245::/128"));
        assert_eq!(index.free(), (1 << 80) - 2);
        assert_eq!(index.nth_free(0), Some(net("fd00:10:244::1/128")));
        assert_eq!(index.nth_free(1), Some(net("fd00:10:244::3/128")));
        assert_eq!(
            index.nth_free((1 << 80) - 3),
            Some(net("fd00:10:244:ffff:ffff:ffff:ffff:ffff/128"))
        );
        assert_eq!(index.nth_free((1 << 80) - 2), None);
        assert!(index.counts.len() < 50, "{} nodes", index.counts.len());
    }

    #[test]
    fn parts_of_a_block_take_it_once_and_aggregates_take_none() {
        let mut index = FreeIndex::new(net("10.0.0.0/24"), 26);
        for prefix in ["10.0.0.64/26", "10.0.0.65/32", "10.0.0.64/27", "10.0.0.0/16", "::/64"] {
            index.take(net(prefix));
        }
        assert_eq!((index.total(), index.free()), (4, 3));
        assert_eq!(index.nth_free(1), Some(net("10.0.0.128/26")));
        assert_eq!(FreeIndex::new(net("10.0.0.0/24"), 20).free(), 0);
    }

    #[test]
    fn a_reserved_64_of_a_48_is_taken_without_a_walk() {
        let mut index = FreeIndex::new(net("fd00:10:244::/48"), 122);
        index.take(net("fd00:10:244:0:ffff::/122"));
        index.take_inside(net("fd00:10:244::/64"));
        assert_eq!(index.free(), (1 << 74) - (1 << 58));
        assert_eq!(index.nth_free(0), Some(net("fd00:10:244:1::/122")));
        index.take(net("fd00:10:244::40/122"));
        index.take_inside(net("fd00:10:244::/64"));
        index.take_inside(net("fd00:10:244::/66"));
        assert_eq!(index.free(), (1 << 74) - (1 << 58), "once");
        assert!(index.counts.len() < 100, "{} nodes", index.counts.len());
        index.take_inside(net("fd00::/16"));
        assert_eq!((index.free(), index.nth_free(0)), (0, None));
    }

    proptest! {
        #[test]
        fn wholes_and_parts_agree_with_a_scan(
            size in 24u8..=32,
            taken in prop::collection::vec((22u8..=32, 0u32..1024, any::<bool>()), 0..60),
        ) {
            let pool = net("10.9.8.0/22");
            let mut index = FreeIndex::new(pool, size);
            let mut free: BTreeSet<IpNet> =
                (0..index.total()).filter_map(|n| network_at(pool, size, n)).collect();
            for (len, offset, whole) in taken {
                let address = std::net::Ipv4Addr::from(0x0a09_0800 + offset);
                let prefix = IpNet::new(address.into(), len).expect("a network").trunc();
                if whole {
                    index.take_inside(prefix);
                    free.retain(|block| !prefix.contains(block));
                } else {
                    index.take(prefix);
                    free.retain(|block| !(block.contains(&prefix)));
                }
                prop_assert_eq!(index.free(), free.len() as u128);
            }
            let listed: Vec<IpNet> = (0..index.free()).filter_map(|n| index.nth_free(n)).collect();
            prop_assert_eq!(listed, free.into_iter().collect::<Vec<_>>());
        }

        #[test]
        fn the_index_agrees_with_a_scan(size in 22u8..=32, taken in prop::collection::vec(any::<u8>(), 0..300)) {
            let pool = net("10.9.8.0/22");
            let mut index = FreeIndex::new(pool, size);
            let mut free: BTreeSet<IpNet> =
                (0..index.total()).filter_map(|n| network_at(pool, size, n)).collect();
            prop_assert_eq!(free.len() as u128, index.total());
            for n in taken {
                let block = network_at(pool, size, u128::from(n) * 7 % index.total());
                let block = block.expect("inside the pool");
                index.take(block);
                free.remove(&block);
            }
            let listed: Vec<IpNet> = (0..index.free()).filter_map(|n| index.nth_free(n)).collect();
            prop_assert_eq!(listed, free.into_iter().collect::<Vec<_>>());
            prop_assert_eq!(index.nth_free(index.free()), None);
        }
    }
}
