//! The route reconciler against a bare netlink loop, in a network namespace of its own.

use std::error::Error;
use std::net::IpAddr;
use std::path::Path;
use std::time::Instant;

use cairn_bgp::prefix::Family;
use cairn_kernel::link::{self, DuplicateDetection, Veth, VethEnd};
use cairn_kernel::reconcile::{Pass, RouteReconciler};
use cairn_kernel::route::{NextHop, Route, RouteKey, RouteSocket, TABLE_MAIN, Target};
use cairn_kernel::{NetNs, Netlink, ROUTE_METRIC, ROUTE_PROTOCOL};
use ipnet::IpNet;

use crate::cpu_time::{cpu_time, nanos_each};
use crate::raw_netlink::{RawNetlink, Requests};
use crate::table::Row;
use crate::wire::short;
use crate::{Extent, Result, feed};

/// A namespace that goes away with this value.
struct BenchNetNs {
    name: String,
    netns: NetNs,
}

/// The routes of one family.
struct Case {
    routes: Vec<Route>,
    create: Requests,
    delete: Requests,
    install_row: Row,
    resync_row: Row,
    delete_row: Row,
}

/// Nanoseconds a route.
struct Times {
    install: f64,
    resync: f64,
    delete: f64,
}

/// Measures all rows of this group.
pub fn measure(extent: Extent) -> Result<Vec<Row>> {
    let routes = extent.pick(100_000, 2000);
    remove_left_behind()?;
    let netns = BenchNetNs::create()?;
    let ifindex = uplink(&netns.netns)?;
    let mut socket = RouteSocket::open_in(&netns.netns)?;
    let mut raw = RawNetlink::open_in(&netns.netns)?;
    let families = [Family::Ipv4Unicast, Family::Ipv6Unicast];
    let mut cases = families.map(|family| Case::new(family, routes, ifindex));
    for run in 0..extent.pick(7, 1) {
        for case in &mut cases {
            case.run(&mut socket, &mut raw, run % 2 == 0)?;
        }
    }
    Ok(cases
        .into_iter()
        .flat_map(|case| [case.install_row, case.resync_row, case.delete_row])
        .collect())
}

impl Case {
    fn new(family: Family, count: u32, ifindex: u32) -> Case {
        let sets = feed::table(family, count, 1000, &[]);
        // The reconciler sorts what it finds at its start. The kernel's cost depends on the order, so
        // that both sides must write in the same one.
        let mut prefixes: Vec<IpNet> =
            sets.into_iter().flat_map(|set| set.prefixes).map(IpNet::from).collect();
        prefixes.sort_unstable();
        let routes: Vec<(IpNet, IpAddr)> = prefixes
            .into_iter()
            .zip((0..GATEWAYS).cycle())
            .map(|(prefix, number)| (prefix, gateway(family, number)))
            .collect();
        let row = |action, reference| {
            let name = format!("{action} {} {}", feed::thousands(count), short(family));
            Row::new("kernel", name, "ns/route", reference)
        };
        Case {
            create: Requests::create(routes.iter().copied(), ifindex),
            delete: Requests::delete(routes.iter().map(|(prefix, _)| *prefix)),
            routes: routes
                .into_iter()
                .map(|(prefix, gateway)| Route {
                    prefix,
                    table: TABLE_MAIN,
                    metric: ROUTE_METRIC,
                    protocol: ROUTE_PROTOCOL,
                    target: Target::Unicast(vec![NextHop::via(gateway, ifindex)]),
                    prefsrc: None,
                })
                .collect(),
            install_row: row("install", "bare netlink"),
            resync_row: row("resync", "bare dump"),
            delete_row: row("delete", "bare netlink"),
        }
    }

    fn run(
        &mut self,
        socket: &mut RouteSocket,
        raw: &mut RawNetlink,
        raw_first: bool,
    ) -> Result<()> {
        let before = if raw_first { Some(self.bare(raw)?) } else { None };
        let ours = self.ours(socket)?;
        let bare = match before {
            Some(bare) => bare,
            None => self.bare(raw)?,
        };
        self.install_row.push(ours.install, bare.install);
        self.resync_row.push(ours.resync, bare.resync);
        self.delete_row.push(ours.delete, bare.delete);
        Ok(())
    }

