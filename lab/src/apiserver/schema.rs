//! Structural schemas: what a custom resource's OpenAPI schema says about an object.
//!
//! A schema is read once when its CRD is stored and then used for defaults, pruning, validation and
//! for the shape that server-side apply needs. CEL rules live in [`super::rules`].

use std::collections::BTreeMap;
use std::net::{Ipv4Addr, Ipv6Addr};

use ipnet::IpNet;
use k8s_openapi::jiff::Timestamp;
use regex::Regex;
use serde_json::{Map, Value, json};

use super::error::{FieldError, FieldErrorKind};

/// Nesting below which a schema or an object is refused.
const DEPTH_MAX: usize = 64;

/// The JSON type that a schema asks for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Type {
    Object,
    Array,
    String,
    Integer,
    Number,
    Boolean,
    IntOrString,
    Any,
}

impl Type {
    fn parse(schema: &Map<String, Value>) -> Type {
        if flag(schema, "x-kubernetes-int-or-string") {
            return Type::IntOrString;
        }
        match schema.get("type").and_then(Value::as_str) {
            Some("object") => Type::Object,
            Some("array") => Type::Array,
            Some("string") => Type::String,
            Some("integer") => Type::Integer,
            Some("number") => Type::Number,
            Some("boolean") => Type::Boolean,
            _ => Type::Any,
        }
    }

    pub(super) fn name(self) -> &'static str {
        match self {
            Type::Object => "object",
            Type::Array => "array",
            Type::String => "string",
            Type::Integer => "integer",
            Type::Number => "number",
            Type::Boolean => "boolean",
            Type::IntOrString => "integer,string",
            Type::Any => "",
        }
    }

    fn admits(self, value: &Value) -> bool {
        match self {
            Type::Object => value.is_object(),
            Type::Array => value.is_array(),
            Type::String => value.is_string(),
            Type::Integer => is_integer(value),
            Type::Number => value.is_number(),
            Type::Boolean => value.is_boolean(),
            Type::IntOrString => value.is_string() || is_integer(value),
            Type::Any => true,
        }
    }
}

fn is_integer(value: &Value) -> bool {
    value.is_i64() || value.as_f64().is_some_and(|n| n.fract() == 0.0 && n.abs() < 9.3e18)
}

/// How appliers share a list (x-kubernetes-list-type).
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum ListType {
    Atomic,
    Set,
    Map(Vec<String>),
}

/// One node of a structural schema.
#[derive(Debug)]
pub(super) struct Schema {
    pub(super) kind: Type,
    pub(super) properties: BTreeMap<String, Schema>,
    pub(super) additional: Option<Box<Schema>>,
    pub(super) items: Option<Box<Schema>>,
    pub(super) preserve_unknown: bool,
    pub(super) list: ListType,
    pub(super) map_atomic: bool,
    embedded: bool,
    nullable: bool,
    default: Option<Value>,
    required: Vec<String>,
    allowed: Vec<Value>,
    pattern: Option<Regex>,
    format: Option<String>,
    minimum: Option<f64>,
    maximum: Option<f64>,
    exclusive_minimum: bool,
    exclusive_maximum: bool,
    multiple_of: Option<f64>,
    length_min: Option<u64>,
    length_max: Option<u64>,
    items_min: Option<u64>,
    items_max: Option<u64>,
    properties_min: Option<u64>,
    properties_max: Option<u64>,
    unique: bool,
    all_of: Vec<Schema>,
    any_of: Vec<Schema>,
    one_of: Vec<Schema>,
    not: Option<Box<Schema>>,
}

fn flag(schema: &Map<String, Value>, key: &str) -> bool {
    schema.get(key).and_then(Value::as_bool).unwrap_or(false)
}

impl Schema {
    /// Reads an `openAPIV3Schema` value.
    ///
    /// # Errors
    /// A [`FieldError`] that names the node which is not a structural schema.
    pub(super) fn parse(schema: &Value, path: &str) -> Result<Schema, FieldError> {
        Schema::parse_node(schema, path, 0)
    }

