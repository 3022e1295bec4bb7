//! What this node knows of each of its blocks, and how the watch changes that.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::time::Duration;

use cairn_api::{IPBlock, ObjectReference, block_name};
use cairn_ipam::claims::{block_of, overlap};
use cairn_ipam::fence::OwnFence;
use cairn_ipam::mark::{ANNOTATION_CLAIMED_BY, Claimant, Likeness};
use cairn_ipam::{AttachmentId, BlockState, BlockUsage, OwnBlock, Pool, Rule, Rules};
use ipnet::IpNet;
use kube::ResourceExt;

use super::disk::KeptBlock;
use super::history::number;
use super::lease::{Off, Told};
use crate::view::ClusterView;

/// A block whose object names this Node.
#[derive(Clone, Debug)]
pub(super) struct Held {
    pub(super) uid: String,
    pub(super) pool: ObjectReference,
    pub(super) phase: Phase,
    /// This process claimed it.
    pub(super) newly_claimed: bool,
    /// Which machine claimed it, as its object says.
    pub(super) claimant: Option<Claimant>,
    /// What that is to this machine. One that is not the same may have pods in it, until it is decided
    /// that the block is this machine's.
    pub(super) claimed_by: Likeness,
    /// It is decided, though its object still names another.
    pub(super) decided: bool,
    /// When another machine that claimed it was heard last, or may have been.
    pub(super) heard: Option<Duration>,
    /// It was found after history had gone backwards: this node may have given it back, and the API server
    /// have forgotten its next owner.
    pub(super) forgotten: bool,
    pub(super) terminating: bool,
    /// The watch has shown it.
    pub(super) seen: bool,
    /// The version in which the watch showed it last; 0 when it has not, or that of an older history.
    pub(super) version: u64,
    /// When it was claimed, or found: no earlier than its object was there.
    pub(super) since: Duration,
    pub(super) idle_since: Option<Duration>,
    /// Another node announces it or a part of it.
    pub(super) foreign: Option<Foreign>,
    pub(super) backoff: Backoff,
}

/// Another node's announcement of a block of this node.
#[derive(Clone, Debug)]
pub(super) struct Foreign {
    /// When it was heard first, without a break since.
    pub(super) since: Duration,
    /// What was heard, for people.
    pub(super) what: String,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Phase {
    Unverified,
    Confirmed,
    Conflict(String),
    Unfit(String),
    /// On its way back. Once the DELETE may have left nothing brings the block back.
    Releasing {
        sent: bool,
    },
    /// Gone at the server; the watch has not shown it yet.
    Gone,
}

/// How it is known that a block without object is this node's.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Evidence {
    /// Its object named this node.
    Object,
    /// Pods of this node hold addresses in it, and nothing else is known.
    Pods,
}

/// A block without a valid object of ours in which pods live.
#[derive(Clone, Debug)]
pub(super) struct Lost {
    pub(super) pool: ObjectReference,
    pub(super) evidence: Evidence,
    /// Its object is there and names an earlier Node of this name.
    pub(super) of_earlier_node: bool,
    /// Who else has it now.
    pub(super) conflict: Option<String>,
    pub(super) backoff: Backoff,
}

impl Lost {
    fn new(pool: ObjectReference, evidence: Evidence) -> Lost {
        let backoff = Backoff::default();
        Lost { pool, evidence, of_earlier_node: false, conflict: None, backoff }
    }

    /// Whether this node may announce the whole block. One that may be another's it must not: that
    /// would draw the packets of the other's pods here, where they are dropped, and keep this node's
    /// pods from reaching them. The single addresses of its pods draw nobody else's packets, keep the
    /// pods reachable, and are as good a witness: a part of a block that is heard closes it.
    pub(super) fn is_announced_whole(&self) -> bool {
        self.evidence == Evidence::Object && self.conflict.is_none()
    }
}

/// When the next try is due.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Backoff {
    pub(super) due: Duration,
    pub(super) tries: u32,
}

