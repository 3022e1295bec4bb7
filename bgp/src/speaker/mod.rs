//! The speaker: sessions and RIB on real sockets, driven by tokio.
//!
//! It holds no rules: what to do comes from [`crate::session`] and [`crate::rib`]. One task, the
//! owner, has all the state; around it are tasks that wait for the kernel. All run on the runtime of
//! the caller, for which one thread is enough; on several, decoding and writing run beside the owner.
//!
//! ```text
//!              accept task ─┐                                   ┌─► SpeakerHandle: snapshot, routes
//!   connect task, a try ────┤                                   │
//!                           ▼ Input (bounded)                   │
//!  socket ─► reader task ─────► owner: Sessions + Rib ──────────┼─► FibFeed (bounded)
//!    ▲       frames, decode     │  handle ► actions             │
//!    │                          │  update ► mark ► flush        └─► changes(): a counter to watch
//!    └────── writer task ◄──────┘ chunks, up to WRITE_QUEUE_OCTETS_MAX
//!            next hop patched     ▲
//!               └── room again ───┘
//! ```
//!
//! Every queue is bounded: a reader waits when the owner is busy, and TCP makes the peer wait; a
//! writer's queue is bounded in octets, and what does not fit stays in the RIB as a set of prefixes;
//! the forwarding feed is filled when there is room, with the latest state.

#![cfg_attr(
    not(test),
    deny(clippy::unwrap_used, clippy::expect_used, clippy::indexing_slicing, clippy::panic)
)]

mod actions;
mod announcements;
mod connection;
mod dynamic;
mod errors;
mod history;
mod inputs;
mod interface;
mod listener;
mod md5;
mod operator;
mod owner;
mod peer;
mod reconfigure;
mod socket;
mod tables;
mod unnumbered;

use std::collections::{BTreeMap, BTreeSet};
use std::net::{Ipv4Addr, SocketAddr};
use std::time::Duration;

use tokio::sync::{mpsc, oneshot, watch};

use crate::config::{PeerName, SpeakerConfig};
use crate::rib::{FibChange, RouteFilter, RouteInfo};
use crate::status::SpeakerSnapshot;

use operator::Operation;
use owner::Owner;
use tables::Question;

pub use announcements::{Announcement, Delivery, Reception};
pub use operator::{DeadPath, NoSuchPeer, Reset};
pub use tables::{TableReader, WatchFeed};
pub use unnumbered::{Located, Neighbour};

/// Starts speakers.
#[derive(Debug)]
pub enum Speaker {}

/// What a speaker says about its former life.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct SpeakerOptions {
    /// The kernel still has the routes of a former life: the Forwarding State bit of RFC 4724.
    pub forwarding_preserved: bool,
    /// There was a former life a moment ago: the Restart State bit of RFC 4724. Learned routes are
    /// then announced only after all peers have sent theirs, or after `selection_deferral_secs`.
    pub restarting: bool,
    /// Peers that an operator has disabled: there is no session until they are enabled.
    pub disabled: BTreeSet<PeerName>,
}

/// A running speaker. When the last handle is dropped, the speaker ends its sessions with Cease.
#[derive(Clone, Debug)]
pub struct SpeakerHandle {
    config: watch::Sender<SpeakerConfig>,
    commands: mpsc::Sender<Command>,
    changes: watch::Receiver<u64>,
}

/// Changes of the forwarding table, in the latest state of each prefix. Who does not want them drops
/// the feed, and nothing is noted for it any more.
#[derive(Debug)]
pub struct FibFeed {
    batches: mpsc::Receiver<FibBatch>,
}

/// Some changes of the forwarding table.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct FibBatch {
    /// Prefixes and their new routes.
    pub changes: Vec<FibChange>,
    /// All that is known has been told with this batch, and the wait for the peers' initial routes is
    /// over: what the kernel still holds besides may be swept.
    pub in_sync: bool,
}

/// How a speaker ends.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Shutdown {
    /// Tell all peers; they drop the routes at once.
    Cease {
        /// For the peers' operators (RFC 9003).
        text: String,
    },
    /// Close the connections without a word: peers with graceful restart keep the routes.
    KeepRoutes,
}

