//! What two OPENs agree on.

use super::open::Open;
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
    /// Messages up to 65,535 octets in both directions (RFC 8654).
    pub extended_message: bool,
    /// IPv4 routes may have IPv6 next hops (RFC 8950).
    pub extended_next_hop: bool,
}

impl Negotiated {
    /// What `local` and `remote`, the OPENs sent and received, have in common.
    pub fn new(local: &Open, remote: &Open) -> Negotiated {
        todo!("{local:?} {remote:?}")
    }

    /// The largest message in either direction, in octets.
    pub const fn message_octets_max(&self) -> usize {
        if self.extended_message {
            super::MESSAGE_OCTETS_MAX_EXTENDED
        } else {
            super::MESSAGE_OCTETS_MAX
        }
    }

    /// How UPDATEs of the peer are to be read. `first_as` is the peer's AS number when an eBGP
    /// peer's AS_PATH has to begin with it.
    pub const fn update_context(&self, first_as: Option<u32>) -> UpdateContext {
        UpdateContext {
            sort: self.sort,
            as4: self.as4,
            families: self.families,
            extended_next_hop: self.extended_next_hop,
            first_as,
        }
    }

    /// How UPDATEs to the peer are to be written.
    pub const fn message_format(&self) -> super::MessageFormat {
        super::MessageFormat { octets_max: self.message_octets_max(), as4: self.as4 }
    }
}
