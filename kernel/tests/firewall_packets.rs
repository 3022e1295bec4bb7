//! What our table does to packets, with sources and tunnel packets that raw sockets make.
//!
//! ```text
//!  pod 10.244.0.5, fd00::5 ── node 192.0.2.1, 2001:db8::1 ── uplink ── outside 192.0.2.2 and others
//! ```

mod support;

use std::net::{IpAddr, SocketAddr, TcpListener, TcpStream, UdpSocket};
use std::os::fd::AsFd;
use std::thread;
use std::time::{Duration, Instant};

use cairn_kernel::firewall::{Firewall, FirewallKeeper, Outer, TunnelRule};
use cairn_kernel::link::{self, DuplicateDetection, Veth, VethEnd};
use cairn_kernel::pod::{self, PodSpec};
use cairn_kernel::route::Family;
use cairn_kernel::{NetNs, Netlink, sysctl};
use support::packets::{ip, raw_receiver, send, udp, vxlan};
use support::{TestNetNs, sh};

/// A node with a pod, and everything beyond its uplink in one namespace.
struct Bed {
    node: TestNetNs,
    pod: TestNetNs,
    outside: TestNetNs,
    wanted: Firewall,
}

impl Bed {
    fn new() -> Bed {
        Bed::with_pod(&POD)
    }

    fn with_pod(addresses: &[&str]) -> Bed {
        let (node, pod, outside) = (TestNetNs::create(), TestNetNs::create(), TestNetNs::create());
        let mut netlink = node.netlink();
        let pair = Veth {
            end: VethEnd::named("uplink"),
            peer: VethEnd::named("uplink"),
            peer_netns: Some(outside.as_fd()),
            mtu: None,
        };
        link::create_veth(&mut netlink, &pair).unwrap();
        let beyond =
            [OTHER_NODE, STRANGER, "2001:db8::2", "2001:db8::3", OUTSIDE, "2001:db8:0:1::7"];
        for (netns, addresses) in [(&node, &[NODE, "2001:db8::1"][..]), (&outside, &beyond)] {
            let mut netlink = netns.netlink();
            let uplink = link::find(&mut netlink, "uplink").unwrap().unwrap().index;
            link::set_up(&mut netlink, uplink).unwrap();
            for address in addresses {
                let length = if address.contains(':') { 64 } else { 24 };
                let address = format!("{address}/{length}").parse().unwrap();
                link::add_address(&mut netlink, uplink, address, DuplicateDetection::Skip).unwrap();
            }
        }
        for netns in [&node, &outside] {
            // So that only our table stands in the way of a wrong source.
            netns.run(|| sysctl::write("ipv4/conf/all/rp_filter", 0).unwrap()).unwrap();
            netns.run(|| sysctl::write("ipv4/conf/uplink/rp_filter", 0).unwrap()).unwrap();
        }
        for netns in [&node, &outside] {
            netns.run(|| Family::ALL.map(|f| sysctl::enable_forwarding(f).unwrap())).unwrap();
        }
        sh(&node, "ip route add 198.51.100.0/24 via 192.0.2.2");
        sh(&node, "ip route add 2001:db8:0:1::/64 via 2001:db8::2");
        // Outside knows the way back to pods, so that packets are seen as they were sent.
        sh(&outside, "ip route add 10.244.0.0/16 via 192.0.2.1");
        sh(&outside, "ip route add fd00::/16 via 2001:db8::1");
        let spec = PodSpec {
            container_id: "c".into(),
            ifname: "eth0".into(),
            pod_uid: None,
            network: "cairn".into(),
            addresses: addresses.iter().map(|address| address.parse().unwrap()).collect(),
            mac: None,
            blocks: vec!["10.244.0.0/24".parse().unwrap(), "fd00::/64".parse().unwrap()],
            mtu: 1450,
            node_addresses: vec![NODE.parse().unwrap(), "2001:db8::1".parse().unwrap()],
        };
        let attached =
            node.run(|| pod::attach(&mut Netlink::open().unwrap(), &pod, &spec).unwrap()).unwrap();
        let setting = format!("ipv4/conf/{}/rp_filter", attached.host_ifname);
        node.run(|| sysctl::write(&setting, 0).unwrap()).unwrap();
        let wanted = Firewall {
            pools: ["10.244.0.0/16", "fd00::/16"].map(|net| net.parse().unwrap()).into(),
            nodes: [NODE, OTHER_NODE, "2001:db8::1", "2001:db8::2"]
                .map(|address| address.parse().unwrap())
                .into(),
            ..Firewall::new(pod::HOST_INTERFACE_PREFIX)
        };
        Bed { node, pod, outside, wanted }
    }

