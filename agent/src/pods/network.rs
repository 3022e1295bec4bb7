//! The owner of the node's pod addresses.
//!
//! For each interface of a container at most one thing happens at a time: a second request for it
//! waits for the first. An address is in the book from before the kernel is asked until the kernel
//! has no interface any more, so that nothing in between can give it twice.

use std::collections::{BTreeMap, BTreeSet, HashMap, VecDeque};
use std::net::IpAddr;
use std::sync::Arc;
use std::time::Duration;

use cairn_cni::protocol::{AddRequest, DelRequest, Response};
use cairn_cni::{Code, PodIdentity};
use cairn_ipam::{AddressBook, AssignError, AttachmentId, Family};
use cairn_kernel::Error;
use cairn_kernel::pod::{self, AttachError, Attached, PodAttachment, PodSpec};
use ipnet::IpNet;
use tokio::sync::{Notify, mpsc, watch};
use tokio::task::JoinSet;
use tokio::time::Instant;

use super::answers::{AddRefusal, NO_CONFIG, NO_POOL, added, answer, failed, failure_of};
use super::files::{Lock, PodNames};
use super::server::{Call, Reply};
use super::work::{self, Addition, Done, Found, Listed, boot_time};
use super::{Blocks, PodConfig, PodsOptions, Usage};
use crate::until;

/// Where the owner's work comes from.
#[derive(Debug)]
pub(super) struct Inputs {
    pub(super) calls: mpsc::Receiver<Call>,
    pub(super) config: watch::Receiver<Option<PodConfig>>,
    pub(super) blocks: watch::Receiver<Blocks>,
    pub(super) resync: Arc<Notify>,
}

/// The owner of the node's pod addresses.
#[derive(Debug)]
pub(super) struct PodNetwork {
    book: AddressBook,
    attachments: BTreeMap<AttachmentId, Attachment>,
    /// Interfaces on which work is under way, each with the requests that wait for its end.
    busy: HashMap<AttachmentId, VecDeque<Call>>,
    /// ADD requests without an address, in the order in which their patience ends.
    waiting: VecDeque<(Instant, Addition)>,
    config: Option<PodConfig>,
    families: Vec<Family>,
    /// The blocks' networks.
    cidrs: Vec<IpNet>,
    /// Addresses to which the kernel has permanent neighbours: somebody else's.
    neighbours: BTreeSet<IpAddr>,
    exhausted: BTreeSet<Family>,
    names: PodNames,
    /// Held by every thread that writes to the kernel, too: the next agent must not read while this
    /// one's last write is under way.
    lock: Arc<Lock>,
    address_wait: Duration,
    /// Counts changes to the kernel's pods, so that an older dump is not taken for the truth.
    generation: u64,
    listing: Listing,
    inputs: Option<Inputs>,
    work: JoinSet<Done>,
    usage: watch::Sender<Usage>,
}

/// An interface in the kernel.
#[derive(Debug)]
struct Attachment {
    host_ifname: String,
    pod: PodIdentity,
    /// The generation that it came with.
    since: u64,
}

/// Whether a dump of the kernel's pods is wanted or under way.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Listing {
    Idle,
    Due(Instant),
    Running { again: bool },
}

impl PodNetwork {
    pub(super) fn new(
        options: &PodsOptions,
        lock: Lock,
        names: PodNames,
        found: Found,
        inputs: Inputs,
        usage: watch::Sender<Usage>,
    ) -> PodNetwork {
        let mut network = PodNetwork {
            book: AddressBook::new(options.cooldown),
            attachments: BTreeMap::new(),
            busy: HashMap::new(),
            waiting: VecDeque::new(),
            config: None,
            families: Vec::new(),
            cidrs: Vec::new(),
            neighbours: found.neighbours,
            exhausted: BTreeSet::new(),
            names,
            lock: Arc::new(lock),
            address_wait: options.address_wait,
            generation: 0,
            listing: Listing::Idle,
            inputs: Some(inputs),
            work: JoinSet::new(),
            usage,
        };
        for attachment in found.attachments {
            network.adopt(&attachment);
        }
        let known = &network.attachments;
        network.names.retain(|name| known.values().any(|held| held.host_ifname == name));
        network.publish();
        network
    }

