//! BGPNode: what other nodes need to know of a node to peer with it.

use std::collections::BTreeMap;

use kube::{CustomResource, KubeSchema};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

/// What other nodes need to know of a node to peer with it. Its agent writes it, and changes it
/// only when one of these changes; every agent watches these objects and nobody watches Nodes.
/// It is owned by its Node and goes with it.
#[derive(CustomResource, Clone, Debug, PartialEq, Serialize, Deserialize, KubeSchema)]
#[kube(
    group = "cairn.network",
    version = "v1alpha1",
    kind = "BGPNode",
    plural = "bgpnodes",
    shortname = "bgpn",
    category = "cairn",
    derive = "PartialEq",
    doc = "What other nodes need to know of a node to peer with it. Written by the node's agent.",
    printcolumn(name = "ASN", type_ = "integer", json_path = ".spec.asn"),
    printcolumn(name = "RouterID", type_ = "string", json_path = ".spec.routerID"),
    printcolumn(name = "Addresses", type_ = "string", json_path = ".spec.addresses"),
    printcolumn(name = "Tunnels", type_ = "string", json_path = ".spec.tunnels", priority = 1),
    printcolumn(name = "Age", type_ = "date", json_path = ".metadata.creationTimestamp")
)]
#[serde(rename_all = "camelCase")]
pub struct BGPNodeSpec {
    /// The node's addresses, at most one a family.
    #[schemars(length(min = 1, max = 2), inner(length(max = 45)))]
    #[x_kube(validation = Rule::new("self.all(a, isIP(a))").message("addresses are IP addresses"))]
    pub addresses: Vec<String>,
    /// The node's autonomous system number.
    #[schemars(range(min = 1, max = 4294967294i64))]
    pub asn: u32,
    /// The node's BGP identifier in dotted form.
    #[serde(rename = "routerID")]
    #[schemars(length(min = 7, max = 15))]
    pub router_id: String,
    /// Where the node stands: its topology labels, whether people want it as a route reflector, and
    /// whether it is being drained.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub topology: BTreeMap<String, String>,
    /// The tunnels from which the node takes packets: no other node sends by one before.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 2))]
    pub tunnels: Vec<TunnelKind>,
    /// The node's blocks that others reach by a tunnel: those of pools with an encapsulation. They
    /// change when the node claims one or gives one back, not when a pod starts.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 16384), inner(length(min = 1, max = 43)))]
    pub blocks: Vec<String>,
}

/// A kind of tunnel between nodes.
#[derive(
    Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize, JsonSchema,
)]
pub enum TunnelKind {
    /// VXLAN (RFC 7348).
    VXLAN,
    /// IP in IP (RFC 2003).
    IPIP,
}
