//! `plan`: from what an agent knows of the cluster to everything that its node should do.
//!
//! One pure function. Golden tests, the dry run and the simulator stand on it: nothing in here reads
//! a clock, a socket, a file or the kernel.

use std::collections::btree_map::Entry;
use std::collections::{BTreeMap, BTreeSet};
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::sync::Arc;

use cairn_api::{
    ANNOTATION_DRAIN, BGPConfigurationSpec, BGPNodeSpec, BGPPeerSpec, Encapsulation, IPPool,
    LABEL_ASN, LABEL_ROUTE_REFLECTOR, NodeConfigurationSpec, ObjectReference, PodReadiness,
    PoolUse, Topology, TunnelKind,
};
use cairn_bgp::config::{
    Bfd, ExportScope, InterfaceName, Origination, PeerConfig, PeerName, SpeakerConfig,
};
use cairn_bgp::policy::{Action, Changes, Match, Policy, PrefixRange, RouteSort, Rule};
use cairn_bgp::prefix::{Families, Family, Prefix};
use cairn_bgp::rib::{BlockOwner, OriginTable};
use cairn_ipam::Family as AddressFamily;
use ipnet::IpNet;
use k8s_openapi::api::core::v1::Node;

use crate::drain::{Departure, Reflection, Wish};
use crate::node_address::{self, AddressChooser, OwnAddress};
use crate::objects::{self, DefaultPolicies, Policies};
use crate::topology::{Ending, MESH, Role, Topology as NodeTopology};
use crate::tunnels::{self, Ways};
use crate::view::{ClusterView, PeerNode};

/// Everything that one node should do.
#[derive(Clone, Debug, PartialEq)]
pub struct NodePlan {
    /// The speaker's configuration; `None` while the node's own address or AS is not known.
    pub speaker: Option<SpeakerConfig>,
    /// Why there is none: one of the problems.
    pub no_speaker: Option<String>,
    /// Peers that are left out of it only until the API server shows their passwords: their BFD goes on.
    pub waiting: BTreeMap<PeerName, PeerConfig>,
    /// What of the sessions in it ends with the change-over of the topology, while there is one.
    pub ending: Option<Ending>,
    /// Whether other nodes of its AS hear of each other by this one.
    pub reflects: Reflection,
    /// The node's own BGPNode and the Node that owns it; `None` while the Node does not exist.
    pub bgp_node: Option<(ObjectReference, BGPNodeSpec)>,
    /// The node's addresses, at most one a family.
    pub addresses: Vec<IpAddr>,
    /// Blocks that the node owns: a blackhole route each.
    pub blackholes: BTreeSet<IpNet>,
    /// Those of them whose pods begin when BGP peers have heard of the block.
    pub heard_first: BTreeSet<IpNet>,
    /// How others' blocks are reached.
    pub ways: Ways,
    /// The pools, by name, in whose blocks each tunnel device has its address of a family.
    pub tunnel_pools: BTreeMap<(TunnelKind, AddressFamily), Vec<String>>,
    /// The settings of the node's kernel.
    pub settings: NodeConfigurationSpec,
    /// What is wrong and what to do, one sentence each.
    pub problems: Vec<String>,
}

/// What a node knows of itself and not from the API.
#[derive(Clone, Copy, Debug)]
pub struct Local<'a> {
    /// The blocks that it owns: confirmed claims.
    pub blocks: &'a [IpNet],
    /// Those of them whose route is in its kernel, so that pods in them can be reached.
    pub reachable: &'a BTreeSet<IpNet>,
    /// What its speaker runs on: a peer that cannot be used any more stays as it is.
    pub running: Option<&'a SpeakerConfig>,
    /// The tunnels from which its kernel takes packets.
    pub tunnels: &'a BTreeSet<TunnelKind>,
    /// Its own addresses with their interfaces.
    pub interfaces: &'a [OwnAddress],
    /// The address from which it reaches the API server.
    pub towards_api: Option<IpAddr>,
    /// Where others know it, without what it has lost for long.
    pub before: &'a [IpAddr],
    /// What is announced while it is being drained.
    pub departure: &'a Departure,
}

