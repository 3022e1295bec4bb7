//! What a dump says: the model becomes what the kernel holds.

use super::RouteReconciler;
use crate::entries::Flag;
use crate::error::Error;
use crate::route::{DumpFilter, Family, Route, RouteKey, RouteSocket};
use crate::socket::DUMP_ATTEMPTS;

impl RouteReconciler {
    /// Takes all routes of the kernel, ours and others', of every family and table in use.
    pub fn resync(&mut self, dump: impl IntoIterator<Item = Route>) {
        let mut foreign = self.begin_resync();
        dump.into_iter().for_each(|route| self.see(route, &mut foreign));
        self.end_resync(foreign);
    }

    /// Prepares for a dump; returns where [`RouteReconciler::see`] keeps keys of others' routes.
    fn begin_resync(&mut self) -> Vec<RouteKey> {
        self.extra.clear();
        for entry in self.entries.iter_mut() {
            entry.put(Flag::Foreign, false);
            entry.put(Flag::Seen, false);
        }
        Vec::new()
    }

    /// Takes a route of a dump.
    fn see(&mut self, route: Route, foreign: &mut Vec<RouteKey>) {
        let key = route.key();
        if !self.is_ours(route.protocol) {
            let known = self.entries.find(&key).and_then(|id| self.entries.get_mut(id));
            match known {
                Some(entry) => entry.put(Flag::Foreign, true),
                // The other's route may come before ours.
                None => foreign.push(key),
            }
            return;
        }
        let id = self.entries.find_or_add(&key);
        let Some(entry) = self.entries.get_mut(id) else { return };
        if !entry.raise(Flag::Seen) {
            *self.extra.entry(key).or_default() += 1;
            return;
        }
        if !entry.present.is_some_and(|path| self.paths.is(path, &route)) {
            let before = entry.present.replace(self.paths.acquire(route));
            self.paths.release(before);
        }
    }

    /// Draws the conclusions when a dump has been seen to its end.
    fn end_resync(&mut self, foreign: Vec<RouteKey>) {
        for key in foreign {
            let id = self.entries.find(&key);
            if let Some(entry) = id.and_then(|id| self.entries.get_mut(id)) {
                entry.put(Flag::Foreign, true);
            }
        }
        self.needs_resync = false;
        self.abandon();
        self.queue.clear();
        for id in self.entries.ids() {
            let Some(entry) = self.entries.get_mut(id).filter(|e| !e.is(Flag::Vacant)) else {
                continue;
            };
            if !entry.is(Flag::Seen) {
                self.paths.release(entry.present.take());
            }
            entry.put(Flag::Queued, false);
            let settled = entry.wanted == entry.present && !entry.is(Flag::Foreign);
            if settled && self.failures.is_empty() && self.extra.is_empty() {
                // The rest is for the few that differ.
                if entry.wanted.is_none() {
                    self.entries.remove(id);
                }
                continue;
            }
            let foreign = entry.is(Flag::Foreign);
            let Some(key) = self.entries.key(id) else { continue };
            if settled && !self.extra.contains_key(&key) {
                self.forgive(&key);
            }
            // What failed waits for its time, however often the kernel is read meanwhile.
            let due = self.failures.get(&key).and_then(|failure| failure.retry_at);
            let waits = due.is_some_and(|at| self.retries.contains(&(at, key)));
            if !waits || foreign {
                self.touch(id);
            }
        }
    }

    /// Takes a dump as it is read, so that it needs no memory.
    pub(super) fn read(&mut self, socket: &mut RouteSocket) -> Result<(), Error> {
        'again: for _ in 0..DUMP_ATTEMPTS {
            let mut foreign = self.begin_resync();
            for family in Family::ALL {
                let each = |route| self.see(route, &mut foreign);
                if !socket.read(family, DumpFilter::default(), each)? {
                    continue 'again;
                }
            }
            self.end_resync(foreign);
            return Ok(());
        }
        Err(Error::Interrupted(DUMP_ATTEMPTS))
    }
}
