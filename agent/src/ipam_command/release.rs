//! `cairn ipam release`: deletes a block for which only a person can say that nobody uses it: its
//! owner is gone, and neither the leader nor an agent returns it.
//!
//! What was read decides ([`judge`]); the DELETE names the object's UID and version, so that an
//! owner that changes the block meanwhile refuses it.

use std::net::IpAddr;
use std::process::ExitCode;

use anyhow::bail;
use cairn_api::{FINALIZER, IPBlock};
use cairn_bgp::rib::HeardRoute;
use clap::Args;
use ipnet::IpNet;
use k8s_openapi::api::coordination::v1::Lease;
use k8s_openapi::api::core::v1::Node;
use kube::ResourceExt;
use kube::api::{Api, DeleteParams, Patch, PatchParams, Preconditions};
use serde_json::json;

use super::read::{self, call, lease_name};
use super::snapshot::{BlockSeen, LeaseSeen, PodSeen};
use super::text::{count, some, span};
use super::{Surroundings, local};

/// Options of `cairn ipam release`.
#[derive(Args)]
pub(super) struct Options {
    /// The block: its CIDR, or the name of its object.
    #[arg(required_unless_present = "address")]
    block: Option<String>,
    /// The block that holds this address.
    #[arg(long, conflicts_with = "block")]
    address: Option<IpAddr>,
    /// The node that is thought to own it: with another owner nothing is deleted.
    #[arg(long)]
    node: Option<String>,
    /// Print what would be deleted, and delete nothing.
    #[arg(long)]
    dry_run: bool,
    /// In spite of what speaks against it.
    #[arg(long)]
    yes: bool,
}

/// What was read about a block's use.
#[derive(Clone, Debug)]
struct Evidence {
    now_secs: i64,
    block: BlockSeen,
    /// Whether the Node for which it was claimed exists.
    owner_exists: bool,
    /// The Lease that is held for that Node.
    lease: Option<LeaseSeen>,
    /// Pods with an address in it, each with whether its node exists.
    pods: Vec<(PodSeen, bool)>,
    /// Routes to it or a part of it; `None` where no speaker can be asked.
    heard: Option<Vec<HeardRoute>>,
}

/// What speaks against a release.
#[derive(Debug, Default, PartialEq, Eq)]
struct Judgement {
    /// What no word of an operator outweighs.
    refusals: Vec<String>,
    /// What needs a word.
    doubts: Vec<String>,
}

/// Shows what speaks against it, and deletes.
pub(super) async fn run(from: &Surroundings, options: Options) -> anyhow::Result<ExitCode> {
    let blocks: Api<IPBlock> = Api::all(from.client.clone());
    let name = name(from, &options).await?;
    let found = call(&format!("cannot read IPBlock {name}"), blocks.get_opt(&name)).await?;
    let Some(object) = found else {
        bail!("there is no IPBlock {name}: `cairn ipam show` lists them");
    };
    let evidence = gather(from, &object).await?;
    let block = &evidence.block;
    println!(
        "block {} of pool {}, owned by node {} (UID {}), {} in use by its word",
        block.cidr,
        block.pool.name,
        block.node.name,
        block.node.uid,
        block.used.map_or("an unknown number".to_owned(), |used| {
            count(usize::try_from(used).unwrap_or(usize::MAX), "address")
        })
    );
    if let Some(node) = options.node.as_ref().filter(|node| **node != block.node.name) {
        bail!("block {} belongs to node {}, not to {node}", block.cidr, block.node.name);
    }
    let Judgement { refusals, doubts } = judge(&evidence);
    for doubt in &doubts {
        println!("against it: {doubt}");
    }
    if evidence.heard.is_none() {
        println!(
            "no agent runs here: whether somebody announces it is not known; run it on a node, or \
             ask there: cairn bgp routes --within {}",
            block.cidr
        );
    }
    if !refusals.is_empty() {
        bail!("block {} is not released: {}", block.cidr, refusals.join("; "));
    }
    if options.dry_run {
        println!("would delete IPBlock {name} of UID {}", object.uid().unwrap_or_default());
        return Ok(ExitCode::SUCCESS);
    }
    if !doubts.is_empty() && !options.yes {
        bail!("block {} is not released: add --yes if none of this counts", block.cidr);
    }
    delete(&blocks, object).await?;
    Ok(ExitCode::SUCCESS)
}

