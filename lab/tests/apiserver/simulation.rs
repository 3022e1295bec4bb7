//! What simulations stand on: calls without sockets, copies, given times and UIDs, and a past to go
//! back to.

use bytes::Bytes;
use cairn_lab::apiserver::{ApiServer, Clock, Options, Randomness};
use http_body_util::BodyExt;
use hyper::Request;
use serde_json::{Value, json};

fn seeded(seed: u64) -> Options {
    let time = "2026-01-01T00:00:00Z".parse().expect("a time");
    Options {
        clock: Clock::new(move || time),
        randomness: Randomness::Seeded(seed),
        ..Options::default()
    }
}

fn config_map(server: &ApiServer, name: &str) -> Value {
    let object = json!({"metadata": {"name": name}});
    server.create("configmaps", Some("default"), object).expect("created")
}

fn get(path: &str) -> Request<Bytes> {
    Request::get(path).body(Bytes::new()).expect("a request")
}

async fn document(server: &ApiServer, path: &str) -> (u16, Value) {
    let answer = server.call(get(path)).await;
    let code = answer.status().as_u16();
    let body = answer.into_body().collect().await.expect("a body").to_bytes();
    (code, serde_json::from_slice(&body).expect("JSON"))
}

#[tokio::test]
async fn the_same_seed_gives_the_same_objects() {
    let made = |seed| config_map(&ApiServer::new(seeded(seed)), "a");
    assert_eq!(made(1), made(1));
    assert_ne!(made(1)["metadata"]["uid"], made(2)["metadata"]["uid"]);
    assert_eq!(made(1)["metadata"]["creationTimestamp"], "2026-01-01T00:00:00Z");
}

#[tokio::test]
async fn a_copy_goes_its_own_way() {
    let server = ApiServer::new(seeded(1));
    server.load_yaml(super::CRDS).expect("the test CRDs are valid");
    config_map(&server, "a");
    let copy = server.fork(seeded(2));
    config_map(&copy, "b");
    let of = |server: &ApiServer| server.list("configmaps", None, "").expect("a list").len();
    assert_eq!((of(&server), of(&copy)), (1, 2));
    assert_eq!(copy.list("pools.test.cairn.network", None, "").expect("a list").len(), 0);
    let (code, _) = document(&copy, "/api/v1/namespaces/default/configmaps/b").await;
    assert_eq!(code, 200);
}

#[tokio::test]
async fn after_a_restore_that_raises_numbers_objects_keep_theirs_and_watches_from_before_are_refused()
 {
    let server = ApiServer::new(seeded(1));
    let kept = config_map(&server, "kept")["metadata"]["resourceVersion"].clone();
    let snapshot = server.snapshot();
    let before = server.revision();
    config_map(&server, "lost");
    server.restore_raised(&snapshot, 1_000);
    let (_, list) = document(&server, "/api/v1/configmaps").await;
    assert_eq!(list["metadata"]["resourceVersion"], (before + 1_000).to_string());
    assert_eq!(list["items"].as_array().map(Vec::len), Some(1));
    assert_eq!(list["items"][0]["metadata"]["resourceVersion"], kept);
    let path = format!("/api/v1/configmaps?watch=true&resourceVersion={}", before + 1);
    let mut answer = server.call(get(&path)).await;
    let line = answer.body_mut().frame().await.expect("an answer").expect("data");
    let told: Value = serde_json::from_slice(&line.into_data().expect("data")).expect("JSON");
    let code = told.pointer("/object/code").or(told.get("code")).cloned();
    assert_eq!(code, Some(Value::from(410)), "{told}");
    let later = config_map(&server, "later")["metadata"]["resourceVersion"].clone();
    assert_eq!(later, (before + 1_001).to_string());
}

#[tokio::test]
async fn after_a_restore_a_watch_from_the_future_is_silent_until_history_catches_up() {
    let server = ApiServer::new(seeded(1));
    config_map(&server, "kept");
    let snapshot = server.snapshot();
    let path = "/api/v1/configmaps?watch=true&timeoutSeconds=600&resourceVersion=";
    let mut cut = server.call(get(&format!("{path}{}", server.revision()))).await.into_body();
    config_map(&server, "lost");
    let future = server.revision();
    assert!(cut.frame().await.is_some(), "the event of the write");
    server.restore(&snapshot);
    assert!(cut.frame().await.is_none(), "a restore cuts every watch");
    let (code, list) = document(&server, "/api/v1/configmaps").await;
    let names = list["items"].as_array().expect("items").iter();
    let names: Vec<&str> = names.filter_map(|o| o["metadata"]["name"].as_str()).collect();
    assert_eq!((code, names), (200, vec!["kept"]));
    let mut silent = server.call(get(&format!("{path}{future}"))).await;
    assert_eq!(silent.status(), 200);
    assert_eq!(
        config_map(&server, "same-number")["metadata"]["resourceVersion"],
        future.to_string()
    );
    config_map(&server, "later");
    let line = silent.body_mut().frame().await.expect("an event").expect("data");
    let event: Value = serde_json::from_slice(&line.into_data().expect("data")).expect("JSON");
    assert_eq!(event["object"]["metadata"]["name"], "later", "what came before is never shown");
    let (code, _) = document(&server, "/api/v1/configmaps?resourceVersion=999999").await;
    assert_eq!(code, 504);
}
