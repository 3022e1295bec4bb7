//! Nodes' IPAM in one process against an API server, embedded or real. The pods of a node are an
//! address book without a kernel.

#![allow(dead_code, reason = "each test file uses a part of it")]

pub mod in_process;
pub mod proxy;

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use cairn_agent::ipam::{
    self, Clock, Heard, Holdings, IpamChannels, IpamOptions, Storage, Witness,
};
use cairn_agent::pods::Usage;
use cairn_agent::view::ClusterView;
use cairn_agent::watch::{self as watches, WatchOptions};
use cairn_ipam::{
    AddressBook, AddressRequest, AssignError, AttachmentId, Choice, Demand, Family, Rules,
};
use cairn_lab::apiserver::PatchType;
use cairn_tests::kube::Api;
use futures::future::BoxFuture;
use ipnet::IpNet;
use kube::Client;
use serde_json::{Value, json};
use tokio::sync::watch;
use tokio::task::JoinSet;

use proxy::Proxy;

pub const BLOCKS: &str = "ipblocks.cairn.network";
pub const POOLS: &str = "ippools.cairn.network";

/// A cluster with Cairn's definitions.
pub struct Cluster(cairn_tests::kube::Cluster);

impl std::ops::Deref for Cluster {
    type Target = cairn_tests::kube::Cluster;

    fn deref(&self) -> &Self::Target {
        &self.0
    }
}

impl Cluster {
    /// On the API server that the test is to run against.
    pub async fn start(api: Api) -> Cluster {
        Cluster(cairn_tests::kube::Cluster::start(api).await)
    }

    /// On the embedded API server.
    pub fn new() -> Cluster {
        Cluster(cairn_tests::kube::Cluster::embedded())
    }

    pub fn pool(&self, name: &str, cidr: &str, block_size: u8) {
        self.pool_with(name, json!({"cidr": cidr, "blockSize": block_size}));
    }

    pub fn pool_with(&self, name: &str, spec: Value) {
        let pool = json!({
            "apiVersion": "cairn.network/v1alpha1",
            "kind": "IPPool",
            "metadata": {"name": name},
            "spec": spec,
        });
        self.server.create(POOLS, None, pool).expect("a pool");
    }

    pub fn node(&self, name: &str, boot_id: &str) {
        self.node_with(name, json!({}));
        self.boot(name, boot_id, name);
    }

    /// A Node that no machine has registered for.
    pub fn node_with(&self, name: &str, spec: Value) {
        let node = json!({
            "apiVersion": "v1",
            "kind": "Node",
            "metadata": {"name": name},
            "spec": spec,
        });
        self.server.create("nodes", None, node).expect("a Node");
    }

    /// What kubelet says of the machine that it runs on.
    pub fn boot(&self, name: &str, boot_id: &str, machine: &str) {
        let uuid = format!("uuid-of-{machine}");
        let status = json!({"status": {
            "conditions": [{"type": "Ready", "status": "True"}],
            "nodeInfo": {
                "architecture": "", "bootID": boot_id, "containerRuntimeVersion": "",
                "kernelVersion": "", "kubeProxyVersion": "", "kubeletVersion": "",
                "machineID": machine, "operatingSystem": "", "osImage": "", "systemUUID": uuid,
            },
        }});
        self.server.patch_status("nodes", None, name, &status).expect("a status");
    }

    /// What the node controller says of its kubelet.
    pub fn ready(&self, name: &str, status: &str) {
        let status = json!({"status": {"conditions": [{"type": "Ready", "status": status}]}});
        self.server.patch_status("nodes", None, name, &status).expect("a status");
    }

    pub fn cordon(&self, name: &str, cordoned: bool) {
        let spec = json!({"spec": {"unschedulable": cordoned}});
        self.server.patch("nodes", None, name, PatchType::Merge, &spec).expect("a spec");
    }

    pub fn change_pool(&self, name: &str, spec: Value) {
        let patch = json!({"spec": spec});
        self.server.patch(POOLS, None, name, PatchType::Merge, &patch).expect("a pool");
    }