impl Backoff {
    pub(super) fn fail(&mut self, now: Duration) {
        let wait = RETRY_MIN.saturating_mul(1 << self.tries.min(8)).min(RETRY_MAX);
        self.tries = self.tries.saturating_add(1);
        self.due = now.saturating_add(wait);
    }

    pub(super) fn is_due(&self, now: Duration) -> bool {
        now >= self.due
    }
}

impl Held {
    pub(super) fn new(block: &IPBlock, uid: String, now: Duration) -> Held {
        Held { claimant: claimant(block), ..Held::found(uid, block.spec.pool.clone(), now) }
    }

    /// A block that an earlier process of this boot had confirmed.
    pub(super) fn kept(block: KeptBlock, now: Duration) -> Held {
        Held { phase: Phase::Confirmed, seen: true, ..Held::found(block.uid, block.pool, now) }
    }

    fn found(uid: String, pool: ObjectReference, now: Duration) -> Held {
        Held {
            uid,
            pool,
            phase: Phase::Unverified,
            newly_claimed: false,
            claimant: None,
            claimed_by: Likeness::Same,
            decided: false,
            heard: None,
            forgotten: false,
            terminating: false,
            seen: false,
            version: 0,
            since: now,
            idle_since: None,
            foreign: None,
            backoff: Backoff::default(),
        }
    }

    /// Takes in what the watch shows.
    fn show(&mut self, block: &IPBlock) {
        (self.seen, self.version) = (true, version(block));
        self.claimant = claimant(block);
    }

    /// Whether another machine that claimed it may have pods in it.
    pub(super) fn is_inherited(&self) -> bool {
        self.claimed_by != Likeness::Same
    }

    /// The list that begins a new history shows the block if it is in it: also one that was gone in the
    /// old one, and goes once more.
    pub(super) fn begin_history(&mut self) {
        (self.seen, self.version) = (true, 0);
        self.forgotten |= self.phase != Phase::Confirmed;
        if self.phase == Phase::Gone {
            self.phase = Phase::Releasing { sent: true };
            self.backoff = Backoff::default();
        }
    }

    /// Whether this node announces it, so that an announcement of another is a conflict.
    pub(super) fn is_established(&self) -> bool {
        !matches!(self.phase, Phase::Releasing { .. } | Phase::Gone) && !self.newly_unverified()
    }

    fn newly_unverified(&self) -> bool {
        self.newly_claimed && self.phase == Phase::Unverified
    }

    /// Whether a later process may hand out from it without asking.
    pub(super) fn may_be_kept(&self, now: Duration) -> bool {
        self.phase == Phase::Confirmed && !self.terminating && self.contested(now).is_none()
    }

    /// Whether it may be another machine's: neither claimed by this process nor confirmed.
    fn may_be_others(&self) -> bool {
        !self.newly_claimed
            && matches!(self.phase, Phase::Unverified | Phase::Unfit(_) | Phase::Conflict(_))
    }

    /// When another node's announcement has lasted long enough to count.
    pub(super) fn settles(&self) -> Option<Duration> {
        self.foreign.as_ref().map(|foreign| foreign.since.saturating_add(SETTLE))
    }

    /// What another node has announced for long. Nothing takes an address from a running pod for it:
    /// the block closes, and only one without any pod goes back. So a route that comes and goes, as
    /// while a block changes hands or a peer restarts, costs at most new addresses for that time.
    pub(super) fn contested(&self, now: Duration) -> Option<&str> {
        let foreign = self.foreign.as_ref()?;
        (foreign.since.saturating_add(SETTLE) <= now).then_some(foreign.what.as_str())
    }

    /// Takes in what is heard of the block now. When a conflict ends it is verified again.
    pub(super) fn hear(&mut self, what: Option<String>, now: Duration) {
        let was_contested = self.contested(now).is_some();
        self.foreign = what.map(|what| Foreign {
            since: self.foreign.as_ref().map_or(now, |foreign| foreign.since),
            what,
        });
        if was_contested && self.foreign.is_none() && self.phase == Phase::Confirmed {
            self.phase = Phase::Unverified;
            self.newly_claimed = false;
            self.backoff = Backoff::default();
        }
    }

