//! Which blocks of a node may hand out addresses, which go back, and which one to claim next.
//!
//! [`decide`] is one function of what the node knows. It never says that a block is this node's: the
//! API server does, when it accepts the claim and a consistent look afterwards shows no overlap.
//! What is known to be taken only saves refused claims.

use std::collections::BTreeMap;

use cairn_api::BlockAllocation;
use ipnet::IpNet;

use crate::addresses::{BlockUsage, Family};
use crate::demand::{Demand, PodPool};
use crate::rules::{Rule, Rules};
use crate::wanted;

pub use crate::candidates::{CANDIDATES_MAX, block_of, candidate, free_index};
pub use crate::pool::{CONDITION_READY, Pool, PoolError, REASON_FOREIGN, overlap, overlapped_by};

/// The state of a block of this node.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum BlockState {
    /// Nothing speaks against it.
    Confirmed,
    /// Its object names this node, but no consistent look has shown yet that nothing overlaps it.
    Unverified,
    /// Its object names this node, and this node's Lease has not told yet whether another machine that
    /// had this Node may hand out from it.
    Found,
    /// Another block object overlaps it, or another node announces it. Neither side hands out.
    Conflict,
    /// Another machine had this Node before, and may still hand out from it.
    OtherMachine,
    /// Its object is being deleted.
    Terminating,
    /// Its object is gone, but pods here use it.
    Lost,
    /// Its object belongs to an earlier Node of this name, but pods here use it.
    OfEarlierNode,
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
    /// For how long no address of it has been in use ([`BlockUsage::is_vacant`]).
    pub idle_secs: u64,
}

impl OwnBlock {
    pub(crate) fn used(&self) -> Option<u64> {
        self.usage.as_ref().map(|usage| usage.used)
    }

    /// Whether nothing on this node uses an address of it.
    pub(crate) fn is_vacant(&self) -> bool {
        self.usage.as_ref().is_some_and(BlockUsage::is_vacant)
    }

    /// Free addresses that are not cooling; all of a block that nobody has looked at.
    pub(crate) fn cold(&self) -> u128 {
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
    /// The node's own Lease was not written yet: it has promised nothing.
    Unpromised,
    /// The node's own Lease was not written for too long.
    Fenced,
    /// An operator said that this machine is off.
    MarkedOff,
    /// The API server shows an older state than it did before, and not all was read anew yet.
    OldHistory,
}

impl Standing {
    /// Whether a pod that waits some seconds waits in vain.
    fn lasts(&self) -> bool {
        matches!(self, Standing::OtherMachine | Standing::Fenced | Standing::MarkedOff)
    }

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
            Standing::Unpromised => Some(
                "the API server has not taken this node's Lease yet: no new addresses until it does",
            ),
            Standing::Fenced => Some(
                "the API server did not take this node's Lease for longer than the fence: no new \
                 addresses until it does",
            ),
            Standing::MarkedOff => Some(
                "an operator has marked this machine as off, so its blocks may be given to other \
                 nodes: no new addresses; if that was wrong run `cairn ipam fence --undo NODE` with \
                 this node's name",
            ),
            Standing::OldHistory => Some(
                "the API server shows an older state than before (was etcd restored?): no new \
                 addresses until all is read anew and the blocks in which pods live are asserted",
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
    /// What pods lack since the last claim.
    pub short: &'a [Demand],
    /// Blocks that this node tried to claim by their address and did not get, with the reason.
    pub refused: &'a BTreeMap<IpNet, String>,
    /// Pools (by name) in which no block was found that is not known to be taken.
    pub full: &'a [String],
    /// Networks that are never handed out, none inside another ([`IpNet::aggregate`]).
    pub reserved: &'a [IpNet],
    /// Node.spec.podCIDRs: the node's blocks in pools that take them from there.
    pub pod_cidrs: &'a [IpNet],
    /// Whether new pods come to this node.
    pub scheduling: Scheduling,
    /// The seconds after which a block without addresses goes back; `None` for never.
    pub idle_release_secs: Option<u64>,
    /// Which safety rules hold.
    pub rules: Rules,
}

/// Whether new pods come to a node.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Scheduling {
    /// They do.
    Open,
    /// `spec.unschedulable`: none but those of DaemonSets and what names the node.
    Cordoned,
}

/// Whether a block may hand out addresses.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Verdict {
    /// The block.
    pub cidr: IpNet,
    /// Why it may not; `None` when it may.
    pub closed: Option<String>,
}

