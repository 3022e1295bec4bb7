//! Outages and injected faults.

use kube::api::{ListParams, PostParams};

use super::*;

#[tokio::test]
async fn a_paused_server_is_away_and_keeps_its_state() {
    let world = World::new();
    world.pools().create(&PostParams::default(), &pool("p", "10.0.0.0/16")).await.unwrap();
    let mut watch =
        std::pin::pin!(world.pools().watch(&kube::api::WatchParams::default(), "0").await.unwrap());
    use futures::StreamExt;
    assert!(watch.next().await.unwrap().is_ok());
    world.server.pause();
    let ended = tokio::time::timeout(PATIENCE, watch.next()).await.expect("the watch breaks");
    assert!(!matches!(ended, Some(Ok(_))), "{ended:?}");
    let away = tokio::time::timeout(PATIENCE, world.pools().list(&ListParams::default())).await;
    let error = away.expect("a refusal, not a hang").unwrap_err();
    assert!(!matches!(error, kube::Error::Api(_)), "{error:?}");
    world.server.get("pools.test.cairn.network", None, "p").expect("callers inside go on");
    world.server.resume();
    eventually("the server is back", async || world.pools().get("p").await.is_ok()).await;
}

#[tokio::test]
async fn several_listeners_share_one_state_and_stop_alone() {
    let world = World::new();
    let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let second = world.embedded().serve(listener).unwrap();
    let other = client_of(second.address());
    world.pools().create(&PostParams::default(), &pool("p", "10.0.0.0/16")).await.unwrap();
    let pools: kube::Api<DynamicObject> = kube::Api::all_with(other, &pool_resource());
    assert!(pools.get("p").await.is_ok());
    second.stop().await;
    assert!(pools.get("p").await.is_err());
    assert!(world.pools().get("p").await.is_ok());
}

#[tokio::test]
async fn asked_for_faults_happen() {
    let world = World::new();
    let path = "/apis/test.cairn.network/v1alpha1/pools";
    world.server.fail_next(2);
    for wanted in [500, 500, 200] {
        assert_eq!(world.raw("GET", path, &[], "").await.0, wanted);
    }
    world.embedded().delay_requests(Duration::from_millis(80));
    let before = std::time::Instant::now();
    assert_eq!(world.raw("GET", path, &[], "").await.0, 200);
    assert!(before.elapsed() >= Duration::from_millis(80));
}
