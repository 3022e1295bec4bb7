//! The steps between a request's body and the object that is judged and stored.

use serde_json::{Value, json};

use super::convert;
use super::error::{ApiError, FieldError};
use super::metadata;
use super::resource::Resource;
use super::store::revision_of;
use super::write::{FieldValidation, Target, WriteOptions};

/// Whether a value nests deeper than `depth` levels.
pub(super) fn is_deeper_than(value: &Value, depth: usize) -> bool {
    let Some(below) = depth.checked_sub(1) else { return true };
    match value {
        Value::Object(map) => map.values().any(|child| is_deeper_than(child, below)),
        Value::Array(list) => list.iter().any(|child| is_deeper_than(child, below)),
        _ => false,
    }
}

pub(super) fn uid_conflict(resource: &Resource, name: &str, uid: &str, old: &Value) -> ApiError {
    let have = metadata::field(old, "uid");
    let why =
        format!("Precondition failed: UID in precondition: {uid}, UID in object meta: {have}");
    ApiError::conflict(resource, name, why)
}

/// A DELETE's precondition that does not hold.
pub(super) fn version_conflict(
    resource: &Resource,
    name: &str,
    wanted: &str,
    have: &str,
) -> ApiError {
    let why = format!(
        "the ResourceVersion in the precondition ({wanted}) does not match the ResourceVersion in \
         record ({have}). The object might have been modified"
    );
    let mut error = ApiError::conflict(resource, name, why);
    if resource.custom {
        // The real server names the kind of a custom object here, and the resource of a builtin one.
        error.message = error.message.replacen(&resource.plural, &resource.kind, 1);
    }
    error
}

/// Checks apiVersion and kind of a body; builtin kinds may leave them out.
pub(super) fn check_kind(resource: &Resource, object: &mut Value) -> Result<(), ApiError> {
    let wanted = [("apiVersion", resource.storage_api_version()), ("kind", resource.kind.clone())];
    let Some(map) = object.as_object_mut() else {
        return Err(ApiError::bad_request("the body must be a JSON object"));
    };
    for (key, value) in wanted {
        match map.get(key).and_then(Value::as_str).unwrap_or_default() {
            "" if resource.custom => {
                return Err(ApiError::bad_request(format!(
                    "Object '{key}' is missing in the body"
                )));
            }
            "" => drop(map.insert(key.to_owned(), json!(value))),
            found if found == value => {}
            found => {
                let what = if key == "kind" { "kind" } else { "API version" };
                return Err(ApiError::bad_request(format!(
                    "the {what} in the data ({found}) does not match the expected {what} ({value})"
                )));
            }
        }
    }
    Ok(())
}

pub(super) fn set_namespace(target: &Target, object: &mut Value) -> Result<(), ApiError> {
    let meta = metadata::of(object)?;
    if !target.resource.namespaced {
        meta.remove("namespace");
        return Ok(());
    }
    match meta.get("namespace").and_then(Value::as_str).unwrap_or_default() {
        "" => drop(meta.insert("namespace".to_owned(), json!(target.namespace))),
        given if given == target.namespace => {}
        _ => {
            return Err(ApiError::bad_request(
                "the namespace of the provided object does not match the namespace sent on the \
                 request",
            ));
        }
    }
    Ok(())
}

pub(super) fn check_revision(
    resource: &Resource,
    name: &str,
    object: &Value,
    old: &Value,
) -> Result<(), ApiError> {
    let given = metadata::field(object, "resourceVersion");
    if given.is_empty() || given == "0" {
        if resource.rules.unconditional_update {
            return Ok(());
        }
        let mut error = FieldError::invalid(
            "metadata.resourceVersion",
            &Value::Null,
            "must be specified for an update",
        );
        error.value = "0".to_owned();
        return Err(ApiError::invalid(resource, name, &[error]));
    }
    let Ok(given) = given.parse::<u64>() else {
        let detail = "must be an unsigned integer";
        let error = FieldError::invalid("metadata.resourceVersion", &json!(given), detail);
        return Err(ApiError::invalid(resource, name, &[error]));
    };
    if given == revision_of(old) {
        return Ok(());
    }
    Err(ApiError::conflict(
        resource,
        name,
        "the object has been modified; please apply your changes to the latest version and try again",
    ))
}

/// Whether a client asks for the field owners to be forgotten: `managedFields: [{}]` or `[]`.
pub(super) fn is_owner_reset(object: &Value) -> bool {
    let list = object.pointer("/metadata/managedFields").and_then(Value::as_array);
    list.is_some_and(|list| list.iter().all(|e| e.as_object().is_some_and(|map| map.is_empty())))
}

