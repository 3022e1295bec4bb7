//! What lies between an agent and the API: latency, answers that are lost, requests that are carried
//! out after their client has given up, servers that are away, and one that lags.

use std::convert::Infallible;
use std::sync::{Arc, Mutex, MutexGuard};
use std::task::{Context, Poll};
use std::time::Duration;

use bytes::Bytes;
use cairn_lab::apiserver::{ApiServer, ResponseBody};
use futures::future::BoxFuture;
use futures::{FutureExt, stream};
use http_body_util::{BodyExt, StreamBody};
use hyper::body::Frame;
use hyper::{Method, Request, Response};
use kube::client::Body;
use serde_json::{Value, json};
use tokio::sync::{Notify, oneshot};
use tokio::time::Instant;

use super::dice::Dice;
use super::life::Life;
use super::story::Story;

/// The way of one machine to the API, and what is wrong with it. Clones are the same.
#[derive(Clone, Debug, Default)]
pub struct Way {
    condition: Arc<Mutex<Condition>>,
    cuts: Arc<Notify>,
    /// Requests that wait on the way, and that some were let go.
    waiting: Arc<Mutex<Vec<Held>>>,
    let_go: Arc<Notify>,
    /// When a write of the machine's own Lease was carried out last, heard of or not.
    lease_written: Arc<Mutex<Option<Instant>>>,
}

/// What is wrong with a way.
#[derive(Clone, Debug, Default)]
pub struct Condition {
    /// No request passes, and watches end.
    pub cut: bool,
    /// Counts the cuts: a stream of before ends.
    cuts: u64,
    /// The server at its other end shows nothing newer than this revision, until then.
    pub lag: Option<(u64, Instant)>,
    /// One in so many requests meets a fault; 0: none does.
    pub fault_in: usize,
    /// Only these faults.
    pub only: Option<Fault>,
    /// Requests like these wait on the way until they are let go.
    held: Vec<Held>,
}

/// Requests by method and by what their path contains.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Held(pub Method, pub &'static str);

impl Held {
    fn is(&self, request: &Request<Bytes>) -> bool {
        *request.method() == self.0 && request.uri().path().contains(self.1)
    }
}

/// What may happen to a request.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fault {
    /// 500, and nothing was done.
    Refused,
    /// The connection breaks before the request is read.
    Broken,
    /// It is done, and the answer is lost: the connection breaks.
    AnswerLost,
    /// No answer, and it is done later.
    Late,
    /// The answer takes seconds.
    Slow,
}

const FAULTS: [Fault; 5] =
    [Fault::Refused, Fault::Broken, Fault::AnswerLost, Fault::Late, Fault::Slow];

impl Way {
    pub fn condition(&self) -> MutexGuard<'_, Condition> {
        self.condition.lock().expect("the way")
    }

    /// When the server carried out the machine's last write of its own Lease.
    pub fn lease_written(&self) -> Option<Instant> {
        *self.lease_written.lock().expect("the way")
    }

    /// Cuts the way, and every stream on it.
    pub fn cut(&self) {
        {
            let mut condition = self.condition();
            condition.cut = true;
            condition.cuts += 1;
        }
        self.cuts.notify_waiters();
    }

    /// Holds such requests on the way, whether their clients wait for the answer or give up.
    pub fn hold(&self, held: Held) {
        self.condition().held.push(held);
    }

    /// Lets held requests go on.
    pub fn let_go(&self, held: &Held) {
        self.condition().held.retain(|other| other != held);
        self.let_go.notify_waiters();
    }

    /// Whether such a request waits.
    pub fn is_held(&self, held: &Held) -> bool {
        self.waiting.lock().expect("the way").contains(held)
    }

    /// Waits for as long as such requests are held.
    async fn pass(&self, held: &Held) {
        self.waiting.lock().expect("the way").push(held.clone());
        loop {
            let let_go = self.let_go.notified();
            tokio::pin!(let_go);
            let_go.as_mut().enable();
            if !self.condition().held.contains(held) {
                break;
            }
            let_go.await;
        }
        let mut waiting = self.waiting.lock().expect("the way");
        if let Some(first) = waiting.iter().position(|other| other == held) {
            waiting.remove(first);
        }
    }

    /// Makes it whole.
    pub fn mend(&self) {
        let mut condition = self.condition();
        *condition = Condition { cuts: condition.cuts, ..Condition::default() };
        self.let_go.notify_waiters();
    }
}

