//! Create, update, patch, apply and delete: what a write turns an object into.

use std::sync::Arc;

use kube_cel::Validator;
use serde_json::{Value, json};

use super::convert;
use super::error::{ApiError, FieldError, FieldErrorKind};
use super::fields::{Owners, Shape, Writer, compare};
use super::metadata;
use super::patch::{PatchType, patched};
use super::prepare::{
    check_kind, check_revision, copy_field, fill_builtin, fold_string_data, is_deeper_than,
    is_owner_reset, keep_all_but_status, keep_metadata, refuse_unknown, set_namespace,
    spec_differs, uid_conflict, version_conflict,
};
use super::resource::{Catalog, Resource, read_crd};
use super::source::{Clock, Randomness};
use super::store::{Key, Store};

/// Attempts at a name from generateName before the server gives up.
const GENERATE_ATTEMPTS: usize = 8;
/// Nesting of an object at most: patches must not build what would exhaust the stack.
const DEPTH_MAX: usize = 128;
/// Where CRDs are stored.
pub(super) const DEFINITIONS: &str = "customresourcedefinitions.apiextensions.k8s.io";
/// Holds a CRD until its objects are gone.
pub(super) const CRD_FINALIZER: &str = "customresourcecleanup.apiextensions.k8s.io";
/// Holds an object until those that it owns are gone (propagationPolicy Foreground).
pub(super) const FOREGROUND: &str = "foregroundDeletion";
/// Holds an object until those that it owns have been cut loose (propagationPolicy Orphan).
pub(super) const ORPHAN: &str = "orphan";

/// Everything behind the API, owned by one lock.
pub(super) struct State {
    pub(super) store: Store,
    pub(super) catalog: Catalog,
    pub(super) validator: Validator,
    pub(super) clock: Clock,
    pub(super) random: Randomness,
    /// Something was removed or marked since garbage was last collected.
    pub(super) garbage: bool,
}

/// The object that a request is about.
#[derive(Clone, Debug)]
pub(super) struct Target {
    pub(super) resource: Arc<Resource>,
    /// Empty for cluster-scoped resources.
    pub(super) namespace: String,
    /// Empty for create and for collections.
    pub(super) name: String,
    /// The request goes through the status subresource.
    pub(super) status: bool,
}

impl Target {
    fn key(&self) -> Key {
        (self.namespace.clone(), self.name.clone())
    }

    fn subresource(&self) -> &'static str {
        if self.status { "status" } else { "" }
    }
}

/// What happens to fields that the schema does not know.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) enum FieldValidation {
    /// They are dropped.
    Ignore,
    /// They are dropped and named in warnings.
    #[default]
    Warn,
    /// The request is refused.
    Strict,
}

/// How a write is to be done.
#[derive(Clone, Debug, Default)]
pub(super) struct WriteOptions {
    pub(super) manager: String,
    pub(super) force: bool,
    pub(super) dry_run: bool,
    pub(super) validation: FieldValidation,
}

/// What a write came to.
#[derive(Debug)]
pub(super) struct Written {
    pub(super) code: u16,
    pub(super) object: Arc<Value>,
    pub(super) warnings: Vec<String>,
}

/// How a deletion is to be done.
#[derive(Clone, Debug, Default)]
pub(super) struct DeleteOptions {
    pub(super) uid: Option<String>,
    pub(super) resource_version: Option<String>,
    pub(super) propagation: Option<String>,
    pub(super) dry_run: bool,
}

/// How far a deletion has come.
#[derive(Debug)]
pub(super) enum Deleted {
    /// The object is gone; its last state.
    Gone(Arc<Value>),
    /// Finalizers hold it.
    Terminating(Arc<Value>),
}

/// What a checked object brings with it.
struct Admitted {
    warnings: Vec<String>,
    served: Option<Vec<Resource>>,
}

impl State {
    /// The object that a target names.
    pub(super) fn existing(&self, target: &Target) -> Result<Arc<Value>, ApiError> {
        let found = self.store.object(&target.resource.storage, &target.key());
        found.cloned().ok_or_else(|| ApiError::not_found(&target.resource, &target.name))
    }