    /// Deletes a block whatever holds it, as `kubectl delete` and an edit of the finalizers do.
    pub fn remove_by_force(&self, cidr: IpNet) {
        let name = cairn_api::block_name(cidr);
        self.server.delete(BLOCKS, None, &name).expect("deleted");
        let bare = json!({"metadata": {"finalizers": []}});
        // The owner may have been first.
        let _ = self.server.patch(BLOCKS, None, &name, PatchType::Merge, &bare);
    }

    pub fn object(&self, cidr: IpNet) -> Option<Value> {
        self.blocks().into_iter().find(|block| block["spec"]["cidr"] == cidr.to_string())
    }

    pub fn owner(&self, cidr: IpNet) -> Option<String> {
        Some(self.object(cidr)?["spec"]["node"]["name"].as_str()?.to_owned())
    }

    /// The object's UID: `None` while there is no object.
    pub fn uid(&self, cidr: IpNet) -> Option<String> {
        Some(self.object(cidr)?["metadata"]["uid"].as_str()?.to_owned())
    }

    /// Whether `node` owns another object of the block than the one of this UID, in one look.
    pub fn is_new_of(&self, node: &str, cidr: IpNet, uid: &Option<String>) -> bool {
        self.object(cidr).is_some_and(|block| {
            block["spec"]["node"]["name"] == node
                && block["metadata"]["uid"].as_str() != uid.as_deref()
        })
    }

    pub fn lease_version(&self, node: &str) -> Option<Value> {
        let name = format!("cairn-node-{node}");
        let lease = self.server.get("leases.coordination.k8s.io", Some("cairn-system"), &name);
        Some(lease.ok()?["metadata"]["resourceVersion"].clone())
    }

    /// Peers drop the routes of a node that is gone at once: nothing to wait for but the fence.
    pub fn without_graceful_restart(&self) {
        let configuration = json!({
            "apiVersion": "cairn.network/v1alpha1",
            "kind": "BGPConfiguration",
            "metadata": {"name": "default"},
            "spec": {"gracefulRestart": {"enabled": false}},
        });
        self.server
            .create("bgpconfigurations.cairn.network", None, configuration)
            .expect("a BGPConfiguration");
    }

    pub fn blocks(&self) -> Vec<Value> {
        self.server.list(BLOCKS, None, "").expect("blocks")
    }
}

/// A node's IPAM and its pods.
pub struct Node {
    pub tasks: JoinSet<()>,
    pub book: Arc<Mutex<AddressBook>>,
    pub usage: watch::Sender<Usage>,
    pub routes: watch::Sender<Arc<BTreeSet<IpNet>>>,
    /// What its peers announce.
    pub peers: Arc<Peers>,
    pub views: watch::Receiver<Arc<ClusterView>>,
    pub holdings: watch::Receiver<Arc<Holdings>>,
    /// While set the pods do not hear of blocks.
    pub deaf: Arc<AtomicBool>,
    /// While set the pods hear of blocks but nobody hears of the pods.
    pub mute: Arc<AtomicBool>,
}

/// How a node starts.
pub struct Setup<'a> {
    pub name: &'a str,
    pub boot_id: &'a str,
    pub offline: Duration,
    pub idle_release: Option<Duration>,
    /// What the kernel says that pods hold.
    pub adopted: Vec<(AttachmentId, Vec<IpAddr>)>,
    pub client: Client,
}

/// What a node has besides the API server.
#[derive(Clone, Default)]
pub struct Surroundings {
    /// What outlives the process.
    pub memory: Memory,
    /// What peers announce.
    pub peers: Arc<Peers>,
    /// The last good view of an earlier process.
    pub restored: Option<ClusterView>,
    /// Its clock; the kernel's when absent.
    pub clock: Option<Clock>,
}

impl Node {
    pub fn start(cluster: &Cluster, name: &str, boot_id: &str, offline: Duration) -> Node {
        let client = cluster.client();
        Node::set_up(Setup { name, boot_id, offline, idle_release: None, adopted: vec![], client })
    }

    /// A node whose calls go through `proxy`.
    pub fn behind(proxy: &Proxy, name: &str, boot_id: &str, offline: Duration) -> Node {
        let client = proxy.client();
        Node::set_up(Setup { name, boot_id, offline, idle_release: None, adopted: vec![], client })
    }

    pub fn set_up(setup: Setup<'_>) -> Node {
        Node::set_up_in(setup, Surroundings::default())
    }

