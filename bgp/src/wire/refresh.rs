//! ROUTE-REFRESH (RFC 2918, RFC 7313).

use bytes::{BufMut, Bytes};

use super::encode;
use super::frame::{HEADER_OCTETS, MessageType};
use super::notification::{HeaderError, Notification, NotificationError, RouteRefreshError};
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

fn bad_length(body: &[u8]) -> Notification {
    let octets = u16::try_from(HEADER_OCTETS + body.len()).unwrap_or(u16::MAX);
    let error = NotificationError::Header(HeaderError::BadMessageLength);
    Notification::with_data(error, Bytes::copy_from_slice(&octets.to_be_bytes()))
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
    /// For the two marks Invalid Message Length with the whole message as data (RFC 7313 section 5).
    /// For a plain request, whose sender need not know of that, Bad Message Length with the length
    /// (RFC 4271 section 6.1): what may follow it (RFC 5291) was not offered.
    pub fn decode(body: &[u8]) -> Result<RouteRefresh, Notification> {
        let Some((&[afi_high, afi_low, subtype, safi], rest)) = body.split_first_chunk::<4>()
        else {
            return Err(bad_length(body));
        };
        let kind = match (subtype, rest) {
            (0, []) => RefreshKind::Request,
            (1, []) => RefreshKind::Begin,
            (2, []) => RefreshKind::End,
            (0, _) => return Err(bad_length(body)),
            (1 | 2, _) => {
                let error = RouteRefreshError::InvalidMessageLength;
                let message = encode::message(MessageType::RouteRefresh, |out| out.put_slice(body));
                let error = NotificationError::RouteRefresh(error);
                return Err(Notification::with_data(error, message));
            }
            // Ignored, however long it is.
            (other, _) => RefreshKind::Unknown(other),
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
