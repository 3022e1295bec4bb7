//! What the RIB knows of each peer.

use std::net::{IpAddr, Ipv4Addr};
use std::sync::Arc;

use crate::config::{ExportScope, NextHopMode, PeerConfig, PeerName, PrefixLimit, SpeakerConfig};
use crate::policy::{Action, Policy, RouteSort};
use crate::prefix::{Families, Family, Prefix};
use crate::session::{Established, LocalAddresses};
use crate::wire::{AddPathFamilies, MessageFormat, SessionSort};

use super::decision::RouteOrigin;

/// A peer's place in the RIB; used again after [`super::Rib::remove_peer`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct PeerId(pub(crate) u32);

impl PeerId {
    /// The source of what this speaker originates; never a peer's place.
    pub(crate) const LOCAL: PeerId = PeerId(u32::MAX);
}

/// The part of a configuration that the RIB needs for one peer.
#[derive(Clone, Debug, PartialEq)]
pub struct RibPeerConfig {
    /// The peer's name.
    pub name: PeerName,
    /// The peer's address, the last tie-break.
    pub address: IpAddr,
    /// The peer's AS number.
    pub asn: u32,
    /// Whether the peer is in another AS.
    pub sort: SessionSort,
    /// AS numbers put in front of AS_PATH towards an eBGP peer, outermost first.
    pub prepend: Vec<u32>,
    /// AS number put in front of a received AS_PATH: the local one of an eBGP session that is not the
    /// speaker's own, so that the rest of our AS sees it (RFC 7705 section 3).
    pub prepend_received: Option<u32>,
    /// We reflect for this peer (RFC 4456).
    pub route_reflector_client: bool,
    /// How the next hop is chosen.
    pub next_hop: NextHopMode,
    /// Which routes may go to the peer.
    pub export_scope: ExportScope,
    /// Paths to one prefix that are sent, where the session tells several (RFC 7911).
    pub sent_paths_max: u8,
    /// Bound of what the peer may announce.
    pub prefix_limit: Option<PrefixLimit>,
    /// How often one of `prepend` may stand in a received AS_PATH.
    pub own_as_max: u8,
    /// Longest AS_PATH accepted.
    pub as_path_len_max: Option<u32>,
    /// Private AS numbers are taken out of AS_PATH towards an eBGP peer.
    pub remove_private_as: bool,
    /// The session is about to go away (RFC 8326).
    pub graceful_shutdown: bool,
    /// Only routes within these prefixes may be stale for long; `None` is all (RFC 9494).
    pub long_lived_within: Option<Arc<[Prefix]>>,
    /// Import policies.
    pub import: Vec<Arc<Policy>>,
    /// Export policies.
    pub export: Vec<Arc<Policy>>,
}

impl RibPeerConfig {
    /// Whether the session runs between link-local addresses.
    pub(crate) fn is_link_local(&self) -> bool {
        matches!(self.address, IpAddr::V6(address) if address.is_unicast_link_local())
    }
}

/// What the RIB has to know of an established session.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PeerSession {
    /// The peer's BGP identifier.
    pub router_id: Ipv4Addr,
    /// Negotiated families.
    pub families: Families,
    /// How messages are written.
    pub format: MessageFormat,
    /// Own addresses on this session, that routes back to ourselves show as next hop.
    pub addresses: LocalAddresses,
    /// The peer will send End-of-RIB and does not wait for us to do so first.
    pub promises_end_of_rib: bool,
    /// It will do so sooner or later.
    pub sends_end_of_rib: bool,
    /// Families whose stale routes wait for End-of-RIB.
    pub stale_kept: Families,
    /// Beginning and end of a refresh are marked (RFC 7313).
    pub enhanced_route_refresh: bool,
    /// Own next hops of IPv4 routes are IPv6 addresses (RFC 8950).
    pub ipv4_via_ipv6: bool,
    /// The peer knows of routes that are stale for long, and may be sent them (RFC 9494 section 4.3).
    pub knows_long_lived: bool,
    /// Families in which several paths to a prefix are told (RFC 7911).
    pub add_path: AddPathFamilies,
}

