//! BGPConfiguration: the settings of BGP in the cluster, or of one `cairn speaker`.

use kube::{CustomResource, KubeSchema};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::bgppeer::Bfd;
use crate::common::Condition;

/// The settings of BGP in the cluster, or of one `cairn speaker`. There is one, named default.
#[derive(CustomResource, Clone, Debug, PartialEq, Serialize, Deserialize, KubeSchema)]
#[kube(
    group = "cairn.network",
    version = "v1alpha1",
    kind = "BGPConfiguration",
    plural = "bgpconfigurations",
    shortname = "bgpc",
    category = "cairn",
    status = "BGPConfigurationStatus",
    derive = "PartialEq",
    doc = "The settings of BGP in the cluster. There is one, named default.",
    printcolumn(name = "ASN", type_ = "integer", json_path = ".spec.asn"),
    printcolumn(name = "Topology", type_ = "string", json_path = ".spec.topology"),
    printcolumn(name = "Age", type_ = "date", json_path = ".metadata.creationTimestamp"),
    validation = Rule::new("self.metadata.name == 'default'").message("there is one BGPConfiguration and its name is default")
)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct BGPConfigurationSpec {
    /// The autonomous system number of nodes without the label `cairn.network/asn`.
    #[serde(default = "default_asn")]
    #[schemars(range(min = 1, max = 4294967294i64))]
    #[x_kube(validation = Rule::new("self != 23456").message("23456 is AS_TRANS (RFC 6793) and cannot be an AS of your own"))]
    pub asn: u32,
    /// Which nodes of equal AS peer with each other.
    #[serde(default)]
    pub topology: Topology,
    /// The TCP port on which sessions are accepted and to which nodes of the cluster connect.
    #[serde(default = "default_port")]
    #[schemars(range(min = 1, max = 65535))]
    pub listen_port: u16,
    /// Timers of sessions; a BGPPeer may have its own.
    #[serde(default)]
    pub timers: Timers,
    /// Graceful restart (RFC 4724): forwarding goes on while an agent restarts.
    #[serde(default)]
    pub graceful_restart: GracefulRestart,
    /// BFD on the sessions between nodes; none unless it is set, and BGPPeers have their own. `cairn bfd` must run on every
    /// node.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub bfd: Option<Bfd>,
    /// Paths of equal cost that share a kernel route.
    #[serde(default)]
    pub multipath: Multipath,
    /// This speaker is about to go away, on all its sessions: see gracefulShutdown of a BGPPeer.
    #[serde(default)]
    pub graceful_shutdown: bool,
    /// The BGP identifier. Only in a file for `cairn speaker`.
    #[serde(default, skip_serializing_if = "Option::is_none", rename = "routerID")]
    #[schemars(length(max = 15))]
    pub router_id: Option<String>,
    /// The cluster of which this speaker is a route reflector (RFC 4456 section 7), in dotted form; the
    /// BGP identifier when absent. Only in a file for `cairn speaker`.
    #[serde(default, skip_serializing_if = "Option::is_none", rename = "clusterID")]
    #[schemars(length(max = 15))]
    pub cluster_id: Option<String>,
    /// Addresses on which sessions are accepted. Only in a file for `cairn speaker`.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 16), inner(length(max = 45)))]
    pub listen_addresses: Vec<String>,
}

fn default_asn() -> u32 {
    64512
}

fn default_port() -> u16 {
    179
}

impl Default for BGPConfigurationSpec {
    fn default() -> Self {
        BGPConfigurationSpec {
            asn: default_asn(),
            topology: Topology::default(),
            listen_port: default_port(),
            timers: Timers::default(),
            graceful_restart: GracefulRestart::default(),
            bfd: None,
            multipath: Multipath::default(),
            graceful_shutdown: false,
            router_id: None,
            cluster_id: None,
            listen_addresses: Vec::new(),
        }
    }
}

/// Which nodes of equal AS peer with each other.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub enum Topology {
    /// A full mesh up to 64 nodes of an AS, route reflectors above, and a mesh again below 48.
    #[default]
    Auto,
    /// Every node with every node.
    FullMesh,
    /// Every node with three route reflectors, which are nodes of the AS.
    RouteReflectors,
    /// None: only BGPPeer objects make sessions.
    Disabled,
}

