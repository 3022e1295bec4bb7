//! What happens to a cluster: ordinary days and bad ones, as the dice fall.

use std::net::{IpAddr, Ipv4Addr};
use std::time::Duration;

use serde_json::Value;
use tokio::time::Instant;

use super::kernel::ForeignPod;
use super::machine::Machine;
use super::world::World;

/// What may happen.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Event {
    StartPods,
    ShortPods,
    EndPod,
    UnknownDel,
    AgentRestarts,
    AgentDiesAtStep,
    SecondAgent,
    Boot,
    PowerOff,
    NodeDeleted,
    MachineReplaced,
    ApiCut,
    ApiMended,
    FabricCut,
    AllCut,
    BadWay,
    Lag,
    DiskDamaged,
    DiskOld,
    Restore,
    BlockDeleted,
    PoolsChange,
    AliasCleared,
    ForeignStarts,
    ForeignEnds,
    Drain,
}

impl Event {
    /// Whether it can keep a machine from being heard.
    fn silences(self) -> bool {
        use Event::*;
        matches!(
            self,
            AgentRestarts | AgentDiesAtStep | ApiCut | FabricCut | AllCut | BadWay | Lag | Restore
        )
    }
}

/// How often what happens on an ordinary bad day.
pub const ORDINARY: [(Event, usize); 26] = [
    (Event::StartPods, 40),
    (Event::ShortPods, 14),
    (Event::EndPod, 18),
    (Event::UnknownDel, 3),
    (Event::AgentRestarts, 4),
    (Event::AgentDiesAtStep, 6),
    (Event::SecondAgent, 2),
    (Event::Boot, 3),
    (Event::PowerOff, 2),
    (Event::NodeDeleted, 2),
    (Event::MachineReplaced, 2),
    (Event::ApiCut, 4),
    (Event::ApiMended, 4),
    (Event::FabricCut, 2),
    (Event::AllCut, 2),
    (Event::BadWay, 3),
    (Event::Lag, 3),
    (Event::DiskDamaged, 2),
    (Event::DiskOld, 2),
    (Event::Restore, 2),
    (Event::BlockDeleted, 2),
    (Event::PoolsChange, 3),
    (Event::AliasCleared, 2),
    (Event::ForeignStarts, 2),
    (Event::ForeignEnds, 1),
    (Event::Drain, 3),
];

impl World {
    /// One event out of `mix`, each as often as its weight says.
    pub async fn event(&mut self, mix: &[(Event, usize)]) {
        let mut roll = self.dice.roll(mix.iter().map(|(_, weight)| weight).sum());
        for (event, weight) in mix {
            match roll.checked_sub(*weight) {
                Some(rest) => roll = rest,
                None => return self.happen(*event).await,
            }
        }
    }

    async fn happen(&mut self, event: Event) {
        let machine = self.dice.roll(self.machines.len());
        let subject = self.machines[machine].clone();
        if Instant::now() < self.steady_until && event.silences() {
            return;
        }
        self.story.count(format!("{event:?}"));
        match event {
            Event::StartPods => self.start_pods(),
            Event::ShortPods => {
                (0..4).for_each(|_| subject.start_short_pods(40 + self.dice.roll(80)))
            }
            Event::EndPod => self.end_some_pod(),
            Event::UnknownDel => subject.del_unknown(),
            Event::AgentRestarts => {
                subject.kill_agents();
                self.pass(self.dice.millis(10, 20_000)).await;
                subject.start_agent();
            }
            Event::AgentDiesAtStep => {
                subject.light_fuse(self.dice.roll(30));
                self.pass(self.dice.millis(10, 20_000)).await;
                if subject.agents().is_empty() {
                    subject.start_agent();
                }
            }
            Event::SecondAgent => subject.start_agent(),
            Event::Boot => self.start(machine),
            Event::PowerOff => {
                subject.power_off();
                if self.dice.one_in(2) {
                    self.delete_node(&subject.node);
                }
            }
            Event::NodeDeleted => {
                self.delete_node(&subject.node);
                if self.dice.one_in(2) {
                    self.pass(self.dice.millis(10, 40_000)).await;
                    if subject.is_on() && !subject.way.condition().cut {
                        self.register(&subject);
                    }
                }
            }
            Event::MachineReplaced => self.replace_machine(machine).await,
            Event::ApiCut => {
                self.story.say(format_args!("m{machine}: no way to the API"));
                subject.way.cut();
            }
            Event::ApiMended => {
                self.story.say(format_args!("m{machine}: the way to the API is whole"));
                subject.way.mend();
            }
            Event::FabricCut => {
                let cut = !self.around.fabric.is_cut(machine);
                self.story.say(format_args!("m{machine}: cut off from the fabric: {cut}"));
                self.around.fabric.set_cut(machine, cut);
            }
            Event::AllCut => {
                self.story.say(format_args!("m{machine}: cut off from everything"));
                subject.way.cut();
                self.around.fabric.set_cut(machine, true);
            }
            Event::BadWay => {
                subject.way.condition().fault_in = self.dice.pick(&[3, 8, 20]);
                self.story.say(format_args!("m{machine}: a bad way to the API"));
            }
            Event::Lag => {
                let until = Instant::now() + self.dice.millis(1_000, 60_000);
                subject.way.condition().lag = Some((self.server.revision(), until));
                self.story.say(format_args!("m{machine}: the server lags from now on"));
            }
            Event::DiskDamaged => subject.damage_disk(),
            Event::DiskOld => match self.old_disks.remove(&machine) {
                Some(disk) => {
                    subject.kill_agents();
                    subject.set_disk(disk);
                    self.story.say(format_args!("m{machine}: the disk is an old one"));
                    subject.start_agent();
                }
                None => drop(self.old_disks.insert(machine, subject.disk())),
            },
            Event::Restore => match self.backup.is_some() {
                true => self.restore().await,
                false => self.back_up(),
            },
            Event::BlockDeleted => self.delete_some_block(),
            Event::PoolsChange => self.change_pools().await,
            Event::AliasCleared => {
                subject.clear_alias();
                subject.kill_agents();
                subject.start_agent();
            }
            Event::ForeignStarts => self.start_some_foreign(machine),
            Event::ForeignEnds => self.end_foreign(),
            Event::Drain => self.drain(machine).await,
        }
    }

