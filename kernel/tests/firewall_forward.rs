//! Our rules in iptables' FORWARD chain, beside other packet filters that drop what they forward.

mod support;

use std::net::SocketAddr;
use std::os::fd::AsFd;
use std::time::{Duration, Instant};

use cairn_kernel::firewall::{self, Firewall, FirewallKeeper, FirewallPass};
use cairn_kernel::link::{self, DuplicateDetection, Veth, VethEnd};
use cairn_kernel::route::Family;
use cairn_kernel::{NetNs, sysctl};
use support::{TestNetNs, sh};

/// A node between a pod and a host beyond.
struct Bed {
    node: TestNetNs,
    pod: TestNetNs,
    beyond: TestNetNs,
    keeper: FirewallKeeper,
}

impl Bed {
    fn new() -> Bed {
        let (node, pod, beyond) = (TestNetNs::create(), TestNetNs::create(), TestNetNs::create());
        for (other, end, host, address) in
            [(&pod, "cairn0000000000", ".1", ".5"), (&beyond, "uplink", ".1", ".2")]
        {
            let pair = Veth {
                end: VethEnd::named(end),
                peer: VethEnd::named("eth0"),
                peer_netns: Some(other.as_fd()),
                mtu: None,
            };
            link::create_veth(&mut node.netlink(), &pair).unwrap();
            let (v4, v6) =
                if end == "uplink" { ("192.0.2", "2001:db8:") } else { ("10.244.0", "fd00:") };
            for (netns, name, last) in [(&node, end, host), (other, "eth0", address)] {
                let mut netlink = netns.netlink();
                let index = link::find(&mut netlink, name).unwrap().unwrap().index;
                link::set_up(&mut netlink, index).unwrap();
                let last = last.trim_start_matches('.');
                for address in [format!("{v4}.{last}/24"), format!("{v6}:{last}/64")] {
                    let address = address.parse().unwrap();
                    let skip = DuplicateDetection::Skip;
                    link::add_address(&mut netlink, index, address, skip).unwrap();
                }
            }
            sh(
                other,
                &format!("ip route add default via {v4}.1; ip -6 route add default via {v6}:1"),
            );
        }
        node.run(|| Family::ALL.map(|family| sysctl::enable_forwarding(family).unwrap())).unwrap();
        let keeper = FirewallKeeper::open_in(NetNs::open(&node.name).unwrap()).unwrap();
        Bed { node, pod, beyond, keeper }
    }

    /// Whether a packet arrives, each way and of each family.
    fn passes(&self) -> bool {
        let ways = [
            (&self.pod, &self.beyond, ["192.0.2.2", "2001:db8::2"]),
            (&self.beyond, &self.pod, ["10.244.0.5", "fd00::5"]),
        ];
        let arrived: Vec<bool> = ways
            .into_iter()
            .flat_map(|(from, to, addresses)| addresses.map(|address| arrives(from, to, address)))
            .collect();
        assert!(arrived.iter().all(|one| *one == arrived[0]), "{arrived:?}");
        arrived[0]
    }

    async fn apply(&mut self) -> FirewallPass {
        self.keeper.apply(Instant::now()).await
    }

    /// A pass with the table written and nothing else to do yet.
    async fn started(&mut self, firewall: Firewall) -> usize {
        self.keeper.set(firewall);
        let pass = self.apply().await;
        assert_eq!(pass.failed, 0, "{:?}", self.keeper.problems());
        pass.writes - 1
    }

    async fn news(&mut self) {
        tokio::time::timeout(Duration::from_secs(5), self.keeper.next()).await.unwrap().unwrap();
    }
}

fn arrives(from: &NetNs, to: &NetNs, address: &str) -> bool {
    let any = if address.contains(':') { "[::]:0" } else { "0.0.0.0:0" };
    let server = to.run(|| std::net::UdpSocket::bind(any).unwrap()).unwrap();
    server.set_read_timeout(Some(Duration::from_millis(300))).unwrap();
    let port = server.local_addr().unwrap().port();
    let to = SocketAddr::new(address.parse().unwrap(), port);
    let client = from.run(|| std::net::UdpSocket::bind(any).unwrap()).unwrap();
    client.send_to(b"x", to).unwrap();
    server.recv(&mut [0; 8]).is_ok()
}

fn firewall() -> Firewall {
    Firewall::new("cairn")
}

const BOTH_WAYS: &str = "-A FORWARD -i cairn+ -m comment --comment \"cairn.network\" -j ACCEPT\n\
                         -A FORWARD -o cairn+ -m comment --comment \"cairn.network\" -j ACCEPT\n";

