//! Routes in bulk on the running kernel: written, dumped, compared.

mod support;

use std::net::IpAddr;
use std::time::Instant;

use cairn_kernel::link::{self, Link};
use cairn_kernel::nexthop::{self, Object, Way};
use cairn_kernel::reconcile::{Pass, RouteReconciler};
use cairn_kernel::resolve::Resolver;
use cairn_kernel::route::{
    self, Change, DumpFilter, Family, NextHop, Route, RouteSocket, TABLE_MAIN, Target,
};
use cairn_kernel::{BLACKHOLE_METRIC, Batch, Errno, ROUTE_METRIC, ROUTE_PROTOCOL};
use support::{TestNetNs, veth_up};

const OURS: DumpFilter = DumpFilter { table: Some(TABLE_MAIN), protocol: Some(ROUTE_PROTOCOL) };

fn ip(text: &str) -> IpAddr {
    text.parse().unwrap()
}

fn ours(prefix: &str, hops: Vec<NextHop>) -> Route {
    Route {
        prefix: prefix.parse().unwrap(),
        table: TABLE_MAIN,
        metric: ROUTE_METRIC,
        protocol: ROUTE_PROTOCOL,
        target: Target::Unicast(hops),
        prefsrc: None,
    }
}

fn uplink(netns: &TestNetNs) -> Link {
    veth_up(&mut netns.netlink(), "up", &["192.0.2.1/24", "2001:db8::1/64"])
}

fn dump(socket: &mut RouteSocket, filter: DumpFilter) -> Vec<Route> {
    Family::ALL.into_iter().flat_map(|family| socket.dump(family, filter).unwrap()).collect()
}

/// `count` prefixes behind a few gateways, the longer half IPv6.
fn many(count: u32, ifindex: u32) -> Vec<Route> {
    (0..count)
        .map(|number| {
            let host = 10 + number % 7;
            if number % 2 == 0 {
                let [_, a, b, c] = (number / 2).to_be_bytes();
                let hop = NextHop::via(ip(&format!("192.0.2.{host}")), ifindex);
                ours(&format!("{}.{b}.{c}.0/24", 10 + a), vec![hop])
            } else {
                let hop = NextHop::via(ip(&format!("2001:db8::{host}")), ifindex);
                ours(&format!("fd00:{:x}:{:x}::/64", number >> 16, number & 0xffff), vec![hop])
            }
        })
        .collect()
}

#[test]
fn every_kind_of_route_comes_back_as_it_was_written() {
    let netns = TestNetNs::create();
    let up = uplink(&netns).index;
    let mut socket = RouteSocket::open_in(&netns).unwrap();
    let v4 = |host: u8| NextHop::via(IpAddr::from([192, 0, 2, host]), up);
    let v6 = |host: u16| NextHop::via(ip(&format!("2001:db8::{host:x}")), up);
    let link_local = NextHop::via(ip("fe80::9"), up);
    let mut routes = vec![
        ours("10.0.1.0/24", vec![v4(2)]),
        ours("10.0.2.0/24", vec![NextHop { weight: 3, ..v4(2) }, v4(3)]),
        ours("10.0.3.0/24", vec![link_local]),
        ours("10.0.4.0/24", vec![link_local, v4(9)]),
        ours("10.0.5.0/32", vec![NextHop::link(up)]),
        ours("10.0.6.0/24", vec![NextHop { onlink: true, ..NextHop::via(ip("169.254.1.1"), up) }]),
        ours("fd00:1::/64", vec![v6(2)]),
        ours("fd00:2::/64", vec![v6(3), NextHop { weight: 9, ..v6(2) }, v6(4)]),
        ours("fd00:3::/64", vec![link_local]),
        ours("fd00:4::/64", vec![NextHop::link(up)]),
        ours("0.0.0.0/0", vec![v4(2)]),
        ours("::/0", vec![v6(2)]),
        Route { table: 4711, ..ours("10.0.7.0/24", vec![v4(2)]) },
        Route { prefsrc: Some(ip("192.0.2.1")), ..ours("10.0.8.0/24", vec![v4(2)]) },
        Route { prefsrc: Some(ip("2001:db8::1")), ..ours("fd00:8::/64", vec![v6(2)]) },
    ];
    for prefix in ["10.0.9.0/26", "fd00:9::/122"] {
        let metric = BLACKHOLE_METRIC;
        routes.push(Route { metric, target: Target::Blackhole, ..ours(prefix, vec![]) });
    }
    let changes: Vec<Change> = routes.iter().cloned().map(Change::Create).collect();
    assert_eq!(socket.apply(&changes).unwrap(), []);
    let filter = DumpFilter { table: None, protocol: Some(ROUTE_PROTOCOL) };
    let present = dump(&mut socket, filter);
    assert_eq!(present.len(), routes.len());
    let plan = route::plan(&routes, &present, ROUTE_PROTOCOL);
    assert_eq!(plan, route::Plan::default());
    for route in &routes {
        let wanted = Route { target: route.target.clone().normalized(), ..route.clone() };
        assert!(present.contains(&wanted), "{wanted:?} is not among {present:#?}");
    }

    let table = DumpFilter { table: Some(4711), protocol: None };
    assert_eq!(dump(&mut socket, table).len(), 1);
    let absent = DumpFilter { table: Some(4712), protocol: None };
    assert_eq!(dump(&mut socket, absent), []);

    let nothing: [Route; 0] = [];
    let plan = route::plan(&nothing, &present, ROUTE_PROTOCOL);
    assert_eq!(socket.apply(&plan.changes).unwrap(), []);
    assert_eq!(dump(&mut socket, filter), []);
}

