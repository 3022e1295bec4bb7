//! Tunnels on the running kernel: they carry packets, and are what they should be whatever happens.

mod support;

use std::collections::BTreeSet;
use std::net::IpAddr;
use std::time::{Duration, Instant};

use cairn_kernel::link::{self, Veth, VethEnd};
use cairn_kernel::monitor::{KernelEvent, Monitor};
use cairn_kernel::nexthop::{self, Object, Way};
use cairn_kernel::reconcile::Pass;
use cairn_kernel::route::{Change, Family, NextHop, Route, RouteSocket, TABLE_MAIN, Target};
use cairn_kernel::tunnel::{
    self, Device, Encapsulation, ObjectUse, Peer, TunnelKind, Tunnels, VxlanSettings, mac_of,
};
use cairn_kernel::{ROUTE_METRIC, ROUTE_PROTOCOL, TUNNEL_OBJECTS, VXLAN_VNI_DEFAULT, feature};
use support::{TestNetNs, ip, ip_output, veth_up};

const VXLAN: TunnelKind = TunnelKind::Vxlan;
const NAME: &str = "cairn.vxlan";
const PORT: u16 = cairn_kernel::VXLAN_PORT_DEFAULT;

fn addr(text: &str) -> IpAddr {
    text.parse().unwrap()
}

fn device(node: &str, local: &str, addresses: &[&str]) -> Device {
    let mac = mac_of(node);
    Device {
        local: addr(local),
        mtu: 1430,
        addresses: addresses.iter().map(|text| addr(text)).collect(),
        inner: Family::ALL.into(),
        encapsulation: Encapsulation::Vxlan(VxlanSettings {
            vni: VXLAN_VNI_DEFAULT,
            port: PORT,
            mac,
            dont_fragment: false,
        }),
    }
}

fn peer(node: &str, outer: &str) -> Option<Peer> {
    Some(Peer { outer: addr(outer), mac: mac_of(node) })
}

/// A namespace with an uplink and the tunnels of node `here`, as an agent keeps them.
struct Bed {
    netns: TestNetNs,
    socket: RouteSocket,
    monitor: Monitor,
    tunnels: Tunnels,
}

impl Bed {
    fn new() -> Bed {
        let netns = TestNetNs::create();
        veth_up(&mut netns.netlink(), "up", &["192.0.2.1/24", "2001:db8::1/64"]);
        Bed::of(netns, "here", "192.0.2.1", &["10.244.1.1", "fd00:1::1"], ObjectUse::Objects)
    }

    fn of(
        netns: TestNetNs,
        node: &str,
        local: &str,
        addresses: &[&str],
        object_use: ObjectUse,
    ) -> Bed {
        let socket = RouteSocket::open_in(&netns).unwrap();
        let mut monitor = Monitor::open_in(&netns).unwrap();
        monitor.ignore_port(socket.port());
        let mut tunnels = Tunnels::new(object_use);
        tunnels.set_device(device(node, local, addresses));
        Bed { netns, socket, monitor, tunnels }
    }

    fn pass(&mut self) -> Pass {
        let now = Instant::now();
        let netlink = self.socket.netlink();
        let prepared = self.tunnels.prepare(netlink, now).unwrap();
        let cleaned = self.tunnels.clean(netlink, now).unwrap();
        Pass { deleted: cleaned.deleted, refused: prepared.refused + cleaned.refused, ..prepared }
    }

    /// Works until nothing is left to do; returns what was written in all.
    async fn settle(&mut self) -> Pass {
        let mut sum = Pass::default();
        loop {
            let pass = self.pass();
            sum.created += pass.created;
            sum.replaced += pass.replaced;
            sum.deleted += pass.deleted;
            sum.refused += pass.refused;
            let quiet = !self.observe().await && !self.tunnels.is_dirty();
            if quiet {
                return sum;
            }
        }
    }

