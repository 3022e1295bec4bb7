//! Routes of a former connection that the RIB still holds, and how long (RFC 4724 section 4.2, RFC 8538
//! section 4.1, RFC 9494 section 4).
//!
//! ```text
//!  session down ──► Restarting ──restart time──► LongLived ──stale time──► gone
//!                     │    ▲                       │    ▲
//!                     ▼    │ down again            ▼    │ down again
//!                   session up: End-of-RIB ends it, or the bound does
//! ```

use std::time::{Duration, Instant};

use crate::prefix::{Families, Family};

use super::timers::{STALE_AFTER_UP, earliest};

/// The families with stale routes.
#[derive(Clone, Debug, Default)]
pub(super) struct Stale(Vec<StaleFamily>);

#[derive(Clone, Copy, Debug)]
struct StaleFamily {
    family: Family,
    stage: Stage,
    /// When the stage ends.
    until: Instant,
    /// When it ends at the latest, however often the peer restarts meanwhile.
    at_most: Instant,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Stage {
    /// The routes are as good as before.
    Restarting {
        /// How long they stay as a last resort afterwards.
        then: Option<Duration>,
    },
    /// They are a last resort.
    LongLived,
}

/// Why families become stale.
pub(super) struct Loss {
    /// The families whose routes stay.
    pub(super) keep: Families,
    /// How long the peer said that its restart takes.
    pub(super) restart_time: Duration,
    /// How long routes of a family stay after that.
    pub(super) long_lived: [Option<Duration>; 2],
    /// What was stale already may go on waiting (RFC 8538 section 4.1).
    pub(super) again: bool,
}

/// What is to be done because of the time.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Due {
    /// The routes of these go.
    pub(super) gone: Families,
    /// The routes of these become a last resort.
    pub(super) long_lived: Families,
}

impl Stale {
    pub(super) fn families(&self) -> Families {
        self.0.iter().map(|stale| stale.family).collect()
    }

    /// Those whose routes are a last resort.
    pub(super) fn long_lived(&self) -> Families {
        let long_lived = self.0.iter().filter(|stale| stale.stage == Stage::LongLived);
        long_lived.map(|stale| stale.family).collect()
    }

    /// When [`Stale::tick`] has something.
    pub(super) fn next(&self) -> Option<Instant> {
        self.0.iter().fold(None, |next, stale| earliest(next, Some(stale.until)))
    }

    /// A session was lost; the families of which routes that were stale before may stay, too.
    pub(super) fn lost(&mut self, now: Instant, loss: &Loss) -> Families {
        let before = std::mem::take(&mut self.0);
        let mut older = Families::NONE;
        for (family, long_lived) in Family::ALL.into_iter().zip(loss.long_lived) {
            if !loss.keep.contains(family) {
                continue;
            }
            let again = before.iter().find(|stale| stale.family == family).filter(|stale| {
                // The long stale time runs on until End-of-RIB, so that it bounds all restarts in it. What is
                // near its end goes now, so that what came since has the whole restart time.
                let end = match stale.stage {
                    Stage::LongLived => stale.until,
                    Stage::Restarting { .. } => stale.at_most,
                };
                let is_wanted = loss.again || stale.stage == Stage::LongLived;
                is_wanted && end >= now + loss.restart_time
            });
            if again.is_some() {
                older = older.with(family);
            }
            let restarted = now + loss.restart_time;
            self.0.push(match again {
                Some(last_resort @ StaleFamily { stage: Stage::LongLived, .. }) => *last_resort,
                again => {
                    let at_most = again.map_or(restarted + STALE_AFTER_UP, |again| again.at_most);
                    let stage = Stage::Restarting { then: long_lived };
                    StaleFamily { family, stage, until: at_most.min(restarted), at_most }
                }
            });
        }
        older
    }

    /// The session is back: what `keeps` does not name goes, the rest waits for End-of-RIB. It is told
    /// of each family whether its routes are a last resort.
    pub(super) fn back(&mut self, now: Instant, keeps: impl Fn(Family, bool) -> bool) {
        self.0.retain(|stale| keeps(stale.family, stale.stage == Stage::LongLived));
        for stale in &mut self.0 {
            if let Stage::Restarting { then } = &mut stale.stage {
                *then = None;
                stale.until = stale.at_most.min(now + STALE_AFTER_UP);
            }
        }
    }

    /// End-of-RIB of a family came.
    pub(super) fn end_of_rib(&mut self, family: Family) {
        self.0.retain(|stale| stale.family != family);
    }

    /// Forgets everything; the families whose routes go.
    pub(super) fn clear(&mut self) -> Families {
        let families = self.families();
        self.0.clear();
        families
    }

    pub(super) fn tick(&mut self, now: Instant) -> Due {
        let mut due = Due::default();
        self.0.retain_mut(|stale| {
            if stale.until > now {
                return true;
            }
            let Stage::Restarting { then: Some(time) } = stale.stage else {
                due.gone = due.gone.with(stale.family);
                return false;
            };
            stale.stage = Stage::LongLived;
            stale.until = now + time;
            due.long_lived = due.long_lived.with(stale.family);
            true
        });
        due
    }
}
