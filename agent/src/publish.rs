//! What an agent writes of its own node: its BGPNode and its BGPNodeStatus.
//!
//! Both have one writer, this node, so a write is: read, compare, replace with the version read.
//! A write that fails is retried with the then newest value; nothing queues up.

use std::fmt::Debug;
use std::time::Duration;

use cairn_api::{BGPNode, BGPNodeSpec, BGPNodeStatus, BGPNodeStatusSpec, ObjectReference};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::OwnerReference;
use kube::api::PostParams;
use kube::{Api, Client, Resource, ResourceExt};
use serde::Serialize;
use serde::de::DeserializeOwned;
use tokio::sync::watch;

/// A wanted spec and the Node that owns the object; `None` while there is nothing to write.
pub type Wanted<S> = Option<(ObjectReference, S)>;

/// Keeps the BGPNode `name` as wanted. Without a wanted one nothing is written: the object goes
/// with its Node by its ownerReference.
pub async fn bgp_node(client: Client, name: String, wanted: watch::Receiver<Wanted<BGPNodeSpec>>) {
    keep(
        Api::all(client),
        wanted,
        Duration::ZERO,
        |spec| BGPNode::new(&name, spec),
        |object| &object.spec,
    )
    .await;
}

/// Keeps the BGPNodeStatus `name` as reported, at most one write in [`STATUS_INTERVAL`].
pub async fn bgp_node_status(
    client: Client,
    name: String,
    wanted: watch::Receiver<Wanted<BGPNodeStatusSpec>>,
) {
    let api = Api::all(client);
    keep(
        api,
        wanted,
        STATUS_INTERVAL,
        |spec| BGPNodeStatus::new(&name, spec),
        |object| &object.spec,
    )
    .await;
}

/// Keeps one object of this node as wanted, owned by the Node.
async fn keep<K, S>(
    api: Api<K>,
    mut wanted: watch::Receiver<Wanted<S>>,
    interval: Duration,
    object: impl Fn(S) -> K,
    spec: impl Fn(&K) -> &S,
) where
    K: Resource<DynamicType = ()> + Clone + Debug + Serialize + DeserializeOwned,
    S: Clone + PartialEq,
{
    follow(&mut wanted, K::kind(&()).as_ref(), interval, async |wanted: &Wanted<S>| {
        let Some((owner, value)) = wanted else {
            return Ok(());
        };
        let mut object = object(value.clone());
        object.owner_references_mut().push(OwnerReference {
            api_version: "v1".into(),
            kind: "Node".into(),
            name: owner.name.clone(),
            uid: owner.uid.clone(),
            ..OwnerReference::default()
        });
        let name = object.name_any();
        match api.get_opt(&name).await? {
            None => api.create(&PostParams::default(), &object).await.map(drop),
            Some(old)
                if spec(&old) == spec(&object)
                    && old.owner_references() == object.owner_references() =>
            {
                Ok(())
            }
            Some(old) => {
                object.meta_mut().resource_version = old.resource_version();
                api.replace(&name, &PostParams::default(), &object).await.map(drop)
            }
        }
    })
    .await;
}

/// Calls `write` with the newest value whenever it changed, and again after a failure, until the
/// sender is gone. Waits `interval` between two writes.
async fn follow<T: Clone>(
    values: &mut watch::Receiver<T>,
    what: &str,
    interval: Duration,
    write: impl AsyncFn(&T) -> Result<(), kube::Error>,
) {
    let mut failures = 0u32;
    loop {
        let value = values.borrow_and_update().clone();
        match write(&value).await {
            Ok(()) => {
                failures = 0;
                tokio::time::sleep(interval).await;
                if values.changed().await.is_err() {
                    return;
                }
            }
            Err(error) => {
                if failures == 0 {
                    tracing::warn!(object = what, %error, "cannot write, retrying");
                }
                failures = failures.saturating_add(1);
                tokio::time::sleep(retry_after(failures)).await;
                if values.has_changed().is_err() {
                    return;
                }
            }
        }
    }
}

fn retry_after(failures: u32) -> Duration {
    RETRY_MIN.saturating_mul(1 << failures.min(5)).min(RETRY_MAX)
}

const RETRY_MIN: Duration = Duration::from_millis(100);
const RETRY_MAX: Duration = Duration::from_secs(5);

/// No agent watches these objects, but people's screens and the API server's storage do: sessions
/// that flap are one write a second and not one a transition.
const STATUS_INTERVAL: Duration = Duration::from_secs(1);