    pub fn start_pods(&self) {
        let on: Vec<_> = self.machines.iter().filter(|machine| machine.is_on()).collect();
        if on.is_empty() {
            return;
        }
        let machine = on[self.dice.roll(on.len())];
        for _ in 0..1 + self.dice.roll(3) {
            machine.start_pod();
        }
    }

    fn end_some_pod(&self) {
        let machine = &self.machines[self.dice.roll(self.machines.len())];
        let running = machine.running();
        if !running.is_empty() {
            let with_del = !self.dice.one_in(6);
            machine.end_pod(self.dice.pick(&running), with_del);
        }
    }

    /// Another machine registers under the name of one that may live on.
    async fn replace_machine(&mut self, machine: usize) {
        if self.machines.len() > MACHINES_MAX {
            return;
        }
        let old = self.machines[machine].clone();
        if self.dice.one_in(2) {
            self.delete_node(&old.node);
        }
        let new = self.add_machine(&old.node);
        self.story.say(format_args!("m{new} takes the name of m{machine}"));
        self.start(new);
        if self.dice.one_in(2) {
            self.pass(self.dice.millis(10, 30_000)).await;
            old.power_off();
        }
    }

    fn delete_some_block(&mut self) {
        let blocks = self.blocks();
        if !blocks.is_empty() {
            let block = &blocks[self.dice.roll(blocks.len())];
            let force = self.dice.one_in(2);
            self.delete_block(name_of(block), force);
        }
    }

    /// Pools come, go, overlap, and come back with another block size.
    async fn change_pools(&mut self) {
        let pools = self.pools();
        match self.dice.roll(4) {
            0 if pools.len() < POOLS_MAX => {
                self.create_pool("10.244.0.0/25", 30);
            }
            1 if pools.len() < POOLS_MAX => {
                // Two in one second.
                self.create_pool("10.245.0.0/27", 29);
                self.create_pool("10.245.0.0/28", 30);
            }
            _ if !pools.is_empty() => {
                let pool = &pools[self.dice.roll(pools.len())];
                let (name, cidr) = (name_of(pool).to_owned(), pool["spec"]["cidr"].clone());
                self.delete_pool(&name);
                self.pass(self.dice.millis(10, 30_000)).await;
                if self.server.get(super::world::POOLS, None, &name).is_err() {
                    let size = self.dice.pick(&[28, 29, 30]);
                    self.put_pool(&name, cidr.as_str().unwrap_or_default(), size);
                }
            }
            _ => drop(self.create_pool("10.244.0.0/26", 29)),
        }
    }

