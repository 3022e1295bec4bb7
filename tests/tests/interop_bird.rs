//! Our speaker and BIRD 2: sessions and routes of both families, both ways, restarts, refresh.

use std::collections::BTreeMap;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::sync::Arc;
use std::time::Duration;

use cairn_bgp::config::{Multipath, Origination, PeerConfig, SpeakerConfig};
use cairn_bgp::policy::{Action, Changes, Match, Policy, Rule};
use cairn_bgp::rib::FibRoute;
use cairn_bgp::session::SessionState;
use cairn_bgp::speaker::{FibFeed, Shutdown, Speaker, SpeakerHandle, SpeakerOptions};
use cairn_tests::bird::{Bird, Link};

/// Our side with the forwarding table that its feed describes.
struct Us {
    handle: SpeakerHandle,
    feed: FibFeed,
    routes: BTreeMap<String, FibRoute>,
    removed: Vec<String>,
}

impl Us {
    fn start(config: SpeakerConfig, options: SpeakerOptions) -> Us {
        let (handle, feed) = Speaker::start(config, options).expect("a valid configuration");
        Us { handle, feed, routes: BTreeMap::new(), removed: Vec::new() }
    }

    async fn until(&mut self, what: &str, holds: impl Fn(&BTreeMap<String, FibRoute>) -> bool) {
        let waiting = async {
            while !holds(&self.routes) {
                let batch = self.feed.recv().await.expect("the speaker runs");
                for change in batch.changes {
                    let prefix = change.prefix.to_string();
                    match change.route {
                        Some(route) => drop(self.routes.insert(prefix, route)),
                        None => {
                            self.routes.remove(&prefix);
                            self.removed.push(prefix);
                        }
                    }
                }
            }
        };
        if tokio::time::timeout(Duration::from_secs(20), waiting).await.is_err() {
            let snapshot = self.handle.snapshot().await;
            panic!("never: {what}: {:?}\n{snapshot:?}", self.routes);
        }
    }

    async fn until_routes(&mut self, wanted: &[&str]) {
        let wanted = wanted.to_vec();
        let mut sorted = wanted.clone();
        sorted.sort_unstable();
        self.until(&format!("routes {wanted:?}"), |routes| {
            routes.keys().map(String::as_str).eq(sorted.iter().copied())
        })
        .await;
    }

    async fn state(&self) -> SessionState {
        self.handle.snapshot().await.expect("the speaker runs").peers["bird"].state
    }
}

fn config(transport: IpAddr, asn: u32, bird_asn: u32, originate: &[&str]) -> SpeakerConfig {
    let (local, remote) = match transport {
        IpAddr::V4(_) => ("10.0.0.1", "10.0.0.2"),
        IpAddr::V6(_) => ("fd00::1", "fd00::2"),
    };
    let local: IpAddr = local.parse().expect("an address");
    let (matches, set) = (Match::default(), Changes::default());
    let rules = vec![Rule { matches, action: Action::Accept, set }];
    let all = Arc::new(Policy { name: "all".into(), rules });
    let peer = PeerConfig {
        source_address: Some(local),
        hold_time_secs: 9,
        connect_retry_secs: 1,
        graceful_restart_secs: Some(30),
        import: vec![Arc::clone(&all)],
        export: vec![all],
        ..PeerConfig::new(remote.parse().expect("an address"), bird_asn)
    };
    let origination = || Origination {
        source: "test".into(),
        communities: vec![65001 << 16 | 7],
        local_pref: None,
    };
    SpeakerConfig {
        asn,
        router_id: Ipv4Addr::new(10, 0, 0, 1),
        listen: vec![SocketAddr::new(local, 179)],
        peers: BTreeMap::from([("bird".into(), peer)]),
        originate: originate
            .iter()
            .map(|prefix| (prefix.parse().expect("a prefix"), origination()))
            .collect(),
        selection_deferral_secs: 10,
        multipath: Multipath { paths_max: 1, same_as_path: false },
    }
}

