//! The session state machine: single rows of RFC 4271 section 8, and two sessions joined under a
//! virtual clock with cuts, crashes and delays.

mod session_bench;

use std::collections::BTreeMap;
use std::net::Ipv4Addr;
use std::time::{Duration, Instant};

use cairn_bgp::prefix::{Families, Family};
use cairn_bgp::session::{
    Action, ConnectionId, DownReason, Event, Jitter, Message, Received, Restart, Session,
    SessionConfig, SessionState, StopReason,
};
use cairn_bgp::wire::{
    Capability, CeaseReason, FsmError, Notification, NotificationError, Open, OpenError,
};
use proptest::prelude::*;

use session_bench::*;

#[test]
fn the_way_to_established_and_its_timers() {
    let mut bench = Bench::new(config(1, 2, 65001, 65002));
    assert_eq!(bench.session.state(), SessionState::Idle);
    bench.establish();
    assert_eq!(bench.session.state(), SessionState::Established);
    let established = bench.session.established().expect("established");
    assert_eq!(established.negotiated.hold_time_secs, 30, "the smaller of both");
    assert!(established.promises_end_of_rib());
    // Keepalives come at a third of the hold time at most; without any from the peer it ends.
    let started = bench.now;
    let mut keepalives = 0;
    let actions = loop {
        let actions = bench.next();
        if !matches!(&actions[..], [Action::Send(_, Message::Keepalive)]) {
            break actions;
        }
        keepalives += 1;
    };
    assert!((3..=4).contains(&keepalives), "{keepalives}");
    assert_eq!(bench.now - started, Duration::from_secs(30));
    let (reason, keep) = down(&actions).expect("down");
    assert_eq!((reason, keep), (&DownReason::HoldTimerExpired, Families::NONE));
}

#[test]
fn a_keepalive_or_update_restarts_the_hold_timer() {
    for message in [Received::Keepalive, Received::Update] {
        let mut bench = Bench::new(config(1, 2, 65001, 65002));
        let connection = bench.establish();
        bench.now += Duration::from_secs(29);
        bench.receive(connection, message);
        bench.now += Duration::from_secs(29);
        bench.handle(Event::Tick);
        assert_eq!(bench.session.state(), SessionState::Established);
    }
}

#[test]
fn attempts_are_repeated_after_the_configured_time_without_growing() {
    let mut bench = Bench::new(config(1, 2, 65001, 65002));
    let mut actions = bench.handle(Event::Start);
    for _ in 0..20 {
        let [Action::Connect(connection)] = actions[..] else { panic!("{actions:?}") };
        bench.handle(Event::ConnectFailed { connection, error: "refused".into() });
        let before = bench.now;
        actions = bench.next();
        let wait = bench.now - before;
        assert!((7_500..=10_000).contains(&wait.as_millis()), "{wait:?}");
    }
    let error = bench.session.last_error().expect("an error");
    assert_eq!(error.text, "cannot connect to 192.0.2.2: refused");
}

#[test]
fn an_attempt_without_an_answer_is_given_up() {
    let mut bench = Bench::new(config(1, 2, 65001, 65002));
    let [Action::Connect(connection)] = bench.handle(Event::Start)[..] else { panic!() };
    let actions = bench.next();
    assert!(matches!(actions[..], [Action::Close(c)] if c == connection), "{actions:?}");
    // What arrives late changes nothing.
    let late = Event::Connected { connection, addresses: addresses() };
    assert!(bench.handle(late).is_empty());
}

