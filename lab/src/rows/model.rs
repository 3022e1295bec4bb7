//! That the network is as it should be: sessions, blocks and routes.

use std::collections::BTreeSet;
use std::time::Duration;

use super::{node_routes, some_of, spread, way};
use crate::cluster::{Block, Cluster};
use crate::datacenter::DataCenter;
use crate::datacenter::layout::POOLS;
use crate::error::Error;
use crate::interrupt::{Interrupt, Seen};
use crate::lab::Lab;
use crate::options::{Encap, Families};
use crate::report::Row;
use crate::status;
use crate::tables::Way;

/// Waits until all sessions of all machines are up.
///
/// # Errors
/// When the run ends, also because a process of the lab did.
pub fn sessions(lab: &mut Lab, interrupt: &Interrupt) -> Result<Row, Error> {
    let machines = lab.centre.layout.machines().into_iter().map(|(name, _)| name);
    let machines: Vec<String> = machines.collect();
    let wanted: usize = machines.iter().map(|name| lab.centre.layout.sessions(name)).sum();
    let seen = interrupt.poll(SESSIONS_WITHIN, || {
        lab.check()?;
        let up = lab.established_on(&machines);
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

/// Looks how nodes reach each other's blocks under `encap`.
///
/// # Errors
/// When a table cannot be read.
pub fn paths(centre: &DataCenter, cluster: &Cluster, encap: Encap) -> Result<Row, Error> {
    let (right, wrong) = count_paths(centre, cluster, encap)?;
    let all = right + wrong.len();
    let what = match (encap, encap.is_cross_subnet()) {
        (Encap::None, _) => "same rack direct, other rack via its router",
        (_, true) => "same rack direct, other rack by a tunnel",
        (_, false) => "other nodes by a tunnel",
    };
    let ok = wrong.is_empty() && right > 0;
    Ok(Row::new(what, format!("{all}/{all}"), counted(right, all, wrong), ok))
}

/// How many routes lead as they must under `encap`, and what is wrong with the others.
pub(super) fn count_paths(
    centre: &DataCenter,
    cluster: &Cluster,
    encap: Encap,
) -> Result<(usize, Vec<String>), Error> {
    let blocks = cluster.blocks()?;
    let tables = node_routes(centre)?;
    let layout = &centre.layout;
    let (mut right, mut wrong) = (0, Vec::new());
    for (block, node, ways) in spread(&blocks, &tables) {
        let ends = layout.node(node).zip(layout.node(&block.node));
        let wanted = ends.and_then(|(from, to)| way(layout, encap, from, to, &block.cidr));
        match (ways, wanted) {
            (Some(ways), Some(wanted)) if ways.iter().eq([&wanted]) => right += 1,
            (ways, Some(wanted)) => {
                let seen: Vec<String> = ways.into_iter().flatten().map(Way::to_string).collect();
                wrong.push(format!("{node} reaches {} {seen:?} instead of {wanted}", block.cidr));
            }
            (_, None) => {
                wrong.push(format!("{} is of the unknown node {}", block.cidr, block.node))
            }
        }
    }
    Ok((right, wrong))
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

pub(super) fn counted(good: usize, all: usize, wrong: Vec<String>) -> String {
    if wrong.is_empty() {
        format!("{good}/{all}")
    } else {
        format!("{good}/{all}: {}", some_of(wrong))
    }
}

const SESSIONS_WITHIN: Duration = Duration::from_secs(20);
const REPORTS_WITHIN: Duration = Duration::from_secs(5);
const ROUTES_WITHIN: Duration = Duration::from_secs(10);
const OBJECTS_WITHIN: Duration = Duration::from_secs(3);
