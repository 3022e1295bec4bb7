//! Peers that nobody has named: whoever connects from an address of a range.

use std::net::IpAddr;
use std::sync::Arc;
use std::time::{Duration, Instant};

use ipnet::IpNet;

use crate::config::{PeerConfig, PeerName, PeerRange, SpeakerConfig};
use crate::session::SessionState;

use super::owner::{Owner, PeerKey};
use super::peer::Peer;

impl SpeakerConfig {
    /// The narrowest range that a peer at `remote` may connect to, at `local` where that is known; none when
    /// the address has a name.
    pub(super) fn range_of(
        &self,
        local: Option<IpAddr>,
        remote: IpAddr,
    ) -> Option<(&PeerName, &PeerRange)> {
        if self.peers.values().any(|named| named.address == remote) {
            return None;
        }
        let accepts = |range: &PeerRange| {
            let wanted = range.template.source_address.zip(local);
            range.addresses.contains(IpNet::from(remote).into())
                && wanted.is_none_or(|(source, local)| source == local)
        };
        let ranges = self.ranges.iter().filter(|(_, range)| accepts(range));
        ranges.max_by_key(|(_, range)| range.addresses.len())
    }

    /// Whether a peer is still wanted. One of a range goes when the range does, when it is not the range of
    /// its address any more, or when its address has a name now.
    pub(super) fn wants(&self, peer: &Peer) -> bool {
        match &peer.range {
            None => self.peers.contains_key(&peer.name),
            Some(range) => {
                let now = self.range_of(peer.config.source_address, peer.config.address);
                now.is_some_and(|(name, _)| name == range)
            }
        }
    }
}

impl PeerRange {
    /// What a peer at this address is configured as.
    pub(super) fn peer(&self, address: IpAddr) -> PeerConfig {
        PeerConfig { address, passive: true, ..self.template.clone() }
    }
}

impl Owner {
    /// A peer for a connection from an address of a range; `None`, which the log hears, when the range has
    /// as many as it may. One that never had a session makes room first, then one that has none any more and
    /// whose routes nobody keeps.
    pub(super) fn admit(
        &mut self,
        now: Instant,
        name: &PeerName,
        address: IpAddr,
    ) -> Option<PeerKey> {
        let range = self.config.ranges.get(name)?;
        let (config, peers_max) = (range.peer(address), range.peers_max as usize);
        let members = self.peers.values().filter(|peer| peer.range.as_ref() == Some(name));
        if members.count() >= peers_max {
            let may_go = |peer: &Peer| {
                peer.range.as_ref() == Some(name) && (peer.is_over() || peer.loiters(now))
            };
            let over = self.peers.iter().filter(|(_, peer)| may_go(peer));
            let oldest = over.min_by_key(|(_, peer)| (peer.established_count > 0, peer.changed));
            let oldest = oldest.map(|(key, _)| *key);
            let Some(oldest) = oldest else {
                let throttle = self.refused.entry(Arc::clone(name)).or_default();
                if let Some(held_back) = throttle.pass(now, REFUSAL_REST) {
                    tracing::warn!(
                        range = %name, %address, peers_max, held_back,
                        "connection closed: the range has as many peers as it may; raise peersMax"
                    );
                }
                return None;
            };
            self.remove_peer(oldest);
        }
        let peer_name = PeerName::from(format!("{name}@{address}"));
        tracing::debug!(peer = %peer_name, "a peer of a range");
        Some(self.add_peer(&peer_name, &config, Some(Arc::clone(name))))
    }

    /// Forgets peers of ranges that have had no session for a while.
    pub(super) fn forget_over(&mut self, now: Instant) {
        let due = |peer: &Peer| peer.forgotten_at().is_some_and(|at| at <= now);
        let over: Vec<PeerKey> =
            self.peers.iter().filter(|(_, peer)| due(peer)).map(|(key, _)| *key).collect();
        over.into_iter().for_each(|key| self.remove_peer(key));
    }
}

impl Peer {
    /// It is of a range, there is no connection to it, none of its routes is kept, and nobody has stopped it: a
    /// limit or an operator would be forgotten, too.
    fn is_over(&self) -> bool {
        self.range.is_some()
            && self.connections.is_empty()
            && !self.session.keeps_routes()
            && self.session.state() != SessionState::Idle
    }

    /// It connected a while ago and never came to a session.
    fn loiters(&self, now: Instant) -> bool {
        self.established_count == 0 && self.changed + LOITERING_AFTER <= now
    }

    /// When nobody remembers it any more.
    pub(super) fn forgotten_at(&self) -> Option<Instant> {
        self.is_over().then(|| self.changed + FORGOTTEN_AFTER)
    }
}

/// How long a peer of a range that is gone can be asked what went wrong.
const FORGOTTEN_AFTER: Duration = Duration::from_secs(60);
/// How long a connection may take to become a session when others want its place.
const LOITERING_AFTER: Duration = Duration::from_secs(10);
/// Rest between two warnings about a full range.
const REFUSAL_REST: Duration = Duration::from_secs(60);
