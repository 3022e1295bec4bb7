//! The task that owns the node's blocks: it compares what the API server shows with what it knows,
//! asks `cairn_ipam` what to do, tells the pods' addresses, and has at most one call under way.
//!
//! ```text
//!            ┌────────────► Releasing ──► DELETE sent ──► gone
//!            │ give back        ▲
//!  POST 201 ─┴► Unverified ─────┤ overlap, pool unfit (claimed just now)
//!  found ─────► Unverified ──► Confirmed ──► hands out while decide() says so
//!                    │ overlap, pool unfit
//!                    └──► Conflict / Unfit: hands out nothing, keeps its pods
//! ```
//!
//! The calls run beside the loop, so that a server which does not answer never keeps a block open
//! past the fence.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;

use cairn_api::{IPBlock, ObjectReference};
use cairn_ipam::claims::{self, decide};
use cairn_ipam::fence::OwnFence;
use cairn_ipam::{
    BlockState, BlockUsage, Decision, Family, Knowledge, OwnBlock, OwnedBlock, Pool, Standing,
};
use futures::FutureExt;
use futures::future::BoxFuture;
use ipnet::IpNet;
use tokio::sync::watch;

use super::Shared;
use super::api::{BlockApi, Verification};
use super::calls::{self, Attempt, Claim, Done, Question};
use super::error::IpamError;
use crate::view::ClusterView;

/// Keeps the node's blocks.
pub(super) async fn run(shared: Shared, mut fence: watch::Receiver<OwnFence>) {
    let api = BlockApi::new(&shared.client);
    let (mut view, mut usage) = (shared.view.clone(), shared.usage.clone());
    let mut blocks = Blocks::new(shared, api);
    let mut call: Option<BoxFuture<'static, Done>> = None;
    loop {
        let now = blocks.shared.now();
        view.mark_unchanged();
        usage.mark_unchanged();
        let up = *fence.borrow_and_update();
        let next = blocks.step(&up, now, call.is_none());
        if call.is_none() {
            call = next;
        }
        let wake = blocks.next_wake(&up, now);
        let done = async {
            match &mut call {
                Some(call) => call.await,
                None => std::future::pending().await,
            }
        };
        tokio::select! {
            biased;
            done = done => {
                call = None;
                let now = blocks.shared.now();
                blocks.take_in(done, now);
            }
            changed = view.changed() => if changed.is_err() { return },
            changed = usage.changed() => if changed.is_err() { return },
            changed = fence.changed() => if changed.is_err() { return },
            () = tokio::time::sleep(wake) => {}
        }
    }
}

struct Blocks {
    shared: Shared,
    api: BlockApi,
    /// The UID of the Node for which the blocks in `held` are.
    node_uid: Option<String>,
    held: BTreeMap<IpNet, Held>,
    /// Blocks without a valid object of ours in which pods live: the pool's name.
    lost: BTreeMap<IpNet, String>,
    /// Claims whose outcome is not known, until when they are waited for, and their pool's UID.
    pending: BTreeMap<IpNet, (Duration, String)>,
    /// Blocks that were refused with 409, until when that is believed.
    refused: BTreeMap<IpNet, Duration>,
    claims: Backoff,
    full: BTreeSet<String>,
    errors: BTreeMap<String, String>,
    /// The fence's term for which `held` is confirmed.
    term: u64,
    /// What was published of each block.
    told: BTreeMap<IpNet, Told>,
    revisions: u64,
    /// The end of the permission to hand out that was published.
    until: Duration,
}

/// What was published of a block.
#[derive(Clone, Copy, Debug)]
struct Told {
    open: bool,
    /// Which [`OwnedBlock::revision`] said so.
    revision: u64,
}

/// A block whose object names this Node.
#[derive(Clone, Debug)]
struct Held {
    uid: String,
    pool: ObjectReference,
    phase: Phase,
    /// This process claimed it.
    newly_claimed: bool,
    terminating: bool,
    /// The watch has shown it.
    seen: bool,
    since: Duration,
    idle_since: Option<Duration>,
    backoff: Backoff,
}

