//! Where a server's times, UIDs and generated names come from: the machine, or a simulation that is
//! to be the same each time.

use std::fmt;
use std::fs::File;
use std::io::Read;
use std::sync::Arc;

use k8s_openapi::jiff::Timestamp;

use super::error::ApiError;

/// The clock that an API server stamps objects by.
#[derive(Clone)]
pub struct Clock(Arc<dyn Fn() -> Timestamp + Send + Sync>);

impl Clock {
    /// The machine's time of day.
    pub fn system() -> Clock {
        Clock(Arc::new(Timestamp::now))
    }

    /// A clock that reads `now`.
    pub fn new(now: impl Fn() -> Timestamp + Send + Sync + 'static) -> Clock {
        Clock(Arc::new(now))
    }

    /// The current time as API timestamps show it, in whole seconds.
    pub(super) fn now(&self) -> String {
        let now = (self.0)();
        Timestamp::from_second(now.as_second()).unwrap_or(now).to_string()
    }
}

impl fmt::Debug for Clock {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("Clock").field(&self.now()).finish()
    }
}

/// Where UIDs and the ends of generated names come from.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Randomness {
    /// The kernel's generator.
    Kernel,
    /// A sequence that this number determines.
    Seeded(u64),
}

impl Randomness {
    /// Fills `bytes`.
    pub(super) fn fill(&mut self, bytes: &mut [u8]) -> Result<(), ApiError> {
        match self {
            Randomness::Kernel => {
                let read =
                    File::open("/dev/urandom").and_then(|mut source| source.read_exact(bytes));
                read.map_err(|error| ApiError::internal(format!("/dev/urandom: {error}")))
            }
            Randomness::Seeded(state) => {
                for chunk in bytes.chunks_mut(8) {
                    let word = splitmix(state).to_le_bytes();
                    chunk.iter_mut().zip(word).for_each(|(byte, random)| *byte = random);
                }
                Ok(())
            }
        }
    }
}

/// The next number of the splitmix64 generator.
fn splitmix(state: &mut u64) -> u64 {
    *state = state.wrapping_add(0x9e37_79b9_7f4a_7c15);
    let mut z = *state;
    z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    z ^ (z >> 31)
}
