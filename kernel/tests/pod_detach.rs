//! Many pods at once.

mod support;

use std::net::TcpListener;
use std::time::{Duration, Instant};

use cairn_kernel::pod;
use cairn_kernel::{Netlink, link};

use support::pods::{exchange, spec};
use support::{TestNetNs, ip, sh};

/// The first of the groups that `detach_many` takes.
const FIRST_GROUP: u32 = 0x4341_0000;

fn host_interfaces(node: &TestNetNs) -> Vec<String> {
    node.list().into_iter().map(|found| found.host_ifname).collect()
}

#[test]
fn many_interfaces_go_at_once_and_nothing_else_does() {
    let (node, pods) = (TestNetNs::node(), [(); 4].map(|()| TestNetNs::create()));
    for (number, pod) in pods.iter().enumerate() {
        node.attach(pod, &spec(&format!("pod{number}"), &[&format!("10.244.0.{number}")])).unwrap();
    }
    // Somebody uses the group that would be taken first.
    ip(&node, "link add stranger type veth");
    ip(&node, &format!("link set stranger group {FIRST_GROUP}"));
    // An interface whose alias names another container keeps its pod.
    let other = pod::host_interface_name("pod2", "eth0");
    let mut netlink = node.netlink();
    let index = link::find(&mut netlink, &other).unwrap().unwrap().index;
    link::set_alias(&mut netlink, index, "cairn2 other eth0 - 012abc 10.244.0.2").unwrap();

    let named = [("pod0", "eth0"), ("unknown", "eth0"), ("pod1", "eth0"), ("pod2", "eth0")];
    for _ in 0..2 {
        let outcomes = pod::detach_many(&mut netlink, &named);
        assert_eq!(outcomes.iter().filter(|outcome| outcome.is_ok()).count(), named.len());
        let mut left = host_interfaces(&node);
        left.sort();
        let mut expected = vec![other.clone(), pod::host_interface_name("pod3", "eth0")];
        expected.sort();
        assert_eq!(left, expected);
        assert!(link::find(&mut netlink, "stranger").unwrap().is_some());
        assert!(link::find(&mut pods[0].netlink(), "eth0").unwrap().is_none());
    }
    assert!(pod::detach_many(&mut netlink, &[]).is_empty());
}

#[test]
fn where_no_group_is_free_each_goes_by_itself() {
    let (node, pods) = (TestNetNs::node(), [(); 2].map(|()| TestNetNs::create()));
    for (number, pod) in pods.iter().enumerate() {
        node.attach(pod, &spec(&format!("pod{number}"), &[&format!("10.244.0.{number}")])).unwrap();
    }
    let taken = (0..8).map(|number| {
        let (a, b) = (FIRST_GROUP + 2 * number, FIRST_GROUP + 2 * number + 1);
        format!(
            "ip link add a{number} type veth peer name b{number}; ip link set a{number} group {a}; \
             ip link set b{number} group {b};"
        )
    });
    sh(&node, &taken.collect::<String>());
    let outcomes = pod::detach_many(&mut node.netlink(), &[("pod0", "eth0"), ("pod1", "eth0")]);
    assert!(outcomes.len() == 2 && outcomes.iter().all(Result::is_ok), "{outcomes:?}");
    assert!(host_interfaces(&node).is_empty());
    assert_eq!(link::list(&mut node.netlink()).unwrap().len(), 2 + 16, "lo and uplink besides");
}

#[test]
fn a_hundred_pods_come_and_go() {
    let node = TestNetNs::node();
    let pods: Vec<_> = (0..101).map(|_| TestNetNs::create()).collect();
    for (number, pod) in pods.iter().enumerate() {
        let (v4, v6) = (format!("10.244.1.{number}"), format!("fd00::1:{number}"));
        node.attach(pod, &spec(&format!("pod{number}"), &[&v4, &v6])).unwrap();
    }
    let listed = node.list();
    assert_eq!(listed.len(), 101);
    for found in &listed {
        assert!(found.alias.is_some() && found.missing_routes().is_empty(), "{found:?}");
    }
    exchange(&pods[0], &pods[99], "10.244.1.99");
    exchange(&pods[99], &pods[0], "fd00::1:0");

    let mut netlink = node.netlink();
    let start = Instant::now();
    pod::detach_container(&mut netlink, "pod100", "eth0").unwrap();
    let one = start.elapsed();
    let names: Vec<String> = (0..100).map(|number| format!("pod{number}")).collect();
    let all: Vec<(&str, &str)> = names.iter().map(|name| (name.as_str(), "eth0")).collect();
    let start = Instant::now();
    let outcomes = pod::detach_many(&mut netlink, &all);
    let hundred = start.elapsed();
    assert!(outcomes.len() == 100 && outcomes.iter().all(Result::is_ok), "{outcomes:?}");
    assert!(node.list().is_empty());
    println!(
        "one pod detached in {one:?}, 100 together in {hundred:?}: {:.1} times",
        hundred.as_secs_f64() / one.as_secs_f64()
    );
}

/// The node's first packet to a new pod needs no second attempt: a neighbour solicitation that is lost
/// while the kernel has not noticed the carrier is repeated only after a second.
#[test]
fn the_first_ipv6_packet_reaches_each_new_pod_at_once() {
    let node = TestNetNs::node();
    let pods: Vec<_> = (0..60).map(|_| TestNetNs::create()).collect();
    let listeners: Vec<TcpListener> =
        pods.iter().map(|pod| pod.run(|| TcpListener::bind("[::]:0").unwrap()).unwrap()).collect();
    let (mut made, mut took): (Vec<Duration>, Vec<Duration>) = node
        .run(|| {
            let mut netlink = Netlink::open().unwrap();
            let attach_and_reach = |(number, pod): (usize, &TestNetNs)| {
                let address = format!("fd00::1:{number}");
                let wanted = spec(&format!("pod{number}"), &[&address]);
                let start = Instant::now();
                pod::attach(&mut netlink, pod, &wanted).unwrap();
                let made = start.elapsed();
                let port = listeners[number].local_addr().unwrap().port();
                let to = (address.parse::<std::net::IpAddr>().unwrap(), port).into();
                let start = Instant::now();
                std::net::TcpStream::connect_timeout(&to, Duration::from_secs(5)).unwrap();
                (made, start.elapsed())
            };
            pods.iter().enumerate().map(attach_and_reach).unzip()
        })
        .unwrap();
    made.sort_unstable();
    took.sort_unstable();
    let (median, longest) = (took[took.len() / 2], took[took.len() - 1]);
    println!(
        "{} pods made in {:?} each (median); the first IPv6 connection to them: median {median:?}, \
         longest {longest:?}",
        took.len(),
        made[made.len() / 2]
    );
    assert!(median < Duration::from_millis(10), "{took:?}");
    // A busy machine is forgiven, a lost packet is not.
    assert!(longest < Duration::from_millis(900), "{took:?}");
}
