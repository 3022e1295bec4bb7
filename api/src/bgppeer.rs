//! BGPPeer: a BGP session with a router outside of the mesh.

use kube::{CustomResource, KubeSchema};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::bgpconfiguration::{GracefulRestart, Timers};
use crate::common::{AddressFamily, Condition, LabelSelector};

/// A BGP session with a router outside of the mesh, on every node that the selector selects.
#[derive(CustomResource, Clone, Debug, PartialEq, Serialize, Deserialize, KubeSchema)]
#[kube(
    group = "cairn.network",
    version = "v1alpha1",
    kind = "BGPPeer",
    plural = "bgppeers",
    shortname = "bgpp",
    category = "cairn",
    status = "BGPPeerStatus",
    derive = "PartialEq",
    doc = "A BGP session with a router outside of the mesh, on every node that nodeSelector selects.",
    printcolumn(name = "Address", type_ = "string", json_path = ".spec.address"),
    printcolumn(name = "Interface", type_ = "string", json_path = ".spec.interface"),
    printcolumn(name = "ASN", type_ = "integer", json_path = ".spec.asn"),
    printcolumn(name = "Age", type_ = "date", json_path = ".metadata.creationTimestamp")
)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
#[x_kube(
    validation = Rule::new("has(self.address) != has(self.interface)").message("a peer is named by its address or by the interface that it is on: write one of both"),
    validation = Rule::new("!has(self.bfd) || (has(self.address) && isIP(self.address))").message("BFD is for a peer with an address: not for a range of addresses, nor for a peer on an interface"),
    validation = Rule::new("!has(self.interface) || self.multihop == 1").message("a peer on an interface is one hop away: leave multihop at 1"),
    validation = Rule::new("!has(self.interface) || !has(self.passwordSecretRef)").message("a password is for a peer with an address: the kernel knows TCP MD5 keys by addresses, not by interfaces"),
    validation = Rule::new("!has(self.ttlSecurity) || !self.ttlSecurity || self.multihop == 1").message("ttlSecurity protects a directly connected peer: leave multihop at 1"),
    validation = Rule::new("!has(self.sourceAddress) || (has(self.address) && isIP(self.sourceAddress) && ip(self.sourceAddress).family() == (isIP(self.address) ? ip(self.address).family() : cidr(self.address).ip().family()))").message("sourceAddress is an IP address of the family of address")
)]
pub struct BGPPeerSpec {
    /// The nodes that peer with it; all when absent. `cairn speaker` ignores it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub node_selector: Option<LabelSelector>,
    /// The peer's address. In a file for `cairn speaker` also a range of addresses from which peers may connect,
    /// which are never connected to and called as this object, an `@` and their address. A peer without an address is
    /// on an interface.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(min = 2, max = 49))]
    #[x_kube(validation = Rule::new("isIP(self) || isCIDR(self)").message("address is an IP address such as 192.0.2.1 or 2001:db8::1, or a range such as 192.0.2.0/24"))]
    pub address: Option<String>,
    /// The interface whose other end is the peer (unnumbered): the peer's link-local address is learned from its
    /// router advertisements, and the own one is advertised, with lifetime 0. The link has one router at its
    /// other end.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(min = 1, max = 15))]
    #[x_kube(validation = Rule::new("!self.contains('/') && !self.contains(' ') && self != '.' && self != '..'").message("interface is the name of a network interface such as eth0"))]
    pub interface: Option<String>,
    /// How many peers of a range there may be at a time.
    #[serde(default = "default_peers_max")]
    #[schemars(range(min = 1, max = 10000))]
    pub peers_max: u32,
    /// The peer's TCP port.
    #[serde(default = "default_port")]
    #[schemars(range(min = 1, max = 65535))]
    pub port: u16,
    /// The peer's autonomous system number.
    #[schemars(range(min = 1, max = 4294967294i64))]
    #[x_kube(validation = Rule::new("self != 23456").message("23456 is AS_TRANS (RFC 6793) and cannot be the AS of a peer"))]
    pub asn: u32,
    /// Timers of this session; those of the BGPConfiguration when absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub timers: Option<Timers>,
    /// Graceful restart with this peer; as in the BGPConfiguration when absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub graceful_restart: Option<GracefulRestart>,
    /// Notice by BFD that the path to the peer is dead (RFC 5880, 5882); off when absent. The peer must have
    /// it on too, single hop (RFC 5881) for an external peer with multihop 1, else multihop (RFC 5883), and
    /// `cairn bfd` must run beside the agent or speaker.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub bfd: Option<Bfd>,
    /// Refuse packets from more than one hop away (RFC 5082). The peer must have it on too.
    #[serde(default)]
    pub ttl_security: bool,
    /// Hops to an external peer at most.
    #[serde(default = "one_hop")]
    #[schemars(range(min = 1, max = 255))]
    pub multihop: u8,
    /// Wait for the peer to connect.
    #[serde(default)]
    pub passive: bool,
    /// Families to offer; both when absent.
    #[serde(default = "both_families")]
    #[schemars(length(min = 1, max = 2))]
    pub families: Vec<AddressFamily>,
    /// The local address of the session; that of the route to the peer when absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(min = 2, max = 45))]
    pub source_address: Option<String>,
    /// The Secret that holds the TCP MD5 password (RFC 2385), in Cairn's own namespace; `cairn
    /// speaker` looks for it among the documents of its file. A changed one is taken up without a
    /// reset.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub password_secret_ref: Option<SecretKeyRef>,
    /// The AS number shown to this peer instead of our own (local-as, RFC 7705).
    #[serde(default, skip_serializing_if = "Option::is_none", rename = "localASN")]
    #[schemars(range(min = 1, max = 4294967294i64))]
    pub local_asn: Option<u32>,
    /// This peer is a client of ours: routes of internal peers are reflected to it and from it
    /// (RFC 4456).
    #[serde(default)]
    pub route_reflector_client: bool,
    /// Prefixes accepted at most a family, counted before policies.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 1))]
    pub prefixes_max: Option<u32>,
    /// What happens above prefixesMax.
    #[serde(default)]
    pub prefixes_max_action: PrefixesMaxAction,
    /// How long a session rests that ended at prefixesMax, in seconds; 0 is until it is reset by
    /// hand.
    #[serde(default = "default_restart_after")]
    #[schemars(range(min = 0, max = 86400))]
    pub restart_after_secs: u32,
    /// How the next hop towards the peer is chosen.
    #[serde(default)]
    pub next_hop: NextHop,
    /// The own next hop of IPv6 routes on an IPv4 session; the global IPv6 address of the session's
    /// interface when absent. Without either the session does not carry IPv6.
    #[serde(default, skip_serializing_if = "Option::is_none", rename = "nextHopIPv6")]
    #[schemars(length(min = 2, max = 45))]
    #[x_kube(validation = Rule::new("isIP(self) && ip(self).family() == 6").message("nextHopIPv6 is an IPv6 address such as 2001:db8::1"))]
    pub next_hop_ipv6: Option<String>,
    /// Offer IPv4 routes with IPv6 next hops (RFC 8950). When absent, of a peer on an interface alone.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub extended_next_hop: Option<bool>,
    /// Several paths to a prefix instead of the best one (ADD-PATH, RFC 7911), where the peer offers
    /// the other side of it; off when absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub add_path: Option<AddPath>,
    /// The AS_PATH of an external peer must begin with its AS (RFC 4271 section 6.3). A route server
    /// needs it off.
    #[serde(default = "yes")]
    pub enforce_first_as: bool,
    /// How often our own AS may stand in a received AS_PATH (allowas-in).
    #[serde(default)]
    #[schemars(range(min = 0, max = 10))]
    pub own_as_max: u8,
    /// The longest AS_PATH accepted.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 1, max = 65535))]
    pub as_path_len_max: Option<u32>,
    /// Take private AS numbers (RFC 6996) out of AS_PATH towards an external peer.
    #[serde(default)]
    pub remove_private_as: bool,
    /// Type codes of path attributes that are dropped from what comes in.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 32), inner(range(min = 4, max = 255)))]
    #[x_kube(validation = Rule::new("self.all(t, t != 14 && t != 15)").message("MP_REACH_NLRI (14) and MP_UNREACH_NLRI (15) hold the routes themselves: leave families out instead"))]
    pub discard_attributes: Vec<u8>,
    /// The session is about to go away: routes are announced with the community GRACEFUL_SHUTDOWN,
    /// and taken with LOCAL_PREF 0, so that traffic leaves it before it ends (RFC 8326).
    #[serde(default)]
    pub graceful_shutdown: bool,
    /// Names of BGPPolicy objects asked in order about what comes in. On a node an external peer
    /// without any takes only prefixes inside the pools; `cairn speaker` takes none (RFC 8212).
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 16), inner(length(min = 1, max = 253)))]
    pub import_policies: Vec<String>,
    /// Names of BGPPolicy objects asked in order about what goes out. On a node an external peer
    /// without any gets the node's own blocks; `cairn speaker` sends none (RFC 8212).
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 16), inner(length(min = 1, max = 253)))]
    pub export_policies: Vec<String>,
}

