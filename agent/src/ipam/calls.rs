//! The calls about this node's own blocks, each with what it brings.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::Duration;

use cairn_api::{IPBlock, ObjectReference};
use cairn_ipam::claims::{CANDIDATES_MAX, candidate, free_index};
use cairn_ipam::mark::{Claimant, Likeness};
use cairn_ipam::{Claim, Pool, Rule, Rules};
use ipnet::IpNet;
use tokio::sync::watch;

use super::api::{BlockApi, Owner, Verification};
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
    /// What the machine that claimed it is to this one, and whether that was heard a short while ago.
    pub(super) claimed_by: Likeness,
    pub(super) just_heard: bool,
    /// It ends. All that is asked is whether another machine that claimed it is heard.
    pub(super) terminating: bool,
    /// It was found after history had gone backwards.
    pub(super) forgotten: bool,
    /// History went backwards in this boot.
    pub(super) history_doubted: bool,
    /// No pod of this node is known to be in it, so that it can wait for what peers say.
    pub(super) vacant: bool,
    /// What to write into the block first, different each time, and this machine.
    pub(super) take_up: Option<(String, Claimant)>,
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
    /// How long a session has to have lasted for what it has brought to be all.
    pub(super) lasting: Duration,
    /// The node's name.
    pub(super) node: String,
}

impl Ears {
    /// Waits until peers have said what they announce, but no longer than a while after the start:
    /// one that is down must not keep pods of a node waiting.
    async fn open(&self) {
        while self.clock.now() < self.deaf_until && !self.witness.settled().await {
            tokio::time::sleep(DEAF_LOOK).await;
        }
    }

    /// After history went backwards the API server may have forgotten whose a block is, or show one that
    /// this node had given back. Who has it announces it all the while: who hears too few peers claims
    /// nothing then, and takes up nothing.
    async fn trust_history(&self, what: impl FnOnce() -> String) -> Result<(), IpamError> {
        match self.witness.why_deaf(Duration::ZERO).await {
            Some(why) => {
                let what = format!("{}: the API server's history went backwards", what());
                Err(IpamError::Deaf { what, why, otherwise: String::new() })
            }
            None => Ok(()),
        }
    }

    /// Another machine may have pods in a block that it claimed under this Node. A machine that looks the
    /// same, as after a reboot, is thought to be no copy where the mesh is heard.
    async fn trust_namesake(&self, cidr: IpNet, is_like: bool) -> Result<(), IpamError> {
        let why = match is_like {
            true => self.witness.why_deaf(self.lasting).await,
            false => self.witness.why_deaf_to_namesake(self.lasting).await,
        };
        why.map_or(Ok(()), |why| Err(self.deaf_to_namesake(cidr, why)))
    }

    fn deaf_to_namesake(&self, cidr: IpNet, why: String) -> IpamError {
        let what = format!("block {cidr} is not used yet: another machine of this Node claimed it");
        let otherwise = format!(
            ", or if every machine that had this Node before is off: cairn ipam fence {} --earlier",
            self.node
        );
        IpamError::Deaf { what, why, otherwise }
    }
}

impl Question {
    /// Nothing that this node has handed out is in it, so that it can wait for what peers say.
    fn waits(&self) -> bool {
        self.newly_claimed || self.vacant
    }

    fn is_inherited(&self) -> bool {
        self.claimed_by != Likeness::Same
    }

    /// Writes that the block is taken up, and that it is this machine's. False when it is gone.
    async fn take_up(&self, api: &BlockApi, is_own: bool) -> Result<bool, IpamError> {
        let Some((by, claimant)) = &self.take_up else { return Ok(true) };
        let found = api.read(self.cidr).await?;
        let found = found.filter(|block| block.metadata.uid.as_ref() == Some(&self.uid));
        let Some(block) = found else { return Ok(false) };
        api.take_up(&block, by, is_own.then_some(claimant)).await?;
        Ok(true)
    }

    /// Whether hearing nothing of the block says something.
    async fn trust(&self, ears: &Ears) -> Result<(), IpamError> {
        if !self.rules.hold(Rule::HearFirst) {
            return Ok(());
        }
        if !self.waits() {
            // This node announces it, too.
            let why =
                "pods of this machine run in it, and announcements do not tell whose they are";
            return match self.claimed_by {
                Likeness::Other => Err(ears.deaf_to_namesake(self.cidr, why.to_owned())),
                Likeness::Same | Likeness::Like => Ok(()),
            };
        }
        if self.history_doubted {
            ears.trust_history(|| format!("block {} is not used yet", self.cidr)).await?;
        }
        if self.is_inherited() {
            ears.trust_namesake(self.cidr, self.claimed_by == Likeness::Like).await?;
        }
        Ok(())
    }
}

