//! Which blocks of a node may hand out addresses, which go back, and which one to claim next.
//!
//! [`decide`] is one function of what the node knows. It never says that a block is this node's: the
//! API server does, when it accepts the claim and a consistent look afterwards shows no overlap.
//! What is known to be taken only saves refused claims.

use std::collections::BTreeMap;

use cairn_api::{IPPool, PoolUse};
use ipnet::{IpNet, Ipv4Net, Ipv6Net};
use thiserror::Error;

use crate::addresses::{BlockUsage, Family};
use crate::free_index::FreeIndex;

/// A pool, parsed once.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Pool {
    /// The object's name.
    pub name: String,
    /// The object's UID.
    pub uid: String,
    /// The range.
    pub cidr: IpNet,
    /// The prefix length of its blocks.
    pub block_size: u8,
    /// No new blocks and no new addresses.
    pub disabled: bool,
    /// The object is being deleted.
    pub terminating: bool,
    /// When the object was created, in seconds since 1970; what is unknown counts as newest.
    pub created: i64,
    /// The most blocks that one node may own.
    pub max_blocks_per_node: Option<u32>,
    /// Whether this node may claim from it: its nodeSelector selects the node, and it is for pods.
    pub selected: bool,
    /// What only the leader can see speaks against the pool (ForeignAddresses), in its words.
    pub held_back: Option<String>,
}

/// Why an object's pool cannot be used at all.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
pub enum PoolError {
    /// `spec.cidr` is no network.
    #[error("IPPool {name}: spec.cidr \"{cidr}\" is no network such as 10.244.0.0/16")]
    Cidr {
        /// The pool's name.
        name: String,
        /// What stands there.
        cidr: String,
    },
    /// `spec.blockSize` does not fit.
    #[error("IPPool {name}: blocks of /{block_size} do not fit {cidr}")]
    BlockSize {
        /// The pool's name.
        name: String,
        /// The pool's range.
        cidr: IpNet,
        /// The blocks' prefix length.
        block_size: u8,
    },
}

impl Pool {
    /// Parses an object as seen by a node with the labels `labels`.
    pub fn parse(pool: &IPPool, labels: &BTreeMap<String, String>) -> Result<Pool, PoolError> {
        let name = pool.metadata.name.clone().unwrap_or_default();
        let Ok(cidr) = pool.spec.cidr.parse::<IpNet>() else {
            return Err(PoolError::Cidr { name, cidr: pool.spec.cidr.clone() });
        };
        let block_size = pool.spec.effective_block_size();
        if block_size < cidr.prefix_len() || block_size > cidr.max_prefix_len() {
            return Err(PoolError::BlockSize { name, cidr, block_size });
        }
        let selector = pool.spec.node_selector.as_ref();
        let conditions = pool.status.iter().flat_map(|status| &status.conditions);
        Ok(Pool {
            name,
            uid: pool.metadata.uid.clone().unwrap_or_default(),
            cidr: cidr.trunc(),
            block_size,
            disabled: pool.spec.disabled,
            terminating: pool.metadata.deletion_timestamp.is_some(),
            created: pool
                .metadata
                .creation_timestamp
                .as_ref()
                .map_or(i64::MAX, |time| time.0.as_second()),
            max_blocks_per_node: pool.spec.max_blocks_per_node,
            selected: pool.spec.uses.contains(&PoolUse::Pod)
                && selector.is_none_or(|selector| selector.matches(labels)),
            held_back: conditions
                .filter(|condition| condition.reason == REASON_FOREIGN)
                .map(|condition| condition.message.clone())
                .next(),
        })
    }

    /// The pool's age: of pools that overlap the first in this order is used.
    fn order(&self) -> (i64, &str) {
        (self.created, &self.uid)
    }
}

/// The reason of a pool's Ready condition when others' addresses lie in it (IPAM rule 8).
pub const REASON_FOREIGN: &str = "ForeignAddresses";

/// Whether two networks share an address.
pub fn overlap(a: IpNet, b: IpNet) -> bool {
    a.contains(&b) || b.contains(&a)
}

