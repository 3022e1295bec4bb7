//! The socket on which a daemon answers `cairn status`.
//!
//! A connection gets one JSON document and is closed. The socket is the daemon's own: mode 0600 in
//! its run directory.

use std::io::{self, Read};
use std::os::unix::fs::PermissionsExt;
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context, bail};
use tokio::io::AsyncWriteExt;
use tokio::net::UnixListener;

use crate::report::Report;

/// The socket's path in a run directory.
pub fn path(run_dir: &Path) -> PathBuf {
    run_dir.join("cairn.sock")
}

/// Binds the socket, in place of one that an earlier process left behind.
///
/// # Errors
/// The directory cannot be made or written, or a daemon that lives answers there.
pub fn bind(run_dir: &Path) -> anyhow::Result<UnixListener> {
    let path = path(run_dir);
    if UnixStream::connect(&path).is_ok() {
        bail!(
            "another agent or speaker already answers on {}: stop it first, or give this one \
             another --run-dir",
            path.display()
        );
    }
    take_place(run_dir, &path)
        .with_context(|| format!("cannot make the control socket {}", path.display()))
}

fn take_place(run_dir: &Path, path: &Path) -> io::Result<UnixListener> {
    std::fs::create_dir_all(run_dir)?;
    let fresh = path.with_extension("new");
    match std::fs::remove_file(&fresh) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
        _ => {}
    }
    let listener = UnixListener::bind(&fresh)?;
    std::fs::set_permissions(&fresh, std::fs::Permissions::from_mode(0o600))?;
    std::fs::rename(&fresh, path)?;
    Ok(listener)
}

/// Answers every connection with what `report` returns.
pub async fn serve(listener: UnixListener, report: impl AsyncFn() -> Report) {
    loop {
        let Ok((mut stream, _)) = listener.accept().await else {
            tokio::time::sleep(ACCEPT_RETRY).await;
            continue;
        };
        let Ok(document) = serde_json::to_vec(&report().await) else {
            continue;
        };
        // A reader that stalls is given up; the next one is served after it.
        let _ = tokio::time::timeout(ANSWER_MAX, stream.write_all(&document)).await;
    }
}

/// Asks the daemon of `run_dir` for its report.
///
/// # Errors
/// No daemon answers there.
pub fn ask(run_dir: &Path) -> anyhow::Result<Report> {
    let path = path(run_dir);
    let mut stream = UnixStream::connect(&path).with_context(|| {
        format!(
            "no agent or speaker answers on {}: is it running, and is --run-dir the same?",
            path.display()
        )
    })?;
    stream.set_read_timeout(Some(ANSWER_MAX))?;
    let mut document = Vec::new();
    stream.read_to_end(&mut document).context("the daemon did not answer in time")?;
    if document.is_empty() {
        bail!("the daemon closed the connection without an answer: see its log");
    }
    serde_json::from_slice(&document).context("the daemon's answer is not of this version of cairn")
}

const ANSWER_MAX: Duration = Duration::from_secs(5);
const ACCEPT_RETRY: Duration = Duration::from_millis(100);
