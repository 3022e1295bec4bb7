//! The table of the daemons side by side.

use std::time::Duration;

use serde::Serialize;

use super::cell::Cell;
use super::daemon::Daemon;
use super::{CutOff, Phase, idle};
use crate::Extent;
use crate::table::{Format, figure, median, print_aligned, sorted};

/// One run of one daemon.
#[derive(Debug)]
pub struct Measured {
    /// Everything announced.
    pub announce: std::result::Result<Phase, CutOff>,
    /// Everything withdrawn.
    pub withdraw: std::result::Result<Phase, CutOff>,
    /// Resident octets with all sessions up.
    pub idle: u64,
    /// Resident octets with everything announced.
    pub full: u64,
    /// The most until then.
    pub peak: u64,
    /// Resident octets with everything withdrawn.
    pub after: u64,
}

/// All runs.
#[derive(Debug)]
pub struct Report {
    extent: Extent,
    versions: Vec<(Daemon, String)>,
    runs: Vec<(&'static str, Daemon, usize, Measured)>,
    cells: Vec<(Cell, Vec<Daemon>)>,
    idle: Vec<(Daemon, idle::Figures)>,
    unmeasured: Vec<Unmeasured>,
}

/// A daemon without figures, in one cell or in all.
#[derive(Debug, Serialize)]
struct Unmeasured {
    daemon: &'static str,
    cell: Option<&'static str>,
    reason: String,
}

/// One daemon in one cell: medians.
#[derive(Debug, Serialize)]
struct Row {
    cell: &'static str,
    daemon: &'static str,
    runs: usize,
    /// It took longer than it was given: the seconds are what it was given, and the rest is unknown.
    cut_off: bool,
    /// The same of the withdrawal.
    withdraw_cut_off: bool,
    seconds: f64,
    seconds_min: f64,
    seconds_max: f64,
    cpu_seconds: f64,
    megabytes: f64,
    megabytes_peak: f64,
    megabytes_idle: f64,
    megabytes_after_withdrawal: f64,
    withdraw_seconds: f64,
    withdraw_cpu_seconds: f64,
    generator_cpu_seconds: f64,
    /// Divided by BIRD's of the same run: the medians of these. Absent without BIRD.
    seconds_ratio: Option<f64>,
    cpu_ratio: Option<f64>,
    megabytes_ratio: Option<f64>,
    withdraw_ratio: Option<f64>,
    /// Divided by the copier's seconds of the same run.
    copier_ratio: Option<f64>,
    /// Divided by the seconds of the fastest of the other routers in the same run.
    fastest_ratio: Option<f64>,
}

/// How ours stands in one cell; see [`GOALS`].
#[derive(Debug, Serialize)]
struct Verdict {
    cell: &'static str,
    /// Whose median is the smallest of the other routers'; nobody's when those that may have been faster were cut off.
    fastest: Option<&'static str>,
    seconds_ratio: Option<f64>,
    cpu_ratio: Option<f64>,
    megabytes_ratio: Option<f64>,
}

#[derive(Serialize)]
struct Document<'a> {
    quick: bool,
    versions: Vec<(&'static str, &'a str)>,
    unmeasured: &'a [Unmeasured],
    rows: Vec<Row>,
    verdicts: Vec<Verdict>,
    idle: Vec<idle::Row>,
}

impl Report {
    /// No run yet.
    pub fn new(extent: Extent) -> Report {
        Report {
            extent,
            versions: Vec::new(),
            runs: Vec::new(),
            cells: Vec::new(),
            idle: Vec::new(),
            unmeasured: Vec::new(),
        }
    }

    /// Notes which build of a daemon is measured.
    pub fn version(&mut self, daemon: Daemon, version: String) {
        self.versions.push((daemon, version));
    }

    /// Notes why a daemon has no figures, or no more, in one cell or in any.
    pub fn unmeasured(&mut self, daemon: Daemon, cell: Option<&'static str>, reason: String) {
        self.unmeasured.push(Unmeasured { daemon: daemon.name(), cell, reason });
    }

    /// Adds a run of sessions without routes.
    pub fn push_idle(&mut self, daemon: Daemon, figures: idle::Figures) {
        self.idle.push((daemon, figures));
    }

    /// Adds a run.
    pub fn push(&mut self, cell: &Cell, daemon: Daemon, run: usize, measured: Measured) {
        if self.cells.last().is_none_or(|(last, _)| last.name != cell.name) {
            self.cells.push((*cell, Vec::new()));
        }
        if let Some((_, daemons)) = self.cells.last_mut()
            && !daemons.contains(&daemon)
        {
            daemons.push(daemon);
        }
        self.runs.push((cell.name, daemon, run, measured));
    }

