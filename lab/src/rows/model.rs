//! That the network is as it should be: sessions, blocks, routes, and the Kubernetes network model.

use std::collections::BTreeSet;
use std::net::IpAddr;
use std::time::Duration;

use super::{gateway, node_routes, some_of, spread};
use crate::cluster::{Block, Cluster};
use crate::datacenter::layout::POOLS;
use crate::datacenter::{DataCenter, Layout};
use crate::error::Error;
use crate::interrupt::{Interrupt, Seen};
use crate::lab::Lab;
use crate::options::Families;
use crate::pod::Pod;
use crate::probe::{self, Endpoint, Outcome, Probe, Protocol};
use crate::report::Row;
use crate::status;

/// Waits until all sessions of all machines are up.
///
/// # Errors
/// When the run ends, also because a process of the lab did.
pub fn sessions(lab: &mut Lab, interrupt: &Interrupt) -> Result<Row, Error> {
    let machines = lab.centre.layout.machines();
    let wanted: usize = machines.iter().map(|(name, _)| lab.centre.layout.sessions(name)).sum();
    let seen = interrupt.poll(SESSIONS_WITHIN, || {
        lab.check()?;
        let up: usize = machines.iter().map(|(name, _)| lab.established(name)).sum();
        let seen = format!("{up}/{wanted}");
        Ok(if up == wanted { Seen::Done(seen) } else { Seen::NotYet(seen) })
    })?;
    let ok = seen.is_ok();
    let seen = seen.unwrap_or_else(|seen| seen);
    Ok(Row::new("BGP session ends established", format!("{wanted}/{wanted}"), seen, ok))
}

/// Waits until the BGPNodeStatus objects say that all sessions of the nodes are up.
///
/// # Errors
/// When the run ends.
pub fn reports(lab: &Lab, interrupt: &Interrupt) -> Result<Row, Error> {
    let layout = &lab.centre.layout;
    let wanted: usize = layout.nodes().map(|node| layout.sessions(&node.name())).sum();
    let seen = interrupt.poll(REPORTS_WITHIN, || {
        let reports = lab.cluster.reports()?;
        let up: usize = reports.iter().map(|report| status::established(&report.spec)).sum();
        let seen = format!("{up}/{wanted} in {} objects", reports.len());
        let done = up == wanted && reports.len() == layout.nodes().count();
        Ok(if done { Seen::Done(seen) } else { Seen::NotYet(seen) })
    })?;
    let ok = seen.is_ok();
    let seen = seen.unwrap_or_else(|seen| seen);
    let expected = format!("{wanted}/{wanted} in {} objects", layout.nodes().count());
    Ok(Row::new("sessions in BGPNodeStatus objects", expected, seen, ok))
}

/// Waits until every node owns a block of each family and every other node's kernel has them.
///
/// # Errors
/// When the run ends.
pub fn blocks(centre: &DataCenter, cluster: &Cluster, interrupt: &Interrupt) -> Result<Row, Error> {
    let families = match centre.layout.families {
        Families::Dual => POOLS.len(),
        Families::Ipv4 => 1,
    };
    let nodes = centre.layout.nodes().count();
    let blocks_min = nodes * families;
    let seen = interrupt.poll(ROUTES_WITHIN, || {
        let blocks = cluster.blocks()?;
        let tables = node_routes(centre)?;
        let pairs = spread(&blocks, &tables).count();
        let there = spread(&blocks, &tables).filter(|(_, _, route)| route.is_some()).count();
        let owners: BTreeSet<(&str, bool)> =
            blocks.iter().map(|block| (block.node.as_str(), block.cidr.addr().is_ipv4())).collect();
        let seen = format!("{there}/{pairs} of {} blocks", blocks.len());
        let done = owners.len() == blocks_min && there == pairs;
        Ok(if done { Seen::Done(seen) } else { Seen::NotYet(seen) })
    })?;
    let ok = seen.is_ok();
    let seen = seen.unwrap_or_else(|seen| seen);
    let expected = format!("all, {blocks_min} blocks or more");
    Ok(Row::new("blocks in every other node's kernel", expected, seen, ok))
}

