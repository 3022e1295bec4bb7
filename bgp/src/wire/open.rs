//! OPEN and its capabilities (RFC 4271 sections 4.2 and 6.2, RFC 5492, RFC 9072).

use std::net::Ipv4Addr;

use bytes::{BufMut, Bytes, BytesMut};

use super::notification::{Notification, NotificationError, OpenError};
use super::reader::Reader;
use super::{AS_TRANS, MESSAGE_OCTETS_MAX, MessageType, encode};
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
    /// Code 71 (RFC 9494).
    LongLivedGracefulRestart(Vec<LongLivedFamily>),
    /// Any other one, or one whose value is not as its RFC has it: to be ignored (RFC 5492 section 3).
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

/// One family of the long-lived graceful restart capability (RFC 9494 section 3).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct LongLivedFamily {
    /// Address Family Identifier.
    pub afi: u16,
    /// Subsequent Address Family Identifier.
    pub safi: u8,
    /// F bit: the sender kept forwarding over its last restart.
    pub forwarding: bool,
    /// How long its routes may be kept after the restart time, in seconds: 24 bits.
    pub stale_time_secs: u32,
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
    /// Reads the body of an OPEN. AS number and identifier are only checked on their own here; see
    /// [`Open::check_peer`].
    ///
    /// # Errors
    /// The NOTIFICATION of RFC 4271 section 6.2 to answer with.
    pub fn decode(body: &[u8]) -> Result<Open, Notification> {
        let mut reader = Reader(body);
        let (Some(version), Some(asn), Some(hold_time_secs), Some(router_id), Some(octets)) =
            (reader.u8(), reader.u16(), reader.u16(), reader.ipv4(), reader.u8())
        else {
            return Err(OpenError::Unspecific.into());
        };
        if version != BGP_VERSION {
            let error = NotificationError::Open(OpenError::UnsupportedVersion);
            let supported = u16::from(BGP_VERSION).to_be_bytes();
            return Err(Notification::with_data(error, Bytes::copy_from_slice(&supported)));
        }
        let capabilities = decode_parameters(octets, reader)?;
        let wide_asn = capabilities.iter().find_map(|capability| match capability {
            Capability::FourOctetAs(asn) => Some(*asn),
            _ => None,
        });
        // RFC 7607: AS 0 is nobody's, in whichever of the two places.
        if asn == 0 || wide_asn == Some(0) {
            return Err(OpenError::BadPeerAs.into());
        }
        let asn = wide_asn.unwrap_or(u32::from(asn));
        if matches!(hold_time_secs, 1 | 2) {
            return Err(OpenError::UnacceptableHoldTime.into());
        }
        if router_id.is_unspecified() {
            return Err(OpenError::BadIdentifier.into());
        }
        Ok(Open { asn, hold_time_secs, router_id, capabilities })
    }

    /// The whole message. More than 253 octets of capabilities use the extended form (RFC 9072);
    /// capabilities that the size of an OPEN does not hold are left out.
    pub fn encode(&self) -> Bytes {
        let capabilities = Capability::encode_all(&self.capabilities);
        encode::message(MessageType::Open, |out| {
            out.put_u8(BGP_VERSION);
            out.put_u16(u16::try_from(self.asn).unwrap_or(AS_TRANS));
            out.put_u16(self.hold_time_secs);
            out.put_slice(&self.router_id.octets());
            let octets = capabilities.len();
            match u8::try_from(octets + 2) {
                _ if octets == 0 => out.put_u8(0),
                // 255 as the length of parameters announces the extended form.
                Ok(parameters @ ..=254) => {
                    out.put_slice(&[parameters, PARAMETER_CAPABILITIES, octets as u8]);
                }
                _ => {
                    out.put_slice(&[255, PARAMETER_EXTENDED_LENGTH]);
                    out.put_u16((octets + 3) as u16);
                    out.put_u8(PARAMETER_CAPABILITIES);
                    out.put_u16(octets as u16);
                }
            }
            out.put_slice(&capabilities);
        })
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
        if self.asn != peer_asn {
            return Err(OpenError::BadPeerAs.into());
        }
        if self.asn == local_asn && self.router_id == local_router_id {
            return Err(OpenError::BadIdentifier.into());
        }
        Ok(())
    }

    /// The families offered that this speaker carries. Without any multiprotocol capability that is
    /// IPv4 unicast (RFC 4760 section 8).
    pub fn families(&self) -> Families {
        let mut offered = self
            .capabilities
            .iter()
            .filter_map(|capability| match capability {
                Capability::Multiprotocol { afi, safi } => Some((*afi, *safi)),
                _ => None,
            })
            .peekable();
        if offered.peek().is_none() {
            return Families::NONE.with(Family::Ipv4Unicast);
        }
        offered.filter_map(|(afi, safi)| Family::from_afi_safi(afi, safi)).collect()
    }

    /// The graceful restart capability; the last one counts where there are several (RFC 4724
    /// section 3).
    pub fn graceful_restart(&self) -> Option<&GracefulRestart> {
        self.capabilities.iter().rev().find_map(|capability| match capability {
            Capability::GracefulRestart(restart) => Some(restart),
            _ => None,
        })
    }

    /// What the long-lived graceful restart capability says of `family`.
    pub fn long_lived(&self, family: Family) -> Option<LongLivedFamily> {
        let named = |f: &&LongLivedFamily| (f.afi, f.safi) == (family.afi(), family.safi());
        self.long_lived_families()?.iter().find(named).copied()
    }

    /// Whether routes that are stale for long may be sent (RFC 9494 section 4.3).
    pub fn knows_long_lived(&self) -> bool {
        self.long_lived_families().is_some()
    }

    /// The long-lived graceful restart capability, which says nothing without the other one (RFC 9494
    /// section 3).
    fn long_lived_families(&self) -> Option<&[LongLivedFamily]> {
        self.graceful_restart()?;
        self.capabilities.iter().rev().find_map(|capability| match capability {
            Capability::LongLivedGracefulRestart(families) => Some(families.as_slice()),
            _ => None,
        })
    }

    /// The families of which several paths to a prefix can be received (RFC 7911 section 4).
    pub fn receives_paths(&self) -> Families {
        self.add_path(|mode| mode != AddPathMode::Send)
    }

    /// The families of which several paths to a prefix can be sent (RFC 7911 section 4).
    pub fn sends_paths(&self) -> Families {
        self.add_path(|mode| mode != AddPathMode::Receive)
    }

    fn add_path(&self, wanted: impl Fn(AddPathMode) -> bool) -> Families {
        let entries = self.capabilities.iter().flat_map(|capability| match capability {
            Capability::AddPath(entries) => entries.as_slice(),
            _ => &[],
        });
        let wanted = entries.filter(|(.., mode)| wanted(*mode));
        wanted.filter_map(|(afi, safi, _)| Family::from_afi_safi(*afi, *safi)).collect()
    }

    /// Whether IPv4 unicast routes with IPv6 next hops are understood (RFC 8950).
    pub fn offers_extended_next_hop(&self) -> bool {
        let wanted = ExtendedNextHop { afi: 1, safi: 1, next_hop_afi: 2 };
        self.capabilities.iter().any(|capability| {
            matches!(capability, Capability::ExtendedNextHop(entries) if entries.contains(&wanted))
        })
    }

    /// Whether the 4-octet AS capability is there (RFC 6793).
    pub fn offers_four_octet_as(&self) -> bool {
        self.capabilities.iter().any(|c| matches!(c, Capability::FourOctetAs(_)))
    }

    /// Whether `capability` was offered, exactly so.
    pub fn offers(&self, capability: &Capability) -> bool {
        self.capabilities.contains(capability)
    }
}