    /// Adds the tunnel devices, as far as this kernel has them, and their rules.
    fn with_tunnels(mut self) -> Bed {
        sh(
            &self.node,
            "ip link add cairn.vxlan type vxlan id 198 dstport 4798 local 192.0.2.1 nolearning
             ip link set cairn.vxlan address 02:00:00:00:00:01 up
             ip address add 10.244.0.1/32 dev cairn.vxlan
             ip address add fd00::1/128 dev cairn.vxlan
             sysctl -qw net.ipv4.conf.cairn/vxlan.rp_filter=0
             ip route add 10.244.7.0/24 via 192.0.2.2 dev cairn.vxlan onlink
             ip neigh add 192.0.2.2 lladdr 02:00:00:00:00:02 dev cairn.vxlan
             bridge fdb add 02:00:00:00:00:02 dev cairn.vxlan dst 192.0.2.2",
        );
        let protect = [Outer::Vxlan { port: 4798, vni: 198 }, Outer::Ipip];
        self.wanted.tunnels = ["cairn.vxlan", "cairn.ipip"]
            .into_iter()
            .zip(protect)
            .map(|(device, protect)| TunnelRule {
                device,
                addresses: vec![TUNNEL.parse().unwrap(), "fd00::1".parse().unwrap()],
                local: NODE.parse().unwrap(),
                protect,
            })
            .collect();
        self
    }

    fn protect(&self) {
        let netns = NetNs::open(&self.node.name).unwrap();
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        runtime.block_on(async {
            let mut keeper = FirewallKeeper::open_in(netns).unwrap();
            keeper.set(self.wanted.clone());
            let pass = keeper.apply(Instant::now()).await;
            assert_eq!((pass.writes, pass.failed), (1, 0), "{:?}", keeper.problems());
        });
    }

    /// How many packets the rules of a chain have counted.
    fn dropped(&self, chain: &str) -> u64 {
        let rules = sh(&self.node, &format!("nft list chain inet cairn {chain}"));
        let words: Vec<&str> = rules.split_whitespace().collect();
        let counts = words.windows(2).filter(|pair| pair[0] == "packets");
        counts.map(|pair| pair[1].parse::<u64>().unwrap()).sum()
    }

    fn connections(&self) -> i64 {
        self.node.run(|| sysctl::read("netfilter/nf_conntrack_count").unwrap()).unwrap()
    }
}

fn listen(netns: &NetNs, address: &str, port: u16) -> UdpSocket {
    let address = SocketAddr::new(address.parse().unwrap(), port);
    let socket = netns.run(|| UdpSocket::bind(address).unwrap()).unwrap();
    socket.set_read_timeout(Some(Duration::from_secs(5))).unwrap();
    socket
}

/// The next packet: whom it came from and what it said.
fn received(socket: &UdpSocket) -> (IpAddr, String) {
    let mut buffer = [0; 2048];
    let (length, from) = socket.recv_from(&mut buffer).expect("a packet within 5 s");
    (from.ip(), String::from_utf8_lossy(&buffer[..length]).into_owned())
}

