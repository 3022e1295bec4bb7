//! Paths to the rules about the API: what it does not arbitrate, and answers that come late.

use std::time::Duration;

use hyper::Method;
use serde_json::Value;
use tokio::time::Instant;

use super::super::api::Held;
use super::super::faults::name_of;
use super::super::world::{STALE_MAX, World};

/// The DELETE of a block.
const DELETES: Held = Held(Method::DELETE, "/ipblocks/");
/// What a block's owner says of its use.
const STATUSES: Held = Held(Method::PATCH, "/status");

impl World {
    /// Lets time pass until `holds`, `most` at most.
    async fn until(&mut self, most: Duration, holds: impl Fn(&World) -> bool) {
        let end = Instant::now() + most;
        while Instant::now() < end && !holds(self) && !self.story.is_violated() {
            self.pass(Duration::from_millis(20)).await;
        }
    }

    /// The fabric does not reach the machine, and nobody has a route of it any more.
    async fn leave_fabric(&mut self, machine: usize) {
        self.story.say(format_args!("m{machine}: cut off from the fabric"));
        self.around.fabric.set_cut(machine, true);
        self.go_on(STALE_MAX + Duration::from_secs(2)).await;
    }

    /// The API server that the machine asks shows nothing newer, for so long.
    fn lag(&self, machine: usize, time: Duration) {
        self.story.say(format_args!("m{machine}: the server lags from now on"));
        let until = Instant::now() + time;
        self.machines[machine].way.condition().lag = Some((self.server.revision(), until));
    }
}

/// Two overlapping pools are applied in one second. A node sees only the first, and the other one
/// counts: of the same age, the UID decides (1).
pub async fn overlapping_pools(world: &mut World) {
    world.start_all().await;
    let behind = world.follower();
    world.leave_fabric(behind).await;
    // Ages are counted in whole seconds.
    let begun = u64::from(world.story.time().subsec_millis());
    world.pass(Duration::from_millis(1_005 - begun)).await;
    world.create_pool("10.244.0.0/28", 30);
    let owner = world.machines[behind].node.clone();
    let has_block =
        |world: &World| world.blocks().iter().any(|block| block["spec"]["node"]["name"] == *owner);
    world.until(Duration::from_millis(900), has_block).await;
    world.lag(behind, Duration::from_secs(25));
    world.create_pool("10.244.0.0/28", 29);
    // Its pods come when the leader has looked for others' addresses in the second pool.
    world.go_on(Duration::from_secs(4)).await;
    world.start_many(behind, 4);
    world.start_on_others(behind, 8);
    world.go_on(Duration::from_secs(20)).await;
}

/// A pool is deleted under pods of which the API knows nothing any more, and then their block is
/// removed by force. While the pool stands its owner asserts the block again (1).
pub async fn pool_ends_under_pods(world: &mut World) {
    world.calm().await;
    let Some(leader) = world.leader() else { return };
    let owner = world.follower();
    world.start_many(owner, 4);
    world.go_on(Duration::from_secs(4)).await;
    for pod in world.machines[owner].running() {
        world.story.say(format_args!("Pod {pod} is deleted by force, and runs on"));
        let _ = world.server.delete("pods", Some("default"), &pod);
    }
    world.leave_fabric(owner).await;
    world.delete_pool("p1");
    world.go_on(Duration::from_secs(5)).await;
    // Nobody looks after the pool before the owner has heard.
    world.machines[leader].kill_agents();
    let node = world.machines[owner].node.clone();
    let theirs = |block: &&Value| block["spec"]["node"]["name"] == *node;
    for block in world.blocks().iter().filter(theirs) {
        let name = name_of(block);
        world.story.say(format_args!("IPBlock {name} is removed by force"));
        world.remove_block(name);
    }
    world.go_on(Duration::from_secs(2)).await;
    world.machines[leader].start_agent();
    world.put_pool("p1", "10.244.0.0/28", 29);
    world.go_on(Duration::from_secs(6)).await;
    world.start_on_others(owner, 8);
    world.go_on(Duration::from_secs(20)).await;
}