    /// Takes the events until none comes for a while; whether one concerns a tunnel.
    async fn observe(&mut self) -> bool {
        let mut concerned = false;
        while let Ok(events) = tokio::time::timeout(QUIET, self.monitor.next()).await {
            for event in events.unwrap() {
                concerned |= self.tunnels.observe(&event);
            }
        }
        concerned
    }

    /// What the kernel holds on the tunnel, in the words of `ip`.
    fn listing(&self) -> [BTreeSet<String>; 3] {
        let lines = |arguments: &str| {
            ip_output(&self.netns, arguments).lines().map(str::to_owned).collect::<BTreeSet<_>>()
        };
        let mut neighbours = lines(&format!("neigh show dev {NAME} nud permanent"));
        neighbours.extend(lines(&format!("-6 neigh show dev {NAME} nud permanent")));
        let forwarding = support::run(&self.netns, "bridge", &format!("fdb show dev {NAME}"));
        let forwarding = forwarding.lines().map(str::to_owned).collect();
        [neighbours, forwarding, lines("nexthop show")]
    }

    fn counts(&self) -> [usize; 3] {
        self.listing().map(|lines| lines.len())
    }

    fn index(&self) -> Option<u32> {
        link::find(&mut self.netns.netlink(), NAME).unwrap().map(|link| link.index)
    }

    fn target(&self, node: &str, inner: Family) -> Option<Target> {
        self.tunnels.target(VXLAN, node, inner).cloned()
    }

    /// Points routes to `node`'s blocks into the tunnel.
    fn route(&mut self, node: &str, prefixes: &[&str]) {
        for prefix in prefixes {
            let v6 = prefix.contains(':');
            let target = self.target(node, if v6 { Family::V6 } else { Family::V4 });
            let route = Route {
                prefix: prefix.parse().unwrap(),
                table: TABLE_MAIN,
                metric: ROUTE_METRIC,
                protocol: ROUTE_PROTOCOL,
                target: target.expect("the peer is ready"),
                prefsrc: None,
            };
            assert_eq!(self.socket.apply(&[Change::Create(route)]).unwrap(), []);
        }
    }
}

/// Two nodes on one link, each with a tunnel device and one peer.
async fn two_nodes(outer: [&str; 2], object_use: ObjectUse) -> [Bed; 2] {
    let (a, b) = (TestNetNs::create(), TestNetNs::create());
    let veth = Veth {
        end: VethEnd::named("up"),
        peer: VethEnd::named("up"),
        peer_netns: Some(std::os::fd::AsFd::as_fd(&*b)),
        mtu: None,
    };
    link::create_veth(&mut a.netlink(), &veth).unwrap();
    for (netns, number) in [(&a, 1), (&b, 2)] {
        ip(netns, &format!("addr add 192.0.2.{number}/24 dev up"));
        ip(netns, &format!("addr add 192.0.2.1{number}/24 dev up"));
        ip(netns, &format!("addr add 2001:db8::{number}/64 dev up nodad"));
        ip(netns, "link set dev up up");
    }
    let [at, bt] = [["10.244.1.1", "fd00:1::1"], ["10.244.2.1", "fd00:2::1"]];
    let mut beds =
        [Bed::of(a, "a", outer[0], &at, object_use), Bed::of(b, "b", outer[1], &bt, object_use)];
    beds[0].tunnels.set_peer(VXLAN, "b", peer("b", outer[1]));
    beds[1].tunnels.set_peer(VXLAN, "a", peer("a", outer[0]));
    for bed in &mut beds {
        assert_eq!(bed.pass().refused, 0);
        assert_eq!(bed.tunnels.problems(), Vec::<String>::new());
    }
    beds[0].route("b", &["10.244.2.0/26", "fd00:2::/122"]);
    beds[1].route("a", &["10.244.1.0/26", "fd00:1::/122"]);
    beds
}

fn pings(bed: &Bed, address: &str) -> bool {
    // Until one answer has come: the first packets may wait for the outer neighbour, whose IPv6 solicitation is
    // repeated only after a second.
    let arguments = ["-c", "1", "-i", "0.2", "-w", "5", address];
    let output = bed.netns.run(|| std::process::Command::new("ping").args(arguments).output());
    let output = output.unwrap().expect("the tests need `ping` of iputils");
    output.status.success()
}

