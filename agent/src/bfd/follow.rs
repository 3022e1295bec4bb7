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
use std::time::Duration;

use cairn_bfd::config::{Path as BfdPath, SessionSpec};
use cairn_bfd::control::{
    ControlError, Frames, REPORT_MAX, REQUEST_MAX, Report, Request, encode, socket_path,
};
use cairn_bfd::status::SessionStatus;
use cairn_bgp::config::{Bfd, PeerConfig, PeerName, SpeakerConfig};
use cairn_bgp::speaker::SpeakerHandle;
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

    /// Wants the sessions that a speaker's configuration has, and no others.
    pub fn want(&self, config: &SpeakerConfig, speaker: &SpeakerHandle) {
        let (peers, problems) = wanted(config);
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
fn wanted(config: &SpeakerConfig) -> (Peers, Vec<String>) {
    let (mut peers, mut problems) = (Peers::new(), Vec::new());
    for (name, peer) in &config.peers {
        let Some(bfd) = peer.bfd else { continue };
        let spec = spec(config, peer, bfd);
        match spec.check() {
            Ok(()) => drop(peers.insert(spec.path.clone(), (name.clone(), spec))),
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
    let mut refused = None;
    loop {
        let Err(error) = converse(&path, &mut wanted, &view, &mut refused).await else { return };
        let problem = match (&refused, error) {
            (Some(text), _) => format!("`cairn bfd` refuses the sessions of the peers: {text}"),
            (None, error @ ControlError::Connect { .. }) => format!(
                "BFD is wanted, and {error}; BGP goes on without BFD, and a dead path is noticed by the hold time"
            ),
            (None, error) => error.to_string(),
        };
        tell(&wanted, &view, Some(problem), |sessions| sessions.clear());
        tokio::select! {
            () = sleep(RETRY) => {}
            changed = wanted.changed() => if changed.is_err() { return },
        }
    }
}

/// Speaks with one `cairn bfd` until the connection ends; ends well when nobody wants anything any more.
async fn converse(
    path: &Path,
    wanted: &mut watch::Receiver<Option<Wanted>>,
    view: &watch::Sender<View>,
    refused: &mut Option<String>,
) -> Result<(), ControlError> {
    let mut stream = UnixStream::connect(path)
        .await
        .map_err(|error| ControlError::Connect { path: path.to_owned(), error })?;
    let mut frames = Frames::default();
    let mut octets = vec![0; READ_OCTETS];
    ask(&mut stream, wanted, view).await?;
    loop {
        tokio::select! {
            changed = wanted.changed() => {
                if changed.is_err() {
                    return Ok(());
                }
                ask(&mut stream, wanted, view).await?;
            }
            count = stream.read(&mut octets) => {
                let count = count?;
                if count == 0 {
                    return Err(ControlError::Closed);
                }
                frames.push(octets.get(..count).unwrap_or_default());
                while let Some(report) = frames.next(REPORT_MAX)? {
                    match report {
                        Report::Overview(overview) => heard(overview.sessions, wanted, view),
                        Report::Changed(session) => heard(vec![*session], wanted, view),
                        Report::Taken => {
                            *refused = None;
                            tell(wanted, view, None, |_| {});
                        }
                        Report::Refused { text } => {
                            *refused = Some(text);
                            return Err(ControlError::Closed);
                        }
                    }
                }
            }
        }
    }
}

/// Asks for what is wanted now, and forgets what is not.
async fn ask(
    stream: &mut UnixStream,
    wanted: &mut watch::Receiver<Option<Wanted>>,
    view: &watch::Sender<View>,
) -> Result<(), ControlError> {
    let (sessions, names): (Vec<SessionSpec>, Vec<PeerName>) = match &*wanted.borrow_and_update() {
        Some(wanted) => {
            wanted.peers.values().map(|(name, spec)| (spec.clone(), name.clone())).unzip()
        }
        None => Default::default(),
    };
    tell(wanted, view, None, |sessions| sessions.retain(|name, _| names.contains(name)));
    let frame = encode(&Request::Want { sessions }, REQUEST_MAX)?;
    let sent = timeout(WRITE_MAX, stream.write_all(&frame)).await;
    Ok(sent.unwrap_or_else(|_| Err(std::io::ErrorKind::TimedOut.into()))?)
}

/// Takes in the states of sessions, and tells them together: each time a copy of all is made.
fn heard(
    sessions: Vec<SessionStatus>,
    wanted: &watch::Receiver<Option<Wanted>>,
    view: &watch::Sender<View>,
) {
    let Some((heard, speaker)) = wanted.borrow().as_ref().map(|wanted| {
        let ours = sessions.into_iter().filter_map(|session| {
            let (name, _) = wanted.peers.get(&session.spec.path)?;
            Some((name.clone(), session))
        });
        (ours.collect::<Vec<(PeerName, SessionStatus)>>(), wanted.speaker.clone())
    }) else {
        return;
    };
    for (name, session) in &heard {
        let Some(ago_ms) = session.lost_for_ms else { continue };
        let (ago, text) = (Duration::from_millis(ago_ms), session.diagnostic.to_string());
        let (name, speaker) = (name.clone(), speaker.clone());
        // The speaker may be at work, and others' paths are not to wait.
        tokio::spawn(async move {
            // A peer that is gone, or a speaker, has no session to end.
            let _ = speaker.path_dead(name, ago, text).await;
        });
    }
    if !heard.is_empty() {
        tell(wanted, view, None, |sessions| sessions.extend(heard));
    }
}

/// Says what is known. A problem with `cairn bfd` is none while nothing is wanted of it.
fn tell(
    wanted: &watch::Receiver<Option<Wanted>>,
    view: &watch::Sender<View>,
    problem: Option<String>,
    change: impl FnOnce(&mut BTreeMap<PeerName, SessionStatus>),
) {
    let wanted = wanted.borrow();
    let mut problems = wanted.as_ref().map(|wanted| wanted.problems.clone()).unwrap_or_default();
    let any = wanted.as_ref().is_some_and(|wanted| !wanted.peers.is_empty());
    problems.extend(problem.filter(|_| any));
    view.send_if_modified(|held| {
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
        let (peers, problems) = wanted(&config);
        let seen: Vec<_> = peers
            .values()
            .map(|(name, spec)| (&**name, spec.path.multihop, spec.interval_ms, spec.multiplier))
            .collect();
        let expected = [("bgppeer/p2", false), ("bgppeer/p3", true), ("bgppeer/p4", true)];
        assert_eq!(seen, expected.map(|(name, multihop)| (name, multihop, 50, 5)));
        assert!(matches!(&problems[..], [one] if one.contains("p6")), "{problems:?}");
    }
}
