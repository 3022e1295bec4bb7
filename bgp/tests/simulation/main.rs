//! Speakers on a simulated network under a virtual clock: sessions, RIBs and codec as the product
//! has them, octets on connections that are delayed, cut, silent, and hosts that crash and stop.
//!
//! ```text
//! topology ─► plan ──┬─► World: hosts (speaker.rs), network (network.rs), faults (faults.rs)
//!                    │                    │ what each speaker was told, read off the wire (tap.rs)
//!                    └─► Model ──compare──┘ (check.rs)
//! ```
//!
//! A failure prints its seed; `CAIRN_SIM_SEED=N cargo test -p cairn-bgp --test simulation NAME`
//! repeats it alone, and `CAIRN_SIM_TRACE=1` shows everything that happens on the way.

mod check;
mod dice;
mod faults;
mod model;
mod network;
mod plan;
mod reflectors;
mod speaker;
mod tap;
mod topology;
mod world;

use std::time::Duration;

use cairn_bgp::config::GracefulRestart;
use cairn_bgp::prefix::Prefix;
use cairn_bgp::session::StopReason;
use dice::Dice;
use model::Mistake;
use plan::Drain;
use speaker::Sabotage;
use topology::{TOPOLOGIES, Topology};
use world::{Failure, World};

type History = fn(u64, &mut World) -> Result<(), Failure>;

/// Runs a history for many seeds, or for the one that the environment names.
fn for_seeds(test: &str, topology: Topology, count: u64, history: History) {
    let number = |name| {
        std::env::var(name).ok().map(|text| text.parse::<u64>().expect("a number in {name}"))
    };
    let seeds = match number("CAIRN_SIM_SEED") {
        Some(seed) => seed..seed + 1,
        None => 0..number("CAIRN_SIM_SEEDS").unwrap_or(count),
    };
    println!("{test}, {topology:?}: seeds {seeds:?}");
    for seed in seeds {
        let mut world = world(seed, topology, Sabotage::None);
        if let Err(failure) = attempt(|| history(seed, &mut world)) {
            panic!(
                "{}seed {seed}, {topology:?}: {failure}\nrepeat: CAIRN_SIM_SEED={seed} cargo test \
                 -p cairn-bgp --test simulation {test}",
                world.trace()
            );
        }
    }
}

/// A panic is a failure as any other.
fn attempt(run: impl FnOnce() -> Result<(), Failure>) -> Result<(), Failure> {
    std::panic::catch_unwind(std::panic::AssertUnwindSafe(run))
        .unwrap_or_else(|_| Err("it panicked, see above".to_owned()))
}

fn world(seed: u64, topology: Topology, sabotage: Sabotage) -> World {
    let plan = topology.plan(&mut Dice::new(seed ^ 0x5eed));
    let mut world = World::new(seed, plan, sabotage);
    for host in 0..world.hosts.len() {
        world.boot(host, faults::FRESH);
    }
    world
}

/// Waits until nothing moves any more, within a bound.
fn come_to_rest(world: &mut World, bound: Duration) -> Result<(), Failure> {
    let end = world.now + bound;
    let mut calm = 0;
    while calm < 3 {
        world.run_for(Duration::from_millis(700))?;
        match world.unrest() {
            None => calm += 1,
            Some(unrest) if world.now >= end => {
                return Err(format!("after {bound:?} without faults: {unrest}"));
            }
            Some(_) => calm = 0,
        }
    }
    Ok(())
}

/// All faults end, and what follows has to be what the model says; then nothing moves any more.
fn recover(world: &mut World, mistake: Mistake) -> Result<(), Failure> {
    world.heal();
    world.make_plan_whole();
    come_to_rest(world, RECOVERY)?;
    world.check(mistake)?;
    let ups = |world: &World| -> Vec<u64> {
        let peers = (0..world.hosts.len()).filter_map(|host| world.speaker(host));
        peers.flat_map(|speaker| speaker.peers.values().map(|peer| peer.ups)).collect()
    };
    let before = ups(world);
    world.run_for(Duration::from_secs(60))?;
    if ups(world) != before {
        return Err("a session moved although nothing disturbed it".to_owned());
    }
    come_to_rest(world, Duration::from_secs(10))?;
    world.check(mistake)
}

