//! The leader's choice of route reflectors against an API server: whom it records, when it replaces one,
//! and when a change-over ends.

mod nodes;

use std::collections::BTreeSet;
use std::time::Duration;

use cairn_api::{ANNOTATION_DRAIN, AsTopology, ChangeOver, LABEL_CHANGE_OVER, TopologyMode};
use cairn_ipam::election::{CANDIDATES_MAX, Candidacy};
use cairn_lab::apiserver::PatchType;
use cairn_tests::kube::Api;
use cairn_tests::on_both_apis;
use serde_json::{Value, json};

use nodes::in_process::{InProcess, node_in_virtual_time, takes};
use nodes::{Cluster, HOUR, Node, until};

const CONFIGURATIONS: &str = "bgpconfigurations.cairn.network";
const NODES: &str = "bgpnodes.cairn.network";
const STATUSES: &str = "bgpnodestatuses.cairn.network";
const LEASES: &str = "leases.coordination.k8s.io";
const SYSTEM: Option<&str> = Some("cairn-system");
const SOON: Duration = Duration::from_secs(75);
const AT_ONCE: Duration = Duration::from_secs(10);

impl Cluster {
    fn configure(&self, topology: &str) {
        let configuration = json!({
            "apiVersion": "cairn.network/v1alpha1",
            "kind": "BGPConfiguration",
            "metadata": {"name": "default"},
            "spec": {"topology": topology},
        });
        self.server.create(CONFIGURATIONS, None, configuration).expect("a BGPConfiguration");
    }

    fn change(&self, topology: &str) {
        let patch = json!({"spec": {"topology": topology}});
        let changed = self.server.patch(CONFIGURATIONS, None, "default", PatchType::Merge, &patch);
        changed.expect("a topology");
    }

    /// A node of an AS as its agent describes it.
    fn describe(&self, name: &str, asn: u32) {
        let number = number(name);
        let address = format!("192.0.{}.{}", 2 + number / 250, 1 + number % 250);
        let object = json!({
            "apiVersion": "cairn.network/v1alpha1", "kind": "BGPNode", "metadata": {"name": name},
            "spec": {
                "addresses": [address], "asn": asn, "routerID": address,
                "topology": {"topology.kubernetes.io/zone": format!("zone-{}", number % 3)},
            },
        });
        self.server.create(NODES, None, object).expect("a BGPNode");
    }

    /// What a node says of a change-over.
    fn say(&self, name: &str, revision: i64, losing: u64) {
        let change = ChangeOver { revision, losing };
        let object = json!({
            "apiVersion": "cairn.network/v1alpha1", "kind": "BGPNodeStatus",
            "metadata": {"name": name, "labels": {LABEL_CHANGE_OVER: change.label()}},
            "spec": {"peers": "0/0", "changeOver": change},
        });
        // The one before, if there is one.
        let _ = self.server.delete(STATUSES, None, name);
        self.server.create(STATUSES, None, object).expect("a BGPNodeStatus");
    }

    fn lease_of(&self, name: &str) {
        let lease = json!({
            "metadata": {"name": format!("cairn-node-{name}")},
            "spec": {"holderIdentity": "uid/boot", "leaseDurationSeconds": 3600},
        });
        self.server.create(LEASES, SYSTEM, lease).expect("a Lease");
    }

    fn remove(&self, name: &str) {
        self.server.delete(NODES, None, name).expect("deleted");
    }

    fn record(&self, asn: u32) -> Option<AsTopology> {
        let object = self.server.get(CONFIGURATIONS, None, "default").ok()?;
        let records = object["status"]["topologies"].as_array()?.clone();
        let records =
            records.into_iter().map(|record| serde_json::from_value(record).expect("one"));
        records.into_iter().find(|record: &AsTopology| record.asn == asn)
    }

    fn reflectors(&self) -> Vec<String> {
        self.record(64512).map(|record| record.current.reflectors).unwrap_or_default()
    }

    fn is_changing(&self) -> bool {
        self.record(64512).is_some_and(|record| record.previous.is_some())
    }

    fn version(&self) -> Value {
        let object = self.server.get(CONFIGURATIONS, None, "default").expect("it is there");
        object["metadata"]["resourceVersion"].clone()
    }

