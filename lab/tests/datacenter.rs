//! The data centre, its probes, flows and processes on real kernels, without agents. Needs root.

use std::error::Error as StdError;
use std::net::{IpAddr, UdpSocket};
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::process::Command;
use std::time::Duration;

use cairn_kernel::link::{self, DuplicateDetection};
use cairn_kernel::{NetNs, Netlink};
use cairn_lab::Error;
use cairn_lab::datacenter::fabric::{self, Passed};
use cairn_lab::datacenter::{DataCenter, Layout};
use cairn_lab::flow::Flow;
use cairn_lab::options::{AsnPlan, Encap, Families};
use cairn_lab::pod::Plugin;
use cairn_lab::probe::{self, Endpoint, Probe, Protocol};
use cairn_lab::process::Process;
use cairn_lab::workspace::Workspace;
use ipnet::IpNet;

type Outcome = Result<(), Box<dyn StdError>>;

/// A data centre whose names carry this process' id, so that tests do not meet.
fn data_center(name: &str) -> Result<DataCenter, Error> {
    let name = format!("dc{name}{}", std::process::id());
    DataCenter::build(Layout::new(&name, 3, AsnPlan::Rack, Families::Dual))
}

fn endpoints(centre: &DataCenter) -> Vec<Endpoint<'_>> {
    (centre.layout.nodes())
        .filter_map(|node| {
            let netns = &centre.machine(&node.name())?.netns;
            Some(Endpoint { name: node.name(), netns, addresses: node.addresses().to_vec() })
        })
        .collect()
}