fn any_history(seed: u64, world: &mut World) -> Result<(), Failure> {
    for _ in 0..1 + seed % 3 {
        let faults = 1 + world.dice.roll(25);
        world.suffer(faults)?;
        recover(world, Mistake::None)?;
    }
    Ok(())
}

/// Lets something happen and come to rest. What is the same everywhere before and after was never
/// taken out of a forwarding table in between.
fn keeps_what_stays(
    world: &mut World,
    happens: impl FnOnce(&mut World) -> Result<(), Failure>,
) -> Result<(), Failure> {
    let before: Vec<_> =
        world.all_prefixes().into_iter().map(|prefix| (prefix, world.everywhere(prefix))).collect();
    world.watch();
    happens(world)?;
    come_to_rest(world, RECOVERY)?;
    world.check(Mistake::None)?;
    for (prefix, before) in before {
        let lost = world.lost.iter().position(|lost| lost.contains(&prefix));
        if let Some(host) = lost
            && before == world.everywhere(prefix)
        {
            return Err(format!(
                "h{host} lost {prefix} for a moment, and nothing about it changed"
            ));
        }
    }
    Ok(())
}

/// Policies, reflection, next hops, peers, originated routes: applied by evaluation, without a gap.
fn calm_operation(_: u64, world: &mut World) -> Result<(), Failure> {
    recover(world, Mistake::None)?;
    for _ in 0..6 {
        keeps_what_stays(world, |world| {
            let host = world.dice.roll(world.hosts.len());
            match world.dice.roll(6) {
                0 => world.change_routes(host),
                1 => world.ask_again(host),
                _ => world.change_policies(host),
            }
            Ok(())
        })?;
    }
    Ok(())
}

/// Lets something happen, and come to rest. Who has a route in the end has had it all the time, or it is new; but
/// for prefixes that are `spared`.
fn breaks_nothing(
    world: &mut World,
    spared: impl Fn(&Prefix) -> bool,
    happens: impl FnOnce(&mut World) -> Result<(), Failure>,
) -> Result<(), Failure> {
    world.watch();
    happens(world)?;
    come_to_rest(world, RECOVERY)?;
    world.check(Mistake::None)?;
    for (host, lost) in world.lost.iter().enumerate() {
        let has = |prefix: &&Prefix| world.hosts[host].fib.contains_key(prefix);
        if let Some(prefix) = lost.iter().filter(has).find(|prefix| !spared(prefix)) {
            return Err(format!("h{host} lost {prefix} for a moment, and has it again"));
        }
    }
    Ok(())
}

/// Originates nothing that is not for everybody: a better way that is told to fewer hides one that was told to all.
fn originate_for_all(world: &mut World) {
    let originated = world.plan.iter_mut().flat_map(|speaker| speaker.originate.values_mut());
    originated.for_each(|communities| communities.retain(|c| *c == topology::COMMUNITY));
}

/// A host is drained step by step: while it leaves, others move to what else there is, so that nothing is
/// missed when it withdraws, nor when it comes back.
fn drains(_: u64, world: &mut World) -> Result<(), Failure> {
    originate_for_all(world);
    recover(world, Mistake::None)?;
    for host in 0..world.hosts.len() {
        world.plan[host].drain = Drain::InUse;
        world.configure(host);
    }
    come_to_rest(world, RECOVERY)?;
    for _ in 0..3 {
        let host = world.dice.roll(world.hosts.len());
        let nothing = |_: &Prefix| false;
        breaks_nothing(world, nothing, |world| {
            world.drain(host, Drain::Leaving);
            Ok(())
        })?;
        // Where parts of an AS hear of each other by others only, what is the best way for these may be of no use.
        let lost = world.lost.iter().position(|lost| !lost.is_empty());
        if let Some(other) = lost.filter(|_| !topology::has_parted_as(&world.plan)) {
            return Err(format!(
                "h{other} has lost {:?}, and nothing is withdrawn",
                world.lost[other]
            ));
        }
        if !world.dice.one_in(4) {
            breaks_nothing(world, nothing, |world| {
                world.drain(host, Drain::Withdrawn);
                Ok(())
            })?;
        }
        // Who hears first of a better way to what others originate, too, takes back its own word of those, with
        // some before the better way is there. That is so whenever something is announced.
        let news = world.plan[host].originate.clone();
        breaks_nothing(
            world,
            |prefix| news.contains_key(prefix),
            |world| {
                world.drain(host, Drain::InUse);
                Ok(())
            },
        )?;
    }
    Ok(())
}

