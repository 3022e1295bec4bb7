//! Calls about blocks. Every read that a hand-out or a delete stands on leaves the resourceVersion
//! unset, so that the answer is not older than the call (IPAM rule 2).

use std::collections::BTreeMap;

use cairn_api::{
    FINALIZER, IPBlock, IPBlockSpec, IPPool, ObjectReference, block_name, block_range,
};
use cairn_ipam::claims::{overlap, overlapped_by};
use cairn_ipam::mark::{ANNOTATION_CLAIMED_BY, Claimant};
use cairn_ipam::{Pool, Rule, Rules};
use ipnet::IpNet;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::ListMeta;
use kube::ResourceExt;
use kube::api::{Api, DeleteParams, Patch, PatchParams, PostParams, Preconditions};
use serde_json::json;

use super::Shared;
use super::calls::Question;
use super::error::{IpamError, call};
use super::history::{History, Kind, Mark};
use super::reads;

/// The annotation that the owner writes when it takes up a block that it finds: only a write that
/// changes the object voids a DELETE still on its way.
const TAKEN_UP: &str = "cairn.network/taken-up";

/// For whom a block is claimed.
#[derive(Clone, Debug)]
pub(super) struct Owner {
    pub(super) node: ObjectReference,
    /// The machine that has the Node.
    pub(super) claimant: Claimant,
}

/// Blocks and pools at the API server.
#[derive(Clone, Debug)]
pub(super) struct BlockApi {
    blocks: Api<IPBlock>,
    pools: Api<IPPool>,
    rules: Rules,
    history: History,
}

/// What consistent reads say about a block that this node has claimed or found.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Verification {
    /// It is ours alone and its pool stands.
    Sole,
    /// Its object is gone, is being deleted or is another one.
    Gone,
    /// Its pool is gone, ends, is disabled, or an older pool overlaps it.
    PoolUnfit(String),
    /// Another node's block overlaps it, or another node announces it.
    Overlaps(String),
    /// Nobody announces it any more, but somebody did a short while ago.
    JustHeard,
}

impl BlockApi {
    pub(super) fn new(shared: &Shared) -> BlockApi {
        BlockApi {
            blocks: Api::all(shared.client.clone()),
            pools: Api::all(shared.client.clone()),
            rules: shared.options.rules,
            history: shared.history.clone(),
        }
    }

    /// Creates the block. A refusal with 409 says that somebody has it.
    pub(super) async fn claim(
        &self,
        cidr: IpNet,
        pool: &Pool,
        owner: Owner,
    ) -> Result<IPBlock, IpamError> {
        let Owner { node, claimant } = owner;
        let spec = IPBlockSpec {
            cidr: cidr.to_string(),
            range: block_range(cidr),
            pool: ObjectReference { name: pool.name.clone(), uid: pool.uid.clone() },
            node,
        };
        let mut block = IPBlock::new(&block_name(cidr), spec);
        block.metadata.finalizers = Some(vec![FINALIZER.to_owned()]);
        block.annotations_mut().insert(ANNOTATION_CLAIMED_BY.to_owned(), claimant.to_string());
        let what = || format!("cannot claim block {cidr}");
        let mark = self.history.mark(Kind::Block);
        let created = call(what, self.blocks.create(&PostParams::default(), &block)).await?;
        self.history.heard(mark, created.metadata.resource_version.as_deref());
        Ok(created)
    }

    /// Changes a block that was found, not claimed by this process, so that no earlier DELETE with
    /// its resourceVersion can still be carried out. It is `claimant`'s from then on, if one is named.
    pub(super) async fn take_up(
        &self,
        block: &IPBlock,
        by: &str,
        claimant: Option<&Claimant>,
    ) -> Result<IPBlock, IpamError> {
        let name = block.name_any();
        let mut annotations = BTreeMap::from([(TAKEN_UP, by.to_owned())]);
        annotations.extend(claimant.map(|of| (ANNOTATION_CLAIMED_BY, of.to_string())));
        let patch = json!({"metadata": {
            "uid": block.metadata.uid,
            "resourceVersion": block.metadata.resource_version,
            "annotations": annotations,
        }});
        let what = || format!("cannot take up block {}", block.spec.cidr);
        let params = PatchParams::default();
        let mark = self.history.mark(Kind::Block);
        let taken = call(what, self.blocks.patch(&name, &params, &Patch::Merge(patch))).await?;
        self.history.heard(mark, taken.metadata.resource_version.as_deref());
        Ok(taken)
    }