    /// POST.
    pub(super) fn create(
        &mut self,
        target: &Target,
        body: Value,
        options: &WriteOptions,
    ) -> Result<Written, ApiError> {
        let resource = target.resource.clone();
        let mut object = convert::to_storage(&resource, body)?;
        check_kind(&resource, &mut object)?;
        set_namespace(target, &mut object)?;
        self.check_place(target)?;
        let now = self.clock.now();
        let meta = metadata::of(&mut object)?;
        if meta.get("resourceVersion").and_then(Value::as_str).is_some_and(|rv| !rv.is_empty()) {
            return Err(ApiError {
                code: 500,
                reason: "",
                message: "resourceVersion should not be set on objects to be created".to_owned(),
                details: Value::Null,
            });
        }
        for dropped in [
            "resourceVersion",
            "managedFields",
            "selfLink",
            "generation",
            "deletionTimestamp",
            "deletionGracePeriodSeconds",
        ] {
            meta.remove(dropped);
        }
        meta.insert("uid".to_owned(), json!(metadata::new_uid(&mut self.random)?));
        meta.insert("creationTimestamp".to_owned(), json!(now));
        if resource.rules.generation {
            meta.insert("generation".to_owned(), json!(1));
        }
        let name = self.choose_name(target, &mut object)?;
        if resource.status
            && !resource.rules.status_on_create
            && let Some(map) = object.as_object_mut()
        {
            map.remove("status");
        }
        fill_builtin(&resource, &mut object);
        let admitted = self.admit(&resource, &mut object, None, options)?;
        let mut owners = Owners::default();
        let writer = Writer { manager: &options.manager, subresource: "", now: &now };
        let shape = Shape::Root(resource.schema.as_ref());
        owners.updated(&resource, &writer, compare(shape, &json!({}), &object));
        owners.store(&mut object);
        self.commit_new(target, &name, object, admitted, options)
    }

    /// The name asked for, or one made from generateName that is still free.
    fn choose_name(&mut self, target: &Target, object: &mut Value) -> Result<String, ApiError> {
        let name = metadata::field(object, "name").to_owned();
        let prefix = metadata::field(object, "generateName").to_owned();
        if !name.is_empty() || prefix.is_empty() {
            return Ok(name);
        }
        for _ in 0..GENERATE_ATTEMPTS {
            let name = metadata::generated_name(&prefix, &mut self.random)?;
            let key = (target.namespace.clone(), name.clone());
            if self.store.object(&target.resource.storage, &key).is_none() {
                metadata::of(object)?.insert("name".to_owned(), json!(name));
                return Ok(name);
            }
        }
        Err(ApiError::already_exists(&target.resource, &prefix))
    }

    fn commit_new(
        &mut self,
        target: &Target,
        name: &str,
        object: Value,
        admitted: Admitted,
        options: &WriteOptions,
    ) -> Result<Written, ApiError> {
        let resource = &target.resource;
        let key = (target.namespace.clone(), name.to_owned());
        if self.store.object(&resource.storage, &key).is_some() {
            return Err(ApiError::already_exists(resource, name));
        }
        let warnings = admitted.warnings;
        if options.dry_run {
            return Ok(Written { code: 201, object: Arc::new(object), warnings });
        }
        if let Some(served) = admitted.served {
            self.catalog.replace_custom(name, served);
        }
        self.garbage |= object.pointer("/metadata/ownerReferences").is_some();
        let object = self.store.put(&resource.storage, key, object);
        Ok(Written { code: 201, object, warnings })
    }

    /// PUT.
    pub(super) fn update(
        &mut self,
        target: &Target,
        body: Value,
        options: &WriteOptions,
    ) -> Result<Written, ApiError> {
        let resource = target.resource.clone();
        let mut object = convert::to_storage(&resource, body)?;
        check_kind(&resource, &mut object)?;
        set_namespace(target, &mut object)?;
        let named = metadata::field(&object, "name");
        if named.is_empty() {
            metadata::of(&mut object)?.insert("name".to_owned(), json!(target.name));
        } else if named != target.name {
            let url = &target.name;
            return Err(ApiError::bad_request(format!(
                "the name of the object ({named}) does not match the name on the URL ({url})"
            )));
        }
        let old = match self.existing(target) {
            Ok(old) => old,
            Err(missing) if !resource.rules.create_on_update || target.status => {
                return Err(missing);
            }
            Err(_) => return self.create(target, object, options),
        };
        let uid = metadata::field(&object, "uid");
        if !uid.is_empty() && uid != metadata::field(&old, "uid") {
            return Err(uid_conflict(&resource, &target.name, uid, &old));
        }
        self.replace(target, &old, object, options, None)
    }