/// Looks how nodes reach each other's blocks: directly in the rack, else by its router.
///
/// # Errors
/// When a table cannot be read.
pub fn paths(centre: &DataCenter, cluster: &Cluster) -> Result<Row, Error> {
    let blocks = cluster.blocks()?;
    let tables = node_routes(centre)?;
    let (mut right, mut wrong) = (0, Vec::new());
    for (block, node, route) in spread(&blocks, &tables) {
        let wanted = gateway(&centre.layout, node, &block.node, &block.cidr);
        match (route, wanted) {
            (Some(gateways), Some(wanted)) if gateways.iter().eq([&wanted]) => right += 1,
            (route, wanted) => wrong.push(format!(
                "{node} reaches {} by {:?} instead of {wanted:?}",
                block.cidr,
                route.map(|gateways| gateways.iter().collect::<Vec<_>>()),
            )),
        }
    }
    let all = right + wrong.len();
    let ok = wrong.is_empty() && right > 0;
    let seen = counted(right, all, wrong);
    Ok(Row::new("same rack direct, other rack via its router", format!("{all}/{all}"), seen, ok))
}

/// Compares the IPBlock objects with what their owners' kernels hold.
///
/// # Errors
/// When the run ends.
pub fn objects(
    centre: &DataCenter,
    cluster: &Cluster,
    interrupt: &Interrupt,
) -> Result<Row, Error> {
    // A block may be claimed between the two looks, hence more than one.
    let seen = interrupt.poll(OBJECTS_WITHIN, || {
        let claimed: BTreeSet<Block> = cluster.blocks()?.into_iter().collect();
        let held: BTreeSet<Block> = node_routes(centre)?
            .into_iter()
            .flat_map(|(node, routes)| {
                routes.own.into_iter().map(move |cidr| Block { cidr, node: node.clone() })
            })
            .collect();
        let mut wrong: Vec<String> = Vec::new();
        wrong.extend(claimed.difference(&held).map(|b| format!("{} has no {}", b.node, b.cidr)));
        wrong.extend(
            held.difference(&claimed).map(|b| format!("{} holds {} unclaimed", b.node, b.cidr)),
        );
        let all = claimed.union(&held).count();
        let done = wrong.is_empty() && all > 0;
        let seen = counted(all - wrong.len(), all, wrong);
        Ok(if done { Seen::Done(seen) } else { Seen::NotYet(seen) })
    })?;
    let ok = seen.is_ok();
    let seen = seen.unwrap_or_else(|seen| seen);
    Ok(Row::new("IPBlock objects as in owners' kernels", "all", seen, ok))
}

/// Proves the Kubernetes network model: every pod reaches every pod and node, every node every pod,
/// without address translation.
///
/// # Errors
/// When an endpoint cannot listen or send at all.
pub fn network(centre: &DataCenter, pods: &[Pod]) -> Result<Vec<Row>, Error> {
    let mut endpoints: Vec<Endpoint<'_>> = pods
        .iter()
        .map(|pod| Endpoint {
            name: pod.name.clone(),
            netns: &pod.netns,
            addresses: pod.addresses.clone(),
        })
        .collect();
    for node in centre.layout.nodes() {
        if let Some(machine) = centre.machine(&node.name()) {
            endpoints.push(Endpoint {
                name: node.name(),
                netns: &machine.netns,
                addresses: node
                    .addresses()
                    .into_iter()
                    .filter(|at| centre.layout.speaks(at))
                    .collect(),
            });
        }
    }
    let pod_count = pods.len();
    let probes = all_probes(&endpoints, pod_count);
    let outcomes = probe::run(&endpoints, &probes)?;
    let mut rows = Vec::new();
    let versions: &[bool] = match centre.layout.families {
        Families::Dual => &[true, false],
        Families::Ipv4 => &[true],
    };
    for v4 in versions {
        for (what, from_pod, to_pod) in
            [("pod to pod", true, true), ("pod to node", true, false), ("node to pod", false, true)]
        {
            for protocol in [Protocol::Icmp, Protocol::Tcp] {
                let group: Vec<&Outcome> = outcomes
                    .iter()
                    .filter(|outcome| {
                        let probe = &outcome.probe;
                        probe.protocol == protocol
                            && probe.address.is_ipv4() == *v4
                            && (probe.from < pod_count) == from_pod
                            && (probe.to < pod_count) == to_pod
                    })
                    .collect();
                let expected = pairs(&centre.layout, pod_count, from_pod, to_pod);
                let name = format!(
                    "{what}, {}, {}",
                    if *v4 { "IPv4" } else { "IPv6" },
                    if protocol == Protocol::Icmp { "ICMP" } else { "TCP" }
                );
                rows.push(pairs_row(&name, expected, &group, &endpoints));
            }
        }
    }
    Ok(rows)
}

