//! What a pod gets, keeps and gives back.

use std::collections::{BTreeSet, HashSet};
use std::net::IpAddr;
use std::time::Duration;

use cairn_agent::readiness::Verdict;
use cairn_ipam::{Family, OwnedBlock};
use cairn_kernel::{NetNs, Netlink, link, pod};
use serde_json::json;

use crate::node::{Node, addresses, block, config, id, path_of, reaches, spawn};
use crate::runtime::failure;

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

        let usage = agent.usage().await;
        assert_eq!(usage.blocks[0].allocations, [(held[0], id("first"))]);
        assert_eq!(usage.blocks[1].used, 1);
        assert_eq!(usage.pods[&id("first")].to_string(), "default/first");
        assert!(usage.exhausted.is_empty());

        let other = node.add("second", &second).await;
        assert!(other.iter().all(|address| !held.contains(address)), "{other:?}");
        node.del("first").await;
        node.del("first").await;
        node.del("never-heard-of").await;
        assert_eq!(agent.used().await, 2);
        assert!(!agent.usage().await.pods.contains_key(&id("first")));
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
            spawn(node.request("ADD", container, &path_of(netns)).annotated(wish()))
        };
        let held = addresses(&add("first", &first).await.unwrap());
        assert_eq!(held, ["10.244.0.6".parse::<IpAddr>().unwrap()]);
        reaches(&node, &first, held[0]);
        let (code, sentence) = failure(&add("second", &second).await.unwrap());
        assert_eq!(code, 11);
        assert!(sentence.contains("10.244.0.6 is in use by first/eth0"), "{sentence}");
        assert_eq!(agent.used().await, 1);
        node.del("first").await;
        assert_eq!(addresses(&add("second", &second).await.unwrap()), held);
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
            let call = node.request(command, &container, &path_of(&pod_name));
            spawn(call.with_variable("CNI_ARGS", &args))
        };
        let held = addresses(&call("ADD").await.unwrap());
        assert_eq!(addresses(&call("ADD").await.unwrap()), held);
        let whole = format!("{namespace}/{name}");
        assert_eq!(agent.usage().await.pods[&id(&container)].to_string(), whole);
        reaches(&node, &pod_name, held[0]);
        agent.stop().await;
        // The name is known to the next agent too.
        let agent = node.ready_agent("10.244.0.0/29").await;
        assert_eq!(agent.usage().await.pods[&id(&container)].to_string(), whole);
        assert!(call("DEL").await.unwrap().success);
        assert_eq!(agent.used().await, 0);
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
        assert_eq!((seen.len(), agent.used().await), (100, 100));
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
        assert_eq!(agent.used().await, 0);
        assert!(pod::list(&mut node.netlink()).unwrap().is_empty());
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
            assert_eq!(agent.used().await, present, "book and kernel agree");
        }
        node.del("c").await;
        assert_eq!(agent.used().await, 0);
        agent.stop().await;
    });
}
