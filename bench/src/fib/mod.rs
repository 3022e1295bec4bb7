//! `cairn-bench kernel`: our route reconciler beside other writers of the kernel's routes, in one run.
//!
//! Each run of each writer has a network namespace with one link and the same routes, written in the
//! order of their prefixes. The limit is a *bare* loop: messages built beforehand, 64 KiB a system call,
//! one acknowledgement for each of these, and a dump that is received and not looked at.
//!
//! | Writer | How |
//! |---|---|
//! | cairn | `RouteReconciler`, from the first `set` to the last acknowledgement |
//! | rtnetlink | the crate: messages built beforehand, an acknowledgement each, 64 requests at a time |
//! | ip -batch | lines written beforehand; starting the program counts |
//! | bird | BIRD 2's kernel protocol between two static ones; it knows no objects |
//!
//! *install* writes all routes into an empty table; *resync* looks at all of them and finds no
//! difference; *replace* gives each another gateway; *remove* deletes each. A cell is named after the
//! number of routes, the family, how routes name their ways out (one gateway, a next-hop object, two
//! gateways) and how many gateways there are on the link.
//!
//! What is compared is the CPU time of the process, its kernel part included: the kernel does its work
//! within the writer's system calls. Nobody listens to notifications. Then come the octets that the
//! reconciler holds for a route, and what it takes until all routes into a tunnel lead to a peer's new
//! address.

pub mod bed;
mod bird;
pub mod cell;
mod ip_batch;
pub mod ours;
pub mod raw;
mod repoint;
mod report;
mod rtnl;

use std::process::ExitCode;

use bed::{Bed, Samples};
use cairn_kernel::route::Family;
use cell::{Cell, Shape};
use report::Report;

use crate::table::Format;
use crate::{Extent, Result};

/// A program that writes routes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Writer {
    /// The limit.
    Bare,
    /// Our reconciler.
    Cairn,
    /// The rtnetlink crate.
    Rtnetlink,
    /// `ip -batch`.
    Ip,
    /// BIRD 2.
    Bird,
}

#[derive(Debug)]
struct Options {
    extent: Extent,
    only: Vec<String>,
    runs: Option<usize>,
    format: Format,
}

/// Runs `cairn-bench kernel` with the arguments behind it.
pub fn main(arguments: impl Iterator<Item = String>) -> ExitCode {
    crate::command(Options::parse(arguments), USAGE, |options| {
        measure(options)?.print(options.format)
    })
}

fn measure(options: &Options) -> Result<Report> {
    if !rustix::process::geteuid().is_root() {
        return Err("this makes network namespaces: run it as root".into());
    }
    bed::remove_left_behind(bed::PREFIX)?;
    let mut report = Report::new(options.extent);
    let chosen = |cell: &Cell| {
        options.only.is_empty() || options.only.iter().any(|part| cell.name().contains(part))
    };
    for cell in cells(options.extent).into_iter().filter(chosen) {
        let mut runs = Vec::new();
        for run in 0..options.runs.unwrap_or(cell_runs(&cell)) {
            runs.push(measure_once(cell, run)?);
        }
        report.push(cell, &runs);
        report.push_memory(cell, ours::octets_each(&Bed::new(cell)?)?);
    }
    if options.only.is_empty() {
        for family in Family::ALL {
            for compat in [1, 0] {
                let routes = options.extent.pick(100_000, 2000);
                report.push_repoint(repoint::run(family, compat, routes)?);
            }
        }
    }
    Ok(report)
}

