//! The watches: from the API server's events to one [`ClusterView`].
//!
//! ```text
//! one task a kind ──Update (a change to the view)──► this task ──ClusterView──► planner, ipam
//! one a Secret ─────────────────┘   ▲ which Secrets peers name
//! ```
//!
//! Nothing is written from here. A burst of events becomes one new view. While the API server is
//! away the last view stands, at first the one that an earlier process has left. When history went
//! backwards every kind is listed anew; what is known meanwhile stays visible, since forwarding goes
//! on, and counts for nothing else ([`ClusterView::synced`]).
//!
//! A watch that is cut goes on where it stood. After that of this node's blocks, of which there are
//! few, a list follows, so that a block which an older history lacks is missed within seconds.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Debug;
use std::sync::Arc;
use std::time::Duration;

use cairn_api::{BGPConfiguration, BGPNode, IPBlock};
use cairn_ipam::{Rule, Rules};
use k8s_openapi::api::core::v1::Node;
use kube::{Api, Client, Resource};
use serde::de::DeserializeOwned;
use tokio::sync::{mpsc, watch};
use tokio::task::AbortHandle;
use tokio::time::Instant;

use crate::secrets::Secrets;
use crate::until;
use crate::view::{ClusterView, Namespace};

mod feed;
mod nodes;
mod outage;
mod trim;

pub(crate) use feed::{Change, Keep, Recovery};
use feed::{Feed, Follower};
use nodes::{Nodes, Seen};
use outage::Outage;
use trim::{NamespaceMeta, Trim, trimmed};

/// Updates that wait for this task at most; a watch that is faster waits.
const UPDATES_MAX: usize = 256;

/// How long events are gathered before a new view goes out. Short, since a block that another node
/// claimed is waiting for it.
const GATHER: Duration = Duration::from_millis(5);

/// What is known of the cluster.
pub(crate) struct Known {
    pub(crate) view: ClusterView,
    /// Those of which the view holds a part.
    nodes: Nodes,
}

/// A change to what is known; says whether the view differs with it.
type Update = Box<dyn FnOnce(&mut Known) -> bool + Send>;

/// What a watching task tells.
pub(crate) struct Told {
    update: Update,
    listed: Option<Listed>,
    /// The watch of a Secret that tells it; those come and go.
    secret: Option<u64>,
}

/// A list that is complete.
struct Listed {
    kind: String,
    /// In which it began.
    epoch: u64,
    /// It is older than what had been seen of the kind before it was asked for.
    went_back: bool,
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
    /// What an earlier process knew: the first view, until the API server has shown everything.
    pub restored: Option<ClusterView>,
    /// Which safety rules hold: all, but in tests.
    pub rules: Rules,
}

/// Starts the watches of a node; the receiver always holds the newest view.
pub fn start(client: &Client, options: WatchOptions) -> watch::Receiver<Arc<ClusterView>> {
    let WatchOptions { node: name, namespace, relist, restored, rules } = options;
    let (told, updates) = mpsc::channel(UPDATES_MAX);
    let watches = Watches { client: client.clone(), node: name.clone(), told, relist };
    let own_node = format!("metadata.name={name}");
    let own_blocks = format!("spec.node.name={name}");
    let default = "metadata.name=default".to_owned();
    let nodes = Nodes::new(&name);

    let kinds = [
        watches.one::<Node>(own_node, |view| &mut view.node),
        watches.all(None, |view| &mut view.pools),
        watches.own_blocks(own_blocks, rules),
        watches.all(None, |view| &mut view.reservations),
        watches.kind(
            None,
            Box::new(|object: NamespaceMeta| Arc::new(Namespace::from(object))),
            |known, change| change.apply_shared(&mut known.view.namespaces),
        ),
        watches.one::<BGPConfiguration>(default, |view| &mut view.bgp_configuration),
        watches.kind(
            None,
            Box::new(move |object: BGPNode| Seen::of(object, &name)),
            |known, change| known.nodes.take(change, &mut known.view),
        ),
        watches.all(None, |view| &mut view.bgp_peers),
        watches.all(None, |view| &mut view.bgp_policies),
        watches.all(None, |view| &mut view.bgp_advertisements),
        watches.all(None, |view| &mut view.node_configurations),
    ];

    let mut view = restored.unwrap_or_default();
    view.restored = view != ClusterView::default();
    (view.synced, view.epoch) = (false, *watches.relist.borrow());
    let (publish, views) = watch::channel(Arc::new(view.clone()));
    let relist = watches.relist.clone();
    let secrets = Secrets::new(watches, namespace);
    let known = Known { view, nodes };
    let gatherer =
        Gatherer { known, kinds: kinds.len(), listed: BTreeSet::new(), secrets, publish };
    tokio::spawn(gatherer.run(updates, relist));
    views
}

