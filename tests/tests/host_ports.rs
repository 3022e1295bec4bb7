//! Ports of the node for pods: Debian's portmap behind our plugin, beside our packet filter, a FORWARD chain that
//! drops, and strict reverse path filters.

use std::net::{IpAddr, SocketAddr, UdpSocket};
use std::time::Duration;

use cairn_kernel::NetNs;
use cairn_tests::runtime::{
    Attachment, NODE, NODE6, Node, Pool, Server, Transport, addresses, fresh, on, path_of, run,
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
    let own = |netns: &NetNs, v4: bool| {
        addresses(netns).into_iter().find(|a| a.is_ipv4() == v4).expect("of each family")
    };
    // From where, by which address, to which, and who the pod sees, where that is the one who asks.
    let places = [
        ("outside", &node.outside, None, NODE, Some(own(&node.outside, true))),
        ("outside", &node.outside, None, NODE6, Some(own(&node.outside, false))),
        ("the node by its loopback", &node.netns, None, "127.0.0.1", None),
        ("the node from its address by its loopback", &node.netns, Some(NODE), "127.0.0.1", None),
        ("the node by its address", &node.netns, None, NODE, None),
        ("the node by its address", &node.netns, None, NODE6, None),
        ("another pod", &other, None, NODE, Some(own(&other, true))),
        ("another pod", &other, None, NODE6, Some(own(&other, false))),
        ("the pod itself", &pod, None, NODE, None),
        ("the pod itself", &pod, None, NODE6, None),
    ];
    let ask = |way: &(&str, &NetNs, Option<&str>, &str, Option<IpAddr>)| {
        let (from, netns, source, to, expected) = *way;
        let ask = |transport| {
            let to = SocketAddr::new(parsed(to), HOST_PORT);
            let seen = server.asked(transport, netns, source.map(parsed), to);
            let seen = seen.map_err(|error| format!("{from}: {error}"))?;
            match expected {
                Some(expected) if seen != expected => Err(format!("{from}: seen as {seen}")),
                _ => Ok(seen),
            }
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

/// What connection tracking remembers of the pod before must not keep a client from the next one.
#[test]
fn a_udp_client_that_stays_finds_the_next_pod_of_a_port() {
    let node = node();
    let list = node.conflist("1.0.0", &[portmap()]);
    let clients = [("0.0.0.0:0", NODE), ("[::]:0", NODE6)].map(|(own, address)| {
        on(&node.outside, || {
            let client = UdpSocket::bind(own).expect("a socket");
            client.connect(SocketAddr::new(parsed(address), HOST_PORT)).expect("a way");
            client.set_read_timeout(Some(Duration::from_secs(1))).expect("a timeout");
            client
        })
    });
    for name in ["first", "second"] {
        let pod = fresh();
        let ports = json!([mapping(Transport::Udp, None)]);
        let attachment = Attachment::new(name, path_of(&pod)).with("portMappings", ports);
        for answer in node.plug("add", &list, std::slice::from_ref(&attachment)) {
            let _ = answer.added();
        }
        let server = Server::start(&pod, POD_PORT);
        for client in &clients {
            // What was said to it while nobody was there.
            let _ = client.take_error();
            server.asked_by(client).unwrap_or_else(|error| panic!("the {name}: {error}"));
        }
        for answer in node.plug("del", &list, &[attachment]) {
            assert_eq!(answer.error, "");
        }
        drop(server);
        // It goes on asking while nobody is there.
        for client in &clients {
            let _ = client.send(b"anybody?");
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
