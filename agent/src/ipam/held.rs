//! What this node knows of each of its blocks, and how the watch changes that.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use cairn_api::{IPBlock, ObjectReference};
use cairn_ipam::{BlockState, BlockUsage, OwnBlock};
use ipnet::IpNet;

use crate::view::ClusterView;

/// A block whose object names this Node.
#[derive(Clone, Debug)]
pub(super) struct Held {
    pub(super) uid: String,
    pub(super) pool: ObjectReference,
    pub(super) phase: Phase,
    /// This process claimed it.
    pub(super) newly_claimed: bool,
    pub(super) terminating: bool,
    /// The watch has shown it.
    pub(super) seen: bool,
    pub(super) since: Duration,
    pub(super) idle_since: Option<Duration>,
    pub(super) backoff: Backoff,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Phase {
    Unverified,
    Confirmed,
    Conflict(String),
    Unfit(String),
    /// On its way back. Once the DELETE may have left nothing brings the block back.
    Releasing {
        sent: bool,
    },
    /// Gone at the server; the watch has not shown it yet.
    Gone,
}

/// A block without a valid object of ours in which pods live.
#[derive(Clone, Debug)]
pub(super) struct Lost {
    pub(super) pool: ObjectReference,
    /// Its object is there and names an earlier Node of this name.
    pub(super) of_earlier_node: bool,
    /// Who else has it now.
    pub(super) conflict: Option<String>,
    pub(super) backoff: Backoff,
}

impl Lost {
    fn new(pool: ObjectReference) -> Lost {
        Lost { pool, of_earlier_node: false, conflict: None, backoff: Backoff::default() }
    }
}

/// When the next try is due.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Backoff {
    pub(super) due: Duration,
    pub(super) tries: u32,
}

impl Backoff {
    pub(super) fn fail(&mut self, now: Duration) {
        let wait = RETRY_MIN.saturating_mul(1 << self.tries.min(8)).min(RETRY_MAX);
        self.tries = self.tries.saturating_add(1);
        self.due = now.saturating_add(wait);
    }

    pub(super) fn is_due(&self, now: Duration) -> bool {
        now >= self.due
    }
}

impl Held {
    pub(super) fn new(block: &IPBlock, uid: String, now: Duration) -> Held {
        Held {
            uid,
            pool: block.spec.pool.clone(),
            phase: Phase::Unverified,
            newly_claimed: false,
            terminating: false,
            seen: false,
            since: now,
            idle_since: None,
            backoff: Backoff::default(),
        }
    }

    fn state(&self) -> BlockState {
        match &self.phase {
            Phase::Releasing { .. } | Phase::Gone => BlockState::Releasing,
            _ if self.terminating => BlockState::Terminating,
            Phase::Conflict(_) => BlockState::Conflict,
            Phase::Confirmed => BlockState::Confirmed,
            Phase::Unverified | Phase::Unfit(_) => BlockState::Unverified,
        }
    }
}

/// The node's blocks.
#[derive(Debug, Default)]
pub(super) struct Ledger {
    /// The UID of the Node for which the blocks in `held` are.
    pub(super) node_uid: Option<String>,
    pub(super) held: BTreeMap<IpNet, Held>,
    pub(super) lost: BTreeMap<IpNet, Lost>,
}

impl Ledger {
    /// Holds nothing for confirmed that was confirmed before the fence was down: the leader may have
    /// returned it meanwhile, and the watch may not show that yet.
    pub(super) fn doubt(&mut self) {
        for held in self.held.values_mut() {
            if !matches!(held.phase, Phase::Releasing { .. } | Phase::Gone) {
                held.phase = Phase::Unverified;
                held.newly_claimed = false;
                held.backoff = Backoff::default();
            }
        }
    }

    /// The object of a block is gone, or not ours.
    pub(super) fn lose(&mut self, cidr: IpNet) {
        if let Some(held) = self.held.remove(&cidr) {
            self.lost.insert(cidr, Lost::new(held.pool));
        }
    }

    /// Takes in what the watch shows of this node's blocks. Returns those that it shows.
    pub(super) fn reconcile(
        &mut self,
        view: &ClusterView,
        node_uid: &str,
        usages: &BTreeMap<IpNet, BlockUsage>,
        now: Duration,
    ) -> BTreeSet<IpNet> {
        if self.node_uid.as_deref() != Some(node_uid) {
            let all: Vec<IpNet> = self.held.keys().copied().collect();
            all.into_iter().for_each(|cidr| self.lose(cidr));
            self.node_uid = Some(node_uid.to_owned());
        }
        let mut shown = BTreeSet::new();
        let mut earlier = BTreeSet::new();
        for block in view.own_blocks.values() {
            let Ok(cidr) = block.spec.cidr.parse::<IpNet>() else { continue };
            if block.spec.node.uid != node_uid {
                earlier.insert(cidr);
                self.lost.entry(cidr).or_insert_with(|| Lost::new(block.spec.pool.clone()));
                continue;
            }
            shown.insert(cidr);
            let uid = block.metadata.uid.clone().unwrap_or_default();
            let terminating = block.metadata.deletion_timestamp.is_some();
            match self.held.get_mut(&cidr) {
                Some(held) if held.uid == uid => {
                    held.seen = true;
                    held.terminating |= terminating;
                }
                // The watch is behind a claim that has just succeeded.
                Some(held) if !held.seen => {}
                _ => {
                    let mut held = Held::new(block, uid, now);
                    held.seen = true;
                    held.terminating = terminating;
                    self.held.insert(cidr, held);
                }
            }
        }
        let held = self.held.iter();
        let vanished = held.filter(|(cidr, held)| held.seen && !shown.contains(*cidr));
        let vanished: Vec<IpNet> = vanished.map(|(cidr, _)| *cidr).collect();
        for cidr in vanished {
            if self.held.get(&cidr).is_some_and(|held| held.phase == Phase::Gone) {
                self.held.remove(&cidr);
            }
            self.lose(cidr);
        }
        for (cidr, held) in &mut self.held {
            self.lost.remove(cidr);
            let idle = usages.get(cidr).is_some_and(|usage| usage.used == 0);
            held.idle_since = idle.then(|| held.idle_since.unwrap_or(now));
        }
        for (cidr, lost) in &mut self.lost {
            lost.of_earlier_node = earlier.contains(cidr);
        }
        shown.extend(earlier);
        shown
    }

    /// The blocks as the decision needs them.
    pub(super) fn own(&self, usages: &BTreeMap<IpNet, BlockUsage>, now: Duration) -> Vec<OwnBlock> {
        let held = self.held.iter().map(|(cidr, held)| OwnBlock {
            cidr: *cidr,
            pool: held.pool.name.clone(),
            pool_uid: held.pool.uid.clone(),
            state: held.state(),
            usage: usages.get(cidr).cloned(),
            idle_secs: held.idle_since.map_or(0, |since| now.saturating_sub(since).as_secs()),
        });
        let lost = self.lost.iter().map(|(cidr, lost)| OwnBlock {
            cidr: *cidr,
            pool: lost.pool.name.clone(),
            pool_uid: lost.pool.uid.clone(),
            state: if lost.of_earlier_node { BlockState::OfEarlierNode } else { BlockState::Lost },
            usage: usages.get(cidr).cloned(),
            idle_secs: 0,
        });
        held.chain(lost).collect()
    }
}

const RETRY_MIN: Duration = Duration::from_millis(200);
const RETRY_MAX: Duration = Duration::from_secs(30);
