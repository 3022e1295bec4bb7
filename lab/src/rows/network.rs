//! The Kubernetes network model: every pod reaches every pod and node, every node every pod, and who is
//! seen under which address.
//!
//! | from | to | seen as |
//! |---|---|---|
//! | pod | pod, own node, tunnel address | itself |
//! | pod | other node | itself; where that node's pods are behind a tunnel, as its own node |
//! | node | own pod | itself |
//! | node | other pod | itself; behind a tunnel, as its own tunnel address |

use std::collections::BTreeMap;
use std::net::IpAddr;

use cairn_kernel::NetNs;

use super::model::counted;
use super::some_of;
use super::tunnels::tunnel_addresses;
use crate::datacenter::{DataCenter, Layout, Node};
use crate::error::Error;
use crate::interrupt::Interrupt;
use crate::pod::Pod;
use crate::probe::{self, Endpoint, Outcome, Probe, Protocol};
use crate::report::Row;

/// Proves the network model between all pods and nodes.
///
/// # Errors
/// When an endpoint cannot listen or send at all.
pub fn network(
    centre: &DataCenter,
    pods: &[Pod],
    interrupt: &Interrupt,
) -> Result<Vec<Row>, Error> {
    let layout = &centre.layout;
    let parties = parties(centre, pods)?;
    let pairs: BTreeMap<Probe, Pair> = probes(layout, &parties).collect();
    let probes: Vec<Probe> = pairs.keys().copied().collect();
    let endpoints: Vec<Endpoint<'_>> = parties.iter().map(Party::endpoint).collect();
    let outcomes = probe::run(&endpoints, &probes, interrupt.patient(probe::WITHIN))?;

    let nodes = layout.nodes().count();
    let mut rows = Vec::new();
    for v4 in layout.versions() {
        for pair in Pair::ALL {
            // Counted without looking at what was probed.
            let expected = match pair {
                Pair::PodToPod => pods.len() * pods.len().saturating_sub(1),
                Pair::PodToTunnel if layout.fabric_knows_pods() => continue,
                Pair::PodToNode | Pair::NodeToPod | Pair::PodToTunnel => pods.len() * nodes,
            };
            for (protocol, name) in [(Protocol::Icmp, "ICMP"), (Protocol::Tcp, "TCP")] {
                let of_group = |outcome: &&Outcome| {
                    let probe = &outcome.probe;
                    probe.protocol == protocol
                        && probe.address.is_ipv4() == *v4
                        && pairs.get(probe) == Some(&pair)
                };
                let group: Vec<&Outcome> = outcomes.iter().filter(of_group).collect();
                let version = if *v4 { "IPv4" } else { "IPv6" };
                let what = format!("{}, {version}, {name}", pair.what());
                rows.push(pairs_row(&what, expected, &group, &endpoints));
            }
        }
    }
    Ok(rows)
}

/// Whether `from` reaches `to`, tried for a while.
///
/// # Errors
/// When an endpoint cannot listen or send at all.
pub fn reach(from: &Pod, to: &Pod, interrupt: &Interrupt) -> Result<Result<(), String>, Error> {
    let endpoints = [from, to].map(|pod| Endpoint {
        name: pod.name.clone(),
        netns: &pod.netns,
        addresses: pod.addresses.clone(),
    });
    let probes: Vec<Probe> = [Protocol::Icmp, Protocol::Tcp]
        .into_iter()
        .flat_map(|protocol| {
            let probe =
                move |at: &IpAddr| Probe { from: 0, to: 1, protocol, address: *at, seen_as: None };
            to.addresses.iter().map(probe)
        })
        .collect();
    let outcomes = probe::run(&endpoints, &probes, interrupt.patient(probe::WITHIN))?;
    let failed: Vec<String> = outcomes
        .iter()
        .filter_map(|one| one.failure.as_ref().map(|why| format!("{}: {why}", one.probe.address)))
        .collect();
    Ok(if failed.is_empty() && !outcomes.is_empty() { Ok(()) } else { Err(some_of(failed)) })
}

/// An address of a pod in one family.
pub fn address_of(pod: &Pod, v4: bool) -> Option<IpAddr> {
    of_family(&pod.addresses, v4)
}

