//! For each safety rule what leads to where its absence shows: a schedule of faults that is still a
//! seed's, or an ordinary day on which some things happen more often.

mod api;
mod node;

use std::collections::BTreeSet;
use std::net::{IpAddr, Ipv4Addr};
use std::time::Duration;

use cairn_ipam::Rule;
use futures::FutureExt;
use futures::future::BoxFuture;
use hyper::Method;
use serde_json::Value;
use tokio::time::Instant;

use super::api::Held;
use super::faults::{Event, ORDINARY, name_of};
use super::kernel::ForeignPod;
use super::world::{STALE_MAX, Setup, World};

/// What leads to a rule.
pub struct Path {
    /// What happens.
    pub scenario: fn(&mut World) -> BoxFuture<'_, ()>,
    /// What happens more often than on an ordinary day, by which factor.
    pub more: &'static [(Event, usize)],
    /// Some pods ask for an address by name.
    pub fixed: bool,
    /// Blocks that hold nothing go back after this.
    pub idle_release: Option<Duration>,
}

impl Path {
    /// Makes `setup` lead there: a small cluster in which addresses are short.
    pub fn lead(&self, setup: &mut Setup) {
        setup.nodes = 3;
        setup.offline = Duration::from_secs(30);
        setup.pool = ("10.244.0.0/28", 30);
        setup.cooldown = Duration::ZERO;
        setup.fixed = self.fixed;
        setup.idle_release = self.idle_release;
        setup.mix = ORDINARY
            .iter()
            .filter(|(event, _)| self.is_ordinary(*event))
            .map(|(event, weight)| {
                let factor = self.more.iter().find(|(more, _)| more == event);
                (*event, weight * factor.map_or(1, |(_, factor)| *factor))
            })
            .collect();
    }

    fn is_ordinary(&self, event: Event) -> bool {
        matches!(event, Event::StartPods | Event::EndPod)
            || self.more.iter().any(|(more, _)| *more == event)
    }
}

/// The path to `rule`.
pub fn path(rule: Rule) -> Path {
    let directed = |scenario| Path { scenario, more: &[], fixed: true, idle_release: None };
    let day = |more, idle_release| Path {
        scenario: bad_day,
        more,
        fixed: true,
        idle_release: Some(Duration::from_secs(idle_release)),
    };
    match rule {
        Rule::VerifyAfterClaim => directed(|world| api::overlapping_pools(world).boxed()),
        Rule::PoolWaitsForBlocks => directed(|world| api::pool_ends_under_pods(world).boxed()),
        Rule::CloseBeforeDelete => Path {
            scenario: |world| api::pod_comes_while_its_block_goes(world).boxed(),
            more: &[],
            fixed: true,
            idle_release: Some(Duration::from_secs(1)),
        },
        Rule::ConsistentReads => directed(|world| api::leader_is_behind(world).boxed()),
        Rule::TakeUpBlocks | Rule::DeletePreconditions => {
            directed(|world| api::agent_returns_during_a_delete(world).boxed())
        }
        Rule::NoticeOldHistory => directed(|world| history_goes_back(world).boxed()),
        Rule::SecondWitness => directed(|world| owner_cut_off_at_restore(world).boxed()),
        // Which address of the block is given when has to be known.
        Rule::ConflictCloses => Path { fixed: false, ..directed(|world| conflict(world).boxed()) },
        Rule::FinalizerWaitsForPods => day(&[(Event::BlockDeleted, 10)], 20),
        Rule::OwnFence => directed(|world| cut_off(world, Wait::Fence).boxed()),
        Rule::LeaderWaits => directed(|world| cut_off(world, Wait::StaleRoutes).boxed()),
        Rule::LeaderLooksForRoutes => {
            directed(|world| node::only_the_leader_hears_it(world).boxed())
        }
        Rule::DiskOfThisBoot => directed(|world| node::boot_with_an_old_disk(world).boxed()),
        Rule::OneMachine => directed(|world| api::two_machines_at_once(world).boxed()),
        Rule::OtherMachineWaits => directed(|world| second_machine(world).boxed()),
        Rule::LeaseAfterFound => directed(|world| first_is_back(world).boxed()),
        Rule::HearFirst => directed(|world| second_is_deaf(world).boxed()),
        Rule::AlarmLasts => directed(|world| deaf_one_restarts_after_restore(world).boxed()),
        Rule::DoubtLasts => directed(|world| second_restarts_in_doubt(world).boxed()),
        Rule::AliasFirst => directed(|world| node::agent_dies_in_an_add(world).boxed()),
        Rule::ExclusiveHostRoute => directed(|world| node::another_owner_in_an_add(world).boxed()),
        Rule::OwnKernel => directed(|world| node::another_owner_before_the_start(world).boxed()),
        Rule::KernelIsRecord => day(&[(Event::AgentRestarts, 10)], 1),
        Rule::OneAgent => directed(|world| node::two_agents(world).boxed()),
        Rule::FreeAfterInterface => Path {
            scenario: |world| node::block_goes_with_its_pods(world).boxed(),
            more: &[],
            fixed: true,
            idle_release: Some(Duration::ZERO),
        },
        Rule::PodsKeepBlocks => directed(|world| agent_gone_for_good(world).boxed()),
        Rule::ForeignAddresses => directed(|world| foreign_addresses(world).boxed()),
    }
}

