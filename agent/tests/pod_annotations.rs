//! The annotations of pods, asked of the API server.

mod nodes;

use std::collections::BTreeMap;
use std::time::Duration;

use cairn_agent::pods::{AnnotationSource, ApiAnnotations};
use cairn_cni::PodIdentity;
use serde_json::json;

use nodes::Cluster;

fn pod(name: &str, uid: Option<&str>) -> PodIdentity {
    PodIdentity::parse(Some("default"), Some(name), uid).expect("an identity")
}

#[tokio::test]
async fn a_pods_annotations_are_its_own_or_an_error_and_never_a_guess() {
    let cluster = Cluster::new();
    let source = ApiAnnotations::new(cluster.client());
    let annotations = BTreeMap::from([("cairn.network/ips".to_owned(), "10.0.0.7".to_owned())]);
    let object = json!({
        "apiVersion": "v1",
        "kind": "Pod",
        "metadata": {"name": "web-0", "namespace": "default", "annotations": annotations},
        "spec": {"containers": [{"name": "c", "image": "i"}]},
    });
    let made = cluster.server.create("pods", Some("default"), object.clone()).expect("a pod");
    let uid = made["metadata"]["uid"].as_str().expect("a UID");
    for asked in [pod("web-0", Some(uid)), pod("web-0", None)] {
        assert_eq!(source.annotations(&asked).await, Ok(annotations.clone()));
    }
    // A pod that does not exist has none; one that came after it under its name is another.
    assert_eq!(source.annotations(&pod("gone", None)).await, Ok(BTreeMap::new()));
    let error = source.annotations(&pod("web-0", Some("another"))).await.expect_err("another pod");
    assert!(error.contains("is another one now"), "{error}");
    // But the object of a static pod has another UID than its container.
    let mut mirror = object;
    mirror["metadata"]["name"] = "etcd".into();
    mirror["metadata"]["annotations"]["kubernetes.io/config.mirror"] = "hash".into();
    cluster.server.create("pods", Some("default"), mirror).expect("a mirror pod");
    let told = source.annotations(&pod("etcd", Some("hash"))).await.expect("its annotations");
    assert_eq!(told["cairn.network/ips"], "10.0.0.7");

    cluster.server.pause();
    let asked = source.annotations(&pod("web-0", None));
    let answer = tokio::time::timeout(Duration::from_secs(20), asked).await.expect("in time");
    let reason = answer.expect_err("nobody knows");
    assert!(reason.starts_with("the API server "), "{reason}");
}
