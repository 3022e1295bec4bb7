//! Create, read, update, patch and delete.

use k8s_openapi::api::coordination::v1::Lease;
use k8s_openapi::api::core::v1::{ConfigMap, Namespace, Node, Secret};
use kube::ResourceExt;
use kube::api::{
    DeleteParams, ListParams, Patch, PatchParams, PostParams, Preconditions, PropagationPolicy,
};
use serde_json::{Value, json};

use super::*;

async fn create_fills_what_the_server_owns(api: Api) {
    let world = World::start(api).await;
    let created = world.pools().create(&PostParams::default(), &pool("p", "10.0.0.0/16")).await;
    let created = created.unwrap();
    assert_eq!(created.data["spec"]["blockSize"], 26);
    assert_eq!(created.data["spec"]["encapsulation"], "None");
    assert_eq!(created.metadata.generation, Some(1));
    assert_eq!(created.uid().unwrap().len(), 36);
    assert!(created.creation_timestamp().is_some());
    assert_eq!(world.server.revision().to_string(), created.resource_version().unwrap());

    let again =
        refused(world.pools().create(&PostParams::default(), &pool("p", "10.0.0.0/16")).await);
    assert_eq!((again.code, again.reason.as_str()), (409, "AlreadyExists"));
    assert_eq!(again.message, "pools.test.cairn.network \"p\" already exists");

    let missing = refused(world.pools().get("q").await);
    assert_eq!(
        (missing.code, missing.message.as_str()),
        (404, "pools.test.cairn.network \"q\" not found")
    );
}

async fn names_are_generated_and_checked(api: Api) {
    let world = World::start(api).await;
    let mut unnamed = pool("x", "10.0.0.0/16");
    unnamed.metadata.name = None;
    let refusal = refused(world.pools().create(&PostParams::default(), &unnamed).await);
    assert_eq!(refusal.code, 422);
    let wanted = "metadata.name: Required value: name or generateName is required";
    assert!(refusal.message.contains(wanted), "{}", refusal.message);
    unnamed.metadata.generate_name = Some("pool-".to_owned());
    let one = world.pools().create(&PostParams::default(), &unnamed).await.unwrap();
    let two = world.pools().create(&PostParams::default(), &unnamed).await.unwrap();
    assert!(one.name_any().starts_with("pool-") && one.name_any().len() == 10);
    assert_ne!(one.name_any(), two.name_any());
    let bad =
        refused(world.pools().create(&PostParams::default(), &pool("A_b", "10.0.0.0/16")).await);
    assert!(
        bad.message
            .contains("metadata.name: Invalid value: \"A_b\": a lowercase RFC 1123 subdomain"),
        "{}",
        bad.message
    );
}

async fn metadata_is_typed_and_has_no_empty_fields(api: Api) {
    let world = World::start(api).await;
    let path = "/apis/test.cairn.network/v1alpha1/pools?fieldValidation=Strict";
    let post = async |metadata: Value| {
        let mut body = json!({
            "apiVersion": "test.cairn.network/v1alpha1", "kind": "Pool",
            "spec": {"cidr": "10.0.0.0/16"},
        });
        body["metadata"] = metadata;
        world.raw("POST", path, &[], &body.to_string()).await
    };
    for metadata in [
        json!({"name": "p", "labels": ["a"]}),
        json!({"name": "p", "labels": {"a": 1}}),
        json!({"name": "p", "finalizers": "x"}),
        json!({"name": "p", "ownerReferences": ["x"]}),
        json!({"name": 5}),
        json!({"name": "p", "typo": "x"}),
    ] {
        let (code, _, answer) = post(metadata.clone()).await;
        assert_eq!((code, &answer["reason"]), (400, &json!("BadRequest")), "{metadata}");
    }
    for metadata in [
        json!({"name": "p", "labels": {"a b": "c"}}),
        json!({"name": "p", "labels": {"a": "-"}}),
        json!({"name": "p", "finalizers": ["a b"]}),
        json!({"name": "p", "ownerReferences": [{"name": "x"}]}),
    ] {
        assert_eq!(post(metadata.clone()).await.0, 422, "{metadata}");
    }
    let empty = json!({"name": "p", "labels": {}, "annotations": null, "finalizers": []});
    let (code, _, stored) = post(empty).await;
    assert_eq!(code, 201);
    for key in ["labels", "annotations", "finalizers"] {
        assert_eq!(stored["metadata"].get(key), None);
    }
}

