//! A large table, and those who do not read it.

use std::io::{BufRead, BufReader, Read, Write};
use std::net::Ipv4Addr;
use std::os::unix::net::UnixStream;
use std::time::Duration;

use crate::ask::{bgp, json, until_established, until_peer};
use crate::raw_peer::{RawPeer, UPDATE};
use crate::site::{Site, configuration, peer, until};

const A: &str = "192.0.2.1";
const B: &str = "192.0.2.2";
const RAW: &str = "192.0.2.9";

/// UPDATEs that announce 10.x.y.z/32 for the first `count` of them.
fn announcements(asn: u16, next_hop: Ipv4Addr, count: u32) -> Vec<Vec<u8>> {
    let mut attributes = vec![0x40, 1, 1, 0, 0x40, 2, 4, 2, 1];
    attributes.extend(asn.to_be_bytes());
    attributes.extend([0x40, 3, 4]);
    attributes.extend(next_hop.octets());
    let prefixes: Vec<u32> = (0..count).map(|number| 0x0a00_0000 + number).collect();
    let update = |prefixes: &[u32]| {
        let mut body = vec![0, 0];
        body.extend(u16::try_from(attributes.len()).expect("few").to_be_bytes());
        body.extend(&attributes);
        for prefix in prefixes {
            body.push(32);
            body.extend(prefix.to_be_bytes());
        }
        body
    };
    prefixes.chunks(800).map(update).collect()
}

fn connect(site: &Site, run_dir: &str) -> UnixStream {
    let stream = UnixStream::connect(site.path(run_dir).join("cairn.sock")).expect("a daemon");
    stream.set_read_timeout(Some(Duration::from_secs(30))).expect("a timeout");
    stream
}

