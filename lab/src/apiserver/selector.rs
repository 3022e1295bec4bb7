//! Label and field selectors of list, watch and deletecollection.

use serde_json::Value;

use super::error::ApiError;
use super::jsonpath::JsonPath;
use super::resource::Resource;

/// Requirements in one selector at most.
const REQUIREMENTS_MAX: usize = 256;

/// Which objects a request is about.
#[derive(Clone, Debug, Default)]
pub(super) struct Selector {
    labels: Vec<LabelRequirement>,
    fields: Vec<FieldRequirement>,
}

#[derive(Clone, Debug, PartialEq)]
enum LabelRequirement {
    In(String, Vec<String>),
    NotIn(String, Vec<String>),
    Exists(String),
    Missing(String),
    Greater(String, i64),
    Less(String, i64),
}

#[derive(Clone, Debug)]
struct FieldRequirement {
    path: JsonPath,
    value: String,
    equal: bool,
}

impl Selector {
    /// Reads the `labelSelector` and `fieldSelector` parameters.
    ///
    /// # Errors
    /// 400 for a selector that cannot be read or a field that is not selectable.
    pub(super) fn parse(
        resource: &Resource,
        labels: Option<&str>,
        fields: Option<&str>,
    ) -> Result<Selector, ApiError> {
        Ok(Selector {
            labels: parse_labels(labels.unwrap_or_default())?,
            fields: parse_fields(resource, fields.unwrap_or_default())?,
        })
    }

    /// Whether everything is selected.
    pub(super) fn is_empty(&self) -> bool {
        self.labels.is_empty() && self.fields.is_empty()
    }

    /// Whether an object is selected.
    pub(super) fn matches(&self, object: &Value) -> bool {
        let label = |key: &str| object.pointer("/metadata/labels")?.get(key)?.as_str();
        let labels_match = self.labels.iter().all(|requirement| match requirement {
            LabelRequirement::In(key, values) => {
                label(key).is_some_and(|value| values.iter().any(|v| v == value))
            }
            LabelRequirement::NotIn(key, values) => {
                label(key).is_none_or(|value| values.iter().all(|v| v != value))
            }
            LabelRequirement::Exists(key) => label(key).is_some(),
            LabelRequirement::Missing(key) => label(key).is_none(),
            LabelRequirement::Greater(key, bound) => {
                label(key).and_then(|v| v.parse::<i64>().ok()).is_some_and(|v| v > *bound)
            }
            LabelRequirement::Less(key, bound) => {
                label(key).and_then(|v| v.parse::<i64>().ok()).is_some_and(|v| v < *bound)
            }
        });
        labels_match
            && self.fields.iter().all(|requirement| {
                let found = match requirement.path.first(object) {
                    Some(Value::String(text)) => text.clone(),
                    Some(Value::Null) | None => String::new(),
                    Some(other) => other.to_string(),
                };
                (found == requirement.value) == requirement.equal
            })
    }
}

fn parse_labels(text: &str) -> Result<Vec<LabelRequirement>, ApiError> {
    let mut requirements = Vec::new();
    let mut rest = text.trim();
    while !rest.is_empty() {
        // A comma inside parentheses separates values, not requirements.
        let mut depth = 0usize;
        let end = rest.char_indices().find_map(|(at, c)| {
            match c {
                '(' => depth += 1,
                ')' => depth = depth.saturating_sub(1),
                ',' if depth == 0 => return Some(at),
                _ => {}
            }
            None
        });
        let (part, tail) = match end {
            Some(at) => (rest.get(..at).unwrap_or_default(), rest.get(at + 1..)),
            None => (rest, None),
        };
        requirements.push(parse_label(part.trim()).ok_or_else(|| {
            ApiError::bad_request(format!("unable to parse requirement: found '{part}'"))
        })?);
        rest = tail.unwrap_or_default().trim();
        if requirements.len() > REQUIREMENTS_MAX {
            return Err(ApiError::bad_request("the selector has too many requirements"));
        }
    }
    Ok(requirements)
}

