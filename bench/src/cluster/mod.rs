//! The IPAM at the size of a cluster: `make bench-ipam`.
//!
//! ```text
//! cairn-bench ipam [--quick] [--api embedded|real]
//!
//!  this process: API server ◄── counting way ◄── `cairn agent`, a process of its own     [`agent`]
//!                real or embedded API ◄── the IPAM of many nodes, in this process        [`claims`]
//!                `plan()` and the address book                                           [`decide`]
//! ```
//!
//! Figures are of one machine and one day, in one table. What is a process's own is read from
//! `/proc`: resident memory, and CPU time in user and kernel mode. Latencies are wall-clock time, on
//! a machine that also runs the API server.
//!
//! The agent is the real binary in a network namespace, a node of a cluster of 5,000 with 20,000
//! blocks in racks of 40 that are an AS each. Its peers do not answer, so that there are no learned
//! routes: what is measured is the load of the watches. The API server is the embedded one there, as
//! the answers to watches are the same and a real one with these objects would take the machine's
//! two cores.

mod agent;
mod claims;
mod decide;
pub mod objects;
mod way;

use std::process::ExitCode;

use cairn_tests::kube::Api;

use crate::{Extent, Result};

/// A line of the table.
struct Line {
    what: String,
    figure: String,
    goal: &'static str,
}

impl Line {
    fn new(what: impl Into<String>, figure: impl Into<String>, goal: &'static str) -> Line {
        Line { what: what.into(), figure: figure.into(), goal }
    }
}

/// Measures everything and prints the table.
pub fn main(arguments: impl Iterator<Item = String>) -> ExitCode {
    match run(arguments) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("cairn-bench ipam: {error}");
            ExitCode::FAILURE
        }
    }
}

fn run(mut arguments: impl Iterator<Item = String>) -> Result<()> {
    let (mut extent, mut api) = (Extent::Full, Api::Real);
    while let Some(argument) = arguments.next() {
        match argument.as_str() {
            "--quick" => extent = Extent::Quick,
            "--api" => match arguments.next().as_deref() {
                Some("embedded") => api = Api::Embedded,
                Some("real") => api = Api::Real,
                _ => return Err("--api takes embedded or real".into()),
            },
            other => return Err(format!("what is \"{other}\"?").into()),
        }
    }
    raise_file_limit();
    let mut lines = Vec::new();
    eprintln!("measuring decisions ...");
    lines.extend(decide::measure(extent)?);
    eprintln!("measuring an agent in a cluster of 5,000 nodes ...");
    // In a thread of its own, since it moves into a network namespace.
    let agent = std::thread::spawn(move || agent::measure(extent).map_err(|e| e.to_string()));
    lines.extend(agent.join().map_err(|_| "the agent's measurement panicked")??);
    eprintln!("measuring claims ...");
    lines.extend(claims::measure(extent, api)?);
    print(&lines);
    Ok(())
}

fn print(lines: &[Line]) {
    let width = lines.iter().map(|line| line.what.chars().count()).max().unwrap_or(0);
    let figures = lines.iter().map(|line| line.figure.chars().count()).max().unwrap_or(0);
    for Line { what, figure, goal } in lines {
        println!("{what:width$}  {figure:>figures$}  {goal}");
    }
}

/// A hundred nodes in one process have a thousand watches, each a connection with two ends here.
fn raise_file_limit() {
    let mut limit = libc::rlimit { rlim_cur: 0, rlim_max: 0 };
    // SAFETY: both calls get a valid structure of this frame.
    unsafe {
        if libc::getrlimit(libc::RLIMIT_NOFILE, &raw mut limit) == 0 {
            limit.rlim_cur = limit.rlim_max;
            libc::setrlimit(libc::RLIMIT_NOFILE, &raw const limit);
        }
    }
}

/// The value below which `percent` of the sorted `values` lie.
pub fn percentile(sorted: &[f64], percent: usize) -> f64 {
    let at = (sorted.len() * percent).div_ceil(100).saturating_sub(1);
    sorted.get(at).copied().unwrap_or(f64::NAN)
}
