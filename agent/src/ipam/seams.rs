//! What the node's IPAM asks of its surroundings besides the API server: the time, a place that
//! outlives the process, and what peers announce. The simulator puts its own behind each.

use std::fmt;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use futures::future::BoxFuture;
use ipnet::IpNet;
use serde::de::DeserializeOwned;

/// A clock that counts the time since the machine's boot, also while it sleeps.
#[derive(Clone)]
pub struct Clock(Arc<dyn Fn() -> Duration + Send + Sync>);

impl Clock {
    /// The kernel's CLOCK_BOOTTIME.
    pub fn boottime() -> Clock {
        Clock(Arc::new(since_boot))
    }

    /// A clock that reads `now`.
    pub fn new(now: impl Fn() -> Duration + Send + Sync + 'static) -> Clock {
        Clock(Arc::new(now))
    }

    /// Time since boot.
    pub fn now(&self) -> Duration {
        (self.0)()
    }
}

impl fmt::Debug for Clock {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("Clock").field(&self.now()).finish()
    }
}

fn since_boot() -> Duration {
    let now = rustix::time::clock_gettime(rustix::time::ClockId::Boottime);
    let secs = u64::try_from(now.tv_sec).unwrap_or_default();
    Duration::new(secs, u32::try_from(now.tv_nsec).unwrap_or_default())
}

/// Keeps documents over a restart of the process. A write that has returned is there after a crash;
/// a document is the old or the new one, never a mixture.
pub trait Storage: fmt::Debug + Send + Sync {
    /// The document, if there is one.
    ///
    /// # Errors
    /// It is there and cannot be read.
    fn read(&self, name: &str) -> io::Result<Option<Vec<u8>>>;

    /// Replaces the document, and returns when it is safe.
    ///
    /// # Errors
    /// The old one may be what stays.
    fn write(&self, name: &str, document: &[u8]) -> io::Result<()>;
}

/// The document `name` as JSON; `None` when it is not there, cannot be read, which is told, or is none.
pub fn read_document<T: DeserializeOwned>(storage: &dyn Storage, name: &str) -> Option<T> {
    let document = storage.read(name).unwrap_or_else(|error| {
        tracing::warn!(%error, "{name} in the run directory cannot be read and does not count");
        None
    });
    serde_json::from_slice(&document?).ok()
}

/// Documents as files of one directory, each put in place by a rename after fsync.
#[derive(Clone, Debug)]
pub struct Directory {
    path: PathBuf,
}

impl Directory {
    /// Documents in `path`, which exists.
    pub fn new(path: &Path) -> Directory {
        Directory { path: path.to_owned() }
    }
}

impl Storage for Directory {
    fn read(&self, name: &str) -> io::Result<Option<Vec<u8>>> {
        match std::fs::read(self.path.join(name)) {
            Ok(document) => Ok(Some(document)),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
            Err(error) => Err(error),
        }
    }

    fn write(&self, name: &str, document: &[u8]) -> io::Result<()> {
        use std::io::Write;
        use std::os::unix::fs::OpenOptionsExt;
        let path = self.path.join(name);
        let fresh = self.path.join(format!("{name}.new"));
        let mut options = std::fs::OpenOptions::new();
        let mut file = options.write(true).create(true).truncate(true).mode(0o600).open(&fresh)?;
        file.write_all(document)?;
        file.sync_all()?;
        std::fs::rename(&fresh, &path)?;
        std::fs::File::open(&self.path)?.sync_all()
    }
}

/// A route that a peer announces.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Heard {
    /// Its prefix.
    pub prefix: IpNet,
    /// The peer's name.
    pub peer: String,
    /// This node's own AS or cluster is in its path, so that it may be this node's own announcement
    /// on its way back.
    pub looped: bool,
}

/// What peers announce: the second witness beside the API server (IPAM rule 3).
pub trait Witness: Send + Sync {
    /// The routes in every Adj-RIB-In, rejected and stale ones included, to `cidr` or a part of it.
    fn heard(&self, cidr: IpNet) -> BoxFuture<'static, Vec<Heard>>;

    /// Whether every peer has had the time to say what it announces. While sessions come up after a
    /// start, hearing nothing says nothing.
    fn settled(&self) -> BoxFuture<'static, bool> {
        Box::pin(std::future::ready(true))
    }

    /// Why hearing nothing says nothing, as a clause for people: too few peers have been heard for
    /// longer than `lasting`, in which they hear of others themselves. `None` when at least half of
    /// them have, or there are none.
    fn why_deaf(&self, _lasting: Duration) -> BoxFuture<'static, Option<String>> {
        Box::pin(std::future::ready(None))
    }

    /// The same of another machine under this Node's name, with which the nodes have ended their
    /// sessions: its BGPNode is this node's now.
    fn why_deaf_to_namesake(&self, lasting: Duration) -> BoxFuture<'static, Option<String>> {
        self.why_deaf(lasting)
    }
}

/// A witness that has heard nothing: while no speaker runs.
#[derive(Clone, Copy, Debug, Default)]
pub struct NoWitness;

impl Witness for NoWitness {
    fn heard(&self, _cidr: IpNet) -> BoxFuture<'static, Vec<Heard>> {
        Box::pin(std::future::ready(Vec::new()))
    }
}
