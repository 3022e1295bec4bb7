//! The kernel's routes: what BGP found and what this node owns, on a thread of its own.
//!
//! ```text
//! speaker ──FibFeed──►┐                        ┌──► RouteReconciler ──► kernel
//! planner ──blocks───►├─ wanted routes, resolved┤
//! kernel ──Monitor───►┘                        └──► reachable blocks, FibState
//! ```
//!
//! Prefixes of pools with an encapsulation lead through tunnels (see `wrap`).
//!
//! Writing 100,000 routes takes the kernel a while; a keepalive must not wait for it, so this runs
//! beside the speaker's thread. Nothing is removed before BGP is in sync, the own blocks are known and
//! the API server has shown the peers.

mod first_routes;
mod machine;
mod marks;
mod questions;
mod uplinks;
mod wrap;

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::Context;
use cairn_api::{CompatMode, FailedRoute, RepairsStatus, RoutesStatus, TunnelKind};
use cairn_bgp::prefix::Prefix;
use cairn_bgp::rib::{FibPath, FibRoute};
use cairn_bgp::speaker::{FibBatch, FibFeed};
use cairn_kernel::monitor::{KernelEvent, LinkState, Monitor};
use cairn_kernel::pod;
use cairn_kernel::reconcile::{Failure, RouteReconciler};
use cairn_kernel::resolve::Resolver;
use cairn_kernel::route::{
    DumpFilter, Family, NextHop, Route, RouteEvent, RouteKey, RouteSocket, Target,
};
use cairn_kernel::sysctl::NodeSettings;
use cairn_kernel::{POD_ROUTE_PROTOCOL, TUNNEL_OBJECTS, UPLINK_OBJECTS, feature, sysctl};
use ipnet::IpNet;
use tokio::sync::{oneshot, watch};

use crate::pods::PodsHandle;
use crate::report::FAILURES_MAX;
use crate::underlay::KernelUnderlay;
use crate::until;
use machine::Machine;
use marks::Marking;
use questions::Questions;
use uplinks::Uplinks;
use wrap::{Moved, Wrap};

pub use first_routes::FirstRoutes;
pub use marks::{RouteMarks, RouteMemory, RouteSettings};
pub(crate) use questions::netns;
pub use questions::{Cursor, FibQuestions, Page};
pub use wrap::Wrapping;

/// The thread's other end.
pub struct Fib {
    /// Whether routes of ours were in the kernel at the start: forwarding went on without us.
    pub preserved: bool,
    /// The blocks that this node owns; `None` until they are known.
    pub blocks: watch::Sender<Option<BTreeSet<IpNet>>>,
    /// Whether routes of ours that nobody wants may go, which are those of an earlier process. Not
    /// while the peers are known from before only: one that waits for its password tells nothing.
    pub may_sweep: watch::Sender<bool>,
    /// What is configured; `None` until that is known. To be told before any route is wanted.
    pub settings: watch::Sender<Option<RouteSettings>>,
    /// What is reached through tunnels.
    pub wrapping: watch::Sender<Arc<Wrapping>>,
    /// The tunnels from which this node takes packets now.
    pub tunnels: watch::Receiver<BTreeSet<TunnelKind>>,
    /// What is wrong with tunnels, one sentence each.
    pub problems: watch::Receiver<Vec<String>>,
    /// Own blocks whose pods can be reached from outside: their route is in the kernel.
    pub reachable: watch::Receiver<Arc<BTreeSet<IpNet>>>,
    /// How next hops are reached, and which networks are the machine's own.
    pub underlay: watch::Receiver<Arc<KernelUnderlay>>,
    /// How the routes stand.
    pub state: watch::Receiver<RoutesStatus>,
    /// How often others changed routes and tunnels.
    pub repairs: watch::Receiver<RepairsStatus>,
    /// Prefixes that BGP has a path to.
    pub learned: watch::Receiver<Arc<BTreeSet<IpNet>>>,
    /// How far the routes of BGP's first synchronisation are.
    pub first_routes: watch::Receiver<FirstRoutes>,
    /// Where to ask what the thread wants.
    pub questions: FibQuestions,
    feed: Option<oneshot::Sender<FibFeed>>,
    withdraw: oneshot::Sender<oneshot::Sender<()>>,
}

impl Fib {
    /// As [`Fib::start_with`], for one that has always the default number.
    ///
    /// # Errors
    /// As [`Fib::start_with`].
    pub async fn start(pods: Option<PodsHandle>) -> anyhow::Result<Fib> {
        Fib::start_with(pods, None).await
    }

