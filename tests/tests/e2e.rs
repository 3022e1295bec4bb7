//! Cairn on a real Kubernetes cluster, installed as its users do. `make e2e` runs it.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::Path;
use std::process::Command;
use std::time::{Duration, Instant};

use cairn_tests::e2e::{Cluster, Flow, Ping, Pod, differences, on_its_own};

#[test]
#[ignore = "a whole cluster, for minutes: `make e2e` starts it"]
fn a_cluster_with_cairn() {
    let Some(directory) = on_its_own("a_cluster_with_cairn") else { return };
    let mut phases = Phases::default();
    let mut cluster = phases.run("images, control plane", || Cluster::new(&directory, &NODES));
    phases.run("three nodes", || NODES.iter().for_each(|name| cluster.add(name)));
    phases.run("installation", || install(&cluster));
    phases.run("60 pods", || scale(&cluster));
    phases.run("each pod asks each", || each_pod_asks_each(&cluster));
    phases.run("Services and DNS", || services_and_names(&cluster));
    phases.run("what kubectl tells", || objects_tell_the_truth(&cluster));
    phases.run("rolling update", || under_traffic(&cluster, || roll_out(&cluster)));
    phases.run("kill -9 of each agent", || under_traffic(&cluster, || kill_each_agent(&cluster)));
    phases.run("Kubernetes' own cases", || kubernetes_own_cases(&cluster));
    phases.run("a node leaves", || {
        under_traffic(&cluster, || drain("n3", &cluster));
        remove("n3", &mut cluster);
    });
    phases.tell();
}

/// Until Cairn runs, no node is ready; then each is.
fn install(cluster: &Cluster) {
    let ready = |wanted: &str| {
        let nodes = cluster.list("nodes");
        let count = nodes.iter().filter(|node| {
            let conditions = node["status"]["conditions"].as_array();
            conditions.into_iter().flatten().any(|c| c["type"] == "Ready" && c["status"] == wanted)
        });
        count.count() == NODES.len()
    };
    cluster.until("nodes are there", PATIENCE, || ready("False"));
    let manifests = Path::new(env!("CARGO_MANIFEST_DIR")).join("../manifests");
    let copied = Command::new("cp").arg("-r").arg(manifests).arg(cluster.directory()).status();
    assert!(copied.expect("cp starts").success());
    fs::write(cluster.directory().join("kustomization.yaml"), OVERLAY).expect("an overlay");
    cluster.kubectl(&format!("apply -k {}", cluster.directory().display()));
    cluster.kubectl("wait --for=condition=Established --timeout=60s crd --all");
    cluster.kubectl("-n cairn-system rollout status daemonset/cairn-agent --timeout=120s");
    assert!(ready("False"), "a node without a pool is ready");
    cluster.kubectl(&format!("apply -k {}/manifests/config", cluster.directory().display()));
    cluster.apply("peer.yaml", include_str!("../e2e/peer.yaml"));
    cluster.until("nodes are ready", PATIENCE, || ready("True"));
    cluster.kubectl("-n cairn-system rollout status daemonset/cairn-agent --timeout=120s");
    let dns = include_str!("../e2e/coredns.yaml");
    cluster.apply("coredns.yaml", dns);
    cluster.kubectl("-n kube-system rollout status deployment/coredns --timeout=120s");
}

fn scale(cluster: &Cluster) {
    cluster.apply("web.yaml", include_str!("../e2e/web.yaml"));
    cluster.kubectl("rollout status deployment/web --timeout=120s");
    let before = cluster.asked_by_agents().len();
    let began = Instant::now();
    cluster.kubectl(&format!("scale deployment/web --replicas={PODS}"));
    cluster.kubectl("rollout status deployment/web --timeout=300s");
    println!("    from 6 to {PODS} pods in {:.1} s", began.elapsed().as_secs_f64());
    // Pods start without the API server's help.
    let mut asked = BTreeMap::<String, usize>::new();
    for request in cluster.asked_by_agents().split_off(before) {
        *asked.entry(request).or_default() += 1;
    }
    println!("    agents asked the API server meanwhile: {asked:?}");
    assert!(!asked.keys().any(|request| request.ends_with(" pods")), "{asked:?}");
    let pods = cluster.pods("web");
    assert_eq!(pods.len(), PODS);
    let nodes: BTreeSet<&str> = pods.iter().map(|pod| pod.node.as_str()).collect();
    assert_eq!(nodes.len(), NODES.len(), "{nodes:?}");
}

/// Each pod is reached by each other one, under its own address, which is the one that the API tells.
fn each_pod_asks_each(cluster: &Cluster) {
    let pods = cluster.pods("web");
    let began = Instant::now();
    let wrong: Vec<String> = std::thread::scope(|scope| {
        let asking: Vec<_> = pods
            .iter()
            .map(|from| {
                let pods = &pods;
                scope
                    .spawn(move || from.netns().run(|| ask_all(from, pods)).expect("the namespace"))
            })
            .collect();
        asking.into_iter().flat_map(|thread| thread.join().expect("a thread")).collect()
    });
    println!("    {} questions in {:.1} s", pods.len().pow(2) * 2, began.elapsed().as_secs_f64());
    assert!(wrong.is_empty(), "{} of them failed: {wrong:#?}", wrong.len());
}