async fn an_update_needs_the_last_resource_version(api: Api) {
    let world = World::start(api).await;
    let pools = world.pools();
    let first = pools.create(&PostParams::default(), &pool("p", "10.0.0.0/16")).await.unwrap();
    let mut changed = first.clone();
    changed.data["spec"]["natOutgoing"] = json!(true);
    let second = pools.replace("p", &PostParams::default(), &changed).await.unwrap();
    assert_eq!(second.metadata.generation, Some(2));
    assert_ne!(second.resource_version(), first.resource_version());

    let stale = refused(pools.replace("p", &PostParams::default(), &changed).await);
    assert_eq!((stale.code, stale.reason.as_str()), (409, "Conflict"));
    assert_eq!(
        stale.message,
        "Operation cannot be fulfilled on pools.test.cairn.network \"p\": the object has been \
         modified; please apply your changes to the latest version and try again"
    );
    changed.metadata.resource_version = None;
    let unset = refused(pools.replace("p", &PostParams::default(), &changed).await);
    assert_eq!(unset.code, 422);
    assert!(
        unset.message.ends_with(
            "metadata.resourceVersion: Invalid value: 0: must be specified for an update"
        ),
        "{}",
        unset.message
    );

    let mut other = second.clone();
    other.metadata.uid = Some("11111111-2222-4333-8444-555555555555".to_owned());
    let wrong = refused(pools.replace("p", &PostParams::default(), &other).await);
    assert_eq!(wrong.code, 409);
    assert!(
        wrong.message.contains("Precondition failed: UID in precondition"),
        "{}",
        wrong.message
    );
}

async fn an_update_of_a_builtin_kind_may_be_unconditional_but_not_of_a_lease(api: Api) {
    let world = World::start(api).await;
    let maps: kube::Api<ConfigMap> = kube::Api::default_namespaced(world.client.clone());
    let mut map = ConfigMap::default();
    map.metadata.name = Some("m".to_owned());
    maps.create(&PostParams::default(), &map).await.unwrap();
    map.data = Some([("k".to_owned(), "v".to_owned())].into());
    let stored = maps.replace("m", &PostParams::default(), &map).await.unwrap();
    assert_eq!(stored.data, map.data);

    let leases: kube::Api<Lease> = kube::Api::default_namespaced(world.client.clone());
    let mut lease = Lease::default();
    lease.metadata.name = Some("l".to_owned());
    leases.replace("l", &PostParams::default(), &lease).await.expect("a PUT creates a Lease");
    assert_eq!(refused(leases.replace("l", &PostParams::default(), &lease).await).code, 422);
}

async fn a_write_without_a_difference_changes_nothing(api: Api) {
    let world = World::start(api).await;
    let pools = world.pools();
    let first = pools.create(&PostParams::default(), &pool("p", "10.0.0.0/16")).await.unwrap();
    let before = world.server.revision();
    let same = pools.replace("p", &PostParams::default(), &first).await.unwrap();
    assert_eq!(same.resource_version(), first.resource_version());
    let patch = Patch::Merge(json!({"spec": {"blockSize": 26}}));
    let same = pools.patch("p", &PatchParams::default(), &patch).await.unwrap();
    assert_eq!(same.resource_version(), first.resource_version());
    assert_eq!(world.server.revision(), before);
}

async fn a_secrets_texts_become_data_with_every_write(api: Api) {
    let world = World::start(api).await;
    let secrets: kube::Api<Secret> = kube::Api::default_namespaced(world.client.clone());
    let texts = |key: &str| json!({"metadata": {"name": "s"}, "stringData": {key: "x"}});
    let new = serde_json::from_value(texts("a")).unwrap();
    secrets.create(&PostParams::default(), &new).await.unwrap();
    secrets.patch("s", &PatchParams::default(), &Patch::Merge(texts("b"))).await.unwrap();
    let patch = Patch::Strategic(texts("c"));
    let stored = secrets.patch("s", &PatchParams::default(), &patch).await.unwrap();
    assert_eq!(stored.string_data, None);
    let keys: Vec<String> = stored.data.unwrap().into_keys().collect();
    assert_eq!(keys, ["a", "b", "c"]);
}