    /// Starts the thread in the network namespace of the caller and waits until it has read the
    /// kernel. `pods` is told when an interface or a host route of a pod goes, and what others have in
    /// own blocks; `memory` keeps the numbers that routes have.
    ///
    /// # Errors
    /// The kernel gives no sockets, or forwarding cannot be turned on.
    pub async fn start_with(
        pods: Option<PodsHandle>,
        memory: Option<RouteMemory>,
    ) -> anyhow::Result<Fib> {
        let (settings, settings_wanted) = watch::channel(None);
        let (blocks, blocks_wanted) = watch::channel(None);
        let (may_sweep, sweep_allowed) = watch::channel(true);
        let (wrapping, wrapping_wanted) = watch::channel(Arc::default());
        let (tunnels, tunnels_in) = watch::channel(BTreeSet::new());
        let (problems, problems_in) = watch::channel(Vec::new());
        let (reachable, reachable_in) = watch::channel(Arc::default());
        let (state, state_in) = watch::channel(RoutesStatus::default());
        let (repairs, repairs_in) = watch::channel(RepairsStatus::default());
        let (prefixes, learned) = watch::channel(Arc::default());
        let (first_routes, first_routes_in) = watch::channel(FirstRoutes::Awaited);
        let (underlay, underlay_in) = watch::channel(Arc::default());
        let (feed, feed_in) = oneshot::channel();
        let (withdraw, withdraw_in) = oneshot::channel();
        let (questions, asked) = FibQuestions::channel();
        let (started, ready) = oneshot::channel();
        crate::on_own_thread("fib", move || async move {
            let tell = Tell {
                reachable,
                state,
                repairs,
                prefixes,
                first_routes,
                underlay,
                tunnels,
                problems,
                pods,
            };
            let wanted = Wanted {
                blocks: blocks_wanted,
                may_sweep: sweep_allowed,
                settings: settings_wanted,
                wrapping: wrapping_wanted,
            };
            match Worker::open(tell, memory) {
                Err(error) => drop(started.send(Err(error))),
                Ok((worker, preserved)) => {
                    if started.send(Ok(preserved)).is_ok() {
                        worker.run(feed_in, wanted, asked, withdraw_in).await;
                    }
                }
            }
        })?;
        let preserved = ready.await.context("the kernel thread ended at its start")??;
        Ok(Fib {
            preserved,
            blocks,
            may_sweep,
            settings,
            wrapping,
            tunnels: tunnels_in,
            problems: problems_in,
            reachable: reachable_in,
            underlay: underlay_in,
            state: state_in,
            repairs: repairs_in,
            learned,
            first_routes: first_routes_in,
            questions,
            feed: Some(feed),
            withdraw,
        })
    }

    /// Hands over the speaker's routes, once.
    pub fn follow(&mut self, feed: FibFeed) {
        if let Some(waiting) = self.feed.take() {
            let _ = waiting.send(feed);
        }
    }

    /// Removes every route of ours from the kernel and ends the thread: for an intended end that
    /// no restart follows. Dropping the value instead leaves all routes.
    pub async fn withdraw(self) {
        let (done, finished) = oneshot::channel();
        if self.withdraw.send(done).is_ok() {
            let _ = finished.await;
        }
    }
}

/// What the planner wants.
struct Wanted {
    blocks: watch::Receiver<Option<BTreeSet<IpNet>>>,
    may_sweep: watch::Receiver<bool>,
    settings: watch::Receiver<Option<RouteSettings>>,
    wrapping: watch::Receiver<Arc<Wrapping>>,
}

struct Worker {
    socket: RouteSocket,
    monitor: Monitor,
    reconciler: RouteReconciler,
    marking: Marking,
    compat_mode: CompatMode,
    wrap: Wrap,
    uplinks: Uplinks,
    resolver: Resolver,
    underlay: Arc<KernelUnderlay>,
    /// Links of local pods: no next hop is behind one, so their coming and going is no change of the
    /// underlay.
    pod_links: BTreeSet<u32>,
    /// When the underlay is read again after it changed.
    underlay_due: Option<tokio::time::Instant>,
    /// How long changes of the underlay are gathered before it is read.
    gather: Duration,
    /// What BGP wants, as it was told: next hops are resolved anew when the underlay changes.
    learned: BTreeMap<Prefix, FibRoute>,
    /// Other prefixes are learned than was told last.
    learned_changed: bool,
    blocks: Option<BTreeSet<IpNet>>,
    /// Learned prefixes that cannot be routed, each with the reason.
    unresolved: BTreeMap<Prefix, String>,
    bgp_in_sync: bool,
    may_sweep: bool,
    swept: bool,
    tell: Tell,
    state_dirty: bool,
    machine: Machine,
    /// Blocks that are this node's no more, and until when packets to them are caught: by then others
    /// have heard that they do not lead here.
    leaving: BTreeMap<IpNet, Instant>,
    /// When everything is looked at again.
    audit_due: Instant,
    /// What failed last, and when.
    complaint: Option<(String, Instant)>,
}

