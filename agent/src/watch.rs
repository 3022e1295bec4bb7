//! The watches: from the API server's events to one [`ClusterView`].
//!
//! ```text
//! one task a kind ──Update (a change to the view)──► this task ──ClusterView──► planner, ipam
//! one a Secret ─────────────────┘   ▲ which Secrets peers name
//! ```
//!
//! Nothing is written from here. A burst of events becomes one new view. While the API server is
//! away the last view stands.

use std::collections::BTreeMap;
use std::fmt::Debug;
use std::sync::Arc;
use std::time::{Duration, Instant};

use cairn_api::{BGPAdvertisement, BGPConfiguration, BGPNode, BGPPeer, BGPPolicy, IPBlock, IPPool};
use futures::StreamExt;
use k8s_openapi::api::core::v1::Node;
use kube::runtime::watcher::{self, Event, InitialListStrategy};
use kube::runtime::{WatchStreamExt, watcher as watch_stream};
use kube::{Api, Client, Resource, ResourceExt};
use serde::de::DeserializeOwned;
use tokio::sync::{mpsc, watch};

use crate::secrets::Secrets;
use crate::view::{ClusterView, WatchFailure};

/// Updates that wait for this task at most; a watch that is faster waits.
const UPDATES_MAX: usize = 256;

/// How long events are gathered before a new view goes out. Short, since a block that another node
/// claimed is waiting for it.
const GATHER: Duration = Duration::from_millis(5);

/// The longest wait before a watch that failed is tried again.
const RETRY_MAX: Duration = Duration::from_secs(5);

/// How often the API server is asked whether it is back, and how long it may take to answer.
const PROBE_INTERVAL: Duration = Duration::from_secs(1);
const PROBE_TIMEOUT: Duration = Duration::from_secs(5);

/// Failures further apart than this are not in a row: the watch ran in between. Above [`RETRY_MAX`].
const QUIET: Duration = Duration::from_secs(10);

/// What a watch changes in the view.
pub(crate) type Update = Box<dyn FnOnce(&mut ClusterView) + Send>;

/// What a watching task tells.
pub(crate) struct Told {
    update: Update,
    /// The first list of the kind is complete with it.
    listed: bool,
    /// The watch of a Secret that tells it; those come and go.
    secret: Option<u64>,
}

/// What is watched for.
#[derive(Debug)]
pub struct WatchOptions {
    /// The node's name.
    pub node: String,
    /// Cairn's own namespace, where Secrets are.
    pub namespace: String,
    /// When it rises every watch drops what it knows and begins with a new list.
    pub relist: watch::Receiver<u64>,
}

/// Starts the watches of a node; the receiver always holds the newest view.
pub fn start(client: &Client, options: WatchOptions) -> watch::Receiver<Arc<ClusterView>> {
    let WatchOptions { node: name, namespace, relist: _ } = options;
    let (told, updates) = mpsc::channel(UPDATES_MAX);
    let all = watcher::Config::default;
    let own_node = all().fields(&format!("metadata.name={name}"));
    let own_blocks = all().fields(&format!("spec.node.name={name}"));

    follow_one::<Node>(client, own_node, &told, |view| &mut view.node);
    follow::<IPPool>(client, all(), &told, |view| &mut view.pools);
    follow::<IPBlock>(client, own_blocks, &told, |view| &mut view.own_blocks);
    let default = all().fields("metadata.name=default");
    follow_one::<BGPConfiguration>(client, default, &told, |view| &mut view.bgp_configuration);
    follow::<BGPNode>(client, all(), &told, |view| &mut view.bgp_nodes);
    follow::<BGPPeer>(client, all(), &told, |view| &mut view.bgp_peers);
    follow::<BGPPolicy>(client, all(), &told, |view| &mut view.bgp_policies);
    follow::<BGPAdvertisement>(client, all(), &told, |view| &mut view.bgp_advertisements);

    let (publish, views) = watch::channel(Arc::new(ClusterView::default()));
    let secrets = Secrets::new(client.clone(), namespace, told);
    tokio::spawn(gather(updates, secrets, publish));
    views
}

/// The number of kinds that [`start`] follows.
const KINDS: usize = 8;

