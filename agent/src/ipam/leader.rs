//! Duties of one agent for the whole cluster: blocks of Nodes that are gone go back, and pools say
//! how they stand.
//!
//! The Lease `cairn-leader` elects as client-go does: whoever sees it unchanged for its duration
//! writes itself in, and the resourceVersion decides between two. Nothing depends on there being
//! one leader only: every write is under preconditions, and the waits of the fence are each leader's
//! own.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;

use cairn_api::{
    Condition, ConditionStatus, FINALIZER, GracefulRestart, IPBlock, IPPool, IPPoolStatus,
    set_condition,
};
use cairn_ipam::FreeIndex;
use cairn_ipam::claims::{Pool, overlap, overlapped_by};
use cairn_ipam::fence::{GoneNode, LeaseSeen, LeaseWatch, Return, stands};
use ipnet::IpNet;
use k8s_openapi::api::coordination::v1::{Lease, LeaseSpec};
use k8s_openapi::api::core::v1::Node;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{MicroTime, Time};
use k8s_openapi::jiff::Timestamp;
use kube::ResourceExt;
use kube::api::{Api, ListParams, Patch, PatchParams, PostParams};
use serde_json::json;
use tokio::sync::watch;

use super::Shared;
use super::api::BlockApi;
use super::error::{IpamError, call};
use super::lease::{lease_name, node_uid_of};
use crate::view::ClusterView;

/// Stands for leader, and does the leader's duties while it is.
pub(super) async fn run(shared: Shared) {
    let interval_max =
        (shared.options.offline / 20).clamp(DUTIES_INTERVAL_MIN, DUTIES_INTERVAL_MAX);
    // Right after a change there is more to come, and somebody looks at what it did.
    let mut interval = DUTIES_INTERVAL_MIN;
    let mut view = shared.view.clone();
    let mut pools: BTreeMap<String, PoolLook> = BTreeMap::new();
    let mut leader = Leader::new(shared);
    let mut duties_due = Duration::ZERO;
    loop {
        let mut problems = Vec::new();
        match leader.stand().await {
            Ok(()) => {}
            Err(error) => problems.push(error.to_string()),
        }
        let leads = leader.leads(leader.shared.now());
        leader.shared.reports.change(|holdings| holdings.leads = leads);
        if !leads {
            leader.leases.interrupt();
            interval = DUTIES_INTERVAL_MIN;
        } else if leader.shared.now() >= duties_due {
            problems.extend(leader.duties().await);
            duties_due = leader.shared.now().saturating_add(interval);
            interval = (interval * 2).min(interval_max);
        }
        leader.shared.reports.report("leader", problems);
        let pause = match leader.shared.membership() {
            Ok(_) if leads => duties_due.saturating_sub(leader.shared.now()).min(leader.renewal()),
            Ok(_) => leader.renewal(),
            // The view has not come yet, or the Node is not there: no call, only a look at it.
            Err(_) => MEMBERSHIP_INTERVAL,
        };
        tokio::select! {
            biased;
            () = tokio::time::sleep(pause) => {}
            () = pools_changed(&mut view, &mut pools) => {
                duties_due = Duration::ZERO;
                interval = DUTIES_INTERVAL_MIN;
            }
        }
    }
}

/// A pool as far as people change it: its UID, its generation, whether it is ending.
type PoolLook = (Option<String>, Option<i64>, bool);

/// Waits until somebody has changed a pool: the answer should not wait for the next round.
async fn pools_changed(
    view: &mut watch::Receiver<Arc<ClusterView>>,
    known: &mut BTreeMap<String, PoolLook>,
) {
    let look = |pool: &IPPool| {
        (pool.uid(), pool.metadata.generation, pool.metadata.deletion_timestamp.is_some())
    };
    while view.changed().await.is_ok() {
        let now = Arc::clone(&view.borrow_and_update());
        let now = now.pools.iter().map(|(name, pool)| (name.clone(), look(pool))).collect();
        if *known != now {
            *known = now;
            return;
        }
    }
    std::future::pending().await
}

/// Whether there is another Node of a name whose Node is gone.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Successor {
    None,
    There,
    /// No answer, or the Node is there after all.
    Unknown,
}

