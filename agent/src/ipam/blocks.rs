//! The task that owns the node's blocks: it compares what the API server shows with what it knows,
//! asks `cairn_ipam` what to do, tells the pods' addresses, and makes the calls.
//!
//! ```text
//!            ┌────────────► Releasing ──► DELETE sent ──► gone
//!            │ give back        ▲
//!  POST 201 ─┴► Unverified ─────┤ overlap, pool unfit (claimed just now)
//!  found ─────► Unverified ──► Confirmed ──► hands out while decide() says so
//!                 ▲  │ overlap, pool unfit
//!                 │  └──► Conflict / Unfit: hands out nothing, keeps its pods
//!                 └─ POST ── Lost: its object is gone, pods live in it
//! ```
//!
//! The calls run beside the loop, so that a server which does not answer never keeps a block open
//! past the fence. One at most is under way for a block, and one at most claims.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;

use cairn_api::ObjectReference;
use cairn_ipam::claims::decide;
use cairn_ipam::fence::OwnFence;
use cairn_ipam::{BlockUsage, Decision, Demand, Knowledge, OwnBlock, Rule, Scheduling, Standing};
use futures::future::BoxFuture;
use futures::stream::FuturesUnordered;
use futures::{FutureExt, StreamExt};
use ipnet::IpNet;

use super::Shared;
use super::api::{BlockApi, Owner};
use super::calls::{self, Attempt, Done, Ears, Question, Term};
use super::held::{Backoff, Held, Ledger, Phase};
use super::history::{Kind, number};
use super::lease::Promise;
use super::site::Site;
use super::tell::Published;

/// Keeps the node's blocks.
pub(super) async fn run(shared: Shared) {
    let api = BlockApi::new(&shared);
    let (mut view, mut usage) = (shared.view.clone(), shared.usage.clone());
    let (mut promise, mut history) = (shared.promise.subscribe(), shared.history.subscribe());
    let mut blocks = Blocks::new(shared, api);
    let mut calls: FuturesUnordered<Call> = FuturesUnordered::new();
    loop {
        let now = blocks.shared.now();
        view.mark_unchanged();
        usage.mark_unchanged();
        history.mark_unchanged();
        let promised = promise.borrow_and_update().clone();
        calls.extend(blocks.step(&promised, now));
        let wake = blocks.next_wake(&promised.fence, now);
        tokio::select! {
            biased;
            Some((way, done)) = calls.next() => {
                let now = blocks.shared.now();
                blocks.under_way.remove(&way);
                blocks.take_in(done, now);
            }
            changed = view.changed() => if changed.is_err() { return },
            changed = usage.changed() => if changed.is_err() { return },
            changed = promise.changed() => if changed.is_err() { return },
            changed = history.changed() => if changed.is_err() { return },
            () = tokio::time::sleep(wake) => {}
        }
    }
}

/// What a call is about.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Way {
    Claim,
    Block(IpNet),
    /// What peers announce: no call to the API server.
    Witness,
}

type Call = BoxFuture<'static, (Way, Done)>;

pub(super) struct Blocks {
    pub(super) shared: Shared,
    pub(super) api: BlockApi,
    pub(super) ledger: Ledger,
    site: Site,
    pub(super) under_way: BTreeSet<Way>,
    /// Claims whose outcome is not known, until when they are waited for, and their pool's UID.
    pub(super) pending: BTreeMap<IpNet, (Duration, String)>,
    /// Blocks that were refused with 409.
    pub(super) refused: BTreeMap<IpNet, Refused>,
    pub(super) claims: Backoff,
    /// Pools without a free block, until when that is believed.
    pub(super) full: BTreeMap<String, Duration>,
    pub(super) errors: BTreeMap<String, String>,
    /// The term for which the blocks are confirmed.
    pub(super) term: Term,
    /// When peers' announcements were last looked at.
    pub(super) listened: Duration,
    /// Until when peers that say nothing are waited for.
    deaf_until: Duration,
    pub(super) published: Published,
}

/// A block that somebody else has.
#[derive(Clone, Debug)]
pub(super) struct Refused {
    /// Until when that is believed; then its owner may have returned it.
    pub(super) until: Duration,
    /// Who has it, where this node asked for this very block.
    pub(super) reason: Option<String>,
}

