//! The status of pools, and the finalizer that keeps one until its last block has gone.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use cairn_api::{
    BlockAllocation, Condition, ConditionStatus, FINALIZER, IPPool, IPPoolStatus, set_condition,
};
use cairn_ipam::claims::{Pool, PoolError, REASON_FOREIGN};
use cairn_ipam::foreign::CensusPool;
use cairn_ipam::pool_status::{Judgement, Sums, Verdict, conflicts, nearly_full, ready, unfit};
use cairn_ipam::returns::BlockSeen;
use cairn_ipam::rules::Rule;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;
use k8s_openapi::jiff::Timestamp;
use kube::ResourceExt;
use kube::api::{Api, Patch, PatchParams};
use serde_json::json;

use super::foreign;
use super::lists::Lists;
use crate::ipam::Shared;
use crate::ipam::error::{IpamError, call};
use crate::ipam::events::{About, Reason};

/// The pools as the leader keeps them.
pub(super) struct Pools {
    shared: Shared,
    api: Api<IPPool>,
    lists: Lists,
    /// What was found in pools, by UID, and when.
    judged: BTreeMap<String, (Judgement, Duration)>,
}

impl Pools {
    pub(super) fn new(shared: Shared, lists: Lists) -> Pools {
        let api = Api::all(shared.client.clone());
        Pools { shared, api, lists, judged: BTreeMap::new() }
    }

    /// Somebody else may lead meanwhile: what was found counts no more.
    pub(super) fn forget(&mut self) {
        self.judged.clear();
    }

    /// When a pool is to be looked at again, if one waits for that.
    pub(super) fn next_look(&self) -> Option<Duration> {
        let foreign = self.judged.values();
        let foreign = foreign.filter(|(judgement, _)| matches!(judgement, Judgement::Foreign(_)));
        foreign.map(|(_, at)| at.saturating_add(FOREIGN_INTERVAL)).min()
    }

