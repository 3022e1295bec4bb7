//! What a session asks for, done.

use std::time::SystemTime;

use crate::prefix::Families;
use crate::rib::PeerSession;
use crate::session::{Action, DownReason, Event, LeftOut, Message, SessionState};
use crate::status::{SessionChange, WatchEvent};
use crate::stream::FaultyMessage;
use crate::wire::{end_of_rib, keepalive};

use super::connection::Connection;
use super::owner::{Input, InputKind, Owner, PeerKey, now};
use super::peer::unix_secs;
use super::socket;

/// How an attempt to bring a session up ended, for the log.
#[derive(Clone, Copy)]
enum Attempt {
    /// One side does not want the other: somebody has to correct something.
    Refused,
    /// There is nobody to talk to, which passes.
    Failed,
}

impl Attempt {
    /// What an event that brings an error means; malformed messages are told where they are read.
    fn of(event: &Event) -> Option<Attempt> {
        match event {
            Event::Received { .. } => Some(Attempt::Refused),
            Event::ConnectFailed { .. } | Event::Lost { .. } | Event::Tick => Some(Attempt::Failed),
            _ => None,
        }
    }
}

impl Owner {
    /// Hands an event to a session and does what it asks for.
    pub(super) fn handle(&mut self, key: PeerKey, event: Event) {
        self.handle_about(key, event, FaultyMessage::default());
    }

    /// As [`Owner::handle`], for an event that a malformed message is the cause of.
    pub(super) fn handle_about(&mut self, key: PeerKey, event: Event, faulty: FaultyMessage) {
        let now = now();
        let mut actions = Vec::new();
        let Some(peer) = self.peers.get_mut(&key) else { return };
        let before = peer.session.state();
        let sort = Attempt::of(&event);
        let errors = peer.session.error_count();
        peer.session.handle(now, event, &mut actions);
        let after = peer.session.state();
        let failed = peer.session.error_count() != errors;
        if failed && let Some(error) = peer.session.last_error() {
            peer.errors.push(SystemTime::now(), error.kind, error.text.clone(), faulty);
            self.changed = true;
        }
        if let (Some(sort), Some(error)) = (sort, peer.session.last_error())
            && before != SessionState::Established
            && error.at == now
            && peer.refusals.len() < REFUSALS_MAX
            && peer.refusals.insert(error.text.clone())
        {
            let (peer, address) = (&peer.name, peer.config.address);
            match sort {
                Attempt::Refused => tracing::warn!(%peer, %address, "{}", error.text),
                Attempt::Failed => tracing::info!(%peer, %address, "no session: {}", error.text),
            }
        }
        if before != after {
            self.changed = true;
            tracing::debug!(peer = %peer.name, from = ?before, to = ?after, "session");
        }
        self.perform(key, actions);
        if before != after {
            self.tell_session(key, before, failed);
        }
    }

    pub(super) fn perform(&mut self, key: PeerKey, actions: Vec<Action>) {
        for action in actions {
            let Some(peer) = self.peers.get_mut(&key) else { return };
            match action {
                Action::Connect(connection) => {
                    let mailbox = self.mailbox.clone();
                    let (config, sort) = (peer.config.clone(), peer.session.config().sort());
                    let connecting = tokio::spawn(async move {
                        let result = socket::connect(config, sort).await;
                        let kind = InputKind::Connected(result);
                        // An owner that has gone does not need the connection.
                        let _ =
                            mailbox.send(Input::Connection { peer: key, connection, kind }).await;
                    });
                    peer.connecting.insert(connection, connecting);
                }
                Action::Send(connection, message) => {
                    let Some(connection) = peer.connections.get_mut(&connection) else { continue };
                    match message {
                        Message::Open(open) => connection.send_open(*open),
                        Message::Keepalive => connection.send(keepalive()),
                        Message::Notification(notification) => {
                            connection.send(notification.encode());
                        }
                    }
                }
                Action::Close(connection) => {
                    if let Some(connecting) = peer.connecting.remove(&connection) {
                        connecting.abort();
                    }
                    peer.connections.remove(&connection);
                }
                Action::Abort(connection) => {
                    if let Some(connection) = peer.connections.remove(&connection) {
                        connection.abort();
                    }
                }
                Action::LookAtSending(connection) => {
                    let Some(sender) = peer.connections.get_mut(&connection) else { continue };
                    let moves = sender.moves();
                    self.handle(key, Event::Sending { connection, moves });
                }
                Action::Up(established) => {
                    (peer.since, peer.changed) = (SystemTime::now(), now());
                    peer.up_at = Some(peer.changed);
                    peer.established_count += 1;
                    let connection = peer.connections.get(&established.connection);
                    peer.link = connection.and_then(Connection::link);
                    peer.refusals.clear();
                    self.changed = true;
                    tracing::info!(
                        peer = %peer.name,
                        address = %peer.config.address,
                        asn = peer.config.asn,
                        "session established"
                    );
                    // The peer takes such a family for one in use and waits for the end of its routes
                    // (RFC 4724 section 4.1), of which there are none.
                    for (family, why) in &established.left_out {
                        if *why == LeftOut::NoExtendedNextHop
                            && let Some(connection) = peer.connections.get(&established.connection)
                        {
                            connection.send(end_of_rib(*family));
                        }
                    }
                    self.rib.peer_up(peer.rib_id, PeerSession::new(&established));
                    self.update_room(key);
                }
                Action::Down { reason, keep, keep_older } => {
                    self.session_down(key, &reason, keep, keep_older);
                }
                Action::FlushStale(families) => {
                    tracing::info!(peer = %peer.name, "stale routes of a restarted peer removed");
                    self.rib.flush_stale(peer.rib_id, families);
                }
                Action::LongLivedStale(families) => {
                    tracing::info!(
                        peer = %peer.name,
                        "routes of a peer that is away for longer than its restart time are a last \
                         resort from now on"
                    );
                    self.rib.long_lived_stale(peer.rib_id, families);
                }
            }
        }
    }

    /// Notes that a session has left the state `from`, and why if it has `failed` or is down, and tells
    /// those who watch.
    fn tell_session(&mut self, key: PeerKey, from: SessionState, failed: bool) {
        let Some(peer) = self.peers.get_mut(&key) else { return };
        let down = peer.last_down.as_ref().filter(|_| from == SessionState::Established);
        let error = peer.session.last_error().filter(|_| failed);
        let change = SessionChange {
            at_unix_secs: unix_secs(SystemTime::now()),
            peer: peer.name.to_string(),
            from,
            to: peer.session.state(),
            reason: down
                .map(|(_, reason)| reason.to_string())
                .or_else(|| error.map(|error| error.text.clone())),
        };
        peer.history.push(change.clone());
        self.tell(|| WatchEvent::Session(change));
    }

    fn session_down(
        &mut self,
        key: PeerKey,
        reason: &DownReason,
        keep: Families,
        keep_older: Families,
    ) {
        let Some(peer) = self.peers.get_mut(&key) else { return };
        (peer.since, peer.changed) = (SystemTime::now(), now());
        peer.last_down = Some((peer.since, reason.clone()));
        self.changed = true;
        tracing::info!(
            peer = %peer.name,
            address = %peer.config.address,
            %reason,
            routes_kept = !keep.is_empty(),
            "session down"
        );
        self.rib.peer_down_again(peer.rib_id, keep, keep_older);
    }
}

/// Different reasons that the log hears of between two sessions with a peer.
const REFUSALS_MAX: usize = 8;