/// The one owner of what is known.
struct Gatherer {
    known: Known,
    /// How many kinds are followed.
    kinds: usize,
    /// Those that were listed in the view's epoch.
    listed: BTreeSet<String>,
    secrets: Secrets,
    publish: watch::Sender<Arc<ClusterView>>,
}

impl Gatherer {
    async fn run(mut self, mut updates: mpsc::Receiver<Told>, mut relist: watch::Receiver<u64>) {
        let mut due: Option<Instant> = None;
        self.secrets.follow(&mut self.known.view);
        loop {
            let told = tokio::select! {
                biased;
                () = self.publish.closed() => return,
                // At once: nothing may count any more for whoever looks now.
                epoch = risen(&mut relist) => {
                    self.begin(epoch);
                    due = None;
                    self.publish();
                    continue;
                }
                () = until(due) => {
                    due = None;
                    self.publish();
                    continue;
                }
                told = updates.recv() => told,
            };
            let Some(told) = told else { return };
            if self.take(told) {
                due.get_or_insert_with(|| Instant::now() + GATHER);
            }
        }
    }

    fn begin(&mut self, epoch: u64) {
        tracing::warn!("the API server's history went backwards: everything is listed anew");
        let view = &mut self.known.view;
        (view.epoch, view.synced, view.went_back) = (epoch, false, false);
        self.listed.clear();
    }

    /// Whether the view differs now.
    fn take(&mut self, told: Told) -> bool {
        if told.secret.is_some_and(|watch| !self.secrets.follows(watch)) {
            return false;
        }
        let mut differs = (told.update)(&mut self.known);
        let view = &mut self.known.view;
        let listed = told.listed.filter(|listed| listed.epoch == view.epoch);
        let Some(Listed { kind, went_back, .. }) = listed else { return differs };
        differs |= went_back && !view.went_back;
        view.went_back |= went_back;
        // Secrets are not waited for: a peer without its password comes later.
        if told.secret.is_some() || view.synced {
            return differs;
        }
        self.listed.insert(kind);
        if self.listed.len() < self.kinds {
            return differs;
        }
        (view.synced, view.restored) = (true, false);
        true
    }

    fn publish(&mut self) {
        let Known { view, nodes } = &mut self.known;
        nodes.follow(view);
        self.secrets.follow(view);
        self.publish.send_replace(Arc::new(view.clone()));
    }
}

/// A kind that is watched.
pub(crate) trait Watched:
    Resource<DynamicType = ()> + Clone + Debug + DeserializeOwned + Send + Sync + 'static
{
}

impl<K> Watched for K where
    K: Resource<DynamicType = ()> + Clone + Debug + DeserializeOwned + Send + Sync + 'static
{
}

/// Starts watches.
#[derive(Clone)]
pub(crate) struct Watches {
    pub(crate) client: Client,
    node: String,
    told: mpsc::Sender<Told>,
    relist: watch::Receiver<u64>,
}

/// What one watch follows.
pub(crate) struct Subject<K, V> {
    pub(crate) api: Api<K>,
    /// A field selector.
    pub(crate) fields: Option<String>,
    pub(crate) keep: Keep<K, V>,
    /// What cannot be watched when the server refuses.
    pub(crate) name: String,
    /// What to do about a missing right.
    pub(crate) remedy: &'static str,
    /// What follows when the watch is cut.
    pub(crate) recovery: Recovery,
    /// The number of the watch of a Secret.
    pub(crate) secret: Option<u64>,
}

impl Watches {
    /// Follows objects of a kind into a map by name.
    fn all<K: Trim + PartialEq>(
        &self,
        fields: Option<String>,
        place: fn(&mut ClusterView) -> &mut BTreeMap<String, K>,
    ) -> AbortHandle {
        self.kind(fields, Box::new(trimmed::<K>), move |known, change| {
            change.apply(place(&mut known.view))
        })
    }

