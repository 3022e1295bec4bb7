//! The node's pods: their addresses and interfaces, and the socket on which the CNI plugin asks.
//!
//! ```text
//!  plugin ──cni.sock──► server ──Call──► PodNetwork ──► AddressBook (which address)
//!                       (a thread each)  (one task)  ──► kernel::pod (veth, alias, host route)
//!  blocks, node addresses ──────────────────┘  └──► Usage: who has what, what is short
//! ```
//!
//! One task owns the addresses and says one thing at a time about each interface of a container;
//! what waits for the kernel runs on threads, behind [`PodKernel`]. The kernel is the record: a start takes the lock of
//! the run directory, reads aliases and host routes, removes what was left half done, and only then
//! takes the socket over. Nothing here calls the API server: a pod starts from the blocks that the
//! node owns.

mod annotations;
mod answers;
mod calls;
mod error;
mod files;
mod host;
mod kernel;
mod network;
mod server;
mod thread;

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use cairn_api::TunnelKind;
use cairn_cni::PodIdentity;
use cairn_ipam::{AttachmentId, BlockUsage, Demand, Family, OwnedBlock, PodPool, Rules};
use cairn_kernel::NetNs;
use ipnet::IpNet;
use tokio::sync::{Notify, watch};

pub use annotations::{AnnotationSource, ApiAnnotations};
pub use calls::PodCalls;
pub use error::PodsError;
pub use files::{Lock, socket_path};
pub use kernel::{Attachment, Found, Listed, PodKernel, Question};
pub use network::PodNetwork;
pub use thread::PodsThread;

use crate::ipam::Clock;
use crate::readiness::Verdict;
use crate::view::Namespace;
use files::PodNames;
use host::HostKernel;

/// What the pods of a machine need to start.
#[derive(Clone, Debug)]
pub struct PodsOptions {
    /// Where lock, socket and names are: /run/cairn.
    pub run_dir: PathBuf,
    /// What the owner of the addresses needs.
    pub network: NetworkOptions,
}

/// What the owner of the addresses needs.
#[derive(Clone, Debug)]
pub struct NetworkOptions {
    /// An address that was freed less than this ago is handed out last.
    pub cooldown: Duration,
    /// How long an ADD that lacks something waits for it, from its beginning, before it is refused.
    pub address_wait: Duration,
    /// How long the first ADDs of a block wait for its announcement before they go on without it.
    pub announcement_wait: Duration,
    /// The time since boot.
    pub clock: Clock,
    /// Which safety rules hold: all, but in tests.
    pub rules: Rules,
}

/// What the node tells its pod network, as far as it is known.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PodConfig {
    /// The node's addresses: the first of each family is the source of what the node sends to pods.
    pub node_addresses: Vec<IpAddr>,
    /// The MTU of new pods in bytes.
    pub mtu: u32,
}

/// The addresses of the node's pods at one moment.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Usage {
    /// What each block holds, in the blocks' order.
    pub blocks: Vec<BlockUsage>,
    /// The addresses that interfaces hold outside of every block that was told, in order.
    pub outside: Vec<(IpAddr, AttachmentId)>,
    /// The pods of the interfaces that hold addresses, as far as their names are known.
    pub pods: BTreeMap<AttachmentId, PodIdentity>,
    /// What ADDs found no address for since the blocks last changed: a block is needed now.
    pub exhausted: BTreeSet<Demand>,
    /// The addresses of the node's tunnel devices.
    pub tunnels: TunnelAddresses,
}

/// The addresses that the node's tunnel devices are to have.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct TunnelAddresses {
    /// Rises with every change.
    pub revision: u64,
    /// At most one a device and family.
    pub held: BTreeMap<(TunnelKind, Family), IpAddr>,
}

/// What pods may be given.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Supply {
    /// All blocks of the node, with whether each may hand out.
    pub blocks: Vec<OwnedBlock>,
    /// The families of which a pod gets an address each, where pools of them serve its namespace.
    pub families: Vec<Family>,
    /// Every pool of pods, usable or not. Changes apply to new pods; existing ones keep their
    /// addresses.
    pub pools: Vec<PodPool>,
    /// What is never handed out.
    pub reserved: Vec<IpNet>,
    /// The pools, by name, in whose blocks each tunnel device has its address of a family.
    pub tunnels: BTreeMap<(TunnelKind, Family), Vec<String>>,
    /// The blocks in which they may be; `None` before the owner of the blocks has said.
    pub lodgings: Option<Vec<IpNet>>,
    /// Demands that cannot be met now, each with the reason for the pod that waits.
    pub refusals: BTreeMap<Demand, String>,
    /// Blocks of which BGP peers have still to hear: pods in them are not told that they have their
    /// addresses.
    pub held_back: BTreeSet<IpNet>,
    /// Namespaces by name. A pod whose namespace is not there waits; if there are none at all, and
    /// no pool selects namespaces, they do not matter.
    pub namespaces: Arc<BTreeMap<String, Arc<Namespace>>>,
}

