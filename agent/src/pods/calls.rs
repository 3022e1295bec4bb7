//! Requests to the pod network, from the socket or from within the process.

use cairn_cni::Code;
use cairn_cni::protocol::{AddRequest, DelRequest, Response};
use tokio::sync::{mpsc, oneshot};

use super::answers::failed;

/// A request that passed every check which needs no knowledge of the node's pods. `N` is a pod's
/// network namespace.
#[derive(Debug)]
pub(super) enum Call<N> {
    Add { request: AddRequest, netns: N, reply: Reply },
    Del { request: DelRequest, reply: Reply },
    Status { reply: Reply },
}

pub(super) type Reply = oneshot::Sender<Response>;

/// Asks a running pod network as the CNI plugin does. Clones ask the same; when the last is dropped
/// the network ends.
#[derive(Clone, Debug)]
pub struct PodCalls<N> {
    sender: mpsc::Sender<Call<N>>,
}

impl<N> PodCalls<N> {
    pub(super) fn channel() -> (PodCalls<N>, mpsc::Receiver<Call<N>>) {
        let (sender, receiver) = mpsc::channel(CALLS_MAX);
        (PodCalls { sender }, receiver)
    }

    /// Gives the container an interface in `netns`.
    pub async fn add(&self, request: AddRequest, netns: N) -> Response {
        self.ask(|reply| Call::Add { request, netns, reply }).await
    }

    /// Takes the container's interface away and frees its addresses.
    pub async fn del(&self, request: DelRequest) -> Response {
        self.ask(|reply| Call::Del { request, reply }).await
    }

    /// Whether an ADD could be served now.
    pub async fn status(&self) -> Response {
        self.ask(|reply| Call::Status { reply }).await
    }

    async fn ask(&self, call: impl FnOnce(Reply) -> Call<N>) -> Response {
        let (reply, replied) = oneshot::channel();
        // The owner takes its time; the plugin's own patience ends the wait.
        match self.sender.send(call(reply)).await {
            Ok(()) => replied.await.unwrap_or_else(|_| stopping()),
            Err(_) => stopping(),
        }
    }
}

fn stopping() -> Response {
    let msg = "the Cairn agent is stopping; the request may be repeated".into();
    failed(Code::TryAgainLater, msg)
}

/// Requests that wait for the owner.
const CALLS_MAX: usize = 64;
