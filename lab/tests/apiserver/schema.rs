//! Schemas, defaults, pruning and CEL rules.

use kube::api::{Patch, PatchParams, PostParams};

use super::*;

async fn refusal_of(world: &World, spec: Value) -> kube::core::Status {
    let mut object = pool("p", "10.0.0.0/16");
    object.data["spec"] = spec;
    refused(world.pools().create(&PostParams::default(), &object).await)
}

async fn refusals_read_as_the_real_servers(api: Api) {
    let world = World::start(api).await;
    let blocked = ", <nil>: Invalid value: null: some validation rules were not checked because \
                   the object was invalid; correct the existing errors to complete validation]";
    let cases = [
        (json!({"cidr": "10.0.0.1/16"}), "spec.cidr: Invalid value: \"10.0.0.1/16\": must be a canonical CIDR".to_owned()),
        (json!({"cidr": "10.0.0.0/28"}), "spec.blockSize: Invalid value: a block does not fit into 10.0.0.0/28".to_owned()),
        (json!({"cidr": "10.0.0.0/16", "blockSize": 33}), "spec.blockSize: Invalid value: 33: spec.blockSize in body should be less than or equal to 32".to_owned()),
        (json!({"cidr": "10.0.0.0/16", "note": "A"}), "spec.note: Invalid value: \"A\": spec.note in body should match '^[a-z]*$'".to_owned()),
        (json!({"cidr": "10.0.0.0/16", "gateway": "x"}), format!("[spec.gateway: Invalid value: \"x\": spec.gateway in body must be of type ipv4: \"x\"{blocked}")),
        (json!({"cidr": "10.0.0.0/16", "zones": ["a", "a"]}), "spec.zones[1]: Duplicate value: \"a\"".to_owned()),
        (json!({"cidr": "10.0.0.0/16", "rules": [{"name": "a"}, {"name": "a"}]}), "spec.rules[1]: Duplicate value: {\"name\":\"a\"}".to_owned()),
        (json!({"cidr": "10.0.0.0/16", "encapsulation": "GRE"}), format!("[spec.encapsulation: Unsupported value: \"GRE\": supported values: \"None\", \"IPIP\", \"VXLAN\"{blocked}")),
        (json!({}), format!("[spec.cidr: Required value{blocked}")),
        (json!({"cidr": 5}), format!("[spec.cidr: Invalid value: \"integer\": spec.cidr in body must be of type string: \"integer\"{blocked}")),
        (json!({"cidr": "10.0.0.0/16", "note": "abcdefghi"}), format!("[spec.note: Too long: may not be more than 8 bytes{blocked}")),
        (json!({"cidr": "10.0.0.0/16", "zones": ["a", "b", "c", "d"]}), format!("[spec.zones: Too many: 4: must have at most 3 items{blocked}")),
        (json!({"cidr": "10.0.0.0/16", "rules": [{"action": "x"}]}), format!("[spec.rules[0].name: Required value{blocked}")),
        (json!({"cidr": "10.0.0.0/16", "weight": true}), format!("[spec.weight: Invalid value: \"boolean\": spec.weight in body must be of type integer,string: \"boolean\"{blocked}")),
    ];
    for (spec, wanted) in cases {
        let refusal = refusal_of(&world, spec.clone()).await;
        assert_eq!((refusal.code, refusal.reason.as_str()), (422, "Invalid"), "{spec}");
        assert_eq!(refusal.message, format!("Pool.test.cairn.network \"p\" is invalid: {wanted}"));
        let details = refusal.details.expect("details");
        assert_eq!((details.name.as_str(), details.kind.as_str()), ("p", "Pool"));
        assert!(!details.causes.is_empty());
    }
}

async fn transition_rules_see_the_old_object(api: Api) {
    let world = World::start(api).await;
    let pools = world.pools();
    pools.create(&PostParams::default(), &pool("p", "10.0.0.0/16")).await.unwrap();
    let patch = Patch::Merge(json!({"spec": {"cidr": "10.1.0.0/16"}}));
    let refusal = refused(pools.patch("p", &PatchParams::default(), &patch).await);
    assert_eq!(
        refusal.message,
        "Pool.test.cairn.network \"p\" is invalid: spec: Invalid value: cidr is immutable"
    );
}

async fn unknown_fields_are_pruned_named_or_refused(api: Api) {
    let world = World::start(api).await;
    let body = json!({
        "apiVersion": "test.cairn.network/v1alpha1", "kind": "Pool", "metadata": {"name": "p"},
        "spec": {"cidr": "10.0.0.0/16", "typo": 1, "extra": {"any": "thing"},
                 "rules": [{"name": "a", "bad": 1}], "note": null, "natOutgoing": null},
    })
    .to_string();
    let path = "/apis/test.cairn.network/v1alpha1/pools";
    let (code, _, answer) =
        world.raw("POST", &format!("{path}?fieldValidation=Strict"), &[], &body).await;
    assert_eq!(code, 400);
    assert_eq!(
        answer["message"],
        "Pool in version \"v1alpha1\" cannot be handled as a Pool: strict decoding error: unknown \
         field \"spec.rules[0].bad\", unknown field \"spec.typo\""
    );
    let (code, warnings, stored) = world.raw("POST", path, &[], &body).await;
    assert_eq!(code, 201);
    assert_eq!(
        warnings,
        [
            r#"299 - "unknown field \"spec.rules[0].bad\"""#,
            r#"299 - "unknown field \"spec.typo\"""#
        ]
    );
    assert_eq!(
        stored["spec"],
        json!({
            "cidr": "10.0.0.0/16", "blockSize": 26, "encapsulation": "None", "note": null,
            "extra": {"any": "thing"}, "rules": [{"name": "a", "action": "Accept"}],
        })
    );
}

