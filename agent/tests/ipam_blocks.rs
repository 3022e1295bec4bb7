//! Which blocks a node has and loses: races, podCIDRs, cordons, restarts, conflicts and machines that
//! take over a Node.

mod nodes;

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::Duration;

use cairn_agent::view::ClusterView;
use cairn_ipam::{AssignError, Demand};
use cairn_lab::apiserver::{ApiServer, PatchType};
use cairn_tests::kube::{Api, Server};
use cairn_tests::on_both_apis;
use ipnet::IpNet;
use serde_json::{Value, json};

use nodes::proxy::{Fate, Proxy};
use nodes::{Cluster, HOUR, Node, Peers, Setup, Surroundings, id, until};

/// A fence that no test reaches, with a Lease that is written every second.
const SOON: Duration = Duration::from_secs(30);
const LEASES: &str = "leases.coordination.k8s.io";
/// Longer than any reaction to an event takes here.
const SETTLE: Duration = Duration::from_millis(800);

fn setup<'a>(cluster: &Cluster, name: &'a str, boot_id: &'a str) -> Setup<'a> {
    Setup {
        name,
        boot_id,
        offline: HOUR,
        idle_release: None,
        adopted: vec![],
        client: cluster.client(),
    }
}

/// A server that goes back in time within a test; a real one does in `races/restore.rs`.
fn embedded(cluster: &Cluster) -> &ApiServer {
    match &cluster.server {
        Server::Embedded(server) => server,
        Server::Real(..) => unreachable!("asked for the embedded one"),
    }
}

fn says(node: &Node, text: &str) -> bool {
    node.holdings.borrow().problems.iter().any(|problem| problem.contains(text))
}

fn condition(object: &Value, type_: &str) -> Option<Value> {
    let all = object["status"]["conditions"].as_array()?;
    all.iter().find(|condition| condition["type"] == type_).cloned()
}

async fn until_pod(node: &Node, pod: &str) -> std::net::IpAddr {
    until("an address", || node.add(pod).is_ok()).await;
    node.add(pod).expect("the same")[0]
}

fn mark_off(cluster: &Cluster, node: &str, holder: Option<&str>) {
    let patch = json!({"metadata": {"annotations": {"cairn.network/machine-off": holder}}});
    let name = format!("cairn-node-{node}");
    cluster
        .server
        .patch(LEASES, Some("cairn-system"), &name, PatchType::Merge, &patch)
        .expect("a Lease");
}

fn holder(cluster: &Cluster, node: &str) -> String {
    let lease = cluster.server.get(LEASES, Some("cairn-system"), &format!("cairn-node-{node}"));
    lease.expect("a Lease")["spec"]["holderIdentity"].as_str().expect("a holder").to_owned()
}

async fn of_32_nodes_that_race_for_16_blocks_16_own_one(api: Api) {
    let cluster = Cluster::start(api).await;
    cluster.pool("small", "10.244.0.0/24", 28);
    let names: Vec<String> = (0..32).map(|n| format!("n{n}")).collect();
    names.iter().for_each(|name| cluster.node(name, name));
    let nodes: Vec<Node> =
        names.iter().map(|name| Node::start(&cluster, name, name, HOUR)).collect();
    let open = || -> Vec<IpNet> {
        nodes.iter().flat_map(|node| Node::open(&node.holdings.borrow())).collect()
    };
    until("16 are confirmed", || open().len() == 16).await;
    until("the others say why", || {
        nodes.iter().filter(|node| says(node, "has no free block")).count() == 16
    })
    .await;
    assert_eq!(open().into_iter().collect::<BTreeSet<_>>().len(), 16, "no block twice");
    let owners: BTreeSet<String> =
        cluster.blocks().iter().map(|block| block["spec"]["node"]["name"].to_string()).collect();
    assert_eq!((cluster.blocks().len(), owners.len()), (16, 16));
    // Others' blocks have room, and nobody borrows of them.
    for node in nodes.iter().filter(|node| Node::open(&node.holdings.borrow()).is_empty()) {
        assert!(matches!(node.add("pod"), Err(AssignError::NoBlock { .. })));
    }
}

async fn a_disabled_pool_is_never_used(api: Api) {
    let cluster = Cluster::start(api).await;
    cluster.pool_with("off", json!({"cidr": "10.1.0.0/24", "blockSize": 28, "disabled": true}));
    cluster.pool("on", "10.2.0.0/24", 28);
    cluster.node("n1", "boot1");
    let mut node = Node::start(&cluster, "n1", "boot1", HOUR);
    node.until_open(1).await;
    let held = until_pod(&node, "pod").await;
    cluster.change_pool("on", json!({"disabled": true}));
    let holdings = node.until("closed", |h| Node::open(h).is_empty()).await;
    assert!(holdings.pools.iter().all(|pool| pool.unusable.is_some()), "{:?}", holdings.pools);
    until("the book has heard", || node.add("late").is_err()).await;
    assert_eq!(node.add("pod"), Ok(vec![held]), "what is there stays");
    cluster.change_pool("off", json!({"disabled": false}));
    let open = node.until_open(1).await;
    assert!(open.iter().all(|block| block.to_string().starts_with("10.1.")), "{open:?}");
}

