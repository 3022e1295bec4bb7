//! The leader's duties against an API server: which blocks it returns and when, which pools it lets
//! nodes use, and what it tells.

mod nodes;

use std::collections::BTreeSet;
use std::time::Duration;

use cairn_lab::apiserver::PatchType;
use cairn_tests::kube::Api;
use cairn_tests::on_both_apis;
use ipnet::{IpNet, Ipv4Net};
use serde_json::{Value, json};
use tokio::time::Instant;

use nodes::in_process::{InProcess, node_in_virtual_time, takes};
use nodes::proxy::{Fate, Proxy};
use nodes::{BLOCKS, Cluster, HOUR, Node, POOLS, until};

const LEASES: &str = "leases.coordination.k8s.io";
const SYSTEM: Option<&str> = Some("cairn-system");
const DEFAULT: Option<&str> = Some("default");
const SHORT: Duration = Duration::from_secs(2);

impl Cluster {
    /// A condition of a pool: its status, its reason, its message.
    fn condition(&self, pool: &str, type_: &str) -> Option<(String, String, String)> {
        let pool = self.server.get(POOLS, None, pool).ok()?;
        let conditions = pool["status"]["conditions"].as_array()?.clone();
        let found = conditions.into_iter().find(|condition| condition["type"] == type_)?;
        let text = |field: &str| found[field].as_str().unwrap_or_default().to_owned();
        Some((text("status"), text("reason"), text("message")))
    }

    fn is(&self, pool: &str, type_: &str, status: &str, reason: &str) -> bool {
        self.condition(pool, type_).is_some_and(|(s, r, _)| s == status && r == reason)
    }

    /// A running pod with an address.
    fn pod(&self, name: &str, node: &str, address: &str, spec: Value) {
        let mut pod = json!({
            "apiVersion": "v1",
            "kind": "Pod",
            "metadata": {"name": name},
            "spec": {
                "nodeName": node,
                "containers": [{"name": "c", "image": "none"}],
                "terminationGracePeriodSeconds": 0,
            },
        });
        for (key, value) in spec.as_object().into_iter().flatten() {
            pod["spec"][key] = value.clone();
        }
        self.server.create("pods", DEFAULT, pod).expect("a pod");
        self.pod_status(name, "Running", address);
    }

    fn pod_status(&self, name: &str, phase: &str, address: &str) {
        let addresses = json!([{"ip": address}]);
        let status = json!({"status": {"phase": phase, "podIP": address, "podIPs": addresses}});
        self.server.patch_status("pods", DEFAULT, name, &status).expect("a status");
    }

    /// Says of the holder of a node's Lease that its machine is off, or of another boot of it.
    fn mark_off(&self, node: &str, boot: Option<&str>) {
        let name = format!("cairn-node-{node}");
        let lease = self.server.get(LEASES, SYSTEM, &name).expect("the Lease");
        let holder = lease["spec"]["holderIdentity"].as_str().expect("a holder");
        let (uid, own_boot) = holder.split_once('/').expect("UID and boot id");
        let mark = format!("{uid}/{}", boot.unwrap_or(own_boot));
        let patch = json!({"metadata": {"annotations": {"cairn.network/machine-off": mark}}});
        self.server.patch(LEASES, SYSTEM, &name, PatchType::Merge, &patch).expect("marked");
    }

    /// The BGPNode of a node, as its agent has left it.
    fn names_blocks(&self, node: &str, blocks: &[&str]) {
        let object = json!({
            "apiVersion": "cairn.network/v1alpha1", "kind": "BGPNode", "metadata": {"name": node},
            "spec": {
                "addresses": ["192.0.2.9"], "asn": 64512, "routerID": "192.0.2.9", "blocks": blocks,
            },
        });
        self.server.create("bgpnodes.cairn.network", None, object).expect("a BGPNode");
    }

    fn taint_out_of_service(&self, node: &str) {
        let taint = json!({"key": "node.kubernetes.io/out-of-service", "effect": "NoExecute"});
        let patch = json!({"spec": {"taints": [taint]}});
        self.server.patch("nodes", None, node, PatchType::Merge, &patch).expect("tainted");
    }

