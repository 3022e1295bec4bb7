//! Taking a node out of use: others move their traffic away, then its routes are withdrawn (docs/adr/0017).
//!
//! ```text
//!  annotation of the Node ──► Wish ──┐             ┌─► departure() ──► plan: policy of every session
//!  what peers have acknowledged ─────┼─► step() ───┤
//!  pods, role as a reflector ────────┘             └─► status() ──► BGPNodeStatus, events
//!
//!  Leaving ──heard, settled, has handed over──► Withdrawing ──no pods, heard, has handed over──► Drained
//!                                                   ▲──a pod has begun, another may reflect───────┘
//! ```
//!
//! To hand over is a route reflector's: to another node, where one may take its place. Until then it goes on
//! passing on what other nodes hear of each other by it.
//!
//! No session ends for it, so that the way back is one UPDATE long, whenever it is gone. The phase outlives
//! the process: an agent that restarts on a drained node announces nothing.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::{Duration, Instant};

use cairn_api::{ANNOTATION_DRAIN, DrainPhase, DrainStatus};
use cairn_bgp::config::PeerName;
use cairn_bgp::speaker::{Delivery, Reception};
use ipnet::IpNet;
use k8s_openapi::api::core::v1::Node;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;
use k8s_openapi::jiff::Timestamp;
use serde::{Deserialize, Serialize};

use crate::ipam::Storage;
use crate::ipam::disk::{self, Found, Owner};
use crate::pods::Usage;

/// What people want of a node.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Wish {
    /// It stays in use.
    #[default]
    Stay,
    /// It is drained; blocks with pods are announced for as long as they have some.
    Leave,
    /// It is drained, and its pods cannot be reached any more.
    LeaveWithPods,
}

impl Wish {
    /// By the annotation [`ANNOTATION_DRAIN`] of `node`.
    ///
    /// # Errors
    /// Its value is none; the text says which there are.
    pub fn of(node: &Node) -> Result<Wish, String> {
        let value = node.metadata.annotations.as_ref().and_then(|map| map.get(ANNOTATION_DRAIN));
        let cordoned = || node.spec.as_ref().and_then(|spec| spec.unschedulable) == Some(true);
        match value.map(String::as_str) {
            None => Ok(Wish::Stay),
            Some(NOW) => Ok(Wish::Leave),
            Some(NOW_WITH_PODS) => Ok(Wish::LeaveWithPods),
            Some(ON_CORDON) if cordoned() => Ok(Wish::Leave),
            Some(ON_CORDON) => Ok(Wish::Stay),
            Some(other) => Err(format!(
                "annotation {ANNOTATION_DRAIN}=\"{other}\" drains nothing: write {NOW}, {NOW_WITH_PODS} or \
                 {ON_CORDON}, or remove it"
            )),
        }
    }
}

/// What of a node's routes is announced, and how.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub enum Departure {
    /// All, as ever.
    #[default]
    None,
    /// All, to be used last.
    Leaving,
    /// Nothing but these blocks, to be used last.
    Withdrawn {
        /// Those with pods.
        but: BTreeSet<IpNet>,
    },
}

impl Departure {
    /// Whether a block of the node's is announced.
    pub fn announces(&self, block: &IpNet) -> bool {
        match self {
            Departure::None | Departure::Leaving => true,
            Departure::Withdrawn { but } => but.contains(block),
        }
    }
}

/// What a node is for what other nodes of its AS hear of each other.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Reflection {
    /// Nothing.
    #[default]
    None,
    /// A route reflector, until the leader has recorded another in its place.
    Replaceable,
    /// A route reflector in whose place no other node may come.
    Alone,
}

/// What BGP says of what is to be announced.
#[derive(Debug)]
pub enum Answer {
    /// It runs as planned.
    Delivery {
        /// How far peers with a session are.
        delivery: Delivery,
        /// Peers that should have a session and have none.
        missing: Vec<PeerName>,
        /// When BGP has started: what peers heard before that they keep until they have a session, or for
        /// `restart_time`.
        started: Instant,
        /// How long peers are asked to keep it.
        restart_time: Duration,
    },
    /// It does not run, or not as planned: why.
    Not(String),
}

/// What other parts of the agent hear of a drain.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Told {
    /// How far it is; `None` on a node in use.
    pub status: Option<DrainStatus>,
    /// What is announced.
    pub departure: Departure,
}

/// The pods of a node that have addresses.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
struct Pods {
    blocks: BTreeSet<IpNet>,
    names: BTreeSet<String>,
}