fn said(socket: &UdpSocket) -> String {
    received(socket).1
}

#[test]
fn a_pod_sends_from_its_own_addresses_only() {
    let bed = Bed::new();
    for (own, other, unused, to) in [
        (POD[0], "203.0.113.5", "10.244.0.77", OUTSIDE),
        (POD[1], "2001:db8:5::9", "fd00::77", "2001:db8:0:1::7"),
    ] {
        let socket = listen(&bed.outside, to, 9000);
        // Without the table the network takes it: what follows could fail.
        send(&bed.pod, &udp(other, to, 9000, b"spoofed"));
        assert_eq!(said(&socket), "spoofed");
        bed.protect();
        let before = bed.dropped("from_pod");
        for source in [other, unused, NODE_OF[usize::from(own.contains(':'))]] {
            send(&bed.pod, &udp(source, to, 9000, source.as_bytes()));
            // To the node itself too.
            send(&bed.pod, &udp(source, NODE_OF[usize::from(own.contains(':'))], 9000, b"node"));
        }
        send(&bed.pod, &udp(own, to, 9000, b"own"));
        assert_eq!(said(&socket), "own", "nothing came before it");
        assert_eq!(bed.dropped("from_pod") - before, 6);
        sh(&bed.node, "nft delete table inet cairn");
    }
}

#[test]
fn neighbour_discovery_of_a_pod_passes() {
    let bed = Bed::new();
    bed.protect();
    // From the unspecified address: detection of duplicates, router solicitation, listener report.
    let neighbour = [135, 0, 0, 0, 0, 0, 0, 0, 0xfd, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 5];
    for to in ["ff02::1:ff00:5", "ff02::2", "ff02::16"] {
        let packet = ip("::".parse().unwrap(), to.parse().unwrap(), 58, &neighbour);
        // A raw socket needs a way to send multicast.
        sh(&bed.pod, "ip -6 route replace multicast ff00::/8 dev eth0 table local");
        send(&bed.pod, &packet);
    }
    assert_eq!(bed.dropped("from_pod"), 0);
    // As a whole: the addresses detect duplicates, then the neighbours forget each other.
    sh(
        &bed.pod,
        "ip -6 address add fe80::5/64 dev eth0
         ip -6 neigh flush dev eth0
         until ip -6 -o address show dev eth0 | grep fe80::5 | grep -vq tentative; do sleep 0.05; done",
    );
    let socket = listen(&bed.node, "::", 9000);
    sh(&bed.node, "ip -6 neigh flush all");
    let to: SocketAddr = "[2001:db8::1]:9000".parse().unwrap();
    bed.pod.run(|| UdpSocket::bind("[fd00::5]:0").unwrap().send_to(b"v6", to).unwrap()).unwrap();
    assert_eq!(said(&socket), "v6");
    let link_local = "ip -6 neigh get fe80::1 dev eth0 >/dev/null || ping -6 -c1 -W2 fe80::1%eth0";
    sh(&bed.pod, link_local);
    assert_eq!(bed.dropped("from_pod"), 0);
}

/// It has a link-local address all the same, and tells its link about it.
/// CVE-2020-10749: whoever believed it would send what is for the Internet to the pod.
#[test]
fn a_pod_is_no_router() {
    let bed = Bed::new();
    bed.protect();
    sh(&bed.pod, "ip -6 route replace multicast ff00::/8 dev eth0 table local");
    let advertisement = [134, 0, 0, 0, 64, 0, 7, 8, 0, 0, 0, 0, 0, 0, 0, 0];
    let redirect = [&[137, 0, 0, 0, 0, 0, 0, 0][..], &[0; 32]].concat();
    for (count, message) in [(1, &advertisement[..]), (2, &redirect)] {
        send(&bed.pod, &ip("fe80::7".parse().unwrap(), "ff02::1".parse().unwrap(), 58, message));
        let deadline = std::time::Instant::now() + Duration::from_secs(5);
        while bed.dropped("from_pod") != count {
            assert!(std::time::Instant::now() < deadline, "{count}: {}", bed.dropped("from_pod"));
        }
    }
    let rule = sh(&bed.node, "nft list chain inet cairn from_pod | grep router-advert");
    assert!(rule.contains("packets 2 "), "not as spoofed: {rule}");
}

