//! Our plugin with Debian's of the same list behind it, called by libcni, and beside another plugin's pods.

use std::io::{Read, Write};
use std::net::{IpAddr, SocketAddr, TcpStream};
use std::time::{Duration, Instant, SystemTime};

use cairn_cni::served::{AWAY_MAX, READY_FILE};
use cairn_kernel::NetNs;
use cairn_kernel::pod::{host_interface_name, is_host_interface_name};
use cairn_tests::link::wait_for;
use cairn_tests::runtime::{
    Attachment, Node, Pool, Server, Transport, addresses, fresh, on, path_of, pod_routes, run,
};
use serde_json::{Value, json};

#[test]
fn portmap_bandwidth_and_tuning_come_after_ours_in_each_version() {
    let node = node();
    // Debian's 1.1.1 knows no newer one.
    for version in ["0.3.1", "0.4.0", "1.0.0"] {
        let list = node.conflist(version, &others());
        let pods = [fresh(), fresh()];
        let attachments = attachments(&pods, version);
        // One after the other: portmap 1.1.1 fails where two make its first chain at once.
        let added =
            attachments.iter().flat_map(|one| node.plug("add", &list, std::slice::from_ref(one)));
        let results: Vec<Value> = added.map(|answer| answer.added()).collect();
        for ((pod, attachment), result) in pods.iter().zip(&attachments).zip(&results) {
            assert_eq!(result["cniVersion"], version);
            let mut told: Vec<IpAddr> =
                result["ips"].as_array().into_iter().flatten().map(address_of).collect();
            told.sort_unstable();
            assert_eq!(told, addresses(pod), "{result}");
            assert_eq!(told.len(), 2, "one of each family: {result}");
            assert!(on(pod, || run("ip link show eth0")).contains(MAC), "tuning's");
            let host = host_interface_name(&attachment.container_id, "eth0");
            let shaped = on(&node.netns, || run(&format!("tc qdisc show dev {host}")));
            assert!(shaped.contains("qdisc tbf"), "bandwidth's: {shaped}");
        }
        // With the address that tuning gave both of them; each is alone on its link.
        let [one, other] = &pods;
        everybody_reaches_everybody(&[&node.netns, one, other], version);
        check(&node, &list, version, &attachments, one);
        for answer in node.plug("del", &list, &attachments) {
            assert_eq!((answer.error.as_str(), answer.code), ("", 0), "{version}");
        }
        // Of what is gone, too.
        for answer in node.plug("del", &list, &attachments) {
            assert_eq!((answer.error.as_str(), answer.code), ("", 0), "{version}, again");
        }
        nothing_is_left(&node);
    }
}

/// CHECK of both finds nothing, although tuning has changed the addresses of the links, and names what the first
/// pod then loses.
fn check(node: &Node, list: &Value, version: &str, attachments: &[Attachment], first: &NetNs) {
    // portmap 1.1.1 looks for its rules of IPv4 among those of IPv6: it is told of no ports.
    let mut attachments = attachments.to_vec();
    for attachment in &mut attachments {
        attachment.capabilities["portMappings"] = json!([]);
    }
    let answers = || node.plug("check", list, &attachments);
    if version == "0.3.1" {
        assert!(answers().iter().all(|answer| answer.error.contains("does not support the CHECK")));
        return;
    }
    for answer in answers() {
        assert_eq!((answer.error.as_str(), answer.code), ("", 0), "{version}");
    }
    on(first, || run("ip route del default"));
    let errors: Vec<String> = answers().into_iter().map(|answer| answer.error).collect();
    let lost = "no default route via 169.254.1.1";
    assert!(errors[0].contains(lost) && errors[1].is_empty(), "{errors:#?}");
}

/// What a runtime has forgotten, while its network namespace is still there.
#[test]
fn gc_ends_what_no_runtime_knows_and_nothing_else() {
    let node = node();
    let list = node.conflist("1.1.0", &[]);
    let mut another = list.clone();
    another["name"] = "another".into();
    let pods = [fresh(), fresh(), fresh(), fresh()];
    let attachment = |number: usize, name: &str| Attachment::new(name, path_of(&pods[number]));
    let kept = attachment(0, "kept");
    let add = |list: &Value, attachment: Attachment| {
        for answer in node.plug("add", list, &[attachment]) {
            let _ = answer.added();
        }
        // Nor does libcni know of it, which would call DEL.
        for file in std::fs::read_dir(node.path("cni-cache/results")).expect("its memory") {
            std::fs::remove_file(file.expect("a file").path()).expect("forgotten");
        }
    };
    let collect = || {
        for answer in node.plug("gc", &list, std::slice::from_ref(&kept)) {
            assert_eq!((answer.error.as_str(), answer.code), ("", 0));
        }
        pods.each_ref().map(|netns| addresses(netns).len())
    };
    add(&list, kept.clone());
    add(&list, attachment(1, "lost"));
    add(&another, attachment(2, "of-another-network"));
    // What is younger than a minute may be what its runtime has not yet noted.
    assert_eq!(collect(), [2, 2, 2, 0]);
    std::thread::sleep(SPARED + Duration::from_secs(1));
    add(&list, attachment(3, "young"));
    assert_eq!(collect(), [2, 0, 2, 2]);
    wait_for("its addresses are free", || node.used() == 6, || format!("{:#?}", node.blocks()));
}