/// All writers in turn, another one first in each run.
fn measure_once(cell: Cell, run: usize) -> Result<Vec<(Writer, Samples)>> {
    let mut all = Vec::new();
    for turn in 0..Writer::ALL.len() {
        let Some(writer) = Writer::ALL.get((run + turn) % Writer::ALL.len()).copied() else {
            continue;
        };
        eprintln!("{} run {}: {} ...", cell.name(), run + 1, writer.name());
        let bed = Bed::new(cell)?;
        let samples = match writer {
            Writer::Bare => raw::run(&bed).map(Some),
            Writer::Cairn => ours::run(&bed).map(Some),
            Writer::Rtnetlink => rtnl::run(&bed).map(Some),
            Writer::Ip => ip_batch::run(&bed).map(Some),
            Writer::Bird => bird::run(&bed),
        };
        let samples =
            samples.map_err(|error| format!("{}, {}: {error}", cell.name(), writer.name()))?;
        all.extend(samples.map(|samples| (writer, samples)));
    }
    Ok(all)
}

fn cells(extent: Extent) -> Vec<Cell> {
    let (sizes, hop_counts): (&[u32], &[u32]) = match extent {
        Extent::Full => (&[10_000, 100_000, 500_000], &[1, 1000, 5000]),
        Extent::Quick => (&[2000], &[10]),
    };
    let mut cells = Vec::new();
    for routes in sizes.iter().copied() {
        for family in Family::ALL {
            for shape in [Shape::Plain, Shape::Object, Shape::Ecmp] {
                let all = hop_counts.iter().map(|hops| Cell { family, shape, routes, hops: *hops });
                cells.extend(all.filter(|cell| !is_too_long(cell)));
            }
        }
    }
    cells
}

/// Half a million routes over many gateways are the kernel's time alone, an hour for all writers: those
/// through objects are measured, of which the kernel makes no more than of few gateways.
fn is_too_long(cell: &Cell) -> bool {
    cell.routes >= 500_000 && cell.hops > 1 && cell.shape != Shape::Object
}

fn cell_runs(cell: &Cell) -> usize {
    let searches = cell.family == Family::V4 && cell.shape != Shape::Object && cell.hops > 1;
    match cell.routes {
        500_000.. => 1,
        100_000.. if searches => 1,
        10_000.. => 3,
        _ => 1,
    }
}

impl Writer {
    /// All of them; the one that the others are compared with comes first.
    pub const ALL: [Writer; 5] =
        [Writer::Bare, Writer::Cairn, Writer::Rtnetlink, Writer::Ip, Writer::Bird];

    /// As the table shows it.
    pub const fn name(self) -> &'static str {
        match self {
            Writer::Bare => "bare",
            Writer::Cairn => "cairn",
            Writer::Rtnetlink => "rtnetlink",
            Writer::Ip => "ip",
            Writer::Bird => "bird",
        }
    }
}

impl Options {
    /// `None` when help is asked for.
    fn parse(
        mut arguments: impl Iterator<Item = String>,
    ) -> std::result::Result<Option<Options>, String> {
        let mut options =
            Options { extent: Extent::Full, only: Vec::new(), runs: None, format: Format::Table };
        while let Some(argument) = arguments.next() {
            match argument.as_str() {
                "--quick" => options.extent = Extent::Quick,
                "--only" => options
                    .only
                    .push(arguments.next().ok_or("--only takes a cell, or a part of its name")?),
                "--runs" => {
                    let runs = arguments.next().and_then(|runs| runs.parse().ok());
                    options.runs =
                        Some(runs.filter(|runs| *runs > 0).ok_or("--runs takes a number")?);
                }
                "-o" | "--output" => {
                    options.format = Format::named(arguments.next().as_deref())?;
                }
                "-h" | "--help" => return Ok(None),
                other => return Err(format!("what is \"{other}\"?")),
            }
        }
        let all = cells(options.extent);
        let exists = |part: &&String| !all.iter().any(|cell| cell.name().contains(part.as_str()));
        match options.only.iter().find(exists) {
            Some(part) => Err(format!("no cell's name has \"{part}\" in it")),
            None => Ok(Some(options)),
        }
    }
}

const USAGE: &str = "usage: cairn-bench kernel [--quick] [--only PART_OF_A_CELL]... [--runs N] \
                     [-o json]";
