//! One session and everything that can happen to it, in any order: whatever a peer, the operating
//! system and an operator do, the session keeps its promises to its caller.

use std::collections::{BTreeMap, BTreeSet};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::time::{Duration, Instant};

use cairn_bgp::config;
use cairn_bgp::prefix::{Families, Family};
use cairn_bgp::session::{
    Action, ConnectionId, DownReason, Event, Jitter, LocalAddresses, Message, Received, Restart,
    Session, SessionConfig, SessionState, StopReason,
};
use cairn_bgp::wire::{
    Capability, CeaseReason, GracefulRestart, GracefulRestartFamily, HeaderError, LongLivedFamily,
    Notification, NotificationError, Open,
};
use proptest::prelude::*;

struct Dice(u64);

impl Dice {
    fn roll(&mut self, sides: usize) -> usize {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        (self.0 >> 33) as usize % sides
    }

    fn one_in(&mut self, sides: usize) -> bool {
        self.roll(sides) == 0
    }
}

/// A connection as the session has been told of it and has spoken of it.
#[derive(Debug, PartialEq)]
enum Wire {
    /// Asked for since then.
    Asked(Instant),
    Open,
    Closed,
}

struct Walk {
    dice: Dice,
    now: Instant,
    session: Session,
    wires: BTreeMap<ConnectionId, Wire>,
    established: Option<ConnectionId>,
    hold: Duration,
    /// When something that restarts the hold timer came over the established connection.
    heard: Instant,
    /// When a KEEPALIVE went out over it.
    spoke: Instant,
    /// Families that the RIB holds as stale, and since when the oldest.
    stale: BTreeMap<Family, Instant>,
    /// Both sides of the session set the N bit.
    n_bits: bool,
    /// Since when the caller answers that nothing is taken.
    stuck: bool,
    ups: usize,
}

impl Walk {
    fn new(seed: u64) -> Walk {
        let mut dice = Dice(seed | 1);
        let now = Instant::now();
        let config = config(&mut dice);
        let restart = Restart { restarting: dice.one_in(2), forwarding_preserved: true };
        Walk {
            session: Session::new(config, restart, Jitter::new(seed)),
            dice,
            now,
            wires: BTreeMap::new(),
            established: None,
            hold: Duration::ZERO,
            heard: now,
            spoke: now,
            stale: BTreeMap::new(),
            n_bits: false,
            stuck: false,
            ups: 0,
        }
    }

    fn handle(&mut self, event: Event) {
        let mut actions = Vec::new();
        self.session.handle(self.now, event, &mut actions);
        self.perform(actions);
    }

    fn perform(&mut self, actions: Vec<Action>) {
        for action in actions {
            match action {
                Action::Connect(connection) => {
                    let before = self.wires.insert(connection, Wire::Asked(self.now));
                    assert_eq!(before, None, "a connection's name is never used twice");
                    let asked = self.wires.values().filter(|wire| matches!(wire, Wire::Asked(_)));
                    assert_eq!(asked.count(), 1, "one attempt at a time");
                    assert_eq!(self.established, None, "nobody calls who has a session");
                }
                Action::Send(connection, message) => {
                    assert_eq!(self.wires.get(&connection), Some(&Wire::Open), "{message:?}");
                    if self.established == Some(connection) && matches!(message, Message::Keepalive)
                    {
                        self.spoke = self.now;
                    }
                }
                Action::Close(connection) | Action::Abort(connection) => {
                    let before = self.wires.insert(connection, Wire::Closed);
                    assert!(matches!(before, Some(Wire::Open | Wire::Asked(_))), "{before:?}");
                }
                Action::LookAtSending(connection) => {
                    assert_eq!(self.established, Some(connection));
                    let moves = !self.stuck;
                    self.handle(Event::Sending { connection, moves });
                }
                Action::Up(established) => {
                    let connection = established.connection;
                    assert_eq!(self.established.replace(connection), None, "up twice");
                    assert_eq!(self.wires.get(&connection), Some(&Wire::Open));
                    assert!(!established.families().is_empty());
                    let kept = established.stale_kept;
                    assert!(
                        kept.iter().all(|family| self.stale.contains_key(&family)),
                        "only what is stale can be kept"
                    );
                    self.stale.retain(|family, _| kept.contains(*family));
                    self.n_bits = established.notification;
                    self.hold = Duration::from_secs(established.negotiated.hold_time_secs.into());
                    (self.heard, self.spoke) = (self.now, self.now);
                    self.ups += 1;
                }
                Action::Down { reason, keep, keep_older } => {
                    let connection = self.established.take().expect("down without up");
                    assert_ne!(self.wires.get(&connection), Some(&Wire::Open), "{reason}");
                    assert_eq!(keep_older.intersection(keep), keep_older);
                    self.down(&reason, keep, keep_older);
                }
                Action::FlushStale(families) => {
                    assert!(!families.is_empty());
                    for family in families.iter() {
                        self.stale.remove(&family).expect("there is something stale");
                    }
                }
                Action::LongLivedStale(families) => {
                    assert!(!families.is_empty());
                    for family in families.iter() {
                        assert!(self.stale.contains_key(&family), "only what is stale");
                    }
                }
            }
        }
    }

