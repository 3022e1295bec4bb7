//! Addresses of others inside a pool: what the leader looks for before the first claim (IPAM rule 8).
//!
//! A [`Census`] is of the pools that nobody has judged yet. It is told, in this order, the pools'
//! blocks, then all pods, Nodes and Service ranges, and last what the blocks' owners list of their
//! allocations if there is a pod that the blocks do not explain. Its memory is bounded whatever it is
//! told.

use std::collections::BTreeMap;
use std::fmt;
use std::net::IpAddr;

use ipnet::IpNet;

use crate::claims::overlap;
use crate::returns::PodSeen;

/// Foreign addresses that a condition names at most.
pub const NAMED_MAX: usize = 10;

/// Foreign addresses of one pool that a census remembers at most; beyond it counts only that there
/// are more.
pub const FOUND_MAX: usize = 1_000;

/// A pool to be judged.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct CensusPool {
    /// The object's UID.
    pub uid: String,
    /// The range.
    pub cidr: IpNet,
    /// Its blocks are the Nodes' `spec.podCIDRs`, which are no foreign ranges then.
    pub of_pod_cidrs: bool,
}

/// An address or a range of somebody else.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Foreign {
    /// What is in use.
    pub net: IpNet,
    /// By whom.
    pub by: By,
}

/// Who uses an address.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum By {
    /// A pod, as namespace/name, on a node.
    Pod(String, String),
    /// The address of a Node.
    Node(String),
    /// A `spec.podCIDRs` of a Node.
    PodCidr(String),
    /// A ServiceCIDR.
    Services(String),
}

impl fmt::Display for Foreign {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let net = self.net;
        match &self.by {
            By::Pod(pod, node) => write!(f, "{} of pod {pod} on node {node}", net.addr()),
            By::Node(node) => write!(f, "{} of node {node}", net.addr()),
            By::PodCidr(node) => write!(f, "{net} in spec.podCIDRs of node {node}"),
            By::Services(name) => write!(f, "{net} of ServiceCIDR {name}"),
        }
    }
}

/// What was found in one pool.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Found {
    /// The first of what was found.
    pub foreign: Vec<Foreign>,
    /// There is more than [`FOUND_MAX`].
    pub more: bool,
}

impl Found {
    /// The finding as a sentence; `None` when nothing was found.
    pub fn sentence(&self, cidr: IpNet) -> Option<String> {
        if self.foreign.is_empty() && !self.more {
            return None;
        }
        let named: Vec<String> =
            self.foreign.iter().take(NAMED_MAX).map(Foreign::to_string).collect();
        let rest = self.foreign.len().saturating_sub(NAMED_MAX);
        let rest = match (self.more, rest) {
            (true, _) => " and many more".to_owned(),
            (false, 0) => String::new(),
            (false, rest) => format!(" and {rest} more"),
        };
        Some(format!(
            "others use addresses of {cidr}: {}{rest}; no block is claimed until they are gone, or \
             create a pool with another range",
            named.join(", ")
        ))
    }
}

/// Looks for addresses of others in pools.
#[derive(Clone, Debug)]
pub struct Census {
    pools: Vec<(CensusPool, BTreeMap<IpNet, String>, Found)>,
}

impl Census {
    /// A census of these pools.
    pub fn new(pools: impl IntoIterator<Item = CensusPool>) -> Census {
        let of = |pool| (pool, BTreeMap::new(), Found::default());
        Census { pools: pools.into_iter().map(of).collect() }
    }

    /// A block that `node` has claimed from the pool with this UID.
    pub fn block(&mut self, pool_uid: &str, cidr: IpNet, node: &str) {
        for (_, blocks, _) in self.pools.iter_mut().filter(|(pool, ..)| pool.uid == pool_uid) {
            blocks.insert(cidr, node.to_owned());
        }
    }

