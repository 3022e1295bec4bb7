//! One peer at runtime: its session, its connections and what to report about them.

use std::collections::{BTreeMap, BTreeSet};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use hashbrown::HashMap;
use tokio::task::JoinHandle;

use crate::config::{PeerConfig, PeerName};
use crate::prefix::Family;
use crate::rib::{PeerId, Rib};
use crate::session::{
    ConnectionId, DownReason, ErrorKind, Established, Session, SessionState, StopReason,
};
use crate::status::{DownSnapshot, ErrorSnapshot, MissingFamily, NegotiatedSnapshot, PeerSnapshot};
use crate::stream::FaultyMessage;

use super::Endpoints;
use super::connection::Connection;
use super::errors::ErrorHistory;
use super::history::SessionHistory;
use super::interface::scope_of;

/// A peer with everything that runs for it.
#[derive(Debug)]
pub(super) struct Peer {
    pub(super) name: PeerName,
    pub(super) config: PeerConfig,
    pub(super) session: Session,
    pub(super) rib_id: PeerId,
    pub(super) connections: HashMap<ConnectionId, Connection, foldhash::fast::FixedState>,
    pub(super) connecting: HashMap<ConnectionId, JoinHandle<()>, foldhash::fast::FixedState>,
    pub(super) since: SystemTime,
    /// The same, by a clock that nobody sets.
    pub(super) changed: Instant,
    /// When the last session was established, by the same clock.
    pub(super) up_at: Option<Instant>,
    /// When and why the session went down last.
    pub(super) last_down: Option<(SystemTime, DownReason)>,
    pub(super) established_count: u64,
    pub(super) warnings: Throttle,
    /// The interface that the last session's connection left by, when the peer is next to it.
    pub(super) link: Option<u32>,
    /// Connections of the peer that are looked at.
    pub(super) accepts: Allowance,
    /// Warnings about routes that are too large for this peer and those alike.
    pub(super) unsayable: Throttle,
    /// Beginnings of refreshes that are followed up.
    pub(super) refreshes: BTreeMap<Family, Throttle>,
    pub(super) errors: ErrorHistory,
    pub(super) history: SessionHistory,
    /// An operator wants no session.
    pub(super) disabled: bool,
    /// What is doubtful about the place of one that is known by its interface.
    pub(super) doubt: Option<String>,
    /// The range that let it in, when it is not named.
    pub(super) range: Option<PeerName>,
    /// What the log has heard of attempts since the last session.
    pub(super) refusals: BTreeSet<String>,
}

/// Lets a few events in each second pass.
#[derive(Debug, Default)]
pub(super) struct Allowance {
    since: Option<Instant>,
    taken: u32,
}

impl Allowance {
    /// Whether one more may pass.
    pub(super) fn take(&mut self, now: Instant) -> bool {
        if self.since.is_none_or(|since| now >= since + Duration::from_secs(1)) {
            (self.since, self.taken) = (Some(now), 0);
        }
        self.taken += 1;
        self.taken <= ACCEPTS_PER_SECOND_MAX
    }
}

/// Lets one of many equal events pass.
#[derive(Debug, Default)]
pub(super) struct Throttle {
    next: Option<Instant>,
    held_back: u64,
}

impl Throttle {
    /// How many were held back since the last one, when another one may pass after this `rest`.
    pub(super) fn pass(&mut self, now: Instant, rest: Duration) -> Option<u64> {
        if self.next.is_some_and(|next| next > now) {
            self.held_back += 1;
            return None;
        }
        self.next = Some(now + rest);
        Some(std::mem::take(&mut self.held_back))
    }
}

impl Peer {
    /// Whether a connection between these addresses may be this peer's.
    pub(super) fn accepts(&self, endpoints: Endpoints) -> bool {
        let (local, remote) = (endpoints.local.ip(), endpoints.remote.ip());
        self.config.address == remote
            && self.config.scope_id == scope_of(endpoints.remote)
            && self.config.source_address.is_none_or(|source| source == local)
    }

    /// Whether its session has been stopped for this reason already.
    pub(super) fn is_stopped_by(&self, reason: &StopReason) -> bool {
        let said = self.session.last_error().is_some_and(|e| e.text == reason.to_string());
        said && self.session.state() == SessionState::Idle
    }

