//! What is installed: the same routes for every writer.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use cairn_kernel::route::{Family, NextHop, Route, TABLE_MAIN, Target};
use cairn_kernel::{ROUTE_METRIC, ROUTE_PROTOCOL};
use ipnet::IpNet;

use crate::Result;

/// How routes name their ways out.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Shape {
    /// One gateway.
    Plain,
    /// A next-hop object.
    Object,
    /// Two gateways.
    Ecmp,
}

/// So many routes of one shape over so many gateways on one device.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Cell {
    /// IPv4 or IPv6.
    pub family: Family,
    /// How routes name their ways out.
    pub shape: Shape,
    /// The number of routes.
    pub routes: u32,
    /// The number of gateways in use at a time.
    pub hops: u32,
}

/// The routes of a cell, in the order of their prefixes, in which everybody writes them: what the
/// kernel needs depends on the order.
#[derive(Debug)]
pub struct Load {
    /// What it is the load of.
    pub cell: Cell,
    /// The index of the device.
    pub ifindex: u32,
    /// The destinations, sorted.
    pub prefixes: Vec<IpNet>,
}

/// What routes lead to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Moment {
    /// As they are installed.
    Before,
    /// As they are after each was replaced.
    After,
}

impl Cell {
    /// As the table shows it.
    pub fn name(&self) -> String {
        let family = match self.family {
            Family::V4 => "IPv4",
            Family::V6 => "IPv6",
        };
        let shape = match self.shape {
            Shape::Plain => "plain",
            Shape::Object => "object",
            Shape::Ecmp => "ecmp",
        };
        format!("{}-{family}-{shape}-{}", crate::feed::thousands(self.routes), self.hops)
    }

    /// How many gateways, or objects, there are in all.
    pub fn hops_end(&self) -> u32 {
        self.hops + 2
    }

    /// The gateway of this number.
    pub fn gateway(&self, number: u32) -> IpAddr {
        match self.family {
            Family::V4 => Ipv4Addr::from_bits(0xc612_0100 + number).into(),
            Family::V6 => {
                Ipv6Addr::from_bits((0xfd00_0198 << 96) + 0x1_0000 + u128::from(number)).into()
            }
        }
    }

    /// This machine's address on the subnet of the gateways.
    pub fn own_address(&self) -> Result<IpNet> {
        Ok(match self.family {
            Family::V4 => "198.18.0.1/15",
            Family::V6 => "fd00:198::1/64",
        }
        .parse()?)
    }
}

impl Load {
    /// The routes of `cell` over the device `ifindex`.
    pub fn new(cell: Cell, ifindex: u32) -> Result<Load> {
        let prefixes: std::result::Result<Vec<IpNet>, _> = (0..cell.routes)
            .map(|number| match cell.family {
                Family::V4 => {
                    IpNet::new(Ipv4Addr::from_bits((10 << 24) + (number << 6)).into(), 26)
                }
                Family::V6 => {
                    let bits = (0xfd00_0010 << 96) + (u128::from(number) << 6);
                    IpNet::new(Ipv6Addr::from_bits(bits).into(), 122)
                }
            })
            .collect();
        Ok(Load { cell, ifindex, prefixes: prefixes? })
    }

    /// The first gateway, or the object, of the route of this index.
    pub fn hop(&self, index: usize, moment: Moment) -> u32 {
        let first = u32::try_from(index).unwrap_or(0) % self.cell.hops;
        match moment {
            Moment::Before => first,
            Moment::After => first + 1,
        }
    }

    /// The gateways of the route of this index.
    pub fn gateways(&self, index: usize, moment: Moment) -> Vec<IpAddr> {
        let first = self.hop(index, moment);
        let several = u32::from(self.cell.shape == Shape::Ecmp);
        (first..=first + several).map(|number| self.cell.gateway(number)).collect()
    }

    /// The routes as our reconciler takes them.
    pub fn routes(&self, moment: Moment) -> Vec<Route> {
        let target = |index| match self.cell.shape {
            Shape::Object => Target::Object(object(self.hop(index, moment))),
            Shape::Plain | Shape::Ecmp => {
                let hops = self.gateways(index, moment).into_iter();
                Target::Unicast(hops.map(|gateway| NextHop::via(gateway, self.ifindex)).collect())
            }
        };
        let route = |(index, prefix): (usize, &IpNet)| Route {
            prefix: *prefix,
            table: TABLE_MAIN,
            metric: ROUTE_METRIC,
            protocol: ROUTE_PROTOCOL,
            target: target(index),
            prefsrc: None,
        };
        self.prefixes.iter().enumerate().map(route).collect()
    }
}

/// The number of the object that leads to the gateway of this number.
pub fn object(gateway: u32) -> u32 {
    gateway + 1
}
