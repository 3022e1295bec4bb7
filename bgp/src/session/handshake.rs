//! The way to Established: connections that begin, collide, are accepted or given up.

use std::time::Instant;

use crate::prefix::{Families, Family};
use crate::wire::{CeaseReason, Notification, NotificationError, Open};

use super::fsm::Session;
use super::open::{self, Accepted, Refusal};
use super::state::{Confirm, Handshake, Outgoing, Phase, State, Up};
use super::timers::{
    COLLISION_AFTER_UP, COLLISION_WAIT, CONNECT_WAIT, Liveness, OPEN_WAIT, SendHold,
};
use super::{Action, ConnectionId, DownReason, ErrorKind, Established, LocalAddresses, Message};

impl Session {
    pub(super) fn connected(
        &mut self,
        now: Instant,
        connection: ConnectionId,
        addresses: LocalAddresses,
        actions: &mut Vec<Action>,
    ) {
        let handshake = Handshake::begin(&self.config, self.restart, now, connection, addresses);
        let State::Opening { outgoing, .. } = &mut self.state else { return };
        if !matches!(outgoing, Outgoing::Connecting { connection: c, .. } if *c == connection) {
            return;
        }
        actions.push(handshake.open_action());
        *outgoing = Outgoing::Handshake(handshake);
    }

    pub(super) fn connect_failed(
        &mut self,
        now: Instant,
        connection: ConnectionId,
        kind: ErrorKind,
        text: String,
    ) {
        let waiting = self.wait_to_connect(now);
        let State::Opening { outgoing, .. } = &mut self.state else { return };
        if !matches!(outgoing, Outgoing::Connecting { connection: c, .. } if *c == connection) {
            return;
        }
        *outgoing = waiting;
        self.remember(now, kind, text);
    }

    pub(super) fn accepted(
        &mut self,
        now: Instant,
        connection: ConnectionId,
        addresses: LocalAddresses,
        actions: &mut Vec<Action>,
    ) {
        let handshake = Handshake::begin(&self.config, self.restart, now, connection, addresses);
        let slot = match &mut self.state {
            State::Opening { incoming, .. } => incoming,
            // RFC 4724 section 5: a peer with graceful restart that connects again has restarted, and
            // the old connection is dead although TCP has not noticed. Its OPEN has to say so: a mere
            // connection may come from anything at the peer's address.
            State::Established(up) if up.established.graceful_restart.is_some() => {
                &mut up.challenger
            }
            State::Established(_) => {
                reject(connection, CeaseReason::ConnectionCollision, actions);
                return;
            }
            State::Idle { .. } => {
                reject(connection, CeaseReason::ConnectionRejected, actions);
                return;
            }
        };
        actions.push(handshake.open_action());
        // A peer has one outgoing connection at a time, so an older one is abandoned.
        if let Some(older) = slot.replace(handshake) {
            reject(older.connection, CeaseReason::ConnectionCollision, actions);
        }
    }

    /// The OPEN of a second connection was accepted while a session stands: true when the session has
    /// given way to it.
    fn challenged(&mut self, now: Instant, peer: &Open, actions: &mut Vec<Action>) -> bool {
        let State::Established(up) = &self.state else { return true };
        // Both sides connected at once, and this connection was slower: the other case of RFC 4271
        // section 6.8. A peer that has restarted says so, or has had a session for longer.
        let restarted = peer.graceful_restart().is_some_and(|restart| restart.restarting);
        if !restarted && now < up.since + COLLISION_AFTER_UP {
            return false;
        }
        actions.push(Action::Close(up.established.connection));
        self.session_down(now, DownReason::Replaced, actions);
        true
    }