    /// The notes of events about an object for a reason.
    fn events(&self, kind: &str, name: &str, reason: &str) -> Vec<String> {
        let events = self.server.list("events.events.k8s.io", DEFAULT, "").expect("events");
        let about = |event: &&Value| {
            event["regarding"]["kind"] == kind
                && event["regarding"]["name"] == name
                && event["reason"] == reason
        };
        let notes = events.iter().filter(about).map(|event| event["note"].as_str());
        notes.map(|note| note.unwrap_or_default().to_owned()).collect()
    }

    /// A block of a node that does not exist.
    fn orphan(&self, node: &str, cidr: &str) {
        let pool = self.server.get(POOLS, None, "default").expect("the pool");
        let range: IpNet = cidr.parse().expect("a network");
        let block = json!({
            "apiVersion": "cairn.network/v1alpha1",
            "kind": "IPBlock",
            "metadata": {
                "name": cairn_api::block_name(range),
                "finalizers": ["cairn.network/block"],
            },
            "spec": {
                "cidr": cidr,
                "range": cairn_api::block_range(range),
                "pool": {"name": "default", "uid": pool["metadata"]["uid"]},
                "node": {"name": node, "uid": format!("uid-{node}")},
            },
        });
        self.server.create(BLOCKS, None, block).expect("a block");
    }
}

/// `CAIRN_ORPHAN_NODES` is how many nodes are gone: `make bench-ipam` plays 5,000 of them with compiled
/// code.
#[tokio::test(start_paused = true)]
async fn orphans_go_in_one_pass_at_a_bounded_rate_whatever_holds_one_of_them() {
    const BLOCKS_OF_A_NODE: usize = 6;
    const CALLS_PER_SEC_MAX: usize = 100;
    let gone = std::env::var("CAIRN_ORPHAN_NODES");
    let gone_nodes = gone.map_or(500, |nodes| nodes.parse().expect("a number of nodes"));
    let began = std::time::Instant::now();
    let cluster = Cluster::new();
    cluster.without_graceful_restart();
    cluster.pool("default", "10.0.0.0/8", 26);
    let range: Ipv4Net = "10.0.0.0/8".parse().expect("a network");
    let nets: Vec<Ipv4Net> =
        range.subnets(26).expect("blocks").take(gone_nodes * BLOCKS_OF_A_NODE).collect();
    for (node, nets) in nets.chunks(BLOCKS_OF_A_NODE).enumerate() {
        for net in nets {
            cluster.orphan(&format!("gone-{node:04}"), &net.to_string());
        }
        let lease = json!({
            "metadata": {"name": format!("cairn-node-gone-{node:04}")},
            "spec": {"holderIdentity": format!("uid-gone-{node:04}/boot"), "leaseDurationSeconds": 20},
        });
        cluster.server.create(LEASES, SYSTEM, lease).expect("a Lease");
    }
    // Of the first nodes' blocks somebody else holds one, and the server fails to delete another.
    let [held, failing] = [7, 14].map(|at| cairn_api::block_name(IpNet::V4(nets[at])));
    let finalizers =
        json!({"metadata": {"finalizers": ["cairn.network/block", "example.com/held"]}});
    cluster.server.patch(BLOCKS, None, &held, PatchType::Merge, &finalizers).expect("held");
    cluster.node("n1", "boot1");
    let api = InProcess::new(&cluster);
    api.record().fails = Some(format!("/{failing}"));
    let mut leader = node_in_virtual_time(api.clone(), HOUR);
    leader.until("it leads", |h| h.leads).await;
    let orphans = || -> BTreeSet<String> {
        let blocks = cluster.blocks();
        let orphans = blocks.iter().filter(|block| block["spec"]["node"]["name"] != "n1");
        orphans.map(|b| b["metadata"]["name"].as_str().expect("a name").to_owned()).collect()
    };
    let is_gone = |name: &str| cluster.server.get(BLOCKS, None, name).is_err();
    let waited =
        takes("the fence allows it", Duration::from_secs(120), || is_gone("10.0.0.0-26")).await;
    assert!(waited >= Duration::from_secs(25), "1.25 times what the Leases promise: {waited:?}");
    let (start, calls_before) = (Instant::now(), api.record().calls);
    let last = cairn_api::block_name(IpNet::V4(nets[nets.len() - 1]));
    takes("the last node's turn", Duration::from_secs(3_600), || is_gone(&last)).await;
    let stay: BTreeSet<String> = [held.clone(), failing.clone()].into();
    takes("all others return", Duration::from_secs(10), || orphans() == stay).await;
    let took = start.elapsed();
    // DELETE and finalizer of each block, and two looks a node.
    let planned = 2 * nets.len() + 2 * gone_nodes;
    let shortest = planned as f64 / CALLS_PER_SEC_MAX as f64;
    assert!(took.as_secs_f64() >= shortest - 2.0, "too fast: {took:?}");
    assert!(took.as_secs_f64() <= shortest * 1.1, "more than one pass: {took:?}");
    let calls = api.record().calls - calls_before;
    let (of_returns, most) = {
        let by_second = api.record().of_returns.clone();
        (by_second.values().sum::<usize>(), by_second.values().max().copied().unwrap_or(0))
    };
    // Each of the four returns under way takes its two turns, then makes its two calls.
    assert!(most <= CALLS_PER_SEC_MAX + 8, "{most} calls in one second");
    let told = |p: &String| p.contains(&nets[14].to_string());
    leader.until("the failure is told", |h| h.problems.iter().any(told)).await;
    // Nothing is asked for twice, though plans were made meanwhile that name what has gone since.
    tokio::time::sleep(Duration::from_secs(60)).await;
    let again = api.record().of_returns.values().sum::<usize>();
    assert!(again <= planned + 100, "{again} calls, {planned} would do");
    let lease = cluster.server.get(LEASES, SYSTEM, "cairn-leader").expect("the Lease");
    let transitions = lease["spec"]["leaseTransitions"].as_i64();
    assert!(transitions.is_some_and(|times| times <= 1), "{transitions:?}");
    assert!(leader.holdings.borrow().leads);
    api.record().fails = None;
    let free = json!({"metadata": {"finalizers": null}});
    cluster.server.patch(BLOCKS, None, &held, PatchType::Merge, &free).expect("let go");
    takes("then these, too", Duration::from_secs(180), || orphans().is_empty()).await;
    println!(
        "{} blocks of {gone_nodes} nodes: {took:?} after the fence; {calls} calls in all; {of_returns} of \
         returns, {most} in one second at most; transitions {transitions:?}; {:.1} s of real time",
        nets.len(),
        began.elapsed().as_secs_f64()
    );
}