    /// Writes all rows to standard output.
    pub fn print(&self, format: Format) {
        let rows: Vec<Row> = self
            .cells
            .iter()
            .flat_map(|(cell, daemons)| daemons.iter().map(|daemon| self.row(cell, *daemon)))
            .collect();
        let verdicts = verdicts(&rows);
        let idle = idle::rows(&self.idle);
        let quick = self.extent == Extent::Quick;
        match format {
            Format::Json => {
                let versions = self.versions.iter();
                let versions = versions.map(|(daemon, v)| (daemon.name(), v.as_str())).collect();
                let unmeasured = &self.unmeasured;
                let document = Document { quick, versions, unmeasured, rows, verdicts, idle };
                // Strings and numbers cannot fail to be written; what is not finite becomes null.
                println!("{}", serde_json::to_string_pretty(&document).unwrap_or_default());
            }
            Format::Table => {
                if quick {
                    println!("A quick run: these figures say only that everything works.");
                }
                for (daemon, version) in &self.versions {
                    println!("{}: {version}", daemon.name());
                }
                for Unmeasured { daemon, cell, reason } in &self.unmeasured {
                    let reason = reason.lines().next().unwrap_or_default();
                    println!("{daemon}: not measured in {}: {reason}", cell.unwrap_or("any cell"));
                }
                if !rows.is_empty() {
                    print_table(&rows);
                }
                if !idle.is_empty() {
                    println!();
                    idle::print(&idle);
                }
                if !verdicts.is_empty() {
                    println!("\n{GOALS}");
                    print_verdicts(&verdicts);
                }
            }
        }
    }

    fn runs(&self, cell: &Cell, daemon: Daemon) -> impl Iterator<Item = (usize, &Measured)> {
        let name = cell.name;
        let these = self.runs.iter().filter(move |(c, d, ..)| *c == name && *d == daemon);
        these.map(|(_, _, run, measured)| (*run, measured))
    }

    fn row(&self, cell: &Cell, daemon: Daemon) -> Row {
        let all = |of: fn(&Measured) -> f64| sorted(self.runs(cell, daemon).map(|(_, m)| of(m)));
        // In a quick run a daemon may need no page and a clock may not tick: then there is no ratio.
        let ratio = |to: Daemon, of: fn(&Measured) -> f64| {
            let pairs = self.runs(cell, daemon).filter_map(|(run, measured)| {
                let (_, other) = self.runs(cell, to).find(|(other, _)| *other == run)?;
                Some(of(measured) / of(other)).filter(|ratio| ratio.is_finite())
            });
            let ratios = sorted(pairs);
            (!ratios.is_empty()).then(|| median(&ratios))
        };
        // One that was cut off would have taken longer still, then and in later runs, so that the ratio is at most what is
        // shown.
        let peers = Daemon::ALL.into_iter().filter(|other| other.is_peer() && *other != daemon);
        let peers: Vec<Daemon> = peers.collect();
        let to_fastest = self.runs(cell, daemon).filter_map(|(run, measured)| {
            let times = peers.iter().flat_map(|other| self.runs(cell, *other));
            let times = times.filter(|(other, m)| *other == run || m.announce.is_err());
            let fastest = times.map(|(_, m)| seconds_of_announcement(m)).min_by(f64::total_cmp);
            Some(seconds_of_announcement(measured) / fastest?)
        });
        let to_fastest = sorted(to_fastest.filter(|ratio| ratio.is_finite()));
        let seconds = all(|m| seconds(&m.announce));
        Row {
            cell: cell.name,
            daemon: daemon.name(),
            runs: seconds.len(),
            cut_off: self.runs(cell, daemon).any(|(_, m)| m.announce.is_err()),
            withdraw_cut_off: self
                .runs(cell, daemon)
                .any(|(_, m)| m.announce.is_ok() && m.withdraw.is_err()),
            seconds: median(&seconds),
            seconds_min: seconds.first().copied().unwrap_or(f64::NAN),
            seconds_max: seconds.last().copied().unwrap_or(f64::NAN),
            cpu_seconds: median(&all(|m| cpu(&m.announce))),
            megabytes: median(&all(growth)),
            megabytes_peak: median(&all(|m| growth_to(m, m.peak))),
            megabytes_idle: median(&all(|m| megabytes(m.idle))),
            megabytes_after_withdrawal: median(&all(|m| growth_to(m, m.after))),
            withdraw_seconds: median(&all(seconds_of_withdrawal)),
            withdraw_cpu_seconds: median(&all(|m| cpu(&m.withdraw))),
            generator_cpu_seconds: median(&all(|m| {
                m.announce.map_or(f64::NAN, |phase| phase.own_cpu.as_secs_f64())
            })),
            seconds_ratio: ratio(Daemon::Bird, seconds_of_announcement),
            cpu_ratio: ratio(Daemon::Bird, |m| cpu(&m.announce)),
            megabytes_ratio: ratio(Daemon::Bird, growth),
            withdraw_ratio: ratio(Daemon::Bird, seconds_of_withdrawal),
            copier_ratio: ratio(Daemon::Copier, seconds_of_announcement),
            fastest_ratio: (!to_fastest.is_empty()).then(|| median(&to_fastest)),
        }
    }
}

