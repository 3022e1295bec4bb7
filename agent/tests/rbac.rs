//! What the manifests let an agent do, on a real API server: a scenario of everything that agents ask
//! for uses every right, and nothing is refused. The server's own audit log is the judge.

mod nodes;

use std::collections::BTreeSet;
use std::time::Duration;

use cairn_agent::pods::{AnnotationSource, ApiAnnotations};
use cairn_agent::publish;
use cairn_api::{
    BGPNode, BGPNodeSpec, BGPNodeStatus, BGPNodeStatusSpec, ChangeOver, ObjectReference,
};
use cairn_cni::PodIdentity;
use cairn_lab::apiserver::PatchType;
use cairn_tests::kube::{Api, ControlPlane, Server};
use kube::Client;
use serde_json::{Value, json};
use tokio::sync::watch;
use tokio::task::JoinSet;

use nodes::proxy::{Fate, Proxy};
use nodes::{Cluster, Node, POOLS, Setup, until};

#[tokio::test]
async fn agents_use_every_right_that_they_have_and_ask_for_no_other() {
    let cluster = Cluster::start(Api::Real).await;
    let Server::Real(_, plane) = &cluster.server else { panic!("a real server was asked for") };
    let manifest = concat!(env!("CARGO_MANIFEST_DIR"), "/../manifests/base/rbac.yaml");
    let manifest = std::fs::read_to_string(manifest).expect("the manifest");
    let objects = cluster.server.load_yaml(&manifest).expect("applied");
    let client = plane.client_of_service_account(SPACE, "cairn-agent").await;
    let token = plane.token_of_service_account(SPACE, "cairn-agent").await;
    // As before a server of a version that has no streaming lists.
    let older = Proxy::start(cluster.serving.address()).await;
    older.meet("GET", "sendInitialEvents", Fate::IsInvalid);
    let before = until_rights_are_known(&client, plane).await;

    everything_that_agents_do(&cluster, &client, &older.client_of(&token)).await;

    let seen: Vec<Value> = plane.audit_log().split_off(before);
    let refused: Vec<&Value> =
        seen.iter().filter(|entry| entry["responseStatus"]["code"] == 403).collect();
    assert!(refused.is_empty(), "{refused:#?}");
    let used: BTreeSet<String> = seen.iter().filter_map(right).collect();
    let granted = rights(&objects);
    let idle: Vec<&String> = granted.difference(&used).collect();
    assert!(idle.is_empty(), "granted and never used: {idle:#?}");
    let free: Vec<&String> = used.difference(&granted).collect();
    assert!(free.is_empty(), "used and granted by no rule of ours: {free:#?}");
}

