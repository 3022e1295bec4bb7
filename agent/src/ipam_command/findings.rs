//! What is not as it should be: a comparison of what was read, with nothing of its own.
//!
//! A finding names its objects, says what is wrong, and what a person does about it. What only takes
//! a moment, such as a pod whose address no status shows yet, is a finding as well: whoever looks
//! keeps what two looks show.

use std::collections::{BTreeMap, HashMap, HashSet};
use std::fmt;
use std::net::IpAddr;

use serde::Serialize;

use super::conflicts;
use super::read::by_owner;
use super::snapshot::{BlockSeen, LeaseSeen, NetIndex, PodSeen, Snapshot};
use super::text::{count, some, span};

/// Something that is not as it should be.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct Finding {
    /// Of which kind.
    pub(super) kind: Kind,
    /// The objects, each as kind/name.
    pub(super) objects: Vec<String>,
    /// What is wrong.
    pub(super) text: String,
    /// What to do.
    pub(super) remedy: String,
}

/// The kinds of findings.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize)]
#[serde(rename_all = "camelCase")]
pub(super) enum Kind {
    /// An object that cannot be read.
    Unreadable,
    /// Two pools overlap.
    PoolsOverlap,
    /// A pool is not used, by the leader's word.
    PoolNotReady,
    /// Addresses of others lie in a pool.
    ForeignAddresses,
    /// Blocks whose Node is gone.
    NodeGone,
    /// Blocks of a Node whose agent is silent.
    AgentSilent,
    /// The Lease of a node is held by another machine.
    OtherMachine,
    /// A Lease of a node that does not exist and has no blocks.
    LeaseUnknown,
    /// Two blocks overlap.
    BlocksOverlap,
    /// A block of a pool that does not exist.
    PoolUnknown,
    /// A block outside of its pool.
    OutsidePool,
    /// A block of another size than its pool's.
    WrongSize,
    /// A block without its finalizer.
    FinalizerMissing,
    /// A block with ownerReferences.
    OwnerReference,
    /// A block that does not end.
    StuckDeleting,
    /// A block with pods that its owner does not announce.
    NotAdvertised,
    /// An address in use by no pod.
    Leak,
    /// A pod's address that no block shows in use.
    Unallocated,
    /// A pod's address in another node's block.
    OtherNodesBlock,
    /// Two pods with one address.
    AddressTwice,
    /// A reserved address in use.
    ReservedInUse,
    /// A node says that something is wrong.
    NodeProblem,
    /// This node's kernel holds an address that no block shows in use.
    KernelOnly,
    /// An address that a block shows in use, and this node's kernel does not hold.
    StatusOnly,
    /// Another router announces a block, or a part of it.
    AnnouncedByAnother,
    /// A part of the look on this node failed.
    LocalUnknown,
}

impl fmt::Display for Kind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.serialize(f)
    }
}

impl Finding {
    pub(super) fn new(
        kind: Kind,
        objects: impl IntoIterator<Item = String>,
        text: impl Into<String>,
        remedy: impl Into<String>,
    ) -> Finding {
        let objects = objects.into_iter().collect();
        Finding { kind, objects, text: text.into(), remedy: remedy.into() }
    }
}

/// All that is not as it should be, by kind.
pub(super) fn findings(seen: &Snapshot) -> Vec<Finding> {
    let mut found = Vec::new();
    for (object, why) in &seen.unread {
        let remedy = "correct the object, or delete it when nobody needs it";
        found.push(Finding::new(Kind::Unreadable, [object.clone()], why, remedy));
    }
    conflicts::pools(seen, &mut found);
    conflicts::blocks(seen, &mut found);
    owners(seen, &mut found);
    objects(seen, &mut found);
    allocations(seen, &mut found);
    pods(seen, &mut found);
    for (node, problems) in &seen.problems {
        let remedy = "the sentence says what to do";
        let objects = || [format!("bgpnodestatus/{node}")];
        found
            .extend(problems.iter().map(|p| Finding::new(Kind::NodeProblem, objects(), p, remedy)));
    }
    conflicts::local(seen, &mut found);
    found.sort_by(|a, b| (a.kind, &a.objects).cmp(&(b.kind, &b.objects)));
    found
}

/// Of two looks, what both show, as the second one shows it.
pub(super) fn lasting(first: &[Finding], second: Vec<Finding>) -> Vec<Finding> {
    let known: HashSet<(Kind, &[String])> =
        first.iter().map(|finding| (finding.kind, &finding.objects[..])).collect();
    second.into_iter().filter(|f| known.contains(&(f.kind, &f.objects[..]))).collect()
}