/// An ordinary day, without an end that is checked.
fn bad_day(world: &mut World) -> BoxFuture<'_, ()> {
    async move {
        world.calm().await;
        let mix = world.mix.clone();
        for _ in 0..EVENTS {
            world.pass(world.dice.millis(10, 2_500)).await;
            world.heartbeats();
            world.event(&mix).await;
            if world.story.is_violated() {
                return;
            }
        }
    }
    .boxed()
}

impl World {
    /// A pool, and every machine on.
    async fn calm(&mut self) {
        self.open_pool();
        self.start_all().await;
    }

    /// The same, with a backup of etcd from before the first claim.
    async fn calm_after_backup(&mut self) {
        self.open_pool();
        self.back_up();
        self.start_all().await;
    }

    fn open_pool(&mut self) {
        let (cidr, block_size) = self.pool;
        self.create_pool(cidr, block_size);
    }

    async fn start_all(&mut self) {
        for machine in 0..self.machines.len() {
            self.start(machine);
        }
        self.go_on(Duration::from_secs(6)).await;
    }

    /// Lets time pass, with what goes on anyway.
    async fn go_on(&mut self, time: Duration) {
        let end = Instant::now() + time;
        while Instant::now() < end && !self.story.is_violated() {
            self.pass(Duration::from_millis(500)).await;
            self.heartbeats();
        }
    }

    /// A machine whose agent does not lead.
    fn follower(&self) -> usize {
        let followers = self.machines.iter().filter(|machine| !machine.leads());
        followers.map(|machine| machine.id).next().unwrap_or(0)
    }

    /// The machine whose agent leads.
    fn leader(&self) -> Option<usize> {
        self.machines.iter().find(|machine| machine.leads()).map(|machine| machine.id)
    }

    /// So many pods, four times.
    async fn start_again_and_again(&mut self, machine: usize, pods: usize) {
        for _ in 0..4 {
            self.start_many(machine, pods);
            self.go_on(Duration::from_secs(3)).await;
        }
    }

    fn start_many(&self, machine: usize, pods: usize) {
        (0..pods).for_each(|_| self.machines[machine].start_pod());
    }

    /// The others take whatever there is.
    fn start_on_others(&self, but: usize, pods: usize) {
        for machine in self.machines.iter().filter(|machine| machine.id != but) {
            (0..pods).for_each(|_| machine.start_pod());
        }
    }

    fn cut_off(&self, machine: usize) {
        self.story.say(format_args!("m{machine}: cut off from everything"));
        self.machines[machine].way.cut();
        self.around.fabric.set_cut(machine, true);
    }
}

/// etcd is restored to before a block was claimed, which its owner holds without a pod (3).
async fn history_goes_back(world: &mut World) {
    let (cidr, block_size) = world.pool;
    world.create_pool(cidr, block_size);
    for machine in 0..world.machines.len() {
        world.register(&world.machines[machine]);
    }
    world.back_up();
    for machine in 0..world.machines.len() {
        world.start(machine);
    }
    world.go_on(Duration::from_secs(10)).await;
    let victim = world.follower();
    world.around.fabric.set_cut(victim, true);
    world.go_on(STALE_MAX + Duration::from_secs(2)).await;
    let backup = world.backup.clone().expect("a backup");
    world.server.restore(&backup);
    world.story.say("etcd is restored");
    for machine in &world.machines {
        world.register(machine);
    }
    world.start_on_others(victim, 8);
    world.go_on(Duration::from_secs(8)).await;
    world.start_many(victim, 4);
    world.go_on(Duration::from_secs(25)).await;
}

/// etcd is restored, and an owner with pods does not reach the API to say what is its own (3).
async fn owner_cut_off_at_restore(world: &mut World) {
    world.calm_after_backup().await;
    let victim = world.follower();
    world.start_many(victim, 4);
    world.go_on(Duration::from_secs(4)).await;
    world.machines[victim].way.cut();
    world.go_on(Duration::from_secs(2)).await;
    let backup = world.backup.clone().expect("a backup");
    world.server.restore(&backup);
    world.story.say("etcd is restored");
    for machine in world.machines.iter().filter(|machine| machine.id != victim) {
        world.register(machine);
    }
    world.go_on(Duration::from_secs(4)).await;
    world.start_on_others(victim, 8);
    world.go_on(Duration::from_secs(30)).await;
}