    fn down(&mut self, reason: &DownReason, keep: Families, keep_older: Families) {
        match reason {
            DownReason::HoldTimerExpired => {
                assert!(!self.hold.is_zero() && self.now >= self.heard + self.hold);
            }
            DownReason::Stopped(_)
            | DownReason::NotificationReceived(_)
            | DownReason::NotificationSent(_) => {
                // RFC 4724 section 4: only a connection that ends without a NOTIFICATION, but for the
                // N bit of RFC 8538.
                assert!(keep.is_empty() || self.n_bits, "{reason}");
            }
            _ => {}
        }
        let before = std::mem::take(&mut self.stale);
        for family in keep.iter() {
            let since = before.get(&family).filter(|_| keep_older.contains(family));
            self.stale.insert(family, since.copied().unwrap_or(self.now));
        }
    }

    /// What has to be true after each step.
    fn check(&self) {
        let state = self.session.state();
        let established = self.session.established().map(|e| e.connection);
        assert_eq!(established, self.established);
        assert_eq!(state == SessionState::Established, established.is_some());
        let open = self.wires.values().filter(|wire| **wire != Wire::Closed).count();
        assert!(open <= 2, "at most one of each direction: {:?}", self.wires);
        if state == SessionState::Idle {
            assert_eq!(open, 0, "who is stopped has closed everything");
        }
    }

    /// What has to be true once a tick was told that nothing was late.
    fn check_time(&self) {
        let deadline = self.session.next_deadline();
        assert!(deadline.is_none_or(|at| at > self.now), "a deadline in the past after a tick");
        for wire in self.wires.values() {
            if let Wire::Asked(since) = wire {
                assert!(self.now < *since + CONNECT_WAIT, "an attempt is given up");
            }
        }
        if self.established.is_some() && !self.hold.is_zero() {
            assert!(self.now < self.heard + self.hold, "silence ends a session");
            assert!(self.now < self.spoke + self.hold / 3 + SLACK, "the peer hears of us");
        }
        for since in self.stale.values() {
            assert!(self.now <= *since + STALE_MAX, "what is stale goes one day");
        }
    }

    /// Lets time pass as a good caller does: no deadline is missed.
    fn wait(&mut self, time: Duration) {
        let end = self.now + time;
        while let Some(at) = self.session.next_deadline().filter(|at| *at <= end) {
            self.now = self.now.max(at);
            self.handle(Event::Tick);
            self.check();
            self.check_time();
        }
        self.now = end;
    }

    /// Time passes, and nobody looks: the process was stopped.
    fn sleep(&mut self, time: Duration) {
        self.now += time;
        self.handle(Event::Tick);
        self.handle(Event::Tick);
        self.check();
    }

    fn any_connection(&mut self) -> ConnectionId {
        let known: Vec<ConnectionId> = self.wires.keys().copied().collect();
        // Mostly one of the latest; sometimes one that has never been.
        match known.len() {
            0 => ConnectionId(99_999),
            _ if self.dice.one_in(30) => ConnectionId(99_999),
            len => known[len - 1 - self.dice.roll(len.min(3))],
        }
    }

