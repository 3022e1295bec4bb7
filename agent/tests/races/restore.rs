//! etcd is restored under agents that run: what was written since the backup is unknown to the API. With
//! every number raised, as operators of Kubernetes are told to, no number is lower than before.

use std::time::Duration;

use cairn_agent::ipam::Storage;
use cairn_tests::kube::Api;
use cairn_tests::on_both_apis;
use ipnet::IpNet;

use super::nodes::{Cluster, HOUR, Memory, Node, Setup, Surroundings, id, until};

/// What a restore raises all numbers by.
#[derive(Clone, Copy)]
struct RaisedBy(u64);

async fn no_address_is_given_twice(api: Api, RaisedBy(by): RaisedBy) {
    let cluster = Cluster::start(api).await;
    cluster.pool("default", "10.244.0.0/27", 28);
    cluster.node("n1", "boot1");
    cluster.node("n2", "boot2");
    let mut n1 = Node::start(&cluster, "n1", "boot1", OFFLINE);
    let first = n1.until_open(1).await[0];
    until("a pod", || n1.add("one").is_ok()).await;
    let backup = cluster.back_up().await;
    // Of this block the backup knows nothing.
    let mut n2 = Node::start(&cluster, "n2", "boot2", OFFLINE);
    let second = n2.until_open(1).await[0];
    until("a pod", || n2.add("two").is_ok()).await;
    let two = n2.add("two").expect("the same");
    cluster.restore(&backup, by).await;
    // Both need a second block, and only the one that n2's pod lives in seems free.
    cluster.node("n3", "boot3");
    // It hears n2's route before it asks for anything: BGP is the second witness.
    let surroundings = Surroundings::default();
    surroundings.peers.announce(second);
    let (name, boot_id, client) = ("n3", "boot3", cluster.client());
    let (idle_release, adopted) = (None, vec![]);
    let setup = Setup { name, boot_id, offline: OFFLINE, idle_release, adopted, client };
    let mut n3 = Node::set_up_in(setup, surroundings);
    until("n2 has its block again", || cluster.owner(second).as_deref() == Some("n2")).await;
    let told = |p: &String| p.contains("no free block");
    n3.until("it has looked", |h| h.problems.iter().any(told)).await;
    assert!(n3.add("three").is_err(), "nothing is free");
    assert_eq!(n2.add("two"), Ok(two), "its pod keeps its address");
    n2.until("it hands out again", |h| Node::open(h).contains(&second)).await;
    n1.until("it hands out again", |h| Node::open(h).contains(&first)).await;
}

async fn a_restored_etcd_gives_no_address_twice(api: Api) {
    no_address_is_given_twice(api, RaisedBy(0)).await;
}

async fn a_restore_that_raises_every_number_gives_no_address_twice(api: Api) {
    no_address_is_given_twice(api, RAISED).await;
}

/// Long before the Lease is due, the only thing that an agent writes without a reason.
async fn a_block_that_a_restore_forgot_is_missed_within_seconds(api: Api) {
    let cluster = Cluster::start(api).await;
    cluster.pool("default", "10.244.0.0/24", 28);
    cluster.node("n1", "boot1");
    let mut node = Node::start(&cluster, "n1", "boot1", HOUR);
    let first = node.until_open(1).await[0];
    until("a pod", || node.add("pod0").is_ok()).await;
    let backup = cluster.back_up().await;
    let mut addresses = Vec::new();
    for n in 0..=16 {
        let pod = format!("pod{n}");
        until("a pod", || node.add(&pod).is_ok()).await;
        addresses.push(node.add(&pod));
    }
    let both = node.until_open(2).await;
    let second = *both.iter().find(|block| **block != first).expect("another");
    cluster.restore(&backup, RAISED.0).await;
    until("it is asserted", || cluster.owner(second).as_deref() == Some("n1")).await;
    node.until("both are open", |h| both.iter().all(|block| Node::open(h).contains(block))).await;
    assert!(node.views.borrow().epoch > 0, "everything was read anew");
    let asked =
        |block: IpNet| cluster.object(block).expect("it")["metadata"]["annotations"].clone();
    assert!(asked(first)["cairn.network/taken-up"].is_string(), "{first} was asked for anew, too");
    for (n, held) in addresses.into_iter().enumerate() {
        assert_eq!(node.add(&format!("pod{n}")), held);
    }
}

/// Of what it knew nothing differs but its own Lease.
async fn an_agent_that_starts_after_a_restore_knows_it_by_its_lease(api: Api) {
    let cluster = Cluster::start(api).await;
    cluster.pool("default", "10.244.0.0/24", 28);
    cluster.node("n1", "boot1");
    let memory = Memory::default();
    let start = |adopted| {
        let (name, boot_id, client) = ("n1", "boot1", cluster.client());
        let setup = Setup { name, boot_id, offline: HOUR, idle_release: None, adopted, client };
        Node::set_up_in(setup, Surroundings { memory: memory.clone(), ..Surroundings::default() })
    };
    let version = || cluster.lease_version("n1").expect("its Lease");
    let mut node = start(vec![]);
    let block = node.until_open(1).await[0];
    until("a pod", || node.add("pod").is_ok()).await;
    let address = node.add("pod").expect("the same");
    let backup = cluster.back_up().await;
    node.tasks.shutdown().await;
    let before = version();
    node = start(vec![(id("pod"), address.clone())]);
    until("its Lease is written again", || version() != before).await;
    let written = format!("\"version\":{}}}", version().as_str().expect("a version"));
    until("what outlives it says so", || {
        let claims = memory.read("claims.json").expect("read").expect("claims");
        String::from_utf8_lossy(&claims).contains(&written)
    })
    .await;
    node.until_open(1).await;
    assert_eq!(node.views.borrow().epoch, 0, "nothing has happened yet");
    node.tasks.shutdown().await;
    cluster.restore(&backup, RAISED.0).await;
    node = start(vec![(id("pod"), address.clone())]);
    until("it notices", || node.views.borrow().epoch == 1).await;
    node.until("open again", |h| Node::open(h) == [block]).await;
    assert_eq!(node.add("pod"), Ok(address));
}

on_both_apis! {
    a_block_that_a_restore_forgot_is_missed_within_seconds,
    a_restore_that_raises_every_number_gives_no_address_twice,
    a_restored_etcd_gives_no_address_twice,
    an_agent_that_starts_after_a_restore_knows_it_by_its_lease,
}

const RAISED: RaisedBy = RaisedBy(1_000_000);
/// Longer than both restarts of the server take; the Lease, by which history that went back is
/// noticed, is written far more often.
const OFFLINE: Duration = Duration::from_secs(60);
