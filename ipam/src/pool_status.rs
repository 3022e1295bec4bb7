//! How a pool stands: what the leader writes into its status.

use ipnet::IpNet;

use crate::claims::{Pool, REASON_FOREIGN, overlap, overlapped_by};
use crate::free_index::FreeIndex;
use crate::returns::BlockSeen;

/// One condition: its type, whether it holds, one word for programs, a sentence for people.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Verdict {
    /// Whether it holds.
    pub holds: bool,
    /// One CamelCase word.
    pub reason: &'static str,
    /// What is wrong and what to do.
    pub message: String,
}

/// Whether others' addresses lie in the pool (IPAM rule 8).
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Judgement {
    /// Nobody has looked yet, or the look failed: nothing is said about the pool.
    Unknown,
    /// None; with what could not be looked at.
    Clear(Option<String>),
    /// Some: the sentence that names them.
    Foreign(String),
}

/// Counts of a pool.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Sums {
    /// Blocks claimed.
    pub blocks: u128,
    /// Blocks in all.
    pub blocks_total: u128,
    /// Addresses in use.
    pub used: u128,
    /// Addresses in all.
    pub total: u128,
}

impl Sums {
    /// Counts the blocks of `pool` among all.
    pub fn of(pool: &Pool, blocks: &[BlockSeen]) -> Sums {
        let of_pool = || blocks.iter().filter(|block| *block.pool_uid == *pool.uid);
        let inside = of_pool().filter(|block| overlap(block.cidr, pool.cidr));
        let host_bits = pool.cidr.max_prefix_len() - pool.cidr.prefix_len();
        Sums {
            blocks: of_pool().count() as u128,
            blocks_total: FreeIndex::new(pool.cidr, pool.block_size).total(),
            used: inside.filter_map(|block| block.used).fold(0, u128::saturating_add),
            total: 1u128.checked_shl(host_bits.into()).unwrap_or(u128::MAX),
        }
    }

    /// Addresses not in use.
    pub fn free(&self) -> u128 {
        self.total.saturating_sub(self.used)
    }

    /// Blocks that nobody has claimed.
    pub fn blocks_free(&self) -> u128 {
        self.blocks_total.saturating_sub(self.blocks)
    }

    /// No block is left.
    pub fn is_exhausted(&self) -> bool {
        self.blocks_free() == 0
    }
}

/// Why a pool is not used whatever lies in it; `None` when that is what remains to be asked.
pub fn unfit(pool: &Pool, pools: &[Pool]) -> Option<Verdict> {
    let verdict = |reason, message| Some(Verdict { holds: false, reason, message });
    if pool.terminating {
        let message = "the pool is being deleted: no new blocks or addresses";
        return verdict("Terminating", message.to_owned());
    }
    if let Some(first) = overlapped_by(pool, pools) {
        let (name, cidr) = (&first.name, first.cidr);
        let ends = if first.terminating {
            ", which is being deleted, and is not used before that is gone"
        } else {
            " and is not used: delete one"
        };
        let message = format!("{} overlaps {cidr} of the older IPPool {name}{ends}", pool.cidr);
        return verdict("Overlap", message);
    }
    if pool.disabled {
        let message = "spec.disabled is true: no new blocks or addresses";
        return verdict("Disabled", message.to_owned());
    }
    None
}

/// The condition Ready; `None` while nothing can be said.
pub fn ready(pool: &Pool, pools: &[Pool], judgement: &Judgement) -> Option<Verdict> {
    let fit = || match judgement {
        Judgement::Unknown => None,
        Judgement::Foreign(message) => {
            Some(Verdict { holds: false, reason: REASON_FOREIGN, message: message.clone() })
        }
        Judgement::Clear(missed) => {
            let missed = missed.as_ref().map(|missed| format!("; {missed}")).unwrap_or_default();
            let message = format!("nodes may claim blocks{missed}");
            Some(Verdict { holds: true, reason: "Ready", message })
        }
    };
    unfit(pool, pools).or_else(fit)
}

/// The condition NearlyFull: less than a tenth of the blocks is left.
pub fn nearly_full(cidr: IpNet, sums: &Sums) -> Verdict {
    let (free, total) = (sums.blocks_free(), sums.blocks_total);
    let left = format!("{free} of {total} blocks are free");
    let used = format!("{} of {} addresses are in use", sums.used, sums.total);
    let remedy = "create another pool, or delete what is not needed";
    if free == 0 {
        let message = format!("no block of {cidr} is left, {used}: {remedy}");
        Verdict { holds: true, reason: "Exhausted", message }
    } else if free.saturating_mul(10) < total {
        let message = format!("{left}, {used}: {remedy}");
        Verdict { holds: true, reason: "FewBlocksLeft", message }
    } else {
        // Without the counts, which stand beside it: a condition changes when something happens.
        let message = "a tenth of the blocks or more is free".to_owned();
        Verdict { holds: false, reason: "BlocksLeft", message }
    }
}

/// Blocks that lie in another one, each with that one: an API that was edited or went backwards. At
/// most [`CONFLICTS_MAX`].
pub fn conflicts(blocks: &[BlockSeen]) -> Vec<[&BlockSeen; 2]> {
    let mut sorted: Vec<&BlockSeen> = blocks.iter().collect();
    sorted.sort_by_key(|block| block.cidr);
    let mut found = Vec::new();
    // A network comes before what lies in it, so those that are still open hold what comes.
    let mut open: Vec<&BlockSeen> = Vec::new();
    for block in sorted {
        while open.last().is_some_and(|last| !last.cidr.contains(&block.cidr)) {
            open.pop();
        }
        if let Some(outer) = open.last() {
            found.push([*outer, block]);
        }
        if found.len() >= CONFLICTS_MAX {
            break;
        }
        open.push(block);
    }
    found
}

