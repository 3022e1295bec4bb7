//! What the real cluster's controllers take away: objects without owners, the content of ended
//! namespaces and CRDs.

use std::sync::Arc;

use serde_json::{Value, json};

use super::metadata;
use super::resource::Resource;
use super::store::Key;
use super::ties::{Place, owners};
use super::write::{CRD_FINALIZER, DEFINITIONS, DeleteOptions, FOREGROUND, ORPHAN, State, Target};

impl State {
    /// One pass over everything; returns whether anything was changed.
    pub(super) fn collect_garbage(&mut self) -> bool {
        if !std::mem::take(&mut self.garbage) {
            return false;
        }
        let before = self.store.revision();
        self.settle_foreground_and_orphans();
        self.delete_ownerless();
        self.empty_namespaces();
        self.empty_definitions();
        self.store.revision() != before
    }

    fn resource_of(&self, storage: &str) -> Option<Arc<Resource>> {
        self.catalog.all().find(|resource| resource.storage == storage).cloned()
    }

    fn delete_quietly(&mut self, storage: &str, key: &Key) {
        if let Some(resource) = self.resource_of(storage) {
            let (namespace, name) = key.clone();
            let target = Target { resource, namespace, name, status: false };
            // Gone meanwhile is as good as deleted here.
            let _ = self.delete(&target, &DeleteOptions::default());
        }
    }

    /// An object goes when it names owners and none of them exists any more.
    fn delete_ownerless(&mut self) {
        let ties = self.store.ties();
        let is_gone = |owner: &Value| {
            let text = |key: &str| owner.get(key).and_then(Value::as_str).unwrap_or_default();
            // An owner of a kind that nobody serves cannot be judged, so it counts as there.
            let served = self.catalog.of_kind(text("apiVersion"), text("kind")).is_some();
            served && !ties.exists(text("uid"))
        };
        let is_lost = |(storage, key): &&Place| {
            self.store.object(storage, key).is_some_and(|object| {
                !metadata::is_terminating(object) && owners(object).all(is_gone)
            })
        };
        let lost: Vec<Place> = ties.bereft().into_iter().filter(is_lost).cloned().collect();
        for (storage, key) in lost {
            self.delete_quietly(&storage, &key);
        }
    }

    fn settle_foreground_and_orphans(&mut self) {
        let waits = |(_, _, object): &(Arc<str>, Key, Arc<Value>)| {
            metadata::finalizers(object).iter().any(|f| f == FOREGROUND || f == ORPHAN)
        };
        let ties = self.store.ties();
        let terminating = ties.terminating().filter_map(|place| self.found(place));
        let waiting: Vec<_> = terminating.filter(waits).collect();
        for (storage, key, owner) in waiting {
            let uid = metadata::field(&owner, "uid");
            let owned = self.store.ties().dependents(uid);
            let owned: Vec<_> = owned.filter_map(|place| self.found(place)).collect();
            let orphan = metadata::finalizers(&owner).iter().any(|f| f == ORPHAN);
            if orphan {
                for (storage, key, object) in &owned {
                    let mut object = Value::clone(object);
                    let list = object.pointer_mut("/metadata/ownerReferences");
                    if let Some(list) = list.and_then(Value::as_array_mut) {
                        list.retain(|o| o.get("uid") != Some(&json!(uid)));
                    }
                    self.store.put(storage, key.clone(), object);
                }
            } else if !owned.is_empty() {
                for (storage, key, object) in &owned {
                    if !metadata::is_terminating(object) {
                        self.delete_quietly(storage, key);
                    }
                }
                self.garbage = true;
                continue;
            }
            self.drop_finalizer(&storage, &key, &[FOREGROUND, ORPHAN]);
        }
    }

    /// The object at a place, with the place.
    fn found(&self, (storage, key): &Place) -> Option<(Arc<str>, Key, Arc<Value>)> {
        let object = self.store.object(storage, key)?;
        Some((storage.clone(), key.clone(), object.clone()))
    }

    /// Takes finalizers off an object and the object away when none is left.
    fn drop_finalizer(&mut self, storage: &str, key: &Key, names: &[&str]) {
        let Some(object) = self.store.object(storage, key) else { return };
        let mut object = Value::clone(object);
        for pointer in ["/metadata/finalizers", "/spec/finalizers"] {
            if let Some(list) = object.pointer_mut(pointer).and_then(Value::as_array_mut) {
                list.retain(|f| !f.as_str().is_some_and(|f| names.contains(&f)));
            }
        }
        if !metadata::finalizers(&object).is_empty() {
            self.store.put(storage, key.clone(), object);
        } else if let Some(resource) = self.resource_of(storage) {
            self.remove(&resource, key);
        }
    }

    fn empty_namespaces(&mut self) {
        let ended: Vec<Key> = self
            .store
            .objects("namespaces")
            .filter(|(_, namespace)| metadata::is_terminating(namespace))
            .map(|(key, _)| key.clone())
            .collect();
        for key in ended {
            let content: Vec<(Arc<str>, Key)> = self
                .store
                .everything()
                .filter(|(_, (namespace, _), _)| *namespace == key.1)
                .map(|(storage, key, _)| (storage.clone(), key.clone()))
                .collect();
            if content.is_empty() {
                self.drop_finalizer("namespaces", &key, &["kubernetes"]);
            }
            for (storage, key) in content {
                self.delete_quietly(&storage, &key);
            }
        }
    }

    fn empty_definitions(&mut self) {
        let storage = DEFINITIONS;
        let ended: Vec<Key> = self
            .store
            .objects(storage)
            .filter(|(_, crd)| metadata::finalizers(crd).iter().any(|f| f == CRD_FINALIZER))
            .filter(|(_, crd)| metadata::is_terminating(crd))
            .map(|(key, _)| key.clone())
            .collect();
        for key in ended {
            let content: Vec<Key> =
                self.store.objects(&key.1).map(|(key, _)| key.clone()).collect();
            if content.is_empty() {
                self.drop_finalizer(storage, &key, &[CRD_FINALIZER]);
            }
            for object in content {
                self.delete_quietly(&key.1, &object);
            }
        }
    }
}
