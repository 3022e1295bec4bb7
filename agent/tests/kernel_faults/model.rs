//! What should be in the kernel. Pure.

use std::collections::{BTreeMap, BTreeSet};
use std::net::{IpAddr, Ipv4Addr};
use std::sync::Arc;

use cairn_agent::fib::{RouteSettings, Wrapping};
use cairn_agent::pods::TunnelAddresses;
use cairn_agent::tunnels::Ways;
use cairn_agent::view::Member;
use cairn_api::{Encapsulation, NextHopObjects, TunnelKind, Vxlan};
use cairn_bgp::prefix::Prefix;
use cairn_bgp::rib::{FibChange, FibPath, FibRoute, RouteAttributes};
use cairn_bgp::wire::{NextHop, Origin, PathAttributes, SessionSort};
use cairn_ipam::Family;
use cairn_kernel::firewall::{Firewall, Outer, TunnelRule};
use cairn_kernel::pod::HOST_INTERFACE_PREFIX;
use cairn_kernel::tunnel::{link_local, mac_of};
use cairn_kernel::{VXLAN_PORT_DEFAULT, VXLAN_VNI_DEFAULT};
use ipnet::IpNet;

/// Lines in a form of our own, each with how often it is there.
pub type Lines = BTreeMap<String, usize>;

/// An uplink of the node: its name and its subnets.
pub const UPLINKS: [(&str, &str, &str); 3] = [
    ("up0", "192.0.2.1/24", "2001:db8:0::1/64"),
    ("up1", "198.51.100.1/24", "2001:db8:1::1/64"),
    // Nothing ever happens to it.
    ("calm", "203.0.113.1/24", "2001:db8:2::1/64"),
];

/// The node's address.
pub const LOCAL: Ipv4Addr = Ipv4Addr::new(192, 0, 2, 1);
pub const TUNNEL: &str = "cairn.vxlan";

/// What is wanted of a node.
#[derive(Clone, Default)]
pub struct Model {
    /// What BGP found, with the next hops.
    pub learned: BTreeMap<IpNet, Vec<IpAddr>>,
    /// The node's own blocks.
    pub blocks: BTreeSet<IpNet>,
    /// The other nodes: the outer address, and blocks.
    pub members: BTreeMap<String, (Ipv4Addr, BTreeSet<IpNet>)>,
    /// Pools without encapsulation, for the packet filter.
    pub plain_pools: BTreeSet<IpNet>,
    /// Uplinks that are down at the end.
    pub down: BTreeSet<&'static str>,
    /// Prefixes of which somebody else has the route, so that ours has no place.
    pub contested: BTreeSet<IpNet>,
    /// Whether routes by uplinks name objects.
    pub everywhere: bool,
}

impl Model {
    /// A node with `members` other ones, each with a block of each family in a pool of tunnels, one
    /// own block of each family, and `plain` prefixes that are reached by uplinks.
    pub fn new(members: usize, plain: usize) -> Model {
        let mut model = Model {
            blocks: [net("10.244.0.0/26"), net("fd00:244::/122")].into(),
            plain_pools: [net("10.0.0.0/10"), net("fd01::/16")].into(),
            ..Model::default()
        };
        for number in 0..members {
            let blocks = [member_block(number, false), member_block(number, true)];
            let outer = Ipv4Addr::from(u32::from(Ipv4Addr::new(172, 16, 0, 1)) + number as u32);
            for block in blocks {
                model.learned.insert(block, vec![hop(0, 2, block.addr().is_ipv6())]);
            }
            model.members.insert(member_name(number), (outer, blocks.into()));
        }
        for number in 0..plain {
            let prefix = plain_prefix(number);
            let v6 = prefix.addr().is_ipv6();
            let uplink = number % 3;
            let mut hops = vec![hop(uplink, (number % 5) as u8 + 2, v6)];
            if number % 7 == 0 {
                hops.push(hop((uplink + 1) % 3, 9, v6));
            }
            model.learned.insert(prefix, hops);
        }
        model
    }