    /// Reads pool, pools and blocks consistently. Of two nodes that both write and then read at
    /// least one sees the other's block (IPAM rule 1).
    pub(super) async fn verify(&self, question: &Question) -> Result<Verification, IpamError> {
        let Question { cidr, uid, pool, .. } = question;
        let cidr = *cidr;
        let what = || format!("cannot verify block {cidr}");
        let mark = self.history.mark(Kind::Pool);
        let all = call(what, self.pools.list(&reads::consistent(self.rules))).await?;
        self.heard(mark, &all.metadata);
        let labels = Default::default();
        // A pool whose cidr cannot be read gives no blocks and hides none.
        let pools: Vec<Pool> =
            all.items.iter().filter_map(|pool| Pool::parse(pool, &labels).ok()).collect();
        let Some(own) = pools.iter().find(|other| other.uid == pool.uid) else {
            return Ok(Verification::PoolUnfit(format!("IPPool {} is gone", pool.name)));
        };
        let unfit = if own.terminating {
            Some(format!("IPPool {} is being deleted", own.name))
        } else if own.disabled {
            Some(format!("IPPool {} is disabled", own.name))
        } else if let Some(first) = overlapped_by(own, &pools) {
            Some(format!("IPPool {} overlaps the older {}", own.name, first.name))
        } else {
            own.held_back
                .clone()
                .filter(|_| question.newly_claimed && question.rules.hold(Rule::ForeignAddresses))
        };
        if let Some(reason) = unfit {
            return Ok(Verification::PoolUnfit(reason));
        }
        let range =
            reads::consistent(self.rules).fields(&format!("spec.range={}", block_range(cidr)));
        let mark = self.history.mark(Kind::Block);
        let listed = call(what, self.blocks.list(&range)).await?;
        self.heard(mark, &listed.metadata);
        let mut found = false;
        for other in &listed.items {
            if other.metadata.uid.as_ref() == Some(uid) {
                found = other.metadata.deletion_timestamp.is_none();
                continue;
            }
            let Ok(net) = other.spec.cidr.parse::<IpNet>() else { continue };
            if overlap(net, cidr) {
                let node = &other.spec.node.name;
                return Ok(Verification::Overlaps(format!("block {net} of node {node}")));
            }
        }
        Ok(if found { Verification::Sole } else { Verification::Gone })
    }

    /// The block's object now.
    pub(super) async fn read(&self, cidr: IpNet) -> Result<Option<IPBlock>, IpamError> {
        let what = || format!("cannot read block {cidr}");
        call(what, reads::get(&self.blocks, &block_name(cidr), self.rules)).await
    }

    /// Takes in the version of a list.
    fn heard(&self, mark: Mark, list: &ListMeta) {
        // One that may be old says nothing.
        if self.rules.hold(Rule::ConsistentReads) {
            self.history.heard(mark, list.resource_version.as_deref());
        }
    }

    /// Returns the block if it is still as `block` shows it: DELETE under preconditions, then the
    /// finalizer. True when it is gone. Whatever speaks for the return must have been looked at
    /// after `block` was read: a write that comes between voids the DELETE.
    pub(super) async fn give_back(&self, mut block: IPBlock) -> Result<bool, IpamError> {
        let cidr = block.spec.cidr.clone();
        let what = || format!("cannot give block {cidr} back");
        let name = block.name_any();
        if block.metadata.deletion_timestamp.is_none() {
            let preconditions = Preconditions {
                uid: block.metadata.uid.clone(),
                resource_version: block.metadata.resource_version.clone(),
            };
            let preconditions = self.rules.hold(Rule::DeletePreconditions).then_some(preconditions);
            let params = DeleteParams { preconditions, ..DeleteParams::default() };
            // A Status instead of the object says that it went at once.
            match call(what, self.blocks.delete(&name, &params)).await?.left() {
                Some(terminating) => block = terminating,
                None => return Ok(true),
            }
        }
        let kept: Vec<&String> =
            block.finalizers().iter().filter(|finalizer| *finalizer != FINALIZER).collect();
        let patch = json!({"metadata": {
            "uid": block.metadata.uid,
            "resourceVersion": block.metadata.resource_version,
            "finalizers": kept,
        }});
        let params = PatchParams::default();
        match call(what, self.blocks.patch(&name, &params, &Patch::Merge(patch))).await {
            Ok(_) => Ok(kept.is_empty()),
            Err(error) if error.is_not_found() => Ok(true),
            Err(error) => Err(error),
        }
    }
}