/// Speaks to the running pod network. Clones are the same.
#[derive(Clone, Debug)]
pub struct PodsHandle {
    readiness: Arc<watch::Sender<Verdict>>,
    config: Arc<watch::Sender<Option<PodConfig>>>,
    supply: Arc<watch::Sender<Supply>>,
    elsewhere: Arc<watch::Sender<BTreeSet<IpNet>>>,
    tunnels_applied: Arc<watch::Sender<u64>>,
    resync: Arc<Notify>,
    usage: watch::Receiver<Usage>,
}

impl PodsHandle {
    /// Says whether the pod network is ready. While the verdict is [`Verdict::shut`] every ADD waits, and is
    /// refused for now at the end of its patience.
    pub fn set_readiness(&self, verdict: &Verdict) {
        crate::send_if_changed(&self.readiness, verdict.clone());
    }

    /// What was said last, now and whenever it changes.
    pub fn readiness(&self) -> watch::Receiver<Verdict> {
        self.readiness.subscribe()
    }

    /// Sets the node's addresses and the MTU of new pods. Until the first call every ADD is refused
    /// for now.
    pub fn set_config(&self, config: PodConfig) {
        crate::send_if_changed(&self.config, Some(config));
    }

    /// Sets what pods may be given.
    pub fn set_supply(&self, supply: Supply) {
        crate::send_if_changed(&self.supply, supply);
    }

    /// Changes [`Supply::held_back`] alone.
    pub fn set_held_back(&self, held_back: BTreeSet<IpNet>) {
        self.supply.send_if_modified(|supply| {
            let differs = supply.held_back != held_back;
            supply.held_back = held_back;
            differs
        });
    }

    /// Sets which parts of own blocks the kernel routes elsewhere: their addresses are not handed out,
    /// and the blocks are not given back, while these routes stand.
    pub fn set_elsewhere(&self, elsewhere: BTreeSet<IpNet>) {
        crate::send_if_changed(&self.elsewhere, elsewhere);
    }

    /// Says that the kernel's tunnel devices have exactly the addresses of this
    /// [`TunnelAddresses::revision`]: those that they had before are free from then on.
    pub fn tunnels_applied(&self, revision: u64) {
        crate::send_if_changed(&self.tunnels_applied, revision);
    }

    /// Compares the book with the kernel soon: interfaces that are gone free their addresses, host
    /// routes that are gone come back. To be called when links, host routes or permanent neighbours
    /// changed; calls in quick succession are one.
    pub fn resync(&self) {
        self.resync.notify_one();
    }

    /// The addresses in use, now and whenever they change.
    pub fn usage(&self) -> watch::Receiver<Usage> {
        self.usage.clone()
    }
}

/// A pod network that has read the kernel and holds the socket; [`Pods::run`] serves it.
#[derive(Debug)]
pub struct Pods {
    network: PodNetwork<HostKernel>,
    listener: tokio::net::UnixListener,
    calls: PodCalls<Arc<NetNs>>,
    own_netns: (u64, u64),
}

impl Pods {
    /// Takes the lock, reads the node's pods from the kernel and takes the socket over. Requests
    /// that arrive from then on wait for [`Pods::run`].
    ///
    /// # Errors
    /// [`PodsError`], one sentence; the socket of another agent stays.
    pub async fn start(options: PodsOptions) -> Result<(PodsHandle, Pods), PodsError> {
        let PodsOptions { run_dir, network } = options;
        let names = PodNames::in_run_dir(&run_dir);
        let kernel = HostKernel::new(&run_dir, names.clone());
        let (handle, calls, network) = PodNetwork::start_named(kernel, network, names).await?;
        let own_netns = NetNs::current().and_then(|own| own.identity())?;
        let listener = files::bind(&run_dir)?;
        Ok((handle, Pods { network, listener, calls, own_netns }))
    }

    /// As [`PodNetwork::with_annotations`].
    pub fn with_annotations(self, source: Arc<dyn AnnotationSource>) -> Pods {
        Pods { network: self.network.with_annotations(source), ..self }
    }

    /// Serves requests until every handle is dropped.
    pub async fn run(self) {
        let Pods { network, listener, calls, own_netns } = self;
        tokio::select! {
            biased;
            () = network.run() => {}
            () = server::serve(listener, calls, own_netns) => {}
        }
    }
}
