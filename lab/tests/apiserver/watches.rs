//! Watches.

use std::pin::pin;

use futures::{StreamExt, TryStreamExt};
use k8s_openapi::api::core::v1::Node;
use kube::ResourceExt;
use kube::api::{DeleteParams, Patch, PatchParams, PostParams, WatchEvent, WatchParams};
use kube::core::PartialObjectMeta;
use kube::runtime::{WatchStreamExt, watcher};

use super::*;

type Events = Vec<(String, Value)>;

/// Reads `count` events of a watch of pools with these query parameters.
async fn events(world: &World, query: &str, count: usize) -> Events {
    read_events(world, query, "application/json", count).await
}

async fn read_events(world: &World, query: &str, accept: &str, count: usize) -> Events {
    read_events_until(world, query, accept, |found| found.len() >= count).await
}

async fn read_events_until(
    world: &World,
    query: &str,
    accept: &str,
    done: impl Fn(&Events) -> bool,
) -> Events {
    use tokio::io::{AsyncBufReadExt, AsyncWriteExt, BufReader};
    let mut stream = tokio::net::TcpStream::connect(world.serving.address()).await.unwrap();
    let request = format!(
        "GET /apis/test.cairn.network/v1alpha1/pools?watch=true&{query} HTTP/1.1\r\nhost: api\r\n\
         accept: {accept}\r\n\r\n"
    );
    stream.write_all(request.as_bytes()).await.unwrap();
    let mut lines = BufReader::new(stream).lines();
    let mut found = Vec::new();
    while !done(&found) {
        let line = tokio::time::timeout(PATIENCE, lines.next_line()).await;
        let line = line.expect("an event in time").unwrap().expect("the watch goes on");
        if let Ok(Value::Object(event)) = serde_json::from_str(&line) {
            found.push((event["type"].as_str().unwrap().to_owned(), event["object"].clone()));
        }
    }
    found
}

fn names(events: &Events) -> Vec<String> {
    let name = |(kind, object): &(String, Value)| {
        format!("{kind} {}", object["metadata"]["name"].as_str().unwrap_or("-"))
    };
    events.iter().map(name).collect()
}

async fn a_watch_shows_every_change_after_its_version(api: Api) {
    let world = World::start(api).await;
    let pools = world.pools();
    let first = pools.create(&PostParams::default(), &pool("a", "10.0.0.0/16")).await.unwrap();
    let since = first.resource_version().unwrap();
    pools.create(&PostParams::default(), &pool("b", "10.1.0.0/16")).await.unwrap();
    let mut watch = pin!(pools.watch(&WatchParams::default(), &since).await.unwrap());
    let label = Patch::Merge(json!({"metadata": {"labels": {"x": "y"}}}));
    pools.patch("b", &PatchParams::default(), &label).await.unwrap();
    pools.delete("a", &DeleteParams::default()).await.unwrap();
    let mut seen = Vec::new();
    while seen.len() < 3 {
        let event = tokio::time::timeout(PATIENCE, watch.try_next()).await.unwrap().unwrap();
        seen.push(match event.unwrap() {
            WatchEvent::Added(object) => format!("ADDED {}", object.name_any()),
            WatchEvent::Modified(object) => format!("MODIFIED {}", object.name_any()),
            WatchEvent::Deleted(object) => {
                let version: u64 = object.resource_version().unwrap().parse().unwrap();
                assert_eq!(version, world.server.revision(), "a deletion has a version of its own");
                format!("DELETED {}", object.name_any())
            }
            other => panic!("{other:?}"),
        });
    }
    assert_eq!(seen, ["ADDED b", "MODIFIED b", "DELETED a"]);
}

async fn selectors_turn_changes_into_additions_and_deletions(api: Api) {
    let world = World::start(api).await;
    let pools = world.pools();
    pools.create(&PostParams::default(), &pool("a", "10.0.0.0/16")).await.unwrap();
    let since = world.server.revision();
    for labels in [json!({"x": "y"}), json!({"x": "y", "z": "1"}), json!({"x": null})] {
        let patch = Patch::Merge(json!({"metadata": {"labels": labels}}));
        pools.patch("a", &PatchParams::default(), &patch).await.unwrap();
    }
    let query = format!("resourceVersion={since}&labelSelector=x%3Dy");
    let seen = events(&world, &query, 3).await;
    assert_eq!(names(&seen), ["ADDED a", "MODIFIED a", "DELETED a"]);
    assert_eq!(seen[2].1["metadata"]["labels"]["x"], "y", "the last state that was selected");
    assert_eq!(seen[2].1["metadata"]["resourceVersion"], world.server.revision().to_string());
    let by_field = events(&world, "fieldSelector=metadata.name%3Da", 1).await;
    assert_eq!(names(&by_field), ["ADDED a"]);
}

