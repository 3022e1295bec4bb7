//! Who owns which field: `metadata.managedFields` and server-side apply.
//!
//! A set of fields is a set of paths whose steps are written as fieldsV1 writes them (`f:name`,
//! `k:{...}`, `v:...`). Which lists are merged by key, as sets or not at all follows from the
//! schema, and for builtin kinds from [`list_keys`].

use std::collections::BTreeSet;

use serde_json::{Map, Value, json};

use super::error::ApiError;
use super::resource::Resource;
use super::schema::{ListType, Schema, keyed};

/// A path to a field, one step an element.
pub(super) type Path = Vec<String>;

/// A set of owned fields.
pub(super) type FieldSet = BTreeSet<Path>;

/// What is known of the shape at a place in an object.
#[derive(Clone, Copy)]
pub(super) enum Shape<'a> {
    /// The root of an object; metadata below it has the same shape in every kind.
    Root(Option<&'a Schema>),
    /// A place below the root of a custom resource.
    Typed(&'a Schema),
    /// A place in a builtin kind or in metadata: only the name of the field is known.
    Named(&'a str),
}

/// How a list is merged.
enum Merge {
    Atomic,
    Set,
    Keys(Vec<String>),
}

impl<'a> Shape<'a> {
    fn child(self, name: &'a str) -> Shape<'a> {
        match self {
            Shape::Root(Some(schema)) if name != "metadata" => {
                schema.field(name).map_or(Shape::Named(""), Shape::Typed)
            }
            Shape::Typed(schema) => schema.field(name).map_or(Shape::Named(""), Shape::Typed),
            Shape::Root(_) | Shape::Named(_) => Shape::Named(name),
        }
    }

    fn item(self) -> Shape<'a> {
        match self {
            Shape::Typed(schema) => schema.items.as_deref().map_or(Shape::Named(""), Shape::Typed),
            Shape::Root(_) | Shape::Named(_) => Shape::Named("[]"),
        }
    }

    fn merge(self) -> Merge {
        match self {
            Shape::Typed(schema) => match &schema.list {
                ListType::Atomic => Merge::Atomic,
                ListType::Set => Merge::Set,
                ListType::Map(keys) => Merge::Keys(keys.clone()),
            },
            Shape::Named("finalizers") => Merge::Set,
            Shape::Named(name) => match list_keys(name) {
                Some(keys) => Merge::Keys(keys.iter().map(|key| (*key).to_owned()).collect()),
                None => Merge::Atomic,
            },
            Shape::Root(_) => Merge::Atomic,
        }
    }

    fn is_atomic_map(self) -> bool {
        match self {
            Shape::Typed(schema) => schema.map_atomic,
            Shape::Named(name) => {
                matches!(name, "selector" | "nodeSelector" | "secretRef" | "fieldsV1")
            }
            Shape::Root(_) => false,
        }
    }
}

/// The keys by which lists of builtin kinds are merged, by the name of the field.
pub(super) fn list_keys(field: &str) -> Option<&'static [&'static str]> {
    Some(match field {
        "ownerReferences" => &["uid"],
        "conditions" => &["type"],
        "containers"
        | "initContainers"
        | "ephemeralContainers"
        | "env"
        | "volumes"
        | "imagePullSecrets" => &["name"],
        "volumeMounts" => &["mountPath"],
        "volumeDevices" => &["devicePath"],
        "hostAliases" => &["ip"],
        "podIPs" | "hostIPs" => &["ip"],
        // Addresses of a Node are declared as a map by type.
        "addresses" => &["type"],
        _ => return None,
    })
}

fn step_field(name: &str) -> String {
    format!("f:{name}")
}

/// Steps and values of a merged list; `None` when the list is atomic or an item has no identity.
fn list_items(shape: Shape<'_>, list: &[Value]) -> Option<Vec<(String, usize)>> {
    match shape.merge() {
        Merge::Atomic => None,
        Merge::Set => Some(list.iter().enumerate().map(|(i, v)| (format!("v:{v}"), i)).collect()),
        Merge::Keys(keys) => list
            .iter()
            .enumerate()
            .map(|(i, item)| {
                let identity = keyed(&keys, item);
                let complete = identity.as_object().is_some_and(|map| !map.is_empty());
                complete.then(|| (format!("k:{identity}"), i))
            })
            .collect(),
    }
}

/// The fields that an applied configuration sets.
pub(super) fn field_set(shape: Shape<'_>, value: &Value) -> FieldSet {
    let mut set = FieldSet::new();
    collect(shape, value, &mut Vec::new(), false, &mut set);
    set
}

/// Every field below `value`; with `inner` maps and items themselves are members too, as they are
/// for a manager that wrote them by an update.
fn collect(shape: Shape<'_>, value: &Value, path: &mut Path, inner: bool, set: &mut FieldSet) {
    match value {
        Value::Object(map) if !map.is_empty() && !shape.is_atomic_map() => {
            if inner && !path.is_empty() {
                set.insert(path.clone());
            }
            for (name, child) in map {
                path.push(step_field(name));
                collect(shape.child(name), child, path, inner, set);
                path.pop();
            }
        }
        Value::Array(list) if !list.is_empty() => match list_items(shape, list) {
            None => drop(set.insert(path.clone())),
            Some(items) => {
                if inner {
                    set.insert(path.clone());
                }
                for (step, index) in items {
                    path.push(step);
                    set.insert(path.clone());
                    if let Some(item @ Value::Object(_)) = list.get(index) {
                        collect(shape.item(), item, path, inner, set);
                    }
                    path.pop();
                }
            }
        },
        _ => {
            if !path.is_empty() {
                set.insert(path.clone());
            }
        }
    }
}

/// What differs between two states of an object.
#[derive(Debug, Default)]
pub(super) struct Difference {
    /// Fields that are new or have another value.
    pub(super) written: FieldSet,
    /// Fields that are gone.
    pub(super) removed: FieldSet,
}

/// Compares two states.
pub(super) fn compare(shape: Shape<'_>, old: &Value, new: &Value) -> Difference {
    let mut difference = Difference::default();
    compare_node(shape, old, new, &mut Vec::new(), &mut difference);
    difference
}

fn compare_node(shape: Shape<'_>, old: &Value, new: &Value, path: &mut Path, out: &mut Difference) {
    if old == new {
        return;
    }
    match (old, new) {
        (Value::Object(before), Value::Object(after)) if !shape.is_atomic_map() => {
            for (name, child) in after {
                path.push(step_field(name));
                match before.get(name) {
                    Some(old) => compare_node(shape.child(name), old, child, path, out),
                    None => collect(shape.child(name), child, path, true, &mut out.written),
                }
                path.pop();
            }
            for (name, child) in before.iter().filter(|(name, _)| !after.contains_key(*name)) {
                path.push(step_field(name));
                collect(shape.child(name), child, path, true, &mut out.removed);
                path.pop();
            }
        }
        (Value::Array(before), Value::Array(after)) => {
            match (list_items(shape, before), list_items(shape, after)) {
                (Some(old_items), Some(new_items)) => {
                    let find = |items: &[(String, usize)], list: &[Value], wanted: &str| {
                        let index = items.iter().find(|(step, _)| step == wanted)?.1;
                        list.get(index).cloned()
                    };
                    for (step, index) in &new_items {
                        let Some(item) = after.get(*index) else { continue };
                        path.push(step.clone());
                        match find(&old_items, before, step) {
                            Some(old) => compare_node(shape.item(), &old, item, path, out),
                            None => collect_item(shape, item, path, &mut out.written),
                        }
                        path.pop();
                    }
                    for (step, index) in &old_items {
                        if find(&new_items, after, step).is_none()
                            && let Some(item) = before.get(*index)
                        {
                            path.push(step.clone());
                            collect_item(shape, item, path, &mut out.removed);
                            path.pop();
                        }
                    }
                }
                _ => drop(out.written.insert(path.clone())),
            }
        }
        _ => {
            // A change of type: everything below the old value is gone with it.
            collect(shape, old, path, true, &mut out.removed);
            let mut now = FieldSet::new();
            collect(shape, new, path, true, &mut now);
            out.removed.retain(|gone| !now.contains(gone));
            out.written.extend(now);
        }
    }
}

fn collect_item(shape: Shape<'_>, item: &Value, path: &mut Path, set: &mut FieldSet) {
    set.insert(path.clone());
    if item.is_object() {
        collect(shape.item(), item, path, true, set);
    }
}

/// Lays an applied configuration over the live object.
pub(super) fn merge(shape: Shape<'_>, live: &mut Value, config: &Value) {
    match (&mut *live, config) {
        (Value::Object(into), Value::Object(from)) if !shape.is_atomic_map() => {
            for (name, child) in from {
                match into.get_mut(name) {
                    Some(existing) => merge(shape.child(name), existing, child),
                    None => drop(into.insert(name.clone(), child.clone())),
                }
            }
        }
        (Value::Array(into), Value::Array(from)) => {
            let (Some(own), Some(theirs)) = (list_items(shape, into), list_items(shape, from))
            else {
                *live = config.clone();
                return;
            };
            for (step, index) in theirs {
                let Some(item) = from.get(index) else { continue };
                let at = own.iter().find(|(mine, _)| *mine == step).map(|(_, at)| *at);
                match at.and_then(|at| into.get_mut(at)) {
                    Some(existing) if item.is_object() => merge(shape.item(), existing, item),
                    Some(_) => {}
                    None => into.push(item.clone()),
                }
            }
        }
        _ => *live = config.clone(),
    }
}

/// Removes the fields in `gone` from an object, and what they leave empty, unless `kept` owns it.
pub(super) fn remove(shape: Shape<'_>, value: &mut Value, gone: &FieldSet, kept: &FieldSet) {
    remove_node(shape, value, &mut Vec::new(), gone, kept);
}

/// Whether `set` holds `path` or anything below it.
fn holds_below(set: &FieldSet, path: &Path) -> bool {
    set.range(path.clone()..).next().is_some_and(|next| next.starts_with(path))
}

/// Returns whether the value itself is to go.
fn remove_node(
    shape: Shape<'_>,
    value: &mut Value,
    path: &mut Path,
    gone: &FieldSet,
    kept: &FieldSet,
) -> bool {
    if !path.is_empty() && holds_below(kept, path) {
        remove_below(shape, value, path, gone, kept);
        return false;
    }
    if gone.contains(path) && !path.is_empty() {
        // A struct that only lost its own membership keeps what somebody else left in it.
        let is_plain_map = value.is_object() && !path.last().is_some_and(|s| s.starts_with("k:"));
        if !is_plain_map {
            return true;
        }
    }
    if !holds_below(gone, path) {
        return false;
    }
    remove_below(shape, value, path, gone, kept);
    let emptied = match value {
        Value::Object(map) => map.is_empty(),
        Value::Array(list) => list.is_empty(),
        _ => false,
    };
    emptied && !path.is_empty()
}

fn remove_below(
    shape: Shape<'_>,
    value: &mut Value,
    path: &mut Path,
    gone: &FieldSet,
    kept: &FieldSet,
) {
    match value {
        Value::Object(map) if !shape.is_atomic_map() => {
            map.retain(|name, child| {
                path.push(step_field(name));
                let goes = remove_node(shape.child(name), child, path, gone, kept);
                path.pop();
                !goes
            });
        }
        Value::Array(list) => {
            let Some(items) = list_items(shape, list) else { return };
            let mut steps = items.into_iter().map(|(step, _)| step);
            list.retain_mut(|item| {
                let Some(step) = steps.next() else { return true };
                path.push(step);
                let goes = remove_node(shape.item(), item, path, gone, kept);
                path.pop();
                !goes
            });
        }
        _ => {}
    }
}

/// Reads a fieldsV1 object.
pub(super) fn from_fields_v1(value: &Value) -> FieldSet {
    fn walk(map: &Map<String, Value>, path: &mut Path, set: &mut FieldSet, depth: usize) {
        if depth > 64 {
            return;
        }
        for (step, child) in map {
            if step == "." {
                set.insert(path.clone());
                continue;
            }
            path.push(step.clone());
            match child.as_object() {
                Some(below) if !below.is_empty() => walk(below, path, set, depth + 1),
                _ => drop(set.insert(path.clone())),
            }
            path.pop();
        }
    }
    let mut set = FieldSet::new();
    if let Some(map) = value.as_object() {
        walk(map, &mut Vec::new(), &mut set, 0);
    }
    set
}

/// Writes a fieldsV1 object.
pub(super) fn to_fields_v1(set: &FieldSet) -> Value {
    let mut root = json!({});
    for path in set {
        let mut node = &mut root;
        for step in path {
            let Value::Object(map) = node else { break };
            node = map.entry(step.clone()).or_insert_with(|| json!({}));
        }
        // A prefix sorts before what it is a prefix of: if something follows below it, its own
        // membership must be told from a mere step.
        let mut below = set.range(path.clone()..).skip(1);
        if below.next().is_some_and(|next| next.starts_with(path))
            && let Value::Object(map) = node
        {
            map.insert(".".to_owned(), json!({}));
        }
    }
    root
}

/// A field path for people: `.spec.list[name="x"].value`.
fn readable(path: &Path) -> String {
    let mut text = String::new();
    for step in path {
        if let Some(name) = step.strip_prefix("f:") {
            text.push('.');
            text.push_str(name);
        } else if let Some(keys) = step.strip_prefix("k:") {
            let keys: Value = serde_json::from_str(keys).unwrap_or(Value::Null);
            let pairs: Vec<String> = keys
                .as_object()
                .into_iter()
                .flatten()
                .map(|(key, value)| format!("{key}={value}"))
                .collect();
            text.push_str(&format!("[{}]", pairs.join(",")));
        } else if let Some(value) = step.strip_prefix("v:") {
            text.push_str(&format!("[={value}]"));
        }
    }
    text
}

/// One entry of managedFields.
#[derive(Clone, Debug)]
struct Entry {
    manager: String,
    apply: bool,
    api_version: String,
    subresource: String,
    time: Value,
    set: FieldSet,
}

impl Entry {
    /// Whether this is the entry of a writer. An applier is the same one in every version.
    fn is_of(&self, api_version: &str, writer: &Writer<'_>, apply: bool) -> bool {
        self.manager == writer.manager
            && self.apply == apply
            && self.subresource == writer.subresource
            && (apply || self.api_version == api_version)
    }
}

/// Who writes.
#[derive(Clone, Debug)]
pub(super) struct Writer<'a> {
    pub(super) manager: &'a str,
    pub(super) subresource: &'a str,
    pub(super) now: &'a str,
}