struct Leader {
    shared: Shared,
    api: BlockApi,
    pools: Api<IPPool>,
    nodes: Api<Node>,
    lease_api: Api<Lease>,
    /// The last version of the leader's Lease and since when it is unchanged.
    seen: Option<(String, Duration)>,
    /// When this agent last wrote the leader's Lease with success.
    renewed: Option<Duration>,
    leases: LeaseWatch,
    /// For how long the leader's Lease holds without being renewed.
    term: Duration,
}

impl Leader {
    fn new(shared: Shared) -> Leader {
        let client = shared.client.clone();
        Leader {
            api: BlockApi::new(&client, shared.options.rules),
            pools: Api::all(client.clone()),
            nodes: Api::all(client.clone()),
            lease_api: Api::namespaced(client, &shared.options.namespace),
            leases: LeaseWatch::new(shared.options.offline),
            term: (shared.options.offline / 2).clamp(TERM_MIN, TERM_MAX),
            seen: None,
            renewed: None,
            shared,
        }
    }

    fn leads(&self, now: Duration) -> bool {
        self.renewed.is_some_and(|renewed| now < renewed.saturating_add(self.term))
    }

    /// How often the Lease is renewed, or looked at by who stands for it.
    fn renewal(&self) -> Duration {
        self.term / 3
    }

    fn is_candidate(&self) -> bool {
        let view = self.shared.view.borrow();
        stands(&self.shared.options.node, view.bgp_nodes.keys(), CANDIDATES_MAX)
    }

    /// Takes or renews the Lease if this agent may.
    async fn stand(&mut self) -> Result<(), IpamError> {
        let now = self.shared.now();
        if self.shared.membership().is_err() || !self.is_candidate() {
            self.renewed = None;
            return Ok(());
        }
        let due = self.renewed.map_or(Duration::ZERO, |at| at.saturating_add(self.renewal() / 2));
        if now < due {
            return Ok(());
        }
        let what = || format!("cannot write the Lease {LEADER}");
        let old = call(what, self.lease_api.get_opt(LEADER)).await?;
        let version = old.as_ref().and_then(|lease| lease.metadata.resource_version.clone());
        let spec = old.as_ref().and_then(|lease| lease.spec.clone()).unwrap_or_default();
        let holder = spec.holder_identity.clone().unwrap_or_default();
        let me = format!("{}/{}", self.shared.options.node, self.shared.options.boot_id);
        if old.is_some() && !holder.is_empty() && holder != me {
            self.renewed = None;
            let since = match &self.seen {
                Some((seen, since)) if Some(seen) == version.as_ref() => *since,
                _ => {
                    self.seen = version.map(|version| (version, now));
                    return Ok(());
                }
            };
            let secs = spec.lease_duration_seconds.and_then(|secs| u64::try_from(secs).ok());
            let duration = secs.map_or(self.term, Duration::from_secs);
            if now.saturating_sub(since) < duration {
                return Ok(());
            }
        }
        let mut lease = old.clone().unwrap_or_default();
        lease.metadata.name = Some(LEADER.to_owned());
        let time = MicroTime(Timestamp::now());
        let taken_over = holder != me;
        lease.spec = Some(LeaseSpec {
            holder_identity: Some(me),
            lease_duration_seconds: i32::try_from(self.term.as_secs()).ok(),
            acquire_time: if taken_over { Some(time.clone()) } else { spec.acquire_time },
            renew_time: Some(time),
            lease_transitions: Some(
                spec.lease_transitions.unwrap_or(0).saturating_add(i32::from(taken_over)),
            ),
            ..LeaseSpec::default()
        });
        let params = PostParams::default();
        let written = match old {
            None => call(what, self.lease_api.create(&params, &lease)).await,
            Some(_) => call(what, self.lease_api.replace(LEADER, &params, &lease)).await,
        };
        match written {
            Ok(_) => {
                if taken_over {
                    tracing::info!("this agent leads");
                }
                self.renewed = Some(now);
                Ok(())
            }
            // Another agent was first; the next look shows it.
            Err(error) if error.is_conflict() => Ok(()),
            Err(error) => Err(error),
        }
    }

