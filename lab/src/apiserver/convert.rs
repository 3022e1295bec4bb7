//! Between the form that objects are stored in and the form that a version shows.

use serde_json::{Value, json};

use super::error::ApiError;
use super::resource::Resource;

/// Names of an event's fields in core/v1 and in events.k8s.io/v1.
const EVENT_FIELDS: &[(&str, &str)] = &[
    ("involvedObject", "regarding"),
    ("message", "note"),
    ("reportingComponent", "reportingController"),
    ("source", "deprecatedSource"),
    ("firstTimestamp", "deprecatedFirstTimestamp"),
    ("lastTimestamp", "deprecatedLastTimestamp"),
    ("count", "deprecatedCount"),
];

impl Resource {
    /// The apiVersion that objects of this resource are stored under.
    pub(super) fn storage_api_version(&self) -> String {
        if self.is_new_event() { "v1".to_owned() } else { self.api_version() }
    }
}

/// Brings a body into the stored form.
///
/// # Errors
/// 400 when the body is no object.
pub(super) fn to_storage(resource: &Resource, mut body: Value) -> Result<Value, ApiError> {
    let Some(map) = body.as_object_mut() else {
        return Err(ApiError::bad_request("the body must be a JSON object"));
    };
    if resource.is_new_event() {
        for (core, new) in EVENT_FIELDS {
            if let Some(value) = map.remove(*new) {
                map.insert((*core).to_owned(), value);
            }
        }
        if map.get("apiVersion").and_then(Value::as_str) == Some("events.k8s.io/v1") {
            map.insert("apiVersion".to_owned(), json!("v1"));
        }
    }
    Ok(body)
}

/// Shows a stored object in the version of `resource`.
pub(super) fn from_storage(resource: &Resource, stored: &Value) -> Value {
    let mut object = stored.clone();
    if let Some(map) = object.as_object_mut() {
        map.insert("apiVersion".to_owned(), json!(resource.api_version()));
        if resource.is_new_event() {
            for (core, new) in EVENT_FIELDS {
                if let Some(value) = map.remove(*core) {
                    map.insert((*new).to_owned(), value);
                }
            }
        }
    }
    object
}

/// Standard base64 with padding (RFC 4648 section 4).
pub(super) fn base64(bytes: &[u8]) -> String {
    const ALPHABET: &[u8; 64] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";
    let mut text = String::with_capacity(bytes.len().div_ceil(3) * 4);
    for chunk in bytes.chunks(3) {
        let octet = |i: usize| u32::from(chunk.get(i).copied().unwrap_or(0));
        let group = octet(0) << 16 | octet(1) << 8 | octet(2);
        for i in 0..4 {
            let index = (group >> (18 - 6 * i) & 0x3f) as usize;
            text.push(if i > chunk.len() { '=' } else { char::from(ALPHABET[index]) });
        }
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn base64_pads() {
        for (plain, coded) in [("", ""), ("f", "Zg=="), ("fo", "Zm8="), ("foo", "Zm9v")] {
            assert_eq!(base64(plain.as_bytes()), coded);
        }
    }
}
