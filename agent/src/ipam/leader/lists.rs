//! Lists of the whole cluster, page by page, each object reduced at once to what decisions need: the
//! leader's memory follows the number of objects, not their size. The first page's state is the
//! whole list's, and is never older than the call.

use std::borrow::Borrow;
use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Debug;
use std::net::IpAddr;
use std::sync::Arc;
use std::time::Duration;

use cairn_api::{BGPNode, BGPNodeSpec, BGPNodeStatus, IPBlock, LABEL_CHANGE_OVER};
use cairn_ipam::fence::{LeaseSeen, Owner};
use cairn_ipam::mark::{
    ANNOTATION_CLAIMED_BY, ANNOTATION_EARLIER_OFF, ANNOTATION_MACHINE, ANNOTATION_MACHINE_OFF,
    ANNOTATION_TAKEN_OVER, Claimant, Holder, Machine, is_off, others_rest,
};
use cairn_ipam::returns::{BlockSeen, PodSeen};
use cairn_ipam::rules::Rules;
use ipnet::IpNet;
use k8s_openapi::api::coordination::v1::Lease;
use k8s_openapi::api::core::v1::{Node, Pod};
use k8s_openapi::api::networking::v1::ServiceCIDR;
use kube::api::{
    Api, ApiResource, DeleteParams, ListParams, Object, ObjectList, PostParams, Preconditions,
};
use kube::{Client, ResourceExt};
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};

use crate::ipam::error::{IpamError, call};
use crate::ipam::lease::LEASE_PREFIX;
use crate::ipam::reads;

/// What the leader lists.
#[derive(Clone, Debug)]
pub(super) struct Lists {
    blocks: Api<IPBlock>,
    nodes: Api<Node>,
    bgp_nodes: Api<BGPNode>,
    statuses: Api<BGPNodeStatus>,
    whole_nodes: Api<NodeObject>,
    leases: Api<Lease>,
    pods: Api<PodObject>,
    services: Api<ServiceCIDR>,
    rules: Rules,
}

/// A Node, and a pod, as far as they are looked at; the lab's have no spec at times.
type NodeObject = Object<Option<NodeSpecSeen>, NodeStatusSeen>;
type PodObject = Object<Option<PodSpecSeen>, PodStatusSeen>;

#[derive(Clone, Debug, Default, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
struct PodSpecSeen {
    node_name: String,
    host_network: bool,
}

#[derive(Clone, Debug, Default, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
struct PodStatusSeen {
    phase: String,
    #[serde(rename = "podIPs")]
    pod_ips: Vec<PodIpSeen>,
}

#[derive(Clone, Debug, Default, Serialize, Deserialize)]
#[serde(default)]
struct PodIpSeen {
    ip: String,
}

#[derive(Clone, Debug, Default, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
struct NodeSpecSeen {
    #[serde(rename = "podCIDRs")]
    pod_cidrs: Vec<String>,
    taints: Vec<TaintSeen>,
}

#[derive(Clone, Debug, Default, Serialize, Deserialize)]
#[serde(default)]
struct TaintSeen {
    key: String,
}

#[derive(Clone, Debug, Default, Serialize, Deserialize)]
#[serde(default)]
struct NodeStatusSeen {
    addresses: Vec<NodeAddressSeen>,
    conditions: Vec<NodeConditionSeen>,
    #[serde(rename = "nodeInfo")]
    node_info: NodeInfoSeen,
}

#[derive(Clone, Debug, Default, Serialize, Deserialize)]
#[serde(default)]
struct NodeInfoSeen {
    #[serde(rename = "bootID")]
    boot_id: String,
}

#[derive(Clone, Debug, Default, Serialize, Deserialize)]
#[serde(default)]
struct NodeConditionSeen {
    #[serde(rename = "type")]
    type_: String,
    status: String,
}

#[derive(Clone, Debug, Default, Serialize, Deserialize)]
#[serde(default)]
struct NodeAddressSeen {
    address: String,
}

