//! The owner of the node's pod addresses.
//!
//! For each interface of a container at most one thing happens at a time: a second request for it
//! waits for the first. An address is in the book from before the kernel is asked until the kernel
//! has no interface any more, so that nothing in between can give it twice.

mod checks;
mod gc;
mod listing;
mod removals;
mod tunnels;
mod untold;
mod waiting;

use std::collections::{BTreeMap, BTreeSet, HashMap, VecDeque};
use std::net::IpAddr;
use std::sync::Arc;
use std::time::Duration;

use cairn_cni::protocol::{AddRequest, Response};
use cairn_cni::{Code, PodIdentity};
use cairn_ipam::{AddressBook, AttachmentId, Demand, OwnedBlock, Rule};
use cairn_kernel::Error;
use cairn_kernel::link::Mac;
use cairn_kernel::pod::{self, AttachError, NetworkHash, PodSpec};
use futures::future::{BoxFuture, FutureExt};
use futures::stream::{FuturesUnordered, StreamExt};
use ipnet::IpNet;
use tokio::sync::{Notify, mpsc, oneshot, watch};

use super::annotations::{AnnotationSource, NoSource};
use super::answers::{AddRefusal, added, answer, failed, failure_of, status_of};
use super::calls::{Call, PodCalls, Reply, Turn, id_of};
use super::files::PodNames;
use super::kernel::{Attachment, Found, Listed, PodKernel};
use super::{NetworkOptions, PodConfig, PodsError, PodsHandle, Supply, Usage};
use crate::readiness::Verdict;
use gc::Collected;
use listing::Listing;
use removals::{Removal, Removals};
use tunnels::Tunnels;
use untold::{Answer, Untold};

/// Where the owner's work comes from.
#[derive(Debug)]
struct Inputs<N> {
    calls: mpsc::Receiver<Call<N>>,
    /// Somebody who asked has gone.
    abandoned: Arc<Notify>,
    readiness: watch::Receiver<Verdict>,
    config: watch::Receiver<Option<PodConfig>>,
    supply: watch::Receiver<Supply>,
    elsewhere: watch::Receiver<BTreeSet<IpNet>>,
    tunnels_applied: watch::Receiver<u64>,
    resync: Arc<Notify>,
}

/// The owner of the node's pod addresses, over the kernel `K`.
#[derive(Debug)]
pub struct PodNetwork<K: PodKernel> {
    options: NetworkOptions,
    kernel: K,
    book: AddressBook,
    attachments: BTreeMap<AttachmentId, Interface>,
    /// Interfaces on which work is under way, each with the requests that wait for its end.
    busy: HashMap<AttachmentId, VecDeque<Turn<K::Netns>>>,
    /// ADD requests without an address.
    waiting: VecDeque<Addition<K::Netns>>,
    /// ADD requests for whose pods' annotations somebody is asked, each with what ends it.
    asking: HashMap<AttachmentId, oneshot::Sender<()>>,
    untold: Untold,
    readiness: Verdict,
    config: Option<PodConfig>,
    supply: Supply,
    annotations: Arc<dyn AnnotationSource>,
    /// Addresses that the kernel holds for somebody else.
    foreign: BTreeSet<IpAddr>,
    /// Parts of own blocks that the kernel routes elsewhere.
    elsewhere: BTreeSet<IpNet>,
    exhausted: BTreeSet<Demand>,
    tunnels: Tunnels,
    names: PodNames,
    removals: Removals,
    /// Counts changes to the kernel's pods, so that an older dump is not taken for the truth.
    generation: u64,
    listing: Listing,
    inputs: Option<Inputs<K::Netns>>,
    work: FuturesUnordered<BoxFuture<'static, Done<K::Netns>>>,
    usage: watch::Sender<Usage>,
    /// When the usage was told last, and when it is to be told next if it has changed since.
    usage_told_at: Duration,
    usage_due: Option<Duration>,
}

/// An interface in the kernel.
#[derive(Debug)]
struct Interface {
    host_ifname: String,
    pod: PodIdentity,
    /// The network by which it was asked for, as far as its alias says.
    network: Option<NetworkHash>,
    /// When it came, or when this agent found it.
    added_at: Duration,
    /// The generation that it came with.
    since: u64,
}

/// An ADD under way.
#[derive(Debug)]
struct Addition<N> {
    id: AttachmentId,
    request: AddRequest,
    netns: N,
    reply: Reply,
    /// When its patience ends, whatever it waits for.
    until: Duration,
    /// Addresses that turned out to be in use so far.
    refused: u32,
}

