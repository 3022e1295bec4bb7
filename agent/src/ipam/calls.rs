//! The calls about this node's own blocks, each with what it brings.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::Duration;

use cairn_api::{IPBlock, ObjectReference};
use cairn_ipam::claims::{CANDIDATES_MAX, candidate, free_index};
use cairn_ipam::{Claim, Pool, Rule, Rules};
use ipnet::IpNet;
use tokio::sync::watch;

use super::api::{BlockApi, Verification};
use super::error::IpamError;
use super::seams::{Clock, Heard, Witness};

/// What a call has brought.
pub(super) enum Done {
    Verified {
        cidr: IpNet,
        uid: String,
        term: Term,
        answer: Result<Verification, IpamError>,
    },
    Claimed(Box<Claimed>),
    Returned {
        cidr: IpNet,
        uid: String,
        term: Term,
        answer: Result<bool, IpamError>,
    },
    /// The UID of the object that is there now.
    Looked {
        cidr: IpNet,
        uid: String,
        answer: Result<Option<String>, IpamError>,
    },
    /// What others announce of each block.
    Heard {
        blocks: Vec<(IpNet, Option<String>)>,
    },
    Asserted {
        cidr: IpNet,
        answer: Result<Assertion, IpamError>,
    },
}

/// The span in which what was confirmed counts: while the fence stood without a break, and the API
/// server's history went on.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Term {
    /// How often the fence was raised.
    pub(super) fence: u64,
    /// How often history went backwards.
    pub(super) history: u64,
}

/// A block to be confirmed.
pub(super) struct Question {
    pub(super) cidr: IpNet,
    pub(super) uid: String,
    pub(super) pool: ObjectReference,
    /// The term in which this is asked.
    pub(super) term: Term,
    pub(super) newly_claimed: bool,
    /// Another machine of this Node might hand out from it until a moment ago.
    pub(super) inherited: bool,
    /// No pod of this node is known to be in it, so that it can wait for what peers say.
    pub(super) vacant: bool,
    /// What to write into the block first, different each time.
    pub(super) take_up: Option<String>,
    pub(super) rules: Rules,
}

/// Where claims of others may show besides the API server.
#[derive(Clone)]
pub(super) struct Ears {
    pub(super) routes: watch::Receiver<Arc<BTreeSet<IpNet>>>,
    pub(super) witness: Arc<dyn Witness>,
    pub(super) clock: Clock,
    /// Peers that say nothing until then, in time since boot, are not waited for any more.
    pub(super) deaf_until: Duration,
}

impl Ears {
    /// Waits until peers have said what they announce, but no longer than a while after the start:
    /// one that is down must not keep pods of a node waiting.
    async fn open(&self) {
        while self.clock.now() < self.deaf_until && !self.witness.settled().await {
            tokio::time::sleep(DEAF_LOOK).await;
        }
    }

    /// Whose a block is may be in doubt: after history went backwards the API server may have forgotten it, and
    /// another machine of this Node may still have pods in what it claimed. Who has it announces it all the
    /// while: who hears too few peers claims nothing then, and takes up nothing.
    async fn trust(
        &self,
        is_doubtful: bool,
        rules: Rules,
        what: impl FnOnce() -> String,
    ) -> Result<(), IpamError> {
        if !is_doubtful || !rules.hold(Rule::HearFirst) {
            return Ok(());
        }
        match self.witness.why_deaf(Duration::ZERO).await {
            Some(why) => Err(IpamError::Deaf { what: what(), why }),
            None => Ok(()),
        }
    }
}

/// A claim to be tried.
pub(super) struct Attempt {
    pub(super) term: Term,
    pub(super) rules: Rules,
    pub(super) node: ObjectReference,
    pub(super) claim: Claim,
    /// Prefixes of blocks that somebody has.
    pub(super) taken: Vec<IpNet>,
    /// Networks in which no address is handed out: blocks inside one are of no use.
    pub(super) reserved: Vec<IpNet>,
}

