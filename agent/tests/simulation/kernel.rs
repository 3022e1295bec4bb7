//! The machines' kernels, from which alone the run is judged: no two live interfaces hold one
//! address, those of other plugins' pods included.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::sync::{Arc, Mutex, MutexGuard, Weak};
use std::time::Duration;

use cairn_agent::pods::{Attachment, Found, Listed, PodKernel, PodsError, Question};
use cairn_cni::PodIdentity;
use cairn_ipam::{AttachmentId, Rule, Rules};
use cairn_kernel::Error;
use cairn_kernel::link::Mac;
use cairn_kernel::pod::{
    self, Alias, AttachError, Attached, Difference, Expected, HostRoute, NetworkHash,
    PodAttachment, PodSpec,
};
use futures::FutureExt;
use futures::future::BoxFuture;
use ipnet::IpNet;

use super::dice::Dice;
use super::life::Life;
use super::story::Story;

/// What a machine is known by; it keeps it over reboots.
pub type MachineId = usize;

/// The kernels of all machines. Clones are the same.
#[derive(Clone, Debug)]
pub struct Kernels {
    kernels: Arc<Mutex<BTreeMap<MachineId, Kernel>>>,
    story: Story,
}

/// What a kernel holds of pods.
#[derive(Debug, Default)]
pub struct Kernel {
    /// By the host interface's name.
    pub interfaces: BTreeMap<String, Interface>,
    /// Addresses of other plugins' pods, and how the kernel knows of them.
    pub foreign: BTreeMap<IpAddr, ForeignPod>,
    /// Those of which nobody could know any more ([`Kernels::give_up`]).
    foreign_given_up: BTreeSet<IpAddr>,
    /// Network namespaces that exist, by container.
    pub namespaces: BTreeSet<String>,
    next_index: u32,
    /// The agent that was told to be the only one.
    lock: Weak<()>,
}

/// How a kernel knows of another plugin's pod.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ForeignPod {
    /// By a host route.
    Route,
    /// By a permanent neighbour on a bridge.
    Neighbour,
}

/// A pod's interface.
#[derive(Clone, Debug)]
pub struct Interface {
    index: u32,
    container: String,
    /// The addresses on the pod's side: with the first the interface is live.
    pub live: Vec<IpAddr>,
    /// The record.
    pub alias: Option<Alias>,
    /// Host routes through it.
    pub routes: BTreeSet<IpAddr>,
    mtu: u32,
    /// Nobody could know of it any more ([`Kernels::give_up`]).
    given_up: bool,
}

impl Kernels {
    pub fn new(story: Story) -> Kernels {
        Kernels { kernels: Arc::default(), story }
    }

    fn lock(&self) -> MutexGuard<'_, BTreeMap<MachineId, Kernel>> {
        self.kernels.lock().expect("the kernels")
    }

    /// Changes the kernel of `machine`, and judges.
    pub fn change<T>(&self, machine: MachineId, change: impl FnOnce(&mut Kernel) -> T) -> T {
        let mut kernels = self.lock();
        let changed = change(kernels.entry(machine).or_default());
        self.judge(&kernels);
        changed
    }

    /// Looks at the kernel of `machine`.
    pub fn look<T>(&self, machine: MachineId, look: impl FnOnce(&Kernel) -> T) -> T {
        look(self.lock().entry(machine).or_default())
    }

    /// The machine ends, or boots anew: nothing of it is left.
    pub fn clear(&self, machine: MachineId) {
        self.lock().remove(&machine);
    }

    /// The pods that live on `machine` now are beyond what anybody in the cluster can know: the
    /// machine is silent towards the API and the fabric, and its Node was deleted, which says that it
    /// is gone. They are judged no more; what it starts from now on is.
    pub fn give_up(&self, machine: MachineId) {
        let mut kernels = self.lock();
        let kernel = kernels.entry(machine).or_default();
        kernel.interfaces.values_mut().for_each(|interface| interface.given_up = true);
        kernel.foreign_given_up.extend(kernel.foreign.keys());
    }

    /// The containers that were given up: kubelet ends them when it hears of the cluster again. Other
    /// plugins' pods that were given up end at once.
    pub fn end_given_up(&self, machine: MachineId) -> Vec<String> {
        let mut kernels = self.lock();
        let kernel = kernels.entry(machine).or_default();
        let gone = std::mem::take(&mut kernel.foreign_given_up);
        kernel.foreign.retain(|address, _| !gone.contains(address));
        let interfaces = kernel.interfaces.values();
        interfaces.filter(|i| i.given_up).map(|i| i.container.clone()).collect()
    }

    /// The invariant.
    fn judge(&self, kernels: &BTreeMap<MachineId, Kernel>) {
        let mut holders: BTreeMap<IpAddr, (MachineId, &str)> = BTreeMap::new();
        for (machine, kernel) in kernels {
            let pods = kernel.interfaces.values().filter(|interface| !interface.given_up);
            let pods = pods.flat_map(|i| i.live.iter().map(|address| (*address, &*i.container)));
            let others = kernel.foreign.keys();
            let others = others.filter(|address| !kernel.foreign_given_up.contains(address));
            let others = others.map(|address| (*address, "another plugin's pod"));
            for (address, container) in pods.chain(others) {
                if let Some((other, first)) = holders.insert(address, (*machine, container)) {
                    self.story.violate(format_args!(
                        "{address} is held by {first} on m{other} and by {container} on m{machine}"
                    ));
                }
            }
        }
    }
}

