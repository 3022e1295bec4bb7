//! The cluster's objects: the embedded API server of the lab and what the lab puts into it.

use std::collections::BTreeMap;
use std::net::{Ipv4Addr, SocketAddr, TcpListener};
use std::thread::JoinHandle;

use cairn_api::{
    AsTopology, BGPConfiguration, BGPConfigurationSpec, BGPNodeStatus, BGPPeer, IPBlock, IPPool,
    LABEL_ASN, Topology,
};
use cairn_kernel::NetNs;
use ipnet::IpNet;
use k8s_openapi::api::coordination::v1::Lease;
use k8s_openapi::jiff::Timestamp;
use kube::Resource;
use serde::de::DeserializeOwned;
use serde_json::{Value, json};
use tokio::runtime::{Builder, Handle};
use tokio::sync::oneshot;

use crate::apiserver::{ApiError, ApiServer, Options, PatchType, Serving};
use crate::datacenter::layout::{POOLS, SINGLE_ASN};
use crate::datacenter::routers::{bfd, families, graceful_restart, timers};
use crate::datacenter::{Layout, Node, Rack};
use crate::error::Error;
use crate::options::{AsnPlan, Encap};
use crate::pod::{POD_NAMESPACE, Pod};

/// A running API server with its objects. Dropping it stops it.
pub struct Cluster {
    server: ApiServer,
    runtime: Handle,
    listeners: BTreeMap<String, Serving>,
    stop: Option<oneshot::Sender<()>>,
    thread: Option<JoinHandle<()>>,
}

/// A claimed block.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Block {
    /// The addresses.
    pub cidr: IpNet,
    /// The name of the node that owns them.
    pub node: String,
}

impl Cluster {
    /// Starts the API server on a thread of its own.
    ///
    /// # Errors
    /// [`Error::Io`] when the runtime or its thread cannot be started.
    pub fn start() -> Result<Cluster, Error> {
        let runtime =
            Builder::new_current_thread().enable_all().build().map_err(Error::io("start tokio"))?;
        let handle = runtime.handle().clone();
        let (stop, stopped) = oneshot::channel::<()>();
        let thread = std::thread::Builder::new()
            .name("apiserver".into())
            // A dropped sender means the end just as a sent message does.
            .spawn(move || drop(runtime.block_on(stopped)))
            .map_err(Error::io("start a thread"))?;
        let server = ApiServer::new(Options::default());
        Ok(Cluster {
            server,
            runtime: handle,
            listeners: BTreeMap::new(),
            stop: Some(stop),
            thread: Some(thread),
        })
    }

    /// Serves inside a machine, where its agent looks for it.
    ///
    /// # Errors
    /// [`Error::Io`] or [`Error::Kernel`] when there can be no listener.
    pub fn serve_in(&mut self, machine: &str, netns: &NetNs) -> Result<(), Error> {
        let what = format!("the API server's listener in {machine}");
        let listener = netns
            .run(|| TcpListener::bind((Ipv4Addr::LOCALHOST, API_PORT)))
            .map_err(Error::kernel(what.clone()))?
            .map_err(Error::io(format!("open {what}")))?;
        self.serve(machine, listener).map(drop)
    }