/// A BIRD that announces static routes and takes everything.
fn bird_config(transport: IpAddr, asn: u32, our_asn: u32, routes: &[&str]) -> String {
    let (local, remote) = match transport {
        IpAddr::V4(_) => ("10.0.0.2", "10.0.0.1"),
        IpAddr::V6(_) => ("fd00::2", "fd00::1"),
    };
    let statics = |v6: bool| {
        let of_family = routes.iter().filter(|route| route.contains(':') == v6);
        of_family.map(|route| format!("route {route} blackhole;")).collect::<Vec<_>>().join(" ")
    };
    format!(
        "log stderr all;
         router id 10.0.0.2;
         graceful restart wait 10;
         protocol device {{ scan time 1; }}
         protocol static s4 {{ ipv4; {} }}
         protocol static s6 {{ ipv6; {} }}
         protocol bgp cairn {{
           debug {{ states, events }};
           local {local} as {asn};
           neighbor {remote} as {our_asn};
           hold time 9; connect delay time 1; connect retry time 1; error wait time 1, 2;
           graceful restart on;
           ipv4 {{ import all; export all; next hop address 10.0.0.2; }};
           ipv6 {{ import all; export all; next hop address fd00::2; }};
         }}",
        statics(false),
        statics(true)
    )
}

const V4: IpAddr = IpAddr::V4(Ipv4Addr::UNSPECIFIED);
const V6: IpAddr = IpAddr::V6(std::net::Ipv6Addr::UNSPECIFIED);
const OURS: [&str; 3] = ["10.1.0.0/26", "10.1.0.64/26", "fd00:1::/122"];
const BIRDS: [&str; 3] = ["10.2.0.0/24", "10.2.1.0/24", "fd00:2::/64"];

async fn exchange(transport: IpAddr, asn: u32, bird_asn: u32) {
    let link = Link::new();
    let bird = link.bird(&bird_config(transport, bird_asn, asn, &BIRDS));
    let mut config = config(transport, asn, bird_asn, &OURS);
    let mut us = Us::start(config.clone(), SpeakerOptions::default());
    us.until_routes(&BIRDS).await;
    for prefix in BIRDS {
        let path = &us.routes[prefix].paths[0];
        let next_hop = if prefix.contains(':') { "fd00::2" } else { "10.0.0.2" };
        assert_eq!(path.next_hop.to_string(), next_hop, "{prefix}");
        let as_path = path.attributes.path.as_path().to_string();
        assert_eq!(as_path, if asn == bird_asn { String::new() } else { bird_asn.to_string() });
    }
    for prefix in OURS {
        bird.until(&format!("BIRD has {prefix}"), |bird| bird.route(prefix).is_some()).await;
        let route = bird.route(prefix).unwrap_or_default();
        let next_hop = if prefix.contains(':') { "fd00::1" } else { "10.0.0.1" };
        assert!(route.contains(&format!("BGP.next_hop: {next_hop}")), "{route}");
        assert!(route.contains("BGP.origin: IGP"), "{route}");
        assert!(route.contains("BGP.community: (65001,7)"), "{route}");
        if asn == bird_asn {
            assert!(route.contains("BGP.local_pref: 100"), "{route}");
        } else {
            assert!(route.contains(&format!("BGP.as_path: {asn}")), "{route}");
        }
    }
    // Withdrawals, both ways.
    config.originate.remove(&"10.1.0.0/26".parse().expect("a prefix"));
    config.originate.remove(&"fd00:1::/122".parse().expect("a prefix"));
    us.handle.apply(config).expect("a valid configuration");
    bird.until("our withdrawals arrive", |bird| {
        bird.route("10.1.0.0/26").is_none() && bird.route("fd00:1::/122").is_none()
    })
    .await;
    assert!(bird.route("10.1.0.64/26").is_some());
    let _ = bird.ask("disable s6");
    us.until_routes(&BIRDS[..2]).await;
    let snapshot = us.handle.snapshot().await.expect("the speaker runs");
    assert_eq!(snapshot.peers["bird"].established_count, 1, "{snapshot:?}");
    us.handle.shutdown(Shutdown::Cease { text: "test over".into() }).await;
    bird.until("BIRD reads the reason", |bird| bird.log().contains("test over")).await;
}

#[tokio::test]
async fn ebgp_over_ipv4() {
    exchange(V4, 65001, 65002).await;
}

