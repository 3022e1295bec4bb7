//! What a running speaker answers about its tables, and what those who watch it are told.

mod speaker_net;

use std::net::IpAddr;

use cairn_bgp::prefix::{Family, Prefix};
use cairn_bgp::rib::{RouteQuery, Step, TableFilter, TableKind, TableRow};
use cairn_bgp::session::SessionState;
use cairn_bgp::speaker::SpeakerHandle;
use cairn_bgp::status::WatchEvent;
use speaker_net::{Fib, Net, Node, accept_all, connect, originate};

async fn rows(handle: &SpeakerHandle, filter: TableFilter) -> Vec<TableRow> {
    let mut table = handle.table(filter).await.expect("the speaker runs");
    let mut rows = Vec::new();
    while let Some(more) = table.next().await.expect("the speaker runs") {
        rows.extend(more);
    }
    rows
}

fn filter(table: TableKind) -> TableFilter {
    TableFilter { table, family: None, within: None }
}

fn prefix(text: &str) -> Prefix {
    text.parse().expect("a prefix")
}

fn prefixes(rows: &[TableRow]) -> Vec<String> {
    let prefix = |row: &TableRow| match row {
        TableRow::LocRib(route) => route.prefix,
        TableRow::AdjIn(route) => route.prefix,
        TableRow::AdjOut(route) => route.prefix,
    };
    rows.iter().map(|row| prefix(row).to_string()).collect()
}

#[tokio::test]
async fn tables_are_read_in_order_and_in_parts() {
    let net = Net::new();
    let (mut a, b) = net.pair(65001, 65001);
    let many: Vec<String> =
        (0..1000u32).map(|n| format!("10.{}.{}.0/24", n / 256, n % 256)).collect();
    originate(&mut a.config, &many.iter().map(String::as_str).collect::<Vec<_>>());
    originate(&mut a.config, &["fd00:1::/64", "fd00:2::/64"]);
    let (a, b) = (Node::start(a), Node::start(b));
    let mut fib = Fib::new(b.feed);
    fib.until_has(&["10.0.0.0/24", "10.3.231.0/24", "fd00:2::/64"]).await;
    let all = rows(&b.handle, filter(TableKind::LocRib { peer: None })).await;
    let mut expected = many.clone();
    expected.extend(["fd00:1::/64".to_owned(), "fd00:2::/64".to_owned()]);
    assert_eq!(prefixes(&all), expected);
    for table in [TableKind::LocRib { peer: Some("a".into()) }, TableKind::AdjIn("a".into())] {
        assert_eq!(prefixes(&rows(&b.handle, filter(table)).await), expected);
    }
    assert_eq!(prefixes(&rows(&a.handle, filter(TableKind::AdjOut("b".into()))).await), expected);
    for table in [TableKind::AdjIn("nobody".into()), TableKind::AdjOut("a".into())] {
        assert!(rows(&b.handle, filter(table)).await.is_empty());
    }
    let ipv6 = TableFilter {
        family: Some(Family::Ipv6Unicast),
        ..filter(TableKind::LocRib { peer: None })
    };
    assert_eq!(prefixes(&rows(&b.handle, ipv6).await), expected[1000..]);
    let within = TableFilter {
        within: Some(prefix("10.3.0.0/16")),
        ..filter(TableKind::LocRib { peer: None })
    };
    assert_eq!(prefixes(&rows(&b.handle, within).await), expected[768..1000]);

    // What goes while a table is read is left out of what follows.
    let mut table = b.handle.table(filter(TableKind::AdjIn("a".into()))).await.expect("b runs");
    assert_eq!(table.len(), 1002);
    let first = table.next().await.expect("b runs").expect("rows");
    assert!(first.len() < 1002, "a part and not all");
    let mut config = a.config.clone();
    config.originate.clear();
    a.handle.apply(config).expect("a valid configuration");
    fib.until_exactly(&[]).await;
    while let Some(more) = table.next().await.expect("b runs") {
        assert!(more.is_empty(), "{more:?}");
    }
}

