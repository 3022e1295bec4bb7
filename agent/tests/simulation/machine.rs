//! A machine: its kernel, its disk, its agent's processes, and the kubelet that starts and ends pods.

use std::collections::BTreeMap;
use std::io;
use std::net::IpAddr;
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::Duration;

use cairn_agent::ipam::disk::Owner;
use cairn_agent::ipam::{self, Clock, Holdings, IpamChannels, IpamOptions, Storage};
use cairn_agent::last_view;
use cairn_agent::pods::{NetworkOptions, PodCalls, PodConfig, PodNetwork, PodsHandle, Supply};
use cairn_agent::readiness::Verdict;
use cairn_agent::watch::{self as watches, WatchOptions};
use cairn_cni::protocol::{AddRequest, DelRequest, Response};
use cairn_cni::{ContainerId, InterfaceName, PodIdentity};
use cairn_ipam::Rules;
use kube::Client;
use serde_json::{Value, json};
use tokio::sync::watch;
use tokio::time::Instant;

use super::api::{Link, Way};
use super::dice::Dice;
use super::fabric::{Ear, Fabric};
use super::kernel::{AgentKernel, Kernels, MachineId};
use super::life::Life;
use super::story::Story;
use super::world::STALE_MAX;
use cairn_lab::apiserver::ApiServer;

/// What all machines share.
#[derive(Clone, Debug)]
pub struct Surroundings {
    pub server: ApiServer,
    pub kernels: Kernels,
    pub fabric: Fabric,
    pub story: Story,
    pub rules: Rules,
    /// The fence.
    pub offline: Duration,
    pub idle_release: Option<Duration>,
    /// How long an address cools.
    pub cooldown: Duration,
    /// Some pods ask for an address by name.
    pub fixed: bool,
}

/// A machine. Clones are the same.
#[derive(Clone, Debug)]
pub struct Machine {
    pub id: MachineId,
    /// The name of the Node that it registers as.
    pub node: String,
    pub around: Surroundings,
    pub way: Way,
    pub dice: Dice,
    state: Arc<Mutex<State>>,
}

#[derive(Debug)]
struct State {
    /// How often it has booted; 0 while it is off.
    boots: u64,
    on: bool,
    booted: Instant,
    disk: BTreeMap<String, Vec<u8>>,
    /// The agents that run; with rule 6 at most one gets anywhere.
    agents: Vec<Agent>,
    containers: u64,
    /// Containers that have, or may have, an interface.
    pods: BTreeMap<String, Pod>,
}

/// A pod's sandbox.
#[derive(Clone, Debug, Default)]
pub struct Pod {
    /// What it was told; empty while it waits.
    pub addresses: Vec<IpAddr>,
    pub ending: bool,
    /// The last refusal.
    pub refused: Option<String>,
}

/// A process of the agent.
#[derive(Clone, Debug)]
pub struct Agent {
    pub life: Life,
    /// Once it serves.
    pub calls: Option<PodCalls<String>>,
    /// As long.
    pods: Option<PodsHandle>,
    pub holdings: watch::Receiver<Arc<Holdings>>,
}

/// The disk of one machine as one process writes it.
#[derive(Debug)]
struct Disk {
    machine: Machine,
    life: Life,
}

impl Storage for Disk {
    fn read(&self, name: &str) -> io::Result<Option<Vec<u8>>> {
        Ok(self.machine.state().disk.get(name).cloned())
    }

    fn write(&self, name: &str, document: &[u8]) -> io::Result<()> {
        if !self.life.takes("disk") {
            return Err(io::Error::other("the process has ended"));
        }
        self.machine.state().disk.insert(name.to_owned(), document.to_owned());
        Ok(())
    }
}

