//! How sessions end and what is told about it: operators, limits, timers, links, passwords.

mod session_bench;

use std::time::Duration;

use cairn_bgp::prefix::{Families, Family};
use cairn_bgp::session::{
    Action, DownReason, ErrorKind, Event, Received, SessionConfig, SessionState, StopReason,
};
use cairn_bgp::wire::{CeaseReason, Notification, NotificationError, Open};
use session_bench::*;

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

/// A link that comes and goes meanwhile says nothing about the peer's routes.
#[test]
fn a_rest_after_a_prefix_limit_outlasts_what_becomes_of_the_neighbour() {
    let gone = || Event::Stop(StopReason::Neighbour { text: "no carrier".to_owned() });
    for restart_after_secs in [Some(120), None] {
        let mut bench = Bench::new(config(1, 2, 65001, 65002));
        bench.establish();
        let family = Family::Ipv6Unicast;
        let limit = StopReason::PrefixLimit { family, prefixes_max: 7, restart_after_secs };
        bench.handle(Event::Stop(limit));
        let comes_back = bench.session.comes_back_at();
        assert!(bench.handle(gone()).is_empty());
        assert!(bench.session.rests(bench.now));
        assert_eq!(bench.session.comes_back_at(), comes_back);
        let error = bench.session.last_error().expect("an error");
        assert_eq!(error.kind, ErrorKind::PrefixLimit, "it is why there is no session");
        // What an operator says counts, and what the link says after that.
        bench.handle(Event::Stop(StopReason::Reset { text: String::new() }));
        assert!(!bench.session.rests(bench.now));
        bench.handle(gone());
        assert_eq!(bench.session.last_error().map(|e| e.kind), Some(ErrorKind::NoNeighbour));
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
        (
            StopReason::ConfigurationChange { same_peer: true },
            CeaseReason::ConfigurationChange,
            false,
        ),
        // RFC 9384.
        (StopReason::PathDead { text: text.clone() }, CeaseReason::BfdDown, false),
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
