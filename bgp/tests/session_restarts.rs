//! What becomes of a peer's routes when its session ends, and while they wait: each cell of the tables in
//! docs/guide/restarts.md.

mod session_bench;

use std::collections::BTreeMap;
use std::time::Duration;

use cairn_bgp::config;
use cairn_bgp::prefix::{Families, Family};
use cairn_bgp::session::{
    Action, ConnectionId, Established, Event, Received, SessionConfig, SessionState, StopReason,
};
use cairn_bgp::wire::{
    Capability, CeaseReason, HeaderError, LongLivedFamily, Notification, NotificationError, Open,
};
use session_bench::*;

/// What both sides offer.
#[derive(Clone, Copy, PartialEq)]
enum Bits {
    None,
    Graceful,
    Notification,
    LongLived,
}

const STALE_TIME_SECS: u32 = 1000;

fn ours(bits: Bits) -> SessionConfig {
    let long_lived = config::LongLived { stale_time_secs: STALE_TIME_SECS, within: None };
    let graceful = config::GracefulRestart {
        restart_time_secs: 60,
        notification: bits == Bits::Notification,
        long_lived: (bits == Bits::LongLived).then_some(long_lived),
    };
    SessionConfig {
        graceful_restart: (bits != Bits::None).then_some(graceful),
        ..config(1, 2, 65001, 65002)
    }
}

/// The peer's OPEN. Its restart time is 20 s.
fn theirs(bits: Bits, forwarding: bool) -> Open {
    let mut open = open(65002);
    for capability in &mut open.capabilities {
        if let Capability::GracefulRestart(restart) = capability {
            restart.notification = bits == Bits::Notification;
            restart.families.iter_mut().for_each(|family| family.forwarding = forwarding);
        }
    }
    match bits {
        Bits::None => {
            open.capabilities.retain(|c| !matches!(c, Capability::GracefulRestart(_)));
        }
        Bits::LongLived => {
            let families = Family::ALL.map(|family| LongLivedFamily {
                afi: family.afi(),
                safi: family.safi(),
                forwarding,
                stale_time_secs: 2 * STALE_TIME_SECS,
            });
            let capability = Capability::LongLivedGracefulRestart(families.to_vec());
            open.capabilities.push(capability);
        }
        Bits::Graceful | Bits::Notification => {}
    }
    open
}

/// A session that has stood for a while.
fn established(bits: Bits) -> (Bench, ConnectionId) {
    let mut bench = Bench::new(ours(bits));
    let connection = bench.connect();
    let up = come_up(&mut bench, connection, theirs(bits, true));
    assert_eq!(up.notification, bits == Bits::Notification);
    bench.now += Duration::from_secs(10);
    bench.receive(connection, Received::Keepalive);
    (bench, connection)
}

fn come_up(bench: &mut Bench, connection: ConnectionId, open: Open) -> Established {
    bench.confirm(connection, open);
    let actions = bench.receive(connection, Received::Keepalive);
    let up = actions.into_iter().find_map(|action| match action {
        Action::Up(established) => Some(*established),
        _ => None,
    });
    up.expect("up")
}

/// The rows of a table in the guide: the words of the first column, and the other cells.
fn table(heading: &str) -> BTreeMap<&'static str, Vec<&'static str>> {
    let guide = include_str!("../../docs/guide/restarts.md");
    let (_, rest) = guide.split_once(heading).expect("the table's heading");
    let rows = rest.lines().skip(2).take_while(|line| line.starts_with('|'));
    let cells = |line: &'static str| -> Vec<&'static str> {
        line.trim_matches('|').split('|').map(str::trim).collect()
    };
    rows.map(cells).map(|cells| (cells[0], cells[1..].to_vec())).collect()
}

/// How each row of the first table happens to a session.
type Ending = fn(&mut Bench, ConnectionId) -> Vec<Action>;

fn stop(bench: &mut Bench, reason: StopReason) -> Vec<Action> {
    bench.handle(Event::Stop(reason))
}

fn says(bench: &mut Bench, connection: ConnectionId, notification: Notification) -> Vec<Action> {
    bench.receive(connection, Received::Notification(notification))
}