#[test]
fn routes_through_objects_are_known_by_their_number_alone() {
    for compat in [1, 0] {
        let netns = TestNetNs::create();
        let up = uplink(&netns).index;
        let path = "ipv4/nexthop_compat_mode";
        netns.run(|| cairn_kernel::sysctl::write(path, compat)).unwrap().unwrap();
        let mut socket = RouteSocket::open_in(&netns).unwrap();
        let object = |id, gateway: &str| Object {
            id,
            protocol: ROUTE_PROTOCOL,
            way: Way::Hop(NextHop { onlink: true, ..NextHop::via(ip(gateway), up) }),
        };
        let objects = vec![
            object(7, "198.51.100.7"),
            object(8, "fe80::8"),
            Object { id: 9, protocol: ROUTE_PROTOCOL, way: Way::Group(vec![(7, 1), (8, 200)]) },
            Object { id: 10, protocol: ROUTE_PROTOCOL, way: Way::Blackhole },
        ];
        let mut batch = Batch::new();
        for object in &objects {
            batch.create_object(object);
        }
        socket.netlink().request(&mut batch, || "create objects".into()).unwrap();
        let created = nexthop::list(socket.netlink()).unwrap();
        assert_eq!(created, objects);

        let through = |prefix, id| Route { target: Target::Object(id), ..ours(prefix, vec![]) };
        let mut routes = vec![
            through("10.1.0.0/24", 7),
            // An IPv6 gateway serves both families.
            through("10.2.0.0/24", 8),
            through("fd00:2::/64", 8),
            through("10.3.0.0/24", 9),
            through("10.4.0.0/24", 10),
        ];
        let mut reconciler = RouteReconciler::new(ROUTE_PROTOCOL);
        reconciler.allow_sweep();
        for route in &routes {
            reconciler.set(route.key(), Some(route.clone()));
        }
        let now = Instant::now();
        let pass = reconciler.apply(&mut socket, now).unwrap();
        assert_eq!((pass.created, pass.refused), (5, 0), "compat {compat}");
        let mut present = dump(&mut socket, OURS);
        present.sort_by_key(Route::key);
        routes.sort_by_key(Route::key);
        assert_eq!(present, routes, "compat {compat}");
        reconciler.request_resync();
        let pass = reconciler.apply(&mut socket, now).unwrap();
        assert_eq!(pass, Pass { resyncs: 1, ..Pass::default() }, "compat {compat}");
        assert_eq!(reconciler.counts().installed, 5);

        // What the object does is no matter of the routes.
        batch.clear();
        batch.replace_object(&object(7, "198.51.100.70"));
        socket.netlink().request(&mut batch, || "replace an object".into()).unwrap();
        assert_eq!(dump(&mut socket, OURS).len(), 5);
        reconciler.request_resync();
        let pass = reconciler.apply(&mut socket, now).unwrap();
        assert_eq!(pass, Pass { resyncs: 1, ..Pass::default() }, "compat {compat}");

        // To another object, to a plain next hop, and back.
        let route = through("10.1.0.0/24", 8);
        let plain = ours("10.1.0.0/24", vec![NextHop::via(ip("192.0.2.9"), up)]);
        for wanted in [&route, &plain, &route] {
            reconciler.set(wanted.key(), Some(wanted.clone()));
            let pass = reconciler.apply(&mut socket, now).unwrap();
            assert_eq!((pass.replaced, pass.refused), (1, 0), "compat {compat}");
            assert!(dump(&mut socket, OURS).contains(wanted), "compat {compat}: {wanted:?}");
        }

        // An object takes its routes along.
        batch.clear();
        batch.delete_object(8);
        socket.netlink().request(&mut batch, || "delete an object".into()).unwrap();
        assert_eq!(dump(&mut socket, OURS).len(), 2, "compat {compat}");
        reconciler.request_resync();
        assert_eq!(reconciler.apply(&mut socket, now).unwrap().refused, 3, "compat {compat}");
        batch.clear();
        batch.create_object(&object(8, "fe80::8"));
        socket.netlink().request(&mut batch, || "create an object".into()).unwrap();
        reconciler.retry_failures();
        assert_eq!(reconciler.apply(&mut socket, now).unwrap().created, 3, "compat {compat}");

        // Routes of others through objects lead where the objects do.
        support::ip(&netns, "route add 203.0.113.0/24 nhid 7 proto static");
        let routes = dump(&mut socket, DumpFilter::default());
        let objects = nexthop::list(socket.netlink()).unwrap();
        let resolver = Resolver::new([], &routes, &objects, &[ROUTE_PROTOCOL].into());
        let hop = resolver.resolve(ip("203.0.113.9")).unwrap();
        assert_eq!((hop.gateway, hop.ifindex), (Some(ip("198.51.100.70")), up));
    }
}

