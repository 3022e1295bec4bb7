//! When an address is free again, and for whom.

use std::time::Duration;

use cairn_agent::pods::{NetworkOptions, PodNetwork, PodsError};
use cairn_cni::protocol::{AddRequest, DelRequest, Response};
use cairn_cni::{Code, ContainerId, InterfaceName};
use cairn_ipam::{Rule, Rules};

use crate::kernel::Kernel;
use crate::node::{ANNOUNCEMENT_WAIT, IntoAddresses, Node, POOLS, clock, removal, request, v4};

#[tokio::test(start_paused = true)]
async fn a_failed_second_add_leaves_the_first_as_it_is() {
    let mut node = Node::start(v4("10.0.0.0/30")).await;
    let held = node.add("c1", &[]).await.unwrap();
    // The same again, whatever has changed meanwhile.
    node.change(|supply| supply.pools[0].unusable = Some("it is disabled".into()));
    assert_eq!(node.add("c1", &[(POOLS, "nowhere")]).await, Ok(held.clone()));
    // Another interface of the same container is refused: the first one stays.
    let second = AddRequest {
        ifname: InterfaceName::parse("eth1").unwrap(),
        ..request("c1", Some(&[(POOLS, "nowhere")]))
    };
    assert!(node.calls.add(second, ()).await.into_addresses().is_err());
    assert_eq!((node.kernel.held(), node.used().await), (held, 1));
}

#[tokio::test(start_paused = true)]
async fn a_del_that_names_another_owner_frees_nothing() {
    let node = Node::start(v4("10.0.0.0/30")).await;
    let held = node.add("c1", &[]).await.unwrap();
    node.del("c2").await;
    let other = DelRequest {
        container_id: ContainerId::parse("c1").unwrap(),
        ifname: InterfaceName::parse("eth1").unwrap(),
        network: "cairn".into(),
    };
    assert_eq!(node.calls.del(other).await, Response::Done, "nothing of that name is there");
    assert_eq!((node.kernel.held(), node.used().await), (held, 1));
    node.del("c1").await;
    assert_eq!(node.used().await, 0);
}

/// How many of two addresses that pods hold are free while the interface of one cannot be removed.
async fn free_while_a_removal_hangs(rules: Rules) -> u128 {
    let node = Node::with(Kernel::default(), v4("10.0.0.0/31"), rules).await;
    node.add("c1", &[]).await.unwrap();
    node.add("c2", &[]).await.unwrap();
    node.kernel.0.lock().unwrap().stuck = true;
    let calls = node.calls.clone();
    let removal = DelRequest {
        container_id: ContainerId::parse("c1").unwrap(),
        ifname: InterfaceName::parse("eth0").unwrap(),
        network: "cairn".into(),
    };
    let removing = tokio::spawn(async move { calls.del(removal).await });
    tokio::time::sleep(Duration::from_millis(500)).await;
    let free = node.usage().await.blocks[0].free;
    node.kernel.0.lock().unwrap().stuck = false;
    assert_eq!(removing.await.unwrap(), Response::Done);
    free
}

#[tokio::test(start_paused = true)]
async fn an_address_is_free_only_after_its_interface_has_gone() {
    assert_eq!(free_while_a_removal_hangs(Rules::ALL).await, 0);
    let careless = Rules::ALL.without(Rule::FreeAfterInterface);
    assert_eq!(free_while_a_removal_hangs(careless).await, 1);
}

#[tokio::test(start_paused = true)]
async fn a_new_agent_takes_the_kernel_for_the_truth_and_only_one_does() {
    let node = Node::start(v4("10.0.0.0/30")).await;
    let held = node.add("c1", &[]).await.unwrap();
    let options = |rules| NetworkOptions {
        cooldown: Duration::ZERO,
        address_wait: Duration::from_secs(1),
        announcement_wait: ANNOUNCEMENT_WAIT,
        clock: clock(),
        rules,
    };
    let second = PodNetwork::start(node.kernel.clone(), options(Rules::ALL)).await;
    assert!(matches!(second, Err(PodsError::Locked { .. })));
    node.kernel.0.lock().unwrap().agents = 0;
    let restarted = Node::with(node.kernel.clone(), v4("10.0.0.0/30"), Rules::ALL).await;
    restarted.until(|usage| usage.blocks.first().is_some_and(|block| block.used == 1)).await;
    assert_eq!(restarted.usage().await.blocks[0].allocations[0].0, held[0]);
    // Careless: the second agent runs beside the first and believes that all is free.
    let careless = Rules::ALL.without(Rule::OneAgent).without(Rule::KernelIsRecord);
    let careless = Node::with(node.kernel.clone(), v4("10.0.0.0/30"), careless).await;
    tokio::time::sleep(Duration::from_secs(1)).await;
    assert_eq!(careless.used().await, 0);
}

#[tokio::test(start_paused = true)]
async fn what_is_to_go_while_a_removal_runs_goes_together() {
    let node = Node::start(v4("10.0.0.0/25")).await;
    for n in 0..100 {
        node.add(&format!("c{n}"), &[]).await.unwrap();
    }
    {
        let mut machine = node.kernel.0.lock().unwrap();
        machine.stuck = true;
        machine.unremovable.insert("c50".into());
    }
    let removing: Vec<_> = (0..100)
        .map(|n| {
            let calls = node.calls.clone();
            tokio::spawn(async move { calls.del(removal(&format!("c{n}"))).await })
        })
        .collect();
    tokio::time::sleep(Duration::from_secs(1)).await;
    assert_eq!(node.used().await, 100, "no address is free before its interface has gone");
    node.kernel.0.lock().unwrap().stuck = false;
    for (n, removing) in removing.into_iter().enumerate() {
        match removing.await.unwrap() {
            Response::Done => assert_ne!(n, 50),
            Response::Failed(failure) => {
                assert_eq!((n, failure.code), (50, Code::TryAgainLater), "one alone fails");
                assert!(failure.msg.contains("could not be removed"), "{}", failure.msg);
            }
            Response::Added(_) => panic!("a DEL"),
        }
    }
    assert_eq!(node.kernel.0.lock().unwrap().batches, [1, 99]);
    node.until(|usage| usage.blocks[0].used == 1).await;
    node.kernel.0.lock().unwrap().unremovable.clear();
    node.del("c50").await;
    node.until(|usage| usage.blocks[0].used == 0).await;
}
