//! What a node claims, which of its blocks hand out, and how claims of many nodes meet.

use std::collections::BTreeSet;
use std::time::Instant;

use cairn_ipam::claims::{candidate, decide, free_index};
use cairn_ipam::{
    BlockState, BlockUsage, Decision, Family, FreeIndex, Knowledge, OwnBlock, Pool, Standing,
};
use ipnet::IpNet;

fn net(text: &str) -> IpNet {
    text.parse().expect("a network")
}

fn pool(name: &str, cidr: &str, block_size: u8) -> Pool {
    Pool {
        name: name.into(),
        uid: format!("uid-{name}"),
        cidr: net(cidr),
        block_size,
        disabled: false,
        terminating: false,
        created: 100,
        max_blocks_per_node: None,
        selected: true,
        held_back: None,
    }
}

fn own(pool: &Pool, cidr: &str, used: u64) -> OwnBlock {
    let cidr = net(cidr);
    let total = 1u128 << (cidr.max_prefix_len() - cidr.prefix_len());
    OwnBlock {
        cidr,
        pool: pool.name.clone(),
        pool_uid: pool.uid.clone(),
        state: BlockState::Confirmed,
        usage: Some(BlockUsage {
            cidr,
            pool: pool.name.clone(),
            hand_out: true,
            revision: 0,
            total,
            used,
            free: total - u128::from(used),
            cooling: 0,
            foreign: vec![],
            allocations: vec![],
        }),
        idle_secs: 0,
    }
}

fn closed(mut block: OwnBlock) -> OwnBlock {
    if let Some(usage) = &mut block.usage {
        usage.hand_out = false;
    }
    block
}

fn known<'a>(pools: &'a [Pool], own: &'a [OwnBlock]) -> Knowledge<'a> {
    Knowledge {
        node: "n1",
        standing: Standing::Member,
        pools,
        own,
        pending: &[],
        short: &[],
        idle_release_secs: None,
    }
}

fn claimed(decision: &Decision) -> Vec<Vec<&str>> {
    decision.claims.iter().map(|pools| pools.iter().map(|p| p.name.as_str()).collect()).collect()
}

#[test]
fn a_block_is_claimed_ahead_of_need() {
    let pools = [pool("a", "10.244.0.0/16", 26)];
    for (used, wants) in [(0, false), (48, false), (49, true), (64, true)] {
        let blocks = [own(&pools[0], "10.244.0.0/26", used)];
        let decision = decide(&known(&pools, &blocks));
        assert_eq!(!decision.claims.is_empty(), wants, "{used} used");
    }
    assert_eq!(claimed(&decide(&known(&pools, &[]))), [["a"]], "a node without a block");
    // Cooling addresses can be given but are no reserve.
    let mut block = own(&pools[0], "10.244.0.0/26", 40);
    block.usage.as_mut().expect("usage").cooling = 20;
    assert_eq!(decide(&known(&pools, &[block])).claims.len(), 1);
    // A refused request asks for a block whatever the figures say.
    let blocks = [own(&pools[0], "10.244.0.0/26", 0)];
    let short = Knowledge { short: &[Family::V4], ..known(&pools, &blocks) };
    assert_eq!(decide(&short).claims.len(), 1);
    let pending = [(net("10.244.1.0/26"), "uid-a".to_owned())];
    let waiting = Knowledge { pending: &pending, ..short };
    assert!(decide(&waiting).claims.is_empty(), "one claim at a time");
}

#[test]
fn both_families_claim_for_themselves() {
    let pools = [pool("four", "10.244.0.0/16", 26), pool("six", "fd00:10:244::/48", 122)];
    let blocks = [own(&pools[0], "10.244.0.0/26", 0)];
    assert_eq!(claimed(&decide(&known(&pools, &blocks))), [["six"]]);
    assert_eq!(claimed(&decide(&known(&pools, &[]))), [["four"], ["six"]]);
}