impl GracefulRestart {
    /// What is said about `family`, if its routes are worth keeping.
    pub fn family(&self, family: Family) -> Option<GracefulRestartFamily> {
        let named = |f: &&GracefulRestartFamily| (f.afi, f.safi) == (family.afi(), family.safi());
        self.families.iter().find(named).copied()
    }
}

impl Capability {
    /// The multiprotocol capability of a family.
    pub const fn multiprotocol(family: Family) -> Capability {
        Capability::Multiprotocol { afi: family.afi(), safi: family.safi() }
    }

    /// The capability code (IANA, Capability Codes).
    pub const fn code(&self) -> u8 {
        match self {
            Capability::Multiprotocol { .. } => 1,
            Capability::RouteRefresh => 2,
            Capability::ExtendedNextHop(_) => 5,
            Capability::ExtendedMessage => 6,
            Capability::GracefulRestart(_) => 64,
            Capability::FourOctetAs(_) => 65,
            Capability::AddPath(_) => 69,
            Capability::EnhancedRouteRefresh => 70,
            Capability::LongLivedGracefulRestart(_) => 71,
            Capability::Unknown { code, .. } => *code,
        }
    }

    /// Reads a value. A malformed one of the two capabilities that change how UPDATEs are read is an
    /// error: the peer would believe that it counts.
    fn decode(code: u8, value: &[u8]) -> Result<Capability, Notification> {
        let known = match code {
            1 => match value {
                &[high, low, _, safi] => {
                    Some(Capability::Multiprotocol { afi: u16::from_be_bytes([high, low]), safi })
                }
                _ => return Err(OpenError::Unspecific.into()),
            },
            65 => match value.as_array::<4>() {
                Some(asn) => Some(Capability::FourOctetAs(u32::from_be_bytes(*asn))),
                None => return Err(OpenError::Unspecific.into()),
            },
            2 if value.is_empty() => Some(Capability::RouteRefresh),
            5 => decode_entries(value, |&[a, b, c, d, e, f]: &[u8; 6]| {
                let [afi, safi, next_hop_afi] = [[a, b], [c, d], [e, f]].map(u16::from_be_bytes);
                Some(ExtendedNextHop { afi, safi, next_hop_afi })
            })
            .map(Capability::ExtendedNextHop),
            6 if value.is_empty() => Some(Capability::ExtendedMessage),
            64 => decode_graceful_restart(value).map(Capability::GracefulRestart),
            69 => decode_entries(value, |&[a, b, safi, mode]: &[u8; 4]| {
                // RFC 7911 section 4: with any other value the capability is to be ignored.
                let mode = match mode {
                    1 => AddPathMode::Receive,
                    2 => AddPathMode::Send,
                    3 => AddPathMode::Both,
                    _ => return None,
                };
                Some((u16::from_be_bytes([a, b]), safi, mode))
            })
            .map(Capability::AddPath),
            70 if value.is_empty() => Some(Capability::EnhancedRouteRefresh),
            71 => decode_entries(value, |&[a, b, safi, flags, high, mid, low]: &[u8; 7]| {
                Some(LongLivedFamily {
                    afi: u16::from_be_bytes([a, b]),
                    safi,
                    forwarding: flags & 0x80 != 0,
                    stale_time_secs: u32::from_be_bytes([0, high, mid, low]),
                })
            })
            .map(Capability::LongLivedGracefulRestart),
            _ => None,
        };
        let unknown = || Capability::Unknown { code, value: Bytes::copy_from_slice(value) };
        Ok(known.unwrap_or_else(unknown))
    }