/// Two nodes hold one block, each with pods in it, and hear of each other late (3).
async fn conflict(world: &mut World) {
    world.calm_after_backup().await;
    let victim = world.follower();
    // One pod, at the third address of its block.
    world.start_many(victim, 3);
    world.go_on(Duration::from_secs(4)).await;
    for container in world.machines[victim].running().into_iter().take(2) {
        world.machines[victim].end_pod(container, true);
    }
    let node = world.machines[victim].node.clone();
    let is_of_victim = |block: &Value| block["spec"]["node"]["name"] == *node;
    let theirs: BTreeSet<String> =
        world.blocks().iter().filter(|b| is_of_victim(b)).map(|b| name_of(b).to_owned()).collect();
    world.cut_off(victim);
    world.go_on(STALE_MAX + Duration::from_secs(3)).await;
    let backup = world.backup.clone().expect("a backup");
    world.server.restore(&backup);
    world.story.say("etcd is restored");
    for machine in world.machines.iter().filter(|machine| machine.id != victim) {
        world.register(machine);
    }
    world.go_on(Duration::from_secs(5)).await;
    // Only until the block is another's: what pods of the victim hold nobody can know while it is cut
    // off from everything and history has forgotten it, so that who goes on can reach their addresses
    // whatever the rules. What is tried is what both give after they hear of each other.
    let is_taken = |world: &World| {
        let others = world.blocks().into_iter().filter(|block| !is_of_victim(block));
        others.into_iter().any(|block| theirs.contains(name_of(&block)))
    };
    for _ in 0..SINGLE_PODS_MAX {
        if is_taken(world) {
            break;
        }
        world.start_on_others(victim, 1);
        world.go_on(Duration::from_secs(1)).await;
    }
    world.machines[victim].way.mend();
    world.around.fabric.set_cut(victim, false);
    world.register(&world.machines[victim]);
    world.go_on(Duration::from_secs(4)).await;
    for _ in 0..4 {
        world.start_many(victim, 1);
        world.start_on_others(victim, 1);
        world.go_on(Duration::from_secs(4)).await;
    }
}

/// How long a machine is cut off before it starts a pod.
enum Wait {
    /// Until the fence and the leader's wait are over.
    Fence,
    /// Until others have dropped its routes.
    StaleRoutes,
}

/// A machine is cut off and runs on; its Node is deleted, others claim, it starts a pod (5).
async fn cut_off(world: &mut World, wait: Wait) {
    world.calm().await;
    let victim = world.follower();
    world.cut_off(victim);
    world.delete_node(&world.machines[victim].node.clone());
    let time = match wait {
        Wait::Fence => world.around.offline * 5 / 4 + STALE_MAX + Duration::from_secs(20),
        Wait::StaleRoutes => STALE_MAX + Duration::from_secs(4),
    };
    world.go_on(time).await;
    for _ in 0..3 {
        world.start_on_others(victim, 4);
        world.go_on(Duration::from_secs(3)).await;
        world.start_many(victim, 2);
        world.go_on(Duration::from_secs(2)).await;
    }
}

/// A machine with a pod that is cut off, and a second one that registers under its name and starts.
async fn second_of_a_name(world: &mut World) -> (usize, usize) {
    world.calm().await;
    let first = world.follower();
    world.start_many(first, 1);
    world.go_on(Duration::from_secs(3)).await;
    world.cut_off(first);
    let second = world.add_machine(&world.machines[first].node.clone());
    world.start(second);
    (first, second)
}

/// A second machine registers under the name of one that lives and is cut off (5).
async fn second_machine(world: &mut World) {
    let (first, second) = second_of_a_name(world).await;
    // A process that ends as soon as it has the Lease leaves one behind that the Lease already names.
    world.pass(world.dice.millis(10, 200)).await;
    world.machines[second].kill_agents();
    world.machines[second].start_agent();
    // Its sessions come up before it uses what it claims.
    world.go_on(Duration::from_secs(4)).await;
    for _ in 0..8 {
        world.start_many(first, 1);
        world.start_many(second, 2);
        world.go_on(Duration::from_secs(3)).await;
    }
}

