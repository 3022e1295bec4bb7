//! The network configuration list that makes the container runtime call Cairn's plugin.
//!
//! ```text
//!  ConfigMap ──mounted──► source ──once the pod network is ready──► /etc/cni/net.d/10-cairn.conflist
//! ```
//!
//! With that file the kubelet takes the node's network for ready, so it comes after everything else, and only
//! `cairn cleanup` removes it. It is written in one step, and not if it is there already: runtimes read
//! the directory anew at every change. Of the files there a runtime takes the first by name, so that
//! another one before ours gets the pods: that is told, and looked for from time to time.

use std::fs::{self, File, OpenOptions};
use std::io::{self, Write};
use std::os::unix::fs::{OpenOptionsExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::time::Duration;

use serde_json::Value;
use tokio::sync::watch;

use crate::readiness::Verdict;

/// Where the list comes from and goes to.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Conflist {
    source: PathBuf,
    directory: PathBuf,
    /// The name in the directory: the source's.
    name: String,
}

/// Why the list is not where the runtime looks for it.
#[derive(Debug, thiserror::Error)]
pub enum ConflistError {
    /// The source's name is none for a list.
    #[error(
        "--cni-conflist {0} does not end in .conflist: container runtimes would not read a file of that name"
    )]
    Name(PathBuf),
    /// The source is not JSON.
    #[error(
        "{path} is no JSON ({source}): mend the ConfigMap cairn-cni; pods are not told of Cairn"
    )]
    Json {
        /// The source.
        path: PathBuf,
        /// What is wrong.
        source: serde_json::Error,
    },
    /// The source is no list that would call the plugin.
    #[error(
        "{path} is no CNI configuration list that names the plugin cairn-cni ({lack}): mend the ConfigMap \
         cairn-cni; pods are not told of Cairn"
    )]
    NotOurs {
        /// The source.
        path: PathBuf,
        /// What it has not.
        lack: &'static str,
    },
    /// A file cannot be read or written.
    #[error("cannot {action} {path}: {source}; the container runtime may not know of Cairn")]
    File {
        /// What was attempted.
        action: &'static str,
        /// The file.
        path: PathBuf,
        /// The system's answer.
        source: io::Error,
    },
}

/// Keeps the list of the file `source` in the runtime's directory from when `ready` says so. Returns what is
/// wrong, one sentence each, also that `source` cannot be one.
pub fn start(
    source: PathBuf,
    directory: PathBuf,
    ready: watch::Receiver<Verdict>,
) -> watch::Receiver<Vec<String>> {
    match Conflist::new(source, directory) {
        Ok(conflist) => {
            let (problems, told) = watch::channel(Vec::new());
            tokio::spawn(conflist.keep(ready, problems));
            told
        }
        Err(error) => watch::channel(vec![error.to_string()]).1,
    }
}

impl Conflist {
    /// The list of the file `source`, for the runtime's directory.
    ///
    /// # Errors
    /// [`ConflistError::Name`].
    pub fn new(source: PathBuf, directory: PathBuf) -> Result<Conflist, ConflistError> {
        let name = source.file_name().and_then(|name| name.to_str()).map(str::to_owned);
        let is_list = source.extension().is_some_and(|extension| extension == "conflist");
        match name {
            Some(name) if is_list => Ok(Conflist { source, directory, name }),
            _ => Err(ConflistError::Name(source)),
        }
    }

    /// Keeps the list in place from when `ready` says so, and tells what is wrong, one sentence each. Ends
    /// when nobody says anything any more.
    pub async fn keep(
        self,
        mut ready: watch::Receiver<Verdict>,
        problems: watch::Sender<Vec<String>>,
    ) {
        loop {
            let may_write = *ready.borrow_and_update() == Verdict::Ready;
            let conflist = self.clone();
            // The directory is on a disk.
            let looked = tokio::task::spawn_blocking(move || conflist.settle(may_write)).await;
            let Ok(found) = looked else { return };
            crate::send_if_changed(&problems, found);
            // One that has been ready is for good.
            tokio::select! {
                changed = ready.changed(), if !may_write => if changed.is_err() { return },
                () = tokio::time::sleep(LOOK_INTERVAL) => {}
            }
        }
    }

    /// Puts the list in place if it may, and returns what is wrong.
    pub fn settle(&self, may_write: bool) -> Vec<String> {
        let settled = self.read().and_then(|text| match may_write {
            true => self.write(&text),
            false => Ok(()),
        });
        let mut problems: Vec<String> = settled.err().map(|e| e.to_string()).into_iter().collect();
        match self.before_ours() {
            Ok(None) => {}
            Ok(Some(other)) => problems.push(format!(
                "{other} in the directory of CNI configurations comes before {}, or that is not there yet, so that \
                 container runtimes take it and give pods to another plugin: remove it if pods are to be Cairn's",
                self.name
            )),
            // The place of ours cannot be written either, or is not there yet.
            Err(error) => tracing::debug!(%error, "cannot list {}", self.directory.display()),
        }
        problems
    }

