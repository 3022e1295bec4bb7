//! What was measured, in one table.

use std::time::Duration;

use serde::Serialize;

use super::daemon::Daemon;
use crate::Extent;
use crate::table::{Format, figure, median, print_aligned, sorted};

/// One run of one daemon.
#[derive(Debug)]
pub struct Measured {
    p50: Duration,
    p99: Duration,
    worst: Duration,
    cpu_each: Duration,
}

impl Measured {
    /// From the latency of every route, and what all of them cost.
    pub fn new(mut latencies: Vec<Duration>, cpu: Duration) -> Measured {
        latencies.sort_unstable();
        let at = |part: usize| {
            let index = (latencies.len() * part / 100).min(latencies.len().saturating_sub(1));
            latencies.get(index).copied().unwrap_or_default()
        };
        let count = u32::try_from(latencies.len()).unwrap_or(u32::MAX).max(1);
        Measured { p50: at(50), p99: at(99), worst: at(100), cpu_each: cpu / count }
    }
}

/// All that was measured.
#[derive(Debug, Serialize)]
pub struct Report {
    quick: bool,
    rows: Vec<Row>,
}

/// The medians of a daemon's runs.
#[derive(Debug, Default, Serialize)]
struct Row {
    daemon: &'static str,
    runs: usize,
    p50_milliseconds: f64,
    p99_milliseconds: f64,
    worst_milliseconds: f64,
    cpu_micros_each: f64,
    #[serde(skip)]
    measured: Vec<Measured>,
}

impl Report {
    /// An empty one.
    pub fn new(extent: Extent) -> Report {
        let row = |daemon: &Daemon| Row { daemon: daemon.name(), ..Row::default() };
        Report { quick: extent == Extent::Quick, rows: Daemon::ALL.iter().map(row).collect() }
    }

    /// Takes a run.
    pub fn push(&mut self, daemon: Daemon, measured: Measured) {
        let Some(row) = self.rows.iter_mut().find(|row| row.daemon == daemon.name()) else {
            return;
        };
        row.measured.push(measured);
        let of = |pick: fn(&Measured) -> Duration, scale: f64| {
            median(&sorted(row.measured.iter().map(|run| pick(run).as_secs_f64() * scale)))
        };
        row.runs = row.measured.len();
        (row.p50_milliseconds, row.p99_milliseconds) = (of(|m| m.p50, 1e3), of(|m| m.p99, 1e3));
        (row.worst_milliseconds, row.cpu_micros_each) =
            (of(|m| m.worst, 1e3), of(|m| m.cpu_each, 1e6));
    }

    /// Writes it to standard output.
    pub fn print(&self, format: Format) {
        if format == Format::Json {
            // Strings and numbers cannot fail to be written.
            println!("{}", serde_json::to_string_pretty(self).unwrap_or_default());
            return;
        }
        if self.quick {
            println!("A quick run: these figures say only that everything works.");
        }
        let heading =
            ["UPDATE to kernel", "runs", "p50 ms", "p99 ms", "worst ms", "CPU us a route"];
        let mut lines = vec![heading.map(String::from)];
        lines.extend(self.rows.iter().map(|row| {
            [
                row.daemon.to_owned(),
                row.runs.to_string(),
                figure(row.p50_milliseconds),
                figure(row.p99_milliseconds),
                figure(row.worst_milliseconds),
                figure(row.cpu_micros_each),
            ]
        }));
        print_aligned(&lines, &[0]);
    }
}
