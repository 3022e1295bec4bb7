//! `cairn drain`: writes an operator's wish to the Node, and shows what its agent makes of it.
//!
//! ```text
//!  cairn drain ──annotation──► Node ──watch──► agent ──► BGPNodeStatus ──read──► cairn drain
//! ```
//!
//! It decides nothing: whoever sets the annotation by other means gets the same, and to end this command ends
//! no drain.

use std::path::PathBuf;
use std::process::ExitCode;
use std::time::{Duration, Instant};

use anyhow::bail;
use cairn_api::{ANNOTATION_DRAIN, BGPNodeStatus, DrainPhase, DrainStatus};
use clap::Args;
use k8s_openapi::api::core::v1::Node;
use kube::api::{Api, Patch, PatchParams};
use serde_json::{Value, json};

use crate::api_client;
use crate::drain::{NOW, NOW_WITH_PODS, ON_CORDON, Wish};
use crate::ipam_command::{CallError, call};

/// Options of `cairn drain`.
#[derive(Args)]
pub struct Options {
    /// The node.
    node: String,
    /// Take it back into use, whatever step it is at.
    #[arg(long, conflicts_with_all = ["with_pods", "on_cordon"])]
    undo: bool,
    /// Withdraw also the blocks in which pods have addresses: these pods cannot be reached any more.
    #[arg(long, conflicts_with = "on_cordon")]
    with_pods: bool,
    /// Not now, but whenever the node is cordoned, and for as long as it is.
    #[arg(long)]
    on_cordon: bool,
    /// Print what would be written, and write nothing.
    #[arg(long)]
    dry_run: bool,
    /// Return when it is written.
    #[arg(long)]
    no_wait: bool,
    /// Wait for no longer than so many seconds; the drain goes on.
    #[arg(long)]
    timeout: Option<u64>,
    /// How to reach the API server; without it KUBECONFIG, as a pod of the cluster, or
    /// ~/.kube/config.
    #[arg(long)]
    kubeconfig: Option<PathBuf>,
}

impl Options {
    /// What the annotation is to be.
    fn value(&self) -> Option<&'static str> {
        match self {
            Options { undo: true, .. } => None,
            Options { on_cordon: true, .. } => Some(ON_CORDON),
            Options { with_pods: true, .. } => Some(NOW_WITH_PODS),
            _ => Some(NOW),
        }
    }
}

/// Writes the wish, and waits until it is so.
///
/// # Errors
/// The API server cannot be reached or refuses, or the time is over; the text says what to do.
pub async fn run(options: Options) -> anyhow::Result<ExitCode> {
    let client = api_client::of_user(options.kubeconfig.as_deref()).await?;
    let name = &options.node;
    let nodes: Api<Node> = Api::all(client.clone());
    let Some(node) = call(&format!("cannot read Node {name}"), nodes.get_opt(name)).await? else {
        bail!("there is no Node {name}");
    };
    let patch = patch(&node, options.value());
    let statuses: Api<BGPNodeStatus> = Api::all(client);
    if options.dry_run {
        println!("would patch Node {name}: {patch}");
        return Ok(ExitCode::SUCCESS);
    }
    let before = match options.no_wait {
        true => None,
        false => status_of(&statuses, name).await?,
    };
    let what = format!("cannot write to Node {name}");
    let params = PatchParams::default();
    let wished = Wish::of(&node);
    let node = call(&what, nodes.patch(name, &params, &Patch::Merge(&patch))).await?;
    let old = Old { status: before, is_new: is_new(&wished, &Wish::of(&node)) };
    match options.value() {
        Some(value) => println!("node {name} has {ANNOTATION_DRAIN}={value}"),
        None => println!("node {name} has no {ANNOTATION_DRAIN} any more"),
    }
    if options.no_wait {
        return Ok(ExitCode::SUCCESS);
    }
    if options.on_cordon && Wish::of(&node) == Ok(Wish::Stay) {
        println!("it is not cordoned, and stays in use until it is");
        return Ok(ExitCode::SUCCESS);
    }
    follow(&statuses, &options, &old).await
}

/// Whether an agent has to do something else than before: a word that is none is as none.
fn is_new(before: &Result<Wish, String>, after: &Result<Wish, String>) -> bool {
    let wish = |read: &Result<Wish, String>| *read.as_ref().unwrap_or(&Wish::Stay);
    wish(before) != wish(after)
}

/// What the agent said before the wish was written.
struct Old {
    status: Option<DrainStatus>,
    /// The wish is another one than before. If not, what the agent says is about this one.
    is_new: bool,
}

