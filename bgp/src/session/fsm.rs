//! The state machine itself.

use std::time::{Duration, Instant};

use crate::prefix::Families;
use crate::wire::{CeaseReason, FsmError, Notification, NotificationError, Open};

use super::error::explain_received;
use super::open::{self, Accepted, Refusal};
use super::state::{Confirm, Handshake, Outgoing, Phase, Stale, State, Up};
use super::timers::{
    COLLISION_AFTER_UP, CONNECT_WAIT, HOLD_PUT_OFF, Jitter, Liveness, OPEN_WAIT, STALE_AFTER_UP,
    earliest,
};
use super::{
    Action, ConnectionId, DownReason, ErrorKind, Established, Event, LastError, LocalAddresses,
    Message, Received, Restart, SessionConfig, SessionState, StopReason,
};

/// The session of one peer.
#[derive(Clone, Debug)]
pub struct Session {
    config: SessionConfig,
    restart: Restart,
    jitter: Jitter,
    state: State,
    /// Routes of a former connection that the RIB still holds as stale.
    stale: Option<Stale>,
    connections: u64,
    last_error: Option<LastError>,
    /// How many errors there were, so that a caller sees each.
    errors: u64,
}

impl Session {
    /// A session that is stopped; `jitter` is where its randomness comes from.
    pub fn new(config: SessionConfig, restart: Restart, jitter: Jitter) -> Session {
        Session {
            config,
            restart,
            jitter,
            state: State::Idle { start_at: None },
            stale: None,
            connections: 0,
            last_error: None,
            errors: 0,
        }
    }

    /// Its configuration.
    pub fn config(&self) -> &SessionConfig {
        &self.config
    }

    /// Replaces the configuration. What an established session negotiated stays: stop and start it
    /// where [`crate::config::PeerConfig::needs_reset`] says so.
    pub fn configure(&mut self, now: Instant, config: SessionConfig, actions: &mut Vec<Action>) {
        self.config = config;
        if let State::Opening { outgoing, .. } = &mut self.state {
            match (&outgoing, self.config.passive) {
                (Outgoing::Passive, false) => *outgoing = Outgoing::Waiting { retry_at: now },
                (Outgoing::Waiting { .. }, true) => *outgoing = Outgoing::Passive,
                _ => {}
            }
            self.connect_if_due(now, actions);
        }
    }

    /// What to say about an own restart in OPENs from now on.
    pub fn set_restart(&mut self, restart: Restart) {
        self.restart = restart;
    }

    /// A fresh identifier for a connection that the peer opened.
    pub fn next_connection(&mut self) -> ConnectionId {
        self.connections += 1;
        ConnectionId(self.connections)
    }

    /// What went wrong last, if anything did.
    pub fn last_error(&self) -> Option<&LastError> {
        self.last_error.as_ref()
    }

    /// When a session that rests comes back by itself.
    pub fn comes_back_at(&self) -> Option<Instant> {
        match &self.state {
            State::Idle { start_at } => *start_at,
            _ => None,
        }
    }

    /// How many errors there have been: when it has grown, [`Session::last_error`] is a new one.
    pub fn error_count(&self) -> u64 {
        self.errors
    }

    /// What was negotiated, while established.
    pub fn established(&self) -> Option<&Established> {
        match &self.state {
            State::Established(up) => Some(&up.established),
            _ => None,
        }
    }

    /// The state in the words of the RFC; of two connections the one that has come further counts.
    pub fn state(&self) -> SessionState {
        match &self.state {
            State::Idle { .. } => SessionState::Idle,
            State::Established(_) => SessionState::Established,
            State::Opening { outgoing, incoming } => {
                let outgoing = match outgoing {
                    Outgoing::Passive | Outgoing::Waiting { .. } => SessionState::Active,
                    Outgoing::Connecting { .. } => SessionState::Connect,
                    Outgoing::Handshake(handshake) => handshake.state(),
                };
                let incoming = incoming.as_ref().map(Handshake::state);
                [Some(SessionState::OpenConfirm), Some(SessionState::OpenSent)]
                    .into_iter()
                    .find(|state| *state == incoming || *state == Some(outgoing))
                    .flatten()
                    .unwrap_or(outgoing)
            }
        }
    }

