//! The state machine itself.

use std::time::{Duration, Instant};

use crate::prefix::{Families, Family};
use crate::wire::{CeaseReason, FsmError, MessageType, Notification, NotificationError};

use super::error::explain_received;
use super::open;
use super::stale::{Due, Loss, Stale};
use super::state::{Handshake, Outgoing, Phase, Rest, State};
use super::timers::{HOLD_PUT_OFF, Jitter, SendHold, earliest};
use super::{
    Action, ConnectionId, DownReason, ErrorKind, Established, Event, LastError, Message, Received,
    Restart, SessionConfig, SessionState, StopReason,
};

/// The session of one peer.
#[derive(Clone, Debug)]
pub struct Session {
    pub(super) config: SessionConfig,
    pub(super) restart: Restart,
    pub(super) jitter: Jitter,
    pub(super) state: State,
    /// Routes of a former connection that the RIB still holds as stale.
    pub(super) stale: Stale,
    pub(super) connections: u64,
    pub(super) last_error: Option<LastError>,
    /// How many errors there were, so that a caller sees each.
    pub(super) errors: u64,
    /// What [`Session::suspect`] was told.
    pub(super) suspicion: Option<String>,
}

impl Session {
    /// A session that is stopped; `jitter` is where its randomness comes from.
    pub fn new(config: SessionConfig, restart: Restart, jitter: Jitter) -> Session {
        Session {
            config,
            restart,
            jitter,
            state: State::Idle { rest: None },
            stale: Stale::default(),
            connections: 0,
            last_error: None,
            errors: 0,
            suspicion: None,
        }
    }

    /// Its configuration.
    pub fn config(&self) -> &SessionConfig {
        &self.config
    }

