//! Our packet filter beside kube-proxy's, the real program, in its modes.
//!
//! ```text
//!  pods 10.244.0.5, .6 ── node 192.0.2.1, kube-proxy ── uplink ── another node 192.0.2.2, its pod
//!                                                                 10.244.9.9, outside 203.0.113.9
//! ```

use std::net::{IpAddr, TcpListener, UdpSocket};
use std::os::fd::AsFd;
use std::path::PathBuf;
use std::process::Command;
use std::time::{Duration, Instant};

use cairn_kernel::firewall::{Firewall, FirewallKeeper};
use cairn_kernel::pod::{self, PodSpec};
use cairn_kernel::route::Family;
use cairn_kernel::{NetNs, Netlink, sysctl};
use cairn_lab::apiserver::{ApiServer, Options};
use cairn_tests::kube::programs;
use cairn_tests::process::{Process, Scratch};
use cairn_tests::vm::{self, End, Job};
use serde_json::{Value, json};
use tokio::sync::oneshot;

#[test]
fn kube_proxy_in_nftables_mode_and_our_masquerading_each_do_their_own() {
    Bed::new("nftables").judge();
}

#[test]
fn kube_proxy_in_iptables_mode_and_our_masquerading_each_do_their_own() {
    Bed::new("iptables").judge();
}

/// This machine's kernel may lack IPVS. kube-proxy gives the services' addresses to a device of the node, so
/// that our rules see them as the node's own.
#[test]
fn kube_proxy_in_ipvs_mode_and_our_masquerading_each_do_their_own_in_a_virtual_machine() {
    let this = std::env::current_exe().expect("its own path");
    let name = this.file_name().and_then(|name| name.to_str()).expect("a name").to_owned();
    let script = format!(
        "modprobe -a ip_vs ip_vs_rr ip_set dummy && {IN_MACHINE}=/cairn {name} --ignored ipvs"
    );
    let job = Job { script: &script, programs: &[this, program()], within: PATIENCE * 3 };
    let done = vm::run(&job);
    assert_eq!(done.end, End::Exited(0), "{}\n{}", done.output, done.console);
    assert!(done.output.contains("test in_this_machine_with_ipvs ... ok"), "{}", done.output);
    println!("{} s", done.took.as_secs());
}

#[test]
#[ignore = "started in the virtual machine by the test above"]
fn in_this_machine_with_ipvs() {
    Bed::new("ipvs").judge();
}

/// The thread of the test is the node.
struct Bed {
    pods: [NetNs; 2],
    outside: NetNs,
    proxy: Process,
    scratch: Scratch,
    _api: Api,
}

/// The embedded API server on a thread of its own, until it is dropped.
struct Api {
    address: String,
    _stop: oneshot::Sender<()>,
}

impl Api {
    fn start() -> Api {
        let listener = TcpListener::bind("127.0.0.1:0").expect("a listener");
        let address = format!("http://{}", listener.local_addr().expect("an address"));
        let (stop, stopped) = oneshot::channel::<()>();
        std::thread::spawn(move || {
            let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
            runtime.expect("a runtime").block_on(async {
                let api = ApiServer::new(Options::default());
                services(&api);
                let _serving = api.serve(listener).expect("it serves");
                // An error is the other end that was dropped.
                let _ = stopped.await;
            });
        });
        Api { address, _stop: stop }
    }
}

impl Bed {
    fn new(mode: &str) -> Bed {
        unshare();
        let outside = fresh();
        for command in [
            "ip link set lo up",
            "ip link add uplink type veth peer name far",
            "ip address add 192.0.2.1/24 dev uplink",
            "ip link set uplink up",
        ] {
            run(command);
        }
        let descriptor = std::os::fd::AsRawFd::as_raw_fd(&outside.as_fd());
        let path = format!("/proc/{}/fd/{descriptor}", std::process::id());
        run(&format!("ip link set far netns {path}"));
        within(&outside, || {
            for command in [
                "ip link set lo up",
                "ip link set far name uplink",
                "ip address add 192.0.2.2/24 dev uplink",
                "ip address add 10.244.9.9/32 dev lo",
                "ip address add 203.0.113.9/32 dev lo",
                "ip link set uplink up",
                // So that every packet is seen as it was sent.
                "ip route add 10.244.0.0/24 via 192.0.2.1",
            ] {
                run(command);
            }
        });
        run("ip route add 10.244.9.0/24 via 192.0.2.2");
        run("ip route add default via 192.0.2.2");
        sysctl::enable_forwarding(Family::V4).expect("forwarding");
        let pods = [POD, OTHER_POD].map(|address| {
            let netns = fresh();
            let spec = PodSpec {
                container_id: address.into(),
                ifname: "eth0".into(),
                pod_uid: None,
                network: "cairn".into(),
                addresses: vec![address.parse().expect("an address")],
                mac: None,
                blocks: vec!["10.244.0.0/24".parse().expect("a block")],
                mtu: 1500,
                node_addresses: vec![NODE.parse().expect("an address")],
            };
            pod::attach(&mut Netlink::open().expect("a socket"), &netns, &spec).expect("a pod");
            netns
        });
        let api = Api::start();
        let scratch = Scratch::new("cairn-kube-proxy");
        let proxy = kube_proxy(mode, &api.address, &scratch);
        Bed { pods, outside, scratch, proxy, _api: api }
    }