fn print_table(rows: &[Row]) {
    let mut lines = vec![HEADING.map(String::from)];
    for row in rows {
        let more = |cut_off| if cut_off { ">" } else { "" };
        let times = |ratio: Option<f64>| ratio.map_or("-".into(), |r| format!("{}x", figure(r)));
        lines.push([
            row.cell.into(),
            row.daemon.into(),
            format!("{}{}", more(row.cut_off), figure(row.seconds)),
            format!("{} .. {}", figure(row.seconds_min), figure(row.seconds_max)),
            row.runs.to_string(),
            figure(row.cpu_seconds),
            figure(row.megabytes),
            figure(row.megabytes_peak),
            format!("{}{}", more(row.withdraw_cut_off), figure(row.withdraw_seconds)),
            figure(row.generator_cpu_seconds),
            times(row.seconds_ratio),
            times(row.cpu_ratio),
            times(row.megabytes_ratio),
            times(row.withdraw_ratio),
            times(row.copier_ratio),
            times(row.fastest_ratio),
        ]);
    }
    // The idle base, of the first cell: it does not depend on the routes.
    if let Some(cell) = rows.first().map(|row| row.cell) {
        for row in rows.iter().filter(|row| row.cell == cell) {
            let mut line = HEADING.map(|_| String::new());
            line[0] = "idle base".into();
            line[1] = row.daemon.into();
            line[6] = figure(row.megabytes_idle);
            lines.push(line);
        }
    }
    print_aligned(&lines, &[0, 1]);
}

fn verdicts(rows: &[Row]) -> Vec<Verdict> {
    let ours = rows.iter().filter(|row| row.daemon == Daemon::Cairn.name());
    let verdict = |ours: &Row| {
        let peers = Daemon::ALL.into_iter().filter(|daemon| daemon.is_peer()).map(Daemon::name);
        let peers: Vec<_> = peers.collect();
        let others = rows.iter().filter(|row| row.cell == ours.cell && peers.contains(&row.daemon));
        let fastest = others.min_by(|one, other| one.seconds.total_cmp(&other.seconds));
        Verdict {
            cell: ours.cell,
            fastest: fastest.filter(|row| !row.cut_off).map(|row| row.daemon),
            seconds_ratio: ours.fastest_ratio,
            cpu_ratio: ours.cpu_ratio,
            megabytes_ratio: ours.megabytes_ratio,
        }
    };
    // Without others there is nothing to judge by.
    ours.filter(|row| row.fastest_ratio.is_some()).map(verdict).collect()
}

fn print_verdicts(verdicts: &[Verdict]) {
    let judged = |ratio: Option<f64>, at_most: f64| match ratio {
        Some(ratio) if ratio <= at_most => format!("{}x holds", figure(ratio)),
        Some(ratio) => format!("{}x missed", figure(ratio)),
        None => "-".into(),
    };
    let mut lines = vec![["cell", "fastest peer", "seconds", "CPU", "MB"].map(String::from)];
    lines.extend(verdicts.iter().map(|verdict| {
        [
            verdict.cell.into(),
            verdict.fastest.unwrap_or("cut off").into(),
            judged(verdict.seconds_ratio, SECONDS_RATIO_MAX),
            judged(verdict.cpu_ratio, 1.0),
            judged(verdict.megabytes_ratio, 1.0),
        ]
    }));
    print_aligned(&lines, &[0, 1]);
}

fn seconds(phase: &std::result::Result<Phase, CutOff>) -> f64 {
    match phase {
        Ok(phase) => phase.time.as_secs_f64(),
        Err(CutOff(given)) => given.as_secs_f64(),
    }
}

fn seconds_of_announcement(measured: &Measured) -> f64 {
    seconds(&measured.announce)
}

fn seconds_of_withdrawal(measured: &Measured) -> f64 {
    measured.announce.map_or(f64::NAN, |_| seconds(&measured.withdraw))
}

fn cpu(phase: &std::result::Result<Phase, CutOff>) -> f64 {
    phase.map_or(f64::NAN, |phase: Phase| Duration::as_secs_f64(&phase.daemon_cpu))
}

fn growth(measured: &Measured) -> f64 {
    growth_to(measured, measured.full)
}

fn growth_to(measured: &Measured, octets: u64) -> f64 {
    measured.announce.map_or(f64::NAN, |_| megabytes(octets) - megabytes(measured.idle))
}

fn megabytes(octets: u64) -> f64 {
    octets as f64 / 1e6
}

/// Of ours to the fastest peer's.
const SECONDS_RATIO_MAX: f64 = 1.0 / 3.0;
const GOALS: &str = "Goals: at most a third of the fastest peer's seconds, no more CPU time and memory \
                     than BIRD 2";
const HEADING: [&str; 16] = [
    "cell",
    "daemon",
    "seconds",
    "min .. max",
    "runs",
    "CPU s",
    "MB",
    "peak MB",
    "withdraw s",
    "load CPU s",
    "s/bird",
    "CPU/bird",
    "MB/bird",
    "wd/bird",
    "s/copier",
    "s/fastest",
];