async fn status_and_spec_are_written_apart(api: Api) {
    let world = World::start(api).await;
    let pools = world.pools();
    let mut object = pool("p", "10.0.0.0/16");
    object.data["status"] = json!({"used": 7});
    let created = pools.create(&PostParams::default(), &object).await.unwrap();
    assert_eq!(created.data.get("status"), None, "a create drops the status");

    let both = json!({
        "metadata": {"labels": {"a": "b"}}, "spec": {"natOutgoing": true}, "status": {"used": 3},
    });
    let through_status =
        pools.patch_status("p", &PatchParams::default(), &Patch::Merge(&both)).await.unwrap();
    assert_eq!(through_status.data["status"]["used"], 3);
    assert_eq!(through_status.data["spec"].get("natOutgoing"), None);
    assert_eq!(through_status.metadata.labels, None);
    assert_eq!(through_status.metadata.generation, Some(1));

    let both = json!({"spec": {"natOutgoing": true}, "status": {"used": 9}});
    let through_main =
        pools.patch("p", &PatchParams::default(), &Patch::Merge(&both)).await.unwrap();
    assert_eq!(through_main.data["status"]["used"], 3);
    assert_eq!(through_main.data["spec"]["natOutgoing"], true);
    assert_eq!(through_main.metadata.generation, Some(2));

    // A status patch with a wrong uid is taken, with an old resourceVersion it is not.
    let uid = json!({"metadata": {"uid": "x"}, "status": {"used": 4}});
    pools.patch_status("p", &PatchParams::default(), &Patch::Merge(&uid)).await.unwrap();
    let old = json!({"metadata": {"resourceVersion": "1"}, "status": {"used": 5}});
    let stale = pools.patch_status("p", &PatchParams::default(), &Patch::Merge(&old)).await;
    assert_eq!(refused(stale).code, 409);
}

async fn patches_of_every_type(api: Api) {
    let world = World::start(api).await;
    let pools = world.pools();
    let mut object = pool("p", "10.0.0.0/16");
    object.data["spec"]["tags"] = json!({"a": "1", "b": "2"});
    pools.create(&PostParams::default(), &object).await.unwrap();
    let merge = Patch::Merge(json!({"spec": {"tags": {"a": null, "c": "3"}}}));
    let merged = pools.patch("p", &PatchParams::default(), &merge).await.unwrap();
    assert_eq!(merged.data["spec"]["tags"], json!({"b": "2", "c": "3"}));

    let path = "/apis/test.cairn.network/v1alpha1/pools/p";
    let json_patch = r#"[{"op":"test","path":"/spec/tags/b","value":"2"},{"op":"replace","path":"/spec/tags/b","value":"9"}]"#;
    let kind = [("content-type", "application/json-patch+json")];
    let (code, _, body) = world.raw("PATCH", path, &kind, json_patch).await;
    assert_eq!((code, &body["spec"]["tags"]["b"]), (200, &json!("9")));
    let (code, _, body) = world.raw("PATCH", path, &kind, json_patch).await;
    assert_eq!((code, &body["reason"]), (422, &json!("Invalid")), "the test operation fails");

    let kind = [("content-type", "application/strategic-merge-patch+json")];
    let (code, _, body) = world.raw("PATCH", path, &kind, "{}").await;
    assert_eq!((code, &body["reason"]), (415, &json!("UnsupportedMediaType")));

    let nodes: kube::Api<Node> = kube::Api::all(world.client.clone());
    world.server.create("nodes", None, json!({"metadata": {"name": "n1"}})).unwrap();
    let condition = |status: &str| {
        Patch::Strategic(json!({"status": {"conditions": [{"type": "Ready", "status": status}]}}))
    };
    nodes.patch_status("n1", &PatchParams::default(), &condition("False")).await.unwrap();
    let node = nodes.patch_status("n1", &PatchParams::default(), &condition("True")).await.unwrap();
    let conditions = node.status.unwrap().conditions.unwrap();
    assert_eq!((conditions.len(), conditions[0].status.as_str()), (1, "True"));
}

