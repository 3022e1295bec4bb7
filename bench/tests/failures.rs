//! `cairn-bench failures` runs both parts. Nothing is said about the times but that they are there; under the small
//! load of a quick run no session may end, or the command fails.

use std::path::Path;
use std::process::{Command, Output};

use serde_json::Value;

#[test]
fn paths_die_and_an_overloaded_machine_loses_none() {
    let cairn = Path::new(env!("CARGO_BIN_EXE_cairn-bench")).with_file_name("cairn");
    assert!(cairn.exists(), "{} is missing: `make build` builds it", cairn.display());
    let output = bench(&["failures", "--quick", "-o", "json"]);
    let problem = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{problem}");
    let report: Value = serde_json::from_slice(&output.stdout).expect("JSON");
    assert_eq!(report["quick"], true);
    let rows = report["dead_paths"].as_array().expect("rows");
    let names: Vec<_> = rows.iter().filter_map(|row| row["name"].as_str()).collect();
    assert_eq!(names, ["Down to withdraw", "cut to Down", "cut to withdraw"]);
    for row in rows {
        assert_eq!(row["count"], 3, "{row}");
        for field in ["p50_milliseconds", "p99_milliseconds", "max_milliseconds"] {
            assert!(row[field].as_f64().is_some_and(|figure| figure > 0.0), "{field}: {row}");
        }
    }
    let overload = &report["overload"];
    assert_eq!((&overload["session_ends"], &overload["bfd_downs"]), (&0.into(), &0.into()));
    for row in overload["intervals"].as_array().expect("rows") {
        assert!(row["max_milliseconds"].as_f64().is_some_and(|figure| figure > 0.0), "{row}");
    }
    for memory in overload["megabytes"].as_array().expect("rows") {
        for field in ["before", "full", "after"] {
            assert!(memory[field].as_f64().is_some_and(|figure| figure > 0.0), "{field}: {memory}");
        }
    }
    assert!(overload["moved"].as_u64() > overload["routes"].as_u64(), "{overload}");
}

#[test]
fn an_unknown_option_is_refused() {
    for arguments in [&["--only", "flaps"][..], &["--rounds", "0"], &["--seconds", "x"], &["-o"]] {
        let output = bench(&[&["failures"], arguments].concat());
        assert_eq!(output.status.code(), Some(2), "{arguments:?}");
        assert!(String::from_utf8_lossy(&output.stderr).contains("usage:"), "{arguments:?}");
    }
}

fn bench(arguments: &[&str]) -> Output {
    let mut command = Command::new(env!("CARGO_BIN_EXE_cairn-bench"));
    command.args(arguments).output().expect("the benchmark starts")
}