    pub fn set_up_in(setup: Setup<'_>, surroundings: Surroundings) -> Node {
        let Surroundings { memory, peers, restored, clock } = surroundings;
        let Setup { name, boot_id, offline, idle_release, adopted, client } = setup;
        let mut book = AddressBook::new(Duration::ZERO);
        for (id, addresses) in adopted {
            book.adopt(id, addresses);
        }
        let book = Arc::new(Mutex::new(book));
        let usage = watch::Sender::new(Usage::default());
        let routes = watch::Sender::new(Arc::new(BTreeSet::new()));
        let (told, holdings) = watch::channel(Arc::new(Holdings::default()));
        let options = IpamOptions {
            node: name.to_owned(),
            boot_id: boot_id.to_owned(),
            namespace: "cairn-system".to_owned(),
            offline,
            idle_release,
            rules: Rules::ALL,
            clock: clock.unwrap_or_else(Clock::boottime),
        };
        let relist = watch::Sender::new(0);
        let views = watches::start(
            &client,
            WatchOptions {
                node: name.to_owned(),
                namespace: "cairn-system".to_owned(),
                relist: relist.subscribe(),
                restored,
                rules: Rules::ALL,
            },
        );
        let channels = IpamChannels {
            view: views.clone(),
            usage: usage.subscribe(),
            routes: routes.subscribe(),
            witness: Arc::clone(&peers) as Arc<dyn Witness>,
            storage: Arc::new(memory),
            relist,
            drain: watch::channel(Default::default()).1,
            holdings: told,
        };
        let mut tasks = JoinSet::new();
        tasks.spawn(ipam::run(client, options, channels));
        let (deaf, mute) = (Arc::new(AtomicBool::new(false)), Arc::new(AtomicBool::new(false)));
        let (mut changes, pods, publish) = (holdings.clone(), Arc::clone(&book), usage.clone());
        let stops = [Arc::clone(&deaf), Arc::clone(&mute)];
        tasks.spawn(async move {
            let [deaf, mute] = stops;
            loop {
                released(&deaf).await;
                let blocks = changes.borrow_and_update().blocks.clone();
                pods.lock().expect("the book").set_blocks(blocks);
                if !mute.load(Ordering::Relaxed) {
                    publish.send_modify(|usage| {
                        let pods = pods.lock().expect("the book");
                        (usage.blocks, usage.outside) = (pods.usage(), pods.outside());
                        usage.exhausted.clear();
                    });
                }
                if changes.changed().await.is_err() {
                    return;
                }
            }
        });
        Node { tasks, book, usage, routes, peers, views, holdings, deaf, mute }
    }

    pub fn add(&self, pod: &str) -> Result<Vec<IpAddr>, AssignError> {
        let pools = self.pools();
        let request = AddressRequest { family: Family::V4, choice: Choice::Pools(pools) };
        let answer = self.book.lock().expect("the book").assign(&id(pod), &[request], since_boot());
        self.tell(answer.is_err());
        answer
    }

    /// As [`Node::add`], but nobody hears of it before [`Node::unmute`].
    pub fn add_quietly(&self, pod: &str) -> Result<Vec<IpAddr>, AssignError> {
        let request = AddressRequest { family: Family::V4, choice: Choice::Pools(self.pools()) };
        self.book.lock().expect("the book").assign(&id(pod), &[request], since_boot())
    }

    /// Every pool that is known, in order.
    fn pools(&self) -> Vec<String> {
        let holdings = self.holdings.borrow();
        let mut pools: Vec<String> = holdings.blocks.iter().map(|b| b.pool.clone()).collect();
        pools.extend(holdings.pools.iter().map(|pool| pool.name.clone()));
        pools.sort();
        pools.dedup();
        pools
    }

    pub fn del(&self, pod: &str) {
        self.book.lock().expect("the book").release(&id(pod), since_boot());
        self.tell(false);
    }

    /// Lets everybody hear of the pods again.
    pub fn unmute(&self) {
        self.mute.store(false, Ordering::Relaxed);
        self.tell(false);
    }

