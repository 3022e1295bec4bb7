//! Pods of a site, whose agent has the run directory `agent`.

use std::path::Path;

use serde_json::Value;

use crate::runtime::Call;
use crate::site::{Site, until};

pub fn call(site: &Site, command: &str, container: &str, netns: impl AsRef<Path>) -> Call {
    Call::new(&site.path("agent/cni.sock"), command, container, netns)
}

/// Whether the plugin's program succeeded, and what it printed.
pub fn run(site: &Site, call: &Call) -> (bool, Value) {
    let output = site.run(call.program(&site.path("stdin.json")));
    let document = serde_json::from_slice(&output.stdout).unwrap_or_default();
    (output.status.success(), document)
}

/// The pod's address once ADD succeeds, which takes a first block.
pub fn until_attached(site: &Site, container: &str, netns: &Path) -> String {
    until("a pod with an address", || {
        let (success, document) = run(site, &call(site, "ADD", container, netns));
        let address = document["ips"][0]["address"].as_str();
        match (success, address) {
            (true, Some(address)) => Ok(address.to_owned()),
            _ => Err(document.to_string()),
        }
    })
}
