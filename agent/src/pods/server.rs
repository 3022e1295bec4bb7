//! Connections of the CNI plugin: each is received, checked, answered and closed on a thread of its
//! own, since the protocol is synchronous and passes a descriptor.

use std::os::unix::net::UnixStream;
use std::sync::Arc;
use std::time::{Duration, Instant};

use cairn_cni::Code;
use cairn_cni::protocol::{self, Failure, Request, Response};
use cairn_kernel::NetNs;
use rustix::net::RecvFlags;
use tokio::io::Interest;
use tokio::net::UnixListener;
use tokio::runtime::Handle;
use tokio::sync::Semaphore;

use super::calls::PodCalls;

/// Accepts connections for ever and passes their requests to `calls`.
pub(super) async fn serve(listener: UnixListener, calls: PodCalls<Arc<NetNs>>, own: (u64, u64)) {
    let places = Arc::new(Semaphore::new(CONNECTIONS_MAX));
    loop {
        // Connections above the limit wait in the listener's queue.
        let Ok(place) = Arc::clone(&places).acquire_owned().await else { return };
        // Of the peer only its user is asked. Its process number is 0 when it is none of the agent's PID namespace, as
        // in the DaemonSet's container, and rustix takes such an answer for an error.
        let accepted = listener.accept().await;
        let accepted = accepted.and_then(|(stream, _)| {
            let user = stream.peer_cred()?.uid();
            Ok((stream.into_std()?, user))
        });
        let (stream, user) = match accepted {
            Ok(accepted) => accepted,
            Err(error) => {
                tracing::warn!(%error, "cannot accept a CNI request");
                tokio::time::sleep(ACCEPT_RETRY).await;
                continue;
            }
        };
        let calls = calls.clone();
        tokio::task::spawn_blocking(move || {
            answer(&stream, user, &calls, own);
            drop(place);
        });
    }
}

fn answer(stream: &UnixStream, user: u32, calls: &PodCalls<Arc<NetNs>>, own: (u64, u64)) {
    let response = match receive(stream, user, own) {
        // The DEL that follows such an end may have been served already.
        Ok((Request::Add(_), _)) if has_hung_up(stream) => return,
        Ok((Request::Add(request), Some(netns))) => {
            let added = Handle::current().block_on(async {
                tokio::select! {
                    biased;
                    added = calls.add(request, netns) => Some(added),
                    () = hung_up(stream) => None,
                }
            });
            let Some(added) = added else { return };
            // The protocol's own time limits are for blocking sockets.
            let _ = stream.set_nonblocking(false);
            added
        }
        Ok((Request::Check(request), Some(netns))) => {
            Handle::current().block_on(calls.check(request, netns))
        }
        Ok((Request::Add(_) | Request::Check(_), None)) => {
            let msg = "the request came without the descriptor of a network namespace";
            Response::Failed(refuse(Code::InvalidNetNs, msg.into()))
        }
        Ok((Request::Del(request), _)) => Handle::current().block_on(calls.del(request)),
        Ok((Request::Gc(request), _)) => Handle::current().block_on(calls.gc(request)),
        Ok((Request::Status, _)) => Handle::current().block_on(calls.status()),
        Err(failure) => Response::Failed(failure),
    };
    if let Err(error) = protocol::send_response(stream, &response, Instant::now() + TRANSFER_MAX) {
        tracing::debug!(%error, "a CNI request's answer found nobody");
    }
}

/// Whether the plugin has closed the connection.
fn has_hung_up(stream: &UnixStream) -> bool {
    let flags = RecvFlags::PEEK | RecvFlags::DONTWAIT;
    matches!(rustix::net::recv(stream, &mut [0_u8], flags), Ok((0, _)))
}

/// Waits until the plugin has closed the connection, as when its runtime kills it.
async fn hung_up(stream: &UnixStream) {
    let watched = stream.set_nonblocking(true).and_then(|()| stream.try_clone());
    let Ok(watched) = watched.and_then(tokio::net::UnixStream::from_std) else {
        return std::future::pending().await;
    };
    loop {
        match watched.ready(Interest::READABLE).await {
            Ok(ready) if ready.is_read_closed() => return,
            Ok(_) => {}
            Err(_) => return std::future::pending().await,
        }
        match watched.try_read(&mut [0; 64]) {
            // Bytes that nobody asked for, or none after all.
            Ok(1..) => {}
            Err(error) if error.kind() == std::io::ErrorKind::WouldBlock => {}
            Ok(0) | Err(_) => return,
        }
    }
}

fn receive(
    stream: &UnixStream,
    user: u32,
    own: (u64, u64),
) -> Result<(Request, Option<Arc<NetNs>>), Failure> {
    if user != ROOT {
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
    let (Request::Add(_) | Request::Check(_), Some(descriptor)) = (&request, descriptor) else {
        return Ok((request, None));
    };
    let unusable = |reason: &dyn std::fmt::Display| {
        refuse(Code::InvalidNetNs, format!("CNI_NETNS is not usable: {reason}"))
    };
    let netns = NetNs::from_fd(descriptor).map_err(|error| unusable(&error))?;
    // An interface there would be one of the node's own.
    if netns.identity().map_err(|error| unusable(&error))? == own {
        return Err(unusable(&"it is the node's own network namespace, not a pod's"));
    }
    Ok((request, Some(Arc::new(netns))))
}

fn refuse(code: Code, msg: String) -> Failure {
    Failure { code, msg, details: None }
}

const ROOT: u32 = 0;
/// Requests that are served at once. Each has a thread while it lasts.
pub(super) const CONNECTIONS_MAX: usize = 128;
const TRANSFER_MAX: Duration = Duration::from_secs(5);
const ACCEPT_RETRY: Duration = Duration::from_millis(100);