/// The name of the object that is meant.
async fn name(from: &Surroundings, options: &Options) -> anyhow::Result<String> {
    if let Some(address) = options.address {
        let fields = format!("spec.range={}", cairn_api::block_range(IpNet::from(address)));
        let blocks = read::blocks(from, &fields, &mut Vec::new()).await?;
        let holding = blocks.into_iter().filter(|block| block.cidr.contains(&address));
        return match holding.max_by_key(|block| block.cidr.prefix_len()) {
            Some(block) => Ok(block.name),
            None => bail!("no block holds {address}: `cairn ipam show` lists them"),
        };
    }
    let text = options.block.as_deref().unwrap_or_default();
    let text = text.strip_prefix("ipblock/").unwrap_or(text);
    if let Ok(cidr) = text.parse::<IpNet>() {
        return Ok(cairn_api::block_name(cidr));
    }
    let plain = |c: char| c.is_ascii_hexdigit() || c == '-' || c == '.';
    if text.is_empty() || !text.chars().all(plain) {
        bail!(
            "\"{text}\" is no block: write a CIDR such as 10.244.3.64/26, or the name of an IPBlock \
             such as 10.244.3.64-26"
        );
    }
    Ok(text.to_owned())
}

/// Reads what there is about a block's use. It comes after the block, so that an agent that comes
/// back in between changes the block and voids the DELETE.
async fn gather(from: &Surroundings, object: &IPBlock) -> anyhow::Result<Evidence> {
    let block = read::block(object).map_err(|(object, why)| {
        anyhow::anyhow!("{object}: {why}: correct or delete it with kubectl")
    })?;
    let nodes: Api<Node> = Api::all(from.client.clone());
    let owner = &block.node;
    let what = format!("cannot read Node {}", owner.name);
    let node = call(&what, nodes.get_metadata_opt(&owner.name)).await?;
    let leases: Api<Lease> = Api::namespaced(from.client.clone(), &from.namespace);
    let name = lease_name(&owner.name);
    let lease = call(&format!("cannot read Lease {name}"), leases.get_opt(&name)).await?;
    let lease = lease.map(|lease| read::lease(&lease)).filter(|lease| lease.is_of(&owner.uid));
    let pods = read::pods(from, "").await?;
    let inside: Vec<PodSeen> = pods.into_iter().filter(|pod| pod.is_in(&block)).collect();
    let mut pods = Vec::new();
    for pod in inside {
        let exists = match &pod.node {
            Some(node) => call(&format!("cannot read Node {node}"), nodes.get_metadata_opt(node))
                .await?
                .is_some(),
            None => false,
        };
        pods.push((pod, exists));
    }
    let (run_dir, cidr) = (from.run_dir.clone(), block.cidr);
    let heard = tokio::task::spawn_blocking(move || local::heard(&run_dir, &[cidr]).ok()).await?;
    Ok(Evidence {
        now_secs: read::now_secs(),
        owner_exists: node.is_some_and(|node| node.uid().as_ref() == Some(&owner.uid)),
        block,
        lease,
        pods,
        heard,
    })
}