#[derive(Clone, Debug, PartialEq, Eq)]
enum Phase {
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

/// When the next try is due.
#[derive(Clone, Copy, Debug, Default)]
struct Backoff {
    due: Duration,
    tries: u32,
}

impl Backoff {
    fn fail(&mut self, now: Duration) {
        let wait = RETRY_MIN.saturating_mul(1 << self.tries.min(8)).min(RETRY_MAX);
        self.tries = self.tries.saturating_add(1);
        self.due = now.saturating_add(wait);
    }

    fn is_due(&self, now: Duration) -> bool {
        now >= self.due
    }
}

impl Blocks {
    fn new(shared: Shared, api: BlockApi) -> Blocks {
        Blocks {
            shared,
            api,
            node_uid: None,
            held: BTreeMap::new(),
            lost: BTreeMap::new(),
            pending: BTreeMap::new(),
            refused: BTreeMap::new(),
            claims: Backoff::default(),
            full: BTreeSet::new(),
            errors: BTreeMap::new(),
            term: 0,
            told: BTreeMap::new(),
            revisions: 0,
            until: Duration::ZERO,
        }
    }

    /// Decides anew, publishes, and returns the next call if one is wanted and `may_call`.
    fn step(
        &mut self,
        fence: &OwnFence,
        now: Duration,
        may_call: bool,
    ) -> Option<BoxFuture<'static, Done>> {
        let view = Arc::clone(&self.shared.view.borrow());
        let usage = self.shared.usage.borrow().clone();
        let usages: BTreeMap<IpNet, BlockUsage> =
            usage.blocks.into_iter().map(|block| (block.cidr, block)).collect();
        self.begin_term(fence.term());
        let membership = self.shared.membership();
        if let Ok(uid) = &membership
            && view.synced
        {
            self.reconcile(&view, uid, &usages, now);
        }
        let standing = match membership {
            Ok(_) if fence.is_up(now) => Standing::Member,
            Ok(_) => Standing::Fenced,
            Err(standing) => standing,
        };
        let is_member = view.synced && standing == Standing::Member;
        // Renewed rarely, since everything that hears of blocks hears of this.
        if let Some(deadline) = fence.deadline()
            && self.until <= now.saturating_add(self.until_margin())
        {
            self.until = deadline;
        }
        self.pending.retain(|_, (until, _)| *until > now);
        self.refused.retain(|_, until| *until > now);
        let mut problems = Vec::new();
        let pools = parse_pools(&view, &mut problems);
        let own = self.own(&usages, now);
        let pending = self.pending();
        let short: Vec<Family> = usage.exhausted.iter().copied().collect();
        let decision = decide(&Knowledge {
            node: &self.shared.options.node,
            standing: if view.synced { standing } else { Standing::Fenced },
            pools: &pools,
            own: &own,
            pending: &pending,
            short: &short,
            idle_release_secs: self.shared.options.idle_release.map(|idle| idle.as_secs()),
        });
        self.mark_releases(&decision, &usages);
        self.publish(&decision, &pools, &usages);
        if view.synced {
            problems.extend(decision.problems.iter().cloned());
        } else {
            problems.push("the API server has not shown the cluster yet: no new addresses".into());
        }
        if decision.claims.is_empty() {
            self.full.clear();
        }
        problems.extend(self.problems());
        self.shared.reports.report("blocks", problems);
        // What is written with the fence down could come before the leader's last look at the Lease.
        if !may_call || !is_member {
            return None;
        }
        self.next_call(&decision, &own, &usages, now)
    }

    /// Holds nothing for confirmed that was confirmed before the fence was down: the leader may have
    /// returned it meanwhile, and the watch may not show that yet.
    fn begin_term(&mut self, term: u64) {
        if self.term == term {
            return;
        }
        self.term = term;
        for held in self.held.values_mut() {
            if !matches!(held.phase, Phase::Releasing { .. } | Phase::Gone) {
                held.phase = Phase::Unverified;
                held.newly_claimed = false;
                held.backoff = Backoff::default();
            }
        }
    }

    fn until_margin(&self) -> Duration {
        self.shared.options.offline / 2
    }

