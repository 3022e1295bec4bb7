//! What other tasks tell the owner: connections that begin, octets that came, room to write.

use std::io;
use std::time::Instant;

use tokio::net::TcpStream;

use crate::config::{PeerConfig, PeerName, PrefixLimitAction};
use crate::rib::{PATHS_A_PREFIX_MAX, PeerId, PrefixLimitExceeded, UpdateOutcome};
use crate::session::{ConnectionId, ErrorKind, Event, LocalAddresses, StopReason};
use crate::stream::{FaultyMessage, Item, ReaderConfig};
use crate::wire::{AttributeError, AttributeTypes, RefreshKind, RouteRefresh, SessionSort};

use super::connection::{Connection, Mailbox};
use super::errors::kind_of;
use super::interface::{local_addresses, scope_of};
use super::owner::{Input, InputKind, Owner, PeerKey, WORK_PER_TURN_MAX, now};
use super::peer::{REFRESH_REST, WARNING_REST};
use super::{Endpoints, socket};

impl Owner {
    /// Takes in what has arrived, up to a bound, so that one flush serves many inputs.
    pub(super) fn take_inputs(&mut self) {
        let (before, began) = (self.prefixes_taken, Instant::now());
        for _ in 0..INPUTS_PER_TURN_MAX {
            // The time is that of a machine that has other things to do: keepalives are due meanwhile.
            if self.prefixes_taken.wrapping_sub(before) >= PREFIXES_PER_TURN_MAX
                || began.elapsed() >= WORK_PER_TURN_MAX
            {
                break;
            }
            let Ok(input) = self.inputs.try_recv() else { break };
            self.take_input(input);
        }
    }

    pub(super) fn take_input(&mut self, input: Input) {
        match input {
            Input::Accepted { stream, endpoints } => self.accepted(stream, endpoints),
            Input::Connection { peer, connection, kind } => match kind {
                InputKind::Connected(result) => self.connected(peer, connection, result),
                InputKind::Read(items) => self.read(peer, connection, items),
                InputKind::Writable => self.update_room(peer),
            },
        }
    }

    fn accepted(&mut self, stream: TcpStream, endpoints: Endpoints) {
        let (local, remote) = (endpoints.local.ip(), endpoints.remote.ip());
        let named = self.peers.iter().find(|(_, peer)| peer.accepts(endpoints));
        let key = match named.map(|(key, _)| *key) {
            Some(key) => key,
            None if scope_of(endpoints.remote) != 0 => {
                // Its address alone does not say who it is, so that no range holds it.
                tracing::debug!(remote = %endpoints.remote, "connection from a link-local address without a peer: closed");
                return;
            }
            None => {
                let Some((name, range)) = self.config.range_of(Some(local), remote) else {
                    tracing::debug!(%remote, %local, "connection from an address without a peer: closed");
                    return;
                };
                // Before it costs the range one of its places.
                if !socket::came_near_enough(&stream, &range.template) {
                    tracing::debug!(range = %name, %remote, "connection from too many hops away: closed");
                    return;
                }
                let name = PeerName::clone(name);
                let Some(key) = self.admit(now(), &name, remote) else { return };
                key
            }
        };
        let Some(peer) = self.peers.get_mut(&key) else { return };
        let sort = peer.session.config().sort();
        if let Err(error) =
            socket::set_ttl(std::os::fd::AsRawFd::as_raw_fd(&stream), &peer.config, sort)
        {
            tracing::warn!(peer = %peer.name, %error, "cannot set the TTL of a connection");
            return;
        }
        if !socket::came_near_enough(&stream, &peer.config) {
            let peer = &peer.name;
            tracing::debug!(%peer, %remote, "connection from too many hops away: closed");
            return;
        }
        if !peer.accepts.take(now()) {
            let peer = &peer.name;
            tracing::debug!(%peer, "the peer connects too often: closed");
            return;
        }
        let connection = peer.session.next_connection();
        let addresses = self.start_connection(key, connection, stream, endpoints);
        if let Some(addresses) = addresses {
            self.handle(key, Event::Accepted { connection, addresses });
        }
    }