/// The pool that keeps `pool` from being used: one that overlaps it and was created earlier, or in
/// the same second with a smaller UID. Whether that one is used itself does not matter, since it may
/// own blocks.
pub fn overlapped_by<'a>(pool: &Pool, pools: &'a [Pool]) -> Option<&'a Pool> {
    let others = pools.iter().filter(|other| other.uid != pool.uid);
    let earlier = others.filter(|other| other.order() < pool.order());
    earlier.filter(|other| overlap(other.cidr, pool.cidr)).min_by_key(|other| other.order())
}

/// The state of a block of this node.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum BlockState {
    /// Nothing speaks against it.
    Confirmed,
    /// Its object names this node, but no consistent look has shown yet that nothing overlaps it.
    Unverified,
    /// Another block object overlaps it. Neither side hands out.
    Conflict,
    /// Its object is being deleted.
    Terminating,
    /// Its object is gone or belongs to an earlier Node of this name, but pods here use it.
    Lost,
    /// This node has decided to give it back, and may have told the server.
    Releasing,
}

/// A block of this node, confirmed or with pods in it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct OwnBlock {
    /// The block's network.
    pub cidr: IpNet,
    /// The name of its pool.
    pub pool: String,
    /// The UID of its pool.
    pub pool_uid: String,
    /// Its state.
    pub state: BlockState,
    /// What it holds; `None` until the owner of the addresses has heard of it.
    pub usage: Option<BlockUsage>,
    /// How long it has held no address.
    pub idle_secs: u64,
}

impl OwnBlock {
    fn used(&self) -> Option<u64> {
        self.usage.as_ref().map(|usage| usage.used)
    }

    /// Free addresses that are not cooling; all of a block that nobody has looked at.
    fn cold(&self) -> u128 {
        match &self.usage {
            Some(usage) => usage.free.saturating_sub(usage.cooling.into()),
            None => size_of(self.cidr),
        }
    }
}

/// Why nothing may be handed out or claimed on this node at all.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Standing {
    /// The node is in order.
    Member,
    /// The Node object does not exist, or names no machine yet.
    NodeMissing,
    /// Another machine is registered under this node's name.
    OtherMachine,
    /// The node's own Lease was not written for too long.
    Fenced,
}

impl Standing {
    fn problem(&self) -> Option<&'static str> {
        match self {
            Standing::Member => None,
            Standing::NodeMissing => Some(
                "the Node object of this node does not exist or has no bootID yet: no new addresses; \
                 is kubelet registered under this name?",
            ),
            Standing::OtherMachine => Some(
                "another machine is registered under this node's name (its bootID is not ours): \
                 no new addresses; turn one of the two off or rename it",
            ),
            Standing::Fenced => Some(
                "the API server did not take this node's Lease for longer than the fence: no new \
                 addresses until it does",
            ),
        }
    }
}

/// What a node knows when it decides about its blocks.
#[derive(Clone, Debug)]
pub struct Knowledge<'a> {
    /// The node's name.
    pub node: &'a str,
    /// Whether the node may act.
    pub standing: Standing,
    /// Every pool.
    pub pools: &'a [Pool],
    /// This node's blocks.
    pub own: &'a [OwnBlock],
    /// Claims sent whose outcome is not known or not confirmed yet, with the pool's UID.
    pub pending: &'a [(IpNet, String)],
    /// Families for which an address was asked and none found since the last claim.
    pub short: &'a [Family],
    /// The seconds after which a block without addresses goes back; `None` for never.
    pub idle_release_secs: Option<u64>,
}

/// Whether a block may hand out addresses.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Verdict {
    /// The block.
    pub cidr: IpNet,
    /// Why it may not; `None` when it may.
    pub closed: Option<String>,
}

/// What to do about the node's blocks.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Decision {
    /// One verdict a block.
    pub verdicts: Vec<Verdict>,
    /// Pools to claim one block from, at most one a family; the first of a list that has a free
    /// block.
    pub claims: Vec<Vec<Pool>>,
    /// Blocks whose object may go: closed, and without a pod.
    pub releases: Vec<IpNet>,
    /// What a person should know, one sentence each.
    pub problems: Vec<String>,
}

