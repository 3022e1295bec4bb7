//! A real BIRD 2 in a network namespace of its own, linked to the namespace of the calling thread.
//!
//! The namespaces have no names: the thread's one goes with its last socket, BIRD's with the process
//! that holds it, which the kernel kills when the thread ends. Nothing is left behind, whatever
//! happens to a test.

use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::{Duration, Instant};

/// Two namespaces with a link: `uplink` here (10.0.0.1/24, fd00::1/64), and the same name with .2
/// and ::2 on BIRD's side.
#[derive(Debug)]
pub struct Link {
    holder: Child,
}

/// A running BIRD. Killed when dropped, as by `kill -9`.
#[derive(Debug)]
pub struct Bird {
    process: Child,
    directory: PathBuf,
}

impl Link {
    /// Moves the calling thread into a new network namespace and links it to another one.
    ///
    /// # Panics
    /// Without root, or without the `ip` and `nsenter` commands.
    #[must_use]
    pub fn new() -> Link {
        // SAFETY: unshare takes no memory; it concerns this thread alone.
        let result = unsafe { libc::unshare(libc::CLONE_NEWNET) };
        let error = std::io::Error::last_os_error();
        assert_eq!(result, 0, "network namespaces need root: run the tests as root ({error})");
        let mut command = Command::new("sleep");
        command.arg("infinity");
        // SAFETY: only system calls between fork and exec.
        unsafe {
            command.pre_exec(|| {
                libc::prctl(libc::PR_SET_PDEATHSIG, libc::SIGKILL);
                match libc::unshare(libc::CLONE_NEWNET) {
                    0 => Ok(()),
                    _ => Err(std::io::Error::last_os_error()),
                }
            });
        }
        let holder = command.spawn().expect("the sleep command");
        let link = Link { holder };
        let pid = link.holder.id();
        run("ip", "link set lo up");
        run("ip", &format!("link add uplink type veth peer name uplink netns {pid}"));
        link.inside("ip link set lo up");
        for (number, inside) in [(1, false), (2, true)] {
            for arguments in [
                "link set uplink up".to_owned(),
                format!("addr add 10.0.0.{number}/24 dev uplink"),
                format!("addr add fd00::{number}/64 dev uplink nodad"),
            ] {
                match inside {
                    true => link.inside(&format!("ip {arguments}")),
                    false => run("ip", &arguments),
                }
            }
        }
        link
    }

    /// Runs a command on BIRD's side.
    ///
    /// # Panics
    /// When it fails.
    pub fn inside(&self, command: &str) {
        run("nsenter", &format!("-t {} -n {command}", self.holder.id()));
    }

    /// Starts BIRD with a configuration and waits until it answers.
    ///
    /// # Panics
    /// Without BIRD 2, or when it does not start.
    #[must_use]
    pub fn bird(&self, configuration: &str) -> Bird {
        static DIRECTORIES: AtomicU32 = AtomicU32::new(0);
        let number = DIRECTORIES.fetch_add(1, Ordering::Relaxed);
        let name = format!("cairn-bird-{}-{number}", std::process::id());
        let directory = std::env::temp_dir().join(name);
        std::fs::create_dir_all(&directory).expect("a writable temporary directory");
        self.bird_in(directory, configuration, &[])
    }

    fn bird_in(&self, directory: PathBuf, configuration: &str, more: &[&str]) -> Bird {
        assert!(
            Path::new(BIRD).exists(),
            "{BIRD} is missing, which this test speaks with: apt-get install bird2"
        );
        std::fs::write(directory.join("bird.conf"), configuration).expect("a writable directory");
        let mut command = Command::new("nsenter");
        command
            .args(["-t", &self.holder.id().to_string(), "-n", BIRD, "-f", "-c"])
            .arg(directory.join("bird.conf"))
            .arg("-s")
            .arg(directory.join("bird.ctl"))
            .arg("-P")
            .arg(directory.join("bird.pid"))
            .args(more)
            .stdout(Stdio::null())
            .stderr(std::fs::File::create(directory.join("log")).expect("a writable directory"));
        // SAFETY: only a system call between fork and exec.
        unsafe {
            command.pre_exec(|| {
                libc::prctl(libc::PR_SET_PDEATHSIG, libc::SIGKILL);
                Ok(())
            });
        }
        let process = command.spawn().expect("the nsenter command: apt-get install util-linux");
        let bird = Bird { process, directory };
        let started = Instant::now();
        while bird.ask("show status").is_none() {
            assert!(started.elapsed() < PATIENCE, "BIRD does not start: {}", bird.log());
            std::thread::sleep(Duration::from_millis(20));
        }
        bird
    }

