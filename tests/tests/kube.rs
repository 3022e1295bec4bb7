//! The real API server that other tests use.

use std::path::PathBuf;
use std::time::{Duration, Instant};

use cairn_tests::kube::{Api, Cluster, ControlPlane};

#[tokio::test]
async fn a_real_server_is_1_36_and_serves_cairns_kinds() {
    let cluster = Cluster::start(Api::Real).await;
    let version = cluster.client().apiserver_version().await.expect("a version");
    assert_eq!((version.major.as_str(), version.minor.as_str()), ("1", "36"));
    assert_eq!(cluster.server.list("ippools.cairn.network", None, ""), Ok(vec![]));
}

#[test]
fn a_server_that_is_dropped_leaves_nothing() {
    let plane = ControlPlane::start();
    let (processes, directory) = (plane.processes(), plane.directory().to_owned());
    assert!(directory.is_dir() && processes.iter().all(|id| lives(*id)));
    drop(plane);
    assert!(!directory.exists() && !processes.iter().any(|id| lives(*id)));
}

/// This same test in a process of its own, which gets no chance to clean up.
#[test]
fn a_server_whose_test_is_killed_leaves_nothing() {
    if let Ok(report) = std::env::var(CHILD) {
        let plane = ControlPlane::start();
        let lines: Vec<String> = plane.processes().iter().map(u32::to_string).collect();
        let text = format!("{}\n{}", plane.directory().display(), lines.join("\n"));
        std::fs::write(format!("{report}.part"), text).expect("a report");
        std::fs::rename(format!("{report}.part"), report).expect("a report");
        std::thread::sleep(Duration::from_secs(600));
        return;
    }
    let report = std::env::temp_dir().join(format!("cairn-kube-child-{}", std::process::id()));
    let mut child = std::process::Command::new(std::env::current_exe().expect("this program"))
        .args(["--exact", "a_server_whose_test_is_killed_leaves_nothing"])
        .env(CHILD, &report)
        .stdout(std::process::Stdio::null())
        .spawn()
        .expect("it starts");
    until("the report", || report.exists() || !matches!(child.try_wait(), Ok(None)));
    let text = std::fs::read_to_string(&report);
    child.kill().expect("killed");
    child.wait().expect("waited for");
    let text = text.expect("a report");
    std::fs::remove_file(&report).expect("the report");
    let mut lines = text.lines();
    let directory = PathBuf::from(lines.next().expect("a directory"));
    let processes: Vec<u32> = lines.map(|line| line.parse().expect("an id")).collect();
    assert_eq!(processes.len(), 2);
    until("everything has gone", || !directory.exists() && !processes.iter().any(|id| lives(*id)));
}

fn lives(id: u32) -> bool {
    PathBuf::from(format!("/proc/{id}")).exists()
}

fn until(what: &str, holds: impl FnMut() -> bool) {
    let mut holds = holds;
    let began = Instant::now();
    while !holds() {
        assert!(began.elapsed() < Duration::from_secs(180), "{what}");
        std::thread::sleep(Duration::from_millis(50));
    }
}

const CHILD: &str = "CAIRN_TEST_KUBE_CHILD";
