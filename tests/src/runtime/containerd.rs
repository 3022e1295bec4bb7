//! containerd with runc on a node.

use std::ffi::OsString;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::atomic::{AtomicU32, Ordering};

use cairn_kernel::NetNs;
use serde_json::Value;

use super::caller::{Sandbox, sandboxes};
use super::node::Node;
use crate::link::wait_for;
use crate::process::{Janitor, Process};

/// A containerd of the test's own, with everything that it starts. All of it ends when this is dropped.
#[derive(Debug)]
pub struct Containerd {
    /// nsenter, which waits for the daemon outside of the sandboxes' namespace.
    daemon: Option<Process>,
    /// The parent of the sandboxes' namespace.
    _machine: Process,
    /// Process 1 of that namespace.
    init: u32,
    socket: PathBuf,
    cgroup: String,
    _cgroups: Janitor,
}

impl Containerd {
    /// Starts it, waits until it serves, and gives it an image for sandboxes.
    ///
    /// # Panics
    /// Without its programs, or when it does not start.
    #[must_use]
    pub fn start(node: &Node, conflist: &Value) -> Containerd {
        static NEXT: AtomicU32 = AtomicU32::new(0);
        let number = NEXT.fetch_add(1, Ordering::Relaxed);
        let cgroup = format!("cairn-runtime-{}-{number}", std::process::id());
        let cgroups = Janitor::new(REMOVE_CGROUPS, Path::new(&cgroup));
        std::fs::create_dir(node.path("net.d")).expect("a directory");
        node.write("net.d/10-cairn.conflist", &conflist.to_string());
        node.write("containerd.toml", &configuration(node));
        let up = node.path("machine-up");
        let arguments: Vec<String> = MACHINE.iter().map(|&word| word.to_owned()).collect();
        let arguments = [arguments, vec![up.display().to_string()]].concat();
        let machine = Process::start(Path::new("unshare"), &arguments, &node.path("machine.log"));
        wait_for("the machine is up", || up.exists(), || node.read("machine.log"));
        let init = only_child(machine.id()).expect("process 1");
        let socket = node.path("containerd.sock");
        let mut containerd =
            Containerd { daemon: None, _machine: machine, init, socket, cgroup, _cgroups: cgroups };
        containerd.start_again(node);
        containerd.load_image(node);
        containerd
    }

    /// Starts the daemon, and waits until it says that its network is ready.
    ///
    /// # Panics
    /// When it never is.
    pub fn start_again(&mut self, node: &Node) {
        let target = format!("--target={}", self.init);
        let arguments = [&target, "--mount", "--pid", "containerd", "--config"];
        let mut arguments: Vec<OsString> = arguments.iter().map(OsString::from).collect();
        arguments.push(node.path("containerd.toml").into_os_string());
        self.daemon = Some(node.start(Path::new("nsenter"), &arguments, "containerd.log"));
        let answers = || self.ask("ready", &[]).is_ok();
        wait_for("containerd is ready", answers, || node.read("containerd.log"));
    }

    /// `kill -9` of the daemon alone: the sandboxes stay.
    ///
    /// # Panics
    /// When it does not run.
    pub fn kill(&self) {
        let daemon = self.daemon.as_ref().and_then(|nsenter| only_child(nsenter.id()));
        kill(daemon.expect("containerd runs"));
    }

    /// `kill -9` of every plugin of ours that runs; how many.
    pub fn kill_plugins(&self) -> usize {
        let plugins = self.plugins();
        plugins.iter().for_each(|id| kill(*id));
        plugins.len()
    }

    /// The plugins of ours that run.
    #[must_use]
    pub fn plugins(&self) -> Vec<u32> {
        let machine = namespace(self.init);
        let processes = std::fs::read_dir("/proc").into_iter().flatten().flatten();
        let ids = processes.filter_map(|entry| entry.file_name().to_str()?.parse().ok());
        let is_plugin = |id: &u32| {
            let name = std::fs::read_to_string(format!("/proc/{id}/comm")).unwrap_or_default();
            name.trim() == "cairn-cni" && namespace(*id) == machine
        };
        ids.filter(is_plugin).collect()
    }

    /// Runs sandboxes for pods of these names, all at once.
    ///
    /// # Errors
    /// When the runtime cannot be asked; what it refuses is told of each sandbox.
    pub fn run(&self, pods: &[String]) -> Result<Vec<Sandbox>, String> {
        self.ask("run", pods)
    }

    /// Stops and removes sandboxes by their ids, all at once.
    ///
    /// # Errors
    /// As [`Containerd::run`].
    pub fn end(&self, ids: &[String]) -> Result<Vec<Sandbox>, String> {
        self.ask("end", ids)
    }

    /// Every sandbox that the runtime knows.
    ///
    /// # Panics
    /// When it cannot be asked.
    #[must_use]
    pub fn list(&self) -> Vec<Sandbox> {
        self.ask("list", &[]).unwrap_or_else(|error| panic!("list: {error}"))
    }

    fn ask(&self, verb: &str, names: &[String]) -> Result<Vec<Sandbox>, String> {
        sandboxes(&self.socket, verb, names, &format!("/{}", self.cgroup))
    }

