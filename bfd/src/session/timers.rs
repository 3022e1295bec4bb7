//! Randomness and limits of what a session sends.

use std::time::{Duration, Instant};

/// A source of randomness that the caller seeds, so that a run can be repeated.
#[derive(Clone, Debug)]
pub struct Jitter(u64);

impl Jitter {
    /// A source that yields the same sequence for the same seed.
    pub const fn new(seed: u64) -> Jitter {
        Jitter(seed)
    }

    /// The next random number (splitmix64).
    pub fn random(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    /// `interval` shortened to between 75 and 100 %; with a multiplier of 1 to at most 90 %, as one
    /// packet that is late would end the session (RFC 5880 section 6.8.7).
    pub(super) fn apply(&mut self, interval: Duration, multiplier: u8) -> Duration {
        let span = if multiplier == 1 { 150 } else { 250 };
        let share = 750 + (self.random() % (span + 1)) as u32;
        interval * share / 1000
    }
}

/// How many packets a session may send besides those that its timer sends: some at once, then one in
/// [`EXTRA_INTERVAL`], however fast the other side polls or changes its state.
#[derive(Clone, Copy, Debug)]
pub(super) struct Allowance {
    left: u32,
    since: Instant,
}

impl Allowance {
    pub(super) fn new(now: Instant) -> Allowance {
        Allowance { left: EXTRA_BURST_MAX, since: now }
    }

    /// Whether one more may go now.
    pub(super) fn take(&mut self, now: Instant) -> bool {
        let passed = now.saturating_duration_since(self.since);
        let earned = passed.as_micros() / EXTRA_INTERVAL.as_micros();
        if earned > 0 {
            let earned = u32::try_from(earned).unwrap_or(u32::MAX);
            self.left = self.left.saturating_add(earned).min(EXTRA_BURST_MAX);
            self.since = now;
        }
        let some = self.left > 0;
        self.left = self.left.saturating_sub(1);
        some
    }
}

/// Packets besides those of the timer that may go at once.
pub const EXTRA_BURST_MAX: u32 = 8;

/// Afterwards one goes in this time: not longer than any interval that is announced (RFC 5880
/// section 6.8.7).
pub const EXTRA_INTERVAL: Duration = Duration::from_millis(50);