    /// Serves on this machine's loopback, for kubectl; returns where.
    ///
    /// # Errors
    /// [`Error::Io`] when there can be no listener.
    pub fn serve_host(&mut self) -> Result<SocketAddr, Error> {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0))
            .map_err(Error::io("open the API server's listener"))?;
        self.serve("", listener)
    }

    /// Stops serving inside a machine that is gone.
    pub fn leave(&mut self, machine: &str) {
        self.listeners.remove(machine);
    }

    fn serve(&mut self, machine: &str, listener: TcpListener) -> Result<SocketAddr, Error> {
        let _inside = self.runtime.enter();
        let serving = self.server.serve(listener).map_err(Error::io("serve the API"))?;
        let address = serving.address();
        self.listeners.insert(machine.into(), serving);
        Ok(address)
    }

    /// The server, to break.
    pub fn server(&self) -> &ApiServer {
        &self.server
    }

    /// Creates what an administrator and kubelets would: CRDs, namespace, nodes, pools, peers.
    ///
    /// # Errors
    /// [`Error::Api`] for the first object that is refused.
    pub fn populate(&self, layout: &Layout) -> Result<(), Error> {
        for crd in cairn_api::crds() {
            self.create("customresourcedefinitions.apiextensions.k8s.io", json!(crd))?;
        }
        self.create("namespaces", json!({"metadata": {"name": SYSTEM_NAMESPACE}}))?;
        let boot_id = std::fs::read_to_string(BOOT_ID)
            .map_err(Error::io(format!("read {BOOT_ID}")))?
            .trim()
            .to_owned();
        let configuration = BGPConfigurationSpec {
            asn: SINGLE_ASN,
            timers: timers(layout),
            graceful_restart: graceful_restart(layout),
            ..BGPConfigurationSpec::default()
        };
        let configuration = BGPConfiguration::new("default", configuration);
        self.create(&resource::<BGPConfiguration>(), json!(configuration))?;
        for (name, cidr, block_size) in POOLS {
            let v4 = !cidr.contains(':');
            if layout.versions().contains(&v4) {
                let spec = json!({
                    "cidr": cidr,
                    "blockSize": block_size,
                    "encapsulation": layout.encap.of_pool(v4),
                });
                self.create(&resource::<IPPool>(), pool(name, spec))?;
            }
        }
        for rack in &layout.racks {
            if layout.fabric_knows_pods() {
                self.create(&resource::<BGPPeer>(), peer(layout, rack))?;
            }
            for node in &rack.nodes {
                self.create("nodes", node_object(layout, rack, node))?;
                self.server
                    .patch_status("nodes", None, &node.name(), &node_status(layout, node, &boot_id))
                    .map_err(|error| refused("nodes", &node.name(), &error))?;
            }
        }
        Ok(())
    }

    /// The claimed blocks by address.
    ///
    /// # Errors
    /// [`Error::Api`] when a block cannot be read.
    pub fn blocks(&self) -> Result<Vec<Block>, Error> {
        let mut blocks = Vec::new();
        for block in self.list::<IPBlock>()? {
            let cidr = block.spec.cidr.parse().map_err(|error| {
                Error::Api(format!("the IPBlock {} has no CIDR: {error}", block.spec.cidr))
            })?;
            blocks.push(Block { cidr, node: block.spec.node.name });
        }
        blocks.sort_unstable();
        Ok(blocks)
    }

    /// Changes how packets of all pools travel, as an administrator would.
    ///
    /// # Errors
    /// [`Error::Api`] when a change is refused.
    pub fn encapsulate(&self, layout: &Layout, encap: Encap) -> Result<(), Error> {
        let resource = resource::<IPPool>();
        for (name, cidr, _) in POOLS {
            let v4 = !cidr.contains(':');
            if layout.versions().contains(&v4) {
                let patch = json!({"spec": {"encapsulation": encap.of_pool(v4)}});
                self.change(&resource, name, &patch)?;
            }
        }
        Ok(())
    }

    /// Changes how the nodes of an AS peer, as an administrator would.
    ///
    /// # Errors
    /// [`Error::Api`] when the change is refused.
    pub fn set_topology(&self, topology: Topology) -> Result<(), Error> {
        let patch = json!({"spec": {"topology": topology}});
        self.change(&resource::<BGPConfiguration>(), "default", &patch)
    }

    /// Puts a label on a node.
    ///
    /// # Errors
    /// [`Error::Api`] when the change is refused.
    pub fn label_node(&self, node: &str, label: &str, value: &str) -> Result<(), Error> {
        self.change("nodes", node, &json!({"metadata": {"labels": {label: value}}}))
    }

    /// Puts an annotation on a node, or takes it away.
    ///
    /// # Errors
    /// [`Error::Api`] when the change is refused.
    pub fn annotate_node(&self, node: &str, key: &str, value: Option<&str>) -> Result<(), Error> {
        self.change("nodes", node, &json!({"metadata": {"annotations": {key: value}}}))
    }

    fn change(&self, resource: &str, name: &str, patch: &Value) -> Result<(), Error> {
        let changed = self.server.patch(resource, None, name, PatchType::Merge, patch);
        changed.map(drop).map_err(|error| refused(resource, name, &error))
    }

    /// How the nodes of each AS peer, as the leader has recorded it.
    ///
    /// # Errors
    /// [`Error::Api`] when it cannot be read.
    pub fn topologies(&self) -> Result<Vec<AsTopology>, Error> {
        let configurations = self.list::<BGPConfiguration>()?;
        let statuses = configurations.into_iter().filter_map(|object| object.status);
        Ok(statuses.flat_map(|status| status.topologies).collect())
    }

    /// What the agents report of themselves.
    ///
    /// # Errors
    /// [`Error::Api`] when a report cannot be read.
    pub fn reports(&self) -> Result<Vec<BGPNodeStatus>, Error> {
        self.list()
    }

    /// Shows a pod that runs, as its kubelet would.
    ///
    /// # Errors
    /// [`Error::Api`] when the pod is refused.
    pub fn show(&self, pod: &Pod) -> Result<(), Error> {
        let refused = |error: ApiError| refused(PODS, &pod.name, &error);
        let namespace = Some(POD_NAMESPACE);
        self.server.create(PODS, namespace, pod_object(pod)).map_err(refused)?;
        self.server
            .patch_status(PODS, namespace, &pod.name, &pod_status(pod))
            .map(drop)
            .map_err(refused)
    }

    /// Deletes a pod's object, as Kubernetes does when its node is gone.
    pub fn hide(&self, pod: &Pod) {
        // One that is not there is fine.
        let _ = self.server.delete(PODS, Some(POD_NAMESPACE), &pod.name);
    }

    /// When a node last wrote its Lease: the fence counts from there, not from the node's end.
    ///
    /// # Errors
    /// [`Error::Api`] when there is no Lease that was written.
    pub fn renewed(&self, node: &str) -> Result<Timestamp, Error> {
        let name = format!("{LEASE_PREFIX}{node}");
        let (resource, namespace) = (resource::<Lease>(), Some(SYSTEM_NAMESPACE));
        let lease = self.server.get(&resource, namespace, &name);
        let lease = lease.map_err(|error| refused(&resource, &name, &error))?;
        let lease: Lease = serde_json::from_value(lease)
            .map_err(|error| Error::Api(format!("{resource}: {error}")))?;
        let renewed = lease.spec.and_then(|spec| spec.renew_time);
        renewed.map(|time| time.0).ok_or_else(|| Error::Api(format!("{name} was never renewed")))
    }

    /// Deletes an object; one that is not there is fine.
    ///
    /// # Errors
    /// [`Error::Api`].
    pub fn delete(&self, resource: &str, name: &str) -> Result<(), Error> {
        match self.server.delete(resource, None, name) {
            Err(error) if self.server.get(resource, None, name).is_ok() => {
                Err(refused(resource, name, &error))
            }
            _ => Ok(()),
        }
    }

    fn create(&self, resource: &str, object: Value) -> Result<(), Error> {
        let name = object["metadata"]["name"].as_str().unwrap_or_default().to_owned();
        self.server
            .create(resource, None, object)
            .map(drop)
            .map_err(|error| refused(resource, &name, &error))
    }

    fn list<K: DeserializeOwned + Resource<DynamicType = ()>>(&self) -> Result<Vec<K>, Error> {
        let name = resource::<K>();
        let objects =
            self.server.list(&name, None, "").map_err(|error| refused(&name, "", &error))?;
        let parse = |object| {
            serde_json::from_value(object).map_err(|error| Error::Api(format!("{name}: {error}")))
        };
        objects.into_iter().map(parse).collect()
    }
}

