//! `kubectl delete crd` under live pods.

use cairn_tests::kube::Api;
use cairn_tests::on_both_apis;

use super::nodes::{BLOCKS, Cluster, HOUR, Node, POOLS, until};

async fn a_definition_that_is_deleted_under_live_pods_takes_no_address_from_them(api: Api) {
    let cluster = Cluster::start(api).await;
    cluster.pool("default", "10.244.0.0/27", 28);
    cluster.node("n1", "boot1");
    let mut n1 = Node::start(&cluster, "n1", "boot1", HOUR);
    let block = n1.until_open(1).await[0];
    until("a pod", || n1.add("pod").is_ok()).await;
    let address = n1.add("pod").expect("the same");
    let crd = "customresourcedefinitions.apiextensions.k8s.io";
    cluster.server.delete(crd, None, BLOCKS).expect("deleted");
    n1.until("closed", |h| Node::open(h).is_empty()).await;
    assert!(n1.holdings.borrow().announced.contains(&block), "its pod is still reached");
    assert_eq!(n1.add("pod"), Ok(address), "its pod keeps its address");
    n1.del("pod");
    until("the definition is gone", || cluster.server.get(crd, None, BLOCKS).is_err()).await;
    let definitions = cairn_api::crds().into_iter().filter(|crd| crd.spec.names.kind == "IPBlock");
    for definition in definitions {
        let definition = serde_json::to_value(definition).expect("JSON");
        cluster.server.create(crd, None, definition).expect("created");
    }
    n1.until_open(1).await;
    until("a pod", || n1.add("another").is_ok()).await;
    assert!(cluster.server.get(POOLS, None, "default").is_ok());
}

on_both_apis! {
    a_definition_that_is_deleted_under_live_pods_takes_no_address_from_them,
}