fn connects_anew(bench: &mut Bench, _: ConnectionId) -> Vec<Action> {
    let (connection, mut actions) = bench.accept();
    if bench.session.established().is_some_and(|e| e.graceful_restart.is_some()) {
        let open = Received::Open(Box::new(bench.session.established().unwrap().peer.clone()));
        actions.extend(bench.receive(connection, open));
    }
    actions
}

fn stays_silent(bench: &mut Bench, _: ConnectionId) -> Vec<Action> {
    loop {
        let actions = bench.next();
        if down(&actions).is_some() {
            return actions;
        }
    }
}

fn takes_nothing(bench: &mut Bench, connection: ConnectionId) -> Vec<Action> {
    loop {
        let mut actions = bench.next();
        bench.receive(connection, Received::Keepalive);
        if actions.iter().any(|action| matches!(action, Action::LookAtSending(_))) {
            actions.extend(bench.handle(Event::Sending { connection, moves: false }));
        }
        if down(&actions).is_some() {
            return actions;
        }
    }
}

const ENDINGS: [(&str, Ending); 16] = [
    ("The peer's connection ends without a word", |bench, connection| {
        bench.handle(Event::Lost { connection, error: None })
    }),
    ("The peer connects anew beside the session", connects_anew),
    ("Nothing is heard for the hold time", stays_silent),
    ("The peer sends a NOTIFICATION", |bench, connection| {
        says(bench, connection, Notification::cease(CeaseReason::AdministrativeReset, None))
    }),
    ("The peer sends a Hard Reset", |bench, connection| {
        let inner = Notification::cease(CeaseReason::AdministrativeShutdown, None);
        says(bench, connection, inner.into_hard_reset())
    }),
    ("The peer breaks the protocol", |bench, connection| {
        let error = NotificationError::Header(HeaderError::BadMessageType);
        bench.handle(Event::Malformed { connection, notification: error.into() })
    }),
    ("The peer takes nothing for the send hold time", takes_nothing),
    ("BFD says that the path is dead", |bench, _| {
        stop(bench, StopReason::PathDead { text: "Down".into() })
    }),
    ("The link has no carrier", |bench, connection| {
        bench.handle(Event::CarrierLost { connection })
    }),
    ("The session's settings change here", |bench, _| {
        stop(bench, StopReason::ConfigurationChange { same_peer: true })
    }),
    ("The peer's address or an AS number changes here", |bench, _| {
        stop(bench, StopReason::ConfigurationChange { same_peer: false })
    }),
    ("The peer is removed here", |bench, _| stop(bench, StopReason::Removed)),
    ("An operator disables the peer here", |bench, _| {
        stop(bench, StopReason::Disabled { text: String::new() })
    }),
    ("An operator resets the session here", |bench, _| {
        stop(bench, StopReason::Reset { text: String::new() })
    }),
    ("The peer is over its prefix limit", |bench, _| {
        let (family, prefixes_max) = (Family::Ipv4Unicast, 7);
        let restart_after_secs = None;
        stop(bench, StopReason::PrefixLimit { family, prefixes_max, restart_after_secs })
    }),
    ("A speaker ends by SIGTERM without `--keep-routes`", |bench, _| {
        stop(bench, StopReason::Shutdown { text: String::new() })
    }),
];

/// What the cell says of what was done.
fn outcome(bench: &Bench, actions: &[Action]) -> String {
    let Some((_, keep)) = down(actions) else {
        assert_eq!(bench.session.state(), SessionState::Established);
        return "goes on".to_owned();
    };
    let hard = notification(actions).is_some_and(|said| said.hard_reset_cause().is_some());
    match (keep == BOTH(), hard) {
        (true, false) => "keep".to_owned(),
        (false, false) => "flush".to_owned(),
        (false, true) => "flush, Hard Reset".to_owned(),
        (true, true) => panic!("the peer drops what we keep: {actions:?}"),
    }
}

#[test]
fn each_end_of_a_session() {
    let table =
        table("| How the session ends | no graceful restart | graceful restart | with the N bit |");
    assert_eq!(table.len(), ENDINGS.len(), "a row without a test");
    for (row, end) in ENDINGS {
        let cells = &table[row];
        for (bits, wanted) in
            [Bits::None, Bits::Graceful, Bits::Notification].into_iter().zip(cells)
        {
            let (mut bench, connection) = established(bits);
            let actions = end(&mut bench, connection);
            assert_eq!(outcome(&bench, &actions), *wanted, "{row}");
            if let Some((reason, keep)) = down(&actions) {
                assert!(keep == BOTH() || keep == Families::NONE, "{reason}");
            }
        }
    }
}