/// Why a speaker cannot be started.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Error {
    /// No runtime to run on.
    #[error("a speaker can only be started on a tokio runtime")]
    NoRuntime,
    /// A configuration that cannot work.
    #[error("{0}")]
    Config(#[from] ConfigError),
    /// A peer that is not configured.
    #[error("{0}")]
    NoSuchPeer(#[from] NoSuchPeer),
    /// The speaker has ended.
    #[error("the speaker has ended")]
    Ended,
}

/// A configuration that cannot work.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ConfigError {
    /// RFC 6286 section 2.1.
    #[error("the router ID is 0.0.0.0: give the speaker a router ID")]
    ZeroRouterId,
    /// RFC 7607.
    #[error("AS number 0 is reserved: give the speaker an AS number")]
    ZeroAsn,
    /// RFC 4271 section 4.2.
    #[error("peer {peer}: a hold time of {secs} s is not allowed: use 0 or at least 3")]
    HoldTime {
        /// The peer's name.
        peer: String,
        /// The hold time.
        secs: u16,
    },
    /// The kernel wants the range's signatures from all its addresses.
    #[error(
        "peer {peer} has no password, and {range}, a range that its address lies in, has one: give \
         the peer the same, or take its address out of the range"
    )]
    NeedsPassword {
        /// The peer's name.
        peer: String,
        /// The range's name.
        range: String,
    },
    /// Two ranges of the same addresses.
    #[error("the ranges {first} and {second} have the same addresses")]
    SameRange {
        /// A range's name.
        first: String,
        /// Another range's name.
        second: String,
    },
    /// Incoming connections are told apart by their address.
    #[error("peers {first} and {second} have the same address {address}")]
    SameAddress {
        /// A peer's name.
        first: String,
        /// Another peer's name.
        second: String,
        /// Their address.
        address: std::net::IpAddr,
    },
    /// A link has one other end.
    #[error("peers {first} and {second} are on the same interface {interface}")]
    SameInterface {
        /// A peer's name.
        first: String,
        /// Another peer's name.
        second: String,
        /// Their interface.
        interface: String,
    },
    /// The kernel knows a key by an address, whatever the interface.
    #[error(
        "peer {peer} has a password and is known by its interface: TCP MD5 signatures need an address \
         that is configured"
    )]
    PasswordOnInterface {
        /// The peer's name.
        peer: String,
    },
}

pub(crate) enum Command {
    Snapshot(oneshot::Sender<SpeakerSnapshot>),
    Routes(RouteFilter, oneshot::Sender<Vec<RouteInfo>>),
    Operate(Operation),
    Ask(Question),
    Shutdown(Shutdown, oneshot::Sender<()>),
}

impl Speaker {
    /// Starts a speaker on the current tokio runtime. Sockets that cannot be opened are no error:
    /// they are reported by [`SpeakerHandle::snapshot`] and tried again.
    ///
    /// # Errors
    /// There is no runtime, or `config` cannot work.
    pub fn start(
        config: SpeakerConfig,
        options: SpeakerOptions,
    ) -> Result<(SpeakerHandle, FibFeed), Error> {
        let runtime = tokio::runtime::Handle::try_current().map_err(|_| Error::NoRuntime)?;
        check(&config)?;
        let (config_sender, config) = watch::channel(config);
        let (command_sender, commands) = mpsc::channel(COMMANDS_MAX);
        let (changes_sender, changes) = watch::channel(0);
        let (fib, batches) = mpsc::channel(FIB_BATCHES_MAX);
        let owner = Owner::new(config, commands, changes_sender, fib, options);
        runtime.spawn(owner.run());
        let handle = SpeakerHandle { config: config_sender, commands: command_sender, changes };
        Ok((handle, FibFeed { batches }))
    }
}

impl SpeakerHandle {
    /// Replaces the wanted state. Only what differs is touched; see
    /// [`crate::config::PeerConfig::needs_reset`]. Of values that follow each other faster than they
    /// are taken up, the last one counts.
    ///
    /// # Errors
    /// `config` cannot work; the former one stays in force.
    pub fn apply(&self, config: SpeakerConfig) -> Result<(), Error> {
        check(&config)?;
        self.config.send(config).map_err(|_| Error::Ended)
    }

    /// The state of all sessions and listeners, with what was applied before taken up.
    ///
    /// # Errors
    /// The speaker has ended.
    pub async fn snapshot(&self) -> Result<SpeakerSnapshot, Error> {
        self.ask(Command::Snapshot).await
    }

    /// The routes that `filter` names.
    ///
    /// # Errors
    /// The speaker has ended.
    pub async fn routes(&self, filter: RouteFilter) -> Result<Vec<RouteInfo>, Error> {
        self.ask(|answer| Command::Routes(filter, answer)).await
    }

    /// Ends the speaker and waits until its peers have been told, or for a few seconds.
    pub async fn shutdown(&self, how: Shutdown) {
        // A speaker that has ended already is what is wanted.
        let _ = self.ask(|answer| Command::Shutdown(how, answer)).await;
    }

