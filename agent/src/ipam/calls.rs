//! The calls about this node's own blocks, one under way at a time, each with what it brings.

use std::collections::BTreeSet;
use std::sync::Arc;

use cairn_api::{IPBlock, ObjectReference};
use cairn_ipam::Pool;
use cairn_ipam::claims::{CANDIDATES_MAX, candidate, free_index};
use ipnet::IpNet;
use tokio::sync::watch;

use super::api::{BlockApi, Verification};
use super::error::IpamError;

/// What a call has brought.
pub(super) enum Done {
    Verified { cidr: IpNet, uid: String, term: u64, answer: Result<Verification, IpamError> },
    Claimed(Claim),
    Returned { cidr: IpNet, uid: String, answer: Result<bool, IpamError> },
    Looked { cidr: IpNet, uid: String, answer: Result<Option<IPBlock>, IpamError> },
}

/// A block to be confirmed.
pub(super) struct Question {
    pub(super) cidr: IpNet,
    pub(super) uid: String,
    pub(super) pool: ObjectReference,
    /// The fence's term in which this is asked.
    pub(super) term: u64,
    pub(super) newly_claimed: bool,
    /// What to write into the block first, different each time.
    pub(super) take_up: Option<String>,
}

/// A claim to be tried.
pub(super) struct Attempt {
    pub(super) term: u64,
    pub(super) node: ObjectReference,
    pub(super) pools: Vec<Pool>,
    pub(super) taken: Vec<IpNet>,
}

/// What a claim has brought.
#[derive(Default)]
pub(super) struct Claim {
    /// The fence's term in which it was sent.
    pub(super) term: u64,
    pub(super) claimed: Option<(IpNet, IPBlock)>,
    pub(super) refused: Vec<IpNet>,
    /// A block that may be claimed now or later, and its pool's UID.
    pub(super) unclear: Option<(IpNet, String)>,
    /// Pools without a block that is not known to be taken.
    pub(super) full: Vec<String>,
    pub(super) error: Option<IpamError>,
}

/// Asks whether a block is this node's alone.
pub(super) async fn verify(
    api: BlockApi,
    routes: watch::Receiver<Arc<BTreeSet<IpNet>>>,
    question: Question,
) -> Done {
    let answer = verification(&api, &routes, &question).await;
    let Question { cidr, uid, term, .. } = question;
    Done::Verified { cidr, uid, term, answer }
}

async fn verification(
    api: &BlockApi,
    routes: &watch::Receiver<Arc<BTreeSet<IpNet>>>,
    question: &Question,
) -> Result<Verification, IpamError> {
    let cidr = question.cidr;
    if let Some(by) = &question.take_up {
        let Some(block) = api.read(cidr).await? else { return Ok(Verification::Gone) };
        if block.metadata.uid.as_ref() != Some(&question.uid) {
            return Ok(Verification::Gone);
        }
        api.take_up(&block, by).await?;
    }
    let answer = api.verify(cidr, &question.uid, &question.pool).await?;
    // The second witness: history of the API may have gone back (IPAM rule 3).
    let routes = routes.borrow();
    let heard = routes.range(cidr..).take_while(|route| cidr.contains(&route.addr())).next();
    Ok(match (answer, heard) {
        (Verification::Sole, Some(route)) if question.newly_claimed => {
            Verification::Overlaps(format!("{route}, which another node announces"))
        }
        (answer, _) => answer,
    })
}

/// Tries candidates of the pools in order until one is created.
pub(super) async fn claim(api: BlockApi, attempt: Attempt) -> Done {
    let Attempt { term, node, pools, taken } = attempt;
    let mut claim = Claim { term, ..Claim::default() };
    for pool in &pools {
        let mut index = free_index(pool, &taken);
        for attempt in 0..CANDIDATES_MAX {
            let attempt = u32::try_from(attempt).unwrap_or(u32::MAX);
            let Some(cidr) = candidate(&node.name, pool, &index, attempt) else {
                claim.full.push(pool.name.clone());
                break;
            };
            match api.claim(cidr, pool, node.clone()).await {
                Ok(block) => {
                    claim.claimed = Some((cidr, block));
                    return Done::Claimed(claim);
                }
                Err(error) if error.is_conflict() => {
                    index.take(cidr);
                    claim.refused.push(cidr);
                }
                Err(error) => {
                    // What the server may have done is never assumed: the watch will show it.
                    if error.is_unclear() {
                        claim.unclear = Some((cidr, pool.uid.clone()));
                    }
                    claim.error = Some(error);
                    return Done::Claimed(claim);
                }
            }
        }
    }
    Done::Claimed(claim)
}

/// Returns the block whose object has `uid`.
pub(super) async fn give_back(api: BlockApi, cidr: IpNet, uid: String) -> Done {
    let answer = match api.read(cidr).await {
        Ok(Some(block)) if block.metadata.uid.as_ref() == Some(&uid) => api.give_back(block).await,
        found => found.map(|_| true),
    };
    Done::Returned { cidr, uid, answer }
}

/// Looks at a block that the watch does not show.
pub(super) async fn look(api: BlockApi, cidr: IpNet, uid: String) -> Done {
    Done::Looked { cidr, uid, answer: api.read(cidr).await }
}
