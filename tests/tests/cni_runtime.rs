//! Pods of a real runtime: containerd with runc, the real agent and the real plugin.
//!
//! The kernels are asked what is so: the node's interfaces and routes, and the addresses in every namespace that the
//! runtime keeps. What containerd 1.6 itself forgets, when it is killed between a pod's network and its record of the
//! sandbox, is a namespace with a name and no sandbox; GC ends what is ours in it.

use std::collections::{BTreeMap, BTreeSet};
use std::net::{IpAddr, UdpSocket};
use std::sync::Mutex;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use cairn_kernel::NetNs;
use cairn_kernel::pod::is_host_interface_name;
use cairn_tests::link::wait_for;
use cairn_tests::runtime::{
    Containerd, NODE, NODE6, Node, Pool, Sandbox, addresses, on, peers, pod_routes,
};

#[test]
fn a_hundred_pods_at_once_differ_reach_each_other_and_leave_nothing() {
    let _turn = turn();
    let (node, containerd) = bed();
    let names: Vec<String> = (0..100).map(|number| format!("pod-{number}")).collect();
    let began = Instant::now();
    let started = containerd.run(&names).expect("containerd answers");
    let up = began.elapsed();
    let failed: Vec<_> = started.iter().filter(|sandbox| !sandbox.ready).collect();
    assert!(failed.is_empty(), "{failed:#?}");
    let pods = judge(&node, &containerd);
    assert_eq!(pods.len(), 100);
    assert!(pods.values().all(|pod| pod.addresses.len() == 2), "one of each family");
    everybody_hears_everybody(&node, &pods);
    let ids: Vec<String> = started.into_iter().map(|sandbox| sandbox.id).collect();
    let began = Instant::now();
    let ended = containerd.end(&ids).expect("containerd answers");
    assert!(ended.iter().all(|sandbox| sandbox.error.is_empty()), "{ended:#?}");
    println!("100 up in {} ms, gone in {} ms", up.as_millis(), began.elapsed().as_millis());
    assert_eq!(containerd.namespaces().len(), 0);
    nothing_is_left(&node);
}

/// `CAIRN_RUNTIME_ROUNDS` and `CAIRN_RUNTIME_SEED` choose others.
#[test]
fn kills_at_any_moment_leave_nothing_and_no_address_twice() {
    let _turn = turn();
    let number = |name: &str| std::env::var(name).ok().map(|n| n.parse().expect("a number"));
    let rounds = number("CAIRN_RUNTIME_ROUNDS").unwrap_or(ROUNDS);
    let now = SystemTime::now().duration_since(UNIX_EPOCH).expect("after 1970");
    let seed = number("CAIRN_RUNTIME_SEED").unwrap_or(u64::from(now.subsec_nanos()));
    println!("CAIRN_RUNTIME_SEED={seed} CAIRN_RUNTIME_ROUNDS={rounds}");
    let mut random = Random(seed);
    let (mut node, mut containerd) = bed();
    let mut done = Done::default();
    for round in 0..rounds {
        let known = containerd.list();
        // What is not ready has failed, and a kubelet ends it.
        let (ready, failed): (Vec<Sandbox>, Vec<Sandbox>) =
            known.into_iter().partition(|sandbox| sandbox.ready);
        let most = if ready.len() > PODS_MAX { PODS_MAX } else { 5 };
        let some = ready.into_iter().take(random.below(most));
        let ending: Vec<String> =
            failed.into_iter().chain(some).map(|sandbox| sandbox.id).collect();
        let starting = 1 + random.below(5);
        let starting: Vec<String> = (0..starting).map(|n| format!("pod-{round}-{n}")).collect();
        // Each alone, or all of them.
        let victims = [0b001, 0b010, 0b100, 0b111][random.below(4)];
        let [runtime, agent, plugins] = [0b001, 0b010, 0b100].map(|one| victims & one != 0);
        std::thread::scope(|scope| {
            let containerd = &containerd;
            let calls = [
                scope.spawn(|| containerd.run(&starting)),
                scope.spawn(|| containerd.end(&ending)),
            ];
            random.pause(MOMENT_MAX);
            if runtime {
                containerd.kill();
                done.runtime += 1;
            }
            if agent {
                node.kill_agent();
                done.agent += 1;
            }
            if plugins {
                done.plugins += kill_plugins(containerd, &mut random);
            }
            random.pause(AWAY_MAX);
            if agent {
                node.start_agent();
            }
            for call in calls {
                // It fails with the containerd that serves it.
                let answer = call.join().expect("the call ends").unwrap_or_default();
                done.started += answer.iter().filter(|sandbox| sandbox.ready).count();
                done.failed += answer.iter().filter(|sandbox| !sandbox.error.is_empty()).count();
            }
        });
        if runtime {
            containerd.start_again(&node);
        }
        judge(&node, &containerd);
    }
    for attempt in 1.. {
        let ids: Vec<String> = containerd.list().into_iter().map(|sandbox| sandbox.id).collect();
        if ids.is_empty() {
            break;
        }
        let ended = containerd.end(&ids).expect("containerd answers");
        assert!(attempt < 5, "sandboxes that never end: {ended:#?}");
    }
    // What containerd 1.6 has forgotten a newer one would have collected, as libcni does.
    let forgotten = containerd.namespaces();
    done.forgotten = forgotten.len();
    done.collected = node.attachments().len();
    if done.collected > 0 {
        std::thread::sleep(SPARED);
        for answer in node.plug("gc", &node.conflist("1.1.0", &[]), &[]) {
            assert_eq!((answer.error.as_str(), answer.code), ("", 0));
        }
    }
    nothing_is_left(&node);
    for (name, _) in &forgotten {
        containerd.remove_namespace(name);
    }
    drop(forgotten);
    assert_eq!(containerd.namespaces().len(), 0);
    println!("{done:?}");
    assert!(done.started > 0 && done.agent > 0 && done.runtime > 0, "too few rounds: {done:?}");
}

