//! What a speaker reports about itself, as plain values for status objects and command output.

use std::collections::BTreeMap;
use std::net::{IpAddr, SocketAddr};

use serde::Serialize;

use crate::prefix::Family;
use crate::rib::RouteCounts;
use crate::session::SessionState;

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
    /// What went wrong last, and what to do about it.
    pub last_error: Option<ErrorSnapshot>,
    /// What was negotiated, while established.
    pub negotiated: Option<NegotiatedSnapshot>,
    /// Routes exchanged, by family.
    pub routes: BTreeMap<Family, RouteCounts>,
}

/// An error and its time.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct ErrorSnapshot {
    /// In seconds since the Unix epoch.
    pub at_unix_secs: u64,
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
