//! Which sessions there are, and which packet belongs to which.

use std::net::IpAddr;
use std::time::{Duration, Instant};

use cairn_bfd::config::{Path, SessionSpec, SpecError};
use cairn_bfd::session::Jitter;
use cairn_bfd::sessions::{Arrival, Id, Output, SESSIONS_MAX, Sessions, SetError};
use cairn_bfd::status::SessionStatus;
use cairn_bfd::wire::{ControlPacket, State};
use proptest::prelude::*;

fn ip(text: &str) -> IpAddr {
    text.parse().expect("an address")
}

fn spec(remote: &str) -> SessionSpec {
    SessionSpec::new(Path::to(ip(remote)))
}

fn sessions(wanted: &[SessionSpec]) -> (Sessions, Vec<Output>) {
    let mut sessions = Sessions::new(Jitter::new(1));
    let mut outputs = Vec::new();
    sessions.set(Instant::now(), wanted, &mut outputs).expect("a good set");
    (sessions, outputs)
}

fn id_of(sessions: &Sessions, remote: &str) -> Id {
    let mut wanted = sessions.wanted();
    wanted.find(|(_, spec)| spec.path.remote == ip(remote)).expect("the session").0
}

const DIRECT: Arrival<'static> = Arrival {
    remote: IpAddr::V4(std::net::Ipv4Addr::new(10, 0, 0, 2)),
    local: IpAddr::V4(std::net::Ipv4Addr::new(10, 0, 0, 1)),
    interface: None,
    multihop: false,
    ttl: Some(255),
};

/// A first packet of another system, Down and without our discriminator.
fn first() -> Vec<u8> {
    let mut octets = vec![0x20, 0x40, 3, 24, 0, 0, 0, 9, 0, 0, 0, 0];
    octets.extend([0, 0x0f, 0x42, 0x40, 0, 0, 0xc3, 0x50, 0, 0, 0, 0]);
    octets
}

/// Those of the packets that another session's octets would go to.
fn receive(sessions: &mut Sessions, arrival: &Arrival<'_>, octets: &[u8]) -> Vec<Output> {
    let mut outputs = Vec::new();
    sessions.receive(Instant::now(), arrival, octets, &mut outputs);
    outputs
}

/// RFC 5881 section 5: a TTL below 255 is not looked at, also when it names the session.
#[test]
fn farther_away() {
    let (mut sessions, _) = sessions(&[spec("10.0.0.2")]);
    let id = id_of(&sessions, "10.0.0.2");
    let mut named = first();
    named[8..12].copy_from_slice(&id.get().to_be_bytes());
    for ttl in [Some(254), Some(0), None] {
        for octets in [&first(), &named] {
            assert!(receive(&mut sessions, &Arrival { ttl, ..DIRECT }, octets).is_empty());
        }
    }
    assert_eq!(sessions.discarded().ttl, 6);
    // Nor does the port of multihop sessions lead to one of a single hop.
    let far = Arrival { multihop: true, ttl: Some(3), ..DIRECT };
    assert!(receive(&mut sessions, &far, &named).is_empty());
    assert_eq!(sessions.state(id), Some(State::Down));
    assert!(!receive(&mut sessions, &DIRECT, &named).is_empty());
    assert_eq!(sessions.state(id), Some(State::Init));
}

/// RFC 5880 section 6.3: by addresses until the discriminator is known, then by that alone.
#[test]
fn which_session() {
    let link_local = "fe80::2";
    let on = |interface: &str| {
        let mut spec = spec(link_local);
        spec.path.interface = Some(interface.into());
        spec
    };
    let multihop = |local: &str| {
        let mut spec = spec("10.9.9.9");
        spec.path.multihop = true;
        spec.path.local = Some(ip(local));
        spec
    };
    let wanted = [on("eth0"), on("eth1"), multihop("10.0.0.1"), multihop("10.0.0.5")];
    let (mut sessions, _) = sessions(&wanted);
    let heard = |sessions: &mut Sessions, arrival: &Arrival<'_>| {
        let outputs = receive(sessions, arrival, &first());
        outputs
            .iter()
            .find_map(|output| match output {
                Output::Send(id, _) => sessions.wanted().find(|(other, _)| other == id),
                _ => None,
            })
            .map(|(_, spec)| spec.clone())
    };
    let arrival =
        Arrival { remote: ip(link_local), local: ip("fe80::1"), interface: Some("eth1"), ..DIRECT };
    assert_eq!(heard(&mut sessions, &arrival), Some(on("eth1")));
    assert_eq!(heard(&mut sessions, &Arrival { interface: Some("eth2"), ..arrival }), None);
    assert_eq!(heard(&mut sessions, &Arrival { interface: None, ..arrival }), None);
    let arrival = Arrival { multihop: true, ttl: Some(7), remote: ip("10.9.9.9"), ..DIRECT };
    assert_eq!(heard(&mut sessions, &arrival), Some(multihop("10.0.0.1")));
    let arrival = Arrival { local: ip("10.0.0.5"), ..arrival };
    assert_eq!(heard(&mut sessions, &arrival), Some(multihop("10.0.0.5")));
    let arrival = Arrival { local: ip("10.0.0.6"), ..arrival };
    assert_eq!(heard(&mut sessions, &arrival), None);
    assert_eq!(sessions.discarded().unknown, 3);
}

