//! Returns blocks as planned: one last look at each Node, then DELETEs, at a bounded rate.

use std::collections::BTreeSet;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use cairn_api::{IPBlock, IPBlockSpec, ObjectReference, block_name, block_range};
use cairn_ipam::returns::{BlockSeen, Fate, Ground, LastLook, NodeReturn, fate};
use cairn_ipam::rules::Rule;
use futures::{StreamExt, stream};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;
use k8s_openapi::jiff::Timestamp;
use tokio::sync::watch;

use super::election::Leadership;
use super::lists::Lists;
use crate::ipam::Shared;
use crate::ipam::api::BlockApi;
use crate::ipam::error::IpamError;
use crate::ipam::events::{About, Reason};

/// Carries out the newest plan, for as long as it is polled, and counts those that changed something.
pub(super) async fn run(
    shared: Shared,
    lists: Lists,
    leadership: watch::Receiver<Leadership>,
    mut plans: watch::Receiver<Arc<Vec<NodeReturn>>>,
    returned: &watch::Sender<u64>,
) {
    let api = BlockApi::new(&shared);
    let pace = Pace::default();
    let gone = BTreeSet::new();
    let mut returns = Returns { shared, lists, api, leadership, pace, gone };
    while plans.changed().await.is_ok() {
        let plan = Arc::clone(&plans.borrow_and_update());
        if returns.carry_out(&plan).await > 0 {
            returned.send_modify(|passes| *passes = passes.wrapping_add(1));
        }
    }
}

struct Returns {
    shared: Shared,
    lists: Lists,
    api: BlockApi,
    leadership: watch::Receiver<Leadership>,
    pace: Pace,
    /// The UIDs of blocks that the last plan has returned. The next one may have been made while
    /// that went on, and then names many of them.
    gone: BTreeSet<String>,
}

/// What became of one block.
enum Outcome {
    Returned,
    Waits,
    Stays(String),
}

impl Returns {
    /// Returns how many blocks have gone. What fails keeps nothing else from being tried.
    async fn carry_out(&mut self, plan: &[NodeReturn]) -> usize {
        let mut problems = Problems::default();
        let mut gone = BTreeSet::new();
        for planned in plan {
            if !self.leads() {
                break;
            }
            let blocks = planned.blocks.iter().filter(|block| !self.gone.contains(&block.uid));
            let blocks: Vec<BlockSeen> = blocks.cloned().collect();
            if blocks.is_empty() {
                continue;
            }
            match self.node(planned, blocks, &mut problems).await {
                Ok(returned) => {
                    self.tell(planned, &returned);
                    gone.extend(returned.into_iter().map(|block| block.uid));
                }
                Err(error) => problems.add(error.to_string()),
            }
        }
        self.shared.reports.report("returns", problems.told());
        self.gone = gone;
        self.gone.len()
    }