fn default_peers_max() -> u32 {
    100
}

fn default_port() -> u16 {
    179
}

fn one_hop() -> u8 {
    1
}

fn default_restart_after() -> u32 {
    300
}

fn both_families() -> Vec<AddressFamily> {
    vec![AddressFamily::IPv4Unicast, AddressFamily::IPv6Unicast]
}

/// Several paths to a prefix (RFC 7911).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, KubeSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct AddPath {
    /// Take several paths to a prefix from the peer: up to 32, each counted against prefixesMax.
    #[serde(default)]
    pub receive: bool,
    /// Send the peer up to so many of the best paths to a prefix; 0 sends the best one only.
    #[serde(default)]
    #[schemars(range(min = 0, max = 16))]
    pub send_max: u8,
}

/// Bidirectional forwarding detection (RFC 5880). A session ends, and its routes go, interval times multiplier after
/// the last packet of a peer that was there; both sides together choose the longer interval.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, KubeSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Bfd {
    /// Whether BFD runs with this peer.
    #[serde(default = "yes")]
    pub enabled: bool,
    /// The interval in which packets are sent and wanted, in milliseconds.
    #[serde(default = "default_interval")]
    #[schemars(range(min = 50, max = 60000))]
    pub interval_ms: u32,
    /// How many missing packets mean that the path is dead.
    #[serde(default = "default_multiplier")]
    #[schemars(range(min = 1, max = 255))]
    pub multiplier: u8,
}

