//! How this node reaches others' blocks, and others its own: the pure part of tunnels.
//!
//! ```text
//!  pools, members ──► Ways ──way(prefix)──► plain | through a tunnel to a node | not yet
//! ```
//!
//! BGP says whether a block can be reached. Where its packets go when they are wrapped says its
//! owner's BGPNode, never the BGP next hop, which across racks is a router.

use std::collections::btree_map::Entry;
use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::sync::Arc;
use std::time::Duration;

use cairn_api::{Encapsulation, TunnelKind, Vxlan};
use cairn_kernel::link::Link;
use ipnet::IpNet;

use crate::view::{ClusterView, Member};

/// The name of the node's device of a kind.
pub fn device_name(kind: TunnelKind) -> &'static str {
    match kind {
        TunnelKind::VXLAN => "cairn.vxlan",
        TunnelKind::IPIP => "cairn.ipip",
    }
}

/// Whether a link of such a name is Cairn's.
pub fn is_ours(link: &Link) -> bool {
    link.alias.as_deref() == Some(DEVICE_ALIAS)
}

/// Whether an address has no meaning beyond its link.
pub fn is_link_local(address: IpAddr) -> bool {
    match address {
        IpAddr::V4(v4) => v4.is_link_local(),
        IpAddr::V6(v6) => v6.is_unicast_link_local(),
    }
}

/// How long a device stays that no pool needs: others may send to it until they have heard.
pub const LINGER: Duration = Duration::from_secs(60);

const DEVICE_ALIAS: &str = "cairn.network/tunnel";

/// The tunnel of an encapsulation.
pub fn kind_of(encapsulation: Encapsulation) -> Option<TunnelKind> {
    match encapsulation {
        Encapsulation::None => None,
        Encapsulation::VXLAN | Encapsulation::VXLANCrossSubnet => Some(TunnelKind::VXLAN),
        Encapsulation::IPIP | Encapsulation::IPIPCrossSubnet => Some(TunnelKind::IPIP),
    }
}

/// The octets that the tunnel puts before each packet between addresses like `outer`.
pub fn overhead(kind: TunnelKind, outer: IpAddr) -> u32 {
    match (kind, outer) {
        // The inner Ethernet header, VXLAN, UDP and IPv4 or IPv6 (RFC 7348 section 5).
        (TunnelKind::VXLAN, IpAddr::V4(_)) => 14 + 8 + 8 + 20,
        (TunnelKind::VXLAN, IpAddr::V6(_)) => 14 + 8 + 8 + 40,
        (TunnelKind::IPIP, _) => 20,
    }
}

/// How one prefix is reached.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Way {
    /// By the BGP next hop.
    Plain,
    /// In packets to this node.
    Tunnel(TunnelKind, Arc<str>),
}

/// What decides on the way to each prefix. Equal values decide alike.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Ways {
    /// The node's own addresses, IPv4 first.
    pub addresses: Vec<IpAddr>,
    /// The settings of the VXLAN device.
    pub vxlan: Vxlan,
    /// The pools' networks.
    pub pools: BTreeMap<IpNet, Encapsulation>,
    /// The other nodes.
    pub members: Arc<BTreeMap<Arc<str>, Arc<Member>>>,
}

impl Ways {
    /// Of a node with these `addresses`.
    pub fn of(view: &ClusterView, addresses: &[IpAddr], vxlan: Vxlan) -> Ways {
        let pools = view
            .pools
            .values()
            .filter_map(|pool| Some((pool.spec.cidr.parse().ok()?, pool.spec.encapsulation)));
        Ways {
            addresses: addresses.to_vec(),
            vxlan,
            pools: pools.collect(),
            members: Arc::clone(&view.members),
        }
    }

    /// The kinds of tunnels that pools need.
    pub fn kinds(&self) -> BTreeSet<TunnelKind> {
        self.pools.values().filter_map(|encapsulation| kind_of(*encapsulation)).collect()
    }