/// The field owners of one object.
#[derive(Clone, Debug, Default)]
pub(super) struct Owners(Vec<Entry>);

impl Owners {
    /// Reads an object's managedFields.
    pub(super) fn of(object: &Value) -> Owners {
        let list = object.pointer("/metadata/managedFields").and_then(Value::as_array);
        let text = |entry: &Value, key: &str| {
            entry.get(key).and_then(Value::as_str).unwrap_or_default().to_owned()
        };
        let entries = list.map_or(&[][..], Vec::as_slice).iter().map(|entry| Entry {
            manager: text(entry, "manager"),
            apply: text(entry, "operation") == "Apply",
            api_version: text(entry, "apiVersion"),
            subresource: text(entry, "subresource"),
            time: entry.get("time").cloned().unwrap_or(Value::Null),
            set: entry.get("fieldsV1").map(from_fields_v1).unwrap_or_default(),
        });
        Owners(entries.collect())
    }

    /// Writes the entries into an object; entries without fields are dropped.
    pub(super) fn store(&self, object: &mut Value) {
        let entries: Vec<Value> = self
            .0
            .iter()
            .filter(|entry| !entry.set.is_empty())
            .map(|entry| {
                let mut value = json!({
                    "manager": entry.manager,
                    "operation": if entry.apply { "Apply" } else { "Update" },
                    "apiVersion": entry.api_version,
                    "time": entry.time,
                    "fieldsType": "FieldsV1",
                    "fieldsV1": to_fields_v1(&entry.set),
                });
                if !entry.subresource.is_empty() {
                    value["subresource"] = json!(entry.subresource);
                }
                value
            })
            .collect();
        if let Some(metadata) = object.get_mut("metadata").and_then(Value::as_object_mut) {
            if entries.is_empty() {
                metadata.remove("managedFields");
            } else {
                metadata.insert("managedFields".to_owned(), Value::Array(entries));
            }
        }
    }

