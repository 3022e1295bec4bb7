//! Peers on interfaces: no address is configured anywhere, and none but link-local ones is on the links.

use std::process::Command;
use std::sync::Arc;

use cairn_tests::daemon::{Daemon, Process, Setup, Transport};
use cairn_tests::frr::Frr;
use cairn_tests::link::{Far, Link, wait_for};
use cairn_tests::program::{Program, built};
use serde_json::Value;

/// A speaker that announces a prefix of each family, with a peer on each of the interfaces.
fn file(asn: u32, id: u8, their_asn: u32, interfaces: &[&str]) -> String {
    let mut text = format!(
        "\
apiVersion: cairn.network/v1alpha1
kind: BGPConfiguration
metadata: {{name: default}}
spec: {{asn: {asn}, routerID: 10.255.0.{id}, topology: Disabled, multipath: {{pathsMax: 4}}, timers: {{holdTimeSecs: 90, connectRetrySecs: 1}}}}
---
apiVersion: cairn.network/v1alpha1
kind: BGPPolicy
metadata: {{name: all}}
spec: {{rules: [{{action: Accept}}]}}
---
apiVersion: cairn.network/v1alpha1
kind: BGPAdvertisement
metadata: {{name: ours}}
spec: {{cidrs: [10.255.0.{id}/32, 'fd00:255::{id}/128']}}
"
    );
    for interface in interfaces {
        text += &format!(
            "---
apiVersion: cairn.network/v1alpha1
kind: BGPPeer
metadata: {{name: {interface}}}
spec: {{interface: {interface}, asn: {their_asn}, importPolicies: [all], exportPolicies: [all]}}
"
        );
    }
    text
}

/// The addresses that are announced, on both sides.
fn add_loopbacks(link: &Link) {
    link.here("ip addr add 10.255.0.1/32 dev lo");
    link.here("ip addr add fd00:255::1/128 dev lo");
    link.inside("ip addr add 10.255.0.2/32 dev lo");
    link.inside("ip addr add fd00:255::2/128 dev lo");
}

/// A `cairn speaker` on the other side.
struct Other {
    process: Process,
    far: Arc<Far>,
}

impl Other {
    fn start(link: &Link, text: &str) -> Other {
        let far = link.far();
        let run_dir = far.directory("other");
        far.write("/run/other.yaml", text);
        let (output, errors) = far.log("/run/other.log");
        let program = built("cairn").display().to_string();
        let mut command = far.command(&program);
        command.args(["speaker", "--fib", "-f", "/run/other.yaml", "--run-dir", &run_dir]);
        let process = far.spawn(command.stdout(output).stderr(errors));
        Other { process: Process(process), far }
    }

    fn log(&self) -> String {
        self.far.read("/run/other.log")
    }
}

/// What a command of `ip -j` prints here.
fn ip(arguments: &str) -> Value {
    let output = Command::new("ip").arg("-j").args(arguments.split(' ')).output();
    serde_json::from_slice(&output.expect("the ip command").stdout).unwrap_or_default()
}

/// The gateways of our route to a prefix with their interfaces, in order.
fn gateways(prefix: &str) -> Vec<(String, String)> {
    let family = if prefix.contains(':') { "-6" } else { "-4" };
    let routes = ip(&format!("{family} route show {prefix} proto 222"));
    let route = &routes[0];
    let hops = match &route["nexthops"] {
        Value::Array(hops) => hops.clone(),
        _ => vec![route.clone()],
    };
    let gateway = |hop: &Value| {
        let via = hop["via"]["host"].as_str().or(hop["gateway"].as_str());
        Some((via?.to_owned(), hop["dev"].as_str()?.to_owned()))
    };
    let mut gateways: Vec<_> = hops.iter().filter_map(gateway).collect();
    gateways.sort();
    gateways
}

/// Replaces the link-local address of an interface of the other side.
fn readdress(link: &Link, interface: &str, address: &str) {
    link.inside(&format!("ip -6 addr flush dev {interface} scope link"));
    link.inside(&format!("ip addr add {address}/64 dev {interface} nodad"));
}

