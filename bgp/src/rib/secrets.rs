//! Hashes of what peers choose: prefixes and attributes.

use std::fmt;
use std::hash::{Hash, Hasher};
use std::sync::Arc;

use foldhash::SharedSeed;
use foldhash::fast::FoldHasher;

/// What hashes of peers' data depend on, and no peer may know: with the multipliers of foldhash's `FixedState`,
/// which everybody knows, a factor can be made zero, whatever the seed is, and all of a million prefixes
/// would share one place.
#[derive(Clone)]
pub(crate) struct Secrets {
    seed: u64,
    multipliers: Arc<SharedSeed>,
}

impl Secrets {
    /// From one random number.
    pub(crate) fn new(seed: u64) -> Secrets {
        Secrets { seed, multipliers: Arc::new(SharedSeed::from_u64(seed.rotate_left(32))) }
    }

    /// Half of a hash.
    #[inline]
    pub(crate) fn hash(&self, value: &impl Hash) -> u32 {
        let mut hasher = FoldHasher::with_seed(self.seed, &self.multipliers);
        value.hash(&mut hasher);
        // Hashes of neighbours have regular distances, and `Index` wants no heaps: once more, which keeps
        // different hashes different.
        let hash = hasher.finish();
        ((hash ^ hash >> 32).wrapping_mul(0x9e37_79b9_7f4a_7c15) >> 32) as u32
    }
}

impl fmt::Debug for Secrets {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Secrets")
    }
}

#[cfg(test)]
mod tests {
    use std::collections::HashSet;

    use super::*;
    use crate::prefix::Ipv6Prefix;

    /// Attacks on multipliers that are known: each of them is one of the two halves of an address.
    #[test]
    fn no_prefixes_share_a_hash_by_known_constants() {
        // foldhash 0.2, src/lib.rs.
        const KNOWN: [u64; 12] = [
            0x243f6a8885a308d3,
            0x13198a2e03707344,
            0xa4093822299f31d0,
            0x082efa98ec4e6c89,
            0x452821e638d01377,
            0xbe5466cf34e90c6c,
            0xc0ac29b7c97c50dd,
            0x3f84d5b5b5470917,
            0x9216d5d98979fb1b,
            0xd1310ba698dfb5ac,
            0x2ffd72dbd01adfb7,
            0xb8e1afed6a267e96,
        ];
        for secrets in (0..10).map(Secrets::new) {
            for known in KNOWN {
                let half = u128::from(known);
                let low = |n: u64| u128::from(0x2001_0000 + n) << 64 | half;
                let high = |n: u64| half << 64 | u128::from(n);
                for address in [&low as &dyn Fn(u64) -> u128, &high] {
                    let prefix = |n| Ipv6Prefix::new(address(n), 128).expect("128 bits");
                    let hashes: HashSet<u32> =
                        (0..1000).map(|n| secrets.hash(&prefix(n))).collect();
                    assert!(hashes.len() > 990, "{known:x}: {}", hashes.len());
                }
            }
        }
    }
}
