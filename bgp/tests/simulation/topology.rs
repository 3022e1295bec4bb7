//! Plans to begin with.

use std::collections::{BTreeMap, BTreeSet};
use std::net::Ipv4Addr;

use cairn_bgp::config::{ExportScope, GracefulRestart, LongLived, NextHopMode};
use cairn_bgp::prefix::{Families, Family, Prefix};

use super::dice::Dice;
use super::plan::{Drain, PeerPlan, Plan, SpeakerPlan};

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Topology {
    /// eBGP from one to the next.
    Chain,
    /// iBGP, each with each, and an outside router at two of them.
    Mesh,
    /// Clients of one or two reflectors, and outside routers.
    Reflector,
    /// Two racks with a top-of-rack router each, nodes in the rack's AS, and a spine.
    Racks,
    /// Any graph of any ASes.
    Random,
    /// Nodes of one AS, whose sessions follow from who reflects.
    Cluster,
}

pub const TOPOLOGIES: [Topology; 5] =
    [Topology::Chain, Topology::Mesh, Topology::Reflector, Topology::Racks, Topology::Random];

impl Topology {
    pub fn plan(self, dice: &mut Dice) -> Plan {
        let mut plan = match self {
            Topology::Chain => chain(dice),
            Topology::Mesh => mesh(dice),
            Topology::Reflector => reflector(dice),
            Topology::Racks => racks(),
            Topology::Random => random(dice),
            Topology::Cluster => cluster(dice),
        };
        for (host, speaker) in plan.iter_mut().enumerate() {
            for number in 0..dice.roll(4) {
                let prefix = own_prefix(host, number);
                speaker.originate.insert(prefix, communities(dice));
            }
            if dice.one_in(3) {
                let prefix = shared_prefix(dice);
                speaker.originate.insert(prefix, communities(dice));
            }
        }
        plan
    }
}

/// A prefix that only one host originates.
pub fn own_prefix(host: usize, number: usize) -> Prefix {
    let text = match number % 2 {
        0 => format!("10.{}.{number}.0/24", host + 1),
        _ => format!("2001:db8:{:x}:{number:x}::/64", host + 1),
    };
    text.parse().expect("a prefix")
}

/// A prefix that several may originate.
pub fn shared_prefix(dice: &mut Dice) -> Prefix {
    let number = dice.roll(3);
    let text = match dice.roll(2) {
        0 => format!("100.64.{number}.0/24"),
        _ => format!("2001:db8:ffff:{number:x}::/64"),
    };
    text.parse().expect("a prefix")
}

/// Communities of an originated prefix: mostly none, sometimes well-known ones.
pub fn communities(dice: &mut Dice) -> Vec<u32> {
    match dice.roll(8) {
        0 => vec![0xffff_ff01],
        1 => vec![0xffff_ff02],
        2 | 3 => vec![COMMUNITY],
        _ => Vec::new(),
    }
}

fn speaker(host: usize, asn: u32) -> SpeakerPlan {
    SpeakerPlan {
        asn,
        // Not in the order of the addresses.
        router_id: Ipv4Addr::new(192, 0, 2, (host as u8 * 37) % 251 + 1),
        paths_max: 1 + (host % 3) as u16,
        originate: BTreeMap::new(),
        peers: BTreeMap::new(),
        drain: Drain::InUse,
    }
}

pub fn graceful_restart(dice: &mut Dice) -> GracefulRestart {
    GracefulRestart {
        restart_time_secs: 60,
        notification: dice.one_in(2),
        long_lived: dice.one_in(3).then_some(LongLived { stale_time_secs: 60, within: None }),
    }
}

pub fn peer(dice: &mut Dice) -> PeerPlan {
    PeerPlan {
        passive: false,
        client: false,
        next_hop: NextHopMode::Auto,
        scope: ExportScope::All,
        families: Families::from_iter(Family::ALL),
        hold_time_secs: dice.pick(&[9, 30]),
        graceful_restart: (!dice.one_in(4)).then(|| graceful_restart(dice)),
        prefix_limit: None,
        import: Vec::new(),
        export: Vec::new(),
    }
}

pub fn join(plan: &mut Plan, dice: &mut Dice, a: usize, b: usize) {
    plan[a].peers.insert(b, peer(dice));
    plan[b].peers.insert(a, peer(dice));
    if dice.one_in(3) {
        let (side, other) = dice.pick(&[(a, b), (b, a)]);
        plan[side].peers.entry(other).and_modify(|peer| peer.passive = true);
    }
}

