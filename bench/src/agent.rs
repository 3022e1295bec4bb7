//! The real agent in a namespace of a measurement.

use std::net::SocketAddr;
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use crate::Result;

/// A directory that goes with the value.
#[derive(Debug)]
pub struct Directory(pub PathBuf);

impl Directory {
    /// One of this process, with a run directory in it.
    ///
    /// # Errors
    /// It cannot be made.
    pub fn new() -> Result<Directory> {
        let path = std::env::temp_dir().join(format!("cairn-bench-{}", std::process::id()));
        std::fs::create_dir_all(path.join("run"))?;
        Ok(Directory(path))
    }
}

impl Drop for Directory {
    fn drop(&mut self) {
        let _ = std::fs::remove_dir_all(&self.0);
    }
}

/// The real agent as a process of its own; it ends with the value.
#[derive(Debug)]
pub struct Agent(Child);

impl Agent {
    /// The `cairn` beside this program, in the caller's network namespace.
    ///
    /// # Errors
    /// It cannot be started.
    pub fn start(directory: &Directory, server: SocketAddr, node: &str) -> Result<Agent> {
        use std::os::unix::process::CommandExt;
        let kubeconfig = directory.0.join("kubeconfig");
        std::fs::write(
            &kubeconfig,
            format!(
                "apiVersion: v1\nkind: Config\ncurrent-context: c\n\
                 clusters: [{{name: c, cluster: {{server: \"http://{server}\"}}}}]\n\
                 contexts: [{{name: c, context: {{cluster: c, user: u}}}}]\n\
                 users: [{{name: u, user: {{}}}}]\n"
            ),
        )?;
        let program = std::env::current_exe()?.with_file_name("cairn");
        let log = std::fs::File::create(directory.0.join("log"))?;
        let mut command = Command::new(&program);
        command.args(["agent", "--node-name", node]);
        command.arg("--kubeconfig").arg(&kubeconfig);
        command.arg("--run-dir").arg(directory.0.join("run"));
        command.stdin(Stdio::null()).stdout(log.try_clone()?).stderr(log);
        // SAFETY: one system call between fork and exec, which allocates nothing.
        unsafe {
            command.pre_exec(|| {
                libc::prctl(libc::PR_SET_PDEATHSIG, libc::SIGKILL);
                Ok(())
            });
        }
        let child = command.spawn().map_err(|error| {
            format!("{}: {error}; build it with cargo build --release", program.display())
        })?;
        Ok(Agent(child))
    }

    /// Resident memory, what of it is the process's own, and the most that it ever was.
    ///
    /// # Errors
    /// It has ended.
    pub fn memory(&self) -> Result<String> {
        let status = std::fs::read_to_string(format!("/proc/{}/status", self.0.id()))?;
        let field = |name: &str| {
            let line = status.lines().find_map(|line| line.strip_prefix(name));
            let kib = line.and_then(|rest| rest.split_whitespace().next()?.parse::<f64>().ok());
            kib.unwrap_or(f64::NAN) * 1024.0 / 1e6
        };
        let (now, own, most) = (field("VmRSS:"), field("RssAnon:"), field("VmHWM:"));
        Ok(format!("{now:.1} MB ({own:.1} MB own, {most:.1} MB at most)"))
    }

    /// CPU time so far, in user and kernel mode.
    ///
    /// # Errors
    /// It has ended.
    pub fn cpu(&self) -> Result<Duration> {
        // Of each thread, in nanoseconds; the kernel's routes have their own one.
        let tasks = std::fs::read_dir(format!("/proc/{}/task", self.0.id()))?;
        let mut nanos = 0u64;
        for task in tasks {
            let text = std::fs::read_to_string(task?.path().join("schedstat"))?;
            nanos += text.split(' ').next().and_then(|n| n.parse::<u64>().ok()).unwrap_or(0);
        }
        Ok(Duration::from_nanos(nanos))
    }
}

impl Drop for Agent {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}
