//! Golden tests of `plan()`: a cluster as YAML in, everything that a node should do out.
//!
//! `CAIRN_BLESS=1 cargo test -p cairn-agent --test plan` writes the golden files anew; read the
//! difference before committing it.

use std::collections::{BTreeMap, BTreeSet};
use std::path::PathBuf;
use std::sync::Arc;

use cairn_agent::drain::{Departure, Reflection};
use cairn_agent::plan::{Local, NodePlan, plan};
use cairn_agent::view::{ClusterView, PeerNode};
use cairn_api::{
    ANNOTATION_DRAIN, AsTopology, BGPConfigurationStatus, BGPNode, BGPNodeSpec,
    LABEL_ROUTE_REFLECTOR, TopologyMode, TopologyShape,
};
use cairn_bgp::config::{ExportScope, PeerConfig};
use cairn_bgp::rib::Leaving;
use ipnet::IpNet;
use kube::{Resource, ResourceExt};
use serde::de::DeserializeOwned;

fn objects<K: Resource<DynamicType = ()> + DeserializeOwned>(yaml: &str) -> BTreeMap<String, K> {
    let kind = K::kind(&()).into_owned();
    yaml.split("---\n")
        .filter(|document| document.contains(&format!("kind: {kind}\n")))
        .map(|document| {
            let object: K =
                serde_saphyr::from_str(document).unwrap_or_else(|e| panic!("{kind}: {e}"));
            (object.name_any(), object)
        })
        .collect()
}

fn view(yaml: &str, node: &str) -> ClusterView {
    let mut bgp_nodes: BTreeMap<String, BGPNode> = objects(yaml);
    let own_bgp_node = bgp_nodes.remove(node).map(|own| own.spec);
    let others = bgp_nodes.into_iter();
    let peer_nodes = others.map(|(name, other)| (name.into(), PeerNode::from(&other.spec)));
    ClusterView {
        synced: true,
        node: objects(yaml).remove(node),
        pools: objects(yaml),
        own_blocks: objects(yaml),
        bgp_configuration: objects(yaml).remove("default"),
        own_bgp_node,
        peer_nodes: Arc::new(peer_nodes.collect()),
        bgp_peers: objects(yaml),
        bgp_policies: objects(yaml),
        bgp_advertisements: objects(yaml),
        node_configurations: objects(yaml),
        passwords: BTreeMap::new(),
        unwatched: BTreeMap::new(),
        ..ClusterView::default()
    }
}

static NOTHING: BTreeSet<IpNet> = BTreeSet::new();

fn planned(yaml: &str, node: &str, blocks: &[&str]) -> NodePlan {
    let blocks: Vec<IpNet> = blocks.iter().map(|b| b.parse().expect("a network")).collect();
    let reachable = blocks.iter().copied().collect();
    plan(&view(yaml, node), node, &Local::new(&blocks, &reachable, None))
}

fn golden(name: &str, plan: &NodePlan) {
    let path = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("tests/golden").join(name);
    let found = format!("{plan:#?}\n");
    if std::env::var_os("CAIRN_BLESS").is_some() {
        std::fs::write(&path, &found).expect("the golden file can be written");
    }
    let expected = std::fs::read_to_string(&path).unwrap_or_default();
    assert!(expected == found, "{} differs; the plan is now:\n{found}", path.display());
}

const RACK: &str = include_str!("golden/rack.yaml");

#[test]
fn a_node_in_a_rack_meshes_with_its_as_and_peers_with_its_router() {
    golden("rack-n1.txt", &planned(RACK, "n1", &["10.244.0.16/28"]));
}

