use cairn_api::TunnelKind;
use cairn_kernel::pod::{Alias, HostRoute, NetworkHash};

use super::super::record::{Path, Tunnel};
use super::super::text;
use super::*;

fn names() -> Names {
    let hop = NextHop { onlink: true, ..NextHop::via(ip("192.0.2.7"), 3) };
    Names {
        links: [(2, "eth0".into()), (3, "cairn.vxlan".into()), (9, "cairn0".into())].into(),
        objects: [(1_128_333_312, vec![hop])].into(),
    }
}

fn ip(text: &str) -> std::net::IpAddr {
    text.parse().unwrap()
}

fn bgp(tunnel: Option<&str>) -> Origin {
    let path = Path { peer: "bgppeer/tor1".into(), next_hop: ip("192.0.2.2") };
    let tunnel = tunnel.map(|node| Tunnel { kind: TunnelKind::VXLAN, node: node.into() });
    Origin::Bgp { paths: vec![path], tunnel }
}

fn wanted(prefix: &str, leads: Option<Target>, origin: Origin) -> WantedRoute {
    WantedRoute {
        prefix: prefix.parse().unwrap(),
        table: TABLE_MAIN,
        metric: 198,
        leads: leads.map(Into::into),
        source: None,
        origin,
        waits: None,
        failure: None,
    }
}

fn via(gateway: &str) -> Target {
    Target::Unicast(vec![NextHop::via(ip(gateway), 2)])
}

fn present(of: &WantedRoute, target: Target) -> Route {
    Route { target, ..wanted("10.0.0.0/24", Some(via("192.0.2.2")), bgp(None)).with(of) }
}

impl WantedRoute {
    fn with(self, key: &WantedRoute) -> Route {
        let mut route = self.route(198).unwrap();
        (route.prefix, route.metric) = (key.prefix, key.metric);
        route
    }
}

#[test]
fn a_record_comes_back_as_it_was_told() {
    let hops = vec![
        NextHop { weight: 3, ..NextHop::via(ip("192.0.2.2"), 2) },
        NextHop { onlink: true, ..NextHop::via(ip("fe80::1"), 2) },
        NextHop::link(4),
    ];
    for target in [Target::Unicast(hops), Target::Object(7), Target::Blackhole, Target::Other(9)] {
        let record = wanted("10.0.0.0/24", Some(target.clone()), bgp(Some("n2")));
        let text = serde_json::to_string(&record).unwrap();
        let read: WantedRoute = serde_json::from_str(&text).unwrap();
        assert_eq!(read, record);
        assert_eq!(read.route(198).unwrap().target, target, "{text}");
    }
    let own = wanted("10.0.0.0/26", None, Origin::OwnBlock);
    let text = serde_json::to_string(&own).unwrap();
    assert_eq!(serde_json::from_str::<WantedRoute>(&text).unwrap(), own);
    assert_eq!(own.route(198), None);
}

