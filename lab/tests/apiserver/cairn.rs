//! Cairn's own kinds of addresses: rules, defaults, columns, immutability, status.

use super::*;

const POOLS: &str = "ippools.cairn.network";
const BLOCKS: &str = "ipblocks.cairn.network";
const RESERVATIONS: &str = "ipreservations.cairn.network";

fn object(kind: &str, name: &str, spec: Value) -> Value {
    json!({
        "apiVersion": "cairn.network/v1alpha1", "kind": kind,
        "metadata": {"name": name}, "spec": spec,
    })
}

fn block(name: &str, cidr: &str, range: &str) -> Value {
    let spec = json!({
        "cidr": cidr, "range": range,
        "pool": {"name": "p", "uid": "u1"}, "node": {"name": "n1", "uid": "u2"},
    });
    object("IPBlock", name, spec)
}

/// Creates each object under the name `x`; those without a text are taken.
fn judge(cluster: &Cluster, resource: &str, cases: Vec<(Value, &str)>) {
    for (object, wanted) in cases {
        let name = object["metadata"]["name"].as_str().unwrap().to_owned();
        match cluster.server.create(resource, None, object.clone()) {
            Ok(_) => {
                assert_eq!(wanted, "", "{object} is taken");
                cluster.server.delete(resource, None, &name).unwrap();
            }
            Err(refusal) => {
                assert!(!wanted.is_empty(), "{refusal}");
                assert_eq!(refusal.code, 422, "{refusal}");
                assert!(refusal.message.contains(wanted), "{object}: {refusal}");
            }
        }
    }
}

async fn pools_are_judged_alike(api: Api) {
    let cluster = Cluster::start(api).await;
    let pool = |spec: Value| object("IPPool", "x", spec);
    judge(
        &cluster,
        POOLS,
        vec![
            (pool(json!({"cidr": "10.244.0.0/16"})), ""),
            (pool(json!({"cidr": "fd00:10:244::/48"})), ""),
            (pool(json!({"cidr": "10.244.0.0/28", "blockSize": 28})), ""),
            (pool(json!({"cidr": "fd00::/48", "blockSize": 64, "allocation": "NodePodCIDR"})), ""),
            (pool(json!({"cidr": "10.244.0.0"})), "cidr must be a network such as"),
            (pool(json!({"cidr": "10.244.0.1/16"})), "cidr must be a canonical network address"),
            (pool(json!({"cidr": "FD00::/48"})), "cidr must be a canonical network address"),
            (pool(json!({"cidr": "10.244.0.0/28"})), "the pool is smaller than the default block"),
            (
                pool(json!({"cidr": "10.244.0.0/24", "blockSize": 20})),
                "must not be shorter than the pool's own",
            ),
            (pool(json!({"cidr": "10.0.0.0/8", "blockSize": 33})), "blockSize must be 16 to 32"),
            (pool(json!({"cidr": "10.0.0.0/8", "blockSize": 15})), "greater than or equal to 16"),
            (pool(json!({"cidr": "fd00::/48", "blockSize": 63})), "64 to 128 in an IPv6 pool"),
            (
                pool(json!({
                    "cidr": "10.0.0.0/8", "allocation": "NodePodCIDR", "maxBlocksPerNode": 2,
                })),
                "maxBlocksPerNode does not go with allocation NodePodCIDR",
            ),
            (
                pool(json!({"cidr": "fd00::/48", "encapsulation": "IPIP"})),
                "an IPv6 pool takes encapsulation None",
            ),
            (pool(json!({"cidr": "10.0.0.0/8", "allocation": "x"})), "spec.allocation"),
            (pool(json!({"cidr": "10.0.0.0/8", "uses": []})), "spec.uses"),
            (pool(json!({})), "spec.cidr: Required value"),
        ],
    );
}

async fn blocks_are_judged_alike(api: Api) {
    let cluster = Cluster::start(api).await;
    judge(
        &cluster,
        BLOCKS,
        vec![
            (block("10.244.3.64-26", "10.244.3.64/26", "10.244.0.0/16"), ""),
            (block("10.244.0.0-16", "10.244.0.0/16", "10.244.0.0/16"), ""),
            (block("fd00-1--40-122", "fd00:1::40/122", "fd00:1::/64"), ""),
            (block("x", "10.244.3.64/26", "10.244.0.0/16"), "the name of an IPBlock is its CIDR"),
            (
                block("10.244.3.65-26", "10.244.3.65/26", "10.244.0.0/16"),
                "cidr must be a canonical network address",
            ),
            (block("10.0.0.0-15", "10.0.0.0/15", "10.0.0.0/16"), "a block is /16 to /32"),
            (block("fd00---63", "fd00::/63", "fd00::/64"), "a block is /16 to /32"),
            (block("10.244.3.64-26", "10.244.3.64/26", "10.0.0.0/8"), "range is the /16"),
            (block("10.244.3.64-26", "10.244.3.64/26", "10.245.0.0/16"), "range is the /16"),
            (block("10.244.3.64-26", "10.244.3.64/26", "10.244.1.0/16"), "range is the /16"),
            (block("10.244.3.64-26", "10.244.3.64/26", "fd00::/64"), "range is the /16"),
            (block("10.244.3.64-26", "10.244.3.64/26", "x"), "range is the /16"),
        ],
    );
}

