//! BGPPolicy: ordered rules that pass, change or stop routes.

use kube::{CustomResource, KubeSchema};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::common::Condition;

/// Ordered rules that pass, change or stop routes. The first rule that matches decides; where none
/// does the next policy of the peer is asked. After the last one a route from or to a peer of
/// another AS is stopped, and one from or to a peer of the same AS passes.
#[derive(CustomResource, Clone, Debug, PartialEq, Serialize, Deserialize, KubeSchema)]
#[kube(
    group = "cairn.network",
    version = "v1alpha1",
    kind = "BGPPolicy",
    plural = "bgppolicies",
    shortname = "bgppol",
    category = "cairn",
    status = "BGPPolicyStatus",
    derive = "PartialEq",
    doc = "Ordered rules that pass, change or stop routes. The first rule that matches decides.",
    printcolumn(name = "Age", type_ = "date", json_path = ".metadata.creationTimestamp")
)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct BGPPolicySpec {
    /// The rules in order.
    #[schemars(length(max = 256))]
    pub rules: Vec<PolicyRule>,
}

/// One rule of a policy.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, KubeSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
#[x_kube(validation = Rule::new("self.action == 'Accept' || !has(self.set)").message("a rule that rejects changes nothing: leave set out"))]
pub struct PolicyRule {
    /// What the rule applies to; everything when absent, but for default routes that come in: those
    /// pass only by a rule whose prefixes name them.
    #[serde(default, rename = "match", skip_serializing_if = "Option::is_none")]
    pub match_: Option<Match>,
    /// Whether what matches is passed.
    pub action: Action,
    /// What is changed in what is passed.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub set: Option<Set>,
}

/// What a rule applies to. Every field that is set must hold; of a list one entry is enough.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, KubeSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Match {
    /// The prefix is one of these.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 1024))]
    pub prefixes: Vec<PrefixMatch>,
    /// The route carries one of these communities: 65000:1, or a well-known name such as no-export.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 64), inner(length(max = 20), regex(pattern = COMMUNITY)))]
    pub communities: Vec<String>,
    /// The route carries one of these extended communities: rt:65000:1, ro:192.0.2.1:1, or all eight
    /// octets as 16 hexadecimal digits.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 64), inner(length(max = 32), regex(pattern = EXTENDED_COMMUNITY)))]
    pub extended_communities: Vec<String>,
    /// The route carries one of these large communities: 65000:1:2.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 64), inner(length(max = 32), regex(pattern = LARGE_COMMUNITY)))]
    pub large_communities: Vec<String>,
    /// AS_PATH is like this.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub as_path: Option<AsPathMatch>,
    /// The next hop is in one of these networks.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 64), inner(length(min = 1, max = 43)))]
    pub next_hops: Vec<String>,
    /// The route came from one of these peers: names of BGPPeer objects, or mesh/NODE for another
    /// node of the mesh.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 64), inner(length(min = 1, max = 253)))]
    pub peers: Vec<String>,
    /// The route came from one of these.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 3))]
    pub origins: Vec<Origin>,
}

/// What AS_PATH is like. Every field that is set must hold.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, KubeSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
#[x_kube(validation = Rule::new("!has(self.lengthMin) || !has(self.lengthMax) || self.lengthMin <= self.lengthMax").message("lengthMin is at most lengthMax"))]
pub struct AsPathMatch {
    /// It is at least so long.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 0, max = 65535))]
    pub length_min: Option<u32>,
    /// It is at most so long.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 0, max = 65535))]
    pub length_max: Option<u32>,
    /// Its last AS, where the route originates, is one of these.
    #[serde(default, skip_serializing_if = "Vec::is_empty", rename = "originASNs")]
    #[schemars(length(max = 256), inner(range(min = 1, max = 4294967294i64)))]
    pub origin_asns: Vec<u32>,
    /// Its first AS, from which the route came, is one of these.
    #[serde(default, skip_serializing_if = "Vec::is_empty", rename = "neighborASNs")]
    #[schemars(length(max = 256), inner(range(min = 1, max = 4294967294i64)))]
    pub neighbor_asns: Vec<u32>,
    /// It matches this regular expression as text, AS numbers with one space between them; _ is a
    /// boundary: ^65001_ comes from AS 65001, _65001_ passes through it, _65001$ originates there,
    /// ^$ is an empty path.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(min = 1, max = 256), regex(pattern = r"^[0-9 _.^$*+?|()\[\]{},\\-]+$"))]
    pub regex: Option<String>,
}

/// A prefix, or a range of prefix lengths inside it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, KubeSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
#[x_kube(
    validation = Rule::new("!has(self.ge) || self.ge >= cidr(self.prefix).prefixLength()").message("it must hold that prefix length <= ge <= le <= 32 (IPv6: 128)"),
    validation = Rule::new("!has(self.le) || self.le >= (has(self.ge) ? self.ge : cidr(self.prefix).prefixLength())").message("it must hold that prefix length <= ge <= le <= 32 (IPv6: 128)"),
    validation = Rule::new("!has(self.ge) || self.ge <= (cidr(self.prefix).ip().family() == 4 ? 32 : 128)").message("it must hold that prefix length <= ge <= le <= 32 (IPv6: 128)"),
    validation = Rule::new("!has(self.le) || self.le <= (cidr(self.prefix).ip().family() == 4 ? 32 : 128)").message("it must hold that prefix length <= ge <= le <= 32 (IPv6: 128)")
)]
pub struct PrefixMatch {
    /// The prefix; without ge and le exactly this one.
    #[schemars(length(min = 1, max = 43))]
    #[x_kube(validation = Rule::new("isCIDR(self)").message("prefix is a network such as 10.0.0.0/8"))]
    pub prefix: String,
    /// Prefix lengths from this on.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 0, max = 128))]
    pub ge: Option<u8>,
    /// Prefix lengths up to this.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 0, max = 128))]
    pub le: Option<u8>,
}

