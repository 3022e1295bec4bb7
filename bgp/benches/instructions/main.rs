//! How many instructions the core takes for fixed pieces of work: a gate against getting slower that
//! needs no quiet machine.
//!
//! ```text
//! make bench-bgp-instr ─► main ──for each of workloads::ALL──► valgrind ─► main --run NAME ─► `measured`
//!                          │◄───────── "Collected : N" ────────────┘
//!                          └─ record.txt ──gate::judge──► growth beyond 5 % fails
//! ```
//!
//! Each workload is a process of its own under callgrind, which counts only inside of [`measured`]: what
//! is prepared, and what is freed at the end, is not in it. Nothing random is in it either: seeds are fixed,
//! the environment is empty, and glibc is kept from choosing its copy loops by what the processor has.
//! The allocator is the system's, as in the speaker.
//!
//! ```text
//! cargo bench -p cairn-bgp --no-default-features --profile instructions --bench instructions [-- NAME...]
//! ```
//!
//! `CAIRN_BLESS=1` writes the record anew. Each run leaves what callgrind found in the target directory:
//! `callgrind_annotate target/tmp/NAME.callgrind` shows where the instructions go.

#[allow(dead_code, unused_imports, reason = "belongs to the benchmarks, and so do its tests")]
#[path = "../../../bench/src/feed.rs"]
mod feed;
mod gate;
#[path = "../../tests/rib_bench/mod.rs"]
mod rib_bench;
#[path = "../../tests/session_bench/mod.rs"]
mod session_bench;
mod workloads;

use std::fs;
use std::hint::black_box;
use std::path::{Path, PathBuf};
use std::process::{Command, ExitCode, Output};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::thread;

use gate::{Judgement, Record, judge};
use workloads::{ALL, Run, Workload};

fn main() -> ExitCode {
    // Cargo adds `--bench` to what it is told to pass on.
    let arguments: Vec<String> = std::env::args().skip(1).filter(|a| a != "--bench").collect();
    let done = match arguments.first().map(String::as_str) {
        Some(RUN) => run(arguments.get(1).map_or("", String::as_str)).map(|()| true),
        _ => compare(&arguments),
    };
    match done {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => ExitCode::FAILURE,
        Err(problem) => {
            eprintln!("error: {problem}");
            ExitCode::from(2)
        }
    }
}

/// Does the work of one workload, under valgrind or not.
fn run(name: &str) -> Result<(), String> {
    let workload = named(name)?;
    let mut run = (workload.prepare)();
    let units = measured(&mut run);
    match units == workload.units {
        true => Ok(()),
        false => Err(format!("{name}: {units} {}s, not {}", workload.unit, workload.units)),
    }
}

/// What callgrind counts, by this name.
#[inline(never)]
fn measured(run: &mut Run) -> usize {
    black_box(run())
}

/// Counts the instructions of these workloads, of all when none is named, and compares them with the
/// record. False when there are too many.
fn compare(names: &[String]) -> Result<bool, String> {
    let workloads: Vec<&Workload> = match names {
        [] => ALL.iter().collect(),
        names => names.iter().map(|name| named(name)).collect::<Result<_, _>>()?,
    };
    let counts = count_all(&workloads)?;
    let counted = Record {
        toolchain: toolchain()?,
        counts: workloads.iter().zip(counts).map(|(w, count)| (w.name.into(), count)).collect(),
    };
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("benches/instructions/record.txt");
    if std::env::var_os("CAIRN_BLESS").is_some() && names.is_empty() {
        let written = fs::write(&path, counted.to_string());
        written.map_err(|error| format!("{}: {error}", path.display()))?;
    }
    let text = fs::read_to_string(&path).map_err(|error| error.to_string());
    let record = text.and_then(|text| text.parse());
    let mut record: Record = record.map_err(|error| format!("{}: {error}", path.display()))?;
    if !names.is_empty() {
        record.counts.retain(|(name, _)| names.contains(name));
    }
    print(&workloads, &counted, &record);
    let Judgement { failures, remarks } = judge(&record, &counted);
    for remark in &remarks {
        println!("note: {remark}");
    }
    for failure in &failures {
        eprintln!("error: {failure}");
    }
    if !failures.is_empty() {
        eprintln!("{ADVICE}");
    }
    Ok(failures.is_empty())
}

fn named(name: &str) -> Result<&'static Workload, String> {
    let workload = ALL.iter().find(|workload| workload.name == name);
    workload.ok_or_else(|| {
        let names: Vec<&str> = ALL.iter().map(|workload| workload.name).collect();
        format!("there is no workload \"{name}\", only {}", names.join(", "))
    })
}

