//! NOTIFICATION: why a session ends (RFC 4271 sections 4.5 and 6).

use std::fmt;

use bytes::{BufMut, Bytes, BytesMut};

use super::encode;
use super::frame::MessageType;

/// A NOTIFICATION message: received from a peer, or to be sent before the connection is closed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Notification {
    /// What is wrong.
    pub error: NotificationError,
    /// What belongs to the error, for example the attribute that is malformed.
    pub data: Bytes,
}

/// Error code and subcode.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum NotificationError {
    /// Code 1.
    Header(HeaderError),
    /// Code 2.
    Open(OpenError),
    /// Code 3.
    Update(UpdateError),
    /// Code 4.
    HoldTimerExpired,
    /// Code 5.
    Fsm(FsmError),
    /// Code 6.
    Cease(CeaseReason),
    /// Code 7 (RFC 7313).
    RouteRefresh(RouteRefreshError),
    /// Code 8 (RFC 9687).
    SendHoldTimerExpired,
    /// A code, or a subcode of code 4 or 8, that this speaker does not know.
    Unknown {
        /// The error code.
        code: u8,
        /// The error subcode.
        subcode: u8,
    },
}

macro_rules! subcodes {
    ($(#[$doc:meta])* $name:ident {
        $($(#[$variant_doc:meta])* $variant:ident = $code:literal, $text:literal;)*
    }) => {
        $(#[$doc])*
        #[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
        pub enum $name {
            $($(#[$variant_doc])* $variant,)*
            /// A subcode that this speaker does not know.
            Unknown(u8),
        }

        impl $name {
            /// The subcode octet.
            pub const fn subcode(self) -> u8 {
                match self {
                    $(Self::$variant => $code,)*
                    Self::Unknown(subcode) => subcode,
                }
            }

            const fn from_subcode(subcode: u8) -> Self {
                match subcode {
                    $($code => Self::$variant,)*
                    other => Self::Unknown(other),
                }
            }
        }

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                match self {
                    $(Self::$variant => f.write_str($text),)*
                    Self::Unknown(subcode) => write!(f, "unknown subcode {subcode}"),
                }
            }
        }
    };
}

subcodes! {
    /// Message Header Error subcodes (RFC 4271 section 6.1).
    HeaderError {
        /// Nothing more is said.
        Unspecific = 0, "unspecific";
        /// The marker is not all ones.
        ConnectionNotSynchronized = 1, "connection not synchronized";
        /// The length is out of bounds for the type.
        BadMessageLength = 2, "bad message length";
        /// The type is unknown.
        BadMessageType = 3, "bad message type";
    }
}

subcodes! {
    /// OPEN Message Error subcodes (RFC 4271 section 6.2).
    OpenError {
        /// Nothing more is said, or an optional parameter is malformed.
        Unspecific = 0, "unspecific";
        /// Not BGP-4.
        UnsupportedVersion = 1, "unsupported version number";
        /// The AS number is not the configured one.
        BadPeerAs = 2, "bad peer AS";
        /// The identifier is 0, or, inside an AS, that of the other side (RFC 6286).
        BadIdentifier = 3, "bad BGP identifier";
        /// An optional parameter other than capabilities.
        UnsupportedOptionalParameter = 4, "unsupported optional parameter";
        /// A hold time of 1 or 2 seconds.
        UnacceptableHoldTime = 6, "unacceptable hold time";
        /// A capability that is required is missing (RFC 5492).
        UnsupportedCapability = 7, "unsupported capability";
        /// Conflicting roles (RFC 9234).
        RoleMismatch = 11, "role mismatch";
    }
}

subcodes! {
    /// UPDATE Message Error subcodes (RFC 4271 section 6.3).
    UpdateError {
        /// Nothing more is said.
        Unspecific = 0, "unspecific";
        /// Lengths that contradict each other, or an attribute twice.
        MalformedAttributeList = 1, "malformed attribute list";
        /// A well-known attribute that is not recognized.
        UnrecognizedWellKnownAttribute = 2, "unrecognized well-known attribute";
        /// A mandatory attribute is missing.
        MissingWellKnownAttribute = 3, "missing well-known attribute";
        /// Flags that contradict the type.
        AttributeFlags = 4, "attribute flags error";
        /// A length that contradicts the type.
        AttributeLength = 5, "attribute length error";
        /// ORIGIN is not one of three values.
        InvalidOrigin = 6, "invalid ORIGIN attribute";
        /// NEXT_HOP is not a host address.
        InvalidNextHop = 8, "invalid NEXT_HOP attribute";
        /// An optional attribute is malformed.
        OptionalAttribute = 9, "optional attribute error";
        /// NLRI or withdrawn routes are malformed.
        InvalidNetworkField = 10, "invalid network field";
        /// AS_PATH is malformed.
        MalformedAsPath = 11, "malformed AS_PATH";
    }
}

subcodes! {
    /// Finite State Machine Error subcodes (RFC 6608).
    FsmError {
        /// Nothing more is said.
        Unspecific = 0, "unspecific";
        /// A message that may not come while an OPEN is awaited.
        UnexpectedInOpenSent = 1, "unexpected message in OpenSent";
        /// A message that may not come while the first KEEPALIVE is awaited.
        UnexpectedInOpenConfirm = 2, "unexpected message in OpenConfirm";
        /// A message that may not come any more.
        UnexpectedInEstablished = 3, "unexpected message in Established";
    }
}

subcodes! {
    /// Cease subcodes (RFC 4486, RFC 8538, RFC 9384).
    CeaseReason {
        /// Nothing more is said.
        Unspecific = 0, "unspecific";
        /// The prefix limit is exceeded.
        MaximumPrefixes = 1, "maximum number of prefixes reached";
        /// An operator shut the session down; may carry a text (RFC 9003).
        AdministrativeShutdown = 2, "administrative shutdown";
        /// The peer was removed from the configuration.
        PeerDeconfigured = 3, "peer de-configured";
        /// An operator reset the session; may carry a text (RFC 9003).
        AdministrativeReset = 4, "administrative reset";
        /// The connection is not wanted.
        ConnectionRejected = 5, "connection rejected";
        /// Another configuration change needs a new session.
        ConfigurationChange = 6, "other configuration change";
        /// The other one of two simultaneous connections goes on.
        ConnectionCollision = 7, "connection collision resolution";
        /// No memory or other resource is left.
        OutOfResources = 8, "out of resources";
        /// End the session without graceful restart; the inner NOTIFICATION is the data (RFC 8538).
        HardReset = 9, "hard reset";
        /// BFD says that the path is down (RFC 9384).
        BfdDown = 10, "BFD down";
    }
}

subcodes! {
    /// ROUTE-REFRESH Message Error subcodes (RFC 7313 section 5).
    RouteRefreshError {
        /// Nothing more is said.
        Unspecific = 0, "unspecific";
        /// The message is not 23 octets long.
        InvalidMessageLength = 1, "invalid message length";
    }
}

impl NotificationError {
    /// The error code octet.
    pub const fn code(self) -> u8 {
        match self {
            NotificationError::Header(_) => 1,
            NotificationError::Open(_) => 2,
            NotificationError::Update(_) => 3,
            NotificationError::HoldTimerExpired => 4,
            NotificationError::Fsm(_) => 5,
            NotificationError::Cease(_) => 6,
            NotificationError::RouteRefresh(_) => 7,
            NotificationError::SendHoldTimerExpired => 8,
            NotificationError::Unknown { code, .. } => code,
        }
    }

    /// The error subcode octet.
    pub const fn subcode(self) -> u8 {
        match self {
            NotificationError::Header(error) => error.subcode(),
            NotificationError::Open(error) => error.subcode(),
            NotificationError::Update(error) => error.subcode(),
            NotificationError::Fsm(error) => error.subcode(),
            NotificationError::Cease(reason) => reason.subcode(),
            NotificationError::RouteRefresh(error) => error.subcode(),
            NotificationError::HoldTimerExpired | NotificationError::SendHoldTimerExpired => 0,
            NotificationError::Unknown { subcode, .. } => subcode,
        }
    }

    /// The error of a code and a subcode as they stand in a message.
    pub const fn from_codes(code: u8, subcode: u8) -> NotificationError {
        match (code, subcode) {
            (1, _) => NotificationError::Header(HeaderError::from_subcode(subcode)),
            (2, _) => NotificationError::Open(OpenError::from_subcode(subcode)),
            (3, _) => NotificationError::Update(UpdateError::from_subcode(subcode)),
            (4, 0) => NotificationError::HoldTimerExpired,
            (5, _) => NotificationError::Fsm(FsmError::from_subcode(subcode)),
            (6, _) => NotificationError::Cease(CeaseReason::from_subcode(subcode)),
            (7, _) => NotificationError::RouteRefresh(RouteRefreshError::from_subcode(subcode)),
            (8, 0) => NotificationError::SendHoldTimerExpired,
            _ => NotificationError::Unknown { code, subcode },
        }
    }
}

impl fmt::Display for NotificationError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            NotificationError::Header(error) => write!(f, "message header error: {error}"),
            NotificationError::Open(error) => write!(f, "OPEN message error: {error}"),
            NotificationError::Update(error) => write!(f, "UPDATE message error: {error}"),
            NotificationError::HoldTimerExpired => f.write_str("hold timer expired"),
            NotificationError::Fsm(error) => write!(f, "finite state machine error: {error}"),
            NotificationError::Cease(reason) => write!(f, "cease: {reason}"),
            NotificationError::RouteRefresh(error) => write!(f, "ROUTE-REFRESH error: {error}"),
            NotificationError::SendHoldTimerExpired => f.write_str("send hold timer expired"),
            NotificationError::Unknown { code, subcode } => {
                write!(f, "unknown error code {code} subcode {subcode}")
            }
        }
    }
}

