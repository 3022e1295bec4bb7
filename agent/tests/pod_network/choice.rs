//! Which pools and addresses serve a pod.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::time::Duration;

use cairn_agent::pods::Supply;
use cairn_api::LabelSelector;
use cairn_cni::Code;
use cairn_cni::protocol::AddRequest;
use cairn_ipam::{Demand, Family, Rule, Rules};

use crate::kernel::Kernel;
use crate::node::{
    IPS, IntoAddresses, Node, POOLS, Refusal, block, dual, ip, namespaces, pool, request, v4,
};

#[tokio::test(start_paused = true)]
async fn a_24_asked_for_257_gives_256_and_one_clear_error() {
    let node = Node::start(v4("10.0.0.0/24")).await;
    let adding = (0..257).map(|n| {
        let calls = node.calls.clone();
        async move { calls.add(request(&format!("c{n}"), Some(&[])), ()).await.into_addresses() }
    });
    let outcomes = futures::future::join_all(adding).await;
    let given: BTreeSet<IpAddr> = outcomes.iter().flatten().flatten().copied().collect();
    assert_eq!(given.len(), 256);
    assert!(given.contains(&ip("10.0.0.0")) && given.contains(&ip("10.0.0.255")));
    let refused: Vec<&Refusal> = outcomes.iter().filter_map(|o| o.as_ref().err()).collect();
    assert_eq!(refused.len(), 1);
    assert_eq!(refused[0].0, Code::TryAgainLater);
    let words = "no IPv4 address: all 256 addresses of 1 IPv4 block(s) of IPPool a are in use";
    assert!(refused[0].1.starts_with(words), "{}", refused[0].1);
    let demand = Demand::Pools(Family::V4, vec!["a".into()]);
    assert_eq!(node.usage().await.exhausted, BTreeSet::from([demand]));
    assert_eq!(node.kernel.held().len(), 256);
}

