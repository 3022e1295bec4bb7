//! The objects, their history and who watches them.
//!
//! One counter numbers every write. The last writes are kept, so that a watch can begin in the past
//! and a list can be continued at the state that it began with. Values are shared, never changed in
//! place.

use std::collections::{BTreeMap, VecDeque};
use std::ops::Bound;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use serde_json::{Value, json};
use tokio::sync::mpsc;

use super::ties::Ties;

/// Namespace (empty for cluster-scoped objects) and name.
pub(super) type Key = (String, String);

/// The objects of one resource in the order of lists.
pub(super) type Objects = BTreeMap<Key, Arc<Value>>;

/// One committed write.
#[derive(Debug)]
pub(super) struct Change {
    pub(super) revision: u64,
    pub(super) storage: Arc<str>,
    pub(super) key: Key,
    pub(super) before: Option<Arc<Value>>,
    pub(super) after: Option<Arc<Value>>,
}

impl Change {
    /// The object as it was, under the resourceVersion of this change: what a deletion shows.
    pub(super) fn last_state(&self) -> Option<Value> {
        let mut object = Value::clone(self.before.as_ref()?);
        set_revision(&mut object, self.revision);
        Some(object)
    }
}

/// The receiving end of a watch.
pub(super) struct Subscription {
    /// Changes that happened between the asked revision and the subscription.
    pub(super) backlog: VecDeque<Arc<Change>>,
    pub(super) live: mpsc::Receiver<Arc<Change>>,
    /// Set when the watcher was cut because its queue was full.
    pub(super) overrun: Arc<AtomicBool>,
}

struct Watcher {
    storage: Arc<str>,
    namespace: Option<String>,
    queue: mpsc::Sender<Arc<Change>>,
    overrun: Arc<AtomicBool>,
}

/// What is stored at one moment, without who watches it.
#[derive(Clone, Debug)]
pub(super) struct Past {
    revision: u64,
    objects: BTreeMap<Arc<str>, Objects>,
    ties: Ties,
    history: VecDeque<Arc<Change>>,
    forgotten: u64,
}

/// Everything that is stored.
pub(super) struct Store {
    revision: u64,
    objects: BTreeMap<Arc<str>, Objects>,
    ties: Ties,
    history: VecDeque<Arc<Change>>,
    history_max: usize,
    /// Writes up to this one are forgotten.
    forgotten: u64,
    watchers: Vec<Watcher>,
    watch_queue_max: usize,
}

impl Store {
    pub(super) fn new(history_max: usize, watch_queue_max: usize) -> Store {
        Store {
            revision: 1,
            objects: BTreeMap::new(),
            ties: Ties::default(),
            history: VecDeque::new(),
            history_max,
            forgotten: 1,
            watchers: Vec::new(),
            watch_queue_max: watch_queue_max.max(1),
        }
    }

    /// The number of the last write.
    pub(super) fn revision(&self) -> u64 {
        self.revision
    }

    /// The last write that can no longer be watched from.
    pub(super) fn forgotten(&self) -> u64 {
        self.forgotten
    }

    /// The state now, to go back to.
    pub(super) fn past(&self) -> Past {
        Past {
            revision: self.revision,
            objects: self.objects.clone(),
            ties: self.ties.clone(),
            history: self.history.clone(),
            forgotten: self.forgotten,
        }
    }

    /// Goes back, and ends every watch.
    pub(super) fn restore(&mut self, past: &Past) {
        let Past { revision, objects, ties, history, forgotten } = past.clone();
        (self.revision, self.objects, self.ties) = (revision, objects, ties);
        (self.history, self.forgotten) = (history, forgotten);
        self.watchers.clear();
    }

    /// Raises the number of the last write, which objects keep theirs under, and forgets the history.
    pub(super) fn raise(&mut self, by: u64) {
        self.revision = self.revision.saturating_add(by);
        self.forget_history();
    }

    /// Forgets the whole history, as a compaction does.
    pub(super) fn forget_history(&mut self) {
        self.history.clear();
        self.forgotten = self.revision;
    }

    pub(super) fn object(&self, storage: &str, key: &Key) -> Option<&Arc<Value>> {
        self.objects.get(storage)?.get(key)
    }

    /// The current objects of one resource.
    pub(super) fn objects(&self, storage: &str) -> impl Iterator<Item = (&Key, &Arc<Value>)> {
        self.objects.get(storage).into_iter().flatten()
    }

    /// All objects of all resources.
    pub(super) fn everything(&self) -> impl Iterator<Item = (&Arc<str>, &Key, &Arc<Value>)> {
        self.objects
            .iter()
            .flat_map(|(storage, objects)| objects.iter().map(move |(k, v)| (storage, k, v)))
    }

    /// Who owns whom and who is on its way out.
    pub(super) fn ties(&self) -> &Ties {
        &self.ties
    }

