//! Which machines there are, and every name, number and address of them. Pure.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use ipnet::IpNet;

use crate::options::{AsnPlan, Encap, Families};

/// A lab's data centre as values.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Layout {
    /// The lab's name.
    pub name: String,
    /// How ASes are given to nodes.
    pub asn: AsnPlan,
    /// IP versions of nodes and pods.
    pub families: Families,
    /// How packets between pods travel between nodes.
    pub encap: Encap,
    /// How many times as long as usual the times of BGP and of the fence are.
    pub patience: u16,
    /// The racks, two of them.
    pub racks: Vec<Rack>,
}

/// A rack: one subnet, one router, some nodes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Rack {
    /// The rack's number, from 1.
    pub number: u8,
    /// The nodes' AS.
    pub asn: u32,
    /// The router's AS.
    pub tor_asn: u32,
    /// The nodes.
    pub nodes: Vec<Node>,
}

/// A node of the cluster.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Node {
    /// The node's number, from 1.
    pub number: u8,
    /// The number of its rack.
    pub rack: u8,
    /// The node's AS.
    pub asn: u32,
}

/// What a machine is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Role {
    /// It connects the racks.
    Spine,
    /// It is the router of a rack.
    Tor,
    /// It runs pods.
    Node,
}

impl Layout {
    /// A data centre of `nodes` nodes: the first half, rounded up, in the first rack.
    pub fn new(name: &str, nodes: u8, asn: AsnPlan, families: Families) -> Layout {
        let first = nodes.div_ceil(2);
        let rack = |number: u8, members: std::ops::RangeInclusive<u8>| {
            let rack_asn = match asn {
                AsnPlan::Rack => NODE_ASN + u32::from(number),
                AsnPlan::Single => SINGLE_ASN,
            };
            let node = |member| Node { number: member, rack: number, asn: rack_asn };
            Rack {
                number,
                asn: rack_asn,
                tor_asn: TOR_ASN + u32::from(number),
                nodes: members.map(node).collect(),
            }
        };
        let racks = vec![rack(1, 1..=first), rack(2, first + 1..=nodes)];
        Layout { name: name.into(), asn, families, encap: Encap::None, patience: 1, racks }
    }

    /// The same with packets between pods encapsulated, and routers that know no pods.
    #[must_use]
    pub fn with_encap(self, encap: Encap) -> Layout {
        Layout { encap, ..self }
    }

    /// The same with times that are `patience` times as long.
    #[must_use]
    pub fn with_patience(self, patience: u16) -> Layout {
        Layout { patience, ..self }
    }

    /// How long an agent hands out addresses without the API server, in seconds. Blocks of a lost node
    /// return after 1.25 times as long.
    pub fn offline_secs(&self) -> u32 {
        OFFLINE_SECS * u32::from(self.patience)
    }

    /// Whether the routers carry routes to pods; they do where packets between pods travel as they are.
    pub fn fabric_knows_pods(&self) -> bool {
        self.encap == Encap::None
    }

    /// Whether packets from `from` to pods on `to` take a tunnel under `encap`.
    pub fn is_tunnelled(encap: Encap, from: &Node, to: &Node) -> bool {
        let neighbours = from.rack == to.rack;
        encap != Encap::None && from.number != to.number && !(neighbours && encap.is_cross_subnet())
    }

