//! Where routes are written: a network namespace for each run of each writer, as what the kernel has
//! kept from an earlier one would matter.

use std::error::Error;
use std::path::Path;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::{Duration, Instant};

use cairn_kernel::link::{self, DuplicateDetection, Veth, VethEnd};
use cairn_kernel::nexthop::{Object, Way};
use cairn_kernel::route::{Family, NextHop};
use cairn_kernel::{Batch, NetNs, Netlink, ROUTE_PROTOCOL};

use super::cell::{Cell, Load, Shape, object};
use super::raw::RawNetlink;
use crate::Result;
use crate::cpu_time::cpu_time;

/// A namespace with a device, and the objects that routes name. Goes away with the value.
#[derive(Debug)]
pub struct Bed {
    /// The namespace.
    pub netns: NetNs,
    /// Its name.
    pub name: String,
    /// The routes that it is made for.
    pub load: Load,
}

/// How long something took.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Sample {
    /// CPU time of the process that did it, the kernel's work for it included.
    pub cpu: Duration,
    /// By the clock.
    pub wall: Duration,
}

/// What one run of one writer took; what it cannot do is missing.
#[derive(Clone, Copy, Debug, Default)]
pub struct Samples {
    /// All routes, into an empty table.
    pub install: Option<Sample>,
    /// A look at all of them that finds no difference.
    pub resync: Option<Sample>,
    /// Each through another gateway.
    pub replace: Option<Sample>,
    /// Every one of them.
    pub remove: Option<Sample>,
}

impl Bed {
    /// A namespace for `cell`, `links` is whether the gateways' device is up.
    pub fn new(cell: Cell) -> Result<Bed> {
        static NEXT: AtomicU32 = AtomicU32::new(0);
        let number = NEXT.fetch_add(1, Ordering::Relaxed);
        let name = format!("{PREFIX}{}-{number}", std::process::id());
        let netns = NetNs::create(&name)?;
        let made = device(&netns, &cell).and_then(|ifindex| Load::new(cell, ifindex));
        match made {
            Ok(load) => Ok(Bed { netns, name, load }),
            Err(error) => {
                NetNs::delete(&name)?;
                Err(error)
            }
        }
    }

    /// An error unless exactly `expected` routes of the cell's family have `protocol`.
    pub fn expect_routes(&self, protocol: u8, expected: usize) -> Result<()> {
        let seen = RawNetlink::open_in(&self.netns)?.count(self.load.cell.family, protocol)?;
        match seen == expected {
            true => Ok(()),
            false => Err(format!("the kernel has {seen} routes and not {expected}").into()),
        }
    }
}

impl Drop for Bed {
    fn drop(&mut self) {
        if let Err(error) = NetNs::delete(&self.name) {
            eprintln!("the namespace {} stays behind: {error}", self.name);
        }
    }
}

/// Removes the namespaces of runs that were killed.
pub fn remove_left_behind(prefix: &str) -> Result<()> {
    for name in NetNs::names(prefix)? {
        let number = name.strip_prefix(prefix).and_then(|rest| rest.split('-').next());
        let pid = number.filter(|pid| pid.parse::<u32>().is_ok());
        if pid.is_some_and(|pid| !Path::new("/proc").join(pid).exists()) {
            NetNs::delete(&name)?;
        }
    }
    Ok(())
}

/// Measures `work` of this thread.
pub fn sample<T>(work: impl FnOnce() -> Result<T>) -> Result<(Sample, T)> {
    let began = Instant::now();
    let (cpu, done) = cpu_time(work);
    let wall = began.elapsed();
    Ok((Sample { cpu, wall }, done?))
}

/// A link with the subnet of the gateways, and objects that lead to them; the link's index.
fn device(netns: &NetNs, cell: &Cell) -> Result<u32> {
    let mut netlink = Netlink::open_in(netns)?;
    let pair = Veth {
        end: VethEnd::named("up"),
        peer: VethEnd::named("peer"),
        peer_netns: None,
        mtu: None,
    };
    link::create_veth(&mut netlink, &pair)?;
    let mut index = |name| match link::find(&mut netlink, name)? {
        Some(link) => Ok::<_, Box<dyn Error>>(link.index),
        None => Err(format!("the link {name} is missing").into()),
    };
    let (end, peer) = (index("up")?, index("peer")?);
    link::set_up(&mut netlink, end)?;
    link::set_up(&mut netlink, peer)?;
    link::add_address(&mut netlink, end, cell.own_address()?, DuplicateDetection::Skip)?;
    if cell.shape == Shape::Object {
        for number in 0..cell.hops_end() {
            let way = Way::Hop(NextHop::via(cell.gateway(number), end));
            let object = Object { id: object(number), protocol: ROUTE_PROTOCOL, way };
            let mut batch = Batch::new();
            netlink.request(batch.create_object(&object), || "create an object".into())?;
        }
    }
    Ok(end)
}

/// `AF_INET` or `AF_INET6`.
pub fn family_number(family: Family) -> u8 {
    match family {
        Family::V4 => libc::AF_INET as u8,
        Family::V6 => libc::AF_INET6 as u8,
    }
}

/// What the name of a namespace begins with, before the process that made it.
pub const PREFIX: &str = "bench-fib-";