    /// The list, if it is one that calls the plugin.
    fn read(&self) -> Result<Vec<u8>, ConflistError> {
        let path = || self.source.clone();
        let text = fs::read(&self.source).map_err(failed("read", &self.source))?;
        let list: Value = serde_json::from_slice(&text)
            .map_err(|source| ConflistError::Json { path: path(), source })?;
        let lacks = |lack| ConflistError::NotOurs { path: path(), lack };
        if !list["name"].is_string() {
            return Err(lacks("it has no name"));
        }
        if !list["cniVersion"].is_string() {
            return Err(lacks("it has no cniVersion"));
        }
        let plugins = list["plugins"].as_array().ok_or_else(|| lacks("it has no plugins"))?;
        if !plugins.iter().any(|plugin| plugin["type"] == PLUGIN) {
            return Err(lacks("no plugin of this type"));
        }
        Ok(text)
    }

    /// The name of a runtime is at any moment that of a whole list: the old one or the new one.
    fn write(&self, text: &[u8]) -> Result<(), ConflistError> {
        let path = self.directory.join(&self.name);
        let is_there = |metadata: fs::Metadata| metadata.permissions().mode() & 0o7777 == MODE;
        if fs::read(&path).is_ok_and(|held| held == text)
            && fs::symlink_metadata(&path).is_ok_and(is_there)
        {
            return Ok(());
        }
        // Of no ending that a runtime reads.
        let fresh = self.directory.join(format!(".{}.new", self.name));
        let written = write_synced(&fresh, text).and_then(|()| fs::rename(&fresh, &path));
        written.map_err(failed("write", &path))?;
        File::open(&self.directory)
            .and_then(|directory| directory.sync_all())
            .map_err(failed("write", &path))?;
        tracing::info!(path = %path.display(), "told the container runtime of Cairn");
        Ok(())
    }

    /// The file that a runtime takes instead of ours: libcni reads these endings, in the order of names.
    fn before_ours(&self) -> io::Result<Option<String>> {
        let mut first: Option<String> = None;
        let is_there = self.directory.join(&self.name).exists();
        for entry in fs::read_dir(&self.directory)? {
            let name = entry?.file_name();
            let ending = Path::new(&name).extension().and_then(|ending| ending.to_str());
            let name = name.to_string_lossy().into_owned();
            let is_read =
                ending.is_some_and(|ending| ["conf", "conflist", "json"].contains(&ending));
            let is_file = || self.directory.join(&name).is_file();
            if is_read
                && name != self.name
                && (name < self.name || !is_there)
                && first.as_ref().is_none_or(|first| name < *first)
                && is_file()
            {
                first = Some(name);
            }
        }
        Ok(first)
    }
}

fn write_synced(path: &Path, text: &[u8]) -> io::Result<()> {
    let mut options = OpenOptions::new();
    let mut file = options.write(true).create(true).truncate(true).mode(MODE).open(path)?;
    // Whatever the umask is, and whatever an interrupted agent has left.
    file.set_permissions(fs::Permissions::from_mode(MODE))?;
    file.write_all(text)?;
    file.sync_all()
}

fn failed(action: &'static str, path: &Path) -> impl FnOnce(io::Error) -> ConflistError {
    move |source| ConflistError::File { action, path: path.into(), source }
}

const PLUGIN: &str = "cairn-cni";
const MODE: u32 = 0o644;
/// How soon an edited ConfigMap, and a file of another plugin, are noticed.
const LOOK_INTERVAL: Duration = Duration::from_secs(30);

#[cfg(test)]
mod tests {
    use std::os::unix::fs::MetadataExt;

    use super::*;

    /// A source and a runtime's directory, removed with the value.
    struct Place(PathBuf);

    impl Place {
        fn new(name: &str) -> Place {
            let place =
                std::env::temp_dir().join(format!("conflist-{name}-{}", std::process::id()));
            fs::create_dir_all(place.join("net.d")).expect("a directory");
            let place = Place(place);
            place.source(LIST);
            place
        }

        fn source(&self, text: &str) {
            fs::write(self.0.join("10-cairn.conflist"), text).expect("written");
        }

        fn target(&self) -> PathBuf {
            self.0.join("net.d/10-cairn.conflist")
        }

        fn other(&self, name: &str) -> PathBuf {
            self.0.join("net.d").join(name)
        }

        fn conflist(&self) -> Conflist {
            let source = self.0.join("10-cairn.conflist");
            Conflist::new(source, self.0.join("net.d")).expect("a list's name")
        }
    }

    impl Drop for Place {
        fn drop(&mut self) {
            let _ = fs::remove_dir_all(&self.0);
        }
    }

    const LIST: &str = r#"{"cniVersion":"1.0.0","name":"cairn","plugins":[{"type":"cairn-cni"}]}"#;

