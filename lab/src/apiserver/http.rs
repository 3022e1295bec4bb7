//! HTTP: from a request to an operation and back.

use std::convert::Infallible;
use std::fmt::Display;
use std::sync::Arc;
use std::time::Duration;

use bytes::{Bytes, BytesMut};
use futures::stream;
use http_body_util::combinators::UnsyncBoxBody;
use http_body_util::{BodyExt, Full, StreamBody};
use hyper::body::Frame;
use hyper::header::{ACCEPT, CONTENT_TYPE, HeaderMap, HeaderValue, USER_AGENT};
use hyper::{Method, Request, Response, StatusCode};
use serde_json::{Value, json};

use super::Shared;
use super::discovery::{self, DiscoveryForm};
use super::error::ApiError;
use super::metadata;
use super::patch::PatchType;
use super::read::{ListQuery, View, Watch, WatchQuery, show_list, show_object};
use super::resource::{KNOWN_GROUPS, Resource};
use super::selector::Selector;
use super::table::IncludeObject;
use super::write::{DeleteOptions, Deleted, FieldValidation, Target, WriteOptions, Written};

/// A response body: a document or a stream of watch events.
pub type Body = UnsyncBoxBody<Bytes, Infallible>;

/// Characters of a field manager's name at most.
const MANAGER_CHARS_MAX: usize = 128;
/// How many times the bound of a body is read before the connection is closed on the client.
const DRAIN_FACTOR: usize = 4;
/// Subresources of the real server that are not served here.
const SUBRESOURCES: &[&str] = &[
    "approval",
    "attach",
    "binding",
    "ephemeralcontainers",
    "eviction",
    "exec",
    "finalize",
    "log",
    "portforward",
    "proxy",
    "resize",
    "scale",
    "token",
];

/// The parts of a request that operations read.
struct Call {
    method: Method,
    path: String,
    query: Vec<(String, String)>,
    headers: HeaderMap,
    body: Bytes,
}

impl Call {
    fn param(&self, name: &str) -> &str {
        let found = self.query.iter().find(|(key, _)| key == name);
        found.map_or("", |(_, value)| value.as_str())
    }

    fn flag(&self, name: &str) -> bool {
        matches!(self.param(name), "true" | "1" | "True" | "TRUE" | "t" | "T")
    }

    fn header(&self, name: hyper::header::HeaderName) -> &str {
        self.headers.get(name).and_then(|value| value.to_str().ok()).unwrap_or_default()
    }
}

/// Answers one request; never fails, since every refusal is an answer too.
pub(super) async fn answer<B>(
    shared: Arc<Shared>,
    request: Request<B>,
) -> Result<Response<Body>, Infallible>
where
    B: hyper::body::Body<Data = Bytes, Error: Display> + Unpin,
{
    let response = match respond(&shared, request).await {
        Ok(response) => response,
        Err(error) => refusal(&error),
    };
    Ok(response)
}

async fn respond<B>(shared: &Arc<Shared>, request: Request<B>) -> Result<Response<Body>, ApiError>
where
    B: hyper::body::Body<Data = Bytes, Error: Display> + Unpin,
{
    let (parts, body) = request.into_parts();
    let body = read_bounded(body, shared.options.body_bytes_max).await?;
    let call = Call {
        method: parts.method,
        path: parts.uri.path().to_owned(),
        query: parse_query(parts.uri.query().unwrap_or_default()),
        headers: parts.headers,
        body,
    };
    shared.faults.strike().await?;
    let trimmed = call.path.trim_matches('/').to_owned();
    let segments: Vec<String> = trimmed.split('/').map(decode).collect();
    let segments: Vec<&str> = segments.iter().map(String::as_str).collect();
    match segments.as_slice() {
        ["healthz" | "readyz" | "livez", ..] => Ok(plain("ok")),
        ["version"] => Ok(json_answer(200, &discovery::version())),
        ["openapi", "v2"] => Err(ApiError::not_acceptable("none: use /openapi/v3")),
        ["openapi", "v3", rest @ ..] => openapi(shared, rest),
        ["api"] => {
            let form = DiscoveryForm::of_accept(call.header(ACCEPT));
            Ok(discover(shared, form, true))
        }
        ["apis"] => {
            let form = DiscoveryForm::of_accept(call.header(ACCEPT));
            Ok(discover(shared, form, false))
        }
        ["apis", group] => {
            let document = discovery::group(&shared.lock().catalog, group);
            document.map(|d| json_answer(200, &d)).map_err(|e| unknown_group(shared, group, e))
        }
        ["api", version] => {
            Ok(json_answer(200, &discovery::resources(&shared.lock().catalog, "", version)?))
        }
        ["apis", group, version] => {
            let document = discovery::resources(&shared.lock().catalog, group, version);
            document.map(|d| json_answer(200, &d)).map_err(|e| unknown_group(shared, group, e))
        }
        ["api", version, rest @ ..] => serve(shared, &call, "", version, rest),
        ["apis", group, version, rest @ ..] => serve(shared, &call, group, version, rest),
        _ => Err(ApiError::no_such_resource()),
    }
}

