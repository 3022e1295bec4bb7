//! What Kubernetes does besides: the node controller says which kubelets are not heard, and the pods of
//! a Node that is gone are deleted, which a kubelet that hears of it obeys.

use std::collections::BTreeMap;
use std::sync::Mutex;
use std::time::Duration;

use serde_json::json;
use tokio::time::Instant;

use super::faults::name_of;
use super::world::World;

/// What the controllers remember, by the Node's name.
#[derive(Debug, Default)]
pub struct Controllers(Mutex<Memory>);

#[derive(Debug, Default)]
struct Memory {
    /// When a kubelet was last heard.
    heard: BTreeMap<String, Instant>,
    /// Since when there is no such Node.
    gone: BTreeMap<String, Instant>,
}

impl World {
    /// One round of the controllers.
    pub fn control(&self) {
        let now = Instant::now();
        let mut memory = self.controllers.0.lock().expect("the controllers");
        let connected =
            |machine: &&super::machine::Machine| machine.is_on() && !machine.way.condition().cut;
        for machine in self.machines.iter().filter(connected) {
            let heard = memory.heard.insert(machine.node.clone(), now);
            if heard.is_none_or(|at| at.elapsed() >= KUBELET_SILENT / 2) {
                machine.show_pods();
            }
        }
        for node in self.server.list("nodes", None, "").expect("nodes") {
            let name = name_of(&node);
            memory.gone.remove(name);
            let heard = memory.heard.get(name).is_some_and(|at| at.elapsed() < KUBELET_SILENT);
            let ready = if heard { "True" } else { "Unknown" };
            if node["status"]["conditions"][0]["status"] != ready {
                let status =
                    json!({"status": {"conditions": [{"type": "Ready", "status": ready}]}});
                // A Node that goes at this moment has no condition any more.
                let _ = self.server.patch_status("nodes", None, name, &status);
            }
        }
        for machine in &self.machines {
            if self.server.get("nodes", None, &machine.node).is_ok() {
                continue;
            }
            let gone = *memory.gone.entry(machine.node.clone()).or_insert(now);
            if gone.elapsed() < PODS_OF_GONE {
                continue;
            }
            machine.forget_pods();
            if connected(&machine) {
                let running = machine.running().into_iter();
                running.for_each(|container| machine.end_pod(container, false));
            }
        }
    }
}

/// After so long a kubelet counts as silent: 40 s where a fence is hours.
const KUBELET_SILENT: Duration = Duration::from_secs(4);
/// After so long the pods of a Node that is gone are deleted: a minute where a fence is hours.
const PODS_OF_GONE: Duration = Duration::from_secs(3);
