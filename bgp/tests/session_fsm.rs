//! The session state machine: single rows of RFC 4271 section 8, and two sessions joined under a
//! virtual clock with cuts, crashes and delays.

use std::collections::BTreeMap;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::time::{Duration, Instant};

use cairn_bgp::prefix::{Families, Family};
use cairn_bgp::session::{
    Action, ConnectionId, DownReason, ErrorKind, Event, Jitter, LocalAddresses, Message, Received,
    Restart, Session, SessionConfig, SessionState, StopReason,
};
use cairn_bgp::wire::{
    Capability, CeaseReason, FsmError, GracefulRestart, GracefulRestartFamily, Notification,
    NotificationError, Open, OpenError,
};
use proptest::prelude::*;

const FRESH: Restart = Restart { restarting: false, forwarding_preserved: true };

fn addresses() -> LocalAddresses {
    LocalAddresses {
        ipv4: Some(Ipv4Addr::new(192, 0, 2, 1)),
        ipv6: Some(Ipv6Addr::new(0x2001, 0xdb8, 0, 0, 0, 0, 0, 1)),
    }
}

fn config(local: u8, remote: u8, local_asn: u32, peer_asn: u32) -> SessionConfig {
    SessionConfig {
        address: IpAddr::V4(Ipv4Addr::new(192, 0, 2, remote)),
        local_asn,
        peer_asn,
        router_id: Ipv4Addr::new(192, 0, 2, local),
        has_password: false,
        passive: false,
        families: Families::from_iter(Family::ALL),
        extended_next_hop: false,
        hold_time_secs: 90,
        send_hold_time_secs: 480,
        connect_retry_secs: 10,
        graceful_restart_secs: Some(60),
    }
}

/// The peer's OPEN in the tables below.
fn open(asn: u32) -> Open {
    let family = |family: Family| GracefulRestartFamily {
        afi: family.afi(),
        safi: family.safi(),
        forwarding: true,
    };
    Open {
        asn,
        hold_time_secs: 30,
        router_id: Ipv4Addr::new(192, 0, 2, 2),
        capabilities: vec![
            Capability::multiprotocol(Family::Ipv4Unicast),
            Capability::multiprotocol(Family::Ipv6Unicast),
            Capability::GracefulRestart(GracefulRestart {
                restarting: false,
                notification: false,
                restart_time_secs: 20,
                families: Family::ALL.into_iter().map(family).collect(),
            }),
            Capability::FourOctetAs(asn),
        ],
    }
}

/// One session with a clock, and its actions as they come.
struct Bench {
    session: Session,
    now: Instant,
}

impl Bench {
    fn new(config: SessionConfig) -> Bench {
        Bench { session: Session::new(config, FRESH, Jitter::new(1)), now: Instant::now() }
    }

    fn handle(&mut self, event: Event) -> Vec<Action> {
        let mut actions = Vec::new();
        self.session.handle(self.now, event, &mut actions);
        actions
    }

    fn receive(&mut self, connection: ConnectionId, message: Received) -> Vec<Action> {
        self.handle(Event::Received { connection, message })
    }

    /// Lets time pass up to the next deadline.
    fn next(&mut self) -> Vec<Action> {
        self.now = self.session.next_deadline().expect("a deadline");
        self.handle(Event::Tick)
    }

    fn connect(&mut self) -> ConnectionId {
        let actions = self.handle(Event::Start);
        let [Action::Connect(connection)] = actions[..] else { panic!("{actions:?}") };
        let actions = self.handle(Event::Connected { connection, addresses: addresses() });
        assert!(matches!(&actions[..], [Action::Send(_, Message::Open(_))]), "{actions:?}");
        connection
    }

    fn accept(&mut self) -> (ConnectionId, Vec<Action>) {
        let connection = self.session.next_connection();
        (connection, self.handle(Event::Accepted { connection, addresses: addresses() }))
    }

    fn confirm(&mut self, connection: ConnectionId, peer: Open) {
        let actions = self.receive(connection, Received::Open(Box::new(peer)));
        assert!(
            actions
                .iter()
                .any(|a| matches!(a, Action::Send(c, Message::Keepalive) if *c == connection)),
            "{actions:?}"
        );
        assert_eq!(self.session.state(), SessionState::OpenConfirm);
    }