#[tokio::test]
async fn patches_cannot_nest_without_end() {
    let world = World::new();
    let pools = world.pools();
    let mut object = pool("p", "10.0.0.0/16");
    object.data["spec"]["extra"] = json!({"x": {}});
    pools.create(&PostParams::default(), &object).await.unwrap();
    let deep = (0..50).fold(json!({}), |below, _| json!({ "x": below }));
    let mut path = "/spec/extra/x".to_owned();
    let mut codes = Vec::new();
    for _ in 0..4 {
        let patch = json!([{"op": "add", "path": path, "value": deep}]).to_string();
        let kind = [("content-type", "application/json-patch+json")];
        let at = "/apis/test.cairn.network/v1alpha1/pools/p";
        codes.push(world.raw("PATCH", at, &kind, &patch).await.0);
        path.push_str(&"/x".repeat(50));
    }
    assert_eq!(codes[..3], [200, 200, 400]);
}

async fn deletion_obeys_preconditions_and_finalizers(api: Api) {
    let world = World::start(api).await;
    let pools = world.pools();
    let mut object = pool("p", "10.0.0.0/16");
    object.metadata.finalizers = Some(vec!["cairn.network/pool".to_owned()]);
    let created = pools.create(&PostParams::default(), &object).await.unwrap();
    let wrong = |uid: Option<&str>, version: Option<&str>| DeleteParams {
        preconditions: Some(Preconditions {
            uid: uid.map(str::to_owned),
            resource_version: version.map(str::to_owned),
        }),
        ..DeleteParams::default()
    };
    let by_uid = refused(pools.delete("p", &wrong(Some("nope"), None)).await);
    assert_eq!((by_uid.code, by_uid.reason.as_str()), (409, "Conflict"));
    let by_version = refused(pools.delete("p", &wrong(None, Some("1"))).await);
    assert!(
        by_version.message.contains("the ResourceVersion in the precondition (1) does not match"),
        "{}",
        by_version.message
    );

    let answer = pools.delete("p", &wrong(created.uid().as_deref(), None)).await.unwrap();
    let terminating = answer.left().expect("the object, since a finalizer holds it");
    assert!(terminating.metadata.deletion_timestamp.is_some());
    assert_eq!(terminating.metadata.generation, Some(2));
    let again = pools.delete("p", &DeleteParams::default()).await.unwrap().left().unwrap();
    assert_eq!(again.resource_version(), terminating.resource_version());

    let more = Patch::Merge(json!({"metadata": {"finalizers": ["cairn.network/pool", "a.b/c"]}}));
    let refusal = refused(pools.patch("p", &PatchParams::default(), &more).await);
    assert!(
        refusal.message.contains("no new finalizers can be added if the object is being deleted"),
        "{}",
        refusal.message
    );

    let none = Patch::Merge(json!({"metadata": {"finalizers": null}}));
    pools.patch("p", &PatchParams::default(), &none).await.unwrap();
    assert_eq!(refused(pools.get("p").await).code, 404);

    pools.create(&PostParams::default(), &pool("q", "10.0.0.0/16")).await.unwrap();
    let gone = pools.delete("q", &DeleteParams::default()).await.unwrap();
    assert!(gone.is_right(), "a Status when the object is gone at once");
}

async fn lists_page_at_one_state_and_select(api: Api) {
    let world = World::start(api).await;
    let pools = world.pools();
    for i in 0..7 {
        let mut object = pool(&format!("p{i}"), &format!("10.{i}.0.0/16"));
        object.metadata.labels = Some([("odd".to_owned(), (i % 2).to_string())].into());
        object.data["spec"]["encapsulation"] = json!(if i < 3 { "VXLAN" } else { "IPIP" });
        pools.create(&PostParams::default(), &object).await.unwrap();
    }
    let first = pools.list(&ListParams::default().limit(3)).await.unwrap();
    let token = first.metadata.continue_.clone().expect("more pages");
    assert_eq!((first.items.len(), first.metadata.remaining_item_count), (3, Some(4)));
    pools.delete("p5", &DeleteParams::default()).await.unwrap();
    let rest = pools.list(&ListParams::default().continue_token(&token)).await.unwrap();
    let names: Vec<String> = rest.items.iter().map(ResourceExt::name_any).collect();
    assert_eq!(names, ["p3", "p4", "p5", "p6"], "the pages show one state");
    assert_eq!(rest.metadata.resource_version, first.metadata.resource_version);
    if api == Api::Embedded {
        world.embedded().forget_history();
        let late = refused(pools.list(&ListParams::default().continue_token(&token)).await);
        assert_eq!((late.code, late.reason.as_str()), (410, "Expired"));
    }

    let count = async |params: ListParams| pools.list(&params).await.map(|list| list.items.len());
    assert_eq!(count(ListParams::default().labels("odd in (1)")).await.unwrap(), 2);
    assert_eq!(count(ListParams::default().fields("metadata.name=p1")).await.unwrap(), 1);
    assert_eq!(count(ListParams::default().fields("spec.encapsulation!=VXLAN")).await.unwrap(), 3);
    let unknown = refused(count(ListParams::default().fields("spec.cidr=x")).await);
    assert_eq!(
        (unknown.code, unknown.message.as_str()),
        (400, "field label not supported: spec.cidr")
    );

    let current = world.server.revision();
    let ahead = format!(
        "/apis/test.cairn.network/v1alpha1/pools?resourceVersion={}&resourceVersionMatch=NotOlderThan",
        current + 5
    );
    let (code, _, body) = world.raw("GET", &ahead, &[], "").await;
    assert_eq!((code, &body["reason"]), (504, &json!("Timeout")));

    pools
        .delete_collection(&DeleteParams::default(), &ListParams::default().labels("odd=1"))
        .await
        .unwrap();
    assert_eq!(count(ListParams::default()).await.unwrap(), 4);
}

