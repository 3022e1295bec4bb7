//! Merge patch (RFC 7386), JSON patch (RFC 6902) and strategic merge patch.

use serde_json::{Map, Value};

use super::error::ApiError;
use super::fields::list_keys;

/// Operations in one JSON patch at most, as the real server bounds them.
const JSON_PATCH_OPERATIONS_MAX: usize = 10_000;
/// Nesting of a strategic merge patch at most.
const DEPTH_MAX: usize = 64;

/// What a PATCH request carries, by its content type.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum PatchType {
    /// `application/merge-patch+json`.
    Merge,
    /// `application/json-patch+json`.
    Json,
    /// `application/strategic-merge-patch+json`, for builtin kinds only.
    Strategic,
    /// `application/apply-patch+yaml`: server-side apply.
    Apply,
}

impl PatchType {
    /// The type of a content type, parameters left out.
    pub fn of_content_type(content_type: &str) -> Option<PatchType> {
        match content_type.split(';').next().unwrap_or_default().trim() {
            "application/merge-patch+json" => Some(PatchType::Merge),
            "application/json-patch+json" => Some(PatchType::Json),
            "application/strategic-merge-patch+json" => Some(PatchType::Strategic),
            "application/apply-patch+yaml" => Some(PatchType::Apply),
            _ => None,
        }
    }
}

/// Lays a patch that is not an apply over an object.
///
/// # Errors
/// 400 for a patch that is none, 422 for a JSON patch that does not fit the object.
pub(super) fn patched(kind: PatchType, object: &Value, patch: &Value) -> Result<Value, ApiError> {
    let mut result = object.clone();
    match kind {
        PatchType::Merge => {
            require_object(patch)?;
            json_patch::merge(&mut result, patch);
        }
        PatchType::Json => {
            let patch: json_patch::Patch = serde_json::from_value(patch.clone())
                .map_err(|error| ApiError::bad_request(format!("error decoding patch: {error}")))?;
            if patch.0.len() > JSON_PATCH_OPERATIONS_MAX {
                let max = JSON_PATCH_OPERATIONS_MAX;
                return Err(ApiError::bad_request(format!(
                    "The allowed maximum operations in a JSON patch is {max}, got {}",
                    patch.0.len()
                )));
            }
            json_patch::patch(&mut result, &patch).map_err(|error| ApiError {
                code: 422,
                reason: "Invalid",
                message: format!(
                    "the server rejected our request due to an error in our request: \
                                  {error}"
                ),
                details: Value::Null,
            })?;
        }
        PatchType::Strategic => {
            let Value::Object(patch) = patch else { return require_object(patch).map(|()| result) };
            let Value::Object(into) = &mut result else { return Ok(result) };
            strategic(into, patch, 0)?;
        }
        PatchType::Apply => {
            return Err(ApiError::internal("an apply request is not a patch of one object"));
        }
    }
    Ok(result)
}

fn require_object(patch: &Value) -> Result<(), ApiError> {
    if patch.is_object() {
        return Ok(());
    }
    Err(ApiError::bad_request("error decoding patch: a JSON object is expected"))
}

fn strategic(
    into: &mut Map<String, Value>,
    patch: &Map<String, Value>,
    depth: usize,
) -> Result<(), ApiError> {
    if depth > DEPTH_MAX {
        return Err(ApiError::bad_request("the patch is nested too deeply"));
    }
    match patch.get("$patch").and_then(Value::as_str) {
        Some("replace") => {
            *into = patch.clone();
            into.remove("$patch");
            return Ok(());
        }
        Some("delete") => {
            into.clear();
            return Ok(());
        }
        Some("merge") | None => {}
        Some(other) => {
            return Err(ApiError::bad_request(format!("Unknown patch type found: {other}")));
        }
    }
    for (name, value) in patch {
        if let Some(list) = name.strip_prefix("$deleteFromPrimitiveList/") {
            if let (Some(Value::Array(have)), Some(gone)) = (into.get_mut(list), value.as_array()) {
                have.retain(|item| !gone.contains(item));
            }
            continue;
        }
        if name == "$patch" || name.starts_with("$setElementOrder/") {
            continue;
        }
        if name == "$retainKeys" {
            if let Some(keys) = value.as_array() {
                into.retain(|key, _| keys.iter().any(|kept| kept == key));
            }
            continue;
        }
        if name.starts_with('$') {
            return Err(ApiError::not_implemented(format_args!("the patch directive {name}")));
        }
        match (into.get_mut(name), value) {
            (_, Value::Null) => drop(into.remove(name)),
            (Some(Value::Object(have)), Value::Object(patch)) => strategic(have, patch, depth + 1)?,
            (None, Value::Object(patch)) => {
                let mut fresh = Map::new();
                strategic(&mut fresh, patch, depth + 1)?;
                into.insert(name.clone(), Value::Object(fresh));
            }
            (have, Value::Array(patch)) => {
                let mut list = match have {
                    Some(Value::Array(list)) => std::mem::take(list),
                    _ => Vec::new(),
                };
                strategic_list(name, &mut list, patch, depth)?;
                into.insert(name.clone(), Value::Array(list));
            }
            (_, value) => drop(into.insert(name.clone(), value.clone())),
        }
    }
    Ok(())
}