#[tokio::test]
async fn both_families_cross_a_tunnel_over_either() {
    for outer in [["192.0.2.1", "192.0.2.2"], ["2001:db8::1", "2001:db8::2"]] {
        for object_use in [ObjectUse::Objects, ObjectUse::Plain] {
            let [a, b] = two_nodes(outer, object_use).await;
            assert!(pings(&a, "10.244.2.1"), "{outer:?} {object_use:?}");
            assert!(pings(&a, "fd00:2::1"), "{outer:?} {object_use:?}");
            assert!(pings(&b, "10.244.1.1"), "{outer:?} {object_use:?}");
            let through_object = matches!(a.target("b", Family::V4), Some(Target::Object(_)));
            assert_eq!(through_object, object_use == ObjectUse::Objects);
        }
    }
}

#[tokio::test]
async fn a_peer_that_moves_keeps_its_object() {
    let [mut a, mut b] = two_nodes(["192.0.2.1", "192.0.2.2"], ObjectUse::Objects).await;
    let (index, targets) = (b.index(), Family::ALL.map(|inner| a.target("b", inner)));
    a.tunnels.take_changed();

    a.tunnels.set_peer(VXLAN, "b", peer("b", "192.0.2.12"));
    assert!(a.tunnels.is_dirty());
    let pass = a.settle().await;
    // A neighbour for the new gateway is made, the forwarding entry and the IPv4 object changed.
    assert_eq!((pass.created, pass.replaced, pass.deleted), (1, 2, 0), "{pass:?}");
    assert_eq!(Family::ALL.map(|inner| a.target("b", inner)), targets, "no route has to move");
    assert_eq!(a.tunnels.take_changed(), BTreeSet::new());

    b.tunnels.set_device(device("b", "192.0.2.12", &["10.244.2.1", "fd00:2::1"]));
    assert_eq!(b.settle().await.refused, 0);
    assert_eq!(b.index(), index, "the device is changed in place");
    assert!(pings(&a, "10.244.2.1") && pings(&a, "fd00:2::1"));

    a.tunnels.allow_sweep();
    assert_eq!(a.settle().await.deleted, 1, "the neighbour entry of the old address");
    assert_eq!(a.counts(), [2, 1, 2]);
}

