//! Pods whose blocks BGP peers have still to hear of.

use std::collections::BTreeSet;
use std::time::Duration;

use cairn_agent::pods::Supply;
use cairn_cni::Code;
use cairn_cni::protocol::Response;
use tokio::time::Instant;

use crate::node::{ANNOUNCEMENT_WAIT as WAIT, IntoAddresses, Node, POOLS, dual, ip, v4};

const BLOCK: &str = "10.0.0.0/29";

/// A node of whose blocks these are held back.
async fn held_back(supply: Supply, blocks: &[&str]) -> Node {
    Node::start(Supply { held_back: nets(blocks), ..supply }).await
}

fn nets(blocks: &[&str]) -> BTreeSet<ipnet::IpNet> {
    blocks.iter().map(|block| block.parse().unwrap()).collect()
}

/// Begins an ADD, and lets the kernel do its part and what is used be told.
async fn begin(node: &Node, pod: &str) -> tokio::task::JoinHandle<Response> {
    let adding = node.spawn_add(pod);
    tokio::time::sleep(WAIT / 10).await;
    adding
}

#[tokio::test(start_paused = true)]
async fn a_pod_that_has_all_it_needs_begins_when_its_block_is_heard_of() {
    let node = held_back(v4(BLOCK), &[BLOCK]).await;
    let adding = begin(&node, "one").await;
    assert!(!adding.is_finished());
    assert_eq!((node.kernel.held(), node.used().await), (vec![ip("10.0.0.0")], 1));
    let start = Instant::now();
    node.handle.set_held_back(BTreeSet::new());
    assert_eq!(adding.await.unwrap().into_addresses(), Ok(vec![ip("10.0.0.0")]));
    node.add("two", &[]).await.unwrap();
    assert!(start.elapsed() < WAIT / 2, "{:?}", start.elapsed());
}

#[tokio::test(start_paused = true)]
async fn a_block_costs_its_pods_one_wait_however_many_they_are() {
    let node = held_back(v4(BLOCK), &[BLOCK]).await;
    let start = Instant::now();
    let first = node.spawn_add("one");
    tokio::time::sleep(WAIT / 2).await;
    let second = node.spawn_add("two");
    for adding in [first, second] {
        adding.await.unwrap().into_addresses().unwrap();
        let waited = start.elapsed();
        assert!(waited >= WAIT && waited < WAIT * 5 / 4, "{waited:?}");
    }
    let start = Instant::now();
    node.add("three", &[]).await.unwrap();
    assert!(start.elapsed() < WAIT / 2, "{:?}", start.elapsed());

    // Heard of in the end, and unknown to a session that was not there before.
    node.handle.set_held_back(BTreeSet::new());
    node.add("four", &[]).await.unwrap();
    node.handle.set_held_back(nets(&[BLOCK]));
    let start = Instant::now();
    node.add("five", &[]).await.unwrap();
    assert!(start.elapsed() >= WAIT, "{:?}", start.elapsed());
}

#[tokio::test(start_paused = true)]
async fn a_del_ends_the_wait_and_nothing_stays() {
    let node = held_back(v4(BLOCK), &[BLOCK]).await;
    let start = Instant::now();
    let adding = begin(&node, "one").await;
    // It has its turn between the two.
    let again = begin(&node, "one").await;
    node.del("one").await;
    let (code, reason) = adding.await.unwrap().into_addresses().unwrap_err();
    assert!(code == Code::TryAgainLater && reason.contains("DEL"), "{code:?}: {reason}");
    assert!(again.is_finished());
    assert!(start.elapsed() < WAIT / 2, "{:?}", start.elapsed());
    node.until(|usage| usage.blocks[0].used == 0).await;
    assert!(node.kernel.held().is_empty());
    // The address is as good as any, and is given once.
    node.handle.set_held_back(BTreeSet::new());
    let mut given = BTreeSet::new();
    for pod in ["a", "b", "c", "d", "e", "f", "g", "h"] {
        given.extend(node.add(pod, &[]).await.unwrap());
    }
    assert_eq!(given.len(), 8);
}