#[test]
fn a_node_that_is_drained_tells_every_peer_and_keeps_its_sessions() {
    let blocks: [IpNet; 2] =
        ["10.244.0.16/28", "10.244.0.32/28"].map(|block| block.parse().expect("a network"));
    let reachable = blocks.iter().copied().collect();
    let mut view = view(RACK, "n1");
    let of = |view: &ClusterView, departure: &Departure| {
        let local = Local { departure, ..Local::new(&blocks, &reachable, None) };
        plan(view, "n1", &local).speaker.expect("a configuration")
    };
    let used = of(&view, &Departure::None);
    let leaving = of(&view, &Departure::Leaving);
    assert!(leaving.peers.values().all(|peer| peer.graceful_shutdown));
    assert!(leaving.peers.keys().eq(used.peers.keys()) && leaving.originate == used.originate);
    let withdrawn = of(&view, &Departure::Withdrawn { but: [blocks[1]].into() });
    assert!(withdrawn.peers.keys().eq(used.peers.keys()));
    let own_only = |peer: &PeerConfig| peer.export_scope == ExportScope::OriginatedOnly;
    assert!(withdrawn.peers.values().all(|peer| peer.graceful_shutdown && own_only(peer)));
    assert!(withdrawn.originate.keys().eq(&[blocks[1].into()]), "{:?}", withdrawn.originate);

    // What is kept of a peer whose policies are gone is not the drain's.
    let mut broken = view.clone();
    for peer in broken.bgp_peers.values_mut() {
        peer.spec.import_policies = vec!["gone".into()];
    }
    let kept = Local { running: Some(&withdrawn), ..Local::new(&blocks, &reachable, None) };
    let undone = plan(&broken, "n1", &kept).speaker.expect("a configuration");
    assert_eq!(undone.peers, used.peers);

    // The leader learns of the wish by the BGPNode.
    let topology = |view: &ClusterView| {
        let plan = plan(view, "n1", &Local::new(&blocks, &reachable, None));
        let (_, spec) = plan.bgp_node.expect("a BGPNode");
        (spec.topology.get(ANNOTATION_DRAIN).cloned(), plan.problems)
    };
    assert_eq!(topology(&view).0, None);
    let annotate = |view: &mut ClusterView, value: &str| {
        let node = view.node.as_mut().expect("a Node");
        node.annotations_mut().insert(ANNOTATION_DRAIN.into(), value.into());
    };
    annotate(&mut view, "now");
    assert_eq!(topology(&view), (Some("true".to_owned()), Vec::new()));
    annotate(&mut view, "please");
    let (leaves, problems) = topology(&view);
    assert!(leaves.is_none() && problems[0].contains("\"please\" drains nothing"), "{problems:?}");
}

#[test]
fn a_node_in_the_other_rack_does_not_peer_with_the_first_ones_router() {
    let plan = planned(RACK, "n3", &[]);
    let speaker = plan.speaker.expect("the node is known");
    let peers: Vec<&str> = speaker.peers.keys().map(|name| &**name).collect();
    assert_eq!(peers, ["bgppeer/tor2"]);
    assert_eq!(speaker.asn, 65102);
}

#[test]
fn one_as_makes_one_mesh() {
    let one =
        RACK.replace("    cairn.network/asn: \"65101\"\n", "").replace("asn: 65101", "asn: 64512");
    let one = one.replace("asn: 65102", "asn: 64512");
    let plan = planned(&one, "n1", &[]);
    let peers: Vec<String> =
        plan.speaker.expect("known").peers.keys().map(|name| name.to_string()).collect();
    assert_eq!(peers, ["bgppeer/tor1", "mesh/n2", "mesh/n3"]);
}

/// Five nodes of one AS, as `node` sees them, with what the leader has recorded: the reflectors, and those
/// before; no reflectors are a mesh.
fn reflected(node: &str, current: &[&str], previous: Option<&[&str]>) -> NodePlan {
    plan(&reflected_view(node, current, previous), node, &Local::new(&[], &NOTHING, None))
}

