//! The daemons that are measured, each in a named network namespace.

use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use super::{DAEMON_ADDRESS, DAEMON_ASN, PEER_ADDRESS, PEER_ASN};
use crate::Result;
use crate::process::Process;

/// A BGP daemon that writes routes to the kernel.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Daemon {
    /// `cairn speaker -f FILE --fib`.
    Cairn,
    /// BIRD 2 with its kernel protocol.
    Bird,
    /// FRR's bgpd and zebra.
    Frr,
}

/// A daemon that runs: of one process or several.
pub struct Started(Vec<Process>);

impl Daemon {
    /// All of them.
    pub const ALL: [Daemon; 3] = [Daemon::Cairn, Daemon::Bird, Daemon::Frr];

    /// As the table shows it.
    pub const fn name(self) -> &'static str {
        match self {
            Daemon::Cairn => "cairn",
            Daemon::Bird => "bird",
            Daemon::Frr => "frr",
        }
    }

    /// Starts it in the namespace of this name.
    ///
    /// # Errors
    /// It is not installed, not built, or cannot be started.
    pub fn start(self, netns: &str, cairn: &Path) -> Result<Started> {
        match self {
            Daemon::Cairn => {
                let directory = directory(netns, "cairn")?;
                let file = directory.join("configuration");
                std::fs::write(&file, cairn_configuration())?;
                let mut command = within(netns, need(cairn, "build it, or name one with --cairn")?);
                command.args(["speaker", "--fib", "-f"]).arg(file);
                command.arg("--run-dir").arg(&directory);
                Ok(Started(vec![Process::spawn(command, directory)?]))
            }
            Daemon::Bird => {
                let directory = directory(netns, "bird")?;
                let file = directory.join("configuration");
                std::fs::write(&file, bird_configuration())?;
                let mut command = within(netns, need(Path::new(BIRD), "install bird2")?);
                command.args(["-f", "-c"]).arg(file);
                command.arg("-s").arg(directory.join("control"));
                command.arg("-P").arg(directory.join("pid"));
                Ok(Started(vec![Process::spawn(command, directory)?]))
            }
            Daemon::Frr => frr(netns),
        }
    }
}

impl Started {
    /// The CPU time of all its processes.
    ///
    /// # Errors
    /// One has ended.
    pub fn cpu(&self) -> Result<Duration> {
        self.0.iter().map(Process::cpu).sum()
    }

    /// What it has said.
    pub fn log(&self) -> String {
        self.0.iter().map(Process::log).collect()
    }
}

/// bgpd tells zebra over a socket, which has to be there first.
fn frr(netns: &str) -> Result<Started> {
    let mut started = Vec::new();
    let sockets = directory(netns, "frr")?;
    // Both become this user.
    let owned = Command::new("chown").arg("frr:frr").arg(&sockets).status()?;
    if !owned.success() {
        return Err("there is no user frr: install Debian's package frr".into());
    }
    let zserv = sockets.join("zserv.api");
    let file = sockets.join("bgpd.conf");
    std::fs::write(&file, frr_configuration())?;
    for (name, configuration) in [("zebra", Path::new("/dev/null")), ("bgpd", &file)] {
        let program = Path::new(FRR).join(name);
        let mut command = within(netns, need(&program, "install frr")?);
        command.arg("-f").arg(configuration).arg("-z").arg(&zserv);
        command.arg("-i").arg(sockets.join(name).with_extension("pid"));
        command.arg("--vty_socket").arg(&sockets).args(["-P", "0", "--log", "stdout"]);
        let own = match name {
            "zebra" => directory(netns, name)?,
            // The last to be dropped takes the sockets along.
            _ => sockets.clone(),
        };
        started.push(Process::spawn(command, own)?);
        let began = std::time::Instant::now();
        while !zserv.exists() {
            if began.elapsed() > super::PATIENCE {
                return Err("zebra does not answer".into());
            }
            std::thread::sleep(Duration::from_millis(20));
        }
    }
    Ok(Started(started))
}

fn directory(netns: &str, name: &str) -> Result<PathBuf> {
    let path = std::env::temp_dir().join(format!("{netns}-{name}"));
    std::fs::create_dir_all(&path)?;
    Ok(path)
}

fn need<'a>(program: &'a Path, remedy: &str) -> Result<&'a Path> {
    match program.exists() {
        true => Ok(program),
        false => Err(format!("{} is missing: {remedy}", program.display()).into()),
    }
}

/// `ip netns exec` becomes the program, so that its process is the daemon's.
fn within(netns: &str, program: &Path) -> Command {
    let mut command = Command::new("ip");
    command.args(["netns", "exec", netns]).arg(program);
    command
}

fn cairn_configuration() -> String {
    format!(
        "\
apiVersion: cairn.network/v1alpha1
kind: BGPConfiguration
metadata: {{name: default}}
spec: {{asn: {DAEMON_ASN}, routerID: {DAEMON_ADDRESS}, listenAddresses: [{DAEMON_ADDRESS}], topology: Disabled}}
---
apiVersion: cairn.network/v1alpha1
kind: BGPPolicy
metadata: {{name: all}}
spec: {{rules: [{{action: Accept}}]}}
---
apiVersion: cairn.network/v1alpha1
kind: BGPPeer
metadata: {{name: p}}
spec: {{address: {PEER_ADDRESS}, asn: {PEER_ASN}, passive: true, importPolicies: [all], exportPolicies: [all]}}
"
    )
}

fn bird_configuration() -> String {
    format!(
        "\
router id {DAEMON_ADDRESS};
protocol device {{}}
protocol kernel {{ ipv4 {{ import none; export all; }}; }}
protocol bgp p {{
  local {DAEMON_ADDRESS} as {DAEMON_ASN};
  neighbor {PEER_ADDRESS} as {PEER_ASN};
  passive;
  ipv4 {{ import all; export none; }};
}}
"
    )
}

fn frr_configuration() -> String {
    format!(
        "\
router bgp {DAEMON_ASN}
 bgp router-id {DAEMON_ADDRESS}
 no bgp ebgp-requires-policy
 neighbor {PEER_ADDRESS} remote-as {PEER_ASN}
 neighbor {PEER_ADDRESS} passive
"
    )
}

/// From Debian's package bird2.
const BIRD: &str = "/usr/sbin/bird";
/// From Debian's package frr.
const FRR: &str = "/usr/lib/frr";
