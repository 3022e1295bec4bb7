//! What an operator asks of single peers: no session, a new one, routes again, what went wrong.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Instant;

use tokio::sync::oneshot;

use crate::config::{InterfaceName, PeerName};
use crate::prefix::Family;
use crate::rib::Underlay;
use crate::session::{ErrorKind, Event, StopReason};
use crate::status::{ErrorRecord, SessionRecord};
use crate::stream::FaultyMessage;
use crate::wire::{RefreshKind, RouteRefresh};

use super::owner::{Owner, PeerKey};
use super::unnumbered::Neighbour;
use super::{Command, Error, SpeakerHandle};

/// How a peer is reset.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Reset {
    /// The session ends and begins again.
    Hard {
        /// For the peer's operator (RFC 9003).
        text: String,
    },
    /// Import is done again for what the peer has sent, and the peer is asked to send it again
    /// (RFC 2918), without an interruption.
    SoftIn,
    /// All routes are sent to the peer again, without an interruption.
    SoftOut,
}

/// What BFD found of the path to a peer.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DeadPath {
    /// When the path was last known to be alive.
    pub alive_at: Instant,
    /// The peer's BFD does not share fate with its control plane, by the C bit of its packets, nor does ours: that it
    /// fails says something about the path also while the peer restarts (RFC 5882 section 4.3).
    pub peer_independent: bool,
    /// What was found, for people.
    pub text: String,
}

/// A name that no configured peer has.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("no peer is called {0}")]
pub struct NoSuchPeer(pub PeerName);

/// A request with the way to its answer.
#[derive(Debug)]
pub(crate) enum Operation {
    SetEnabled(PeerName, bool, Answer<()>),
    Reset(PeerName, Reset, Answer<()>),
    Errors(PeerName, Answer<Vec<ErrorRecord>>),
    History(PeerName, Answer<Vec<SessionRecord>>),
    CarrierLost(u32, Answer<()>),
    PathDead(PeerName, DeadPath, Answer<()>),
    Underlay(Arc<dyn Underlay>, Answer<()>),
    Neighbours(BTreeMap<InterfaceName, Neighbour>, Answer<()>),
    IsEstablishedOn(InterfaceName, Answer<bool>),
}

type Answer<T> = oneshot::Sender<Result<T, NoSuchPeer>>;

impl SpeakerHandle {
    /// Disables or enables a peer. A disabled one has no session, whatever the configuration says;
    /// it is the caller who remembers it for [`super::SpeakerOptions::disabled`] of the next start.
    ///
    /// # Errors
    /// No peer has this name, or the speaker has ended.
    pub async fn set_enabled(&self, peer: PeerName, enabled: bool) -> Result<(), Error> {
        self.operate(|answer| Operation::SetEnabled(peer, enabled, answer)).await
    }

    /// Resets the session of a peer. A hard reset also begins one that rests at its prefix limit; a
    /// disabled peer stays disabled.
    ///
    /// # Errors
    /// No peer has this name, or the speaker has ended.
    pub async fn reset(&self, peer: PeerName, reset: Reset) -> Result<(), Error> {
        self.operate(|answer| Operation::Reset(peer, reset, answer)).await
    }

    /// The error history of a peer, latest last.
    ///
    /// # Errors
    /// No peer has this name, or the speaker has ended.
    pub async fn errors(&self, peer: PeerName) -> Result<Vec<ErrorRecord>, Error> {
        self.operate(|answer| Operation::Errors(peer, answer)).await
    }

    /// The history of a peer's session, latest last.
    ///
    /// # Errors
    /// No peer has this name, or the speaker has ended.
    pub async fn history(&self, peer: PeerName) -> Result<Vec<SessionRecord>, Error> {
        self.operate(|answer| Operation::History(peer, answer)).await
    }

    /// Says that the interface with this index has lost its carrier, or is down or gone: sessions with
    /// peers next to it end at once, and no graceful restart keeps their routes.
    ///
    /// # Errors
    /// The speaker has ended.
    pub async fn carrier_lost(&self, interface: u32) -> Result<(), Error> {
        self.operate(|answer| Operation::CarrierLost(interface, answer)).await
    }