#[tokio::test(start_paused = true)]
async fn an_annotation_chooses_pools_and_the_wait_is_for_a_block_of_them() {
    let mut node = Node::start(dual()).await;
    assert_eq!(node.add("c1", &[(POOLS, "b")]).await, Ok(vec![ip("10.1.0.0")]));
    let both = node.add("c2", &[(POOLS, r#"["six","b"]"#)]).await.unwrap();
    assert_eq!(both, [ip("10.1.0.1"), ip("fd00::")]);
    let (code, msg) = node.add("c3", &[(POOLS, "nowhere")]).await.unwrap_err();
    assert_eq!(code, Code::InvalidConfig);
    assert!(msg.contains("names the IPPool nowhere, which does not exist"), "{msg}");
    // A pool without a block of this node: only a block of this pool helps.
    node.change(|supply| supply.pools.push(pool("c", "10.2.0.0/16")));
    let calls = node.calls.clone();
    let waiting =
        tokio::spawn(async move { calls.add(request("c4", Some(&[(POOLS, "c")])), ()).await });
    let demand = Demand::Pools(Family::V4, vec!["c".into()]);
    node.until(|usage| usage.exhausted.contains(&demand)).await;
    node.change(|supply| supply.blocks.push(block("c", "10.2.0.0/30")));
    assert_eq!(waiting.await.unwrap().into_addresses(), Ok(vec![ip("10.2.0.0")]));
    // The namespace's annotation is for pods without one.
    node.change(|supply| supply.namespaces = namespaces(None, Some("c")));
    assert_eq!(node.add("c5", &[]).await, Ok(vec![ip("10.2.0.1")]));
    assert_eq!(node.add("c6", &[(POOLS, "a")]).await, Ok(vec![ip("10.0.0.0")]));
}

#[tokio::test(start_paused = true)]
async fn dual_stack_without_ipv6_fails_whole_and_leaks_nothing() {
    let mut node = Node::start(dual()).await;
    // No block of IPv6.
    node.change(|supply| supply.blocks.truncate(2));
    let (_, msg) = node.add("c1", &[]).await.unwrap_err();
    assert!(msg.contains("no IPv6 address"), "{msg}");
    // No usable pool of IPv6, while pods of this node are promised one.
    node.change(|supply| supply.pools[2].unusable = Some("others' addresses lie in it".into()));
    let (_, msg) = node.add("c2", &[]).await.unwrap_err();
    assert!(msg.contains("no IPv6 address: IPPool six cannot serve"), "{msg}");
    // No pool of IPv6 at all, and a pod that asks for one.
    node.change(|supply| {
        supply.pools.truncate(2);
        supply.families = vec![Family::V4];
    });
    assert!(node.add("c3", &[(POOLS, "six,a")]).await.is_err());
    assert!(node.add("c4", &[(IPS, "fd00::1")]).await.is_err());
    assert_eq!((node.used().await, node.kernel.held().len()), (0, 0), "no IPv4 address leaked");
    assert_eq!(node.add("c5", &[]).await, Ok(vec![ip("10.0.0.0")]), "IPv4 only by the pools");
}

#[tokio::test(start_paused = true)]
async fn a_disabled_pool_is_never_used_and_a_selector_counts_for_new_pods_only() {
    let mut node = Node::start(dual()).await;
    let first = node.add("c1", &[(POOLS, "a")]).await.unwrap();
    node.change(|supply| {
        supply.pools[0].unusable = Some("it is disabled".into());
        // Its block may still be open for a moment: the pool decides.
        assert!(supply.blocks[0].hand_out);
    });
    for n in 0..8 {
        let given = node.add(&format!("d{n}"), &[]).await.unwrap();
        assert!("10.1.0.0/29".parse::<ipnet::IpNet>().unwrap().contains(&given[0]), "{given:?}");
    }
    assert!(node.add("d8", &[]).await.is_err());
    let team = LabelSelector {
        match_labels: BTreeMap::from([("team".into(), "red".into())]),
        ..LabelSelector::default()
    };
    node.change(|supply| {
        supply.pools[0].unusable = None;
        supply.pools[0].namespaces = Some(team);
        supply.pools[1].unusable = Some("it is disabled".into());
    });
    assert_eq!(node.add("c1", &[]).await, Ok(first), "who runs keeps its address");
    let (_, msg) = node.add("e1", &[(POOLS, "a")]).await.unwrap_err();
    assert!(msg.contains("does not select the namespace ns"), "{msg}");
    node.change(|supply| supply.namespaces = namespaces(Some("red"), None));
    assert_eq!(node.add("e1", &[(POOLS, "a")]).await, Ok(vec![ip("10.0.0.1")]));
}

#[tokio::test(start_paused = true)]
async fn what_the_own_kernel_holds_is_passed_over_and_comes_back() {
    let kernel = Kernel::default();
    kernel.0.lock().unwrap().foreign.insert(ip("10.0.0.0"));
    let node = Node::with(kernel.clone(), v4("10.0.0.0/30"), Rules::ALL).await;
    // This one appears later, and only the attempt notices.
    kernel.0.lock().unwrap().foreign.insert(ip("10.0.0.1"));
    assert_eq!(node.add("c1", &[]).await, Ok(vec![ip("10.0.0.2")]));
    assert_eq!(node.usage().await.blocks[0].foreign, [ip("10.0.0.0"), ip("10.0.0.1")]);
    kernel.0.lock().unwrap().foreign.clear();
    node.handle.resync();
    node.until(|usage| usage.blocks[0].foreign.is_empty()).await;
}

#[tokio::test(start_paused = true)]
async fn a_permission_ends_at_its_time_unless_the_fence_is_off() {
    for (rules, given) in [(Rules::ALL, false), (Rules::ALL.without(Rule::OwnFence), true)] {
        let mut supply = v4("10.0.0.0/30");
        supply.blocks[0].until = Duration::from_secs(1_060);
        let node = Node::with(Kernel::default(), supply, rules).await;
        assert!(node.add("c1", &[]).await.is_ok());
        tokio::time::sleep(Duration::from_secs(61)).await;
        assert_eq!(node.add("c2", &[]).await.is_ok(), given);
    }
}

#[tokio::test(start_paused = true)]
async fn a_pod_gets_the_addresses_that_its_runtime_asks_for() {
    let supply = Supply {
        blocks: vec![block("a", "10.1.0.0/28")],
        families: vec![Family::V4],
        pools: vec![pool("a", "10.1.0.0/16")],
        ..Supply::default()
    };
    let node = Node::start(supply).await;
    let asks = |pod: &str, annotation: Option<&str>| {
        let annotations: Vec<_> =
            annotation.map(|text| ("cairn.network/ips", text)).into_iter().collect();
        AddRequest { ips: vec![ip("10.1.0.9")], ..request(pod, Some(&annotations)) }
    };
    let held = node.calls.add(asks("one", None), ()).await.into_addresses();
    assert_eq!(held, Ok(vec![ip("10.1.0.9")]));
    let refused = node.calls.add(asks("two", Some("10.1.0.8")), ()).await.into_addresses();
    let (code, sentence) = refused.unwrap_err();
    assert!(code == Code::InvalidConfig && sentence.contains("different addresses"), "{sentence}");
    node.del("one").await;
    let held = node.calls.add(asks("three", Some("10.1.0.9")), ()).await.into_addresses();
    assert_eq!(held, Ok(vec![ip("10.1.0.9")]));
}