/// The annotations of a pod, or why they are not known; `None` when they are not needed any more.
type Asked = Option<Result<BTreeMap<String, String>, String>>;

/// How an interface differs from what was answered.
type Checked = Result<Result<(), pod::Difference>, Error>;

/// Work that the kernel has finished.
#[derive(Debug)]
enum Done<N> {
    Attached { addition: Addition<N>, attachment: Attachment },
    Detached { batch: Vec<Removal>, outcomes: Vec<Result<(), Error>> },
    Listed { generation: u64, outcome: Result<Listed, Error> },
    Annotated { addition: Addition<N>, outcome: Asked },
    Checked { id: AttachmentId, reply: Reply, outcome: Checked },
    Collected { reply: Reply, collected: Vec<Collected> },
}

impl<K: PodKernel> PodNetwork<K> {
    /// Reads the node's pods from `kernel`, and returns the network with the ways to speak to it.
    /// Requests wait for [`PodNetwork::run`]. The names of pods are not kept over a restart.
    ///
    /// # Errors
    /// Another agent serves the node, or the kernel cannot be read.
    pub async fn start(
        kernel: K,
        options: NetworkOptions,
    ) -> Result<(PodsHandle, PodCalls<K::Netns>, PodNetwork<K>), PodsError> {
        PodNetwork::start_named(kernel, options, PodNames::unkept()).await
    }

    /// As [`PodNetwork::start`], with the names that an earlier agent left.
    pub(super) async fn start_named(
        kernel: K,
        options: NetworkOptions,
        names: PodNames,
    ) -> Result<(PodsHandle, PodCalls<K::Netns>, PodNetwork<K>), PodsError> {
        if options.rules.hold(Rule::OneAgent) {
            kernel.seize()?;
        }
        names.create()?;
        let found = kernel.read().await?;
        let (calls, received, abandoned) = PodCalls::channel();
        let (readiness, readiness_changes) = watch::channel(Verdict::default());
        let (config, config_changes) = watch::channel(None);
        let (supply, supply_changes) = watch::channel(Supply::default());
        let (elsewhere, elsewhere_changes) = watch::channel(BTreeSet::new());
        let (applied, tunnels_applied) = watch::channel(0);
        let (usage_changes, usage) = watch::channel(Usage::default());
        let resync = Arc::new(Notify::new());
        let inputs = Inputs {
            calls: received,
            abandoned,
            readiness: readiness_changes,
            config: config_changes,
            supply: supply_changes,
            elsewhere: elsewhere_changes,
            tunnels_applied,
            resync: Arc::clone(&resync),
        };
        let network = PodNetwork::new(kernel, options, names, found, inputs, usage_changes);
        let handle = PodsHandle {
            readiness: Arc::new(readiness),
            config: Arc::new(config),
            supply: Arc::new(supply),
            elsewhere: Arc::new(elsewhere),
            tunnels_applied: Arc::new(applied),
            resync,
            usage,
        };
        Ok((handle, calls, network))
    }

    fn new(
        kernel: K,
        options: NetworkOptions,
        names: PodNames,
        found: Found,
        inputs: Inputs<K::Netns>,
        usage: watch::Sender<Usage>,
    ) -> PodNetwork<K> {
        let mut network = PodNetwork {
            book: AddressBook::new(options.cooldown),
            options,
            kernel,
            attachments: BTreeMap::new(),
            busy: HashMap::new(),
            waiting: VecDeque::new(),
            asking: HashMap::new(),
            untold: Untold::default(),
            readiness: Verdict::default(),
            config: None,
            supply: Supply::default(),
            annotations: Arc::new(NoSource),
            foreign: BTreeSet::new(),
            elsewhere: BTreeSet::new(),
            exhausted: BTreeSet::new(),
            tunnels: Tunnels::default(),
            names,
            removals: Removals::default(),
            generation: 0,
            listing: Listing::Idle,
            inputs: Some(inputs),
            work: FuturesUnordered::new(),
            usage,
            usage_told_at: Duration::ZERO,
            usage_due: None,
        };
        if network.options.rules.hold(Rule::KernelIsRecord) {
            for attachment in found.attachments {
                network.adopt(&attachment);
            }
        }
        network.adopt_tunnels(found.tunnels);
        network.take_foreign(found.foreign);
        let known = &network.attachments;
        network.names.retain(|name| known.values().any(|held| held.host_ifname == name));
        network.tell_usage();
        network
    }

