//! Next-hop objects on uplinks of the running kernel, and the routes through them.

mod support;

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use cairn_kernel::monitor::{KernelEvent, Monitor};
use cairn_kernel::nexthop::{self, ObjectUse, Way};
use cairn_kernel::reconcile::{Pass, RouteReconciler};
use cairn_kernel::route::{
    DumpFilter, Family, NextHop, Route, RouteKey, RouteSocket, TABLE_MAIN, Target,
};
use cairn_kernel::uplink::{self, Lead, Moved, UplinkObjects};
use cairn_kernel::{ROUTE_METRIC, ROUTE_PROTOCOL, UPLINK_OBJECTS, cleanup};
use ipnet::IpNet;
use support::{TestNetNs, ip, ip_output, veth_up};

const FIRST: u32 = UPLINK_OBJECTS.start;
const FIRST_GROUP: u32 = FIRST + 0x8000;

/// A namespace with two uplinks, and what an agent keeps there.
struct Bed {
    netns: TestNetNs,
    links: BTreeMap<&'static str, u32>,
    socket: RouteSocket,
    monitor: Monitor,
    objects: UplinkObjects,
    reconciler: RouteReconciler,
    wanted: BTreeMap<IpNet, Vec<NextHop>>,
}

impl Bed {
    fn new() -> Bed {
        let netns = TestNetNs::create();
        let mut netlink = netns.netlink();
        let mut up =
            |name, addresses: &[&str]| (name, veth_up(&mut netlink, name, addresses).index);
        let links = BTreeMap::from([
            up("up0", &["192.0.2.1/24", "2001:db8::1/64"]),
            up("up1", &["198.51.100.1/24", "2001:db8:1::1/64"]),
        ]);
        let socket = RouteSocket::open_in(&netns).unwrap();
        let mut monitor = Monitor::open_in(&netns).unwrap();
        monitor.ignore_port(socket.port());
        let mut bed = Bed {
            netns,
            links,
            socket,
            monitor,
            objects: UplinkObjects::new(ObjectUse::Objects),
            reconciler: RouteReconciler::new(ROUTE_PROTOCOL),
            wanted: BTreeMap::new(),
        };
        bed.allow_sweep();
        bed
    }

    fn allow_sweep(&mut self) {
        self.objects.allow_sweep();
        self.reconciler.allow_sweep();
    }

    /// As a new process, which knows nothing.
    fn restart(&mut self) {
        self.objects = UplinkObjects::new(ObjectUse::Objects);
        self.reconciler = RouteReconciler::new(ROUTE_PROTOCOL);
        for prefix in self.wanted.keys().copied().collect::<Vec<_>>() {
            self.lead(prefix);
        }
        self.allow_sweep();
    }

    /// Wants routes to `prefix` via these addresses behind the uplinks: `up0` has the first subnets.
    fn want(&mut self, prefix: &str, gateways: &[&str]) {
        let prefix: IpNet = prefix.parse().unwrap();
        let hops = gateways.iter().map(|gateway| {
            let by = if gateway.starts_with("192.") || gateway.starts_with("2001:db8::") {
                "up0"
            } else {
                "up1"
            };
            NextHop::via(gateway.parse().unwrap(), self.links[by])
        });
        match Target::Unicast(hops.collect()).normalized() {
            Target::Unicast(hops) if !hops.is_empty() => drop(self.wanted.insert(prefix, hops)),
            _ => drop(self.wanted.remove(&prefix)),
        }
        self.lead(prefix);
    }

    fn lead(&mut self, prefix: IpNet) {
        let key = RouteKey { prefix, table: TABLE_MAIN, metric: ROUTE_METRIC };
        let Some(hops) = self.wanted.get(&prefix) else {
            self.objects.forget(prefix);
            return self.reconciler.set(key, None);
        };
        let target = match self.objects.lead(prefix, hops) {
            Lead::Pending => return,
            Lead::Object(id) => Some(Target::Object(id)),
            Lead::Plain => Some(Target::Unicast(hops.clone())),
            Lead::NoCarrier => None,
        };
        let route = target.map(|target| Route {
            prefix,
            table: TABLE_MAIN,
            metric: ROUTE_METRIC,
            protocol: ROUTE_PROTOCOL,
            target,
            prefsrc: None,
        });
        self.reconciler.set(key, route);
    }

