//! The session of one peer: the finite state machine of RFC 4271 section 8, without IO.
//!
//! The caller owns sockets and clock. It tells a [`Session`] what happened and gets back what to do;
//! it calls again with [`Event::Tick`] when [`Session::next_deadline`] has passed. A session never
//! blocks, never looks at a clock and takes its randomness as a seed.
//!
//! ```text
//!            Start                          OPEN            KEEPALIVE
//!   ┌──────┐ ─────► ┌─────────────────────────────────────┐ ─────────► ┌─────────────┐
//!   │ Idle │        │ Opening                             │            │ Established │
//!   └──────┘ ◄───── │  outgoing: waiting │ connecting │ handshake      │             │
//!      ▲     Stop   │  incoming: none │ handshake         │ ◄───────── └─────────────┘
//!      │            └─────────────────────────────────────┘  lost: graceful restart decides
//!      └───────────────────────────── Stop ──────────────────────────────────┘
//! ```
//!
//! A handshake is OpenSent or OpenConfirm of the RFC; Connect and Active are the two ways in which
//! the outgoing side of `Opening` waits. Both directions may shake hands at once: collisions are
//! resolved by RFC 4271 section 6.8.
//!
//! Routes are not here: [`Action::Up`] and [`Action::Down`] tell the RIB what to keep, which is where
//! the receiving role of graceful restart (RFC 4724 section 4.2) is decided.

#![cfg_attr(
    not(test),
    deny(clippy::unwrap_used, clippy::expect_used, clippy::indexing_slicing, clippy::panic)
)]

mod error;
mod fsm;
mod handshake;
mod open;
mod stale;
mod state;
mod timers;

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use crate::config::{self, AddPath, PeerConfig, SpeakerConfig};
use crate::prefix::{Families, Family};
use crate::wire::{GracefulRestart, MessageType, Negotiated, Notification, Open, SessionSort};

pub use error::{DownReason, ErrorKind, LastError, StopReason};
pub use fsm::Session;
pub use timers::Jitter;

/// What one session needs to know of the configuration.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SessionConfig {
    /// The peer's address, for texts and for the tie-break of equal identifiers.
    pub address: IpAddr,
    /// The AS number that this side shows.
    pub local_asn: u32,
    /// The AS number that the peer must show.
    pub peer_asn: u32,
    /// The local BGP identifier.
    pub router_id: Ipv4Addr,
    /// Segments are signed (RFC 2385): without the same key the peer looks as if it were not there.
    pub has_password: bool,
    /// Never connect out.
    pub passive: bool,
    /// Families to offer.
    pub families: Families,
    /// Offer IPv4 routes with IPv6 next hops (RFC 8950).
    pub extended_next_hop: bool,
    /// Several paths to a prefix to offer (RFC 7911).
    pub add_path: AddPath,
    /// Hold time to offer, in seconds; 0 is none.
    pub hold_time_secs: u16,
    /// How long the peer may take nothing of what is sent, in seconds; at least twice the negotiated
    /// hold time is waited, and 0 waits forever (RFC 9687).
    pub send_hold_time_secs: u16,
    /// Wait between attempts to connect, in seconds, before jitter.
    pub connect_retry_secs: u16,
    /// Graceful restart to offer (RFC 4724); `None` leaves the capability out.
    pub graceful_restart: Option<config::GracefulRestart>,
}

/// What this speaker says about its own restart (RFC 4724 section 3).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Restart {
    /// Restart State bit: this speaker started a moment ago and waits for End-of-RIB.
    pub restarting: bool,
    /// Forwarding State bit of every family: routes survived in the kernel.
    pub forwarding_preserved: bool,
}

/// One TCP connection of a session; never used twice in a session's life.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct ConnectionId(pub u64);

/// Own addresses that may stand as a next hop in what goes over a connection, and where it leaves.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct LocalAddresses {
    /// The local IPv4 address of the session, or of its interface.
    pub ipv4: Option<Ipv4Addr>,
    /// The configured next hop, else the local IPv6 address of the session, else a global one of its
    /// interface. It is link-local where both ends of the session are.
    pub ipv6: Option<Ipv6Addr>,
    /// The index of the interface that the peer is next to, where that is known: link-local next hops of
    /// its routes are there.
    pub link: Option<u32>,
}