    fn parse_node(schema: &Value, path: &str, depth: usize) -> Result<Schema, FieldError> {
        let Some(map) = schema.as_object() else {
            return Err(FieldError::invalid(path, schema, "must be an object"));
        };
        if depth > DEPTH_MAX {
            return Err(FieldError::invalid(path, &json!(depth), "schema is nested too deeply"));
        }
        let child = |key: &str, value: &Value| {
            Schema::parse_node(value, &format!("{path}.{key}"), depth + 1)
        };
        let list_of = |key: &str| -> Result<Vec<Schema>, FieldError> {
            let nodes = map.get(key).and_then(Value::as_array).map_or(&[][..], Vec::as_slice);
            nodes.iter().enumerate().map(|(i, node)| child(&format!("{key}[{i}]"), node)).collect()
        };
        let mut properties = BTreeMap::new();
        if let Some(nodes) = map.get("properties").and_then(Value::as_object) {
            for (name, node) in nodes {
                properties.insert(name.clone(), child(&format!("properties[{name}]"), node)?);
            }
        }
        let additional = match map.get("additionalProperties") {
            Some(node @ Value::Object(_)) => Some(Box::new(child("additionalProperties", node)?)),
            Some(Value::Bool(true)) => Some(Box::new(Schema::parse_node(&any(), path, depth + 1)?)),
            _ => None,
        };
        let boxed = |key: &str| -> Result<Option<Box<Schema>>, FieldError> {
            map.get(key).map(|node| child(key, node).map(Box::new)).transpose()
        };
        let pattern = match map.get("pattern").and_then(Value::as_str) {
            Some(text) => Some(Regex::new(text).map_err(|error| {
                let detail = format!("must be a valid regular expression: {error}");
                FieldError::invalid(format!("{path}.pattern"), &json!(text), detail)
            })?),
            None => None,
        };
        let list = match map.get("x-kubernetes-list-type").and_then(Value::as_str) {
            Some("set") => ListType::Set,
            Some("map") => ListType::Map(strings(map.get("x-kubernetes-list-map-keys"))),
            _ => ListType::Atomic,
        };
        let number = |key: &str| map.get(key).and_then(Value::as_f64);
        let count = |key: &str| map.get(key).and_then(Value::as_u64);
        Ok(Schema {
            kind: Type::parse(map),
            properties,
            additional,
            items: boxed("items")?,
            preserve_unknown: flag(map, "x-kubernetes-preserve-unknown-fields"),
            list,
            map_atomic: map.get("x-kubernetes-map-type").and_then(Value::as_str) == Some("atomic"),
            embedded: flag(map, "x-kubernetes-embedded-resource"),
            nullable: flag(map, "nullable"),
            default: map.get("default").cloned(),
            required: strings(map.get("required")),
            allowed: map.get("enum").and_then(Value::as_array).cloned().unwrap_or_default(),
            pattern,
            format: map.get("format").and_then(Value::as_str).map(str::to_owned),
            minimum: number("minimum"),
            maximum: number("maximum"),
            exclusive_minimum: flag(map, "exclusiveMinimum"),
            exclusive_maximum: flag(map, "exclusiveMaximum"),
            multiple_of: number("multipleOf"),
            length_min: count("minLength"),
            length_max: count("maxLength"),
            items_min: count("minItems"),
            items_max: count("maxItems"),
            properties_min: count("minProperties"),
            properties_max: count("maxProperties"),
            unique: flag(map, "uniqueItems"),
            all_of: list_of("allOf")?,
            any_of: list_of("anyOf")?,
            one_of: list_of("oneOf")?,
            not: boxed("not")?,
        })
    }

    /// The schema of a field of an object of this schema.
    pub(super) fn field(&self, name: &str) -> Option<&Schema> {
        self.properties.get(name).or(self.additional.as_deref())
    }

    /// Fills defaults into `value`, and drops nulls where a default stands for them.
    pub(super) fn fill_defaults(&self, value: &mut Value) {
        match value {
            Value::Object(map) => {
                for (name, node) in &self.properties {
                    let absent = match map.get(name) {
                        None => true,
                        Some(Value::Null) => !node.nullable,
                        Some(_) => false,
                    };
                    if let (true, Some(default)) = (absent, &node.default) {
                        map.insert(name.clone(), default.clone());
                    }
                }
                for (name, child) in map.iter_mut() {
                    if let Some(node) = self.field(name) {
                        node.fill_defaults(child);
                    }
                }
            }
            Value::Array(list) => {
                if let Some(node) = &self.items {
                    list.iter_mut().for_each(|item| node.fill_defaults(item));
                }
            }
            _ => {}
        }
    }

