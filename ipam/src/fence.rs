//! The fence between a node that is cut off and the return of its blocks (IPAM rule 5).
//!
//! A node hands out addresses only while its last successful write to its own Lease lies less than
//! its promise back ([`OwnFence`]). The leader returns the blocks of a node whose agent is gone only
//! after it has itself seen that the Lease did not change for a quarter more than this promise
//! ([`LeaseWatch`]). The promise stands in the Lease (`leaseDurationSeconds`), so one setting moves
//! both ends.
//!
//! ```text
//! node    ──write──────────────────────────────┤ hands out nothing more
//!         0                                    promise
//! leader      ──sees the write─────────────────────────────────┤ may return the blocks
//!             > 0                                              1.25 x promise later
//! ```
//!
//! All times are of one clock that counts on while the machine sleeps (CLOCK_BOOTTIME).

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use crate::mark::{Claimant, Holder};

/// The most time between two looks at the Leases. After a longer gap every wait starts anew: the
/// API may have been away, and nodes unable to write.
pub const OBSERVATION_GAP_MAX: Duration = Duration::from_secs(180);

/// How long the leader has to see that a Node is gone before its blocks may be returned, or a quarter of
/// the promise where that is shorter. Where the agent had been silent for long before, the Lease makes
/// nobody wait, and pods run on: Kubernetes takes a minute or two to end those of a Node that is gone.
pub const GONE_MIN: Duration = Duration::from_secs(300);

/// What a node knows of its own promise.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct OwnFence {
    offline: Duration,
    written: Option<Written>,
    term: u64,
}

/// The write of the Lease that counts.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Written {
    sent: Duration,
    promise: Duration,
}

impl OwnFence {
    /// A fence that is down until the first write. `offline` is the promise that the Lease carries.
    pub fn new(offline: Duration) -> OwnFence {
        OwnFence { offline, written: None, term: 0 }
    }

    /// The fence of a process that goes on where another of this boot ended, whose last write of the
    /// Lease left at `sent` and carried `promise`. It is in its first term. Until its own first write
    /// the shorter promise counts: a write that nobody saw answered may have told the leader of it.
    pub fn resumed(offline: Duration, sent: Duration, promise: Duration) -> OwnFence {
        let written = Written { sent, promise: promise.min(offline) };
        OwnFence { offline, written: Some(written), term: 1 }
    }

    /// A write of the Lease has succeeded whose request left at `sent` or later and whose answer
    /// came at `answered`.
    pub fn wrote(&mut self, sent: Duration, answered: Duration) {
        if !self.is_up(answered) {
            self.term = self.term.saturating_add(1);
        }
        if self.written.is_none_or(|last| last.sent <= sent) {
            self.written = Some(Written { sent, promise: self.offline });
        }
    }

    /// Nothing may be handed out until the next write: the node is known not to be this agent's.
    pub fn lower(&mut self) {
        self.written = None;
    }

    /// Counts the times that the fence was raised. While it was down the leader may have returned
    /// this node's blocks: what was confirmed in an earlier term must be confirmed anew, by a write
    /// that comes after the one that began this term.
    pub fn term(&self) -> u64 {
        self.term
    }

    /// The time from which on nothing may be handed out; `None` when nothing may be now.
    pub fn deadline(&self) -> Option<Duration> {
        self.written.map(|written| written.sent.saturating_add(written.promise))
    }

    /// Whether addresses may be handed out.
    pub fn is_up(&self, now: Duration) -> bool {
        self.deadline().is_some_and(|deadline| now < deadline)
    }
}