#[tokio::test(start_paused = true)]
async fn a_pool_with_others_addresses_is_looked_at_again_and_a_good_one_never() {
    let cluster = Cluster::new();
    cluster.pool("default", "10.1.0.0/16", 26);
    cluster.node("n1", "boot1");
    cluster.pod("theirs", "n1", "10.1.0.9", json!({}));
    let mut node = node_in_virtual_time(InProcess::new(&cluster), HOUR);
    node.until("it leads", |h| h.leads).await;
    let foreign = || cluster.is("default", "Ready", "False", "ForeignAddresses");
    takes("the finding", Duration::from_secs(10), foreign).await;
    tokio::time::sleep(Duration::from_secs(600)).await;
    assert!(foreign() && cluster.blocks().is_empty());
    cluster.server.delete("pods", DEFAULT, "theirs").expect("deleted");
    let ready = || cluster.is("default", "Ready", "True", "Ready");
    let waited = takes("the next look", Duration::from_secs(40), ready).await;
    assert!(waited <= Duration::from_secs(32), "{waited:?}");
    node.until_open(1).await;
    // Pods of this pool are not told from others later: good once is good.
    cluster.pod("theirs-again", "n1", "10.1.200.9", json!({}));
    tokio::time::sleep(Duration::from_secs(600)).await;
    assert!(ready());
}

/// The leader and other nodes with a block each.
async fn leader_and<const N: usize>(
    cluster: &Cluster,
    others: [&str; N],
    offline: Duration,
) -> (Node, [(Node, IpNet); N]) {
    cluster.without_graceful_restart();
    cluster.pool("default", "10.244.0.0/16", 26);
    cluster.node("n1", "boot1");
    let mut leader = Node::start(cluster, "n1", "boot1", offline);
    leader.until("it leads", |h| h.leads).await;
    let mut started = Vec::new();
    for name in others {
        let boot = format!("boot-{name}");
        cluster.node(name, &boot);
        let mut node = Node::start(cluster, name, &boot, offline);
        let block = node.until_open(1).await[0];
        started.push((node, block));
    }
    let started = started.try_into().unwrap_or_else(|_| panic!("as many as asked for"));
    (leader, started)
}