/// Reads a body up to a bound. What exceeds it is read and dropped for a while, since a client that
/// is still writing when the connection closes does not see the answer.
async fn read_bounded<B>(mut body: B, bytes_max: usize) -> Result<Bytes, ApiError>
where
    B: hyper::body::Body<Data = Bytes, Error: Display> + Unpin,
{
    let mut bytes = BytesMut::new();
    let mut total = 0usize;
    while let Some(frame) = body.frame().await {
        let frame = frame.map_err(|e| ApiError::bad_request(format!("reading the body: {e}")))?;
        let Ok(data) = frame.into_data() else { continue };
        total = total.saturating_add(data.len());
        if total <= bytes_max {
            bytes.extend_from_slice(&data);
        } else if total > bytes_max.saturating_mul(DRAIN_FACTOR) {
            break;
        }
    }
    if total > bytes_max { Err(ApiError::too_large(bytes_max)) } else { Ok(bytes.freeze()) }
}

fn unknown_group(shared: &Shared, group: &str, error: ApiError) -> ApiError {
    if KNOWN_GROUPS.contains(&group) && !shared.lock().catalog.has_group(group) {
        return ApiError::not_implemented(format_args!("the API group {group}"));
    }
    error
}

fn openapi(shared: &Shared, rest: &[&str]) -> Result<Response<Body>, ApiError> {
    let state = shared.lock();
    let document = if rest.is_empty() {
        discovery::openapi_index(&state.catalog, state.store.revision())
    } else {
        discovery::openapi_document(&state.catalog, &rest.join("/"))?
    };
    Ok(json_answer(200, &document))
}

fn discover(shared: &Shared, form: DiscoveryForm, core: bool) -> Response<Body> {
    let state = shared.lock();
    let document = match (form, core) {
        (DiscoveryForm::Aggregated(version), _) => {
            discovery::aggregated(&state.catalog, core, version)
        }
        (DiscoveryForm::Plain, true) => discovery::core_versions(),
        (DiscoveryForm::Plain, false) => discovery::groups(&state.catalog),
    };
    let mut response = json_answer(200, &document);
    if let Ok(value) = HeaderValue::from_str(&form.content_type()) {
        response.headers_mut().insert(CONTENT_TYPE, value);
    }
    response
}

/// A request for objects: resource, namespace, name and subresource out of the path.
fn serve(
    shared: &Arc<Shared>,
    call: &Call,
    group: &str,
    version: &str,
    rest: &[&str],
) -> Result<Response<Body>, ApiError> {
    if rest.first() == Some(&"watch") {
        return Err(ApiError::not_implemented("the deprecated watch prefix; use ?watch=true"));
    }
    let (namespace, plural, name, subresource) = match rest {
        // `namespaces/x/status` is a subresource of the namespace, not a resource in it.
        ["namespaces", name, sub @ ("status" | "finalize")] => ("", "namespaces", *name, *sub),
        ["namespaces", namespace, plural] => (*namespace, *plural, "", ""),
        ["namespaces", namespace, plural, name] => (*namespace, *plural, *name, ""),
        ["namespaces", namespace, plural, name, sub] => (*namespace, *plural, *name, *sub),
        [plural] => ("", *plural, "", ""),
        [plural, name] => ("", *plural, *name, ""),
        [plural, name, sub] => ("", *plural, *name, *sub),
        _ => return Err(ApiError::no_such_resource()),
    };
    let resource = shared.lock().catalog.at(group, version, plural);
    let resource = resource
        .ok_or_else(ApiError::no_such_resource)
        .map_err(|error| unknown_group(shared, group, error))?;
    if resource.namespaced == namespace.is_empty() && (!name.is_empty() || !resource.namespaced) {
        return Err(ApiError::no_such_resource());
    }
    let status = match subresource {
        "" => false,
        "status" if resource.status => true,
        "status" => return Err(ApiError::no_such_resource()),
        other if SUBRESOURCES.contains(&other) => {
            let what = format!("the subresource {other} of {}", resource.qualified());
            return Err(ApiError::not_implemented(what));
        }
        _ => return Err(ApiError::no_such_resource()),
    };
    let target =
        Target { resource, namespace: namespace.to_owned(), name: name.to_owned(), status };
    let view = view_of(call)?;
    match (&call.method, name.is_empty()) {
        (&Method::GET, _) if call.flag("watch") => watch(shared, call, &target, view),
        (&Method::GET, true) => list(shared, call, &target, view),
        (&Method::GET, false) => {
            let state = shared.lock();
            state.check_not_ahead(call.param("resourceVersion"))?;
            let object = state.existing(&target)?;
            Ok(json_answer(200, &show_object(&target.resource, view, &object)))
        }
        (&Method::POST, true) if !(target.resource.namespaced && namespace.is_empty()) => {
            let body = read_body(call)?;
            let options = write_options(call)?;
            let written = shared.lock().create(&target, body, &options)?;
            Ok(written_answer(&target.resource, view, &written))
        }
        (&Method::PUT, false) => {
            let body = read_body(call)?;
            let options = write_options(call)?;
            let written = shared.lock().update(&target, body, &options)?;
            Ok(written_answer(&target.resource, view, &written))
        }
        (&Method::PATCH, false) => patch(shared, call, &target, view),
        (&Method::DELETE, false) if !status => delete(shared, call, &target, view),
        (&Method::DELETE, true) => delete_collection(shared, call, &target, view),
        _ => Err(ApiError::method_not_allowed()),
    }
}

