//! How the nodes of one AS peer: each with each, or with route reflectors, and which nodes those are.
//!
//! ```text
//!  nodes, topology ──wanted()──► reflectors ──step()──► record ──► status of the BGPConfiguration
//!                       ▲                       ▲ │                       │
//!                       └──── the old record ───┴─┘              agents peer by it and
//!                                                                 say what they would lose
//! ```
//!
//! The leader decides and records; agents follow the record. Reflectors stay while their nodes live,
//! wherever a new choice would put them: each change costs every node a session. When sessions are to
//! end, the record names the shape before as well, and agents keep the sessions of both until nobody
//! would lose a route ([`Progress`]).

use std::collections::{BTreeMap, BTreeSet};

use cairn_api::{AsTopology, Topology, TopologyMode, TopologyShape};

use crate::candidates::spread;

/// The reflectors of an AS by node name; none means that every node peers with every node.
pub type Reflectors = BTreeSet<String>;

/// Reflectors of an AS: one may fail while another is being upgraded.
pub const REFLECTORS: usize = 3;

/// Up to so many nodes Auto has each peer with each.
pub const MESH_NODES_MAX: usize = 64;

/// With fewer nodes Auto goes back from reflectors: a cluster that grows and shrinks around
/// [`MESH_NODES_MAX`] does not change over each time.
pub const REFLECTED_NODES_MIN: usize = 48;

/// A node, as far as it counts here.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Member {
    /// Its name.
    pub name: String,
    /// The zone in which it stands, where that is known.
    pub zone: Option<String>,
    /// What people want of it.
    pub wish: Wish,
    /// It has not been heard of for long.
    pub silent: bool,
    /// It is being drained.
    pub leaves: bool,
}

/// Whether a node should be a reflector.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Wish {
    /// Before others.
    First,
    /// As it comes.
    #[default]
    Any,
    /// In no case.
    Never,
}

impl Wish {
    /// Of the value of the label [`cairn_api::LABEL_ROUTE_REFLECTOR`].
    pub fn of_label(value: Option<&str>) -> Wish {
        match value {
            Some("true") => Wish::First,
            Some("false") => Wish::Never,
            _ => Wish::Any,
        }
    }
}

/// The reflectors that the AS should have, which has these `members` and `now` those reflectors.
pub fn wanted(topology: Topology, asn: u32, members: &[Member], now: &Reflectors) -> Reflectors {
    let reflects = match topology {
        Topology::FullMesh => false,
        Topology::RouteReflectors => true,
        Topology::Auto => {
            let kept = !now.is_empty() && members.len() >= REFLECTED_NODES_MIN;
            kept || members.len() > MESH_NODES_MAX
        }
        // Nobody peers by the record, and it may be wanted again.
        Topology::Disabled => return now.clone(),
    };
    if reflects { choose(asn, members, now) } else { Reflectors::new() }
}