    pub fn wrapping(&self) -> Wrapping {
        let members = self.members.iter().map(|(name, (outer, blocks))| {
            let member = Member {
                ipv4: Some(*outer),
                ipv6: None,
                tunnels: vec![TunnelKind::VXLAN],
                blocks: blocks.iter().copied().collect(),
            };
            (Arc::from(name.as_str()), Arc::new(member))
        });
        let pools = [
            (net("10.244.0.0/16"), Encapsulation::VXLAN),
            (tunnel_pool_v6(), Encapsulation::VXLAN),
        ];
        let plain = self.plain_pools.iter().map(|pool| (*pool, Encapsulation::None));
        Wrapping {
            node: "here".into(),
            ways: Ways {
                addresses: vec![LOCAL.into()],
                vxlan: Vxlan { port: VXLAN_PORT_DEFAULT, vni: VXLAN_VNI_DEFAULT },
                pools: pools.into_iter().chain(plain).collect(),
                members: Arc::new(members.collect()),
            },
            lodging: [Family::V4, Family::V6].map(|family| (TunnelKind::VXLAN, family)).into(),
            addresses: TunnelAddresses {
                revision: 1,
                held: BTreeMap::from([
                    ((TunnelKind::VXLAN, Family::V4), own_address(false)),
                    ((TunnelKind::VXLAN, Family::V6), own_address(true)),
                ]),
            },
        }
    }

    pub fn firewall(&self) -> Firewall {
        let outer = self.members.values().map(|(outer, _)| IpAddr::V4(*outer));
        let tunnel_nodes: BTreeSet<IpAddr> = outer.collect();
        let mut pools = self.plain_pools.clone();
        pools.extend([net("10.244.0.0/16"), tunnel_pool_v6()]);
        Firewall {
            nat_pools: pools.clone(),
            pools,
            nodes: tunnel_nodes.iter().copied().chain([LOCAL.into()]).collect(),
            tunnel_nodes,
            tunnels: vec![TunnelRule {
                device: TUNNEL,
                addresses: vec![own_address(false), own_address(true)],
                local: LOCAL.into(),
                protect: Outer::Vxlan { port: VXLAN_PORT_DEFAULT, vni: VXLAN_VNI_DEFAULT },
            }],
            ..Firewall::new(HOST_INTERFACE_PREFIX)
        }
    }

    pub fn settings(&self) -> RouteSettings {
        let next_hop_objects = match self.everywhere {
            true => NextHopObjects::Everywhere,
            false => NextHopObjects::TunnelsOnly,
        };
        RouteSettings { next_hop_objects, ..RouteSettings::default() }
    }

    /// What BGP says of `prefix`.
    pub fn change(&self, prefix: IpNet) -> FibChange {
        let route = self
            .learned
            .get(&prefix)
            .map(|hops| FibRoute { paths: hops.iter().map(|hop| path(*hop)).collect() });
        FibChange { prefix: Prefix::from(prefix), route }
    }

