//! What one peer announces and withdraws, as the RIB takes it in.

use std::sync::Arc;

use crate::prefix::{Family, Prefix};
use crate::wire::{PathPrefix, Prefixes, Update};

use super::attributes::RouteAttributes;

/// A run of changes from one peer, in the order of the wire. Prefixes lie in one allocation, and the
/// attributes of an UPDATE are one value.
#[derive(Clone, Debug, Default)]
pub struct UpdateBatch {
    pub(crate) runs: Vec<Run>,
    pub(crate) prefixes: Vec<Prefix>,
}

/// Prefixes with one fate.
#[derive(Clone, Debug)]
pub(crate) struct Run {
    pub(crate) change: Change,
    /// How many of the batch's prefixes belong here.
    pub(crate) prefixes: usize,
}

#[derive(Clone, Debug)]
pub(crate) enum Change {
    Announce(Arc<RouteAttributes>),
    /// The paths with this identifier.
    Withdraw(u32),
    EndOfRib(Family),
}

impl UpdateBatch {
    /// Appends what an UPDATE says.
    pub fn push(&mut self, update: &Update<'_>) {
        if let Some(family) = update.end_of_rib {
            self.push_end_of_rib(family);
            return;
        }
        for prefixes in update.withdrawn_runs() {
            self.push_by_path(prefixes, Change::Withdraw);
        }
        let Some(attributes) = &update.attributes else { return };
        for announcement in update.announcements() {
            let next_hop = announcement.next_hop;
            self.push_by_path(announcement.prefixes, |path_id| {
                let attributes = RouteAttributes::new(next_hop, Arc::clone(attributes));
                Change::Announce(Arc::new(attributes.with_path_id(path_id)))
            });
        }
    }

    /// Appends a run for each identifier, in the order of the message.
    fn push_by_path(&mut self, prefixes: Prefixes<'_>, change: impl Fn(u32) -> Change) {
        if !prefixes.has_path_ids() {
            self.push_run(change(0), prefixes);
            return;
        }
        let mut paths = prefixes.paths().peekable();
        while let Some(PathPrefix { path_id, prefix }) = paths.next() {
            let same = std::iter::from_fn(|| paths.next_if(|path| path.path_id == path_id));
            let same = same.map(|path| path.prefix);
            self.push_run(change(path_id), std::iter::once(prefix).chain(same));
        }
    }

    /// Appends prefixes that are announced with `attributes`.
    pub fn push_announcements(
        &mut self,
        attributes: Arc<RouteAttributes>,
        prefixes: impl IntoIterator<Item = Prefix>,
    ) {
        self.push_run(Change::Announce(attributes), prefixes);
    }

    /// Appends prefixes that are withdrawn, where the peer sends one path to each.
    pub fn push_withdrawals(&mut self, prefixes: impl IntoIterator<Item = Prefix>) {
        self.push_run(Change::Withdraw(0), prefixes);
    }

    /// Appends prefixes whose path with this identifier is withdrawn (RFC 7911).
    pub fn push_path_withdrawals(
        &mut self,
        path_id: u32,
        prefixes: impl IntoIterator<Item = Prefix>,
    ) {
        self.push_run(Change::Withdraw(path_id), prefixes);
    }

    /// Appends an End-of-RIB marker.
    pub fn push_end_of_rib(&mut self, family: Family) {
        self.runs.push(Run { change: Change::EndOfRib(family), prefixes: 0 });
    }

    /// The families whose End-of-RIB is in it.
    pub fn ends_of_rib(&self) -> impl Iterator<Item = Family> {
        self.runs.iter().filter_map(|run| match run.change {
            Change::EndOfRib(family) => Some(family),
            Change::Announce(_) | Change::Withdraw(_) => None,
        })
    }

    /// How many prefixes are announced or withdrawn.
    pub fn len(&self) -> usize {
        self.prefixes.len()
    }

    /// Whether nothing is in it, not even a marker.
    pub fn is_empty(&self) -> bool {
        self.runs.is_empty()
    }

    fn push_run(&mut self, change: Change, prefixes: impl IntoIterator<Item = Prefix>) {
        let before = self.prefixes.len();
        self.prefixes.extend(prefixes);
        let prefixes = self.prefixes.len() - before;
        if prefixes > 0 {
            self.runs.push(Run { change, prefixes });
        }
    }
}
