//! The main thread stands still, as it does while a disk does not answer: sessions and routes go on.

use std::process::Command;
use std::time::{Duration, Instant};

use rustix::process::Signal;
use serde_json::json;

use crate::api::{Cluster, NODE};
use crate::ask::{json, until_established};
use crate::site::{Daemon, Site, until};

const TOR: &str = "192.0.2.2";
/// The hold time of the session is three seconds.
const STALL: Duration = Duration::from_secs(10);

/// The router's file, which announces `cidrs`.
fn router(cidrs: &str) -> String {
    format!(
        "apiVersion: cairn.network/v1alpha1\nkind: BGPConfiguration\nmetadata: {{name: default}}\n\
         spec: {{asn: 64512, routerID: {TOR}, listenAddresses: [{TOR}], \
         timers: {{holdTimeSecs: 3, connectRetrySecs: 1}}, topology: Disabled}}\n---\n\
         apiVersion: cairn.network/v1alpha1\nkind: BGPPeer\nmetadata: {{name: n1}}\n\
         spec: {{address: {NODE}, asn: 64512, sourceAddress: {TOR}}}\n---\n\
         apiVersion: cairn.network/v1alpha1\nkind: BGPAdvertisement\nmetadata: {{name: own}}\n\
         spec: {{cidrs: [{cidrs}]}}\n"
    )
}

#[test]
fn a_main_thread_that_stands_still_costs_no_session_and_delays_no_route() {
    let (site, far) = (Site::new(&[NODE]), Site::new(&[TOR]));
    join(&site, &far);
    let cluster = Cluster::new(&site);
    let tor = json!({
        "apiVersion": "cairn.network/v1alpha1",
        "kind": "BGPPeer",
        "metadata": {"name": "tor"},
        "spec": {
            "address": TOR, "asn": 64512, "timers": {"holdTimeSecs": 3, "connectRetrySecs": 1},
        },
    });
    cluster.api.create("bgppeers.cairn.network", None, tor).expect("created");
    let file = far.write("tor.yaml", &router("203.0.113.0/26"));
    let tor = far.speaker("tor", &file);
    let agent = cluster.agent(&site);
    until_route(&site, "203.0.113.0/26");
    let session = until_established(&site, "agent", "tor");
    assert_eq!(session["negotiated"]["holdTimeSecs"], 3, "{session}");

    let agent_stands = Stopped::main_thread_of(&agent);
    let began = Instant::now();
    far.write("tor.yaml", &router("203.0.113.0/26, 203.0.113.64/26"));
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

    for (site, run_dir, peer) in [(&site, "agent", "tor"), (&far, "tor", "n1")] {
        let peer = &json(site, run_dir, &["peers", peer])[0];
        let seen = (&peer["state"], &peer["establishedCount"]);
        assert_eq!(seen, (&json!("Established"), &json!(1)), "at {run_dir}: {peer}");
    }
}

/// Connects the uplinks of both.
fn join(one: &Site, other: &Site) {
    let sh = |site: &Site, script: String| {
        let mut command = Command::new("sh");
        command.args(["-ec", &script]);
        let output = site.run(command);
        assert!(output.status.success(), "{script}: {}", String::from_utf8_lossy(&output.stderr));
    };
    sh(one, format!("ip link add wire type veth peer name wire netns {}", other.name));
    for site in [one, other] {
        sh(site, "ip link set wire master uplink; ip link set wire up".to_owned());
    }
}

fn until_route(site: &Site, prefix: &str) {
    until(&format!("{prefix} in the kernel"), || {
        let mut command = Command::new("ip");
        command.args(["route", "show", prefix]);
        let output = String::from_utf8(site.run(command).stdout).expect("text");
        if output.contains(TOR) { Ok(()) } else { Err(format!("only {output:?}")) }
    });
}

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
