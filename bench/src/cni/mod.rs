//! Pods that start and end, beside other CNI plugins: `make bench-cni`.
//!
//! ```text
//! cairn-bench cni [--quick] [--pods N] [--runs N] [-o json]
//!
//!  this process ──environment, stdin──► each plugin of a chain, a process each, as libcni starts them
//!                                        └─► `cairn agent`, a process of its own, embedded API server
//! ```
//!
//! A run of a contender is in a network and a mount namespace of its own, which end with it. In a run
//! `--pods` pods start one after the other, all alive at the end, and end one after the other; then as many start
//! at once and end at once. Their namespaces are made and removed outside of what is measured, as
//! a container runtime does that. Contenders take turns, another one first in each run.
//!
//! A latency is by the clock, from before the first process of the chain is started until the last one has
//! ended. CPU time is that of the plugin's processes and, of ours, of the agent, in user and kernel mode,
//! for one ADD and one DEL.
//!
//! The **floor** is what the kernel takes: netlink requests for the same interface, written out in a loop
//! in this process, without a look at what is there, settings under /proc/sys, or a process. What a
//! process costs is in the lines about the plugin.

mod bed;
mod chain;
mod floor;
mod plugin;
mod report;

use std::process::ExitCode;
use std::time::Duration;

use bed::Bed;
use chain::Contender;
use report::Report;

use crate::table::Format;
use crate::{Extent, Result};

struct Options {
    extent: Extent,
    pods: usize,
    runs: usize,
    format: Format,
}

/// What a contender took in one run. Latencies are in milliseconds.
#[derive(Debug, Default)]
pub struct Samples {
    /// Of pods one after the other, in their order.
    pub adds: Vec<f64>,
    /// As `adds`.
    pub dels: Vec<f64>,
    /// Of an ADD with its DEL.
    pub cpu: Duration,
    /// Of pods at once.
    pub together_adds: Vec<f64>,
    /// From the first one's begin to the last one's end, in milliseconds.
    pub all_added: f64,
    /// As `all_added`.
    pub all_deleted: f64,
}

/// Runs `cairn-bench cni` with the arguments behind it.
pub fn main(arguments: impl Iterator<Item = String>) -> ExitCode {
    crate::command(Options::parse(arguments), USAGE, |options| {
        measure(options)?.print(options.format)
    })
}

fn measure(options: &Options) -> Result<Report> {
    if !rustix::process::geteuid().is_root() {
        return Err("this makes network namespaces: run it as root".into());
    }
    let mut report = Report::new(options.extent, options.pods);
    for run in 0..options.runs {
        for turn in 0..Contender::ALL.len() {
            let at = (run + turn) % Contender::ALL.len();
            let Some(contender) = Contender::ALL.get(at).copied() else { continue };
            eprintln!("run {}: {} ...", run + 1, contender.name());
            // A thread of its own, whose namespaces end with it.
            let measured = std::thread::scope(|scope| {
                let run = || measure_once(contender, options.pods).map_err(|e| e.to_string());
                scope.spawn(run).join()
            });
            let samples = measured.map_err(|_| "a measurement panicked")?;
            report.push(contender, samples.map_err(|e| format!("{}: {e}", contender.name()))?);
            // The kernel takes namespaces away after their last user has gone, under the lock that the next
            // contender needs.
            std::thread::sleep(SETTLE);
        }
    }
    report.plugin = Some(plugin::measure(options.extent.pick(200, 5))?);
    Ok(report)
}

fn measure_once(contender: Contender, pods: usize) -> Result<Samples> {
    let bed = Bed::new(contender)?;
    let mut samples = Samples::default();
    let first = bed.pods(0, pods)?;
    let before = bed.cpu()?;
    for pod in &first {
        samples.adds.push(bed.add(pod)?);
    }
    for pod in &first {
        samples.dels.push(bed.del(pod)?);
    }
    samples.cpu = bed.cpu()?.saturating_sub(before) / u32::try_from(pods)?;
    bed.remove(first)?;
    if contender != Contender::Floor {
        let second = bed.pods(pods, pods)?;
        (samples.together_adds, samples.all_added) = bed.together(&second, Bed::add)?;
        (_, samples.all_deleted) = bed.together(&second, Bed::del)?;
        bed.remove(second)?;
    }
    Ok(samples)
}

impl Options {
    /// `None` when help is asked for.
    fn parse(
        mut arguments: impl Iterator<Item = String>,
    ) -> std::result::Result<Option<Options>, String> {
        let (mut extent, mut pods, mut runs) = (Extent::Full, None, None);
        let mut format = Format::Table;
        let number = |text: Option<String>, option: &str| {
            let number = text.and_then(|text| text.parse::<usize>().ok());
            number.filter(|number| *number > 0).ok_or(format!("{option} takes a number"))
        };
        while let Some(argument) = arguments.next() {
            match argument.as_str() {
                "--quick" => extent = Extent::Quick,
                "--pods" => pods = Some(number(arguments.next(), "--pods")?),
                "--runs" => runs = Some(number(arguments.next(), "--runs")?),
                "-o" | "--output" => format = Format::named(arguments.next().as_deref())?,
                "-h" | "--help" => return Ok(None),
                other => return Err(format!("what is \"{other}\"?")),
            }
        }
        Ok(Some(Options {
            extent,
            pods: pods.unwrap_or(extent.pick(200, 4)),
            runs: runs.unwrap_or(extent.pick(3, 1)),
            format,
        }))
    }
}

const SETTLE: Duration = Duration::from_secs(2);
const USAGE: &str = "usage: cairn-bench cni [--quick] [--pods N] [--runs N] [-o json]";