    fn state(&self, now: Duration) -> BlockState {
        match &self.phase {
            Phase::Releasing { .. } | Phase::Gone => BlockState::Releasing,
            _ if self.terminating => BlockState::Terminating,
            Phase::Conflict(_) => BlockState::Conflict,
            _ if self.contested(now).is_some() => BlockState::Conflict,
            Phase::Confirmed => BlockState::Confirmed,
            Phase::Unverified | Phase::Unfit(_) => BlockState::Unverified,
        }
    }
}

/// The node's blocks.
#[derive(Debug, Default)]
pub(super) struct Ledger {
    /// The UID of the Node for which the blocks in `held` are.
    pub(super) node_uid: Option<String>,
    pub(super) held: BTreeMap<IpNet, Held>,
    pub(super) lost: BTreeMap<IpNet, Lost>,
    /// Another machine had this Node before, and may still hand out from its blocks.
    pub(super) others_rest: bool,
    /// History went backwards in this boot.
    pub(super) history_doubted: bool,
    /// When the Lease was written last, or before: it tells nothing of blocks that were found later.
    pub(super) lease_sent: Duration,
    /// The lists of this node's blocks that were looked at ([`ClusterView::own_lists`]).
    pub(super) lists: u64,
}

impl Ledger {
    /// Holds nothing for confirmed that was confirmed before the fence was down: the leader may have
    /// returned it meanwhile, and the watch may not show that yet.
    pub(super) fn doubt(&mut self) {
        for held in self.held.values_mut() {
            if !matches!(held.phase, Phase::Releasing { .. } | Phase::Gone) {
                held.phase = Phase::Unverified;
                held.newly_claimed = false;
                held.backoff = Backoff::default();
            }
        }
    }

    /// Whether the view lies before what this node knew (IPAM rule 3): one of its blocks is older than
    /// it was shown, or a list lacks one that was confirmed and that this node did not give back. A
    /// person who takes a block away by force while the watch is cut looks the same, which costs no
    /// more than reading everything anew.
    ///
    /// `confirmed` is the term of `fence` for which the blocks are confirmed. A block that is missing
    /// tells something only while the fence has stood without a break since: else the leader may have
    /// returned it.
    pub(super) fn is_ahead_of(
        &mut self,
        view: &ClusterView,
        fence: &OwnFence,
        confirmed: u64,
        now: Duration,
    ) -> bool {
        let is_list = std::mem::replace(&mut self.lists, view.own_lists) != view.own_lists;
        let shows_all = is_list && fence.is_up(now) && fence.term() == confirmed;
        self.held.iter().any(|(cidr, held)| {
            let shown = view.own_blocks.get(&block_name(*cidr));
            match shown.filter(|shown| shown.metadata.uid.as_ref() == Some(&held.uid)) {
                Some(shown) => version(shown) < held.version,
                None => shows_all && held.seen && held.may_be_kept(now),
            }
        })
    }

    /// Whether a block may be another machine's still: neither taken up, nor used, nor given back
    /// (IPAM rule 5).
    pub(super) fn rests(&self, held: &Held) -> bool {
        self.others_rest && held.may_be_others()
    }

    /// Whether a block was found after the Lease was read last. While this node was cut off and its
    /// fence stood, another machine may have taken the Lease over and claimed the block, and the Node
    /// may have come back here before this process looks at the Lease again: a machine claims only after
    /// it has written the Lease, so that a look that begins after the block was found tells of it
    /// (IPAM rule 5).
    pub(super) fn is_found(&self, held: &Held) -> bool {
        held.may_be_others() && self.lease_sent < held.since
    }