/// A node's Lease, as the leader sees it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LeaseSeen {
    /// The Lease's `metadata.resourceVersion`.
    pub version: String,
    /// Who wrote it last.
    pub holder: Holder,
    /// The promise that the Lease carries.
    pub promise: Duration,
    /// An operator has marked that the holder's machine is off. An agent that finds itself marked gives
    /// no new addresses until the mark is taken away.
    pub machine_off: bool,
    /// Another machine had the Node before, and may hand out within a promise of its own. Neither the
    /// mark nor a taint speaks of that one: its promise ends with the wait for this Lease.
    pub others_rest: bool,
    /// The holder as blocks name it.
    pub claimant: Claimant,
    /// An operator says that every machine which had the Node before the holder is off.
    pub earlier_off: bool,
    /// The boot id of the machine that the mark names.
    pub marked_boot: Option<String>,
}

/// A Node that owns blocks, whether it still exists or not.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Owner {
    /// The Node's name.
    pub name: String,
    /// The Node's UID.
    pub uid: String,
}

/// What may be done with the blocks of a node whose agent is gone.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Return {
    /// Its agent may still hand out addresses, for at most this long.
    Wait(Duration),
    /// The wait is over: blocks without a route may be returned.
    Allowed,
}

/// What the leader has seen of the Leases of nodes that own blocks.
#[derive(Clone, Debug)]
pub struct LeaseWatch {
    default_promise: Duration,
    wait_min: Duration,
    looked: Option<Duration>,
    waits: BTreeMap<Owner, Wait>,
}

#[derive(Clone, Debug)]
struct Wait {
    /// The Lease's version while the Node's own agent holds it.
    version: Option<String>,
    promise: Duration,
    unchanged_since: Duration,
    /// Since when the Node was seen to be gone.
    gone_since: Option<Duration>,
}

impl LeaseWatch {
    /// `default_promise` counts where no Lease says otherwise.
    pub fn new(default_promise: Duration) -> LeaseWatch {
        LeaseWatch {
            default_promise,
            wait_min: Duration::ZERO,
            looked: None,
            waits: BTreeMap::new(),
        }
    }

    /// Sets what no wait is shorter than: the longest time for which a peer may keep the routes of
    /// a node that is gone (graceful restart).
    pub fn set_wait_min(&mut self, wait_min: Duration) {
        self.wait_min = wait_min;
    }

    /// The API did not answer: every wait starts anew.
    pub fn interrupt(&mut self) {
        self.looked = None;
        self.waits.clear();
    }

    /// Takes in one consistent look: which Nodes own blocks, gone ones included, and the Leases by
    /// their node's name.
    pub fn observe(
        &mut self,
        owners: impl IntoIterator<Item = Owner>,
        leases: &BTreeMap<String, LeaseSeen>,
        now: Duration,
    ) {
        if self.looked.is_some_and(|looked| now.saturating_sub(looked) > OBSERVATION_GAP_MAX) {
            self.interrupt();
        }
        self.looked = Some(now);
        let mut waits = BTreeMap::new();
        // Named twice it would begin to wait anew.
        for node in owners.into_iter().collect::<BTreeSet<Owner>>() {
            // A successor of the same name takes the Lease over once and for all: an agent never
            // writes a Lease that a live other one holds. So another holder means no more writes,
            // but there may have been one just before.
            let held = leases.get(&node.name).filter(|lease| lease.holder.node_uid == node.uid);
            let version = held.map(|lease| lease.version.clone());
            let old = self.waits.remove(&node);
            let unchanged = old.as_ref().filter(|old| old.version == version);
            let known = held.map(|lease| lease.promise).or(old.as_ref().map(|old| old.promise));
            let wait = Wait {
                version,
                promise: known.unwrap_or(self.default_promise),
                unchanged_since: unchanged.map_or(now, |old| old.unchanged_since),
                gone_since: old.as_ref().and_then(|old| old.gone_since),
            };
            waits.insert(node, wait);
        }
        self.waits = waits;
    }

    /// Takes in which of the Nodes that the last look named are gone.
    pub fn observe_gone(&mut self, is_gone: impl Fn(&Owner) -> bool, now: Duration) {
        for (node, wait) in &mut self.waits {
            wait.gone_since = is_gone(node).then(|| wait.gone_since.unwrap_or(now));
        }
    }