    /// Removes fields that the schema does not know and returns their paths.
    ///
    /// Nulls of fields that may not be null go too, without being reported: the real server reads
    /// them as unset.
    pub(super) fn prune(&self, value: &mut Value) -> Vec<String> {
        let mut unknown = Vec::new();
        self.prune_node(value, "", true, &mut unknown);
        unknown
    }

    fn prune_node(&self, value: &mut Value, path: &str, root: bool, unknown: &mut Vec<String>) {
        match value {
            Value::Object(map) => {
                map.retain(|name, child| {
                    let whole = root || self.embedded;
                    if whole && matches!(name.as_str(), "apiVersion" | "kind" | "metadata") {
                        return true;
                    }
                    let here =
                        if path.is_empty() { name.clone() } else { format!("{path}.{name}") };
                    let Some(node) = self.field(name) else {
                        if !self.preserve_unknown {
                            unknown.push(here);
                        }
                        return self.preserve_unknown;
                    };
                    if child.is_null() && !node.nullable && node.kind != Type::Any {
                        return false;
                    }
                    node.prune_node(child, &here, false, unknown);
                    true
                });
            }
            Value::Array(list) => {
                if let Some(node) = &self.items {
                    for (i, item) in list.iter_mut().enumerate() {
                        node.prune_node(item, &format!("{path}[{i}]"), false, unknown);
                    }
                }
            }
            _ => {}
        }
    }

    /// Checks `value`; what is unchanged since `old` is not judged again, so that an object which
    /// an older schema let in can still be written.
    pub(super) fn validate(&self, value: &Value, old: Option<&Value>) -> Vec<FieldError> {
        let mut errors = Vec::new();
        self.check(value, old, "", 0, &mut errors);
        errors
    }

    fn check(
        &self,
        value: &Value,
        old: Option<&Value>,
        path: &str,
        depth: usize,
        errors: &mut Vec<FieldError>,
    ) {
        if old == Some(value) || (value.is_null() && self.nullable) {
            return;
        }
        if depth > DEPTH_MAX {
            errors.push(FieldError::invalid(path, &Value::Null, "is nested too deeply"));
            return;
        }
        if !self.kind.admits(value) {
            let shown = json!(type_name(value));
            let detail =
                format!("{} in body must be of type {}: {shown}", or_root(path), self.kind.name());
            errors.push(FieldError::new(FieldErrorKind::TypeInvalid, path, &shown, detail));
            return;
        }
        if !self.allowed.is_empty() && !self.allowed.contains(value) {
            let list: Vec<String> = self.allowed.iter().map(Value::to_string).collect();
            let detail = format!("supported values: {}", list.join(", "));
            errors.push(FieldError::new(FieldErrorKind::NotSupported, path, value, detail));
        }
        match value {
            Value::String(text) => self.check_string(text, path, errors),
            Value::Number(number) => {
                self.check_number(number.as_f64().unwrap_or(f64::NAN), value, path, errors);
            }
            Value::Array(list) => self.check_list(list, old, path, depth, errors),
            Value::Object(map) => self.check_map(map, old, path, depth, errors),
            Value::Null | Value::Bool(_) => {}
        }
        self.check_branches(value, path, depth, errors);
    }

    fn check_string(&self, text: &str, path: &str, errors: &mut Vec<FieldError>) {
        let (here, value) = (or_root(path), json!(text));
        let length = text.chars().count() as u64;
        if let Some(max) = self.length_max.filter(|max| length > *max) {
            let detail = format!("may not be more than {max} bytes");
            errors.push(FieldError::new(FieldErrorKind::TooLong, path, &value, detail));
        }
        if let Some(min) = self.length_min.filter(|min| length < *min) {
            let detail = format!("{here} in body should be at least {min} chars long");
            errors.push(FieldError::invalid(path, &value, detail));
        }
        if let Some(pattern) = self.pattern.as_ref().filter(|pattern| !pattern.is_match(text)) {
            let detail = format!("{here} in body should match '{pattern}'");
            errors.push(FieldError::invalid(path, &value, detail));
        }
        if let Some(format) = self.format.as_deref().filter(|f| !format_admits(f, text)) {
            let detail = format!("{here} in body must be of type {format}: {value}");
            errors.push(FieldError::new(FieldErrorKind::TypeInvalid, path, &value, detail));
        }
    }

