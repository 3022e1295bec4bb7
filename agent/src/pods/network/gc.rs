//! GC: the end of interfaces of whose containers the runtime knows no more.
//!
//! They go as by a DEL. The runtime makes its list before it asks, so that an interface which came since, or
//! shortly before, may be missing in it; an agent that has just started knows of none how long it is there.

use std::collections::BTreeSet;
use std::time::Duration;

use cairn_cni::Code;
use cairn_cni::protocol::{GcRequest, Response};
use cairn_ipam::AttachmentId;
use cairn_kernel::pod::NetworkHash;
use futures::FutureExt;
use tokio::sync::oneshot;

use super::super::answers::{answer, failed};
use super::super::calls::{Reply, Turn, id_of};
use super::super::kernel::PodKernel;
use super::{Done, PodNetwork};

/// How the removal of an interface ended; no answer when the agent is stopping.
pub(super) type Collected = (AttachmentId, Option<Response>);

impl<K: PodKernel> PodNetwork<K> {
    /// Removes the network's interfaces that `request` does not name, but those that are new or busy.
    pub(super) fn gc(&mut self, request: &GcRequest, reply: Reply) {
        let network = NetworkHash::of(&request.network);
        let valid: BTreeSet<AttachmentId> = request
            .valid
            .iter()
            .map(|known| id_of(known.container_id.as_str(), &known.ifname))
            .collect();
        let now = self.now();
        let garbage: Vec<AttachmentId> = self
            .attachments
            .iter()
            .filter(|(id, held)| {
                held.network == Some(network)
                    && held.added_at + GRACE <= now
                    && !valid.contains(id)
                    && !self.busy.contains_key(id)
            })
            .map(|(id, _)| id.clone())
            .collect();
        let mut removals = Vec::new();
        for id in garbage {
            tracing::info!(container = id.container_id, network = request.network, "garbage");
            let (told, ended) = oneshot::channel();
            self.handle_turn(id.clone(), Turn::Del { reply: told });
            removals.push(ended.map(|response| (id, response.ok())));
        }
        let collecting = futures::future::join_all(removals);
        let done = collecting.map(|collected| Done::Collected { reply, collected });
        self.work.push(done.boxed());
    }
}

/// One answer for all.
pub(super) fn finish(reply: Reply, collected: Vec<Collected>) {
    let all = collected.len();
    let failures: Vec<String> = collected
        .into_iter()
        .filter_map(|(id, response)| match response {
            Some(Response::Failed(failure)) => Some(format!("{id}: {}", failure.msg)),
            Some(_) => None,
            None => Some(format!("{id}: the agent is stopping")),
        })
        .collect();
    if failures.is_empty() {
        return answer(reply, Response::Done);
    }
    let named = failures.iter().take(NAMED_MAX).map(String::as_str).collect::<Vec<_>>().join("; ");
    let more = match failures.len().saturating_sub(NAMED_MAX) {
        0 => String::new(),
        more => format!("; and {more} more"),
    };
    let msg = format!("{} of {all} interfaces stay: {named}{more}", failures.len());
    answer(reply, failed(Code::TryAgainLater, msg));
}

/// An interface that is there for less than this is none of which a runtime's list must tell.
const GRACE: Duration = Duration::from_secs(60);
/// The answer has a longest form.
const NAMED_MAX: usize = 100;