/// Who hears of what the thread sees.
struct Tell {
    reachable: watch::Sender<Arc<BTreeSet<IpNet>>>,
    state: watch::Sender<RoutesStatus>,
    repairs: watch::Sender<RepairsStatus>,
    prefixes: watch::Sender<Arc<BTreeSet<IpNet>>>,
    first_routes: watch::Sender<FirstRoutes>,
    underlay: watch::Sender<Arc<KernelUnderlay>>,
    tunnels: watch::Sender<BTreeSet<TunnelKind>>,
    problems: watch::Sender<Vec<String>>,
    pods: Option<PodsHandle>,
}

impl Worker {
    fn open(tell: Tell, memory: Option<RouteMemory>) -> anyhow::Result<(Worker, bool)> {
        let mut socket = RouteSocket::open()?;
        // Subscribed before the first dump, so that no change falls between.
        let mut monitor = Monitor::open()?;
        monitor.ignore_port(socket.port());
        for family in forwarded() {
            sysctl::enable_forwarding(family)
                .context("packets for others must be forwarded, which is off")?;
        }
        let (marking, reconciler) = Marking::new(memory);
        let own = reconciler.protocols().collect();
        let underlay = Arc::new(KernelUnderlay::read(&mut socket, &own)?);
        let resolver = underlay.resolver.clone();
        tell.underlay.send_replace(Arc::clone(&underlay));
        let mut preserved = false;
        for protocol in reconciler.protocols() {
            let filter = DumpFilter { protocol: Some(protocol), ..DumpFilter::default() };
            for family in Family::ALL {
                preserved |= !socket.dump(family, filter)?.is_empty();
            }
        }
        let wrap = Wrap::new(&mut socket)?;
        let uplinks = Uplinks::new(&mut socket)?;
        let worker = Worker {
            socket,
            monitor,
            reconciler,
            marking,
            compat_mode: CompatMode::Leave,
            wrap,
            uplinks,
            resolver,
            underlay,
            pod_links: BTreeSet::new(),
            underlay_due: None,
            gather: GATHER,
            learned: BTreeMap::new(),
            learned_changed: false,
            blocks: None,
            unresolved: BTreeMap::new(),
            bgp_in_sync: false,
            may_sweep: true,
            swept: false,
            tell,
            state_dirty: true,
            machine: Machine::default(),
            leaving: BTreeMap::new(),
            audit_due: Instant::now() + AUDIT_INTERVAL,
            complaint: None,
        };
        Ok((worker, preserved))
    }

