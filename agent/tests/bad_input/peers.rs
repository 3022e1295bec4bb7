//! Peers that are wrong, break the protocol, or cannot be listened for.

use std::net::Ipv4Addr;
use std::time::Duration;

use crate::raw_peer::{KEEPALIVE, RawPeer, UPDATE, announcement, message};
use crate::site::{Daemon, Site, configuration, peer, until};

const A: &str = "192.0.2.1";
const B: &str = "192.0.2.2";
const C: &str = "192.0.2.3";

/// The speaker `a` of AS 65001 with `peers` and one good peer, `b` of AS 65002, as `good`.
fn pair(site: &Site, peers: &[String]) -> (Daemon, Daemon) {
    let mut of_a = peers.to_vec();
    of_a.push(peer("good", B, 65002, A, ""));
    let of_b = [peer("a", A, 65001, B, "")];
    let a = site.write("a.yaml", &configuration(65001, A.parse().expect("an address"), &of_a));
    let b = site.write("b.yaml", &configuration(65002, B.parse().expect("an address"), &of_b));
    (site.speaker("a", &a), site.speaker("b", &b))
}

/// The good session has been up since it was `first` seen.
fn assert_undisturbed(site: &Site, a: &Daemon, first: &serde_json::Value) {
    let now = site.session("a", "good");
    assert_eq!((&now["state"], &now["since"]), (&first["state"], &first["since"]), "{now}");
    let told = a.lines("peer=good");
    let sessions: Vec<_> = told.iter().filter(|line| !line.contains("no session:")).collect();
    assert_eq!(sessions.len(), 1, "established once and never down: {told:#?}");
}

#[test]
fn a_peer_with_the_wrong_as_is_named_with_both_and_the_others_go_on() {
    let site = Site::new(&[A, B, C]);
    let (a, _b) = pair(&site, &[peer("wrong", C, 65003, A, "")]);
    let first = site.until_established("a", "good");
    let of_c = configuration(65033, C.parse().expect("C"), &[peer("a", A, 65001, C, "")]);
    let c = site.speaker("c", &site.write("c.yaml", &of_c));
    let screen = site.until_status("a", "peer says AS 65033, configured is 65003");
    assert!(screen.contains("correct spec.asn of the BGPPeer or the peer"), "{screen}");
    assert!(screen.contains("sessions 1/2") && screen.contains("wrong"), "{screen}");
    site.until_status("c", "the peer refuses our AS 65033");
    // Several attempts later.
    std::thread::sleep(Duration::from_secs(4));
    assert_undisturbed(&site, &a, &first);
    for daemon in [&a, &c] {
        let warnings = daemon.lines("WARN");
        assert!(warnings.len() <= 2, "{warnings:#?}");
    }
    let told = a.lines("peer says AS 65033");
    assert_eq!(told.len(), 1, "the log has it once: {told:#?}");
    assert!(told[0].contains("wrong"), "{told:?}");
}

#[test]
fn a_malformed_attribute_withdraws_its_prefixes_and_nothing_else() {
    let raw: Ipv4Addr = "192.0.2.9".parse().expect("an address");
    let site = Site::new(&[A, B, "192.0.2.9"]);
    let (a, _b) = pair(&site, &[peer("raw", "192.0.2.9", 65009, A, ", passive: true")]);
    let first = site.until_established("a", "good");
    let mut client = RawPeer::establish(&site, raw, 65009, A.parse().expect("A"));
    let since = site.until_established("a", "raw")["since"].clone();
    client.send(UPDATE, &announcement(65009, raw, 0));
    let received = |count: u64| {
        until(&format!("{count} prefixes of the peer"), || {
            let session = site.session("a", "raw");
            (session["received"] == count).then_some(()).ok_or(session.to_string())
        });
    };
    received(1);
    client.send(UPDATE, &announcement(65009, raw, 7));
    received(0);
    client.send(KEEPALIVE, &[]);
    client.send(UPDATE, &announcement(65009, raw, 0));
    received(1);
    let session = site.session("a", "raw");
    assert_eq!((&session["state"], &session["since"]), (&"Established".into(), &since));
    let warnings = a.lines("WARN");
    assert_eq!(warnings.len(), 1, "{warnings:#?}");
    assert!(warnings[0].contains("peer=raw"), "{warnings:?}");
    assert!(warnings[0].contains("ORIGIN") && warnings[0].contains("session goes on"));
    assert_undisturbed(&site, &a, &first);
}

#[test]
fn a_bad_header_ends_that_session_with_the_right_notification() {
    let raw: Ipv4Addr = "192.0.2.9".parse().expect("an address");
    let site = Site::new(&[A, B, "192.0.2.9"]);
    let (a, _b) = pair(&site, &[peer("raw", "192.0.2.9", 65009, A, ", passive: true")]);
    let first = site.until_established("a", "good");
    let mut client = RawPeer::establish(&site, raw, 65009, A.parse().expect("A"));
    site.until_established("a", "raw");
    let mut marker = [0xff; 16];
    marker[7] = 0;
    client.send_octets(&message(marker, KEEPALIVE, &[]));
    // RFC 4271 section 6.1: Message Header Error, Connection Not Synchronized.
    assert_eq!(client.receive_notification(), (1, 1, Vec::new()));
    let screen = site.until_status("a", "sessions 1/2");
    assert!(screen.contains("the peer broke the protocol"), "{screen}");
    a.until_log("session down");
    let warnings = a.lines("WARN");
    assert_eq!(warnings.len(), 1, "{warnings:#?}");
    assert!(warnings[0].contains("peer=raw") && warnings[0].contains("malformed"), "{warnings:?}");
    assert_undisturbed(&site, &a, &first);
    // It may come back.
    let _client = RawPeer::establish(&site, raw, 65009, A.parse().expect("A"));
    site.until_established("a", "raw");
}

#[test]
fn a_taken_port_is_explained_and_taken_back_when_it_is_free() {
    let site = Site::new(&[A, B]);
    let other = site.write("other.yaml", &configuration(65099, A.parse().expect("A"), &[]));
    let holder = site.speaker("other", &other);
    holder.until_log("listening");
    // B waits for A, so that the session comes from A's side.
    let of_a = configuration(65001, A.parse().expect("A"), &[peer("good", B, 65002, A, "")]);
    let passive = [peer("a", A, 65001, B, ", passive: true")];
    let of_b = configuration(65002, B.parse().expect("B"), &passive);
    let _b = site.speaker("b", &site.write("b.yaml", &of_b));
    let a = site.speaker("a", &site.write("a.yaml", &of_a));
    let first = site.until_established("a", "good");
    let sentence = format!(
        "port 179 of {A} is taken by another process (cairn, process {}): stop it or set another \
         listenPort; outgoing sessions go on",
        holder.id()
    );
    site.until_status("a", &format!("problem: {sentence}"));
    // Longer than the pause between two attempts.
    std::thread::sleep(Duration::from_secs(6));
    let warnings = a.lines("WARN");
    assert_eq!(warnings.len(), 1, "{warnings:#?}");
    assert!(warnings[0].contains(&sentence), "{warnings:?}");
    drop(holder);
    a.until_log("listening");
    until("no problem is left", || {
        let screen = site.status("a");
        if screen.contains("problem") { Err(screen) } else { Ok(()) }
    });
    assert_undisturbed(&site, &a, &first);
}
