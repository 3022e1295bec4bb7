//! Lists and watches.

use std::collections::VecDeque;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use bytes::Bytes;
use serde_json::{Value, json};
use tokio::time::{Instant, Interval, interval_at};

use super::Shared;
use super::convert;
use super::error::{ApiError, FieldError};
use super::metadata;
use super::resource::Resource;
use super::selector::Selector;
use super::store::{Change, Key, Subscription};
use super::table::{IncludeObject, definitions, partial_metadata, row};
use super::write::State;

/// Marks the bookmark that ends the initial events of a streaming list.
const INITIAL_EVENTS_END: &str = "k8s.io/initial-events-end";

/// In what form objects are asked for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum View {
    /// The objects themselves.
    Full,
    /// `PartialObjectMetadata`.
    Metadata,
    /// A `Table`.
    Table(IncludeObject),
}

/// The parameters of a list.
#[derive(Clone, Debug, Default)]
pub(super) struct ListQuery {
    pub(super) selector: Selector,
    pub(super) limit: usize,
    pub(super) token: String,
    pub(super) resource_version: String,
    pub(super) version_match: String,
}

/// What a list found.
#[derive(Debug)]
pub(super) struct Listing {
    pub(super) items: Vec<Arc<Value>>,
    pub(super) revision: u64,
    token: String,
    remaining: Option<usize>,
}

/// The parameters of a watch.
#[derive(Clone, Debug, Default)]
pub(super) struct WatchQuery {
    pub(super) selector: Selector,
    pub(super) resource_version: String,
    pub(super) version_match: String,
    pub(super) initial_events: Option<bool>,
    pub(super) bookmarks: bool,
    pub(super) timeout: Option<Duration>,
}

fn list_options_error(error: FieldError) -> ApiError {
    ApiError::invalid_kind("meta.k8s.io", "ListOptions", "", &[error])
}

fn parse_revision(text: &str) -> Result<u64, ApiError> {
    if text.is_empty() {
        return Ok(0);
    }
    text.parse().map_err(|_| {
        let error =
            FieldError::invalid("resourceVersion", &json!(text), "must be an unsigned integer");
        list_options_error(error)
    })
}

impl State {
    /// Refuses a resourceVersion that lies ahead of history.
    pub(super) fn check_not_ahead(&self, resource_version: &str) -> Result<(), ApiError> {
        let (asked, current) = (parse_revision(resource_version)?, self.store.revision());
        if asked > current {
            return Err(ApiError::too_large_resource_version(asked, current));
        }
        Ok(())
    }