/// A block to claim.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Claim {
    /// Any free one of the first of these pools that has one.
    OneOf(Vec<Pool>),
    /// This one and no other.
    Block(Box<Pool>, IpNet),
}

/// What to do about the node's blocks.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Decision {
    /// One verdict a block.
    pub verdicts: Vec<Verdict>,
    /// Blocks to claim, the most wanted first. Each is decided as if it were the only one: after one
    /// was tried this is asked anew.
    pub claims: Vec<Claim>,
    /// Blocks whose object may go: closed, and without a pod.
    pub releases: Vec<IpNet>,
    /// Blocks in which pods live and whose object is gone, to be created again as they were, each
    /// with its pool.
    pub reasserts: Vec<(IpNet, Pool)>,
    /// Blocks in which the node's own devices may have addresses: those that stay. From others they
    /// move, as a block goes only when nothing is left in it.
    pub lodgings: Vec<IpNet>,
    /// Demands of [`Knowledge::short`] that cannot be met now, with the reason.
    pub refusals: BTreeMap<Demand, String>,
    /// What a person should know, one sentence each.
    pub problems: Vec<String>,
}

/// The families of which a pod on this node gets an address each: those of the pools that serve it.
pub fn families(pools: &[Pool]) -> Vec<Family> {
    families_of(pools, |_| true)
}

/// Those of [`families`] of which the node claims a block before a pod asks for one: those of pools that serve
/// every namespace.
pub fn families_ahead(pools: &[Pool]) -> Vec<Family> {
    families_of(pools, |pool| pool.namespaces.is_none())
}

/// Whether there are pools that give addresses, none of them on this node.
pub fn serve_elsewhere(pools: &[Pool]) -> bool {
    let mut open =
        pools.iter().filter(|pool| pool.for_pods && gives_addresses(pool, pools)).peekable();
    open.peek().is_some() && open.all(|pool| !pool.selected)
}

fn families_of(pools: &[Pool], counts: impl Fn(&Pool) -> bool) -> Vec<Family> {
    let serves = |family| {
        pools.iter().any(|pool| {
            Family::of_net(pool.cidr) == family
                && pool.selected
                && gives_addresses(pool, pools)
                && counts(pool)
        })
    };
    [Family::V4, Family::V6].into_iter().filter(|family| serves(*family)).collect()
}

fn gives_addresses(pool: &Pool, pools: &[Pool]) -> bool {
    !pool.terminating && !pool.disabled && overlapped_by(pool, pools).is_none()
}

/// The pools of pods as the choice of a pod's addresses needs them. A pool that the leader holds
/// back gives no new blocks; the blocks of it that this node has still serve.
pub fn pod_pools(pools: &[Pool], own: &[OwnBlock]) -> Vec<PodPool> {
    let of_pods = pools.iter().filter(|pool| pool.for_pods);
    let all = of_pods.map(|pool| {
        let owned = own.iter().any(|block| block.pool_uid == pool.uid);
        let held_back = pool.held_back.clone().filter(|_| !owned);
        PodPool {
            name: pool.name.clone(),
            cidr: pool.cidr,
            namespaces: pool.namespaces.clone(),
            unusable: unusable(pool, pools).or(held_back),
        }
    });
    all.collect()
}

/// Decides what to claim, which blocks hand out, and which go back.
pub fn decide(known: &Knowledge<'_>) -> Decision {
    let mut decision = Decision { lodgings: lodgings(known), ..Decision::default() };
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
        if let Some(reason) = known.standing.problem().filter(|_| known.standing.lasts()) {
            let refused = known.short.iter().map(|demand| (demand.clone(), reason.to_owned()));
            decision.refusals.extend(refused);
        }
        return decision;
    }
    wanted::claims(known, &mut decision);
    reassert(known, &mut decision);
    for family in [Family::V4, Family::V6] {
        release(family, known, &mut decision);
    }
    decision
}

