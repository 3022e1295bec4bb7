//! The embedded API server of a node's cluster, in that node's namespace.

use std::net::TcpListener;
use std::thread::JoinHandle;

use cairn_kernel::NetNs;
use cairn_lab::apiserver::{ApiServer, Options};
use serde_json::{Value, json};
use tokio::sync::oneshot;

use super::node::{NODE, NODE6, Pool};
use super::seen::on;

/// A server with Cairn's definitions, one Node and its pools, on a thread of its own until it is dropped.
#[derive(Debug)]
pub struct Cluster {
    /// What a client is told.
    pub kubeconfig: Value,
    stop: Option<oneshot::Sender<()>>,
    thread: Option<JoinHandle<()>>,
}

impl Cluster {
    /// Starts it.
    ///
    /// # Panics
    /// When it does not start.
    pub fn start(netns: &NetNs, node: &str, pools: &[Pool<'_>]) -> Cluster {
        let api = ApiServer::new(Options::default());
        let create = |resource: &str, object: Value| {
            api.create(resource, None, object).unwrap_or_else(|refusal| panic!("{refusal}"));
        };
        for definition in cairn_api::crds() {
            let definition = serde_json::to_value(definition).expect("a definition is JSON");
            create("customresourcedefinitions.apiextensions.k8s.io", definition);
        }
        create("namespaces", json!({"metadata": {"name": "cairn-system"}}));
        create("nodes", json!({"apiVersion": "v1", "kind": "Node", "metadata": {"name": node}}));
        let boot_id = std::fs::read_to_string("/proc/sys/kernel/random/boot_id");
        let address = |text: &str| json!({"type": "InternalIP", "address": text});
        let status = json!({"status": {
            "addresses": [address(NODE), address(NODE6)],
            "nodeInfo": {
                "architecture": "", "bootID": boot_id.expect("a boot id").trim(),
                "containerRuntimeVersion": "", "kernelVersion": "", "kubeProxyVersion": "",
                "kubeletVersion": "", "machineID": "", "operatingSystem": "", "osImage": "",
                "systemUUID": "",
            },
        }});
        api.patch_status("nodes", None, node, &status).expect("a status");
        for Pool { name, cidr, block_size } in pools {
            let object = json!({
                "apiVersion": "cairn.network/v1alpha1", "kind": "IPPool",
                "metadata": {"name": name}, "spec": {"cidr": cidr, "blockSize": block_size},
            });
            create("ippools.cairn.network", object);
        }
        let listener = on(netns, || TcpListener::bind("127.0.0.1:0").expect("a free port"));
        let server = format!("http://{}", listener.local_addr().expect("an address"));
        let (stop, stopped) = oneshot::channel();
        let thread = std::thread::spawn(move || {
            let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
            runtime.expect("a runtime").block_on(async move {
                let serving = api.serve(listener).expect("it serves");
                // An error is the other end that was dropped.
                let _ = stopped.await;
                serving.stop().await;
            });
        });
        let kubeconfig = json!({
            "apiVersion": "v1", "kind": "Config", "current-context": "c",
            "clusters": [{"name": "c", "cluster": {"server": server}}],
            "contexts": [{"name": "c", "context": {"cluster": "c", "user": "u"}}],
            "users": [{"name": "u", "user": {}}],
        });
        Cluster { kubeconfig, stop: Some(stop), thread: Some(thread) }
    }
}

impl Drop for Cluster {
    fn drop(&mut self) {
        drop(self.stop.take());
        if let Some(thread) = self.thread.take() {
            // It fails only by a panic, which has been printed.
            let _ = thread.join();
        }
    }
}