#[tokio::test]
async fn whatever_is_deleted_by_hand_comes_back_and_is_counted() {
    let mut bed = Bed::new();
    for node in ["n1", "n2"] {
        bed.tunnels.set_peer(VXLAN, node, peer(node, &format!("192.0.2.1{}", &node[1..])));
    }
    bed.settle().await;
    assert_eq!((bed.counts(), bed.tunnels.edits()), ([4, 2, 4], 0));
    let (whole, targets) = (bed.listing(), bed.target("n1", Family::V4));
    let mac = mac_of("n1");
    let mut edits = 0;
    for (program, arguments) in [
        ("ip", format!("neigh del 192.0.2.11 dev {NAME}")),
        (
            "ip",
            format!("neigh replace 192.0.2.11 dev {NAME} lladdr 02:00:00:00:00:09 nud permanent"),
        ),
        ("bridge", format!("fdb del {mac} dev {NAME}")),
        ("bridge", format!("fdb replace {mac} dev {NAME} dst 192.0.2.99")),
        ("bridge", format!("fdb replace {mac} dev {NAME} dst 192.0.2.11 port 99")),
        ("ip", format!("nexthop del id {}", TUNNEL_OBJECTS.start)),
        ("ip", format!("nexthop replace id {} blackhole proto 222", TUNNEL_OBJECTS.start + 1)),
        ("ip", format!("link set {NAME} mtu 1400")),
        ("ip", format!("link set {NAME} alias nobody's")),
        ("ip", format!("link set {NAME} type vxlan local 192.0.2.77")),
        ("ip", format!("link del {NAME}")),
    ] {
        support::run(&bed.netns, program, &arguments);
        assert!(bed.observe().await, "{program} {arguments} is not noticed");
        bed.settle().await;
        edits += 1;
        assert_eq!(bed.tunnels.edits(), edits, "{program} {arguments}");
        assert_eq!(bed.listing(), whole, "{program} {arguments}");
        assert_eq!(bed.target("n1", Family::V4), targets, "{program} {arguments}");
        assert_eq!(bed.tunnels.problems(), Vec::<String>::new());
        let link = link::find(&mut bed.netns.netlink(), NAME).unwrap().unwrap();
        assert_eq!((link.mtu, link.mac), (1430, Some(mac_of("here"))), "{program} {arguments}");
        assert_eq!(link.alias.as_deref(), Some("cairn.network/tunnel"), "{program} {arguments}");
        let found = ip_output(&bed.netns, &format!("-d link show dev {NAME}"));
        assert!(found.contains("local 192.0.2.1 "), "{found}");
        assert_eq!(bed.pass(), Pass::default(), "{program} {arguments}: nothing is left to do");
    }

    // These take neighbours along, and the last takes objects, without a word.
    for (arguments, undone) in [
        (format!("addr del 10.244.1.1/32 dev {NAME}"), 1 + 2),
        (format!("link set {NAME} address 02:00:00:00:00:08"), 1 + 4),
        (format!("link set {NAME} down"), 1 + 4 + 4),
    ] {
        ip(&bed.netns, &arguments);
        assert!(bed.observe().await, "{arguments} is not noticed");
        bed.settle().await;
        edits += undone;
        assert_eq!((bed.listing(), bed.tunnels.edits()), (whole.clone(), edits), "{arguments}");
    }
    ip(&bed.netns, &format!("link set {NAME} down"));
    ip(&bed.netns, &format!("link set {NAME} up"));
    assert!(bed.observe().await, "down and up in a moment is not noticed");
    bed.settle().await;
    assert_eq!(bed.listing(), whole);
}

/// The best of several rounds: what the code needs, and not what a busy machine adds to it.
#[tokio::test]
async fn a_deletion_is_repaired_within_fifty_milliseconds() {
    let mut bed = Bed::new();
    for number in 0..200 {
        let node = format!("n{number}");
        bed.tunnels.set_peer(VXLAN, &node, peer(&node, &format!("192.0.2.{}", 20 + number)));
    }
    bed.settle().await;
    let whole = bed.listing();
    for (program, arguments) in [
        ("bridge", format!("fdb del {} dev {NAME}", mac_of("n7"))),
        ("ip", format!("nexthop del id {}", TUNNEL_OBJECTS.start + 7)),
        ("ip", format!("link del {NAME}")),
    ] {
        let mut fastest = Duration::MAX;
        for _ in 0..5 {
            support::run(&bed.netns, program, &arguments);
            let start = Instant::now();
            loop {
                let events: Vec<KernelEvent> = bed.monitor.next().await.unwrap();
                if events.iter().fold(false, |any, event| any | bed.tunnels.observe(event)) {
                    break;
                }
            }
            bed.pass();
            fastest = fastest.min(start.elapsed());
            bed.settle().await;
            assert_eq!(bed.listing(), whole);
        }
        // No promise is judged here: other tests run at the same time.
        println!("{program} {arguments}: repaired after {fastest:?}");
        assert!(fastest < Duration::from_secs(2), "{program} {arguments}: {fastest:?}");
    }
}