impl Blocks {
    /// Begins with what an earlier process of this boot left: blocks that it had confirmed and whose
    /// promise still stands. They hand out at once, without the API server and without the write that
    /// takes up a block. That write is there to void a DELETE on its way, and none can be: a block
    /// leaves the disk before its DELETE is sent, and stands there again only after a later write.
    /// Nobody else returns it while the promise stands (IPAM rules 2 and 5). What was gone by force
    /// is missing in the first view and lost, as it would be without the restart.
    fn new(shared: Shared, api: BlockApi) -> Blocks {
        let (fence, now) = (shared.promise.borrow().fence, shared.now());
        let kept = shared.disk.kept();
        let term = Term { fence: fence.term(), history: shared.history.epoch() };
        let mut ledger = Ledger { node_uid: kept.node_uid, ..Ledger::default() };
        if fence.is_up(now) || !shared.options.rules.hold(Rule::OwnFence) {
            for (cidr, block) in kept.blocks {
                ledger.held.insert(cidr, Held::kept(block, now));
            }
        }
        Blocks {
            shared,
            api,
            ledger,
            site: Site::default(),
            under_way: BTreeSet::new(),
            pending: BTreeMap::new(),
            refused: BTreeMap::new(),
            claims: Backoff::default(),
            full: BTreeMap::new(),
            errors: BTreeMap::new(),
            term,
            listened: Duration::ZERO,
            deaf_until: now.saturating_add(DEAF_MAX),
            published: Published::default(),
        }
    }

    /// Decides anew, publishes, and returns the next calls.
    fn step(&mut self, promise: &Promise, now: Duration) -> Vec<Call> {
        let fence = &promise.fence;
        let view = Arc::clone(&self.shared.view.borrow());
        // No earlier than what the view shows.
        let seen = self.shared.now();
        // What was seen of an older history counts for nothing until all was listed anew.
        let confirmed = self.term.fence;
        if view.epoch >= self.shared.history.epoch()
            && (view.went_back
                || (view.synced && self.ledger.is_ahead_of(&view, fence, confirmed, now)))
        {
            self.shared.history.lost_a_write();
        }
        let history = self.shared.history.epoch();
        let is_current = view.epoch >= history;
        let is_synced = view.synced && is_current;
        let usage = self.shared.usage.borrow().clone();
        let usages: BTreeMap<IpNet, BlockUsage> =
            usage.blocks.into_iter().map(|block| (block.cidr, block)).collect();
        if is_synced {
            let versions = view.own_blocks.values().map(|block| &block.metadata.resource_version);
            if let Some(newest) = versions.filter_map(|version| number(version.as_deref()?)).max() {
                self.shared.history.saw(Kind::Block, view.epoch, newest);
            }
        }
        self.begin_term(Term { fence: fence.term(), history });
        self.ledger.history_doubted = self.shared.history.is_doubtful();
        let membership = self.shared.membership();
        if let Ok(uid) = &membership
            && is_synced
        {
            let shown = self.ledger.reconcile(&view, uid, &usages, seen);
            self.pending.retain(|cidr, _| !shown.contains(cidr));
            self.forget_lost(&usages);
        }
        let is_up = fence.is_up(now) || !self.shared.options.rules.hold(Rule::OwnFence);
        let standing = match membership {
            Err(standing) => standing,
            Ok(_) if !is_current => Standing::OldHistory,
            Ok(_) if is_up => Standing::Member,
            Ok(_) if fence.deadline().is_none() => Standing::Unpromised,
            Ok(_) => Standing::Fenced,
        };
        let is_member = is_synced && standing == Standing::Member;
        // The last good view of an earlier process tells what is needed to hand out (pools, this
        // Node), not what to claim or give back.
        let is_known = view.synced || view.restored;
        self.published.renew(fence, &self.shared.options, now);
        self.pending.retain(|_, (until, _)| *until > now);
        self.refused.retain(|_, refused| refused.until > now);
        self.forget_errors();
        let changed = self.site.read(&view);
        // Who lets a block go under its pods does not look after them either.
        let keeps = self.shared.options.rules.hold(Rule::FinalizerWaitsForPods);
        let outside = if keeps { usage.outside.as_slice() } else { &[] };
        let unplaced = self.ledger.find(outside, &self.site.pools);
        let lease_read = promise.told.is_some();
        let claimant = self.shared.claimant();
        let rules = self.shared.options.rules;
        self.ledger.hear_lease(promise.told.as_ref(), &claimant, rules, now);
        self.ask_lease();
        let own = self.ledger.own(&usages, now);
        let short: Vec<Demand> = usage.exhausted.iter().cloned().collect();
        let mut decision = self.decide(&own, &short, is_known.then_some(standing), now);
        if lease_read {
            self.mark_releases(&decision, &usages);
        }
        self.forget_closed(now);
        let refusals = std::mem::take(&mut decision.refusals);
        self.published.remember(refusals, &short, changed, now);
        self.publish(&decision, &own, &usages, outside, now);
        let mut problems = self.site.problems.clone();
        if is_known {
            problems.extend(unplaced);
            problems.extend(decision.problems.iter().cloned());
        } else {
            problems.push("the API server has not shown the cluster yet: no new addresses".into());
        }
        if decision.claims.is_empty() && short.is_empty() {
            self.full.retain(|_, until| *until > now);
        }
        problems.extend(self.problems(&usages, &usage.pods, now));
        self.shared.reports.report("blocks", problems);
        let mut calls: Vec<Call> = self.listen(now).into_iter().collect();
        // What is written with the fence down could come before the leader's last look at the Lease.
        // Which blocks may be another machine's only the Lease tells.
        if is_member && lease_read {
            calls.extend(self.next_calls(&decision, &own, &usages, now));
        }
        calls
    }

