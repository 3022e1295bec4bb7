//! `cairn ipam show`: pools, blocks with their owners, and who has an address.

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::process::ExitCode;

use anyhow::ensure;
use cairn_ipam::FreeIndex;
use clap::Args;
use ipnet::IpNet;
use serde::Serialize;

use super::snapshot::{BlockSeen, PodSeen, PoolSeen, Snapshot};
use super::text::table;
use super::{Surroundings, read};
use crate::logging::Format;

/// Options of `cairn ipam show`.
#[derive(Args)]
pub(super) struct Options {
    /// Only this pool, with its blocks.
    #[arg(long)]
    pool: Option<String>,
    /// Only the blocks of this node.
    #[arg(long)]
    node: Option<String>,
    /// Who has this address.
    #[arg(long, conflicts_with_all = ["pool", "node"])]
    address: Option<IpAddr>,
    /// The form of the answer.
    #[arg(short, long, value_enum, default_value = "text")]
    output: Format,
}

/// A pool, and how full it is.
#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
struct PoolLine {
    name: String,
    cidr: IpNet,
    block_size: u8,
    /// Claimed blocks, and how many the pool has. Numbers that can pass 2^53 are texts.
    blocks: usize,
    blocks_total: String,
    /// Addresses in use, and the others of claimed blocks.
    used: String,
    free: String,
    state: String,
}

/// A block.
#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
struct BlockLine {
    cidr: IpNet,
    pool: String,
    node: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    used: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    free: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    advertised: Option<bool>,
    deleting: bool,
}

/// Pools and blocks.
#[derive(Debug, Serialize)]
struct Overview {
    pools: Vec<PoolLine>,
    blocks: Vec<BlockLine>,
}

/// Who has an address.
#[derive(Debug, Default, Serialize)]
#[serde(rename_all = "camelCase")]
struct Whose {
    address: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    pool: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    block: Option<IpNet>,
    #[serde(skip_serializing_if = "Option::is_none")]
    node: Option<String>,
    /// By the word of the block's owner.
    in_use: bool,
    #[serde(skip_serializing_if = "Option::is_none")]
    pod: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    container: Option<String>,
    /// Pods that have it by the word of the API server.
    pods: Vec<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    reservation: Option<String>,
}

/// Prints what was asked for.
pub(super) async fn run(from: &Surroundings, options: Options) -> anyhow::Result<ExitCode> {
    let mut seen = Snapshot::default();
    read::pools(from, &mut seen).await?;
    if let Some(address) = options.address {
        let whose = whose(from, address, seen).await?;
        match options.output {
            Format::Json => println!("{}", serde_json::to_string_pretty(&whose)?),
            Format::Text => print!("{}", whose.to_text()),
        }
        return Ok(ExitCode::SUCCESS);
    }
    if let Some(name) = &options.pool {
        let known = seen.pools.iter().map(|pool| pool.name.as_str()).collect::<Vec<_>>();
        ensure!(
            known.contains(&name.as_str()),
            "there is no pool \"{name}\"; there are: {}",
            super::text::some(&known)
        );
    }
    let fields = options.node.as_ref().map(|node| format!("spec.node.name={node}"));
    seen.blocks =
        read::blocks(from, fields.as_deref().unwrap_or_default(), &mut seen.unread).await?;
    for (object, why) in &seen.unread {
        eprintln!("cairn: {object} is left out: {why}");
    }
    let overview = overview(&seen, &options);
    match options.output {
        Format::Json => println!("{}", serde_json::to_string_pretty(&overview)?),
        Format::Text => print!("{}", overview.to_text()),
    }
    Ok(ExitCode::SUCCESS)
}

fn overview(seen: &Snapshot, options: &Options) -> Overview {
    let mut of_pool: BTreeMap<&str, Vec<&BlockSeen>> = BTreeMap::new();
    for block in &seen.blocks {
        of_pool.entry(&block.pool.uid).or_default().push(block);
    }
    let wanted = |name: &str| options.pool.as_ref().is_none_or(|pool| pool == name);
    let mut pools: Vec<&PoolSeen> = seen.pools.iter().filter(|pool| wanted(&pool.name)).collect();
    pools.sort_by(|a, b| a.name.cmp(&b.name));
    let mut blocks: Vec<&BlockSeen> =
        seen.blocks.iter().filter(|block| wanted(&block.pool.name)).collect();
    blocks.sort_by_key(|block| block.cidr);
    // A node's blocks say nothing about how full a pool is.
    let pools = match options.node {
        Some(_) => Vec::new(),
        None => pools
            .iter()
            .map(|pool| pool_line(pool, of_pool.get(pool.uid.as_str()).map_or(&[], |all| all)))
            .collect(),
    };
    Overview { pools, blocks: blocks.into_iter().map(block_line).collect() }
}

