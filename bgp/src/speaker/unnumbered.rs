//! Peers that are known by their interface: whoever hears the router advertisements there says who is at its
//! other end.

use std::collections::BTreeMap;
use std::net::{Ipv6Addr, SocketAddr};
use std::time::Instant;

use crate::config::{InterfaceName, PeerConfig, SpeakerConfig};
use crate::session::{Event, StopReason};

use super::interface::in_scope;
use super::operator::Operation;
use super::owner::{Owner, PeerKey, now};
use super::peer::Peer;
use super::{Error, SpeakerHandle};

/// What is known of the other end of an interface.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Neighbour {
    /// Where the peer is, as far as that is known.
    pub located: Option<Located>,
    /// Why it is not known, or what is doubtful about it, and what to do.
    pub problem: Option<String>,
}

/// The ends of a link with link-local addresses.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Located {
    /// The index of the interface.
    pub index: u32,
    /// The own address on it.
    pub local: Ipv6Addr,
    /// The peer's address on it.
    pub remote: Ipv6Addr,
}

impl SpeakerHandle {
    /// Says what is known of the other ends of interfaces that peers are known by. A peer whose address is
    /// another one now, or is not known any more, loses its session, and its routes with it.
    ///
    /// # Errors
    /// The speaker has ended.
    pub async fn set_neighbours(
        &self,
        neighbours: BTreeMap<InterfaceName, Neighbour>,
    ) -> Result<(), Error> {
        self.operate(|answer| Operation::Neighbours(neighbours, answer)).await
    }

    /// Whether the session with the peer on an interface is established.
    ///
    /// # Errors
    /// The speaker has ended.
    pub async fn is_established_on(&self, interface: InterfaceName) -> Result<bool, Error> {
        self.operate(|answer| Operation::IsEstablishedOn(interface, answer)).await
    }

    /// The configuration that is wanted, to watch.
    pub fn configuration(&self) -> tokio::sync::watch::Receiver<SpeakerConfig> {
        self.config.subscribe()
    }
}

impl Owner {
    pub(super) fn set_neighbours(&mut self, neighbours: BTreeMap<InterfaceName, Neighbour>) {
        if neighbours == self.neighbours {
            return;
        }
        self.neighbours = neighbours;
        self.changed = true;
        let listen = self.listen();
        self.listeners.configure(now(), &self.config, &listen, &self.mailbox);
        let by_interface = |peer: &&Peer| peer.config.interface.is_some();
        let peers = self.peers.iter().filter(|(_, peer)| by_interface(peer));
        let located: Vec<(PeerKey, PeerConfig)> = peers
            .filter_map(|(key, peer)| Some((*key, self.locate(self.config.peers.get(&peer.name)?))))
            .collect();
        for (key, config) in located {
            self.configure_peer(key, &config, false);
            self.set_doubt(key);
            if config.is_unlocated() && self.peers.get(&key).is_some_and(|peer| !peer.disabled) {
                // What is known of why may be something else now.
                self.begin(key);
            }
        }
    }

    pub(super) fn is_established_on(&self, interface: &InterfaceName) -> bool {
        let mut on_it =
            self.peers.values().filter(|peer| peer.config.interface.as_ref() == Some(interface));
        on_it.any(|peer| peer.session.established().is_some())
    }

    /// Where to listen: as configured, and at the own ends of links with peers that are known by these, unless a
    /// listener at all addresses has them.
    pub(super) fn listen(&self) -> Vec<SocketAddr> {
        let mut listen = self.config.listen.clone();
        let at_all = |address: &SocketAddr| address.is_ipv6() && address.ip().is_unspecified();
        if let Some(port) = listen.first().map(SocketAddr::port)
            && !listen.iter().any(at_all)
        {
            let peers = self.config.peers.values().filter_map(|peer| peer.interface.as_ref());
            let ends = peers.filter_map(|name| self.neighbours.get(name)?.located);
            listen.extend(ends.map(|end| in_scope(end.local.into(), port, end.index)));
        }
        listen
    }

    /// What a peer is configured as, with the address where it is known by its interface.
    pub(super) fn locate(&self, config: &PeerConfig) -> PeerConfig {
        let neighbour = config.interface.as_ref().and_then(|name| self.neighbours.get(name));
        match neighbour.and_then(|neighbour| neighbour.located) {
            None => config.clone(),
            Some(Located { index, local, remote }) => PeerConfig {
                address: remote.into(),
                source_address: Some(local.into()),
                scope_id: index,
                ..config.clone()
            },
        }
    }

    /// Why a peer that is known by its interface has no session now; `None` when it is known where it is.
    pub(super) fn why_unlocated(&self, config: &PeerConfig) -> Option<StopReason> {
        let interface = config.interface.as_ref().filter(|_| config.is_unlocated())?;
        let problem = self.neighbours.get(interface).and_then(|known| known.problem.clone());
        let text = problem.unwrap_or_else(|| {
            format!("nobody has said yet who is at the other end of {interface}")
        });
        Some(StopReason::Neighbour { text })
    }

    /// Says what is missing of a peer whose rest is over while nobody knows where it is.
    pub(super) fn end_rest(&mut self, key: PeerKey, now: Instant) {
        let Some(peer) = self.peers.get(&key) else { return };
        if peer.session.comes_back_at().is_some_and(|at| at <= now)
            && let Some(reason) = self.why_unlocated(&peer.config)
        {
            self.handle(key, Event::Stop(reason));
        }
    }

    /// Whether nothing differs between configurations of a peer but its place, as far as its interface says it.
    pub(super) fn only_moves(old: &PeerConfig, new: &PeerConfig) -> bool {
        let there = PeerConfig {
            address: new.address,
            source_address: new.source_address,
            scope_id: new.scope_id,
            ..old.clone()
        };
        old.interface.is_some() && there.needs_reset(new).is_none()
    }

    /// Why the session with a peer ends that is elsewhere under the new configuration; `None` when it is not.
    pub(super) fn moved(&self, old: &PeerConfig, new: &PeerConfig) -> Option<StopReason> {
        let interface =
            new.interface.as_ref().filter(|name| old.interface.as_ref() == Some(name))?;
        let ends = |config: &PeerConfig| (config.address, config.source_address, config.scope_id);
        if old.is_unlocated() || ends(old) == ends(new) {
            return None;
        }
        let gone = self.why_unlocated(new);
        Some(gone.unwrap_or_else(|| {
            let text = if old.address == new.address {
                format!(
                    "the own address on {interface} has changed, or the interface was made anew"
                )
            } else {
                format!("the peer on {interface} has the address {} now", new.address)
            };
            StopReason::Neighbour { text }
        }))
    }

    /// Notes on a peer what is doubtful about its place.
    pub(super) fn set_doubt(&mut self, key: PeerKey) {
        let Some(peer) = self.peers.get_mut(&key) else { return };
        let neighbour = peer.config.interface.as_ref().and_then(|name| self.neighbours.get(name));
        let doubt = neighbour.filter(|known| known.located.is_some());
        let doubt = doubt.and_then(|known| known.problem.clone());
        if let Some(text) = doubt.as_ref().filter(|text| peer.doubt.as_ref() != Some(*text)) {
            tracing::warn!(peer = %peer.name, "{text}");
        }
        peer.doubt = doubt;
    }
}
