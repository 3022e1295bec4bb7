//! The node's firewall: what it should be, and the thread that keeps the kernel so.
//!
//! ```text
//!  view, ways, tunnel addresses ──wanted()──► Firewall ──► FirewallKeeper ──► kernel
//!                                             problems ◄──────┘
//! ```

use std::collections::BTreeSet;
use std::time::{Duration, Instant};

use anyhow::Context;
use cairn_api::{Encapsulation, NodeConfigurationSpec, Switch, TunnelKind};
use cairn_kernel::firewall::{Firewall, FirewallKeeper, Outer, TunnelRule};
use cairn_kernel::pod::HOST_INTERFACE_PREFIX;

use tokio::sync::{oneshot, watch};

use crate::node_address::{OwnAddress, is_near};
use crate::pods::TunnelAddresses;
use crate::tunnels::{Ways, device_name, kind_of};
use crate::until;
use crate::view::ClusterView;

/// The thread's other end.
pub struct Keeper {
    /// What the firewall should be; nothing is written before it is known.
    pub wanted: watch::Sender<Option<Firewall>>,
    /// What is wrong, one sentence each.
    pub problems: watch::Receiver<Vec<String>>,
    /// How often others changed what is ours.
    pub repairs: watch::Receiver<u64>,
}

impl Keeper {
    /// Starts the thread in the network namespace of the caller. What the kernel has stays when the
    /// value is dropped.
    ///
    /// # Errors
    /// The kernel gives no sockets.
    pub async fn start() -> anyhow::Result<Keeper> {
        let (wanted, mut changes) = watch::channel(None);
        let (tell, problems) = watch::channel(Vec::new());
        let (count, repairs) = watch::channel(0);
        let (started, ready) = oneshot::channel();
        crate::on_own_thread("firewall", move || async move {
            match FirewallKeeper::open().context("cannot watch the packet filter") {
                Err(error) => drop(started.send(Err(error))),
                Ok(keeper) => {
                    if started.send(Ok(())).is_ok() {
                        keep(keeper, &mut changes, &tell, &count).await;
                    }
                }
            }
        })?;
        ready.await.context("the thread of the packet filter ended at its start")??;
        Ok(Keeper { wanted, problems, repairs })
    }
}

async fn keep(
    mut keeper: FirewallKeeper,
    wanted: &mut watch::Receiver<Option<Firewall>>,
    problems: &watch::Sender<Vec<String>>,
    repairs: &watch::Sender<u64>,
) {
    loop {
        let now = Instant::now();
        if keeper.is_dirty() || keeper.next_deadline().is_some_and(|at| at <= now) {
            keeper.apply(now).await;
        }
        let found = keeper.problems();
        crate::send_if_changed(problems, found);
        let edits = keeper.edits();
        crate::send_if_changed(repairs, edits);
        // What others did during the pass is heard already.
        let due = if keeper.is_dirty() { Some(Instant::now()) } else { keeper.next_deadline() };
        let due = due.map(tokio::time::Instant::from_std);
        tokio::select! {
            changed = wanted.changed() => match changed {
                Ok(()) => {
                    if let Some(firewall) = wanted.borrow_and_update().clone() {
                        keeper.set(firewall);
                    }
                }
                Err(_) => return,
            },
            seen = keeper.next() => if let Err(error) = seen {
                tracing::warn!(%error, "the packet filter's notifications failed, reading all again");
                keeper.request_resync();
                tokio::time::sleep(RETRY).await;
            },
            () = until(due) => {}
        }
    }
}

/// How soon notifications that failed are asked for again.
const RETRY: Duration = Duration::from_secs(1);