#[tokio::test]
async fn a_watch_from_forgotten_history_gets_410() {
    let world = World::with(Options { history_max: 5, ..Options::default() });
    for i in 0..8 {
        let object = pool(&format!("p{i}"), "10.0.0.0/16");
        world.pools().create(&PostParams::default(), &object).await.unwrap();
    }
    let seen = events(&world, "resourceVersion=3", 1).await;
    assert_eq!((seen[0].0.as_str(), &seen[0].1["code"]), ("ERROR", &json!(410)));
    assert_eq!(seen[0].1["reason"], "Expired");
    let since = world.server.revision() - 5;
    let kept = events(&world, &format!("resourceVersion={since}"), 5).await;
    assert_eq!(kept.len(), 5, "what is kept can be watched from");
}

async fn a_watch_ahead_of_history_is_silent_until_history_has_caught_up(api: Api) {
    let world = World::start(api).await;
    let since = world.server.revision() + 2;
    let query = format!("resourceVersion={since}");
    let watching = events(&world, &query, 1);
    let writing = async {
        tokio::time::sleep(Duration::from_millis(100)).await;
        let mut written = Vec::new();
        for i in 0..4 {
            let object = pool(&format!("p{i}"), "10.0.0.0/16");
            let object = world.pools().create(&PostParams::default(), &object).await.unwrap();
            written.push((object.resource_version().unwrap().parse::<u64>().unwrap(), i));
        }
        written
    };
    let (seen, written) = futures::join!(watching, writing);
    // A real server writes of its own accord, too.
    let (_, first) = written.iter().find(|(version, _)| *version > since).unwrap();
    assert_eq!(names(&seen), [format!("ADDED p{first}")]);
}

async fn streaming_lists_end_with_a_marked_bookmark(api: Api) {
    let world = World::start(api).await;
    for name in ["a", "b"] {
        world.pools().create(&PostParams::default(), &pool(name, "10.0.0.0/16")).await.unwrap();
    }
    let query = "sendInitialEvents=true&resourceVersionMatch=NotOlderThan&allowWatchBookmarks=true";
    let seen = events(&world, query, 3).await;
    assert_eq!(names(&seen), ["ADDED a", "ADDED b", "BOOKMARK -"]);
    let meta = &seen[2].1["metadata"];
    assert_eq!(meta["annotations"]["k8s.io/initial-events-end"], "true");
    assert_eq!(meta["resourceVersion"], world.server.revision().to_string());
    let path = "/apis/test.cairn.network/v1alpha1/pools?watch=true&sendInitialEvents=true";
    let (code, _, body) = world.raw("GET", path, &[], "").await;
    assert_eq!((code, &body["reason"]), (422, &json!("Invalid")));

    let config = watcher::Config::default().streaming_lists();
    let mut applied = pin!(watcher(world.pools(), config).default_backoff().applied_objects());
    let first = tokio::time::timeout(PATIENCE, applied.try_next()).await.unwrap().unwrap();
    assert_eq!(first.unwrap().name_any(), "a");
}

#[tokio::test]
async fn bookmarks_come_when_asked_for_and_never_skip() {
    let bookmark_interval = Duration::from_millis(30);
    let world = World::with(Options { bookmark_interval, ..Options::default() });
    let since = world.server.revision();
    // Writes elsewhere move the bookmark though this watch sees none of them.
    world.server.create("nodes", None, json!({"metadata": {"name": "n"}})).unwrap();
    let query = format!("resourceVersion={since}&allowWatchBookmarks=true");
    let seen = events(&world, &query, 1).await;
    assert_eq!(seen[0].0, "BOOKMARK");
    assert_eq!(seen[0].1["metadata"]["resourceVersion"], world.server.revision().to_string());
    assert_eq!(seen[0].1["kind"], "Pool");
}

