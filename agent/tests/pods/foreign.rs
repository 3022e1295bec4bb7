//! Addresses of own blocks that others than pods use.

use std::collections::BTreeSet;
use std::net::IpAddr;

use cairn_agent::fib::Fib;
use cairn_agent::pods::Usage;
use cairn_kernel::Netlink;
use cairn_kernel::link::{self, DuplicateDetection};
use cairn_kernel::route::{self, NextHop, Route, Target};
use ipnet::IpNet;

use crate::node::{Node, path_of};
use crate::runtime::failure;

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
        assert_eq!(agent.usage().await.blocks[0].foreign, [taken]);
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
        assert_eq!(agent.usage().await.blocks[0].foreign, foreign);
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
        assert_eq!(agent.usage().await.blocks[0].foreign, taken);
        let full = node.call("ADD", "three", &path_of(&pods[2])).await;
        assert!(!full.success, "{full:?}");
        link::delete_neighbour(&mut netlink, uplink, taken[0]).unwrap();
        agent.handle.resync();
        agent.wait("one is free", |usage| usage.blocks[0].foreign == taken[1..]).await;
        assert_eq!(node.add("three", &pods[2]).await, taken[..1]);
        agent.stop().await;
    });
}
