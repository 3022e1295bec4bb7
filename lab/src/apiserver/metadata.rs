//! Object metadata: what every kind has, how it is checked and kept.

use serde_json::{Map, Value, json};

use super::error::{ApiError, FieldError};
use super::resource::{NameRule, Resource};
use super::schema::strings;
use super::source::Randomness;

const NAME_CHARS_MAX: usize = 253;
const LABEL_CHARS_MAX: usize = 63;
const ANNOTATIONS_BYTES_MAX: usize = 256 * 1024;
/// Letters of generated names: no vowels and no look-alikes, as upstream's.
const SUFFIX_ALPHABET: &[u8] = b"bcdfghjklmnpqrstvwxz2456789";
const SUFFIX_CHARS: usize = 5;

/// A random UUID (RFC 9562 version 4).
pub(super) fn new_uid(random: &mut Randomness) -> Result<String, ApiError> {
    let mut bytes = [0u8; 16];
    random.fill(&mut bytes)?;
    let value = u128::from_be_bytes(bytes) & !(0xf000 << 64) & !(0xc000 << 48)
        | (0x4000 << 64)
        | (0x8000 << 48);
    let hex = format!("{value:032x}");
    let part = |from: usize, to: usize| hex.get(from..to).unwrap_or_default();
    Ok([part(0, 8), part(8, 12), part(12, 16), part(16, 20), part(20, 32)].join("-"))
}

/// A name from a `generateName` prefix.
pub(super) fn generated_name(prefix: &str, random: &mut Randomness) -> Result<String, ApiError> {
    let mut bytes = [0u8; SUFFIX_CHARS];
    random.fill(&mut bytes)?;
    let keep = prefix.char_indices().map(|(at, _)| at).nth(NAME_CHARS_MAX - SUFFIX_CHARS);
    let mut name = prefix.get(..keep.unwrap_or(prefix.len())).unwrap_or_default().to_owned();
    let letters = bytes.iter().filter_map(|byte| {
        SUFFIX_ALPHABET.get(usize::from(*byte) % SUFFIX_ALPHABET.len()).map(|b| char::from(*b))
    });
    name.extend(letters);
    Ok(name)
}

/// An object's metadata, made when it is missing.
pub(super) fn of(object: &mut Value) -> Result<&mut Map<String, Value>, ApiError> {
    let Some(map) = object.as_object_mut() else {
        return Err(ApiError::bad_request("the body must be a JSON object"));
    };
    let metadata = map.entry("metadata").or_insert_with(|| json!({}));
    if metadata.is_null() {
        *metadata = json!({});
    }
    metadata.as_object_mut().ok_or_else(|| ApiError::bad_request("metadata must be a JSON object"))
}

/// Brings metadata into the form that it is stored in: empty and null entries go, as Go's encoder
/// leaves them out. Returns the paths of fields that metadata does not have, which are dropped.
///
/// # Errors
/// 400 when a field has the wrong JSON type.
pub(super) fn normalize(object: &mut Value) -> Result<Vec<String>, ApiError> {
    let meta = of(object)?;
    let mut unknown = Vec::new();
    meta.retain(|key, value| {
        let known = FIELDS.iter().any(|(name, _)| name == key);
        if !known {
            unknown.push(format!("metadata.{key}"));
        }
        let empty = match value {
            Value::Null => true,
            Value::Object(map) => map.is_empty(),
            Value::Array(list) => list.is_empty(),
            Value::String(text) => text.is_empty(),
            Value::Bool(_) | Value::Number(_) => false,
        };
        known && !empty
    });
    for (name, form) in FIELDS {
        let Some(value) = meta.get(*name) else { continue };
        let fits = match form {
            Form::Text => value.is_string(),
            Form::Number => value.is_i64(),
            Form::Texts => value.as_object().is_some_and(|m| m.values().all(Value::is_string)),
            Form::List => value.as_array().is_some_and(|l| l.iter().all(Value::is_string)),
            Form::Objects => value.as_array().is_some_and(|l| l.iter().all(Value::is_object)),
        };
        if !fits {
            return Err(ApiError::bad_request(format!(
                "json: cannot unmarshal {value} into metadata.{name}"
            )));
        }
    }
    Ok(unknown)
}

/// The JSON form of a metadata field.
enum Form {
    Text,
    Number,
    Texts,
    List,
    Objects,
}

