//! A whole Kubernetes cluster on this machine, to install Cairn on as its users do.
//!
//! ```text
//!  a machine of its own: namespaces in which everything ends with the test
//!  ┌────────────────────────────────────────────────────────────────────────────┐
//!  │ test, etcd, kube-apiserver, controllers, scheduler, a router               │
//!  │ 192.0.2.1 ──────────────── bridge ───────────────────┐                     │
//!  │      │                        │                      │                     │
//!  │ n1 192.0.2.11            n2 192.0.2.12          n3 192.0.2.13              │
//!  │ containerd, kubelet,     the same                the same                  │
//!  │ kube-proxy; their own                                                      │
//!  │ network, mounts, processes                                                 │
//!  └────────────────────────────────────────────────────────────────────────────┘
//! ```

mod cluster;
mod control;
mod flow;
mod machine;
mod node;
mod pods;
mod truth;

use std::fs;
use std::path::Path;

use serde_json::Value;

pub use cluster::Cluster;
pub use flow::{Counted, Flow, PACKETS_PER_SECOND, Ping};
pub use machine::on_its_own;
pub use node::Node;
pub use pods::Pod;
pub use truth::differences;

/// A JSON text; nothing for what is none.
fn text(value: &Value) -> String {
    value.as_str().unwrap_or_default().to_owned()
}

/// The last lines of each log in a directory.
fn tails(directory: &Path) -> String {
    let mut text = String::new();
    for entry in fs::read_dir(directory).into_iter().flatten().flatten() {
        let path = entry.path();
        if path.extension().is_some_and(|extension| extension == "log") {
            let octets = fs::read(&path).unwrap_or_default();
            let all = String::from_utf8_lossy(&octets);
            let lines: Vec<&str> = all.lines().collect();
            let last = lines.get(lines.len().saturating_sub(TAIL_LINES)..).unwrap_or_default();
            text += &format!("--- {}\n{}\n", path.display(), last.join("\n"));
        }
    }
    text
}

const TAIL_LINES: usize = 15;
