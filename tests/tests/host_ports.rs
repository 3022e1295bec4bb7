//! Ports of the node for pods: Debian's portmap behind our plugin, beside our packet filter, a FORWARD chain that
//! drops, and strict reverse path filters.

use std::net::{IpAddr, SocketAddr};

use cairn_kernel::NetNs;
use cairn_tests::runtime::{
    Attachment, NODE, NODE6, Node, Pool, Server, Transport, fresh, on, path_of, run,
};
use serde_json::{Value, json};

#[test]
fn a_port_of_the_node_leads_to_its_pod_from_everywhere_until_the_pod_ends() {
    let node = node();
    let list = node.conflist("1.0.0", &[portmap()]);
    let [pod, other] = [fresh(), fresh()];
    let mapped = Transport::ALL.map(|transport| mapping(transport, None));
    let with_port = Attachment::new("with-port", path_of(&pod)).with("portMappings", json!(mapped));
    let without = Attachment::new("without", path_of(&other));
    for answer in node.plug("add", &list, &[with_port.clone(), without]) {
        let _ = answer.added();
    }
    let server = Server::start(&pod, POD_PORT);
    let places = [
        ("outside", &node.outside, None, NODE),
        ("outside", &node.outside, None, NODE6),
        ("the node by its loopback", &node.netns, None, "127.0.0.1"),
        ("the node by its loopback from its address", &node.netns, Some(NODE), "127.0.0.1"),
        ("the node by its address", &node.netns, None, NODE),
        ("the node by its address", &node.netns, None, NODE6),
        ("another pod", &other, None, NODE),
        ("another pod", &other, None, NODE6),
        ("the pod itself", &pod, None, NODE),
        ("the pod itself", &pod, None, NODE6),
    ];
    let ask = |way: &(&str, &NetNs, Option<&str>, &str)| {
        let (from, netns, source, to) = *way;
        let ask = |transport| {
            let to = SocketAddr::new(parsed(to), HOST_PORT);
            let seen = server.asked(transport, netns, source.map(parsed), to);
            seen.map_err(|error| format!("{from}: {error}"))
        };
        Transport::ALL.map(ask)
    };
    let failed: Vec<String> = places.iter().flat_map(&ask).filter_map(Result::err).collect();
    assert!(failed.is_empty(), "{failed:#?}");
    for answer in node.plug("del", &list, &[with_port]) {
        assert_eq!(answer.error, "");
    }
    // What nobody answers takes its time: one way of each kind.
    let some = [0, 1, 2, 5, 6].map(|index| &places[index]);
    let reached: Vec<_> = some.into_iter().flat_map(ask).filter_map(Result::ok).collect();
    assert!(reached.is_empty(), "the pod has ended: {reached:#?}");
}

/// "HostPort validates that there is no conflict between pods with same hostPort but different hostIP and protocol".
#[test]
fn one_port_serves_three_pods_by_address_and_protocol() {
    let node = node();
    let list = node.conflist("1.0.0", &[portmap()]);
    let pods = [fresh(), fresh(), fresh()];
    let mappings = [(Transport::Tcp, "127.0.0.1"), (Transport::Tcp, NODE), (Transport::Udp, NODE)];
    let attachments: Vec<Attachment> = (0..)
        .zip(pods.iter().zip(mappings))
        .map(|(number, (netns, (transport, address)))| {
            let ports = json!([mapping(transport, Some(address))]);
            Attachment::new(&format!("pod-{number}"), path_of(netns)).with("portMappings", ports)
        })
        .collect();
    // One after the other: portmap 1.1.1 fails where two make its first chain at once.
    for answer in
        attachments.iter().flat_map(|one| node.plug("add", &list, std::slice::from_ref(one)))
    {
        let _ = answer.added();
    }
    let servers = pods.each_ref().map(|netns| Server::start(netns, POD_PORT));
    for (server, (transport, address)) in servers.iter().zip(mappings) {
        let to = SocketAddr::new(parsed(address), HOST_PORT);
        // The conformance test asks the loopback from the node's own address.
        for source in [None, Some(parsed(NODE))] {
            let seen = server.asked(transport, &node.netns, source, to);
            seen.unwrap_or_else(|error| panic!("from {source:?}: {error}"));
        }
    }
    for (index, (server, (transport, address))) in servers.iter().zip(mappings).enumerate() {
        for answer in node.plug("del", &list, &attachments[index..=index]) {
            assert_eq!(answer.error, "");
        }
        let to = SocketAddr::new(parsed(address), HOST_PORT);
        assert!(server.asked(transport, &node.netns, None, to).is_err(), "{to}");
        for (server, (transport, address)) in servers.iter().zip(mappings).skip(index + 1) {
            let to = SocketAddr::new(parsed(address), HOST_PORT);
            let seen = server.asked(transport, &node.netns, None, to);
            seen.unwrap_or_else(|error| panic!("after another pod's end: {error}"));
        }
    }
}

fn node() -> Node {
    let mut node = Node::new(&POOLS);
    on(&node.netns, || {
        for program in ["iptables", "ip6tables"] {
            run(&format!("{program} -P FORWARD DROP"));
        }
        for interface in ["all", "default", "uplink"] {
            run(&format!("sysctl -q -w net.ipv4.conf.{interface}.rp_filter=1"));
        }
    });
    node.start_agent_and_wait(POOLS.len());
    node
}

fn portmap() -> Value {
    json!({"type": "portmap", "capabilities": {"portMappings": true}, "snat": true})
}

fn mapping(transport: Transport, address: Option<&str>) -> Value {
    let mut mapping = json!({
        "hostPort": HOST_PORT, "containerPort": POD_PORT, "protocol": transport.name(),
    });
    if let Some(address) = address {
        mapping["hostIP"] = address.into();
    }
    mapping
}

fn parsed(text: &str) -> IpAddr {
    text.parse().expect("an address")
}

const POOLS: [Pool<'static>; 2] = [
    Pool { name: "default", cidr: "10.244.0.0/16", block_size: 26 },
    Pool { name: "default6", cidr: "fd00:10:244::/48", block_size: 122 },
];
const POD_PORT: u16 = 9_000;
const HOST_PORT: u16 = 54_323;
