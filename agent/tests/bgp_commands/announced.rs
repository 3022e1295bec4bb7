//! Pods begin when routers have heard of their block: `readiness: Announced`.

use std::time::{Duration, Instant};

use serde_json::json;

use crate::api::{Cluster, NODE};
use crate::ask::until_established;
use crate::pods::call;
use crate::routed::{TOR, join, router, sh, tor};
use crate::runtime::failure;
use crate::site::{Daemon, Site, until};

/// Of pods that start without the routers.
const LATE: &str = "pods start although";
/// As in the guide.
const BOUND: Duration = Duration::from_secs(10);

/// An agent whose pods begin when routers have heard of them.
fn cluster(site: &Site) -> Cluster {
    let cluster = Cluster::new(site);
    let configuration = json!({
        "apiVersion": "cairn.network/v1alpha1",
        "kind": "NodeConfiguration",
        "metadata": {"name": "default"},
        "spec": {"readiness": "Announced"},
    });
    cluster.api.create("nodeconfigurations.cairn.network", None, configuration).expect("created");
    cluster
}

/// An agent without a block whose session with a router stands, and the router.
struct Fabric {
    site: Site,
    far: Site,
    cluster: Cluster,
    agent: Daemon,
    _router: Daemon,
}

impl Fabric {
    fn new() -> Fabric {
        let (site, far) = (Site::new(&[NODE]), Site::new(&[TOR]));
        join(&site, &far);
        let cluster = cluster(&site);
        let mut peer = tor();
        peer["spec"]["timers"]["holdTimeSecs"] = 90.into();
        cluster.api.create("bgppeers.cairn.network", None, peer).expect("created");
        let file =
            router(TOR, NODE, "203.0.113.0/26").replace("holdTimeSecs: 3", "holdTimeSecs: 90");
        let router = far.speaker("tor", &far.write("tor.yaml", &file));
        let agent = cluster.agent(&site);
        until_established(&site, "agent", "tor");
        Fabric { site, far, cluster, agent, _router: router }
    }

    /// What the router sends gets lost: it hears, and its acknowledgements do not arrive.
    fn mute_router(&self) {
        let nowhere = "lladdr 02:00:00:00:00:99 dev uplink nud permanent";
        sh(&self.far, &format!("ip neigh replace {NODE} {nowhere}"));
    }

    fn unmute_router(&self) {
        sh(&self.far, &format!("ip neigh del {NODE} dev uplink"));
    }

    fn first_block(&self) {
        self.cluster.pool("default", "10.244.0.0/20", 26);
        self.site.until_status("agent", "pod network ready\n");
    }
}

#[test]
fn a_pod_begins_when_the_router_has_acknowledged_its_block() {
    let fabric = Fabric::new();
    let site = &fabric.site;
    fabric.mute_router();
    fabric.first_block();
    let (first, second) = (site.pod("first"), site.pod("second"));
    let ended = call(site, "ADD", "first", &first).spawn();
    site.until_status("agent", "used 1");
    std::thread::sleep(Duration::from_secs(1));
    assert!(!ended.is_finished());
    assert!(call(site, "DEL", "first", &first).run().success);
    let (code, text) = failure(&ended.join().expect("no panic"));
    assert!(code == 11 && text.contains("given up"), "{code}: {text}");
    site.until_status("agent", "used 0");

    let waiting = call(site, "ADD", "second", &second).spawn();
    site.until_status("agent", "used 1");
    assert!(!waiting.is_finished());
    fabric.unmute_router();
    let outcome = waiting.join().expect("no panic");
    assert!(outcome.success, "{outcome:?}");
    let outcome = call(site, "ADD", "third", &first).run();
    assert!(outcome.success, "{outcome:?}");
    let log = fabric.agent.log();
    assert!(!log.contains(LATE), "{log}");
}

#[test]
fn a_router_that_never_acknowledges_costs_the_first_pods_a_while_and_the_others_nothing() {
    let fabric = Fabric::new();
    let site = &fabric.site;
    fabric.mute_router();
    fabric.first_block();
    let pods = ["first", "second", "third"].map(|name| (name, site.pod(name)));
    let began = Instant::now();
    let adding = [&pods[0], &pods[1]].map(|(name, netns)| call(site, "ADD", name, netns).spawn());
    for adding in adding {
        let outcome = adding.join().expect("no panic");
        assert!(outcome.success, "{outcome:?}");
    }
    assert!(began.elapsed() >= BOUND, "{:?}", began.elapsed());
    let began = Instant::now();
    let outcome = call(site, "ADD", "third", &pods[2].1).run();
    assert!(outcome.success, "{outcome:?}");
    assert!(began.elapsed() < BOUND / 2, "{:?}", began.elapsed());
    assert_eq!(fabric.agent.lines(LATE).len(), 1, "{}", fabric.agent.log());
    let late = "has not been acknowledged by bgppeer/tor";
    site.until_status("agent", late);
    fabric.unmute_router();
    until("the router has heard", || {
        let screen = site.status("agent");
        if screen.contains(late) { Err(screen) } else { Ok(()) }
    });
}

#[test]
fn pods_of_a_node_without_routers_wait_for_nobody() {
    let site = Site::new(&[NODE]);
    let cluster = cluster(&site);
    cluster.pool("default", "10.244.0.0/20", 26);
    let agent = cluster.agent(&site);
    site.until_status("agent", "pod network ready\n");
    let began = Instant::now();
    let outcome = call(&site, "ADD", "first", site.pod("first")).run();
    assert!(outcome.success, "{outcome:?}");
    assert!(began.elapsed() < BOUND / 2, "{:?}", began.elapsed());
    assert!(!agent.log().contains(LATE));
}
