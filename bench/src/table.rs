//! Rows of figures and how they are shown.

use serde::Serialize;

use crate::Extent;

/// One measurement beside its reference.
#[derive(Debug)]
pub struct Row {
    group: &'static str,
    name: String,
    unit: &'static str,
    reference: &'static str,
    /// Ours and the reference's, one pair a run.
    runs: Vec<(f64, f64)>,
}

/// How the rows are written.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Format {
    /// For people.
    Table,
    /// For programs.
    Json,
}

impl Format {
    /// By the name that `-o` is given.
    pub fn named(name: Option<&str>) -> Result<Format, String> {
        match name {
            Some("json") => Ok(Format::Json),
            Some("table") => Ok(Format::Table),
            _ => Err("-o takes \"json\" or \"table\"".into()),
        }
    }
}

#[derive(Serialize)]
struct Report {
    quick: bool,
    rows: Vec<Summary>,
}

#[derive(Serialize)]
struct Summary {
    group: &'static str,
    name: String,
    unit: &'static str,
    runs: usize,
    median: f64,
    min: f64,
    max: f64,
    reference: &'static str,
    reference_median: f64,
    /// Ours divided by the reference: the median of the runs' ratios.
    ratio: f64,
}

impl Row {
    /// A row without a run.
    pub fn new(
        group: &'static str,
        name: impl Into<String>,
        unit: &'static str,
        reference: &'static str,
    ) -> Row {
        Row { group, name: name.into(), unit, reference, runs: Vec::new() }
    }

    /// Adds a run's figures in the row's unit.
    pub fn push(&mut self, ours: f64, reference: f64) {
        self.runs.push((ours, reference));
    }

    /// What is measured.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// In which unit.
    pub fn unit(&self) -> &str {
        self.unit
    }

    /// The median of our runs.
    pub fn median(&self) -> f64 {
        median(&sorted(self.runs.iter().map(|(ours, _)| *ours)))
    }

    fn summary(&self) -> Summary {
        let ours = sorted(self.runs.iter().map(|(ours, _)| *ours));
        Summary {
            group: self.group,
            name: self.name.clone(),
            unit: self.unit,
            runs: self.runs.len(),
            median: median(&ours),
            min: ours.first().copied().unwrap_or(f64::NAN),
            max: ours.last().copied().unwrap_or(f64::NAN),
            reference: self.reference,
            reference_median: median(&sorted(self.runs.iter().map(|(_, reference)| *reference))),
            ratio: median(&sorted(self.runs.iter().map(|(ours, reference)| ours / reference))),
        }
    }
}

/// Writes all rows to standard output.
pub fn print(rows: &[Row], extent: Extent, format: Format) {
    let quick = extent == Extent::Quick;
    let rows: Vec<Summary> = rows.iter().map(Row::summary).collect();
    match format {
        Format::Json => {
            let report = Report { quick, rows };
            // Strings and numbers cannot fail to be written; what is not finite becomes null.
            println!("{}", serde_json::to_string_pretty(&report).unwrap_or_default());
        }
        Format::Table => print_table(&rows, quick),
    }
}

fn print_table(rows: &[Summary], quick: bool) {
    if quick {
        println!("A quick run: these figures say only that everything works.");
    }
    let heading = ["", "median", "unit", "min .. max", "runs", "reference", "its median", "ratio"];
    let mut lines = vec![heading.map(String::from)];
    lines.extend(rows.iter().map(|row| {
        [
            format!("{}: {}", row.group, row.name),
            figure(row.median),
            row.unit.into(),
            format!("{} .. {}", figure(row.min), figure(row.max)),
            row.runs.to_string(),
            row.reference.into(),
            figure(row.reference_median),
            format!("{}x", figure(row.ratio)),
        ]
    }));
    print_aligned(&lines, &LEFT_ALIGNED);
}

/// Writes lines of cells, columns below each other, those of `left_aligned` flush left.
pub fn print_aligned<const N: usize>(lines: &[[String; N]], left_aligned: &[usize]) {
    let mut widths = [0; N];
    for line in lines {
        for (width, cell) in widths.iter_mut().zip(line) {
            *width = cell.chars().count().max(*width);
        }
    }
    for line in lines {
        let cells = line.iter().zip(widths).enumerate().map(|(column, (cell, width))| {
            match left_aligned.contains(&column) {
                true => format!("{cell:<width$}"),
                false => format!("{cell:>width$}"),
            }
        });
        println!("{}", cells.collect::<Vec<_>>().join("  ").trim_end());
    }
}

/// About three digits; a dash for what is unknown.
pub fn figure(value: f64) -> String {
    match value {
        value if value.is_nan() => "-".into(),
        value if value >= 100.0 => format!("{value:.0}"),
        value if value >= 10.0 => format!("{value:.1}"),
        value if value >= 0.1 => format!("{value:.2}"),
        value => format!("{value:.4}"),
    }
}

/// Values in ascending order.
pub fn sorted(values: impl Iterator<Item = f64>) -> Vec<f64> {
    let mut values: Vec<f64> = values.collect();
    values.sort_unstable_by(f64::total_cmp);
    values
}

/// The middle of sorted values, or the mean of the two middle ones; not a number for none.
pub fn median(sorted: &[f64]) -> f64 {
    let half = sorted.len() / 2;
    match (sorted.get(half), half.checked_sub(1).and_then(|below| sorted.get(below))) {
        (Some(upper), Some(lower)) if sorted.len().is_multiple_of(2) => (upper + lower) / 2.0,
        (Some(middle), _) => *middle,
        (None, _) => f64::NAN,
    }
}

/// Columns of text: the name, the unit and the reference.
const LEFT_ALIGNED: [usize; 3] = [0, 2, 5];

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_ratio_is_that_of_runs_side_by_side() {
        let mut row = Row::new("group", "name", "ns", "reference");
        for (ours, reference) in [(30.0, 10.0), (2.0, 1.0), (500.0, 100.0)] {
            row.push(ours, reference);
        }
        let summary = row.summary();
        assert_eq!((summary.min, summary.median, summary.max), (2.0, 30.0, 500.0));
        assert_eq!((summary.reference_median, summary.ratio), (10.0, 3.0));
        assert_eq!(median(&[1.0, 2.0, 4.0, 9.0]), 3.0);
        assert_eq!(median(&[7.0]), 7.0);
        assert!(median(&[]).is_nan());
    }
}