async fn gather(
    mut updates: mpsc::Receiver<Told>,
    mut secrets: Secrets,
    publish: watch::Sender<Arc<ClusterView>>,
) {
    let mut view = ClusterView::default();
    let mut listed = 0;
    let mut take = |view: &mut ClusterView, secrets: &Secrets, told: Told| {
        if told.secret.is_some_and(|watch| !secrets.follows(watch)) {
            return;
        }
        (told.update)(view);
        if told.listed && told.secret.is_none() {
            listed += 1;
            // Secrets are not waited for: a peer without its password comes later.
            view.synced = listed >= KINDS;
        }
    };
    loop {
        let told = tokio::select! {
            told = updates.recv() => told,
            () = publish.closed() => None,
        };
        let Some(told) = told else { return };
        take(&mut view, &secrets, told);
        tokio::time::sleep(GATHER).await;
        while let Ok(told) = updates.try_recv() {
            take(&mut view, &secrets, told);
        }
        if publish.is_closed() {
            return;
        }
        secrets.follow(&mut view);
        publish.send_if_modified(|old| {
            let differs = **old != view;
            if differs {
                *old = Arc::new(view.clone());
            }
            differs
        });
    }
}

/// A kind that the view can hold.
pub(crate) trait Watched:
    Resource<DynamicType = ()> + Clone + Debug + DeserializeOwned + Send + Sync + 'static
{
}

impl<K> Watched for K where
    K: Resource<DynamicType = ()> + Clone + Debug + DeserializeOwned + Send + Sync + 'static
{
}

/// Follows every object of a kind into a map by name.
fn follow<K: Watched>(
    client: &Client,
    config: watcher::Config,
    told: &mpsc::Sender<Told>,
    place: fn(&mut ClusterView) -> &mut BTreeMap<String, K>,
) {
    let store = move |change: Change<K>| -> Update {
        Box::new(move |view| {
            let map = place(view);
            match change {
                Change::All(objects) => {
                    *map = objects.into_iter().map(|o| (o.name_any(), o)).collect();
                }
                Change::Set(object) => {
                    map.insert(object.name_any(), *object);
                }
                Change::Remove(name) => {
                    map.remove(&name);
                }
            }
        })
    };
    spawn(client, config, told, store);
}

/// Follows the one object that `config` selects.
fn follow_one<K: Watched>(
    client: &Client,
    config: watcher::Config,
    told: &mpsc::Sender<Told>,
    place: fn(&mut ClusterView) -> &mut Option<K>,
) {
    let store = move |change: Change<K>| -> Update {
        Box::new(move |view| {
            *place(view) = match change {
                Change::All(objects) => objects.into_iter().next(),
                Change::Set(object) => Some(*object),
                Change::Remove(_) => None,
            };
        })
    };
    spawn(client, config, told, store);
}

fn spawn<K: Watched>(
    client: &Client,
    config: watcher::Config,
    told: &mpsc::Sender<Told>,
    store: impl Fn(Change<K>) -> Update + Send + 'static,
) {
    let (api, kind) = (Api::all(client.clone()), K::kind(&()).into_owned());
    let remedy = ": apply Cairn's ClusterRole and its binding";
    tokio::spawn(run(api, config, kind, remedy, None, told.clone(), store));
}

/// What a watch has seen.
pub(crate) enum Change<K> {
    All(Vec<K>),
    Set(Box<K>),
    Remove(String),
}

/// Watches until nobody is told any more. `subject` is what cannot be watched when the server refuses,
/// `remedy` what to do about a missing right.
pub(crate) async fn run<K: Watched>(
    api: Api<K>,
    config: watcher::Config,
    subject: String,
    remedy: &'static str,
    secret: Option<u64>,
    told: mpsc::Sender<Told>,
    store: impl Fn(Change<K>) -> Update,
) {
    let client = api.clone().into_client();
    let config =
        watcher::Config { initial_list_strategy: InitialListStrategy::default(), ..config };
    let mut events = std::pin::pin!(watch_stream(api, config).backoff(Backoff::default()));
    let mut initial: Option<Vec<K>> = None;
    let mut listed = false;
    let mut outage = Outage::new(subject, remedy);
    loop {
        let event = tokio::select! {
            event = events.next() => event,
            () = outage.end(&client) => {
                let news = Told { update: outage.over(), listed: false, secret };
                if told.send(news).await.is_err() {
                    return;
                }
                continue;
            }
        };
        let mut first_list = false;
        let update = match event {
            None => return,
            Some(Err(error)) => match outage.failed(&error) {
                Some(news) => news,
                None => continue,
            },
            Some(Ok(Event::Init)) => {
                initial = Some(Vec::new());
                continue;
            }
            Some(Ok(Event::InitApply(object))) => {
                initial.get_or_insert_default().push(trimmed(object));
                continue;
            }
            Some(Ok(Event::InitDone)) => {
                let change = store(Change::All(initial.take().unwrap_or_default()));
                first_list = !std::mem::replace(&mut listed, true);
                both(outage.over(), change)
            }
            Some(Ok(Event::Apply(object))) => {
                let change = store(Change::Set(Box::new(trimmed(object))));
                both(outage.over(), change)
            }
            Some(Ok(Event::Delete(object))) => {
                let change = store(Change::Remove(object.name_any()));
                both(outage.over(), change)
            }
        };
        if told.send(Told { update, listed: first_list, secret }).await.is_err() {
            return;
        }
    }
}

