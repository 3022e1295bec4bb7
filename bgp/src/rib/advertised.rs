//! Why a peer is told a route or not, export run once more for an answer; and whether it has been.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use crate::prefix::{Family, Prefix};
use crate::wire::{Announcements, EncodeError, NextHop, PathPrefix};

use super::Rib;
use super::export::{ExportVerdict, Exported, GroupKey};
use super::family::AddressFamily;
use super::peer::{PeerId, PeerSession};
use super::sent::split_best;
use super::table::{Candidate, Entry, PathKey, Table};

impl Rib {
    /// Which export rule announces the best route to a prefix to a peer, or, as the error, why none
    /// is announced: what is true of the peer once all that is known has been sent.
    pub fn export_verdict(
        &self,
        id: PeerId,
        prefix: Prefix,
    ) -> Result<ExportVerdict, ExportVerdict> {
        let (session, key) = self.told_by(id, prefix.family())?;
        let best = self.entry(prefix).and_then(Entry::best).ok_or(ExportVerdict::NoRoute)?;
        let best_verdict = self.verdict_about(id, &key, &session, prefix, best);
        // Where the best one may not go, another path may.
        let mut candidates: Vec<&Candidate> =
            self.entry(prefix).map(Entry::candidates).unwrap_or_default().iter().collect();
        let mut left = candidates.as_mut_slice();
        let mut chosen = 0;
        while best_verdict.is_err()
            && chosen < key.paths_max
            && let Some((candidate, rest)) = split_best(&self.peers, left)
        {
            match self.verdict_about(id, &key, &session, prefix, candidate) {
                Ok(verdict) => return Ok(verdict),
                Err(ExportVerdict::FromThisPeer) => chosen += 1,
                Err(_) => {}
            }
            left = rest;
        }
        best_verdict
    }

    /// As [`Rib::export_verdict`], about one of several paths; whether there are too many before it is
    /// not asked.
    pub(super) fn path_verdict(
        &self,
        id: PeerId,
        prefix: Prefix,
        path: PathKey,
    ) -> Result<ExportVerdict, ExportVerdict> {
        let (session, key) = self.told_by(id, prefix.family())?;
        let candidates = self.entry(prefix).map(Entry::candidates).unwrap_or_default();
        let candidate = candidates.iter().find(|candidate| candidate.key() == path);
        let candidate = candidate.ok_or(ExportVerdict::NoRoute)?;
        self.verdict_about(id, &key, &session, prefix, candidate)
    }

    /// The session that carries a family to a peer, and the group that it belongs to.
    fn told_by(
        &self,
        id: PeerId,
        family: Family,
    ) -> Result<(PeerSession, GroupKey), ExportVerdict> {
        let peer = self.peers.peer(id).ok_or(ExportVerdict::NoSession)?;
        let session = peer.session.filter(|session| session.families.contains(family));
        let session = session.ok_or(ExportVerdict::NoSession)?;
        Ok((session, GroupKey::new(peer, &session, family)))
    }

    fn verdict_about(
        &self,
        id: PeerId,
        key: &GroupKey,
        session: &PeerSession,
        prefix: Prefix,
        candidate: &Candidate,
    ) -> Result<ExportVerdict, ExportVerdict> {
        let family = prefix.family();
        let deferring = self.holds_announcements();
        // A single route is the peer's own before anything else is; among several paths its own takes a
        // place only where it might go to others.
        if candidate.source == id && key.paths_max == 0 {
            return Err(ExportVerdict::FromThisPeer);
        }
        let (verdict, exported) =
            key.explain(&self.peers, self.cluster_id, deferring, prefix, candidate)?;
        let next_hop = own_or_given(session, family, &exported);
        let path = &exported.attributes.path;
        let said = match key.paths_max {
            0 => Announcements::new(session.format, family, path, next_hop, [prefix]).map(drop),
            _ => {
                let path_prefix = PathPrefix { prefix, path_id: 0 };
                Announcements::new(session.format, family, path, next_hop, [path_prefix]).map(drop)
            }
        };
        match said {
            Ok(()) if candidate.source == id => Err(ExportVerdict::FromThisPeer),
            Ok(()) => Ok(verdict),
            Err(EncodeError::TooLarge { .. }) => Err(ExportVerdict::TooLarge),
            Err(EncodeError::NextHopFamily { .. }) => Err(ExportVerdict::NextHopFamily),
        }
    }

    /// Whether [`Rib::flush`] has handed out a route to a prefix for a peer, in its latest state.
    pub fn has_told(&self, id: PeerId, prefix: Prefix) -> bool {
        match prefix {
            Prefix::V4(key) => has_told(&self.ipv4, id, &key),
            Prefix::V6(key) => has_told(&self.ipv6, id, &key),
        }
    }

    /// Whether [`Rib::flush`] has handed out all that a peer is to be told.
    pub fn has_told_all(&self, id: PeerId) -> bool {
        self.ipv4.groups.iter().all(|group| group.has_told_all(id))
            && self.ipv6.groups.iter().all(|group| group.has_told_all(id))
    }
}

fn has_told<A: AddressFamily>(table: &Table<A>, peer: PeerId, key: &A::Key) -> bool {
    let route = table.entries.id(key);
    route.is_some_and(|route| table.groups.iter().any(|group| group.has_told(peer, route)))
}

/// The next hop in octets: that of the route, or the session's own.
pub(super) fn own_or_given(session: &PeerSession, family: Family, exported: &Exported) -> NextHop {
    if !exported.own_next_hop {
        return exported.attributes.next_hop.beyond_its_link();
    }
    let own = session.addresses;
    NextHop::new(match family {
        Family::Ipv4Unicast if !session.ipv4_via_ipv6 => {
            IpAddr::V4(own.ipv4.unwrap_or(Ipv4Addr::UNSPECIFIED))
        }
        Family::Ipv4Unicast | Family::Ipv6Unicast => {
            IpAddr::V6(own.ipv6.unwrap_or(Ipv6Addr::UNSPECIFIED))
        }
    })
}