pub(super) fn block_object(block: &BlockSeen) -> String {
    format!("ipblock/{}", block.name)
}

/// Blocks by their owner: whether it is there, and what the fence says when it is not.
fn owners(seen: &Snapshot, found: &mut Vec<Finding>) {
    let owners = by_owner(&seen.blocks);
    for ((name, uid), blocks) in &owners {
        let lease = seen.leases.get(*name).filter(|lease| lease.is_of(uid));
        let age = lease.and_then(|lease| lease.age_secs(seen.now_secs));
        let objects = || blocks.iter().map(|block| block_object(block));
        let cidrs = || some(blocks.iter().map(|block| block.cidr));
        let number = count(blocks.len(), "block");
        let node = seen.nodes.get(*name);
        if node.is_some_and(|node| node.uid == *uid) {
            match age {
                Some(age) if age <= SILENT_SECS => {}
                Some(age) => found.push(Finding::new(
                    Kind::AgentSilent,
                    objects(),
                    format!(
                        "node {name} has {number} ({}), and its agent last wrote its Lease {} ago",
                        cidrs(),
                        span(age)
                    ),
                    format!(
                        "see why the agent of {name} does not run or does not reach the API server; \
                         if the machine is off: cairn ipam fence {name}"
                    ),
                )),
                None => found.push(Finding::new(
                    Kind::AgentSilent,
                    objects(),
                    format!("node {name} has {number} ({}) and no Lease of an agent", cidrs()),
                    format!("see why no agent runs on {name}: kubectl get pods -A -o wide"),
                )),
            }
            continue;
        }
        let gone = match node {
            Some(_) => format!("the Node {name} of UID {uid} is gone, another one has its name"),
            None => format!("the Node {name} is gone"),
        };
        let (fence, remedy) = match (lease, age) {
            (Some(lease), _) if lease.is_off() => (
                "an operator says that its machine is off: the leader returns them within a minute \
                 once nobody announces them"
                    .to_owned(),
                format!(
                    "if they stay, the problems of the leader's node say why; what is announced \
                     still needs cairn ipam release, and a look at who announces it: {}",
                    cidrs()
                ),
            ),
            (Some(lease), Some(age)) => {
                let rest = lease.wait_secs().map(|wait| wait.saturating_sub(age));
                let when = match rest {
                    Some(rest) if rest > 0 => format!("no sooner than in {}", span(rest)),
                    Some(_) => "once the leader has itself waited, and nobody announces them".into(),
                    None => "once the fence allows".to_owned(),
                };
                (
                    format!("its agent last wrote its Lease {} ago; they return {when}", span(age)),
                    format!("nothing, or if the machine is off for good: cairn ipam fence {name}"),
                )
            }
            _ => (
                "no Lease tells when its agent last wrote: they return when the leader has waited \
                 1.25 times its own --offline-secs"
                    .to_owned(),
                format!(
                    "nothing; what stays for longer: cairn ipam release {}",
                    blocks.first().map_or("", |block| &block.name)
                ),
            ),
        };
        let text = format!("{gone}, and has {number} ({}); {fence}", cidrs());
        found.push(Finding::new(Kind::NodeGone, objects(), text, remedy));
    }
    for (name, lease) in &seen.leases {
        let object = || [format!("lease/cairn-node-{name}")];
        let has_blocks = owners.keys().any(|(owner, _)| owner == name);
        match (seen.nodes.get(name), &lease.holder) {
            (None, _) if !has_blocks => found.push(Finding::new(
                Kind::LeaseUnknown,
                object(),
                format!("there is neither a Node {name} nor a block of it"),
                format!("kubectl delete lease cairn-node-{name}, in Cairn's namespace"),
            )),
            (Some(node), Some(holder))
                if holder.node_uid == node.uid
                    && !node.boot_id.is_empty()
                    && holder.boot_id != node.boot_id =>
            {
                found.push(Finding::new(
                    Kind::OtherMachine,
                    object(),
                    format!(
                        "the agent of boot {} holds it, and the Node {name} is of boot {}: two \
                         machines have this name, or the agent has not started since the boot",
                        holder.boot_id, node.boot_id
                    ),
                    format!(
                        "give one of two machines another name; else start the agent on {name}"
                    ),
                ));
            }
            _ => {}
        }
    }
}