    /// The families of pods, as whether they are IPv4.
    pub fn versions(&self) -> &'static [bool] {
        match self.families {
            Families::Dual => &[true, false],
            Families::Ipv4 => &[true],
        }
    }

    /// The node `name`.
    pub fn node(&self, name: &str) -> Option<&Node> {
        self.nodes().find(|node| node.name() == name)
    }

    /// The beginning of every namespace name of a lab.
    pub fn prefix_of(name: &str) -> String {
        format!("cairn-{name}-")
    }

    /// The namespace of a machine or pod of this lab.
    pub fn namespace(&self, machine: &str) -> String {
        format!("{}{machine}", Layout::prefix_of(&self.name))
    }

    /// All nodes by number.
    pub fn nodes(&self) -> impl Iterator<Item = &Node> {
        self.racks.iter().flat_map(|rack| &rack.nodes)
    }

    /// The rack in which a node stands.
    pub fn rack_of(&self, node: &Node) -> Option<&Rack> {
        self.racks.iter().find(|rack| rack.number == node.rack)
    }

    /// The names of all machines with their roles: spine, routers, nodes.
    pub fn machines(&self) -> Vec<(String, Role)> {
        let mut machines = vec![(SPINE.to_owned(), Role::Spine)];
        machines.extend(self.racks.iter().map(|rack| (rack.tor(), Role::Tor)));
        machines.extend(self.nodes().map(|node| (node.name(), Role::Node)));
        machines
    }

    /// The IP versions as a filter of address lists.
    pub fn speaks(&self, address: &IpAddr) -> bool {
        address.is_ipv4() || self.families == Families::Dual
    }

    /// The number of sessions that `machine` has when everything is up.
    pub fn sessions(&self, machine: &str) -> usize {
        if machine == SPINE {
            return self.racks.len();
        }
        let (with_nodes, with_tor) =
            if self.fabric_knows_pods() { (1, TOR_SESSIONS) } else { (0, 0) };
        if let Some(rack) = self.racks.iter().find(|rack| rack.tor() == machine) {
            return rack.nodes.len() * with_nodes + SPINE_SESSIONS;
        }
        let same_as = |node: &Node| self.nodes().filter(|other| other.asn == node.asn).count();
        self.node(machine).map_or(0, |node| same_as(node).saturating_sub(1) + with_tor)
    }
}

impl Rack {
    /// The name of the router.
    pub fn tor(&self) -> String {
        format!("tor{}", self.number)
    }

    /// The value of the nodes' zone label.
    pub fn zone(&self) -> String {
        format!("rack{}", self.number)
    }

    /// The subnets of the rack, IPv4 first.
    pub fn subnets(&self) -> [IpNet; 2] {
        let [v4, v6] = host(self.number, 0);
        [net(v4, 24), net(v6, 64)]
    }

    /// The router's addresses on the rack's subnet.
    pub fn gateways(&self) -> [IpAddr; 2] {
        host(self.number, 1)
    }

    /// The link between spine and router: its subnets.
    pub fn uplinks(&self) -> [IpNet; 2] {
        let [v4, v6] = self.spine_end();
        [net(v4, 31).trunc(), net(v6, 127).trunc()]
    }

    /// The spine's addresses on the link to the router.
    pub fn spine_end(&self) -> [IpAddr; 2] {
        host(0, self.number * 2)
    }

    /// The router's addresses on the link to the spine.
    pub fn tor_end(&self) -> [IpAddr; 2] {
        host(0, self.number * 2 + 1)
    }
}

impl Node {
    /// The node's name.
    pub fn name(&self) -> String {
        format!("n{}", self.number)
    }

    /// The node's addresses, IPv4 first.
    pub fn addresses(&self) -> [IpAddr; 2] {
        host(self.rack, NODE_HOST + self.number)
    }
}

/// Host `number` of the underlay's subnet `subnet`; subnet 0 holds the links to the spine.
fn host(subnet: u8, number: u8) -> [IpAddr; 2] {
    let v6 = Ipv6Addr::new(0xfd00, 0x31, subnet.into(), 0, 0, 0, 0, number.into());
    [Ipv4Addr::new(172, 31, subnet, number).into(), v6.into()]
}

/// `address` with a prefix length that its family has.
fn net(address: IpAddr, len: u8) -> IpNet {
    IpNet::new_assert(address, len)
}