    /// Whether there is no session, nor a connection on which one could begin, although one is wanted.
    pub(super) fn waits(&self) -> bool {
        matches!(self.session.state(), SessionState::Connect | SessionState::Active)
    }

    /// Notes why no connection comes about; true when it is news.
    pub(super) fn suspect(&mut self, now: Instant, text: &str) -> bool {
        let before = self.session.error_count();
        self.session.suspect(now, text.to_owned());
        let news = self.session.error_count() != before;
        if news {
            let at = SystemTime::now();
            self.errors.push(at, ErrorKind::Password, text.to_owned(), FaultyMessage::default());
        }
        news
    }

    /// Notes what went wrong without an effect on the session.
    pub(super) fn record(&mut self, kind: ErrorKind, text: String, faulty: FaultyMessage) {
        self.session.remember(super::owner::now(), kind, text.clone());
        self.errors.push(SystemTime::now(), kind, text, faulty);
    }

    pub(super) fn snapshot(&self, now: Instant, rib: &Rib) -> PeerSnapshot {
        let established = self.session.established();
        let negotiated = established.and_then(|established| {
            let connection = self.connections.get(&established.connection)?;
            let restart = established.graceful_restart.as_ref();
            Some(NegotiatedSnapshot {
                remote_router_id: established.peer.router_id.to_string(),
                local_address: connection.local_address(),
                hold_time_secs: established.negotiated.hold_time_secs,
                families: established.families().iter().collect(),
                missing: missing_families(established),
                ipv4_via_ipv6: established.ipv4_via_ipv6(),
                peer_restart_time_secs: restart.map(|restart| restart.restart_time_secs),
                route_refresh: established.negotiated.route_refresh,
                enhanced_route_refresh: established.negotiated.enhanced_route_refresh,
                four_octet_as: established.negotiated.as4,
                extended_next_hop: established.negotiated.extended_next_hop,
                receives_paths: established.negotiated.add_path.receive.iter().collect(),
                sends_paths: established.negotiated.add_path.send.iter().collect(),
                send_octets_max: established.negotiated.send_octets_max,
                receive_octets_max: established.negotiated.receive_octets_max,
            })
        });
        PeerSnapshot {
            address: self.config.address,
            interface: self.config.interface.as_ref().map(|name| name.to_string()),
            doubt: self.doubt.clone(),
            remote_asn: self.config.asn,
            state: self.session.state(),
            since_unix_secs: unix_secs(self.since),
            lasts_secs: now.saturating_duration_since(self.changed).as_secs(),
            established_count: self.established_count,
            last_down: self.last_down.as_ref().map(|(at, reason)| DownSnapshot {
                at_unix_secs: unix_secs(*at),
                reason: reason.to_string(),
            }),
            disabled: self.disabled,
            comes_back_in_secs: self
                .session
                .comes_back_at()
                .map(|at| at.saturating_duration_since(now).as_secs()),
            last_error: self.session.last_error().map(|error| ErrorSnapshot {
                at_unix_secs: unix_secs(
                    SystemTime::now() - now.saturating_duration_since(error.at),
                ),
                kind: error.kind,
                text: error.text.clone(),
            }),
            errors: self.errors.total(),
            turns: self.history.turns(),
            negotiated,
            routes: Family::ALL
                .into_iter()
                .filter(|family| self.config.families.contains(*family))
                .map(|family| (family, rib.counts(self.rib_id, family)))
                .collect(),
        }
    }
}

/// The families that are configured and not in use, each with the reason.
fn missing_families(established: &Established) -> Vec<MissingFamily> {
    let missing = established.left_out.iter().map(|(family, reason)| MissingFamily {
        family: *family,
        reason: reason.to_string().into(),
    });
    missing.collect()
}

pub(super) fn unix_secs(at: SystemTime) -> u64 {
    at.duration_since(UNIX_EPOCH).unwrap_or_default().as_secs()
}

/// Time between two warnings about one peer's messages.
pub(super) const WARNING_REST: Duration = Duration::from_secs(10);
/// Time between two refreshes of one family after which stale routes are swept.
pub(super) const REFRESH_REST: Duration = Duration::from_secs(1);
/// Connections of one peer that are looked at in a second: each that is refused lingers for some time
/// to be told why.
const ACCEPTS_PER_SECOND_MAX: u32 = 8;
