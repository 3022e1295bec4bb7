//! What a receiver has been told, read after the clock has stopped.

use std::sync::Arc;
use std::time::Instant;

use cairn_bgp::prefix::{Families, Family, Prefix};
use cairn_bgp::wire::{
    AttributeTypes, FrameHeader, HEADER_OCTETS, MESSAGE_OCTETS_MAX, MessageType, SessionSort,
    Update, UpdateBody, UpdateContext,
};

use super::cell::Tables;
use crate::Result;

/// A receiver's view of every prefix of a cell.
#[derive(Debug)]
pub struct Ledger {
    tables: Arc<Tables>,
    /// Whether the daemon's AS stands in front.
    prepends: bool,
    routes: Vec<Route>,
    right: usize,
    absent: usize,
    /// When all were right, and when all were absent, if that is so since then.
    complete_at: Option<Instant>,
    empty_at: Option<Instant>,
    /// Octets of what was stored that have been read.
    octets: usize,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Route {
    Absent,
    Right,
    Wrong,
}

/// Octets as they came, with the time of each read.
#[derive(Debug, Default)]
pub struct Recording {
    /// All octets.
    pub octets: Vec<u8>,
    /// When how many of them had come.
    pub reads: Vec<(Instant, usize)>,
}

impl Ledger {
    /// A receiver that has been told nothing.
    pub fn new(tables: Arc<Tables>, prepends: bool) -> Ledger {
        let absent = tables.paths.len();
        Ledger {
            routes: vec![Route::Absent; absent],
            tables,
            prepends,
            right: 0,
            absent,
            complete_at: None,
            empty_at: None,
            octets: 0,
        }
    }

    /// When every prefix had come with the AS path that it has to have.
    pub fn complete_at(&self) -> Option<Instant> {
        self.complete_at
    }

    /// When every prefix had been withdrawn.
    pub fn empty_at(&self) -> Option<Instant> {
        self.empty_at
    }

    /// Where it stands, for an error.
    pub fn describe(&self) -> String {
        let all = self.routes.len();
        format!(
            "{} of {all} prefixes with the right AS path, {} without a route",
            self.right, self.absent
        )
    }

    /// Reads on in what was recorded.
    ///
    /// # Errors
    /// A message is malformed, ends the session, or has an unknown prefix.
    pub fn read(&mut self, recording: &Recording) -> Result<()> {
        let before = self.octets;
        let mut reads = recording.reads.iter().skip_while(|(_, octets)| *octets <= before);
        let mut read = reads.next();
        loop {
            let rest = recording.octets.get(self.octets..).unwrap_or_default();
            let Some((octets, update)) = next_message(rest)? else { return Ok(()) };
            self.octets += octets;
            while read.is_some_and(|(_, octets)| *octets < self.octets) {
                read = reads.next();
            }
            let Some(update) = update else { continue };
            let at = read.map(|(at, _)| *at);
            for prefix in update.withdrawn() {
                self.set(prefix, |_| Route::Absent)?;
            }
            let Some(attributes) = &update.attributes else {
                self.note(at);
                continue;
            };
            let path: Vec<u32> = attributes.as_path().asns().collect();
            for announcement in update.announcements() {
                for prefix in announcement.prefixes {
                    self.set(prefix, |expected| match expected == path {
                        true => Route::Right,
                        false => Route::Wrong,
                    })?;
                }
            }
            self.note(at);
        }
    }

    fn set(&mut self, prefix: Prefix, route: impl FnOnce(&[u32]) -> Route) -> Result<()> {
        let index = self.tables.index.get(&prefix);
        let index = *index.ok_or_else(|| format!("nobody announced {prefix}"))? as usize;
        let expected = &self.tables.paths[index];
        let new = route(&expected[usize::from(!self.prepends)..]);
        let old = std::mem::replace(&mut self.routes[index], new);
        self.right += usize::from(new == Route::Right);
        self.right -= usize::from(old == Route::Right);
        self.absent += usize::from(new == Route::Absent);
        self.absent -= usize::from(old == Route::Absent);
        Ok(())
    }