    /// Asks `source` for the annotations of pods whose runtime does not tell them. Without one such
    /// a pod is refused.
    pub fn with_annotations(self, source: Arc<dyn AnnotationSource>) -> PodNetwork<K> {
        PodNetwork { annotations: source, ..self }
    }

    /// Serves until nobody can send anything any more.
    pub async fn run(mut self) {
        let Some(mut inputs) = self.inputs.take() else { return };
        loop {
            let wake = self.next_deadline().map(|due| due.saturating_sub(self.now()));
            tokio::select! {
                // What is under way ends before more begins.
                biased;
                Some(done) = self.work.next() => self.finish(done),
                changed = inputs.readiness.changed() => {
                    if changed.is_err() {
                        return;
                    }
                    self.readiness = inputs.readiness.borrow_and_update().clone();
                    self.retry_waiting();
                }
                changed = inputs.config.changed() => {
                    if changed.is_err() {
                        return;
                    }
                    self.config = inputs.config.borrow_and_update().clone();
                    self.request_listing();
                    self.retry_waiting();
                }
                changed = inputs.supply.changed() => {
                    if changed.is_err() {
                        return;
                    }
                    let supply = inputs.supply.borrow_and_update().clone();
                    self.set_supply(supply);
                }
                changed = inputs.elsewhere.changed() => {
                    if changed.is_err() {
                        return;
                    }
                    let elsewhere = inputs.elsewhere.borrow_and_update().clone();
                    self.take_elsewhere(elsewhere);
                }
                changed = inputs.tunnels_applied.changed() => {
                    if changed.is_err() {
                        return;
                    }
                    let revision = *inputs.tunnels_applied.borrow_and_update();
                    self.free_tunnel_addresses(revision);
                }
                () = inputs.resync.notified() => self.request_listing(),
                () = inputs.abandoned.notified() => self.end_abandoned(),
                () = std::future::ready(()), if self.is_usage_due() => self.tell_usage(),
                () = sleep(wake), if wake.is_some() => self.expire(),
                call = inputs.calls.recv() => match call {
                    Some(call) => self.handle(call),
                    None => return,
                },
            }
        }
    }

    fn now(&self) -> Duration {
        self.options.clock.now()
    }

    fn handle(&mut self, call: Call<K::Netns>) {
        match call {
            Call::Interface { id, turn } => self.handle_turn(id, turn),
            Call::Gc { request, reply } => self.gc(&request, reply),
            Call::Status { reply } => answer(reply, status_of(&self.readiness)),
        }
    }

    /// Begins what is asked for, or has it wait for what is under way on the same interface.
    fn handle_turn(&mut self, id: AttachmentId, turn: Turn<K::Netns>) {
        if let Turn::Del { .. } = turn {
            self.end_waiting(&id);
        }
        if let Some(queue) = self.busy.get_mut(&id) {
            if queue.len() < QUEUE_MAX {
                return queue.push_back(turn);
            }
            let msg = format!("{QUEUE_MAX} requests for {id} already wait");
            return answer(turn.into_reply(), failed(Code::TryAgainLater, msg));
        }
        self.busy.insert(id.clone(), VecDeque::new());
        self.begin(id, turn);
    }

    fn begin(&mut self, id: AttachmentId, turn: Turn<K::Netns>) {
        match turn {
            Turn::Add { request, netns, reply } => {
                let until = self.now() + self.options.address_wait;
                self.add(Addition { id, request, netns, reply, until, refused: 0 });
            }
            Turn::Del { reply } => self.del(id, reply),
            Turn::Check { request, netns, reply } => self.check(id, request, netns, reply),
        }
    }

    /// What an ADD needs besides an address, if pods start now.
    fn permitted(&self) -> Result<PodConfig, AddRefusal> {
        match self.readiness.shut() {
            Some(reason) => Err(AddRefusal::NotReady(reason.to_owned())),
            None => self.config.clone().ok_or(AddRefusal::Unconfigured),
        }
    }

