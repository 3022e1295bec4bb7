//! What the kernels of the lab's machines hold of Cairn's.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;

use cairn_kernel::route::{Change, DumpFilter, Family, NextHop, Route, TABLE_MAIN, Target};
use cairn_kernel::{ROUTE_PROTOCOL, link, nexthop};
use ipnet::IpNet;

use crate::datacenter::Machine;
use crate::error::Error;

/// Cairn's routes in one machine's main table.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct BgpRoutes {
    /// Learned routes with their ways out.
    pub learned: BTreeMap<IpNet, BTreeSet<Way>>,
    /// Own blocks: routes that drop what no pod's route takes.
    pub own: BTreeSet<IpNet>,
}

/// A way out of a machine.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Way {
    /// The device.
    pub device: String,
    /// Whom packets are handed to there, if anybody.
    pub gateway: Option<IpAddr>,
}

impl std::fmt::Display for Way {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        if let Some(gateway) = self.gateway {
            write!(f, "via {gateway} ")?;
        }
        write!(f, "dev {}", self.device)
    }
}

impl BgpRoutes {
    /// Reads a machine's routes.
    ///
    /// # Errors
    /// [`Error::Kernel`] when the table cannot be read.
    pub fn read(machine: &Machine) -> Result<BgpRoutes, Error> {
        let mut routes = BgpRoutes::default();
        let listed = dump(machine)?;
        let links = link::list(machine.routes().netlink());
        let links = links.map_err(Error::kernel("a list of links"))?;
        let objects = nexthop::list(machine.routes().netlink());
        let objects = objects.map_err(Error::kernel("a list of next-hop objects"))?;
        let way = |hop: &NextHop| {
            let link = links.iter().find(|link| link.index == hop.ifindex);
            let device = link.map_or_else(|| format!("#{}", hop.ifindex), |link| link.name.clone());
            Way { device, gateway: hop.gateway }
        };
        for route in listed {
            match route.target {
                Target::Unicast(hops) => {
                    let ways = routes.learned.entry(route.prefix).or_default();
                    ways.extend(hops.iter().map(way));
                }
                Target::Object(id) => {
                    let ways = routes.learned.entry(route.prefix).or_default();
                    let object = objects.iter().find(|object| object.id == id);
                    // Agents and routers of the lab make no other ones.
                    if let Some(nexthop::Way::Hop(hop)) = object.map(|object| &object.way) {
                        ways.insert(way(hop));
                    }
                }
                Target::Blackhole | Target::Other(_) => {
                    routes.own.insert(route.prefix);
                }
            }
        }
        Ok(routes)
    }
}

/// Deletes every route of Cairn's on a machine, as a careless hand would; returns how many.
///
/// # Errors
/// [`Error::Kernel`] when the table cannot be read or a deletion is refused.
pub fn delete_all(machine: &Machine) -> Result<usize, Error> {
    let changes: Vec<Change> = dump(machine)?
        .iter()
        .map(|route| Change::Delete { key: route.key(), protocol: route.protocol })
        .collect();
    machine.routes().apply(&changes).map_err(Error::kernel("the deletion of routes"))?;
    Ok(changes.len())
}

fn dump(machine: &Machine) -> Result<Vec<Route>, Error> {
    let filter = DumpFilter { table: Some(TABLE_MAIN), protocol: Some(ROUTE_PROTOCOL) };
    let mut socket = machine.routes();
    let mut routes = Vec::new();
    for family in Family::ALL {
        let part = socket.dump(family, filter).map_err(Error::kernel("a list of routes"))?;
        routes.extend(part);
    }
    Ok(routes)
}
