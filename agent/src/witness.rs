//! The speaker as the IPAM's second witness: what peers announce (IPAM rule 3).

use std::collections::BTreeSet;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use cairn_bgp::prefix::Prefix;
use cairn_bgp::rib::HeardRoute;
use cairn_bgp::session::SessionState;
use cairn_bgp::speaker::SpeakerHandle;
use cairn_bgp::status::SpeakerSnapshot;
use futures::FutureExt;
use futures::future::BoxFuture;
use ipnet::IpNet;
use tokio::sync::watch;

use crate::ipam::{Heard, Witness};

/// Asks whichever speaker runs at that time. While none does nothing is heard: there are no peers.
///
/// A speaker that does not answer within `ANSWER_WAIT` may have heard anything. The block then
/// counts as announced by nobody knows whom, perhaps by this node itself: no claim and no return
/// goes on, and no owner takes it for a conflict.
#[derive(Clone, Debug)]
pub struct SpeakerWitness {
    speaker: watch::Receiver<Option<SpeakerHandle>>,
    /// The sessions whose tables were waited for last.
    heard_out: Arc<Mutex<Option<BTreeSet<Session>>>>,
}

/// A session: the peer's name, since when it is up in Unix seconds, and how many it had until then.
type Session = (String, u64, u64);

impl SpeakerWitness {
    /// A witness that asks the speaker of this channel.
    pub fn new(speaker: watch::Receiver<Option<SpeakerHandle>>) -> SpeakerWitness {
        SpeakerWitness { speaker, heard_out: Arc::default() }
    }
}

impl Witness for SpeakerWitness {
    fn heard(&self, cidr: IpNet) -> BoxFuture<'static, Vec<Heard>> {
        let speaker = self.speaker.borrow().clone();
        async move {
            let Some(speaker) = speaker else { return Vec::new() };
            match tokio::time::timeout(ANSWER_WAIT, speaker.heard(&[Prefix::from(cidr)])).await {
                Ok(Ok(found)) => found.routes.into_iter().map(heard).collect(),
                // Its sessions and what they brought have ended with it.
                Ok(Err(_)) => Vec::new(),
                Err(_) => {
                    tracing::warn!(%cidr, "the speaker does not say what peers announce");
                    vec![Heard { prefix: cidr, peer: NO_ANSWER.to_owned(), looped: true }]
                }
            }
        }
        .boxed()
    }

    /// With a session of each peer, and a moment for what follows it, once for the same sessions. A
    /// node without a speaker has one soon.
    fn settled(&self) -> BoxFuture<'static, bool> {
        let speaker = self.speaker.borrow().clone();
        let heard_out = Arc::clone(&self.heard_out);
        async move {
            let Some(speaker) = speaker else { return false };
            let Some(snapshot) = snapshot(&speaker).await else { return false };
            let peers = snapshot.peers.iter().filter(|(_, peer)| !peer.disabled);
            if !peers.clone().all(|(_, peer)| peer.state == SessionState::Established) {
                return false;
            }
            let sessions: BTreeSet<Session> = peers
                .map(|(name, peer)| (name.clone(), peer.since_unix_secs, peer.established_count))
                .collect();
            let is_known = heard_out.lock().is_ok_and(|known| known.as_ref() == Some(&sessions));
            if !is_known {
                tokio::time::sleep(TABLE_WAIT).await;
                if let Ok(mut known) = heard_out.lock() {
                    *known = Some(sessions);
                }
            }
            true
        }
        .boxed()
    }

    /// Half of the peers is one of two top-of-rack routers, or most of a mesh of which many are gone.
    fn why_deaf(&self, lasting: Duration) -> BoxFuture<'static, Option<String>> {
        let speaker = self.speaker.borrow().clone();
        async move {
            let Some(speaker) = speaker else {
                return Some("no BGP speaker runs on this node".to_owned());
            };
            let Some(snapshot) = snapshot(&speaker).await else {
                return Some("this node's BGP speaker does not answer".to_owned());
            };
            let told = snapshot.peers.values().filter(|peer| {
                // Times are in whole seconds, and a table follows its session.
                peer.state == SessionState::Established
                    && Duration::from_secs(peer.lasts_secs) > lasting.max(TABLE_WAIT)
            });
            let (told, all) = (told.count(), snapshot.peers.len());
            (!suffices(told, all)).then(|| format!("this node hears {told} of its {all} BGP peers"))
        }
        .boxed()
    }
}

/// What the speaker says of its sessions; `None` when it does not answer in time.
async fn snapshot(speaker: &SpeakerHandle) -> Option<SpeakerSnapshot> {
    tokio::time::timeout(ANSWER_WAIT, speaker.snapshot()).await.ok()?.ok()
}

/// Whether what these many of all peers tell stands for what all do.
fn suffices(told: usize, all: usize) -> bool {
    told >= all.div_ceil(2)
}

fn heard(route: HeardRoute) -> Heard {
    Heard { prefix: route.prefix.into(), peer: route.peer, looped: route.looped }
}

/// How long an answer is waited for. The owner of the routes answers between two batches of updates,
/// which take milliseconds; a pod that waits for a block has ten seconds.
const ANSWER_WAIT: Duration = Duration::from_secs(2);

/// What a peer's table takes to follow its session. Blocks of a cluster are few to a peer.
const TABLE_WAIT: Duration = Duration::from_millis(200);

/// In the place of a peer's name.
const NO_ANSWER: &str = "(unknown: this node's speaker does not answer)";

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn half_of_the_peers_stand_for_all() {
        let enough = [(0, 0), (1, 1), (1, 2), (2, 3), (2, 4), (4, 4)];
        assert!(enough.iter().all(|(told, all)| suffices(*told, *all)));
        let too_few = [(0, 1), (0, 2), (1, 3), (1, 4)];
        assert!(!too_few.iter().any(|(told, all)| suffices(*told, *all)));
    }
}