    /// Whether `node` was seen to be gone for so long that its pods have ended, too.
    pub fn is_long_gone(&self, node: &Owner, now: Duration) -> bool {
        self.waits.get(node).is_some_and(|wait| {
            let long = GONE_MIN.min(wait.promise / 4);
            wait.gone_since.is_some_and(|since| now.saturating_sub(since) >= long)
        })
    }

    /// Whether the blocks of `node` may be returned.
    pub fn verdict(&self, node: &Owner, now: Duration) -> Return {
        let Some(wait) = self.waits.get(node) else {
            return Return::Wait(self.wait_of(self.default_promise));
        };
        let end = wait.unchanged_since.saturating_add(self.wait_of(wait.promise));
        match end.checked_sub(now) {
            Some(rest) if !rest.is_zero() => Return::Wait(rest),
            _ => Return::Allowed,
        }
    }

    /// Whether an agent that lives would have written the Lease of `node` by now: it was seen
    /// unchanged for three renewals.
    pub fn is_silent(&self, node: &Owner, now: Duration) -> bool {
        self.waits.get(node).is_some_and(|wait| {
            let quiet = (wait.promise / 10).clamp(QUIET_MIN, QUIET_MAX);
            now.saturating_sub(wait.unchanged_since) >= quiet
        })
    }

    /// The version of the Lease that the agent of `node` holds; `None` when it holds none.
    pub fn version(&self, node: &Owner) -> Option<&str> {
        self.waits.get(node)?.version.as_deref()
    }

    fn wait_of(&self, promise: Duration) -> Duration {
        promise.saturating_add(promise / 4).max(self.wait_min)
    }
}

/// Whether the agent of `node`, which held its Lease in `version` or not at all, has not written the
/// Lease since.
pub fn is_unchanged(node: &Owner, version: Option<&str>, lease: Option<&LeaseSeen>) -> bool {
    let held = lease.filter(|lease| lease.holder.node_uid == node.uid);
    held.is_none_or(|held| version == Some(held.version.as_str()))
}

/// An agent renews its Lease every thirtieth of its promise, but not oftener than once a second and not
/// more rarely than every minute: a tenth within these is three renewals.
const QUIET_MIN: Duration = Duration::from_secs(3);
const QUIET_MAX: Duration = Duration::from_secs(180);

#[cfg(test)]
mod tests {
    use super::*;

    fn secs(n: u64) -> Duration {
        Duration::from_secs(n)
    }

    fn gone() -> Owner {
        Owner { name: "n1".into(), uid: "u1".into() }
    }

    fn lease(version: &str, uid: &str, promise: u64) -> BTreeMap<String, LeaseSeen> {
        let holder = Holder { node_uid: uid.into(), boot_id: "b1".into() };
        let promise = secs(promise);
        let version = version.to_owned();
        let seen = LeaseSeen {
            version,
            holder,
            promise,
            machine_off: false,
            others_rest: false,
            claimant: Claimant::default(),
            earlier_off: false,
            marked_boot: None,
        };
        BTreeMap::from([("n1".to_owned(), seen)])
    }

    #[test]
    fn a_node_hands_out_until_its_promise_ends_counted_from_before_the_request() {
        let mut fence = OwnFence::new(secs(10));
        assert!(!fence.is_up(secs(0)), "down before the first write");
        fence.wrote(secs(100), secs(101));
        assert!(fence.is_up(secs(109)));
        assert!(!fence.is_up(secs(110)));
        // An older request whose answer comes later moves nothing back.
        fence.wrote(secs(90), secs(102));
        assert_eq!(fence.deadline(), Some(secs(110)));
    }

