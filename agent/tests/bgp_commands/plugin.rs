//! What a container runtime asks of the node's agent.

use std::path::Path;
use std::thread::JoinHandle;

use cairn_cni::plugin::{self, Outcome, Patience};
use serde_json::json;

use crate::site::Site;

/// Runs the plugin's code.
pub fn call(site: &Site, command: &str, container: &str, netns: &Path) -> Outcome {
    run(&site.path("agent/cni.sock"), command, container, netns)
}

/// An ADD on a thread of its own.
pub fn spawn_add(site: &Site, container: &str, netns: &Path) -> JoinHandle<Outcome> {
    let socket = site.path("agent/cni.sock");
    let (container, netns) = (container.to_owned(), netns.to_owned());
    std::thread::spawn(move || run(&socket, "ADD", &container, &netns))
}

fn run(socket: &Path, command: &str, container: &str, netns: &Path) -> Outcome {
    let variables = [
        ("CNI_COMMAND", command.to_owned()),
        ("CNI_CONTAINERID", container.to_owned()),
        ("CNI_NETNS", netns.display().to_string()),
        ("CNI_IFNAME", "eth0".to_owned()),
        ("CNI_ARGS", format!("K8S_POD_NAMESPACE=default;K8S_POD_NAME={container}")),
    ];
    let config = json!({
        "cniVersion": "1.1.0",
        "name": "cairn",
        "type": "cairn-cni",
        "socket": socket,
        "runtimeConfig": {"io.kubernetes.cri.pod-annotations": {}},
    });
    let value =
        |name: &str| variables.iter().find(|(known, _)| *known == name).map(|(_, v)| v.clone());
    plugin::run(value, config.to_string().as_bytes(), Patience::default())
}

/// The code and the sentence of a refusal.
pub fn refusal(outcome: &Outcome) -> (u64, String) {
    assert!(!outcome.success, "{outcome:?}");
    let error = outcome.output.as_ref().expect("an error");
    let text = error["msg"].as_str().expect("a sentence");
    (error["code"].as_u64().expect("a number"), text.to_owned())
}