    /// What of ours the kernel should hold besides the packet filter.
    pub fn lines(&self) -> Lines {
        let mut lines = Lines::new();
        let mut add = |line: String| *lines.entry(line).or_default() += 1;
        for block in &self.blocks {
            add(format!("route {block} metric 4198: blackhole"));
        }
        let mut objects = BTreeSet::new();
        for (prefix, hops) in &self.learned {
            let contested = self.contested.contains(prefix);
            let v6 = prefix.addr().is_ipv6();
            let owner = self.members.values().zip(self.members.keys());
            let mut owner = owner.filter(|((_, blocks), _)| blocks.contains(prefix));
            if let Some(((outer, _), name)) = owner.next() {
                let gateway = gateway(name, *outer, v6);
                let source = own_address(v6);
                add(format!(
                    "route {prefix} metric 198: object via {gateway} dev {TUNNEL} onlink src {source}"
                ));
                continue;
            }
            let mut ways: Vec<String> = hops
                .iter()
                .map(|hop| (hop, uplink_of(*hop)))
                .filter(|(_, uplink)| !self.down.contains(uplink))
                .map(|(hop, uplink)| format!("via {hop} dev {uplink}"))
                .collect();
            ways.sort_unstable();
            let mut leads = ways.join(", ");
            if self.everywhere && !ways.is_empty() {
                if ways.len() > 1 {
                    leads = format!("group of {leads}");
                }
                // Also of those that are contested: the route waits.
                objects.extend(ways.into_iter().chain([leads.clone()]));
                leads = format!("object {leads}");
            }
            if !leads.is_empty() && !contested {
                add(format!("route {prefix} metric 198: {leads}"));
            }
        }
        objects.iter().for_each(|way| add(format!("object {way}")));
        for (name, (outer, _)) in &self.members {
            let mac = mac_of(name);
            add(format!("forwarding {mac} to {outer}"));
            for v6 in [false, true] {
                let gateway = gateway(name, *outer, v6);
                add(format!("neighbour {gateway} {mac}"));
                add(format!("object via {gateway} dev {TUNNEL} onlink"));
            }
        }
        let (mac, v4, v6) = (mac_of("here"), own_address(false), own_address(true));
        add(format!("device {mac} mtu 1450 up: {v4}/32 {v6}/128"));
        lines
    }
}

fn tunnel_pool_v6() -> IpNet {
    net("fd00:244::/32")
}

/// This node's address on its tunnel.
pub fn own_address(v6: bool) -> IpAddr {
    if v6 { ip("fd00:244::1") } else { ip("10.244.0.1") }
}

pub fn member_name(number: usize) -> String {
    format!("node-{number}")
}

fn member_block(number: usize, v6: bool) -> IpNet {
    let number = number + 1;
    if v6 {
        net(&format!("fd00:244:{number:x}::/122"))
    } else {
        net(&format!("10.244.{}.{}/26", number / 4, number % 4 * 64))
    }
}

/// Every other one is IPv6.
pub fn plain_prefix(number: usize) -> IpNet {
    if number % 2 == 1 {
        net(&format!("fd01:{number:x}::/64"))
    } else {
        net(&format!("10.{}.{}.0/24", number / 256, number % 256))
    }
}

/// An address behind an uplink.
pub fn hop(uplink: usize, host: u8, v6: bool) -> IpAddr {
    let (_, v4_net, v6_net) = UPLINKS[uplink];
    match (net(v4_net).addr(), net(v6_net).addr()) {
        (IpAddr::V4(own), _) if !v6 => {
            let [a, b, c, _] = own.octets();
            Ipv4Addr::new(a, b, c, host).into()
        }
        (_, IpAddr::V6(own)) => {
            let mut words = own.segments();
            words[7] = host.into();
            std::net::Ipv6Addr::from(words).into()
        }
        _ => unreachable!("an uplink has both families"),
    }
}

fn uplink_of(hop: IpAddr) -> &'static str {
    let behind =
        |(_, v4, v6): &&(&str, &str, &str)| net(v4).contains(&hop) || net(v6).contains(&hop);
    UPLINKS.iter().find(behind).expect("an uplink").0
}

/// The gateway to a member for packets of a family inside.
fn gateway(name: &str, outer: Ipv4Addr, v6: bool) -> IpAddr {
    if v6 { link_local(mac_of(name)).into() } else { outer.into() }
}

pub fn path(next_hop: IpAddr) -> FibPath {
    let attributes = RouteAttributes::new(
        NextHop { address: next_hop, link_local: None },
        PathAttributes::originated(Origin::Igp),
    );
    FibPath {
        next_hop,
        link_local: None,
        link: None,
        peer: Arc::from("peer"),
        sort: SessionSort::Ebgp,
        attributes: Arc::new(attributes),
    }
}

pub fn net(text: &str) -> IpNet {
    text.parse().expect("a network")
}

pub fn ip(text: &str) -> IpAddr {
    text.parse().expect("an address")
}