#[test]
fn a_refusal_names_its_route_and_stops_nothing() {
    let netns = TestNetNs::create();
    let up = uplink(&netns).index;
    let mut socket = RouteSocket::open_in(&netns).unwrap();
    let mut changes: Vec<Change> = many(5000, up).into_iter().map(Change::Create).collect();
    let broken = [0, 17, 999, 1000, 1001, 4999];
    for (index, change) in changes.iter_mut().enumerate() {
        if let Change::Create(route) = change
            && broken.contains(&index)
        {
            route.target = Target::Unicast(vec![NextHop::link(4711)]);
        }
    }
    let refusals = socket.apply(&changes).unwrap();
    let indexes: Vec<usize> = refusals.iter().map(|refusal| refusal.index).collect();
    assert_eq!(indexes, broken);
    assert!(refusals.iter().all(|refusal| refusal.errno == Errno::NODEV), "{refusals:?}");
    assert_eq!(dump(&mut socket, OURS).len(), changes.len() - broken.len());

    let again = socket.apply(&changes).unwrap();
    assert_eq!(
        again.len(),
        changes.len(),
        "each refused, more than fit one receive buffer's default"
    );
}

#[test]
fn fifty_thousand_routes_are_written_once() {
    let netns = TestNetNs::create();
    let up = uplink(&netns).index;
    let mut socket = RouteSocket::open_in(&netns).unwrap();
    let routes = many(50_000, up);
    let now = Instant::now();
    let mut first = RouteReconciler::new(ROUTE_PROTOCOL);
    for route in &routes {
        first.set(route.key(), Some(route.clone()));
    }
    let pass = first.apply(&mut socket, now).unwrap();
    assert_eq!((pass.created, pass.refused), (50_000, 0));
    assert_eq!(first.counts().installed, 50_000);
    assert_eq!(dump(&mut socket, OURS).len(), 50_000);

    // A restarted agent wants the same and writes nothing.
    let mut second = RouteReconciler::new(ROUTE_PROTOCOL);
    for route in &routes {
        second.set(route.key(), Some(route.clone()));
    }
    second.allow_sweep();
    assert_eq!(second.apply(&mut socket, now).unwrap(), Pass { resyncs: 1, ..Pass::default() });
    assert_eq!(second.apply(&mut socket, now).unwrap(), Pass::default());
    let plan = route::plan(&routes, &dump(&mut socket, DumpFilter::default()), ROUTE_PROTOCOL);
    assert_eq!(plan, route::Plan::default());

    // Half of them are no longer wanted: they stay until every input is in sync.
    let mut third = RouteReconciler::new(ROUTE_PROTOCOL);
    for route in &routes[..25_000] {
        third.set(route.key(), Some(route.clone()));
    }
    assert_eq!(third.apply(&mut socket, now).unwrap(), Pass { resyncs: 1, ..Pass::default() });
    assert_eq!(third.counts().stale, 25_000);
    third.allow_sweep();
    let pass = third.apply(&mut socket, now).unwrap();
    assert_eq!(pass, Pass { deleted: 25_000, ..Pass::default() });
    assert_eq!(dump(&mut socket, OURS).len(), 25_000);
}