    /// One pass over blocks and pools. What fails is named and tried again in the next.
    async fn duties(&mut self) -> Vec<String> {
        let mut problems = Vec::new();
        let looked = async {
            let blocks = self.api.list().await?;
            let what = || "cannot list pools".to_owned();
            let pools = call(what, self.pools.list(&ListParams::default())).await?.items;
            let gone = self.gone_nodes(&blocks).await?;
            Ok::<_, IpamError>((blocks, pools, gone))
        };
        let (blocks, pools, gone) = match looked.await {
            Ok(looked) => looked,
            Err(error) => {
                self.leases.interrupt();
                return vec![error.to_string()];
            }
        };
        self.leases.set_wait_min(stale_time_max(&self.shared.view.borrow()));
        self.return_blocks(&blocks, &gone, &mut problems).await;
        for pool in &pools {
            let written = async {
                let written = self.hold_pool(pool).await?;
                self.write_pool(written.as_ref().unwrap_or(pool), &pools, &blocks).await
            };
            if let Err(error) = written.await
                && !error.is_conflict()
                && !error.is_not_found()
            {
                problems.push(error.to_string());
            }
        }
        problems
    }

    /// Owners of blocks whose Node does not exist, and a look at their Leases.
    async fn gone_nodes(&mut self, blocks: &[IPBlock]) -> Result<BTreeSet<GoneNode>, IpamError> {
        let owners: BTreeSet<GoneNode> = blocks
            .iter()
            .map(|block| GoneNode {
                name: block.spec.node.name.clone(),
                uid: block.spec.node.uid.clone(),
            })
            .collect();
        let what = || "cannot list Nodes".to_owned();
        let nodes = call(what, self.nodes.list_metadata(&ListParams::default())).await?;
        let live: BTreeSet<GoneNode> = nodes
            .items
            .iter()
            .map(|node| GoneNode { name: node.name_any(), uid: node.uid().unwrap_or_default() })
            .collect();
        let gone: BTreeSet<GoneNode> = owners.difference(&live).cloned().collect();
        let mut leases = BTreeMap::new();
        for name in gone.iter().map(|node| &node.name).collect::<BTreeSet<_>>() {
            if let Some(seen) = self.node_lease(name).await? {
                leases.insert(name.clone(), seen);
            }
        }
        self.leases.observe(gone.iter().cloned(), &leases, self.shared.now());
        Ok(gone)
    }

    async fn return_blocks(
        &mut self,
        blocks: &[IPBlock],
        gone: &BTreeSet<GoneNode>,
        problems: &mut Vec<String>,
    ) {
        let mut checked: BTreeMap<GoneNode, Successor> = BTreeMap::new();
        for block in blocks {
            let node =
                GoneNode { name: block.spec.node.name.clone(), uid: block.spec.node.uid.clone() };
            if !gone.contains(&node)
                || self.leases.verdict(&node, self.shared.now()) != Return::Allowed
            {
                continue;
            }
            let Ok(cidr) = block.spec.cidr.parse::<IpNet>() else { continue };
            // A block of an earlier Node of this machine in which pods live: nobody tells a speaker
            // of its own routes.
            if self.shared.reports.holdings.borrow().announced.contains(&cidr) {
                continue;
            }
            if let Some(route) = self.route_into(cidr) {
                problems.push(format!(
                    "block {cidr} of the vanished node {} stays: somebody announces {route}; is \
                     the machine still on?",
                    node.name
                ));
                continue;
            }
            let successor = match checked.get(&node) {
                Some(successor) => *successor,
                None => {
                    let successor = self.successor(&node).await;
                    checked.insert(node.clone(), successor);
                    successor
                }
            };
            if successor == Successor::Unknown {
                continue;
            }
            match self.give_back(cidr, &node, successor).await {
                Ok(true) => {
                    tracing::info!(block = %cidr, node = node.name, "block of a vanished node returned")
                }
                Ok(false) => {}
                Err(error) if error.is_conflict() => {}
                Err(error) => problems.push(error.to_string()),
            }
            tokio::time::sleep(RETURN_PAUSE).await;
            if !self.leads(self.shared.now()) && self.stand().await.is_err() {
                return;
            }
        }
    }