/// Debian's plugins do not know version 1.1.0, the first with STATUS.
#[test]
fn status_tells_whether_pods_can_start() {
    let mut node = node();
    let list = node.conflist("1.1.0", &[]);
    until_ready(&node, &list);
    node.kill_agent();
    let upgrading = node.plug("status", &list, &[]);
    assert_eq!(upgrading[0].error, "", "it may be away for a while");
    let ready = std::fs::File::options().write(true).open(node.run_dir().join(READY_FILE));
    let before = SystemTime::now() - AWAY_MAX - Duration::from_secs(1);
    ready.and_then(|file| file.set_modified(before)).expect("a node that was ready");
    let away = node.plug("status", &list, &[]);
    assert_eq!(away[0].code, 50, "the code for a plugin that is not available: {away:?}");
    node.start_agent_and_wait(POOLS.len());
    until_ready(&node, &list);
}

fn until_ready(node: &Node, list: &Value) {
    let status = || node.plug("status", list, &[]);
    let ready = || status().iter().all(|answer| answer.error.is_empty());
    wait_for("it is ready", ready, || format!("{:?}", status()));
}

#[test]
fn bandwidth_limits_what_a_pod_receives() {
    let node = node();
    let list = node.conflist("1.0.0", &others());
    let pods = [fresh()];
    let attachments = attachments(&pods, "limited");
    for answer in node.plug("add", &list, &attachments) {
        let _ = answer.added();
    }
    let address = addresses(&pods[0]).into_iter().find(IpAddr::is_ipv4).expect("IPv4");
    let listener = on(&pods[0], || std::net::TcpListener::bind((address, PORT)).expect("a port"));
    let sender = on(&node.netns, || TcpStream::connect((address, PORT)).expect("a way"));
    let (mut receiver, _) = listener.accept().expect("a connection");
    let began = Instant::now();
    std::thread::scope(|scope| {
        scope.spawn(|| {
            // An error is the receiver that has failed.
            let _ = (&sender).write_all(&vec![0; SENT_BYTES]);
            let _ = sender.shutdown(std::net::Shutdown::Write);
        });
        let mut buffer = Vec::new();
        assert_eq!(receiver.read_to_end(&mut buffer).expect("received"), SENT_BYTES);
    });
    let took = began.elapsed();
    let least = Duration::from_secs_f64((SENT_BYTES * 8 - BURST_BITS) as f64 / RATE_BITS as f64);
    assert!(took > least.mul_f64(0.8), "{SENT_BYTES} bytes within {took:?}, not {least:?}");
}

/// A pool beside the other plugin's range, as docs/guide/ipam.md has it.
#[test]
fn pods_of_ptp_and_ours_reach_each_other_until_the_last_is_replaced() {
    let mut node = Node::new(&POOLS);
    let stock = json!({"cniVersion": "1.0.0", "name": "stock", "plugins": [{
        "type": "ptp",
        "ipam": {
            "type": "host-local",
            "dataDir": node.path("host-local"),
            "ranges": [[{"subnet": "10.99.0.0/24"}], [{"subnet": "fd00:10:99::/64"}]],
            "routes": [{"dst": "0.0.0.0/0"}, {"dst": "::/0"}],
        },
    }]});
    let old = [fresh(), fresh()];
    let old_attachments = attachments(&old, "old");
    for answer in node.plug("add", &stock, &old_attachments) {
        let _ = answer.added();
    }
    // ptp lets the kernel look for duplicates of the gateway's address, which answers only then.
    let tentative = || on(&node.netns, || run("ip -6 address show tentative"));
    wait_for("its gateways answer", || tentative().is_empty(), tentative);
    everybody_reaches_everybody(&[&node.netns, &old[0], &old[1]], "before");
    node.start_agent_and_wait(POOLS.len());
    everybody_reaches_everybody(&[&node.netns, &old[0], &old[1]], "with an agent");
    let ours = node.conflist("1.0.0", &[]);
    let new = [fresh(), fresh()];
    let new_attachments = attachments(&new, "new");
    for answer in node.plug("add", &ours, &new_attachments) {
        let _ = answer.added();
    }
    everybody_reaches_everybody(&[&node.netns, &old[0], &old[1], &new[0], &new[1]], "side by side");
    // One after the other, as a rollout replaces them.
    let mut replaced = Vec::new();
    for (pod, attachment) in old.iter().zip(&old_attachments) {
        for answer in node.plug("del", &stock, std::slice::from_ref(attachment)) {
            assert_eq!(answer.error, "");
        }
        assert_eq!(addresses(pod), Vec::<IpAddr>::new());
        let netns = fresh();
        let attachment =
            Attachment::new(&format!("instead-of-{}", attachment.container_id), path_of(&netns));
        for answer in node.plug("add", &ours, &[attachment]) {
            let _ = answer.added();
        }
        replaced.push(netns);
    }
    everybody_reaches_everybody(
        &[&node.netns, &new[0], &new[1], &replaced[0], &replaced[1]],
        "after",
    );
    let links = node.links();
    let foreign: Vec<_> = links.iter().filter(|name| name.starts_with("veth")).collect();
    assert!(foreign.is_empty(), "the other plugin's: {links:?}");
    wait_for("four pods of two families", || node.used() == 8, || format!("{:#?}", node.blocks()));
}