/// What a claim has brought.
#[derive(Default)]
pub(super) struct Claimed {
    /// The term in which it was sent.
    pub(super) term: Term,
    pub(super) claimed: Option<(IpNet, IPBlock)>,
    pub(super) refused: Vec<IpNet>,
    /// The block that was asked for by its address is another's: why it was not claimed.
    pub(super) owned: Option<(IpNet, String)>,
    /// A block that may be claimed now or later, and its pool's UID.
    pub(super) unclear: Option<(IpNet, String)>,
    /// Pools without a block that is not known to be taken.
    pub(super) full: Vec<String>,
    /// Pools that were asked.
    pub(super) pools: Vec<String>,
    pub(super) error: Option<IpamError>,
}

/// What the assertion of a block without object has brought.
pub(super) enum Assertion {
    /// The object is this node's.
    Ours(Box<IPBlock>),
    /// It is another's: whose.
    Theirs(String),
}

/// Asks whether a block is this node's alone.
pub(super) async fn verify(api: BlockApi, ears: Ears, question: Question) -> Done {
    let answer = verification(&api, &ears, &question).await;
    let Question { cidr, uid, term, .. } = question;
    Done::Verified { cidr, uid, term, answer }
}

async fn verification(
    api: &BlockApi,
    ears: &Ears,
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
    let answer = match question.rules.hold(Rule::VerifyAfterClaim) {
        true => api.verify(question).await?,
        false => Verification::Sole,
    };
    // The second witness: history of the API may have gone back (IPAM rule 3).
    if answer != Verification::Sole || !question.rules.hold(Rule::SecondWitness) {
        return Ok(answer);
    }
    // This node announces a block only once it is confirmed, so that of one just claimed even a
    // looped announcement is not of this process; nor is one of a block that rested without a pod. Any
    // other that was found it may have announced before.
    let inherited = question.inherited && question.vacant;
    let of_another = question.newly_claimed || inherited;
    let counts = |heard: &&Heard| of_another || !heard.looped;
    // A restored API may show one that this node had given back, and whose next owner it forgot.
    if question.newly_claimed || question.vacant {
        ears.open().await;
    }
    let heard = ears.witness.heard(cidr).await;
    let heard = heard.iter().find(counts).map(announcement);
    // Sessions may have ended since it was decided to ask.
    if heard.is_none() && (question.newly_claimed || question.vacant) {
        let what = || {
            let why = match inherited {
                true => "another machine had it before",
                false => "the API server's history went backwards",
            };
            format!("block {cidr} is not used yet: {why}")
        };
        let is_doubtful = question.term.history > 0 || inherited;
        ears.trust(is_doubtful, question.rules, what).await?;
    }
    if !question.newly_claimed {
        return Ok(heard.map_or(answer, Verification::Overlaps));
    }
    let routes = ears.routes.borrow();
    let used = routes.range(cidr..).take_while(|route| cidr.contains(&route.addr())).next();
    let used = || used.map(|route| format!("{route}, which another node announces"));
    Ok(heard.or_else(used).map_or(answer, Verification::Overlaps))
}

/// Claims the block that is named, or tries candidates of the pools in order until one is created.
pub(super) async fn claim(api: BlockApi, ears: Ears, attempt: Attempt) -> Done {
    let Attempt { term, rules, node, claim, taken, reserved } = attempt;
    let mut claimed = Claimed { term, ..Claimed::default() };
    let what = || "no block is claimed: the API server's history went backwards".to_owned();
    if let Err(error) = ears.trust(term.history > 0, rules, what).await {
        claimed.error = Some(error);
        return Done::Claimed(Box::new(claimed));
    }
    match claim {
        Claim::Block(pool, cidr) => claim_block(&api, &pool, cidr, node, &mut claimed).await,
        Claim::OneOf(pools) => {
            claimed.pools = pools.iter().map(|pool| pool.name.clone()).collect();
            for pool in &pools {
                let mut index = free_index(pool, &taken);
                reserved.iter().for_each(|prefix| index.take_inside(*prefix));
                if claim_any(&api, pool, &node, index, &mut claimed).await {
                    break;
                }
            }
        }
    }
    Done::Claimed(Box::new(claimed))
}

