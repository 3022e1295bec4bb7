//! What is told of the node's blocks: to the owner of the addresses, to the speaker, to people.

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::time::Duration;

use cairn_ipam::claims::pod_pools;
use cairn_ipam::fence::OwnFence;
use cairn_ipam::{AttachmentId, BlockUsage, Decision, Demand, OwnBlock, OwnedBlock, Rule};
use ipnet::IpNet;

use super::IpamOptions;
use super::blocks::Blocks;
use super::held::Phase;
use cairn_cni::PodIdentity;

/// What was published.
#[derive(Debug, Default)]
pub(super) struct Published {
    told: BTreeMap<IpNet, Told>,
    revisions: u64,
    /// The end of the permission to hand out.
    until: Duration,
    /// Demands that cannot be met, with the reason, and until when that is said.
    refusals: BTreeMap<Demand, (String, Duration)>,
}

/// What was published of a block.
#[derive(Clone, Copy, Debug)]
struct Told {
    open: bool,
    /// Which [`OwnedBlock::revision`] said so.
    revision: u64,
}

impl Published {
    /// Moves the end of the permission on: rarely, since everything that hears of blocks hears of
    /// this.
    pub(super) fn renew(&mut self, fence: &OwnFence, options: &IpamOptions, now: Duration) {
        if !options.rules.hold(Rule::OwnFence) {
            self.until = Duration::MAX;
        } else if let Some(deadline) = fence.deadline()
            && self.until <= now.saturating_add(margin(options.offline))
        {
            self.until = deadline;
        }
    }

    /// When the permission is to be renewed.
    pub(super) fn renewal(&self, offline: Duration) -> Duration {
        self.until.saturating_sub(margin(offline))
    }

    /// When refusals are forgotten.
    pub(super) fn forgets(&self) -> impl Iterator<Item = Duration> {
        self.refusals.values().map(|(_, until)| *until)
    }

    /// Whether the address book has closed the block since it was told to, with no pod in it.
    pub(super) fn is_shut(&self, cidr: &IpNet, usages: &BTreeMap<IpNet, BlockUsage>) -> bool {
        self.told.get(cidr).zip(usages.get(cidr)).is_some_and(|(told, usage)| {
            let heard = usage.revision == told.revision;
            !told.open && heard && !usage.hand_out && usage.used == 0
        })
    }

    /// Takes in which demands cannot be met. A refusal outlives the demand for a while: the pod that
    /// gave up comes back, and what is said must not flap between its tries.
    pub(super) fn remember(
        &mut self,
        refusals: BTreeMap<Demand, String>,
        short: &[Demand],
        changed: bool,
        now: Duration,
    ) {
        self.refusals.retain(|demand, (_, until)| {
            *until > now && !changed && (refusals.contains_key(demand) || !short.contains(demand))
        });
        for (demand, reason) in refusals {
            if self.refusals.contains_key(&demand) || self.refusals.len() < REFUSALS_MAX {
                self.refusals.insert(demand, (reason, now.saturating_add(REFUSAL_FOR)));
            }
        }
    }

    /// Says when what is told of a block's permission was told first.
    fn tell(&mut self, block: &mut OwnedBlock) {
        let open = block.hand_out;
        let told = self.told.get(&block.cidr).filter(|told| told.open == open).copied();
        let told = told.unwrap_or_else(|| {
            self.revisions = self.revisions.saturating_add(1);
            Told { open, revision: self.revisions }
        });
        block.revision = told.revision;
        self.told.insert(block.cidr, told);
    }
}

