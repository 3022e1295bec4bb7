//! An agent's view of passwords: what peers of the node name, and nothing else.

mod nodes;

use std::sync::Arc;

use cairn_agent::plan::{Local, plan};
use cairn_agent::view::{ClusterView, WatchFailure};
use cairn_agent::watch as watches;
use cairn_bgp::config::Password;
use cairn_ipam::Rules;
use cairn_lab::apiserver::PatchType;
use cairn_tests::kube::Api;
use cairn_tests::on_both_apis;
use kube::Client;
use serde_json::{Value, json};
use tokio::sync::watch;

use nodes::proxy::{Fate, Proxy};
use nodes::{Cluster, PATIENCE};

const PEERS: &str = "bgppeers.cairn.network";

async fn cluster(api: Api) -> Cluster {
    let cluster = Cluster::start(api).await;
    let node = json!({"metadata": {"name": "n1", "labels": {"rack": "1"}}});
    cluster.server.create("nodes", None, node).expect("a Node");
    let addresses = json!({"status": {"addresses": [
        {"type": "InternalIP", "address": "192.0.2.11"},
    ]}});
    cluster.server.patch_status("nodes", None, "n1", &addresses).expect("a status");
    cluster
}

fn peer(name: &str, address: &str, rack: &str, secret: &str, key: &str) -> Value {
    json!({
        "apiVersion": "cairn.network/v1alpha1",
        "kind": "BGPPeer",
        "metadata": {"name": name},
        "spec": {
            "address": address, "asn": 65201,
            "nodeSelector": {"matchLabels": {"rack": rack}},
            "passwordSecretRef": {"name": secret, "key": key},
        },
    })
}

fn secret(name: &str, values: Value) -> Value {
    json!({"apiVersion": "v1", "kind": "Secret", "metadata": {"name": name}, "stringData": values})
}

fn put(cluster: &Cluster, object: Value) {
    cluster.server.create("secrets", Some("cairn-system"), object).expect("a Secret");
}

struct Agent {
    views: watch::Receiver<Arc<ClusterView>>,
}

impl Agent {
    fn start(client: &Client) -> Agent {
        Agent {
            views: watches::start(
                client,
                watches::WatchOptions {
                    node: "n1".to_owned(),
                    namespace: "cairn-system".to_owned(),
                    relist: tokio::sync::watch::Sender::new(0).subscribe(),
                    restored: None,
                    rules: Rules::ALL,
                },
            ),
        }
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

fn value(view: &ClusterView, secret: &str, key: &str) -> Option<String> {
    let Password(text) = view.passwords.get(secret)?.get(key)?;
    Some(text.to_string())
}

async fn an_agent_reads_the_keys_that_peers_of_its_node_name(api: Api) {
    let cluster = cluster(api).await;
    put(&cluster, secret("tor", json!({"tor1": "cairn-1", "unused": "cairn-2"})));
    put(&cluster, secret("other", json!({"password": "cairn-3"})));
    put(&cluster, secret("unrelated", json!({"password": "cairn-4"})));
    let create = |object| cluster.server.create(PEERS, None, object).expect("a BGPPeer");
    create(peer("tor1", "192.0.2.1", "1", "tor", "tor1"));
    create(peer("far", "192.0.2.2", "2", "other", "password"));
    let mut agent = Agent::start(&cluster.client());
    let has = |text: &'static str| {
        move |view: &ClusterView| value(view, "tor", "tor1").as_deref() == Some(text)
    };
    let view = agent.until("the password", has("cairn-1")).await;
    assert_eq!(view.passwords.len(), 1, "of the other rack's peer and of nobody's nothing is read");
    assert_eq!(view.passwords["tor"].len(), 1, "only the named key is kept");
    let debug = format!("{view:#?}");
    assert!(!debug.contains("cairn-1") && !debug.contains("cairn-2"), "{debug}");

    // A change is followed, and another key is read when a peer names it.
    let patch = json!({"data": {"tor1": "Y2Fpcm4tNQ=="}});
    cluster
        .server
        .patch("secrets", Some("cairn-system"), "tor", PatchType::Merge, &patch)
        .expect("patched");
    agent.until("the new password", has("cairn-5")).await;
    create(peer("tor2", "192.0.2.3", "1", "tor", "unused"));
    let both = |view: &ClusterView| value(view, "tor", "unused").as_deref() == Some("cairn-2");
    let view = agent.until("the second key", both).await;
    assert_eq!(value(&view, "tor", "tor1").as_deref(), Some("cairn-5"));

    cluster.server.delete("secrets", Some("cairn-system"), "tor").expect("deleted");
    agent.until("nothing is left of a deleted Secret", |view| view.passwords.is_empty()).await;
    put(&cluster, secret("tor", json!({"tor1": "cairn-6"})));
    agent.until("the Secret's successor", has("cairn-6")).await;
    for name in ["tor1", "tor2"] {
        cluster.server.delete(PEERS, None, name).expect("deleted");
    }
    let forgotten = |view: &ClusterView| view.bgp_peers.len() == 1 && view.passwords.is_empty();
    agent.until("what nobody names is forgotten", forgotten).await;
}

async fn without_the_right_to_read_secrets_the_agent_goes_on_and_says_so(api: Api) {
    let cluster = cluster(api).await;
    put(&cluster, secret("tor", json!({"tor1": "cairn-1"})));
    cluster
        .server
        .create(PEERS, None, peer("tor1", "192.0.2.1", "1", "tor", "tor1"))
        .expect("a BGPPeer");
    let proxy = Proxy::start(cluster.serving.address()).await;
    proxy.meet("GET", "/secrets", Fate::IsForbidden);
    let mut agent = Agent::start(&proxy.client());
    let refused = |view: &ClusterView| {
        matches!(view.unwatched.get("Secret tor"), Some(WatchFailure::Refused(text))
            if text.contains("apply the Role cairn-agent of Cairn's namespace"))
    };
    let view = agent.until("the refusal", refused).await;
    assert!(view.synced, "nothing else waits for it");
    let nothing = Default::default();
    let local = Local::new(&[], &nothing, None);
    let planned = plan(&view, "n1", &local);
    assert!(planned.speaker.as_ref().is_some_and(|speaker| speaker.peers.is_empty()));
    let problem =
        "BGPPeer tor1 is not used: spec.passwordSecretRef: there is no Secret \"tor\" to read";
    assert!(planned.problems.iter().any(|p| p.starts_with(problem)), "{:?}", planned.problems);

    proxy.let_pass();
    let read =
        |view: &ClusterView| value(view, "tor", "tor1").is_some() && view.unwatched.is_empty();
    let view = agent.until("the password, once the right is there", read).await;
    let planned = plan(&view, "n1", &local);
    let speaker = planned.speaker.expect("the node is known");
    assert_eq!(speaker.peers["bgppeer/tor1"].password, Some(Password("cairn-1".into())));
    assert!(!format!("{speaker:?}").contains("cairn-1"), "it stands in no golden file");

    // A Secret that goes takes no session with it.
    let mut gone = ClusterView::clone(&view);
    gone.passwords.clear();
    let running = Local { running: Some(&speaker), ..local };
    let planned = plan(&gone, "n1", &running);
    assert_eq!(planned.speaker, Some(speaker.clone()));
    let kept = "BGPPeer tor1 keeps its old settings: spec.passwordSecretRef";
    assert!(planned.problems.iter().any(|p| p.starts_with(kept)), "{:?}", planned.problems);
}

on_both_apis! {
    an_agent_reads_the_keys_that_peers_of_its_node_name,
    without_the_right_to_read_secrets_the_agent_goes_on_and_says_so,
}