impl Machine {
    pub fn new(id: MachineId, node: &str, around: Surroundings, dice: &Dice) -> Machine {
        let state = State {
            boots: 0,
            on: false,
            booted: Instant::now(),
            disk: BTreeMap::new(),
            agents: Vec::new(),
            containers: 0,
            pods: BTreeMap::new(),
        };
        Machine {
            id,
            node: node.to_owned(),
            around,
            way: Way::default(),
            dice: dice.split(),
            state: Arc::new(Mutex::new(state)),
        }
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().expect("the machine")
    }

    fn say(&self, what: std::fmt::Arguments<'_>) {
        self.around.story.say(format_args!("m{} ({}): {what}", self.id, self.node));
    }

    pub fn is_on(&self) -> bool {
        self.state().on
    }

    /// The boot id of the running kernel.
    pub fn boot_id(&self) -> String {
        format!("boot-m{}-{}", self.id, self.state().boots)
    }

    /// Switches the machine on, or boots it anew.
    pub fn boot(&self) {
        self.power_off();
        {
            let mut state = self.state();
            state.on = true;
            state.boots += 1;
            state.booted = Instant::now();
        }
        self.say(format_args!("boots as {}", self.boot_id()));
        self.forget_pods();
        self.start_agent();
    }

    /// The machine goes dark, with every pod on it.
    pub fn power_off(&self) {
        if !self.is_on() {
            return;
        }
        self.say(format_args!("is off"));
        self.kill_agents();
        let mut state = self.state();
        state.on = false;
        state.pods.clear();
        drop(state);
        self.around.kernels.clear(self.id);
    }

    /// Ends every process of the agent, in whatever it does.
    pub fn kill_agents(&self) {
        let agents = std::mem::take(&mut self.state().agents);
        for agent in agents {
            agent.life.end();
        }
        self.around.fabric.leave(self.id);
    }

    /// The processes of the agent that run.
    pub fn agents(&self) -> Vec<Agent> {
        let mut state = self.state();
        state.agents.retain(|agent| !agent.life.is_over());
        state.agents.clone()
    }

    /// Whether an agent of this machine leads.
    pub fn leads(&self) -> bool {
        self.agents().iter().any(|agent| agent.holdings.borrow().leads)
    }

    /// The agent dies at one of its next steps.
    pub fn light_fuse(&self, steps: usize) {
        if let Some(agent) = self.agents().first() {
            self.say(format_args!("the agent will end in {steps} steps"));
            agent.life.light_fuse(steps);
        }
    }

    /// Damages what is on the disk.
    pub fn damage_disk(&self) {
        let how = self.dice.roll(2);
        let mut state = self.state();
        match how {
            0 => state.disk.clear(),
            _ => state.disk.values_mut().for_each(|document| document.truncate(document.len() / 2)),
        }
        drop(state);
        self.say(format_args!("the disk view is {}", ["lost", "cut short"][how]));
    }

    /// What is on the disk, to be put back when it is old.
    pub fn disk(&self) -> BTreeMap<String, Vec<u8>> {
        self.state().disk.clone()
    }

    pub fn set_disk(&self, disk: BTreeMap<String, Vec<u8>>) {
        self.state().disk = disk;
    }

    /// Starts a process of the agent beside those that run.
    pub fn start_agent(&self) {
        if !self.is_on() {
            return;
        }
        let name = format!("m{}", self.id);
        let life = Life::new(name, self.around.story.clone());
        let (told, holdings) = watch::channel(Arc::new(Holdings::default()));
        let agent = Agent { life: life.clone(), calls: None, pods: None, holdings };
        self.state().agents.push(agent);
        let machine = self.clone();
        tokio::spawn(async move {
            tokio::select! {
                biased;
                () = life.ended() => {}
                () = machine.serve(life.clone(), told) => {}
            }
            if machine.agents().is_empty() {
                machine.around.fabric.leave(machine.id);
            }
        });
    }

    fn clock(&self) -> Clock {
        let booted = self.state().booted;
        Clock::new(move || UPTIME + booted.elapsed())
    }