impl Pods {
    /// Those in what the node announces. A tunnel device of its own is no pod, but its block stays with theirs.
    fn of(usage: &Usage, announced: &[IpNet]) -> Pods {
        let in_blocks = usage.blocks.iter().flat_map(|block| &block.allocations);
        let mut pods = Pods::default();
        let mut lodgings: BTreeSet<IpNet> = BTreeSet::new();
        for (address, id) in in_blocks.chain(&usage.outside) {
            let blocks = announced.iter().filter(|block| block.contains(address));
            if id.device().is_some() {
                lodgings.extend(blocks);
                continue;
            }
            pods.blocks.extend(blocks);
            let named = usage.pods.get(id).filter(|pod| pod.name().is_some());
            pods.names.insert(named.map_or_else(|| id.to_string(), ToString::to_string));
        }
        // The node's own packets through a tunnel have the device's address: they go on while pods do.
        if !pods.blocks.is_empty() {
            pods.blocks.extend(lodgings);
        }
        pods
    }

    fn some(&self) -> String {
        some_of(self.names.iter().map(String::as_str))
    }

    fn count(&self) -> String {
        match self.names.len() {
            1 => "1 pod has an address".to_owned(),
            count => format!("{count} pods have addresses"),
        }
    }
}

/// What the next phase follows from.
#[derive(Clone, Debug, Default)]
struct Facts {
    wish: Wish,
    pods: Pods,
    reflects: Reflection,
    /// How far peers are with what is to be announced.
    reception: Reception,
    /// Since when they have all of it.
    heard: Option<Instant>,
    /// Peers that may have had a session before the agent restarted, and keep what they heard then.
    missing: Vec<PeerName>,
    /// Why BGP does not do as planned.
    hindrance: Option<String>,
}

impl Facts {
    fn is_heard(&self) -> bool {
        match self.reception {
            Reception::Acknowledged | Reception::Nobody => self.missing.is_empty(),
            Reception::Unknown | Reception::Awaited(_) => false,
        }
    }

    /// The pods for whose sake blocks stay.
    fn is_needed(&self) -> bool {
        self.wish == Wish::Leave && !self.pods.blocks.is_empty()
    }

    /// The phase after `phase`; `None` on a node in use.
    fn next(&self, phase: Option<DrainPhase>, now: Instant) -> Option<DrainPhase> {
        if self.wish == Wish::Stay {
            return None;
        }
        let hands_over = self.reflects == Reflection::Replaceable;
        Some(match phase.unwrap_or(DrainPhase::Leaving) {
            DrainPhase::Leaving if !hands_over && self.settles_at().is_some_and(|at| at <= now) => {
                DrainPhase::Withdrawing
            }
            DrainPhase::Withdrawing if self.is_heard() && !self.is_needed() && !hands_over => {
                DrainPhase::Drained
            }
            DrainPhase::Drained if self.is_needed() || hands_over => DrainPhase::Withdrawing,
            phase => phase,
        })
    }

    /// When others have had time to move their traffic.
    fn settles_at(&self) -> Option<Instant> {
        self.heard.map(|since| since + SETTLE)
    }

    fn departure(&self, phase: Option<DrainPhase>) -> Departure {
        match (phase, self.wish) {
            (None, _) => Departure::None,
            (Some(DrainPhase::Leaving), _) => Departure::Leaving,
            (Some(_), Wish::LeaveWithPods) => Departure::Withdrawn { but: BTreeSet::new() },
            (Some(_), _) => Departure::Withdrawn { but: self.pods.blocks.clone() },
        }
    }

    /// What is the case, in words.
    fn message(&self, phase: DrainPhase) -> String {
        let mut text = self.step(phase);
        match (self.reflects, phase) {
            (Reflection::None, _) | (Reflection::Replaceable, DrainPhase::Drained) => {}
            (Reflection::Replaceable, _) => {
                text += "; waits for the leader to choose other route reflectors, and until then passes on \
                         the routes of other nodes";
            }
            (Reflection::Alone, _) => {
                text += "; it goes on passing on the routes of other nodes, as no other node may take its place \
                         as a route reflector: undo the drain of one, or take the label \
                         cairn.network/route-reflector=false from one, before this machine goes";
            }
        }
        text
    }

