//! Nodes in virtual time: the real IPAM of the agent, the real owner of pods' addresses and the real
//! watches, on simulated kernels, against the embedded API with every fault that
//! docs/reference/address-safety.md names.
//!
//! ```text
//!  World (dice) ── faults ──► Machine: kernel (judge), disk, kubelet ── ADD, DEL ──► PodNetwork
//!                                │ agent: ipam::run, watch::start                       │
//!                                ▼                                                      ▼
//!                       Link: late, lost, lagging ──► ApiServer          AgentKernel: steps, crashes
//! ```
//!
//! The run is judged from the kernels: at no step do two live interfaces hold one address. When the
//! faults have ended everything has to come right again.
//!
//! A failure prints its seed and its story;
//! `CAIRN_SIM_SEED=N cargo test -p cairn-agent --test simulation NAME` repeats it alone,
//! `CAIRN_SIM_TRACE=1` shows everything that happens on the way, `CAIRN_SIM_SEEDS=N` and
//! `CAIRN_SIM_FIRST=N` say how many seeds there are and which is the first (`make sim`).

mod api;
mod controllers;
mod dice;
mod fabric;
mod faults;
mod kernel;
mod life;
mod machine;
mod rules;
mod story;
mod world;

use std::collections::BTreeMap;
use std::sync::Mutex;
use std::time::{Duration, Instant};

use cairn_ipam::{Rule, Rules};
use dice::Dice;
use story::Outcome;
use world::{Setup, World};

/// What happens in a run.
type Scenario = fn(&mut World) -> futures::future::BoxFuture<'_, ()>;

/// One run. Everything that it does follows from its arguments.
fn play(setup: &Setup, scenario: Scenario) -> Outcome {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_time()
        .start_paused(true)
        .build()
        .expect("a runtime");
    runtime.block_on(async {
        let mut world = World::new(setup);
        scenario(&mut world).await;
        world.story.end()
    })
}

fn setup(seed: u64, rules: Rules) -> Setup {
    let dice = Dice::new(seed ^ 0xcafe);
    Setup {
        seed,
        rules,
        nodes: 2 + dice.roll(3),
        offline: Duration::from_secs(dice.pick(&[20, 30, 40])),
        cooldown: Duration::from_secs(dice.pick(&[0, 5, 30])),
        idle_release: dice.pick(&[None, Some(Duration::from_secs(10))]),
        fixed: true,
        mix: faults::ORDINARY.to_vec(),
        pool: dice.pick(&[
            ("10.244.0.0/26", 29),
            ("10.244.0.0/27", 30),
            ("10.244.0.0/28", 30),
            ("10.244.0.0/25", 28),
        ]),
    }
}

/// Any history, and then the recovery from it.
fn any_history(world: &mut World) -> futures::future::BoxFuture<'_, ()> {
    Box::pin(async move {
        let (cidr, block_size) = world.pool;
        world.create_pool(cidr, block_size);
        for machine in 0..world.machines.len() {
            world.start(machine);
        }
        world.pass(Duration::from_secs(5)).await;
        let mix = world.mix.clone();
        for _ in 0..20 + world.dice.roll(60) {
            world.pass(world.dice.millis(10, 4_000)).await;
            world.heartbeats();
            world.event(&mix).await;
            if world.story.is_violated() {
                return;
            }
        }
        world.recover().await;
    })
}

fn number(name: &str) -> Option<u64> {
    let text = std::env::var(name).ok()?;
    Some(text.parse().unwrap_or_else(|_| panic!("{name} is no number: {text}")))
}

/// What many runs came to.
#[derive(Default)]
struct Totals {
    seeds: u64,
    allocations: u64,
    faults: BTreeMap<String, u64>,
    /// The seeds that found something, with what.
    violations: BTreeMap<u64, String>,
    /// The end of the first story that went wrong.
    story: Option<String>,
}

impl Totals {
    fn add(&mut self, seed: u64, outcome: &Outcome) {
        self.seeds += 1;
        self.allocations += outcome.allocations;
        for (kind, count) in &outcome.faults {
            *self.faults.entry(kind.clone()).or_default() += count;
        }
        if let Some(violation) = &outcome.violation {
            self.violations.insert(seed, violation.clone());
            self.story.get_or_insert_with(|| format!("seed {seed}:\n{}", outcome.ending()));
        }
    }
}

/// Does `work` for each item, in as many threads as there are cores.
fn on_every_core<T: Send>(items: impl Iterator<Item = T> + Send, work: impl Fn(T) + Sync) {
    let items = Mutex::new(items);
    let next = || items.lock().expect("the items").next();
    let cores = std::thread::available_parallelism().map_or(1, std::num::NonZero::get);
    std::thread::scope(|scope| {
        for _ in 0..cores {
            scope.spawn(|| {
                while let Some(item) = next() {
                    work(item);
                }
            });
        }
    });
}

