//! A router in a namespace of its own, so that what it announces can be routed.

use std::process::Command;

use serde_json::{Value, json};

use crate::site::{Site, until};

/// The router's address.
pub const TOR: &str = "192.0.2.2";

/// The file of a speaker at `own` with one peer of the same AS, to which it announces `cidrs`.
pub fn router(own: &str, peer: &str, cidrs: &str) -> String {
    format!(
        "apiVersion: cairn.network/v1alpha1\nkind: BGPConfiguration\nmetadata: {{name: default}}\n\
         spec: {{asn: 64512, routerID: {own}, listenAddresses: [{own}], \
         timers: {{holdTimeSecs: 3, connectRetrySecs: 1}}, topology: Disabled}}\n---\n\
         apiVersion: cairn.network/v1alpha1\nkind: BGPPeer\nmetadata: {{name: other}}\n\
         spec: {{address: {peer}, asn: 64512, sourceAddress: {own}}}\n---\n\
         apiVersion: cairn.network/v1alpha1\nkind: BGPAdvertisement\nmetadata: {{name: own}}\n\
         spec: {{cidrs: [{cidrs}]}}\n"
    )
}

/// The router as a peer of an agent.
pub fn tor() -> Value {
    json!({
        "apiVersion": "cairn.network/v1alpha1",
        "kind": "BGPPeer",
        "metadata": {"name": "tor"},
        "spec": {
            "address": TOR, "asn": 64512, "timers": {"holdTimeSecs": 3, "connectRetrySecs": 1},
        },
    })
}

/// Connects the uplinks of both.
pub fn join(one: &Site, other: &Site) {
    sh(one, &format!("ip link add wire type veth peer name wire netns {}", other.name));
    for site in [one, other] {
        sh(site, "ip link set wire master uplink; ip link set wire up");
    }
}

/// Waits until a route to the router is in the kernel.
pub fn until_route(site: &Site, prefix: &str) {
    until(&format!("{prefix} in the kernel"), || {
        let mut command = Command::new("ip");
        command.args(["route", "show", prefix]);
        let output = String::from_utf8(site.run(command).stdout).expect("text");
        if output.contains(TOR) { Ok(()) } else { Err(format!("only {output:?}")) }
    });
}

/// Runs a shell command, which must succeed.
pub fn sh(site: &Site, script: &str) {
    let mut command = Command::new("sh");
    command.args(["-ec", script]);
    let output = site.run(command);
    assert!(output.status.success(), "{script}: {}", String::from_utf8_lossy(&output.stderr));
}