impl Notification {
    /// A notification without data.
    pub const fn new(error: NotificationError) -> Notification {
        Notification { error, data: Bytes::new() }
    }

    /// A notification with data.
    pub const fn with_data(error: NotificationError, data: Bytes) -> Notification {
        Notification { error, data }
    }

    /// A Cease, with a text for the other side's operator where the reason may carry one (RFC 9003):
    /// on administrative shutdown and reset. The text is cut at a character boundary to 255 octets.
    pub fn cease(reason: CeaseReason, text: Option<&str>) -> Notification {
        let error = NotificationError::Cease(reason);
        let Some(text) = text.filter(|_| reason.carries_text()) else {
            return Notification::new(error);
        };
        let mut end = text.len().min(SHUTDOWN_TEXT_OCTETS_MAX);
        while !text.is_char_boundary(end) {
            end -= 1;
        }
        let text = text.get(..end).unwrap_or_default();
        let mut data = BytesMut::with_capacity(1 + text.len());
        data.put_u8(text.len() as u8);
        data.put_slice(text.as_bytes());
        Notification::with_data(error, data.freeze())
    }

    /// A message that may not come in this state; its type is the data (RFC 6608 section 4).
    pub fn unexpected(error: FsmError, message: MessageType) -> Notification {
        let data = Bytes::copy_from_slice(&[message.code()]);
        Notification::with_data(NotificationError::Fsm(error), data)
    }

