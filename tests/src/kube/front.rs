//! A plain HTTP way to a kube-apiserver, as the embedded one offers it, so that one test speaks to
//! both alike: who brings no token is the administrator. It can go away and fail on demand.

use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use http_body_util::BodyExt;
use hyper::body::Incoming;
use hyper::header::AUTHORIZATION;
use hyper::service::service_fn;
use hyper::{Request, Response};
use hyper_util::rt::TokioIo;
use kube::Client;
use kube::client::Body;
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::watch;
use tokio::task::JoinSet;

/// What a test says about the way to the server.
#[derive(Debug)]
pub struct Front {
    address: SocketAddr,
    failures: AtomicU64,
    paused: watch::Sender<bool>,
}

/// The clients behind a front: one that adds nothing to a request and one that is administrator.
#[derive(Clone)]
pub struct Behind {
    /// Sends a request as it is.
    pub bare: Client,
    /// Sends it with the administrator's token.
    pub admin: Client,
}

impl Front {
    /// Listens on the loopback, and serves until the runtime ends.
    ///
    /// # Panics
    /// Without a free port.
    pub async fn start(behind: Behind) -> Arc<Front> {
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("a free port");
        let address = listener.local_addr().expect("an address");
        let paused = watch::Sender::new(false);
        let front = Arc::new(Front { address, failures: AtomicU64::new(0), paused });
        tokio::spawn(accept(Arc::clone(&front), listener, behind));
        front
    }

    /// Where it listens.
    #[must_use]
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// Goes away: connections are dropped, new ones closed at once.
    pub fn pause(&self) {
        self.paused.send_replace(true);
    }

    /// Comes back.
    pub fn resume(&self) {
        self.paused.send_replace(false);
    }

    /// Answers the next `count` requests with 500.
    pub fn fail_next(&self, count: u64) {
        self.failures.store(count, Ordering::Relaxed);
    }
}

async fn accept(front: Arc<Front>, listener: TcpListener, behind: Behind) {
    let mut connections = JoinSet::new();
    let mut paused = front.paused.subscribe();
    loop {
        if *paused.borrow_and_update() {
            connections.shutdown().await;
        }
        let accepted = tokio::select! {
            _ = paused.changed() => continue,
            Some(_) = connections.join_next() => continue,
            accepted = listener.accept() => accepted,
        };
        if let (Ok((stream, _)), false) = (accepted, *paused.borrow()) {
            connections.spawn(carry(stream, Arc::clone(&front), behind.clone()));
        }
    }
}

async fn carry(stream: TcpStream, front: Arc<Front>, behind: Behind) {
    // A delayed last segment of a small answer costs 40 ms.
    let _ = stream.set_nodelay(true);
    let service = service_fn(move |request| answer(request, Arc::clone(&front), behind.clone()));
    let http = hyper::server::conn::http1::Builder::new();
    // A connection that breaks is what its client sees of a server that went away.
    let _ = http.serve_connection(TokioIo::new(stream), service).await;
}

async fn answer(
    request: Request<Incoming>,
    front: Arc<Front>,
    behind: Behind,
) -> Result<Response<Body>, Box<dyn std::error::Error + Send + Sync>> {
    let take = |left: u64| left.checked_sub(1);
    let fails = front.failures.fetch_update(Ordering::Relaxed, Ordering::Relaxed, take).is_ok();
    let (head, body) = request.into_parts();
    let body = body.collect().await?.to_bytes();
    if fails {
        return Ok(failure());
    }
    let client = match head.headers.contains_key(AUTHORIZATION) {
        true => &behind.bare,
        false => &behind.admin,
    };
    let mut answer = client.send(Request::from_parts(head, Body::from(body))).await?;
    // Of the connection behind, not of this one.
    for own in ["connection", "transfer-encoding"] {
        answer.headers_mut().remove(own);
    }
    Ok(answer)
}

fn failure() -> Response<Body> {
    let status = serde_json::json!({
        "kind": "Status", "apiVersion": "v1", "metadata": {}, "status": "Failure",
        "message": "a failure that was asked for", "reason": "InternalError", "code": 500,
    });
    let mut answer = Response::new(Body::from(status.to_string().into_bytes()));
    *answer.status_mut() = hyper::StatusCode::INTERNAL_SERVER_ERROR;
    let json = hyper::header::HeaderValue::from_static("application/json");
    answer.headers_mut().insert(hyper::header::CONTENT_TYPE, json);
    answer
}