    /// Whether the address book has closed the block since it was told to, with no pod in it: only
    /// then no address of it can be on its way.
    fn is_shut(&self, cidr: &IpNet, usages: &BTreeMap<IpNet, BlockUsage>) -> bool {
        self.told.get(cidr).zip(usages.get(cidr)).is_some_and(|(told, usage)| {
            let heard = usage.revision == told.revision;
            !told.open && heard && !usage.hand_out && usage.used == 0
        })
    }

    /// Takes in what the watch shows of this node's blocks.
    fn reconcile(
        &mut self,
        view: &ClusterView,
        node_uid: &str,
        usages: &BTreeMap<IpNet, BlockUsage>,
        now: Duration,
    ) {
        if self.node_uid.as_deref() != Some(node_uid) {
            for (cidr, held) in std::mem::take(&mut self.held) {
                self.lost.insert(cidr, held.pool.name);
            }
            self.node_uid = Some(node_uid.to_owned());
        }
        let mut shown = BTreeSet::new();
        let mut foreign = BTreeSet::new();
        for block in view.own_blocks.values() {
            let Ok(cidr) = block.spec.cidr.parse::<IpNet>() else { continue };
            self.pending.remove(&cidr);
            if block.spec.node.uid != node_uid {
                foreign.insert(cidr);
                self.lost.entry(cidr).or_insert_with(|| block.spec.pool.name.clone());
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
        let vanished: Vec<IpNet> = self
            .held
            .iter()
            .filter(|(cidr, held)| held.seen && !shown.contains(*cidr))
            .map(|(cidr, _)| *cidr)
            .collect();
        for cidr in vanished {
            if let Some(held) = self.held.remove(&cidr)
                && held.phase != Phase::Gone
            {
                self.lost.insert(cidr, held.pool.name);
            }
        }
        for (cidr, held) in &mut self.held {
            self.lost.remove(cidr);
            let idle = usages.get(cidr).is_some_and(|usage| usage.used == 0);
            held.idle_since = idle.then(|| held.idle_since.unwrap_or(now));
        }
        // A lost block is forgotten when the address book has closed it and no pod is in it.
        let shut = self.lost.keys().filter(|cidr| self.is_shut(cidr, usages));
        let over: Vec<IpNet> = shut.filter(|cidr| !foreign.contains(*cidr)).copied().collect();
        for cidr in over {
            self.lost.remove(&cidr);
        }
    }

    fn own(&self, usages: &BTreeMap<IpNet, BlockUsage>, now: Duration) -> Vec<OwnBlock> {
        let held = self.held.iter().map(|(cidr, held)| OwnBlock {
            cidr: *cidr,
            pool: held.pool.name.clone(),
            pool_uid: held.pool.uid.clone(),
            state: held.state(),
            usage: usages.get(cidr).cloned(),
            idle_secs: held.idle_since.map_or(0, |since| now.saturating_sub(since).as_secs()),
        });
        let lost = self.lost.iter().map(|(cidr, pool)| OwnBlock {
            cidr: *cidr,
            pool: pool.clone(),
            pool_uid: String::new(),
            state: BlockState::Lost,
            usage: usages.get(cidr).cloned(),
            idle_secs: 0,
        });
        held.chain(lost).collect()
    }

    /// Claims that may still bring a block: no further one is sent meanwhile.
    fn pending(&self) -> Vec<(IpNet, String)> {
        let sent = self.pending.iter().map(|(cidr, (_, pool))| (*cidr, pool.clone()));
        let held = self.held.iter();
        let unverified =
            held.filter(|(_, held)| held.phase == Phase::Unverified && !held.terminating);
        sent.chain(unverified.map(|(cidr, held)| (*cidr, held.pool.uid.clone()))).collect()
    }

    /// Closes blocks that go back. The DELETE is sent when the address book says that it has closed
    /// the block with no pod in it; a pod that came first keeps the block.
    fn mark_releases(&mut self, decision: &Decision, usages: &BTreeMap<IpNet, BlockUsage>) {
        for (cidr, held) in &mut self.held {
            let used = usages.get(cidr).is_some_and(|usage| usage.used > 0);
            match held.phase {
                Phase::Releasing { sent: false } if used => held.phase = Phase::Unverified,
                Phase::Releasing { .. } | Phase::Gone => {}
                _ if decision.releases.contains(cidr) => {
                    held.phase = Phase::Releasing { sent: false };
                    held.backoff = Backoff::default();
                }
                _ => {}
            }
        }
    }

    fn publish(
        &mut self,
        decision: &Decision,
        pools: &[Pool],
        usages: &BTreeMap<IpNet, BlockUsage>,
    ) {
        let used = |cidr: &IpNet| usages.get(cidr).is_some_and(|usage| usage.used > 0);
        let mut blocks = Vec::new();
        let mut announced = Vec::new();
        for (cidr, held) in &self.held {
            if held.phase == Phase::Confirmed || used(cidr) {
                announced.push(*cidr);
            }
            let open = decision.verdicts.iter().any(|v| v.cidr == *cidr && v.closed.is_none());
            blocks.push(OwnedBlock {
                cidr: *cidr,
                pool: held.pool.name.clone(),
                hand_out: open && held.phase == Phase::Confirmed,
                until: self.until,
                revision: 0,
                newly_claimed: held.newly_claimed,
            });
        }
        for (cidr, pool) in &self.lost {
            if used(cidr) {
                announced.push(*cidr);
            }
            blocks.push(OwnedBlock {
                cidr: *cidr,
                pool: pool.clone(),
                hand_out: false,
                until: self.until,
                revision: 0,
                newly_claimed: false,
            });
        }
        for block in &mut blocks {
            let open = block.hand_out;
            let told = self.told.get(&block.cidr).filter(|told| told.open == open).copied();
            let told = told.unwrap_or_else(|| {
                self.revisions = self.revisions.saturating_add(1);
                Told { open, revision: self.revisions }
            });
            block.revision = told.revision;
            self.told.insert(block.cidr, told);
        }
        self.told.retain(|cidr, _| blocks.iter().any(|block| block.cidr == *cidr));
        announced.sort_unstable();
        blocks.sort_unstable_by_key(|block| block.cidr);
        self.shared.reports.change(|holdings| {
            holdings.announced = announced;
            holdings.blocks = blocks;
            holdings.families = claims::families(pools);
        });
    }

    fn problems(&self) -> Vec<String> {
        let full = self.full.iter().map(|pool| {
            format!("IPPool {pool} has no free block: every one is claimed or announced")
        });
        let conflicts = self.held.iter().filter_map(|(cidr, held)| match &held.phase {
            Phase::Conflict(with) => Some(format!("block {cidr} overlaps {with}")),
            Phase::Unfit(reason) => Some(format!("block {cidr} is not used: {reason}")),
            _ => None,
        });
        full.chain(conflicts).chain(self.errors.values().cloned()).collect()
    }

    fn next_call(
        &mut self,
        decision: &Decision,
        own: &[OwnBlock],
        usages: &BTreeMap<IpNet, BlockUsage>,
        now: Duration,
    ) -> Option<BoxFuture<'static, Done>> {
        let node_uid = self.shared.membership().ok()?;
        let due = |held: &Held| held.backoff.is_due(now);
        let releasing = self.held.iter().find(|(cidr, held)| {
            matches!(held.phase, Phase::Releasing { .. }) && due(held) && self.is_shut(cidr, usages)
        });
        if let Some(cidr) = releasing.map(|(cidr, _)| *cidr)
            && let Some(held) = self.held.get_mut(&cidr)
        {
            held.phase = Phase::Releasing { sent: true };
            return Some(calls::give_back(self.api.clone(), cidr, held.uid.clone()).boxed());
        }
        let unverified = self.held.iter().find(|(_, held)| {
            matches!(held.phase, Phase::Unverified | Phase::Unfit(_) | Phase::Conflict(_))
                && !held.terminating
                && due(held)
        });
        if let Some((cidr, held)) = unverified {
            return Some(self.verify(*cidr, held));
        }
        // Families take turns, so that one without a free block does not keep the other waiting.
        let turn = (self.claims.tries as usize).checked_rem(decision.claims.len());
        let wanted = turn.and_then(|turn| decision.claims.get(turn));
        if let (Some(pools), true) = (wanted, self.claims.is_due(now)) {
            let node = ObjectReference { name: self.shared.options.node.clone(), uid: node_uid };
            let routes = self.shared.routes.borrow().clone();
            let mut taken: Vec<IpNet> = routes.iter().copied().collect();
            taken.extend(self.refused.keys());
            taken.extend(own.iter().map(|block| block.cidr));
            let attempt = Attempt { term: self.term, node, pools: pools.clone(), taken };
            return Some(calls::claim(self.api.clone(), attempt).boxed());
        }
        // A claim that the watch never shows: deleted by hand at once, or the watch hangs.
        let unseen = self.held.iter().find(|(_, held)| {
            !held.seen && now.saturating_sub(held.since) > UNSEEN_MAX && due(held)
        })?;
        Some(calls::look(self.api.clone(), *unseen.0, unseen.1.uid.clone()).boxed())
    }

    fn verify(&self, cidr: IpNet, held: &Held) -> BoxFuture<'static, Done> {
        let by = || format!("{} {}", self.shared.options.boot_id, self.shared.now().as_nanos());
        let found = !held.newly_claimed;
        let question = Question {
            cidr,
            uid: held.uid.clone(),
            pool: held.pool.clone(),
            term: self.term,
            newly_claimed: held.newly_claimed,
            take_up: (found && held.phase == Phase::Unverified).then(by),
        };
        calls::verify(self.api.clone(), self.shared.routes.clone(), question).boxed()
    }

