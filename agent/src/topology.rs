//! Which nodes of its AS a node peers with, by the record of the leader (docs/adr/0016).
//!
//! ```text
//!  status of the BGPConfiguration ──► Topology ──role()──────► mesh sessions, as client or reflector
//!                                         └─────change_over()──► what ends when the record says so
//! ```
//!
//! Without a record, or when none of its reflectors is there, every node peers with every node. While a
//! record names the shape before, the sessions of both stand and reflectors of both reflect, each to who is its
//! client in one of them: what two nodes hear of each other by a third they go on hearing until their own
//! session can be there.

use std::collections::BTreeMap;

use cairn_api::{TopologyMode, TopologyShape};
use cairn_bgp::config::PeerName;
use cairn_bgp::rib::Leaving;
use cairn_ipam::reflectors::{Reflectors, reflectors_of};

use crate::drain::Reflection;
use crate::view::{ClusterView, PeerNode};

/// What a session with another node of the AS is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Role {
    /// Each tells the other what it has itself.
    Plain,
    /// This node reflects, to a client.
    ToClient,
    /// This node reflects, to one that does so as well.
    ToReflector,
}

/// How the nodes of one AS peer, as this node sees it.
#[derive(Debug)]
pub(crate) struct Topology<'a> {
    own: &'a str,
    revision: i64,
    /// The current one first. Of reflectors only those whose nodes are there.
    shapes: Vec<Reflectors>,
    /// The record names a shape before.
    changing: bool,
}

/// What ends with a change-over of the topology.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Ending {
    /// The revision of the topology that then remains.
    pub revision: i64,
    /// What of each peer ends, for this node.
    pub peers: BTreeMap<PeerName, Leaving>,
}

impl<'a> Topology<'a> {
    /// Of the AS `asn`, for the node `own`.
    pub(crate) fn of(view: &ClusterView, own: &'a str, asn: u32) -> Topology<'a> {
        let status = view.bgp_configuration.as_ref().and_then(|object| object.status.as_ref());
        let mut records = status.into_iter().flat_map(|status| &status.topologies);
        let record = records.find(|record| record.asn == asn);
        let is_there = |name: &String| name == own || view.peer_nodes.contains_key(name.as_str());
        let living = |shape: &TopologyShape| -> Reflectors {
            reflectors_of(shape).into_iter().filter(is_there).collect()
        };
        let mut shapes = vec![record.map(|record| living(&record.current)).unwrap_or_default()];
        let previous = record.and_then(|record| record.previous.as_ref());
        // Reflectors of which none is left are nothing to hold on to.
        let holds = |shape: &&TopologyShape| {
            shape.mode == TopologyMode::FullMesh || !living(shape).is_empty()
        };
        shapes.extend(previous.filter(holds).map(living));
        let revision = record.map_or(0, |record| record.revision);
        Topology { own, revision, shapes, changing: previous.is_some() }
    }

    /// Whether other nodes hear of each other by `node`.
    pub(crate) fn reflects(&self, node: &str) -> bool {
        self.shapes.iter().any(|reflectors| reflectors.contains(node))
    }

    /// Whether other nodes hear of each other by this one, and whether another may take its place.
    pub(crate) fn reflection(&self, view: &ClusterView, asn: u32) -> Reflection {
        let may = |node: &PeerNode| node.asn == asn && !node.no_reflector;
        let is_current = self.shapes.first().is_some_and(|current| current.contains(self.own));
        match self.reflects(self.own) {
            false => Reflection::None,
            true if !is_current || view.peer_nodes.values().any(may) => Reflection::Replaceable,
            true => Reflection::Alone,
        }
    }

    /// Whether this node has a session with `other`, and what for.
    pub(crate) fn role(&self, other: &str) -> Option<Role> {
        if !self.shapes.iter().any(|shape| joins(shape, self.own, other)) {
            return None;
        }
        Some(match (self.reflects(self.own), self.is_client(other, self.own)) {
            (false, _) => Role::Plain,
            (true, true) => Role::ToClient,
            (true, false) => Role::ToReflector,
        })
    }

    /// Whether `node` is a client of the reflector `of` in one of the shapes.
    fn is_client(&self, node: &str, of: &str) -> bool {
        self.shapes.iter().any(|shape| shape.contains(of) && !shape.contains(node))
    }

    /// What ends, of sessions with these peers, with the change-over that is under way.
    pub(crate) fn ending<'p>(&self, peers: impl Iterator<Item = &'p PeerName>) -> Option<Ending> {
        let current = self.shapes.first().filter(|_| self.changing)?;
        let ends = |other: &str| {
            // Who becomes a reflector itself is nobody's client any more, and has a session with everybody.
            let stops = self.reflects(other) && !current.contains(other)
                || current.contains(self.own) && self.is_client(self.own, other);
            match joins(current, self.own, other) {
                false => Some(Leaving::Session),
                true => stops.then_some(Leaving::Reflection),
            }
        };
        let peers = peers.filter_map(|peer| Some((peer.clone(), ends(peer.strip_prefix(MESH)?)?)));
        Some(Ending { revision: self.revision, peers: peers.collect() })
    }
}

/// Whether two nodes have a session; with no reflector all have.
fn joins(reflectors: &Reflectors, one: &str, other: &str) -> bool {
    reflectors.is_empty() || reflectors.contains(one) || reflectors.contains(other)
}

/// In front of a node's name, the name of the peer that it is.
pub(crate) const MESH: &str = "mesh/";
