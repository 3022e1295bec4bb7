//! The speaker on a thread of its own, with what it must hear in time.
//!
//! ```text
//!  kernel ──links──► carrier ─┐ thread "bgp"
//!  routers ────► unnumbered ──┤
//!  fib ────────► underlay ────┼─► speaker ──FibFeed──► fib
//!  main thread ──SpeakerHandle┘      ▲
//!                             peers ─┘
//! ```
//!
//! The main thread waits for the disk, decodes lists of the whole cluster and plans; a stalled disk holds it
//! up for seconds. Hold times are as short as three seconds, and neither a keepalive nor an UPDATE may wait
//! for it.

use std::sync::Arc;

use anyhow::Context;
use cairn_bgp::config::SpeakerConfig;
use cairn_bgp::speaker::{FibFeed, Speaker, SpeakerHandle, SpeakerOptions};
use tokio::sync::watch;

use crate::underlay::KernelUnderlay;
use crate::{carrier, underlay, unnumbered};

/// Starts a speaker on a new thread in the network namespace of the caller, which waits a moment for it.
/// It ends by [`SpeakerHandle::shutdown`] or with the process, in which its peers keep the routes; dropping
/// the handles does not end it. When it has ended, [`SpeakerHandle::changes`] has.
///
/// # Errors
/// `config` cannot work, or there is no thread to be had.
pub fn start(
    config: SpeakerConfig,
    options: SpeakerOptions,
    links: Option<watch::Receiver<Arc<KernelUnderlay>>>,
) -> anyhow::Result<(SpeakerHandle, FibFeed)> {
    let (started, ready) = std::sync::mpsc::sync_channel(1);
    crate::on_own_thread("bgp", move || async move {
        let (speaker, feed) = match Speaker::start(config, options) {
            Ok(speaker) => speaker,
            Err(error) => return drop(started.send(Err(error.into()))),
        };
        carrier::watch(speaker.clone());
        unnumbered::follow(speaker.clone());
        if let Some(links) = links {
            underlay::follow(links, speaker.clone());
        }
        let mut changes = speaker.changes();
        // An agent that ends in an error drops its handles, and that must not tell peers to drop routes.
        let _kept = speaker.clone();
        if started.send(Ok((speaker, feed))).is_ok() {
            while changes.changed().await.is_ok() {}
        }
    })?;
    ready.recv().context("the speaker's thread ended at its start")?
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;
    use std::net::Ipv4Addr;

    use cairn_bgp::config::Multipath;
    use cairn_bgp::speaker::Shutdown;

    use super::*;

    fn config(router_id: Ipv4Addr) -> SpeakerConfig {
        SpeakerConfig {
            origins: Default::default(),
            ranges: Default::default(),
            asn: 65001,
            router_id,
            cluster_id: None,
            listen: Vec::new(),
            peers: BTreeMap::new(),
            originate: BTreeMap::new(),
            selection_deferral_secs: 1,
            multipath: Multipath { paths_max: 1, same_as_path: false },
        }
    }

    /// From within a runtime, as the agent calls it.
    #[tokio::test]
    async fn it_says_why_it_does_not_start_and_when_it_has_ended() {
        let refused = start(config(Ipv4Addr::UNSPECIFIED), SpeakerOptions::default(), None);
        let error = refused.expect_err("a router ID of zero");
        assert!(error.to_string().contains("router ID"), "{error:#}");

        let started = start(config(Ipv4Addr::LOCALHOST), SpeakerOptions::default(), None);
        let (speaker, _feed) = started.expect("a valid configuration");
        let mut changes = speaker.changes();
        speaker.snapshot().await.expect("it runs");
        speaker.shutdown(Shutdown::KeepRoutes).await;
        while changes.changed().await.is_ok() {}
        speaker.snapshot().await.expect_err("it has ended");
    }
}