impl<'a> Local<'a> {
    /// Of a node without tunnels, whose interfaces are not known.
    pub fn new(
        blocks: &'a [IpNet],
        reachable: &'a BTreeSet<IpNet>,
        running: Option<&'a SpeakerConfig>,
    ) -> Local<'a> {
        static NO_TUNNELS: BTreeSet<TunnelKind> = BTreeSet::new();
        static IN_USE: Departure = Departure::None;
        Local {
            blocks,
            reachable,
            running,
            tunnels: &NO_TUNNELS,
            interfaces: &[],
            towards_api: None,
            before: &[],
            departure: &IN_USE,
        }
    }
}

/// Plans what the node `name` should do. A block is announced once it is reachable.
///
/// A part that cannot be planned is left out and named in `problems`; the rest stands.
pub fn plan(view: &ClusterView, name: &str, local: &Local<'_>) -> NodePlan {
    let mut problems = Vec::new();
    let configuration = configuration(view, &mut problems);
    let settings = settings(view, &mut problems);
    let chooser = AddressChooser {
        settings: &settings.node_address,
        own: local.interfaces,
        towards_api: local.towards_api,
        before: local.before,
    };
    let identity = Identity::of(view, name, &configuration, Some(&chooser), &mut problems);
    let no_speaker = match identity {
        Some(_) => None,
        None => problems.last().cloned(),
    };
    let addresses = identity.as_ref().map(|me| me.addresses.clone()).unwrap_or_default();
    let ways = Ways::of(view, &addresses, settings.vxlan);
    let mut waiting = BTreeMap::new();
    let speaker = identity
        .as_ref()
        .map(|me| speaker(view, name, me, &configuration, local, &mut waiting, &mut problems));
    let topology = identity.as_ref().map(|me| NodeTopology::of(view, name, me.asn));
    let ending = (topology.as_ref().zip(speaker.as_ref()))
        .and_then(|(topology, speaker)| topology.ending(speaker.peers.keys()));
    // The record stays while nobody peers by it.
    let peers_by_it = topology.as_ref().filter(|_| configuration.topology != Topology::Disabled);
    let reflects = (peers_by_it.zip(identity.as_ref()))
        .map(|(topology, me)| topology.reflection(view, me.asn))
        .unwrap_or_default();
    let bgp_node = identity.as_ref().and_then(|me| {
        let owner = me.owner.clone()?;
        Some((owner, me.bgp_node(&ways, local)))
    });
    NodePlan {
        speaker,
        no_speaker,
        waiting,
        ending,
        reflects,
        bgp_node,
        addresses,
        blackholes: local.blocks.iter().copied().collect(),
        heard_first: heard_first(view, &settings, local),
        ways,
        tunnel_pools: tunnel_pools(view),
        settings,
        problems,
    }
}

/// The AS of the node `name`, as [`plan`] finds it.
pub fn own_asn(view: &ClusterView, name: &str) -> Option<u32> {
    let problems = &mut Vec::new();
    let configuration = configuration(view, problems);
    Identity::of(view, name, &configuration, None, problems).map(|me| me.asn)
}

fn configuration(view: &ClusterView, problems: &mut Vec<String>) -> BGPConfigurationSpec {
    let Some(object) = &view.bgp_configuration else {
        return BGPConfigurationSpec::default();
    };
    let mut spec = object.spec.clone();
    let of_files = spec.router_id.is_some() || spec.cluster_id.is_some();
    if of_files || !spec.listen_addresses.is_empty() {
        problems.push(
            "BGPConfiguration default: spec.routerID, spec.clusterID and spec.listenAddresses are for \
             files of cairn speaker and are ignored here; use the annotation cairn.network/router-id \
             of a Node"
                .into(),
        );
    }
    let default = BGPConfigurationSpec::default();
    let mut unusable = |error| {
        problems.push(format!("BGPConfiguration default: {error}; the default is used"));
    };
    if let Err(error) = objects::hold_time("spec.timers.holdTimeSecs", spec.timers.hold_time_secs) {
        unusable(error);
        spec.timers = default.timers;
    }
    if let Err(error) = objects::port("spec.listenPort", spec.listen_port) {
        unusable(error);
        spec.listen_port = default.listen_port;
    }
    spec
}