    /// Returns a block unless its node's agent writes its Lease again. That agent writes its Lease
    /// first, then changes the block, then hands out: read the other way round, one of the two is
    /// seen or voids the DELETE.
    async fn give_back(
        &self,
        cidr: IpNet,
        node: &GoneNode,
        successor: Successor,
    ) -> Result<bool, IpamError> {
        let Some(block) = self.api.read(cidr).await? else { return Ok(false) };
        if block.spec.node.uid != node.uid {
            return Ok(false);
        }
        // The machine may be the same, and a route may be missing for a moment only. Its agent says
        // what is left in the blocks of earlier Nodes of its name.
        let used = block.status.as_ref().and_then(|status| status.used.as_deref());
        if successor == Successor::There && used.is_some_and(|used| used != "0") {
            return Ok(false);
        }
        let lease = self.node_lease(&node.name).await?;
        if !self.leases.is_unchanged(node, lease.as_ref()) {
            return Ok(false);
        }
        self.api.give_back(block).await
    }

    async fn node_lease(&self, name: &str) -> Result<Option<LeaseSeen>, IpamError> {
        let what = || format!("cannot read the Lease of node {name}");
        Ok(call(what, self.lease_api.get_opt(&lease_name(name))).await?.and_then(lease_seen))
    }

    /// What a consistent read says of a Node's name.
    async fn successor(&self, node: &GoneNode) -> Successor {
        let what = || format!("cannot read Node {}", node.name);
        match call(what, self.nodes.get_metadata_opt(&node.name)).await {
            Ok(None) => Successor::None,
            Ok(Some(found)) if found.uid().as_ref() != Some(&node.uid) => Successor::There,
            _ => Successor::Unknown,
        }
    }

    fn route_into(&self, cidr: IpNet) -> Option<IpNet> {
        let routes = self.shared.routes.borrow();
        let mut inside = routes.range(cidr..).take_while(|route| cidr.contains(&route.addr()));
        inside.next().copied()
    }

    /// Keeps a pool that is being deleted until its last block has gone (IPAM rule 1). The list that
    /// lets it go is made after the deletion was seen, so a claim that it misses comes later still,
    /// and its own reads find the pool ending. Returns the pool if it was written.
    async fn hold_pool(&self, pool: &IPPool) -> Result<Option<IPPool>, IpamError> {
        let mut finalizers = pool.finalizers().to_vec();
        let held = finalizers.iter().any(|finalizer| finalizer == FINALIZER);
        match (pool.metadata.deletion_timestamp.is_some(), held) {
            (false, false) => finalizers.push(FINALIZER.to_owned()),
            (true, true) => {
                let of_pool = |block: &IPBlock| Some(&block.spec.pool.uid) == pool.uid().as_ref();
                if self.api.list().await?.iter().any(of_pool) {
                    return Ok(None);
                }
                finalizers.retain(|finalizer| finalizer != FINALIZER);
            }
            _ => return Ok(None),
        }
        let version = &pool.metadata.resource_version;
        let patch = json!({"metadata": {"resourceVersion": version, "finalizers": finalizers}});
        let name = pool.name_any();
        let what = || format!("cannot write the finalizers of IPPool {name}");
        let params = PatchParams::default();
        call(what, self.pools.patch(&name, &params, &Patch::Merge(patch))).await.map(Some)
    }

    async fn write_pool(
        &self,
        pool: &IPPool,
        pools: &[IPPool],
        blocks: &[IPBlock],
    ) -> Result<(), IpamError> {
        let old = pool.status.clone().unwrap_or_default();
        let new = pool_status(pool, pools, blocks);
        if new == old {
            return Ok(());
        }
        let patch = json!({
            "metadata": {"resourceVersion": pool.metadata.resource_version},
            "status": {
                "blockSize": new.block_size,
                "blocks": new.blocks,
                "used": new.used,
                "free": new.free,
                "conditions": new.conditions,
            },
        });
        let name = pool.name_any();
        let what = || format!("cannot write the status of IPPool {name}");
        let params = PatchParams::default();
        call(what, self.pools.patch_status(&name, &params, &Patch::Merge(patch))).await?;
        Ok(())
    }
}

