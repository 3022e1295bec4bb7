//! A node that leads beside the embedded API server in one process, so that time can stand still and
//! jump.

use std::collections::BTreeMap;
use std::convert::Infallible;
use std::sync::{Arc, Mutex};
use std::task::{Context, Poll};
use std::time::Duration;

use bytes::Bytes;
use cairn_agent::ipam::Clock;
use cairn_lab::apiserver::{ApiServer, ResponseBody};
use cairn_tests::kube::Server;
use futures::FutureExt;
use futures::future::BoxFuture;
use http_body_util::{BodyExt, Either, Full};
use hyper::{Method, Request, Response, StatusCode};
use kube::Client;
use kube::client::Body;
use tokio::time::Instant;

use super::{Cluster, HOUR, Node, Setup, Surroundings};

/// The embedded server without a socket between, so that time can stand still and jump.
#[derive(Clone)]
pub struct InProcess {
    server: ApiServer,
    record: Arc<Mutex<Record>>,
    start: Instant,
}

/// An answer of the server, or a failure without a word.
pub type Answer = Either<ResponseBody, Full<Bytes>>;

/// What was asked of a server.
#[derive(Default)]
pub struct Record {
    pub calls: usize,
    /// Calls about one block, one Node or one Lease of those that are gone, by the second.
    pub of_returns: BTreeMap<u64, usize>,
    /// A part of the path of DELETEs that fail.
    pub fails: Option<String>,
}

impl InProcess {
    pub fn new(cluster: &Cluster) -> InProcess {
        let Server::Embedded(server) = &cluster.server else {
            panic!("a real server's time is real")
        };
        InProcess { server: server.clone(), record: Arc::default(), start: Instant::now() }
    }

    pub fn record(&self) -> std::sync::MutexGuard<'_, Record> {
        self.record.lock().expect("the record")
    }

    /// Counts a call; true when it is one that fails.
    fn note(&self, method: &Method, path: &str) -> bool {
        let mut record = self.record();
        record.calls += 1;
        let is_of_returns = ["/ipblocks/10.", "/nodes/gone-", "/leases/cairn-node-gone-"];
        // Leases of which nothing else is left go by a bound of their own.
        let lease_goes = method == Method::DELETE && path.contains("/leases/");
        if !lease_goes && is_of_returns.iter().any(|part| path.contains(part)) {
            let second = self.start.elapsed().as_secs();
            *record.of_returns.entry(second).or_default() += 1;
        }
        method == Method::DELETE && record.fails.as_ref().is_some_and(|part| path.contains(part))
    }
}

impl tower_service::Service<Request<Body>> for InProcess {
    type Response = Response<Answer>;
    type Error = Infallible;
    type Future = BoxFuture<'static, Result<Response<Answer>, Infallible>>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), Infallible>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, request: Request<Body>) -> Self::Future {
        let fails = self.note(request.method(), request.uri().path());
        let server = self.server.clone();
        async move {
            if fails {
                let mut failure = Response::new(Either::Right(Full::new(Bytes::new())));
                *failure.status_mut() = StatusCode::INTERNAL_SERVER_ERROR;
                return Ok(failure);
            }
            let (parts, body) = request.into_parts();
            let body: Bytes = body.collect().await.expect("a whole body").to_bytes();
            Ok(server.call(Request::from_parts(parts, body)).await.map(Either::Left))
        }
        .boxed()
    }
}

/// A node on tokio's clock.
pub fn node_in_virtual_time(api: InProcess, offline: Duration) -> Node {
    let start = Instant::now();
    let client = Client::new(api, "default");
    let (name, boot_id, adopted) = ("n1", "boot1", Vec::new());
    let setup = Setup { name, boot_id, offline, idle_release: None, adopted, client };
    let clock = Some(Clock::new(move || HOUR + start.elapsed()));
    Node::set_up_in(setup, Surroundings { clock, ..Surroundings::default() })
}

/// Waits in virtual time; returns how long.
pub async fn takes(what: &str, longest: Duration, holds: impl Fn() -> bool) -> Duration {
    let start = Instant::now();
    while !holds() {
        assert!(start.elapsed() < longest, "{what}");
        tokio::time::sleep(Duration::from_millis(500)).await;
    }
    start.elapsed()
}