    fn entry(&mut self, resource: &Resource, writer: &Writer<'_>, apply: bool) -> &mut Entry {
        let api_version = resource.api_version();
        let same = |entry: &Entry| entry.is_of(&api_version, writer, apply);
        let at = match self.0.iter().position(same) {
            Some(at) => at,
            None => {
                self.0.push(Entry {
                    manager: writer.manager.to_owned(),
                    apply,
                    api_version,
                    subresource: writer.subresource.to_owned(),
                    time: json!(writer.now),
                    set: FieldSet::new(),
                });
                self.0.len() - 1
            }
        };
        &mut self.0[at]
    }

    fn others(
        &mut self,
        resource: &Resource,
        writer: &Writer<'_>,
        apply: bool,
    ) -> impl Iterator<Item = &mut Entry> {
        let api_version = resource.api_version();
        self.0.iter_mut().filter(move |entry| !entry.is_of(&api_version, writer, apply))
    }

    /// Records a create, update or patch that is not an apply.
    pub(super) fn updated(
        &mut self,
        resource: &Resource,
        writer: &Writer<'_>,
        mut difference: Difference,
    ) {
        let untracked = |path: &Path| !is_tracked(resource, writer.subresource, path);
        difference.written.retain(|path| !untracked(path));
        for entry in &mut self.0 {
            entry.set.retain(|path| !difference.removed.contains(path));
        }
        for entry in self.others(resource, writer, false) {
            entry.set.retain(|path| !difference.written.contains(path));
        }
        let own = self.entry(resource, writer, false);
        let before = own.set.clone();
        own.set.extend(difference.written);
        if own.set != before {
            own.time = json!(writer.now);
        }
    }

