//! The sessions of the peers at `cairn bfd`, and the end of BGP sessions whose path that finds dead.
//!
//! ```text
//!  configuration ──wanted──► thread "bfd-client" ──socket──► cairn bfd
//!                                │      ◄──states, changes──
//!                                └─path_dead──► speaker
//! ```
//!
//! A thread of its own: neither a disk nor the API server may stand between a dead path and its routes. When the
//! socket is away, BGP goes on without BFD, and that is said. When the agent is away, BFD goes on.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use cairn_bfd::config::{Path as BfdPath, SessionSpec};
use cairn_bfd::control::{
    ControlError, Frames, REPORT_MAX, REQUEST_MAX, Report, Request, encode, socket_path,
};
use cairn_bfd::status::SessionStatus;
use cairn_bgp::config::{Bfd, PeerConfig, PeerName, SpeakerConfig};
use cairn_bgp::speaker::{DeadPath, SpeakerHandle};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::UnixStream;
use tokio::sync::watch;
use tokio::time::{sleep, timeout};

/// The running follower.
#[derive(Debug)]
pub struct Follower {
    wanted: watch::Sender<Option<Wanted>>,
    /// What it knows.
    pub view: watch::Receiver<View>,
}

/// Wanted sessions with whose they are.
type Peers = BTreeMap<BfdPath, (PeerName, SessionSpec)>;

/// The sessions of a speaker's peers.
#[derive(Clone, Debug)]
struct Wanted {
    peers: Peers,
    speaker: SpeakerHandle,
    problems: Vec<String>,
}

/// What is known of BFD.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct View {
    /// The sessions by their peers' names.
    pub sessions: BTreeMap<PeerName, SessionStatus>,
    /// What is wrong and what to do, one sentence each.
    pub problems: Vec<String>,
}

impl Follower {
    /// Starts it with the `cairn bfd` of a run directory. Nothing is asked for before [`Follower::want`].
    ///
    /// # Errors
    /// There is no thread to be had.
    pub fn start(run_dir: &Path) -> anyhow::Result<Follower> {
        let (wanted, changes) = watch::channel(None);
        let (view_out, view) = watch::channel(View::default());
        let path = socket_path(run_dir);
        crate::on_own_thread("bfd-client", move || follow(path, changes, view_out))?;
        Ok(Follower { wanted, view })
    }

    /// Wants the sessions that a speaker's configuration has, those of peers that it is to have again, and no others.
    pub fn want(
        &self,
        config: &SpeakerConfig,
        waiting: &BTreeMap<PeerName, PeerConfig>,
        speaker: &SpeakerHandle,
    ) {
        let (peers, problems) = wanted(config, waiting);
        self.wanted.send_if_modified(|held| {
            let same = held
                .as_ref()
                .is_some_and(|held| (&held.peers, &held.problems) == (&peers, &problems));
            if !same {
                *held = Some(Wanted { peers, speaker: speaker.clone(), problems });
            }
            !same
        });
    }
}

/// The sessions of all peers with BFD.
fn wanted(
    config: &SpeakerConfig,
    waiting: &BTreeMap<PeerName, PeerConfig>,
) -> (Peers, Vec<String>) {
    let (mut peers, mut problems) = (Peers::new(), Vec::new());
    for (name, peer) in config.peers.iter().chain(waiting) {
        let Some(bfd) = peer.bfd else { continue };
        let spec = spec(config, peer, bfd);
        match spec.check() {
            // One that waits takes no path from a peer that has a session there.
            Ok(()) => drop(peers.entry(spec.path.clone()).or_insert((name.clone(), spec))),
            Err(error) => problems.push(format!("{name} is without BFD: {error}")),
        }
    }
    (peers, problems)
}

/// As BIRD and FRR have it, an internal session and one over several hops is multihop for BFD too.
fn spec(config: &SpeakerConfig, peer: &PeerConfig, bfd: Bfd) -> SessionSpec {
    let internal = peer.local_asn.unwrap_or(config.asn) == peer.asn;
    let path = BfdPath {
        local: peer.source_address,
        multihop: internal || peer.multihop > 1,
        ..BfdPath::to(peer.address)
    };
    SessionSpec { path, interval_ms: bfd.interval_ms, multiplier: bfd.multiplier }
}

/// What is known, and whom to tell.
struct Conversation {
    wanted: watch::Receiver<Option<Wanted>>,
    view: watch::Sender<View>,
    /// What is wrong with `cairn bfd`, until it has taken the wanted sessions.
    problem: Option<String>,
    /// Why it has refused them, if it has.
    refused: Option<String>,
    /// The dead paths of which the speaker knows, with how often their sessions had come up.
    told: BTreeMap<BfdPath, u64>,
}

