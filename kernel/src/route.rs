//! Routes, written to and read from the kernel by hand, in bulk.
//!
//! The kernel's routes do not say who made them except by their protocol number, and its requests
//! are easily misunderstood: a replacement takes whatever route has the same key, an append merges
//! IPv6 routes, a deletion without protocol removes a stranger's. So routes are created exclusively,
//! replaced only where a dump showed ours, and deleted with their protocol.

mod message;

use std::collections::BTreeMap;
use std::fmt;
use std::net::IpAddr;

use ipnet::IpNet;

use self::message::HEADER_BYTES;
pub(crate) use self::message::{
    Attributes, RTNH_F_ONLINK, encode_create, encode_delete, encode_replace, family_of, parse,
};
use crate::batch::Batch;
use crate::error::{Error, Refusal};
use crate::netns::NetNs;
use crate::socket::{Acknowledge, DUMP_ATTEMPTS, Netlink};

/// The table of routes that the kernel consults by default (`RT_TABLE_MAIN`).
pub const TABLE_MAIN: u32 = 254;
/// The table of the host's own and broadcast addresses (`RT_TABLE_LOCAL`).
pub const TABLE_LOCAL: u32 = 255;
/// The protocol number of routes that an administrator or a setup script makes.
pub const PROTOCOL_STATIC: u8 = libc::RTPROT_STATIC;

/// A route as the kernel holds it.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Route {
    /// The destination, host bits zero.
    pub prefix: IpNet,
    /// The routing table.
    pub table: u32,
    /// The metric; smaller is preferred.
    pub metric: u32,
    /// Who made the route (`rtm_protocol`).
    pub protocol: u8,
    /// What happens to packets.
    pub target: Target,
    /// The source address that local senders get.
    pub prefsrc: Option<IpAddr>,
}

/// What a route does with packets.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum Target {
    /// Send to one of these, by weight.
    Unicast(Vec<NextHop>),
    /// What the next-hop object of this number does, whoever made it ([`crate::nexthop`]).
    Object(u32),
    /// Drop silently.
    Blackhole,
    /// Another type of route (`rtm_type`): only read, never written, but for [`Target::THROW`].
    Other(u8),
}

/// One way out.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct NextHop {
    /// The router, `None` when the destination is on the link. May be IPv6 for an IPv4 route
    /// (RFC 8950).
    pub gateway: Option<IpAddr>,
    /// The interface index.
    pub ifindex: u32,
    /// Take the gateway as reachable on the link even where no subnet of the link covers it.
    pub onlink: bool,
    /// The share of packets among several next hops, 1 to 255. A single next hop has 1.
    pub weight: u8,
}

impl NextHop {
    /// The next hop `gateway` on the link `ifindex`, weight 1.
    pub fn via(gateway: IpAddr, ifindex: u32) -> NextHop {
        NextHop { gateway: Some(gateway), ifindex, onlink: false, weight: 1 }
    }

    /// The link `ifindex` itself, weight 1.
    pub fn link(ifindex: u32) -> NextHop {
        NextHop { gateway: None, ifindex, onlink: false, weight: 1 }
    }
}

/// What the kernel allows only one route of (type of service zero).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct RouteKey {
    /// The destination, host bits zero.
    pub prefix: IpNet,
    /// The routing table.
    pub table: u32,
    /// The metric.
    pub metric: u32,
}

impl fmt::Display for RouteKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} metric {}", self.prefix, self.metric)?;
        if self.table == TABLE_MAIN { Ok(()) } else { write!(f, " table {}", self.table) }
    }
}

impl RouteKey {
    /// The key as the kernel reports it: host bits zero, table 0 as the main one, and metric 0 of an
    /// IPv6 route as 1,024.
    #[must_use]
    pub fn normalized(self) -> RouteKey {
        let v6 = self.prefix.addr().is_ipv6();
        RouteKey {
            prefix: self.prefix.trunc(),
            table: if self.table == 0 { TABLE_MAIN } else { self.table },
            metric: if v6 && self.metric == 0 { IP6_RT_PRIO_USER } else { self.metric },
        }
    }
}

impl Route {
    /// The key of this route, normalized.
    pub fn key(&self) -> RouteKey {
        RouteKey { prefix: self.prefix, table: self.table, metric: self.metric }.normalized()
    }

    /// What the kernel is told besides its key and owner.
    pub(crate) fn attributes(&self) -> Attributes {
        Attributes::new(Family::of(self.prefix.addr()), &self.target, self.prefsrc)
    }
}

impl Target {
    /// Look on in the table of the next rule.
    pub const THROW: Target = Target::Other(libc::RTN_THROW);

    /// The target in the one form in which the kernel reports it, so that equal targets compare
    /// equal: next hops sorted, none twice, a single one with weight 1.
    #[must_use]
    pub fn normalized(self) -> Target {
        let Target::Unicast(mut hops) = self else { return self };
        hops.sort_unstable();
        hops.dedup_by(|later, first| {
            let same = (later.gateway, later.ifindex) == (first.gateway, first.ifindex);
            if same {
                first.weight = first.weight.max(1).saturating_add(later.weight.max(1));
            }
            same
        });
        match &mut hops[..] {
            [single] => single.weight = 1,
            several => several.iter_mut().for_each(|hop| hop.weight = hop.weight.max(1)),
        }
        Target::Unicast(hops)
    }
}