/// Whether `from` reaches `to`, tried for a while; the time until it did.
///
/// # Errors
/// When an endpoint cannot listen or send at all.
pub fn reach(from: &Pod, to: &Pod) -> Result<Result<(), String>, Error> {
    let endpoint = |pod: &'_ Pod| (pod.name.clone(), pod.addresses.clone());
    let ((from_name, from_addresses), (to_name, to_addresses)) = (endpoint(from), endpoint(to));
    let endpoints = [
        Endpoint { name: from_name, netns: &from.netns, addresses: from_addresses },
        Endpoint { name: to_name, netns: &to.netns, addresses: to_addresses },
    ];
    let probes: Vec<Probe> = [Protocol::Icmp, Protocol::Tcp]
        .into_iter()
        .flat_map(|protocol| {
            to.addresses.iter().map(move |at| Probe { from: 0, to: 1, protocol, address: *at })
        })
        .collect();
    let outcomes = probe::run(&endpoints, &probes)?;
    let failed: Vec<String> = outcomes
        .iter()
        .filter_map(|one| one.failure.as_ref().map(|why| format!("{}: {why}", one.probe.address)))
        .collect();
    Ok(if failed.is_empty() && !outcomes.is_empty() { Ok(()) } else { Err(some_of(failed)) })
}

fn all_probes(endpoints: &[Endpoint<'_>], pod_count: usize) -> Vec<Probe> {
    let mut probes = Vec::new();
    for from in 0..endpoints.len() {
        for (to, receiver) in endpoints.iter().enumerate() {
            let one_is_a_pod = from < pod_count || to < pod_count;
            if from == to || !one_is_a_pod {
                continue;
            }
            for protocol in [Protocol::Icmp, Protocol::Tcp] {
                probes.extend(receiver.addresses.iter().map(|at| Probe {
                    from,
                    to,
                    protocol,
                    address: *at,
                }));
            }
        }
    }
    probes
}

/// How many pairs there must be, counted without looking at what was probed.
fn pairs(layout: &Layout, pods: usize, from_pod: bool, to_pod: bool) -> usize {
    let nodes = layout.nodes().count();
    match (from_pod, to_pod) {
        (true, true) => pods * pods.saturating_sub(1),
        _ => pods * nodes,
    }
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

fn counted(good: usize, all: usize, wrong: Vec<String>) -> String {
    if wrong.is_empty() {
        format!("{good}/{all}")
    } else {
        format!("{good}/{all}: {}", some_of(wrong))
    }
}

/// An address of a pod in one family.
pub fn address_of(pod: &Pod, v4: bool) -> Option<IpAddr> {
    pod.addresses.iter().copied().find(|at| at.is_ipv4() == v4)
}

const SESSIONS_WITHIN: Duration = Duration::from_secs(20);
const REPORTS_WITHIN: Duration = Duration::from_secs(5);
const ROUTES_WITHIN: Duration = Duration::from_secs(10);
const OBJECTS_WITHIN: Duration = Duration::from_secs(3);
