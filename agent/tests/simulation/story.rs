//! What happened in a run, in order and with virtual times, and what was wrong with it.

use std::collections::BTreeMap;
use std::fmt::Display;
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::Duration;

use tokio::time::Instant;

/// The log of a run. Clones are the same.
#[derive(Clone, Debug)]
pub struct Story(Arc<Mutex<Told>>);

#[derive(Debug)]
struct Told {
    began: Instant,
    lines: Vec<String>,
    violation: Option<String>,
    allocations: u64,
    faults: BTreeMap<String, u64>,
    trace: bool,
}

/// What is left of a run.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Outcome {
    /// What happened.
    pub lines: Vec<String>,
    /// What was wrong.
    pub violation: Option<String>,
    /// Addresses that interfaces got.
    pub allocations: u64,
    /// What went wrong on purpose, and how often.
    pub faults: BTreeMap<String, u64>,
}

impl Story {
    /// A story that begins now.
    pub fn new() -> Story {
        Story(Arc::new(Mutex::new(Told {
            began: Instant::now(),
            lines: Vec::new(),
            violation: None,
            allocations: 0,
            faults: BTreeMap::new(),
            trace: std::env::var_os("CAIRN_SIM_TRACE").is_some(),
        })))
    }

    fn told(&self) -> MutexGuard<'_, Told> {
        self.0.lock().expect("the story")
    }

    /// Tells what happened.
    pub fn say(&self, what: impl Display) {
        let mut told = self.told();
        let at = told.began.elapsed();
        let line = format!("{:>9.3} {what}", at.as_secs_f64());
        if told.trace {
            println!("{line}");
        }
        told.lines.push(line);
    }

    /// Tells what must not be. The first such thing counts.
    pub fn violate(&self, what: impl Display) {
        if self.told().violation.is_none() {
            let what = what.to_string();
            self.say(format_args!("VIOLATION: {what}"));
            self.told().violation = Some(what);
        }
    }

    /// How long it lasts already.
    pub fn time(&self) -> Duration {
        self.told().began.elapsed()
    }

    /// Whether something was wrong.
    pub fn is_violated(&self) -> bool {
        self.told().violation.is_some()
    }

    /// Counts an address that an interface got.
    pub fn allocated(&self, addresses: usize) {
        self.told().allocations += addresses as u64;
    }

    /// Counts a fault of a kind.
    pub fn count(&self, kind: String) {
        *self.told().faults.entry(kind).or_default() += 1;
    }

    /// The whole of it.
    pub fn end(&self) -> Outcome {
        let told = self.told();
        Outcome {
            lines: told.lines.clone(),
            violation: told.violation.clone(),
            allocations: told.allocations,
            faults: told.faults.clone(),
        }
    }
}

impl Outcome {
    /// The last part of the story, for a person.
    pub fn ending(&self) -> String {
        let skip = self.lines.len().saturating_sub(LINES_SHOWN);
        self.lines[skip..].join("\n")
    }
}

/// Lines of a story that a failure shows.
const LINES_SHOWN: usize = 150;