    /// Follows this node's blocks.
    fn own_blocks(&self, fields: String, rules: Rules) -> AbortHandle {
        let careful = rules.hold(Rule::NoticeOldHistory);
        let recovery = if careful { Recovery::Check } else { Recovery::Resume };
        let keep = Box::new(trimmed::<IPBlock>);
        self.chosen(Some(fields), keep, recovery, |known, change| {
            let (view, is_list) = (&mut known.view, matches!(change, Change::All(_)));
            view.own_lists = view.own_lists.wrapping_add(u64::from(is_list));
            change.apply(&mut view.own_blocks) || is_list
        })
    }

    /// Follows the one object that `fields` selects.
    fn one<K: Trim + PartialEq>(
        &self,
        fields: String,
        place: fn(&mut ClusterView) -> &mut Option<K>,
    ) -> AbortHandle {
        self.kind(Some(fields), Box::new(trimmed::<K>), move |known, change| {
            let (held, new) = (place(&mut known.view), change.into_one());
            let differs = *held != new;
            *held = new;
            differs
        })
    }

    /// Follows a kind of which `keep` says what is kept, and `store` takes the changes.
    fn kind<K: Watched, V: Send + 'static>(
        &self,
        fields: Option<String>,
        keep: Keep<K, V>,
        store: impl Fn(&mut Known, Change<V>) -> bool + Clone + Send + 'static,
    ) -> AbortHandle {
        self.chosen(fields, keep, Recovery::Resume, store)
    }

    fn chosen<K: Watched, V: Send + 'static>(
        &self,
        fields: Option<String>,
        keep: Keep<K, V>,
        recovery: Recovery,
        store: impl Fn(&mut Known, Change<V>) -> bool + Clone + Send + 'static,
    ) -> AbortHandle {
        let api = Api::all(self.client.clone());
        let remedy = ": apply Cairn's ClusterRole and its binding";
        let name = K::kind(&()).into_owned();
        self.follow(Subject { api, fields, keep, name, remedy, recovery, secret: None }, store)
    }

    /// Follows `subject` until nobody is told any more. `store` takes a change in and says whether the
    /// view differs with it.
    pub(crate) fn follow<K: Watched, V: Send + 'static>(
        &self,
        subject: Subject<K, V>,
        store: impl Fn(&mut Known, Change<V>) -> bool + Clone + Send + 'static,
    ) -> AbortHandle {
        tokio::spawn(self.clone().run(subject, store)).abort_handle()
    }

    async fn run<K: Watched, V: Send + 'static>(
        mut self,
        subject: Subject<K, V>,
        store: impl Fn(&mut Known, Change<V>) -> bool + Clone + Send + 'static,
    ) {
        let Subject { api, fields, keep, name, remedy, recovery, secret } = subject;
        let follower = Follower { node: self.node, subject: name.clone() };
        let mut feed = Feed::new(api, fields, keep, follower, recovery);
        let mut outage = Outage::new(remedy);
        let mut epoch = *self.relist.borrow_and_update();
        loop {
            let seen = tokio::select! {
                biased;
                risen = risen(&mut self.relist) => {
                    epoch = risen;
                    feed.begin_anew();
                    continue;
                }
                seen = feed.next() => Some(seen),
                () = outage.end(&self.client) => None,
            };
            let (failure, change) = match seen {
                Some(Err(error)) => match outage.failed(&error) {
                    Some(failure) => (Some(failure), None),
                    None => continue,
                },
                Some(Ok(change)) => (None, Some(change)),
                None => (None, None),
            };
            let runs = failure.is_none() && outage.over();
            let listed = matches!(change, Some(Change::All(_))).then(|| Listed {
                kind: name.clone(),
                epoch,
                went_back: feed.went_back(),
            });
            let (subject, store) = (name.clone(), store.clone());
            let update: Update = Box::new(move |known| {
                let noted = match failure {
                    Some(failure) => outage::begins(&mut known.view, subject, failure),
                    None => runs && outage::ends(&mut known.view, &subject),
                };
                change.is_some_and(|change| store(known, change)) || noted
            });
            if self.told.send(Told { update, listed, secret }).await.is_err() {
                return;
            }
        }
    }
}

/// Waits until the epoch rises.
async fn risen(relist: &mut watch::Receiver<u64>) -> u64 {
    if relist.changed().await.is_err() {
        // Nobody is left who could raise it.
        std::future::pending::<()>().await;
    }
    *relist.borrow_and_update()
}
