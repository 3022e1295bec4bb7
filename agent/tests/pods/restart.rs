//! One agent after another, and one beside another.

use std::io::Read;
use std::net::IpAddr;
use std::os::unix::fs::PermissionsExt;
use std::time::Duration;

use cairn_agent::pods::{self, Pods, PodsError};
use cairn_ipam::Family;
use cairn_kernel::route::{self, NextHop, Route, Target};
use cairn_kernel::{POD_ROUTE_PROTOCOL, link, pod};

use crate::node::{Node, block, config, id, reaches};

#[test]
fn a_new_agent_finds_the_pods_of_the_old_one() {
    let node = Node::create();
    let (first, second, third) = (node.pod(), node.pod(), node.pod());
    node.run(|| async {
        let agent = node.ready_agent("10.244.0.0/29").await;
        let held = node.add("first", &first).await;
        let lost = node.add("second", &second).await;
        agent.stop().await;
        reaches(&node, &first, held[0]);

        // While no agent runs: an alias is cleared, a host route is deleted, a creation is cut off.
        let mut netlink = node.netlink();
        let listed = pod::list(&mut netlink).unwrap();
        let index = |container: &str| {
            let name = pod::host_interface_name(container, "eth0");
            listed.iter().find(|found| found.host_ifname == name).unwrap().ifindex
        };
        link::set_alias(&mut netlink, index("second"), "").unwrap();
        let route = Route {
            prefix: held[0].into(),
            table: route::TABLE_MAIN,
            metric: 0,
            protocol: POD_ROUTE_PROTOCOL,
            target: Target::Unicast(vec![NextHop::link(index("first"))]),
            prefsrc: None,
        };
        link::delete_route(&mut netlink, &route).unwrap();
        let half = pod::host_interface_name("half", "eth0");
        let pair = link::Veth {
            end: link::VethEnd::named(&half),
            peer: link::VethEnd::named("peer"),
            peer_netns: None,
            mtu: None,
        };
        link::create_veth(&mut netlink, &pair).unwrap();

        let agent = node.agent().await;
        assert!(link::find(&mut netlink, &half).unwrap().is_none(), "half-done ones are removed");
        assert_eq!(agent.usage().await.pods[&id("first")].to_string(), "default/first");
        agent.handle.set_config(config());
        agent.supply(vec![block("10.244.0.0/29")], vec![Family::V4]);
        agent
            .wait("both addresses are known", |usage| {
                usage.blocks.first().is_some_and(|block| block.used == 2)
            })
            .await;
        let restored = async {
            while pod::list(&mut node.netlink())
                .unwrap()
                .iter()
                .any(|f| !f.missing_routes().is_empty())
            {
                tokio::time::sleep(Duration::from_millis(10)).await;
            }
        };
        tokio::time::timeout(Duration::from_secs(5), restored).await.unwrap();
        reaches(&node, &first, held[0]);

        let new = node.add("third", &third).await;
        assert!(new != held && new != lost, "{new:?}");
        assert_eq!(node.add("first", &first).await, held);
        assert_eq!(node.add("second", &second).await, lost, "known by its route, recorded again");
        reaches(&node, &second, lost[0]);
        for container in ["first", "second", "third"] {
            node.del(container).await;
        }
        assert_eq!(agent.used().await, 0);
        assert!(pod::list(&mut netlink).unwrap().is_empty());
        assert_eq!(std::fs::read_dir(node.run_dir.join("pods")).unwrap().count(), 0);
        agent.stop().await;
    });
}

#[test]
fn an_interface_whose_alias_is_gone_is_freed_by_del() {
    let node = Node::create();
    let pod_name = node.pod();
    node.run(|| async {
        let agent = node.ready_agent("10.244.0.0/29").await;
        node.add("first", &pod_name).await;
        agent.stop().await;
        let mut netlink = node.netlink();
        let found = pod::list(&mut netlink).unwrap();
        link::set_alias(&mut netlink, found[0].ifindex, "rack 7").unwrap();
        let agent = node.ready_agent("10.244.0.0/29").await;
        agent
            .wait("the address is known", |usage| {
                usage.blocks.first().is_some_and(|block| block.used == 1)
            })
            .await;
        node.del("first").await;
        assert_eq!(agent.used().await, 0);
        assert!(pod::list(&mut netlink).unwrap().is_empty());
        agent.stop().await;
    });
}

#[test]
fn only_one_agent_serves_a_run_directory() {
    let node = Node::create();
    let pod_name = node.pod();
    node.run(|| async {
        let agent = node.ready_agent("10.244.0.0/29").await;
        let error = Pods::start(node.options()).await.unwrap_err();
        assert!(matches!(error, PodsError::Locked { .. }));
        let own = format!("another agent (process {}) already serves", std::process::id());
        assert!(error.to_string().contains(&own), "{error}");
        let mode =
            std::fs::metadata(pods::socket_path(&node.run_dir)).unwrap().permissions().mode();
        assert_eq!(mode & 0o777, 0o600);
        node.add("first", &pod_name).await;
        agent.stop().await;
        let agent = node.agent().await;
        agent.stop().await;
    });
}

/// In its container an agent does not see the processes that ask it: this same test plays both.
#[test]
fn an_agent_with_a_process_namespace_of_its_own_answers_those_outside() {
    const NAME: &str =
        "restart::an_agent_with_a_process_namespace_of_its_own_answers_those_outside";
    const RUN_DIR: &str = "CAIRN_TEST_RUN_DIR";
    let mut node = Node::create();
    if let Some(run_dir) = std::env::var_os(RUN_DIR) {
        node.run_dir = run_dir.into();
        node.run(|| async {
            let agent = node.ready_agent("10.244.0.0/29").await;
            let until_told = || std::io::stdin().read(&mut [0]);
            tokio::task::spawn_blocking(until_told).await.unwrap().unwrap();
            agent.stop().await;
        });
        return;
    }
    let mut container = std::process::Command::new("unshare")
        .args(["--pid", "--fork", "--kill-child=SIGKILL"])
        .arg(std::env::current_exe().unwrap())
        .args(["--exact", NAME])
        .env(RUN_DIR, &node.run_dir)
        .stdin(std::process::Stdio::piped())
        .spawn()
        .unwrap();
    let pod = node.pod();
    // The plugin waits for the socket.
    node.run(|| async {
        let held = node.add("first", &pod).await;
        assert_eq!(held, ["10.244.0.0".parse::<IpAddr>().unwrap()]);
    });
    drop(container.stdin.take());
    assert!(container.wait().unwrap().success());
}
