//! Each command, for people and for programs.

use std::cell::Cell;
use std::net::Ipv4Addr;

use rustix::process::Signal;
use serde_json::{Value, json};

use crate::ask::{Watch, json, refused, text, until_established, until_peer};
use crate::example::{EXAMPLE, client};
use crate::raw_peer::{RawPeer, UPDATE, announcement, message};
use crate::site::{Daemon, Site, configuration, peer, until};

/// The example with its two peers, all established, and p1's route at the hub.
fn example() -> (Site, [Daemon; 3]) {
    let site = Site::new(&["10.99.0.1", "10.99.1.1", "10.99.1.2"]);
    let hub = site.speaker("hub", &site.write("hub.yaml", EXAMPLE));
    let p1 = client(65001, "10.99.1.1", "172.16.1.0/24", "");
    let p1 = site.speaker("p1", &site.write("p1.yaml", &p1));
    let p2 = client(65000, "10.99.1.2", "172.16.2.0/24", "");
    let p2 = site.speaker("p2", &site.write("p2.yaml", &p2));
    let received = |peer: &Value| peer["routes"]["IPv4Unicast"]["accepted"] == 1;
    until_peer(&site, "hub", "p1", "sent its route", received);
    until_peer(&site, "hub", "p2", "sent its route", received);
    (site, [hub, p1, p2])
}

#[test]
fn peers_and_tables_are_shown() {
    let (site, _daemons) = example();
    let told = |peer: &Value| peer["routes"]["IPv4Unicast"]["advertised"] == 1;
    let p1 = until_peer(&site, "hub", "p1", "was told a route", told);
    assert_eq!((&p1["name"], &p1["remoteAsn"]), (&json!("p1"), &json!(65001)));
    assert_eq!((&p1["disabled"], &p1["errors"]), (&json!(false), &json!(0)));
    let negotiated = &p1["negotiated"];
    assert_eq!(negotiated["holdTimeSecs"], 9);
    assert_eq!(negotiated["families"], json!(["IPv4Unicast"]));
    assert_eq!(negotiated["fourOctetAs"], true);
    assert_eq!(negotiated["localAddress"], "10.99.0.1");
    let all = json(&site, "hub", &["peers"]);
    assert_eq!(all.iter().map(|peer| &peer["name"]).collect::<Vec<_>>(), ["p1", "p2"]);
    let screen = text(&site, "hub", &["peers"]);
    let lines: Vec<&str> = screen.lines().collect();
    assert!(lines[0].starts_with("PEER  ADDRESS    AS     STATE        FOR"), "{screen}");
    assert!(lines[1].starts_with("p1    10.99.1.1  65001  Established  "), "{screen}");
    assert!(lines[1].contains("1/1/1") && lines[1].ends_with('-'), "{screen}");
    assert!(lines[2].contains("no IPv6Unicast: "), "{screen}");
    let detail = text(&site, "hub", &["peers", "10.99.1.1"]);
    for line in ["peer             p1\n", "hold time        9 s\n", "4-octet AS       yes\n"] {
        assert!(detail.contains(line), "{line:?}\n{detail}");
    }

    // Loc-RIB, by peer, family and prefix.
    let prefixes = |words: &[&str]| -> Vec<String> {
        let routes = json(&site, "hub", words);
        routes.iter().map(|route| route["prefix"].as_str().expect("text").to_owned()).collect()
    };
    assert_eq!(prefixes(&["routes"]), ["172.16.1.0/24", "172.16.2.0/24"]);
    assert_eq!(prefixes(&["routes", "--peer", "p2"]), ["172.16.2.0/24"]);
    assert_eq!(prefixes(&["routes", "--within", "172.16.1.0/24"]), ["172.16.1.0/24"]);
    assert!(prefixes(&["routes", "--family", "ipv6"]).is_empty());
    let screen = text(&site, "hub", &["routes", "--peer", "p1"]);
    let line = screen.lines().nth(1).expect("a route");
    assert!(line.starts_with("> 172.16.1.0/24        10.99.1.1        p1 "), "{screen}");
    assert!(line.ends_with("65001, communities 65001:7"), "{screen}");

    let received = json(&site, "hub", &["adj-in", "p1"]);
    assert_eq!(received.len(), 1);
    assert_eq!(received[0]["received"]["asPath"], "65001");
    let screen = text(&site, "hub", &["adj-in", "p1"]);
    assert!(screen.contains("; accepted by bgppolicy/all rule 0"), "{screen}");
    let told = json(&site, "hub", &["adj-out", "p1"]);
    assert_eq!((told.len(), &told[0]["prefix"]), (1, &json!("172.16.2.0/24")));
    let told = &told[0]["advertised"];
    assert_eq!((&told["nextHop"], &told["asPath"]), (&json!("10.99.0.1"), &json!("65000")));
    assert_eq!((&told["from"], &told["localPref"]), (&json!("p2"), &Value::Null));
    let screen = text(&site, "hub", &["adj-out", "p2"]);
    let line = screen.lines().nth(1).expect("a route");
    assert!(line.starts_with("172.16.1.0/24        10.99.1.1        p1 "), "{screen}");
    assert!(line.contains(" 100 "), "LOCAL_PREF stays in the AS: {screen}");
    assert!(line.ends_with("bgppolicy/all rule 0"), "{screen}");
}