fn reflected_view(node: &str, current: &[&str], previous: Option<&[&str]>) -> ClusterView {
    let mut cluster =
        String::from("kind: BGPConfiguration\nmetadata:\n  name: default\nspec: {}\n");
    for n in 1..=5 {
        cluster += &format!(
            "---\nkind: Node\nmetadata:\n  name: n{n}\n  uid: {n}d2f\nstatus:\n  addresses:\n  \
             - {{type: InternalIP, address: 192.0.2.{n}}}\n---\nkind: BGPNode\nmetadata:\n  \
             name: n{n}\nspec: {{addresses: [192.0.2.{n}], asn: 64512, routerID: 192.0.2.{n}}}\n"
        );
    }
    let cluster = cluster.replace("kind: BGP", "apiVersion: cairn.network/v1alpha1\nkind: BGP");
    let mut view = view(&cluster.replace("kind: Node", "apiVersion: v1\nkind: Node"), node);
    let shape = |reflectors: &[&str]| TopologyShape {
        mode: match reflectors.is_empty() {
            true => TopologyMode::FullMesh,
            false => TopologyMode::RouteReflectors,
        },
        reflectors: reflectors.iter().map(|name| (*name).to_owned()).collect(),
    };
    let record = AsTopology {
        asn: 64512,
        revision: 7,
        current: shape(current),
        previous: previous.map(shape),
    };
    let topologies = vec![record];
    let configuration = view.bgp_configuration.as_mut().expect("it is in the cluster");
    configuration.status = Some(BGPConfigurationStatus { topologies, ..Default::default() });
    view
}

#[test]
fn a_reflector_that_is_drained_passes_on_until_another_has_its_place() {
    let two: &[&str] = &["n1", "n2"];
    assert_eq!(reflected("n5", two, None).reflects, Reflection::None);
    assert_eq!(reflected("n1", two, None).reflects, Reflection::Replaceable);
    let mut view = reflected_view("n1", two, None);
    let withdrawn = Departure::Withdrawn { but: BTreeSet::new() };
    let local = Local { departure: &withdrawn, ..Local::new(&[], &NOTHING, None) };
    let refuse = |view: &mut ClusterView| {
        for peer in Arc::make_mut(&mut view.peer_nodes).values_mut() {
            peer.no_reflector = true;
        }
    };
    refuse(&mut view);
    let alone = plan(&view, "n1", &local);
    assert_eq!(alone.reflects, Reflection::Alone);
    let peers = alone.speaker.expect("known").peers;
    assert!(peers.values().all(|p| p.graceful_shutdown && p.export_scope == ExportScope::All));
    // Another has been chosen, and not all have its routes.
    let mut view = reflected_view("n1", &["n2"], Some(two));
    refuse(&mut view);
    assert_eq!(plan(&view, "n1", &local).reflects, Reflection::Replaceable);
}

#[test]
fn who_may_not_reflect_is_known_of_other_nodes() {
    let of = |key: &str, value: &str| {
        let spec = BGPNodeSpec {
            addresses: vec!["192.0.2.2".into()],
            asn: 64512,
            router_id: "192.0.2.2".into(),
            topology: BTreeMap::from([(key.to_owned(), value.to_owned())]),
            tunnels: Vec::new(),
            blocks: Vec::new(),
        };
        PeerNode::from(&spec).no_reflector
    };
    assert!(of(ANNOTATION_DRAIN, "true") && of(LABEL_ROUTE_REFLECTOR, "false"));
    assert!(!of(LABEL_ROUTE_REFLECTOR, "true") && !of("topology.kubernetes.io/zone", "a"));
}

#[test]
fn a_node_peers_with_the_recorded_reflectors() {
    let client = reflected("n5", &["n1", "n2"], None);
    assert_eq!(peers(&client), ["mesh/n1", "mesh/n2"]);
    assert_eq!(client.ending, None);
    let speaker = client.speaker.expect("known");
    let session = &speaker.peers["mesh/n1"];
    assert!(!session.route_reflector_client && session.export.is_empty());
    assert_eq!(session.export_scope, ExportScope::OriginatedOnly);

    let reflector = reflected("n1", &["n1", "n2"], None);
    assert_eq!(peers(&reflector), ["mesh/n2", "mesh/n3", "mesh/n4", "mesh/n5"]);
    let speaker = reflector.speaker.expect("known");
    let clients = speaker.peers.values().map(|peer| peer.route_reflector_client);
    assert_eq!(clients.collect::<Vec<_>>(), [false, true, true, true]);
    assert!(speaker.peers.values().all(|peer| peer.export_scope == ExportScope::All));
    assert_eq!(speaker.peers["mesh/n5"].export[0].name, "built-in/reflected".into());

    // Nobody that is recorded is there.
    assert_eq!(peers(&reflected("n5", &["gone"], None)).len(), 4);
    assert_eq!(peers(&reflected("n5", &["gone", "n4"], None)), ["mesh/n4"]);
    assert_eq!(peers(&reflected("n5", &[], None)).len(), 4);
}

