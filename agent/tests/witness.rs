//! What peers announce reaches the IPAM, be it that policy rejects it.

use std::collections::BTreeMap;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::process::Command;
use std::sync::Arc;
use std::time::Duration;

use cairn_agent::ipam::{Heard, Witness};
use cairn_agent::witness::SpeakerWitness;
use cairn_bgp::config::{Multipath, Origination, PeerConfig, SpeakerConfig};
use cairn_bgp::policy::{Action, Changes, Match, Policy, Rule};
use cairn_bgp::speaker::{FibFeed, Shutdown, Speaker, SpeakerHandle, SpeakerOptions};
use tokio::sync::watch;

const OURS: Ipv4Addr = Ipv4Addr::new(192, 0, 2, 1);
const THEIRS: Ipv4Addr = Ipv4Addr::new(192, 0, 2, 2);

fn ip(arguments: &str) {
    let status = Command::new("ip").args(arguments.split(' ')).status();
    assert!(status.expect("the ip command: apt-get install iproute2").success(), "ip {arguments}");
}

/// Two addresses in a network namespace that goes with this thread.
fn two_addresses() {
    // SAFETY: no memory is passed; the runtime of one thread opens all its sockets on it.
    let result = unsafe { libc::unshare(libc::CLONE_NEWNET) };
    let error = std::io::Error::last_os_error();
    assert_eq!(result, 0, "a network namespace needs root: run the tests as root ({error})");
    ip("link set lo up");
    for address in [OURS, THEIRS] {
        ip(&format!("addr add {address}/32 dev lo"));
    }
}

fn reject() -> Arc<Policy> {
    let rule = Rule { matches: Match::default(), action: Action::Reject, set: Changes::default() };
    Arc::new(Policy { name: "none".into(), rules: vec![rule] })
}

fn start(own: Ipv4Addr, other: Ipv4Addr, prefixes: &[&str]) -> (SpeakerHandle, FibFeed) {
    let config = config("tor", own, other, prefixes);
    Speaker::start(config, SpeakerOptions::default()).expect("a valid configuration")
}

fn config(name: &str, own: Ipv4Addr, other: Ipv4Addr, prefixes: &[&str]) -> SpeakerConfig {
    let peer = PeerConfig {
        port: 1790,
        source_address: Some(own.into()),
        passive: own == THEIRS,
        connect_retry_secs: 1,
        import: vec![reject()],
        ..PeerConfig::new(IpAddr::V4(other), 65001)
    };
    let origination = |prefix: &&str| {
        let source = Arc::from("test");
        let origination = Origination { source, communities: Vec::new(), local_pref: None };
        (prefix.parse().expect("a prefix"), origination)
    };
    SpeakerConfig {
        origins: Default::default(),
        ranges: Default::default(),
        asn: 65001,
        router_id: own,
        cluster_id: None,
        listen: vec![SocketAddr::new(own.into(), 1790)],
        peers: BTreeMap::from([(name.into(), peer)]),
        originate: prefixes.iter().map(origination).collect(),
        selection_deferral_secs: 1,
        multipath: Multipath { paths_max: 1, same_as_path: false },
    }
}

#[tokio::test]
async fn the_speaker_that_runs_says_what_peers_announce() {
    two_addresses();
    let speaker = watch::Sender::new(None);
    let waiting = watch::Sender::new(0);
    let witness = SpeakerWitness::new(speaker.subscribe(), waiting.subscribe());
    let namesake = async || {
        let why = witness.why_deaf_to_namesake(Duration::from_secs(1)).await;
        why.unwrap_or_default()
    };
    let ask = |cidr: &str| witness.heard(cidr.parse().expect("a block"));
    assert_eq!(ask("10.1.0.64/26").await, [], "no speaker, no peers");
    let lasting = Duration::from_secs(1);
    let why_deaf = async || witness.why_deaf(lasting).await.unwrap_or_default();
    assert_eq!(why_deaf().await, "no BGP speaker runs on this node");

    let (theirs, _their_feed) = start(THEIRS, OURS, &["10.1.0.65/32", "10.1.0.128/26"]);
    let (ours, _our_feed) = start(OURS, THEIRS, &["10.1.0.0/26"]);
    speaker.send_replace(Some(ours.clone()));
    assert_eq!(why_deaf().await, "this node hears 0 of its 1 BGP peers");
    waiting.send_replace(2);
    assert_eq!(why_deaf().await, "this node hears 0 of its 3 BGP peers");
    waiting.send_replace(0);
    let heard = async || loop {
        let heard = ask("10.1.0.64/26").await;
        if !heard.is_empty() {
            break heard;
        }
        tokio::time::sleep(Duration::from_millis(10)).await;
    };
    let heard = tokio::time::timeout(Duration::from_secs(20), heard()).await.expect("an answer");
    let prefix = "10.1.0.65/32".parse().expect("a prefix");
    assert_eq!(heard, [Heard { prefix, peer: "tor".to_owned(), looped: false }]);
    assert_eq!(ask("10.1.0.0/26").await, [], "what this node announces is no peer's word");
    // Once the session has lasted for so long that its table is there.
    let hears = async || {
        while !why_deaf().await.is_empty() {
            tokio::time::sleep(Duration::from_millis(100)).await;
        }
    };
    tokio::time::timeout(Duration::from_secs(20), hears()).await.expect("it hears");
    assert_eq!(namesake().await, "", "the peer is a router");
    // Nodes have no session with another machine of this name.
    let mesh = config("mesh/n2", OURS, THEIRS, &[]);
    ours.apply(mesh).expect("a valid configuration");
    assert_eq!(namesake().await, "no BGPPeer of this node would tell of it");

    ours.shutdown(Shutdown::KeepRoutes).await;
    assert_eq!(ask("10.1.0.64/26").await, [], "a speaker that has ended hears nothing");
    theirs.shutdown(Shutdown::KeepRoutes).await;
}

/// Its runtime stands still, so it never answers: the block may be announced by anybody.
#[test]
fn a_speaker_that_does_not_answer_lets_no_claim_and_no_return_go_on() {
    let runtime = || {
        let mut builder = tokio::runtime::Builder::new_current_thread();
        builder.enable_all().start_paused(true).build().expect("a runtime")
    };
    let (standing, running) = (runtime(), runtime());
    let config = SpeakerConfig {
        origins: Default::default(),
        ranges: Default::default(),
        asn: 65001,
        router_id: OURS,
        cluster_id: None,
        listen: Vec::new(),
        peers: BTreeMap::new(),
        originate: BTreeMap::new(),
        selection_deferral_secs: 1,
        multipath: Multipath { paths_max: 1, same_as_path: false },
    };
    let started = async { Speaker::start(config, SpeakerOptions::default()) };
    let (speaker, _feed) = standing.block_on(started).expect("a valid configuration");
    let speaker = watch::Sender::new(Some(speaker));
    let witness = SpeakerWitness::new(speaker.subscribe(), watch::Sender::new(0).subscribe());
    let block = "10.1.0.64/26".parse().expect("a block");
    let heard = running.block_on(witness.heard(block));
    let [only] = &heard[..] else { panic!("{heard:?}") };
    assert_eq!((only.prefix, only.looped), (block, true), "no owner takes it for a conflict");
    assert!(only.peer.contains("does not answer"), "{only:?}");
}
