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

/// A wanted spec and the Node that owns the object; `None` while there is nothing to write: the
/// object goes with its Node by its ownerReference.
pub type Wanted<S> = Option<(ObjectReference, S)>;

/// An object of which each node has one, written by its agent alone.
pub trait NodeObject:
    Resource<DynamicType = ()> + Clone + Debug + Serialize + DeserializeOwned + Send + Sync
{
    /// Its spec.
    type Spec: Clone + PartialEq + Send + Sync;
    /// The shortest time between two writes.
    const INTERVAL: Duration;

    /// A new object of the name.
    fn named(name: &str, spec: Self::Spec) -> Self;
    /// The object's spec.
    fn spec(&self) -> &Self::Spec;
}

impl NodeObject for BGPNode {
    type Spec = BGPNodeSpec;
    const INTERVAL: Duration = Duration::ZERO;

    fn named(name: &str, spec: BGPNodeSpec) -> BGPNode {
        BGPNode::new(name, spec)
    }

    fn spec(&self) -> &BGPNodeSpec {
        &self.spec
    }
}

impl NodeObject for BGPNodeStatus {
    type Spec = BGPNodeStatusSpec;
    /// No agent watches these objects, but people's screens and the API server's storage do:
    /// sessions that flap are one write a second and not one a transition.
    const INTERVAL: Duration = Duration::from_secs(1);

    fn named(name: &str, spec: BGPNodeStatusSpec) -> BGPNodeStatus {
        BGPNodeStatus::new(name, spec)
    }

    fn spec(&self) -> &BGPNodeStatusSpec {
        &self.spec
    }
}

/// Keeps the object `name` as wanted until the sender is gone.
pub async fn keep<K: NodeObject>(
    client: Client,
    name: String,
    mut wanted: watch::Receiver<Wanted<K::Spec>>,
) {
    let api: Api<K> = Api::all(client);
    let mut failures = 0u32;
    loop {
        let value = wanted.borrow_and_update().clone();
        let written = match value {
            None => Ok(()),
            Some((owner, spec)) => write(&api, &name, owner, spec).await,
        };
        match written {
            Ok(()) => {
                failures = 0;
                tokio::time::sleep(K::INTERVAL).await;
                if wanted.changed().await.is_err() {
                    return;
                }
            }
            Err(error) => {
                if failures == 0 {
                    let kind = K::kind(&());
                    match error {
                        kube::Error::Api(_) => {
                            tracing::warn!(%kind, %error, "cannot write the node's object, retrying")
                        }
                        // That the server is away is told by the watches.
                        _ => tracing::debug!(%kind, %error, "cannot write the node's object yet"),
                    }
                }
                failures = failures.saturating_add(1);
                tokio::time::sleep(retry_after(failures)).await;
                if wanted.has_changed().is_err() {
                    return;
                }
            }
        }
    }
}

async fn write<K: NodeObject>(
    api: &Api<K>,
    name: &str,
    owner: ObjectReference,
    spec: K::Spec,
) -> Result<(), kube::Error> {
    let mut object = K::named(name, spec);
    object.owner_references_mut().push(OwnerReference {
        api_version: "v1".into(),
        kind: "Node".into(),
        name: owner.name,
        uid: owner.uid,
        ..OwnerReference::default()
    });
    match api.get_opt(name).await? {
        None => api.create(&PostParams::default(), &object).await.map(drop),
        Some(old)
            if old.spec() == object.spec()
                && old.owner_references() == object.owner_references() =>
        {
            Ok(())
        }
        Some(old) => {
            object.meta_mut().resource_version = old.resource_version();
            api.replace(name, &PostParams::default(), &object).await.map(drop)
        }
    }
}

fn retry_after(failures: u32) -> Duration {
    RETRY_MIN.saturating_mul(1 << failures.min(6)).min(RETRY_MAX)
}

const RETRY_MIN: Duration = Duration::from_millis(100);
const RETRY_MAX: Duration = Duration::from_secs(5);
