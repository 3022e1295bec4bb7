//! All BGPNodes, of which the view holds what concerns this node.
//!
//! ```text
//!  BGPNodes ──take()──► all, an AS and a Member each ──choose()──► those of this node's AS
//!                  │                                  └─► while a pool needs it: every member
//!                  └──► Candidacy ──► whether this node stands for leader
//! ```
//!
//! A node peers with those of its own AS, and counts the others only. So a change of a node elsewhere
//! makes no new view, no plan and no write, however large the cluster is. That ends where a pool has an
//! encapsulation, as tunnels lead to every node, or masquerades, which spares what goes to nodes.

use std::collections::BTreeMap;
use std::sync::Arc;

use cairn_api::{BGPNode, BGPNodeSpec, Encapsulation};
use cairn_ipam::election::Candidacy;
use kube::ResourceExt;

use super::feed::Change;
use crate::plan;
use crate::view::{ClusterView, Member, PeerNode};

/// What is kept of a BGPNode.
#[derive(Debug)]
pub(super) enum Seen {
    /// This node's own, whole: it is compared with what it should be.
    Own(Box<BGPNodeSpec>),
    Other(Other),
}

/// Another node.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct Other {
    asn: u32,
    no_reflector: bool,
    member: Arc<Member>,
}

impl Other {
    fn of(spec: &BGPNodeSpec) -> Other {
        let PeerNode { asn, no_reflector, .. } = PeerNode::from(spec);
        Other { asn, no_reflector, member: Arc::new(Member::from(spec)) }
    }

    fn peer(&self) -> PeerNode {
        let Member { ipv4, ipv6, .. } = *self.member;
        PeerNode { asn: self.asn, ipv4, ipv6, no_reflector: self.no_reflector }
    }
}

impl Seen {
    /// What the agent of `own` keeps of `object`.
    pub(super) fn of(object: BGPNode, own: &str) -> Seen {
        match object.name_any() == own {
            true => Seen::Own(Box::new(object.spec)),
            false => Seen::Other(Other::of(&object.spec)),
        }
    }
}

/// All BGPNodes.
pub(super) struct Nodes {
    own: String,
    others: BTreeMap<Arc<str>, Other>,
    candidacy: Candidacy,
    /// They have been listed. Before that the view holds what an earlier process knew.
    listed: bool,
    /// The AS whose nodes are in the view.
    asn: Option<u32>,
    /// Whether every node is.
    all: bool,
}

impl Nodes {
    pub(super) fn new(own: &str) -> Nodes {
        Nodes {
            own: own.to_owned(),
            others: BTreeMap::new(),
            candidacy: Candidacy::new(own),
            listed: false,
            asn: None,
            all: false,
        }
    }

    /// Takes a change in. Whether the view differs with it.
    pub(super) fn take(&mut self, change: Change<Seen>, view: &mut ClusterView) -> bool {
        match change {
            Change::All(objects) => self.list(objects, view),
            Change::Set(name, seen) => match *seen {
                Seen::Own(spec) => replace(&mut view.own_bgp_node, Some(*spec)),
                Seen::Other(other) => self.set(&name, Some(other), view),
            },
            Change::Remove(name) if name == self.own => replace(&mut view.own_bgp_node, None),
            Change::Remove(name) => self.set(&name, None, view),
        }
    }

    /// Chooses anew when this node has come to another AS.
    pub(super) fn follow(&mut self, view: &mut ClusterView) {
        // Others go on sending through tunnels until they have heard that a pool has none any more, and
        // who they are decides whether their packets are taken.
        let wanted = (plan::own_asn(view, &self.own), self.all || needs_members(view));
        if self.listed && (self.asn, self.all) != wanted {
            (self.asn, self.all) = wanted;
            self.choose(view);
        }
    }

    fn list(&mut self, objects: BTreeMap<String, Seen>, view: &mut ClusterView) -> bool {
        let mut own = None;
        self.others.clear();
        self.candidacy = Candidacy::new(&self.own);
        for (name, seen) in objects {
            match seen {
                Seen::Own(spec) => own = Some(*spec),
                Seen::Other(other) => {
                    self.candidacy.came(&name);
                    self.others.insert(name.into(), other);
                }
            }
        }
        self.listed = true;
        let differs = [
            self.choose(view),
            replace(&mut view.own_bgp_node, own),
            replace(&mut view.stands, self.candidacy.stands()),
        ];
        differs.contains(&true)
    }

