//! What the pod network keeps under the run directory: the lock, the socket, and pods' names.

use std::fs::{self, File, OpenOptions};
use std::io::{self, Read, Write};
use std::os::unix::fs::{OpenOptionsExt, PermissionsExt};
use std::path::{Path, PathBuf};

use cairn_cni::PodIdentity;
use rustix::fs::FlockOperation;
use tokio::net::UnixListener;

use super::PodsError;

/// The lock that only one agent of a node holds, for as long as the value lives. The kernel frees it
/// with the process, however that ends.
#[derive(Debug)]
pub struct Lock {
    _file: File,
}

impl Lock {
    /// Takes the lock of `run_dir`, which is made if need be, without waiting.
    ///
    /// # Errors
    /// [`PodsError::Locked`] while an agent runs, and [`PodsError::RunDir`].
    pub fn take(run_dir: &Path) -> Result<Lock, PodsError> {
        fs::create_dir_all(run_dir).map_err(failed("create", run_dir))?;
        let path = run_dir.join(LOCK);
        // Not truncated before the lock is held: the text is the holder's.
        let mut file = OpenOptions::new()
            .read(true)
            .write(true)
            .create(true)
            .truncate(false)
            .mode(0o600)
            .open(&path)
            .map_err(failed("open", &path))?;
        match rustix::fs::flock(&file, FlockOperation::NonBlockingLockExclusive) {
            Ok(()) => {}
            Err(rustix::io::Errno::WOULDBLOCK) => {
                let mut text = String::new();
                let read = (&mut file).take(20).read_to_string(&mut text).is_ok();
                let process = text.trim().parse::<u32>().ok().filter(|_| read);
                let holder = process.map_or(String::new(), |id| format!(" (process {id})"));
                return Err(PodsError::Locked { run_dir: run_dir.into(), holder });
            }
            Err(errno) => return Err(failed("lock", &path)(errno.into())),
        }
        // For the message above; an agent that cannot write it is locked all the same.
        let _ = file.set_len(0).and_then(|()| write!(file, "{}", std::process::id()));
        Ok(Lock { _file: file })
    }
}

/// Binds the socket for CNI requests in place of one that an earlier agent left behind. The name
/// never points at nothing: a plugin meets the old socket or the new one.
pub(super) fn bind(run_dir: &Path) -> Result<UnixListener, PodsError> {
    let path = socket_path(run_dir);
    let fresh = path.with_extension("new");
    match fs::remove_file(&fresh) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => {
            return Err(failed("remove", &fresh)(error));
        }
        _ => {}
    }
    let listener = UnixListener::bind(&fresh).map_err(failed("bind", &fresh))?;
    fs::set_permissions(&fresh, fs::Permissions::from_mode(0o600))
        .map_err(failed("restrict", &fresh))?;
    fs::rename(&fresh, &path).map_err(failed("rename to", &path))?;
    Ok(listener)
}

/// The socket for CNI requests in a run directory.
pub fn socket_path(run_dir: &Path) -> PathBuf {
    run_dir.join("cni.sock")
}

/// The names of pods by host interface, one file each. They are for people and decide nothing: a
/// file that is missing or damaged costs a name in `cairn status`.
#[derive(Clone, Debug)]
pub(super) struct PodNames {
    /// None keeps nothing.
    directory: Option<PathBuf>,
}

impl PodNames {
    /// Names that nobody keeps.
    pub(super) fn unkept() -> PodNames {
        PodNames { directory: None }
    }

    /// Names under `run_dir`, after [`PodNames::create`].
    pub(super) fn in_run_dir(run_dir: &Path) -> PodNames {
        PodNames { directory: Some(run_dir.join("pods")) }
    }

    /// Makes the place where they are kept.
    pub(super) fn create(&self) -> Result<(), PodsError> {
        let Some(directory) = &self.directory else { return Ok(()) };
        fs::create_dir_all(directory).map_err(failed("create", directory))
    }

    pub(super) fn write(&self, host_ifname: &str, pod: &PodIdentity) {
        let Some(path) = self.path(host_ifname) else { return };
        let written = serde_json::to_vec(pod).map_err(io::Error::from);
        if let Err(error) = written.and_then(|text| fs::write(&path, text)) {
            tracing::debug!(path = %path.display(), %error, "a pod's name is not kept");
        }
    }

    pub(super) fn read(&self, host_ifname: &str) -> PodIdentity {
        let text = self.path(host_ifname).and_then(|path| fs::read(path).ok());
        serde_json::from_slice(&text.unwrap_or_default()).unwrap_or_default()
    }

    pub(super) fn remove(&self, host_ifname: &str) {
        if let Some(path) = self.path(host_ifname) {
            let _ = fs::remove_file(path);
        }
    }

    /// Removes every name but those that `keep` wants.
    pub(super) fn retain(&self, keep: impl Fn(&str) -> bool) {
        let entries = self.directory.iter().filter_map(|path| fs::read_dir(path).ok());
        for entry in entries.flatten().flatten() {
            if !entry.file_name().to_str().is_some_and(&keep) {
                let _ = fs::remove_file(entry.path());
            }
        }
    }

    fn path(&self, host_ifname: &str) -> Option<PathBuf> {
        self.directory.as_ref().map(|directory| directory.join(host_ifname))
    }
}

fn failed(action: &'static str, path: &Path) -> impl FnOnce(io::Error) -> PodsError {
    move |source| PodsError::RunDir { action, path: path.into(), source }
}

const LOCK: &str = "lock";
