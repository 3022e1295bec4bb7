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

mod compare;
mod dump;
mod writes;

use std::collections::{BTreeSet, HashMap, VecDeque};
use std::time::{Duration, Instant};

use rustix::io::Errno;

pub use self::compare::Difference;
use self::writes::Write;
use crate::entries::{Entries, Entry, Flag, RouteId};
use crate::error::Error;
use crate::paths::Paths;
use crate::route::{Route, RouteEvent, RouteKey, RouteSocket, Target};

/// The wanted routes of one protocol number and a model of the kernel's. Routes of former numbers are ours
/// as well, and none is wanted.
#[derive(Debug)]
pub struct RouteReconciler {
    protocol: u8,
    former: BTreeSet<u8>,
    entries: Entries,
    paths: Paths,
    /// Further routes of ours under a key, beyond the first; nearly always empty.
    extra: HashMap<RouteKey, u32>,
    queue: VecDeque<RouteId>,
    /// Writes whose outcome was not told yet. Their paths are counted.
    in_flight: Vec<Write>,
    failures: HashMap<RouteKey, Failure>,
    retries: BTreeSet<(Instant, RouteKey)>,
    sweep_allowed: bool,
    needs_resync: bool,
    edits: u64,
}

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
            former: BTreeSet::new(),
            entries: Entries::default(),
            paths: Paths::default(),
            extra: HashMap::new(),
            queue: VecDeque::new(),
            in_flight: Vec::new(),
            failures: HashMap::new(),
            retries: BTreeSet::new(),
            sweep_allowed: false,
            needs_resync: true,
            edits: 0,
        }
    }

    /// Says what is wanted under `key` from now on; `None`: nothing. The key and the protocol of the
    /// reconciler count, not those of `wanted`. The same again costs nothing and changes nothing.
    pub fn set(&mut self, key: RouteKey, wanted: Option<Route>) {
        let key = key.normalized();
        let id = match &wanted {
            Some(_) => self.entries.find_or_add(&key),
            None => match self.entries.find_next(&key) {
                Some(id) => id,
                None => return,
            },
        };
        let protocol = self.protocol;
        let wanted = wanted.map(|route| self.paths.acquire(Route { protocol, ..route }));
        let Some(entry) = self.entries.get_mut(id) else { return };
        let before = std::mem::replace(&mut entry.wanted, wanted);
        let withdrawn = wanted.is_none() && (entry.is(Flag::Withdrawn) || before.is_some());
        entry.put(Flag::Withdrawn, withdrawn);
        self.paths.release(before);
        if before != wanted {
            self.forgive(&key);
            self.touch(id);
        }
    }

    /// Takes routes with the number `former` as ours, which an earlier process had written: they are
    /// replaced, or removed when nobody wants them.
    pub fn adopt(&mut self, former: u8) {
        if former != self.protocol && self.former.insert(former) {
            self.needs_resync = true;
        }
    }

    /// Gives all routes the number `protocol` from now on. Those with the number before stay ours until
    /// [`RouteReconciler::forget_former`].
    pub fn set_protocol(&mut self, protocol: u8) {
        if protocol == self.protocol {
            return;
        }
        self.former.insert(std::mem::replace(&mut self.protocol, protocol));
        self.former.remove(&protocol);
        for id in self.entries.ids() {
            let wanted =
                self.entries.get(id).filter(|e| !e.is(Flag::Vacant)).and_then(|e| e.wanted);
            let Some(route) = wanted.and_then(|path| self.route(id, path)) else { continue };
            let path = self.paths.acquire(Route { protocol, ..route });
            if let Some(entry) = self.entries.get_mut(id) {
                entry.wanted = Some(path);
            }
            self.paths.release(wanted);
            self.touch(id);
        }
        // Routes with the new number were others' until now.
        self.needs_resync = true;
    }

    /// Gives up former numbers if no route of the kernel has one any more; whether none has.
    pub fn forget_former(&mut self) -> bool {
        let none = !self.needs_resync
            && !self.paths.iter().any(|path| self.former.contains(&path.protocol));
        if none {
            self.former.clear();
        }
        none
    }

    /// Whether a route with this number is ours.
    pub fn is_ours(&self, protocol: u8) -> bool {
        protocol == self.protocol || self.former.contains(&protocol)
    }

    /// The numbers of our routes, the current one first.
    pub fn protocols(&self) -> impl Iterator<Item = u8> {
        std::iter::once(self.protocol).chain(self.former.iter().copied())
    }

    /// Allows to remove routes of ours that nobody wanted in this life, now and later. To be called
    /// once every input has said what it wants; what was wanted and is withdrawn goes without it.
    pub fn allow_sweep(&mut self) {
        self.sweep_allowed = true;
        for id in self.entries.ids() {
            let stale = |entry: &Entry| entry.wanted.is_none() && entry.present.is_some();
            if self.entries.get(id).is_some_and(stale) {
                self.touch(id);
            }
        }
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

    /// Takes a change that somebody else made. Returns whether the kernel may now differ from what
    /// is wanted.
    pub fn observe(&mut self, event: &RouteEvent) -> bool {
        let route = event.route();
        let key = route.key();
        let ours = self.is_ours(route.protocol);
        let added = matches!(event, RouteEvent::Added { .. });
        let id = match self.entries.find(&key) {
            Some(id) => id,
            None if ours && added => self.entries.find_or_add(&key),
            None => return false,
        };
        let path = self.paths.find(route);
        let Some(entry) = self.entries.get_mut(id) else { return false };
        let doubled = self.extra.contains_key(&key);
        let alone = entry.present.is_some() && !entry.is(Flag::Foreign) && !doubled;
        let as_modelled = entry.present.is_some() && entry.present == path;
        match event {
            RouteEvent::Added { .. } if ours && as_modelled => return false,
            RouteEvent::Removed(_) if ours && entry.present.is_none() => return false,
            // Answers of writes under way may say something newer than this event.
            _ if !self.in_flight.is_empty() => self.needs_resync = true,
            RouteEvent::Added { replaced: true, .. } if ours && alone => {
                let before = entry.present.take();
                let present = self.paths.acquire(route.clone());
                entry.present = Some(present);
                self.paths.release(before);
            }
            // Beside others of its key, of which not all are known.
            RouteEvent::Added { .. } if ours => self.needs_resync = true,
            RouteEvent::Added { .. } => {
                entry.put(Flag::Foreign, true);
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
                entry.put(Flag::Foreign, false);
                // A further route of others would be lost if ours were replaced now.
                self.needs_resync |= entry.present.is_some();
            }
        }
        self.forgive(&key);
        self.touch(id);
        let queued = self.entries.get(id).is_some_and(|entry| entry.is(Flag::Queued));
        let differs = self.needs_resync || queued;
        self.edits += u64::from(ours && differs);
        differs
    }

    /// Tries every failed route again at once: a link came up or an address was added.
    pub fn retry_failures(&mut self) {
        let mut keys: Vec<RouteKey> = self.retries.iter().map(|(_, key)| *key).collect();
        keys.sort_unstable();
        for key in keys {
            self.touch_key(&key);
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
                self.read(socket)?;
            }
            self.next_writes(now);
            if self.in_flight.is_empty() && !self.needs_resync && self.queue.is_empty() {
                self.entries.close_gaps();
                return Ok(pass);
            }
            let outcome = socket.execute(|batch| self.encode(batch));
            match &outcome {
                Ok(refusals) => pass.count(&self.in_flight, refusals),
                Err(error) => tracing::warn!(%error, "the outcome of route writes is unknown"),
            }
            self.applied(now, outcome);
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

    /// What failed about the route of `key`.
    pub fn failure(&self, key: &RouteKey) -> Option<&Failure> {
        self.failures.get(&key.normalized())
    }

    /// The protocol number of its routes.
    pub fn protocol(&self) -> u8 {
        self.protocol
    }

    /// Whether the kernel holds the route of `key` as wanted.
    pub fn is_installed(&self, key: &RouteKey) -> bool {
        let id = self.entries.find(&key.normalized());
        id.and_then(|id| self.entries.get(id)).is_some_and(|entry| {
            entry.wanted.is_some() && entry.wanted == entry.present && !entry.is(Flag::Foreign)
        })
    }

    /// The numbers of the next-hop objects that a route leads through: a wanted one, or one of ours in
    /// the kernel.
    pub fn objects(&self) -> impl Iterator<Item = u32> {
        self.paths.iter().filter_map(|path| match path.target {
            Target::Object(id) => Some(id),
            _ => None,
        })
    }

    /// Counts the routes; takes some milliseconds for a million.
    pub fn counts(&self) -> Counts {
        let mut counts = Counts { failed: self.failures.len(), ..Counts::default() };
        for entry in self.entries.iter() {
            counts.wanted += usize::from(entry.wanted.is_some());
            counts.stale += usize::from(entry.wanted.is_none() && entry.present.is_some());
            let installed = entry.wanted.is_some() && entry.wanted == entry.present;
            counts.installed += usize::from(installed && !entry.is(Flag::Foreign));
        }
        counts
    }

    /// How often somebody else changed or removed a route of ours that was or became wrong by it.
    pub fn edits(&self) -> u64 {
        self.edits
    }

    /// Queues a route when it differs, and forgets it when nothing is left to know.
    fn touch(&mut self, id: RouteId) {
        let Some(entry) = self.entries.get_mut(id) else { return };
        let clash = entry.wanted.is_some() && entry.is(Flag::Foreign);
        let mut differs = entry.wanted != entry.present || clash;
        if !differs && !self.extra.is_empty() {
            differs = self.entries.key(id).is_some_and(|key| self.extra.contains_key(&key));
        }
        let Some(entry) = self.entries.get_mut(id) else { return };
        if differs {
            if entry.raise(Flag::Queued) {
                self.queue.push_back(id);
            }
        } else if entry.wanted.is_none() && !entry.is(Flag::Queued) && !entry.is(Flag::InFlight) {
            self.entries.remove(id);
        }
    }

    fn touch_key(&mut self, key: &RouteKey) {
        if let Some(id) = self.entries.find(key) {
            self.touch(id);
        }
    }

    fn fail(&mut self, now: Instant, key: RouteKey, errno: Errno, text: Option<Box<str>>) {
        let before = self.failures.remove(&key);
        if let Some(at) = before.as_ref().and_then(|failure| failure.retry_at) {
            self.retries.remove(&(at, key));
        }
        let mut failure = Failure::again(before.as_ref(), now, errno, text);
        let id = self.entries.find(&key);
        if id.and_then(|id| self.entries.get(id)).is_some_and(|entry| entry.is(Flag::Foreign)) {
            failure.retry_at = None;
        }
        if let Some(at) = failure.retry_at {
            self.retries.insert((at, key));
        }
        self.failures.insert(key, failure);
    }

    fn forgive_id(&mut self, id: RouteId) {
        if !self.failures.is_empty()
            && let Some(key) = self.entries.key(id)
        {
            self.forgive(&key);
        }
    }

    /// Forgets a failure.
    fn forgive(&mut self, key: &RouteKey) {
        if self.failures.is_empty() {
            return;
        }
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

/// The most routes that [`RouteReconciler::changes`] handles at once, so that writing a full table
/// leaves time for other work in between and needs little memory.
pub const CHANGES_MAX: usize = 4096;

const BACKOFF_MIN: Duration = Duration::from_millis(100);
const BACKOFF_MAX: Duration = Duration::from_secs(30);
const RESYNCS_MAX: usize = 4;
