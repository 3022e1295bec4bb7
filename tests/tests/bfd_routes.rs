//! `cairn speaker` and `cairn bfd` beside each other, with BIRD 2 or FRR on the other side of a link.

use std::time::{Duration, Instant};

use cairn_tests::bird::Bird;
use cairn_tests::daemon::{Daemon, Setup, Transport};
use cairn_tests::frr::Frr;
use cairn_tests::link::{Link, wait_for};
use cairn_tests::process::Process;
use cairn_tests::program::{Program, built};
use serde_json::Value;

/// A hold time that no test waits for, and graceful restart on both sides.
const FILE: &str = "\
apiVersion: cairn.network/v1alpha1
kind: BGPConfiguration
metadata: {name: default}
spec: {asn: 65001, routerID: 10.0.0.1, listenAddresses: [10.0.0.1], topology: Disabled, timers: {holdTimeSecs: 90, connectRetrySecs: 1}}
---
apiVersion: cairn.network/v1alpha1
kind: BGPPolicy
metadata: {name: all}
spec: {rules: [{action: Accept}]}
---
apiVersion: cairn.network/v1alpha1
kind: BGPAdvertisement
metadata: {name: ours}
spec: {cidrs: [172.16.1.0/24]}
---
apiVersion: cairn.network/v1alpha1
kind: BGPPeer
metadata: {name: tor}
spec: {address: 10.0.0.2, asn: 65002, bfd: {intervalMs: 300}, importPolicies: [all], exportPolicies: [all]}
";

