//! Which addresses others reach this node at, at most one a family.
//!
//! In this order: the annotation of the Node, the configured interface or networks, what the kubelet
//! says, the way to the API server. An address that is only one of many on the node, as a service's, is
//! never chosen by itself.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, UdpSocket};

use cairn_api::{ANNOTATION_NODE_ADDRESSES, NodeAddress};
use ipnet::IpNet;
use k8s_openapi::api::core::v1::Node;

/// An address of this node.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct OwnAddress {
    /// The name of its interface.
    pub interface: String,
    /// The address, with the prefix length of its subnet.
    pub address: IpNet,
    /// It is to stay: neither temporary, deprecated nor tentative, nor one more of its subnet.
    pub lasting: bool,
}

/// Whether `address` lies in a subnet of `own`, so that no router is between.
pub fn is_near(own: &[OwnAddress], address: IpAddr) -> bool {
    own.iter().any(|own| own.address.contains(&address))
}

/// Chooses.
#[derive(Clone, Copy, Debug)]
pub struct AddressChooser<'a> {
    /// What is configured.
    pub settings: &'a NodeAddress,
    /// The node's own addresses, in the kernel's order.
    pub own: &'a [OwnAddress],
    /// The address from which it reaches the API server.
    pub towards_api: Option<IpAddr>,
    /// Where others know it, without what it has lost for long.
    pub before: &'a [IpAddr],
}

impl AddressChooser<'_> {
    /// The addresses of `node`, IPv4 first. What cannot be followed is a problem, and the next rule
    /// decides.
    pub fn choose(&self, node: &Node, name: &str, problems: &mut Vec<String>) -> Vec<IpAddr> {
        let annotations = node.metadata.annotations.as_ref();
        if let Some(text) = annotations.and_then(|map| map.get(ANNOTATION_NODE_ADDRESSES)) {
            match annotated(text) {
                Some(addresses) => return addresses,
                None => problems.push(format!(
                    "Node {name}: annotation {ANNOTATION_NODE_ADDRESSES}=\"{text}\" is not used: write \
                     at most one IPv4 and one IPv6 address with a comma between"
                )),
            }
        }
        let told = match (&self.settings.interface, &self.settings.cidrs) {
            (Some(interface), _) => {
                let found = self.best(|own| own.interface == *interface);
                Some((found, format!("no interface {interface} with an address")))
            }
            (None, Some(cidrs)) => {
                let cidrs: Vec<IpNet> = cidrs.iter().filter_map(|text| text.parse().ok()).collect();
                let within =
                    |own: &OwnAddress| cidrs.iter().any(|cidr| cidr.contains(&own.address.addr()));
                Some((self.best(within), "no address in the networks".to_owned()))
            }
            (None, None) => None,
        };
        if let Some((Choice { addresses, lacks, .. }, what)) = told {
            if lacks {
                problems.push(format!(
                    "this node has {what} that its NodeConfiguration's nodeAddress names: {}",
                    match addresses.as_slice() {
                        [] => "the InternalIP of the Node is used",
                        _ => "it stays for a minute at the address that others know",
                    }
                ));
            }
            if !addresses.is_empty() {
                return addresses;
            }
        }
        let internal = internal_addresses(node);
        if !internal.is_empty() {
            return internal;
        }
        // A Node that is registered anew is without for a while.
        let known = self.before.iter().filter(|address| self.find(**address).is_some());
        let mut found: Vec<IpAddr> = known.copied().collect();
        if found.is_empty() {
            found = self.best(|own| self.towards_api == Some(own.address.addr())).current;
        }
        if !found.is_empty() {
            let addresses: Vec<String> = found.iter().map(IpAddr::to_string).collect();
            problems.push(format!(
                "Node {name} has no InternalIP in its status, which the kubelet or the cloud's controller \
                 sets: {} is used until then",
                addresses.join(", ")
            ));
        }
        found
    }

    fn find(&self, address: IpAddr) -> Option<&OwnAddress> {
        self.own.iter().find(|own| own.address.addr() == address)
    }

    /// Of the addresses that pass the best one of each family: one with a subnet, which those of
    /// services and failovers mostly lack, then one that is to stay, then that which others know, then
    /// the kernel's first. What others know stays while it is gone for a moment and nothing as good is
    /// there.
    fn best(&self, passes: impl Fn(&OwnAddress) -> bool) -> Choice {
        let alone = |own: &OwnAddress| own.address.prefix_len() == own.address.max_prefix_len();
        let passes = |own: &&OwnAddress| {
            // kube-proxy and the like make Services the node's own.
            !SERVICE_INTERFACES.contains(&own.interface.as_str()) && passes(own)
        };
        let worse = |own: &&OwnAddress| {
            (alone(own), !own.lasting, !self.before.contains(&own.address.addr()))
        };
        let mut choice = Choice { addresses: Vec::new(), current: Vec::new(), lacks: true };
        for v4 in [true, false] {
            let passing = self.own.iter().filter(|own| own.address.addr().is_ipv4() == v4);
            let best = passing.filter(passes).min_by_key(worse);
            let mut known = self.before.iter().filter(|known| known.is_ipv4() == v4);
            let lost = known.find(|known| self.find(**known).is_none());
            let is_weak = best.is_none_or(|own| alone(own) || !own.lasting);
            let best = best.map(|own| own.address.addr());
            choice.lacks &= best.is_none();
            choice.current.extend(best);
            choice.addresses.extend(lost.copied().filter(|_| is_weak).or(best));
        }
        choice
    }
}

