//! `cairn bfd`, the program itself, with BIRD 2's BFD on the other side of a link.

use std::net::{IpAddr, UdpSocket};
use std::path::PathBuf;
use std::process::Command;
use std::time::{Duration, Instant};

use cairn_bfd::config::{Path, SessionSpec};
use cairn_bfd::control::{Client, Overview, Report};
use cairn_bfd::status::SessionStatus;
use cairn_bfd::wire::{Diagnostic, State};
use cairn_tests::daemon::{Parts, Setup, Transport};
use cairn_tests::link::{self, Link, PATIENCE, wait_for};
use cairn_tests::process::{Process, Scratch};
use cairn_tests::program::built;

/// Our side of a link with `cairn bfd`, and BIRD on the other one.
struct Bed {
    bfd: Option<Process>,
    bird: Parts,
    scratch: Scratch,
    // It waits for the processes on its other side, so that it goes last.
    link: Link,
}

/// The interval of both sides in milliseconds. BIRD's multiplier is 3.
const INTERVAL_MS: u32 = 300;

impl Bed {
    fn new() -> Bed {
        let link = Link::new();
        link::need(BIRD, "bird2");
        link.here("ip addr add fe80::1/64 dev uplink nodad");
        link.inside("ip addr add fe80::2/64 dev uplink nodad");
        // Ends of a path with a router in between, as far as BFD can tell.
        link.here("ip addr add 10.1.0.1/32 dev lo");
        link.here("ip addr add fd01::1/128 dev lo nodad");
        link.inside("ip addr add 10.1.0.2/32 dev lo");
        link.inside("ip addr add fd01::2/128 dev lo nodad");
        link.here("ip route add 10.1.0.2/32 via 10.0.0.2 src 10.1.0.1");
        link.here("ip route add fd01::2/128 via fd00::2 src fd01::1");
        link.inside("ip route add 10.1.0.1/32 via 10.0.0.1 src 10.1.0.2");
        link.inside("ip route add fd01::1/128 via fd00::1 src fd01::2");
        let mut bird = Parts::new(&link, "bird", &Setup::new(Transport::V4, 65002, 65001));
        bird.write("bird.conf", &bird_configuration());
        let [file, socket, pid] = ["bird.conf", "bird.ctl", "pid"].map(|name| bird.path(name));
        bird.spawn(BIRD, &["-f", "-c", &file, "-s", &socket, "-P", &pid]);
        let scratch = Scratch::new("cairn-bfd");
        let mut bed = Bed { bfd: None, bird, scratch, link };
        wait_for("BIRD answers", || bed.ask_bird("show status").is_some(), || bed.bird.log());
        bed.start();
        bed
    }

    fn start(&mut self) {
        let arguments = ["bfd", "--run-dir"].map(str::to_owned).into_iter();
        let arguments: Vec<String> = arguments.chain([self.run_dir()]).collect();
        self.bfd = Some(Process::start(&built("cairn"), &arguments, &self.log_path()));
        let answers = || Client::connect(self.scratch.path(), PATIENCE).is_ok();
        wait_for("cairn bfd answers", answers, || self.log());
    }

    fn signal(&self, signal: i32) {
        let id = self.bfd.as_ref().expect("it runs").id().try_into().expect("the id of a process");
        // SAFETY: kill takes no memory; the process is a child that has not been waited for.
        assert_eq!(unsafe { libc::kill(id, signal) }, 0);
    }

    fn run_dir(&self) -> String {
        self.scratch.path().display().to_string()
    }

    fn log_path(&self) -> PathBuf {
        self.scratch.path().join("log")
    }

    fn log(&self) -> String {
        std::fs::read_to_string(self.log_path()).unwrap_or_default()
    }

    fn ask_bird(&self, question: &str) -> Option<String> {
        let socket = self.bird.path("bird.ctl");
        let arguments: Vec<&str> = ["-s", &socket].into_iter().chain(question.split(' ')).collect();
        self.bird.far.ask(BIRDC, &arguments)
    }

    /// What BIRD says of its session with this address of ours.
    fn bird_says(&self, address: &str) -> String {
        let sessions = self.ask_bird("show bfd sessions").unwrap_or_default();
        let mut lines = sessions.lines().map(|line| line.split_whitespace().collect::<Vec<_>>());
        let words = lines.find(|words| words.first() == Some(&address));
        words.and_then(|words| words.get(2).map(ToString::to_string)).unwrap_or_default()
    }

