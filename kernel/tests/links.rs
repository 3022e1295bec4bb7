//! Namespaces, links, addresses and neighbours on the running kernel.

mod support;

use std::os::fd::AsFd;

use cairn_kernel::link::{self, DuplicateDetection, LinkLocal, LinkSettings, Mac, Veth, VethEnd};
use cairn_kernel::route::{self, NextHop, Route, Target};
use cairn_kernel::{Errno, Error, NetNs};
use support::{TestNetNs, veth_up};

#[test]
fn a_namespace_is_named_entered_and_removed() {
    let before = NetNs::current().unwrap().identity().unwrap();
    let netns = TestNetNs::create();
    let identity = netns.identity().unwrap();
    assert_ne!(identity, before);
    assert_eq!(NetNs::open(&netns.name).unwrap().identity().unwrap(), identity);
    assert_eq!(NetNs::names(&netns.name).unwrap(), std::slice::from_ref(&netns.name));

    let inside = netns.run(|| NetNs::current().unwrap().identity().unwrap()).unwrap();
    assert_eq!(inside, identity);
    assert_eq!(NetNs::current().unwrap().identity().unwrap(), before, "the caller stays");

    let mut netlink = netns.netlink();
    let links = link::list(&mut netlink).unwrap();
    assert_eq!(links.len(), 1);
    assert!(links[0].is_up() && links[0].is_loopback(), "{links:?}");

    NetNs::delete(&netns.name).unwrap();
    NetNs::delete(&netns.name).unwrap();
    assert!(NetNs::names(&netns.name).unwrap().is_empty());
    assert!(NetNs::open(&netns.name).unwrap_err().is_absent());
}

#[test]
fn only_network_namespaces_are_taken_for_one() {
    let file = std::fs::File::open("/proc/self/ns/mnt").unwrap();
    assert!(matches!(NetNs::from_fd(file.into()), Err(Error::NotNetNs(_))));
    let file = std::fs::File::open("/dev/null").unwrap();
    assert!(matches!(NetNs::from_fd(file.into()), Err(Error::NotNetNs(_))));
    for name in ["", ".", "..", "a/b", "a\0b"] {
        assert!(matches!(NetNs::create(name), Err(Error::InvalidName(_))), "{name:?}");
    }
    let netns = TestNetNs::create();
    let copy = netns.as_fd().try_clone_to_owned().unwrap();
    assert_eq!(NetNs::from_fd(copy).unwrap().identity().unwrap(), netns.identity().unwrap());
}

#[test]
fn a_taken_name_is_refused_and_the_namespace_stays() {
    let netns = TestNetNs::create();
    let error = NetNs::create(&netns.name).unwrap_err();
    assert!(error.is_present(), "{error}");
    assert_eq!(NetNs::open(&netns.name).unwrap().identity().unwrap(), netns.identity().unwrap());
}

#[test]
fn a_veth_pair_is_made_across_namespaces() {
    let (here, there) = (TestNetNs::create(), TestNetNs::create());
    let (mut near, mut far) = (here.netlink(), there.netlink());
    let mac = |last| Mac([2, 0, 0, 0, 0, last]);
    let pair = Veth {
        end: VethEnd { name: "cali1", index: Some(101), mac: Some(mac(1)) },
        peer: VethEnd { name: "eth0", index: Some(7), mac: Some(mac(2)) },
        peer_netns: Some(there.as_fd()),
        mtu: Some(1400),
    };
    link::create_veth(&mut near, &pair).unwrap();
    let again = link::create_veth(&mut near, &pair).unwrap_err();
    assert!(again.is_present(), "{again}");

    let end = link::find(&mut near, "cali1").unwrap().unwrap();
    let peer = link::find(&mut far, "eth0").unwrap().unwrap();
    assert_eq!((end.index, end.mac, end.mtu), (101, Some(mac(1)), 1400));
    assert_eq!((peer.index, peer.mac, peer.mtu), (7, Some(mac(2)), 1400));
    assert_eq!((end.kind.as_deref(), end.peer), (Some("veth"), Some(7)));
    assert!(end.peer_netns.is_some() && !end.is_up());

    let settings = LinkSettings {
        up: Some(true),
        alias: Some("cairn 1 pod"),
        group: Some(77),
        link_local: Some(LinkLocal::None),
        ..LinkSettings::default()
    };
    link::set(&mut near, 101, &settings).unwrap();
    link::set_up(&mut far, 7).unwrap();
    let end = link::find_index(&mut near, 101).unwrap().unwrap();
    assert!(end.is_up() && end.is_running());
    assert_eq!((end.alias.as_deref(), end.group), (Some("cairn 1 pod"), 77));
    let own = link::addresses(&mut near).unwrap();
    assert!(own.iter().all(|address| address.ifindex != 101), "no link-local address: {own:?}");

    link::delete_group(&mut near, 77).unwrap();
    assert!(link::find(&mut near, "cali1").unwrap().is_none());
    assert!(link::find(&mut far, "eth0").unwrap().is_none());
    link::delete(&mut near, 101).unwrap();
    link::delete_group(&mut near, 77).unwrap();
}