pub(super) fn copy_field(object: &mut Value, from: &Value, field: &str) {
    let Some(map) = object.as_object_mut() else { return };
    match from.get(field) {
        Some(value) => drop(map.insert(field.to_owned(), value.clone())),
        None => drop(map.remove(field)),
    }
}

/// Makes of a write through /status what it is allowed to be.
pub(super) fn keep_all_but_status(
    resource: &Resource,
    object: &mut Value,
    old: &Value,
) -> Result<(), ApiError> {
    let mut kept = old.clone();
    copy_field(&mut kept, object, "status");
    // Builtin kinds let labels, annotations and finalizers through here, custom ones nothing.
    if !resource.custom {
        copy_field(&mut kept, object, "metadata");
    }
    let api_version = object.get("apiVersion").cloned();
    *object = kept;
    if let (Some(api_version), Some(map)) = (api_version, object.as_object_mut()) {
        map.insert("apiVersion".to_owned(), api_version);
    }
    Ok(())
}

/// Brings back the metadata that only the server sets.
pub(super) fn keep_metadata(object: &mut Value, old: &Value) -> Result<(), ApiError> {
    let old = old.get("metadata").unwrap_or(&Value::Null);
    let meta = metadata::of(object)?;
    meta.remove("selfLink");
    for key in [
        "resourceVersion",
        "creationTimestamp",
        "generation",
        "deletionTimestamp",
        "deletionGracePeriodSeconds",
        "managedFields",
        "generateName",
    ] {
        match old.get(key) {
            Some(value) => drop(meta.insert(key.to_owned(), value.clone())),
            None => drop(meta.remove(key)),
        }
    }
    for key in ["uid", "name", "namespace"] {
        let missing = meta.get(key).and_then(Value::as_str).is_none_or(str::is_empty);
        if let (true, Some(value)) = (missing, old.get(key)) {
            meta.insert(key.to_owned(), value.clone());
        }
    }
    Ok(())
}

pub(super) fn spec_differs(resource: &Resource, old: &Value, new: &Value) -> bool {
    let strip = |object: &Value| {
        let mut object = object.clone();
        if let Some(map) = object.as_object_mut() {
            map.remove("metadata");
            map.remove("apiVersion");
            if resource.status {
                map.remove("status");
            }
        }
        object
    };
    strip(old) != strip(new)
}

pub(super) fn refuse_unknown(
    resource: &Resource,
    unknown: &[String],
    options: &WriteOptions,
) -> Result<Vec<String>, ApiError> {
    let named: Vec<String> =
        unknown.iter().map(|path| format!("unknown field \"{path}\"")).collect();
    match options.validation {
        FieldValidation::Strict if !named.is_empty() => {
            let (kind, version) = (&resource.kind, &resource.version);
            Err(ApiError::bad_request(format!(
                "{kind} in version \"{version}\" cannot be handled as a {kind}: strict decoding \
                 error: {}",
                named.join(", ")
            )))
        }
        FieldValidation::Warn => Ok(named),
        FieldValidation::Strict | FieldValidation::Ignore => Ok(Vec::new()),
    }
}

/// What the real server fills into new builtin objects and clients rely on.
pub(super) fn fill_builtin(resource: &Resource, object: &mut Value) {
    if resource.custom {
        return;
    }
    match resource.storage.as_str() {
        "namespaces" => {
            let name = metadata::field(object, "name").to_owned();
            object["spec"] = json!({"finalizers": ["kubernetes"]});
            object["status"] = json!({"phase": "Active"});
            if let Ok(meta) = metadata::of(object) {
                let labels = meta.entry("labels").or_insert_with(|| json!({}));
                if let Some(labels) = labels.as_object_mut() {
                    labels.insert("kubernetes.io/metadata.name".to_owned(), json!(name));
                }
            }
        }
        "pods" => object["status"] = json!({"phase": "Pending"}),
        "secrets" => {
            if let Some(map) = object.as_object_mut() {
                map.entry("type").or_insert_with(|| json!("Opaque"));
            }
            fold_string_data(resource, object);
        }
        _ => {}
    }
}

/// Moves a Secret's `stringData` into `data`, as the real server does with every write.
pub(super) fn fold_string_data(resource: &Resource, object: &mut Value) {
    if resource.custom || resource.storage != "secrets" {
        return;
    }
    let Some(map) = object.as_object_mut() else { return };
    let Some(Value::Object(plain)) = map.remove("stringData") else { return };
    let data = map.entry("data").or_insert_with(|| json!({}));
    let Some(data) = data.as_object_mut() else { return };
    for (key, value) in plain {
        if let Value::String(text) = value {
            data.insert(key, json!(convert::base64(text.as_bytes())));
        }
    }
}
