//! A machine for the whole cluster: namespaces in which a test runs itself again.

use std::io::{BufRead, BufReader};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};

use crate::process::{self, Scratch};

/// Runs the test of this name again, on a machine of its own: processes, mounts, network and cgroups that nobody else
/// sees. In there it gets the directory for its files; out here it gets `None` when the test has
/// passed in there. Nothing of it is left in either case, nor when this process is killed.
///
/// # Panics
/// Without root, and when the test fails.
#[must_use]
pub fn on_its_own(test: &str) -> Option<PathBuf> {
    if let Some(directory) = std::env::var_os(DIRECTORY) {
        return Some(directory.into());
    }
    let scratch = Scratch::new("cairn-e2e");
    let name =
        scratch.path().file_name().and_then(|name| name.to_str()).expect("a name").to_owned();
    let _cgroups = Cgroups::new(&name);
    let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("e2e/machine.sh");
    let mut command = Command::new(script);
    command.arg(&name).arg(std::env::current_exe().expect("its own path"));
    command.args(["--exact", test, "--ignored", "--nocapture"]);
    command.env(DIRECTORY, scratch.path()).stdin(Stdio::null()).process_group(0);
    process::end_with_thread(&mut command);
    let status = command.status().expect("machine.sh starts");
    assert!(status.success(), "the test on its own machine: {status}: see above");
    None
}

/// A cgroup in each hierarchy, removed with all below it when dropped and when this process is killed.
struct Cgroups {
    janitor: Child,
}

impl Cgroups {
    fn new(name: &str) -> Cgroups {
        // What is in them ends at the same moment: the removal is repeated.
        let script = "if [ -e cgroup.controllers ]; then all=.; else all=*/; fi; \
             for path in $all; do mkdir \"$path/$1\" || exit; done; echo made; cat >/dev/null; \
             for turn in $(seq 100); do left=; for path in $all; do \
             [ ! -d \"$path/$1\" ] || { find \"$path/$1\" -depth -type d -exec rmdir {} + 2>/dev/null || left=1; }; \
             done; [ -n \"$left\" ] || exit; sleep 0.1; done";
        let mut command = Command::new("sh");
        command.args(["-c", script, "janitor", name]).current_dir("/sys/fs/cgroup");
        command.stdin(Stdio::piped()).stdout(Stdio::piped()).process_group(0);
        let mut janitor = command.spawn().expect("sh starts");
        let mut told = String::new();
        let output = janitor.stdout.take().expect("its output");
        BufReader::new(output).read_line(&mut told).expect("text");
        assert_eq!(told, "made\n", "no cgroups: run the test as root");
        Cgroups { janitor }
    }
}

impl Drop for Cgroups {
    fn drop(&mut self) {
        drop(self.janitor.stdin.take());
        // It has removed them then.
        let _ = self.janitor.wait();
    }
}

/// Where files are, told to the test on its own machine.
const DIRECTORY: &str = "CAIRN_E2E_DIRECTORY";
