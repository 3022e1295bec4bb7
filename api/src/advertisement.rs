//! BGPAdvertisement: prefixes that are originated besides pod blocks.

use kube::{CustomResource, KubeSchema};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::common::{Condition, LabelSelector};

/// Prefixes that are originated besides pod blocks.
#[derive(CustomResource, Clone, Debug, PartialEq, Serialize, Deserialize, KubeSchema)]
#[kube(
    group = "cairn.network",
    version = "v1alpha1",
    kind = "BGPAdvertisement",
    plural = "bgpadvertisements",
    shortname = "bgpa",
    category = "cairn",
    status = "BGPAdvertisementStatus",
    derive = "PartialEq",
    doc = "Prefixes that are originated besides pod blocks.",
    printcolumn(name = "CIDRs", type_ = "string", json_path = ".spec.cidrs"),
    printcolumn(name = "Age", type_ = "date", json_path = ".metadata.creationTimestamp")
)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct BGPAdvertisementSpec {
    /// The nodes that originate them; all when absent. `cairn speaker` ignores it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub node_selector: Option<LabelSelector>,
    /// The prefixes.
    #[schemars(length(min = 1, max = 1024), inner(length(min = 1, max = 43)))]
    #[x_kube(validation = Rule::new("self.all(c, isCIDR(c) && string(cidr(c).masked()) == c)").message("cidrs are canonical networks such as 203.0.113.0/24: no host bits"))]
    pub cidrs: Vec<String>,
    /// COMMUNITIES values to attach, each as `65000:1` (RFC 1997).
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(
        length(max = 32),
        inner(length(max = 20), regex(pattern = "^([0-9]{1,5}:[0-9]{1,5}|[a-z-]+)$"))
    )]
    pub communities: Vec<String>,
    /// LOCAL_PREF towards internal peers.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub local_pref: Option<u32>,
}

/// What the leader reports about an advertisement.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct BGPAdvertisementStatus {
    /// Aspects that are not as they should be.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(extend("x-kubernetes-list-type" = "map", "x-kubernetes-list-map-keys" = ["type"]))]
    pub conditions: Vec<Condition>,
}