    #[test]
    fn a_fence_that_was_down_when_the_answer_came_begins_a_term() {
        let mut fence = OwnFence::new(secs(10));
        let mut term = |sent, answered| {
            fence.wrote(secs(sent), secs(answered));
            fence.term()
        };
        assert_eq!([term(100, 100), term(105, 109), term(114, 114)], [1, 1, 1]);
        // Sent in time, answered after the end: the leader may have come in between.
        assert_eq!([term(123, 124), term(125, 126)], [2, 2]);
        assert_eq!(term(200, 200), 3);
        fence.lower();
        assert!(!fence.is_up(secs(201)) && fence.deadline().is_none());
        fence.wrote(secs(201), secs(201));
        assert_eq!((fence.term(), fence.is_up(secs(210))), (4, true));
    }

    #[test]
    fn a_process_that_goes_on_stays_in_the_term_while_the_shorter_promise_lasts() {
        for (offline, promise, end) in [(10, 10, 110), (20, 10, 110), (10, 20, 110)] {
            let fence = OwnFence::resumed(secs(offline), secs(100), secs(promise));
            assert_eq!((fence.deadline(), fence.term()), (Some(secs(end)), 1));
            let mut in_time = fence;
            in_time.wrote(secs(109), secs(109));
            assert_eq!((in_time.deadline(), in_time.term()), (Some(secs(109 + offline)), 1));
            let mut late = fence;
            late.wrote(secs(109), secs(110));
            assert_eq!(late.term(), 2);
        }
    }

    #[test]
    fn a_node_that_is_named_twice_in_a_look_waits_once() {
        let mut watch = LeaseWatch::new(secs(1));
        for at in [0, 5, 10] {
            watch.observe([gone(), gone()], &lease("7", "u1", 8), secs(at));
        }
        assert_eq!(watch.verdict(&gone(), secs(10)), Return::Allowed);
    }

    #[test]
    fn a_lease_that_its_own_agent_writes_again_is_not_unchanged() {
        let mut watch = LeaseWatch::new(secs(1));
        let read = |version: &str, uid: &str| lease(version, uid, 8).remove("n1");
        let unchanged = |watch: &LeaseWatch, lease: Option<LeaseSeen>| {
            is_unchanged(&gone(), watch.version(&gone()), lease.as_ref())
        };
        watch.observe([gone()], &lease("7", "u1", 8), secs(0));
        assert!(unchanged(&watch, read("7", "u1")));
        assert!(!unchanged(&watch, read("8", "u1")));
        assert!(unchanged(&watch, read("8", "u2")), "a successor's");
        assert!(unchanged(&watch, None), "deleted by hand");
        watch.observe([gone()], &lease("8", "u2", 8), secs(1));
        assert!(!unchanged(&watch, read("9", "u1")));
    }

    #[test]
    fn the_leader_waits_longer_than_any_node_may_hand_out() {
        // The node's last write is seen by the leader at once, the worst case for it.
        for promise in 1..200 {
            let mut fence = OwnFence::new(secs(promise));
            fence.wrote(secs(50), secs(50));
            let mut watch = LeaseWatch::new(secs(1));
            let mut now = secs(50);
            watch.observe([gone()], &lease("7", "u1", promise), now);
            while watch.verdict(&gone(), now) != Return::Allowed {
                now += secs(1);
                watch.observe([gone()], &lease("7", "u1", promise), now);
                assert!(now < secs(400));
            }
            assert!(!fence.is_up(now), "promise of {promise} s");
        }
    }

    #[test]
    fn what_starts_the_wait_anew() {
        let seen = lease("7", "u1", 8);
        type Event = fn(&mut LeaseWatch);
        let cases: [(&str, Event, bool); 5] = [
            ("nothing", |_| {}, true),
            ("a write", |w| w.observe([gone()], &lease("8", "u1", 8), secs(9)), false),
            ("the API away", LeaseWatch::interrupt, false),
            (
                "a pass without blocks of it",
                |w| w.observe([], &lease("7", "u1", 8), secs(9)),
                false,
            ),
            ("a successor", |w| w.observe([gone()], &lease("9", "u2", 8), secs(9)), false),
        ];
        for (what, event, allowed) in cases {
            let mut watch = LeaseWatch::new(secs(1));
            watch.set_wait_min(secs(1));
            watch.observe([gone()], &seen, secs(0));
            event(&mut watch);
            let after = if what == "a successor" { lease("9", "u2", 8) } else { seen.clone() };
            let after = if what == "a write" { lease("8", "u1", 8) } else { after };
            watch.observe([gone()], &after, secs(10));
            let verdict = watch.verdict(&gone(), secs(10));
            assert_eq!(verdict == Return::Allowed, allowed, "{what}: {verdict:?}");
        }
    }

