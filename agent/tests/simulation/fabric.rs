//! The BGP fabric: what each machine's agent announces reaches the others after a while, and stays
//! for a while when the agent is gone (graceful restart).

use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::Duration;

use cairn_agent::ipam::{Heard, Witness};
use futures::FutureExt;
use futures::future::BoxFuture;
use ipnet::IpNet;
use tokio::sync::watch;
use tokio::time::Instant;

use super::kernel::MachineId;

/// The routes between machines. Clones are the same.
#[derive(Clone, Debug, Default)]
pub struct Fabric(Arc<Mutex<Network>>);

#[derive(Debug, Default)]
struct Network {
    speakers: BTreeMap<MachineId, Speaker>,
    /// What the first has from the second.
    heard: BTreeMap<(MachineId, MachineId), AdjRibIn>,
    /// Machines that no other reaches.
    cut: BTreeSet<MachineId>,
    /// The Node of each.
    nodes: BTreeMap<MachineId, String>,
    /// When a machine could speak to others last.
    connected: BTreeMap<MachineId, Instant>,
}

#[derive(Debug)]
struct Speaker {
    announced: Vec<IpNet>,
    /// When its sessions are up.
    up: Instant,
    routes: watch::Sender<Arc<BTreeSet<IpNet>>>,
}

#[derive(Debug, Default)]
struct AdjRibIn {
    routes: Vec<IpNet>,
    /// Since when the peer is gone.
    stale: Option<Instant>,
}

impl Fabric {
    fn network(&self) -> MutexGuard<'_, Network> {
        self.0.lock().expect("the fabric")
    }

    /// A speaker begins; what it hears comes out as the prefixes of routes.
    pub fn join(&self, machine: MachineId, node: &str) -> watch::Receiver<Arc<BTreeSet<IpNet>>> {
        let (routes, heard) = watch::channel(Arc::default());
        let up = Instant::now() + SESSION_UP;
        let mut network = self.network();
        network.heard.retain(|(to, _), _| *to != machine);
        network.nodes.insert(machine, node.to_owned());
        network.speakers.insert(machine, Speaker { announced: Vec::new(), up, routes });
        heard
    }

    /// The speaker ends.
    pub fn leave(&self, machine: MachineId) {
        let mut network = self.network();
        network.speakers.remove(&machine);
        network.heard.retain(|(to, _), _| *to != machine);
    }

    /// What a speaker announces from now on.
    pub fn announce(&self, machine: MachineId, blocks: Vec<IpNet>) {
        if let Some(speaker) = self.network().speakers.get_mut(&machine) {
            speaker.announced = blocks;
        }
    }

    /// Cuts a machine off, or connects it again.
    pub fn set_cut(&self, machine: MachineId, cut: bool) {
        let mut network = self.network();
        let changes = match cut {
            true => network.cut.insert(machine),
            false => network.cut.remove(&machine),
        };
        if let (true, Some(speaker)) = (changes, network.speakers.get_mut(&machine)) {
            speaker.up = speaker.up.max(Instant::now());
        }
    }

    /// Whether the machine is cut off.
    pub fn is_cut(&self, machine: MachineId) -> bool {
        self.network().cut.contains(&machine)
    }

    /// When the machine could speak to others last; `None` when it never could.
    pub fn connected(&self, machine: MachineId) -> Option<Instant> {
        self.network().connected.get(&machine).copied()
    }

    /// Whether the machine's sessions have been up for so long, and have brought what others announce.
    fn is_settled(&self, machine: MachineId, lasting: Duration) -> bool {
        let network = self.network();
        let Some(speaker) = network.speakers.get(&machine) else { return false };
        speaker.up + TICK + lasting <= Instant::now() && !network.cut.contains(&machine)
    }

    /// Carries routes for as long as it is polled.
    pub async fn run(self, stale_max: Duration) {
        loop {
            tokio::time::sleep(TICK).await;
            self.network().tick(stale_max);
        }
    }

    fn heard(&self, machine: MachineId, cidr: IpNet) -> Vec<Heard> {
        let network = self.network();
        let of = network.heard.iter().filter(|((to, _), _)| *to == machine);
        let node = network.nodes.get(&machine);
        of.flat_map(|((_, from), rib)| {
            // Of one AS and one router ID, as the machine's own on their way back are.
            let looped = network.nodes.get(from) == node;
            let inside = rib.routes.iter().filter(move |route| cidr.contains(*route));
            inside.map(move |route| Heard { prefix: *route, peer: format!("m{from}"), looped })
        })
        .collect()
    }
}

impl Network {
    fn tick(&mut self, stale_max: Duration) {
        let now = Instant::now();
        let up =
            self.speakers.iter().filter(|(machine, s)| s.up <= now && !self.cut.contains(machine));
        self.connected.extend(up.map(|(machine, _)| (*machine, now)));
        let pairs: BTreeSet<(MachineId, MachineId)> = self
            .speakers
            .keys()
            .flat_map(|to| self.speakers.keys().map(move |from| (*to, *from)))
            .filter(|(to, from)| to != from)
            .chain(self.heard.keys().copied())
            .collect();
        for (to, from) in pairs {
            let cut = self.cut.contains(&to) || self.cut.contains(&from);
            let there = self.speakers.get(&to).is_some_and(|s| s.up <= now);
            let peer = self.speakers.get(&from).filter(|s| there && !cut && s.up <= now);
            let rib = self.heard.entry((to, from)).or_default();
            match peer {
                Some(peer) => {
                    rib.routes.clone_from(&peer.announced);
                    rib.stale = None;
                }
                None if now - *rib.stale.get_or_insert(now) > stale_max => {
                    self.heard.remove(&(to, from));
                }
                None => {}
            }
        }
        for (machine, speaker) in &self.speakers {
            let of = self.heard.iter().filter(|((to, _), _)| to == machine);
            let routes: BTreeSet<IpNet> =
                of.flat_map(|(_, rib)| rib.routes.iter().copied()).collect();
            speaker.routes.send_if_modified(|held| {
                let changed = **held != routes;
                if changed {
                    *held = Arc::new(routes);
                }
                changed
            });
        }
    }
}

/// What one machine hears.
#[derive(Clone, Debug)]
pub struct Ear {
    pub fabric: Fabric,
    pub machine: MachineId,
}

impl Witness for Ear {
    fn heard(&self, cidr: IpNet) -> BoxFuture<'static, Vec<Heard>> {
        let this = self.clone();
        async move {
            tokio::time::sleep(ANSWER).await;
            this.fabric.heard(this.machine, cidr)
        }
        .boxed()
    }

    fn settled(&self) -> BoxFuture<'static, bool> {
        let settled = self.fabric.is_settled(self.machine, Duration::ZERO);
        std::future::ready(settled).boxed()
    }

    fn why_deaf(&self, lasting: Duration) -> BoxFuture<'static, Option<String>> {
        let deaf = !self.fabric.is_settled(self.machine, lasting);
        std::future::ready(deaf.then(|| "no session is up".to_owned())).boxed()
    }
}

/// What a change takes to reach the others, at most.
const TICK: Duration = Duration::from_millis(300);
/// What sessions take to come up.
const SESSION_UP: Duration = Duration::from_millis(1_500);
const ANSWER: Duration = Duration::from_millis(1);