/// A Node, as the last look before a return needs it.
pub(super) struct NodeSeen {
    pub(super) uid: String,
    /// It carries the taint that says that it is off.
    pub(super) out_of_service: bool,
    /// Its kubelet is heard.
    pub(super) kubelet_heard: bool,
    /// The boot id of the machine on which that kubelet runs.
    pub(super) boot_id: String,
}

impl Lists {
    pub(super) fn new(client: &Client, namespace: &str, rules: Rules) -> Lists {
        Lists {
            blocks: Api::all(client.clone()),
            nodes: Api::all(client.clone()),
            bgp_nodes: Api::all(client.clone()),
            statuses: Api::all(client.clone()),
            whole_nodes: Api::all_with(client.clone(), &ApiResource::erase::<Node>(&())),
            leases: Api::namespaced(client.clone(), namespace),
            pods: Api::all_with(client.clone(), &ApiResource::erase::<Pod>(&())),
            services: Api::all(client.clone()),
            rules,
        }
    }

    /// What a list asks for. One from a server's cache comes whole.
    fn consistent(&self) -> ListParams {
        let params = reads::consistent(self.rules);
        match params.resource_version {
            None => params.limit(PAGE_OBJECTS_MAX),
            Some(_) => params,
        }
    }

    /// Every block.
    pub(super) async fn blocks(&self) -> Result<Vec<BlockSeen>, IpamError> {
        let (mut seen, mut repeated) = (Vec::new(), Repeated::default());
        let take = |block: IPBlock| seen.extend(block_seen(&block, &mut repeated));
        pages("blocks", self.consistent(), |params| self.list(&self.blocks, params), take).await?;
        Ok(seen)
    }

    /// Whether the pool with this UID has a block.
    pub(super) async fn has_blocks(&self, pool_uid: &str) -> Result<bool, IpamError> {
        let mut found = false;
        let take = |block: IPBlock| found |= block.spec.pool.uid == pool_uid;
        pages("blocks", self.consistent(), |params| self.list(&self.blocks, params), take).await?;
        Ok(found)
    }

    /// Tells `take` of every allocation: the pool's UID, the address, the pod where it is known.
    pub(super) async fn allocations(
        &self,
        mut take: impl FnMut(&str, IpAddr, Option<&str>),
    ) -> Result<(), IpamError> {
        let each = |block: IPBlock| {
            for allocation in block.status.iter().flat_map(|status| &status.allocations) {
                if let Ok(address) = allocation.address.parse() {
                    take(&block.spec.pool.uid, address, allocation.pod.as_deref());
                }
            }
        };
        pages("blocks", self.consistent(), |params| self.list(&self.blocks, params), each).await
    }

    /// The UIDs of all Nodes, by name.
    pub(super) async fn nodes(&self) -> Result<BTreeMap<String, String>, IpamError> {
        let mut seen = BTreeMap::new();
        let list = |params| async move { self.nodes.list_metadata(&params).await };
        pages("Nodes", self.consistent(), list, |node| {
            seen.insert(node.name_any(), node.uid().unwrap_or_default());
        })
        .await?;
        Ok(seen)
    }

    /// The Leases of nodes, by the node's name.
    pub(super) async fn leases(&self) -> Result<BTreeMap<String, LeaseSeen>, IpamError> {
        let mut seen = BTreeMap::new();
        let take = |lease: Lease| {
            let node = lease.name_any().strip_prefix(LEASE_PREFIX).map(str::to_owned);
            if let (Some(node), Some(lease)) = (node, lease_seen(&lease)) {
                seen.insert(node, lease);
            }
        };
        pages("Leases", self.consistent(), |params| self.list(&self.leases, params), take).await?;
        Ok(seen)
    }

    /// Tells `take` of every BGPNode: its name, and what stands in it.
    pub(super) async fn bgp_nodes(
        &self,
        mut take: impl FnMut(String, BGPNodeSpec),
    ) -> Result<(), IpamError> {
        let each = |node: BGPNode| take(node.name_any(), node.spec);
        pages("BGPNodes", self.consistent(), |params| self.list(&self.bgp_nodes, params), each)
            .await
    }

