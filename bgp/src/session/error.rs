//! Why a session ended, in words that an operator can act on.

use std::fmt;
use std::time::Instant;

use crate::wire::{CeaseReason, Notification, NotificationError, OpenError};

use super::SessionConfig;

/// The latest thing that went wrong in a session.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LastError {
    /// When.
    pub at: Instant,
    /// What, and what to do about it.
    pub text: String,
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
    /// The peer is no longer configured.
    Removed,
    /// The new configuration needs a new session.
    ConfigurationChange,
    /// The peer sent more prefixes than it may; the session rests and comes back by itself.
    PrefixLimit {
        /// The configured limit.
        prefixes_max: u32,
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
            StopReason::KeepRoutes => None,
            StopReason::Removed => Some(Notification::cease(CeaseReason::PeerDeconfigured, None)),
            StopReason::ConfigurationChange => {
                Some(Notification::cease(CeaseReason::ConfigurationChange, None))
            }
            StopReason::PrefixLimit { .. } => {
                Some(Notification::cease(CeaseReason::MaximumPrefixes, None))
            }
        }
    }
}

impl fmt::Display for StopReason {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            StopReason::Shutdown { text } => write!(f, "shut down: {text}"),
            StopReason::KeepRoutes => f.write_str("speaker restarts"),
            StopReason::Removed => f.write_str("peer removed from the configuration"),
            StopReason::ConfigurationChange => f.write_str("configuration changed"),
            StopReason::PrefixLimit { prefixes_max } => write!(
                f,
                "the peer sent more than the {prefixes_max} prefixes that prefixesMax allows: \
                 raise it or filter at the peer; the session comes back in 300 s"
            ),
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
