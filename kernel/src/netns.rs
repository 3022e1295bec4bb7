//! Network namespaces, named as `ip netns` names them.
//!
//! A [`NetNs`] is an open descriptor: it stays valid when the name is removed. No function here
//! changes the namespace of the calling thread; work in another namespace happens on a thread of its
//! own.

use std::fs;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::path::{Path, PathBuf};

use rustix::fs::{FlockOperation, Mode, OFlags};
use rustix::io::Errno;
use rustix::mount::{MountPropagationFlags, UnmountFlags};
use rustix::thread::{LinkNameSpaceType, UnshareFlags};

use crate::error::Error;
use crate::link;
use crate::socket::Netlink;

/// The directory in which `ip netns` and container runtimes keep named namespaces.
pub const NETNS_DIR: &str = "/run/netns";

/// An open network namespace.
#[derive(Debug)]
pub struct NetNs {
    fd: OwnedFd,
}

impl NetNs {
    /// Makes a namespace, gives it a name under [`NETNS_DIR`] that `ip netns` sees, and sets its
    /// loopback interface up.
    ///
    /// # Errors
    /// [`Error::System`] with EEXIST when the name is taken, with EPERM without the right to mount.
    pub fn create(name: &str) -> Result<NetNs, Error> {
        let path = named_path(name)?;
        fs::create_dir_all(NETNS_DIR)
            .map_err(|error| Error::io(format!("create {NETNS_DIR}"), &error))?;
        let directory = open_file(Path::new(NETNS_DIR), OFlags::DIRECTORY)?;
        // Two processes that both find the directory unshared would mount it twice.
        rustix::fs::flock(&directory, FlockOperation::LockExclusive)
            .map_err(|errno| Error::system(format!("lock {NETNS_DIR}"), errno))?;
        share_directory()?;
        fs::OpenOptions::new()
            .write(true)
            .create_new(true)
            .open(&path)
            .map_err(|error| Error::io(format!("create {}", path.display()), &error))?;
        let made = on_thread(|| make_at(&path)).and_then(|done| done).and_then(|()| {
            let netns = NetNs::open_path(&path)?;
            let mut netlink = Netlink::open_in(&netns)?;
            link::set_up(&mut netlink, LOOPBACK_INDEX)?;
            Ok(netns)
        });
        if made.is_err() {
            // The name must not stay behind as a file that is no namespace; the first error counts.
            let _ = NetNs::delete(name);
        }
        made
    }

    /// Makes a namespace without a name, which ends with the value and whatever else is in it.
    ///
    /// # Errors
    /// [`Error::System`] with EPERM without the right to make one.
    pub(crate) fn scratch() -> Result<NetNs, Error> {
        in_scratch(NetNs::current)?
    }

    /// Opens the namespace `name` of [`NETNS_DIR`].
    ///
    /// # Errors
    /// [`Error::System`] when there is none, [`Error::NotNetNs`] when the file is something else.
    pub fn open(name: &str) -> Result<NetNs, Error> {
        NetNs::open_path(&named_path(name)?)
    }

    /// Opens the namespace bound at `path`, for example `/proc/1/ns/net`.
    ///
    /// # Errors
    /// As [`NetNs::open`].
    pub fn open_path(path: &Path) -> Result<NetNs, Error> {
        let fd = open_file(path, OFlags::empty())?;
        check_kind(&fd, || path.display().to_string())?;
        Ok(NetNs { fd })
    }

    /// Takes a descriptor that another process passed, after a check that it is a network namespace.
    ///
    /// # Errors
    /// [`Error::NotNetNs`] for any other descriptor.
    pub fn from_fd(fd: OwnedFd) -> Result<NetNs, Error> {
        check_kind(&fd, || "the passed descriptor".into())?;
        Ok(NetNs { fd })
    }

    /// The namespace of the calling thread.
    ///
    /// # Errors
    /// [`Error::System`] when /proc is not mounted.
    pub fn current() -> Result<NetNs, Error> {
        NetNs::open_path(Path::new(THREAD_NETNS))
    }

