//! What a speaker reports about itself, as plain values for status objects and command output.

use std::collections::BTreeMap;
use std::fmt;
use std::net::{IpAddr, SocketAddr};

use bytes::Bytes;
use serde::{Serialize, Serializer};

use crate::prefix::{Family, Prefix};
use crate::rib::RouteCounts;
use crate::session::{ErrorKind, SessionState};

/// A speaker at one moment.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct SpeakerSnapshot {
    /// The speaker's AS number.
    pub asn: u32,
    /// Its BGP identifier.
    pub router_id: String,
    /// Whether the start's deferral is over and the forwarding table may be swept.
    pub in_sync: bool,
    /// The peers by name.
    pub peers: BTreeMap<String, PeerSnapshot>,
    /// The listening sockets.
    pub listeners: Vec<ListenerSnapshot>,
    /// Prefixes with at least one route.
    pub prefixes: usize,
    /// Different sets of path attributes held.
    pub attribute_sets: usize,
}

/// One peer's session.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct PeerSnapshot {
    /// The peer's address.
    pub address: IpAddr,
    /// The AS number configured for the peer.
    pub remote_asn: u32,
    /// Where the session stands.
    pub state: SessionState,
    /// Since when it has been in or out of Established, in seconds since the Unix epoch.
    pub since_unix_secs: u64,
    /// How often it has been established.
    pub established_count: u64,
    /// An operator wants no session with this peer.
    pub disabled: bool,
    /// In how many seconds a session that rests comes back by itself.
    pub comes_back_in_secs: Option<u64>,
    /// What went wrong last, and what to do about it.
    pub last_error: Option<ErrorSnapshot>,
    /// How often something has gone wrong; the latest are in the error history.
    pub errors: u64,
    /// What was negotiated, while established.
    pub negotiated: Option<NegotiatedSnapshot>,
    /// Routes exchanged, by family.
    pub routes: BTreeMap<Family, RouteCounts>,
}

/// One entry of a peer's error history.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct ErrorRecord {
    /// When it happened last, in seconds since the Unix epoch.
    pub at_unix_secs: u64,
    /// When it happened first.
    pub first_unix_secs: u64,
    /// How often: attempts that fail in the same way are one entry.
    pub count: u64,
    /// Of what sort it is.
    pub kind: ErrorKind,
    /// What happened, and what to do about it.
    pub text: String,
    /// The first of the prefixes in a malformed message.
    pub prefixes: Vec<Prefix>,
    /// How many more there were.
    pub prefixes_left_out: usize,
    /// The size of the malformed message, in octets; 0 for errors without one.
    pub message_octets: usize,
    /// The malformed message with its header, in hexadecimal digits when it is shown.
    #[serde(skip_serializing_if = "MessageOctets::is_empty")]
    pub message: MessageOctets,
}

/// The octets of a message.
#[derive(Clone, Default, PartialEq, Eq)]
pub struct MessageOctets(pub Bytes);

impl MessageOctets {
    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }
}

impl fmt::Display for MessageOctets {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.iter().try_for_each(|octet| write!(f, "{octet:02x}"))
    }
}

impl fmt::Debug for MessageOctets {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "MessageOctets({self})")
    }
}

impl Serialize for MessageOctets {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

/// An error and its time.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct ErrorSnapshot {
    /// In seconds since the Unix epoch.
    pub at_unix_secs: u64,
    /// Of what sort it is.
    pub kind: ErrorKind,
    /// The error.
    pub text: String,
}

/// What both sides of a session agreed on.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct NegotiatedSnapshot {
    /// The peer's BGP identifier.
    pub remote_router_id: String,
    /// The own address of the session.
    pub local_address: IpAddr,
    /// The hold time in force, 0 for none.
    pub hold_time_secs: u16,
    /// The families in use.
    pub families: Vec<Family>,
    /// The peer's restart time, where graceful restart is negotiated.
    pub peer_restart_time_secs: Option<u16>,
    /// Whether routes can be asked for again.
    pub route_refresh: bool,
    /// Whether AS numbers take four octets.
    pub four_octet_as: bool,
}

/// One listening socket.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct ListenerSnapshot {
    /// Where it listens; with the port that the kernel chose when 0 was asked for.
    pub address: SocketAddr,
    /// Why it does not, and what to do about it.
    pub error: Option<String>,
}
