//! Our table on the running kernel: what is written, when, and what happens when others write.

mod support;

use std::cell::RefCell;
use std::collections::BTreeSet;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::time::{Duration, Instant};

use cairn_kernel::NetNs;
use cairn_kernel::firewall::{
    self, Firewall, FirewallKeeper, FirewallPass, Outer, TunnelRule, script, update,
};
use ipnet::IpNet;
use proptest::prelude::*;
use support::{TestNetNs, sh};

fn nets(texts: &[&str]) -> BTreeSet<IpNet> {
    texts.iter().map(|text| text.parse().unwrap()).collect()
}

fn addresses(texts: &[&str]) -> BTreeSet<IpAddr> {
    texts.iter().map(|text| text.parse().unwrap()).collect()
}

fn full() -> Firewall {
    Firewall {
        pools: nets(&["10.244.0.0/16", "10.245.0.0/24", "fd00:10::/64"]),
        nat_pools: nets(&["10.244.0.0/16", "fd00:10::/64"]),
        excluded: nets(&["10.0.0.0/8", "10.1.0.0/16", "198.51.100.7/32", "2001:db8:e::/48"]),
        nodes: addresses(&["192.0.2.1", "192.0.2.2", "2001:db8::1"]),
        tunnel_pools: nets(&["10.244.0.0/16"]),
        tunnel_nodes: addresses(&["192.0.2.2"]),
        tunnels: vec![
            TunnelRule {
                device: "cairn.vxlan",
                addresses: vec!["10.244.3.1".parse().unwrap(), "fd00:10::301".parse().unwrap()],
                local: "2001:db8::1".parse().unwrap(),
                protect: Outer::Vxlan { port: 4798, vni: 198 },
            },
            TunnelRule {
                device: "cairn.ipip",
                addresses: vec!["10.244.3.2".parse().unwrap()],
                local: "192.0.2.1".parse().unwrap(),
                protect: Outer::Ipip,
            },
        ],
        ..Firewall::new("cairn")
    }
}

fn keeper(netns: &TestNetNs) -> FirewallKeeper {
    FirewallKeeper::open_in(NetNs::open(&netns.name).unwrap()).unwrap()
}

async fn apply(keeper: &mut FirewallKeeper) -> FirewallPass {
    keeper.apply(Instant::now()).await
}

fn written(writes: usize) -> FirewallPass {
    FirewallPass { writes, failed: 0 }
}

/// Loads a script as the keeper does.
fn load(netns: &NetNs, script: &str) {
    sh(netns, &format!("nft -f - <<'END'\n{script}END\n"));
}

fn listed(netns: &NetNs) -> String {
    sh(netns, "nft -s list table inet cairn")
}

/// The table, and nft's own words for it as a check that the kernel has understood it.
#[test]
fn the_script_is_the_golden_one_and_the_kernel_takes_it() {
    let golden = include_str!("golden/firewall.nft");
    assert_eq!(script(&full()), golden, "if this is meant, update kernel/tests/golden");
    let netns = TestNetNs::create();
    load(&netns, golden);
    // Again, over itself.
    load(&netns, golden);
    let rules = listed(&netns);
    assert!(rules.contains("elements = { 10.0.0.0/8, 198.51.100.7 }"), "merged: {rules}");
}

fn some_firewall() -> impl Strategy<Value = Firewall> {
    // Few bits, so that networks overlap, touch and recur.
    let v4 = (0u32..8, 26u8..=32).prop_map(|(bits, length)| {
        IpNet::new(Ipv4Addr::from(0x0af4_0000 | bits << 4).into(), length).unwrap()
    });
    let v6 = (0u128..8, 121u8..=128).prop_map(|(bits, length)| {
        let address = Ipv6Addr::from(0xfd00_u128 << 112 | bits << 5);
        IpNet::new(address.into(), length).unwrap()
    });
    let net =
        prop_oneof![v4, v6, Just("0.0.0.0/0".parse().unwrap()), Just("::/0".parse().unwrap())];
    let nets = || proptest::collection::btree_set(net.clone(), 0..6);
    let address = (0u8..20).prop_map(|last| IpAddr::from([192, 0, 2, last]));
    let addresses = || proptest::collection::btree_set(address.clone(), 0..12);
    (nets(), nets(), nets(), nets(), addresses(), addresses()).prop_map(
        |(pools, nat_pools, tunnel_pools, excluded, nodes, tunnel_nodes)| Firewall {
            pools,
            nat_pools,
            excluded,
            nodes,
            tunnel_pools,
            tunnel_nodes,
            ..full()
        },
    )
}

