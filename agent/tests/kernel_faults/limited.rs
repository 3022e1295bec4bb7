//! The kernel ends the process since its cgroup has no memory left.

use std::fs;
use std::os::unix::process::{CommandExt, ExitStatusExt};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::atomic::{AtomicU32, Ordering};

use cairn_lab::flow::Flow;

use crate::model::ip;
use crate::site::{Far, MANY, Site, TARGET, until};

/// With too little memory for a full table it is killed, and what stands in the kernel goes on; with as
/// much as the documentation says it then has every route. The kernel's own memory of routes counts.
#[test]
fn killed_by_its_limit_of_memory_it_goes_on_with_as_much_as_documented() {
    let site = Site::new();
    let far = Far::start(&site);
    let little = MemoryLimit::new(BASE_BYTES);
    let mut speaker = site.start_with(&["--keep-routes"], Some(&little));
    until("the first route", || site.installed() == 1);
    let flow = Flow::start(&site.source.netns, &site.far.netns, ip(TARGET), 1000).expect("a flow");
    let began = flow.position();
    far.many.send_replace(MANY);
    let mut end = None;
    until("its end", || {
        end = speaker.try_wait().expect("asked");
        end.is_some() || site.installed() > MANY
    });
    let end = end.unwrap_or_else(|| panic!("it needs {} bytes only", little.most()));
    assert_eq!((end.signal(), little.kills()), (Some(libc::SIGKILL), 1), "{end}");
    let before = site.installed();
    assert!(before < MANY, "{before} of {MANY}");

    let enough = MemoryLimit::new(BASE_BYTES + MANY as u64 * ROUTE_BYTES);
    let mut speaker = site.start_with(&["--keep-routes"], Some(&enough));
    until("every route", || {
        assert_eq!(speaker.try_wait().expect("asked"), None, "{} kills", enough.kills());
        site.installed() == MANY + 1
    });
    let loss = flow.since(began);
    assert!(loss.sent > 500, "{loss}");
    assert_eq!(loss.lost, 0, "on a route that nothing happens to: {loss}");
    println!("{before} routes at its end; then {} bytes at most", enough.most());
}

/// A cgroup whose processes have so many bytes of memory, removed with the value.
pub struct MemoryLimit {
    directory: PathBuf,
    version: Version,
}

#[derive(Clone, Copy, PartialEq)]
enum Version {
    One,
    Two,
}

impl MemoryLimit {
    /// In the first version's tree of the memory controller, or else in the second version's. The root of
    /// either may have children.
    fn new(bytes: u64) -> MemoryLimit {
        static NUMBER: AtomicU32 = AtomicU32::new(0);
        let one = Path::new("/sys/fs/cgroup/memory");
        let version = if one.is_dir() { Version::One } else { Version::Two };
        let root = if version == Version::One { one } else { Path::new("/sys/fs/cgroup") };
        if version == Version::Two {
            write(&root.join("cgroup.subtree_control"), "+memory");
        }
        let number = NUMBER.fetch_add(1, Ordering::Relaxed);
        let directory = root.join(format!("cairn-test-{}-{number}", std::process::id()));
        fs::create_dir(&directory).unwrap_or_else(|e| panic!("{}: {e}", directory.display()));
        let limit = MemoryLimit { directory, version };
        limit.put("memory.limit_in_bytes", "memory.max", &bytes.to_string());
        // A kernel without swap may lack these.
        let swap = match version {
            Version::One => ("memory.memsw.limit_in_bytes", bytes),
            Version::Two => ("memory.swap.max", 0),
        };
        if limit.directory.join(swap.0).exists() {
            write(&limit.directory.join(swap.0), &swap.1.to_string());
        }
        limit
    }

    /// Has `command` run in it.
    pub fn take(&self, command: &mut Command) {
        let processes = self.directory.join("cgroup.procs");
        // SAFETY: between fork and exec it only opens, writes and closes a file; the path was allocated
        // before.
        unsafe {
            command.pre_exec(move || fs::write(&processes, "0"));
        }
    }

    /// How often the kernel killed one of its processes for memory.
    fn kills(&self) -> u64 {
        let events = self.get("memory.oom_control", "memory.events");
        let line = events.lines().find_map(|line| line.strip_prefix("oom_kill "));
        line.expect("a count of kills").parse().expect("a number")
    }

    /// The most bytes that it had.
    fn most(&self) -> String {
        self.get("memory.max_usage_in_bytes", "memory.peak").trim().to_owned()
    }

    fn name<'a>(&self, one: &'a str, two: &'a str) -> &'a str {
        if self.version == Version::One { one } else { two }
    }

    fn put(&self, one: &str, two: &str, text: &str) {
        write(&self.directory.join(self.name(one, two)), text);
    }

    fn get(&self, one: &str, two: &str) -> String {
        let path = self.directory.join(self.name(one, two));
        fs::read_to_string(&path).unwrap_or_else(|e| panic!("{}: {e}", path.display()))
    }
}

impl Drop for MemoryLimit {
    fn drop(&mut self) {
        // Its process is dead: values go in the reverse order of their making. It may take a moment to leave.
        for _ in 0..100 {
            if fs::remove_dir(&self.directory).is_ok() {
                return;
            }
            std::thread::sleep(std::time::Duration::from_millis(20));
        }
        eprintln!("{} stays", self.directory.display());
    }
}

fn write(path: &Path, text: &str) {
    fs::write(path, text).unwrap_or_else(|e| panic!("{}: {e}", path.display()));
}

/// What `cairn speaker` needs without routes. An agent of a large cluster needs more, which is documented.
const BASE_BYTES: u64 = 16 << 20;
/// As documented, for each route, BGP's path and the kernel's part included.
const ROUTE_BYTES: u64 = 400;