#[test]
fn a_change_over_has_the_sessions_of_both_shapes() {
    let (mesh, three): (&[&str], &[&str]) = (&[], &["n1", "n2", "n3"]);
    let ending = |plan: &NodePlan| {
        let ending = plan.ending.as_ref().expect("a change-over");
        assert_eq!(ending.revision, 7);
        let peers = ending.peers.iter().map(|(peer, leaving)| (peer.to_string(), *leaving));
        peers.collect::<Vec<_>>()
    };
    let to_reflectors = reflected("n5", three, Some(mesh));
    assert_eq!(peers(&to_reflectors).len(), 4);
    assert_eq!(ending(&to_reflectors), [("mesh/n4".to_owned(), Leaving::Session)]);
    let reflector = reflected("n1", three, Some(mesh));
    assert_eq!(ending(&reflector), []);
    assert!(reflector.speaker.expect("known").peers["mesh/n5"].route_reflector_client);

    // Sessions with them stay, and what they have from others ends.
    let to_mesh = reflected("n5", mesh, Some(three));
    assert_eq!(peers(&to_mesh).len(), 4);
    let ends = ["mesh/n1", "mesh/n2", "mesh/n3"].map(|n| (n.to_owned(), Leaving::Reflection));
    assert_eq!(ending(&to_mesh), ends);
    let reflects = reflected("n1", mesh, Some(three)).speaker.expect("known");
    assert!(reflects.peers["mesh/n5"].route_reflector_client);

    // Who is still a client of an old one stays it beside others that are to reflect: these may have no
    // session with each other yet. What it hears so ends, and has to be there without.
    let old = reflected("n1", &["n2", "n3"], Some(&["n1"]));
    let peers_of = |plan: &NodePlan| plan.speaker.clone().expect("known").peers;
    assert!(peers_of(&old)["mesh/n2"].route_reflector_client);
    assert!(peers_of(&old)["mesh/n3"].route_reflector_client);
    let new = reflected("n2", &["n1", "n2", "n3"], Some(&["n1"]));
    assert!(!peers_of(&new)["mesh/n3"].route_reflector_client);
    assert_eq!(ending(&new), [("mesh/n1".to_owned(), Leaving::Reflection)]);
    assert_eq!(ending(&reflected("n1", &["n1", "n2"], Some(&["n1"]))), []);

    // One reflector takes the place of another.
    let client = reflected("n5", &["n2", "n3", "n4"], Some(three));
    assert_eq!(peers(&client).len(), 4);
    assert_eq!(ending(&client), [("mesh/n1".to_owned(), Leaving::Session)]);
    let other = reflected("n2", &["n2", "n3", "n4"], Some(three));
    assert_eq!(ending(&other), [("mesh/n1".to_owned(), Leaving::Reflection)]);
    // Those before that are gone are nothing to hold on to.
    assert_eq!(peers(&reflected("n5", &["n2"], Some(&["gone"]))), ["mesh/n2"]);
}

