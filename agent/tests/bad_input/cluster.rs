//! An agent in a cluster whose objects, requests or API server are wrong.

use std::collections::BTreeMap;
use std::path::Path;
use std::time::Duration;

use serde_json::{Value, json};

use crate::api::{Cluster, NODE};
use crate::pods::{call, run, until_attached};
use crate::site::{Daemon, Site, refusal, until};

#[test]
fn a_pool_that_overlaps_an_older_one_is_named_and_not_used() {
    let site = Site::new(&[NODE]);
    let cluster = Cluster::new(&site);
    cluster.pool("first", "10.244.0.0/20", 26);
    let mut command = cluster.agent_command(&site, "n1");
    // The leader looks at the pools' conditions a twentieth of it apart.
    command.args(["--offline-secs", "40"]);
    let agent = site.start("agent", command);
    let before = until_attached(&site, "before", &site.pod("p0"));
    // Objects' times have a grain of a second.
    std::thread::sleep(Duration::from_millis(1_100));
    cluster.pool("another", "10.244.0.0/16", 28);
    let screen = site.until_status("agent", "IPPool another");
    let problem = screen.lines().find(|line| line.contains("IPPool another")).expect("its line");
    assert!(problem.contains("overlap") && problem.contains("first"), "{problem}");
    let ready = until("the condition", || {
        let pool = cluster.api.get("ippools.cairn.network", None, "another").expect("the pool");
        let conditions = pool["status"]["conditions"].as_array().cloned().unwrap_or_default();
        conditions.into_iter().find(|c| c["type"] == "Ready").ok_or(pool.to_string())
    });
    assert_eq!((&ready["status"], &ready["reason"]), (&"False".into(), &"Overlap".into()));
    assert!(ready["message"].as_str().is_some_and(|text| text.contains("first")), "{ready}");
    let old = cluster.api.get("ippools.cairn.network", None, "first").expect("the pool");
    assert_eq!(old["status"]["conditions"][0]["status"], "True", "{old}");

    let after = until_attached(&site, "after", &site.pod("p1"));
    assert!(after.starts_with("10.244.") && after != before);
    assert!(cluster.blocks().iter().all(|block| block["spec"]["pool"]["name"] == "first"));
    agent.until_log("IPPool another");
    let warnings = agent.lines("WARN");
    assert_eq!(warnings.iter().filter(|l| l.contains("another")).count(), 1, "{warnings:#?}");
}

