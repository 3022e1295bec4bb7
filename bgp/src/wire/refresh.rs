//! ROUTE-REFRESH (RFC 2918, RFC 7313).

use bytes::{BufMut, Bytes};

use super::encode;
use super::frame::MessageType;
use super::notification::{Notification, NotificationError, RouteRefreshError};
use crate::prefix::Family;

/// A ROUTE-REFRESH message.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct RouteRefresh {
    /// The Address Family Identifier; one that was not negotiated is to be ignored (RFC 2918).
    pub afi: u16,
    /// The Subsequent Address Family Identifier.
    pub safi: u8,
    /// What is asked for or marked.
    pub kind: RefreshKind,
}

/// The subtype of a ROUTE-REFRESH (RFC 7313 section 3.2).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum RefreshKind {
    /// Send your routes again.
    Request,
    /// Beginning of a refresh (BoRR).
    Begin,
    /// End of a refresh (EoRR): what was not sent again since the beginning is gone.
    End,
    /// To be ignored (RFC 7313 section 5).
    Unknown(u8),
}

impl RouteRefresh {
    /// A message about `family`.
    pub const fn new(family: Family, kind: RefreshKind) -> RouteRefresh {
        RouteRefresh { afi: family.afi(), safi: family.safi(), kind }
    }

    /// The family that the message is about, if it is one that this speaker carries.
    pub const fn family(self) -> Option<Family> {
        Family::from_afi_safi(self.afi, self.safi)
    }

    /// Reads the body of a ROUTE-REFRESH.
    ///
    /// # Errors
    /// Invalid Message Length with the whole message as data (RFC 7313 section 5).
    pub fn decode(body: &[u8]) -> Result<RouteRefresh, Notification> {
        let &[afi_high, afi_low, subtype, safi] = body else {
            let error = NotificationError::RouteRefresh(RouteRefreshError::InvalidMessageLength);
            let message = encode::message(MessageType::RouteRefresh, |out| out.put_slice(body));
            return Err(Notification::with_data(error, message));
        };
        let kind = match subtype {
            0 => RefreshKind::Request,
            1 => RefreshKind::Begin,
            2 => RefreshKind::End,
            other => RefreshKind::Unknown(other),
        };
        Ok(RouteRefresh { afi: u16::from_be_bytes([afi_high, afi_low]), safi, kind })
    }

    /// The whole message.
    pub fn encode(self) -> Bytes {
        encode::message(MessageType::RouteRefresh, |out| {
            out.put_u16(self.afi);
            out.put_u8(match self.kind {
                RefreshKind::Request => 0,
                RefreshKind::Begin => 1,
                RefreshKind::End => 2,
                RefreshKind::Unknown(subtype) => subtype,
            });
            out.put_u8(self.safi);
        })
    }
}
