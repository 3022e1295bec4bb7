//! Keeps the kernel's routes equal to the wanted ones.
//!
//! ```text
//!  RIB ──set()──► wanted ┐                                   ┌─► RouteSocket
//!                        ├─ differs: queue ──changes(now)──► │
//!  dump ─resync()─► present ◄──────────applied(now, ..)──────┘
//!  watch ─observe()─┘            failures: retried with backoff
//! ```
//!
//! The reconciler remembers what the kernel holds and writes only where that differs from what is
//! wanted. What it cannot be sure about (lost answers, a taken key, an unexpected notification) makes
//! it ask for a dump ([`RouteReconciler::needs_resync`]), never guess. What nobody wanted in this
//! life is removed only after [`RouteReconciler::allow_sweep`]. All of it is pure except
//! [`RouteReconciler::apply`].

use std::collections::{BTreeSet, HashMap, VecDeque};
use std::time::{Duration, Instant};

use rustix::io::Errno;

use crate::error::{Error, Refusal};
use crate::paths::{PathId, Paths};
use crate::route::{self, Change, DumpFilter, Family, Route, RouteEvent, RouteKey, RouteSocket};

/// The wanted routes of one protocol number and a model of the kernel's.
#[derive(Debug)]
pub struct RouteReconciler {
    protocol: u8,
    entries: HashMap<RouteKey, Entry>,
    paths: Paths,
    /// Further routes of ours under a key, beyond the first; nearly always empty.
    extra: HashMap<RouteKey, u32>,
    queue: VecDeque<RouteKey>,
    failures: HashMap<RouteKey, Failure>,
    retries: BTreeSet<(Instant, RouteKey)>,
    sweep_allowed: bool,
    needs_resync: bool,
    in_flight: bool,
    edits: u64,
}

/// Small, as there is one for each route.
#[derive(Debug, Default)]
struct Entry {
    wanted: Option<PathId>,
    present: Option<PathId>,
    queued: bool,
    foreign: bool,
    /// It was wanted in this life and is not any more: its removal was asked for and waits for no
    /// other input.
    withdrawn: bool,
}

const _: () = assert!(size_of::<(RouteKey, Entry)>() <= ENTRY_BYTES_MAX);

/// A wanted route that is not in the kernel, or an unwanted one that cannot be removed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Failure {
    /// The kernel's answer. EEXIST: somebody else's route has the key.
    pub errno: Errno,
    /// The kernel's own words, if it gave any.
    pub text: Option<Box<str>>,
    /// When it first failed.
    pub since: Instant,
    /// How often it was tried.
    pub attempts: u32,
    /// When it is tried again; `None` for a clash, which ends when the other's route goes.
    pub retry_at: Option<Instant>,
}

/// How many routes are in which state.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Counts {
    /// Wanted routes.
    pub wanted: usize,
    /// Wanted routes that are in the kernel as wanted.
    pub installed: usize,
    /// Routes of ours in the kernel that nobody wants.
    pub stale: usize,
    /// Routes with a [`Failure`].
    pub failed: usize,
}

/// What one run of [`RouteReconciler::apply`] did to routes, or one of [`crate::tunnel::Tunnels`] to
/// what tunnels consist of.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Pass {
    /// Dumps that were read.
    pub resyncs: usize,
    /// How many were created.
    pub created: usize,
    /// How many were replaced.
    pub replaced: usize,
    /// How many were deleted.
    pub deleted: usize,
    /// Writes that the kernel refused.
    pub refused: usize,
}

impl RouteReconciler {
    /// A reconciler of the routes with `protocol`. It knows nothing of the kernel yet and so needs a
    /// resync first.
    pub fn new(protocol: u8) -> RouteReconciler {
        RouteReconciler {
            protocol,
            entries: HashMap::new(),
            paths: Paths::default(),
            extra: HashMap::new(),
            queue: VecDeque::new(),
            failures: HashMap::new(),
            retries: BTreeSet::new(),
            sweep_allowed: false,
            needs_resync: true,
            in_flight: false,
            edits: 0,
        }
    }

