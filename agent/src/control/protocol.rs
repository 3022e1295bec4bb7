//! What goes over the control socket, as values.

use std::fmt;

use cairn_bgp::prefix::{Family, Prefix};
use cairn_bgp::status::PeerSnapshot;
use serde::{Deserialize, Serialize};

/// The version of the protocol. A daemon of another one says so.
pub const VERSION: u32 = 1;

/// Octets of a request, its line end included.
pub const REQUEST_OCTETS_MAX: usize = 4096;

/// Prefixes that one request may ask about: what fits into it for the longest of IPv6.
pub const HEARD_ASKED_MAX: usize = 64;

/// Octets of one line of an answer: far more than a prefix with a route from each of thousands of
/// peers needs.
pub const LINE_OCTETS_MAX: u64 = 64 * 1024 * 1024;

/// One request: a line of JSON.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Request {
    /// [`VERSION`].
    pub version: u32,
    /// What is asked for.
    pub ask: Ask,
}

/// What can be asked for. A peer is named by its whole name, by its last part or by its address.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub enum Ask {
    /// The [`crate::report::Report`].
    Status,
    /// A [`KernelRecord`](crate::kernel_command::record::KernelRecord) each: the routes and tunnels that are wanted in the kernel.
    Kernel,
    /// A [`Peer`] each.
    Peers {
        /// Only this one.
        #[serde(default)]
        peer: Option<String>,
    },
    /// A [`cairn_bgp::rib::RouteInfo`] each: what is in use.
    Routes {
        /// Only of this family.
        #[serde(default)]
        family: Option<Family>,
        /// Only this prefix and those inside it.
        #[serde(default)]
        within: Option<Prefix>,
        /// Only from this peer.
        #[serde(default)]
        peer: Option<String>,
    },
    /// A [`cairn_bgp::rib::RouteExplanation`].
    Route {
        /// A prefix, or an address for the longest prefix that holds it.
        destination: String,
    },
    /// A [`cairn_bgp::rib::HeardRoute`] each: what any peer has announced, used or not.
    Heard {
        /// Of these prefixes and parts of them, at most [`HEARD_ASKED_MAX`].
        prefixes: Vec<Prefix>,
    },
    /// A [`cairn_bgp::rib::ReceivedRoute`] each: what a peer has announced.
    AdjIn(PeerTable),
    /// A [`cairn_bgp::rib::AdvertisedRoute`] each: what a peer has been told.
    AdjOut(PeerTable),
    /// A [`cairn_bgp::status::ErrorRecord`] each, latest last.
    Errors {
        /// Whose.
        peer: String,
        /// With the octets of malformed messages.
        #[serde(default)]
        octets: bool,
    },
    /// A [`cairn_bgp::status::SessionRecord`] each, latest last.
    History {
        /// Whose.
        peer: String,
    },
    /// A [`cairn_bgp::status::WatchEvent`] each, until the client goes.
    Watch,
    /// A [`Done`].
    Reset {
        /// Whose session.
        peer: String,
        /// Without ending the session: routes again in this direction.
        #[serde(default)]
        soft: Option<Direction>,
    },
    /// A [`Done`].
    SetEnabled {
        /// Which peer.
        peer: String,
        /// Whether a session is wanted.
        enabled: bool,
    },
}

/// A table of one peer.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct PeerTable {
    /// Which peer.
    pub peer: String,
    /// Only of this family.
    #[serde(default)]
    pub family: Option<Family>,
    /// Only this prefix and those inside it.
    #[serde(default)]
    pub within: Option<Prefix>,
}

/// In which direction routes are exchanged again.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, clap::ValueEnum)]
#[serde(rename_all = "camelCase")]
pub enum Direction {
    /// From the peer: what it has sent is judged again, and it is asked to send it again.
    In,
    /// To the peer.
    Out,
}

/// One line of an answer.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub enum Line<T> {
    /// Some of what was asked for.
    Record(T),
    /// The last line: that was all.
    Done {
        /// How many records there were.
        records: u64,
    },
    /// The last line: it cannot be answered, or not to its end.
    Error(Refusal),
}

/// Why a request is not answered.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, thiserror::Error)]
#[serde(rename_all = "camelCase")]
pub struct Refusal {
    /// The reason and what to do.
    pub text: String,
    /// The peers that may have been meant.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub candidates: Vec<String>,
}

/// A peer and its session.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Peer {
    /// Its name.
    pub name: String,
    /// Its session.
    #[serde(flatten)]
    pub session: PeerSnapshot,
}

/// What was done to a peer.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Done {
    /// The peer's whole name.
    pub peer: String,
    /// What was done, as a sentence.
    pub done: String,
}

impl Refusal {
    /// A refusal with a text alone.
    pub fn new(text: impl Into<String>) -> Refusal {
        Refusal { text: text.into(), candidates: Vec::new() }
    }
}

impl fmt::Display for Refusal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.text)?;
        if !self.candidates.is_empty() {
            write!(f, ": {}", self.candidates.join(", "))?;
        }
        Ok(())
    }
}
