//! The table of what was expected and what was seen, and the lines on the way to it.

use std::fmt::Write as _;
use std::io::{self, IsTerminal, Write as _};
use std::time::{Duration, Instant};

use serde::Serialize;

use crate::options::{LabOptions, Output};

/// One statement about the lab.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Row {
    /// What was looked at.
    pub what: String,
    /// What must be seen.
    pub expected: String,
    /// What was seen.
    pub seen: String,
    /// Whether that is as expected.
    pub ok: bool,
}

impl Row {
    /// A row.
    pub fn new(
        what: impl Into<String>,
        expected: impl Into<String>,
        seen: impl Into<String>,
        ok: bool,
    ) -> Row {
        Row { what: what.into(), expected: expected.into(), seen: seen.into(), ok }
    }
}

/// How long a part of the run took.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Phase {
    /// The part.
    pub name: String,
    /// Its duration in milliseconds.
    pub millis: u64,
}

/// Everything that a run has to say.
pub struct Report {
    started: Instant,
    phase_started: Instant,
    phases: Vec<Phase>,
    rows: Vec<Row>,
    output: Output,
    progress: bool,
    verbose: bool,
}

impl Report {
    /// An empty report. Progress goes to standard error, except where `-o json` is asked for and
    /// nobody sits at a terminal.
    pub fn new(options: &LabOptions) -> Report {
        let now = Instant::now();
        Report {
            started: now,
            phase_started: now,
            phases: Vec::new(),
            rows: Vec::new(),
            output: options.output,
            progress: options.output == Output::Table || io::stderr().is_terminal(),
            verbose: options.verbose,
        }
    }

    /// Says what happens now.
    pub fn say(&self, line: impl AsRef<str>) {
        if self.progress {
            let elapsed = self.started.elapsed().as_secs_f64();
            // Who closed standard error does not want to read it.
            let _ = writeln!(io::stderr(), "{elapsed:7.2}s  {}", line.as_ref());
        }
    }

    /// Says what happens now, to those who want every step.
    pub fn detail(&self, line: impl AsRef<str>) {
        if self.verbose {
            self.say(line);
        }
    }

    /// Adds a row and says it.
    pub fn row(&mut self, row: Row) {
        let mark = if row.ok { "ok  " } else { "FAIL" };
        let expected =
            if row.ok { String::new() } else { format!(" (expected: {})", row.expected) };
        self.say(format!("{mark} {}: {}{expected}", row.what, row.seen));
        self.rows.push(row);
    }

    /// Ends a part of the run.
    pub fn phase(&mut self, name: &str) {
        let took = self.phase_started.elapsed();
        self.phase_started = Instant::now();
        self.say(format!("---- {name}: {}", millis(took)));
        self.phases.push(Phase { name: name.into(), millis: took.as_millis() as u64 });
    }

    /// Whether nothing was looked at yet.
    pub fn is_empty(&self) -> bool {
        self.rows.is_empty()
    }

    /// Whether every row is as expected and there is one.
    pub fn passed(&self) -> bool {
        !self.rows.is_empty() && self.rows.iter().all(|row| row.ok)
    }

    /// Writes the table or the JSON object to standard output.
    ///
    /// # Errors
    /// Those of standard output.
    pub fn print(&self) -> io::Result<()> {
        let text = match self.output {
            Output::Table => self.table(),
            Output::Json => self.json()?,
        };
        io::stdout().write_all(text.as_bytes())
    }

    fn json(&self) -> io::Result<String> {
        #[derive(Serialize)]
        struct Document<'a> {
            passed: bool,
            rows: &'a [Row],
            phases: &'a [Phase],
        }
        let document = Document { passed: self.passed(), rows: &self.rows, phases: &self.phases };
        Ok(serde_json::to_string_pretty(&document)? + "\n")
    }

    fn table(&self) -> String {
        let mut cells: Vec<[&str; 4]> = vec![["WHAT", "EXPECTED", "SEEN", "OK"]];
        cells.extend(self.rows.iter().map(|row| {
            let ok = if row.ok { "yes" } else { "NO" };
            [row.what.as_str(), row.expected.as_str(), row.seen.as_str(), ok]
        }));
        let width = |column: usize| {
            cells.iter().map(|row| row[column].chars().count()).max().unwrap_or_default()
        };
        let widths = [width(0), width(1), width(2)];
        let mut text = String::from("\n");
        for [what, expected, seen, ok] in cells {
            let [w, e, s] = widths;
            // Writing to a string cannot fail.
            let _ = writeln!(text, "{what:w$}   {expected:e$}   {seen:s$}   {ok}");
        }
        let times: Vec<String> = (self.phases.iter())
            .map(|phase| format!("{} {}", phase.name, millis(Duration::from_millis(phase.millis))))
            .collect();
        let good = self.rows.iter().filter(|row| row.ok).count();
        let _ = writeln!(text, "\n{good} of {} rows as expected", self.rows.len());
        let _ = writeln!(text, "times: {}", times.join(", "));
        text
    }
}

/// A duration for people: `123 ms`, `4.5 s`.
pub fn millis(time: Duration) -> String {
    match time.as_millis() {
        0..1000 => format!("{} ms", time.as_millis()),
        _ => format!("{:.1} s", time.as_secs_f64()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::options::{Encap, Families, LabName};

    fn report(output: Output) -> Report {
        Report::new(&LabOptions {
            nodes: 3,
            asn: None,
            encap: Encap::None,
            families: Families::Dual,
            check: false,
            patience: 1,
            rate: 1000,
            output,
            keep: false,
            name: LabName::default(),
            verbose: false,
            cni_plugin: None,
        })
    }

    #[test]
    fn a_run_without_rows_has_not_passed() {
        let mut report = report(Output::Json);
        assert!(!report.passed());
        report.row(Row::new("a", "1", "1", true));
        assert!(report.passed());
        report.row(Row::new("b", "1", "0", false));
        assert!(!report.passed());
    }

    #[test]
    fn columns_line_up() {
        let mut report = report(Output::Table);
        report.row(Row::new("pod to pod", "30/30", "30/30", true));
        report.row(Row::new("x", "nothing lost", "3 lost", false));
        let table = report.table();
        let lines: Vec<&str> = table.lines().skip(1).take(3).collect();
        assert_eq!(lines[0].find("SEEN"), lines[1].rfind("30/30"), "{table}");
        assert_eq!(lines[0].find("SEEN"), lines[2].find("3 lost"), "{table}");
        assert!(table.contains("1 of 2 rows as expected"));
    }

    #[test]
    fn json_is_one_object() -> io::Result<()> {
        let mut report = report(Output::Json);
        report.row(Row::new("a", "1", "1", true));
        report.phase("build");
        let value: serde_json::Value = serde_json::from_str(&report.json()?)?;
        assert_eq!(value["passed"], true);
        assert_eq!(value["rows"][0]["what"], "a");
        assert_eq!(value["phases"][0]["name"], "build");
        Ok(())
    }
}