    fn decide(
        &self,
        own: &[OwnBlock],
        short: &[Demand],
        standing: Option<Standing>,
        now: Duration,
    ) -> Decision {
        let named = self.refused.iter();
        let refused =
            named.filter_map(|(cidr, refused)| Some((*cidr, refused.reason.clone()?))).collect();
        let full = self.full.iter().filter(|(_, until)| **until > now);
        let full: Vec<String> = full.map(|(pool, _)| pool.clone()).collect();
        decide(&Knowledge {
            node: &self.shared.options.node,
            standing: standing.unwrap_or(Standing::Unpromised),
            pools: &self.site.pools,
            own,
            pending: &self.pending(),
            short,
            refused: &refused,
            full: &full,
            reserved: &self.site.reserved,
            pod_cidrs: &self.site.pod_cidrs,
            scheduling: self.site.scheduling,
            idle_release_secs: self.shared.options.idle_release.map(|idle| idle.as_secs()),
            rules: self.shared.options.rules,
        })
    }

    /// Has the Lease written if a block waits for what that tells.
    fn ask_lease(&self) {
        let held = self.ledger.held.values().filter(|held| self.ledger.is_found(held));
        let last = held.map(|held| held.since).max();
        self.shared.found.send_if_modified(|at| {
            let newer = last.is_some_and(|last| last > *at);
            *at = last.filter(|_| newer).unwrap_or(*at);
            newer
        });
    }

    fn begin_term(&mut self, term: Term) {
        if self.term == term {
            return;
        }
        if self.term.history != term.history {
            // The list that begins the new history shows every block that is in it.
            self.ledger.held.values_mut().for_each(Held::begin_history);
            self.pending.clear();
            self.refused.clear();
        }
        self.term = term;
        self.ledger.doubt();
    }

    /// Takes blocks that may not hand out by themselves off the disk. In memory they are closed all
    /// the same; the next process must not open them before it has asked.
    fn forget_closed(&mut self, now: Duration) {
        if !self.shared.options.rules.hold(Rule::CloseBeforeDelete) {
            return;
        }
        let kept = self.shared.disk.kept().blocks;
        for cidr in kept.into_keys() {
            let held = self.ledger.held.get(&cidr);
            if !held.is_some_and(|held| held.may_be_kept(now)) {
                self.forget(cidr);
            }
        }
    }

    /// Takes a block off the disk. False when it may still be there.
    fn forget(&mut self, cidr: IpNet) -> bool {
        match self.shared.disk.forget(cidr) {
            Ok(()) => {
                self.errors.remove("disk");
                true
            }
            Err(error) => {
                self.errors.insert("disk".to_owned(), error.to_string());
                false
            }
        }
    }

    /// A look at what peers announce of this node's blocks, when it is due.
    fn listen(&mut self, now: Duration) -> Option<Call> {
        let due = self.listened.saturating_add(LISTEN_INTERVAL);
        if self.under_way.contains(&Way::Witness) || (self.listened > Duration::ZERO && now < due) {
            return None;
        }
        let kept = self.ledger.held.iter().filter(|(_, held)| held.is_established());
        let cidrs: Vec<IpNet> = kept.map(|(cidr, _)| *cidr).collect();
        if cidrs.is_empty() {
            return None;
        }
        self.listened = now;
        self.under_way.insert(Way::Witness);
        let call = calls::listen(Arc::clone(&self.shared.witness), cidrs);
        Some(async move { (Way::Witness, call.await) }.boxed())
    }