    /// A pod that has not ended and is not in its node's network. It is ours where its address lies
    /// in a block of its own node.
    pub fn pod(&mut self, pod: &PodSeen) {
        for address in &pod.addresses {
            let net = IpNet::from(*address);
            self.find(net, |pool, blocks| {
                let own = blocks.range(..=longest(net)).next_back();
                let own = own.filter(|(block, node)| block.contains(address) && **node == pod.node);
                let by = || By::Pod(pod.name.clone(), pod.node.clone());
                (pool.cidr.contains(&net) && own.is_none()).then(by)
            });
        }
    }

    /// A Node's addresses and `spec.podCIDRs`.
    pub fn node(&mut self, name: &str, addresses: &[IpAddr], pod_cidrs: &[IpNet]) {
        for address in addresses {
            let net = IpNet::from(*address);
            self.find(net, |pool, _| pool.cidr.contains(&net).then(|| By::Node(name.to_owned())));
        }
        for cidr in pod_cidrs {
            self.find(*cidr, |pool, _| {
                let foreign = !pool.of_pod_cidrs && overlap(pool.cidr, *cidr);
                foreign.then(|| By::PodCidr(name.to_owned()))
            });
        }
    }

    /// A range of Service addresses.
    pub fn services(&mut self, name: &str, cidr: IpNet) {
        self.find(cidr, |pool, _| overlap(pool.cidr, cidr).then(|| By::Services(name.to_owned())));
    }

    /// Whether there are pods that the blocks do not explain: then the allocations that the blocks'
    /// owners list are worth a look.
    pub fn asks_for_allocations(&self) -> bool {
        let mut found = self.pools.iter().flat_map(|(.., found)| &found.foreign);
        found.any(|foreign| matches!(foreign.by, By::Pod(..)))
    }

    /// An allocation that the owner of a block of the pool with this UID lists.
    pub fn allocation(&mut self, pool_uid: &str, address: IpAddr, pod: Option<&str>) {
        for (_, _, found) in self.pools.iter_mut().filter(|(pool, ..)| pool.uid == pool_uid) {
            found.foreign.retain(|foreign| match &foreign.by {
                By::Pod(name, _) => {
                    foreign.net.addr() != address || pod.is_some_and(|pod| pod != name)
                }
                _ => true,
            });
        }
    }

    /// What was found, by the pool's UID.
    pub fn findings(self) -> BTreeMap<String, Found> {
        self.pools.into_iter().map(|(pool, _, found)| (pool.uid, found)).collect()
    }

    fn find(
        &mut self,
        net: IpNet,
        by: impl Fn(&CensusPool, &BTreeMap<IpNet, String>) -> Option<By>,
    ) {
        for (pool, blocks, found) in &mut self.pools {
            let Some(by) = by(pool, blocks) else { continue };
            if found.foreign.len() < FOUND_MAX {
                found.foreign.push(Foreign { net, by });
            } else {
                found.more = true;
            }
        }
    }
}

