//! A cluster of objects without agents, and the command that looks at it.

use std::process::Output;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use cairn_lab::apiserver::PatchType;
use k8s_openapi::jiff::Timestamp;
use serde_json::{Value, json};

use crate::api::{Cluster, NODE};
use crate::site::{Site, cairn};

pub const BLOCKS: &str = "ipblocks.cairn.network";
pub const LEASES: &str = "leases.coordination.k8s.io";
pub const SYSTEM: Option<&str> = Some("cairn-system");

/// A site with an API server that knows the pool `pods` of 10.1.0.0/16 and the Nodes n1 and n2.
pub struct Scene {
    pub cluster: Cluster,
    pub site: Site,
}

/// What a command said.
#[derive(Debug)]
pub struct Said {
    pub code: Option<i32>,
    pub text: String,
    pub errors: String,
}

impl Scene {
    pub fn new() -> Scene {
        Scene::with(&[NODE])
    }

    /// With routers at further addresses.
    pub fn with(addresses: &[&str]) -> Scene {
        let site = Site::new(addresses);
        let cluster = Cluster::new(&site);
        cluster.pool("pods", "10.1.0.0/16", 26);
        let node = json!({"apiVersion": "v1", "kind": "Node", "metadata": {"name": "n2"}});
        cluster.api.create("nodes", None, node).expect("a Node");
        Scene { cluster, site }
    }

    pub fn run(&self, words: &[&str]) -> Said {
        self.run_by("kubeconfig", words)
    }

    pub fn run_by(&self, kubeconfig: &str, words: &[&str]) -> Said {
        let mut command = cairn(["ipam"]);
        command.args(words).arg("--kubeconfig").arg(self.site.path(kubeconfig));
        command.arg("--run-dir").arg(self.site.path("agent"));
        Said::from(self.site.run(command))
    }

    pub fn json(&self, words: &[&str]) -> Value {
        let said = self.run(&[words, &["-o", "json"]].concat());
        serde_json::from_str(&said.text).unwrap_or_else(|error| panic!("{error}: {said:?}"))
    }

    pub fn uid(&self, resource: &str, name: &str) -> String {
        let object = self.cluster.api.get(resource, None, name).expect("an object");
        object["metadata"]["uid"].as_str().expect("a UID").to_owned()
    }

    /// A block of a Node with this UID, with allocations as address and pod.
    pub fn block_of(&self, cidr: &str, node: &str, uid: &str, pods: &[(&str, &str)]) {
        let net: ipnet::IpNet = cidr.parse().expect("a block");
        let name = cairn_api::block_name(net);
        let block = json!({
            "apiVersion": "cairn.network/v1alpha1",
            "kind": "IPBlock",
            "metadata": {"name": name, "finalizers": ["cairn.network/block"]},
            "spec": {
                "cidr": cidr,
                "range": cairn_api::block_range(net),
                "pool": {"name": "pods", "uid": self.uid("ippools.cairn.network", "pods")},
                "node": {"name": node, "uid": uid},
            },
        });
        self.cluster.api.create(BLOCKS, None, block).expect("a block");
        let allocations: Vec<Value> = pods
            .iter()
            .map(|(address, pod)| json!({"address": address, "pod": pod, "container": "c0ffee"}))
            .collect();
        let status = json!({"status": {
            "used": pods.len().to_string(), "free": (64 - pods.len()).to_string(),
            "advertised": true, "allocations": allocations,
        }});
        self.cluster.api.patch_status(BLOCKS, None, &name, &status).expect("a status");
    }

    pub fn block(&self, cidr: &str, node: &str, pods: &[(&str, &str)]) {
        self.block_of(cidr, node, &self.uid("nodes", node), pods);
    }

    pub fn pod(&self, name: &str, node: &str, address: &str) {
        let pod = json!({
            "apiVersion": "v1", "kind": "Pod", "metadata": {"name": name, "namespace": "default"},
            "spec": {"nodeName": node, "containers": [{"name": "c", "image": "i"}]},
        });
        self.cluster.api.create("pods", Some("default"), pod).expect("a pod");
        let status = json!({"status": {
            "phase": "Running", "podIP": address, "podIPs": [{"ip": address}],
        }});
        self.cluster.api.patch_status("pods", Some("default"), name, &status).expect("a status");
    }

    /// A Lease written some seconds ago, with a promise of 100 s.
    pub fn lease(&self, node: &str, holder: &str, age_secs: i64) {
        let at = Timestamp::from_second(Timestamp::now().as_second() - age_secs).expect("a time");
        let lease = json!({
            "apiVersion": "coordination.k8s.io/v1", "kind": "Lease",
            "metadata": {"name": format!("cairn-node-{node}")},
            "spec": {
                "holderIdentity": holder,
                "leaseDurationSeconds": 100,
                "renewTime": format!("{at:.6}"),
            },
        });
        self.cluster.api.create(LEASES, SYSTEM, lease).expect("a Lease");
    }

    /// Says in the Lease from whom its holder took it over.
    pub fn taken_over(&self, node: &str, from: &str) {
        let patch = json!({"metadata": {"annotations": {"cairn.network/taken-over-from": from}}});
        let name = format!("cairn-node-{node}");
        self.cluster.api.patch(LEASES, SYSTEM, &name, PatchType::Merge, &patch).expect("patched");
    }

    /// A Node with a Lease that its agent wrote some seconds ago.
    pub fn agent(&self, node: &str, age_secs: i64) -> String {
        let object = self.cluster.api.get("nodes", None, node).expect("a Node");
        let boot = object["status"]["nodeInfo"]["bootID"].as_str().unwrap_or("b1").to_owned();
        let holder = format!("{}/{boot}", self.uid("nodes", node));
        self.lease(node, &holder, age_secs);
        holder
    }

    /// Runs a command while somebody writes the object all the time, far more often than the command
    /// asks.
    pub fn run_beside_writes(
        &self,
        (resource, namespace, name): (&str, Option<&str>, &str),
        words: &[&str],
    ) -> Said {
        let api = &self.cluster.api;
        api.delay_requests(Duration::from_millis(100));
        let ended = AtomicBool::new(false);
        let said = std::thread::scope(|scope| {
            scope.spawn(|| {
                for number in 0.. {
                    if ended.load(Ordering::Relaxed) {
                        break;
                    }
                    let patch = json!({"metadata": {"annotations": {"n": number.to_string()}}});
                    api.patch(resource, namespace, name, PatchType::Merge, &patch)
                        .expect("written");
                    std::thread::sleep(Duration::from_millis(2));
                }
            });
            let said = self.run(words);
            ended.store(true, Ordering::Relaxed);
            said
        });
        api.delay_requests(Duration::ZERO);
        said
    }

    pub fn mark(&self, node: &str) -> Value {
        let name = format!("cairn-node-{node}");
        let lease = self.cluster.api.get(LEASES, SYSTEM, &name).expect("a Lease");
        lease["metadata"]["annotations"]["cairn.network/machine-off"].clone()
    }

    pub fn has_block(&self, name: &str) -> bool {
        self.cluster.blocks().iter().any(|block| block["metadata"]["name"] == name)
    }
}

impl From<Output> for Said {
    fn from(output: Output) -> Said {
        let text = |bytes: Vec<u8>| String::from_utf8(bytes).expect("text");
        Said { code: output.status.code(), text: text(output.stdout), errors: text(output.stderr) }
    }
}