#[test]
fn a_route_is_explained() {
    let (site, daemons) = example();
    // p2 announces the same prefix, as its own.
    let p2 = client(65000, "10.99.1.2", "172.16.2.0/24, 172.16.1.0/24", "");
    site.write("p2.yaml", &p2);
    let [.., daemon] = &daemons;
    daemon.signal(Signal::HUP);
    let explained = until("both candidates", || {
        let told = json(&site, "hub", &["route", "172.16.1.77"]);
        let both = told[0]["candidates"].as_array().is_some_and(|all| all.len() == 2);
        both.then(|| told[0].clone()).ok_or_else(|| format!("{told:?}"))
    });
    assert_eq!(explained["prefix"], "172.16.1.0/24");
    let [best, other] = &explained["candidates"].as_array().expect("two")[..] else {
        panic!("{explained}")
    };
    // What p2 originates has the shorter AS_PATH.
    assert_eq!((&best["peer"], &best["best"]), (&json!("p2"), &json!(true)));
    assert_eq!((&other["peer"], &other["lostAt"]), (&json!("p1"), &json!("AsPathLength")));
    let screen = text(&site, "hub", &["route", "172.16.1.0/24"]);
    for part in [
        "172.16.1.0/24\n",
        "  from p2: best\n",
        "  from p1: not used: longer AS_PATH\n",
        "accepted by bgppolicy/all rule 0",
        "  told to p1\n      next hop 10.99.0.1, AS path 65000",
        "      announced by bgppolicy/all rule 0\n",
        "  not told to p2: the best route came from this peer\n",
    ] {
        assert!(screen.contains(part), "{part:?}\n{screen}");
    }
    let nowhere = refused(&site, "hub", &["route", "192.0.2.1"]);
    assert_eq!(nowhere, "cairn: there is no route to 192.0.2.1");
    let nonsense = refused(&site, "hub", &["route", "p1"]);
    assert!(nonsense.contains("\"p1\" is neither a prefix nor an address"), "{nonsense}");
}

#[test]
fn rejected_routes_are_in_adj_in_with_the_rule_that_rejected_them() {
    let site = Site::new(&["10.99.0.1", "10.99.1.1"]);
    let rules =
        "rules: [{match: {prefixes: [{prefix: 172.16.1.0/24}]}, action: Reject}, {action: Accept}]";
    let hub = EXAMPLE.replace("rules: [{action: Accept}]", rules);
    let _hub = site.speaker("hub", &site.write("hub.yaml", &hub));
    let p1 = client(65001, "10.99.1.1", "172.16.1.0/24, 172.16.3.0/24", "");
    let _p1 = site.speaker("p1", &site.write("p1.yaml", &p1));
    let both = |peer: &Value| peer["routes"]["IPv4Unicast"]["received"] == 2;
    until_peer(&site, "hub", "p1", "sent both routes", both);
    let screen = text(&site, "hub", &["adj-in", "p1"]);
    assert!(screen.contains("; rejected by bgppolicy/all rule 0\n"), "{screen}");
    assert!(screen.contains("; accepted by bgppolicy/all rule 1\n"), "{screen}");
    let used = json(&site, "hub", &["routes"]);
    assert_eq!((used.len(), &used[0]["prefix"]), (1, &json!("172.16.3.0/24")));
    let screen = text(&site, "hub", &["route", "172.16.1.0/24"]);
    assert!(screen.contains("from p1: not used: not eligible\n"), "{screen}");
    assert!(screen.contains("rejected by bgppolicy/all rule 0\n"), "{screen}");
    assert!(screen.contains("told to nobody"), "{screen}");
}