/// Other hosts of an AS become its reflectors, or none: as agents do it, with the sessions of both shapes until
/// nobody would lose a route. Each host hears of each step in its own time.
fn reflectors_change(_: u64, world: &mut World) -> Result<(), Failure> {
    originate_for_all(world);
    let mut shape = reflectors::any(world);
    reflectors::peer_by(world, &[shape.clone()]);
    for host in 0..world.hosts.len() {
        world.configure(host);
    }
    come_to_rest(world, RECOVERY)?;
    for _ in 0..3 {
        let next = reflectors::any(world);
        breaks_nothing(
            world,
            |_| false,
            |world| {
                reflectors::peer_by(world, &[next.clone(), shape.clone()]);
                reflectors::spread_word(world)?;
                come_to_rest(world, RECOVERY)?;
                if let Some((host, loss)) = reflectors::loses(world, &next) {
                    return Err(format!("from {shape:?} to {next:?}: h{host} would lose {loss:?}"));
                }
                reflectors::peer_by(world, std::slice::from_ref(&next));
                reflectors::spread_word(world)
            },
        )?;
        if let Some(host) = world.lost.iter().position(|lost| !lost.is_empty()) {
            return Err(format!("h{host} has lost {:?}", world.lost[host]));
        }
        shape = next;
    }
    Ok(())
}

/// What is stale goes after a restart time, the wait for End-of-RIB, and the time as a last resort.
const STALE_SECS_MAX: u64 = 60 + 300 + 60 + 30;

/// One speaker after the other restarts gracefully (RFC 4724): its own forwarding and that of all
/// others goes on.
fn graceful_restarts(_: u64, world: &mut World) -> Result<(), Failure> {
    for peer in world.plan.iter_mut().flat_map(|speaker| speaker.peers.values_mut()) {
        peer.graceful_restart = Some(GracefulRestart::new(60));
    }
    for host in 0..world.hosts.len() {
        let calls_home = world.plan[host].peers.len() > 1;
        if calls_home && world.dice.one_in(2) {
            world.change_policies(host);
        }
    }
    recover(world, Mistake::None)?;
    for host in 0..world.hosts.len() {
        keeps_what_stays(world, |world| {
            match world.dice.one_in(2) {
                true => world.end(host, &StopReason::KeepRoutes),
                false => world.kill(host, false),
            }
            let away = world.dice.millis(1, 20_000);
            world.run_for(away)?;
            world.boot(host, faults::GRACEFUL);
            Ok(())
        })?;
    }
    Ok(())
}

/// Several speakers, neighbours too, restart gracefully at the same moment and come back one by one.
fn restarts_together(_: u64, world: &mut World) -> Result<(), Failure> {
    for peer in world.plan.iter_mut().flat_map(|speaker| speaker.peers.values_mut()) {
        peer.graceful_restart = Some(GracefulRestart::new(60));
    }
    recover(world, Mistake::None)?;
    keeps_what_stays(world, |world| {
        let hosts = world.hosts.len();
        let chosen: Vec<usize> = (0..hosts).filter(|_| world.dice.one_in(2)).collect();
        chosen.iter().for_each(|host| world.kill(*host, false));
        for host in chosen {
            let away = world.dice.millis(1, 3_000);
            world.run_for(away)?;
            world.boot(host, faults::GRACEFUL);
        }
        Ok(())
    })
}

/// Graceful restart keeps the routes of somebody who does not come back for the restart time, and
/// then they go.
fn never_back(_: u64, world: &mut World) -> Result<(), Failure> {
    recover(world, Mistake::None)?;
    let host = world.dice.roll(world.hosts.len());
    let silently = world.dice.one_in(2);
    world.kill(host, silently);
    let gone = &mut world.hosts[host];
    gone.gone = true;
    gone.fib.clear();
    world.plan[host].peers.clear();
    world.plan[host].originate.clear();
    come_to_rest(world, Duration::from_secs(STALE_SECS_MAX))?;
    world.check(Mistake::None)
}

fn all_topologies(test: &str, count: u64, history: History) {
    for topology in TOPOLOGIES {
        for_seeds(test, topology, count, history);
    }
}

#[test]
fn chain() {
    for_seeds("chain", Topology::Chain, SEEDS, any_history);
}

#[test]
fn mesh() {
    for_seeds("mesh", Topology::Mesh, SEEDS, any_history);
}