/// As many at a time as there are cores.
fn count_all(workloads: &[&Workload]) -> Result<Vec<u64>, String> {
    let next = AtomicUsize::new(0);
    let worker = || {
        let mut counts = Vec::new();
        while let Some(workload) = workloads.get(next.fetch_add(1, Ordering::Relaxed)) {
            counts.push((workload.name, count(workload.name)?));
        }
        Ok::<_, String>(counts)
    };
    let mut counts = thread::scope(|scope| {
        let cores = thread::available_parallelism().map_or(1, usize::from);
        let workers: Vec<_> = (0..cores).map(|_| scope.spawn(worker)).collect();
        let joined = workers.into_iter().map(|worker| worker.join().expect("it does not panic"));
        joined.collect::<Result<Vec<_>, _>>().map(|counts| counts.concat())
    })?;
    let place = |name| workloads.iter().position(|workload| workload.name == name);
    counts.sort_by_key(|(name, _)| place(*name));
    Ok(counts.into_iter().map(|(_, count)| count).collect())
}

/// Instructions that one workload takes.
fn count(name: &str) -> Result<u64, String> {
    let program = std::env::current_exe().map_err(|error| error.to_string())?;
    let mut out = PathBuf::from(env!("CARGO_TARGET_TMPDIR")).join(name).into_os_string();
    out.push(".callgrind");
    let mut option = std::ffi::OsString::from("--callgrind-out-file=");
    option.push(&out);
    let output = Command::new("valgrind")
        .args(["--tool=callgrind", "--toggle-collect=instructions::measured*"])
        .arg(option)
        .arg(program)
        .args([RUN, name])
        .env_clear()
        .env("PATH", PATH)
        .env("GLIBC_TUNABLES", GLIBC_TUNABLES)
        .output()
        .map_err(|error| format!("valgrind: {error}; `make tools` installs it"))?;
    let said = String::from_utf8_lossy(&output.stderr);
    let collected = said.lines().find_map(|line| line.split_once("Collected : "));
    let count = collected.and_then(|(_, count)| count.trim().parse().ok());
    match count {
        // Without a call of `measured` there is nothing to compare.
        Some(count) if output.status.success() && count > 0 => Ok(count),
        _ => Err(format!("{name}: {}, and valgrind said: {said}", output.status)),
    }
}

/// What the counts depend on besides the code: compiler, processor, and the C library with its allocator.
fn toolchain() -> Result<String, String> {
    let rustc = std::env::var_os("RUSTC").unwrap_or_else(|| "rustc".into());
    let compiler = said(Command::new(rustc).arg("--version"))?;
    let library = said(Command::new("getconf").arg("GNU_LIBC_VERSION"))?;
    Ok(format!("{compiler}, {library}, {}", std::env::consts::ARCH))
}

fn said(command: &mut Command) -> Result<String, String> {
    let problem = match command.output() {
        Ok(Output { status, stdout, .. }) if status.success() => {
            return Ok(String::from_utf8_lossy(&stdout).trim().into());
        }
        Ok(output) => output.status.to_string(),
        Err(error) => error.to_string(),
    };
    Err(format!("{}: {problem}", command.get_program().display()))
}

fn print(workloads: &[&Workload], counted: &Record, record: &Record) {
    println!("{:<22}{:>14}{:>14}{:>9}  each", "instructions", "counted", "recorded", "change");
    for (workload, (name, count)) in workloads.iter().zip(&counted.counts) {
        let recorded = record.count(name);
        let change = recorded.map_or("-".into(), |recorded| {
            format!("{:+.1} %", gate::change(recorded, *count) * 100.0)
        });
        let recorded = recorded.map_or("-".into(), |recorded| recorded.to_string());
        let each = *count as f64 / workload.units as f64;
        println!("{name:<22}{count:>14}{recorded:>14}{change:>9}  {each:.0} a {}", workload.unit);
    }
}

/// The option of the process that is counted.
const RUN: &str = "--run";
/// Where valgrind is looked for, and all that the counted process has of an environment.
const PATH: &str = "/usr/local/bin:/usr/bin:/bin";
/// glibc's loops that every processor of an architecture has; without this they follow the machine.
const GLIBC_TUNABLES: &str =
    "glibc.cpu.hwcaps=-AVX512F,-AVX512VL,-AVX2,-AVX_Fast_Unaligned_Load,-ERMS,-FSRM";
const ADVICE: &str = "Where they go: callgrind_annotate target/tmp/NAME.callgrind
If they are worth it, commit the record with the change that needs them, and say why:
CAIRN_BLESS=1 make bench-bgp-instr";