    #[test]
    fn a_gap_between_looks_and_the_stale_time_of_graceful_restart_count() {
        let mut watch = LeaseWatch::new(secs(1));
        watch.set_wait_min(secs(300));
        watch.observe([gone()], &lease("7", "u1", 8), secs(0));
        watch.observe([gone()], &lease("7", "u1", 8), secs(180));
        assert_eq!(watch.verdict(&gone(), secs(180)), Return::Wait(secs(120)));
        watch.observe([gone()], &lease("7", "u1", 8), secs(361));
        assert_eq!(watch.verdict(&gone(), secs(361)), Return::Wait(secs(300)));
    }

    #[test]
    fn a_successor_begins_the_wait_once() {
        // The last write of the earlier holder may have come just before the successor's first.
        let mut watch = LeaseWatch::new(secs(1));
        watch.observe([gone()], &lease("7", "u1", 8), secs(0));
        watch.observe([gone()], &lease("9", "u2", 100), secs(4));
        watch.observe([gone()], &lease("12", "u2", 100), secs(9));
        assert_eq!(watch.verdict(&gone(), secs(9)), Return::Wait(secs(5)), "its own promise");
        assert_eq!(watch.verdict(&gone(), secs(14)), Return::Allowed);
    }

    #[test]
    fn a_node_is_long_gone_when_it_was_seen_to_be_for_some_minutes() {
        for (promise, long) in [(8 * 3600, 300), (40, 10)] {
            let mut watch = LeaseWatch::new(secs(1));
            let mut look = |is_gone: bool, now: u64| {
                watch.observe([gone()], &lease("7", "u1", promise), secs(now));
                watch.observe_gone(|_| is_gone, secs(now));
                watch.is_long_gone(&gone(), secs(now))
            };
            assert!(!look(false, 0) && !look(false, 1) && !look(true, 2), "gone just now");
            // A longer gap between two looks would begin the wait anew.
            assert!(!look(true, 2 + long / 2));
            assert!(!look(true, 1 + long) && look(true, 2 + long));
            assert!(!look(false, 3 + long), "it is there again");
            assert!(!look(true, 4 + long), "another wait");
        }
    }

    #[test]
    fn an_agent_that_lives_is_not_silent() {
        for (promise, quiet) in [(2, 3), (30, 3), (100, 10), (8 * 3600, 180)] {
            let mut watch = LeaseWatch::new(secs(1));
            assert!(!watch.is_silent(&gone(), secs(1000)), "never observed");
            watch.observe([gone()], &lease("7", "u1", promise), secs(10));
            let at = secs(10 + quiet);
            assert!(!watch.is_silent(&gone(), at - secs(1)) && watch.is_silent(&gone(), at));
            watch.observe([gone()], &lease("8", "u1", promise), at);
            assert!(!watch.is_silent(&gone(), at), "it has written");
        }
    }

    #[test]
    fn without_a_lease_the_default_promise_counts() {
        let mut watch = LeaseWatch::new(secs(40));
        assert_eq!(watch.verdict(&gone(), secs(0)), Return::Wait(secs(50)));
        watch.observe([gone()], &BTreeMap::new(), secs(0));
        watch.observe([gone()], &BTreeMap::new(), secs(49));
        assert_eq!(watch.verdict(&gone(), secs(49)), Return::Wait(secs(1)));
        assert_eq!(watch.verdict(&gone(), secs(50)), Return::Allowed);
    }
}
