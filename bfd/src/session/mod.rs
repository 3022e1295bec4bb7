//! One session: the state machine and timers of RFC 5880 section 6.8, in asynchronous mode.
//!
//! ```text
//!               ┌── Down received ──┐
//!               ▼                   │
//!   ┌─────── Down ── Down received ──► Init ── Init or Up received ──┐
//!   │          ▲ └── Init received ────────────────────────────────┐ │
//!   │          │                                                   ▼ ▼
//!   │          └── AdminDown or Down received, or silence ───────── Up
//!   └─ AdminDown: by the caller alone, who also ends it
//! ```
//!
//! The caller passes packets that belong to the session, and the time when [`Session::next_deadline`] has come.
//! Demand mode and the echo function are not offered; a peer in demand mode gets what the RFC gives it.

mod timers;

use std::num::{NonZeroU8, NonZeroU32};
use std::time::{Duration, Instant};

use crate::wire::{ControlPacket, Diagnostic, State};

use timers::Allowance;
pub use timers::{EXTRA_BURST_MAX, EXTRA_INTERVAL, Jitter};

/// How fast a session is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Timing {
    /// The interval in which packets are sent and wanted while the session is Up, above zero and at
    /// most what fits into 32 bits of microseconds.
    pub interval: Duration,
    /// How many missing packets of ours mean that we are gone.
    pub multiplier: NonZeroU8,
}

/// What the caller does.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Action {
    /// Send this packet now.
    Send(ControlPacket),
    /// The state, or what the other side says about itself, is another one.
    Changed,
}

/// A session.
#[derive(Clone, Debug)]
pub struct Session {
    timing: Timing,
    discriminator: NonZeroU32,
    jitter: Jitter,
    state: State,
    since: Instant,
    diagnostic: Diagnostic,
    ups: u64,
    /// See [`Session::lost_at`].
    lost_at: Option<Instant>,
    /// See [`Session::alive_at`].
    alive_at: Option<Instant>,
    remote: Remote,
    /// What is announced as Desired Min TX Interval.
    desired_tx: Duration,
    /// What packets are sent by; another one than announced while a poll sequence says so.
    tx_in_use: Duration,
    /// The same for Required Min RX Interval, and what silence is judged by.
    required_rx: Duration,
    rx_in_use: Duration,
    poll: Poll,
    last_sent: Option<Instant>,
    send_at: Option<Instant>,
    detect_at: Option<Instant>,
    extra: Allowance,
}

/// What the other side has said last, or the initial values of RFC 5880 section 6.8.1.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Remote {
    /// Its session; none while it is not heard.
    pub discriminator: Option<NonZeroU32>,
    /// Its state.
    pub state: State,
    /// Why it last left Up.
    pub diagnostic: Diagnostic,
    /// Its C bit: its BFD goes on when its control plane restarts. What it said last stands when it falls silent:
    /// what its silence means depends on that (RFC 5882 section 4.3).
    pub control_plane_independent: bool,
    /// Its D bit.
    pub demand: bool,
    /// Its detection multiplier, 0 while it is not heard.
    pub multiplier: u8,
    /// Its Desired Min TX Interval.
    pub desired_tx: Duration,
    /// Its Required Min RX Interval.
    pub required_rx: Duration,
}

/// A poll sequence (RFC 5880 section 6.5).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Poll {
    Idle,
    Active,
    /// Something has changed again since it began: an answer may be to the former, so that another
    /// sequence follows.
    ActiveThenAgain,
}

impl Session {
    /// A session that is Down and begins to send at once; `discriminator` is no other session's.
    pub fn new(now: Instant, timing: Timing, discriminator: NonZeroU32, jitter: Jitter) -> Session {
        let desired_tx = timing.interval.max(SLOW_INTERVAL);
        Session {
            timing,
            discriminator,
            jitter,
            state: State::Down,
            since: now,
            diagnostic: Diagnostic::None,
            ups: 0,
            lost_at: None,
            alive_at: None,
            remote: Remote::UNHEARD,
            desired_tx,
            tx_in_use: desired_tx,
            required_rx: timing.interval,
            rx_in_use: timing.interval,
            poll: Poll::Idle,
            last_sent: None,
            send_at: Some(now),
            detect_at: None,
            extra: Allowance::new(now),
        }
    }