    /// The same, without what concerns a route reflector.
    fn step(&self, phase: DrainPhase) -> String {
        let awaited = match &self.reception {
            Reception::Awaited(peers) => Some(some_of(peers.iter().map(|peer| &**peer))),
            Reception::Unknown | Reception::Nobody | Reception::Acknowledged => None,
        };
        let begins = self.reception == Reception::Unknown;
        match (phase, awaited) {
            (DrainPhase::Leaving | DrainPhase::Withdrawing, _) if self.hindrance.is_some() => {
                format!("waits: {}", self.hindrance.as_deref().unwrap_or_default())
            }
            (DrainPhase::Leaving | DrainPhase::Withdrawing, _) if !self.missing.is_empty() => {
                format!(
                    "the agent has started: waits for its sessions with {}",
                    some_of(self.missing.iter().map(|peer| &**peer))
                )
            }
            (DrainPhase::Leaving, _) if begins => "all is being announced to be used last".into(),
            (DrainPhase::Leaving, Some(peers)) => {
                format!("all is announced to be used last; waits for {peers} to acknowledge")
            }
            (DrainPhase::Leaving, None) => format!(
                "all is announced to be used last{}; others have {} s to move their traffic",
                self.heard_by(),
                SETTLE.as_secs()
            ),
            (DrainPhase::Withdrawing, _) if self.is_needed() => format!(
                "all is withdrawn but the blocks of pods, of which {}: {}",
                self.pods.count(),
                self.pods.some()
            ),
            (DrainPhase::Withdrawing, Some(peers)) => {
                format!("all is withdrawn; waits for {peers} to acknowledge")
            }
            (DrainPhase::Withdrawing, None) => "all is being withdrawn".into(),
            (DrainPhase::Drained, _) if self.pods.names.is_empty() => {
                format!("nothing is announced{}", self.heard_by())
            }
            (DrainPhase::Drained, _) => format!(
                "nothing is announced; {} that cannot be reached: {}",
                self.pods.count(),
                self.pods.some()
            ),
        }
    }

    fn heard_by(&self) -> &'static str {
        match self.reception {
            Reception::Nobody => " (no session is established, so nobody hears it)",
            Reception::Acknowledged => ", which all peers with a session have acknowledged",
            Reception::Unknown | Reception::Awaited(_) => "",
        }
    }
}

/// The drain of this node.
#[derive(Debug)]
pub struct Drain {
    storage: Arc<dyn Storage>,
    owner: Owner,
    /// In which phase it is, and since when in seconds of Unix time; `None` on a node in use.
    phase: Option<(DrainPhase, i64)>,
    facts: Facts,
    /// What peers are asked about.
    delivery: Delivery,
    look: Option<Instant>,
}

impl Drain {
    /// With the phase that an earlier agent of this boot has left in `storage`.
    pub fn open(storage: Arc<dyn Storage>, owner: Owner) -> Drain {
        let phase = match disk::read::<Document>(storage.as_ref(), &owner, FILE, FORMAT..=FORMAT) {
            Found::Document(document) => document.phase.zip(document.since_unix_secs),
            Found::Nothing => None,
            Found::Unusable(reason) => {
                tracing::warn!(
                    "{FILE} of the run directory is not used: {reason}; a drain begins anew"
                );
                None
            }
        };
        // What is wanted is known with the first view; until then it is what was.
        let wish = if phase.is_some() { Wish::Leave } else { Wish::Stay };
        let facts = Facts { wish, ..Facts::default() };
        let look = phase.map(|_| Instant::now());
        Drain { storage, owner, phase, facts, delivery: Delivery::default(), look }
    }

    /// Whether the node is drained, or on the way.
    pub fn is_under_way(&self) -> bool {
        self.phase.is_some()
    }

    /// What of the node's routes is announced.
    pub fn departure(&self) -> Departure {
        self.facts.departure(self.phase.map(|(phase, _)| phase))
    }

    /// How far it is.
    pub fn status(&self) -> Option<DrainStatus> {
        let (phase, since) = self.phase?;
        let since = Time(Timestamp::from_second(since).unwrap_or_default());
        Some(DrainStatus { phase, since, message: self.facts.message(phase) })
    }

    /// The same for other parts of the agent.
    pub fn told(&self) -> Told {
        Told { status: self.status(), departure: self.departure() }
    }

    /// Takes in what is known of the node: without its Node what was wanted is wanted, and a value that is
    /// none drains nothing.
    pub fn know(&mut self, now: Instant, node: Option<&Node>, usage: &Usage, announced: &[IpNet]) {
        let before = self.departure();
        if let Some(node) = node {
            self.facts.wish = Wish::of(node).unwrap_or_default();
        }
        // Of a node in use nobody asks.
        self.facts.pods = match self.facts.wish {
            Wish::Stay => Pods::default(),
            Wish::Leave | Wish::LeaveWithPods => Pods::of(usage, announced),
        };
        // What was heard was about what was announced before.
        if self.departure() != before {
            self.begin(now);
        }
        self.step(now);
    }

    /// Takes in whether the node is a route reflector, before that is applied.
    pub fn reflects(&mut self, now: Instant, reflects: Reflection) {
        let before = std::mem::replace(&mut self.facts.reflects, reflects);
        match self.phase {
            Some(_) if before == reflects => {}
            Some((DrainPhase::Leaving, _)) => self.look = Some(now),
            // What it passed on is withdrawn, or it passes on again.
            Some(_) => self.begin(now),
            None => {}
        }
    }

    /// Has peers asked soon, as sessions have changed.
    pub fn look(&mut self, now: Instant) {
        if self.phase.is_some_and(|(phase, _)| phase != DrainPhase::Drained) {
            self.look = Some(now);
        }
    }

