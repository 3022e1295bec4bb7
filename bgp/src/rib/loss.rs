//! What would be lost without some of the peers, before they are let go.

use std::collections::BTreeMap;

use crate::config::PeerName;
use crate::prefix::Prefix;

use super::peer::PeerId;
use super::table::{Candidate, Table};
use super::{AddressFamily, Rib};

/// What of a peer ends.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Leaving {
    /// Its session.
    Session,
    /// Its being a route reflector: what it has from others.
    Reflection,
}

/// Prefixes to which no route would be left.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Loss {
    /// How many.
    pub prefixes: usize,
    /// The lowest of them.
    pub first: Option<Prefix>,
}

impl Rib {
    /// What would be lost if these peers ended what they do. A route that waits for the restart of its
    /// peer takes the place of none that ends.
    pub fn loss(&self, leaving: &BTreeMap<PeerName, Leaving>) -> Loss {
        let named = self
            .peers
            .iter()
            .filter_map(|(id, peer)| leaving.get(&peer.config.name).map(|leaving| (id, *leaving)));
        let leaving: BTreeMap<PeerId, Leaving> = named.collect();
        let mut loss = Loss::default();
        if !leaving.is_empty() {
            self.add_loss(&self.ipv4, &leaving, &mut loss);
            self.add_loss(&self.ipv6, &leaving, &mut loss);
        }
        loss
    }

    fn add_loss<A: AddressFamily>(
        &self,
        table: &Table<A>,
        leaving: &BTreeMap<PeerId, Leaving>,
        loss: &mut Loss,
    ) {
        let ends = |candidate: &Candidate| match leaving.get(&candidate.source) {
            None => false,
            Some(Leaving::Session) => true,
            Some(Leaving::Reflection) => candidate.received.originator_id().is_some(),
        };
        let is_stale = |candidate: &Candidate| {
            let peer = self.peers.peer(candidate.source);
            peer.is_some_and(|peer| peer.family(A::FAMILY).epoch != candidate.epoch)
        };
        for (key, entry) in table.entries.iter() {
            let (mut lost, mut kept) = (false, false);
            for candidate in entry.candidates().iter().filter(|c| c.used.is_some()) {
                let ends = ends(candidate);
                lost |= ends;
                kept |= !ends && !is_stale(candidate);
            }
            if lost && !kept {
                let prefix = A::prefix(*key);
                loss.prefixes += 1;
                loss.first = Some(loss.first.map_or(prefix, |first| first.min(prefix)));
            }
        }
    }
}
