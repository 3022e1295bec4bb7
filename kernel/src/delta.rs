//! Wanted against present, for things that are found by a key.
//!
//! ```text
//!      wanted                present
//!   ┌───────────┬─────────────────────┬──────────┐
//!   │  write()  │ equal: left alone   │ sweep()  │
//!   │           │ differs: write()    │          │
//!   └───────────┴─────────────────────┴──────────┘
//! ```

use std::collections::BTreeMap;
use std::fmt;
use std::time::Instant;

use rustix::io::Errno;

use crate::batch::Batch;
use crate::error::{Error, Refusal};
use crate::reconcile::{Failure, Pass};
use crate::socket::{Acknowledge, Netlink};

/// The key of something in the kernel that holds one value.
pub(crate) trait Key: Ord + Copy + fmt::Display {
    type Value: PartialEq + Clone + fmt::Debug;

    /// Appends the request that makes it hold `value`; `exists` says that it holds another of ours.
    fn set(self, batch: &mut Batch, value: &Self::Value, exists: bool);

    /// Appends the request that removes it.
    fn delete(self, batch: &mut Batch);
}

/// All keys of one kind: what they should hold, what they hold, and what the kernel refused.
#[derive(Debug)]
pub(crate) struct Delta<K: Key> {
    wanted: BTreeMap<K, K::Value>,
    present: BTreeMap<K, K::Value>,
    failures: BTreeMap<K, Failure>,
}

/// What a notification means for the model.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum News {
    /// Nothing: as it was believed to be.
    Known,
    /// What was as wanted is not any more.
    Undone,
    /// Something else changed.
    Other,
}

impl<K: Key> Delta<K> {
    pub(crate) fn new() -> Delta<K> {
        Delta { wanted: BTreeMap::new(), present: BTreeMap::new(), failures: BTreeMap::new() }
    }

    /// Says what is wanted from now on. What failed is tried at once where something else is wanted.
    pub(crate) fn want(&mut self, wanted: BTreeMap<K, K::Value>) {
        self.failures.retain(|key, _| wanted.get(key) == self.wanted.get(key));
        self.wanted = wanted;
    }

    /// Takes what the kernel holds, and returns how much of it was as wanted and is not any more.
    pub(crate) fn read(&mut self, present: BTreeMap<K, K::Value>) -> u64 {
        let undone = |(key, value): &(&K, &K::Value)| {
            self.wanted.get(key) == Some(value) && present.get(key) != Some(value)
        };
        let edits = self.present.iter().filter(undone).count() as u64;
        self.failures.retain(|key, _| self.wanted.get(key) != present.get(key));
        self.present = present;
        edits
    }

    /// Forgets what the kernel held: the link it was on is gone.
    pub(crate) fn lose(&mut self, lost: impl Fn(&K, &K::Value) -> bool) {
        self.present.retain(|key, value| !lost(key, value));
    }

    pub(crate) fn wanted(&self) -> &BTreeMap<K, K::Value> {
        &self.wanted
    }

    pub(crate) fn present(&self) -> &BTreeMap<K, K::Value> {
        &self.present
    }

    /// Whether the kernel holds `value` under `key`.
    pub(crate) fn holds(&self, key: K, value: &K::Value) -> bool {
        self.present.get(&key) == Some(value)
    }

    /// What the kernel answered when `key` was written last, if it refused.
    pub(crate) fn failure(&self, key: K) -> Option<&Failure> {
        self.failures.get(&key)
    }

    /// Has what failed tried again at once, as far as `again` says so; whether there is any of it.
    pub(crate) fn retry(&mut self, again: impl Fn(&K::Value) -> bool) -> bool {
        let (wanted, before) = (&self.wanted, self.failures.len());
        self.failures.retain(|key, _| !wanted.get(key).is_some_and(&again));
        self.failures.len() < before
    }

    /// Takes what the kernel tells of `key`; `None`: it holds nothing.
    pub(crate) fn tell(&mut self, key: K, value: Option<K::Value>) -> News {
        let before = match value {
            Some(value) => self.present.insert(key, value),
            None => self.present.remove(&key),
        };
        if self.wanted.get(&key) == self.present.get(&key) {
            self.failures.remove(&key);
        }
        match before.as_ref() == self.present.get(&key) {
            true => News::Known,
            false if before.is_some() && before.as_ref() == self.wanted.get(&key) => News::Undone,
            false => News::Other,
        }
    }