async fn a_node_that_a_pool_selects_no_more_keeps_its_pods_addresses_and_gives_no_new_ones(
    api: Api,
) {
    let cluster = Cluster::start(api).await;
    let selector = |zone: &str| json!({"matchLabels": {"zone": zone}});
    let spec = json!({"cidr": "10.1.0.0/24", "blockSize": 28, "nodeSelector": selector("inner")});
    cluster.pool_with("inner", spec);
    cluster.node("n1", "boot1");
    let label = |zone: &str| {
        let patch = json!({"metadata": {"labels": {"zone": zone}}});
        cluster.server.patch("nodes", None, "n1", PatchType::Merge, &patch).expect("labelled");
    };
    label("inner");
    let mut node = Node::start(&cluster, "n1", "boot1", HOUR);
    let block = node.until_open(1).await[0];
    let held = until_pod(&node, "pod").await;
    label("outer");
    node.until("closed", |h| Node::open(h).is_empty()).await;
    until("the book has heard", || node.add("late").is_err()).await;
    assert_eq!(node.add("pod"), Ok(vec![held]), "what is there stays");
    assert!(node.holdings.borrow().announced.contains(&block), "and is reached");
    assert_eq!(cluster.blocks().len(), 1);
    // The pool follows the node, which is the same from its other side.
    cluster.change_pool("inner", json!({"nodeSelector": selector("outer")}));
    node.until("open again", |h| Node::open(h) == [block]).await;
    until("a pod", || node.add("late").is_ok()).await;
}

async fn a_node_takes_its_pod_cidrs_and_claims_from_another_pool_beside_them(api: Api) {
    let cluster = Cluster::start(api).await;
    let of_nodes = |cidr: &str, size: u8| json!({"cidr": cidr, "blockSize": size, "allocation": "NodePodCIDR"});
    cluster.pool_with("four", of_nodes("10.244.0.0/16", 24));
    cluster.pool_with("six", of_nodes("fd00:10:244::/48", 64));
    cluster.pool("more", "10.9.0.0/24", 28);
    let cidrs = ["10.244.7.0/24", "fd00:10:244:7::/64"];
    cluster.node_with("n1", json!({"podCIDR": cidrs[0], "podCIDRs": cidrs}));
    cluster.boot("n1", "boot1", "m1");
    let mut node = Node::set_up(Setup {
        idle_release: Some(Duration::from_secs(1)),
        ..setup(&cluster, "n1", "boot1")
    });
    let wanted = cidrs.map(|cidr| cidr.parse::<IpNet>().expect("a network"));
    node.until("both", |h| wanted.iter().all(|cidr| Node::open(h).contains(cidr))).await;
    for n in 0..254 {
        until_pod(&node, &format!("pod{n}")).await;
    }
    node.until("one on demand", |h| {
        Node::open(h).iter().any(|cidr| cidr.to_string().starts_with("10.9."))
    })
    .await;
    (0..254).for_each(|n| node.del(&format!("pod{n}")));
    node.until("only that goes back", |h| Node::open(h) == wanted).await;
    cluster.cordon("n1", true);
    tokio::time::sleep(Duration::from_secs(6)).await;
    assert_eq!(Node::open(&node.holdings.borrow()), wanted, "for life");
}

async fn a_drained_node_gives_back_its_last_block_and_gets_one_when_it_is_open_again(api: Api) {
    let cluster = Cluster::start(api).await;
    cluster.pool("default", "10.244.0.0/16", 26);
    cluster.node("n1", "boot1");
    let mut node = Node::start(&cluster, "n1", "boot1", HOUR);
    let block = node.until_open(1).await[0];
    until_pod(&node, "pod").await;
    cluster.cordon("n1", true);
    tokio::time::sleep(Duration::from_secs(6)).await;
    assert_eq!(cluster.owner(block).as_deref(), Some("n1"), "a pod lives in it");
    node.del("pod");
    until("it goes", || cluster.blocks().is_empty()).await;
    tokio::time::sleep(SETTLE).await;
    assert!(cluster.blocks().is_empty(), "none ahead");
    cluster.cordon("n1", false);
    node.until_open(1).await;
}

async fn an_agent_killed_between_claim_and_first_use_restarts_into_the_same_truth(api: Api) {
    let cluster = Cluster::start(api).await;
    let proxy = Proxy::start(cluster.serving.address()).await;
    cluster.pool("default", "10.244.0.0/16", 26);
    cluster.node("n1", "boot1");
    let outside = Surroundings::default();
    proxy.meet("GET", "spec.range", Fate::Waits);
    let first = Setup { client: proxy.client(), ..setup(&cluster, "n1", "boot1") };
    let mut node = Node::set_up_in(first, outside.clone());
    until("claimed, not verified", || proxy.met() > 0).await;
    node.tasks.shutdown().await;
    let mut again = Node::set_up_in(setup(&cluster, "n1", "boot1"), outside);
    let block = again.until_open(1).await[0];
    let object = cluster.object(block).expect("the block");
    assert!(object["metadata"]["annotations"]["cairn.network/taken-up"].is_string(), "asked first");
    assert_eq!(cluster.blocks().len(), 1);
}