    async fn run(
        mut self,
        mut feed_in: oneshot::Receiver<FibFeed>,
        wanted: Wanted,
        mut asked: Questions,
        mut withdraw: oneshot::Receiver<oneshot::Sender<()>>,
    ) {
        let Wanted { mut blocks, mut may_sweep, mut settings, mut wrapping } = wanted;
        let mut feed: Option<FibFeed> = None;
        let mut state_due = tokio::time::Instant::now();
        loop {
            self.may_sweep = *may_sweep.borrow_and_update();
            if let Some(settings) = *settings.borrow_and_update() {
                self.compat_mode = settings.compat_mode;
                self.mark(settings.marks, Instant::now());
                self.use_objects(settings.next_hop_objects);
            }
            // What the planner said before counts before what BGP said, in whatever order this thread
            // hears of it: else routes into tunnels would be plain ones for a moment, and tunnels go.
            if blocks.has_changed().unwrap_or(false) {
                self.own(&mut blocks);
            }
            if wrapping.has_changed().unwrap_or(false) {
                self.rewrap(&mut wrapping);
            }
            self.write();
            // What was put right is not told as missing.
            if self.state_dirty && tokio::time::Instant::now() >= state_due {
                let began = tokio::time::Instant::now();
                self.publish();
                let rest = began.elapsed() * STATE_SHARE;
                state_due = began + rest.clamp(STATE_INTERVAL, STATE_INTERVAL_MAX);
            }
            let audit = Some(self.audit_due);
            let retry = [
                self.reconciler.next_deadline(),
                self.wrap.next_deadline(),
                self.uplinks.next_deadline(),
                self.marking.due,
                self.machine.due,
                self.leaving.values().min().copied(),
                audit,
            ];
            let retry = retry.into_iter().flatten().min().map(tokio::time::Instant::from_std);
            let is_dirty =
                self.reconciler.is_dirty() || self.wrap.is_dirty() || self.uplinks.is_dirty();
            let retry_failed = is_dirty.then(|| tokio::time::Instant::now() + RETRY);
            let state = self.state_dirty.then_some(state_due);
            let deadline =
                [retry, retry_failed, state, self.underlay_due].into_iter().flatten().min();
            tokio::select! {
                asked = &mut withdraw => return self.end(asked),
                arrived = &mut feed_in, if feed.is_none() => match arrived {
                    Ok(arrived) => feed = Some(arrived),
                    // The planner has ended.
                    Err(_) => break,
                },
                batch = receive(&mut feed), if feed.is_some() => match batch {
                    Some(batch) => self.learn(batch),
                    None => break,
                },
                changed = blocks.changed() => match changed {
                    Ok(()) => self.own(&mut blocks),
                    Err(_) => break,
                },
                changed = may_sweep.changed() => if changed.is_err() { break },
                changed = settings.changed() => if changed.is_err() { break },
                changed = wrapping.changed() => match changed {
                    Ok(()) => self.rewrap(&mut wrapping),
                    Err(_) => break,
                },
                events = self.monitor.next() => match events {
                    Ok(events) => self.observe(events),
                    Err(error) => {
                        self.complain(format!(
                            "the kernel's notifications failed, reading all again: {error}"
                        ));
                        self.observe(vec![KernelEvent::Overrun]);
                        tokio::time::sleep(RETRY).await;
                    }
                },
                Some(question) = asked.recv() => self.answer(question),
                () = until(deadline) => {}
            }
            if self.underlay_due.is_some_and(|at| tokio::time::Instant::now() >= at) {
                self.underlay_due = None;
                self.resolve_anew();
            }
            if self.audit_due <= Instant::now() {
                self.audit();
            }
        }
        // What this thread follows has ended; whoever ended it may want the routes to go as well.
        let asked = withdraw.await;
        self.end(asked);
    }

    /// Removes the routes if that was asked for.
    fn end(mut self, asked: Result<oneshot::Sender<()>, oneshot::error::RecvError>) {
        if let Ok(done) = asked {
            self.withdraw();
            let _ = done.send(());
        }
    }

    fn withdraw(&mut self) {
        for prefix in std::mem::take(&mut self.learned).into_keys() {
            self.want(prefix);
        }
        self.own_blocks(BTreeSet::new());
        self.leaving.values_mut().for_each(|until| *until = Instant::now());
        self.reconciler.allow_sweep();
        self.uplinks.allow_sweep();
        for _ in 0..WITHDRAW_PASSES {
            self.write();
            if !self.reconciler.is_dirty() {
                break;
            }
        }
    }

    /// One pass of the reconciler, and what it means for the own blocks.
    fn write(&mut self) {
        if !self.swept && self.may_sweep && self.bgp_in_sync && self.blocks.is_some() {
            self.swept = true;
            self.reconciler.allow_sweep();
            self.wrap.allow_sweep();
            self.uplinks.allow_sweep();
        }
        let now = Instant::now();
        let gone: Vec<_> = self.leaving.extract_if(.., |_, until| *until <= now).collect();
        for key in gone.iter().flat_map(|(block, _)| self.own_keys(*block)).collect::<Vec<_>>() {
            self.reconciler.set(key, None);
        }
        self.wrap.linger(&self.underlay, now);
        match self.wrap.prepare(&mut self.socket, now) {
            Ok((_, false)) => {}
            // What routes lead through may be there now, or elsewhere.
            Ok((moved, true)) => {
                let moved = moved.into_iter().map(Prefix::from);
                let concerned: Vec<Prefix> = moved.chain(self.unresolved.keys().copied()).collect();
                concerned.into_iter().for_each(|prefix| self.want(prefix));
                self.state_dirty = true;
            }
            Err(error) => {
                self.complain(format!("cannot write tunnels to the kernel, retrying: {error}"));
            }
        }
        self.prepare_uplinks(now);
        let due = self.reconciler.next_deadline().is_some_and(|at| at <= now);
        if self.reconciler.is_dirty() || due {
            match self.reconciler.apply(&mut self.socket, now) {
                Ok(pass) => {
                    let gone = pass.replaced + pass.deleted;
                    if pass.created + gone + pass.refused > 0 {
                        tracing::debug!(?pass, "routes written");
                        self.state_dirty = true;
                    }
                    if gone > 0 {
                        self.uplinks.routes_changed();
                    }
                }
                Err(error) => {
                    self.complain(format!(
                        "cannot read or write the kernel's routes, retrying: {error}"
                    ));
                    self.state_dirty = true;
                }
            }
        }
        self.forget_numbers();
        self.clean(now);
        self.count();
        self.tell_first_routes();
        let reachable: BTreeSet<IpNet> = self
            .blocks
            .iter()
            .flatten()
            .copied()
            .filter(|block| self.own_keys(*block).all(|key| self.reconciler.is_installed(&key)))
            .filter(|block| !self.machine.not_forwarded.contains(&Family::of(block.addr())))
            .collect();
        crate::send_if_changed(&self.tell.reachable, Arc::new(reachable));
    }