fn strategic_list(
    name: &str,
    list: &mut Vec<Value>,
    patch: &[Value],
    depth: usize,
) -> Result<(), ApiError> {
    if name == "finalizers" {
        for item in patch.iter() {
            if !list.contains(item) {
                list.push(item.clone());
            }
        }
        return Ok(());
    }
    let Some(key) = merge_key(name, patch.first().or(list.first())) else {
        *list = patch.to_vec();
        return Ok(());
    };
    if patch.iter().any(|item| item.get("$patch").and_then(Value::as_str) == Some("replace")) {
        list.clear();
    }
    for item in patch {
        let Value::Object(fields) = item else {
            return Err(ApiError::bad_request(format!("{name}: items must be objects")));
        };
        let directive = fields.get("$patch").and_then(Value::as_str);
        if directive == Some("replace") {
            continue;
        }
        let Some(id) = fields.get(key) else {
            return Err(ApiError::bad_request(format!(
                "map: {item} does not contain declared merge key: {key}"
            )));
        };
        if directive == Some("delete") {
            list.retain(|have| have.get(key) != Some(id));
            continue;
        }
        match list.iter_mut().find(|have| have.get(key) == Some(id)) {
            Some(Value::Object(have)) => strategic(have, fields, depth + 1)?,
            _ => {
                let mut fresh = Map::new();
                strategic(&mut fresh, fields, depth + 1)?;
                list.push(Value::Object(fresh));
            }
        }
    }
    Ok(())
}

/// The merge key of a list of a builtin kind; `None` for lists that are replaced.
fn merge_key(name: &str, sample: Option<&Value>) -> Option<&'static str> {
    match name {
        // Containers' ports and Services' ports merge by different fields.
        "ports" if sample.is_some_and(|port| port.get("containerPort").is_some()) => {
            Some("containerPort")
        }
        "ports" if sample.is_some_and(|port| port.get("port").is_some()) => Some("port"),
        "taints" => Some("key"),
        "secrets" => Some("name"),
        _ => list_keys(name)?.first().copied(),
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn strategic_merge_knows_lists_by_key() {
        let node = json!({
            "metadata": {"labels": {"a": "1", "b": "2"}, "finalizers": ["x"]},
            "status": {"conditions": [
                {"type": "Ready", "status": "False", "reason": "r"}, {"type": "Disk", "status": "x"},
            ]},
            "spec": {"podCIDRs": ["10.0.0.0/24"]},
        });
        let patch = json!({
            "metadata": {"labels": {"a": null, "c": "3"}, "finalizers": ["y"]},
            "status": {
                "$setElementOrder/conditions": [{"type": "Ready"}],
                "conditions": [
                    {"type": "Ready", "status": "True"}, {"type": "Disk", "$patch": "delete"},
                ],
            },
            "spec": {"podCIDRs": ["10.1.0.0/24"]},
        });
        let result = patched(PatchType::Strategic, &node, &patch).unwrap();
        assert_eq!(
            result,
            json!({
                "metadata": {"labels": {"b": "2", "c": "3"}, "finalizers": ["x", "y"]},
                "status": {"conditions": [{"type": "Ready", "status": "True", "reason": "r"}]},
                "spec": {"podCIDRs": ["10.1.0.0/24"]},
            })
        );
        let unknown = json!({"$frobnicate": 1});
        assert_eq!(patched(PatchType::Strategic, &node, &unknown).unwrap_err().code, 501);
    }
}