    /// Serves until nobody can send anything any more.
    pub(super) async fn run(mut self) {
        let Some(mut inputs) = self.inputs.take() else { return };
        loop {
            let due = self.next_deadline();
            tokio::select! {
                call = inputs.calls.recv() => match call {
                    Some(call) => self.handle(call),
                    None => return,
                },
                Some(done) = self.work.join_next() => match done {
                    Ok(done) => self.finish(done),
                    // A panic in a thread is one in here.
                    Err(error) => match error.try_into_panic() {
                        Ok(panic) => std::panic::resume_unwind(panic),
                        Err(_) => return,
                    },
                },
                changed = inputs.config.changed() => {
                    if changed.is_err() {
                        return;
                    }
                    self.config = inputs.config.borrow_and_update().clone();
                    self.request_listing();
                    self.retry_waiting();
                }
                changed = inputs.blocks.changed() => {
                    if changed.is_err() {
                        return;
                    }
                    let blocks = inputs.blocks.borrow_and_update().clone();
                    self.set_blocks(blocks);
                }
                () = inputs.resync.notified() => self.request_listing(),
                () = until(due), if due.is_some() => self.expire(),
            }
        }
    }

    fn handle(&mut self, call: Call) {
        let id = match &call {
            Call::Add { request, .. } => id_of(request.container_id.as_str(), &request.ifname),
            Call::Del { request, .. } => id_of(request.container_id.as_str(), &request.ifname),
            Call::Status { .. } => {
                let Call::Status { reply } = call else { return };
                let response = match self.readiness() {
                    Ok(()) => Response::Done,
                    Err(msg) => failed(Code::NotAvailable, msg),
                };
                return answer(reply, response);
            }
        };
        if let Some(queue) = self.busy.get_mut(&id) {
            if queue.len() < QUEUE_MAX {
                return queue.push_back(call);
            }
            let (Call::Add { reply, .. } | Call::Del { reply, .. } | Call::Status { reply }) = call;
            let msg = format!("{QUEUE_MAX} requests for {id} already wait");
            return answer(reply, failed(Code::TryAgainLater, msg));
        }
        self.busy.insert(id.clone(), VecDeque::new());
        match call {
            Call::Add { request, netns, reply } => {
                self.add(Addition { id, request, netns, reply, refused: 0 });
            }
            Call::Del { request, reply } => self.del(id, request, reply),
            Call::Status { .. } => {}
        }
    }

    /// Whether an ADD could be served now, else why not.
    fn readiness(&self) -> Result<(), String> {
        if self.config.is_none() {
            return Err(NO_CONFIG.into());
        }
        if self.families.is_empty() {
            return Err(NO_POOL.into());
        }
        let usage = self.book.usage();
        for family in &self.families {
            let serves = |block: &cairn_ipam::BlockUsage| {
                Family::of_net(block.cidr) == *family && block.hand_out && block.free > 0
            };
            if !usage.iter().any(serves) {
                return Err(format!("no block of this node has a free {family} address"));
            }
        }
        Ok(())
    }

    /// Gives the interface its addresses and has the kernel make it. An interface that is there
    /// already goes the same way: that completes it and finds out whether it is the pod's.
    fn add(&mut self, addition: Addition) {
        let Some(config) = self.config.clone() else {
            return self.wait(addition, &AddRefusal::Unconfigured);
        };
        if self.families.is_empty() {
            return self.wait(addition, &AddRefusal::Poolless);
        }
        self.take_over(&addition.id);
        let addresses = match self.book.held(&addition.id) {
            [] => self.book.assign(&addition.id, &self.families, boot_time()),
            held => Ok(held.to_vec()),
        };
        let addresses = match addresses {
            Ok(addresses) => addresses,
            Err(error) => return self.wait(addition, &AddRefusal::Unassigned(error)),
        };
        self.publish();
        let spec = PodSpec {
            container_id: addition.id.container_id.clone(),
            ifname: addition.id.ifname.clone(),
            pod_uid: addition.request.pod.uid().map(Into::into),
            addresses,
            mtu: config.mtu,
            node_addresses: config.node_addresses,
        };
        let (names, lock) = (self.names.clone(), Arc::clone(&self.lock));
        self.work.spawn_blocking(move || work::attach(addition, &spec, &names, &lock));
    }

