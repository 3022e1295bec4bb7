//! `cairn-bench bgp`: our speaker beside other daemons, from outside, in one run.
//!
//! ```text
//!                 network namespace, one for each run of each daemon
//!   ┌─────────────────────────────────────────────────────────────────┐
//!   │ generator (this process, one thread)            daemon          │
//!   │  sender 10.99.1.1   AS 200001 ──TCP──┐                          │
//!   │  ...                                 ├──► 10.99.0.1:1790 AS 65000│
//!   │  receiver, stores   AS 2000nn ◄─TCP──┘                          │
//!   └─────────────────────────────────────────────────────────────────┘
//! ```
//!
//! Senders write messages that were encoded before, as fast as their sockets take them, and later
//! withdraw everything; receivers store octets with the time of each read. When nothing has come for a
//! while, the recordings are read: a receiver was complete with the read that brought the last prefix
//! with the AS path that it has to have. Senders get each other's routes, too, which they throw away;
//! the clock runs until the last octet of these.
//!
//! The daemons take turns, and which is first changes from run to run. Times are those of this machine
//! under whatever else runs on it: only ratios within one run of the command mean something.

mod cell;
pub mod copier;
mod daemon;
pub mod failures;
pub mod generator;
mod ledger;
pub mod namespace;
pub mod reflector;
mod report;

use std::path::PathBuf;
use std::process::ExitCode;
use std::sync::Arc;
use std::time::Duration;

use cell::{Cell, Tables};
use daemon::Daemon;
use generator::{CutOff, Generator, Goal, Phase};
use report::{Measured, Report};

use crate::table::Format;
use crate::{Extent, Result};

#[derive(Debug)]
struct Options {
    extent: Extent,
    cells: Vec<Cell>,
    daemons: Vec<Daemon>,
    runs: Option<usize>,
    cairn: PathBuf,
    format: Format,
}

/// Runs `cairn-bench bgp` with the arguments behind it.
pub fn main(arguments: impl Iterator<Item = String>) -> ExitCode {
    crate::command(Options::parse(arguments), USAGE, |options| {
        measure(options)?.print(options.format);
        Ok(())
    })
}

fn measure(options: &Options) -> Result<Report> {
    let mut report = Report::new(options.extent);
    for daemon in &options.daemons {
        report.version(*daemon, daemon.version(&options.cairn)?);
    }
    let runs = options.runs.unwrap_or(options.extent.pick(3, 1));
    for cell in &options.cells {
        let tables = Arc::new(cell.tables()?);
        let mut best: Option<Duration> = None;
        for run in 0..runs {
            for turn in 0..options.daemons.len() {
                let daemon = options.daemons[(run + turn) % options.daemons.len()];
                eprintln!("{} run {}: {} ...", cell.name, run + 1, daemon.name());
                let at_most = best.map_or(PHASE_MAX, |best| {
                    (best * TIMES_SLOWER_MAX).clamp(PHASE_MIN, PHASE_MAX)
                });
                let measured = measure_once(*cell, &tables, daemon, options.cairn.clone(), at_most)
                    .map_err(|error| format!("{}, {}: {error}", cell.name, daemon.name()))?;
                if daemon != Daemon::Copier
                    && let Ok(phase) = &measured.announce
                {
                    best = Some(best.map_or(phase.time, |best| best.min(phase.time)));
                }
                report.push(cell, daemon, run, measured);
            }
        }
    }
    Ok(report)
}

/// One daemon, started, loaded and unloaded, on a thread that takes its namespace with it.
fn measure_once(
    cell: Cell,
    tables: &Arc<Tables>,
    daemon: Daemon,
    cairn: PathBuf,
    at_most: Duration,
) -> std::result::Result<Measured, String> {
    let tables = Arc::clone(tables);
    let measuring = std::thread::spawn(move || {
        in_namespace(&cell, &tables, daemon, &cairn, at_most).map_err(|error| error.to_string())
    });
    measuring.join().unwrap_or_else(|_| Err("the measuring thread panicked".into()))
}

