//! ADDs that are done and not answered yet, since BGP peers have still to hear of their blocks.
//!
//! ```text
//!  finish_add ──► Untold ──┬─ no block is held back any more, or its time is over ─► the answer
//!                          ├─ DEL ─────► refused, and the DEL follows
//!                          └─ hung up ─► the interface goes again
//! ```
//!
//! The interface is in the kernel and holds its addresses, as that of a pod that was told: only the pod does not
//! begin. A block has one deadline for all its pods, so that a peer which never acknowledges costs that time once
//! a block and not with every pod.

use std::collections::{BTreeMap, VecDeque};
use std::net::IpAddr;
use std::time::Duration;

use cairn_cni::Code;
use cairn_cni::protocol::Response;
use cairn_ipam::AttachmentId;
use ipnet::IpNet;

use super::super::answers::{AddRefusal, answer, failed};
use super::super::calls::Reply;
use super::super::kernel::PodKernel;
use super::PodNetwork;
use super::waiting::WAITING_MAX;

/// ADDs that are done and not answered.
#[derive(Debug, Default)]
pub(super) struct Untold {
    answers: VecDeque<Answer>,
    /// When each block that is held back stops to be waited for; of those that a pod has waited for.
    deadlines: BTreeMap<IpNet, Duration>,
}

/// The answer to an ADD whose turn lasts on.
#[derive(Debug)]
pub(super) struct Answer {
    pub(super) id: AttachmentId,
    pub(super) reply: Reply,
    pub(super) response: Response,
    /// The interface was not there before.
    pub(super) is_new: bool,
    /// When it is given at the latest, as the plugin's patience has begun with the ADD.
    pub(super) until: Duration,
    /// Whose announcement it waits for.
    pub(super) blocks: Vec<IpNet>,
}

impl Untold {
    /// When the first of them is answered at the latest.
    pub(super) fn next_deadline(&self) -> Option<Duration> {
        self.answers.iter().map(|answer| self.deadline(answer)).min()
    }

    /// A block without one is held back no more.
    fn deadline(&self, answer: &Answer) -> Duration {
        let deadlines = answer.blocks.iter().filter_map(|block| self.deadlines.get(block));
        deadlines.max().copied().unwrap_or_default().min(answer.until)
    }

    /// Takes those out for which `is` holds.
    fn take(&mut self, is: impl Fn(&Untold, &Answer) -> bool) -> Vec<Answer> {
        let (taken, left): (Vec<_>, Vec<_>) =
            std::mem::take(&mut self.answers).into_iter().partition(|answer| is(self, answer));
        self.answers = left.into();
        taken
    }
}

impl<K: PodKernel> PodNetwork<K> {
    /// Answers an ADD; one that has succeeded, with these addresses, when the peers know their blocks. With
    /// too many that wait, it is answered at once: it has all it needs.
    pub(super) fn tell(&mut self, answer: Answer, addresses: &[IpAddr]) {
        let now = self.now();
        let held_back = self.supply.held_back.iter().filter(|block| {
            let is_over = self.untold.deadlines.get(*block).is_some_and(|until| *until <= now);
            !is_over && addresses.iter().any(|address| block.contains(address))
        });
        let blocks: Vec<IpNet> = held_back.copied().collect();
        let is_awaited = matches!(answer.response, Response::Added(_))
            && !answer.reply.is_closed()
            && !self.is_to_end(&answer.id);
        if blocks.is_empty() || !is_awaited || self.waiting_count() >= WAITING_MAX {
            return self.tell_now(answer);
        }
        tracing::debug!(container = answer.id.container_id, ?blocks, "announcements are awaited");
        let until = now + self.options.announcement_wait;
        for block in &blocks {
            self.untold.deadlines.entry(*block).or_insert(until);
        }
        self.untold.answers.push_back(Answer { blocks, ..answer });
    }

    fn tell_now(&mut self, Answer { id, reply, response, blocks, .. }: Answer) {
        answer(reply, response);
        self.release_turn(&id);
        // A listing passes over what is under way: an interface that went meanwhile still holds its addresses.
        if !blocks.is_empty() {
            self.request_listing();
        }
    }

    /// ADDs that wait, for whatever it is.
    pub(super) fn waiting_count(&self) -> usize {
        self.waiting.len() + self.untold.answers.len()
    }

    /// Answers those that need not wait any more, by the blocks that are held back now.
    pub(super) fn tell_ready(&mut self) {
        let now = self.now();
        let held_back = &self.supply.held_back;
        self.untold.deadlines.retain(|block, _| held_back.contains(block));
        let ready = self.untold.take(|untold, answer| untold.deadline(answer) <= now);
        let mut late: Vec<&IpNet> = ready.iter().flat_map(|answer| &answer.blocks).collect();
        late.retain(|block| held_back.contains(*block));
        late.sort_unstable();
        late.dedup();
        for block in late {
            tracing::warn!(
                %block,
                waited = ?self.options.announcement_wait,
                "pods start although not every BGP peer has acknowledged their block; `cairn status` names the \
                 peers"
            );
        }
        ready.into_iter().for_each(|answer| self.tell_now(answer));
    }

    /// Ends the wait of an ADD, since a DEL for its interface has come; false if there is none.
    pub(super) fn end_untold(&mut self, id: &AttachmentId) -> bool {
        let ended = self.untold.take(|_, answer| answer.id == *id);
        let found = !ended.is_empty();
        for answer in ended {
            let response = failed(Code::TryAgainLater, AddRefusal::Abandoned.to_string());
            self.tell_now(Answer { response, ..answer });
        }
        found
    }

    /// Takes back what was made for those whose plugin has hung up.
    pub(super) fn end_abandoned_untold(&mut self) {
        for gone in self.untold.take(|_, answer| answer.reply.is_closed()) {
            match gone.is_new {
                true => self.del(gone.id, gone.reply),
                false => self.release_turn(&gone.id),
            }
        }
    }
}