/// Who a node is in BGP.
struct Identity {
    owner: Option<ObjectReference>,
    addresses: Vec<IpAddr>,
    asn: u32,
    router_id: Ipv4Addr,
    topology: BTreeMap<String, String>,
}

impl Identity {
    /// From the node's own Node object; without one, as long as others still see the node, from
    /// its BGPNode, so that forwarding goes on.
    fn of(
        view: &ClusterView,
        name: &str,
        configuration: &BGPConfigurationSpec,
        chooser: Option<&AddressChooser<'_>>,
        problems: &mut Vec<String>,
    ) -> Option<Identity> {
        match (&view.node, &view.own_bgp_node) {
            (Some(node), _) => Identity::from_node(node, name, configuration, chooser, problems),
            (None, Some(spec)) => Identity::from_bgp_node(spec),
            (None, None) => {
                problems.push(format!(
                    "there is no Node {name}: start the agent with --node-name of an existing Node"
                ));
                None
            }
        }
    }

    fn from_node(
        node: &Node,
        name: &str,
        configuration: &BGPConfigurationSpec,
        chooser: Option<&AddressChooser<'_>>,
        problems: &mut Vec<String>,
    ) -> Option<Identity> {
        let labels = node.metadata.labels.clone().unwrap_or_default();
        let asn = match labels.get(LABEL_ASN) {
            None => match objects::asn("spec.asn", configuration.asn) {
                Ok(asn) => asn,
                Err(error) => {
                    problems.push(format!("BGPConfiguration default: {error}"));
                    return None;
                }
            },
            Some(text) => match text.parse().ok().filter(|n| objects::asn(LABEL_ASN, *n).is_ok()) {
                Some(asn) => asn,
                None => {
                    problems.push(format!(
                        "Node {name}: label {LABEL_ASN}=\"{text}\" is no usable AS number; write \
                         one from 1 to 4294967294, or remove the label"
                    ));
                    return None;
                }
            },
        };
        let addresses = match chooser {
            Some(chooser) => chooser.choose(node, name, problems),
            None => node_address::internal_addresses(node),
        };
        if addresses.is_empty() {
            problems.push(format!(
                "Node {name} has no InternalIP in its status, and none of this node's addresses leads to \
                 the API server: the kubelet sets it, see --node-ip"
            ));
            return None;
        }
        let uid = node.metadata.uid.clone().unwrap_or_default();
        let router_id = router_id(node, name, &addresses, &uid, problems);
        let wish = Wish::of(node).unwrap_or_else(|error| {
            problems.push(format!("Node {name}: {error}"));
            Wish::Stay
        });
        let leaves = (wish != Wish::Stay).then(|| (ANNOTATION_DRAIN.to_owned(), "true".to_owned()));
        let topology = labels
            .into_iter()
            .filter(|(key, _)| {
                key.starts_with("topology.kubernetes.io/") || key == LABEL_ROUTE_REFLECTOR
            })
            .chain(leaves)
            .collect();
        let owner = Some(ObjectReference { name: name.into(), uid });
        Some(Identity { owner, addresses, asn, router_id, topology })
    }

    fn from_bgp_node(spec: &BGPNodeSpec) -> Option<Identity> {
        Some(Identity {
            owner: None,
            addresses: spec.addresses.iter().filter_map(|a| a.parse().ok()).collect(),
            asn: spec.asn,
            router_id: spec.router_id.parse().ok()?,
            topology: spec.topology.clone(),
        })
    }

