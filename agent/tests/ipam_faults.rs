//! Sequences of faults that would give one address to two pods, or lose one, each replayed step by
//! step.

mod nodes;

use std::collections::BTreeSet;
use std::net::IpAddr;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use cairn_lab::apiserver::PatchType;
use cairn_tests::kube::Api;
use cairn_tests::on_both_apis;
use ipnet::IpNet;
use serde_json::json;

use nodes::proxy::{Fate, Proxy};
use nodes::{BLOCKS, Cluster, HOUR, Node, POOLS, Setup, id, until};

const OFFLINE: Duration = Duration::from_secs(2);
/// Longer than any reaction to an event takes here.
const SETTLE: Duration = Duration::from_millis(800);

impl Cluster {
    fn recreate(&self, name: &str, boot_id: &str) {
        self.server.delete("nodes", None, name).expect("deleted");
        self.node(name, boot_id);
    }
}

fn is_open(node: &Node, cidr: IpNet) -> bool {
    Node::open(&node.holdings.borrow()).contains(&cidr)
}

/// Two nodes with a block each of a pool of two; `n1` leads.
async fn leader_and_other(cluster: &Cluster, proxies: [&Proxy; 2]) -> ([Node; 2], [IpNet; 2]) {
    cluster.without_graceful_restart();
    cluster.pool("default", "10.244.0.0/27", 28);
    cluster.node("n1", "boot1");
    cluster.node("n2", "boot2");
    let mut n1 = Node::behind(proxies[0], "n1", "boot1", OFFLINE);
    n1.until("it leads", |h| h.leads).await;
    let of_n1 = n1.until_open(1).await[0];
    let mut n2 = Node::behind(proxies[1], "n2", "boot2", OFFLINE);
    let of_n2 = n2.until_open(1).await[0];
    ([n1, n2], [of_n1, of_n2])
}

