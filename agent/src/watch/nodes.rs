//! All BGPNodes, of which the view holds what concerns this node.
//!
//! ```text
//!  BGPNodes ──take()──► all, an AS and two addresses each ──choose()──► those of this node's AS
//!                  └──► Candidacy ──► whether this node stands for leader
//! ```
//!
//! A node peers with those of its own AS, and counts the others only. So a change of a node elsewhere
//! makes no new view, no plan and no write, however large the cluster is.

use std::collections::BTreeMap;
use std::sync::Arc;

use cairn_api::{BGPNode, BGPNodeSpec};
use cairn_ipam::election::Candidacy;
use kube::ResourceExt;

use super::feed::Change;
use crate::plan;
use crate::view::{ClusterView, PeerNode};

/// What is kept of a BGPNode.
#[derive(Debug)]
pub(super) enum Seen {
    /// This node's own, whole: it is compared with what it should be.
    Own(Box<BGPNodeSpec>),
    Other(PeerNode),
}

impl Seen {
    /// What the agent of `own` keeps of `object`.
    pub(super) fn of(object: BGPNode, own: &str) -> Seen {
        match object.name_any() == own {
            true => Seen::Own(Box::new(object.spec)),
            false => Seen::Other(PeerNode::from(&object.spec)),
        }
    }
}

/// All BGPNodes.
pub(super) struct Nodes {
    own: String,
    others: BTreeMap<Arc<str>, PeerNode>,
    candidacy: Candidacy,
    /// They have been listed. Before that the view holds what an earlier process knew.
    listed: bool,
    /// The AS whose nodes are in the view.
    asn: Option<u32>,
}

impl Nodes {
    pub(super) fn new(own: &str) -> Nodes {
        Nodes {
            own: own.to_owned(),
            others: BTreeMap::new(),
            candidacy: Candidacy::new(own),
            listed: false,
            asn: None,
        }
    }

    /// Takes a change in. Whether the view differs with it.
    pub(super) fn take(&mut self, change: Change<Seen>, view: &mut ClusterView) -> bool {
        match change {
            Change::All(objects) => self.list(objects, view),
            Change::Set(name, seen) => match *seen {
                Seen::Own(spec) => replace(&mut view.own_bgp_node, Some(*spec)),
                Seen::Other(node) => self.set(&name, Some(node), view),
            },
            Change::Remove(name) if name == self.own => replace(&mut view.own_bgp_node, None),
            Change::Remove(name) => self.set(&name, None, view),
        }
    }

    /// Chooses anew when this node has come to another AS.
    pub(super) fn follow(&mut self, view: &mut ClusterView) {
        let asn = plan::own_asn(view, &self.own);
        if self.listed && self.asn != asn {
            self.asn = asn;
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
                Seen::Other(node) => {
                    self.candidacy.came(&name);
                    self.others.insert(name.into(), node);
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

    fn set(&mut self, name: &str, node: Option<PeerNode>, view: &mut ClusterView) -> bool {
        let old = match node {
            Some(node) => self.others.insert(name.into(), node),
            None => self.others.remove(name),
        };
        match (old, node) {
            (None, Some(_)) => self.candidacy.came(name),
            (Some(_), None) => self.candidacy.went(name),
            _ => {}
        }
        let mut both = [old, node].into_iter().flatten();
        let concerns = old != node && both.any(|node| Some(node.asn) == self.asn);
        let peers_differ = concerns && self.choose(view);
        replace(&mut view.stands, self.candidacy.stands()) || peers_differ
    }

    /// Puts those of this node's AS into the view.
    fn choose(&self, view: &mut ClusterView) -> bool {
        let of_own_as = self.others.iter().filter(|(_, node)| Some(node.asn) == self.asn);
        let chosen = of_own_as.map(|(name, node)| (Arc::clone(name), *node)).collect();
        let differs = *view.peer_nodes != chosen;
        if differs {
            view.peer_nodes = Arc::new(chosen);
        }
        differs
    }
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
}
