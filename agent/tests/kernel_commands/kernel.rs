//! Asking about the kernel.

use std::process::{Command, Output};

use serde_json::Value;

use crate::site::{Site, cairn, until};

/// `cairn kernel` with these words, for the daemon with the run directory `agent`.
pub fn command(site: &Site, words: &[&str]) -> Command {
    let mut command = cairn(["kernel", "--run-dir"]);
    command.arg(site.path("agent")).args(words);
    command
}

pub fn kernel(site: &Site, words: &[&str]) -> Output {
    site.run(command(site, words))
}

/// A shell in the namespace, which must succeed.
pub fn sh(site: &Site, line: &str) -> String {
    let mut command = Command::new("sh");
    command.args(["-ec", line]);
    let output = site.run(command);
    let errors = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{line}: {errors}");
    String::from_utf8(output.stdout).expect("text")
}

/// What `routes` prints.
pub fn routes(site: &Site, words: &[&str]) -> String {
    let output = kernel(site, &[&["routes"], words].concat());
    let errors = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{errors}");
    String::from_utf8(output.stdout).expect("text")
}

/// The row of a prefix that is as wanted, once there is one; any prefix if it is empty.
pub fn row(site: &Site, prefix: &str, is: impl Fn(&Value) -> bool) -> Value {
    until(&format!("a row of {prefix:?}"), || {
        let output = kernel(site, &["routes", "-o", "json"]);
        let text = String::from_utf8(output.stdout).expect("text");
        let rows = text.lines().map(|line| serde_json::from_str::<Value>(line).expect("JSON"));
        let meant = |row: &Value| (prefix.is_empty() || row["prefix"] == prefix) && is(row);
        let found = rows.into_iter().find(meant);
        found.ok_or_else(|| text + &String::from_utf8_lossy(&output.stderr))
    })
}

/// The exit code of `diff`, and what it prints.
pub fn diff(site: &Site, words: &[&str]) -> (Option<i32>, String) {
    let output = kernel(site, &[&["diff"], words].concat());
    let text = String::from_utf8(output.stdout).expect("text");
    (output.status.code(), text + &String::from_utf8_lossy(&output.stderr))
}

/// What `diff` finds.
pub fn differences(site: &Site) -> Vec<Value> {
    let output = kernel(site, &["diff", "-o", "json"]);
    let text = String::from_utf8(output.stdout).expect("text");
    text.lines().map(|line| serde_json::from_str(line).expect("JSON")).collect()
}

/// Waits until nothing differs.
pub fn in_order(site: &Site) {
    until("no difference", || match diff(site, &[]) {
        (Some(0), text) => {
            assert_eq!(text, "the kernel holds what is wanted\n");
            Ok(())
        }
        (code, text) => Err(format!("{code:?}: {text}")),
    });
}