/// A pod, or a node.
struct Party<'a> {
    name: &'a str,
    is_pod: bool,
    /// The node, or that of the pod.
    node: &'a Node,
    netns: &'a NetNs,
    addresses: Vec<IpAddr>,
    /// The node's addresses of the lab's families.
    node_addresses: Vec<IpAddr>,
    /// The node's addresses on its tunnel devices.
    tunnel_addresses: Vec<IpAddr>,
}

/// Who speaks to whom.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Pair {
    PodToPod,
    PodToNode,
    PodToTunnel,
    NodeToPod,
}

impl Pair {
    const ALL: [Pair; 4] = [Pair::PodToPod, Pair::PodToNode, Pair::PodToTunnel, Pair::NodeToPod];

    fn what(self) -> &'static str {
        match self {
            Pair::PodToPod => "pod to pod",
            Pair::PodToNode => "pod to node",
            Pair::PodToTunnel => "pod to tunnel address",
            Pair::NodeToPod => "node to pod",
        }
    }
}

impl<'a> Party<'a> {
    fn endpoint(&self) -> Endpoint<'a> {
        let mut addresses = self.addresses.clone();
        if !self.is_pod {
            addresses.extend(&self.tunnel_addresses);
        }
        Endpoint { name: self.name.into(), netns: self.netns, addresses }
    }
}

fn parties<'a>(centre: &'a DataCenter, pods: &'a [Pod]) -> Result<Vec<Party<'a>>, Error> {
    let layout = &centre.layout;
    let mut parties = Vec::new();
    for node in layout.nodes() {
        let Some((name, machine)) = centre.machines().find(|(name, _)| *name == node.name()) else {
            continue;
        };
        let mut node_addresses = node.addresses().to_vec();
        node_addresses.retain(|at| layout.speaks(at));
        let tunnel_addresses = tunnel_addresses(machine)?.into_iter().map(|(_, at)| at).collect();
        let party =
            |name, is_pod, netns, addresses: &[IpAddr], tunnel_addresses: &Vec<IpAddr>| Party {
                name,
                is_pod,
                node,
                netns,
                addresses: addresses.to_vec(),
                node_addresses: node_addresses.clone(),
                tunnel_addresses: tunnel_addresses.clone(),
            };
        parties.push(party(name, false, &machine.netns, &node_addresses, &tunnel_addresses));
        for pod in pods.iter().filter(|pod| pod.node == name) {
            parties.push(party(&pod.name, true, &pod.netns, &pod.addresses, &tunnel_addresses));
        }
    }
    Ok(parties)
}

/// All probes of the model.
fn probes<'a>(
    layout: &'a Layout,
    parties: &'a [Party<'a>],
) -> impl Iterator<Item = (Probe, Pair)> + 'a {
    let ends = parties.iter().enumerate().flat_map(move |from| {
        parties
            .iter()
            .enumerate()
            .map(move |to| (from, to))
            .filter(|((from, _), (to, _))| from != to)
    });
    ends.flat_map(move |((from, sender), (to, receiver))| {
        let plain = match (sender.is_pod, receiver.is_pod) {
            (true, true) => Some(Pair::PodToPod),
            (true, false) => Some(Pair::PodToNode),
            (false, true) => Some(Pair::NodeToPod),
            (false, false) => None,
        };
        let tunnel = (sender.is_pod && !receiver.is_pod).then_some(Pair::PodToTunnel);
        let plain =
            plain.into_iter().flat_map(|pair| receiver.addresses.iter().map(move |at| (pair, at)));
        let tunnel = tunnel
            .into_iter()
            .flat_map(|pair| receiver.tunnel_addresses.iter().map(move |at| (pair, at)));
        plain.chain(tunnel).flat_map(move |(pair, address)| {
            let seen_as = seen_as(layout, pair, sender, receiver, *address);
            [Protocol::Icmp, Protocol::Tcp]
                .map(|protocol| (Probe { from, to, protocol, address: *address, seen_as }, pair))
        })
    })
}