/// What happened.
#[derive(Clone, Debug)]
pub enum Event {
    /// Begin to connect and to accept.
    Start,
    /// End whatever there is.
    Stop(StopReason),
    /// The connection asked for by [`Action::Connect`] stands.
    Connected {
        /// The one of the action.
        connection: ConnectionId,
        /// Next hops that it allows.
        addresses: LocalAddresses,
    },
    /// The connection asked for by [`Action::Connect`] failed.
    ConnectFailed {
        /// The one of the action.
        connection: ConnectionId,
        /// The operating system's words.
        error: String,
    },
    /// The peer connected; the identifier comes from [`Session::next_connection`].
    Accepted {
        /// A fresh identifier.
        connection: ConnectionId,
        /// Next hops that it allows.
        addresses: LocalAddresses,
    },
    /// The connection is closed or broken.
    Lost {
        /// Which one.
        connection: ConnectionId,
        /// The operating system's words; `None` when the peer closed it.
        error: Option<String>,
    },
    /// A message arrived.
    Received {
        /// Where.
        connection: ConnectionId,
        /// What.
        message: Received,
    },
    /// Octets arrived that are no message, or an UPDATE that ends the session.
    Malformed {
        /// Where.
        connection: ConnectionId,
        /// What to tell the peer.
        notification: Notification,
    },
    /// The answer to [`Action::LookAtSending`].
    Sending {
        /// The one of the action.
        connection: ConnectionId,
        /// Octets have left since the last look, or none wait to be sent.
        moves: bool,
    },
    /// The link that a connection runs over has no carrier any more.
    CarrierLost {
        /// Which one.
        connection: ConnectionId,
    },
    /// A deadline may have passed.
    Tick,
}

/// A message as far as the state machine needs it. The content of an UPDATE does not pass through
/// it: the caller hands it to the RIB when [`Session::established`] names its connection.
#[derive(Clone, Debug)]
pub enum Received {
    /// OPEN.
    Open(Box<Open>),
    /// UPDATE, or several in a row.
    Update,
    /// NOTIFICATION.
    Notification(Notification),
    /// KEEPALIVE.
    Keepalive,
    /// ROUTE-REFRESH.
    RouteRefresh,
}

/// What to do.
#[derive(Clone, Debug)]
pub enum Action {
    /// Open a TCP connection to the peer; answer with [`Event::Connected`] or
    /// [`Event::ConnectFailed`].
    Connect(ConnectionId),
    /// Send a message behind what is queued already.
    Send(ConnectionId, Message),
    /// Close the connection once what is queued has left, or give up connecting. No event about it
    /// is wanted afterwards; one that is on its way is ignored.
    Close(ConnectionId),
    /// Close the connection at once, whatever is queued; else as [`Action::Close`].
    Abort(ConnectionId),
    /// Look whether the peer takes what is sent, and answer with [`Event::Sending`].
    LookAtSending(ConnectionId),
    /// The session is established.
    Up(Box<Established>),
    /// The session is over.
    Down {
        /// Why.
        reason: DownReason,
        /// Families whose routes become stale and stay (RFC 4724 section 4.2); all other routes of
        /// the peer go at once.
        keep: Families,
        /// Those of them whose routes stay that were stale before (RFC 8538 section 4.1).
        keep_older: Families,
    },
    /// Stale routes of these families have waited long enough and go.
    FlushStale(Families),
    /// Stale routes of these families have waited for the restart time, and are now a last resort
    /// (RFC 9494 section 4.2).
    LongLivedStale(Families),
}

/// A message to send.
#[derive(Clone, Debug)]
pub enum Message {
    /// OPEN. What the connection's reader needs to know as well, to decode what follows.
    Open(Box<Open>),
    /// KEEPALIVE.
    Keepalive,
    /// NOTIFICATION.
    Notification(Notification),
}

/// What two OPENs agreed on.
#[derive(Clone, Debug)]
pub struct Established {
    /// The connection that carries the session.
    pub connection: ConnectionId,
    /// What this side said.
    pub local: Open,
    /// What the peer said.
    pub peer: Open,
    /// What follows from both.
    pub negotiated: Negotiated,
    /// Own addresses for next hops.
    pub addresses: LocalAddresses,
    /// The connection runs over IPv6.
    pub over_ipv6: bool,
    /// The peer's graceful restart capability where both sides have it.
    pub graceful_restart: Option<GracefulRestart>,
    /// Both sides set the N bit: a NOTIFICATION other than a Hard Reset keeps routes (RFC 8538).
    pub notification: bool,
    /// How long routes of each family, in the order of [`Family::ALL`], stay after the restart time, in
    /// seconds; 0 is not at all (RFC 9494).
    pub long_lived_secs: [u32; 2],
    /// Families whose stale routes may stay until End-of-RIB: the peer kept forwarding.
    pub stale_kept: Families,
    /// Configured families that are not in use, each with the reason.
    pub left_out: Vec<(Family, LeftOut)>,
}

