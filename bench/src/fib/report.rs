//! What was measured, in one table.

use cairn_kernel::route::Family;
use serde::Serialize;

use super::Writer;
use super::bed::{Sample, Samples};
use super::cell::Cell;
use super::repoint::Repoint;
use crate::table::{Format, figure, median, print_aligned, sorted};
use crate::{Extent, Result};

/// All that was measured.
#[derive(Debug, Serialize)]
pub struct Report {
    quick: bool,
    rows: Vec<Row>,
    memory: Vec<Memory>,
    repoint: Vec<Moved>,
}

#[derive(Debug, Serialize)]
struct Row {
    cell: String,
    operation: &'static str,
    writer: &'static str,
    routes: u32,
    runs: usize,
    /// Medians.
    cpu_nanos_each: f64,
    wall_seconds: f64,
    /// CPU time divided by the bare loop's of the same run: the median of these.
    ratio: f64,
}

#[derive(Debug, Serialize)]
struct Memory {
    cell: String,
    octets_each: f64,
}

#[derive(Debug, Serialize)]
struct Moved {
    name: String,
    routes: u32,
    peer_milliseconds: f64,
    peer_micros_each: f64,
    object_milliseconds: f64,
}

impl Report {
    /// An empty one.
    pub fn new(extent: Extent) -> Report {
        let quick = extent == Extent::Quick;
        Report { quick, rows: Vec::new(), memory: Vec::new(), repoint: Vec::new() }
    }

    /// Takes the runs of a cell: in each the writers' samples.
    pub fn push(&mut self, cell: Cell, runs: &[Vec<(Writer, Samples)>]) {
        for (operation, pick) in OPERATIONS {
            for writer in Writer::ALL {
                let of = |run: &[(Writer, Samples)], writer| {
                    let found = run.iter().find(|(by, _)| *by == writer);
                    found.and_then(|(_, samples)| pick(samples))
                };
                let pairs: Vec<(Sample, Option<Sample>)> = runs
                    .iter()
                    .filter_map(|run| Some((of(run, writer)?, of(run, Writer::Bare))))
                    .collect();
                if pairs.is_empty() {
                    continue;
                }
                let middle = |figures: Vec<f64>| median(&sorted(figures.into_iter()));
                let seconds = |sample: &Sample| sample.cpu.as_secs_f64();
                let ratio = pairs
                    .iter()
                    .filter_map(|(own, bare)| Some(seconds(own) / seconds(bare.as_ref()?)));
                let ratio = middle(ratio.collect());
                let cpu = middle(pairs.iter().map(|(own, _)| seconds(own)).collect());
                self.rows.push(Row {
                    cell: cell.name(),
                    operation,
                    writer: writer.name(),
                    routes: cell.routes,
                    runs: pairs.len(),
                    cpu_nanos_each: cpu * 1e9 / f64::from(cell.routes),
                    wall_seconds: middle(
                        pairs.iter().map(|(own, _)| own.wall.as_secs_f64()).collect(),
                    ),
                    ratio,
                });
            }
        }
    }

    /// Takes what the reconciler holds for each route of a cell.
    pub fn push_memory(&mut self, cell: Cell, octets_each: f64) {
        self.memory.push(Memory { cell: cell.name(), octets_each });
    }

    /// Takes how a peer was moved.
    pub fn push_repoint(&mut self, moved: Repoint) {
        let family = match moved.family {
            Family::V4 => "IPv4",
            Family::V6 => "IPv6",
        };
        self.repoint.push(Moved {
            name: format!("{family}, nexthop_compat_mode={}", moved.compat),
            routes: moved.routes,
            peer_milliseconds: moved.peer.wall.as_secs_f64() * 1e3,
            peer_micros_each: moved.peer.wall.as_secs_f64() * 1e6 / f64::from(moved.routes),
            object_milliseconds: moved.object.wall.as_secs_f64() * 1e3,
        });
    }

    /// Writes it to standard output.
    ///
    /// # Errors
    /// It cannot be written.
    pub fn print(&self, format: Format) -> Result<()> {
        if format == Format::Json {
            println!("{}", serde_json::to_string_pretty(self)?);
            return Ok(());
        }
        if self.quick {
            println!("A quick run: these figures say only that everything works.");
        }
        self.print_writers();
        if !self.memory.is_empty() {
            println!();
            let mut lines = vec![["octets a route in the reconciler", ""].map(String::from)];
            lines.extend(self.memory.iter().map(|m| [m.cell.clone(), figure(m.octets_each)]));
            print_aligned(&lines, &[0]);
        }
        if !self.repoint.is_empty() {
            println!();
            let heading =
                ["a peer's address changed", "routes", "ms", "us/route", "its object alone, ms"];
            let mut lines = vec![heading.map(String::from)];
            lines.extend(self.repoint.iter().map(|moved| {
                [
                    moved.name.clone(),
                    moved.routes.to_string(),
                    figure(moved.peer_milliseconds),
                    figure(moved.peer_micros_each),
                    figure(moved.object_milliseconds),
                ]
            }));
            print_aligned(&lines, &[0]);
        }
        Ok(())
    }

    /// One line an operation of a cell: what the bare loop takes, how many times that each writer does.
    fn print_writers(&self) {
        let heading =
            ["", "", "bare us/route", "cairn", "rtnetlink", "ip -batch", "bird", "cairn s"];
        let mut lines = vec![heading.map(String::from)];
        let bare = Writer::Bare.name();
        for row in self.rows.iter().filter(|row| row.writer == bare) {
            let by = |writer: Writer| {
                self.rows.iter().find(|other| {
                    (&other.cell, other.operation) == (&row.cell, row.operation)
                        && other.writer == writer.name()
                })
            };
            let ratio =
                |writer| by(writer).map_or("-".into(), |row| format!("{}x", figure(row.ratio)));
            lines.push([
                row.cell.clone(),
                row.operation.into(),
                figure(row.cpu_nanos_each / 1000.0),
                ratio(Writer::Cairn),
                ratio(Writer::Rtnetlink),
                ratio(Writer::Ip),
                ratio(Writer::Bird),
                by(Writer::Cairn).map_or("-".into(), |row| figure(row.wall_seconds)),
            ]);
        }
        print_aligned(&lines, &[0, 1]);
    }
}

type Pick = fn(&Samples) -> Option<Sample>;

const OPERATIONS: [(&str, Pick); 4] = [
    ("install", |samples| samples.install),
    ("resync", |samples| samples.resync),
    ("replace", |samples| samples.replace),
    ("remove", |samples| samples.remove),
];