fn ask_all(from: &Pod, pods: &[Pod]) -> Vec<String> {
    let mut wrong = Vec::new();
    for to in pods {
        let name = to.ask("/hostname");
        if name.as_ref().ok() != Some(&to.name) {
            wrong.push(format!("{} -> {}: {name:?}", from.name, to.name));
        }
        let seen = to.ask("/clientip");
        let as_told = format!("{}:", from.address);
        if !seen.as_ref().is_ok_and(|seen| seen.starts_with(&as_told)) {
            wrong.push(format!("{} is seen by {} as {seen:?}", from.name, to.name));
        }
    }
    wrong
}

/// From a pod on each node: its Service's name leads to pods on all nodes, over UDP and TCP.
fn services_and_names(cluster: &Cluster) {
    let pods = cluster.pods("web");
    let node_of: BTreeMap<&str, &str> =
        pods.iter().map(|pod| (pod.name.as_str(), pod.node.as_str())).collect();
    let service = cluster.kubectl("get service web -o jsonpath={.spec.clusterIP}");
    for node in NODES {
        let pod = pods.iter().find(|pod| pod.node == node).expect("a pod on each node");
        let inside =
            |script: &str| cluster.kubectl_of(&["exec", &pod.name, "--", "sh", "-ec", script]);
        let answers =
            inside("for turn in $(seq 40); do curl -sS -m 5 http://web/hostname; echo; done");
        let reached: BTreeSet<&str> =
            answers.lines().map(|name| *node_of.get(name).unwrap_or(&name)).collect();
        assert_eq!(reached, NODES.into(), "from {node}");
        for transport in ["", "+tcp"] {
            let name = "web.default.svc.cluster.local";
            let found = inside(&format!("dig +short +tries=1 {transport} {name}"));
            assert_eq!(found.trim(), service, "{name} from {node} {transport}");
        }
    }
}

/// IPBlocks and BGPNodeStatuses say what kernels and pods say.
fn objects_tell_the_truth(cluster: &Cluster) {
    let began = Instant::now();
    loop {
        let wrong = differences(cluster);
        if wrong.is_empty() {
            return;
        }
        // Agents report in their own time.
        assert!(began.elapsed() < PATIENCE, "{}\n{}", wrong.join("\n"), cluster.report());
        std::thread::sleep(Duration::from_millis(500));
    }
}

/// No packet is lost between pods on two nodes, in either direction, while `work` goes on.
fn under_traffic(cluster: &Cluster, work: impl FnOnce()) {
    let pods = cluster.pods("web");
    let on = |node: &str| pods.iter().find(|pod| pod.node == node).expect("a pod on each node");
    let (one, other) = (on("n1"), on("n2"));
    let flows = [(one, other), (other, one)]
        .map(|(from, to)| Flow::start(from.netns(), to.netns(), &to.address));
    let ping = Ping::start(&one.netns(), &other.address);
    std::thread::sleep(Duration::from_secs(1));
    work();
    std::thread::sleep(Duration::from_secs(1));
    let (requests, unanswered) = ping.end();
    let counted = flows.map(Flow::end);
    let [sent, back] = counted.each_ref().map(|counted| counted.sent);
    println!("    {sent} and {back} packets of UDP, {requests} of ICMP");
    for counted in counted {
        let lost = &counted.lost;
        assert!(lost.is_empty(), "{} of {} packets were lost: {lost:?}", lost.len(), counted.sent);
    }
    // One may still have been on its way.
    assert!(unanswered <= 1, "{unanswered} of {requests} ICMP requests were not answered");
}

fn roll_out(cluster: &Cluster) {
    let before = NODES.map(|node| cluster.node(node).agent());
    cluster.kubectl("-n cairn-system rollout restart daemonset/cairn-agent");
    cluster.kubectl("-n cairn-system rollout status daemonset/cairn-agent --timeout=180s");
    let after = NODES.map(|node| cluster.node(node).agent());
    assert!(
        before.iter().zip(&after).all(|(old, new)| new.is_some() && old != new),
        "{before:?} {after:?}"
    );
}

fn kill_each_agent(cluster: &Cluster) {
    for name in NODES {
        let node = cluster.node(name);
        let before = node.agent().expect("an agent");
        // SAFETY: it takes no memory.
        assert_eq!(unsafe { libc::kill(before.cast_signed(), libc::SIGKILL) }, 0, "{name}");
        cluster.until("another agent", PATIENCE, || node.agent().is_some_and(|id| id != before));
    }
    cluster.until("agents are ready", PATIENCE, || {
        let agents = cluster.list("-n cairn-system pods");
        let statuses = agents.iter().map(|pod| &pod["status"]["containerStatuses"][0]);
        let good = statuses.filter(|s| s["ready"] == true && s["restartCount"] == 1);
        good.count() == NODES.len()
    });
}