    /// When peers are to be asked how far they are, and [`Drain::heard`] to be told.
    pub fn next_deadline(&self) -> Option<Instant> {
        self.look.filter(|_| self.is_under_way())
    }

    /// What the speaker is to be asked about.
    pub fn delivery(&self) -> Delivery {
        self.delivery.clone()
    }

    /// Takes in what it has answered; true when something else is to be announced than before.
    pub fn heard(&mut self, now: Instant, answer: Answer) -> bool {
        let before = self.departure();
        self.take(now, answer);
        self.step(now);
        let differs = self.departure() != before;
        if !differs {
            let phase = self.phase.map(|(phase, _)| phase);
            let settles = self.facts.settles_at().filter(|_| phase == Some(DrainPhase::Leaving));
            self.look = match (&self.facts.hindrance, self.facts.is_heard()) {
                (Some(_), _) => Some(now + HINDERED_INTERVAL),
                (None, false) => Some(now + LOOK_INTERVAL),
                // A reflector waits for the leader's record, which makes a new plan.
                (None, true) => settles.filter(|at| *at > now),
            };
        }
        differs
    }

    fn take(&mut self, now: Instant, answer: Answer) {
        let (delivery, missing, hindrance) = match answer {
            Answer::Not(reason) => (Delivery::default(), Vec::new(), Some(reason)),
            Answer::Delivery { delivery, missing, started, restart_time } => {
                let may_come = now < started + restart_time.max(SESSIONS_WITHIN);
                (delivery, if may_come { missing } else { Vec::new() }, None)
            }
        };
        self.delivery = delivery;
        let was = std::mem::replace(&mut self.facts.reception, self.delivery.reception().clone());
        (self.facts.missing, self.facts.hindrance) = (missing, hindrance);
        // Who hears now has not heard before.
        if was == Reception::Nobody && self.facts.reception != was {
            self.facts.heard = None;
        }
        self.facts.heard = self.facts.is_heard().then(|| self.facts.heard.unwrap_or(now));
    }

    /// Something else is announced from now on: nobody has heard of it.
    fn begin(&mut self, now: Instant) {
        self.delivery = Delivery::default();
        (self.facts.reception, self.facts.heard) = (Reception::Unknown, None);
        self.look = Some(now);
    }

    fn step(&mut self, now: Instant) {
        let old = self.phase.map(|(phase, _)| phase);
        let new = self.facts.next(old, now);
        if new == old {
            return;
        }
        let before = self.departure();
        self.phase = new.map(|phase| (phase, Timestamp::now().as_second()));
        match new {
            Some(phase) => tracing::info!("drain: {phase:?}"),
            None => tracing::info!("drain: undone, all is announced as ever"),
        }
        self.remember();
        if self.departure() != before {
            self.begin(now);
        }
    }

    fn remember(&self) {
        let (phase, since_unix_secs) = self.phase.unzip();
        let document = Document { phase, since_unix_secs };
        let written =
            disk::write_if_new(self.storage.as_ref(), &self.owner, FILE, FORMAT, &document, None);
        if let Err(error) = written {
            tracing::warn!(
                "cannot write {FILE} in the run directory ({error}): after a restart of the agent its drain \
                 begins anew; see that the disk has room"
            );
        }
    }
}

/// The first few of `names`, and how many more there are.
fn some_of<'a>(mut names: impl Iterator<Item = &'a str>) -> String {
    let named: Vec<&str> = names.by_ref().take(NAMED_MAX).collect();
    let named = named.join(", ");
    match names.count() {
        0 => named,
        more => format!("{named}, {more} more"),
    }
}

/// What outlives the process.
#[derive(Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
struct Document {
    phase: Option<DrainPhase>,
    since_unix_secs: Option<i64>,
}

/// Values of the annotation.
pub(crate) const NOW: &str = "now";
pub(crate) const NOW_WITH_PODS: &str = "now-with-pods";
pub(crate) const ON_CORDON: &str = "on-cordon";

/// How long others have to move their traffic once the last peer has heard: it passes the word on to its own
/// peers, and their hardware takes its time.
pub const SETTLE: Duration = Duration::from_secs(10);
/// How long sessions may take to come up again after a restart of the agent, also where peers keep nothing.
const SESSIONS_WITHIN: Duration = Duration::from_secs(30);
/// Between two looks at whether peers have acknowledged.
const LOOK_INTERVAL: Duration = Duration::from_millis(200);
/// Between two looks at whether BGP does as planned.
const HINDERED_INTERVAL: Duration = Duration::from_secs(2);
/// Pods, or peers, that a message names.
const NAMED_MAX: usize = 5;
const FILE: &str = "drain.json";
const FORMAT: u32 = 1;

#[cfg(test)]
#[path = "drain_tests.rs"]
mod tests;
