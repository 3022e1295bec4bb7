//! Where a test takes place: namespaces, files and processes, all gone with the value.

use std::fs::{self, File};
use std::net::IpAddr;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::{Duration, Instant};

use cairn_kernel::link::{self, DuplicateDetection};
use cairn_kernel::{NetNs, Netlink};
use rustix::process::{Pid, Signal, kill_process};
use serde_json::Value;

/// One network namespace with a bridge `uplink` that holds the addresses of every router of the
/// test, and a directory.
pub struct Site {
    pub name: String,
    pub netns: NetNs,
    pub dir: PathBuf,
}

impl Site {
    pub fn new(addresses: &[&str]) -> Site {
        static NEXT: AtomicU32 = AtomicU32::new(0);
        assert!(
            rustix::process::geteuid().is_root(),
            "these tests make network namespaces: run them as root"
        );
        let number = NEXT.fetch_add(1, Ordering::Relaxed);
        // Of one length: no name begins with another one, and by its beginning all of a site goes.
        let name = format!("bad-{}-{number:03}", std::process::id());
        let dir = std::env::temp_dir().join(&name);
        fs::create_dir_all(&dir).expect("a directory");
        // A process without rights reads its file in here.
        fs::set_permissions(&dir, fs::Permissions::from_mode(0o755)).expect("readable");
        let netns = NetNs::create(&name).expect("a namespace");
        let site = Site { name, netns, dir };
        let mut netlink = site.netlink();
        link::create_bridge(&mut netlink, "uplink").expect("a bridge");
        let uplink = link::find(&mut netlink, "uplink").expect("links").expect("the bridge").index;
        link::set_up(&mut netlink, uplink).expect("the bridge is up");
        for address in addresses {
            let address = format!("{address}/24").parse().expect("an address");
            link::add_address(&mut netlink, uplink, address, DuplicateDetection::Skip)
                .expect("the address is added");
        }
        site
    }

    pub fn netlink(&self) -> Netlink {
        Netlink::open_in(&self.netns).expect("a socket")
    }

    pub fn path(&self, name: &str) -> PathBuf {
        self.dir.join(name)
    }

    pub fn write(&self, name: &str, text: &str) -> PathBuf {
        let path = self.path(name);
        fs::write(&path, text).expect("a file");
        path
    }

    /// A second namespace, for a pod.
    pub fn pod(&self, pod: &str) -> PathBuf {
        let name = format!("{}-{pod}", self.name);
        NetNs::create(&name).expect("a namespace");
        Path::new(cairn_kernel::netns::NETNS_DIR).join(name)
    }

    /// Starts `command` in the namespace; its log is the file `name` and is appended to.
    pub fn start(&self, name: &str, command: Command) -> Daemon {
        let log = self.path(&format!("{name}.log"));
        let output = File::options().create(true).append(true).open(&log).expect("a log");
        self.start_to(name, command, output.into())
    }

    /// As [`Site::start`], with another standard error.
    pub fn start_to(&self, name: &str, mut command: Command, output: Stdio) -> Daemon {
        let log = self.path(&format!("{name}.log"));
        command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(output);
        let child = self.netns.run(|| command.spawn().expect("a process")).expect("entered");
        Daemon { child, log }
    }

    /// `cairn speaker -f FILE` with the run directory `name`.
    pub fn speaker(&self, name: &str, file: &Path) -> Daemon {
        let mut command = cairn(["speaker", "-f"]);
        command.arg(file).arg("--run-dir").arg(self.path(name));
        self.start(name, command)
    }

    /// Runs `command` in the namespace to its end, which must come by itself.
    pub fn run(&self, mut command: Command) -> Output {
        self.netns.run(|| command.output().expect("a process")).expect("entered")
    }

    /// The screen of `cairn status`; empty while nobody answers.
    pub fn status(&self, run_dir: &str) -> String {
        let mut command = cairn(["status", "--run-dir"]);
        command.arg(self.path(run_dir));
        String::from_utf8(self.run(command).stdout).expect("text")
    }

    /// The same for programs.
    pub fn report(&self, run_dir: &str) -> Value {
        let mut command = cairn(["status", "-o", "json", "--run-dir"]);
        command.arg(self.path(run_dir));
        serde_json::from_slice(&self.run(command).stdout).unwrap_or_default()
    }

    /// One session of a report; null while there is none.
    pub fn session(&self, run_dir: &str, peer: &str) -> Value {
        let report = self.report(run_dir);
        let sessions = report["sessions"].as_array().cloned().unwrap_or_default();
        sessions.into_iter().find(|session| session["peer"] == peer).unwrap_or_default()
    }

