//! What the watch sees of changes on the running kernel.

mod support;

use std::time::{Duration, Instant};

use cairn_kernel::link::{self, Link};
use cairn_kernel::monitor::{KernelEvent, LinkState, Monitor};
use cairn_kernel::nexthop::Way;
use cairn_kernel::reconcile::{Pass, RouteReconciler};
use cairn_kernel::route::{Family, NextHop, Route, RouteEvent, RouteSocket, TABLE_MAIN, Target};
use cairn_kernel::{ROUTE_METRIC, ROUTE_PROTOCOL, sysctl};
use support::{TestNetNs, ip, veth_up};

/// A namespace with an uplink, some routes of ours in it, and a watch that ignores our own writes.
struct Bed {
    netns: TestNetNs,
    up: Link,
    socket: RouteSocket,
    reconciler: RouteReconciler,
    routes: Vec<Route>,
    monitor: Monitor,
}

impl Bed {
    fn new() -> Bed {
        let netns = TestNetNs::create();
        let up = veth_up(&mut netns.netlink(), "up", &["192.0.2.1/24", "2001:db8::1/64"]);
        let socket = RouteSocket::open_in(&netns).unwrap();
        let mut monitor = Monitor::open_in(&netns).unwrap();
        monitor.ignore_port(socket.port());
        let mut reconciler = RouteReconciler::new(ROUTE_PROTOCOL);
        reconciler.allow_sweep();
        let routes: Vec<Route> = [
            ("10.1.0.0/24", "192.0.2.7"),
            ("10.2.0.0/24", "192.0.2.8"),
            ("fd00:1::/64", "2001:db8::7"),
            ("fd00:2::/64", "2001:db8::8"),
        ]
        .into_iter()
        .map(|(prefix, gateway)| Route {
            prefix: prefix.parse().unwrap(),
            table: TABLE_MAIN,
            metric: ROUTE_METRIC,
            protocol: ROUTE_PROTOCOL,
            target: Target::Unicast(vec![NextHop::via(gateway.parse().unwrap(), up.index)]),
            prefsrc: None,
        })
        .collect();
        for route in &routes {
            reconciler.set(route.key(), Some(route.clone()));
        }
        Bed { netns, up, socket, reconciler, routes, monitor }
    }

    fn apply(&mut self) -> Pass {
        self.reconciler.apply(&mut self.socket, Instant::now()).unwrap()
    }

    /// The events until none comes for a while.
    async fn events(&mut self) -> Vec<KernelEvent> {
        let mut events = Vec::new();
        while let Ok(more) = tokio::time::timeout(QUIET, self.monitor.next()).await {
            events.extend(more.unwrap());
        }
        events
    }

    /// Feeds route events to the reconciler as the agent does; returns whether it must write.
    async fn observe(&mut self) -> bool {
        let mut differs = false;
        for event in self.events().await {
            match event {
                KernelEvent::Route(event) => differs |= self.reconciler.observe(&event),
                KernelEvent::RoutesLost { .. } | KernelEvent::Overrun => {
                    self.reconciler.request_resync();
                    differs = true;
                }
                _ => {}
            }
        }
        differs
    }
}

/// The kernel's own IPv6 routes come and go while link-local addresses become usable.
fn is_ours(event: &KernelEvent) -> bool {
    matches!(event, KernelEvent::Route(event) if event.route().protocol == ROUTE_PROTOCOL)
}

#[tokio::test]
async fn our_own_writes_cause_no_events() {
    let mut bed = Bed::new();
    bed.events().await;
    assert_eq!(bed.apply().created, 4);
    let mut events = bed.events().await;
    events.retain(is_ours);
    assert_eq!(events, [], "written by the socket whose port is ignored");
    assert_eq!(bed.apply(), Pass::default());

    // The same without knowing the port, as when a second process of ours writes: the model agrees
    // with what is reported, so nothing follows.
    let mut stranger = Bed::new();
    stranger.monitor = Monitor::open_in(&stranger.netns).unwrap();
    assert_eq!(stranger.apply().created, 4);
    let events = stranger.events().await;
    assert_eq!(events.iter().filter(|event| is_ours(event)).count(), 4);
    for event in &events {
        if let KernelEvent::Route(event) = event {
            assert!(!stranger.reconciler.observe(event), "{event:?}");
        }
    }
    assert_eq!(stranger.apply(), Pass::default());
    assert_eq!(stranger.reconciler.edits(), 0);
}

