//! The IPAM shell of several nodes in one process against both API servers. The pods of a
//! node are an address book without a kernel.

mod nodes;

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::time::Duration;

use cairn_ipam::AssignError;
use cairn_tests::kube::Api;
use cairn_tests::on_both_apis;
use ipnet::IpNet;
use serde_json::json;

use nodes::{BLOCKS, Cluster, HOUR, Node, PATIENCE, POOLS, until};

async fn nodes_that_race_for_too_few_blocks_own_each_block_once(api: Api) {
    let cluster = Cluster::start(api).await;
    cluster.pool("small", "10.244.0.0/26", 28);
    let mut nodes = Vec::new();
    for n in 0..6 {
        cluster.node(&format!("n{n}"), &format!("boot{n}"));
        nodes.push(Node::start(&cluster, &format!("n{n}"), &format!("boot{n}"), HOUR));
    }
    until("four blocks", || cluster.blocks().len() == 4).await;
    let open = || -> Vec<IpNet> {
        nodes.iter().flat_map(|node| Node::open(&node.holdings.borrow())).collect()
    };
    until("all are confirmed", || open().len() == 4).await;
    assert_eq!(open().into_iter().collect::<BTreeSet<_>>().len(), 4, "no block twice");
    until("the two without a block say why", || {
        let full = |node: &&Node| {
            node.holdings.borrow().problems.iter().any(|p| p.contains("has no free block"))
        };
        nodes.iter().filter(full).count() == 2
    })
    .await;
    let owners: BTreeSet<String> =
        cluster.blocks().iter().map(|block| block["spec"]["node"]["name"].to_string()).collect();
    assert_eq!(owners.len(), 4);
}

async fn a_pod_gets_an_address_and_the_block_and_the_pool_show_it(api: Api) {
    let cluster = Cluster::start(api).await;
    cluster.pool("default", "10.244.0.0/16", 26);
    cluster.node("n1", "boot1");
    let mut node = Node::start(&cluster, "n1", "boot1", HOUR);
    let block = node.until_open(1).await[0];
    let address = node.add("pod-a").expect("an address")[0];
    assert!(block.contains(&address));
    assert_eq!(node.holdings.borrow().announced, [block]);
    let metadata = &cluster.blocks()[0]["metadata"];
    assert_eq!(metadata["finalizers"], json!(["cairn.network/block"]));
    assert!(metadata["ownerReferences"].is_null(), "the garbage collector knows no fence");
    until("the block's status", || {
        let status = &cluster.blocks()[0]["status"];
        status["used"] == "1"
            && status["free"] == "63"
            && status["advertised"] == true
            && status["allocations"][0]["address"] == address.to_string()
            && status["allocations"][0]["container"] == "pod-a"
    })
    .await;
    node.del("pod-a");
    until("an empty block again", || {
        let status = &cluster.blocks()[0]["status"];
        status["used"] == "0" && status["allocations"].as_array().is_none_or(Vec::is_empty)
    })
    .await;
    until("the pool's status", || {
        let pool = cluster.server.get(POOLS, None, "default").expect("the pool");
        let status = &pool["status"];
        status["blockSize"] == 26
            && status["blocks"] == "1/1024"
            && status["conditions"][0]["status"] == "True"
    })
    .await;
    assert!(node.holdings.borrow().problems.is_empty(), "{:?}", node.holdings.borrow().problems);
    assert!(node.holdings.borrow().leads);
}

async fn a_full_block_brings_a_second_before_the_first_refusal(api: Api) {
    let cluster = Cluster::start(api).await;
    cluster.pool("default", "10.244.0.0/16", 28);
    cluster.node("n1", "boot1");
    let mut node = Node::start(&cluster, "n1", "boot1", HOUR);
    node.until_open(1).await;
    for n in 0..13 {
        node.add(&format!("pod{n}")).expect("an address");
    }
    node.until_open(2).await;
    for n in 13..29 {
        node.add(&format!("pod{n}")).expect("an address of the second");
    }
    node.until_open(3).await;
    tokio::time::sleep(Duration::from_millis(300)).await;
    assert_eq!(cluster.blocks().len(), 3, "no more than what is needed");
}

async fn of_two_pools_that_overlap_the_younger_is_not_used_and_says_so(api: Api) {
    let cluster = Cluster::start(api).await;
    cluster.pool("b-old", "10.244.0.0/20", 26);
    // The times have a grain of a second.
    tokio::time::sleep(Duration::from_millis(1_100)).await;
    cluster.pool("a-young", "10.244.0.0/16", 28);
    cluster.node("n1", "boot1");
    let mut node = Node::start(&cluster, "n1", "boot1", HOUR);
    node.until_open(1).await;
    assert_eq!(cluster.blocks()[0]["spec"]["pool"]["name"], "b-old");
    until("the condition", || {
        let pool = cluster.server.get(POOLS, None, "a-young").expect("the pool");
        let ready = &pool["status"]["conditions"][0];
        ready["reason"] == "Overlap" && ready["status"] == "False"
    })
    .await;
    let problems = node.holdings.borrow().problems.clone();
    assert!(problems.iter().any(|p| p.contains("IPPool a-young")), "{problems:?}");
}