    fn connected(&mut self) {
        let asked = self.wires.iter().find(|(_, wire)| matches!(wire, Wire::Asked(_)));
        let Some(connection) = asked.map(|(connection, _)| *connection) else { return };
        if self.dice.one_in(3) {
            self.wires.insert(connection, Wire::Closed);
            let error = "connection refused".to_owned();
            self.handle(Event::ConnectFailed { connection, error });
        } else {
            self.wires.insert(connection, Wire::Open);
            self.handle(Event::Connected { connection, addresses: addresses() });
        }
    }

    fn accepted(&mut self) {
        let connection = self.session.next_connection();
        let before = self.wires.insert(connection, Wire::Open);
        assert_eq!(before, None, "a connection's name is never used twice");
        self.handle(Event::Accepted { connection, addresses: addresses() });
    }

    fn received(&mut self, message: Received) {
        let connection = self.any_connection();
        if matches!(self.wires.get(&connection), Some(Wire::Asked(_))) {
            return;
        }
        if self.established == Some(connection)
            && matches!(message, Received::Keepalive | Received::Update)
        {
            self.heard = self.now;
        }
        self.handle(Event::Received { connection, message });
    }

    fn lost(&mut self) {
        let connection = self.any_connection();
        if self.wires.get(&connection) == Some(&Wire::Open) {
            self.wires.insert(connection, Wire::Closed);
        }
        if !matches!(self.wires.get(&connection), Some(Wire::Asked(_))) {
            self.handle(Event::Lost { connection, error: None });
        }
    }

    /// The peer does all that it takes to come up.
    fn cooperate(&mut self) {
        self.handle(Event::Start);
        self.wait(Duration::from_secs(40));
        self.accepted();
        let Some((connection, _)) = self.wires.last_key_value() else { return };
        let connection = *connection;
        let mut open = open(&mut self.dice);
        open.asn = 65002;
        open.router_id = Ipv4Addr::new(192, 0, 2, 2);
        open.capabilities.push(Capability::multiprotocol(Family::Ipv4Unicast));
        open.capabilities.retain(|c| !matches!(c, Capability::FourOctetAs(_)));
        for message in [Received::Open(Box::new(open)), Received::Keepalive] {
            if self.established == Some(connection) {
                self.heard = self.now;
            }
            self.handle(Event::Received { connection, message });
            self.check();
        }
    }

    fn step(&mut self) {
        match self.dice.roll(36) {
            32..=35 => self.cooperate(),
            0 => self.handle(Event::Start),
            1 => {
                let reason = stop_reason(&mut self.dice);
                self.handle(Event::Stop(reason));
            }
            2 => {
                let config = config(&mut self.dice);
                let mut actions = Vec::new();
                self.session.configure(self.now, config, &mut actions);
                self.perform(actions);
            }
            3..=6 => self.connected(),
            7..=9 => self.accepted(),
            10..=15 => {
                let open = open(&mut self.dice);
                self.received(Received::Open(Box::new(open)));
            }
            16..=21 => self.received(Received::Keepalive),
            22 => self.received(Received::Update),
            23 => self.received(Received::RouteRefresh),
            24 => {
                let notification = Notification::cease(CeaseReason::OutOfResources, None);
                self.received(Received::Notification(notification));
            }
            25 => {
                let connection = self.any_connection();
                let error = NotificationError::Header(HeaderError::BadMessageLength);
                self.handle(Event::Malformed { connection, notification: error.into() });
            }
            26 => self.lost(),
            27 => {
                if let Some(connection) = self.established {
                    self.handle(Event::CarrierLost { connection });
                }
            }
            28 => self.stuck = !self.stuck,
            29 => {
                let time = Duration::from_millis(self.dice.roll(400_000) as u64);
                self.sleep(time);
            }
            _ => {
                let time = Duration::from_millis(self.dice.roll(20_000) as u64);
                self.wait(time);
            }
        }
        self.check();
    }
}