    pub(super) fn list(
        &self,
        resource: &Resource,
        namespace: Option<&str>,
        query: &ListQuery,
    ) -> Result<Listing, ApiError> {
        let asked = parse_revision(&query.resource_version)?;
        let (revision, after) = if query.token.is_empty() {
            match query.version_match.as_str() {
                "" if query.limit > 0 && asked > 0 => (asked, None),
                "Exact" if asked == 0 => {
                    return Err(list_options_error(FieldError::forbidden(
                        "resourceVersionMatch",
                        "resourceVersionMatch \"Exact\" is forbidden for resourceVersion \"0\"",
                    )));
                }
                "Exact" => (asked, None),
                "NotOlderThan" if query.resource_version.is_empty() => {
                    return Err(list_options_error(FieldError::forbidden(
                        "resourceVersionMatch",
                        "resourceVersionMatch is forbidden unless resourceVersion is provided",
                    )));
                }
                "" | "NotOlderThan" => {
                    self.check_not_ahead(&query.resource_version)?;
                    (self.store.revision(), None)
                }
                other => {
                    let detail = format!("{other} is not a resourceVersionMatch");
                    let error = FieldError::invalid("resourceVersionMatch", &json!(other), detail);
                    return Err(list_options_error(error));
                }
            }
        } else {
            if asked > 0 {
                return Err(ApiError::bad_request(
                    "specifying resource version is not allowed when using continue",
                ));
            }
            let (revision, key) = read_token(&query.token)?;
            (revision, Some(key))
        };
        let current = self.store.revision();
        let Some(objects) = self.store.objects_at(&resource.storage, revision, after.as_ref())
        else {
            if revision > current {
                return Err(ApiError::too_large_resource_version(revision, current));
            }
            return Err(ApiError::expired(
                "The provided continue parameter is too old to display a consistent list result. \
                 You can start a new list without the continue parameter.",
            ));
        };
        let concerned = |(ns, _): &Key| namespace.is_none_or(|wanted| wanted == ns);
        let mut found =
            objects.filter(|(key, object)| concerned(key) && query.selector.matches(object));
        let limit = if query.limit == 0 { usize::MAX } else { query.limit };
        let mut items = Vec::new();
        let mut last = None;
        for (key, object) in found.by_ref().take(limit) {
            items.push(object.clone());
            last = Some(key);
        }
        // How many are left is told, and counted, only where no selector has to be asked.
        let left = match query.selector.is_empty() {
            true => found.count(),
            false => usize::from(found.next().is_some()),
        };
        let token = match last {
            Some(key) if left > 0 => write_token(revision, key),
            _ => String::new(),
        };
        let remaining = (left > 0 && query.selector.is_empty()).then_some(left);
        Ok(Listing { items, revision, token, remaining })
    }
}

/// A continue token: the revision of the first page and the last key shown.
fn write_token(revision: u64, (namespace, name): &Key) -> String {
    format!("{revision}/{namespace}/{name}").bytes().map(|byte| format!("{byte:02x}")).collect()
}

fn read_token(token: &str) -> Result<(u64, Key), ApiError> {
    let parse = || {
        let bytes: Option<Vec<u8>> = (0..token.len())
            .step_by(2)
            .map(|at| u8::from_str_radix(token.get(at..at + 2)?, 16).ok())
            .collect();
        let text = String::from_utf8(bytes?).ok()?;
        let mut parts = text.splitn(3, '/');
        let revision = parts.next()?.parse().ok()?;
        Some((revision, (parts.next()?.to_owned(), parts.next()?.to_owned())))
    };
    parse().ok_or_else(|| ApiError::bad_request("continue key is not valid"))
}

/// Shows one object.
pub(super) fn show_object(resource: &Resource, view: View, object: &Value) -> Value {
    match view {
        View::Full => convert::from_storage(resource, object),
        View::Metadata => partial_metadata(object),
        View::Table(include) => {
            let meta = json!({"resourceVersion": metadata::field(object, "resourceVersion")});
            let rows = vec![table_row(resource, object, include)];
            table(Some(resource), meta, rows)
        }
    }
}

fn table_row(resource: &Resource, object: &Value, include: IncludeObject) -> Value {
    let mut row = row(&resource.columns, object, include);
    if include == IncludeObject::Object
        && let Some(shown) = row.get_mut("object")
    {
        *shown = convert::from_storage(resource, object);
    }
    row
}

fn table(resource: Option<&Resource>, meta: Value, rows: Vec<Value>) -> Value {
    let columns = resource.map_or_else(|| json!([]), |resource| definitions(&resource.columns));
    json!({
        "kind": "Table", "apiVersion": "meta.k8s.io/v1", "metadata": meta,
        "columnDefinitions": columns, "rows": rows,
    })
}

