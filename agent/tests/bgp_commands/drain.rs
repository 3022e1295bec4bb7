//! A node is drained: what its router sees, what the node says, and what comes back.

use cairn_lab::apiserver::PatchType;
use serde_json::{Value, json};

use crate::api::{Cluster, NODE};
use crate::ask::{Watch, json, until_established, until_peer};
use crate::pods::{call, until_attached};
use crate::routed::{TOR, join, router, tor};
use crate::site::{Daemon, Site, cairn, until};

const STATUSES: &str = "bgpnodestatuses.cairn.network";
/// GRACEFUL_SHUTDOWN (RFC 8326).
const LEAVES: &str = "65535:0";

/// An agent with a block, and a router that hears of it.
struct Fabric {
    site: Site,
    far: Site,
    cluster: Cluster,
    agent: Option<Daemon>,
    _router: Daemon,
}

impl Fabric {
    fn new() -> Fabric {
        let (site, far) = (Site::new(&[NODE]), Site::new(&[TOR]));
        join(&site, &far);
        let cluster = Cluster::new(&site);
        cluster.pool("default", "10.244.0.0/20", 26);
        cluster.api.create("bgppeers.cairn.network", None, tor()).expect("created");
        let file = far.write("tor.yaml", &router(TOR, NODE, "203.0.113.0/26"));
        let router = far.speaker("tor", &file);
        let agent = Some(cluster.agent(&site));
        until_established(&far, "tor", "other");
        Fabric { site, far, cluster, agent, _router: router }
    }

    fn wish(&self, value: Option<&str>) {
        let patch = json!({"metadata": {"annotations": {"cairn.network/drain": value}}});
        let patched = self.cluster.api.patch("nodes", None, "n1", PatchType::Merge, &patch);
        patched.expect("a Node");
    }

    /// What the router has of the node's block: preference and communities.
    fn at_router(&self) -> Option<(u64, Vec<String>)> {
        let routes = json(&self.far, "tor", &["routes", "--within", "10.244.0.0/20"]);
        let best = routes.first()?["candidates"][0].clone();
        let communities = best["communities"].as_array().cloned().unwrap_or_default();
        let communities = communities.iter().filter_map(Value::as_str).map(str::to_owned);
        Some((best["localPref"].as_u64().expect("a number"), communities.collect()))
    }

    fn until_at_router(&self, what: &str, wanted: Option<(u64, &[&str])>) {
        let wanted = wanted
            .map(|(pref, communities)| (pref, communities.iter().map(|c| c.to_string()).collect()));
        until(what, || {
            let seen = self.at_router();
            if seen == wanted { Ok(()) } else { Err(format!("{seen:?}")) }
        });
    }

    /// The object's word, once it is at a phase; `null` is none.
    fn until_phase(&self, phase: &str) -> String {
        until(&format!("the phase {phase}"), || {
            let object = self.cluster.api.get(STATUSES, None, "n1").unwrap_or_default();
            let drain = &object["spec"]["drain"];
            match drain["phase"].as_str().unwrap_or("null") == phase {
                true => Ok(drain["message"].as_str().unwrap_or_default().to_owned()),
                false => Err(object.to_string()),
            }
        })
    }

    fn advertised(&self) -> Vec<bool> {
        let blocks = self.cluster.blocks();
        blocks.iter().filter_map(|block| block["status"]["advertised"].as_bool()).collect()
    }

    fn reasons(&self) -> Vec<String> {
        let events = self.cluster.api.list("events.events.k8s.io", None, "").expect("events");
        let reasons = events.iter().filter_map(|event| event["reason"].as_str());
        reasons.map(str::to_owned).collect()
    }

    fn since(&self) -> Value {
        until_established(&self.far, "tor", "other")["sinceUnixSecs"].clone()
    }

    fn drain(&self, words: &[&str]) -> (Option<i32>, String, String) {
        let mut command = cairn(["drain", "n1", "--kubeconfig"]);
        command.arg(self.site.path("kubeconfig")).args(words);
        let output = self.site.run(command);
        let text = |bytes| String::from_utf8(bytes).expect("text");
        (output.status.code(), text(output.stdout), text(output.stderr))
    }
}