/// An IP version.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Family {
    /// IPv4.
    V4,
    /// IPv6.
    V6,
}

impl Family {
    /// Both versions.
    pub const ALL: [Family; 2] = [Family::V4, Family::V6];

    /// The version of an address.
    pub fn of(address: IpAddr) -> Family {
        if address.is_ipv4() { Family::V4 } else { Family::V6 }
    }
}

/// Which routes a dump returns; what is `None` does not matter.
#[derive(Clone, Copy, Debug, Default)]
pub struct DumpFilter {
    /// Only routes of this table.
    pub table: Option<u32>,
    /// Only routes with this protocol number.
    pub protocol: Option<u8>,
}

/// One write to the kernel's routes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Change {
    /// Add a route; refused when its key is taken by anybody.
    Create(Route),
    /// Replace the route of the same key, which a dump showed to be ours.
    Replace(Route),
    /// Remove the route of this key and protocol.
    Delete {
        /// The key.
        key: RouteKey,
        /// Our protocol number: the kernel keeps a route of any other.
        protocol: u8,
    },
}

impl Change {
    /// The key of the route that changes.
    pub fn key(&self) -> RouteKey {
        match self {
            Change::Create(route) | Change::Replace(route) => route.key(),
            Change::Delete { key, .. } => *key,
        }
    }
}

/// A change of a route that this process did not make.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum RouteEvent {
    /// The route is there now.
    Added {
        /// The route.
        route: Route,
        /// It took the place of the first route of its key.
        replaced: bool,
    },
    /// The route is gone.
    Removed(Route),
}

impl RouteEvent {
    /// The route that came or went.
    pub fn route(&self) -> &Route {
        match self {
            RouteEvent::Added { route, .. } | RouteEvent::Removed(route) => route,
        }
    }
}

/// What separates the kernel's routes from the wanted ones.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Plan {
    /// The writes, to be carried out in this order.
    pub changes: Vec<Change>,
    /// Wanted routes whose key is held by somebody else's route. They are left alone.
    pub clashes: Vec<RouteKey>,
}

/// Compares the wanted routes with all routes of the kernel, ours and others'. Pure.
///
/// `protocol` says which routes are ours; every wanted route must carry it. Others' routes appear in
/// the plan only as clashes. Equal inputs, in whatever order, give equal plans, and a plan that was
/// carried out leaves nothing for the next one.
pub fn plan<'a>(
    wanted: impl IntoIterator<Item = &'a Route>,
    kernel: impl IntoIterator<Item = &'a Route>,
    protocol: u8,
) -> Plan {
    let mut slots: BTreeMap<RouteKey, Slot<'a>> = BTreeMap::new();
    for route in wanted {
        slots.entry(route.key()).or_default().wanted = Some(route);
    }
    for route in kernel {
        let slot = slots.entry(route.key()).or_default();
        if route.protocol != protocol {
            slot.foreign = true;
        } else {
            slot.present = slot.present.or(Some(route));
            slot.copies += 1;
        }
    }
    let mut plan = Plan::default();
    for (key, slot) in slots {
        if slot.wanted.is_some() && slot.foreign {
            plan.clashes.push(key);
        }
        let same = slot.wanted.is_some_and(|wanted| {
            slot.present.is_some_and(|present| {
                present.prefsrc == wanted.prefsrc
                    && present.target == wanted.target.clone().normalized()
            })
        });
        let state = State { same, copies: slot.copies, foreign: slot.foreign };
        let (deletions, put) = decide(slot.wanted.is_some(), state);
        plan.changes.extend((0..deletions).map(|_| Change::Delete { key, protocol }));
        plan.changes.extend(slot.wanted.zip(put).map(|(route, put)| match put {
            Put::Create => Change::Create(route.clone()),
            Put::Replace => Change::Replace(route.clone()),
        }));
    }
    plan
}

#[derive(Default)]
struct Slot<'a> {
    wanted: Option<&'a Route>,
    present: Option<&'a Route>,
    copies: u32,
    foreign: bool,
}

/// What the kernel holds under one key.
#[derive(Clone, Copy)]
pub(crate) struct State {
    /// Our first route there is the wanted one.
    pub(crate) same: bool,
    /// How many routes of ours are there: IPv4 allows several when somebody appends them.
    pub(crate) copies: u32,
    /// Somebody else has a route there.
    pub(crate) foreign: bool,
}

/// A write of a wanted route.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Put {
    Create,
    Replace,
}

/// What leads to the wanted state of a key: so many deletions, then a write. This is the only place that
/// decides about a write.
pub(crate) fn decide(is_wanted: bool, state: State) -> (u32, Option<Put>) {
    match (is_wanted, state) {
        (false, _) => (state.copies, None),
        // The kernel would create or replace beside or instead of the other's route.
        (true, State { foreign: true, .. }) => (0, None),
        (true, State { same: true, copies: 1, .. }) => (0, None),
        (true, State { copies: 0, .. }) => (0, Some(Put::Create)),
        (true, State { copies: 1, .. }) => (0, Some(Put::Replace)),
        (true, State { copies, .. }) => (copies, Some(Put::Create)),
    }
}