#[test]
fn what_a_pod_without_ipv6_says_to_its_link_is_not_counted_as_spoofed() {
    let bed = Bed::with_pod(&POD[..1]);
    bed.protect();
    sh(
        &bed.node,
        "nft 'table ip6 heard { chain c { type filter hook prerouting priority -310; \\
         iifname cairn* ip6 saddr fe80::/10 counter; }; }'",
    );
    sh(
        &bed.pod,
        "sysctl -qw net.ipv6.conf.all.disable_ipv6=0 net.ipv6.conf.eth0.disable_ipv6=0
         ip link set eth0 down; ip link set eth0 up
         until ip -6 -o address show dev eth0 | grep 'fe80::' | grep -vq tentative; do sleep 0.05; done
         ping -6 -c1 -W1 ff02::2%eth0 || true",
    );
    let heard = sh(&bed.node, "nft list table ip6 heard");
    assert!(!heard.contains("packets 0 "), "the node hears it: {heard}");
    assert_eq!(bed.dropped("from_pod"), 0);
}

/// A packet that VXLAN would deliver to the node's tunnel address, as if from another pod.
fn injected(source: &str, to: &str, says: &[u8]) -> Vec<u8> {
    let inner = udp("10.244.9.9", TUNNEL, 9000, says);
    udp(source, to, 4798, &vxlan(198, [2, 0, 0, 0, 0, 1], &inner))
}

#[test]
fn vxlan_comes_from_nodes_only() {
    let bed = Bed::new().with_tunnels();
    let socket = listen(&bed.node, TUNNEL, 9000);
    for (from, source) in [(&bed.outside, STRANGER), (&bed.pod, POD[0])] {
        send(from, &injected(source, NODE, b"injected"));
        assert_eq!(received(&socket), ("10.244.9.9".parse().unwrap(), "injected".into()));
    }
    bed.protect();
    send(&bed.outside, &injected(STRANGER, NODE, b"stranger"));
    send(&bed.pod, &injected(POD[0], NODE, b"pod"));
    send(&bed.pod, &injected(OTHER_NODE, NODE, b"pod as node"));
    send(&bed.outside, &injected(OTHER_NODE, NODE, b"node"));
    assert_eq!(said(&socket), "node", "nothing came before it");
    assert_eq!((bed.dropped("input"), bed.dropped("from_pod")), (2, 1));
}

/// The first fragment ends with the header of UDP, so that no rule sees the VXLAN header in it.
#[test]
fn fragments_do_not_bring_vxlan_past_the_rules() {
    let bed = Bed::new().with_tunnels();
    let socket = listen(&bed.node, TUNNEL, 9000);
    let send_in_two = |source: &str, says: &[u8]| {
        let whole = injected(source, NODE, says);
        let (header, body) = whole.split_at(20);
        for (part, flags_and_offset) in [(&body[..8], 0x2000_u16), (&body[8..], 1)] {
            let mut packet = [header, part].concat();
            packet[6..8].copy_from_slice(&flags_and_offset.to_be_bytes());
            // Length and checksum of such a packet are filled in by the socket.
            send(&bed.outside, &packet);
        }
    };
    send_in_two(STRANGER, b"injected");
    assert_eq!(said(&socket), "injected", "without the table");
    bed.protect();
    send_in_two(STRANGER, b"stranger");
    send_in_two(OTHER_NODE, b"node");
    assert_eq!(said(&socket), "node", "nothing came before it");
    assert_eq!(bed.dropped("input"), 1);
}