    fn bgp_node(&self, ways: &Ways, local: &Local<'_>) -> BGPNodeSpec {
        let wrapped = |block: &&IpNet| ways.encapsulation(**block) != Encapsulation::None;
        let mut blocks: Vec<IpNet> = local.blocks.iter().filter(wrapped).copied().collect();
        blocks.sort_unstable();
        BGPNodeSpec {
            tunnels: ways.kinds().intersection(local.tunnels).copied().collect(),
            blocks: blocks.iter().map(IpNet::to_string).collect(),
            addresses: self.addresses.iter().map(IpAddr::to_string).collect(),
            asn: self.asn,
            router_id: self.router_id.to_string(),
            topology: self.topology.clone(),
        }
    }
}

/// The settings of this node's kernel: those of the first NodeConfiguration by name that selects it,
/// else those of the one named default, else the defaults.
fn settings(view: &ClusterView, problems: &mut Vec<String>) -> NodeConfigurationSpec {
    let labels = view.node.as_ref().map(|n| n.metadata.labels.clone().unwrap_or_default());
    let selects = |spec: &NodeConfigurationSpec| {
        let selector = spec.node_selector.as_ref();
        selector.zip(labels.as_ref()).is_some_and(|(selector, labels)| selector.matches(labels))
    };
    let mut selecting = view.node_configurations.iter().filter(|(_, object)| selects(&object.spec));
    let Some((first, chosen)) = selecting.next() else {
        let default = view.node_configurations.get("default");
        return default.map(|object| object.spec.clone()).unwrap_or_default();
    };
    for (other, _) in selecting {
        problems.push(format!(
            "NodeConfiguration {other} selects this node too and is not used here: {first} comes \
             first by name; let their nodeSelectors not overlap"
        ));
    }
    chosen.spec.clone()
}

/// Where the tunnel devices have their addresses: in blocks of the pools that need them.
fn tunnel_pools(view: &ClusterView) -> BTreeMap<(TunnelKind, AddressFamily), Vec<String>> {
    let mut pools: BTreeMap<_, Vec<String>> = BTreeMap::new();
    for (name, pool) in &view.pools {
        let kind = tunnels::kind_of(pool.spec.encapsulation);
        let cidr = pool.spec.cidr.parse::<IpNet>().ok();
        let Some((kind, cidr)) = kind.zip(cidr) else { continue };
        if pool.metadata.deletion_timestamp.is_none() {
            pools.entry((kind, AddressFamily::of_net(cidr))).or_default().push(name.clone());
        }
    }
    pools
}

fn router_id(
    node: &Node,
    name: &str,
    addresses: &[IpAddr],
    uid: &str,
    problems: &mut Vec<String>,
) -> Ipv4Addr {
    if let Some(text) =
        node.metadata.annotations.as_ref().and_then(|map| map.get(ANNOTATION_ROUTER_ID))
    {
        match text.parse::<Ipv4Addr>() {
            Ok(id) if !id.is_unspecified() => return id,
            _ => problems.push(format!(
                "Node {name}: annotation {ANNOTATION_ROUTER_ID}=\"{text}\" is no BGP identifier; \
                 write one such as 192.0.2.1"
            )),
        }
    }
    addresses
        .iter()
        .find_map(|address| match address {
            IpAddr::V4(v4) => Some(*v4),
            IpAddr::V6(_) => None,
        })
        .unwrap_or_else(|| Ipv4Addr::from_bits(hash32(uid).max(1)))
}

/// FNV-1a: a router ID must be the same after every restart and in every version.
fn hash32(text: &str) -> u32 {
    text.bytes().fold(0x811c_9dc5, |hash, byte| (hash ^ u32::from(byte)).wrapping_mul(0x0100_0193))
}