    /// Whether the address book has closed the block since it was told to, with no pod in it: only
    /// then no address of it can be on its way.
    fn is_shut(&self, cidr: &IpNet, usages: &BTreeMap<IpNet, BlockUsage>) -> bool {
        self.published.is_shut(cidr, usages)
    }

    /// A block without object is forgotten when the address book has closed it and nothing on this
    /// node uses an address of it.
    fn forget_lost(&mut self, usages: &BTreeMap<IpNet, BlockUsage>) {
        let lost = self.ledger.lost.iter().filter(|(_, lost)| !lost.of_earlier_node);
        let is_over = |cidr: &IpNet| {
            usages.get(cidr).is_some_and(BlockUsage::is_vacant) && self.is_shut(cidr, usages)
        };
        let over: Vec<IpNet> = lost.map(|(cidr, _)| *cidr).filter(is_over).collect();
        for cidr in over {
            self.ledger.lost.remove(&cidr);
            self.errors.remove(&format!("assert {cidr}"));
        }
    }

    /// What is said of a block stands while the block does: of a claim that was given up, while its
    /// candidate is left alone.
    fn forget_errors(&mut self) {
        let (refused, ledger) = (&self.refused, &self.ledger);
        self.errors.retain(|key, _| {
            let about = key.rsplit(' ').next().and_then(|word| word.parse::<IpNet>().ok());
            about.is_none_or(|cidr| match key.starts_with(GIVEN_UP) {
                true => refused.contains_key(&cidr),
                false => ledger.held.contains_key(&cidr) || ledger.lost.contains_key(&cidr),
            })
        });
    }

    /// Claims that may still bring a block: no further one is sent meanwhile.
    fn pending(&self) -> Vec<(IpNet, String)> {
        let sent = self.pending.iter().map(|(cidr, (_, pool))| (*cidr, pool.clone()));
        let held = self.ledger.held.iter();
        let unverified = held.filter(|(_, held)| {
            held.phase == Phase::Unverified
                && !held.terminating
                && !held.is_inherited()
                && !self.ledger.rests(held)
        });
        sent.chain(unverified.map(|(cidr, held)| (*cidr, held.pool.uid.clone()))).collect()
    }

    /// Closes blocks that go back. The DELETE is sent when the address book says that it has closed
    /// the block with no pod in it; a pod that came first keeps the block.
    fn mark_releases(&mut self, decision: &Decision, usages: &BTreeMap<IpNet, BlockUsage>) {
        let rules = self.shared.options.rules;
        let careless = !rules.hold(Rule::FinalizerWaitsForPods);
        // Without that rule a block stays open until its DELETE was answered.
        let closes = rules.hold(Rule::CloseBeforeDelete);
        for (cidr, held) in &mut self.ledger.held {
            let used = usages.get(cidr).is_some_and(|usage| usage.used > 0);
            let used = used && !(careless && held.terminating);
            match held.phase {
                Phase::Releasing { sent: false } if used => held.phase = Phase::Unverified,
                Phase::Releasing { .. } | Phase::Gone => {}
                Phase::Confirmed if !closes => {}
                _ if decision.releases.contains(cidr) => {
                    held.phase = Phase::Releasing { sent: false };
                    held.backoff = Backoff::default();
                }
                _ => {}
            }
        }
    }

    /// The calls that are due, as many as may be under way.
    fn next_calls(
        &mut self,
        decision: &Decision,
        own: &[OwnBlock],
        usages: &BTreeMap<IpNet, BlockUsage>,
        now: Duration,
    ) -> Vec<Call> {
        let mut calls = Vec::new();
        let Ok(node_uid) = self.shared.membership() else { return calls };
        let node = ObjectReference { name: self.shared.options.node.clone(), uid: node_uid };
        let owner = Owner { node, claimant: self.shared.claimant() };
        let listening = usize::from(self.under_way.contains(&Way::Witness));
        while self.under_way.len() < CALLS_MAX + listening
            && let Some((way, call)) = self.next_call(decision, &owner, own, usages, now)
        {
            self.under_way.insert(way);
            calls.push(async move { (way, call.await) }.boxed());
        }
        calls
    }