fn addresses() -> LocalAddresses {
    LocalAddresses {
        ipv4: Some(Ipv4Addr::new(192, 0, 2, 1)),
        ipv6: Some(Ipv6Addr::new(0x2001, 0xdb8, 0, 0, 0, 0, 0, 1)),
        link: None,
    }
}

fn config(dice: &mut Dice) -> SessionConfig {
    SessionConfig {
        address: IpAddr::V4(Ipv4Addr::new(192, 0, 2, 2)),
        local_asn: 65001,
        peer_asn: 65002,
        router_id: Ipv4Addr::new(192, 0, 2, 1),
        passive: dice.one_in(4),
        families: [Families::from_iter(Family::ALL), Families::NONE.with(Family::Ipv4Unicast)]
            [dice.roll(2)],
        extended_next_hop: false,
        hold_time_secs: [0, 3, 9, 90][dice.roll(4)],
        send_hold_time_secs: [0, 20, 480][dice.roll(3)],
        connect_retry_secs: [0, 1, 5, 30][dice.roll(4)],
        graceful_restart: graceful_restart(dice),
        has_password: dice.one_in(2),
        add_path: Default::default(),
    }
}

fn graceful_restart(dice: &mut Dice) -> Option<config::GracefulRestart> {
    let stale_time_secs = STALE_TIME_SECS;
    (!dice.one_in(3)).then(|| config::GracefulRestart {
        restart_time_secs: 60,
        notification: dice.one_in(2),
        long_lived: dice.one_in(2).then_some(config::LongLived { stale_time_secs, within: None }),
    })
}

fn stop_reason(dice: &mut Dice) -> StopReason {
    match dice.roll(5) {
        0 => StopReason::Shutdown { text: "text".to_owned() },
        1 => StopReason::KeepRoutes,
        2 => StopReason::Removed,
        3 => StopReason::ConfigurationChange { same_peer: dice.one_in(2) },
        _ => StopReason::PrefixLimit {
            family: Family::Ipv4Unicast,
            prefixes_max: 7,
            restart_after_secs: [None, Some(30)][dice.roll(2)],
        },
    }
}

/// An OPEN of the peer: mostly one that fits.
fn open(dice: &mut Dice) -> Open {
    let asn = if dice.one_in(10) { 65003 } else { 65002 };
    let mut capabilities = vec![Capability::FourOctetAs(asn)];
    for family in Family::ALL {
        if !dice.one_in(5) {
            capabilities.push(Capability::multiprotocol(family));
        }
    }
    if !dice.one_in(3) {
        let forwarding = dice.one_in(2);
        let family = |family: Family| GracefulRestartFamily {
            afi: family.afi(),
            safi: family.safi(),
            forwarding,
        };
        capabilities.push(Capability::GracefulRestart(GracefulRestart {
            restarting: dice.one_in(2),
            notification: dice.one_in(2),
            restart_time_secs: [0, 20, 200][dice.roll(3)],
            families: Family::ALL.into_iter().map(family).collect(),
        }));
        if dice.one_in(2) {
            let mut family = |family: Family| LongLivedFamily {
                afi: family.afi(),
                safi: family.safi(),
                forwarding: dice.one_in(2),
                stale_time_secs: [0, 50, 5000][dice.roll(3)],
            };
            let families = Family::ALL.map(&mut family);
            capabilities.push(Capability::LongLivedGracefulRestart(families.to_vec()));
        }
    }
    Open {
        asn,
        hold_time_secs: [0, 3, 30, 180][dice.roll(4)],
        router_id: Ipv4Addr::new(192, 0, 2, if dice.one_in(10) { 1 } else { 2 }),
        capabilities,
    }
}

proptest! {
    #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::with_cases(4000) })]

    #[test]
    fn whatever_happens_a_session_keeps_its_promises(seed: u64, steps in 1usize..300) {
        walk(seed, steps);
    }
}

/// In one moment a peer that takes nothing any more has to be looked at, and what is stale has waited long
/// enough: what the lost session leaves is not what goes.
#[test]
fn a_stuck_session_that_ends_keeps_its_routes_although_older_ones_go() {
    walk(3943016929597914846, 50);
}