#[test]
fn vxlan_over_ipv6_comes_from_nodes_only_and_is_not_tracked() {
    let mut bed = Bed::new().with_tunnels();
    sh(
        &bed.node,
        "ip link delete cairn.vxlan
         ip link add cairn.vxlan type vxlan id 198 dstport 4798 local 2001:db8::1 nolearning
         ip link set cairn.vxlan address 02:00:00:00:00:01 up
         ip address add 10.244.0.1/32 dev cairn.vxlan
         sysctl -qw net.ipv4.conf.cairn/vxlan.rp_filter=0",
    );
    bed.wanted.tunnels.truncate(1);
    bed.wanted.tunnels[0].local = "2001:db8::1".parse().unwrap();
    let socket = listen(&bed.node, TUNNEL, 9000);
    let outer = |source: &str, says: &[u8]| {
        let inner = udp("10.244.9.9", TUNNEL, 9000, says);
        udp(source, "2001:db8::1", 4798, &vxlan(198, [2, 0, 0, 0, 0, 1], &inner))
    };
    send(&bed.outside, &outer("2001:db8::3", b"injected"));
    assert_eq!(said(&socket), "injected", "without the table");
    bed.protect();
    send(&bed.outside, &outer("2001:db8::3", b"stranger"));
    send(&bed.pod, &outer(POD[1], b"pod"));
    let before = bed.connections();
    send(&bed.outside, &outer("2001:db8::2", b"node"));
    assert_eq!(said(&socket), "node", "nothing came before it");
    assert_eq!(bed.connections(), before + 1, "the inner packet");
    assert_eq!(bed.dropped("input"), 2);
    // Nor does it get to another node.
    send(&bed.pod, &udp(POD[1], "2001:db8:0:1::7", 4798, &outer(POD[1], b"pod")[48..]));
    assert_eq!(bed.dropped("forward"), 1);
}

#[test]
fn a_pod_cannot_send_vxlan_to_another_node_with_this_nodes_address() {
    let mut bed = Bed::new().with_tunnels();
    bed.wanted.tunnel_pools = bed.wanted.pools.clone();
    bed.wanted.tunnel_nodes.insert(OTHER_NODE.parse().unwrap());
    bed.wanted.nat_pools = bed.wanted.pools.clone();
    bed.protect();
    let tunnel_port = listen(&bed.outside, "0.0.0.0", 4798);
    let other_port = listen(&bed.outside, OTHER_NODE, 4799);
    // To the node, masqueraded, and to another address of it that is in no set.
    send(&bed.pod, &injected(POD[0], OTHER_NODE, b"x"));
    send(&bed.pod, &injected(POD[0], OUTSIDE, b"x"));
    send(&bed.pod, &udp(POD[0], OTHER_NODE, 4799, b"another port"));
    assert_eq!(received(&other_port), (NODE.parse().unwrap(), "another port".into()));
    tunnel_port.set_nonblocking(true).unwrap();
    assert!(tunnel_port.recv(&mut [0; 9]).is_err(), "both were sent before");
    assert_eq!(bed.dropped("forward"), 2);
}

#[test]
fn ip_in_ip_comes_from_nodes_only() {
    let bed = Bed::new().with_tunnels();
    let socket = raw_receiver(&bed.node, libc::IPPROTO_IPIP);
    let packet = |source: &str, to: &str, says: &[u8]| {
        let inner = udp("10.244.9.9", TUNNEL, 9000, says);
        ip(source.parse().unwrap(), to.parse().unwrap(), 4, &inner)
    };
    let next = || {
        let mut buffer = [0; 2048];
        let length = socket.recv(&mut buffer).expect("a packet within 5 s");
        String::from_utf8_lossy(&buffer[48..length]).into_owned()
    };
    send(&bed.outside, &packet(STRANGER, NODE, b"injected"));
    assert_eq!(next(), "injected", "without the table");
    bed.protect();
    send(&bed.outside, &packet(STRANGER, NODE, b"stranger"));
    send(&bed.pod, &packet(POD[0], NODE, b"pod"));
    send(&bed.outside, &packet(OTHER_NODE, NODE, b"node"));
    assert_eq!(next(), "node", "nothing came before it");
    assert_eq!(bed.dropped("input"), 2);
    send(&bed.pod, &packet(POD[0], OTHER_NODE, b"pod"));
    send(&bed.outside, &packet(OTHER_NODE, NODE, b"last"));
    assert_eq!(next(), "last");
    assert_eq!(bed.dropped("forward"), 1);
}