    /// How far each node is with a change-over, as the label of its BGPNodeStatus says: of a status, which
    /// may name thousands of sessions, nothing else is read.
    pub(super) async fn change_overs(&self) -> Result<BTreeMap<String, String>, IpamError> {
        let mut said = BTreeMap::new();
        let params = self.consistent().labels(LABEL_CHANGE_OVER);
        let list = |params| async move { self.statuses.list_metadata(&params).await };
        pages("BGPNodeStatuses", params, list, |status| {
            let label = status.labels().get(LABEL_CHANGE_OVER).cloned();
            said.insert(status.name_any(), label.unwrap_or_default());
        })
        .await?;
        Ok(said)
    }

    /// Which of these Nodes carry the taint that says that they are off.
    pub(super) async fn out_of_service(
        &self,
        suspects: &[Owner],
    ) -> Result<BTreeSet<Owner>, IpamError> {
        let mut tainted = BTreeSet::new();
        if suspects.len() <= NODES_ONE_BY_ONE_MAX {
            for owner in suspects {
                let node = self.node(&owner.name).await?;
                if node.is_some_and(|node| node.out_of_service && node.uid == owner.uid) {
                    tainted.insert(owner.clone());
                }
            }
            return Ok(tainted);
        }
        let suspects: BTreeSet<&Owner> = suspects.iter().collect();
        let take = |node: NodeObject| {
            let owner = Owner { name: node.name_any(), uid: node.uid().unwrap_or_default() };
            if is_out_of_service(&node) && suspects.contains(&owner) {
                tainted.insert(owner);
            }
        };
        let list = |params| self.list(&self.whole_nodes, params);
        pages("Nodes", self.consistent(), list, take).await?;
        Ok(tainted)
    }

    /// The Node of this name.
    pub(super) async fn node(&self, name: &str) -> Result<Option<NodeSeen>, IpamError> {
        let what = || format!("cannot read Node {name}");
        let node = call(what, reads::get(&self.whole_nodes, name, self.rules)).await?;
        Ok(node.map(|node| NodeSeen {
            uid: node.uid().unwrap_or_default(),
            out_of_service: is_out_of_service(&node),
            kubelet_heard: is_kubelet_heard(&node),
            boot_id: node.status.map(|status| status.node_info.boot_id).unwrap_or_default(),
        }))
    }

    /// The Lease of the node of this name.
    pub(super) async fn lease(&self, node: &str) -> Result<Option<LeaseSeen>, IpamError> {
        let what = || format!("cannot read the Lease of node {node}");
        let name = crate::ipam::lease::lease_name(node);
        let lease = call(what, reads::get(&self.leases, &name, self.rules)).await?;
        Ok(lease.as_ref().and_then(lease_seen))
    }

    /// Takes `blocks` out of the BGPNode of this node, whose agent is gone and leaves it as it is: others
    /// send a block's packets to the node that names it there.
    pub(super) async fn disown(&self, node: &str, blocks: &[IpNet]) -> Result<(), IpamError> {
        let what = || format!("cannot take returned blocks out of the BGPNode {node}");
        let Some(mut object) = call(what, self.bgp_nodes.get_opt(node)).await? else {
            return Ok(());
        };
        let named = &mut object.spec.blocks;
        let before = named.len();
        named.retain(|text| !text.parse().is_ok_and(|block| blocks.contains(&block)));
        if named.len() == before {
            return Ok(());
        }
        // Refused if its agent is back and has written it meanwhile.
        let params = PostParams::default();
        call(what, self.bgp_nodes.replace(node, &params, &object)).await.map(drop)
    }

    /// Deletes the Lease of the node of this name if it is still in this version.
    pub(super) async fn delete_lease(&self, node: &str, version: String) -> Result<(), IpamError> {
        let what = || format!("cannot delete the Lease of node {node}, which is gone");
        let name = crate::ipam::lease::lease_name(node);
        let preconditions = Preconditions { uid: None, resource_version: Some(version) };
        let preconditions = Some(preconditions);
        let params = DeleteParams { preconditions, ..DeleteParams::default() };
        match call(what, self.leases.delete(&name, &params)).await {
            Ok(_) => tracing::info!(node, "the Lease of a node that is gone was deleted"),
            // Its agent has written it, or somebody else has deleted it.
            Err(error) if error.is_conflict() || error.is_not_found() => {}
            Err(error) => return Err(error),
        }
        Ok(())
    }