/// What happened in all rounds.
#[derive(Debug, Default)]
struct Done {
    started: usize,
    failed: usize,
    runtime: usize,
    agent: usize,
    plugins: usize,
    /// Namespaces that containerd no longer knew in the end.
    forgotten: usize,
    /// Pods' interfaces that were left to GC.
    collected: usize,
}

/// One pod as the kernel has it.
struct Pod {
    addresses: Vec<IpAddr>,
    netns: NetNs,
}

fn bed() -> (Node, Containerd) {
    let pools = [
        Pool { name: "default", cidr: "10.244.0.0/16", block_size: 26 },
        Pool { name: "default6", cidr: "fd00:10:244::/48", block_size: 122 },
    ];
    let mut node = Node::new(&pools);
    node.start_agent_and_wait(pools.len());
    let containerd = Containerd::start(&node, &node.conflist("1.0.0", &[]));
    (node, containerd)
}

/// Waits until the runtime, the namespaces, the node's kernel and its agent say the same, and returns the pods by the
/// names of their namespaces.
fn judge(node: &Node, containerd: &Containerd) -> BTreeMap<String, Pod> {
    let began = Instant::now();
    loop {
        match look(node, containerd) {
            Ok(pods) => return pods,
            Err(difference) if began.elapsed() > PATIENCE => {
                panic!("{difference}\n{}\n{}", node.read("agent.log"), node.read("containerd.log"))
            }
            Err(_) => std::thread::sleep(Duration::from_millis(20)),
        }
    }
}

/// What differs at this moment. That two have one address must not be so at any.
fn look(node: &Node, containerd: &Containerd) -> Result<BTreeMap<String, Pod>, String> {
    let mut pods = BTreeMap::new();
    let mut held: BTreeMap<IpAddr, String> = BTreeMap::new();
    let mut wired: Vec<u32> = Vec::new();
    for (name, netns) in containerd.namespaces() {
        let addresses = addresses(&netns);
        for address in &addresses {
            let other = held.insert(*address, name.clone());
            assert_eq!(other, None, "{address} is also in {name}");
        }
        wired.extend(peers(&netns));
        pods.insert(name, Pod { addresses, netns });
    }
    wired.sort_unstable();
    let attachments = node.attachments();
    let mut recorded = BTreeSet::new();
    for address in attachments.iter().flat_map(|attachment| attachment.addresses()) {
        assert!(recorded.insert(address), "{address} twice on the node: {attachments:#?}");
    }
    agree(containerd.plugins(), vec![], "plugins that run")?;
    let mut ours: Vec<u32> = attachments.iter().map(|attachment| attachment.ifindex).collect();
    ours.sort_unstable();
    agree(wired, ours, "the other ends of what is in namespaces, and records on the node")?;
    // An agent that is killed may leave a pod without its addresses; they stay taken until its DEL.
    let unrecorded = held.into_keys().filter(|address| !recorded.contains(address));
    agree(unrecorded.collect(), vec![], "addresses in namespaces and not recorded")?;
    let routed: BTreeSet<IpAddr> = pod_routes(&node.netns).into_iter().collect();
    agree(&routed, &recorded, "routes and records")?;
    let mut links: Vec<String> = node.links();
    links.retain(|name| is_host_interface_name(name));
    agree(links.len(), attachments.len(), "interfaces and records")?;
    // The name of a pod that an agent was killed over may be missing.
    let mut kept = node.kept_names();
    kept.retain(|name| !links.contains(name));
    agree(kept, vec![], "names that the agent keeps without an interface")?;
    agree(node.used(), recorded.len(), "addresses that the agent counts")?;
    for sandbox in containerd.list().into_iter().filter(|sandbox| sandbox.ready) {
        let namespace = sandbox.netns.file_name().and_then(|name| name.to_str());
        let pod = namespace.and_then(|name| pods.get(name));
        let pod = pod.ok_or_else(|| format!("no namespace: {sandbox:?}"))?;
        let mut told = sandbox.ips.clone();
        told.sort_unstable();
        agree(told, pod.addresses.clone(), &format!("{sandbox:?} and its namespace"))?;
        let own = attachments.iter().find(|attachment| {
            attachment.alias.as_ref().is_some_and(|alias| alias.container_id == sandbox.id)
        });
        let own = own.map(|own| own.addresses());
        agree(own, Some(pod.addresses.clone()), &format!("{sandbox:?} and its record"))?;
    }
    Ok(pods)
}

