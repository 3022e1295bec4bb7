//! Processes inside the lab's namespaces.

use std::fs::{self, File};
use std::os::fd::{AsFd, AsRawFd};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};

use cairn_kernel::NetNs;
use rustix::process::Signal;
use rustix::thread::LinkNameSpaceType;

use crate::error::Error;

/// A process in a namespace, with its log. Dropping it kills it.
///
/// It dies with the thread that started it, also when that one is killed; so processes are started
/// from the thread that lives as long as the lab.
pub struct Process {
    name: String,
    child: Child,
    log: PathBuf,
}

impl Process {
    /// Starts `command` in `netns` as the process `name`, with its output appended to `log`.
    ///
    /// # Errors
    /// [`Error::Io`] when the program or the log cannot be opened.
    pub fn start(
        name: &str,
        mut command: Command,
        netns: &NetNs,
        log: &Path,
    ) -> Result<Process, Error> {
        let output = open_log(log)?;
        let errors = output.try_clone().map_err(Error::io("copy a descriptor"))?;
        let netns = netns.as_fd().as_raw_fd();
        command.stdin(Stdio::null()).stdout(output).stderr(errors);
        // A group of its own: Ctrl-C at the terminal is the lab's alone.
        command.process_group(0);
        let parent = rustix::process::getpid();
        // SAFETY: between fork and exec only system calls are made, no memory is allocated and no
        // lock is taken; the descriptor stays open until `spawn` returns.
        unsafe {
            command.pre_exec(move || {
                let netns = std::os::fd::BorrowedFd::borrow_raw(netns);
                rustix::thread::move_into_link_name_space(netns, Some(LinkNameSpaceType::Network))?;
                rustix::process::set_parent_process_death_signal(Some(Signal::KILL))?;
                // The parent may have died before the line above.
                if rustix::process::getppid() != Some(parent) {
                    return Err(rustix::io::Errno::SRCH.into());
                }
                let mut none = std::mem::zeroed();
                libc::sigemptyset(&raw mut none);
                libc::pthread_sigmask(libc::SIG_SETMASK, &raw const none, std::ptr::null_mut());
                Ok(())
            });
        }
        let program = command.get_program().to_string_lossy().into_owned();
        let child = command.spawn().map_err(Error::io(format!("start {program} for {name}")))?;
        Ok(Process { name: name.into(), child, log: log.into() })
    }

    /// The process id.
    pub fn id(&self) -> u32 {
        self.child.id()
    }

    /// # Errors
    /// [`Error::ProcessEnded`] with the end of its log when the process is no longer there.
    pub fn check(&mut self) -> Result<(), Error> {
        match self.child.try_wait() {
            Ok(None) => Ok(()),
            ended => Err(Error::ProcessEnded {
                process: self.name.clone(),
                status: ended.ok().flatten().map_or("unknown".into(), |status| status.to_string()),
                log: self.log.display().to_string(),
                tail: tail(&self.log),
            }),
        }
    }

    /// Makes it stand still, or lets it go on.
    pub fn freeze(&self, still: bool) {
        let signal = if still { Signal::STOP } else { Signal::CONT };
        let id = i32::try_from(self.id()).ok().and_then(rustix::process::Pid::from_raw);
        // It fails only for a process that has ended.
        let _ = id.map(|id| rustix::process::kill_process(id, signal));
    }

    /// Kills the process as a crash would, and waits for its end.
    pub fn kill(&mut self) {
        // Both fail only for a process that has ended.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        self.kill();
    }
}

fn open_log(path: &Path) -> Result<File, Error> {
    fs::OpenOptions::new()
        .create(true)
        .append(true)
        .open(path)
        .map_err(Error::io(format!("open {}", path.display())))
}

/// The last lines of a log.
fn tail(path: &Path) -> String {
    let text = fs::read(path).unwrap_or_default();
    let text = String::from_utf8_lossy(&text);
    let lines: Vec<&str> = text.lines().collect();
    let from = lines.len().saturating_sub(TAIL_LINES);
    lines.get(from..).unwrap_or_default().join("\n")
}

const TAIL_LINES: usize = 8;
