//! The daemons that are measured, each started in the network namespace of the calling thread.

use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::Command;

use super::cell::{Cell, DAEMON_PORT};
use super::configuration;
use crate::Result;
use crate::process::Process;

/// A BGP daemon.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Daemon {
    /// `cairn speaker -f FILE`.
    Cairn,
    /// BIRD 2.
    Bird,
    /// BIRD 3, which has threads.
    Bird3,
    /// FRR's bgpd alone: without zebra it takes every next hop for reachable and tells nobody of routes.
    Frr,
    /// GoBGP.
    GoBgp,
    /// OpenBGPD, whose processes are the parent, the session engine, the route decision engine and the RTR engine.
    OpenBgpd,
    /// [`super::copier`]: what forwarding octets costs at least.
    Copier,
}

/// Where the daemons' programs are.
#[derive(Clone, Debug)]
pub struct Places {
    /// Ours.
    pub cairn: PathBuf,
    /// A folder with a newer Debian, whose programs are taken before those of this system.
    pub newer: Option<PathBuf>,
}

/// A daemon's program.
#[derive(Debug)]
struct Program<'a> {
    /// The folder in which it is started as in `/`.
    root: Option<&'a Path>,
    path: &'a Path,
}

impl Daemon {
    /// All daemons; the one that others are compared with comes first, and of the others those early that may be fast: what
    /// takes too long beside them is cut off.
    pub const ALL: [Daemon; 7] = [
        Daemon::Bird,
        Daemon::Cairn,
        Daemon::Bird3,
        Daemon::Frr,
        Daemon::GoBgp,
        Daemon::OpenBgpd,
        Daemon::Copier,
    ];

    /// Those that are there wherever the benchmark is.
    pub const ALWAYS: [Daemon; 3] = [Daemon::Bird, Daemon::Cairn, Daemon::Copier];