    /// The encapsulation of the pool that holds `prefix`.
    pub fn encapsulation(&self, prefix: IpNet) -> Encapsulation {
        let holds = |(pool, _): &(&IpNet, &Encapsulation)| pool.contains(&prefix);
        let longest = self.pools.iter().filter(holds).max_by_key(|(pool, _)| pool.prefix_len());
        longest.map_or(Encapsulation::None, |(_, encapsulation)| *encapsulation)
    }

    /// The address from which a tunnel of `kind` leads, and in whose family to others.
    pub fn local(&self, kind: TunnelKind) -> Option<IpAddr> {
        let fits = |address: &IpAddr| kind == TunnelKind::VXLAN || address.is_ipv4();
        self.addresses.iter().copied().find(fits)
    }

    /// Where packets to `member` go through a tunnel of `kind`.
    pub fn outer(&self, kind: TunnelKind, member: &Member) -> Option<IpAddr> {
        let local = self.local(kind)?;
        member.addresses().find(|address| address.is_ipv4() == local.is_ipv4())
    }

    /// The MTU of pods in bytes: the smallest of the links that have the node's addresses, which `mtu`
    /// knows, less what a tunnel of any pool puts before a packet. `None` when none is known.
    pub fn pod_mtu(&self, mtu: impl Fn(IpAddr) -> Option<u32>) -> Option<u32> {
        let plain = self.addresses.iter().filter_map(|address| mtu(*address)).min()?;
        let wrapped = self.kinds().into_iter().filter_map(|kind| {
            let local = self.local(kind)?;
            Some(mtu(local)?.saturating_sub(overhead(kind, local)))
        });
        Some(wrapped.min().map_or(plain, |wrapped| wrapped.min(plain)))
    }

    /// Which way leads to `prefix`. `is_near` says whether an address lies in a subnet of this node, and
    /// `is_plain` whether the prefix is reached plainly now: while its owner does not take packets from
    /// the tunnel yet that stays, as when a pool changes, and does not begin.
    ///
    /// # Errors
    /// There is no way yet: why, as a clause.
    pub fn way(
        &self,
        prefix: IpNet,
        owners: &Owners,
        is_near: impl Fn(IpAddr) -> bool,
        is_plain: bool,
    ) -> Result<Way, String> {
        let encapsulation = self.encapsulation(prefix);
        let Some(kind) = kind_of(encapsulation) else { return Ok(Way::Plain) };
        let waits = |why: String| if is_plain { Ok(Way::Plain) } else { Err(why) };
        let owner = match owners.of(prefix) {
            Some(Owner::One(owner)) => owner,
            Some(Owner::Several(one, other)) => {
                return Err(format!("the BGPNodes {one} and {other} both name it as theirs"));
            }
            None => return waits("no BGPNode names it as its node's block".into()),
        };
        let Some(member) = self.members.get(&owner) else {
            return waits(format!("the BGPNode {owner} of its owner is gone"));
        };
        let Some(outer) = self.outer(kind, member) else {
            return Err(format!("this node and its owner {owner} have no address of one family"));
        };
        let crosses = matches!(
            encapsulation,
            Encapsulation::VXLANCrossSubnet | Encapsulation::IPIPCrossSubnet
        );
        if crosses && is_near(outer) {
            return Ok(Way::Plain);
        }
        if !member.tunnels.contains(&kind) {
            return waits(format!("its owner {owner} does not take {kind:?} packets yet"));
        }
        Ok(Way::Tunnel(kind, owner))
    }
}

/// Who owns the blocks of pools with an encapsulation, as the owners say.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Owners(Covering<Owner>);

/// Networks of few different lengths, each with a value.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Covering<T> {
    networks: BTreeMap<IpNet, T>,
    lengths: BTreeSet<u8>,
}

impl<T> Default for Covering<T> {
    fn default() -> Covering<T> {
        Covering { networks: BTreeMap::new(), lengths: BTreeSet::new() }
    }
}