fn speaker(
    view: &ClusterView,
    name: &str,
    me: &Identity,
    configuration: &BGPConfigurationSpec,
    local: &Local<'_>,
    waiting: &mut BTreeMap<PeerName, PeerConfig>,
    problems: &mut Vec<String>,
) -> SpeakerConfig {
    let bfd = mesh_bfd(configuration, problems);
    let mut peers = Peers::default();
    let built_in = BuiltIn::of(view, local.blocks);
    if configuration.topology != Topology::Disabled {
        let topology = NodeTopology::of(view, name, me.asn);
        for (other, node) in view.peer_nodes.iter().filter(|(_, node)| node.asn == me.asn) {
            let Some(role) = topology.role(other) else { continue };
            if let Some(peer) = mesh_peer(me, node, configuration, &built_in, role) {
                let peer = PeerConfig { bfd, ..peer };
                let what = format!("Node {other}");
                match me.addresses.contains(&peer.address) {
                    true => problems.push(format!(
                        "{what} is not peered with: it has this node's own address {}",
                        peer.address
                    )),
                    false => peers.add(format!("{MESH}{other}"), &what, peer, problems),
                }
            }
        }
    }
    let policies = policies(view, problems);
    let labels = view.node.as_ref().map(|n| n.metadata.labels.clone().unwrap_or_default());
    for (peer_name, object) in &view.bgp_peers {
        let key = format!("bgppeer/{peer_name}");
        let running = local.running.and_then(|running| running.peers.get(key.as_str()));
        let selected = match (&object.spec.node_selector, &labels) {
            (None, _) => true,
            (Some(selector), Some(labels)) => selector.matches(labels),
            // Without its Node it is not known what the node is: what was, stays.
            (Some(_), None) => running.is_some(),
        };
        if !selected {
            continue;
        }
        let external = object.spec.asn != me.asn;
        let (import, export) = if external {
            (std::slice::from_ref(&built_in.import), std::slice::from_ref(&built_in.export))
        } else {
            (&[][..], &[][..])
        };
        let defaults = DefaultPolicies { import, export };
        let what = format!("BGPPeer {peer_name}");
        match objects::peer(&object.spec, configuration, &policies, &view.passwords, defaults) {
            Ok(_) if objects::range(&object.spec).is_some() => problems.push(format!(
                "{what} is not used: a range of addresses is for the file of a cairn speaker; name each peer"
            )),
            Ok(peer) => peers.add(key, &what, peer, problems),
            Err(error) => match running {
                Some(peer) => {
                    problems.push(format!("{what} keeps its old settings: {error}"));
                    // But for those of a drain, which may be over.
                    let peer = PeerConfig {
                        graceful_shutdown: object.spec.graceful_shutdown
                            || configuration.graceful_shutdown,
                        export_scope: ExportScope::All,
                        ..peer.clone()
                    };
                    peers.add(key, &what, peer, problems);
                }
                None if waits_for_password(view, &object.spec) => {
                    problems.push(format!(
                        "{what} waits for its password: it is in no file, and the API server has \
                         not shown the Secret since this agent started"
                    ));
                    let open = BGPPeerSpec { password_secret_ref: None, ..object.spec.clone() };
                    let peer =
                        objects::peer(&open, configuration, &policies, &view.passwords, defaults);
                    waiting.extend(peer.ok().map(|peer| (PeerName::from(key), peer)));
                }
                None => problems.push(format!("{what} is not used: {error}")),
            },
        }
    }
    keep_long_only_pods(view, &mut peers.by_name);
    leave(local.departure, &mut peers.by_name);
    SpeakerConfig {
        asn: me.asn,
        origins: Arc::new(origins(name, me, local)),
        router_id: me.router_id,
        cluster_id: None,
        listen: me
            .addresses
            .iter()
            .map(|address| SocketAddr::new(*address, configuration.listen_port))
            .collect(),
        peers: peers.by_name,
        ranges: BTreeMap::new(),
        originate: originate(view, local, labels.as_ref(), problems),
        selection_deferral_secs: SELECTION_DEFERRAL_SECS,
        multipath: objects::multipath(configuration.multipath),
    }
}