#[tokio::test]
async fn a_slow_watcher_is_cut_with_an_error() {
    let world = World::with(Options { watch_queue_max: 4, ..Options::default() });
    let query = format!("resourceVersion={}", world.server.revision());
    let is_cut = |found: &Events| found.last().is_some_and(|(kind, _)| kind == "ERROR");
    let watching = read_events_until(&world, &query, "application/json", is_cut);
    let writing = async {
        tokio::time::sleep(Duration::from_millis(100)).await;
        // One burst without a pause: on one thread the watcher cannot drain its queue meanwhile.
        for i in 0..50 {
            let object = json!({
                "apiVersion": "test.cairn.network/v1alpha1", "kind": "Pool",
                "metadata": {"name": format!("p{i}")}, "spec": {"cidr": "10.0.0.0/16"},
            });
            world.server.create("pools.test.cairn.network", None, object).unwrap();
        }
    };
    let (seen, ()) = futures::join!(watching, writing);
    assert!(seen.len() < 50);
    assert_eq!(seen.last().unwrap().1["code"], 410);
}

#[tokio::test]
async fn kube_runtime_keeps_up_through_an_outage_and_lost_history() {
    let world = World::new();
    let pools = world.pools();
    pools.create(&PostParams::default(), &pool("a", "10.0.0.0/16")).await.unwrap();
    let mut stream = pin!(
        watcher(pools.clone(), watcher::Config::default()).default_backoff().touched_objects()
    );
    let next = async |stream: &mut std::pin::Pin<&mut _>| {
        loop {
            let item = tokio::time::timeout(PATIENCE, StreamExt::next(stream)).await.unwrap();
            match item.unwrap() {
                Ok(object) => return DynamicObject::name_any(&object),
                Err(_) => continue,
            }
        }
    };
    assert_eq!(next(&mut stream).await, "a");
    world.server.pause();
    tokio::time::sleep(Duration::from_millis(50)).await;
    let object = json!({
        "apiVersion": "test.cairn.network/v1alpha1", "kind": "Pool",
        "metadata": {"name": "b"}, "spec": {"cidr": "10.1.0.0/16"},
    });
    world.server.create("pools.test.cairn.network", None, object).unwrap();
    world.embedded().forget_history();
    world.server.resume();
    let mut seen = next(&mut stream).await;
    while seen != "b" {
        seen = next(&mut stream).await;
    }
}

async fn metadata_only_watches_carry_no_spec(api: Api) {
    let world = World::start(api).await;
    world.pools().create(&PostParams::default(), &pool("a", "10.0.0.0/16")).await.unwrap();
    let seen = {
        let accept = "application/json;as=PartialObjectMetadata;v=v1;g=meta.k8s.io";
        read_events(&world, "", accept, 1).await
    };
    assert_eq!(seen[0].1["kind"], "PartialObjectMetadata");
    assert_eq!(seen[0].1.get("spec"), None);
    let listed = world.pools().list_metadata(&Default::default()).await.unwrap();
    assert_eq!(listed.items[0].name_any(), "a");
    let nodes: kube::Api<PartialObjectMeta<Node>> = kube::Api::all(world.client.clone());
    world.server.create("nodes", None, json!({"metadata": {"name": "n"}})).unwrap();
    let mut stream = pin!(watcher(nodes, watcher::Config::default()).applied_objects());
    let first = tokio::time::timeout(PATIENCE, stream.try_next()).await.unwrap().unwrap().unwrap();
    assert_eq!(first.name_any(), "n");
}

async fn a_watch_ends_at_its_timeout(api: Api) {
    let world = World::start(api).await;
    let path = "/apis/test.cairn.network/v1alpha1/pools?watch=true&timeoutSeconds=1";
    let answered = tokio::time::timeout(PATIENCE, world.raw("GET", path, &[], "")).await;
    assert_eq!(answered.expect("the watch ends by itself").0, 200);
}

on_both_apis! {
    a_watch_shows_every_change_after_its_version,
    selectors_turn_changes_into_additions_and_deletions,
    a_watch_ahead_of_history_is_silent_until_history_has_caught_up,
    streaming_lists_end_with_a_marked_bookmark,
    metadata_only_watches_carry_no_spec,
    a_watch_ends_at_its_timeout,
}
