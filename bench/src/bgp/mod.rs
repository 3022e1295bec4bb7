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
//! The daemons take turns, and which is first changes from run to run. One that was cut off or that failed in a cell is
//! not measured there again. Times are those of this machine under whatever else runs on it: only ratios within one run
//! of the command mean something.

mod cell;
mod configuration;
pub mod copier;
mod daemon;
pub mod failures;
pub mod generator;
mod idle;
mod ledger;
pub mod namespace;
pub mod reflector;
mod report;

use std::path::PathBuf;
use std::process::ExitCode;
use std::sync::Arc;
use std::time::Duration;

use cell::{Cell, Tables};
use daemon::{Daemon, Places};
use generator::{CutOff, Generator, Goal, Phase};
use report::{Measured, Report};

use crate::table::Format;
use crate::{Extent, Result};

#[derive(Debug)]
struct Options {
    extent: Extent,
    cells: Vec<Cell>,
    /// Whether sessions without routes are measured, too.
    idle: bool,
    daemons: Vec<Daemon>,
    /// Whether each of `daemons` was asked for by its name, and so has to be there.
    named: bool,
    runs: Option<usize>,
    places: Places,
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
    let mut daemons = Vec::new();
    for daemon in options.daemons.iter().copied() {
        match daemon.version(&options.places) {
            Ok(version) => {
                report.version(daemon, version);
                daemons.push(daemon);
            }
            Err(error) if options.named || Daemon::ALWAYS.contains(&daemon) => return Err(error),
            Err(error) => report.unmeasured(daemon, None, error.to_string()),
        }
    }
    let runs = options.runs.unwrap_or(options.extent.pick(3, 1));
    for cell in &options.cells {
        measure_cell(cell, &daemons, runs, &options.places, &mut report)?;
    }
    if options.idle {
        for run in 0..runs {
            for daemon in taking_turns(&daemons, run).filter(|daemon| IDLE.contains(daemon)) {
                eprintln!("{} run {}: {} ...", idle::NAME, run + 1, daemon.name());
                let (extent, places) = (options.extent, options.places.clone());
                let figures = on_a_thread(move || idle::measure(extent, daemon, &places))
                    .map_err(|error| format!("{}, {}: {error}", idle::NAME, daemon.name()))?;
                report.push_idle(daemon, figures);
            }
        }
    }
    Ok(report)
}

fn measure_cell(
    cell: &Cell,
    daemons: &[Daemon],
    runs: usize,
    places: &Places,
    report: &mut Report,
) -> Result<()> {
    let tables = Arc::new(cell.tables()?);
    let mut daemons = daemons.to_vec();
    let mut best: Option<Duration> = None;
    for run in 0..runs {
        for daemon in taking_turns(&daemons.clone(), run) {
            eprintln!("{} run {}: {} ...", cell.name, run + 1, daemon.name());
            // Without its figures there would be nothing to compare with.
            let at_most = match best.filter(|_| daemon != Daemon::ALL[0]) {
                Some(best) => (best * TIMES_SLOWER_MAX).clamp(PHASE_MIN, PHASE_MAX),
                None => PHASE_MAX,
            };
            let (cell, tables, places) = (*cell, Arc::clone(&tables), places.clone());
            let measuring = move || in_namespace(&cell, &tables, daemon, &places, at_most);
            let measured = match on_a_thread(measuring) {
                Ok(measured) => measured,
                // The others are measured all the same.
                Err(error) if !Daemon::ALWAYS.contains(&daemon) => {
                    eprintln!("{}, {}: {error}", cell.name, daemon.name());
                    report.unmeasured(daemon, Some(cell.name), error);
                    daemons.retain(|other| *other != daemon);
                    continue;
                }
                Err(error) => {
                    return Err(format!("{}, {}: {error}", cell.name, daemon.name()).into());
                }
            };
            match &measured.announce {
                Ok(phase) if daemon != Daemon::Copier => {
                    best = Some(best.map_or(phase.time, |best| best.min(phase.time)));
                }
                Ok(_) => {}
                Err(_) => daemons.retain(|other| *other != daemon),
            }
            report.push(&cell, daemon, run, measured);
        }
    }
    Ok(())
}

/// All of them, in each run from another one on.
fn taking_turns(daemons: &[Daemon], run: usize) -> impl Iterator<Item = Daemon> + '_ {
    (0..daemons.len()).map(move |turn| daemons[(run + turn) % daemons.len()])
}

/// One daemon, started, loaded and unloaded, on a thread that takes its namespace with it.
fn on_a_thread<T: Send + 'static>(
    measure: impl FnOnce() -> Result<T> + Send + 'static,
) -> std::result::Result<T, String> {
    let measuring = std::thread::spawn(move || measure().map_err(|error| error.to_string()));
    measuring.join().unwrap_or_else(|_| Err("the measuring thread panicked".into()))
}

fn in_namespace(
    cell: &Cell,
    tables: &Arc<Tables>,
    daemon: Daemon,
    places: &Places,
    at_most: Duration,
) -> Result<Measured> {
    namespace::enter()?;
    if cell.own_subnets {
        namespace::add_own_subnets(cell)?;
    }
    let process = daemon.start(cell, places)?;
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
        let (mut cells, mut own) = (Vec::new(), Vec::new());
        let (mut daemons, mut cairn, mut newer) = (Vec::new(), None, None);
        while let Some(argument) = arguments.next() {
            let mut value = || arguments.next().ok_or(format!("{argument} takes a value"));
            match argument.as_str() {
                "--quick" => extent = Extent::Quick,
                "--only" => cells.push(value()?),
                "--cell" => own.push(Cell::parse(&value()?)?),
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
                "--newer" => newer = Some(PathBuf::from(value()?)),
                "-o" | "--output" => format = Format::named(Some(&value()?))?,
                "-h" | "--help" => return Ok(None),
                other => return Err(format!("what is \"{other}\"?")),
            }
        }
        let all = Cell::all(extent);
        let known = |name: &String| all.iter().find(|cell| cell.name == name).copied();
        let names_of_all = all.iter().map(|cell| cell.name).chain([idle::NAME]);
        let names_of_all = names_of_all.collect::<Vec<_>>().join(", ");
        let everything = cells.is_empty() && own.is_empty();
        let idle = everything || cells.iter().any(|name| name == idle::NAME);
        let mut chosen = own;
        for name in cells.iter().filter(|name| *name != idle::NAME) {
            chosen.push(known(name).ok_or_else(|| format!("--only takes {names_of_all}"))?);
        }
        if everything {
            chosen = all;
        }
        let named = !daemons.is_empty();
        if !named {
            daemons = match newer {
                Some(_) => Daemon::ALL.to_vec(),
                None => Daemon::ALWAYS.to_vec(),
            };
        }
        let beside = || {
            let own = std::env::current_exe().unwrap_or_default();
            own.with_file_name("cairn")
        };
        let places = Places { cairn: cairn.unwrap_or_else(beside), newer };
        Ok(Some(Options { extent, cells: chosen, idle, daemons, named, runs, places, format }))
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

/// Whose sessions without routes are measured.
const IDLE: [Daemon; 2] = [Daemon::Bird, Daemon::Cairn];

const USAGE: &str = "usage: cairn-bench bgp [--quick] [--only CELL]... \
                     [--cell SENDERSxROUTES/PER_SET-to-RECEIVERS]... [--daemon NAME]... [--runs N] \
                     [--cairn PATH] [--newer DIRECTORY] [-o json]";
