//! What the view keeps of each kind. What no decision reads costs memory on every node, and makes a
//! new view whenever it changes: a kubelet reports on its Node every few minutes, and the leader on
//! pools whenever pods come and go.

use cairn_api::{
    BGPAdvertisement, BGPConfiguration, BGPPeer, BGPPolicy, GROUP, IPBlock, IPPool, IPPoolStatus,
    IPReservation, NodeConfiguration,
};
use k8s_openapi::api::core::v1::{self, Node, NodeSpec, NodeStatus, NodeSystemInfo};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use kube::core::PartialObjectMeta;

use super::Watched;
use crate::view::Namespace;

/// The metadata of Namespaces; nothing else of them is read.
pub(super) type NamespaceMeta = PartialObjectMeta<v1::Namespace>;

/// A kind that the view holds as objects.
pub(super) trait Trim: Watched {
    /// Drops what no decision reads.
    fn trim(&mut self);
}

/// An object without what no decision reads.
pub(super) fn trimmed<K: Trim>(mut object: K) -> K {
    object.meta_mut().managed_fields = None;
    if let Some(annotations) = &mut object.meta_mut().annotations {
        annotations.remove(LAST_APPLIED);
    }
    object.trim();
    object
}

const LAST_APPLIED: &str = "kubectl.kubernetes.io/last-applied-configuration";

impl Trim for Node {
    fn trim(&mut self) {
        let metadata = std::mem::take(&mut self.metadata);
        let own = |key: &str| key.split('/').next().is_some_and(|prefix| prefix == GROUP);
        self.metadata = ObjectMeta {
            name: metadata.name,
            uid: metadata.uid,
            labels: metadata.labels,
            annotations: metadata.annotations.map(|mut annotations| {
                annotations.retain(|key, _| own(key));
                annotations
            }),
            deletion_timestamp: metadata.deletion_timestamp,
            ..ObjectMeta::default()
        };
        self.spec = self.spec.take().map(|spec| NodeSpec {
            pod_cidr: spec.pod_cidr,
            pod_cidrs: spec.pod_cidrs,
            taints: spec.taints,
            unschedulable: spec.unschedulable,
            ..NodeSpec::default()
        });
        self.status = self.status.take().map(|status| NodeStatus {
            addresses: status.addresses,
            node_info: status.node_info.map(|info| NodeSystemInfo {
                boot_id: info.boot_id,
                machine_id: info.machine_id,
                system_uuid: info.system_uuid,
                ..NodeSystemInfo::default()
            }),
            ..NodeStatus::default()
        });
    }
}

impl Trim for IPPool {
    /// The leader's sums change with the pods; its verdict does not.
    fn trim(&mut self) {
        self.metadata.resource_version = None;
        let judged = self.status.take().filter(|status| !status.conditions.is_empty());
        self.status = judged.map(|status| IPPoolStatus {
            conditions: status.conditions,
            ..IPPoolStatus::default()
        });
    }
}

/// Whole: what this node writes is compared with it, and preconditions are taken from it.
impl Trim for IPBlock {
    fn trim(&mut self) {}
}

impl Trim for IPReservation {
    fn trim(&mut self) {
        self.metadata.resource_version = None;
    }
}

impl Trim for NodeConfiguration {
    fn trim(&mut self) {
        self.metadata.resource_version = None;
    }
}

impl Trim for BGPConfiguration {
    /// The leader's record counts; what it tells people of it does not.
    fn trim(&mut self) {
        self.metadata.resource_version = None;
        self.status = self.status.take().filter(|status| !status.topologies.is_empty());
        if let Some(status) = &mut self.status {
            status.conditions.clear();
        }
    }
}

impl Trim for BGPPeer {
    fn trim(&mut self) {
        self.metadata.resource_version = None;
    }
}

impl Trim for BGPPolicy {
    fn trim(&mut self) {
        self.metadata.resource_version = None;
    }
}