    /// The peer's OPEN arrived in OpenSent.
    pub(super) fn opened(
        &mut self,
        now: Instant,
        connection: ConnectionId,
        peer: Open,
        actions: &mut Vec<Action>,
    ) {
        let Some(handshake) = self.handshake_mut(connection) else { return };
        let (local, addresses) = (handshake.local.clone(), handshake.addresses);
        let accepted = match open::accept(&self.config, addresses, &local, &peer) {
            Ok(accepted) => accepted,
            Err(refusal) => {
                let Refusal { notification, text } = refusal;
                let kind = ErrorKind::NotificationSent;
                self.refuse(now, connection, kind, notification, text, actions);
                return;
            }
        };
        if !self.challenged(now, &peer, actions) || self.loses_collision(connection, &local, &peer)
        {
            reject(connection, CeaseReason::ConnectionCollision, actions);
            self.abandon(now, connection);
            return;
        }
        let Accepted { negotiated, left_out } = accepted;
        let liveness = Liveness::start(now, negotiated.hold_time_secs, &mut self.jitter);
        let give_up_at = now + OPEN_WAIT;
        if let Some(handshake) = self.handshake_mut(connection) {
            let held_until = None;
            let confirm = Confirm { peer, negotiated, left_out, liveness, give_up_at, held_until };
            handshake.phase = Phase::OpenConfirm(Box::new(confirm));
            actions.push(Action::Send(connection, Message::Keepalive));
        }
        // The other connection lost, when it had come as far.
        if let Some(other) = self.other_in_open_confirm(connection) {
            reject(other, CeaseReason::ConnectionCollision, actions);
            self.abandon(now, other);
        }
    }

    /// The peer's KEEPALIVE arrived in OpenConfirm: the session is established, unless a collision is
    /// about to be resolved the other way.
    ///
    /// RFC 4271 section 6.8 lets the side that is established keep that connection, and the other one,
    /// which has seen the second OPEN before, keep the second: each then closes what the other keeps.
    /// So a connection that would lose waits for the second OPEN, but no longer than it takes the peer
    /// to speak on as one that is established.
    pub(super) fn confirmed(
        &mut self,
        now: Instant,
        connection: ConnectionId,
        actions: &mut Vec<Action>,
    ) {
        if self.may_lose_collision(connection)
            && let Some(handshake) = self.handshake_mut(connection)
            && let Phase::OpenConfirm(confirm) = &mut handshake.phase
            && confirm.held_until.is_none()
        {
            confirm.held_until = Some(now + COLLISION_WAIT);
            confirm.liveness.heard(now);
            return;
        }
        self.establish(now, connection, actions);
    }

    /// Makes a connection in OpenConfirm the session's own.
    pub(super) fn establish(
        &mut self,
        now: Instant,
        connection: ConnectionId,
        actions: &mut Vec<Action>,
    ) {
        let waiting = State::Idle { rest: None };
        let State::Opening { outgoing, incoming } = std::mem::replace(&mut self.state, waiting)
        else {
            return;
        };
        let mut winner = None;
        let outgoing = match outgoing {
            Outgoing::Handshake(handshake) => Some(handshake),
            Outgoing::Connecting { connection, .. } => {
                actions.push(Action::Close(connection));
                None
            }
            Outgoing::Passive | Outgoing::Waiting { .. } => None,
        };
        for handshake in [outgoing, incoming].into_iter().flatten() {
            if handshake.connection == connection {
                winner = Some(handshake);
            } else {
                reject(handshake.connection, CeaseReason::ConnectionCollision, actions);
            }
        }
        let Some(Handshake { addresses, local, phase: Phase::OpenConfirm(confirm), .. }) = winner
        else {
            return;
        };
        let Confirm { peer, negotiated, left_out, liveness, .. } = *confirm;
        let configured = self.config.graceful_restart.as_ref();
        let graceful_restart = configured.and_then(|_| peer.graceful_restart().cloned());
        let notification = configured.is_some_and(|graceful| graceful.notification)
            && graceful_restart.as_ref().is_some_and(|restart| restart.notification);
        let long_lived_max = configured.and_then(|graceful| graceful.long_lived.as_ref());
        let long_lived_max = long_lived_max.map_or(0, |long| long.stale_time_secs);
        let long_lived_secs = Family::ALL.map(|family| {
            let said = peer.long_lived(family).map_or(0, |said| said.stale_time_secs);
            said.min(long_lived_max)
        });
        // RFC 4724 section 4.2: what the peer did not keep forwarding goes now, the rest may wait
        // for End-of-RIB, but not forever.
        let forwarding =
            graceful_restart.as_ref().map_or(Families::NONE, open::forwarding_families);
        self.stale.back(now, |family, is_long_lived| {
            let kept_forwarding = match is_long_lived {
                true => long_lived_max > 0 && peer.long_lived(family).is_some_and(|f| f.forwarding),
                false => forwarding.contains(family),
            };
            negotiated.families.contains(family) && kept_forwarding
        });
        let stale_kept = self.stale.families();
        let mut liveness = liveness;
        liveness.heard(now);
        let established = Established {
            connection,
            local,
            peer,
            negotiated,
            addresses,
            over_ipv6: self.config.address.is_ipv6(),
            graceful_restart,
            notification,
            long_lived_secs,
            stale_kept,
            left_out,
        };
        actions.push(Action::Up(Box::new(established.clone())));
        self.suspicion = None;
        let (configured, hold) =
            (self.config.send_hold_time_secs, established.negotiated.hold_time_secs);
        let send_hold = SendHold::start(now, configured, hold);
        let up = Up { since: now, liveness, send_hold, established, challenger: None };
        self.state = State::Established(Box::new(up));
    }

