//! Questions about routes that nobody has to wait for: tables are read a part at a time, and whoever
//! watches is told what there was no room for.

use std::collections::BTreeMap;
use std::sync::Arc;

use tokio::sync::{broadcast, oneshot};

use crate::config::PeerName;
use crate::prefix::Prefix;
use crate::rib::{
    HEARD_PREFIXES_MAX, HeardRoutes, Leaving, Loss, PrefixKeys, RouteExplanation, RouteQuery,
    TableFilter, TableKind, TableRow,
};
use crate::status::WatchEvent;

use super::announcements::{Announcement, Delivery};
use super::owner::Owner;
use super::{Command, Error, SpeakerHandle};

/// A question with the way to its answer.
pub(crate) enum Question {
    Prefixes(TableFilter, oneshot::Sender<PrefixKeys>),
    Rows(TableKind, Vec<Prefix>, oneshot::Sender<Vec<TableRow>>),
    Explain(RouteQuery, oneshot::Sender<Option<RouteExplanation>>),
    Heard(Vec<Prefix>, oneshot::Sender<HeardRoutes>),
    Loss(BTreeMap<PeerName, Leaving>, oneshot::Sender<Loss>),
    Announcements(Vec<Announcement>, oneshot::Sender<Vec<Announcement>>),
    Delivery(Delivery, oneshot::Sender<Delivery>),
    Watch(oneshot::Sender<broadcast::Receiver<Arc<WatchEvent>>>),
}

/// A table that is read a part at a time. Its prefixes are those of the moment at which it was asked
/// for, its rows those of the moment at which they are read; what has gone in between is left out.
#[derive(Debug)]
pub struct TableReader {
    handle: SpeakerHandle,
    table: TableKind,
    keys: PrefixKeys,
    next: usize,
}

/// What happens in a speaker from the moment on at which it was asked for.
#[derive(Debug)]
pub struct WatchFeed {
    events: broadcast::Receiver<Arc<WatchEvent>>,
}

impl SpeakerHandle {
    /// What would be lost if these peers ended what they do, with what was applied before taken up. The
    /// owner walks over all routes.
    ///
    /// # Errors
    /// The speaker has ended.
    pub async fn loss(&self, leaving: BTreeMap<PeerName, Leaving>) -> Result<Loss, Error> {
        self.ask(|answer| Command::Ask(Question::Loss(leaving, answer))).await
    }

    /// A part of a table, in the order of its prefixes.
    ///
    /// # Errors
    /// The speaker has ended.
    pub async fn table(&self, filter: TableFilter) -> Result<TableReader, Error> {
        let table = filter.table.clone();
        let question = |answer| Command::Ask(Question::Prefixes(filter, answer));
        let mut keys = self.ask(question).await?;
        // A million of them take a while, and the owner may share this thread.
        let sorted = tokio::task::spawn_blocking(move || {
            keys.sort();
            keys
        });
        let keys = sorted.await.map_err(|_| Error::Ended)?;
        Ok(TableReader { handle: self.clone(), table, keys, next: 0 })
    }

    /// Everything about one prefix; `None` when there is no route to it.
    ///
    /// # Errors
    /// The speaker has ended.
    pub async fn explain(&self, query: RouteQuery) -> Result<Option<RouteExplanation>, Error> {
        self.ask(|answer| Command::Ask(Question::Explain(query, answer))).await
    }

    /// The routes in every Adj-RIB-In to `prefixes` and parts of them, also those that are not used:
    /// see [`crate::rib::HeardRoute`]. Many prefixes are asked about a part at a time.
    ///
    /// # Errors
    /// The speaker has ended.
    pub async fn heard(&self, prefixes: &[Prefix]) -> Result<HeardRoutes, Error> {
        let mut heard = HeardRoutes::default();
        for some in prefixes.chunks(HEARD_PREFIXES_MAX) {
            let some = some.to_vec();
            let more = self.ask(|answer| Command::Ask(Question::Heard(some, answer))).await?;
            heard.routes.extend(more.routes);
            heard.left_out += more.left_out;
        }
        Ok(heard)
    }

