//! Tables, discovery and OpenAPI documents as clients ask for them.

use kube::api::PostParams;
use kube::discovery::Discovery;

use super::*;

async fn tables_have_the_columns_of_the_definition(api: Api) {
    let world = World::start(api).await;
    world.pools().create(&PostParams::default(), &pool("p", "10.0.0.0/16")).await.unwrap();
    let ready = json!({"status": {"conditions": [{"type": "Ready", "status": "True"}]}});
    world.server.patch_status("pools.test.cairn.network", None, "p", &ready).unwrap();
    let accept = [("accept", "application/json;as=Table;v=v1;g=meta.k8s.io,application/json")];
    let path = "/apis/test.cairn.network/v1alpha1/pools";
    let (code, _, table) = world.raw("GET", path, &accept, "").await;
    assert_eq!((code, &table["kind"]), (200, &json!("Table")));
    let names: Vec<&str> = table["columnDefinitions"]
        .as_array()
        .unwrap()
        .iter()
        .map(|column| column["name"].as_str().unwrap())
        .collect();
    assert_eq!(names, ["Name", "CIDR", "Block", "Ready", "Encap", "Age"]);
    let row = &table["rows"][0];
    assert_eq!(row["cells"], json!(["p", "10.0.0.0/16", 26, "True", "None", row["cells"][5]]));
    assert!(row["cells"][5].as_str().unwrap().ends_with('s'), "{row}");
    assert_eq!(row["object"]["kind"], "PartialObjectMetadata");
    for (include, kind) in [("Object", json!("Pool")), ("None", Value::Null)] {
        let path = format!("{path}/p?includeObject={include}");
        let (_, _, table) = world.raw("GET", &path, &accept, "").await;
        assert_eq!(table["rows"][0]["object"]["kind"], kind);
    }
    let (code, ..) = world.raw("GET", &format!("{path}?includeObject=x"), &accept, "").await;
    assert_eq!(code, 400);
}

async fn kube_discovers_what_is_served(api: Api) {
    let world = World::start(api).await;
    for discovery in [
        Discovery::new(world.client.clone()).run().await.unwrap(),
        Discovery::new(world.client.clone()).run_aggregated().await.unwrap(),
    ] {
        let kind = GroupVersionKind::gvk("test.cairn.network", "v1alpha1", "Pool");
        let (resource, capabilities) = discovery.resolve_gvk(&kind).expect("Pool is served");
        assert_eq!(resource.plural, "pools");
        assert!(capabilities.supports_operation(kube::discovery::verbs::WATCH));
        assert!(discovery.has_group("apps"));
    }
    assert_eq!(world.client.apiserver_version().await.unwrap().major, "1");
    for path in ["/healthz", "/readyz", "/livez"] {
        assert_eq!(world.raw("GET", path, &[], "").await.0, 200);
    }
}

async fn every_indexed_document_is_there(api: Api) {
    let world = World::start(api).await;
    let (_, _, index) = world.raw("GET", "/openapi/v3", &[], "").await;
    let paths = index["paths"].as_object().unwrap();
    assert!(paths.contains_key("apis/test.cairn.network/v1alpha1"), "{index}");
    for entry in paths.values() {
        // With the hash a document may have changed meanwhile.
        let url = entry["serverRelativeURL"].as_str().unwrap().split('?').next().unwrap();
        let (code, _, document) = world.raw("GET", url, &[], "").await;
        assert_eq!((code, &document["openapi"]), (200, &json!("3.0.0")), "{url}");
    }
}

async fn events_show_in_both_groups(api: Api) {
    let world = World::start(api).await;
    let event = json!({
        "metadata": {"name": "e", "namespace": "default"},
        "regarding": {"kind": "Pool", "name": "p"}, "note": "it overlaps", "reason": "Overlap",
        "type": "Warning", "eventTime": "2026-01-01T00:00:00.000000Z",
        "reportingController": "cairn", "reportingInstance": "n1", "action": "Check",
    });
    let path = "/apis/events.k8s.io/v1/namespaces/default/events";
    let (code, _, created) = world.raw("POST", path, &[], &event.to_string()).await;
    assert_eq!((code, &created["note"]), (201, &json!("it overlaps")));
    assert_eq!(created["apiVersion"], "events.k8s.io/v1");
    let path = "/api/v1/namespaces/default/events?fieldSelector=involvedObject.name%3Dp";
    let (_, _, list) = world.raw("GET", path, &[], "").await;
    assert_eq!(list["items"][0]["message"], "it overlaps");
    assert_eq!((&list["apiVersion"], list["items"][0].get("apiVersion")), (&json!("v1"), None));
}

on_both_apis! {
    tables_have_the_columns_of_the_definition,
    kube_discovers_what_is_served,
    every_indexed_document_is_there,
    events_show_in_both_groups,
}