/// A claim to be tried.
pub(super) struct Attempt {
    pub(super) term: Term,
    /// History went backwards in this boot.
    pub(super) history_doubted: bool,
    pub(super) rules: Rules,
    pub(super) owner: Owner,
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
    // A restored API may show one that this node had given back, and whose next owner it forgot.
    if question.rules.hold(Rule::SecondWitness) {
        if question.waits() {
            ears.open().await;
        }
        question.trust(ears).await?;
        if question.is_inherited() && question.waits() {
            if let Some(heard) = ears.witness.heard(cidr).await.first() {
                return Ok(Verification::Overlaps(announcement(heard)));
            }
            if question.just_heard && question.claimed_by == Likeness::Other {
                return Ok(Verification::JustHeard);
            }
        }
    }
    if question.terminating {
        return Ok(Verification::Sole);
    }
    let is_inherited = question.is_inherited();
    // That it is this machine's is written when that is decided.
    if !question.take_up(api, !is_inherited).await? {
        return Ok(Verification::Gone);
    }
    let answer = match question.rules.hold(Rule::VerifyAfterClaim) {
        true => api.verify(question).await?,
        false => Verification::Sole,
    };
    let answer = match answer {
        Verification::Sole => witnessed(ears, question).await?,
        // Whose it is decides what becomes of it then.
        Verification::PoolUnfit(_) if is_inherited => match witnessed(ears, question).await? {
            Verification::Sole => answer,
            heard => heard,
        },
        answer => return Ok(answer),
    };
    let is_decided = matches!(answer, Verification::Sole | Verification::PoolUnfit(_));
    if is_inherited && is_decided && !question.take_up(api, true).await? {
        return Ok(Verification::Gone);
    }
    Ok(answer)
}

/// What others' announcements make of a block that the API server says to be this node's alone.
async fn witnessed(ears: &Ears, question: &Question) -> Result<Verification, IpamError> {
    let (cidr, answer) = (question.cidr, Verification::Sole);
    // The second witness: history of the API may have gone back (IPAM rule 3).
    if !question.rules.hold(Rule::SecondWitness) {
        return Ok(answer);
    }
    // This node announces a block only once it is confirmed, so that of one just claimed even a
    // looped announcement is not of this process; nor is one of a block that rested without a pod. Any
    // other that was found it may have announced before.
    let in_doubt = question.is_inherited() || question.forgotten;
    let of_another = question.newly_claimed || (in_doubt && question.vacant);
    let counts = |heard: &&Heard| of_another || !heard.looped;
    let heard = ears.witness.heard(cidr).await;
    let heard = heard.iter().find(counts).map(announcement);
    // Sessions may have ended meanwhile.
    if heard.is_none() {
        question.trust(ears).await?;
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
    let Attempt { term, history_doubted, rules, owner, claim, taken, reserved } = attempt;
    let mut claimed = Claimed { term, ..Claimed::default() };
    if history_doubted
        && rules.hold(Rule::HearFirst)
        && let Err(error) = ears.trust_history(|| "no block is claimed".to_owned()).await
    {
        claimed.error = Some(error);
        return Done::Claimed(Box::new(claimed));
    }
    match claim {
        Claim::Block(pool, cidr) => claim_block(&api, &pool, cidr, owner, &mut claimed).await,
        Claim::OneOf(pools) => {
            claimed.pools = pools.iter().map(|pool| pool.name.clone()).collect();
            for pool in &pools {
                let mut index = free_index(pool, &taken);
                reserved.iter().for_each(|prefix| index.take_inside(*prefix));
                if claim_any(&api, pool, &owner, index, &mut claimed).await {
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
    owner: &Owner,
    mut index: cairn_ipam::FreeIndex,
    claimed: &mut Claimed,
) -> bool {
    for attempt in 0..CANDIDATES_MAX {
        let attempt = u32::try_from(attempt).unwrap_or(u32::MAX);
        let Some(cidr) = candidate(&owner.node.name, pool, &index, attempt) else {
            claimed.full.push(pool.name.clone());
            return false;
        };
        match api.claim(cidr, pool, owner.clone()).await {
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
    owner: Owner,
    claimed: &mut Claimed,
) {
    let node = owner.node.clone();
    match api.claim(cidr, pool, owner).await {
        Ok(block) => claimed.claimed = Some((cidr, block)),
        Err(error) if error.is_conflict() => match api.read(cidr).await {
            // An earlier try that seemed to fail: the watch shows it.
            Ok(Some(block)) if block.spec.node == node => {}
            Ok(Some(block)) => claimed.owned = Some((cidr, owned_by(&block, &node))),
            // Returned a moment ago: the next try gets it.
            Ok(None) => {}
            Err(error) => claimed.error = Some(error),
        },
        Err(error) => claimed.fail(cidr, pool, error),
    }
}

fn owned_by(block: &IPBlock, node: &ObjectReference) -> String {
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
pub(super) async fn reassert(api: BlockApi, cidr: IpNet, pool: Pool, owner: Owner) -> Done {
    let node = owner.node.clone();
    let answer = async {
        match api.claim(cidr, &pool, owner).await {
            Err(error) if error.is_conflict() => match api.read(cidr).await? {
                Some(block) if block.spec.node == node => Ok(Assertion::Ours(Box::new(block))),
                Some(block) => Ok(Assertion::Theirs(owned_by(&block, &node))),
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
