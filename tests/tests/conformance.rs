//! `docs/reference/conformance.md` names tests that exist, for each clause that it calls done, and
//! `docs/reference/address-safety.md` for each sequence that it calls closed.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};

use cairn_ipam::Rule;

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
            let (mut is_test, mut is_list) = (false, false);
            for line in text.lines().map(str::trim) {
                is_list = (is_list || line.starts_with("on_both_apis! {")) && line != "}";
                if is_list {
                    names.extend(line.split(',').map(|name| name.trim().to_owned()));
                }
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
    for directory in [
        "bfd/tests",
        "bgp/src",
        "bgp/tests",
        "kernel/src",
        "agent/src",
        "agent/tests",
        "tests/tests",
    ] {
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

/// What stands in backquotes.
fn quoted(cell: &str) -> Vec<&str> {
    cell.split('`').skip(1).step_by(2).collect()
}

#[test]
fn every_sequence_that_gives_an_address_twice_names_tests_that_exist_and_every_rule_is_named() {
    let mut tests = BTreeSet::new();
    for directory in ["ipam", "agent", "api/tests", "kernel/tests"] {
        tests_in(&root().join(directory), &mut tests);
    }
    let read = |path: &str| std::fs::read_to_string(root().join(path)).expect("a text");
    let page = read("docs/reference/address-safety.md");
    let (mut switches, mut sequences) = (BTreeSet::new(), 0);
    let (rows, proof) = page.split_once("## How it is proved").expect("the end of the page");
    for line in rows.lines().filter(|line| line.starts_with("| ") && !line.ends_with("Switch |")) {
        let cells: Vec<&str> = line.trim_matches('|').split('|').map(str::trim).collect();
        let [_, _, shown_by, switch] = cells[..] else { panic!("not four cells: {line}") };
        sequences += 1;
        assert!(!quoted(shown_by).is_empty(), "no test: {line}");
        for name in quoted(shown_by) {
            assert!(tests.contains(name), "no test is called {name}: {line}");
        }
        switches.extend(quoted(switch));
    }
    assert!(sequences > 25, "the tables could not be read: {sequences} rows");
    let rules: Vec<String> = Rule::ALL.iter().map(|rule| format!("{rule:?}")).collect();
    assert_eq!(switches, rules.iter().map(String::as_str).collect(), "the page against the rules");
    for name in quoted(proof) {
        let is_test =
            name.contains('_') && name.chars().all(|c| c.is_ascii_lowercase() || c == '_');
        assert!(!is_test || tests.contains(name), "no test is called {name}");
    }
}
