//! The watches: from the API server's events to one [`ClusterView`].
//!
//! ```text
//! one task a kind ──Update (a change to the view)──► this task ──ClusterView──► planner, ipam
//! ```
//!
//! Nothing is written from here. A burst of events becomes one new view. While the API server is
//! away the last view stands.

use std::collections::BTreeMap;
use std::fmt::Debug;
use std::sync::Arc;
use std::time::Duration;

use cairn_api::{BGPAdvertisement, BGPConfiguration, BGPNode, BGPPeer, BGPPolicy, IPBlock, IPPool};
use futures::StreamExt;
use k8s_openapi::api::core::v1::Node;
use kube::runtime::watcher::{self, Event, InitialListStrategy};
use kube::runtime::{WatchStreamExt, watcher as watch_stream};
use kube::{Api, Client, Resource, ResourceExt};
use serde::de::DeserializeOwned;
use tokio::sync::{mpsc, watch};

use crate::view::ClusterView;

/// Updates that wait for this task at most; a watch that is faster waits.
const UPDATES_MAX: usize = 256;

/// How long events are gathered before a new view goes out. Short, since a block that another node
/// claimed is waiting for it.
const GATHER: Duration = Duration::from_millis(5);

/// The longest wait before a watch that failed is tried again.
const RETRY_MAX: Duration = Duration::from_secs(5);

type Update = Box<dyn FnOnce(&mut ClusterView) + Send>;

/// What a watching task tells: a change, or that its kind's first list is complete.
enum Told {
    Change(Update),
    Listed(Update),
}

/// Starts the watches of the node `name`; the receiver always holds the newest view.
pub fn start(client: &Client, name: &str) -> watch::Receiver<Arc<ClusterView>> {
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
    tokio::spawn(gather(updates, publish));
    views
}

/// The number of kinds that [`start`] follows.
const KINDS: usize = 8;

async fn gather(mut updates: mpsc::Receiver<Told>, publish: watch::Sender<Arc<ClusterView>>) {
    let mut view = ClusterView::default();
    let mut listed = 0;
    let mut take = |view: &mut ClusterView, told| match told {
        Told::Change(update) => update(view),
        Told::Listed(update) => {
            update(view);
            listed += 1;
            view.synced = listed >= KINDS;
        }
    };
    while let Some(told) = updates.recv().await {
        take(&mut view, told);
        tokio::time::sleep(GATHER).await;
        while let Ok(told) = updates.try_recv() {
            take(&mut view, told);
        }
        if publish.is_closed() {
            return;
        }
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
trait Watched:
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
    tokio::spawn(run(Api::all(client.clone()), config, told.clone(), store));
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
    tokio::spawn(run(Api::all(client.clone()), config, told.clone(), store));
}

enum Change<K> {
    All(Vec<K>),
    Set(Box<K>),
    Remove(String),
}

async fn run<K: Watched>(
    api: Api<K>,
    config: watcher::Config,
    told: mpsc::Sender<Told>,
    store: impl Fn(Change<K>) -> Update,
) {
    let kind = K::kind(&()).into_owned();
    let config =
        watcher::Config { initial_list_strategy: InitialListStrategy::default(), ..config };
    let mut events = std::pin::pin!(watch_stream(api, config).backoff(Backoff::default()));
    let mut initial: Option<Vec<K>> = None;
    let mut listed = false;
    let mut failing = false;
    while let Some(event) = events.next().await {
        let change = match event {
            Err(error) => {
                if !failing {
                    tracing::warn!(kind, %error, "cannot watch: the last view stands, retrying");
                    failing = true;
                }
                continue;
            }
            Ok(Event::Init) => {
                initial = Some(Vec::new());
                continue;
            }
            Ok(Event::InitApply(object)) => {
                initial.get_or_insert_default().push(trimmed(object));
                continue;
            }
            Ok(Event::InitDone) => {
                if failing {
                    tracing::info!(kind, "watching again");
                }
                let update = store(Change::All(initial.take().unwrap_or_default()));
                if std::mem::replace(&mut listed, true) {
                    Told::Change(update)
                } else {
                    Told::Listed(update)
                }
            }
            Ok(Event::Apply(object)) => Told::Change(store(Change::Set(Box::new(trimmed(object))))),
            Ok(Event::Delete(object)) => Told::Change(store(Change::Remove(object.name_any()))),
        };
        failing = false;
        if told.send(change).await.is_err() {
            return;
        }
    }
}

/// What no decision reads only costs memory.
fn trimmed<K: Resource>(mut object: K) -> K {
    object.managed_fields_mut().clear();
    object
}

/// Doubles from 200 ms to [`RETRY_MAX`], with jitter so that the agents of a cluster do not return
/// in step; a success starts anew.
#[derive(Default)]
struct Backoff {
    failures: u32,
}

impl Iterator for Backoff {
    type Item = Duration;

    fn next(&mut self) -> Option<Duration> {
        let base = Duration::from_millis(200) * 2u32.pow(self.failures.min(6));
        self.failures = self.failures.saturating_add(1);
        let nanos =
            std::time::SystemTime::UNIX_EPOCH.elapsed().map_or(0, |since| since.subsec_nanos());
        let jitter = f64::from(nanos % 1024) / 1024.0;
        Some(base.min(RETRY_MAX).mul_f64(0.75 + jitter / 4.0))
    }
}

impl kube::runtime::utils::Backoff for Backoff {
    fn reset(&mut self) {
        self.failures = 0;
    }
}
