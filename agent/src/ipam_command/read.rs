//! Reads of the API server: consistent, in pages, each kind reduced to what is needed of it before
//! the next page comes.

use std::collections::BTreeMap;
use std::fmt::Debug;
use std::net::IpAddr;
use std::time::Duration;

use anyhow::bail;
use cairn_api::{
    BGPNode, BGPNodeStatus, BlockAllocation, ConditionStatus, FINALIZER, IPBlock, IPPool,
    IPReservation,
};
use cairn_ipam::mark::{ANNOTATION_EARLIER_OFF, ANNOTATION_MACHINE_OFF, ANNOTATION_TAKEN_OVER};
use ipnet::IpNet;
use k8s_openapi::api::coordination::v1::Lease;
use k8s_openapi::api::core::v1::{Node, Pod};
use k8s_openapi::api::networking::v1::ServiceCIDR;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;
use k8s_openapi::jiff::Timestamp;
use kube::api::{Api, ListParams};
use kube::{Resource, ResourceExt};
use serde::de::DeserializeOwned;

use super::Surroundings;
use super::snapshot::{
    AllocationSeen, BlockSeen, LeaseSeen, NodeSeen, PodSeen, PoolSeen, Snapshot, SpeakerSeen,
};

/// The name of the Lease of a node, and the node of such a name.
const LEASE_PREFIX: &str = "cairn-node-";

/// All that the API server knows of addresses.
pub(super) async fn snapshot(from: &Surroundings) -> anyhow::Result<Snapshot> {
    let mut seen = Snapshot { now_secs: now_secs(), ..Snapshot::default() };
    pools(from, &mut seen).await?;
    let client = &from.client;
    let all = ListParams::default();
    for (nets, unread) in reservations(from).await? {
        seen.reserved.extend(nets);
        seen.unread.extend(unread);
    }
    // Blocks before pods: a pod that starts in between has an address that no block shows, which
    // the second look settles; one that ends would look like a leak.
    seen.blocks = blocks(from, "", &mut seen.unread).await?;
    seen.nodes = list(Api::all(client.clone()), &all, |node| Some(self::node(&node)))
        .await?
        .into_iter()
        .collect();
    let speakers = |object: BGPNode| {
        let spec = &object.spec;
        let addresses = spec.addresses.iter().filter_map(|text| text.parse().ok()).collect();
        Some((object.name_any(), SpeakerSeen { asn: spec.asn, addresses }))
    };
    seen.speakers = list(Api::all(client.clone()), &all, speakers).await?.into_iter().collect();
    let leases: Api<Lease> = Api::namespaced(client.clone(), &from.namespace);
    let of_nodes = |lease: Lease| {
        let name = lease.name_any();
        Some((name.strip_prefix(LEASE_PREFIX)?.to_owned(), self::lease(&lease)))
    };
    seen.leases = list(leases, &all, of_nodes).await?.into_iter().collect();
    let problems = |object: BGPNodeStatus| {
        let failed = object.spec.routes.failed;
        let routes = (failed > 0)
            .then(|| format!("{failed} routes are not in the kernel: `cairn status` names them"));
        let all: Vec<String> = object.spec.problems.iter().cloned().chain(routes).collect();
        Some((object.name_any(), all))
    };
    seen.problems = list(Api::all(client.clone()), &all, problems).await?.into_iter().collect();
    seen.pods = list(Api::all(client.clone()), &all, |pod| self::pod(&pod)).await?;
    let ranges = |object: ServiceCIDR| {
        let name = object.name_any();
        let cidrs = object.spec?.cidrs.unwrap_or_default();
        Some(cidrs.into_iter().filter_map(|c| Some((c.parse().ok()?, name.clone()))).collect())
    };
    let ranges: Vec<Vec<(IpNet, String)>> =
        list(Api::<ServiceCIDR>::all(client.clone()), &all, ranges).await?;
    seen.service_cidrs = ranges.into_iter().flatten().collect();
    Ok(seen)
}

/// The pools.
pub(super) async fn pools(from: &Surroundings, seen: &mut Snapshot) -> anyhow::Result<()> {
    let api = Api::all(from.client.clone());
    for pool in list(api, &ListParams::default(), |pool| Some(self::pool(&pool))).await? {
        match pool {
            Ok(pool) => seen.pools.push(pool),
            Err(unread) => seen.unread.push(unread),
        }
    }
    Ok(())
}

/// Reserved networks, each with the name of its IPReservation.
pub(super) async fn reserved(from: &Surroundings) -> anyhow::Result<Vec<(IpNet, String)>> {
    Ok(reservations(from).await?.into_iter().flat_map(|(nets, _)| nets).collect())
}

/// What an IPReservation names, and what of it cannot be read.
type Reserved = (Vec<(IpNet, String)>, Vec<(String, String)>);

async fn reservations(from: &Surroundings) -> anyhow::Result<Vec<Reserved>> {
    let api = Api::all(from.client.clone());
    list(api, &ListParams::default(), |object| Some(reservation(&object))).await
}