async fn a_machine_that_an_operator_says_is_off_loses_its_blocks_at_once(api: Api) {
    let cluster = Cluster::start(api).await;
    let (mut leader, [(mut n2, of_n2), (mut n3, of_n3)]) =
        leader_and(&cluster, ["n2", "n3"], HOUR).await;
    n2.add("pod").expect("an address");
    n2.tasks.shutdown().await;
    n3.tasks.shutdown().await;
    // Whether its Node exists makes no difference.
    cluster.server.delete("nodes", None, "n3").expect("deleted");
    // Of another boot: that machine is not the one that holds the Lease.
    cluster.mark_off("n2", Some("another-boot"));
    cluster.mark_off("n3", None);
    until("the block of the marked machine returns", || cluster.owner(of_n3).is_none()).await;
    assert_eq!(cluster.owner(of_n2).as_deref(), Some("n2"), "its mark names another boot");
    leader.peers.announce(of_n2);
    cluster.mark_off("n2", None);
    leader
        .until("a route speaks against it", |h| {
            h.problems.iter().any(|p| p.contains("marked as off"))
        })
        .await;
    assert_eq!(cluster.owner(of_n2).as_deref(), Some("n2"));
    leader.peers.withdraw(of_n2);
    until("without a route it returns", || cluster.owner(of_n2).is_none()).await;
    until("an event on the Node", || !cluster.events("Node", "n2", "BlocksReturned").is_empty())
        .await;
}

async fn the_out_of_service_taint_returns_blocks_of_a_silent_agent_only(api: Api) {
    let cluster = Cluster::start(api).await;
    // The fence would take longer than anybody waits here.
    let offline = Duration::from_secs(30);
    let (_leader, [(mut off, of_off), (_on, of_on), (mut silent, of_silent)]) =
        leader_and(&cluster, ["off", "on", "silent"], offline).await;
    off.tasks.shutdown().await;
    silent.tasks.shutdown().await;
    let stopped = std::time::Instant::now();
    cluster.taint_out_of_service("off");
    cluster.taint_out_of_service("on");
    until("the block returns", || cluster.owner(of_off).is_none()).await;
    assert!(stopped.elapsed() > Duration::from_secs(2), "it could have been late only");
    assert_eq!(cluster.owner(of_on).as_deref(), Some("on"), "its agent writes its Lease");
    assert_eq!(cluster.owner(of_silent).as_deref(), Some("silent"), "it is not tainted");
}

async fn a_word_about_a_machine_returns_nothing_that_one_before_it_may_use(api: Api) {
    let cluster = Cluster::start(api).await;
    let offline = Duration::from_secs(30);
    let (_leader, [(mut first, of_first), (mut off, of_off)]) =
        leader_and(&cluster, ["n2", "off"], offline).await;
    first.tasks.shutdown().await;
    off.tasks.shutdown().await;
    cluster.boot("n2", "boot2", "another-machine");
    let mut second = Node::start(&cluster, "n2", "boot2", offline);
    let of_second = second.until_open(1).await[0];
    assert_ne!(of_second, of_first);
    second.tasks.shutdown().await;
    cluster.mark_off("n2", None);
    cluster.taint_out_of_service("n2");
    cluster.taint_out_of_service("off");
    until("the block of a machine that was alone returns", || cluster.owner(of_off).is_none())
        .await;
    // Of the later one it has been silent for as long by now.
    tokio::time::sleep(Duration::from_secs(5)).await;
    assert_eq!(cluster.owner(of_first).as_deref(), Some("n2"), "the first may live");
    // The mark for the first, the taint for the second.
    cluster.mark_off("n2", Some("boot-n2"));
    until("both return", || {
        cluster.owner(of_first).is_none() && cluster.owner(of_second).is_none()
    })
    .await;
}