impl Kernel {
    /// Whether this node has a route for exactly `address`, or has it itself.
    fn routed(&self, address: IpAddr, but: &str) -> bool {
        self.foreign.get(&address) == Some(&ForeignPod::Route)
            || self.interfaces.iter().any(|(n, i)| n != but && i.routes.contains(&address))
    }

    /// Whether anything here has `address`, or is about to.
    pub fn names(&self, address: IpAddr) -> bool {
        self.foreign.contains_key(&address)
            || self.interfaces.values().any(|interface| {
                let recorded = interface.alias.iter().flat_map(|alias| &alias.addresses);
                recorded.chain(&interface.live).any(|held| *held == address)
                    || interface.routes.contains(&address)
            })
    }

    /// Whether a pod that lives here has an address in `network`.
    pub fn lives_in(&self, network: IpNet) -> bool {
        let pods = self.interfaces.values().filter(|interface| !interface.given_up);
        pods.flat_map(|interface| &interface.live).any(|address| network.contains(address))
    }

    /// Host routes of other plugins.
    pub fn elsewhere(&self) -> BTreeSet<IpNet> {
        let routes = self.foreign.iter().filter(|(_, how)| **how == ForeignPod::Route);
        routes.map(|(address, _)| IpNet::from(*address)).collect()
    }

    fn attachments(&self) -> Vec<PodAttachment> {
        let interfaces = self.interfaces.iter();
        interfaces
            .map(|(name, interface)| PodAttachment {
                host_ifname: name.clone(),
                ifindex: interface.index,
                mtu: interface.mtu,
                alias: interface.alias.clone(),
                alias_unread: None,
                routes: interface
                    .routes
                    .iter()
                    .map(|a| HostRoute { address: *a, source: None })
                    .collect(),
            })
            .collect()
    }

    /// Addresses of which there are permanent neighbours.
    fn neighbours(&self) -> BTreeSet<IpAddr> {
        let foreign = self.foreign.iter().filter(|(_, how)| **how == ForeignPod::Neighbour);
        foreign.map(|(address, _)| *address).collect()
    }

    /// The runtime removes a container's namespace, and its interface goes with it.
    pub fn end_namespace(&mut self, container: &str) {
        self.namespaces.remove(container);
        self.interfaces.retain(|_, interface| interface.container != container);
    }
}

/// A kernel as one agent's process sees it.
#[derive(Clone, Debug)]
pub struct AgentKernel {
    pub machine: MachineId,
    pub kernels: Kernels,
    pub life: Life,
    pub rules: Rules,
    pub story: Story,
    pub dice: Dice,
    /// Held for as long as the process lives.
    pub seat: Arc<()>,
}

impl AgentKernel {
    /// One step of work in the kernel: it takes its time, and the process may end before it.
    async fn step<T>(&self, change: impl FnOnce(&mut Kernel) -> T) -> T {
        tokio::time::sleep(STEP).await;
        self.life.step("kernel").await;
        self.kernels.change(self.machine, change)
    }