impl<T> Covering<T> {
    /// What stands at `network`.
    pub fn entry(&mut self, network: IpNet) -> Entry<'_, IpNet, T> {
        self.lengths.insert(network.prefix_len());
        self.networks.entry(network.trunc())
    }

    /// The networks that are `prefix` or hold it, the smallest first.
    pub fn of(&self, prefix: IpNet) -> impl Iterator<Item = &T> {
        let lengths = self.lengths.range(..=prefix.prefix_len()).rev();
        let within = move |length: &u8| IpNet::new(prefix.addr(), *length).ok();
        lengths.filter_map(move |length| self.networks.get(&within(length)?.trunc()))
    }
}

impl FromIterator<IpNet> for Covering<()> {
    fn from_iter<I: IntoIterator<Item = IpNet>>(networks: I) -> Covering<()> {
        let mut all = Covering::default();
        for network in networks {
            all.entry(network).or_insert(());
        }
        all
    }
}

#[derive(Clone, Debug, PartialEq, Eq)]
enum Owner {
    One(Arc<str>),
    Several(Arc<str>, Arc<str>),
}

impl Owners {
    /// As `members` say.
    pub fn new(members: &BTreeMap<Arc<str>, Arc<Member>>) -> Owners {
        let mut owners = Covering::default();
        for (name, member) in members {
            for block in &member.blocks {
                match owners.entry(*block) {
                    Entry::Vacant(free) => drop(free.insert(Owner::One(Arc::clone(name)))),
                    Entry::Occupied(mut taken) => {
                        if let Owner::One(first) = taken.get() {
                            let several = Owner::Several(Arc::clone(first), Arc::clone(name));
                            taken.insert(several);
                        }
                    }
                }
            }
        }
        Owners(owners)
    }