fn until_route(prefix: &str, gateway: &[(&str, &str)], why: impl Fn() -> String) {
    let wanted: Vec<_> =
        gateway.iter().map(|(via, dev)| (via.to_string(), dev.to_string())).collect();
    let what = format!("{prefix} via {gateway:?}");
    wait_for(&what, || gateways(prefix) == wanted, || format!("{:?}\n{}", gateways(prefix), why()));
}

fn ping(link: &Link) {
    link.here("ping -c1 -W5 -I 10.255.0.1 10.255.0.2");
    link.here("ping -c1 -W5 -I fd00:255::1 fd00:255::2");
}

/// Everything that happens to a link between two of ours.
#[test]
fn two_speakers_over_a_link_without_addresses() {
    let link = Link::without_addresses();
    add_loopbacks(&link);
    readdress(&link, "uplink", "fe80::2");
    let ours = Program::start_with(&link, &file(65001, 1, 65002, &["uplink"]), &["--fib"]);
    ours.until_peer("uplink", "says what it waits for", |peer| {
        let error = peer["lastError"]["text"].as_str().unwrap_or_default();
        error.contains("no router advertisement has been heard on uplink")
    });
    let other = Other::start(&link, &file(65002, 2, 65001, &["uplink"]));
    let why = || format!("{:#}\n{}\n{}", ours.peer("uplink"), ours.log(), other.log());
    let until_routes = |via: &str| {
        until_route("10.255.0.2", &[(via, "uplink")], why);
        until_route("fd00:255::2", &[(via, "uplink")], why);
        // The way back has been there as long as the session, but the other side's kernel is its own.
        let there = || other.far.ask("ip", &["route", "show", "10.255.0.1", "proto", "222"]);
        wait_for("the way back", || there().is_some_and(|route| !route.is_empty()), why);
    };
    until_routes("fe80::2");
    ping(&link);
    let peer = ours.peer("uplink");
    assert_eq!((&peer["address"], &peer["interface"]), (&"fe80::2".into(), &"uplink".into()));
    assert_eq!(peer["negotiated"]["ipv4ViaIpv6"], true, "{peer:#}");

    // The other side has another address: the session would have gone on for 90 s.
    readdress(&link, "uplink", "fe80::3");
    until_routes("fe80::3");
    ping(&link);
    assert_eq!(ours.peer("uplink")["address"], "fe80::3");

    // The interface goes down and comes back.
    link.inside("ip link set uplink down");
    wait_for("the route goes", || gateways("10.255.0.2").is_empty(), why);
    let error = ours.peer("uplink")["lastError"]["text"].to_string();
    assert!(error.contains("uplink"), "{error}");
    link.inside("ip link set uplink up");
    link.inside("ip addr add fe80::4/64 dev uplink nodad");
    ours.until_peer("uplink", "is back", |peer| peer["state"] == "Established");
    wait_for("the routes are back", || gateways("10.255.0.2").len() == 1, why);

    // It is made anew, with another index: after a while, and at once.
    link.here("ip link del uplink");
    ours.until_peer("uplink", "misses its interface", |peer| {
        peer["lastError"]["text"].to_string().contains("there is no interface uplink")
    });
    assert_eq!(gateways("10.255.0.2"), []);
    for (address, at_once) in [("fe80::5", false), ("fe80::6", true)] {
        if at_once {
            link.here("ip link del uplink");
        }
        link.add("uplink");
        readdress(&link, "uplink", address);
        until_routes(address);
        ping(&link);
    }
}

/// Two links to one router, which has the same address on both: the sessions are told apart by their
/// interfaces, and packets take both.
#[test]
fn the_same_address_on_two_interfaces() {
    let link = Link::without_addresses();
    add_loopbacks(&link);
    link.second();
    for interface in ["uplink", "second"] {
        readdress(&link, interface, "fe80::2");
    }
    // With the hop limit checked (RFC 5082), too.
    let file = |asn, id, their_asn| {
        let text = file(asn, id, their_asn, &["uplink", "second"]);
        text.replace("importPolicies", "ttlSecurity: true, importPolicies")
    };
    let ours = Program::start_with(&link, &file(65001, 1, 65002), &["--fib"]);
    // Who does not listen on all addresses listens on those of its links, and here waits for us.
    let theirs =
        file(65002, 2, 65001).replace("topology:", "listenAddresses: [127.0.0.1], topology:");
    let theirs = theirs.replace("importPolicies", "passive: true, importPolicies");
    let other = Other::start(&link, &theirs);
    let why = || format!("{:?}\n{}\n{}", ours.ask(&["peers"]), ours.log(), other.log());
    for prefix in ["10.255.0.2", "fd00:255::2"] {
        until_route(prefix, &[("fe80::2", "second"), ("fe80::2", "uplink")], why);
    }
    ping(&link);
    link.inside("ip link set second down");
    until_route("10.255.0.2", &[("fe80::2", "uplink")], why);
    assert_eq!(ours.peer("uplink")["establishedCount"], 1);
}