/// What speaks against a release.
fn judge(evidence: &Evidence) -> Judgement {
    let Evidence { now_secs, block, owner_exists, lease, pods, heard } = evidence;
    let mut judgement = Judgement::default();
    let node = &block.node.name;
    let (living, dead): (Vec<_>, Vec<_>) = pods.iter().partition(|(_, node_exists)| *node_exists);
    let names = |pods: &[&(PodSeen, bool)]| some(pods.iter().map(|(pod, _)| pod.name.clone()));
    if !living.is_empty() {
        let number = count(living.len(), "pod");
        judgement.refusals.push(format!(
            "{number} on nodes that exist have addresses in it ({}): end them first",
            names(&living)
        ));
    }
    if !dead.is_empty() {
        let number = count(dead.len(), "pod");
        judgement.doubts.push(format!(
            "{number} of nodes that are gone have addresses in it: {}",
            names(&dead)
        ));
    }
    let age = lease.as_ref().and_then(|lease| lease.age_secs(*now_secs));
    match lease {
        Some(lease) if lease.is_off() => {}
        Some(lease) => match (age, lease.wait_secs()) {
            (Some(age), Some(wait)) if age >= wait => {}
            (age, wait) => judgement.refusals.push(format!(
                "the agent of {node} wrote its Lease {}, and {} may hand out addresses for {} after \
                 that: wait, or if the machine is off: cairn ipam fence {node}",
                age.map_or("at a time unknown".to_owned(), |age| format!("{} ago", span(age))),
                if lease.others_rest() { "another machine that had the Node before" } else { "it" },
                wait.map_or("a time unknown".to_owned(), span)
            )),
        },
        None => judgement.doubts.push(format!(
            "no Lease tells when the agent of {node} last wrote: if the machine runs, it may hand out \
             addresses from it"
        )),
    }
    if *owner_exists {
        judgement.doubts.push(format!("its owner, the Node {node}, exists"));
        // With a silent agent only the word of the API server is left, and the agent's own last one.
        let in_use = block.used.is_none_or(|used| used > 0);
        if in_use && !lease.as_ref().is_some_and(LeaseSeen::is_off) {
            judgement.refusals.push(format!(
                "by the last word of the agent of {node} it is in use, and that Node exists: drain it, \
                 or if the machine is off: cairn ipam fence {node}"
            ));
        }
    }
    if !block.allocations.is_empty() {
        let pods = block.allocations.iter();
        let pods = pods.map(|a| a.pod.clone().unwrap_or_else(|| a.address.to_string()));
        judgement.doubts.push(format!(
            "by the last word of its owner {} of it in use: {}",
            count(block.allocations.len(), "address"),
            some(pods)
        ));
    }
    for route in heard.iter().flatten() {
        judgement.doubts.push(format!(
            "peer {} announces {} by next hop {}{}",
            route.peer,
            route.prefix,
            route.next_hop,
            if route.stale { ", stale" } else { "" }
        ));
    }
    if !block.held_by_others.is_empty() {
        judgement.doubts.push(format!(
            "it has finalizers of others and stays until they are gone: {}",
            block.held_by_others.join(", ")
        ));
    }
    judgement
}

/// DELETE under preconditions, then our finalizer.
async fn delete(blocks: &Api<IPBlock>, mut object: IPBlock) -> anyhow::Result<()> {
    let name = object.name_any();
    let changed = || {
        format!(
            "IPBlock {name} has changed since it was read: somebody uses it; nothing was deleted, look \
             again"
        )
    };
    let what = format!("cannot delete IPBlock {name}");
    if object.metadata.deletion_timestamp.is_none() {
        let preconditions = Preconditions {
            uid: object.metadata.uid.clone(),
            resource_version: object.metadata.resource_version.clone(),
        };
        let params = DeleteParams { preconditions: Some(preconditions), ..DeleteParams::default() };
        match call(&what, blocks.delete(&name, &params)).await {
            Ok(answer) => match answer.left() {
                Some(terminating) => object = terminating,
                None => return done(&name),
            },
            Err(error) if error.code == Some(409) => bail!("{}", changed()),
            Err(error) => return Err(error.into()),
        }
    }
    let kept: Vec<&String> =
        object.finalizers().iter().filter(|finalizer| *finalizer != FINALIZER).collect();
    let patch = json!({"metadata": {
        "uid": object.metadata.uid,
        "resourceVersion": object.metadata.resource_version,
        "finalizers": kept,
    }});
    let params = PatchParams::default();
    match call(&what, blocks.patch(&name, &params, &Patch::Merge(&patch))).await {
        Ok(_) if kept.is_empty() => done(&name),
        Ok(_) => {
            println!("IPBlock {name} is deleted once the finalizers of others are gone");
            Ok(())
        }
        Err(error) if error.code == Some(404) => done(&name),
        Err(error) if error.code == Some(409) => bail!("{}", changed()),
        Err(error) => Err(error.into()),
    }
}

fn done(name: &str) -> anyhow::Result<()> {
    println!("IPBlock {name} is deleted: its addresses can be claimed again");
    Ok(())
}

#[cfg(test)]
#[path = "release_tests.rs"]
mod tests;