/// The name of the router that connects the racks.
pub const SPINE: &str = "spine";
/// The spine's AS.
pub const SPINE_ASN: u32 = 65300;
/// The AS of all nodes when they share one.
pub const SINGLE_ASN: u32 = 64512;
/// The range of pod addresses, IPv4 first, each with its block size.
///
/// Blocks of 16 addresses are filled within a moment.
pub const POOLS: [(&str, &str, u8); 2] =
    [("pods", "10.244.0.0/16", 28), ("pods-v6", "fd00:10:244::/48", 124)];
/// The AS of rack N's router is this plus N.
const TOR_ASN: u32 = 65200;
/// The AS of rack N's nodes is this plus N.
const NODE_ASN: u32 = 65100;
/// Shorter than a cluster's hours, so that a lab takes seconds.
const OFFLINE_SECS: u32 = 4;
/// Sessions of a node with routers.
const TOR_SESSIONS: usize = 1;
/// Sessions of a rack's router with the spine.
const SPINE_SESSIONS: usize = 1;
/// Node N has this plus N as its host number.
const NODE_HOST: u8 = 10;

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;

    #[test]
    fn three_nodes_stand_two_and_one() {
        let layout = Layout::new("lab", 3, AsnPlan::Rack, Families::Dual);
        let racks: Vec<Vec<String>> =
            layout.racks.iter().map(|rack| rack.nodes.iter().map(Node::name).collect()).collect();
        assert_eq!(racks, [vec!["n1", "n2"], vec!["n3"]]);
        let sessions = |layout: &Layout| {
            layout.machines().iter().map(|(name, _)| layout.sessions(name)).collect::<Vec<_>>()
        };
        // The spine with both routers; each router with the spine and its nodes; each node with its
        // router and the others of its AS.
        assert_eq!(sessions(&layout), [2, 3, 2, 2, 2, 1]);
        let single = Layout::new("lab", 3, AsnPlan::Single, Families::Dual);
        assert_eq!(sessions(&single), [2, 3, 2, 3, 3, 3]);
        assert_eq!(layout.sessions("n9"), 0);
        // Routers that know no pods peer with each other only.
        assert_eq!(sessions(&single.with_encap(Encap::Vxlan)), [2, 1, 1, 2, 2, 2]);
    }

    #[test]
    fn tunnels_lead_to_other_nodes_and_by_cross_subnet_to_other_racks() {
        let layout = Layout::new("lab", 3, AsnPlan::Single, Families::Dual);
        let nodes: Vec<&Node> = layout.nodes().collect();
        let tunnelled = |encap| {
            let to = |to: usize| Layout::is_tunnelled(encap, nodes[0], nodes[to]);
            [to(0), to(1), to(2)]
        };
        assert_eq!(tunnelled(Encap::None), [false, false, false]);
        assert_eq!(tunnelled(Encap::Ipip), [false, true, true]);
        assert_eq!(tunnelled(Encap::VxlanCrossSubnet), [false, false, true]);
    }

    #[test]
    fn no_address_or_name_twice() {
        let layout = Layout::new("lab", 32, AsnPlan::Rack, Families::Dual);
        let mut addresses: Vec<IpAddr> = layout.nodes().flat_map(Node::addresses).collect();
        for rack in &layout.racks {
            addresses.extend(rack.gateways());
            addresses.extend(rack.spine_end());
            addresses.extend(rack.tor_end());
            assert!(rack.uplinks().iter().zip(rack.tor_end()).all(|(net, end)| net.contains(&end)));
            let members = rack.nodes.iter().flat_map(Node::addresses);
            assert!(members.zip(rack.subnets().iter().cycle()).all(|(a, net)| net.contains(&a)));
        }
        let unique: BTreeSet<&IpAddr> = addresses.iter().collect();
        assert_eq!(unique.len(), addresses.len());
        let names: BTreeSet<String> = layout.machines().into_iter().map(|(name, _)| name).collect();
        assert_eq!(names.len(), 32 + 3);
    }
}
