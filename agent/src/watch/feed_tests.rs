use std::collections::VecDeque;
use std::convert::Infallible;
use std::sync::Mutex;
use std::task::{Context, Poll};

use bytes::Bytes;
use futures::future::BoxFuture;
use futures::stream;
use http_body_util::StreamBody;
use hyper::body::Frame;
use hyper::{Request, Response, StatusCode};
use k8s_openapi::api::core::v1::Node;
use kube::Client;
use kube::client::Body;
use serde_json::{Value, json};

use super::*;

#[test]
fn pauses_differ_between_agents_and_are_the_same_again() {
    let follower = |node: usize| Follower { node: format!("n{node}"), subject: "Node".into() };
    let spread: Vec<f64> = (0..1000).map(|node| follower(node).jitter(3)).collect();
    assert!(spread.iter().all(|at| (0.0..1.0).contains(at)));
    for tenth in 0..10 {
        let part = f64::from(tenth) / 10.0..f64::from(tenth + 1) / 10.0;
        let here = spread.iter().filter(|at| part.contains(at)).count();
        assert!((60..140).contains(&here), "{here} of 1000 agents in {part:?}");
    }
    assert_eq!(spread, (0..1000).map(|node| follower(node).jitter(3)).collect::<Vec<_>>());
    assert_ne!(follower(1).jitter(3), follower(1).jitter(4));
}

/// A server that gives the answers of a script, in order.
#[derive(Clone)]
struct Scripted {
    answers: Arc<Mutex<VecDeque<Answer>>>,
    /// What was asked: the query of each request.
    asked: Arc<Mutex<Vec<String>>>,
}

/// An answer: lines, each after a pause, and how it ends.
struct Answer {
    code: u16,
    lines: Vec<(Duration, Value)>,
    end: End,
}

#[derive(Clone, Copy)]
enum End {
    Clean,
    Broken,
    /// The way is cut without a word.
    Never,
}

impl Answer {
    fn body(self) -> BoxStream<'static, Result<Frame<Bytes>, std::io::Error>> {
        let lines = stream::iter(self.lines).then(|(pause, line)| async move {
            tokio::time::sleep(pause).await;
            Ok(Frame::data(Bytes::from(format!("{line}\n"))))
        });
        match self.end {
            End::Clean => lines.boxed(),
            End::Broken => {
                let error = Err(std::io::ErrorKind::ConnectionReset.into());
                lines.chain(stream::iter([error])).boxed()
            }
            End::Never => lines.chain(stream::pending()).boxed(),
        }
    }
}

impl tower_service::Service<Request<Body>> for Scripted {
    type Response = Response<StreamBody<BoxStream<'static, Result<Frame<Bytes>, std::io::Error>>>>;
    type Error = Infallible;
    type Future = BoxFuture<'static, Result<Self::Response, Infallible>>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), Infallible>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, request: Request<Body>) -> Self::Future {
        let query = request.uri().query().unwrap_or_default().to_owned();
        self.asked.lock().expect("no panic").push(query);
        let answer = self.answers.lock().expect("no panic").pop_front().expect("an answer");
        let code = StatusCode::from_u16(answer.code).expect("a code");
        let mut response = Response::new(StreamBody::new(answer.body()));
        *response.status_mut() = code;
        Box::pin(std::future::ready(Ok(response)))
    }
}

fn feed(
    answers: impl IntoIterator<Item = Answer>,
    recovery: Recovery,
) -> (Feed<Node, Node>, Scripted) {
    let answers = Arc::new(Mutex::new(answers.into_iter().collect()));
    let server = Scripted { answers, asked: Arc::default() };
    let api = Api::all(Client::new(server.clone(), "default"));
    let follower = Follower { node: "n1".into(), subject: "Node".into() };
    (Feed::new(api, None, Box::new(|node| node), follower, recovery), server)
}

fn bookmark(version: u64, annotations: Value) -> Value {
    let metadata = json!({"resourceVersion": version.to_string(), "annotations": annotations});
    let object = json!({"apiVersion": "v1", "kind": "Node", "metadata": metadata});
    json!({"type": "BOOKMARK", "object": object})
}

