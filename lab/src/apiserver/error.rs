//! Refusals: what the API answers when it does not do what was asked.
//!
//! Every refusal becomes a `Status` object with code, reason, message and details, worded as the
//! real server words it, since clients match on reasons and people read the messages.

use std::fmt;

use serde_json::{Value, json};

use super::resource::Resource;

/// A refused request.
#[derive(Clone, Debug, PartialEq, thiserror::Error)]
#[error("{message}")]
pub struct ApiError {
    /// The HTTP status code.
    pub code: u16,
    /// The machine-readable reason, such as `Conflict`; empty when the real server gives none.
    pub reason: &'static str,
    /// The sentence for people.
    pub message: String,
    /// `details` of the `Status`: name, group, kind, causes; null when there are none.
    pub details: Value,
}

impl ApiError {
    fn new(code: u16, reason: &'static str, message: impl Into<String>) -> ApiError {
        ApiError { code, reason, message: message.into(), details: Value::Null }
    }

    fn about(mut self, resource: &Resource, name: &str) -> ApiError {
        self.details = json!({"name": name, "group": resource.group, "kind": resource.plural});
        self
    }

    /// 400: the request cannot be understood.
    pub fn bad_request(message: impl Into<String>) -> ApiError {
        ApiError::new(400, "BadRequest", message)
    }

    /// 404: no object of that name.
    pub fn not_found(resource: &Resource, name: &str) -> ApiError {
        let message = format!("{} \"{name}\" not found", resource.qualified());
        ApiError::new(404, "NotFound", message).about(resource, name)
    }

    /// 404: no such path or resource.
    pub fn no_such_resource() -> ApiError {
        ApiError::new(404, "NotFound", "the server could not find the requested resource")
    }

    /// 409: the name is taken.
    pub fn already_exists(resource: &Resource, name: &str) -> ApiError {
        let message = format!("{} \"{name}\" already exists", resource.qualified());
        ApiError::new(409, "AlreadyExists", message).about(resource, name)
    }

    /// 409: the write stands on an old state; `why` says what differs.
    pub fn conflict(resource: &Resource, name: &str, why: impl fmt::Display) -> ApiError {
        let message =
            format!("Operation cannot be fulfilled on {} \"{name}\": {why}", resource.qualified());
        ApiError::new(409, "Conflict", message).about(resource, name)
    }

    /// 409: another field manager owns fields of an apply request (`(manager, field)` pairs).
    pub fn apply_conflict(conflicts: &[(String, String)]) -> ApiError {
        let mut message = match conflicts {
            [(manager, field)] => {
                format!("Apply failed with 1 conflict: conflict with {manager}: {field}")
            }
            _ => format!("Apply failed with {} conflicts:", conflicts.len()),
        };
        if conflicts.len() > 1 {
            let mut last = None;
            for (manager, field) in conflicts {
                if last != Some(manager) {
                    message.push_str(&format!(" conflicts with {manager}:"));
                    last = Some(manager);
                }
                message.push_str(&format!("\n- {field}"));
            }
        }
        let causes: Vec<Value> = conflicts
            .iter()
            .map(|(manager, field)| {
                json!({
                    "reason": "FieldManagerConflict",
                    "message": format!("conflict with {manager}"),
                    "field": field,
                })
            })
            .collect();
        let mut error = ApiError::new(409, "Conflict", message);
        error.details = json!({ "causes": causes });
        error
    }

    /// 422: the object breaks its schema or a rule.
    pub fn invalid(resource: &Resource, name: &str, errors: &[FieldError]) -> ApiError {
        ApiError::invalid_kind(&resource.group, &resource.kind, name, errors)
    }

    /// 422 for a kind that is no stored resource, such as `ListOptions`.
    pub fn invalid_kind(group: &str, kind: &str, name: &str, errors: &[FieldError]) -> ApiError {
        let qualified = if group.is_empty() { kind.to_owned() } else { format!("{kind}.{group}") };
        let list: Vec<String> = errors.iter().map(FieldError::to_string).collect();
        let message = match list.as_slice() {
            [one] => format!("{qualified} \"{name}\" is invalid: {one}"),
            many => format!("{qualified} \"{name}\" is invalid: [{}]", many.join(", ")),
        };
        let causes: Vec<Value> = errors
            .iter()
            .map(|error| {
                json!({
                    "reason": error.kind.reason(),
                    "message": error.body(),
                    "field": error.path_or_nil(),
                })
            })
            .collect();
        let mut error = ApiError::new(422, "Invalid", message);
        error.details = json!({"name": name, "group": group, "kind": kind, "causes": causes});
        error
    }

    /// 403: not allowed whatever the caller's rights.
    pub fn forbidden(resource: &Resource, name: &str, why: impl fmt::Display) -> ApiError {
        let message = format!("{} \"{name}\" is forbidden: {why}", resource.qualified());
        ApiError::new(403, "Forbidden", message).about(resource, name)
    }

    /// 405: the resource has no such verb.
    pub fn method_not_allowed() -> ApiError {
        ApiError::new(
            405,
            "MethodNotAllowed",
            "the server does not allow this method on the requested resource",
        )
    }

    /// 406: none of the media types asked for is served.
    pub fn not_acceptable(accepted: &str) -> ApiError {
        let message = format!("only the following media types are accepted: {accepted}");
        ApiError::new(406, "NotAcceptable", message)
    }

    /// 410: the history asked for has been forgotten.
    pub fn expired(message: impl Into<String>) -> ApiError {
        ApiError::new(410, "Expired", message)
    }

    /// 413: the body is larger than the bound.
    pub fn too_large(limit_bytes: usize) -> ApiError {
        let message = format!("Request entity too large: limit is {limit_bytes}");
        ApiError::new(413, "RequestEntityTooLarge", message)
    }

