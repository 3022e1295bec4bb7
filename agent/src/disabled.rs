//! The peers that an operator has disabled, remembered over restarts of the daemon.
//!
//! They are a file in the run directory, written whole and synced before a command is answered. A
//! file that cannot be read disables nobody, which is a problem that is shown until the next write.

use std::collections::BTreeSet;
use std::fs::{self, File};
use std::io::{self, Read, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use cairn_bgp::config::PeerName;
use serde::{Deserialize, Serialize};

/// The disabled peers of one daemon.
#[derive(Debug)]
pub struct DisabledPeers {
    path: PathBuf,
    /// Whose turn it is to change something: file and speaker are changed in the same order.
    turn: tokio::sync::Mutex<()>,
    /// Held while the file is written; who only reads `state` never waits for the disk.
    writing: Mutex<()>,
    state: Mutex<State>,
}

#[derive(Clone, Debug)]
struct State {
    names: BTreeSet<PeerName>,
    problem: Option<String>,
}

/// What stands in the file.
#[derive(Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
struct Document {
    version: u32,
    disabled_peers: BTreeSet<String>,
}

impl DisabledPeers {
    /// Reads what an earlier process left in `run_dir`.
    pub fn open(run_dir: &Path) -> DisabledPeers {
        let path = run_dir.join(FILE);
        let state = match read(&path) {
            Ok(names) => State { names, problem: None },
            Err(reason) => {
                let problem = format!(
                    "the list of disabled peers {} cannot be read ({reason}): no peer is disabled; \
                     disable them again, or remove the file",
                    path.display()
                );
                State { names: BTreeSet::new(), problem: Some(problem) }
            }
        };
        DisabledPeers {
            path,
            turn: tokio::sync::Mutex::default(),
            writing: Mutex::new(()),
            state: Mutex::new(state),
        }
    }

    /// Their names, of configured peers or not.
    pub fn names(&self) -> BTreeSet<PeerName> {
        self.state().names.clone()
    }

    /// What is wrong with the file.
    pub fn problem(&self) -> Option<String> {
        self.state().problem.clone()
    }

    /// Waits until nobody else changes anything; whoever does so keeps the guard until the speaker
    /// has heard of it, too.
    pub async fn turn(&self) -> tokio::sync::MutexGuard<'_, ()> {
        self.turn.lock().await
    }

    /// Remembers whether `peer` is enabled; on the disk when it returns. Not for the thread of the
    /// speaker: a disk may be slow.
    ///
    /// # Errors
    /// The file cannot be written; nothing has changed then.
    pub fn remember(&self, peer: &PeerName, enabled: bool) -> io::Result<()> {
        let _writing = self.writing.lock().unwrap_or_else(PoisonError::into_inner);
        let old = self.state().clone();
        let mut names = old.names.clone();
        match enabled {
            true => names.remove(peer),
            false => names.insert(Arc::clone(peer)),
        };
        if names.len() > DISABLED_MAX {
            return Err(io::Error::other(format!(
                "{DISABLED_MAX} peers are disabled already, also such as are configured no more: \
                 enable some first"
            )));
        }
        if names != old.names || old.problem.is_some() {
            write(&self.path, &names)?;
            *self.state() = State { names, problem: None };
        }
        Ok(())
    }

    fn state(&self) -> MutexGuard<'_, State> {
        // A value is replaced as a whole or not at all.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn read(path: &Path) -> Result<BTreeSet<PeerName>, String> {
    let file = match File::open(path) {
        Ok(file) => file,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(BTreeSet::new()),
        Err(error) => return Err(error.to_string()),
    };
    let mut text = Vec::new();
    file.take(FILE_OCTETS_MAX).read_to_end(&mut text).map_err(|error| error.to_string())?;
    let document: Document = serde_json::from_slice(&text).map_err(|error| error.to_string())?;
    match document.version {
        VERSION => Ok(document.disabled_peers.into_iter().map(PeerName::from).collect()),
        other => Err(format!("version {other}, expected {VERSION}")),
    }
}

/// Writes beside and renames, so that a crash leaves the old file or the new one.
fn write(path: &Path, names: &BTreeSet<PeerName>) -> io::Result<()> {
    let disabled_peers = names.iter().map(ToString::to_string).collect();
    let text = serde_json::to_vec(&Document { version: VERSION, disabled_peers })?;
    let fresh = path.with_extension("new");
    let mut options = fs::OpenOptions::new();
    let mut file = options.write(true).create(true).truncate(true).mode(0o600).open(&fresh)?;
    file.write_all(&text)?;
    file.sync_all()?;
    fs::rename(&fresh, path)?;
    // The name is the directory's.
    File::open(path.parent().unwrap_or(Path::new(".")))?.sync_all()
}

const FILE: &str = "disabled-peers.json";
const VERSION: u32 = 1;
/// Peers in the file.
const DISABLED_MAX: usize = 4096;
/// The most that is read of the file: more than [`DISABLED_MAX`] of the longest names.
const FILE_OCTETS_MAX: u64 = 4 * 1024 * 1024;

#[cfg(test)]
mod tests {
    use super::*;

    fn directory(test: &str) -> PathBuf {
        let path = std::env::temp_dir().join(format!("disabled-{}-{test}", std::process::id()));
        fs::create_dir_all(&path).expect("a directory");
        path
    }

    #[test]
    fn what_is_disabled_is_remembered_until_it_is_enabled() {
        let directory = directory("remembered");
        let peers = DisabledPeers::open(&directory);
        assert!(peers.names().is_empty() && peers.problem().is_none());
        for peer in ["bgppeer/a", "bgppeer/b"] {
            peers.remember(&peer.into(), false).expect("it is written");
        }
        peers.remember(&"bgppeer/a".into(), true).expect("it is written");
        let again = DisabledPeers::open(&directory);
        assert_eq!(again.names(), BTreeSet::from(["bgppeer/b".into()]));
        assert!(!directory.join("disabled-peers.new").exists());
        fs::remove_dir_all(directory).expect("removed");
    }

    #[test]
    fn a_broken_file_is_a_problem_until_the_next_write() {
        let directory = directory("broken");
        for text in ["", "{", "[]", r#"{"version":2,"disabledPeers":[]}"#] {
            fs::write(directory.join(FILE), text).expect("a file");
            let peers = DisabledPeers::open(&directory);
            let problem = peers.problem().expect("a problem");
            assert!(problem.contains("disabled-peers.json") && problem.contains("remove the file"));
            peers.remember(&"a".into(), true).expect("it is written");
            assert_eq!(peers.problem(), None);
            assert_eq!(DisabledPeers::open(&directory).problem(), None);
        }
        fs::remove_dir_all(directory).expect("removed");
    }

    #[test]
    fn what_cannot_be_written_changes_nothing() {
        let directory = directory("unwritable");
        let peers = DisabledPeers::open(&directory);
        fs::remove_dir_all(&directory).expect("removed");
        peers.remember(&"a".into(), false).expect_err("no directory");
        assert!(peers.names().is_empty());
    }
}
