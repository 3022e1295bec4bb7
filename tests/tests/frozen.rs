//! Two `cairn speaker` and two `cairn bfd` on a link, and one of the speakers stands still for a while, as one does
//! whose machine swaps or whose virtual machine is moved.

use std::path::Path;
use std::process::Command;
use std::time::Duration;

use cairn_tests::daemon;
use cairn_tests::link::{Link, wait_for};
use cairn_tests::process::{Scratch, end_with_thread};
use cairn_tests::program::built;
use serde_json::Value;

/// One side of the link.
struct Side {
    speaker: daemon::Process,
    _bfd: daemon::Process,
    /// Tells each change of the kernel's routes.
    _monitor: daemon::Process,
    scratch: Scratch,
}

/// A speaker of `host` that announces 172.16.HOST.0/24, and writes what it learns into the kernel.
fn file(host: u8, hold_time_secs: u16) -> String {
    let other = 3 - host;
    format!(
        "\
apiVersion: cairn.network/v1alpha1
kind: BGPConfiguration
metadata: {{name: default}}
spec:
  asn: 6500{host}
  routerID: 10.0.0.{host}
  listenAddresses: [10.0.0.{host}]
  topology: Disabled
  timers: {{holdTimeSecs: {hold_time_secs}, connectRetrySecs: 1}}
  gracefulRestart: {{notification: true, restartTimeSecs: 60}}
---
apiVersion: cairn.network/v1alpha1
kind: BGPPolicy
metadata: {{name: all}}
spec: {{rules: [{{action: Accept}}]}}
---
apiVersion: cairn.network/v1alpha1
kind: BGPAdvertisement
metadata: {{name: ours}}
spec: {{cidrs: [172.16.{host}.0/24]}}
---
apiVersion: cairn.network/v1alpha1
kind: BGPPeer
metadata: {{name: other}}
spec:
  address: 10.0.0.{other}
  asn: 6500{other}
  bfd: {{intervalMs: 300}}
  importPolicies: [all]
  exportPolicies: [all]
"
    )
}

impl Side {
    fn start(host: u8, hold_time_secs: u16, command: impl Fn(&Path) -> Command) -> Side {
        let scratch = Scratch::new("cairn-frozen");
        let at = |name: &str| scratch.path().join(name);
        std::fs::write(at("file.yaml"), file(host, hold_time_secs)).expect("a file");
        let start = |program: &Path, arguments: &[&str], log: &str| {
            let mut command = command(program);
            let log = std::fs::File::create(at(log)).expect("a log");
            command.args(arguments).stdout(log.try_clone().expect("a log")).stderr(log);
            daemon::Process(command.spawn().expect("the program starts"))
        };
        let run_dir = scratch.path().display().to_string();
        let file = at("file.yaml").display().to_string();
        let _monitor = start(Path::new("ip"), &["-o", "monitor", "route"], "routes");
        let _bfd = start(&built("cairn"), &["bfd", "--run-dir", &run_dir], "bfd.log");
        let arguments = ["speaker", "-f", &file, "--fib", "--run-dir", &run_dir];
        let speaker = start(&built("cairn"), &arguments, "log");
        Side { speaker, _bfd, _monitor, scratch }
    }

    fn status(&self) -> Value {
        let mut command = Command::new(built("cairn"));
        command.args(["status", "-o", "json", "--run-dir"]).arg(self.scratch.path());
        let output = command.output().expect("it starts");
        serde_json::from_slice(&output.stdout).unwrap_or_default()
    }

    /// Since when the session is established.
    fn established(&self) -> Option<String> {
        let session = &self.status()["sessions"][0];
        let up = session["state"] == "Established" && session["accepted"] == 1;
        up.then(|| session["since"].as_str().unwrap_or_default().to_owned())
    }

    fn bfd(&self) -> String {
        self.status()["sessions"][0]["bfd"].as_str().unwrap_or_default().to_owned()
    }

    /// What the kernel has told of the routes between the two.
    fn routes(&self) -> Vec<String> {
        let told = std::fs::read_to_string(self.scratch.path().join("routes")).unwrap_or_default();
        told.lines().filter(|line| line.contains("172.16.")).map(str::to_owned).collect()
    }

    fn why(&self) -> String {
        let log = std::fs::read_to_string(self.scratch.path().join("log")).unwrap_or_default();
        format!("{:#}\n{:?}\n{log}", self.status(), self.routes())
    }
}

/// A command on this side, which ends with the test.
fn here(program: &Path) -> Command {
    let mut command = Command::new(program);
    end_with_thread(&mut command);
    command
}

/// Both sides, when all is well.
fn bed(hold_time_secs: u16) -> (Side, Side, Link) {
    let link = Link::new();
    let far = link.far();
    let there = |program: &Path| far.command(&program.display().to_string());
    let ours = Side::start(1, hold_time_secs, here);
    let theirs = Side::start(2, hold_time_secs, there);
    for side in [&ours, &theirs] {
        wait_for("the session", || side.established().is_some(), || side.why());
        wait_for("BFD", || side.bfd() == "Up", || side.why());
        wait_for("the route in the kernel", || side.routes().len() == 1, || side.why());
    }
    (ours, theirs, link)
}

/// For less than the hold time: nobody notices.
#[test]
fn for_less_than_the_hold_time() {
    let (ours, theirs, _link) = bed(9);
    let before = [ours.established(), theirs.established()];
    ours.speaker.signal(libc::SIGSTOP);
    std::thread::sleep(Duration::from_secs(4));
    ours.speaker.signal(libc::SIGCONT);
    // Until whatever was late has had its time.
    std::thread::sleep(Duration::from_secs(6));
    assert_eq!([ours.established(), theirs.established()], before, "{}", theirs.why());
    assert_eq!([ours.routes().len(), theirs.routes().len()], [1, 1], "{}", ours.why());
}

/// For longer: the session ends by the hold timer, and with the N bit (RFC 8538) that is all. Forwarding and BFD go on,
/// and when the speaker goes on the session comes back without a word to either kernel.
#[test]
fn for_longer_than_the_hold_time() {
    let (ours, theirs, _link) = bed(3);
    let before = ours.established();
    ours.speaker.signal(libc::SIGSTOP);
    wait_for("the session ends", || theirs.established().is_none(), || theirs.why());
    // Many detection times of BFD.
    std::thread::sleep(Duration::from_secs(3));
    assert_eq!(theirs.bfd(), "Up", "{}", theirs.why());
    ours.speaker.signal(libc::SIGCONT);
    for side in [&ours, &theirs] {
        wait_for("the session is back", || side.established().is_some(), || side.why());
    }
    assert_ne!(ours.established(), before, "another session");
    // What is still stale is swept by then.
    std::thread::sleep(Duration::from_secs(2));
    for side in [&ours, &theirs] {
        assert!(side.established().is_some(), "{}", side.why());
        assert_eq!(side.routes().len(), 1, "{}", side.why());
    }
}
