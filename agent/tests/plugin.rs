//! The plugin beside a node's pod network: without an agent it removes interfaces by itself, and nothing
//! else; and an agent is not harmed by what else comes to its socket.

use std::io::{Read, Write};
use std::net::Shutdown;
use std::os::unix::net::UnixStream;
use std::path::PathBuf;
use std::time::Duration;

use cairn_agent::ipam::Clock;
use cairn_agent::pods::{
    NetworkOptions, PodConfig, Pods, PodsHandle, PodsOptions, Supply, socket_path,
};
use cairn_agent::readiness::Verdict;
use cairn_cni::orphan;
use cairn_cni::plugin::{self, Outcome, Patience};
use cairn_ipam::{Family, OwnedBlock, PodPool, Rules};
use cairn_kernel::link::{self, Veth, VethEnd};
use cairn_kernel::pod::{self, PodSpec};
use cairn_kernel::{NetNs, Netlink};
use serde_json::json;

/// A node and the namespaces of its pods, removed with the value.
struct Node {
    name: String,
    netns: NetNs,
    run_dir: PathBuf,
}

impl Node {
    fn create(test: &str) -> Node {
        let name = format!("plugin-{test}-{}", std::process::id());
        let netns = NetNs::create(&name).expect("a network namespace, which needs root");
        let run_dir = std::env::temp_dir().join(&name);
        Node { name, netns, run_dir }
    }

    fn pod(&self, number: u32) -> (String, NetNs) {
        let name = format!("{}-pod{number}", self.name);
        let netns = NetNs::create(&name).expect("a network namespace");
        (name, netns)
    }

    fn netlink(&self) -> Netlink {
        Netlink::open_in(&self.netns).expect("a socket")
    }

    /// Gives a pod its interface as an agent does.
    fn attach(&self, container: &str, netns: &NetNs, address: &str) -> String {
        let spec = PodSpec {
            container_id: container.into(),
            ifname: "eth0".into(),
            pod_uid: None,
            network: "cairn".into(),
            addresses: vec![address.parse().expect("an address")],
            mac: None,
            blocks: Vec::new(),
            mtu: 1400,
            node_addresses: Vec::new(),
        };
        let attached = self.netns.run(|| {
            pod::attach(&mut Netlink::open().expect("a socket"), netns, &spec).expect("a pod")
        });
        attached.expect("a thread").host_ifname
    }

    /// Runs the plugin in the node's namespace.
    fn plugin(&self, command: &str, container: &str, netns: &str) -> Outcome {
        self.netns.run(|| call(self.run_dir.clone(), command, container, netns)).expect("a thread")
    }

    /// Runs `test` on a runtime inside the node's namespace, as an agent runs.
    fn run<F: Future<Output = ()>>(&self, test: impl FnOnce() -> F + Send) {
        let runs = || {
            let runtime =
                tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
            runtime.block_on(test());
        };
        self.netns.run(runs).unwrap();
    }