#[test]
fn each_state_of_a_route_has_its_row() {
    let names = names();
    let plain = wanted("10.0.1.0/26", Some(via("192.0.2.2")), bgp(None));
    let row_of =
        |wanted: &WantedRoute, present: Option<Route>| row(wanted, 198, present.as_ref(), &names);
    let installed = row_of(&plain, Some(present(&plain, via("192.0.2.2"))));
    assert_eq!(installed.state, State::Installed);
    assert_eq!(
        text::row(&installed),
        format!(
            "  {:<20} main     198 {:<40} bgppeer/tor1\n",
            "10.0.1.0/26", "via 192.0.2.2 dev eth0"
        )
    );

    let differs = row_of(&plain, Some(present(&plain, via("192.0.2.3"))));
    assert_eq!((differs.state, differs.to.as_str()), (State::Differs, "via 192.0.2.3 dev eth0"));
    assert!(text::row(&differs).contains("not as wanted: via 192.0.2.2 dev eth0"));
    let another = Route { protocol: 150, ..present(&plain, via("192.0.2.2")) };
    assert_eq!(row_of(&plain, Some(another)).state, State::Differs, "of a former setting");

    let mut failed = plain.clone();
    failed.failure = Some(WriteFailure {
        errno: 17,
        reason: "another route is in its place".into(),
        since_unix_secs: u64::MAX,
        attempts: 4,
    });
    let missing = row_of(&failed, None);
    assert_eq!((missing.state, missing.to.as_str()), (State::Missing, "via 192.0.2.2 dev eth0"));
    let shown = text::row(&missing);
    assert!(shown.contains("not in the kernel\n"), "{shown}");
    assert!(shown.contains("in its place (for 0 s, tried 4 times)"), "{shown}");

    let mut waits = wanted("10.0.2.0/26", None, bgp(None));
    waits.waits = Some("no route to the next hop 203.0.113.1".into());
    let nowhere = row_of(&waits, None);
    assert_eq!((nowhere.state, nowhere.to.as_str()), (State::Missing, "-"));
    assert!(text::row(&nowhere).contains("no route to the next hop 203.0.113.1"));
    let left = row_of(&waits, Some(present(&waits, via("192.0.2.2"))));
    assert_eq!(left.state, State::Extra);

    let object = Target::Object(1_128_333_312);
    let through = wanted("10.0.3.0/26", Some(object.clone()), bgp(Some("n3")));
    let shown = text::row(&row_of(&through, Some(present(&through, object))));
    let to = "nhid 1128333312 via 192.0.2.7 dev cairn.vxlan onlink";
    assert!(shown.contains(to) && shown.contains("bgppeer/tor1; VXLAN to node n3"), "{shown}");

    let own = wanted("10.0.0.0/26", Some(Target::Blackhole), Origin::OwnBlock);
    let shown = text::row(&row_of(&own, Some(present(&own, Target::Blackhole))));
    assert!(shown.contains(" blackhole ") && shown.ends_with(" own block\n"), "{shown}");
    let json = serde_json::to_value(row_of(&own, None)).unwrap();
    assert_eq!((&json["origin"], &json["state"]), (&"ownBlock".into(), &"missing".into()));

    let nobody = unexplained(&present(&plain, via("192.0.2.9")), None, &names);
    let shown = text::row(&nobody);
    assert!(shown.starts_with('!') && shown.contains(" nobody\n"), "{shown}");
    assert!(shown.contains("not wanted"), "{shown}");
}

#[test]
fn several_next_hops_are_told_with_their_weights() {
    let hops = vec![NextHop::via(ip("192.0.2.2"), 2), NextHop::via(ip("192.0.2.3"), 77)];
    let text = names().target(&Target::Unicast(hops));
    assert_eq!(text, "via 192.0.2.2 dev eth0 weight 1, via 192.0.2.3 dev link 77 (gone) weight 1");
    assert_eq!(names().target(&Target::Object(5)), "nhid 5");
}

#[test]
fn a_finding_says_what_is_wanted_what_is_there_and_why() {
    let plain = wanted("10.0.1.0/26", Some(via("192.0.2.2")), bgp(None));
    let difference = |wanted: Option<Route>, present: Option<Route>| Difference {
        key: plain.key(),
        wanted,
        present,
        copies: 1,
        foreign: false,
    };
    let route = |gateway: &str| Some(present(&plain, via(gateway)));
    let names = names();
    let finding = |difference: &Difference| route_finding(difference, None, &names);
    let differs = finding(&difference(route("192.0.2.2"), route("192.0.2.3")));
    assert_eq!(
        text::finding(&differs),
        "differs  route 10.0.1.0/26 metric 198\n    \
         wanted  via 192.0.2.2 dev eth0\n    present via 192.0.2.3 dev eth0\n"
    );
    let former = route("192.0.2.2").map(|route| Route { protocol: 150, ..route });
    let renumbered = finding(&difference(route("192.0.2.2"), former));
    assert_eq!(renumbered.present.unwrap(), "via 192.0.2.2 dev eth0 proto 150");
    assert_eq!(finding(&difference(None, route("192.0.2.3"))).state, State::Extra);
    let clash = Difference { foreign: true, ..difference(route("192.0.2.2"), None) };
    let clash = finding(&clash);
    assert_eq!(clash.state, State::Missing);
    assert!(clash.why.unwrap().contains("another program"));
    let doubled = Difference { copies: 2, ..difference(route("192.0.2.2"), route("192.0.2.2")) };
    let doubled = finding(&doubled);
    assert!(doubled.why.unwrap().contains("there are 2 of it"));
    let waits = waiting(&plain.key(), "its owner n3 does not take VXLAN packets yet");
    assert!(text::finding(&waits).contains("why     its owner n3"));
}

