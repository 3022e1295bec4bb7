//! That packets between pods take the tunnels that they should, and nothing else on the way knows pods.

use std::collections::BTreeSet;
use std::net::IpAddr;
use std::time::{Duration, Instant};

use cairn_kernel::link;
use cairn_kernel::tunnel::TunnelKind;
use ipnet::IpNet;

use super::cast::{Cast, Flows};
use super::model::{count_paths, counted};
use super::{network, size, some_of};
use crate::cluster::Cluster;
use crate::datacenter::fabric::{self, Passed, Traffic};
use crate::datacenter::layout::POOLS;
use crate::datacenter::{DataCenter, Layout, Machine, Role};
use crate::error::Error;
use crate::interrupt::{Interrupt, Seen};
use crate::lab::Lab;
use crate::options::Encap;
use crate::pod::Pod;
use crate::report::{Row, millis};
use crate::tables::BgpRoutes;

/// The addresses of a machine's tunnel devices, with the devices' names.
///
/// # Errors
/// [`Error::Kernel`] when they cannot be read.
pub fn tunnel_addresses(machine: &Machine) -> Result<Vec<(String, IpAddr)>, Error> {
    let mut routes = machine.routes();
    let netlink = routes.netlink();
    let links = link::list(netlink).map_err(Error::kernel("a list of links"))?;
    let addresses = link::addresses(netlink).map_err(Error::kernel("a list of addresses"))?;
    let of_tunnel = |address: link::Address| {
        let link = links.iter().find(|link| link.index == address.ifindex)?;
        let ours = TunnelKind::of_device(&link.name).is_some();
        let at = address.address.addr();
        // A device makes itself a link-local address, which is nobody's to give.
        let scoped = matches!(at, IpAddr::V6(at) if at.is_unicast_link_local());
        (ours && !scoped).then(|| (link.name.clone(), at))
    };
    Ok(addresses.into_iter().filter_map(of_tunnel).collect())
}

/// Looks whether each node has one address a family, of a block of its own, on the right device.
///
/// # Errors
/// When the kernel or the API cannot be read.
pub fn addresses(centre: &DataCenter, cluster: &Cluster) -> Result<Row, Error> {
    let blocks = cluster.blocks()?;
    let layout = &centre.layout;
    let (mut right, mut wrong) = (0, Vec::new());
    for node in layout.nodes().map(|node| node.name()) {
        let Some(machine) = centre.machine(&node) else { continue };
        let found = tunnel_addresses(machine)?;
        let own: Vec<IpNet> =
            blocks.iter().filter(|block| block.node == node).map(|block| block.cidr).collect();
        for v4 in layout.versions() {
            let of_family: Vec<_> = found.iter().filter(|(_, at)| at.is_ipv4() == *v4).collect();
            match (of_family.as_slice(), layout.encap.tunnel(*v4)) {
                ([(device, at)], Some(tunnel))
                    if device == tunnel.device_name() && own.iter().any(|net| net.contains(at)) =>
                {
                    right += 1;
                }
                (found, tunnel) => wrong.push(format!("{node} has {found:?} for {tunnel:?}")),
            }
        }
    }
    let all = layout.nodes().count() * layout.versions().len();
    let ok = right == all && wrong.is_empty();
    let seen = counted(right, all, wrong);
    Ok(Row::new("tunnel addresses, of the nodes' own blocks", format!("{all}/{all}"), seen, ok))
}

/// What the fabric sees while all pods speak to each other once more. Before, a packet may have been
/// sent to a node before its tunnel was known, and dropped.
///
/// # Errors
/// When counters or tables cannot be read, or nobody can listen or send at all.
pub fn fabric(centre: &DataCenter, pods: &[Pod], interrupt: &Interrupt) -> Result<Vec<Row>, Error> {
    let before = fabric::traffic(centre)?;
    let again = network::network(centre, pods, interrupt)?;
    let mut rows: Vec<Row> = again.into_iter().filter(|row| !row.ok).collect();
    rows.extend(size::full_size(centre, pods, interrupt)?.into_iter().filter(|row| !row.ok));
    let traffic = fabric::traffic(centre)? - before;
    let mut pod_routes = Vec::new();
    for (name, machine) in centre.machines().filter(|(_, machine)| machine.role != Role::Node) {
        let learned = BgpRoutes::read(machine)?.learned;
        pod_routes.extend(
            learned.keys().filter(|net| is_of_pods(net)).map(|net| format!("{name} {net}")),
        );
    }
    let count = pod_routes.len();
    rows.push(Row::new(
        "routes to pods on spine and routers",
        "0",
        if count == 0 { "0".into() } else { format!("{count}: {}", some_of(pod_routes)) },
        count == 0,
    ));
    rows.extend(judge(&centre.layout, traffic));
    Ok(rows)
}