    pub(super) fn tick_handshakes(&mut self, now: Instant, actions: &mut Vec<Action>) {
        let (mut silent, mut waited) = (Vec::new(), None);
        for handshake in self.state.handshakes_mut().into_iter().flatten() {
            let connection = handshake.connection;
            match &mut handshake.phase {
                Phase::OpenSent { give_up_at } if *give_up_at <= now => silent.push(connection),
                Phase::OpenConfirm(confirm)
                    if confirm.give_up_at <= now || confirm.liveness.hold_expired(now) =>
                {
                    silent.push(connection);
                }
                Phase::OpenConfirm(confirm) if confirm.held_until.is_some_and(|at| at <= now) => {
                    waited = Some(connection);
                }
                Phase::OpenConfirm(confirm) if confirm.liveness.keepalive_due(now) => {
                    confirm.liveness.spoke(now, &mut self.jitter);
                    actions.push(Action::Send(connection, Message::Keepalive));
                }
                _ => {}
            }
        }
        for connection in silent {
            let text = "the peer accepts the connection, but does not finish the handshake";
            let error = NotificationError::HoldTimerExpired.into();
            let kind = ErrorKind::NotificationSent;
            self.refuse(now, connection, kind, error, text.to_owned(), actions);
        }
        if let Some(connection) = waited {
            self.establish(now, connection, actions);
        }
    }

    pub(super) fn give_up_connecting(&mut self, now: Instant, actions: &mut Vec<Action>) {
        let State::Opening { outgoing: Outgoing::Connecting { connection, give_up_at }, .. } =
            &self.state
        else {
            return;
        };
        if *give_up_at <= now {
            let connection = *connection;
            actions.push(Action::Close(connection));
            let no_answer = format!("cannot connect to {}: no answer: ", self.config.address);
            let (kind, text) = match (&self.suspicion, self.config.has_password) {
                (Some(text), _) => (ErrorKind::Password, text.clone()),
                (None, true) => (ErrorKind::ConnectFailed, format!("{no_answer}{WITH_PASSWORD}")),
                (None, false) => (ErrorKind::ConnectFailed, format!("{no_answer}{NO_PASSWORD}")),
            };
            self.connect_failed(now, connection, kind, text);
        }
    }

