//! What others do to a pod's interface, its routes or its node's addresses.

use std::time::Duration;

use cairn_agent::fib::Fib;
use cairn_ipam::Family;
use cairn_kernel::link::{self, DuplicateDetection};
use cairn_kernel::route::{self, NextHop, Route, Target};
use cairn_kernel::{NetNs, Netlink, POD_ROUTE_PROTOCOL, pod};
use ipnet::IpNet;

use crate::node::{Node, addresses, block, config, path_of, reaches, spawn};
use crate::runtime::failure;

#[test]
fn check_finds_what_others_have_changed_in_a_pod() {
    let node = Node::create();
    let pod_name = node.pod();
    node.run(|| async {
        let agent = node.ready_agent("10.244.0.0/29").await;
        let added = node.call("ADD", "c", &path_of(&pod_name)).await;
        let check = async || {
            let result = added.output.clone().unwrap();
            let call = node.request("CHECK", "c", &path_of(&pod_name));
            spawn(call.with_field("prevResult", result)).await.unwrap()
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

#[test]
fn what_happens_to_interfaces_behind_the_agents_back_is_noticed() {
    let node = Node::create();
    let (first, second) = (node.pod(), node.pod());
    node.run(|| async {
        let agent = node.ready_agent("10.244.0.0/29").await;
        node.add("first", &first).await;
        let held = node.add("second", &second).await;
        assert_eq!(agent.used().await, 2);
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
        assert_eq!(agent.used().await, 1);
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