    /// The namespaces that the runtime has named, by these names, in order.
    ///
    /// # Panics
    /// When one cannot be opened.
    #[must_use]
    pub fn namespaces(&self) -> Vec<(String, NetNs)> {
        let directory = format!("/proc/{}/root/run/netns", self.init);
        let files = std::fs::read_dir(directory).into_iter().flatten().flatten();
        let mut found: Vec<_> = files
            .filter_map(|file| {
                let name = file.file_name().into_string().ok()?;
                // One that a killed runtime had made, and not yet bound, is an empty file.
                Some((name, NetNs::open_path(&file.path()).ok()?))
            })
            .collect();
        found.sort_by(|(a, _), (b, _)| a.cmp(b));
        found
    }

    /// Removes the name of a namespace, as an operator does with what a runtime has forgotten.
    ///
    /// # Panics
    /// When that fails.
    pub fn remove_namespace(&self, name: &str) {
        let path = format!("/run/netns/{name}");
        let mut command = Command::new("nsenter");
        command.arg(format!("--target={}", self.init)).args(["--mount", "--pid", "sh", "-c"]);
        command.args(["umount -l -- \"$1\" && rm -- \"$1\"", "sh", &path]);
        assert!(command.status().expect("nsenter starts").success(), "{path} stays");
    }

    /// An image without a registry: one static program that sleeps.
    fn load_image(&self, node: &Node) {
        let image = node.path("image");
        std::fs::create_dir(&image).expect("a directory");
        let made =
            Command::new("sh").args(["-c", MAKE_IMAGE, "sh", IMAGE]).current_dir(&image).output();
        let made = made.expect("sh starts");
        assert!(made.status.success(), "no image: {}", String::from_utf8_lossy(&made.stderr));
        let mut import = Command::new("ctr");
        import.arg("--address").arg(&self.socket).args([
            "--namespace",
            "k8s.io",
            "images",
            "import",
        ]);
        let imported = import.arg(image.join("image.tar")).output().expect("ctr starts");
        let why = String::from_utf8_lossy(&imported.stderr);
        assert!(imported.status.success(), "the image is not taken: {why}");
    }
}

fn configuration(node: &Node) -> String {
    let [root, state, opt, socket, plugins, lists] =
        ["root", "state", "opt", "containerd.sock", "plugins", "net.d"]
            .map(|name| node.path(name).display().to_string());
    format!(
        r#"
version = 2
root = "{root}"
state = "{state}"
[grpc]
address = "{socket}"
[plugins."io.containerd.internal.v1.opt"]
path = "{opt}"
[plugins."io.containerd.grpc.v1.cri"]
sandbox_image = "{IMAGE}"
disable_apparmor = true
# Without CAP_SYS_RESOURCE no score may be lowered.
restrict_oom_score_adj = true
[plugins."io.containerd.grpc.v1.cri".cni]
bin_dir = "{plugins}"
conf_dir = "{lists}"
[plugins."io.containerd.grpc.v1.cri".containerd.runtimes.runc]
runtime_type = "io.containerd.runc.v2"
"#
    )
}

/// The one child of a process; `None` when it has none.
fn only_child(id: u32) -> Option<u32> {
    let children = std::fs::read_to_string(format!("/proc/{id}/task/{id}/children")).ok()?;
    children.split_whitespace().next()?.parse().ok()
}

fn namespace(id: u32) -> Option<PathBuf> {
    std::fs::read_link(format!("/proc/{id}/ns/pid")).ok()
}

fn kill(id: u32) {
    let id = id.try_into().expect("the id of a process");
    // SAFETY: kill takes no memory. The process may have ended by itself.
    unsafe { libc::kill(id, libc::SIGKILL) };
}

/// Processes and mounts of their own, which end with this command. Its shell collects what others leave; the argument
/// is a file by which it says that it is there.
const MACHINE: [&str; 10] = [
    "--pid",
    "--mount",
    "--fork",
    "--kill-child",
    "--mount-proc",
    "--propagation=private",
    "sh",
    "-c",
    "mount -t tmpfs tmpfs /run && mount -t tmpfs tmpfs /var/lib && : >\"$1\" && while :; do sleep 1; done",
    "machine",
];
/// Removes the control groups of this name, of either version, and those within.
const REMOVE_CGROUPS: &str = r#"left=0
for group in /sys/fs/cgroup/"$1" /sys/fs/cgroup/*/"$1"; do
  [ -d "$group" ] || continue
  find "$group" -depth -type d -exec rmdir {} +
  [ -d "$group" ] && left=1
done
[ "$left" = 0 ]"#;
const MAKE_IMAGE: &str = r#"set -e
mkdir -p layer/bin
cp "$(command -v busybox)" layer/bin/busybox
tar -C layer -cf layer.tar bin
sum=$(sha256sum layer.tar | cut -d ' ' -f 1)
echo '{"architecture":"'"$(dpkg --print-architecture)"'","os":"linux",
  "config":{"Entrypoint":["/bin/busybox","sleep","1000000000"]},
  "rootfs":{"type":"layers","diff_ids":["sha256:'"$sum"'"]}}' >config.json
echo '[{"Config":"config.json","RepoTags":["'"$1"'"],"Layers":["layer.tar"]}]' >manifest.json
tar -cf image.tar config.json layer.tar manifest.json"#;
const IMAGE: &str = "cairn.test/pause:1";