    /// When [`Event::Tick`] is due.
    pub fn next_deadline(&self) -> Option<Instant> {
        let own = match &self.state {
            State::Idle { start_at } => *start_at,
            State::Opening { outgoing, incoming } => {
                let outgoing = match outgoing {
                    Outgoing::Passive => None,
                    Outgoing::Waiting { retry_at } => Some(*retry_at),
                    Outgoing::Connecting { give_up_at, .. } => Some(*give_up_at),
                    Outgoing::Handshake(handshake) => handshake.next_deadline(),
                };
                earliest(outgoing, incoming.as_ref().and_then(Handshake::next_deadline))
            }
            State::Established(up) => earliest(
                up.liveness.next(),
                up.challenger.as_ref().and_then(Handshake::next_deadline),
            ),
        };
        earliest(own, self.stale.map(|stale| stale.until))
    }

    /// The connection whose hold timer has run out. A caller that reads late looks for octets that
    /// nobody has read before it passes on [`Event::Tick`], and calls [`Session::put_off_hold`] when
    /// there are any: a peer that has spoken is not dead.
    pub fn hold_expired(&self, now: Instant) -> Option<ConnectionId> {
        match &self.state {
            State::Established(up) if up.liveness.hold_expired(now) => {
                Some(up.established.connection)
            }
            _ => None,
        }
    }

    /// Gives octets that have come in, but are not read yet, a moment before the hold timer fires.
    pub fn put_off_hold(&mut self, now: Instant) {
        if let State::Established(up) = &mut self.state {
            up.liveness.put_off_hold(now + HOLD_PUT_OFF);
        }
    }

    /// Takes in what happened and appends what to do, in this order, to `actions`.
    pub fn handle(&mut self, now: Instant, event: Event, actions: &mut Vec<Action>) {
        match event {
            Event::Start => self.start(now, actions),
            Event::Stop(reason) => self.stop(now, reason, actions),
            Event::Connected { connection, addresses } => {
                self.connected(now, connection, addresses, actions);
            }
            Event::ConnectFailed { connection, error } => {
                self.connect_failed(now, connection, &error);
            }
            Event::Accepted { connection, addresses } => {
                self.accepted(now, connection, addresses, actions);
            }
            Event::Lost { connection, error } => self.lost(now, connection, error, actions),
            Event::Received { connection, message } => {
                self.received(now, connection, message, actions);
            }
            Event::Malformed { connection, notification } => {
                let text = format!("the peer broke the protocol: {notification}");
                let kind = ErrorKind::MalformedMessage;
                self.refuse(now, connection, kind, notification, text, actions);
            }
            Event::Tick => self.tick(now, actions),
        }
    }

    fn start(&mut self, now: Instant, actions: &mut Vec<Action>) {
        if !matches!(self.state, State::Idle { .. }) {
            return;
        }
        // It does not say any more why there is no session.
        self.last_error = self.last_error.take().filter(|e| e.kind != ErrorKind::Disabled);
        self.state = State::Opening {
            outgoing: if self.config.passive {
                Outgoing::Passive
            } else {
                Outgoing::Waiting { retry_at: now }
            },
            incoming: None,
        };
        self.connect_if_due(now, actions);
    }