#[test]
fn a_node_with_a_pod_is_drained_step_by_step_and_undone_without_a_session_lost() {
    let mut fabric = Fabric::new();
    let netns = fabric.site.pod("p1");
    until_attached(&fabric.site, "p1", &netns);
    fabric.until_at_router("the block", Some((100, &[])));
    let since = fabric.since();

    // A word that is none drains nothing, and is told.
    fabric.wish(Some("yes"));
    let problem = "Node n1: annotation cairn.network/drain=\"yes\" drains nothing";
    fabric.site.until_status("agent", problem);
    fabric.until_at_router("nothing new", Some((100, &[])));

    fabric.wish(Some("now"));
    fabric.until_at_router("the block as a last choice", Some((0, &[LEAVES])));
    let message = fabric.until_phase("Leaving");
    assert!(message.contains("announced to be used last"), "{message}");
    fabric.site.until_status("agent", "drain Leaving since ");
    let message = fabric.until_phase("Withdrawing");
    assert!(message.contains("1 pod has an address: "), "{message}");
    assert_eq!(fabric.at_router(), Some((0, vec![LEAVES.to_owned()])), "for the pod's sake");

    // A restart announces nothing as ever in between: the router would say so.
    let watch = Watch::start(&fabric.far, "tor", &["-o", "json"]);
    drop(fabric.agent.take());
    fabric.cluster.api.pause();
    fabric.agent = Some(fabric.cluster.agent(&fabric.site));
    until_peer(&fabric.far, "tor", "other", "is back", |peer| {
        peer["state"] == "Established" && peer["sinceUnixSecs"] != since
    });
    fabric.site.until_status("agent", "drain Withdrawing since ");
    fabric.cluster.api.resume();
    fabric.until_at_router("the block as a last choice", Some((0, &[LEAVES])));
    watch.until_line(&["\"peer\":\"other\"", "\"to\":\"Established\""]);
    let told = watch.text();
    assert!(!told.contains("\"localPref\":100"), "{told}");
    drop(watch);
    let since = fabric.since();

    assert!(call(&fabric.site, "DEL", "p1", &netns).run().success);
    fabric.until_at_router("the end", None);
    let message = fabric.until_phase("Drained");
    assert!(message.starts_with("nothing is announced"), "{message}");
    until("no block is advertised", || match fabric.advertised() {
        blocks if !blocks.is_empty() && blocks.iter().all(|advertised| !advertised) => Ok(()),
        blocks => Err(format!("{blocks:?}")),
    });

    // A pod that begins there can be reached.
    until_attached(&fabric.site, "p2", &fabric.site.pod("p2"));
    fabric.until_at_router("the block again", Some((0, &[LEAVES])));
    fabric.until_phase("Withdrawing");
    fabric.wish(Some("now-with-pods"));
    fabric.until_at_router("the end, with the pod", None);
    let message = fabric.until_phase("Drained");
    assert!(message.contains("1 pod has an address that cannot be reached"), "{message}");

    fabric.wish(None);
    fabric.until_at_router("all as before", Some((100, &[])));
    fabric.until_phase("null");
    assert_eq!(fabric.since(), since, "no session was lost for it");
    until("an event of each step", || {
        let reasons = fabric.reasons();
        let wanted = ["Draining", "Withdrawing", "Drained", "DrainUndone"];
        let all = wanted.iter().all(|wanted| reasons.iter().any(|reason| reason == wanted));
        if all { Ok(()) } else { Err(format!("{reasons:?}")) }
    });
}

#[test]
fn the_command_shows_each_step_and_takes_it_back() {
    let fabric = Fabric::new();
    fabric.until_at_router("the block", Some((100, &[])));
    let (code, text, _) = fabric.drain(&["--dry-run"]);
    let patch =
        "would patch Node n1: {\"metadata\":{\"annotations\":{\"cairn.network/drain\":\"now\"}";
    assert!(code == Some(0) && text.starts_with(patch), "{text}");
    fabric.until_phase("null");

    let (code, text, errors) = fabric.drain(&["--timeout", "1"]);
    assert_eq!(code, Some(1), "{text}");
    assert!(errors.contains("`cairn drain n1 --undo` takes it back"), "{errors}");
    let (code, text, _) = fabric.drain(&[]);
    assert_eq!(code, Some(0), "{text}");
    assert!(text.starts_with("node n1 has cairn.network/drain=now\n"), "{text}");
    let last = text.lines().last().expect("a line");
    assert!(last.contains(" s  Drained: nothing is announced"), "{text}");
    assert!(text.contains(" s  Leaving: all is announced to be used last"), "{text}");
    assert_eq!(fabric.at_router(), None);

    let (code, text, _) = fabric.drain(&["--undo"]);
    assert!(code == Some(0) && text.ends_with(" s  in use: all is announced as ever\n"), "{text}");
    fabric.until_at_router("all as before", Some((100, &[])));

    let (code, text, _) = fabric.drain(&["--on-cordon"]);
    assert!(code == Some(0) && text.contains("it is not cordoned"), "{text}");
    let cordon = json!({"spec": {"unschedulable": true}});
    fabric.cluster.api.patch("nodes", None, "n1", PatchType::Merge, &cordon).expect("cordoned");
    // Its block goes back as well: no pod comes.
    fabric.until_phase("Leaving");
    let uncordon = json!({"spec": {"unschedulable": false}});
    fabric.cluster.api.patch("nodes", None, "n1", PatchType::Merge, &uncordon).expect("uncordoned");
    fabric.until_phase("null");
    fabric.until_at_router("all as before", Some((100, &[])));
    let mut command = cairn(["drain", "n9", "--kubeconfig"]);
    command.arg(fabric.site.path("kubeconfig"));
    let refusal = crate::site::refusal(&fabric.site.run(command));
    assert!(refusal.contains("there is no Node n9"), "{refusal}");
}