    #[test]
    fn it_is_written_when_it_may_and_only_if_it_differs() {
        let place = Place::new("written");
        let conflist = place.conflist();
        // What an interrupted agent has left.
        fs::write(place.other(".10-cairn.conflist.new"), "half").expect("written");
        assert_eq!(conflist.settle(false), Vec::<String>::new());
        assert!(!place.target().exists(), "it may not yet");
        assert_eq!(conflist.settle(true), Vec::<String>::new());
        assert_eq!(fs::read_to_string(place.target()).expect("a file"), LIST);
        let metadata = |path| fs::metadata(path).expect("a file");
        let first = metadata(place.target());
        assert_eq!(first.permissions().mode() & 0o7777, 0o644);
        assert_eq!(conflist.settle(true), Vec::<String>::new());
        let same = metadata(place.target());
        assert_eq!((same.ino(), same.ctime_nsec()), (first.ino(), first.ctime_nsec()), "untouched");
        let edited = LIST.replace("1.0.0", "0.4.0");
        place.source(&edited);
        conflist.settle(true);
        assert_eq!(fs::read_to_string(place.target()).expect("a file"), edited);
        assert_ne!(metadata(place.target()).ino(), first.ino(), "renamed into place");
        // Nobody but root could read it.
        fs::set_permissions(place.target(), fs::Permissions::from_mode(0o600)).expect("changed");
        conflist.settle(true);
        assert_eq!(metadata(place.target()).permissions().mode() & 0o7777, 0o644);
        let names = fs::read_dir(place.0.join("net.d")).expect("a directory").count();
        assert_eq!(names, 1, "nothing else is left there");
    }

    #[test]
    fn what_is_no_list_of_ours_is_told_and_replaces_nothing() {
        let place = Place::new("wrong");
        let conflist = place.conflist();
        conflist.settle(true);
        for (text, words) in [
            ("{", "is no JSON"),
            ("[]", "has no name"),
            (r#"{"name":"cairn","type":"cairn-cni"}"#, "has no cniVersion"),
            (r#"{"name":"cairn","cniVersion":"1.0.0","type":"cairn-cni"}"#, "has no plugins"),
            (
                r#"{"name":"c","cniVersion":"1.0.0","plugins":[{"type":"ptp"}]}"#,
                "no plugin of this type",
            ),
        ] {
            place.source(text);
            for may_write in [false, true] {
                let problems = conflist.settle(may_write);
                assert!(problems.len() == 1 && problems[0].contains(words), "{text}: {problems:?}");
            }
            assert_eq!(fs::read_to_string(place.target()).expect("a file"), LIST);
        }
        fs::remove_file(place.0.join("10-cairn.conflist")).expect("removed");
        assert!(conflist.settle(true)[0].contains("cannot read"), "{:?}", conflist.settle(true));
        assert!(Conflist::new("/etc/cairn/list.json".into(), "/".into()).is_err());

        place.source(LIST);
        fs::remove_dir_all(place.0.join("net.d")).expect("removed");
        assert!(conflist.settle(true)[0].contains("cannot write"), "{:?}", conflist.settle(true));
    }

    #[test]
    fn a_file_that_a_runtime_takes_first_is_named() {
        let place = Place::new("others");
        let conflist = place.conflist();
        for harmless in ["10-flannel.conflist", "00-old.conflist.bak", "05-readme.txt", "99-x.conf"]
        {
            fs::write(place.other(harmless), "{}").expect("written");
        }
        // Until ours is there it gets the pods.
        assert!(conflist.settle(false)[0].starts_with("10-flannel.conflist"));
        fs::create_dir(place.other("01-directory.conf")).expect("a directory");
        assert_eq!(conflist.settle(true), Vec::<String>::new());
        for (name, extension) in [("05-b", "json"), ("05-a", "conf"), ("00-multus", "conflist")] {
            let name = format!("{name}.{extension}");
            fs::write(place.other(&name), "{}").expect("written");
            for may_write in [false, true] {
                let problems = conflist.settle(may_write);
                assert!(problems.len() == 1 && problems[0].starts_with(&name), "{problems:?}");
            }
        }
        assert!(place.target().exists(), "ours is there all the same");
    }

    #[tokio::test(start_paused = true)]
    async fn it_comes_when_the_node_is_ready_and_comes_back() {
        let place = Place::new("kept");
        let (verdict, ready) = watch::channel(Verdict::default());
        let (problems, mut told) = watch::channel(vec!["nothing was looked at".to_owned()]);
        let keeping = tokio::spawn(place.conflist().keep(ready, problems));
        told.wait_for(Vec::is_empty).await.expect("it looks");
        assert!(!place.target().exists());
        verdict.send_replace(Verdict::Ready);
        let there = async |wanted: bool| {
            while place.target().exists() != wanted {
                tokio::time::sleep(Duration::from_millis(10)).await;
            }
        };
        tokio::time::timeout(LOOK_INTERVAL / 2, there(true)).await.expect("at once");
        fs::remove_file(place.target()).expect("removed");
        tokio::time::timeout(LOOK_INTERVAL * 2, there(true)).await.expect("somebody removed it");
        keeping.abort();
    }
}