#[test]
fn bfd_of_the_mesh_is_that_of_the_configuration_and_off_by_default() {
    let bfd = |bfd: &str| {
        let plan = planned(
            &RACK.replacen("  asn: 64512\n", &format!("  asn: 64512\n{bfd}"), 1),
            "n1",
            &[],
        );
        let peers = plan.speaker.expect("known").peers;
        let bfd = |name: &str| peers[name].bfd.map(|bfd| (bfd.interval_ms, bfd.multiplier));
        (bfd("mesh/n2"), bfd("bgppeer/tor1"), plan.problems)
    };
    assert_eq!(bfd(""), (None, None, vec![]));
    assert_eq!(bfd("  bfd: {enabled: false}\n"), (None, None, vec![]));
    let fast = "  bfd: {intervalMs: 100, multiplier: 5}\n";
    assert_eq!(bfd(fast), (Some((100, 5)), None, vec![]));
    let (mesh, _, problems) = bfd("  bfd: {intervalMs: 1}\n");
    assert_eq!(mesh, None);
    assert!(problems[0].contains("spec.bfd.intervalMs"), "{problems:?}");
}

#[test]
fn a_peer_that_waits_for_its_password_is_left_out_and_its_bfd_goes_on() {
    let peer = "  asn: 65201\n  bfd: {}\n  passwordSecretRef: {name: bgp, key: password}\n";
    let rack = RACK.replacen("  asn: 65201\n", peer, 1);
    for restored in [true, false] {
        let view = ClusterView { restored, ..view(&rack, "n1") };
        let plan = plan(&view, "n1", &Local::new(&[], &NOTHING, None));
        let has_session = plan.speaker.expect("known").peers.contains_key("bgppeer/tor1");
        let waits = plan.waiting.get("bgppeer/tor1");
        assert_eq!((has_session, waits.is_some()), (false, restored), "{:?}", plan.problems);
        assert!(waits.is_none_or(|peer| peer.bfd.is_some() && peer.password.is_none()));
    }
}

#[test]
fn a_block_is_announced_only_once_its_route_is_in_the_kernel() {
    let block: IpNet = "10.244.0.16/28".parse().expect("a network");
    let blocks = [block];
    let local = Local::new(&blocks, &NOTHING, None);
    let plan = plan(&view(RACK, "n1"), "n1", &local);
    assert!(plan.blackholes.contains(&block));
    assert!(plan.speaker.expect("known").originate.is_empty());
}

#[test]
fn pods_wait_for_peers_where_that_is_asked_for_and_the_block_goes_to_peers() {
    let block: IpNet = "10.244.0.16/28".parse().expect("a network");
    let heard_first = |more: &str, unlike: (&str, &str)| {
        let cluster = format!("{RACK}{more}").replace(unlike.0, unlike.1);
        // Its route need not be in the kernel yet: that is waited for, too.
        let (view, blocks) = (view(&cluster, "n1"), [block]);
        plan(&view, "n1", &Local::new(&blocks, &NOTHING, None)).heard_first
    };
    let announced = "---
apiVersion: cairn.network/v1alpha1
kind: NodeConfiguration
metadata:
  name: default
spec: {readiness: Announced}
";
    assert_eq!(heard_first("", ("", "")), NOTHING);
    assert_eq!(heard_first(announced, ("", "")), BTreeSet::from([block]));
    let pool = "  cidr: 10.244.0.0/16\n";
    let kept = format!("{pool}  advertise: false\n");
    assert_eq!(heard_first(announced, (pool, &kept)), NOTHING);
}

#[test]
fn without_its_node_object_an_agent_keeps_its_sessions_and_writes_nothing() {
    let mut view = view(RACK, "n1");
    view.node = None;
    let local = Local::new(&[], &NOTHING, None);
    let plan = plan(&view, "n1", &local);
    assert!(plan.bgp_node.is_none());
    assert!(plan.speaker.expect("known from its BGPNode").peers.contains_key("mesh/n2"));
}

#[test]
fn what_is_wrong_is_named_and_the_rest_goes_on() {
    let wrong = RACK
        .replace("address: 172.31.1.1\n", "address: tor1\n")
        .replace("  asn: 64512\n", "  asn: 64512\n  routerID: 1.1.1.1\n");
    let plan = planned(&wrong, "n1", &[]);
    let speaker = plan.speaker.expect("known");
    assert_eq!(speaker.peers.keys().map(|n| n.to_string()).collect::<Vec<_>>(), ["mesh/n2"]);
    for text in ["BGPPeer tor1 is not used: spec.address: \"tor1\"", "spec.routerID"] {
        assert!(plan.problems.iter().any(|p| p.contains(text)), "{:?}", plan.problems);
    }
}