/// The watch is not read while a full table is written.
#[tokio::test]
async fn a_full_table_of_our_own_does_not_fill_the_buffer() {
    let mut bed = Bed::new();
    bed.monitor.set_receive_buffer(64 << 10).unwrap();
    bed.events().await;
    for number in 0..5000_u32 {
        let prefix = format!("10.{}.{}.0/24", 100 + (number >> 8), number & 255);
        let route = Route { prefix: prefix.parse().unwrap(), ..bed.routes[0].clone() };
        bed.reconciler.set(route.key(), Some(route));
    }
    assert_eq!(bed.apply().created, 5004);
    ip(&bed.netns, "route del 10.1.0.0/24 proto 222 metric 198");
    let events = bed.events().await;
    assert!(!events.contains(&KernelEvent::Overrun), "{} events", events.len());
    let gone = KernelEvent::Route(RouteEvent::Removed(bed.routes[0].clone()));
    assert!(events.contains(&gone), "what others do is still told: {events:?}");
}

#[tokio::test]
async fn flushed_routes_are_noticed_and_repaired() {
    let mut bed = Bed::new();
    bed.apply();
    bed.events().await;
    for family in ["-4", "-6"] {
        ip(&bed.netns, &format!("{family} route flush proto 222"));
    }
    assert!(bed.observe().await);
    assert_eq!(bed.reconciler.edits(), 4);
    assert_eq!(bed.reconciler.counts().installed, 0);
    let pass = bed.apply();
    assert_eq!(pass, Pass { created: 4, ..Pass::default() }, "no dump is needed for it");
    assert!(!bed.observe().await, "the repair is not taken for an edit");
}

/// The best of several rounds: what the code needs, and not what a busy machine adds to it.
#[tokio::test]
async fn a_deletion_is_repaired_within_fifty_milliseconds() {
    let mut bed = Bed::new();
    bed.apply();
    bed.events().await;
    let gone = bed.routes[0].clone();
    let wanted = RouteEvent::Removed(gone.clone());
    let mut fastest = Duration::MAX;
    for _ in 0..10 {
        link::delete_route(&mut bed.netns.netlink(), &gone).unwrap();
        let start = Instant::now();
        while !bed.monitor.next().await.unwrap().contains(&KernelEvent::Route(wanted.clone())) {}
        assert!(bed.reconciler.observe(&wanted));
        assert_eq!(bed.apply().created, 1);
        fastest = fastest.min(start.elapsed());
        assert!(bed.reconciler.is_installed(&gone.key()));
    }
    assert!(fastest < Duration::from_millis(50), "{fastest:?}");
}

#[tokio::test]
async fn an_edit_is_put_right() {
    let mut bed = Bed::new();
    bed.apply();
    bed.events().await;
    ip(&bed.netns, "route replace 10.1.0.0/24 via 192.0.2.99 metric 198 proto 222");
    ip(&bed.netns, "-6 route replace fd00:1::/64 via 2001:db8::99 metric 198 proto 222");
    assert!(bed.observe().await);
    let pass = bed.apply();
    assert_eq!((pass.replaced, pass.created, pass.refused), (2, 0, 0), "{pass:?}");
    assert_eq!(bed.reconciler.counts().installed, 4);

    // An unwanted route with our protocol goes.
    ip(&bed.netns, "route add 10.9.0.0/24 via 192.0.2.99 metric 198 proto 222");
    assert!(bed.observe().await);
    assert_eq!(bed.apply().deleted, 1);
}

#[tokio::test]
async fn a_stranger_on_our_key_is_reported_until_it_goes() {
    let mut bed = Bed::new();
    bed.apply();
    bed.events().await;
    ip(&bed.netns, "route replace 10.1.0.0/24 via 192.0.2.99 metric 198 proto static");
    ip(&bed.netns, "route add 10.1.0.0/24 via 192.0.2.98 metric 7 proto static");
    assert!(bed.observe().await);
    let pass = bed.apply();
    assert_eq!((pass.created, pass.replaced, pass.deleted), (0, 0, 0), "{pass:?}");
    let keys: Vec<_> = bed.reconciler.failures().map(|(key, _)| *key).collect();
    assert_eq!(keys, [bed.routes[0].key()]);

    ip(&bed.netns, "route del 10.1.0.0/24 metric 198 proto static");
    assert!(bed.observe().await);
    assert_eq!(bed.apply().created, 1);
    assert_eq!(bed.reconciler.failures().count(), 0);
}

