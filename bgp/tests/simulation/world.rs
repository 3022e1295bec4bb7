//! Hosts, network and clock: what happens next, in a fixed order for a seed.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::time::{Duration, Instant};

use cairn_bgp::prefix::Prefix;
use cairn_bgp::rib::{PrefixFilter, RouteFilter};
use cairn_bgp::session::{ConnectionId, Restart};

use super::dice::Dice;
use super::network::{Network, Notice};
use super::plan::{Plan, peer_name};
use super::speaker::{Fib, Input, Key, Sabotage, Speaker, Start};

pub struct World {
    pub now: Instant,
    begun: Instant,
    pub dice: Dice,
    pub net: Network,
    pub plan: Plan,
    pub hosts: Vec<Host>,
    agenda: BTreeMap<(Instant, u64), Task>,
    sequence: u64,
    steps: u64,
    trace: VecDeque<String>,
    /// What each host had in its forwarding table when the watch began.
    watched: Vec<BTreeSet<Prefix>>,
    /// What of it was not there at some moment since.
    pub lost: Vec<BTreeSet<Prefix>>,
    pub sabotage: Sabotage,
    /// Whether trace lines are printed as they come.
    pub talks: bool,
}

#[derive(Default)]
pub struct Host {
    pub speaker: Option<Speaker>,
    pub fib: Fib,
    pub lives: u64,
    /// Nothing answers at the host's address.
    pub dark: bool,
    /// It does not come back.
    pub gone: bool,
    pub paused_until: Option<Instant>,
    /// Octets read from a connection in a second.
    pub slow: Option<usize>,
    wake_at: Option<Instant>,
}

/// What is to happen at a certain time.
#[derive(Debug)]
pub enum Task {
    Tell { host: usize, life: u64, input: Input },
    Call { host: usize, life: u64, key: Key, connection: ConnectionId, to: usize, attempt: u32 },
    Boot { host: usize, restart: Restart },
    EndSilence(u64),
    PathDead { host: usize, to: usize, independent: bool },
}

/// What is wrong.
pub type Failure = String;

impl World {
    pub fn new(seed: u64, plan: Plan, sabotage: Sabotage) -> World {
        let mut dice = Dice::new(seed);
        let now = Instant::now();
        let net = Network::new(plan.len(), &mut dice);
        World {
            now,
            begun: now,
            dice,
            net,
            hosts: plan.iter().map(|_| Host::default()).collect(),
            watched: vec![BTreeSet::new(); plan.len()],
            lost: vec![BTreeSet::new(); plan.len()],
            plan,
            agenda: BTreeMap::new(),
            sequence: 0,
            steps: 0,
            trace: VecDeque::new(),
            sabotage,
            talks: std::env::var_os("CAIRN_SIM_TRACE").is_some(),
        }
    }

    pub fn later(&mut self, wait: Duration, task: Task) {
        self.sequence += 1;
        self.agenda.insert((self.now + wait, self.sequence), task);
    }

    pub fn note(&mut self, text: String) {
        let line = format!("{:10.3} {text}", (self.now - self.begun).as_secs_f64());
        if self.talks {
            println!("{line}");
        }
        if self.trace.len() >= TRACE_LINES_MAX {
            self.trace.pop_front();
        }
        self.trace.push_back(line);
    }

    pub fn trace(&self) -> String {
        self.trace.iter().map(|line| format!("{line}\n")).collect()
    }

    pub fn boot(&mut self, host: usize, restart: Restart) {
        let config = self.plan[host].config(&self.plan);
        self.note(format!("h{host} starts, {restart:?}"));
        let this = &mut self.hosts[host];
        this.lives += 1;
        this.dark = false;
        if !restart.forwarding_preserved {
            this.fib.clear();
        }
        let start = Start {
            host,
            life: this.lives,
            seed: self.dice.next(),
            restart,
            sabotage: self.sabotage,
        };
        this.speaker = Some(Speaker::start(self.now, &mut self.net, config, start));
        self.wake(host, self.now);
    }

