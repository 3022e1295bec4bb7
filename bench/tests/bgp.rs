//! `cairn-bench bgp` runs every cell with every daemon. Nothing is said about its figures but that they
//! are there: the benchmark itself has checked that every prefix arrived with its AS path and went away
//! again.

use std::path::Path;
use std::process::Command;

use serde_json::Value;

#[test]
fn every_daemon_passes_every_table_on() {
    let bench = Path::new(env!("CARGO_BIN_EXE_cairn-bench"));
    let cairn = bench.with_file_name("cairn");
    assert!(cairn.exists(), "{} is missing: `make build` builds it", cairn.display());
    let output = Command::new(bench)
        .args(["bgp", "--quick", "-o", "json"])
        .output()
        .expect("the benchmark starts");
    let problem = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{problem}");
    let report: Value = serde_json::from_slice(&output.stdout).expect("JSON");
    assert_eq!(report["quick"], true);
    let rows = report["rows"].as_array().expect("rows");
    let names: Vec<_> = rows.iter().map(|row| (text(&row["cell"]), text(&row["daemon"]))).collect();
    let expected: Vec<_> = CELLS
        .iter()
        .flat_map(|cell| ["bird", "cairn", "copier"].map(|daemon| (*cell, daemon)))
        .collect();
    assert_eq!(names, expected);
    for row in rows {
        assert_eq!(row["cut_off"], false, "{row}");
        assert_eq!(row["runs"], 1, "{row}");
        for field in FIGURES {
            let figure = row[field].as_f64();
            assert!(figure.is_some_and(|figure| figure > 0.0), "{field}: {row}");
        }
    }
    let verdicts = report["verdicts"].as_array().expect("verdicts");
    let judged: Vec<_> = verdicts.iter().map(|verdict| text(&verdict["cell"])).collect();
    assert_eq!(judged, CELLS);
    for verdict in verdicts {
        assert_eq!(verdict["fastest"], "bird", "{verdict}");
        assert!(verdict["seconds_ratio"].as_f64() > Some(0.0), "{verdict}");
    }
    let idle = report["idle"].as_array().expect("sessions without routes");
    assert_eq!(idle.iter().map(|row| text(&row["daemon"])).collect::<Vec<_>>(), ["bird", "cairn"]);
    for row in idle {
        for field in ["sessions", "cpu_ms_a_second", "megabytes_before"] {
            assert!(row[field].as_f64() > Some(0.0), "{field}: {row}");
        }
    }
}

#[test]
fn a_missing_daemon_is_an_error() {
    let output = Command::new(env!("CARGO_BIN_EXE_cairn-bench"))
        .args(["bgp", "--quick", "--only", "1x1M", "--cairn", "/nowhere/cairn"])
        .output()
        .expect("the benchmark starts");
    let problem = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(1), "{problem}");
    assert!(problem.contains("/nowhere/cairn"), "{problem}");
}

#[test]
fn what_a_newer_system_lacks_is_said() {
    let output = Command::new(env!("CARGO_BIN_EXE_cairn-bench"))
        .args(["bgp", "--quick", "--only", "1x1M", "--newer", "/nowhere", "-o", "json"])
        .output()
        .expect("the benchmark starts");
    let problem = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{problem}");
    let report: Value = serde_json::from_slice(&output.stdout).expect("JSON");
    let unmeasured = report["unmeasured"].as_array().expect("what is not measured");
    let bird3 = unmeasured.iter().find(|other| other["daemon"] == "bird3");
    assert!(bird3.is_some_and(|bird3| text(&bird3["reason"]).contains("missing")), "{report}");
    // Those of this system are measured, and one of five others was the fastest.
    let rows = report["rows"].as_array().expect("rows");
    assert!(rows.iter().all(|row| row["fastest_ratio"].as_f64() > Some(0.0)), "{report}");
}

#[test]
fn an_unknown_option_is_refused() {
    for arguments in [&["--only", "2x2"][..], &["--runs", "0"], &["--daemon", "gated"], &["-o"]] {
        let output = Command::new(env!("CARGO_BIN_EXE_cairn-bench"))
            .arg("bgp")
            .args(arguments)
            .output()
            .expect("the benchmark starts");
        assert_eq!(output.status.code(), Some(2), "{arguments:?}");
        assert!(String::from_utf8_lossy(&output.stderr).contains("usage:"), "{arguments:?}");
    }
}

fn text(value: &Value) -> &str {
    value.as_str().unwrap_or_default()
}

const CELLS: [&str; 7] = [
    "1x1M",
    "10x100k",
    "2x20k-to-50",
    "50-own-subnet",
    "10xsame-100k",
    "50x4k",
    "1x500k-large-sets",
];
/// What is above 0 in any run.
const FIGURES: [&str; 6] = [
    "seconds",
    "cpu_seconds",
    "megabytes_idle",
    "withdraw_seconds",
    "withdraw_cpu_seconds",
    "generator_cpu_seconds",
];
