//! Paths to the rules of one node: its disk, its kernel, its one agent.

use std::net::IpAddr;
use std::time::Duration;

use ipnet::IpNet;

use super::super::api::Fault;
use super::super::kernel::ForeignPod;
use super::super::world::{STALE_MAX, World};

impl World {
    /// Every pod of a machine ends, as its kubelet asks for it.
    fn end_pods_on(&self, machine: usize) {
        for container in self.machines[machine].running() {
            self.machines[machine].end_pod(container, true);
        }
    }

    /// Every pod ends, and what they held is free again.
    async fn end_round(&mut self) {
        (0..self.machines.len()).for_each(|machine| self.end_pods_on(machine));
        self.go_on(RESYNCED).await;
    }

    /// Every other answer of the API to a machine takes seconds.
    fn slow_down(&self, machine: usize) {
        let mut condition = self.machines[machine].way.condition();
        (condition.fault_in, condition.only) = (2, Some(Fault::Slow));
    }

    /// A machine that is neither of these two.
    fn third(&self, one: usize, other: usize) -> usize {
        let third = (0..self.machines.len()).find(|id| *id != one && *id != other);
        third.expect("three machines")
    }

    /// The addresses of the blocks of a machine's Node.
    fn own_addresses(&self, machine: usize) -> impl Iterator<Item = IpAddr> + use<> {
        let node = self.machines[machine].node.clone();
        let own =
            self.blocks().into_iter().filter(move |block| block["spec"]["node"]["name"] == *node);
        let cidrs = own.filter_map(|block| block["spec"]["cidr"].as_str()?.parse::<IpNet>().ok());
        cidrs.flat_map(|cidr| cidr.hosts())
    }

    /// Whether another plugin on a machine finds nothing that speaks against an address.
    fn is_free(&self, machine: usize, address: IpAddr) -> bool {
        self.around.kernels.look(machine, |kernel| {
            !kernel.foreign.contains_key(&address)
                && !kernel.interfaces.values().any(|interface| interface.routes.contains(&address))
        })
    }
}

/// A machine with pods does not reach the API; its Node is deleted, the leader hears its routes, and
/// the node that takes what is free does not (5). Of a claimer that hears them its own look
/// (`SecondWitness`) keeps the block.
pub async fn only_the_leader_hears_it(world: &mut World) {
    world.calm().await;
    let victim = world.follower();
    let Some(leader) = world.leader() else { return };
    let claimer = world.third(victim, leader);
    world.start_many(victim, 4);
    world.go_on(Duration::from_secs(5)).await;
    world.story.say(format_args!("m{victim}: no way to the API, m{claimer}: none to the fabric"));
    world.machines[victim].way.cut();
    world.around.fabric.set_cut(claimer, true);
    world.delete_node(&world.machines[victim].node.clone());
    world.go_on(world.around.offline * 5 / 4 + Duration::from_secs(30)).await;
    world.start_many(claimer, 12);
    world.go_on(Duration::from_secs(30)).await;
}

/// A machine boots long after its blocks went to others, with its disk as it was (5). Its kubelet says
/// which machine it is, and then the answers of the API take seconds: an agent that knows its Node
/// and not yet its blocks. With the API away altogether the Node that the disk names is another
/// machine (`OneMachine`).
pub async fn boot_with_an_old_disk(world: &mut World) {
    world.calm().await;
    let victim = world.follower();
    world.cut_off(victim);
    world.machines[victim].power_off();
    world.delete_node(&world.machines[victim].node.clone());
    world.go_on(world.around.offline * 5 / 4 + STALE_MAX + Duration::from_secs(25)).await;
    world.start_on_others(victim, 8);
    world.go_on(Duration::from_secs(10)).await;
    world.machines[victim].way.mend();
    world.slow_down(victim);
    world.around.fabric.set_cut(victim, false);
    world.start(victim);
    world.start_many(victim, 4);
    world.go_on(Duration::from_secs(15)).await;
}

/// An agent dies in the middle of an ADD; the next one has to do with other pods before kubelet ends
/// the one that did not come to be (6).
pub async fn agent_dies_in_an_add(world: &mut World) {
    world.calm().await;
    let victim = world.follower();
    for _ in 0..ROUNDS {
        world.start_many(victim, 1);
        world.machines[victim].light_fuse(world.dice.roll(8));
        world.pass(world.dice.millis(20, 500)).await;
        world.machines[victim].kill_agents();
        world.machines[victim].start_agent();
        // Before kubelet tries its DEL again.
        world.pass(Duration::from_millis(100)).await;
        world.start_many(victim, 4);
        world.end_round().await;
    }
}

/// Two agents of one node, of which each knows what it gave itself. A host route of the other's pod
/// refuses an address (`ExclusiveHostRoute`), but not when something has flushed the routes (6).
pub async fn two_agents(world: &mut World) {
    world.calm().await;
    let victim = world.follower();
    world.machines[victim].start_agent();
    world.go_on(RESYNCED).await;
    for _ in 0..ROUNDS {
        world.start_many(victim, 2);
        world.pass(world.dice.millis(50, 500)).await;
        world.machines[victim].flush_routes();
        world.start_many(victim, 2);
        world.pass(world.dice.millis(50, 500)).await;
        world.end_round().await;
    }
}

/// A block goes back as soon as its pods have ended, while the kernel takes its time with their
/// interfaces and another node waits for addresses (7). On the node itself the host route that is
/// still there refuses the address (`ExclusiveHostRoute`).
pub async fn block_goes_with_its_pods(world: &mut World) {
    world.calm().await;
    let victim = world.follower();
    for _ in 0..ROUNDS {
        world.start_many(victim, 8);
        world.go_on(Duration::from_secs(6)).await;
        world.end_pods_on(victim);
        // Until the others hear that nobody announces it any more.
        world.pass(world.dice.millis(600, 1_200)).await;
        world.start_on_others(victim, 8);
        world.go_on(Duration::from_secs(4)).await;
        world.end_round().await;
    }
}

/// Another plugin takes an address that no route leads to, while an ADD that was told the same address
/// is under way (6). Of routes that stand before that the agent hears (`OwnKernel`).
pub async fn another_owner_in_an_add(world: &mut World) {
    world.calm().await;
    let victim = world.follower();
    for _ in 0..ROUNDS {
        let Some(next) = world.own_addresses(victim).find(|a| world.is_free(victim, *a)) else {
            return;
        };
        world.start_many(victim, 1);
        world.pass(world.dice.millis(0, 4)).await;
        if world.is_free(victim, next) {
            world.start_foreign(victim, next, ForeignPod::Route);
        }
        world.go_on(Duration::from_secs(1)).await;
    }
}

/// Something else holds an address of the node's block by a permanent neighbour, which it set while no
/// agent served (8).
pub async fn another_owner_before_the_start(world: &mut World) {
    world.calm().await;
    let victim = world.follower();
    let own: Vec<IpAddr> = world.own_addresses(victim).collect();
    if own.is_empty() {
        return;
    }
    world.machines[victim].kill_agents();
    world.start_foreign(victim, world.dice.pick(&own), ForeignPod::Neighbour);
    world.machines[victim].start_agent();
    world.go_on(Duration::from_secs(1)).await;
    world.start_many(victim, 4);
    world.go_on(Duration::from_secs(10)).await;
}

/// How often a path is walked within one seed.
const ROUNDS: usize = 4;
/// Long enough for kubelet's DEL, and for a look at the kernel after it.
const RESYNCED: Duration = Duration::from_secs(7);