fn probes(endpoints: &[Endpoint<'_>], from: usize, to: usize) -> Vec<Probe> {
    let both = [Protocol::Icmp, Protocol::Tcp];
    both.into_iter()
        .flat_map(|protocol| {
            let probe =
                move |at: &IpAddr| Probe { from, to, protocol, address: *at, seen_as: None };
            endpoints[to].addresses.iter().map(probe)
        })
        .collect()
}

#[test]
fn neighbours_reach_each_other_and_racks_do_not_without_routers() -> Outcome {
    let centre = data_center("a")?;
    let endpoints = endpoints(&centre);
    let same_rack = [probes(&endpoints, 0, 1), probes(&endpoints, 1, 0)].concat();
    let outcomes = probe::run(&endpoints, &same_rack, probe::WITHIN)?;
    assert_eq!(outcomes.len(), 8);
    assert!(outcomes.iter().all(|one| one.failure.is_none()), "{outcomes:?}");

    let other_rack = probes(&endpoints, 0, 2);
    let outcomes = probe::run(&endpoints, &other_rack, probe::WITHIN)?;
    assert_eq!(outcomes.len(), 4);
    assert!(outcomes.iter().all(|one| one.failure.is_some() && one.attempts > 1), "{outcomes:?}");
    Ok(())
}

#[test]
fn a_sender_seen_under_another_address_is_a_failure() -> Outcome {
    let centre = data_center("b")?;
    let real = endpoints(&centre);
    let target = real[1].addresses[0];
    // What address translation looks like: the receiver sees another address than the sender's own.
    let claimed = vec!["10.99.0.1".parse()?];
    let endpoints = [
        Endpoint { name: "n1".into(), netns: real[0].netns, addresses: claimed },
        Endpoint { name: "n2".into(), netns: real[1].netns, addresses: vec![target] },
    ];
    let both = [Protocol::Icmp, Protocol::Tcp];
    let seen = |seen_as: Option<IpAddr>| {
        let probe = |protocol| Probe { from: 0, to: 1, protocol, address: target, seen_as };
        probe::run(&endpoints, &both.map(probe), probe::WITHIN)
    };
    let outcomes = seen(None)?;
    assert_eq!(outcomes.len(), 2);
    for outcome in outcomes {
        let failure = outcome.failure.unwrap_or_default();
        assert!(failure.contains("172.31.1.11"), "{:?}: {failure}", outcome.probe);
    }
    // Unless it must be seen so.
    let outcomes = seen(Some("172.31.1.11".parse()?))?;
    assert_eq!(outcomes.len(), 2);
    assert!(outcomes.iter().all(|one| one.failure.is_none()), "{outcomes:?}");
    Ok(())
}

/// Neighbours with addresses of pods that no router knows; what is seen of one packet of each kind.
fn neighbours_with_pods(name: &str, encap: Encap) -> Result<(bool, Passed), Box<dyn StdError>> {
    let name = format!("dc{name}{}", std::process::id());
    let layout = Layout::new(&name, 3, AsnPlan::Single, Families::Dual).with_encap(encap);
    let centre = DataCenter::build(layout)?;
    fabric::guard(&centre)?;
    let mut endpoints = endpoints(&centre);
    endpoints.truncate(2);
    for (endpoint, pod) in endpoints.iter_mut().zip(["10.244.0.1/16", "10.244.0.2/16"]) {
        let mut netlink = Netlink::open_in(endpoint.netns)?;
        let uplink = link::find(&mut netlink, "eth0")?.ok_or("no uplink")?;
        let pod: IpNet = pod.parse()?;
        link::add_address(&mut netlink, uplink.index, pod, DuplicateDetection::Skip)?;
        endpoint.addresses.insert(0, pod.addr());
    }
    let (sender, to) = (endpoints[0].netns, endpoints[1].addresses[1]);
    // What VXLAN looks like from outside.
    sender.run(|| UdpSocket::bind("0.0.0.0:0")?.send_to(&[0; 50], (to, 4798)))??;
    let probe = Probe {
        from: 0,
        to: 1,
        protocol: Protocol::Tcp,
        address: endpoints[1].addresses[0],
        seen_as: None,
    };
    let passes = probe::run(&endpoints, &[probe], Duration::from_secs(2))?
        .iter()
        .all(|one| one.failure.is_none());
    let traffic = fabric::traffic(&centre)?;
    // What is switched is not taken for routed.
    assert_eq!((traffic.spine, traffic.tors), Default::default());
    Ok((passes, traffic.racks))
}

#[test]
fn pods_pass_a_switch_only_where_neighbours_do_without_a_tunnel() -> Outcome {
    let (passes, seen) = neighbours_with_pods("g", Encap::Vxlan)?;
    assert!(!passes && seen.plain > 0, "{seen:?}");
    assert_eq!((seen.vxlan, seen.ipip, seen.fragments), (1, 0, 0));
    let (passes, seen) = neighbours_with_pods("h", Encap::VxlanCrossSubnet)?;
    assert!(passes && seen.plain > 0, "{seen:?}");
    assert_eq!((seen.vxlan, seen.ipip, seen.fragments), (1, 0, 0));
    Ok(())
}

#[test]
fn a_flow_counts_what_a_cut_link_loses() -> Outcome {
    let mut centre = data_center("c")?;
    let nodes: Vec<_> = centre.layout.nodes().cloned().collect();
    let netns = |name: &str| centre.machine(name).map(|machine| &machine.netns);
    let (Some(n1), Some(n2)) = (netns("n1"), netns("n2")) else { return Err("no nodes".into()) };
    let flow = Flow::start(n1, n2, nodes[1].addresses()[0], 1000)?;
    let at = flow.position();
    std::thread::sleep(Duration::from_millis(500));
    let whole = flow.since(at);
    assert_eq!(whole.lost, 0, "{whole}");
    assert!(whole.sent > 250, "{whole}");

    let at = flow.position();
    centre.lose(&nodes[1])?;
    std::thread::sleep(Duration::from_millis(300));
    let cut = flow.since(at);
    assert!(cut.lost > 100 && cut.gap > Duration::from_millis(100), "{cut}");
    assert!(centre.machine("n2").is_none());
    Ok(())
}

#[test]
fn one_name_runs_once_and_clears_what_was_left() -> Outcome {
    let name = format!("dcd{}", std::process::id());
    let left = format!("cairn-{name}-n1");
    drop(NetNs::create(&left)?);
    let first = Workspace::open(&name.parse()?)?;
    assert!(NetNs::open(&left).is_err(), "the namespace of a killed run is still there");
    let second = Workspace::open(&name.parse()?);
    let pid = std::process::id().to_string();
    assert!(
        matches!(&second, Err(Error::AlreadyRunning { pid: running, .. }) if *running == pid),
        "{:?}",
        second.err()
    );
    let (run, user) = (first.run().to_owned(), first.user().to_owned());
    assert!(run.is_dir() && user.is_dir());
    drop(first);
    assert!(!run.exists() && !user.exists());
    drop(Workspace::open(&name.parse()?)?);
    Ok(())
}

#[test]
fn a_process_left_by_a_killed_run_is_ended() -> Outcome {
    let name = format!("dce{}", std::process::id());
    let space = Workspace::open(&name.parse()?)?;
    let mut left = Command::new("sleep").arg("600").spawn()?;
    space.remember(left.id())?;
    // As if this run had been killed: its files stay, only the lock is gone.
    let pids = std::fs::read(space.run().join("pids"))?;
    drop(space);
    std::fs::create_dir_all(Path::new("/run/cairn-lab").join(&name))?;
    std::fs::write(Path::new("/run/cairn-lab").join(&name).join("pids"), pids)?;
    drop(Workspace::open(&name.parse()?)?);
    let status = left.wait()?;
    assert!(!status.success(), "{status}");
    Ok(())
}

#[test]
fn a_process_runs_in_its_namespace_and_its_end_is_told_with_its_log() -> Outcome {
    let name = format!("dcf{}", std::process::id());
    let space = Workspace::open(&name.parse()?)?;
    let namespace = format!("cairn-{name}-n1");
    let netns = NetNs::create(&namespace)?;
    let log = space.logs().join("n1.log");
    let mut command = Command::new("sh");
    command.args(["-c", "readlink /proc/self/ns/net; exec sleep 600"]);
    let mut process = Process::start("n1", command, &netns, &log)?;
    process.check()?;
    let (_, inode) = netns.identity()?;
    let deadline = std::time::Instant::now() + Duration::from_secs(5);
    while std::fs::read_to_string(&log)?.is_empty() && std::time::Instant::now() < deadline {
        std::thread::sleep(Duration::from_millis(5));
    }
    assert_eq!(std::fs::read_to_string(&log)?.trim(), format!("net:[{inode}]"));
    process.kill();
    let ended = process.check();
    assert!(
        matches!(&ended, Err(Error::ProcessEnded { tail, .. }) if tail.contains("net:[")),
        "{ended:?}"
    );
    NetNs::delete(&namespace)?;
    Ok(())
}

/// A plugin that writes down how it was called.
fn fake_plugin(directory: &Path, answer: &str) -> std::io::Result<Plugin> {
    let path = directory.join("cairn-cni");
    let called = directory.join("called");
    let script = format!(
        "#!/bin/sh\n{{ echo \"$CNI_COMMAND $CNI_NETNS $CNI_IFNAME $CNI_ARGS\"; cat; }} > {}\n{answer}\n",
        called.display()
    );
    std::fs::write(&path, script)?;
    std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o755))?;
    Ok(Plugin { path, socket: "/run/x/cni.sock".into() })
}

