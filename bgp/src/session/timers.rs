//! Deadlines of a session and their jitter (RFC 4271 section 10).

use std::time::{Duration, Instant};

/// A source of jitter that the caller seeds, so that a run can be repeated.
#[derive(Clone, Debug)]
pub struct Jitter(u64);

impl Jitter {
    /// A source that yields the same sequence for the same seed.
    pub const fn new(seed: u64) -> Jitter {
        // A xorshift generator must not start at zero.
        Jitter(seed ^ 0x9e37_79b9_7f4a_7c15 | 1)
    }

    /// `duration` shortened to between three quarters and the whole of it (RFC 4271 section 10).
    pub fn apply(&mut self, duration: Duration) -> Duration {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        let share = 768 + (self.0 >> 40 & 0xff) as u32;
        duration * share / 1024
    }
}

/// The hold and keepalive timers of a connection whose hold time is known.
#[derive(Clone, Debug)]
pub(super) struct Liveness {
    hold: Duration,
    /// When the peer has been silent for too long; `None` without a hold time.
    hold_at: Option<Instant>,
    /// When the next KEEPALIVE is due; `None` without a hold time.
    keepalive_at: Option<Instant>,
}

impl Liveness {
    /// Timers that start now; a hold time of 0 means none (RFC 4271 section 4.2).
    pub(super) fn start(now: Instant, hold_time_secs: u16, jitter: &mut Jitter) -> Liveness {
        let hold = Duration::from_secs(hold_time_secs.into());
        let mut timers = Liveness { hold, hold_at: None, keepalive_at: None };
        timers.heard(now);
        timers.spoke(now, jitter);
        timers
    }

    /// A KEEPALIVE or UPDATE came in.
    pub(super) fn heard(&mut self, now: Instant) {
        self.hold_at = (!self.hold.is_zero()).then(|| now + self.hold);
    }

    /// The peer has not been silent, although nothing of it is read yet.
    pub(super) fn put_off_hold(&mut self, until: Instant) {
        self.hold_at = self.hold_at.map(|at| at.max(until));
    }

    /// A KEEPALIVE went out.
    pub(super) fn spoke(&mut self, now: Instant, jitter: &mut Jitter) {
        self.keepalive_at = (!self.hold.is_zero())
            .then(|| now + jitter.apply(self.hold / KEEPALIVES_PER_HOLD_TIME));
    }

    pub(super) fn hold_expired(&self, now: Instant) -> bool {
        self.hold_at.is_some_and(|at| at <= now)
    }

    pub(super) fn keepalive_due(&self, now: Instant) -> bool {
        self.keepalive_at.is_some_and(|at| at <= now)
    }

    pub(super) fn next(&self) -> Option<Instant> {
        earliest(self.hold_at, self.keepalive_at)
    }
}

/// Whether the peer takes what is sent to it (RFC 9687). The timer does not restart with each octet:
/// the caller is asked from time to time whether any has left.
#[derive(Clone, Debug)]
pub(super) struct SendHold {
    /// Zero when the timer is off.
    wait: Duration,
    look_at: Option<Instant>,
    /// Since when nothing has left although something waits.
    stuck_since: Option<Instant>,
}

impl SendHold {
    /// RFC 9687 section 3.2 suggests at least twice the hold time.
    pub(super) fn start(now: Instant, configured_secs: u16, hold_time_secs: u16) -> SendHold {
        let wait = match configured_secs {
            0 => Duration::ZERO,
            secs => Duration::from_secs(u64::from(secs).max(2 * u64::from(hold_time_secs))),
        };
        let mut timer = SendHold { wait, look_at: None, stuck_since: None };
        timer.look_later(now);
        timer
    }

    /// How long nothing may leave.
    pub(super) fn wait(&self) -> Duration {
        self.wait
    }

    pub(super) fn next(&self) -> Option<Instant> {
        self.look_at
    }

    /// Whether the caller is to look now.
    pub(super) fn is_due(&mut self, now: Instant) -> bool {
        let due = self.look_at.is_some_and(|at| at <= now);
        if due {
            self.look_later(now);
        }
        due
    }

    /// What the caller saw; true when nothing has left for too long.
    pub(super) fn looked(&mut self, now: Instant, moves: bool) -> bool {
        self.stuck_since = if moves { None } else { self.stuck_since.or(Some(now)) };
        !self.wait.is_zero() && self.stuck_since.is_some_and(|since| since + self.wait <= now)
    }

    fn look_later(&mut self, now: Instant) {
        self.look_at = (!self.wait.is_zero()).then(|| now + self.wait / LOOKS_PER_SEND_HOLD_TIME);
    }
}

/// The earlier of two deadlines.
pub(super) fn earliest(a: Option<Instant>, b: Option<Instant>) -> Option<Instant> {
    match (a, b) {
        (Some(a), Some(b)) => Some(a.min(b)),
        (a, b) => a.or(b),
    }
}

/// RFC 4271 section 10 suggests a third of the hold time.
const KEEPALIVES_PER_HOLD_TIME: u32 = 3;
/// The send hold timer is late by at most one look.
const LOOKS_PER_SEND_HOLD_TIME: u32 = 8;
/// How long the hold timer waits for octets that have come in to be read.
pub(super) const HOLD_PUT_OFF: Duration = Duration::from_millis(50);
/// A second connection this soon after the session came up was opened before the peer knew of it.
pub(super) const COLLISION_AFTER_UP: Duration = Duration::from_secs(5);
/// How long a connection that would lose a collision waits for the OPEN of the one that would win.
pub(super) const COLLISION_WAIT: Duration = Duration::from_secs(1);
/// How long an OPEN or the first KEEPALIVE may take. RFC 4271 suggests four minutes, but a peer that
/// accepts and says nothing would then hold up the next attempt for as long.
pub(super) const OPEN_WAIT: Duration = Duration::from_secs(60);
/// How long the operating system may take to connect before the attempt is given up.
pub(super) const CONNECT_WAIT: Duration = Duration::from_secs(10);
/// How long routes of a restarted peer stay stale once its session is back, if End-of-RIB does not
/// come (RFC 4724 section 4.2 asks for a bound).
pub(super) const STALE_AFTER_UP: Duration = Duration::from_secs(300);

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn jitter_stays_in_its_bounds_and_varies() {
        let mut jitter = Jitter::new(7);
        let whole = Duration::from_secs(100);
        let drawn: Vec<_> = (0..500).map(|_| jitter.apply(whole)).collect();
        assert!(drawn.iter().all(|d| *d >= whole * 3 / 4 && *d <= whole));
        assert!(drawn.iter().min() < drawn.iter().max());
    }
}