    /// Its state.
    pub fn state(&self) -> State {
        self.state
    }

    /// Since when it is in this state.
    pub fn since(&self) -> Instant {
        self.since
    }

    /// Why it last changed.
    pub fn diagnostic(&self) -> Diagnostic {
        self.diagnostic
    }

    /// How often it has come Up.
    pub fn ups(&self) -> u64 {
        self.ups
    }

    /// Since when the path has been dead: when the session left Up, unless it has come up again or an operator of
    /// either side wanted it, which says nothing about the path (RFC 5882 section 3.2).
    pub fn lost_at(&self) -> Option<Instant> {
        self.lost_at
    }

    /// When the path was last known to be alive: when a packet came up to which the session was, or stayed, Up. What is
    /// newer than that on the path, such as a session of another protocol, has never been seen by this one.
    pub fn alive_at(&self) -> Option<Instant> {
        self.alive_at
    }

    /// What is known of the other side.
    pub fn remote(&self) -> &Remote {
        &self.remote
    }

    /// Its own discriminator.
    pub fn discriminator(&self) -> NonZeroU32 {
        self.discriminator
    }

    /// The interval in which it sends, before jitter; none while the other side wants no periodic
    /// packets (RFC 5880 sections 6.8.2, 6.8.7).
    pub fn send_interval(&self) -> Option<Duration> {
        let remote = &self.remote;
        let both_up = self.state == State::Up && remote.state == State::Up;
        let ceased = remote.demand && both_up && self.poll == Poll::Idle;
        let wanted = !remote.required_rx.is_zero() && !ceased;
        wanted.then(|| self.tx_in_use.max(remote.required_rx))
    }

    /// How long the other side may be silent (RFC 5880 section 6.8.4): its own multiplier of the interval that both
    /// sides agree to. Zero while it has not been heard.
    pub fn detection_time(&self) -> Duration {
        self.rx_in_use.max(self.remote.desired_tx) * u32::from(self.remote.multiplier)
    }

    /// When [`Session::tick`] is due.
    pub fn next_deadline(&self) -> Option<Instant> {
        match (self.send_at, self.detect_at) {
            (Some(send), Some(detect)) => Some(send.min(detect)),
            (send, detect) => send.or(detect),
        }
    }

    /// Takes in a packet of the session and appends what to do to `actions` (RFC 5880 section 6.8.6,
    /// what follows the choice of the session).
    pub fn receive(&mut self, now: Instant, packet: &ControlPacket, actions: &mut Vec<Action>) {
        let before = (self.content(), self.told());
        let slow = self.send_interval();
        self.remote = Remote::said(packet);
        if packet.is_final {
            self.poll_answered();
        }
        if self.state != State::AdminDown {
            let detection = self.detection_time();
            self.detect_at = Some(now + detection);
            if let Some((state, diagnostic)) = self.next_state(packet.state) {
                self.enter(now, state, diagnostic);
                // Detection now counts with what the new state announces.
                self.detect_at = Some(now + self.detection_time());
            }
            if self.state == State::Up {
                self.alive_at = Some(now);
            }
        }
        let answer = packet.poll && self.state != State::AdminDown;
        self.follow_up(now, before, slow, answer, actions);
    }

    /// Does what is due.
    pub fn tick(&mut self, now: Instant, actions: &mut Vec<Action>) {
        let before = (self.content(), self.told());
        let slow = self.send_interval();
        if self.detect_at.is_some_and(|at| at <= now) {
            self.silent(now);
        }
        self.follow_up(now, before, slow, false, actions);
        if self.send_at.is_some_and(|at| at <= now) {
            self.send(now, actions);
        }
    }