/// Conflicts of blocks that are told of at once.
pub const CONFLICTS_MAX: usize = 20;

#[cfg(test)]
mod tests {
    use super::*;
    use crate::fence::Owner;

    fn net(text: &str) -> IpNet {
        text.parse().expect("a network")
    }

    fn pool(name: &str, cidr: &str, created: i64) -> Pool {
        let block_size = if cidr.contains(':') { 122 } else { 28 };
        let spec = serde_json::json!({
            "apiVersion": "cairn.network/v1alpha1",
            "kind": "IPPool",
            "metadata": {"name": name, "uid": format!("uid-{name}")},
            "spec": {"cidr": cidr, "blockSize": block_size},
        });
        let object = serde_json::from_value(spec).expect("a pool");
        let parsed = Pool::parse(&object, &Default::default()).expect("a pool");
        Pool { created, ..parsed }
    }

    fn block(cidr: &str, used: Option<u128>) -> BlockSeen {
        BlockSeen {
            cidr: net(cidr),
            uid: "b".into(),
            version: "1".into(),
            pool_uid: "uid-a".into(),
            owner: Owner { name: "n".into(), uid: "u".into() }.into(),
            used,
            device: false,
            terminating: false,
            finalizers: Default::default(),
            claimed_by: Default::default(),
        }
    }

    #[test]
    fn the_reason_that_speaks_first_is_told() {
        let own = pool("a", "10.0.0.0/24", 5);
        let older = pool("b", "10.0.0.0/16", 1);
        let younger = pool("b", "10.0.0.0/16", 9);
        let ending = Pool { terminating: true, ..older.clone() };
        let clear = Judgement::Clear(None);
        let foreign = Judgement::Foreign("others".to_owned());
        let disabled = Pool { disabled: true, ..own.clone() };
        let terminating = Pool { terminating: true, ..disabled.clone() };
        let cases = [
            (&own, &younger, &clear, Some((true, "Ready"))),
            (&own, &younger, &Judgement::Unknown, None),
            (&own, &younger, &foreign, Some((false, "ForeignAddresses"))),
            (&own, &older, &clear, Some((false, "Overlap"))),
            (&own, &ending, &clear, Some((false, "Overlap"))),
            (&disabled, &older, &clear, Some((false, "Overlap"))),
            (&disabled, &younger, &foreign, Some((false, "Disabled"))),
            (&terminating, &older, &Judgement::Unknown, Some((false, "Terminating"))),
        ];
        for (own, other, judgement, expected) in cases {
            let pools = [own.clone(), other.clone()];
            let verdict = ready(own, &pools, judgement);
            let told = verdict.map(|verdict| (verdict.holds, verdict.reason));
            assert_eq!(told, expected, "{own:?} {other:?} {judgement:?}");
        }
        let missed = Judgement::Clear(Some("no Services".to_owned()));
        let verdict = ready(&own, &[], &missed).expect("judged");
        assert_eq!(verdict.message, "nodes may claim blocks; no Services");
    }

    #[test]
    fn a_pool_is_nearly_full_when_less_than_a_tenth_of_its_blocks_is_left() {
        let own = pool("a", "10.0.0.0/24", 5);
        let cases = [
            (0, false, "BlocksLeft"),
            (14, false, "BlocksLeft"),
            (15, true, "FewBlocksLeft"),
            (16, true, "Exhausted"),
        ];
        for (claimed, holds, reason) in cases {
            let blocks: Vec<BlockSeen> =
                (0..claimed).map(|n| block(&format!("10.0.0.{}/28", n * 16), Some(3))).collect();
            let sums = Sums::of(&own, &blocks);
            let verdict = nearly_full(own.cidr, &sums);
            assert_eq!((verdict.holds, verdict.reason), (holds, reason), "{claimed}");
            assert_eq!((sums.used, sums.free()), (3 * claimed, 256 - 3 * claimed));
            assert_eq!(sums.is_exhausted(), claimed == 16);
        }
        let huge = pool("a", "fd00::/48", 5);
        let sums = Sums::of(&huge, &[]);
        assert_eq!((sums.blocks_total, sums.total), (1 << 74, 1 << 80));
    }

    #[test]
    fn blocks_inside_of_others_are_found() {
        let nets = ["10.0.1.0/26", "10.0.0.0/24", "10.0.0.64/28", "10.0.0.64/26", "fd00::/122"];
        let blocks: Vec<BlockSeen> = nets.map(|cidr| block(cidr, None)).into();
        let found: Vec<[String; 2]> = conflicts(&blocks)
            .into_iter()
            .map(|pair| pair.map(|block| block.cidr.to_string()))
            .collect();
        assert_eq!(found, [["10.0.0.0/24", "10.0.0.64/26"], ["10.0.0.64/26", "10.0.0.64/28"]]);
        let same = vec![block("10.0.0.0/28", None); 100];
        assert_eq!(conflicts(&same).len(), CONFLICTS_MAX);
    }

    #[test]
    fn only_own_blocks_count() {
        let own = pool("a", "10.0.0.0/24", 5);
        let strange = BlockSeen { pool_uid: "uid-z".into(), ..block("10.0.0.0/28", Some(9)) };
        let outside = block("10.9.0.0/28", Some(9));
        let sums = Sums::of(&own, &[strange, outside, block("10.0.0.16/28", None)]);
        assert_eq!((sums.blocks, sums.used), (2, 0));
    }
}