    /// One pass: objects, routes, objects. What was written of the ones and of the others.
    fn pass(&mut self) -> [Pass; 2] {
        let now = Instant::now();
        let mut objects = self.objects.prepare(self.socket.netlink(), now).unwrap();
        let moved = match self.objects.take_moved() {
            Moved::Nothing => Vec::new(),
            Moved::These(prefixes) => prefixes,
            Moved::All => self.wanted.keys().copied().collect(),
        };
        moved.into_iter().for_each(|prefix| self.lead(prefix));
        let routes = self.reconciler.apply(&mut self.socket, now).unwrap();
        if routes.created + routes.replaced + routes.deleted > 0 {
            self.objects.routes_changed();
        }
        let used = self.reconciler.objects();
        let cleaned = self.objects.clean(self.socket.netlink(), now, used).unwrap();
        objects.deleted += cleaned.deleted;
        objects.refused += cleaned.refused;
        [objects, routes]
    }

    /// Takes the events until none comes for a while; whether somebody changed an object of ours.
    async fn observe(&mut self) -> bool {
        let mut concerned = false;
        while let Ok(events) = tokio::time::timeout(QUIET, self.monitor.next()).await {
            for event in events.unwrap() {
                concerned |= self.objects.observe(&event);
                match event {
                    KernelEvent::Route(event) => drop(self.reconciler.observe(&event)),
                    KernelEvent::RoutesLost { .. } => self.reconciler.request_resync(),
                    _ => {}
                }
            }
        }
        concerned
    }

    /// Our routes by prefix, with what they name.
    fn routes(&self) -> BTreeMap<String, Target> {
        let mut socket = RouteSocket::open_in(&self.netns).unwrap();
        let ours = DumpFilter { protocol: Some(ROUTE_PROTOCOL), ..DumpFilter::default() };
        let families = Family::ALL.into_iter();
        let routes = families.flat_map(|family| socket.dump(family, ours).unwrap());
        routes.map(|route| (route.prefix.to_string(), route.target)).collect()
    }

    /// The objects of the kernel, as `ip` prints them.
    fn objects(&self) -> Vec<String> {
        let listing = ip_output(&self.netns, "nexthop show");
        listing.lines().map(|line| line.trim().to_owned()).collect()
    }

    fn carrier(&self, uplink: &str, state: &str) {
        ip(&self.netns, &format!("link set {uplink}p {state}"));
    }
}

fn objects<const N: usize>(named: [(&str, u32); N]) -> BTreeMap<String, Target> {
    named.into_iter().map(|(prefix, id)| (prefix.to_owned(), Target::Object(id))).collect()
}

/// Routes of both families by one next hop and by two, over either uplink.
fn usual(bed: &mut Bed) {
    bed.want("10.0.0.0/24", &["192.0.2.2"]);
    bed.want("10.0.1.0/24", &["192.0.2.2"]);
    bed.want("10.0.2.0/24", &["198.51.100.2"]);
    bed.want("10.0.3.0/24", &["192.0.2.2", "198.51.100.2"]);
    bed.want("10.0.4.0/24", &["2001:db8::2"]);
    bed.want("fd00:1::/64", &["2001:db8::2"]);
    bed.want("fd00:2::/64", &["2001:db8::2", "2001:db8:1::2"]);
}

fn usual_routes() -> BTreeMap<String, Target> {
    objects([
        ("10.0.0.0/24", FIRST),
        ("10.0.1.0/24", FIRST),
        ("10.0.2.0/24", FIRST + 1),
        ("10.0.3.0/24", FIRST_GROUP),
        ("10.0.4.0/24", FIRST + 2),
        ("fd00:1::/64", FIRST + 2),
        ("fd00:2::/64", FIRST_GROUP + 1),
    ])
}