#[test]
fn an_unusable_as_label_is_named() {
    let plan = planned(&RACK.replace("\"65101\"", "\"many\""), "n1", &[]);
    assert!(plan.speaker.is_none());
    assert!(plan.problems.iter().any(|p| p.contains("cairn.network/asn=\"many\"")));
}

fn peers(plan: &NodePlan) -> Vec<String> {
    let speaker = plan.speaker.as_ref().expect("the node is known");
    speaker.peers.keys().map(|name| name.to_string()).collect()
}

/// A machine that took over the address of one whose Node is still there.
#[test]
fn an_address_of_two_nodes_is_one_peer_and_a_problem() {
    let twice = RACK.replace(
        "  name: n3\nspec: {addresses: [172.31.2.11], asn: 65102",
        "  name: n3\nspec: {addresses: [172.31.1.12], asn: 65101",
    );
    let plan = planned(&twice, "n1", &[]);
    assert_eq!(peers(&plan), ["bgppeer/tor1", "mesh/n2"]);
    let text = "Node n3 is not peered with: 172.31.1.12 is the address of mesh/n2 too";
    assert!(plan.problems.iter().any(|p| p == text), "{:?}", plan.problems);

    let own = RACK.replace(
        "name: n2\nspec: {addresses: [172.31.1.12]",
        "name: n2\nspec: {addresses: [172.31.1.11]",
    );
    let plan = planned(&own, "n1", &[]);
    assert_eq!(peers(&plan), ["bgppeer/tor1"]);
    assert!(plan.problems.iter().any(|p| p.contains("this node's own address")));
}

#[test]
fn a_peer_whose_policy_goes_keeps_its_session() {
    let with = |policies: &str| {
        RACK.replace("  address: 172.31.1.1\n", &format!("  address: 172.31.1.1\n{policies}"))
    };
    let before = planned(&with(""), "n1", &[]).speaker.expect("known");
    let running = Local::new(&[], &NOTHING, Some(&before));
    let after = plan(&view(&with("  importPolicies: [gone]\n"), "n1"), "n1", &running);
    assert_eq!(after.speaker.as_ref(), Some(&before));
    assert!(after.problems.iter().any(|p| p.contains("keeps its old settings")));

    let fresh = planned(&with("  importPolicies: [gone]\n"), "n1", &[]);
    assert_eq!(peers(&fresh), ["mesh/n2"]);
}

#[test]
fn a_configuration_past_the_schema_does_not_stop_a_node() {
    let bad = RACK.replace("  asn: 64512\n", "  asn: 64512\n  listenPort: 0\n");
    let plan = planned(&bad, "n1", &[]);
    assert_eq!(plan.speaker.as_ref().map(|s| s.listen[0].port()), Some(179));
    assert!(plan.problems.iter().any(|p| p.contains("spec.listenPort")));
}

/// Peers and advertisements are chosen by labels, which are gone with the Node.
#[test]
fn a_node_object_that_is_deleted_changes_nothing_for_a_running_node() {
    let advertisement = "---
apiVersion: cairn.network/v1alpha1
kind: BGPAdvertisement
metadata:
  name: rack
spec: {cidrs: [172.31.1.0/24], nodeSelector: {matchLabels: {rack: '1'}}}
";
    let cluster = format!("{RACK}{advertisement}");
    let before = planned(&cluster, "n1", &[]).speaker.expect("known");
    assert_eq!(before.originate.len(), 1);
    assert!(before.peers.contains_key("bgppeer/tor1"));
    let mut view = view(&cluster, "n1");
    view.node = None;
    let local = Local::new(&[], &NOTHING, Some(&before));
    assert_eq!(plan(&view, "n1", &local).speaker, Some(before));
}