    /// A client that wants these sessions, and has been told that it has them.
    fn client(&self, wanted: &[SessionSpec]) -> Watcher {
        let mut client = Client::connect(self.scratch.path(), PATIENCE).expect("it answers");
        let Ok(Report::Overview(overview)) = client.report() else { panic!("no overview") };
        client.want(wanted.to_vec()).expect("a request");
        let mut watcher = Watcher { client, overview };
        while !matches!(watcher.next(), Report::Taken) {}
        watcher
    }

    fn overview(&self) -> Overview {
        let mut client = Client::connect(self.scratch.path(), PATIENCE).expect("it answers");
        match client.report() {
            Ok(Report::Overview(overview)) => overview,
            other => panic!("no overview: {other:?}"),
        }
    }

    fn status(&self, remote: &str) -> SessionStatus {
        let sessions = self.overview().sessions.into_iter();
        let remote: IpAddr = remote.parse().expect("an address");
        let mut found = sessions.filter(|status| status.spec.path.remote == remote);
        found.next().unwrap_or_else(|| panic!("no session with {remote}"))
    }

    fn until_up(&self, wanted: &[SessionSpec]) {
        let up = |status: &SessionStatus| status.state == State::Up;
        let all = || {
            let sessions = self.overview().sessions;
            sessions.len() == wanted.len() && sessions.iter().all(up)
        };
        let why = || format!("{:#?}\n{:?}", self.overview(), self.ask_bird("show bfd sessions"));
        wait_for("every session is up", all, || format!("{}\n{}", why(), self.log()));
        for spec in wanted {
            let local = spec.path.local.expect("given").to_string();
            wait_for("BIRD's is up", || self.bird_says(&local) == "Up", why);
        }
    }
}

/// A client that hears what happens.
struct Watcher {
    client: Client,
    overview: Overview,
}

impl Watcher {
    fn next(&mut self) -> Report {
        self.client.report().expect("a report")
    }

    /// The first change that is as wanted.
    fn until(&mut self, remote: &str, holds: impl Fn(&SessionStatus) -> bool) -> SessionStatus {
        let remote: IpAddr = remote.parse().expect("an address");
        loop {
            if let Report::Changed(status) = self.next()
                && status.spec.path.remote == remote
                && holds(&status)
            {
                return *status;
            }
        }
    }
}

fn bird_configuration() -> String {
    let timing = format!(
        "min rx interval {INTERVAL_MS} ms; min tx interval {INTERVAL_MS} ms; multiplier 3;"
    );
    format!(
        "log stderr all;
         router id 10.0.0.2;
         protocol device {{ scan time 1; }}
         protocol bfd {{
           debug {{ states, events }};
           interface \"uplink\" {{ {timing} }};
           multihop {{ {timing} }};
           neighbor 10.0.0.1 dev \"uplink\" local 10.0.0.2;
           neighbor fd00::1 dev \"uplink\" local fd00::2;
           neighbor fe80::1 dev \"uplink\" local fe80::2;
           neighbor 10.1.0.1 local 10.1.0.2 multihop on;
           neighbor fd01::1 local fd01::2 multihop on;
         }}"
    )
}

fn spec(local: &str, remote: &str) -> SessionSpec {
    let [local, remote] = [local, remote].map(|text| text.parse::<IpAddr>().expect("an address"));
    let path = Path { local: Some(local), ..Path::to(remote) };
    SessionSpec { path, interval_ms: INTERVAL_MS, multiplier: 3 }
}

fn direct() -> SessionSpec {
    spec("10.0.0.1", "10.0.0.2")
}

fn multihop(mut spec: SessionSpec) -> SessionSpec {
    spec.path.multihop = true;
    spec
}

fn all() -> [SessionSpec; 5] {
    let mut link_local = spec("fe80::1", "fe80::2");
    link_local.path.interface = Some("uplink".into());
    [
        direct(),
        spec("fd00::1", "fd00::2"),
        link_local,
        multihop(spec("10.1.0.1", "10.1.0.2")),
        multihop(spec("fd01::1", "fd01::2")),
    ]
}

