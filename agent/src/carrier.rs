//! Links that lose their carrier: the sessions over them end at once, not after the hold time.
//!
//! This watches links and nothing else, and only reads: `cairn speaker` does so without `--fib`, too.

use std::time::Duration;

use cairn_bgp::speaker::SpeakerHandle;
use cairn_kernel::monitor::{KernelEvent, LinkState, Monitor};
use cairn_kernel::{Error, Netlink, link};
use tokio::sync::mpsc;

/// Watches the links of the calling thread's network namespace until the speaker ends. Without it
/// sessions go on as before, so a kernel that refuses is only told about, and asked again.
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
/// Notifications that fail are opened again; what went meanwhile is then told, too.
pub async fn follow(open: impl Fn() -> Result<Monitor, Error>, lost: mpsc::Sender<u32>) {
    let mut failed = false;
    loop {
        let Err(error) = follow_once(&open, &mut failed, &lost).await;
        // Once, as it may last.
        if !std::mem::replace(&mut failed, true) {
            tracing::warn!(
                %error,
                "links are not watched, which is tried again: until then a lost carrier is noticed by the hold \
                 time only"
            );
        }
        tokio::time::sleep(RETRY).await;
    }
}

async fn follow_once(
    open: &impl Fn() -> Result<Monitor, Error>,
    failed: &mut bool,
    lost: &mpsc::Sender<u32>,
) -> Result<std::convert::Infallible, Error> {
    let mut monitor = open()?;
    if std::mem::take(failed) {
        for link in link::list(&mut Netlink::open()?)? {
            if !link.is_running() {
                tell(lost, link.index).await;
            }
        }
        tracing::info!("links are watched again");
    }
    loop {
        for event in monitor.next().await? {
            // After lost notifications the links have been read again: what changed is here, too.
            let KernelEvent::Link { index, name, state } = event else { continue };
            if state != LinkState::Running {
                tracing::debug!(%name, ?state, "link without carrier");
                tell(lost, index).await;
            }
        }
    }
}

async fn tell(lost: &mpsc::Sender<u32>, index: u32) {
    // Who does not listen any more ends this, too.
    let _ = lost.send(index).await;
}

/// After notifications that have failed: what made them fail may last.
const RETRY: Duration = Duration::from_secs(2);
/// Links that wait for the speaker.
const LOST_MAX: usize = 64;
