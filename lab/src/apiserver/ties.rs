//! What garbage collection asks of all objects, kept as they are written: a pass then costs what
//! there is to collect, not what is stored.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::sync::Arc;

use serde_json::Value;

use super::metadata;
use super::store::Key;

/// Where an object is stored.
pub(super) type Place = (Arc<str>, Key);

/// Who exists, who is owned by whom, and who is on its way out.
#[derive(Clone, Debug, Default)]
pub(super) struct Ties {
    /// How many objects have this UID.
    uids: HashMap<String, usize>,
    /// The objects that name an owner of this UID.
    dependents: BTreeMap<String, BTreeSet<Place>>,
    terminating: BTreeSet<Place>,
}

impl Ties {
    /// Takes in a write.
    pub(super) fn note(
        &mut self,
        storage: &Arc<str>,
        key: &Key,
        before: Option<&Value>,
        after: Option<&Value>,
    ) {
        // Looked up first: nearly every write leaves all three as they are.
        let uid = |object: Option<&Value>| object.map(|o| metadata::field(o, "uid").to_owned());
        let (old, new) = (uid(before), uid(after));
        if old != new {
            if let Some(old) = old
                && let Some(count) = self.uids.get_mut(&old)
            {
                *count -= 1;
                if *count == 0 {
                    self.uids.remove(&old);
                }
            }
            if let Some(new) = new {
                *self.uids.entry(new).or_default() += 1;
            }
        }
        let (old, new) = (owner_uids(before), owner_uids(after));
        for gone in old.difference(&new) {
            if let Some(places) = self.dependents.get_mut(*gone) {
                places.remove(&(storage.clone(), key.clone()));
                if places.is_empty() {
                    self.dependents.remove(*gone);
                }
            }
        }
        for come in new.difference(&old) {
            let places = self.dependents.entry((*come).to_owned()).or_default();
            places.insert((storage.clone(), key.clone()));
        }
        let ends = |object: Option<&Value>| object.is_some_and(metadata::is_terminating);
        match (ends(before), ends(after)) {
            (false, true) => drop(self.terminating.insert((storage.clone(), key.clone()))),
            (true, false) => drop(self.terminating.remove(&(storage.clone(), key.clone()))),
            _ => {}
        }
    }

    /// Whether an object with this UID exists.
    pub(super) fn exists(&self, uid: &str) -> bool {
        self.uids.contains_key(uid)
    }

    /// The objects that name an owner of this UID, in the order of lists.
    pub(super) fn dependents(&self, uid: &str) -> impl Iterator<Item = &Place> {
        self.dependents.get(uid).into_iter().flatten()
    }

    /// The objects that name an owner which does not exist, in the order of lists.
    pub(super) fn bereft(&self) -> BTreeSet<&Place> {
        let gone = self.dependents.iter().filter(|(uid, _)| !self.exists(uid));
        gone.flat_map(|(_, places)| places).collect()
    }

    /// The objects under deletionTimestamp, in the order of lists.
    pub(super) fn terminating(&self) -> impl Iterator<Item = &Place> {
        self.terminating.iter()
    }
}

/// The ownerReferences of an object.
pub(super) fn owners(object: &Value) -> impl Iterator<Item = &Value> {
    object.pointer("/metadata/ownerReferences").and_then(Value::as_array).into_iter().flatten()
}

fn owner_uids(object: Option<&Value>) -> BTreeSet<&str> {
    let owners = object.into_iter().flat_map(owners);
    owners.map(|owner| owner.get("uid").and_then(Value::as_str).unwrap_or_default()).collect()
}
