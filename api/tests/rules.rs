//! The schema's rules, evaluated as the API server evaluates them.

use kube_cel::Validator;
use serde_json::{Value, json};

fn schema(kind: &str) -> Value {
    let crd = cairn_api::crds()
        .into_iter()
        .find(|crd| crd.spec.names.kind == kind)
        .expect("every kind has a definition");
    let version = crd.spec.versions.into_iter().next().expect("one version");
    serde_json::to_value(version.schema.and_then(|s| s.open_api_v3_schema)).expect("JSON")
}

fn errors(kind: &str, object: &Value, old: Option<&Value>) -> Vec<String> {
    match Validator::new().validate(&schema(kind), object, old) {
        Ok(()) => Vec::new(),
        Err(errors) => errors
            .into_vec()
            .into_iter()
            .map(|e| format!("{}: {}", e.field_path, e.message))
            .collect(),
    }
}

fn pool(spec: Value) -> Value {
    json!({"metadata": {"name": "p"}, "spec": spec})
}

fn block(name: &str, cidr: &str, range: &str) -> Value {
    json!({"metadata": {"name": name}, "spec": {
        "cidr": cidr, "range": range,
        "pool": {"name": "p", "uid": "1"}, "node": {"name": "n", "uid": "2"}}})
}

#[test]
fn pools_are_judged() {
    for (spec, fault) in [
        (json!({"cidr": "10.244.0.0/16"}), None),
        (json!({"cidr": "10.244.0.0/16", "blockSize": 28}), None),
        (json!({"cidr": "fd00:10:244::/48"}), None),
        (json!({"cidr": "10.244.0.1/16"}), Some("canonical")),
        (json!({"cidr": "FD00::/48"}), Some("canonical")),
        (json!({"cidr": "10.244.0.0/16", "blockSize": 12}), Some("shorter")),
        (json!({"cidr": "10.244.0.0/28"}), Some("set blockSize")),
        (json!({"cidr": "fd00::/48", "blockSize": 50}), Some("64 to 128")),
        (json!({"cidr": "fd00::/48", "encapsulation": "IPIP"}), Some("IPv6 pool")),
        (json!({"cidr": "ten"}), Some("cidr must be a network")),
    ] {
        let found = errors("IPPool", &pool(spec.clone()), None);
        match fault {
            None => assert!(found.is_empty(), "{spec}: {found:?}"),
            Some(text) => assert!(found.iter().any(|e| e.contains(text)), "{spec}: {found:?}"),
        }
    }
}

#[test]
fn a_pool_keeps_its_cidr_and_block_size() {
    let old = pool(json!({"cidr": "10.244.0.0/16"}));
    for (spec, text) in [
        (json!({"cidr": "10.245.0.0/16"}), "cidr is immutable"),
        (json!({"cidr": "10.244.0.0/16", "blockSize": 28}), "blockSize is immutable"),
    ] {
        let found = errors("IPPool", &pool(spec), Some(&old));
        assert!(found.iter().any(|e| e.contains(text)), "{found:?}");
    }
    let same = pool(json!({"cidr": "10.244.0.0/16", "disabled": true}));
    assert_eq!(errors("IPPool", &same, Some(&old)), Vec::<String>::new());
}

#[test]
fn the_name_and_range_of_a_block_follow_from_its_cidr() {
    for (cidr, name, range) in [
        ("10.244.3.64/26", "10.244.3.64-26", "10.244.0.0/16"),
        ("fd00:10:244::40/122", "fd00-10-244--40-122", "fd00:10:244::/64"),
    ] {
        let net = cidr.parse().expect("a network");
        assert_eq!(cairn_api::block_name(net), name);
        assert_eq!(cairn_api::block_range(net), range);
        assert_eq!(errors("IPBlock", &block(name, cidr, range), None), Vec::<String>::new());
    }
    for (name, cidr, range, text) in [
        ("mine", "10.244.3.64/26", "10.244.0.0/16", "the name of an IPBlock"),
        ("10.244.3.65-26", "10.244.3.65/26", "10.244.0.0/16", "canonical"),
        ("10.244.3.64-26", "10.244.3.64/26", "10.0.0.0/16", "range is the /16"),
        ("FD00---122", "FD00::/122", "fd00::/64", "canonical"),
    ] {
        let found = errors("IPBlock", &block(name, cidr, range), None);
        assert!(found.iter().any(|e| e.contains(text)), "{name}: {found:?}");
    }
}

#[test]
fn a_block_never_changes_hands_in_place() {
    let old = block("10.244.3.64-26", "10.244.3.64/26", "10.244.0.0/16");
    let mut new = old.clone();
    new["spec"]["node"]["name"] = json!("other");
    let found = errors("IPBlock", &new, Some(&old));
    assert!(found.iter().any(|e| e.contains("immutable")), "{found:?}");
}