#[test]
fn a_malformed_update_is_kept_with_all_its_octets() {
    let (a, raw): (Ipv4Addr, Ipv4Addr) = ([192, 0, 2, 1].into(), [192, 0, 2, 9].into());
    let site = Site::new(&["192.0.2.1", "192.0.2.9"]);
    let to_raw = peer("raw", "192.0.2.9", 65009, "192.0.2.1", ", passive: true");
    let _a = site.speaker("a", &site.write("a.yaml", &configuration(65001, a.into(), &[to_raw])));
    let mut client = RawPeer::establish(&site, raw, 65009, a);
    until_established(&site, "a", "raw");
    // ORIGIN has three values.
    let update = announcement(65009, raw, 7);
    client.send(UPDATE, &update);
    let with_error = |peer: &Value| peer["errors"] == 1;
    until_peer(&site, "a", "raw", "has an error", with_error);
    let octets = message([0xff; 16], UPDATE, &update);
    let hex: String = octets.iter().map(|octet| format!("{octet:02x}")).collect();
    let records = json(&site, "a", &["errors", "raw", "--hex"]);
    assert_eq!(records.len(), 1, "{records:?}");
    assert_eq!(records[0]["message"], hex);
    assert_eq!(
        (&records[0]["kind"], &records[0]["prefixes"]),
        (&json!("treated-as-withdraw"), &json!(["10.9.0.0/16"]))
    );
    assert!(records[0]["text"].as_str().expect("text").contains("ORIGIN"), "{records:?}");
    let screen = text(&site, "a", &["errors", "raw", "--hex"]);
    let dumped: String = screen
        .lines()
        .filter_map(|line| line.strip_prefix("      ")?.split_once("  "))
        .map(|(_, octets)| octets.replace(' ', ""))
        .collect();
    assert_eq!(dumped, hex, "{screen}");
    assert!(screen.contains("prefixes 10.9.0.0/16\n"), "{screen}");
    // Without the option only their number.
    let screen = text(&site, "a", &["errors", "raw"]);
    assert!(screen.contains(&format!("message of {} octets: --hex", octets.len())), "{screen}");
    assert!(json(&site, "a", &["errors", "raw"])[0].get("message").is_none());
}

#[test]
fn sessions_are_watched_and_reset() {
    let (site, daemons) = example();
    let watch = Watch::start(&site, "hub", &["-o", "json"]);
    let before = until_established(&site, "hub", "p1");
    // That it is told already shows in what it is told, so routes change until then.
    let (round, [_, p1, _]) = (Cell::new(0), &daemons);
    until("a change of a route", || {
        round.set((round.get() + 1) % 250);
        let cidr = format!("172.16.1.0/24, 172.20.{}.0/24", round.get());
        site.write("p1.yaml", &client(65001, "10.99.1.1", &cidr, ""));
        p1.signal(Signal::HUP);
        let seen = watch.text();
        seen.contains("\"prefix\":\"172.20.").then_some(()).ok_or(seen)
    });
    for words in [["reset", "p1", "--soft", "in"], ["reset", "p1", "--soft", "out"]] {
        let done = text(&site, "hub", &words);
        assert!(done.starts_with("p1: "), "{done}");
    }
    let history = json(&site, "hub", &["history", "p1"]);
    let last = history.last().expect("it has been established");
    assert_eq!((&last["to"], &last["count"]), (&json!("Established"), &json!(1)), "{history:?}");
    let done = json(&site, "hub", &["reset", "p1"]);
    assert_eq!(done[0]["peer"], "p1");
    let down = watch.until_line(&["\"session\"", "\"peer\":\"p1\"", "\"to\":\"Idle\""]);
    assert!(down.contains("reset by an operator"), "{down}");
    watch.until_line(&["\"peer\":\"p1\"", "\"to\":\"Established\""]);
    watch.until_line(&["\"route\"", "\"prefix\":\"172.16.1.0/24\"", "\"best\":null"]);
    let again = |peer: &Value| peer["establishedCount"] == 2 && peer["state"] == "Established";
    let after = until_peer(&site, "hub", "p1", "is back", again);
    assert_eq!(before["establishedCount"], 1, "soft resets end nothing");
    assert_eq!(after["lastDown"]["reason"], "reset by an operator");
    // RFC 4486 and RFC 9003: the other side is told.
    let screen = text(&site, "p1", &["errors", "hub"]);
    assert!(screen.contains("administrative reset: \"reset by an operator\""), "{screen}");
    drop(watch);
    let watch = Watch::start(&site, "hub", &[]);
    until("the session's end and its new beginning", || {
        text(&site, "hub", &["reset", "p1"]);
        let seen = watch.text();
        let told = seen.contains(" session p1 Established -> Idle: reset by an operator\n")
            && seen.contains(" session p1 OpenConfirm -> Established\n")
            && seen.contains(" route 172.16.1.0/24 gone\n");
        told.then_some(()).ok_or(seen)
    });
}

#[test]
fn who_is_meant_must_be_clear() {
    let (site, _daemons) = example();
    for words in [
        &["peers", "p"][..],
        &["adj-in", "p"],
        &["adj-out", "p"],
        &["errors", "p"],
        &["routes", "--peer", "p"],
        &["reset", "p"],
        &["disable", "p"],
        &["enable", "p"],
    ] {
        let said = refused(&site, "hub", words);
        assert_eq!(said, "cairn: no peer is called \"p\"; there are: p1, p2", "{words:?}");
    }
    let nobody = refused(&site, "nobody", &["peers"]);
    assert!(nobody.contains("no agent or speaker answers on"), "{nobody}");
}
