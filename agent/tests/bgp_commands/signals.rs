//! How a speaker ends, as its peer sees it.

use std::cell::RefCell;

use rustix::process::Signal;
use serde_json::Value;

use crate::ask::{Watch, json, text, until_peer};
use crate::example::{EXAMPLE, client};
use crate::site::{Daemon, Site, cairn, until};

/// Two speakers of which p1, started with `options`, has announced a route and was then ended by
/// SIGTERM; the hub's view of it is left.
fn after_sigterm_of_p1(options: &[&str]) -> (Site, Daemon) {
    let site = Site::new(&["10.99.0.1", "10.99.1.1"]);
    let hub = site.speaker("hub", &site.write("hub.yaml", EXAMPLE));
    let file = site.write("p1.yaml", &client(65001, "10.99.1.1", "172.16.1.0/24", ""));
    let mut command = cairn(["speaker", "-f"]);
    command.arg(file).arg("--run-dir").arg(site.path("p1")).args(options);
    let p1 = site.start("p1", command);
    let accepted = |peer: &Value| peer["routes"]["IPv4Unicast"]["accepted"] == 1;
    until_peer(&site, "hub", "p1", "sent its route", accepted);
    p1.signal(Signal::TERM);
    let p1 = RefCell::new(p1);
    until("the end of p1", || match p1.borrow_mut().is_running() {
        true => Err("it runs"),
        false => Ok(()),
    });
    let down = |peer: &Value| peer["state"] != "Established";
    until_peer(&site, "hub", "p1", "is down", down);
    (site, hub)
}

#[test]
fn sigterm_tells_the_peers_why_and_they_drop_the_routes() {
    let (site, _hub) = after_sigterm_of_p1(&[]);
    let errors = text(&site, "hub", &["errors", "p1"]);
    // RFC 4486 and RFC 9003.
    let told = "administrative shutdown: \"stopped by its operator\"";
    assert!(errors.contains(told), "{errors}");
    assert!(json(&site, "hub", &["adj-in", "p1"]).is_empty());
}

#[test]
fn sigterm_with_keep_routes_lets_the_peers_keep_them() {
    let (site, _hub) = after_sigterm_of_p1(&["--keep-routes"]);
    let errors = text(&site, "hub", &["errors", "p1"]);
    assert!(!errors.contains("notification-received"), "{errors}");
    let routes = json(&site, "hub", &["adj-in", "p1"]);
    assert_eq!((routes.len(), &routes[0]["received"]["stale"]), (1, &Value::Bool(true)));
    assert_eq!(json(&site, "hub", &["routes"]).len(), 1, "it is still used");
    assert!(text(&site, "hub", &["adj-in", "p1"]).contains("(stale)"));
}

/// RFC 4724 section 4.1: the speaker says that it restarts and that forwarding went on, so that the
/// peer never lets go of the routes.
#[test]
fn a_restart_after_keep_routes_loses_nothing_at_the_peers() {
    let (site, hub) = after_sigterm_of_p1(&["--keep-routes"]);
    let word = site.path("p1/routes-kept");
    assert!(word.exists());
    let watch = Watch::start(&site, "hub", &["-o", "json"]);
    let watched = || {
        text(&site, "hub", &["reset", "p2"]);
        watch.text().contains("\"peer\":\"p2\"").then_some(()).ok_or("nothing is told yet")
    };
    until("the watch", watched);
    let _p1 = site.speaker("p1", &site.path("p1.yaml"));
    let is_fresh = |peer: &Value| peer["establishedCount"] == 2 && peer["state"] == "Established";
    until_peer(&site, "hub", "p1", "is back", is_fresh);
    until("the route is fresh", || {
        let routes = json(&site, "hub", &["adj-in", "p1"]);
        let fresh = routes.iter().any(|route| route["received"]["stale"] == false);
        fresh.then_some(()).ok_or(format!("{routes:?}"))
    });
    let seen = watch.text();
    assert!(!seen.contains("\"best\":null"), "the route was lost meanwhile: {seen}");
    assert!(!word.exists(), "it counts for one start");
    drop(hub);
}