    /// The speaker of a host is no more. Without a word if its host goes with it.
    pub fn kill(&mut self, host: usize, silently: bool) {
        self.note(format!("h{host} {}", if silently { "goes dark" } else { "crashes" }));
        self.net.kill(self.now, host, silently);
        self.hosts[host].speaker = None;
        self.hosts[host].dark = silently;
    }

    /// Takes the plan of one host into force.
    pub fn configure(&mut self, host: usize) {
        let config = self.plan[host].config(&self.plan);
        if let Some(speaker) = &mut self.hosts[host].speaker {
            speaker.configure(self.now, &mut self.net, &config);
        }
        self.wake(host, self.now);
    }

    pub fn wake(&mut self, host: usize, at: Instant) {
        let this = &mut self.hosts[host];
        this.wake_at = Some(this.wake_at.map_or(at, |before| before.min(at)));
    }

    fn wakes_at(&self, host: usize) -> Option<Instant> {
        let this = &self.hosts[host];
        this.speaker.as_ref()?;
        Some(
            this.paused_until
                .map_or(this.wake_at?, |until| this.wake_at.unwrap_or(until).max(until)),
        )
    }

    pub fn run_for(&mut self, time: Duration) -> Result<(), Failure> {
        self.run_until(self.now + time)
    }

    pub fn run_until(&mut self, end: Instant) -> Result<(), Failure> {
        loop {
            let wakes = (0..self.hosts.len()).filter_map(|host| self.wakes_at(host));
            let task = self.agenda.first_key_value().map(|((at, _), _)| *at);
            let next = wakes.chain(task).chain(self.net.next_deadline()).min();
            let Some(next) = next.filter(|next| *next <= end) else {
                self.now = end;
                return Ok(());
            };
            self.now = self.now.max(next);
            self.steps += 1;
            if self.steps > STEPS_MAX {
                return Err("events without end: something spins".to_owned());
            }
            self.step()?;
        }
    }

    fn step(&mut self) -> Result<(), Failure> {
        while let Some(entry) = self.agenda.first_entry()
            && entry.key().0 <= self.now
        {
            let task = entry.remove();
            self.perform(task);
        }
        self.net.advance(self.now);
        self.pass_on_notices();
        for host in 0..self.hosts.len() {
            if self.wakes_at(host).is_some_and(|at| at <= self.now) {
                self.turn(host)?;
                self.pass_on_notices();
            }
        }
        Ok(())
    }

    fn pass_on_notices(&mut self) {
        for notice in std::mem::take(&mut self.net.notices) {
            let host = match notice {
                Notice::Readable(host) => host,
                Notice::Writable(wire, side) => {
                    let Some(connection) = self.net.connections.get(&wire) else { continue };
                    let host = connection.hosts[side];
                    if let Some(speaker) = &mut self.hosts[host].speaker {
                        speaker.inbox.push_back(Input::Writable { wire });
                    }
                    host
                }
            };
            let at = self.now + self.dice.millis(0, 3);
            self.wake(host, at);
        }
    }

    fn turn(&mut self, host: usize) -> Result<(), Failure> {
        let this = &mut self.hosts[host];
        if this.paused_until.is_some_and(|until| until <= self.now) {
            this.paused_until = None;
        }
        this.wake_at = None;
        let Some(speaker) = &mut this.speaker else { return Ok(()) };
        let read_max = this.slow.unwrap_or(READ_OCTETS);
        speaker.turn(self.now, &mut self.net, &mut this.fib, read_max);
        let life = speaker.life;
        let calls = std::mem::take(&mut speaker.calls);
        let log = std::mem::take(&mut speaker.log);
        if let Some(deadline) = speaker.next_deadline() {
            if deadline <= self.now {
                return Err(format!("h{host} has a deadline in the past after its turn"));
            }
            let late = self.dice.millis(0, 5);
            self.wake(host, deadline + late);
        }
        let unread = self.hosts[host].speaker.iter().flat_map(|s| s.peers.values());
        let mut unread = unread.flat_map(|peer| peer.connections.values());
        if unread.any(|link| self.net.has_unread(link.wire, link.side)) {
            let wait = if self.hosts[host].slow.is_some() { 1000 } else { 1 };
            self.wake(host, self.now + Duration::from_millis(wait));
        }
        for line in log {
            self.note(format!("h{host}: {line}"));
        }
        for (key, connection, to) in calls {
            let wait = self.net.latency(host, to) + self.dice.millis(0, 2);
            self.later(wait, Task::Call { host, life, key, connection, to, attempt: 0 });
        }
        let fib = &self.hosts[host].fib;
        let missing: Vec<Prefix> =
            self.watched[host].iter().filter(|prefix| !fib.contains_key(prefix)).copied().collect();
        for prefix in missing {
            if self.lost[host].insert(prefix) {
                let routes = self.hosts[host].speaker.as_ref().map(|speaker| {
                    let prefix = PrefixFilter::Exact(prefix);
                    speaker.rib.routes(&RouteFilter { prefix, ..RouteFilter::default() })
                });
                self.note(format!("h{host} has lost its route to {prefix}: {routes:?}"));
            }
        }
        Ok(())
    }