    /// Takes in what the Lease tells of other machines, and whose the blocks are that `own`, this machine,
    /// has found.
    pub(super) fn hear_lease(
        &mut self,
        told: Option<&Told>,
        own: &Claimant,
        rules: Rules,
        now: Duration,
    ) {
        let asks = rules.hold(Rule::LeaseAfterFound);
        // Nothing is asked of blocks before the first write.
        self.lease_sent = told.filter(|_| asks).map_or(Duration::MAX, |told| told.sent);
        self.others_rest = told.is_some_and(|told| told.others_rest);
        let off = told.map_or(&Off::None, |told| &told.off);
        for held in self.held.values_mut() {
            let claimed_by = match &held.claimant {
                _ if !rules.hold(Rule::DoubtLasts) => match self.others_rest {
                    true => Likeness::Other,
                    false => held.claimed_by,
                },
                // By a version that said nothing of it.
                None => Likeness::Like,
                Some(claimant) => match off {
                    Off::Earlier => Likeness::Same,
                    Off::Boot(boot) if claimant.boot_id == **boot => Likeness::Same,
                    Off::Boot(_) | Off::None => own.likeness(claimant),
                },
            };
            let is_own = held.newly_claimed || held.decided || held.phase == Phase::Confirmed;
            held.claimed_by = if is_own { Likeness::Same } else { claimed_by };
            // It may have been heard a moment ago, by an earlier process.
            if held.claimed_by == Likeness::Other {
                held.heard.get_or_insert(now);
            }
        }
    }

    /// The object of a block is gone, or not ours.
    pub(super) fn lose(&mut self, cidr: IpNet) {
        if let Some(held) = self.held.remove(&cidr) {
            self.lost.insert(cidr, Lost::new(held.pool, Evidence::Object));
        }
    }

    /// Takes in what the watch shows of this node's blocks. Returns those that it shows.
    pub(super) fn reconcile(
        &mut self,
        view: &ClusterView,
        node_uid: &str,
        usages: &BTreeMap<IpNet, BlockUsage>,
        now: Duration,
    ) -> BTreeSet<IpNet> {
        if self.node_uid.as_deref() != Some(node_uid) {
            let all: Vec<IpNet> = self.held.keys().copied().collect();
            all.into_iter().for_each(|cidr| self.lose(cidr));
            self.node_uid = Some(node_uid.to_owned());
        }
        let mut shown = BTreeSet::new();
        let mut earlier = BTreeSet::new();
        for block in view.own_blocks.values() {
            let Ok(cidr) = block.spec.cidr.parse::<IpNet>() else { continue };
            if block.spec.node.uid != node_uid {
                earlier.insert(cidr);
                let new = || Lost::new(block.spec.pool.clone(), Evidence::Object);
                self.lost.entry(cidr).or_insert_with(new).evidence = Evidence::Object;
                continue;
            }
            shown.insert(cidr);
            let uid = block.metadata.uid.clone().unwrap_or_default();
            let terminating = block.metadata.deletion_timestamp.is_some();
            match self.held.get_mut(&cidr) {
                Some(held) if held.uid == uid => {
                    held.show(block);
                    held.terminating |= terminating;
                }
                // The watch is behind a claim that has just succeeded.
                Some(held) if !held.seen => {}
                _ => {
                    let mut held = Held::new(block, uid, now);
                    held.show(block);
                    held.terminating = terminating;
                    held.forgotten = self.history_doubted;
                    self.held.insert(cidr, held);
                }
            }
        }
        let held = self.held.iter();
        let vanished = held.filter(|(cidr, held)| held.seen && !shown.contains(*cidr));
        let vanished: Vec<IpNet> = vanished.map(|(cidr, _)| *cidr).collect();
        for cidr in vanished {
            if self.held.get(&cidr).is_some_and(|held| held.phase == Phase::Gone) {
                self.held.remove(&cidr);
            }
            self.lose(cidr);
        }
        for (cidr, held) in &mut self.held {
            self.lost.remove(cidr);
            let idle = usages.get(cidr).is_some_and(BlockUsage::is_vacant);
            held.idle_since = idle.then(|| held.idle_since.unwrap_or(now));
        }
        for (cidr, lost) in &mut self.lost {
            lost.of_earlier_node = earlier.contains(cidr);
        }
        shown.extend(earlier);
        shown
    }