async fn a_node_that_comes_back_from_behind_the_fence_asks_before_it_hands_out(api: Api) {
    let cluster = Cluster::start(api).await;
    let direct = Proxy::start(cluster.serving.address()).await;
    let proxy = Proxy::start(cluster.serving.address()).await;
    let ([_n1, mut n2], [_, block]) = leader_and_other(&cluster, [&direct, &proxy]).await;
    proxy.cut();
    // Without its Lease it would not even write: its Node is gone.
    direct.meet("DELETE", "/leases/", Fate::IsForbidden);
    cluster.server.delete("nodes", None, "n2").expect("deleted");
    until("the block returns", || cluster.object(block).is_none()).await;
    cluster.node("n3", "boot3");
    let mut n3 = Node::start(&cluster, "n3", "boot3", OFFLINE);
    assert_eq!(n3.until_open(1).await, [block]);
    let theirs = n3.add("theirs").expect("an address");
    n2.until("closed", |h| Node::open(h).is_empty()).await;
    // The Lease can be written again, but the watches still show the world of before.
    let before = cluster.lease_version("n2");
    proxy.heal_requests();
    until("the Lease", || cluster.lease_version("n2") != before).await;
    // The first write may have been sent too long ago to count.
    for _ in 0..40 {
        assert!(!is_open(&n2, block));
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
    assert_ne!(n2.add("ours").ok(), Some(theirs));
    assert_eq!(cluster.owner(block).as_deref(), Some("n3"));
}

async fn a_block_is_not_returned_when_its_node_comes_back_at_the_last_moment(api: Api) {
    let cluster = Cluster::start(api).await;
    let leader = Proxy::start(cluster.serving.address()).await;
    let proxy = Proxy::start(cluster.serving.address()).await;
    let ([_n1, mut n2], [_, block]) = leader_and_other(&cluster, [&leader, &proxy]).await;
    let uid = cluster.uid(block);
    leader.meet("GET", "/nodes/n2 ", Fate::Waits);
    proxy.cut();
    cluster.server.delete("nodes", None, "n2").expect("deleted");
    until("the leader has decided", || leader.met() > 0).await;
    n2.until("closed", |h| Node::open(h).is_empty()).await;
    proxy.heal_requests();
    // It cannot know that its Node is gone, has written its Lease and asked for its block.
    n2.until("open again", |h| Node::open(h) == [block]).await;
    until("an address", || n2.add("pod").is_ok()).await;
    leader.let_pass();
    tokio::time::sleep(SETTLE).await;
    assert!(uid.is_some() && cluster.uid(block) == uid);
    assert!(cluster.object(block).expect("the block")["metadata"]["deletionTimestamp"].is_null());
}

async fn a_node_that_stood_still_past_the_fence_hands_nothing_out_when_it_goes_on(api: Api) {
    let cluster = Cluster::start(api).await;
    cluster.pool("default", "10.244.0.0/16", 26);
    cluster.node("n1", "boot1");
    let mut node = Node::start(&cluster, "n1", "boot1", OFFLINE);
    node.until_open(1).await;
    until("the book is open", || node.add("first").is_ok()).await;
    // All tasks but this one stand still: the book hears nothing more.
    node.tasks.shutdown().await;
    tokio::time::sleep(OFFLINE + Duration::from_millis(50)).await;
    assert!(node.add("second").is_err(), "its time was over");
    assert!(node.add("first").is_ok());
}

async fn a_claim_under_way_while_the_node_object_changes_is_not_used(api: Api) {
    let cluster = Cluster::start(api).await;
    let proxy = Proxy::start(cluster.serving.address()).await;
    cluster.pool("default", "10.244.0.0/16", 26);
    cluster.node("n1", "boot1");
    proxy.meet("POST", "ipblocks", Fate::Waits);
    let mut node = Node::behind(&proxy, "n1", "boot1", HOUR);
    until("the claim is under way", || proxy.met() > 0).await;
    cluster.recreate("n1", "boot1");
    tokio::time::sleep(SETTLE).await;
    proxy.let_pass();
    let block = node.until_open(1).await[0];
    let now = cluster.server.get("nodes", None, "n1").expect("the Node");
    let object = cluster.object(block).expect("the block");
    assert_eq!(object["spec"]["node"]["uid"], now["metadata"]["uid"]);
}

async fn an_idle_block_is_closed_before_its_delete_is_sent(api: Api) {
    let cluster = Cluster::start(api).await;
    cluster.pool("default", "10.244.0.0/16", 28);
    cluster.node("n1", "boot1");
    let mut node = Node::set_up(Setup {
        name: "n1",
        boot_id: "boot1",
        offline: HOUR,
        idle_release: Some(Duration::from_secs(1)),
        adopted: vec![],
        client: cluster.client(),
    });
    node.until_open(1).await;
    until("a book", || node.add("pod0").is_ok()).await;
    for n in 1..13 {
        node.add(&format!("pod{n}")).expect("an address");
    }
    let both = node.until_open(2).await;
    until("both in the book", || node.usage.borrow().blocks.iter().all(|b| b.hand_out)).await;
    for n in 0..13 {
        node.del(&format!("pod{n}"));
    }
    node.deaf.store(true, Ordering::Relaxed);
    let closing = node.until("one closes", |h| Node::open(h).len() == 1).await;
    let stays = Node::open(&closing)[0];
    let goes = both.into_iter().find(|block| *block != stays).expect("the other");
    // The book has not heard of it yet.
    let mut given = Vec::new();
    for n in 0..32 {
        given.extend(node.add(&format!("late{n}")).expect("both are open"));
    }
    assert!(given.iter().any(|address| goes.contains(address)));
    tokio::time::sleep(SETTLE).await;
    let object = cluster.object(goes).expect("a block with pods");
    assert!(object["metadata"]["deletionTimestamp"].is_null());
    node.deaf.store(false, Ordering::Relaxed);
    node.until("it is ours again", |h| Node::open(h).contains(&goes)).await;
}

async fn no_read_behind_a_claim_takes_what_an_api_server_has_cached(api: Api) {
    let cluster = Cluster::start(api).await;
    cluster.pool("default", "10.244.0.0/24", 28);
    cluster.node("n1", "boot1");
    let proxy = Proxy::start(cluster.serving.address()).await;
    // "Any version will do": the answer of a server that lags.
    proxy.meet("GET", "resourceVersion=0", Fate::IsForbidden);
    let mut node = Node::behind(&proxy, "n1", "boot1", HOUR);
    node.until_open(1).await;
    until("a pod", || node.add("pod").is_ok()).await;
    for n in 1..14 {
        node.add(&format!("pod{n}")).expect("an address");
    }
    node.until_open(2).await;
    assert_eq!(proxy.met(), 0);
}

async fn what_is_said_of_a_block_before_it_opened_does_not_let_it_go(api: Api) {
    let cluster = Cluster::start(api).await;
    let proxy = Proxy::start(cluster.serving.address()).await;
    cluster.pool("default", "10.244.0.0/16", 28);
    cluster.node("n1", "boot1");
    proxy.meet("GET", "spec.range", Fate::Waits);
    let mut node = Node::behind(&proxy, "n1", "boot1", HOUR);
    until("the book has the closed block", || {
        let usage = node.usage.borrow();
        usage.blocks.len() == 1 && !usage.blocks[0].hand_out
    })
    .await;
    node.mute.store(true, Ordering::Relaxed);
    proxy.let_pass();
    let block = node.until_open(1).await[0];
    until("a pod", || node.add("pod").is_ok()).await;
    cluster.server.delete(BLOCKS, None, &cairn_api::block_name(block)).expect("deleted");
    node.until("closed", |h| !Node::open(h).contains(&block)).await;
    tokio::time::sleep(SETTLE).await;
    assert!(cluster.object(block).is_some(), "a pod holds an address of it");
    node.unmute();
    tokio::time::sleep(SETTLE).await;
    assert!(cluster.object(block).is_some(), "a pod holds an address of it");
    node.del("pod");
    until("it goes", || cluster.object(block).is_none()).await;
}

async fn a_leader_does_not_return_the_block_in_which_its_own_pods_live(api: Api) {
    let cluster = Cluster::start(api).await;
    cluster.without_graceful_restart();
    cluster.pool("default", "10.244.0.0/16", 26);
    cluster.node("n1", "boot1");
    let mut node = Node::start(&cluster, "n1", "boot1", OFFLINE);
    node.until("it leads", |h| h.leads).await;
    let block = node.until_open(1).await[0];
    until("a pod", || node.add("pod").is_ok()).await;
    cluster.recreate("n1", "boot1");
    node.until("another block", |h| Node::open(h).iter().any(|open| *open != block)).await;
    tokio::time::sleep(OFFLINE * 3).await;
    assert!(cluster.object(block).is_some(), "a pod holds an address of it");
    node.del("pod");
    until("it goes", || cluster.object(block).is_none()).await;
}

async fn a_block_of_an_earlier_node_object_stays_while_its_pods_live(api: Api) {
    let cluster = Cluster::start(api).await;
    let one = Proxy::start(cluster.serving.address()).await;
    let two = Proxy::start(cluster.serving.address()).await;
    // Nobody hears a route, as while a session is down.
    let ([_n1, mut n2], [_, block]) = leader_and_other(&cluster, [&one, &two]).await;
    until("a pod", || n2.add("pod").is_ok()).await;
    until("its status", || cluster.object(block).expect("it")["status"]["used"] == "1").await;
    cluster.recreate("n2", "boot2");
    n2.until("closed", |h| !Node::open(h).contains(&block)).await;
    tokio::time::sleep(OFFLINE * 3).await;
    let object = cluster.object(block).expect("a pod holds an address of it");
    assert!(object["metadata"]["deletionTimestamp"].is_null());
    n2.del("pod");
    let uid = cluster.uid(block);
    until("it returns", || cluster.uid(block) != uid).await;
}

async fn a_node_that_another_machine_took_over_closes_when_its_lease_says_so(api: Api) {
    let cluster = Cluster::start(api).await;
    let proxy = Proxy::start(cluster.serving.address()).await;
    cluster.pool("default", "10.244.0.0/16", 26);
    cluster.node("n1", "boot1");
    let mut node = Node::behind(&proxy, "n1", "boot1", Duration::from_secs(30));
    node.until_open(1).await;
    proxy.hang_watches(true);
    let other = json!({"status": {"nodeInfo": {"bootID": "boot2"}}});
    cluster.server.patch_status("nodes", None, "n1", &other).expect("a status");
    let before = cluster.lease_version("n1");
    let _other = Node::start(&cluster, "n1", "boot2", Duration::from_secs(30));
    until("the other's Lease", || cluster.lease_version("n1") != before).await;
    node.until("closed", |h| Node::open(h).is_empty()).await;
}

async fn a_status_that_is_refused_waits_for_the_watch(api: Api) {
    let cluster = Cluster::start(api).await;
    let proxy = Proxy::start(cluster.serving.address()).await;
    cluster.pool("default", "10.244.0.0/28", 28);
    cluster.node("n1", "boot1");
    let mut node = Node::behind(&proxy, "n1", "boot1", HOUR);
    let block = node.until_open(1).await[0];
    let used = |count: &str| cluster.object(block).expect("it")["status"]["used"] == count;
    until("its status", || used("0")).await;
    tokio::time::sleep(SETTLE).await;
    proxy.hang_watches(true);
    let name = cairn_api::block_name(block);
    let label = json!({"metadata": {"labels": {"by": "hand"}}});
    cluster.server.patch(BLOCKS, None, &name, PatchType::Merge, &label).expect("a label");
    proxy.meet("PATCH", format!("{name}/status"), Fate::Passes);
    until("a pod", || node.add("pod").is_ok()).await;
    until("refused", || proxy.met() > 0).await;
    // Time for three writes.
    tokio::time::sleep(Duration::from_millis(3500)).await;
    assert_eq!((proxy.met(), used("0")), (1, true));
    proxy.hang_watches(false);
    until("its status", || used("1")).await;
}

async fn a_node_object_that_names_no_machine_is_nobodys(api: Api) {
    let cluster = Cluster::start(api).await;
    cluster.pool("default", "10.244.0.0/16", 26);
    let node = json!({"apiVersion": "v1", "kind": "Node", "metadata": {"name": "n1"}});
    cluster.server.create("nodes", None, node).expect("a Node");
    let node = Node::start(&cluster, "n1", "boot1", OFFLINE);
    tokio::time::sleep(SETTLE).await;
    assert!(cluster.blocks().is_empty() && cluster.lease_version("n1").is_none());
    assert!(Node::open(&node.holdings.borrow()).is_empty());
}

async fn a_claim_that_commits_after_the_client_gave_up_is_taken_up(api: Api) {
    let cluster = Cluster::start(api).await;
    let proxy = Proxy::start(cluster.serving.address()).await;
    cluster.pool("default", "10.244.0.0/16", 28);
    cluster.node("n1", "boot1");
    proxy.meet("POST", "ipblocks", Fate::ComesLate);
    let mut node = Node::behind(&proxy, "n1", "boot1", HOUR);
    until("a claim is lost", || proxy.met() == 1).await;
    assert_eq!(proxy.deliver().await, ["HTTP/1.1 201 Created"]);
    let block = node.until_open(1).await[0];
    let object = cluster.object(block).expect("the block");
    assert!(object["metadata"]["annotations"]["cairn.network/taken-up"].is_string());
    assert_eq!(cluster.blocks().len(), 1);
}

async fn a_claim_that_commits_after_another_of_it_changes_nothing(api: Api) {
    let cluster = Cluster::start(api).await;
    let proxy = Proxy::start(cluster.serving.address()).await;
    cluster.pool("default", "10.244.0.0/28", 28);
    cluster.node("n1", "boot1");
    cluster.node("n2", "boot2");
    proxy.meet("POST", "ipblocks", Fate::ComesLate);
    let n1 = Node::behind(&proxy, "n1", "boot1", HOUR);
    until("a claim is lost", || proxy.met() == 1).await;
    let mut n2 = Node::start(&cluster, "n2", "boot2", HOUR);
    let block = n2.until_open(1).await[0];
    assert_eq!(proxy.deliver().await, ["HTTP/1.1 409 Conflict"]);
    tokio::time::sleep(SETTLE).await;
    assert!(is_open(&n2, block) && !is_open(&n1, block));
}

async fn a_block_whose_delete_was_answered_into_the_void_belongs_to_the_next(api: Api) {
    for lost in ["DELETE", "PATCH"] {
        let cluster = Cluster::start(api).await;
        let proxy = Proxy::start(cluster.serving.address()).await;
        cluster.pool("default", "10.244.0.0/27", 28);
        cluster.node("n1", "boot1");
        cluster.node("n2", "boot2");
        let mut n1 = Node::set_up(Setup {
            name: "n1",
            boot_id: "boot1",
            offline: HOUR,
            idle_release: Some(Duration::from_secs(1)),
            adopted: vec![],
            client: proxy.client(),
        });
        n1.until_open(1).await;
        until("a book", || n1.add("pod0").is_ok()).await;
        for n in 1..13 {
            n1.add(&format!("pod{n}")).expect("an address");
        }
        let both = n1.until_open(2).await;
        until("seen", || cluster.blocks().iter().all(|b| !b["status"]["used"].is_null())).await;
        // The space or question mark leaves writes of the status out.
        for block in ["ipblocks/10.244.0.0-28", "ipblocks/10.244.0.16-28"] {
            proxy.meet(lost, format!("{block} "), Fate::LosesAnswer);
            proxy.meet(lost, format!("{block}?"), Fate::LosesAnswer);
        }
        for n in 0..13 {
            n1.del(&format!("pod{n}"));
        }
        until("lost", || proxy.met() > 0).await;
        let gone = || both.iter().find(|block| cluster.owner(**block).is_none()).copied();
        until("gone", || gone().is_some()).await;
        let goes = gone().expect("one is gone");
        let mut n2 = Node::start(&cluster, "n2", "boot2", HOUR);
        assert_eq!(n2.until_open(1).await, [goes]);
        let uid = cluster.uid(goes);
        tokio::time::sleep(SETTLE * 2).await;
        assert!(uid.is_some() && cluster.uid(goes) == uid, "{lost}");
        assert!(!is_open(&n1, goes) && is_open(&n2, goes));
    }
}

async fn a_block_removed_by_force_is_not_claimed_while_it_is_announced(api: Api) {
    let cluster = Cluster::start(api).await;
    let proxy = Proxy::start(cluster.serving.address()).await;
    cluster.pool("default", "10.244.0.0/26", 26);
    cluster.node("n1", "boot1");
    cluster.node("n2", "boot2");
    let mut n1 = Node::behind(&proxy, "n1", "boot1", HOUR);
    let block = n1.until_open(1).await[0];
    until("a pod", || n1.add("pod").is_ok()).await;
    let mut n2 = Node::start(&cluster, "n2", "boot2", HOUR);
    n2.routes.send_replace(Arc::new(BTreeSet::from([block])));
    n2.until("full", |h| h.problems.iter().any(|p| p.contains("has no free block"))).await;
    proxy.hang_watches(true);
    let uid = cluster.uid(block);
    cluster.remove_by_force(block);
    tokio::time::sleep(SETTLE).await;
    assert!(Node::open(&n2.holdings.borrow()).is_empty());
    proxy.hang_watches(false);
    until("its owner asserts it again", || cluster.is_new_of("n1", block, &uid)).await;
    let again = n1.until("open again", |h| Node::open(h).contains(&block)).await;
    assert!(again.announced.contains(&block), "its pod was there all the time");
}

async fn pools_of_the_same_second_and_of_the_same_name_share_no_address(api: Api) {
    let cluster = Cluster::start(api).await;
    cluster.node("n1", "boot1");
    cluster.node("n2", "boot2");
    let mut n1 = Node::start(&cluster, "n1", "boot1", HOUR);
    let mut n2 = Node::start(&cluster, "n2", "boot2", HOUR);
    cluster.pool("a", "10.244.0.0/24", 26);
    cluster.pool("b", "10.244.0.0/24", 28);
    let (one, two) = (n1.until_open(1).await[0], n2.until_open(1).await[0]);
    assert!(!one.contains(&two) && !two.contains(&one));
    until("a pod", || n1.add("pod").is_ok()).await;
    // The same names, other UIDs and sizes, while a pod lives in a block of the old ones: somebody
    // takes the finalizers away by force.
    for (name, size) in [("a", 29), ("b", 27)] {
        cluster.server.delete(POOLS, None, name).expect("deleted");
        let force = json!({"metadata": {"finalizers": null}});
        // The pool that nobody held is gone already.
        let _ = cluster.server.patch(POOLS, None, name, PatchType::Merge, &force);
        cluster.pool(name, "10.244.0.0/24", size);
    }
    n2.until("another block", |h| Node::open(h).iter().any(|block| *block != two)).await;
    tokio::time::sleep(SETTLE).await;
    let open: Vec<IpNet> = Node::open(&n2.holdings.borrow());
    assert!(open.iter().all(|block| !one.contains(block) && !block.contains(&one)), "{open:?}");
    assert!(cluster.object(one).is_some() && !is_open(&n1, one));
}

async fn an_agent_that_restarts_into_a_deletion_keeps_what_lives_and_nothing_else(api: Api) {
    let cluster = Cluster::start(api).await;
    cluster.pool("default", "10.244.0.0/16", 26);
    cluster.node("n1", "boot1");
    let mut node = Node::start(&cluster, "n1", "boot1", HOUR);
    let block = node.until_open(1).await[0];
    until("a pod", || node.add("pod").is_ok()).await;
    let address = node.add("pod").expect("the same");
    node.tasks.shutdown().await;
    cluster.server.delete(BLOCKS, None, &cairn_api::block_name(block)).expect("deleted");
    let stray: Vec<IpAddr> = vec!["10.244.77.7".parse().expect("an address")];
    let mut again = Node::set_up(Setup {
        name: "n1",
        boot_id: "boot1",
        offline: HOUR,
        idle_release: None,
        adopted: vec![(id("pod"), address.clone()), (id("stray"), stray.clone())],
        client: cluster.client(),
    });
    let open = again.until_open(1).await;
    assert!(!open.contains(&block), "it is being deleted");
    tokio::time::sleep(SETTLE).await;
    assert!(cluster.object(block).is_some(), "a pod holds an address of it");
    // Nobody but its kernel knew of the stray's block.
    let stray_block: IpNet = "10.244.77.0/26".parse().expect("a block");
    until("its block is asserted", || cluster.owner(stray_block).as_deref() == Some("n1")).await;
    // Whether a further one was claimed hangs on which of the two came first.
    again
        .until("announced", |h| [block, stray_block].iter().all(|b| h.announced.contains(b)))
        .await;
    assert_eq!((again.add("pod"), again.add("stray")), (Ok(address), Ok(stray)));
    again.del("pod");
    until("it goes", || cluster.object(block).is_none()).await;
}

on_both_apis! {
    a_node_that_comes_back_from_behind_the_fence_asks_before_it_hands_out,
    a_block_is_not_returned_when_its_node_comes_back_at_the_last_moment,
    a_node_that_stood_still_past_the_fence_hands_nothing_out_when_it_goes_on,
    a_claim_under_way_while_the_node_object_changes_is_not_used,
    an_idle_block_is_closed_before_its_delete_is_sent,
    no_read_behind_a_claim_takes_what_an_api_server_has_cached,
    what_is_said_of_a_block_before_it_opened_does_not_let_it_go,
    a_leader_does_not_return_the_block_in_which_its_own_pods_live,
    a_block_of_an_earlier_node_object_stays_while_its_pods_live,
    a_node_that_another_machine_took_over_closes_when_its_lease_says_so,
    a_status_that_is_refused_waits_for_the_watch,
    a_node_object_that_names_no_machine_is_nobodys,
    a_claim_that_commits_after_the_client_gave_up_is_taken_up,
    a_claim_that_commits_after_another_of_it_changes_nothing,
    a_block_whose_delete_was_answered_into_the_void_belongs_to_the_next,
    a_block_removed_by_force_is_not_claimed_while_it_is_announced,
    pools_of_the_same_second_and_of_the_same_name_share_no_address,
    an_agent_that_restarts_into_a_deletion_keeps_what_lives_and_nothing_else,
}
