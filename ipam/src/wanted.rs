//! Which blocks a node wants: for what its pods lack, ahead of need, and for its podCIDRs.

use std::collections::BTreeSet;
use std::net::IpAddr;

use cairn_api::BlockAllocation;
use ipnet::IpNet;

use crate::addresses::Family;
use crate::candidates::block_of;
use crate::claims::{
    Claim, Decision, Knowledge, OwnBlock, Scheduling, host_bits, is_open, pool_of, unusable,
};
use crate::demand::Demand;
use crate::pool::Pool;
use crate::rules::Rule;

/// Adds the claims to `decision`, whose verdicts are complete: what pods wait for comes first.
pub(crate) fn claims(known: &Knowledge<'_>, decision: &mut Decision) {
    for demand in known.short {
        match demand {
            Demand::Pools(family, names) => meet(demand, *family, names, known, decision),
            Demand::Address(address) => meet_address(demand, *address, known, decision),
        }
    }
    pod_cidrs(known, decision);
    for family in [Family::V4, Family::V6] {
        ahead(family, known, decision);
    }
}

/// Whether no pods come to the node and none are left in its blocks.
pub(crate) fn is_drained(known: &Knowledge<'_>) -> bool {
    known.scheduling == Scheduling::Cordoned
        && known.short.is_empty()
        && known.own.iter().all(|block| block.usage.as_ref().is_none_or(|usage| usage.pods() == 0))
}

/// Claims a block of the first of the named pools that gives one.
fn meet(
    demand: &Demand,
    family: Family,
    names: &[String],
    known: &Knowledge<'_>,
    decision: &mut Decision,
) {
    let mut reasons = Vec::new();
    let mut pools: Vec<Pool> = Vec::new();
    for name in names {
        let Some(pool) = known.pools.iter().find(|pool| pool.name == *name) else {
            reasons.push(format!("IPPool {name} does not exist"));
            continue;
        };
        // Named by its own pods only: whoever names a pool of the other family gets none.
        if Family::of_net(pool.cidr) != family {
            reasons.push(format!("IPPool {name} has no {family} addresses"));
            continue;
        }
        if is_on_its_way(pool, known, decision) {
            return;
        }
        match unclaimable(pool, known) {
            None if known.full.contains(name) => reasons.push(full(name)),
            None => pools.push(pool.clone()),
            Some(Unclaimable::ForNow) => return,
            Some(Unclaimable::Because(reason)) => reasons.push(reason),
        }
    }
    if pools.is_empty() {
        let reason = match reasons.as_slice() {
            [] => "it names no IPPool".to_owned(),
            reasons => reasons.join("; "),
        };
        decision.refusals.insert(demand.clone(), reason);
    } else if !is_pending(family, known) {
        want(Claim::OneOf(pools), decision);
    }
}

/// Claims the block that holds the address, whole: no block of another size exists (IPAM rule 1).
fn meet_address(demand: &Demand, address: IpAddr, known: &Knowledge<'_>, decision: &mut Decision) {
    if let Some(own) = known.own.iter().find(|block| block.cidr.contains(&address)) {
        let verdict = decision.verdicts.iter().find(|verdict| verdict.cidr == own.cidr);
        if let Some(reason) = verdict.and_then(|verdict| verdict.closed.clone())
            && own.state != crate::claims::BlockState::Unverified
        {
            let reason = format!("block {} hands out nothing: {reason}", own.cidr);
            decision.refusals.insert(demand.clone(), reason);
        }
        return;
    }
    let holds = |pool: &&Pool| pool.cidr.contains(&address);
    let mut pools: Vec<&Pool> = known.pools.iter().filter(holds).collect();
    pools.sort_by_key(|pool| (unusable(pool, known.pools).is_some(), &pool.name));
    let refusal = match pools.first() {
        None => Some(format!("{address} lies in no IPPool")),
        Some(pool) => match (unclaimable(pool, known), block_of(pool, address)) {
            (Some(Unclaimable::ForNow), _) => None,
            (Some(Unclaimable::Because(reason)), _) => Some(reason),
            (None, None) => Some(format!("IPPool {} has no block for {address}", pool.name)),
            (None, Some(block)) if is_reserved(block, known) => {
                Some(format!("all of block {block} is reserved"))
            }
            (None, Some(block)) => match known.refused.get(&block) {
                Some(reason) => Some(reason.clone()),
                None => {
                    if !is_pending(demand.family(), known) {
                        want(Claim::Block(Box::new((*pool).clone()), block), decision);
                    }
                    None
                }
            },
        },
    };
    decision.refusals.extend(refusal.map(|reason| (demand.clone(), reason)));
}