async fn dry_run_does_everything_but_store(api: Api) {
    let world = World::start(api).await;
    let pools = world.pools();
    let dry = PostParams { dry_run: true, ..PostParams::default() };
    let shown = pools.create(&dry, &pool("p", "10.0.0.0/16")).await.unwrap();
    assert_eq!(shown.data["spec"]["blockSize"], 26);
    assert_eq!(refused(pools.get("p").await).code, 404);
    assert_eq!(refused(pools.create(&dry, &pool("p", "10.0.0.1/16")).await).code, 422);
    pools.create(&PostParams::default(), &pool("p", "10.0.0.0/16")).await.unwrap();
    let before = world.server.revision();
    let params = PatchParams { dry_run: true, ..PatchParams::default() };
    let patch = Patch::Merge(json!({"spec": {"blockSize": 28}}));
    let shown = pools.patch("p", &params, &patch).await.unwrap();
    assert_eq!(shown.data["spec"]["blockSize"], 28);
    pools.delete("p", &DeleteParams { dry_run: true, ..DeleteParams::default() }).await.unwrap();
    assert_eq!(pools.get("p").await.unwrap().data["spec"]["blockSize"], 26);
    assert_eq!(world.server.revision(), before);
}

#[tokio::test]
async fn namespaces_hold_and_end_their_objects() {
    let world = World::new();
    let thing = |name: &str| {
        dynamic(json!({
            "apiVersion": "test.cairn.network/v1", "kind": "Thing", "metadata": {"name": name},
        }))
    };
    let created = world.things().create(&PostParams::default(), &thing("t")).await.unwrap();
    assert_eq!(created.namespace().as_deref(), Some("default"));
    let body = json!({
        "apiVersion": "test.cairn.network/v1", "kind": "Thing", "metadata": {"name": "t"},
    });
    let path = "/apis/test.cairn.network/v1/namespaces/nowhere/things";
    let (code, _, answer) = world.raw("POST", path, &[], &body.to_string()).await;
    assert_eq!((code, &answer["message"]), (404, &json!("namespaces \"nowhere\" not found")));

    let spaces: kube::Api<Namespace> = kube::Api::all(world.client.clone());
    world.server.create("namespaces", None, json!({"metadata": {"name": "team"}})).unwrap();
    world.server.create("things.test.cairn.network", Some("team"), body).unwrap();
    let ended = spaces.delete("team", &DeleteParams::default()).await.unwrap().left().unwrap();
    assert_eq!(ended.status.unwrap().phase.as_deref(), Some("Terminating"));
    eventually("the namespace is gone", async || spaces.get_opt("team").await.unwrap().is_none())
        .await;
    let left = world.server.list("things.test.cairn.network", Some("team"), "").unwrap();
    assert_eq!(left, Vec::<Value>::new());
}