/// The client side of one process: a service for [`kube::Client::new`].
#[derive(Clone)]
pub struct Link {
    pub server: ApiServer,
    pub way: Way,
    pub life: Life,
    pub dice: Dice,
    pub story: Story,
    pub name: String,
    /// The Node of its machine.
    pub node: String,
}

/// A connection that broke.
#[derive(Debug, thiserror::Error)]
#[error("{0}")]
pub struct Broken(&'static str);

impl tower_service::Service<Request<Body>> for Link {
    type Response = Response<ResponseBody>;
    type Error = Broken;
    type Future = BoxFuture<'static, Result<Response<ResponseBody>, Broken>>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), Broken>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, request: Request<Body>) -> Self::Future {
        self.clone().exchange(request).boxed()
    }
}

impl Link {
    async fn exchange(self, request: Request<Body>) -> Result<Response<ResponseBody>, Broken> {
        let (parts, body) = request.into_parts();
        let body = body.collect().await.map_err(|_| Broken("the body"))?.to_bytes();
        let what = format!("{} {}", parts.method, parts.uri);
        let request = Request::from_parts(parts, body);
        let writes = request.method() != Method::GET;
        let watches = request.uri().query().is_some_and(|query| query.contains("watch=true"));
        self.life.step("request").await;
        if writes {
            self.story.say(format_args!("{}: {what}", self.name));
        }
        let condition = self.way.condition().clone();
        if condition.cut {
            // Refused at once, or a packet that nobody answers.
            let wait = if self.dice.one_in(2) { self.dice.millis(1, 5) } else { CONNECT_MAX };
            tokio::time::sleep(wait).await;
            return Err(Broken("no way to the API server"));
        }
        tokio::time::sleep(self.dice.millis(1, 12)).await;
        let faulty = condition.fault_in > 0 && self.dice.one_in(condition.fault_in);
        let fault = faulty.then(|| condition.only.unwrap_or_else(|| self.dice.pick(&FAULTS)));
        if let Some(fault) = fault {
            self.story.count(format!("{fault:?}"));
        }
        if writes && let Some(fault) = fault {
            self.story.say(format_args!("{}: {fault:?}: {what}", self.name));
        }
        match fault {
            Some(Fault::Refused) => return Ok(internal_error()),
            Some(Fault::Broken) => return Err(Broken("the connection broke")),
            Some(Fault::AnswerLost) if !watches => {
                self.carry_out(request).await;
                return Err(Broken("the connection broke"));
            }
            Some(Fault::Late) if !watches => {
                let after = self.dice.millis(200, LATE_MAX_MS);
                let link = self.clone();
                tokio::spawn(async move {
                    tokio::time::sleep(after).await;
                    let code = link.carry_out(request).await.status();
                    if writes {
                        link.story.say(format_args!("{}: only now: {what}: {code}", link.name));
                    }
                });
                return std::future::pending().await;
            }
            Some(Fault::Slow) => tokio::time::sleep(self.dice.millis(500, 9_000)).await,
            _ => {}
        }
        let (request, single) = match condition.lag.filter(|(_, until)| *until > Instant::now()) {
            Some((revision, _)) if !writes => older(request, revision),
            _ => (request, false),
        };
        let held = condition.held.iter().find(|held| held.is(&request)).cloned();
        let mut response = match held {
            Some(held) => self.carry_out_later(request, held).await?,
            None => self.carry_out(request).await,
        };
        if writes {
            self.story.say(format_args!("{}: {}: {what}", self.name, response.status().as_u16()));
        }
        if single {
            response = first_of(response).await;
        }
        if watches {
            let cuts = condition.cuts;
            return Ok(response.map(|body| self.stream(body, cuts)));
        }
        tokio::time::sleep(self.dice.millis(1, 8)).await;
        self.life.step("answer").await;
        Ok(response)
    }