    /// Takes in addresses of pods that lie in no block that the owner of the addresses knows, as after
    /// a restart without a disk while the API server lost the block: blocks of the pools in which they
    /// lie are lost ones. Returns what cannot be taken for a block, one sentence each.
    pub(super) fn find(
        &mut self,
        outside: &[(IpAddr, AttachmentId)],
        pools: &[Pool],
    ) -> Vec<String> {
        let mut problems = Vec::new();
        for (address, id) in outside {
            // The owner of the addresses has yet to hear of it.
            if self.blocks().any(|cidr| cidr.contains(address)) {
                continue;
            }
            let holder = &id.container_id;
            let holding = pools.iter().filter(|pool| pool.cidr.contains(address));
            let pool = holding.min_by_key(|pool| (pool.created, &pool.uid));
            let Some((pool, cidr)) = pool.and_then(|pool| Some((pool, block_of(pool, *address)?)))
            else {
                problems.push(format!(
                    "{address} of a pod of this node (container {holder}) is in no IPPool, so nothing \
                     keeps it from being given again: create an IPPool that holds it, or end the pod"
                ));
                continue;
            };
            if let Some(own) = self.blocks().find(|own| overlap(*own, cidr)) {
                problems.push(format!(
                    "{address} of a pod of this node (container {holder}) is in no block, and block \
                     {cidr} of IPPool {} that would hold it overlaps this node's {own}: end the pod",
                    pool.name
                ));
                continue;
            }
            tracing::warn!(block = %cidr, pool = pool.name, "pods live in a block that nobody knew");
            let pool = ObjectReference { name: pool.name.clone(), uid: pool.uid.clone() };
            self.lost.insert(cidr, Lost::new(pool, Evidence::Pods));
        }
        let more = problems.len().saturating_sub(OUTSIDE_PROBLEMS_MAX);
        problems.truncate(OUTSIDE_PROBLEMS_MAX);
        problems.extend((more > 0).then(|| format!("{more} more addresses of pods are like that")));
        problems
    }

    fn blocks(&self) -> impl Iterator<Item = IpNet> {
        self.held.keys().chain(self.lost.keys()).copied()
    }

    /// The blocks as the decision needs them.
    pub(super) fn own(&self, usages: &BTreeMap<IpNet, BlockUsage>, now: Duration) -> Vec<OwnBlock> {
        let held = self.held.iter().map(|(cidr, held)| OwnBlock {
            cidr: *cidr,
            pool: held.pool.name.clone(),
            pool_uid: held.pool.uid.clone(),
            state: match held.state(now) {
                BlockState::Unverified | BlockState::Conflict | BlockState::Terminating
                    if self.rests(held) || held.is_inherited() =>
                {
                    BlockState::OtherMachine
                }
                BlockState::Unverified | BlockState::Conflict | BlockState::Terminating
                    if self.is_found(held) =>
                {
                    BlockState::Found
                }
                state => state,
            },
            usage: usages.get(cidr).cloned(),
            idle_secs: held.idle_since.map_or(0, |since| now.saturating_sub(since).as_secs()),
        });
        let lost = self.lost.iter().map(|(cidr, lost)| OwnBlock {
            cidr: *cidr,
            pool: lost.pool.name.clone(),
            pool_uid: lost.pool.uid.clone(),
            state: if lost.of_earlier_node { BlockState::OfEarlierNode } else { BlockState::Lost },
            usage: usages.get(cidr).cloned(),
            idle_secs: 0,
        });
        held.chain(lost).collect()
    }
}

/// The machine that claimed a block.
fn claimant(block: &IPBlock) -> Option<Claimant> {
    block.annotations().get(ANNOTATION_CLAIMED_BY).map(|text| Claimant::from(text.as_str()))
}

/// The version of an object; 0 when it is no number.
fn version(block: &IPBlock) -> u64 {
    let version = block.metadata.resource_version.as_deref();
    version.and_then(number).unwrap_or_default()
}