fn is_of_pods(net: &IpNet) -> bool {
    POOLS.iter().any(|(_, cidr, _)| cidr.parse().is_ok_and(|pool: IpNet| pool.contains(net)))
}

/// Compares what was counted with what tunnels must look like.
fn judge(layout: &Layout, traffic: Traffic) -> Vec<Row> {
    let kinds: BTreeSet<TunnelKind> =
        layout.versions().iter().filter_map(|v4| layout.encap.tunnel(*v4)).collect();
    let only_these = |passed: Passed, kinds: &BTreeSet<TunnelKind>| {
        [(TunnelKind::Vxlan, passed.vxlan), (TunnelKind::Ipip, passed.ipip)]
            .iter()
            .all(|(kind, packets)| (*packets > 0) == kinds.contains(kind))
    };
    let tunnels = |what: &str, passed: Passed, kinds: &BTreeSet<TunnelKind>| {
        let expected: Vec<String> = (kinds.iter().map(|kind| format!("{kind:?}"))).collect();
        let expected = if expected.is_empty() {
            "0".into()
        } else {
            format!("only {}", expected.join(" and "))
        };
        let seen = format!("{} VXLAN, {} IPIP", passed.vxlan, passed.ipip);
        Row::new(what, expected, seen, only_these(passed, kinds))
    };
    let none = |what: &str, packets: u64| Row::new(what, "0", packets.to_string(), packets == 0);

    let mut rows = vec![
        none("plain pod packets at spine and routers", traffic.spine.plain + traffic.tors.plain),
        tunnels("tunnel packets between racks", traffic.spine, &kinds),
    ];
    if layout.encap.is_cross_subnet() {
        let plain = traffic.racks.plain;
        rows.push(tunnels("tunnel packets within racks", traffic.racks, &BTreeSet::new()));
        rows.push(Row::new("plain pod packets within racks", "some", plain.to_string(), plain > 0));
    } else {
        rows.push(tunnels("tunnel packets within racks", traffic.racks, &kinds));
        rows.push(none("plain pod packets within racks", traffic.racks.plain));
    }
    let fragments = traffic.spine.fragments + traffic.tors.fragments + traffic.racks.fragments;
    rows.push(none("fragments", fragments));
    rows
}

/// Deletes each tunnel device of a node, under the flows, and waits until everything is as before.
///
/// # Errors
/// When the run ends.
pub fn devices_deleted(
    lab: &mut Lab,
    cast: &Cast,
    flows: &Flows,
    interrupt: &Interrupt,
) -> Result<Vec<Row>, Error> {
    let name = cast.near.name();
    let layout = &lab.centre.layout;
    let kinds: BTreeSet<TunnelKind> =
        layout.versions().iter().filter_map(|v4| layout.encap.tunnel(*v4)).collect();
    let mut rows = Vec::new();
    for device in kinds.into_iter().map(TunnelKind::device_name) {
        let what = format!("{device} of {name} deleted by hand");
        let Some(machine) = lab.centre.machine(&name) else {
            rows.push(Row::new(what, "repaired", "the node is gone", false));
            continue;
        };
        let look = || Ok::<_, Error>((tunnel_addresses(machine)?, BgpRoutes::read(machine)?));
        let before = look()?;
        let at = flows.mark();
        let started = Instant::now();
        let deleted = {
            let mut routes = machine.routes();
            let found = link::find(routes.netlink(), device);
            let found = found.map_err(Error::kernel(format!("a look for {device}")))?;
            let delete = |link: link::Link| link::delete(routes.netlink(), link.index);
            found.map(delete).transpose().map_err(Error::kernel(format!("the end of {device}")))?
        };
        let repaired = interrupt.poll(RECOVERY, || {
            let (addresses, routes) = look()?;
            let same = (addresses == before.0, routes == before.1);
            Ok(match same {
                (true, true) => Seen::Done(started.elapsed()),
                (addresses, _) => {
                    Seen::NotYet(format!("its address is back: {addresses}, its routes are not"))
                }
            })
        })?;
        interrupt.sleep(SETTLE)?;
        let loss = flows.since(&at);
        let after = flows.mark();
        interrupt.sleep(SETTLE)?;
        let calm = flows.since(&after);
        let (seen, ok) = match repaired {
            Ok(time) => (format!("back in {}, {loss}, then {calm}", millis(time)), calm.lost == 0),
            Err(seen) => (seen, false),
        };
        rows.push(Row::new(what, "repaired, then 0 lost", seen, ok && deleted.is_some()));
    }
    Ok(rows)
}