    /// What is left of tunnels when the routes are as wanted, and who hears of it.
    fn clean(&mut self, now: Instant) {
        // No route of ours may lead through what is removed; one that waits for its object does yet.
        if !self.reconciler.is_dirty()
            && !self.uplinks.is_unsure()
            && let Err(error) = self.wrap.clean(&mut self.socket, now)
        {
            self.complain(format!("cannot remove tunnels from the kernel, retrying: {error}"));
        }
        self.clean_uplinks(now);
        if let (Some(revision), Some(pods)) = (self.wrap.applied(), &self.tell.pods) {
            pods.tunnels_applied(revision);
        }
        self.settle(now);
        let ready = self.wrap.ready();
        crate::send_if_changed(&self.tell.tunnels, ready);
        let mut problems = self.wrap.problems();
        problems.extend(self.uplinks.problems());
        problems.extend(self.machine.deviations.iter().cloned());
        problems.extend(self.marking.problems.iter().cloned());
        crate::send_if_changed(&self.tell.problems, problems);
    }

    /// Brings the settings of the machine in order when others are needed: before anybody hears that
    /// this node takes packets from a tunnel.
    fn settle(&mut self, now: Instant) {
        let needed = NodeSettings {
            forwarding: forwarded().collect(),
            loose: self.wrap.loose(&self.underlay).into_iter().collect(),
            neighbours: u32::try_from(self.wrap.members()).unwrap_or(u32::MAX).max(NEIGHBOURS_MIN),
            bare_objects: self.compat_mode == CompatMode::Off,
            path_mtu: self.wrap.needs_path_mtu(),
        };
        self.machine.settle(needed, now);
    }

    /// Looks at everything once more: what no notification told.
    fn audit(&mut self) {
        self.audit_due = Instant::now() + AUDIT_INTERVAL;
        self.reconciler.request_resync();
        self.wrap.request_resync();
        self.uplinks.request_resync();
        self.machine.doubt();
        self.underlay_due = Some(tokio::time::Instant::now());
    }

    /// Decides anew on learned prefixes.
    fn want_moved(&mut self, moved: &Moved) {
        if matches!(moved, Moved::Nothing) {
            return;
        }
        let concerned = self.learned.keys().filter(|prefix| moved.concerns((**prefix).into()));
        let prefixes: Vec<Prefix> = concerned.copied().collect();
        prefixes.into_iter().for_each(|prefix| self.want(prefix));
        self.state_dirty = true;
    }

    fn learn(&mut self, batch: FibBatch) {
        for change in batch.changes {
            match change.route {
                Some(route) => {
                    self.learned_changed |= self.learned.insert(change.prefix, route).is_none();
                }
                None => self.learned_changed |= self.learned.remove(&change.prefix).is_some(),
            }
            self.want(change.prefix);
        }
        if batch.in_sync && !self.bgp_in_sync {
            tracing::debug!("BGP is in sync");
            self.bgp_in_sync = true;
        }
        self.state_dirty = true;
    }

