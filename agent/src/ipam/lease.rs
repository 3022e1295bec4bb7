//! The node's own Lease: the sign that its agent may go on handing out addresses.

use std::time::Duration;

use cairn_ipam::Standing;
use cairn_ipam::fence::OwnFence;
use k8s_openapi::api::coordination::v1::{Lease, LeaseSpec};
use k8s_openapi::api::core::v1::Node;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::MicroTime;
use k8s_openapi::jiff::Timestamp;
use kube::api::{Api, PostParams};
use tokio::sync::watch;

use super::error::{IpamError, call};
use super::{Shared, member_uid};

/// The name of the Lease of a node.
pub(super) fn lease_name(node: &str) -> String {
    format!("{LEASE_PREFIX}{node}")
}

/// What the names of nodes' Leases begin with.
pub(super) const LEASE_PREFIX: &str = "cairn-node-";

/// Who holds a node's Lease: the Node's UID and the machine's boot id.
pub(super) fn holder_identity(node_uid: &str, boot_id: &str) -> String {
    format!("{node_uid}/{boot_id}")
}

/// Renews the Lease for as long as this agent may act for its Node, and raises the fence with each
/// write that succeeds.
pub(super) async fn run(shared: Shared, fence: &watch::Sender<OwnFence>) {
    let leases: Api<Lease> = Api::namespaced(shared.client.clone(), &shared.options.namespace);
    let nodes: Api<Node> = Api::all(shared.client.clone());
    let interval = (shared.options.offline / 30).clamp(INTERVAL_MIN, INTERVAL_MAX);
    let mut view = shared.view.clone();
    loop {
        let pause = match shared.membership() {
            Ok(uid) => {
                let sent = shared.now();
                match write(&shared, &leases, &nodes, &uid).await {
                    Ok(()) => {
                        fence.send_modify(|fence| fence.wrote(sent, shared.now()));
                        shared.reports.report("lease", Vec::new());
                        interval
                    }
                    Err(error) => {
                        if matches!(error, IpamError::NotOurs { .. }) {
                            fence.send_modify(OwnFence::lower);
                        }
                        shared.reports.report("lease", vec![error.to_string()]);
                        INTERVAL_MIN
                    }
                }
            }
            Err(_) => {
                shared.reports.report("lease", Vec::new());
                INTERVAL_MAX
            }
        };
        let acted = shared.membership();
        let changed = async {
            while view.changed().await.is_ok() {
                if shared.membership() != acted {
                    return;
                }
            }
            std::future::pending::<()>().await;
        };
        // A Node that appears or changes machine is acted on at once, other changes are not.
        let _ = tokio::time::timeout(pause, changed).await;
    }
}

async fn write(
    shared: &Shared,
    leases: &Api<Lease>,
    nodes: &Api<Node>,
    uid: &str,
) -> Result<(), IpamError> {
    let options = &shared.options;
    let name = lease_name(&options.node);
    let holder = holder_identity(uid, &options.boot_id);
    let what = || format!("cannot write this node's Lease {name}");
    let now = MicroTime(Timestamp::now());
    let promise = i32::try_from(options.offline.as_secs()).unwrap_or(i32::MAX);
    let old = call(what, leases.get_opt(&name)).await?;
    let mut lease = old.clone().unwrap_or_default();
    lease.metadata.name = Some(name.clone());
    let spec = lease.spec.get_or_insert_with(LeaseSpec::default);
    if spec.holder_identity.as_deref() != Some(&holder) {
        // Somebody else wrote it last, or nobody did. Only the machine that the Node object names
        // now may take it over; the view may be old.
        let node = call(what, nodes.get_opt(&options.node)).await?;
        let standing = node
            .as_ref()
            .ok_or(Standing::NodeMissing)
            .and_then(|node| member_uid(node, &options.boot_id));
        if standing.as_deref() != Ok(uid) {
            return Err(IpamError::NotOurs { lease: name });
        }
        spec.holder_identity = Some(holder);
        spec.acquire_time = Some(now.clone());
        let taken = i32::from(old.is_some());
        spec.lease_transitions = Some(spec.lease_transitions.unwrap_or(0).saturating_add(taken));
    }
    spec.lease_duration_seconds = Some(promise);
    spec.renew_time = Some(now);
    let params = PostParams::default();
    match old {
        None => call(what, leases.create(&params, &lease)).await?,
        // The resourceVersion that was read makes a lost race a conflict.
        Some(_) => call(what, leases.replace(&name, &params, &lease)).await?,
    };
    Ok(())
}

/// Renewals of the shortest fence.
const INTERVAL_MIN: Duration = Duration::from_secs(1);
/// Renewals of the longest.
const INTERVAL_MAX: Duration = Duration::from_secs(10);