async fn what_an_older_schema_let_in_can_still_be_written(api: Api) {
    let world = World::start(api).await;
    let mut object = pool("p", "10.0.0.0/16");
    object.data["spec"]["note"] = json!("abcdef");
    world.pools().create(&PostParams::default(), &object).await.unwrap();
    let stricter = CRDS.replace("maxLength: 8", "maxLength: 2");
    world.server.load_yaml(&stricter).unwrap();
    let patch = Patch::Merge(json!({"spec": {"natOutgoing": true}}));
    world.pools().patch("p", &PatchParams::default(), &patch).await.expect("note is unchanged");
    let patch = Patch::Merge(json!({"spec": {"note": "abcde"}}));
    assert_eq!(refused(world.pools().patch("p", &PatchParams::default(), &patch).await).code, 422);
}

async fn broken_definitions_are_refused(api: Api) {
    let world = World::start(api).await;
    for (from, to, wanted) in [
        ("self.cidr == oldSelf.cidr", "self.cidr ==", "compilation failed"),
        ("'^[a-z]*$'", "'[a-'", "must be a valid regular expression"),
        (
            "name: pools.test.cairn.network",
            "name: wrong.test.cairn.network",
            "must be spec.names.plural",
        ),
        ("scope: Cluster", "scope: Galaxy", "spec.scope: Unsupported value"),
        ("jsonPath: .spec.cidr", "jsonPath: '.spec['", "additionalPrinterColumns[0].jsonPath"),
    ] {
        if api == Api::Real && from.starts_with("jsonPath") {
            // It takes this, and shows nothing in the column.
            continue;
        }
        let broken = CRDS.replacen(from, to, 1);
        assert_ne!(broken, CRDS);
        let Err(error) = world.server.load_yaml(&broken) else { panic!("{to} is taken") };
        assert!(error.contains(wanted), "{from}: {error}");
    }
}

async fn a_definition_that_ends_takes_no_new_objects(api: Api) {
    let world = World::start(api).await;
    let pools = world.pools();
    let mut held = pool("held", "10.0.0.0/16");
    held.metadata.finalizers = Some(vec!["a.b/c".to_owned()]);
    pools.create(&PostParams::default(), &held).await.unwrap();
    let definitions = "customresourcedefinitions.apiextensions.k8s.io";
    let name = "pools.test.cairn.network";
    world.server.delete(definitions, None, name).unwrap();
    let refused = async || {
        let created = pools.create(&PostParams::default(), &pool("p", "10.1.0.0/16")).await;
        let Err(kube::Error::Api(status)) = created else { return false };
        let why = "create not allowed while custom resource definition is terminating";
        status.code == 403 && status.message.contains(why)
    };
    eventually("what is new is refused", refused).await;
    let freed = Patch::Merge(json!({"metadata": {"finalizers": []}}));
    pools.patch("held", &PatchParams::default(), &freed).await.unwrap();
    let gone = async || world.server.get(definitions, None, name).is_err();
    eventually("it ends with its last object", gone).await;
}

async fn the_real_definitions_are_served(api: Api) {
    let cluster = Cluster::start(api).await;
    let server = &cluster.server;
    let crds = cairn_api::crds();
    assert!(crds.len() >= 8, "{}", crds.len());
    for crd in crds {
        let name = crd.metadata.name.unwrap();
        assert_eq!(server.list(&name, None, "").unwrap(), Vec::<Value>::new());
    }
    let pool = |cidr: &str| {
        json!({
            "apiVersion": "cairn.network/v1alpha1", "kind": "IPPool",
            "metadata": {"name": "p"}, "spec": {"cidr": cidr},
        })
    };
    let refusal = server.create("ippools.cairn.network", None, pool("10.244.0.1/16")).unwrap_err();
    assert_eq!(refusal.code, 422);
    assert!(refusal.message.starts_with("IPPool.cairn.network \"p\" is invalid: "), "{refusal}");
    let stored = server.create("ippools.cairn.network", None, pool("10.244.0.0/16")).unwrap();
    assert_eq!(stored["spec"]["cidr"], "10.244.0.0/16");
}

on_both_apis! {
    a_definition_that_ends_takes_no_new_objects,
    refusals_read_as_the_real_servers,
    transition_rules_see_the_old_object,
    unknown_fields_are_pruned_named_or_refused,
    what_an_older_schema_let_in_can_still_be_written,
    broken_definitions_are_refused,
    the_real_definitions_are_served,
}