fn namespace_of(target: &Target) -> Option<&str> {
    (!target.namespace.is_empty()).then_some(target.namespace.as_str())
}

fn selector_of(call: &Call, target: &Target) -> Result<Selector, ApiError> {
    let mut fields = call.param("fieldSelector").to_owned();
    if !target.name.is_empty() {
        if !fields.is_empty() {
            fields.push(',');
        }
        fields.push_str(&format!("metadata.name={}", target.name));
    }
    Selector::parse(&target.resource, Some(call.param("labelSelector")), Some(&fields))
}

fn list_query(call: &Call, target: &Target) -> Result<ListQuery, ApiError> {
    let limit = match call.param("limit") {
        "" => 0,
        text => text
            .parse()
            .map_err(|_| ApiError::bad_request(format!("limit {text:?} is not a number")))?,
    };
    Ok(ListQuery {
        selector: selector_of(call, target)?,
        limit,
        token: call.param("continue").to_owned(),
        resource_version: call.param("resourceVersion").to_owned(),
        version_match: call.param("resourceVersionMatch").to_owned(),
    })
}

fn list(
    shared: &Shared,
    call: &Call,
    target: &Target,
    view: View,
) -> Result<Response<Body>, ApiError> {
    let query = list_query(call, target)?;
    let listing = shared.lock().list(&target.resource, namespace_of(target), &query)?;
    Ok(json_answer(200, &show_list(&target.resource, view, &listing)))
}

fn watch(
    shared: &Arc<Shared>,
    call: &Call,
    target: &Target,
    view: View,
) -> Result<Response<Body>, ApiError> {
    let timeout = match call.param("timeoutSeconds") {
        "" => None,
        text => {
            let secs: u64 = text.parse().map_err(|_| {
                ApiError::bad_request(format!("timeoutSeconds {text:?} is not a number"))
            })?;
            // Zero asks for the server's own bound; a bound above it means nothing to anybody.
            (secs > 0).then(|| Duration::from_secs(secs).min(shared.options.watch_timeout))
        }
    };
    let query = WatchQuery {
        selector: selector_of(call, target)?,
        resource_version: call.param("resourceVersion").to_owned(),
        version_match: call.param("resourceVersionMatch").to_owned(),
        initial_events: (!call.param("sendInitialEvents").is_empty())
            .then(|| call.flag("sendInitialEvents")),
        bookmarks: call.flag("allowWatchBookmarks"),
        timeout,
    };
    let watch = Watch::begin(shared, target.resource.clone(), namespace_of(target), view, query)?;
    let events = stream::unfold(watch, |mut watch| async move {
        let line = watch.next().await?;
        Some((Ok::<_, Infallible>(Frame::data(line)), watch))
    });
    let mut response = Response::new(BodyExt::boxed_unsync(StreamBody::new(events)));
    response.headers_mut().insert(CONTENT_TYPE, HeaderValue::from_static("application/json"));
    Ok(response)
}