impl Drop for Cluster {
    fn drop(&mut self) {
        self.listeners.clear();
        drop(self.stop.take());
        if let Some(thread) = self.thread.take() {
            // The thread only fails by a panic, which has been printed.
            let _ = thread.join();
        }
    }
}

/// What kubectl and the agents read to find the server at `address`.
pub fn kubeconfig(address: impl std::fmt::Display) -> String {
    format!(
        "apiVersion: v1\nkind: Config\ncurrent-context: lab\n\
         clusters:\n- name: lab\n  cluster:\n    server: http://{address}\n\
         contexts:\n- name: lab\n  context:\n    cluster: lab\n    user: lab\n\
         users:\n- name: lab\n  user: {{}}\n"
    )
}

/// `plural.group` of a kind.
pub fn resource<K: Resource<DynamicType = ()>>() -> String {
    format!("{}.{}", K::plural(&()), K::group(&()))
}

fn refused(resource: &str, name: &str, error: &ApiError) -> Error {
    Error::Api(format!("{resource} {name}: {error}"))
}

fn pool(name: &str, spec: Value) -> Value {
    json!({
        "apiVersion": "cairn.network/v1alpha1",
        "kind": "IPPool",
        "metadata": {"name": name},
        "spec": spec,
    })
}

fn peer(layout: &Layout, rack: &Rack) -> Value {
    json!({
        "apiVersion": "cairn.network/v1alpha1",
        "kind": "BGPPeer",
        "metadata": {"name": rack.tor()},
        "spec": {
            "nodeSelector": {"matchLabels": {LABEL_ZONE: rack.zone()}},
            "address": rack.gateways()[0].to_string(),
            "asn": rack.tor_asn,
            "families": families(layout.families),
            "bfd": bfd(layout),
        },
    })
}