#[tokio::test]
async fn routes_that_vanish_silently_are_inferred() {
    let mut bed = Bed::new();
    bed.apply();
    bed.events().await;
    let (index, lost) = (bed.up.index, KernelEvent::RoutesLost { ifindex: Some(bed.up.index) });
    let link_is = |state| KernelEvent::Link { index, name: "up".into(), state };

    // The other end goes down: the carrier is lost.
    ip(&bed.netns, "link set dev upp down");
    let events = bed.events().await;
    assert!(events.contains(&link_is(LinkState::NoCarrier)), "{events:?}");
    assert!(events.contains(&lost), "{events:?}");
    ip(&bed.netns, "link set dev upp up");
    let events = bed.events().await;
    assert!(events.contains(&link_is(LinkState::Running)), "{events:?}");
    assert!(!events.contains(&lost), "{events:?}");

    // Set down and up: IPv4 routes are gone and nothing says so.
    ip(&bed.netns, "link set dev up down");
    ip(&bed.netns, "link set dev up up");
    let events = bed.events().await;
    let said = |event: &KernelEvent| {
        matches!(event, KernelEvent::Route(RouteEvent::Removed(route))
            if route.prefix.addr().is_ipv4() && route.protocol == ROUTE_PROTOCOL)
    };
    assert!(!events.iter().any(said), "the kernel reports them after all: {events:?}");
    assert!(events.contains(&lost), "{events:?}");
    bed.reconciler.request_resync();
    assert!(bed.apply().created >= 2);

    // The last IPv4 address goes and comes back.
    ip(&bed.netns, "addr del 192.0.2.1/24 dev up");
    ip(&bed.netns, "addr add 192.0.2.1/24 dev up");
    let events = bed.events().await;
    assert!(events.contains(&KernelEvent::AddressesChanged { ifindex: index }), "{events:?}");
    assert!(events.contains(&lost), "{events:?}");
    bed.reconciler.request_resync();
    assert_eq!(bed.apply().created, 2);

    ip(&bed.netns, "link del dev up");
    let events = bed.events().await;
    assert!(events.contains(&link_is(LinkState::Removed)), "{events:?}");
    assert!(events.contains(&lost), "{events:?}");
}

#[tokio::test]
async fn next_hop_objects_and_neighbours_are_watched() {
    let mut bed = Bed::new();
    bed.events().await;
    ip(&bed.netns, "nexthop add id 7 via 192.0.2.7 dev up");
    let events = bed.events().await;
    let added = |event: &KernelEvent| {
        matches!(event, KernelEvent::Object { id: 7, object: Some(object) }
            if matches!(object.way, Way::Hop(hop) if hop.ifindex == bed.up.index))
    };
    assert!(events.iter().any(added), "{events:?}");
    ip(&bed.netns, "route add 10.5.0.0/24 nhid 7 proto 222 metric 198");
    bed.events().await;
    ip(&bed.netns, "nexthop del id 7");
    let events = bed.events().await;
    assert!(events.contains(&KernelEvent::Object { id: 7, object: None }), "{events:?}");
    assert!(events.contains(&KernelEvent::RoutesLost { ifindex: None }), "{events:?}");
    assert!(!events.iter().any(is_ours), "{events:?}");

    let (ifindex, address) = (bed.up.index, "192.0.2.50".parse().unwrap());
    ip(&bed.netns, "neigh add 192.0.2.50 lladdr 02:00:00:00:00:01 dev up nud permanent");
    let events = bed.events().await;
    let mac = Some("02:00:00:00:00:01".parse().unwrap());
    let set = KernelEvent::Neighbour { ifindex, address, present: true, permanent: true, mac };
    assert!(events.contains(&set), "{events:?}");
    ip(&bed.netns, "neigh del 192.0.2.50 dev up");
    let events = bed.events().await;
    let gone = |event: &KernelEvent| {
        matches!(event, KernelEvent::Neighbour { address: found, present: false, permanent: false, .. }
            if *found == address)
    };
    assert!(events.iter().any(gone), "{events:?}");
}