    /// Capabilities one after another; those that the size of an OPEN does not hold are left out.
    pub fn encode_all(capabilities: &[Capability]) -> Bytes {
        let mut out = BytesMut::new();
        for capability in capabilities {
            let start = out.len();
            if !capability.encode(&mut out) || out.len() > CAPABILITIES_OCTETS_MAX {
                out.truncate(start);
            }
        }
        out.freeze()
    }

    /// Appends code, length and value; `false` when the value is longer than a capability can be.
    fn encode(&self, out: &mut BytesMut) -> bool {
        out.put_slice(&[self.code(), 0]);
        let start = out.len();
        match self {
            Capability::Multiprotocol { afi, safi } => {
                out.put_u16(*afi);
                out.put_slice(&[0, *safi]);
            }
            Capability::RouteRefresh
            | Capability::ExtendedMessage
            | Capability::EnhancedRouteRefresh => {}
            Capability::ExtendedNextHop(entries) => {
                for entry in entries {
                    out.put_u16(entry.afi);
                    out.put_u16(entry.safi);
                    out.put_u16(entry.next_hop_afi);
                }
            }
            Capability::GracefulRestart(restart) => {
                let flags =
                    (u16::from(restart.restarting) << 15) | (u16::from(restart.notification) << 14);
                out.put_u16(flags | restart.restart_time_secs.min(RESTART_TIME_SECS_MAX));
                for family in &restart.families {
                    out.put_u16(family.afi);
                    out.put_slice(&[family.safi, u8::from(family.forwarding) << 7]);
                }
            }
            Capability::LongLivedGracefulRestart(families) => {
                for family in families {
                    out.put_u16(family.afi);
                    out.put_slice(&[family.safi, u8::from(family.forwarding) << 7]);
                    let secs = family.stale_time_secs.min(LONG_LIVED_STALE_SECS_MAX);
                    out.put_uint(secs.into(), 3);
                }
            }
            Capability::FourOctetAs(asn) => out.put_u32(*asn),
            Capability::AddPath(entries) => {
                for (afi, safi, mode) in entries {
                    out.put_u16(*afi);
                    out.put_slice(&[
                        *safi,
                        match mode {
                            AddPathMode::Receive => 1,
                            AddPathMode::Send => 2,
                            AddPathMode::Both => 3,
                        },
                    ]);
                }
            }
            Capability::Unknown { value, .. } => out.put_slice(value),
        }
        let octets = u8::try_from(out.len() - start);
        match (octets, out.get_mut(start - 1)) {
            (Ok(octets), Some(field)) => {
                *field = octets;
                true
            }
            _ => false,
        }
    }
}

