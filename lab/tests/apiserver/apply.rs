//! Server-side apply.

use kube::ResourceExt;
use kube::api::{Patch, PatchParams, PostParams};

use super::*;

fn config(spec: Value) -> Value {
    json!({
        "apiVersion": "test.cairn.network/v1alpha1", "kind": "Pool",
        "metadata": {"name": "p"}, "spec": spec,
    })
}

async fn apply(
    pools: &kube::Api<DynamicObject>,
    manager: &str,
    spec: Value,
) -> Result<DynamicObject, kube::Error> {
    pools.patch("p", &PatchParams::apply(manager), &Patch::Apply(config(spec))).await
}

async fn an_apply_creates_owns_and_takes_back(api: Api) {
    let world = World::start(api).await;
    let pools = world.pools();
    let spec = json!({
        "cidr": "10.0.0.0/16", "natOutgoing": true, "tags": {"a": "1", "b": "2"},
        "rules": [{"name": "x"}, {"name": "y", "action": "Reject"}], "zones": ["z1"],
    });
    let created = apply(&pools, "one", spec.clone()).await.unwrap();
    assert_eq!(created.data["spec"]["blockSize"], 26, "defaults are filled and owned by nobody");
    let owners = created.managed_fields();
    assert_eq!(owners.len(), 1);
    assert_eq!(
        serde_json::to_value(owners[0].fields_v1.as_ref().unwrap()).unwrap(),
        json!({"f:spec": {
            "f:cidr": {}, "f:natOutgoing": {}, "f:tags": {"f:a": {}, "f:b": {}},
            "f:rules": {
                "k:{\"name\":\"x\"}": {".": {}, "f:name": {}},
                "k:{\"name\":\"y\"}": {".": {}, "f:action": {}, "f:name": {}},
            },
            "f:zones": {"v:\"z1\"": {}},
        }})
    );
    let same = apply(&pools, "one", spec).await.unwrap();
    assert_eq!(same.resource_version(), created.resource_version());

    let less = json!({"cidr": "10.0.0.0/16", "tags": {"b": "2"}, "rules": [{"name": "y"}]});
    let shrunk = apply(&pools, "one", less).await.unwrap();
    assert_eq!(
        shrunk.data["spec"],
        json!({
            "cidr": "10.0.0.0/16", "blockSize": 26, "encapsulation": "None",
            "tags": {"b": "2"}, "rules": [{"name": "y", "action": "Accept"}],
        })
    );
}

async fn managers_share_conflict_and_force(api: Api) {
    let world = World::start(api).await;
    let pools = world.pools();
    apply(&pools, "one", json!({"cidr": "10.0.0.0/16", "natOutgoing": true})).await.unwrap();
    let shared = json!({"cidr": "10.0.0.0/16", "tags": {"two": "2"}});
    apply(&pools, "two", shared.clone()).await.expect("equal values are shared");
    let refusal =
        refused(apply(&pools, "two", json!({"cidr": "10.0.0.0/16", "natOutgoing": false})).await);
    assert_eq!((refusal.code, refusal.reason.as_str()), (409, "Conflict"));
    assert_eq!(
        refusal.message,
        "Apply failed with 1 conflict: conflict with \"one\": .spec.natOutgoing"
    );
    let causes = refusal.details.unwrap().causes;
    assert_eq!(
        (causes[0].reason.as_str(), causes[0].field.as_str()),
        ("FieldManagerConflict", ".spec.natOutgoing")
    );

    let forced = Patch::Apply(config(json!({"cidr": "10.0.0.0/16", "natOutgoing": false})));
    let taken = pools.patch("p", &PatchParams::apply("two").force(), &forced).await.unwrap();
    assert_eq!(taken.data["spec"]["natOutgoing"], false);
    assert_eq!(taken.data["spec"].get("tags"), None, "what two no longer applies goes");

    // `one` gives up natOutgoing, which is no longer its own, so the value stays.
    let kept = apply(&pools, "one", json!({"cidr": "10.0.0.0/16"})).await.unwrap();
    assert_eq!(kept.data["spec"]["natOutgoing"], false);
    // `two` gives up cidr, which `one` still owns.
    let body = Patch::Apply(json!({
        "apiVersion": "test.cairn.network/v1alpha1", "kind": "Pool", "metadata": {"name": "p"},
    }));
    let left = pools.patch("p", &PatchParams::apply("two"), &body).await.unwrap();
    assert_eq!(left.data["spec"]["cidr"], "10.0.0.0/16");
    assert_eq!(left.data["spec"].get("natOutgoing"), None);
}