    /// From here on, notes what disappears from any forwarding table, were it for a moment.
    pub fn watch(&mut self) {
        for host in 0..self.hosts.len() {
            self.watched[host] = self.hosts[host].fib.keys().copied().collect();
            self.lost[host].clear();
        }
    }

    fn perform(&mut self, task: Task) {
        match task {
            Task::Tell { host, life, input } => {
                if let Some(speaker) = &mut self.hosts[host].speaker
                    && speaker.life == life
                {
                    speaker.inbox.push_back(input);
                    self.wake(host, self.now);
                }
            }
            Task::Call { host, life, key, connection, to, attempt } => {
                let caller = self.hosts[host].speaker.as_ref().filter(|s| s.life == life);
                let peer = caller.and_then(|speaker| speaker.peers.get(&key));
                if !peer.is_some_and(|peer| peer.connecting.contains(&connection)) {
                    return;
                }
                let latency = self.net.latency(host, to);
                if self.net.is_silent(host, to) || self.hosts[to].dark {
                    let task = Task::Call { host, life, key, connection, to, attempt: attempt + 1 };
                    return self.later(Duration::from_secs(1 << attempt.min(5)), task);
                }
                let result = match &mut self.hosts[to].speaker {
                    None => Err("connection refused".to_owned()),
                    Some(speaker) => {
                        let wire = self.net.establish(host, to);
                        speaker.inbox.push_back(Input::Accepted { from: host, wire });
                        Ok(wire)
                    }
                };
                self.wake(to, self.now);
                let input = Input::Connected { key, connection, result };
                self.later(latency, Task::Tell { host, life, input });
            }
            Task::Boot { host, restart } => {
                if self.hosts[host].speaker.is_none() {
                    self.boot(host, restart);
                }
            }
            Task::PathDead { host, to, independent } => {
                let name = peer_name(to);
                if let Some(speaker) = &mut self.hosts[host].speaker
                    && let Some((key, _)) = speaker.peers.iter().find(|(_, p)| p.name == name)
                {
                    let key = *key;
                    speaker.path_dead(self.now, &mut self.net, key, independent);
                    self.wake(host, self.now);
                }
            }
            Task::EndSilence(reason) => {
                self.net.end_silence(reason);
                self.note(format!("silence {reason} is over"));
            }
        }
    }

    /// Nothing more is disturbed from here on.
    pub fn heal(&mut self) {
        self.note("all faults end".to_owned());
        self.net.end_all_silence();
        let is_fault = |task: &Task| matches!(task, Task::EndSilence(_) | Task::PathDead { .. });
        self.agenda.retain(|_, task| !is_fault(task));
        for host in 0..self.hosts.len() {
            let this = &mut self.hosts[host];
            this.slow = None;
            this.paused_until = None;
            self.wake(host, self.now);
        }
    }
}

/// What a reader takes at once.
const READ_OCTETS: usize = 64 * 1024;
/// Lines that a failure shows.
const TRACE_LINES_MAX: usize = 80;
/// More events than any run needs.
const STEPS_MAX: u64 = 400_000;