    fn check_number(&self, n: f64, value: &Value, path: &str, errors: &mut Vec<FieldError>) {
        let here = or_root(path);
        let mut refuse = |detail: String| errors.push(FieldError::invalid(path, value, detail));
        if let Some(min) = self.minimum {
            if self.exclusive_minimum && n <= min {
                refuse(format!("{here} in body should be greater than {min}"));
            } else if n < min {
                refuse(format!("{here} in body should be greater than or equal to {min}"));
            }
        }
        if let Some(max) = self.maximum {
            if self.exclusive_maximum && n >= max {
                refuse(format!("{here} in body should be less than {max}"));
            } else if n > max {
                refuse(format!("{here} in body should be less than or equal to {max}"));
            }
        }
        if let Some(factor) = self.multiple_of.filter(|factor| (n / factor).fract() != 0.0) {
            refuse(format!("{here} in body should be a multiple of {factor}"));
        }
        // Of the integer formats the real server checks these two; schemars' unsigned ones come with
        // `minimum` and `maximum`.
        if self.format.as_deref() == Some("int32")
            && !(f64::from(i32::MIN)..=f64::from(i32::MAX)).contains(&n)
        {
            refuse(format!("{here} in body must be of type int32: {value}"));
        }
        if self.format.as_deref() == Some("int64") && !value.is_i64() {
            refuse(format!("{here} in body must be of type int64: {value}"));
        }
    }

    fn check_list(
        &self,
        list: &[Value],
        old: Option<&Value>,
        path: &str,
        depth: usize,
        errors: &mut Vec<FieldError>,
    ) {
        let count = list.len() as u64;
        if let Some(max) = self.items_max.filter(|max| count > *max) {
            let detail = format!("must have at most {max} items");
            errors.push(FieldError::new(FieldErrorKind::TooMany, path, &json!(count), detail));
        }
        if let Some(min) = self.items_min.filter(|min| count < *min) {
            let detail = format!("{} in body should have at least {min} items", or_root(path));
            errors.push(FieldError::invalid(path, &json!(count), detail));
        }
        let identity = |item: &Value| match &self.list {
            ListType::Map(keys) => Value::Array(
                keys.iter().map(|k| item.get(k).cloned().unwrap_or(Value::Null)).collect(),
            ),
            _ => item.clone(),
        };
        if self.unique || self.list != ListType::Atomic {
            for (i, item) in list.iter().enumerate() {
                let own = identity(item);
                if list.iter().take(i).any(|earlier| identity(earlier) == own) {
                    let shown = match &self.list {
                        ListType::Map(keys) => keyed(keys, item),
                        _ => item.clone(),
                    };
                    let at = format!("{path}[{i}]");
                    errors.push(FieldError::new(FieldErrorKind::Duplicate, at, &shown, ""));
                }
            }
        }
        let Some(node) = &self.items else { return };
        let old_list = old.and_then(Value::as_array);
        for (i, item) in list.iter().enumerate() {
            let own = identity(item);
            let before = old_list
                .filter(|_| self.list != ListType::Atomic)
                .and_then(|list| list.iter().find(|candidate| identity(candidate) == own));
            node.check(item, before, &format!("{path}[{i}]"), depth + 1, errors);
        }
    }

