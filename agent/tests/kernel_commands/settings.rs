//! Protocol number, metric and table of routes, and objects that they name, changed while an agent runs and while none does.

use std::fs::File;
use std::process::{Child, Command, Stdio};

use cairn_lab::apiserver::PatchType;
use serde_json::{Value, json};

use crate::api::{Cluster, NODE};
use crate::kernel::{in_order, row, sh};
use crate::pods::until_attached;
use crate::raw_peer::{RawPeer, UPDATE};
use crate::site::{Site, cairn, until};
use crate::{TOR, announcement, ip};

/// What the kernel tells of routes, one line each, while the value lives.
struct Watch<'a> {
    site: &'a Site,
    child: Child,
}

impl Watch<'_> {
    fn start(site: &Site) -> Watch<'_> {
        let mut command = Command::new("ip");
        command.args(["-N", "-o", "monitor", "route"]).stdin(Stdio::null());
        command.stdout(File::create(site.path("monitor")).expect("a file"));
        let child = site.netns.run(|| command.spawn().expect("a process")).expect("entered");
        let watch = Watch { site, child };
        until("the monitor", || {
            sh(site, "ip route add blackhole 203.0.113.9 && ip route del blackhole 203.0.113.9");
            let text = watch.text();
            if text.contains("203.0.113.9") { Ok(()) } else { Err(text) }
        });
        watch
    }

    fn text(&self) -> String {
        std::fs::read_to_string(self.site.path("monitor")).expect("the file")
    }

    /// The lines about a prefix.
    fn of(&self, prefix: &str) -> Vec<String> {
        let text = self.text();
        text.lines().filter(|line| line.contains(prefix)).map(str::to_owned).collect()
    }
}

