//! Two sets of sessions over a link that loses, delays, reorders and repeats packets, in virtual time.

use std::net::IpAddr;
use std::time::{Duration, Instant};

use cairn_bfd::config::{Path, SessionSpec};
use cairn_bfd::session::Jitter;
use cairn_bfd::sessions::{Arrival, Output, Sessions};
use cairn_bfd::wire::State;

const SEEDS: u64 = 200;

fn ms(ms: u64) -> Duration {
    Duration::from_millis(ms)
}

/// What the link does to packets.
#[derive(Clone, Copy)]
struct Weather {
    /// Of a hundred packets.
    lost: u64,
    repeated: u64,
    /// A packet's delay at most; packets overtake each other.
    delay: Duration,
    is_cut: bool,
}

const CLEAR: Weather = Weather { lost: 0, repeated: 0, delay: ms_const(2), is_cut: false };

const fn ms_const(ms: u64) -> Duration {
    Duration::from_millis(ms)
}

struct World {
    now: Instant,
    dice: Jitter,
    sides: [Sessions; 2],
    specs: [SessionSpec; 2],
    flying: Vec<(Instant, usize, Vec<u8>)>,
    weather: Weather,
    /// Changes of state of each side.
    downs: [usize; 2],
    states: [State; 2],
}

impl World {
    fn new(seed: u64) -> World {
        let mut dice = Jitter::new(seed);
        let addresses = ["10.0.0.1", "10.0.0.2"].map(|text| text.parse::<IpAddr>().expect("one"));
        let mut spec = |own: usize| SessionSpec {
            path: Path { local: Some(addresses[own]), ..Path::to(addresses[1 - own]) },
            interval_ms: 50 + (dice.random() % 300) as u32,
            multiplier: 2 + (dice.random() % 4) as u8,
        };
        let specs = [spec(0), spec(1)];
        let sides = [0, 1].map(|side| Sessions::new(Jitter::new(seed * 2 + side)));
        let mut world = World {
            now: Instant::now(),
            dice,
            sides,
            specs,
            flying: Vec::new(),
            weather: CLEAR,
            downs: [0; 2],
            states: [State::Down; 2],
        };
        for side in 0..2 {
            world.set(side);
            // They do not start at once.
            let pause = ms(world.dice.random() % 1000);
            world.run(pause);
        }
        world
    }

    /// Has one side take up its specification.
    fn set(&mut self, side: usize) {
        let wanted = [self.specs[side].clone()];
        self.do_at(side, |sessions, now, outputs| {
            sessions.set(now, &wanted, outputs).expect("a good set");
        });
    }

    fn do_at(&mut self, side: usize, act: impl FnOnce(&mut Sessions, Instant, &mut Vec<Output>)) {
        let mut outputs = Vec::new();
        act(&mut self.sides[side], self.now, &mut outputs);
        for output in outputs {
            match output {
                Output::Send(_, octets) => self.fly(side, &octets),
                Output::Changed(id) => {
                    let state = self.sides[side].state(id).expect("a session");
                    let fell = self.states[side] == State::Up && state != State::Up;
                    self.downs[side] += usize::from(fell);
                    self.states[side] = state;
                }
                Output::Gone(_) => {}
            }
        }
    }

    fn fly(&mut self, from: usize, octets: &[u8]) {
        let Weather { lost, repeated, delay, is_cut } = self.weather;
        if is_cut || self.dice.random() % 100 < lost {
            return;
        }
        let copies = 1 + usize::from(self.dice.random() % 100 < repeated);
        for _ in 0..copies {
            let micros = self.dice.random() % (delay.as_micros() as u64 + 1);
            let at = self.now + Duration::from_micros(micros);
            self.flying.push((at, 1 - from, octets.to_vec()));
        }
    }

