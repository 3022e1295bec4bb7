//! How many prefixes a peer may announce, counted before policy, and how many paths to each.

use crate::config::{PrefixLimit, PrefixLimitAction};
use crate::prefix::{Families, Family};

/// A peer sent more prefixes of a family than it may, and its session has to end.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("more than {prefixes_max} prefixes of {family}")]
pub struct PrefixLimitExceeded {
    /// The family.
    pub family: Family,
    /// The configured limit.
    pub prefixes_max: u32,
    /// When the session may come back; `None` when an operator has to reset it.
    pub restart_after_secs: Option<u32>,
}

/// What [`super::Rib::update`] did besides taking routes in.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct UpdateOutcome {
    /// Families that have gone over a limit that only warns or drops; each is named once, and again
    /// when the peer has been within its limit in between.
    pub over_limit: Families,
    /// Announcements that were not taken in because of the limit.
    pub dropped: u32,
    /// Families in which the peer has sent more than [`PATHS_A_PREFIX_MAX`] paths to one prefix; each is
    /// named once in a session. What was beyond is not taken in.
    pub over_paths: Families,
}

impl UpdateOutcome {
    pub(super) fn add(&mut self, other: UpdateOutcome) {
        self.over_limit = self.over_limit.union(other.over_limit);
        self.over_paths = self.over_paths.union(other.over_paths);
        self.dropped = self.dropped.saturating_add(other.dropped);
    }
}

impl PrefixLimit {
    /// From how many prefixes on no further one is taken in.
    pub(super) fn drops_from(self) -> Option<u32> {
        (self.action == PrefixLimitAction::Drop).then_some(self.prefixes_max)
    }

    /// Whether that many prefixes are too many, for the action that ends the session.
    pub(super) fn check(self, family: Family, received: u32) -> Result<(), PrefixLimitExceeded> {
        match self.action {
            PrefixLimitAction::Stop { restart_after_secs } if received > self.prefixes_max => {
                let prefixes_max = self.prefixes_max;
                Err(PrefixLimitExceeded { family, prefixes_max, restart_after_secs })
            }
            _ => Ok(()),
        }
    }
}

/// Paths to one prefix that are taken in from one peer, stale ones aside (RFC 7911 leaves the bound to
/// those who receive). More than a kernel route or a decision can use; each costs a look at all of them
/// whenever one changes.
pub const PATHS_A_PREFIX_MAX: usize = 32;