    /// What happens from now on.
    ///
    /// # Errors
    /// The speaker has ended.
    pub async fn watch(&self) -> Result<WatchFeed, Error> {
        let events = self.ask(|answer| Command::Ask(Question::Watch(answer))).await?;
        Ok(WatchFeed { events })
    }
}

impl TableReader {
    /// How many prefixes the table had.
    pub fn len(&self) -> usize {
        self.keys.len()
    }

    /// Whether the table was empty.
    pub fn is_empty(&self) -> bool {
        self.keys.is_empty()
    }

    /// The next rows, which may be none; `None` at the end.
    ///
    /// # Errors
    /// The speaker has ended.
    pub async fn next(&mut self) -> Result<Option<Vec<TableRow>>, Error> {
        let prefixes = self.keys.some(self.next, ROWS_AT_ONCE_MAX);
        if prefixes.is_empty() {
            return Ok(None);
        }
        self.next += prefixes.len();
        let table = self.table.clone();
        let question = |answer| Command::Ask(Question::Rows(table, prefixes, answer));
        self.handle.ask(question).await.map(Some)
    }
}

impl WatchFeed {
    /// The next event; `None` when the speaker has ended. Whoever is slower than events come is told
    /// how many were left out.
    pub async fn recv(&mut self) -> Option<Arc<WatchEvent>> {
        match self.events.recv().await {
            Ok(event) => Some(event),
            Err(broadcast::error::RecvError::Lagged(events)) => {
                Some(Arc::new(WatchEvent::Missed { events }))
            }
            Err(broadcast::error::RecvError::Closed) => None,
        }
    }
}

impl Owner {
    pub(super) fn answer_question(&mut self, question: Question) {
        // Whoever does not wait for the answer any more does not need it.
        match question {
            Question::Prefixes(filter, answer) => {
                let _ = answer.send(self.rib.prefixes(&filter));
            }
            Question::Rows(table, prefixes, answer) => {
                let _ = answer.send(self.rib.rows(&table, &prefixes));
            }
            Question::Explain(query, answer) => {
                let _ = answer.send(self.rib.explanation(query));
            }
            Question::Heard(prefixes, answer) => {
                let _ = answer.send(self.rib.heard(&prefixes));
            }
            Question::Loss(leaving, answer) => {
                let _ = answer.send(self.rib.loss(&leaving));
            }
            Question::Announcements(mut announcements, answer) => {
                announcements.iter_mut().for_each(|announcement| self.follow(announcement));
                let _ = answer.send(announcements);
            }
            Question::Delivery(mut delivery, answer) => {
                self.follow_all(&mut delivery);
                let _ = answer.send(delivery);
            }
            Question::Watch(answer) => {
                let watchers = self.watchers.get_or_insert_with(|| {
                    self.rib.watch_best(true);
                    broadcast::channel(EVENTS_KEPT_MAX).0
                });
                let _ = answer.send(watchers.subscribe());
            }
        }
    }

    /// Tells those who watch, if there are any.
    pub(super) fn tell(&self, event: impl FnOnce() -> WatchEvent) {
        if let Some(watchers) = &self.watchers {
            // Those who have gone are noticed by `tell_best_changes`.
            let _ = watchers.send(Arc::new(event()));
        }
    }

    /// Tells those who watch of best routes that have changed; the last one gone, nothing is noted
    /// any more.
    pub(super) fn tell_best_changes(&mut self) {
        let Some(watchers) = &self.watchers else { return };
        if watchers.receiver_count() == 0 {
            self.watchers = None;
            self.rib.watch_best(false);
            return;
        }
        let (changes, missed) = self.rib.take_best_changes();
        for change in changes {
            self.tell(|| WatchEvent::Route(change));
        }
        if missed > 0 {
            self.tell(|| WatchEvent::Missed { events: missed });
        }
    }
}

/// Rows that are described at once: well below a millisecond of the owner's time.
const ROWS_AT_ONCE_MAX: usize = 256;
/// Events that are kept for those who watch and have not read them yet.
const EVENTS_KEPT_MAX: usize = 4096;