fn agree<T: PartialEq + std::fmt::Debug>(one: T, other: T, what: &str) -> Result<(), String> {
    if one == other { Ok(()) } else { Err(format!("{what}: {one:#?} and {other:#?}")) }
}

fn everybody_hears_everybody(node: &Node, pods: &BTreeMap<String, Pod>) {
    for node_address in [NODE, NODE6] {
        let node_address: IpAddr = node_address.parse().expect("an address");
        let same = |address: &&IpAddr| address.is_ipv4() == node_address.is_ipv4();
        let one = |pod: &Pod| *pod.addresses.iter().find(same).expect("of each family");
        let places = pods.values().map(|pod| (one(pod), &pod.netns));
        let places: Vec<_> = places.chain([(node_address, &node.netns)]).collect();
        let bind = |(address, netns): &(IpAddr, &NetNs)| {
            on(netns, || UdpSocket::bind((*address, PORT)).expect("a socket"))
        };
        let sockets: Vec<UdpSocket> = places.iter().map(bind).collect();
        for (_, netns) in &places[..places.len() - 1] {
            on(netns, || ping(node_address));
        }
        for (address, _) in &places {
            on(&node.netns, || ping(*address));
        }
        for (socket, (own, _)) in sockets.iter().zip(&places) {
            for (address, _) in places.iter().filter(|(address, _)| address != own) {
                socket.send_to(b"here", (*address, PORT)).expect("sent");
            }
        }
        for (socket, (own, _)) in sockets.iter().zip(&places) {
            socket.set_read_timeout(Some(Duration::from_secs(2))).expect("a timeout");
            let mut silent: BTreeSet<IpAddr> = places.iter().map(|(address, _)| *address).collect();
            silent.remove(own);
            let mut buffer = [0; 16];
            while !silent.is_empty() {
                let Ok((_, from)) = socket.recv_from(&mut buffer) else {
                    panic!("{own} does not hear {silent:?}");
                };
                silent.remove(&from.ip());
            }
        }
    }
}

fn ping(address: IpAddr) {
    let address = address.to_string();
    let mut command = std::process::Command::new("ping");
    let output =
        command.args(["-n", "-c", "1", "-W", "2", &address]).output().expect("ping starts");
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stdout));
}

/// Nothing of any pod is left on the node.
fn nothing_is_left(node: &Node) {
    let left = || {
        let links: Vec<String> =
            node.links().into_iter().filter(|name| is_host_interface_name(name)).collect();
        (links, pod_routes(&node.netns), node.kept_names(), node.used(), node.blocks().is_empty())
    };
    let none = (vec![], vec![], vec![], 0, false);
    wait_for(
        "nothing is left",
        || left() == none,
        || format!("{:#?}\n{}", left(), node.read("agent.log")),
    );
}

/// Waits a moment for plugins, and kills those that run then; how many.
fn kill_plugins(containerd: &Containerd, random: &mut Random) -> usize {
    let deadline = Instant::now() + Duration::from_millis(300);
    while containerd.plugins().is_empty() && Instant::now() < deadline {
        std::thread::sleep(Duration::from_millis(1));
    }
    random.pause(Duration::from_millis(3));
    containerd.kill_plugins()
}

/// SplitMix64 (Steele, Lea, Flood 2014).
struct Random(u64);

impl Random {
    fn below(&mut self, bound: usize) -> usize {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut mixed = self.0;
        mixed = (mixed ^ (mixed >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        usize::try_from((mixed ^ (mixed >> 31)) % bound as u64).expect("below a usize")
    }

    fn pause(&mut self, most: Duration) {
        let micros = self.below(most.as_micros() as usize);
        std::thread::sleep(Duration::from_micros(micros as u64));
    }
}

/// These tests load the machine: one at a time.
fn turn() -> impl Drop {
    static TURN: Mutex<()> = Mutex::new(());
    TURN.lock().unwrap_or_else(|poisoned| poisoned.into_inner())
}

const PORT: u16 = 9_000;
const ROUNDS: u64 = 40;
/// About as many pods run on the node while others come and go.
const PODS_MAX: usize = 12;
/// Within this time starts and ends pass through all that they do.
const MOMENT_MAX: Duration = Duration::from_millis(600);
/// How long an agent that was killed is away.
const AWAY_MAX: Duration = Duration::from_millis(300);
/// For how long GC leaves what was added, and a little more.
const SPARED: Duration = Duration::from_secs(61);
/// Longer than the kernel takes to end a namespace, and a plugin to give up.
const PATIENCE: Duration = Duration::from_secs(20);