/// Why nobody on this node gets a new address or block from `pool`, in a sentence.
pub(crate) fn unusable(pool: &Pool, pools: &[Pool]) -> Option<String> {
    if pool.terminating {
        return Some(format!("IPPool {} is being deleted", pool.name));
    }
    if pool.disabled {
        return Some(format!("IPPool {} is disabled", pool.name));
    }
    if let Some(first) = overlapped_by(pool, pools) {
        return Some(format!("IPPool {} overlaps the older IPPool {}", pool.name, first.name));
    }
    if !pool.for_pods {
        return Some(format!("the addresses of IPPool {} are not for pods", pool.name));
    }
    if !pool.selected {
        return Some(format!("IPPool {} does not select this node", pool.name));
    }
    None
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
        BlockState::Found => {
            return Some(
                "this node's Lease has not told yet that no other machine uses it".to_owned(),
            );
        }
        BlockState::Conflict if !known.rules.hold(Rule::ConflictCloses) => {}
        BlockState::Conflict => {
            return Some("another IPBlock overlaps it, or another node announces it".to_owned());
        }
        BlockState::OtherMachine => {
            return Some(
                "another machine that had this Node before may still use it; if every such machine is \
                 off: cairn ipam fence NODE --earlier, which does not mean this one"
                    .to_owned(),
            );
        }
        BlockState::Terminating if !known.rules.hold(Rule::FinalizerWaitsForPods) => {}
        BlockState::Terminating => {
            return Some("it is being deleted; it goes when its last pod has gone".to_owned());
        }
        BlockState::Lost => {
            return Some("its IPBlock is gone; pods still use it".to_owned());
        }
        BlockState::OfEarlierNode => {
            return Some(
                "its IPBlock is of an earlier Node object of this name; pods still use it, and it \
                 goes with the last of them"
                    .to_owned(),
            );
        }
        BlockState::Releasing => return Some("it is being given back".to_owned()),
    }
    let Some(pool) = pool_of(block, known) else {
        return Some(format!("its IPPool {} does not exist any more", block.pool));
    };
    if let Some(reason) = unusable(pool, known.pools) {
        return Some(reason);
    }
    if !pool.cidr.contains(&block.cidr) || block.cidr.prefix_len() != pool.block_size {
        return Some(format!(
            "it is no /{} of its IPPool {} ({})",
            pool.block_size, pool.name, pool.cidr
        ));
    }
    if is_no_pod_cidr(block, pool, known) {
        return Some(format!("it is none of the podCIDRs that IPPool {} is made of", pool.name));
    }
    None
}

pub(crate) fn pool_of<'a>(block: &OwnBlock, known: &Knowledge<'a>) -> Option<&'a Pool> {
    known.pools.iter().find(|pool| pool.uid == block.pool_uid)
}

fn is_no_pod_cidr(block: &OwnBlock, pool: &Pool, known: &Knowledge<'_>) -> bool {
    pool.allocation == BlockAllocation::NodePodCIDR && !known.pod_cidrs.contains(&block.cidr)
}

pub(crate) fn is_open(cidr: IpNet, decision: &Decision) -> bool {
    decision.verdicts.iter().any(|verdict| verdict.cidr == cidr && verdict.closed.is_none())
}

/// Blocks without an object come back under the pool that holds them now: it may have been created
/// anew with another UID, as when the CRDs were deleted. Whether nobody else has them the server
/// says, by the name.
fn reassert(known: &Knowledge<'_>, decision: &mut Decision) {
    for block in known.own.iter().filter(|block| block.state == BlockState::Lost) {
        if block.usage.as_ref().is_none_or(BlockUsage::is_vacant) {
            continue;
        }
        let fits = |pool: &&Pool| {
            pool.cidr.contains(&block.cidr) && pool.block_size == block.cidr.prefix_len()
        };
        let mut fitting: Vec<&Pool> = known.pools.iter().filter(fits).collect();
        fitting.sort_by_key(|pool| (pool.uid != block.pool_uid, pool.created, &pool.uid));
        match fitting.first() {
            Some(pool) => decision.reasserts.push((block.cidr, (*pool).clone())),
            None => decision.problems.push(format!(
                "block {} cannot be asserted: no IPPool has it as one of its blocks; create one \
                 that does, as {} did, or end the pods in it",
                block.cidr, block.pool
            )),
        }
    }
}