    /// The server does what it is asked for once such requests are let go, even if the client has
    /// given up by then.
    async fn carry_out_later(
        &self,
        request: Request<Bytes>,
        held: Held,
    ) -> Result<Response<ResponseBody>, Broken> {
        let (answer, answered) = oneshot::channel();
        let link = self.clone();
        let what = format!("{} {}", request.method(), request.uri());
        self.story.say(format_args!("{}: held on the way: {what}", self.name));
        tokio::spawn(async move {
            link.way.pass(&held).await;
            let response = link.carry_out(request).await;
            let code = response.status().as_u16();
            link.story.say(format_args!("{}: let go: {code}: {what}", link.name));
            // Nobody may wait any more.
            drop(answer.send(response));
        });
        answered.await.map_err(|_| Broken("the connection broke"))
    }

    /// The server does what it is asked for.
    async fn carry_out(&self, request: Request<Bytes>) -> Response<ResponseBody> {
        let lease = format!("cairn-node-{}", self.node);
        let path = request.uri().path();
        let names = |body: &Bytes| {
            let object: Value = serde_json::from_slice(body).unwrap_or_default();
            object.pointer("/metadata/name").and_then(Value::as_str) == Some(&lease)
        };
        let of_lease = match *request.method() {
            Method::PUT => path.ends_with(&lease),
            Method::POST => path.ends_with("/leases") && names(request.body()),
            _ => false,
        };
        let response = self.server.call(request).await;
        if of_lease && response.status().is_success() {
            *self.way.lease_written.lock().expect("the way") = Some(Instant::now());
        }
        response
    }

    /// A watch as it passes this way.
    fn stream(self, body: ResponseBody, cuts: u64) -> ResponseBody {
        let frames = stream::unfold((self, body), move |(link, mut body)| async move {
            let frame = tokio::select! {
                biased;
                frame = body.frame() => frame.and_then(Result::ok),
                () = link.silence(cuts) => None,
            };
            tokio::time::sleep(DELIVERY).await;
            while let Some((_, until)) = link.lag() {
                tokio::time::sleep_until(until).await;
            }
            if link.life.is_over() {
                std::future::pending::<()>().await;
            }
            let frame = frame.filter(|_| link.way.condition().cuts == cuts)?;
            let data = frame.into_data().ok()?;
            Some((Ok::<_, Infallible>(Frame::data(data)), (link, body)))
        });
        StreamBody::new(frames).boxed_unsync()
    }

    fn lag(&self) -> Option<(u64, Instant)> {
        self.way.condition().lag.filter(|(_, until)| *until > Instant::now())
    }

    /// Returns when a stream that began at `cuts` is cut.
    async fn silence(&self, cuts: u64) {
        let cut = self.way.cuts.notified();
        tokio::pin!(cut);
        cut.as_mut().enable();
        if self.way.condition().cuts == cuts {
            cut.await;
        }
        tokio::time::sleep(NOTICED).await;
    }
}