    /// Takes in what a call has brought.
    fn take_in(&mut self, done: Done, now: Duration) {
        match done {
            // Of an earlier term: asked again.
            Done::Verified { term, .. } if term != self.term => {}
            Done::Verified { cidr, uid, answer, .. } => self.verified(cidr, &uid, answer, now),
            Done::Claimed(claim) => self.claimed(claim, now),
            Done::Returned { cidr, uid, answer } => {
                let Some(held) = self.held.get_mut(&cidr).filter(|held| held.uid == uid) else {
                    return;
                };
                let key = format!("return {cidr}");
                match answer {
                    Ok(true) => {
                        tracing::info!(block = %cidr, "block given back");
                        self.errors.remove(&key);
                        held.phase = Phase::Gone;
                        if !held.seen {
                            self.held.remove(&cidr);
                        }
                    }
                    // Another finalizer, or a conflict: tried again, never handed out from.
                    Ok(false) => held.backoff.fail(now),
                    Err(error) => {
                        held.backoff.fail(now);
                        if !error.is_conflict() {
                            self.errors.insert(key, error.to_string());
                        }
                    }
                }
            }
            Done::Looked { cidr, uid, answer } => {
                let Some(held) = self.held.get_mut(&cidr).filter(|held| held.uid == uid) else {
                    return;
                };
                held.backoff.fail(now);
                if let Ok(found) = answer
                    && found.as_ref().and_then(|block| block.metadata.uid.as_ref()) != Some(&uid)
                    && let Some(held) = self.held.remove(&cidr)
                {
                    self.lost.insert(cidr, held.pool.name);
                }
            }
        }
    }

