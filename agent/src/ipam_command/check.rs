//! `cairn ipam check`: looks, and when something is not as it should be, looks once more: what was
//! only on its way has arrived by then.

use std::process::ExitCode;
use std::time::Duration;

use clap::Args;
use serde::Serialize;

use super::Surroundings;
use super::findings::{Finding, findings, lasting};
use super::snapshot::Snapshot;
use super::text::count;
use super::{local, read};
use crate::logging::Format;

/// Options of `cairn ipam check`.
#[derive(Args)]
pub(super) struct Options {
    /// The form of the answer.
    #[arg(short, long, value_enum, default_value = "text")]
    output: Format,
    /// How long to wait before the second look, in seconds: nodes tell what they use within a few.
    #[arg(long, default_value_t = 3, value_parser = clap::value_parser!(u8).range(0..=60))]
    settle_secs: u8,
}

/// The answer for programs.
#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct Answer<'a> {
    findings: &'a [Finding],
    looked: Looked,
}

/// How much was looked at.
#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct Looked {
    pools: usize,
    blocks: usize,
    nodes: usize,
    pods: usize,
    /// The node whose kernel and peers were asked.
    #[serde(skip_serializing_if = "Option::is_none")]
    node: Option<String>,
}

/// Prints what is not as it should be.
pub(super) async fn run(from: &Surroundings, options: Options) -> ExitCode {
    match check(from, &options).await {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => ExitCode::from(FINDINGS),
        Err(error) => could_not_look(&error),
    }
}

/// Says why, in the way of every command, and ends with the code that tells it from findings.
pub(super) fn could_not_look(error: &anyhow::Error) -> ExitCode {
    eprintln!("cairn: {error:#}");
    ExitCode::from(COULD_NOT_LOOK)
}

/// Whether all is in order.
async fn check(from: &Surroundings, options: &Options) -> anyhow::Result<bool> {
    let mut seen = look(from).await?;
    let mut found = findings(&seen);
    if !found.is_empty() && options.settle_secs > 0 {
        tokio::time::sleep(Duration::from_secs(options.settle_secs.into())).await;
        seen = look(from).await?;
        found = lasting(&found, findings(&seen));
    }
    let looked = Looked {
        pools: seen.pools.len(),
        blocks: seen.blocks.len(),
        nodes: seen.nodes.len(),
        pods: seen.pods.len(),
        node: seen.local.map(|local| local.node),
    };
    match options.output {
        Format::Json => {
            println!("{}", serde_json::to_string_pretty(&Answer { findings: &found, looked })?);
        }
        Format::Text => print!("{}", text(&found, &looked)),
    }
    Ok(found.is_empty())
}

async fn look(from: &Surroundings) -> anyhow::Result<Snapshot> {
    let mut seen = read::snapshot(from).await?;
    let cidrs: Vec<_> = seen.blocks.iter().map(|block| block.cidr).collect();
    let run_dir = from.run_dir.clone();
    seen.local = tokio::task::spawn_blocking(move || local::look(&run_dir, &cidrs)).await?;
    Ok(seen)
}

fn text(found: &[Finding], looked: &Looked) -> String {
    let mut text = String::new();
    for finding in found {
        let objects = super::text::some(&finding.objects);
        text.push_str(&format!("{} {objects}\n", finding.kind));
        text.push_str(&format!("  {}\n  -> {}\n", finding.text, finding.remedy));
    }
    let verdict = match found.len() {
        0 => "in order".to_owned(),
        number => count(number, "finding"),
    };
    let Looked { pools, blocks, nodes, pods, node } = looked;
    let what = [(*pools, "pool"), (*blocks, "block"), (*nodes, "node"), (*pods, "pod")];
    let what = what.map(|(number, noun)| count(number, noun)).join(", ");
    let local = match node {
        Some(node) => format!("kernel and peers of node {node}"),
        None => "no agent runs here, so no kernel and no peers".to_owned(),
    };
    text.push_str(&format!("{verdict}: {what}; {local}\n"));
    text
}

const FINDINGS: u8 = 1;
const COULD_NOT_LOOK: u8 = 2;
