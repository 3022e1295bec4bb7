//! What was measured, in one table.

use serde::Serialize;

use super::Samples;
use super::chain::Contender;
use super::plugin::Plugin;
use crate::table::{Format, figure, median, print_aligned, sorted};
use crate::{Extent, Result};

/// All that was measured.
#[derive(Debug)]
pub struct Report {
    quick: bool,
    pods: usize,
    runs: Vec<(Contender, Samples)>,
    /// The program itself.
    pub plugin: Option<Plugin>,
}

#[derive(Serialize)]
struct Document<'a> {
    quick: bool,
    pods: usize,
    contenders: Vec<Row>,
    plugin: Option<&'a Plugin>,
}

/// Milliseconds; medians over the runs of what each run shows.
#[derive(Serialize)]
struct Row {
    name: &'static str,
    runs: usize,
    add_p50: f64,
    add_p99: f64,
    del_p50: f64,
    del_p99: f64,
    cpu: f64,
    together_add_p99: Option<f64>,
    all_added: Option<f64>,
    all_deleted: Option<f64>,
    /// The p50 of the last tenth of the ADDs divided by that of the first.
    late_to_early: f64,
}

impl Report {
    /// An empty one.
    pub fn new(extent: Extent, pods: usize) -> Report {
        Report { quick: extent == Extent::Quick, pods, runs: Vec::new(), plugin: None }
    }

    /// Takes a run of a contender.
    pub fn push(&mut self, contender: Contender, samples: Samples) {
        self.runs.push((contender, samples));
    }

    /// Writes it to standard output.
    ///
    /// # Errors
    /// It cannot be written.
    pub fn print(&self, format: Format) -> Result<()> {
        let rows: Vec<Row> = Contender::ALL.iter().filter_map(|of| self.row(*of)).collect();
        match format {
            Format::Json => {
                let document = Document {
                    quick: self.quick,
                    pods: self.pods,
                    contenders: rows,
                    plugin: self.plugin.as_ref(),
                };
                println!("{}", serde_json::to_string_pretty(&document)?);
            }
            Format::Table => self.print_table(&rows),
        }
        Ok(())
    }

    fn row(&self, contender: Contender) -> Option<Row> {
        let runs: Vec<&Samples> =
            self.runs.iter().filter(|(of, _)| *of == contender).map(|(_, run)| run).collect();
        if runs.is_empty() {
            return None;
        }
        let over =
            |figure: &dyn Fn(&Samples) -> f64| median(&sorted(runs.iter().map(|r| figure(r))));
        let together = |figure: &dyn Fn(&Samples) -> f64| {
            (contender != Contender::Floor).then(|| over(figure))
        };
        Some(Row {
            name: contender.name(),
            runs: runs.len(),
            add_p50: over(&|run| percentile(&run.adds, 50)),
            add_p99: over(&|run| percentile(&run.adds, 99)),
            del_p50: over(&|run| percentile(&run.dels, 50)),
            del_p99: over(&|run| percentile(&run.dels, 99)),
            cpu: over(&|run| run.cpu.as_secs_f64() * 1e3),
            together_add_p99: together(&|run| percentile(&run.together_adds, 99)),
            all_added: together(&|run| run.all_added),
            all_deleted: together(&|run| run.all_deleted),
            late_to_early: over(&|run| late_to_early(&run.adds)),
        })
    }

    fn print_table(&self, rows: &[Row]) {
        if self.quick {
            println!("A quick run: these figures say only that everything works.");
        }
        let pods = self.pods;
        println!("milliseconds; {pods} pods one after the other, then {pods} at once");
        let optional = |value: Option<f64>| value.map_or_else(|| "-".to_owned(), figure);
        let heading = [
            "",
            "ADD p50",
            "p99",
            "DEL p50",
            "p99",
            "CPU a pod",
            "late/early",
            "at once: ADD p99",
            "all added",
            "all deleted",
        ];
        let mut lines = vec![heading.map(String::from)];
        lines.extend(rows.iter().map(|row| {
            [
                row.name.to_owned(),
                figure(row.add_p50),
                figure(row.add_p99),
                figure(row.del_p50),
                figure(row.del_p99),
                figure(row.cpu),
                figure(row.late_to_early),
                optional(row.together_add_p99),
                optional(row.all_added),
                optional(row.all_deleted),
            ]
        }));
        print_aligned(&lines, &[0]);
        let Some(plugin) = &self.plugin else { return };
        println!(
            "the plugin: {} KB on disk, {} KB resident, start to end {} ms",
            plugin.octets / 1000,
            plugin.resident_octets / 1000,
            figure(plugin.start_milliseconds),
        );
        let of = |contender: Contender| rows.iter().find(|row| row.name == contender.name());
        let (Some(floor), Some(ours)) = (of(Contender::Floor), of(Contender::Cairn)) else {
            return;
        };
        let bound = 1.5 * floor.add_p50 + plugin.start_milliseconds;
        println!("goals, as ratios:");
        println!("  ADD to 1.5 floors and a start   {}  (at most 1)", figure(ours.add_p50 / bound));
        println!(
            "  DEL to the bare RTM_DELLINK     {}  (at most 1.2)",
            figure(ours.del_p50 / floor.del_p50)
        );
        for other in [Contender::Ptp, Contender::Bridge].iter().filter_map(|other| of(*other)) {
            let faster = figure(other.add_p50 / ours.add_p50);
            println!("  ADD of {:<18}       {faster}  (bridge: at least 10)", other.name);
        }
    }
}

fn percentile(values: &[f64], percent: usize) -> f64 {
    crate::cluster::percentile(&sorted(values.iter().copied()), percent)
}

fn late_to_early(values: &[f64]) -> f64 {
    let tenth = (values.len() / 10).max(1);
    let middle = |part: Option<&[f64]>| median(&sorted(part.unwrap_or_default().iter().copied()));
    middle(values.get(values.len().saturating_sub(tenth)..)) / middle(values.get(..tenth))
}
