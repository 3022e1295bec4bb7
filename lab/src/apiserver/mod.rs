//! An in-memory Kubernetes API server for the lab and for tests.
//!
//! It speaks plain HTTP/1.1 to real clients (kube-rs, kubectl) and follows the real server's
//! resource semantics: resourceVersions, watches, conflicts, finalizers, garbage collection, CRD
//! schemas with CEL rules, server-side apply, tables, discovery. Where the two differ, this one is
//! wrong. What it does not do it answers with 501 and a sentence. It must never run in a real
//! cluster: it has no authentication, keeps nothing on disk and needs no quorum.
//!
//! ```text
//!  listener ──► connection task ──► http: route, negotiate ──► State, under one lock
//!  (any number)      │                                          ├─ write: admit, own, commit
//!                    │◄── event lines ◄── read: Watch ◄── queue ┤─ store: objects, history
//!                    ▼                                          └─ garbage: a task, every 100 ms
//! ```
//!
//! All state stands behind one lock that is held for the time of one operation and never across an
//! await, so every operation is atomic and callers inside the process need no runtime. A watch takes
//! its first state and its place in the queue under that lock, so it misses nothing.
//!
//! The known differences are listed in docs/adr/0004-embedded-api.md.

use std::net::SocketAddr;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};
use std::time::Duration;

use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper_util::rt::{TokioIo, TokioTimer};
use kube_cel::Validator;
use serde_json::{Value, json};
use tokio::net::TcpListener;
use tokio::sync::watch;
use tokio::task::{JoinHandle, JoinSet};

mod convert;
mod discovery;
mod error;
mod fields;
mod garbage;
mod http;
mod jsonpath;
mod metadata;
mod patch;
mod prepare;
mod read;
mod resource;
mod rules;
mod schema;
mod selector;
mod simulate;
mod source;
mod store;
mod table;
mod ties;
mod write;

pub use error::{ApiError, FieldError, FieldErrorKind};
pub use patch::PatchType;
pub use resource::Resource;
pub use simulate::{ResponseBody, Snapshot};
pub use source::{Clock, Randomness};

use read::ListQuery;
use resource::Catalog;
use selector::Selector;
use store::Store;
use write::{DeleteOptions, Deleted, State, Target, WriteOptions};

/// How often garbage is looked for.
const GARBAGE_INTERVAL: Duration = Duration::from_millis(100);
/// Wait after a failed accept, so that an exhausted descriptor table does not spin.
const ACCEPT_RETRY: Duration = Duration::from_millis(50);
/// The field manager of writes from inside the process.
const OWN_MANAGER: &str = "cairn-lab";
/// Namespaces that every cluster has.
const NAMESPACES: [&str; 4] = ["default", "kube-node-lease", "kube-public", "kube-system"];

/// The bounds of an [`ApiServer`].
#[derive(Clone, Debug)]
pub struct Options {
    /// Octets in one request body at most.
    pub body_bytes_max: usize,
    /// Writes that a watch can begin in the past by; a watch from further back gets 410.
    pub history_max: usize,
    /// Events that one watcher may lag behind by before it is cut.
    pub watch_queue_max: usize,
    /// Open connections on each listener at most.
    pub connections_max: usize,
    /// How often a watch that asked for bookmarks gets one.
    pub bookmark_interval: Duration,
    /// How long a watch lasts at most.
    pub watch_timeout: Duration,
    /// What objects are stamped by.
    pub clock: Clock,
    /// What UIDs and generated names are made of.
    pub randomness: Randomness,
}

impl Default for Options {
    fn default() -> Options {
        Options {
            body_bytes_max: 3 << 20,
            history_max: 20_000,
            watch_queue_max: 10_000,
            connections_max: 4_096,
            bookmark_interval: Duration::from_secs(30),
            watch_timeout: Duration::from_secs(1_800),
            clock: Clock::system(),
            randomness: Randomness::Kernel,
        }
    }
}

/// Faults that a test can ask for.
#[derive(Debug, Default)]
struct Faults {
    failures: AtomicU64,
    latency_us: AtomicU64,
}

