//! The first pods after a boot wait until the node knows its way, and no others do.

use std::time::{Duration, Instant};

use serde_json::json;

use crate::api::{Cluster, NODE};
use crate::pods::call;
use crate::routed::{TOR, join, router, sh, tor};
use crate::runtime::failure;
use crate::site::{Daemon, Site, until};

const FAR: &str = "203.0.113.0/26";
const LIST: &str = r#"{"cniVersion":"1.0.0","name":"cairn","plugins":[{"type":"cairn-cni"}]}"#;

/// An agent that tells a container runtime of Cairn in the directory `net.d` of the site.
fn agent(cluster: &Cluster, site: &Site) -> Daemon {
    let mut command = cluster.agent_command(site, "n1");
    command.arg("--cni-conflist").arg(site.write("10-cairn.conflist", LIST));
    command.arg("--cni-conf-dir").arg(site.path("net.d"));
    site.start("agent", command)
}

#[test]
fn pods_wait_for_the_first_routes_of_a_boot_and_never_again() {
    let (site, far) = (Site::new(&[NODE]), Site::new(&[TOR]));
    join(&site, &far);
    std::fs::create_dir(site.path("net.d")).expect("a directory");
    let conflist = site.path("net.d/10-cairn.conflist");
    let cluster = Cluster::new(&site);
    cluster.api.create("bgppeers.cairn.network", None, tor()).expect("created");
    let first = agent(&cluster, &site);

    // No pool, then no routes.
    site.until_status("agent", "pod network not ready: no IPPool");
    let (code, text) = failure(&call(&site, "STATUS", "c", "").run());
    assert!(code == 50 && text.contains("no IPPool"), "{code}: {text}");
    cluster.pool("default", "10.244.0.0/20", 26);
    let screen = site.until_status("agent", "0/1 sessions are established");
    assert!(screen.contains("pod network not ready: the first routes"), "{screen}");
    let (code, text) = failure(&call(&site, "STATUS", "c", "").run());
    assert!(code == 51 && text.contains("0/1 sessions"), "{code}: {text}");
    assert!(!conflist.exists(), "the runtime is not told");
    let waiting = call(&site, "ADD", "first", site.pod("first")).spawn();
    std::thread::sleep(Duration::from_secs(1));
    assert!(!waiting.is_finished());

    let file = far.write("tor.yaml", &router(TOR, NODE, FAR));
    let router = far.speaker("tor", &file);
    let outcome = waiting.join().expect("no panic");
    assert!(outcome.success, "{outcome:?}");
    // At once, not a moment later.
    sh(&site, &format!("ip route show {FAR} | grep -q {TOR}"));
    site.until_status("agent", "pod network ready\n");
    assert!(call(&site, "STATUS", "c", "").run().success);
    until("the runtime is told", || match std::fs::read_to_string(&conflist) {
        Ok(text) if text == LIST => Ok(()),
        other => Err(format!("{other:?}")),
    });

    // What the next agent knows without anybody.
    until("the view is kept", || match site.path("agent/view.json").exists() {
        true => Ok(()),
        false => Err("not yet"),
    });
    std::thread::sleep(Duration::from_secs(3));
    drop((first, router));
    cluster.api.pause();
    std::fs::remove_file(&conflist).expect("it was there");
    let _second = agent(&cluster, &site);
    let began = Instant::now();
    let outcome = call(&site, "ADD", "second", site.pod("second")).run();
    assert!(outcome.success, "{outcome:?}");
    assert!(began.elapsed() < Duration::from_secs(8), "{:?}", began.elapsed());
    assert!(call(&site, "STATUS", "c", "").run().success);
    let screen = site.until_status("agent", "sessions 0/1");
    assert!(screen.contains("pod network ready\n"), "{screen}");
    assert_eq!(site.report("agent")["podNetwork"], json!({"ready": true}));
    until("the runtime is told", || match conflist.exists() {
        true => Ok(()),
        false => Err("not yet"),
    });
}

#[test]
fn a_runtime_that_would_take_another_plugin_is_named() {
    let site = Site::new(&[NODE]);
    let cluster = Cluster::new(&site);
    std::fs::create_dir(site.path("net.d")).expect("a directory");
    site.write("net.d/05-other.conflist", "{}");
    let mut agent = agent(&cluster, &site);
    site.until_status("agent", "problem: 05-other.conflist in the directory");
    agent.until_log("05-other.conflist in the directory");
    assert!(agent.is_running());
}