#[test]
fn opens_that_are_refused() {
    let same_id = Open { router_id: Ipv4Addr::new(192, 0, 2, 1), ..open(65001) };
    let no_family =
        Open { capabilities: vec![Capability::Multiprotocol { afi: 25, safi: 70 }], ..open(65002) };
    let rows = [
        (65002, open(65009), OpenError::BadPeerAs, "peer says AS 65009, configured is 65002"),
        (65001, same_id, OpenError::BadIdentifier, "give one of both another router ID"),
        (65002, no_family, OpenError::UnsupportedCapability, "no address family in common"),
    ];
    for (peer_asn, open, error, text) in rows {
        let mut bench = Bench::new(config(1, 2, 65001, peer_asn));
        let connection = bench.connect();
        let actions = bench.receive(connection, Received::Open(Box::new(open)));
        assert_eq!(farewell(&actions, connection), Some(NotificationError::Open(error)));
        assert_eq!(bench.session.state(), SessionState::Active);
        // RFC 5492 section 5: the capabilities that are missed.
        let missed: &[u8] = match error {
            OpenError::UnsupportedCapability => &[1, 4, 0, 1, 0, 1, 1, 4, 0, 2, 0, 1],
            _ => &[],
        };
        assert_eq!(farewell_data(&actions), missed);
        let last = &bench.session.last_error().expect("an error").text;
        assert!(last.contains(text), "{last}");
    }
}

#[test]
fn messages_that_may_not_come() {
    let open = || Received::Open(Box::new(open(65002)));
    let rows = [
        (SessionState::OpenSent, Received::Keepalive, FsmError::UnexpectedInOpenSent, 4),
        (SessionState::OpenSent, Received::Update, FsmError::UnexpectedInOpenSent, 2),
        (SessionState::OpenSent, Received::RouteRefresh, FsmError::UnexpectedInOpenSent, 5),
        (SessionState::OpenConfirm, open(), FsmError::UnexpectedInOpenConfirm, 1),
        (SessionState::OpenConfirm, Received::Update, FsmError::UnexpectedInOpenConfirm, 2),
        (SessionState::Established, open(), FsmError::UnexpectedInEstablished, 1),
    ];
    for (state, message, error, message_type) in rows {
        let mut bench = Bench::new(config(1, 2, 65001, 65002));
        let connection = bench.connect();
        if state != SessionState::OpenSent {
            bench.receive(connection, open());
        }
        if state == SessionState::Established {
            bench.receive(connection, Received::Keepalive);
        }
        assert_eq!(bench.session.state(), state);
        let actions = bench.receive(connection, message);
        assert_eq!(
            farewell(&actions, connection),
            Some(NotificationError::Fsm(error)),
            "{state:?}"
        );
        // RFC 6608 section 4: the type of the message.
        assert_eq!(farewell_data(&actions), [message_type], "{state:?}");
        assert_eq!(down(&actions).is_some(), state == SessionState::Established);
        assert_eq!(bench.session.state(), SessionState::Active);
    }
}

/// RFC 4271 section 6.8: the connection of the side with the higher identifier stays, in whichever
/// order the OPENs come.
#[test]
fn collisions() {
    for (local, keeps_outgoing) in [(1, false), (3, true)] {
        for outgoing_first in [true, false] {
            let mut bench = Bench::new(config(local, 2, 65001, 65002));
            let outgoing = bench.connect();
            let (incoming, _) = bench.accept();
            let (first, second) =
                if outgoing_first { (outgoing, incoming) } else { (incoming, outgoing) };
            bench.confirm(first, open(65002));
            let actions = bench.receive(second, Received::Open(Box::new(open(65002))));
            let (winner, loser) =
                if keeps_outgoing { (outgoing, incoming) } else { (incoming, outgoing) };
            let collision = NotificationError::Cease(CeaseReason::ConnectionCollision);
            assert_eq!(farewell(&actions, loser), Some(collision));
            assert_eq!(farewell(&actions, winner), None);
            bench.receive(winner, Received::Keepalive);
            let established = bench.session.established().expect("established");
            assert_eq!(established.connection, winner);
        }
    }
}