/// A new set does not touch equal sessions, gives others their timing, and ends those it lacks.
#[test]
fn a_new_set() {
    let mut now = Instant::now();
    let mut sessions = Sessions::new(Jitter::new(1));
    let mut outputs = Vec::new();
    let old = [spec("10.0.0.2"), spec("10.0.0.3"), spec("10.0.0.4")];
    sessions.set(now, &old, &mut outputs).expect("a good set");
    let ids = ["10.0.0.2", "10.0.0.3", "10.0.0.4"].map(|remote| id_of(&sessions, remote));
    sessions.receive(now, &DIRECT, &first(), &mut outputs);
    outputs.clear();
    let faster = SessionSpec { interval_ms: 50, ..spec("10.0.0.3") };
    let new = [spec("10.0.0.2"), faster.clone(), spec("10.0.0.5")];
    sessions.set(now, &new, &mut outputs).expect("a good set");
    assert_eq!(id_of(&sessions, "10.0.0.2"), ids[0]);
    assert_eq!(sessions.state(ids[0]), Some(State::Init));
    assert!(!outputs.iter().any(|output| matches!(output,
        Output::Send(id, _) | Output::Changed(id) if *id == ids[0])));
    assert_eq!(id_of(&sessions, "10.0.0.3"), ids[1]);
    assert_eq!(sessions.status(now, ids[1]).map(|status| status.spec), Some(faster));
    // The one that is not wanted says AdminDown, twice, and goes.
    let mut farewells = 0;
    let mut count = |outputs: &mut Vec<Output>| {
        for output in outputs.drain(..) {
            if let Output::Send(id, octets) = output
                && id == ids[2]
            {
                let packet = ControlPacket::decode(&octets).expect("our own");
                assert_eq!(packet.state, State::AdminDown);
                farewells += 1;
            }
        }
    };
    count(&mut outputs);
    assert_eq!(sessions.wanted().count(), 3);
    for _ in 0..400 {
        now += Duration::from_millis(10);
        sessions.tick(now, &mut outputs);
        count(&mut outputs);
    }
    assert!(farewells >= 2, "{farewells}");
    assert_eq!(sessions.state(ids[2]), None);
    // All end the same way.
    sessions.retire_all(now, &mut outputs);
    assert!(!sessions.is_empty());
    sessions.tick(now + Duration::from_secs(4), &mut outputs);
    assert!(sessions.is_empty());
    assert_eq!(sessions.next_deadline(), None);
}

/// One that comes back while it says farewell goes on as the same session.
#[test]
fn wanted_again() {
    let now = Instant::now();
    let (mut sessions, mut outputs) = sessions(&[spec("10.0.0.2")]);
    let id = id_of(&sessions, "10.0.0.2");
    sessions.set(now, &[], &mut outputs).expect("a good set");
    assert_eq!(sessions.state(id), Some(State::AdminDown));
    sessions.set(now, &[spec("10.0.0.2")], &mut outputs).expect("a good set");
    assert_eq!(sessions.state(id), Some(State::Down));
    sessions.tick(now + Duration::from_secs(60), &mut outputs);
    assert_eq!(sessions.state(id), Some(State::Down));
}

