//! Stale routes that outlive the restart time (RFC 9494).

use std::sync::Arc;

use crate::wire::Community;

use super::attributes::{Interner, RouteAttributes};
use super::peer::PeerId;
use super::table::{Candidate, RankContext};
use super::{AddressFamily, Rib, TableOf};

/// Marks the stale routes of a peer, or removes those that may not stay.
pub(super) fn mark<A: TableOf>(rib: &mut Rib, id: PeerId) {
    let Some(peer) = rib.peers.peer(id) else { return };
    let (epoch, within) = (peer.family(A::FAMILY).epoch, peer.config.long_lived_within.clone());
    // Taken out for the walk: table, peers and this are borrowed at once.
    let mut interner = rib.interner.take();
    let (table, peers, multipath) = A::table(rib);
    let context = RankContext { peers, multipath };
    let mut mark = |attributes: &Arc<RouteAttributes>| marked(attributes, &mut interner);
    let delta = table.change_all(context, id, |key, old| {
        if old.epoch == epoch {
            return Some(old.clone());
        }
        let prefix = <A as AddressFamily>::prefix(key);
        let may_stay =
            within.as_ref().is_none_or(|within| within.iter().any(|p| p.contains(prefix)))
                && !old.received.path.has_community(Community::NO_LLGR);
        may_stay.then(|| Candidate {
            received: mark(&old.received),
            used: old.used.as_ref().map(&mut mark),
            ..old.clone()
        })
    });
    rib.interner = interner;
    rib.count(id, A::FAMILY, delta);
    if let Some(peer) = rib.peers.peer_mut(id) {
        let state = peer.family_mut(A::FAMILY);
        state.stale = state.stale.saturating_add_signed(delta.received);
    }
}

/// The same attributes with LLGR_STALE.
pub(super) fn marked(
    attributes: &Arc<RouteAttributes>,
    interner: &mut Interner,
) -> Arc<RouteAttributes> {
    if attributes.is_long_lived_stale() {
        return interner.intern(Arc::clone(attributes));
    }
    let mut builder = attributes.path.edit();
    builder.add_communities(&[Community::LLGR_STALE]);
    let marked = RouteAttributes::new(attributes.next_hop, builder.build());
    interner.intern(Arc::new(marked.with_path_id(attributes.path_id())))
}
