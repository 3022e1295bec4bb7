//! An ADD that cannot be served now: how long it waits, for what, and what ends it.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use cairn_agent::pods::Supply;
use cairn_agent::readiness::Verdict;
use cairn_cni::Code;
use cairn_cni::protocol::Response;
use cairn_ipam::{Demand, Family};

use crate::node::{IPS, IntoAddresses, Node, block, dual, ip, namespaces, request, v4};

#[tokio::test(start_paused = true)]
async fn a_demand_that_cannot_be_met_ends_the_wait_at_once() {
    let mut node = Node::start(v4("10.0.0.0/32")).await;
    node.add("c0", &[]).await.unwrap();
    let start = tokio::time::Instant::now();
    let calls = node.calls.clone();
    let waiting = tokio::spawn(async move { calls.add(request("c1", Some(&[])), ()).await });
    node.until(|usage| !usage.exhausted.is_empty()).await;
    let demand = Demand::Pools(Family::V4, vec!["a".into()]);
    node.change(|supply| {
        supply.refusals.insert(demand.clone(), "every block of IPPool a is taken".into());
    });
    let (code, msg) = waiting.await.unwrap().into_addresses().unwrap_err();
    assert_eq!(code, Code::TryAgainLater);
    assert!(msg.ends_with("no block can be claimed: every block of IPPool a is taken"), "{msg}");
    assert!(start.elapsed() < Duration::from_secs(1), "{:?}", start.elapsed());
    assert!(
        node.usage().await.exhausted.contains(&demand),
        "the owner of the blocks goes on trying"
    );
    assert!(node.add("c1", &[]).await.is_err());
    // A block that comes all the same serves.
    node.change(|supply| {
        supply.refusals.clear();
        supply.blocks.push(block("a", "10.0.0.8/32"));
    });
    assert_eq!(node.add("c1", &[]).await, Ok(vec![ip("10.0.0.8")]));
}

#[tokio::test(start_paused = true)]
async fn adds_that_wait_leave_places_for_the_dels_that_free_addresses() {
    let node = Node::start(v4("10.0.0.0/30")).await;
    let mut held = 0;
    while node.used().await < 4 {
        held += 1;
        assert!(held <= 4 && node.add(&format!("held{held}"), &[]).await.is_ok());
        node.until(|usage| usage.blocks[0].used == held).await;
    }
    // Half of the 128 requests that the socket takes.
    let add = |n: usize| {
        let calls = node.calls.clone();
        tokio::spawn(async move { calls.add(request(&format!("new{n}"), Some(&[])), ()).await })
    };
    let waiting: Vec<_> = (0..64).map(add).collect();
    tokio::time::sleep(Duration::from_secs(1)).await;
    assert!(waiting.iter().all(|add| !add.is_finished()));
    let (code, _) = add(64).await.unwrap().into_addresses().unwrap_err();
    assert_eq!(code, Code::TryAgainLater);
    assert!(waiting.iter().all(|add| !add.is_finished()), "it was refused at once");
}

#[tokio::test(start_paused = true)]
async fn a_fixed_address_waits_for_its_holder_and_for_its_block() {
    let mut node = Node::start(dual()).await;
    let wish = [(IPS, "10.1.0.5")];
    assert_eq!(node.add("old", &wish).await, Ok(vec![ip("10.1.0.5"), ip("fd00::")]));
    // The pod that follows asks before the old one has gone.
    let calls = node.calls.clone();
    let waiting = tokio::spawn(async move { calls.add(request("new", Some(&wish)), ()).await });
    tokio::time::sleep(Duration::from_secs(2)).await;
    assert!(!waiting.is_finished());
    node.del("old").await;
    let held = waiting.await.unwrap().into_addresses().unwrap();
    assert_eq!(held[0], ip("10.1.0.5"));
    let (code, msg) = node.add("third", &wish).await.unwrap_err();
    assert_eq!(code, Code::TryAgainLater);
    assert!(msg.contains("10.1.0.5 is in use by new/eth0"), "{msg}");
    // In no block of this node: the whole block that holds it has to come.
    let wish = [(IPS, "10.1.0.200")];
    let calls = node.calls.clone();
    let waiting = tokio::spawn(async move { calls.add(request("far", Some(&wish)), ()).await });
    let demand = Demand::Address(ip("10.1.0.200"));
    node.until(|usage| usage.exhausted.contains(&demand)).await;
    node.change(|supply| {
        let reason = "the block 10.1.0.192/26 belongs to node n2".to_owned();
        supply.refusals.insert(demand.clone(), reason);
    });
    let (_, msg) = waiting.await.unwrap().into_addresses().unwrap_err();
    assert!(msg.contains("belongs to node n2"), "{msg}");
    node.change(|supply| {
        supply.refusals.clear();
        supply.blocks.push(block("b", "10.1.0.192/26"));
        supply.reserved = vec!["10.1.0.201/32".parse().unwrap()];
    });
    assert_eq!(node.add("far", &wish).await.unwrap()[0], ip("10.1.0.200"));
    let (code, msg) = node.add("reserved", &[(IPS, "10.1.0.201")]).await.unwrap_err();
    assert_eq!(code, Code::InvalidConfig);
    assert!(msg.contains("is reserved by an IPReservation"), "{msg}");
}