    async fn make(&self, spec: &PodSpec) -> Result<Attached, AttachError> {
        let name = pod::host_interface_name(&spec.container_id, &spec.ifname);
        let alias = Alias {
            container_id: spec.container_id.clone(),
            ifname: spec.ifname.clone(),
            pod_uid: spec.pod_uid.clone(),
            network: NetworkHash::of(&spec.network),
            addresses: spec.addresses.clone(),
        };
        let mac = Mac([2, 0, 0, 0, 0, 1]);
        let attached = Attached {
            host_ifname: name.clone(),
            host_mac: mac,
            pod_mac: mac,
            mtu: spec.mtu,
            gateways: spec.addresses.iter().map(|address| pod::gateway_of(*address)).collect(),
        };
        let there = self.kernels.look(self.machine, |kernel| {
            kernel.interfaces.get(&name).map(|i| (i.alias.is_some(), i.live.clone()))
        });
        match there {
            Some((true, live)) if live == spec.addresses => return Ok(attached),
            Some((true, _)) => {
                return Err(AttachError::PodInterfaceExists(spec.ifname.clone()));
            }
            // The rest of an interrupted attempt.
            Some((false, _)) => {
                self.step(|kernel| kernel.interfaces.remove(&name)).await;
            }
            None => {}
        }
        let exclusive = self.rules.hold(Rule::ExclusiveHostRoute);
        if exclusive {
            for address in &spec.addresses {
                if self.kernels.look(self.machine, |kernel| kernel.routed(*address, &name)) {
                    return Err(AttachError::AddressInUse(*address));
                }
            }
        }
        let alias_first = self.rules.hold(Rule::AliasFirst);
        let made = self.step(|kernel| {
            // Without a block only a route for exactly an address is noticed.
            let neighbours =
                if spec.blocks.is_empty() { BTreeSet::new() } else { kernel.neighbours() };
            if let Some(address) = spec.addresses.iter().find(|a| neighbours.contains(a)) {
                return Err(AttachError::AddressInUse(*address));
            }
            kernel.next_index += 1;
            let interface = Interface {
                index: kernel.next_index,
                container: spec.container_id.clone(),
                live: Vec::new(),
                alias: alias_first.then(|| alias.clone()),
                routes: BTreeSet::new(),
                mtu: spec.mtu,
                given_up: false,
            };
            kernel.interfaces.insert(name.clone(), interface);
            Ok(())
        });
        made.await?;
        // Host routes before the pod's side: what somebody else's route refuses is never live.
        if alias_first {
            self.route(&name, spec, exclusive).await?;
        }
        self.live(&name, spec).await;
        if !alias_first {
            self.route(&name, spec, exclusive).await?;
            self.step(|kernel| {
                if let Some(interface) = kernel.interfaces.get_mut(&name) {
                    interface.alias = Some(alias);
                }
            })
            .await;
        }
        Ok(attached)
    }

    async fn route(&self, name: &str, spec: &PodSpec, exclusive: bool) -> Result<(), AttachError> {
        let refused = self
            .step(|kernel| {
                let taken = spec.addresses.iter().find(|a| exclusive && kernel.routed(**a, name));
                if let Some(address) = taken {
                    kernel.interfaces.remove(name);
                    return Some(*address);
                }
                if let Some(interface) = kernel.interfaces.get_mut(name) {
                    interface.routes.extend(spec.addresses.iter().copied());
                }
                None
            })
            .await;
        refused.map_or(Ok(()), |address| Err(AttachError::AddressInUse(address)))
    }

    async fn live(&self, name: &str, spec: &PodSpec) {
        self.step(|kernel| {
            if let Some(interface) = kernel.interfaces.get_mut(name) {
                interface.live = spec.addresses.clone();
            }
        })
        .await;
        self.story.allocated(spec.addresses.len());
        let machine = self.machine;
        let container = &spec.container_id;
        self.story.say(format_args!("m{machine}: {container} lives with {:?}", spec.addresses));
    }
}

impl PodKernel for AgentKernel {
    /// The container that has it.
    type Netns = String;