async fn an_agent_killed_between_address_and_answer_restarts_into_the_same_truth(api: Api) {
    let cluster = Cluster::start(api).await;
    cluster.pool("default", "10.244.0.0/28", 28);
    cluster.node("n1", "boot1");
    let outside = Surroundings::default();
    let mut node = Node::set_up_in(setup(&cluster, "n1", "boot1"), outside.clone());
    let block = node.until_open(1).await[0];
    let address = until_pod(&node, "pod").await;
    let version = cluster.object(block).expect("the block")["metadata"]["resourceVersion"].clone();
    until("its status", || cluster.object(block).expect("it")["status"]["used"] == "1").await;
    let taken_up = cluster.object(block).expect("it")["metadata"]["annotations"].clone();
    assert_ne!(version, Value::Null);
    node.tasks.shutdown().await;
    let adopted = vec![(id("pod"), vec![address])];
    let setup = Setup { adopted, ..setup(&cluster, "n1", "boot1") };
    let mut again = Node::set_up_in(setup, outside);
    assert_eq!(again.until_open(1).await, [block]);
    assert_eq!(again.add("pod"), Ok(vec![address]));
    let mut given = BTreeSet::from([address]);
    for n in 0..15 {
        assert!(given.insert(until_pod(&again, &format!("pod{n}")).await), "twice");
    }
    let annotations = cluster.object(block).expect("it")["metadata"]["annotations"].clone();
    assert_eq!(annotations, taken_up, "the disk spared the write");
}

async fn with_the_api_away_a_restarted_agent_hands_out_from_the_blocks_on_its_disk(api: Api) {
    let cluster = Cluster::start(api).await;
    let proxy = Proxy::start(cluster.serving.address()).await;
    cluster.pool("default", "10.244.0.0/16", 26);
    cluster.node("n1", "boot1");
    let outside = Surroundings::default();
    let behind = || Setup { client: proxy.client(), ..setup(&cluster, "n1", "boot1") };
    let mut node = Node::set_up_in(behind(), outside.clone());
    let block = node.until_open(1).await[0];
    let address = until_pod(&node, "pod").await;
    let view = ClusterView { synced: false, restored: true, ..(**node.views.borrow()).clone() };
    proxy.cut();
    node.tasks.shutdown().await;
    let restored = Some(view);
    let adopted = || vec![(id("pod"), vec![address])];
    let again = Setup { adopted: adopted(), ..behind() };
    let surroundings = Surroundings { restored: restored.clone(), ..outside.clone() };
    let mut again = Node::set_up_in(again, surroundings);
    assert_eq!(again.until_open(1).await, [block]);
    let second = until_pod(&again, "second").await;
    assert!(block.contains(&second) && second != address);
    // Another boot knows nothing, and a lost disk neither.
    for (boot_id, memory) in [("boot2", outside.memory.clone()), ("boot1", Default::default())] {
        let surroundings =
            Surroundings { memory, restored: restored.clone(), ..Surroundings::default() };
        let client = proxy.client();
        let other =
            Node::set_up_in(Setup { client, ..setup(&cluster, "n1", boot_id) }, surroundings);
        tokio::time::sleep(SETTLE).await;
        assert!(Node::open(&other.holdings.borrow()).is_empty(), "{boot_id}");
    }
    proxy.hang_watches(false);
    proxy.heal_requests();
    again.until("nothing is lost", |h| Node::open(h) == [block] && h.problems.is_empty()).await;
    assert_eq!(cluster.blocks().len(), 1, "nor doubled");
    assert_eq!(again.add("pod"), Ok(vec![address]));
}

async fn blocks_removed_by_force_come_back_under_their_pods(api: Api) {
    let cluster = Cluster::start(api).await;
    // No peers here tell a node that claims another block whose that is.
    let spec = json!({"cidr": "10.244.0.0/24", "blockSize": 28, "maxBlocksPerNode": 1});
    cluster.pool_with("default", spec);
    let names = ["n1", "n2", "n3"];
    let mut nodes = Vec::new();
    for name in names {
        cluster.node(name, name);
        let mut node = Node::start(&cluster, name, name, HOUR);
        let block = node.until_open(1).await[0];
        let address = until_pod(&node, name).await;
        nodes.push((node, block, address));
    }
    let uids: Vec<Option<String>> = nodes.iter().map(|(_, block, _)| cluster.uid(*block)).collect();
    nodes.iter().for_each(|(_, block, _)| cluster.remove_by_force(*block));
    for ((node, block, address), (uid, name)) in nodes.iter_mut().zip(uids.iter().zip(names)) {
        let block = *block;
        until("its owner asserts it", || cluster.is_new_of(name, block, uid)).await;
        node.until("open again", |h| Node::open(h).contains(&block)).await;
        assert_eq!(node.add(name), Ok(vec![*address]));
    }
}

/// All that happens in a cluster between a backup and its use: what comes after a restore does not
/// reach the numbers from before in a moment.
fn live_on(cluster: &Cluster) {
    for n in 0..1000 {
        let label = json!({"metadata": {"labels": {"count": n.to_string()}}});
        cluster.server.patch("nodes", None, "n1", PatchType::Merge, &label).expect("a label");
    }
}