#[test]
fn routes_of_others_are_never_touched() {
    let netns = TestNetNs::create();
    let up = uplink(&netns).index;
    let mut socket = RouteSocket::open_in(&netns).unwrap();
    let now = Instant::now();
    for (prefix, theirs, our) in
        [("10.1.0.0/24", "192.0.2.7", "192.0.2.8"), ("fd00:1::/64", "2001:db8::7", "2001:db8::8")]
    {
        let wanted = ours(prefix, vec![NextHop::via(ip(our), up)]);
        let same_key = Route {
            protocol: 77,
            target: Target::Unicast(vec![NextHop::via(ip(theirs), up)]),
            ..wanted.clone()
        };
        let other_metric = Route { metric: 50, ..same_key.clone() };
        link::add_route(socket.netlink(), &same_key).unwrap();
        link::add_route(socket.netlink(), &other_metric).unwrap();

        let mut reconciler = RouteReconciler::new(ROUTE_PROTOCOL);
        reconciler.allow_sweep();
        // Without a resync after the other's route, as if it came between dump and write.
        reconciler.resync([]);
        reconciler.set(wanted.key(), Some(wanted.clone()));
        let pass = reconciler.apply(&mut socket, now).unwrap();
        assert_eq!((pass.created, pass.replaced, pass.deleted), (0, 0, 0), "{pass:?}");
        let (key, failure) = reconciler.failures().next().unwrap();
        assert_eq!((*key, failure.errno), (wanted.key(), Errno::EXIST));
        let present = dump(&mut socket, DumpFilter::default());
        assert!(present.contains(&same_key) && present.contains(&other_metric), "{present:#?}");
        assert_eq!(
            route::plan([&wanted], &present, ROUTE_PROTOCOL),
            route::Plan { changes: vec![], clashes: vec![wanted.key()] }
        );

        // Once the other's route is gone, ours goes in.
        link::delete_route(socket.netlink(), &same_key).unwrap();
        reconciler.request_resync();
        assert_eq!(reconciler.apply(&mut socket, now).unwrap().created, 1);
        assert_eq!(reconciler.failures().count(), 0);

        // Not wanted any more: ours goes, the other's stays.
        reconciler.set(wanted.key(), None);
        assert_eq!(reconciler.apply(&mut socket, now).unwrap().deleted, 1);
        let present = dump(&mut socket, DumpFilter::default());
        assert!(present.contains(&other_metric) && !present.contains(&wanted));
    }
}