impl Faults {
    async fn strike(&self) -> Result<(), ApiError> {
        let latency = self.latency_us.load(Ordering::Relaxed);
        if latency > 0 {
            tokio::time::sleep(Duration::from_micros(latency)).await;
        }
        let take = |left: u64| left.checked_sub(1);
        match self.failures.fetch_update(Ordering::Relaxed, Ordering::Relaxed, take) {
            Ok(_) => Err(ApiError::internal("a failure that was asked for")),
            Err(_) => Ok(()),
        }
    }
}

struct Shared {
    options: Options,
    state: Mutex<State>,
    faults: Faults,
    /// Whether the server is away.
    paused: watch::Sender<bool>,
    /// Whether the garbage task runs.
    collecting: std::sync::Once,
}

impl Shared {
    /// The state; a panic in another holder cannot leave it half-written, since each write is
    /// committed by one call at its end.
    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// An embedded API server; clones share one state.
#[derive(Clone)]
pub struct ApiServer(Arc<Shared>);

/// Why a manifest was not loaded.
#[derive(Debug, thiserror::Error)]
pub enum ManifestError {
    /// The text is not YAML.
    #[error("the manifest is not YAML: {0}")]
    Yaml(String),
    /// An object is of a kind that is not served.
    #[error("document {document}: no kind {kind} in {api_version} is served")]
    UnknownKind {
        /// Position in the stream, from 1.
        document: usize,
        /// The `apiVersion` found.
        api_version: String,
        /// The `kind` found.
        kind: String,
    },
    /// An object was refused.
    #[error("document {document}: {error}")]
    Refused {
        /// Position in the stream, from 1.
        document: usize,
        /// The refusal.
        error: ApiError,
    },
}

/// A listener that serves until this is stopped or dropped.
#[derive(Debug)]
pub struct Serving {
    address: SocketAddr,
    task: JoinHandle<()>,
}

impl Serving {
    /// Where it listens.
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// Closes the listener and its connections, and waits until they are closed.
    pub async fn stop(mut self) {
        self.task.abort();
        // The only error is the cancellation just asked for.
        let _ = (&mut self.task).await;
    }
}

impl Drop for Serving {
    fn drop(&mut self) {
        self.task.abort();
    }
}

impl ApiServer {
    /// An empty server: the builtin resources and the namespaces that every cluster has.
    pub fn new(options: Options) -> ApiServer {
        let store = Store::new(options.history_max, options.watch_queue_max);
        let server = ApiServer::with(options, store, Catalog::builtin());
        for name in NAMESPACES {
            let created = server.create("namespaces", None, json!({"metadata": {"name": name}}));
            debug_assert!(created.is_ok(), "{created:?}");
        }
        server
    }

    fn with(options: Options, store: Store, catalog: Catalog) -> ApiServer {
        let state = State {
            store,
            catalog,
            validator: Validator::new(),
            clock: options.clock.clone(),
            random: options.randomness,
            garbage: false,
        };
        ApiServer(Arc::new(Shared {
            options,
            state: Mutex::new(state),
            faults: Faults::default(),
            paused: watch::Sender::new(false),
            collecting: std::sync::Once::new(),
        }))
    }

    /// Serves on a listener; any number may be served at once, each from whatever network namespace
    /// its socket was made in. Must be called within a tokio runtime.
    ///
    /// # Errors
    /// When the listener cannot be taken into the runtime.
    pub fn serve(&self, listener: std::net::TcpListener) -> std::io::Result<Serving> {
        listener.set_nonblocking(true)?;
        let listener = TcpListener::from_std(listener)?;
        let address = listener.local_addr()?;
        let weak = Arc::downgrade(&self.0);
        self.0.collecting.call_once(|| drop(tokio::spawn(collect_garbage(weak))));
        let task = tokio::spawn(accept(self.0.clone(), listener));
        Ok(Serving { address, task })
    }

    /// Goes away: connections are dropped, new ones closed at once, the state is kept.
    pub fn pause(&self) {
        self.0.paused.send_replace(true);
    }

    /// Comes back after [`ApiServer::pause`].
    pub fn resume(&self) {
        self.0.paused.send_replace(false);
    }

    /// Answers the next `count` requests with 500.
    pub fn fail_next(&self, count: u64) {
        self.0.faults.failures.store(count, Ordering::Relaxed);
    }