    fn verified(
        &mut self,
        cidr: IpNet,
        uid: &str,
        answer: Result<Verification, IpamError>,
        now: Duration,
    ) {
        let key = format!("verify {cidr}");
        let Some(held) = self.held.get_mut(&cidr).filter(|held| held.uid == uid) else { return };
        let unfit = |held: &Held, other: Phase| {
            // Nothing was ever handed out from a block claimed just now: it goes back at once.
            if held.newly_claimed { Phase::Releasing { sent: false } } else { other }
        };
        match answer {
            Ok(Verification::Sole) => {
                tracing::info!(block = %cidr, pool = held.pool.name, "block confirmed");
                held.phase = Phase::Confirmed;
                held.backoff = Backoff::default();
                self.errors.remove(&key);
            }
            Ok(Verification::Gone) => {
                held.backoff.fail(now);
                held.phase = Phase::Unfit("its IPBlock is gone or is being deleted".to_owned());
                // What the watch has shown it will take away.
                if !held.seen
                    && let Some(held) = self.held.remove(&cidr)
                {
                    self.lost.insert(cidr, held.pool.name);
                }
                self.errors.remove(&key);
            }
            Ok(Verification::PoolUnfit(reason)) => {
                held.phase = unfit(held, Phase::Unfit(reason));
                held.backoff.fail(now);
                self.claims.fail(now);
                self.errors.remove(&key);
            }
            Ok(Verification::Overlaps(with)) => {
                if held.newly_claimed {
                    self.errors.insert(
                        "overlap".to_owned(),
                        format!("the claim of {cidr} was given up: it overlaps {with}"),
                    );
                    self.refused.insert(cidr, now.saturating_add(REFUSED_FOR));
                }
                held.phase = unfit(held, Phase::Conflict(with));
                held.backoff.fail(now);
                self.claims.fail(now);
                self.errors.remove(&key);
            }
            Err(error) => {
                held.backoff.fail(now);
                // A status write came between: the next try reads the new version.
                if !error.is_conflict() {
                    self.errors.insert(key, error.to_string());
                }
            }
        }
    }