/// A pod starts while the DELETE of an idle block is on its way (2).
pub async fn pod_comes_while_its_block_goes(world: &mut World) {
    world.calm().await;
    let owner = world.follower();
    world.leave_fabric(owner).await;
    world.start_many(owner, 6);
    world.go_on(Duration::from_secs(6)).await;
    let way = world.machines[owner].way.clone();
    for container in world.machines[owner].running() {
        world.machines[owner].end_pod(container, true);
    }
    way.hold(DELETES);
    world.until(Duration::from_secs(20), |_| way.is_held(&DELETES)).await;
    way.hold(STATUSES);
    world.start_many(owner, 8);
    world.go_on(Duration::from_secs(2)).await;
    world.lag(owner, Duration::from_secs(20));
    way.let_go(&DELETES);
    world.go_on(Duration::from_secs(1)).await;
    world.start_on_others(owner, 8);
    world.go_on(Duration::from_secs(15)).await;
}

/// The API server that the leader asks lags for longer than the fence, so that a node that writes
/// its Lease seems silent (2).
pub async fn leader_is_behind(world: &mut World) {
    world.calm().await;
    let Some(leader) = world.leader() else { return };
    let owner = world.follower();
    let wait = world.around.offline * 5 / 4;
    world.lag(leader, wait * 2);
    world.around.fabric.set_cut(owner, true);
    world.go_on(wait - Duration::from_secs(8)).await;
    // What starts now stands in no status: neither the pods' nor the block's.
    world.cut_off(owner);
    world.start_many(owner, 4);
    world.go_on(Duration::from_secs(14)).await;
    for _ in 0..4 {
        world.start_on_others(owner, 4);
        world.go_on(Duration::from_secs(3)).await;
    }
}

/// The leader's DELETE is on its way while the agent that seemed gone for good comes back (2).
pub async fn agent_returns_during_a_delete(world: &mut World) {
    world.calm().await;
    let Some(leader) = world.leader() else { return };
    let owner = world.follower();
    let way = world.machines[leader].way.clone();
    world.machines[owner].kill_agents();
    way.hold(DELETES);
    let patience = world.around.offline * 5 / 4 + Duration::from_secs(20);
    world.until(patience, |_| way.is_held(&DELETES)).await;
    world.around.fabric.set_cut(owner, true);
    world.machines[owner].way.hold(STATUSES);
    world.machines[owner].start_agent();
    world.go_on(world.dice.millis(500, 1_500)).await;
    world.start_many(owner, 4);
    // The leader waits 10 s for its answer.
    world.until(Duration::from_secs(6), |world| !world.machines[owner].running().is_empty()).await;
    world.lag(owner, Duration::from_secs(20));
    way.let_go(&DELETES);
    world.go_on(Duration::from_secs(1)).await;
    world.start_on_others(owner, 8);
    world.go_on(Duration::from_secs(15)).await;
}

/// A second machine registers under the name of one that lives, for longer than the promise; neither hears
/// the other's routes: the fabric is cut (5).
pub async fn two_machines_at_once(world: &mut World) {
    world.create_pool("10.244.0.0/27", 30);
    world.start_all().await;
    let first = world.follower();
    world.start_many(first, 4);
    world.leave_fabric(first).await;
    let second = world.add_machine(&world.machines[first].node.clone());
    world.start(second);
    world.go_on(Duration::from_secs(3)).await;
    world.start_many(second, 4);
    world.go_on(world.around.offline * 5 / 4 + Duration::from_secs(3)).await;
    for _ in 0..6 {
        // One of them finds the other's promise to be over, and no longer the other one.
        world.start_many(first, 3);
        world.start_many(second, 1);
        world.go_on(Duration::from_secs(2)).await;
    }
}
