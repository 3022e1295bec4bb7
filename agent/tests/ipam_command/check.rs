//! What is found, and how it is told.

use std::collections::BTreeSet;

use serde_json::{Value, json};

use crate::api::NODE;
use crate::objects::{Said, Scene};
use crate::site::{configuration, peer, until};

fn check(scene: &Scene) -> Said {
    scene.run(&["check", "--settle-secs", "0"])
}

fn kinds(answer: &Value) -> BTreeSet<String> {
    let findings = answer["findings"].as_array().expect("findings");
    findings.iter().map(|finding| finding["kind"].as_str().expect("a kind").to_owned()).collect()
}

#[test]
fn a_cluster_in_order_ends_with_zero() {
    let scene = Scene::new();
    scene.agent("n1", 5);
    scene.block("10.1.0.0/26", "n1", &[("10.1.0.1", "default/a")]);
    scene.pod("a", "n1", "10.1.0.1");
    let said = check(&scene);
    assert_eq!(said.code, Some(0), "{said:?}");
    assert_eq!(
        said.text,
        "in order: 1 pool, 1 block, 2 nodes, 1 pod; no agent runs here, so no kernel and no peers\n"
    );
    let answer = scene.json(&["check"]);
    assert_eq!(answer["findings"], json!([]));
    assert_eq!(answer["looked"], json!({"pools": 1, "blocks": 1, "nodes": 2, "pods": 1}));
}

#[test]
fn leaks_and_conflicts_are_named_with_their_remedies_and_end_with_one() {
    let scene = Scene::new();
    scene.agent("n1", 5);
    scene.block("10.1.0.0/26", "n1", &[("10.1.0.1", "default/gone")]);
    scene.block_of("10.1.0.64/26", "n9", "dead", &[]);
    scene.lease("n9", "dead/b1", 3600);
    scene.lease("n8", "dead/b1", 3600);
    scene.block("10.1.4.0/24", "n1", &[]);
    scene.pod("stray", "n2", "10.1.0.7");
    scene.pod("twin", "n1", "10.1.0.7");
    let said = check(&scene);
    assert_eq!(said.code, Some(1), "{said:?}");
    for part in [
        "leak ipblock/10.1.0.0-26, address/10.1.0.1\n",
        "the API server knows no such pod\n  -> on n1: crictl pods --id c0ffee",
        "nodeGone ipblock/10.1.0.64-26\n  the Node n9 is gone, and has 1 block (10.1.0.64/26); its \
         agent last wrote its Lease 1 h ago; they return once the leader has itself waited",
        "  -> nothing, or if the machine is off for good: cairn ipam fence n9\n",
        "  -> kubectl delete lease cairn-node-n8",
        "7 findings: 1 pool, 3 blocks, 2 nodes, 2 pods;",
    ] {
        assert!(said.text.contains(part), "{part:?}\n{}", said.text);
    }
    let answer = scene.json(&["check", "--settle-secs", "1"]);
    let expected = [
        "addressTwice",
        "leak",
        "leaseUnknown",
        "nodeGone",
        "otherNodesBlock",
        "unallocated",
        "wrongSize",
    ];
    assert_eq!(kinds(&answer), expected.map(str::to_owned).into(), "{answer:#}");
    assert_eq!(answer["findings"].as_array().map(Vec::len), Some(7), "after a second look, too");
}