impl Trim for BGPAdvertisement {
    fn trim(&mut self) {
        self.metadata.resource_version = None;
    }
}

impl From<NamespaceMeta> for Namespace {
    fn from(object: NamespaceMeta) -> Namespace {
        let annotations = object.metadata.annotations.unwrap_or_default();
        Namespace {
            labels: object.metadata.labels.unwrap_or_default(),
            pools: annotations.get(cairn_api::ANNOTATION_IPPOOLS).cloned(),
        }
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn a_kubelet_that_only_reports_changes_nothing() {
        let node = |version: &str, heartbeat: &str, image: &str| -> Node {
            let mut node: Node = serde_json::from_value(json!({
                "metadata": {
                    "name": "n1", "uid": "u1", "resourceVersion": version,
                    "labels": {"cairn.network/asn": "64513"},
                    "annotations": {
                        "cairn.network/router-id": "192.0.2.1",
                        "volumes.kubernetes.io/controller-managed-attach-detach": heartbeat,
                    },
                },
                "spec": {
                    "podCIDRs": ["10.0.0.0/24"], "unschedulable": true, "providerID": "x",
                    "taints": [{"key": "k", "effect": "NoSchedule"}],
                },
                "status": {
                    "addresses": [{"type": "InternalIP", "address": "192.0.2.1"}],
                    "conditions": [{"type": "Ready", "status": "True", "reason": heartbeat}],
                    "images": [{"names": [image]}],
                    "nodeInfo": {
                        "bootID": "b", "machineID": "m", "systemUUID": "s", "architecture": "a",
                        "containerRuntimeVersion": "c", "kernelVersion": "k",
                        "kubeProxyVersion": "p", "kubeletVersion": "v", "operatingSystem": "o",
                        "osImage": "i",
                    },
                },
            }))
            .expect("a Node");
            node.trim();
            node
        };
        let first = node("7", "at noon", "busybox");
        assert_eq!(first, node("8", "a minute later", "nginx"));
        let json = serde_json::to_value(&first).expect("JSON");
        let kept = [
            ("/metadata/uid", json!("u1")),
            ("/metadata/labels", json!({"cairn.network/asn": "64513"})),
            ("/metadata/annotations", json!({"cairn.network/router-id": "192.0.2.1"})),
            ("/spec/podCIDRs", json!(["10.0.0.0/24"])),
            ("/spec/unschedulable", json!(true)),
            ("/spec/taints/0/key", json!("k")),
            ("/status/addresses/0/address", json!("192.0.2.1")),
            ("/status/nodeInfo/bootID", json!("b")),
            ("/status/nodeInfo/machineID", json!("m")),
            ("/status/nodeInfo/systemUUID", json!("s")),
        ];
        for (path, value) in kept {
            assert_eq!(json.pointer(path), Some(&value), "{path}");
        }
    }

    #[test]
    fn of_the_leaders_report_on_the_topology_the_record_counts_alone() {
        let configuration = |status: serde_json::Value| -> Option<serde_json::Value> {
            let mut object: BGPConfiguration = serde_json::from_value(json!({
                "apiVersion": "cairn.network/v1alpha1", "kind": "BGPConfiguration",
                "metadata": {"name": "default"}, "spec": {}, "status": status,
            }))
            .expect("a BGPConfiguration");
            object.trim();
            object.status.map(|status| serde_json::to_value(status).expect("JSON"))
        };
        let condition = json!([{
            "type": "TopologySettled", "status": "True", "reason": "Settled", "message": "",
            "lastTransitionTime": "2026-01-01T00:00:00Z",
        }]);
        let record = json!([{"asn": 1, "revision": 1, "current": {"mode": "FullMesh"}}]);
        assert_eq!(configuration(json!({"conditions": condition})), None);
        let both = configuration(json!({"conditions": condition, "topologies": record}));
        assert_eq!(both, Some(json!({"topologies": record})));
    }
}
