//! What became of a session: a history of bounded size.

use std::collections::VecDeque;

use crate::session::SessionState;
use crate::status::{SessionChange, SessionRecord};

/// The changes of one session's state, latest last.
///
/// A change that has happened in the same way since the session was last Established, as with a peer that is tried
/// again every few seconds, is counted instead of kept again, so that it does not drive out what happened before.
#[derive(Debug, Default)]
pub(super) struct SessionHistory(VecDeque<SessionRecord>);

impl SessionHistory {
    pub(super) fn records(&self) -> impl DoubleEndedIterator<Item = &SessionRecord> {
        self.0.iter()
    }

    /// The last changes into Established and out of it.
    pub(super) fn turns(&self) -> Vec<SessionRecord> {
        let turns = self.0.iter().rev().filter(|record| is_turn(&record.change));
        let mut turns: Vec<SessionRecord> = turns.take(TURNS_TOLD_MAX).cloned().collect();
        turns.reverse();
        turns
    }

    pub(super) fn push(&mut self, change: SessionChange) {
        let is_same = |record: &SessionRecord| {
            let known = &record.change;
            (known.from, known.to, &known.reason) == (change.from, change.to, &change.reason)
        };
        let since =
            self.0.iter().rposition(|record| is_turn(&record.change)).map_or(0, |at| at + 1);
        let same = (since..self.0.len()).find(|at| self.0.get(*at).is_some_and(is_same));
        let (first_unix_secs, count) = same
            .and_then(|at| self.0.remove(at))
            .map_or((change.at_unix_secs, 1), |same| (same.first_unix_secs, same.count + 1));
        self.0.push_back(SessionRecord { change, first_unix_secs, count });
        while self.0.len() > CHANGES_KEPT_MAX {
            self.0.pop_front();
        }
    }
}

/// Whether a session has begun or ended.
fn is_turn(change: &SessionChange) -> bool {
    [change.from, change.to].contains(&SessionState::Established)
}

/// Changes that are kept for one peer.
const CHANGES_KEPT_MAX: usize = 64;
/// Changes that everybody is told who asks how a session is: two sessions.
const TURNS_TOLD_MAX: usize = 4;

#[cfg(test)]
mod tests {
    use SessionState::{Active, Connect, Established, OpenConfirm, OpenSent};

    use super::*;

    fn push(history: &mut SessionHistory, from: SessionState, to: SessionState, reason: &str) {
        let at_unix_secs = history.0.back().map_or(0, |last| last.change.at_unix_secs + 1);
        let reason = Some(reason.to_owned()).filter(|reason| !reason.is_empty());
        history.push(SessionChange { at_unix_secs, peer: "p".into(), from, to, reason });
    }

    #[test]
    fn attempts_that_repeat_are_counted_and_sessions_are_not() {
        let mut history = SessionHistory::default();
        for _ in 0..2 {
            for _ in 0..100 {
                push(&mut history, Active, Connect, "");
                push(&mut history, Connect, Active, "refused");
            }
            push(&mut history, OpenSent, OpenConfirm, "");
            push(&mut history, OpenConfirm, Established, "");
            push(&mut history, Established, Active, "hold time");
        }
        let counts: Vec<_> = history.records().map(|r| (r.change.to, r.count)).collect();
        let round =
            [(Connect, 100), (Active, 100), (OpenConfirm, 1), (Established, 1), (Active, 1)];
        assert_eq!(counts, [round, round].concat());
        let times: Vec<_> = history.records().map(|record| record.change.at_unix_secs).collect();
        assert!(times.is_sorted(), "{times:?}");
        assert_eq!(history.records().next().map(|record| record.first_unix_secs), Some(0));
        let turns: Vec<_> = history.turns().into_iter().map(|record| record.change.to).collect();
        assert_eq!(turns, [Established, Active, Established, Active]);
    }

    #[test]
    fn a_history_is_bounded() {
        let mut history = SessionHistory::default();
        for number in 0..1000 {
            push(&mut history, OpenConfirm, Established, "");
            push(&mut history, Established, Active, &number.to_string());
        }
        assert_eq!(history.records().count(), CHANGES_KEPT_MAX);
        let last = history.records().next_back().and_then(|record| record.change.reason.as_deref());
        assert_eq!((last, history.turns().len()), (Some("999"), TURNS_TOLD_MAX));
    }
}
