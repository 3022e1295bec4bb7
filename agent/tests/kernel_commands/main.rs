//! `cairn kernel` end to end: the real agent and speaker in network namespaces, asked by its own
//! commands.
//!
//! Needs root; `cairn-cni` must lie beside `cairn`, where `make test` builds it.

#[path = "../bad_input/api.rs"]
#[allow(dead_code, reason = "shared with the tests of bad input")]
mod api;
#[path = "../bad_input/pods.rs"]
#[allow(dead_code, reason = "shared with the tests of bad input")]
mod pods;
#[path = "../bad_input/raw_peer.rs"]
#[allow(dead_code, reason = "shared with the tests of bad input")]
mod raw_peer;
#[path = "../runtime/mod.rs"]
mod runtime;
#[path = "../bad_input/site.rs"]
#[allow(dead_code, reason = "shared with the tests of bad input")]
mod site;

mod kernel;
mod settings;

use std::collections::BTreeSet;
use std::net::Ipv4Addr;

use serde_json::{Value, json};

use api::{Cluster, NODE};
use kernel::{diff, differences, in_order, kernel, routes, row, sh};
use pods::until_attached;
use raw_peer::{RawPeer, UPDATE};
use site::{Site, configuration, peer, until};

const TOR: &str = "192.0.2.2";
/// A router on the link of which this host is none.
const ROUTER: Ipv4Addr = Ipv4Addr::new(192, 0, 2, 50);
const ALL: &str = "---\napiVersion: cairn.network/v1alpha1\nkind: BGPPolicy\n\
                   metadata: {name: all}\nspec: {rules: [{action: Accept}]}\n";

fn ip(text: &str) -> Ipv4Addr {
    text.parse().expect("an address")
}

/// An UPDATE of AS `asn` that announces 10.`second`.0.0/16.
fn announcement(asn: u16, second: u8) -> Vec<u8> {
    let mut body = raw_peer::announcement(asn, ROUTER, 0);
    *body.last_mut().expect("a prefix") = second;
    body
}

/// An UPDATE of AS `asn` that announces 10.`second`.0.0/24 and so on, `count` of them.
fn many(asn: u16, second: u8, count: usize) -> Vec<u8> {
    let mut body = raw_peer::announcement(asn, ROUTER, 0);
    body.truncate(body.len() - 3);
    for third in (0..=u8::MAX).take(count) {
        body.extend([24, 10, second, third]);
    }
    body
}

#[test]
fn a_speakers_routes_are_shown_with_who_announced_them_and_what_is_wrong() {
    let site = Site::new(&[NODE, TOR]);
    let more = ", importPolicies: [all]";
    let file = site.write(
        "a.yaml",
        &(configuration(65001, ip(NODE).into(), &[peer("tor", TOR, 65201, NODE, more)]) + ALL),
    );
    // Another program has this one already.
    sh(&site, "ip route add 10.7.0.0/16 via 192.0.2.50 metric 198 proto static");
    let mut command = site::cairn(["speaker", "--fib", "-f"]);
    command.arg(&file).arg("--run-dir").arg(site.path("agent"));

    // Nobody to ask.
    let output = kernel(&site, &["routes"]);
    let text = site::refusal(&output);
    assert!(
        text.contains("no agent or speaker answers on") && text.contains("proto 222"),
        "{text}"
    );
    let output = kernel(&site, &["diff"]);
    assert_eq!(output.status.code(), Some(2));
    assert!(output.stdout.is_empty());
    assert!(String::from_utf8_lossy(&output.stderr).contains("is it running"));

    let daemon = site.start("speaker", command);
    let mut tor = RawPeer::establish(&site, ip(TOR), 65201, ip(NODE));
    tor.send(UPDATE, &announcement(65201, 9));
    let nine = row(&site, "10.9.0.0/16", |row| row["state"] == "installed");
    assert_eq!(nine["to"], "via 192.0.2.50 dev uplink", "{nine}");
    assert_eq!(nine["origin"]["bgp"]["paths"][0]["peer"], "tor", "{nine}");
    assert_eq!((&nine["metric"], &nine["table"]), (&json!(198), &json!(254)));
    in_order(&site);

    tor.send(UPDATE, &announcement(65201, 7));
    let seven = row(&site, "10.7.0.0/16", |row| !row["failure"].is_null());
    assert_eq!((&seven["state"], &seven["failure"]["errno"]), (&json!("missing"), &json!(17)));
    let (code, text) = diff(&site, &[]);
    assert_eq!(code, Some(1), "{text}");
    assert!(text.contains("missing  route 10.7.0.0/16 metric 198"), "{text}");
    assert!(text.contains("is in its place and is left alone"), "{text}");
    assert!(!text.contains("10.9.0.0"), "{text}");
    let screen = routes(&site, &[]);
    assert!(screen.contains("! 10.7.0.0/16 ") && screen.contains("  10.9.0.0/16 "), "{screen}");

    // Somewhere else the kernel holds nothing of it, which is no difference.
    let elsewhere = Site::new(&[]);
    let output = elsewhere.run(kernel::command(&site, &["diff"]));
    assert_eq!(output.status.code(), Some(2));
    assert!(String::from_utf8_lossy(&output.stderr).contains("another network namespace"));

    sh(&site, "ip route del 10.7.0.0/16 proto static");
    in_order(&site);

    // More than the daemon tells at once, and exactly as many as it tells at once.
    for (second, count) in [(100, 254), (101, 256), (102, 256), (103, 7)] {
        tor.send(UPDATE, &many(65201, second, count));
        let wanted: usize = until("all routes", || {
            let all = sh(&site, "ip route show proto 222 | grep -c uplink").trim().to_owned();
            let told = routes(&site, &["-o", "json"]);
            let prefixes: BTreeSet<&str> =
                told.lines().filter_map(|line| line.split('"').nth(3)).collect();
            let lines = told.lines().count();
            let complete = all == lines.to_string() && lines == prefixes.len();
            let last = format!("\"10.{second}.{}.0/24\"", count - 1);
            if complete && told.contains(&last) { Ok(lines) } else { Err(format!("{all} {lines}")) }
        });
        assert!(wanted > count, "{wanted}");
        in_order(&site);
    }
    drop(daemon);

    let mut command = site::cairn(["speaker", "-f"]);
    command.arg(&file).arg("--run-dir").arg(site.path("agent"));
    let _daemon = site.start("speaker", command);
    let text = until("a refusal", || {
        let output = kernel(&site, &["routes"]);
        let text = String::from_utf8_lossy(&output.stderr).into_owned();
        if text.contains("--fib") { Ok(text) } else { Err(text) }
    });
    assert!(text.contains("writes no routes"), "{text}");
}