    /// Says that BFD found the path to a peer dead: a session ends at once (Cease with subcode BFD Down,
    /// RFC 9384), and no graceful restart keeps its routes. Those that wait for a peer that restarts go as well
    /// if both sides' BFD is independent of that, and stay if not.
    ///
    /// A session that has come up since the path was last known to be alive is left alone: BFD may fail where
    /// BGP works, or what it lost was the peer's former life.
    ///
    /// # Errors
    /// No peer has this name, or the speaker has ended.
    pub async fn path_dead(&self, peer: PeerName, path: DeadPath) -> Result<(), Error> {
        self.operate(|answer| Operation::PathDead(peer, path, answer)).await
    }

    /// Says what the machine's own routes and addresses have become.
    ///
    /// # Errors
    /// The speaker has ended.
    pub async fn set_underlay(&self, underlay: Arc<dyn Underlay>) -> Result<(), Error> {
        self.operate(|answer| Operation::Underlay(underlay, answer)).await
    }

    pub(super) async fn operate<T>(
        &self,
        operation: impl FnOnce(Answer<T>) -> Operation,
    ) -> Result<T, Error> {
        Ok(self.ask(|answer| Command::Operate(operation(answer))).await??)
    }
}

impl Owner {
    pub(super) fn operate(&mut self, operation: Operation) {
        // Whoever does not wait for the answer any more does not need it.
        match operation {
            Operation::SetEnabled(name, enabled, answer) => {
                let _ = answer.send(self.set_enabled(&name, enabled));
            }
            Operation::Reset(name, reset, answer) => {
                let _ = answer.send(self.reset(&name, reset));
            }
            Operation::Underlay(underlay, answer) => {
                self.rib.set_underlay(underlay);
                let _ = answer.send(Ok(()));
            }
            Operation::Neighbours(neighbours, answer) => {
                self.set_neighbours(neighbours);
                let _ = answer.send(Ok(()));
            }
            Operation::IsEstablishedOn(interface, answer) => {
                let _ = answer.send(Ok(self.is_established_on(&interface)));
            }
            Operation::CarrierLost(interface, answer) => {
                self.carrier_lost(interface);
                let _ = answer.send(Ok(()));
            }
            Operation::PathDead(name, path, answer) => {
                let _ = answer.send(self.path_dead(&name, path));
            }
            Operation::Errors(name, answer) => {
                let _ = answer.send(self.errors(&name));
            }
            Operation::History(name, answer) => {
                let _ = answer.send(self.history(&name));
            }
        }
    }

    /// Disables or enables a peer.
    pub(super) fn set_enabled(&mut self, name: &PeerName, enabled: bool) -> Result<(), NoSuchPeer> {
        let key = self.key_of(name)?;
        let changed = match enabled {
            true => self.disabled.remove(name),
            false => self.disabled.insert(PeerName::clone(name)),
        };
        if !changed {
            return Ok(());
        }
        if let Some(peer) = self.peers.get_mut(&key) {
            peer.disabled = !enabled;
        }
        tracing::info!(peer = %name, enabled, "an operator has changed whether a session is wanted");
        self.changed = true;
        self.begin(key);
        Ok(())
    }

    /// Resets a peer's session.
    pub(super) fn reset(&mut self, name: &PeerName, reset: Reset) -> Result<(), NoSuchPeer> {
        let key = self.key_of(name)?;
        tracing::info!(peer = %name, ?reset, "an operator resets the session");
        match reset {
            Reset::Hard { text } => {
                self.handle(key, Event::Stop(StopReason::Reset { text }));
                self.begin(key);
            }
            Reset::SoftIn => self.import_again(key),
            Reset::SoftOut => {
                let Some(peer) = self.peers.get(&key) else { return Ok(()) };
                for family in Family::ALL {
                    self.rib.refresh(peer.rib_id, family);
                }
            }
        }
        Ok(())
    }