async fn updates_own_fields_too(api: Api) {
    let world = World::start(api).await;
    let pools = world.pools();
    pools.create(&PostParams::default(), &pool("p", "10.0.0.0/16")).await.unwrap();
    let patch = Patch::Merge(json!({"spec": {"natOutgoing": true}}));
    let params = PatchParams { field_manager: Some("editor".to_owned()), ..PatchParams::default() };
    pools.patch("p", &params, &patch).await.unwrap();
    let refusal = refused(apply(&pools, "one", json!({"natOutgoing": false})).await);
    assert_eq!(
        refusal.message,
        "Apply failed with 1 conflict: conflict with \"editor\" using \
         test.cairn.network/v1alpha1: .spec.natOutgoing"
    );
    let forced = Patch::Apply(config(json!({"natOutgoing": false})));
    pools.patch("p", &PatchParams::apply("one").force(), &forced).await.unwrap();
    // An update takes the field away from the applier, whose next apply then conflicts.
    pools.patch("p", &params, &patch).await.unwrap();
    assert_eq!(refused(apply(&pools, "one", json!({"natOutgoing": false})).await).code, 409);
    let removed = Patch::Merge(json!({"spec": {"natOutgoing": null}}));
    pools.patch("p", &params, &removed).await.unwrap();
    apply(&pools, "one", json!({"natOutgoing": false})).await.expect("nobody owns it any more");
}

async fn status_is_applied_apart(api: Api) {
    let world = World::start(api).await;
    let pools = world.pools();
    let status = |kind: &str, used: Option<u32>| {
        let mut body = json!({
            "apiVersion": "test.cairn.network/v1alpha1", "kind": "Pool",
            "metadata": {"name": "p"},
            "status": {"conditions": [{"type": kind, "status": "True"}]},
        });
        if let Some(used) = used {
            body["status"]["used"] = json!(used);
        }
        Patch::Apply(body)
    };
    let missing = pools.patch_status("p", &PatchParams::apply("a"), &status("Ready", None)).await;
    assert_eq!(refused(missing).code, 404, "an apply of a status creates nothing");
    pools.create(&PostParams::default(), &pool("p", "10.0.0.0/16")).await.unwrap();
    pools.patch_status("p", &PatchParams::apply("a"), &status("Ready", Some(3))).await.unwrap();
    let both =
        pools.patch_status("p", &PatchParams::apply("b"), &status("Synced", None)).await.unwrap();
    assert_eq!(both.data["status"]["conditions"].as_array().unwrap().len(), 2);
    assert_eq!(both.data["status"]["used"], 3);
    let owner = both.managed_fields().iter().find(|entry| entry.manager.as_deref() == Some("a"));
    assert_eq!(owner.unwrap().subresource.as_deref(), Some("status"));
    let less =
        pools.patch_status("p", &PatchParams::apply("a"), &status("Ready", None)).await.unwrap();
    assert_eq!(less.data["status"].get("used"), None);
}

async fn a_status_in_an_apply_of_the_spec_is_no_conflict(api: Api) {
    let world = World::start(api).await;
    let pools = world.pools();
    apply(&pools, "one", json!({"cidr": "10.0.0.0/16"})).await.unwrap();
    let used = Patch::Merge(json!({"status": {"used": 3}}));
    pools.patch_status("p", &PatchParams::default(), &used).await.unwrap();
    let mut body = config(json!({"cidr": "10.0.0.0/16"}));
    body["status"] = json!({"used": 9});
    let after = pools.patch("p", &PatchParams::apply("one"), &Patch::Apply(body)).await.unwrap();
    assert_eq!(after.data["status"]["used"], 3);
}

async fn an_apply_says_who_it_is_and_what_it_means(api: Api) {
    let world = World::start(api).await;
    let path = "/apis/test.cairn.network/v1alpha1/pools/p";
    let kind = [("content-type", "application/apply-patch+yaml")];
    let body = config(json!({"cidr": "10.0.0.0/16"})).to_string();
    assert_eq!(world.raw("PATCH", path, &kind, &body).await.0, 422, "without a field manager");
    let path = &format!("{path}?fieldManager=me");
    assert_eq!(world.raw("PATCH", path, &kind, "spec: {}").await.0, 400, "without a kind");
    let yaml = "apiVersion: test.cairn.network/v1alpha1\nkind: Pool\nspec:\n  cidr: 10.0.0.0/16\n";
    assert_eq!(world.raw("PATCH", path, &kind, yaml).await.0, 400, "without a name");
    let yaml = &format!("{yaml}metadata:\n  name: p\n");
    assert_eq!(world.raw("PATCH", path, &kind, yaml).await.0, 201);
    assert_eq!(world.raw("PATCH", path, &kind, yaml).await.0, 200);
    let typo = body.replace("\"cidr\"", "\"typo\":1,\"cidr\"");
    let strict = format!("{path}&fieldValidation=Strict");
    for path in [&strict, path] {
        let (code, _, answer) = world.raw("PATCH", path, &kind, &typo).await;
        assert_eq!(code, 500, "an apply owns fields, and there is none of this name");
        let message = answer["message"].as_str().unwrap();
        assert!(message.ends_with(".spec.typo: field not declared in schema"), "{message}");
    }
    let uid = json!({
        "apiVersion": "test.cairn.network/v1alpha1", "kind": "Pool",
        "metadata": {"name": "q", "uid": "x"}, "spec": {"cidr": "10.0.0.0/16"},
    });
    let path = path.replace("pools/p", "pools/q");
    assert_eq!(world.raw("PATCH", &path, &kind, &uid.to_string()).await.0, 409);
}

on_both_apis! {
    an_apply_creates_owns_and_takes_back,
    managers_share_conflict_and_force,
    updates_own_fields_too,
    status_is_applied_apart,
    a_status_in_an_apply_of_the_spec_is_no_conflict,
    an_apply_says_who_it_is_and_what_it_means,
}