#[test]
fn an_agents_blocks_pods_and_tunnels_are_shown_and_compared() {
    let site = Site::new(&[NODE, TOR]);
    let cluster = Cluster::new(&site);
    let create = |resource: &str, object: Value| {
        cluster.api.create(resource, None, object).expect("created");
    };
    let kind = |kind: &str, name: &str, spec: Value| {
        json!({
            "apiVersion": "cairn.network/v1alpha1", "kind": kind, "metadata": {"name": name},
            "spec": spec,
        })
    };
    let pool = json!({"cidr": "10.244.0.0/20", "blockSize": 26, "encapsulation": "VXLAN"});
    create("ippools.cairn.network", kind("IPPool", "default", pool));
    let spec = json!({"address": TOR, "asn": 65201, "timers": {"holdTimeSecs": 90}});
    create("bgppeers.cairn.network", kind("BGPPeer", "tor", spec));
    let spec = json!({
        "addresses": ["192.0.2.60"], "asn": 64512, "routerID": "192.0.2.60",
        "tunnels": ["VXLAN"], "blocks": ["10.0.0.0/16"],
    });
    create("bgpnodes.cairn.network", kind("BGPNode", "n2", spec));
    // A pool without an encapsulation would need none of it.
    let spec = json!({"cidr": "10.0.0.0/16", "encapsulation": "VXLAN"});
    create("ippools.cairn.network", kind("IPPool", "other", spec));
    // Something that stands in the way of the tunnel.
    sh(&site, "ip link add cairn.vxlan type bridge");

    let _agent = cluster.agent(&site);
    let address = until_attached(&site, "c1", &site.pod("p0"));
    let block = row(&site, "", |row| row["origin"] == "ownBlock");
    assert_eq!((&block["to"], &block["metric"]), (&json!("blackhole"), &json!(4198)));
    let pod = row(&site, &address, |row| row["state"] == "installed");
    assert_eq!(pod["origin"]["pod"]["container"], "c1", "{pod}");

    let found = until("the device in the way", || {
        let found = differences(&site);
        let device = found.iter().find(|finding| finding["what"] == "device").cloned();
        device.ok_or_else(|| format!("{found:?}"))
    });
    assert_eq!((&found["state"], &found["name"]), (&json!("differs"), &json!("cairn.vxlan")));
    assert!(found["wanted"].as_str().is_some_and(|text| text.contains("local 192.0.2.1")));
    let present = found["present"].as_str().expect("a text");
    assert!(present.contains("bridge") && present.contains("without Cairn's alias"), "{present}");
    sh(&site, "ip link delete cairn.vxlan");
    in_order(&site);

    let mut tor = RawPeer::establish(&site, ip(TOR), 65201, ip(NODE));
    tor.send(UPDATE, &announcement(65201, 0));
    let through = row(&site, "10.0.0.0/16", |row| row["state"] == "installed");
    let tunnel = &through["origin"]["bgp"]["tunnel"];
    assert_eq!(tunnel, &json!({"kind": "VXLAN", "node": "n2"}), "{through}");
    let to = through["to"].as_str().expect("a text");
    assert!(to.starts_with("nhid 1128333312 via 192.0.2.60 dev cairn.vxlan onlink src"), "{to}");
    in_order(&site);
    let screen = routes(&site, &[]);
    assert!(screen.contains("bgppeer/tor; VXLAN to node n2"), "{screen}");
    assert!(screen.contains("own block\n") && screen.contains("container c1\n"), "{screen}");

    cluster.api.delete("bgpnodes.cairn.network", None, "n2").expect("deleted");
    drop(tor);
    until("the route is gone", || {
        let all = routes(&site, &["-o", "json"]);
        if all.contains("10.0.0.0/16") { Err(all) } else { Ok(()) }
    });
    in_order(&site);
}