    fn stop(&mut self, now: Instant, reason: StopReason, actions: &mut Vec<Action>) {
        let start_at = match reason {
            StopReason::PrefixLimit { restart_after_secs, .. } => {
                restart_after_secs.map(|secs| now + Duration::from_secs(secs.into()))
            }
            _ => None,
        };
        let farewell = reason.notification();
        let state = std::mem::replace(&mut self.state, State::Idle { start_at });
        let was_up = matches!(state, State::Established(_));
        for (connection, has_peer) in state.connections() {
            if let Some(notification) = farewell.as_ref().filter(|_| has_peer) {
                actions.push(Action::Send(connection, Message::Notification(notification.clone())));
            }
            actions.push(Action::Close(connection));
        }
        match reason {
            StopReason::PrefixLimit { .. } => {
                self.remember(now, ErrorKind::PrefixLimit, reason.to_string());
            }
            StopReason::Disabled { .. } => {
                self.remember(now, ErrorKind::Disabled, reason.to_string());
            }
            _ => {}
        }
        if was_up {
            actions
                .push(Action::Down { reason: DownReason::Stopped(reason), keep: Families::NONE });
        } else if let Some(stale) = self.stale {
            actions.push(Action::FlushStale(stale.families));
        }
        self.stale = None;
    }

    fn connected(
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

    fn connect_failed(&mut self, now: Instant, connection: ConnectionId, error: &str) {
        let retry_at = now + self.retry_wait();
        let State::Opening { outgoing, .. } = &mut self.state else { return };
        if !matches!(outgoing, Outgoing::Connecting { connection: c, .. } if *c == connection) {
            return;
        }
        *outgoing = Outgoing::Waiting { retry_at };
        let text = format!("cannot connect to {}: {error}", self.config.address);
        self.remember(now, ErrorKind::ConnectFailed, text);
    }

    fn accepted(
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

    fn lost(
        &mut self,
        now: Instant,
        connection: ConnectionId,
        error: Option<String>,
        actions: &mut Vec<Action>,
    ) {
        if self.is_established(connection) {
            let reason = DownReason::Lost(error);
            self.remember(now, ErrorKind::ConnectionLost, reason.to_string());
            self.session_down(now, reason, actions);
            self.connect_if_due(now, actions);
        } else if let Some(handshake) = self.abandon(now, connection) {
            let what = match handshake.phase {
                Phase::OpenSent { .. } => {
                    "the peer closed the connection without an answer to our OPEN: it may have no \
                     peer configured at our address"
                }
                Phase::OpenConfirm(_) => "the peer closed the connection during the handshake",
            };
            let text = match error {
                Some(error) => format!("{what} ({error})"),
                None => what.to_owned(),
            };
            self.remember(now, ErrorKind::ConnectionLost, text);
        }
    }

    fn received(
        &mut self,
        now: Instant,
        connection: ConnectionId,
        message: Received,
        actions: &mut Vec<Action>,
    ) {
        if let State::Established(up) = &mut self.state
            && up.established.connection == connection
        {
            match message {
                Received::Update | Received::Keepalive => up.liveness.heard(now),
                Received::RouteRefresh => {}
                Received::Notification(notification) => {
                    self.notified(now, connection, notification, actions);
                }
                Received::Open(_) => {
                    self.unexpected(now, connection, FsmError::UnexpectedInEstablished, actions);
                }
            }
            return;
        }
        let Some(handshake) = self.handshake_mut(connection) else { return };
        match (&mut handshake.phase, message) {
            (_, Received::Notification(notification)) => {
                self.notified(now, connection, notification, actions);
            }
            (Phase::OpenSent { .. }, Received::Open(peer)) => {
                self.opened(now, connection, *peer, actions);
            }
            (Phase::OpenSent { .. }, _) => {
                self.unexpected(now, connection, FsmError::UnexpectedInOpenSent, actions);
            }
            (Phase::OpenConfirm(_), Received::Keepalive) => {
                self.confirmed(now, connection, actions)
            }
            (Phase::OpenConfirm(_), _) => {
                self.unexpected(now, connection, FsmError::UnexpectedInOpenConfirm, actions);
            }
        }
    }

    /// The peer's OPEN arrived in OpenSent.
    fn opened(
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
            let confirm = Confirm { peer, negotiated, left_out, liveness, give_up_at };
            handshake.phase = Phase::OpenConfirm(Box::new(confirm));
            actions.push(Action::Send(connection, Message::Keepalive));
        }
        // The other connection lost, when it had come as far.
        if let Some(other) = self.other_in_open_confirm(connection) {
            reject(other, CeaseReason::ConnectionCollision, actions);
            self.abandon(now, other);
        }
    }

    /// The peer's KEEPALIVE arrived in OpenConfirm: the session is established.
    fn confirmed(&mut self, now: Instant, connection: ConnectionId, actions: &mut Vec<Action>) {
        let waiting = State::Idle { start_at: None };
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
        let graceful_restart = match self.config.graceful_restart_secs {
            Some(_) => peer.graceful_restart().cloned(),
            None => None,
        };
        // RFC 4724 section 4.2: what the peer did not keep forwarding goes now, the rest may wait
        // for End-of-RIB, but not forever.
        let stale_kept = match (&graceful_restart, self.stale) {
            (Some(restart), Some(stale)) => stale
                .families
                .intersection(negotiated.families)
                .intersection(open::forwarding_families(restart)),
            _ => Families::NONE,
        };
        self.stale = (!stale_kept.is_empty())
            .then(|| Stale { families: stale_kept, until: now + STALE_AFTER_UP });
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
            stale_kept,
            left_out,
        };
        actions.push(Action::Up(Box::new(established.clone())));
        let up = Up { since: now, liveness, established, challenger: None };
        self.state = State::Established(Box::new(up));
    }