/// What single blocks have on them.
fn objects(seen: &Snapshot, found: &mut Vec<Finding>) {
    for block in &seen.blocks {
        let name = &block.name;
        let mut say = |kind, text: String, remedy: String| {
            found.push(Finding::new(kind, [block_object(block)], text, remedy));
        };
        if !block.held && block.terminating_secs.is_none() {
            say(
                Kind::FinalizerMissing,
                format!("a deletion of {} would not wait for its pods", block.cidr),
                format!(
                    "kubectl patch ipblock {name} --type=merge -p \
                     '{{\"metadata\":{{\"finalizers\":[\"{}\"]}}}}'",
                    cairn_api::FINALIZER
                ),
            );
        }
        if block.owned {
            say(
                Kind::OwnerReference,
                "it has ownerReferences: Kubernetes deletes it with its owner, whatever runs"
                    .into(),
                format!(
                    "kubectl patch ipblock {name} --type=json -p \
                     '[{{\"op\":\"remove\",\"path\":\"/metadata/ownerReferences\"}}]'"
                ),
            );
        }
        let ending = block.terminating_secs.map(|since| seen.now_secs.saturating_sub(since));
        if let Some(secs) = ending.filter(|secs| *secs > STUCK_SECS) {
            let holders = block.held_by_others.join(", ");
            let (text, remedy) = match (block.held, block.allocations.is_empty()) {
                (false, _) => (
                    format!("it is being deleted since {}, and held by {holders}", span(secs)),
                    "who set that finalizer has to remove it".to_owned(),
                ),
                (true, false) => (
                    format!(
                        "it is being deleted since {}, with {} of it in use",
                        span(secs),
                        count(block.allocations.len(), "address")
                    ),
                    format!("end its pods on node {}, or move them", block.node.name),
                ),
                (true, true) => (
                    format!("it is being deleted since {} and nothing uses it", span(secs)),
                    format!(
                        "see whether the agent of {} runs; else: cairn ipam release {name}",
                        block.node.name
                    ),
                ),
            };
            say(Kind::StuckDeleting, text, remedy);
        }
        let announces = seen.pools.iter().find(|pool| pool.uid == block.pool.uid);
        if block.advertised == Some(false)
            && announces.is_some_and(|pool| pool.advertise)
            && block.used.is_some_and(|used| used > 0)
        {
            say(
                Kind::NotAdvertised,
                format!(
                    "{} has pods, and node {} does not announce it",
                    block.cidr, block.node.name
                ),
                format!("on {}: cairn status", block.node.name),
            );
        }
    }
}

/// Addresses that blocks show in use.
fn allocations(seen: &Snapshot, found: &mut Vec<Finding>) {
    let names: HashSet<&str> = seen.pods.iter().map(|pod| pod.name.as_str()).collect();
    let addresses: HashSet<IpAddr> =
        seen.pods.iter().flat_map(|pod| pod.addresses.iter().copied()).collect();
    for block in &seen.blocks {
        for allocation in &block.allocations {
            let address = allocation.address;
            // A pod that starts has its address before the API shows it.
            let named = allocation.pod.as_deref().is_some_and(|pod| names.contains(pod));
            if !named && !addresses.contains(&address) {
                let pod = allocation.pod.as_deref().unwrap_or("a pod that it cannot name");
                let container = allocation.container.as_deref().unwrap_or("?");
                found.push(Finding::new(
                    Kind::Leak,
                    [block_object(block), format!("address/{address}")],
                    format!(
                        "node {} shows {address} in use by {pod}, container {container}, and the API \
                         server knows no such pod",
                        block.node.name
                    ),
                    format!(
                        "on {}: crictl pods --id {container}; crictl stopp and rmp end a sandbox that \
                         nobody needs, and its address is free",
                        block.node.name
                    ),
                ));
            }
        }
    }
    let in_use = seen.blocks.iter().flat_map(|block| {
        block.allocations.iter().map(|a| (a.address, "node", block.node.name.as_str()))
    });
    let by_pods = seen
        .pods
        .iter()
        .flat_map(|pod| pod.addresses.iter().map(|address| (*address, "pod", pod.name.as_str())));
    let reservations: NetIndex<&str> =
        seen.reserved.iter().map(|(net, name)| (net.trunc(), name.as_str())).collect();
    let mut reserved: BTreeMap<(IpAddr, &str), String> = BTreeMap::new();
    for (address, kind, user) in in_use.chain(by_pods) {
        if let Some(name) = reservations.of(address) {
            reserved.insert((address, name), format!("{kind} {user}"));
        }
    }
    for ((address, name), user) in reserved {
        found.push(Finding::new(
            Kind::ReservedInUse,
            [format!("ipreservation/{name}"), format!("address/{address}")],
            format!("{address} is reserved, and in use: {user}"),
            "end the pod, and its successor gets another address; or shorten the reservation",
        ));
    }
}

