//! Where a BGP next hop can be reached: the answer of every route but ours.
//!
//! A next hop that was resolved through a route learned from BGP could be reached through itself
//! (RFC 4271 section 9.1.2.1 demands that this be excluded). So a [`Resolver`] knows only routes that
//! somebody else made: the kernel for its subnets, an administrator, DHCP, router advertisements.

use std::collections::{BTreeSet, HashMap, HashSet};
use std::net::IpAddr;

use ipnet::IpNet;

use crate::POD_ROUTE_PROTOCOL;
use crate::link::Address;
use crate::nexthop::{Object, Way};
use crate::route::{NextHop, Route, TABLE_MAIN, Target};

/// A snapshot of a host's addresses and of the routes in its main table that are not ours. Pure.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Resolver {
    local: HashSet<IpAddr>,
    /// The best way to each destination; `None` where packets do not leave by an interface.
    routes: HashMap<IpNet, (u32, Option<NextHop>)>,
    /// The prefix lengths that occur, per family, so that a lookup tries no others.
    lens_v4: BTreeSet<u8>,
    lens_v6: BTreeSet<u8>,
}

impl Resolver {
    /// Builds a resolver from dumps of one namespace. `routes` may hold everything: routes with the
    /// protocol numbers `own`, those to pods and those of other tables are left out here. `objects` are what others'
    /// routes may go through.
    pub fn new<'a>(
        addresses: impl IntoIterator<Item = &'a Address>,
        routes: impl IntoIterator<Item = &'a Route>,
        objects: impl IntoIterator<Item = &'a Object>,
        own: &BTreeSet<u8>,
    ) -> Resolver {
        let objects: HashMap<u32, &Way> =
            objects.into_iter().map(|object| (object.id, &object.way)).collect();
        let mut resolver = Resolver {
            local: addresses.into_iter().map(|address| address.address.addr()).collect(),
            ..Resolver::default()
        };
        for route in routes {
            let ours = route.protocol == POD_ROUTE_PROTOCOL || own.contains(&route.protocol);
            if !ours && route.table == TABLE_MAIN {
                resolver.add(route, &objects);
            }
        }
        resolver
    }

    fn add(&mut self, route: &Route, objects: &HashMap<u32, &Way>) {
        let hop = match &route.target {
            Target::Unicast(hops) => hops.first().copied(),
            Target::Object(id) => hop_of(*id, objects),
            Target::Blackhole | Target::Other(_) => None,
        };
        let prefix = route.prefix.trunc();
        let lens = if prefix.addr().is_ipv4() { &mut self.lens_v4 } else { &mut self.lens_v6 };
        lens.insert(prefix.prefix_len());
        self.routes
            .entry(prefix)
            .and_modify(|best| {
                if route.metric < best.0 {
                    *best = (route.metric, hop);
                }
            })
            .or_insert((route.metric, hop));
    }

    /// How to reach `ip`: `ip` itself as gateway on the link of its subnet, or the gateway of the
    /// longest matching route, the default route included. `None` when no route leads there, when it
    /// is the host's own address, or when it is link-local and so has no meaning without a link.
    pub fn resolve(&self, ip: IpAddr) -> Option<NextHop> {
        if self.local(ip) || is_link_local(ip) || ip.is_unspecified() || ip.is_multicast() {
            return None;
        }
        let hop = self.longest_match(ip)?;
        Some(NextHop { gateway: hop.gateway.or(Some(ip)), weight: 1, ..hop })
    }

    /// The link on whose subnet `ip` is, if a router is not needed to reach it.
    pub fn connected(&self, ip: IpAddr) -> Option<u32> {
        let hop = self.longest_match(ip)?;
        hop.gateway.is_none().then_some(hop.ifindex)
    }

    /// Whether `ip` is an address of this host.
    pub fn local(&self, ip: IpAddr) -> bool {
        self.local.contains(&ip)
    }

    /// The destinations of routes that lie inside one of `blocks` and are more specific than it.
    /// `blocks` do not overlap. Looks at every route.
    pub fn inside(&self, blocks: &BTreeSet<IpNet>) -> BTreeSet<IpNet> {
        let is_inside = |prefix: &&IpNet| {
            let block = blocks.range(..=**prefix).next_back();
            block.is_some_and(|block| block != *prefix && block.contains(*prefix))
        };
        self.routes.keys().filter(is_inside).copied().collect()
    }

    fn longest_match(&self, ip: IpAddr) -> Option<NextHop> {
        let lens = if ip.is_ipv4() { &self.lens_v4 } else { &self.lens_v6 };
        lens.iter()
            .rev()
            .find_map(|len| {
                let prefix = IpNet::new(ip, *len).ok()?.trunc();
                self.routes.get(&prefix)
            })?
            .1
    }
}

