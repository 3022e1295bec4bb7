//! Connections of the CNI plugin: each is received, checked, answered and closed on a thread of its
//! own, since the protocol is synchronous and passes a descriptor.

use std::os::unix::net::UnixStream;
use std::sync::Arc;
use std::time::{Duration, Instant};

use cairn_cni::Code;
use cairn_cni::protocol::{self, AddRequest, DelRequest, Failure, Request, Response};
use cairn_kernel::NetNs;
use tokio::net::UnixListener;
use tokio::sync::{Semaphore, mpsc, oneshot};

/// A request that passed every check which needs no knowledge of the node's pods.
#[derive(Debug)]
pub(super) enum Call {
    Add { request: AddRequest, netns: NetNs, reply: Reply },
    Del { request: DelRequest, reply: Reply },
    Status { reply: Reply },
}

pub(super) type Reply = oneshot::Sender<Response>;

/// Accepts connections for ever and passes their requests to `calls`.
pub(super) async fn serve(listener: UnixListener, calls: mpsc::Sender<Call>, own: (u64, u64)) {
    let places = Arc::new(Semaphore::new(CONNECTIONS_MAX));
    loop {
        // Connections above the limit wait in the listener's queue.
        let Ok(place) = Arc::clone(&places).acquire_owned().await else { return };
        let accepted = listener.accept().await.and_then(|(stream, _)| stream.into_std());
        let stream = match accepted {
            Ok(stream) => stream,
            Err(error) => {
                tracing::warn!(%error, "cannot accept a CNI request");
                tokio::time::sleep(ACCEPT_RETRY).await;
                continue;
            }
        };
        let calls = calls.clone();
        tokio::task::spawn_blocking(move || {
            answer(&stream, &calls, own);
            drop(place);
        });
    }
}

fn answer(stream: &UnixStream, calls: &mpsc::Sender<Call>, own: (u64, u64)) {
    let response = receive(stream, own).and_then(|(make, replied)| {
        // The owner takes its time; the plugin's own patience ends the wait.
        if calls.blocking_send(make).is_err() {
            return Err(stopping());
        }
        replied.blocking_recv().map_err(|_| stopping())
    });
    let response = response.unwrap_or_else(Response::Failed);
    if let Err(error) = protocol::send_response(stream, &response, Instant::now() + TRANSFER_MAX) {
        tracing::debug!(%error, "a CNI request's answer found nobody");
    }
}

fn receive(
    stream: &UnixStream,
    own: (u64, u64),
) -> Result<(Call, oneshot::Receiver<Response>), Failure> {
    let refuse = |code, msg: String| Failure { code, msg, details: None };
    let peer = rustix::net::sockopt::socket_peercred(stream)
        .map_err(|errno| refuse(Code::Io, format!("cannot tell who asks: {errno}")))?;
    if !peer.uid.is_root() {
        return Err(refuse(Code::InvalidEnvironment, "only root may ask for pod addresses".into()));
    }
    stream
        .set_nonblocking(false)
        .map_err(|error| refuse(Code::Io, format!("cannot use the connection: {error}")))?;
    let (request, descriptor) = protocol::receive_request(stream, Instant::now() + TRANSFER_MAX)
        .map_err(|error| {
            tracing::debug!(%error, "a CNI request cannot be read");
            error.to_failure()
        })?;
    let (reply, replied) = oneshot::channel();
    let call = match request {
        Request::Add(request) => {
            let descriptor = descriptor.ok_or_else(|| {
                let msg = "the ADD request came without the descriptor of a network namespace";
                refuse(Code::InvalidNetNs, msg.into())
            })?;
            let unusable = |reason: &dyn std::fmt::Display| {
                refuse(Code::InvalidNetNs, format!("CNI_NETNS is not usable: {reason}"))
            };
            let netns = NetNs::from_fd(descriptor).map_err(|error| unusable(&error))?;
            // An interface there would be one of the node's own.
            if netns.identity().map_err(|error| unusable(&error))? == own {
                return Err(unusable(&"it is the node's own network namespace, not a pod's"));
            }
            Call::Add { request, netns, reply }
        }
        Request::Del(request) => Call::Del { request, reply },
        Request::Status => Call::Status { reply },
    };
    Ok((call, replied))
}

fn stopping() -> Failure {
    let msg = "the Cairn agent is stopping; the request may be repeated".into();
    Failure { code: Code::TryAgainLater, msg, details: None }
}

/// Requests that are served at once. Each has a thread while it lasts.
const CONNECTIONS_MAX: usize = 128;
const TRANSFER_MAX: Duration = Duration::from_secs(5);
const ACCEPT_RETRY: Duration = Duration::from_millis(100);