    fn judge(mut self) {
        let firewall = Firewall {
            pools: ["10.244.0.0/16".parse().expect("a net")].into(),
            nat_pools: ["10.244.0.0/16".parse().expect("a net")].into(),
            nodes: [NODE, OTHER_NODE].map(|address| address.parse().expect("an address")).into(),
            tunnel_pools: ["10.244.0.0/16".parse().expect("a net")].into(),
            tunnel_nodes: [OTHER_NODE.parse().expect("an address")].into(),
            ..Firewall::new(pod::HOST_INTERFACE_PREFIX)
        };
        // Ours first, as on a node that boots, and again when kube-proxy has written its own.
        protect(&firewall);
        let [pod, other_pod] = &self.pods;
        let servers = [
            (SELF, within(pod, || bind(&format!("{POD}:9000")))),
            (REMOTE, within(&self.outside, || bind("10.244.9.9:9000"))),
            (HOST, within(&self.outside, || bind(&format!("{OTHER_NODE}:9000")))),
        ];
        let outside = within(&self.outside, || bind("203.0.113.9:9000"));
        let node = NetNs::current().expect("this namespace");
        let began = Instant::now();
        // Until kube-proxy has written its rules nobody answers, and with IPVS a pod not to itself.
        let silent = |from: &NetNs| {
            let answers = |(to, server): &(&str, UdpSocket)| asked(from, to, 53, server).is_some();
            !servers.iter().all(answers)
        };
        while silent(other_pod) || silent(pod) {
            let log = std::fs::read_to_string(self.scratch.path().join("log")).unwrap_or_default();
            assert!(!self.proxy.has_ended(), "kube-proxy ended: {log}");
            assert!(began.elapsed() < PATIENCE, "kube-proxy writes no rules: {log}");
        }
        for round in ["before", "after"] {
            let seen = |from: &NetNs, to: &str, port: u16, server: &UdpSocket| {
                let seen = asked(from, to, port, server);
                seen.unwrap_or_else(|| panic!("no answer from {to}, {round}")).to_string()
            };
            let [(_, own), (_, remote), (_, host)] = &servers;
            assert_eq!(seen(other_pod, SELF, 53, own), OTHER_POD, "a pod through a Service");
            assert_ne!(seen(pod, SELF, 53, own), POD, "itself through its Service");
            assert_eq!(seen(pod, REMOTE, 53, remote), POD, "a pod on another node");
            assert_eq!(seen(pod, HOST, 53, host), NODE, "a node behind a tunnel, by a Service");
            assert_eq!(seen(pod, OTHER_NODE, 9000, host), NODE, "the same without one");
            assert_eq!(seen(pod, "203.0.113.9", 9000, &outside), NODE, "outside of the cluster");
            assert_eq!(seen(&node, REMOTE, 53, remote), NODE, "the node itself");
            // The NodePort: kube-proxy hides where it comes from.
            assert_eq!(seen(&self.outside, NODE, NODE_PORT, own), NODE, "a NodePort");
            protect(&firewall);
        }
    }
}

/// Brings our table in order, as the agent does at its start. Nothing of kube-proxy's is in the way.
fn protect(firewall: &Firewall) {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
    runtime.expect("a runtime").block_on(async {
        let mut keeper = FirewallKeeper::open().expect("a keeper");
        keeper.set(firewall.clone());
        let pass = keeper.apply(Instant::now()).await;
        assert_eq!((pass.failed, keeper.problems()), (0, Vec::new()));
    });
}

/// Asks once; the address that the server sees, if it hears of it and its answer comes back from where
/// the question went.
fn asked(from: &NetNs, to: &str, port: u16, server: &UdpSocket) -> Option<IpAddr> {
    within(from, || {
        let client = bind("0.0.0.0:0");
        client.connect((to, port)).expect("a route");
        client.send(b"question").ok()?;
        let mut buffer = [0; 64];
        // What an earlier question has left is not this one's.
        let (_, source) = server.recv_from(&mut buffer).ok()?;
        server.send_to(b"answer", source).expect("sent");
        (client.recv(&mut buffer).ok()? == b"answer".len()).then(|| source.ip())
    })
}

