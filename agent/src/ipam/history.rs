//! Notices that the API server's history went backwards, as after an etcd restore (IPAM rule 3).
//!
//! A watch says nothing of it: one that asks for a version of the future is answered with 200 and
//! silence. But each answer to a write, and each consistent list, carries a version that is at least
//! as high as every one that was seen before the request left. A lower one can only be of an older
//! history. The node's Lease is written once a minute at least, and looked at as often by an agent that
//! may not write it, as while its Node is gone; so this is noticed within a minute.
//!
//! ```text
//!  mark() ─► request ─► answer ─► heard(): below the mark? ─► relist + 1: watches begin anew
//!                                                          └► disk: no block hands out
//! ```
//!
//! Numbers may also be past those that were seen: when a node that was cut off comes back late, in a
//! cluster that writes much, and after a restore that raises them all (`etcdutl snapshot restore
//! --bump-revision`), which leaves each object its old one. Then what this node relies on tells it:
//!
//! - its Lease is older than this node wrote it last, in this process or an earlier one of this boot;
//! - a block is older than the watch has shown it, or one that was confirmed is missing from a list
//!   though this node did not give it back. After the watch of the node's own blocks was cut, a list
//!   therefore follows within seconds;
//! - a list is older than what the watch had shown before it was asked for ([`crate::watch`]).
//!
//! All kinds share one sequence of numbers, unless an API server keeps some in an etcd of their own.
//! Then numbers of one kind look old beside those of another: after a few alarms of that sort only
//! numbers of one kind are compared. What gives no alarm: the version of an object that was read or
//! that a watch showed, which may be old, and of a write that may change nothing, which returns the
//! old one. They only raise what later answers are compared with.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, PoisonError};

use cairn_ipam::{Rule, Rules};
use tokio::sync::watch;

use super::disk::Disk;

/// A kind of object whose versions are compared.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Kind {
    Block,
    Pool,
    Lease,
}

/// What was known before a request left.
#[derive(Clone, Copy, Debug)]
pub(super) struct Mark {
    kind: Kind,
    /// The highest version of this kind.
    version: u64,
    /// The highest of any kind.
    highest: u64,
    epoch: u64,
}

#[derive(Debug, Default)]
struct Seen {
    newest: BTreeMap<Kind, u64>,
    /// The highest version that an earlier process saw, of whatever kind.
    before: u64,
    /// Alarms that only a comparison of two kinds gave.
    crossed: u32,
}

/// What was seen of the API server's history. Clones are the same.
#[derive(Clone, Debug)]
pub(super) struct History {
    seen: Arc<Mutex<Seen>>,
    relist: watch::Sender<u64>,
    disk: Disk,
    rules: Rules,
}

impl History {
    /// A history as far as an earlier process saw it.
    pub(super) fn new(relist: watch::Sender<u64>, disk: Disk, rules: Rules) -> History {
        let seen = Seen { before: disk.version(), ..Seen::default() };
        History { seen: Arc::new(Mutex::new(seen)), relist, disk, rules }
    }

    /// How often history went backwards.
    pub(super) fn epoch(&self) -> u64 {
        *self.relist.borrow()
    }

    /// Whether history went backwards in this boot. Then the API server may not know of a block that
    /// somebody has, or show one as this node's that it had given back.
    pub(super) fn is_doubtful(&self) -> bool {
        self.epoch() > 0 || (self.rules.hold(Rule::AlarmLasts) && self.disk.alarm())
    }

    /// Hears when history goes backwards.
    pub(super) fn subscribe(&self) -> watch::Receiver<u64> {
        self.relist.subscribe()
    }

    /// To be taken before a request leaves.
    pub(super) fn mark(&self, kind: Kind) -> Mark {
        let seen = self.seen.lock().unwrap_or_else(PoisonError::into_inner);
        let version = seen.newest.get(&kind).copied().unwrap_or_default();
        let all = seen.newest.values().copied().chain([seen.before]);
        let highest = if seen.crossed < CROSSED_MAX { all.max() } else { None };
        Mark { kind, version, highest: highest.unwrap_or(version), epoch: self.epoch() }
    }

    /// Takes in the version of the answer to a request that left after `mark` was taken.
    pub(super) fn heard(&self, mark: Mark, version: Option<&str>) {
        // A version that is no number cannot be compared.
        let Some(version) = version.and_then(number) else { return };
        let mut seen = self.seen.lock().unwrap_or_else(PoisonError::into_inner);
        if mark.epoch != self.epoch() {
            return;
        }
        if version >= mark.highest || !self.rules.hold(Rule::NoticeOldHistory) {
            return self.rise(&mut seen, mark.kind, version);
        }
        let crossed = seen.crossed.saturating_add(u32::from(version >= mark.version));
        *seen = Seen { newest: BTreeMap::from([(mark.kind, version)]), before: 0, crossed };
        self.begin_anew(version, version < mark.version);
    }

    /// Takes in the version of an object that was shown or written in `epoch`. It proves nothing by
    /// itself, as it may be old, but no later answer may lie below it.
    pub(super) fn saw(&self, kind: Kind, epoch: u64, version: u64) {
        let mut seen = self.seen.lock().unwrap_or_else(PoisonError::into_inner);
        if epoch == self.epoch() {
            self.rise(&mut seen, kind, version);
        }
    }