#[test]
fn what_it_cannot_look_at_ends_with_two() {
    let scene = Scene::new();
    let no_file = scene.run_by("no-such-file", &["check"]);
    assert_eq!(no_file.code, Some(2), "{no_file:?}");
    assert!(no_file.errors.contains("cannot use the kubeconfig"), "{no_file:?}");
    let text = std::fs::read_to_string(scene.site.path("kubeconfig")).expect("a file");
    let (before, rest) = text.split_once("127.0.0.1:").expect("a port");
    let (_, after) = rest.split_once('"').expect("its end");
    scene.site.write("nobody", &format!("{before}127.0.0.1:1\"{after}"));
    let nobody = scene.run_by("nobody", &["check"]);
    assert_eq!((nobody.code, nobody.text.as_str()), (Some(2), ""), "{nobody:?}");
    assert!(nobody.errors.starts_with("cairn: cannot list ippools: "), "{nobody:?}");
    assert_eq!(scene.run_by("nobody", &["show"]).code, Some(1));

    scene
        .cluster
        .api
        .delete("customresourcedefinitions.apiextensions.k8s.io", None, "ipblocks.cairn.network")
        .expect("deleted");
    let bare = until("the definition has gone", || {
        let said = check(&scene);
        if said.code == Some(2) { Ok(said) } else { Err(format!("{said:?}")) }
    });
    assert!(bare.errors.contains("cannot list ipblocks"), "{bare:?}");
    assert!(bare.errors.contains("is Cairn installed in this cluster?"), "{bare:?}");
}

/// On a node the kernel and the speaker are asked, too: a router announces a part of its block.
#[test]
fn on_a_node_the_kernel_and_the_peers_are_compared() {
    const TOR: &str = "192.0.2.2";
    let scene = Scene::with(&[NODE, TOR]);
    let peer_object = json!({
        "apiVersion": "cairn.network/v1alpha1", "kind": "BGPPeer", "metadata": {"name": "tor"},
        "spec": {
            "address": TOR, "asn": 65201, "timers": {"holdTimeSecs": 9, "connectRetrySecs": 1},
        },
    });
    scene.cluster.api.create("bgppeers.cairn.network", None, peer_object).expect("a peer");
    let agent = scene.cluster.agent(&scene.site);
    let block = until("a block of n1", || {
        let blocks = scene.cluster.blocks();
        let told = blocks.first().filter(|block| block["status"]["used"] == "0").cloned();
        told.ok_or_else(|| agent.log())
    });
    until("in order with the node's view", || {
        let said = check(&scene);
        let view = "in order: 1 pool, 1 block, 2 nodes, 0 pods; kernel and peers of node n1\n";
        if said.text == view { Ok(()) } else { Err(format!("{said:?}")) }
    });
    let cidr: ipnet::IpNet = block["spec"]["cidr"].as_str().expect("a cidr").parse().expect("net");
    let host = cidr.hosts().nth(5).expect("a host");
    let to_node = peer("n1", NODE, 64512, TOR, ", exportPolicies: [all]");
    // The node has no import policy for it: what it hears it does not use.
    let announce = format!(
        "---\napiVersion: cairn.network/v1alpha1\nkind: BGPPolicy\nmetadata: {{name: all}}\n\
         spec: {{rules: [{{action: Accept}}]}}\n---\n\
         apiVersion: cairn.network/v1alpha1\nkind: BGPAdvertisement\nmetadata: {{name: part}}\n\
         spec: {{cidrs: [{host}/32]}}\n"
    );
    let file = configuration(65201, TOR.parse().expect("an address"), &[to_node]) + &announce;
    let _tor = scene.site.speaker("tor", &scene.site.write("tor.yaml", &file));
    let found = until("the router's word against the owner", || {
        let answer = scene.json(&["check", "--settle-secs", "0"]);
        if kinds(&answer).contains("announcedByAnother") {
            Ok(answer)
        } else {
            Err(answer.to_string())
        }
    });
    let finding = found["findings"]
        .as_array()
        .expect("findings")
        .iter()
        .find(|finding| finding["kind"] == "announcedByAnother")
        .expect("it is there");
    let text = finding["text"].as_str().expect("a text");
    assert!(text.contains(&format!("{host}/32 by AS 65201 (peer bgppeer/tor)")), "{text}");
    let name = block["metadata"]["name"].as_str().expect("a name");
    assert_eq!(finding["objects"], json!([format!("ipblock/{name}")]));
    assert_eq!(found["looked"]["node"], "n1");
}