    /// Takes up another interval or multiplier. An Up session stays so: the other side is told by a
    /// poll sequence, and what would let it believe that we are gone waits for its answer (RFC 5880
    /// section 6.8.3).
    pub fn configure(&mut self, now: Instant, timing: Timing, actions: &mut Vec<Action>) {
        if self.timing == timing {
            return;
        }
        let before = (self.content(), self.told());
        let slow = self.send_interval();
        self.timing = timing;
        self.announce();
        // Silence is judged anew: what was heard last was heard under the former rule.
        if let (Some(_), true) = (self.detect_at, self.remote.discriminator.is_some()) {
            self.detect_at = Some(now + self.detection_time());
        }
        self.follow_up(now, before, slow, false, actions);
    }

    /// Holds the session down and says so to the other side (RFC 5880 section 6.8.16).
    pub fn disable(&mut self, now: Instant, actions: &mut Vec<Action>) {
        if self.state != State::AdminDown {
            let before = (self.content(), self.told());
            let slow = self.send_interval();
            self.enter(now, State::AdminDown, Diagnostic::AdministrativelyDown);
            self.detect_at = None;
            self.follow_up(now, before, slow, false, actions);
        }
    }

    /// Ends what [`Session::disable`] began.
    pub fn enable(&mut self, now: Instant, actions: &mut Vec<Action>) {
        if self.state == State::AdminDown {
            let before = (self.content(), self.told());
            let slow = self.send_interval();
            self.enter(now, State::Down, Diagnostic::None);
            self.remote = Remote::UNHEARD;
            self.follow_up(now, before, slow, false, actions);
        }
    }

    /// Where the state of the other side leads to, and why (RFC 5880 section 6.8.6).
    fn next_state(&self, heard: State) -> Option<(State, Diagnostic)> {
        match (self.state, heard) {
            (State::Init | State::Up, State::AdminDown) | (State::Up, State::Down) => {
                Some((State::Down, Diagnostic::NeighborDown))
            }
            (State::Down, State::Down) => Some((State::Init, self.diagnostic)),
            (State::Down, State::Init) | (State::Init, State::Init | State::Up) => {
                Some((State::Up, Diagnostic::None))
            }
            _ => None,
        }
    }

    fn enter(&mut self, now: Instant, state: State, diagnostic: Diagnostic) {
        let by_will = state == State::AdminDown || self.remote.state == State::AdminDown;
        match (self.state, state) {
            (_, State::Up) => (self.ups, self.lost_at) = (self.ups + 1, None),
            (State::Up, _) => self.lost_at = (!by_will).then_some(now),
            (_, State::AdminDown) => self.lost_at = None,
            _ => {}
        }
        (self.state, self.diagnostic, self.since) = (state, diagnostic, now);
        self.announce();
    }

    /// Nothing was heard for the detection time (RFC 5880 sections 6.8.1, 6.8.4).
    fn silent(&mut self, now: Instant) {
        self.detect_at = None;
        let control_plane_independent = self.remote.control_plane_independent;
        self.remote = Remote { control_plane_independent, ..Remote::UNHEARD };
        if matches!(self.state, State::Init | State::Up) {
            self.enter(now, State::Down, Diagnostic::DetectionTimeExpired);
        }
        // Nobody is there to answer.
        self.poll = Poll::Idle;
        self.adopt();
    }

    /// Announces the intervals of the state and timing that hold now; a change begins a poll sequence
    /// (RFC 5880 section 6.8.3).
    fn announce(&mut self) {
        let desired_tx = match self.state {
            State::Up => self.timing.interval,
            _ => self.timing.interval.max(SLOW_INTERVAL),
        };
        let required_rx = self.timing.interval;
        let changed = (self.desired_tx, self.required_rx) != (desired_tx, required_rx);
        (self.desired_tx, self.required_rx) = (desired_tx, required_rx);
        if self.state == State::Up {
            // To send less often, and to expect more, has to wait until the other side knows.
            self.tx_in_use = self.tx_in_use.min(desired_tx);
            self.rx_in_use = self.rx_in_use.max(required_rx);
        } else {
            self.adopt();
        }
        if changed && self.remote.discriminator.is_some() {
            self.poll = match self.poll {
                Poll::Idle => Poll::Active,
                Poll::Active | Poll::ActiveThenAgain => Poll::ActiveThenAgain,
            };
        }
    }