    fn connected(&mut self, key: PeerKey, connection: ConnectionId, result: io::Result<TcpStream>) {
        let Some(peer) = self.peers.get_mut(&key) else { return };
        if peer.connecting.remove(&connection).is_none() {
            return;
        }
        let endpoints = result.and_then(|stream| {
            let endpoints = Endpoints { local: stream.local_addr()?, remote: stream.peer_addr()? };
            Ok((stream, endpoints))
        });
        match endpoints {
            Ok((stream, endpoints)) => {
                let addresses = self.start_connection(key, connection, stream, endpoints);
                if let Some(addresses) = addresses {
                    self.handle(key, Event::Connected { connection, addresses });
                }
            }
            Err(error) => {
                let error = explain_connect_error(&peer.config, &error);
                self.handle(key, Event::ConnectFailed { connection, error });
            }
        }
    }

    fn start_connection(
        &mut self,
        key: PeerKey,
        connection: ConnectionId,
        stream: TcpStream,
        endpoints: Endpoints,
    ) -> Option<LocalAddresses> {
        let mailbox = Mailbox { inputs: self.mailbox.clone(), peer: key, connection };
        let peer = self.peers.get_mut(&key)?;
        let first_as = peer.config.enforce_first_as.then_some(peer.config.asn);
        let one_hop =
            peer.session.config().sort() == SessionSort::Ebgp && peer.config.multihop <= 1;
        let addresses = local_addresses(endpoints, peer.config.next_hop_ipv6, one_hop);
        let discarded = peer.config.discard_attributes.iter().copied();
        let config = ReaderConfig {
            first_as,
            discard_attributes: AttributeTypes::discardable(discarded),
            prefers_link_local: peer.config.interface.is_some(),
        };
        let started = Connection::start(stream, endpoints, addresses, config, mailbox);
        peer.connections.insert(connection, started);
        Some(addresses)
    }

    fn read(&mut self, key: PeerKey, connection: ConnectionId, items: Vec<Item>) {
        let peer = self.peers.get(&key);
        if let Some(connection) = peer.and_then(|peer| peer.connections.get(&connection)) {
            connection.heard();
        }
        for item in items {
            match item {
                Item::Message(message) => {
                    self.handle(key, Event::Received { connection, message });
                }
                Item::Malformed(notification, faulty) => {
                    self.warn(key, || format!("malformed message: {notification}"));
                    self.handle_about(key, Event::Malformed { connection, notification }, faulty);
                }
                Item::Lost(error) => {
                    self.handle(key, Event::Lost { connection, error });
                    if let Some(peer) = self.peers.get_mut(&key) {
                        peer.connections.remove(&connection);
                    }
                }
                Item::Errors(errors, faulty) => self.record_attribute_errors(key, &errors, faulty),
                Item::Updates(batch) => {
                    let Some(rib_id) = self.established_rib_id(key, connection) else { continue };
                    self.prefixes_taken = self.prefixes_taken.wrapping_add(batch.len());
                    if let Some(peer) = self.peers.get_mut(&key) {
                        batch.ends_of_rib().for_each(|family| peer.session.end_of_rib(family));
                    }
                    match self.rib.update(rib_id, batch) {
                        Ok(outcome) => self.report_prefix_limit(key, outcome),
                        Err(PrefixLimitExceeded { family, prefixes_max, restart_after_secs }) => {
                            let reason = StopReason::PrefixLimit {
                                family,
                                prefixes_max,
                                restart_after_secs,
                            };
                            self.handle(key, Event::Stop(reason));
                        }
                    }
                }
                Item::Refresh(refresh) => self.refresh(key, connection, refresh),
            }
        }
        // A writer that was full may have become empty meanwhile.
        self.update_room(key);
    }

    fn refresh(&mut self, key: PeerKey, connection: ConnectionId, refresh: RouteRefresh) {
        let Some(rib_id) = self.established_rib_id(key, connection) else { return };
        let Some(peer) = self.peers.get_mut(&key) else { return };
        let Some(established) = peer.session.established() else { return };
        // RFC 2918 section 4: a family that was not negotiated is ignored.
        let Some(family) = refresh.family().filter(|f| established.families().contains(*f)) else {
            return;
        };
        let marked = established.negotiated.enhanced_route_refresh;
        match refresh.kind {
            RefreshKind::Request => self.rib.refresh(rib_id, family),
            // The end of each costs a walk over the table. One that begins too soon after another is
            // taken for a plain refresh: nothing is swept after it.
            RefreshKind::Begin if marked => {
                let throttle = peer.refreshes.entry(family).or_default();
                if throttle.pass(now(), REFRESH_REST).is_some() {
                    self.rib.begin_refresh(rib_id, family);
                }
            }
            RefreshKind::End if marked => self.rib.end_refresh(rib_id, family),
            RefreshKind::Begin | RefreshKind::End | RefreshKind::Unknown(_) => {}
        }
    }

