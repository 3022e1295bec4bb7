//! One cluster in order, and each way to spoil it with what is then found.

use std::time::Duration;

use cairn_api::ObjectReference;
use cairn_bgp::rib::HeardRoute;
use cairn_ipam::mark::Holder;
use ipnet::IpNet;

use super::super::snapshot::{AllocationSeen, LocalSeen, NodeSeen, PoolSeen, SpeakerSeen};
use super::*;

const NOW: i64 = 1_000_000;

fn net(text: &str) -> IpNet {
    text.parse().expect("a network")
}

fn ip(text: &str) -> IpAddr {
    text.parse().expect("an address")
}

fn reference(name: &str) -> ObjectReference {
    ObjectReference { name: name.into(), uid: format!("uid-{name}") }
}

fn pool(name: &str, cidr: &str) -> PoolSeen {
    PoolSeen {
        name: name.into(),
        uid: format!("uid-{name}"),
        cidr: net(cidr),
        block_size: 26,
        created_secs: 10,
        disabled: false,
        terminating: false,
        advertise: true,
        node_pod_cidrs: false,
        ready: Some((true, "Ready".into(), String::new())),
    }
}

fn allocation(address: &str, pod: &str) -> AllocationSeen {
    let container = Some(format!("c-{address}"));
    AllocationSeen { address: ip(address), pod: Some(pod.into()), container }
}

fn block(cidr: &str, node: &str, allocations: Vec<AllocationSeen>) -> BlockSeen {
    BlockSeen {
        name: cairn_api::block_name(net(cidr)),
        cidr: net(cidr),
        pool: reference("pods"),
        node: reference(node),
        used: Some(allocations.len() as u128),
        free: Some(64 - allocations.len() as u128),
        advertised: Some(true),
        allocations,
        held: true,
        held_by_others: Vec::new(),
        owned: false,
        terminating_secs: None,
    }
}

fn pod(name: &str, node: &str, address: &str) -> PodSeen {
    PodSeen {
        name: name.into(),
        node: Some(node.into()),
        addresses: vec![ip(address)],
        running: true,
        ending: false,
    }
}

fn lease(node: &str, age: i64) -> LeaseSeen {
    LeaseSeen {
        holder: Some(Holder { node_uid: format!("uid-{node}"), boot_id: format!("boot-{node}") }),
        renewed_secs: Some(NOW - age),
        promise: Some(Duration::from_secs(8 * 3600)),
        off: None,
        taken_over: None,
        earlier_off: None,
    }
}

fn route(prefix: &str, next_hop: &str, origin_as: Option<u32>) -> HeardRoute {
    HeardRoute {
        prefix: prefix.parse().expect("a prefix"),
        peer: "tor".into(),
        next_hop: ip(next_hop),
        origin_as,
        looped: false,
        stale: false,
        verdict: String::new(),
    }
}

/// Two nodes with a block and a pod each, seen from n1.
fn cluster() -> Snapshot {
    let node = |number: u8| NodeSeen {
        uid: format!("uid-n{number}"),
        boot_id: format!("boot-n{number}"),
        addresses: vec![ip(&format!("192.0.2.{number}"))],
        pod_cidrs: Vec::new(),
    };
    let speaker = |number: u8| SpeakerSeen {
        asn: 65_000 + u32::from(number),
        addresses: vec![ip(&format!("192.0.2.{number}"))],
    };
    let nodes = || (1..=2).map(|number| (format!("n{number}"), number));
    Snapshot {
        now_secs: NOW,
        pools: vec![pool("pods", "10.1.0.0/16")],
        blocks: vec![
            block("10.1.0.0/26", "n1", vec![allocation("10.1.0.1", "a/one")]),
            block("10.1.0.64/26", "n2", vec![allocation("10.1.0.65", "a/two")]),
        ],
        reserved: vec![(net("10.1.9.0/24"), "routers".into())],
        nodes: nodes().map(|(name, number)| (name, node(number))).collect(),
        speakers: nodes().map(|(name, number)| (name, speaker(number))).collect(),
        leases: nodes().map(|(name, _)| (name.clone(), lease(&name, 5))).collect(),
        pods: vec![pod("a/one", "n1", "10.1.0.1"), pod("a/two", "n2", "10.1.0.65")],
        problems: nodes().map(|(name, _)| (name, Vec::new())).collect(),
        service_cidrs: vec![(net("10.96.0.0/12"), "kubernetes".into())],
        unread: Vec::new(),
        local: Some(LocalSeen {
            node: "n1".into(),
            kernel: [(ip("10.1.0.1"), "cairn1".to_owned())].into(),
            heard: vec![
                route("10.1.0.64/26", "192.0.2.2", None),
                route("10.1.0.64/26", "192.0.2.9", Some(65_002)),
                HeardRoute { looped: true, ..route("10.1.0.0/26", "192.0.2.9", Some(65_001)) },
            ],
            unknown: Vec::new(),
        }),
    }
}