    fn run(&mut self, time: Duration) {
        let end = self.now + time;
        loop {
            let arrives = self.flying.iter().map(|(at, ..)| *at).min();
            let due = self.sides.iter().filter_map(Sessions::next_deadline).min();
            let next = arrives.into_iter().chain(due).min();
            let Some(next) = next.filter(|at| *at <= end) else { break };
            self.now = self.now.max(next);
            let arrived = self.flying.iter().position(|(at, ..)| *at <= self.now);
            if let Some((_, side, octets)) = arrived.map(|at| self.flying.swap_remove(at)) {
                let SessionSpec { path, .. } = self.specs[side].clone();
                self.do_at(side, |sessions, now, outputs| {
                    let arrival = Arrival {
                        remote: path.remote,
                        local: path.local.expect("given"),
                        interface: None,
                        multihop: false,
                        ttl: Some(255),
                    };
                    sessions.receive(now, &arrival, &octets, outputs);
                });
            }
            for side in 0..2 {
                self.do_at(side, |sessions, now, outputs| sessions.tick(now, outputs));
            }
        }
        self.now = end;
    }

    fn both(&self, state: State) -> bool {
        self.states == [state; 2]
    }

    /// The longest detection time of both.
    fn detection_time(&self) -> Duration {
        let interval = self.specs.iter().map(|spec| spec.interval_ms).max().expect("two");
        let multiplier = self.specs.iter().map(|spec| spec.multiplier).max().expect("two");
        ms(u64::from(interval) * u64::from(multiplier))
    }
}

/// Without loss both come up within a few seconds, and stay so for an hour.
#[test]
fn no_flap_without_loss() {
    for seed in 0..SEEDS {
        let mut world = World::new(seed);
        world.run(ms(5000));
        assert!(world.both(State::Up), "seed {seed}: {:?}", world.states);
        world.run(ms(if seed < 5 { 3_600_000 } else { 60_000 }));
        assert_eq!((world.both(State::Up), world.downs), (true, [0, 0]), "seed {seed}");
    }
}

/// A cut is noticed by both within the detection time, and its end brings both up again.
#[test]
fn a_cut_is_noticed_in_time() {
    for seed in 0..SEEDS {
        let mut world = World::new(seed);
        world.run(ms(10_000));
        world.weather.is_cut = true;
        world.flying.clear();
        let detection = world.detection_time();
        world.run(detection);
        assert!(!world.states.contains(&State::Up), "seed {seed}: {:?}", world.states);
        world.run(ms(20_000));
        world.weather.is_cut = false;
        world.run(ms(5000));
        assert!(world.both(State::Up), "seed {seed}: {:?}", world.states);
        assert_eq!(world.downs, [1, 1], "seed {seed}");
    }
}

/// In the worst weather, and while timings change, both sides agree again once it is over.
#[test]
fn bad_weather() {
    for seed in 0..SEEDS {
        let mut world = World::new(seed);
        for _ in 0..20 {
            world.weather = Weather {
                lost: world.dice.random() % 60,
                repeated: world.dice.random() % 60,
                delay: ms(1 + world.dice.random() % 200),
                is_cut: world.dice.random().is_multiple_of(5),
            };
            let side = (world.dice.random() % 2) as usize;
            world.specs[side].interval_ms = 50 + (world.dice.random() % 500) as u32;
            world.specs[side].multiplier = 1 + (world.dice.random() % 5) as u8;
            world.set(side);
            let time = ms(world.dice.random() % 5000);
            world.run(time);
        }
        world.weather = CLEAR;
        for side in 0..2 {
            world.specs[side].multiplier = 3;
            world.set(side);
        }
        world.run(ms(10_000));
        let downs = world.downs;
        world.run(ms(60_000));
        assert!(world.both(State::Up), "seed {seed}: {:?}", world.states);
        assert_eq!(world.downs, downs, "seed {seed}");
    }
}

/// Another interval or multiplier on a good link ends no session, however often it changes.
#[test]
fn new_timing_ends_nothing() {
    for seed in 0..SEEDS {
        let mut world = World::new(seed);
        world.run(ms(5000));
        for _ in 0..30 {
            let side = (world.dice.random() % 2) as usize;
            world.specs[side].interval_ms = 50 + (world.dice.random() % 1000) as u32;
            world.specs[side].multiplier = 2 + (world.dice.random() % 4) as u8;
            world.set(side);
            let time = ms(world.dice.random() % 3000);
            world.run(time);
        }
        assert_eq!((world.both(State::Up), world.downs), (true, [0, 0]), "seed {seed}");
    }
}