/// Runs a scenario for many seeds on every core, or for the one that the environment names.
fn for_seeds(test: &str, count: u64, scenario: Scenario) {
    let seeds = match number("CAIRN_SIM_SEED") {
        Some(seed) => seed..seed + 1,
        None => {
            let first = number("CAIRN_SIM_FIRST").unwrap_or(0);
            first..first + number("CAIRN_SIM_SEEDS").unwrap_or(count)
        }
    };
    let totals = Mutex::new(Totals::default());
    let began = Instant::now();
    on_every_core(seeds, |seed| {
        if totals.lock().expect("the totals").violations.len() < VIOLATIONS_MAX {
            let outcome = play(&setup(seed, Rules::ALL), scenario);
            totals.lock().expect("the totals").add(seed, &outcome);
        }
    });
    let totals = totals.into_inner().expect("the totals");
    println!(
        "{test}: {} seeds, {} allocations, {:.1} s",
        totals.seeds,
        totals.allocations,
        began.elapsed().as_secs_f64()
    );
    for (kind, count) in totals.faults {
        println!("{count:>9} {kind}");
    }
    let Some(story) = totals.story else { return };
    let violations = totals.violations.iter().map(|(seed, what)| format!("seed {seed}: {what}"));
    panic!(
        "{story}\n{}\nrepeat: CAIRN_SIM_SEED=N cargo test -p cairn-agent --test simulation {test}",
        violations.collect::<Vec<_>>().join("\n")
    );
}

#[test]
fn no_address_is_held_twice_whatever_happens() {
    for_seeds("no_address_is_held_twice_whatever_happens", SEEDS, any_history);
}

#[test]
fn the_same_seed_gives_the_same_story() {
    for seed in 0..3 {
        let [first, second] = [0, 1].map(|_| play(&setup(seed, Rules::ALL), any_history));
        let differ = first.lines.iter().zip(&second.lines).find(|(a, b)| a != b);
        assert_eq!(differ, None, "seed {seed}");
        assert_eq!(first, second, "seed {seed}");
        assert!(first.allocations > 0, "seed {seed}");
    }
}

/// Every rule, or the one that the environment names.
fn rules_chosen() -> Vec<Rule> {
    let named = std::env::var("CAIRN_SIM_RULE").ok();
    let is_meant = |rule: &Rule| named.as_ref().is_none_or(|name| format!("{rule:?}") == *name);
    let chosen: Vec<Rule> = Rule::ALL.into_iter().filter(is_meant).collect();
    assert!(!chosen.is_empty(), "CAIRN_SIM_RULE names no rule: {named:?}");
    chosen
}

/// The seeds that a path is walked with.
fn path_seeds(count: u64) -> std::ops::Range<u64> {
    let first = number("CAIRN_SIM_FIRST").unwrap_or(0);
    first..first + number("CAIRN_SIM_SEEDS").unwrap_or(count)
}

/// Runs the path to `rule` with the rule off; the first seed that finds two holders of one address.
fn without(rule: Rule) -> Option<(u64, Outcome)> {
    let path = rules::path(rule);
    path_seeds(TRIES).find_map(|seed| {
        let mut setup = setup(seed, Rules::ALL.without(rule));
        path.lead(&mut setup);
        let outcome = play(&setup, path.scenario);
        outcome.violation.is_some().then_some((seed, outcome))
    })
}

#[test]
fn without_a_rule_an_address_is_held_twice() {
    let missed = Mutex::new(Vec::new());
    on_every_core(rules_chosen().into_iter(), |rule| match without(rule) {
        Some((seed, outcome)) => {
            println!("without {rule:?}: seed {seed}: {}", outcome.violation.unwrap_or_default());
        }
        None => missed.lock().expect("the list").push(rule),
    });
    let missed = missed.into_inner().expect("the list");
    assert!(missed.is_empty(), "nobody has noticed that these rules are off: {missed:?}");
}

#[test]
fn with_every_rule_the_same_paths_lead_nowhere() {
    let wrong = Mutex::new(None);
    let seeds = || path_seeds(PATH_SEEDS);
    let walks = rules_chosen().into_iter().flat_map(|rule| seeds().map(move |seed| (rule, seed)));
    on_every_core(walks, |(rule, seed)| {
        let path = rules::path(rule);
        let mut setup = setup(seed, Rules::ALL);
        path.lead(&mut setup);
        let outcome = play(&setup, path.scenario);
        if let Some(violation) = &outcome.violation {
            let ending = outcome.ending();
            let told = format!("{ending}\nthe path to {rule:?}, seed {seed}: {violation}");
            wrong.lock().expect("the story").get_or_insert(told);
        }
    });
    if let Some(story) = wrong.into_inner().expect("the story") {
        panic!("{story}");
    }
}

/// Seeds that a rule's path is tried with.
const TRIES: u64 = 40;
/// Seeds that each path is tried with while every rule holds.
const PATH_SEEDS: u64 = 10;
/// Seeds of one run of the tests; `make sim` plays more.
const SEEDS: u64 = 400;
/// After so many seeds that found something no more are played.
const VIOLATIONS_MAX: usize = 8;