#[tokio::test]
async fn a_restart_adopts_everything_and_writes_nothing() {
    let mut bed = Bed::new();
    let nodes: Vec<(String, String)> =
        (0..200).map(|number| (format!("n{number}"), format!("192.0.2.{}", 20 + number))).collect();
    for (node, outer) in nodes.iter().rev() {
        bed.tunnels.set_peer(VXLAN, node, peer(node, outer));
    }
    bed.settle().await;
    let (whole, index) = (bed.listing(), bed.index());
    let inventory = tunnel::inventory(bed.socket.netlink()).unwrap();
    // A device, its addresses, and of each peer a neighbour for either family, where the tunnel ends,
    // and an object for either family.
    assert_eq!(inventory.len(), 1 + 2 + 5 * nodes.len());
    assert_eq!(bed.tunnels.inventory(), inventory);
    let targets: Vec<_> = nodes.iter().map(|(node, _)| bed.target(node, Family::V4)).collect();

    // One that is told of every write, also of its own.
    let mut watch = Monitor::open_in(&bed.netns).unwrap();
    bed.tunnels = Tunnels::new(ObjectUse::Objects);
    bed.tunnels.set_device(device("here", "192.0.2.1", &["10.244.1.1", "fd00:1::1"]));
    for (node, outer) in &nodes {
        bed.tunnels.set_peer(VXLAN, node, peer(node, outer));
    }
    bed.tunnels.allow_sweep();
    assert_eq!(bed.pass(), Pass { resyncs: 1, ..Pass::default() });
    assert_eq!(bed.settle().await, Pass::default());
    let told = tokio::time::timeout(QUIET, watch.next()).await;
    assert!(told.is_err(), "somebody wrote: {told:?}");
    assert_eq!(bed.tunnels.inventory(), inventory, "the same words after a restart");
    let adopted: Vec<_> = nodes.iter().map(|(node, _)| bed.target(node, Family::V4)).collect();
    assert_eq!((adopted, bed.listing(), bed.index()), (targets, whole, index));
    assert_eq!(bed.tunnels.edits(), 0);
}

#[tokio::test]
async fn five_thousand_peers_come_and_go() {
    let mut bed = Bed::new();
    bed.tunnels.allow_sweep();
    for number in 0..5000_u32 {
        let node = format!("node-{number}");
        let outer = format!("198.18.{}.{}", number >> 8, number & 255);
        bed.tunnels.set_peer(VXLAN, &node, peer(&node, &outer));
    }
    let began = Instant::now();
    let pass = bed.settle().await;
    assert_eq!((pass.refused, bed.tunnels.problems()), (0, Vec::new()), "{:?}", began.elapsed());
    assert_eq!(bed.counts(), [10_000, 5000, 10_000]);
    let targets: BTreeSet<u32> = (0..5000)
        .flat_map(|number| Family::ALL.map(|inner| bed.target(&format!("node-{number}"), inner)))
        .map(|target| match target {
            Some(Target::Object(id)) => id,
            other => panic!("{other:?}"),
        })
        .collect();
    assert_eq!(targets.len(), 10_000, "each has an object of its own");

    for number in 0..4999 {
        bed.tunnels.set_peer(VXLAN, &format!("node-{number}"), None);
    }
    let pass = bed.settle().await;
    assert_eq!((pass.created, pass.deleted), (0, 5 * 4999));
    assert_eq!(bed.counts(), [2, 1, 2]);
    bed.tunnels.remove_device(VXLAN);
    bed.settle().await;
    assert_eq!(bed.index(), None);
    assert_eq!(nexthop::list(bed.socket.netlink()).unwrap(), []);
    assert_eq!(bed.tunnels.edits(), 0);
}

