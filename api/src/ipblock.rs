//! IPBlock: a block of addresses that one node owns.

use ipnet::IpNet;
use kube::{CustomResource, KubeSchema};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::common::{Condition, ObjectReference};

/// The finalizer of an IPBlock, and of an IPPool while blocks of it are left. A block never has an
/// ownerReference: Kubernetes' garbage collector knows no fence.
pub const FINALIZER: &str = "cairn.network/block";

/// A block of addresses that one node owns. The name follows from the CIDR alone, so that the API
/// server's uniqueness of names arbitrates between two claims.
#[derive(CustomResource, Clone, Debug, PartialEq, Serialize, Deserialize, KubeSchema)]
#[kube(
    group = "cairn.network",
    version = "v1alpha1",
    kind = "IPBlock",
    plural = "ipblocks",
    shortname = "ipb",
    category = "cairn",
    status = "IPBlockStatus",
    derive = "PartialEq",
    doc = "A block of addresses that one node owns.",
    selectable = ".spec.node.name",
    selectable = ".spec.range",
    printcolumn(name = "CIDR", type_ = "string", json_path = ".spec.cidr"),
    printcolumn(name = "Pool", type_ = "string", json_path = ".spec.pool.name"),
    printcolumn(name = "Node", type_ = "string", json_path = ".spec.node.name"),
    printcolumn(name = "Used", type_ = "string", json_path = ".status.used"),
    printcolumn(name = "Free", type_ = "string", json_path = ".status.free"),
    printcolumn(name = "Advertised", type_ = "boolean", json_path = ".status.advertised"),
    printcolumn(name = "Age", type_ = "date", json_path = ".metadata.creationTimestamp"),
    validation = Rule::new("self.metadata.name == self.spec.cidr.replace(':', '-').replace('/', '-')").message("the name of an IPBlock is its CIDR with '-' for ':' and '/', for example 10.244.3.64-26")
)]
#[serde(rename_all = "camelCase")]
#[x_kube(
    validation = Rule::new("string(cidr(self.cidr).masked()) == self.cidr").message("cidr must be a canonical network address: no host bits, shortest lower-case form").field_path(".cidr"),
    validation = Rule::new("cidr(self.cidr).ip().family() == 4 ? cidr(self.cidr).prefixLength() >= 16 : cidr(self.cidr).prefixLength() >= 64").message("a block is /16 to /32, for IPv6 /64 to /128").field_path(".cidr"),
    validation = Rule::new("isCIDR(self.range) && cidr(self.range).containsCIDR(cidr(self.cidr)) && cidr(self.range).prefixLength() == (cidr(self.range).ip().family() == 4 ? 16 : 64) && string(cidr(self.range).masked()) == self.range").message("range is the /16 (IPv6: the /64) that holds the block").field_path(".range"),
    validation = Rule::new("self == oldSelf").message("the spec of an IPBlock is immutable: a block changes hands only by being deleted and claimed anew")
)]
pub struct IPBlockSpec {
    /// The block, for example 10.244.3.64/26.
    #[schemars(length(min = 1, max = 43))]
    #[x_kube(validation = Rule::new("isCIDR(self)").message("cidr must be a network such as 10.244.3.64/26"))]
    pub cidr: String,
    /// The /16 (IPv6: the /64) that holds the block. Blocks that overlap share it, so a claim finds
    /// them by one field selector and never by listing all blocks.
    #[schemars(length(min = 1, max = 43))]
    pub range: String,
    /// The pool that the block was claimed from.
    pub pool: ObjectReference,
    /// The node that owns the block.
    pub node: ObjectReference,
}

/// What the owner reports about a block.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct IPBlockStatus {
    /// Addresses in use.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub used: Option<String>,
    /// Addresses not in use.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub free: Option<String>,
    /// Whether the owner announces the block by BGP.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub advertised: Option<bool>,
    /// The addresses in use, up to a bound.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(extend("x-kubernetes-list-type" = "atomic"))]
    pub allocations: Vec<Allocation>,
    /// Aspects of the block that are not as they should be.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(extend("x-kubernetes-list-type" = "map", "x-kubernetes-list-map-keys" = ["type"]))]
    pub conditions: Vec<Condition>,
}

/// An address in use.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct Allocation {
    /// The address.
    pub address: String,
    /// The pod as namespace/name, where known.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub pod: Option<String>,
    /// The container id of the pod's sandbox.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub container: Option<String>,
    /// The node's own tunnel device, in the place of a pod.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub device: Option<String>,
}

/// The name of the IPBlock for `cidr`, for example `10.244.3.64-26` or `fd00-10-244--40-122`.
/// Host bits are dropped first.
pub fn block_name(cidr: IpNet) -> String {
    cidr.trunc().to_string().replace([':', '/'], "-")
}

/// The range that `cidr`'s block object carries: its /16, for IPv6 its /64. Two blocks that overlap
/// have the same one, since no block is shorter.
pub fn block_range(cidr: IpNet) -> String {
    let len = match cidr {
        IpNet::V4(_) => 16,
        IpNet::V6(_) => 64,
    };
    match IpNet::new(cidr.addr(), len) {
        Ok(range) => range.trunc().to_string(),
        Err(_) => cidr.trunc().to_string(),
    }
}