#[test]
fn tunnel_packets_are_not_tracked() {
    let bed = Bed::new().with_tunnels();
    bed.protect();
    let inside = listen(&bed.node, TUNNEL, 9000);
    let before = bed.connections();
    let plain = listen(&bed.node, NODE, 9001);
    send(&bed.outside, &udp(OTHER_NODE, NODE, 9001, b"plain"));
    assert_eq!(said(&plain), "plain");
    assert_eq!(bed.connections(), before + 1, "a plain packet is tracked");
    // The inner packet is, the outer is not.
    send(&bed.outside, &injected(OTHER_NODE, NODE, b"in"));
    assert_eq!(said(&inside), "in");
    assert_eq!(bed.connections(), before + 2);
    let beyond = listen(&bed.outside, OTHER_NODE, 4798);
    let to: SocketAddr = "10.244.7.7:9000".parse().unwrap();
    bed.node.run(|| UdpSocket::bind("0.0.0.0:0").unwrap().send_to(b"out", to).unwrap()).unwrap();
    assert!(said(&beyond).ends_with("out"));
    assert_eq!(bed.connections(), before + 3);
}

#[test]
fn what_the_node_sends_through_a_tunnel_has_the_tunnels_address() {
    let bed = Bed::new().with_tunnels();
    bed.protect();
    let beyond = listen(&bed.outside, OTHER_NODE, 4798);
    let inner_source = |from: &str| {
        let to: SocketAddr = "10.244.7.7:9000".parse().unwrap();
        let from = SocketAddr::new(from.parse().unwrap(), 0);
        bed.node.run(|| UdpSocket::bind(from).unwrap().send_to(b"x", to).unwrap()).unwrap();
        let mut buffer = [0; 2048];
        beyond.recv(&mut buffer).unwrap();
        // After the headers of VXLAN and Ethernet, in that of IP.
        IpAddr::from(<[u8; 4]>::try_from(&buffer[8 + 14 + 12..][..4]).unwrap()).to_string()
    };
    assert_eq!(inner_source(NODE), TUNNEL);
    assert_eq!(inner_source(TUNNEL), TUNNEL);
    // A pod keeps its own.
    send(&bed.pod, &udp(POD[0], "10.244.7.7", 9000, b"x"));
    let mut buffer = [0; 2048];
    beyond.recv(&mut buffer).unwrap();
    assert_eq!(buffer[8 + 14 + 12..][..4], [10, 244, 0, 5]);
}