fn patch(
    shared: &Shared,
    call: &Call,
    target: &Target,
    view: View,
) -> Result<Response<Body>, ApiError> {
    let Some(kind) = PatchType::of_content_type(call.header(CONTENT_TYPE)) else {
        return Err(ApiError::unsupported_media_type(
            "application/json-patch+json, application/merge-patch+json, \
             application/strategic-merge-patch+json, application/apply-patch+yaml",
        ));
    };
    let patch = match kind {
        PatchType::Apply => parse_yaml(&call.body)?,
        _ => parse_json(&call.body)?,
    };
    let mut options = write_options(call)?;
    if kind == PatchType::Apply {
        options.manager = call.param("fieldManager").to_owned();
    } else if call.flag("force") {
        return Err(ApiError::bad_request("force may only be set for apply patches"));
    }
    let written = shared.lock().patch(target, kind, &patch, &options)?;
    Ok(written_answer(&target.resource, view, &written))
}

fn delete(
    shared: &Shared,
    call: &Call,
    target: &Target,
    view: View,
) -> Result<Response<Body>, ApiError> {
    let options = delete_options(call)?;
    let deleted = shared.lock().delete(target, &options)?;
    match deleted {
        Deleted::Terminating(object) => {
            Ok(json_answer(200, &show_object(&target.resource, view, &object)))
        }
        Deleted::Gone(object) => Ok(json_answer(
            200,
            &json!({
                "kind": "Status", "apiVersion": "v1", "metadata": {}, "status": "Success",
                "details": {
                    "name": target.name, "group": target.resource.group,
                    "kind": target.resource.plural, "uid": metadata::field(&object, "uid"),
                },
            }),
        )),
    }
}

fn delete_collection(
    shared: &Shared,
    call: &Call,
    target: &Target,
    view: View,
) -> Result<Response<Body>, ApiError> {
    if target.resource.namespaced && target.namespace.is_empty() {
        return Err(ApiError::method_not_allowed());
    }
    let options = delete_options(call)?;
    let query = list_query(call, target)?;
    let mut state = shared.lock();
    let listing = state.list(&target.resource, namespace_of(target), &query)?;
    for object in &listing.items {
        let one = Target { name: metadata::field(object, "name").to_owned(), ..target.clone() };
        state.delete(&one, &options)?;
    }
    Ok(json_answer(200, &show_list(&target.resource, view, &listing)))
}

fn write_options(call: &Call) -> Result<WriteOptions, ApiError> {
    let manager = match call.param("fieldManager") {
        "" => call.header(USER_AGENT).split('/').next().unwrap_or_default(),
        manager => manager,
    };
    let manager = if manager.is_empty() { "unknown" } else { manager };
    if manager.chars().count() > MANAGER_CHARS_MAX {
        return Err(ApiError::bad_request("fieldManager may not be more than 128 characters"));
    }
    let validation = match call.param("fieldValidation") {
        "" | "Warn" => FieldValidation::Warn,
        "Strict" => FieldValidation::Strict,
        "Ignore" => FieldValidation::Ignore,
        other => {
            return Err(ApiError::bad_request(format!("invalid fieldValidation: {other:?}")));
        }
    };
    Ok(WriteOptions {
        manager: manager.to_owned(),
        force: call.flag("force"),
        dry_run: dry_run(call.param("dryRun"))?,
        validation,
    })
}

fn dry_run(text: &str) -> Result<bool, ApiError> {
    match text {
        "" => Ok(false),
        "All" => Ok(true),
        other => Err(ApiError::bad_request(format!("invalid dryRun: {other:?}, use \"All\""))),
    }
}

fn delete_options(call: &Call) -> Result<DeleteOptions, ApiError> {
    let body = if call.body.is_empty() { json!({}) } else { read_body(call)? };
    let text = |pointer: &str| body.pointer(pointer).and_then(Value::as_str).map(str::to_owned);
    let mut propagation = text("/propagationPolicy")
        .or_else(|| Some(call.param("propagationPolicy").to_owned()).filter(|p| !p.is_empty()));
    if propagation.is_none() && body.get("orphanDependents") == Some(&Value::Bool(true)) {
        propagation = Some("Orphan".to_owned());
    }
    let mut dry = dry_run(call.param("dryRun"))?;
    for value in body.get("dryRun").and_then(Value::as_array).into_iter().flatten() {
        dry |= dry_run(value.as_str().unwrap_or("?"))?;
    }
    Ok(DeleteOptions {
        uid: text("/preconditions/uid"),
        resource_version: text("/preconditions/resourceVersion"),
        propagation,
        dry_run: dry,
    })
}

