//! The benchmark runs, and every row of it has figures. Nothing is said about how large they are.

use std::process::Command;

use serde_json::Value;

#[test]
fn every_row_has_finite_figures() {
    let output = Command::new(env!("CARGO_BIN_EXE_cairn-bench"))
        .args(["--quick", "-o", "json"])
        .output()
        .expect("the benchmark starts");
    let problem = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{problem}");
    let report: Value = serde_json::from_slice(&output.stdout).expect("JSON");
    assert_eq!(report["quick"], true);
    let rows = report["rows"].as_array().expect("rows");
    let names: Vec<String> =
        rows.iter().map(|row| format!("{}: {}", text(&row["group"]), text(&row["name"]))).collect();
    assert_eq!(names, expected());
    for (row, name) in rows.iter().zip(&names) {
        for field in ["median", "min", "max", "reference_median", "ratio"] {
            let figure = row[field].as_f64();
            assert!(figure.is_some_and(|f| f.is_finite() && f > 0.0), "{name} {field}: {row}");
        }
        assert!(row["runs"].as_u64() > Some(0), "{name}: {row}");
    }
    let left_behind: Vec<String> = std::fs::read_dir("/run/netns")
        .map(|names| {
            names.flatten().map(|n| n.file_name().to_string_lossy().into_owned()).collect()
        })
        .unwrap_or_default();
    let own = |name: &&String| {
        let pid = name.strip_prefix("bench-");
        pid.is_some_and(|pid| !std::path::Path::new("/proc").join(pid).exists())
    };
    assert_eq!(left_behind.iter().find(own), None);
}

#[test]
fn an_unknown_option_is_refused() {
    for arguments in [&["--fast"][..], &["-o", "xml"], &["--only", "cni"], &["--only"]] {
        let output = Command::new(env!("CARGO_BIN_EXE_cairn-bench"))
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

fn expected() -> Vec<String> {
    let mut rows = Vec::new();
    for family in ["IPv4", "IPv6"] {
        for per_set in [5, 1000] {
            for _reference in ["memory copy", "zettabgp", "netgauze-bgp-pkt", "rustbgpd-wire"] {
                for action in ["decode", "encode"] {
                    rows.push(format!("wire: {action} {family}, {per_set} prefixes a set"));
                }
            }
        }
    }
    for table in ["2k IPv4", "2k IPv6", "10k IPv4"] {
        for action in
            ["announce", "read for kernel", "better paths", "fall back", "withdraw all", "memory"]
        {
            rows.push(format!("rib: {action} {table}"));
        }
    }
    rows.extend(CHURN_AND_POLICY.map(|row| format!("rib: {row}")));
    for family in ["IPv4", "IPv6"] {
        for action in ["install", "resync", "delete"] {
            rows.push(format!("kernel: {action} 2k {family}"));
        }
    }
    for row in [
        "release and assign, both families",
        "index of taken blocks",
        "find a free block, 99 % used",
    ] {
        rows.push(format!("ipam: {row}"));
    }
    rows
}

const CHURN_AND_POLICY: [&str; 12] = [
    "dead peer, 1k of 10k: withdraw",
    "dead peer, 1k of 10k: withdraw",
    "dead peer, 1k of 10k: others' paths",
    "dead peer, 1k of 10k: others' paths",
    "late joiner, 10k routes moving: first route",
    "late joiner, 10k routes moving: octets until then",
    "memory after 3 cycles of 10k",
    "import, a list of 1000 prefixes",
    "import, 20 rules on a prefix",
    "import, 20 rules on a community",
    "import, 20 rules on the origin AS",
    "import, 20 rules on AS_PATH as text",
];
