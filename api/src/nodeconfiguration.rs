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
    /// The routes that Cairn writes.
    #[serde(default)]
    pub routes: Routes,
    /// Whether the kernel lists the next hops of an object with every IPv4 route through it
    /// (net.ipv4.nexthop_compat_mode).
    #[serde(default)]
    pub nexthop_compat_mode: CompatMode,
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
    /// What a new pod waits for when its interface is there: nothing, or (Announced) until the BGP peers
    /// of this node have acknowledged the pod's block by TCP, for 10 s at most.
    #[serde(default)]
    pub readiness: PodReadiness,
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

/// How the routes from BGP are marked in a node's kernel. A change takes effect at once: routes are
/// written anew first and those of the former setting are removed then.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, KubeSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Routes {
    /// The protocol number, by which routes are known as Cairn's: routes with it that nobody wants are
    /// removed, so no other program may use it. A number with which others' routes are in the kernel is not
    /// taken.
    #[serde(default = "default_protocol")]
    #[schemars(range(min = 19, max = 255))]
    #[x_kube(validation = Rule::new("!(self in [30, 42, 80, 84, 99, 223]) && (self < 186 || self > 198)").message("this number is Coil's (30), Babel's (42), Calico's (80), OVN's (84), Open/R's (99), one of FRR's (186 to 198) or that of Cairn's routes to pods (223)"))]
    pub protocol: u8,
    /// The metric of routes from BGP: of several routes to a prefix the kernel takes that with the
    /// smallest. Own blocks keep 4198.
    #[serde(default = "default_metric")]
    #[schemars(range(min = 1, max = 4197))]
    pub metric: u32,
    /// The table of routes from BGP: 254 is main. Another one needs a routing rule that leads to it, which
    /// Cairn does not make. Routes to own blocks and pods stay in main.
    #[serde(default = "default_table")]
    #[schemars(range(min = 1, max = 4294967295i64))]
    #[x_kube(validation = Rule::new("self != 255").message("table 255 (local) holds the kernel's own routes"))]
    pub table: u32,
    /// Which routes from BGP name next-hop objects, where the kernel has them (Linux 5.3).
    #[serde(default)]
    pub next_hop_objects: NextHopObjects,
}

/// Which routes name next-hop objects.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub enum NextHopObjects {
    /// Those into tunnels. Those by uplinks name their next hops, and stay when a link loses its carrier
    /// for a moment.
    #[default]
    TunnelsOnly,
    /// Those by uplinks too: without carrier the kernel takes them away at once, and what several
    /// uplinks share goes by the others.
    Everywhere,
}

impl Routes {
    /// Whether routes with this protocol number are the kernel's, an administrator's, those of another
    /// program, or those to pods.
    pub fn is_taken(protocol: u8) -> bool {
        protocol < 19 || matches!(protocol, 30 | 42 | 80 | 84 | 99 | 186..=198 | 223)
    }
}

/// None of iproute2's list and far from FRR's, which has grown up to 198: zebra removes routes with a
/// number of its own when it starts.
fn default_protocol() -> u8 {
    222
}

/// Of no other daemon, so that neither replaces the other's route to the same prefix.
fn default_metric() -> u32 {
    198
}

/// The main table.
fn default_table() -> u32 {
    254
}

impl Default for Routes {
    fn default() -> Self {
        Routes {
            protocol: default_protocol(),
            metric: default_metric(),
            table: default_table(),
            next_hop_objects: NextHopObjects::default(),
        }
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

/// The setting net.ipv4.nexthop_compat_mode of a node.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub enum CompatMode {
    /// It stays as it is: the kernel's own value is 1, with which other programs and `ip route` see
    /// where routes through objects lead.
    #[default]
    Leave,
    /// 0: `ip route` shows only the object's number, and a node that moves takes no time however many
    /// routes lead to it.
    Off,
}

/// What a new pod waits for when its interface is there.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub enum PodReadiness {
    /// Nothing.
    #[default]
    Immediate,
    /// Every BGP peer to which the pod's block is announced on an established session has acknowledged
    /// that by TCP, which does not say that it has installed the route.
    Announced,
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