/// Why a configured family is not in use on a session.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, thiserror::Error, serde::Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum LeftOut {
    /// No own address could stand as next hop.
    #[error(
        "the session has no own address of this family for next hops: give its interface a global \
         address, or set nextHopIPv6 for IPv6 routes or extendedNextHop for IPv4 routes"
    )]
    NoNextHop,
    /// IPv4 routes would need IPv6 next hops, which the peer does not take (RFC 8950).
    #[error(
        "the session has no own IPv4 address, and the peer does not take IPv4 routes with IPv6 next \
         hops: give the interface an IPv4 address or set the peer up for RFC 8950"
    )]
    NoExtendedNextHop,
    /// The peer does not offer it.
    #[error("the peer does not offer it: correct families of the BGPPeer or the peer")]
    NotOffered,
}

/// Where a session stands, in the words of RFC 4271 section 8.2.2.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, serde::Serialize, serde::Deserialize)]
pub enum SessionState {
    /// Stopped.
    Idle,
    /// A TCP connection is being opened.
    Connect,
    /// Waiting for the peer, or for the next attempt.
    Active,
    /// Our OPEN is sent, the peer's is awaited.
    OpenSent,
    /// The peer's OPEN was accepted, its KEEPALIVE is awaited.
    OpenConfirm,
    /// Routes flow.
    Established,
}

impl SessionConfig {
    /// The part of a speaker's and a peer's configuration that a session needs.
    pub fn new(speaker: &SpeakerConfig, peer: &PeerConfig) -> SessionConfig {
        SessionConfig {
            address: peer.address,
            local_asn: peer.local_asn.unwrap_or(speaker.asn),
            peer_asn: peer.asn,
            router_id: speaker.router_id,
            has_password: peer.password.is_some(),
            passive: peer.passive,
            families: peer.families,
            extended_next_hop: peer.extended_next_hop,
            add_path: peer.add_path,
            hold_time_secs: peer.hold_time_secs,
            send_hold_time_secs: peer.send_hold_time_secs,
            connect_retry_secs: peer.connect_retry_secs,
            graceful_restart: peer.graceful_restart.clone(),
        }
    }

    /// Whether the peer is in another AS.
    pub fn sort(&self) -> SessionSort {
        if self.local_asn == self.peer_asn { SessionSort::Ibgp } else { SessionSort::Ebgp }
    }
}

impl Received {
    fn sort(&self) -> MessageType {
        match self {
            Received::Open(_) => MessageType::Open,
            Received::Update => MessageType::Update,
            Received::Notification(_) => MessageType::Notification,
            Received::Keepalive => MessageType::Keepalive,
            Received::RouteRefresh => MessageType::RouteRefresh,
        }
    }
}

impl LocalAddresses {
    /// Whether routes of `family` can carry a next hop of ours, where IPv4 routes may have an IPv6
    /// one (RFC 8950) or not.
    pub fn covers(self, family: Family, extended_next_hop: bool) -> bool {
        let ipv6 = self.ipv6.is_some();
        match family {
            Family::Ipv4Unicast => self.ipv4.is_some() || (extended_next_hop && ipv6),
            Family::Ipv6Unicast => ipv6,
        }
    }
}

impl Established {
    /// Whether own next hops of IPv4 routes are IPv6 addresses (RFC 8950): where it is agreed and the
    /// session has no IPv4 address, or runs over IPv6 as an interface without IPv4 would.
    pub fn ipv4_via_ipv6(&self) -> bool {
        let no_ipv4 = self.addresses.ipv4.is_none() || self.over_ipv6;
        self.negotiated.extended_next_hop && self.addresses.ipv6.is_some() && no_ipv4
    }

    /// What tells the peer that none of our routes stays: with the N bit only a Hard Reset does (RFC 8538
    /// section 3).
    pub(super) fn last_word(&self, notification: Notification) -> Notification {
        match self.notification {
            true => notification.into_hard_reset(),
            false => notification,
        }
    }

    /// The families of the session: those that both sides offered.
    pub fn families(&self) -> Families {
        self.negotiated.families
    }

    /// Whether the peer will mark the end of its initial routes (it supports RFC 4724 and does not
    /// wait for us in turn).
    pub fn promises_end_of_rib(&self) -> bool {
        self.graceful_restart.as_ref().is_some_and(|restart| !restart.restarting)
    }
}