    fn start_some_foreign(&mut self, machine: usize) {
        if !self.machines[machine].is_on() {
            return;
        }
        // One that nothing has now: the other plugin looks, too.
        let address = IpAddr::V4(Ipv4Addr::new(10, 244, 0, self.dice.roll(64) as u8));
        let kernels = &self.around.kernels;
        let taken =
            (0..self.machines.len()).any(|id| kernels.look(id, |kernel| kernel.names(address)));
        // Only where Cairn's own agent can know of it: in a block in which a pod of this machine lives,
        // which is nobody else's then. Elsewhere nothing but the leader's look at a new pool helps.
        let node = &self.machines[machine].node;
        let own = self.blocks().iter().any(|block| {
            let cidr = block["spec"]["cidr"].as_str().and_then(|c| c.parse::<ipnet::IpNet>().ok());
            let cidr = cidr.filter(|cidr| cidr.contains(&address));
            block["spec"]["node"]["name"].as_str() == Some(node)
                && cidr.is_some_and(|cidr| kernels.look(machine, |kernel| kernel.lives_in(cidr)))
        });
        if own && !taken {
            let how = self.dice.pick(&[ForeignPod::Route, ForeignPod::Neighbour]);
            self.start_foreign(machine, address, how);
        }
    }

    /// `kubectl drain`, and the machine goes.
    async fn drain(&mut self, machine: usize) {
        let subject = self.machines[machine].clone();
        self.story.say(format_args!("m{machine} is drained"));
        for container in subject.running() {
            subject.end_pod(container, true);
        }
        self.pass(self.dice.millis(1_000, 15_000)).await;
        if self.dice.one_in(2) {
            self.delete_node(&subject.node);
            subject.power_off();
        }
    }

    /// Every fault ends, every machine that has a name of its own is on.
    pub fn heal(&mut self) {
        self.story.say("all faults end");
        self.end_foreign();
        let mut names = std::collections::BTreeSet::new();
        for machine in self.machines.iter().rev() {
            machine.way.mend();
            self.around.fabric.set_cut(machine.id, false);
            if !names.insert(machine.node.clone()) {
                machine.power_off();
                machine.forget_pods();
                continue;
            }
            if !machine.is_on() {
                machine.boot();
            } else if machine.agents().is_empty() {
                machine.start_agent();
            }
            self.register(machine);
        }
    }

    /// After the faults: whatever can get an address gets one, and nothing is orphaned.
    pub async fn recover(&mut self) {
        self.heal();
        for pool in self.pools() {
            self.delete_pool(name_of(&pool));
        }
        // Longer than the fence of whoever is gone, the stale time, and a leader's election.
        self.wait(self.around.offline * 4 + PATIENCE, |world| {
            world.end_pods();
            world.pools().is_empty() && world.blocks().is_empty()
        })
        .await;
        let left: Vec<String> = self.blocks().iter().map(|b| name_of(b).to_owned()).collect();
        if !left.is_empty() || !self.pools().is_empty() {
            let pools = self.pools().len();
            let problems = self.problems();
            return self.story.violate(format_args!(
                "no pod is left and every pool is deleted, but {pools} pools and the blocks {left:?} \
                 stay: {problems:#?}"
            ));
        }
        // So large that no day fills it.
        self.put_pool("fresh", "10.246.0.0/20", 28);
        let on = |world: &World| -> Vec<_> {
            world.machines.iter().filter(|machine| machine.is_on()).cloned().collect()
        };
        self.wait(PATIENCE, |_| false).await;
        for machine in on(self) {
            machine.start_pod();
        }
        let all = |world: &World| on(world).iter().all(|machine| !machine.running().is_empty());
        self.wait(PATIENCE * 3, all).await;
        for machine in on(self) {
            if machine.running().is_empty() {
                let (refusals, problems) = (machine.refusals(), self.problems());
                self.story.violate(format_args!(
                    "m{} cannot start a pod although all is well: {refusals:?} {problems:#?}",
                    machine.id
                ));
            }
        }
        // What speaks of a pod goes with it.
        self.end_pods();
        self.wait(self.around.offline * 4 + PATIENCE, |world| world.problems().is_empty()).await;
        if !self.problems().is_empty() {
            let problems = self.problems();
            self.story.violate(format_args!("all is well, but: {problems:#?}"));
        }
    }

    fn end_pods(&self) {
        for machine in &self.machines {
            for container in machine.running() {
                machine.end_pod(container, true);
            }
        }
    }

    async fn wait(&mut self, time: Duration, holds: impl Fn(&World) -> bool) {
        let end = Instant::now() + time;
        while Instant::now() < end && !holds(self) && !self.story.is_violated() {
            self.pass(Duration::from_secs(1)).await;
            self.heartbeats();
            let on = self.machines.iter().filter(|machine| machine.is_on());
            on.filter(|machine| machine.agents().is_empty()).for_each(Machine::start_agent);
        }
    }
}

/// An object's name.
pub fn name_of(object: &Value) -> &str {
    object["metadata"]["name"].as_str().unwrap_or_default()
}

const MACHINES_MAX: usize = 6;
const POOLS_MAX: usize = 4;
const PATIENCE: Duration = Duration::from_secs(40);