/// A second machine takes over the name of one that is cut off, and is cut off itself when that one is
/// back, whose fence has stood all the while, and whose next write of its Lease takes long (5).
async fn first_is_back(world: &mut World) {
    let (first, second) = second_of_a_name(world).await;
    // As long as the fence may stand: it claims, and its pods start.
    for _ in 0..3 {
        world.go_on(Duration::from_secs(2)).await;
        world.start_many(second, 1);
    }
    world.go_on(world.dice.millis(500, 1_500)).await;
    world.cut_off(second);
    world.go_on(STALE_MAX + Duration::from_secs(1)).await;
    world.story.say(format_args!("m{first}: is back"));
    world.machines[first].way.hold(LEASES);
    world.register(&world.machines[first]);
    world.machines[first].way.mend();
    world.around.fabric.set_cut(first, false);
    for _ in 0..6 {
        world.start_many(first, 1);
        world.go_on(Duration::from_secs(1)).await;
    }
    world.machines[first].way.let_go(&LEASES);
    for _ in 0..4 {
        world.start_many(first, 1);
        world.go_on(Duration::from_secs(2)).await;
    }
}

/// A machine with pods reaches no API server but the fabric, and a second one takes over its name, which
/// reaches the API server and hears nobody (5).
async fn second_is_deaf(world: &mut World) {
    let second = namesake_of_one_cut_off(world).await;
    world.around.fabric.set_cut(second, true);
    world.start(second);
    world.go_on(world.around.offline * 5 / 4 + Duration::from_secs(4)).await;
    world.start_again_and_again(second, 3).await;
}

/// A machine with pods loses its way to the API; another one of its name, which is still off.
async fn namesake_of_one_cut_off(world: &mut World) -> usize {
    world.calm().await;
    let first = world.follower();
    world.start_many(first, 3);
    world.go_on(Duration::from_secs(3)).await;
    world.story.say(format_args!("m{first}: no way to the API"));
    world.machines[first].way.cut();
    world.add_machine(&world.machines[first].node.clone())
}

/// A second machine hears the first one for its own announcements on their way back, and its agent restarts
/// when the promise of the first is over (5).
async fn second_restarts_in_doubt(world: &mut World) {
    let second = namesake_of_one_cut_off(world).await;
    world.start(second);
    world.go_on(world.around.offline * 5 / 4 + Duration::from_secs(6)).await;
    world.story.say(format_args!("m{second}: its agent restarts"));
    world.machines[second].kill_agents();
    world.go_on(Duration::from_secs(1)).await;
    world.machines[second].start_agent();
    world.start_again_and_again(second, 3).await;
}

/// etcd is restored while the owner of blocks does not reach the API, and a node that hears nobody starts
/// its agent anew (3).
async fn deaf_one_restarts_after_restore(world: &mut World) {
    world.calm_after_backup().await;
    let owner = world.follower();
    let other = (0..world.machines.len()).find(|machine| *machine != owner).unwrap_or(owner);
    world.start_many(owner, 8);
    world.go_on(Duration::from_secs(6)).await;
    world.story.say(format_args!("m{owner}: no way to the API"));
    world.machines[owner].way.cut();
    let backup = world.backup.clone().expect("a backup");
    world.server.restore(&backup);
    world.story.say("etcd is restored");
    for machine in world.machines.iter().filter(|machine| machine.id != owner) {
        world.register(machine);
    }
    // The alarm comes with the next write of the Lease.
    world.go_on(Duration::from_secs(5)).await;
    world.story.say(format_args!("m{other}: hears nobody, its agent restarts"));
    world.around.fabric.set_cut(other, true);
    world.machines[other].kill_agents();
    world.go_on(STALE_MAX + Duration::from_secs(2)).await;
    world.machines[other].start_agent();
    world.start_again_and_again(other, 4).await;
}

/// A node's agent leaves for good, its pods run on (7).
async fn agent_gone_for_good(world: &mut World) {
    world.calm().await;
    let victim = world.follower();
    world.start_many(victim, 4);
    world.go_on(Duration::from_secs(5)).await;
    world.machines[victim].kill_agents();
    world.go_on(world.around.offline * 5 / 4 + STALE_MAX + Duration::from_secs(40)).await;
    world.start_on_others(victim, 8);
    world.go_on(Duration::from_secs(30)).await;
}

/// Another plugin's pods run in the range of a new pool, on a machine of its own (8).
async fn foreign_addresses(world: &mut World) {
    let other = world.add_machine("other");
    for last in [1, 6, 9, 14] {
        let address = IpAddr::V4(Ipv4Addr::new(10, 244, 0, last));
        world.start_foreign(other, address, ForeignPod::Route);
    }
    for machine in 0..other {
        world.start(machine);
    }
    world.go_on(Duration::from_secs(5)).await;
    let (cidr, block_size) = world.pool;
    world.create_pool(cidr, block_size);
    world.go_on(Duration::from_secs(4)).await;
    for machine in 0..other {
        world.start_many(machine, 5);
    }
    world.go_on(Duration::from_secs(20)).await;
}

/// A node's own Lease.
const LEASES: Held = Held(Method::PUT, "/leases/cairn-node-");
/// Pods that are started one by one until a block is taken.
const SINGLE_PODS_MAX: usize = 20;
/// Events of a day that leads to a rule.
const EVENTS: usize = 90;