    /// Replaces the configuration. What an established session negotiated stays: stop and start it
    /// where [`crate::config::PeerConfig::needs_reset`] says so.
    pub fn configure(&mut self, now: Instant, config: SessionConfig, actions: &mut Vec<Action>) {
        if self.config.has_password != config.has_password {
            self.suspicion = None;
        }
        let send_hold_changed = self.config.send_hold_time_secs != config.send_hold_time_secs;
        self.config = config;
        if let State::Established(up) = &mut self.state
            && send_hold_changed
        {
            up.send_hold = SendHold::start(
                now,
                self.config.send_hold_time_secs,
                up.established.negotiated.hold_time_secs,
            );
        }
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
            State::Idle { rest } => rest.and_then(Rest::ends_at),
            _ => None,
        }
    }

    /// Whether it rests after it has gone over its prefix limit, and for some time yet.
    pub fn rests(&self, now: Instant) -> bool {
        match &self.state {
            State::Idle { rest: Some(rest) } => rest.ends_at().is_none_or(|at| at > now),
            _ => false,
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
            State::Idle { rest } => rest.and_then(Rest::ends_at),
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
                earliest(up.liveness.next(), up.send_hold.next()),
                up.challenger.as_ref().and_then(Handshake::next_deadline),
            ),
        };
        earliest(own, self.stale.next())
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
                let text = format!("cannot connect to {}: {error}", self.config.address);
                self.connect_failed(now, connection, ErrorKind::ConnectFailed, text);
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
            Event::Sending { connection, moves } => self.sending(now, connection, moves, actions),
            Event::CarrierLost { connection } => self.carrier_lost(now, connection, actions),
            Event::Tick => self.tick(now, actions),
        }
    }

    fn start(&mut self, now: Instant, actions: &mut Vec<Action>) {
        if !matches!(self.state, State::Idle { .. }) {
            return;
        }
        // It does not say any more why there is no session.
        let of_a_stop =
            |e: &LastError| matches!(e.kind, ErrorKind::Disabled | ErrorKind::NoNeighbour);
        self.last_error = self.last_error.take().filter(|e| !of_a_stop(e));
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
        if matches!(reason, StopReason::Neighbour { .. }) && self.rests(now) {
            return;
        }
        let rest = match reason {
            StopReason::PrefixLimit { restart_after_secs: Some(secs), .. } => {
                Some(Rest::Until(now + Duration::from_secs(secs.into())))
            }
            StopReason::PrefixLimit { restart_after_secs: None, .. } => Some(Rest::ForGood),
            _ => None,
        };
        let farewell = reason.notification();
        let stays = self.keeps(&DownReason::Stopped(reason.clone()));
        let state = std::mem::replace(&mut self.state, State::Idle { rest });
        let established = match &state {
            State::Established(up) => Some(&up.established),
            _ => None,
        };
        for (connection, has_peer) in state.connections() {
            if let Some(notification) = farewell.clone().filter(|_| has_peer) {
                let ends = established.filter(|e| e.connection == connection && stays.is_none());
                let notification = match ends {
                    Some(established) => established.last_word(notification),
                    None => notification,
                };
                actions.push(Action::Send(connection, Message::Notification(notification)));
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
            StopReason::PathDead { .. } => {
                self.remember(now, ErrorKind::PathDead, reason.to_string());
            }
            StopReason::Neighbour { .. } => {
                self.remember(now, ErrorKind::NoNeighbour, reason.to_string());
            }
            _ => {}
        }
        if established.is_some() {
            self.leave(now, DownReason::Stopped(reason), stays, actions);
        } else if !matches!(reason, StopReason::ConfigurationChange { same_peer: true }) {
            // Under new settings of the same peer, its return decides about what waits for it.
            self.drop_stale(actions);
        }
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
        let sort = message.sort();
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
                    let error = FsmError::UnexpectedInEstablished;
                    self.unexpected(now, connection, error, sort, actions);
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
                self.unexpected(now, connection, FsmError::UnexpectedInOpenSent, sort, actions);
            }
            (Phase::OpenConfirm(_), Received::Keepalive) => {
                self.confirmed(now, connection, actions)
            }
            (Phase::OpenConfirm(confirm), Received::Update | Received::RouteRefresh)
                if confirm.held_until.is_some() =>
            {
                self.establish(now, connection, actions);
            }
            (Phase::OpenConfirm(_), _) => {
                let error = FsmError::UnexpectedInOpenConfirm;
                self.unexpected(now, connection, error, sort, actions);
            }
        }
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

    fn sending(
        &mut self,
        now: Instant,
        connection: ConnectionId,
        moves: bool,
        actions: &mut Vec<Action>,
    ) {
        let State::Established(up) = &mut self.state else { return };
        if up.established.connection != connection || !up.send_hold.looked(now, moves) {
            return;
        }
        // RFC 9687 section 3.1: the NOTIFICATION is an attempt, the connection goes at once.
        let text = format!(
            "the peer took nothing of what was sent for {} s (send hold time): its routing process \
             is stuck, or the path drops large packets",
            up.send_hold.wait().as_secs()
        );
        let notification = up.established.last_word(NotificationError::SendHoldTimerExpired.into());
        self.remember(now, ErrorKind::SendHoldTimer, text);
        actions.push(Action::Send(connection, Message::Notification(notification)));
        actions.push(Action::Abort(connection));
        self.session_down(now, DownReason::SendHoldTimerExpired, actions);
    }

    fn carrier_lost(&mut self, now: Instant, connection: ConnectionId, actions: &mut Vec<Action>) {
        if self.is_established(connection) {
            let reason = DownReason::CarrierLost;
            self.remember(now, ErrorKind::CarrierLost, reason.to_string());
            actions.push(Action::Abort(connection));
            self.session_down(now, reason, actions);
        } else if self.abandon(now, connection).is_some() {
            actions.push(Action::Abort(connection));
        }
    }

    fn unexpected(
        &mut self,
        now: Instant,
        connection: ConnectionId,
        error: FsmError,
        message: MessageType,
        actions: &mut Vec<Action>,
    ) {
        let text = format!("the peer broke the protocol: {error}");
        let notification = Notification::unexpected(error, message);
        self.refuse(now, connection, ErrorKind::NotificationSent, notification, text, actions);
    }

    /// Ends a connection with a NOTIFICATION.
    pub(super) fn refuse(
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
        let mut looked_at = None;
        match &mut self.state {
            State::Idle { rest } => {
                if rest.and_then(Rest::ends_at).is_some_and(|at| at <= now) {
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
                if let State::Established(up) = &mut self.state
                    && up.send_hold.is_due(now)
                {
                    looked_at = Some(connection);
                }
                self.tick_handshakes(now, actions);
            }
            State::Opening { .. } => {
                self.tick_handshakes(now, actions);
                self.give_up_connecting(now, actions);
                self.connect_if_due(now, actions);
            }
        }
        // Behind these: a session that has just been lost to a peer without a restart time waits for nothing.
        let Due { gone, long_lived } = self.stale.tick(now);
        if !gone.is_empty() {
            actions.push(Action::FlushStale(gone));
        }
        if !long_lived.is_empty() {
            actions.push(Action::LongLivedStale(long_lived));
        }
        // Last: the answer may end the session at once, and what is kept of it then is not what was stale before.
        if let Some(connection) = looked_at.filter(|connection| self.is_established(*connection)) {
            actions.push(Action::LookAtSending(connection));
        }
    }

    /// Leaves Established. The connection has been closed or is dead.
    pub(super) fn session_down(
        &mut self,
        now: Instant,
        reason: DownReason,
        actions: &mut Vec<Action>,
    ) {
        let retry = self.retry_wait();
        let stays = self.keeps(&reason);
        let State::Established(up) = &mut self.state else { return };
        let incoming = up.challenger.take();
        // A session that has lasted is tried again at once after a cut; one that fails at once waits
        // its turn, so that two sides that disagree do not spin.
        let lasted = up.since + retry <= now && matches!(reason, DownReason::Lost(_));
        let retry_at = if lasted { now } else { now + retry };
        let outgoing =
            if self.config.passive { Outgoing::Passive } else { Outgoing::Waiting { retry_at } };
        self.state = State::Opening { outgoing, incoming };
        self.leave(now, reason, stays, actions);
    }

    /// What stays when the established session ends like this; `None` when nothing does. The whole table
    /// is in docs/guide/restarts.md.
    fn keeps(&self, reason: &DownReason) -> Option<Loss> {
        let established = self.established()?;
        let hard_reset = NotificationError::Cease(CeaseReason::HardReset);
        let stays = match reason {
            // RFC 4724 section 4.2: a connection that ends without a NOTIFICATION.
            DownReason::Lost(_) | DownReason::Replaced => true,
            // RFC 8538 section 4.1.
            DownReason::HoldTimerExpired
            | DownReason::NotificationSent(_)
            | DownReason::Stopped(StopReason::ConfigurationChange { same_peer: true }) => {
                established.notification
            }
            DownReason::NotificationReceived(notification) => {
                established.notification && notification.error != hard_reset
            }
            DownReason::CarrierLost | DownReason::SendHoldTimerExpired | DownReason::Stopped(_) => {
                false
            }
        };
        let restart = established.graceful_restart.as_ref().filter(|_| stays)?;
        let long_lived = established
            .long_lived_secs
            .map(|secs| (secs > 0).then(|| Duration::from_secs(secs.into())));
        Some(Loss {
            keep: open::restart_families(established.families(), restart),
            restart_time: Duration::from_secs(restart.restart_time_secs.into()),
            long_lived,
            again: established.notification,
        })
    }

    /// Says what becomes of the routes of a session that has just ended.
    fn leave(
        &mut self,
        now: Instant,
        reason: DownReason,
        stays: Option<Loss>,
        actions: &mut Vec<Action>,
    ) {
        let (keep, keep_older) = match &stays {
            Some(loss) => (loss.keep, self.stale.lost(now, loss)),
            None => {
                self.stale.clear();
                (Families::NONE, Families::NONE)
            }
        };
        actions.push(Action::Down { reason, keep, keep_older });
        let long_lived = self.stale.long_lived();
        if !long_lived.is_empty() {
            actions.push(Action::LongLivedStale(long_lived));
        }
    }

    pub(super) fn is_established(&self, connection: ConnectionId) -> bool {
        self.established().is_some_and(|e| e.connection == connection)
    }

    pub(super) fn handshake_mut(&mut self, connection: ConnectionId) -> Option<&mut Handshake> {
        let mut handshakes = self.state.handshakes_mut().into_iter().flatten();
        handshakes.find(|h| h.connection == connection)
    }

    pub(super) fn retry_wait(&mut self) -> Duration {
        let wait = Duration::from_secs(self.config.connect_retry_secs.max(1).into());
        self.jitter.apply(wait)
    }

    /// Lets go of routes that wait for the peer to come back: the link that they lead over is dead.
    pub fn drop_stale(&mut self, actions: &mut Vec<Action>) {
        let families = self.stale.clear();
        if !families.is_empty() {
            actions.push(Action::FlushStale(families));
        }
    }

    /// The peer has sent all its routes of a family (RFC 4724 section 4.2): none is stale any more.
    pub fn end_of_rib(&mut self, family: Family) {
        self.stale.end_of_rib(family);
    }

    /// Whether routes of a former connection are kept for a peer that restarts.
    pub fn keeps_routes(&self) -> bool {
        !self.stale.families().is_empty()
    }

    /// What [`Session::suspect`] was told does not count any more.
    pub fn forget_suspicion(&mut self) {
        self.suspicion = None;
    }

    /// Notes why attempts fail, which the operating system knows and does not say: it stands for a
    /// mere timeout until a session is established.
    pub fn suspect(&mut self, now: Instant, text: String) {
        if self.suspicion.as_ref() != Some(&text) {
            self.suspicion = Some(text.clone());
            self.remember(now, ErrorKind::Password, text);
        }
    }

    /// Notes something that went wrong without an effect on the session.
    pub fn remember(&mut self, now: Instant, kind: ErrorKind, text: String) {
        self.errors += 1;
        self.last_error = Some(LastError { at: now, kind, text });
    }
}
