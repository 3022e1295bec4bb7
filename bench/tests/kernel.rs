//! `cairn-bench kernel` runs every writer on every cell. Nothing is said about its figures but that they
//! are there: the benchmark itself has checked that every route came, changed and went.

use std::path::Path;
use std::process::{Command, Output};

use serde_json::Value;

#[test]
fn every_writer_writes_every_cell() {
    let output = bench(&["kernel", "--quick", "-o", "json"]);
    let problem = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{problem}");
    let report: Value = serde_json::from_slice(&output.stdout).expect("JSON");
    assert_eq!(report["quick"], true);
    let rows = report["rows"].as_array().expect("rows");
    let seen: Vec<String> = rows
        .iter()
        .map(|row| ["cell", "operation", "writer"].map(|field| text(&row[field])).join(" "))
        .collect();
    assert_eq!(seen, expected());
    for row in rows {
        for field in ["cpu_nanos_each", "wall_seconds", "ratio"] {
            let figure = row[field].as_f64();
            assert!(figure.is_some_and(|figure| figure > 0.0), "{field}: {row}");
        }
    }
    let memory = report["memory"].as_array().expect("rows");
    assert_eq!(memory.len(), 6);
    for row in memory {
        let octets = row["octets_each"].as_f64();
        assert!(octets.is_some_and(|octets| octets > 0.0 && octets < 60.0), "{row}");
    }
    let moved = report["repoint"].as_array().expect("rows");
    assert_eq!(moved.len(), 4);
    for row in moved {
        assert!(row["peer_milliseconds"].as_f64().is_some_and(|time| time > 0.0), "{row}");
    }
    assert_eq!(left_behind(), None);
}

#[test]
fn an_unknown_option_is_refused() {
    for arguments in [&["--only", "1k"][..], &["--runs", "0"], &["--fast"], &["-o"]] {
        let output = bench(&[&["kernel"], arguments].concat());
        assert_eq!(output.status.code(), Some(2), "{arguments:?}");
        assert!(String::from_utf8_lossy(&output.stderr).contains("usage:"), "{arguments:?}");
    }
}

fn bench(arguments: &[&str]) -> Output {
    let mut command = Command::new(env!("CARGO_BIN_EXE_cairn-bench"));
    command.args(arguments).output().expect("the benchmark starts")
}

/// A namespace of a process that has ended.
fn left_behind() -> Option<String> {
    let names = std::fs::read_dir("/run/netns").into_iter().flatten().flatten();
    let mut names = names.map(|name| name.file_name().to_string_lossy().into_owned());
    names.find(|name| {
        let pid = name.strip_prefix("bench-fib-").and_then(|rest| rest.split('-').next());
        pid.is_some_and(|pid| !Path::new("/proc").join(pid).exists())
    })
}

fn expected() -> Vec<String> {
    let mut rows = Vec::new();
    for family in ["IPv4", "IPv6"] {
        for shape in ["plain", "object", "ecmp"] {
            for operation in ["install", "resync", "replace", "remove"] {
                for writer in ["bare", "cairn", "rtnetlink", "ip", "bird"] {
                    // BIRD 2 knows no objects.
                    if (shape, writer) != ("object", "bird") {
                        rows.push(format!("2k-{family}-{shape}-10 {operation} {writer}"));
                    }
                }
            }
        }
    }
    rows
}

fn text(value: &Value) -> &str {
    value.as_str().unwrap_or_default()
}