/// One peer.
#[derive(Debug)]
pub(crate) struct Peer {
    pub(crate) config: RibPeerConfig,
    pub(crate) session: Option<PeerSession>,
    /// Outlives the session, for stale routes.
    pub(crate) router_id: Ipv4Addr,
    /// The interface that the peer is next to; as `router_id`.
    pub(crate) link: Option<u32>,
    pub(crate) families: [PeerFamily; 2],
    /// Octets that may be handed out for this peer now.
    pub(crate) room: usize,
    /// As `room`, of what is encoded for this peer alone because it lags.
    pub(crate) catch_up_room: usize,
}

/// What is kept per peer and family.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct PeerFamily {
    /// Routes with another number are stale.
    pub(crate) epoch: u8,
    pub(crate) received: u32,
    pub(crate) accepted: u32,
    /// Announcements beyond the prefix limit that were not taken in, since the session began.
    pub(crate) dropped: u32,
    /// More prefixes than the limit have been reported.
    pub(crate) over_limit: bool,
    /// More paths to a prefix than are taken in have been reported.
    pub(crate) over_paths: bool,
    /// Routes of `received` that are stale from before the session (RFC 4724). They are not counted
    /// against the prefix limit: the peer has not announced them in this session.
    pub(crate) stale: u32,
    /// Only then is a sweep worth a walk.
    pub(crate) has_stale: bool,
    /// How often the session was lost since all stale routes were gone: below the numbers that an epoch
    /// has, else old routes would look new.
    pub(crate) restarts: u8,
    /// The peer sends everything again, and what is stale is what it has not sent yet (RFC 7313).
    pub(crate) refreshing: bool,
    /// The peer has been told that everything is sent to it again.
    pub(crate) refresh_sent: bool,
    /// The start's deferral waits for this End-of-RIB (RFC 4724 section 4.1).
    pub(crate) awaits_end_of_rib: bool,
    /// So do routes of a former life in the kernel, also for a peer that restarts itself.
    pub(crate) lacks_routes: bool,
}

impl PeerFamily {
    /// What counts against the prefix limit.
    pub(crate) fn counted(&self) -> u32 {
        self.received.saturating_sub(self.stale)
    }
}

/// The peers by number.
#[derive(Debug, Default)]
pub(crate) struct Peers {
    slots: Vec<Option<Peer>>,
}

impl RibPeerConfig {
    /// The part of a speaker's and a peer's configuration that the RIB needs.
    pub fn new(speaker: &SpeakerConfig, name: &PeerName, peer: &PeerConfig) -> RibPeerConfig {
        let local_asn = peer.local_asn.unwrap_or(speaker.asn);
        let sort = match local_asn == peer.asn {
            true => SessionSort::Ibgp,
            false => SessionSort::Ebgp,
        };
        // RFC 7705 section 3.1: the local AS goes in front of the speaker's own.
        let mut prepend = vec![local_asn];
        if local_asn != speaker.asn {
            prepend.push(speaker.asn);
        }
        let graceful_restart = peer.graceful_restart.as_ref();
        let long_lived = graceful_restart.and_then(|graceful| graceful.long_lived.as_ref());
        RibPeerConfig {
            name: Arc::clone(name),
            address: peer.address,
            asn: peer.asn,
            sort,
            prepend,
            prepend_received: (local_asn != speaker.asn && sort == SessionSort::Ebgp)
                .then_some(local_asn),
            route_reflector_client: peer.route_reflector_client,
            next_hop: peer.next_hop,
            export_scope: peer.export_scope,
            sent_paths_max: peer.add_path.send_max,
            prefix_limit: peer.prefix_limit,
            own_as_max: peer.own_as_max,
            as_path_len_max: peer.as_path_len_max,
            remove_private_as: peer.remove_private_as,
            graceful_shutdown: peer.graceful_shutdown,
            long_lived_within: long_lived.and_then(|long_lived| long_lived.within.clone()),
            import: peer.import.clone(),
            export: peer.export.clone(),
        }
    }

