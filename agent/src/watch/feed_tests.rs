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

/// What each request asked for: a list, or what comes after a version.
fn requests(server: &Scripted) -> Vec<String> {
    let from = |query: &String| {
        let from = query.split('&').find(|part| part.starts_with("resourceVersion=1"));
        from.unwrap_or("list").to_owned()
    };
    server.asked.lock().expect("no panic").iter().map(from).collect()
}

const FROM_100: &str = "resourceVersion=100";
const FROM_101: &str = "resourceVersion=101";

#[tokio::test(start_paused = true)]
async fn a_watch_that_was_cut_off_early_goes_on_and_a_careful_feed_lists_within_seconds() {
    let cases = [
        ("its time was over", Recovery::Check, 60, End::Clean, false),
        ("it was cut off", Recovery::Check, 10, End::Clean, true),
        ("it broke", Recovery::Check, 10, End::Broken, true),
        ("it fell silent", Recovery::Check, 10, End::Never, true),
        ("it was cut off, of many objects", Recovery::Resume, 10, End::Clean, false),
        ("it broke, of many objects", Recovery::Resume, 10, End::Broken, false),
    ];
    for (what, recovery, minutes, end, lists) in cases {
        let answers = [streamed(100, minutes, end), watched(101, End::Never)];
        let (mut feed, server) =
            feed(answers.into_iter().chain([streamed(102, 0, End::Never)]), recovery);
        assert!(matches!(change(&mut feed).await, Change::All(_)), "{what}");
        assert!(matches!(change(&mut feed).await, Change::Set(..)), "{what}");
        assert_eq!(requests(&server), ["list", FROM_100], "{what}");
        let third = tokio::time::timeout(CHECK_SPREAD, change(&mut feed)).await;
        assert_eq!(matches!(third, Ok(Change::All(_))), lists, "{what}");
        assert_eq!(third.is_err(), !lists, "{what}");
        // That was the only one.
        let fourth = tokio::time::timeout(2 * CHECK_SPREAD, change(&mut feed)).await;
        assert!(fourth.is_err(), "{what}");
    }
}

#[tokio::test(start_paused = true)]
async fn lists_that_check_what_was_missed_are_spread_over_the_agents() {
    let mut spread = Vec::new();
    for node in 0..100 {
        let answers = [streamed(100, 10, End::Broken), watched(101, End::Never)];
        let answers = answers.into_iter().chain([streamed(102, 0, End::Never)]);
        let (mut feed, _) = feed(answers, Recovery::Check);
        feed.follower.node = format!("n{node}");
        change(&mut feed).await;
        change(&mut feed).await;
        let resumed = Instant::now();
        assert!(matches!(change(&mut feed).await, Change::All(_)));
        spread.push(resumed.elapsed());
    }
    for third in 0..3 {
        let part = CHECK_SPREAD * third / 3..CHECK_SPREAD * (third + 1) / 3;
        let here = spread.iter().filter(|at| part.contains(at)).count();
        assert!((20..47).contains(&here), "{here} of 100 agents in {part:?}");
    }
}

#[tokio::test(start_paused = true)]
async fn further_cuts_do_not_put_off_the_list_that_checks_what_was_missed() {
    let answers = [
        streamed(100, 10, End::Broken),
        watched(101, End::Broken),
        watched(102, End::Clean),
        watched(103, End::Never),
        streamed(104, 0, End::Never),
    ];
    let (mut feed, _) = feed(answers, Recovery::Check);
    change(&mut feed).await;
    change(&mut feed).await;
    let Check::At(at) = feed.check else { panic!("no check is due: {:?}", feed.check) };
    for _ in 0..2 {
        assert!(matches!(change(&mut feed).await, Change::Set(..)));
        assert_eq!(feed.check, Check::At(at));
    }
    assert!(matches!(change(&mut feed).await, Change::All(_)));
    assert!(Instant::now().duration_since(at) < Duration::from_millis(10));
    assert_eq!(feed.check, Check::Unneeded);
}

#[tokio::test(start_paused = true)]
async fn a_watch_that_is_refused_or_gets_no_answer_is_asked_for_again_and_no_list() {
    // Long after the time at which the check would be due: it is chosen when the watch runs again.
    let refused = (0..20).flat_map(|_| [429, 500, 503, 504]).map(|code| whole(code, 0));
    let answers = [streamed(100, 10, End::Broken)].into_iter().chain(refused);
    let answers = answers.chain([watched(101, End::Never), streamed(102, 0, End::Never)]);
    let (mut feed, server) = feed(answers, Recovery::Check);
    change(&mut feed).await;
    assert!(matches!(change(&mut feed).await, Change::Set(..)));
    let resumed = Instant::now();
    let asked = requests(&server);
    assert_eq!((asked.len(), asked[0].as_str()), (82, "list"));
    assert!(asked[1..].iter().all(|asked| asked == FROM_100), "{asked:?}");
    assert!(matches!(change(&mut feed).await, Change::All(_)));
    assert!(resumed.elapsed() > Duration::ZERO && resumed.elapsed() <= CHECK_SPREAD);

    // Its time was over, so that nothing is to be checked.
    let answers = [streamed(100, 60, End::Clean), whole(500, 0), watched(101, End::Never)];
    let (mut feed, server) = self::feed(answers, Recovery::Check);
    change(&mut feed).await;
    assert!(matches!(change(&mut feed).await, Change::Set(..)));
    assert!(tokio::time::timeout(2 * CHECK_SPREAD, change(&mut feed)).await.is_err());
    assert_eq!(requests(&server), ["list", FROM_100, FROM_100]);
}

#[tokio::test(start_paused = true)]
async fn forgotten_history_is_listed_at_once_and_nothing_is_left_to_check() {
    let answers = [
        streamed(100, 10, End::Broken),
        watched(101, End::Broken),
        whole(410, 0),
        streamed(102, 0, End::Never),
    ];
    let (mut feed, server) = feed(answers, Recovery::Check);
    change(&mut feed).await;
    assert!(matches!(change(&mut feed).await, Change::Set(..)));
    let cut = Instant::now();
    assert!(matches!(change(&mut feed).await, Change::All(_)));
    assert!(cut.elapsed() < Duration::from_secs(2), "two pauses");
    assert!(tokio::time::timeout(2 * CHECK_SPREAD, change(&mut feed)).await.is_err());
    assert_eq!(requests(&server), ["list", FROM_100, FROM_101, "list"]);
}

#[tokio::test(start_paused = true)]
async fn a_list_that_is_older_than_what_was_seen_before_it_is_of_another_history() {
    let answers = [
        whole(422, 0),
        whole(200, 100),
        watched(120, End::Broken),
        watched(121, End::Never),
        whole(200, 121),
        watched(130, End::Broken),
        watched(131, End::Never),
        // As after a restore.
        whole(200, 130),
        watched(140, End::Broken),
        watched(141, End::Never),
        // Raised since: by now nothing of what was seen counts.
        whole(200, 50),
        // One that has forgotten what comes after a list.
        whole(410, 0),
        whole(200, 49),
    ];
    let (mut feed, _) = feed(answers, Recovery::Check);
    let mut told = Vec::new();
    for _ in 0..9 {
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