#[tokio::test]
async fn a_route_is_explained_from_its_candidates_to_those_who_are_told() {
    let net = Net::new();
    let (mut a, mut b, mut c) = (net.speaker(65001), net.speaker(65002), net.speaker(65003));
    connect(&mut a, "a", &mut b, "b");
    connect(&mut c, "c", &mut b, "b");
    for setup in [&mut a, &mut b, &mut c] {
        for peer in setup.config.peers.values_mut() {
            (peer.import, peer.export) = (vec![accept_all()], vec![accept_all()]);
        }
    }
    b.config.peers.get_mut("c").expect("c is a peer").import.clear();
    originate(&mut a.config, &["10.1.0.0/16", "10.1.2.0/24"]);
    originate(&mut c.config, &["10.1.2.0/24"]);
    let b_address = b.config.listen[0].ip();
    let (_a, b, c) = (Node::start(a), Node::start(b), Node::start(c));
    let mut fib = Fib::new(c.feed);
    fib.until_has(&["10.1.0.0/16"]).await;
    speaker_net::until("b has both routes", || async {
        let query = RouteQuery::Prefix(prefix("10.1.2.0/24"));
        let told = b.handle.explain(query).await.expect("b runs");
        told.is_some_and(|told| told.route.candidates.len() == 2)
    })
    .await;

    let address = |text: &str| RouteQuery::Address(text.parse::<IpAddr>().expect("an address"));
    let told = b.handle.explain(address("10.1.2.3")).await.expect("b runs").expect("a route");
    assert_eq!(told.route.prefix, prefix("10.1.2.0/24"));
    let [best, other] = &told.route.candidates[..] else { panic!("{told:?}") };
    assert_eq!((best.peer.as_deref(), best.best, best.lost_at), (Some("a"), true, None));
    assert_eq!((other.peer.as_deref(), other.best), (Some("c"), false));
    assert_eq!(other.lost_at, Some(Step::NotEligible));
    assert!(other.verdict.contains("RFC 8212"), "{other:?}");
    let [to_c] = &told.told[..] else { panic!("{told:?}") };
    assert_eq!((to_c.peer.as_str(), to_c.advertised.as_path.as_str()), ("c", "65002 65001"));
    assert_eq!(to_c.advertised.from.as_deref(), Some("a"));
    assert_eq!(to_c.advertised.next_hop, Some(b_address.to_string()));
    assert_eq!(to_c.advertised.local_pref, None, "it does not leave the AS");

    let told = b.handle.explain(address("10.1.9.9")).await.expect("b runs").expect("a route");
    assert_eq!(told.route.prefix, prefix("10.1.0.0/16"));
    assert_eq!(b.handle.explain(address("10.2.0.1")).await.expect("b runs"), None);
    let unknown = RouteQuery::Prefix(prefix("10.1.2.0/25"));
    assert_eq!(b.handle.explain(unknown).await.expect("b runs"), None);
}

#[tokio::test]
async fn those_who_watch_are_told_what_happens_and_what_they_missed() {
    let net = Net::new();
    let (mut a, b) = net.pair(65001, 65001);
    originate(&mut a.config, &["10.1.0.0/24"]);
    let b = Node::start(b);
    let mut feed = b.handle.watch().await.expect("b runs");
    let mut lazy = b.handle.watch().await.expect("b runs");
    let mut fib = Fib::new(b.feed);
    let a = Node::start(a);
    let mut next = async || loop {
        match &*feed.recv().await.expect("b runs") {
            WatchEvent::Session(change) if change.to == SessionState::Established => {
                break "established".to_owned();
            }
            WatchEvent::Session(change) => assert_eq!(change.peer, "a"),
            WatchEvent::Route(change) => {
                let from = change.best.as_ref().and_then(|best| best.peer.clone());
                break format!("{} from {from:?}", change.prefix);
            }
            WatchEvent::Missed { events } => panic!("missed {events}"),
        }
    };
    assert_eq!(next().await, "established");
    assert_eq!(next().await, "10.1.0.0/24 from Some(\"a\")");
    let mut config = a.config.clone();
    config.originate.clear();
    a.handle.apply(config.clone()).expect("a valid configuration");
    assert_eq!(next().await, "10.1.0.0/24 from None");

    // One that does not read costs what is kept for all, and hears of the rest as a number.
    for round in 0..4u32 {
        let many: Vec<String> =
            (0..4096u32).map(|n| format!("10.{round}.{}.{}/28", n / 16, n % 16 * 16)).collect();
        let many: Vec<&str> = many.iter().map(String::as_str).collect();
        config.originate.clear();
        originate(&mut config, &many);
        a.handle.apply(config.clone()).expect("a valid configuration");
        fib.until_exactly(&many).await;
    }
    let mut missed = 0;
    let mut told = 0u64;
    while missed + told < 4 * 4096 {
        match &*lazy.recv().await.expect("b runs") {
            WatchEvent::Missed { events } => missed += events,
            _ => told += 1,
        }
    }
    assert!(missed > 0 && told > 0, "{missed} missed, {told} told");
}
