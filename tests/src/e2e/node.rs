//! A node: a network and a mount namespace with containerd, kubelet and kube-proxy, at their usual places.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use cairn_kernel::NetNs;

use super::control::{ControlPlane, run};
use crate::process::Process;

/// A node of the cluster. Dropped it is switched off, with all its containers.
#[derive(Debug)]
pub struct Node {
    /// Its name in the cluster.
    pub name: String,
    /// Its address on the fabric.
    pub address: String,
    directory: PathBuf,
    /// The first of its processes, with which the kernel ends all others.
    init: u32,
    parts: Vec<Process>,
    _holder: Process,
}

impl Node {
    /// Makes a node's namespaces and links it to the fabric as the `index`th host after the control plane.
    /// Nothing runs on it.
    ///
    /// # Panics
    /// When it cannot be made.
    #[must_use]
    pub fn new(name: &str, index: usize, directory: &Path) -> Node {
        let address = format!("192.0.2.{}", 10 + index);
        let directory = directory.join(name);
        // Places that three nodes on one machine cannot share, and what kubelets make where it is missing.
        let mut script =
            format!("mount --make-rshared / && hostname {name} && mount -t tmpfs tmpfs /run");
        for (place, own) in [("/var/lib", "lib"), ("/var/log", "log"), ("/opt", "opt")] {
            fs::create_dir_all(directory.join(own)).expect("a directory");
            script += &format!(" && mount --bind \"$1/{own}\" {place}");
        }
        for own in ["etc", "etc-work"] {
            fs::create_dir_all(directory.join(own)).expect("a directory");
        }
        script += " && mount -t overlay -o lowerdir=/etc,upperdir=$1/etc,workdir=$1/etc-work overlay /etc";
        // The shell waits, so that it takes up orphans.
        script += " && touch \"$1/ready\" && { sleep infinity & wait; }";
        let namespaces = ["--mount", "--net", "--uts", "--pid", "--mount-proc", "--fork"];
        let mut arguments: Vec<String> = namespaces.map(str::to_owned).into();
        arguments.extend(["--kill-child=SIGKILL", "sh", "-ec", &script, "node"].map(str::to_owned));
        arguments.push(directory.display().to_string());
        let log = directory.join("holder.log");
        let holder = Process::start(Path::new("/usr/bin/unshare"), &arguments, &log);
        wait(name, "namespaces", || directory.join("ready").exists(), &directory);
        let init = only_child(holder.id());
        let node = Node {
            name: name.to_owned(),
            address,
            directory,
            init,
            parts: Vec::new(),
            _holder: holder,
        };
        node.link();
        node
    }

    fn link(&self) {
        let port = format!("{}-port", self.name);
        let ip = |words: &str| run(Command::new("ip").args(words.split(' ')));
        ip(&format!("link add {port} type veth peer name eth0 netns {}", self.init));
        ip(&format!("link set {port} master {FABRIC} up"));
        for words in [
            "link set lo up",
            &format!("address add {}/24 dev eth0", self.address),
            "link set eth0 up",
            &format!("route add default via {}", super::control::ADDRESS),
        ] {
            run(self.command("ip").args(words.split(' ')));
        }
    }

    /// Starts containerd and gives it the archive of images; then the kubelet and kube-proxy.
    ///
    /// # Panics
    /// When one does not start.
    pub fn start(&mut self, plane: &ControlPlane, programs: &Path, images: &Path) {
        self.write("containerd.toml", CONTAINERD);
        // What a kubelet's package brings, and what containerd before 2.0 calls for each pod.
        let plugins = self.directory.join("opt/cni/bin");
        fs::create_dir_all(&plugins).expect("a directory");
        let loopback = fs::copy(programs.join("loopback"), plugins.join("loopback"));
        loopback.expect("the plugin loopback");
        self.write("resolv.conf", "nameserver 192.0.2.1\n");
        let resolv = self.directory.join("resolv.conf");
        self.write("kubelet.yaml", &format!("{KUBELET}resolvConf: {}\n", resolv.display()));
        let file = |name: &str| self.directory.join(name).display().to_string();
        let containerd = self.launch("containerd", &["--config".into(), file("containerd.toml")]);
        let answers = || self.command("ctr").arg("version").output().expect("ctr").status.success();
        wait(&self.name, "containerd", answers, &self.directory);
        run(self.command("ctr").args(["-n", "k8s.io", "images", "import"]).arg(images));
        let program = |name: &str| programs.join(name).display().to_string();
        let kubelet = self.launch(
            &program("kubelet"),
            &[
                format!("--config={}", file("kubelet.yaml")),
                format!("--kubeconfig={}", plane.kubeconfig(&self.name).display()),
                format!("--node-ip={}", self.address),
                format!("--hostname-override={}", self.name),
            ],
        );
        let proxy = self.launch(
            &program("kube-proxy"),
            &[
                format!("--kubeconfig={}", plane.kubeconfig("proxy").display()),
                format!("--hostname-override={}", self.name),
                "--proxy-mode=nftables".into(),
                // The machine's, which are not a network namespace's to set.
                "--conntrack-max-per-core=0".into(),
                "--conntrack-tcp-timeout-established=0".into(),
                "--conntrack-tcp-timeout-close-wait=0".into(),
            ],
        );
        self.parts = vec![containerd, kubelet, proxy];
    }