#[test]
fn bgp_objects_are_judged() {
    let peer = |spec: Value| json!({"metadata": {"name": "tor"}, "spec": spec});
    for (kind, object, fault) in [
        ("BGPPeer", peer(json!({"address": "192.0.2.1", "asn": 65001, "multihop": 1})), None),
        (
            "BGPPeer",
            peer(json!({"address": "tor1", "asn": 65001, "multihop": 1})),
            Some("is an IP address"),
        ),
        (
            "BGPPeer",
            peer(json!({"address": "192.0.2.1", "asn": 23456, "multihop": 1})),
            Some("AS_TRANS"),
        ),
        (
            "BGPPeer",
            peer(json!({"address": "192.0.2.1", "asn": 1, "multihop": 2, "ttlSecurity": true})),
            Some("directly connected"),
        ),
        (
            "BGPPeer",
            peer(json!({"address": "192.0.2.1", "asn": 1, "multihop": 1, "sourceAddress": "::1"})),
            Some("family"),
        ),
        (
            "BGPConfiguration",
            json!({"metadata": {"name": "x"}, "spec": {"asn": 1}}),
            Some("its name is default"),
        ),
        (
            "BGPConfiguration",
            json!({"metadata": {"name": "default"}, "spec": {"asn": 1, "timers": {"holdTimeSecs": 2}}}),
            Some("at least 3"),
        ),
        (
            "BGPPolicy",
            json!({"metadata": {"name": "x"}, "spec": {"rules": [{"action": "Accept", "match": {"prefixes": [{"prefix": "10.0.0.0/8", "ge": 7}]}}]}}),
            Some("prefix length <= ge"),
        ),
        (
            "BGPPolicy",
            json!({"metadata": {"name": "x"}, "spec": {"rules": [{"action": "Accept", "match": {"prefixes": [{"prefix": "10.0.0.0/8", "ge": 9, "le": 24}]}}]}}),
            None,
        ),
        (
            "BGPAdvertisement",
            json!({"metadata": {"name": "x"}, "spec": {"cidrs": ["203.0.113.1/24"]}}),
            Some("canonical"),
        ),
        (
            "BGPAdvertisement",
            json!({"metadata": {"name": "x"}, "spec": {"cidrs": ["203.0.113.0/24"]}}),
            None,
        ),
        (
            "BGPNode",
            json!({"metadata": {"name": "x"}, "spec": {"addresses": ["n1"], "asn": 1, "routerID": "1.1.1.1"}}),
            Some("IP addresses"),
        ),
    ] {
        let found = errors(kind, &object, None);
        match fault {
            None => assert!(found.is_empty(), "{object}: {found:?}"),
            Some(text) => assert!(found.iter().any(|e| e.contains(text)), "{object}: {found:?}"),
        }
    }
}

#[test]
fn no_schema_forbids_unknown_fields_in_a_way_that_the_api_server_refuses() {
    fn walk(path: &str, value: &Value) {
        match value {
            Value::Object(map) => {
                assert!(
                    !(map.contains_key("properties") && map.contains_key("additionalProperties")),
                    "{path}: properties and additionalProperties exclude each other"
                );
                for (key, value) in map {
                    walk(&format!("{path}.{key}"), value);
                }
            }
            Value::Array(list) => list.iter().for_each(|value| walk(path, value)),
            _ => {}
        }
    }
    for crd in cairn_api::crds() {
        walk(&crd.spec.names.kind.clone(), &serde_json::to_value(&crd).expect("JSON"));
    }
}

#[test]
fn routes_take_no_number_of_others_and_no_table_of_the_kernel() {
    let found = |routes: Value| {
        let object = json!({"metadata": {"name": "default"}, "spec": {"routes": routes}});
        errors("NodeConfiguration", &object, None)
    };
    // Numbers below 19 are refused by the schema's minimum.
    for protocol in 19..=255u8 {
        let faults = found(json!({"protocol": protocol, "metric": 198, "table": 254}));
        let taken = cairn_api::Routes::is_taken(protocol);
        assert_eq!(!faults.is_empty(), taken, "{protocol}: {faults:?}");
        assert!(faults.iter().all(|fault| fault.contains("this number is")), "{faults:?}");
    }
    assert!((0..19).all(cairn_api::Routes::is_taken));
    let bounds = &schema("NodeConfiguration")["properties"]["spec"]["properties"]["routes"];
    let bounds = |field: &str| {
        let field = &bounds["properties"][field];
        (field["minimum"].as_f64(), field["maximum"].as_f64())
    };
    assert_eq!(bounds("protocol"), (Some(19.0), Some(255.0)));
    assert_eq!(bounds("metric"), (Some(1.0), Some(4197.0)));
    assert_eq!(bounds("table"), (Some(1.0), Some(4294967295.0)));
    let local = found(json!({"protocol": 222, "metric": 198, "table": 255}));
    assert!(local.iter().any(|fault| fault.contains("table 255 (local)")), "{local:?}");
}