#[tokio::test]
async fn what_an_earlier_process_left_stays_until_all_is_known() {
    let mut bed = Bed::new();
    for number in 1..4 {
        let node = format!("n{number}");
        bed.tunnels.set_peer(VXLAN, &node, peer(&node, &format!("192.0.2.1{number}")));
    }
    bed.settle().await;
    ip(&bed.netns, "nexthop add id 7 via 192.0.2.7 dev up proto 222");
    ip(&bed.netns, &format!("nexthop add id {} blackhole", TUNNEL_OBJECTS.start + 100));

    bed.tunnels = Tunnels::new(ObjectUse::Objects);
    bed.tunnels.set_device(device("here", "192.0.2.1", &["10.244.1.9"]));
    bed.tunnels.set_peer(VXLAN, "n1", peer("n1", "192.0.2.11"));
    let pass = bed.settle().await;
    assert_eq!((pass.created, pass.deleted), (1, 0), "the new address");
    assert_eq!(bed.counts(), [6, 3, 8]);
    bed.tunnels.allow_sweep();
    bed.settle().await;
    assert_eq!(bed.counts(), [2, 1, 4], "two objects are none of ours");
    let addresses = ip_output(&bed.netns, &format!("-brief addr show dev {NAME}"));
    let addresses: Vec<_> = addresses.split_whitespace().skip(2).collect();
    assert_eq!(addresses, ["10.244.1.9/32"]);
    assert_eq!(bed.tunnels.edits(), 0, "it was Cairn itself");

    bed.tunnels.set_device(device("here", "192.0.2.1", &[]));
    bed.settle().await;
    assert_eq!((bed.counts(), bed.tunnels.edits()), ([2, 1, 4], 0));

    // Nothing at all is wanted: the device goes, what is not ours stays.
    bed.tunnels = Tunnels::new(ObjectUse::Objects);
    bed.settle().await;
    assert!(bed.index().is_some());
    bed.tunnels.allow_sweep();
    bed.settle().await;
    assert_eq!(bed.index(), None);
    let left = nexthop::list(bed.socket.netlink()).unwrap();
    assert_eq!(
        left.iter().map(|object| object.id).collect::<Vec<_>>(),
        [7, TUNNEL_OBJECTS.start + 100]
    );
}

#[tokio::test]
async fn numbers_that_others_took_are_left_to_them() {
    let mut bed = Bed::new();
    let first = TUNNEL_OBJECTS.start;
    ip(&bed.netns, &format!("nexthop add id {first} via 192.0.2.7 dev up"));
    ip(&bed.netns, &format!("nexthop add id {} blackhole proto 222", first + 2));
    bed.tunnels.set_peer(VXLAN, "n1", peer("n1", "192.0.2.11"));
    bed.settle().await;
    assert_eq!(bed.target("n1", Family::V4), Some(Target::Object(first + 1)));
    assert_eq!(bed.target("n1", Family::V6), Some(Target::Object(first + 3)));

    // One is taken while it is not there.
    ip(&bed.netns, &format!("nexthop del id {}", first + 1));
    ip(&bed.netns, &format!("nexthop add id {} via 192.0.2.7 dev up", first + 1));
    assert!(bed.observe().await);
    bed.settle().await;
    assert_eq!(bed.target("n1", Family::V4), Some(Target::Object(first + 4)));
    let changed = bed.tunnels.take_changed();
    assert_eq!(changed, [(VXLAN, "n1".to_owned())].into());
    let objects = nexthop::list(bed.socket.netlink()).unwrap();
    for id in [first, first + 1] {
        let hop = NextHop::via(addr("192.0.2.7"), 2);
        let kept = |object: &&Object| {
            object.id == id && matches!(object.way, Way::Hop(found) if found.gateway == hop.gateway)
        };
        assert!(objects.iter().any(|object| kept(&object)), "{objects:?}");
    }
}

