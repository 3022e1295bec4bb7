//! `cairn-bench latency` runs every daemon. Nothing is said about its figures but that they are there: the
//! benchmark itself has seen every route come.

use std::path::Path;
use std::process::{Command, Output};

use serde_json::Value;

#[test]
fn every_daemon_brings_routes_into_the_kernel() {
    let cairn = Path::new(env!("CARGO_BIN_EXE_cairn-bench")).with_file_name("cairn");
    assert!(cairn.exists(), "{} is missing: `make build` builds it", cairn.display());
    let output = bench(&["latency", "--quick", "-o", "json"]);
    let problem = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{problem}");
    let report: Value = serde_json::from_slice(&output.stdout).expect("JSON");
    assert_eq!(report["quick"], true);
    let rows = report["rows"].as_array().expect("rows");
    let daemons: Vec<&str> = rows.iter().filter_map(|row| row["daemon"].as_str()).collect();
    assert_eq!(daemons, ["cairn", "bird", "frr"]);
    for row in rows {
        assert_eq!(row["runs"], 1, "{row}");
        for field in ["p50_milliseconds", "p99_milliseconds", "worst_milliseconds"] {
            assert!(row[field].as_f64().is_some_and(|figure| figure > 0.0), "{field}: {row}");
        }
    }
}

#[test]
fn an_unknown_option_is_refused() {
    for arguments in [&["--only", "bird"][..], &["--runs", "0"], &["-o"], &["--cairn"]] {
        let output = bench(&[&["latency"], arguments].concat());
        assert_eq!(output.status.code(), Some(2), "{arguments:?}");
        assert!(String::from_utf8_lossy(&output.stderr).contains("usage:"), "{arguments:?}");
    }
}

fn bench(arguments: &[&str]) -> Output {
    let mut command = Command::new(env!("CARGO_BIN_EXE_cairn-bench"));
    command.args(arguments).output().expect("the benchmark starts")
}
