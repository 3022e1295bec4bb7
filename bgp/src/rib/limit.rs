//! How many prefixes a peer may announce, counted before policy.

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
}

impl UpdateOutcome {
    pub(super) fn add(&mut self, other: UpdateOutcome) {
        self.over_limit =
            self.over_limit.iter().chain(other.over_limit.iter()).collect::<Families>();
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
