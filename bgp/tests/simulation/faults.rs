//! What goes wrong and what operators do, at random.

use std::collections::BTreeMap;
use std::time::Duration;

use cairn_bgp::config::{ExportScope, NextHopMode, PrefixLimit, PrefixLimitAction};

use super::topology::graceful_restart;
use cairn_bgp::prefix::{Families, Family};
use cairn_bgp::session::{Event, Restart, StopReason};

use super::plan::{Drain, PeerPlan, RulePlan, Set, Then, When};
use super::topology::{COMMUNITY, communities, own_prefix, peer, shared_prefix};
use super::world::{Task, World};

pub const FRESH: Restart = Restart { restarting: false, forwarding_preserved: false };
pub const GRACEFUL: Restart = Restart { restarting: true, forwarding_preserved: true };

impl World {
    /// One fault or one operator's action.
    pub fn disturb(&mut self) {
        let host = self.dice.roll(self.hosts.len());
        match self.dice.roll(24) {
            20 => self.lose_carrier(host),
            21 | 22 => self.lose_path(host),
            23 => self.drain_somehow(host),
            0 => self.cut(),
            1 => self.silence_link(),
            2 => self.partition(),
            3 => self.crash(host),
            4 => self.leave(host),
            5 => {
                let octets = self.dice.pick(&[0, 1, 40, 500]);
                self.note(format!("h{host} reads {octets} octets a second"));
                self.hosts[host].slow = (octets < 500).then_some(octets);
            }
            6 => {
                let pause = self.dice.millis(100, 40_000);
                self.note(format!("h{host} is stopped for {pause:?}"));
                self.hosts[host].paused_until = Some(self.now + pause);
            }
            7 => self.reset(host),
            8 => self.ask_again(host),
            9 => self.storm(host),
            10..=14 => self.operate(host),
            _ => self.change_routes(host),
        }
    }

    /// A change that needs no session reset, or one that does; on one host.
    pub fn operate(&mut self, host: usize) {
        match self.dice.roll(10) {
            0 => self.remove_peer(host),
            1 => self.change_session(host),
            2 => self.change_identity(host),
            _ => self.change_policies(host),
        }
    }

    fn cut(&mut self) {
        let wires: Vec<_> = self.net.connections.keys().copied().collect();
        if !wires.is_empty() {
            let wire = self.dice.pick(&wires);
            self.note(format!("connection {:?} breaks", self.net.connections[&wire].hosts));
            self.net.cut(self.now, wire);
        }
    }

    fn silence_link(&mut self) {
        let (a, b) = (self.dice.roll(self.hosts.len()), self.dice.roll(self.hosts.len()));
        let (time, reason) = (self.dice.millis(500, 50_000), self.dice.next());
        self.note(format!("h{a} and h{b} do not hear each other for {time:?}"));
        self.net.silence(a, b, reason);
        self.later(time, Task::EndSilence(reason));
    }

    /// A host's network card is unplugged, which it sees and the others do not.
    fn lose_carrier(&mut self, host: usize) {
        let (time, reason) = (self.dice.millis(100, 20_000), self.dice.next());
        self.note(format!("h{host} has no carrier for {time:?}"));
        for other in 0..self.hosts.len() {
            self.net.silence(host, other, reason);
        }
        if let Some(speaker) = &mut self.hosts[host].speaker {
            speaker.lose_carrier(self.now, &mut self.net);
        }
        self.wake(host, self.now);
        self.later(time, Task::EndSilence(reason));
    }

    /// BFD finds a path dead, on one side or both: because it is, or wrongly. What it says of a peer that has no
    /// session, or that does not want BFD any more (AdminDown), ends nothing.
    fn lose_path(&mut self, host: usize) {
        let Some(to) = self.any_peer(host) else { return };
        let (time, reason) = (self.dice.millis(100, 20_000), self.dice.next());
        let (is_dead, both) = (self.dice.one_in(2), self.dice.one_in(2));
        self.note(format!("BFD between h{host} and h{to}: down; dead {is_dead}, both {both}"));
        if is_dead {
            self.net.silence(host, to, reason);
            self.later(time, Task::EndSilence(reason));
        }
        let independent = self.dice.one_in(2);
        for (host, to) in [(host, to), (to, host)].into_iter().take(1 + usize::from(both)) {
            let detection = self.dice.millis(0, 900);
            self.later(detection, Task::PathDead { host, to, independent });
        }
    }

    fn drain_somehow(&mut self, host: usize) {
        let drain = self.dice.pick(&[Drain::InUse, Drain::Leaving, Drain::Withdrawn]);
        self.drain(host, drain);
    }

    pub fn drain(&mut self, host: usize, drain: Drain) {
        self.note(format!("h{host}: {drain:?}"));
        self.plan[host].drain = drain;
        self.configure(host);
    }