    /// This notification wrapped into a Hard Reset: the receiver may not keep routes (RFC 8538).
    #[must_use]
    pub fn into_hard_reset(self) -> Notification {
        let mut data = BytesMut::with_capacity(2 + self.data.len());
        data.put_u8(self.error.code());
        data.put_u8(self.error.subcode());
        data.put_slice(&self.data);
        let error = NotificationError::Cease(CeaseReason::HardReset);
        Notification::with_data(error, data.freeze())
    }

    /// The notification that a Hard Reset wraps (RFC 8538 section 3).
    pub fn hard_reset_cause(&self) -> Option<Notification> {
        if self.error != NotificationError::Cease(CeaseReason::HardReset) {
            return None;
        }
        Notification::decode(&self.data)
    }

    /// What the other side's operator says about a shutdown or reset (RFC 9003), with control
    /// characters and broken UTF-8 replaced: it goes into logs.
    pub fn shutdown_text(&self) -> Option<String> {
        let NotificationError::Cease(reason) = self.error else { return None };
        if !reason.carries_text() {
            return None;
        }
        let (length, rest) = self.data.split_first()?;
        let text = rest.get(..usize::from(*length)).filter(|text| !text.is_empty())?;
        let text = String::from_utf8_lossy(text);
        Some(text.chars().map(|c| if c.is_control() { '\u{fffd}' } else { c }).collect())
    }