/// Has all sessions tell that the node is being drained. They stay, so that it is taken back at once. What other
/// nodes hear of each other only by this one they hear for as long as it is a route reflector.
fn leave(departure: &Departure, peers: &mut BTreeMap<PeerName, PeerConfig>) {
    if *departure == Departure::None {
        return;
    }
    for (name, peer) in peers {
        peer.graceful_shutdown = true;
        if matches!(departure, Departure::Withdrawn { .. }) && !name.starts_with(MESH) {
            peer.export_scope = ExportScope::OriginatedOnly;
        }
    }
}

/// Of stale routes, only those of pods' blocks are kept for long: who else owns a service's address, or
/// a default route, may have changed meanwhile.
fn keep_long_only_pods(view: &ClusterView, peers: &mut BTreeMap<PeerName, PeerConfig>) {
    let restarts = peers.values_mut().filter_map(|peer| peer.graceful_restart.as_mut());
    let mut long_lived = restarts.filter_map(|restart| restart.long_lived.as_mut()).peekable();
    if long_lived.peek().is_none() {
        return;
    }
    let pools = view.pools.values().map(|pool| &pool.spec);
    let only_pods = pools.filter(|pool| pool.uses.iter().all(|used| *used == PoolUse::Pod));
    let cidrs = only_pods.filter_map(|pool| pool.cidr.parse::<IpNet>().ok());
    let pods: Arc<[Prefix]> = cidrs.map(Prefix::from).collect();
    long_lived.for_each(|long_lived| long_lived.within = Some(Arc::clone(&pods)));
}

/// Whether a peer's password may be there once the API server answers. A session without it is not
/// started: it could not come up, and an open one would be a different promise.
fn waits_for_password(view: &ClusterView, spec: &BGPPeerSpec) -> bool {
    let password = spec.password_secret_ref.as_ref();
    view.restored && password.is_some_and(|secret| !view.passwords.contains_key(&secret.name))
}

/// Peers, of which each address, or interface, has one: two Nodes may have the same for a while, when a machine took
/// over the address of one that is gone.
#[derive(Default)]
struct Peers {
    by_name: BTreeMap<PeerName, PeerConfig>,
    by_place: BTreeMap<(IpAddr, Option<InterfaceName>), PeerName>,
}

impl Peers {
    /// Adds `peer`, which `what` describes for people, unless its address has one already.
    fn add(&mut self, name: String, what: &str, peer: PeerConfig, problems: &mut Vec<String>) {
        let name = PeerName::from(name);
        match self.by_place.entry((peer.address, peer.interface.clone())) {
            Entry::Vacant(free) => {
                free.insert(name.clone());
                self.by_name.insert(name, peer);
            }
            Entry::Occupied(other) => {
                let place = match &peer.interface {
                    Some(interface) => format!("{interface} is the interface"),
                    None => format!("{} is the address", peer.address),
                };
                problems.push(format!("{what} is not peered with: {place} of {} too", other.get()));
            }
        }
    }
}

/// BFD of the sessions of the mesh.
fn mesh_bfd(configuration: &BGPConfigurationSpec, problems: &mut Vec<String>) -> Option<Bfd> {
    let wanted = configuration.bfd.filter(|bfd| bfd.enabled)?;
    let bfd = objects::bfd(wanted);
    bfd.map_err(|error| {
        problems.push(format!("BGPConfiguration default: {error}; the mesh is without BFD"));
    })
    .ok()
}