#[test]
fn pods_leave_with_the_nodes_address_where_that_is_wanted() {
    let mut bed = Bed::new();
    bed.wanted.nat_pools = bed.wanted.pools.clone();
    let seen = |bed: &Bed, to: &str| {
        let own = POD[usize::from(to.contains(':'))];
        let socket = listen(&bed.outside, to, 9000);
        send(&bed.pod, &udp(own, to, 9000, b"x"));
        received(&socket).0.to_string()
    };
    sh(
        &bed.outside,
        "ip address add 10.244.9.9/32 dev lo; ip address add fd00:9::9/128 dev lo
         ip address add 203.0.113.9/32 dev lo; ip address add 2001:db8:5::9/128 dev lo",
    );
    sh(
        &bed.node,
        "ip route add 10.244.9.0/24 via 192.0.2.2; ip route add fd00:9::/64 via 2001:db8::2
         ip route add 203.0.113.0/24 via 192.0.2.2; ip route add 2001:db8:5::/64 via 2001:db8::2",
    );
    bed.wanted.excluded =
        ["203.0.113.0/24", "2001:db8:5::/48"].map(|net| net.parse().unwrap()).into();
    bed.protect();
    for (to, source) in [
        (OUTSIDE, NODE),
        ("2001:db8:0:1::7", "2001:db8::1"),
        // Another pod, another node, an excluded destination.
        ("10.244.9.9", POD[0]),
        ("fd00:9::9", POD[1]),
        (OTHER_NODE, POD[0]),
        ("2001:db8::2", POD[1]),
        ("203.0.113.9", POD[0]),
        ("2001:db8:5::9", POD[1]),
    ] {
        assert_eq!(seen(&bed, to), source, "to {to}");
    }
    // A node to whose blocks a tunnel leads, though it is excluded.
    sh(&bed.node, "nft delete table inet cairn");
    bed.wanted.tunnel_nodes =
        [OTHER_NODE, "2001:db8::2"].map(|address| address.parse().unwrap()).into();
    bed.wanted.excluded.insert("192.0.2.0/24".parse().unwrap());
    bed.wanted.nat_pools.clear();
    bed.protect();
    assert_eq!(seen(&bed, OTHER_NODE), POD[0], "no tunnel leads to this pod's block");
    sh(&bed.node, "nft delete table inet cairn");
    bed.wanted.tunnel_pools = bed.wanted.pools.clone();
    bed.protect();
    for (to, source) in [(OTHER_NODE, NODE), ("2001:db8::2", "2001:db8::1")] {
        let socket = listen(&bed.outside, to, 9002);
        send(&bed.pod, &udp(POD[usize::from(to.contains(':'))], to, 9002, b"x"));
        assert_eq!(received(&socket).0.to_string(), source);
    }
}

/// The kernel judges a flow by its first packet, and these began before there was a rule.
#[test]
fn an_unanswered_flow_gets_the_rule_that_came_later_and_an_answered_one_stays() {
    let mut bed = Bed::new();
    // To these nodes through a Service.
    sh(
        &bed.node,
        "nft add table ip service; \
         nft add chain ip service pre '{ type nat hook prerouting priority dstnat; }'; \
         nft add rule ip service pre ip daddr 10.96.0.1 udp dport 443 dnat to 192.0.2.2:9001",
    );
    bed.wanted.tunnel_pools = bed.wanted.pools.clone();
    bed.protect();
    let cases = [
        (OTHER_NODE, OTHER_NODE, 9000),
        ("10.96.0.1", OTHER_NODE, 443),
        ("2001:db8::2", "2001:db8::2", 9002),
    ];
    let port = |port: u16| if port == 443 { 9001 } else { port };
    let sockets = cases.map(|(_, node, to)| listen(&bed.outside, node, port(to)));
    let answered = listen(&bed.outside, OTHER_NODE, 9003);
    let own = |to: &str| POD[usize::from(to.contains(':'))];
    let round = |bed: &Bed| -> Vec<IpAddr> {
        for (to, _, port) in cases {
            send(&bed.pod, &udp(own(to), to, port, b"x"));
        }
        sockets.iter().map(|socket| received(socket).0).collect()
    };
    let from_pod: Vec<IpAddr> = cases.map(|(to, ..)| own(to).parse().unwrap()).into();
    assert_eq!(round(&bed), from_pod);
    let client = bed.pod.run(|| UdpSocket::bind((POD[0], 0)).unwrap()).unwrap();
    let say = |socket: &UdpSocket| {
        client.send_to(b"x", (OTHER_NODE, 9003)).unwrap();
        let mut buffer = [0; 9];
        let (_, from) = socket.recv_from(&mut buffer).unwrap();
        socket.send_to(b"y", from).unwrap();
        client.recv(&mut buffer).unwrap();
        from.ip()
    };
    assert_eq!(say(&answered), from_pod[0]);

    bed.wanted.tunnel_nodes =
        [OTHER_NODE, "2001:db8::2"].map(|address| address.parse().unwrap()).into();
    bed.protect();
    let node: [IpAddr; 3] = [NODE, NODE, "2001:db8::1"].map(|address| address.parse().unwrap());
    assert_eq!(round(&bed), node);
    assert_eq!(say(&answered), from_pod[0], "a change of its address would end it");
}