/// The families of which a pod on this node gets an address each: those of the pools that serve it.
pub fn families(pools: &[Pool]) -> Vec<Family> {
    let serves = |family| {
        pools.iter().any(|pool| {
            Family::of_net(pool.cidr) == family
                && pool.selected
                && !pool.terminating
                && !pool.disabled
                && overlapped_by(pool, pools).is_none()
        })
    };
    [Family::V4, Family::V6].into_iter().filter(|family| serves(*family)).collect()
}

/// Decides what to claim, which blocks hand out, and which go back.
pub fn decide(known: &Knowledge<'_>) -> Decision {
    let mut decision = Decision::default();
    decision.problems.extend(known.standing.problem().map(str::to_owned));
    for pool in known.pools {
        if let Some(first) = overlapped_by(pool, known.pools) {
            decision.problems.push(format!(
                "IPPool {} ({}) overlaps the older IPPool {} ({}) and is not used",
                pool.name, pool.cidr, first.name, first.cidr
            ));
        }
    }
    for block in known.own {
        let closed = closed(block, known);
        if let (Some(reason), true) = (&closed, known.standing == Standing::Member) {
            decision.problems.push(format!("block {} hands out nothing: {reason}", block.cidr));
        }
        decision.verdicts.push(Verdict { cidr: block.cidr, closed });
    }
    if known.standing != Standing::Member {
        return decision;
    }
    for family in [Family::V4, Family::V6] {
        claim(family, known, &mut decision);
        release(family, known, &mut decision);
    }
    decision
}

fn closed(block: &OwnBlock, known: &Knowledge<'_>) -> Option<String> {
    if let Some(problem) = known.standing.problem() {
        return Some(problem.to_owned());
    }
    match block.state {
        BlockState::Confirmed => {}
        BlockState::Unverified => {
            return Some("the API server has not confirmed yet that it is ours alone".to_owned());
        }
        BlockState::Conflict => return Some("another IPBlock overlaps it".to_owned()),
        BlockState::Terminating => {
            return Some("it is being deleted; it goes when its last pod has gone".to_owned());
        }
        BlockState::Lost => {
            return Some("its IPBlock is gone or of an earlier Node; pods still use it".to_owned());
        }
        BlockState::Releasing => return Some("it is being given back".to_owned()),
    }
    let Some(pool) = known.pools.iter().find(|pool| pool.uid == block.pool_uid) else {
        return Some(format!("its IPPool {} does not exist any more", block.pool));
    };
    if pool.terminating {
        return Some(format!("its IPPool {} is being deleted", pool.name));
    }
    if pool.disabled {
        return Some(format!("its IPPool {} is disabled", pool.name));
    }
    if !pool.cidr.contains(&block.cidr) || block.cidr.prefix_len() != pool.block_size {
        return Some(format!(
            "it is no /{} of its IPPool {} ({})",
            pool.block_size, pool.name, pool.cidr
        ));
    }
    if let Some(first) = overlapped_by(pool, known.pools) {
        return Some(format!("its IPPool {} overlaps the older {}", pool.name, first.name));
    }
    if !pool.selected {
        return Some(format!("its IPPool {} does not select this node any more", pool.name));
    }
    None
}

/// A pool that `known.node` may claim from, now.
fn claimable(pool: &Pool, known: &Knowledge<'_>) -> bool {
    let own = known.own.iter().filter(|block| block.pool_uid == pool.uid).count();
    let is_own = |cidr: &IpNet| known.own.iter().any(|block| block.cidr == *cidr);
    let pending = known.pending.iter().filter(|(cidr, uid)| *uid == pool.uid && !is_own(cidr));
    let pending = pending.count();
    let room = pool.max_blocks_per_node.is_none_or(|max| own + pending < max as usize);
    pool.selected
        && room
        && !pool.disabled
        && !pool.terminating
        && pool.held_back.is_none()
        && overlapped_by(pool, known.pools).is_none()
}

fn is_open(cidr: IpNet, decision: &Decision) -> bool {
    decision.verdicts.iter().any(|verdict| verdict.cidr == cidr && verdict.closed.is_none())
}

