//! Requests to the pod network, from the socket or from within the process.

use std::sync::Arc;

use cairn_cni::Code;
use cairn_cni::protocol::{AddRequest, CheckRequest, DelRequest, GcRequest, Response};
use cairn_ipam::AttachmentId;
use tokio::sync::{Notify, mpsc, oneshot};

use super::answers::failed;

/// A request that passed every check which needs no knowledge of the node's pods. `N` is a pod's
/// network namespace.
#[derive(Debug)]
#[allow(clippy::large_enum_variant, reason = "nearly every call is the large one")]
pub(super) enum Call<N> {
    /// About one interface of a container: one at a time.
    Interface {
        id: AttachmentId,
        turn: Turn<N>,
    },
    Gc {
        request: GcRequest,
        reply: Reply,
    },
    Status {
        reply: Reply,
    },
}

/// What is to be done about an interface.
#[derive(Debug)]
pub(super) enum Turn<N> {
    Add { request: AddRequest, netns: N, reply: Reply },
    Del { reply: Reply },
    Check { request: CheckRequest, netns: N, reply: Reply },
}

impl<N> Turn<N> {
    /// The way back to who asked.
    pub(super) fn into_reply(self) -> Reply {
        match self {
            Turn::Add { reply, .. } | Turn::Del { reply } | Turn::Check { reply, .. } => reply,
        }
    }
}

/// The interface `ifname` of a container.
pub(super) fn id_of(container_id: &str, ifname: impl ToString) -> AttachmentId {
    AttachmentId { container_id: container_id.into(), ifname: ifname.to_string() }
}

pub(super) type Reply = oneshot::Sender<Response>;

/// Asks a running pod network as the CNI plugin does. Clones ask the same; when the last is dropped
/// the network ends.
#[derive(Clone, Debug)]
pub struct PodCalls<N> {
    sender: mpsc::Sender<Call<N>>,
    abandoned: Arc<Notify>,
}

impl<N> PodCalls<N> {
    /// The other end, and what is notified when somebody no longer waits for the answer.
    pub(super) fn channel() -> (PodCalls<N>, mpsc::Receiver<Call<N>>, Arc<Notify>) {
        let (sender, receiver) = mpsc::channel(CALLS_MAX);
        let abandoned = Arc::new(Notify::new());
        (PodCalls { sender, abandoned: Arc::clone(&abandoned) }, receiver, abandoned)
    }

    /// Gives the container an interface in `netns`. One that still waits for an address when the future
    /// is dropped gets none.
    pub async fn add(&self, request: AddRequest, netns: N) -> Response {
        let id = id_of(request.container_id.as_str(), &request.ifname);
        self.ask(|reply| Call::Interface { id, turn: Turn::Add { request, netns, reply } }).await
    }

    /// Takes the container's interface away and frees its addresses.
    pub async fn del(&self, request: DelRequest) -> Response {
        let id = id_of(request.container_id.as_str(), &request.ifname);
        self.ask(|reply| Call::Interface { id, turn: Turn::Del { reply } }).await
    }

    /// Compares the container's interface, whose namespace is `netns`, with what was answered.
    pub async fn check(&self, request: CheckRequest, netns: N) -> Response {
        let id = id_of(request.container_id.as_str(), &request.ifname);
        self.ask(|reply| Call::Interface { id, turn: Turn::Check { request, netns, reply } }).await
    }

    /// Takes away interfaces of a network whose containers are no more.
    pub async fn gc(&self, request: GcRequest) -> Response {
        self.ask(|reply| Call::Gc { request, reply }).await
    }

    /// Whether an ADD could be served now.
    pub async fn status(&self) -> Response {
        self.ask(|reply| Call::Status { reply }).await
    }

    async fn ask(&self, call: impl FnOnce(Reply) -> Call<N>) -> Response {
        // Dropped after `replied`, so that the owner finds the way back closed.
        let mut asker = Asker { leaves: Some(&self.abandoned) };
        let (reply, replied) = oneshot::channel();
        // The owner takes its time; the plugin's own patience ends the wait.
        let response = match self.sender.send(call(reply)).await {
            Ok(()) => replied.await.unwrap_or_else(|_| stopping()),
            Err(_) => stopping(),
        };
        asker.leaves = None;
        response
    }
}

/// Tells the owner if it is dropped without an answer.
struct Asker<'a> {
    leaves: Option<&'a Notify>,
}

impl Drop for Asker<'_> {
    fn drop(&mut self) {
        if let Some(owner) = self.leaves {
            owner.notify_one();
        }
    }
}

fn stopping() -> Response {
    let msg = "the Cairn agent is stopping; the request may be repeated".into();
    failed(Code::TryAgainLater, msg)
}

/// Requests that wait for the owner.
const CALLS_MAX: usize = 64;
