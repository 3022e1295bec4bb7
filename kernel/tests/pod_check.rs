//! What CHECK finds when somebody changes a pod's interface on either side.

mod support;

use cairn_kernel::pod::{self, Attached, Difference, Expected};

use support::pods::spec;
use support::{TestNetNs, ip, sh};

/// A node with one pod, whose interface is as it was answered.
struct Bed {
    node: TestNetNs,
    pod: TestNetNs,
    made: Attached,
}

impl Bed {
    fn create() -> Bed {
        let (node, pod) = (TestNetNs::node(), TestNetNs::create());
        let made = node.attach(&pod, &spec("c", &["10.244.0.5", "fd00::5"])).unwrap();
        let bed = Bed { node, pod, made };
        assert_eq!(bed.check(&bed.answered()), Ok(()));
        bed
    }

    fn answered(&self) -> Expected {
        Expected {
            container_id: "c".into(),
            ifname: "eth0".into(),
            network: "cairn".into(),
            // As little as the order of a result's addresses may matter.
            addresses: vec!["fd00::5".parse().unwrap(), "10.244.0.5".parse().unwrap()],
            gateways: self.made.gateways.clone(),
            mtu: Some(self.made.mtu),
        }
    }

    fn check(&self, expected: &Expected) -> Result<(), Difference> {
        pod::check(&mut self.node.netlink(), &self.pod, expected).unwrap()
    }

    /// Runs a shell command in one of the namespaces, with the host interface's name for HOST.
    fn change(&self, side: Side, command: &str) {
        let command = command.replace("HOST", &self.made.host_ifname);
        sh(if side == Side::Node { &self.node } else { &self.pod }, &command);
    }
}

#[derive(Clone, Copy, PartialEq)]
enum Side {
    Node,
    Pod,
}

#[test]
fn each_change_is_named_with_what_to_do() {
    let rows = [
        (Side::Node, "ip link del HOST", "the host interface HOST does not exist: delete the pod"),
        (
            Side::Node,
            "ip link set HOST alias ''",
            "HOST has the alias None and not the pod's record",
        ),
        (Side::Node, "ip link set HOST alias 'rack 7'", "has the alias Some(\"rack 7\")"),
        (Side::Node, "ip link set HOST down", "HOST is down: `ip link set HOST up` on the node"),
        (
            Side::Node,
            "ip link set HOST address 02:00:00:00:00:07",
            "has the Ethernet address 02:00:00:00:00:07, the pod sends to",
        ),
        (Side::Node, "ip route del 10.244.0.5", "no host route leads to 10.244.0.5 through HOST"),
        (Side::Node, "ip route del fd00::5", "no host route leads to fd00::5 through HOST"),
        (
            Side::Node,
            "ip route del 10.244.0.5; ip route add 10.244.0.5 dev uplink proto 223",
            "no host route leads to 10.244.0.5 through HOST",
        ),
        (
            Side::Node,
            "ip route del 10.244.0.5; ip route add 10.244.0.5 dev HOST proto static",
            "the host route to 10.244.0.5 is another program's (protocol 4)",
        ),
        (
            Side::Pod,
            "ip link set eth0 down; ip link set eth0 name eth9",
            "the pod has no interface eth0",
        ),
        (
            Side::Pod,
            "ip link set eth0 down; ip link set eth0 name eth9; ip link add eth0 type veth",
            "the pod's interface eth0 is not the other end of HOST",
        ),
        (
            Side::Pod,
            "ip link set eth0 down; ip link set eth0 name eth9; ip link add eth0 type bridge",
            "the pod's interface eth0 is not the other end of HOST",
        ),
        (Side::Pod, "ip link set eth0 down", "the pod's interface eth0 is down"),
        (Side::Pod, "ip link set eth0 mtu 1500", "eth0 has the MTU 1500, 1450 at most"),
        (
            Side::Pod,
            "ip address del 10.244.0.5/32 dev eth0",
            "does not have the address 10.244.0.5",
        ),
        (Side::Pod, "ip address del fd00::5/128 dev eth0", "does not have the address fd00::5"),
        (Side::Pod, "ip route del default", "no default route via 169.254.1.1 through eth0"),
        (Side::Pod, "ip -6 route del default", "no default route via fe80::1 through eth0"),
        (
            Side::Pod,
            "ip route replace default via 169.254.1.2 dev eth0 onlink",
            "no default route via 169.254.1.1 through eth0",
        ),
    ];
    for (side, command, sentence) in rows {
        let bed = Bed::create();
        bed.change(side, command);
        let found = bed.check(&bed.answered()).expect_err(command).to_string();
        let sentence = sentence.replace("HOST", &bed.made.host_ifname);
        assert!(found.contains(&sentence), "{command}: {found}");
        assert!(!found.contains('\n') && found.contains(": "), "{command}: {found}");
    }
}

#[test]
fn what_other_plugins_change_is_no_difference() {
    for command in [
        "ip link set eth0 address 02:00:00:00:00:09",
        "ip link set eth0 mtu 1400",
        "ip address add 192.0.2.77/24 dev eth0",
        "ip route add 198.51.100.0/24 via 169.254.1.1 dev eth0 onlink",
        "ip route add default via 169.254.1.3 dev eth0 onlink metric 50",
        "ip neighbour flush all nud all; ip -6 neighbour flush all nud all",
        "ip link add net1 type veth; ip link set net1 up",
    ] {
        let bed = Bed::create();
        bed.change(Side::Pod, command);
        assert_eq!(bed.check(&bed.answered()), Ok(()), "{command}");
    }
}

#[test]
fn what_was_not_answered_is_not_asked_for() {
    let bed = Bed::create();
    bed.change(Side::Pod, "ip link set eth0 mtu 9000; ip route del default");
    let less = Expected { mtu: None, gateways: vec!["fe80::1".parse().unwrap()], ..bed.answered() };
    assert_eq!(bed.check(&less), Ok(()));
    for other in [
        Expected { network: "another".into(), ..less.clone() },
        Expected { addresses: vec!["10.244.0.5".parse().unwrap()], ..less.clone() },
        Expected { addresses: vec!["10.244.0.5".parse().unwrap(); 2], ..less.clone() },
    ] {
        assert!(matches!(bed.check(&other), Err(Difference::Alias { .. })), "{other:?}");
    }
    let other = Expected { container_id: "d".into(), ..less };
    assert!(matches!(bed.check(&other), Err(Difference::NoInterface(_))));
}

#[test]
fn an_interface_of_that_name_that_is_no_pods_is_told() {
    let (node, pod) = (TestNetNs::node(), TestNetNs::create());
    let name = pod::host_interface_name("c", "eth0");
    ip(&node, &format!("link add {name} type bridge"));
    let expected = Expected {
        container_id: "c".into(),
        ifname: "eth0".into(),
        network: "cairn".into(),
        addresses: vec![],
        gateways: vec![],
        mtu: None,
    };
    let found = pod::check(&mut node.netlink(), &pod, &expected).unwrap();
    assert_eq!(found, Err(Difference::NotOurs(name)));
}