#[test]
fn a_large_table_is_streamed_and_a_stalled_reader_holds_up_nothing() {
    const ROUTES: u32 = 200_000;
    let site = Site::new(&[A, B, RAW]);
    let patient = ", passive: true, timers: {holdTimeSecs: 0, connectRetrySecs: 1}, \
                   importPolicies: [all], exportPolicies: [all]";
    let policy = "---\napiVersion: cairn.network/v1alpha1\nkind: BGPPolicy\n\
                  metadata: {name: all}\nspec: {rules: [{action: Accept}]}\n";
    let of_a = [peer("good", B, 65002, A, ""), peer("raw", RAW, 65009, A, patient)];
    let of_a = configuration(65001, A.parse().expect("A"), &of_a) + policy;
    let a = site.speaker("a", &site.write("a.yaml", &of_a));
    // Its hold time is 9 s: an owner that is held up for longer loses the session.
    let of_b = configuration(65002, B.parse().expect("B"), &[peer("a", A, 65001, B, "")]);
    let _b = site.speaker("b", &site.write("b.yaml", &of_b));
    let good = until_established(&site, "a", "good");
    let raw: Ipv4Addr = RAW.parse().expect("an address");
    let mut client = RawPeer::establish(&site, raw, 65009, A.parse().expect("A"));
    for update in announcements(65009, raw, ROUTES) {
        client.send(UPDATE, &update);
    }
    until_peer(&site, "a", "raw", "sent all routes", |peer| {
        peer["routes"]["IPv4Unicast"]["accepted"] == ROUTES
    });

    // Each stops reading behind the first line.
    let mut stalled = Vec::new();
    for ask in [r#"{"routes":{}}"#, r#"{"adjIn":{"peer":"raw"}}"#, r#""watch""#] {
        let mut stream = connect(&site, "a");
        writeln!(stream, r#"{{"version":1,"ask":{ask}}}"#).expect("the daemon reads");
        stalled.push(BufReader::with_capacity(512, stream));
    }
    for reader in &mut stalled[..2] {
        let mut line = String::new();
        reader.read_line(&mut line).expect("a line");
        assert!(line.starts_with(r#"{"record":{"prefix":"10.0.0.0/32""#), "{line}");
    }
    let output = bgp(&site, "a", &["routes"]);
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let lines = output.stdout.split(|octet| *octet == b'\n').filter(|line| !line.is_empty());
    let prefixes: Vec<u32> = lines
        .skip(1)
        .map(|line| {
            let line = std::str::from_utf8(line).expect("text");
            let prefix = line.split_whitespace().nth(1).expect("a prefix");
            let address = prefix.strip_suffix("/32").expect("a host route");
            address.parse::<Ipv4Addr>().expect("an address").to_bits()
        })
        .collect();
    assert_eq!(prefixes.len(), ROUTES as usize);
    assert!(prefixes.is_sorted(), "in the order of the prefixes");
    let last = json(&site, "a", &["adj-in", "raw", "--within", "10.3.13.63/32"]);
    assert_eq!((last.len(), &last[0]["prefix"]), (1, &"10.3.13.63/32".into()));
    assert_eq!(json(&site, "a", &["route", "10.3.13.63"])[0]["prefix"], "10.3.13.63/32");

    // Routes go on to change while they stall, and sessions are what they were.
    for update in announcements(65009, raw, 1000) {
        let mut withdrawal =
            u16::try_from(update.len() - 22).expect("short").to_be_bytes().to_vec();
        withdrawal.extend(&update[22..]);
        withdrawal.extend([0, 0]);
        client.send(UPDATE, &withdrawal);
    }
    until_peer(&site, "a", "raw", "withdrew some", |peer| {
        peer["routes"]["IPv4Unicast"]["accepted"] == ROUTES - 1000
    });
    let now = until_established(&site, "a", "good");
    assert_eq!(now["sinceUnixSecs"], good["sinceUnixSecs"], "{now}");
    assert_eq!(a.lines("session down").len(), 0, "{}", a.log());

    // What a stalled reader reads late is the rest of its table, without what has gone meanwhile.
    let mut reader = stalled.remove(0);
    let mut rest = String::new();
    reader.read_to_string(&mut rest).expect("the rest");
    let end = rest.lines().last().expect("the end");
    let records = rest.lines().count();
    assert_eq!(end, format!(r#"{{"done":{{"records":{records}}}}}"#));
    assert!(records <= ROUTES as usize, "{records}");
    let mut told = String::new();
    stalled[1].read_line(&mut told).expect("an event");
    assert!(told.contains(r#"{"record":{"route""#), "{told}");
}

#[test]
fn connections_are_bounded_and_each_is_told_what_is_wrong_with_it() {
    let site = Site::new(&[A]);
    let _a =
        site.speaker("a", &site.write("a.yaml", &configuration(65001, A.parse().expect("A"), &[])));
    until("an answer", || {
        let status = site.status("a");
        if status.contains("sessions 0/0") { Ok(()) } else { Err(status) }
    });
    let answer = |request: &str| {
        let mut stream = connect(&site, "a");
        stream.write_all(request.as_bytes()).expect("the daemon reads");
        let mut answer = String::new();
        stream.read_to_string(&mut answer).expect("an answer");
        answer
    };
    for (request, said) in [
        ("{\"version\":2,\"ask\":\"status\"}\n", "speaks version 1"),
        ("{\"version\":1,\"ask\":\"stats\"}\n", "unknown variant `stats`"),
        ("{\"version\":1,\"ask\":{\"routes\":{\"peers\":1}}}\n", "unknown field `peers`"),
        ("hello\n", "cannot be read"),
        (&"x".repeat(5000), "longer than 4096 octets"),
    ] {
        let answer = answer(request);
        assert!(
            answer.starts_with("{\"error\":{\"text\":") && answer.ends_with("}}\n"),
            "{answer}"
        );
        assert!(answer.contains(said), "{said}: {answer}");
    }
    // A client of the first version says nothing.
    let report: serde_json::Value = serde_json::from_str(&answer("")).expect("one document");
    assert_eq!(report["peers"], "0/0");

    let mut watching: Vec<UnixStream> = Vec::new();
    for _ in 0..16 {
        let mut stream = connect(&site, "a");
        stream.write_all(b"{\"version\":1,\"ask\":\"watch\"}\n").expect("the daemon reads");
        watching.push(stream);
    }
    let output = bgp(&site, "a", &["peers"]);
    let said = String::from_utf8(output.stderr).expect("text");
    assert!(said.contains("16 others are being answered already: try again"), "{said}");
    watching.pop();
    until("a free place", || {
        let output = bgp(&site, "a", &["peers"]);
        let said = String::from_utf8(output.stderr).expect("text");
        if output.status.success() { Ok(()) } else { Err(said) }
    });
}
