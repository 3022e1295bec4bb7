//! A node with one router that has a full table.

use std::collections::BTreeMap;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::time::{Duration, Instant};

use cairn_bgp::config::{GracefulRestart, Multipath, Origination, PeerConfig, SpeakerConfig};
use cairn_bgp::prefix::Prefix;
use cairn_bgp::speaker::{Speaker, SpeakerOptions};
use cairn_kernel::route::RouteSocket;
use tokio::sync::watch;

use crate::limited::MemoryLimit;
use crate::model::net;
use crate::node::{PATIENCE, Place, our_routes};

/// A node between a sender and a router that is a BGP peer and has the receiver.
pub struct Site {
    pub node: Place,
    pub far: Place,
    pub source: Place,
    dir: PathBuf,
}

impl Site {
    pub fn new() -> Site {
        let (node, far, source) = (Place::create(), Place::create(), Place::create());
        node.sh(&format!(
            "ip link add wan type veth peer name wan netns {}; ip link add lan type veth peer name lan netns {}
             ip address add 192.0.2.1/24 dev wan; ip link set wan up
             ip address add 198.51.100.1/24 dev lan; ip link set lan up
             sysctl -qw net.ipv4.ip_forward=1",
            far.name, source.name
        ));
        far.sh(&format!("ip address add 192.0.2.2/24 dev wan; ip link set wan up; ip address add {TARGET}/32 dev lo
             ip route add 198.51.100.0/24 via 192.0.2.1"));
        source.sh("ip address add 198.51.100.2/24 dev lan; ip link set lan up; ip route add default via 198.51.100.1");
        let dir = std::env::temp_dir().join(&node.name);
        std::fs::create_dir_all(&dir).expect("a directory");
        let file = "apiVersion: cairn.network/v1alpha1
kind: BGPConfiguration
metadata: {name: default}
spec: {asn: 65001, routerID: 192.0.2.1, listenAddresses: [192.0.2.1], timers: {holdTimeSecs: 30, connectRetrySecs: 1}, topology: Disabled}
---
apiVersion: cairn.network/v1alpha1
kind: BGPPeer
metadata: {name: far}
spec: {address: 192.0.2.2, asn: 65001, sourceAddress: 192.0.2.1}
";
        std::fs::write(dir.join("speaker.yaml"), file).expect("a file");
        Site { node, far, source, dir }
    }

    /// `cairn speaker --fib --keep-routes` on the node.
    pub fn start(&self) -> Process {
        self.start_with(&["--keep-routes"], None)
    }

    /// `cairn speaker --fib` on the node with these options, and with the memory of a cgroup.
    pub fn start_with(&self, options: &[&str], limit: Option<&MemoryLimit>) -> Process {
        let log = std::fs::File::options().create(true).append(true).open(self.dir.join("log"));
        let log = log.expect("a log");
        let mut command = Command::new(env!("CARGO_BIN_EXE_cairn"));
        command.args(["speaker", "--fib", "-f"]).arg(self.dir.join("speaker.yaml")).args(options);
        command.arg("--run-dir").arg(self.dir.join("run")).env_remove("CAIRN_LOG");
        command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(log);
        if let Some(limit) = limit {
            limit.take(&mut command);
        }
        Process(self.node.netns.run(|| command.spawn().expect("a process")).expect("entered"))
    }

    pub fn installed(&self) -> usize {
        our_routes(&mut RouteSocket::open_in(&self.node.netns).expect("a socket")).len()
    }
}

impl Drop for Site {
    fn drop(&mut self) {
        if std::thread::panicking() {
            eprintln!("{}", std::fs::read_to_string(self.dir.join("log")).unwrap_or_default());
        }
        let _ = std::fs::remove_dir_all(&self.dir);
    }
}

/// Killed with the value.
pub struct Process(Child);

impl std::ops::Deref for Process {
    type Target = Child;
    fn deref(&self) -> &Child {
        &self.0
    }
}

impl std::ops::DerefMut for Process {
    fn deref_mut(&mut self) -> &mut Child {
        &mut self.0
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        // One that has ended already is only collected.
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// The BGP peer, on a thread in its own namespace. It ends with the value.
pub struct Far {
    pub many: watch::Sender<usize>,
    thread: Option<std::thread::JoinHandle<()>>,
}

impl Far {
    pub fn start(site: &Site) -> Far {
        let (many, mut wanted) = watch::channel(0);
        let run = move || {
            let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
            runtime.expect("a runtime").block_on(async move {
                let started = Speaker::start(configuration(0), SpeakerOptions::default());
                let (speaker, _feed) = started.expect("a valid configuration");
                while wanted.changed().await.is_ok() {
                    let many = *wanted.borrow_and_update();
                    speaker.apply(configuration(many)).expect("a valid configuration");
                }
            });
        };
        let thread = site.far.netns.run(|| std::thread::spawn(run)).expect("entered");
        Far { many, thread: Some(thread) }
    }
}

impl Drop for Far {
    fn drop(&mut self) {
        self.many = watch::channel(0).0;
        if let Some(thread) = self.thread.take() {
            // It only fails by a panic, which has been printed.
            let _ = thread.join();
        }
    }
}

/// A router that announces the target's network and `many` others.
fn configuration(many: usize) -> SpeakerConfig {
    let own = Ipv4Addr::new(192, 0, 2, 2);
    let peer = PeerConfig {
        source_address: Some(own.into()),
        passive: true,
        graceful_restart: Some(GracefulRestart::new(120)),
        ..PeerConfig::new(IpAddr::from([192, 0, 2, 1]), 65001)
    };
    let origination =
        || Origination { source: Arc::from("test"), communities: Vec::new(), local_pref: None };
    let others = (0..many).map(|n| net(&format!("10.{}.{}.{}/32", n >> 16, n >> 8 & 255, n & 255)));
    let prefixes = others.chain([net("203.0.113.0/24")]);
    SpeakerConfig {
        origins: Default::default(),
        ranges: Default::default(),
        asn: 65001,
        router_id: own,
        cluster_id: None,
        listen: vec![SocketAddr::new(own.into(), 179)],
        peers: BTreeMap::from([("node".into(), peer)]),
        originate: prefixes.map(|prefix| (Prefix::from(prefix), origination())).collect(),
        selection_deferral_secs: 1,
        multipath: Multipath { paths_max: 1, same_as_path: false },
    }
}

pub fn until(what: &str, mut holds: impl FnMut() -> bool) {
    let deadline = Instant::now() + PATIENCE;
    while !holds() {
        assert!(Instant::now() < deadline, "never: {what}");
        std::thread::sleep(Duration::from_millis(20));
    }
}

pub const MANY: usize = 100_000;
pub const TARGET: &str = "203.0.113.9";
