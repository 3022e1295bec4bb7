//! Routes that pass through us from one daemon to another.

use cairn_bgp::speaker::SpeakerOptions;
use cairn_tests::bird::Bird;
use cairn_tests::daemon::{Announced, Daemon, Learned, Setup, Transport};
use cairn_tests::link::{Link, PATIENCE, POLL_PAUSE};
use cairn_tests::us::{self, Us};

use super::sessions::AS_TRANS;

/// Between the daemon and a BIRD in another AS, both ways: our AS is in front, the next hop is ours,
/// communities of both kinds stay. With an OLD speaker (RFC 6793) AS numbers of four octets survive
/// in AS4_PATH.
pub async fn passes_on<D: Daemon>(setup: Setup) {
    let link = Link::new();
    link.host(3);
    let behind = if D::PREPENDS_ANY { vec![4_200_000_004] } else { Vec::new() };
    let mut setup = setup;
    setup.routes.push(Announced {
        prefix: "10.2.0.0/24".into(),
        as_path: behind.clone(),
        communities: vec!["65002:3".into(), "65002:4".into()],
        large_communities: vec!["4200000001:4294967295:2".into()],
    });
    let mut third = Setup::new(setup.transport, 4_200_000_003, setup.our_asn).at(3);
    third.routes.push(Announced {
        prefix: "10.3.0.0/24".into(),
        as_path: vec![65009],
        communities: vec!["65003:3".into(), "65003:5".into()],
        large_communities: vec!["65003:1:2".into(), "65003:1:3".into()],
    });
    let daemon = D::start(&link, &setup);
    let bird = Bird::start(&link, &third);
    let mut us = Us::with(us::config(&[&setup, &third], &[]), SpeakerOptions::default());
    us.until_routes(&["10.2.0.0/24", "10.3.0.0/24"]).await;
    let own = setup.remote.clone();
    let path = |numbers: &[u32]| {
        let numbers: Vec<_> = numbers.iter().map(u32::to_string).collect();
        numbers.join(" ")
    };
    let at_bird = bird.until_learned("10.2.0.0/24").await;
    let mut as_path = vec![setup.our_asn, setup.asn];
    as_path.extend(behind);
    let expected = Learned {
        next_hop: own.clone(),
        as_path: path(&as_path),
        local_pref: at_bird.local_pref,
        communities: setup.routes[0].communities.clone(),
        large_communities: setup.routes[0].large_communities.clone(),
    };
    assert_eq!(at_bird, expected);
    let at_daemon = daemon.until_learned("10.3.0.0/24").await;
    let lost = !setup.four_octet_as && !D::MERGES_AS4_PATH;
    let third_asn = if lost { AS_TRANS } else { third.asn };
    let expected = Learned {
        next_hop: own,
        as_path: path(&[setup.our_asn, third_asn, 65009]),
        local_pref: at_daemon.local_pref,
        communities: third.routes[0].communities.clone(),
        large_communities: third.routes[0].large_communities.clone(),
    };
    assert_eq!(at_daemon, expected);
}

/// Between the daemon and a BIRD of our own AS, by reflection (RFC 4456): nothing of the route
/// changes, and who brought it in and through which cluster stands in it.
pub async fn reflects<D: Daemon>(setup: Setup) {
    let link = Link::new();
    link.host(3);
    let setup = setup.announcing(&["10.2.0.0/24"]);
    let client = Setup::new(setup.transport, setup.asn, setup.our_asn).at(3);
    let mut client = client.announcing(&["10.3.0.0/24"]);
    // Where nobody is: what has an address takes no route with it as next hop.
    client.next_hops = Transport::ALL.map(|family| family.address(9));
    let daemon = D::start(&link, &setup);
    let bird = Bird::start(&link, &client);
    let mut config = us::config(&[&setup, &client], &[]);
    for peer in config.peers.values_mut() {
        peer.route_reflector_client = true;
    }
    let mut us = Us::with(config, SpeakerOptions::default());
    us.until_routes(&["10.2.0.0/24", "10.3.0.0/24"]).await;
    let at_bird = bird.until_learned("10.2.0.0/24").await;
    assert_eq!((at_bird.next_hop.as_str(), at_bird.as_path.as_str()), (setup.next_hop("10."), ""));
    let text = bird.ask("show route 10.2.0.0/24 all").unwrap_or_default();
    assert!(text.contains(&format!("BGP.originator_id: {}", setup.router_id())), "{text}");
    assert!(text.contains("BGP.cluster_list: 10.0.0.1"), "{text}");
    let at_daemon = daemon.until_learned("10.3.0.0/24").await;
    let next_hop = client.next_hop("10.");
    assert_eq!((at_daemon.next_hop.as_str(), at_daemon.as_path.as_str()), (next_hop, ""));
}

/// A route whose attributes need a message of more than 4,096 octets (RFC 8654): from the daemon to
/// us, from us to the daemon, and not to a BIRD that has only short messages, which loses the route
/// when it grows too long and keeps its session.
pub async fn long_route<D: Daemon>(setup: Setup) {
    let link = Link::new();
    for host in [3, 4] {
        link.host(host);
    }
    let theirs = "10.2.0.0/24";
    let ours = "10.3.0.0/24";
    let mut setup = setup.announcing(&[theirs]);
    let extended =
        Setup { extended_messages: true, ..Setup::new(setup.transport, 65003, setup.our_asn) };
    let third = extended.at(3).announcing(&[ours]);
    let short = Setup::new(setup.transport, 65004, setup.our_asn).at(4);
    let mut daemon = D::start(&link, &setup);
    let mut third_bird = Bird::start(&link, &third);
    let short_bird = Bird::start(&link, &short);
    let mut us = Us::with(us::config(&[&setup, &third, &short], &[]), SpeakerOptions::default());
    us.until_routes(&[theirs, ours]).await;
    short_bird.until_learned(theirs).await;
    short_bird.until_learned(ours).await;
    let long: Vec<String> = (1..=500).map(|number| format!("65003:1:{number}")).collect();
    daemon.apply(|setup| setup.routes[0].large_communities = long.clone());
    third_bird.apply(|setup| setup.routes[0].large_communities = long.clone());
    setup.routes.clear();
    for (what, prefix) in [("theirs", theirs), ("ours", ours)] {
        let started = std::time::Instant::now();
        while us.learned(prefix).await.is_none_or(|l| l.large_communities.len() < long.len()) {
            assert!(started.elapsed() < PATIENCE, "never: {what} with all its communities here");
            tokio::time::sleep(POLL_PAUSE).await;
        }
    }
    daemon
        .until("the daemon has the long route", |daemon| {
            daemon.learned(ours).is_some_and(|learned| learned.large_communities == long)
        })
        .await;
    third_bird
        .until("the third one has the long route", |bird| {
            bird.learned(theirs).is_some_and(|learned| learned.large_communities == long)
        })
        .await;
    short_bird
        .until("it is withdrawn from who has only short messages", |bird| {
            bird.learned(theirs).is_none() && bird.learned(ours).is_none()
        })
        .await;
    let snapshot = us.handle.snapshot().await.expect("the speaker runs");
    assert!(snapshot.peers.values().all(|peer| peer.established_count == 1), "{snapshot:#?}");
}