    fn next_call(
        &mut self,
        decision: &Decision,
        owner: &Owner,
        own: &[OwnBlock],
        usages: &BTreeMap<IpNet, BlockUsage>,
        now: Duration,
    ) -> Option<(Way, BoxFuture<'static, Done>)> {
        let under_way = self.under_way.clone();
        let idle = |cidr: &IpNet| !under_way.contains(&Way::Block(*cidr));
        let rules = self.shared.options.rules;
        let closes = rules.hold(Rule::CloseBeforeDelete);
        let careless =
            |held: &Held| !closes || (held.terminating && !rules.hold(Rule::FinalizerWaitsForPods));
        let releasing = self.ledger.held.iter().find(|(cidr, held)| {
            let goes = match held.phase {
                Phase::Releasing { .. } => careless(held) || self.is_shut(cidr, usages),
                Phase::Confirmed => !closes && decision.releases.contains(cidr),
                _ => false,
            };
            goes && held.backoff.is_due(now) && idle(cidr)
        });
        let releasing = releasing.map(|(cidr, _)| *cidr);
        // Off the disk before the DELETE leaves: a process that starts with the API server away must
        // not hand out from it.
        let forgotten = releasing.is_some_and(|cidr| !closes || self.forget(cidr));
        if let Some(cidr) = releasing
            && let Some(held) = self.ledger.held.get_mut(&cidr)
        {
            if !forgotten {
                held.backoff.fail(now);
                return None;
            }
            if closes {
                held.phase = Phase::Releasing { sent: true };
            }
            let call = calls::give_back(self.api.clone(), cidr, held.uid.clone(), self.term);
            return Some((Way::Block(cidr), call.boxed()));
        }
        let unverified = self.ledger.held.iter().find(|(cidr, held)| {
            matches!(held.phase, Phase::Unverified | Phase::Unfit(_) | Phase::Conflict(_))
                && (!held.terminating || held.is_inherited())
                && !self.ledger.rests(held)
                && !self.ledger.is_found(held)
                && held.backoff.is_due(now)
                && idle(cidr)
        });
        if let Some((cidr, held)) = unverified {
            let vacant = usages.get(cidr).is_none_or(BlockUsage::is_vacant);
            return Some((Way::Block(*cidr), self.verify(*cidr, held, vacant, owner, now)));
        }
        let lost = decision.reasserts.iter().find(|(cidr, _)| {
            let lost = self.ledger.lost.get(cidr);
            lost.is_some_and(|lost| lost.backoff.is_due(now)) && idle(cidr)
        });
        if let Some((cidr, pool)) = lost {
            let call = calls::reassert(self.api.clone(), *cidr, pool.clone(), owner.clone());
            return Some((Way::Block(*cidr), call.boxed()));
        }
        // They take turns, so that one without a free block does not keep the others waiting.
        let turn = (self.claims.tries as usize).checked_rem(decision.claims.len());
        let wanted = turn.and_then(|turn| decision.claims.get(turn));
        if let (Some(claim), true) = (wanted, self.claims.is_due(now))
            && !self.under_way.contains(&Way::Claim)
        {
            let routes = self.shared.routes.borrow().clone();
            let mut taken: Vec<IpNet> = routes.iter().copied().collect();
            taken.extend(self.refused.keys());
            taken.extend(own.iter().map(|block| block.cidr));
            let attempt = Attempt {
                term: self.term,
                history_doubted: self.ledger.history_doubted,
                rules,
                owner: owner.clone(),
                claim: claim.clone(),
                taken,
                reserved: self.site.reserved.clone(),
            };
            return Some((
                Way::Claim,
                calls::claim(self.api.clone(), self.ears(), attempt).boxed(),
            ));
        }
        // A claim that the watch never shows: deleted by hand at once, or the watch hangs.
        let unseen = self.ledger.held.iter().find(|(cidr, held)| {
            !held.seen
                && now.saturating_sub(held.since) > UNSEEN_MAX
                && held.backoff.is_due(now)
                && idle(cidr)
        })?;
        let call = calls::look(self.api.clone(), *unseen.0, unseen.1.uid.clone());
        Some((Way::Block(*unseen.0), call.boxed()))
    }

