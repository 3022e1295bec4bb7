//! The machine's settings that routes and tunnels need, kept as needed.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use cairn_kernel::route::Family;
use cairn_kernel::sysctl::{self, NodeSettings};

/// What was brought in order, and what could not be.
#[derive(Default)]
pub(super) struct Machine {
    /// What was needed when they were looked at last; `None`: they may be others by now.
    settled: Option<NodeSettings>,
    /// What could not be brought in order, one sentence each.
    pub(super) deviations: Vec<String>,
    /// When what could not be is tried again.
    pub(super) due: Option<Instant>,
    /// Families of which nothing is forwarded: no block of them can be reached.
    pub(super) not_forwarded: Vec<Family>,
    /// Interfaces whose sources are checked loosely now, and what they had before.
    loosened: BTreeMap<String, i64>,
}

impl Machine {
    /// Has everything looked at again.
    pub(super) fn doubt(&mut self) {
        self.settled = None;
    }

    /// Brings the settings in order if others are needed than before, or something was in doubt or failed.
    pub(super) fn settle(&mut self, needed: NodeSettings, now: Instant) {
        let again = self.due.is_some_and(|at| at <= now);
        if self.settled.as_ref() == Some(&needed) && !again {
            return;
        }
        let settled = needed.settle();
        for change in settled.changed {
            tracing::info!("{change}");
        }
        // Who keeps a setting from being made may be gone by then, and says nothing when it goes.
        self.due = (!settled.deviations.is_empty()).then(|| now + RETRY);
        self.not_forwarded = settled.not_forwarded;
        self.deviations = settled.deviations;
        self.loosened.extend(settled.loosened);
        let kept = |interface: &String| needed.loose.contains(interface);
        for (interface, before) in self.loosened.extract_if(.., |name, _| !kept(name)) {
            match sysctl::restore_reverse_path(&interface, before) {
                Ok(true) => tracing::info!("rp_filter of {interface} is {before} again"),
                Ok(false) => {}
                Err(error) if error.is_absent() => {}
                Err(error) => tracing::warn!("rp_filter of {interface} stays loose: {error}"),
            }
        }
        self.settled = Some(needed);
    }
}

/// When a setting that could not be made is tried again.
const RETRY: Duration = Duration::from_secs(5);
