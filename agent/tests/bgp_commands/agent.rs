//! The same commands against an agent, whose peer has a password from a Secret.

use cairn_lab::apiserver::PatchType;
use rustix::process::Signal;
use serde_json::{Value, json};

use crate::api::{Cluster, NODE};
use crate::ask::{json, text, until_established, until_peer};
use crate::site::{Site, configuration, peer, until};

const TOR: &str = "192.0.2.2";

/// The router's file with the password of its session with the node.
fn router(password: &str) -> String {
    let more = ", passwordSecretRef: {name: bgp}";
    let to_node = peer("n1", NODE, 64512, TOR, more);
    configuration(65201, TOR.parse().expect("an address"), &[to_node])
        + "---\napiVersion: v1\nkind: Secret\nmetadata: {name: bgp}\n"
        + &format!("stringData: {{password: {password}}}\n")
}

#[test]
fn an_agent_is_asked_and_operated_like_a_speaker() {
    let site = Site::new(&[NODE, TOR]);
    let cluster = Cluster::new(&site);
    let create = |resource: &str, namespace: Option<&str>, object: Value| {
        cluster.api.create(resource, namespace, object).expect("created");
    };
    let secret = |password: &str| {
        json!({
            "apiVersion": "v1", "kind": "Secret", "metadata": {"name": "tor"},
            "stringData": {"md5": password, "unused": "never-read"},
        })
    };
    create("secrets", Some("cairn-system"), secret("first-password"));
    create(
        "bgppeers.cairn.network",
        None,
        json!({
            "apiVersion": "cairn.network/v1alpha1",
            "kind": "BGPPeer",
            "metadata": {"name": "tor"},
            "spec": {
                "address": TOR, "asn": 65201,
                "timers": {"holdTimeSecs": 9, "connectRetrySecs": 1},
                "passwordSecretRef": {"name": "tor", "key": "md5"},
            },
        }),
    );
    let file = site.write("tor.yaml", &router("first-password"));
    let tor = site.speaker("tor", &file);
    let mut agent = cluster.agent(&site);
    let first = until_established(&site, "agent", "tor");
    assert_eq!(first["name"], "bgppeer/tor");
    assert_eq!(json(&site, "agent", &["peers", TOR])[0]["name"], "bgppeer/tor");

    // Both sides change their password: the session goes on.
    let replace = |password: &str| {
        cluster.api.delete("secrets", Some("cairn-system"), "tor").expect("deleted");
        create("secrets", Some("cairn-system"), secret(password));
    };
    site.write("tor.yaml", &router("second-password"));
    replace("second-password");
    tor.signal(Signal::HUP);
    tor.until_log("read again");
    // One alone does: it is over, which shows that the password counts.
    let patch = json!({"data": {"md5": "dGhpcmQtcGFzc3dvcmQ="}});
    let merge = PatchType::Merge;
    cluster.api.patch("secrets", Some("cairn-system"), "tor", merge, &patch).expect("patched");
    until_peer(&site, "agent", "tor", "has no session", |p| p["state"] != "Established");
    site.write("tor.yaml", &router("third-password"));
    tor.signal(Signal::HUP);
    let again = until_established(&site, "agent", "tor");
    assert_eq!(again["establishedCount"], 2, "it ended once: {again}");

    // Disabled over a restart of the agent, and shown in the API.
    let done = text(&site, "agent", &["disable", "tor"]);
    assert!(done.starts_with("bgppeer/tor: disabled"), "{done}");
    let shown = || {
        until("the node's BGPNodeStatus", || {
            let name = "bgpnodestatuses.cairn.network";
            let object = cluster.api.get(name, None, "n1").unwrap_or_default();
            let state = &object["spec"]["sessions"][0]["state"];
            let problem = "bgppeer/tor is disabled by an operator";
            let told = object["spec"]["problems"].to_string().contains(problem);
            (state == "Disabled" && told).then_some(()).ok_or(object.to_string())
        });
        let status = site.until_status("agent", "problem: bgppeer/tor is disabled");
        assert!(status.contains(" Disabled "), "{status}");
    };
    shown();
    drop(agent);
    agent = cluster.agent(&site);
    until_peer(&site, "agent", "tor", "is disabled", |p| p["disabled"] == true);
    shown();
    text(&site, "agent", &["enable", "bgppeer/tor"]);
    until_established(&site, "agent", "tor");

    for daemon in [&agent, &tor] {
        let log = daemon.log();
        assert!(!log.contains("-password") && !log.contains("never-read"), "{log}");
    }
    let answers = text(&site, "agent", &["peers", "tor", "-o", "json"]) + &site.status("agent");
    assert!(!answers.contains("-password"), "{answers}");
}
