//! What a speaker reports about itself, as plain values for status objects and command output.

use std::borrow::Cow;
use std::collections::BTreeMap;
use std::fmt;
use std::net::{IpAddr, SocketAddr};

use bytes::Bytes;
use serde::de::Error as _;
use serde::{Deserialize, Deserializer, Serialize, Serializer};

use crate::prefix::{Family, Prefix};
use crate::rib::{BestChange, RouteCounts};
use crate::session::{ErrorKind, SessionState};

/// A speaker at one moment.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
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
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct PeerSnapshot {
    /// The peer's address; `::` while it is not known who is on its interface.
    pub address: IpAddr,
    /// The interface that the peer is known by.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub interface: Option<String>,
    /// What is doubtful about who is on its interface, and what to do.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub doubt: Option<String>,
    /// The AS number configured for the peer.
    pub remote_asn: u32,
    /// Where the session stands.
    pub state: SessionState,
    /// Since when it has been in or out of Established, in seconds since the Unix epoch.
    pub since_unix_secs: u64,
    /// For how long, in seconds of a clock that nobody sets.
    #[serde(default)]
    pub lasts_secs: u64,
    /// How often it has been established.
    pub established_count: u64,
    /// When and why the session went down last.
    pub last_down: Option<DownSnapshot>,
    /// An operator wants no session with this peer.
    pub disabled: bool,
    /// In how many seconds a session that rests comes back by itself.
    pub comes_back_in_secs: Option<u64>,
    /// What went wrong last, and what to do about it.
    pub last_error: Option<ErrorSnapshot>,
    /// How often something has gone wrong; the latest are in the error history.
    pub errors: u64,
    /// The last times that the session was established or ended, latest last.
    #[serde(default)]
    pub turns: Vec<SessionRecord>,
    /// What was negotiated, while established.
    pub negotiated: Option<NegotiatedSnapshot>,
    /// Routes exchanged, by family.
    pub routes: BTreeMap<Family, RouteCounts>,
}

impl PeerSnapshot {
    /// Where the peer is, as people write it: with its interface where it is known by that, which stands alone
    /// while it is not known who is there.
    pub fn place(&self) -> String {
        match &self.interface {
            None => self.address.to_string(),
            Some(interface) if self.address.is_unspecified() => interface.clone(),
            Some(interface) => format!("{}%{interface}", self.address),
        }
    }
}

/// One entry of a peer's error history.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
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
    #[serde(default, skip_serializing_if = "MessageOctets::is_empty")]
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

impl<'de> Deserialize<'de> for MessageOctets {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<MessageOctets, D::Error> {
        let text = String::deserialize(deserializer)?;
        let octet = |digits: &[u8]| {
            let digits = std::str::from_utf8(digits).ok()?;
            u8::from_str_radix(digits, 16).ok()
        };
        let octets: Option<Vec<u8>> = text.as_bytes().chunks(2).map(octet).collect();
        let octets = octets.filter(|octets| octets.len() * 2 == text.len());
        let octets = octets.ok_or_else(|| D::Error::custom("expected hexadecimal digits"))?;
        Ok(MessageOctets(octets.into()))
    }
}

/// An error and its time.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct ErrorSnapshot {
    /// In seconds since the Unix epoch.
    pub at_unix_secs: u64,
    /// Of what sort it is.
    pub kind: ErrorKind,
    /// The error.
    pub text: String,
}

/// Why a session went down, and when.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct DownSnapshot {
    /// In seconds since the Unix epoch.
    pub at_unix_secs: u64,
    /// The reason.
    pub reason: String,
}

/// A family that is configured and not in use.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct MissingFamily {
    /// The family.
    pub family: Family,
    /// Why, and what to do about it.
    pub reason: Cow<'static, str>,
}

/// What both sides of a session agreed on.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct NegotiatedSnapshot {
    /// The peer's BGP identifier.
    pub remote_router_id: String,
    /// The own address of the session.
    pub local_address: IpAddr,
    /// The hold time in force, 0 for none.
    pub hold_time_secs: u16,
    /// The families in use.
    pub families: Vec<Family>,
    /// The families that are configured and not in use.
    pub missing: Vec<MissingFamily>,
    /// IPv4 routes have IPv6 next hops of ours (RFC 8950).
    pub ipv4_via_ipv6: bool,
    /// The peer's restart time, where graceful restart is negotiated.
    pub peer_restart_time_secs: Option<u16>,
    /// Whether routes can be asked for again.
    pub route_refresh: bool,
    /// Whether beginning and end of what is asked for again are marked (RFC 7313).
    pub enhanced_route_refresh: bool,
    /// Whether AS numbers take four octets.
    pub four_octet_as: bool,
    /// Whether IPv4 routes may have IPv6 next hops (RFC 8950).
    pub extended_next_hop: bool,
    /// The families in which the peer sends several paths to a prefix (RFC 7911).
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub receives_paths: Vec<Family>,
    /// The families in which several paths to a prefix are sent to the peer (RFC 7911).
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub sends_paths: Vec<Family>,
    /// The largest message to the peer, in octets (RFC 8654).
    pub send_octets_max: usize,
    /// The largest message from the peer, in octets.
    pub receive_octets_max: usize,
}

/// One listening socket.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct ListenerSnapshot {
    /// Where it listens; with the port that the kernel chose when 0 was asked for.
    pub address: SocketAddr,
    /// Why it does not, and what to do about it.
    pub error: Option<String>,
}

/// What those who watch a speaker are told.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub enum WatchEvent {
    /// A session went from one state to another.
    Session(SessionChange),
    /// The best route to a prefix is another one, or there is none any more. Changes that come faster
    /// than they are told are told once, in their latest state.
    Route(BestChange),
    /// So much happened that some of it is not told.
    Missed {
        /// Events that were left out.
        events: u64,
    },
}

/// A session went from one state to another.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct SessionChange {
    /// When, in seconds since the Unix epoch.
    pub at_unix_secs: u64,
    /// The peer.
    pub peer: String,
    /// The state before.
    pub from: SessionState,
    /// The state now.
    pub to: SessionState,
    /// Why, when something went wrong.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub reason: Option<String>,
}

/// One entry of a session's history.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct SessionRecord {
    /// What happened, with when it did last.
    #[serde(flatten)]
    pub change: SessionChange,
    /// When it happened first, in seconds since the Unix epoch.
    pub first_unix_secs: u64,
    /// How often: attempts that go the same way are one entry.
    pub count: u64,
}
