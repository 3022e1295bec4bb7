//! The node's blocks: what the API server says is this node's, and what follows from it.
//!
//! ```text
//!  view, usage, routes ──► blocks ──decide()──► claims, returns ──► API server
//!                            │ ▲
//!                 Holdings ◄─┘ └── fence ◄── lease (own Lease, renewed)
//!  usage, view ──► status (what each block holds)
//!  leader: blocks of Nodes that are gone, status of pools
//! ```
//!
//! The rules are in `cairn_ipam`; this module reads, asks them, and writes. A block is handed out
//! from only after its object exists and consistent reads have shown that its pool stands and
//! nothing overlaps it (`BlockApi::verify`), and never again once its return was told to the
//! server. What is in the kernel and what is announced does not depend on the API server answering.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;

use cairn_ipam::mark::Claimant;
use cairn_ipam::{Demand, Family, Machine, OwnedBlock, PodPool, Rule, Rules, Standing};
use ipnet::IpNet;
use k8s_openapi::api::core::v1::Node;
use kube::Client;
use tokio::sync::watch;

use crate::drain;
use crate::pods::Usage;
use crate::view::ClusterView;

mod api;
mod blocks;
mod calls;
pub mod disk;
mod error;
mod events;
mod held;
mod history;
mod leader;
mod lease;
mod outcome;
mod reads;
mod seams;
mod site;
mod status;
mod tell;

pub use error::IpamError;
pub use seams::{Clock, Directory, Heard, NoWitness, Storage, Witness, read_document};

/// What a node's IPAM must know from the start.
#[derive(Clone, Debug)]
pub struct IpamOptions {
    /// The node's name.
    pub node: String,
    /// The boot id of the running kernel ([`boot_id`]).
    pub boot_id: String,
    /// Where Leases are: cairn-system.
    pub namespace: String,
    /// How long the node may hand out addresses without the API server taking its Lease.
    pub offline: Duration,
    /// After how long without an address a block goes back, unless it is the last.
    pub idle_release: Option<Duration>,
    /// Which safety rules hold: all, but in tests.
    pub rules: Rules,
    /// The time since boot.
    pub clock: Clock,
}

/// What flows into the node's IPAM and out of it.
pub struct IpamChannels {
    /// The cluster as the watches show it.
    pub view: watch::Receiver<Arc<ClusterView>>,
    /// The addresses of the node's pods.
    pub usage: watch::Receiver<Usage>,
    /// Prefixes of routes in use: blocks that somebody has. They only save refused claims.
    pub routes: watch::Receiver<Arc<BTreeSet<IpNet>>>,
    /// What peers announce.
    pub witness: Arc<dyn Witness>,
    /// What outlives this process.
    pub storage: Arc<dyn Storage>,
    /// Raised by one when history went backwards: every watch begins anew ([`ClusterView::epoch`]).
    pub relist: watch::Sender<u64>,
    /// How far the node is drained.
    pub drain: watch::Receiver<drain::Told>,
    /// What this node holds.
    pub holdings: watch::Sender<Arc<Holdings>>,
}

/// What this node holds.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Holdings {
    /// The blocks to announce and to blackhole, in order: confirmed ones, and those with pods. Of one
    /// that may be another node's only the pods' addresses.
    pub announced: Vec<IpNet>,
    /// All blocks of the node, with whether each may hand out.
    pub blocks: Vec<OwnedBlock>,
    /// That these are all of them is known.
    pub told: bool,
    /// Those of them of which is not known yet whether another machine that had this Node uses them.
    pub found: BTreeSet<IpNet>,
    /// Those of them in which the node's own devices may have addresses.
    pub lodgings: Vec<IpNet>,
    /// The families of which a pod gets an address each.
    pub families: Vec<Family>,
    /// Those of them of which the node has or claims a block though no pod asks for one.
    pub ahead: Vec<Family>,
    /// There are pools that give addresses, none of them on this node.
    pub elsewhere: bool,
    /// Every pool of pods, usable or not.
    pub pools: Vec<PodPool>,
    /// What is never handed out.
    pub reserved: Vec<IpNet>,
    /// Demands that cannot be met now, each with the reason for the pod that waits.
    pub refusals: BTreeMap<Demand, String>,
    /// Blocks in conflict, with who else has them.
    pub conflicts: BTreeMap<IpNet, String>,
    /// What a person should know, one sentence each.
    pub problems: Vec<String>,
    /// Whether this agent leads.
    pub leads: bool,
}

