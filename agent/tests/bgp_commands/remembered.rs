//! What an operator has disabled stays so.

use serde_json::{Value, json};

use crate::ask::{json, refused, text, until_established, until_peer};
use crate::example::{EXAMPLE, client};
use crate::site::{Site, until};

#[test]
fn disable_survives_a_restart_and_is_shown_everywhere() {
    let site = Site::new(&["10.99.0.1", "10.99.1.1", "10.99.1.2"]);
    let file = site.write("hub.yaml", EXAMPLE);
    let hub = site.speaker("hub", &file);
    let p1 = client(65001, "10.99.1.1", "172.16.1.0/24", "");
    let _p1 = site.speaker("p1", &site.write("p1.yaml", &p1));
    let p2 = client(65000, "10.99.1.2", "172.16.2.0/24", "");
    let _p2 = site.speaker("p2", &site.write("p2.yaml", &p2));
    until_established(&site, "hub", "p1");
    until_established(&site, "hub", "p2");
    let done = text(&site, "hub", &["disable", "10.99.1.1"]);
    assert!(done.starts_with("p1: disabled, also after a restart"), "{done}");
    let is_shown = || {
        let peer = &json(&site, "hub", &["peers", "p1"])[0];
        assert_eq!((&peer["disabled"], &peer["state"]), (&json!(true), &json!("Idle")));
        let screen = text(&site, "hub", &["peers"]);
        let line = screen.lines().find(|line| line.starts_with("p1 ")).expect("the peer");
        assert!(line.contains(" Disabled "), "{screen}");
        assert!(screen.contains("disabled by an operator"), "{screen}");
        let status = site.status("hub");
        assert!(status.contains("sessions 1/2") && status.contains(" Disabled "), "{status}");
        let problem = "problem: p1 is disabled by an operator: `cairn bgp enable p1`";
        assert!(status.contains(problem), "{status}");
        assert_eq!(site.session("hub", "p1")["state"], "Disabled");
        let refusal = refused(&site, "hub", &["reset", "p1"]);
        assert!(refusal.contains("p1 is disabled: `cairn bgp enable p1`"), "{refusal}");
    };
    is_shown();
    // RFC 4486 and RFC 9003.
    until("p1 was told", || {
        let errors = text(&site, "p1", &["errors", "hub"]);
        let told = errors.contains("administrative shutdown: \"disabled by an operator\"");
        told.then_some(()).ok_or(errors)
    });
    drop(hub);
    let hub = site.speaker("hub", &file);
    until_established(&site, "hub", "p2");
    is_shown();
    // The log is that of both processes; the first one had the session.
    assert_eq!(hub.lines("session established peer=p1").len(), 1, "{}", hub.log());
    let done = text(&site, "hub", &["enable", "p1"]);
    assert_eq!(done, "p1: enabled\n");
    until_established(&site, "hub", "p1");
    assert!(!site.status("hub").contains("problem"), "{}", site.status("hub"));
    drop(hub);
    let _hub = site.speaker("hub", &file);
    until_established(&site, "hub", "p1");
}

#[test]
fn a_broken_list_of_disabled_peers_is_a_problem_and_stops_nothing() {
    let site = Site::new(&["10.99.0.1"]);
    let file = site.write("hub.yaml", EXAMPLE);
    std::fs::create_dir_all(site.path("hub")).expect("a directory");
    let list = site.write("hub/disabled-peers.json", "{\"version\":1,");
    let _hub = site.speaker("hub", &file);
    let status = site.until_status("hub", "problem: the list of disabled peers");
    assert!(status.contains(&list.display().to_string()), "{status}");
    assert!(status.contains("no peer is disabled"), "{status}");
    text(&site, "hub", &["disable", "p1"]);
    let status = site.status("hub");
    assert!(!status.contains("the list of disabled peers"), "{status}");
    let written: Value =
        serde_json::from_slice(&std::fs::read(&list).expect("the file")).expect("JSON");
    assert_eq!(written, json!({"version": 1, "disabledPeers": ["p1"]}));
}

#[test]
fn what_cannot_be_remembered_is_not_done() {
    let site = Site::new(&["10.99.0.1"]);
    let _hub = site.speaker("hub", &site.write("hub.yaml", EXAMPLE));
    until_peer(&site, "hub", "p1", "is there", |peer| peer["name"] == "p1");
    // A directory in the place of the file that is written first.
    std::fs::create_dir(site.path("hub/disabled-peers.new")).expect("a directory");
    let refusal = refused(&site, "hub", &["disable", "p1"]);
    assert!(refusal.contains("nothing has changed: it could not be remembered"), "{refusal}");
    assert_eq!(json(&site, "hub", &["peers", "p1"])[0]["disabled"], false);
}