    /// Delays every request from now on.
    pub fn delay_requests(&self, latency: Duration) {
        let micros = u64::try_from(latency.as_micros()).unwrap_or(u64::MAX);
        self.0.faults.latency_us.store(micros, Ordering::Relaxed);
    }

    /// Forgets the history, as a compaction of etcd does: watches from the past get 410.
    pub fn forget_history(&self) {
        self.0.lock().store.forget_history();
    }

    /// The resourceVersion of the last write.
    pub fn revision(&self) -> u64 {
        self.0.lock().store.revision()
    }

    /// Collects garbage once, for callers without a runtime; served servers do it by themselves.
    pub fn collect_garbage(&self) -> bool {
        self.0.lock().collect_garbage()
    }

    /// The object `name` of a resource named `plural` or `plural.group`.
    ///
    /// # Errors
    /// 404 when there is no such resource or object.
    pub fn get(
        &self,
        resource: &str,
        namespace: Option<&str>,
        name: &str,
    ) -> Result<Value, ApiError> {
        let state = self.0.lock();
        let target = target(&state, resource, namespace, name)?;
        Ok(convert::from_storage(&target.resource, &*state.existing(&target)?))
    }

    /// The objects of a resource that a label selector (may be empty) selects, by namespace and name.
    ///
    /// # Errors
    /// 404 when there is no such resource, 400 for a broken selector.
    pub fn list(
        &self,
        resource: &str,
        namespace: Option<&str>,
        label_selector: &str,
    ) -> Result<Vec<Value>, ApiError> {
        let state = self.0.lock();
        let target = target(&state, resource, namespace, "")?;
        let selector = Selector::parse(&target.resource, Some(label_selector), None)?;
        let query = ListQuery { selector, ..ListQuery::default() };
        let listing = state.list(&target.resource, namespace, &query)?;
        let items = listing.items.iter();
        Ok(items.map(|object| convert::from_storage(&target.resource, object)).collect())
    }

    /// Creates an object.
    ///
    /// # Errors
    /// As POST answers: 400, 404, 409, 422.
    pub fn create(
        &self,
        resource: &str,
        namespace: Option<&str>,
        object: Value,
    ) -> Result<Value, ApiError> {
        let mut state = self.0.lock();
        let target = target(&state, resource, namespace, "")?;
        let written = state.create(&target, object, &own_options())?;
        Ok(convert::from_storage(&target.resource, &written.object))
    }

    /// Patches an object; [`PatchType::Apply`] creates it when it is not there.
    ///
    /// # Errors
    /// As PATCH answers: 400, 404, 409, 415, 422.
    pub fn patch(
        &self,
        resource: &str,
        namespace: Option<&str>,
        name: &str,
        kind: PatchType,
        patch: &Value,
    ) -> Result<Value, ApiError> {
        self.patch_target(resource, namespace, name, false, kind, patch)
    }

    /// Merge-patches an object's status: `patch` is the patch of the whole object.
    ///
    /// # Errors
    /// As PATCH of the status subresource answers.
    pub fn patch_status(
        &self,
        resource: &str,
        namespace: Option<&str>,
        name: &str,
        patch: &Value,
    ) -> Result<Value, ApiError> {
        self.patch_target(resource, namespace, name, true, PatchType::Merge, patch)
    }

    fn patch_target(
        &self,
        resource: &str,
        namespace: Option<&str>,
        name: &str,
        status: bool,
        kind: PatchType,
        patch: &Value,
    ) -> Result<Value, ApiError> {
        let mut state = self.0.lock();
        let target = Target { status, ..target(&state, resource, namespace, name)? };
        if status && !target.resource.status {
            return Err(ApiError::no_such_resource());
        }
        let options = WriteOptions { force: kind == PatchType::Apply, ..own_options() };
        let written = state.patch(&target, kind, patch, &options)?;
        Ok(convert::from_storage(&target.resource, &written.object))
    }

    /// Deletes an object; returns whether it is gone already, and not held by finalizers.
    ///
    /// # Errors
    /// 404 when there is no such resource or object.
    pub fn delete(
        &self,
        resource: &str,
        namespace: Option<&str>,
        name: &str,
    ) -> Result<bool, ApiError> {
        let mut state = self.0.lock();
        let target = target(&state, resource, namespace, name)?;
        let deleted = state.delete(&target, &DeleteOptions::default())?;
        Ok(matches!(deleted, Deleted::Gone(_)))
    }