    fn partition(&mut self) {
        let (side, reason) = (self.dice.next(), self.dice.next());
        let time = self.dice.millis(500, 50_000);
        self.note(format!("hosts are parted by {side:b} for {time:?}"));
        for a in 0..self.hosts.len() {
            for b in a + 1..self.hosts.len() {
                if (side >> a ^ side >> b) & 1 == 1 {
                    self.net.silence(a, b, reason);
                }
            }
        }
        self.later(time, Task::EndSilence(reason));
    }

    fn crash(&mut self, host: usize) {
        let silently = self.dice.one_in(3);
        self.kill(host, silently);
        let restart = if silently || self.dice.one_in(2) { FRESH } else { GRACEFUL };
        let wait = self.dice.millis(1, 30_000);
        self.later(wait, Task::Boot { host, restart });
    }

    /// The speaker ends as told and comes back.
    fn leave(&mut self, host: usize) {
        let keeps = self.dice.one_in(2);
        let reason = match keeps {
            true => StopReason::KeepRoutes,
            false => StopReason::Shutdown { text: "simulation".to_owned() },
        };
        self.end(host, &reason);
        let wait = self.dice.millis(1, 30_000);
        self.later(wait, Task::Boot { host, restart: if keeps { GRACEFUL } else { FRESH } });
    }

    /// The speaker of a host says goodbye, or nothing, to its peers and ends.
    pub fn end(&mut self, host: usize, reason: &StopReason) {
        self.note(format!("h{host} ends: {reason}"));
        if let Some(speaker) = &mut self.hosts[host].speaker {
            speaker.stop(self.now, &mut self.net, reason);
        }
        self.kill(host, false);
    }

    fn reset(&mut self, host: usize) {
        let Some(speaker) = &mut self.hosts[host].speaker else { return };
        let keys: Vec<_> = speaker.peers.keys().copied().collect();
        if keys.is_empty() {
            return;
        }
        let key = self.dice.pick(&keys);
        let reason = StopReason::Shutdown { text: "reset".to_owned() };
        speaker.handle(self.now, &mut self.net, key, Event::Stop(reason));
        speaker.handle(self.now, &mut self.net, key, Event::Start);
        self.note(format!("h{host} resets a session"));
        self.wake(host, self.now);
    }

    pub fn ask_again(&mut self, host: usize) {
        let Some(speaker) = &mut self.hosts[host].speaker else { return };
        for key in speaker.peers.keys().copied().collect::<Vec<_>>() {
            speaker.ask_again(self.now, &mut self.net, key);
        }
        self.note(format!("h{host} asks for all routes again"));
    }

    /// Many routes at once, which go again later.
    fn storm(&mut self, host: usize) {
        let originate = &mut self.plan[host].originate;
        let before = originate.len();
        for number in 10..10 + 60 {
            let prefix = own_prefix(host, number);
            if originate.remove(&prefix).is_none() {
                originate.insert(prefix, Vec::new());
            }
        }
        let after = originate.len();
        self.note(format!("h{host} originates {after} prefixes and not {before}"));
        self.configure(host);
    }

    pub fn change_routes(&mut self, host: usize) {
        let prefix = match self.dice.one_in(2) {
            true => shared_prefix(&mut self.dice),
            false => own_prefix(host, self.dice.roll(4)),
        };
        let wanted = communities(&mut self.dice);
        let originate = &mut self.plan[host].originate;
        match originate.remove(&prefix) {
            None => drop(originate.insert(prefix, wanted)),
            Some(old) if old != wanted => drop(originate.insert(prefix, wanted)),
            Some(_) => {}
        }
        self.note(format!(
            "h{host} originates {prefix}: {:?}",
            self.plan[host].originate.get(&prefix)
        ));
        self.configure(host);
    }

    fn any_peer(&mut self, host: usize) -> Option<usize> {
        let peers: Vec<usize> = self.plan[host].peers.keys().copied().collect();
        (!peers.is_empty()).then(|| self.dice.pick(&peers))
    }

    /// A peer is taken out on one side, and put back later or at the end.
    fn remove_peer(&mut self, host: usize) {
        let Some(to) = self.any_peer(host) else { return };
        if self.plan[host].peers.len() > 1 && self.dice.one_in(2) {
            self.plan[host].peers.remove(&to);
            self.note(format!("h{host} does not want h{to} any more"));
        } else {
            let other = self.dice.roll(self.hosts.len());
            if other != host {
                let (a, b) = (peer(&mut self.dice), peer(&mut self.dice));
                self.plan[host].peers.entry(other).or_insert(a);
                self.plan[other].peers.entry(host).or_insert(b);
                self.note(format!("h{host} and h{other} are to be peers"));
                self.configure(other);
            }
        }
        self.configure(host);
    }