    fn seize(&self) -> Result<(), PodsError> {
        self.kernels.change(self.machine, |kernel| {
            if kernel.lock.strong_count() > 0 && !kernel.lock.ptr_eq(&Arc::downgrade(&self.seat)) {
                return Err(PodsError::Locked {
                    run_dir: "/run/cairn".into(),
                    holder: String::new(),
                });
            }
            kernel.lock = Arc::downgrade(&self.seat);
            Ok(())
        })
    }

    fn read(&self) -> BoxFuture<'static, Result<Found, Error>> {
        let this = self.clone();
        async move {
            let half = this.rules.hold(Rule::AliasFirst);
            let found = this
                .step(|kernel| {
                    if half {
                        kernel.interfaces.retain(|_, i| i.alias.is_some() || !i.routes.is_empty());
                    }
                    let mut attachments = kernel.attachments();
                    attachments.retain(|found| !found.is_half_done());
                    Found { attachments, foreign: kernel.neighbours(), ..Found::default() }
                })
                .await;
            Ok(found)
        }
        .boxed()
    }

    fn attach(
        &self,
        netns: String,
        spec: PodSpec,
        _pod: PodIdentity,
    ) -> BoxFuture<'static, Attachment> {
        let this = self.clone();
        async move {
            let exists = |kernel: &Kernel| kernel.namespaces.contains(&netns);
            if !this.kernels.look(this.machine, exists) {
                let outcome = Err(AttachError::Kernel(Error::Malformed("no such namespace")));
                return Attachment { outcome, remains: false };
            }
            let outcome = this.make(&spec).await;
            let name = pod::host_interface_name(&spec.container_id, &spec.ifname);
            let remains = |kernel: &Kernel| kernel.interfaces.contains_key(&name);
            Attachment { outcome, remains: this.kernels.look(this.machine, remains) }
        }
        .boxed()
    }

    fn detach(&self, ids: Vec<AttachmentId>) -> BoxFuture<'static, Vec<Result<(), Error>>> {
        let this = self.clone();
        async move {
            // The kernel waits for its readers before the devices are gone.
            tokio::time::sleep(this.dice.pick(&[SLOW, DETACH, DETACH, DETACH])).await;
            let mut outcomes = Vec::new();
            for id in ids {
                let name = pod::host_interface_name(&id.container_id, &id.ifname);
                this.step(|kernel| kernel.interfaces.remove(&name)).await;
                outcomes.push(Ok(()));
            }
            outcomes
        }
        .boxed()
    }

    fn check(
        &self,
        _: String,
        expected: Expected,
    ) -> BoxFuture<'static, Result<Result<(), Difference>, Error>> {
        let this = self.clone();
        async move {
            let name = pod::host_interface_name(&expected.container_id, &expected.ifname);
            let there = this.step(|kernel| kernel.interfaces.contains_key(&name)).await;
            Ok(if there { Ok(()) } else { Err(Difference::NoInterface(name)) })
        }
        .boxed()
    }

    fn list(&self, question: Question) -> BoxFuture<'static, Result<Listed, Error>> {
        let this = self.clone();
        async move {
            let listed = this
                .step(|kernel| {
                    let mut incomplete = false;
                    let names: Vec<String> = kernel.interfaces.keys().cloned().collect();
                    for name in names {
                        let Some(interface) = kernel.interfaces.get(&name) else { continue };
                        let recorded = interface.alias.iter().flat_map(|a| a.addresses.clone());
                        let missing: Vec<IpAddr> =
                            recorded.filter(|a| !interface.routes.contains(a)).collect();
                        for address in missing {
                            if question.node_addresses.is_none() || kernel.routed(address, &name) {
                                incomplete = true;
                            } else if let Some(interface) = kernel.interfaces.get_mut(&name) {
                                interface.routes.insert(address);
                            }
                        }
                    }
                    let foreign = kernel.neighbours();
                    let freed = question.foreign.iter().copied();
                    let freed = freed.filter(|a| !foreign.contains(a) && !kernel.routed(*a, ""));
                    Listed {
                        attachments: kernel.attachments(),
                        freed: freed.collect(),
                        foreign,
                        incomplete,
                    }
                })
                .await;
            Ok(listed)
        }
        .boxed()
    }
}

/// What a step of work takes.
const STEP: Duration = Duration::from_millis(2);
/// What the end of a device takes, and at worst.
const DETACH: Duration = Duration::from_millis(30);
const SLOW: Duration = Duration::from_secs(3);