    fn note(&mut self, at: Option<Instant>) {
        let all = self.routes.len();
        self.complete_at = (self.right == all).then(|| self.complete_at.or(at)).flatten();
        self.empty_at = (self.absent == all).then(|| self.empty_at.or(at)).flatten();
    }
}

/// The first message in `octets` of an eBGP session, once all of it has come: its length, and what an UPDATE says.
///
/// # Errors
/// It is malformed, or a NOTIFICATION.
pub fn next_message(octets: &[u8]) -> Result<Option<(usize, Option<Update<'_>>)>> {
    let header = FrameHeader::peek(octets, MESSAGE_OCTETS_MAX);
    let Some(header) = header.map_err(|error| error.to_string())? else { return Ok(None) };
    let body = octets.get(HEADER_OCTETS..header.octets).unwrap_or_default();
    match header.message_type {
        MessageType::Update => {}
        MessageType::Notification => {
            return Err(format!("the daemon ended a session: {body:02x?}").into());
        }
        _ => return Ok(Some((header.octets, None))),
    }
    let update = UpdateBody::split(body).and_then(|body| body.decode(&CONTEXT));
    let update = update.map_err(|error| format!("a malformed UPDATE: {error}"))?;
    match update.errors.is_empty() {
        true => Ok(Some((header.octets, Some(update)))),
        false => Err(format!("errors in an UPDATE: {:?}", update.errors).into()),
    }
}

/// What the sessions of the load generator negotiate at most.
const CONTEXT: UpdateContext = UpdateContext {
    sort: SessionSort::Ebgp,
    as4: true,
    families: Families::NONE.with(Family::Ipv4Unicast).with(Family::Ipv6Unicast),
    extended_next_hop: false,
    first_as: None,
    discard_attributes: AttributeTypes::NONE,
    path_ids: Families::NONE,
};

#[cfg(test)]
mod tests {
    use super::*;
    use crate::Extent;
    use crate::bgp::cell::Cell;

    /// What the first sender of a cell sends, as if a copier had passed it on.
    fn recording(octets: &[u8], from: Instant) -> Recording {
        let mut recording = Recording::default();
        for chunk in octets.chunks(100) {
            recording.octets.extend_from_slice(chunk);
            let at = from + std::time::Duration::from_millis(recording.reads.len() as u64);
            recording.reads.push((at, recording.octets.len()));
        }
        recording
    }

    #[test]
    fn completeness_is_that_of_the_last_prefix_with_its_own_path() {
        let cell = Cell::all(Extent::Quick)[0];
        let tables = Arc::new(cell.tables().expect("a small table"));
        let (announcements, withdrawals) = tables.senders[0].clone();
        let start = Instant::now();

        let mut ledger = Ledger::new(Arc::clone(&tables), false);
        let cut = announcements.len() - 1;
        ledger.read(&recording(&announcements[..cut], start)).expect("well-formed");
        assert_eq!(ledger.complete_at(), None, "one octet is missing");
        let all = recording(&[announcements, withdrawals].concat(), start);
        ledger.read(&all).expect("well-formed");
        assert_eq!(ledger.complete_at(), None, "all has been withdrawn again");
        assert_eq!(ledger.empty_at(), all.reads.last().map(|(at, _)| *at));

        let complete = recording(&tables.senders[0].0, start);
        let mut ledger = Ledger::new(Arc::clone(&tables), false);
        ledger.read(&complete).expect("well-formed");
        assert_eq!(ledger.complete_at(), complete.reads.last().map(|(at, _)| *at));

        let mut prepending = Ledger::new(tables, true);
        prepending.read(&complete).expect("well-formed");
        assert_eq!(prepending.complete_at(), None, "the daemon's AS is missing in every path");
    }
}