    /// Says what is wanted under `key` from now on; `None`: nothing. The key and the protocol of the
    /// reconciler count, not those of `wanted`. The same again costs nothing and changes nothing.
    pub fn set(&mut self, key: RouteKey, wanted: Option<Route>) {
        let key = key.normalized();
        let wanted = wanted.map(|route| self.paths.acquire(route));
        if wanted.is_none() && !self.entries.contains_key(&key) {
            return;
        }
        let entry = self.entries.entry(key).or_default();
        let before = std::mem::replace(&mut entry.wanted, wanted);
        entry.withdrawn = wanted.is_none() && (entry.withdrawn || before.is_some());
        self.paths.release(before);
        if before != wanted {
            self.forgive(&key);
            self.touch(key);
        }
    }

    /// Allows to remove routes of ours that nobody wanted in this life, now and later. To be called
    /// once every input has said what it wants; what was wanted and is withdrawn goes without it.
    pub fn allow_sweep(&mut self) {
        self.sweep_allowed = true;
        let mut stale: Vec<RouteKey> = self
            .entries
            .iter()
            .filter(|(_, entry)| entry.wanted.is_none() && entry.present.is_some())
            .map(|(key, _)| *key)
            .collect();
        stale.sort_unstable();
        stale.into_iter().for_each(|key| self.touch(key));
    }

    /// Whether the model may be wrong, so that a dump has to be handed to
    /// [`RouteReconciler::resync`].
    pub fn needs_resync(&self) -> bool {
        self.needs_resync
    }

    /// Asks for a dump, after an event that may have changed routes without a notification.
    pub fn request_resync(&mut self) {
        self.needs_resync = true;
    }

    /// Takes all routes of the kernel, ours and others', of every family and table in use.
    pub fn resync(&mut self, dump: impl IntoIterator<Item = Route>) {
        self.extra.clear();
        for entry in self.entries.values_mut() {
            self.paths.release(entry.present.take());
            entry.foreign = false;
        }
        let mut foreign = Vec::new();
        for route in dump {
            let key = route.key();
            if route.protocol != self.protocol {
                foreign.push(key);
                continue;
            }
            let entry = self.entries.entry(key).or_default();
            if entry.present.is_none() {
                entry.present = Some(self.paths.acquire(route));
            } else {
                *self.extra.entry(key).or_default() += 1;
            }
        }
        // Only now every key that matters has its entry: the other's route may come before ours.
        for key in foreign {
            if let Some(entry) = self.entries.get_mut(&key) {
                entry.foreign = true;
            }
        }
        self.needs_resync = false;
        self.in_flight = false;
        self.requeue();
    }

    /// Rebuilds the queue after the model changed as a whole.
    fn requeue(&mut self) {
        self.queue.clear();
        let (mut different, mut settled) = (Vec::new(), Vec::new());
        for (key, entry) in &mut self.entries {
            entry.queued = false;
            let doubled = self.extra.contains_key(key);
            if entry.wanted != entry.present || entry.foreign || doubled {
                different.push(*key);
            } else {
                settled.push(*key);
            }
        }
        if !self.failures.is_empty() {
            settled.iter().for_each(|key| self.forgive(key));
        }
        self.entries.retain(|_, entry| entry.wanted.is_some() || entry.present.is_some());
        // Sorted, so that equal inputs give equal writes.
        different.sort_unstable();
        for key in different {
            // What failed waits for its time, however often the kernel is read meanwhile.
            let due = self.failures.get(&key).and_then(|failure| failure.retry_at);
            let waits = due.is_some_and(|at| self.retries.contains(&(at, key)));
            let foreign = self.entries.get(&key).is_some_and(|entry| entry.foreign);
            if !waits || foreign {
                self.touch(key);
            }
        }
    }