    /// Gives the interface its addresses and has the kernel make it. An interface that is there
    /// already goes the same way: that completes it and finds out whether it is the pod's.
    fn add(&mut self, addition: Addition<K::Netns>) {
        if addition.reply.is_closed() {
            return self.refuse(addition, &AddRefusal::Abandoned);
        }
        let config = match self.permitted() {
            Ok(config) => config,
            Err(refusal) => return self.wait(addition, &refusal),
        };
        self.take_over(&addition.id);
        if self.must_ask(&addition) {
            return self.ask(addition);
        }
        let addresses = match self.addresses(&addition) {
            Ok(addresses) => addresses,
            Err(refusal) => return self.wait(addition, &refusal),
        };
        self.publish();
        let own_kernel = self.options.rules.hold(Rule::OwnKernel);
        let spec = PodSpec {
            container_id: addition.id.container_id.clone(),
            ifname: addition.id.ifname.clone(),
            pod_uid: addition.request.pod.uid().map(Into::into),
            network: addition.request.network.clone(),
            addresses,
            mac: addition.request.mac.map(|mac| Mac(mac.octets())),
            blocks: if own_kernel { self.cidrs() } else { Vec::new() },
            mtu: config.mtu,
            node_addresses: config.node_addresses,
        };
        let pod = addition.request.pod.clone();
        let attaching = self.kernel.attach(addition.netns.clone(), spec, pod);
        self.work.push(attaching.map(|attachment| Done::Attached { addition, attachment }).boxed());
    }

    /// Gives a container what its interface holds since a start that found no readable alias.
    fn take_over(&mut self, id: &AttachmentId) {
        let nameless = unrecorded(&pod::host_interface_name(&id.container_id, &id.ifname));
        let Some(attachment) = self.attachments.remove(&nameless) else { return };
        let addresses = self.book.release(&nameless, self.now());
        self.book.adopt(id.clone(), addresses);
        self.attachments.insert(id.clone(), attachment);
    }

    /// Handles what is due by time.
    fn expire(&mut self) {
        let now = self.now();
        if let Listing::Due(at) = self.listing
            && at <= now
        {
            self.list();
        }
        self.expire_waiting(now);
        self.tell_ready();
    }

    fn next_deadline(&self) -> Option<Duration> {
        let listing = match self.listing {
            Listing::Due(at) => Some(at),
            _ => None,
        };
        let waiting = self.waiting.iter().map(|addition| addition.until).min();
        let usage = self.usage_due;
        let untold = self.untold.next_deadline();
        [listing, waiting, usage, untold].into_iter().flatten().min()
    }

    fn finish(&mut self, done: Done<K::Netns>) {
        match done {
            Done::Attached { addition, attachment } => {
                self.generation += 1;
                self.finish_add(addition, attachment);
            }
            Done::Detached { batch, outcomes } => {
                self.generation += 1;
                self.finish_batch(batch, outcomes);
            }
            Done::Annotated { addition, outcome } => self.finish_asking(addition, outcome),
            Done::Checked { id, reply, outcome } => self.finish_check(&id, reply, outcome),
            Done::Collected { reply, collected } => gc::finish(reply, collected),
            Done::Listed { generation, outcome } => self.finish_listing(generation, outcome),
        }
    }