#[tokio::test(start_paused = true)]
async fn a_namespace_that_is_not_known_yet_is_waited_for() {
    let mut node = Node::start(dual()).await;
    node.change(|supply| {
        supply.namespaces = Arc::new(BTreeMap::from([("x".into(), Arc::default())]))
    });
    let calls = node.calls.clone();
    let waiting = tokio::spawn(async move { calls.add(request("c1", Some(&[])), ()).await });
    tokio::time::sleep(Duration::from_secs(5)).await;
    assert!(!waiting.is_finished());
    node.change(|supply| supply.namespaces = namespaces(None, Some("b")));
    assert_eq!(waiting.await.unwrap().into_addresses(), Ok(vec![ip("10.1.0.0")]));
    node.change(|supply| {
        supply.namespaces = Arc::new(BTreeMap::from([("x".into(), Arc::default())]))
    });
    let (code, msg) = node.add("c2", &[]).await.unwrap_err();
    assert_eq!(code, Code::TryAgainLater);
    assert!(msg.contains("does not know the namespace ns yet"), "{msg}");
}

#[tokio::test(start_paused = true)]
async fn pods_wait_for_the_node_to_be_ready_and_then_go() {
    let node = Node::start(v4("10.0.0.0/30")).await;
    let shut = |reason: &str| node.handle.set_readiness(&Verdict::NoRoutes(reason.into()));
    shut("0/2 sessions are established");
    let start = tokio::time::Instant::now();
    let (code, msg) = node.add("c0", &[]).await.unwrap_err();
    assert_eq!((code, start.elapsed().as_secs()), (Code::TryAgainLater, 10));
    assert!(msg.contains("not ready: 0/2 sessions are established; the request may"), "{msg}");
    assert!(node.usage().await.exhausted.is_empty(), "no block is claimed for it");

    let calls = node.calls.clone();
    let waiting = tokio::spawn(async move { calls.add(request("c1", Some(&[])), ()).await });
    tokio::time::sleep(Duration::from_secs(6)).await;
    // It waits on, and not from the beginning.
    shut("1/2 sessions are established");
    tokio::time::sleep(Duration::from_secs(3)).await;
    assert!(!waiting.is_finished() && node.kernel.held().is_empty());
    node.handle.set_readiness(&Verdict::Ready);
    assert_eq!(waiting.await.unwrap().into_addresses(), Ok(vec![ip("10.0.0.0")]));
    assert_eq!(node.calls.status().await, Response::Done);

    shut("2/3 sessions are established");
    let Response::Failed(failure) = node.calls.status().await else { panic!("it is not ready") };
    assert_eq!(
        (failure.code, &*failure.msg),
        (Code::LimitedConnectivity, "2/3 sessions are established")
    );
    let late = tokio::time::Instant::now();
    let calls = node.calls.clone();
    let waiting = tokio::spawn(async move { calls.add(request("c2", Some(&[])), ()).await });
    tokio::time::sleep(Duration::from_secs(6)).await;
    shut("no session is established");
    let (_, msg) = waiting.await.unwrap().into_addresses().unwrap_err();
    assert!(msg.contains("no session is established"), "the latest reason: {msg}");
    assert_eq!(late.elapsed().as_secs(), 10, "a new reason is no new patience");
}

