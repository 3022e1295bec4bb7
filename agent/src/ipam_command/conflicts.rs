//! Findings about ranges: pools and blocks among each other, and what this node's kernel and peers
//! say of blocks.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;

use cairn_bgp::rib::HeardRoute;
use ipnet::IpNet;

use super::findings::{Finding, Kind, block_object, is_whole};
use super::snapshot::{BlockSeen, LocalSeen, PoolSeen, Snapshot};
use super::text::some;

/// Pools among each other and with what others use.
pub(super) fn pools(seen: &Snapshot, found: &mut Vec<Finding>) {
    let mut pools: Vec<&PoolSeen> = seen.pools.iter().collect();
    pools.sort_by_key(|pool| (pool.created_secs, &pool.uid));
    for (index, pool) in pools.iter().enumerate() {
        let older = pools.iter().take(index).find(|older| overlap(older.cidr, pool.cidr));
        if let Some(older) = older {
            found.push(Finding::new(
                Kind::PoolsOverlap,
                [format!("ippool/{}", pool.name), format!("ippool/{}", older.name)],
                format!("{} overlaps {} of the older pool and is not used", pool.cidr, older.cidr),
                format!("kubectl delete ippool {}, or the older one when it is empty", pool.name),
            ));
        }
        if let Some((false, reason, message)) = &pool.ready
            && !matches!(reason.as_str(), "Overlap" | "Disabled" | "Terminating")
        {
            found.push(Finding::new(
                Kind::PoolNotReady,
                [format!("ippool/{}", pool.name)],
                format!("{reason}: {message}"),
                "the sentence says what to do",
            ));
        }
        foreign(seen, pool, found);
    }
}

/// What belongs to somebody else inside a pool.
fn foreign(seen: &Snapshot, pool: &PoolSeen, found: &mut Vec<Finding>) {
    let mut others: Vec<String> = Vec::new();
    for (name, node) in &seen.nodes {
        let inside = node.addresses.iter().filter(|address| pool.cidr.contains(*address));
        others.extend(inside.map(|address| format!("{address} of node {name}")));
        if !pool.node_pod_cidrs {
            let inside = node.pod_cidrs.iter().filter(|cidr| overlap(**cidr, pool.cidr));
            others.extend(inside.map(|cidr| format!("{cidr}, the podCIDR of node {name}")));
        }
    }
    let services = seen.service_cidrs.iter().filter(|(cidr, _)| overlap(*cidr, pool.cidr));
    others.extend(services.map(|(cidr, name)| format!("{cidr} of ServiceCIDR {name}")));
    if !others.is_empty() {
        found.push(Finding::new(
            Kind::ForeignAddresses,
            [format!("ippool/{}", pool.name)],
            format!("{} overlaps what others use: {}", pool.cidr, some(others)),
            "take another range for the pool; for podCIDRs, a pool with allocation NodePodCIDR",
        ));
    }
}

/// Blocks among each other and with their pools.
pub(super) fn blocks(seen: &Snapshot, found: &mut Vec<Finding>) {
    let index = seen.block_index();
    for block in &seen.blocks {
        for outer in index.around(block.cidr).filter(|outer| outer.cidr != block.cidr) {
            found.push(Finding::new(
                Kind::BlocksOverlap,
                [block_object(block), block_object(outer)],
                format!(
                    "{} of node {} lies inside of {} of node {}: one address can have two pods",
                    block.cidr, block.node.name, outer.cidr, outer.node.name
                ),
                "drain the node whose block has fewer pods; neither agent hands out from them",
            ));
        }
        let pool = seen.pools.iter().find(|pool| pool.uid == block.pool.uid);
        let Some(pool) = pool else {
            let successor = seen.pools.iter().any(|pool| pool.name == block.pool.name);
            found.push(Finding::new(
                Kind::PoolUnknown,
                [block_object(block)],
                match successor {
                    true => format!(
                        "its pool {} of UID {} is gone, another one has its name",
                        block.pool.name, block.pool.uid
                    ),
                    false => format!("its pool {} is gone", block.pool.name),
                },
                format!(
                    "its agent gives it back when its last pod has gone: drain node {}",
                    block.node.name
                ),
            ));
            continue;
        };
        let object = || [block_object(block)];
        if !pool.cidr.contains(&block.cidr) {
            found.push(Finding::new(
                Kind::OutsidePool,
                object(),
                format!("{} is not inside of {} of pool {}", block.cidr, pool.cidr, pool.name),
                format!("drain node {}, then: cairn ipam release {}", block.node.name, block.name),
            ));
        } else if block.cidr.prefix_len() != pool.block_size {
            found.push(Finding::new(
                Kind::WrongSize,
                object(),
                format!("{} is no /{} of pool {}", block.cidr, pool.block_size, pool.name),
                format!("drain node {}, then: cairn ipam release {}", block.node.name, block.name),
            ));
        }
    }
}

