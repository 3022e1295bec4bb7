//! GC: what no runtime knows any more goes.

use std::collections::BTreeSet;
use std::time::Duration;

use cairn_cni::protocol::{AddRequest, GcRequest, Response, ValidAttachment};
use cairn_cni::{Code, ContainerId, InterfaceName};
use cairn_ipam::Rules;

use crate::node::{IntoAddresses, Node, removal, request, v4};

/// Asks for the end of what is not in `valid`, of the network `cairn`.
async fn gc(node: &Node, valid: &[&str]) -> Response {
    let known = |pod: &&str| ValidAttachment {
        container_id: ContainerId::parse(pod).unwrap(),
        ifname: InterfaceName::parse("eth0").unwrap(),
    };
    let valid = valid.iter().map(known).collect();
    node.calls.gc(GcRequest { network: "cairn".into(), valid }).await
}

/// The containers that have interfaces.
fn containers(node: &Node) -> BTreeSet<String> {
    let machine = node.kernel.0.lock().unwrap();
    machine.interfaces.values().map(|alias| alias.container_id.clone()).collect()
}

fn set(names: &[&str]) -> BTreeSet<String> {
    names.iter().map(|name| (*name).to_owned()).collect()
}

#[tokio::test(start_paused = true)]
async fn gc_takes_what_no_runtime_knows_and_spares_what_is_new_busy_or_of_others() {
    let node = Node::start(v4("10.0.0.0/29")).await;
    for pod in ["known", "lost", "leaving"] {
        node.add(pod, &[]).await.unwrap();
    }
    let other = AddRequest { network: "other".into(), ..request("other", Some(&[])) };
    node.calls.add(other, ()).await.into_addresses().unwrap();
    tokio::time::sleep(Duration::from_secs(59)).await;
    assert_eq!(gc(&node, &["known"]).await, Response::Done);
    assert_eq!(containers(&node).len(), 4, "less than a minute old");
    tokio::time::sleep(Duration::from_secs(2)).await;
    node.add("young", &[]).await.unwrap();
    node.kernel.0.lock().unwrap().stuck = true;
    let calls = node.calls.clone();
    let leaving = tokio::spawn(async move { calls.del(removal("leaving")).await });
    tokio::time::sleep(Duration::from_millis(10)).await;
    let collecting = async {
        let start = tokio::time::Instant::now();
        (gc(&node, &["known"]).await, start.elapsed())
    };
    let release = async {
        tokio::time::sleep(Duration::from_secs(1)).await;
        assert_eq!(node.used().await, 5, "no address is free before its interface has gone");
        node.kernel.0.lock().unwrap().stuck = false;
    };
    let ((answer, took), ()) = tokio::join!(collecting, release);
    assert_eq!(answer, Response::Done);
    assert!(took >= Duration::from_secs(1), "answered when it is done: {took:?}");
    assert_eq!(leaving.await.unwrap(), Response::Done);
    assert_eq!(containers(&node), set(&["known", "young", "other"]));
    node.until(|usage| usage.blocks[0].used == 3).await;
}

#[tokio::test(start_paused = true)]
async fn gc_names_what_stays_and_takes_the_rest() {
    let node = Node::start(v4("10.0.0.0/29")).await;
    for pod in ["one", "two", "three"] {
        node.add(pod, &[]).await.unwrap();
    }
    tokio::time::sleep(Duration::from_secs(61)).await;
    node.kernel.0.lock().unwrap().unremovable.insert("two".into());
    let Response::Failed(failure) = gc(&node, &[]).await else { panic!("one stays") };
    assert_eq!(failure.code, Code::TryAgainLater);
    assert!(failure.msg.starts_with("1 of 3 interfaces stay: two/eth0: "), "{}", failure.msg);
    assert_eq!(containers(&node), set(&["two"]));
    node.kernel.0.lock().unwrap().unremovable.clear();
    assert_eq!(gc(&node, &[]).await, Response::Done);
    assert!(containers(&node).is_empty());
}

#[tokio::test(start_paused = true)]
async fn gc_of_a_new_agent_waits_a_minute_and_spares_what_it_cannot_read() {
    let node = Node::start(v4("10.0.0.0/29")).await;
    for pod in ["one", "two"] {
        node.add(pod, &[]).await.unwrap();
    }
    tokio::time::sleep(Duration::from_secs(600)).await;
    {
        let mut machine = node.kernel.0.lock().unwrap();
        machine.agents = 0;
        machine.unread.insert("two".into());
    }
    let next = Node::with(node.kernel.clone(), v4("10.0.0.0/29"), Rules::ALL).await;
    assert_eq!(gc(&next, &[]).await, Response::Done);
    assert_eq!(containers(&next).len(), 2, "nobody knows how old they are");
    tokio::time::sleep(Duration::from_secs(61)).await;
    assert_eq!(gc(&next, &[]).await, Response::Done);
    assert_eq!(containers(&next), set(&["two"]));
}