    /// The agent's process.
    async fn serve(&self, life: Life, told: watch::Sender<Arc<Holdings>>) {
        let around = &self.around;
        let kernel = AgentKernel {
            machine: self.id,
            kernels: around.kernels.clone(),
            life: life.clone(),
            rules: around.rules,
            story: around.story.clone(),
            dice: self.dice.split(),
            seat: Arc::new(()),
        };
        let options = NetworkOptions {
            cooldown: around.cooldown,
            address_wait: ADDRESS_WAIT,
            announcement_wait: Duration::from_secs(1),
            clock: self.clock(),
            rules: around.rules,
        };
        let (pods, calls, network) = match PodNetwork::start(kernel, options).await {
            Ok(started) => started,
            Err(error) => {
                self.say(format_args!("an agent does not start: {error}"));
                return life.end();
            }
        };
        self.say(format_args!("an agent starts"));
        let link = Link {
            server: around.server.clone(),
            way: self.way.clone(),
            life: life.clone(),
            dice: self.dice.split(),
            story: around.story.clone(),
            name: format!("m{}", self.id),
            node: self.node.clone(),
        };
        let client = Client::new(link, "default");
        let relist = watch::Sender::new(0);
        let storage: Arc<dyn Storage> =
            Arc::new(Disk { machine: self.clone(), life: life.clone() });
        let owner = Owner { node: self.node.clone(), boot_id: self.boot_id(), rules: around.rules };
        let view = watches::start(
            &client,
            WatchOptions {
                node: self.node.clone(),
                namespace: NAMESPACE.to_owned(),
                relist: relist.subscribe(),
                restored: last_view::read(storage.as_ref(), &owner),
                rules: around.rules,
            },
        );
        let kept = last_view::keep(view.clone(), Arc::clone(&storage), owner);
        let ipam_options = IpamOptions {
            node: self.node.clone(),
            boot_id: self.boot_id(),
            namespace: NAMESPACE.to_owned(),
            offline: around.offline,
            idle_release: around.idle_release,
            rules: around.rules,
            clock: self.clock(),
        };
        let (mut holdings, mut views) = (told.subscribe(), view.clone());
        let channels = IpamChannels {
            view,
            usage: pods.usage(),
            routes: around.fabric.join(self.id, &self.node),
            witness: Arc::new(Ear { fabric: around.fabric.clone(), machine: self.id }),
            storage,
            relist,
            drain: watch::channel(Default::default()).1,
            holdings: told,
        };
        pods.set_readiness(&Verdict::Ready);
        pods.set_config(PodConfig { node_addresses: vec![self.address()], mtu: 1500 });
        if let Some(agent) = self.state().agents.iter_mut().find(|a| a.life.is(&life)) {
            (agent.calls, agent.pods) = (Some(calls), Some(pods.clone()));
        }
        self.hear_of_foreign();
        let glue = async {
            let (mut knows_cluster, mut told) = (false, None);
            loop {
                let held = holdings.borrow_and_update().clone();
                let seen = views.borrow_and_update().clone();
                knows_cluster |= seen.synced || seen.restored;
                if knows_cluster {
                    pods.set_supply(Supply {
                        blocks: held.blocks.clone(),
                        families: held.families.clone(),
                        pools: held.pools.clone(),
                        reserved: held.reserved.clone(),
                        refusals: held.refusals.clone(),
                        namespaces: Arc::clone(&seen.namespaces),
                        ..Supply::default()
                    });
                    if told.as_ref() != Some(&held.announced) {
                        self.say(format_args!("announces {:?}", held.announced));
                        told = Some(held.announced.clone());
                    }
                    around.fabric.announce(self.id, held.announced.clone());
                }
                tokio::select! {
                    biased;
                    changed = holdings.changed() => if changed.is_err() { return },
                    changed = views.changed() => if changed.is_err() { return },
                }
            }
        };
        // The real agent hears of links that go from the kernel.
        let resync = async {
            loop {
                tokio::time::sleep(RESYNC).await;
                pods.resync();
            }
        };
        let ipam = ipam::run(client, ipam_options, channels);
        tokio::join!(ipam, network.run(), glue, resync, kept);
    }