#[tokio::test]
async fn routes_share_objects_and_move_from_one_to_another() {
    let mut bed = Bed::new();
    usual(&mut bed);
    let [objects_written, routes] = bed.pass();
    assert_eq!((objects_written.created, objects_written.refused), (4 + 2, 0));
    assert_eq!((routes.created, routes.refused), (7, 0));
    assert_eq!(bed.routes(), usual_routes());
    let ecmp = ip_output(&bed.netns, "-6 route show fd00:2::/64");
    assert!(ecmp.contains("nexthop via 2001:db8::2 dev up0 weight 1"), "{ecmp}");
    assert!(ecmp.contains("nexthop via 2001:db8:1::2 dev up1 weight 1"), "{ecmp}");
    let name = |index| if index == bed.links["up0"] { "up0" } else { "up1" }.to_owned();
    let inventory = uplink::inventory(&mut bed.netns.netlink(), name).unwrap();
    assert_eq!(bed.objects.inventory(name), inventory);
    assert_eq!(inventory.len(), 6);

    // Each in its place: no prefix is without a route at any time.
    bed.observe().await;
    let mut watch = Monitor::open_in(&bed.netns).unwrap();
    bed.want("10.0.0.0/24", &["192.0.2.3"]);
    bed.want("10.0.3.0/24", &["198.51.100.2"]);
    bed.want("fd00:1::/64", &["2001:db8::2", "2001:db8:1::2"]);
    bed.want("fd00:2::/64", &["2001:db8::2"]);
    let [objects_written, routes] = bed.pass();
    assert_eq!((routes.created, routes.replaced, routes.deleted), (0, 4, 0));
    assert_eq!(objects_written.created, 1);
    // The group of IPv4 went, and none of its members.
    assert_eq!(objects_written.deleted, 1);
    let mut expected = usual_routes();
    expected.extend(objects([
        ("10.0.0.0/24", FIRST + 4),
        ("10.0.3.0/24", FIRST + 1),
        ("fd00:1::/64", FIRST_GROUP + 1),
        ("fd00:2::/64", FIRST + 2),
    ]));
    assert_eq!(bed.routes(), expected);
    while let Ok(events) = tokio::time::timeout(QUIET, watch.next()).await {
        for event in events.unwrap() {
            let removed =
                matches!(&event, KernelEvent::Route(cairn_kernel::route::RouteEvent::Removed(_)));
            assert!(!removed, "{event:?}");
        }
    }

    // Nothing is left when nothing is wanted, and it goes by itself.
    for prefix in bed.wanted.keys().map(IpNet::to_string).collect::<Vec<_>>() {
        bed.want(&prefix, &[]);
    }
    bed.pass();
    assert_eq!((bed.routes(), bed.objects()), (BTreeMap::new(), Vec::new()));
    assert_eq!(bed.pass(), [Pass::default(); 2]);
    assert!(!bed.objects.is_dirty());
}

#[tokio::test]
async fn a_restart_adopts_everything_and_writes_nothing() {
    let mut bed = Bed::new();
    // Numbers in another order than a new process would give.
    bed.want("10.0.9.0/24", &["198.51.100.9", "192.0.2.9"]);
    bed.pass();
    usual(&mut bed);
    bed.pass();
    bed.want("10.0.9.0/24", &[]);
    bed.pass();
    let (routes, objects) = (bed.routes(), bed.objects());
    assert_eq!((routes.len(), objects.len()), (7, 6));
    assert_ne!(routes, usual_routes());

    let mut watch = Monitor::open_in(&bed.netns).unwrap();
    bed.restart();
    let read = Pass { resyncs: 1, ..Pass::default() };
    assert_eq!(bed.pass(), [read, read]);
    assert_eq!(bed.pass(), [Pass::default(); 2]);
    let told = tokio::time::timeout(QUIET, watch.next()).await;
    assert!(told.is_err(), "somebody wrote: {told:?}");
    assert_eq!((bed.routes(), bed.objects()), (routes, objects));
    assert_eq!(bed.objects.edits(), 0);

    // What an earlier process had and nobody wants stays until it may go.
    bed.wanted.retain(|prefix, _| prefix.addr().is_ipv6());
    bed.objects = UplinkObjects::new(ObjectUse::Objects);
    bed.reconciler = RouteReconciler::new(ROUTE_PROTOCOL);
    bed.wanted.keys().copied().collect::<Vec<_>>().into_iter().for_each(|net| bed.lead(net));
    assert_eq!(bed.pass(), [read, read]);
    assert_eq!(bed.routes().len(), 7);
    bed.allow_sweep();
    let [objects, routes] = bed.pass();
    assert_eq!((objects.deleted, routes.deleted), (3, 5));
    assert_eq!(bed.objects().len(), 3, "{:?}", bed.objects());
}