#[tokio::test]
async fn after_a_restore_the_blocks_in_which_pods_live_are_asserted_and_confirmed_again() {
    let cluster = Cluster::new();
    cluster.pool("default", "10.244.0.0/24", 28);
    cluster.node("n1", "boot1");
    let mut node = Node::start(&cluster, "n1", "boot1", SOON);
    let first = node.until_open(1).await[0];
    until_pod(&node, "pod0").await;
    let backup = embedded(&cluster).snapshot();
    live_on(&cluster);
    for n in 1..20 {
        until_pod(&node, &format!("pod{n}")).await;
    }
    let both = node.until_open(2).await;
    let second = *both.iter().find(|block| **block != first).expect("another");
    let held = node.add("pod19");
    embedded(&cluster).restore(&backup);
    assert!(cluster.object(second).is_none());
    until("it is asserted", || cluster.owner(second).as_deref() == Some("n1")).await;
    node.until("both are open", |h| both.iter().all(|block| Node::open(h).contains(block))).await;
    assert_eq!(node.views.borrow().epoch, 1, "once");
    for block in both {
        let object = cluster.object(block).expect("the block");
        let taken_up = &object["metadata"]["annotations"]["cairn.network/taken-up"];
        assert!(taken_up.is_string(), "{block} was asked for anew");
    }
    assert_eq!(node.add("pod19"), held);
}

/// The watch is silent, so that the view shows the Node of before; the Lease that would tell is the
/// other machine's again.
#[tokio::test]
async fn after_a_restore_to_another_machine_the_node_that_registers_anew_goes_on() {
    let cluster = Cluster::new();
    cluster.pool("default", "10.244.0.0/24", 28);
    cluster.node("n1", "boot1");
    let mut first = Node::start(&cluster, "n1", "boot1", SOON);
    first.until_open(1).await;
    drop(first);
    let backup = embedded(&cluster).snapshot();
    live_on(&cluster);
    embedded(&cluster).delete("nodes", None, "n1").expect("the Node");
    cluster.node("n1", "boot2");
    let mut second = Node::start(&cluster, "n1", "boot2", SOON);
    second.until_open(1).await;
    embedded(&cluster).restore(&backup);
    cluster.boot("n1", "boot2", "n1");
    second.until("closed", |h| Node::open(h).is_empty()).await;
    second.until_open(1).await;
}

#[tokio::test]
async fn after_a_restore_of_an_old_state_the_status_of_blocks_is_written_at_once() {
    let cluster = Cluster::new();
    cluster.pool("default", "10.244.0.0/24", 28);
    cluster.node("n1", "boot1");
    let mut node = Node::start(&cluster, "n1", "boot1", SOON);
    let block = node.until_open(1).await[0];
    let used = |count: &str| cluster.object(block).expect("it")["status"]["used"] == count;
    until_pod(&node, "pod0").await;
    until("its status", || used("1")).await;
    let backup = embedded(&cluster).snapshot();
    live_on(&cluster);
    until_pod(&node, "pod1").await;
    until("its status", || used("2")).await;
    embedded(&cluster).restore(&backup);
    until("its status", || used("2")).await;
    node.del("pod1");
    until("its status", || used("1")).await;
}

#[tokio::test]
async fn an_agent_whose_node_is_of_a_history_that_is_no_more_finds_the_one_that_is() {
    for comes_back in [false, true] {
        let cluster = Cluster::new();
        cluster.pool("default", "10.244.0.0/24", 28);
        cluster.node("n1", "boot1");
        let mut node = Node::start(&cluster, "n1", "boot1", SOON);
        node.until_open(1).await;
        let backup = embedded(&cluster).snapshot();
        live_on(&cluster);
        let before = cluster.lease_version("n1");
        until("its Lease", || cluster.lease_version("n1") != before).await;
        cluster.server.delete("nodes", None, "n1").expect("deleted");
        node.until("it says so", |h| h.problems.iter().any(|p| p.contains("Node object"))).await;
        if comes_back {
            let before = cluster.lease_version("n1");
            cluster.node("n1", "boot1");
            until("its Lease", || cluster.lease_version("n1") != before).await;
        }
        // Neither the watch nor a write of the Lease tells it.
        embedded(&cluster).restore(&backup);
        until("listed anew", || node.views.borrow().epoch == 1).await;
        node.until_open(1).await;
        assert_eq!(node.views.borrow().epoch, 1, "once");
    }
}

#[tokio::test]
async fn a_block_that_was_given_back_before_a_restore_is_given_back_again() {
    let cluster = Cluster::new();
    let proxy = Proxy::start(cluster.serving.address()).await;
    cluster.pool("default", "10.244.0.0/24", 28);
    cluster.node("n1", "boot1");
    let mut node = Node::behind(&proxy, "n1", "boot1", SOON);
    let block = node.until_open(1).await[0];
    cluster.cordon("n1", true);
    let is_cordoned = |node: &Node| {
        let view = node.views.borrow();
        let spec = view.node.as_ref().and_then(|node| node.spec.as_ref());
        spec.is_some_and(|spec| spec.unschedulable == Some(true))
    };
    until("it knows", || is_cordoned(&node)).await;
    let backup = embedded(&cluster).snapshot();
    live_on(&cluster);
    // It never sees that the block has gone.
    proxy.hang_watches(true);
    until("given back", || cluster.object(block).is_none()).await;
    embedded(&cluster).restore(&backup);
    assert!(cluster.object(block).is_some());
    until("listed anew", || node.views.borrow().epoch == 1).await;
    proxy.hang_watches(false);
    until("given back again", || cluster.object(block).is_none()).await;
}