fn node_object(layout: &Layout, rack: &Rack, node: &Node) -> Value {
    let mut labels = BTreeMap::from([
        ("kubernetes.io/hostname", node.name()),
        ("kubernetes.io/os", "linux".into()),
        (LABEL_ZONE, rack.zone()),
    ]);
    if layout.asn == AsnPlan::Rack {
        labels.insert(LABEL_ASN, node.asn.to_string());
    }
    json!({
        "apiVersion": "v1",
        "kind": "Node",
        "metadata": {"name": node.name(), "labels": labels},
    })
}

fn node_status(layout: &Layout, node: &Node, boot_id: &str) -> Value {
    let mut addresses: Vec<Value> = (node.addresses().iter())
        .filter(|address| layout.speaks(address))
        .map(|address| json!({"type": "InternalIP", "address": address.to_string()}))
        .collect();
    addresses.push(json!({"type": "Hostname", "address": node.name()}));
    json!({"status": {
        "addresses": addresses,
        "conditions": [{
            "type": "Ready",
            "status": "True",
            "reason": "LabNode",
            "message": "a namespace of cairn lab",
        }],
        "nodeInfo": {
            "architecture": std::env::consts::ARCH,
            "bootID": boot_id,
            "containerRuntimeVersion": "",
            "kernelVersion": "",
            "kubeProxyVersion": "",
            "kubeletVersion": "",
            "machineID": "",
            "operatingSystem": "linux",
            "osImage": "cairn lab",
            "systemUUID": "",
        },
    }})
}

fn pod_object(pod: &Pod) -> Value {
    json!({
        "apiVersion": "v1",
        "kind": "Pod",
        "metadata": {"name": pod.name},
        "spec": {
            "nodeName": pod.node,
            "containers": [{"name": "none", "image": "none"}],
            // No kubelet would end it.
            "terminationGracePeriodSeconds": 0,
        },
    })
}

fn pod_status(pod: &Pod) -> Value {
    let addresses: Vec<Value> =
        pod.addresses.iter().map(|address| json!({"ip": address.to_string()})).collect();
    let first = pod.addresses.first().map(ToString::to_string);
    json!({"status": {"phase": "Running", "podIP": first, "podIPs": addresses}})
}

/// The port at which agents find the API server on their own loopback.
pub const API_PORT: u16 = 6443;
const SYSTEM_NAMESPACE: &str = "cairn-system";
/// What the names of the Leases begin with that agents write for their nodes.
const LEASE_PREFIX: &str = "cairn-node-";
const PODS: &str = "pods";
const LABEL_ZONE: &str = "topology.kubernetes.io/zone";
const BOOT_ID: &str = "/proc/sys/kernel/random/boot_id";
