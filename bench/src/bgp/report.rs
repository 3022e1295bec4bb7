//! The table of the daemons side by side.

use std::time::Duration;

use serde::Serialize;

use super::cell::Cell;
use super::daemon::Daemon;
use super::{CutOff, Phase};
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
}

/// One daemon in one cell: medians.
#[derive(Debug, Serialize)]
struct Row {
    cell: &'static str,
    daemon: &'static str,
    runs: usize,
    /// It took longer than it was given: the seconds are what it was given.
    cut_off: bool,
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
}

#[derive(Serialize)]
struct Document<'a> {
    quick: bool,
    versions: Vec<(&'static str, &'a str)>,
    rows: Vec<Row>,
}

impl Report {
    /// No run yet.
    pub fn new(extent: Extent) -> Report {
        Report { extent, versions: Vec::new(), runs: Vec::new(), cells: Vec::new() }
    }

    /// Notes which build of a daemon is measured.
    pub fn version(&mut self, daemon: Daemon, version: String) {
        self.versions.push((daemon, version));
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
        let quick = self.extent == Extent::Quick;
        match format {
            Format::Json => {
                let versions = self.versions.iter();
                let versions = versions.map(|(daemon, v)| (daemon.name(), v.as_str())).collect();
                let document = Document { quick, versions, rows };
                // Strings and numbers cannot fail to be written; what is not finite becomes null.
                println!("{}", serde_json::to_string_pretty(&document).unwrap_or_default());
            }
            Format::Table => {
                if quick {
                    println!("A quick run: these figures say only that everything works.");
                }
                for (daemon, version) in &self.versions {
                    println!("{}: {}", daemon.name(), version.lines().next().unwrap_or_default());
                }
                self.print_table(&rows);
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
        let seconds = all(|m| seconds(&m.announce));
        Row {
            cell: cell.name,
            daemon: daemon.name(),
            runs: seconds.len(),
            cut_off: self
                .runs(cell, daemon)
                .any(|(_, m)| m.announce.is_err() || m.withdraw.is_err()),
            seconds: median(&seconds),
            seconds_min: seconds.first().copied().unwrap_or(f64::NAN),
            seconds_max: seconds.last().copied().unwrap_or(f64::NAN),
            cpu_seconds: median(&all(|m| cpu(&m.announce))),
            megabytes: median(&all(growth)),
            megabytes_peak: median(&all(|m| megabytes(m.peak) - megabytes(m.idle))),
            megabytes_idle: median(&all(|m| megabytes(m.idle))),
            megabytes_after_withdrawal: median(&all(|m| megabytes(m.after) - megabytes(m.idle))),
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
        }
    }

    fn print_table(&self, rows: &[Row]) {
        let mut lines = vec![HEADING.map(String::from)];
        for row in rows {
            let more = if row.cut_off { ">" } else { "" };
            let times =
                |ratio: Option<f64>| ratio.map_or("-".into(), |r| format!("{}x", figure(r)));
            lines.push([
                row.cell.into(),
                row.daemon.into(),
                format!("{more}{}", figure(row.seconds)),
                format!("{} .. {}", figure(row.seconds_min), figure(row.seconds_max)),
                row.runs.to_string(),
                figure(row.cpu_seconds),
                figure(row.megabytes),
                figure(row.megabytes_peak),
                figure(row.withdraw_seconds),
                figure(row.generator_cpu_seconds),
                times(row.seconds_ratio),
                times(row.cpu_ratio),
                times(row.megabytes_ratio),
                times(row.withdraw_ratio),
                times(row.copier_ratio),
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
    seconds(&measured.withdraw)
}

fn cpu(phase: &std::result::Result<Phase, CutOff>) -> f64 {
    phase.map_or(f64::NAN, |phase: Phase| Duration::as_secs_f64(&phase.daemon_cpu))
}

fn growth(measured: &Measured) -> f64 {
    megabytes(measured.full) - megabytes(measured.idle)
}

fn megabytes(octets: u64) -> f64 {
    octets as f64 / 1e6
}

const HEADING: [&str; 15] = [
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
];