    /// A NOTIFICATION arrived.
    fn notified(
        &mut self,
        now: Instant,
        connection: ConnectionId,
        notification: Notification,
        actions: &mut Vec<Action>,
    ) {
        let collision = NotificationError::Cease(CeaseReason::ConnectionCollision);
        let established = self.is_established(connection);
        if established || notification.error != collision {
            let text = explain_received(&self.config, &notification);
            self.remember(now, ErrorKind::NotificationReceived, text);
        }
        actions.push(Action::Close(connection));
        if established {
            self.session_down(now, DownReason::NotificationReceived(notification), actions);
        } else {
            self.abandon(now, connection);
        }
    }

    fn unexpected(
        &mut self,
        now: Instant,
        connection: ConnectionId,
        error: FsmError,
        actions: &mut Vec<Action>,
    ) {
        let text = format!("the peer broke the protocol: {error}");
        self.refuse(now, connection, ErrorKind::NotificationSent, error.into(), text, actions);
    }

    /// Ends a connection with a NOTIFICATION.
    fn refuse(
        &mut self,
        now: Instant,
        connection: ConnectionId,
        kind: ErrorKind,
        notification: Notification,
        text: String,
        actions: &mut Vec<Action>,
    ) {
        let established = self.is_established(connection);
        if !established && self.handshake_mut(connection).is_none() {
            return;
        }
        self.remember(now, kind, text);
        actions.push(Action::Send(connection, Message::Notification(notification.clone())));
        actions.push(Action::Close(connection));
        if established {
            let reason = match notification.error {
                NotificationError::HoldTimerExpired => DownReason::HoldTimerExpired,
                _ => DownReason::NotificationSent(notification),
            };
            self.session_down(now, reason, actions);
        } else {
            self.abandon(now, connection);
        }
    }

    fn tick(&mut self, now: Instant, actions: &mut Vec<Action>) {
        if let Some(stale) = self.stale
            && stale.until <= now
        {
            self.stale = None;
            actions.push(Action::FlushStale(stale.families));
        }
        match &mut self.state {
            State::Idle { start_at } => {
                if start_at.is_some_and(|at| at <= now) {
                    self.start(now, actions);
                }
            }
            State::Established(up) => {
                let connection = up.established.connection;
                if up.liveness.hold_expired(now) {
                    let secs = up.established.negotiated.hold_time_secs;
                    let text = format!("nothing was heard from the peer for {secs} s (hold time)");
                    let error = NotificationError::HoldTimerExpired.into();
                    let kind = ErrorKind::NotificationSent;
                    self.refuse(now, connection, kind, error, text, actions);
                } else if up.liveness.keepalive_due(now) {
                    up.liveness.spoke(now, &mut self.jitter);
                    actions.push(Action::Send(connection, Message::Keepalive));
                }
                self.tick_handshakes(now, actions);
            }
            State::Opening { .. } => {
                self.tick_handshakes(now, actions);
                self.give_up_connecting(now, actions);
                self.connect_if_due(now, actions);
            }
        }
    }

