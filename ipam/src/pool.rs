//! A pool as the agents use it, parsed once from its object.

use std::collections::BTreeMap;

use cairn_api::{BlockAllocation, ConditionStatus, IPPool, LabelSelector, PoolUse};
use ipnet::IpNet;
use thiserror::Error;

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
    /// Whether its addresses are for pods.
    pub for_pods: bool,
    /// Whether this node may claim from it: its nodeSelector selects the node, and it is for pods.
    pub selected: bool,
    /// Where its blocks come from.
    pub allocation: BlockAllocation,
    /// The namespaces that it serves; all when absent.
    pub namespaces: Option<LabelSelector>,
    /// The leader has looked for others' addresses in it and found the pool in order. Before that
    /// nobody claims from it (IPAM rule 8).
    pub checked: bool,
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
        let conditions = || pool.status.iter().flat_map(|status| &status.conditions);
        let for_pods = pool.spec.uses.contains(&PoolUse::Pod);
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
            for_pods,
            selected: for_pods && selector.is_none_or(|selector| selector.matches(labels)),
            allocation: pool.spec.allocation,
            namespaces: pool.spec.namespace_selector.clone(),
            // A pool that was disabled or overlapped is not looked at, so only a yes counts.
            checked: conditions().any(|condition| {
                condition.type_ == CONDITION_READY && condition.status == ConditionStatus::True
            }),
            held_back: conditions()
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

/// The condition of a pool that says whether nodes may claim from it.
pub const CONDITION_READY: &str = "Ready";

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