    /// Returns these blocks of one Node as far as the last look lets it.
    async fn node(
        &self,
        planned: &NodeReturn,
        blocks: Vec<BlockSeen>,
        problems: &mut Problems,
    ) -> Result<Vec<BlockSeen>, IpamError> {
        // Without a person's word a missing route is the last thing that speaks for a return.
        if let Some(why) = self.why_deaf(planned).await {
            let (of, blocks) = (subject(planned), blocks.len());
            problems.add(format!(
                "{blocks} blocks of {of} stay: {why}, so that a machine that is still on may announce \
                 them unheard; mend the sessions (cairn bgp peers), or if the machine is off: cairn \
                 ipam fence {}",
                planned.owner.name
            ));
            return Ok(Vec::new());
        }
        let mut look = LastLook::default();
        if planned.ground == Ground::AgentLeft {
            self.pace.turn(&self.shared).await;
            self.lists.pods(Some(&planned.owner.name), |pod| look.pods.push(pod)).await?;
        }
        // Last, and the Lease after the blocks: an agent that comes back writes it first.
        self.pace.turn(&self.shared).await;
        if let Some(node) = self.lists.node(&planned.owner.name).await? {
            look.node_uid = Some(node.uid);
            (look.out_of_service, look.kubelet_heard) = (node.out_of_service, node.kubelet_heard);
            look.boot_id = node.boot_id;
        }
        self.pace.turn(&self.shared).await;
        look.lease = self.lists.lease(&planned.owner.name).await?;
        let mut returning = Vec::new();
        for block in blocks {
            match fate(planned, &block, &look, self.shared.options.rules) {
                Fate::Returns => returning.push(block),
                Fate::Waits => {}
                Fate::Stays(why) => problems.add(why),
            }
        }
        // Where the Node goes its BGPNode goes as well.
        if planned.ground != Ground::NodeGone {
            let mut going = Vec::new();
            for block in returning {
                match self.kept_by_routes(planned, &block).await {
                    None => going.push(block),
                    Some(Outcome::Stays(why)) => problems.add(why),
                    Some(_) => {}
                }
            }
            if going.is_empty() {
                return Ok(Vec::new());
            }
            let cidrs: Vec<_> = going.iter().map(|block| block.cidr).collect();
            self.pace.turn(&self.shared).await;
            match self.lists.disown(&planned.owner.name, &cidrs).await {
                Ok(()) => returning = going,
                // It changes: the next look shows by whom.
                Err(error) if error.is_conflict() => return Ok(Vec::new()),
                Err(error) => return Err(error),
            }
        }
        let calls = returning.into_iter().map(|block| async {
            let outcome = self.block(planned, &block).await;
            (block, outcome)
        });
        let mut calls = stream::iter(calls).buffer_unordered(CALLS_AT_ONCE_MAX);
        let mut returned = Vec::new();
        while let Some((block, outcome)) = calls.next().await {
            match outcome {
                Ok(Outcome::Returned) => returned.push(block),
                Ok(Outcome::Waits) => {}
                Ok(Outcome::Stays(why)) => problems.add(why),
                // Changed or gone meanwhile: the next look shows it.
                Err(error) if error.is_conflict() || error.is_not_found() => {}
                Err(error) => problems.add(error.to_string()),
            }
        }
        Ok(returned)
    }

    /// Why nobody knows whether the machine is still heard, unless a person has said that it is off.
    async fn why_deaf(&self, planned: &NodeReturn) -> Option<String> {
        let by_word = matches!(planned.ground, Ground::MachineOff | Ground::OutOfService);
        if by_word || !self.shared.options.rules.hold(Rule::LeaderLooksForRoutes) {
            return None;
        }
        self.shared.why_deaf().await
    }

    async fn block(&self, planned: &NodeReturn, block: &BlockSeen) -> Result<Outcome, IpamError> {
        if !self.leads() {
            return Ok(Outcome::Waits);
        }
        if let Some(kept) = self.kept_by_routes(planned, block).await {
            return Ok(kept);
        }
        // One for the DELETE, one for the finalizer.
        self.pace.turn(&self.shared).await;
        self.pace.turn(&self.shared).await;
        let gone = self.api.give_back(object(block)).await?;
        Ok(if gone { Outcome::Returned } else { Outcome::Waits })
    }

    /// What becomes of a block that somebody announces, or may announce unheard; `None`: nobody does.
    async fn kept_by_routes(&self, planned: &NodeReturn, block: &BlockSeen) -> Option<Outcome> {
        if !self.shared.options.rules.hold(Rule::LeaderLooksForRoutes) {
            return None;
        }
        let cidr = block.cidr;
        // A block of an earlier Node of this machine in which pods live: nobody tells a speaker of its
        // own routes.
        let holdings = Arc::clone(&self.shared.reports.holdings.borrow());
        if holdings.announced.iter().any(|own| cidr.contains(own)) {
            return Some(Outcome::Waits);
        }
        let heard = self.shared.witness.heard(cidr).await;
        // Sessions may have ended since.
        if heard.is_empty() && self.why_deaf(planned).await.is_some() {
            return Some(Outcome::Waits);
        }
        heard.first().map(|heard| {
            Outcome::Stays(format!(
                "block {cidr} of {} stays: {} announces {}; is the machine still on?",
                subject(planned),
                heard.peer,
                heard.prefix,
            ))
        })
    }

