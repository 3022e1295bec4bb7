//! From the request to the addresses: what a pod asks for, and what happens while it cannot be given.

use std::collections::{BTreeMap, VecDeque};
use std::net::IpAddr;
use std::time::Duration;

use cairn_api::{ANNOTATION_IPPOOLS, ANNOTATION_IPS};
use cairn_cni::Code;
use cairn_ipam::choice::{self, Home, Wishes};
use cairn_ipam::{AddressRequest, AttachmentId, Demand};
use futures::FutureExt;
use tokio::sync::oneshot;

use super::super::answers::{AddRefusal, answer, failed};
use super::super::calls::Turn;
use super::super::kernel::PodKernel;
use super::super::server::CONNECTIONS_MAX;
use super::{Addition, Asked, Done, PodNetwork};

impl<K: PodKernel> PodNetwork<K> {
    /// The addresses of the interface: those that it has, else new ones.
    pub(super) fn addresses(
        &mut self,
        addition: &Addition<K::Netns>,
    ) -> Result<Vec<IpAddr>, AddRefusal> {
        match self.book.held(&addition.id) {
            [] => {}
            held => return Ok(held.to_vec()),
        }
        if self.supply.pools.is_empty() {
            return Err(AddRefusal::Poolless);
        }
        let requests = self.requests(addition)?;
        let assigned = self.book.assign(&addition.id, &requests, self.now());
        assigned.map_err(|error| match error.demand().and_then(|lack| self.denied(&lack)) {
            Some(reason) => AddRefusal::Denied { reason, lack: error },
            None => AddRefusal::Unassigned(error),
        })
    }

    /// What the pod asks for.
    fn requests(&self, addition: &Addition<K::Netns>) -> Result<Vec<AddressRequest>, AddRefusal> {
        let pod = &addition.request.pod;
        let unlabelled = BTreeMap::new();
        let home = match pod.namespace() {
            None => Home::None,
            Some(name) => match self.supply.namespaces.get(name) {
                Some(known) => {
                    Home::Namespace { name, labels: &known.labels, pools: known.pools.as_deref() }
                }
                // A cluster that shows no namespace at all has none that could choose a pool.
                None if self.supply.namespaces.is_empty() && !self.chooses_by_namespace() => {
                    Home::Namespace { name, labels: &unlabelled, pools: None }
                }
                None => Home::Unknown(name),
            },
        };
        let annotation = |name| {
            let annotations = addition.request.annotations.as_ref()?;
            annotations.get(name).map(String::as_str)
        };
        let wishes = Wishes {
            pools: annotation(ANNOTATION_IPPOOLS),
            addresses: annotation(ANNOTATION_IPS),
            asked: &addition.request.ips,
        };
        let supply = &self.supply;
        Ok(choice::choose(&supply.pools, &supply.families, home, wishes)?)
    }

    fn chooses_by_namespace(&self) -> bool {
        self.supply.pools.iter().any(|pool| pool.namespaces.is_some())
    }

    /// Why the owner of the blocks cannot meet the demand.
    fn denied(&self, demand: &Demand) -> Option<String> {
        self.supply.refusals.get(demand).cloned()
    }

    /// Whether the pod may have annotations of which nobody has told. What is no pod has none.
    pub(super) fn must_ask(&self, addition: &Addition<K::Netns>) -> bool {
        addition.request.annotations.is_none()
            && addition.request.pod.name().is_some()
            && self.book.held(&addition.id).is_empty()
    }

    /// Asks for the annotations of the pod.
    pub(super) fn ask(&mut self, addition: Addition<K::Netns>) {
        if self.is_to_end(&addition.id) {
            return self.refuse(addition, &AddRefusal::Abandoned);
        }
        let asked = self.annotations.annotations(&addition.request.pod);
        let (end, ended) = oneshot::channel();
        self.asking.insert(addition.id.clone(), end);
        let asking = async move {
            let mut addition = addition;
            let outcome = tokio::select! {
                biased;
                outcome = asked => Some(outcome),
                // Whoever asked has hung up, or the pod is to go.
                () = addition.reply.closed() => None,
                _ = ended => None,
            };
            Done::Annotated { addition, outcome }
        };
        self.work.push(asking.boxed());
    }