#[test]
fn a_cni_request_with_something_missing_is_refused_and_the_next_one_served() {
    let site = Site::new(&[NODE]);
    let cluster = Cluster::new(&site);
    cluster.pool("default", "10.244.0.0/20", 26);
    let _agent = cluster.agent(&site);
    let netns = site.pod("p0");
    let first = until_attached(&site, "first", &netns);
    let other = site.pod("p1");
    let add = || call(&site, "ADD", "second", &other);
    for (wrong, code, said) in [
        (add().without_variable("CNI_COMMAND"), 4, "CNI_COMMAND is not set"),
        (add().without_variable("CNI_CONTAINERID"), 4, "needs CNI_CONTAINERID"),
        (add().without_variable("CNI_NETNS"), 4, "needs CNI_NETNS"),
        (add().without_variable("CNI_IFNAME"), 4, "needs CNI_IFNAME"),
        (add().without_field("name"), 7, "\"name\" is missing"),
        (add().without_field("cniVersion"), 1, "this plugin speaks"),
        (call(&site, "ADD", "second", "/run/netns/bad-none"), 8, "cannot be opened"),
    ] {
        let (success, document) = run(&site, &wrong);
        assert!(!success, "{document}");
        let text = document["msg"].as_str().unwrap_or_default();
        assert_eq!(document["code"], code, "{document}");
        assert!(text.contains(said), "{said}: {document}");
    }
    // The agent itself, asked by something that is not our plugin.
    let answer = site
        .netns
        .run(|| ask(&site.path("agent/cni.sock"), br#"{"command":"add","ifname":"eth0"}"#))
        .expect("entered");
    assert_eq!(answer["answer"], "failed", "{answer}");
    assert_eq!(answer["code"], 6, "{answer}");
    assert!(answer["msg"].as_str().is_some_and(|m| m.contains("containerId")), "{answer}");

    let second = until_attached(&site, "second", &other);
    assert_ne!(first, second);
    assert_eq!(until_attached(&site, "first", &netns), first);
}

/// Sends a frame of the plugin's protocol and returns the answer's JSON.
fn ask(socket: &Path, request: &[u8]) -> Value {
    use std::io::{Read, Write};
    let mut stream = std::os::unix::net::UnixStream::connect(socket).expect("the agent listens");
    let length = u32::try_from(request.len()).expect("a short request");
    let mut frame = b"CRNI".to_vec();
    frame.extend(cairn_cni::protocol::VERSION.to_be_bytes());
    frame.extend(length.to_be_bytes());
    frame.extend(request);
    stream.write_all(&frame).expect("sent");
    let mut answer = Vec::new();
    stream.read_to_end(&mut answer).expect("an answer");
    serde_json::from_slice(answer.get(12..).expect("a frame")).expect("JSON")
}

#[test]
fn a_second_agent_is_refused_and_the_first_goes_on() {
    let site = Site::new(&[NODE]);
    let cluster = Cluster::new(&site);
    cluster.pool("default", "10.244.0.0/20", 26);
    let mut agent = cluster.agent(&site);
    until_attached(&site, "before", &site.pod("p0"));
    let text = refusal(&site.run(cluster.agent_command(&site, "n1")));
    let expected = format!("another agent (process {}) already serves", agent.id());
    assert!(text.contains(&expected) && text.contains("stop it first"), "{text}");
    until_attached(&site, "after", &site.pod("p1"));
    assert!(site.status("agent").contains("node n1"), "{}", site.status("agent"));
    assert!(agent.is_running());
}

#[test]
fn a_node_that_does_not_exist_is_named() {
    let site = Site::new(&[NODE]);
    let cluster = Cluster::new(&site);
    cluster.pool("default", "10.244.0.0/20", 26);
    let mut agent = site.start("agent", cluster.agent_command(&site, "n9"));
    let sentence = "there is no Node n9: start the agent with --node-name of an existing Node";
    site.until_status("agent", &format!("problem: {sentence}"));
    let (success, document) = run(&site, &call(&site, "ADD", "c", site.pod("p0")));
    assert!(!success && document["code"] == 11, "{document}");
    assert_eq!(agent.lines(sentence).len(), 1, "{}", agent.log());
    // It comes into being.
    cluster
        .api
        .create(
            "nodes",
            None,
            json!({"apiVersion": "v1", "kind": "Node", "metadata": {"name": "n9"}}),
        )
        .expect("a Node");
    let n1 = cluster.api.get("nodes", None, "n1").expect("the other Node");
    let status = json!({"status": n1["status"]});
    cluster.api.patch_status("nodes", None, "n9", &status).expect("a status");
    until_attached(&site, "c", Path::new(&site.pod("p1")));
    until("the sentence is gone", || {
        let screen = site.status("agent");
        if screen.contains(sentence) { Err(screen) } else { Ok(()) }
    });
    assert!(agent.is_running());
}

#[test]
fn an_api_server_that_is_away_at_the_start_is_named_and_waited_for() {
    let site = Site::new(&[NODE]);
    let cluster = Cluster::new(&site);
    cluster.pool("default", "10.244.0.0/20", 26);
    cluster.api.pause();
    let mut agent = cluster.agent(&site);
    let screen = site.until_status("agent", "problem: the API server at http://127.0.0.1:");
    assert!(
        screen.contains("cannot be reached") && screen.contains("check that it runs"),
        "{screen}"
    );
    std::thread::sleep(Duration::from_secs(3));
    assert!(agent.is_running());
    assert_quiet(&agent, 0);
    cluster.api.resume();
    until_attached(&site, "c", &site.pod("p0"));
    until("no problem is left", || {
        let screen = site.status("agent");
        if screen.contains("problem") { Err(screen) } else { Ok(()) }
    });
}

#[test]
fn a_cluster_without_the_definitions_is_told_where_they_are() {
    let site = Site::new(&[NODE]);
    let cluster = Cluster::without_definitions(&site);
    let mut agent = cluster.agent(&site);
    let screen = site.until_status("agent", "problem: cannot watch IPPool: ");
    assert!(screen.contains("apply the definitions that `cairn crds` prints"), "{screen}");
    assert!(agent.is_running());
    cluster.define();
    cluster.pool("default", "10.244.0.0/20", 26);
    until_attached(&site, "c", &site.pod("p0"));
    until("no problem is left", || {
        let screen = site.status("agent");
        if screen.contains("problem") { Err(screen) } else { Ok(()) }
    });
}

#[test]
fn an_outage_of_the_api_server_is_told_once_and_pods_start() {
    let site = Site::new(&[NODE]);
    let cluster = Cluster::new(&site);
    cluster.pool("default", "10.244.0.0/20", 26);
    let agent = cluster.agent(&site);
    until_attached(&site, "before", &site.pod("p0"));
    // What the first seconds bring has been written.
    std::thread::sleep(Duration::from_secs(2));
    let before = agent.log().len();
    cluster.api.pause();
    std::thread::sleep(Duration::from_secs(2));
    // A pod's start asks the API server nothing while a block has room, nor waits for it.
    let began = std::time::Instant::now();
    for pod in 1..=OUTAGE_PODS {
        let container = format!("during{pod}");
        let netns = site.pod(&format!("p{pod}"));
        let (success, document) = run(&site, &call(&site, "ADD", &container, netns));
        assert!(success, "{document}");
    }
    assert!(began.elapsed() < Duration::from_secs(5), "{:?}", began.elapsed());
    let screen = site.until_status("agent", "go on with what was last known");
    assert!(screen.contains("the API server at http://127.0.0.1:"), "{screen}");
    std::thread::sleep(Duration::from_secs(3));
    assert_quiet(&agent, before);
    cluster.api.resume();
    until("no problem is left", || {
        let screen = site.status("agent");
        if screen.contains("problem") { Err(screen) } else { Ok(()) }
    });
    agent.until_log("no longer: the API server at");
}

/// The log since `from` has no line twice, and few.
fn assert_quiet(agent: &Daemon, from: usize) {
    let log = agent.log();
    let mut lines: BTreeMap<&str, usize> = BTreeMap::new();
    for line in log.get(from..).expect("the log grows").lines() {
        *lines.entry(line.split_once(' ').unwrap_or_default().1).or_default() += 1;
    }
    assert!(lines.values().all(|count| *count == 1), "{lines:#?}");
    assert!(lines.len() <= OUTAGE_LINES_MAX, "{lines:#?}");
}

/// The agent's own sentence, those of its parts that could not do something, and the pods.
const OUTAGE_LINES_MAX: usize = 8 + OUTAGE_PODS;
/// Pods that start while the API server is away.
const OUTAGE_PODS: usize = 20;