const FIELDS: &[(&str, Form)] = &[
    ("annotations", Form::Texts),
    ("creationTimestamp", Form::Text),
    ("deletionGracePeriodSeconds", Form::Number),
    ("deletionTimestamp", Form::Text),
    ("finalizers", Form::List),
    ("generateName", Form::Text),
    ("generation", Form::Number),
    ("labels", Form::Texts),
    ("managedFields", Form::Objects),
    ("name", Form::Text),
    ("namespace", Form::Text),
    ("ownerReferences", Form::Objects),
    ("resourceVersion", Form::Text),
    ("selfLink", Form::Text),
    ("uid", Form::Text),
];

/// A string in metadata; empty when it is not there.
pub(super) fn field<'a>(object: &'a Value, name: &str) -> &'a str {
    object.get("metadata").and_then(|m| m.get(name)).and_then(Value::as_str).unwrap_or_default()
}

/// Whether an object is on its way out.
pub(super) fn is_terminating(object: &Value) -> bool {
    !field(object, "deletionTimestamp").is_empty()
}

/// The finalizers that still hold an object; a Namespace's own ones count.
pub(super) fn finalizers(object: &Value) -> Vec<String> {
    let mut all = strings(object.pointer("/metadata/finalizers"));
    if object.get("kind").and_then(Value::as_str) == Some("Namespace") {
        all.extend(strings(object.pointer("/spec/finalizers")));
    }
    all
}

/// Checks metadata of an object to be written.
pub(super) fn check(resource: &Resource, object: &Value, old: Option<&Value>) -> Vec<FieldError> {
    let mut errors = Vec::new();
    let name = field(object, "name");
    if old.is_none() {
        errors.extend(check_name(resource.rules.name, name));
    }
    let metadata = object.get("metadata").unwrap_or(&Value::Null);
    let map_of = |key: &str| metadata.get(key).and_then(Value::as_object).into_iter().flatten();
    for (key, value) in map_of("labels") {
        if !is_qualified(key) {
            errors.push(FieldError::invalid("metadata.labels", &json!(key), QUALIFIED));
        }
        if !value.as_str().is_some_and(is_label_value) {
            errors.push(FieldError::invalid("metadata.labels", value, LABEL_VALUE));
        }
    }
    let mut bytes = 0;
    for (key, value) in map_of("annotations") {
        if !is_qualified(&key.to_lowercase()) {
            errors.push(FieldError::invalid("metadata.annotations", &json!(key), QUALIFIED));
        }
        match value.as_str() {
            Some(text) => bytes += key.len() + text.len(),
            None => {
                errors.push(FieldError::invalid("metadata.annotations", value, "must be a string"))
            }
        }
    }
    if bytes > ANNOTATIONS_BYTES_MAX {
        let detail = format!("may not be more than {ANNOTATIONS_BYTES_MAX} bytes");
        errors.push(FieldError::new(
            super::error::FieldErrorKind::TooLong,
            "metadata.annotations",
            &Value::Null,
            detail,
        ));
    }
    errors.extend(check_finalizers(object, old));
    errors.extend(check_owners(metadata));
    if let Some(old) = old {
        for key in ["name", "namespace", "uid"] {
            if field(object, key) != field(old, key) {
                let value = json!(field(object, key));
                let detail = "field is immutable";
                errors.push(FieldError::invalid(format!("metadata.{key}"), &value, detail));
            }
        }
    }
    errors
}

fn check_finalizers(object: &Value, old: Option<&Value>) -> Vec<FieldError> {
    let mut errors = Vec::new();
    let own = strings(object.pointer("/metadata/finalizers"));
    for finalizer in own.iter().filter(|f| !is_qualified(f)) {
        errors.push(FieldError::invalid("metadata.finalizers", &json!(finalizer), QUALIFIED));
    }
    if let Some(old) = old.filter(|old| is_terminating(old)) {
        let before = strings(old.pointer("/metadata/finalizers"));
        let new: Vec<&String> = own.iter().filter(|f| !before.contains(f)).collect();
        if !new.is_empty() {
            let list: Vec<String> = new.iter().map(|f| format!("{f:?}")).collect();
            let detail = format!(
                "no new finalizers can be added if the object is being deleted, found new \
                 finalizers []string{{{}}}",
                list.join(", ")
            );
            errors.push(FieldError::forbidden("metadata.finalizers", detail));
        }
    }
    errors
}

fn check_owners(metadata: &Value) -> Vec<FieldError> {
    let mut errors = Vec::new();
    let owners = metadata.get("ownerReferences").and_then(Value::as_array);
    let mut controllers = 0;
    for owner in owners.into_iter().flatten() {
        for key in ["apiVersion", "kind", "name", "uid"] {
            if owner.get(key).and_then(Value::as_str).is_none_or(str::is_empty) {
                let path = format!("metadata.ownerReferences.{key}");
                errors.push(FieldError::invalid(
                    path,
                    &json!(""),
                    format!("{key} must not be empty"),
                ));
            }
        }
        controllers += usize::from(owner.get("controller") == Some(&Value::Bool(true)));
    }
    if controllers > 1 {
        let detail = "Only one reference can have Controller set to true";
        errors.push(FieldError::invalid("metadata.ownerReferences", &Value::Null, detail));
    }
    errors
}