    pub(super) fn connect_if_due(&mut self, now: Instant, actions: &mut Vec<Action>) {
        let later = now + self.retry_wait();
        let connection = ConnectionId(self.connections + 1);
        let State::Opening { outgoing, incoming } = &mut self.state else { return };
        let Outgoing::Waiting { retry_at } = outgoing else { return };
        if *retry_at > now {
            return;
        }
        // A peer whose OPEN was accepted is about to be established: a second connection would only
        // be a collision to resolve.
        if incoming.as_ref().is_some_and(|h| matches!(h.phase, Phase::OpenConfirm(_))) {
            *retry_at = later;
            return;
        }
        self.connections += 1;
        *outgoing = Outgoing::Connecting { connection, give_up_at: now + CONNECT_WAIT };
        actions.push(Action::Connect(connection));
    }

    /// What the side that connects out does after an attempt has failed. The configuration may have
    /// become passive meanwhile.
    fn wait_to_connect(&mut self, now: Instant) -> Outgoing {
        let retry_at = now + self.retry_wait();
        match self.config.passive {
            true => Outgoing::Passive,
            false => Outgoing::Waiting { retry_at },
        }
    }

    /// Forgets a handshake; the outgoing side tries again after the retry time.
    pub(super) fn abandon(&mut self, now: Instant, connection: ConnectionId) -> Option<Handshake> {
        let waiting = self.wait_to_connect(now);
        let (outgoing, incoming) = match &mut self.state {
            State::Opening { outgoing, incoming } => (Some(outgoing), incoming),
            State::Established(up) => (None, &mut up.challenger),
            State::Idle { .. } => return None,
        };
        if incoming.as_ref().is_some_and(|h| h.connection == connection) {
            return incoming.take();
        }
        match outgoing {
            Some(outgoing @ Outgoing::Handshake(_)) if outgoing.is_handshake(connection) => {
                match std::mem::replace(outgoing, waiting) {
                    Outgoing::Handshake(handshake) => Some(handshake),
                    _ => None,
                }
            }
            _ => None,
        }
    }

    /// Whether `connection`, whose OPEN has just come, has to give way to the other one, which is in
    /// OpenConfirm already.
    fn loses_collision(&self, connection: ConnectionId, local: &Open, peer: &Open) -> bool {
        self.other_in_open_confirm(connection).is_some()
            && self.is_outgoing(connection) != open::keeps_outgoing(local, peer)
    }

    /// Whether another connection, whose OPEN has not come yet, would win against `connection`.
    fn may_lose_collision(&self, connection: ConnectionId) -> bool {
        let State::Opening { outgoing: Outgoing::Handshake(outgoing), incoming: Some(incoming) } =
            &self.state
        else {
            return false;
        };
        let (this, other) = match outgoing.connection == connection {
            true => (outgoing, incoming),
            false => (incoming, outgoing),
        };
        match (&this.phase, &other.phase) {
            (Phase::OpenConfirm(confirm), Phase::OpenSent { .. }) => {
                self.is_outgoing(connection) != open::keeps_outgoing(&this.local, &confirm.peer)
            }
            _ => false,
        }
    }

    fn other_in_open_confirm(&self, connection: ConnectionId) -> Option<ConnectionId> {
        let State::Opening { outgoing, incoming } = &self.state else { return None };
        let outgoing = match outgoing {
            Outgoing::Handshake(handshake) => Some(handshake),
            _ => None,
        };
        outgoing
            .into_iter()
            .chain(incoming)
            .find(|h| h.connection != connection && matches!(h.phase, Phase::OpenConfirm(_)))
            .map(|h| h.connection)
    }

    fn is_outgoing(&self, connection: ConnectionId) -> bool {
        matches!(&self.state, State::Opening { outgoing, .. } if outgoing.is_handshake(connection))
    }
}

fn reject(connection: ConnectionId, reason: CeaseReason, actions: &mut Vec<Action>) {
    let notification = Notification::cease(reason, None);
    actions.push(Action::Send(connection, Message::Notification(notification)));
    actions.push(Action::Close(connection));
}

const WITH_PASSWORD: &str = "is the address right, the path open, and the password the same on both \
                             sides? One that differs or is missing there looks like this";
const NO_PASSWORD: &str =
    "is the address right, the path open, and does the peer want no password?";