async fn reservations_are_judged_alike(api: Api) {
    let cluster = Cluster::start(api).await;
    let reservation = |cidrs: Value| object("IPReservation", "x", json!({ "cidrs": cidrs }));
    judge(
        &cluster,
        RESERVATIONS,
        vec![
            (reservation(json!(["10.244.0.0/28", "10.244.1.1/32", "fd00::1/128"])), ""),
            (reservation(json!([])), "spec.cidrs"),
            (reservation(json!(["10.244.0.1"])), "write canonical networks"),
            (reservation(json!(["10.244.0.1/28"])), "write canonical networks"),
        ],
    );
}

async fn what_is_immutable_stays_and_defaults_are_filled(api: Api) {
    let cluster = Cluster::start(api).await;
    let server = &cluster.server;
    let merge = cairn_lab::apiserver::PatchType::Merge;
    let pool = object("IPPool", "p", json!({"cidr": "10.244.0.0/16"}));
    let stored = server.create(POOLS, None, pool).unwrap();
    assert_eq!(
        stored["spec"],
        json!({
            "cidr": "10.244.0.0/16", "allocation": "OnDemand", "encapsulation": "None",
            "natOutgoing": false, "disabled": false, "advertise": true, "uses": ["Pod"],
        })
    );
    for (change, wanted) in [
        (json!({"cidr": "10.245.0.0/16"}), "cidr is immutable"),
        (json!({"blockSize": 26}), "blockSize is immutable"),
        (json!({"allocation": "NodePodCIDR"}), "allocation is immutable"),
    ] {
        let refusal = server.patch(POOLS, None, "p", merge, &json!({ "spec": change }));
        let message = refusal.unwrap_err().message;
        assert!(message.contains(wanted), "{message}");
    }
    server.patch(POOLS, None, "p", merge, &json!({"spec": {"disabled": true}})).unwrap();
    let held = block("10.244.3.64-26", "10.244.3.64/26", "10.244.0.0/16");
    let name = "10.244.3.64-26";
    server.create(BLOCKS, None, held).unwrap();
    let taken = json!({"spec": {"node": {"name": "n2"}}});
    let message = server.patch(BLOCKS, None, name, merge, &taken).unwrap_err().message;
    assert!(message.contains("the spec of an IPBlock is immutable"), "{message}");
    let status = json!({"status": {"used": "1", "free": "63", "advertised": true}});
    let stored = server.patch(BLOCKS, None, name, merge, &status).unwrap();
    assert_eq!(stored.get("status"), None, "a status is written by its subresource only");
    server.patch_status(BLOCKS, None, name, &status).unwrap();
    let listed = server.list(BLOCKS, None, "").unwrap();
    assert_eq!(listed[0]["status"], status["status"]);
}

async fn columns_and_selectable_fields_are_those_of_the_kinds(api: Api) {
    let world = World::of(Cluster::start(api).await);
    let pool = object("IPPool", "p", json!({"cidr": "10.244.0.0/16"}));
    world.server.create(POOLS, None, pool).unwrap();
    for (name, cidr) in [("10.244.3.64-26", "10.244.3.64/26"), ("10.244.4.0-26", "10.244.4.0/26")] {
        world.server.create(BLOCKS, None, block(name, cidr, "10.244.0.0/16")).unwrap();
    }
    let status = json!({"status": {"used": "1", "free": "63", "advertised": true}});
    world.server.patch_status(BLOCKS, None, "10.244.3.64-26", &status).unwrap();
    let accept = [("accept", "application/json;as=Table;v=v1;g=meta.k8s.io")];
    for (plural, names, cells) in [
        (
            "ipblocks",
            "Name CIDR Pool Node Used Free Advertised Age",
            json!(["10.244.3.64-26", "10.244.3.64/26", "p", "n1", "1", "63", true]),
        ),
        (
            "ippools",
            "Name CIDR Block Encap Blocks Used Free Total Ready Age",
            json!(["p", "10.244.0.0/16", null, "None", null, null, null, null, null]),
        ),
    ] {
        let path = format!("/apis/cairn.network/v1alpha1/{plural}");
        let (_, _, table) = world.raw("GET", &path, &accept, "").await;
        let columns = table["columnDefinitions"].as_array().unwrap().iter();
        let found: Vec<&str> = columns.map(|column| column["name"].as_str().unwrap()).collect();
        assert_eq!(found.join(" "), names);
        let row = table["rows"][0]["cells"].as_array().unwrap();
        assert_eq!(json!(row[..row.len() - 1]), cells);
    }
    let count = async |selector: &str| {
        let path = format!("/apis/cairn.network/v1alpha1/ipblocks?fieldSelector={selector}");
        let (code, _, list) = world.raw("GET", &path, &[], "").await;
        (code, list["items"].as_array().map(Vec::len))
    };
    assert_eq!(count("spec.node.name%3Dn1").await, (200, Some(2)));
    assert_eq!(count("spec.range%3D10.244.0.0/16").await, (200, Some(2)));
    assert_eq!(count("spec.range%3D10.245.0.0/16").await, (200, Some(0)));
    assert_eq!(count("spec.cidr%3Dx").await.0, 400);
}

on_both_apis! {
    pools_are_judged_alike,
    blocks_are_judged_alike,
    reservations_are_judged_alike,
    what_is_immutable_stays_and_defaults_are_filled,
    columns_and_selectable_fields_are_those_of_the_kinds,
}