    /// The machine's own address.
    pub fn address(&self) -> IpAddr {
        [192, 0, 2, u8::try_from(self.id + 1).unwrap_or(u8::MAX)].into()
    }

    /// The newest agent that serves, if one does.
    fn calls(&self) -> Option<PodCalls<String>> {
        let agents = self.agents();
        let serving: Vec<_> = agents.into_iter().filter_map(|agent| agent.calls).collect();
        // With two agents either may hold the socket.
        (!serving.is_empty()).then(|| self.dice.pick(&serving))
    }

    /// Starts a pod: ADD, again with a fresh sandbox while it is refused.
    pub fn start_pod(&self) {
        if !self.is_on() {
            return;
        }
        let machine = self.clone();
        let boot = self.state().boots;
        tokio::spawn(async move {
            for _ in 0..ADD_ATTEMPTS {
                if !machine.is_booted(boot) {
                    return;
                }
                let container = machine.new_container();
                if machine.add(&container, boot).await {
                    return;
                }
                machine.del(&container, boot).await;
                let pause = machine.dice.millis(500, 4_000);
                tokio::time::sleep(pause).await;
            }
        });
    }

    fn is_booted(&self, boot: u64) -> bool {
        let state = self.state();
        state.on && state.boots == boot
    }

    fn new_container(&self) -> String {
        let (id, mut state) = (self.id, self.state());
        state.containers += 1;
        let container = format!("m{id}b{}c{}", state.boots, state.containers);
        state.pods.insert(container.clone(), Pod::default());
        drop(state);
        self.around.kernels.change(id, |kernel| kernel.namespaces.insert(container.clone()));
        let pod = json!({
            "apiVersion": "v1", "kind": "Pod",
            "metadata": {"name": container, "namespace": "default", "labels": {"machine": id.to_string()}},
            "spec": {"nodeName": self.node, "containers": [{"name": "c", "image": "i"}]},
        });
        let _ = self.around.server.create("pods", Some("default"), pod);
        container
    }

    /// The Pod that the API shows of a sandbox goes.
    fn forget_pod(&self, container: &str) {
        let _ = self.around.server.delete("pods", Some("default"), container);
    }

    /// No pod of before runs on this machine any more.
    pub fn forget_pods(&self) {
        let label = format!("machine={}", self.id);
        for pod in self.around.server.list("pods", None, &label).unwrap_or_default() {
            self.forget_pod(pod["metadata"]["name"].as_str().unwrap_or_default());
        }
    }

    /// Kubelet tells the API a pod's addresses, if it reaches it.
    fn show_pod(&self, container: &str, addresses: &[IpAddr]) {
        if self.way.condition().cut {
            return;
        }
        let ips: Vec<Value> = addresses.iter().map(|ip| json!({"ip": ip.to_string()})).collect();
        let first = addresses.first().map(IpAddr::to_string);
        let status = json!({"status": {"phase": "Running", "podIP": first, "podIPs": ips}});
        let _ = self.around.server.patch_status("pods", Some("default"), container, &status);
    }

    /// Kubelet tells the API the addresses that it could not tell when its way there was cut.
    pub fn show_pods(&self) {
        let state = self.state();
        for (container, pod) in state.pods.iter().filter(|(_, pod)| !pod.addresses.is_empty()) {
            let shown = self.around.server.get("pods", Some("default"), container);
            if shown.is_ok_and(|shown| shown["status"]["podIP"].is_null()) {
                self.show_pod(container, &pod.addresses);
            }
        }
    }