/// Claims the blocks that the controller manager gave this node.
fn pod_cidrs(known: &Knowledge<'_>, decision: &mut Decision) {
    let of_nodes = |pool: &&Pool| {
        pool.allocation == BlockAllocation::NodePodCIDR && unusable(pool, known.pools).is_none()
    };
    let pools: Vec<&Pool> = known.pools.iter().filter(of_nodes).collect();
    let mut served = BTreeSet::new();
    for pool in &pools {
        let family = Family::of_net(pool.cidr);
        for cidr in known.pod_cidrs.iter().filter(|cidr| pool.cidr.contains(*cidr)) {
            served.insert(family);
            if cidr.prefix_len() != pool.block_size {
                decision.problems.push(format!(
                    "podCIDR {cidr} of this node is not used: the blocks of IPPool {} are /{}, so \
                     create the pool with blockSize {}",
                    pool.name,
                    pool.block_size,
                    cidr.prefix_len()
                ));
                continue;
            }
            let pending = known.pending.iter().any(|(pending, _)| pending == cidr);
            if pending || known.own.iter().any(|block| block.cidr == *cidr) {
                continue;
            }
            if let Some(reason) = known.refused.get(cidr) {
                decision
                    .problems
                    .push(format!("podCIDR {cidr} of this node is not used: {reason}"));
                continue;
            }
            if is_held_back(pool, known).is_none() {
                want(Claim::Block(Box::new((*pool).clone()), *cidr), decision);
            }
        }
    }
    for pool in pools {
        let family = Family::of_net(pool.cidr);
        if served.insert(family) {
            let has: Vec<String> = known.pod_cidrs.iter().map(ToString::to_string).collect();
            decision.problems.push(format!(
                "IPPool {} ({}) takes its blocks from Node.spec.podCIDRs, and none of this node's \
                 ({}) lies in it: give the controller manager this --cluster-cidr, or create a pool \
                 with allocation OnDemand",
                pool.name,
                pool.cidr,
                if has.is_empty() { "none".to_owned() } else { has.join(", ") }
            ));
        }
    }
}

/// Claims before a pod has to wait: from pools for every namespace, and from each other pool of which
/// the node has a block already.
fn ahead(family: Family, known: &Knowledge<'_>, decision: &mut Decision) {
    let of_family = |pool: &&Pool| Family::of_net(pool.cidr) == family;
    let general: Vec<&Pool> = known
        .pools
        .iter()
        .filter(of_family)
        .filter(|pool| pool.namespaces.is_none() && pool.selected)
        .collect();
    if is_pending(family, known) || is_drained(known) {
        return;
    }
    let cold = cold(&general, known, decision);
    if cold < threshold(&general) && !general.is_empty() {
        let on_demand = general.iter().filter(|pool| pool.allocation == BlockAllocation::OnDemand);
        let mut pools: Vec<Pool> = Vec::new();
        let mut waits = false;
        for pool in on_demand {
            match unclaimable(pool, known) {
                // Said by name where the claim failed, and tried again when that is forgotten.
                None if known.full.contains(&pool.name) => waits = true,
                None => pools.push((*pool).clone()),
                Some(Unclaimable::ForNow) => waits = true,
                Some(Unclaimable::Because(_)) => {}
            }
        }
        pools.sort_by(|a, b| a.name.cmp(&b.name));
        if !pools.is_empty() {
            want(Claim::OneOf(pools), decision);
        } else if cold == 0 && !waits {
            decision.problems.push(format!(
                "{cold} {family} addresses left, and no IPPool gives this node another block \
                 (disabled, overlapping, being deleted, not selecting it, held back, or \
                 maxBlocksPerNode)"
            ));
        }
    }
    let chosen = known.pools.iter().filter(of_family).filter(|pool| pool.namespaces.is_some());
    for pool in chosen {
        let owns = known.own.iter().any(|block| block.pool_uid == pool.uid);
        if owns
            && self::cold(&[pool], known, decision) < threshold(&[pool])
            && unclaimable(pool, known).is_none()
            && !known.full.contains(&pool.name)
        {
            want(Claim::OneOf(vec![pool.clone()]), decision);
        }
    }
}

