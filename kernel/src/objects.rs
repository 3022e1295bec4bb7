//! Next-hop objects of ours, each known by its number.

use std::collections::{BTreeSet, HashMap, HashSet};
use std::fmt;
use std::ops::Range;

use crate::batch::Batch;
use crate::delta::{Delta, Key};
use crate::nexthop::{Object, Way};
use crate::{ROUTE_PROTOCOL, TUNNEL_OBJECTS, UPLINK_OBJECTS};

/// The number of a next-hop object of ours.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct ObjectId(pub(crate) u32);

impl Key for ObjectId {
    type Value = Way;

    fn set(self, batch: &mut Batch, way: &Way, exists: bool) {
        let object = Object { id: self.0, protocol: ROUTE_PROTOCOL, way: way.clone() };
        if exists {
            batch.replace_object(&object)
        } else {
            batch.create_object(&object)
        };
    }

    fn delete(self, batch: &mut Batch) {
        batch.delete_object(self.0);
    }
}

impl fmt::Display for ObjectId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "the next-hop object {}", self.0)
    }
}

/// What an object does if it is ours: if it has a number in `range` and our protocol number.
pub(crate) fn own_way(object: Object, range: &Range<u32>) -> Option<Way> {
    let ours = object.protocol == ROUTE_PROTOCOL && range.contains(&object.id);
    ours.then_some(object.way)
}

/// Whether an object has one of our numbers and our protocol number.
pub(crate) fn is_ours(object: &Object) -> bool {
    let numbered = TUNNEL_OBJECTS.contains(&object.id) || UPLINK_OBJECTS.contains(&object.id);
    numbered && object.protocol == ROUTE_PROTOCOL
}

/// What an object does, as `ip nexthop` writes it; `link` names links by their index.
pub(crate) fn words(way: &Way, link: impl Fn(u32) -> String) -> String {
    match way {
        Way::Hop(hop) => {
            let via = hop.gateway.map(|gateway| format!("via {gateway} ")).unwrap_or_default();
            let onlink = if hop.onlink { " onlink" } else { "" };
            format!("{via}dev {}{onlink}", link(hop.ifindex))
        }
        Way::Group(members) => {
            let members = members.iter().map(|(id, weight)| match weight {
                1 => id.to_string(),
                weight => format!("{id},{weight}"),
            });
            format!("group {}", members.collect::<Vec<_>>().join("/"))
        }
        Way::Blackhole => "blackhole".into(),
        Way::Other => "of another kind".into(),
    }
}

/// Numbers for objects: first those of present objects that do the same and nobody holds, as after a
/// restart, then free ones.
pub(crate) struct Numbers {
    present: HashMap<Way, u32>,
    used: HashSet<u32>,
    next: Range<u32>,
}

impl Numbers {
    /// Numbers in `range` beside those that are `held`, and those that others have `taken`.
    pub(crate) fn new(
        range: Range<u32>,
        objects: &Delta<ObjectId>,
        held: HashSet<u32>,
        taken: &BTreeSet<u32>,
    ) -> Numbers {
        let present = objects.present();
        Numbers {
            present: present
                .iter()
                .rev()
                .filter(|(id, _)| !held.contains(&id.0))
                .map(|(id, way)| (way.clone(), id.0))
                .collect(),
            used: held
                .into_iter()
                .chain(present.keys().map(|id| id.0))
                .chain(taken.iter().copied())
                .collect(),
            next: range,
        }
    }

    /// A number for an object that does this; `None` when none is free.
    pub(crate) fn take(&mut self, way: &Way) -> Option<u32> {
        self.present.remove(way).or_else(|| self.next.find(|id| !self.used.contains(id)))
    }
}