    /// Tells the reconciler what is wanted for a learned prefix.
    fn want(&mut self, prefix: Prefix) {
        let net = IpNet::from(prefix);
        let key = self.marking.marks.learned(net);
        let target = match self.learned.get(&prefix) {
            None => {
                self.wrap.forget(net);
                self.uplinks.forget(net);
                self.unresolved.remove(&prefix);
                None
            }
            Some(route) => {
                // Also a route of an earlier process, which is not wanted yet.
                let is_plain = || {
                    let present = || self.reconciler.present(&key);
                    self.reconciler.is_installed(&key) || present().is_some_and(|r| is_plain(&r))
                };
                let through = self.wrap.target(net, &self.underlay, is_plain);
                let by_uplink = matches!(through, Ok(None)).then(|| self.resolve(route)).flatten();
                let target = match (through, by_uplink) {
                    (Ok(None), Some(plain)) => match self.uplinks.lead(net, plain) {
                        // As it is, until its object is written, which is before the routes are.
                        Ok(None) => return,
                        lead => lead,
                    },
                    (through, _) => {
                        self.uplinks.forget(net);
                        through
                    }
                };
                let target = target.and_then(|target| target.ok_or_else(|| unreachable(route)));
                match target {
                    Ok(target) => {
                        self.unresolved.remove(&prefix);
                        Some(target)
                    }
                    Err(why) => {
                        self.unresolved.insert(prefix, why);
                        None
                    }
                }
            }
        };
        let prefsrc = self.wrap.source(net);
        let wanted = target.map(|target| Route {
            prefix: net,
            table: key.table,
            metric: key.metric,
            protocol: self.reconciler.protocol(),
            target,
            prefsrc,
        });
        self.reconciler.set(key, wanted);
    }

    /// The keys of the routes of an own block. Packets to addresses of the block that no pod has must not
    /// leave by the default route and come back.
    fn own_keys(&self, block: IpNet) -> impl Iterator<Item = RouteKey> + use<> {
        std::iter::once(marks::blackhole(block)).chain(self.marking.marks.passage(block))
    }

    fn resolve(&self, route: &FibRoute) -> Option<Target> {
        let hops: Vec<NextHop> = route.paths.iter().filter_map(|path| self.hop(path)).collect();
        (!hops.is_empty()).then(|| Target::Unicast(hops).normalized())
    }

    fn hop(&self, path: &FibPath) -> Option<NextHop> {
        match path.link {
            // The session's own link: no route says which one it is.
            Some(link) => Some(NextHop::via(path.next_hop, link)),
            None => self.resolver.resolve(path.next_hop),
        }
    }

    fn rewrap(&mut self, wanted: &mut watch::Receiver<Arc<Wrapping>>) {
        let wanted = Wrapping::clone(&wanted.borrow_and_update());
        let moved = self.wrap.set(wanted, &self.underlay, Instant::now());
        self.want_moved(&moved);
    }

    fn own(&mut self, wanted: &mut watch::Receiver<Option<BTreeSet<IpNet>>>) {
        let wanted = wanted.borrow_and_update().clone();
        if let Some(wanted) = wanted {
            self.own_blocks(wanted);
        }
    }

    fn own_blocks(&mut self, wanted: BTreeSet<IpNet>) {
        let before = self.blocks.replace(wanted.clone()).unwrap_or_default();
        let until = Instant::now() + CAUGHT;
        self.leaving.extend(before.difference(&wanted).map(|gone| (*gone, until)));
        self.leaving.retain(|gone, _| !wanted.contains(gone));
        for key in wanted.iter().flat_map(|block| self.own_keys(*block)).collect::<Vec<_>>() {
            self.reconciler.set(key, Some(self.own_route(key)));
        }
        self.tell_elsewhere();
        self.state_dirty = true;
    }

    /// Tells the pod network which parts of own blocks somebody else has routed.
    fn tell_elsewhere(&self) {
        if let (Some(pods), Some(blocks)) = (&self.tell.pods, &self.blocks) {
            pods.set_elsewhere(self.resolver.inside(blocks));
        }
    }

