//! `cairn cleanup` in a network namespace that also holds what others have.

use std::fs;
use std::net::IpAddr;
use std::os::unix::net::UnixListener;
use std::path::PathBuf;
use std::process::{Command, Output};
use std::time::Instant;

use cairn_agent::pods::Lock;
use cairn_kernel::firewall::{Firewall, FirewallKeeper};
use cairn_kernel::pod::{self, PodSpec};
use cairn_kernel::{NetNs, Netlink};

/// A node of one test: a namespace, and a directory with what is on its disk.
struct Node {
    name: String,
    netns: NetNs,
    disk: PathBuf,
}

impl Node {
    fn create(name: &str) -> Node {
        assert!(
            rustix::process::geteuid().is_root(),
            "this test makes network namespaces: run it as root"
        );
        let name = format!("cleanup-{name}-{}", std::process::id());
        let netns = NetNs::create(&name).unwrap();
        let disk = std::env::temp_dir().join(&name);
        fs::create_dir_all(disk.join("run")).unwrap();
        Node { name, netns, disk }
    }

    fn sh(&self, command: &str) -> String {
        let run = || Command::new("sh").args(["-ec", command]).output().unwrap();
        let output = self.netns.run(run).unwrap();
        let errors = String::from_utf8_lossy(&output.stderr);
        assert!(output.status.success(), "{command}: {errors}");
        String::from_utf8(output.stdout).unwrap()
    }