    /// PATCH.
    pub(super) fn patch(
        &mut self,
        target: &Target,
        kind: PatchType,
        patch: &Value,
        options: &WriteOptions,
    ) -> Result<Written, ApiError> {
        let resource = target.resource.clone();
        if kind == PatchType::Strategic && resource.custom {
            return Err(ApiError::unsupported_media_type(
                "application/json-patch+json, application/merge-patch+json, \
                 application/apply-patch+yaml",
            ));
        }
        if kind == PatchType::Apply {
            return self.apply(target, patch, options);
        }
        let old = self.existing(target)?;
        let shown = convert::from_storage(&resource, &old);
        let result = patched(kind, &shown, patch)?;
        let mut object = convert::to_storage(&resource, result)?;
        check_kind(&resource, &mut object)?;
        set_namespace(target, &mut object)?;
        self.replace(target, &old, object, options, None)
    }

    /// Server-side apply.
    fn apply(
        &mut self,
        target: &Target,
        config: &Value,
        options: &WriteOptions,
    ) -> Result<Written, ApiError> {
        let resource = target.resource.clone();
        if resource.is_new_event() {
            return Err(ApiError::not_implemented("server-side apply of events.k8s.io events"));
        }
        if options.manager.is_empty() {
            let error = FieldError::required("fieldManager", "is required for apply patch");
            return Err(ApiError::invalid_kind("meta.k8s.io", "PatchOptions", "", &[error]));
        }
        let mut config = config.clone();
        for key in ["apiVersion", "kind"] {
            if config.get(key).and_then(Value::as_str).is_none_or(str::is_empty) {
                return Err(ApiError::bad_request(format!(
                    "invalid object type: {key} is missing in the applied configuration"
                )));
            }
        }
        check_kind(&resource, &mut config)?;
        set_namespace(target, &mut config)?;
        if config.pointer("/metadata/managedFields").is_some_and(|list| !list.is_null()) {
            return Err(ApiError::bad_request("metadata.managedFields must be nil"));
        }
        let named = metadata::field(&config, "name");
        if named.is_empty() {
            return Err(ApiError::bad_request("name is required"));
        }
        if named != target.name {
            let url = &target.name;
            return Err(ApiError::bad_request(format!(
                "the name of the object ({named}) does not match the name on the URL ({url})"
            )));
        }
        let mut unknown = metadata::normalize(&mut config)?;
        if let Some(schema) = &resource.schema {
            unknown.extend(schema.prune(&mut config));
        }
        if let Some(path) = unknown.first() {
            // Whatever fieldValidation says: an apply owns fields, and of this one nothing is known.
            let (name, version, kind) = (&target.name, resource.api_version(), &resource.kind);
            return Err(ApiError::internal(format!(
                "failed to create typed patch object (/{name}; {version}, Kind={kind}): .{path}: \
                 field not declared in schema"
            )));
        }
        let now = self.clock.now();
        let writer =
            Writer { manager: &options.manager, subresource: target.subresource(), now: &now };
        let written = match self.existing(target) {
            Ok(old) => {
                let (object, owners) =
                    Owners::of(&old).applied(&resource, &writer, &old, &config, options.force)?;
                self.replace(target, &old, object, options, Some(owners))?
            }
            Err(missing) if target.status => return Err(missing),
            Err(_) => {
                let uid = metadata::field(&config, "uid").to_owned();
                if !uid.is_empty() {
                    let why = format!(
                        "uid mismatch: the provided object specified uid {uid}, and no existing \
                         object was found"
                    );
                    return Err(ApiError::conflict(&resource, &target.name, why));
                }
                self.apply_new(target, &config, &writer, options)?
            }
        };
        Ok(written)
    }

