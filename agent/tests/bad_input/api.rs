//! An API server of a test's own, and the agent that uses it.

use std::net::TcpListener;
use std::path::PathBuf;
use std::process::Command;
use std::thread::JoinHandle;

use cairn_lab::apiserver::{ApiServer, Options};
use serde_json::{Value, json};
use tokio::sync::oneshot;

use crate::site::{Daemon, Site, cairn};

/// The address of the Node `n1`.
pub const NODE: &str = "192.0.2.1";

/// An API server in the site's namespace, with the definitions and the Node `n1`.
pub struct Cluster {
    pub api: ApiServer,
    kubeconfig: PathBuf,
    stop: Option<oneshot::Sender<()>>,
    thread: Option<JoinHandle<()>>,
}

impl Cluster {
    pub fn new(site: &Site) -> Cluster {
        let cluster = Cluster::without_definitions(site);
        cluster.define();
        cluster
    }

    pub fn without_definitions(site: &Site) -> Cluster {
        let api = ApiServer::new(Options::default());
        let create = |resource: &str, object: Value| {
            api.create(resource, None, object).expect("created");
        };
        create("namespaces", json!({"metadata": {"name": "cairn-system"}}));
        create("nodes", json!({"apiVersion": "v1", "kind": "Node", "metadata": {"name": "n1"}}));
        let boot_id = cairn_agent::ipam::boot_id().expect("a boot id");
        let status = json!({"status": {
            "addresses": [{"type": "InternalIP", "address": NODE}],
            "nodeInfo": {
                "architecture": "", "bootID": boot_id, "containerRuntimeVersion": "",
                "kernelVersion": "", "kubeProxyVersion": "", "kubeletVersion": "",
                "machineID": "", "operatingSystem": "", "osImage": "", "systemUUID": "",
            },
        }});
        api.patch_status("nodes", None, "n1", &status).expect("a status");
        let listener = site
            .netns
            .run(|| TcpListener::bind("127.0.0.1:0").expect("a free port"))
            .expect("entered");
        let address = listener.local_addr().expect("bound");
        let (stop, stopped) = oneshot::channel();
        let server = api.clone();
        let thread = std::thread::spawn(move || {
            let runtime =
                tokio::runtime::Builder::new_current_thread().enable_all().build().expect("runs");
            runtime.block_on(async move {
                let serving = server.serve(listener).expect("served");
                // An error is the sender's end, which is meant as well.
                let _ = stopped.await;
                serving.stop().await;
            });
        });
        let kubeconfig = site.write("kubeconfig", &cairn_lab_kubeconfig(&address.to_string()));
        Cluster { api, kubeconfig, stop: Some(stop), thread: Some(thread) }
    }

    pub fn define(&self) {
        for crd in cairn_api::crds() {
            let crd = serde_json::to_value(crd).expect("a CRD is JSON");
            self.api
                .create("customresourcedefinitions.apiextensions.k8s.io", None, crd)
                .expect("created");
        }
    }

    pub fn pool(&self, name: &str, cidr: &str, block_size: u8) {
        let pool = json!({
            "apiVersion": "cairn.network/v1alpha1",
            "kind": "IPPool",
            "metadata": {"name": name},
            "spec": {"cidr": cidr, "blockSize": block_size},
        });
        self.api.create("ippools.cairn.network", None, pool).expect("a pool");
    }

    pub fn agent(&self, site: &Site) -> Daemon {
        let log = format!("agent-{}", site.name);
        site.start(&log, self.agent_command(site, "n1"))
    }

    /// `cairn agent`, whose run directory is `agent`.
    pub fn agent_command(&self, site: &Site, node: &str) -> Command {
        let mut command = cairn(["agent", "--node-name", node]);
        command.arg("--kubeconfig").arg(&self.kubeconfig);
        command.arg("--run-dir").arg(site.path("agent"));
        command
    }

    pub fn blocks(&self) -> Vec<Value> {
        self.api.list("ipblocks.cairn.network", None, "").expect("blocks")
    }
}

impl Drop for Cluster {
    fn drop(&mut self) {
        drop(self.stop.take());
        if let Some(thread) = self.thread.take() {
            // It only fails by a panic, which has been printed.
            let _ = thread.join();
        }
    }
}

fn cairn_lab_kubeconfig(address: &str) -> String {
    format!(
        "apiVersion: v1\nkind: Config\ncurrent-context: c\n\
         clusters: [{{name: c, cluster: {{server: \"http://{address}\"}}}}]\n\
         contexts: [{{name: c, context: {{cluster: c, user: u}}}}]\n\
         users: [{{name: u, user: {{}}}}]\n"
    )
}
