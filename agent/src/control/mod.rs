//! The socket on which a daemon answers `cairn status` and `cairn bgp`.
//!
//! ```text
//!  client                                   server (one task a connection, CONNECTIONS_MAX of them)
//!    │ {"version":1,"ask":{"routes":{}}} ──►  REQUEST_OCTETS_MAX at most
//!    │ ◄── {"record":{..}}                    as many as there are, a few at a time from the owner
//!    │ ◄── {"record":{..}}
//!    │ ◄── {"done":{"records":2}}             or {"error":{"text":".."}}
//! ```
//!
//! A connection asks once. What is answered is a stream, so that neither side ever holds a table; a
//! client that stops reading holds up its own task only, and is given up after a while. The socket is
//! the daemon's own: mode 0600 in its run directory. A client that says nothing at all gets the report
//! of `cairn status` as one document, which is what clients of the first version expect.

mod client;
pub mod protocol;
pub(crate) mod server;

use std::io;
use std::os::unix::fs::PermissionsExt;
use std::os::unix::net::{self, UnixStream};
use std::path::{Path, PathBuf};

use anyhow::{Context, bail};
use tokio::net::UnixListener;

pub use client::{Records, ask};
pub use server::{Service, serve};

/// The socket's path in a run directory.
pub fn path(run_dir: &Path) -> PathBuf {
    run_dir.join("cairn.sock")
}

/// Binds the socket of an agent or speaker in a run directory: see [`bind_at`].
///
/// # Errors
/// The directory cannot be made or written, or a daemon that lives answers there.
pub fn bind(run_dir: &Path) -> anyhow::Result<UnixListener> {
    let listener = bind_at(&path(run_dir), "another agent or speaker")?;
    let listener = listener.set_nonblocking(true).and_then(|()| UnixListener::from_std(listener));
    listener.context("cannot use the control socket")
}

/// Binds a socket for root alone, in place of one that an earlier process left behind. `who` is who else may
/// have it.
///
/// # Errors
/// The directory cannot be made or written, or a daemon that lives answers there.
pub fn bind_at(path: &Path, who: &str) -> anyhow::Result<net::UnixListener> {
    if UnixStream::connect(path).is_ok() {
        bail!(
            "{who} already answers on {}: stop it first, or give this one another --run-dir",
            path.display()
        );
    }
    take_place(path).with_context(|| format!("cannot make the control socket {}", path.display()))
}

fn take_place(path: &Path) -> io::Result<net::UnixListener> {
    if let Some(run_dir) = path.parent() {
        std::fs::create_dir_all(run_dir)?;
    }
    let fresh = path.with_extension("new");
    match std::fs::remove_file(&fresh) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
        _ => {}
    }
    let listener = net::UnixListener::bind(&fresh)?;
    std::fs::set_permissions(&fresh, std::fs::Permissions::from_mode(0o600))?;
    std::fs::rename(&fresh, path)?;
    Ok(listener)
}