async fn blocks_of_a_live_node_without_an_agent_return_when_no_pod_is_in_them(api: Api) {
    let cluster = Cluster::start(api).await;
    let (mut leader, [(mut n2, of_n2), (mut n3, of_n3), (mut n4, of_n4)]) =
        leader_and(&cluster, ["n2", "n3", "n4"], SHORT).await;
    let inside = |cidr: IpNet| cidr.hosts().nth(5).expect("an address").to_string();
    // What its kubelet cannot tell, and pods that were deleted by force, nobody knows of.
    cluster.ready("n4", "Unknown");
    cluster.pod("lives", "n2", &inside(of_n2), json!({}));
    // Neither has an address in the block any more, or ever had.
    cluster.pod("ended", "n3", &inside(of_n3), json!({}));
    cluster.pod_status("ended", "Succeeded", &inside(of_n3));
    cluster.pod("of-the-host", "n3", &inside(of_n3), json!({"hostNetwork": true}));
    let elsewhere = "10.99.0.0/26";
    cluster.names_blocks("n3", &[elsewhere, &of_n3.to_string()]);
    n2.tasks.shutdown().await;
    n3.tasks.shutdown().await;
    n4.tasks.shutdown().await;
    let stopped = std::time::Instant::now();
    until("the block without a pod returns", || cluster.owner(of_n3).is_none()).await;
    // Nobody else writes it any more, and others would look for the block's next owner there.
    let named = cluster.server.get("bgpnodes.cairn.network", None, "n3").expect("a BGPNode");
    assert_eq!(named["spec"]["blocks"], json!([elsewhere]));
    assert!(stopped.elapsed() > SHORT, "the promise came first");
    let told = |p: &String| p.contains(&of_n2.to_string()) && p.contains("pod default/lives");
    leader.until("the pod keeps the other", |h| h.problems.iter().any(told)).await;
    assert_eq!(cluster.owner(of_n2).as_deref(), Some("n2"));
    cluster.server.delete("pods", DEFAULT, "lives").expect("deleted");
    until("then it returns, too", || cluster.owner(of_n2).is_none()).await;
    let told = |p: &String| p.contains(&of_n4.to_string()) && p.contains("kubelet is not heard");
    leader.until("a silent kubelet keeps the third", |h| h.problems.iter().any(told)).await;
    assert_eq!(cluster.owner(of_n4).as_deref(), Some("n4"));
    cluster.ready("n4", "False");
    until("it has no pod", || cluster.owner(of_n4).is_none()).await;
    for node in ["n2", "n3", "n4"] {
        cluster.server.get("nodes", None, node).expect("the Node is still there");
    }
}

async fn one_return_that_fails_and_events_that_are_refused_keep_nothing_else_waiting(api: Api) {
    let cluster = Cluster::start(api).await;
    let proxy = Proxy::start(cluster.serving.address()).await;
    cluster.without_graceful_restart();
    cluster.pool("default", "10.244.0.0/16", 26);
    for (node, cidr) in [("a", "10.244.7.0/26"), ("b", "10.244.7.64/26"), ("c", "10.244.7.128/26")]
    {
        cluster.orphan(node, cidr);
    }
    cluster.node("n1", "boot1");
    proxy.meet("DELETE", "/ipblocks/10.244.7.0-26", Fate::IsForbidden);
    proxy.meet("POST", "/events", Fate::IsForbidden);
    let mut leader = Node::behind(&proxy, "n1", "boot1", SHORT);
    let told = |p: &String| p.contains("10.244.7.0/26");
    leader.until("the failure is told", |h| h.problems.iter().any(told)).await;
    let owners = || -> BTreeSet<String> {
        let blocks = cluster.blocks();
        blocks.iter().map(|b| b["spec"]["node"]["name"].as_str().expect("a name").into()).collect()
    };
    until("the others return", || owners() == ["a", "n1"].map(str::to_owned).into()).await;
    assert!(cluster.events("Node", "b", "BlocksReturned").is_empty(), "refused");
    proxy.let_pass();
    until("and then the first", || owners() == ["n1".to_owned()].into()).await;
}

