//! How long a node waits for its first block: the IPAM of many nodes against one API server.

use std::collections::BTreeMap;
use std::io;
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use cairn_agent::ipam::{self, Clock, Holdings, IpamChannels, IpamOptions, NoWitness, Storage};
use cairn_agent::pods::Usage;
use cairn_agent::view::ClusterView;
use cairn_agent::watch::{self as watches, WatchOptions};
use cairn_ipam::Rules;
use cairn_tests::kube::{Api, Cluster};
use kube::Client;
use tokio::sync::watch;
use tokio::task::JoinSet;

use super::{Line, objects, percentile};
use crate::{Extent, Result};

pub fn measure(extent: Extent, api: Api) -> Result<Vec<Line>> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    runtime.block_on(measure_claims(extent, api))
}

async fn measure_claims(extent: Extent, api: Api) -> Result<Vec<Line>> {
    let cluster = Cluster::start(api).await;
    let server = cluster.server.clone();
    let nodes = extent.pick(100, 4);
    let create = move || -> Result<()> {
        server.create("ippools.cairn.network", None, objects::pool("default", "10.128.0.0/9"))?;
        for number in 0..3 * nodes {
            let (object, status) = objects::node(number, objects::address(number), BOOT_ID, 0);
            server.create("nodes", None, object)?;
            server.patch_status("nodes", None, &objects::name(number), &status)?;
        }
        Ok(())
    };
    tokio::task::spawn_blocking(move || create().map_err(|e| e.to_string())).await??;
    let which = match api {
        Api::Real => "kube-apiserver 1.36",
        Api::Embedded => "embedded API",
    };
    let mut alone = Vec::new();
    for number in 0..nodes {
        let node = Node::watching(&cluster.client(), number).await?;
        alone.push(node.first_block().await?);
    }
    let mut together = JoinSet::new();
    let mut waiting = Vec::new();
    for number in nodes..2 * nodes {
        waiting.push(Node::watching(&cluster.client(), number).await?);
    }
    let started = Instant::now();
    for node in waiting {
        together.spawn(async move { node.first_block().await.map_err(|e| e.to_string()) });
    }
    let mut at_once = Vec::new();
    while let Some(time) = together.join_next().await {
        at_once.push(time??);
    }
    let all = started.elapsed();
    Ok(vec![
        times(format!("first block of a node, {which}: alone"), alone),
        times(format!("first block of a node, {which}: {nodes} nodes at once"), at_once),
        Line::new("  until all of them have one", format!("{:.2} s", all.as_secs_f64()), ""),
    ])
}

fn times(what: String, mut times: Vec<f64>) -> Line {
    times.sort_by(f64::total_cmp);
    let (p50, p99) = (percentile(&times, 50), percentile(&times, 99));
    Line::new(what, format!("p50 {:.1} ms, p99 {:.1} ms", p50 * 1e3, p99 * 1e3), "")
}

/// A node whose watches have listed everything.
struct Node {
    client: Client,
    name: String,
    views: watch::Receiver<Arc<ClusterView>>,
    relist: watch::Sender<u64>,
}

impl Node {
    async fn watching(client: &Client, number: usize) -> Result<Node> {
        let relist = watch::Sender::new(0);
        let name = objects::name(number);
        let options = WatchOptions {
            node: name.clone(),
            namespace: "cairn-system".to_owned(),
            relist: relist.subscribe(),
            restored: None,
            rules: Rules::ALL,
        };
        let mut views = watches::start(client, options);
        views.wait_for(|view| view.synced).await?;
        Ok(Node { client: client.clone(), name, views, relist })
    }

    /// The seconds from the IPAM's start to the first open block: Lease, claim, verification.
    async fn first_block(self) -> Result<f64> {
        let usage = watch::Sender::new(Usage::default());
        let routes = watch::Sender::new(Arc::default());
        let (holdings, mut held) = watch::channel(Arc::new(Holdings::default()));
        let options = IpamOptions {
            node: self.name,
            boot_id: BOOT_ID.to_owned(),
            namespace: "cairn-system".to_owned(),
            offline: Duration::from_secs(8 * 3600),
            idle_release: None,
            rules: Rules::ALL,
            clock: Clock::boottime(),
        };
        let channels = IpamChannels {
            view: self.views,
            usage: usage.subscribe(),
            routes: routes.subscribe(),
            witness: Arc::new(NoWitness),
            storage: Arc::new(Memory::default()),
            relist: self.relist,
            drain: watch::channel(Default::default()).1,
            holdings,
        };
        let started = Instant::now();
        let running = tokio::spawn(ipam::run(self.client, options, channels));
        let open = |held: &Arc<Holdings>| held.blocks.iter().any(|block| block.hand_out);
        let waited = tokio::time::timeout(PATIENCE, held.wait_for(open)).await;
        let time = started.elapsed();
        running.abort();
        drop((waited??, usage, routes));
        Ok(time.as_secs_f64())
    }
}

#[derive(Debug, Default)]
struct Memory(Mutex<BTreeMap<String, Vec<u8>>>);

impl Storage for Memory {
    fn read(&self, name: &str) -> io::Result<Option<Vec<u8>>> {
        let documents = self.0.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
        Ok(documents.get(name).cloned())
    }

    fn write(&self, name: &str, document: &[u8]) -> io::Result<()> {
        let mut documents = self.0.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
        documents.insert(name.to_owned(), document.to_vec());
        Ok(())
    }
}

const BOOT_ID: &str = "7a0c2e52-7b0a-4a52-9f0e-6b1f5f0f8d11";
const PATIENCE: Duration = Duration::from_secs(60);
