//! What an agent writes of its own node: its BGPNode and its BGPNodeStatus.
//!
//! Both have one writer, this node, so a write is: read, compare, replace with the version read.
//! A write that fails is retried with the then newest value; nothing queues up.

use std::fmt::Debug;
use std::time::{Duration, Instant};

use cairn_api::{
    BGPNode, BGPNodeSpec, BGPNodeStatus, BGPNodeStatusSpec, LABEL_CHANGE_OVER, ObjectReference,
};
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
        let label = spec.change_over.map(|change| (LABEL_CHANGE_OVER.to_owned(), change.label()));
        let mut object = BGPNodeStatus::new(name, spec);
        object.metadata.labels = label.map(|label| [label].into());
        object
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

/// When a status is worth a write. What counts repairs grows all the time while another program is at
/// work: it is told at once and then once in `COUNTS_INTERVAL`, or with whatever else is new.
#[derive(Debug, Default)]
pub struct StatusPace {
    counts_due: Option<Instant>,
}

impl StatusPace {
    /// Until when `new` does not take the place of `held`; `None`: it does, now.
    pub fn rests(
        &mut self,
        now: Instant,
        held: &Wanted<BGPNodeStatusSpec>,
        new: &Wanted<BGPNodeStatusSpec>,
    ) -> Option<Instant> {
        let repairs = |status: &Wanted<BGPNodeStatusSpec>| {
            status.as_ref().map(|(_, spec)| spec.repairs).unwrap_or_default()
        };
        if repairs(held) == repairs(new) {
            return None;
        }
        let counts_alone = held.clone().is_some_and(|(owner, held)| {
            Some((owner, BGPNodeStatusSpec { repairs: repairs(new), ..held })) == *new
        });
        let rests = self.counts_due.filter(|due| counts_alone && now < *due);
        if rests.is_none() {
            self.counts_due = Some(now + COUNTS_INTERVAL);
        }
        rests
    }
}

const COUNTS_INTERVAL: Duration = Duration::from_secs(60);
const RETRY_MIN: Duration = Duration::from_millis(100);
const RETRY_MAX: Duration = Duration::from_secs(5);

#[cfg(test)]
mod tests {
    use cairn_api::RepairsStatus;

    use super::*;

    #[test]
    fn counts_that_grow_without_end_are_written_once_a_minute() {
        let status = |peers: &str, routes: u64| {
            let repairs = RepairsStatus { routes, ..RepairsStatus::default() };
            let spec = BGPNodeStatusSpec { peers: peers.into(), repairs, ..Default::default() };
            Some((ObjectReference { name: "n1".into(), uid: "1".into() }, spec))
        };
        let (mut pace, start) = (StatusPace::default(), Instant::now());
        let at = |secs| start + Duration::from_secs(secs);
        let (none, some) = (None, status("0/1", 0));
        assert_eq!(pace.rests(at(0), &none, &some), None);
        // The first repair is told at once, and the others wait.
        assert_eq!(pace.rests(at(1), &some, &status("0/1", 1)), None);
        assert_eq!(pace.rests(at(2), &status("0/1", 1), &status("0/1", 2)), Some(at(61)));
        assert_eq!(pace.rests(at(60), &status("0/1", 1), &status("0/1", 9)), Some(at(61)));
        assert_eq!(pace.rests(at(60), &status("0/1", 1), &status("1/1", 1)), None);
        assert_eq!(pace.rests(at(61), &status("0/1", 1), &status("0/1", 9)), None);
        // Whatever else is new takes them along.
        assert_eq!(pace.rests(at(62), &status("0/1", 9), &status("1/1", 12)), None);
        assert_eq!(pace.rests(at(63), &status("1/1", 12), &status("1/1", 13)), Some(at(122)));
        assert_eq!(pace.rests(at(64), &status("1/1", 12), &none), None);
    }
}