    fn set(&mut self, name: &str, new: Option<Other>, view: &mut ClusterView) -> bool {
        let old = match new.clone() {
            Some(new) => self.others.insert(name.into(), new),
            None => self.others.remove(name),
        };
        match (&old, &new) {
            (None, Some(_)) => self.candidacy.came(name),
            (Some(_), None) => self.candidacy.went(name),
            _ => {}
        }
        let mut both = [&old, &new].into_iter().flatten();
        let concerns = old != new && (self.all || both.any(|other| Some(other.asn) == self.asn));
        let peers_differ = concerns && self.choose(view);
        replace(&mut view.stands, self.candidacy.stands()) || peers_differ
    }

    /// Puts those of this node's AS into the view, and where it is needed what reaches all.
    fn choose(&self, view: &mut ClusterView) -> bool {
        let of_own_as = self.others.iter().filter(|(_, other)| Some(other.asn) == self.asn);
        let peers = of_own_as.map(|(name, other)| (Arc::clone(name), other.peer())).collect();
        let all = self.others.iter().filter(|_| self.all);
        let members =
            all.map(|(name, other)| (Arc::clone(name), Arc::clone(&other.member))).collect();
        let differs = (*view.peer_nodes != peers, *view.members != members);
        if differs.0 {
            view.peer_nodes = Arc::new(peers);
        }
        if differs.1 {
            view.members = Arc::new(members);
        }
        differs.0 || differs.1
    }
}

/// Whether a pool makes it necessary to know every node.
fn needs_members(view: &ClusterView) -> bool {
    let needs = |pool: &cairn_api::IPPool| {
        pool.spec.encapsulation != Encapsulation::None || pool.spec.nat_outgoing
    };
    view.pools.values().any(needs)
}

/// Whether `new` is not what was held.
fn replace<T: PartialEq>(held: &mut T, new: T) -> bool {
    let differs = *held != new;
    *held = new;
    differs
}

#[cfg(test)]
mod tests {
    use cairn_api::{BGPConfiguration, BGPConfigurationSpec};

    use super::*;

    const OWN: &str = "node-7";

    fn bgp_node(asn: u32, address: &str) -> BGPNodeSpec {
        BGPNodeSpec {
            addresses: vec![address.into()],
            asn,
            router_id: "192.0.2.1".into(),
            topology: BTreeMap::new(),
            tunnels: Vec::new(),
            blocks: Vec::new(),
        }
    }

    fn change(name: &str, asn: u32, address: &str) -> Change<Seen> {
        let object = BGPNode::new(name, bgp_node(asn, address));
        Change::Set(name.into(), Box::new(Seen::of(object, OWN)))
    }

    /// A hundred nodes in ten AS, of which this one's is 7.
    fn listed() -> (Nodes, ClusterView) {
        let (mut nodes, mut view) = (Nodes::new(OWN), ClusterView::default());
        let all = (0..100u32).map(|n| {
            let (name, address) = (format!("node-{n}"), format!("192.0.2.{n}"));
            (name.clone(), Seen::of(BGPNode::new(&name, bgp_node(n % 10, &address)), OWN))
        });
        assert!(nodes.take(Change::All(all.collect()), &mut view));
        nodes.follow(&mut view);
        (nodes, view)
    }

    fn names(view: &ClusterView) -> Vec<&str> {
        view.peer_nodes.keys().map(AsRef::as_ref).collect()
    }

    #[test]
    fn only_what_concerns_this_node_makes_a_difference() {
        let (mut nodes, mut view) = listed();
        let tens = ["node-17", "node-27", "node-37", "node-47", "node-57"];
        let all = [&tens[..], &["node-67", "node-77", "node-87", "node-97"]].concat();
        assert_eq!(names(&view), all);
        assert_eq!(view.own_bgp_node, Some(bgp_node(7, "192.0.2.7")));
        let known = view.clone();
        let elsewhere = [
            change("node-3", 3, "198.51.100.3"),
            change("node-3", 4, "198.51.100.3"),
            Change::Remove("node-4".into()),
            Change::Remove("never-seen".into()),
            change("node-17", 7, "192.0.2.17"),
            change(OWN, 7, "192.0.2.7"),
        ];
        for change in elsewhere {
            assert!(!nodes.take(change, &mut view));
        }
        assert_eq!(view, known);
        assert!(Arc::ptr_eq(&view.peer_nodes, &known.peer_nodes), "no map was made anew");
        let here = [
            (change("node-17", 7, "198.51.100.17"), 9),
            (change("node-3", 7, "198.51.100.3"), 10),
            (change("node-17", 1, "198.51.100.17"), 9),
            (Change::Remove("node-27".into()), 8),
        ];
        for (change, peers) in here {
            assert!(nodes.take(change, &mut view));
            assert_eq!(view.peer_nodes.len(), peers);
        }
        assert!(nodes.take(change(OWN, 7, "198.51.100.7"), &mut view));
        assert!(nodes.take(Change::Remove(OWN.into()), &mut view));
        assert_eq!(view.own_bgp_node, None);
    }

