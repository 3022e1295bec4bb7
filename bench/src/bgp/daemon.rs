//! The daemons that are measured, each started in the network namespace of the calling thread.

use std::fmt::Write as _;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use super::cell::{Cell, DAEMON_ADDRESS, DAEMON_ASN, DAEMON_PORT, peer_address, peer_asn};
use crate::Result;

/// A BGP daemon.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Daemon {
    /// `cairn speaker -f FILE`.
    Cairn,
    /// BIRD 2.
    Bird,
    /// [`super::copier`]: what forwarding octets costs at least.
    Copier,
}

/// A running daemon; killed when dropped, and by the kernel when the thread that started it ends.
#[derive(Debug)]
pub struct Process {
    child: Child,
    directory: PathBuf,
}

impl Daemon {
    /// All daemons; the one that others are compared with comes first.
    pub const ALL: [Daemon; 3] = [Daemon::Bird, Daemon::Cairn, Daemon::Copier];

    /// As the table shows it.
    pub const fn name(self) -> &'static str {
        match self {
            Daemon::Cairn => "cairn",
            Daemon::Bird => "bird",
            Daemon::Copier => "copier",
        }
    }

    /// Whether it puts its own AS in front of what it passes on.
    pub const fn prepends(self) -> bool {
        !matches!(self, Daemon::Copier)
    }

    /// What its `--version` says.
    ///
    /// # Errors
    /// It cannot be started: it is not installed, or not built.
    pub fn version(self, cairn: &Path) -> Result<String> {
        let mut command = match self {
            Daemon::Copier => return Ok("forwards octets unread".into()),
            Daemon::Cairn => Command::new(cairn),
            Daemon::Bird => Command::new(BIRD),
        };
        // BIRD writes it to standard error.
        let output = command.arg("--version").output().map_err(|error| match self {
            Daemon::Bird => format!("{BIRD}: {error}: install Debian's package bird2"),
            _ => {
                format!("{}: {error}: build it, or name another one with --cairn", cairn.display())
            }
        })?;
        let said = [output.stdout, output.stderr].concat();
        Ok(String::from_utf8_lossy(&said).trim().to_owned())
    }

    /// Starts it for the peers of a cell.
    ///
    /// # Errors
    /// It cannot be started.
    pub fn start(self, cell: &Cell, cairn: &Path, directory: PathBuf) -> Result<Process> {
        std::fs::create_dir_all(&directory)?;
        let file = directory.join("configuration");
        let mut command = match self {
            Daemon::Cairn => {
                std::fs::write(&file, cairn_configuration(cell))?;
                let mut command = Command::new(cairn);
                command.args(["speaker", "-f"]).arg(&file);
                command
            }
            Daemon::Bird => {
                std::fs::write(&file, bird_configuration(cell))?;
                let mut command = Command::new(BIRD);
                command.args(["-f", "-c"]).arg(&file);
                command.arg("-s").arg(directory.join("control"));
                command.arg("-P").arg(directory.join("pid"));
                command
            }
            Daemon::Copier => {
                let mut command = Command::new(std::env::current_exe()?);
                command.args(["bgp-copier", &cell.peers().to_string()]);
                command.args(cell.shared.then_some(super::copier::SHARED));
                command
            }
        };
        let log = std::fs::File::create(directory.join("log"))?;
        command.stdin(Stdio::null()).stdout(log.try_clone()?).stderr(log);
        // SAFETY: one system call between fork and exec, which allocates nothing.
        unsafe {
            command.pre_exec(|| {
                libc::prctl(libc::PR_SET_PDEATHSIG, libc::SIGKILL);
                Ok(())
            });
        }
        Ok(Process { child: command.spawn()?, directory })
    }
}

impl Process {
    /// CPU time of all its threads, in user and kernel mode.
    ///
    /// # Errors
    /// It has ended.
    pub fn cpu(&self) -> Result<Duration> {
        let mut clock = 0;
        let pid = self.child.id() as libc::pid_t;
        let mut time = libc::timespec { tv_sec: 0, tv_nsec: 0 };
        // SAFETY: both calls write to the variable that they are given and to nothing else.
        let failed = unsafe {
            libc::clock_getcpuclockid(pid, &mut clock) != 0
                || libc::clock_gettime(clock, &mut time) != 0
        };
        match failed {
            true => Err(self.ended()),
            false => Ok(Duration::new(time.tv_sec.unsigned_abs(), time.tv_nsec as u32)),
        }
    }

    /// Resident memory and its greatest size so far, in octets.
    ///
    /// # Errors
    /// It has ended.
    pub fn memory(&self) -> Result<(u64, u64)> {
        let status = std::fs::read_to_string(format!("/proc/{}/status", self.child.id()))?;
        let field = |name: &str| {
            let line = status.lines().find_map(|line| line.strip_prefix(name))?;
            line.split_whitespace().next()?.parse::<u64>().ok().map(|kib| kib * 1024)
        };
        field("VmRSS:").zip(field("VmHWM:")).ok_or_else(|| self.ended())
    }

    /// What it has said.
    pub fn log(&self) -> String {
        std::fs::read_to_string(self.directory.join("log")).unwrap_or_default()
    }

    fn ended(&self) -> Box<dyn std::error::Error> {
        format!("the daemon has ended: {}", self.log()).into()
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        // It may have ended on its own.
        let _ = self.child.kill();
        let _ = self.child.wait();
        let _ = std::fs::remove_dir_all(&self.directory);
    }
}

fn cairn_configuration(cell: &Cell) -> String {
    let mut text = format!(
        "\
apiVersion: cairn.network/v1alpha1
kind: BGPConfiguration
metadata: {{name: default}}
spec: {{asn: {DAEMON_ASN}, routerID: {DAEMON_ADDRESS}, listenAddresses: [{DAEMON_ADDRESS}], \
         listenPort: {DAEMON_PORT}, topology: Disabled}}
---
apiVersion: cairn.network/v1alpha1
kind: BGPPolicy
metadata: {{name: all}}
spec: {{rules: [{{action: Accept}}]}}
"
    );
    for peer in 0..cell.peers() {
        let (address, asn) = (peer_address(peer), peer_asn(peer));
        // Writing to a string cannot fail.
        let _ = write!(
            text,
            "\
---
apiVersion: cairn.network/v1alpha1
kind: BGPPeer
metadata: {{name: p{peer}}}
spec: {{address: {address}, asn: {asn}, passive: true, multihop: 2, families: [IPv4Unicast, \
             IPv6Unicast], importPolicies: [all], exportPolicies: [all]}}
"
        );
    }
    text
}

fn bird_configuration(cell: &Cell) -> String {
    let mut text = format!("router id {DAEMON_ADDRESS};\nprotocol device {{}}\n");
    for peer in 0..cell.peers() {
        let (address, asn) = (peer_address(peer), peer_asn(peer));
        // Writing to a string cannot fail.
        let _ = write!(
            text,
            "\
protocol bgp p{peer} {{
  local {DAEMON_ADDRESS} port {DAEMON_PORT} as {DAEMON_ASN};
  neighbor {address} as {asn};
  multihop 2;
  passive;
  ipv4 {{ import all; export all; next hop self; }};
  ipv6 {{ import all; export all; next hop self; }};
}}
"
        );
    }
    text
}

/// From Debian's package bird2.
const BIRD: &str = "/usr/sbin/bird";