#[test]
fn what_keeps_a_pool_from_giving_blocks() {
    type Change = fn(&mut Pool);
    let cases: [(&str, Change); 6] = [
        ("disabled", |p| p.disabled = true),
        ("terminating", |p| p.terminating = true),
        ("not selected", |p| p.selected = false),
        ("held back", |p| p.held_back = Some("10.244.0.9 is a Node's".into())),
        ("maxBlocksPerNode", |p| p.max_blocks_per_node = Some(0)),
        ("overlapped", |p| p.created = 200),
    ];
    for (what, change) in cases {
        let mut pools = vec![pool("a", "10.244.0.0/16", 26)];
        change(&mut pools[0]);
        if what == "overlapped" {
            pools.push(Pool { selected: false, ..pool("older", "10.244.128.0/17", 26) });
        }
        let decision = decide(&known(&pools, &[]));
        assert!(decision.claims.is_empty(), "{what}");
    }
    let pools = [Pool { max_blocks_per_node: Some(2), ..pool("a", "10.244.0.0/16", 26) }];
    let one = [own(&pools[0], "10.244.0.0/26", 64)];
    assert_eq!(decide(&known(&pools, &one)).claims.len(), 1);
    let two = [own(&pools[0], "10.244.0.0/26", 64), own(&pools[0], "10.244.1.0/26", 64)];
    let decision = decide(&known(&pools, &two));
    assert!(decision.claims.is_empty());
    assert!(decision.problems[0].contains("maxBlocksPerNode"), "{:?}", decision.problems);
}

#[test]
fn of_overlapping_pools_the_first_by_age_then_uid_is_used() {
    let a = pool("a", "10.244.0.0/16", 26);
    let b = pool("b", "10.244.0.0/20", 28);
    for (created_a, created_b, winner) in [(1, 2, "a"), (2, 1, "b"), (5, 5, "a")] {
        let pools =
            [Pool { created: created_a, ..a.clone() }, Pool { created: created_b, ..b.clone() }];
        let blocks = [own(&a, "10.244.200.0/26", 1), own(&b, "10.244.0.0/28", 1)];
        let decision = decide(&known(&pools, &blocks));
        let open: Vec<bool> = decision.verdicts.iter().map(|v| v.closed.is_none()).collect();
        assert_eq!(open, [winner == "a", winner == "b"]);
        let loser = if winner == "a" { "IPPool b" } else { "IPPool a" };
        assert!(decision.problems.iter().any(|p| p.starts_with(loser)), "{:?}", decision.problems);
    }
}

#[test]
fn what_closes_a_block_and_when_it_goes() {
    type Change = fn(&mut Pool, &mut OwnBlock);
    let cases: [(&str, Change, bool); 10] = [
        ("not verified", |_, b| b.state = BlockState::Unverified, false),
        ("pool disabled", |p, _| p.disabled = true, false),
        ("pool terminating", |p, _| p.terminating = true, true),
        ("pool replaced", |p, _| p.uid = "other".into(), true),
        ("pool moved on", |p, _| p.selected = false, true),
        ("not its block size", |p, _| p.block_size = 27, false),
        ("deleted", |_, b| b.state = BlockState::Terminating, true),
        ("conflict", |_, b| b.state = BlockState::Conflict, true),
        ("lost", |_, b| b.state = BlockState::Lost, false),
        ("being released", |_, b| b.state = BlockState::Releasing, true),
    ];
    for (what, change, goes) in cases {
        for used in [0, 1] {
            let mut pools = [pool("a", "10.244.0.0/16", 26)];
            let mut block = own(&pools[0], "10.244.0.0/26", used);
            change(&mut pools[0], &mut block);
            let still_open = decide(&known(&pools, &[block.clone()]));
            assert!(still_open.verdicts[0].closed.is_some(), "{what}");
            assert!(still_open.releases.is_empty(), "{what}: the book has not closed it yet");
            let decision = decide(&known(&pools, &[closed(block)]));
            assert_eq!(!decision.releases.is_empty(), goes && used == 0, "{what}, {used} used");
        }
    }
}

#[test]
fn a_node_that_may_not_act_closes_everything_and_writes_nothing() {
    let pools = [pool("a", "10.244.0.0/16", 26)];
    let blocks = [
        own(&pools[0], "10.244.0.0/26", 60),
        OwnBlock { state: BlockState::Terminating, ..own(&pools[0], "10.244.1.0/26", 0) },
    ];
    for standing in [Standing::NodeMissing, Standing::OtherMachine, Standing::Fenced] {
        let decision = decide(&Knowledge { standing, ..known(&pools, &blocks) });
        assert!(decision.verdicts.iter().all(|verdict| verdict.closed.is_some()));
        assert!(decision.claims.is_empty() && decision.releases.is_empty());
        assert_eq!(decision.problems.len(), 1, "one sentence, not one a block");
    }
}