/// BIRD's configuration of its end: behind the BGP session's own lines comes its BFD.
const BFD_OF_BIRD: &str = "hold time 90; bfd on; }
    protocol bfd {
      interface \"uplink\" { min rx interval 300 ms; min tx interval 300 ms; multiplier 3; };
    ";

struct Bed {
    bfd: Option<Process>,
    speaker: Program,
    bird: Bird,
    // It waits for the processes on its other side, so that it goes last.
    link: Link,
}

/// FRR's lines: an interval of 300 ms, three times, and our C bit is to count.
const BFD_OF_FRR: &str =
    " neighbor 10.0.0.1 bfd 3 300 300\n neighbor 10.0.0.1 bfd check-control-plane-failure\n";

/// `cairn bfd` in the run directory of the speaker.
fn start_bfd(link: &Link) -> Process {
    let run_dir = link.far().path("/run/cairn");
    let arguments = ["bfd", "--run-dir"].map(str::to_owned).into_iter();
    let arguments: Vec<_> = arguments.chain([run_dir.display().to_string()]).collect();
    Process::start(&built("cairn"), &arguments, &link.far().path("/run/cairn-bfd.log"))
}

impl Bed {
    async fn new() -> Bed {
        let link = Link::new();
        let setup = Setup {
            graceful_restart: true,
            more: BFD_OF_BIRD.into(),
            ..Setup::new(Transport::V4, 65002, 65001)
        };
        let bird = Bird::start(&link, &setup.announcing(&["172.16.2.0/24"]));
        let speaker = Program::start(&link, FILE);
        let mut bed = Bed { bfd: None, speaker, bird, link };
        bed.until_learned().await;
        // BGP does not wait for BFD, and says that it is missing.
        let problem = "`cairn bfd` does not answer";
        wait_for(
            "the problem",
            || bed.status().to_string().contains(problem),
            || bed.speaker.log(),
        );
        bed.bfd = Some(start_bfd(&bed.link));
        bed.until_both_up();
        assert!(!bed.status().to_string().contains(problem), "{}", bed.status());
        bed
    }

    fn status(&self) -> Value {
        let run_dir = self.link.far().path("/run/cairn");
        let mut command = std::process::Command::new(built("cairn"));
        let output = command.args(["status", "-o", "json", "--run-dir"]).arg(run_dir).output();
        serde_json::from_slice(&output.expect("it starts").stdout).unwrap_or_default()
    }

    fn why(&self) -> String {
        let log = self.link.far().read("/run/cairn-bfd.log");
        let bird = self.bird.ask("show bfd sessions");
        format!("{:#}\n{bird:?}\n{}\n{log}\n{}", self.status(), self.speaker.log(), self.bird.log())
    }

    fn until_both_up(&self) {
        let ours = || self.status()["sessions"][0]["bfd"] == "Up";
        wait_for("BFD is up", ours, || self.why());
        let bird = || self.bird.ask("show bfd sessions").unwrap_or_default().contains("Up");
        wait_for("BIRD's BFD is up", bird, || self.why());
    }

    async fn until_learned(&self) {
        wait_for("BIRD's route", || self.has_route(), || self.why());
        self.bird.until_learned("172.16.1.0/24").await;
    }

    fn has_route(&self) -> bool {
        let routes = self.speaker.ask(&["routes"]).unwrap_or_default();
        routes.iter().any(|route| route.to_string().contains("172.16.2.0/24"))
    }

    /// What went wrong last, in words.
    fn last_error(&self) -> String {
        self.speaker.peer("tor")["lastError"]["text"].as_str().unwrap_or_default().to_owned()
    }
}

/// What BIRD sends does not arrive any more: the route goes long before the hold time, in spite of graceful
/// restart; and it comes back with the link.
#[tokio::test]
async fn a_cut_link_withdraws_the_route() {
    let bed = Bed::new().await;
    let cut = Instant::now();
    bed.link.silence(true);
    wait_for("the route goes", || !bed.has_route(), || bed.why());
    assert!(cut.elapsed() < Duration::from_secs(10), "{:?}", cut.elapsed());
    assert!(bed.last_error().contains("BFD"), "{}", bed.last_error());
    // What we send still arrives: BFD's Down and Cease / BFD Down (6.10, RFC 9384), of which BIRD heeds the first.
    let told = || ["BFD session down", "6.10"].iter().any(|text| bed.bird.log().contains(text));
    wait_for("BIRD is told", told, || bed.why());
    bed.link.silence(false);
    bed.until_learned().await;
    bed.until_both_up();
}

/// The speaker is killed: BFD goes on, so that BIRD keeps the routes as graceful restart promises, and the next
/// speaker takes up the same BFD session.
#[tokio::test]
async fn bfd_outlives_the_speaker() {
    let Bed { bfd, speaker, bird, link } = Bed::new().await;
    drop(speaker);
    // Many detection times.
    tokio::time::sleep(Duration::from_secs(2)).await;
    assert!(bird.learned("172.16.1.0/24").is_some(), "{}", bird.log());
    let sessions = bird.ask("show bfd sessions").unwrap_or_default();
    assert!(sessions.contains("Up"), "{sessions}");
    let speaker = Program::start_again(&link);
    let bed = Bed { bfd, speaker, bird, link };
    bed.until_both_up();
    bed.until_learned().await;
    let run_dir = bed.link.far().path("/run/cairn");
    let client = cairn_bfd::control::Client::connect(&run_dir, Duration::from_secs(5));
    let cairn_bfd::control::Report::Overview(overview) =
        client.expect("it answers").report().expect("an overview")
    else {
        panic!("no overview");
    };
    assert_eq!(overview.sessions[0].ups, 1, "the session has never been down");
}

/// BFD is taken out of the configuration: its session ends, and this side's BGP goes on. BIRD 2.0 takes AdminDown for
/// a dead path and begins BGP anew.
#[tokio::test]
async fn bfd_is_taken_away() {
    let bed = Bed::new().await;
    bed.speaker.reload(&FILE.replace(" bfd: {intervalMs: 300},", ""));
    let none = || bed.status()["sessions"][0]["bfd"].is_null();
    wait_for("no BFD", none, || bed.why());
    let bird = || bed.bird.ask("show bfd sessions").unwrap_or_default();
    wait_for("BIRD's BFD is down", || !bird().contains("Up"), || bed.why());
    bed.until_learned().await;
    assert!(!bed.last_error().contains("BFD"), "{}", bed.why());
}

/// FRR keeps the routes of a speaker that is killed while BFD goes on, and takes them up again; a link that is cut
/// takes FRR's route away in spite of graceful restart.
#[tokio::test]
async fn with_frr() {
    let link = Link::new();
    let setup = Setup {
        graceful_restart: true,
        more: BFD_OF_FRR.into(),
        ..Setup::new(Transport::V4, 65002, 65001)
    };
    let frr = Frr::start(&link, &setup.announcing(&["172.16.2.0/24"]));
    let speaker = Program::start(&link, FILE);
    let _bfd = start_bfd(&link);
    let frr_bfd = || frr.json("show bfd peers json")[0]["status"].clone();
    let why = || format!("{}\n{:?}", frr.log(), frr.ask(&["show bfd peers"]));
    frr.until_learned("172.16.1.0/24").await;
    wait_for("FRR's BFD is up", || frr_bfd() == "up", why);
    let ours = |program: &Program| program.peer("tor")["state"] == "Established";
    wait_for("BGP is up", || ours(&speaker), || speaker.log());
    drop(speaker);
    // Many detection times.
    tokio::time::sleep(Duration::from_secs(2)).await;
    assert!(frr.learned("172.16.1.0/24").is_some(), "{}", why());
    assert_eq!(frr_bfd(), "up", "{}", why());
    let speaker = Program::start_again(&link);
    wait_for("BGP is up again", || ours(&speaker), || speaker.log());
    frr.until_learned("172.16.1.0/24").await;
    let has_route = || {
        let routes = speaker.ask(&["routes"]).unwrap_or_default();
        routes.iter().any(|route| route.to_string().contains("172.16.2.0/24"))
    };
    wait_for("FRR's route", has_route, || speaker.log());
    let cut = Instant::now();
    link.silence(true);
    wait_for("the route goes", || !has_route(), || speaker.log());
    assert!(cut.elapsed() < Duration::from_secs(10), "{:?}", cut.elapsed());
    let error = speaker.peer("tor")["lastError"]["text"].as_str().unwrap_or_default().to_owned();
    assert!(error.contains("BFD"), "{error}");
}