    fn claimed(&mut self, claim: Claim, now: Duration) {
        for cidr in claim.refused {
            self.refused.insert(cidr, now.saturating_add(REFUSED_FOR));
        }
        self.full = claim.full.into_iter().collect();
        match (claim.claimed, claim.error) {
            (Some((cidr, block)), _) => {
                tracing::info!(block = %cidr, pool = block.spec.pool.name, "block claimed");
                // For a Node that is gone meanwhile: the watch shows it, the leader returns it.
                if self.node_uid.as_ref() == Some(&block.spec.node.uid) {
                    let uid = block.metadata.uid.clone().unwrap_or_default();
                    let newly_claimed = claim.term == self.term;
                    let held = Held { newly_claimed, ..Held::new(&block, uid, now) };
                    self.held.insert(cidr, held);
                }
                self.claims = Backoff::default();
                self.errors.remove("claim");
            }
            (None, error) => {
                self.claims.fail(now);
                match error {
                    Some(error) => self.errors.insert("claim".to_owned(), error.to_string()),
                    None => self.errors.remove("claim"),
                };
            }
        }
        if let Some((cidr, pool)) = claim.unclear {
            self.pending.insert(cidr, (now.saturating_add(PENDING_FOR), pool));
        }
    }

    /// How long nothing needs to be done unless something changes.
    fn next_wake(&self, fence: &OwnFence, now: Duration) -> Duration {
        let held = self.held.values().filter(|held| held.phase != Phase::Confirmed || !held.seen);
        let due = held.map(|held| held.backoff.due);
        let fence = fence.deadline().filter(|deadline| *deadline > now);
        let pending = self.pending.values().map(|(until, _)| *until);
        let until = self.until.saturating_sub(self.until_margin());
        let wakes = due.chain(pending).chain(fence).chain([self.claims.due, until]);
        let next = wakes.filter(|due| *due > now).min().unwrap_or(Duration::MAX);
        next.saturating_sub(now).clamp(WAKE_MIN, WAKE_MAX)
    }
}

impl Held {
    fn new(block: &IPBlock, uid: String, now: Duration) -> Held {
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

fn parse_pools(view: &ClusterView, problems: &mut Vec<String>) -> Vec<Pool> {
    let labels = view.node.as_ref().and_then(|node| node.metadata.labels.clone());
    let labels = labels.unwrap_or_default();
    let mut pools = Vec::new();
    for pool in view.pools.values() {
        match Pool::parse(pool, &labels) {
            Ok(pool) => pools.push(pool),
            Err(error) => problems.push(error.to_string()),
        }
    }
    pools
}

/// A refused candidate is believed to be taken this long; then its owner may have returned it.
const REFUSED_FOR: Duration = Duration::from_secs(300);
/// A claim without a clear answer is waited for this long before another is sent. One that lands
/// later is safe: the watch shows it and it is verified; short, since pods may be waiting.
const PENDING_FOR: Duration = Duration::from_secs(2);
/// The watch has this long to show a block that was claimed.
const UNSEEN_MAX: Duration = Duration::from_secs(10);
const RETRY_MIN: Duration = Duration::from_millis(200);
const RETRY_MAX: Duration = Duration::from_secs(30);
const WAKE_MIN: Duration = Duration::from_millis(10);
/// Idle blocks are noticed at this grain.
const WAKE_MAX: Duration = Duration::from_secs(30);