fn services(api: &ApiServer) {
    let node = json!({
        "metadata": {"name": "n1"},
        "status": {"addresses": [{"type": "InternalIP", "address": NODE}]},
    });
    api.create("nodes", None, node.clone()).expect("a Node");
    api.patch_status("nodes", None, "n1", &node).expect("its address");
    let endpoints =
        [("self", SELF, POD), ("remote", REMOTE, "10.244.9.9"), ("host", HOST, OTHER_NODE)];
    for (name, address, endpoint) in endpoints {
        let port = |number: u16| json!({"name": "dns", "protocol": "UDP", "port": number});
        let mut service = json!({
            "metadata": {"name": name, "namespace": "default"},
            "spec": {
                "type": "ClusterIP", "clusterIP": address, "clusterIPs": [address],
                "ipFamilies": ["IPv4"], "ipFamilyPolicy": "SingleStack",
                "internalTrafficPolicy": "Cluster", "sessionAffinity": "None",
                "ports": [{"name": "dns", "protocol": "UDP", "port": 53, "targetPort": 9000}],
            },
        });
        if name == "self" {
            service["spec"]["type"] = "NodePort".into();
            service["spec"]["externalTrafficPolicy"] = "Cluster".into();
            service["spec"]["ports"][0]["nodePort"] = NODE_PORT.into();
        }
        let slice: Value = json!({
            "metadata": {
                "name": name, "namespace": "default",
                "labels": {"kubernetes.io/service-name": name},
            },
            "addressType": "IPv4",
            "ports": [port(9000)],
            "endpoints": [{
                "addresses": [endpoint],
                "conditions": {"ready": true, "serving": true, "terminating": false},
                "nodeName": if name == "self" { "n1" } else { "n2" },
            }],
        });
        api.create("services", Some("default"), service).expect("a Service");
        api.create("endpointslices.discovery.k8s.io", Some("default"), slice).expect("a slice");
    }
}

fn kube_proxy(mode: &str, server: &str, scratch: &Scratch) -> Process {
    let kubeconfig = scratch.path().join("kubeconfig");
    let text = json!({
        "apiVersion": "v1", "kind": "Config", "current-context": "c",
        "clusters": [{"name": "c", "cluster": {"server": server}}],
        "contexts": [{"name": "c", "context": {"cluster": "c", "user": "u"}}],
        "users": [{"name": "u", "user": {}}],
    });
    std::fs::write(&kubeconfig, text.to_string()).expect("a kubeconfig");
    let arguments = [
        format!("--kubeconfig={}", kubeconfig.display()),
        format!("--proxy-mode={mode}"),
        "--kube-api-content-type=application/json".into(),
        "--hostname-override=n1".into(),
        format!("--bind-address={NODE}"),
        "--cluster-cidr=10.244.0.0/16".into(),
        "--healthz-bind-address=127.0.0.1:10256".into(),
        "--metrics-bind-address=127.0.0.1:10249".into(),
        // The machine's, which are not this namespace's to set.
        "--conntrack-max-per-core=0".into(),
        "--conntrack-min=0".into(),
    ];
    Process::start(&program(), &arguments, &scratch.path().join("log"))
}

/// kube-proxy.
fn program() -> PathBuf {
    let directory = std::env::var_os(IN_MACHINE).map_or_else(programs, PathBuf::from);
    directory.join("kube-proxy")
}

fn bind(address: &str) -> UdpSocket {
    let socket = UdpSocket::bind(address).unwrap_or_else(|error| panic!("{address}: {error}"));
    socket.set_read_timeout(Some(Duration::from_secs(1))).expect("a timeout");
    socket
}

/// Moves the calling thread into a new network namespace.
fn unshare() {
    // SAFETY: unshare takes no memory; it concerns this thread alone.
    let result = unsafe { libc::unshare(libc::CLONE_NEWNET) };
    let error = std::io::Error::last_os_error();
    assert_eq!(result, 0, "network namespaces need root: run the tests as root ({error})");
}

/// A network namespace that goes with its last descriptor.
fn fresh() -> NetNs {
    let made = std::thread::spawn(|| {
        unshare();
        NetNs::current().expect("this namespace")
    });
    made.join().expect("a namespace")
}

fn within<T: Send>(netns: &NetNs, work: impl FnOnce() -> T + Send) -> T {
    netns.run(work).expect("the namespace can be entered")
}

fn run(command: &str) {
    let words: Vec<&str> = command.split(' ').collect();
    let output = Command::new(words[0]).args(&words[1..]).output().expect("a program");
    assert!(output.status.success(), "{command}: {}", String::from_utf8_lossy(&output.stderr));
}

const NODE: &str = "192.0.2.1";
const OTHER_NODE: &str = "192.0.2.2";
const POD: &str = "10.244.0.5";
const OTHER_POD: &str = "10.244.0.6";
/// Services: of the pod, of a pod on another node, of that node.
const SELF: &str = "10.96.0.10";
const REMOTE: &str = "10.96.0.11";
const HOST: &str = "10.96.0.12";
const NODE_PORT: u16 = 30_053;
/// The directory with kube-proxy, in the virtual machine.
const IN_MACHINE: &str = "CAIRN_KUBE_PROXY_DIR";
const PATIENCE: Duration = Duration::from_secs(120);
