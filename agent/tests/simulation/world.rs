//! The cluster of a run: machines, the API, the fabric, and the hands that change things.

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::sync::{Arc, LazyLock};
use std::time::Duration;

use cairn_ipam::Rules;
use cairn_lab::apiserver::{ApiServer, Clock, Options, PatchType, Randomness, Snapshot};
use k8s_openapi::jiff::Timestamp;
use serde_json::{Value, json};
use tokio::time::Instant;

use super::controllers::Controllers;
use super::dice::Dice;
use super::fabric::Fabric;
use super::faults::Event;
use super::kernel::{ForeignPod, Kernels};
use super::machine::{GRAIN, Machine, NAMESPACE, Surroundings};
use super::story::Story;

pub const BLOCKS: &str = "ipblocks.cairn.network";
pub const POOLS: &str = "ippools.cairn.network";

/// A server with our kinds, parsed once for all runs.
static TEMPLATE: LazyLock<ApiServer> = LazyLock::new(|| {
    let server = ApiServer::new(Options::default());
    for crd in cairn_api::crds() {
        let crd = serde_json::to_value(crd).expect("a CRD is JSON");
        let crds = "customresourcedefinitions.apiextensions.k8s.io";
        server.create(crds, None, crd).expect("a CRD");
    }
    server
});

/// A cluster.
pub struct World {
    pub around: Surroundings,
    pub server: ApiServer,
    pub controllers: Controllers,
    pub machines: Vec<Machine>,
    pub dice: Dice,
    pub story: Story,
    /// A backup of etcd.
    pub backup: Option<Snapshot>,
    /// An old copy of a machine's disk.
    pub old_disks: BTreeMap<usize, BTreeMap<String, Vec<u8>>>,
    /// Foreign pods: on which machine, and the Pod that says so.
    pub foreign: Vec<(usize, IpAddr)>,
    /// What may happen, with weights.
    pub mix: Vec<(Event, usize)>,
    /// The first pool: its range and the prefix length of its blocks.
    pub pool: (&'static str, u8),
    /// Until then nobody falls silent: what only its owner knows is being asserted again.
    pub steady_until: Instant,
    pools: u32,
}

/// How a cluster is made.
#[derive(Clone, Debug)]
pub struct Setup {
    pub seed: u64,
    pub rules: Rules,
    pub nodes: usize,
    pub offline: Duration,
    pub cooldown: Duration,
    pub idle_release: Option<Duration>,
    /// Some pods ask for an address by name.
    pub fixed: bool,
    pub mix: Vec<(Event, usize)>,
    pub pool: (&'static str, u8),
}

impl World {
    /// A cluster without machines that run, and without pools.
    pub fn new(setup: &Setup) -> World {
        let (began, dice) = (Instant::now(), Dice::new(setup.seed ^ 0x5eed));
        let epoch: Timestamp = "2026-01-01T00:00:00Z".parse().expect("a time");
        let server = TEMPLATE.fork(Options {
            clock: Clock::new(move || epoch + began.elapsed()),
            randomness: Randomness::Seeded(setup.seed),
            ..Options::default()
        });
        let story = Story::new();
        let (kernels, fabric) = (Kernels::new(story.clone()), Fabric::default());
        let around = Surroundings {
            server: server.clone(),
            kernels,
            fabric: fabric.clone(),
            story: story.clone(),
            rules: setup.rules,
            offline: setup.offline,
            idle_release: setup.idle_release,
            cooldown: setup.cooldown,
            fixed: setup.fixed,
        };
        tokio::spawn(fabric.run(STALE_MAX));
        let machines = (0..setup.nodes)
            .map(|id| Machine::new(id, &format!("n{id}"), around.clone(), &dice))
            .collect();
        let world = World {
            around,
            server,
            controllers: Controllers::default(),
            machines,
            dice,
            story,
            backup: None,
            old_disks: BTreeMap::new(),
            foreign: Vec::new(),
            mix: setup.mix.clone(),
            pool: setup.pool,
            steady_until: began,
            pools: 0,
        };
        world.create("namespaces", json!({"metadata": {"name": NAMESPACE}}));
        let restart = json!({"enabled": true, "restartTimeSecs": STALE_MAX.as_secs()});
        world.create(
            "bgpconfigurations.cairn.network",
            json!({
                "apiVersion": "cairn.network/v1alpha1", "kind": "BGPConfiguration",
                "metadata": {"name": "default"}, "spec": {"gracefulRestart": restart},
            }),
        );
        world
    }

    /// Lets time pass.
    pub async fn pass(&self, time: Duration) {
        let end = Instant::now() + time;
        while Instant::now() < end {
            tokio::time::sleep_until(end.min(Instant::now() + GRAIN)).await;
            self.give_up_the_silent();
            self.control();
        }
        self.server.collect_garbage();
    }

    fn create(&self, resource: &str, object: Value) {
        if let Err(error) = self.server.create(resource, None, object) {
            self.story.say(format_args!("cannot create in {resource}: {error}"));
        }
    }