    /// Tells `take` of every pod that has not ended and has an address of its own, of one node or of
    /// all.
    pub(super) async fn pods(
        &self,
        node: Option<&str>,
        mut take: impl FnMut(PodSeen),
    ) -> Result<(), IpamError> {
        let params = match node {
            Some(node) => self.consistent().fields(&format!("spec.nodeName={node}")),
            None => self.consistent(),
        };
        let each = |pod| pod_seen(pod).into_iter().for_each(&mut take);
        pages("pods", params, |params| self.list(&self.pods, params), each).await
    }

    /// Tells `take` of every Node: its name, its addresses, its `spec.podCIDRs`.
    pub(super) async fn node_ranges(
        &self,
        mut take: impl FnMut(&str, &[IpAddr], &[IpNet]),
    ) -> Result<(), IpamError> {
        let each = |node: NodeObject| {
            let addresses = node.status.iter().flat_map(|status| &status.addresses);
            let addresses: Vec<IpAddr> = addresses.filter_map(|a| a.address.parse().ok()).collect();
            let cidrs = node.spec.iter().flat_map(|spec| &spec.pod_cidrs);
            let cidrs = cidrs.filter_map(|cidr| cidr.parse().ok());
            take(&node.name_any(), &addresses, &cidrs.collect::<Vec<IpNet>>());
        };
        let list = |params| self.list(&self.whole_nodes, params);
        pages("Nodes", self.consistent(), list, each).await
    }

    /// Tells `take` of every ServiceCIDR; false when the server has no such kind.
    pub(super) async fn services(
        &self,
        mut take: impl FnMut(&str, IpNet),
    ) -> Result<bool, IpamError> {
        let each = |service: ServiceCIDR| {
            let cidrs = service.spec.iter().flat_map(|spec| spec.cidrs.iter().flatten());
            cidrs
                .filter_map(|cidr| cidr.parse().ok())
                .for_each(|net| take(&service.name_any(), net));
        };
        let list = |params| self.list(&self.services, params);
        match pages("ServiceCIDRs", self.consistent(), list, each).await {
            Ok(()) => Ok(true),
            Err(error) if error.is_not_found() => Ok(false),
            Err(error) => Err(error),
        }
    }

    async fn list<K>(&self, api: &Api<K>, params: ListParams) -> kube::Result<ObjectList<K>>
    where
        K: Clone + DeserializeOwned + Debug,
    {
        api.list(&params).await
    }
}

/// Calls `take` for each object of a list.
async fn pages<K, F>(
    what: &str,
    params: ListParams,
    list: impl Fn(ListParams) -> F,
    mut take: impl FnMut(K),
) -> Result<(), IpamError>
where
    K: Clone,
    F: Future<Output = kube::Result<ObjectList<K>>>,
{
    let mut token: Option<String> = None;
    loop {
        let page = match &token {
            Some(token) => params.clone().continue_token(token),
            None => params.clone(),
        };
        let listed = call(|| format!("cannot list {what}"), list(page)).await?;
        listed.items.into_iter().for_each(&mut take);
        token = listed.metadata.continue_.filter(|token| !token.is_empty());
        if token.is_none() {
            return Ok(());
        }
    }
}

/// What many blocks repeat, each once.
#[derive(Debug, Default)]
struct Repeated {
    owners: BTreeSet<Arc<Owner>>,
    pools: BTreeSet<Arc<str>>,
    finalizers: BTreeSet<Arc<[String]>>,
    claimants: BTreeSet<Arc<str>>,
}

/// The one of `known` that is as `value`.
fn shared<T: Ord + ?Sized, U: Borrow<T>>(known: &mut BTreeSet<Arc<T>>, value: U) -> Arc<T>
where
    Arc<T>: From<U>,
{
    if let Some(known) = known.get::<T>(value.borrow()) {
        return Arc::clone(known);
    }
    let new = Arc::from(value);
    known.insert(Arc::clone(&new));
    new
}