    /// What of the kernel's a person would compare, without what changes by itself.
    fn kernel(&self) -> String {
        self.sh("ip -d link; ip address | grep -v valid_lft; ip nexthop
             ip -N route show table all; ip -N -6 route show table all
             nft -s list ruleset; iptables-legacy -S; sysctl -a 2>/dev/null | grep forwarding")
    }

    fn cleanup(&self, arguments: &[&str]) -> Output {
        let disk = |name: &str| self.disk.join(name).into_os_string();
        let run = || {
            Command::new(env!("CARGO_BIN_EXE_cairn"))
                .arg("cleanup")
                .args(["--run-dir".into(), disk("run")])
                .args(["--cni-conf".into(), disk("10-cairn.conflist")])
                .args(["--cni-plugin".into(), disk("cairn-cni")])
                .args(arguments)
                .output()
                .unwrap()
        };
        self.netns.run(run).unwrap()
    }

    /// Runs it, which must succeed, and returns its lines.
    fn lines(&self, arguments: &[&str]) -> Vec<String> {
        let output = self.cleanup(arguments);
        let errors = String::from_utf8_lossy(&output.stderr);
        assert!(output.status.success() && errors.is_empty(), "{arguments:?}: {errors}");
        String::from_utf8(output.stdout).unwrap().lines().map(str::to_owned).collect()
    }

    /// What others have, some of it almost like ours.
    fn furnish(&self) {
        self.sh(
            "sysctl -qw net.ipv6.conf.all.accept_dad=0 net.ipv6.conf.default.accept_dad=0
             ip link add uplink type veth peer name far; ip link set uplink up; ip link set far up
             ip address add 192.0.2.1/24 dev uplink; ip -6 address add 2001:db8::1/64 dev uplink nodad
             ip route add 10.9.0.0/24 via 192.0.2.9 proto static metric 198
             ip route add 10.9.1.0/24 via 192.0.2.9 proto 197
             ip route add blackhole 10.9.2.0/24 proto static metric 4198
             ip -6 route add fd09::/64 via 2001:db8::9 proto static metric 198
             ip nexthop add id 7 via 192.0.2.9 dev uplink proto static
             ip nexthop add id 0x43410001 via 192.0.2.9 dev uplink proto static
             ip nexthop add id 0x43420001 via 192.0.2.9 dev uplink proto static
             ip route add 10.9.3.0/24 nhid 7 proto static
             ip link add cairn.ipip type bridge
             ip link add cairn0123456789 type bridge; ip link add cairnbr type veth peer name other
             ip link add vxlan.calico type vxlan id 4096 dstport 4789 local 192.0.2.1
             nft add table inet other; nft add table ip cairn
             iptables-nft -P FORWARD DROP; iptables-nft -A FORWARD -i br0 -j ACCEPT
             iptables-legacy -P FORWARD DROP; iptables-legacy -A FORWARD -i br0 -j ACCEPT
             sysctl -qw net.ipv4.ip_forward=1 net.ipv6.conf.all.forwarding=1",
        );
    }

    /// What an agent leaves, as its own code makes it, and its tunnels and routes.
    fn inhabit(&self, pod_netns: &NetNs) {
        self.sh("ip link add cairn.vxlan type vxlan id 198 dstport 4798 local 192.0.2.1 nolearning
             ip link set cairn.vxlan up alias cairn.network/tunnel
             ip address add 10.244.0.1/32 dev cairn.vxlan
             ip nexthop add id 0x43410000 via 192.0.2.2 dev cairn.vxlan onlink proto 222
             ip route add 10.244.7.0/26 nhid 0x43410000 proto 222 metric 198
             ip nexthop add id 0x43420000 via 192.0.2.3 dev uplink proto 222
             ip nexthop add id 0x43428000 group 0x43420000 proto 222
             ip route add 10.244.9.0/26 nhid 0x43428000 proto 222 metric 198
             ip route add 10.244.8.0/26 via 192.0.2.3 proto 222 metric 198
             ip route add 10.244.8.0/26 via 192.0.2.3 proto 222 metric 198 table 77
             ip -6 route add fd00:8::/122 via 2001:db8::3 proto 222 metric 198
             ip route add blackhole 10.244.0.0/26 proto 222 metric 4198");
        let address = |text: &str| text.parse::<IpAddr>().unwrap();
        let spec = PodSpec {
            container_id: "c".into(),
            ifname: "eth0".into(),
            pod_uid: None,
            network: "cairn".into(),
            addresses: vec![address("10.244.0.5"), address("fd00::5")],
            mac: None,
            blocks: vec!["10.244.0.0/26".parse().unwrap(), "fd00::/122".parse().unwrap()],
            mtu: 1450,
            node_addresses: vec![address("192.0.2.1")],
        };
        let netns = NetNs::open(&self.name).unwrap();
        self.netns
            .run(|| {
                pod::attach(&mut Netlink::open().unwrap(), pod_netns, &spec).unwrap();
                let runtime =
                    tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
                runtime.block_on(async {
                    let mut keeper = FirewallKeeper::open_in(netns).unwrap();
                    keeper.set(Firewall::new(pod::HOST_INTERFACE_PREFIX));
                    let pass = keeper.apply(Instant::now()).await;
                    assert_eq!((pass.writes, pass.failed), (3, 0), "{:?}", keeper.problems());
                });
            })
            .unwrap();
        fs::write(self.disk.join("run/claims.json"), "{}").unwrap();
        fs::write(self.disk.join("run/ready.json"), "{}").unwrap();
        fs::write(self.disk.join("cairn-cni"), "").unwrap();
        fs::write(self.disk.join("cairn-portmap"), "").unwrap();
        fs::write(
            self.disk.join("10-cairn.conflist"),
            r#"{"name": "cairn", "plugins": [{"type": "cairn-cni"}]}"#,
        )
        .unwrap();
    }
}

impl Drop for Node {
    fn drop(&mut self) {
        let _ = NetNs::delete(&self.name);
        let _ = fs::remove_dir_all(&self.disk);
    }
}

#[test]
fn what_is_ours_goes_and_what_others_have_stays() {
    let node = Node::create("all");
    let pod_name = format!("cleanup-pod-{}", std::process::id());
    let pod_netns = NetNs::create(&pod_name).unwrap();
    node.furnish();
    let before = node.kernel();
    node.inhabit(&pod_netns);
    NetNs::delete(&pod_name).unwrap();
    let inhabited = node.kernel();
    let host_ifname = pod::host_interface_name("c", "eth0");
    let conflist =
        format!("network configuration {}", node.disk.join("10-cairn.conflist").display());
    let ready = format!("mark of a ready node {}", node.disk.join("run/ready.json").display());
    let network = [
        conflist.as_str(),
        ready.as_str(),
        "route 10.244.7.0/26 metric 198 proto 222",
        "route 10.244.8.0/26 metric 198 proto 222",
        "route 10.244.8.0/26 metric 198 table 77 proto 222",
        "blackhole route 10.244.0.0/26 metric 4198 proto 222",
        "route fd00:8::/122 metric 198 proto 222",
        "route 10.244.9.0/26 metric 198 proto 222",
        "next-hop object 1128333312",
        "next-hop object 1128398848",
        "next-hop object 1128431616",
        "tunnel device cairn.vxlan",
        "nftables table inet cairn",
        "accepting rules in the chain FORWARD of the nftables table ip filter",
        "accepting rules in the chain FORWARD of iptables-legacy",
    ];
    let expected = |verb: &str| {
        let mut lines: Vec<String> =
            network.iter().map(|thing| format!("{verb} {thing}")).collect();
        lines.push("left: 1 interfaces of pods or routes to them (--pods removes them)".into());
        lines.sort();
        lines
    };
    let sorted = |mut lines: Vec<String>| {
        lines.sort();
        lines
    };
    assert_eq!(sorted(node.lines(&["--dry-run"])), expected("would remove"));
    assert_eq!(node.kernel(), inhabited, "a dry run changes nothing");
    assert!(node.disk.join("10-cairn.conflist").exists());

    assert_eq!(sorted(node.lines(&[])), expected("removed"));
    assert!(node.sh("ip -N route show proto 223").contains("10.244.0.5"), "the pod stays");
    assert!(node.disk.join("run/claims.json").exists());

    let rest = [
        format!("pod interface {host_ifname} of 10.244.0.5, fd00::5"),
        format!("CNI plugin {}", node.disk.join("cairn-cni").display()),
        format!("CNI plugin {}", node.disk.join("cairn-portmap").display()),
        format!("run directory {}", node.disk.join("run").display()),
    ];
    let would = rest.each_ref().map(|thing| format!("would remove {thing}"));
    assert_eq!(node.lines(&["--pods", "--dry-run"]), would);
    assert!(node.disk.join("run/claims.json").exists());
    assert_eq!(node.lines(&["--pods"]), rest.map(|thing| format!("removed {thing}")));
    assert_eq!(node.kernel(), before);
    assert!(fs::read_dir(&node.disk).unwrap().next().is_none(), "and nothing on the disk");
    assert_eq!(node.lines(&["--pods"]), ["nothing of Cairn is left here"]);
}

#[test]
fn a_network_configuration_of_others_and_another_protocol_stay() {
    let node = Node::create("others");
    fs::write(node.disk.join("10-cairn.conflist"), r#"{"plugins": [{"type": "calico"}]}"#).unwrap();
    node.sh(
        "ip link add uplink type bridge; ip link set uplink up; ip address add 192.0.2.1/24 dev uplink
         ip route add 10.244.8.0/26 via 192.0.2.3 proto 150 metric 198",
    );
    assert_eq!(node.lines(&[]), ["nothing of Cairn is left here"]);
    assert_eq!(
        node.lines(&["--route-protocol", "150"]),
        ["removed route 10.244.8.0/26 metric 198 proto 150"]
    );
    assert!(node.disk.join("10-cairn.conflist").exists());
    // What an agent has written down since the boot, and nothing else.
    node.sh("ip route add 10.244.8.0/26 via 192.0.2.3 proto 150 metric 300 table 77
         ip route add 10.244.9.0/26 via 192.0.2.3 proto 222 metric 198");
    let boot_id = cairn_agent::ipam::boot_id().unwrap();
    let document = |boot_id: &str| {
        let document =
            serde_json::json!({"version": 1, "bootId": boot_id, "protocols": [150, 151]});
        fs::write(node.disk.join("run/routes.json"), document.to_string()).unwrap();
    };
    document(&boot_id);
    assert_eq!(node.lines(&[]), ["removed route 10.244.8.0/26 metric 300 table 77 proto 150"]);
    document("another boot");
    assert_eq!(node.lines(&[]), ["removed route 10.244.9.0/26 metric 198 proto 222"]);
    // The kernel's own, an administrator's, a pod's, BIRD's: never a number of ours.
    for protocol in ["2", "4", "223", "12"] {
        assert!(!node.cleanup(&["--route-protocol", protocol]).status.success(), "{protocol}");
    }
}

#[test]
fn beside_a_daemon_nothing_is_removed() {
    let node = Node::create("beside");
    node.sh("ip route add blackhole 10.244.0.0/26 proto 222 metric 4198");
    let run_dir = node.disk.join("run");
    let refused = |word: &str| {
        let output = node.cleanup(&[]);
        assert!(!output.status.success());
        let errors = String::from_utf8_lossy(&output.stderr).into_owned();
        assert!(errors.contains(word), "{errors}");
        assert!(node.sh("ip -N route").contains("10.244.0.0/26"));
    };
    let lock = Lock::take(&run_dir).unwrap();
    refused("another agent");
    drop(lock);
    let listener = UnixListener::bind(run_dir.join("cairn.sock")).unwrap();
    refused("an agent or speaker answers");
    drop(listener);
    assert_eq!(node.lines(&[]).len(), 1);
}