    /// Starts BIRD again after [`Bird::kill`], as one that recovers from a restart (`-R`).
    ///
    /// # Panics
    /// As [`Link::bird`].
    #[must_use]
    pub fn bird_again(&self, killed: Killed, configuration: &str) -> Bird {
        let _ = std::fs::remove_file(killed.directory.join("bird.ctl"));
        self.bird_in(killed.directory, configuration, &["-R"])
    }
}

impl Default for Link {
    fn default() -> Link {
        Link::new()
    }
}

/// Where a killed BIRD lived.
#[derive(Debug)]
pub struct Killed {
    directory: PathBuf,
}

impl Bird {
    /// The answer to a `birdc` command; `None` when BIRD does not answer.
    ///
    /// # Panics
    /// Without the `birdc` command.
    #[must_use]
    pub fn ask(&self, question: &str) -> Option<String> {
        let mut command = Command::new(BIRDC);
        command.arg("-s").arg(self.directory.join("bird.ctl")).args(question.split(' '));
        let output = command.output().expect("birdc: apt-get install bird2");
        output.status.success().then(|| String::from_utf8_lossy(&output.stdout).into_owned())
    }

    /// The answer to `show route`, all attributes, for a prefix.
    #[must_use]
    pub fn route(&self, prefix: &str) -> Option<String> {
        let answer = self.ask(&format!("show route {prefix} all"))?;
        answer.contains(prefix).then_some(answer)
    }

    /// Waits, without stopping the runtime, until `holds` is true.
    ///
    /// # Panics
    /// When it never is.
    pub async fn until(&self, what: &str, mut holds: impl FnMut(&Bird) -> bool) {
        let started = Instant::now();
        while !holds(self) {
            assert!(
                started.elapsed() < PATIENCE,
                "never: {what}\n{}\n{}\n{}",
                self.ask("show protocols all cairn").unwrap_or_default(),
                self.ask("show route all").unwrap_or_default(),
                self.log()
            );
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    }

    /// What BIRD has logged.
    #[must_use]
    pub fn log(&self) -> String {
        std::fs::read_to_string(self.directory.join("log")).unwrap_or_default()
    }

    /// Ends BIRD without giving it a moment.
    ///
    /// # Panics
    /// When the process cannot be killed.
    #[must_use]
    pub fn kill(mut self) -> Killed {
        self.end();
        Killed { directory: std::mem::take(&mut self.directory) }
    }

    fn end(&mut self) {
        // It may have ended on its own.
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}

impl Drop for Bird {
    fn drop(&mut self) {
        self.end();
        if !self.directory.as_os_str().is_empty() {
            let _ = std::fs::remove_dir_all(&self.directory);
        }
    }
}

impl Drop for Link {
    fn drop(&mut self) {
        let _ = self.holder.kill();
        let _ = self.holder.wait();
    }
}

fn run(program: &str, arguments: &str) {
    let output = Command::new(program).args(arguments.split(' ')).output();
    let output = output.unwrap_or_else(|error| panic!("the {program} command is missing: {error}"));
    let text = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{program} {arguments}: {text}");
}

/// From Debian's package bird2.
const BIRD: &str = "/usr/sbin/bird";
/// From Debian's package bird2.
const BIRDC: &str = "/usr/sbin/birdc";
/// Longest wait for something that has to happen.
const PATIENCE: Duration = Duration::from_secs(20);
