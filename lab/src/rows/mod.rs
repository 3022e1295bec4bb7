//! The statements that the lab makes about a data centre, in the order in which it makes them.

pub mod failure;
pub mod model;

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::thread;

use ipnet::IpNet;

use crate::cluster::Block;
use crate::datacenter::{DataCenter, Layout};
use crate::error::Error;
use crate::tables::BgpRoutes;

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
) -> impl Iterator<Item = (&'a Block, &'a str, Option<&'a BTreeSet<IpAddr>>)> {
    blocks.iter().flat_map(move |block| {
        tables
            .iter()
            .filter(|(node, _)| **node != block.node)
            .map(move |(node, routes)| (block, node.as_str(), routes.learned.get(&block.cidr)))
    })
}

/// The gateways by which `node` must reach blocks of `owner`, in the family of `like`: the owner on
/// the same subnet, else the rack's router.
fn gateway(layout: &Layout, node: &str, owner: &str, like: &IpNet) -> Option<IpAddr> {
    let find = |name: &str| layout.nodes().find(|node| node.name() == name);
    let (from, to) = (find(node)?, find(owner)?);
    let addresses = if from.rack == to.rack {
        to.addresses()
    } else {
        layout.racks.iter().find(|rack| rack.number == from.rack)?.gateways()
    };
    addresses.into_iter().find(|at| at.is_ipv4() == like.addr().is_ipv4())
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
        let v4 = "10.244.0.0/28".parse().unwrap_or_default();
        let at = |node, owner, net| gateway(&layout, node, owner, net).map(|at| at.to_string());
        assert_eq!(at("n1", "n2", &v4).as_deref(), Some("172.31.1.12"));
        assert_eq!(at("n1", "n3", &v4).as_deref(), Some("172.31.1.1"));
        assert_eq!(at("n3", "n1", &v4).as_deref(), Some("172.31.2.1"));
        let v6 = "fd00:10:244::/124".parse().unwrap_or_default();
        assert_eq!(at("n2", "n3", &v6).as_deref(), Some("fd00:31:1::1"));
        assert_eq!(at("n2", "n9", &v6), None);
    }

    #[test]
    fn long_lists_are_cut() {
        let sentences = |count: usize| (0..count).map(|n| n.to_string()).collect();
        assert_eq!(some_of(sentences(2)), "0; 1");
        assert_eq!(some_of(sentences(5)), "0; 1; 2; and 2 more");
    }
}