#[test]
fn routes_through_a_dead_link_fail_visibly_and_return_with_it() {
    let netns = TestNetNs::create();
    let up = uplink(&netns).index;
    let mut socket = RouteSocket::open_in(&netns).unwrap();
    let now = Instant::now();
    let wanted = ours("10.1.0.0/24", vec![NextHop::via(ip("192.0.2.8"), up)]);
    let mut reconciler = RouteReconciler::new(ROUTE_PROTOCOL);
    reconciler.set(wanted.key(), Some(wanted.clone()));
    assert_eq!(reconciler.apply(&mut socket, now).unwrap().created, 1);

    link::set_down(socket.netlink(), up).unwrap();
    reconciler.request_resync();
    assert_eq!(reconciler.apply(&mut socket, now).unwrap().refused, 1);
    assert!(!reconciler.is_installed(&wanted.key()));
    let (_, failure) = reconciler.failures().next().unwrap();
    assert_eq!((failure.since, failure.attempts), (now, 1));
    let due = reconciler.next_deadline().unwrap();
    assert!(due > now);
    assert_eq!(reconciler.apply(&mut socket, now).unwrap(), Pass::default(), "not before its time");
    assert_eq!(reconciler.apply(&mut socket, due).unwrap().refused, 1);

    link::set_up(socket.netlink(), up).unwrap();
    reconciler.retry_failures();
    assert_eq!(reconciler.apply(&mut socket, due).unwrap().created, 1);
    assert!(reconciler.is_installed(&wanted.key()));
    assert_eq!(reconciler.failures().count(), 0);
}

#[test]
fn doubled_routes_of_ours_become_one() {
    let netns = TestNetNs::create();
    let up = uplink(&netns).index;
    let mut socket = RouteSocket::open_in(&netns).unwrap();
    for host in [8, 9] {
        support::ip(
            &netns,
            &format!("route append 10.1.0.0/24 via 192.0.2.{host} metric 198 proto 222"),
        );
    }
    assert_eq!(dump(&mut socket, OURS).len(), 2);
    let wanted = ours("10.1.0.0/24", vec![NextHop::via(ip("192.0.2.9"), up)]);
    let mut reconciler = RouteReconciler::new(ROUTE_PROTOCOL);
    reconciler.set(wanted.key(), Some(wanted.clone()));
    let pass = reconciler.apply(&mut socket, Instant::now()).unwrap();
    assert_eq!((pass.deleted, pass.created), (2, 1));
    assert_eq!(dump(&mut socket, OURS), [wanted]);
}

#[test]
fn the_resolver_sees_what_the_kernel_has() {
    let netns = TestNetNs::create();
    let up = uplink(&netns).index;
    let mut socket = RouteSocket::open_in(&netns).unwrap();
    let default = Route {
        protocol: route::PROTOCOL_STATIC,
        metric: 0,
        ..ours("0.0.0.0/0", vec![NextHop::via(ip("192.0.2.254"), up)])
    };
    link::add_route(socket.netlink(), &default).unwrap();
    let bgp = ours("198.51.100.0/24", vec![NextHop::via(ip("192.0.2.66"), up)]);
    link::add_route(socket.netlink(), &bgp).unwrap();
    let addresses = link::addresses(socket.netlink()).unwrap();
    let resolver = Resolver::new(
        &addresses,
        &dump(&mut socket, DumpFilter::default()),
        [],
        &[ROUTE_PROTOCOL].into(),
    );
    let via = |text| Some(NextHop::via(ip(text), up));
    assert_eq!(resolver.resolve(ip("192.0.2.7")), via("192.0.2.7"));
    assert_eq!(resolver.resolve(ip("2001:db8::7")), via("2001:db8::7"));
    assert_eq!(
        resolver.resolve(ip("198.51.100.7")),
        via("192.0.2.254"),
        "not through our own route"
    );
    assert_eq!(resolver.resolve(ip("2001:db9::7")), None);
    assert_eq!(resolver.connected(ip("2001:db8::7")), Some(up));
    assert!(resolver.local(ip("2001:db8::1")) && resolver.resolve(ip("192.0.2.1")).is_none());
}
