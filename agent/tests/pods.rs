//! The node's pod network in network namespaces, asked by the plugin's own code over its socket.

use std::collections::{BTreeSet, HashSet};
use std::io::{Read, Write};
use std::net::{IpAddr, TcpListener, TcpStream};
use std::os::fd::AsFd;
use std::os::unix::fs::PermissionsExt;
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU32, Ordering};
use std::thread;
use std::time::Duration;

use cairn_agent::fib::Fib;
use cairn_agent::ipam::Clock;
use cairn_agent::pods::{
    self, NetworkOptions, PodConfig, Pods, PodsError, PodsHandle, PodsOptions, Supply, Usage,
};
use cairn_agent::readiness::Verdict;
use cairn_cni::plugin::{self, Outcome, Patience};
use cairn_cni::protocol::{self, AddRequest, ProtocolError, Request, Response, VERSION};
use cairn_cni::{Code, ContainerId, InterfaceName, PodIdentity};
use cairn_ipam::{AttachmentId, Family, OwnedBlock, PodPool, Rules};
use cairn_kernel::link::{self, DuplicateDetection};
use cairn_kernel::route::{self, NextHop, Route, Target};
use cairn_kernel::{NetNs, Netlink, POD_ROUTE_PROTOCOL, pod};
use ipnet::IpNet;
use serde_json::{Value, json};
use tokio::task::JoinHandle;

/// A node of one test: a namespace and a run directory, both removed with the value.
struct Node {
    name: String,
    netns: NetNs,
    run_dir: PathBuf,
    pods: AtomicU32,
}

