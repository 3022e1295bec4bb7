//! Asking a speaker.

use std::fs::File;
use std::path::PathBuf;
use std::process::{Child, Output, Stdio};

use serde_json::Value;

use crate::site::{Site, cairn, until};

/// `cairn bgp` with these words, for the daemon with this run directory.
pub fn bgp(site: &Site, run_dir: &str, words: &[&str]) -> Output {
    let mut command = cairn(["bgp", "--run-dir"]);
    command.arg(site.path(run_dir)).args(words);
    site.run(command)
}

/// What it prints for people.
pub fn text(site: &Site, run_dir: &str, words: &[&str]) -> String {
    let output = bgp(site, run_dir, words);
    let errors = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{words:?}: {errors}");
    String::from_utf8(output.stdout).expect("text")
}

/// What it prints for programs: one value a line.
pub fn json(site: &Site, run_dir: &str, words: &[&str]) -> Vec<Value> {
    let words = [words, &["-o", "json"]].concat();
    let lines = text(site, run_dir, &words);
    lines.lines().map(|line| serde_json::from_str(line).expect("JSON")).collect()
}

/// What it says when it refuses.
pub fn refused(site: &Site, run_dir: &str, words: &[&str]) -> String {
    let output = bgp(site, run_dir, words);
    assert!(output.stdout.is_empty(), "a refusal stands alone");
    crate::site::refusal(&output)
}

/// Waits until the only peer that `words` name is as wanted.
pub fn until_peer(
    site: &Site,
    run_dir: &str,
    peer: &str,
    what: &str,
    is: impl Fn(&Value) -> bool,
) -> Value {
    until(&format!("{peer} of {run_dir} {what}"), || {
        let output = bgp(site, run_dir, &["peers", peer, "-o", "json"]);
        let peer: Value = serde_json::from_slice(&output.stdout).unwrap_or_default();
        if is(&peer) { Ok(peer) } else { Err(peer.to_string()) }
    })
}

pub fn until_established(site: &Site, run_dir: &str, peer: &str) -> Value {
    until_peer(site, run_dir, peer, "is established", |peer| peer["state"] == "Established")
}

/// A `cairn bgp watch` that goes on, killed with the value.
pub struct Watch {
    child: Child,
    output: PathBuf,
}

impl Watch {
    pub fn start(site: &Site, run_dir: &str, words: &[&str]) -> Watch {
        let output = site.path("watch.out");
        let mut command = cairn(["bgp", "watch", "--run-dir"]);
        command.arg(site.path(run_dir)).args(words).stdin(Stdio::null());
        command.stdout(File::create(&output).expect("a file"));
        let child = site.netns.run(|| command.spawn().expect("a process")).expect("entered");
        Watch { child, output }
    }

    /// All that it has printed.
    pub fn text(&self) -> String {
        std::fs::read_to_string(&self.output).expect("the file")
    }

    /// Waits for a line with all of `parts`.
    pub fn until_line(&self, parts: &[&str]) -> String {
        until(&format!("a line with {parts:?}"), || {
            let lines = self.text();
            let found = lines.lines().find(|line| parts.iter().all(|part| line.contains(part)));
            found.map(str::to_owned).ok_or(lines)
        })
    }
}

impl Drop for Watch {
    fn drop(&mut self) {
        // One that has ended already is only collected.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}