/// Cases of Kubernetes' own test, some at once.
fn kubernetes_own_cases(cluster: &Cluster) {
    // Room for them: on two processors it is the number of containers that takes time.
    cluster.kubectl("scale deployment/web --replicas=6");
    let parts = OWN_CASES.map(|cases| {
        let log = cluster.directory().join(format!("own-cases-{}.log", cases.len()));
        let output = fs::File::create(&log).expect("a log");
        let mut command = cluster.own_test(&cases.join("|"));
        command.stderr(output.try_clone().expect("a file")).stdout(output);
        (command.spawn().expect("it starts"), log, cases.len())
    });
    for (mut part, log, count) in parts {
        let status = part.wait().expect("its end");
        let text = fs::read_to_string(log).expect("its log");
        for line in text
            .lines()
            .filter(|line| line.starts_with("[sig-network]") || line.starts_with("Ran "))
        {
            println!("    {line}");
        }
        assert!(
            status.success(),
            "{}",
            text.lines().rev().take(200).collect::<Vec<_>>().join("\n")
        );
        let ran = format!("Ran {count} of ");
        assert!(text.contains(&ran), "not {ran}: a case has another name");
    }
}

/// Its pods go to the others, and it gives back its last block.
fn drain(name: &str, cluster: &Cluster) {
    let words = "--ignore-daemonsets --delete-emptydir-data --force --timeout=120s";
    cluster.kubectl(&format!("drain {name} {words}"));
    let given_back = || {
        let blocks = cluster.list("ipblocks");
        !blocks.iter().any(|block| block["spec"]["node"]["name"] == name)
    };
    let took = cluster.until("its blocks are given back", PATIENCE, given_back);
    println!("    its blocks were given back {:.1} s after the drain", took.as_secs_f64());
    cluster.kubectl("rollout status deployment/web --timeout=120s");
}

/// Switched off and deleted, nothing is left of it in objects and in the other nodes' kernels.
fn remove(name: &str, cluster: &mut Cluster) {
    cluster.remove(name);
    cluster.kubectl(&format!("delete node {name}"));
    objects_tell_the_truth(cluster);
    let nodes: BTreeSet<String> = cluster.pods("web").into_iter().map(|pod| pod.node).collect();
    assert_eq!(nodes, ["n1", "n2"].map(str::to_owned).into());
}

/// What each part has taken.
#[derive(Default)]
struct Phases {
    took: Vec<(&'static str, Duration)>,
}

impl Phases {
    fn run<T>(&mut self, name: &'static str, work: impl FnOnce() -> T) -> T {
        println!("e2e: {name} ...");
        let began = Instant::now();
        let done = work();
        println!("e2e: {name}: {:.1} s", began.elapsed().as_secs_f64());
        self.took.push((name, began.elapsed()));
        done
    }

    fn tell(&self) {
        println!("\n{:>8}  phase", "seconds");
        for (name, took) in &self.took {
            println!("{:>8.1}  {name}", took.as_secs_f64());
        }
        let all: Duration = self.took.iter().map(|(_, took)| *took).sum();
        println!("{:>8.1}  e2e: all passed", all.as_secs_f64());
    }
}

/// The manifests with a fence of a minute instead of eight hours.
const OVERLAY: &str = "apiVersion: kustomize.config.k8s.io/v1beta1
kind: Kustomization
resources: [manifests]
patches:
  - target: {kind: DaemonSet, name: cairn-agent}
    patch: |
      - op: add
        path: /spec/template/spec/containers/0/env/-
        value: {name: CAIRN_OFFLINE_SECS, value: \"60\"}
";
/// By what is in their names, in groups that run at once.
const OWN_CASES: [&[&str]; 2] = [
    &[
        "Networking Granular Checks: Pods should function for intra-pod communication: http",
        "Networking Granular Checks: Pods should function for intra-pod communication: udp",
        "Networking Granular Checks: Pods should function for node-pod communication: http",
        "Networking Granular Checks: Pods should function for node-pod communication: udp",
        "Services should preserve source pod IP for traffic thru service cluster IP",
    ],
    &[
        "Services should allow pods to hairpin back to themselves through services",
        "Services should be able to create a functioning NodePort service",
        "Services should have session affinity work for service with type clusterIP",
        "Services should serve endpoints on same port and different protocols",
        "DNS should provide DNS for services",
        "DNS should provide DNS for pods for Hostname",
        "HostPort validates that there is no conflict between pods with same hostPort",
    ],
];
const NODES: [&str; 3] = ["n1", "n2", "n3"];
const PODS: usize = 60;
const PATIENCE: Duration = Duration::from_secs(120);