    fn establish(&mut self) -> ConnectionId {
        let connection = self.connect();
        self.confirm(connection, open(65002));
        let actions = self.receive(connection, Received::Keepalive);
        assert!(matches!(&actions[..], [Action::Up(_)]), "{actions:?}");
        connection
    }
}

/// The NOTIFICATION that was sent over a connection before it was closed.
fn farewell(actions: &[Action], connection: ConnectionId) -> Option<NotificationError> {
    let sent = actions
        .iter()
        .position(|a| matches!(a, Action::Send(c, Message::Notification(_)) if *c == connection))?;
    let closed = actions.iter().position(|a| matches!(a, Action::Close(c) if *c == connection))?;
    assert!(sent < closed, "{actions:?}");
    match &actions[sent] {
        Action::Send(_, Message::Notification(notification)) => Some(notification.error),
        _ => None,
    }
}

fn down(actions: &[Action]) -> Option<(&DownReason, Families)> {
    actions.iter().find_map(|action| match action {
        Action::Down { reason, keep } => Some((reason, *keep)),
        _ => None,
    })
}

const BOTH: fn() -> Families = || Families::from_iter(Family::ALL);

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
        let last = &bench.session.last_error().expect("an error").text;
        assert!(last.contains(text), "{last}");
    }
}