fn lease_seen(lease: Lease) -> Option<LeaseSeen> {
    let spec = lease.spec?;
    let secs = spec.lease_duration_seconds.and_then(|secs| u64::try_from(secs).ok());
    Some(LeaseSeen {
        version: lease.metadata.resource_version?,
        node_uid: node_uid_of(&spec.holder_identity?).to_owned(),
        promise: Duration::from_secs(secs?),
    })
}

/// What a pool's status should be.
fn pool_status(pool: &IPPool, pools: &[IPPool], blocks: &[IPBlock]) -> IPPoolStatus {
    let labels = BTreeMap::new();
    let mut status = pool.status.clone().unwrap_or_default();
    let parsed = Pool::parse(pool, &labels);
    let (ready, reason, message) = match &parsed {
        Err(error) => (false, "Invalid", error.to_string()),
        Ok(own) => {
            let all: Vec<Pool> =
                pools.iter().filter_map(|pool| Pool::parse(pool, &labels).ok()).collect();
            if own.terminating {
                let message = "the pool is being deleted: no new blocks or addresses";
                (false, "Terminating", message.to_owned())
            } else if let Some(first) = overlapped_by(own, &all) {
                let (name, cidr) = (&first.name, first.cidr);
                let message = format!(
                    "{} overlaps {cidr} of the older IPPool {name} and is not used: delete one",
                    own.cidr
                );
                (false, "Overlap", message)
            } else if own.disabled {
                let message = "spec.disabled is true: no new blocks or addresses";
                (false, "Disabled", message.to_owned())
            } else {
                (true, "Ready", "nodes may claim blocks".to_owned())
            }
        }
    };
    if let Ok(own) = &parsed {
        let of_pool: Vec<&IPBlock> =
            blocks.iter().filter(|block| block.spec.pool.uid == own.uid).collect();
        let used = of_pool
            .iter()
            .filter(|block| {
                block.spec.cidr.parse::<IpNet>().is_ok_and(|cidr| overlap(cidr, own.cidr))
            })
            .filter_map(|block| block.status.as_ref()?.used.as_ref()?.parse::<u128>().ok())
            .fold(0u128, u128::saturating_add);
        let host_bits = own.cidr.max_prefix_len() - own.cidr.prefix_len();
        let addresses = 1u128.checked_shl(host_bits.into()).unwrap_or(u128::MAX);
        let total = FreeIndex::new(own.cidr, own.block_size).total();
        status.block_size = Some(own.block_size);
        status.blocks = Some(format!("{}/{total}", of_pool.len()));
        status.used = Some(used.to_string());
        status.free = Some(addresses.saturating_sub(used).to_string());
    }
    set_condition(
        &mut status.conditions,
        Condition {
            type_: "Ready".to_owned(),
            status: if ready { ConditionStatus::True } else { ConditionStatus::False },
            reason: reason.to_owned(),
            message,
            last_transition_time: Time(Timestamp::now()),
            observed_generation: pool.metadata.generation,
        },
    );
    status
}

const LEADER: &str = "cairn-leader";
/// The agents that stand for leader at most.
const CANDIDATES_MAX: usize = 5;
/// The leader's term: half of what a node may go on alone, since a new leader begins to count only
/// when it leads, within what Kubernetes' own components use.
const TERM_MIN: Duration = Duration::from_secs(2);
const TERM_MAX: Duration = Duration::from_secs(15);
const DUTIES_INTERVAL_MIN: Duration = Duration::from_secs(1);
const MEMBERSHIP_INTERVAL: Duration = Duration::from_millis(200);
/// Well under the gap after which the waits of the fence start anew.
const DUTIES_INTERVAL_MAX: Duration = Duration::from_secs(60);
/// Between two returns, so that thousands of blocks of a rack do not starve the API server.
const RETURN_PAUSE: Duration = Duration::from_millis(20);

/// The longest time for which any peer keeps the routes of a node that is gone (RFC 4724).
fn stale_time_max(view: &ClusterView) -> Duration {
    let default = GracefulRestart::default();
    let cluster = view.bgp_configuration.as_ref().map_or(default, |c| c.spec.graceful_restart);
    let peers = view.bgp_peers.values().filter_map(|peer| peer.spec.graceful_restart);
    let times = peers.chain([cluster]).filter(|restart| restart.enabled);
    Duration::from_secs(times.map(|restart| restart.restart_time_secs).max().unwrap_or(0).into())
}
