//! Another program while it runs.

use std::os::unix::process::CommandExt;
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use crate::Result;

/// A running daemon with the processes that it starts itself; killed when dropped, and the first of them by the kernel
/// when the thread that started it ends.
#[derive(Debug)]
pub struct Process {
    child: Child,
    directory: PathBuf,
}

impl Process {
    /// Starts `command`. `directory`, which exists, takes its log and goes with it.
    ///
    /// # Errors
    /// It cannot be started.
    pub fn spawn(mut command: Command, directory: PathBuf) -> Result<Process> {
        let log = std::fs::File::create(directory.join("log"))?;
        command.stdin(Stdio::null()).stdout(log.try_clone()?).stderr(log);
        // By which all of its processes are killed.
        command.process_group(0);
        // SAFETY: one system call between fork and exec, which allocates nothing.
        unsafe {
            command.pre_exec(|| {
                libc::prctl(libc::PR_SET_PDEATHSIG, libc::SIGKILL);
                Ok(())
            });
        }
        Ok(Process { child: command.spawn()?, directory })
    }

    /// CPU time of all its processes and threads, in user and kernel mode.
    ///
    /// # Errors
    /// It has ended.
    pub fn cpu(&self) -> Result<Duration> {
        let mut sum = Duration::ZERO;
        for pid in self.processes() {
            sum += cpu_of(pid).ok_or_else(|| self.ended())?;
        }
        Ok(sum)
    }

    /// Resident memory and its greatest size so far, in octets, each the sum over its processes. What these share counts
    /// more than once.
    ///
    /// # Errors
    /// It has ended.
    pub fn memory(&self) -> Result<(u64, u64)> {
        let mut sum = (0, 0);
        for pid in self.processes() {
            let status = std::fs::read_to_string(format!("/proc/{pid}/status"))?;
            let field = |name: &str| {
                let line = status.lines().find_map(|line| line.strip_prefix(name))?;
                line.split_whitespace().next()?.parse::<u64>().ok().map(|kib| kib * 1024)
            };
            let (now, peak) = field("VmRSS:").zip(field("VmHWM:")).ok_or_else(|| self.ended())?;
            sum = (sum.0 + now, sum.1 + peak);
        }
        Ok(sum)
    }

    /// The process that was started, and those that it has started.
    fn processes(&self) -> Vec<u32> {
        let first = self.child.id();
        let threads = std::fs::read_dir(format!("/proc/{first}/task")).into_iter().flatten();
        let children = threads
            .flatten()
            .filter_map(|thread| std::fs::read_to_string(thread.path().join("children")).ok());
        let children: Vec<String> = children.collect();
        let children = children.iter().flat_map(|pids| pids.split_whitespace());
        std::iter::once(first).chain(children.filter_map(|pid| pid.parse().ok())).collect()
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
        // SAFETY: it sends a signal and concerns no memory of ours. The group is that of a child that has not been waited
        // for, so that its number is nobody else's.
        // Each may have ended on its own.
        unsafe { libc::kill(-(self.child.id() as libc::pid_t), libc::SIGKILL) };
        let _ = self.child.wait();
        let _ = std::fs::remove_dir_all(&self.directory);
    }
}

/// CPU time of all threads of a process that runs.
fn cpu_of(pid: u32) -> Option<Duration> {
    let mut clock = 0;
    let mut time = libc::timespec { tv_sec: 0, tv_nsec: 0 };
    // SAFETY: both calls write to the variable that they are given and to nothing else.
    let failed = unsafe {
        libc::clock_getcpuclockid(pid as libc::pid_t, &mut clock) != 0
            || libc::clock_gettime(clock, &mut time) != 0
    };
    (!failed).then(|| Duration::new(time.tv_sec.unsigned_abs(), time.tv_nsec as u32))
}