    /// Merges an applied configuration into `live` and returns the object and its new owners.
    ///
    /// # Errors
    /// 409 with a cause for each field that another manager set to another value, unless `force`.
    pub(super) fn applied(
        &self,
        resource: &Resource,
        writer: &Writer<'_>,
        live: &Value,
        config: &Value,
        force: bool,
    ) -> Result<(Value, Owners), ApiError> {
        let shape = Shape::Root(resource.schema.as_ref());
        let mut owners = self.clone();
        let mut set = field_set(shape, config);
        set.retain(|path| is_tracked(resource, writer.subresource, path));
        let own = owners.entry(resource, writer, true);
        let last = std::mem::take(&mut own.set);
        if last != set {
            own.time = json!(writer.now);
        }
        own.set = set;
        let kept: FieldSet = owners.0.iter().flat_map(|entry| entry.set.iter().cloned()).collect();
        let gone: FieldSet = last.difference(&kept).cloned().collect();
        let mut merged = live.clone();
        merge(shape, &mut merged, config);
        if !gone.is_empty() {
            remove(shape, &mut merged, &gone, &kept);
        }
        let mut difference = compare(shape, live, &merged);
        // What this endpoint does not write cannot be in conflict either.
        difference.written.retain(|path| is_tracked(resource, writer.subresource, path));
        difference.removed.retain(|path| is_tracked(resource, writer.subresource, path));
        let mut conflicts = Vec::new();
        for entry in owners.others(resource, writer, true) {
            let hits: Vec<Path> = entry.set.intersection(&difference.written).cloned().collect();
            for path in hits {
                entry.set.remove(&path);
                let mut who = format!("\"{}\"", entry.manager);
                if !entry.subresource.is_empty() {
                    who.push_str(&format!(" with subresource \"{}\"", entry.subresource));
                }
                if !entry.apply {
                    who.push_str(&format!(" using {}", entry.api_version));
                }
                conflicts.push((who, readable(&path)));
            }
        }
        if !conflicts.is_empty() && !force {
            return Err(ApiError::apply_conflict(&conflicts));
        }
        for entry in &mut owners.0 {
            entry.set.retain(|path| !difference.removed.contains(path));
        }
        Ok((merged, owners))
    }
}