/// Single hop over both families and by link-local addresses, and multihop over both; what is told of them;
/// and nobody but root may ask.
#[test]
fn comes_up() {
    let bed = Bed::new();
    let _client = bed.client(&all());
    bed.until_up(&all());
    for status in bed.overview().sessions {
        assert_eq!((status.ups, status.problem.clone()), (1, None), "{status:?}");
        assert!(status.peer.heard);
        assert!(!status.peer.control_plane_independent, "BIRD's BFD goes with its BGP");
        wait_for(
            "the fast interval",
            || bed.status(&status.spec.path.remote.to_string()).detection_time_ms == 900,
            || format!("{status:?}"),
        );
    }
    let status = Command::new(built("cairn"))
        .args(["bfd", "status", "--run-dir", &bed.run_dir()])
        .output()
        .expect("it starts");
    let text = String::from_utf8_lossy(&status.stdout).into_owned();
    assert!(text.starts_with("sessions 5/5\n"), "{text}");
    assert!(text.contains("fe80::2%uplink from fe80::1"), "{text}");
    let mode = std::fs::metadata(bed.scratch.path().join("bfd.sock")).expect("the socket");
    assert_eq!(std::os::unix::fs::PermissionsExt::mode(&mode.permissions()) & 0o777, 0o600);
}

/// Without an own address the kernel's choice is taken.
#[test]
fn the_kernel_chooses_the_address() {
    let bed = Bed::new();
    let wanted = [direct(), multihop(spec("10.1.0.1", "10.1.0.2"))].map(|mut spec| {
        spec.path.local = None;
        spec
    });
    let _client = bed.client(&wanted);
    for (ours, theirs) in [("10.0.0.1", "10.0.0.2"), ("10.1.0.1", "10.1.0.2")] {
        let why = || format!("{:#?}\n{}", bed.overview(), bed.log());
        wait_for("up", || bed.status(theirs).state == State::Up, why);
        wait_for("BIRD's is up", || bed.bird_says(ours) == "Up", why);
    }
}

/// What the other side sends does not arrive any more: Down within seconds at most, with the reason, then
/// BIRD is told, and it comes back.
#[test]
fn a_cut_link() {
    let bed = Bed::new();
    let mut client = bed.client(&[direct()]);
    bed.until_up(&[direct()]);
    let cut = Instant::now();
    bed.link.silence(true);
    let status = client.until("10.0.0.2", |status| status.state == State::Down && status.ups > 0);
    assert!(cut.elapsed() < Duration::from_secs(5), "{:?}", cut.elapsed());
    assert_eq!(status.diagnostic, Diagnostic::DetectionTimeExpired);
    assert!(status.lost_for_ms.is_some());
    wait_for("BIRD's is down", || bed.bird_says("10.0.0.1") != "Up", || bed.bird.log());
    bed.link.silence(false);
    let status = client.until("10.0.0.2", |status| status.state == State::Up);
    assert_eq!(status.ups, 2);
}

/// A client that goes takes no session with it, and the next one's set touches none that is equal.
#[test]
fn clients_come_and_go() {
    let bed = Bed::new();
    drop(bed.client(&[direct(), spec("fd00::1", "fd00::2")]));
    bed.until_up(&[direct(), spec("fd00::1", "fd00::2")]);
    // Many detection times.
    std::thread::sleep(Duration::from_secs(2));
    let other = multihop(spec("10.1.0.1", "10.1.0.2"));
    let slower = SessionSpec { interval_ms: 400, ..spec("fd00::1", "fd00::2") };
    let client = bed.client(&[other.clone(), slower.clone(), direct()]);
    assert_eq!(client.overview.sessions.len(), 2);
    let up = |status: &SessionStatus| (status.state, status.ups) == (State::Up, 1);
    assert!(client.overview.sessions.iter().all(up), "{:?}", client.overview);
    bed.until_up(&[other.clone(), slower, direct()]);
    for remote in ["10.0.0.2", "fd00::2"] {
        assert_eq!(bed.status(remote).ups, 1, "{}", bed.log());
    }
    // A set that cannot be changes nothing.
    let mut client = client.client;
    let bad = SessionSpec { interval_ms: 49, ..direct() };
    client.want(vec![bad]).expect("a request");
    let refused = loop {
        match client.report().expect("a report") {
            Report::Refused { text } => break text,
            Report::Changed(_) => {}
            other => panic!("{other:?}"),
        }
    };
    assert!(refused.contains("49 ms"), "{refused}");
    assert_eq!(bed.overview().sessions.len(), 3);
    // One that is left out is told that it is by an operator's will.
    client.want(vec![other]).expect("a request");
    wait_for("BIRD's is down", || bed.bird_says("10.0.0.1") != "Up", || bed.bird.log());
    assert_eq!(bed.overview().sessions.len(), 1);
    assert_eq!(bed.bird_says("10.1.0.1"), "Up");
}

