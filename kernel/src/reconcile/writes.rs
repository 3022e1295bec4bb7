//! Writes: chosen, encoded, and settled by the kernel's answers.

use std::collections::VecDeque;
use std::time::Instant;

use rustix::io::Errno;

use super::{CHANGES_MAX, Pass, RouteReconciler};
use crate::batch::Batch;
use crate::entries::{Flag, RouteId};
use crate::error::{Error, Refusal};
use crate::paths::PathId;
use crate::route::{self, Change, Put, Route, State};

/// One request about a route.
#[derive(Clone, Copy, Debug)]
pub(super) struct Write {
    id: RouteId,
    does: Does,
}

#[derive(Clone, Copy, Debug)]
pub(super) enum Does {
    Put(Put, PathId),
    Delete,
}

impl RouteReconciler {
    /// The next writes, at most [`CHANGES_MAX`] routes' at a time; none when nothing differs. Their
    /// outcome must be handed to [`RouteReconciler::applied`] before the next call.
    pub fn changes(&mut self, now: Instant) -> Vec<Change> {
        self.next_writes(now);
        let change = |write: &Write| {
            let key = self.entries.key(write.id)?;
            let Does::Put(put, path) = write.does else {
                return Some(Change::Delete { key, protocol: self.protocol_of(write.id) });
            };
            let path = self.paths.path(path)?;
            let route = Route {
                prefix: key.prefix,
                table: key.table,
                metric: key.metric,
                protocol: self.protocol,
                target: path.target.clone(),
                prefsrc: path.prefsrc,
            };
            Some(match put {
                Put::Create => Change::Create(route),
                Put::Replace => Change::Replace(route),
            })
        };
        self.in_flight.iter().filter_map(change).collect()
    }

    /// As [`RouteReconciler::changes`], for [`RouteReconciler::encode`].
    pub(super) fn next_writes(&mut self, now: Instant) {
        if !self.in_flight.is_empty() {
            // The outcome of earlier writes was never told.
            self.abandon();
            self.needs_resync = true;
        }
        if self.needs_resync {
            return;
        }
        while let Some((_, key)) = self.retries.first().filter(|(at, _)| *at <= now).copied() {
            self.retries.pop_first();
            self.touch_key(&key);
        }
        for _ in 0..CHANGES_MAX {
            let Some(id) = self.queue.pop_front() else { break };
            let Some(entry) = self.entries.get_mut(id) else { continue };
            entry.put(Flag::Queued, false);
            let foreign = entry.is(Flag::Foreign);
            match entry.wanted {
                None if !self.sweep_allowed && !entry.is(Flag::Withdrawn) => continue,
                Some(_) if foreign => {
                    if let Some(key) = self.entries.key(id) {
                        self.fail(now, key, Errno::EXIST, None);
                    }
                    continue;
                }
                _ => {}
            }
            let (wanted, same) = (entry.wanted, entry.wanted == entry.present);
            let mut copies = u32::from(entry.present.is_some());
            if !self.extra.is_empty() {
                let key = self.entries.key(id);
                copies += key.and_then(|key| self.extra.get(&key)).copied().unwrap_or(0);
            }
            let (deletions, put) = route::decide(wanted.is_some(), State { same, copies, foreign });
            let delete = Write { id, does: Does::Delete };
            self.in_flight.extend((0..deletions).map(|_| delete));
            if let Some((path, put)) = wanted.zip(put) {
                self.paths.count(path);
                self.in_flight.push(Write { id, does: Does::Put(put, path) });
            }
            if deletions == 0 && put.is_none() {
                // It may have been kept for the queue alone.
                self.touch(id);
            } else if let Some(entry) = self.entries.get_mut(id) {
                entry.put(Flag::InFlight, true);
            }
        }
        if self.queue.is_empty() {
            // It may have held a full table.
            self.queue = VecDeque::new();
        }
    }

