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
use crate::topology::MESH;

/// Asks whichever speaker runs at that time. While none does nothing is heard: there are no peers.
///
/// A speaker that does not answer within `ANSWER_WAIT` may have heard anything. The block then
/// counts as announced by nobody knows whom, perhaps by this node itself: no claim and no return
/// goes on, and no owner takes it for a conflict.
#[derive(Clone, Debug)]
pub struct SpeakerWitness {
    speaker: watch::Receiver<Option<SpeakerHandle>>,
    /// How many BGPPeers the speaker does not know of yet: they wait for their passwords.
    waiting: watch::Receiver<usize>,
    /// The sessions whose tables were waited for last.
    heard_out: Arc<Mutex<Option<BTreeSet<Session>>>>,
}

/// Of which peers it is asked what they tell.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Whom {
    All,
    /// Those that a BGPPeer names.
    Routers,
}

/// A session: the peer's name, since when it is up in Unix seconds, and how many it had until then.
type Session = (String, u64, u64);

impl SpeakerWitness {
    /// A witness that asks the speaker of this channel, of which so many BGPPeers are kept yet.
    pub fn new(
        speaker: watch::Receiver<Option<SpeakerHandle>>,
        waiting: watch::Receiver<usize>,
    ) -> SpeakerWitness {
        SpeakerWitness { speaker, waiting, heard_out: Arc::default() }
    }

    /// Why too few of `whom` have told what they announce.
    fn why_unheard(&self, lasting: Duration, whom: Whom) -> BoxFuture<'static, Option<String>> {
        let (speaker, waiting) = (self.speaker.borrow().clone(), *self.waiting.borrow());
        async move {
            let Some(speaker) = speaker else {
                return Some("no BGP speaker runs on this node".to_owned());
            };
            let Some(snapshot) = snapshot(&speaker).await else {
                return Some("this node's BGP speaker does not answer".to_owned());
            };
            let is_meant = |name: &str| whom == Whom::All || !name.starts_with(MESH);
            let peers = snapshot.peers.iter().filter(|(name, _)| is_meant(name));
            let configured = waiting + peers.clone().count();
            let wanted = waiting + peers.clone().filter(|(_, peer)| !peer.disabled).count();
            let told = peers.filter(|(_, peer)| {
                // Times are in whole seconds, and a table follows its session.
                peer.state == SessionState::Established
                    && Duration::from_secs(peer.lasts_secs) > lasting.max(TABLE_WAIT)
            });
            let told = told.count();
            let what = match whom {
                Whom::Routers if configured == 0 => {
                    return Some("no BGPPeer of this node would tell of it".to_owned());
                }
                Whom::Routers => "BGPPeers",
                Whom::All => "BGP peers",
            };
            let why = || format!("this node hears {told} of its {configured} {what}");
            (!suffices(told, wanted, configured)).then(why)
        }
        .boxed()
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
        self.why_unheard(lasting, Whom::All)
    }

    /// Only what a BGPPeer names can have a session with it: the mesh, and reflectors, have this node.
    fn why_deaf_to_namesake(&self, lasting: Duration) -> BoxFuture<'static, Option<String>> {
        self.why_unheard(lasting, Whom::Routers)
    }
}

/// What the speaker says of its sessions; `None` when it does not answer in time.
async fn snapshot(speaker: &SpeakerHandle) -> Option<SpeakerSnapshot> {
    tokio::time::timeout(ANSWER_WAIT, speaker.snapshot()).await.ok()?.ok()
}

/// Whether what these many tell stands for what all do of whom a session is wanted.
fn suffices(told: usize, wanted: usize, configured: usize) -> bool {
    told >= wanted.div_ceil(2) && (told > 0 || configured == 0)
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
        let enough = [
            (0, 0, 0),
            (1, 1, 1),
            (1, 2, 2),
            (2, 3, 3),
            (2, 4, 4),
            (4, 4, 4),
            (1, 1, 4),
            (1, 0, 4),
        ];
        assert!(enough.iter().all(|(told, wanted, all)| suffices(*told, *wanted, *all)));
        let too_few = [(0, 1, 1), (0, 2, 2), (1, 3, 3), (1, 4, 4), (0, 0, 2)];
        assert!(!too_few.iter().any(|(told, wanted, all)| suffices(*told, *wanted, *all)));
    }
}