async fn a_pool_in_which_others_addresses_lie_is_not_claimed_from(api: Api) {
    let cluster = Cluster::start(api).await;
    cluster.node("n1", "boot1");
    let addresses = json!({"status": {"addresses": [
        {"type": "InternalIP", "address": "10.3.0.1"}, {"type": "Hostname", "address": "n1"},
    ]}});
    cluster.server.patch_status("nodes", None, "n1", &addresses).expect("addresses");
    cluster.pod("theirs", "n1", "10.1.0.9", json!({}));
    cluster.pod("of-the-host", "n1", "10.5.0.9", json!({"hostNetwork": true}));
    let services = json!({
        "apiVersion": "networking.k8s.io/v1",
        "kind": "ServiceCIDR",
        "metadata": {"name": "theirs"},
        "spec": {"cidrs": ["10.2.0.0/24"]},
    });
    cluster.server.create("servicecidrs.networking.k8s.io", None, services).expect("a ServiceCIDR");
    for (name, cidr) in
        [("pods", "10.1.0.0/16"), ("services", "10.2.0.0/16"), ("nodes", "10.3.0.0/16")]
    {
        cluster.pool(name, cidr, 26);
    }
    let mut node = Node::start(&cluster, "n1", "boot1", HOUR);
    let cases = [
        ("pods", "10.1.0.9 of pod default/theirs on node n1"),
        ("services", "10.2.0.0/24 of ServiceCIDR theirs"),
        ("nodes", "10.3.0.1 of node n1"),
    ];
    for (pool, what) in cases {
        let named = || {
            let found = cluster.condition(pool, "Ready");
            found.is_some_and(|(status, reason, message)| {
                status == "False" && reason == "ForeignAddresses" && message.contains(what)
            })
        };
        until(what, named).await;
    }
    until("an event", || !cluster.events("IPPool", "pods", "ForeignAddresses").is_empty()).await;
    assert!(cluster.blocks().is_empty(), "nothing is claimed");
    cluster.pool("good", "10.5.0.0/16", 26);
    let block = node.until_open(1).await[0];
    assert!(block.to_string().starts_with("10.5."), "{block}");
    assert!(cluster.is("good", "Ready", "True", "Ready"));
}

async fn a_pool_says_how_full_it_is(api: Api) {
    let cluster = Cluster::start(api).await;
    cluster.pool("default", "10.244.0.0/27", 28);
    cluster.node("n1", "boot1");
    let mut n1 = Node::start(&cluster, "n1", "boot1", HOUR);
    n1.until_open(1).await;
    until("half is left", || cluster.is("default", "NearlyFull", "False", "BlocksLeft")).await;
    assert!(cluster.events("IPPool", "default", "PoolExhausted").is_empty());
    cluster.node("n2", "boot2");
    let mut n2 = Node::start(&cluster, "n2", "boot2", HOUR);
    n2.until_open(1).await;
    // The next pass may be a minute away; a change of the pool brings it near.
    let touch = json!({"spec": {"natOutgoing": true}});
    cluster.server.patch(POOLS, None, "default", PatchType::Merge, &touch).expect("changed");
    until("nothing is left", || cluster.is("default", "NearlyFull", "True", "Exhausted")).await;
    let pool = cluster.server.get(POOLS, None, "default").expect("the pool");
    let status = &pool["status"];
    assert_eq!((&status["blocks"], &status["free"]), (&json!("2/2"), &json!("32")));
    assert_eq!((&status["used"], &status["total"]), (&json!("0"), &json!("32")));
    until("an event", || cluster.events("IPPool", "default", "PoolExhausted").len() == 1).await;
}

async fn a_pool_that_is_being_deleted_keeps_another_off_its_range_until_it_is_gone(api: Api) {
    let cluster = Cluster::start(api).await;
    cluster.pool("old", "10.244.0.0/16", 26);
    cluster.node("n1", "boot1");
    let mut node = Node::start(&cluster, "n1", "boot1", HOUR);
    node.until_open(1).await;
    node.add("pod").expect("an address");
    until("the pool is held", || {
        let pool = cluster.server.get(POOLS, None, "old").expect("the pool");
        pool["metadata"]["finalizers"][0] == "cairn.network/block"
    })
    .await;
    assert!(!cluster.server.delete(POOLS, None, "old").expect("deleted"));
    // The times have a grain of a second.
    tokio::time::sleep(Duration::from_millis(1_100)).await;
    cluster.pool("new", "10.244.0.0/20", 27);
    until("it overlaps", || {
        let found = cluster.condition("new", "Ready");
        found.is_some_and(|(_, reason, message)| {
            reason == "Overlap" && message.contains("old, which is being deleted")
        })
    })
    .await;
    until("an event", || !cluster.events("IPPool", "new", "PoolOverlap").is_empty()).await;
    node.del("pod");
    until("the old pool is gone", || cluster.server.get(POOLS, None, "old").is_err()).await;
    node.until("a block of the new one", |h| {
        Node::open(h).iter().any(|block| block.prefix_len() == 27)
    })
    .await;
}