/// Addresses by a rule, at most one a family, IPv4 first.
struct Choice {
    /// Those to use.
    addresses: Vec<IpAddr>,
    /// Those that pass now.
    current: Vec<IpAddr>,
    /// None passes.
    lacks: bool,
}

/// The addresses in an annotation.
fn annotated(text: &str) -> Option<Vec<IpAddr>> {
    let all: Option<Vec<IpAddr>> = text.split(',').map(|part| part.trim().parse().ok()).collect();
    let all = all?;
    let chosen = one_a_family(&all);
    let usable = |address: &IpAddr| !address.is_unspecified() && !address.is_loopback();
    (chosen.len() == all.len() && chosen.iter().all(usable)).then_some(chosen)
}

/// The first InternalIP of each family, IPv4 first.
pub fn internal_addresses(node: &Node) -> Vec<IpAddr> {
    let all: Vec<IpAddr> = node
        .status
        .iter()
        .flat_map(|status| status.addresses.iter().flatten())
        .filter(|address| address.type_ == "InternalIP")
        .filter_map(|address| address.address.parse().ok())
        .collect();
    one_a_family(&all)
}

/// The address from which packets of this host to `destination` come, as its routes are now. Nothing is
/// sent.
pub fn source_towards(destination: IpAddr) -> Option<IpAddr> {
    let any: IpAddr = match destination {
        IpAddr::V4(_) => Ipv4Addr::UNSPECIFIED.into(),
        IpAddr::V6(_) => Ipv6Addr::UNSPECIFIED.into(),
    };
    let socket = UdpSocket::bind((any, 0)).ok()?;
    // The discard port: a UDP socket is only told where it would send to.
    socket.connect((destination, 9)).ok()?;
    Some(socket.local_addr().ok()?.ip())
}

fn one_a_family(all: &[IpAddr]) -> Vec<IpAddr> {
    let first = |v4: bool| all.iter().copied().find(|address| address.is_ipv4() == v4);
    first(true).into_iter().chain(first(false)).collect()
}

