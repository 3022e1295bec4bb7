//! The book: every page is in its summary, and every relative link of the documentation leads to a
//! file.

use std::collections::BTreeSet;
use std::path::{Component, Path, PathBuf};

fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("..")
}

/// Every Markdown file of the documentation, by its path from the repository's root.
fn pages() -> BTreeSet<PathBuf> {
    let mut found: BTreeSet<PathBuf> =
        ["README.md", "CONTRIBUTING.md", "CHANGELOG.md"].map(PathBuf::from).into();
    let mut open = vec![PathBuf::from("docs")];
    while let Some(directory) = open.pop() {
        for entry in std::fs::read_dir(root().join(&directory)).expect("docs/ can be listed") {
            let path = directory.join(entry.expect("an entry").file_name());
            if path == Path::new("docs/book") {
                continue; // What mdBook builds.
            }
            if root().join(&path).is_dir() {
                open.push(path);
            } else if path.extension().is_some_and(|e| e == "md") {
                found.insert(path);
            }
        }
    }
    found
}

/// The targets of Markdown links in `text` that are files: no addresses, no places within a page.
fn links(text: &str) -> Vec<String> {
    let mut found = Vec::new();
    let mut code = false;
    for line in text.lines() {
        if line.trim_start().starts_with("```") {
            code = !code;
        }
        if code {
            continue;
        }
        for part in line.split("](").skip(1) {
            let target = part.split(')').next().unwrap_or_default();
            let file = target.split('#').next().unwrap_or_default();
            if !file.is_empty() && !file.contains("://") {
                found.push(file.to_owned());
            }
        }
    }
    found
}

/// `link` as seen from `page`, without `..`.
fn target(page: &Path, link: &str) -> PathBuf {
    let mut resolved = PathBuf::new();
    for component in page.parent().unwrap_or(Path::new("")).join(link).components() {
        match component {
            Component::ParentDir => assert!(resolved.pop(), "{link} leads out of the repository"),
            Component::CurDir => {}
            other => resolved.push(other),
        }
    }
    resolved
}

fn read(page: &Path) -> String {
    std::fs::read_to_string(root().join(page)).unwrap_or_else(|e| panic!("{}: {e}", page.display()))
}

#[test]
fn every_link_leads_to_a_file() {
    let mut seen = 0;
    for page in pages() {
        for link in links(&read(&page)) {
            seen += 1;
            let target = target(&page, &link);
            assert!(root().join(&target).exists(), "{}: {link} leads nowhere", page.display());
        }
    }
    assert!(seen > 20, "only {seen} links were found: the search is broken");
}

#[test]
fn every_page_of_the_book_is_in_its_summary() {
    let summary = Path::new("docs/SUMMARY.md");
    let listed: BTreeSet<PathBuf> =
        links(&read(summary)).iter().map(|link| target(summary, link)).collect();
    let there: BTreeSet<PathBuf> =
        pages().into_iter().filter(|page| page.starts_with("docs") && page != summary).collect();
    assert_eq!(listed, there);
}

#[test]
fn links_are_found_where_a_reader_sees_them() {
    let text = "see [a](x.md) and [b](y/z.md#part), [c](https://example.net), [d](#here)\n```\n[e](no.md)\n```\n[f](w.md)";
    assert_eq!(links(text), ["x.md", "y/z.md", "w.md"]);
    assert_eq!(
        target(Path::new("docs/guide/lab.md"), "../adr/README.md"),
        Path::new("docs/adr/README.md")
    );
}

/// The documents in the fenced YAML blocks of a page.
fn yaml_blocks(text: &str) -> Vec<String> {
    text.split("```yaml\n")
        .skip(1)
        .filter_map(|rest| Some(rest.split_once("```")?.0.into()))
        .collect()
}

#[test]
fn policies_of_the_guide_are_taken_by_a_speaker() {
    let blocks = yaml_blocks(&read(Path::new("docs/guide/policies.md")));
    assert!(blocks.len() >= 2, "the page has examples");
    let speaker = "apiVersion: cairn.network/v1alpha1\nkind: BGPConfiguration\n\
                   metadata: {name: default}\nspec: {asn: 65000, routerID: 192.0.2.1}\n---\n";
    for block in blocks {
        let text = format!("{speaker}{block}");
        if let Err(error) = cairn_agent::file::parse("policies.md", &text) {
            panic!("{error}\n{block}");
        }
    }
}