fn check_name(rule: NameRule, name: &str) -> Option<FieldError> {
    let value = json!(name);
    if name.is_empty() {
        return Some(FieldError::required("metadata.name", "name or generateName is required"));
    }
    let detail = match rule {
        NameRule::PathSegment => {
            let bad = name == "." || name == ".." || name.contains(['/', '%']);
            return bad.then(|| {
                FieldError::invalid(
                    "metadata.name",
                    &value,
                    "may not be '.', '..' or contain '/' or '%'",
                )
            });
        }
        NameRule::Label if is_label(name) => return None,
        NameRule::Subdomain if is_subdomain(name) => return None,
        NameRule::Label => LABEL,
        NameRule::Subdomain => SUBDOMAIN,
    };
    Some(FieldError::invalid("metadata.name", &value, detail))
}

fn is_label(text: &str) -> bool {
    let inner = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit();
    !text.is_empty()
        && text.len() <= LABEL_CHARS_MAX
        && text.chars().all(|c| inner(c) || c == '-')
        && text.starts_with(inner)
        && text.ends_with(inner)
}

fn is_subdomain(text: &str) -> bool {
    let inner = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit();
    text.len() <= NAME_CHARS_MAX
        && text.split('.').all(|part| {
            part.starts_with(inner)
                && part.ends_with(inner)
                && part.chars().all(|c| inner(c) || c == '-')
        })
}

fn is_label_value(text: &str) -> bool {
    let inner = |c: char| c.is_ascii_alphanumeric();
    text.is_empty()
        || (text.len() <= LABEL_CHARS_MAX
            && text.chars().all(|c| inner(c) || "-_.".contains(c))
            && text.starts_with(inner)
            && text.ends_with(inner))
}

fn is_qualified(key: &str) -> bool {
    let (prefix, name) = key.split_once('/').map_or((None, key), |(p, n)| (Some(p), n));
    prefix.is_none_or(is_subdomain) && !name.is_empty() && is_label_value(name)
}

const SUBDOMAIN: &str = "a lowercase RFC 1123 subdomain must consist of lower case alphanumeric \
    characters, '-' or '.', and must start and end with an alphanumeric character (e.g. \
    'example.com', regex used for validation is \
    '[a-z0-9]([-a-z0-9]*[a-z0-9])?(\\.[a-z0-9]([-a-z0-9]*[a-z0-9])?)*')";
const LABEL: &str = "a lowercase RFC 1123 label must consist of lower case alphanumeric characters \
    or '-', and must start and end with an alphanumeric character (e.g. 'my-name',  or '123-abc', \
    regex used for validation is '[a-z0-9]([-a-z0-9]*[a-z0-9])?')";
const QUALIFIED: &str = "name part must consist of alphanumeric characters, '-', '_' or '.', and \
    must start and end with an alphanumeric character (e.g. 'MyName',  or 'my.name',  or \
    '123-abc', regex used for validation is '([A-Za-z0-9][-A-Za-z0-9_.]*)?[A-Za-z0-9]')";
const LABEL_VALUE: &str = "a valid label must be an empty string or consist of alphanumeric \
    characters, '-', '_' or '.', and must start and end with an alphanumeric character (e.g. \
    'MyValue',  or 'my_value',  or '12345', regex used for validation is \
    '(([A-Za-z0-9][-A-Za-z0-9_.]*)?[A-Za-z0-9])?')";

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_and_identities() {
        assert!(is_subdomain("10.244.3.64-26") && is_subdomain("a"));
        for bad in ["", "A", "-a", "a..b", "a.", "a_b", "fd00::-64"] {
            assert!(!is_subdomain(bad), "{bad}");
        }
        let mut random = Randomness::Kernel;
        let uid = new_uid(&mut random).unwrap();
        assert_eq!((uid.len(), uid.as_bytes()[14]), (36, b'4'));
        assert!("89ab".contains(char::from(uid.as_bytes()[19])));
        let name = generated_name("pool-", &mut random).unwrap();
        assert!(name.starts_with("pool-") && name.len() == 10 && is_subdomain(&name));
        assert_eq!(generated_name(&"x".repeat(300), &mut random).unwrap().len(), NAME_CHARS_MAX);
    }
}