    /// An apply that finds no object creates it.
    fn apply_new(
        &mut self,
        target: &Target,
        config: &Value,
        writer: &Writer<'_>,
        options: &WriteOptions,
    ) -> Result<Written, ApiError> {
        let resource = target.resource.clone();
        self.check_place(target)?;
        let mut object = config.clone();
        if resource.status
            && !resource.rules.status_on_create
            && let Some(map) = object.as_object_mut()
        {
            map.remove("status");
        }
        let empty = json!({});
        let (_, owners) =
            Owners::default().applied(&resource, writer, &empty, config, options.force)?;
        let meta = metadata::of(&mut object)?;
        meta.remove("resourceVersion");
        meta.insert("uid".to_owned(), json!(metadata::new_uid(&mut self.random)?));
        meta.insert("creationTimestamp".to_owned(), json!(writer.now));
        if resource.rules.generation {
            meta.insert("generation".to_owned(), json!(1));
        }
        fill_builtin(&resource, &mut object);
        let admitted = self.admit(&resource, &mut object, None, options)?;
        owners.store(&mut object);
        self.commit_new(target, &target.name.clone(), object, admitted, options)
    }

    /// Puts a new state in the place of `old`, whatever verb it came by.
    fn replace(
        &mut self,
        target: &Target,
        old: &Arc<Value>,
        mut object: Value,
        options: &WriteOptions,
        owners: Option<Owners>,
    ) -> Result<Written, ApiError> {
        let resource = target.resource.clone();
        let name = &target.name;
        fold_string_data(&resource, &mut object);
        check_revision(&resource, name, &object, old)?;
        let reset_owners = is_owner_reset(&object);
        if target.status {
            keep_all_but_status(&resource, &mut object, old)?;
        } else if resource.status {
            copy_field(&mut object, old, "status");
        }
        keep_metadata(&mut object, old)?;
        let admitted = if target.status && resource.is_crd() {
            Admitted { warnings: Vec::new(), served: None }
        } else {
            self.admit(&resource, &mut object, Some(old), options)?
        };
        if resource.rules.generation && !target.status && spec_differs(&resource, old, &object) {
            let generation = old.pointer("/metadata/generation").and_then(Value::as_i64);
            let next = generation.unwrap_or(0).saturating_add(1);
            metadata::of(&mut object)?.insert("generation".to_owned(), json!(next));
        }
        let owners = match owners {
            Some(owners) => owners,
            None if reset_owners => Owners::default(),
            None => {
                let now = self.clock.now();
                let subresource = target.subresource();
                let writer = Writer { manager: &options.manager, subresource, now: &now };
                let shape = Shape::Root(resource.schema.as_ref());
                let mut owners = Owners::of(old);
                owners.updated(&resource, &writer, compare(shape, old, &object));
                owners
            }
        };
        owners.store(&mut object);
        let warnings = admitted.warnings;
        // A write without a difference is none: it keeps the resourceVersion and wakes nobody.
        if object == **old {
            return Ok(Written { code: 200, object: old.clone(), warnings });
        }
        let released = metadata::is_terminating(old) && metadata::finalizers(&object).is_empty();
        if options.dry_run {
            return Ok(Written { code: 200, object: Arc::new(object), warnings });
        }
        if let Some(served) = admitted.served {
            self.catalog.replace_custom(name, served);
        }
        self.garbage = true;
        if released {
            self.remove(&resource, &target.key());
            return Ok(Written { code: 200, object: Arc::new(object), warnings });
        }
        let object = self.store.put(&resource.storage, target.key(), object);
        Ok(Written { code: 200, object, warnings })
    }

    /// Prunes, fills and checks an object.
    fn admit(
        &self,
        resource: &Resource,
        object: &mut Value,
        old: Option<&Value>,
        options: &WriteOptions,
    ) -> Result<Admitted, ApiError> {
        if is_deeper_than(object, DEPTH_MAX) {
            return Err(ApiError::bad_request("the object is nested too deeply"));
        }
        let mut unknown = metadata::normalize(object)?;
        if let Some(schema) = &resource.schema {
            unknown.extend(schema.prune(object));
            schema.fill_defaults(object);
        }
        let warnings = refuse_unknown(resource, &unknown, options)?;
        let name = metadata::field(object, "name").to_owned();
        let mut errors = metadata::check(resource, object, old);
        if let Some(schema) = &resource.schema {
            errors.extend(schema.validate(object, old));
        }
        if let Some(rules) = resource.cel.as_ref().filter(|rules| rules.exist()) {
            if errors.iter().any(|error| error.kind.blocks_rules()) {
                let detail = "some validation rules were not checked because the object was \
                              invalid; correct the existing errors to complete validation";
                errors.push(FieldError::new(FieldErrorKind::Invalid, "", &Value::Null, detail));
            } else {
                errors.extend(rules.check(&self.validator, object, old));
            }
        }
        if !errors.is_empty() {
            return Err(ApiError::invalid(resource, &name, &errors));
        }
        let served = match resource.is_crd() {
            true => Some(read_crd(object, resource, &self.clock.now())?),
            false => None,
        };
        Ok(Admitted { warnings, served })
    }