#[tokio::test]
async fn objects_of_others_are_left_alone_whatever_numbers_they_have() {
    let mut bed = Bed::new();
    for command in [
        format!("nexthop add id {FIRST} via 192.0.2.2 dev up0 proto static"),
        format!("nexthop add id {FIRST_GROUP} group {FIRST} proto static"),
        "nexthop add id 7 via 192.0.2.2 dev up0 proto 222".to_owned(),
    ] {
        ip(&bed.netns, &command);
    }
    let theirs = bed.objects();
    usual(&mut bed);
    bed.pass();
    bed.pass();
    let shifted = usual_routes().into_iter().map(|(prefix, target)| match target {
        Target::Object(id) => (prefix, Target::Object(id + 1)),
        other => (prefix, other),
    });
    assert_eq!(bed.routes(), shifted.collect());
    // One takes a number while ours is gone.
    ip(&bed.netns, &format!("nexthop del id {}", FIRST + 1));
    ip(&bed.netns, &format!("nexthop add id {} blackhole proto static", FIRST + 1));
    bed.observe().await;
    bed.pass();
    assert_eq!(bed.routes()["10.0.0.0/24"], Target::Object(FIRST + 5));
    assert_eq!((bed.routes().len(), bed.reconciler.counts().failed), (7, 0));
    assert_eq!(bed.objects.problems(), Vec::<String>::new());

    let ours = [ROUTE_PROTOCOL].into();
    let mut socket = RouteSocket::open_in(&bed.netns).unwrap();
    let found = cleanup::find(&mut socket, &ours).unwrap();
    assert_eq!(found.len(), 7 + 6, "{found:?}");
    for remnant in &found {
        cleanup::remove(&mut socket, remnant).unwrap();
    }
    let left = bed.objects();
    assert_eq!(left.len(), theirs.len() + 1, "{left:?}");
    assert!(theirs.iter().all(|object| left.contains(object)), "{left:?}");
}

#[tokio::test]
async fn what_somebody_deletes_or_changes_comes_back_with_its_routes() {
    let mut bed = Bed::new();
    usual(&mut bed);
    bed.pass();
    let whole = bed.objects();
    let mut edits = 0;
    for (command, undone) in [
        // A member: the group is smaller then.
        (format!("nexthop del id {FIRST}"), 2),
        (format!("nexthop del id {FIRST_GROUP}"), 1),
        (format!("nexthop del id {}", FIRST_GROUP + 1), 1),
        (format!("nexthop del id {}", FIRST + 2), 2),
        (format!("nexthop replace id {FIRST} via 192.0.2.66 dev up0 proto 222"), 1),
        (format!("nexthop replace id {FIRST_GROUP} group {} proto 222", FIRST + 1), 1),
        ("nexthop flush proto 222".to_owned(), 6),
    ] {
        ip(&bed.netns, &command);
        assert!(bed.observe().await, "{command} is not noticed");
        bed.pass();
        edits += undone;
        assert_eq!((bed.objects(), bed.objects.edits()), (whole.clone(), edits), "{command}");
        assert_eq!(bed.routes(), usual_routes(), "{command}");
        assert_eq!(bed.objects.problems(), Vec::<String>::new());
        bed.observe().await;
        assert_eq!(bed.pass(), [Pass::default(); 2], "{command}: nothing is left to do");
    }
}

