//! One node: its namespace, its uplink, its agent.

use std::ffi::OsString;
use std::os::fd::{AsFd, AsRawFd};
use std::path::{Path, PathBuf};
use std::process::Command;

use cairn_kernel::pod::PodAttachment;
use cairn_kernel::{NetNs, Netlink, link, pod};
use serde_json::{Value, json};

use super::cluster::Cluster;
use super::seen::{fresh, on, run};
use crate::link::wait_for;
use crate::process::{Process, Scratch};
use crate::program::built;

/// A node with a directory of its own. Everything of it goes when it is dropped.
#[derive(Debug)]
pub struct Node {
    /// Its network namespace.
    pub netns: NetNs,
    /// The other end of its uplink.
    pub outside: NetNs,
    agent: Option<Process>,
    cluster: Cluster,
    scratch: Scratch,
}

/// A range of pods' addresses.
#[derive(Clone, Copy, Debug)]
pub struct Pool<'a> {
    /// Its name.
    pub name: &'a str,
    /// The range.
    pub cidr: &'a str,
    /// The prefix length of blocks.
    pub block_size: u8,
}

impl Node {
    /// A node without an agent.
    ///
    /// # Panics
    /// Without root.
    #[must_use]
    pub fn new(pools: &[Pool<'_>]) -> Node {
        let (netns, outside) = (fresh(), fresh());
        let path = path_of(&outside);
        let configure = |netns: &NetNs, addresses: [&str; 2], other: [&str; 2]| {
            on(netns, || {
                for address in addresses {
                    run(&format!("ip address add {address} dev uplink nodad"));
                }
                run("ip link set uplink up");
                run(&format!("ip route add default via {}", other[0]));
                run(&format!("ip -6 route add default via {}", other[1]));
            });
        };
        on(&netns, || {
            run("ip link add uplink type veth peer name uplink-peer");
            run(&format!("ip link set uplink-peer netns {}", path.display()));
        });
        on(&outside, || run("ip link set uplink-peer name uplink"));
        let net = |v4: &str, v6: &str| [format!("{v4}/24"), format!("{v6}/64")];
        let (near, far) = (net(NODE, NODE6), net(OUTSIDE, OUTSIDE6));
        configure(&netns, [&near[0], &near[1]], [OUTSIDE, OUTSIDE6]);
        configure(&outside, [&far[0], &far[1]], [NODE, NODE6]);
        let scratch = Scratch::new("cairn-runtime");
        let cluster = Cluster::start(&netns, NAME, pools);
        let node = Node { netns, outside, agent: None, cluster, scratch };
        node.write("kubeconfig", &node.cluster.kubeconfig.to_string());
        let plugins = node.plugins();
        std::fs::create_dir(&plugins).expect("a directory");
        let others = std::fs::read_dir(OTHER_PLUGINS)
            .unwrap_or_else(|error| panic!("{OTHER_PLUGINS}: {error}: run `make test-deps`"));
        for other in others {
            let other = other.expect("a plugin");
            let link = plugins.join(other.file_name());
            std::os::unix::fs::symlink(other.path(), link).expect("a link");
        }
        std::fs::copy(built("cairn-cni"), plugins.join("cairn-cni")).expect("the plugin");
        node
    }

    /// Starts the agent.
    ///
    /// # Panics
    /// When it does not start.
    pub fn start_agent(&mut self) {
        let arguments = [
            "agent".into(),
            "--node-name".into(),
            NAME.into(),
            "--kubeconfig".into(),
            self.path("kubeconfig").into_os_string(),
            "--run-dir".into(),
            self.run_dir().into_os_string(),
        ];
        self.agent = Some(self.start(&built("cairn"), &arguments, "agent.log"));
    }

    /// Starts the agent and waits until it has blocks of these many pools.
    ///
    /// # Panics
    /// When it does not.
    pub fn start_agent_and_wait(&mut self, pools: usize) {
        self.start_agent();
        let log = self.path("agent.log");
        wait_for(
            "the agent has blocks",
            || self.blocks().len() >= pools,
            || std::fs::read_to_string(&log).unwrap_or_default(),
        );
    }

    /// Kills the agent.
    pub fn kill_agent(&mut self) {
        self.agent = None;
    }

    /// Starts a program in the node's namespace. It ends with the thread that starts it.
    ///
    /// # Panics
    /// When it does not start.
    #[must_use]
    pub fn start(&self, program: &Path, arguments: &[OsString], log: &str) -> Process {
        let arguments = [&self.enter()[..], &[program.into()], arguments].concat();
        let arguments: Vec<String> =
            arguments.into_iter().map(|a| a.into_string().expect("text")).collect();
        Process::start(Path::new("nsenter"), &arguments, &self.path(log))
    }

    /// What `nsenter` has to be told to enter the node's network namespace.
    #[must_use]
    pub fn enter(&self) -> Vec<OsString> {
        let mut option = OsString::from("--net=");
        option.push(path_of(&self.netns));
        vec![option]
    }

    /// A file of the node's directory.
    #[must_use]
    pub fn path(&self, name: &str) -> PathBuf {
        self.scratch.path().join(name)
    }

    /// Writes such a file.
    ///
    /// # Panics
    /// When it cannot be written.
    pub fn write(&self, name: &str, text: &str) {
        std::fs::write(self.path(name), text).unwrap_or_else(|e| panic!("{name}: {e}"));
    }

    /// What such a file holds; nothing if there is none.
    #[must_use]
    pub fn read(&self, name: &str) -> String {
        std::fs::read_to_string(self.path(name)).unwrap_or_default()
    }

    /// The agent's run directory.
    #[must_use]
    pub fn run_dir(&self) -> PathBuf {
        self.path("agent")
    }

    /// The directory with our plugin and Debian's.
    #[must_use]
    pub fn plugins(&self) -> PathBuf {
        self.path("plugins")
    }

    /// A network configuration list with our plugin first.
    #[must_use]
    pub fn conflist(&self, version: &str, others: &[Value]) -> Value {
        let ours = json!({
            "type": "cairn-cni",
            "socket": self.run_dir().join("cni.sock"),
            "capabilities": {"io.kubernetes.cri.pod-annotations": true},
        });
        let plugins: Vec<Value> = std::iter::once(ours).chain(others.iter().cloned()).collect();
        json!({"cniVersion": version, "name": "cairn", "plugins": plugins})
    }

    /// The node's blocks as `cairn status` tells them; none while the agent is away.
    ///
    /// # Panics
    /// When the program does not start.
    #[must_use]
    pub fn blocks(&self) -> Vec<Value> {
        let mut command = Command::new(built("cairn"));
        command.args(["status", "-o", "json", "--run-dir"]).arg(self.run_dir());
        let output = command.output().expect("cairn starts");
        let report: Value = serde_json::from_slice(&output.stdout).unwrap_or_default();
        report["blocks"].as_array().cloned().unwrap_or_default()
    }

    /// How many addresses the agent counts as used.
    ///
    /// # Panics
    /// As [`Node::blocks`].
    #[must_use]
    pub fn used(&self) -> usize {
        let used = |block: &Value| block["used"].as_str().and_then(|n| n.parse::<usize>().ok());
        self.blocks().iter().map(|block| used(block).expect("a number")).sum()
    }

    /// The host interfaces of pods, as the kernel holds them.
    ///
    /// # Panics
    /// When the kernel refuses.
    #[must_use]
    pub fn attachments(&self) -> Vec<PodAttachment> {
        let mut netlink = Netlink::open_in(&self.netns).expect("a socket");
        pod::list(&mut netlink).expect("attachments")
    }

    /// The names of the node's interfaces.
    ///
    /// # Panics
    /// When the kernel refuses.
    #[must_use]
    pub fn links(&self) -> Vec<String> {
        let mut netlink = Netlink::open_in(&self.netns).expect("a socket");
        link::list(&mut netlink).expect("links").into_iter().map(|link| link.name).collect()
    }

    /// The pods whose names the agent keeps, by host interface, in order.
    #[must_use]
    pub fn kept_names(&self) -> Vec<String> {
        let files = std::fs::read_dir(self.run_dir().join("pods")).into_iter().flatten().flatten();
        let mut names: Vec<String> =
            files.filter_map(|file| file.file_name().into_string().ok()).collect();
        names.sort_unstable();
        names
    }
}

/// A path that leads to a namespace as long as its value and this process live.
#[must_use]
pub fn path_of(netns: &NetNs) -> PathBuf {
    let (process, descriptor) = (std::process::id(), netns.as_fd().as_raw_fd());
    PathBuf::from(format!("/proc/{process}/fd/{descriptor}"))
}

/// The node's addresses.
pub const NODE: &str = "192.0.2.1";
/// The same of IPv6.
pub const NODE6: &str = "2001:db8::1";
/// The addresses at the other end of its uplink.
pub const OUTSIDE: &str = "192.0.2.2";
/// The same of IPv6.
pub const OUTSIDE6: &str = "2001:db8::2";
/// The name of its Node object.
const NAME: &str = "n1";
/// Where Debian's package has the others.
const OTHER_PLUGINS: &str = "/usr/lib/cni";