    /// The condition's status and message.
    fn settled(&self) -> Option<(String, String)> {
        let object = self.server.get(CONFIGURATIONS, None, "default").ok()?;
        let conditions = object["status"]["conditions"].as_array()?.clone();
        let found = conditions.into_iter().find(|c| c["type"] == "TopologySettled")?;
        let text = |field: &str| found[field].as_str().unwrap_or_default().to_owned();
        Some((text("status"), text("message")))
    }
}

/// Names of nodes that do not stand for leader before n1.
fn names(count: usize) -> Vec<String> {
    let is_behind = |name: &String| {
        let mut candidacy = Candidacy::new("n1");
        (0..CANDIDATES_MAX).for_each(|_| candidacy.came(name));
        candidacy.stands()
    };
    (0..).map(|number| format!("w{number}")).filter(is_behind).take(count).collect()
}

fn number(name: &str) -> usize {
    name[1..].parse().expect("a number")
}

/// A leader in virtual time, and so many nodes beside it.
async fn cluster_of(count: usize) -> (Cluster, Node, Vec<String>) {
    let cluster = Cluster::new();
    cluster.configure("Auto");
    cluster.node("n1", "boot1");
    let names = names(count);
    names.iter().for_each(|name| cluster.describe(name, 64512));
    let mut leader = node_in_virtual_time(InProcess::new(&cluster), HOUR);
    leader.until("it leads", |h| h.leads).await;
    (cluster, leader, names)
}

#[tokio::test(start_paused = true)]
async fn reflectors_are_recorded_and_stay_while_their_nodes_live() {
    let (cluster, _leader, workers) = cluster_of(65).await;
    takes("a record", SOON, || cluster.record(64512).is_some()).await;
    let record = cluster.record(64512).expect("a record");
    let first = record.current.reflectors.clone();
    assert_eq!(first.len(), 3);
    let zones: BTreeSet<usize> = first.iter().map(|name| number(name) % 3).collect();
    assert_eq!(zones.len(), 3, "one a zone: {first:?}");
    let previous = record.previous.map(|shape| shape.mode);
    assert_eq!(previous, Some(TopologyMode::FullMesh), "sessions of the mesh stay");

    // Nodes without a word are waited for, but not for ever.
    let waited = takes("the end", Duration::from_secs(200), || !cluster.is_changing()).await;
    assert!(waited >= Duration::from_secs(115), "{waited:?}");
    assert_eq!(cluster.settled().expect("a condition").0, "True");

    // What is settled is not written again, whoever comes or goes.
    let version = cluster.version();
    let more = names(66);
    cluster.describe(&more[65], 64512);
    let other = workers.iter().find(|name| !first.contains(name)).expect("one");
    cluster.remove(other);
    tokio::time::sleep(Duration::from_secs(600)).await;
    assert_eq!(cluster.version(), version);

    // One that is gone is replaced. The new one stays a client of the others until it has its sessions.
    cluster.remove(&first[0]);
    takes("another one", SOON, || cluster.reflectors() != first).await;
    let second = cluster.reflectors();
    assert!(second.contains(&first[1]) && second.contains(&first[2]) && second.len() == 3);
    let previous = cluster.record(64512).and_then(|record| record.previous);
    assert_eq!(previous.map(|shape| shape.reflectors), Some(first[1..].to_vec()));
    takes("the end", Duration::from_secs(200), || !cluster.is_changing()).await;

    // So is one whose agent is silent, but its sessions may still be there.
    cluster.lease_of(&second[0]);
    takes("a third choice", Duration::from_secs(500), || cluster.reflectors() != second).await;
    let record = cluster.record(64512).expect("a record");
    assert!(!record.current.reflectors.contains(&second[0]));
    assert_eq!(record.previous.map(|shape| shape.reflectors), Some(second));

    // Below 48 nodes they mesh again.
    let reflectors = cluster.reflectors();
    let left: Vec<&String> =
        workers.iter().filter(|name| *name != other && **name != first[0]).collect();
    for name in &left[..left.len() - 46] {
        cluster.remove(name);
    }
    takes("a mesh", SOON, || cluster.reflectors().is_empty()).await;
    assert!(cluster.is_changing(), "not before the mesh stands: {reflectors:?}");
}

