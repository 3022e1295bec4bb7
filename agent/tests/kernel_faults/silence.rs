//! Nothing is written where nothing differs.

use std::time::Duration;

use crate::model::Model;
use crate::node::{Agent, on_node};
use crate::notices::{Notice, Notices};

/// Over a restart with ten thousand routes.
#[test]
fn a_restarted_agent_writes_nothing_where_nothing_differs() {
    on_node(async |_| {
        let model = Model::new(100, 9_800);
        assert_eq!(model.learned.len(), 10_000);
        let agent = Agent::start(&model).await;
        agent.until_equal(&model, "at first").await;
        agent.stop().await;

        let notices = Notices::open();
        let agent = Agent::start(&model).await;
        let installed = (model.learned.len() + model.blocks.len()) as u64;
        let mut state = agent.fib.state.clone();
        let known = state.wait_for(|state| state.installed == installed);
        tokio::time::timeout(crate::node::PATIENCE, known).await.expect("known").expect("it runs");
        agent.until_equal(&model, "after the restart").await;
        // A device that goes for a moment would be heard of, however soon it is back.
        tokio::time::sleep(Duration::from_millis(500)).await;
        assert_eq!(notices.take(), Vec::<Notice>::new());

        // The counter counts.
        let mut moved = model.clone();
        let prefix = crate::model::plain_prefix(0);
        moved.learned.insert(prefix, vec![crate::model::hop(2, 77, false)]);
        agent.learn(&moved, [prefix]).await;
        agent.until_equal(&moved, "after a change").await;
        let told = notices.take();
        assert_eq!(told.len(), 1, "{told:?}");
        assert_eq!(told[0].protocol, Some(cairn_kernel::ROUTE_PROTOCOL));
        moved.plain_pools.clear();
        agent.tell(&moved);
        agent.until_equal(&moved, "after a change of pools").await;
        assert!(notices.take().iter().any(|notice| notice.by == "nftables"));
        agent.stop().await;
    });
}