/// The blocks that a field selector names.
pub(super) async fn blocks(
    from: &Surroundings,
    fields: &str,
    unread: &mut Vec<(String, String)>,
) -> anyhow::Result<Vec<BlockSeen>> {
    let params = ListParams::default().fields(fields);
    let api = Api::all(from.client.clone());
    let mut blocks = Vec::new();
    for block in list(api, &params, |block| Some(self::block(&block))).await? {
        match block {
            Ok(block) => blocks.push(block),
            Err(why) => unread.push(why),
        }
    }
    Ok(blocks)
}

/// The pods with an address of their own that a field selector names.
pub(super) async fn pods(from: &Surroundings, fields: &str) -> anyhow::Result<Vec<PodSeen>> {
    let params = ListParams::default().fields(fields);
    list(Api::all(from.client.clone()), &params, |pod| self::pod(&pod)).await
}

/// Lists in pages of [`PAGE`] objects. The pages are of one version; when the server has forgotten
/// that version before the last page, the list begins anew.
async fn list<K, T>(
    api: Api<K>,
    params: &ListParams,
    keep: impl Fn(K) -> Option<T>,
) -> anyhow::Result<Vec<T>>
where
    K: Resource<DynamicType = ()> + Clone + DeserializeOwned + Debug,
{
    let kind = K::plural(&()).to_string();
    for _ in 0..LISTS_MAX {
        let mut kept = Vec::new();
        let mut page = params.clone().limit(PAGE);
        loop {
            let answer = call(&format!("cannot list {kind}"), api.list(&page)).await;
            let listed = match answer {
                Err(error) if error.code == Some(410) => break,
                // An API server of before ServiceCIDR, or without Cairn.
                Err(error) if error.code == Some(404) => match K::group(&()).as_ref() {
                    cairn_api::GROUP => bail!("{error}: is Cairn installed in this cluster?"),
                    _ => return Ok(Vec::new()),
                },
                answer => answer?,
            };
            kept.extend(listed.items.into_iter().filter_map(&keep));
            match listed.metadata.continue_.filter(|token| !token.is_empty()) {
                Some(token) => page = params.clone().limit(PAGE).continue_token(&token),
                None => return Ok(kept),
            }
        }
    }
    bail!(
        "cannot list {kind}: the server forgot the list {LISTS_MAX} times before its last page: try \
         again when it is less busy"
    )
}

/// Why a call brought no result.
#[derive(Debug, thiserror::Error)]
#[error("{text}")]
pub(crate) struct CallError {
    /// What was asked, why it failed, and what to do.
    pub(crate) text: String,
    /// The HTTP status of a refusal.
    pub(crate) code: Option<u16>,
}

/// Waits for a call, for [`CALL_MAX`] at most.
pub(crate) async fn call<T>(
    what: &str,
    request: impl Future<Output = kube::Result<T>>,
) -> Result<T, CallError> {
    match tokio::time::timeout(CALL_MAX, request).await {
        Ok(Ok(answer)) => Ok(answer),
        Ok(Err(kube::Error::Api(status))) => {
            Err(CallError { text: format!("{what}: {}", status.message), code: Some(status.code) })
        }
        Ok(Err(error @ (kube::Error::Service(_) | kube::Error::HyperError(_)))) => {
            let error = anyhow::Error::from(error);
            let root = error.root_cause();
            let text = format!("{what}: the API server cannot be reached: {root}");
            Err(CallError { text, code: None })
        }
        Ok(Err(error)) => Err(CallError { text: format!("{what}: {error}"), code: None }),
        Err(_) => {
            let secs = CALL_MAX.as_secs();
            let text = format!("{what}: no answer from the API server within {secs} s");
            Err(CallError { text, code: None })
        }
    }
}

/// The Lease's name of a node.
pub(super) fn lease_name(node: &str) -> String {
    format!("{LEASE_PREFIX}{node}")
}

pub(super) fn now_secs() -> i64 {
    Timestamp::now().as_second()
}

fn secs(time: Option<&Time>) -> i64 {
    time.map_or(0, |time| time.0.as_second())
}

fn pool(pool: &IPPool) -> Result<PoolSeen, (String, String)> {
    let spec = &pool.spec;
    let cidr = spec.cidr.parse().map_err(|_| {
        let object = format!("ippool/{}", pool.name_any());
        (object, format!("its cidr \"{}\" is no network", spec.cidr))
    })?;
    let mut conditions = pool.status.iter().flat_map(|status| &status.conditions);
    let ready = conditions
        .find(|c| c.type_ == "Ready")
        .map(|c| (c.status != ConditionStatus::False, c.reason.clone(), c.message.clone()));
    Ok(PoolSeen {
        name: pool.name_any(),
        uid: pool.uid().unwrap_or_default(),
        cidr,
        block_size: spec.effective_block_size(),
        created_secs: secs(pool.metadata.creation_timestamp.as_ref()),
        disabled: spec.disabled,
        terminating: pool.metadata.deletion_timestamp.is_some(),
        advertise: spec.advertise,
        node_pod_cidrs: spec.allocation == BlockAllocation::NodePodCIDR,
        ready,
    })
}

