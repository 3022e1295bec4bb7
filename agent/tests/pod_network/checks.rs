//! CHECK: whether an interface is as it was answered.

use std::net::IpAddr;
use std::time::Duration;

use cairn_cni::protocol::{CheckRequest, Response};
use cairn_cni::{ContainerId, InterfaceName};

use crate::node::{Node, ip, removal, v4};

fn compared(pod: &str, addresses: &[IpAddr]) -> CheckRequest {
    CheckRequest {
        container_id: ContainerId::parse(pod).unwrap(),
        ifname: InterfaceName::parse("eth0").unwrap(),
        network: "cairn".into(),
        addresses: addresses.to_vec(),
        gateways: Vec::new(),
        mtu: None,
    }
}

#[tokio::test(start_paused = true)]
async fn check_names_the_difference_and_takes_its_turn() {
    let node = Node::start(v4("10.0.0.0/30")).await;
    let held = node.add("c1", &[]).await.unwrap();
    let check = |addresses: &[IpAddr]| {
        let (calls, request) = (node.calls.clone(), compared("c1", addresses));
        tokio::spawn(async move { calls.check(request, ()).await })
    };
    let failure = |response: Response| match response {
        Response::Failed(failure) => failure.msg,
        other => panic!("{other:?}"),
    };
    assert_eq!(check(&held).await.unwrap(), Response::Done);
    let other = failure(check(&[ip("10.0.0.3")]).await.unwrap());
    assert!(other.contains("has the alias"), "{other}");
    node.kernel.0.lock().unwrap().stuck = true;
    let calls = node.calls.clone();
    let removing = tokio::spawn(async move { calls.del(removal("c1")).await });
    tokio::time::sleep(Duration::from_millis(10)).await;
    let late = check(&held);
    tokio::time::sleep(Duration::from_secs(1)).await;
    assert!(!late.is_finished(), "the interface is being removed");
    node.kernel.0.lock().unwrap().stuck = false;
    assert_eq!(removing.await.unwrap(), Response::Done);
    let gone = failure(late.await.unwrap());
    assert!(gone.contains("does not exist"), "{gone}");
}