/// A Service whose only endpoint is the pod, by kube-proxy's rules in short.
#[test]
fn a_pod_reaches_itself_through_its_service() {
    let nftables = "nft -f - <<'END'
        table ip kube-proxy {
            chain nat-prerouting {
                type nat hook prerouting priority dstnat;
                ip daddr 10.96.0.10 tcp dport 80 dnat to 10.244.0.5:8080
            }
            chain nat-postrouting {
                type nat hook postrouting priority srcnat;
                ip saddr 10.244.0.5 ip daddr 10.244.0.5 masquerade fully-random
            }
        }\nEND"
        .to_owned();
    let iptables = |command: &str| {
        [
            "-N KUBE-SEP",
            "-A PREROUTING -d 10.96.0.10/32 -p tcp --dport 80 -j KUBE-SEP",
            "-A KUBE-SEP -s 10.244.0.5/32 -j MARK --or-mark 0x4000",
            "-A KUBE-SEP -p tcp -j DNAT --to-destination 10.244.0.5:8080",
            "-A POSTROUTING -m mark ! --mark 0x4000/0x4000 -j RETURN",
            "-A POSTROUTING -j MARK --xor-mark 0x4000",
            "-A POSTROUTING -j MASQUERADE --random-fully",
        ]
        .map(|rule| format!("{command} -t nat {rule}\n"))
        .concat()
    };
    for rules in [nftables, iptables("iptables-nft"), iptables("iptables-legacy")] {
        // Whichever comes first.
        for ours_first in [true, false] {
            let mut bed = Bed::new();
            bed.wanted.nat_pools = bed.wanted.pools.clone();
            if ours_first {
                bed.protect();
            }
            sh(&bed.node, &rules);
            if !ours_first {
                bed.protect();
            }
            assert_eq!(client_of(&bed, "10.96.0.10:80"), NODE, "{rules} {ours_first}");
            let socket = listen(&bed.outside, OUTSIDE, 9000);
            send(&bed.pod, &udp(POD[0], OUTSIDE, 9000, b"x"));
            assert_eq!(received(&socket).0.to_string(), NODE, "{rules} {ours_first}");
        }
    }
}

/// Whom the pod's server on port 8080 sees when the pod connects to `service`.
fn client_of(bed: &Bed, service: &str) -> String {
    let listener = bed.pod.run(|| TcpListener::bind("10.244.0.5:8080").unwrap()).unwrap();
    let service: SocketAddr = service.parse().unwrap();
    thread::scope(|scope| {
        let server = scope.spawn(move || listener.accept().unwrap().1.ip().to_string());
        bed.pod
            .run(|| TcpStream::connect_timeout(&service, Duration::from_secs(5)).unwrap())
            .unwrap();
        server.join().unwrap()
    })
}

const NODE: &str = "192.0.2.1";
const NODE_OF: [&str; 2] = [NODE, "2001:db8::1"];
const OTHER_NODE: &str = "192.0.2.2";
/// On the node's subnet, and no node.
const STRANGER: &str = "192.0.2.3";
const OUTSIDE: &str = "198.51.100.7";
const POD: [&str; 2] = ["10.244.0.5", "fd00::5"];
const TUNNEL: &str = "10.244.0.1";