    fn observe(&mut self, events: Vec<KernelEvent>) {
        let (mut underlay_changed, mut pods_changed) = (false, false);
        // What a pod takes along when it goes is still known as a pod's below.
        let mut gone = Vec::new();
        let (mut first_changed, mut changed) = (None, 0_u32);
        for event in &events {
            if let KernelEvent::Link { index, name, state } = event
                && pod::is_host_interface_name(name)
            {
                self.pod_links.insert(*index);
                if *state == LinkState::Removed {
                    gone.push(*index);
                }
            }
        }
        for event in events {
            // By whom is known when it has been read.
            self.state_dirty |= self.wrap.observe(&event);
            if self.uplinks.observe(&event) {
                tracing::info!("a next-hop object was changed by somebody else: repairing");
                self.state_dirty = true;
            }
            match event {
                KernelEvent::Route(event) => {
                    let removed = matches!(event, RouteEvent::Removed(_));
                    pods_changed |= removed && event.route().protocol == POD_ROUTE_PROTOCOL;
                    underlay_changed |= self.is_underlay(event.route());
                    if self.reconciler.observe(&event) {
                        first_changed.get_or_insert((event.route().prefix, removed));
                        changed += 1;
                    }
                }
                KernelEvent::RoutesLost { ifindex } => {
                    // No route but its own leads through a pod's link.
                    if !ifindex.is_some_and(|index| self.pod_links.contains(&index)) {
                        self.reconciler.request_resync();
                        pods_changed = true;
                    }
                }
                KernelEvent::Overrun => {
                    tracing::warn!("kernel notifications were lost: reading all again");
                    self.reconciler.request_resync();
                    self.wrap.request_resync();
                    underlay_changed = true;
                    pods_changed = true;
                }
                KernelEvent::Link { index, state, .. } => {
                    if self.pod_links.contains(&index) {
                        continue;
                    }
                    underlay_changed = true;
                    if state == LinkState::Running {
                        self.reconciler.retry_failures();
                    }
                }
                KernelEvent::AddressesChanged { ifindex } => {
                    // Host routes to pods go with the address that is their source.
                    let of_node = !self.pod_links.contains(&ifindex);
                    underlay_changed |= of_node;
                    pods_changed |= of_node;
                }
                KernelEvent::ForwardingOff { family } => {
                    // Pods and, through this node, others are cut off until it is on again.
                    self.complain(format!("{family:?} forwarding was turned off, turning it on"));
                    self.machine.doubt();
                }
                // Ours is one of these, and then nothing differs.
                KernelEvent::ReversePath => self.machine.doubt(),
                KernelEvent::Neighbour { permanent, .. } => pods_changed |= permanent,
                KernelEvent::Object { id, .. } => {
                    underlay_changed |=
                        !TUNNEL_OBJECTS.contains(&id) && !UPLINK_OBJECTS.contains(&id);
                }
                KernelEvent::Forwarding { .. } => {}
            }
        }
        if let Some((prefix, removed)) = first_changed {
            // A flush of a full table is one line.
            tracing::info!(%prefix, removed, routes = changed, "a route was changed by somebody else: repairing");
            self.state_dirty = true;
        }
        pods_changed |= !gone.is_empty();
        for index in gone {
            self.pod_links.remove(&index);
        }
        if let (true, Some(pods)) = (pods_changed, &self.tell.pods) {
            pods.resync();
        }
        if underlay_changed && self.underlay_due.is_none() {
            self.underlay_due = Some(tokio::time::Instant::now() + self.gather);
        }
    }

    /// Whether a route may lead to a next hop.
    fn is_underlay(&self, route: &Route) -> bool {
        let behind_pods = |hops: &Vec<NextHop>| {
            !hops.is_empty() && hops.iter().all(|hop| self.pod_links.contains(&hop.ifindex))
        };
        self.is_foreign(route.protocol)
            && !matches!(&route.target, Target::Unicast(hops) if behind_pods(hops))
    }

    /// Reads addresses and the routes of others, and resolves every learned route again if they
    /// differ from before.
    fn resolve_anew(&mut self) {
        let began = Instant::now();
        let own = self.own_protocols();
        let read = KernelUnderlay::read(&mut self.socket, &own);
        // A host may hold a full table that somebody else changes all the time.
        self.gather = GATHER.max(began.elapsed() * READ_SHARE);
        match read {
            Ok(underlay) if underlay == *self.underlay => {}
            Ok(underlay) => {
                self.underlay = Arc::new(underlay);
                self.resolver = self.underlay.resolver.clone();
                self.tell_elsewhere();
                self.tell.underlay.send_replace(Arc::clone(&self.underlay));
                self.wrap.place(&self.underlay, Instant::now());
                self.want_moved(&Moved::All);
                self.reconciler.retry_failures();
                self.uplinks.retry_failures();
            }
            Err(error) => {
                self.complain(format!("cannot read the underlay's routes, retrying: {error}"));
                self.reconciler.request_resync();
            }
        }
    }

    /// Tells of a failure once and not at every retry.
    fn complain(&mut self, text: String) {
        let now = Instant::now();
        let known = self
            .complaint
            .as_ref()
            .is_some_and(|(last, at)| *last == text && now.duration_since(*at) < COMPLAINT_REST);
        if !known {
            tracing::warn!("{text}");
        }
        self.complaint = Some((text, now));
    }