fn release(family: Family, known: &Knowledge<'_>, decision: &mut Decision) {
    let own = known.own.iter().filter(|block| Family::of_net(block.cidr) == family);
    let mut open: Vec<(&OwnBlock, &Pool)> = Vec::new();
    for block in own {
        let pool = pool_of(block, known);
        let ending = block.state == BlockState::Terminating;
        if let (true, Some(pool), false) = (is_open(block.cidr, decision), pool, ending) {
            open.push((block, pool));
            continue;
        }
        let ends = match block.state {
            BlockState::Terminating | BlockState::Conflict | BlockState::Releasing => true,
            BlockState::Lost | BlockState::OfEarlierNode => false,
            // Another machine's pods may be in it.
            BlockState::OtherMachine | BlockState::Found => false,
            BlockState::Confirmed | BlockState::Unverified => is_unwanted(block, known),
        };
        // Nobody but this node knows of something else that uses an address of the block: its next
        // owner would give that address to a pod.
        let empty = match pool {
            Some(pool) if !is_abandoned(pool, known) => block.is_vacant(),
            _ => block.used() == Some(0),
        };
        // The address book must have closed the block too: until then an address may be on its way.
        let closed = block.usage.as_ref().is_some_and(|usage| !usage.hand_out);
        let careless = block.state == BlockState::Terminating
            && !known.rules.hold(Rule::FinalizerWaitsForPods);
        if ends && (careless || (closed && empty)) {
            decision.releases.push(block.cidr);
        }
    }
    let lacks = |demand: &Demand| demand.family() == family;
    if known.short.iter().any(lacks) || is_claiming(family, decision) {
        return;
    }
    // The controller manager gave the node its podCIDRs for life.
    let on_demand = |(_, pool): &&(&OwnBlock, &Pool)| pool.allocation == BlockAllocation::OnDemand;
    let drained = wanted::is_drained(known);
    let idle_secs = match known.idle_release_secs {
        Some(secs) if drained => secs.min(DRAINED_IDLE_SECS),
        Some(secs) => secs,
        None if drained => DRAINED_IDLE_SECS,
        None => return,
    };
    // One at a time. Blocks for every namespace go only while what stays is at least a block's worth
    // of free addresses; those for chosen ones, and those of a drained node, go altogether.
    let idle = open.iter().filter(on_demand).filter(|(block, pool)| {
        let others =
            open.iter().filter(|(other, of)| other.cidr != block.cidr && of.namespaces.is_none());
        let left = others.fold(0u128, |sum, (other, _)| sum.saturating_add(other.cold()));
        block.is_vacant()
            && block.idle_secs >= idle_secs
            && (drained || pool.namespaces.is_some() || left >= size_of(block.cidr))
    });
    decision.releases.extend(idle.map(|(block, _)| block.cidr).max());
}

/// Whether a block that is in order goes for the sake of its pool or of the node's podCIDRs.
fn is_unwanted(block: &OwnBlock, known: &Knowledge<'_>) -> bool {
    pool_of(block, known).is_none_or(|pool| {
        is_abandoned(pool, known) || !pool.selected || is_no_pod_cidr(block, pool, known)
    })
}

/// The blocks of which [`Decision::lodgings`] tells.
fn lodgings(known: &Knowledge<'_>) -> Vec<IpNet> {
    if wanted::is_drained(known) {
        return Vec::new();
    }
    let stays = |block: &&OwnBlock| match block.state {
        // While no pool is known nothing is known of any.
        BlockState::Confirmed | BlockState::Unverified | BlockState::Found => {
            known.pools.is_empty() || !is_unwanted(block, known)
        }
        // It is asserted again.
        BlockState::Lost => true,
        BlockState::Terminating
        | BlockState::Conflict
        | BlockState::Releasing
        | BlockState::OfEarlierNode
        | BlockState::OtherMachine => false,
    };
    known.own.iter().filter(stays).map(|block| block.cidr).collect()
}

/// Whether nobody claims from the pool any more. Before that changes, or another pool takes its place,
/// the leader looks for others' addresses anew.
fn is_abandoned(pool: &Pool, known: &Knowledge<'_>) -> bool {
    pool.terminating || overlapped_by(pool, known.pools).is_some()
}

fn is_claiming(family: Family, decision: &Decision) -> bool {
    decision.claims.iter().any(|claim| match claim {
        Claim::OneOf(pools) => pools.iter().any(|pool| Family::of_net(pool.cidr) == family),
        Claim::Block(_, cidr) => Family::of_net(*cidr) == family,
    })
}

pub(crate) fn host_bits(cidr: IpNet, len: u8) -> u8 {
    cidr.max_prefix_len().saturating_sub(len)
}

pub(crate) fn size_of(cidr: IpNet) -> u128 {
    1u128.checked_shl(host_bits(cidr, cidr.prefix_len()).into()).unwrap_or(u128::MAX)
}

/// How long the last block of a cordoned node without pods stays: a pod for which it was just
/// claimed may be about to take its address.
pub const DRAINED_IDLE_SECS: u64 = 5;