/// Whose advertisement comes second is not taken for the peer, and it is said that there are two.
#[test]
fn a_second_router_on_the_link_is_a_problem_and_no_peer() {
    let link = Link::without_addresses();
    readdress(&link, "uplink", "fe80::2");
    let ours = Program::start(&link, &file(65001, 1, 65002, &["uplink"]));
    let other = Other::start(&link, &file(65002, 2, 65001, &["uplink"]));
    ours.until_peer("uplink", "is there", |peer| peer["state"] == "Established");
    // On the same wire: an interface of its own, with a speaker that has no peer there.
    link.inside("ip link add third link uplink type macvlan mode bridge");
    link.inside("ip link set third up");
    readdress(&link, "third", "fe80::7");
    let far = link.far();
    far.write("/run/third.yaml", &file(65003, 3, 65001, &["third"]));
    let run_dir = far.directory("third");
    let program = built("cairn").display().to_string();
    let mut command = far.command(&program);
    command.args(["speaker", "-f", "/run/third.yaml", "--run-dir", &run_dir]);
    // The peer says nothing for a while, as one that is being upgraded: it advertises nothing either, but its
    // kernel has its address.
    other.process.signal(libc::SIGSTOP);
    let third = far.log("/run/third.log");
    let _third = Process(far.spawn(command.stdout(third.0).stderr(third.1)));
    ours.until_peer("uplink", "is in doubt", |peer| {
        peer["doubt"].as_str().is_some_and(|doubt| doubt.contains("fe80::7"))
    });
    other.process.signal(libc::SIGCONT);
    let peer = ours.peer("uplink");
    assert_eq!((&peer["state"], &peer["address"]), (&"Established".into(), &"fe80::2".into()));
    assert_eq!(peer["establishedCount"], 1, "{}", other.log());
}

/// A session over its prefix limit rests, whatever becomes of its link, until it is reset.
#[test]
fn a_rest_outlasts_the_link() {
    let link = Link::without_addresses();
    readdress(&link, "uplink", "fe80::2");
    let ours = file(65001, 1, 65002, &["uplink"])
        .replace("importPolicies", "prefixesMax: 1, restartAfterSecs: 0, importPolicies");
    let ours = Program::start(&link, &ours);
    let two = file(65002, 2, 65001, &["uplink"]).replace("cidrs: [", "cidrs: [10.255.9.2/32, ");
    let _other = Other::start(&link, &two);
    let rests = |peer: &Value| {
        let error = peer["lastError"]["text"].as_str().unwrap_or_default();
        peer["state"] == "Idle" && error.contains("when an operator resets it")
    };
    ours.until_peer("uplink", "rests", rests);
    link.inside("ip link set uplink down");
    ours.until_peer("uplink", "knows nobody", |peer| peer["address"] == "::" && rests(peer));
    link.inside("ip link set uplink up");
    readdress(&link, "uplink", "fe80::3");
    ours.until_peer("uplink", "knows where the peer is", |peer| peer["address"] == "fe80::3");
    // As long as a session takes to come up.
    std::thread::sleep(std::time::Duration::from_secs(5));
    let peer = ours.peer("uplink");
    assert!(rests(&peer) && peer["establishedCount"] == 1, "{peer:#}");
    let _ = ours.ask(&["reset", "uplink"]);
    ours.until_peer("uplink", "tries again", |peer| peer["establishedCount"] == 2);
}

