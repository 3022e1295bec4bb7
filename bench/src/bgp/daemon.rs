//! The daemons that are measured, each started in the network namespace of the calling thread.

use std::fmt::Write as _;
use std::path::{Path, PathBuf};
use std::process::Command;

use super::cell::{Cell, DAEMON_ADDRESS, DAEMON_ASN, DAEMON_PORT, peer_address, peer_asn};
use crate::Result;
use crate::process::Process;

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
        let command = match self {
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
        Process::spawn(command, directory)
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
pub const BIRD: &str = "/usr/sbin/bird";