/// A netlink socket for routes in bulk, bound to one network namespace.
pub struct RouteSocket {
    netlink: Netlink,
    batch: Batch,
}

impl RouteSocket {
    /// Opens a socket in the network namespace of the calling thread.
    ///
    /// # Errors
    /// Those of [`Netlink::open`].
    pub fn open() -> Result<RouteSocket, Error> {
        RouteSocket::new(Netlink::open()?)
    }

    /// Opens a socket in `netns`.
    ///
    /// # Errors
    /// Those of [`Netlink::open_in`].
    pub fn open_in(netns: &NetNs) -> Result<RouteSocket, Error> {
        RouteSocket::new(Netlink::open_in(netns)?)
    }

    fn new(mut netlink: Netlink) -> Result<RouteSocket, Error> {
        if netlink.set_receive_buffer(RECEIVE_BUFFER_BYTES)? >= RECEIVE_BUFFER_BYTES {
            netlink.set_requests_max(REQUESTS_MAX);
        }
        Ok(RouteSocket { netlink, batch: Batch::new() })
    }

    /// The socket's port, by which [`crate::monitor::Monitor`] knows this socket's own writes.
    pub fn port(&self) -> u32 {
        self.netlink.port()
    }

    /// The socket below, for requests about other objects in the same namespace.
    pub fn netlink(&mut self) -> &mut Netlink {
        &mut self.netlink
    }

    /// Reads the routes of one family, in the socket's namespace. A table that does not exist has
    /// no routes. Multicast routes, cached ones and those for a type of service are left out.
    ///
    /// # Errors
    /// Those of [`Netlink::dump`].
    pub fn dump(&mut self, family: Family, filter: DumpFilter) -> Result<Vec<Route>, Error> {
        for _ in 0..DUMP_ATTEMPTS {
            let mut routes = Vec::new();
            if self.read(family, filter, |route| routes.push(route))? {
                return Ok(routes);
            }
        }
        Err(Error::Interrupted(DUMP_ATTEMPTS))
    }

    /// As [`RouteSocket::dump`], but hands over each route as it is read, and is `false` when the table
    /// changed meanwhile, so that all of it has to be read again.
    pub(crate) fn read(
        &mut self,
        family: Family,
        filter: DumpFilter,
        mut each: impl FnMut(Route),
    ) -> Result<bool, Error> {
        let mut header = [0; HEADER_BYTES];
        header[0] = match family {
            Family::V4 => libc::AF_INET as u8,
            Family::V6 => libc::AF_INET6 as u8,
        };
        header[5] = filter.protocol.unwrap_or(0);
        self.batch.clear();
        self.batch.begin(libc::RTM_GETROUTE, 0, &header);
        if let Some(table) = filter.table {
            self.batch.attr_u32(libc::RTA_TABLE, table);
        }
        // Older kernels ignore the filter in the request; one without IPv6 dumps all families.
        let is_meant = |route: &Route| {
            Family::of(route.prefix.addr()) == family
                && filter.table.is_none_or(|table| route.table == table)
                && filter.protocol.is_none_or(|protocol| route.protocol == protocol)
        };
        let whole = self.netlink.dump_once(&mut self.batch, |kind, body| {
            if kind == libc::RTM_NEWROUTE
                && let Some(route) = parse(body)?.filter(is_meant)
            {
                each(route);
            }
            Ok(())
        });
        match whole {
            Err(error) if error.is_absent() => Ok(true),
            whole => whole,
        }
    }

    /// Carries out `changes` in order, in the socket's namespace, and returns the refused ones with
    /// their positions. A refusal stops nothing.
    ///
    /// # Errors
    /// When the kernel's answers were lost: then only a dump tells what was carried out.
    pub fn apply(&mut self, changes: &[Change]) -> Result<Vec<Refusal>, Error> {
        self.execute(|batch| {
            for change in changes {
                match change {
                    Change::Create(route) => {
                        encode_create(batch, route.key(), route.protocol, &route.attributes());
                    }
                    Change::Replace(route) => {
                        encode_replace(batch, route.key(), route.protocol, &route.attributes());
                    }
                    Change::Delete { key, protocol } => encode_delete(batch, *key, *protocol),
                }
            }
        })
    }

    /// As [`RouteSocket::apply`], for the requests that `fill` appends.
    pub(crate) fn execute(&mut self, fill: impl FnOnce(&mut Batch)) -> Result<Vec<Refusal>, Error> {
        self.batch.clear();
        fill(&mut self.batch);
        self.netlink.execute(&mut self.batch, Acknowledge::Last)
    }
}

const IP6_RT_PRIO_USER: u32 = 1024;
/// Room for the refusals of a whole `sendmsg` of [`REQUESTS_MAX`], about 1 KiB each, and for dumps.
const RECEIVE_BUFFER_BYTES: usize = 4 << 20;
const REQUESTS_MAX: usize = 1000;
