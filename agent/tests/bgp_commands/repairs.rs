//! What others do to routes and packet filter is put back, counted and shown.

use serde_json::Value;

use crate::api::{Cluster, NODE};
use crate::routed::{TOR, join, router, sh, tor, until_route};
use crate::site::{Site, until};

const PREFIX: &str = "203.0.113.0/26";
const REMOVE: &str = "ip route del 203.0.113.0/26 proto 222 metric 198";

#[test]
fn what_others_changed_is_counted_in_the_status_and_in_the_api() {
    let (site, far) = (Site::new(&[NODE]), Site::new(&[TOR]));
    join(&site, &far);
    let cluster = Cluster::new(&site);
    cluster.api.create("bgppeers.cairn.network", None, tor()).expect("created");
    let _tor = far.speaker("tor", &far.write("tor.yaml", &router(TOR, NODE, PREFIX)));
    let _agent = cluster.agent(&site);
    until_route(&site, PREFIX);
    until("the packet filter", || {
        let mut nft = std::process::Command::new("nft");
        nft.args(["list", "table", "inet", "cairn"]);
        let output = site.run(nft);
        if output.status.success() { Ok(()) } else { Err(format!("{output:?}")) }
    });
    let screen = site.until_status("agent", "routes installed 1 ");
    assert!(!screen.contains("changed by others"), "nobody did anything: {screen}");

    sh(&site, REMOVE);
    site.until_status(
        "agent",
        "changed by others and put back: routes 1 tunnels 0 packet filter 0",
    );
    until_route(&site, PREFIX);
    let in_api = |count: &str| -> Value {
        let object = cluster.api.get("bgpnodestatuses.cairn.network", None, "n1");
        object.unwrap_or_default()["spec"]["repairs"][count].clone()
    };
    until("the count in the API", || match in_api("routes") {
        count if count == 1 => Ok(()),
        count => Err(count),
    });
    sh(&site, "nft delete table inet cairn");
    let is_counted = |report: &Value| report["repairs"]["packetFilter"].as_u64() > Some(0);
    until("the packet filter's count", || {
        let report = site.report("agent");
        if is_counted(&report) { Ok(()) } else { Err(report) }
    });
    assert_eq!(in_api("packetFilter"), 0, "no write for a count alone so soon after the last");
}

#[test]
fn a_speaker_says_how_often_another_program_was_at_work() {
    let (site, far) = (Site::new(&[NODE]), Site::new(&[TOR]));
    join(&site, &far);
    let _tor = far.speaker("tor", &far.write("tor.yaml", &router(TOR, NODE, PREFIX)));
    let mut command = crate::site::cairn(["speaker", "--fib", "-f"]);
    command.arg(site.write("near.yaml", &router(NODE, TOR, "198.51.100.0/24")));
    command.arg("--run-dir").arg(site.path("near"));
    let near = site.start("near", command);
    for round in 1..=10 {
        until_route(&site, PREFIX);
        sh(&site, REMOVE);
        site.until_status("near", &format!("changed by others and put back: routes {round} "));
    }
    near.until_log("a route was changed by somebody else: repairing");
}