#[test]
fn a_cluster_in_order_has_no_findings() {
    assert_eq!(findings(&cluster()), []);
    assert_eq!(findings(&Snapshot::default()), [], "nor has one without anything");
    let dual = |seen: &mut Snapshot| {
        seen.pools.push(PoolSeen { block_size: 122, ..pool("six", "fd00::/48") });
        let mut six = block("fd00::40/122", "n1", vec![allocation("fd00::41", "a/one")]);
        six.pool = reference("six");
        seen.blocks.push(six);
        seen.pods[0].addresses.push(ip("fd00::41"));
        let local = seen.local.as_mut().expect("a node");
        local.kernel.insert(ip("fd00::41"), "cairn1".into());
    };
    let mut seen = cluster();
    dual(&mut seen);
    assert_eq!(findings(&seen), []);
}

/// What is spoilt, how, the kinds that are found, words of the text and of the remedy.
type Row = (&'static str, fn(&mut Snapshot), &'static [Kind], &'static str, &'static str);

#[test]
fn each_kind_is_found_and_has_a_remedy() {
    use Kind::*;
    #[rustfmt::skip]
    let rows: &[Row] = &[
        ("an object that cannot be read", |s| s.unread.push(("ippool/x".into(), "its cidr \"y\" is no network".into())), &[Unreadable], "is no network", "correct"),
        ("two pools overlap", |s| s.pools.push(PoolSeen { created_secs: 20, ..pool("late", "10.1.128.0/17") }), &[PoolsOverlap], "10.1.128.0/17 overlaps 10.1.0.0/16 of the older pool", "kubectl delete ippool late"),
        ("a pool that is not ready", |s| s.pools[0].ready = Some((false, "ForeignAddresses".into(), "podIPs of others: 10.1.3.3".into())), &[PoolNotReady], "ForeignAddresses: podIPs", "says what to do"),
        ("a pool that is disabled by will", |s| s.pools[0].ready = Some((false, "Disabled".into(), String::new())), &[], "", ""),
        ("a node's address in a pool", |s| s.nodes.get_mut("n2").expect("n2").addresses.push(ip("10.1.200.1")), &[ForeignAddresses], "10.1.200.1 of node n2", "another range"),
        ("podCIDRs in a pool", |s| s.nodes.get_mut("n2").expect("n2").pod_cidrs.push(net("10.1.2.0/24")), &[ForeignAddresses], "the podCIDR of node n2", "NodePodCIDR"),
        ("podCIDRs in a pool of podCIDRs", |s| { s.pools[0].node_pod_cidrs = true; s.nodes.get_mut("n2").expect("n2").pod_cidrs.push(net("10.1.2.0/24")); }, &[], "", ""),
        ("services in a pool", |s| s.service_cidrs.push((net("10.1.0.0/20"), "more".into())), &[ForeignAddresses], "10.1.0.0/20 of ServiceCIDR more", "another range"),
        ("a Node that is gone", |s| { s.nodes.remove("n2"); }, &[NodeGone], "its agent last wrote its Lease 5 s ago; they return no sooner than in 9 h 59 min", "cairn ipam fence n2"),
        ("a Node that is gone for long", |s| { s.nodes.remove("n2"); s.leases.insert("n2".into(), lease("n2", 40_000)); }, &[NodeGone], "11 h 6 min ago; they return once the leader", "cairn ipam fence n2"),
        ("a Node that is gone and marked", |s| { s.nodes.remove("n2"); let l = s.leases.get_mut("n2").expect("a lease"); l.off = l.holder.clone(); }, &[NodeGone], "an operator says", "cairn ipam release"),
        ("a Node that is gone, and its Lease", |s| { s.nodes.remove("n2"); s.leases.remove("n2"); }, &[NodeGone], "no Lease tells", "cairn ipam release 10.1.0.64-26"),
        ("a Node that was made anew", |s| s.nodes.get_mut("n2").expect("n2").uid = "new".into(), &[NodeGone], "another one has its name", "fence n2"),
        ("an agent that is silent", |s| { s.leases.insert("n2".into(), lease("n2", 181)); }, &[AgentSilent], "3 min 1 s ago", "cairn ipam fence n2"),
        ("an agent that never was", |s| { s.leases.remove("n2"); }, &[AgentSilent], "no Lease of an agent", "no agent runs on n2"),
        ("another machine", |s| s.nodes.get_mut("n2").expect("n2").boot_id = "b9".into(), &[OtherMachine], "the Node n2 is of boot b9", "another name"),
        ("a Lease that nobody needs", |s| { s.leases.insert("n7".into(), lease("n7", 5)); }, &[LeaseUnknown], "neither a Node n7", "kubectl delete lease cairn-node-n7"),
        ("blocks that overlap", |s| { let mut b = block("10.1.0.0/24", "n2", vec![]); b.pool = reference("pods"); s.blocks.push(b); }, &[WrongSize, BlocksOverlap, BlocksOverlap], "", ""),
        ("a block of no pool", |s| s.blocks[1].pool = reference("old"), &[PoolUnknown], "its pool old is gone", "drain node n2"),
        ("a block of an earlier pool", |s| s.blocks[1].pool.uid = "before".into(), &[PoolUnknown], "another one has its name", "drain node n2"),
        ("a block outside of its pool", |s| s.blocks.push(block("10.2.0.0/26", "n2", vec![])), &[OutsidePool], "is not inside of 10.1.0.0/16", "cairn ipam release 10.2.0.0-26"),
        ("a block of another size", |s| s.blocks.push(block("10.1.2.0/27", "n2", vec![])), &[WrongSize], "is no /26 of pool pods", "release 10.1.2.0-27"),
        ("a block without a finalizer", |s| s.blocks[1].held = false, &[FinalizerMissing], "would not wait", "kubectl patch ipblock 10.1.0.64-26"),
        ("a block with an owner", |s| s.blocks[1].owned = true, &[OwnerReference], "Kubernetes deletes it", "ownerReferences"),
        ("a block that just ends", |s| s.blocks[1].terminating_secs = Some(NOW - 30), &[], "", ""),
        ("a block that does not end, with pods", |s| s.blocks[1].terminating_secs = Some(NOW - 3600), &[StuckDeleting], "with 1 address of it in use", "end its pods on node n2"),
        ("a block held by others", |s| { let b = &mut s.blocks[1]; b.terminating_secs = Some(NOW - 3600); b.held = false; b.held_by_others = vec!["x/y".into()]; }, &[StuckDeleting], "held by x/y", "who set that finalizer"),
        ("a block that is not announced", |s| s.blocks[1].advertised = Some(false), &[NotAdvertised], "node n2 does not announce it", "cairn status"),
        ("a pool that is not to be announced", |s| { s.pools[0].advertise = false; s.blocks[1].advertised = Some(false); }, &[], "", ""),
        ("an address without a pod", |s| { s.pods.remove(1); }, &[Leak], "in use by a/two, container c-10.1.0.65", "crictl pods --id c-10.1.0.65"),
        ("a pod that has not told its address yet", |s| s.pods[1].addresses.clear(), &[], "", ""),
        ("a pod that no block shows", |s| { let b = &mut s.blocks[1]; b.allocations.clear(); b.used = Some(0); }, &[Unallocated], "does not show it in use", "on n2"),
        ("a pod beyond what a status lists", |s| { let b = &mut s.blocks[1]; b.allocations.clear(); b.used = Some(9); }, &[], "", ""),
        ("a pod of another plugin", |s| s.pods.push(pod("b/three", "n2", "10.1.77.1")), &[Unallocated], "in no block: another plugin", "delete the pod"),
        ("a pod of a node that is off", |s| { let l = s.leases.get_mut("n2").expect("n2"); l.off = l.holder.clone(); s.pods.push(pod("b/three", "n2", "10.1.77.1")); }, &[Unallocated], "in no block any more: the machine of node n2 is off", "its name is b/three"),
        ("a pod outside of all pools", |s| s.pods.push(pod("b/three", "n2", "10.9.77.1")), &[], "", ""),
        ("a pod in another node's block", |s| s.pods[1].node = Some("n1".into()), &[OtherNodesBlock], "is in block 10.1.0.64/26 of node n2", "an address of node n1"),
        ("two pods with one address", |s| s.pods.push(pod("a/again", "n2", "10.1.0.65")), &[AddressTwice], "2 pods have 10.1.0.65", "show --address 10.1.0.65"),
        ("a reserved address in use", |s| s.reserved.push((net("10.1.0.65/32"), "late".into())), &[ReservedInUse], "10.1.0.65 is reserved", "shorten the reservation"),
        ("a node with a problem", |s| { s.problems.insert("n2".into(), vec!["BGP does not start".into()]); }, &[NodeProblem], "BGP does not start", "says what to do"),
        ("an address that only the kernel has", |s| { s.local.as_mut().expect("n1").kernel.insert(ip("10.1.0.9"), "cairn9".into()); }, &[KernelOnly], "the kernel has 10.1.0.9 on cairn9, and block 10.1.0.0/26 does not", "agent's log"),
        ("an address of another's block in the kernel", |s| { s.local.as_mut().expect("n1").kernel.insert(ip("10.1.0.70"), "cairn9".into()); }, &[KernelOnly], "belongs to node n2", "end the pod"),
        ("an address of no block in the kernel", |s| { s.local.as_mut().expect("n1").kernel.insert(ip("10.1.5.5"), "cairn9".into()); }, &[KernelOnly], "no block holds it", "takes the block back"),
        ("an address that the kernel lacks", |s| s.local.as_mut().expect("n1").kernel.clear(), &[StatusOnly], "no interface of this node has it", "restart the agent"),
        ("a kernel that does not answer", |s| { let l = s.local.as_mut().expect("n1"); l.kernel.clear(); l.unknown.push("cannot read".into()); }, &[LocalUnknown], "cannot read", "as root"),
        ("another announces an own block", |s| s.local.as_mut().expect("n1").heard.push(route("10.1.0.5/32", "192.0.2.66", None)), &[AnnouncedByAnother], "10.1.0.5/32 by 192.0.2.66 (peer tor)", "thought off"),
        ("another announces another's block", |s| s.local.as_mut().expect("n1").heard.push(route("10.1.0.64/26", "192.0.2.66", Some(65_066))), &[AnnouncedByAnother], "by AS 65066", "thought off"),
        ("another speaks for a block without a Node", |s| { s.nodes.remove("n2"); s.speakers.remove("n2"); s.problems.remove("n2"); s.local.as_mut().expect("n1").heard.truncate(1); }, &[NodeGone, AnnouncedByAnother], "", ""),
        ("no agent here", |s| s.local = None, &[], "", ""),
    ];
    for (what, spoil, kinds, words, remedy) in rows {
        let mut seen = cluster();
        spoil(&mut seen);
        let found = findings(&seen);
        let found_kinds: Vec<Kind> = found.iter().map(|finding| finding.kind).collect();
        let mut kinds = kinds.to_vec();
        kinds.sort_unstable();
        assert_eq!(found_kinds, kinds, "{what}: {found:#?}");
        for finding in &found {
            assert!(finding.text.contains(words), "{what}: {finding:#?}");
            assert!(finding.remedy.contains(remedy), "{what}: {finding:#?}");
            assert!(!finding.objects.is_empty() && !finding.remedy.is_empty(), "{what}");
        }
    }
    let covered: std::collections::BTreeSet<Kind> =
        rows.iter().flat_map(|row| row.2.iter().copied()).collect();
    assert_eq!(covered.len(), LocalUnknown as usize + 1, "a kind without a row: {covered:?}");
}

#[test]
fn blocks_of_one_dead_node_are_one_finding() {
    let mut seen = cluster();
    seen.nodes.remove("n2");
    for number in 0..40_u8 {
        seen.blocks.push(block(&format!("10.1.{}.0/26", number + 100), "n2", Vec::new()));
    }
    let found = findings(&seen);
    let [gone] = &found[..] else { panic!("{found:#?}") };
    assert_eq!(gone.objects.len(), 41, "each is named");
    assert!(gone.text.contains("has 41 blocks (10.1.0.64/26, ") && gone.text.contains("31 more"));
}

#[test]
fn only_what_two_looks_show_is_told() {
    let mut late = cluster();
    late.pods[1].addresses = vec![ip("10.1.0.66")];
    let first = findings(&late);
    assert!(!first.is_empty());
    assert_eq!(lasting(&first, findings(&cluster())), [], "the status has come");
    assert_eq!(lasting(&first, first.clone()), first);
    assert_eq!(lasting(&[], first), [], "what is new may only be on its way");
}
