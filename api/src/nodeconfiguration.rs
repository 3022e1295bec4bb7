//! NodeConfiguration: what of a node's kernel and addresses is configured.

use kube::{CustomResource, KubeSchema};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::common::LabelSelector;

/// Settings of nodes' kernels. The one named default holds for nodes that no other selects; of
/// several that select a node the first by name holds, whole.
#[derive(CustomResource, Clone, Debug, Default, PartialEq, Serialize, Deserialize, KubeSchema)]
#[kube(
    group = "cairn.network",
    version = "v1alpha1",
    kind = "NodeConfiguration",
    plural = "nodeconfigurations",
    shortname = "nodec",
    category = "cairn",
    derive = "PartialEq",
    doc = "Settings of nodes' kernels: tunnels, NAT, the node's address. The one named default holds for nodes that no other selects.",
    printcolumn(name = "VNI", type_ = "integer", json_path = ".spec.vxlan.vni"),
    printcolumn(name = "Port", type_ = "integer", json_path = ".spec.vxlan.port"),
    printcolumn(name = "Age", type_ = "date", json_path = ".metadata.creationTimestamp"),
    validation = Rule::new("self.metadata.name == 'default' ? !has(self.spec.nodeSelector) : has(self.spec.nodeSelector)").message("the NodeConfiguration default holds for all nodes and takes no nodeSelector; every other one needs a nodeSelector")
)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct NodeConfigurationSpec {
    /// The nodes that it is for.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub node_selector: Option<LabelSelector>,
    /// The VXLAN device. The same on every node, or they do not reach each other.
    #[serde(default)]
    pub vxlan: Vxlan,
    /// Destinations that natOutgoing leaves as they are, besides pools and nodes, for example
    /// 192.168.0.0/16.
    #[serde(default, skip_serializing_if = "Vec::is_empty", rename = "excludedCIDRs")]
    #[schemars(length(max = 256), inner(length(min = 1, max = 43)))]
    #[x_kube(validation = Rule::new("self.all(c, isCIDR(c) && string(cidr(c).masked()) == c)").message("write canonical networks such as 192.168.0.0/16, and one address as 192.0.2.1/32"))]
    pub excluded_cidrs: Vec<String>,
    /// Which address of a node others reach it at.
    #[serde(default)]
    pub node_address: NodeAddress,
    /// Let pods' packets through where another program drops all that is forwarded.
    #[serde(default)]
    pub forward_rules: Switch,
}

/// The VXLAN device of a node.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, KubeSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Vxlan {
    /// The UDP port (RFC 7348).
    #[serde(default = "default_port")]
    #[schemars(range(min = 1, max = 65535))]
    pub port: u16,
    /// The VXLAN network identifier (RFC 7348).
    #[serde(default = "default_vni")]
    #[schemars(range(min = 1, max = 16777215))]
    pub vni: u32,
}

/// Not 4789, Calico's, and not 8472, flannel's and Cilium's, so that each may run beside.
fn default_port() -> u16 {
    4798
}

/// Not 4096, Calico's, and not 1, flannel's.
fn default_vni() -> u32 {
    198
}

impl Default for Vxlan {
    fn default() -> Self {
        Vxlan { port: default_port(), vni: default_vni() }
    }
}

/// How a node's address is found, of each family. The annotation `cairn.network/node-addresses` of a
/// Node comes before all of it.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, KubeSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
#[x_kube(validation = Rule::new("!(has(self.interface) && has(self.cidrs))").message("set interface or cidrs, not both"))]
pub struct NodeAddress {
    /// The first address of this interface.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(min = 1, max = 15))]
    pub interface: Option<String>,
    /// The first address of the node inside one of these networks.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(min = 1, max = 16), inner(length(min = 1, max = 43)))]
    #[x_kube(validation = Rule::new("self.all(c, isCIDR(c))").message("write networks such as 192.0.2.0/24"))]
    pub cidrs: Option<Vec<String>>,
}

/// Whether something is done.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub enum Switch {
    /// It is.
    #[default]
    Enabled,
    /// It is not.
    Disabled,
}