#[test]
fn a_bridge_takes_and_releases_ports() {
    let netns = TestNetNs::create();
    let mut netlink = netns.netlink();
    link::create_bridge(&mut netlink, "br0").unwrap();
    let bridge = link::find(&mut netlink, "br0").unwrap().unwrap();
    assert_eq!(bridge.kind.as_deref(), Some("bridge"));
    let port = veth_up(&mut netlink, "port", &[]);
    link::set_master(&mut netlink, port.index, bridge.index).unwrap();
    assert_eq!(link::find(&mut netlink, "port").unwrap().unwrap().master, Some(bridge.index));
    link::set_master(&mut netlink, port.index, 0).unwrap();
    assert_eq!(link::find(&mut netlink, "port").unwrap().unwrap().master, None);
}

#[test]
fn addresses_routes_and_neighbours_of_both_families() {
    let netns = TestNetNs::create();
    let mut netlink = netns.netlink();
    let end = veth_up(&mut netlink, "up", &["192.0.2.1/24", "2001:db8::1/64"]);
    let own = link::addresses(&mut netlink).unwrap();
    for text in ["192.0.2.1/24", "2001:db8::1/64"] {
        let address = own.iter().find(|address| address.address == text.parse().unwrap()).unwrap();
        assert_eq!((address.ifindex, address.is_tentative()), (end.index, false), "{text}");
    }
    let again = "192.0.2.1/24".parse().unwrap();
    link::add_address(&mut netlink, end.index, again, DuplicateDetection::Skip).unwrap();

    for (prefix, gateway) in [("0.0.0.0/0", "192.0.2.254"), ("::/0", "2001:db8::ff")] {
        let route = Route {
            prefix: prefix.parse().unwrap(),
            table: route::TABLE_MAIN,
            metric: 10,
            protocol: route::PROTOCOL_STATIC,
            target: Target::Unicast(vec![NextHop::via(gateway.parse().unwrap(), end.index)]),
            prefsrc: None,
        };
        link::add_route(&mut netlink, &route).unwrap();
        assert!(link::add_route(&mut netlink, &route).unwrap_err().is_present());
        link::set_neighbour(&mut netlink, end.index, gateway.parse().unwrap(), Mac([2; 6]))
            .unwrap();
        link::delete_neighbour(&mut netlink, end.index, gateway.parse().unwrap()).unwrap();
        link::delete_neighbour(&mut netlink, end.index, gateway.parse().unwrap()).unwrap();
        let foreign = Route { protocol: 77, ..route.clone() };
        link::delete_route(&mut netlink, &foreign).unwrap();
        assert!(link::add_route(&mut netlink, &route).unwrap_err().is_present(), "still there");
        link::delete_route(&mut netlink, &route).unwrap();
        link::add_route(&mut netlink, &route).unwrap();
    }
    link::delete_address(&mut netlink, end.index, again).unwrap();
    link::delete_address(&mut netlink, end.index, again).unwrap();
    let own = link::addresses(&mut netlink).unwrap();
    assert!(own.iter().all(|address| address.address != again));
}

#[test]
fn a_refusal_says_what_was_asked_and_why() {
    let netns = TestNetNs::create();
    let mut netlink = netns.netlink();
    let error = link::set_up(&mut netlink, 4711).unwrap_err();
    assert_eq!(error.errno(), Some(Errno::NODEV));
    assert!(error.to_string().starts_with("cannot change link 4711"), "{error}");
}