    fn established_rib_id(&self, key: PeerKey, connection: ConnectionId) -> Option<PeerId> {
        let peer = self.peers.get(&key)?;
        let established = peer.session.established()?;
        (established.connection == connection).then_some(peer.rib_id)
    }

    fn record_attribute_errors(
        &mut self,
        key: PeerKey,
        errors: &[AttributeError],
        faulty: FaultyMessage,
    ) {
        let texts: Vec<String> = errors.iter().map(ToString::to_string).collect();
        let text = texts.join("; ");
        let prefixes = faulty.prefixes.len() + faulty.prefixes_left_out;
        self.warn(key, || {
            format!("error in an UPDATE of {prefixes} prefixes, session goes on: {text}")
        });
        if let Some(peer) = self.peers.get_mut(&key) {
            peer.record(kind_of(errors), text, faulty);
        }
    }

    /// A limit that does not end the session has been reached: told once, until there is less again.
    fn report_prefix_limit(&mut self, key: PeerKey, outcome: UpdateOutcome) {
        let Some(peer) = self.peers.get_mut(&key) else { return };
        for family in outcome.over_paths.iter() {
            let text = format!(
                "the peer sent more than {PATHS_A_PREFIX_MAX} paths to one prefix of {family}, and \
                 further ones are dropped: let the peer send fewer"
            );
            tracing::warn!(peer = %peer.name, "{text}");
            peer.record(ErrorKind::PrefixLimit, text, FaultyMessage::default());
            self.changed = true;
        }
        let Some(limit) = peer.config.prefix_limit else { return };
        for family in outcome.over_limit.iter() {
            let what = match limit.action {
                PrefixLimitAction::Drop => "further ones are dropped",
                PrefixLimitAction::Warn | PrefixLimitAction::Stop { .. } => "all are taken in",
            };
            let text = format!(
                "the peer sent more than the {} prefixes of {family} that its limit allows, and \
                 {what}: raise the limit or filter at the peer",
                limit.prefixes_max
            );
            tracing::warn!(peer = %peer.name, "{text}");
            peer.record(ErrorKind::PrefixLimit, text, FaultyMessage::default());
            self.changed = true;
        }
    }

    pub(super) fn update_room(&mut self, key: PeerKey) {
        let Some(peer) = self.peers.get(&key) else { return };
        let Some(established) = peer.session.established() else { return };
        if let Some(connection) = peer.connections.get(&established.connection) {
            let (room, catch_up) = connection.rooms();
            self.rib.set_rooms(peer.rib_id, room, catch_up);
        }
    }

    fn warn(&mut self, key: PeerKey, text: impl FnOnce() -> String) {
        let Some(peer) = self.peers.get_mut(&key) else { return };
        if let Some(held_back) = peer.warnings.pass(now(), WARNING_REST) {
            tracing::warn!(peer = %peer.name, held_back, "{}", text());
        }
    }
}

fn explain_connect_error(peer: &PeerConfig, error: &io::Error) -> String {
    match error.kind() {
        io::ErrorKind::ConnectionRefused => format!(
            "connection refused: no BGP speaker listens on port {} there yet, or it does not accept \
             our address",
            peer.port
        ),
        io::ErrorKind::AddrNotAvailable if peer.interface.is_some() => {
            "the own link-local address has gone".to_owned()
        }
        io::ErrorKind::AddrNotAvailable => match peer.source_address {
            Some(source) => {
                format!("{source} is no address of this machine: correct sourceAddress")
            }
            None => error.to_string(),
        },
        _ => error.to_string(),
    }
}

/// Inputs taken in between two looks at deadlines and at what can be sent.
const INPUTS_PER_TURN_MAX: usize = 64;
/// Prefixes after which a turn takes in no more: some ten milliseconds of work.
const PREFIXES_PER_TURN_MAX: usize = 32 * 1024;