fn pool_line(pool: &PoolSeen, blocks: &[&BlockSeen]) -> PoolLine {
    let sum = |number: fn(&BlockSeen) -> Option<u128>| {
        blocks.iter().filter_map(|block| number(block)).fold(0, u128::saturating_add).to_string()
    };
    let state = match &pool.ready {
        _ if pool.terminating => "Terminating".to_owned(),
        _ if pool.disabled => "Disabled".to_owned(),
        Some((true, ..)) => "Ready".to_owned(),
        Some((false, reason, _)) => reason.clone(),
        None => "-".to_owned(),
    };
    PoolLine {
        name: pool.name.clone(),
        cidr: pool.cidr,
        block_size: pool.block_size,
        blocks: blocks.len(),
        blocks_total: FreeIndex::new(pool.cidr, pool.block_size).total().to_string(),
        used: sum(|block| block.used),
        free: sum(|block| block.free),
        state,
    }
}

fn block_line(block: &BlockSeen) -> BlockLine {
    BlockLine {
        cidr: block.cidr,
        pool: block.pool.name.clone(),
        node: block.node.name.clone(),
        used: block.used.map(|used| used.to_string()),
        free: block.free.map(|free| free.to_string()),
        advertised: block.advertised,
        deleting: block.terminating_secs.is_some(),
    }
}

/// Asks for the blocks around the address, and for the pods that have it.
async fn whose(from: &Surroundings, address: IpAddr, mut seen: Snapshot) -> anyhow::Result<Whose> {
    let range = cairn_api::block_range(IpNet::from(address));
    let fields = format!("spec.range={range}");
    seen.blocks = read::blocks(from, &fields, &mut seen.unread).await?;
    let block = seen.block_index().of(address);
    let allocation =
        block.and_then(|block| block.allocations.iter().find(|a| a.address == address));
    // The server selects by a pod's first address only; an address of the second family is found
    // among the pods of its block's node.
    let mut pods = read::pods(from, &format!("status.podIP={address}")).await?;
    if let (true, Some(block)) = (pods.is_empty(), block) {
        pods = read::pods(from, &format!("spec.nodeName={}", block.node.name)).await?;
    }
    pods.retain(|pod: &PodSeen| pod.addresses.contains(&address));
    let reservations = read::reserved(from).await?;
    Ok(Whose {
        address: address.to_string(),
        pool: seen.pool_of(address).map(|pool| pool.name.clone()),
        block: block.map(|block| block.cidr),
        node: block.map(|block| block.node.name.clone()),
        in_use: allocation.is_some(),
        pod: allocation.and_then(|allocation| allocation.pod.clone()),
        container: allocation.and_then(|allocation| allocation.container.clone()),
        pods: pods.into_iter().map(|pod| pod.name).collect(),
        reservation: reservations
            .into_iter()
            .find(|(net, _)| net.contains(&address))
            .map(|(_, name)| name),
    })
}

impl Overview {
    fn to_text(&self) -> String {
        let mut text = String::new();
        let or_dash = |cell: &Option<String>| cell.clone().unwrap_or_else(|| "-".to_owned());
        if !self.pools.is_empty() {
            let rows: Vec<_> = self
                .pools
                .iter()
                .map(|pool| {
                    [
                        pool.name.clone(),
                        pool.cidr.to_string(),
                        format!("/{}", pool.block_size),
                        format!("{}/{}", pool.blocks, pool.blocks_total),
                        pool.used.clone(),
                        pool.free.clone(),
                        pool.state.clone(),
                    ]
                })
                .collect();
            let head = ["POOL", "CIDR", "SIZE", "BLOCKS", "USED", "FREE", "STATE"];
            text.push_str(&table(head, &rows));
            text.push('\n');
        }
        let rows: Vec<_> = self
            .blocks
            .iter()
            .map(|block| {
                [
                    block.cidr.to_string(),
                    block.pool.clone(),
                    block.node.clone(),
                    or_dash(&block.used),
                    or_dash(&block.free),
                    match (block.deleting, block.advertised) {
                        (true, _) => "being deleted".to_owned(),
                        (_, Some(true)) => "advertised".to_owned(),
                        (_, Some(false)) => "not advertised".to_owned(),
                        (_, None) => "-".to_owned(),
                    },
                ]
            })
            .collect();
        text.push_str(&table(["BLOCK", "POOL", "NODE", "USED", "FREE", "STATE"], &rows));
        text
    }
}

impl Whose {
    fn to_text(&self) -> String {
        let mut text = String::new();
        let mut line = |name: &str, value: String| {
            text.push_str(&format!("{name:<12} {value}\n"));
        };
        line("address", self.address.clone());
        line("pool", self.pool.clone().unwrap_or_else(|| "none".to_owned()));
        match (self.block, &self.node) {
            (Some(block), Some(node)) => line("block", format!("{block} of node {node}")),
            _ => line("block", "none".to_owned()),
        }
        if self.in_use {
            line("pod", self.pod.clone().unwrap_or_else(|| "unknown".to_owned()));
            line("container", self.container.clone().unwrap_or_else(|| "unknown".to_owned()));
        } else if self.block.is_some() {
            line("pod", "none: not in use by the word of the node".to_owned());
        }
        let differs = !self.pods.iter().all(|pod| Some(pod) == self.pod.as_ref());
        if differs {
            line("in the API", self.pods.join(", "));
        }
        if let Some(name) = &self.reservation {
            line("reserved by", name.clone());
        }
        text
    }
}