#[tokio::test]
async fn a_block_that_another_claimed_after_a_restore_is_reported_with_each_pod() {
    let cluster = Cluster::new();
    let proxy = Proxy::start(cluster.serving.address()).await;
    cluster.pool("default", "10.244.0.0/28", 28);
    cluster.node("n1", "boot1");
    cluster.node("n2", "boot2");
    proxy.meet("POST", "ipblocks", Fate::Waits);
    let mut n1 = Node::behind(&proxy, "n1", "boot1", SOON);
    until("it is about to claim", || proxy.met() > 0).await;
    let backup = embedded(&cluster).snapshot();
    proxy.let_pass();
    let block = n1.until_open(1).await[0];
    let address = until_pod(&n1, "pod").await;
    // What tells it later: its own Lease is older than it was written.
    let lease = || cluster.server.get(LEASES, Some("cairn-system"), "cairn-node-n1").expect("it");
    let before = lease();
    until("its Lease", || lease() != before).await;
    proxy.cut();
    embedded(&cluster).restore(&backup);
    // Nobody hears a route, as while a session is down.
    let mut n2 = Node::start(&cluster, "n2", "boot2", SOON);
    assert_eq!(n2.until_open(1).await, [block]);
    proxy.hang_watches(false);
    proxy.heal_requests();
    let told =
        n1.until("reported", |h| h.problems.iter().any(|p| p.contains("owned by node n2"))).await;
    let report = told.problems.iter().find(|p| p.contains("owned by node n2")).expect("it");
    assert!(report.contains(&address.to_string()) && report.contains("pod"), "{report}");
    assert!(
        Node::open(&told).is_empty() && told.announced == [IpNet::from(address)],
        "its pod runs on"
    );
    assert_eq!(n1.add("pod"), Ok(vec![address]));
    assert_eq!(cluster.owner(block).as_deref(), Some("n2"));
}

async fn a_block_just_claimed_is_not_used_while_anybody_announces_it(api: Api) {
    let cluster = Cluster::start(api).await;
    cluster.pool("default", "10.244.0.0/28", 28);
    cluster.node("n1", "boot1");
    let outside = Surroundings::default();
    // It may be an announcement of this node on its way back, but of which process?
    let part = "10.244.0.8/29".parse().expect("a network");
    outside.peers.announce_looped(part);
    let mut node = Node::set_up_in(setup(&cluster, "n1", "boot1"), outside.clone());
    node.until("given up", |h| h.problems.iter().any(|p| p.contains("tor1 announces"))).await;
    until("it is free again", || cluster.blocks().is_empty()).await;
    assert!(Node::open(&node.holdings.borrow()).is_empty());
    outside.peers.withdraw(part);
    node.until_open(1).await;
}

async fn while_another_node_announces_a_block_it_is_closed_and_its_pods_stay(api: Api) {
    let cluster = Cluster::start(api).await;
    cluster.pool("default", "10.244.0.0/24", 28);
    cluster.node("n1", "boot1");
    cluster.node("n2", "boot2");
    let peers = Arc::new(Peers::default());
    let outside = || Surroundings { peers: Arc::clone(&peers), ..Surroundings::default() };
    let mut used = Node::set_up_in(setup(&cluster, "n1", "boot1"), outside());
    let mut idle = Node::set_up_in(setup(&cluster, "n2", "boot2"), outside());
    let (of_used, of_idle) = (used.until_open(1).await[0], idle.until_open(1).await[0]);
    let address = until_pod(&used, "pod").await;
    peers.announce(of_used);
    peers.announce(of_idle);
    let closed = used.until("closed", |h| !Node::open(h).contains(&of_used)).await;
    assert!(closed.announced.contains(&of_used), "its pod is reached as before");
    until("the condition names the pod", || {
        let conflict = condition(&cluster.object(of_used).expect("it"), "Conflict");
        conflict.is_some_and(|conflict| {
            conflict["status"] == "True"
                && conflict["message"].as_str().is_some_and(|m| m.contains(&address.to_string()))
        })
    })
    .await;
    until("the side without pods gives it up", || cluster.object(of_idle).is_none()).await;
    peers.withdraw(of_used);
    used.until("it ends by itself", |h| Node::open(h).contains(&of_used)).await;
    assert_eq!(used.add("pod"), Ok(vec![address]));
    until("the condition ends", || {
        let conflict = condition(&cluster.object(of_used).expect("it"), "Conflict");
        conflict.is_some_and(|conflict| conflict["status"] == "False")
    })
    .await;
}