/// As whom the receiver must see the sender, where that is not itself.
fn seen_as(
    layout: &Layout,
    pair: Pair,
    sender: &Party<'_>,
    receiver: &Party<'_>,
    address: IpAddr,
) -> Option<IpAddr> {
    if !Layout::is_tunnelled(layout.encap, sender.node, receiver.node) {
        return None;
    }
    match pair {
        Pair::PodToPod | Pair::PodToTunnel => None,
        Pair::PodToNode => of_family(&sender.node_addresses, address.is_ipv4()),
        Pair::NodeToPod => of_family(&sender.tunnel_addresses, address.is_ipv4()),
    }
}

fn of_family(addresses: &[IpAddr], v4: bool) -> Option<IpAddr> {
    addresses.iter().copied().find(|at| at.is_ipv4() == v4)
}

fn pairs_row(
    what: &str,
    expected: usize,
    outcomes: &[&Outcome],
    endpoints: &[Endpoint<'_>],
) -> Row {
    let name = |index: usize| endpoints.get(index).map_or("?", |one| one.name.as_str());
    let failed: Vec<String> = outcomes
        .iter()
        .filter_map(|one| {
            let why = one.failure.as_ref()?;
            Some(format!("{} to {}: {why}", name(one.probe.from), name(one.probe.to)))
        })
        .collect();
    let good = outcomes.len() - failed.len();
    let again = outcomes.iter().filter(|one| one.failure.is_none() && one.attempts > 1).count();
    let mut seen = counted(good, expected, failed);
    if again > 0 {
        seen.push_str(&format!(", {again} only when tried again"));
    }
    Row::new(what, format!("{expected}/{expected}"), seen, good == expected && good > 0)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::options::{AsnPlan, Encap, Families};

    fn at(text: &str) -> Option<IpAddr> {
        text.parse().ok()
    }

    /// As whom the second party sees the first, by IPv4 and IPv6, where that is not itself.
    fn seen(encap: Encap, pair: Pair, from: u8, to: u8) -> [Option<String>; 2] {
        let layout = Layout::new("lab", 3, AsnPlan::Single, Families::Dual).with_encap(encap);
        let netns = NetNs::current().expect("the namespace of this test");
        let party = |number: u8| {
            let node = layout.nodes().find(|node| node.number == number).expect("a node");
            let tunnel = [format!("10.244.{number}.1"), format!("fd00:10:244:{number}::1")];
            Party {
                name: "",
                is_pod: true,
                node,
                netns: &netns,
                addresses: Vec::new(),
                node_addresses: node.addresses().to_vec(),
                tunnel_addresses: tunnel.iter().filter_map(|text| at(text)).collect(),
            }
        };
        let (sender, receiver) = (party(from), party(to));
        ["10.244.9.9", "fd00:10:244::9"].map(|to| {
            let seen = at(to).and_then(|to| seen_as(&layout, pair, &sender, &receiver, to));
            seen.map(|seen| seen.to_string())
        })
    }

    #[test]
    fn only_what_no_router_could_answer_is_seen_as_somebody_else() {
        let of = |[v4, v6]: [&str; 2]| [Some(v4.to_owned()), Some(v6.to_owned())];
        let own = [None, None];
        for pair in Pair::ALL {
            assert_eq!(seen(Encap::None, pair, 1, 3), own, "{pair:?}");
            assert_eq!(seen(Encap::Vxlan, pair, 1, 1), own, "{pair:?}");
            assert_eq!(seen(Encap::VxlanCrossSubnet, pair, 1, 2), own, "{pair:?}");
        }
        for encap in [Encap::Vxlan, Encap::IpipCrossSubnet] {
            assert_eq!(seen(encap, Pair::PodToPod, 1, 3), own);
            assert_eq!(seen(encap, Pair::PodToTunnel, 1, 3), own);
            let node = of(["172.31.1.11", "fd00:31:1::b"]);
            assert_eq!(seen(encap, Pair::PodToNode, 1, 3), node);
            let tunnel = of(["10.244.1.1", "fd00:10:244:1::1"]);
            assert_eq!(seen(encap, Pair::NodeToPod, 1, 3), tunnel);
        }
    }
}