#[test]
fn pods_routes_are_explained_by_their_interfaces() {
    let pod = PodAttachment {
        host_ifname: "cairn0".into(),
        ifindex: 9,
        mtu: 1500,
        alias: Some(Alias {
            container_id: "c1".into(),
            ifname: "eth0".into(),
            pod_uid: None,
            network: NetworkHash::of("cairn"),
            addresses: vec![ip("10.0.0.5"), ip("fd00::5")],
        }),
        alias_unread: None,
        routes: vec![HostRoute { address: ip("10.0.0.5"), source: None }],
    };
    let to = |prefix: &str, ifindex| Route {
        prefix: prefix.parse().unwrap(),
        table: TABLE_MAIN,
        metric: 0,
        protocol: POD_ROUTE_PROTOCOL,
        target: Target::Unicast(vec![NextHop::link(ifindex)]),
        prefsrc: None,
    };
    let rows = pod_rows(&[to("10.0.0.5/32", 9), to("10.0.0.6/32", 2)], &[pod], &names());
    let told: Vec<_> =
        rows.iter().map(|row| (row.prefix.to_string(), row.state, row.origin.is_some())).collect();
    assert_eq!(
        told,
        [
            ("10.0.0.5/32".into(), State::Installed, true),
            ("10.0.0.6/32".into(), State::Extra, false),
            ("fd00::5/128".into(), State::Missing, true),
        ]
    );
    let findings: Vec<_> = rows.iter().filter_map(pod_finding).map(|f| f.name).collect();
    assert_eq!(findings, ["10.0.0.6/32", "fd00::5/128"]);
    assert!(text::row(&rows[0]).ends_with("container c1\n"));
    let json = serde_json::to_value(&rows[0]).unwrap();
    assert_eq!(json["origin"]["pod"]["interface"], "cairn0", "{json}");
}

#[test]
fn parts_of_tunnels_are_compared_by_name() {
    let parts = |all: &[(&str, &str, &str)]| -> Parts {
        let part = |(what, name, words): &(&str, &str, &str)| {
            (((*what).to_owned(), (*name).to_owned()), (*words).to_owned())
        };
        all.iter().map(part).collect()
    };
    let wanted = parts(&[
        ("device", "cairn.vxlan", "vxlan id 198"),
        ("neighbour", "192.0.2.7 dev cairn.vxlan", "02:00:00:00:00:07"),
        ("neighbour", "192.0.2.8 dev cairn.vxlan", "02:00:00:00:00:08"),
    ]);
    let present = parts(&[
        ("device", "cairn.vxlan", "vxlan id 198"),
        ("neighbour", "192.0.2.7 dev cairn.vxlan", "02:00:00:00:00:99"),
        ("device", "cairn.ipip", "ipip"),
    ]);
    let told: Vec<_> = tunnel_findings(&wanted, &present)
        .into_iter()
        .map(|finding| (finding.state, finding.name))
        .collect();
    assert_eq!(
        told,
        [
            (State::Differs, "192.0.2.7 dev cairn.vxlan".to_owned()),
            (State::Missing, "192.0.2.8 dev cairn.vxlan".to_owned()),
            (State::Extra, "cairn.ipip".to_owned()),
        ]
    );
    assert!(tunnel_findings(&wanted, &wanted).is_empty());
}
