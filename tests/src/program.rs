//! `cairn speaker`, the program itself, on our side of a link.

use std::path::PathBuf;
use std::process::{Command, ExitStatus, Stdio};
use std::sync::Arc;

use serde_json::Value;

use crate::daemon::Process;
use crate::link::{self, Far, Link};
use crate::process;

/// A running `cairn speaker -f FILE`. Killed when dropped.
#[derive(Debug)]
pub struct Program {
    process: Process,
    /// Its files are the other side's, with which they go.
    far: Arc<Far>,
}

impl Program {
    /// Starts it with a file of this text.
    ///
    /// # Panics
    /// When it does not start.
    #[must_use]
    pub fn start(link: &Link, text: &str) -> Program {
        Program::start_with(link, text, &[])
    }

    /// The same with further options.
    ///
    /// # Panics
    /// As [`Program::start`].
    #[must_use]
    pub fn start_with(link: &Link, text: &str, options: &[&str]) -> Program {
        let far = link.far();
        let _ = far.directory("cairn");
        far.write(FILE, text);
        Program::run(link, options)
    }

    /// Starts another one with the file and the run directory of the one before.
    ///
    /// # Panics
    /// As [`Program::start`].
    #[must_use]
    pub fn start_again(link: &Link) -> Program {
        Program::run(link, &[])
    }

    fn run(link: &Link, options: &[&str]) -> Program {
        let far = link.far();
        let (output, errors) = far.log(LOG);
        let mut command = Command::new(cairn());
        command.arg("speaker").arg("-f").arg(far.path(FILE)).arg("--run-dir");
        command.arg(far.path(RUN_DIR)).args(options).env_remove("CAIRN_LOG");
        command.stdin(Stdio::null()).stdout(output).stderr(errors);
        process::end_with_thread(&mut command);
        let process = Process(command.spawn().expect("the program starts"));
        let program = Program { process, far };
        link::wait_for("it answers", || program.ask(&["peers"]).is_some(), || program.log());
        program
    }

    /// What `cairn bgp` with these words prints for programs, a value for a line; `None` when it
    /// fails.
    #[must_use]
    pub fn ask(&self, words: &[&str]) -> Option<Vec<Value>> {
        let mut command = Command::new(cairn());
        command.args(["bgp", "-o", "json", "--run-dir"]).arg(self.far.path(RUN_DIR));
        let output = command.args(words).output().expect("the program starts");
        let lines = String::from_utf8(output.stdout).expect("text");
        let values = lines.lines().map(|line| serde_json::from_str(line).expect("JSON"));
        output.status.success().then(|| values.collect())
    }

    /// All about one peer.
    ///
    /// # Panics
    /// When there is none.
    #[must_use]
    pub fn peer(&self, name: &str) -> Value {
        let peers = self.ask(&["peers", name]).expect("the speaker answers");
        peers.into_iter().next().expect("the peer")
    }

    /// Waits until what is known of a peer is as wanted.
    ///
    /// # Panics
    /// When it never is.
    pub fn until_peer(&self, name: &str, what: &str, holds: impl Fn(&Value) -> bool) {
        let why = || format!("{:#}\n{}", self.peer(name), self.log());
        link::wait_for(&format!("{name} {what}"), || holds(&self.peer(name)), why);
    }

    /// Gives it another file and tells it so.
    pub fn reload(&self, text: &str) {
        self.far.write(FILE, text);
        self.process.signal(libc::SIGHUP);
    }

    /// Tells it to end, and waits until it has.
    ///
    /// # Panics
    /// When it does not end.
    pub fn terminate(&mut self) -> ExitStatus {
        self.process.signal(libc::SIGTERM);
        let mut status = None;
        let child = &mut self.process.0;
        let mut ended = || {
            status = child.try_wait().expect("the state of a child");
            status.is_some()
        };
        link::wait_for("it ends", &mut ended, String::new);
        status.expect("a status")
    }

    /// What it has logged.
    #[must_use]
    pub fn log(&self) -> String {
        self.far.read(LOG)
    }
}

/// The program, which `make test` builds before the tests.
fn cairn() -> PathBuf {
    built("cairn")
}

/// A program of this workspace that `make test` builds before the tests.
///
/// # Panics
/// When it was not built.
#[must_use]
pub fn built(name: &str) -> PathBuf {
    let test = std::env::current_exe().expect("the path of the test");
    // target/PROFILE/deps/TEST
    let profile = test.parent().and_then(std::path::Path::parent).expect("a directory of Cargo's");
    let program = profile.join(name);
    assert!(program.exists(), "{} is missing: run `make build`", program.display());
    program
}

const FILE: &str = "/run/cairn.yaml";
const RUN_DIR: &str = "/run/cairn";
const LOG: &str = "/run/cairn.log";