    /// Takes a change that somebody else made. Returns whether the kernel may now differ from what
    /// is wanted.
    pub fn observe(&mut self, event: &RouteEvent) -> bool {
        let route = event.route();
        let key = route.key();
        let ours = route.protocol == self.protocol;
        let added = matches!(event, RouteEvent::Added { .. });
        if !(self.entries.contains_key(&key) || ours && added) {
            return false;
        }
        let path = self.paths.find(route);
        let entry = self.entries.entry(key).or_default();
        let alone = entry.present.is_some() && !entry.foreign && !self.extra.contains_key(&key);
        let as_modelled = entry.present.is_some() && entry.present == path;
        match event {
            RouteEvent::Added { .. } if ours && as_modelled => return false,
            RouteEvent::Removed(_) if ours && entry.present.is_none() => return false,
            // Answers of writes under way may say something newer than this event.
            _ if self.in_flight => self.needs_resync = true,
            RouteEvent::Added { replaced: true, .. } if ours && alone => {
                let before = entry.present.take();
                let present = self.paths.acquire(route.clone());
                entry.present = Some(present);
                self.paths.release(before);
            }
            // Beside others of its key, of which not all are known.
            RouteEvent::Added { .. } if ours => self.needs_resync = true,
            RouteEvent::Added { .. } => {
                entry.foreign = true;
                // It may have taken the place of ours.
                self.needs_resync |= entry.present.is_some();
            }
            RouteEvent::Removed(_) if ours => {
                if as_modelled && alone {
                    let before = entry.present.take();
                    self.paths.release(before);
                } else {
                    self.needs_resync = true;
                }
            }
            RouteEvent::Removed(_) => {
                entry.foreign = false;
                // A further route of others would be lost if ours were replaced now.
                self.needs_resync |= entry.present.is_some();
            }
        }
        self.forgive(&key);
        self.touch(key);
        let differs = self.needs_resync || self.entries.get(&key).is_some_and(|entry| entry.queued);
        self.edits += u64::from(ours && differs);
        differs
    }

    /// Tries every failed route again at once: a link came up or an address was added.
    pub fn retry_failures(&mut self) {
        let mut keys: Vec<RouteKey> = self.retries.iter().map(|(_, key)| *key).collect();
        keys.sort_unstable();
        for key in keys {
            self.touch(key);
        }
    }

    /// The next writes, at most [`CHANGES_MAX`] routes' at a time; none when nothing differs. Their
    /// outcome must be handed to [`RouteReconciler::applied`] before the next call.
    pub fn changes(&mut self, now: Instant) -> Vec<Change> {
        if std::mem::take(&mut self.in_flight) {
            // The outcome of earlier writes was never told.
            self.needs_resync = true;
        }
        let mut changes = Vec::new();
        if self.needs_resync {
            return changes;
        }
        while let Some((_, key)) = self.retries.first().filter(|(at, _)| *at <= now).copied() {
            self.retries.pop_first();
            self.touch(key);
        }
        for _ in 0..CHANGES_MAX {
            let Some(key) = self.queue.pop_front() else { break };
            let Some(entry) = self.entries.get_mut(&key) else { continue };
            entry.queued = false;
            if entry.wanted.is_none() && !self.sweep_allowed && !entry.withdrawn {
                continue;
            }
            if entry.wanted.is_some() && entry.foreign {
                self.fail(now, key, Errno::EXIST, None);
                continue;
            }
            let copies =
                u32::from(entry.present.is_some()) + self.extra.get(&key).copied().unwrap_or(0);
            let same = entry.wanted == entry.present;
            let wanted = entry.wanted.and_then(|id| self.paths.path(id)).map(|path| Route {
                prefix: key.prefix,
                table: key.table,
                metric: key.metric,
                protocol: self.protocol,
                target: path.target.clone(),
                prefsrc: path.prefsrc,
            });
            let state = route::State { same, copies, foreign: entry.foreign };
            route::steps(key, self.protocol, wanted, state, &mut changes);
        }
        self.in_flight = !changes.is_empty();
        changes
    }