fn both(first: Update, second: Update) -> Update {
    Box::new(move |view| {
        first(view);
        second(view);
    })
}

/// Whether a watch fails for longer than a moment. A connection that ends, or history that is
/// forgotten, is repaired by the next attempt and is no news.
struct Outage {
    subject: String,
    remedy: &'static str,
    in_a_row: u32,
    last: Option<Instant>,
    told: Option<WatchFailure>,
}

impl Outage {
    fn new(subject: String, remedy: &'static str) -> Outage {
        Outage { subject, remedy, in_a_row: 0, last: None, told: None }
    }

    /// Takes a failure in; what to tell about it.
    fn failed(&mut self, error: &watcher::Error) -> Option<Update> {
        let now = Instant::now();
        let in_a_row = self.last.is_some_and(|last| now.duration_since(last) < QUIET);
        self.in_a_row = if in_a_row { self.in_a_row.saturating_add(1) } else { 1 };
        self.last = Some(now);
        if self.in_a_row < 2 || self.told.is_some() {
            return None;
        }
        let failure = explain(error, self.remedy);
        self.told = Some(failure.clone());
        let subject = self.subject.clone();
        Some(Box::new(move |view| {
            view.unwatched.insert(subject, failure);
        }))
    }

    /// Returns when what was told is over. A watch that goes on where it was cut says nothing until
    /// something changes, so the server itself is asked.
    async fn end(&self, client: &Client) {
        match &self.told {
            None => std::future::pending().await,
            Some(WatchFailure::Refused(_)) => tokio::time::sleep(QUIET).await,
            Some(WatchFailure::Unreachable(_)) => loop {
                tokio::time::sleep(PROBE_INTERVAL).await;
                let asked = tokio::time::timeout(PROBE_TIMEOUT, client.apiserver_version()).await;
                if matches!(asked, Ok(Ok(_))) {
                    return;
                }
            },
        }
    }

    /// The watch runs.
    fn over(&mut self) -> Update {
        (self.in_a_row, self.last) = (0, None);
        match self.told.take() {
            None => Box::new(|_| {}),
            Some(_) => {
                let subject = self.subject.clone();
                Box::new(move |view| {
                    view.unwatched.remove(&subject);
                })
            }
        }
    }
}

fn explain(error: &watcher::Error, remedy: &'static str) -> WatchFailure {
    use watcher::Error::{
        InitialListFailed, NoResourceVersion, WatchError, WatchFailed, WatchStartFailed,
    };
    let status = match error {
        InitialListFailed(kube::Error::Api(status))
        | WatchStartFailed(kube::Error::Api(status))
        | WatchFailed(kube::Error::Api(status))
        | WatchError(status) => status,
        NoResourceVersion => return WatchFailure::Refused(error.to_string()),
        // The innermost error is the system's reason; those around it say how requests are made.
        InitialListFailed(error) | WatchStartFailed(error) | WatchFailed(error) => {
            let mut reason: &dyn std::error::Error = error;
            while let Some(source) = reason.source() {
                reason = source;
            }
            return WatchFailure::Unreachable(reason.to_string());
        }
    };
    let remedy = match status.code {
        403 => remedy,
        404 => ": apply the definitions that `cairn crds` prints",
        _ => "",
    };
    WatchFailure::Refused(format!("{} ({}){remedy}", status.message, status.code))
}

/// What no decision reads only costs memory.
fn trimmed<K: Resource>(mut object: K) -> K {
    object.managed_fields_mut().clear();
    object
}

/// Doubles from 200 ms to [`RETRY_MAX`], with jitter so that the agents of a cluster do not return
/// in step; starts anew after [`QUIET`].
#[derive(Default)]
struct Backoff {
    failures: u32,
    last: Option<Instant>,
}

impl Iterator for Backoff {
    type Item = Duration;

    fn next(&mut self) -> Option<Duration> {
        let now = Instant::now();
        if self.last.is_some_and(|last| now.duration_since(last) > QUIET) {
            self.failures = 0;
        }
        self.last = Some(now);
        let base = Duration::from_millis(200) * 2u32.pow(self.failures.min(6));
        self.failures = self.failures.saturating_add(1);
        let nanos =
            std::time::SystemTime::UNIX_EPOCH.elapsed().map_or(0, |since| since.subsec_nanos());
        let jitter = f64::from(nanos % 1024) / 1024.0;
        Some(base.min(RETRY_MAX).mul_f64(0.75 + jitter / 4.0))
    }
}

impl kube::runtime::utils::Backoff for Backoff {
    /// Does nothing: a list that fails has begun well each time.
    fn reset(&mut self) {}
}