fn parse_label(part: &str) -> Option<LabelRequirement> {
    let key = |text: &str| {
        let text = text.trim();
        let valid = !text.is_empty()
            && text.chars().all(|c| c.is_ascii_alphanumeric() || "-_./".contains(c));
        valid.then(|| text.to_owned())
    };
    let value = |text: &str| {
        let text = text.trim();
        let valid = text.chars().all(|c| c.is_ascii_alphanumeric() || "-_.".contains(c));
        valid.then(|| text.to_owned())
    };
    if let Some((head, list)) = part.strip_suffix(')').and_then(|p| p.split_once('(')) {
        let values = list.split(',').map(value).collect::<Option<Vec<String>>>()?;
        let mut words = head.split_whitespace();
        let name = key(words.next()?)?;
        return match (words.next(), words.next()) {
            (Some("in"), None) => Some(LabelRequirement::In(name, values)),
            (Some("notin"), None) => Some(LabelRequirement::NotIn(name, values)),
            _ => None,
        };
    }
    if let Some(name) = part.strip_prefix('!') {
        return Some(LabelRequirement::Missing(key(name)?));
    }
    for (operator, equal) in [("!=", false), ("==", true), ("=", true)] {
        if let Some((name, wanted)) = part.split_once(operator) {
            let (name, values) = (key(name)?, vec![value(wanted)?]);
            return Some(if equal {
                LabelRequirement::In(name, values)
            } else {
                LabelRequirement::NotIn(name, values)
            });
        }
    }
    if let Some((name, bound)) = part.split_once('>') {
        return Some(LabelRequirement::Greater(key(name)?, bound.trim().parse().ok()?));
    }
    if let Some((name, bound)) = part.split_once('<') {
        return Some(LabelRequirement::Less(key(name)?, bound.trim().parse().ok()?));
    }
    Some(LabelRequirement::Exists(key(part)?))
}

fn parse_fields(resource: &Resource, text: &str) -> Result<Vec<FieldRequirement>, ApiError> {
    let mut requirements = Vec::new();
    for part in text.split(',').map(str::trim).filter(|part| !part.is_empty()) {
        let split = [("!=", false), ("==", true), ("=", true)]
            .into_iter()
            .find_map(|(op, equal)| part.split_once(op).map(|(k, v)| (k.trim(), v.trim(), equal)));
        let Some((name, value, equal)) = split else {
            let why = format!("invalid selector: '{text}'; can't understand '{part}'");
            return Err(ApiError::bad_request(why));
        };
        let path = match name {
            "metadata.name" => JsonPath::parse(".metadata.name"),
            "metadata.namespace" if resource.namespaced => JsonPath::parse(".metadata.namespace"),
            _ => {
                let known = resource.selectable.iter().find(|(field, _)| field == name);
                known.map(|(_, path)| path.clone())
            }
        };
        let Some(path) = path else {
            let why = if resource.custom {
                format!("field label not supported: {name}")
            } else {
                format!(
                    "\"{name}\" is not a known field selector: only supports the fields of \
                         {}",
                    resource.qualified()
                )
            };
            return Err(ApiError::bad_request(why));
        };
        requirements.push(FieldRequirement { path, value: value.to_owned(), equal });
        if requirements.len() > REQUIREMENTS_MAX {
            return Err(ApiError::bad_request("the selector has too many requirements"));
        }
    }
    Ok(requirements)
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn labels_follow_every_operator() {
        let object = json!({"metadata": {"labels": {"rack": "a", "n": "5", "x/y": ""}}});
        let cases = [
            ("rack=a", true),
            ("rack==b", false),
            ("rack!=b", true),
            ("other!=b", true),
            ("rack in (a, b),n", true),
            ("rack notin (a,b)", false),
            ("other notin (a)", true),
            ("x/y", true),
            ("!x/y", false),
            ("!other", true),
            ("n>4,n<6", true),
            ("n>5", false),
            ("", true),
        ];
        for (text, wanted) in cases {
            let labels = parse_labels(text).unwrap();
            let selector = Selector { labels, fields: Vec::new() };
            assert_eq!(selector.matches(&object), wanted, "{text}");
        }
        for text in ["a in b", "=x", "a b", "a in (b", "n>x"] {
            assert!(parse_labels(text).is_err(), "{text}");
        }
    }
}