async fn a_crd_is_served_when_created_and_gone_when_deleted(api: Api) {
    let world = World::start(api).await;
    let crd = world
        .server
        .get("customresourcedefinitions.apiextensions.k8s.io", None, "pools.test.cairn.network")
        .unwrap();
    let established = crd["status"]["conditions"]
        .as_array()
        .unwrap()
        .iter()
        .any(|condition| condition["type"] == "Established" && condition["status"] == "True");
    assert!(established, "{crd}");
    world.pools().create(&PostParams::default(), &pool("p", "10.0.0.0/16")).await.unwrap();
    let name = "pools.test.cairn.network";
    world.server.delete("customresourcedefinitions.apiextensions.k8s.io", None, name).unwrap();
    eventually("the resource is no longer served", async || {
        matches!(world.pools().list(&ListParams::default()).await, Err(kube::Error::Api(s)) if s.code == 404)
    })
    .await;
    world.server.load_yaml(CRDS).unwrap();
    assert_eq!(world.pools().list(&ListParams::default()).await.unwrap().items.len(), 0);
}

#[tokio::test]
async fn what_is_not_there_is_said_so() {
    let world = World::new();
    for (method, path, code) in [
        ("GET", "/api/v1/namespaces/default/pods/p/log", 501),
        ("POST", "/apis/authorization.k8s.io/v1/selfsubjectaccessreviews", 501),
        ("GET", "/api/v1/watch/nodes", 501),
        ("GET", "/apis/no.such.group/v1/things", 404),
        ("GET", "/apis/test.cairn.network/v1/namespaces/default/things/t/status", 404),
        ("POST", "/api/v1/pods", 405),
        ("PUT", "/api/v1/nodes", 405),
        ("GET", "/nonsense", 404),
        ("GET", "/openapi/v2", 406),
    ] {
        let (answered, _, body) = world.raw(method, path, &[], "").await;
        assert_eq!((answered, &body["kind"]), (code, &json!("Status")), "{method} {path}: {body}");
        assert!(!body["message"].as_str().unwrap().is_empty());
    }
    let protobuf = [("content-type", "application/vnd.kubernetes.protobuf")];
    let (code, ..) = world.raw("POST", "/api/v1/nodes", &protobuf, "k8s").await;
    assert_eq!(code, 415);
    let (code, ..) = world.raw("GET", "/api/v1/nodes", &[("accept", "text/html")], "").await;
    assert_eq!(code, 406);
    for body in ["", "[]", "{", "null", "{\"metadata\":3}"] {
        let (code, _, answer) = world.raw("POST", "/api/v1/nodes", &[], body).await;
        assert_eq!(code, 400, "{body}: {answer}");
    }
    let huge = "x".repeat(4 << 20);
    let (code, ..) = world.raw("POST", "/api/v1/nodes", &[], &huge).await;
    assert_eq!(code, 413);
}

#[tokio::test]
async fn foreground_and_orphan_deletion() {
    let world = World::new();
    let owner = |policy: PropagationPolicy| DeleteParams {
        propagation_policy: Some(policy),
        ..DeleteParams::default()
    };
    for (name, policy, child_stays) in
        [("fg", PropagationPolicy::Foreground, false), ("orphan", PropagationPolicy::Orphan, true)]
    {
        let pools = world.pools();
        let parent =
            pools.create(&PostParams::default(), &pool(name, "10.0.0.0/16")).await.unwrap();
        let mut child = pool(&format!("{name}-child"), "10.1.0.0/16");
        child.metadata.owner_references =
            Some(vec![kube::Resource::owner_ref(&parent, &pool_resource()).unwrap()]);
        pools.create(&PostParams::default(), &child).await.unwrap();
        pools.delete(name, &owner(policy)).await.unwrap();
        eventually("the owner is gone", async || pools.get_opt(name).await.unwrap().is_none())
            .await;
        let child = pools.get_opt(&format!("{name}-child")).await.unwrap();
        assert_eq!(child.is_some(), child_stays);
        if let Some(child) = child {
            assert!(child.metadata.owner_references.unwrap_or_default().is_empty());
        }
    }
}

on_both_apis! {
    create_fills_what_the_server_owns,
    names_are_generated_and_checked,
    metadata_is_typed_and_has_no_empty_fields,
    an_update_needs_the_last_resource_version,
    an_update_of_a_builtin_kind_may_be_unconditional_but_not_of_a_lease,
    a_write_without_a_difference_changes_nothing,
    a_secrets_texts_become_data_with_every_write,
    status_and_spec_are_written_apart,
    patches_of_every_type,
    deletion_obeys_preconditions_and_finalizers,
    lists_page_at_one_state_and_select,
    dry_run_does_everything_but_store,
    a_crd_is_served_when_created_and_gone_when_deleted,
}