#[test]
fn a_second_connection_is_refused_without_graceful_restart_and_replaces_with_it() {
    let mut bench =
        Bench::new(SessionConfig { graceful_restart: None, ..config(1, 2, 65001, 65002) });
    let old = bench.establish();
    let (second, actions) = bench.accept();
    let collision = NotificationError::Cease(CeaseReason::ConnectionCollision);
    assert_eq!(farewell(&actions, second), Some(collision));
    assert_eq!(bench.session.established().map(|e| e.connection), Some(old));

    // RFC 4724 section 5. The connection alone proves nothing: its OPEN has to be one of the peer.
    let mut bench = Bench::new(config(1, 2, 65001, 65002));
    let old = bench.establish();
    bench.now += Duration::from_secs(20);
    let (probe, actions) = bench.accept();
    assert!(matches!(&actions[..], [Action::Send(c, Message::Open(_))] if *c == probe));
    bench.handle(Event::Lost { connection: probe, error: None });
    let (stranger, _) = bench.accept();
    let actions = bench.receive(stranger, Received::Open(Box::new(open(65009))));
    assert_eq!(farewell(&actions, stranger), Some(NotificationError::Open(OpenError::BadPeerAs)));
    let (silent, _) = bench.accept();
    let (second, actions) = bench.accept();
    assert_eq!(farewell(&actions, silent), Some(collision));
    assert_eq!(bench.session.established().map(|e| e.connection), Some(old));
    let actions = bench.receive(second, Received::Open(Box::new(open(65002))));
    assert!(actions.iter().any(|a| matches!(a, Action::Close(c) if *c == old)));
    assert_eq!(down(&actions), Some((&DownReason::Replaced, BOTH())));
    let actions = bench.receive(second, Received::Keepalive);
    let [Action::Up(established)] = &actions[..] else { panic!("{actions:?}") };
    assert_eq!(established.stale_kept, BOTH());
}

/// The slower half of a collision does not end the session that the faster one has just brought up,
/// unless the peer says that it has restarted.
#[test]
fn a_second_connection_right_after_the_first_is_a_collision() {
    for restarting in [false, true] {
        let mut bench = Bench::new(config(1, 2, 65001, 65002));
        let first = bench.establish();
        let (second, _) = bench.accept();
        let mut again = open(65002);
        for capability in &mut again.capabilities {
            if let Capability::GracefulRestart(restart) = capability {
                restart.restarting = restarting;
            }
        }
        let actions = bench.receive(second, Received::Open(Box::new(again)));
        let collision = NotificationError::Cease(CeaseReason::ConnectionCollision);
        assert_eq!(farewell(&actions, second), (!restarting).then_some(collision));
        assert_eq!(down(&actions).is_some(), restarting);
        let established = bench.session.established().map(|e| e.connection);
        assert_eq!(established, (!restarting).then_some(first));
    }
}

/// A second connection that is waiting for its OPEN takes over when the session breaks, and goes with
/// the session when that is stopped.
#[test]
fn a_second_connection_outlives_the_session_it_came_beside() {
    let mut bench = Bench::new(config(1, 2, 65001, 65002));
    let old = bench.establish();
    let (second, _) = bench.accept();
    let actions = bench.handle(Event::Lost { connection: old, error: None });
    assert!(down(&actions).is_some());
    bench.confirm(second, open(65002));
    let actions = bench.receive(second, Received::Keepalive);
    assert!(matches!(&actions[..], [Action::Up(_)]), "{actions:?}");
    let (third, _) = bench.accept();
    let actions = bench.handle(Event::Stop(StopReason::Removed));
    let removed = NotificationError::Cease(CeaseReason::PeerDeconfigured);
    assert_eq!(farewell(&actions, second), Some(removed));
    assert_eq!(farewell(&actions, third), Some(removed));
}

/// What has come in, but is not read yet, holds up the end of the session and nothing else.
#[test]
fn octets_that_wait_put_off_the_hold_timer_and_not_the_keepalives() {
    let mut bench = Bench::new(SessionConfig { hold_time_secs: 3, ..config(1, 2, 65001, 65002) });
    let connection = bench.establish();
    let mut keepalives = 0;
    for _ in 0..100 {
        bench.now += Duration::from_millis(100);
        if bench.session.hold_expired(bench.now) == Some(connection) {
            bench.session.put_off_hold(bench.now);
        }
        let actions = bench.handle(Event::Tick);
        assert!(down(&actions).is_none());
        keepalives +=
            actions.iter().filter(|a| matches!(a, Action::Send(_, Message::Keepalive))).count();
    }
    assert!((9..=14).contains(&keepalives), "{keepalives}");
    bench.now += Duration::from_millis(100);
    let actions = bench.handle(Event::Tick);
    assert_eq!(down(&actions), Some((&DownReason::HoldTimerExpired, Families::NONE)));
}