    #[test]
    fn a_node_that_comes_to_another_as_sees_the_nodes_there() {
        let (mut nodes, mut view) = listed();
        assert!(nodes.take(change(OWN, 3, "192.0.2.7"), &mut view));
        nodes.follow(&mut view);
        assert_eq!(names(&view)[..2], ["node-13", "node-23"]);
        // Neither a Node nor a BGPNode says which it is.
        nodes.take(Change::Remove(OWN.into()), &mut view);
        nodes.follow(&mut view);
        assert!(view.peer_nodes.is_empty());
    }

    #[test]
    fn what_an_earlier_process_knew_stays_until_the_list() {
        let (_, earlier) = listed();
        let (mut nodes, mut view) = (Nodes::new(OWN), earlier.clone());
        let spec = BGPConfigurationSpec { asn: 9, ..BGPConfigurationSpec::default() };
        view.bgp_configuration = Some(BGPConfiguration::new("default", spec));
        nodes.follow(&mut view);
        assert_eq!(view.peer_nodes, earlier.peer_nodes);
        nodes.take(Change::All(BTreeMap::new()), &mut view);
        assert!(view.peer_nodes.is_empty() && view.own_bgp_node.is_none());
    }

    #[test]
    fn a_node_stands_for_leader_while_it_is_among_the_first() {
        let (mut nodes, mut view) = (Nodes::new(OWN), ClusterView::default());
        nodes.take(Change::All(BTreeMap::new()), &mut view);
        assert!(view.stands, "it is alone");
        // The first after whose coming five are before this one.
        let mut names = (100..200).map(|n| format!("node-{n}"));
        let fifth = names.find(|name| nodes.take(change(name, 1, "192.0.2.1"), &mut view));
        assert!(!view.stands);
        assert!(nodes.take(Change::Remove(fifth.expect("a node")), &mut view) && view.stands);
    }

    #[test]
    fn every_node_is_a_member_once_a_pool_needed_it() {
        let (mut nodes, mut view) = listed();
        assert!(view.members.is_empty());
        let pool = |encapsulation: &str| {
            serde_json::from_value(serde_json::json!({
                "apiVersion": "cairn.network/v1alpha1", "kind": "IPPool", "metadata": {"name": "p"},
                "spec": {"cidr": "10.0.0.0/16", "encapsulation": encapsulation},
            }))
            .expect("an IPPool")
        };
        view.pools.insert("p".into(), pool("VXLAN"));
        nodes.follow(&mut view);
        assert_eq!(view.members.len(), 99);
        let spec = BGPNodeSpec {
            tunnels: vec![cairn_api::TunnelKind::VXLAN],
            blocks: vec!["10.0.1.0/26".into(), "10.0.0.0/26".into()],
            ..bgp_node(3, "192.0.2.3")
        };
        let seen = Seen::of(BGPNode::new("node-3", spec), OWN);
        assert!(nodes.take(Change::Set("node-3".into(), Box::new(seen)), &mut view));
        let member = view.members.get("node-3").cloned().unwrap_or_default();
        assert_eq!(member.addresses().map(|a| a.to_string()).collect::<Vec<_>>(), ["192.0.2.3"]);
        assert_eq!(
            member.blocks.iter().map(ToString::to_string).collect::<Vec<_>>(),
            ["10.0.0.0/26", "10.0.1.0/26"]
        );
        view.pools.insert("p".into(), pool("None"));
        nodes.follow(&mut view);
        assert_eq!(view.members.len(), 99, "they may not have heard of it");
    }
}
