//! Runs `nft` and the legacy iptables, with bounds on what they may take and say.

use std::ffi::OsString;
use std::process::Stdio;
use std::time::Duration;

use tokio::io::{AsyncRead, AsyncReadExt, AsyncWriteExt};
use tokio::process::{Child, Command};

use crate::error::Error;
use crate::netns::NetNs;

/// Why a command did not do what it was asked for.
#[derive(Debug, thiserror::Error)]
pub enum CommandError {
    /// There is no such program.
    #[error("{program} is not installed: install the package {package} (Debian's name)")]
    Missing {
        /// The program.
        program: &'static str,
        /// The package that has it.
        package: &'static str,
    },
    /// It ended with an error.
    #[error("{program} refuses: {text}")]
    Refused {
        /// The program.
        program: &'static str,
        /// What it said, shortened.
        text: String,
    },
    /// It took too long and was killed.
    #[error("{program} did not end within {} s and was killed", TIME_LIMIT.as_secs())]
    Timeout {
        /// The program.
        program: &'static str,
    },
    /// It said more than is read.
    #[error("{program} prints more than {} MiB", OUTPUT_BYTES_MAX >> 20)]
    TooLong {
        /// The program.
        program: &'static str,
    },
    /// What it printed does not have the form that it promises.
    #[error("what {program} prints cannot be understood: {text}")]
    Unreadable {
        /// The program.
        program: &'static str,
        /// Where it went wrong.
        text: String,
    },
    /// The kernel refused something around it.
    #[error(transparent)]
    Kernel(#[from] Error),
}

/// A program and the package that brings it.
#[derive(Clone, Copy)]
pub(super) struct Program {
    pub(super) name: &'static str,
    package: &'static str,
}

pub(super) const NFT: Program = Program { name: "nft", package: "nftables" };
pub(super) const IPTABLES_LEGACY: Program =
    Program { name: "iptables-legacy", package: "iptables" };
pub(super) const IP6TABLES_LEGACY: Program =
    Program { name: "ip6tables-legacy", package: "iptables" };

/// Where programs run and are looked for.
pub(super) struct Commands {
    netns: Option<NetNs>,
    pub(super) path: OsString,
}

/// A program that ended well.
pub(super) struct Done {
    /// What it printed.
    pub(super) text: String,
    /// Its process id, which is also the port of its first netlink socket.
    pub(super) pid: Option<u32>,
}

impl Commands {
    /// In `netns`, or in the namespace of the thread that runs a command.
    pub(super) fn new(netns: Option<NetNs>) -> Commands {
        // A login shell's path may lack the directories in which these programs are.
        let mut path = std::env::var_os("PATH").unwrap_or_default();
        path.push(":/usr/local/sbin:/usr/sbin:/sbin");
        Commands { netns, path }
    }

    /// The namespace, unless it is the thread's.
    pub(super) fn netns(&self) -> Option<&NetNs> {
        self.netns.as_ref()
    }

    /// The same programs in another namespace.
    pub(super) fn in_netns(&self, netns: NetNs) -> Commands {
        Commands { netns: Some(netns), path: self.path.clone() }
    }

    /// Has `nft` carry out a script, as one transaction.
    pub(super) async fn nft(&self, script: &str) -> Result<Done, CommandError> {
        self.run(NFT, &["-f", "-"], script).await
    }

    /// Runs `program` with `input` and waits for its end. A future that is dropped kills it.
    pub(super) async fn run(
        &self,
        program: Program,
        arguments: &[&str],
        input: &str,
    ) -> Result<Done, CommandError> {
        let child = self.spawn(program, arguments)?;
        let name = program.name;
        match tokio::time::timeout(TIME_LIMIT, finish(child, name, input)).await {
            Ok(done) => done,
            Err(_) => Err(CommandError::Timeout { program: name }),
        }
    }