/// Shows a list.
pub(super) fn show_list(resource: &Resource, view: View, listing: &Listing) -> Value {
    let mut meta = json!({"resourceVersion": listing.revision.to_string()});
    if !listing.token.is_empty() {
        meta["continue"] = json!(listing.token);
    }
    if let Some(remaining) = listing.remaining {
        meta["remainingItemCount"] = json!(remaining);
    }
    let (kind, api_version) = match view {
        View::Full => (resource.list_kind.clone(), resource.api_version()),
        View::Metadata => ("PartialObjectMetadataList".to_owned(), "meta.k8s.io/v1".to_owned()),
        View::Table(include) => {
            let items = listing.items.iter();
            let rows = items.map(|object| table_row(resource, object, include)).collect();
            return table(Some(resource), meta, rows);
        }
    };
    let show = |object: &Arc<Value>| {
        let mut item = show_object(resource, view, object);
        // The real server's lists of builtin kinds name these once, in the list.
        if let (View::Full, false, Some(map)) = (view, resource.custom, item.as_object_mut()) {
            map.remove("apiVersion");
            map.remove("kind");
        }
        item
    };
    let items: Vec<Value> = listing.items.iter().map(show).collect();
    json!({"kind": kind, "apiVersion": api_version, "metadata": meta, "items": items})
}

/// One running watch, a stream of event lines.
pub(super) struct Watch {
    shared: Arc<Shared>,
    resource: Arc<Resource>,
    view: View,
    selector: Selector,
    /// Changes up to this one are not shown.
    since: u64,
    pending: VecDeque<Bytes>,
    subscription: Subscription,
    bookmarks: Option<Interval>,
    bookmark_due: Option<u64>,
    deadline: Instant,
    ended: bool,
    columns_sent: bool,
}

impl Watch {
    /// Begins a watch; what it shows first is taken under the same lock as its subscription.
    pub(super) fn begin(
        shared: &Arc<Shared>,
        resource: Arc<Resource>,
        namespace: Option<&str>,
        view: View,
        query: WatchQuery,
    ) -> Result<Watch, ApiError> {
        let asked = parse_revision(&query.resource_version)?;
        check_watch_query(&query)?;
        let mut state = shared.lock();
        let current = state.store.revision();
        let streaming = query.initial_events == Some(true);
        if streaming {
            state.check_not_ahead(&query.resource_version)?;
        }
        let initial = streaming || (asked == 0 && query.initial_events.is_none());
        let from_now = initial || asked == 0;
        let since = if from_now { current } else { asked };
        let now = Instant::now();
        let every = shared.options.bookmark_interval;
        let subscription = state.store.subscribe(&resource.storage, namespace, since);
        let timeout = query.timeout.unwrap_or(shared.options.watch_timeout);
        let mut watch = Watch {
            shared: shared.clone(),
            resource,
            view,
            selector: query.selector,
            since,
            pending: VecDeque::new(),
            subscription,
            bookmarks: query.bookmarks.then(|| interval_at(now + every, every)),
            bookmark_due: None,
            deadline: now + timeout,
            ended: false,
            columns_sent: false,
        };
        if !from_now && asked < state.store.forgotten() {
            let oldest = state.store.forgotten();
            let gone = ApiError::expired(format!("too old resource version: {asked} ({oldest})"));
            watch.end_with(&gone);
            return Ok(watch);
        }
        if initial {
            let objects: Vec<Arc<Value>> = state
                .store
                .objects(&watch.resource.storage)
                .filter(|((ns, _), _)| namespace.is_none_or(|wanted| wanted == ns))
                .filter(|(_, object)| watch.selector.matches(object))
                .map(|(_, object)| object.clone())
                .collect();
            for object in objects {
                let line = watch.event("ADDED", &object);
                watch.pending.push_back(line);
            }
        }
        if streaming && query.bookmarks {
            let line = watch.bookmark(current, true);
            watch.pending.push_back(line);
        }
        Ok(watch)
    }