fn in_namespace(
    cell: &Cell,
    tables: &Arc<Tables>,
    daemon: Daemon,
    cairn: &std::path::Path,
    at_most: Duration,
) -> Result<Measured> {
    namespace::enter()?;
    let directory = std::env::temp_dir().join(format!("cairn-bench-{}", std::process::id()));
    let process = daemon.start(cell, cairn, directory)?;
    let told = |error| format!("{error}\nthe daemon said: {}", process.log());
    let mut generator = Generator::connect(cell, tables, daemon.prepends()).map_err(told)?;
    let (idle, _) = process.memory()?;
    let announce = generator.run(Goal::Complete, &process, at_most).map_err(told)?;
    let (full, peak) = process.memory()?;
    let withdraw = match announce {
        Ok(_) => generator.run(Goal::Empty, &process, at_most).map_err(told)?,
        Err(cut_off) => Err(cut_off),
    };
    let (after, _) = process.memory()?;
    Ok(Measured { announce, withdraw, idle, full, peak, after })
}

impl Options {
    /// `None` when help is asked for.
    fn parse(
        mut arguments: impl Iterator<Item = String>,
    ) -> std::result::Result<Option<Options>, String> {
        let (mut extent, mut runs, mut format) = (Extent::Full, None, Format::Table);
        let (mut cells, mut daemons, mut cairn) = (Vec::new(), Vec::new(), None);
        while let Some(argument) = arguments.next() {
            let mut value = || arguments.next().ok_or(format!("{argument} takes a value"));
            match argument.as_str() {
                "--quick" => extent = Extent::Quick,
                "--only" => cells.push(value()?),
                "--daemon" => {
                    let name = value()?;
                    let daemon = Daemon::ALL.into_iter().find(|daemon| daemon.name() == name);
                    daemons.push(daemon.ok_or(format!("--daemon takes {}", names()))?);
                }
                "--runs" => {
                    let parsed = value()?.parse().ok().filter(|runs| (1..=1000).contains(runs));
                    runs = Some(parsed.ok_or("--runs takes a number from 1 on")?);
                }
                "--cairn" => cairn = Some(PathBuf::from(value()?)),
                "-o" | "--output" => format = Format::named(Some(&value()?))?,
                "-h" | "--help" => return Ok(None),
                other => return Err(format!("what is \"{other}\"?")),
            }
        }
        let all = Cell::all(extent);
        let known = |name: &String| all.iter().find(|cell| cell.name == name).copied();
        let known_names = || all.iter().map(|cell| cell.name).collect::<Vec<_>>().join(", ");
        let mut chosen = Vec::new();
        for name in &cells {
            chosen.push(known(name).ok_or_else(|| format!("--only takes {}", known_names()))?);
        }
        if chosen.is_empty() {
            chosen = all;
        }
        if daemons.is_empty() {
            daemons = Daemon::ALL.to_vec();
        }
        let beside = || {
            let own = std::env::current_exe().unwrap_or_default();
            own.with_file_name("cairn")
        };
        let cairn = cairn.unwrap_or_else(beside);
        Ok(Some(Options { extent, cells: chosen, daemons, runs, cairn, format }))
    }
}

fn names() -> String {
    Daemon::ALL.map(Daemon::name).join(", ")
}

/// Longest time of one phase.
const PHASE_MAX: Duration = Duration::from_secs(120);
/// Time that every daemon gets for one phase.
const PHASE_MIN: Duration = Duration::from_secs(5);
/// A daemon that takes so many times as long as the fastest is cut off.
const TIMES_SLOWER_MAX: u32 = 10;

const USAGE: &str = "usage: cairn-bench bgp [--quick] [--only CELL]... [--daemon NAME]... [--runs N] \
                     [--cairn PATH] [-o json]";