#[test]
fn an_update_leads_to_the_same_table_as_the_whole_script() {
    let (one, other) = (TestNetNs::create(), TestNetNs::create());
    let config = ProptestConfig { cases: 40, failure_persistence: None, ..Default::default() };
    load(&one, &script(&full()));
    let before = RefCell::new(full());
    proptest!(config, |(after in some_firewall())| {
        load(&one, &update(&before.borrow(), &after).unwrap());
        load(&other, &script(&after));
        prop_assert_eq!(listed(&one), listed(&other));
        *before.borrow_mut() = after;
    });
    let before = before.into_inner();
    let mut tunnelless = before.clone();
    tunnelless.tunnels.clear();
    assert_eq!(update(&before, &tunnelless), None, "other rules need the whole table");
    assert_eq!(update(&before, &before).as_deref(), Some(""));
}

/// A rule's handle is new whenever the table is written as a whole, an element's write shows in the
/// ruleset's generation.
fn generation(netns: &NetNs) -> String {
    sh(netns, "nft -a list table inet cairn | grep 'fib saddr . iif'")
}

#[tokio::test]
async fn only_what_differs_is_written_over_a_restart_too() {
    let netns = TestNetNs::create();
    let mut first = keeper(&netns);
    assert_eq!(apply(&mut first).await, written(0), "nobody has said what is wanted");
    assert_eq!(sh(&netns, "nft list tables"), "");
    first.set(full());
    assert!(first.is_dirty());
    assert_eq!(apply(&mut first).await, written(1), "{:?}", first.problems());
    assert!(!first.is_dirty());
    let fresh = generation(&netns);
    assert_eq!(apply(&mut first).await, written(0));
    first.set(full());
    assert!(!first.is_dirty(), "the same as before");
    drop(first);

    let mut second = keeper(&netns);
    second.set(full());
    assert_eq!(apply(&mut second).await, written(0), "the table is as it should be");
    let mut more = full();
    more.nodes.insert("192.0.2.3".parse().unwrap());
    second.set(more.clone());
    assert_eq!(apply(&mut second).await, written(1));
    assert_eq!(generation(&netns), fresh, "one element was added and no rule replaced");
    assert!(listed(&netns).contains("192.0.2.3"));
    drop(second);

    // The table has the right name and comment, and is another one.
    for change in [
        "delete element inet cairn nodes4 { 192.0.2.3 }",
        "add rule inet cairn input drop",
        "flush chain inet cairn prerouting",
        "add chain inet cairn more",
        "delete table inet cairn",
    ] {
        sh(&netns, &format!("nft '{change}'"));
        let mut next = keeper(&netns);
        next.set(more.clone());
        assert_eq!(apply(&mut next).await, written(1), "{change}");
        assert_eq!(next.edits(), 0, "{change}: nobody knows whether somebody edited it");
        assert_eq!(apply(&mut next).await, written(0), "{change}");
    }
    let reference = TestNetNs::create();
    load(&reference, &script(&more));
    assert_eq!(listed(&netns), listed(&reference));
}