#[tokio::test]
async fn an_object_that_somebody_else_writes_again_and_again_is_put_back_each_time() {
    let mut bed = Bed::new();
    usual(&mut bed);
    bed.pass();
    let whole = bed.objects();
    for round in 1..=20 {
        ip(&bed.netns, &format!("nexthop replace id {FIRST} via 192.0.2.66 dev up0 proto 222"));
        bed.observe().await;
        bed.pass();
        assert_eq!((bed.objects(), bed.objects.edits()), (whole.clone(), round), "round {round}");
        assert_eq!(bed.routes(), usual_routes(), "round {round}");
        assert_eq!(bed.objects.problems(), Vec::<String>::new());
    }
}

#[tokio::test]
async fn carrier_comes_and_goes() {
    let mut bed = Bed::new();
    usual(&mut bed);
    bed.pass();
    let whole = bed.objects();

    bed.carrier("up0", "down");
    bed.observe().await;
    let [objects_written, routes] = bed.pass();
    assert_eq!(routes.refused, 0, "no route is tried without its object");
    assert_eq!(objects_written.refused, 2, "each next hop once");
    let remaining = objects([
        ("10.0.2.0/24", FIRST + 1),
        ("10.0.3.0/24", FIRST_GROUP),
        ("fd00:2::/64", FIRST_GROUP + 1),
    ]);
    assert_eq!(bed.routes(), remaining, "routes of two uplinks stay");
    assert_eq!(bed.objects.edits(), 0, "the kernel did it");
    // It waits, and what belongs to the other uplink goes on.
    assert_eq!(bed.pass(), [Pass::default(); 2]);
    bed.want("10.0.5.0/24", &["198.51.100.7"]);
    bed.pass();
    assert!(bed.routes().contains_key("10.0.5.0/24"));
    bed.want("10.0.5.0/24", &[]);
    bed.pass();
    let again = bed.objects.next_deadline().expect("a retry") - Instant::now();
    assert!(again > Duration::from_millis(10), "{again:?}");
    assert_eq!(bed.objects.problems().len(), 1);

    bed.carrier("up0", "up");
    bed.observe().await;
    bed.pass();
    assert_eq!((bed.routes(), bed.objects()), (usual_routes(), whole.clone()));
    assert_eq!(bed.objects.problems(), Vec::<String>::new());

    // Gone and back before anybody looks.
    for _ in 0..3 {
        bed.carrier("up0", "down");
        bed.carrier("up0", "up");
        bed.observe().await;
        bed.pass();
        assert_eq!((bed.routes(), bed.objects()), (usual_routes(), whole.clone()));
    }

    // An agent that starts while an uplink is down takes over what is there.
    bed.carrier("up1", "down");
    bed.restart();
    bed.pass();
    let mut expected = usual_routes();
    expected.remove("10.0.2.0/24");
    assert_eq!(bed.routes(), expected);
    bed.carrier("up1", "up");
    bed.observe().await;
    bed.pass();
    assert_eq!((bed.routes(), bed.objects()), (usual_routes(), whole));
}

#[tokio::test]
async fn a_gateway_that_the_kernel_refuses_is_told_with_its_route_and_holds_back_nothing() {
    let mut bed = Bed::new();
    usual(&mut bed);
    bed.pass();
    let far = NextHop::via("203.0.113.9".parse().unwrap(), bed.links["up0"]);
    let prefix: IpNet = "10.0.9.0/24".parse().unwrap();
    bed.wanted.insert(prefix, vec![far]);
    bed.lead(prefix);
    bed.pass();
    assert_eq!(bed.routes(), usual_routes());
    assert_eq!(bed.reconciler.counts().failed, 1, "the route itself is refused, too");
    assert_eq!(bed.objects.problems().len(), 1);
    // With a way to the gateway it works.
    ip(&bed.netns, "route add 203.0.113.0/24 dev up0");
    bed.objects.retry_failures();
    bed.pass();
    let object = &bed.routes()["10.0.9.0/24"];
    assert!(matches!(object, Target::Object(_)), "{object:?}");
    let listed = nexthop::list(&mut bed.netns.netlink()).unwrap();
    assert!(listed.iter().any(|object| object.way == Way::Hop(far)));
}

const QUIET: Duration = Duration::from_millis(100);