    fn leads(&self) -> bool {
        self.leadership.borrow().leads(self.shared.now())
    }

    fn tell(&self, planned: &NodeReturn, returned: &[BlockSeen]) {
        let Some(first) = returned.iter().map(|block| block.cidr).min() else { return };
        let (of, blocks) = (subject(planned), returned.len());
        tracing::info!(%first, blocks, "blocks of {of} returned");
        let owner = &planned.owner;
        let about = About::Node { name: owner.name.clone(), uid: owner.uid.clone() };
        let note = match blocks {
            1 => format!("block {first} of {of} was returned"),
            _ => format!("{blocks} blocks of {of} were returned, {first} the first"),
        };
        self.shared.events.tell(about, Reason::BlocksReturned, note);
    }
}

/// Whose blocks, in words.
fn subject(planned: &NodeReturn) -> String {
    let name = &planned.owner.name;
    match planned.ground {
        Ground::NodeGone => format!("the vanished node {name}"),
        Ground::MachineOff => format!("node {name}, whose machine is marked as off,"),
        Ground::OutOfService => format!("the out-of-service node {name}"),
        Ground::AgentLeft => format!("node {name}, whose agent is gone,"),
        Ground::Deleted => format!("node {name}"),
    }
}

/// The object as far as its return needs it: what it was read as is the precondition.
fn object(block: &BlockSeen) -> IPBlock {
    let (pool, owner) = (block.pool_uid.to_string(), &block.owner);
    let spec = IPBlockSpec {
        cidr: block.cidr.to_string(),
        range: block_range(block.cidr),
        pool: ObjectReference { name: String::new(), uid: pool },
        node: ObjectReference { name: owner.name.clone(), uid: owner.uid.clone() },
    };
    let mut object = IPBlock::new(&block_name(block.cidr), spec);
    object.metadata.uid = Some(block.uid.clone());
    object.metadata.resource_version = Some(block.version.clone());
    object.metadata.finalizers = Some(block.finalizers.to_vec());
    // Whether it is being deleted is what counts, not since when.
    object.metadata.deletion_timestamp = block.terminating.then_some(Time(Timestamp::UNIX_EPOCH));
    object
}

/// Sentences for people, of which there could be as many as blocks.
#[derive(Default)]
struct Problems {
    first: Vec<String>,
    more: usize,
}

impl Problems {
    fn add(&mut self, problem: String) {
        if self.first.len() < PROBLEMS_MAX {
            self.first.push(problem);
        } else {
            self.more = self.more.saturating_add(1);
        }
    }

    fn told(mut self) -> Vec<String> {
        if self.more > 0 {
            self.first.push(format!("{} more blocks stay for such reasons", self.more));
        }
        self.first
    }
}

/// Spreads calls over time.
#[derive(Default)]
struct Pace {
    next: Mutex<Duration>,
}

impl Pace {
    /// Waits until the next call may be made.
    async fn turn(&self, shared: &Shared) {
        let now = shared.now();
        let wait = {
            let mut next = self.next.lock().unwrap_or_else(PoisonError::into_inner);
            let turn = (*next).max(now);
            *next = turn.saturating_add(CALL_INTERVAL);
            turn.saturating_sub(now)
        };
        if !wait.is_zero() {
            tokio::time::sleep(wait).await;
        }
    }
}

/// Calls a second of the leader's returns at most: 30,000 blocks of 5,000 nodes are 70,000 calls,
/// twelve minutes, and a server that serves thousands a second does not notice.
const CALLS_PER_SEC_MAX: u32 = 100;
const CALL_INTERVAL: Duration = Duration::from_micros(1_000_000 / CALLS_PER_SEC_MAX as u64);
/// Returns under way at once.
const CALLS_AT_ONCE_MAX: usize = 4;
/// Sentences about blocks that stay.
const PROBLEMS_MAX: usize = 20;