/// Reads the optional parameters (RFC 5492 section 4), `octets` being the length in the OPEN.
fn decode_parameters(octets: u8, mut reader: Reader<'_>) -> Result<Vec<Capability>, Notification> {
    let malformed = || Notification::from(OpenError::Unspecific);
    // RFC 9072 section 2: the type says that lengths are extended, not the length in front of it.
    let extended = octets != 0 && reader.0.first() == Some(&PARAMETER_EXTENDED_LENGTH);
    let octets = if extended {
        reader.u8();
        usize::from(reader.u16().ok_or_else(malformed)?)
    } else {
        usize::from(octets)
    };
    if reader.0.len() != octets {
        return Err(malformed());
    }
    let mut capabilities = Vec::new();
    while let Some(parameter_type) = reader.u8() {
        let value = if extended { reader.counted_u16() } else { reader.counted_u8() };
        let mut value = Reader(value.ok_or_else(malformed)?);
        if parameter_type != PARAMETER_CAPABILITIES {
            return Err(OpenError::UnsupportedOptionalParameter.into());
        }
        while let Some(code) = value.u8() {
            let value = value.counted_u8().ok_or_else(malformed)?;
            capabilities.push(Capability::decode(code, value)?);
        }
    }
    Ok(capabilities)
}

fn decode_graceful_restart(value: &[u8]) -> Option<GracefulRestart> {
    let (&[high, low], families) = value.split_first_chunk::<2>()?;
    let head = u16::from_be_bytes([high, low]);
    Some(GracefulRestart {
        restarting: head & 0x8000 != 0,
        notification: head & 0x4000 != 0,
        restart_time_secs: head & RESTART_TIME_SECS_MAX,
        families: decode_entries(families, |&[a, b, safi, flags]: &[u8; 4]| {
            let afi = u16::from_be_bytes([a, b]);
            Some(GracefulRestartFamily { afi, safi, forwarding: flags & 0x80 != 0 })
        })?,
    })
}

/// Reads entries of `N` octets; `None` when octets are left over or one entry is not allowed.
fn decode_entries<const N: usize, T>(
    value: &[u8],
    decode: impl Fn(&[u8; N]) -> Option<T>,
) -> Option<Vec<T>> {
    let (entries, rest) = value.as_chunks::<N>();
    rest.is_empty().then(|| entries.iter().map(decode).collect())?
}

/// The version in an OPEN.
const BGP_VERSION: u8 = 4;
/// Optional parameter type of capabilities (RFC 5492).
const PARAMETER_CAPABILITIES: u8 = 2;
/// Optional parameter type that announces extended lengths (RFC 9072).
const PARAMETER_EXTENDED_LENGTH: u8 = 255;
/// What an OPEN of the largest size leaves to capabilities in the extended form.
const CAPABILITIES_OCTETS_MAX: usize = MESSAGE_OCTETS_MAX - 29 - 6;
/// The long-lived stale time has 24 bits.
const LONG_LIVED_STALE_SECS_MAX: u32 = 0x00ff_ffff;
/// The restart time has twelve bits.
const RESTART_TIME_SECS_MAX: u16 = 0x0fff;