/// Keeps the node's blocks for as long as it is polled.
pub async fn run(client: Client, options: IpamOptions, channels: IpamChannels) {
    let IpamChannels { view, usage, routes, witness, storage, relist, drain, holdings } = channels;
    let rules = options.rules;
    let owner = disk::Owner { node: options.node.clone(), boot_id: options.boot_id.clone(), rules };
    let disk = disk::Disk::open(storage, owner, options.clock.now());
    let fence = disk.kept().fence(options.offline);
    let promise = watch::Sender::new(lease::Promise::new(fence));
    let found = watch::Sender::new(Duration::ZERO);
    let history = history::History::new(relist, disk.clone(), rules);
    let reports = Reports { holdings, parts: Arc::default() };
    let (events, queue) = events::Events::new();
    let shared = Shared {
        client,
        options,
        view,
        usage,
        routes,
        witness,
        disk,
        history,
        promise,
        found,
        drain,
        reports,
        events,
    };
    tokio::join!(
        lease::run(shared.clone()),
        blocks::run(shared.clone()),
        status::run(shared.clone()),
        leader::run(shared.clone()),
        events::run(shared.clone(), queue),
    );
}

/// The boot id of the running kernel.
pub fn boot_id() -> std::io::Result<String> {
    Ok(std::fs::read_to_string("/proc/sys/kernel/random/boot_id")?.trim().to_owned())
}

/// What the parts share. Clones see the same channels.
#[derive(Clone)]
struct Shared {
    client: Client,
    options: IpamOptions,
    view: watch::Receiver<Arc<ClusterView>>,
    usage: watch::Receiver<Usage>,
    routes: watch::Receiver<Arc<BTreeSet<IpNet>>>,
    witness: Arc<dyn Witness>,
    disk: disk::Disk,
    history: history::History,
    promise: watch::Sender<lease::Promise>,
    /// When the last of the blocks was found that wait for a later write of the Lease.
    found: watch::Sender<Duration>,
    drain: watch::Receiver<drain::Told>,
    reports: Reports,
    events: events::Events,
}

impl Shared {
    fn now(&self) -> Duration {
        self.options.clock.now()
    }

    /// Why a machine that is still on may announce its blocks unheard by this node.
    async fn why_deaf(&self) -> Option<String> {
        self.witness.why_deaf(self.lasting()).await
    }

    /// How long a session has to have lasted for what it has brought to be all.
    fn lasting(&self) -> Duration {
        HEARING_MIN.min(self.options.offline / 8)
    }

    /// This machine, as its Node names it.
    fn claimant(&self) -> Claimant {
        let view = self.view.borrow();
        let status = view.node.as_ref().and_then(|node| node.status.as_ref());
        let info = status.and_then(|status| status.node_info.as_ref());
        let info = info.filter(|info| info.boot_id == self.options.boot_id);
        let machine = info.map_or_else(Machine::default, |info| Machine {
            machine_id: info.machine_id.clone(),
            system_uuid: info.system_uuid.clone(),
        });
        Claimant { machine, boot_id: self.options.boot_id.clone() }
    }

    /// The UID of the Node for which this agent may act, or why it may not (IPAM rule 5).
    fn membership(&self) -> Result<String, Standing> {
        if self.promise.borrow().marked_off {
            return Err(Standing::MarkedOff);
        }
        self.member()
    }

    /// The UID of the Node that this machine is, whatever an operator has said of the machine.
    fn member(&self) -> Result<String, Standing> {
        let view = self.view.borrow();
        view.node.as_ref().ok_or(Standing::NodeMissing).and_then(|node| self.member_uid(node))
    }

    /// The UID of `node` if it is the machine that this agent runs on.
    fn member_uid(&self, node: &Node) -> Result<String, Standing> {
        let info = node.status.as_ref().and_then(|status| status.node_info.as_ref());
        let careless = !self.options.rules.hold(Rule::OneMachine);
        match info.map_or("", |info| info.boot_id.as_str()) {
            "" => Err(Standing::NodeMissing),
            boot_id if boot_id != self.options.boot_id && !careless => Err(Standing::OtherMachine),
            _ => node.metadata.uid.clone().ok_or(Standing::NodeMissing),
        }
    }
}

/// One sentence each of what is wrong, by the part that says it, and what the node holds.
#[derive(Clone, Debug)]
struct Reports {
    holdings: watch::Sender<Arc<Holdings>>,
    parts: Arc<std::sync::Mutex<BTreeMap<&'static str, Vec<String>>>>,
}

impl Reports {
    /// Replaces what `part` reports.
    fn report(&self, part: &'static str, problems: Vec<String>) {
        let mut parts = self.parts.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
        parts.insert(part, problems);
        let all: Vec<String> = parts.values().flatten().cloned().collect();
        self.change(|holdings| holdings.problems = all);
    }

    /// Changes what the node holds, and tells if it differs.
    fn change(&self, change: impl FnOnce(&mut Holdings)) {
        self.holdings.send_if_modified(|held| {
            let mut new = Holdings::clone(held);
            change(&mut new);
            let changed = new != **held;
            if changed {
                *held = Arc::new(new);
            }
            changed
        });
    }
}

/// How long a session has to have lasted, or an eighth of the promise where that is shorter: by then a
/// router that began anew has heard what others announce.
const HEARING_MIN: Duration = Duration::from_secs(60);