    /// A counter that grows with every change of a session's or listener's state.
    pub fn changes(&self) -> watch::Receiver<u64> {
        self.changes.clone()
    }

    async fn ask<T>(
        &self,
        command: impl FnOnce(oneshot::Sender<T>) -> Command,
    ) -> Result<T, Error> {
        let (answer, answered) = oneshot::channel();
        self.commands.send(command(answer)).await.map_err(|_| Error::Ended)?;
        answered.await.map_err(|_| Error::Ended)
    }
}

impl FibFeed {
    /// A feed of what the other end of `batches` tells, in place of a speaker: to try out its reader.
    pub fn of(batches: mpsc::Receiver<FibBatch>) -> FibFeed {
        FibFeed { batches }
    }

    /// The next changes; `None` when the speaker has ended.
    pub async fn recv(&mut self) -> Option<FibBatch> {
        self.batches.recv().await
    }
}

/// Refuses what cannot work whatever the network does.
fn check(config: &SpeakerConfig) -> Result<(), ConfigError> {
    if config.router_id == Ipv4Addr::UNSPECIFIED {
        return Err(ConfigError::ZeroRouterId);
    }
    if config.asn == 0 {
        return Err(ConfigError::ZeroAsn);
    }
    let mut addresses = BTreeMap::new();
    let templates = config.ranges.iter().map(|(name, range)| (name, &range.template));
    for (name, peer) in config.peers.iter().chain(templates) {
        if matches!(peer.hold_time_secs, 1 | 2) {
            let secs = peer.hold_time_secs;
            return Err(ConfigError::HoldTime { peer: name.to_string(), secs });
        }
    }
    let mut ranges = BTreeMap::new();
    for (name, range) in &config.ranges {
        let key = (range.addresses, range.template.source_address);
        if let Some(first) = ranges.insert(key, name) {
            let (first, second) = (first.to_string(), name.to_string());
            return Err(ConfigError::SameRange { first, second });
        }
        let unsigned = config.peers.iter().find(|(_, peer)| {
            range.template.password.is_some()
                && peer.password.is_none()
                && peer.interface.is_none()
                && range.addresses.contains(ipnet::IpNet::from(peer.address).into())
        });
        if let Some((peer, _)) = unsigned {
            let (peer, range) = (peer.to_string(), name.to_string());
            return Err(ConfigError::NeedsPassword { peer, range });
        }
    }
    let mut interfaces = BTreeMap::new();
    for (name, peer) in &config.peers {
        if let Some(interface) = &peer.interface {
            if peer.password.is_some() {
                return Err(ConfigError::PasswordOnInterface { peer: name.to_string() });
            }
            if let Some(first) = interfaces.insert(interface, name) {
                return Err(ConfigError::SameInterface {
                    first: first.to_string(),
                    second: name.to_string(),
                    interface: interface.to_string(),
                });
            }
            continue;
        }
        let key = (peer.address, peer.source_address);
        if let Some(first) = addresses.insert(key, name) {
            return Err(ConfigError::SameAddress {
                first: first.to_string(),
                second: name.to_string(),
                address: peer.address,
            });
        }
    }
    Ok(())
}

/// Ports and addresses of one connection.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Endpoints {
    pub(crate) local: SocketAddr,
    pub(crate) remote: SocketAddr,
}

/// Questions that may wait for the owner.
const COMMANDS_MAX: usize = 64;
/// Batches that may wait for the kernel side.
const FIB_BATCHES_MAX: usize = 4;
/// Changes in one of them.
pub(crate) const FIB_BATCH_CHANGES_MAX: usize = 4096;
/// Inputs that may wait for the owner. One of them can be 16 KiB that were read, which are some
/// 100 KiB when decoded; more than a turn takes in would not make the owner faster.
pub(crate) const INPUTS_MAX: usize = 32;
/// Octets that wait in a writer's queue before the RIB holds back. The batch that crosses the mark
/// still goes in. The messages are shared by all peers of a group, and a peer that lags costs an
/// encoding of its own: with fifty peers that exchange 4,000 routes each, 128 KiB cost five times the
/// CPU time of 2 MiB, and more memory.
pub(crate) const WRITE_QUEUE_OCTETS_MAX: usize = 2 * 1024 * 1024;
/// The same for a peer that lags, whose messages are its alone.
pub(crate) const CATCH_UP_QUEUE_OCTETS_MAX: usize = 256 * 1024;
/// How long a listener that could not be opened rests.
pub(crate) const LISTEN_RETRY: Duration = Duration::from_secs(5);
/// How long a connection may take to say its last words.
pub(crate) const FAREWELL_WAIT: Duration = Duration::from_secs(2);