    /// Whether there is a place for a new object: neither its namespace nor its definition ends.
    fn check_place(&self, target: &Target) -> Result<(), ApiError> {
        let definition = (String::new(), target.resource.storage.clone());
        let definition = self.store.object(DEFINITIONS, &definition);
        if definition.is_some_and(|definition| metadata::is_terminating(definition)) {
            let why = "create not allowed while custom resource definition is terminating";
            return Err(ApiError::forbidden(&target.resource, &target.name, why));
        }
        if !target.resource.namespaced {
            return Ok(());
        }
        let namespaces = self.catalog.at("", "v1", "namespaces");
        let key = (String::new(), target.namespace.clone());
        match (self.store.object("namespaces", &key), namespaces) {
            (Some(namespace), _) if metadata::is_terminating(namespace) => {
                let why = format!(
                    "unable to create new content in namespace {} because it is being terminated",
                    target.namespace
                );
                Err(ApiError::forbidden(&target.resource, &target.name, why))
            }
            (Some(_), _) | (None, None) => Ok(()),
            (None, Some(resource)) => Err(ApiError::not_found(&resource, &target.namespace)),
        }
    }

    /// DELETE of one object.
    pub(super) fn delete(
        &mut self,
        target: &Target,
        options: &DeleteOptions,
    ) -> Result<Deleted, ApiError> {
        let resource = target.resource.clone();
        let old = self.existing(target)?;
        if let Some(uid) = options.uid.as_deref().filter(|uid| *uid != metadata::field(&old, "uid"))
        {
            return Err(uid_conflict(&resource, &target.name, uid, &old));
        }
        if let Some(wanted) = &options.resource_version {
            let have = metadata::field(&old, "resourceVersion");
            if wanted != have {
                return Err(version_conflict(&resource, &target.name, wanted, have));
            }
        }
        let extra = match options.propagation.as_deref() {
            None | Some("Background") => None,
            Some("Foreground") => Some(FOREGROUND),
            Some("Orphan") => Some(ORPHAN),
            Some(other) => {
                return Err(ApiError::bad_request(format!("invalid propagationPolicy {other:?}")));
            }
        };
        let mut object = Value::clone(&old);
        let crd_finalizer = resource.is_crd().then_some(CRD_FINALIZER);
        let meta = metadata::of(&mut object)?;
        for finalizer in extra.into_iter().chain(crd_finalizer) {
            let list = meta.entry("finalizers").or_insert_with(|| json!([]));
            if let Some(list) = list.as_array_mut().filter(|l| !l.iter().any(|f| f == finalizer)) {
                list.push(json!(finalizer));
            }
        }
        if metadata::finalizers(&object).is_empty() {
            if !options.dry_run {
                self.remove(&resource, &target.key());
            }
            return Ok(Deleted::Gone(old));
        }
        if metadata::is_terminating(&old) && object == *old {
            return Ok(Deleted::Terminating(old));
        }
        let first = !metadata::is_terminating(&old);
        let meta = metadata::of(&mut object)?;
        if first {
            meta.insert("deletionTimestamp".to_owned(), json!(self.clock.now()));
            meta.insert("deletionGracePeriodSeconds".to_owned(), json!(0));
            if let Some(generation) = meta.get("generation").and_then(Value::as_i64) {
                meta.insert("generation".to_owned(), json!(generation.saturating_add(1)));
            }
        }
        if resource.storage == "namespaces" {
            object["status"] = json!({"phase": "Terminating"});
        }
        if options.dry_run {
            return Ok(Deleted::Terminating(Arc::new(object)));
        }
        self.garbage = true;
        Ok(Deleted::Terminating(self.store.put(&resource.storage, target.key(), object)))
    }

    /// Takes an object out, and with a CRD what it served.
    pub(super) fn remove(&mut self, resource: &Resource, key: &Key) {
        self.store.remove(&resource.storage, key);
        self.garbage = true;
        if resource.is_crd() {
            self.catalog.replace_custom(&key.1, Vec::new());
            self.store.end_watches(&key.1);
        }
    }
}