#[tokio::test]
async fn what_others_do_to_our_table_is_repaired_and_counted() {
    let netns = TestNetNs::create();
    let mut keeper = keeper(&netns);
    let mut large = full();
    large.nodes.extend((0..5000u32).map(|i| IpAddr::from((0x0a80_0000 + i).to_be_bytes())));
    keeper.set(large);
    assert_eq!(apply(&mut keeper).await, written(1));
    let wanted = listed(&netns);
    let foreign = "table ip foreign { chain c { type filter hook input priority 0; counter; }; }";
    let mut spans = Vec::new();
    let edits = [
        "nft flush ruleset",
        "nft delete table inet cairn",
        "nft add rule inet cairn forward accept",
        "nft delete element inet cairn nodes4 '{ 192.0.2.1 }'",
        "nft flush ruleset",
        "nft delete table inet cairn",
        "nft flush chain inet cairn postrouting",
    ];
    for (count, edit) in edits.iter().enumerate() {
        sh(&netns, &format!("nft '{foreign}'"));
        let before = sh(&netns, "nft -a list table ip foreign");
        sh(&netns, edit);
        let start = Instant::now();
        while keeper.edits() <= count as u64 {
            tokio::time::timeout(Duration::from_secs(5), keeper.next()).await.unwrap().unwrap();
        }
        assert_eq!(apply(&mut keeper).await, written(1), "{edit}");
        spans.push(start.elapsed());
        assert_eq!(listed(&netns), wanted, "{edit}");
        assert_eq!(keeper.edits(), count as u64 + 1, "{edit}");
        if !edit.contains("ruleset") {
            assert_eq!(sh(&netns, "nft -a list table ip foreign"), before, "{edit}");
        }
    }
    // With 5,000 nodes. No promise is judged here: other tests run at the same time.
    println!("repaired after {spans:?}");
    assert!(spans.iter().min().unwrap() < &Duration::from_secs(2), "{spans:?}");
}

#[tokio::test]
async fn writes_of_others_to_their_own_tables_are_no_news() {
    let netns = TestNetNs::create();
    let mut keeper = keeper(&netns);
    keeper.set(full());
    apply(&mut keeper).await;
    sh(&netns, "nft 'table ip nat { chain c { counter; }; }'; nft add rule ip nat c accept");
    let news = tokio::time::timeout(Duration::from_millis(200), keeper.next()).await;
    assert!(news.is_err(), "the keeper was woken");
    assert!(!keeper.is_dirty());
}

#[tokio::test]
async fn without_nft_there_is_a_problem_that_says_what_to_install_and_it_is_tried_again() {
    let netns = TestNetNs::create();
    let mut keeper = keeper(&netns);
    keeper.set_path("/nowhere");
    keeper.set(full());
    let pass = apply(&mut keeper).await;
    assert_eq!((pass.writes, pass.failed), (0, 1));
    let problems = keeper.problems();
    assert_eq!(problems.len(), 1, "{problems:?}");
    assert!(problems[0].contains("install the package nftables"), "{problems:?}");
    assert!(!keeper.is_dirty(), "it waits for its deadline");
    assert_eq!(apply(&mut keeper).await, written(0), "not before");

    keeper.set_path(std::env::var_os("PATH").unwrap());
    let later = keeper.next_deadline().unwrap();
    assert_eq!(keeper.apply(later).await, written(1));
    assert_eq!(keeper.problems(), Vec::<String>::new());
}

#[tokio::test]
async fn what_nft_refuses_is_told_and_leaves_what_was_there() {
    let netns = TestNetNs::create();
    let mut keeper = keeper(&netns);
    keeper.set(full());
    apply(&mut keeper).await;
    let before = listed(&netns);
    let mut bad = full();
    bad.pod_interfaces = "a-prefix-too-long-for-an-interface";
    keeper.set(bad);
    assert_eq!(apply(&mut keeper).await.failed, 1);
    assert!(keeper.problems()[0].contains("nft refuses: "), "{:?}", keeper.problems());
    assert_eq!(listed(&netns), before);
    keeper.set(full());
    let later = keeper.next_deadline().unwrap();
    assert_eq!(keeper.apply(later).await.failed, 0);
    assert_eq!(keeper.problems(), Vec::<String>::new());
}

#[tokio::test]
async fn removing_takes_our_table_only_and_says_so_first() {
    let netns = TestNetNs::create();
    let mut keeper = keeper(&netns);
    keeper.set(full());
    apply(&mut keeper).await;
    sh(&netns, "nft 'table ip foreign { chain c { counter; }; }'");
    let ours = ["nftables table inet cairn".to_owned()];
    let remove =
        |dry_run| firewall::remove(Some(NetNs::open(&netns.name).unwrap()), "cairn", dry_run);
    assert_eq!(remove(true).await.unwrap(), ours);
    assert_eq!(sh(&netns, "nft list tables"), "table inet cairn\ntable ip foreign\n");
    assert_eq!(remove(false).await.unwrap(), ours);
    assert_eq!(sh(&netns, "nft list tables"), "table ip foreign\n");
    assert_eq!(remove(false).await.unwrap(), Vec::<String>::new());
}