impl Blocks {
    pub(super) fn publish(
        &mut self,
        decision: &Decision,
        own: &[OwnBlock],
        usages: &BTreeMap<IpNet, BlockUsage>,
        outside: &[(IpAddr, AttachmentId)],
        now: Duration,
    ) {
        let used = |cidr: &IpNet| usages.get(cidr).is_some_and(|usage| usage.used > 0);
        let until = self.published.until;
        let closed = |cidr: &IpNet, pool: &str| OwnedBlock {
            cidr: *cidr,
            pool: pool.to_owned(),
            hand_out: false,
            until,
            revision: 0,
            newly_claimed: false,
        };
        let mut blocks = Vec::new();
        let mut announced = Vec::new();
        for (cidr, held) in &self.ledger.held {
            if held.phase == Phase::Confirmed || used(cidr) {
                announced.push(*cidr);
            }
            let open = decision.verdicts.iter().any(|v| v.cidr == *cidr && v.closed.is_none());
            blocks.push(OwnedBlock {
                hand_out: open,
                newly_claimed: held.newly_claimed,
                ..closed(cidr, &held.pool.name)
            });
        }
        for (cidr, lost) in &self.ledger.lost {
            if !lost.is_announced_whole() {
                let held = usages.get(cidr).into_iter().flat_map(|usage| &usage.allocations);
                // The owner of the addresses may have yet to hear of the block.
                let held = held.chain(outside.iter().filter(|(a, _)| cidr.contains(a)));
                announced.extend(held.map(|(address, _)| IpNet::from(*address)));
            } else if usages.get(cidr).is_some_and(|usage| !usage.is_vacant()) {
                announced.push(*cidr);
            }
            blocks.push(closed(cidr, &lost.pool.name));
        }
        blocks.iter_mut().for_each(|block| self.published.tell(block));
        self.published.told.retain(|cidr, _| blocks.iter().any(|block| block.cidr == *cidr));
        announced.sort_unstable();
        announced.dedup();
        blocks.sort_unstable_by_key(|block| block.cidr);
        let conflicts = self.conflicts(now);
        // One that another has claimed is not asserted again.
        let lodgings = decision.lodgings.iter().filter(|cidr| !conflicts.contains_key(*cidr));
        let lodgings = lodgings.copied().collect();
        let found = self.ledger.held.iter();
        let found = found.filter(|(_, held)| self.ledger.is_found(held) || held.is_inherited());
        let found = found.map(|(cidr, _)| *cidr).collect();
        let site = self.site();
        let mut pools = pod_pools(&site.pools, own);
        pools.extend(site.invalid.iter().cloned());
        pools.sort_by(|a, b| a.name.cmp(&b.name));
        let refusals = self.published.refusals.iter();
        let refusals =
            refusals.map(|(demand, (reason, _))| (demand.clone(), reason.clone())).collect();
        self.shared.reports.change(|holdings| {
            holdings.announced = announced;
            holdings.blocks = blocks;
            holdings.found = found;
            holdings.lodgings = lodgings;
            holdings.told = true;
            holdings.families = site.families();
            holdings.ahead = site.families_ahead();
            holdings.elsewhere = site.pools_serve_elsewhere();
            holdings.pools = pools;
            holdings.reserved = site.reserved.clone();
            holdings.refusals = refusals;
            holdings.conflicts = conflicts;
        });
    }

    /// Blocks in conflict, with who else has them.
    fn conflicts(&self, now: Duration) -> BTreeMap<IpNet, String> {
        let held = self.ledger.held.iter().filter_map(|(cidr, held)| match &held.phase {
            Phase::Conflict(with) => Some((*cidr, with.clone())),
            Phase::Gone | Phase::Releasing { .. } => None,
            _ => held.contested(now).map(|what| (*cidr, what.to_owned())),
        });
        let lost = self.ledger.lost.iter();
        let lost = lost.filter_map(|(cidr, lost)| Some((*cidr, lost.conflict.clone()?)));
        held.chain(lost).collect()
    }

    pub(super) fn problems(
        &self,
        usages: &BTreeMap<IpNet, BlockUsage>,
        pods: &BTreeMap<AttachmentId, PodIdentity>,
        now: Duration,
    ) -> Vec<String> {
        let full = self.full.keys().map(|pool| {
            format!("IPPool {pool} has no free block: every one is claimed, announced or reserved")
        });
        let unfit = self.ledger.held.iter().filter_map(|(cidr, held)| match &held.phase {
            Phase::Unfit(reason) => Some(format!("block {cidr} is not used: {reason}")),
            _ => None,
        });
        let conflicts = self.conflicts(now);
        let conflicts = conflicts
            .iter()
            .map(|(cidr, with)| conflict(*cidr, with, usages.get(cidr), pods, PROBLEM_PODS_MAX));
        full.chain(unfit).chain(conflicts).chain(self.errors.values().cloned()).collect()
    }
}

/// A conflict in a sentence: what collides, and which pods of this node hold addresses there.
pub(super) fn conflict(
    cidr: IpNet,
    with: &str,
    usage: Option<&BlockUsage>,
    pods: &BTreeMap<AttachmentId, PodIdentity>,
    pods_max: usize,
) -> String {
    let allocations = usage.map_or(&[][..], |usage| usage.allocations.as_slice());
    if allocations.is_empty() {
        return format!("block {cidr} is in conflict: {with}; no pod of this node lives in it");
    }
    let mut held: Vec<String> = allocations
        .iter()
        .take(pods_max)
        .map(|(address, id)| match pods.get(id).filter(|pod| pod.name().is_some()) {
            Some(pod) => format!("{address} ({pod})"),
            None => format!("{address} ({})", holder(id)),
        })
        .collect();
    let more = allocations.len().saturating_sub(held.len());
    if more > 0 {
        held.push(format!("{more} more"));
    }
    format!(
        "block {cidr} is in conflict: {with}; pods of this node hold {}: end them here or there, \
         each side keeps what runs",
        held.join(", ")
    )
}

/// Who holds an address for which no pod is known.
pub(super) fn holder(id: &AttachmentId) -> String {
    match id.device() {
        Some(device) => format!("this node's {device}"),
        None => format!("container {}", id.container_id),
    }
}

fn margin(offline: Duration) -> Duration {
    offline / 2
}

/// The pods that one problem names at most.
const PROBLEM_PODS_MAX: usize = 10;
/// What a refusal is said for after its demand was heard last.
const REFUSAL_FOR: Duration = Duration::from_secs(30);
/// Refusals that are said at most: one a pod that asks for an address of its own.
const REFUSALS_MAX: usize = 1024;