    /// Takes the outcome of `changes` as [`RouteSocket::apply`] returned it.
    pub fn applied(
        &mut self,
        now: Instant,
        changes: Vec<Change>,
        outcome: Result<Vec<Refusal>, Error>,
    ) {
        self.in_flight = false;
        let Ok(refusals) = outcome else {
            self.needs_resync = true;
            return;
        };
        let mut refusals = refusals.into_iter().peekable();
        for (index, change) in changes.into_iter().enumerate() {
            let refusal = refusals.next_if(|refusal| refusal.index == index);
            self.settle(now, change, refusal);
        }
    }

    fn settle(&mut self, now: Instant, change: Change, refusal: Option<Refusal>) {
        let key = change.key();
        let Some(entry) = self.entries.get_mut(&key) else { return };
        match (change, refusal.as_ref().map(|refusal| refusal.errno)) {
            (Change::Create(route) | Change::Replace(route), None) => {
                let before = entry.present.take();
                let present = self.paths.acquire(route);
                entry.present = Some(present);
                self.paths.release(before);
                self.forgive(&key);
                self.touch(key);
            }
            // ESRCH: somebody else removed it first.
            (Change::Delete { .. }, None | Some(Errno::SRCH | Errno::NOENT)) => {
                match self.extra.remove(&key) {
                    Some(left @ 2..) => drop(self.extra.insert(key, left - 1)),
                    Some(_) => {}
                    None => {
                        let before = entry.present.take();
                        self.paths.release(before);
                    }
                }
                self.forgive(&key);
                self.touch(key);
            }
            // Somebody else removed what was to be replaced: it is created next.
            (Change::Replace(_), Some(Errno::NOENT | Errno::SRCH)) => {
                let before = entry.present.take();
                self.paths.release(before);
                self.touch(key);
            }
            (change, Some(errno)) => {
                let taken = matches!(change, Change::Create(_)) && errno == Errno::EXIST;
                self.needs_resync |= taken;
                self.fail(now, key, errno, refusal.and_then(|refusal| refusal.text));
            }
        }
    }

    /// Reads the kernel if needed and writes until nothing is left that can be done now. Acts in the
    /// namespace of `socket` and blocks for as long as the kernel works: some microseconds a route.
    /// Should others change routes faster than they can be read, it returns after a few dumps with
    /// [`RouteReconciler::is_dirty`] still true.
    ///
    /// # Errors
    /// When the kernel could not be read, or its answers were lost; the next call begins with a dump.
    pub fn apply(&mut self, socket: &mut RouteSocket, now: Instant) -> Result<Pass, Error> {
        let mut pass = Pass::default();
        loop {
            if self.needs_resync {
                if pass.resyncs == RESYNCS_MAX {
                    // Somebody changes routes as fast as they are read; go on with the next event.
                    return Ok(pass);
                }
                pass.resyncs += 1;
                let mut dump = Vec::new();
                for family in Family::ALL {
                    dump.append(&mut socket.dump(family, DumpFilter::default())?);
                }
                self.resync(dump);
            }
            let changes = self.changes(now);
            if changes.is_empty() && !self.needs_resync && self.queue.is_empty() {
                return Ok(pass);
            }
            let outcome = socket.apply(&changes);
            match &outcome {
                Ok(refusals) => pass.count(&changes, refusals),
                Err(error) => tracing::warn!(%error, "the outcome of route writes is unknown"),
            }
            self.applied(now, changes, outcome);
        }
    }

    /// When the first failed route is due; `None` when none waits.
    pub fn next_deadline(&self) -> Option<Instant> {
        self.retries.first().map(|(at, _)| *at)
    }

    /// Whether there is something to do before any deadline.
    pub fn is_dirty(&self) -> bool {
        self.needs_resync || !self.queue.is_empty()
    }

    /// The routes that could not be written, in no order.
    pub fn failures(&self) -> impl Iterator<Item = (&RouteKey, &Failure)> {
        self.failures.iter()
    }

    /// Whether the kernel holds the route of `key` as wanted.
    pub fn is_installed(&self, key: &RouteKey) -> bool {
        self.entries.get(&key.normalized()).is_some_and(|entry| {
            entry.wanted.is_some() && entry.wanted == entry.present && !entry.foreign
        })
    }