async fn a_claim_that_another_block_overlaps_is_given_up(api: Api) {
    let cluster = Cluster::start(api).await;
    cluster.pool("default", "10.244.0.0/26", 26);
    // Of another size, so that no name stands in the way.
    let block = json!({
        "apiVersion": "cairn.network/v1alpha1",
        "kind": "IPBlock",
        "metadata": {"name": "10.244.0.16-28", "finalizers": ["cairn.network/block"]},
        "spec": {
            "cidr": "10.244.0.16/28", "range": "10.244.0.0/16",
            "pool": {"name": "default", "uid": "earlier"},
            "node": {"name": "n9", "uid": "u9"},
        },
    });
    cluster.server.create(BLOCKS, None, block).expect("a block");
    cluster.node("n1", "boot1");
    let mut node = Node::start(&cluster, "n1", "boot1", HOUR);
    let holdings =
        node.until("the report", |h| h.problems.iter().any(|p| p.contains("10.244.0.16/28"))).await;
    assert!(Node::open(&holdings).is_empty());
    until("the claim is gone", || cluster.blocks().len() == 1).await;
    assert_eq!(cluster.blocks()[0]["spec"]["node"]["name"], "n9");
}

async fn a_block_deleted_by_hand_stays_until_its_last_pod_has_gone(api: Api) {
    let cluster = Cluster::start(api).await;
    cluster.pool("default", "10.244.0.0/16", 26);
    cluster.node("n1", "boot1");
    let mut node = Node::start(&cluster, "n1", "boot1", HOUR);
    let block = node.until_open(1).await[0];
    let address = node.add("pod-a").expect("an address")[0];
    let name = cluster.blocks()[0]["metadata"]["name"].as_str().expect("a name").to_owned();
    assert!(!cluster.server.delete(BLOCKS, None, &name).expect("deleted"), "a finalizer holds it");
    node.until("another block", |h| {
        let open = Node::open(h);
        open.len() == 1 && open[0] != block && h.announced.contains(&block)
    })
    .await;
    let other = node.add("pod-b").expect("an address")[0];
    assert!(!block.contains(&other));
    assert_eq!(node.add("pod-a"), Ok(vec![address]), "what lives there stays");
    node.del("pod-a");
    until("the block is gone", || cluster.server.get(BLOCKS, None, &name).is_err()).await;
    node.until("it is not announced", |h| !h.announced.contains(&block)).await;
}

async fn blocks_of_a_vanished_node_return_after_the_fence_and_not_while_announced(api: Api) {
    let offline = Duration::from_secs(3);
    let cluster = Cluster::start(api).await;
    cluster.without_graceful_restart();
    cluster.pool("default", "10.244.0.0/16", 26);
    cluster.node("n1", "boot1");
    cluster.node("n2", "boot2");
    let mut stays = Node::start(&cluster, "n1", "boot1", offline);
    stays.until("it leads", |h| h.leads).await;
    let mut goes = Node::start(&cluster, "n2", "boot2", offline);
    let block = goes.until_open(1).await[0];
    goes.add("pod").expect("an address");
    until("its Lease", || {
        cluster
            .server
            .get("leases.coordination.k8s.io", Some("cairn-system"), "cairn-node-n2")
            .is_ok()
    })
    .await;
    stays.peers.announce(block);
    // The machine is off and its Node deleted.
    goes.tasks.shutdown().await;
    cluster.server.delete("nodes", None, "n2").expect("deleted");
    let off = std::time::Instant::now();
    let of_n2 = || cluster.blocks().iter().any(|b| b["spec"]["node"]["name"] == "n2");
    stays.until("the route keeps it", |h| h.problems.iter().any(|p| p.contains("vanished"))).await;
    assert!(off.elapsed() > offline, "the fence came first");
    assert!(of_n2());
    // Nor is it returned by a leader that could not hear of it.
    stays.peers.set_deaf(true);
    stays.peers.withdraw(block);
    let told = |p: &String| p.contains("n2 stay") && p.contains("hears nobody");
    stays.until("it hears nobody", |h| h.problems.iter().any(told)).await;
    assert!(of_n2());
    stays.peers.set_deaf(false);
    until("the block is returned", || !of_n2()).await;
}