    fn check_map(
        &self,
        map: &Map<String, Value>,
        old: Option<&Value>,
        path: &str,
        depth: usize,
        errors: &mut Vec<FieldError>,
    ) {
        let join = |name: &str| {
            if path.is_empty() { name.to_owned() } else { format!("{path}.{name}") }
        };
        for name in self.required.iter().filter(|name| !map.contains_key(*name)) {
            errors.push(FieldError::required(join(name), ""));
        }
        let count = map.len() as u64;
        if let Some(max) = self.properties_max.filter(|max| count > *max) {
            let detail = format!("must have at most {max} items");
            errors.push(FieldError::new(FieldErrorKind::TooMany, path, &json!(count), detail));
        }
        if let Some(min) = self.properties_min.filter(|min| count < *min) {
            let detail = format!("{} in body should have at least {min} properties", or_root(path));
            errors.push(FieldError::invalid(path, &json!(count), detail));
        }
        for (name, child) in map {
            if let Some(node) = self.field(name) {
                let before = old.and_then(|old| old.get(name));
                node.check(child, before, &join(name), depth + 1, errors);
            }
        }
    }

    fn check_branches(
        &self,
        value: &Value,
        path: &str,
        depth: usize,
        errors: &mut Vec<FieldError>,
    ) {
        let fails = |schema: &Schema| {
            let mut found = Vec::new();
            schema.check(value, None, path, depth + 1, &mut found);
            !found.is_empty()
        };
        for schema in &self.all_of {
            schema.check(value, None, path, depth + 1, errors);
        }
        let here = or_root(path);
        if !self.any_of.is_empty() && self.any_of.iter().all(fails) {
            let detail = format!("{here} in body must validate at least one schema (anyOf)");
            errors.push(FieldError::invalid(path, &json!(""), detail));
        }
        if !self.one_of.is_empty() && self.one_of.iter().filter(|s| !fails(s)).count() != 1 {
            let detail = format!("{here} in body must validate one and only one schema (oneOf)");
            errors.push(FieldError::invalid(path, &json!(""), detail));
        }
        if self.not.as_ref().is_some_and(|schema| !fails(schema)) {
            let detail = format!("{here} in body must not validate the schema (not)");
            errors.push(FieldError::invalid(path, &json!(""), detail));
        }
    }
}

/// A schema that admits everything.
pub(super) fn any() -> Value {
    json!({"x-kubernetes-preserve-unknown-fields": true})
}

/// The map keys of a list item as an object, as errors and fieldsV1 show them.
pub(super) fn keyed(keys: &[String], item: &Value) -> Value {
    let pairs = keys.iter().filter_map(|key| Some((key.clone(), item.get(key)?.clone())));
    Value::Object(pairs.collect())
}

/// The strings of a JSON list; what is no string is left out.
pub(super) fn strings(list: Option<&Value>) -> Vec<String> {
    let items = list.and_then(Value::as_array).map_or(&[][..], Vec::as_slice);
    items.iter().filter_map(|item| item.as_str().map(str::to_owned)).collect()
}

fn or_root(path: &str) -> &str {
    if path.is_empty() { "<nil>" } else { path }
}

fn type_name(value: &Value) -> &'static str {
    match value {
        Value::Null => "null",
        Value::Bool(_) => "boolean",
        Value::Number(_) if is_integer(value) => "integer",
        Value::Number(_) => "number",
        Value::String(_) => "string",
        Value::Array(_) => "array",
        Value::Object(_) => "object",
    }
}

/// The formats that the real server checks; it ignores every other one.
fn format_admits(format: &str, text: &str) -> bool {
    match format {
        "ipv4" => text.parse::<Ipv4Addr>().is_ok(),
        "ipv6" => text.parse::<Ipv6Addr>().is_ok(),
        "cidr" => text.parse::<IpNet>().is_ok(),
        "date-time" => text.parse::<Timestamp>().is_ok(),
        "uuid" => is_uuid(text),
        "mac" => {
            let octets: Vec<&str> = text.split([':', '-']).collect();
            octets.len() == 6
                && octets.iter().all(|o| o.len() == 2 && u8::from_str_radix(o, 16).is_ok())
        }
        "byte" => {
            text.len().is_multiple_of(4)
                && text
                    .trim_end_matches('=')
                    .bytes()
                    .all(|b| b.is_ascii_alphanumeric() || matches!(b, b'+' | b'/'))
        }
        _ => true,
    }
}

fn is_uuid(text: &str) -> bool {
    text.len() == 36
        && text.char_indices().all(|(i, c)| match i {
            8 | 13 | 18 | 23 => c == '-',
            _ => c.is_ascii_hexdigit(),
        })
}