/// Which ends of a session keep routes (RFC 4724 section 4.2).
#[test]
fn what_keeps_routes() {
    let cease = |reason| Received::Notification(Notification::cease(reason, None));
    let lost =
        |bench: &mut Bench, connection| bench.handle(Event::Lost { connection, error: None });
    let mut bench = Bench::new(config(1, 2, 65001, 65002));
    let connection = bench.establish();
    assert_eq!(down(&lost(&mut bench, connection)).expect("down").1, BOTH());
    // Not back in time: the peer said 20 s.
    let started = bench.now;
    loop {
        let actions = bench.next();
        if let Some(Action::FlushStale(families)) =
            actions.iter().find(|a| matches!(a, Action::FlushStale(_)))
        {
            assert_eq!(*families, BOTH());
            break;
        }
        for action in actions {
            if let Action::Connect(connection) = action {
                bench.handle(Event::ConnectFailed { connection, error: "refused".into() });
            }
        }
    }
    assert_eq!(bench.now - started, Duration::from_secs(20));

    let mut bench = Bench::new(config(1, 2, 65001, 65002));
    let connection = bench.establish();
    let actions = bench.receive(connection, cease(CeaseReason::AdministrativeShutdown));
    assert_eq!(down(&actions).expect("down").1, Families::NONE);

    let mut bench = Bench::new(config(1, 2, 65001, 65002));
    bench.establish();
    let actions = bench.handle(Event::Stop(StopReason::Removed));
    assert_eq!(down(&actions).expect("down").1, Families::NONE);
    assert_eq!(bench.session.next_deadline(), None);

    // Removed while the routes are stale.
    let mut bench = Bench::new(config(1, 2, 65001, 65002));
    let connection = bench.establish();
    lost(&mut bench, connection);
    let actions = bench.handle(Event::Stop(StopReason::Removed));
    assert!(actions.iter().any(|a| matches!(a, Action::FlushStale(f) if *f == BOTH())));

    // The peer offers no graceful restart.
    let mut bench = Bench::new(config(1, 2, 65001, 65002));
    let connection = bench.connect();
    let mut plain = open(65002);
    plain.capabilities.retain(|c| !matches!(c, Capability::GracefulRestart(_)));
    bench.confirm(connection, plain);
    bench.receive(connection, Received::Keepalive);
    assert_eq!(down(&lost(&mut bench, connection)).expect("down").1, Families::NONE);
}

/// RFC 4724 section 4.2: a family whose forwarding the peer did not keep goes when it is back.
#[test]
fn what_the_peer_did_not_keep_forwarding_is_not_kept() {
    let mut bench = Bench::new(config(1, 2, 65001, 65002));
    let connection = bench.establish();
    bench.handle(Event::Lost { connection, error: None });
    let (connection, _) = bench.accept();
    let mut back = open(65002);
    for capability in &mut back.capabilities {
        if let Capability::GracefulRestart(restart) = capability {
            restart.families[1].forwarding = false;
        }
    }
    bench.confirm(connection, back);
    let actions = bench.receive(connection, Received::Keepalive);
    let up = actions.iter().find_map(|action| match action {
        Action::Up(established) => Some(established.stale_kept),
        _ => None,
    });
    assert_eq!(up, Some(Families::NONE.with(Family::Ipv4Unicast)));
}

#[test]
fn a_passive_session_waits_and_a_stopped_one_refuses() {
    let mut bench = Bench::new(SessionConfig { passive: true, ..config(1, 2, 65001, 65002) });
    let (connection, actions) = bench.accept();
    let rejected = NotificationError::Cease(CeaseReason::ConnectionRejected);
    assert_eq!(farewell(&actions, connection), Some(rejected));
    assert!(bench.handle(Event::Start).is_empty());
    assert_eq!(bench.session.next_deadline(), None);
    let (connection, _) = bench.accept();
    bench.confirm(connection, open(65002));
    bench.receive(connection, Received::Keepalive);
    assert_eq!(bench.session.state(), SessionState::Established);
    // Not passive any more after the session's end.
    bench.handle(Event::Lost { connection, error: None });
    let mut actions = Vec::new();
    bench.session.configure(bench.now, config(1, 2, 65001, 65002), &mut actions);
    assert!(matches!(actions[..], [Action::Connect(_)]), "{actions:?}");
}

