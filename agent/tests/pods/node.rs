//! A node, its agent, and what a container runtime asks of them.

use std::io::{Read, Write};
use std::net::{IpAddr, TcpListener, TcpStream};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU32, Ordering};
use std::thread;
use std::time::Duration;

use cairn_agent::ipam::Clock;
use cairn_agent::pods::{
    self, NetworkOptions, PodConfig, Pods, PodsHandle, PodsOptions, Supply, Usage,
};
use cairn_agent::readiness::Verdict;
use cairn_cni::plugin::{Outcome, Patience};
use cairn_ipam::{AttachmentId, Family, OwnedBlock, PodPool, Rules};
use cairn_kernel::link::{self, DuplicateDetection};
use cairn_kernel::{NetNs, Netlink};
use serde_json::Value;
use tokio::task::JoinHandle;

use crate::runtime::Call;

/// A node of one test: a namespace and a run directory, both removed with the value.
pub struct Node {
    pub name: String,
    pub netns: NetNs,
    pub run_dir: PathBuf,
    pods: AtomicU32,
}

impl Node {
    pub fn create() -> Node {
        static NEXT: AtomicU32 = AtomicU32::new(0);
        assert!(
            rustix::process::geteuid().is_root(),
            "the tests of the pod network make network namespaces: run them as root"
        );
        let number = NEXT.fetch_add(1, Ordering::Relaxed);
        // Of one length: no name begins with another one, and by its beginning all of a node goes.
        let name = format!("cni-agent-{}-{number:03}", std::process::id());
        let netns = NetNs::create(&name).unwrap();
        let run_dir = std::env::temp_dir().join(&name);
        let node = Node { name, netns, run_dir, pods: AtomicU32::new(0) };
        let mut netlink = node.netlink();
        link::create_bridge(&mut netlink, "uplink").unwrap();
        let uplink = link::find(&mut netlink, "uplink").unwrap().unwrap().index;
        link::set_up(&mut netlink, uplink).unwrap();
        for address in ["192.0.2.1/24", "2001:db8::1/64"] {
            let address = address.parse().unwrap();
            link::add_address(&mut netlink, uplink, address, DuplicateDetection::Skip).unwrap();
        }
        node
    }

    pub fn netlink(&self) -> Netlink {
        Netlink::open_in(&self.netns).unwrap()
    }

    /// Makes a pod's namespace; it goes with the node.
    pub fn pod(&self) -> String {
        let number = self.pods.fetch_add(1, Ordering::Relaxed);
        let name = format!("{}-pod{number}", self.name);
        NetNs::create(&name).unwrap();
        name
    }

    /// Runs `test` on a runtime inside the node's namespace, as an agent runs.
    pub fn run<F: Future<Output = ()>>(&self, test: impl FnOnce() -> F + Send) {
        self.netns
            .run(|| {
                let runtime =
                    tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
                runtime.block_on(test());
            })
            .unwrap();
    }

    pub fn options(&self) -> PodsOptions {
        PodsOptions {
            run_dir: self.run_dir.clone(),
            network: NetworkOptions {
                cooldown: Duration::from_secs(30),
                address_wait: Duration::from_millis(400),
                announcement_wait: Duration::from_secs(1),
                clock: Clock::boottime(),
                rules: Rules::ALL,
            },
        }
    }

    /// One on whose node pods start.
    pub async fn agent(&self) -> Agent {
        let agent = self.new_agent().await;
        agent.handle.set_readiness(&Verdict::Ready);
        agent
    }

    pub async fn new_agent(&self) -> Agent {
        let (handle, pods) = Pods::start(self.options()).await.unwrap();
        let task = tokio::spawn(pods.run());
        Agent { handle, task }
    }

    /// One that serves one IPv4 block.
    pub async fn ready_agent(&self, cidr: &str) -> Agent {
        let agent = self.agent().await;
        agent.handle.set_config(config());
        agent.supply(vec![block(cidr)], vec![Family::V4]);
        agent
    }

    /// What a runtime asks of this node's agent.
    pub fn request(&self, command: &str, container: &str, netns: &str) -> Call {
        Call::new(&pods::socket_path(&self.run_dir), command, container, netns)
    }

    pub async fn call(&self, command: &str, container: &str, netns: &str) -> Outcome {
        self.spawn_call(command, container, netns).await.unwrap()
    }

    pub fn spawn_call(&self, command: &str, container: &str, netns: &str) -> JoinHandle<Outcome> {
        spawn(self.request(command, container, netns))
    }

    pub async fn add(&self, container: &str, netns: &str) -> Vec<IpAddr> {
        let outcome = self.call("ADD", container, &path_of(netns)).await;
        addresses(&outcome)
    }