#[test]
fn an_idle_block_goes_back_except_the_last() {
    let pools = [pool("a", "10.244.0.0/16", 26)];
    let idle = |cidr, secs| OwnBlock { idle_secs: secs, ..own(&pools[0], cidr, 0) };
    let blocks = [idle("10.244.0.0/26", 900), idle("10.244.1.0/26", 900)];
    let knowledge = Knowledge { idle_release_secs: Some(600), ..known(&pools, &blocks) };
    assert_eq!(decide(&knowledge).releases, [net("10.244.1.0/26")], "one at a time");
    let last = [idle("10.244.0.0/26", 900)];
    let knowledge = Knowledge { own: &last, ..knowledge };
    assert!(decide(&knowledge).releases.is_empty());
    let busy = [idle("10.244.0.0/26", 900), own(&pools[0], "10.244.1.0/26", 20)];
    let knowledge = Knowledge { own: &busy, ..knowledge };
    assert!(decide(&knowledge).releases.is_empty(), "the rest has less than a block free");
}

#[test]
fn claims_of_5_000_nodes_in_a_pool_that_is_90_percent_full_rarely_meet() {
    // All nodes know the same and claim before any hears of another. With k of F free blocks gone
    // a try is refused with probability k/F; over all nodes the mean is (F/k) ln(F/(F-k)) - 1
    // refusals: 0.89 for 5,000 of 6,554. A refused block is not noted here, which costs a few more.
    let nodes = 5_000;
    let pool = pool("a", "10.0.0.0/10", 26);
    let all = FreeIndex::new(pool.cidr, pool.block_size);
    let taken: BTreeSet<IpNet> =
        (0..all.total() * 9 / 10).filter_map(|n| all.nth_free(n * 40_503 % all.total())).collect();
    let index = free_index(&pool, &taken);
    assert_eq!((all.total(), index.free()), (65_536, 6_554));
    let mut owned = taken;
    let (mut refused, mut worst) = (0, 0);
    for node in 0..nodes {
        let name = format!("node-{node}");
        let mut attempt = 0;
        while !owned.insert(candidate(&name, &pool, &index, attempt).expect("a free block")) {
            attempt += 1;
        }
        refused += attempt;
        worst = worst.max(attempt);
    }
    let mean = f64::from(refused) / f64::from(nodes);
    assert!(mean < 1.1, "{mean} refusals a node, {worst} at most");
    assert!(worst < 64, "{worst} refusals of one node");
}

#[test]
fn thirty_two_nodes_find_the_last_sixteen_blocks() {
    let pool = pool("a", "10.244.0.0/24", 28);
    let mut index = FreeIndex::new(pool.cidr, pool.block_size);
    let mut owned = 0;
    for node in 0..32 {
        if let Some(block) = candidate(&format!("node-{node}"), &pool, &index, 0) {
            index.take(block);
            owned += 1;
        }
    }
    assert_eq!(owned, 16);
}

#[test]
fn a_free_block_of_a_nearly_full_million_is_found_without_a_scan() {
    let pool = pool("six", "fd00:10:244::/102", 122);
    let mut index = FreeIndex::new(pool.cidr, pool.block_size);
    assert_eq!(index.total(), 1 << 20);
    let all = index.clone();
    for n in 0..(1 << 20) {
        if n % 100_000 != 77 {
            index.take(all.nth_free(n).expect("a block"));
        }
    }
    assert_eq!(index.free(), 11);
    let start = Instant::now();
    let found: BTreeSet<IpNet> =
        (0..1_000).filter_map(|n| candidate("n1", &pool, &index, n)).collect();
    // A scan of a million takes milliseconds each; the bound leaves room for a slow machine.
    assert!(start.elapsed().as_millis() < 1_000, "{:?} for 1,000", start.elapsed());
    assert_eq!(found.len(), 11, "every free block is somebody's candidate");
}

#[test]
fn a_48_spreads_nodes_over_all_of_it() {
    let pool = pool("six", "fd00:10:244::/48", 122);
    let index = FreeIndex::new(pool.cidr, pool.block_size);
    let blocks: BTreeSet<IpNet> =
        (0..5_000).filter_map(|n| candidate(&format!("node-{n}"), &pool, &index, 0)).collect();
    assert_eq!(blocks.len(), 5_000);
    assert!(blocks.iter().all(|block| pool.cidr.contains(block)));
}