    /// Removes the name `name`; the namespace itself goes with its last process and descriptor. A
    /// name that does not exist is fine.
    ///
    /// # Errors
    /// [`Error::System`] when the name cannot be removed.
    pub fn delete(name: &str) -> Result<(), Error> {
        let path = named_path(name)?;
        match rustix::mount::unmount(&path, UnmountFlags::DETACH) {
            // EINVAL: a file left by a crash between its creation and the mount.
            Ok(()) | Err(Errno::NOENT | Errno::INVAL) => {}
            Err(errno) => return Err(Error::system(format!("unmount {}", path.display()), errno)),
        }
        match fs::remove_file(&path) {
            Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
                Err(Error::io(format!("remove {}", path.display()), &error))
            }
            _ => Ok(()),
        }
    }

    /// The names under [`NETNS_DIR`] that begin with `prefix`, sorted.
    ///
    /// # Errors
    /// [`Error::System`] when the directory cannot be read; one that does not exist has no names.
    pub fn names(prefix: &str) -> Result<Vec<String>, Error> {
        let listing = |error: &std::io::Error| Error::io(format!("list {NETNS_DIR}"), error);
        let entries = match fs::read_dir(NETNS_DIR) {
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(Vec::new()),
            entries => entries.map_err(|error| listing(&error))?,
        };
        let mut names = Vec::new();
        for entry in entries {
            let name = entry.map_err(|error| listing(&error))?.file_name();
            names.extend(name.into_string().ok().filter(|name| name.starts_with(prefix)));
        }
        names.sort_unstable();
        Ok(names)
    }

    /// Runs `work` inside this namespace on a thread of its own and waits for it. The calling
    /// thread's namespace never changes; a panic of `work` goes on in the caller.
    ///
    /// # Errors
    /// [`Error::System`] when no thread can be started or it may not enter the namespace.
    pub fn run<T: Send>(&self, work: impl FnOnce() -> T + Send) -> Result<T, Error> {
        on_thread(|| {
            rustix::thread::move_into_link_name_space(
                self.fd.as_fd(),
                Some(LinkNameSpaceType::Network),
            )
            .map_err(|errno| Error::system("enter a network namespace", errno))?;
            Ok(work())
        })?
    }

    /// What identifies a namespace while it exists: the device and inode number of its file.
    ///
    /// # Errors
    /// [`Error::System`] when the descriptor cannot be examined.
    pub fn identity(&self) -> Result<(u64, u64), Error> {
        let stat = rustix::fs::fstat(&self.fd)
            .map_err(|errno| Error::system("examine a network namespace", errno))?;
        Ok((stat.st_dev, stat.st_ino))
    }
}

impl AsFd for NetNs {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.fd.as_fd()
    }
}

fn named_path(name: &str) -> Result<PathBuf, Error> {
    let plain = !name.is_empty() && name.len() <= 255 && !matches!(name, "." | "..");
    if !plain || name.contains(['/', '\0']) {
        return Err(Error::InvalidName(name.into()));
    }
    Ok(Path::new(NETNS_DIR).join(name))
}

fn open_file(path: &Path, flags: OFlags) -> Result<OwnedFd, Error> {
    rustix::fs::open(path, OFlags::RDONLY | OFlags::CLOEXEC | flags, Mode::empty())
        .map_err(|errno| Error::system(format!("open {}", path.display()), errno))
}

/// Makes the directory a shared mount, so that names made or removed in any mount namespace that
/// shares it are seen in all.
fn share_directory() -> Result<(), Error> {
    let shared = MountPropagationFlags::SHARED | MountPropagationFlags::REC;
    let cannot = |errno| Error::system(format!("share the mount {NETNS_DIR}"), errno);
    match rustix::mount::mount_change(NETNS_DIR, shared) {
        // EINVAL: not yet a mount point of its own.
        Err(Errno::INVAL) => {
            rustix::mount::mount_bind_recursive(NETNS_DIR, NETNS_DIR).map_err(cannot)?;
            rustix::mount::mount_change(NETNS_DIR, shared).map_err(cannot)
        }
        done => done.map_err(cannot),
    }
}

/// Makes a namespace on the calling thread, which must end afterwards, and binds it to `path`.
fn make_at(path: &Path) -> Result<(), Error> {
    unshare()?;
    rustix::mount::mount_bind(THREAD_NETNS, path)
        .map_err(|errno| Error::system(format!("bind {}", path.display()), errno))
}

/// Runs `work` in a new namespace without a name, which ends with it.
pub(crate) fn in_scratch<T: Send>(work: impl FnOnce() -> T + Send) -> Result<T, Error> {
    on_thread(|| unshare().map(|()| work()))?
}

/// Moves the calling thread into a new namespace.
fn unshare() -> Result<(), Error> {
    // SAFETY: only `UnshareFlags::FILES` can invalidate descriptors of other threads.
    unsafe { rustix::thread::unshare_unsafe(UnshareFlags::NEWNET) }
        .map_err(|errno| Error::system("make a network namespace", errno))
}

fn on_thread<T: Send>(work: impl FnOnce() -> T + Send) -> Result<T, Error> {
    std::thread::scope(|scope| {
        let thread = std::thread::Builder::new()
            .name("netns".into())
            .spawn_scoped(scope, work)
            .map_err(|error| Error::io("start a thread", &error))?;
        thread.join().or_else(|panic| std::panic::resume_unwind(panic))
    })
}

fn check_kind(fd: &OwnedFd, what: impl Fn() -> String) -> Result<(), Error> {
    let stat = rustix::fs::fstatfs(fd)
        .map_err(|errno| Error::system(format!("examine {}", what()), errno))?;
    // The ioctl's number means other things on other files, hence the file system first.
    if stat.f_type as i64 != NSFS_MAGIC {
        return Err(Error::NotNetNs(what()));
    }
    // SAFETY: NS_GET_NSTYPE takes no argument and writes nothing; the descriptor is open and on nsfs.
    let kind = unsafe { libc::ioctl(fd.as_raw_fd(), NS_GET_NSTYPE) };
    if kind != libc::CLONE_NEWNET {
        return Err(Error::NotNetNs(what()));
    }
    Ok(())
}

const THREAD_NETNS: &str = "/proc/thread-self/ns/net";
const NSFS_MAGIC: i64 = 0x6e73_6673;
const NS_GET_NSTYPE: libc::Ioctl = 0xb703;
/// The loopback interface is the first one of every namespace.
const LOOPBACK_INDEX: u32 = 1;