    /// As the table shows it.
    pub const fn name(self) -> &'static str {
        match self {
            Daemon::Cairn => "cairn",
            Daemon::Bird => "bird",
            Daemon::Bird3 => "bird3",
            Daemon::Frr => "frr",
            Daemon::GoBgp => "gobgp",
            Daemon::OpenBgpd => "openbgpd",
            Daemon::Copier => "copier",
        }
    }

    /// Whether it is a router of others.
    pub const fn is_peer(self) -> bool {
        !matches!(self, Daemon::Cairn | Daemon::Copier)
    }

    /// Whether it puts its own AS in front of what it passes on.
    pub const fn prepends(self) -> bool {
        !matches!(self, Daemon::Copier)
    }

    /// What it says of its version.
    ///
    /// # Errors
    /// It cannot be started: it is not installed, or not built.
    pub fn version(self, places: &Places) -> Result<String> {
        if self == Daemon::Copier {
            return Ok("forwards octets unread".into());
        }
        let program = self.program(places)?;
        let option = if self == Daemon::OpenBgpd { "-V" } else { "--version" };
        let output = program.command().arg(option).output();
        let output = output.map_err(|error| format!("{}: {error}", program.path.display()))?;
        // BIRD and OpenBGPD write it to standard error.
        let said = [output.stdout, output.stderr].concat();
        let said = String::from_utf8_lossy(&said);
        Ok(said.trim().lines().next().unwrap_or_default().to_owned())
    }

    /// Starts it for the peers of a cell.
    ///
    /// # Errors
    /// It cannot be started.
    pub fn start(self, cell: &Cell, places: &Places) -> Result<Process> {
        let name = format!("cairn-bench-{}", std::process::id());
        if self == Daemon::Copier {
            let directory = std::env::temp_dir().join(name);
            std::fs::create_dir_all(&directory)?;
            let mut command = Command::new(std::env::current_exe()?);
            command.args(["bgp-copier", &cell.peers().to_string()]);
            command.args(cell.shared.then_some(super::copier::SHARED));
            return Process::spawn(command, directory);
        }
        let program = self.program(places)?;
        let seen = match program.root {
            Some(_) => Path::new("/tmp").join(name),
            None => std::env::temp_dir().join(name),
        };
        let directory = program.outside(&seen);
        std::fs::create_dir_all(&directory)?;
        let (file, socket) = (seen.join("configuration"), seen.join("control"));
        let text = match self {
            Daemon::Cairn => configuration::cairn(cell),
            Daemon::Bird => configuration::bird(cell),
            Daemon::Bird3 => configuration::bird3(cell),
            Daemon::Frr => configuration::frr(cell),
            Daemon::GoBgp => configuration::gobgp(cell),
            Daemon::OpenBgpd => configuration::openbgpd(cell, &socket),
            Daemon::Copier => String::new(),
        };
        let written = program.outside(&file);
        std::fs::write(&written, text)?;
        // OpenBGPD refuses a file that others may read.
        std::fs::set_permissions(&written, std::fs::Permissions::from_mode(0o600))?;
        let mut command = program.command();
        match self {
            Daemon::Cairn => {
                command.args(["speaker", "-f"]).arg(&file);
            }
            Daemon::Bird | Daemon::Bird3 => {
                command.args(["-f", "-c"]).arg(&file).arg("-s").arg(socket);
                command.arg("-P").arg(seen.join("pid"));
            }
            Daemon::Frr => {
                // As root, without zebra, without its terminal.
                command.args(["-S", "-n", "-Z", "-P", "0", "--log", "stdout"]);
                command.args(["-p", &DAEMON_PORT.to_string()]).arg("-f").arg(&file);
                command.arg("-i").arg(seen.join("pid")).arg("--vty_socket").arg(&seen);
            }
            Daemon::GoBgp => {
                command.args(["--pprof-disable", "-l", "error", "-f"]).arg(&file);
            }
            Daemon::OpenBgpd => {
                // Where its children lock themselves in; made by its unit elsewhere.
                std::fs::create_dir_all(program.outside(Path::new("/run/openbgpd")))?;
                command.args(["-d", "-f"]).arg(&file);
            }
            Daemon::Copier => {}
        }
        Process::spawn(command, directory)
    }

    /// # Errors
    /// It is missing.
    fn program(self, places: &Places) -> Result<Program<'_>> {
        let (path, remedy) = match self {
            Daemon::Cairn | Daemon::Copier => {
                (places.cairn.as_path(), "build it, or name another one with --cairn")
            }
            Daemon::Bird => (Path::new(BIRD), "install Debian's package bird2"),
            Daemon::Bird3 => (Path::new(BIRD), "it is only taken from the folder of --newer"),
            Daemon::Frr => (Path::new("/usr/lib/frr/bgpd"), "install Debian's package frr"),
            Daemon::GoBgp => (Path::new("/usr/bin/gobgpd"), "install Debian's package gobgpd"),
            Daemon::OpenBgpd => (Path::new("/usr/sbin/bgpd"), "install Debian's package openbgpd"),
        };
        let newer = places.newer.as_deref().map(|root| Program { root: Some(root), path });
        let own = Program { root: None, path };
        let candidates = match self {
            Daemon::Cairn | Daemon::Copier | Daemon::Bird => [None, Some(own)],
            Daemon::Bird3 => [newer, None],
            Daemon::Frr | Daemon::GoBgp | Daemon::OpenBgpd => [newer, Some(own)],
        };
        let found = candidates.into_iter().flatten().find(|p| p.outside(p.path).exists());
        found.ok_or_else(|| format!("{} is missing: {remedy}", path.display()).into())
    }
}

impl Program<'_> {
    /// Where the path that the program sees is for us.
    fn outside(&self, path: &Path) -> PathBuf {
        match self.root {
            Some(root) => root.join(path.strip_prefix("/").unwrap_or(path)),
            None => path.to_owned(),
        }
    }

    /// In another root with a /proc, in which OpenBGPD looks for itself. It goes with the process. Each of the commands
    /// becomes the next one and in the end the program, so that its process is the daemon's.
    fn command(&self) -> Command {
        match self.root {
            Some(root) => {
                let mut command = Command::new("unshare");
                command.args(["--mount", "sh", "-c", CHANGE_ROOT]).arg(root).arg(self.path);
                command
            }
            None => Command::new(self.path),
        }
    }
}

const CHANGE_ROOT: &str = r#"mount -t proc proc "$0/proc" && exec chroot "$0" "$@""#;
/// From Debian's package bird2.
pub const BIRD: &str = "/usr/sbin/bird";