/// Where a route came from.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub enum Origin {
    /// It originates here.
    Local,
    /// A peer of the same AS announced it.
    Internal,
    /// A peer of another AS announced it.
    External,
}

/// Whether a route is passed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub enum Action {
    /// It is passed.
    Accept,
    /// It is stopped.
    Reject,
}

/// What a rule changes in the routes that it passes.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, KubeSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
#[x_kube(validation = Rule::new("!has(self.med) || !has(self.removeMED) || !self.removeMED").message("med and removeMED contradict each other: write one of them"))]
pub struct Set {
    /// LOCAL_PREF: of several routes to a prefix that with the highest is used.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 0, max = 4294967295i64))]
    pub local_pref: Option<u32>,
    /// MULTI_EXIT_DISC: of several routes from a neighbour AS that with the lowest is used.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 0, max = 4294967295i64))]
    pub med: Option<u32>,
    /// Takes MULTI_EXIT_DISC away, which counts as 0.
    #[serde(default, rename = "removeMED")]
    pub remove_med: bool,
    /// Changes communities.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub communities: Option<CommunitiesSet>,
    /// Changes extended communities.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub extended_communities: Option<ExtendedCommunitiesSet>,
    /// Changes large communities.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub large_communities: Option<LargeCommunitiesSet>,
    /// Makes AS_PATH longer.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub prepend: Option<Prepend>,
    /// The next hop that is announced, whatever nextHop of the peer says. Only in policies for
    /// export.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub next_hop: Option<SetNextHop>,
}

/// What becomes of communities: first those of replace alone are left, then those of remove go, then
/// those of add come.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, KubeSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct CommunitiesSet {
    /// In place of all; an empty list removes all.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(max = 64), inner(length(max = 20), regex(pattern = COMMUNITY)))]
    pub replace: Option<Vec<String>>,
    /// To remove.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 64), inner(length(max = 20), regex(pattern = COMMUNITY)))]
    pub remove: Vec<String>,
    /// To add.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 64), inner(length(max = 20), regex(pattern = COMMUNITY)))]
    pub add: Vec<String>,
}

/// What becomes of extended communities: first those of replace alone are left, then those of remove
/// go, then those of add come.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, KubeSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct ExtendedCommunitiesSet {
    /// In place of all; an empty list removes all.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(max = 64), inner(length(max = 32), regex(pattern = EXTENDED_COMMUNITY)))]
    pub replace: Option<Vec<String>>,
    /// To remove.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 64), inner(length(max = 32), regex(pattern = EXTENDED_COMMUNITY)))]
    pub remove: Vec<String>,
    /// To add.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 64), inner(length(max = 32), regex(pattern = EXTENDED_COMMUNITY)))]
    pub add: Vec<String>,
}

/// What becomes of large communities: first those of replace alone are left, then those of remove
/// go, then those of add come.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, KubeSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct LargeCommunitiesSet {
    /// In place of all; an empty list removes all.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(max = 64), inner(length(max = 32), regex(pattern = LARGE_COMMUNITY)))]
    pub replace: Option<Vec<String>>,
    /// To remove.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 64), inner(length(max = 32), regex(pattern = LARGE_COMMUNITY)))]
    pub remove: Vec<String>,
    /// To add.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 64), inner(length(max = 32), regex(pattern = LARGE_COMMUNITY)))]
    pub add: Vec<String>,
}

/// An AS number to put in front of AS_PATH.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, KubeSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Prepend {
    /// The AS number.
    #[schemars(range(min = 1, max = 4294967294i64))]
    pub asn: u32,
    /// How often.
    #[serde(default = "once")]
    #[schemars(range(min = 1, max = 16))]
    pub times: u8,
}

fn once() -> u8 {
    1
}

/// The next hop that is announced.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub enum SetNextHop {
    /// The own address.
    #[serde(rename = "Self")]
    SelfAddress,
    /// As received.
    Unchanged,
}

/// What the leader reports about a policy.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct BGPPolicyStatus {
    /// Aspects that are not as they should be.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(extend("x-kubernetes-list-type" = "map", "x-kubernetes-list-map-keys" = ["type"]))]
    pub conditions: Vec<Condition>,
}

/// Two numbers or a well-known name.
const COMMUNITY: &str = "^([0-9]{1,5}:[0-9]{1,5}|[a-z-]+)$";
/// Route target, route origin, or eight octets.
const EXTENDED_COMMUNITY: &str = "^((rt|ro):[0-9.]+:[0-9]{1,10}|[0-9a-fA-F]{16})$";
/// Three numbers.
const LARGE_COMMUNITY: &str = "^[0-9]{1,10}:[0-9]{1,10}:[0-9]{1,10}$";