    fn ours(&self, socket: &mut RouteSocket) -> Result<Times> {
        let count = self.routes.len();
        let now = Instant::now();
        // The copy that `set` takes is the caller's cost.
        let wanted: Vec<(RouteKey, Route)> =
            self.routes.iter().map(|route| (route.key(), route.clone())).collect();
        let keys: Vec<RouteKey> = wanted.iter().map(|(key, _)| *key).collect();
        let mut reconciler = RouteReconciler::new(ROUTE_PROTOCOL);
        let (install, pass) = cpu_time(|| {
            wanted.into_iter().for_each(|(key, route)| reconciler.set(key, Some(route)));
            reconciler.apply(socket, now)
        });
        expect(pass?, Pass { resyncs: 1, created: count, ..Pass::default() })?;

        reconciler.request_resync();
        let (resync, pass) = cpu_time(|| reconciler.apply(socket, now));
        expect(pass?, Pass { resyncs: 1, ..Pass::default() })?;

        let (delete, pass) = cpu_time(|| {
            keys.iter().for_each(|key| reconciler.set(*key, None));
            reconciler.apply(socket, now)
        });
        expect(pass?, Pass { deleted: count, ..Pass::default() })?;
        Ok(Times {
            install: nanos_each(install, count),
            resync: nanos_each(resync, count),
            delete: nanos_each(delete, count),
        })
    }

    fn bare(&self, raw: &mut RawNetlink) -> Result<Times> {
        let count = self.routes.len();
        let (install, done) = cpu_time(|| raw.execute(&self.create));
        done?;
        // Both families, as the reconciler reads them.
        let (resync, seen) = cpu_time(|| -> Result<usize> {
            Ok(raw.dump(libc::AF_INET)? + raw.dump(libc::AF_INET6)?)
        });
        let seen = seen?;
        if seen < count {
            return Err(format!("the kernel shows {seen} of {count} routes").into());
        }
        let (delete, done) = cpu_time(|| raw.execute(&self.delete));
        done?;
        Ok(Times {
            install: nanos_each(install, count),
            resync: nanos_each(resync, count),
            delete: nanos_each(delete, count),
        })
    }
}

impl BenchNetNs {
    fn create() -> Result<BenchNetNs> {
        let name = format!("{PREFIX}{}", std::process::id());
        let netns = NetNs::create(&name)?;
        Ok(BenchNetNs { name, netns })
    }
}

impl Drop for BenchNetNs {
    fn drop(&mut self) {
        if let Err(error) = NetNs::delete(&self.name) {
            eprintln!("the namespace {} stays behind: {error}", self.name);
        }
    }
}

/// Removes the namespaces of runs that were killed.
fn remove_left_behind() -> Result<()> {
    for name in NetNs::names(PREFIX)? {
        let pid = name.strip_prefix(PREFIX).filter(|pid| pid.parse::<u32>().is_ok());
        if pid.is_some_and(|pid| !Path::new("/proc").join(pid).exists()) {
            NetNs::delete(&name)?;
        }
    }
    Ok(())
}

/// A link with the gateways' subnets; its index.
fn uplink(netns: &NetNs) -> Result<u32> {
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
    for address in ["192.0.2.1/24", "2001:db8::1/64"] {
        link::add_address(&mut netlink, end, address.parse()?, DuplicateDetection::Skip)?;
    }
    Ok(end)
}

fn gateway(family: Family, number: u8) -> IpAddr {
    match family {
        Family::Ipv4Unicast => IpAddr::from([192, 0, 2, 10 + number]),
        Family::Ipv6Unicast => IpAddr::from([0x2001, 0xdb8, 0, 0, 0, 0, 0, 16 + u16::from(number)]),
    }
}

fn expect(seen: Pass, expected: Pass) -> Result<()> {
    match seen == expected {
        true => Ok(()),
        false => Err(format!("the reconciler did {seen:?}, not {expected:?}").into()),
    }
}

const PREFIX: &str = "bench-";
const GATEWAYS: u8 = 7;