    /// What decides when no policy does (RFC 8212).
    pub(crate) fn default_action(&self) -> Action {
        match self.sort {
            SessionSort::Ebgp => Action::Reject,
            SessionSort::Ibgp => Action::Accept,
        }
    }

    pub(crate) fn route_sort(&self) -> RouteSort {
        match self.sort {
            SessionSort::Ebgp => RouteSort::Ebgp,
            SessionSort::Ibgp => RouteSort::Ibgp,
        }
    }

    /// Whether what import decides may differ between the two.
    pub(crate) fn imports_differently(&self, other: &RibPeerConfig) -> bool {
        let plain = |config: &RibPeerConfig| {
            let loops = (config.own_as_max, config.as_path_len_max, config.graceful_shutdown);
            (config.sort, config.prepend_received, loops)
        };
        plain(self) != plain(other)
            || self.prepend != other.prepend
            || self.name != other.name
            || self.import != other.import
    }
}

impl PeerSession {
    /// The part of what was negotiated that the RIB needs.
    pub fn new(established: &Established) -> PeerSession {
        PeerSession {
            router_id: established.peer.router_id,
            families: established.families(),
            format: established.negotiated.message_format(),
            addresses: established.addresses,
            promises_end_of_rib: established.promises_end_of_rib(),
            sends_end_of_rib: established.graceful_restart.is_some(),
            stale_kept: established.stale_kept,
            enhanced_route_refresh: established.negotiated.enhanced_route_refresh,
            ipv4_via_ipv6: established.ipv4_via_ipv6(),
            knows_long_lived: established.peer.knows_long_lived(),
            add_path: established.negotiated.add_path,
        }
    }
}

impl Peer {
    pub(crate) fn family(&self, family: Family) -> &PeerFamily {
        let [v4, v6] = &self.families;
        match family {
            Family::Ipv4Unicast => v4,
            Family::Ipv6Unicast => v6,
        }
    }

    pub(crate) fn family_mut(&mut self, family: Family) -> &mut PeerFamily {
        let [v4, v6] = &mut self.families;
        match family {
            Family::Ipv4Unicast => v4,
            Family::Ipv6Unicast => v6,
        }
    }

    pub(crate) fn origin(&self) -> RouteOrigin {
        RouteOrigin::Peer {
            ibgp: self.config.sort == SessionSort::Ibgp,
            router_id: self.router_id,
            address: self.config.address,
        }
    }
}

impl Peers {
    pub(crate) fn insert(&mut self, peer: Peer) -> PeerId {
        let free = self.slots.iter().position(Option::is_none);
        let index = free.unwrap_or(self.slots.len());
        match self.slots.get_mut(index) {
            Some(slot) => *slot = Some(peer),
            None => self.slots.push(Some(peer)),
        }
        PeerId(index as u32)
    }

    pub(crate) fn remove(&mut self, id: PeerId) -> Option<Peer> {
        self.slots.get_mut(id.0 as usize).and_then(Option::take)
    }

    pub(crate) fn peer(&self, id: PeerId) -> Option<&Peer> {
        self.slots.get(id.0 as usize).and_then(Option::as_ref)
    }

    pub(crate) fn peer_mut(&mut self, id: PeerId) -> Option<&mut Peer> {
        self.slots.get_mut(id.0 as usize).and_then(Option::as_mut)
    }

    /// Those that have not sent all their routes of a family since the start.
    pub(crate) fn lacking(&self, family: Family) -> Vec<PeerId> {
        let lacking = self.iter().filter(|(_, peer)| peer.family(family).lacks_routes);
        lacking.map(|(id, _)| id).collect()
    }

    pub(crate) fn iter(&self) -> impl Iterator<Item = (PeerId, &Peer)> {
        self.slots.iter().enumerate().filter_map(|(i, p)| Some((PeerId(i as u32), p.as_ref()?)))
    }

    pub(crate) fn iter_mut(&mut self) -> impl Iterator<Item = (PeerId, &mut Peer)> {
        let slots = self.slots.iter_mut().enumerate();
        slots.filter_map(|(i, p)| Some((PeerId(i as u32), p.as_mut()?)))
    }
}