/// Where kube-proxy in ipvs mode and the node-local DNS cache put addresses of Services.
const SERVICE_INTERFACES: [&str; 2] = ["kube-ipvs0", "nodelocaldns"];

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn own(interface: &str, address: &str) -> OwnAddress {
        OwnAddress {
            interface: interface.into(),
            address: address.parse().expect("a network"),
            lasting: true,
        }
    }

    fn node(annotation: Option<&str>) -> Node {
        let annotations = annotation.map(|text| json!({ANNOTATION_NODE_ADDRESSES: text}));
        serde_json::from_value(json!({
            "metadata": {"name": "n1", "annotations": annotations},
            "status": {"addresses": [
                {"type": "Hostname", "address": "n1"},
                {"type": "InternalIP", "address": "fd00::1"},
                {"type": "InternalIP", "address": "192.0.2.1"},
                {"type": "InternalIP", "address": "192.0.2.9"},
            ]},
        }))
        .expect("a Node")
    }

    fn chosen(annotation: Option<&str>, settings: &NodeAddress) -> (Vec<String>, usize) {
        let own = [
            own("lo", "203.0.113.1/32"),
            own("eth0", "203.0.113.7/32"),
            own("eth0", "192.0.2.1/24"),
            own("eth1", "198.51.100.1/24"),
            own("eth1", "fd01::1/64"),
        ];
        let mut problems = Vec::new();
        let chooser = AddressChooser { settings, own: &own, towards_api: None, before: &[] };
        let found = chooser.choose(&node(annotation), "n1", &mut problems);
        (found.iter().map(ToString::to_string).collect(), problems.len())
    }

    #[test]
    fn a_node_of_which_nobody_has_said_an_address_has_that_towards_the_api_server() {
        let own = [
            own("kube-ipvs0", "10.96.0.1/32"),
            own("eth0", "192.0.2.1/24"),
            own("eth0", "192.0.2.2/24"),
        ];
        let settings = NodeAddress::default();
        let own_of = |text: &str| vec![text.parse::<IpAddr>().expect("an address")];
        let chosen = |text: &str, node: &Node| {
            let (towards_api, mut problems) = (text.parse().ok(), Vec::new());
            let chooser =
                AddressChooser { settings: &settings, own: &own, towards_api, before: &[] };
            let found = chooser.choose(node, "n1", &mut problems);
            assert_eq!(problems.len(), usize::from(found == own_of("192.0.2.2")), "{problems:?}");
            found
        };
        let bare = Node::default();
        assert_eq!(chosen("192.0.2.2", &bare), own_of("192.0.2.2"));
        for useless in ["10.96.0.1", "127.0.0.1", "198.51.100.7", "none"] {
            assert!(chosen(useless, &bare).is_empty(), "{useless}");
        }
        assert_eq!(chosen("192.0.2.2", &node(None)).len(), 2, "the kubelet has said");
        let loopback: IpAddr = Ipv4Addr::LOCALHOST.into();
        assert_eq!(source_towards(loopback), Some(loopback));
    }

    #[test]
    fn what_others_know_stays_while_no_rule_says_better() {
        let temporary = OwnAddress { lasting: false, ..own("eth0", "fd01::99/64") };
        let own = [
            temporary,
            own("eth0", "fd01::1/64"),
            own("eth0", "192.0.2.1/24"),
            own("eth0", "192.0.2.7/24"),
            own("eth2", "203.0.113.9/32"),
            own("eth3", "203.0.113.8/32"),
            own("eth3", "198.51.100.3/24"),
        ];
        let chosen = |settings: &NodeAddress, node: &Node, before: &[&str]| -> Vec<String> {
            let before: Vec<IpAddr> =
                before.iter().map(|a| a.parse().expect("an address")).collect();
            let chooser = AddressChooser {
                settings,
                own: &own,
                towards_api: "192.0.2.7".parse().ok(),
                before: &before,
            };
            chooser.choose(node, "n1", &mut Vec::new()).iter().map(ToString::to_string).collect()
        };
        let interface = |name: &str| NodeAddress { interface: Some(name.into()), cidrs: None };
        let (eth0, bare) = (interface("eth0"), Node::default());
        assert_eq!(chosen(&eth0, &bare, &[]), ["192.0.2.1", "fd01::1"], "nothing temporary");
        assert_eq!(chosen(&eth0, &bare, &["192.0.2.7"]), ["192.0.2.7", "fd01::1"], "it was first");
        // The interface lost its address for a moment; what fails over is there still.
        let lost = ["198.51.100.9"];
        for interface in ["eth1", "eth2"].map(interface) {
            assert_eq!(chosen(&interface, &node(None), &lost), lost);
        }
        // And for longer: nothing of it is known any more.
        assert_eq!(chosen(&interface("eth1"), &node(None), &[]), ["192.0.2.1", "fd00::1"]);
        assert_eq!(chosen(&interface("eth2"), &node(None), &[]), ["203.0.113.9"]);
        // It is back, and the other one was used meanwhile.
        assert_eq!(chosen(&interface("eth3"), &bare, &["203.0.113.8"]), ["198.51.100.3"]);
        // Of another interface than the one that is named now.
        assert_eq!(chosen(&interface("eth3"), &bare, &["fd01::1"]), ["198.51.100.3"]);
        // A Node that was registered anew.
        let none = NodeAddress::default();
        assert_eq!(chosen(&none, &bare, &["192.0.2.1", "fd01::7"]), ["192.0.2.1"]);
        for known in [&lost[..], &[]] {
            assert_eq!(chosen(&none, &bare, known), ["192.0.2.7"], "nobody knows one of its own");
        }
        assert_eq!(chosen(&none, &node(None), &lost), ["192.0.2.1", "fd00::1"], "a change");
    }

    #[test]
    fn the_annotation_then_what_is_configured_then_the_kubelet() {
        let none = NodeAddress::default();
        let interface = |name: &str| NodeAddress { interface: Some(name.into()), cidrs: None };
        let cidrs = |cidr: &str| NodeAddress { interface: None, cidrs: Some(vec![cidr.into()]) };
        let kubelet = ["192.0.2.1", "fd00::1"];
        let cases: [(Option<&str>, NodeAddress, &[&str], usize); 10] = [
            (None, none.clone(), &kubelet, 0),
            (Some("fd09::9, 192.0.2.8"), interface("eth1"), &["192.0.2.8", "fd09::9"], 0),
            (Some("192.0.2.8,192.0.2.9"), none.clone(), &kubelet, 1),
            (Some("nonsense"), interface("eth1"), &["198.51.100.1", "fd01::1"], 1),
            (None, interface("eth1"), &["198.51.100.1", "fd01::1"], 0),
            // A service's address is on the interface as well.
            (None, interface("eth0"), &["192.0.2.1"], 0),
            (None, interface("eth7"), &kubelet, 1),
            (None, cidrs("198.51.0.0/16"), &["198.51.100.1"], 0),
            // A cloud's only address has no subnet.
            (None, cidrs("203.0.113.7/32"), &["203.0.113.7"], 0),
            (None, cidrs("203.0.114.0/24"), &kubelet, 1),
        ];
        for (annotation, settings, expected, problems) in cases {
            let (found, told) = chosen(annotation, &settings);
            assert_eq!((found, told), (expected.iter().map(|a| a.to_string()).collect(), problems));
        }
    }
}