#[tokio::test(start_paused = true)]
async fn a_reflector_that_is_drained_hands_over_and_comes_back_as_it_comes() {
    let (cluster, _leader, names) = cluster_of(5).await;
    cluster.change("RouteReflectors");
    takes("a record", AT_ONCE, || cluster.record(64512).is_some()).await;
    takes("the end", Duration::from_secs(200), || !cluster.is_changing()).await;
    let first = cluster.reflectors();
    let drain = |name: &str, value: Value| {
        let patch = json!({"spec": {"topology": {ANNOTATION_DRAIN: value}}});
        cluster.server.patch(NODES, None, name, PatchType::Merge, &patch).expect("a BGPNode");
    };
    drain(&first[0], "true".into());
    takes("another one", SOON, || !cluster.reflectors().contains(&first[0])).await;
    let record = cluster.record(64512).expect("a record");
    assert_eq!(record.current.reflectors.len(), 3);
    assert_eq!(
        record.previous.map(|shape| shape.reflectors),
        Some(first.clone()),
        "until all are ready"
    );
    names.iter().for_each(|name| cluster.say(name, record.revision, 0));
    takes("the end", AT_ONCE, || !cluster.is_changing()).await;
    drain(&first[0], Value::Null);
    tokio::time::sleep(Duration::from_secs(300)).await;
    assert_eq!(cluster.reflectors(), record.current.reflectors, "who reflects goes on");
}

#[tokio::test(start_paused = true)]
async fn a_change_over_waits_for_who_would_lose_routes_and_names_it() {
    let (cluster, _leader, names) = cluster_of(5).await;
    let version = cluster.version();
    tokio::time::sleep(Duration::from_secs(300)).await;
    assert_eq!(cluster.version(), version, "a small mesh needs no record");

    cluster.change("RouteReflectors");
    takes("a record", AT_ONCE, || cluster.record(64512).is_some()).await;
    let revision = cluster.record(64512).expect("a record").revision;
    for name in &names[1..] {
        cluster.say(name, revision, 0);
    }
    cluster.say(&names[0], revision, 3);
    tokio::time::sleep(Duration::from_secs(1200)).await;
    assert!(cluster.is_changing());
    let (status, message) = cluster.settled().expect("a condition");
    assert!(status == "False" && message.contains(&names[0]), "{message}");
    // An answer about a choice before says nothing.
    cluster.say(&names[0], revision - 1, 0);
    takes("then it is silent", SOON, || !cluster.is_changing()).await;

    // When all have answered nobody waits.
    cluster.change("FullMesh");
    takes("a record", AT_ONCE, || cluster.reflectors().is_empty()).await;
    assert!(cluster.is_changing());
    let revision = cluster.record(64512).expect("a record").revision;
    names.iter().for_each(|name| cluster.say(name, revision, 0));
    takes("the end", AT_ONCE, || !cluster.is_changing()).await;
}

async fn each_as_has_reflectors_of_its_own(api: Api) {
    let cluster = Cluster::start(api).await;
    cluster.configure("RouteReflectors");
    cluster.node("n1", "boot1");
    let names = names(8);
    let (first, second) = names.split_at(4);
    let systems = [(65001, first), (65002, second)];
    for (asn, own) in systems {
        own.iter().for_each(|name| cluster.describe(name, asn));
    }
    let mut leader = Node::start(&cluster, "n1", "boot1", Duration::from_secs(4));
    leader.until("it leads", |h| h.leads).await;
    for (asn, own) in systems {
        until("a record", || cluster.record(asn).is_some()).await;
        let record = cluster.record(asn).expect("a record");
        assert_eq!(record.current.reflectors.len(), 3);
        assert!(record.current.reflectors.iter().all(|name| own.contains(name)), "{record:?}");
        own.iter().for_each(|name| cluster.say(name, record.revision, 0));
    }
    until("the end of both", || {
        [65001, 65002].iter().all(|asn| cluster.record(*asn).is_some_and(|r| r.previous.is_none()))
    })
    .await;
}

on_both_apis! {
    each_as_has_reflectors_of_its_own,
}