async fn another_machine_uses_the_blocks_of_the_first_only_after_its_promise(api: Api) {
    let cluster = Cluster::start(api).await;
    let offline = Duration::from_secs(4);
    cluster.pool("default", "10.244.0.0/24", 28);
    cluster.node_with("n1", json!({}));
    cluster.boot("n1", "boot1", "m1");
    let mut first = Node::start(&cluster, "n1", "boot1", offline);
    let block = first.until_open(1).await[0];
    let address = until_pod(&first, "pod").await;
    cluster.boot("n1", "boot2", "m2");
    let began = std::time::Instant::now();
    let mut second = Node::start(&cluster, "n1", "boot2", offline);
    let own = second.until_open(1).await;
    assert!(!own.contains(&block), "a new one at once");
    assert!(says(&second, "another machine that had this Node before"));
    first
        .until("the first hears", |h| h.problems.iter().any(|p| p.contains("another machine")))
        .await;
    assert!(Node::open(&first.holdings.borrow()).is_empty());
    assert_eq!(first.add("pod"), Ok(vec![address]), "its pod is not touched");
    second.until("the first's block", |h| Node::open(h).contains(&block)).await;
    assert!(began.elapsed() >= offline + offline / 4, "{:?}", began.elapsed());
}

async fn another_machine_that_hears_nobody_leaves_the_blocks_of_the_first_alone(api: Api) {
    let cluster = Cluster::start(api).await;
    let offline = Duration::from_secs(2);
    cluster.pool("default", "10.244.0.0/24", 28);
    cluster.node_with("n1", json!({}));
    cluster.boot("n1", "boot1", "m1");
    let mut first = Node::start(&cluster, "n1", "boot1", offline);
    let block = first.until_open(1).await[0];
    cluster.boot("n1", "boot2", "m2");
    let outside = Surroundings::default();
    let start =
        || Node::set_up_in(Setup { offline, ..setup(&cluster, "n1", "boot2") }, outside.clone());
    let mut second = start();
    second.peers.set_deaf(true);
    second.until_open(1).await;
    // The first one's, with this node's AS in the path.
    second.peers.announce_looped(block);
    let waits = second
        .until("the wait is over", |h| h.problems.iter().any(|p| p.contains("hears nobody")))
        .await;
    assert!(!Node::open(&waits).contains(&block));
    assert!(waits.problems.iter().any(|p| p.contains("cairn ipam fence n1")), "{waits:?}");
    second.peers.set_deaf(false);
    let heard = second
        .until("it hears the first", |h| h.problems.iter().any(|p| p.contains("peer tor1")))
        .await;
    assert!(!Node::open(&heard).contains(&block));
    // What its next process knows of the first one stands in the block.
    second.tasks.shutdown().await;
    let mut second = start();
    let heard = second
        .until("it hears the first", |h| h.problems.iter().any(|p| p.contains("peer tor1")))
        .await;
    assert!(!Node::open(&heard).contains(&block));
    // Its own sessions end: that nothing is heard any more says nothing.
    second.peers.set_deaf(true);
    second.peers.withdraw(block);
    let deaf = second
        .until("it is asked again", |h| h.problems.iter().any(|p| p.contains("claimed it")))
        .await;
    assert!(!Node::open(&deaf).contains(&block));
    second.peers.set_deaf(false);
    second.until("the first is off", |h| Node::open(h).contains(&block)).await;
    let object = cluster.object(block).expect("it");
    let claimed_by = object["metadata"]["annotations"]["cairn.network/claimed-by"].as_str();
    assert!(claimed_by.is_some_and(|by| by.ends_with("/boot2")), "{object}");
}

async fn the_same_machine_after_a_reboot_goes_on_at_once_and_so_does_one_whose_other_is_off(
    api: Api,
) {
    for (machine, is_off) in [("m1", false), ("m2", true)] {
        let cluster = Cluster::start(api).await;
        cluster.pool("default", "10.244.0.0/24", 28);
        cluster.node_with("n1", json!({}));
        cluster.boot("n1", "boot1", "m1");
        let mut first = Node::start(&cluster, "n1", "boot1", HOUR);
        let block = first.until_open(1).await[0];
        first.tasks.shutdown().await;
        if is_off {
            mark_off(&cluster, "n1", Some(&holder(&cluster, "n1")));
        }
        cluster.boot("n1", "boot2", machine);
        let mut second = Node::start(&cluster, "n1", "boot2", HOUR);
        assert_eq!(second.until_open(1).await, [block], "{machine}");
        second.until("no complaint", |h| h.problems.is_empty()).await;
    }
}

async fn a_machine_that_is_marked_as_off_hands_out_nothing_until_that_is_undone(api: Api) {
    let cluster = Cluster::start(api).await;
    cluster.pool("default", "10.244.0.0/24", 28);
    cluster.node("n1", "boot1");
    let outside = Surroundings::default();
    let mut node =
        Node::set_up_in(Setup { offline: SOON, ..setup(&cluster, "n1", "boot1") }, outside.clone());
    let block = node.until_open(1).await[0];
    let address = until_pod(&node, "pod").await;
    mark_off(&cluster, "n1", Some(&holder(&cluster, "n1")));
    let marked = node.until("closed", |h| Node::open(h).is_empty()).await;
    assert_eq!(marked.announced, [block], "forwarding goes on");
    assert!(says(&node, "cairn ipam fence --undo"), "{:?}", marked.problems);
    until("the book has heard", || node.add("late").is_err()).await;
    let written = cluster.server.get(LEASES, Some("cairn-system"), "cairn-node-n1").expect("it");
    // A restart does not help, whatever its disk says.
    node.tasks.shutdown().await;
    let adopted = vec![(id("pod"), vec![address])];
    let again = Setup { offline: SOON, adopted, ..setup(&cluster, "n1", "boot1") };
    let mut again = Node::set_up_in(again, outside);
    again.until("marked", |h| h.problems.iter().any(|p| p.contains("--undo"))).await;
    tokio::time::sleep(SETTLE * 2).await;
    assert!(Node::open(&again.holdings.borrow()).is_empty());
    let now = cluster.server.get(LEASES, Some("cairn-system"), "cairn-node-n1").expect("it");
    assert_eq!(now["spec"], written["spec"], "nothing is written");
    mark_off(&cluster, "n1", None);
    again.until("open again", |h| Node::open(h) == [block]).await;
}

