//! Why a session ended, in words that an operator can act on.

use std::fmt;
use std::time::Instant;

use bytes::{BufMut, BytesMut};

use crate::prefix::Family;
use crate::wire::{CeaseReason, Notification, NotificationError, OpenError};

use super::SessionConfig;

/// The latest thing that went wrong in a session.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LastError {
    /// When.
    pub at: Instant,
    /// Of what sort it is.
    pub kind: ErrorKind,
    /// What, and what to do about it.
    pub text: String,
}

/// What sort of thing went wrong.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, serde::Serialize, serde::Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum ErrorKind {
    /// No TCP connection came about.
    ConnectFailed,
    /// The connection broke without a NOTIFICATION.
    ConnectionLost,
    /// This side ended the session with a NOTIFICATION.
    NotificationSent,
    /// The peer ended the session with a NOTIFICATION.
    NotificationReceived,
    /// A message could not be read, which ended the session.
    MalformedMessage,
    /// An attribute of an UPDATE was dropped, its routes are used (RFC 7606 section 2).
    AttributeDiscarded,
    /// The routes of an UPDATE count as withdrawn (RFC 7606 section 2).
    TreatedAsWithdraw,
    /// The peer announces more prefixes than it may.
    PrefixLimit,
    /// The peer took nothing for the send hold time (RFC 9687).
    SendHoldTimer,
    /// The link to the peer is down.
    CarrierLost,
    /// BFD says that the path to the peer is dead.
    PathDead,
    /// Segments with a wrong, a missing or an unexpected MD5 signature arrive (RFC 2385).
    Password,
    /// An operator wants no session with this peer.
    Disabled,
    /// Nobody is known at the other end of the peer's interface.
    NoNeighbour,
}

/// Why the caller ends a session.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum StopReason {
    /// The speaker ends; the text goes to the peer's operator (RFC 9003).
    Shutdown {
        /// At most 255 octets of it are sent.
        text: String,
    },
    /// The speaker ends and wants to be waited for: no NOTIFICATION (RFC 4724 section 4.1).
    KeepRoutes,
    /// An operator wants no session until it is enabled again (RFC 4486 subcode 2).
    Disabled {
        /// For the peer's operator (RFC 9003).
        text: String,
    },
    /// An operator wants a new session (RFC 4486 subcode 4).
    Reset {
        /// For the peer's operator (RFC 9003).
        text: String,
    },
    /// The peer is no longer configured.
    Removed,
    /// The peer is known by its interface, and nobody is known there any more, or another address.
    Neighbour {
        /// What is known, for the own operator.
        text: String,
    },
    /// The new configuration needs a new session.
    ConfigurationChange {
        /// It is a session with the same peer from the same speaker: routes may stay meanwhile.
        same_peer: bool,
    },
    /// BFD says that the path to the peer is dead (RFC 9384).
    PathDead {
        /// Why, for the own operator.
        text: String,
    },
    /// The peer sent more prefixes than it may (RFC 4271 section 6.7).
    PrefixLimit {
        /// The family.
        family: Family,
        /// The configured limit.
        prefixes_max: u32,
        /// When the session comes back by itself; `None` when an operator has to reset it.
        restart_after_secs: Option<u32>,
    },
}

/// Why a session went down.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum DownReason {
    /// The caller wanted it.
    Stopped(StopReason),
    /// The connection broke without a NOTIFICATION.
    Lost(Option<String>),
    /// The peer ended it.
    NotificationReceived(Notification),
    /// The peer broke the protocol.
    NotificationSent(Notification),
    /// The peer was silent for the hold time.
    HoldTimerExpired,
    /// The peer took nothing for the send hold time (RFC 9687).
    SendHoldTimerExpired,
    /// The link to the peer has no carrier.
    CarrierLost,
    /// The peer restarted and connected again (RFC 4724 section 5).
    Replaced,
}

