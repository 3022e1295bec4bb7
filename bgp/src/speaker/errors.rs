//! What went wrong with a peer: a history of bounded size.

use std::collections::VecDeque;
use std::time::SystemTime;

use crate::session::ErrorKind;
use crate::status::{ErrorRecord, MessageOctets};
use crate::stream::FaultyMessage;
use crate::wire::{AttributeError, AttributeVerdict};

use super::peer::unix_secs;

/// The errors of one peer, latest last.
///
/// An error that repeats the latest one of its kind without a message of its own, such as a refused
/// connection every few seconds, is counted instead of kept again, so that it does not drive out what
/// happened before.
#[derive(Debug, Default)]
pub(super) struct ErrorHistory {
    kept: VecDeque<ErrorRecord>,
    /// Octets of all messages kept.
    octets: usize,
    /// Errors so far.
    total: u64,
}

impl ErrorHistory {
    /// Errors so far, also those that are not kept any more.
    pub(super) fn total(&self) -> u64 {
        self.total
    }

    pub(super) fn records(&self) -> impl Iterator<Item = &ErrorRecord> {
        self.kept.iter()
    }

    pub(super) fn push(
        &mut self,
        at: SystemTime,
        kind: ErrorKind,
        text: String,
        message: FaultyMessage,
    ) {
        self.total += 1;
        let at_unix_secs = unix_secs(at);
        let FaultyMessage { octets, prefixes, prefixes_left_out } = message;
        if octets.is_empty()
            && let Some(same) = self.kept.iter_mut().rev().find(|record| record.kind == kind)
            && same.text == text
            && same.message.is_empty()
        {
            same.count += 1;
            same.at_unix_secs = at_unix_secs;
            return;
        }
        self.octets += octets.len();
        self.kept.push_back(ErrorRecord {
            at_unix_secs,
            first_unix_secs: at_unix_secs,
            count: 1,
            kind,
            text,
            prefixes,
            prefixes_left_out,
            message_octets: octets.len(),
            message: MessageOctets(octets),
        });
        while self.kept.len() > ERRORS_KEPT_MAX || self.octets > ERROR_OCTETS_KEPT_MAX {
            let Some(oldest) = self.kept.pop_front() else { break };
            self.octets -= oldest.message.0.len();
        }
    }
}

/// The kind of the worst of an UPDATE's errors.
pub(super) fn kind_of(errors: &[AttributeError]) -> ErrorKind {
    match errors.iter().map(|error| error.verdict).max() {
        Some(AttributeVerdict::TreatAsWithdraw) => ErrorKind::TreatedAsWithdraw,
        Some(AttributeVerdict::Discard) | None => ErrorKind::AttributeDiscarded,
    }
}

/// Errors that are kept for one peer.
const ERRORS_KEPT_MAX: usize = 32;
/// Octets of messages that are kept for one peer: some of the largest, many of the usual ones.
const ERROR_OCTETS_KEPT_MAX: usize = 256 * 1024;

#[cfg(test)]
mod tests {
    use bytes::Bytes;

    use super::*;

    fn push(history: &mut ErrorHistory, kind: ErrorKind, text: &str, octets: usize) {
        let octets = Bytes::from(vec![0; octets]);
        let message = FaultyMessage { octets, ..FaultyMessage::default() };
        history.push(SystemTime::now(), kind, text.to_owned(), message);
    }

    #[test]
    fn a_history_is_bounded_in_errors_and_octets() {
        let mut history = ErrorHistory::default();
        for number in 0..1000 {
            push(&mut history, ErrorKind::ConnectionLost, &number.to_string(), 0);
        }
        assert_eq!((history.kept.len(), history.total()), (ERRORS_KEPT_MAX, 1000));
        assert_eq!(history.records().last().map(|r| r.text.as_str()), Some("999"));
        for _ in 0..100 {
            push(&mut history, ErrorKind::TreatedAsWithdraw, "bad", 65_535);
        }
        let octets: usize = history.records().map(|r| r.message.0.len()).sum();
        assert_eq!((octets, history.octets), (4 * 65_535, 4 * 65_535));
        assert!(octets <= ERROR_OCTETS_KEPT_MAX);
    }

    #[test]
    fn repeated_attempts_are_counted_and_leave_the_rest_alone() {
        let mut history = ErrorHistory::default();
        push(&mut history, ErrorKind::MalformedMessage, "bad", 30);
        for _ in 0..100 {
            push(&mut history, ErrorKind::ConnectFailed, "refused", 0);
            push(&mut history, ErrorKind::NotificationReceived, "cease", 0);
        }
        let counts: Vec<_> = history.records().map(|r| (r.kind, r.count)).collect();
        let expected = [
            (ErrorKind::MalformedMessage, 1),
            (ErrorKind::ConnectFailed, 100),
            (ErrorKind::NotificationReceived, 100),
        ];
        assert_eq!(counts, expected);
    }
}