/// Whether the search is over.
async fn claim_any(
    api: &BlockApi,
    pool: &Pool,
    node: &ObjectReference,
    mut index: cairn_ipam::FreeIndex,
    claimed: &mut Claimed,
) -> bool {
    for attempt in 0..CANDIDATES_MAX {
        let attempt = u32::try_from(attempt).unwrap_or(u32::MAX);
        let Some(cidr) = candidate(&node.name, pool, &index, attempt) else {
            claimed.full.push(pool.name.clone());
            return false;
        };
        match api.claim(cidr, pool, node.clone()).await {
            Ok(block) => {
                claimed.claimed = Some((cidr, block));
                return true;
            }
            Err(error) if error.is_conflict() => {
                index.take(cidr);
                claimed.refused.push(cidr);
            }
            Err(error) => {
                claimed.fail(cidr, pool, error);
                return true;
            }
        }
    }
    false
}

async fn claim_block(
    api: &BlockApi,
    pool: &Pool,
    cidr: IpNet,
    node: ObjectReference,
    claimed: &mut Claimed,
) {
    match api.claim(cidr, pool, node.clone()).await {
        Ok(block) => claimed.claimed = Some((cidr, block)),
        Err(error) if error.is_conflict() => match api.read(cidr).await {
            // An earlier try that seemed to fail: the watch shows it.
            Ok(Some(block)) if block.spec.node == node => {}
            Ok(Some(block)) => claimed.owned = Some((cidr, owner(&block, &node))),
            // Returned a moment ago: the next try gets it.
            Ok(None) => {}
            Err(error) => claimed.error = Some(error),
        },
        Err(error) => claimed.fail(cidr, pool, error),
    }
}

fn owner(block: &IPBlock, node: &ObjectReference) -> String {
    let (cidr, owner) = (&block.spec.cidr, &block.spec.node.name);
    if *owner == node.name {
        return format!("block {cidr} is owned by an earlier Node object named {owner}");
    }
    format!("block {cidr} is owned by node {owner}")
}

impl Claimed {
    /// What the server may have done is never assumed: the watch will show it.
    fn fail(&mut self, cidr: IpNet, pool: &Pool, error: IpamError) {
        if error.is_unclear() {
            self.unclear = Some((cidr, pool.uid.clone()));
        }
        self.error = Some(error);
    }
}

/// Creates the object of a block in which pods live once more.
pub(super) async fn reassert(
    api: BlockApi,
    cidr: IpNet,
    pool: Pool,
    node: ObjectReference,
) -> Done {
    let answer = async {
        match api.claim(cidr, &pool, node.clone()).await {
            Err(error) if error.is_conflict() => match api.read(cidr).await? {
                Some(block) if block.spec.node == node => Ok(Assertion::Ours(Box::new(block))),
                Some(block) => Ok(Assertion::Theirs(owner(&block, &node))),
                None => Err(error),
            },
            created => created.map(|block| Assertion::Ours(Box::new(block))),
        }
    };
    Done::Asserted { cidr, answer: answer.await }
}

/// How often a start looks whether the sessions are up.
const DEAF_LOOK: Duration = Duration::from_millis(100);

/// Asks what other nodes announce of blocks of this node. What may be this node's own announcement on
/// its way back does not count.
pub(super) async fn listen(witness: Arc<dyn Witness>, cidrs: Vec<IpNet>) -> Done {
    let mut blocks = Vec::with_capacity(cidrs.len());
    for cidr in cidrs {
        let heard = witness.heard(cidr).await;
        let foreign = heard.iter().find(|heard| !heard.looped);
        blocks.push((cidr, foreign.map(announcement)));
    }
    Done::Heard { blocks }
}

fn announcement(heard: &Heard) -> String {
    format!("{}, which peer {} announces", heard.prefix, heard.peer)
}

/// Returns the block whose object has `uid`.
pub(super) async fn give_back(api: BlockApi, cidr: IpNet, uid: String, term: Term) -> Done {
    let answer = match api.read(cidr).await {
        Ok(Some(block)) if block.metadata.uid.as_ref() == Some(&uid) => api.give_back(block).await,
        found => found.map(|_| true),
    };
    Done::Returned { cidr, uid, term, answer }
}

/// Looks at a block that the watch does not show.
pub(super) async fn look(api: BlockApi, cidr: IpNet, uid: String) -> Done {
    let found = api.read(cidr).await;
    let answer = found.map(|block| block.and_then(|block| block.metadata.uid));
    Done::Looked { cidr, uid, answer }
}