/// The session with another node of the same AS, in this node's `role` there, over IPv4 where both have it.
fn mesh_peer(
    me: &Identity,
    other: &PeerNode,
    configuration: &BGPConfigurationSpec,
    built_in: &BuiltIn,
    role: Role,
) -> Option<PeerConfig> {
    let shared = |v4: bool| {
        let mine = me.addresses.iter().copied().find(|a| a.is_ipv4() == v4)?;
        let theirs = if v4 { other.ipv4.map(IpAddr::V4) } else { other.ipv6.map(IpAddr::V6) };
        Some((mine, theirs?))
    };
    let (source, address) = shared(true).or_else(|| shared(false))?;
    let families: Families = [(true, Family::Ipv4Unicast), (false, Family::Ipv6Unicast)]
        .into_iter()
        .filter(|(v4, _)| shared(*v4).is_some())
        .map(|(_, family)| family)
        .collect();
    Some(PeerConfig {
        port: configuration.listen_port,
        source_address: Some(source),
        multihop: 255,
        families,
        hold_time_secs: configuration.timers.hold_time_secs,
        send_hold_time_secs: configuration.timers.send_hold_time_secs,
        connect_retry_secs: configuration.timers.connect_retry_secs.max(1),
        graceful_restart: objects::graceful_restart(configuration.graceful_restart),
        graceful_shutdown: configuration.graceful_shutdown,
        route_reflector_client: role == Role::ToClient,
        export_scope: if role == Role::Plain {
            ExportScope::OriginatedOnly
        } else {
            ExportScope::All
        },
        import: vec![built_in.mesh.clone()],
        export: if role == Role::Plain { Vec::new() } else { vec![built_in.reflected.clone()] },
        ..PeerConfig::new(address, me.asn)
    })
}

/// The built-in policies. From an external peer without policies of its own a node takes only
/// prefixes inside the pools, and sends it only what originates here: an error in a router far away
/// cannot take a node's default route, and a node never carries the traffic of others. From other
/// nodes it takes what they may originate. Its own blocks it takes from nobody.
struct BuiltIn {
    mesh: Arc<Policy>,
    /// What a route reflector sends: what other nodes of its AS may originate, and never what routers
    /// of its own have told it.
    reflected: Arc<Policy>,
    import: Arc<Policy>,
    export: Arc<Policy>,
}

impl BuiltIn {
    fn of(view: &ClusterView, blocks: &[IpNet]) -> BuiltIn {
        let networks = |texts: &mut dyn Iterator<Item = &String>| -> Vec<PrefixRange> {
            texts.filter_map(|text| text.parse().ok()).map(inside).collect()
        };
        let own: Vec<PrefixRange> = blocks.iter().copied().map(inside).collect();
        let pools = networks(&mut view.pools.values().map(|pool| &pool.spec.cidr));
        let advertised =
            networks(&mut view.bgp_advertisements.values().flat_map(|a| a.spec.cidrs.iter()));
        let originated = Match { sorts: vec![RouteSort::Originated], ..Match::default() };
        let import = |name: &str, accept: Vec<PrefixRange>| {
            Arc::new(Policy {
                name: name.into(),
                rules: vec![
                    rule(within(own.clone()), Action::Reject),
                    rule(within(accept), Action::Accept),
                ],
            })
        };
        let from_nodes: Vec<PrefixRange> = pools.iter().copied().chain(advertised).collect();
        let learned = Match { sorts: vec![RouteSort::Ibgp], ..within(from_nodes.clone()) };
        BuiltIn {
            mesh: import("built-in/mesh", from_nodes),
            reflected: Arc::new(Policy {
                name: "built-in/reflected".into(),
                rules: vec![
                    rule(originated.clone(), Action::Accept),
                    rule(learned, Action::Accept),
                    rule(Match::default(), Action::Reject),
                ],
            }),
            import: import("built-in/inside-pools", pools.clone()),
            export: Arc::new(Policy {
                name: "built-in/own-blocks".into(),
                rules: vec![rule(originated, Action::Accept)],
            }),
        }
    }
}

fn inside(net: IpNet) -> PrefixRange {
    let prefix = Prefix::from(net);
    PrefixRange { prefix, len_min: prefix.len(), len_max: prefix.family().bits() }
}

fn within(ranges: Vec<PrefixRange>) -> Match {
    Match { prefixes: Some(ranges.into_iter().collect()), ..Match::default() }
}

fn rule(matches: Match, action: Action) -> Rule {
    Rule { matches, action, set: Changes::default() }
}