    pub(super) fn errors(&self, name: &PeerName) -> Result<Vec<ErrorRecord>, NoSuchPeer> {
        let key = self.key_of(name)?;
        let history = self.peers.get(&key).map(|peer| peer.errors.records().cloned().collect());
        Ok(history.unwrap_or_default())
    }

    fn history(&self, name: &PeerName) -> Result<Vec<SessionRecord>, NoSuchPeer> {
        let key = self.key_of(name)?;
        let history = self.peers.get(&key).map(|peer| peer.history.records().cloned().collect());
        Ok(history.unwrap_or_default())
    }

    fn path_dead(&mut self, name: &PeerName, path: DeadPath) -> Result<(), NoSuchPeer> {
        let key = self.key_of(name)?;
        let Some(peer) = self.peers.get_mut(&key) else { return Ok(()) };
        if peer.up_at.is_none_or(|up_at| path.alive_at < up_at) {
            return Ok(());
        }
        if peer.session.established().is_some() {
            self.handle(key, Event::Stop(StopReason::PathDead { text: path.text }));
            self.begin(key);
        } else if path.peer_independent {
            let mut actions = Vec::new();
            peer.session.drop_stale(&mut actions);
            if !actions.is_empty() {
                let text = format!("the path is dead while the peer restarts: {}", path.text);
                peer.record(ErrorKind::PathDead, text, FaultyMessage::default());
                self.changed = true;
            }
            self.perform(key, actions);
        }
        Ok(())
    }

    fn carrier_lost(&mut self, interface: u32) {
        let lost: Vec<_> = self
            .peers
            .iter()
            .flat_map(|(key, peer)| peer.connections.iter().map(|(id, c)| (*key, *id, c.link())))
            .filter(|(_, _, link)| *link == Some(interface))
            .collect();
        for (key, connection, _) in lost {
            self.handle(key, Event::CarrierLost { connection });
        }
        // Routes of a peer that restarts lead nowhere, either.
        let down: Vec<PeerKey> = self
            .peers
            .iter()
            .filter(|(_, peer)| {
                peer.link == Some(interface) && peer.session.established().is_none()
            })
            .map(|(key, _)| *key)
            .collect();
        for key in down {
            let Some(peer) = self.peers.get_mut(&key) else { continue };
            let mut actions = Vec::new();
            peer.session.drop_stale(&mut actions);
            self.perform(key, actions);
        }
    }

    /// Lets a peer's session begin, unless an operator wants none or it is not known where the peer is.
    pub(super) fn begin(&mut self, key: PeerKey) {
        let Some(peer) = self.peers.get(&key) else { return };
        if peer.disabled {
            self.rib.awaits_nothing_from(peer.rib_id);
        }
        let event = match (peer.disabled, self.why_unlocated(&peer.config)) {
            (true, _) => {
                Event::Stop(StopReason::Disabled { text: "disabled by an operator".into() })
            }
            (false, Some(reason)) if peer.is_stopped_by(&reason) => return,
            (false, Some(reason)) => Event::Stop(reason),
            (false, None) => Event::Start,
        };
        self.handle(key, event);
    }

    /// Import from what is stored, which holds rejected routes too; what an older policy or a lost
    /// message has left out comes again by a ROUTE-REFRESH.
    fn import_again(&mut self, key: PeerKey) {
        let Some(peer) = self.peers.get(&key) else { return };
        self.rib.import_again(peer.rib_id);
        self.ask_again(key);
    }

    /// Asks a peer for all its routes, if it can be asked.
    pub(super) fn ask_again(&mut self, key: PeerKey) {
        let Some(peer) = self.peers.get(&key) else { return };
        let Some(established) = peer.session.established() else { return };
        let Some(connection) = peer.connections.get(&established.connection) else { return };
        if established.negotiated.route_refresh {
            for family in established.families().iter() {
                connection.send(RouteRefresh::new(family, RefreshKind::Request).encode());
            }
        }
    }

    fn key_of(&self, name: &PeerName) -> Result<PeerKey, NoSuchPeer> {
        let found = self.peers.iter().find(|(_, peer)| peer.name == *name);
        found.map(|(key, _)| *key).ok_or_else(|| NoSuchPeer(PeerName::clone(name)))
    }
}