/// Changes the pools from no encapsulation to VXLAN and back, under the flows. What must not happen is
/// that somebody sends into a tunnel, or out of one, that the other end does not receive yet.
///
/// # Errors
/// When the run ends.
pub fn changed_live(
    lab: &mut Lab,
    flows: &Flows,
    interrupt: &Interrupt,
) -> Result<Vec<Row>, Error> {
    let mut rows = Vec::new();
    for (what, to) in [("None to VXLAN", Encap::Vxlan), ("VXLAN to None", Encap::None)] {
        let at = flows.mark();
        lab.cluster.encapsulate(&lab.centre.layout, to)?;
        let started = Instant::now();
        let moved = interrupt.poll(MOVED_WITHIN, || {
            lab.check()?;
            let (right, wrong) = count_paths(&lab.centre, &lab.cluster, to)?;
            let all = right + wrong.len();
            Ok(if wrong.is_empty() && right > 0 {
                Seen::Done(started.elapsed())
            } else {
                Seen::NotYet(counted(right, all, wrong))
            })
        })?;
        let loss = flows.since(&at);
        let before = fabric::traffic(&lab.centre)?;
        let after = flows.mark();
        interrupt.sleep(SETTLE)?;
        let calm = flows.since(&after);
        let passed = (fabric::traffic(&lab.centre)? - before).spine;
        let by_tunnel = passed.vxlan > 0 && passed.plain == 0;
        let plainly = passed.vxlan == 0 && passed.plain > 0;
        let right_way = if to == Encap::None { plainly } else { by_tunnel };
        let lost_max = flows.per_sec() / LOST_SHARE;
        let (moved, in_time) = match moved {
            Ok(time) => (format!("in {}", millis(time)), true),
            Err(seen) => (seen, false),
        };
        rows.push(Row::new(
            format!("encapsulation changed from {what}"),
            format!("at most {lost_max} lost, then 0"),
            format!(
                "{moved}, {loss}, then {calm}, {} VXLAN and {} plain packets at the spine",
                passed.vxlan, passed.plain
            ),
            in_time && right_way && loss.lost <= lost_max && calm.lost == 0,
        ));
    }
    Ok(rows)
}

const RECOVERY: Duration = Duration::from_secs(10);
const SETTLE: Duration = Duration::from_secs(1);
/// Every node must say that it is ready before the first sends.
const MOVED_WITHIN: Duration = Duration::from_secs(20);
/// A change may lose the packets of this part of a second: 5 of 1,000.
const LOST_SHARE: usize = 200;

#[cfg(test)]
mod tests {
    use super::*;
    use crate::options::{AsnPlan, Families};

    /// The rows that fail.
    fn failed(encap: Encap, families: Families, traffic: Traffic) -> Vec<String> {
        let layout = Layout::new("lab", 3, AsnPlan::Single, families).with_encap(encap);
        let rows = judge(&layout, traffic);
        assert_eq!(rows.len(), 5);
        rows.into_iter().filter(|row| !row.ok).map(|row| row.what).collect()
    }

    #[test]
    fn packets_in_the_wrong_place_are_told() {
        let vxlan = Passed { vxlan: 9, ..Passed::default() };
        let both = Passed { ipip: 9, ..vxlan };
        let plain = Passed { plain: 9, ..Passed::default() };
        let of = |spine, racks| Traffic { spine, tors: spine, racks };
        let none: [&str; 0] = [];
        assert_eq!(failed(Encap::Vxlan, Families::Dual, of(vxlan, vxlan)), none);
        assert_eq!(failed(Encap::Ipip, Families::Dual, of(both, both)), none);
        assert_eq!(failed(Encap::VxlanCrossSubnet, Families::Dual, of(vxlan, plain)), none);

        let within = "tunnel packets within racks";
        let between = "tunnel packets between racks";
        assert_eq!(failed(Encap::Ipip, Families::Dual, of(both, vxlan)), [within]);
        assert_eq!(failed(Encap::Ipip, Families::Ipv4, of(both, both)), [between, within]);
        let plain_within = "plain pod packets within racks";
        assert_eq!(failed(Encap::Vxlan, Families::Dual, of(vxlan, vxlan + plain)), [plain_within]);
        let cross = Encap::VxlanCrossSubnet;
        assert_eq!(failed(cross, Families::Dual, of(vxlan, vxlan)), [within, plain_within]);
        let everywhere = "plain pod packets at spine and routers";
        assert_eq!(failed(cross, Families::Dual, of(vxlan + plain, plain)), [everywhere]);
        // Dropped by a router, so that the spine sees nothing of it.
        let dropped = Traffic { tors: vxlan + plain, ..of(vxlan, vxlan) };
        assert_eq!(failed(Encap::Vxlan, Families::Dual, dropped), [everywhere]);
        let parts = Passed { fragments: 1, ..vxlan };
        assert_eq!(failed(Encap::Vxlan, Families::Dual, of(vxlan, parts)), ["fragments"]);
    }
}