    /// One ADD; whether the pod runs.
    async fn add(&self, container: &str, boot: u64) -> bool {
        let Some(calls) = self.calls() else { return false };
        let request = AddRequest {
            container_id: ContainerId::parse(container).expect("an id"),
            ifname: InterfaceName::parse("eth0").expect("a name"),
            network: "cairn".to_owned(),
            pod: PodIdentity::parse(Some("default"), Some(container), None).expect("a pod"),
            annotations: Some(self.annotations()),
            ips: Vec::new(),
            mac: None,
        };
        let asked = calls.add(request, container.to_owned());
        let answer = tokio::time::timeout(CNI_PATIENCE, asked).await;
        if !self.is_booted(boot) {
            return true;
        }
        let mut state = self.state();
        let Some(pod) = state.pods.get_mut(container) else { return true };
        match answer {
            Ok(Response::Added(added)) => {
                pod.addresses = added.addresses.iter().map(|a| a.address).collect();
                self.show_pod(container, &pod.addresses);
                // Told to end while it began.
                !pod.ending
            }
            Ok(Response::Failed(failure)) => {
                pod.refused = Some(failure.msg.clone());
                drop(state);
                self.say(format_args!("{container} is refused: {}", failure.msg));
                false
            }
            Ok(Response::Done) | Err(_) => false,
        }
    }

    /// A pod's annotations: none, or one that asks for an address by name.
    fn annotations(&self) -> BTreeMap<String, String> {
        if !self.around.fixed || !self.dice.one_in(FIXED_IN) {
            return BTreeMap::new();
        }
        let address = format!("10.244.0.{}", self.dice.roll(64));
        BTreeMap::from([(cairn_api::ANNOTATION_IPS.to_owned(), address)])
    }

    /// Ends a pod: DEL until it is done, then the namespace goes.
    async fn del(&self, container: &str, boot: u64) {
        if let Some(pod) = self.state().pods.get_mut(container) {
            pod.ending = true;
        }
        for _ in 0..DEL_ATTEMPTS {
            if !self.is_booted(boot) {
                return;
            }
            if let Some(calls) = self.calls() {
                let request = DelRequest {
                    container_id: ContainerId::parse(container).expect("an id"),
                    ifname: InterfaceName::parse("eth0").expect("a name"),
                    network: "cairn".to_owned(),
                };
                let answer = tokio::time::timeout(CNI_PATIENCE, calls.del(request)).await;
                if matches!(answer, Ok(Response::Done)) {
                    break;
                }
            }
            tokio::time::sleep(DEL_PAUSE).await;
        }
        if self.is_booted(boot) {
            self.state().pods.remove(container);
            self.around.kernels.change(self.id, |kernel| kernel.end_namespace(container));
            self.forget_pod(container);
        }
    }

    /// The pods that run, in order.
    pub fn running(&self) -> Vec<String> {
        let state = self.state();
        let pods = state.pods.iter().filter(|(_, pod)| !pod.addresses.is_empty() && !pod.ending);
        pods.map(|(container, _)| container.clone()).collect()
    }

    /// What keeps pods waiting.
    pub fn refusals(&self) -> Vec<String> {
        let state = self.state();
        let waiting = state.pods.iter().filter(|(_, pod)| pod.addresses.is_empty());
        waiting.map(|(container, pod)| format!("{container}: {:?}", pod.refused)).collect()
    }

    /// Ends a running pod, by DEL or by the end of its namespace without one.
    pub fn end_pod(&self, container: String, with_del: bool) {
        let (machine, boot) = (self.clone(), self.state().boots);
        self.say(format_args!("{container} ends{}", if with_del { "" } else { " without a DEL" }));
        if !with_del {
            self.state().pods.remove(&container);
            self.around.kernels.change(self.id, |kernel| kernel.end_namespace(&container));
            return self.forget_pod(&container);
        }
        tokio::spawn(async move { machine.del(&container, boot).await });
    }

    /// Whether neither the API nor the fabric hears of this machine.
    pub fn is_silent(&self) -> bool {
        let cut = self.way.condition().cut && self.around.fabric.is_cut(self.id);
        cut || self.agents().is_empty()
    }

