//! Bidirectional Forwarding Detection (RFC 5880), for single hops (RFC 5881) and multihop paths
//! (RFC 5883): notices within a fraction of a second that a path to a neighbour is dead.
//!
//! ```text
//!  clients ──wanted sessions──► daemon ──packets, now──► Sessions ──► Session   (pure core)
//!          ◄──states, changes──        ◄──packets to send, changes, next deadline──
//! ```
//!
//! The core ([`wire`], [`session`], [`sessions`]) consists of functions of their arguments: the caller
//! passes `now`, octets and randomness, and gets back packets and the next deadline. It has no sockets,
//! no clock and no threads, and no octets from the network make it panic or grow. The feature `daemon`
//! adds what drives it: the process `cairn bfd`, and how a client asks that for sessions.

pub mod config;
#[cfg(feature = "daemon")]
pub mod control;
#[cfg(feature = "daemon")]
pub mod daemon;
pub mod session;
pub mod sessions;
pub mod status;
pub mod wire;