/// The last network of a range to a block that can hold this address: blocks do not overlap, so the
/// one before it is the only one that may.
fn longest(net: IpNet) -> IpNet {
    IpNet::new(net.addr(), net.max_prefix_len()).unwrap_or(net)
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

    fn census(of_pod_cidrs: bool) -> Census {
        let pool = |uid: &str, cidr| CensusPool { uid: uid.into(), cidr: net(cidr), of_pod_cidrs };
        Census::new([pool("p4", "10.244.0.0/16"), pool("p6", "fd00:10::/48")])
    }

    fn pod(name: &str, node: &str, addresses: &[&str]) -> PodSeen {
        let addresses = addresses.iter().map(|text| address(text)).collect();
        PodSeen { name: name.into(), node: node.into(), addresses }
    }

    fn found(census: Census, uid: &str) -> Vec<String> {
        let findings = census.findings();
        findings.get(uid).expect("judged").foreign.iter().map(Foreign::to_string).collect()
    }

    #[test]
    fn what_is_foreign_and_what_is_ours() {
        type Tell = fn(&mut Census);
        let cases: [(&str, Tell, &[&str]); 11] = [
            ("nothing", |_| {}, &[]),
            (
                "a pod of another network",
                |c| c.pod(&pod("shop/cart", "n1", &["10.244.3.7", "fd00:10::7"])),
                &[
                    "10.244.3.7 of pod shop/cart on node n1",
                    "fd00:10::7 of pod shop/cart on node n1",
                ],
            ),
            ("a pod elsewhere", |c| c.pod(&pod("shop/cart", "n1", &["10.245.3.7"])), &[]),
            (
                "a pod in a block of its node",
                |c| {
                    c.block("p4", net("10.244.3.0/26"), "n1");
                    c.pod(&pod("shop/cart", "n1", &["10.244.3.0"]));
                    c.pod(&pod("shop/cart", "n1", &["10.244.3.63"]));
                },
                &[],
            ),
            (
                "a pod in a block of another node",
                |c| {
                    c.block("p4", net("10.244.3.0/26"), "n2");
                    c.pod(&pod("shop/cart", "n1", &["10.244.3.7"]));
                },
                &["10.244.3.7 of pod shop/cart on node n1"],
            ),
            (
                "one that the block's owner lists",
                |c| {
                    c.block("p4", net("10.244.3.0/26"), "n2");
                    c.pod(&pod("shop/cart", "n1", &["10.244.3.7"]));
                    assert!(c.asks_for_allocations());
                    c.allocation("p4", address("10.244.3.7"), Some("shop/cart"));
                },
                &[],
            ),
            (
                "one that the owner lists for another pod",
                |c| {
                    c.pod(&pod("shop/cart", "n1", &["10.244.3.7"]));
                    c.allocation("p4", address("10.244.3.7"), Some("shop/db"));
                    c.allocation("p6", address("10.244.3.7"), Some("shop/cart"));
                },
                &["10.244.3.7 of pod shop/cart on node n1"],
            ),
            (
                "a Node's address",
                |c| c.node("n1", &[address("10.244.9.9"), address("192.0.2.1")], &[]),
                &["10.244.9.9 of node n1"],
            ),
            (
                "a podCIDR",
                |c| c.node("n1", &[], &[net("10.244.9.0/24"), net("fd00:10::/40")]),
                &[
                    "10.244.9.0/24 in spec.podCIDRs of node n1",
                    "fd00:10::/40 in spec.podCIDRs of node n1",
                ],
            ),
            (
                "a range of Services that holds the pool",
                |c| c.services("kubernetes", net("10.0.0.0/8")),
                &["10.0.0.0/8 of ServiceCIDR kubernetes"],
            ),
            ("one beside it", |c| c.services("kubernetes", net("10.96.0.0/12")), &[]),
        ];
        for (what, tell, expected) in cases {
            let mut census = census(false);
            tell(&mut census);
            let mut all = found(census.clone(), "p4");
            all.extend(found(census, "p6"));
            assert_eq!(all, expected, "{what}");
        }
    }

    #[test]
    fn pod_cidrs_are_what_a_pool_of_them_is_made_of() {
        let mut census = census(true);
        census.node("n1", &[], &[net("10.244.9.0/24")]);
        assert!(found(census, "p4").is_empty());
    }

    #[test]
    fn the_first_ten_are_named_and_memory_is_bounded() {
        let mut census = census(false);
        let sentence = |census: &Census, uid: &str| {
            let found = census.clone().findings().remove(uid).expect("judged");
            found.sentence(net("10.244.0.0/16"))
        };
        assert_eq!(sentence(&census, "p4"), None);
        for n in 0..12 {
            census.pod(&pod(&format!("a/p{n}"), "n1", &[&format!("10.244.0.{n}")]));
        }
        let text = sentence(&census, "p4").expect("a finding");
        assert!(text.contains("10.244.0.9 of pod a/p9 on node n1 and 2 more"), "{text}");
        assert!(!text.contains("a/p10"));
        for n in 0..2_000 {
            census.pod(&pod("b/p", "n1", &[&format!("10.244.{}.{}", n / 200, n % 200)]));
        }
        let findings = census.findings();
        let found = findings.get("p4").expect("judged");
        assert_eq!((found.foreign.len(), found.more), (FOUND_MAX, true));
        assert!(found.sentence(net("10.244.0.0/16")).expect("a finding").contains("many more"));
    }
}