/// Killed, its sessions end at the peer; ended by SIGTERM it says AdminDown first.
#[test]
fn its_own_end() {
    let mut bed = Bed::new();
    let client = bed.client(&[direct()]);
    bed.until_up(&[direct()]);
    bed.signal(libc::SIGKILL);
    wait_for("BIRD's is down", || bed.bird_says("10.0.0.1") == "Down", || bed.bird.log());
    drop(client);
    // In place of the killed one's socket.
    bed.start();
    let _client = bed.client(&[direct()]);
    bed.until_up(&[direct()]);
    bed.signal(libc::SIGTERM);
    wait_for("BIRD's is down", || bed.bird_says("10.0.0.1") != "Up", || bed.bird.log());
    let mut process = bed.bfd.take().expect("it runs");
    wait_for("it ends", || process.has_ended(), || bed.log());
    assert!(bed.log().contains("AdminDown"), "{}", bed.log());
}

/// Garbage, packets from more than one hop away and packets of no session, as fast as they can be sent: nothing
/// but counters changes.
#[test]
fn garbage_and_floods() {
    let bed = Bed::new();
    // Longer than a busy machine's pauses.
    let wanted = [SessionSpec { interval_ms: 500, ..direct() }];
    let _client = bed.client(&wanted);
    bed.until_up(&wanted);
    let near = UdpSocket::bind("10.0.0.1:0").expect("a socket");
    near.set_ttl(255).expect("a TTL");
    let far = UdpSocket::bind("10.0.0.1:0").expect("a socket");
    let down: [u8; 24] =
        [0x20, 0x40, 3, 24, 0, 0, 0, 9, 0, 0, 0, 0, 0, 15, 66, 64, 0, 0, 195, 80, 0, 0, 0, 0];
    let mut authenticated = [0; 26];
    authenticated[..24].copy_from_slice(&down);
    (authenticated[1], authenticated[3]) = (0x44, 26);
    let end = Instant::now() + Duration::from_secs(3);
    let mut sent = 0_u64;
    while Instant::now() < end {
        // The kernel's queue has room for the peer's packets, too.
        std::thread::sleep(Duration::from_millis(1));
        for socket in [&near, &far].repeat(20) {
            for payload in [&down[..], &authenticated, &[0xff; 100], &down[..20], &[]] {
                // A full queue is not of interest here.
                let _ = socket.send_to(payload, "10.0.0.1:3784");
                sent += 1;
            }
        }
    }
    let overview = bed.overview();
    let status = &overview.sessions[0];
    assert_eq!((status.state, status.ups), (State::Up, 1), "after {sent}: {}", bed.log());
    let discarded = overview.discarded;
    for count in [discarded.malformed, discarded.ttl, discarded.unknown, discarded.authenticated] {
        assert!(count > 0, "{discarded:?}");
    }
    assert_eq!(bed.bird_says("10.0.0.1"), "Up");
    // What is said of it is bounded.
    assert!(bed.log().lines().count() < 30, "{}", bed.log());
}

/// What keeps a session from being is told, and it begins when that is over.
#[test]
fn problems_are_told() {
    let bed = Bed::new();
    let mut missing = spec("10.0.0.7", "10.0.0.2");
    let _client = bed.client(&[missing.clone()]);
    let problem = bed.status("10.0.0.2").problem.expect("a problem");
    assert!(problem.contains("10.0.0.7 is no address of this machine"), "{problem}");
    bed.link.here("ip addr add 10.0.0.7/24 dev uplink");
    wait_for("no problem", || bed.status("10.0.0.2").problem.is_none(), || bed.log());
    missing.path.local = None;
    missing.path.interface = Some("absent0".into());
    let _client = bed.client(&[missing]);
    let problem = bed.status("10.0.0.2").problem.expect("a problem");
    assert!(problem.contains("no interface absent0"), "{problem}");
}

/// From Debian's package bird2.
const BIRD: &str = "/usr/sbin/bird";
/// From Debian's package bird2.
const BIRDC: &str = "/usr/sbin/birdc";