#[test]
fn messages_that_may_not_come() {
    let open = || Received::Open(Box::new(open(65002)));
    let rows = [
        (SessionState::OpenSent, Received::Keepalive, FsmError::UnexpectedInOpenSent),
        (SessionState::OpenSent, Received::Update, FsmError::UnexpectedInOpenSent),
        (SessionState::OpenConfirm, open(), FsmError::UnexpectedInOpenConfirm),
        (SessionState::OpenConfirm, Received::Update, FsmError::UnexpectedInOpenConfirm),
        (SessionState::Established, open(), FsmError::UnexpectedInEstablished),
    ];
    for (state, message, error) in rows {
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
        Bench::new(SessionConfig { graceful_restart_secs: None, ..config(1, 2, 65001, 65002) });
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

/// The NOTIFICATION that was sent, whole.
fn notification(actions: &[Action]) -> Option<&Notification> {
    actions.iter().find_map(|action| match action {
        Action::Send(_, Message::Notification(notification)) => Some(notification),
        _ => None,
    })
}

/// RFC 4486 section 4: the data is AFI, SAFI and the limit.
#[test]
fn a_session_over_its_prefix_limit_says_when_it_returns() {
    let limit = |restart_after_secs| {
        let family = Family::Ipv6Unicast;
        Event::Stop(StopReason::PrefixLimit { family, prefixes_max: 7, restart_after_secs })
    };
    for (restart_after_secs, text) in
        [(Some(120), "comes back 120 s after this"), (None, "when an operator resets it")]
    {
        let mut bench = Bench::new(config(1, 2, 65001, 65002));
        let connection = bench.establish();
        let actions = bench.handle(limit(restart_after_secs));
        let error = NotificationError::Cease(CeaseReason::MaximumPrefixes);
        assert_eq!(farewell(&actions, connection), Some(error));
        let data = &notification(&actions).expect("a farewell").data;
        assert_eq!(&data[..], [0, 2, 1, 0, 0, 0, 7]);
        assert_eq!(bench.session.state(), SessionState::Idle);
        let error = bench.session.last_error().expect("an error");
        assert_eq!(error.kind, ErrorKind::PrefixLimit);
        assert!(error.text.contains(text), "{}", error.text);
        let wait = restart_after_secs.map(|secs| Duration::from_secs(secs.into()));
        let comes_back_in = bench.session.comes_back_at().map(|at| at - bench.now);
        assert_eq!(comes_back_in, wait);
        let actions = match wait {
            Some(_) => bench.next(),
            None => {
                assert_eq!(bench.session.next_deadline(), None);
                bench.handle(Event::Start)
            }
        };
        assert!(matches!(actions[..], [Action::Connect(_)]), "{actions:?}");
    }
}

/// RFC 4486 subcodes, with the text of RFC 9003 where there is one.
#[test]
fn what_the_peer_is_told_at_a_stop() {
    let text = "back at noon".to_owned();
    let table = [
        (StopReason::Shutdown { text: text.clone() }, CeaseReason::AdministrativeShutdown, true),
        (StopReason::Disabled { text: text.clone() }, CeaseReason::AdministrativeShutdown, true),
        (StopReason::Reset { text: text.clone() }, CeaseReason::AdministrativeReset, true),
        (StopReason::Removed, CeaseReason::PeerDeconfigured, false),
        (StopReason::ConfigurationChange, CeaseReason::ConfigurationChange, false),
    ];
    for (reason, cease, carries_text) in table {
        let mut bench = Bench::new(config(1, 2, 65001, 65002));
        let connection = bench.establish();
        let actions = bench.handle(Event::Stop(reason));
        assert_eq!(farewell(&actions, connection), Some(NotificationError::Cease(cease)));
        let told = notification(&actions).and_then(Notification::shutdown_text);
        assert_eq!(told.as_deref(), carries_text.then_some("back at noon"));
    }
}

#[test]
fn a_disabled_session_says_so_and_refuses_until_it_is_started() {
    let mut bench = Bench::new(config(1, 2, 65001, 65002));
    bench.handle(Event::Stop(StopReason::Disabled { text: String::new() }));
    let error = bench.session.last_error().expect("an error");
    assert!(error.text.contains("disabled by an operator"), "{}", error.text);
    let (connection, actions) = bench.accept();
    let rejected = NotificationError::Cease(CeaseReason::ConnectionRejected);
    assert_eq!(farewell(&actions, connection), Some(rejected));
    let actions = bench.handle(Event::Start);
    assert!(matches!(actions[..], [Action::Connect(_)]), "{actions:?}");
    assert_eq!(bench.session.last_error(), None);
}

/// Runs until the send hold timer ends the session, while the peer speaks and takes nothing from
/// `stuck_after` on; the time that took.
fn send_hold(configured_secs: u16, hold_time_secs: u16, stuck_after: Duration) -> Option<Duration> {
    let mut bench = Bench::new(SessionConfig {
        send_hold_time_secs: configured_secs,
        hold_time_secs,
        ..config(1, 2, 65001, 65002)
    });
    let connection = bench.connect();
    bench.confirm(connection, Open { hold_time_secs, ..open(65002) });
    bench.receive(connection, Received::Keepalive);
    let started = bench.now;
    while bench.session.next_deadline().is_some() && bench.now < started + 4 * stuck_after {
        let mut actions = bench.next();
        bench.receive(connection, Received::Keepalive);
        let moves = bench.now < started + stuck_after;
        if actions.iter().any(|a| matches!(a, Action::LookAtSending(c) if *c == connection)) {
            actions = bench.handle(Event::Sending { connection, moves });
        }
        if let Some((reason, keep)) = down(&actions) {
            assert_eq!((reason, keep), (&DownReason::SendHoldTimerExpired, Families::NONE));
            let told = notification(&actions).expect("an attempt").error;
            assert_eq!(told, NotificationError::SendHoldTimerExpired);
            assert!(matches!(&actions[1..2], [Action::Abort(c)] if *c == connection));
            let error = bench.session.last_error().expect("an error");
            assert_eq!(error.kind, ErrorKind::SendHoldTimer);
            return Some(bench.now - started - stuck_after);
        }
    }
    None
}

/// RFC 9687: the session ends when nothing has left for the send hold time, and not before.
#[test]
fn a_peer_that_takes_nothing_is_given_up_after_the_send_hold_time() {
    let secs = Duration::from_secs;
    // The first row's 480 s are more than twice the hold time, the second one's 10 s are less.
    for (configured, hold, effective) in [(480, 90, 480), (10, 90, 180), (100, 0, 100)] {
        let took = send_hold(configured, hold, secs(1000)).expect("an end");
        // From a look that sees it to the look that ends it.
        let looks = secs(effective) / 8;
        assert!(took >= secs(effective) && took <= secs(effective) + 2 * looks, "{took:?}");
    }
    assert_eq!(send_hold(0, 90, secs(1000)), None, "0 turns it off");
}

/// No graceful restart: the routes of a link that is down lead nowhere.
#[test]
fn a_lost_carrier_ends_the_session_and_keeps_nothing() {
    let mut bench = Bench::new(config(1, 2, 65001, 65002));
    let connection = bench.establish();
    let actions = bench.handle(Event::CarrierLost { connection });
    assert!(matches!(actions[0], Action::Abort(c) if c == connection));
    assert_eq!(down(&actions), Some((&DownReason::CarrierLost, Families::NONE)));
    let actions = bench.next();
    assert!(matches!(actions[..], [Action::Connect(_)]), "tried again: {actions:?}");
    // A handshake ends, too; another connection's end is nobody's.
    let mut bench = Bench::new(config(1, 2, 65001, 65002));
    let connection = bench.connect();
    let other = bench.session.next_connection();
    assert!(bench.handle(Event::CarrierLost { connection: other }).is_empty());
    let actions = bench.handle(Event::CarrierLost { connection });
    assert!(matches!(actions[..], [Action::Abort(c)] if c == connection));
    assert_eq!(bench.session.state(), SessionState::Active);
}

/// A session that has become passive in the middle of an attempt makes no other one.
#[test]
fn a_session_that_becomes_passive_does_not_connect_again() {
    let passive = SessionConfig { passive: true, ..config(1, 2, 65001, 65002) };
    let mut bench = Bench::new(config(1, 2, 65001, 65002));
    let connection = bench.connect();
    let mut actions = Vec::new();
    bench.session.configure(bench.now, passive.clone(), &mut actions);
    bench.handle(Event::Lost { connection, error: None });
    assert_eq!(bench.session.next_deadline(), None);
    let mut bench = Bench::new(config(1, 2, 65001, 65002));
    let actions = bench.handle(Event::Start);
    let [Action::Connect(connection)] = actions[..] else { panic!("{actions:?}") };
    bench.session.configure(bench.now, passive, &mut Vec::new());
    bench.handle(Event::ConnectFailed { connection, error: "refused".into() });
    assert_eq!(bench.session.next_deadline(), None);
    assert_eq!(bench.session.state(), SessionState::Active);
}

/// The link of a peer that restarts goes down: what waits for it goes at once.
#[test]
fn stale_routes_do_not_outlive_the_link_that_they_lead_over() {
    let mut bench = Bench::new(config(1, 2, 65001, 65002));
    let connection = bench.establish();
    let actions = bench.handle(Event::Lost { connection, error: None });
    assert_eq!(down(&actions).map(|(_, keep)| keep), Some(BOTH()));
    let mut actions = Vec::new();
    bench.session.drop_stale(&mut actions);
    assert!(matches!(actions[..], [Action::FlushStale(families)] if families == BOTH()));
    actions.clear();
    bench.session.drop_stale(&mut actions);
    assert!(actions.is_empty(), "once");
}

/// What the operating system knows stands for a timeout, until there is a session.
#[test]
fn a_timeout_with_a_known_cause_says_it() {
    let mut bench = Bench::new(SessionConfig { has_password: true, ..config(1, 2, 65001, 65002) });
    bench.handle(Event::Start);
    bench.next();
    let timeout = bench.session.last_error().expect("an error");
    assert_eq!(timeout.kind, ErrorKind::ConnectFailed);
    assert!(timeout.text.contains("the password the same on both sides"), "{}", timeout.text);
    bench.session.suspect(bench.now, "password differs".into());
    let errors = bench.session.error_count();
    bench.session.suspect(bench.now, "password differs".into());
    assert_eq!(bench.session.error_count(), errors, "told once");
    bench.next();
    bench.next();
    let timeout = bench.session.last_error().expect("an error");
    assert_eq!((timeout.kind, timeout.text.as_str()), (ErrorKind::Password, "password differs"));
    let (connection, _) = bench.accept();
    bench.confirm(connection, open(65002));
    bench.receive(connection, Received::Keepalive);
    bench.handle(Event::Lost { connection, error: None });
    bench.next();
    bench.next();
    let timeout = bench.session.last_error().expect("an error");
    assert_eq!(timeout.kind, ErrorKind::ConnectFailed, "{}", timeout.text);
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
                Action::FlushStale(_) => {}
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
                self.handle(side, Event::Stop(StopReason::ConfigurationChange));
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