async fn a_fixed_address_brings_its_whole_block_or_says_who_has_it(api: Api) {
    let cluster = Cluster::start(api).await;
    cluster.pool("default", "10.244.0.0/24", 28);
    cluster.node("n1", "boot1");
    cluster.node("n2", "boot2");
    let mut n1 = Node::start(&cluster, "n1", "boot1", HOUR);
    let mut n2 = Node::start(&cluster, "n2", "boot2", HOUR);
    let (one, two) = (n1.until_open(1).await[0], n2.until_open(1).await[0]);
    let ask = |node: &Node, address: std::net::IpAddr| {
        let demand = Demand::Address(address);
        node.usage.send_modify(|usage| {
            usage.exhausted.insert(demand.clone());
        });
        demand
    };
    let all = (0..16u8).map(|n| format!("10.244.0.{}/28", n * 16).parse::<IpNet>());
    let mut all = all.map(|cidr| cidr.expect("a network"));
    let free = all.find(|cidr| *cidr != one && *cidr != two).expect("a free one");
    let mut wanted = free.hosts();
    ask(&n1, wanted.next().expect("an address"));
    n1.until("the whole block", |h| Node::open(h).contains(&free)).await;
    let theirs = ask(&n1, two.addr());
    let told = n1.until("who has it", |h| h.refusals.contains_key(&theirs)).await;
    assert!(told.refusals[&theirs].contains("owned by node n2"), "{:?}", told.refusals);
    let nowhere = ask(&n1, "192.0.2.1".parse().expect("an address"));
    let told = n1.until("no pool", |h| h.refusals.contains_key(&nowhere)).await;
    assert!(told.refusals[&nowhere].contains("lies in no IPPool"), "{:?}", told.refusals);
    let owners: BTreeSet<Option<String>> = [one, two, free].map(|c| cluster.owner(c)).into();
    assert_eq!((owners.len(), cluster.blocks().len()), (2, 3), "nothing else was claimed");
}

async fn a_block_whose_every_address_is_reserved_is_not_claimed(api: Api) {
    let cluster = Cluster::start(api).await;
    let reservation = json!({
        "apiVersion": "cairn.network/v1alpha1",
        "kind": "IPReservation",
        "metadata": {"name": "gateways"},
        "spec": {"cidrs": ["10.244.0.0/28", "10.244.0.16/29", "10.244.0.24/29", "10.244.0.32/29"]},
    });
    cluster
        .server
        .create("ipreservations.cairn.network", None, reservation)
        .expect("an IPReservation");
    cluster.pool("default", "10.244.0.0/26", 28);
    for name in ["n1", "n2", "n3"] {
        cluster.node(name, name);
    }
    let nodes = ["n1", "n2", "n3"].map(|name| Node::start(&cluster, name, name, HOUR));
    until("two blocks are open", || {
        nodes.iter().filter(|node| !Node::open(&node.holdings.borrow()).is_empty()).count() == 2
    })
    .await;
    until("the third says why", || nodes.iter().any(|node| says(node, "has no free block"))).await;
    let open: BTreeSet<String> = nodes
        .iter()
        .flat_map(|node| Node::open(&node.holdings.borrow()))
        .map(|cidr| cidr.to_string())
        .collect();
    assert_eq!(open.into_iter().collect::<Vec<_>>(), ["10.244.0.32/28", "10.244.0.48/28"]);
}

async fn a_start_with_many_blocks_asks_about_four_at_a_time(api: Api) {
    let cluster = Cluster::start(api).await;
    let proxy = Proxy::start(cluster.serving.address()).await;
    cluster.pool("default", "10.244.0.0/24", 28);
    cluster.node("n1", "boot1");
    let mut node = Node::start(&cluster, "n1", "boot1", HOUR);
    for n in 0..80 {
        until_pod(&node, &format!("pod{n}")).await;
    }
    let all = node.until_open(6).await;
    node.tasks.shutdown().await;
    proxy.meet("GET", "spec.range", Fate::Waits);
    // What was on the disk is lost.
    let again = Setup { client: proxy.client(), ..setup(&cluster, "n1", "boot1") };
    let mut again = Node::set_up(again);
    until("four are asked about", || proxy.met() == 4).await;
    tokio::time::sleep(SETTLE).await;
    assert_eq!(proxy.met(), 4);
    proxy.let_pass();
    assert_eq!(again.until_open(all.len()).await, all);
}

/// Pods that the kernel has and of whose block nothing else is left.
fn found(addresses: &[&str]) -> Vec<(cairn_ipam::AttachmentId, Vec<std::net::IpAddr>)> {
    let pods = addresses.iter().enumerate();
    pods.map(|(n, address)| (id(&format!("pod{n}")), vec![address.parse().expect("one")])).collect()
}