    /// Tells how often others changed what is ours, as far as it has been read.
    fn count(&self) {
        let repairs = RepairsStatus {
            routes: self.reconciler.edits() + self.uplinks.edits(),
            tunnels: self.wrap.edits(),
            packet_filter: 0,
        };
        let before = *self.tell.repairs.borrow();
        if repairs.tunnels > before.tunnels {
            tracing::info!("a tunnel was changed by somebody else: repairing");
        }
        crate::send_if_changed(&self.tell.repairs, repairs);
    }

    fn publish(&mut self) {
        self.state_dirty = false;
        if std::mem::take(&mut self.learned_changed) {
            let prefixes = self.learned.keys().map(|prefix| IpNet::from(*prefix)).collect();
            self.tell.prefixes.send_replace(Arc::new(prefixes));
        }
        let counts = self.reconciler.counts();
        let mut failures: Vec<FailedRoute> = self
            .unresolved
            .iter()
            .take(FAILURES_MAX)
            .map(|(prefix, reason)| FailedRoute {
                prefix: prefix.to_string(),
                reason: reason.clone(),
            })
            .collect();
        let room = FAILURES_MAX.saturating_sub(failures.len());
        failures.extend(self.reconciler.failures().take(room).map(|(key, failure)| FailedRoute {
            prefix: key.prefix.to_string(),
            reason: reason(key, failure),
        }));
        failures.sort_by(|a, b| a.prefix.cmp(&b.prefix));
        let status = RoutesStatus {
            installed: counts.installed as u64,
            failed: (counts.failed + self.unresolved.len()) as u64,
            failures,
        };
        crate::send_if_changed(&self.tell.state, status);
    }
}

/// The families that this node forwards.
fn forwarded() -> impl Iterator<Item = Family> {
    Family::ALL.into_iter().filter(|family| *family == Family::V4 || feature::has_ipv6())
}

/// Whether a route of ours leads through no tunnel, as far as it shows by itself.
fn is_plain(route: &Route) -> bool {
    match &route.target {
        Target::Unicast(hops) => !hops.iter().any(|hop| hop.onlink),
        Target::Object(id) => UPLINK_OBJECTS.contains(id),
        _ => false,
    }
}

/// Why nothing leads to the next hops of `route`.
fn unreachable(route: &FibRoute) -> String {
    let hops: Vec<String> = route.paths.iter().map(|path| path.next_hop.to_string()).collect();
    format!(
        "no route to the next hop {}: this host needs a route to it that is not from BGP",
        hops.join(", ")
    )
}

fn reason(key: &RouteKey, failure: &Failure) -> String {
    let errno = failure.errno;
    if errno == rustix::io::Errno::EXIST {
        return format!(
            "another route with metric {} is in its place and is left alone: remove it, or find out \
             which program made it",
            key.metric
        );
    }
    match &failure.text {
        Some(text) => format!("the kernel refuses it: {text} ({errno})"),
        None => format!("the kernel refuses it: {errno}"),
    }
}

async fn receive(feed: &mut Option<FibFeed>) -> Option<FibBatch> {
    match feed {
        Some(feed) => feed.recv().await,
        None => std::future::pending().await,
    }
}

/// The changes that one event of the underlay brings with it are read together.
const GATHER: Duration = Duration::from_millis(10);

/// Of the time at most one part in this many goes into reading the underlay.
const READ_SHARE: u32 = 8;

/// How often the removal of all routes is tried before the thread ends.
const WITHDRAW_PASSES: u32 = 5;

/// Longer than a withdrawal takes to the peers.
const CAUGHT: Duration = Duration::from_secs(1);

/// The last net below the notifications.
const AUDIT_INTERVAL: Duration = Duration::from_secs(600);

/// The neighbours for which a node has room at least: the kernel's own number.
const NEIGHBOURS_MIN: u32 = 128;

/// A failure that has not been seen for this long is news again.
const COMPLAINT_REST: Duration = Duration::from_secs(60);

/// How soon a pass that failed as a whole is tried again.
const RETRY: Duration = Duration::from_millis(200);

/// The state is for people: it may lag a little, and counting all routes is not free.
const STATE_INTERVAL: Duration = Duration::from_millis(200);
/// Of the time one part in this many goes into it, as a route that arrives meanwhile waits for it.
const STATE_SHARE: u32 = 200;
/// But so often it is told at least.
const STATE_INTERVAL_MAX: Duration = Duration::from_secs(2);