    fn rise(&self, seen: &mut Seen, kind: Kind, version: u64) {
        let newest = seen.newest.entry(kind).or_default();
        *newest = version.max(*newest);
        self.disk.saw_version(version);
    }

    /// An object that this node relies on is older than it was, or gone. So history went backwards, even
    /// if its numbers are past those that were seen.
    pub(super) fn lost_a_write(&self) {
        if self.rules.hold(Rule::NoticeOldHistory) {
            let mut seen = self.seen.lock().unwrap_or_else(PoisonError::into_inner);
            *seen = Seen { crossed: seen.crossed, ..Seen::default() };
            self.begin_anew(0, true);
        }
    }

    /// `is_sure`: not only two kinds of object were compared, which may be in etcds of their own.
    fn begin_anew(&self, newest: u64, is_sure: bool) {
        tracing::warn!("the API server's history went backwards: everything is read anew");
        // In memory they are closed all the same; what stays on the disk counts within the promise.
        let forgotten = self.disk.begin_history(newest, is_sure);
        if let Err(error) = forgotten {
            tracing::warn!("{error}");
        }
        self.relist.send_modify(|epoch| *epoch = epoch.saturating_add(1));
    }
}

/// A resourceVersion as a number: those of one server can be compared. `None` when it is none.
pub(super) fn number(version: &str) -> Option<u64> {
    version.parse().ok()
}

/// After so many alarms two kinds are taken to be in two etcds: a backup is not restored as often
/// while one process runs, and each alarm closes this node's blocks for a moment only.
const CROSSED_MAX: u32 = 3;

#[cfg(test)]
mod tests {
    use std::io;
    use std::time::Duration;

    use super::super::disk::Owner;
    use super::super::seams::Storage;
    use super::*;

    #[derive(Debug)]
    struct Nothing;

    impl Storage for Nothing {
        fn read(&self, _name: &str) -> io::Result<Option<Vec<u8>>> {
            Ok(None)
        }

        fn write(&self, _name: &str, _document: &[u8]) -> io::Result<()> {
            Ok(())
        }
    }

    fn history(rules: Rules) -> History {
        let owner = Owner { node: "n1".into(), boot_id: "boot1".into(), rules };
        let disk = Disk::open(Arc::new(Nothing), owner, Duration::ZERO);
        History::new(watch::Sender::new(0), disk, rules)
    }

    fn answer(history: &History, kind: Kind, version: u64) -> u64 {
        let mark = history.mark(kind);
        history.heard(mark, Some(&version.to_string()));
        history.epoch()
    }

    #[test]
    fn only_an_answer_below_what_was_known_before_its_request_is_of_an_older_history() {
        let history = history(Rules::ALL);
        assert_eq!(answer(&history, Kind::Block, 100), 0);
        let early = history.mark(Kind::Block);
        assert_eq!(answer(&history, Kind::Block, 120), 0);
        history.heard(early, Some("110"));
        assert_eq!(history.epoch(), 0, "two answers that overtook each other");
        history.heard(history.mark(Kind::Block), Some("opaque"));
        history.heard(history.mark(Kind::Block), None);
        assert_eq!(answer(&history, Kind::Block, 120), 0);
        let before = history.mark(Kind::Block);
        assert_eq!(answer(&history, Kind::Block, 60), 1);
        assert_eq!(history.disk.version(), 60);
        history.heard(before, Some("61"));
        assert_eq!(history.epoch(), 1, "once");
        assert_eq!(answer(&history, Kind::Lease, 61), 1);
        assert_eq!(answer(&history, Kind::Block, 62), 1);
        assert_eq!(answer(&history, Kind::Lease, 40), 2, "a number of another kind tells it, too");
        history.lost_a_write();
        assert_eq!((history.epoch(), history.disk.version()), (3, 0));
        // What a watch shows may be old, but a later answer is not older.
        history.saw(Kind::Block, 3, 70);
        history.saw(Kind::Block, 3, 50);
        history.saw(Kind::Block, 2, 900);
        assert_eq!((history.epoch(), history.disk.version()), (3, 70));
        assert_eq!(answer(&history, Kind::Block, 70), 3);
        assert_eq!(answer(&history, Kind::Lease, 69), 4);
    }

    #[test]
    fn kinds_in_etcds_of_their_own_are_taken_for_that_after_a_few_alarms() {
        let history = history(Rules::ALL);
        for n in 0..100 {
            answer(&history, Kind::Lease, 1_000_000 + n);
            answer(&history, Kind::Block, 100 + n);
        }
        assert_eq!(history.epoch(), u64::from(CROSSED_MAX));
        assert_eq!(answer(&history, Kind::Block, 50), u64::from(CROSSED_MAX) + 1);
    }

    #[test]
    fn without_the_rule_nothing_is_noticed() {
        let history = history(Rules::ALL.without(Rule::NoticeOldHistory));
        assert_eq!(answer(&history, Kind::Block, 100), 0);
        assert_eq!(answer(&history, Kind::Block, 60), 0);
    }
}
