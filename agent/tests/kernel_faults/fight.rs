//! Another program that never gives up.

use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use crate::model::{Model, TUNNEL, hop, plain_prefix};
use crate::node::{Agent, PATIENCE, look, on_node};

/// It rewrites one of each kind all the time: each is put back each time, all else is repaired as ever, and
/// when it stops nothing is left to be found by a later look.
#[test]
fn a_fight_disturbs_no_other_and_ends_as_soon_as_the_other_does() {
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
                // One repair of each kind more, again and again.
                for _ in 0..8 {
                    let before = *agent.fib.repairs.borrow();
                    let filter = *agent.keeper.repairs.borrow();
                    let deadline = Instant::now() + PATIENCE;
                    let grown = || {
                        let now = *agent.fib.repairs.borrow();
                        let each = now.routes > before.routes && now.tunnels > before.tunnels;
                        each && *agent.keeper.repairs.borrow() > filter
                    };
                    while !grown() {
                        assert!(Instant::now() < deadline, "{before:?}, packet filter {filter}");
                        std::thread::sleep(Duration::from_millis(5));
                    }
                }
                look(&format!("ip route del {mine} proto 222 metric 198"));
                let there = || look(&format!("ip route show {mine} proto 222")).contains("via");
                let deadline = Instant::now() + PATIENCE;
                while !there() {
                    assert!(Instant::now() < deadline, "{mine} is not repaired");
                }
            }));
            stop.store(true, Ordering::Relaxed);
            if let Err(panic) = fought {
                std::panic::resume_unwind(panic);
            }
        });
        let peace = Instant::now();
        agent.until_equal(&model, "in peace").await;
        // The thread of the packet filter looks at legacy iptables every 30 s, which must not be what helps.
        assert!(peace.elapsed() < Duration::from_secs(15), "{:?}", peace.elapsed());
        agent.stop().await;
    });
}