    /// Counts the routes; takes some milliseconds for a million.
    pub fn counts(&self) -> Counts {
        let mut counts = Counts { failed: self.failures.len(), ..Counts::default() };
        for entry in self.entries.values() {
            counts.wanted += usize::from(entry.wanted.is_some());
            counts.stale += usize::from(entry.wanted.is_none() && entry.present.is_some());
            let installed = entry.wanted.is_some() && entry.wanted == entry.present;
            counts.installed += usize::from(installed && !entry.foreign);
        }
        counts
    }

    /// How often somebody else changed or removed a route of ours that was or became wrong by it.
    pub fn edits(&self) -> u64 {
        self.edits
    }

    /// Queues `key` when its route differs, and forgets it when nothing is left to know.
    fn touch(&mut self, key: RouteKey) {
        let Some(entry) = self.entries.get_mut(&key) else { return };
        let clash = entry.wanted.is_some() && entry.foreign;
        if entry.wanted != entry.present || clash || self.extra.contains_key(&key) {
            if !entry.queued {
                entry.queued = true;
                self.queue.push_back(key);
            }
        } else if entry.wanted.is_none() {
            self.entries.remove(&key);
        }
    }

    fn fail(&mut self, now: Instant, key: RouteKey, errno: Errno, text: Option<Box<str>>) {
        let before = self.failures.remove(&key);
        if let Some(at) = before.as_ref().and_then(|failure| failure.retry_at) {
            self.retries.remove(&(at, key));
        }
        let mut failure = Failure::again(before.as_ref(), now, errno, text);
        if self.entries.get(&key).is_some_and(|entry| entry.foreign) {
            failure.retry_at = None;
        }
        if let Some(at) = failure.retry_at {
            self.retries.insert((at, key));
        }
        self.failures.insert(key, failure);
    }

    /// Forgets a failure.
    fn forgive(&mut self, key: &RouteKey) {
        if let Some(failure) = self.failures.remove(key)
            && let Some(at) = failure.retry_at
        {
            self.retries.remove(&(at, *key));
        }
    }
}

impl Failure {
    /// The failure after one more try, to be tried again later than after the one before.
    pub(crate) fn again(
        before: Option<&Failure>,
        now: Instant,
        errno: Errno,
        text: Option<Box<str>>,
    ) -> Failure {
        let attempts = before.map_or(0, |failure| failure.attempts).saturating_add(1);
        let since = before.map_or(now, |failure| failure.since);
        let backoff = BACKOFF_MIN.saturating_mul(1 << attempts.saturating_sub(1).min(16));
        let retry_at = Some(now + backoff.min(BACKOFF_MAX));
        Failure { errno, text, since, attempts, retry_at }
    }

    /// Whether its time has not come.
    pub(crate) fn waits(&self, now: Instant) -> bool {
        self.retry_at.is_none_or(|at| at > now)
    }
}

impl Pass {
    fn count(&mut self, changes: &[Change], refusals: &[Refusal]) {
        self.refused += refusals.len();
        let mut refused = refusals.iter().map(|refusal| refusal.index).peekable();
        for (index, change) in changes.iter().enumerate() {
            if refused.next_if_eq(&index).is_some() {
                continue;
            }
            match change {
                Change::Create(_) => self.created += 1,
                Change::Replace(_) => self.replaced += 1,
                Change::Delete { .. } => self.deleted += 1,
            }
        }
    }
}

/// The most routes that [`RouteReconciler::changes`] handles at once, so that writing a full table
/// leaves time for other work in between and needs little memory.
pub const CHANGES_MAX: usize = 4096;

/// With the hash table's spare room this stays below 60 bytes a route on average.
const ENTRY_BYTES_MAX: usize = 40;
const BACKOFF_MIN: Duration = Duration::from_millis(100);
const BACKOFF_MAX: Duration = Duration::from_secs(30);
const RESYNCS_MAX: usize = 4;