/// Metadata that belongs to the server, and so to no manager.
const SERVER_METADATA: &[&str] = &[
    "f:name",
    "f:namespace",
    "f:uid",
    "f:resourceVersion",
    "f:creationTimestamp",
    "f:generation",
    "f:managedFields",
    "f:selfLink",
    "f:deletionTimestamp",
    "f:deletionGracePeriodSeconds",
    "f:generateName",
];

/// Whether ownership of a field is recorded for writes through this subresource.
fn is_tracked(resource: &Resource, subresource: &str, path: &Path) -> bool {
    let through_status = subresource == "status";
    let mut steps = path.iter().map(String::as_str);
    match steps.next() {
        Some("f:apiVersion" | "f:kind") | None => false,
        // Through /status of a custom resource metadata stays as it is.
        Some("f:metadata") if through_status && resource.custom => false,
        Some("f:metadata") => steps.next().is_some_and(|step| !SERVER_METADATA.contains(&step)),
        Some("f:status") => through_status || !resource.status,
        Some(_) => !through_status,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn shape_of(schema: &Value) -> Schema {
        Schema::parse(schema, "schema").expect("a schema")
    }

    #[test]
    fn fields_v1_comes_back_as_it_was() {
        let fields = json!({
            "f:metadata": {"f:labels": {".": {}, "f:a": {}}},
            "f:spec": {
                "f:list": {"k:{\"name\":\"x\"}": {".": {}, "f:name": {}, "f:value": {}}},
                "f:set": {"v:\"one\"": {}, "v:2": {}},
            },
        });
        assert_eq!(to_fields_v1(&from_fields_v1(&fields)), fields);
    }

    #[test]
    fn removing_what_was_merged_gives_back_what_was_there() {
        let schema = shape_of(&json!({
            "type": "object",
            "properties": {
                "map": {"type": "object", "additionalProperties": {"type": "string"}},
                "set": {"type": "array", "x-kubernetes-list-type": "set", "items": {"type": "string"}},
                "atomic": {"type": "array", "items": {"type": "string"}},
                "keyed": {
                    "type": "array", "x-kubernetes-list-type": "map",
                    "x-kubernetes-list-map-keys": ["name"],
                    "items": {"type": "object", "properties": {
                        "name": {"type": "string"}, "value": {"type": "string"},
                    }},
                },
            },
        }));
        let shape = Shape::Root(Some(&schema));
        let live = json!({
            "map": {"a": "1"}, "set": ["x"], "keyed": [{"name": "one", "value": "v"}],
        });
        let config = json!({
            "map": {"b": "2"}, "set": ["y"], "atomic": ["p", "q"],
            "keyed": [{"name": "two", "value": "w"}],
        });
        let mut merged = live.clone();
        merge(shape, &mut merged, &config);
        assert_eq!(
            merged,
            json!({
                "map": {"a": "1", "b": "2"}, "set": ["x", "y"], "atomic": ["p", "q"],
                "keyed": [{"name": "one", "value": "v"}, {"name": "two", "value": "w"}],
            })
        );
        let difference = compare(shape, &live, &merged);
        assert!(difference.removed.is_empty(), "{difference:?}");
        assert!(field_set(shape, &config).is_subset(&difference.written));
        remove(shape, &mut merged, &field_set(shape, &config), &FieldSet::new());
        assert_eq!(merged, live);
    }
}