    fn spawn(&self, program: Program, arguments: &[&str]) -> Result<Child, CommandError> {
        let mut command = Command::new(program.name);
        command
            .args(arguments)
            .env_clear()
            .env("PATH", &self.path)
            .env("LC_ALL", "C")
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .kill_on_drop(true);
        // A process begins in the namespace of the thread that starts it.
        let spawned = match &self.netns {
            None => command.spawn(),
            Some(netns) => {
                let runtime = tokio::runtime::Handle::current();
                netns.run(|| {
                    let _entered = runtime.enter();
                    command.spawn()
                })?
            }
        };
        spawned.map_err(|error| match error.kind() {
            std::io::ErrorKind::NotFound => {
                CommandError::Missing { program: program.name, package: program.package }
            }
            _ => Error::io(format!("start {}", program.name), &error).into(),
        })
    }
}

async fn finish(
    mut child: Child,
    program: &'static str,
    input: &str,
) -> Result<Done, CommandError> {
    let pid = child.id();
    let (stdin, stdout, stderr) = (child.stdin.take(), child.stdout.take(), child.stderr.take());
    let feed = async {
        if let Some(mut stdin) = stdin {
            // A program that ends before it has read all says why itself.
            let _ = stdin.write_all(input.as_bytes()).await;
        }
    };
    // All three at once: a program may write before it has read all.
    let ((), text, complaint) =
        tokio::join!(feed, read(stdout, OUTPUT_BYTES_MAX), read(stderr, COMPLAINT_BYTES_MAX));
    let text = text.ok_or(CommandError::TooLong { program })?;
    let status =
        child.wait().await.map_err(|error| Error::io(format!("wait for {program}"), &error))?;
    if status.success() {
        return Ok(Done { text, pid });
    }
    let complaint = complaint.as_deref().unwrap_or("it has too much to say");
    Err(CommandError::Refused { program, text: shortened(complaint, &status.to_string()) })
}

/// Reads to the end; `None` when there is more than `bytes_max`.
async fn read(stream: Option<impl AsyncRead + Unpin>, bytes_max: u64) -> Option<String> {
    let mut bytes = Vec::new();
    let mut stream = stream?.take(bytes_max + 1);
    // What was read before a failure is all there is.
    let _ = stream.read_to_end(&mut bytes).await;
    (bytes.len() as u64 <= bytes_max).then(|| String::from_utf8_lossy(&bytes).into_owned())
}

/// The lines that name an error, or the first ones; nft repeats whole lines of its input besides.
fn shortened(complaint: &str, status: &str) -> String {
    let lines = || complaint.lines().map(str::trim).filter(|line| !line.is_empty());
    let mut chosen: Vec<&str> =
        lines().filter(|line| line.contains("Error:")).take(LINES_MAX).collect();
    if chosen.is_empty() {
        chosen = lines().take(LINES_MAX).collect();
    }
    if chosen.is_empty() {
        return status.to_owned();
    }
    let cut = |line: &str| line.chars().take(LINE_CHARS_MAX).collect::<String>();
    chosen.into_iter().map(cut).collect::<Vec<_>>().join("; ")
}

/// Writing 5,000 addresses takes 0.1 s; a kernel that waits for RCU takes longer.
/// A node that boots starts all its pods at once, and nft waits for its turn.
const TIME_LIMIT: Duration = Duration::from_secs(60);
/// A table with 5,000 nodes in every set is listed in 1 MiB.
const OUTPUT_BYTES_MAX: u64 = 16 << 20;
/// nft repeats the line in error, and all elements of a set are one line.
const COMPLAINT_BYTES_MAX: u64 = 4 << 20;
const LINES_MAX: usize = 3;
const LINE_CHARS_MAX: usize = 300;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn of_a_complaint_the_errors_are_kept() {
        let complaint = "# Warning: x\n/dev/stdin:2:1-5: Error: No such file\nadd rule inet ...\n";
        assert_eq!(shortened(complaint, "exit status: 1"), "/dev/stdin:2:1-5: Error: No such file");
        assert_eq!(shortened("permission denied\n", "exit status: 1"), "permission denied");
        assert_eq!(shortened("\n", "exit status: 1"), "exit status: 1");
        let long = format!("Error: {}", "x".repeat(10_000));
        assert_eq!(shortened(&long, "").len(), LINE_CHARS_MAX);
    }

    #[tokio::test]
    async fn what_a_program_prints_is_bounded() {
        let yes = Program { name: "yes", package: "coreutils" };
        let error = Commands::new(None).run(yes, &[], "").await.map(|_| ()).unwrap_err();
        assert!(matches!(error, CommandError::TooLong { .. }), "{error}");
    }

    #[tokio::test]
    async fn a_program_that_is_missing_is_named_with_its_package() {
        let mut commands = Commands::new(None);
        commands.path = "/nowhere".into();
        let error = commands.nft("").await.map(|_| ()).unwrap_err();
        assert_eq!(
            error.to_string(),
            "nft is not installed: install the package nftables (Debian's name)"
        );
    }
}
