//! What other tasks tell the owner: connections that begin, octets that came, room to write.

use std::io;

use tokio::net::TcpStream;

use crate::config::PeerConfig;
use crate::rib::PeerId;
use crate::session::{ConnectionId, Event, LocalAddresses, StopReason};
use crate::stream::{Item, ReaderConfig};
use crate::wire::RefreshKind;

use super::connection::{Connection, Mailbox};
use super::owner::{Input, InputKind, Owner, PeerKey, now};
use super::{Endpoints, socket};

impl Owner {
    /// Takes in what has arrived, up to a bound, so that one flush serves many inputs.
    pub(super) fn take_inputs(&mut self) {
        let before = self.prefixes_taken;
        for _ in 0..INPUTS_PER_TURN_MAX {
            if self.prefixes_taken.wrapping_sub(before) >= PREFIXES_PER_TURN_MAX {
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
        let found = self.peers.iter_mut().find(|(_, peer)| peer.accepts(local, remote));
        let Some((key, peer)) = found else {
            tracing::debug!(%remote, %local, "connection from an address without a peer: closed");
            return;
        };
        let key = *key;
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
        let started = Connection::start(stream, endpoints, ReaderConfig { first_as }, mailbox);
        let addresses = started.addresses();
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
                Item::Malformed(notification) => {
                    self.warn(key, || format!("malformed message: {notification}"));
                    self.handle(key, Event::Malformed { connection, notification });
                }
                Item::Lost(error) => {
                    self.handle(key, Event::Lost { connection, error });
                    if let Some(peer) = self.peers.get_mut(&key) {
                        peer.connections.remove(&connection);
                    }
                }
                Item::Errors(errors) => self.warn(key, || {
                    let errors: Vec<String> = errors.iter().map(ToString::to_string).collect();
                    format!("error in an UPDATE, session goes on: {}", errors.join("; "))
                }),
                Item::Updates(batch) => {
                    let Some(rib_id) = self.established_rib_id(key, connection) else { continue };
                    self.prefixes_taken = self.prefixes_taken.wrapping_add(batch.len());
                    if let Err(exceeded) = self.rib.update(rib_id, batch) {
                        let prefixes_max = exceeded.prefixes_max;
                        self.handle(key, Event::Stop(StopReason::PrefixLimit { prefixes_max }));
                    }
                }
                Item::Refresh(refresh) => {
                    let Some(rib_id) = self.established_rib_id(key, connection) else { continue };
                    if let (Some(family), RefreshKind::Request) = (refresh.family(), refresh.kind) {
                        self.rib.refresh(rib_id, family);
                    }
                }
            }
        }
        // A writer that was full may have become empty meanwhile.
        self.update_room(key);
    }

    fn established_rib_id(&self, key: PeerKey, connection: ConnectionId) -> Option<PeerId> {
        let peer = self.peers.get(&key)?;
        let established = peer.session.established()?;
        (established.connection == connection).then_some(peer.rib_id)
    }

    pub(super) fn update_room(&mut self, key: PeerKey) {
        let Some(peer) = self.peers.get(&key) else { return };
        let Some(established) = peer.session.established() else { return };
        if let Some(connection) = peer.connections.get(&established.connection) {
            self.rib.set_room(peer.rib_id, connection.room());
        }
    }

    fn warn(&mut self, key: PeerKey, text: impl FnOnce() -> String) {
        let Some(peer) = self.peers.get_mut(&key) else { return };
        if let Some(held_back) = peer.warnings.pass(now()) {
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