#[test]
fn the_plugin_is_called_as_a_runtime_calls_it() -> Outcome {
    let name = format!("dcg{}", std::process::id());
    let space = Workspace::open(&name.parse()?)?;
    let added = r#"echo '{"cniVersion":"1.0.0","ips":[{"address":"10.244.0.3/32"},{"address":"fd00:10:244::3/128"}]}'"#;
    let plugin = fake_plugin(space.run(), added)?;
    let namespace = format!("cairn-{name}-p1");
    let pod = plugin.add(&namespace, "n1", "p1")?;
    assert_eq!(pod.addresses, ["10.244.0.3".parse::<IpAddr>()?, "fd00:10:244::3".parse()?]);
    let called = std::fs::read_to_string(space.run().join("called"))?;
    let expected = format!("ADD /run/netns/{namespace} eth0 ");
    assert!(called.starts_with(&expected), "{called}");
    for part in ["K8S_POD_NAME=p1", r#""cniVersion":"1.0.0""#, "/run/x/cni.sock"] {
        assert!(called.contains(part), "{part} is not in {called}");
    }
    drop(pod);
    assert!(NetNs::open(&namespace).is_err());

    let refused = r#"echo '{"code":7,"msg":"no","details":"because"}'; exit 1"#;
    let plugin = fake_plugin(space.run(), refused)?;
    let error = plugin.add(&namespace, "n1", "p1").err().map(|error| error.to_string());
    assert_eq!(error.as_deref(), Some("CNI ADD for pod p1: no: because"));
    assert!(NetNs::open(&namespace).is_err(), "a refused pod's namespace stays");
    Ok(())
}