#[tokio::test(start_paused = true)]
async fn a_del_ends_an_add_that_only_waits_and_goes_on_at_once() {
    let node = Node::start(v4("10.0.0.0/32")).await;
    node.add("held", &[]).await.unwrap();
    let start = tokio::time::Instant::now();
    // The second one waits for its turn.
    let waiting = [node.spawn_add("c1"), node.spawn_add("c1"), node.spawn_add("c2")];
    tokio::time::sleep(Duration::from_secs(1)).await;
    node.del("c1").await;
    let [first, second, other] = waiting;
    for ended in [first, second] {
        let (code, msg) = ended.await.unwrap().into_addresses().unwrap_err();
        assert_eq!(code, Code::TryAgainLater);
        assert!(msg.contains("a DEL for the interface came"), "{msg}");
    }
    assert!(start.elapsed() < Duration::from_secs(2), "{:?}", start.elapsed());
    assert!(!other.is_finished(), "it is another pod's");
    node.del("held").await;
    assert_eq!(other.await.unwrap().into_addresses(), Ok(vec![ip("10.0.0.0")]));
    assert_eq!(node.kernel.held().len(), 1);
}

#[tokio::test(start_paused = true)]
async fn an_add_that_would_begin_to_wait_before_a_del_ends() {
    let node = Node::start(v4("10.0.0.0/32")).await;
    node.kernel.0.lock().unwrap().foreign.insert(ip("10.0.0.0"));
    let start = tokio::time::Instant::now();
    let add = node.spawn_add("c1");
    tokio::task::yield_now().await;
    node.del("c1").await;
    let (code, msg) = add.await.unwrap().into_addresses().unwrap_err();
    assert!(code == Code::TryAgainLater && msg.contains("a DEL for the interface"), "{msg}");
    assert!(start.elapsed() < Duration::from_secs(1), "{:?}", start.elapsed());
}

#[tokio::test(start_paused = true)]
async fn a_node_that_waits_for_blocks_alone_hears_what_its_pods_ask_for() {
    let mut node = Node::start(Supply { blocks: vec![], ..v4("10.0.0.0/30") }).await;
    let reason = || "this node has no block of IPv4 addresses yet".to_owned();
    node.handle.set_readiness(&Verdict::NoAddress { reason: reason(), routes: None });
    let waiting = node.spawn_add("c1");
    node.until(|usage| !usage.exhausted.is_empty()).await;
    let Response::Failed(failure) = node.calls.status().await else { panic!("it is not ready") };
    assert_eq!((failure.code, failure.msg), (Code::NotAvailable, reason()));
    // A block of a pool for its namespace, say.
    let blocks = v4("10.0.0.0/30").blocks;
    node.change(|supply| supply.blocks = blocks);
    assert_eq!(waiting.await.unwrap().into_addresses(), Ok(vec![ip("10.0.0.0")]));
    // Without routes it would reach nobody.
    let routes = Some("0/2 sessions are established".to_owned());
    node.handle.set_readiness(&Verdict::NoAddress { reason: reason(), routes });
    let (code, msg) = node.add("c2", &[]).await.unwrap_err();
    assert!(code == Code::TryAgainLater && msg.contains("0/2 sessions"), "{msg}");
}

#[tokio::test(start_paused = true)]
async fn who_hangs_up_waits_no_more_and_gets_nothing() {
    let node = Node::start(v4("10.0.0.0/32")).await;
    node.add("held", &[]).await.unwrap();
    // As many as may wait: the next one is refused at once.
    let waiting: Vec<_> = (0..64).map(|n| node.spawn_add(&format!("w{n}"))).collect();
    tokio::time::sleep(Duration::from_secs(1)).await;
    let start = tokio::time::Instant::now();
    assert!(node.add("more", &[]).await.is_err());
    assert!(start.elapsed() < Duration::from_secs(1));
    waiting.iter().for_each(tokio::task::JoinHandle::abort);
    for ended in waiting {
        assert!(ended.await.unwrap_err().is_cancelled());
    }
    let last = node.spawn_add("more");
    tokio::time::sleep(Duration::from_secs(1)).await;
    assert!(!last.is_finished(), "there is a place to wait again");
    node.del("held").await;
    assert_eq!(last.await.unwrap().into_addresses(), Ok(vec![ip("10.0.0.0")]), "not one of those");
}
