//! What is told of a session.

use serde::{Deserialize, Serialize};

use crate::config::SessionSpec;
use crate::wire::{Diagnostic, State};

/// A session at one moment.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct SessionStatus {
    /// What it was asked to be.
    #[serde(flatten)]
    pub spec: SessionSpec,
    /// When this was told, by the kernel's CLOCK_MONOTONIC, in milliseconds. A `cairn bfd` of before does not say it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub at_ms: Option<u64>,
    /// Its state.
    pub state: State,
    /// Why it came into this state.
    pub diagnostic: Diagnostic,
    /// For how long it has been in this state, in milliseconds.
    pub for_ms: u64,
    /// How often it has come Up. A session that is Down and never was Up says nothing about the path:
    /// the other side may have no BFD.
    pub ups: u64,
    /// For how long the path has been dead, in milliseconds: since the session left Up. Not while it is Up, nor
    /// before it first was, nor when an operator of either side ended it (RFC 5882 section 3.2).
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub lost_for_ms: Option<u64>,
    /// How long ago the path was known to be alive, in milliseconds: since a packet of the other side came to the Up
    /// session. Not before the session first was Up.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub alive_for_ms: Option<u64>,
    /// What the other side says of itself; the initial values while it is not heard.
    pub peer: PeerStatus,
    /// The interval in which packets go, in milliseconds before jitter; 0 while none go by themselves.
    pub send_interval_ms: u64,
    /// How long the other side may be silent, in milliseconds; 0 while it is not heard.
    pub detection_time_ms: u64,
    /// What keeps packets from going, and what to do.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub problem: Option<String>,
}

/// The kernel's CLOCK_MONOTONIC, in milliseconds: all processes of a machine count from the same moment.
#[cfg(feature = "daemon")]
pub fn now_ms() -> u64 {
    let now = rustix::time::clock_gettime(rustix::time::ClockId::Monotonic);
    let (secs, nanos) = (now.tv_sec.unsigned_abs(), now.tv_nsec.unsigned_abs());
    secs.saturating_mul(1_000).saturating_add(nanos / 1_000_000)
}

/// The other side of a session.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct PeerStatus {
    /// It is heard.
    pub heard: bool,
    /// Its state.
    pub state: State,
    /// Why it came into that state.
    pub diagnostic: Diagnostic,
    /// Its C bit, as it said last: its BFD does not share fate with its control plane (RFC 5882 section 4.3).
    pub control_plane_independent: bool,
}

/// How many packets were discarded since the start, by reason.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Discarded {
    /// They break the protocol (RFC 5880 section 6.8.6).
    pub malformed: u64,
    /// They came over more than one hop to a session of one (RFC 5881 section 5), or found no room beside such.
    pub ttl: u64,
    /// They belong to no session.
    pub unknown: u64,
    /// They are authenticated, which is not offered.
    pub authenticated: u64,
}
