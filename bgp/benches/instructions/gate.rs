//! Counts beside those that were recorded.

use std::fmt;
use std::str::FromStr;

/// How many instructions each workload takes.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Record {
    /// What they were counted with. Counts of different toolchains say nothing about each other.
    pub toolchain: String,
    /// By workload.
    pub counts: Vec<(String, u64)>,
}

/// What a comparison comes to.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct Judgement {
    /// What must not be.
    pub failures: Vec<String>,
    /// What somebody should know.
    pub remarks: Vec<String>,
}

/// Compares counts with the record. With another toolchain nothing fails.
pub fn judge(record: &Record, counted: &Record) -> Judgement {
    let Judgement { mut failures, mut remarks } = Judgement::default();
    for (name, count) in &counted.counts {
        let Some(recorded) = record.count(name) else {
            failures.push(format!("{name} is not in the record"));
            continue;
        };
        let percent = change(recorded, *count) * 100.0;
        let change = format!("{recorded} instructions were recorded, {count} counted");
        if count * 100 > recorded * (100 + CHANGE_PERCENT_MAX) {
            failures.push(format!("{name} takes {percent:.1} % more: {change}"));
        } else if count * 100 < recorded * (100 - CHANGE_PERCENT_MAX) {
            let less = -percent;
            remarks.push(format!(
                "{name} takes {less:.1} % less: {change}. Record it, or as much may come back \
                 unseen: CAIRN_BLESS=1 make bench-bgp-instr"
            ));
        }
    }
    let gone = record.counts.iter().filter(|(name, _)| counted.count(name).is_none());
    failures.extend(gone.map(|(name, _)| format!("{name} is in the record and was not counted")));
    if record.toolchain != counted.toolchain {
        let (recorded, here) = (&record.toolchain, &counted.toolchain);
        remarks.append(&mut failures);
        remarks.push(format!(
            "NOTHING WAS COMPARED: the record is of {recorded}, this is {here}, which counts otherwise"
        ));
    }
    Judgement { failures, remarks }
}

/// 0.1 for a tenth more.
pub fn change(recorded: u64, counted: u64) -> f64 {
    counted as f64 / recorded as f64 - 1.0
}

impl Record {
    /// Of the workload of this name.
    pub fn count(&self, name: &str) -> Option<u64> {
        self.counts.iter().find_map(|(known, count)| (known == name).then_some(*count))
    }
}

impl fmt::Display for Record {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(f, "{HEAD}\n{TOOLCHAIN} {}", self.toolchain)?;
        self.counts.iter().try_for_each(|(name, count)| writeln!(f, "{name} {count}"))
    }
}

impl FromStr for Record {
    type Err = String;

    fn from_str(text: &str) -> Result<Record, String> {
        let mut record = Record::default();
        for line in text.lines().filter(|line| !line.starts_with('#')) {
            let parts = line.split_once(' ').ok_or_else(|| format!("what is \"{line}\"?"))?;
            match parts {
                (TOOLCHAIN, toolchain) => record.toolchain = toolchain.into(),
                (name, count) => match count.parse() {
                    Ok(count) if count > 0 => record.counts.push((name.into(), count)),
                    _ => return Err(format!("{name} has no count above 0")),
                },
            }
        }
        Ok(record)
    }
}

/// More than this fails, less than this is worth recording.
const CHANGE_PERCENT_MAX: u64 = 5;
const TOOLCHAIN: &str = "toolchain";
const HEAD: &str =
    "# Instructions of each workload, written by: CAIRN_BLESS=1 make bench-bgp-instr";
