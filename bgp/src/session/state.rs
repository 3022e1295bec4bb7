//! Where a session is: its states, each with the data that it has and no other.

use std::time::Instant;

use crate::prefix::Family;
use crate::wire::{Negotiated, Open};

use super::open;
use super::timers::{Liveness, OPEN_WAIT, SendHold, earliest};
use super::{
    Action, ConnectionId, Established, LeftOut, LocalAddresses, Message, Restart, SessionConfig,
    SessionState,
};

#[derive(Clone, Debug)]
pub(super) enum State {
    Idle {
        /// The session has gone over its prefix limit, and rests for it.
        rest: Option<Rest>,
    },
    Opening {
        outgoing: Outgoing,
        incoming: Option<Handshake>,
    },
    Established(Box<Up>),
}

/// How long a session rests that has gone over its prefix limit.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Rest {
    Until(Instant),
    /// Until somebody starts it again.
    ForGood,
}

impl Rest {
    /// When it is over, if it ends by itself.
    pub(super) fn ends_at(self) -> Option<Instant> {
        match self {
            Rest::Until(at) => Some(at),
            Rest::ForGood => None,
        }
    }
}

/// What the side that connects out does while no session is established.
#[derive(Clone, Debug)]
pub(super) enum Outgoing {
    Passive,
    Waiting { retry_at: Instant },
    Connecting { connection: ConnectionId, give_up_at: Instant },
    Handshake(Handshake),
}

/// A connection on its way to Established.
#[derive(Clone, Debug)]
pub(super) struct Handshake {
    pub(super) connection: ConnectionId,
    pub(super) addresses: LocalAddresses,
    pub(super) local: Open,
    pub(super) phase: Phase,
}

#[derive(Clone, Debug)]
pub(super) enum Phase {
    OpenSent { give_up_at: Instant },
    OpenConfirm(Box<Confirm>),
}

#[derive(Clone, Debug)]
pub(super) struct Confirm {
    pub(super) peer: Open,
    pub(super) negotiated: Negotiated,
    pub(super) left_out: Vec<(Family, LeftOut)>,
    pub(super) liveness: Liveness,
    pub(super) give_up_at: Instant,
    /// The peer has confirmed, but another connection may yet win: until then its OPEN is awaited.
    pub(super) held_until: Option<Instant>,
}

#[derive(Clone, Debug)]
pub(super) struct Up {
    pub(super) since: Instant,
    pub(super) liveness: Liveness,
    pub(super) send_hold: SendHold,
    pub(super) established: Established,
    /// Another connection of the peer, until its OPEN says whether it replaces this one.
    pub(super) challenger: Option<Handshake>,
}

impl Outgoing {
    pub(super) fn is_handshake(&self, connection: ConnectionId) -> bool {
        matches!(self, Outgoing::Handshake(handshake) if handshake.connection == connection)
    }
}

impl State {
    /// What is on its way to Established.
    pub(super) fn handshakes_mut(&mut self) -> [Option<&mut Handshake>; 2] {
        match self {
            State::Idle { .. } => [None, None],
            State::Opening { outgoing: Outgoing::Handshake(outgoing), incoming } => {
                [Some(outgoing), incoming.as_mut()]
            }
            State::Opening { incoming, .. } => [None, incoming.as_mut()],
            State::Established(up) => [None, up.challenger.as_mut()],
        }
    }

    /// All connections, with whether anything can be sent over them yet.
    pub(super) fn connections(&self) -> Vec<(ConnectionId, bool)> {
        match self {
            State::Idle { .. } => Vec::new(),
            State::Established(up) => {
                let challenger = up.challenger.as_ref().map(|handshake| handshake.connection);
                let all = [Some(up.established.connection), challenger];
                all.into_iter().flatten().map(|connection| (connection, true)).collect()
            }
            State::Opening { outgoing, incoming } => {
                let outgoing = match outgoing {
                    Outgoing::Connecting { connection, .. } => Some((*connection, false)),
                    Outgoing::Handshake(handshake) => Some((handshake.connection, true)),
                    Outgoing::Passive | Outgoing::Waiting { .. } => None,
                };
                let incoming = incoming.as_ref().map(|handshake| (handshake.connection, true));
                outgoing.into_iter().chain(incoming).collect()
            }
        }
    }
}

impl Handshake {
    pub(super) fn begin(
        config: &SessionConfig,
        restart: Restart,
        now: Instant,
        connection: ConnectionId,
        addresses: LocalAddresses,
    ) -> Handshake {
        let local = open::local_open(config, addresses, restart);
        let phase = Phase::OpenSent { give_up_at: now + OPEN_WAIT };
        Handshake { connection, addresses, local, phase }
    }

    pub(super) fn open_action(&self) -> Action {
        Action::Send(self.connection, Message::Open(Box::new(self.local.clone())))
    }

    pub(super) fn state(&self) -> SessionState {
        match self.phase {
            Phase::OpenSent { .. } => SessionState::OpenSent,
            Phase::OpenConfirm(_) => SessionState::OpenConfirm,
        }
    }

    pub(super) fn next_deadline(&self) -> Option<Instant> {
        match &self.phase {
            Phase::OpenSent { give_up_at } => Some(*give_up_at),
            Phase::OpenConfirm(confirm) => {
                let own = earliest(Some(confirm.give_up_at), confirm.held_until);
                earliest(own, confirm.liveness.next())
            }
        }
    }
}
