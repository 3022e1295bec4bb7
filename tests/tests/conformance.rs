//! `docs/reference/conformance.md` names tests that exist, for each clause that it calls done.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};

fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("..")
}

/// The names of all test functions below `directory`.
fn tests_in(directory: &Path, names: &mut BTreeSet<String>) {
    for entry in std::fs::read_dir(directory).expect("a directory of sources can be listed") {
        let path = entry.expect("an entry").path();
        if path.is_dir() {
            tests_in(&path, names);
        } else if path.extension().is_some_and(|extension| extension == "rs") {
            let text = std::fs::read_to_string(&path).expect("a source file is text");
            let mut is_test = false;
            for line in text.lines().map(str::trim) {
                let declared = line.strip_prefix("async ").unwrap_or(line).strip_prefix("fn ");
                match declared.and_then(|rest| rest.split('(').next()) {
                    Some(name) if is_test => {
                        names.insert(name.to_owned());
                        is_test = false;
                    }
                    _ => is_test |= line.starts_with("#[test]") || line.contains("::test"),
                }
            }
        }
    }
}

/// The cells of each row of the page's tables, without headings.
fn rows(page: &str) -> Vec<Vec<String>> {
    let cells = |line: &str| -> Vec<String> {
        line.trim_matches('|').split('|').map(|cell| cell.trim().to_owned()).collect()
    };
    let rows = page.lines().filter(|line| line.starts_with('|')).map(cells);
    rows.filter(|cells| !cells[0].starts_with("--") && !cells.contains(&"State".to_owned()))
        .collect()
}

#[test]
fn every_clause_that_is_done_names_tests_that_exist() {
    let mut tests = BTreeSet::new();
    for directory in ["bgp/src", "bgp/tests", "agent/src", "agent/tests", "tests/tests"] {
        tests_in(&root().join(directory), &mut tests);
    }
    let page = std::fs::read_to_string(root().join("docs/reference/conformance.md"))
        .expect("the page is there");
    let rows = rows(&page);
    assert!(rows.len() > 60, "the tables could not be read: {} rows", rows.len());
    for row in rows {
        let [.., state, shown_by] = row.as_slice() else { panic!("a short row: {row:?}") };
        let named: Vec<&str> = shown_by.split('`').skip(1).step_by(2).collect();
        for name in &named {
            assert!(tests.contains(*name), "no test is called {name}: {row:?}");
        }
        let says_why = state.starts_with("no") && state.contains(':');
        let elsewhere = state == "see below";
        assert!(!named.is_empty() || says_why || elsewhere, "neither test nor reason: {row:?}");
    }
}