/// A list without objects, as a stream that goes on for so long, with a bookmark a minute.
fn streamed(version: u64, minutes: u64, end: End) -> Answer {
    let list = (Duration::ZERO, bookmark(version, json!({LIST_ENDS: "true"})));
    let each = (1..=minutes).map(|_| (Duration::from_secs(60), bookmark(version, json!({}))));
    Answer { code: 200, lines: [list].into_iter().chain(each).collect(), end }
}

/// A watch that shows one object.
fn watched(version: u64, end: End) -> Answer {
    let metadata = json!({"name": "n1", "resourceVersion": version.to_string()});
    let object = json!({"apiVersion": "v1", "kind": "Node", "metadata": metadata});
    let lines = vec![(Duration::ZERO, json!({"type": "ADDED", "object": object}))];
    Answer { code: 200, lines, end }
}

/// A list as one answer, or a refusal.
fn whole(code: u16, version: u64) -> Answer {
    let document = match code {
        200 => json!({
            "apiVersion": "v1", "kind": "NodeList", "items": [],
            "metadata": {"resourceVersion": version.to_string()},
        }),
        _ => json!({
            "apiVersion": "v1", "kind": "Status", "status": "Failure", "code": code,
            "reason": "Refused", "message": "it is refused",
        }),
    };
    Answer { code, lines: vec![(Duration::ZERO, document)], end: End::Clean }
}

/// The next change, whatever failed before it.
async fn change(feed: &mut Feed<Node, Node>) -> Change<Node> {
    loop {
        if let Ok(change) = feed.next().await {
            return change;
        }
    }
}

#[tokio::test(start_paused = true)]
async fn after_a_watch_that_was_cut_off_early_a_careful_feed_begins_with_a_list() {
    let cases = [
        ("its time was over", Recovery::List, 60, End::Clean, false),
        ("it was cut off", Recovery::List, 10, End::Clean, true),
        ("it broke", Recovery::List, 10, End::Broken, true),
        ("it fell silent", Recovery::List, 10, End::Never, true),
        ("it was cut off, of many objects", Recovery::Resume, 10, End::Clean, false),
        ("it broke, of many objects", Recovery::Resume, 10, End::Broken, false),
    ];
    for (what, recovery, minutes, end, lists) in cases {
        let next = if lists { streamed(101, 0, End::Never) } else { watched(101, End::Never) };
        let (mut feed, server) = feed([streamed(100, minutes, end), next], recovery);
        assert!(matches!(change(&mut feed).await, Change::All(_)), "{what}");
        let second = change(&mut feed).await;
        assert_eq!(matches!(second, Change::All(_)), lists, "{what}");
        let asked = server.asked.lock().expect("no panic")[1].clone();
        assert_eq!(asked.contains("sendInitialEvents=true"), lists, "{what}: {asked}");
        assert_eq!(asked.contains("resourceVersion=100"), !lists, "{what}: {asked}");
    }
    // Nor does one go on that could not even begin.
    let answers = [streamed(100, 60, End::Clean), whole(500, 0), streamed(101, 0, End::Never)];
    let (mut feed, _) = feed(answers, Recovery::List);
    change(&mut feed).await;
    assert!(matches!(change(&mut feed).await, Change::All(_)));
}

#[tokio::test(start_paused = true)]
async fn a_list_that_is_older_than_what_was_seen_before_it_is_of_another_history() {
    let answers = [
        whole(422, 0),
        whole(200, 100),
        watched(120, End::Broken),
        whole(200, 120),
        watched(130, End::Broken),
        // As after a restore.
        whole(200, 129),
        watched(140, End::Broken),
        // Raised since: by now nothing of what was seen counts.
        whole(200, 50),
        // One that has forgotten what comes after a list.
        whole(410, 0),
        whole(200, 49),
    ];
    let (mut feed, _) = feed(answers, Recovery::List);
    let mut told = Vec::new();
    for _ in 0..6 {
        if matches!(change(&mut feed).await, Change::All(_)) {
            told.push(feed.went_back());
        }
    }
    assert_eq!(told, [false, false, true]);
    feed.begin_anew();
    for expected in [false, true] {
        assert!(matches!(change(&mut feed).await, Change::All(_)));
        assert_eq!(feed.went_back(), expected);
    }
}