    /// What needs a new session, or changes how an established one is used.
    fn change_session(&mut self, host: usize) {
        let Some(to) = self.any_peer(host) else { return };
        let dice = &mut self.dice;
        let Some(peer) = self.plan[host].peers.get_mut(&to) else { return };
        match dice.roll(7) {
            0 => peer.hold_time_secs = dice.pick(&[9, 12, 30]),
            1 => {
                peer.graceful_restart = match peer.graceful_restart {
                    Some(_) => None,
                    None => Some(graceful_restart(dice)),
                };
            }
            2 => {
                let both = Families::from_iter(Family::ALL);
                let v4 = Families::NONE.with(Family::Ipv4Unicast);
                peer.families = dice.pick(&[both, v4]);
            }
            3 => peer.passive = false,
            _ => {
                let action = dice.pick(&[
                    PrefixLimitAction::Warn,
                    PrefixLimitAction::Drop,
                    PrefixLimitAction::Drop,
                    PrefixLimitAction::Stop { restart_after_secs: Some(20) },
                    PrefixLimitAction::Stop { restart_after_secs: None },
                ]);
                let prefixes_max = dice.pick(&[0, 2, 5]);
                let limit = PrefixLimit { prefixes_max, action };
                peer.prefix_limit = peer.prefix_limit.xor(Some(limit));
            }
        }
        let text = format!("h{host} changes its session with h{to}: {peer:?}");
        self.note(text);
        self.configure(host);
    }

    fn change_identity(&mut self, host: usize) {
        self.plan[host].router_id =
            std::net::Ipv4Addr::new(192, 0, 2 + self.dice.roll(3) as u8, host as u8 + 1);
        self.plan[host].paths_max = 1 + self.dice.roll(3) as u16;
        self.note(format!("h{host} is now {}", self.plan[host].router_id));
        self.configure(host);
    }

    pub fn change_policies(&mut self, host: usize) {
        let Some(to) = self.any_peer(host) else { return };
        let ebgp = self.plan[host].asn != self.plan[to].asn;
        let asn = self.plan[host].asn;
        let mut peer = self.plan[host].peers[&to].clone();
        match self.dice.roll(8) {
            // Reflection and next hops inside an AS.
            0 if !ebgp => peer.client = !peer.client,
            1 if !ebgp => {
                peer.next_hop = self.dice.pick(&[NextHopMode::Auto, NextHopMode::SelfAddress]);
            }
            2 => peer.scope = self.dice.pick(&[ExportScope::All, ExportScope::OriginatedOnly]),
            3..=5 => peer.export = self.rules(ebgp.then_some(asn), false),
            _ => {
                // Preferences stay where they cannot make two speakers wait for each other.
                let edge = ebgp && self.plan[to].peers.len() == 1;
                peer.import = self.rules(None, edge);
            }
        }
        self.note(format!("h{host} has new policies for h{to}: {peer:?}"));
        self.plan[host].peers.insert(to, peer);
        self.configure(host);
    }

    fn rules(&mut self, prepend: Option<u32>, prefers: bool) -> Vec<RulePlan> {
        let dice = &mut self.dice;
        let one = |dice: &mut super::dice::Dice| {
            let when = match dice.roll(4) {
                0 => When::Always,
                1 => When::Community(COMMUNITY),
                2 => When::Prefix(shared_prefix(dice)),
                _ => When::Prefix(own_prefix(dice.roll(5), dice.roll(3))),
            };
            let maybe = |dice: &mut super::dice::Dice, value: u32| dice.one_in(3).then_some(value);
            let set = Set {
                local_pref: if prefers { maybe(dice, 150) } else { None },
                med: dice.one_in(6).then(|| dice.pick(&[0, 5, 7])),
                add: maybe(dice, COMMUNITY + 1),
                remove: maybe(dice, COMMUNITY),
                prepend: match prepend {
                    Some(asn) if dice.one_in(3) => Some((asn, 1 + dice.roll(2) as u8)),
                    _ => None,
                },
            };
            let rejects = when != When::Always && dice.one_in(2);
            RulePlan { when, then: if rejects { Then::Reject } else { Then::Accept(set) } }
        };
        (0..dice.roll(3)).map(|_| one(dice)).collect()
    }

    /// Peers that were taken out on one side come back, and limits go.
    pub fn make_plan_whole(&mut self) {
        for peer in self.plan.iter_mut().flat_map(|speaker| speaker.peers.values_mut()) {
            peer.prefix_limit = None;
        }
        if self.dice.one_in(2) {
            self.plan.iter_mut().for_each(|speaker| speaker.drain = Drain::InUse);
        }
        let plan = self.plan.clone();
        for (host, speaker) in plan.iter().enumerate() {
            for to in speaker.peers.keys() {
                let mut back: BTreeMap<usize, PeerPlan> = BTreeMap::new();
                if !plan[*to].peers.contains_key(&host) {
                    back.insert(host, peer(&mut self.dice));
                }
                self.plan[*to].peers.append(&mut back);
            }
        }
        for host in 0..self.hosts.len() {
            self.configure(host);
        }
    }

    /// Lets time pass in which things go wrong.
    pub fn suffer(&mut self, faults: usize) -> Result<(), super::world::Failure> {
        for _ in 0..faults {
            let wait = match self.dice.roll(3) {
                0 => Duration::ZERO,
                1 => self.dice.millis(1, 300),
                _ => self.dice.millis(300, 12_000),
            };
            self.run_for(wait)?;
            self.disturb();
        }
        Ok(())
    }
}
