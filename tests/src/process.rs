//! Processes and files that end with the test that made them, whatever becomes of it.

use std::fs::File;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};

/// A directory that goes when it is dropped, and also when this process is killed.
#[derive(Debug)]
pub struct Scratch {
    path: PathBuf,
    _janitor: Janitor,
}

impl Scratch {
    /// A new one with this in its name.
    ///
    /// # Panics
    /// When it cannot be made.
    #[must_use]
    pub fn new(name: &str) -> Scratch {
        let made = Command::new("mktemp").args(["-d", "-t", &format!("{name}.XXXXXX")]).output();
        let made = String::from_utf8(made.expect("mktemp starts").stdout).expect("a path");
        let path = PathBuf::from(made.trim());
        assert!(path.is_dir(), "no temporary directory");
        let janitor = Janitor::new("rm -rf -- \"$1\"", &path);
        Scratch { path, _janitor: janitor }
    }

    /// Where it is.
    #[must_use]
    pub fn path(&self) -> &Path {
        &self.path
    }
}

/// A shell script that runs when this is dropped, and also when this process is killed.
#[derive(Debug)]
pub struct Janitor {
    /// Begins at the end of its standard input, which is the end of this process.
    shell: Child,
}

impl Janitor {
    /// Runs `script` with the argument `about` in the end. What ends at the same moment may still write: a script that
    /// fails is repeated.
    ///
    /// # Panics
    /// When no shell starts.
    #[must_use]
    pub fn new(script: &str, about: &Path) -> Janitor {
        let script = format!(
            "cat >/dev/null; for _ in 1 2 3 4 5 6 7 8 9 10; do {{ {script}; }} 2>/dev/null && exit; sleep 0.2; done"
        );
        let mut command = Command::new("sh");
        command.args(["-c", &script, "janitor"]).arg(about).stdin(Stdio::piped());
        // What ends the test's own group, as Ctrl-C does, must not end this one.
        command.stdout(Stdio::null()).stderr(Stdio::null()).process_group(0);
        Janitor { shell: command.spawn().expect("sh starts") }
    }
}

impl Drop for Janitor {
    fn drop(&mut self) {
        drop(self.shell.stdin.take());
        // It has done its work then.
        let _ = self.shell.wait();
    }
}

/// Has the kernel kill what the command starts when the thread that starts it ends.
pub fn end_with_thread(command: &mut Command) -> &mut Command {
    // SAFETY: only a system call between fork and exec.
    unsafe {
        command.pre_exec(|| {
            libc::prctl(libc::PR_SET_PDEATHSIG, libc::SIGKILL);
            Ok(())
        })
    }
}

/// A process, killed when dropped and when the thread that started it ends.
#[derive(Debug)]
pub struct Process {
    child: Child,
}

impl Process {
    /// Starts a program that writes what it has to say to `log`.
    ///
    /// # Panics
    /// When it does not start.
    pub fn start(program: &Path, arguments: &[String], log: &Path) -> Process {
        let log = File::options().create(true).append(true).open(log).expect("a log");
        let errors = log.try_clone().expect("a log");
        let mut command = Command::new(program);
        command.args(arguments).stdin(Stdio::null()).stdout(log).stderr(errors).process_group(0);
        end_with_thread(&mut command);
        let child = command.spawn().unwrap_or_else(|e| panic!("{}: {e}", program.display()));
        Process { child }
    }

    /// Its id.
    pub fn id(&self) -> u32 {
        self.child.id()
    }

    /// Whether it has ended by itself.
    pub fn has_ended(&mut self) -> bool {
        !matches!(self.child.try_wait(), Ok(None))
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        // It may have ended on its own.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}