    pub fn until_established(&self, run_dir: &str, peer: &str) -> Value {
        until(&format!("the session of {run_dir} with {peer}"), || {
            let session = self.session(run_dir, peer);
            (session["state"] == "Established").then_some(session).ok_or(self.status(run_dir))
        })
    }

    /// Waits for a text on the screen of `cairn status`, and returns the screen.
    pub fn until_status(&self, run_dir: &str, text: &str) -> String {
        until(&format!("{text:?} in the status of {run_dir}"), || {
            let screen = self.status(run_dir);
            if screen.contains(text) { Ok(screen) } else { Err(screen) }
        })
    }
}

impl Drop for Site {
    fn drop(&mut self) {
        for name in NetNs::names(&self.name).unwrap_or_default() {
            if let Err(error) = NetNs::delete(&name) {
                eprintln!("the namespace {name} stays behind: {error}");
            }
        }
        if !std::thread::panicking() {
            let _ = fs::remove_dir_all(&self.dir);
        } else {
            eprintln!("logs are in {}", self.dir.display());
        }
    }
}

/// A process, killed with the value.
pub struct Daemon {
    child: Child,
    log: PathBuf,
}

impl Daemon {
    pub fn id(&self) -> u32 {
        self.child.id()
    }

    pub fn log(&self) -> String {
        fs::read_to_string(&self.log).expect("the log")
    }

    /// The log's lines with a text, without their times.
    pub fn lines(&self, text: &str) -> Vec<String> {
        let log = self.log();
        let lines = log.lines().filter(|line| line.contains(text));
        lines.map(|line| line.split_once(' ').unwrap_or_default().1.trim().to_owned()).collect()
    }

    pub fn until_log(&self, text: &str) {
        until(&format!("{text:?} in the log"), || {
            let log = self.log();
            if log.contains(text) { Ok(()) } else { Err(log) }
        });
    }

    pub fn signal(&self, signal: Signal) {
        let id = Pid::from_raw(i32::try_from(self.id()).expect("an id")).expect("not 0");
        kill_process(id, signal).expect("the process lives");
    }

    pub fn is_running(&mut self) -> bool {
        self.child.try_wait().expect("its state").is_none()
    }
}

impl Drop for Daemon {
    fn drop(&mut self) {
        // One that has ended already is only collected.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

pub fn cairn<const N: usize>(arguments: [&str; N]) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_cairn"));
    command.args(arguments).env_remove("KUBECONFIG").env_remove("CAIRN_LOG");
    command
}

/// Waits until `holds` gives a value; fails with the last reason.
pub fn until<T, E: std::fmt::Display>(what: &str, holds: impl Fn() -> Result<T, E>) -> T {
    let deadline = Instant::now() + PATIENCE;
    loop {
        match holds() {
            Ok(value) => return value,
            Err(reason) if Instant::now() > deadline => panic!("not seen: {what}\n{reason}"),
            Err(_) => std::thread::sleep(Duration::from_millis(50)),
        }
    }
}

/// The sentence of a run that must have failed as promised: exit code 1 and one line.
pub fn refusal(output: &Output) -> String {
    let text = String::from_utf8(output.stderr.clone()).expect("text");
    assert_eq!(output.status.code(), Some(1), "{text}");
    assert!(!text.contains("panicked"), "{text}");
    assert_eq!(text.lines().count(), 1, "{text}");
    text.trim().to_owned()
}

/// The text of a speaker's file, with quick timers.
pub fn configuration(asn: u32, address: IpAddr, peers: &[String]) -> String {
    let mut text = format!(
        "apiVersion: cairn.network/v1alpha1\nkind: BGPConfiguration\nmetadata: {{name: default}}\n\
         spec: {{asn: {asn}, routerID: {address}, listenAddresses: [{address}], \
         timers: {{holdTimeSecs: 9, connectRetrySecs: 1}}, topology: Disabled}}\n"
    );
    for peer in peers {
        text.push_str("---\n");
        text.push_str(peer);
    }
    text
}

/// A BGPPeer of such a file; `source` tells apart routers of one namespace.
pub fn peer(name: &str, address: &str, asn: u32, source: &str, more: &str) -> String {
    format!(
        "apiVersion: cairn.network/v1alpha1\nkind: BGPPeer\nmetadata: {{name: {name}}}\n\
         spec: {{address: {address}, asn: {asn}, sourceAddress: {source}{more}}}\n"
    )
}

const PATIENCE: Duration = Duration::from_secs(30);