    pub async fn del(&self, container: &str) {
        let outcome = self.call("DEL", container, "").await;
        assert_eq!(outcome, Outcome { output: None, success: true });
    }
}

impl Drop for Node {
    fn drop(&mut self) {
        for name in NetNs::names(&self.name).unwrap_or_default() {
            if let Err(error) = NetNs::delete(&name) {
                eprintln!("the namespace {name} stays behind: {error}");
            }
        }
        let _ = std::fs::remove_dir_all(&self.run_dir);
    }
}

pub struct Agent {
    pub handle: PodsHandle,
    pub task: JoinHandle<()>,
}

impl Agent {
    /// What has come of everything until now, which is told every 20 ms.
    pub async fn usage(&self) -> Usage {
        tokio::time::sleep(Duration::from_millis(50)).await;
        self.handle.usage().borrow().clone()
    }

    /// Blocks of the pool "default", or of "default6".
    pub fn supply(&self, blocks: Vec<OwnedBlock>, families: Vec<Family>) {
        let pool = |(name, cidr): (&str, &str)| PodPool {
            name: name.into(),
            cidr: cidr.parse().unwrap(),
            namespaces: None,
            unusable: None,
        };
        let all = [("default", "10.244.0.0/16"), ("default6", "fd00::/48")].map(pool);
        let pools =
            all.into_iter().filter(|p| families.contains(&Family::of_net(p.cidr))).collect();
        self.handle.set_supply(Supply { blocks, families, pools, ..Supply::default() });
    }

    pub async fn used(&self) -> u64 {
        self.usage().await.blocks.iter().map(|block| block.used).sum()
    }

    pub async fn wait(&self, what: &str, until: impl Fn(&Usage) -> bool) {
        let mut usage = self.handle.usage();
        let reached = tokio::time::timeout(Duration::from_secs(10), usage.wait_for(until)).await;
        assert!(reached.is_ok(), "{what}: {:?}", self.handle.usage().borrow());
    }

    pub async fn stop(self) {
        self.task.abort();
        let _ = self.task.await;
    }
}

pub fn path_of(netns: &str) -> String {
    Path::new(cairn_kernel::netns::NETNS_DIR).join(netns).display().to_string()
}

pub fn config() -> PodConfig {
    PodConfig {
        node_addresses: vec!["192.0.2.1".parse().unwrap(), "2001:db8::1".parse().unwrap()],
        mtu: 1400,
    }
}

pub fn block(cidr: &str) -> OwnedBlock {
    OwnedBlock {
        cidr: cidr.parse().unwrap(),
        pool: if cidr.contains(':') { "default6" } else { "default" }.into(),
        hand_out: true,
        until: Duration::MAX,
        revision: 0,
        newly_claimed: true,
    }
}

pub fn addresses(outcome: &Outcome) -> Vec<IpAddr> {
    assert!(outcome.success, "{outcome:?}");
    let result = outcome.output.as_ref().unwrap();
    let address = |ip: &Value| {
        let text = ip["address"].as_str().unwrap();
        text.split_once('/').unwrap().0.parse().unwrap()
    };
    result["ips"].as_array().unwrap().iter().map(address).collect()
}

pub fn id(container: &str) -> AttachmentId {
    AttachmentId { container_id: container.into(), ifname: "eth0".into() }
}

/// Runs the plugin's own code on a thread.
pub fn spawn(call: Call) -> JoinHandle<Outcome> {
    tokio::task::spawn_blocking(move || call.run_with(patience()))
}

/// Less than the plugin's own, as nothing here is slow.
pub fn patience() -> Patience {
    Patience {
        connect: Duration::from_secs(2),
        connect_del: Duration::from_millis(300),
        total: Duration::from_secs(20),
        ..Patience::default()
    }
}

/// Whether a process of the node reaches `address` in the pod.
pub fn reaches(node: &Node, pod: &str, address: IpAddr) {
    let pod = NetNs::open(pod).unwrap();
    let listener = pod.run(|| TcpListener::bind((address, 0)).unwrap()).unwrap();
    let to = listener.local_addr().unwrap();
    let serving = thread::spawn(move || {
        let (mut stream, _) = listener.accept().unwrap();
        stream.write_all(b"cairn").unwrap();
    });
    let text = node
        .netns
        .run(|| {
            let mut stream = TcpStream::connect_timeout(&to, Duration::from_secs(5)).unwrap();
            let mut text = String::new();
            stream.read_to_string(&mut text).unwrap();
            text
        })
        .unwrap();
    assert_eq!(text, "cairn");
    serving.join().unwrap();
}
