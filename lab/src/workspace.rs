//! Where a lab keeps its files, and what a killed run of the same name left behind.
//!
//! `/run/cairn-lab/NAME` holds sockets, process ids and generated files and is guarded by a lock:
//! names of namespaces are the machine's, so one name runs once. `.lab` in the current directory
//! (`.lab-NAME` for other names than the default) holds what people want: kubeconfig and logs.

use std::fs::{self, File};
use std::io::{self, Read, Seek, Write};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use cairn_kernel::NetNs;
use rustix::fs::FlockOperation;
use rustix::process::{Pid, Signal};

use crate::datacenter::Layout;
use crate::error::Error;
use crate::options::LabName;

/// The files of one lab. Dropping it removes them.
pub struct Workspace {
    name: LabName,
    run: PathBuf,
    user: PathBuf,
    lock_path: PathBuf,
    lock: File,
    keep_logs: bool,
}

impl Workspace {
    /// Takes the name `name`, removes what a killed run of it left, and makes its directories.
    ///
    /// # Errors
    /// [`Error::AlreadyRunning`] when another process has the name, [`Error::Io`].
    pub fn open(name: &LabName) -> Result<Workspace, Error> {
        let root = Path::new(RUN_DIR);
        fs::create_dir_all(root).map_err(Error::io(format!("create {RUN_DIR}")))?;
        let lock_path = root.join(format!("{name}.lock"));
        let lock = take_lock(&lock_path, name)?;
        let user = if name.is_default() { ".lab".into() } else { format!(".lab-{name}") };
        let user =
            std::env::current_dir().map_err(Error::io("find the current directory"))?.join(user);
        let run = root.join(name.as_str());
        let workspace =
            Workspace { name: name.clone(), run, user, lock_path, lock, keep_logs: false };
        workspace.clear()?;
        for directory in [&workspace.run, &workspace.logs()] {
            fs::create_dir_all(directory)
                .map_err(Error::io(format!("create {}", directory.display())))?;
        }
        Ok(workspace)
    }

    /// The directory of generated files, sockets and process ids.
    pub fn run(&self) -> &Path {
        &self.run
    }

    /// The directory for people.
    pub fn user(&self) -> &Path {
        &self.user
    }

    /// The directory of logs.
    pub fn logs(&self) -> PathBuf {
        self.user.join("logs")
    }

    /// The directory of a machine's agent or speaker.
    ///
    /// # Errors
    /// [`Error::Io`] when it cannot be made.
    pub fn machine(&self, machine: &str) -> Result<PathBuf, Error> {
        let path = self.run.join(machine);
        fs::create_dir_all(&path).map_err(Error::io(format!("create {}", path.display())))?;
        Ok(path)
    }

    /// Writes a generated file and returns its path.
    ///
    /// # Errors
    /// [`Error::Io`].
    pub fn write(&self, path: PathBuf, text: &str) -> Result<PathBuf, Error> {
        fs::write(&path, text).map_err(Error::io(format!("write {}", path.display())))?;
        Ok(path)
    }

    /// Remembers a process of the lab, so that the next run can end it if this one cannot.
    ///
    /// # Errors
    /// [`Error::Io`].
    pub fn remember(&self, pid: u32) -> Result<(), Error> {
        let path = self.run.join(PIDS);
        let Some(started) = start_time(pid) else { return Ok(()) };
        fs::OpenOptions::new()
            .create(true)
            .append(true)
            .open(&path)
            .and_then(|mut file| writeln!(file, "{pid} {started}"))
            .map_err(Error::io(format!("write {}", path.display())))
    }

    /// Whether any process has logged.
    pub fn has_logs(&self) -> bool {
        fs::read_dir(self.logs()).is_ok_and(|mut logs| logs.next().is_some())
    }

    /// Leaves the logs in place at the end: a row failed and somebody will ask why.
    pub fn keep_logs(&mut self) {
        self.keep_logs = true;
    }