#[tokio::test]
async fn forwarding_that_is_turned_off_is_told() {
    let mut bed = Bed::new();
    for (family, directory) in [(Family::V4, "ipv4/conf"), (Family::V6, "ipv6/conf")] {
        let off = KernelEvent::ForwardingOff { family };
        let set = |netns: &TestNetNs, link: &str, value| {
            let path = format!("{directory}/{link}/forwarding");
            netns.run(|| sysctl::write(&path, value)).unwrap().unwrap();
        };
        set(&bed.netns, "all", 1);
        set(&bed.netns, "up", 0);
        let events = bed.events().await;
        assert!(!events.contains(&off), "one link is no matter of all: {events:?}");
        set(&bed.netns, "all", 0);
        let events = bed.events().await;
        assert!(events.contains(&off), "{events:?}");
    }
}

#[tokio::test]
async fn another_check_of_sources_is_told() {
    let mut bed = Bed::new();
    for link in ["all", "up"] {
        let path = format!("ipv4/conf/{link}/rp_filter");
        for value in [1, 2] {
            bed.netns.run(|| sysctl::write(&path, value)).unwrap().unwrap();
            let events = bed.events().await;
            assert!(events.contains(&KernelEvent::ReversePath), "{link} {value}: {events:?}");
        }
    }
}

#[tokio::test]
async fn leaving_a_bridge_is_not_taken_for_removal() {
    let mut bed = Bed::new();
    ip(&bed.netns, "link add br0 type bridge");
    ip(&bed.netns, "link set dev up master br0");
    bed.events().await;
    ip(&bed.netns, "link set dev up nomaster");
    for event in bed.events().await {
        if let KernelEvent::Link { index, state, .. } = event {
            assert!(index != bed.up.index || state == LinkState::Running, "{state:?}");
        }
    }
}

#[tokio::test]
async fn another_mtu_is_told_and_takes_no_route_along() {
    let mut bed = Bed::new();
    bed.apply();
    bed.events().await;
    ip(&bed.netns, "link set dev up mtu 1400");
    let events = bed.events().await;
    let told = |event: &KernelEvent| matches!(event, KernelEvent::Link { index, state: LinkState::Running, .. } if *index == bed.up.index);
    assert!(events.iter().any(told), "{events:?}");
    let lost = |event: &KernelEvent| matches!(event, KernelEvent::RoutesLost { .. });
    assert!(!events.iter().any(lost), "{events:?}");
}

#[tokio::test]
async fn lost_notifications_lead_to_a_full_resync() {
    let mut bed = Bed::new();
    bed.apply();
    bed.events().await;
    bed.monitor.set_receive_buffer(1).unwrap();
    ip(&bed.netns, "route del 10.1.0.0/24 proto 222 metric 198");
    ip(&bed.netns, "link add late type bridge");
    let mut flood = RouteSocket::open_in(&bed.netns).unwrap();
    let routes: Vec<_> = (0..250)
        .map(|number| {
            cairn_kernel::route::Change::Create(Route {
                prefix: format!("10.77.{number}.0/24").parse().unwrap(),
                protocol: 77,
                ..bed.routes[0].clone()
            })
        })
        .collect();
    assert_eq!(flood.apply(&routes).unwrap(), []);
    let events = bed.events().await;
    assert!(events.contains(&KernelEvent::Overrun), "{} events", events.len());
    let late = events.iter().any(|event| {
        matches!(event, KernelEvent::Link { name, state: LinkState::Down, .. } if name == "late")
    });
    assert!(late, "links are read again: {events:?}");
    bed.reconciler.request_resync();
    assert_eq!(bed.apply(), Pass { resyncs: 1, created: 1, ..Pass::default() });

    // The watch goes on afterwards.
    bed.monitor.set_receive_buffer(1 << 20).unwrap();
    bed.events().await;
    ip(&bed.netns, "route del 10.2.0.0/24 proto 222 metric 198");
    assert!(bed.observe().await);
    assert_eq!(bed.apply(), Pass { created: 1, ..Pass::default() });
}

const QUIET: Duration = Duration::from_millis(100);