    /// 415: the body is of a media type that is not read here.
    pub fn unsupported_media_type(accepted: &str) -> ApiError {
        let message = format!(
            "the body of the request was in an unknown format - accepted media types include: \
             {accepted}"
        );
        ApiError::new(415, "UnsupportedMediaType", message)
    }

    /// 500: something that the real server also calls an internal error.
    pub fn internal(message: impl Into<String>) -> ApiError {
        ApiError::new(500, "InternalError", message)
    }

    /// 501: a real server could do this, the embedded one does not.
    pub fn not_implemented(what: impl fmt::Display) -> ApiError {
        let message = format!("the embedded API server does not implement {what}");
        ApiError::new(501, "NotImplemented", message)
    }

    /// 504: the resourceVersion asked for lies ahead of this server's history.
    pub fn too_large_resource_version(asked: u64, current: u64) -> ApiError {
        let message = format!("Timeout: Too large resource version: {asked}, current: {current}");
        let mut error = ApiError::new(504, "Timeout", message);
        error.details = json!({
            "causes": [{
                "reason": "ResourceVersionTooLarge", "message": "Too large resource version",
            }],
            "retryAfterSeconds": 1,
        });
        error
    }

    /// The `Status` object of this refusal.
    pub fn to_status(&self) -> Value {
        let mut status = json!({
            "kind": "Status",
            "apiVersion": "v1",
            "metadata": {},
            "status": "Failure",
            "message": self.message,
            "code": self.code,
        });
        if !self.reason.is_empty() {
            status["reason"] = json!(self.reason);
        }
        if !self.details.is_null() {
            status["details"] = self.details.clone();
        }
        status
    }
}

/// What is wrong with one field of an object.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum FieldErrorKind {
    /// The value breaks a rule.
    Invalid,
    /// The value has the wrong JSON type.
    TypeInvalid,
    /// The field is missing.
    Required,
    /// The value is not one of the allowed ones.
    NotSupported,
    /// The value must not be set.
    Forbidden,
    /// The value occurs twice in a set or under a map key.
    Duplicate,
    /// The string is too long.
    TooLong,
    /// The list or map has too many items.
    TooMany,
}

impl FieldErrorKind {
    fn reason(self) -> &'static str {
        match self {
            FieldErrorKind::Invalid => "FieldValueInvalid",
            FieldErrorKind::TypeInvalid => "FieldValueTypeInvalid",
            FieldErrorKind::Required => "FieldValueRequired",
            FieldErrorKind::NotSupported => "FieldValueNotSupported",
            FieldErrorKind::Forbidden => "FieldValueForbidden",
            FieldErrorKind::Duplicate => "FieldValueDuplicate",
            FieldErrorKind::TooLong => "FieldValueTooLong",
            FieldErrorKind::TooMany => "FieldValueTooMany",
        }
    }

    /// Whether rules are left unchecked because of an error of this kind.
    pub(super) fn blocks_rules(self) -> bool {
        !matches!(
            self,
            FieldErrorKind::Invalid | FieldErrorKind::Forbidden | FieldErrorKind::Duplicate
        )
    }
}

/// One cause of a 422.
#[derive(Clone, Debug, PartialEq)]
pub struct FieldError {
    /// The sort of error.
    pub kind: FieldErrorKind,
    /// The field's path, such as `spec.cidr`; empty for the whole object.
    pub path: String,
    /// The value in question as the real server prints it.
    pub value: String,
    /// The sentence.
    pub detail: String,
}

impl FieldError {
    /// An error of `kind` at `path` that shows `value`.
    pub fn new(
        kind: FieldErrorKind,
        path: impl Into<String>,
        value: &Value,
        detail: impl Into<String>,
    ) -> FieldError {
        FieldError { kind, path: path.into(), value: value.to_string(), detail: detail.into() }
    }

    /// `Invalid value`.
    pub fn invalid(
        path: impl Into<String>,
        value: &Value,
        detail: impl Into<String>,
    ) -> FieldError {
        FieldError::new(FieldErrorKind::Invalid, path, value, detail)
    }

    /// `Required value`.
    pub fn required(path: impl Into<String>, detail: impl Into<String>) -> FieldError {
        FieldError::new(FieldErrorKind::Required, path, &Value::Null, detail)
    }

    /// `Forbidden`.
    pub fn forbidden(path: impl Into<String>, detail: impl Into<String>) -> FieldError {
        FieldError::new(FieldErrorKind::Forbidden, path, &Value::Null, detail)
    }

    fn path_or_nil(&self) -> &str {
        if self.path.is_empty() { "<nil>" } else { &self.path }
    }

    fn body(&self) -> String {
        let (value, detail) = (&self.value, &self.detail);
        let head = match self.kind {
            FieldErrorKind::Invalid if value.is_empty() => "Invalid value".to_owned(),
            FieldErrorKind::Invalid | FieldErrorKind::TypeInvalid => {
                format!("Invalid value: {value}")
            }
            FieldErrorKind::Required => "Required value".to_owned(),
            FieldErrorKind::NotSupported => format!("Unsupported value: {value}"),
            FieldErrorKind::Forbidden => "Forbidden".to_owned(),
            FieldErrorKind::Duplicate => format!("Duplicate value: {value}"),
            FieldErrorKind::TooLong => "Too long".to_owned(),
            FieldErrorKind::TooMany => format!("Too many: {value}"),
        };
        if detail.is_empty() { head } else { format!("{head}: {detail}") }
    }
}

impl fmt::Display for FieldError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {}", self.path_or_nil(), self.body())
    }
}