#[tokio::test]
async fn ebgp_over_ipv6_with_4_octet_as() {
    exchange(V6, 65001, 4_200_000_002).await;
}

#[tokio::test]
async fn ibgp_over_ipv4() {
    exchange(V4, 65001, 65001).await;
}

#[tokio::test]
async fn ibgp_over_ipv6() {
    exchange(V6, 65001, 65001).await;
}

#[tokio::test]
async fn a_killed_bird_keeps_its_routes_here_until_it_is_back() {
    let link = Link::new();
    let bird = link.bird(&bird_config(V4, 65002, 65001, &BIRDS));
    let mut us = Us::start(config(V4, 65001, 65002, &OURS), SpeakerOptions::default());
    us.until_routes(&BIRDS).await;
    let killed = bird.kill();
    while us.state().await == SessionState::Established {
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    let routes = us.handle.routes(Default::default()).await.expect("the speaker runs");
    let stale = routes.iter().flat_map(|r| &r.candidates).filter(|c| c.stale).count();
    assert_eq!(stale, BIRDS.len());
    // Back without one of them: only that one goes, and only now.
    let bird = link.bird_again(killed, &bird_config(V4, 65002, 65001, &BIRDS[1..]));
    us.until_routes(&BIRDS[1..]).await;
    assert_eq!(us.removed, [BIRDS[0]]);
    bird.until("BIRD has our routes again", |bird| OURS.iter().all(|p| bird.route(p).is_some()))
        .await;
}

#[tokio::test]
async fn our_restart_keeps_our_routes_at_bird() {
    let link = Link::new();
    let bird = link.bird(&bird_config(V4, 65002, 65001, &BIRDS));
    let mut us = Us::start(config(V4, 65001, 65002, &OURS), SpeakerOptions::default());
    us.until_routes(&BIRDS).await;
    bird.until("BIRD has our routes", |bird| OURS.iter().all(|p| bird.route(p).is_some())).await;
    us.handle.shutdown(Shutdown::KeepRoutes).await;
    drop(us);
    bird.until("BIRD waits for us", |bird| {
        let state = bird.ask("show protocols all cairn").unwrap_or_default();
        state.contains("Neighbor graceful restart active")
    })
    .await;
    assert!(OURS.iter().all(|prefix| bird.route(prefix).is_some()));
    let options = SpeakerOptions {
        forwarding_preserved: true,
        restarting: true,
        ..SpeakerOptions::default()
    };
    let mut us = Us::start(config(V4, 65001, 65002, &OURS[1..]), options);
    us.until_routes(&BIRDS).await;
    // End-of-RIB sweeps what we no longer announce, and nothing else at any time.
    bird.until("BIRD drops the route that is gone", |bird| bird.route(OURS[0]).is_none()).await;
    assert!(OURS[1..].iter().all(|prefix| bird.route(prefix).is_some()));
    let flaps = OURS[1..].iter().filter(|p| bird.log().contains(&format!("removed {p}"))).count();
    assert_eq!(flaps, 0);
}

#[tokio::test]
async fn bird_gets_everything_again_when_it_asks() {
    let link = Link::new();
    let bird = link.bird(&bird_config(V4, 65002, 65001, &BIRDS));
    let us = Us::start(config(V4, 65001, 65002, &OURS), SpeakerOptions::default());
    bird.until("BIRD has our routes", |bird| OURS.iter().all(|p| bird.route(p).is_some())).await;
    let before = import_updates(&bird);
    let answer = bird.ask("reload in cairn").unwrap_or_default();
    assert!(answer.contains("reloading"), "{answer}");
    bird.until("the routes come again", |bird| import_updates(bird) >= before + OURS.len()).await;
    assert_eq!(us.state().await, SessionState::Established);
}

/// How many routes BIRD has been told by us, over both channels.
fn import_updates(bird: &Bird) -> usize {
    let text = bird.ask("show protocols all cairn").unwrap_or_default();
    let counts = text.lines().filter_map(|line| {
        line.trim()
            .strip_prefix("Import updates:")?
            .split_whitespace()
            .next()?
            .parse::<usize>()
            .ok()
    });
    counts.sum()
}