    /// The objects of one resource behind `after` as they were after write `revision`; `None` when
    /// that is forgotten or has not happened yet. Costs what is taken and what was written since,
    /// not what is stored: a page of a long list is as cheap as one of a short list.
    pub(super) fn objects_at<'a>(
        &'a self,
        storage: &str,
        revision: u64,
        after: Option<&Key>,
    ) -> Option<impl Iterator<Item = (&'a Key, &'a Arc<Value>)>> {
        if revision < self.forgotten || revision > self.revision {
            return None;
        }
        // What a later write has changed, as it was then.
        let mut then: BTreeMap<&Key, Option<&Arc<Value>>> = BTreeMap::new();
        let later = self.history.iter().rev().take_while(|change| change.revision > revision);
        for change in later.filter(|change| &*change.storage == storage) {
            if after.is_none_or(|after| change.key > *after) {
                then.insert(&change.key, change.before.as_ref());
            }
        }
        let behind = (after.map_or(Bound::Unbounded, Bound::Excluded), Bound::Unbounded);
        let objects = self.objects.get(storage).into_iter();
        let mut now = objects.flat_map(move |objects| objects.range::<Key, _>(behind)).peekable();
        let mut then = then.into_iter().peekable();
        Some(std::iter::from_fn(move || {
            loop {
                let changed = match (now.peek(), then.peek()) {
                    (Some((key, _)), Some((changed, _))) => *changed <= *key,
                    (_, changed) => changed.is_some(),
                };
                if !changed {
                    return now.next();
                }
                let (key, was) = then.next()?;
                now.next_if(|(other, _)| *other == key);
                if let Some(object) = was {
                    return Some((key, object));
                }
            }
        }))
    }

    /// Stores an object under the next revision and returns it with that resourceVersion.
    pub(super) fn put(&mut self, storage: &str, key: Key, mut object: Value) -> Arc<Value> {
        self.revision += 1;
        set_revision(&mut object, self.revision);
        let object = Arc::new(object);
        let storage = self.storage_name(storage);
        let objects = self.objects.entry(storage.clone()).or_default();
        let before = objects.insert(key.clone(), object.clone());
        self.ties.note(&storage, &key, before.as_deref(), Some(&object));
        self.publish(Change {
            revision: self.revision,
            storage,
            key,
            before,
            after: Some(object.clone()),
        });
        object
    }

    /// Removes an object under the next revision and returns its last state.
    pub(super) fn remove(&mut self, storage: &str, key: &Key) -> Option<Arc<Value>> {
        let storage = self.storage_name(storage);
        let before = self.objects.get_mut(&storage)?.remove(key)?;
        self.ties.note(&storage, key, Some(&before), None);
        self.revision += 1;
        self.publish(Change {
            revision: self.revision,
            storage,
            key: key.clone(),
            before: Some(before.clone()),
            after: None,
        });
        Some(before)
    }

    fn storage_name(&self, storage: &str) -> Arc<str> {
        let known = self.objects.get_key_value(storage).map(|(name, _)| name.clone());
        known.unwrap_or_else(|| storage.into())
    }

    fn publish(&mut self, change: Change) {
        let change = Arc::new(change);
        self.watchers.retain(|watcher| {
            let concerned = watcher.storage == change.storage
                && watcher.namespace.as_ref().is_none_or(|ns| *ns == change.key.0);
            if !concerned {
                return !watcher.queue.is_closed();
            }
            match watcher.queue.try_send(change.clone()) {
                Ok(()) => true,
                Err(mpsc::error::TrySendError::Full(_)) => {
                    watcher.overrun.store(true, Ordering::Release);
                    false
                }
                Err(mpsc::error::TrySendError::Closed(_)) => false,
            }
        });
        self.history.push_back(change);
        while self.history.len() > self.history_max {
            if let Some(oldest) = self.history.pop_front() {
                self.forgotten = oldest.revision;
            }
        }
    }

    /// Subscribes to the changes of a resource after write `since`.
    ///
    /// A `since` ahead of history is taken: the caller drops what comes before it.
    pub(super) fn subscribe(
        &mut self,
        storage: &str,
        namespace: Option<&str>,
        since: u64,
    ) -> Subscription {
        let concerned = |change: &&Arc<Change>| {
            &*change.storage == storage && namespace.is_none_or(|ns| ns == change.key.0)
        };
        let after = self.history.partition_point(|change| change.revision <= since);
        let backlog = self.history.range(after..).filter(concerned).cloned().collect();
        let (queue, live) = mpsc::channel(self.watch_queue_max);
        let overrun = Arc::new(AtomicBool::new(false));
        self.watchers.retain(|watcher| !watcher.queue.is_closed());
        self.watchers.push(Watcher {
            storage: self.storage_name(storage),
            namespace: namespace.map(str::to_owned),
            queue,
            overrun: overrun.clone(),
        });
        Subscription { backlog, live, overrun }
    }

    /// Ends every watch of a resource that is no longer served.
    pub(super) fn end_watches(&mut self, storage: &str) {
        self.watchers.retain(|watcher| &*watcher.storage != storage);
    }
}

/// The revision that an object was last written at; 0 when it says none.
pub(super) fn revision_of(object: &Value) -> u64 {
    let text = object.pointer("/metadata/resourceVersion").and_then(Value::as_str);
    text.and_then(|text| text.parse().ok()).unwrap_or(0)
}

fn set_revision(object: &mut Value, revision: u64) {
    if let Some(metadata) = object.get_mut("metadata").and_then(Value::as_object_mut) {
        metadata.insert("resourceVersion".to_owned(), json!(revision.to_string()));
    }
}