/// A block's object, parsed; or which it is and why it cannot be.
pub(super) fn block(block: &IPBlock) -> Result<BlockSeen, (String, String)> {
    let spec = &block.spec;
    let name = block.name_any();
    let cidr: IpNet = spec.cidr.parse().map_err(|_| {
        (format!("ipblock/{name}"), format!("its cidr \"{}\" is no network", spec.cidr))
    })?;
    let status = block.status.clone().unwrap_or_default();
    let number = |text: Option<String>| text.and_then(|text| text.parse().ok());
    let allocations = status.allocations.into_iter().filter_map(|allocation| {
        Some(AllocationSeen {
            address: allocation.address.parse().ok()?,
            pod: allocation.pod,
            container: allocation.container,
        })
    });
    let (ours, others): (Vec<&String>, Vec<&String>) =
        block.finalizers().iter().partition(|finalizer| *finalizer == FINALIZER);
    Ok(BlockSeen {
        name,
        cidr: cidr.trunc(),
        pool: spec.pool.clone(),
        node: spec.node.clone(),
        used: number(status.used),
        free: number(status.free),
        advertised: status.advertised,
        allocations: allocations.collect(),
        held: !ours.is_empty(),
        held_by_others: others.into_iter().cloned().collect(),
        owned: !block.owner_references().is_empty(),
        terminating_secs: block.metadata.deletion_timestamp.as_ref().map(|time| secs(Some(time))),
    })
}

fn reservation(object: &IPReservation) -> Reserved {
    let name = object.name_any();
    let (mut nets, mut unread) = (Vec::new(), Vec::new());
    for text in &object.spec.cidrs {
        match text.parse() {
            Ok(net) => nets.push((net, name.clone())),
            Err(_) => {
                let why = format!("\"{text}\" in its cidrs is no network");
                unread.push((format!("ipreservation/{name}"), why));
            }
        }
    }
    (nets, unread)
}

fn node(node: &Node) -> (String, NodeSeen) {
    let status = node.status.clone().unwrap_or_default();
    let addresses = status.addresses.unwrap_or_default();
    let cidrs = node.spec.clone().unwrap_or_default().pod_cidrs.unwrap_or_default();
    let seen = NodeSeen {
        uid: node.uid().unwrap_or_default(),
        boot_id: status.node_info.map(|info| info.boot_id).unwrap_or_default(),
        addresses: addresses.iter().filter_map(|a| a.address.parse::<IpAddr>().ok()).collect(),
        pod_cidrs: cidrs.iter().filter_map(|cidr| cidr.parse().ok()).collect(),
    };
    (node.name_any(), seen)
}

/// A node's Lease, parsed.
pub(super) fn lease(lease: &Lease) -> LeaseSeen {
    let spec = lease.spec.clone().unwrap_or_default();
    let mark = lease.annotations().get(ANNOTATION_MACHINE_OFF);
    let earlier = lease.annotations().get(ANNOTATION_EARLIER_OFF);
    let promise = spec.lease_duration_seconds.and_then(|secs| u64::try_from(secs).ok());
    LeaseSeen {
        holder: spec.holder_identity.and_then(|holder| holder.parse().ok()),
        renewed_secs: spec.renew_time.map(|time| time.0.as_second()),
        promise: promise.map(Duration::from_secs),
        off: mark.and_then(|mark| mark.parse().ok()),
        earlier_off: earlier.and_then(|mark| mark.parse().ok()),
        taken_over: lease.annotations().get(ANNOTATION_TAKEN_OVER).cloned(),
    }
}

/// A pod, unless it has ended or shares its node's network.
fn pod(pod: &Pod) -> Option<PodSeen> {
    let spec = pod.spec.as_ref()?;
    let status = pod.status.clone().unwrap_or_default();
    let phase = status.phase.unwrap_or_default();
    if spec.host_network == Some(true) || phase == "Succeeded" || phase == "Failed" {
        return None;
    }
    let ips = status.pod_ips.unwrap_or_default().into_iter().map(|ip| ip.ip);
    let mut addresses: Vec<IpAddr> =
        ips.chain(status.pod_ip).filter_map(|ip| ip.parse().ok()).collect();
    addresses.sort_unstable();
    addresses.dedup();
    Some(PodSeen {
        name: format!("{}/{}", pod.namespace().unwrap_or_default(), pod.name_any()),
        node: spec.node_name.clone(),
        addresses,
        running: phase == "Running",
        ending: pod.metadata.deletion_timestamp.is_some(),
    })
}

/// The blocks of each node, for those who group them.
pub(super) fn by_owner(blocks: &[BlockSeen]) -> BTreeMap<(&str, &str), Vec<&BlockSeen>> {
    let mut owners: BTreeMap<(&str, &str), Vec<&BlockSeen>> = BTreeMap::new();
    for block in blocks {
        owners.entry((&block.node.name, &block.node.uid)).or_default().push(block);
    }
    owners
}

/// Objects of one page: a page of blocks with 60 allocations each is some 4 MB.
const PAGE: u32 = 500;
/// How often one list is begun.
const LISTS_MAX: u32 = 5;
/// How long one call may take: a page of a loaded server, and shorter than a person waits.
const CALL_MAX: Duration = Duration::from_secs(30);