impl Drop for Watch<'_> {
    fn drop(&mut self) {
        // One that has ended already is only collected.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// The routes of a table in the words of `ip`, with numbers for types: 6 is a blackhole, 9 throws.
fn table(site: &Site, table: &str) -> String {
    sh(site, &format!("ip -N route show table {table} 2>/dev/null || true"))
}

fn until_table(site: &Site, name: &str, what: &str, is: impl Fn(&str) -> bool) -> String {
    until(what, || {
        let routes = table(site, name);
        if is(&routes) { Ok(routes) } else { Err(routes) }
    })
}

fn configure(cluster: &Cluster, routes: &Value) {
    let patch = json!({"spec": {"routes": routes}});
    let merge = PatchType::Merge;
    cluster
        .api
        .patch("nodeconfigurations.cairn.network", None, "default", merge, &patch)
        .expect("patched");
}

/// Brings up the session and announces 10.9.0.0/16.
fn announce(site: &Site) -> RawPeer {
    let mut tor = RawPeer::establish(site, ip(TOR), 65201, ip(NODE));
    tor.send(UPDATE, &announcement(65201, 9));
    tor
}

#[test]
fn routes_follow_their_settings_and_others_keep_theirs() {
    let site = Site::new(&[NODE, TOR]);
    let cluster = Cluster::new(&site);
    cluster.pool("default", "10.244.0.0/20", 26);
    let create = |resource: &str, kind: &str, name: &str, spec: Value| {
        let object = json!({
            "apiVersion": "cairn.network/v1alpha1", "kind": kind, "metadata": {"name": name},
            "spec": spec,
        });
        cluster.api.create(resource, None, object).expect("created");
    };
    let all = json!({"rules": [{"action": "Accept"}]});
    create("bgppolicies.cairn.network", "BGPPolicy", "all", all);
    let peer = json!({"address": TOR, "asn": 65201, "importPolicies": ["all"]});
    create("bgppeers.cairn.network", "BGPPeer", "tor", peer);
    create("nodeconfigurations.cairn.network", "NodeConfiguration", "default", json!({}));
    sh(
        &site,
        "ip route add 10.20.0.0/16 via 192.0.2.50 proto 150
         ip route add 10.21.0.0/16 via 192.0.2.50 proto static metric 198",
    );
    let agent = cluster.agent(&site);
    let address = until_attached(&site, "c1", &site.pod("p0"));
    let tor = announce(&site);
    row(&site, "10.9.0.0/16", |row| row["state"] == "installed" && row["protocol"] == 222);
    in_order(&site);

    // A number that somebody has is not taken, until he has it no more.
    configure(&cluster, &json!({"protocol": 150}));
    site.until_status("agent", "routes keep the protocol number 222: another program");
    assert!(table(&site, "main").contains("10.9.0.0/16 via 192.0.2.50 dev uplink proto 222"));
    sh(&site, "ip route del 10.20.0.0/16 proto 150");
    let watch = Watch::start(&site);
    until_table(&site, "main", "routes with 150 only", |routes| {
        routes.contains("10.9.0.0/16 via 192.0.2.50 dev uplink proto 150 metric 198")
            && !routes.contains("proto 222")
    });
    in_order(&site);
    let told = watch.of("10.9.0.0/16");
    assert!(told.iter().all(|line| !line.contains("Deleted")), "it is replaced: {told:?}");
    without_problem(&site);
    // The former number is given up, so that it is others' from now on.
    until("the former number is struck out", || {
        let text = std::fs::read_to_string(site.path("agent/routes.json")).unwrap_or_default();
        if text.contains("[150]") { Ok(()) } else { Err(text) }
    });
    sh(&site, "ip route add 10.22.0.0/16 via 192.0.2.50 proto 222 metric 198");

    configure(&cluster, &json!({"metric": 300}));
    until_table(&site, "main", "metric 300 only", |routes| {
        routes.contains("10.9.0.0/16 via 192.0.2.50 dev uplink proto 150 metric 300")
            && !routes.contains("proto 150 metric 198")
    });
    let told = watch.of("10.9.0.0/16");
    let position = |of: &dyn Fn(&String) -> bool| told.iter().position(of).expect("told");
    let added = position(&|line| !line.contains("Deleted") && line.contains("metric 300"));
    let removed = position(&|line| line.contains("Deleted") && line.contains("metric 198"));
    assert!(added < removed, "the new one comes first: {told:?}");

    // Another table is of use once a rule leads to it.
    configure(&cluster, &json!({"table": 77}));
    site.until_status("agent", "no V4 packet is routed by table 77");
    let block = row(&site, "", |row| row["origin"] == "ownBlock" && row["table"] == 254);
    let block = block["prefix"].as_str().expect("a prefix").to_owned();
    until_table(&site, "77", "routes in 77", |routes| {
        routes.contains("10.9.0.0/16 via 192.0.2.50 dev uplink proto 150 metric 300")
            && routes.contains(&format!("9 {block} proto 150 metric 4198"))
    });
    let main = until_table(&site, "main", "none of them in main", |routes| {
        !routes.contains("10.9.0.0/16")
    });
    assert!(main.contains(&format!("6 {block} proto 150 metric 4198")), "{main}");
    sh(&site, "ip rule add priority 1000 lookup 77; ip -6 rule add priority 1000 lookup 77");
    without_problem(&site);
    let get = |address: &str| sh(&site, &format!("ip -N route get {address}"));
    assert!(get("10.9.0.1").contains("via 192.0.2.50 dev uplink table 77"));
    // A learned network around the block does not draw its pods away.
    sh(&site, "ip route add 10.244.0.0/16 via 192.0.2.50 table 77 proto static");
    assert!(get(&address).contains("dev cairn"), "{}", get(&address));
    let unused = sh(&site, &format!("ip route get {} 2>&1 || true", unused(&block, &address)));
    assert!(unused.contains("Invalid argument"), "held by the blackhole: {unused}");
    in_order(&site);

    // A setting of the kernel's that nobody asked for stays.
    let compat = || sh(&site, "cat /proc/sys/net/ipv4/nexthop_compat_mode");
    assert_eq!(compat().trim(), "1");
    let patch = json!({"spec": {"nexthopCompatMode": "Off"}});
    let merge = PatchType::Merge;
    let name = "nodeconfigurations.cairn.network";
    cluster.api.patch(name, None, "default", merge, &patch).expect("patched");
    until("the setting", || {
        let value = compat();
        if value.trim() == "0" { Ok(()) } else { Err(value) }
    });

    // Objects on uplinks, which keep their protocol number.
    configure(&cluster, &json!({"nextHopObjects": "Everywhere"}));
    until_table(&site, "77", "a route that names an object", |routes| {
        routes.contains("10.9.0.0/16 nhid 1128398848 proto 150 metric 300")
    });
    let told = watch.of("10.9.0.0/16");
    let removed = told.iter().filter(|line| line.contains("Deleted")).count();
    assert_eq!(removed, 2, "by another metric and another table alone: {told:?}");
    let nine = row(&site, "10.9.0.0/16", |row| row["state"] == "installed");
    assert_eq!(nine["to"], "nhid 1128398848 via 192.0.2.50 dev uplink", "{nine}");
    in_order(&site);
    sh(&site, "ip nexthop add id 1128398900 via 192.0.2.77 dev uplink proto 222");
    let left = until("one that nobody wants goes", || {
        let objects = sh(&site, "ip -N nexthop show proto 222");
        if objects.contains("1128398900") { Err(objects) } else { Ok(objects) }
    });
    assert_eq!(left.lines().count(), 1, "{left}");
    in_order(&site);

    // While no agent runs.
    drop((agent, tor));
    configure(&cluster, &json!({"protocol": 151, "table": 254, "nextHopObjects": "TunnelsOnly"}));
    let agent = cluster.agent(&site);
    let tor = announce(&site);
    until_table(&site, "main", "routes with 151", |routes| {
        routes.contains("10.9.0.0/16 via 192.0.2.50 dev uplink proto 151 metric 300")
            && !routes.contains("proto 150")
    });
    until_table(&site, "77", "none of ours in 77", |routes| !routes.contains("proto 15"));
    until("no object of the agent before", || {
        let objects = sh(&site, "ip nexthop");
        if objects.is_empty() { Ok(()) } else { Err(objects) }
    });
    in_order(&site);
    let others = table(&site, "main") + &table(&site, "77");
    for route in [
        "10.21.0.0/16 via 192.0.2.50 dev uplink proto 4 metric 198",
        "10.22.0.0/16 via 192.0.2.50 dev uplink proto 222 metric 198",
        "10.244.0.0/16 via 192.0.2.50 dev uplink proto 4",
    ] {
        assert!(others.contains(route), "{route} is somebody else's: {others}");
    }

    // What cleans up finds the number by itself.
    drop((agent, tor));
    let mut command = cairn(["cleanup", "--run-dir"]);
    command.arg(site.path("agent")).arg("--cni-conf").arg(site.path("none"));
    let output = site.run(command);
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    assert!(text.contains("removed route 10.9.0.0/16 metric 300 proto 151"), "{text}");
    assert!(!table(&site, "main").contains("proto 151"));
    assert!(table(&site, "main").contains("10.22.0.0/16"), "the default number is not ours here");
}

fn without_problem(site: &Site) {
    until("no problem", || {
        let screen = site.status("agent");
        if screen.contains("problem") { Err(screen) } else { Ok(()) }
    });
}

/// An address of a block that no pod has.
fn unused(block: &str, address: &str) -> String {
    let base = block.split('/').next().unwrap_or_default();
    let (front, last) = base.rsplit_once('.').expect("IPv4");
    let last: u8 = last.parse().expect("a number");
    let candidate = format!("{front}.{}", last + 40);
    assert!(!address.starts_with(&candidate), "{address}");
    candidate
}