/// The reason is inside a Hard Reset, as it would have been told without (RFC 8538 section 3.1).
#[test]
fn a_hard_reset_carries_the_reason() {
    let (mut bench, connection) = established(Bits::Notification);
    let actions = stop(&mut bench, StopReason::PathDead { text: "Down".into() });
    let said = NotificationError::Cease(CeaseReason::HardReset);
    assert_eq!(farewell(&actions, connection), Some(said));
    let cause = notification(&actions).and_then(Notification::hard_reset_cause).expect("a cause");
    assert_eq!(cause.error, NotificationError::Cease(CeaseReason::BfdDown));
    // One side alone does not set the N bit for both: the peer would not know the subcode.
    let mut bench = Bench::new(ours(Bits::Notification));
    let connection = bench.connect();
    come_up(&mut bench, connection, theirs(Bits::Graceful, true));
    let actions = stop(&mut bench, StopReason::Removed);
    let said = NotificationError::Cease(CeaseReason::PeerDeconfigured);
    assert_eq!(farewell(&actions, connection), Some(said));
}

/// A peer whose connection broke, and whose routes wait.
fn waiting(bits: Bits) -> Bench {
    let (mut bench, connection) = established(bits);
    let actions = bench.handle(Event::Lost { connection, error: None });
    assert_eq!(down(&actions).expect("down").1, BOTH());
    if bits == Bits::LongLived {
        let lost_at = bench.now;
        let became = pass(&mut bench, |actions| {
            actions.iter().any(|a| matches!(a, Action::LongLivedStale(f) if *f == BOTH()))
        });
        assert!(became, "a last resort after the restart time");
        assert_eq!(bench.now - lost_at, Duration::from_secs(20));
    }
    bench
}

/// Lets time pass, while no call is answered, until something was done or nothing is left to wait for.
fn pass(bench: &mut Bench, done: impl Fn(&[Action]) -> bool) -> bool {
    let end = bench.now + Duration::from_secs(3 * u64::from(STALE_TIME_SECS));
    while bench.session.next_deadline().is_some_and(|at| at <= end) {
        let actions = bench.next();
        if done(&actions) {
            return true;
        }
        for action in actions {
            if let Action::Connect(connection) = action {
                bench.handle(Event::ConnectFailed { connection, error: "refused".into() });
            }
        }
    }
    false
}

fn flushes(actions: &[Action]) -> bool {
    actions.iter().any(|action| matches!(action, Action::FlushStale(f) if *f == BOTH()))
}

/// The peer is back; whether its routes stay.
fn back(bench: &mut Bench, open: Open) -> bool {
    let (connection, _) = bench.accept();
    let kept = come_up(bench, connection, open).stale_kept;
    assert!(kept == BOTH() || kept == Families::NONE);
    kept == BOTH()
}

