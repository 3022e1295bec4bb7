//! Links that lose their carrier: the sessions over them end at once, not after the hold time.
//!
//! This watches links and nothing else, and only reads: `cairn speaker` does so without `--fib`, too.

use cairn_bgp::speaker::SpeakerHandle;
use cairn_kernel::monitor::{KernelEvent, LinkState, Monitor};

/// Watches the links of the calling thread's network namespace until the speaker ends. Without it
/// sessions go on as before, so a kernel that refuses is only told about.
pub fn watch(speaker: SpeakerHandle) {
    match Monitor::open_links() {
        Ok(monitor) => drop(tokio::spawn(follow(monitor, speaker))),
        Err(error) => complain(&error),
    }
}

async fn follow(mut monitor: Monitor, speaker: SpeakerHandle) {
    let mut changes = speaker.changes();
    loop {
        let events = tokio::select! {
            events = monitor.next() => events,
            // Fails when the speaker has ended.
            changed = changes.changed() => match changed {
                Ok(()) => continue,
                Err(_) => return,
            },
        };
        let events = match events {
            Ok(events) => events,
            Err(error) => return complain(&error),
        };
        for event in events {
            // After lost notifications the links have been read again: what changed is here, too.
            let KernelEvent::Link { index, name, state } = event else { continue };
            if state == LinkState::Running {
                continue;
            }
            tracing::debug!(%name, ?state, "link without carrier");
            if speaker.carrier_lost(index).await.is_err() {
                return;
            }
        }
    }
}

fn complain(error: &cairn_kernel::Error) {
    tracing::warn!(%error, "links are not watched: a lost carrier is noticed by the hold time only");
}