/// A block as decisions need it, without its allocations.
fn block_seen(block: &IPBlock, repeated: &mut Repeated) -> Option<BlockSeen> {
    let node = &block.spec.node;
    let owner = Owner { name: node.name.clone(), uid: node.uid.clone() };
    Some(BlockSeen {
        cidr: block.spec.cidr.parse().ok()?,
        uid: block.metadata.uid.clone()?,
        version: block.metadata.resource_version.clone()?,
        pool_uid: shared(&mut repeated.pools, block.spec.pool.uid.as_str()),
        owner: shared(&mut repeated.owners, owner),
        used: block.status.as_ref().and_then(|status| status.used.as_ref()?.parse().ok()),
        device: block
            .status
            .as_ref()
            .is_some_and(|status| status.allocations.iter().any(|held| held.device.is_some())),
        terminating: block.metadata.deletion_timestamp.is_some(),
        finalizers: shared(&mut repeated.finalizers, block.finalizers()),
        claimed_by: shared(
            &mut repeated.claimants,
            block.annotations().get(ANNOTATION_CLAIMED_BY).map_or("", String::as_str),
        ),
    })
}

fn lease_seen(lease: &Lease) -> Option<LeaseSeen> {
    let spec = lease.spec.as_ref()?;
    let secs = spec.lease_duration_seconds.and_then(|secs| u64::try_from(secs).ok());
    let holder: Holder = spec.holder_identity.as_ref()?.parse().ok()?;
    let annotation = |key| lease.annotations().get(key).map(String::as_str);
    let mark = annotation(ANNOTATION_MACHINE_OFF);
    Some(LeaseSeen {
        version: lease.metadata.resource_version.clone()?,
        promise: Duration::from_secs(secs?),
        machine_off: is_off(mark, &holder),
        others_rest: others_rest(annotation(ANNOTATION_TAKEN_OVER), mark),
        claimant: Claimant {
            machine: annotation(ANNOTATION_MACHINE).map_or_else(Machine::default, Machine::from),
            boot_id: holder.boot_id.clone(),
        },
        marked_boot: mark.and_then(|mark| Some(mark.parse::<Holder>().ok()?.boot_id)),
        earlier_off: annotation(ANNOTATION_EARLIER_OFF) == Some(&*holder.to_string()),
        holder,
    })
}

/// Kubernetes sets the condition to Unknown when a kubelet has been silent for 40 s.
fn is_kubelet_heard(node: &NodeObject) -> bool {
    let mut conditions = node.status.iter().flat_map(|status| &status.conditions);
    conditions.any(|condition| {
        condition.type_ == "Ready" && matches!(&*condition.status, "True" | "False")
    })
}

fn is_out_of_service(node: &NodeObject) -> bool {
    let mut taints = node.spec.iter().flat_map(|spec| &spec.taints);
    taints.any(|taint| taint.key == TAINT_OUT_OF_SERVICE)
}

fn pod_seen(pod: PodObject) -> Option<PodSeen> {
    let status = pod.status.as_ref();
    let ended = status.is_some_and(|status| matches!(&*status.phase, "Succeeded" | "Failed"));
    let spec = pod.spec.clone().unwrap_or_default();
    if ended || spec.host_network {
        return None;
    }
    let namespace = pod.namespace().unwrap_or_default();
    let addresses = status.iter().flat_map(|status| &status.pod_ips);
    Some(PodSeen {
        name: format!("{namespace}/{}", pod.name_any()),
        node: spec.node_name,
        addresses: addresses.filter_map(|ip| ip.ip.parse().ok()).collect(),
    })
}

/// Kubernetes' own word for a machine that is off: an operator sets it, and pods are taken from it.
const TAINT_OUT_OF_SERVICE: &str = "node.kubernetes.io/out-of-service";

/// Objects of one page: of pods about 5 MB.
const PAGE_OBJECTS_MAX: u32 = 500;

/// Up to so many suspects Nodes are read one by one; a list of all is larger.
const NODES_ONE_BY_ONE_MAX: usize = 50;