fn claim(family: Family, known: &Knowledge<'_>, decision: &mut Decision) {
    if known.pending.iter().any(|(cidr, _)| Family::of_net(*cidr) == family) {
        return;
    }
    let of_family = |pool: &&Pool| Family::of_net(pool.cidr) == family;
    let mut pools: Vec<Pool> = known
        .pools
        .iter()
        .filter(of_family)
        .filter(|pool| claimable(pool, known))
        .cloned()
        .collect();
    pools.sort_by(|a, b| a.name.cmp(&b.name));
    let cold = known
        .own
        .iter()
        .filter(|block| Family::of_net(block.cidr) == family && is_open(block.cidr, decision))
        .fold(0u128, |sum, block| sum.saturating_add(block.cold()));
    // A block that the address book has not heard of yet ends the shortage without another.
    let unheard = known.own.iter().any(|block| {
        Family::of_net(block.cidr) == family
            && is_open(block.cidr, decision)
            && block.usage.as_ref().is_none_or(|usage| !usage.hand_out)
    });
    let short = known.short.contains(&family) && !unheard;
    // A quarter of a block is what a burst of pod starts takes while a claim is on its way.
    let block_size = known
        .pools
        .iter()
        .filter(of_family)
        .filter(|pool| pool.selected)
        .map(|pool| host_bits(pool.cidr, pool.block_size))
        .min();
    let threshold = block_size.map_or(1, |bits| (1u128 << bits.min(64)) / CLAIM_AHEAD_PART).max(1);
    if !short && cold >= threshold {
        return;
    }
    if pools.is_empty() {
        let wants = known.pools.iter().filter(of_family).any(|pool| pool.selected);
        if short || (wants && cold == 0) {
            decision.problems.push(format!(
                "{cold} {family} addresses left, and no IPPool gives this node another block \
                 (disabled, overlapping, being deleted, not selecting it, or maxBlocksPerNode)"
            ));
        }
        return;
    }
    decision.claims.push(pools);
}

fn release(family: Family, known: &Knowledge<'_>, decision: &mut Decision) {
    let own = known.own.iter().filter(|block| Family::of_net(block.cidr) == family);
    let mut open: Vec<&OwnBlock> = Vec::new();
    for block in own {
        if is_open(block.cidr, decision) {
            open.push(block);
            continue;
        }
        let pool = known.pools.iter().find(|pool| pool.uid == block.pool_uid);
        let ends = match block.state {
            BlockState::Terminating | BlockState::Conflict | BlockState::Releasing => true,
            BlockState::Lost => false,
            BlockState::Confirmed | BlockState::Unverified => pool.is_none_or(|pool| {
                pool.terminating || !pool.selected || overlapped_by(pool, known.pools).is_some()
            }),
        };
        // The address book must have closed the block too: until then an address may be on its way.
        let closed = block.usage.as_ref().is_some_and(|usage| !usage.hand_out);
        if ends && closed && block.used() == Some(0) {
            decision.releases.push(block.cidr);
        }
    }
    let Some(idle_secs) = known.idle_release_secs else { return };
    if !decision.claims.is_empty() {
        return;
    }
    // One at a time, and only while what stays is at least a block's worth of free addresses.
    let idle = open.iter().filter(|block| block.used() == Some(0) && block.idle_secs >= idle_secs);
    if let Some(block) = idle.max_by_key(|block| block.cidr) {
        let others = open.iter().filter(|other| other.cidr != block.cidr);
        let left = others.fold(0u128, |sum, other| sum.saturating_add(other.cold()));
        if left >= size_of(block.cidr) {
            decision.releases.push(block.cidr);
        }
    }
}

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

fn host_bits(cidr: IpNet, len: u8) -> u8 {
    cidr.max_prefix_len().saturating_sub(len)
}

fn size_of(cidr: IpNet) -> u128 {
    1u128.checked_shl(host_bits(cidr, cidr.prefix_len()).into()).unwrap_or(u128::MAX)
}

/// A block is claimed when less than this part of one is left.
const CLAIM_AHEAD_PART: u128 = 4;