#[tokio::test]
async fn a_device_of_somebody_else_is_left_alone_and_told() {
    let mut bed = Bed::new();
    ip(&bed.netns, &format!("link add {NAME} type bridge"));
    let theirs = bed.index();
    bed.tunnels.allow_sweep();
    bed.tunnels.set_peer(VXLAN, "n1", peer("n1", "192.0.2.11"));
    let pass = bed.settle().await;
    assert_eq!((pass, bed.index()), (Pass::default(), theirs));
    assert_eq!(bed.target("n1", Family::V4), None);
    assert_eq!(
        bed.tunnels.problems(),
        [
            "the interface cairn.vxlan is not Cairn's and is left alone: remove it with `ip link delete \
          cairn.vxlan`, or find out which program makes it"
        ]
    );
    assert_eq!(bed.tunnels.next_deadline(), None, "it is waited for, not tried");

    ip(&bed.netns, &format!("link del {NAME}"));
    assert!(bed.observe().await);
    bed.settle().await;
    assert!(bed.target("n1", Family::V4).is_some());
    assert_eq!((bed.tunnels.problems(), bed.tunnels.ready(VXLAN)), (Vec::new(), bed.index()));

    // Somebody puts one of theirs in its place.
    ip(&bed.netns, &format!("link del {NAME}"));
    ip(&bed.netns, &format!("link add {NAME} type vxlan id 7 dstport 4789 local 192.0.2.1"));
    let theirs = bed.index();
    assert!(bed.observe().await);
    bed.settle().await;
    assert_eq!((bed.index(), bed.tunnels.ready(VXLAN)), (theirs, None));
    assert_eq!((bed.target("n1", Family::V4), bed.tunnels.problems().len()), (None, 1));
}

#[tokio::test]
async fn a_device_that_is_just_what_is_wanted_is_adopted() {
    let mut bed = Bed::new();
    ip(
        &bed.netns,
        &format!("link add {NAME} type vxlan id 198 dstport {PORT} local 192.0.2.1 nolearning"),
    );
    let index = bed.index();
    bed.tunnels.set_peer(VXLAN, "n1", peer("n1", "192.0.2.11"));
    bed.settle().await;
    assert_eq!((bed.index(), bed.tunnels.ready(VXLAN)), (index, index));
    let link = link::find(&mut bed.netns.netlink(), NAME).unwrap().unwrap();
    assert_eq!(link.alias.as_deref(), Some("cairn.network/tunnel"));
    assert!(bed.target("n1", Family::V6).is_some());
}

#[tokio::test]
async fn other_settings_make_a_new_device() {
    let mut bed = Bed::new();
    bed.tunnels.set_peer(VXLAN, "n1", peer("n1", "192.0.2.11"));
    bed.settle().await;
    let mut wanted = device("here", "192.0.2.1", &["10.244.1.1"]);
    let mut before = bed.index();
    for (vni, port, local) in
        [(199, PORT, "192.0.2.1"), (199, 4799, "192.0.2.1"), (199, 4799, "2001:db8::1")]
    {
        wanted.local = addr(local);
        if let Encapsulation::Vxlan(settings) = &mut wanted.encapsulation {
            (settings.vni, settings.port) = (vni, port);
        }
        bed.tunnels.set_device(wanted.clone());
        let outer = if local.contains(':') { "2001:db8::11" } else { "192.0.2.11" };
        bed.tunnels.set_peer(VXLAN, "n1", peer("n1", outer));
        // As after a restart, when only the kernel knows what was.
        bed.settle().await;
        let found = ip_output(&bed.netns, &format!("-d link show dev {NAME}"));
        let text = format!("vxlan id {vni} local {local} srcport 0 0 dstport {port} nolearning");
        assert!(found.contains(&text), "{found}");
        assert_ne!(bed.index(), before);
        before = bed.index();
        assert!(bed.target("n1", Family::V4).is_some(), "{:?}", bed.tunnels.problems());
        assert_eq!(bed.tunnels.edits(), 0, "it was Cairn itself");
    }
    assert_eq!(bed.target("n1", Family::V4), bed.target("n1", Family::V6), "one object for both");

    // What can be changed is changed in place.
    if let Encapsulation::Vxlan(settings) = &mut wanted.encapsulation {
        settings.dont_fragment = true;
    }
    wanted.mtu = 1400;
    bed.tunnels.set_device(wanted);
    bed.settle().await;
    let found = ip_output(&bed.netns, &format!("-d link show dev {NAME}"));
    assert!(found.contains("df set") && found.contains("mtu 1400"), "{found}");
    assert_eq!(bed.index(), before);
}

