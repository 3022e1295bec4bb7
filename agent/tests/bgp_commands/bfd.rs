//! An agent and a router's speaker, each with a `cairn bfd` beside it.

use cairn_lab::apiserver::PatchType;
use rustix::process::Signal;
use serde_json::json;

use crate::api::{Cluster, NODE};
use crate::ask::{text, until_established, until_peer};
use crate::site::{Daemon, Site, cairn, configuration, peer, until};

const TOR: &str = "192.0.2.2";

fn bfd(site: &Site, run_dir: &str) -> Daemon {
    let mut command = cairn(["bfd", "--run-dir"]);
    command.arg(site.path(run_dir));
    site.start(&format!("{run_dir}-bfd"), command)
}

fn until_bfd(site: &Site, state: &str) {
    until(&format!("BFD {state}"), || {
        let session = site.session("agent", "bgppeer/tor");
        (session["bfd"] == state).then_some(()).ok_or(site.status("agent"))
    });
}

/// BFD is switched on for a session that is up; the agent says when nobody runs it; a router that dies, as BFD
/// sees it, loses the session at once; and an agent that is killed takes up the same BFD sessions.
#[test]
fn an_agent_ends_a_session_whose_path_is_dead() {
    let site = Site::new(&[NODE, TOR]);
    let cluster = Cluster::new(&site);
    let object = json!({
        "apiVersion": "cairn.network/v1alpha1",
        "kind": "BGPPeer",
        "metadata": {"name": "tor"},
        "spec": {
            "address": TOR, "asn": 65201,
            "timers": {"holdTimeSecs": 90, "connectRetrySecs": 1},
        },
    });
    cluster.api.create("bgppeers.cairn.network", None, object).expect("created");
    let more = ", timers: {holdTimeSecs: 90}, bfd: {intervalMs: 300}";
    let to_node = peer("n1", NODE, 64512, TOR, more);
    let file = configuration(65201, TOR.parse().expect("an address"), &[to_node]);
    let _tor = site.speaker("tor", &site.write("tor.yaml", &file));
    let router = bfd(&site, "tor");
    let agent = cluster.agent(&site);
    until_established(&site, "agent", "tor");
    assert!(!site.status("agent").contains("BFD"), "{}", site.status("agent"));

    let bfd_on = json!({"spec": {"bfd": {"intervalMs": 300}}});
    let merge = PatchType::Merge;
    cluster.api.patch("bgppeers.cairn.network", None, "tor", merge, &bfd_on).expect("patched");
    site.until_status("agent", "problem: BFD is wanted, and `cairn bfd` does not answer");
    let node = bfd(&site, "agent");
    until_bfd(&site, "Up");
    let screen = site.status("agent");
    assert!(screen.contains(" BFD Up") && !screen.contains("problem: BFD"), "{screen}");
    let name = "bgpnodestatuses.cairn.network";
    until("the state in the API", || {
        let object = cluster.api.get(name, None, "n1").unwrap_or_default();
        let state = &object["spec"]["sessions"][0]["bfd"];
        (state == "Up").then_some(()).ok_or(object.to_string())
    });

    // The router's BFD goes, and TCP stays.
    drop(router);
    until_peer(&site, "agent", "tor", "was ended", |peer| {
        peer["lastError"]["text"].to_string().contains("BFD says that the path to the peer is dead")
    });
    until("the router is told", || {
        let errors = text(&site, "tor", &["errors", "n1"]);
        errors.contains("BFD down").then_some(()).ok_or(errors)
    });
    // BGP, which works, comes up again and is left alone.
    let again = until_established(&site, "agent", "tor");
    assert_eq!(again["establishedCount"], 2, "{again}");
    let router = bfd(&site, "tor");
    until_bfd(&site, "Up");

    // Another agent finds the sessions as they were.
    drop(agent);
    let _agent = cluster.agent(&site);
    until_established(&site, "agent", "tor");
    until_bfd(&site, "Up");
    let mut command = cairn(["bfd", "status", "-o", "json", "--run-dir"]);
    command.arg(site.path("agent"));
    let overview = site.run(command);
    let overview: serde_json::Value = serde_json::from_slice(&overview.stdout).expect("JSON");
    assert_eq!(overview["sessions"][0]["ups"], 2, "it was down once: {overview}");

    // The router's operator ends BFD by will: nothing happens to BGP.
    router.signal(Signal::TERM);
    until("BFD is not up", || {
        let session = site.session("agent", "bgppeer/tor");
        (session["bfd"] != "Up").then_some(()).ok_or(site.status("agent"))
    });
    // Longer than it takes until the silence afterwards is noticed.
    std::thread::sleep(std::time::Duration::from_secs(3));
    let session = until_established(&site, "agent", "tor");
    assert_eq!(session["establishedCount"], 1, "{session}\n{}", node.log());
}