/// Up to a word of the table.
fn meanwhile(row: &str, bits: Bits) -> &'static str {
    let mut bench = waiting(bits);
    let word = |kept: bool| if kept { "keep" } else { "flush" };
    match row {
        "The peer is back and kept forwarding" => word(back(&mut bench, theirs(bits, true))),
        "The peer is back and did not keep forwarding" => {
            word(back(&mut bench, theirs(bits, false)))
        }
        "The peer is back without graceful restart" => {
            word(back(&mut bench, theirs(Bits::None, true)))
        }
        "The peer sends End-of-RIB" => {
            // The RIB flushes what did not come; the session forgets that it waits.
            assert!(back(&mut bench, theirs(bits, true)));
            Family::ALL.into_iter().for_each(|family| bench.session.end_of_rib(family));
            let connection = bench.session.established().expect("up").connection;
            let actions = bench.handle(Event::Lost { connection, error: None });
            let fresh = matches!(&actions[..], [Action::Down { keep, keep_older, .. }, ..]
                if *keep == BOTH() && keep_older.is_empty());
            word(!fresh)
        }
        "The peer is not back in time" => word(!pass(&mut bench, flushes)),
        "The peer is back, and its End-of-RIB does not come" => {
            assert!(back(&mut bench, theirs(bits, true)));
            let connection = bench.session.established().expect("up").connection;
            for _ in 0..10_000 {
                let actions = bench.next();
                if flushes(&actions) {
                    return "flush";
                }
                if actions.iter().any(|action| matches!(action, Action::LookAtSending(_))) {
                    bench.handle(Event::Sending { connection, moves: true });
                }
                bench.receive(connection, Received::Keepalive);
            }
            "keep"
        }
        "The session is lost again before End-of-RIB" => {
            assert!(back(&mut bench, theirs(bits, true)));
            let connection = bench.session.established().expect("up").connection;
            let actions = bench.handle(Event::Lost { connection, error: None });
            let older = actions.iter().find_map(|action| match action {
                Action::Down { keep, keep_older, .. } if *keep == BOTH() => Some(*keep_older),
                _ => None,
            });
            match older.expect("the newer stay") {
                older if older == BOTH() => "keep",
                older if older.is_empty() => "keep the newer",
                older => panic!("{older:?}"),
            }
        }
        "The link loses its carrier" => {
            let mut actions = Vec::new();
            bench.session.drop_stale(&mut actions);
            word(!flushes(&actions))
        }
        "The session's settings change here" => {
            let reason = StopReason::ConfigurationChange { same_peer: true };
            let actions = stop(&mut bench, reason);
            assert!(!flushes(&actions));
            bench.handle(Event::Start);
            word(back(&mut bench, theirs(bits, true)))
        }
        "The peer is removed here" => word(!flushes(&stop(&mut bench, StopReason::Removed))),
        "An operator disables the peer here" => {
            let reason = StopReason::Disabled { text: String::new() };
            word(!flushes(&stop(&mut bench, reason)))
        }
        row => panic!("a row without a test: {row}"),
    }
}

#[test]
fn each_thing_that_happens_meanwhile() {
    let table =
        table("| What happens meanwhile | graceful restart | with the N bit | as a last resort |");
    assert_eq!(table.len(), 11);
    for (row, cells) in table {
        for (bits, wanted) in
            [Bits::Graceful, Bits::Notification, Bits::LongLived].into_iter().zip(cells)
        {
            assert_eq!(meanwhile(row, bits), wanted, "{row}");
        }
    }
}

/// However often it restarts, what is stale goes after a bounded time.
#[test]
fn a_peer_that_restarts_again_and_again_does_not_keep_its_oldest_routes_for_good() {
    for (bits, most) in [(Bits::Notification, 20 + 300), (Bits::LongLived, 1000)] {
        let mut bench = waiting(bits);
        let since = bench.now;
        loop {
            assert!(back(&mut bench, theirs(bits, true)));
            let connection = bench.session.established().expect("up").connection;
            bench.now += Duration::from_secs(3);
            let actions = bench.handle(Event::Lost { connection, error: None });
            let [Action::Down { keep, keep_older, .. }, ..] = &actions[..] else {
                panic!("{actions:?}");
            };
            assert_eq!(*keep, BOTH(), "the newer have their whole time");
            if keep_older.is_empty() {
                break;
            }
            bench.now += Duration::from_secs(2);
        }
        let lasted = bench.now - since;
        assert!(lasted <= Duration::from_secs(most), "{lasted:?}");
        assert!(lasted + Duration::from_secs(25) >= Duration::from_secs(most), "{lasted:?}");
    }
}

/// The shorter of what both sides want.
#[test]
fn the_last_resort_lasts_no_longer_than_both_sides_want() {
    for (said, lasts) in [(2 * STALE_TIME_SECS, STALE_TIME_SECS), (7, 7)] {
        let mut bench = Bench::new(ours(Bits::LongLived));
        let connection = bench.connect();
        let mut open = theirs(Bits::LongLived, true);
        for capability in &mut open.capabilities {
            if let Capability::LongLivedGracefulRestart(families) = capability {
                families.iter_mut().for_each(|family| family.stale_time_secs = said);
            }
        }
        let up = come_up(&mut bench, connection, open);
        assert_eq!(up.long_lived_secs, [lasts; 2]);
        bench.handle(Event::Lost { connection, error: None });
        let lost_at = bench.now;
        assert!(pass(&mut bench, flushes));
        assert_eq!(bench.now - lost_at, Duration::from_secs(20 + u64::from(lasts)));
    }
}