    /// Kubelet registers the machine, or writes which machine it is.
    pub fn register(&self, machine: &Machine) {
        let name = &machine.node;
        if self.server.get("nodes", None, name).is_err() {
            self.story.say(format_args!("Node {name} is created by m{}", machine.id));
            self.create(
                "nodes",
                json!({"apiVersion": "v1", "kind": "Node", "metadata": {"name": name}}),
            );
            self.create(
                "bgpnodes.cairn.network",
                json!({
                    "apiVersion": "cairn.network/v1alpha1", "kind": "BGPNode",
                    "metadata": {"name": name},
                    "spec": {
                        "addresses": [machine.address().to_string()], "asn": 64512,
                        "routerID": machine.address().to_string(),
                    },
                }),
            );
        }
        let boot_id = machine.boot_id();
        let status = json!({"status": {
            "addresses": [{"type": "InternalIP", "address": machine.address().to_string()}],
            "nodeInfo": {
                "architecture": "", "bootID": boot_id, "containerRuntimeVersion": "",
                "kernelVersion": "", "kubeProxyVersion": "", "kubeletVersion": "",
                "machineID": "", "operatingSystem": "", "osImage": "", "systemUUID": "",
            },
        }});
        if let Err(error) = self.server.patch_status("nodes", None, name, &status) {
            self.story.say(format_args!("cannot write Node {name}: {error}"));
        }
    }

    /// Kubelets whose API answers say which machine they are on.
    pub fn heartbeats(&mut self) {
        self.give_up_the_silent();
        for machine in self.machines.iter().filter(|machine| machine.is_on()) {
            if !machine.is_silent() {
                machine.end_given_up();
            }
        }
        for machine in self.machines.iter().filter(|machine| machine.is_on()) {
            let boot_id = self.boot_id_of(&machine.node);
            let is_heard = |machine: &Machine| machine.is_on() && !machine.way.condition().cut;
            let others = self.machines.iter().any(|other| {
                other.id != machine.id && is_heard(other) && other.node == machine.node
            });
            if is_heard(machine) && !others && boot_id.is_some_and(|id| id != machine.boot_id()) {
                self.register(machine);
            }
        }
    }

    /// The pods of a machine that is silent for so long that the leader may return its blocks, and
    /// whose Node was deleted, are beyond what anybody can know.
    fn give_up_the_silent(&self) {
        for machine in self.machines.iter().filter(|machine| machine.is_on()) {
            let is_beyond = machine.is_beyond_knowledge();
            if is_beyond && self.boot_id_of(&machine.node) != Some(machine.boot_id()) {
                self.around.kernels.give_up(machine.id);
            }
        }
    }

    /// Nobody falls silent until every owner has had the time to assert what is its own.
    fn stay_steady(&mut self) {
        self.steady_until = Instant::now() + STEADY;
    }

    /// Whether every machine with pods is heard of, so that what the API forgets is not lost.
    pub fn is_steady(&self) -> bool {
        let mut on = self.machines.iter().filter(|machine| machine.is_on());
        on.all(|machine| {
            !machine.agents().is_empty()
                && !machine.way.condition().cut
                && !self.around.fabric.is_cut(machine.id)
        })
    }

    fn boot_id_of(&self, node: &str) -> Option<String> {
        let node = self.server.get("nodes", None, node).ok()?;
        Some(node.pointer("/status/nodeInfo/bootID")?.as_str().unwrap_or_default().to_owned())
    }

    /// Boots a machine and registers it.
    pub fn start(&self, machine: usize) {
        self.machines[machine].boot();
        if !self.machines[machine].way.condition().cut {
            self.register(&self.machines[machine]);
        }
    }

    /// `kubectl delete node`.
    pub fn delete_node(&self, name: &str) {
        self.story.say(format_args!("Node {name} is deleted"));
        let _ = self.server.delete("nodes", None, name);
        let _ = self.server.delete("bgpnodes.cairn.network", None, name);
    }

    /// A new pool, under a new name.
    pub fn create_pool(&mut self, cidr: &str, block_size: u8) -> String {
        self.pools += 1;
        let name = format!("p{}", self.pools);
        self.put_pool(&name, cidr, block_size);
        name
    }

    pub fn put_pool(&self, name: &str, cidr: &str, block_size: u8) {
        self.story.say(format_args!("IPPool {name} is created: {cidr} in /{block_size}"));
        self.create(
            POOLS,
            json!({
                "apiVersion": "cairn.network/v1alpha1", "kind": "IPPool",
                "metadata": {"name": name}, "spec": {"cidr": cidr, "blockSize": block_size},
            }),
        );
    }

    pub fn delete_pool(&self, name: &str) {
        self.story.say(format_args!("IPPool {name} is deleted"));
        let _ = self.server.delete(POOLS, None, name);
    }