    fn poll_answered(&mut self) {
        match self.poll {
            Poll::Idle => {}
            Poll::Active => {
                self.poll = Poll::Idle;
                self.adopt();
            }
            Poll::ActiveThenAgain => self.poll = Poll::Active,
        }
    }

    fn adopt(&mut self) {
        (self.tx_in_use, self.rx_in_use) = (self.desired_tx, self.required_rx);
    }

    /// Sends what has to go at once, times the next packet, and tells of what has changed.
    fn follow_up(
        &mut self,
        now: Instant,
        (content, told): (ControlPacket, Told),
        interval: Option<Duration>,
        answer: bool,
        actions: &mut Vec<Action>,
    ) {
        let differs = self.content() != content;
        let mut answered = false;
        // RFC 5880 section 6.8.7: an answer goes whatever the timer says.
        if answer && self.extra.take(now) {
            let content = self.content();
            actions.push(Action::Send(ControlPacket { is_final: true, ..content }));
            answered = true;
        }
        // The same section: what differs from the packet before goes at once. An answer carries it too.
        if differs && !answered && self.extra.take(now) {
            self.send(now, actions);
        } else if self.send_interval() != interval {
            self.reschedule(now);
        }
        if self.told() != told {
            actions.push(Action::Changed);
        }
    }

    fn send(&mut self, now: Instant, actions: &mut Vec<Action>) {
        let poll = self.poll != Poll::Idle;
        actions.push(Action::Send(ControlPacket { poll, ..self.content() }));
        self.last_sent = Some(now);
        self.reschedule(now);
    }

    /// Times the next packet from the last one: a shorter interval holds at once, and no packet goes
    /// earlier than a longer one allows (RFC 5880 sections 6.8.2, 6.8.3).
    fn reschedule(&mut self, now: Instant) {
        let multiplier = self.timing.multiplier.get();
        self.send_at = self.send_interval().map(|interval| match self.last_sent {
            Some(last) => (last + self.jitter.apply(interval, multiplier)).max(now),
            None => now,
        });
    }

    /// What a packet says now, without Poll and Final.
    fn content(&self) -> ControlPacket {
        ControlPacket {
            diagnostic: self.diagnostic,
            state: self.state,
            poll: false,
            is_final: false,
            // RFC 5882 section 4.3: this process goes on when the agent does not.
            control_plane_independent: true,
            demand: false,
            detect_multiplier: self.timing.multiplier,
            my_discriminator: self.discriminator,
            your_discriminator: self.remote.discriminator,
            desired_min_tx_micros: micros(self.desired_tx),
            required_min_rx_micros: micros(self.required_rx),
            // No echo is returned.
            required_min_echo_rx_micros: 0,
        }
    }

    fn told(&self) -> Told {
        let Remote { state, diagnostic, control_plane_independent, .. } = self.remote;
        (self.state, self.diagnostic, state, diagnostic, control_plane_independent)
    }
}

/// What a change of is told.
type Told = (State, Diagnostic, State, Diagnostic, bool);

impl Remote {
    /// RFC 5880 section 6.8.1. The Required Min RX Interval of 1 lets packets go.
    const UNHEARD: Remote = Remote {
        discriminator: None,
        state: State::Down,
        diagnostic: Diagnostic::None,
        control_plane_independent: false,
        demand: false,
        multiplier: 0,
        desired_tx: Duration::ZERO,
        required_rx: Duration::from_micros(1),
    };

    fn said(packet: &ControlPacket) -> Remote {
        Remote {
            discriminator: Some(packet.my_discriminator),
            state: packet.state,
            diagnostic: packet.diagnostic,
            control_plane_independent: packet.control_plane_independent,
            demand: packet.demand,
            multiplier: packet.detect_multiplier.get(),
            desired_tx: Duration::from_micros(packet.desired_min_tx_micros.into()),
            required_rx: Duration::from_micros(packet.required_min_rx_micros.into()),
        }
    }
}

fn micros(duration: Duration) -> u32 {
    u32::try_from(duration.as_micros()).unwrap_or(u32::MAX)
}

/// While a session is not Up no more packets than one in this time are announced (RFC 5880 section 6.8.3).
const SLOW_INTERVAL: Duration = Duration::from_secs(1);
