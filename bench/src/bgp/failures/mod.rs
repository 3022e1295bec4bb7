//! `cairn-bench failures`: what dead paths and an overloaded machine do to sessions, with the real programs.
//!
//! ```text
//!        the router's namespace                         the peers' namespace
//!   ┌──────────────────────────────┐       ┌──────────────────────────────────────────────┐
//!   │ cairn speaker ◄─────── BGP ──┼───────┼── this process: 100 supervised peers,        │
//!   │   ▲ Down                     │ veth  │   the one with the table, the observer       │
//!   │ cairn bfd ◄─────────── BFD ──┼───────┼── cairn bfd, the other end of 100 sessions   │
//!   └──────────────────────────────┘       └──────────────────────────────────────────────┘
//! ```
//!
//! **Dead paths**: each supervised peer has an address of its own and announces three prefixes; another one announces
//! the table, and everything is passed on to everybody. One supervised peer after the other loses its address: from
//! then on neither its BFD nor its BGP says anything. Three points are measured, all on the kernel's monotonic clock:
//! the moment before the address is removed (*cut*), the time that `cairn bfd` writes into its report (*Down*; in
//! whole milliseconds, so that what follows it may be shown up to one too long), and the return of the observer's
//! read with the last of the three withdrawals (*withdraw*).
//!
//! **Overload**: two routers, `cairn speaker` and `cairn bfd` each, between them BGP with a hold time of 3 s and BFD of
//! 50 ms, three times. A peer of the first announces and withdraws the moving routes without pause, which the first
//! passes to the second; beside all that one busy loop a core runs at normal priority. Counted are the ends of
//! sessions, at both ends of each, and in the end the second router must have every route. Measured are the times between
//! KEEPALIVEs, and between messages of any sort, as the feeding peer reads them, and between BFD packets, as the kernel of the second router gets them; how
//! long a peer that comes and goes meanwhile waits for the first route of each session; and the speakers' memory before
//! the first route, with all, and a minute after the withdrawal of all.
//!
//! This process has its share in all of it, on the same cores.

mod bed;
mod dead_paths;
mod overload;
mod witness;

use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::Duration;

use serde_json::json;

use crate::table::{Format, figure, print_aligned};
use crate::{Extent, Result};
use dead_paths::Times;
use overload::{Memory, Outcome};

#[derive(Debug)]
struct Options {
    extent: Extent,
    only: Option<Part>,
    size: Size,
    cairn: PathBuf,
    format: Format,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Part {
    DeadPaths,
    Overload,
}

/// How much is done.
#[derive(Clone, Debug)]
pub struct Size {
    /// Peers with BFD, each of which is cut once a round.
    pub supervised: u32,
    /// Routes elsewhere.
    pub routes: u32,
    /// Rounds of cuts.
    pub rounds: usize,
    /// Routes that move under overload.
    pub moving: u32,
    /// How long the overload lasts.
    pub overload: Duration,
}

/// Runs `cairn-bench failures` with the arguments behind it.
pub fn main(arguments: impl Iterator<Item = String>) -> ExitCode {
    crate::command(Options::parse(arguments), USAGE, measure)
}

fn measure(options: &Options) -> Result<()> {
    if !rustix::process::geteuid().is_root() {
        return Err("this makes network namespaces: run it as root".into());
    }
    let wants = |part| options.only.is_none_or(|only| only == part);
    let (mut times, mut outcome) = (None, None);
    if wants(Part::DeadPaths) {
        eprintln!("dead paths ...");
        times = Some(on_own_thread(options, dead_paths::measure)?);
    }
    if wants(Part::Overload) {
        eprintln!("overload ...");
        outcome = Some(on_own_thread(options, overload::measure)?);
    }
    match options.format {
        Format::Json => print_json(options, times.as_ref(), outcome.as_ref()),
        Format::Table => print_tables(options, times.as_ref(), outcome.as_ref()),
    }
    match outcome {
        Some(outcome) if outcome.session_ends + outcome.bfd_downs > 0 => {
            Err("sessions have ended under overload".into())
        }
        _ => Ok(()),
    }
}

/// The namespace of a thread goes with it.
fn on_own_thread<T: Send + 'static>(
    options: &Options,
    measure: fn(&Path, &Size) -> Result<T>,
) -> Result<T> {
    let (cairn, size) = (options.cairn.clone(), options.size.clone());
    let measuring =
        std::thread::spawn(move || measure(&cairn, &size).map_err(|error| error.to_string()));
    Ok(measuring.join().map_err(|_| "the measuring thread panicked")??)
}

fn print_json(options: &Options, times: Option<&Times>, outcome: Option<&Outcome>) {
    let row = |(name, times): (&str, &[Duration])| {
        let [p50, p99, max] = ranks(times).map(milliseconds);
        json!({
            "name": name, "count": times.len(), "p50_milliseconds": p50,
            "p99_milliseconds": p99, "max_milliseconds": max,
        })
    };
    let dead_paths = times.map(|times| times.rows().map(row).to_vec());
    let overload = outcome.map(|outcome| {
        json!({
            "busy_loops": outcome.busy_loops, "seconds": outcome.lasted.as_secs_f64(),
            "routes": options.size.moving, "moved": outcome.moved,
            "speakers_cpu_seconds": outcome.speakers_cpu.as_secs_f64(),
            "session_ends": outcome.session_ends, "bfd_downs": outcome.bfd_downs,
            "intervals": outcome.rows().map(row),
            "megabytes": outcome.memory.map(|memory| {
                let [before, full, after] = memory.megabytes();
                json!({ "before": before, "full": full, "after": after })
            }),
        })
    });
    let quick = options.extent == Extent::Quick;
    println!("{:#}", json!({ "quick": quick, "dead_paths": dead_paths, "overload": overload }));
}