    pub fn pools(&self) -> Vec<Value> {
        self.server.list(POOLS, None, "").expect("pools")
    }

    pub fn blocks(&self) -> Vec<Value> {
        self.server.list(BLOCKS, None, "").expect("blocks")
    }

    /// `kubectl delete ipblock`, with the finalizers removed when `force`.
    pub fn delete_block(&mut self, name: &str, force: bool) {
        // By force an API forgets an owner, who has to be heard otherwise.
        let force = force && self.is_steady();
        if force {
            self.stay_steady();
        }
        let how = if force { "is deleted by force" } else { "is deleted" };
        self.story.say(format_args!("IPBlock {name} {how}"));
        match force {
            true => self.remove_block(name),
            false => drop(self.server.delete(BLOCKS, None, name)),
        }
    }

    /// Takes a block away, whatever holds it.
    pub fn remove_block(&self, name: &str) {
        let _ = self.server.delete(BLOCKS, None, name);
        let bare = json!({"metadata": {"finalizers": []}});
        let _ = self.server.patch(BLOCKS, None, name, PatchType::Merge, &bare);
    }

    /// Another plugin's pod begins on a machine.
    pub fn start_foreign(&mut self, machine: usize, address: IpAddr, how: ForeignPod) {
        self.story.say(format_args!("m{machine}: another plugin's pod has {address} ({how:?})"));
        self.around.kernels.change(machine, |kernel| kernel.foreign.insert(address, how));
        self.machines[machine].foreign_changed();
        self.foreign.push((machine, address));
        self.show_foreign(machine, address);
    }

    /// Kubelet shows another plugin's pod to the API.
    fn show_foreign(&self, machine: usize, address: IpAddr) {
        let name = format!("foreign-{}", address.to_string().replace(['.', ':'], "-"));
        let pod = json!({
            "apiVersion": "v1", "kind": "Pod",
            "metadata": {"name": name, "namespace": "default"},
            "spec": {
                "nodeName": self.machines[machine].node,
                "containers": [{"name": "c", "image": "i"}],
            },
        });
        let _ = self.server.create("pods", Some("default"), pod);
        let status = json!({"status": {
            "phase": "Running", "podIP": address.to_string(),
            "podIPs": [{"ip": address.to_string()}],
        }});
        let _ = self.server.patch_status("pods", Some("default"), &name, &status);
    }

    /// Every foreign pod ends.
    pub fn end_foreign(&mut self) {
        for (machine, address) in std::mem::take(&mut self.foreign) {
            self.around.kernels.change(machine, |kernel| kernel.foreign.remove(&address));
            self.machines[machine].foreign_changed();
            let name = format!("foreign-{}", address.to_string().replace(['.', ':'], "-"));
            let _ = self.server.delete("pods", Some("default"), &name);
        }
    }

    /// `etcdctl snapshot save`.
    pub fn back_up(&mut self) {
        self.story.say(format_args!("etcd is backed up at {}", self.server.revision()));
        self.backup = Some(self.server.snapshot());
    }

    /// etcd is restored, if there is a backup. It takes a while, in which nobody reaches the API.
    pub async fn restore(&mut self) {
        let Some(backup) = self.backup.clone().filter(|_| self.is_steady()) else { return };
        self.stay_steady();
        match self.dice.one_in(2) {
            true => self.server.restore_raised(&backup, RAISED_BY),
            false => self.server.restore(&backup),
        }
        self.story.say(format_args!("etcd is restored to {}", self.server.revision()));
        // What no controller would have forgotten: kubelets write their Nodes and other plugins' pods
        // anew.
        for (machine, address) in &self.foreign {
            self.show_foreign(*machine, *address);
        }
        for machine in self.machines.iter().filter(|machine| machine.is_on()) {
            if !machine.way.condition().cut
                && self.server.get("nodes", None, &machine.node).is_err()
            {
                self.register(machine);
            }
        }
    }

    /// Machines with the name of another.
    pub fn add_machine(&mut self, node: &str) -> usize {
        let id = self.machines.len();
        self.machines.push(Machine::new(id, node, self.around.clone(), &self.dice));
        id
    }

    /// Whether a node agent leads.
    pub fn problems(&self) -> Vec<String> {
        let machines = self.machines.iter().flat_map(|machine| {
            let agents = machine.agents();
            agents.into_iter().flat_map(move |agent| {
                let held = Arc::clone(&agent.holdings.borrow());
                let problems = held.problems.iter();
                problems.map(|p| format!("m{}: {p}", machine.id)).collect::<Vec<_>>()
            })
        });
        machines.collect()
    }
}

/// What a restore raises numbers by, if it does (`etcdutl snapshot restore --bump-revision`).
const RAISED_BY: u64 = 1_000_000;
/// How long owners have to assert blocks that the API has forgotten.
const STEADY: Duration = Duration::from_secs(60);
/// How long routes of a speaker that is gone are kept (graceful restart).
pub const STALE_MAX: Duration = Duration::from_secs(12);
