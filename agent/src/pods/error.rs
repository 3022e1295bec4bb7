//! Why the node's pod network cannot start.

use std::io;
use std::path::PathBuf;

/// A failure at the start; nothing was changed.
#[derive(Debug, thiserror::Error)]
pub enum PodsError {
    /// Another agent holds the lock.
    #[error(
        "another agent{holder} already serves {run_dir}: stop it first, or give this one another \
         --run-dir and network namespace"
    )]
    Locked {
        /// The run directory.
        run_dir: PathBuf,
        /// Its process, as ` (process N)`, if it is known.
        holder: String,
    },
    /// The run directory cannot be used.
    #[error("cannot {action} {path}: {source}")]
    RunDir {
        /// What was attempted.
        action: &'static str,
        /// The file.
        path: PathBuf,
        /// The system's answer.
        source: io::Error,
    },
    /// The kernel's interfaces and routes cannot be read.
    #[error("cannot read the node's pods from the kernel: {0}")]
    Kernel(#[from] cairn_kernel::Error),
}