#[tokio::test]
async fn nft_based_iptables_that_drops_gets_a_rule_each_way_behind_its_own() {
    let mut bed = Bed::new();
    for command in ["iptables", "ip6tables"] {
        sh(
            &bed.node,
            &format!("{command}-nft -P FORWARD DROP; {command}-nft -A FORWARD -i br0 -j DROP"),
        );
    }
    assert!(!bed.passes());
    assert_eq!(bed.started(firewall()).await, 2, "both families");
    assert!(bed.passes());
    assert_eq!(bed.keeper.problems(), Vec::<String>::new());
    // Its own tool reads them as its own and can write the chain again.
    for command in ["iptables-nft", "ip6tables-nft"] {
        let rules = sh(&bed.node, &format!("{command} -S FORWARD"));
        assert_eq!(rules, format!("-P FORWARD DROP\n-A FORWARD -i br0 -j DROP\n{BOTH_WAYS}"));
        sh(&bed.node, &format!("{command}-save >/dev/null; {command} -A FORWARD -i br1 -j DROP"));
    }
    bed.news().await;
    assert_eq!(bed.apply().await, FirewallPass::default(), "theirs is no news for ours");

    // Removed by others: repaired.
    let mut spans = Vec::new();
    for edit in [
        "iptables-nft -F FORWARD",
        "nft flush ruleset; iptables-nft -P FORWARD DROP; ip6tables-nft -P FORWARD DROP",
        "iptables-nft -D FORWARD -i cairn+ -m comment --comment cairn.network -j ACCEPT || \
         nft flush chain ip filter FORWARD",
    ] {
        let edits = bed.keeper.edits();
        sh(&bed.node, edit);
        let start = Instant::now();
        bed.news().await;
        assert!(bed.apply().await.writes > 0, "{edit}");
        spans.push(start.elapsed());
        assert!(bed.keeper.edits() > edits, "{edit}");
        assert!(bed.passes(), "{edit}");
    }
    // No promise is judged here: other tests run at the same time.
    println!("repaired after {spans:?}");
    assert!(spans.iter().min().unwrap() < &Duration::from_secs(2), "{spans:?}");

    // After a restart there is nothing to do.
    let mut second = FirewallKeeper::open_in(NetNs::open(&bed.node.name).unwrap()).unwrap();
    second.set(firewall());
    assert_eq!(second.apply(Instant::now()).await, FirewallPass::default());

    // The policy accepts again, or it is turned off: ours go, others stay.
    sh(&bed.node, "ip6tables-nft -P FORWARD ACCEPT");
    bed.news().await;
    assert_eq!(bed.apply().await.writes, 1);
    assert!(!sh(&bed.node, "ip6tables-nft -S FORWARD").contains("cairn"));
    sh(&bed.node, "iptables-nft -A FORWARD -i br7 -j ACCEPT");
    bed.keeper.set(Firewall { accept_forwarded: false, ..firewall() });
    bed.apply().await;
    assert_eq!(
        sh(&bed.node, "iptables-nft -S FORWARD"),
        "-P FORWARD DROP\n-A FORWARD -i br7 -j ACCEPT\n"
    );
}

#[tokio::test]
async fn legacy_iptables_that_drops_gets_its_rules_by_its_own_tool() {
    let mut bed = Bed::new();
    assert_eq!(bed.started(firewall()).await, 0);
    assert_eq!(
        sh(&bed.node, "cat /proc/thread-self/net/ip_tables_names"),
        "",
        "a look makes no legacy table"
    );
    for command in ["iptables-legacy", "ip6tables-legacy"] {
        sh(&bed.node, &format!("{command} -P FORWARD DROP"));
    }
    assert!(!bed.passes());
    // Nobody reports it: the next look finds it.
    assert_eq!(bed.apply().await, FirewallPass::default());
    let look = bed.keeper.next_deadline().unwrap();
    assert_eq!(bed.keeper.apply(look).await.writes, 2);
    assert!(bed.passes());
    assert_eq!(
        sh(&bed.node, "iptables-legacy -S FORWARD"),
        format!("-P FORWARD DROP\n{BOTH_WAYS}")
    );
    assert_eq!(bed.keeper.edits(), 0);

    sh(&bed.node, "iptables-legacy -F FORWARD; iptables-legacy -A FORWARD -i br0 -j ACCEPT");
    let look = bed.keeper.next_deadline().unwrap();
    assert_eq!(bed.keeper.apply(look).await.writes, 1);
    assert_eq!(bed.keeper.edits(), 1);
    assert!(bed.passes());

    let remove =
        |dry_run| firewall::remove(Some(NetNs::open(&bed.node.name).unwrap()), "cairn", dry_run);
    let ours = [
        "nftables table inet cairn",
        "accepting rules in the chain FORWARD of iptables-legacy",
        "accepting rules in the chain FORWARD of ip6tables-legacy",
    ];
    assert_eq!(remove(true).await.unwrap(), ours);
    assert!(bed.passes(), "nothing was removed");
    assert_eq!(remove(false).await.unwrap(), ours);
    assert_eq!(
        sh(&bed.node, "iptables-legacy -S FORWARD"),
        "-P FORWARD DROP\n-A FORWARD -i br0 -j ACCEPT\n"
    );
}