    /// Brings every pool up to date. What fails is named and tried again in the next pass.
    pub(super) async fn pass(&mut self, pools: &[IPPool], blocks: &[BlockSeen]) -> Vec<String> {
        let mut problems = Vec::new();
        let labels = BTreeMap::new();
        let parsed: Vec<Result<Pool, PoolError>> =
            pools.iter().map(|pool| Pool::parse(pool, &labels)).collect();
        let all: Vec<Pool> = parsed.iter().flatten().cloned().collect();
        if let Err(error) = self.judge(pools, &all, blocks).await {
            problems.push(error.to_string());
        }
        problems.extend(self.conflicts(pools, blocks));
        for (pool, own) in pools.iter().zip(&parsed) {
            let written = async {
                let written = self.hold(pool, blocks).await?;
                self.write(written.as_ref().unwrap_or(pool), own, &all, blocks).await
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

    /// Blocks that overlap, of whichever nodes. Their owners hand out nothing from them.
    fn conflicts(&self, pools: &[IPPool], blocks: &[BlockSeen]) -> Vec<String> {
        let sentence = |[outer, inner]: [&BlockSeen; 2]| {
            let [a, b] = [&outer.owner.name, &inner.owner.name];
            let sentence = format!(
                "block {} of node {a} overlaps block {} of node {b}: neither gives new addresses",
                outer.cidr, inner.cidr
            );
            let own = |pool: &&IPPool| pool.metadata.uid.as_deref() == Some(&*inner.pool_uid);
            if let Some(pool) = pools.iter().find(own) {
                self.shared.events.tell(about(pool), Reason::BlockConflict, sentence.clone());
            }
            sentence
        };
        conflicts(blocks).into_iter().map(sentence).collect()
    }

    /// Looks for others' addresses in the pools that wait for it.
    async fn judge(
        &mut self,
        pools: &[IPPool],
        all: &[Pool],
        blocks: &[BlockSeen],
    ) -> Result<(), IpamError> {
        let uids: BTreeSet<&String> = all.iter().map(|pool| &pool.uid).collect();
        self.judged.retain(|uid, _| uids.contains(uid));
        let now = self.shared.now();
        let mut waiting = Vec::new();
        for object in pools {
            let Some(own) = all.iter().find(|own| Some(&own.uid) == object.metadata.uid.as_ref())
            else {
                continue;
            };
            if unfit(own, all).is_some() {
                // Judged anew when nothing else speaks against it.
                self.judged.remove(&own.uid);
                continue;
            }
            if !self.shared.options.rules.hold(Rule::ForeignAddresses) {
                self.judged.insert(own.uid.clone(), (Judgement::Clear(None), now));
                continue;
            }
            if let Some(earlier) = judged_before(object) {
                self.judged.insert(own.uid.clone(), (earlier, now));
                continue;
            }
            let is_due = match self.judged.get(&own.uid) {
                None | Some((Judgement::Unknown, _)) => true,
                Some((Judgement::Clear(_), _)) => false,
                Some((Judgement::Foreign(_), at)) => now >= at.saturating_add(FOREIGN_INTERVAL),
            };
            if is_due {
                waiting.push(CensusPool {
                    uid: own.uid.clone(),
                    cidr: own.cidr,
                    of_pod_cidrs: object.spec.allocation == BlockAllocation::NodePodCIDR,
                });
            }
        }
        if waiting.is_empty() {
            return Ok(());
        }
        let looked = foreign::look(&self.lists, waiting.clone(), blocks).await?;
        for pool in waiting {
            let found = looked.found.get(&pool.uid);
            let judgement = match found.and_then(|found| found.sentence(pool.cidr)) {
                Some(sentence) => Judgement::Foreign(sentence),
                None => Judgement::Clear(looked.missed.clone()),
            };
            self.judged.insert(pool.uid, (judgement, now));
        }
        Ok(())
    }

    /// Keeps a pool that is being deleted until its last block has gone (IPAM rule 1). The list that
    /// lets it go is made after the deletion was seen, so a claim that it misses comes later still,
    /// and its own reads find the pool ending. Returns the pool if it was written.
    async fn hold(&self, pool: &IPPool, blocks: &[BlockSeen]) -> Result<Option<IPPool>, IpamError> {
        let mut finalizers = pool.finalizers().to_vec();
        let held = finalizers.iter().any(|finalizer| finalizer == FINALIZER);
        match (pool.metadata.deletion_timestamp.is_some(), held) {
            (false, false) => finalizers.push(FINALIZER.to_owned()),
            (true, true) => {
                let uid = pool.uid().unwrap_or_default();
                let waits = self.shared.options.rules.hold(Rule::PoolWaitsForBlocks);
                let has_blocks = blocks.iter().any(|block| *block.pool_uid == *uid);
                if waits && (has_blocks || self.lists.has_blocks(&uid).await?) {
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
        call(what, self.api.patch(&name, &params, &Patch::Merge(patch))).await.map(Some)
    }

    async fn write(
        &self,
        pool: &IPPool,
        own: &Result<Pool, PoolError>,
        all: &[Pool],
        blocks: &[BlockSeen],
    ) -> Result<(), IpamError> {
        let old = pool.status.clone().unwrap_or_default();
        let mut new = old.clone();
        match own {
            Err(error) => {
                let message = error.to_string();
                self.state(
                    pool,
                    &mut new,
                    "Ready",
                    Verdict { holds: false, reason: "Invalid", message },
                );
            }
            Ok(own) => {
                let unknown = Judgement::Unknown;
                let judgement = self.judged.get(&own.uid).map_or(&unknown, |(found, _)| found);
                if let Some(verdict) = ready(own, all, judgement) {
                    self.tell_unready(pool, &verdict);
                    self.state(pool, &mut new, "Ready", verdict);
                }
                let sums = Sums::of(own, blocks);
                let verdict = nearly_full(own.cidr, &sums);
                if verdict.holds && !own.terminating {
                    let full = sums.is_exhausted();
                    let reason = if full { Reason::PoolExhausted } else { Reason::PoolNearlyFull };
                    self.shared.events.tell(about(pool), reason, verdict.message.clone());
                }
                self.state(pool, &mut new, "NearlyFull", verdict);
                new.block_size = Some(own.block_size);
                new.blocks = Some(format!("{}/{}", sums.blocks, sums.blocks_total));
                new.used = Some(sums.used.to_string());
                new.free = Some(sums.free().to_string());
                new.total = Some(sums.total.to_string());
            }
        }
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
                "total": new.total,
                "conditions": new.conditions,
            },
        });
        let name = pool.name_any();
        let what = || format!("cannot write the status of IPPool {name}");
        let params = PatchParams::default();
        call(what, self.api.patch_status(&name, &params, &Patch::Merge(patch))).await?;
        Ok(())
    }

    fn state(&self, pool: &IPPool, status: &mut IPPoolStatus, type_: &str, verdict: Verdict) {
        let Verdict { holds, reason, message } = verdict;
        let condition = Condition {
            type_: type_.to_owned(),
            status: if holds { ConditionStatus::True } else { ConditionStatus::False },
            reason: reason.to_owned(),
            message,
            last_transition_time: Time(Timestamp::now()),
            observed_generation: pool.metadata.generation,
        };
        set_condition(&mut status.conditions, condition);
    }

    fn tell_unready(&self, pool: &IPPool, verdict: &Verdict) {
        let reason = match verdict.reason {
            REASON_FOREIGN => Reason::ForeignAddresses,
            "Overlap" => Reason::PoolOverlap,
            _ => return,
        };
        self.shared.events.tell(about(pool), reason, verdict.message.clone());
    }
}

fn about(pool: &IPPool) -> About {
    About::Pool { name: pool.name_any(), uid: pool.uid().unwrap_or_default() }
}

/// What an earlier pass, of whichever leader, has found: a pool that was good once stays so, since
/// its own pods' addresses are in it from then on.
fn judged_before(pool: &IPPool) -> Option<Judgement> {
    let conditions = pool.status.iter().flat_map(|status| &status.conditions);
    let mut ready = conditions.filter(|condition| {
        condition.type_ == "Ready" && condition.status == ConditionStatus::True
    });
    let missed = ready.next()?.message.split_once("; ").map(|(_, missed)| missed.to_owned());
    Some(Judgement::Clear(missed))
}

/// How often a pool in which others' addresses lie is looked at again.
const FOREIGN_INTERVAL: Duration = Duration::from_secs(30);
