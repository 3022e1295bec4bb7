//! The statements that the lab makes about a data centre, in the order in which it makes them.

mod cast;
pub mod drain;
pub mod failure;
pub mod model;
pub mod network;
pub mod quiet;
pub mod size;
pub mod topology;
pub mod tunnels;

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::thread;
use std::time::{Duration, Instant};

use cairn_kernel::tunnel;
use ipnet::IpNet;

use crate::cluster::Block;
use crate::datacenter::build::UPLINK;
use crate::datacenter::{DataCenter, Layout, Node};
use crate::error::Error;
use crate::interrupt::{Interrupt, Seen};
use crate::lab::Lab;
use crate::options::Encap;
use crate::report::millis;
use crate::tables::{BgpRoutes, Way};

/// Cairn's routes on every node.
type NodeRoutes = BTreeMap<String, BgpRoutes>;

fn node_routes(centre: &DataCenter) -> Result<NodeRoutes, Error> {
    let mut tables = NodeRoutes::new();
    for node in centre.layout.nodes().map(|node| node.name()) {
        if let Some(machine) = centre.machine(&node) {
            tables.insert(node, BgpRoutes::read(machine)?);
        }
    }
    Ok(tables)
}

/// Pairs of a block and a node that is not its owner, with whether that node's kernel has a route.
fn spread<'a>(
    blocks: &'a [Block],
    tables: &'a NodeRoutes,
) -> impl Iterator<Item = (&'a Block, &'a str, Option<&'a BTreeSet<Way>>)> {
    blocks.iter().flat_map(move |block| {
        tables
            .iter()
            .filter(|(node, _)| **node != block.node)
            .map(move |(node, routes)| (block, node.as_str(), routes.learned.get(&block.cidr)))
    })
}

/// The way by which `from` must reach blocks of `to`, in the family of `like`: a tunnel where `encap`
/// has one, else the owner on the same subnet, else the rack's router. In a tunnel an IPv4 route leads
/// to the owner's address, and an IPv6 route to the link-local one of its device.
fn way(layout: &Layout, encap: Encap, from: &Node, to: &Node, like: &IpNet) -> Option<Way> {
    let v4 = like.addr().is_ipv4();
    let of_family = |addresses: [IpAddr; 2]| addresses.into_iter().find(|at| at.is_ipv4() == v4);
    if Layout::is_tunnelled(encap, from, to) {
        let link_local = || IpAddr::from(tunnel::link_local(tunnel::mac_of(&to.name())));
        let gateway = if v4 { of_family(to.addresses()) } else { Some(link_local()) };
        return Some(Way { device: encap.tunnel(v4)?.device_name().into(), gateway });
    }
    let addresses =
        if from.rack == to.rack { to.addresses() } else { layout.rack_of(from)?.gateways() };
    Some(Way { device: UPLINK.into(), gateway: of_family(addresses) })
}

/// Does `work` for every item at once, each on a thread of its own, and returns the results in
/// order.
pub(crate) fn at_once<T: Send, R: Send>(items: Vec<T>, work: impl Fn(T) -> R + Sync) -> Vec<R> {
    thread::scope(|scope| {
        let work = &work;
        let threads: Vec<_> =
            items.into_iter().map(|item| scope.spawn(move || work(item))).collect();
        threads
            .into_iter()
            .map(|thread| thread.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic)))
            .collect()
    })
}

/// Waits until `wanted` session ends of `machines` are established again: after how long that was, or what
/// was seen, in words, and whether it was.
fn sessions_back(
    lab: &mut Lab,
    machines: &[String],
    wanted: usize,
    within: Duration,
    interrupt: &Interrupt,
) -> Result<(String, bool), Error> {
    let started = Instant::now();
    let back = interrupt.poll(within, || {
        lab.check()?;
        let up = lab.established_on(machines);
        Ok(if up == wanted {
            Seen::Done(started.elapsed())
        } else {
            Seen::NotYet(format!("{up}/{wanted} session ends back"))
        })
    })?;
    Ok(match back {
        Ok(time) => (format!("back in {}", millis(time)), true),
        Err(seen) => (seen, false),
    })
}

/// A few of many sentences.
fn some_of(mut sentences: Vec<String>) -> String {
    let more = sentences.len().saturating_sub(SENTENCES_MAX);
    sentences.truncate(SENTENCES_MAX);
    let mut text = sentences.join("; ");
    if more > 0 {
        text.push_str(&format!("; and {more} more"));
    }
    text
}

const SENTENCES_MAX: usize = 3;

#[cfg(test)]
mod tests {
    use super::*;
    use crate::options::{AsnPlan, Families};

    #[test]
    fn neighbours_are_direct_and_others_behind_the_router() {
        let layout = Layout::new("lab", 3, AsnPlan::Rack, Families::Dual);
        let nodes: Vec<&Node> = layout.nodes().collect();
        let v4 = "10.244.0.0/28".parse().unwrap_or_default();
        let v6 = "fd00:10:244::/124".parse().unwrap_or_default();
        let at = |encap, from: usize, to: usize, net| {
            let way = way(&layout, encap, nodes[from], nodes[to], net);
            way.map(|way| way.to_string()).unwrap_or_default()
        };
        assert_eq!(at(Encap::None, 0, 1, &v4), "via 172.31.1.12 dev eth0");
        assert_eq!(at(Encap::None, 0, 2, &v4), "via 172.31.1.1 dev eth0");
        assert_eq!(at(Encap::None, 2, 0, &v4), "via 172.31.2.1 dev eth0");
        assert_eq!(at(Encap::None, 1, 2, &v6), "via fd00:31:1::1 dev eth0");
        assert_eq!(at(Encap::Ipip, 0, 1, &v4), "via 172.31.1.12 dev cairn.ipip");
        let link_local = tunnel::link_local(tunnel::mac_of("n2"));
        assert_eq!(at(Encap::Ipip, 0, 1, &v6), format!("via {link_local} dev cairn.vxlan"));
        assert_eq!(at(Encap::VxlanCrossSubnet, 0, 1, &v4), "via 172.31.1.12 dev eth0");
        assert_eq!(at(Encap::VxlanCrossSubnet, 0, 2, &v4), "via 172.31.2.13 dev cairn.vxlan");
    }

    #[test]
    fn long_lists_are_cut() {
        let sentences = |count: usize| (0..count).map(|n| n.to_string()).collect();
        assert_eq!(some_of(sentences(2)), "0; 1");
        assert_eq!(some_of(sentences(5)), "0; 1; 2; and 2 more");
    }
}