#[tokio::test(start_paused = true)]
async fn who_hangs_up_leaves_no_interface_behind_but_one_that_was_there() {
    let node = Node::start(v4(BLOCK)).await;
    node.add("old", &[]).await.unwrap();
    node.handle.set_held_back(nets(&[BLOCK]));
    let (old, new) = (begin(&node, "old").await, begin(&node, "new").await);
    assert_eq!(node.kernel.held().len(), 2);
    old.abort();
    new.abort();
    node.until(|usage| usage.blocks[0].used == 1).await;
    assert_eq!(node.kernel.held(), [ip("10.0.0.0")]);
    // Both turns have ended.
    node.handle.set_held_back(BTreeSet::new());
    for pod in ["old", "new"] {
        node.add(pod, &[]).await.unwrap();
        node.del(pod).await;
    }
    node.until(|usage| usage.blocks[0].used == 0).await;
}

#[tokio::test(start_paused = true)]
async fn a_pod_of_two_families_waits_for_both_of_its_blocks_and_others_for_none() {
    let four_and_six = ["10.0.0.0/29", "fd00::/125"];
    let node = held_back(dual(), &four_and_six).await;
    let adding = begin(&node, "one").await;
    let pools = [(POOLS, r#"["b"]"#)];
    let start = Instant::now();
    node.add("elsewhere", &pools).await.unwrap();
    assert!(start.elapsed() < WAIT / 2, "{:?}", start.elapsed());
    for block in four_and_six {
        assert!(!adding.is_finished());
        let mut left = nets(&four_and_six);
        left.retain(|held| *held != block.parse().unwrap());
        if block == four_and_six[1] {
            left.clear();
        }
        node.handle.set_held_back(left);
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    assert!(adding.is_finished());
    adding.await.unwrap().into_addresses().unwrap();
}

#[tokio::test(start_paused = true)]
async fn many_that_wait_leave_places_for_those_that_end_them() {
    let node = held_back(v4("10.0.0.0/24"), &["10.0.0.0/24"]).await;
    let adding: Vec<_> = (0..100).map(|number| node.spawn_add(&format!("pod{number}"))).collect();
    tokio::time::sleep(WAIT / 2).await;
    let waiting = adding.iter().filter(|adding| !adding.is_finished()).count();
    assert_eq!((node.used().await, waiting), (100, 64));
    for adding in adding {
        adding.await.unwrap().into_addresses().unwrap();
    }
}

#[tokio::test(start_paused = true)]
async fn those_that_wait_for_an_address_take_no_places_beside_them() {
    let node = held_back(v4("10.0.0.0/26"), &["10.0.0.0/26"]).await;
    let adding: Vec<_> = (0..64).map(|number| node.spawn_add(&format!("pod{number}"))).collect();
    tokio::time::sleep(WAIT / 10).await;
    assert!(adding.iter().all(|adding| !adding.is_finished()));
    let start = Instant::now();
    let (code, _) = node.add("one-more", &[]).await.unwrap_err();
    assert_eq!(code, Code::TryAgainLater);
    assert!(start.elapsed() < WAIT / 10, "{:?}", start.elapsed());
}

#[tokio::test(start_paused = true)]
async fn what_went_while_its_answer_waited_holds_no_address() {
    let node = held_back(v4(BLOCK), &[BLOCK]).await;
    let adding = begin(&node, "one").await;
    node.kernel.0.lock().unwrap().interfaces.clear();
    node.handle.resync();
    tokio::time::sleep(WAIT / 10).await;
    assert_eq!(node.used().await, 1, "its ADD is under way");
    node.handle.set_held_back(BTreeSet::new());
    adding.await.unwrap().into_addresses().unwrap();
    node.until(|usage| usage.blocks[0].used == 0).await;
}