    fn tick_handshakes(&mut self, now: Instant, actions: &mut Vec<Action>) {
        let mut silent = Vec::new();
        for handshake in self.state.handshakes_mut().into_iter().flatten() {
            let connection = handshake.connection;
            match &mut handshake.phase {
                Phase::OpenSent { give_up_at } if *give_up_at <= now => silent.push(connection),
                Phase::OpenConfirm(confirm)
                    if confirm.give_up_at <= now || confirm.liveness.hold_expired(now) =>
                {
                    silent.push(connection);
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
    }

    fn give_up_connecting(&mut self, now: Instant, actions: &mut Vec<Action>) {
        let State::Opening { outgoing: Outgoing::Connecting { connection, give_up_at }, .. } =
            &self.state
        else {
            return;
        };
        if *give_up_at <= now {
            let connection = *connection;
            actions.push(Action::Close(connection));
            let why = "no answer: is the address right, the path open, and the password the same?";
            self.connect_failed(now, connection, why);
        }
    }

    fn connect_if_due(&mut self, now: Instant, actions: &mut Vec<Action>) {
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

    /// Leaves Established. The connection has been closed or is dead.
    fn session_down(&mut self, now: Instant, reason: DownReason, actions: &mut Vec<Action>) {
        let retry = self.retry_wait();
        let State::Established(up) = &mut self.state else { return };
        let incoming = up.challenger.take();
        // RFC 4724 section 4.2: only a connection that ends without a NOTIFICATION.
        let restart = match reason {
            DownReason::Lost(_) | DownReason::Replaced => up.established.graceful_restart.as_ref(),
            _ => None,
        };
        let keep = restart.map_or(Families::NONE, |restart| {
            open::restart_families(up.established.negotiated.families, restart)
        });
        let restart_time = restart.map_or(0, |restart| restart.restart_time_secs);
        self.stale = (!keep.is_empty()).then(|| Stale {
            families: keep,
            until: now + Duration::from_secs(restart_time.into()),
        });
        // A session that has lasted is tried again at once after a cut; one that fails at once waits
        // its turn, so that two sides that disagree do not spin.
        let lasted = up.since + retry <= now && matches!(reason, DownReason::Lost(_));
        let retry_at = if lasted { now } else { now + retry };
        let outgoing =
            if self.config.passive { Outgoing::Passive } else { Outgoing::Waiting { retry_at } };
        self.state = State::Opening { outgoing, incoming };
        actions.push(Action::Down { reason, keep });
    }

    /// Forgets a handshake; the outgoing side tries again after the retry time.
    fn abandon(&mut self, now: Instant, connection: ConnectionId) -> Option<Handshake> {
        let retry_at = now + self.retry_wait();
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
                match std::mem::replace(outgoing, Outgoing::Waiting { retry_at }) {
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

    fn is_established(&self, connection: ConnectionId) -> bool {
        self.established().is_some_and(|e| e.connection == connection)
    }

    fn handshake_mut(&mut self, connection: ConnectionId) -> Option<&mut Handshake> {
        let mut handshakes = self.state.handshakes_mut().into_iter().flatten();
        handshakes.find(|h| h.connection == connection)
    }

    fn retry_wait(&mut self) -> Duration {
        let wait = Duration::from_secs(self.config.connect_retry_secs.max(1).into());
        self.jitter.apply(wait)
    }

    /// Notes something that went wrong without an effect on the session.
    pub fn remember(&mut self, now: Instant, kind: ErrorKind, text: String) {
        self.errors += 1;
        self.last_error = Some(LastError { at: now, kind, text });
    }
}

fn reject(connection: ConnectionId, reason: CeaseReason, actions: &mut Vec<Action>) {
    let notification = Notification::cease(reason, None);
    actions.push(Action::Send(connection, Message::Notification(notification)));
    actions.push(Action::Close(connection));
}