/// What is told of a session is read again as it was, with every field of its own.
#[test]
fn statuses_as_json() {
    let mut wanted = spec("fe80::2");
    wanted.path.interface = Some("eth0".into());
    wanted.path.local = Some(ip("fe80::1"));
    let (sessions, _) = sessions(&[wanted.clone()]);
    let status = sessions.status(Instant::now(), id_of(&sessions, "fe80::2")).expect("a session");
    assert_eq!(status.spec, wanted);
    let text = serde_json::to_string(&status).expect("JSON");
    assert_eq!(serde_json::from_str::<SessionStatus>(&text).expect("a status"), status, "{text}");
    assert!(
        text.starts_with(r#"{"remote":"fe80::2","local":"fe80::1","interface":"eth0","#),
        "{text}"
    );
}

/// What cannot be is refused as a whole.
#[test]
fn refused_sets() {
    let (mut sessions, _) = sessions(&[spec("10.0.0.2")]);
    let mut refused = |wanted: &[SessionSpec]| {
        let mut outputs = Vec::new();
        let error = sessions.set(Instant::now(), wanted, &mut outputs).expect_err("refused");
        assert!(outputs.is_empty());
        assert_eq!(sessions.wanted().count(), 1);
        error
    };
    let good = spec("10.0.0.3");
    assert_eq!(refused(&[good.clone(), good.clone()]), SetError::Twice(good.path.clone()));
    let many: Vec<SessionSpec> = (0..=SESSIONS_MAX as u32)
        .map(|n| SessionSpec::new(Path::to(std::net::Ipv4Addr::from(0x0a00_0000 + n).into())))
        .collect();
    assert_eq!(refused(&many), SetError::TooMany(SESSIONS_MAX + 1));
    let mut bad = |spec: SessionSpec| match refused(&[good.clone(), spec]) {
        SetError::Spec { error, .. } => error,
        other => panic!("{other}"),
    };
    for interval_ms in [0, 49, 60_001] {
        let error = bad(SessionSpec { interval_ms, ..spec("10.0.0.4") });
        assert_eq!(error, SpecError::Interval(interval_ms));
    }
    assert_eq!(bad(SessionSpec { multiplier: 0, ..spec("10.0.0.4") }), SpecError::Multiplier);
    for address in ["0.0.0.0", "224.0.0.1", "255.255.255.255", "::", "ff02::1", "::ffff:10.0.0.1"] {
        assert_eq!(bad(spec(address)), SpecError::Address(ip(address)));
    }
    assert_eq!(bad(spec("fe80::1")), SpecError::LinkLocal(ip("fe80::1")));
    let with = |remote: &str, change: fn(&mut Path)| {
        let mut spec = spec(remote);
        change(&mut spec.path);
        spec
    };
    let other_family = with("10.0.0.4", |path| path.local = Some(ip("fd00::1")));
    assert!(matches!(bad(other_family), SpecError::Families { .. }));
    let link = with("fe80::1", |path| path.multihop = true);
    assert_eq!(bad(link), SpecError::MultihopLink);
    let interface = with("10.0.0.4", |path| {
        path.multihop = true;
        path.interface = Some("eth0".into());
    });
    assert_eq!(bad(interface), SpecError::MultihopLink);
    for name in ["", "a/b", "sixteen-letters-", ".", "a b"] {
        let mut spec = spec("10.0.0.4");
        spec.path.interface = Some(name.into());
        assert!(matches!(bad(spec), SpecError::Interface(_)), "{name}");
    }
}

proptest! {
    /// No datagrams make it panic, nor more than wanted sessions.
    #[test]
    fn any_datagrams(
        datagrams in proptest::collection::vec(proptest::collection::vec(any::<u8>(), 0..40), 0..50),
        known in any::<bool>(),
    ) {
        let (mut sessions, mut outputs) = sessions(&[spec("10.0.0.2")]);
        let id = id_of(&sessions, "10.0.0.2");
        let mut now = Instant::now();
        for mut datagram in datagrams {
            if let (true, Some(place)) = (known, datagram.get_mut(8..12)) {
                place.copy_from_slice(&id.get().to_be_bytes());
                datagram[0] = 0x20 | datagram[0] & 0x1f;
                datagram[3] = 24;
            }
            sessions.receive(now, &DIRECT, &datagram, &mut outputs);
            now += Duration::from_millis(7);
            sessions.tick(now, &mut outputs);
            prop_assert_eq!(sessions.wanted().count(), 1);
            prop_assert!(sessions.state(id).is_some());
        }
    }
}