    /// Gives a container what its interface holds since a start that found no readable alias.
    fn take_over(&mut self, id: &AttachmentId) {
        let nameless = unrecorded(&pod::host_interface_name(&id.container_id, &id.ifname));
        let Some(attachment) = self.attachments.remove(&nameless) else { return };
        let addresses = self.book.release(&nameless, boot_time());
        self.book.adopt(id.clone(), addresses);
        self.attachments.insert(id.clone(), attachment);
    }

    /// Keeps an ADD that cannot be served now until something changes, within limits.
    fn wait(&mut self, addition: Addition, refusal: &AddRefusal) {
        if let AddRefusal::Unassigned(
            AssignError::NoBlock { family }
            | AssignError::Closed { family, .. }
            | AssignError::Full { family, .. },
        ) = refusal
            && self.exhausted.insert(*family)
        {
            self.publish();
        }
        let until = Instant::now() + self.address_wait;
        if self.waiting.len() < WAITING_MAX {
            return self.waiting.push_back((until, addition));
        }
        self.refuse(addition, refusal);
    }

    fn refuse(&mut self, addition: Addition, refusal: &AddRefusal) {
        let Addition { id, request, netns, reply, .. } = addition;
        let reason = refusal.to_string();
        tracing::warn!(pod = %request.pod, container = id.container_id, reason, "pod not attached");
        drop(netns);
        answer(reply, failed(Code::TryAgainLater, reason));
        self.release_turn(&id);
    }

    /// Tries every waiting ADD again, after something changed. One that still finds nothing keeps
    /// its deadline.
    fn retry_waiting(&mut self) {
        for (until, addition) in std::mem::take(&mut self.waiting) {
            let before = self.waiting.len();
            self.add(addition);
            if let Some((held, _)) = self.waiting.get_mut(before) {
                *held = until;
            }
        }
    }

    /// Handles what is due by time.
    fn expire(&mut self) {
        let now = Instant::now();
        if let Listing::Due(at) = self.listing
            && at <= now
        {
            self.list();
        }
        while self.waiting.front().is_some_and(|(until, _)| *until <= now) {
            let Some((_, addition)) = self.waiting.pop_front() else { return };
            let refusal = match (&self.config, self.families.is_empty()) {
                (None, _) => AddRefusal::Unconfigured,
                (_, true) => AddRefusal::Poolless,
                _ => match self.book.assign(&addition.id, &self.families, boot_time()) {
                    // Freed in this very moment.
                    Ok(_) => {
                        self.add(addition);
                        continue;
                    }
                    Err(error) => AddRefusal::Unassigned(error),
                },
            };
            self.refuse(addition, &refusal);
        }
    }

    fn next_deadline(&self) -> Option<Instant> {
        let listing = match self.listing {
            Listing::Due(at) => Some(at),
            _ => None,
        };
        let waiting = self.waiting.iter().map(|(until, _)| *until).min();
        listing.into_iter().chain(waiting).min()
    }

    fn del(&mut self, id: AttachmentId, request: DelRequest, reply: Reply) {
        tracing::debug!(container = id.container_id, network = request.network, "DEL");
        let lock = Arc::clone(&self.lock);
        self.work.spawn_blocking(move || work::detach(id, reply, &lock));
    }

    fn finish(&mut self, done: Done) {
        match done {
            Done::Attached { addition, outcome, remains } => {
                self.generation += 1;
                self.finish_add(addition, outcome, remains);
            }
            Done::Detached { id, reply, outcome } => {
                self.generation += 1;
                self.finish_del(&id, reply, outcome);
            }
            Done::Listed { generation, outcome } => self.finish_listing(generation, outcome),
        }
    }