/// The form asked for by the Accept header: the first entry that is known.
fn view_of(call: &Call) -> Result<View, ApiError> {
    let accept = call.header(ACCEPT);
    if accept.is_empty() {
        return Ok(View::Full);
    }
    for entry in accept.split(',') {
        let mut parts = entry.split(';').map(str::trim);
        let media = parts.next().unwrap_or_default();
        let mut kind = "";
        let mut meta = true;
        for part in parts {
            match part.split_once('=') {
                Some(("as", value)) => kind = value,
                Some(("v", value)) => meta &= value == "v1",
                Some(("g", value)) => meta &= value == "meta.k8s.io",
                _ => {}
            }
        }
        if !matches!(media, "application/json" | "*/*" | "application/*") {
            continue;
        }
        match kind {
            "" => return Ok(View::Full),
            "Table" if meta => {
                return Ok(View::Table(match call.param("includeObject") {
                    "" | "Metadata" => IncludeObject::Metadata,
                    "None" => IncludeObject::None,
                    "Object" => IncludeObject::Object,
                    other => {
                        let why = format!("unrecognized includeObject value: {other:?}");
                        return Err(ApiError::bad_request(why));
                    }
                }));
            }
            "PartialObjectMetadata" | "PartialObjectMetadataList" if meta => {
                return Ok(View::Metadata);
            }
            _ => {}
        }
    }
    Err(ApiError::not_acceptable("application/json"))
}

fn read_body(call: &Call) -> Result<Value, ApiError> {
    match call.header(CONTENT_TYPE).split(';').next().unwrap_or_default().trim() {
        "" | "application/json" => parse_json(&call.body),
        "application/yaml" => parse_yaml(&call.body),
        _ => Err(ApiError::unsupported_media_type("application/json, application/yaml")),
    }
}

fn parse_json(body: &[u8]) -> Result<Value, ApiError> {
    serde_json::from_slice(body)
        .map_err(|error| ApiError::bad_request(format!("error decoding the body: {error}")))
}

fn parse_yaml(body: &[u8]) -> Result<Value, ApiError> {
    // Most clients send JSON under a YAML content type; it is the faster way and the exact one.
    if let Ok(value) = serde_json::from_slice(body) {
        return Ok(value);
    }
    serde_saphyr::from_slice(body)
        .map_err(|error| ApiError::bad_request(format!("error decoding the body: {error}")))
}

fn parse_query(query: &str) -> Vec<(String, String)> {
    query
        .split('&')
        .filter(|pair| !pair.is_empty())
        .map(|pair| {
            let (key, value) = pair.split_once('=').unwrap_or((pair, ""));
            (decode(&key.replace('+', " ")), decode(&value.replace('+', " ")))
        })
        .collect()
}

/// Percent decoding; what is no valid escape stays as it is.
fn decode(text: &str) -> String {
    let mut bytes = Vec::with_capacity(text.len());
    let mut rest = text.as_bytes();
    while let Some((first, tail)) = rest.split_first() {
        let escaped = (*first == b'%')
            .then(|| tail.get(..2))
            .flatten()
            .and_then(|hex| std::str::from_utf8(hex).ok())
            .and_then(|hex| u8::from_str_radix(hex, 16).ok());
        match escaped {
            Some(byte) => {
                bytes.push(byte);
                rest = tail.get(2..).unwrap_or_default();
            }
            None => {
                bytes.push(*first);
                rest = tail;
            }
        }
    }
    String::from_utf8_lossy(&bytes).into_owned()
}

fn body_of(text: impl Into<Bytes>) -> Body {
    Full::new(text.into()).boxed_unsync()
}

fn plain(text: &'static str) -> Response<Body> {
    Response::new(body_of(text))
}

fn json_answer(code: u16, value: &Value) -> Response<Body> {
    let mut response = Response::new(body_of(value.to_string()));
    *response.status_mut() =
        StatusCode::from_u16(code).unwrap_or(StatusCode::INTERNAL_SERVER_ERROR);
    response.headers_mut().insert(CONTENT_TYPE, HeaderValue::from_static("application/json"));
    response
}

fn refusal(error: &ApiError) -> Response<Body> {
    let mut response = json_answer(error.code, &error.to_status());
    if matches!(error.code, 429 | 504) {
        response.headers_mut().insert("retry-after", HeaderValue::from_static("1"));
    }
    response
}

fn written_answer(resource: &Resource, view: View, written: &Written) -> Response<Body> {
    let mut response = json_answer(written.code, &show_object(resource, view, &written.object));
    for warning in &written.warnings {
        let quoted = warning.replace('\\', "\\\\").replace('"', "\\\"");
        if let Ok(value) = HeaderValue::from_str(&format!("299 - \"{quoted}\"")) {
            response.headers_mut().append("warning", value);
        }
    }
    response
}
