//! The end of interfaces, many at the price of one.
//!
//! ```text
//!  DEL ──► next ──one batch at a time──► PodKernel::detach ──► finish_batch: addresses free, answers
//! ```
//!
//! The kernel waits some 30 ms for its readers when interfaces go, however many, and holds the lock meanwhile
//! that every other change of an interface needs. What arrives while a batch is under way is the next one. An
//! address is free only when its interface has gone.

use cairn_cni::Code;
use cairn_cni::protocol::Response;
use cairn_ipam::{AttachmentId, Rule};
use cairn_kernel::{Error, pod};
use futures::FutureExt;

use super::super::answers::{answer, failed};
use super::super::calls::Reply;
use super::super::kernel::PodKernel;
use super::{Done, PodNetwork, unrecorded};

/// Interfaces that are to go.
#[derive(Debug, Default)]
pub(super) struct Removals {
    /// Those that wait for the batch under way.
    next: Vec<Removal>,
    is_busy: bool,
}

/// An interface that is to go, whose turn it is.
#[derive(Debug)]
pub(super) struct Removal {
    id: AttachmentId,
    reply: Reply,
}

impl<K: PodKernel> PodNetwork<K> {
    /// Has the kernel remove the interface.
    pub(super) fn del(&mut self, id: AttachmentId, reply: Reply) {
        tracing::debug!(container = id.container_id, "DEL");
        if !self.options.rules.hold(Rule::FreeAfterInterface) {
            self.forget(&id, "DEL");
            self.publish();
        }
        self.removals.next.push(Removal { id, reply });
        self.remove_next();
    }

    fn remove_next(&mut self) {
        if self.removals.is_busy || self.removals.next.is_empty() {
            return;
        }
        self.removals.is_busy = true;
        let batch = std::mem::take(&mut self.removals.next);
        let ids = batch.iter().map(|removal| removal.id.clone()).collect();
        let detaching = self.kernel.detach(ids);
        self.work.push(detaching.map(|outcomes| Done::Detached { batch, outcomes }).boxed());
    }

    pub(super) fn finish_batch(&mut self, batch: Vec<Removal>, outcomes: Vec<Result<(), Error>>) {
        self.removals.is_busy = false;
        // Before the turns of those that follow begin: what they remove goes together.
        self.remove_next();
        let mut ended = Vec::new();
        for (Removal { id, reply }, outcome) in batch.into_iter().zip(outcomes) {
            let response = self.finish_removal(&id, outcome);
            answer(reply, response);
            ended.push(id);
        }
        ended.iter().for_each(|id| self.release_turn(id));
        self.retry_waiting();
        self.publish();
    }

    fn finish_removal(&mut self, id: &AttachmentId, outcome: Result<(), Error>) -> Response {
        match outcome {
            Ok(()) => {
                self.forget(id, "DEL");
                // Held under this name since a start that found no readable alias.
                let nameless = unrecorded(&pod::host_interface_name(&id.container_id, &id.ifname));
                self.forget(&nameless, "DEL");
                Response::Done
            }
            Err(error) => {
                tracing::warn!(container = id.container_id, %error, "pod not detached");
                let msg = format!("the pod's interface could not be removed: {error}");
                failed(Code::TryAgainLater, msg)
            }
        }
    }
}