impl Node {
    fn create() -> Node {
        static NEXT: AtomicU32 = AtomicU32::new(0);
        assert!(
            rustix::process::geteuid().is_root(),
            "the tests of the pod network make network namespaces: run them as root"
        );
        let number = NEXT.fetch_add(1, Ordering::Relaxed);
        let name = format!("cni-agent-{}-{number}", std::process::id());
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

    fn netlink(&self) -> Netlink {
        Netlink::open_in(&self.netns).unwrap()
    }

    /// Makes a pod's namespace; it goes with the node.
    fn pod(&self) -> String {
        let number = self.pods.fetch_add(1, Ordering::Relaxed);
        let name = format!("{}-pod{number}", self.name);
        NetNs::create(&name).unwrap();
        name
    }

    /// Runs `test` on a runtime inside the node's namespace, as an agent runs.
    fn run<F: Future<Output = ()>>(&self, test: impl FnOnce() -> F + Send) {
        self.netns
            .run(|| {
                let runtime =
                    tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
                runtime.block_on(test());
            })
            .unwrap();
    }

    fn options(&self) -> PodsOptions {
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
    async fn agent(&self) -> Agent {
        let agent = self.new_agent().await;
        agent.handle.set_readiness(&Verdict::Ready);
        agent
    }

    async fn new_agent(&self) -> Agent {
        let (handle, pods) = Pods::start(self.options()).await.unwrap();
        let task = tokio::spawn(pods.run());
        Agent { handle, task }
    }

    /// One that serves one IPv4 block.
    async fn ready_agent(&self, cidr: &str) -> Agent {
        let agent = self.agent().await;
        agent.handle.set_config(config());
        agent.supply(vec![block(cidr)], vec![Family::V4]);
        agent
    }

    /// Calls the plugin as a runtime does, on a thread.
    async fn call(&self, command: &str, container: &str, netns: &str) -> Outcome {
        self.spawn_call(command, container, netns).await.unwrap()
    }

    fn spawn_call(&self, command: &str, container: &str, netns: &str) -> JoinHandle<Outcome> {
        self.spawn_annotated(command, container, netns, json!({}))
    }

    /// With what the runtime tells of the pod's annotations.
    fn spawn_annotated(
        &self,
        command: &str,
        container: &str,
        netns: &str,
        annotations: Value,
    ) -> JoinHandle<Outcome> {
        let pod = format!("K8S_POD_NAMESPACE=default;K8S_POD_NAME=pod-{container}");
        self.spawn_named(command, container, netns, annotations, pod)
    }

    /// With how the runtime names the pod.
    fn spawn_named(
        &self,
        command: &str,
        container: &str,
        netns: &str,
        annotations: Value,
        pod: String,
    ) -> JoinHandle<Outcome> {
        let more = json!({
            "runtimeConfig": {"io.kubernetes.cri.pod-annotations": annotations},
        });
        self.spawn_whole(command, container, netns, more, pod)
    }

    /// With more in the network configuration.
    fn spawn_configured(
        &self,
        command: &str,
        container: &str,
        netns: &str,
        more: Value,
    ) -> JoinHandle<Outcome> {
        let pod = format!("K8S_POD_NAMESPACE=default;K8S_POD_NAME=pod-{container}");
        self.spawn_whole(command, container, netns, more, pod)
    }

    fn spawn_whole(
        &self,
        command: &str,
        container: &str,
        netns: &str,
        more: Value,
        pod: String,
    ) -> JoinHandle<Outcome> {
        let variables = [
            ("CNI_COMMAND", command.to_owned()),
            ("CNI_CONTAINERID", container.to_owned()),
            ("CNI_NETNS", netns.to_owned()),
            ("CNI_IFNAME", "eth0".to_owned()),
            ("CNI_ARGS", pod),
        ];
        let mut config = json!({
            "cniVersion": "1.1.0",
            "name": "cairn",
            "type": "cairn-cni",
            "socket": pods::socket_path(&self.run_dir),
        });
        config.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
        let patience = Patience {
            connect: Duration::from_secs(2),
            connect_del: Duration::from_millis(300),
            total: Duration::from_secs(20),
            ..Patience::default()
        };
        tokio::task::spawn_blocking(move || {
            let value = |name: &str| {
                variables.iter().find(|(known, _)| *known == name).map(|(_, v)| v.clone())
            };
            plugin::run(value, config.to_string().as_bytes(), patience)
        })
    }

    async fn add(&self, container: &str, netns: &str) -> Vec<IpAddr> {
        let outcome = self.call("ADD", container, &path_of(netns)).await;
        addresses(&outcome)
    }

    async fn del(&self, container: &str) {
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

struct Agent {
    handle: PodsHandle,
    task: JoinHandle<()>,
}

impl Agent {
    fn usage(&self) -> Usage {
        self.handle.usage().borrow().clone()
    }

    /// Blocks of the pool "default", or of "default6".
    fn supply(&self, blocks: Vec<OwnedBlock>, families: Vec<Family>) {
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

    fn used(&self) -> u64 {
        self.usage().blocks.iter().map(|block| block.used).sum()
    }

    async fn wait(&self, what: &str, until: impl Fn(&Usage) -> bool) {
        let mut usage = self.handle.usage();
        let reached = tokio::time::timeout(Duration::from_secs(10), usage.wait_for(until)).await;
        assert!(reached.is_ok(), "{what}: {:?}", self.usage());
    }

    async fn stop(self) {
        self.task.abort();
        let _ = self.task.await;
    }
}

fn path_of(netns: &str) -> String {
    Path::new(cairn_kernel::netns::NETNS_DIR).join(netns).display().to_string()
}

fn config() -> PodConfig {
    PodConfig {
        node_addresses: vec!["192.0.2.1".parse().unwrap(), "2001:db8::1".parse().unwrap()],
        mtu: 1400,
    }
}

fn block(cidr: &str) -> OwnedBlock {
    OwnedBlock {
        cidr: cidr.parse().unwrap(),
        pool: if cidr.contains(':') { "default6" } else { "default" }.into(),
        hand_out: true,
        until: Duration::MAX,
        revision: 0,
        newly_claimed: true,
    }
}

fn addresses(outcome: &Outcome) -> Vec<IpAddr> {
    assert!(outcome.success, "{outcome:?}");
    let result = outcome.output.as_ref().unwrap();
    let address = |ip: &Value| {
        let text = ip["address"].as_str().unwrap();
        text.split_once('/').unwrap().0.parse().unwrap()
    };
    result["ips"].as_array().unwrap().iter().map(address).collect()
}

fn failure(outcome: &Outcome) -> (u64, String) {
    assert!(!outcome.success, "{outcome:?}");
    let error = outcome.output.as_ref().unwrap();
    (error["code"].as_u64().unwrap(), error["msg"].as_str().unwrap().to_owned())
}

fn id(container: &str) -> AttachmentId {
    AttachmentId { container_id: container.into(), ifname: "eth0".into() }
}

/// Whether a process of the node reaches `address` in the pod.
fn reaches(node: &Node, pod: &str, address: IpAddr) {
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

#[test]
fn a_pod_gets_an_address_keeps_it_and_gives_it_back() {
    let node = Node::create();
    let (first, second) = (node.pod(), node.pod());
    node.run(|| async {
        let agent = node.agent().await;
        agent.handle.set_config(config());
        let blocks = vec![block("10.244.0.0/29"), block("fd00::/125")];
        agent.supply(blocks, vec![Family::V4, Family::V6]);
        let held = node.add("first", &first).await;
        let expected: [IpAddr; 2] = ["10.244.0.0".parse().unwrap(), "fd00::".parse().unwrap()];
        assert_eq!(held, expected);
        held.iter().for_each(|address| reaches(&node, &first, *address));
        assert_eq!(node.add("first", &first).await, held, "ADD again, the same answer");
        assert!(node.call("STATUS", "first", "").await.success);

        let usage = agent.usage();
        assert_eq!(usage.blocks[0].allocations, [(held[0], id("first"))]);
        assert_eq!(usage.blocks[1].used, 1);
        assert_eq!(usage.pods[&id("first")].to_string(), "default/pod-first");
        assert!(usage.exhausted.is_empty());

        let other = node.add("second", &second).await;
        assert!(other.iter().all(|address| !held.contains(address)), "{other:?}");
        node.del("first").await;
        node.del("first").await;
        node.del("never-heard-of").await;
        assert_eq!(agent.used(), 2);
        assert!(!agent.usage().pods.contains_key(&id("first")));
        assert_eq!(pod::list(&mut node.netlink()).unwrap().len(), 1);
        assert!(
            link::find(&mut Netlink::open_in(&NetNs::open(&first).unwrap()).unwrap(), "eth0")
                .unwrap()
                .is_none()
        );
        // The address that was freed last is given last.
        let next = node.add("third", &first).await;
        assert!(next.iter().all(|address| !held.contains(address)), "{next:?}");
        agent.stop().await;
    });
}

#[test]
fn a_pod_gets_the_address_that_its_annotation_asks_for_or_the_reason_why_not() {
    let node = Node::create();
    let (first, second) = (node.pod(), node.pod());
    node.run(|| async {
        let agent = node.ready_agent("10.244.0.0/29").await;
        let wish = || json!({"cairn.network/ips": "10.244.0.6", "example.com/other": "x"});
        let add = |container, netns: &str| {
            node.spawn_annotated("ADD", container, &path_of(netns), wish())
        };
        let held = addresses(&add("first", &first).await.unwrap());
        assert_eq!(held, ["10.244.0.6".parse::<IpAddr>().unwrap()]);
        reaches(&node, &first, held[0]);
        let (code, sentence) = failure(&add("second", &second).await.unwrap());
        assert_eq!(code, 11);
        assert!(sentence.contains("10.244.0.6 is in use by first/eth0"), "{sentence}");
        assert_eq!(agent.used(), 1);
        node.del("first").await;
        assert_eq!(addresses(&add("second", &second).await.unwrap()), held);
        agent.stop().await;
    });
}

#[test]
fn a_new_agent_finds_the_pods_of_the_old_one() {
    let node = Node::create();
    let (first, second, third) = (node.pod(), node.pod(), node.pod());
    node.run(|| async {
        let agent = node.ready_agent("10.244.0.0/29").await;
        let held = node.add("first", &first).await;
        let lost = node.add("second", &second).await;
        agent.stop().await;
        reaches(&node, &first, held[0]);

        // While no agent runs: an alias is cleared, a host route is deleted, a creation is cut off.
        let mut netlink = node.netlink();
        let listed = pod::list(&mut netlink).unwrap();
        let index = |container: &str| {
            let name = pod::host_interface_name(container, "eth0");
            listed.iter().find(|found| found.host_ifname == name).unwrap().ifindex
        };
        link::set_alias(&mut netlink, index("second"), "").unwrap();
        let route = Route {
            prefix: held[0].into(),
            table: route::TABLE_MAIN,
            metric: 0,
            protocol: POD_ROUTE_PROTOCOL,
            target: Target::Unicast(vec![NextHop::link(index("first"))]),
            prefsrc: None,
        };
        link::delete_route(&mut netlink, &route).unwrap();
        let half = pod::host_interface_name("half", "eth0");
        let pair = link::Veth {
            end: link::VethEnd::named(&half),
            peer: link::VethEnd::named("peer"),
            peer_netns: None,
            mtu: None,
        };
        link::create_veth(&mut netlink, &pair).unwrap();

        let agent = node.agent().await;
        assert!(link::find(&mut netlink, &half).unwrap().is_none(), "half-done ones are removed");
        assert_eq!(agent.usage().pods[&id("first")].to_string(), "default/pod-first");
        agent.handle.set_config(config());
        agent.supply(vec![block("10.244.0.0/29")], vec![Family::V4]);
        agent
            .wait("both addresses are known", |usage| {
                usage.blocks.first().is_some_and(|block| block.used == 2)
            })
            .await;
        let restored = async {
            while pod::list(&mut node.netlink())
                .unwrap()
                .iter()
                .any(|f| !f.missing_routes().is_empty())
            {
                tokio::time::sleep(Duration::from_millis(10)).await;
            }
        };
        tokio::time::timeout(Duration::from_secs(5), restored).await.unwrap();
        reaches(&node, &first, held[0]);

        let new = node.add("third", &third).await;
        assert!(new != held && new != lost, "{new:?}");
        assert_eq!(node.add("first", &first).await, held);
        assert_eq!(node.add("second", &second).await, lost, "known by its route, recorded again");
        reaches(&node, &second, lost[0]);
        for container in ["first", "second", "third"] {
            node.del(container).await;
        }
        assert_eq!(agent.used(), 0);
        assert!(pod::list(&mut netlink).unwrap().is_empty());
        assert_eq!(std::fs::read_dir(node.run_dir.join("pods")).unwrap().count(), 0);
        agent.stop().await;
    });
}

#[test]
fn an_interface_whose_alias_is_gone_is_freed_by_del() {
    let node = Node::create();
    let pod_name = node.pod();
    node.run(|| async {
        let agent = node.ready_agent("10.244.0.0/29").await;
        node.add("first", &pod_name).await;
        agent.stop().await;
        let mut netlink = node.netlink();
        let found = pod::list(&mut netlink).unwrap();
        link::set_alias(&mut netlink, found[0].ifindex, "rack 7").unwrap();
        let agent = node.ready_agent("10.244.0.0/29").await;
        agent
            .wait("the address is known", |usage| {
                usage.blocks.first().is_some_and(|block| block.used == 1)
            })
            .await;
        node.del("first").await;
        assert_eq!(agent.used(), 0);
        assert!(pod::list(&mut netlink).unwrap().is_empty());
        agent.stop().await;
    });
}

#[test]
fn a_full_block_is_waited_out_or_explained() {
    let node = Node::create();
    let pods: Vec<_> = (0..4).map(|_| node.pod()).collect();
    node.run(|| async {
        let agent = node.ready_agent("10.244.0.0/31").await;
        node.add("c0", &pods[0]).await;
        node.add("c1", &pods[1]).await;
        let waiting = node.spawn_call("ADD", "c2", &path_of(&pods[2]));
        agent.wait("a block is asked for", |usage| !usage.exhausted.is_empty()).await;
        let more = vec![block("10.244.0.0/31"), block("10.244.9.0/32")];
        agent.supply(more.clone(), vec![Family::V4]);
        let held = addresses(&waiting.await.unwrap());
        assert_eq!(held, ["10.244.9.0".parse::<IpAddr>().unwrap()]);

        let (code, sentence) = failure(&node.call("ADD", "c3", &path_of(&pods[3])).await);
        assert_eq!(code, 11);
        assert!(
            sentence.contains("all 3 addresses of 2 IPv4 block(s) of IPPool default are in use"),
            "{sentence}"
        );
        let status = node.call("STATUS", "c3", "").await;
        assert!(status.success, "a full pool makes no node unready: {status:?}");

        // A freed address serves one that waits.
        let waiting = node.spawn_call("ADD", "c3", &path_of(&pods[3]));
        node.del("c0").await;
        addresses(&waiting.await.unwrap());

        let closed =
            more.into_iter().map(|block| OwnedBlock { hand_out: false, ..block }).collect();
        agent.supply(closed, vec![Family::V4]);
        node.del("c3").await;
        let (code, sentence) = failure(&node.call("ADD", "c4", &path_of(&pods[0])).await);
        assert_eq!(code, 11);
        assert!(sentence.contains("may hand out new addresses"), "{sentence}");
        agent.stop().await;
    });
}

#[test]
fn before_it_knows_enough_the_agent_says_what_it_waits_for() {
    let node = Node::create();
    let pod_name = node.pod();
    node.run(|| async {
        let agent = node.new_agent().await;
        let asked = async |status: u64, words: &str| {
            for (command, code) in [("ADD", 11), ("STATUS", status)] {
                let outcome = node.call(command, "c", &path_of(&pod_name)).await;
                let (found, sentence) = failure(&outcome);
                assert_eq!(found, code, "{command}: {sentence}");
                assert!(sentence.contains(words), "{sentence}");
            }
        };
        asked(50, "does not know its node's addresses").await;
        agent.handle.set_readiness(&Verdict::NoRoutes("1/4 sessions".into()));
        asked(51, "1/4 sessions").await;
        // As after a restart of the agent in the same boot.
        agent.handle.set_readiness(&Verdict::Ready);
        let outcome = node.call("ADD", "c", &path_of(&pod_name)).await;
        assert!(failure(&outcome).1.contains("does not know its node's addresses"), "{outcome:?}");
        assert!(node.call("STATUS", "c", "").await.success);
        agent.handle.set_config(config());
        let (code, sentence) = failure(&node.call("ADD", "c", &path_of(&pod_name)).await);
        assert_eq!(code, 11);
        assert!(sentence.contains("no IPPool"), "{sentence}");
        agent.supply(Vec::new(), vec![Family::V4]);
        let (code, sentence) = failure(&node.call("ADD", "c", &path_of(&pod_name)).await);
        assert_eq!(code, 11);
        assert!(sentence.contains("owns no IPv4 block"), "{sentence}");
        node.del("c").await;
        agent.stop().await;
    });
}

#[test]
fn check_finds_what_others_have_changed_in_a_pod() {
    let node = Node::create();
    let pod_name = node.pod();
    node.run(|| async {
        let agent = node.ready_agent("10.244.0.0/29").await;
        let added = node.call("ADD", "c", &path_of(&pod_name)).await;
        let check = async || {
            let result = added.output.clone().unwrap();
            let more = json!({"prevResult": result});
            node.spawn_configured("CHECK", "c", &path_of(&pod_name), more).await.unwrap()
        };
        let outcome = check().await;
        assert!(outcome.success, "{outcome:?}");
        let inside = NetNs::open(&pod_name).unwrap();
        let mut netlink = Netlink::open_in(&inside).unwrap();
        let eth0 = link::find(&mut netlink, "eth0").unwrap().unwrap().index;
        let address = IpNet::from(addresses(&added)[0]);
        link::delete_address(&mut netlink, eth0, address).unwrap();
        let (_, sentence) = failure(&check().await);
        assert!(sentence.contains("10.244.0.0"), "{sentence}");
        node.del("c").await;
        let (_, sentence) = failure(&check().await);
        assert!(sentence.contains("does not exist"), "{sentence}");
        agent.stop().await;
    });
}

/// The record in the kernel has 255 bytes, of which a pod's name may need 253.
#[test]
fn a_pod_with_the_longest_names_is_like_any_other() {
    let node = Node::create();
    let pod_name = node.pod();
    node.run(|| async {
        let agent = node.ready_agent("10.244.0.0/29").await;
        let (namespace, name) = ("n".repeat(63), format!("{}.p", "p".repeat(251)));
        let (uid, container) = ("0".repeat(40), "c".repeat(64));
        assert_eq!(name.len(), 253);
        let args = format!(
            "K8S_POD_NAMESPACE={namespace};K8S_POD_NAME={name};K8S_POD_UID={uid};\
             K8S_POD_INFRA_CONTAINER_ID={container}"
        );
        let call = |command: &str| {
            node.spawn_named(command, &container, &path_of(&pod_name), json!({}), args.clone())
        };
        let held = addresses(&call("ADD").await.unwrap());
        assert_eq!(addresses(&call("ADD").await.unwrap()), held);
        let whole = format!("{namespace}/{name}");
        assert_eq!(agent.usage().pods[&id(&container)].to_string(), whole);
        reaches(&node, &pod_name, held[0]);
        agent.stop().await;
        // The name is known to the next agent too.
        let agent = node.ready_agent("10.244.0.0/29").await;
        assert_eq!(agent.usage().pods[&id(&container)].to_string(), whole);
        assert!(call("DEL").await.unwrap().success);
        assert_eq!(agent.used(), 0);
        agent.stop().await;
    });
}

#[test]
fn who_is_not_root_gets_no_address_even_where_it_may_connect() {
    let node = Node::create();
    node.run(|| async {
        let agent = node.ready_agent("10.244.0.0/29").await;
        let socket = pods::socket_path(&node.run_dir);
        // As an administrator's mistake could leave it.
        std::fs::set_permissions(&socket, std::fs::Permissions::from_mode(0o666)).unwrap();
        let asking = tokio::task::spawn_blocking(move || {
            let asking = thread::spawn(move || {
                let nobody = rustix::process::Uid::from_raw(65_534);
                // Of this thread only.
                rustix::thread::set_thread_uid(nobody).unwrap();
                let stream = UnixStream::connect(socket).unwrap();
                let soon = std::time::Instant::now() + Duration::from_secs(5);
                protocol::exchange(&stream, &Request::Status, None, soon).unwrap()
            });
            asking.join().unwrap()
        });
        let Response::Failed(failure) = asking.await.unwrap() else { panic!("it was answered") };
        assert!(failure.msg.contains("only root may ask"), "{}", failure.msg);
        assert_eq!(failure.code, Code::InvalidEnvironment);
        agent.stop().await;
    });
}

#[test]
fn only_one_agent_serves_a_run_directory() {
    let node = Node::create();
    let pod_name = node.pod();
    node.run(|| async {
        let agent = node.ready_agent("10.244.0.0/29").await;
        let error = Pods::start(node.options()).await.unwrap_err();
        assert!(matches!(error, PodsError::Locked { .. }));
        let own = format!("another agent (process {}) already serves", std::process::id());
        assert!(error.to_string().contains(&own), "{error}");
        let mode =
            std::fs::metadata(pods::socket_path(&node.run_dir)).unwrap().permissions().mode();
        assert_eq!(mode & 0o777, 0o600);
        node.add("first", &pod_name).await;
        agent.stop().await;
        let agent = node.agent().await;
        agent.stop().await;
    });
}

/// In its container an agent does not see the processes that ask it: this same test plays both.
#[test]
fn an_agent_with_a_process_namespace_of_its_own_answers_those_outside() {
    const NAME: &str = "an_agent_with_a_process_namespace_of_its_own_answers_those_outside";
    const RUN_DIR: &str = "CAIRN_TEST_RUN_DIR";
    let mut node = Node::create();
    if let Some(run_dir) = std::env::var_os(RUN_DIR) {
        node.run_dir = run_dir.into();
        node.run(|| async {
            let agent = node.ready_agent("10.244.0.0/29").await;
            let until_told = || std::io::stdin().read(&mut [0]);
            tokio::task::spawn_blocking(until_told).await.unwrap().unwrap();
            agent.stop().await;
        });
        return;
    }
    let mut container = std::process::Command::new("unshare")
        .args(["--pid", "--fork", "--kill-child=SIGKILL"])
        .arg(std::env::current_exe().unwrap())
        .args(["--exact", NAME])
        .env(RUN_DIR, &node.run_dir)
        .stdin(std::process::Stdio::piped())
        .spawn()
        .unwrap();
    let pod = node.pod();
    // The plugin waits for the socket.
    node.run(|| async {
        let held = node.add("first", &pod).await;
        assert_eq!(held, ["10.244.0.0".parse::<IpAddr>().unwrap()]);
    });
    drop(container.stdin.take());
    assert!(container.wait().unwrap().success());
}

#[test]
fn an_address_that_something_else_uses_is_passed_over() {
    let node = Node::create();
    let (first, second) = (node.pod(), node.pod());
    node.run(|| async {
        let mut netlink = node.netlink();
        let uplink = link::find(&mut netlink, "uplink").unwrap().unwrap().index;
        let foreign = Route {
            prefix: "10.244.0.0/32".parse().unwrap(),
            table: route::TABLE_MAIN,
            metric: 0,
            protocol: route::PROTOCOL_STATIC,
            target: Target::Unicast(vec![NextHop::link(uplink)]),
            prefsrc: None,
        };
        link::add_route(&mut netlink, &foreign).unwrap();
        let agent = node.ready_agent("10.244.0.0/31").await;
        let held = node.add("first", &first).await;
        assert_eq!(held, ["10.244.0.1".parse::<IpAddr>().unwrap()]);
        let taken: IpAddr = "10.244.0.0".parse().unwrap();
        assert_eq!(agent.usage().blocks[0].foreign, [taken]);
        let (_, sentence) = failure(&node.call("ADD", "second", &path_of(&second)).await);
        assert!(sentence.contains("1 of them by others than pods"), "{sentence}");

        link::delete_route(&mut netlink, &foreign).unwrap();
        agent.handle.resync();
        agent.wait("the address is free again", |usage| usage.blocks[0].foreign.is_empty()).await;
        assert_eq!(node.add("second", &second).await, [taken]);
        agent.stop().await;
    });
}

/// A bridge of another tool in the middle of an own block, and an address on a link that is down, to
/// which no route leads.
#[test]
fn what_the_node_routes_elsewhere_or_holds_itself_is_passed_over() {
    let node = Node::create();
    let pods: Vec<String> = (0..3).map(|_| node.pod()).collect();
    node.run(|| async {
        let mut netlink = node.netlink();
        let bridge = |name: &str, address: &str, netlink: &mut Netlink| {
            link::create_bridge(netlink, name).unwrap();
            let index = link::find(netlink, name).unwrap().unwrap().index;
            let address = address.parse().unwrap();
            link::add_address(netlink, index, address, DuplicateDetection::Skip).unwrap();
            index
        };
        let docker = bridge("docker0", "10.244.0.1/30", &mut netlink);
        link::set_up(&mut netlink, docker).unwrap();
        bridge("asleep", "10.244.0.4/32", &mut netlink);
        let agent = node.ready_agent("10.244.0.0/29").await;
        let mut given = node.add("one", &pods[0]).await;
        given.extend(node.add("two", &pods[1]).await);
        let expected: [IpAddr; 2] = ["10.244.0.5", "10.244.0.6"].map(|a| a.parse().unwrap());
        assert_eq!(given, expected);
        let foreign: Vec<IpAddr> = (0..5).map(|n| IpAddr::from([10, 244, 0, n])).collect();
        assert_eq!(agent.usage().blocks[0].foreign, foreign);
        link::delete(&mut netlink, docker).unwrap();
        agent.handle.resync();
        agent.wait("it is free", |usage| usage.blocks[0].foreign == foreign[4..]).await;
        node.add("three", &pods[2]).await;
        agent.stop().await;
    });
}

/// A block in which something else has an address must not go back, so the agent knows of it without
/// an ADD that finds it out.
#[test]
fn what_others_route_or_name_in_a_block_is_known_before_a_pod_asks_for_it() {
    let node = Node::create();
    let pod = node.pod();
    node.run(|| async {
        let agent = node.ready_agent("10.244.0.0/29").await;
        let fib = Fib::start(Some(agent.handle.clone())).await.unwrap();
        let block: IpNet = "10.244.0.0/29".parse().unwrap();
        fib.blocks.send_replace(Some(BTreeSet::from([block])));
        let foreign = |last: &[u8]| -> Vec<IpAddr> {
            last.iter().map(|last| IpAddr::from([10, 244, 0, *last])).collect()
        };
        let known = |usage: &Usage| -> Vec<IpAddr> {
            usage.blocks.iter().flat_map(|block| block.foreign.clone()).collect()
        };
        let mut netlink = node.netlink();
        let uplink = link::find(&mut netlink, "uplink").unwrap().unwrap().index;
        let route = Route {
            prefix: "10.244.0.2/31".parse().unwrap(),
            table: route::TABLE_MAIN,
            metric: 0,
            protocol: route::PROTOCOL_STATIC,
            target: Target::Unicast(vec![NextHop::link(uplink)]),
            prefsrc: None,
        };
        link::add_route(&mut netlink, &route).unwrap();
        agent.wait("a route", |usage| known(usage) == foreign(&[2, 3])).await;
        let mac = link::Mac([2, 0, 0, 0, 0, 1]);
        link::set_neighbour(&mut netlink, uplink, foreign(&[5])[0], mac).unwrap();
        agent.wait("a neighbour", |usage| known(usage) == foreign(&[2, 3, 5])).await;
        // One that appears right before the pod's interface is made.
        link::set_neighbour(&mut netlink, uplink, foreign(&[0])[0], mac).unwrap();
        assert_eq!(node.add("one", &pod).await, foreign(&[1]));
        link::delete_route(&mut netlink, &route).unwrap();
        agent.wait("no route", |usage| known(usage) == foreign(&[0, 5])).await;
        agent.stop().await;
    });
}

#[test]
fn what_happens_to_interfaces_behind_the_agents_back_is_noticed() {
    let node = Node::create();
    let (first, second) = (node.pod(), node.pod());
    node.run(|| async {
        let agent = node.ready_agent("10.244.0.0/29").await;
        node.add("first", &first).await;
        let held = node.add("second", &second).await;
        assert_eq!(agent.used(), 2);
        // The last holder of a namespace goes: the agent must have kept no descriptor of it.
        NetNs::delete(&first).unwrap();
        let gone = async {
            let name = pod::host_interface_name("first", "eth0");
            while link::find(&mut node.netlink(), &name).unwrap().is_some() {
                tokio::time::sleep(Duration::from_millis(10)).await;
            }
        };
        tokio::time::timeout(Duration::from_secs(5), gone).await.unwrap();
        agent.handle.resync();
        agent.wait("the address is free", |usage| usage.blocks[0].used == 1).await;
        node.del("first").await;

        let mut netlink = node.netlink();
        let index = pod::list(&mut netlink).unwrap()[0].ifindex;
        let route = Route {
            prefix: held[0].into(),
            table: route::TABLE_MAIN,
            metric: 0,
            protocol: POD_ROUTE_PROTOCOL,
            target: Target::Unicast(vec![NextHop::link(index)]),
            prefsrc: None,
        };
        link::delete_route(&mut netlink, &route).unwrap();
        agent.handle.resync();
        let back = async {
            while !pod::is_in_use(&mut node.netlink(), held[0]).unwrap() {
                tokio::time::sleep(Duration::from_millis(10)).await;
            }
        };
        tokio::time::timeout(Duration::from_secs(5), back).await.unwrap();
        reaches(&node, &second, held[0]);
        assert_eq!(agent.used(), 1);
        agent.stop().await;
    });
}

#[test]
fn wrong_descriptors_and_wrong_bytes_are_refused() {
    let node = Node::create();
    let pod_name = node.pod();
    node.run(|| async {
        let agent = node.ready_agent("10.244.0.0/29").await;
        for (path, words) in [
            ("/proc/self/ns/mnt".to_owned(), "is not a network namespace"),
            ("/dev/null".to_owned(), "is not a network namespace"),
            ("/etc/hostname".to_owned(), "is not a network namespace"),
            (path_of(&node.name), "it is the node's own network namespace"),
        ] {
            let (code, sentence) = failure(&node.call("ADD", "c", &path).await);
            assert_eq!(code, 8, "{path}: {sentence}");
            assert!(sentence.contains(words), "{path}: {sentence}");
        }
        let socket = pods::socket_path(&node.run_dir);
        let answers = tokio::task::spawn_blocking(move || {
            let mut silent = Vec::new();
            let header = [b"CRNI", &VERSION.to_be_bytes()[..]].concat();
            let endless = [&header[..], b"\xff\xff\xff\xff"].concat();
            for bytes in [&b"GET / HTTP/1.0\r\n\r\n"[..], &endless, b""] {
                let mut stream = UnixStream::connect(&socket).unwrap();
                stream.write_all(bytes).unwrap();
                silent.push(stream);
            }
            let answer = |version: u32| {
                let mut frame = [b"CRNI", &version.to_be_bytes()[..]].concat();
                let body = br#"{"command":"add","containerId":"c","ifname":"eth0","network":"n"}"#;
                frame.extend((body.len() as u32).to_be_bytes());
                frame.extend(body);
                let mut stream = UnixStream::connect(&socket).unwrap();
                stream.write_all(&frame).unwrap();
                let mut answer = Vec::new();
                // An agent that does not read the rest resets the connection after its answer.
                let _ = stream.read_to_end(&mut answer);
                String::from_utf8_lossy(&answer).into_owned()
            };
            [VERSION, VERSION - 1, VERSION + 1].map(answer)
        })
        .await
        .unwrap();
        let [same, older, newer] = answers;
        assert!(same.contains("without the descriptor"), "{same}");
        // A plugin from before or after an upgrade asks again.
        for (answer, version) in [(older, VERSION - 1), (newer, VERSION + 1)] {
            assert!(answer.contains(r#""code":11"#), "{answer}");
            assert!(
                answer.contains(&format!("speaks version {version} of the plugin's")),
                "{answer}"
            );
        }
        assert_eq!(agent.used(), 0);
        node.add("c", &pod_name).await;
        agent.stop().await;
    });
}

#[test]
fn a_hundred_pods_at_once_share_nothing() {
    let node = Node::create();
    let pods: Vec<_> = (0..100).map(|_| node.pod()).collect();
    node.run(|| async {
        let agent = node.ready_agent("10.244.0.0/25").await;
        let call = |command: &str, number: usize| {
            node.spawn_call(command, &format!("c{number}"), &path_of(&pods[number]))
        };
        let adding: Vec<_> = (0..pods.len()).map(|number| call("ADD", number)).collect();
        let mut seen = HashSet::new();
        for call in adding {
            for address in addresses(&call.await.unwrap()) {
                assert!(seen.insert(address), "{address} was given twice");
            }
        }
        assert_eq!((seen.len(), agent.used()), (100, 100));
        let in_kernel: BTreeSet<IpAddr> =
            pod::list(&mut node.netlink()).unwrap().iter().flat_map(|f| f.addresses()).collect();
        assert_eq!(in_kernel, seen.into_iter().collect());

        let began = std::time::Instant::now();
        let deleting: Vec<_> = (0..pods.len()).map(|number| call("DEL", number)).collect();
        for call in deleting {
            assert!(call.await.unwrap().success);
        }
        // One after the other they took the kernel 28 to 36 ms each.
        let took = began.elapsed();
        println!("100 DELs at once: {took:?}");
        assert!(took < Duration::from_secs(2), "{took:?}");
        assert_eq!(agent.used(), 0);
        assert!(pod::list(&mut node.netlink()).unwrap().is_empty());
        agent.stop().await;
    });
}

/// Containerd kills its plugins when the kubelet gives up, and the namespace of a pod that has ended lives for
/// as long as anybody has it open.
#[test]
fn the_namespace_of_a_plugin_that_was_killed_is_let_go_at_once() {
    let node = Node::create();
    let pod_name = node.pod();
    node.run(|| async {
        let mut options = node.options();
        options.network.address_wait = Duration::from_secs(60);
        let (handle, pods) = Pods::start(options).await.unwrap();
        let agent = Agent { handle, task: tokio::spawn(pods.run()) };
        let mut netlink = node.netlink();
        let inside = NetNs::open(&pod_name).unwrap();
        let witness = link::Veth {
            end: link::VethEnd::named("witness"),
            peer: link::VethEnd::named("inside"),
            peer_netns: Some(inside.as_fd()),
            mtu: None,
        };
        link::create_veth(&mut netlink, &witness).unwrap();
        drop(inside);
        let request = Request::Add(AddRequest {
            container_id: ContainerId::parse("c").unwrap(),
            ifname: InterfaceName::parse("eth0").unwrap(),
            network: "cairn".into(),
            pod: PodIdentity::default(),
            annotations: None,
            ips: Vec::new(),
            mac: None,
        });
        let (socket, path) = (pods::socket_path(&node.run_dir), path_of(&pod_name));
        let ((told, hear), pod) = (std::sync::mpsc::channel(), pod_name.clone());
        let plugin = tokio::task::spawn_blocking(move || {
            let stream = UnixStream::connect(socket).unwrap();
            let netns = std::fs::File::open(path).unwrap();
            let soon = std::time::Instant::now() + Duration::from_millis(500);
            let answer = protocol::exchange(&stream, &request, Some(netns.as_fd()), soon);
            assert!(matches!(answer, Err(ProtocolError::TimedOut)), "{answer:?}");
            drop(netns);
            NetNs::delete(&pod).unwrap();
            told.send(()).unwrap();
            // The agent has it open, and nobody else.
            thread::sleep(Duration::from_millis(500));
            drop(stream);
        });
        while hear.try_recv().is_err() {
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
        tokio::time::sleep(Duration::from_millis(200)).await;
        assert!(link::find(&mut netlink, "witness").unwrap().is_some(), "the agent waits with it");
        plugin.await.unwrap();
        let gone = async {
            while link::find(&mut netlink, "witness").unwrap().is_some() {
                tokio::time::sleep(Duration::from_millis(10)).await;
            }
        };
        tokio::time::timeout(Duration::from_secs(5), gone).await.expect("it is let go");
        node.del("c").await;
        agent.stop().await;
    });
}

#[test]
fn requests_for_one_interface_take_turns() {
    let node = Node::create();
    let pod_name = node.pod();
    node.run(|| async {
        let agent = node.ready_agent("10.244.0.0/29").await;
        for _ in 0..5 {
            let calls: Vec<_> = ["ADD", "DEL", "ADD", "ADD", "DEL"]
                .map(|command| node.spawn_call(command, "c", &path_of(&pod_name)))
                .into();
            for call in calls {
                let outcome = call.await.unwrap();
                assert!(outcome.success, "{outcome:?}");
            }
            let present = pod::list(&mut node.netlink()).unwrap().len() as u64;
            assert_eq!(agent.used(), present, "book and kernel agree");
        }
        node.del("c").await;
        assert_eq!(agent.used(), 0);
        agent.stop().await;
    });
}

/// The kernel takes every host route away whose source is an address that goes, in part without a
/// word: they come back at once, before and after the node has an address again.
#[test]
fn pods_stay_reachable_when_the_address_of_their_node_flaps() {
    let node = Node::create();
    let pod = node.pod();
    node.run(|| async {
        let agent = node.agent().await;
        agent.handle.set_config(config());
        let blocks = vec![block("10.244.0.0/29"), block("fd00::/125")];
        agent.supply(blocks, vec![Family::V4, Family::V6]);
        let _fib = Fib::start(Some(agent.handle.clone())).await.unwrap();
        let held = node.add("flap", &pod).await;
        let mut netlink = node.netlink();
        let uplink = link::find(&mut netlink, "uplink").unwrap().unwrap().index;
        let addresses: [IpNet; 2] =
            ["192.0.2.1/24".parse().unwrap(), "2001:db8::1/64".parse().unwrap()];
        for _ in 0..3 {
            for address in addresses {
                link::delete_address(&mut netlink, uplink, address).unwrap();
            }
            complete(&node).await;
            for address in addresses {
                link::add_address(&mut netlink, uplink, address, DuplicateDetection::Skip).unwrap();
            }
            complete(&node).await;
            held.iter().for_each(|address| reaches(&node, &pod, *address));
        }
        agent.stop().await;
    });
}

/// Waits until no host route has been missing for longer than the agent takes to look.
async fn complete(node: &Node) {
    let whole = async {
        let mut since = tokio::time::Instant::now();
        while since.elapsed() < Duration::from_millis(300) {
            let listed = pod::list(&mut node.netlink()).unwrap();
            if listed.iter().any(|found| !found.missing_routes().is_empty()) {
                since = tokio::time::Instant::now();
            }
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    };
    let reached = tokio::time::timeout(Duration::from_secs(4), whole).await;
    assert!(reached.is_ok(), "a host route is missing");
}

/// Another tool's pods may have neither link nor route that names their addresses.
#[test]
fn addresses_of_permanent_neighbours_are_not_handed_out() {
    let node = Node::create();
    let pods: Vec<String> = (0..3).map(|_| node.pod()).collect();
    node.run(|| async {
        let mut netlink = node.netlink();
        let uplink = link::find(&mut netlink, "uplink").unwrap().unwrap().index;
        let mac = link::Mac([2, 0, 0, 0, 0, 1]);
        let taken: Vec<IpAddr> =
            ["10.244.0.0", "10.244.0.2"].map(|text| text.parse().unwrap()).to_vec();
        for address in &taken {
            link::set_neighbour(&mut netlink, uplink, *address, mac).unwrap();
        }
        let agent = node.ready_agent("10.244.0.0/30").await;
        let mut given = node.add("one", &pods[0]).await;
        given.extend(node.add("two", &pods[1]).await);
        assert!(given.iter().all(|address| !taken.contains(address)), "{given:?}");
        assert_eq!(agent.usage().blocks[0].foreign, taken);
        let full = node.call("ADD", "three", &path_of(&pods[2])).await;
        assert!(!full.success, "{full:?}");
        link::delete_neighbour(&mut netlink, uplink, taken[0]).unwrap();
        agent.handle.resync();
        agent.wait("one is free", |usage| usage.blocks[0].foreign == taken[1..]).await;
        assert_eq!(node.add("three", &pods[2]).await, taken[..1]);
        agent.stop().await;
    });
}