/// How long another node's announcement must last to be a conflict: longer than a block that changes
/// hands, or a session that comes back, needs.
const SETTLE: Duration = Duration::from_secs(5);
/// Addresses outside of every block of which each gets a sentence.
const OUTSIDE_PROBLEMS_MAX: usize = 10;
const RETRY_MIN: Duration = Duration::from_millis(200);
const RETRY_MAX: Duration = Duration::from_secs(30);

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    const CIDR: &str = "10.0.0.0/26";
    const OWN: &str = "m1/u1/b1";

    fn block(uid: &str, version: &str) -> IPBlock {
        serde_json::from_value(json!({
            "apiVersion": "cairn.network/v1alpha1", "kind": "IPBlock",
            "metadata": {
                "name": "10.0.0.0-26", "uid": uid, "resourceVersion": version,
                "annotations": {ANNOTATION_CLAIMED_BY: OWN},
            },
            "spec": {
                "cidr": CIDR, "range": "10.0.0.0/16",
                "pool": {"name": "p", "uid": "pu"}, "node": {"name": "n1", "uid": "nu"},
            },
        }))
        .expect("a block")
    }

    fn view(own_lists: u64, blocks: &[IPBlock]) -> ClusterView {
        let own_blocks = blocks.iter().map(|block| (block_name(cidr()), block.clone())).collect();
        ClusterView { own_lists, own_blocks, ..ClusterView::default() }
    }

    fn cidr() -> IpNet {
        CIDR.parse().expect("a network")
    }

    /// With a fence that stands since the blocks were confirmed.
    fn is_ahead_of(ledger: &mut Ledger, view: &ClusterView) -> bool {
        let mut fence = OwnFence::new(Duration::from_secs(60));
        fence.wrote(Duration::ZERO, Duration::ZERO);
        ledger.is_ahead_of(view, &fence, fence.term(), Duration::ZERO)
    }

    /// A ledger to which the first list has shown its block in version 10.
    fn ledger(phase: Phase) -> Ledger {
        let mut ledger = Ledger::default();
        let first = view(1, &[block("u", "10")]);
        assert!(!is_ahead_of(&mut ledger, &first));
        ledger.reconcile(&first, "nu", &BTreeMap::new(), Duration::ZERO);
        ledger.held.get_mut(&cidr()).expect("it").phase = phase;
        ledger
    }

    #[test]
    fn a_block_that_a_list_lacks_or_shows_older_is_of_an_older_history() {
        let unverified = || Phase::Unverified;
        let cases: [(&str, Phase, ClusterView, bool); 8] = [
            ("nothing new", Phase::Confirmed, view(2, &[block("u", "10")]), false),
            ("a write", Phase::Confirmed, view(1, &[block("u", "11")]), false),
            ("it is older", Phase::Confirmed, view(2, &[block("u", "9")]), true),
            ("it is older and was not confirmed", unverified(), view(2, &[block("u", "9")]), true),
            ("a list lacks it", Phase::Confirmed, view(2, &[]), true),
            ("a list has another", Phase::Confirmed, view(2, &[block("v", "12")]), true),
            ("it was removed under the eyes of the watch", Phase::Confirmed, view(1, &[]), false),
            ("it was given back", Phase::Releasing { sent: true }, view(2, &[]), false),
        ];
        for (what, phase, shown, expected) in cases {
            assert_eq!(is_ahead_of(&mut ledger(phase), &shown), expected, "{what}");
        }
    }

    #[test]
    fn a_block_that_went_while_the_fence_was_down_is_no_sign_of_an_older_history() {
        let secs = Duration::from_secs;
        let mut fence = OwnFence::new(secs(60));
        fence.wrote(secs(0), secs(0));
        let confirmed = fence.term();
        let is_ahead = |shown: &[IPBlock], fence: &OwnFence, now| {
            ledger(Phase::Confirmed).is_ahead_of(&view(2, shown), fence, confirmed, now)
        };
        assert!(is_ahead(&[], &fence, secs(59)), "nobody may have returned it");
        assert!(!is_ahead(&[], &fence, secs(60)), "the leader may");
        fence.wrote(secs(70), secs(70));
        assert!(
            !is_ahead(&[], &fence, secs(71)),
            "the leader may have, before the fence was raised"
        );
        assert!(is_ahead(&[block("u", "9")], &fence, secs(71)), "no return makes it older");
    }

    #[test]
    fn what_was_seen_of_a_history_that_has_ended_gives_no_further_alarm() {
        for shown in [view(2, &[]), view(2, &[block("u", "9")])] {
            let mut ledger = ledger(Phase::Confirmed);
            ledger.held.values_mut().for_each(Held::begin_history);
            ledger.doubt();
            assert!(!is_ahead_of(&mut ledger, &shown));
        }
    }

    #[test]
    fn a_block_that_was_found_waits_for_a_lease_that_is_read_later() {
        let secs = Duration::from_secs;
        let mut ledger = Ledger::default();
        ledger.reconcile(&view(1, &[block("u", "10")]), "nu", &BTreeMap::new(), secs(10));
        let mut state = |sent: Option<u64>, change: fn(&mut Held), rules| {
            let told =
                sent.map(|sent| Told { sent: secs(sent), others_rest: false, off: Off::None });
            ledger.hear_lease(told.as_ref(), &Claimant::from(OWN), rules, secs(20));
            change(ledger.held.get_mut(&cidr()).expect("it"));
            ledger.own(&BTreeMap::new(), secs(20))[0].state
        };
        let all = Rules::ALL;
        assert_eq!(state(None, |_| {}, all), BlockState::Unverified, "before the first write");
        assert_eq!(state(Some(9), |_| {}, all), BlockState::Found);
        let without = all.without(Rule::LeaseAfterFound);
        assert_eq!(state(Some(9), |_| {}, without), BlockState::Unverified);
        assert_eq!(state(Some(9), |held| held.terminating = true, all), BlockState::Found);
        assert_eq!(state(Some(10), |held| held.terminating = false, all), BlockState::Unverified);
        assert_eq!(state(Some(9), |held| held.newly_claimed = true, all), BlockState::Unverified);
    }

    #[test]
    fn a_block_that_another_machine_claimed_is_that_ones_until_it_is_decided() {
        let told = |off| Told { sent: Duration::MAX, others_rest: false, off };
        let state = |own: &str, told: &Told, change: fn(&mut Held)| {
            let mut ledger = ledger(Phase::Unverified);
            change(ledger.held.get_mut(&cidr()).expect("it"));
            ledger.hear_lease(Some(told), &Claimant::from(own), Rules::ALL, Duration::ZERO);
            ledger.own(&BTreeMap::new(), Duration::ZERO)[0].state
        };
        let none = told(Off::None);
        assert_eq!(state("m1/u1/b2", &none, |_| {}), BlockState::Unverified, "after a reboot");
        let other = |told: &Told, change| state("m2/u2/b2", told, change);
        assert_eq!(other(&none, |_| {}), BlockState::OtherMachine);
        assert_eq!(other(&none, |held| held.terminating = true), BlockState::OtherMachine);
        assert_eq!(
            other(&none, |held| held.phase = Phase::Conflict(String::new())),
            BlockState::OtherMachine
        );
        assert_eq!(other(&none, |held| held.newly_claimed = true), BlockState::Unverified);
        let decided = |held: &mut Held| (held.terminating, held.decided) = (true, true);
        assert_eq!(other(&none, decided), BlockState::Terminating);
        assert_eq!(other(&told(Off::Earlier), |_| {}), BlockState::Unverified);
        assert_eq!(other(&told(Off::Boot("b1".into())), |_| {}), BlockState::Unverified);
        assert_eq!(other(&told(Off::Boot("b0".into())), |_| {}), BlockState::OtherMachine);
    }

    #[test]
    fn the_first_list_tells_of_a_block_that_an_earlier_process_had_confirmed() {
        let pool = ObjectReference { name: "p".into(), uid: "pu".into() };
        let kept = Held::kept(KeptBlock { uid: "u".into(), pool }, Duration::ZERO);
        let mut ledger = Ledger::default();
        ledger.held.insert(cidr(), kept);
        assert!(is_ahead_of(&mut ledger, &view(1, &[])));
        assert!(!is_ahead_of(&mut ledger, &view(2, &[block("u", "3")])));
    }
}