    pub(super) fn finish_asking(&mut self, mut addition: Addition<K::Netns>, outcome: Asked) {
        self.asking.remove(&addition.id);
        match outcome {
            Some(Ok(annotations)) => {
                addition.request.annotations = Some(annotations);
                self.add(addition);
            }
            Some(Err(reason)) => self.refuse(addition, &AddRefusal::Unannotated(reason)),
            None => self.refuse(addition, &AddRefusal::Abandoned),
        }
    }

    /// Whether a DEL waits for the end of what is done to the interface.
    pub(super) fn is_to_end(&self, id: &AttachmentId) -> bool {
        let queue = self.busy.get(id);
        queue.is_some_and(|queue| queue.iter().any(|turn| matches!(turn, Turn::Del { .. })))
    }

    /// Ends an ADD that only waits, since a DEL for its interface has come: neither waits for the other.
    pub(super) fn end_waiting(&mut self, id: &AttachmentId) {
        loop {
            // This one is answered when it is looked at next, and the DEL follows.
            drop(self.asking.remove(id));
            let place = self.waiting.iter().position(|addition| addition.id == *id);
            // Another ADD may have its turn then, and wait too.
            match place.and_then(|place| self.waiting.remove(place)) {
                Some(addition) => self.refuse(addition, &AddRefusal::Abandoned),
                None if self.end_untold(id) => {}
                None => return,
            }
        }
    }

    /// Ends the ADDs that wait and whose plugin has hung up, as one does that its runtime kills.
    pub(super) fn end_abandoned(&mut self) {
        for addition in self.take_waiting(|addition| addition.reply.is_closed()) {
            self.refuse(addition, &AddRefusal::Abandoned);
        }
        self.end_abandoned_untold();
    }

    /// Keeps an ADD that cannot be served now until something changes, within limits.
    pub(super) fn wait(&mut self, addition: Addition<K::Netns>, refusal: &AddRefusal) {
        if let Some(demand) = refusal.demand()
            && self.exhausted.insert(demand)
        {
            self.publish_now();
        }
        if self.is_to_end(&addition.id) {
            return self.refuse(addition, &AddRefusal::Abandoned);
        }
        let is_patient = self.now() < addition.until;
        if is_patient && refusal.may_end_soon() && self.waiting_count() < WAITING_MAX {
            return self.waiting.push_back(addition);
        }
        self.refuse(addition, refusal);
    }

    pub(super) fn refuse(&mut self, addition: Addition<K::Netns>, refusal: &AddRefusal) {
        let Addition { id, request, netns, reply, .. } = addition;
        let reason = refusal.to_string();
        tracing::warn!(pod = %request.pod, container = id.container_id, reason, "pod not attached");
        drop(netns);
        let code = match refusal.needs_a_person() {
            true => Code::InvalidConfig,
            false => Code::TryAgainLater,
        };
        answer(reply, failed(code, reason));
        self.release_turn(&id);
    }

    /// Tries every waiting ADD again, after something changed.
    pub(super) fn retry_waiting(&mut self) {
        for addition in std::mem::take(&mut self.waiting) {
            self.add(addition);
        }
    }

    /// Tries those whose patience has ended a last time.
    pub(super) fn expire_waiting(&mut self, now: Duration) {
        for addition in self.take_waiting(|addition| addition.until <= now) {
            self.add(addition);
        }
    }

    /// Takes those ADDs out that wait and for which `goes` holds.
    fn take_waiting(
        &mut self,
        goes: impl Fn(&Addition<K::Netns>) -> bool,
    ) -> VecDeque<Addition<K::Netns>> {
        let (gone, stay) = std::mem::take(&mut self.waiting).into_iter().partition(goes);
        self.waiting = stay;
        gone
    }
}

/// ADD requests that wait, for an address or an announcement: each holds one of the places of the socket,
/// and the others are for the DELs that free addresses.
pub(super) const WAITING_MAX: usize = CONNECTIONS_MAX / 2;