    /// Whether everybody may hold that this machine is gone, if its Node is: for a quarter more than
    /// the promise its Lease was not written, and no speaker holds a route of it any more. One that
    /// reaches the API says nothing there either when the Node is not its own.
    pub fn is_beyond_knowledge(&self) -> bool {
        let wait = (self.around.offline * 5 / 4).max(STALE_MAX);
        let unwritten = self.way.lease_written().is_none_or(|at| at.elapsed() + GRAIN >= wait);
        let unheard = self.around.fabric.connected(self.id);
        unwritten && unheard.is_none_or(|at| at.elapsed() + GRAIN >= STALE_MAX)
    }

    /// Starts pods one after another of which each ends as soon as it runs, until some are refused.
    pub fn start_short_pods(&self, pods: usize) {
        let machine = self.clone();
        let boot = self.state().boots;
        tokio::spawn(async move {
            let mut refused = 0;
            for _ in 0..pods {
                if !machine.is_booted(boot) || refused >= SHORT_REFUSED_MAX {
                    return;
                }
                let container = machine.new_container();
                let runs = machine.add(&container, boot).await;
                machine.del(&container, boot).await;
                if !runs {
                    refused += 1;
                    let pause = machine.dice.millis(1_000, 8_000);
                    tokio::time::sleep(pause).await;
                }
            }
        });
    }

    /// Kubelet ends pods that the cluster has long forgotten.
    pub fn end_given_up(&self) {
        for container in self.around.kernels.end_given_up(self.id) {
            self.end_pod(container, false);
        }
    }

    /// The kernel tells the agents in a moment that others' routes and permanent neighbours changed.
    pub fn foreign_changed(&self) {
        let machine = self.clone();
        tokio::spawn(async move {
            tokio::time::sleep(MONITORED).await;
            machine.hear_of_foreign();
        });
    }

    fn hear_of_foreign(&self) {
        let elsewhere = self.around.kernels.look(self.id, super::kernel::Kernel::elsewhere);
        for pods in self.agents().into_iter().filter_map(|agent| agent.pods) {
            pods.set_elsewhere(elsewhere.clone());
            pods.resync();
        }
    }

    /// A DEL for a container that nobody has heard of.
    pub fn del_unknown(&self) {
        let (machine, boot) = (self.clone(), self.state().boots);
        tokio::spawn(async move { machine.del("unknown", boot).await });
    }

    /// Something flushes the host routes to pods.
    pub fn flush_routes(&self) {
        self.around.kernels.change(self.id, |kernel| {
            kernel.interfaces.values_mut().for_each(|interface| interface.routes.clear());
        });
        self.say(format_args!("the host routes are flushed"));
    }

    /// Somebody clears the alias of a pod's interface.
    pub fn clear_alias(&self) {
        let index = self.dice.next() as usize;
        let cleared = self.around.kernels.change(self.id, |kernel| {
            let count = kernel.interfaces.len().max(1);
            let (name, interface) = kernel.interfaces.iter_mut().nth(index % count)?;
            interface.alias = None;
            Some(name.clone())
        });
        if let Some(name) = cleared {
            self.say(format_args!("the alias of {name} is cleared"));
        }
    }
}

/// How often it is looked who is silent.
pub const GRAIN: Duration = Duration::from_millis(500);
pub const NAMESPACE: &str = "cairn-system";
/// What a clock that counts since boot shows when the machine is up.
const UPTIME: Duration = Duration::from_secs(20);
const ADDRESS_WAIT: Duration = Duration::from_secs(5);
/// The runtime's patience with a plugin.
const CNI_PATIENCE: Duration = Duration::from_secs(30);
const ADD_ATTEMPTS: usize = 6;
/// Refusals after which no more short pods of a series are started.
const SHORT_REFUSED_MAX: usize = 4;
/// One in so many pods asks for a fixed address.
const FIXED_IN: usize = 12;
const DEL_ATTEMPTS: usize = 200;
const DEL_PAUSE: Duration = Duration::from_secs(2);
const RESYNC: Duration = Duration::from_secs(5);
/// How long changes in the kernel are gathered.
const MONITORED: Duration = Duration::from_millis(100);
