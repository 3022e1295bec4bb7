//! The watches against the embedded API server: what is seen, what stays while the server is away, and
//! what counts for nothing when its history was put back.

mod nodes;

use std::collections::BTreeMap;
use std::sync::Arc;

use cairn_agent::view::ClusterView;
use cairn_agent::watch::{self as watches, WatchOptions};
use cairn_ipam::Rules;
use cairn_lab::apiserver::PatchType;
use cairn_tests::kube::Server;
use kube::Client;
use serde_json::json;
use tokio::sync::watch;

use nodes::proxy::{Fate, Proxy};
use nodes::{Cluster, PATIENCE, POOLS};

struct Agent {
    views: watch::Receiver<Arc<ClusterView>>,
    relist: watch::Sender<u64>,
}

impl Agent {
    fn start(client: &Client, restored: Option<ClusterView>) -> Agent {
        let relist = watch::Sender::new(0);
        let options = WatchOptions {
            node: "n1".to_owned(),
            namespace: "cairn-system".to_owned(),
            relist: relist.subscribe(),
            restored,
            rules: Rules::ALL,
        };
        Agent { views: watches::start(client, options), relist }
    }

    async fn until(
        &mut self,
        what: &str,
        holds: impl Fn(&ClusterView) -> bool,
    ) -> Arc<ClusterView> {
        let waited = self.views.wait_for(|view| holds(view));
        let seen = tokio::time::timeout(PATIENCE, waited).await;
        if let Ok(Ok(view)) = seen {
            return Arc::clone(&view);
        }
        drop(seen);
        panic!("{what}: {:#?}", self.views.borrow());
    }
}

fn cluster() -> Cluster {
    let cluster = Cluster::new();
    cluster.node("n1", "boot");
    cluster.pool("first", "10.0.0.0/16", 26);
    cluster
}

fn pools(view: &ClusterView) -> Vec<&str> {
    view.pools.keys().map(String::as_str).collect()
}

#[tokio::test]
async fn a_view_holds_every_kind_that_decisions_need() {
    let cluster = cluster();
    let reservation = json!({
        "apiVersion": "cairn.network/v1alpha1", "kind": "IPReservation",
        "metadata": {"name": "gateways"}, "spec": {"cidrs": ["10.0.0.1/32"]},
    });
    cluster.server.create("ipreservations.cairn.network", None, reservation).expect("created");
    let namespace = json!({"metadata": {
        "name": "team", "labels": {"tier": "gold"},
        "annotations": {"cairn.network/ippools": "first", "other": "x"},
    }});
    cluster.server.create("namespaces", None, namespace).expect("created");
    let mut agent = Agent::start(&cluster.client(), None);
    let view = agent.until("every kind", |view| view.synced).await;
    assert!(!view.restored && view.reservations.contains_key("gateways"));
    let team = &view.namespaces["team"];
    assert_eq!(team.labels.get("tier").map(String::as_str), Some("gold"));
    assert_eq!(team.pools.as_deref(), Some("first"));

    let patch = json!({"metadata": {"annotations": {"cairn.network/ippools": null}}});
    cluster.server.patch("namespaces", None, "team", PatchType::Merge, &patch).expect("patched");
    agent.until("the annotation goes", |view| view.namespaces["team"].pools.is_none()).await;
    cluster.server.delete(POOLS, None, "first").expect("deleted");
    agent.until("the pool goes", |view| view.pools.is_empty()).await;
}

#[tokio::test]
async fn a_server_that_streams_no_lists_is_asked_for_whole_ones() {
    let cluster = cluster();
    let proxy = Proxy::start(cluster.serving.address()).await;
    proxy.meet("GET", "sendInitialEvents", Fate::IsInvalid);
    let mut agent = Agent::start(&proxy.client(), None);
    let view = agent.until("every kind", |view| view.synced).await;
    assert_eq!(pools(&view), ["first"]);
    assert!(proxy.met() > 0 && view.unwatched.is_empty(), "no news for anybody");
    cluster.pool("second", "10.1.0.0/16", 26);
    agent.until("what comes after the list", |view| view.pools.len() == 2).await;
}

#[tokio::test]
async fn what_an_earlier_process_knew_is_the_view_until_the_server_has_shown_everything() {
    let cluster = cluster();
    let mut first = Agent::start(&cluster.client(), None);
    let known = ClusterView::clone(&*first.until("every kind", |view| view.synced).await);
    cluster.server.pause();
    let mut agent = Agent::start(&cluster.client(), Some(known));
    let view = agent.until("the earlier one", |view| view.restored).await;
    assert!(!view.synced && view.node.is_some());
    assert_eq!(pools(&view), ["first"]);
    agent.until("the outage is told", |view| !view.unwatched.is_empty()).await;
    cluster.pool("second", "10.1.0.0/16", 26);
    cluster.server.resume();
    let view = agent.until("the server's", |view| view.synced).await;
    assert!(!view.restored);
    assert_eq!(pools(&view), ["first", "second"]);
}

#[tokio::test]
async fn when_history_went_back_everything_is_listed_anew_and_counts_for_nothing_until_then() {
    let cluster = cluster();
    let proxy = Proxy::start(cluster.serving.address()).await;
    let mut agent = Agent::start(&proxy.client(), None);
    agent.until("every kind", |view| view.synced).await;
    let Server::Embedded(server) = &cluster.server else { panic!("the embedded server") };
    let snapshot = server.snapshot();
    cluster.pool("lost", "10.1.0.0/16", 26);
    agent.until("the pool that will be lost", |view| view.pools.len() == 2).await;
    server.restore(&snapshot);
    cluster.pool("other", "10.2.0.0/16", 26);

    proxy.meet("GET", "/namespaces", Fate::Waits);
    agent.relist.send_replace(1);
    let view = agent.until("the new epoch", |view| view.epoch == 1).await;
    assert!(!view.synced && view.node.is_some(), "it stays visible and counts for nothing");
    let listed = |view: &ClusterView| pools(view) == ["first", "other"];
    let view = agent.until("the pools as they are now", listed).await;
    assert!(!view.synced, "one kind is not listed yet");
    proxy.let_pass();
    let view = agent.until("every kind again", |view| view.synced).await;
    assert_eq!((view.epoch, pools(&view)), (1, vec!["first", "other"]));
}

#[tokio::test]
async fn what_no_decision_reads_makes_no_new_view() {
    let cluster = cluster();
    let mut agent = Agent::start(&cluster.client(), None);
    agent.until("every kind", |view| view.synced).await;
    // What was still on its way when it synced.
    let before = agent.views.borrow_and_update().clone();
    let status = |status| {
        cluster
            .server
            .patch_status(POOLS, None, "first", &json!({"status": status}))
            .expect("a sum")
    };
    for used in 0..20 {
        let report = json!({"status": {"conditions": [
            {"type": "Ready", "status": "True", "reason": format!("Beat{used}")},
        ]}});
        cluster.server.patch_status("nodes", None, "n1", &report).expect("a heartbeat");
        status(json!({"used": used.to_string()}));
    }
    cluster.pool("second", "10.1.0.0/16", 26);
    let after = agent.until("what comes after all that", |view| view.pools.len() == 2).await;
    let pools = BTreeMap::from_iter(
        after
            .pools
            .iter()
            .filter(|(name, _)| *name == "first")
            .map(|(n, p)| (n.clone(), p.clone())),
    );
    assert_eq!(*before, ClusterView { pools, ..ClusterView::clone(&after) });
}
