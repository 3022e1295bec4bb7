//! What Cairn's objects say, beside what kernels hold and what pods the API has.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Debug;

use serde_json::Value;

use super::cluster::Cluster;
use super::node::Node;
use super::text;

/// Where IPBlocks and BGPNodeStatuses say something else than the kernels of the nodes and the pods of
/// the API, a sentence each.
///
/// # Panics
/// When somebody cannot be asked.
#[must_use]
pub fn differences(cluster: &Cluster) -> Vec<String> {
    let blocks = cluster.list("ipblocks");
    let pods = cluster.list("pods -A");
    let statuses = cluster.list("bgpnodestatuses");
    let mut found = Differences::default();
    found.compare("the number of statuses", statuses.len(), cluster.nodes.len());
    for node in &cluster.nodes {
        let of = |what: &str| format!("{what} {}", node.name);
        let own = blocks.iter().filter(|block| text(&block["spec"]["node"]["name"]) == node.name);
        let listed = own.clone().flat_map(|block| block["status"]["allocations"].as_array());
        let allocated: BTreeSet<String> =
            listed.flatten().map(|allocation| text(&allocation["address"])).collect();
        let used = own.map(|block| text(&block["status"]["used"]).parse().unwrap_or(0));
        found.compare(&of("addresses used on"), used.sum(), allocated.len());
        let to_pods: BTreeSet<String> = routes(node, POD_ROUTES).into_keys().collect();
        found.compare(&of("allocations, and routes to pods, of"), &allocated, &to_pods);
        let here = pods.iter().filter(|pod| {
            text(&pod["spec"]["nodeName"]) == node.name && pod["spec"]["hostNetwork"] != true
        });
        let addresses = here.map(|pod| text(&pod["status"]["podIP"]));
        let addresses: BTreeSet<String> = addresses.filter(|address| !address.is_empty()).collect();
        found.compare(&of("allocations, and pods of the API, of"), &allocated, &addresses);

        let to_blocks = routes(node, BLOCK_ROUTES);
        let wanted = blocks.iter().map(|block| {
            let owner = text(&block["spec"]["node"]["name"]);
            // A node's own block ends in a blackhole.
            let other =
                cluster.nodes.iter().find(|other| other.name == owner && owner != node.name);
            (text(&block["spec"]["cidr"]), other.map_or(String::new(), |it| it.address.clone()))
        });
        found.compare(&of("blocks, and routes of"), &wanted.collect(), &to_blocks);
        let status = statuses.iter().find(|it| text(&it["metadata"]["name"]) == node.name);
        let told = status.map_or(&Value::Null, |status| &status["spec"]);
        // The other nodes and the router.
        let peers = cluster.nodes.len();
        found.compare(&of("sessions of"), text(&told["peers"]), format!("{peers}/{peers}"));
        let installed = told["routes"]["installed"].as_u64();
        found.compare(&of("the number of routes of"), installed, Some(to_blocks.len() as u64));
        found.compare(&of("failed routes of"), told["routes"]["failed"].as_u64(), Some(0));
    }
    for block in &blocks {
        let advertised = block["status"]["advertised"].as_bool();
        found.compare(
            &format!("{} is advertised", block["metadata"]["name"]),
            advertised,
            Some(true),
        );
    }
    found.sentences
}

#[derive(Default)]
struct Differences {
    sentences: Vec<String>,
}

impl Differences {
    fn compare<T: Debug + PartialEq>(&mut self, what: &str, told: T, is: T) {
        if told != is {
            self.sentences.push(format!("{what}: told {told:?}, is {is:?}"));
        }
    }
}

/// Routes of a protocol in a node's kernel: where to, by whom.
fn routes(node: &Node, protocol: u8) -> BTreeMap<String, String> {
    let routes = node.ask(&format!("ip -j route show proto {protocol}"));
    let routes: Value = serde_json::from_str(&routes).expect("JSON");
    let routes = routes.as_array().into_iter().flatten();
    routes.map(|route| (text(&route["dst"]), text(&route["gateway"]))).collect()
}

/// The protocol numbers of Cairn's routes.
const BLOCK_ROUTES: u8 = 222;
const POD_ROUTES: u8 = 223;