    /// The owner of the block that is `prefix` or holds it. Where blocks overlap, as a block of a pool that was
    /// made anew does with one that its owner still names, they may be several.
    fn of(&self, prefix: IpNet) -> Option<Owner> {
        let mut owners = self.0.of(prefix);
        let first = owners.next()?;
        let Owner::One(name) = first else { return Some(first.clone()) };
        let other = owners.find_map(|owner| match owner {
            Owner::One(other) if other == name => None,
            Owner::One(other) | Owner::Several(other, _) => Some(other),
        });
        Some(match other {
            None => Owner::One(Arc::clone(name)),
            Some(other) => Owner::Several(Arc::clone(name), Arc::clone(other)),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn net(text: &str) -> IpNet {
        text.parse().expect("a network")
    }

    fn address(text: &str) -> IpAddr {
        text.parse().expect("an address")
    }

    fn member(ipv4: &str, tunnels: &[TunnelKind], blocks: &[&str]) -> Arc<Member> {
        Arc::new(Member {
            ipv4: ipv4.parse().ok(),
            ipv6: None,
            tunnels: tunnels.to_vec(),
            blocks: blocks.iter().map(|block| net(block)).collect(),
        })
    }

    fn ways(encapsulation: Encapsulation) -> (Ways, Owners) {
        let both = [TunnelKind::VXLAN, TunnelKind::IPIP];
        let members = Arc::new(BTreeMap::from([
            ("far".into(), member("198.51.100.2", &both, &["10.0.1.0/26"])),
            ("near".into(), member("192.0.2.2", &both, &["10.0.0.64/26"])),
            ("new".into(), member("198.51.100.3", &[], &["10.0.2.0/26", "10.0.3.0/26"])),
            ("twin".into(), member("198.51.100.4", &both, &["10.0.3.0/26"])),
        ]));
        let ways = Ways {
            addresses: vec![address("192.0.2.1")],
            vxlan: Vxlan::default(),
            pools: BTreeMap::from([
                (net("10.0.0.0/16"), encapsulation),
                (net("10.1.0.0/16"), Encapsulation::None),
            ]),
            members: Arc::clone(&members),
        };
        let owners = Owners::new(&members);
        (ways, owners)
    }

    fn way(encapsulation: Encapsulation, prefix: &str, is_plain: bool) -> Result<Way, String> {
        let (ways, owners) = ways(encapsulation);
        let is_near = |ip: IpAddr| net("192.0.2.0/24").contains(&ip);
        ways.way(net(prefix), &owners, is_near, is_plain)
    }

    fn through(kind: TunnelKind, node: &str) -> Result<Way, String> {
        Ok(Way::Tunnel(kind, node.into()))
    }

    #[test]
    fn the_pool_says_how_and_the_owner_where() {
        use Encapsulation::{IPIP, IPIPCrossSubnet, None, VXLAN, VXLANCrossSubnet};
        let cases = [
            (None, "10.0.1.0/26", Ok(Way::Plain)),
            (VXLAN, "10.0.1.0/26", through(TunnelKind::VXLAN, "far")),
            (VXLAN, "10.0.0.64/26", through(TunnelKind::VXLAN, "near")),
            (VXLANCrossSubnet, "10.0.1.0/26", through(TunnelKind::VXLAN, "far")),
            (VXLANCrossSubnet, "10.0.0.64/26", Ok(Way::Plain)),
            (IPIP, "10.0.0.64/26", through(TunnelKind::IPIP, "near")),
            (IPIPCrossSubnet, "10.0.0.64/26", Ok(Way::Plain)),
            // A pod's own route, of a block that its owner has lost.
            (VXLAN, "10.0.1.7/32", through(TunnelKind::VXLAN, "far")),
            (VXLAN, "10.1.0.0/26", Ok(Way::Plain)),
            (VXLAN, "192.168.0.0/24", Ok(Way::Plain)),
        ];
        for (encapsulation, prefix, expected) in cases {
            assert_eq!(way(encapsulation, prefix, false), expected, "{encapsulation:?} {prefix}");
        }
    }

    #[test]
    fn what_is_plain_stays_so_until_the_owner_takes_packets_and_nothing_begins_plainly() {
        for prefix in ["10.0.2.0/26", "10.0.200.0/26"] {
            assert_eq!(way(Encapsulation::VXLAN, prefix, true), Ok(Way::Plain));
            assert!(way(Encapsulation::VXLAN, prefix, false).is_err());
        }
        let two = way(Encapsulation::VXLAN, "10.0.3.0/26", true).expect_err("two owners");
        assert_eq!(two, "the BGPNodes new and twin both name it as theirs");
    }

    #[test]
    fn blocks_of_different_sizes_hide_no_owner() {
        let of = |blocks: &[(&str, &[&str])], prefix: &str| {
            let members = blocks.iter().map(|(name, blocks)| {
                (Arc::from(*name), member("192.0.2.9", &[TunnelKind::VXLAN], blocks))
            });
            Owners::new(&members.collect()).of(net(prefix))
        };
        let blocks: [(&str, &[&str]); 2] =
            [("old", &["10.0.0.0/26"]), ("new", &["10.0.0.0/24", "10.0.1.0/24"])];
        let new = Some(Owner::One("new".into()));
        assert_eq!(of(&blocks, "10.0.0.0/24"), new);
        assert_eq!(of(&blocks, "10.0.0.70/32"), new);
        assert_eq!(of(&blocks, "10.0.0.5/32"), Some(Owner::Several("old".into(), "new".into())));
        assert_eq!(of(&blocks, "10.0.1.5/32"), new);
        assert_eq!(of(&blocks, "10.0.2.5/32"), None);
        let one: [(&str, &[&str]); 1] = [("new", &["10.0.0.0/26", "10.0.0.0/24"])];
        assert_eq!(of(&one, "10.0.0.5/32"), new);
    }

    #[test]
    fn a_tunnel_leads_between_addresses_of_one_family() {
        let (mut ways, owners) = ways(Encapsulation::VXLAN);
        ways.addresses = vec![address("fd00::1")];
        let error = ways.way(net("10.0.1.0/26"), &owners, |_| false, false).expect_err("no way");
        assert!(error.contains("no address of one family"), "{error}");
        assert_eq!(ways.local(TunnelKind::VXLAN), Some(address("fd00::1")));
        assert_eq!(ways.local(TunnelKind::IPIP), None);
        assert_eq!(overhead(TunnelKind::VXLAN, address("fd00::1")), 70);
        assert_eq!(overhead(TunnelKind::IPIP, address("192.0.2.1")), 20);
    }
}