#[test]
fn reflector() {
    for_seeds("reflector", Topology::Reflector, SEEDS, any_history);
}

#[test]
fn racks() {
    for_seeds("racks", Topology::Racks, SEEDS, any_history);
}

#[test]
fn random() {
    for_seeds("random", Topology::Random, SEEDS, any_history);
}

#[test]
fn what_stays_is_never_taken_away() {
    all_topologies("what_stays_is_never_taken_away", SEEDS / 2, calm_operation);
}

#[test]
fn a_graceful_restart_loses_no_route() {
    all_topologies("a_graceful_restart_loses_no_route", SEEDS / 2, graceful_restarts);
}

#[test]
fn restarts_at_the_same_moment_lose_no_route() {
    // Without circles: where there are some, a neighbour may change from one way to another while these
    // come back, which is no matter of restarts.
    let name = "restarts_at_the_same_moment_lose_no_route";
    for topology in [Topology::Chain, Topology::Racks] {
        for_seeds(name, topology, SEEDS, restarts_together);
    }
}

#[test]
fn a_drain_breaks_nothing() {
    // Without circles: where there are some, what is marked is no better than the echo of what it was before.
    for topology in [Topology::Chain, Topology::Mesh, Topology::Reflector, Topology::Racks] {
        for_seeds("a_drain_breaks_nothing", topology, SEEDS / 4, drains);
    }
}

#[test]
fn other_reflectors_break_nothing() {
    for_seeds("other_reflectors_break_nothing", Topology::Cluster, SEEDS, reflectors_change);
}

#[test]
fn who_does_not_come_back_is_forgotten() {
    all_topologies("who_does_not_come_back_is_forgotten", SEEDS / 2, never_back);
}

/// The comparison can fail: with a mistake in the model, or a fault in the speakers, it does.
mod what_the_checks_find {
    use super::*;

    fn finds(
        sabotage: Sabotage,
        mistake: Mistake,
        history: impl Fn(&mut World, Mistake) -> Result<(), Failure>,
    ) {
        for seed in 0..TRIES {
            for topology in TOPOLOGIES {
                let mut world = world(seed, topology, sabotage);
                if let Err(failure) = attempt(|| history(&mut world, mistake)) {
                    println!("{sabotage:?} {mistake:?}: seed {seed}, {topology:?}: {failure}");
                    return;
                }
            }
        }
        panic!("{TRIES} seeds of each topology, and nobody has noticed {sabotage:?} {mistake:?}");
    }

    fn somebody_leaves(world: &mut World, _: Mistake) -> Result<(), Failure> {
        never_back(0, world)
    }

    fn somebody_is_drained(world: &mut World, mistake: Mistake) -> Result<(), Failure> {
        recover(world, Mistake::None)?;
        let outside = world.hosts.len() - 1;
        world.drain(outside, Drain::Leaving);
        come_to_rest(world, RECOVERY)?;
        world.check(mistake)
    }

    fn some_history(world: &mut World, mistake: Mistake) -> Result<(), Failure> {
        world.suffer(15)?;
        recover(world, mistake)
    }

    #[test]
    fn mistakes_of_the_model() {
        for mistake in [
            Mistake::IgnoresMed,
            Mistake::IgnoresClusterListLength,
            Mistake::ReflectsEverything,
            Mistake::KeepsMed,
            Mistake::PrefersHigherIdentifier,
            Mistake::ForgetsNoExport,
        ] {
            finds(Sabotage::None, mistake, some_history);
        }
        finds(Sabotage::None, Mistake::IgnoresDrains, somebody_is_drained);
    }

    #[test]
    fn faults_of_speakers() {
        for sabotage in [
            Sabotage::ForgetsDown,
            Sabotage::ForgetsPolicies,
            Sabotage::LosesForwardingChanges,
            Sabotage::SendsWithoutOwnNextHop,
            Sabotage::SaysNothingOfWritable,
            Sabotage::AsksNobodyAgain,
        ] {
            finds(sabotage, Mistake::None, some_history);
        }
        finds(Sabotage::ForgetsToFlushStale, Mistake::None, somebody_leaves);
    }

    const TRIES: u64 = 200;
}

/// Seeds of each topology.
const SEEDS: u64 = 40;
/// Longer than every timer of a session together.
const RECOVERY: Duration = Duration::from_secs(500);