    fn finish_add(
        &mut self,
        mut addition: Addition,
        outcome: Result<Attached, AttachError>,
        remains: bool,
    ) {
        if let Err(AttachError::AddressInUse(address)) = outcome {
            tracing::warn!(%address, "an address of an own block is used by something else");
            self.book.mark_foreign(address);
            addition.refused += 1;
            if !remains && addition.refused < FOREIGN_MAX {
                self.book.release(&addition.id, boot_time());
                self.attachments.remove(&addition.id);
                return self.add(addition);
            }
        }
        let Addition { id, request: AddRequest { pod, .. }, netns, reply, .. } = addition;
        // Whoever has it open keeps a dead pod's interface alive.
        drop(netns);
        let addresses = self.book.held(&id).to_vec();
        if remains {
            // After a failure too the interface holds its addresses, until a DEL or its end.
            let attachment = Attachment {
                host_ifname: pod::host_interface_name(&id.container_id, &id.ifname),
                pod: pod.clone(),
                since: self.generation,
            };
            self.attachments.insert(id.clone(), attachment);
        } else {
            self.forget(&id);
        }
        self.publish();
        let response = match outcome {
            Ok(attached) => {
                tracing::info!(%pod, container = id.container_id, ?addresses, "pod attached");
                Response::Added(added(&attached, &addresses))
            }
            Err(error) => {
                let failure = failure_of(&error);
                let reason = failure.msg.as_str();
                tracing::warn!(%pod, container = id.container_id, reason, "pod not attached");
                Response::Failed(failure)
            }
        };
        answer(reply, response);
        self.release_turn(&id);
        if !remains {
            self.retry_waiting();
        }
    }

    fn finish_del(&mut self, id: &AttachmentId, reply: Reply, outcome: Result<(), Error>) {
        let response = match outcome {
            Ok(()) => {
                self.forget(id);
                // Held under this name since a start that found no readable alias.
                self.forget(&unrecorded(&pod::host_interface_name(&id.container_id, &id.ifname)));
                self.publish();
                Response::Done
            }
            Err(error) => {
                tracing::warn!(container = id.container_id, %error, "pod not detached");
                let msg = format!("the pod's interface could not be removed: {error}");
                failed(Code::TryAgainLater, msg)
            }
        };
        answer(reply, response);
        self.release_turn(id);
        self.retry_waiting();
    }

    /// Frees what an interface held that is no longer in the kernel.
    fn forget(&mut self, id: &AttachmentId) {
        let addresses = self.book.release(id, boot_time());
        if let Some(attachment) = self.attachments.remove(id) {
            self.names.remove(&attachment.host_ifname);
            let pod = attachment.pod;
            tracing::info!(%pod, container = id.container_id, ?addresses, "pod detached");
        }
    }

    /// Lets the next request for the interface begin.
    fn release_turn(&mut self, id: &AttachmentId) {
        let Some(mut queue) = self.busy.remove(id) else { return };
        if let Some(next) = queue.pop_front() {
            self.handle(next);
            if let Some(waiting) = self.busy.get_mut(id) {
                waiting.extend(queue);
            } else {
                queue.into_iter().for_each(|call| self.handle(call));
            }
        }
    }

    fn set_blocks(&mut self, blocks: Blocks) {
        let cidrs: Vec<IpNet> = blocks.owned.iter().map(|block| block.cidr).collect();
        if self.cidrs != cidrs {
            self.cidrs = cidrs;
            self.request_listing();
        }
        self.book.set_blocks(blocks.owned);
        self.mark_neighbours();
        self.families = blocks.families;
        self.exhausted.clear();
        self.retry_waiting();
        self.publish();
    }

    /// Keeps addresses of own blocks that somebody made permanent neighbours from being handed out.
    fn mark_neighbours(&mut self) {
        for cidr in &self.cidrs {
            for address in self.neighbours.range(cidr.network()..=cidr.broadcast()) {
                self.book.mark_foreign(*address);
            }
        }
    }

    /// Records an interface that the kernel has.
    fn adopt(&mut self, found: &PodAttachment) {
        let id = match &found.alias {
            Some(alias) => id_of(&alias.container_id, &alias.ifname),
            None => {
                tracing::warn!(
                    interface = found.host_ifname,
                    alias = found.alias_unread,
                    "a pod interface without a readable alias keeps its addresses"
                );
                unrecorded(&found.host_ifname)
            }
        };
        let clashes = self.book.adopt(id.clone(), found.addresses());
        for address in clashes {
            tracing::error!(%address, interface = found.host_ifname, "two pods hold one address");
        }
        let attachment = Attachment {
            host_ifname: found.host_ifname.clone(),
            pod: self.names.read(&found.host_ifname),
            since: self.generation,
        };
        self.attachments.insert(id, attachment);
    }