    fn has(&self, name: &str) -> bool {
        link::find(&mut self.netlink(), name).expect("the links").is_some()
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

fn call(run_dir: PathBuf, command: &str, container: &str, netns: &str) -> Outcome {
    let config = json!({
        "cniVersion": "1.0.0", "name": "cairn", "type": "cairn-cni", "socket": socket_path(&run_dir),
    });
    let variable = |name: &str| match name {
        "CNI_COMMAND" => Some(command.to_owned()),
        "CNI_CONTAINERID" => Some(container.to_owned()),
        "CNI_IFNAME" => Some("eth0".to_owned()),
        "CNI_NETNS" => Some(format!("{}/{netns}", cairn_kernel::netns::NETNS_DIR)),
        _ => None,
    };
    let patience = Patience { connect_del: Duration::from_millis(100), ..Patience::default() };
    plugin::run(variable, config.to_string().as_bytes(), patience)
}

fn ended() -> Outcome {
    Outcome { output: None, success: true }
}

#[test]
fn plugin_and_agent_give_an_interface_the_same_name() {
    for number in 0..2_000_u64 {
        let container = format!("{:x}", number.wrapping_mul(0x9e37_79b9_7f4a_7c15));
        for ifname in ["eth0", "net1", "a-very-long-one"] {
            let (plugin, agent) = (
                orphan::host_interface_name(&container, ifname),
                pod::host_interface_name(&container, ifname),
            );
            assert_eq!(plugin, agent, "{container} {ifname}");
        }
    }
}

#[test]
fn without_an_agent_del_removes_the_interface_that_records_the_container() {
    let node = Node::create("alone");
    let (_, first) = node.pod(1);
    let (_, second) = node.pod(2);
    let gone = node.attach("first", &first, "10.244.0.1");
    let stays = node.attach("second", &second, "10.244.0.2");
    for _ in 0..2 {
        assert_eq!(node.plugin("DEL", "first", "vanished"), ended());
        assert!(!node.has(&gone) && node.has(&stays));
        assert!(!pod::is_in_use(&mut node.netlink(), "10.244.0.1".parse().unwrap()).unwrap());
    }
    assert_eq!(node.plugin("DEL", "never-heard-of", ""), ended());
    assert_eq!(node.plugin("DEL", "second", ""), ended());
    assert!(!node.has(&stays));
}

#[test]
fn what_does_not_record_the_container_stays() {
    let node = Node::create("others");
    let mut netlink = node.netlink();
    let (_, netns) = node.pod(1);
    let name = node.attach("c", &netns, "10.244.0.1");
    let index = link::find(&mut netlink, &name).unwrap().unwrap().index;
    let record = link::find(&mut netlink, &name).unwrap().unwrap().alias.unwrap();
    // Another container's record, none, another tool's, and one of another version.
    let later = record.replace("cairn2", "cairn3");
    for alias in ["cairn2 d eth0 - 012abc 10.244.0.1", "", "rack 7", later.as_str()] {
        link::set_alias(&mut netlink, index, alias).unwrap();
        assert_eq!(node.plugin("DEL", "c", ""), ended(), "{alias}");
        assert!(node.has(&name), "{alias}");
    }
    link::set_alias(&mut netlink, index, &record).unwrap();
    assert_eq!(node.plugin("DEL", "c", ""), ended());
    assert!(!node.has(&name));
    // What has the name and even the record, but is no pod's interface.
    link::create_bridge(&mut netlink, &name).unwrap();
    let index = link::find(&mut netlink, &name).unwrap().unwrap().index;
    link::set_alias(&mut netlink, index, &record).unwrap();
    assert_eq!(node.plugin("DEL", "c", ""), ended());
    assert!(node.has(&name));
    // The rest of an interrupted creation is the next agent's.
    let half = pod::host_interface_name("half", "eth0");
    let (end, peer) = (VethEnd::named(&half), VethEnd::named("eth0"));
    link::create_veth(&mut netlink, &Veth { end, peer, peer_netns: None, mtu: None }).unwrap();
    assert_eq!(node.plugin("DEL", "half", ""), ended());
    assert!(node.has(&half));
}

/// An agent that serves one block, for as long as `test` runs.
async fn with_agent<F: Future<Output = ()>>(node: &Node, test: impl FnOnce(PodsHandle) -> F) {
    let network = NetworkOptions {
        cooldown: Duration::from_secs(30),
        address_wait: Duration::from_millis(400),
        announcement_wait: Duration::from_secs(1),
        clock: Clock::boottime(),
        rules: Rules::ALL,
    };
    let options = PodsOptions { run_dir: node.run_dir.clone(), network };
    let (handle, pods) = Pods::start(options).await.unwrap();
    let task = tokio::spawn(pods.run());
    handle.set_readiness(&Verdict::Ready);
    handle.set_config(PodConfig { node_addresses: Vec::new(), mtu: 1400 });
    let block = OwnedBlock {
        cidr: "10.244.0.0/29".parse().unwrap(),
        pool: "default".into(),
        hand_out: true,
        until: Duration::MAX,
        revision: 0,
        newly_claimed: true,
    };
    let pool = PodPool {
        name: "default".into(),
        cidr: "10.244.0.0/16".parse().unwrap(),
        namespaces: None,
        unusable: None,
    };
    handle.set_supply(Supply {
        blocks: vec![block],
        families: vec![Family::V4],
        pools: vec![pool],
        ..Supply::default()
    });
    test(handle).await;
    task.abort();
    let _ = task.await;
}

/// How many addresses are in use.
fn used(handle: &PodsHandle) -> u64 {
    handle.usage().borrow().blocks.iter().map(|block| block.used).sum()
}

#[test]
fn the_next_agent_finds_the_address_free() {
    let node = Node::create("next");
    let (name, _netns) = node.pod(1);
    let spawn = |command: &'static str| {
        let (run_dir, name) = (node.run_dir.clone(), name.clone());
        tokio::task::spawn_blocking(move || call(run_dir, command, "c", &name))
    };
    let test = || async {
        with_agent(&node, |handle| async move {
            let outcome = spawn("ADD").await.unwrap();
            assert!(outcome.success, "{outcome:?}");
            assert_eq!(used(&handle), 1);
        })
        .await;
        assert_eq!(spawn("DEL").await.unwrap(), ended());
        with_agent(&node, |handle| async move {
            let mut usage = handle.usage();
            let told = usage.wait_for(|usage| !usage.blocks.is_empty());
            tokio::time::timeout(Duration::from_secs(5), told).await.unwrap().unwrap();
            assert_eq!(used(&handle), 0);
            assert_eq!(spawn("DEL").await.unwrap(), ended());
        })
        .await;
    };
    node.run(test);
    assert!(pod::list(&mut node.netlink()).unwrap().is_empty());
}

/// Requests as a plugin sends them, for a container that does not exist.
const REQUESTS: [&str; 5] = [
    r#"{"command":"add","containerId":"x","ifname":"eth0","network":"n","pod":{},"ips":["10.244.0.1"]}"#,
    r#"{"command":"del","containerId":"x","ifname":"eth0","network":"n"}"#,
    r#"{"command":"check","containerId":"x","ifname":"eth0","network":"n","addresses":["10.244.0.1"]}"#,
    r#"{"command":"gc","network":"n","valid":[{"containerId":"x","ifname":"eth0"}]}"#,
    r#"{"command":"status"}"#,
];

/// A request with up to four places damaged, in frame or text; `dice` is never zero.
fn damaged(dice: &mut u64) -> Vec<u8> {
    let mut roll = |sides: usize| {
        // xorshift64*.
        *dice ^= *dice >> 12;
        *dice ^= *dice << 25;
        *dice ^= *dice >> 27;
        (dice.wrapping_mul(0x2545_f491_4f6c_dd1d) >> 33) as usize % sides.max(1)
    };
    let text = REQUESTS[roll(REQUESTS.len())].as_bytes();
    let mut bytes = b"CRNI".to_vec();
    bytes.extend(cairn_cni::protocol::VERSION.to_be_bytes());
    bytes.extend((text.len() as u32).to_be_bytes());
    bytes.extend(text);
    for _ in 0..roll(5) {
        // Mostly behind the header, where there is more to be understood.
        let at = if roll(4) == 0 {
            roll(bytes.len())
        } else {
            12 + roll(bytes.len().saturating_sub(12))
        };
        let Some(byte) = bytes.get_mut(at) else { continue };
        match roll(4) {
            0 => *byte ^= 1 << roll(8),
            1 => *byte = roll(256) as u8,
            2 => drop(bytes.remove(at)),
            _ => bytes.truncate(at),
        }
    }
    bytes
}

#[test]
fn whatever_comes_to_the_socket_pods_start_and_end() {
    let node = Node::create("abuse");
    let (name, _netns) = node.pod(1);
    let call = |command: &'static str| {
        let (run_dir, name) = (node.run_dir.clone(), name.clone());
        tokio::task::spawn_blocking(move || call(run_dir, command, "c", &name))
    };
    let abuse = |seed: u64| {
        let socket = socket_path(&node.run_dir);
        tokio::task::spawn_blocking(move || {
            let mut dice = seed;
            for _ in 0..40 {
                let mut stream = UnixStream::connect(&socket).unwrap();
                stream.set_read_timeout(Some(Duration::from_secs(20))).unwrap();
                let _ = stream.write_all(&damaged(&mut dice));
                let _ = stream.shutdown(Shutdown::Write);
                // An answer or none, and then the end.
                if !seed.is_multiple_of(3)
                    && let Err(error) = stream.read_to_end(&mut Vec::new())
                {
                    // What the agent did not read is told after what it answered.
                    assert_eq!(error.kind(), std::io::ErrorKind::ConnectionReset, "{error}");
                }
            }
        })
    };
    let test = || async {
        with_agent(&node, |handle| async move {
            for round in 0..5_u64 {
                let abusers: Vec<_> = (1..=8).map(|number| abuse(round * 8 + number)).collect();
                let added = call("ADD").await.unwrap();
                assert!(added.success, "round {round}: {added:?}");
                assert_eq!(call("DEL").await.unwrap(), ended(), "round {round}");
                for abuser in abusers {
                    abuser.await.unwrap();
                }
            }
            assert_eq!(used(&handle), 0);
        })
        .await;
    };
    node.run(test);
    assert!(pod::list(&mut node.netlink()).unwrap().is_empty());
}