    /// Writes what differs and is not waiting after a failure. Returns whether an answer showed that
    /// the kernel holds something else than was believed.
    ///
    /// # Errors
    /// When the answers were lost.
    pub(crate) fn write(
        &mut self,
        netlink: &mut Netlink,
        now: Instant,
        pass: &mut Pass,
    ) -> Result<bool, Error> {
        let mut batch = Batch::new();
        let mut due = Vec::new();
        for (key, value) in &self.wanted {
            let present = self.present.get(key);
            if present == Some(value) || self.failures.get(key).is_some_and(|f| f.waits(now)) {
                continue;
            }
            key.set(&mut batch, value, present.is_some());
            due.push((*key, value.clone()));
        }
        if due.is_empty() {
            return Ok(false);
        }
        let refusals = netlink.execute(&mut batch, Acknowledge::Last)?;
        let mut mistaken = false;
        for (key, value, refusal) in outcomes(due, refusals) {
            match refusal {
                None => {
                    self.failures.remove(&key);
                    match self.present.insert(key, value) {
                        None => pass.created += 1,
                        Some(_) => pass.replaced += 1,
                    }
                }
                Some(refusal) => {
                    pass.refused += 1;
                    mistaken |= says_mistaken(refusal.errno);
                    // What only the model was wrong about is put right by reading, at once.
                    if !matches!(refusal.errno, Errno::EXIST | Errno::NOENT) {
                        self.fail(key, now, refusal);
                    }
                }
            }
        }
        Ok(mistaken)
    }

    /// Removes what nobody wants, is not waiting after a failure and not to be `spared`.
    ///
    /// # Errors
    /// When the answers were lost.
    pub(crate) fn sweep(
        &mut self,
        netlink: &mut Netlink,
        now: Instant,
        pass: &mut Pass,
        spared: impl Fn(&K) -> bool,
    ) -> Result<(), Error> {
        let mut batch = Batch::new();
        let due: Vec<(K, ())> = self
            .stale()
            .filter(|key| !spared(key))
            .filter(|key| !self.failures.get(key).is_some_and(|failure| failure.waits(now)))
            .map(|key| (key, ()))
            .collect();
        if due.is_empty() {
            return Ok(());
        }
        due.iter().for_each(|(key, ())| key.delete(&mut batch));
        let refusals = netlink.execute(&mut batch, Acknowledge::Last)?;
        for (key, (), refusal) in outcomes(due, refusals) {
            match refusal {
                Some(refusal) if !is_gone(refusal.errno) => {
                    pass.refused += 1;
                    self.fail(key, now, refusal);
                }
                _ => {
                    pass.deleted += 1;
                    self.failures.remove(&key);
                    self.present.remove(&key);
                }
            }
        }
        Ok(())
    }

    /// What the kernel holds and nobody wants.
    pub(crate) fn stale(&self) -> impl Iterator<Item = K> {
        self.present.keys().filter(|key| !self.wanted.contains_key(key)).copied()
    }

    /// When the first failure is tried again.
    pub(crate) fn next_deadline(&self) -> Option<Instant> {
        self.failures.values().filter_map(|failure| failure.retry_at).min()
    }

    /// The failures in words: one, and how many more there are.
    pub(crate) fn problem(&self) -> Option<String> {
        let (key, failure) = self.failures.first_key_value()?;
        let refusal = Refusal { index: 0, errno: failure.errno, text: failure.text.clone() };
        let more = match self.failures.len() - 1 {
            0 => String::new(),
            more => format!(", and {more} more"),
        };
        Some(format!("the kernel refuses {key}: {refusal}{more}"))
    }

    /// Notes that the kernel refused to write or to remove `key`.
    pub(crate) fn fail(&mut self, key: K, now: Instant, refusal: Refusal) {
        let before = self.failures.remove(&key);
        let failure = Failure::again(before.as_ref(), now, refusal.errno, refusal.text);
        self.failures.insert(key, failure);
    }
}

/// Joins requests with the refusals that name them by position.
fn outcomes<K, V>(
    requests: Vec<(K, V)>,
    refusals: Vec<Refusal>,
) -> impl Iterator<Item = (K, V, Option<Refusal>)> {
    let mut refusals = refusals.into_iter().peekable();
    requests.into_iter().enumerate().map(move |(index, (key, value))| {
        (key, value, refusals.next_if(|refusal| refusal.index == index))
    })
}

fn is_gone(errno: Errno) -> bool {
    matches!(errno, Errno::NOENT | Errno::SRCH | Errno::NODEV)
}

/// Whether a refusal to write tells of something that was not known: a taken key, an object or link
/// that is gone or down.
fn says_mistaken(errno: Errno) -> bool {
    is_gone(errno) || matches!(errno, Errno::EXIST | Errno::NETDOWN)
}
