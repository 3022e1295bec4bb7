//! The plugin beside a node's pod network: without an agent it removes interfaces by itself, and nothing
//! else; and an agent is not harmed by what else comes to its socket.

#[path = "pods/node.rs"]
#[allow(dead_code, reason = "shared with the tests of the pod network")]
mod node;
mod runtime;

use std::io::{Read, Write};
use std::net::Shutdown;
use std::os::unix::net::UnixStream;
use std::time::Duration;

use cairn_agent::pods::socket_path;
use cairn_cni::orphan;
use cairn_cni::plugin::Outcome;
use cairn_kernel::link::{self, Veth, VethEnd};
use cairn_kernel::pod::{self, PodSpec};
use cairn_kernel::{NetNs, Netlink};

use node::{Node, path_of, patience};

/// Gives a pod its interface as an agent does, and returns its name in the node's namespace.
fn attach(node: &Node, container: &str, pod: &str, address: &str) -> String {
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
    let netns = NetNs::open(pod).expect("a namespace");
    let attached = node.netns.run(|| {
        pod::attach(&mut Netlink::open().expect("a socket"), &netns, &spec).expect("a pod")
    });
    attached.expect("a thread").host_ifname
}

/// Runs the plugin in the node's namespace, where no agent is.
fn del(node: &Node, container: &str, netns: &str) -> Outcome {
    let call = node.request("DEL", container, netns);
    node.netns.run(|| call.run_with(patience())).expect("a thread")
}

fn has(node: &Node, name: &str) -> bool {
    link::find(&mut node.netlink(), name).expect("the links").is_some()
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
    let node = Node::create();
    let (first, second) = (node.pod(), node.pod());
    let gone = attach(&node, "first", &first, "10.244.0.1");
    let stays = attach(&node, "second", &second, "10.244.0.2");
    for _ in 0..2 {
        assert_eq!(del(&node, "first", &path_of("vanished")), ended());
        assert!(!has(&node, &gone) && has(&node, &stays));
        assert!(!pod::is_in_use(&mut node.netlink(), "10.244.0.1".parse().unwrap()).unwrap());
    }
    assert_eq!(del(&node, "never-heard-of", ""), ended());
    assert_eq!(del(&node, "second", ""), ended());
    assert!(!has(&node, &stays));
}

#[test]
fn what_does_not_record_the_container_stays() {
    let node = Node::create();
    let mut netlink = node.netlink();
    let name = attach(&node, "c", &node.pod(), "10.244.0.1");
    let index = link::find(&mut netlink, &name).unwrap().unwrap().index;
    let record = link::find(&mut netlink, &name).unwrap().unwrap().alias.unwrap();
    // Another container's record, none, another tool's, and one of another version.
    let later = record.replace("cairn2", "cairn3");
    for alias in ["cairn2 d eth0 - 012abc 10.244.0.1", "", "rack 7", later.as_str()] {
        link::set_alias(&mut netlink, index, alias).unwrap();
        assert_eq!(del(&node, "c", ""), ended(), "{alias}");
        assert!(has(&node, &name), "{alias}");
    }
    link::set_alias(&mut netlink, index, &record).unwrap();
    assert_eq!(del(&node, "c", ""), ended());
    assert!(!has(&node, &name));
    // What has the name and even the record, but is no pod's interface.
    link::create_bridge(&mut netlink, &name).unwrap();
    let index = link::find(&mut netlink, &name).unwrap().unwrap().index;
    link::set_alias(&mut netlink, index, &record).unwrap();
    assert_eq!(del(&node, "c", ""), ended());
    assert!(has(&node, &name));
    // The rest of an interrupted creation is the next agent's.
    let half = pod::host_interface_name("half", "eth0");
    let (end, peer) = (VethEnd::named(&half), VethEnd::named("eth0"));
    link::create_veth(&mut netlink, &Veth { end, peer, peer_netns: None, mtu: None }).unwrap();
    assert_eq!(del(&node, "half", ""), ended());
    assert!(has(&node, &half));
}

#[test]
fn the_next_agent_finds_the_address_free() {
    let node = Node::create();
    let pod = path_of(&node.pod());
    node.run(|| async {
        let agent = node.ready_agent("10.244.0.0/29").await;
        let outcome = node.call("ADD", "c", &pod).await;
        assert!(outcome.success, "{outcome:?}");
        assert_eq!(agent.used().await, 1);
        agent.stop().await;
        assert_eq!(node.call("DEL", "c", &pod).await, ended());
        let agent = node.ready_agent("10.244.0.0/29").await;
        agent.wait("its block", |usage| !usage.blocks.is_empty()).await;
        assert_eq!(agent.used().await, 0);
        assert_eq!(node.call("DEL", "c", &pod).await, ended());
        agent.stop().await;
    });
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
    let node = Node::create();
    let pod = path_of(&node.pod());
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
    node.run(|| async {
        let agent = node.ready_agent("10.244.0.0/29").await;
        for round in 0..5_u64 {
            let abusers: Vec<_> = (1..=8).map(|number| abuse(round * 8 + number)).collect();
            let added = node.call("ADD", "c", &pod).await;
            assert!(added.success, "round {round}: {added:?}");
            assert_eq!(node.call("DEL", "c", &pod).await, ended(), "round {round}");
            for abuser in abusers {
                abuser.await.unwrap();
            }
        }
        assert_eq!(agent.used().await, 0);
        agent.stop().await;
    });
    assert!(pod::list(&mut node.netlink()).unwrap().is_empty());
}