/// What this node's kernel and peers say.
pub(super) fn local(seen: &Snapshot, found: &mut Vec<Finding>) {
    let Some(local) = &seen.local else { return };
    for why in &local.unknown {
        found.push(Finding::new(
            Kind::LocalUnknown,
            [format!("node/{}", local.node)],
            why.clone(),
            "run it as root on the node, or in the agent's container",
        ));
    }
    kernel(seen, local, found);
    announced(seen, local, found);
}

fn kernel(seen: &Snapshot, local: &LocalSeen, found: &mut Vec<Finding>) {
    let own: Vec<&BlockSeen> =
        seen.blocks.iter().filter(|block| block.node.name == local.node).collect();
    let shown: BTreeSet<IpAddr> =
        own.iter().flat_map(|block| block.allocations.iter().map(|a| a.address)).collect();
    let index = seen.block_index();
    for (address, interface) in &local.kernel {
        let block = index.of(*address);
        let is_own = block.is_some_and(|block| block.node.name == local.node);
        if shown.contains(address) || is_own && block.is_some_and(|block| !is_whole(block)) {
            continue;
        }
        let (place, remedy) = match block {
            Some(block) if is_own => (
                format!("block {} does not show it in use", block.cidr),
                "see the agent's log: it writes what its kernel holds".to_owned(),
            ),
            Some(block) => (
                format!("block {} belongs to node {}", block.cidr, block.node.name),
                "end the pod: its successor gets another address".to_owned(),
            ),
            None => (
                "no block holds it".to_owned(),
                "the agent takes the block back if it is free; else end the pod".to_owned(),
            ),
        };
        let mut objects = vec![format!("node/{}", local.node), format!("address/{address}")];
        objects.extend(block.map(block_object));
        let text = format!("the kernel has {address} on {interface}, and {place}");
        found.push(Finding::new(Kind::KernelOnly, objects, text, remedy));
    }
    // Without an answer of the kernel nothing is missing in it.
    if local.kernel.is_empty() && !local.unknown.is_empty() {
        return;
    }
    for block in own {
        for allocation in &block.allocations {
            if !local.kernel.contains_key(&allocation.address) {
                let address = allocation.address;
                found.push(Finding::new(
                    Kind::StatusOnly,
                    [block_object(block), format!("address/{address}")],
                    format!("{address} is shown in use, and no interface of this node has it"),
                    "restart the agent: it reads the kernel anew",
                ));
            }
        }
    }
}

/// Who announces a block that is not its owner.
fn announced(seen: &Snapshot, local: &LocalSeen, found: &mut Vec<Finding>) {
    let index = seen.block_index();
    let mut others: BTreeMap<&str, (&BlockSeen, BTreeSet<String>)> = BTreeMap::new();
    for route in &local.heard {
        let Some(block) = index.around(IpNet::from(route.prefix)).next() else { continue };
        if is_by_owner(seen, local, block, route) {
            continue;
        }
        let who = match route.origin_as {
            Some(asn) => format!("{} by AS {asn} (peer {})", route.prefix, route.peer),
            None => format!("{} by {} (peer {})", route.prefix, route.next_hop, route.peer),
        };
        let stale = if route.stale { ", stale" } else { "" };
        others
            .entry(&block.name)
            .or_insert_with(|| (block, BTreeSet::new()))
            .1
            .insert(format!("{who}{stale}"));
    }
    for (block, who) in others.values() {
        found.push(Finding::new(
            Kind::AnnouncedByAnother,
            [block_object(block)],
            format!(
                "{} belongs to node {}, and is announced otherwise: {}",
                block.cidr,
                block.node.name,
                some(who)
            ),
            "find that router: a machine that was thought off, or another network with this range",
        ));
    }
}

/// Whether a route to a block may come from its owner.
fn is_by_owner(seen: &Snapshot, local: &LocalSeen, block: &BlockSeen, route: &HeardRoute) -> bool {
    if block.node.name == local.node {
        // What comes back to its origin.
        return route.looped;
    }
    match (seen.speakers.get(&block.node.name), route.origin_as) {
        (Some(owner), Some(origin)) => owner.asn == origin,
        (Some(owner), None) => owner.addresses.contains(&route.next_hop),
        // Its Node is gone and a peer may keep the route for a while: a finding about the Node.
        (None, _) => route.stale,
    }
}

fn overlap(a: IpNet, b: IpNet) -> bool {
    a.contains(&b) || b.contains(&a)
}