/// Two of our interfaces are on one segment: we hear ourselves, and nobody else.
#[test]
fn the_own_second_interface_is_nobody() {
    let link = Link::without_addresses();
    readdress(&link, "uplink", "fe80::2");
    link.here("ip link add second link uplink type macvlan mode bridge");
    link.here("ip link set second up");
    let ours = Program::start(&link, &file(65001, 1, 65002, &["uplink", "second"]));
    let hears_nobody = |peer: &Value| {
        let error = peer["lastError"]["text"].as_str().unwrap_or_default();
        peer["address"] == "::" && error.contains("no router advertisement has been heard")
    };
    for interface in ["uplink", "second"] {
        ours.until_peer(interface, "hears nobody", hears_nobody);
    }
    // Two rounds of advertisements of its own.
    std::thread::sleep(std::time::Duration::from_secs(5));
    for interface in ["uplink", "second"] {
        let peer = ours.peer(interface);
        assert!(hears_nobody(&peer), "{peer:#}");
    }
    let _other = Other::start(&link, &file(65002, 2, 65001, &["uplink"]));
    ours.until_peer("uplink", "is there", |peer| peer["address"] == "fe80::2");
}

/// A range with a password holds all addresses but those of links: the kernel knows no key that is none.
#[test]
fn a_range_with_a_password_keeps_no_peer_of_an_interface_out() {
    let link = Link::without_addresses();
    add_loopbacks(&link);
    readdress(&link, "uplink", "fe80::2");
    let range = "---
apiVersion: cairn.network/v1alpha1
kind: BGPPeer
metadata: {name: anybody}
spec: {address: '::/0', asn: 65003, passwordSecretRef: {name: bgp}}
---
apiVersion: v1
kind: Secret
metadata: {name: bgp}
stringData: {password: secret}
";
    // Whoever listens has the key.
    let ours = file(65001, 1, 65002, &["uplink"])
        .replace("importPolicies", "passive: true, importPolicies");
    let ours = Program::start_with(&link, &(ours + range), &["--fib"]);
    let other = Other::start(&link, &file(65002, 2, 65001, &["uplink"]));
    let why = || format!("{:#}\n{}\n{}", ours.peer("uplink"), ours.log(), other.log());
    until_route("10.255.0.2", &[("fe80::2", "uplink")], why);
}

/// FRR's `neighbor uplink interface remote-as external`.
#[tokio::test]
async fn frr_on_the_other_side() {
    let link = Link::without_addresses();
    add_loopbacks(&link);
    readdress(&link, "uplink", "fe80::2");
    let setup = Setup { remote: "uplink".into(), ..Setup::new(Transport::V6, 65002, 65001) };
    let frr = Frr::start(&link, &setup.announcing(&["10.255.0.2/32", "fd00:255::2/128"]));
    let ours = Program::start_with(&link, &file(65001, 1, 65002, &["uplink"]), &["--fib"]);
    let why = || format!("{:#}\n{}\n{}", ours.peer("uplink"), ours.log(), frr.log());
    ours.until_peer("uplink", "is there", |peer| peer["state"] == "Established");
    until_route("10.255.0.2", &[("fe80::2", "uplink")], why);
    until_route("fd00:255::2", &[("fe80::2", "uplink")], why);
    for prefix in ["10.255.0.1/32", "fd00:255::1/128"] {
        let learned = frr.until_learned(prefix).await;
        assert!(learned.next_hop.starts_with("fe80:"), "{learned:?}");
        assert_eq!(learned.as_path, "65001");
    }
    let there = || frr.ask(&["show ip route 10.255.0.1/32"]).unwrap_or_default();
    wait_for(
        "FRR's kernel has the way back",
        || there().contains("installed") || there().contains('*'),
        why,
    );
    ping(&link);

    // Another address, of which only zebra's advertisements tell: bgpd stands still. In the next session its
    // next hops are a global address, to which there is no way here, and the link-local one.
    link.inside("ip addr add 2001:db8:9::2/64 dev uplink nodad");
    frr.seen().signal(libc::SIGSTOP);
    readdress(&link, "uplink", "fe80::3");
    ours.until_peer("uplink", "is elsewhere", |peer| peer["address"] == "fe80::3");
    let errors = format!("{:?}", ours.ask(&["errors", "uplink"]));
    assert!(errors.contains("the peer on uplink has the address fe80::3 now"), "{errors}");
    frr.seen().signal(libc::SIGCONT);
    until_route("10.255.0.2", &[("fe80::3", "uplink")], why);
    until_route("fd00:255::2", &[("fe80::3", "uplink")], why);
    ping(&link);
}
