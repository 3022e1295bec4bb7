//! BGPPolicy: ordered rules that pass, change or stop routes.

use kube::{CustomResource, KubeSchema};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::common::Condition;

/// Ordered rules that pass, change or stop routes. The first rule that matches decides; where none
/// does the next policy of the peer is asked, and after the last one the route is stopped.
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
pub struct PolicyRule {
    /// What the rule applies to; everything when absent.
    #[serde(default, rename = "match", skip_serializing_if = "Option::is_none")]
    pub match_: Option<Match>,
    /// Whether what matches is passed.
    pub action: Action,
}

/// What a rule applies to. Every field that is set must hold.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, KubeSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Match {
    /// The prefix is one of these.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 1024))]
    pub prefixes: Vec<PrefixMatch>,
    /// The route came from one of these.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 3))]
    pub origins: Vec<Origin>,
}

/// A prefix, or a range of prefix lengths inside it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, KubeSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
#[x_kube(
    validation = Rule::new("(!has(self.ge) || self.ge >= cidr(self.prefix).prefixLength()) && (!has(self.le) || self.le >= (has(self.ge) ? self.ge : cidr(self.prefix).prefixLength())) && (!has(self.ge) || self.ge <= (cidr(self.prefix).ip().family() == 4 ? 32 : 128)) && (!has(self.le) || self.le <= (cidr(self.prefix).ip().family() == 4 ? 32 : 128))").message("it must hold that prefix length <= ge <= le <= 32 (IPv6: 128)")
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

/// What the leader reports about a policy.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct BGPPolicyStatus {
    /// Aspects that are not as they should be.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(extend("x-kubernetes-list-type" = "map", "x-kubernetes-list-map-keys" = ["type"]))]
    pub conditions: Vec<Condition>,
}