    /// A command that will run on the node.
    #[must_use]
    pub fn command(&self, program: &str) -> Command {
        let mut command = Command::new("nsenter");
        command.args(self.entering()).arg(program).stdin(Stdio::null());
        command
    }

    /// What a command on the node prints.
    ///
    /// # Panics
    /// When it fails.
    #[must_use]
    pub fn ask(&self, words: &str) -> String {
        let mut parts = words.split(' ');
        let mut command = self.command(parts.next().unwrap_or_default());
        let output = command.args(parts).output().expect("nsenter starts");
        let said = String::from_utf8_lossy(&output.stderr);
        assert!(output.status.success(), "{words} on {}: {said}", self.name);
        String::from_utf8(output.stdout).expect("text")
    }

    /// Its network namespace.
    ///
    /// # Panics
    /// When it is switched off.
    #[must_use]
    pub fn netns(&self) -> NetNs {
        let path = format!("/proc/{}/ns/net", self.init);
        NetNs::open_path(Path::new(&path)).expect("the node's namespace")
    }

    /// The last lines of what its parts have logged.
    #[must_use]
    pub fn logs(&self) -> String {
        super::tails(&self.directory)
    }

    fn entering(&self) -> Vec<String> {
        let target = format!("--target={}", self.init);
        vec![target, "--mount".into(), "--net".into(), "--uts".into(), "--pid".into(), "--".into()]
    }

    fn launch(&self, program: &str, arguments: &[String]) -> Process {
        let name = Path::new(program).file_name().and_then(|name| name.to_str()).expect("a name");
        let mut all = self.entering();
        all.push(program.to_owned());
        all.extend(arguments.iter().cloned());
        let log = self.directory.join(format!("{name}.log"));
        Process::start(Path::new("/usr/bin/nsenter"), &all, &log)
    }

    fn write(&self, name: &str, text: &str) {
        fs::write(self.directory.join(name), text).expect("a file");
    }
}

fn wait(node: &str, what: &str, holds: impl Fn() -> bool, directory: &Path) {
    let began = Instant::now();
    while !holds() {
        assert!(began.elapsed() < START_MAX, "{node}: no {what}\n{}", super::tails(directory));
        std::thread::sleep(Duration::from_millis(50));
    }
}

/// The process that another one has started.
fn only_child(id: u32) -> u32 {
    let children =
        fs::read_to_string(format!("/proc/{id}/task/{id}/children")).expect("its children");
    children.trim().parse().expect("one child")
}

const CONTAINERD: &str = r#"version = 2
[plugins."io.containerd.grpc.v1.cri"]
  sandbox_image = "registry.k8s.io/pause:3.6"
  disable_apparmor = true
  # Lowering it takes a right that machines in virtual machines may lack.
  restrict_oom_score_adj = true
"#;
const KUBELET: &str = "apiVersion: kubelet.config.k8s.io/v1beta1
kind: KubeletConfiguration
authentication: {anonymous: {enabled: true}, webhook: {enabled: false}}
authorization: {mode: AlwaysAllow}
clusterDNS: [10.96.0.10]
clusterDomain: cluster.local
containerRuntimeEndpoint: unix:///run/containerd/containerd.sock
failCgroupV1: false
cgroupDriver: cgroupfs
cgroupsPerQOS: false
enforceNodeAllocatable: []
failSwapOn: false
localStorageCapacityIsolation: false
# The disk is the machine's, whose fullness says nothing here.
evictionHard: {nodefs.available: 1Mi, imagefs.available: 1Mi}
imageGCHighThresholdPercent: 100
registryPullQPS: 0
";
/// The bridge between all hosts.
pub const FABRIC: &str = "fabric";
const START_MAX: Duration = Duration::from_secs(60);