fn walk(seed: u64, steps: usize) {
    let mut walk = Walk::new(seed);
    for _ in 0..steps {
        walk.step();
    }
    walk.handle(Event::Stop(StopReason::Removed));
    walk.check();
    assert_eq!(walk.session.next_deadline(), None);
    assert!(walk.stale.is_empty());
}

/// The walk goes somewhere: sessions come up, go down by every reason, and leave stale routes.
#[test]
fn the_walk_sees_all_of_the_state_machine() {
    let (mut ups, mut states) = (0, BTreeSet::new());
    for seed in 1..200 {
        let mut walk = Walk::new(seed * 0x9e37_79b9);
        for _ in 0..200 {
            walk.step();
            states.insert(format!("{:?}", walk.session.state()));
        }
        ups += walk.ups;
    }
    assert_eq!(states.len(), 6, "{states:?}");
    assert!(ups > 200, "{ups}");
}

/// Both have called at once. The peer has confirmed our connection, and that it has not seen before
/// it resolved the collision the other way: RFC 4271 section 6.8 prefers the call of the higher
/// identifier, which is the peer's.
#[test]
fn a_connection_that_would_lose_the_collision_waits_for_the_other() {
    let begin = || {
        let mut walk = Walk::new(1);
        let plain = SessionConfig { passive: false, hold_time_secs: 90, ..config(&mut Dice(1)) };
        walk.session.configure(walk.now, plain, &mut Vec::new());
        walk.handle(Event::Start);
        let (ours, _) = walk.wires.last_key_value().expect("a call");
        let ours = *ours;
        walk.wires.insert(ours, Wire::Open);
        walk.handle(Event::Connected { connection: ours, addresses: addresses() });
        walk.accepted();
        let (theirs, _) = walk.wires.last_key_value().expect("their call");
        let theirs = *theirs;
        let open = Open {
            asn: 65002,
            hold_time_secs: 90,
            router_id: Ipv4Addr::new(192, 0, 2, 2),
            capabilities: vec![Capability::multiprotocol(Family::Ipv4Unicast)],
        };
        let message = Received::Open(Box::new(open.clone()));
        walk.handle(Event::Received { connection: ours, message });
        walk.handle(Event::Received { connection: ours, message: Received::Keepalive });
        assert_eq!(walk.established, None);
        (walk, ours, theirs, open)
    };
    // The peer has chosen its own.
    let (mut walk, ours, theirs, open) = begin();
    let collision = Notification::cease(CeaseReason::ConnectionCollision, None);
    let message = Received::Notification(collision);
    walk.handle(Event::Received { connection: ours, message });
    for message in [Received::Open(Box::new(open)), Received::Keepalive] {
        walk.handle(Event::Received { connection: theirs, message });
    }
    assert_eq!((walk.established, walk.ups), (Some(theirs), 1));
    // Its OPEN comes first.
    let (mut walk, ours, theirs, open) = begin();
    for message in [Received::Open(Box::new(open)), Received::Keepalive] {
        walk.handle(Event::Received { connection: theirs, message });
    }
    assert_eq!((walk.established, walk.ups), (Some(theirs), 1));
    assert_eq!(walk.wires.get(&ours), Some(&Wire::Closed));
    // The peer is established on ours, and says so.
    let (mut walk, ours, theirs, _) = begin();
    walk.handle(Event::Received { connection: ours, message: Received::Update });
    assert_eq!(walk.established, Some(ours));
    assert_eq!(walk.wires.get(&theirs), Some(&Wire::Closed));
    // Nothing more comes.
    let (mut walk, ours, ..) = begin();
    walk.wait(Duration::from_secs(1));
    assert_eq!(walk.established, Some(ours));
}

/// As the session has it: how long the operating system may take to connect.
const CONNECT_WAIT: Duration = Duration::from_secs(10);
/// How long routes may be a last resort.
const STALE_TIME_SECS: u32 = 400;
/// Nothing is stale for longer, however often the peer restarts: a restart time of 200 s, 300 s once the
/// session is back, and the time as a last resort.
const STALE_MAX: Duration = Duration::from_secs(200 + 300 + STALE_TIME_SECS as u64);
const SLACK: Duration = Duration::from_millis(1);
