//! Links that lose their carrier: the sessions over them end at once, not after the hold time.
//!
//! This watches links and nothing else, and only reads: `cairn speaker` does so without `--fib`, too.

use std::time::Duration;

use cairn_bgp::speaker::SpeakerHandle;
use cairn_kernel::Error;
use cairn_kernel::monitor::{KernelEvent, LinkState, Monitor};
use tokio::sync::mpsc;

/// Watches the links of the calling thread's network namespace until the speaker ends; its runtime is that
/// thread's alone. Without it sessions go on as before, so a kernel that refuses is only told about, and asked
/// again.
pub fn watch(speaker: SpeakerHandle) {
    tokio::spawn(async move {
        let mut changes = speaker.changes();
        let ended = async { while changes.changed().await.is_ok() {} };
        let (lost, mut links) = mpsc::channel(LOST_MAX);
        let told = async {
            while let Some(index) = links.recv().await {
                // One that has ended has no sessions to lose.
                let _ = speaker.carrier_lost(index).await;
            }
        };
        tokio::select! {
            () = ended => {}
            () = told => {}
            () = follow(Monitor::open_links, lost) => {}
        }
    });
}

/// Tells `lost` which links cannot carry packets any more, by their indices, for as long as it is polled.
/// Notifications that fail are opened again; of what they were silent about the outcome is told then.
pub async fn follow(open: impl Fn() -> Result<Monitor, Error>, lost: mpsc::Sender<u32>) {
    let mut failing = Failing(false);
    let mut monitor = loop {
        match open() {
            Ok(monitor) => break monitor,
            Err(error) => failing.wait(&error).await,
        }
    };
    failing.is_over();
    loop {
        let events = match failing.0 {
            true => monitor.reopen(),
            false => monitor.next().await,
        };
        match events {
            Ok(events) => {
                failing.is_over();
                for event in events {
                    // After lost notifications the links have been read again: what changed is here, too.
                    let KernelEvent::Link { index, name, state } = event else { continue };
                    if state != LinkState::Running {
                        tracing::debug!(%name, ?state, "link without carrier");
                        // Who does not listen any more ends this, too.
                        let _ = lost.send(index).await;
                    }
                }
            }
            Err(error) => failing.wait(&error).await,
        }
    }
}

/// Whether links are not watched, which is said once: it may last.
struct Failing(bool);

impl Failing {
    async fn wait(&mut self, error: &Error) {
        if !std::mem::replace(&mut self.0, true) {
            tracing::warn!(
                %error,
                "links are not watched, which is tried again: until then a lost carrier is noticed by the hold \
                 time only"
            );
        }
        tokio::time::sleep(RETRY).await;
    }

    fn is_over(&mut self) {
        if std::mem::take(&mut self.0) {
            tracing::info!("links are watched again");
        }
    }
}

/// After notifications that have failed: what made them fail may last.
const RETRY: Duration = Duration::from_secs(2);
/// Links that wait for the speaker.
const LOST_MAX: usize = 64;