/// The next hop of an object, as one of its members for a group, whose members are no groups.
fn hop_of(id: u32, objects: &HashMap<u32, &Way>) -> Option<NextHop> {
    let single = |id: &u32| match objects.get(id) {
        Some(Way::Hop(hop)) => Some(*hop),
        _ => None,
    };
    match objects.get(&id)? {
        Way::Group(members) => members.iter().find_map(|(id, _)| single(id)),
        _ => single(&id),
    }
}

fn is_link_local(ip: IpAddr) -> bool {
    match ip {
        IpAddr::V4(v4) => v4.is_link_local(),
        IpAddr::V6(v6) => v6.is_unicast_link_local(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ROUTE_PROTOCOL;

    fn route(prefix: &str, via: Option<&str>, ifindex: u32, metric: u32, protocol: u8) -> Route {
        let gateway = via.map(|via| via.parse().unwrap());
        Route {
            prefix: prefix.parse().unwrap(),
            table: TABLE_MAIN,
            metric,
            protocol,
            target: Target::Unicast(vec![NextHop { gateway, ..NextHop::link(ifindex) }]),
            prefsrc: None,
        }
    }

    fn resolver(routes: &[Route]) -> Resolver {
        let address = Address {
            ifindex: 2,
            address: "192.0.2.1/24".parse().unwrap(),
            peer: None,
            scope: 0,
            flags: 0,
        };
        Resolver::new([&address], routes, &objects(), &[ROUTE_PROTOCOL, 150].into())
    }

    fn objects() -> Vec<Object> {
        let object = |id, way| Object { id, protocol: 4, way };
        vec![
            object(7, Way::Hop(NextHop::via(ip("192.0.2.9"), 2))),
            object(8, Way::Group(vec![(6, 1), (7, 3)])),
            object(9, Way::Blackhole),
        ]
    }

    fn ip(text: &str) -> IpAddr {
        text.parse().unwrap()
    }

    #[test]
    fn a_neighbour_on_the_subnet_is_its_own_gateway() {
        let resolver = resolver(&[route("192.0.2.0/24", None, 2, 0, 2)]);
        assert_eq!(resolver.resolve(ip("192.0.2.9")), Some(NextHop::via(ip("192.0.2.9"), 2)));
        assert_eq!(resolver.connected(ip("192.0.2.9")), Some(2));
        assert_eq!(resolver.resolve(ip("192.0.2.1")), None, "the host itself");
        assert!(resolver.local(ip("192.0.2.1")));
        assert_eq!(resolver.resolve(ip("198.51.100.1")), None, "no route");
    }

    #[test]
    fn the_longest_match_then_the_smallest_metric_counts() {
        let resolver = resolver(&[
            route("0.0.0.0/0", Some("192.0.2.254"), 2, 100, 16),
            route("0.0.0.0/0", Some("192.0.2.253"), 2, 50, 16),
            route("198.51.100.0/24", Some("192.0.2.252"), 3, 500, 4),
            route("2001:db8::/32", Some("fe80::1"), 4, 1024, 9),
        ]);
        let gateway = |text| resolver.resolve(ip(text)).and_then(|hop| hop.gateway);
        assert_eq!(gateway("203.0.113.1"), Some(ip("192.0.2.253")));
        assert_eq!(gateway("198.51.100.1"), Some(ip("192.0.2.252")));
        assert_eq!(gateway("2001:db8::1"), Some(ip("fe80::1")));
        assert_eq!(gateway("2001:db9::1"), None, "the IPv4 default route says nothing of IPv6");
        assert_eq!(gateway("fe80::1"), None);
        assert_eq!(resolver.connected(ip("203.0.113.1")), None);
    }

    #[test]
    fn our_own_routes_and_other_tables_lead_nowhere() {
        let mut elsewhere = route("10.0.0.0/8", Some("192.0.2.254"), 2, 1, 4);
        elsewhere.table = 100;
        let resolver = resolver(&[
            route("10.0.0.0/8", Some("192.0.2.254"), 2, 198, ROUTE_PROTOCOL),
            route("10.0.0.0/16", Some("192.0.2.254"), 2, 198, 150),
            route("10.0.0.1/32", None, 9, 0, POD_ROUTE_PROTOCOL),
            elsewhere,
        ]);
        assert_eq!(resolver.resolve(ip("10.0.0.1")), None);
    }

    #[test]
    fn routes_to_parts_of_blocks_are_found() {
        let resolver = resolver(&[
            route("0.0.0.0/0", Some("192.0.2.254"), 2, 0, 3),
            route("10.244.0.0/16", None, 3, 0, 2),
            route("10.244.0.0/26", None, 3, 0, 2),
            route("10.244.0.0/27", None, 3, 0, 2),
            route("10.244.0.63/32", None, 3, 0, 2),
            route("10.244.0.64/32", None, 3, 0, 2),
            route("10.244.0.9/32", None, 9, 0, POD_ROUTE_PROTOCOL),
            route("fd00::/64", None, 3, 0, 2),
        ]);
        let nets = |texts: &[&str]| texts.iter().map(|text| text.parse().unwrap()).collect();
        let blocks: BTreeSet<IpNet> = nets(&["10.244.0.0/26", "10.244.1.0/26", "fd00::/60"]);
        let parts: BTreeSet<IpNet> = nets(&["10.244.0.0/27", "10.244.0.63/32", "fd00::/64"]);
        assert_eq!(resolver.inside(&blocks), parts);
        assert_eq!(resolver.inside(&BTreeSet::new()), BTreeSet::new());
    }

    #[test]
    fn routes_through_objects_lead_where_the_objects_do() {
        let through =
            |prefix, id| Route { target: Target::Object(id), ..route(prefix, None, 0, 0, 4) };
        let resolver = resolver(&[
            route("0.0.0.0/0", Some("192.0.2.254"), 2, 0, 3),
            through("10.7.0.0/16", 7),
            through("10.8.0.0/16", 8),
            through("10.9.0.0/16", 9),
            through("10.10.0.0/16", 10),
        ]);
        let via = Some(NextHop::via(ip("192.0.2.9"), 2));
        assert_eq!(resolver.resolve(ip("10.7.0.1")), via);
        assert_eq!(resolver.resolve(ip("10.8.0.1")), via, "the member that exists");
        assert_eq!(resolver.resolve(ip("10.9.0.1")), None, "a blackhole");
        assert_eq!(resolver.resolve(ip("10.10.0.1")), None, "an object that is not known");
    }

    #[test]
    fn a_blackhole_hides_the_default_route() {
        let mut blackhole = route("10.0.0.0/8", None, 0, 5, 4);
        blackhole.target = Target::Blackhole;
        let resolver = resolver(&[route("0.0.0.0/0", Some("192.0.2.254"), 2, 0, 3), blackhole]);
        assert_eq!(resolver.resolve(ip("10.1.2.3")), None);
        assert!(resolver.resolve(ip("11.1.2.3")).is_some());
    }
}