fn yes() -> bool {
    true
}

fn default_interval() -> u32 {
    300
}

fn default_multiplier() -> u8 {
    3
}

/// A key of a Secret.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, KubeSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct SecretKeyRef {
    /// The Secret's name.
    #[schemars(length(min = 1, max = 253))]
    pub name: String,
    /// The key inside of it.
    #[serde(default = "default_key")]
    #[schemars(length(min = 1, max = 253))]
    pub key: String,
}

fn default_key() -> String {
    "password".into()
}

/// What happens when a peer announces more than prefixesMax.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub enum PrefixesMaxAction {
    /// It is reported and nothing else.
    Warn,
    /// Further prefixes are not taken in; what is there goes on.
    Drop,
    /// The session ends, and comes back after restartAfterSecs.
    #[default]
    Stop,
}

/// How the next hop towards a peer is chosen.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub enum NextHop {
    /// To external peers the own address; to internal ones the own address for what originates
    /// here and as received for the rest (RFC 4271 section 5.1.3).
    #[default]
    Auto,
    /// The own address.
    #[serde(rename = "Self")]
    SelfAddress,
    /// As received.
    Unchanged,
}

/// What the leader reports about a peer.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct BGPPeerStatus {
    /// Aspects that are not as they should be.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(extend("x-kubernetes-list-type" = "map", "x-kubernetes-list-map-keys" = ["type"]))]
    pub conditions: Vec<Condition>,
}
