//! `docs/reference/interop.md` says what was tested with which daemon: the tests that there are, each
//! with each daemon that has it, and a reason for every gap.

use std::collections::BTreeSet;
use std::path::Path;

/// A test and a daemon.
type Cell = (String, String);

#[test]
fn the_matrix_is_what_the_tests_are() {
    let page = read("docs/reference/interop.md");
    let rows: Vec<Vec<&str>> = page.lines().filter_map(row).collect();
    let head = rows.iter().find(|row| row.first() == Some(&"What")).expect("the matrix");
    let daemons = &head[2..];
    let mut claimed = BTreeSet::new();
    let mut reasons = BTreeSet::new();
    for row in rows.iter().filter(|row| row.get(1).is_some_and(|cell| cell.starts_with('`'))) {
        assert_eq!(row.len(), head.len(), "{row:?}");
        for (daemon, cell) in daemons.iter().zip(&row[2..]) {
            match *cell {
                "yes" => drop(claimed.insert((row[1].trim_matches('`').into(), (*daemon).into()))),
                reason => drop(reasons.insert(reason.to_owned())),
            }
        }
    }
    let there: BTreeSet<Cell> = daemons.iter().flat_map(|daemon| tests_with(daemon)).collect();
    assert!(there.len() > 50, "only {} tests were found: the search is broken", there.len());
    assert_eq!(claimed, there);
    let listed = page.lines().filter_map(|line| line.split_once(". "));
    let listed = listed.filter(|(number, _)| number.parse::<u8>().is_ok());
    assert_eq!(reasons, listed.map(|(number, _)| number.to_owned()).collect());
}

fn tests_with(daemon: &str) -> Vec<Cell> {
    let source = read(&format!("tests/tests/interop_{daemon}.rs"));
    let parts: Vec<&str> = source.split("#[tokio::test]\nasync fn ").skip(1).collect();
    let name = |part: &&str| part.split('(').next().unwrap_or_default().to_owned();
    parts.iter().map(|part| (name(part), daemon.to_owned())).collect()
}

/// The cells of a line of a table.
fn row(line: &str) -> Option<Vec<&str>> {
    let cells = line.strip_prefix("| ")?.strip_suffix(" |")?;
    Some(cells.split(" | ").collect())
}

fn read(path: &str) -> String {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("..").join(path);
    std::fs::read_to_string(&path).unwrap_or_else(|error| panic!("{}: {error}", path.display()))
}