#[tokio::test]
async fn a_taken_port_is_told_and_used_once_it_is_free() {
    for (rival, text) in [
        (format!("vxlan dstport {PORT} external"), "the VXLAN device rival"),
        (format!("vxlan id 198 dstport {PORT} local 192.0.2.1"), "the VXLAN device rival"),
    ] {
        let mut bed = Bed::new();
        ip(&bed.netns, &format!("link add rival type {rival}"));
        ip(&bed.netns, "link set rival up");
        bed.tunnels.set_peer(VXLAN, "n1", peer("n1", "192.0.2.11"));
        bed.observe().await;
        let pass = bed.pass();
        assert_eq!(pass.refused, 1, "{pass:?}");
        let problems = bed.tunnels.problems();
        assert_eq!(problems.len(), 1, "{problems:?}");
        assert!(problems[0].contains(text) && problems[0].contains("4798"), "{problems:?}");
        assert_eq!(bed.target("n1", Family::V4), None);
        let due = bed.tunnels.next_deadline().expect("it is tried again");
        assert_eq!(bed.pass().created, 0, "not before its time");
        assert!(due > Instant::now() - Duration::from_secs(1));

        ip(&bed.netns, "link del rival");
        bed.observe().await;
        bed.settle().await;
        assert_eq!(bed.tunnels.problems(), Vec::<String>::new());
        assert!(bed.target("n1", Family::V4).is_some());
    }
}

/// Where IPv6 is off, IPv4 goes on.
#[tokio::test]
async fn a_refused_entry_holds_back_nothing_else() {
    let mut bed = Bed::new();
    bed.tunnels.set_peer(VXLAN, "n1", peer("n1", "192.0.2.11"));
    bed.settle().await;
    let off = |netns: &TestNetNs, value| {
        let write =
            || cairn_kernel::sysctl::write(&format!("ipv6/conf/{NAME}/disable_ipv6"), value);
        netns.run(write).unwrap().unwrap();
    };
    off(&bed.netns, 1);
    bed.tunnels.request_resync();
    bed.tunnels.set_peer(VXLAN, "n2", peer("n2", "192.0.2.12"));
    let began = Instant::now();
    bed.settle().await;
    assert!(bed.target("n2", Family::V4).is_some());
    assert_eq!(bed.target("n2", Family::V6), None);
    assert!(!bed.tunnels.problems().is_empty());
    let due = bed.tunnels.next_deadline().expect("it is tried again");
    assert!(due > began);
    off(&bed.netns, 0);
    let later = Instant::now() + Duration::from_secs(60);
    for _ in 0..3 {
        bed.tunnels.prepare(bed.socket.netlink(), later).unwrap();
    }
    assert!(bed.target("n2", Family::V6).is_some(), "{:?}", bed.tunnels.problems());
    assert_eq!(bed.tunnels.problems(), Vec::<String>::new());
}

#[tokio::test]
async fn a_kernel_without_ipip_is_told_as_the_probe_tells_it() {
    let mut bed = Bed::new();
    let wanted = Device {
        encapsulation: Encapsulation::Ipip,
        ..device("here", "192.0.2.1", &["10.244.1.2"])
    };
    bed.tunnels.set_device(wanted);
    bed.tunnels.set_peer(TunnelKind::Ipip, "n1", peer("n1", "192.0.2.11"));
    bed.tunnels.set_peer(VXLAN, "n1", peer("n1", "192.0.2.11"));
    bed.pass();
    assert!(bed.target("n1", Family::V4).is_some(), "VXLAN works all the same");
    let target = bed.tunnels.target(TunnelKind::Ipip, "n1", Family::V4).cloned();
    match feature::probe("ipip") {
        Ok(()) => {
            assert!(matches!(target, Some(Target::Object(_))));
            assert_eq!(bed.tunnels.problems(), Vec::<String>::new());
        }
        Err(error) => {
            assert_eq!((bed.tunnels.problems(), target), (vec![error.to_string()], None));
            assert!(bed.tunnels.next_deadline().is_some(), "the module may be loaded later");
        }
    }
}

const QUIET: Duration = Duration::from_millis(100);