async fn follow(
    path: PathBuf,
    mut wanted: watch::Receiver<Option<Wanted>>,
    view: watch::Sender<View>,
) {
    // Before the first configuration nothing is known not to be wanted.
    while wanted.borrow_and_update().is_none() {
        if wanted.changed().await.is_err() {
            return;
        }
    }
    let told = BTreeMap::new();
    let mut conversation = Conversation { wanted, view, problem: None, refused: None, told };
    loop {
        let Err(error) = conversation.hold(&path).await else { return };
        conversation.fail(error);
        tokio::select! {
            () = sleep(RETRY) => {}
            changed = conversation.wanted.changed() => if changed.is_err() { return },
        }
    }
}

impl Conversation {
    /// Speaks with one `cairn bfd` until the connection ends; ends well when nobody wants anything any more.
    async fn hold(&mut self, path: &Path) -> Result<(), ControlError> {
        let mut stream = UnixStream::connect(path)
            .await
            .map_err(|error| ControlError::Connect { path: path.to_owned(), error })?;
        let mut frames = Frames::default();
        let mut octets = vec![0; READ_OCTETS];
        // Another process counts anew.
        self.told.clear();
        self.ask(&mut stream).await?;
        loop {
            tokio::select! {
                changed = self.wanted.changed() => {
                    if changed.is_err() {
                        return Ok(());
                    }
                    self.ask(&mut stream).await?;
                }
                count = stream.read(&mut octets) => {
                    let count = count?;
                    if count == 0 {
                        return Err(ControlError::Closed);
                    }
                    frames.push(octets.get(..count).unwrap_or_default());
                    while let Some(report) = frames.next(REPORT_MAX)? {
                        self.hear(report)?;
                    }
                }
            }
        }
    }

    /// Asks for what is wanted now, and forgets what is not.
    async fn ask(&mut self, stream: &mut UnixStream) -> Result<(), ControlError> {
        let (sessions, names): (Vec<SessionSpec>, Vec<PeerName>) =
            match &*self.wanted.borrow_and_update() {
                Some(wanted) => {
                    self.told.retain(|path, _| wanted.peers.contains_key(path));
                    wanted.peers.values().map(|(name, spec)| (spec.clone(), name.clone())).unzip()
                }
                None => Default::default(),
            };
        self.tell(|sessions| sessions.retain(|name, _| names.contains(name)));
        let frame = encode(&Request::Want { sessions }, REQUEST_MAX)?;
        let sent = timeout(WRITE_MAX, stream.write_all(&frame)).await;
        Ok(sent.unwrap_or_else(|_| Err(std::io::ErrorKind::TimedOut.into()))?)
    }

    fn hear(&mut self, report: Report) -> Result<(), ControlError> {
        match report {
            Report::Overview(overview) => self.take(overview.sessions),
            Report::Changed(session) => self.take(vec![*session]),
            Report::Taken => {
                (self.refused, self.problem) = (None, None);
                self.tell(|_| {});
            }
            Report::Refused { text } => {
                self.refused = Some(text);
                return Err(ControlError::Closed);
            }
        }
        Ok(())
    }

    /// Takes in the states of sessions, and tells them together: each time a copy of all is made.
    fn take(&mut self, sessions: Vec<SessionStatus>) {
        let heard = {
            let wanted = self.wanted.borrow();
            let Some(wanted) = &*wanted else { return };
            let ours = sessions.into_iter().filter_map(|session| {
                let (name, _) = wanted.peers.get(&session.spec.path)?;
                Some((name.clone(), session))
            });
            let heard: Vec<(PeerName, SessionStatus)> = ours.collect();
            for (name, session) in &heard {
                if is_news(&mut self.told, session)
                    && let Some(path) = dead_path(session)
                {
                    let (name, speaker) = (name.clone(), wanted.speaker.clone());
                    // The speaker may be at work, and others' paths are not to wait.
                    tokio::spawn(async move {
                        // A peer that is gone, or a speaker, has no session to end.
                        let _ = speaker.path_dead(name, path).await;
                    });
                }
            }
            heard
        };
        if !heard.is_empty() {
            self.tell(|sessions| sessions.extend(heard));
        }
    }

    /// Nothing is known of any session any more.
    fn fail(&mut self, error: ControlError) {
        self.problem = Some(match (&self.refused, error) {
            (Some(text), _) => format!("`cairn bfd` refuses the sessions of the peers: {text}"),
            (None, error @ ControlError::Connect { .. }) => format!(
                "BFD is wanted, and {error}; BGP goes on without BFD, and a dead path is noticed by the hold time"
            ),
            (None, error) => error.to_string(),
        });
        self.tell(BTreeMap::clear);
    }