    /// Reads the body of a NOTIFICATION; `None` when it is too short to hold a code and a subcode
    /// (nothing may be sent back about a bad NOTIFICATION, RFC 4271 section 6.4).
    pub fn decode(body: &[u8]) -> Option<Notification> {
        let (&[code, subcode], data) = body.split_first_chunk::<2>()?;
        let error = NotificationError::from_codes(code, subcode);
        Some(Notification::with_data(error, Bytes::copy_from_slice(data)))
    }

    /// The whole message. Data that would not fit the smallest message limit is cut off.
    pub fn encode(&self) -> Bytes {
        encode::message(MessageType::Notification, |out| {
            out.put_u8(self.error.code());
            out.put_u8(self.error.subcode());
            out.put_slice(self.data.get(..DATA_OCTETS_MAX).unwrap_or(&self.data));
        })
    }
}

impl CeaseReason {
    const fn carries_text(self) -> bool {
        matches!(self, CeaseReason::AdministrativeShutdown | CeaseReason::AdministrativeReset)
    }
}

impl fmt::Display for Notification {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if let Some(cause) = self.hard_reset_cause() {
            // The cause of a cause is not followed: a peer could nest them by the thousand.
            return write!(f, "{}: {}", self.error, cause.error);
        }
        fmt::Display::fmt(&self.error, f)?;
        if let Some(text) = self.shutdown_text() {
            return write!(f, ": \"{text}\"");
        }
        if !self.data.is_empty() {
            let shown = self.data.get(..DATA_OCTETS_SHOWN).unwrap_or(&self.data);
            f.write_str(" (data")?;
            shown.iter().try_for_each(|octet| write!(f, " {octet:02x}"))?;
            f.write_str(if shown.len() < self.data.len() { " ...)" } else { ")" })?;
        }
        Ok(())
    }
}

impl std::error::Error for Notification {}

impl From<NotificationError> for Notification {
    fn from(error: NotificationError) -> Notification {
        Notification::new(error)
    }
}

macro_rules! from_subcode {
    ($($error:ident => $variant:ident,)*) => {
        $(impl From<$error> for Notification {
            fn from(error: $error) -> Notification {
                Notification::new(NotificationError::$variant(error))
            }
        })*
    };
}

from_subcode! {
    HeaderError => Header,
    OpenError => Open,
    UpdateError => Update,
    FsmError => Fsm,
    CeaseReason => Cease,
    RouteRefreshError => RouteRefresh,
}

/// Octets of the text of a shutdown communication (RFC 9003 section 2).
const SHUTDOWN_TEXT_OCTETS_MAX: usize = 255;
/// A NOTIFICATION never needs the extended message size.
const DATA_OCTETS_MAX: usize = 4096 - 21;
/// How much data is worth showing in a log line.
const DATA_OCTETS_SHOWN: usize = 16;