/// The firewall of a node with these `ways`, whose tunnel devices have `addresses` and which has the
/// addresses `own`.
pub fn wanted(
    view: &ClusterView,
    ways: &Ways,
    settings: &NodeConfigurationSpec,
    addresses: &TunnelAddresses,
    own: &[OwnAddress],
) -> Firewall {
    let nat = view.pools.values().filter(|pool| pool.spec.nat_outgoing);
    let nodes = ways.members.values().flat_map(|member| member.addresses());
    // Of each family the nodes to whose blocks of that family a tunnel leads.
    let through = ways.members.values().flat_map(|member| {
        member.addresses().filter(move |address| {
            ways.pools.iter().any(|(pool, encapsulation)| {
                let Some(kind) = kind_of(*encapsulation) else { return false };
                let Some(outer) = ways.outer(kind, member) else { return false };
                let crosses = matches!(
                    encapsulation,
                    Encapsulation::VXLANCrossSubnet | Encapsulation::IPIPCrossSubnet
                );
                pool.addr().is_ipv4() == address.is_ipv4()
                    && member.tunnels.contains(&kind)
                    && !(crosses && is_near(own, outer))
            })
        })
    });
    // A device that stays for a while is protected as long.
    let kinds: BTreeSet<TunnelKind> =
        ways.kinds().into_iter().chain(addresses.held.keys().map(|(kind, _)| *kind)).collect();
    let tunnels = kinds.into_iter().filter_map(|kind| {
        Some(TunnelRule {
            device: device_name(kind),
            addresses: addresses
                .held
                .iter()
                .filter_map(|((of, _), address)| (*of == kind).then_some(*address))
                .collect(),
            local: ways.local(kind)?,
            protect: match kind {
                TunnelKind::VXLAN => Outer::Vxlan { port: ways.vxlan.port, vni: ways.vxlan.vni },
                TunnelKind::IPIP => Outer::Ipip,
            },
        })
    });
    Firewall {
        pools: ways.pools.keys().copied().collect(),
        nat_pools: nat.filter_map(|pool| pool.spec.cidr.parse().ok()).collect(),
        excluded: settings.excluded_cidrs.iter().filter_map(|text| text.parse().ok()).collect(),
        nodes: nodes.chain(ways.addresses.iter().copied()).collect(),
        tunnel_pools: ways
            .pools
            .iter()
            .filter_map(|(pool, encapsulation)| kind_of(*encapsulation).map(|_| *pool))
            .collect(),
        tunnel_nodes: through.collect(),
        tunnels: tunnels.collect(),
        accept_forwarded: settings.forward_rules == Switch::Enabled,
        ..Firewall::new(HOST_INTERFACE_PREFIX)
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;
    use std::net::IpAddr;
    use std::sync::Arc;

    use cairn_ipam::Family;
    use serde_json::json;

    use super::*;
    use crate::view::Member;

    fn set(texts: &[&str]) -> BTreeSet<IpAddr> {
        texts.iter().map(|text| text.parse().expect("an address")).collect()
    }

    fn view(encapsulation: &str) -> ClusterView {
        let pool = |name: &str, cidr: &str, encapsulation: &str, nat: bool| {
            let object = json!({
                "apiVersion": "cairn.network/v1alpha1", "kind": "IPPool", "metadata": {"name": name},
                "spec": {"cidr": cidr, "encapsulation": encapsulation, "natOutgoing": nat},
            });
            (name.to_owned(), serde_json::from_value(object).expect("an IPPool"))
        };
        let member = |ipv4: &str, tunnels: &[TunnelKind]| {
            Arc::new(Member {
                ipv4: ipv4.parse().ok(),
                tunnels: tunnels.to_vec(),
                ..Member::default()
            })
        };
        ClusterView {
            pools: BTreeMap::from([
                pool("a", "10.0.0.0/16", encapsulation, true),
                pool("b", "10.1.0.0/16", "None", false),
            ]),
            members: Arc::new(BTreeMap::from([
                ("far".into(), member("198.51.100.2", &[TunnelKind::VXLAN])),
                ("near".into(), member("192.0.2.2", &[TunnelKind::VXLAN])),
                ("new".into(), member("198.51.100.3", &[])),
            ])),
            ..ClusterView::default()
        }
    }

    fn firewall(encapsulation: &str) -> Firewall {
        let view = view(encapsulation);
        let own = "192.0.2.1/24".parse().expect("an address");
        let own = [OwnAddress { interface: "eth0".into(), address: own, lasting: true }];
        let settings = NodeConfigurationSpec {
            excluded_cidrs: vec!["192.168.0.0/16".into()],
            forward_rules: Switch::Disabled,
            ..NodeConfigurationSpec::default()
        };
        let ways = Ways::of(&view, &[own[0].address.addr()], settings.vxlan);
        let held = BTreeMap::from([(
            (TunnelKind::VXLAN, Family::V4),
            "10.0.0.9".parse().expect("an address"),
        )]);
        let addresses = TunnelAddresses { revision: 1, held };
        wanted(&view, &ways, &settings, &addresses, &own)
    }

    #[test]
    fn who_is_masqueraded_and_who_may_send_tunnel_packets() {
        let all = firewall("VXLAN");
        assert_eq!(all.nodes, set(&["192.0.2.1", "192.0.2.2", "198.51.100.2", "198.51.100.3"]));
        assert_eq!(all.tunnel_nodes, set(&["192.0.2.2", "198.51.100.2"]));
        assert_eq!(all.nat_pools.len(), 1);
        assert_eq!(all.tunnel_pools, all.nat_pools);
        assert_eq!((all.pools.len(), all.excluded.len()), (2, 1));
        assert!(!all.accept_forwarded);
        let [rule] = &all.tunnels[..] else { panic!("{:?}", all.tunnels) };
        assert_eq!(rule.protect, Outer::Vxlan { port: 4798, vni: 198 });
        assert_eq!(rule.addresses, ["10.0.0.9".parse::<IpAddr>().expect("an address")]);
        assert_eq!(firewall("VXLANCrossSubnet").tunnel_nodes, set(&["198.51.100.2"]));
        let plain = firewall("None");
        assert!(plain.tunnel_nodes.is_empty() && plain.tunnel_pools.is_empty());
        assert_eq!(plain.tunnels, all.tunnels, "the device is there still, and protected");
    }
}
