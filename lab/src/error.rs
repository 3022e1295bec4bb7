//! What can go wrong while the lab is built, broken and taken down.

use std::io;
use std::path::PathBuf;

/// A failure that ends a run of the lab. What only fails one row is said in that row.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The user lacks the rights that namespaces need.
    #[error("cairn lab makes network namespaces and must run as root; try `sudo cairn lab`")]
    NotRoot,
    /// A lab of this name runs now.
    #[error(
        "a lab named {name} is running already (process {pid}); end it, or choose another name with --name"
    )]
    AlreadyRunning {
        /// The lab's name.
        name: String,
        /// The process that runs it, in words when it is not known.
        pid: String,
    },
    /// An AS a rack and tunnels between the racks exclude each other.
    #[error(
        "--encap makes tunnels between racks whose routers know no pods, so the nodes of all racks peer with each other: leave out --asn, or say --asn single"
    )]
    NoMesh,
    /// A signal asked for the end.
    #[error("interrupted")]
    Interrupted,
    /// The CNI plugin is not where it was looked for.
    #[error(
        "the CNI plugin {path} does not exist; build it with `cargo build -p cairn-cni`, or say where it is with --cni-plugin"
    )]
    NoPlugin {
        /// Where it was looked for.
        path: PathBuf,
    },
    /// The kernel refused a part of the data centre.
    #[error("cannot build {what}")]
    Kernel {
        /// The part.
        what: String,
        /// The kernel's answer.
        source: cairn_kernel::Error,
    },
    /// A router cannot count packets.
    #[error("nftables on {machine}: {why}")]
    Nft {
        /// The router.
        machine: String,
        /// What went wrong.
        why: String,
    },
    /// A file, socket or process of the lab failed.
    #[error("cannot {action}")]
    Io {
        /// What was attempted.
        action: String,
        /// The system's answer.
        source: io::Error,
    },
    /// A process of the lab ended by itself.
    #[error("{process} ended ({status}); the end of {log}:\n{tail}")]
    ProcessEnded {
        /// Whose process it was.
        process: String,
        /// How it ended.
        status: String,
        /// Its log.
        log: String,
        /// The last lines of the log.
        tail: String,
    },
    /// The CNI plugin refused a request.
    #[error("CNI {command} for pod {pod}: {message}")]
    Cni {
        /// The CNI command, such as ADD.
        command: &'static str,
        /// The pod.
        pod: String,
        /// The plugin's own words.
        message: String,
    },
    /// The embedded API refused an object or a request of the lab.
    #[error("the lab's API server: {0}")]
    Api(String),
}

impl Error {
    pub(crate) fn io(action: impl Into<String>) -> impl FnOnce(io::Error) -> Error {
        let action = action.into();
        move |source| Error::Io { action, source }
    }

    pub(crate) fn kernel(what: impl Into<String>) -> impl FnOnce(cairn_kernel::Error) -> Error {
        let what = what.into();
        move |source| Error::Kernel { what, source }
    }
}
