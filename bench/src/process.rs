//! Another program while it runs.

use std::os::unix::process::CommandExt;
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use crate::Result;

/// A running daemon; killed when dropped, and by the kernel when the thread that started it ends.
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
        // SAFETY: one system call between fork and exec, which allocates nothing.
        unsafe {
            command.pre_exec(|| {
                libc::prctl(libc::PR_SET_PDEATHSIG, libc::SIGKILL);
                Ok(())
            });
        }
        Ok(Process { child: command.spawn()?, directory })
    }

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