    /// Says what is known. A problem with `cairn bfd` is none while nothing is wanted of it.
    fn tell(&self, change: impl FnOnce(&mut BTreeMap<PeerName, SessionStatus>)) {
        let wanted = self.wanted.borrow();
        let mut problems =
            wanted.as_ref().map(|wanted| wanted.problems.clone()).unwrap_or_default();
        let any = wanted.as_ref().is_some_and(|wanted| !wanted.peers.is_empty());
        problems.extend(self.problem.clone().filter(|_| any));
        self.view.send_if_modified(|held| {
            let mut new = View { sessions: held.sessions.clone(), problems };
            change(&mut new.sessions);
            let of_sessions = new.sessions.iter().filter_map(|(name, session)| {
                let problem = session.problem.as_ref()?;
                Some(format!("{name}: BFD: {problem}"))
            });
            new.problems.extend(of_sessions);
            let differs = *held != new;
            *held = new;
            differs
        });
    }
}

/// Whether the path is dead and the speaker does not know: whatever else changes of a session that is down says nothing
/// more about the path.
fn is_news(told: &mut BTreeMap<BfdPath, u64>, session: &SessionStatus) -> bool {
    let path = &session.spec.path;
    if session.lost_for_ms.is_none() {
        told.remove(path);
        return false;
    }
    told.insert(path.clone(), session.ups) != Some(session.ups)
}

/// What the speaker has to know of a dead path.
fn dead_path(session: &SessionStatus) -> Option<DeadPath> {
    // A `cairn bfd` of before does not say when the path was alive.
    let alive_ms = session.alive_for_ms.or(session.lost_for_ms)?;
    // It may have waited to be read: what was alive then is not alive now.
    let waited =
        session.at_ms.map(|at| cairn_bfd::status::now_ms().saturating_sub(at)).unwrap_or_default();
    Some(DeadPath {
        alive_at: Instant::now()
            .checked_sub(Duration::from_millis(alive_ms.saturating_add(waited)))?,
        // The C bit of ours is always set.
        peer_independent: session.peer.control_plane_independent,
        text: session.diagnostic.to_string(),
    })
}

/// Between two attempts to reach `cairn bfd`.
const RETRY: Duration = Duration::from_secs(1);
/// It reads at once, or is stuck.
const WRITE_MAX: Duration = Duration::from_secs(5);
const READ_OCTETS: usize = 64 << 10;

#[cfg(test)]
mod tests {
    use std::net::Ipv4Addr;

    use cairn_bgp::config::Multipath;

    use super::*;

    /// An internal peer and one over several hops is multihop for BFD, and a peer without BFD has no session.
    #[test]
    fn sessions_of_peers() {
        let bfd = Some(Bfd { interval_ms: 50, multiplier: 5 });
        let peer = |last: u8, asn, multihop, bfd| {
            let address = Ipv4Addr::new(10, 0, 0, last).into();
            let name = PeerName::from(format!("bgppeer/p{last}"));
            (name, PeerConfig { multihop, bfd, ..PeerConfig::new(address, asn) })
        };
        let mut peers = BTreeMap::from([
            peer(2, 65002, 1, bfd),
            peer(3, 65002, 2, bfd),
            peer(4, 65001, 1, bfd),
            peer(5, 65002, 1, None),
        ]);
        let link_local = "fe80::1".parse().expect("an address");
        let unnamed = PeerConfig { bfd, ..PeerConfig::new(link_local, 65002) };
        peers.insert("bgppeer/p6".into(), unnamed);
        let config = SpeakerConfig {
            origins: Default::default(),
            ranges: Default::default(),
            asn: 65001,
            router_id: Ipv4Addr::LOCALHOST,
            cluster_id: None,
            listen: Vec::new(),
            peers,
            originate: BTreeMap::new(),
            selection_deferral_secs: 1,
            multipath: Multipath { paths_max: 1, same_as_path: false },
        };
        let waits = PeerConfig { bfd, ..PeerConfig::new(Ipv4Addr::new(10, 0, 0, 7).into(), 65002) };
        // A new name for p2, whose password is not there yet.
        let (_, again) = peer(2, 65002, 1, bfd);
        let waiting = BTreeMap::from([("bgppeer/p7".into(), waits), ("bgppeer/p8".into(), again)]);
        let (peers, problems) = wanted(&config, &waiting);
        let seen: Vec<_> = peers
            .values()
            .map(|(name, spec)| (&**name, spec.path.multihop, spec.interval_ms, spec.multiplier))
            .collect();
        let expected = [
            ("bgppeer/p2", false),
            ("bgppeer/p3", true),
            ("bgppeer/p4", true),
            ("bgppeer/p7", false),
        ];
        assert_eq!(seen, expected.map(|(name, multihop)| (name, multihop, 50, 5)));
        assert!(matches!(&problems[..], [one] if one.contains("p6")), "{problems:?}");
    }
}
