//! Seeded randomness: a failing seed is all that a run needs to be repeated.

use std::sync::{Arc, Mutex};
use std::time::Duration;

/// A small generator (splitmix64). Clones draw from the same sequence.
#[derive(Clone, Debug)]
pub struct Dice(Arc<Mutex<u64>>);

impl Dice {
    pub fn new(seed: u64) -> Dice {
        Dice(Arc::new(Mutex::new(seed)))
    }

    /// A sequence of its own, so that what draws from it does not move the others.
    pub fn split(&self) -> Dice {
        Dice::new(self.next())
    }

    pub fn next(&self) -> u64 {
        let mut state = self.0.lock().expect("the dice");
        *state = state.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = *state;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    /// From 0 to `sides` - 1.
    pub fn roll(&self, sides: usize) -> usize {
        (self.next() % sides.max(1) as u64) as usize
    }

    /// True once in `sides` rolls.
    pub fn one_in(&self, sides: usize) -> bool {
        self.roll(sides) == 0
    }

    pub fn pick<T: Clone>(&self, from: &[T]) -> T {
        from[self.roll(from.len())].clone()
    }

    /// Between `least` and `most` milliseconds.
    pub fn millis(&self, least: u64, most: u64) -> Duration {
        Duration::from_millis(least + self.next() % (most - least + 1))
    }
}