async fn a_claim_that_is_under_way_while_its_pool_ends_is_given_up(api: Api) {
    let cluster = Cluster::start(api).await;
    let proxy = Proxy::start(cluster.serving.address()).await;
    cluster.pool("default", "10.244.0.0/16", 26);
    cluster.node("n1", "boot1");
    let mut leader = Node::start(&cluster, "n1", "boot1", HOUR);
    leader.until("it leads", |h| h.leads).await;
    leader.until_open(1).await;
    cluster.node("n2", "boot2");
    proxy.meet("POST", "/ipblocks", Fate::Waits);
    let n2 = Node::behind(&proxy, "n2", "boot2", HOUR);
    until("the claim is under way", || proxy.met() > 0).await;
    cluster.server.delete(POOLS, None, "default").expect("deleted");
    until("the pool is gone", || cluster.server.get(POOLS, None, "default").is_err()).await;
    assert!(cluster.blocks().is_empty(), "the finalizer went after the last block");
    // The claim commits; its return is held so that it can be seen.
    proxy.let_pass();
    proxy.meet("DELETE", "/ipblocks", Fate::Waits);
    until("the block is there", || cluster.blocks().len() == 1).await;
    until("it is on its way back", || proxy.met() > 1).await;
    assert!(Node::open(&n2.holdings.borrow()).is_empty(), "it gave no address");
    proxy.let_pass();
    until("it is given back", || cluster.blocks().is_empty()).await;
}

async fn the_lease_of_a_node_that_is_gone_goes_after_its_blocks(api: Api) {
    let cluster = Cluster::start(api).await;
    let (_leader, [(mut n2, of_n2)]) = leader_and(&cluster, ["n2"], SHORT).await;
    let lease = |node: &str| cluster.server.get(LEASES, SYSTEM, &format!("cairn-node-{node}")).ok();
    n2.tasks.shutdown().await;
    cluster.server.delete("nodes", None, "n2").expect("deleted");
    let stopped = std::time::Instant::now();
    until("its Lease goes", || lease("n2").is_none()).await;
    assert!(stopped.elapsed() > SHORT, "its agent could have lived");
    assert!(cluster.owner(of_n2).is_none(), "its blocks go first");
    assert!(lease("n1").is_some());
}

async fn a_leader_that_hears_nobody_lets_another_lead(api: Api) {
    let cluster = Cluster::start(api).await;
    let (mut n1, [(mut n2, _)]) = leader_and(&cluster, ["n2"], Duration::from_secs(4)).await;
    n1.peers.set_deaf(true);
    n2.until("it leads", |h| h.leads).await;
    n1.until("it leads no more", |h| !h.leads).await;
    // When nobody hears somebody leads all the same: pools have to be looked after.
    n2.peers.set_deaf(true);
    n2.until("it stands aside", |h| !h.leads).await;
    until("one leads", || [&n1, &n2].iter().any(|node| node.holdings.borrow().leads)).await;
}

on_both_apis! {
    a_leader_that_hears_nobody_lets_another_lead,
    the_lease_of_a_node_that_is_gone_goes_after_its_blocks,
    a_machine_that_an_operator_says_is_off_loses_its_blocks_at_once,
    the_out_of_service_taint_returns_blocks_of_a_silent_agent_only,
    a_word_about_a_machine_returns_nothing_that_one_before_it_may_use,
    blocks_of_a_live_node_without_an_agent_return_when_no_pod_is_in_them,
    one_return_that_fails_and_events_that_are_refused_keep_nothing_else_waiting,
    a_pool_in_which_others_addresses_lie_is_not_claimed_from,
    a_pool_says_how_full_it_is,
    a_pool_that_is_being_deleted_keeps_another_off_its_range_until_it_is_gone,
    a_claim_that_is_under_way_while_its_pool_ends_is_given_up,
}