#[tokio::test]
async fn without_the_legacy_tool_its_chain_is_a_problem() {
    let mut bed = Bed::new();
    sh(&bed.node, "iptables-legacy -P FORWARD DROP");
    // A directory with nft and nothing else.
    let directory = std::env::temp_dir().join(format!("cairn-nft-only-{}", std::process::id()));
    std::fs::create_dir_all(&directory).unwrap();
    let nft = sh(&bed.node, "command -v nft");
    let _ = std::os::unix::fs::symlink(nft.trim(), directory.join("nft"));
    bed.keeper.set_path(&directory);
    bed.keeper.set(firewall());
    let pass = bed.apply().await;
    std::fs::remove_dir_all(&directory).unwrap();
    assert_eq!((pass.writes, pass.failed), (1, 1), "the table is written all the same");
    let problems = bed.keeper.problems();
    assert_eq!(problems.len(), 1);
    assert!(problems[0].contains("install the package iptables"), "{problems:?}");
}

#[tokio::test]
async fn another_packet_filter_that_drops_is_named_and_left_alone() {
    let mut bed = Bed::new();
    // As firewalld's: the policy accepts, the last rule rejects.
    let firewalld = "table inet firewalld { chain filter_FORWARD {
        type filter hook forward priority filter + 10; policy accept;
        ct state { established, related } accept; ct status dnat accept; iifname \"lo\" accept
        ct state invalid drop; reject with icmpx admin-prohibited; }; }";
    let simple =
        "table inet wall { chain hold { type filter hook forward priority 0; policy drop; }; }";
    let harmless =
        "table inet calm { chain hold { type filter hook forward priority 0; counter; }; }";
    for table in [firewalld, simple, harmless] {
        sh(&bed.node, &format!("nft -f - <<'END'\n{table}\nEND"));
    }
    let before = sh(&bed.node, "nft -a list ruleset");
    assert_eq!(bed.started(firewall()).await, 0);
    let problems = bed.keeper.problems();
    assert_eq!(problems.len(), 2, "{problems:?}");
    assert!(
        problems[0]
            .contains("the chain filter_FORWARD of the nftables table inet firewalld ends with")
            && problems[0].contains("--add-source"),
        "{problems:?}"
    );
    assert!(
        problems[1].contains("the chain hold of the nftables table inet wall has the policy drop"),
        "{problems:?}"
    );
    sh(&bed.node, "nft delete table inet cairn");
    assert_eq!(sh(&bed.node, "nft -a list ruleset"), before);

    // It ends with the chain, by its notification.
    sh(&bed.node, "nft delete table inet wall; nft flush chain inet firewalld filter_FORWARD");
    bed.news().await;
    bed.apply().await;
    assert_eq!(bed.keeper.problems(), Vec::<String>::new());
    // And begins with one.
    sh(&bed.node, &format!("nft -f - <<'END'\n{simple}\nEND"));
    bed.news().await;
    bed.apply().await;
    assert_eq!(bed.keeper.problems().len(), 1);
    bed.keeper.set(Firewall { accept_forwarded: false, ..firewall() });
    bed.apply().await;
    assert_eq!(bed.keeper.problems(), Vec::<String>::new(), "turned off");
}

#[tokio::test]
async fn a_chain_of_iptables_that_rejects_before_our_rules_is_a_problem() {
    let mut bed = Bed::new();
    sh(&bed.node, "iptables-nft -P FORWARD DROP; iptables-nft -A FORWARD -j REJECT");
    assert_eq!(bed.started(firewall()).await, 1);
    let problems = bed.keeper.problems();
    assert_eq!(problems.len(), 1, "{problems:?}");
    assert!(problems[0].contains("iptables -S FORWARD end with one that"), "{problems:?}");
}