    fn verify(
        &self,
        cidr: IpNet,
        held: &Held,
        vacant: bool,
        owner: &Owner,
        now: Duration,
    ) -> BoxFuture<'static, Done> {
        let rules = self.shared.options.rules;
        let quiet = QUIET_MIN.min(self.shared.options.offline / 4);
        let by = || format!("{} {}", self.shared.options.boot_id, self.shared.now().as_nanos());
        let found = !held.newly_claimed && rules.hold(Rule::TakeUpBlocks);
        let question = Question {
            cidr,
            uid: held.uid.clone(),
            pool: held.pool.clone(),
            term: self.term,
            newly_claimed: held.newly_claimed,
            claimed_by: held.claimed_by,
            just_heard: held.heard.is_some_and(|at| now < at.saturating_add(quiet)),
            terminating: held.terminating,
            forgotten: held.forgotten,
            history_doubted: self.ledger.history_doubted,
            vacant,
            take_up: (found && (held.phase == Phase::Unverified || held.is_inherited()))
                .then(|| (by(), owner.claimant.clone())),
            rules,
        };
        calls::verify(self.api.clone(), self.ears(), question).boxed()
    }

    fn ears(&self) -> Ears {
        Ears {
            routes: self.shared.routes.clone(),
            witness: Arc::clone(&self.shared.witness),
            clock: self.shared.options.clock.clone(),
            deaf_until: self.deaf_until,
            lasting: self.shared.lasting(),
            node: self.shared.options.node.clone(),
        }
    }

    /// How long nothing needs to be done unless something changes.
    fn next_wake(&self, fence: &OwnFence, now: Duration) -> Duration {
        let held = self.ledger.held.values();
        let working = held.clone().filter(|held| held.phase != Phase::Confirmed || !held.seen);
        let due = working.map(|held| held.backoff.due);
        let idle = self.idle_release();
        let idle = held.filter_map(|held| Some(held.idle_since?.saturating_add(idle?)));
        let lost = self.ledger.lost.values().map(|lost| lost.backoff.due);
        let fence = fence.deadline().filter(|deadline| *deadline > now);
        let pending = self.pending.values().map(|(until, _)| *until);
        let full = self.full.values().copied();
        let until = self.published.renewal(self.shared.options.offline);
        let listens = self.ledger.held.values().any(Held::is_established);
        let listen = listens.then(|| self.listened.saturating_add(LISTEN_INTERVAL));
        let settle = self.ledger.held.values().filter_map(Held::settles);
        let wakes = due.chain(idle).chain(lost).chain(pending).chain(full).chain(fence);
        let wakes = wakes.chain(self.published.forgets()).chain([self.claims.due, until]);
        let wakes = wakes.chain(listen).chain(settle);
        let next = wakes.filter(|due| *due > now).min().unwrap_or(Duration::MAX);
        next.saturating_sub(now).clamp(WAKE_MIN, WAKE_MAX)
    }

    /// After how long without an address a block may go.
    fn idle_release(&self) -> Option<Duration> {
        let option = self.shared.options.idle_release;
        match self.site.scheduling {
            Scheduling::Open => option,
            Scheduling::Cordoned => {
                let drained = Duration::from_secs(cairn_ipam::claims::DRAINED_IDLE_SECS);
                Some(option.map_or(drained, |idle| idle.min(drained)))
            }
        }
    }

    /// What the view said last.
    pub(super) fn site(&self) -> &Site {
        &self.site
    }
}

/// What the keys of problems with claims that were given up begin with; the block follows.
pub(super) const GIVEN_UP: &str = "given up ";
/// The calls that are under way at most: enough that a start with many blocks is not one after the
/// other, few enough that a thousand agents that start do not fill the API server's queues.
const CALLS_MAX: usize = 4;
/// How often peers' announcements of this node's blocks are looked at.
const LISTEN_INTERVAL: Duration = Duration::from_secs(3);
/// Sessions have this long to come up after the start of the process before a first claim is used. Below
/// the patience of an ADD that waits for it.
const DEAF_MAX: Duration = Duration::from_secs(5);
/// Another machine's announcement of what it claimed has to be gone for so long, or for a quarter of the
/// promise where that is shorter: longer than kubelet waits to start an agent that has crashed.
const QUIET_MIN: Duration = Duration::from_secs(600);
/// The watch has this long to show a block that was claimed.
const UNSEEN_MAX: Duration = Duration::from_secs(10);
const WAKE_MIN: Duration = Duration::from_millis(10);
/// Idle blocks are noticed at this grain.
const WAKE_MAX: Duration = Duration::from_secs(30);