/// Waits until the server acts by the new roles, and returns how long the audit log is then.
async fn until_rights_are_known(client: &Client, plane: &ControlPlane) -> usize {
    let blocks: kube::Api<cairn_api::IPBlock> = kube::Api::all(client.clone());
    let leases: kube::Api<k8s_openapi::api::coordination::v1::Lease> =
        kube::Api::namespaced(client.clone(), SPACE);
    let began = std::time::Instant::now();
    let one = Default::default();
    while blocks.list(&one).await.is_err() || leases.get_opt("none").await.is_err() {
        assert!(began.elapsed() < nodes::PATIENCE, "the roles have no effect");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    plane.audit_log().len()
}

async fn everything_that_agents_do(cluster: &Cluster, client: &Client, older: &Client) {
    let server = &cluster.server;
    cluster.without_graceful_restart();
    let pod = json!({
        "metadata": {"name": "web"},
        "spec": {"containers": [{"name": "web", "image": "web"}]},
    });
    server.create("pods", Some("default"), pod).expect("a pod");
    let secret = json!({"metadata": {"name": "tor"}, "stringData": {"key": "x"}});
    server.create("secrets", Some(SPACE), secret).expect("a Secret");
    let peer = json!({
        "apiVersion": "cairn.network/v1alpha1", "kind": "BGPPeer", "metadata": {"name": "tor"},
        "spec": {
            "address": "192.0.2.1", "asn": 65201,
            "passwordSecretRef": {"name": "tor", "key": "key"},
        },
    });
    server.create("bgppeers.cairn.network", None, peer).expect("a BGPPeer");
    cluster.pool("default", "10.244.0.0/26", 28);
    cluster.node("n1", "boot1");
    cluster.node("n2", "boot2");

    // Claims, reports, more blocks, and one that goes back.
    let mut n1 = start("n1", "boot1", client);
    n1.until("it leads", |h| h.leads).await;
    n1.until_open(1).await;
    let mut n2 = start("n2", "boot2", older);
    let lost = n2.until_open(1).await[0];
    until("a book", || n1.add("pod0").is_ok()).await;
    for n in 1..13 {
        n1.add(&format!("pod{n}")).expect("an address");
    }
    n1.until_open(2).await;
    until("the Secret", || n1.views.borrow().passwords.contains_key("tor")).await;
    for n in 0..13 {
        n1.del(&format!("pod{n}"));
    }
    n1.until("one is given back", |h| Node::open(h).len() == 1).await;
    until("its object is gone", || cluster.blocks().len() == 2).await;

    // What a node publishes of itself, and the annotations of a pod that starts.
    publish_twice::<BGPNode>(
        cluster,
        client,
        [64512, 64513].map(|asn| BGPNodeSpec {
            addresses: vec!["192.0.2.11".to_owned()],
            asn,
            router_id: "192.0.2.11".to_owned(),
            topology: Default::default(),
            tunnels: Vec::new(),
            blocks: Vec::new(),
        }),
    )
    .await;
    // The leader records that it reflects, and ends the change-over when it says that it loses nothing.
    let reflect = json!({"spec": {"topology": "RouteReflectors"}});
    server.patch(CONFIGURATIONS, None, "default", PatchType::Merge, &reflect).expect("changed");
    until("a record", || topology(cluster)["previous"]["mode"] == "FullMesh").await;
    let revision = topology(cluster)["revision"].as_i64().expect("a number");
    publish_twice::<BGPNodeStatus>(
        cluster,
        client,
        [None, Some(ChangeOver { revision, losing: 0 })].map(|change_over| BGPNodeStatusSpec {
            peers: "0/0".to_owned(),
            change_over,
            ..BGPNodeStatusSpec::default()
        }),
    )
    .await;
    until("the change-over ends", || topology(cluster)["previous"].is_null()).await;
    let web = PodIdentity::parse(Some("default"), Some("web"), None).expect("a pod");
    ApiAnnotations::new(client.clone()).annotations(&web).await.expect("annotations");

    // A pool that cannot be used is an event; a machine that vanishes a case for the leader.
    cluster.pool("overlapping", "10.244.0.0/24", 28);
    until("an event", || !server.list("events", None, "").expect("events").is_empty()).await;
    n2.tasks.shutdown().await;
    server.delete("nodes", None, "n2").expect("deleted");
    until("the fence frees its block", || cluster.object(lost).is_none()).await;

    // The end of a pool.
    server.delete(POOLS, None, "default").expect("deleted");
    until("the pool is gone", || server.get(POOLS, None, "default").is_err()).await;
}

/// How the nodes of the first AS peer.
fn topology(cluster: &Cluster) -> Value {
    let object = cluster.server.get(CONFIGURATIONS, None, "default").expect("it is there");
    object["status"]["topologies"][0].clone()
}

fn start(name: &str, boot_id: &str, client: &Client) -> Node {
    Node::set_up(Setup {
        name,
        boot_id,
        offline: Duration::from_secs(3),
        idle_release: Some(Duration::from_secs(1)),
        adopted: vec![],
        client: client.clone(),
    })
}

/// Has the node write an object of its own, and another value of it.
async fn publish_twice<K>(cluster: &Cluster, client: &Client, [first, second]: [K::Spec; 2])
where
    K: publish::NodeObject + 'static,
    K::Spec: 'static,
{
    let node = cluster.server.get("nodes", None, "n1").expect("the Node");
    let uid = node["metadata"]["uid"].as_str().expect("a UID").to_owned();
    let owner = ObjectReference { name: "n1".to_owned(), uid };
    let wanted = watch::Sender::new(Some((owner.clone(), first)));
    let mut tasks = JoinSet::new();
    tasks.spawn(publish::keep::<K>(client.clone(), "n1".to_owned(), wanted.subscribe()));
    let resource = format!("{}.cairn.network", K::plural(&()));
    let generation = || {
        let object = cluster.server.get(&resource, None, "n1").ok()?;
        object["metadata"]["generation"].as_i64()
    };
    until("it is there", || generation() == Some(1)).await;
    wanted.send_replace(Some((owner, second)));
    until("it is changed", || generation() == Some(2)).await;
}

/// What a request needs, as [`rights`] words it; requests that anybody may make need nothing.
fn right(entry: &Value) -> Option<String> {
    let asked = &entry["objectRef"];
    let text = |key: &str| asked[key].as_str().unwrap_or_default();
    let resource = match text("subresource") {
        "" => text("resource").to_owned(),
        part => format!("{}/{part}", text("resource")),
    };
    let verb = entry["verb"].as_str().unwrap_or_default();
    let asks = !resource.is_empty() && text("apiGroup") != "authorization.k8s.io";
    asks.then(|| format!("{verb} {resource}.{}", text("apiGroup")))
}

/// Every right of the roles, as `verb resource.group`.
fn rights(objects: &[Value]) -> BTreeSet<String> {
    let words = |list: &Value| -> Vec<String> {
        let items = list.as_array().cloned().unwrap_or_default();
        items.iter().filter_map(|item| item.as_str().map(str::to_owned)).collect()
    };
    let roles = objects.iter().filter_map(|object| object["rules"].as_array());
    let mut rights = BTreeSet::new();
    for rule in roles.flatten() {
        for group in words(&rule["apiGroups"]) {
            for resource in words(&rule["resources"]) {
                for verb in words(&rule["verbs"]) {
                    rights.insert(format!("{verb} {resource}.{group}"));
                }
            }
        }
    }
    rights
}

/// Cairn's own namespace.
const CONFIGURATIONS: &str = "bgpconfigurations.cairn.network";
const SPACE: &str = "cairn-system";