/// Those of `now` that live and stay in use stay. Others come in the order of a hash of their names, which differs
/// between AS, and from the zones that have the fewest.
fn choose(asn: u32, members: &[Member], now: &Reflectors) -> Reflectors {
    let place = |member: &Member| match (member.wish, now.contains(&member.name)) {
        // Who comes back first is not known: those that reflect stay, as each change costs sessions.
        (_, true) if member.silent => 4,
        (_, false) if member.silent => 5,
        (Wish::First, true) => 0,
        (Wish::First, false) => 1,
        (_, true) => 2,
        (_, false) => 3,
    };
    let usable = || members.iter().filter(|member| member.wish != Wish::Never);
    // That all leave is more likely a mistake than a reason to have each peer with each: who reflects goes on, and
    // nobody who has left is called back as long as one of these is there.
    let all_leave = usable().filter(|member| !member.silent).all(|member| member.leaves);
    let reflects = |member: &Member| !member.silent && now.contains(&member.name);
    let any_reflects = usable().any(reflects);
    let usable = usable().filter(|member| match all_leave {
        true => !any_reflects || reflects(member),
        false => !member.leaves,
    });
    let weight =
        |member: &Member| spread(&[b"reflector", &asn.to_be_bytes(), member.name.as_bytes()]);
    let mut left: Vec<&Member> = usable.collect();
    let mut chosen = Reflectors::new();
    let mut zones: BTreeMap<Option<&str>, usize> = BTreeMap::new();
    while chosen.len() < REFLECTORS {
        let rank = |member: &Member| {
            let in_zone = zones.get(&member.zone.as_deref()).copied().unwrap_or(0);
            (place(member), in_zone, std::cmp::Reverse(weight(member)))
        };
        let Some(best) = (0..left.len()).min_by_key(|index| left.get(*index).map(|m| rank(m)))
        else {
            break;
        };
        let best = left.swap_remove(best);
        *zones.entry(best.zone.as_deref()).or_default() += 1;
        chosen.insert(best.name.clone());
    }
    chosen
}

/// How far the nodes of an AS are with the change-over of a record.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Progress {
    /// Those that would lose routes if it ended now.
    pub losing: Vec<String>,
    /// Those that have not said.
    pub silent: Vec<String>,
    /// Silent ones are waited for no longer: who does not run loses nothing.
    pub waited: bool,
}

impl Progress {
    /// Whether the sessions of the shape before may end.
    pub fn is_complete(&self) -> bool {
        self.losing.is_empty() && (self.waited || self.silent.is_empty())
    }
}

/// The reflectors of a shape.
pub fn reflectors_of(shape: &TopologyShape) -> Reflectors {
    match shape.mode {
        TopologyMode::FullMesh => Reflectors::new(),
        TopologyMode::RouteReflectors => shape.reflectors.iter().cloned().collect(),
    }
}

fn shape_of(reflectors: &Reflectors) -> TopologyShape {
    TopologyShape {
        mode: match reflectors.is_empty() {
            true => TopologyMode::FullMesh,
            false => TopologyMode::RouteReflectors,
        },
        reflectors: reflectors.iter().cloned().collect(),
    }
}

/// The record of the AS after `record`: `None` while it has none and needs none, as its nodes mesh
/// without. `now_unix_secs` numbers what is new.
pub fn step(
    asn: u32,
    record: Option<&AsTopology>,
    wanted: &Reflectors,
    members: &[Member],
    progress: &Progress,
    now_unix_secs: i64,
) -> Option<AsTopology> {
    let current = record.map(|record| reflectors_of(&record.current)).unwrap_or_default();
    let earlier = record.and_then(|record| record.previous.as_ref()).map(reflectors_of);
    if current == *wanted {
        let mut record = record?.clone();
        if progress.is_complete() {
            record.previous = None;
        }
        return Some(record);
    }
    let revision = record.map_or(0, |record| record.revision).saturating_add(1).max(now_unix_secs);
    // Also where all that there was goes on: new reflectors are no clients of each other any more, and
    // hear of each other's blocks by what was until their own session is up.
    let previous = Some(shape_of(&joined(current, earlier, members)));
    Some(AsTopology { asn, revision, current: shape_of(wanted), previous })
}

/// One shape that has the sessions of both: a mesh has all of them.
fn joined(current: Reflectors, earlier: Option<Reflectors>, members: &[Member]) -> Reflectors {
    let is_mesh = current.is_empty() || earlier.as_ref().is_some_and(Reflectors::is_empty);
    if is_mesh {
        return Reflectors::new();
    }
    let mut both = current;
    both.extend(earlier.into_iter().flatten());
    // With a node that is gone nobody has a session; if all are gone, the nodes mesh.
    both.retain(|name| members.iter().any(|member| member.name == *name));
    both
}

#[cfg(test)]
#[path = "reflectors_tests.rs"]
mod tests;