    /// Removes processes, namespaces and files that carry the lab's name.
    fn clear(&self) -> Result<(), Error> {
        let pids = fs::read_to_string(self.run.join(PIDS)).unwrap_or_default();
        for (pid, started) in pids.lines().filter_map(parse_pid) {
            // A number may be another process's by now; its start time tells.
            if start_time(pid) == Some(started)
                && let Some(pid) = i32::try_from(pid).ok().and_then(Pid::from_raw)
            {
                let _ = rustix::process::kill_process(pid, Signal::KILL);
            }
        }
        let prefix = Layout::prefix_of(self.name.as_str());
        let names = NetNs::names(&prefix).map_err(Error::kernel("a list of namespaces"))?;
        for name in names {
            NetNs::delete(&name).map_err(Error::kernel(format!("the end of {name}")))?;
        }
        for directory in [&self.run, &self.user] {
            remove(directory)?;
        }
        Ok(())
    }

    fn close(&self) -> Result<(), Error> {
        remove(&self.run)?;
        if self.keep_logs {
            let kubeconfig = self.user.join(KUBECONFIG);
            return match fs::remove_file(&kubeconfig) {
                Err(error) if error.kind() != io::ErrorKind::NotFound => {
                    Err(Error::io(format!("remove {}", kubeconfig.display()))(error))
                }
                _ => Ok(()),
            };
        }
        remove(&self.user)
    }
}

impl Drop for Workspace {
    fn drop(&mut self) {
        if let Err(error) = self.close() {
            tracing::warn!(%error, "a file of the lab stays behind");
        }
        // Before the lock is given up, while nobody else can have taken this file.
        let _ = fs::remove_file(&self.lock_path);
        let _ = rustix::fs::flock(&self.lock, FlockOperation::Unlock);
        let _ = fs::remove_dir(RUN_DIR);
    }
}

fn take_lock(path: &Path, name: &LabName) -> Result<File, Error> {
    let failed = || format!("lock {}", path.display());
    loop {
        let mut file = fs::OpenOptions::new()
            .read(true)
            .write(true)
            .create(true)
            .truncate(false)
            .open(path)
            .map_err(Error::io(failed()))?;
        match rustix::fs::flock(&file, FlockOperation::NonBlockingLockExclusive) {
            Ok(()) => {}
            Err(rustix::io::Errno::WOULDBLOCK) => {
                let mut pid = String::new();
                let _ = file.read_to_string(&mut pid);
                let pid = if pid.is_empty() { "unknown".into() } else { pid };
                return Err(Error::AlreadyRunning { name: name.to_string(), pid });
            }
            Err(errno) => return Err(Error::io(failed())(errno.into())),
        }
        // The run before may have removed the file between its opening and its locking.
        let same = fs::metadata(path)
            .and_then(|named| Ok(named.ino() == file.metadata()?.ino()))
            .unwrap_or(false);
        if same {
            file.set_len(0)
                .and_then(|()| file.rewind())
                .and_then(|()| write!(file, "{}", std::process::id()))
                .map_err(Error::io(failed()))?;
            return Ok(file);
        }
    }
}

fn remove(directory: &Path) -> Result<(), Error> {
    match fs::remove_dir_all(directory) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => {
            Err(Error::io(format!("remove {}", directory.display()))(error))
        }
        _ => Ok(()),
    }
}

fn parse_pid(line: &str) -> Option<(u32, u64)> {
    let (pid, started) = line.split_once(' ')?;
    Some((pid.parse().ok()?, started.parse().ok()?))
}

/// When a process started, in clock ticks since boot: field 22 of its stat file.
fn start_time(pid: u32) -> Option<u64> {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    // The second field is the program's name in parentheses and may itself hold spaces.
    let (_, fields) = stat.rsplit_once(") ")?;
    fields.split(' ').nth(START_TIME_FIELD)?.parse().ok()
}

/// The name of the file that kubectl reads.
pub const KUBECONFIG: &str = "kubeconfig";
const RUN_DIR: &str = "/run/cairn-lab";
const PIDS: &str = "pids";
/// Counted from the third field of `/proc/PID/stat`.
const START_TIME_FIELD: usize = 19;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_start_time_tells_processes_apart() {
        let own = start_time(std::process::id());
        assert!(own.is_some_and(|ticks| ticks > 0));
        assert_eq!(start_time(u32::MAX), None);
        assert_eq!(parse_pid("12 345"), Some((12, 345)));
        assert_eq!(parse_pid("12"), None);
    }
}
