//! Routes, written to and read from the kernel by hand, in bulk.
//!
//! The kernel's routes do not say who made them except by their protocol number, and its requests
//! are easily misunderstood: a replacement takes whatever route has the same key, an append merges
//! IPv6 routes, a deletion without protocol removes a stranger's. So routes are created exclusively,
//! replaced only where a dump showed ours, and deleted with their protocol.

use std::collections::BTreeMap;
use std::fmt;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use ipnet::IpNet;

use crate::batch::{Batch, attributes, read_ip, read_u32};
use crate::error::{Error, Refusal};
use crate::netns::NetNs;
use crate::socket::{Acknowledge, Netlink};

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
    /// Another type of route (`rtm_type`): only read, never written.
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
}

impl Target {
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
        steps(key, protocol, slot.wanted.cloned(), state, &mut plan.changes);
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

/// Appends what leads from `state` to `wanted` under one key. This is the only place that decides
/// about a write.
pub(crate) fn steps(
    key: RouteKey,
    protocol: u8,
    wanted: Option<Route>,
    state: State,
    changes: &mut Vec<Change>,
) {
    let delete = Change::Delete { key, protocol };
    match (wanted, state) {
        (None, _) => changes.extend((0..state.copies).map(|_| delete.clone())),
        // The kernel would create or replace beside or instead of the other's route.
        (Some(_), State { foreign: true, .. }) => {}
        (Some(_), State { same: true, copies: 1, .. }) => {}
        (Some(route), State { copies: 0, .. }) => changes.push(Change::Create(route)),
        (Some(route), State { copies: 1, .. }) => changes.push(Change::Replace(route)),
        (Some(route), _) => {
            changes.extend((0..state.copies).map(|_| delete.clone()));
            changes.push(Change::Create(route));
        }
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
        let routes = self.netlink.dump(&mut self.batch, |kind, body| {
            if kind != libc::RTM_NEWROUTE {
                return Ok(None);
            }
            // Older kernels ignore the filter in the request; one without IPv6 dumps all families.
            Ok(parse(body)?.filter(|route| {
                family_of(route.prefix.addr()) == header[0]
                    && filter.table.is_none_or(|table| route.table == table)
                    && filter.protocol.is_none_or(|protocol| route.protocol == protocol)
            }))
        });
        match routes {
            Err(error) if error.is_absent() => Ok(Vec::new()),
            routes => routes,
        }
    }

    /// Carries out `changes` in order, in the socket's namespace, and returns the refused ones with
    /// their positions. A refusal stops nothing.
    ///
    /// # Errors
    /// When the kernel's answers were lost: then only a dump tells what was carried out.
    pub fn apply(&mut self, changes: &[Change]) -> Result<Vec<Refusal>, Error> {
        self.batch.clear();
        for change in changes {
            match change {
                Change::Create(route) => encode_create(&mut self.batch, route),
                Change::Replace(route) => encode_replace(&mut self.batch, route),
                Change::Delete { key, protocol } => {
                    encode_delete(&mut self.batch, *key, *protocol);
                }
            }
        }
        self.netlink.execute(&mut self.batch, Acknowledge::Last)
    }
}

/// Reads the body of an RTM_NEWROUTE or RTM_DELROUTE message; `None` for a route that
/// [`RouteSocket::dump`] leaves out.
pub(crate) fn parse(body: &[u8]) -> Result<Option<Route>, Error> {
    let Some((header, rest)) = body.split_first_chunk::<HEADER_BYTES>() else {
        return Err(Error::Malformed("a short route"));
    };
    let [family, len, _, tos, table, protocol, _, route_type, hop_flags, flags @ ..] = *header;
    let cloned = u32::from_ne_bytes([hop_flags, flags[0], flags[1], flags[2]]) & RTM_F_CLONED != 0;
    let v4 = match i32::from(family) {
        libc::AF_INET => true,
        libc::AF_INET6 => false,
        _ => return Ok(None),
    };
    if cloned || tos != 0 || route_type == libc::RTN_MULTICAST {
        return Ok(None);
    }
    let any = if v4 { Ipv4Addr::UNSPECIFIED.into() } else { Ipv6Addr::UNSPECIFIED.into() };
    let (mut address, mut table, mut metric, mut prefsrc) = (any, u32::from(table), 0, None);
    let mut hop = NextHop { gateway: None, ifindex: 0, onlink: false, weight: 1 };
    let (mut multipath, mut object) = (None, None);
    for (kind, value) in attributes(rest) {
        match kind {
            libc::RTA_DST => address = read_ip(value).unwrap_or(any),
            libc::RTA_TABLE => table = read_u32(value).unwrap_or(table),
            libc::RTA_PRIORITY => metric = read_u32(value).unwrap_or(0),
            libc::RTA_PREFSRC => prefsrc = read_ip(value),
            libc::RTA_GATEWAY => hop.gateway = read_ip(value),
            libc::RTA_VIA => hop.gateway = value.get(2..).and_then(read_ip),
            libc::RTA_OIF => hop.ifindex = read_u32(value).unwrap_or(0),
            libc::RTA_MULTIPATH => multipath = Some(value),
            RTA_NH_ID => object = read_u32(value),
            _ => {}
        }
    }
    let target = match (route_type, object) {
        // With nexthop_compat_mode=1 the kernel adds the object's own next hops, which are no property of
        // the route; with 0 there is the number only.
        (libc::RTN_UNICAST | libc::RTN_BLACKHOLE, Some(id)) => Target::Object(id),
        (libc::RTN_BLACKHOLE, None) => Target::Blackhole,
        (libc::RTN_UNICAST, None) => {
            let hops = match multipath {
                Some(hops) => parse_hops(hops)?,
                None => {
                    hop.onlink = hop_flags & RTNH_F_ONLINK != 0;
                    vec![hop]
                }
            };
            Target::Unicast(hops).normalized()
        }
        (other, _) => Target::Other(other),
    };
    let prefix = IpNet::new(address, len)
        .map_err(|_| Error::Malformed("a route with an impossible prefix length"))?;
    Ok(Some(Route { prefix, table, metric, protocol, target, prefsrc }))
}

/// Reads the `struct rtnexthop` sequence of RTA_MULTIPATH.
fn parse_hops(mut bytes: &[u8]) -> Result<Vec<NextHop>, Error> {
    let mut hops = Vec::new();
    while let Some(header) = bytes.first_chunk::<8>() {
        let len = usize::from(u16::from_ne_bytes([header[0], header[1]]));
        let body = bytes.get(8..len).ok_or(Error::Malformed("a next hop with a wrong length"))?;
        let mut hop = NextHop {
            gateway: None,
            ifindex: u32::from_ne_bytes([header[4], header[5], header[6], header[7]]),
            onlink: header[2] & RTNH_F_ONLINK != 0,
            weight: header[3].saturating_add(1),
        };
        for (kind, value) in attributes(body) {
            match kind {
                libc::RTA_GATEWAY => hop.gateway = read_ip(value),
                libc::RTA_VIA => hop.gateway = value.get(2..).and_then(read_ip),
                _ => {}
            }
        }
        hops.push(hop);
        bytes = bytes.get(len.next_multiple_of(4)..).unwrap_or_default();
    }
    Ok(hops)
}

pub(crate) fn family_of(address: IpAddr) -> u8 {
    (if address.is_ipv4() { libc::AF_INET } else { libc::AF_INET6 }) as u8
}

/// Appends a request that creates `route` and is refused when its key is taken.
pub(crate) fn encode_create(batch: &mut Batch, route: &Route) {
    encode(batch, libc::RTM_NEWROUTE, libc::NLM_F_CREATE as u16 | libc::NLM_F_EXCL as u16, route);
}

/// Appends a request that replaces the route of the same key and is refused when there is none.
fn encode_replace(batch: &mut Batch, route: &Route) {
    encode(batch, libc::RTM_NEWROUTE, libc::NLM_F_REPLACE as u16, route);
}

/// Appends a request that deletes the route of `key` if its protocol is `protocol`.
pub(crate) fn encode_delete(batch: &mut Batch, key: RouteKey, protocol: u8) {
    // The type stays 0 (any); scope NOWHERE matches any scope.
    begin(batch, libc::RTM_DELROUTE, 0, key, protocol, libc::RT_SCOPE_NOWHERE, 0, 0);
}

fn encode(batch: &mut Batch, kind: u16, flags: u16, route: &Route) {
    let (route_type, hops) = match &route.target {
        Target::Unicast(hops) => (libc::RTN_UNICAST, hops.as_slice()),
        Target::Object(_) => (libc::RTN_UNICAST, &[][..]),
        Target::Blackhole => (libc::RTN_BLACKHOLE, &[][..]),
        Target::Other(route_type) => (*route_type, &[][..]),
    };
    // The kernel accepts a gateway only through a route whose scope is narrower than its own.
    let on_link = !hops.is_empty() && hops.iter().all(|hop| hop.gateway.is_none());
    let scope = if on_link { libc::RT_SCOPE_LINK } else { libc::RT_SCOPE_UNIVERSE };
    let hop_flags = match hops {
        [hop] if hop.onlink => RTNH_F_ONLINK,
        _ => 0,
    };
    begin(batch, kind, flags, route.key(), route.protocol, scope, route_type, hop_flags);
    if let Some(source) = route.prefsrc {
        batch.attr_ip(libc::RTA_PREFSRC, source);
    }
    if let Target::Object(id) = route.target {
        batch.attr_u32(RTA_NH_ID, id);
    }
    let v4 = route.prefix.addr().is_ipv4();
    match hops {
        [] => {}
        [hop] => {
            encode_gateway(batch, hop, v4);
            batch.attr_u32(libc::RTA_OIF, hop.ifindex);
        }
        hops => {
            let multipath = batch.open(libc::RTA_MULTIPATH);
            for hop in hops {
                encode_hop(batch, hop, v4);
            }
            batch.close(multipath);
        }
    }
}

#[expect(clippy::too_many_arguments, reason = "these are the fields of one fixed header")]
fn begin(
    batch: &mut Batch,
    kind: u16,
    flags: u16,
    key: RouteKey,
    protocol: u8,
    scope: u8,
    route_type: u8,
    hop_flags: u8,
) {
    let table = u8::try_from(key.table).unwrap_or(libc::RT_TABLE_COMPAT);
    let family = family_of(key.prefix.addr());
    let len = key.prefix.prefix_len();
    let header = [family, len, 0, 0, table, protocol, scope, route_type, hop_flags, 0, 0, 0];
    batch.begin(kind, flags, &header);
    batch.attr_ip(libc::RTA_DST, key.prefix.network());
    batch.attr_u32(libc::RTA_TABLE, key.table);
    batch.attr_u32(libc::RTA_PRIORITY, key.metric);
}

fn encode_gateway(batch: &mut Batch, hop: &NextHop, v4: bool) {
    match hop.gateway {
        Some(IpAddr::V6(gateway)) if v4 => {
            let mut via = [0; 18];
            via[..2].copy_from_slice(&(libc::AF_INET6 as u16).to_ne_bytes());
            via[2..].copy_from_slice(&gateway.octets());
            batch.attr(libc::RTA_VIA, &via);
        }
        Some(gateway) => {
            batch.attr_ip(libc::RTA_GATEWAY, gateway);
        }
        None => {}
    }
}

/// Appends one `struct rtnexthop` with its attributes.
fn encode_hop(batch: &mut Batch, hop: &NextHop, v4: bool) {
    let gateway_len: u16 = match hop.gateway {
        None => 0,
        Some(IpAddr::V4(_)) => 8,
        Some(IpAddr::V6(_)) if v4 => 24,
        Some(IpAddr::V6(_)) => 20,
    };
    let mut header = [0; 8];
    header[..2].copy_from_slice(&(8 + gateway_len).to_ne_bytes());
    header[2] = if hop.onlink { RTNH_F_ONLINK } else { 0 };
    // The kernel counts weights from 0.
    header[3] = hop.weight.saturating_sub(1);
    header[4..].copy_from_slice(&hop.ifindex.to_ne_bytes());
    batch.raw(&header);
    encode_gateway(batch, hop, v4);
}

const HEADER_BYTES: usize = 12;
const IP6_RT_PRIO_USER: u32 = 1024;
pub(crate) const RTNH_F_ONLINK: u8 = 4;
const RTM_F_CLONED: u32 = 0x200;
const RTA_NH_ID: u16 = 30;
/// Room for the refusals of a whole `sendmsg` of [`REQUESTS_MAX`], about 1 KiB each, and for dumps.
const RECEIVE_BUFFER_BYTES: usize = 4 << 20;
const REQUESTS_MAX: usize = 1000;