/// Two sessions joined by a network that delays, cuts and forgets.
struct Joined {
    now: Instant,
    sides: [Session; 2],
    /// Both ends of each connection that stands.
    links: BTreeMap<(usize, ConnectionId), ConnectionId>,
    flying: Vec<Flying>,
    sequence: u64,
    dice: u64,
    up: [bool; 2],
}

#[derive(Debug)]
struct Flying {
    at: Instant,
    sequence: u64,
    to: usize,
    what: Event,
    /// A connection request: the sender's connection.
    from: Option<ConnectionId>,
}

impl Joined {
    fn new(seed: u64) -> Joined {
        let (a, b) = (config(1, 2, 65001, 65002), config(2, 1, 65002, 65001));
        let session = |config, seed| Session::new(config, FRESH, Jitter::new(seed));
        let mut joined = Joined {
            now: Instant::now(),
            sides: [session(a, seed), session(b, seed ^ 0x5555)],
            links: BTreeMap::new(),
            flying: Vec::new(),
            sequence: 0,
            dice: seed | 1,
            up: [false; 2],
        };
        joined.handle(0, Event::Start);
        joined.handle(1, Event::Start);
        joined
    }

    fn roll(&mut self, sides: u64) -> u64 {
        self.dice ^= self.dice << 13;
        self.dice ^= self.dice >> 7;
        self.dice ^= self.dice << 17;
        (self.dice >> 33) % sides
    }

    /// Puts something on its way; what goes the same way stays in order.
    fn fly(&mut self, to: usize, what: Event, from: Option<ConnectionId>) {
        let mut at = self.now + Duration::from_millis(1 + self.roll(40));
        if let Some(last) = self.flying.iter().filter(|f| f.to == to).map(|f| f.at).max() {
            at = at.max(last);
        }
        self.sequence += 1;
        self.flying.push(Flying { at, sequence: self.sequence, to, what, from });
    }

    fn handle(&mut self, side: usize, event: Event) {
        let mut actions = Vec::new();
        self.sides[side].handle(self.now, event, &mut actions);
        let other = 1 - side;
        for action in actions {
            match action {
                Action::Connect(connection) => {
                    let placeholder = Event::Start;
                    self.fly(other, placeholder, Some(connection));
                }
                Action::Send(connection, message) => {
                    let Some(there) = self.links.get(&(side, connection)).copied() else {
                        continue;
                    };
                    let message = match message {
                        Message::Open(open) => Received::Open(open),
                        Message::Keepalive => Received::Keepalive,
                        Message::Notification(notification) => Received::Notification(notification),
                    };
                    self.fly(other, Event::Received { connection: there, message }, None);
                }
                Action::Close(connection) | Action::Abort(connection) => {
                    self.close(side, connection);
                }
                Action::LookAtSending(connection) => {
                    let event = Event::Sending { connection, moves: true };
                    self.handle(side, event);
                }
                Action::Up(_) => {
                    assert!(!self.up[side], "up twice");
                    self.up[side] = true;
                }
                Action::Down { .. } => {
                    assert!(self.up[side], "down without up");
                    self.up[side] = false;
                }
                Action::FlushStale(_) | Action::LongLivedStale(_) => {}
            }
        }
        let state = self.sides[side].state();
        assert_eq!(self.up[side], state == SessionState::Established);
    }

    fn close(&mut self, side: usize, connection: ConnectionId) {
        if let Some(there) = self.links.remove(&(side, connection)) {
            let other = 1 - side;
            self.links.remove(&(other, there));
            self.fly(other, Event::Lost { connection: there, error: None }, None);
        }
    }

