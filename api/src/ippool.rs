//! IPPool: a range of addresses from which nodes claim blocks.

use kube::{CustomResource, KubeSchema};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::common::{Condition, LabelSelector};

/// A range of addresses from which nodes claim blocks.
#[derive(CustomResource, Clone, Debug, PartialEq, Serialize, Deserialize, KubeSchema)]
#[kube(
    group = "cairn.network",
    version = "v1alpha1",
    kind = "IPPool",
    plural = "ippools",
    shortname = "ipp",
    category = "cairn",
    status = "IPPoolStatus",
    derive = "PartialEq",
    doc = "A range of addresses from which nodes claim blocks.",
    printcolumn(name = "CIDR", type_ = "string", json_path = ".spec.cidr"),
    printcolumn(name = "Block", type_ = "integer", json_path = ".status.blockSize"),
    printcolumn(name = "Encap", type_ = "string", json_path = ".spec.encapsulation"),
    printcolumn(name = "Blocks", type_ = "string", json_path = ".status.blocks"),
    printcolumn(name = "Used", type_ = "string", json_path = ".status.used"),
    printcolumn(name = "Free", type_ = "string", json_path = ".status.free"),
    printcolumn(name = "Total", type_ = "string", json_path = ".status.total"),
    printcolumn(
        name = "Ready",
        type_ = "string",
        json_path = ".status.conditions[?(@.type==\"Ready\")].status"
    ),
    printcolumn(name = "Age", type_ = "date", json_path = ".metadata.creationTimestamp")
)]
#[serde(rename_all = "camelCase")]
#[x_kube(
    validation = Rule::new("string(cidr(self.cidr).masked()) == self.cidr").message("cidr must be a canonical network address such as 10.244.0.0/16 or fd00:10:244::/48: no host bits, shortest lower-case form").field_path(".cidr"),
    validation = Rule::new("self.cidr == oldSelf.cidr").message("cidr is immutable: create a new pool, disable this one, then delete it").field_path(".cidr"),
    validation = Rule::new("has(self.blockSize) == has(oldSelf.blockSize) && (!has(self.blockSize) || self.blockSize == oldSelf.blockSize)").message("blockSize is immutable: create a new pool with another CIDR"),
    validation = Rule::new("self.allocation == oldSelf.allocation").message("allocation is immutable: create a new pool"),
    validation = Rule::new("self.allocation == 'OnDemand' || !has(self.maxBlocksPerNode)").message("maxBlocksPerNode does not go with allocation NodePodCIDR: a node has the blocks of its podCIDRs").field_path(".maxBlocksPerNode"),
    validation = Rule::new("!has(self.blockSize) || self.blockSize >= cidr(self.cidr).prefixLength()").message("blockSize is a prefix length and must not be shorter than the pool's own"),
    validation = Rule::new("!has(self.blockSize) || (cidr(self.cidr).ip().family() == 4 ? self.blockSize >= 16 && self.blockSize <= 32 : self.blockSize >= 64 && self.blockSize <= 128)").message("blockSize must be 16 to 32 in an IPv4 pool and 64 to 128 in an IPv6 pool"),
    validation = Rule::new("has(self.blockSize) || (cidr(self.cidr).ip().family() == 4 ? cidr(self.cidr).prefixLength() <= 26 : cidr(self.cidr).prefixLength() <= 122)").message("the pool is smaller than the default block (/26, /122): set blockSize"),
    validation = Rule::new("cidr(self.cidr).ip().family() == 4 || !(self.encapsulation in ['IPIP', 'IPIPCrossSubnet'])").message("an IPv6 pool takes encapsulation None, VXLAN or VXLANCrossSubnet")
)]
pub struct IPPoolSpec {
    /// The range, for example 10.244.0.0/16. Immutable.
    #[schemars(length(min = 1, max = 43))]
    #[x_kube(validation = Rule::new("isCIDR(self)").message("cidr must be a network such as 10.244.0.0/16 or fd00:10:244::/48"))]
    pub cidr: String,
    /// The prefix length of the blocks that nodes claim: 26 by default, 122 for IPv6. Immutable.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 16, max = 128))]
    pub block_size: Option<u8>,
    /// The nodes that may claim blocks; all when absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub node_selector: Option<LabelSelector>,
    /// The namespaces whose pods get addresses from this pool; all when absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub namespace_selector: Option<LabelSelector>,
    /// Where the blocks come from: claimed on demand, or each node's `spec.podCIDRs`. Immutable.
    #[serde(default)]
    pub allocation: BlockAllocation,
    /// How packets between pods of this pool travel between nodes.
    #[serde(default)]
    pub encapsulation: Encapsulation,
    /// Masquerade what pods send to addresses outside all pools.
    #[serde(default)]
    pub nat_outgoing: bool,
    /// No new blocks and no new addresses; existing ones stay.
    #[serde(default)]
    pub disabled: bool,
    /// Announce the blocks of this pool by BGP.
    #[serde(default = "yes")]
    pub advertise: bool,
    /// What the pool's addresses are for.
    #[serde(default = "pod_use")]
    #[schemars(length(min = 1, max = 2))]
    pub uses: Vec<PoolUse>,
    /// The most blocks that one node may own.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 1, max = 65536))]
    pub max_blocks_per_node: Option<u32>,
}

fn yes() -> bool {
    true
}

fn pod_use() -> Vec<PoolUse> {
    vec![PoolUse::Pod]
}

impl IPPoolSpec {
    /// The prefix length of this pool's blocks: as given, else 26 for IPv4 and 122 for IPv6.
    pub fn effective_block_size(&self) -> u8 {
        self.block_size.unwrap_or(if self.cidr.contains(':') { 122 } else { 26 })
    }
}

/// Where a pool's blocks come from.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub enum BlockAllocation {
    /// Nodes claim blocks when they need them.
    #[default]
    OnDemand,
    /// A node's blocks are those of its `spec.podCIDRs` that lie in the pool: for clusters whose
    /// controller manager allocates them. `blockSize` must be their size.
    NodePodCIDR,
}

/// How packets between pods of a pool travel between nodes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub enum Encapsulation {
    /// As they are.
    #[default]
    None,
    /// In IP-in-IP.
    IPIP,
    /// In IP-in-IP where the nodes share no subnet.
    IPIPCrossSubnet,
    /// In VXLAN.
    VXLAN,
    /// In VXLAN where the nodes share no subnet.
    VXLANCrossSubnet,
}

/// What a pool's addresses are for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub enum PoolUse {
    /// Addresses of pods.
    Pod,
    /// Addresses of Services of type LoadBalancer.
    LoadBalancer,
}

/// What the leader reports about a pool. Counts are strings where they can pass 2^53.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct IPPoolStatus {
    /// The prefix length of the blocks in force.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub block_size: Option<u8>,
    /// Blocks claimed of blocks in all, for example `3/1024`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub blocks: Option<String>,
    /// Addresses in use.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub used: Option<String>,
    /// Addresses not in use.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub free: Option<String>,
    /// Addresses in all.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub total: Option<String>,
    /// Ready, with the reasons Overlap, Disabled, Terminating, Invalid, ForeignAddresses; NearlyFull
    /// when less than a tenth of the blocks is left.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(extend("x-kubernetes-list-type" = "map", "x-kubernetes-list-map-keys" = ["type"]))]
    pub conditions: Vec<Condition>,
}