impl Old {
    /// Whether `status` may be of before the wish.
    fn may_be(&self, status: Option<&DrainStatus>, elapsed: Duration) -> bool {
        let same = match (&self.status, status) {
            (Some(old), Some(new)) => (old.phase, &old.since) == (new.phase, &new.since),
            (old, new) => old.is_none() && new.is_none(),
        };
        self.is_new && same && elapsed < STALE_FOR
    }
}

/// What the agent of a node says of its drain.
async fn status_of(
    statuses: &Api<BGPNodeStatus>,
    name: &str,
) -> Result<Option<DrainStatus>, CallError> {
    let status = call(&format!("cannot read BGPNodeStatus {name}"), statuses.get_opt(name)).await?;
    Ok(status.and_then(|status| status.spec.drain))
}

fn patch(node: &Node, value: Option<&str>) -> Value {
    json!({"metadata": {
        "uid": node.metadata.uid,
        "annotations": {ANNOTATION_DRAIN: value},
    }})
}

/// Prints each step until the last.
async fn follow(
    statuses: &Api<BGPNodeStatus>,
    options: &Options,
    old: &Old,
) -> anyhow::Result<ExitCode> {
    let name = &options.node;
    let started = Instant::now();
    let mut last = String::new();
    loop {
        let read = status_of(statuses, name).await;
        let elapsed = started.elapsed();
        let seen = match read {
            Ok(status) if old.may_be(status.as_ref(), elapsed) => Seen::NotYet(None),
            Ok(status) => seen(options, status, elapsed),
            // It may be drained for the sake of the machine under the API server.
            Err(error) => Seen::NotYet(Some(error.to_string())),
        };
        let (line, is_done) = match seen {
            Seen::Done(line) => (Some(line), true),
            Seen::NotYet(line) => (line, false),
        };
        if let Some(line) = line.filter(|line| *line != last) {
            println!("{:>4} s  {line}", elapsed.as_secs());
            last = line;
        }
        if is_done {
            return Ok(ExitCode::SUCCESS);
        }
        if options.timeout.is_some_and(|secs| elapsed >= Duration::from_secs(secs)) {
            bail!("node {name} is not that far after {} s: {}", elapsed.as_secs(), rest(options));
        }
        tokio::time::sleep(LOOK_INTERVAL).await;
    }
}

/// What there is to say of a node's drain, if anything.
enum Seen {
    Done(String),
    NotYet(Option<String>),
}

fn seen(options: &Options, status: Option<DrainStatus>, elapsed: Duration) -> Seen {
    let line = |status: &DrainStatus| format!("{:?}: {}", status.phase, status.message);
    let silent = || {
        Seen::NotYet((elapsed >= SILENT_AFTER).then(|| {
            format!(
                "the agent of {} has not taken it up: see whether it runs and reaches the API server",
                options.node
            )
        }))
    };
    match (options.undo, status) {
        (true, None) => Seen::Done("in use: all is announced as ever".into()),
        (true, Some(_)) | (false, None) => silent(),
        (false, Some(status)) if status.phase == DrainPhase::Drained => Seen::Done(line(&status)),
        (false, Some(status)) => Seen::NotYet(Some(line(&status))),
    }
}

fn rest(options: &Options) -> String {
    let name = &options.node;
    match options.undo {
        true => format!(
            "its agent takes it back when it reads it; see kubectl get bgpnodestatus {name}"
        ),
        false => format!("the drain goes on; `cairn drain {name} --undo` takes it back"),
    }
}

const LOOK_INTERVAL: Duration = Duration::from_millis(500);
/// What an agent says may be older than the wish for so long.
const STALE_FOR: Duration = Duration::from_secs(5);
/// An agent hears of its Node within a second.
const SILENT_AFTER: Duration = Duration::from_secs(10);

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_answer_of_before_counts_when_nothing_else_is_wanted() {
        let word = || Err("a word that is none".to_owned());
        let same = [
            (Ok(Wish::Leave), Ok(Wish::Leave)),
            (Ok(Wish::Stay), Ok(Wish::Stay)),
            (word(), Ok(Wish::Stay)),
        ];
        let drained = || {
            let drain = json!({"phase": "Drained", "since": "2026-01-01T00:00:00Z", "message": ""});
            serde_json::from_value::<DrainStatus>(drain).expect("a status")
        };
        let may_be = |before, after| {
            let old = Old { status: Some(drained()), is_new: is_new(&before, &after) };
            old.may_be(Some(&drained()), Duration::ZERO)
        };
        for (before, after) in same {
            assert!(!may_be(before.clone(), after.clone()), "{before:?} {after:?}");
        }
        assert!(may_be(Ok(Wish::Leave), Ok(Wish::LeaveWithPods)));
        assert!(may_be(Ok(Wish::Stay), Ok(Wish::Leave)));
    }
}