/// The request as a server answers it that has seen nothing after `revision`, if it leaves that
/// open; and whether it became one for a list.
fn older(request: Request<Bytes>, revision: u64) -> (Request<Bytes>, bool) {
    let uri = request.uri().clone();
    let query = uri.query().unwrap_or_default();
    let has = |name: &str| query.split('&').any(|pair| pair == name);
    if !has("resourceVersion=0") || has("watch=true") {
        return (request, false);
    }
    let kept = query.split('&').filter(|pair| !pair.starts_with("resourceVersion"));
    let mut pairs: Vec<String> = kept.filter(|pair| !pair.is_empty()).map(str::to_owned).collect();
    pairs.push(format!("resourceVersion={revision}&resourceVersionMatch=Exact"));
    let mut path = uri.path().trim_end_matches('/').to_owned();
    let segments = path.split('/').filter(|part| !part.is_empty()).count();
    let namespaced = path.contains("/namespaces/");
    let core = path.starts_with("/api/");
    let named = segments > 4 - usize::from(core) + 2 * usize::from(namespaced);
    if named && let Some((collection, name)) = path.clone().rsplit_once('/') {
        pairs.push(format!("fieldSelector=metadata.name%3D{name}"));
        path = collection.to_owned();
    }
    let text = format!("{path}?{}", pairs.join("&"));
    let (mut parts, body) = request.into_parts();
    parts.uri = text.parse().expect("a URI");
    (Request::from_parts(parts, body), named)
}

/// The one object of a list, as a GET of it answers.
async fn first_of(response: Response<ResponseBody>) -> Response<ResponseBody> {
    let bytes = response.into_body().collect().await.expect("a body").to_bytes();
    let list: Value = serde_json::from_slice(&bytes).unwrap_or_default();
    match list.pointer("/items/0") {
        Some(object) => {
            let mut object = object.clone();
            object["apiVersion"] = list["apiVersion"].clone();
            let kind = list["kind"].as_str().unwrap_or_default();
            object["kind"] = json!(kind.trim_end_matches("List"));
            answer(200, &object)
        }
        None => answer(404, &status(404, "NotFound", "not found")),
    }
}

fn internal_error() -> Response<ResponseBody> {
    answer(500, &status(500, "InternalError", "a failure that was asked for"))
}

fn status(code: u16, reason: &str, message: &str) -> Value {
    json!({
        "kind": "Status", "apiVersion": "v1", "metadata": {}, "status": "Failure",
        "message": message, "reason": reason, "code": code,
    })
}

fn answer(code: u16, document: &Value) -> Response<ResponseBody> {
    let body = http_body_util::Full::new(Bytes::from(document.to_string())).boxed_unsync();
    let mut response = Response::new(body);
    *response.status_mut() = hyper::StatusCode::from_u16(code).expect("a code");
    let json = hyper::header::HeaderValue::from_static("application/json");
    response.headers_mut().insert(hyper::header::CONTENT_TYPE, json);
    response
}

/// How long a connection attempt takes that nobody answers.
const CONNECT_MAX: Duration = Duration::from_secs(12);
/// The latest that a request is carried out whose client has given up, in milliseconds.
const LATE_MAX_MS: u64 = 45_000;
/// What an event of a watch takes.
const DELIVERY: Duration = Duration::from_millis(3);
/// When a dead connection is noticed.
const NOTICED: Duration = Duration::from_secs(2);

#[test]
fn a_server_that_lags_shows_what_was_there() {
    let asked = |uri: &str| {
        let request = Request::get(uri).body(Bytes::new()).expect("a request");
        let (request, single) = older(request, 7);
        (request.uri().to_string(), single)
    };
    let exact = "resourceVersion=7&resourceVersionMatch=Exact";
    for (all, one) in [
        ("/apis/cairn.network/v1alpha1/ipblocks", "10.0.0.0-26"),
        ("/apis/coordination.k8s.io/v1/namespaces/a/leases", "b"),
        ("/api/v1/nodes", "n1"),
        ("/api/v1/namespaces/a/pods", "b"),
    ] {
        let list = asked(&format!("{all}?resourceVersion=0&limit=9"));
        assert_eq!(list, (format!("{all}?limit=9&{exact}"), false));
        let get = asked(&format!("{all}/{one}?resourceVersion=0"));
        let named = format!("{all}?{exact}&fieldSelector=metadata.name%3D{one}");
        assert_eq!(get, (named, true));
        let consistent = format!("{all}/{one}");
        assert_eq!(asked(&consistent), (consistent, false));
    }
}