impl StopReason {
    /// What is sent to the peer, if anything.
    pub(super) fn notification(&self) -> Option<Notification> {
        match self {
            StopReason::Shutdown { text } => {
                Some(Notification::cease(CeaseReason::AdministrativeShutdown, Some(text)))
            }
            StopReason::Disabled { text } => {
                Some(Notification::cease(CeaseReason::AdministrativeShutdown, Some(text)))
            }
            StopReason::Reset { text } => {
                Some(Notification::cease(CeaseReason::AdministrativeReset, Some(text)))
            }
            StopReason::KeepRoutes => None,
            StopReason::Removed => Some(Notification::cease(CeaseReason::PeerDeconfigured, None)),
            StopReason::ConfigurationChange { .. } | StopReason::Neighbour { .. } => {
                Some(Notification::cease(CeaseReason::ConfigurationChange, None))
            }
            StopReason::PathDead { .. } => Some(Notification::cease(CeaseReason::BfdDown, None)),
            StopReason::PrefixLimit { family, prefixes_max, .. } => {
                // RFC 4486 section 4: AFI, SAFI and the limit are the data.
                let mut data = BytesMut::with_capacity(7);
                data.put_u16(family.afi());
                data.put_u8(family.safi());
                data.put_u32(*prefixes_max);
                let error = NotificationError::Cease(CeaseReason::MaximumPrefixes);
                Some(Notification::with_data(error, data.freeze()))
            }
        }
    }
}

impl fmt::Display for StopReason {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            StopReason::Shutdown { text } => write!(f, "shut down: {text}"),
            StopReason::KeepRoutes => f.write_str("speaker restarts"),
            StopReason::Disabled { .. } => {
                f.write_str("disabled by an operator: `cairn bgp enable` brings it back")
            }
            StopReason::Reset { .. } => f.write_str("reset by an operator"),
            StopReason::Removed => f.write_str("peer removed from the configuration"),
            StopReason::Neighbour { text } => f.write_str(text),
            StopReason::ConfigurationChange { .. } => f.write_str("configuration changed"),
            StopReason::PathDead { text } => {
                write!(f, "BFD says that the path to the peer is dead: {text}")
            }
            StopReason::PrefixLimit { family, prefixes_max, restart_after_secs } => {
                write!(
                    f,
                    "the peer sent more than the {prefixes_max} prefixes of {family} that its \
                     limit allows: raise the limit or filter at the peer; the session comes back "
                )?;
                match restart_after_secs {
                    Some(secs) => write!(f, "{secs} s after this, or when an operator resets it"),
                    None => f.write_str("when an operator resets it (`cairn bgp reset`)"),
                }
            }
        }
    }
}

impl fmt::Display for DownReason {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            DownReason::Stopped(reason) => fmt::Display::fmt(reason, f),
            DownReason::Lost(None) => f.write_str("the peer closed the connection"),
            DownReason::Lost(Some(error)) => write!(f, "connection lost: {error}"),
            DownReason::NotificationReceived(n) => write!(f, "the peer ended the session: {n}"),
            DownReason::NotificationSent(n) => write!(f, "the peer broke the protocol: {n}"),
            DownReason::HoldTimerExpired => {
                f.write_str("nothing was heard from the peer for the hold time")
            }
            DownReason::SendHoldTimerExpired => {
                f.write_str("the peer took nothing of what was sent for the send hold time")
            }
            DownReason::CarrierLost => f.write_str("the link to the peer has lost its carrier"),
            DownReason::Replaced => f.write_str("the peer restarted and connected again"),
        }
    }
}

/// The text for a NOTIFICATION that the peer sent, with what to do where that is known.
pub(super) fn explain_received(config: &SessionConfig, notification: &Notification) -> String {
    match notification.error {
        NotificationError::Open(OpenError::BadPeerAs) => format!(
            "the peer refuses our AS {}: correct the AS that the peer has configured for us, or our own",
            config.local_asn
        ),
        NotificationError::Open(OpenError::BadIdentifier) => format!(
            "the peer refuses our BGP identifier {}: two speakers use it, give one another router ID",
            config.router_id
        ),
        NotificationError::Cease(CeaseReason::ConnectionRejected) => {
            "the peer rejects our connection: it has no peer configured at our address, or it is \
             shut down there"
                .to_owned()
        }
        _ => format!("the peer ended the session: {notification}"),
    }
}