    /// The next event line; `None` when the watch has ended.
    pub(super) async fn next(&mut self) -> Option<Bytes> {
        loop {
            if let Some(line) = self.pending.pop_front() {
                return Some(line);
            }
            if self.ended {
                return None;
            }
            if let Some(change) = self.subscription.backlog.pop_front() {
                self.handle(&change);
                continue;
            }
            if let Some(revision) = self.bookmark_due.take() {
                return Some(self.bookmark(revision, false));
            }
            let tick = async {
                match &mut self.bookmarks {
                    Some(interval) => drop(interval.tick().await),
                    None => std::future::pending().await,
                }
            };
            // The rare before the frequent, so that steady change keeps none of them back.
            tokio::select! {
                biased;
                () = tokio::time::sleep_until(self.deadline) => self.ended = true,
                () = tick => self.note_bookmark(),
                change = self.subscription.live.recv() => match change {
                    Some(change) => self.handle(&change),
                    None if self.subscription.overrun.load(Ordering::Acquire) => {
                        self.end_with(&ApiError::expired("too slow: the watch missed events"));
                    }
                    None => self.ended = true,
                },
            }
        }
    }

    /// Takes the revision that a bookmark may name: everything before it is in our queue already,
    /// since writes are queued under the same lock.
    fn note_bookmark(&mut self) {
        let revision = self.shared.lock().store.revision();
        while let Ok(change) = self.subscription.live.try_recv() {
            self.subscription.backlog.push_back(change);
        }
        if revision >= self.since {
            self.bookmark_due = Some(revision);
        }
    }

    fn handle(&mut self, change: &Change) {
        if change.revision <= self.since {
            return;
        }
        let selected = |object: &Option<Arc<Value>>| {
            object.as_ref().is_some_and(|object| self.selector.matches(object))
        };
        let line = match (selected(&change.before), selected(&change.after), &change.after) {
            (false, true, Some(after)) => self.event("ADDED", after),
            (true, true, Some(after)) => self.event("MODIFIED", after),
            (true, false, _) => match change.last_state() {
                Some(last) => self.event("DELETED", &last),
                None => return,
            },
            _ => return,
        };
        self.pending.push_back(line);
    }

    fn event(&mut self, kind: &str, object: &Value) -> Bytes {
        let mut shown = show_object(&self.resource, self.view, object);
        // A table's columns are said once.
        if matches!(self.view, View::Table(_)) && std::mem::replace(&mut self.columns_sent, true) {
            shown["columnDefinitions"] = json!([]);
        }
        line(kind, &shown)
    }

    fn bookmark(&self, revision: u64, initial_end: bool) -> Bytes {
        let mut meta = json!({"resourceVersion": revision.to_string(), "creationTimestamp": null});
        if initial_end {
            meta["annotations"] = json!({ INITIAL_EVENTS_END: "true" });
        }
        let shown = match self.view {
            View::Full => json!({
                "kind": self.resource.kind, "apiVersion": self.resource.api_version(),
                "metadata": meta,
            }),
            View::Metadata => json!({
                "kind": "PartialObjectMetadata", "apiVersion": "meta.k8s.io/v1", "metadata": meta,
            }),
            View::Table(_) => table(None, meta, Vec::new()),
        };
        line("BOOKMARK", &shown)
    }

    fn end_with(&mut self, error: &ApiError) {
        self.pending.push_back(line("ERROR", &error.to_status()));
        self.ended = true;
    }
}

fn check_watch_query(query: &WatchQuery) -> Result<(), ApiError> {
    let refuse =
        |path: &str, detail: &str| Err(list_options_error(FieldError::forbidden(path, detail)));
    match (query.initial_events, query.version_match.as_str()) {
        (None, "") | (Some(_), "NotOlderThan") => Ok(()),
        (None, _) => refuse(
            "resourceVersionMatch",
            "resourceVersionMatch is forbidden for watch unless sendInitialEvents is provided",
        ),
        (Some(_), _) => refuse(
            "resourceVersionMatch",
            "sendInitialEvents requires setting resourceVersionMatch to NotOlderThan",
        ),
    }
}

fn line(kind: &str, object: &Value) -> Bytes {
    let mut text = json!({"type": kind, "object": object}).to_string();
    text.push('\n');
    Bytes::from(text)
}
