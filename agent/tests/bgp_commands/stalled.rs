//! The main thread stands still, as it does while a disk does not answer: sessions and routes go on.

use std::io::Write;
use std::path::Path;
use std::time::{Duration, Instant};

use rustix::process::Signal;
use serde_json::json;

use crate::api::{Cluster, NODE};
use crate::ask::{json, until_established};
use crate::pods::call;
use crate::routed::{TOR, join, router, tor, until_route};
use crate::site::{Daemon, Site};

/// The hold time of the session is three seconds.
const STALL: Duration = Duration::from_secs(10);

#[test]
fn a_main_thread_that_stands_still_costs_no_session_and_delays_no_route() {
    let (site, far) = (Site::new(&[NODE]), Site::new(&[TOR]));
    join(&site, &far);
    let cluster = Cluster::new(&site);
    cluster.api.create("bgppeers.cairn.network", None, tor()).expect("created");
    let file = far.write("tor.yaml", &router(TOR, NODE, "203.0.113.0/26"));
    let tor = far.speaker("tor", &file);
    let agent = cluster.agent(&site);
    until_route(&site, "203.0.113.0/26");
    let session = until_established(&site, "agent", "tor");
    assert_eq!(session["negotiated"]["holdTimeSecs"], 3, "{session}");

    let agent_stands = Stopped::main_thread_of(&agent);
    let began = Instant::now();
    far.write("tor.yaml", &router(TOR, NODE, "203.0.113.0/26, 203.0.113.64/26"));
    tor.signal(Signal::HUP);
    tor.until_log("read again");
    let announced = Instant::now();
    until_route(&site, "203.0.113.64/26");
    assert!(announced.elapsed() < STALL / 2, "{:?} for one route", announced.elapsed());
    let tor_stands = Stopped::main_thread_of(&tor);
    std::thread::sleep(STALL.max(began.elapsed() + STALL / 2) - began.elapsed());
    for daemon in [&agent, &tor] {
        let id = daemon.id();
        let state =
            std::fs::read_to_string(format!("/proc/{id}/task/{id}/stat")).expect("a thread");
        assert!(state.contains(") t "), "it stood still to the end: {state}");
    }
    drop((agent_stands, tor_stands));

    for (site, run_dir, peer) in [(&site, "agent", "tor"), (&far, "tor", "other")] {
        let peer = &json(site, run_dir, &["peers", peer])[0];
        let seen = (&peer["state"], &peer["establishedCount"]);
        assert_eq!(seen, (&json!("Established"), &json!(1)), "at {run_dir}: {peer}");
    }
}

#[test]
fn a_main_thread_that_stands_still_delays_no_pod() {
    let site = Site::new(&[NODE]);
    let cluster = Cluster::new(&site);
    cluster.pool("default", "10.244.0.0/20", 26);
    let agent = cluster.agent(&site);
    site.until_status("agent", "pod network ready\n");
    let (first, second) = (site.pod("first"), site.pod("second"));
    let outcome = call(&site, "ADD", "first", &first).run();
    assert!(outcome.success, "{outcome:?}");
    let stands = Stopped::main_thread_of(&agent);
    let began = Instant::now();
    for (command, container, netns) in [
        ("ADD", "second", second.as_path()),
        ("STATUS", "second", Path::new("")),
        ("DEL", "first", &first),
        ("ADD", "third", &first),
    ] {
        let outcome = call(&site, command, container, netns).run();
        assert!(outcome.success, "{command} {container}: {outcome:?}");
    }
    assert!(began.elapsed() < STALL / 4, "{:?}", began.elapsed());
    let id = agent.id();
    let state = std::fs::read_to_string(format!("/proc/{id}/task/{id}/stat")).expect("a thread");
    assert!(state.contains(") t "), "it stood still to the end: {state}");
    drop(stands);
    site.until_status("agent", "used 2");
}

/// A container runtime whose disk does not answer takes no log lines either.
#[test]
fn a_log_that_nobody_reads_costs_no_session_and_delays_no_route() {
    let (site, far) = (Site::new(&[NODE]), Site::new(&[TOR]));
    join(&site, &far);
    let tor = far.speaker("tor", &far.write("tor.yaml", &router(TOR, NODE, "203.0.113.0/26")));
    let mut command = crate::site::cairn(["speaker", "--fib", "-f"]);
    command.arg(site.write("near.yaml", &router(NODE, TOR, "198.51.100.0/24")));
    command.arg("--run-dir").arg(site.path("near"));
    let (unread, mut log) = std::io::pipe().expect("a pipe");
    // Not one line has room in it.
    log.write_all(&[b'\n'; PIPE_BYTES]).expect("full");
    let _near = site.start_to("near", command, log.into());
    until_route(&site, "203.0.113.0/26");
    until_established(&site, "near", "other");
    std::thread::sleep(STALL / 2);
    far.write("tor.yaml", &router(TOR, NODE, "203.0.113.0/26, 203.0.113.64/26"));
    tor.signal(Signal::HUP);
    until_route(&site, "203.0.113.64/26");
    for (site, run_dir, peer) in [(&site, "near", "other"), (&far, "tor", "other")] {
        let peer = &json(site, run_dir, &["peers", peer])[0];
        let seen = (&peer["state"], &peer["establishedCount"]);
        assert_eq!(seen, (&json!("Established"), &json!(1)), "at {run_dir}: {peer}");
    }
    drop(unread);
}

/// What Linux lets a pipe hold.
const PIPE_BYTES: usize = 65_536;

/// The main thread of a process, which stands still until the value goes. The other threads run.
struct Stopped(libc::pid_t);

impl Stopped {
    fn main_thread_of(daemon: &Daemon) -> Stopped {
        let id = libc::pid_t::try_from(daemon.id()).expect("an id");
        let nothing = std::ptr::null_mut::<libc::c_void>();
        let error = std::io::Error::last_os_error;
        // SAFETY: these requests read and write no memory of ours.
        unsafe {
            let seized = libc::ptrace(libc::PTRACE_SEIZE, id, nothing, nothing);
            assert_eq!(seized, 0, "tracing a child needs root: {}", error());
            let stopped = Stopped(id);
            assert_eq!(
                libc::ptrace(libc::PTRACE_INTERRUPT, id, nothing, nothing),
                0,
                "{}",
                error()
            );
            // SAFETY: the status is written to a number of ours.
            let waited = libc::waitpid(id, &mut 0, libc::__WALL);
            assert_eq!(waited, id, "{}", error());
            stopped
        }
    }
}

impl Drop for Stopped {
    fn drop(&mut self) {
        let nothing = std::ptr::null_mut::<libc::c_void>();
        // SAFETY: it reads and writes no memory of ours. A process that has gone needs it no more.
        unsafe { libc::ptrace(libc::PTRACE_DETACH, self.0, nothing, nothing) };
    }
}