async fn pods_in_blocks_that_nobody_knows_any_more_get_their_blocks_back(api: Api) {
    let cluster = Cluster::start(api).await;
    cluster.pool("default", "10.244.0.0/24", 28);
    cluster.pool_with("old", json!({"cidr": "10.9.0.0/24", "blockSize": 28, "disabled": true}));
    cluster.node("n1", "boot1");
    let adopted = found(&["10.244.0.37", "10.244.0.38", "10.9.0.17", "192.0.2.7"]);
    let mut node = Node::set_up(Setup { adopted, ..setup(&cluster, "n1", "boot1") });
    let open: IpNet = "10.244.0.32/28".parse().expect("a block");
    let closed: IpNet = "10.9.0.16/28".parse().expect("a block");
    for block in [open, closed] {
        until("its owner asserts it", || cluster.owner(block).as_deref() == Some("n1")).await;
        node.until("announced", |h| h.announced.contains(&block)).await;
    }
    let holdings = node.until("confirmed", |h| Node::open(h).contains(&open)).await;
    assert!(!Node::open(&holdings).contains(&closed), "its pool is disabled");
    node.until("a problem", |h| {
        h.problems.iter().any(|problem| problem.contains("192.0.2.7 of a pod"))
    })
    .await;
    assert!(
        node.holdings.borrow().announced.iter().all(|net| !net.to_string().contains("192.0.2"))
    );
}

async fn of_a_block_that_is_anothers_only_the_pods_addresses_are_announced(api: Api) {
    let cluster = Cluster::start(api).await;
    let proxy = Proxy::start(cluster.serving.address()).await;
    cluster.pool("default", "10.244.0.0/28", 28);
    cluster.node("n1", "boot1");
    cluster.node("n2", "boot2");
    let mut n2 = Node::start(&cluster, "n2", "boot2", HOUR);
    let block = n2.until_open(1).await[0];
    until_pod(&n2, "other").await;
    // Before the API server says anything: the view of an earlier process names the pool.
    let view = (**n2.views.borrow()).clone();
    let (own_blocks, node) = (Default::default(), None);
    let restored = ClusterView { synced: false, restored: true, own_blocks, node, ..view };
    proxy.cut();
    let adopted = found(&["10.244.0.5", "10.244.0.9"]);
    let behind = Setup { adopted, client: proxy.client(), ..setup(&cluster, "n1", "boot1") };
    let surroundings = Surroundings { restored: Some(restored), ..Surroundings::default() };
    let mut n1 = Node::set_up_in(behind, surroundings);
    let single: Vec<IpNet> =
        ["10.244.0.5/32", "10.244.0.9/32"].map(|net| net.parse().expect("a net")).into();
    n1.until("the pods are announced", |h| h.announced == single).await;
    // That is what makes the other close the block.
    n2.peers.announce(single[0]);
    n2.until("closed", |h| Node::open(h).is_empty() && h.conflicts.contains_key(&block)).await;
    proxy.hang_watches(false);
    proxy.heal_requests();
    let told = n1.until("reported", |h| h.conflicts.contains_key(&block)).await;
    assert!(told.conflicts[&block].contains("owned by node n2"), "{:?}", told.conflicts);
    assert_eq!(told.announced, single, "the pods run on, and n2's are not hurt");
    assert_eq!(cluster.owner(block).as_deref(), Some("n2"));
    n1.del("pod0");
    n1.until("one less", |h| h.announced == single[1..]).await;
}

on_both_apis! {
    pods_in_blocks_that_nobody_knows_any_more_get_their_blocks_back,
    of_a_block_that_is_anothers_only_the_pods_addresses_are_announced,
    a_fixed_address_brings_its_whole_block_or_says_who_has_it,
    a_block_whose_every_address_is_reserved_is_not_claimed,
    a_start_with_many_blocks_asks_about_four_at_a_time,
    of_32_nodes_that_race_for_16_blocks_16_own_one,
    a_disabled_pool_is_never_used,
    a_node_that_a_pool_selects_no_more_keeps_its_pods_addresses_and_gives_no_new_ones,
    a_node_takes_its_pod_cidrs_and_claims_from_another_pool_beside_them,
    a_drained_node_gives_back_its_last_block_and_gets_one_when_it_is_open_again,
    an_agent_killed_between_claim_and_first_use_restarts_into_the_same_truth,
    an_agent_killed_between_address_and_answer_restarts_into_the_same_truth,
    with_the_api_away_a_restarted_agent_hands_out_from_the_blocks_on_its_disk,
    blocks_removed_by_force_come_back_under_their_pods,
    a_block_just_claimed_is_not_used_while_anybody_announces_it,
    while_another_node_announces_a_block_it_is_closed_and_its_pods_stay,
    another_machine_uses_the_blocks_of_the_first_only_after_its_promise,
    another_machine_that_hears_nobody_leaves_the_blocks_of_the_first_alone,
    the_same_machine_after_a_reboot_goes_on_at_once_and_so_does_one_whose_other_is_off,
    a_machine_that_is_marked_as_off_hands_out_nothing_until_that_is_undone,
}