/// All ask all others, and themselves, at each of their addresses, and are seen under one of their own. What ptp
/// gives the node once for each of its pods is left out.
fn everybody_reaches_everybody(places: &[&NetNs], when: &str) {
    let servers: Vec<_> =
        places.iter().map(|netns| (Server::start(netns, PORT), addresses(netns))).collect();
    for (from, own) in places.iter().zip(servers.iter().map(|(_, own)| own)) {
        for (server, to) in &servers {
            let asked =
                to.iter().filter(|address| !PTP_GATEWAYS.contains(&address.to_string().as_str()));
            // Of several addresses a UDP server that listens on all answers from one of the kernel's choice.
            let transports = if to.len() > 2 { &[Transport::Tcp][..] } else { &Transport::ALL };
            for (to, transport) in asked.flat_map(|to| transports.iter().map(|t| (*to, *t))) {
                let seen = server.asked(transport, from, None, SocketAddr::new(to, PORT));
                let seen = seen.unwrap_or_else(|error| panic!("{when}, from {own:?}: {error}"));
                assert!(own.contains(&seen), "{when}: {own:?} seen as {seen}");
            }
        }
    }
}

fn nothing_is_left(node: &Node) {
    let left = || {
        let links = node.links().into_iter();
        // What bandwidth makes for a pod begins with bwp.
        let links: Vec<_> =
            links.filter(|name| is_host_interface_name(name) || name.starts_with("bwp")).collect();
        let rules = on(&node.netns, || run("iptables-save") + &run("ip6tables-save"));
        let rules: Vec<String> =
            rules.lines().filter(|line| line.contains("CNI-DN")).map(str::to_owned).collect();
        (links, rules, pod_routes(&node.netns), node.kept_names(), node.used())
    };
    let none = (vec![], vec![], vec![], vec![], 0);
    wait_for("nothing is left", || left() == none, || format!("{:#?}", left()));
}

fn node() -> Node {
    let mut node = Node::new(&POOLS);
    node.start_agent_and_wait(POOLS.len());
    node
}

/// The plugins behind ours, as an operator adds them.
fn others() -> [Value; 3] {
    [
        json!({"type": "portmap", "capabilities": {"portMappings": true}, "snat": true}),
        json!({"type": "bandwidth", "capabilities": {"bandwidth": true}}),
        json!({"type": "tuning", "mac": MAC}),
    ]
}

/// `eth0` of each of these pods, with a limit, and a port of the host for each.
fn attachments(pods: &[NetNs], name: &str) -> Vec<Attachment> {
    let attachment = |(number, netns): (usize, &NetNs)| {
        let limit = json!({
            "ingressRate": RATE_BITS, "ingressBurst": BURST_BITS,
            "egressRate": RATE_BITS, "egressBurst": BURST_BITS,
        });
        let port = json!([{"hostPort": 8_000 + number, "containerPort": PORT, "protocol": "tcp"}]);
        Attachment::new(&format!("{name}-{number}"), path_of(netns))
            .with("bandwidth", limit)
            .with("portMappings", port)
    };
    pods.iter().enumerate().map(attachment).collect()
}

/// The address of one of a result's `ips`.
fn address_of(ip: &Value) -> IpAddr {
    let text = ip["address"].as_str().expect("an address");
    text.split('/').next().and_then(|address| address.parse().ok()).expect("an address")
}

const POOLS: [Pool<'static>; 2] = [
    Pool { name: "default", cidr: "10.244.0.0/16", block_size: 26 },
    Pool { name: "default6", cidr: "fd00:10:244::/48", block_size: 122 },
];
/// What ptp and host-local give the node.
const PTP_GATEWAYS: [&str; 2] = ["10.99.0.1", "fd00:10:99::1"];
/// For how long GC leaves what was added.
const SPARED: Duration = Duration::from_secs(60);
const PORT: u16 = 9_000;
const MAC: &str = "02:00:00:00:00:07";
const RATE_BITS: usize = 8_000_000;
const BURST_BITS: usize = 800_000;
const SENT_BYTES: usize = 1_500_000;
