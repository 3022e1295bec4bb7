//! OPEN and its capabilities (RFC 4271 sections 4.2 and 6.2, RFC 5492, RFC 9072).

use std::net::Ipv4Addr;

use bytes::Bytes;

use super::notification::Notification;
use crate::prefix::{Families, Family};

/// An OPEN message.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Open {
    /// The sender's AS number: that of the 4-octet AS capability where there is one.
    pub asn: u32,
    /// The hold time offered: 0 or at least 3.
    pub hold_time_secs: u16,
    /// The sender's BGP identifier: not 0 (RFC 6286).
    pub router_id: Ipv4Addr,
    /// What the sender can do, in its own order.
    pub capabilities: Vec<Capability>,
}

/// A capability (RFC 5492).
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Capability {
    /// Code 1: routes of a family (RFC 4760). The family may be one that this speaker does not carry.
    Multiprotocol {
        /// Address Family Identifier.
        afi: u16,
        /// Subsequent Address Family Identifier.
        safi: u8,
    },
    /// Code 2 (RFC 2918).
    RouteRefresh,
    /// Code 5: next hops of another address family (RFC 8950).
    ExtendedNextHop(Vec<ExtendedNextHop>),
    /// Code 6: messages up to 65,535 octets (RFC 8654).
    ExtendedMessage,
    /// Code 64 (RFC 4724).
    GracefulRestart(GracefulRestart),
    /// Code 65: the sender's AS number (RFC 6793).
    FourOctetAs(u32),
    /// Code 69 (RFC 7911): AFI, SAFI and what the sender can do.
    AddPath(Vec<(u16, u8, AddPathMode)>),
    /// Code 70 (RFC 7313).
    EnhancedRouteRefresh,
    /// Any other one, or a known one whose value has a wrong length.
    Unknown {
        /// The capability code.
        code: u8,
        /// Its value.
        value: Bytes,
    },
}

/// One entry of the extended next hop capability (RFC 8950 section 4).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ExtendedNextHop {
    /// Address Family Identifier of the routes.
    pub afi: u16,
    /// Subsequent Address Family Identifier of the routes; 16 bits wide here.
    pub safi: u16,
    /// Address Family Identifier of their next hops.
    pub next_hop_afi: u16,
}

/// The graceful restart capability (RFC 4724 section 3, RFC 8538 section 2).
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct GracefulRestart {
    /// R bit: the sender has restarted and waits for End-of-RIB.
    pub restarting: bool,
    /// N bit: NOTIFICATIONs and hold time expiry keep routes, too (RFC 8538).
    pub notification: bool,
    /// Time until the sender is back, in seconds: at most 4095.
    pub restart_time_secs: u16,
    /// The families whose routes are worth keeping.
    pub families: Vec<GracefulRestartFamily>,
}

/// One family of the graceful restart capability.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct GracefulRestartFamily {
    /// Address Family Identifier.
    pub afi: u16,
    /// Subsequent Address Family Identifier.
    pub safi: u8,
    /// F bit: the sender kept forwarding over its last restart.
    pub forwarding: bool,
}

/// Send/Receive field of an ADD-PATH entry (RFC 7911 section 4).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum AddPathMode {
    /// The sender can receive several paths.
    Receive,
    /// The sender can send several paths.
    Send,
    /// Both.
    Both,
}

impl Open {
    /// Reads the body of an OPEN. AS numbers and identifiers are only checked on their own here; see
    /// [`Open::check_peer`].
    ///
    /// # Errors
    /// The NOTIFICATION of RFC 4271 section 6.2 to answer with.
    pub fn decode(body: &[u8]) -> Result<Open, Notification> {
        todo!("{body:?}")
    }

    /// The whole message. More than 255 octets of capabilities use the extended form (RFC 9072).
    pub fn encode(&self) -> Bytes {
        todo!()
    }

    /// Compares with what is configured: the peer's AS number, and, inside an AS, another identifier
    /// than the local one (RFC 6286 section 2.2).
    ///
    /// # Errors
    /// Bad Peer AS or Bad BGP Identifier.
    pub fn check_peer(
        &self,
        peer_asn: u32,
        local_asn: u32,
        local_router_id: Ipv4Addr,
    ) -> Result<(), Notification> {
        todo!("{peer_asn} {local_asn} {local_router_id}")
    }

    /// The families offered that this speaker carries. Without any multiprotocol capability that is
    /// IPv4 unicast (RFC 4760 section 8).
    pub fn families(&self) -> Families {
        todo!()
    }

    /// The graceful restart capability; the last one counts where there are several.
    pub fn graceful_restart(&self) -> Option<&GracefulRestart> {
        todo!()
    }

    /// Whether `capability` was offered, exactly so.
    pub fn offers(&self, capability: &Capability) -> bool {
        self.capabilities.contains(capability)
    }
}

impl Capability {
    /// The multiprotocol capability of a family.
    pub const fn multiprotocol(family: Family) -> Capability {
        Capability::Multiprotocol { afi: family.afi(), safi: family.safi() }
    }
}