fn chain(dice: &mut Dice) -> Plan {
    let hosts = 3 + dice.roll(3);
    let mut plan: Plan = (0..hosts).map(|host| speaker(host, 65001 + host as u32)).collect();
    for host in 1..hosts {
        join(&mut plan, dice, host - 1, host);
    }
    plan
}

fn mesh(dice: &mut Dice) -> Plan {
    let inside = 3 + dice.roll(2);
    let mut plan: Plan = (0..inside).map(|host| speaker(host, 65000)).collect();
    for a in 0..inside {
        for b in a + 1..inside {
            join(&mut plan, dice, a, b);
        }
    }
    outside(&mut plan, dice, &[0, 1]);
    plan
}

/// Routers of other ASes at some of the hosts; two of them may be in one AS.
fn outside(plan: &mut Plan, dice: &mut Dice, at: &[usize]) {
    let asn = dice.pick(&[65100, 65101]);
    for (index, inner) in at.iter().enumerate() {
        let host = plan.len();
        let asn = if dice.one_in(2) { asn } else { 65102 + index as u32 };
        plan.push(speaker(host, asn));
        join(plan, dice, *inner, host);
    }
}

fn reflector(dice: &mut Dice) -> Plan {
    let reflectors = 1 + dice.roll(2);
    let hosts = reflectors + 3;
    let mut plan: Plan = (0..hosts).map(|host| speaker(host, 65000)).collect();
    if reflectors == 2 {
        join(&mut plan, dice, 0, 1);
    }
    for reflector in 0..reflectors {
        for client in reflectors..hosts {
            join(&mut plan, dice, reflector, client);
            plan[reflector].peers.entry(client).and_modify(|peer| peer.client = true);
        }
    }
    outside(&mut plan, dice, &[reflectors, reflectors + 1]);
    plan
}

fn racks() -> Plan {
    // 0 and 1: the racks' routers; 2: the spine; then two nodes a rack.
    let asns = [65101, 65102, 65100, 65101, 65101, 65102, 65102];
    let mut plan: Plan = asns.iter().enumerate().map(|(h, asn)| speaker(h, *asn)).collect();
    let dice = &mut Dice::new(1);
    for (tor, nodes) in [(0, [3, 4]), (1, [5, 6])] {
        join(&mut plan, dice, tor, 2);
        for node in nodes {
            join(&mut plan, dice, tor, node);
            plan[tor].peers.entry(node).and_modify(|peer| {
                peer.client = true;
                peer.next_hop = NextHopMode::SelfAddress;
            });
            plan[node].peers.entry(tor).and_modify(|peer| peer.scope = ExportScope::OriginatedOnly);
        }
    }
    plan
}

fn cluster(dice: &mut Dice) -> Plan {
    let hosts = 4 + dice.roll(3);
    (0..hosts).map(|host| speaker(host, 65000)).collect()
}

fn random(dice: &mut Dice) -> Plan {
    let hosts = 3 + dice.roll(4);
    let mut plan: Plan =
        (0..hosts).map(|host| speaker(host, 65001 + dice.roll(hosts) as u32)).collect();
    for host in 1..hosts {
        let earlier = dice.roll(host);
        join(&mut plan, dice, earlier, host);
    }
    for _ in 0..dice.roll(hosts) {
        let (a, b) = (dice.roll(hosts), dice.roll(hosts));
        if a != b {
            join(&mut plan, dice, a, b);
        }
    }
    plan
}

/// Whether an AS is in parts that have no way to each other inside it.
pub fn has_parted_as(plan: &Plan) -> bool {
    (0..plan.len()).any(|host| {
        let asn = plan[host].asn;
        let mut reached = BTreeSet::from([host]);
        let mut left = vec![host];
        while let Some(at) = left.pop() {
            let inside = plan[at].peers.keys().filter(|peer| plan[**peer].asn == asn);
            left.extend(inside.filter(|peer| reached.insert(**peer)));
        }
        (0..plan.len()).any(|other| plan[other].asn == asn && !reached.contains(&other))
    })
}

/// A community that policies look for.
pub const COMMUNITY: u32 = 65000 << 16 | 7;