fn print_tables(options: &Options, times: Option<&Times>, outcome: Option<&Outcome>) {
    if options.extent == Extent::Quick {
        println!("A quick run: these figures say only that everything works.");
    }
    if let Some(times) = times {
        let Size { supervised, routes, .. } = options.size;
        println!(
            "{supervised} paths with BFD of {BFD_MULTIPLIER} x {BFD_INTERVAL_MS} ms, {routes} routes elsewhere"
        );
        print_times("dead paths", &times.rows());
    }
    if let Some(outcome) = outcome {
        println!(
            "overload: {} busy loops for {:.0} s, {} routes, {} moved, CPU of the speakers {:.1} s: \
             {} session ends, {} BFD Downs",
            outcome.busy_loops,
            outcome.lasted.as_secs_f64(),
            options.size.moving,
            outcome.moved,
            outcome.speakers_cpu.as_secs_f64(),
            outcome.session_ends,
            outcome.bfd_downs,
        );
        print_times("overload", &outcome.rows());
        for (speaker, memory) in ["first", "second"].into_iter().zip(outcome.memory) {
            let [before, full, after] = memory.megabytes().map(figure);
            println!(
                "the {speaker} speaker's memory: {before} MB before, {full} MB with all routes, \
                 {after} MB a minute after they were withdrawn"
            );
        }
    }
}

fn print_times(what: &str, rows: &[(&str, &[Duration])]) {
    let mut lines = vec![[what, "count", "p50 ms", "p99 ms", "max ms"].map(String::from)];
    lines.extend(rows.iter().map(|(name, times)| {
        let [p50, p99, max] = ranks(times).map(|time| figure(milliseconds(time)));
        [(*name).into(), times.len().to_string(), p50, p99, max]
    }));
    print_aligned(&lines, &[0]);
}

/// BFD in the specification of a peer.
fn bfd() -> String {
    format!(", bfd: {{intervalMs: {BFD_INTERVAL_MS}, multiplier: {BFD_MULTIPLIER}}}")
}

impl Times {
    fn rows(&self) -> [(&'static str, &[Duration]); 3] {
        [
            ("Down to withdraw", &self.down_to_withdraw),
            ("cut to Down", &self.cut_to_down),
            ("cut to withdraw", &self.cut_to_withdraw),
        ]
    }
}

impl Outcome {
    fn rows(&self) -> [(&'static str, &[Duration]); 4] {
        [
            ("between KEEPALIVEs", &self.keepalive_intervals),
            ("between any two messages", &self.silences),
            ("between BFD packets", &self.bfd_intervals),
            ("first route of a late joiner", &self.first_route),
        ]
    }
}

impl Memory {
    fn megabytes(self) -> [f64; 3] {
        [self.before, self.full, self.after].map(|octets| octets as f64 / 1e6)
    }
}

/// The times that 50, 99 and 100 of a hundred do not exceed.
fn ranks(times: &[Duration]) -> [Duration; 3] {
    let mut sorted = times.to_vec();
    sorted.sort_unstable();
    [50, 99, 100].map(|percent| {
        let place = (sorted.len() * percent).div_ceil(100).saturating_sub(1);
        sorted.get(place).copied().unwrap_or_default()
    })
}

fn milliseconds(time: Duration) -> f64 {
    time.as_secs_f64() * 1e3
}

impl Options {
    /// `None` when help is asked for.
    fn parse(
        mut arguments: impl Iterator<Item = String>,
    ) -> std::result::Result<Option<Options>, String> {
        let own = std::env::current_exe().unwrap_or_default();
        let mut options = Options {
            extent: Extent::Full,
            only: None,
            size: Size::of(Extent::Full),
            cairn: own.with_file_name("cairn"),
            format: Format::Table,
        };
        let number = |text: String, option: &str| {
            let number = text.parse::<u32>().ok().filter(|number| (1..=1000).contains(number));
            number.ok_or(format!("{option} takes a number from 1 to 1000"))
        };
        while let Some(argument) = arguments.next() {
            let mut value = || arguments.next().ok_or(format!("{argument} takes a value"));
            match argument.as_str() {
                "--quick" => {
                    (options.extent, options.size) = (Extent::Quick, Size::of(Extent::Quick));
                }
                "--only" => {
                    options.only = Some(match value()?.as_str() {
                        "dead-paths" => Part::DeadPaths,
                        "overload" => Part::Overload,
                        _ => return Err("--only takes dead-paths or overload".into()),
                    });
                }
                "--rounds" => options.size.rounds = number(value()?, "--rounds")? as usize,
                "--seconds" => {
                    let seconds = number(value()?, "--seconds")?;
                    options.size.overload = Duration::from_secs(seconds.into());
                }
                // The router's side starts it from another directory.
                "--cairn" => options.cairn = std::path::absolute(value()?).unwrap_or_default(),
                "-o" | "--output" => options.format = Format::named(Some(&value()?))?,
                "-h" | "--help" => return Ok(None),
                other => return Err(format!("what is \"{other}\"?")),
            }
        }
        Ok(Some(options))
    }
}

impl Size {
    fn of(extent: Extent) -> Size {
        Size {
            supervised: extent.pick(100, 3),
            routes: extent.pick(100_000, 1_000),
            rounds: extent.pick(5, 1),
            moving: extent.pick(1_000_000, 10_000),
            overload: Duration::from_secs(extent.pick(60, 2)),
        }
    }
}

/// The shortest interval that a session may have.
const BFD_INTERVAL_MS: u32 = 50;
const BFD_MULTIPLIER: u8 = 3;
const USAGE: &str = "usage: cairn-bench failures [--quick] [--only dead-paths|overload] [--rounds N] [--seconds N] \
                     [--cairn PATH] [-o json]";