fn policies(view: &ClusterView, problems: &mut Vec<String>) -> Policies {
    let mut usable = Policies::new();
    for (name, object) in &view.bgp_policies {
        match objects::policy(name, &object.spec) {
            Ok(policy) => {
                usable.insert(name.clone(), Arc::new(policy));
            }
            Err(error) => problems.push(format!("BGPPolicy {name} is not used: {error}")),
        }
    }
    usable
}

fn originate(
    view: &ClusterView,
    local: &Local<'_>,
    labels: Option<&BTreeMap<String, String>>,
    problems: &mut Vec<String>,
) -> BTreeMap<Prefix, Origination> {
    let mut originate = BTreeMap::new();
    let withdrawn = matches!(local.departure, Departure::Withdrawn { .. });
    for (advertisement, object) in view.bgp_advertisements.iter().filter(|_| !withdrawn) {
        let selected = match (&object.spec.node_selector, labels) {
            (None, _) => true,
            (Some(selector), Some(labels)) => selector.matches(labels),
            (Some(_), None) => local.running.is_some_and(|running| {
                let source = format!("bgpadvertisement/{advertisement}");
                running.originate.values().any(|route| *route.source == *source)
            }),
        };
        if !selected {
            continue;
        }
        match objects::originations(advertisement, &object.spec) {
            Ok(entries) => originate.extend(entries),
            Err(error) => {
                problems.push(format!("BGPAdvertisement {advertisement} is not used: {error}"));
            }
        }
    }
    // What leaves is withdrawn before its route goes.
    let leads_here = |block: &&IpNet| {
        local.blocks.contains(*block) && advertised(view, block) && local.departure.announces(block)
    };
    for block in local.reachable.iter().filter(leads_here) {
        let source = format!("ipblock/{}", cairn_api::block_name(*block)).into();
        originate.insert(
            Prefix::from(*block),
            Origination { source, communities: Vec::new(), local_pref: None },
        );
    }
    originate
}

/// The owners that are known here: this node, of its own blocks. Blocks of others are not watched
/// (docs/adr/0006); a route to one is judged when its owner claims it against us.
fn origins(name: &str, me: &Identity, local: &Local<'_>) -> OriginTable {
    let owner = BlockOwner { name: name.into(), asn: me.asn, addresses: me.addresses.clone() };
    let own = local.blocks.iter().map(|block| (Prefix::from(*block), owner.clone()));
    OriginTable { blocks: own.collect() }
}

/// The blocks whose pods begin when BGP peers have heard of them.
fn heard_first(
    view: &ClusterView,
    settings: &NodeConfigurationSpec,
    local: &Local<'_>,
) -> BTreeSet<IpNet> {
    match settings.readiness {
        PodReadiness::Immediate => BTreeSet::new(),
        PodReadiness::Announced => {
            // A pod that begins on a drained node has its block announced again.
            let announced =
                |block: &&IpNet| advertised(view, block) && local.departure.announces(block);
            local.blocks.iter().filter(announced).copied().collect()
        }
    }
}

/// A block is announced unless its pool says otherwise; a pool that is gone says nothing. For a block
/// without an object the pool speaks that holds it now.
fn advertised(view: &ClusterView, block: &IpNet) -> bool {
    let holds =
        |pool: &&IPPool| pool.spec.cidr.parse::<IpNet>().is_ok_and(|cidr| cidr.contains(block));
    let pool = match view.own_blocks.get(&cairn_api::block_name(*block)) {
        Some(object) => view.pools.get(&object.spec.pool.name),
        None => view.pools.values().find(holds),
    };
    pool.is_none_or(|pool| pool.spec.advertise)
}

const ANNOTATION_ROUTER_ID: &str = "cairn.network/router-id";

/// Longer than any session of the mesh needs to come up again, short enough that a peer that never
/// returns does not hold up a node's start (RFC 4724 section 4.1).
const SELECTION_DEFERRAL_SECS: u16 = 30;