    fn request_listing(&mut self) {
        let soon = Instant::now() + LISTING_DELAY;
        self.listing = match self.listing {
            Listing::Idle => Listing::Due(soon),
            Listing::Running { .. } => Listing::Running { again: true },
            Listing::Due(at) => Listing::Due(at.min(soon)),
        };
    }

    fn list(&mut self) {
        self.listing = Listing::Running { again: false };
        let generation = self.generation;
        let node_addresses = self.config.as_ref().map(|config| config.node_addresses.clone());
        let foreign: Vec<IpAddr> =
            self.book.usage().into_iter().flat_map(|block| block.foreign).collect();
        let lock = Arc::clone(&self.lock);
        self.work.spawn_blocking(move || {
            work::list(generation, node_addresses.as_deref(), &foreign, &lock)
        });
    }

    fn finish_listing(&mut self, generation: u64, outcome: Result<Listed, Error>) {
        let again = self.listing == Listing::Running { again: true };
        self.listing = Listing::Idle;
        let listed = match outcome {
            Ok(listed) => listed,
            Err(error) => {
                tracing::warn!(%error, "cannot compare the node's pods with the kernel");
                self.listing = Listing::Due(Instant::now() + LISTING_RETRY);
                return;
            }
        };
        if again {
            self.request_listing();
        } else if listed.incomplete {
            self.listing = Listing::Due(Instant::now() + LISTING_RETRY);
        }
        let present: BTreeSet<&str> =
            listed.attachments.iter().map(|found| found.host_ifname.as_str()).collect();
        let vanished: Vec<AttachmentId> = self
            .attachments
            .iter()
            .filter(|(id, held)| {
                held.since <= generation
                    && !present.contains(held.host_ifname.as_str())
                    && !self.busy.contains_key(id)
            })
            .map(|(id, _)| id.clone())
            .collect();
        for id in &vanished {
            self.forget(id);
        }
        if generation == self.generation {
            for found in &listed.attachments {
                let known =
                    self.attachments.values().any(|held| held.host_ifname == found.host_ifname);
                let under_way = found.alias.as_ref().is_some_and(|alias| {
                    self.busy.contains_key(&id_of(&alias.container_id, &alias.ifname))
                });
                if !known && !under_way && !found.is_half_done() {
                    self.adopt(found);
                }
            }
        }
        self.neighbours = listed.neighbours;
        self.mark_neighbours();
        for &address in &listed.freed {
            self.book.clear_foreign(address, boot_time());
        }
        if !vanished.is_empty() || !listed.freed.is_empty() {
            self.retry_waiting();
        }
        self.publish();
    }

    fn publish(&self) {
        let usage = Usage {
            blocks: self.book.usage(),
            pods: self
                .attachments
                .iter()
                .map(|(id, held)| (id.clone(), held.pod.clone()))
                .collect(),
            exhausted: self.exhausted.clone(),
        };
        self.usage.send_if_modified(|held| {
            let changed = *held != usage;
            *held = usage;
            changed
        });
    }
}

fn id_of(container_id: &str, ifname: impl ToString) -> AttachmentId {
    AttachmentId { container_id: container_id.into(), ifname: ifname.to_string() }
}

/// Stands for a container that the kernel no longer names. No container id is empty.
fn unrecorded(host_ifname: &str) -> AttachmentId {
    AttachmentId { container_id: String::new(), ifname: host_ifname.into() }
}

/// Requests that wait for the end of another one for the same interface.
const QUEUE_MAX: usize = 16;
/// ADD requests that wait for an address.
const WAITING_MAX: usize = 256;
/// Addresses in use by others that one ADD tries.
const FOREIGN_MAX: u32 = 8;
/// Gathers a burst of kernel events into one dump.
const LISTING_DELAY: Duration = Duration::from_millis(100);
const LISTING_RETRY: Duration = Duration::from_secs(5);