    fn arrive(&mut self, flying: Flying) {
        let Some(here) = flying.from else { return self.handle(flying.to, flying.what) };
        let (caller, called) = (1 - flying.to, flying.to);
        let there = self.sides[called].next_connection();
        self.links.insert((caller, here), there);
        self.links.insert((called, there), here);
        self.handle(caller, Event::Connected { connection: here, addresses: addresses() });
        self.handle(called, Event::Accepted { connection: there, addresses: addresses() });
    }

    /// The next thing that happens by itself.
    fn advance(&mut self) {
        let arrival = self.flying.iter().map(|f| (f.at, f.sequence)).min();
        let deadline = (0..2).filter_map(|s| Some((self.sides[s].next_deadline()?, s))).min();
        match (arrival, deadline) {
            (Some((at, sequence)), deadline) if deadline.is_none_or(|(d, _)| at <= d) => {
                self.now = self.now.max(at);
                let index = self.flying.iter().position(|f| f.sequence == sequence);
                let flying = self.flying.remove(index.expect("it flies"));
                self.arrive(flying);
            }
            (_, Some((deadline, side))) => {
                assert!(deadline >= self.now - Duration::from_secs(1), "a deadline was missed");
                self.now = self.now.max(deadline);
                self.handle(side, Event::Tick);
            }
            (Some(_), None) | (None, None) => panic!("nothing will ever happen again"),
        }
    }

    /// Breaks things.
    fn disturb(&mut self) {
        match self.roll(4) {
            // Both see the connections break.
            0 => {
                for (side, connection) in self.links.keys().copied().collect::<Vec<_>>() {
                    self.links.remove(&(side, connection));
                    self.fly(side, Event::Lost { connection, error: Some("reset".into()) }, None);
                }
            }
            // The path swallows everything; nobody is told.
            1 => {
                self.links.clear();
                self.flying.clear();
                // A connection attempt in flight is lost as well: its own time limit ends it.
            }
            // One side crashes and starts again; the other one hears of it when it hears of it.
            2 => {
                let side = self.roll(2) as usize;
                let fresh = self.sides[side].config().clone();
                let restart = Restart { restarting: true, forwarding_preserved: true };
                // Numbers of connections go on, as those of sockets would.
                let mut session = Session::new(fresh, restart, Jitter::new(self.dice));
                let used = self.sides[side].next_connection();
                while session.next_connection() < used {}
                self.sides[side] = session;
                self.up[side] = false;
                self.flying.retain(|f| f.to != side && f.from.is_none());
                let mine = |(s, _): &&(usize, ConnectionId)| *s == side;
                for key in self.links.keys().filter(mine).copied().collect::<Vec<_>>() {
                    self.close(side, key.1);
                }
                self.handle(side, Event::Start);
            }
            // One side is stopped and started by its operator.
            _ => {
                let side = self.roll(2) as usize;
                self.handle(side, Event::Stop(StopReason::ConfigurationChange { same_peer: true }));
                self.handle(side, Event::Start);
            }
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::with_cases(3000) })]

    /// After whatever happened, both sides find each other again, over the same connection, within
    /// the longest timers, and then stay.
    #[test]
    fn two_sessions_always_come_together_again(seed: u64, disturbances in 0usize..8) {
        let mut joined = Joined::new(seed);
        for _ in 0..disturbances {
            for _ in 0..joined.roll(60) {
                joined.advance();
            }
            joined.disturb();
        }
        let quiet = joined.now;
        while joined.now < quiet + Duration::from_secs(300) {
            joined.advance();
        }
        let [a, b] = &joined.sides;
        let (a, b) = (a.established(), b.established());
        prop_assert!(a.is_some() && b.is_some(), "{:?}", joined.sides);
        if let (Some(a), Some(b)) = (a, b) {
            prop_assert_eq!(joined.links.get(&(0, a.connection)), Some(&b.connection));
        }
        let up = joined.up;
        let later = joined.now + Duration::from_secs(300);
        while joined.now < later {
            joined.advance();
            prop_assert_eq!(joined.up, up, "a quiet network, and yet a session moved");
        }
    }
}
