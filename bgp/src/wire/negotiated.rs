//! What two OPENs agree on.

use super::codes::AttributeTypes;
use super::encode::MessageFormat;
use super::frame::{MESSAGE_OCTETS_MAX, MESSAGE_OCTETS_MAX_EXTENDED};
use super::open::{Capability, Open};
use super::update::{SessionSort, UpdateContext};
use crate::prefix::Families;

/// What both sides of a session can do, and its sort.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Negotiated {
    /// Whether the peer is in another AS.
    pub sort: SessionSort,
    /// The smaller of both hold times; 0 means none (RFC 4271 section 4.2).
    pub hold_time_secs: u16,
    /// Families that both sides offered.
    pub families: Families,
    /// AS numbers take four octets in AS_PATH and AGGREGATOR (RFC 6793).
    pub as4: bool,
    /// ROUTE-REFRESH may be sent (RFC 2918).
    pub route_refresh: bool,
    /// Beginning and end of a refresh are marked (RFC 7313).
    pub enhanced_route_refresh: bool,
    /// The largest message that the peer may send, in octets (RFC 8654).
    pub receive_octets_max: usize,
    /// The largest message that may be sent to the peer, in octets (RFC 8654).
    pub send_octets_max: usize,
    /// IPv4 routes may have IPv6 next hops (RFC 8950).
    pub extended_next_hop: bool,
    /// Families in which several paths to a prefix are told (RFC 7911).
    pub add_path: AddPathFamilies,
}

/// Families whose prefixes stand in UPDATEs with the identifiers of their paths (RFC 7911 section 4).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct AddPathFamilies {
    /// In what the peer sends.
    pub receive: Families,
    /// In what is sent to the peer.
    pub send: Families,
}

impl Negotiated {
    /// What `local` and `remote`, the OPENs sent and received, have in common.
    pub fn new(local: &Open, remote: &Open) -> Negotiated {
        let both = |capability: Capability| local.offers(&capability) && remote.offers(&capability);
        // RFC 8654 section 4: who offers it can receive long messages; that is no promise to send any.
        let octets_max = |receiver: &Open| match receiver.offers(&Capability::ExtendedMessage) {
            true => MESSAGE_OCTETS_MAX_EXTENDED,
            false => MESSAGE_OCTETS_MAX,
        };
        let families = local.families().intersection(remote.families());
        let pairs = |receiver: &Open, sender: &Open| {
            let both = receiver.receives_paths().intersection(sender.sends_paths());
            both.intersection(families)
        };
        Negotiated {
            sort: if local.asn == remote.asn { SessionSort::Ibgp } else { SessionSort::Ebgp },
            hold_time_secs: local.hold_time_secs.min(remote.hold_time_secs),
            families,
            as4: local.offers_four_octet_as() && remote.offers_four_octet_as(),
            route_refresh: both(Capability::RouteRefresh),
            enhanced_route_refresh: both(Capability::EnhancedRouteRefresh),
            receive_octets_max: octets_max(local),
            send_octets_max: octets_max(remote),
            extended_next_hop: local.offers_extended_next_hop()
                && remote.offers_extended_next_hop(),
            add_path: AddPathFamilies { receive: pairs(local, remote), send: pairs(remote, local) },
        }
    }

    /// How UPDATEs of the peer are to be read. `first_as` is the peer's AS number when an eBGP
    /// peer's AS_PATH has to begin with it; `discard_attributes` are not looked at.
    pub const fn update_context(
        &self,
        first_as: Option<u32>,
        discard_attributes: AttributeTypes,
    ) -> UpdateContext {
        UpdateContext {
            sort: self.sort,
            as4: self.as4,
            families: self.families,
            path_ids: self.add_path.receive,
            extended_next_hop: self.extended_next_hop,
            first_as,
            discard_attributes,
        }
    }

    /// How UPDATEs to the peer are to be written.
    pub const fn message_format(&self) -> MessageFormat {
        MessageFormat {
            octets_max: self.send_octets_max,
            as4: self.as4,
            extended_next_hop: self.extended_next_hop,
        }
    }
}
