//! Which hosts of an AS reflect, and the sessions that follow, as agents make them of the leader's record
//! (docs/adr/0016). A shape without reflectors is a mesh.

use std::collections::{BTreeMap, BTreeSet};

use cairn_bgp::config::{ExportScope, PeerName};
use cairn_bgp::rib::{Leaving, Loss};

use super::plan::peer_name;
use super::topology::peer;
use super::world::{Failure, World};

pub type Shape = BTreeSet<usize>;

/// A mesh, or one to three reflectors.
pub fn any(world: &mut World) -> Shape {
    let hosts = world.hosts.len();
    (0..world.dice.roll(4)).map(|_| world.dice.roll(hosts)).collect()
}

/// Plans the sessions of all these shapes; the current one comes first.
pub fn peer_by(world: &mut World, shapes: &[Shape]) {
    let hosts = world.hosts.len();
    let reflects = |host: usize| shapes.iter().any(|shape| shape.contains(&host));
    for own in 0..hosts {
        let wanted = (0..hosts)
            .filter(|other| *other != own && shapes.iter().any(|shape| joins(shape, own, *other)));
        let wanted: Vec<usize> = wanted.collect();
        let before = std::mem::take(&mut world.plan[own].peers);
        for other in wanted {
            // Who has the session keeps it.
            let mut peer = before.get(&other).cloned().unwrap_or_else(|| {
                let mut peer = peer(&mut world.dice);
                peer.passive = false;
                peer
            });
            peer.client = shapes.iter().any(|shape| is_client(shape, other, own));
            peer.scope = match reflects(own) {
                true => ExportScope::All,
                false => ExportScope::OriginatedOnly,
            };
            world.plan[own].peers.insert(other, peer);
        }
    }
}

/// Has all hosts take up what is planned, each in its own time and in any order.
pub fn spread_word(world: &mut World) -> Result<(), Failure> {
    let mut left: Vec<usize> = (0..world.hosts.len()).collect();
    while !left.is_empty() {
        let host = left.swap_remove(world.dice.roll(left.len()));
        world.configure(host);
        let wait = world.dice.millis(0, 1_500);
        world.run_for(wait)?;
    }
    Ok(())
}

/// A host that would lose routes if only `next` remained, and what it would lose.
pub fn loses(world: &World, next: &Shape) -> Option<(usize, Loss)> {
    (0..world.hosts.len()).find_map(|own| {
        let speaker = world.speaker(own)?;
        let ends = |other: usize| {
            let reflects = world.plan[other].peers.values().any(|peer| peer.client);
            let is_client = world.plan[other].peers.get(&own).is_some_and(|peer| peer.client);
            let stops = reflects && !next.contains(&other) || next.contains(&own) && is_client;
            match joins(next, own, other) {
                false => Some(Leaving::Session),
                true => stops.then_some(Leaving::Reflection),
            }
        };
        let ending: BTreeMap<PeerName, Leaving> = world.plan[own]
            .peers
            .keys()
            .filter_map(|other| Some((peer_name(*other), ends(*other)?)))
            .collect();
        let loss = speaker.rib.loss(&ending);
        (loss.prefixes > 0).then_some((own, loss))
    })
}

/// Whether a host is a client of the reflector `of`.
fn is_client(shape: &Shape, host: usize, of: usize) -> bool {
    shape.contains(&of) && !shape.contains(&host)
}

/// Whether two hosts have a session; with no reflector all have.
fn joins(shape: &Shape, one: usize, other: usize) -> bool {
    shape.is_empty() || shape.contains(&one) || shape.contains(&other)
}
