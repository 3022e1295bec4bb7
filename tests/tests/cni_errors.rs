//! `docs/reference/cni-errors.md` has every message that a pod's events may show.

use std::path::Path;

/// Where these messages are defined.
const SOURCES: [&str; 6] = [
    "cni/src/error.rs",
    "agent/src/pods/answers.rs",
    "agent/src/readiness.rs",
    "ipam/src/addresses/error.rs",
    "ipam/src/choice.rs",
    "kernel/src/pod/attach.rs",
];

/// As [`SOURCES`], whose messages are the differences that CHECK finds.
const DIFFERENCES: &str = "kernel/src/pod/check.rs";

fn read(path: &str) -> String {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("..").join(path);
    std::fs::read_to_string(&path).unwrap_or_else(|error| panic!("{}: {error}", path.display()))
}

/// The string literal at the beginning of `text`, without what only breaks its lines.
fn literal(text: &str) -> Option<String> {
    let rest = text.trim_start().strip_prefix('"')?;
    let mut found = String::new();
    let mut chars = rest.chars();
    loop {
        match chars.next()? {
            '"' => return Some(found.split_whitespace().collect::<Vec<_>>().join(" ")),
            '\\' => match chars.next()? {
                '\n' => found.push(' '),
                escaped => found.push(escaped),
            },
            other => found.push(other),
        }
    }
}

/// The messages of a source: those of its errors, and its constants of text.
fn messages(source: &str) -> Vec<String> {
    let beginnings = source.match_indices("#[error(").map(|(at, found)| at + found.len());
    let constants = source.match_indices(": &str =").map(|(at, found)| at + found.len());
    let all = beginnings.chain(constants).filter_map(|at| literal(source.get(at..)?));
    all.collect()
}

/// The longest part of a sentence of `message` that is the same whatever it is about.
fn fixed_part(message: &str) -> &str {
    let fixed = message.split(['{', '}']).step_by(2);
    let sentences = fixed.flat_map(|part| part.split(['(', ')', ':', ';', ',', '`']));
    let told = sentences.map(str::trim).filter(|part| *part != "the request may be repeated");
    told.max_by_key(|part| part.len()).unwrap_or("")
}

#[test]
fn every_message_is_on_the_page() {
    let page = read("docs/reference/cni-errors.md");
    let mut seen = 0;
    for source in SOURCES.iter().copied().chain([DIFFERENCES]) {
        let found = messages(&read(source));
        assert!(found.len() > 1, "{source} has no messages any more");
        for message in found {
            let part = fixed_part(&message);
            // What only passes on another message.
            if part.len() < 12 {
                continue;
            }
            seen += 1;
            let shown = page.contains(part);
            assert!(shown, "docs/reference/cni-errors.md lacks {part:?} of {source}: {message}");
        }
    }
    assert!(seen > 50, "{seen} messages were found");
}