    /// Appends the writes under way.
    pub(super) fn encode(&self, batch: &mut Batch) {
        for write in &self.in_flight {
            let Some(key) = self.entries.key(write.id) else { continue };
            match write.does {
                Does::Delete => route::encode_delete(batch, key, self.protocol_of(write.id)),
                Does::Put(put, path) => {
                    let Some(path) = self.paths.path(path) else { continue };
                    let encode = match put {
                        Put::Create => route::encode_create,
                        Put::Replace => route::encode_replace,
                    };
                    encode(batch, key, self.protocol, &path.attributes);
                }
            }
        }
    }

    /// The number of the route that the kernel holds.
    fn protocol_of(&self, id: RouteId) -> u8 {
        let present = self.entries.get(id).and_then(|entry| entry.present);
        let path = present.and_then(|path| self.paths.path(path));
        path.map_or(self.protocol, |path| path.protocol)
    }

    /// Takes the outcome of the last [`RouteReconciler::changes`] as [`route::RouteSocket::apply`] returned
    /// it.
    pub fn applied(&mut self, now: Instant, outcome: Result<Vec<Refusal>, Error>) {
        let Ok(refusals) = outcome else {
            self.abandon();
            self.needs_resync = true;
            return;
        };
        let mut refusals = refusals.into_iter().peekable();
        for (index, write) in std::mem::take(&mut self.in_flight).into_iter().enumerate() {
            let refusal = refusals.next_if(|refusal| refusal.index == index);
            self.settle(now, write, refusal);
        }
    }

    fn settle(&mut self, now: Instant, write: Write, refusal: Option<Refusal>) {
        let Write { id, does } = write;
        let Some(entry) = self.entries.get_mut(id) else { return };
        entry.put(Flag::InFlight, false);
        let Some(Refusal { errno, text, .. }) = refusal else {
            let before = match does {
                Does::Put(_, path) => entry.present.replace(path),
                Does::Delete => self.deleted(id),
            };
            self.paths.release(before);
            self.forgive_id(id);
            self.touch(id);
            return;
        };
        match (does, errno) {
            // Somebody else removed it first.
            (Does::Delete, Errno::SRCH | Errno::NOENT) => {
                let before = self.deleted(id);
                self.paths.release(before);
                self.forgive_id(id);
                self.touch(id);
            }
            // Somebody else removed what was to be replaced: it is created next.
            (Does::Put(Put::Replace, path), Errno::NOENT | Errno::SRCH) => {
                let before = entry.present.take();
                self.paths.release(before);
                self.paths.release(Some(path));
                self.touch(id);
            }
            (does, errno) => {
                if let Does::Put(put, path) = does {
                    self.paths.release(Some(path));
                    self.needs_resync |= put == Put::Create && errno == Errno::EXIST;
                }
                if let Some(key) = self.entries.key(id) {
                    self.fail(now, key, errno, text);
                }
            }
        }
    }

    /// Notes that one of our routes under a key is gone; the path of the last one.
    fn deleted(&mut self, id: RouteId) -> Option<PathId> {
        if !self.extra.is_empty()
            && let Some(key) = self.entries.key(id)
            && let Some(left) = self.extra.get_mut(&key)
        {
            *left -= 1;
            if *left == 0 {
                self.extra.remove(&key);
            }
            return None;
        }
        self.entries.get_mut(id)?.present.take()
    }

    /// Forgets writes whose outcome nobody will tell.
    pub(super) fn abandon(&mut self) {
        for write in std::mem::take(&mut self.in_flight) {
            if let Does::Put(_, path) = write.does {
                self.paths.release(Some(path));
            }
            if let Some(entry) = self.entries.get_mut(write.id) {
                entry.put(Flag::InFlight, false);
            }
        }
    }
}

impl Pass {
    pub(super) fn count(&mut self, writes: &[Write], refusals: &[Refusal]) {
        self.refused += refusals.len();
        let mut refused = refusals.iter().map(|refusal| refusal.index).peekable();
        for (index, write) in writes.iter().enumerate() {
            if refused.next_if_eq(&index).is_some() {
                continue;
            }
            match write.does {
                Does::Put(Put::Create, _) => self.created += 1,
                Does::Put(Put::Replace, _) => self.replaced += 1,
                Does::Delete => self.deleted += 1,
            }
        }
    }
}