    /// Applies every document of a YAML stream, in order, and returns the objects as stored.
    ///
    /// Namespaced objects without a namespace go to `default`.
    ///
    /// # Errors
    /// The first document that cannot be read or is refused; earlier ones stay.
    pub fn load_yaml(&self, text: &str) -> Result<Vec<Value>, ManifestError> {
        let documents: Vec<Value> = serde_saphyr::from_multiple(text)
            .map_err(|error| ManifestError::Yaml(error.to_string()))?;
        let mut stored = Vec::new();
        for (index, object) in documents.into_iter().enumerate() {
            if object.is_null() {
                continue;
            }
            let document = index + 1;
            let field = |pointer: &str| resource::text(&object, pointer);
            let (api_version, kind) = (field("/apiVersion"), field("/kind"));
            let found = self.0.lock().catalog.of_kind(&api_version, &kind);
            let Some(resource) = found else {
                return Err(ManifestError::UnknownKind { document, api_version, kind });
            };
            let namespace = match field("/metadata/namespace") {
                _ if !resource.namespaced => String::new(),
                empty if empty.is_empty() => "default".to_owned(),
                given => given,
            };
            let name = field("/metadata/name");
            let target = Target { resource: resource.clone(), namespace, name, status: false };
            let options = WriteOptions { force: true, ..own_options() };
            let written = self.0.lock().patch(&target, PatchType::Apply, &object, &options);
            let written = written.map_err(|error| ManifestError::Refused { document, error })?;
            stored.push(convert::from_storage(&resource, &written.object));
        }
        Ok(stored)
    }
}

impl std::fmt::Debug for ApiServer {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("ApiServer").field("options", &self.0.options).finish_non_exhaustive()
    }
}

fn own_options() -> WriteOptions {
    WriteOptions { manager: OWN_MANAGER.to_owned(), ..WriteOptions::default() }
}

fn target(
    state: &State,
    resource: &str,
    namespace: Option<&str>,
    name: &str,
) -> Result<Target, ApiError> {
    let resource = state.catalog.named(resource).ok_or_else(ApiError::no_such_resource)?;
    let namespace = namespace.filter(|_| resource.namespaced).unwrap_or_default().to_owned();
    Ok(Target { resource, namespace, name: name.to_owned(), status: false })
}

/// Accepts connections until it is aborted; its connections end with it.
async fn accept(shared: Arc<Shared>, listener: TcpListener) {
    let mut connections = JoinSet::new();
    let mut paused = shared.paused.subscribe();
    loop {
        if *paused.borrow_and_update() {
            connections.shutdown().await;
        }
        let stream = tokio::select! {
            changed = paused.changed() => match changed {
                Ok(()) => continue,
                Err(_) => return,
            },
            Some(_) = connections.join_next() => continue,
            accepted = listener.accept() => match accepted {
                Ok((stream, _)) => stream,
                Err(error) => {
                    tracing::warn!(%error, "the API server cannot accept a connection");
                    tokio::time::sleep(ACCEPT_RETRY).await;
                    continue;
                }
            },
        };
        // Dropping the stream closes the connection: what a client of a server that is away or
        // full sees.
        if *paused.borrow() || connections.len() >= shared.options.connections_max {
            continue;
        }
        // A delayed last segment of a small answer costs 40 ms; failing to say so only costs time.
        let _ = stream.set_nodelay(true);
        let shared = shared.clone();
        connections.spawn(async move {
            let service = service_fn(move |request| http::answer(shared.clone(), request));
            let connection = http1::Builder::new()
                .timer(TokioTimer::new())
                .serve_connection(TokioIo::new(stream), service);
            if let Err(error) = connection.await {
                tracing::debug!(%error, "a connection to the API server ended");
            }
        });
    }
}

async fn collect_garbage(shared: Weak<Shared>) {
    let mut ticks = tokio::time::interval(GARBAGE_INTERVAL);
    loop {
        ticks.tick().await;
        let Some(shared) = shared.upgrade() else { return };
        let paused = *shared.paused.borrow();
        if !paused {
            shared.lock().collect_garbage();
        }
    }
}
