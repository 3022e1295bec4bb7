//! IPReservation: addresses that are never handed out.

use kube::{CustomResource, KubeSchema};
use serde::{Deserialize, Serialize};

/// Addresses that are never handed out.
#[derive(CustomResource, Clone, Debug, PartialEq, Serialize, Deserialize, KubeSchema)]
#[kube(
    group = "cairn.network",
    version = "v1alpha1",
    kind = "IPReservation",
    plural = "ipreservations",
    shortname = "ipr",
    category = "cairn",
    derive = "PartialEq",
    doc = "Addresses that are never handed out.",
    printcolumn(name = "CIDRs", type_ = "string", json_path = ".spec.cidrs"),
    printcolumn(name = "Age", type_ = "date", json_path = ".metadata.creationTimestamp")
)]
#[serde(rename_all = "camelCase")]
pub struct IPReservationSpec {
    /// Networks and single addresses (as /32 or /128), for example 10.244.0.0/28. A pod that holds
    /// one already keeps it, and its node says so.
    #[schemars(length(min = 1, max = 256), inner(length(min = 1, max = 43)))]
    #[x_kube(validation = Rule::new("self.all(c, isCIDR(c) && string(cidr(c).masked()) == c)").message("write canonical networks such as 10.244.0.0/28, and one address as 10.244.0.1/32: no host bits, shortest lower-case form"))]
    pub cidrs: Vec<String>,
}