/// Addresses that pods have.
fn pods(seen: &Snapshot, found: &mut Vec<Finding>) {
    let blocks = seen.block_index();
    let allocated: HashSet<IpAddr> =
        seen.blocks.iter().flat_map(|block| block.allocations.iter().map(|a| a.address)).collect();
    let mut users: HashMap<IpAddr, Vec<&PodSeen>> = HashMap::new();
    for pod in &seen.pods {
        for address in pod.addresses.iter().copied() {
            users.entry(address).or_default().push(pod);
            let Some(block) = blocks.of(address) else {
                if pod.running && seen.pool_of(address).is_some() {
                    unallocated(seen, pod, address, None, found);
                }
                continue;
            };
            if pod.node.as_ref().is_some_and(|node| *node != block.node.name) {
                let node = pod.node.as_deref().unwrap_or_default();
                found.push(Finding::new(
                    Kind::OtherNodesBlock,
                    [format!("pod/{}", pod.name), block_object(block)],
                    format!(
                        "{address} of the pod on node {node} is in block {} of node {}: packets to it \
                         go to the wrong node",
                        block.cidr, block.node.name
                    ),
                    format!("delete the pod: its successor gets an address of node {node}"),
                ));
            } else if pod.running && !pod.ending && !allocated.contains(&address) && is_whole(block)
            {
                unallocated(seen, pod, address, Some(block), found);
            }
        }
    }
    let twice: BTreeMap<IpAddr, Vec<&PodSeen>> =
        users.into_iter().filter(|(_, pods)| pods.len() > 1).collect();
    for (address, pods) in twice {
        let where_at = |pod: &&PodSeen| {
            format!("{} on {}", pod.name, pod.node.as_deref().unwrap_or("no node"))
        };
        found.push(Finding::new(
            Kind::AddressTwice,
            [format!("address/{address}")]
                .into_iter()
                .chain(pods.iter().map(|pod| format!("pod/{}", pod.name))),
            format!("{} pods have {address}: {}", pods.len(), some(pods.iter().map(where_at))),
            "delete the pod that the node of the block does not show: cairn ipam show --address"
                .to_owned()
                + &format!(" {address}"),
        ));
    }
}

fn unallocated(
    seen: &Snapshot,
    pod: &PodSeen,
    address: IpAddr,
    block: Option<&BlockSeen>,
    found: &mut Vec<Finding>,
) {
    let pool = seen.pool_of(address).map_or("", |pool| &pool.name);
    let (text, remedy) = match block {
        Some(block) => (
            format!("{address} is in block {}, which does not show it in use", block.cidr),
            format!(
                "on {}: cairn ipam check compares with the kernel; delete the pod if its interface \
                 is not one of Cairn's",
                block.node.name
            ),
        ),
        None if is_off(seen, pod) => (
            format!(
                "{address} is in pool {pool} and in no block any more: the machine of node {} is off",
                pod.node.as_deref().unwrap_or_default()
            ),
            format!("delete the pod, which runs no more: its name is {}", pod.name),
        ),
        None => (
            format!("{address} is in pool {pool} and in no block: another plugin gave it"),
            "delete the pod, and its successor gets an address of Cairn; or give Cairn another pool"
                .to_owned(),
        ),
    };
    let mut objects = vec![format!("pod/{}", pod.name), format!("ippool/{pool}")];
    objects.extend(block.map(block_object));
    found.push(Finding::new(Kind::Unallocated, objects, text, remedy));
}

/// Whether the node of a pod is gone, or its machine off by an operator's word.
fn is_off(seen: &Snapshot, pod: &PodSeen) -> bool {
    let Some(node) = &pod.node else { return false };
    !seen.nodes.contains_key(node) || seen.leases.get(node).is_some_and(LeaseSeen::is_off)
}

/// Whether a block's status lists every address in use; it is bounded.
pub(super) fn is_whole(block: &BlockSeen) -> bool {
    block.used.is_some_and(|used| used <= block.allocations.len() as u128)
}

/// How old a Lease may be. Agents write theirs once a minute.
pub(super) const SILENT_SECS: i64 = 180;
/// How long a block may be ending without pods: an agent needs seconds.
const STUCK_SECS: i64 = 600;

#[cfg(test)]
#[path = "findings_tests.rs"]
mod tests;