    fn finish_add(&mut self, mut addition: Addition<K::Netns>, attachment: Attachment) {
        let Attachment { outcome, remains } = attachment;
        let foreign = match outcome {
            Err(AttachError::AddressInUse(address)) => Some(IpNet::from(address)),
            Err(AttachError::RoutedElsewhere { address, prefix }) => Some(marked(prefix, address)),
            _ => None,
        };
        if let Some(foreign) = foreign {
            tracing::warn!(%foreign, "addresses of an own block are used by something else");
            self.mark_network(foreign);
            addition.refused += 1;
            if !remains && addition.refused < FOREIGN_MAX {
                self.book.release(&addition.id, self.now());
                self.attachments.remove(&addition.id);
                return self.add(addition);
            }
        }
        let until = addition.until.saturating_add(self.options.announcement_wait);
        let Addition { id, request: AddRequest { pod, network, .. }, netns, reply, .. } = addition;
        // Whoever has it open keeps a dead pod's interface alive.
        drop(netns);
        let addresses = self.book.held(&id).to_vec();
        let is_new = !self.attachments.contains_key(&id);
        if remains {
            // After a failure too the interface holds its addresses, until a DEL or its end.
            let attachment = Interface {
                host_ifname: pod::host_interface_name(&id.container_id, &id.ifname),
                pod: pod.clone(),
                network: Some(NetworkHash::of(&network)),
                added_at: self.now(),
                since: self.generation,
            };
            self.attachments.insert(id.clone(), attachment);
        } else {
            self.forget(&id, "could not be completed");
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
        let answer = Answer { id, reply, response, is_new, until, blocks: Vec::new() };
        self.tell(answer, &addresses);
        if !remains {
            self.retry_waiting();
        }
    }

    /// Frees what an interface held that is no longer in the kernel, for this reason.
    fn forget(&mut self, id: &AttachmentId, reason: &str) {
        let addresses = self.book.release(id, self.now());
        if let Some(attachment) = self.attachments.remove(id) {
            self.names.remove(&attachment.host_ifname);
            let pod = attachment.pod;
            tracing::info!(%pod, container = id.container_id, ?addresses, reason, "pod detached");
        }
    }

    /// Lets the next request for the interface begin.
    fn release_turn(&mut self, id: &AttachmentId) {
        let Some(queue) = self.busy.get_mut(id) else { return };
        match queue.pop_front() {
            // The others wait for it.
            Some(next) => self.begin(id.clone(), next),
            None => drop(self.busy.remove(id)),
        }
    }

    fn set_supply(&mut self, supply: Supply) {
        let differs = !self.cidrs().iter().eq(supply.blocks.iter().map(|block| &block.cidr));
        if differs {
            self.request_listing();
        }
        if self.supply.reserved != supply.reserved {
            self.book.set_reserved(supply.reserved.clone());
        }
        let fenced = self.options.rules.hold(Rule::OwnFence);
        let until = |block: &OwnedBlock| if fenced { block.until } else { Duration::MAX };
        let blocks = supply.blocks.iter().map(|b| OwnedBlock { until: until(b), ..b.clone() });
        self.book.set_blocks(blocks.collect());
        self.supply = supply;
        self.settle_tunnels();
        self.mark_foreign();
        self.exhausted.clear();
        self.retry_waiting();
        self.tell_ready();
        self.publish();
    }

    /// The blocks' networks.
    fn cidrs(&self) -> Vec<IpNet> {
        self.supply.blocks.iter().map(|block| block.cidr).collect()
    }

    /// Has the usage told soon. That copies what every pod holds, and others work on it: of a burst
    /// they see what has come of it every now and then, and not after each pod.
    fn publish(&mut self) {
        let due = self.usage_told_at.saturating_add(TELL_INTERVAL);
        self.usage_due.get_or_insert(due);
    }

    /// Has the usage told at once: somebody waits for what it leads to.
    fn publish_now(&mut self) {
        self.usage_due = Some(Duration::ZERO);
    }

    fn is_usage_due(&self) -> bool {
        self.usage_due.is_some_and(|due| due <= self.now())
    }

    fn tell_usage(&mut self) {
        (self.usage_told_at, self.usage_due) = (self.now(), None);
        let usage = Usage {
            blocks: self.book.usage(),
            outside: self.book.outside(),
            pods: self
                .attachments
                .iter()
                .map(|(id, held)| (id.clone(), held.pod.clone()))
                .collect(),
            exhausted: self.exhausted.clone(),
            tunnels: self.tunnels.wanted.clone(),
        };
        crate::send_if_changed(&self.usage, usage);
    }
}

/// What of a network that the kernel routes elsewhere is marked: of a large one only `address`, and
/// others are found one by one.
fn marked(prefix: IpNet, address: IpAddr) -> IpNet {
    let hosts = prefix.max_prefix_len() - prefix.prefix_len();
    if hosts <= FOREIGN_BITS_MAX { prefix } else { address.into() }
}

async fn sleep(wait: Option<Duration>) {
    match wait {
        Some(wait) => tokio::time::sleep(wait).await,
        None => std::future::pending().await,
    }
}

/// Stands for a container that the kernel no longer names. No container id is empty.
fn unrecorded(host_ifname: &str) -> AttachmentId {
    AttachmentId { container_id: String::new(), ifname: host_ifname.into() }
}

/// The least time between two usages that nobody waits for: a few pods' time, so that a quarter of a
/// block, at which the next one is claimed, is not gone meanwhile.
const TELL_INTERVAL: Duration = Duration::from_millis(20);
/// Requests that wait for the end of another one for the same interface.
const QUEUE_MAX: usize = 16;
/// Addresses in use by others that one ADD tries.
const FOREIGN_MAX: u32 = 8;
/// Host bits of a network of others that is marked as a whole.
const FOREIGN_BITS_MAX: u8 = 8;
