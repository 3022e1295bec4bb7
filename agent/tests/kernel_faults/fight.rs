//! Another program that never gives up.

use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use crate::model::{Model, TUNNEL, hop, plain_prefix};
use crate::node::{Agent, look, on_node, until};
use crate::notices::{Notice, Notices};

/// It rewrites one of each kind all the time: that costs us little, all else is repaired as ever, and it
/// is said who to look for.
#[test]
fn a_fight_costs_little_is_told_and_ends_well() {
    on_node(async |place| {
        let model = Model::new(20, 300);
        let agent = Agent::start(&model).await;
        agent.until_equal(&model, "at first").await;
        let (prefix, theirs, mine) = (plain_prefix(0), hop(2, 66, false), plain_prefix(2));
        let stop = AtomicBool::new(false);
        let fights = || {
            while !stop.load(Ordering::Relaxed) {
                look(&format!(
                    "ip route replace {prefix} via {theirs} proto 222 metric 198
                     ip neigh replace 172.16.0.1 lladdr 02:00:00:00:00:66 dev {TUNNEL} nud permanent
                     ip link set {TUNNEL} mtu 1300
                     nft flush table inet cairn"
                ));
            }
        };
        std::thread::scope(|scope| {
            scope.spawn(|| place.netns.run(fights).expect("entered"));
            let fought = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| {
                let names =
                    [prefix.to_string(), "172.16.0.1".into(), TUNNEL.into(), "inet cairn".into()];
                told(&agent, &names);
                let notices = Notices::open();
                let start = Instant::now();
                std::thread::sleep(Duration::from_secs(3));
                let time = start.elapsed().as_secs_f64();
                let told = notices.take();
                let routes: Vec<&Notice> = told.iter().filter(|n| n.protocol.is_some()).collect();
                // Each repair is one notification and what undoes it the other.
                let most = 2.0 * (time * 2.0 + 2.0);
                assert!((routes.len() as f64) < most, "{} in {time} s: {routes:?}", routes.len());
                assert!(!routes.is_empty(), "it is repaired still");
                // Another route is repaired soon, and its writer not taken for one who fights.
                look(&format!("ip route del {mine} proto 222 metric 198"));
                let there = || look(&format!("ip route show {mine} proto 222")).contains("via");
                let deadline = Instant::now() + crate::node::PATIENCE;
                while !there() {
                    assert!(Instant::now() < deadline, "{mine} is not repaired");
                }
            }));
            stop.store(true, Ordering::Relaxed);
            if let Err(panic) = fought {
                std::panic::resume_unwind(panic);
            }
        });
        agent.until_equal(&model, "in peace").await;
        until("nobody fights any more", || told_now(&agent).is_empty()).await;
        agent.stop().await;
    });
}

/// What is said of other programs.
fn told_now(agent: &Agent) -> Vec<String> {
    let (routes, filter) = (agent.fib.problems.borrow(), agent.keeper.problems.borrow());
    let all = routes.iter().chain(filter.iter());
    all.filter(|problem| problem.contains("another program changes")).cloned().collect()
}

/// Waits until each of `names` is in a problem.
fn told(agent: &Agent, names: &[String]) {
    let deadline = Instant::now() + crate::node::PATIENCE;
    loop {
        let problems = told_now(agent);
        if names.iter().all(|name| problems.iter().any(|problem| problem.contains(name))) {
            return;
        }
        assert!(
            Instant::now() < deadline,
            "{names:?} not in {problems:?} {:?}",
            agent.keeper.problems
        );
        std::thread::sleep(Duration::from_millis(50));
    }
}