fn want(claim: Claim, decision: &mut Decision) {
    if !decision.claims.contains(&claim) {
        decision.claims.push(claim);
    }
}

/// Free addresses that are not cooling in the open blocks of `pools`.
fn cold(pools: &[&Pool], known: &Knowledge<'_>, decision: &Decision) -> u128 {
    let of_pools = |block: &&OwnBlock| pools.iter().any(|pool| pool.uid == block.pool_uid);
    let open = known.own.iter().filter(of_pools).filter(|block| is_open(block.cidr, decision));
    open.fold(0u128, |sum, block| sum.saturating_add(block.cold()))
}

/// A quarter of a block is what a burst of pod starts takes while a claim is on its way.
fn threshold(pools: &[&Pool]) -> u128 {
    let bits = pools.iter().map(|pool| host_bits(pool.cidr, pool.block_size)).min();
    bits.map_or(1, |bits| (1u128 << bits.min(64)) / CLAIM_AHEAD_PART).max(1)
}

/// A block of the pool that the address book has not heard of yet, or a claim of one, ends the
/// shortage without another.
fn is_on_its_way(pool: &Pool, known: &Knowledge<'_>, decision: &Decision) -> bool {
    let unheard = known.own.iter().any(|block| {
        block.pool_uid == pool.uid
            && is_open(block.cidr, decision)
            && block.usage.as_ref().is_none_or(|usage| !usage.hand_out)
    });
    unheard || known.pending.iter().any(|(_, uid)| *uid == pool.uid)
}

/// One claim of a family at a time: what it brings may be enough.
fn is_pending(family: Family, known: &Knowledge<'_>) -> bool {
    known.pending.iter().any(|(cidr, _)| Family::of_net(*cidr) == family)
}

/// Why a node claims nothing from a pool.
enum Unclaimable {
    /// That will change by itself in a moment.
    ForNow,
    Because(String),
}

fn unclaimable(pool: &Pool, known: &Knowledge<'_>) -> Option<Unclaimable> {
    if let Some(reason) = unusable(pool, known.pools) {
        return Some(Unclaimable::Because(reason));
    }
    if let Some(held_back) = is_held_back(pool, known) {
        return Some(held_back);
    }
    if pool.allocation == BlockAllocation::NodePodCIDR {
        let reason = format!(
            "IPPool {} takes its blocks from Node.spec.podCIDRs, and this node has no more",
            pool.name
        );
        return Some(Unclaimable::Because(reason));
    }
    let own = known
        .own
        .iter()
        .filter(|block| block.pool_uid == pool.uid && pool_of(block, known).is_some());
    let is_own = |cidr: &IpNet| known.own.iter().any(|block| block.cidr == *cidr);
    let pending = known.pending.iter().filter(|(cidr, uid)| *uid == pool.uid && !is_own(cidr));
    let owned = own.count().saturating_add(pending.count());
    let max = pool.max_blocks_per_node.filter(|max| owned >= *max as usize)?;
    Some(Unclaimable::Because(format!(
        "this node has {owned} blocks of IPPool {}, and its maxBlocksPerNode is {max}",
        pool.name
    )))
}

/// Whether only the leader's word is missing, or speaks against the pool (IPAM rule 8).
fn is_held_back(pool: &Pool, known: &Knowledge<'_>) -> Option<Unclaimable> {
    if !known.rules.hold(Rule::ForeignAddresses) {
        return None;
    }
    match &pool.held_back {
        Some(reason) => {
            Some(Unclaimable::Because(format!("IPPool {} is not ready: {reason}", pool.name)))
        }
        None if !pool.checked => Some(Unclaimable::ForNow),
        None => None,
    }
}

fn is_reserved(block: IpNet, known: &Knowledge<'_>) -> bool {
    known.reserved.iter().any(|reserved| reserved.contains(&block))
}

fn full(pool: &str) -> String {
    format!("IPPool {pool} has no free block: every one is claimed, announced or reserved")
}

/// A block is claimed when less than this part of one is left.
const CLAIM_AHEAD_PART: u128 = 4;