async fn past_the_fence_nothing_is_handed_out_until_the_api_is_back(api: Api) {
    let cluster = Cluster::start(api).await;
    cluster.pool("default", "10.244.0.0/16", 26);
    cluster.node("n1", "boot1");
    let mut node = Node::start(&cluster, "n1", "boot1", Duration::from_secs(2));
    let block = node.until_open(1).await[0];
    cluster.server.pause();
    let first = node.add("pod-a").expect("the API is away, the fence stands");
    let fenced = node.until("fenced", |h| Node::open(h).is_empty()).await;
    assert_eq!(fenced.announced, [block], "forwarding goes on");
    assert!(fenced.problems.iter().any(|p| p.contains("fence")), "{:?}", fenced.problems);
    until("the book has heard", || matches!(node.add("pod-b"), Err(AssignError::Closed { .. })))
        .await;
    assert_eq!(node.add("pod-a"), Ok(first));
    cluster.server.resume();
    node.until_open(1).await;
    until("the book is open", || node.add("pod-b").is_ok()).await;
}

async fn a_restarted_agent_takes_up_its_blocks_and_another_machine_does_not(api: Api) {
    let cluster = Cluster::start(api).await;
    cluster.pool("default", "10.244.0.0/16", 26);
    cluster.node("n1", "boot1");
    let mut node = Node::start(&cluster, "n1", "boot1", HOUR);
    let block = node.until_open(1).await[0];
    let before = cluster.blocks()[0]["metadata"]["resourceVersion"].clone();
    node.tasks.shutdown().await;
    let mut again = Node::start(&cluster, "n1", "boot1", HOUR);
    assert_eq!(again.until_open(1).await, [block]);
    let taken_up = &cluster.blocks()[0]["metadata"];
    assert_ne!(taken_up["resourceVersion"], before, "an old DELETE must be void");
    assert_eq!(cluster.blocks().len(), 1);
    let mut other = Node::start(&cluster, "n1", "another-boot", HOUR);
    let holdings = other
        .until("the report", |h| h.problems.iter().any(|p| p.contains("another machine")))
        .await;
    assert!(Node::open(&holdings).is_empty());
}

async fn failures_of_the_server_delay_and_lose_nothing(api: Api) {
    let cluster = Cluster::start(api).await;
    cluster.pool("default", "10.244.0.0/24", 28);
    cluster.node("n1", "boot1");
    let mut node = Node::start(&cluster, "n1", "boot1", HOUR);
    let mut given: BTreeMap<IpAddr, String> = BTreeMap::new();
    for n in 0..48 {
        if n % 4 == 0 {
            cluster.server.fail_next(3);
        }
        let pod = format!("pod{n}");
        let mut answer = node.add(&pod);
        let deadline = tokio::time::Instant::now() + PATIENCE;
        while answer.is_err() {
            assert!(tokio::time::Instant::now() < deadline, "{:#?}", node.holdings.borrow());
            tokio::time::sleep(Duration::from_millis(20)).await;
            answer = node.add(&pod);
        }
        for address in answer.expect("just checked") {
            assert_eq!(given.insert(address, pod.clone()), None, "{address} twice");
        }
    }
    node.until("no problem stays", |h| h.problems.is_empty()).await;
    assert!((3..=5).contains(&cluster.blocks().len()), "{} blocks", cluster.blocks().len());
}

async fn a_deleted_pool_stays_until_its_last_block_has_gone(api: Api) {
    let cluster = Cluster::start(api).await;
    cluster.pool("default", "10.244.0.0/16", 26);
    cluster.node("n1", "boot1");
    let mut node = Node::start(&cluster, "n1", "boot1", HOUR);
    node.until_open(1).await;
    node.add("pod-a").expect("an address");
    let pool = || cluster.server.list(POOLS, None, "").expect("pools").into_iter().next();
    until("the pool is held", || {
        pool().is_some_and(|pool| pool["metadata"]["finalizers"][0] == "cairn.network/block")
    })
    .await;
    assert!(!cluster.server.delete(POOLS, None, "default").expect("deleted"), "not gone at once");
    node.until("the block is closed", |holdings| Node::open(holdings).is_empty()).await;
    until("the pool says so", || {
        pool().is_some_and(|pool| pool["status"]["conditions"][0]["reason"] == "Terminating")
    })
    .await;
    assert!(node.add("pod-b").is_err(), "an ending pool gives no address");
    assert_eq!(cluster.blocks().len(), 1, "the pod keeps its block");
    node.del("pod-a");
    until("the last block and then the pool are gone", || {
        cluster.blocks().is_empty() && pool().is_none()
    })
    .await;
}

on_both_apis! {
    nodes_that_race_for_too_few_blocks_own_each_block_once,
    a_pod_gets_an_address_and_the_block_and_the_pool_show_it,
    a_full_block_brings_a_second_before_the_first_refusal,
    of_two_pools_that_overlap_the_younger_is_not_used_and_says_so,
    a_claim_that_another_block_overlaps_is_given_up,
    a_block_deleted_by_hand_stays_until_its_last_pod_has_gone,
    blocks_of_a_vanished_node_return_after_the_fence_and_not_while_announced,
    past_the_fence_nothing_is_handed_out_until_the_api_is_back,
    a_restarted_agent_takes_up_its_blocks_and_another_machine_does_not,
    failures_of_the_server_delay_and_lose_nothing,
    a_deleted_pool_stays_until_its_last_block_has_gone,
}