/// Timers of a session.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, KubeSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Timers {
    /// The hold time offered, in seconds: 0 (no keepalives) or at least 3 (RFC 4271 section 4.2).
    #[serde(default = "default_hold_time")]
    #[schemars(range(min = 0, max = 65535))]
    #[x_kube(validation = Rule::new("self == 0 || self >= 3").message("the hold time is 0 or at least 3 seconds (RFC 4271 section 4.2)"))]
    pub hold_time_secs: u16,
    /// The wait between attempts to connect, in seconds.
    #[serde(default = "default_connect_retry")]
    #[schemars(range(min = 1, max = 3600))]
    pub connect_retry_secs: u16,
    /// How long a peer may take nothing of what is to be sent before the session ends, in seconds
    /// (RFC 9687); at least twice the hold time is waited. 0 waits forever.
    #[serde(default = "default_send_hold_time")]
    #[schemars(range(min = 0, max = 65535))]
    pub send_hold_time_secs: u16,
}

fn default_send_hold_time() -> u16 {
    480
}

/// Which paths of equal cost share a kernel route.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, KubeSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Multipath {
    /// Paths in one kernel route at most.
    #[serde(default = "default_paths_max")]
    #[schemars(range(min = 1, max = 128))]
    pub paths_max: u16,
    /// Only paths with the same AS_PATH are equal; else its length counts and not its content.
    #[serde(default)]
    pub same_as_path: bool,
}

fn default_paths_max() -> u16 {
    16
}

impl Default for Multipath {
    fn default() -> Self {
        Multipath { paths_max: default_paths_max(), same_as_path: false }
    }
}

fn default_hold_time() -> u16 {
    90
}

fn default_connect_retry() -> u16 {
    5
}

impl Default for Timers {
    fn default() -> Self {
        Timers {
            hold_time_secs: default_hold_time(),
            connect_retry_secs: default_connect_retry(),
            send_hold_time_secs: default_send_hold_time(),
        }
    }
}

/// Graceful restart (RFC 4724).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, KubeSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct GracefulRestart {
    /// Whether the capability is offered.
    #[serde(default = "yes")]
    pub enabled: bool,
    /// How long peers keep the routes of a speaker that restarts, in seconds.
    #[serde(default = "default_restart_time")]
    #[schemars(range(min = 1, max = 4095))]
    pub restart_time_secs: u16,
    /// Routes stay, too, when an error or the hold timer ends the session, and go when an operator ends
    /// it or BFD says that the path is dead (the N bit, RFC 8538). It counts where both sides set it.
    #[serde(default)]
    pub notification: bool,
    /// How long routes stay as a last resort after that time, in seconds; 0 is not at all (RFC 9494).
    /// Of what agents keep so it holds for pods' blocks alone.
    #[serde(default)]
    #[schemars(range(min = 0, max = 16_777_215))]
    pub long_lived_stale_time_secs: u32,
}

fn yes() -> bool {
    true
}

fn default_restart_time() -> u16 {
    120
}

impl Default for GracefulRestart {
    fn default() -> Self {
        GracefulRestart {
            enabled: true,
            restart_time_secs: default_restart_time(),
            notification: false,
            long_lived_stale_time_secs: 0,
        }
    }
}

/// What the leader reports about the configuration.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct BGPConfigurationStatus {
    /// Aspects that are not as they should be.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(extend("x-kubernetes-list-type" = "map", "x-kubernetes-list-map-keys" = ["type"]))]
    pub conditions: Vec<Condition>,
    /// How the nodes of each AS peer; those of an AS that is not named peer each with each.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(extend("x-kubernetes-list-type" = "map", "x-kubernetes-list-map-keys" = ["asn"]))]
    pub topologies: Vec<AsTopology>,
}

/// How the nodes of one AS peer with each other. The leader chooses, all nodes follow.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct AsTopology {
    /// The autonomous system.
    pub asn: u32,
    /// Another one with each choice, and greater than those before.
    pub revision: i64,
    /// How they peer.
    pub current: TopologyShape,
    /// How they did before, while sessions of both stand: until no node would lose a route.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub previous: Option<TopologyShape>,
}

/// Which nodes of an AS have sessions with each other.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct TopologyShape {
    /// Each with each, or each with the reflectors.
    pub mode: TopologyMode,
    /// The nodes that are route reflectors.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(extend("x-kubernetes-list-type" = "atomic"))]
    pub reflectors: Vec<String>,
}

/// How nodes of an AS peer with each other.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub enum TopologyMode {
    /// Every node with every node.
    FullMesh,
    /// Every node with the route reflectors.
    RouteReflectors,
}