    fn tell(&self, exhausted: bool) {
        if self.mute.load(Ordering::Relaxed) {
            return;
        }
        self.usage.send_modify(|usage| {
            let pods = self.book.lock().expect("the book");
            (usage.blocks, usage.outside) = (pods.usage(), pods.outside());
            drop(pods);
            if exhausted {
                usage.exhausted.insert(Demand::Pools(Family::V4, self.pools()));
            }
        });
    }

    pub async fn until(&mut self, what: &str, holds: impl Fn(&Holdings) -> bool) -> Arc<Holdings> {
        let waited = self.holdings.wait_for(|holdings| holds(holdings));
        let seen = tokio::time::timeout(PATIENCE, waited).await;
        if let Ok(Ok(holdings)) = seen {
            return Arc::clone(&holdings);
        }
        drop(seen);
        panic!("{what}: {:#?}", self.holdings.borrow());
    }

    pub fn open(holdings: &Holdings) -> Vec<IpNet> {
        holdings.blocks.iter().filter(|block| block.hand_out).map(|block| block.cidr).collect()
    }

    pub async fn until_open(&mut self, count: usize) -> Vec<IpNet> {
        let holdings = self.until("open blocks", |h| Node::open(h).len() >= count).await;
        Node::open(&holdings)
    }
}

/// What the peers of a node announce.
#[derive(Debug, Default)]
pub struct Peers {
    routes: Mutex<BTreeMap<IpNet, bool>>,
    /// Sessions are down.
    deaf: AtomicBool,
}

impl Peers {
    pub fn set_deaf(&self, deaf: bool) {
        self.deaf.store(deaf, Ordering::Relaxed);
    }

    pub fn announce(&self, prefix: IpNet) {
        self.routes.lock().expect("the routes").insert(prefix, false);
    }

    /// With the node's own AS in the path.
    pub fn announce_looped(&self, prefix: IpNet) {
        self.routes.lock().expect("the routes").insert(prefix, true);
    }

    pub fn withdraw(&self, prefix: IpNet) {
        self.routes.lock().expect("the routes").remove(&prefix);
    }
}

impl Witness for Peers {
    fn why_deaf(&self, _lasting: Duration) -> BoxFuture<'static, Option<String>> {
        let deaf = self.deaf.load(Ordering::Relaxed);
        Box::pin(std::future::ready(deaf.then(|| "this node hears nobody".to_owned())))
    }

    fn heard(&self, cidr: IpNet) -> BoxFuture<'static, Vec<Heard>> {
        let routes = self.routes.lock().expect("the routes");
        let inside = routes.iter().filter(|(prefix, _)| cidr.contains(*prefix));
        let heard = inside.map(|(prefix, looped)| Heard {
            prefix: *prefix,
            peer: "tor1".into(),
            looped: *looped,
        });
        Box::pin(std::future::ready(heard.collect()))
    }
}

/// What a node keeps over a restart, in memory.
#[derive(Clone, Debug, Default)]
pub struct Memory(Arc<Mutex<BTreeMap<String, Vec<u8>>>>);

impl Storage for Memory {
    fn read(&self, name: &str) -> std::io::Result<Option<Vec<u8>>> {
        Ok(self.0.lock().expect("the documents").get(name).cloned())
    }

    fn write(&self, name: &str, document: &[u8]) -> std::io::Result<()> {
        self.0.lock().expect("the documents").insert(name.to_owned(), document.to_owned());
        Ok(())
    }
}

async fn released(stop: &AtomicBool) {
    while stop.load(Ordering::Relaxed) {
        tokio::time::sleep(Duration::from_millis(2)).await;
    }
}

pub fn since_boot() -> Duration {
    let now = rustix::time::clock_gettime(rustix::time::ClockId::Boottime);
    Duration::new(now.tv_sec as u64, now.tv_nsec as u32)
}

pub fn id(pod: &str) -> AttachmentId {
    AttachmentId { container_id: pod.to_owned(), ifname: "eth0".to_owned() }
}

pub async fn until(what: &str, holds: impl Fn() -> bool) {
    let waited = async {
        while !holds() {
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    };
    tokio::time::timeout(PATIENCE, waited).await.unwrap_or_else(|_| panic!("{what}"));
}

/// Longer than a watch that was cut takes to be checked by a list, 15 s.
pub const PATIENCE: Duration = Duration::from_secs(40);
pub const HOUR: Duration = Duration::from_secs(3600);
