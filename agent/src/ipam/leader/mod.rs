//! Duties of one agent for the whole cluster: blocks of nodes that are gone go back, pools say how they
//! stand, and route reflectors are chosen.
//!
//! ```text
//!  election ──Leadership──┬──► duties: look ──► plan() ──NodeReturns──► returns: last look, DELETE
//!                         │              └────► pools: judge, finalizer, status
//!                         ├──► topology: how nodes of an AS peer
//!                         └──► (returns stop when it ends)
//! ```
//!
//! They run side by side: a pass of returns that takes minutes delays neither the renewal of
//! the leadership nor the status of a pool. Nothing depends on there being one leader only: every
//! write is under preconditions, and the waits of the fence are each leader's own. Each pass looks at
//! everything, so what failed or was missed is seen again in the next.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use cairn_api::{BGPPeerSpec, GracefulRestart, IPPool, Timers};
use cairn_ipam::fence::LeaseWatch;
use cairn_ipam::returns::{BlockSeen, Look, NodeReturn, abandoned, observe, plan, suspects};
use kube::ResourceExt;
use kube::api::Api;
use tokio::sync::watch;

use super::Shared;
use super::error::{IpamError, call};
use super::reads;
use crate::view::ClusterView;
use election::Leadership;
use lists::Lists;
use pools::Pools;

mod election;
mod foreign;
mod lists;
mod pools;
mod returns;
mod topology;

/// Stands for leader, and does the leader's duties while it is.
pub(super) async fn run(shared: Shared) {
    let leadership = watch::Sender::new(Leadership::default());
    let plans = watch::Sender::new(Arc::new(Vec::new()));
    let returned = watch::Sender::new(0u64);
    let lists = Lists::new(&shared.client, &shared.options.namespace, shared.options.rules);
    let duties = Duties::new(shared.clone(), lists.clone());
    let leads = || leadership.subscribe();
    tokio::join!(
        election::run(shared.clone(), &leadership),
        run_duties(duties, leads(), &plans, returned.subscribe()),
        topology::run(shared.clone(), lists.clone(), leads()),
        returns::run(shared, lists, leads(), plans.subscribe(), &returned),
    );
}

async fn run_duties(
    mut duties: Duties,
    mut leadership: watch::Receiver<Leadership>,
    plans: &watch::Sender<Arc<Vec<NodeReturn>>>,
    mut returned: watch::Receiver<u64>,
) {
    let shared = duties.shared.clone();
    let interval_max = (shared.options.offline / 20).clamp(INTERVAL_MIN, INTERVAL_MAX);
    // Right after a change there is more to come, and somebody looks at what it did.
    let mut interval = INTERVAL_MIN;
    let mut view = shared.view.clone();
    let mut pools: BTreeMap<String, PoolLook> = BTreeMap::new();
    let mut due = Duration::ZERO;
    loop {
        let leads = leadership.borrow_and_update().leads(shared.now());
        if !leads {
            duties.interrupt();
            plans.send_replace(Arc::default());
            shared.reports.report("leader", Vec::new());
            (due, interval) = (Duration::ZERO, INTERVAL_MIN);
            if leadership.changed().await.is_err() {
                return;
            }
            continue;
        }
        if shared.now() >= due {
            let (returns, problems) = duties.pass().await;
            plans.send_replace(Arc::new(returns));
            shared.reports.report("leader", problems);
            due = shared.now().saturating_add(interval);
            due = duties.pools.next_look().map_or(due, |look| look.min(due));
            interval = (interval * 2).min(interval_max);
        }
        tokio::select! {
            biased;
            changed = leadership.changed() => if changed.is_err() { return },
            () = pools_changed(&mut view, &mut pools) => (due, interval) = (Duration::ZERO, INTERVAL_MIN),
            Ok(()) = returned.changed() => (due, interval) = (Duration::ZERO, INTERVAL_MIN),
            () = tokio::time::sleep(due.saturating_sub(shared.now())) => {}
        }
    }
}

/// A pool as far as people change it: its UID, its generation, whether it is ending.
type PoolLook = (Option<String>, Option<i64>, bool);

/// Waits until somebody has changed a pool: the answer should not wait for the next round.
async fn pools_changed(
    view: &mut watch::Receiver<Arc<ClusterView>>,
    known: &mut BTreeMap<String, PoolLook>,
) {
    let look = |pool: &IPPool| {
        (pool.uid(), pool.metadata.generation, pool.metadata.deletion_timestamp.is_some())
    };
    while view.changed().await.is_ok() {
        let now = Arc::clone(&view.borrow_and_update());
        let now = now.pools.iter().map(|(name, pool)| (name.clone(), look(pool))).collect();
        if *known != now {
            *known = now;
            return;
        }
    }
    std::future::pending().await
}

struct Duties {
    shared: Shared,
    lists: Lists,
    pool_api: Api<IPPool>,
    pools: Pools,
    leases: LeaseWatch,
}

impl Duties {
    fn new(shared: Shared, lists: Lists) -> Duties {
        Duties {
            pool_api: Api::all(shared.client.clone()),
            pools: Pools::new(shared.clone(), lists.clone()),
            leases: LeaseWatch::new(shared.options.offline),
            lists,
            shared,
        }
    }

    /// This agent does not lead: what it has seen counts no more.
    fn interrupt(&mut self) {
        self.leases.interrupt();
        self.pools.forget();
    }

    /// One pass over blocks and pools: what may be returned, and what is wrong.
    async fn pass(&mut self) -> (Vec<NodeReturn>, Vec<String>) {
        let blocks = match self.lists.blocks().await {
            Ok(blocks) => blocks,
            Err(error) => {
                self.leases.interrupt();
                return (Vec::new(), vec![error.to_string()]);
            }
        };
        let mut problems = self.pools_pass(&blocks).await;
        let returns = match self.returns(blocks).await {
            Ok((returns, problem)) => {
                problems.extend(problem);
                returns
            }
            Err(error) => {
                self.leases.interrupt();
                problems.push(error.to_string());
                Vec::new()
            }
        };
        (returns, problems)
    }

    async fn pools_pass(&mut self, blocks: &[BlockSeen]) -> Vec<String> {
        let what = || "cannot list pools".to_owned();
        match call(what, self.pool_api.list(&reads::consistent(self.shared.options.rules))).await {
            Ok(pools) => self.pools.pass(&pools.items, blocks).await,
            Err(error) => vec![error.to_string()],
        }
    }

    /// Looks at Nodes and Leases, after the blocks, and plans; deletes Leases of which nothing else is
    /// left, and says what kept it from that.
    async fn returns(
        &mut self,
        blocks: Vec<BlockSeen>,
    ) -> Result<(Vec<NodeReturn>, Option<String>), IpamError> {
        self.leases.set_wait_min(stale_time_max(&self.shared.view.borrow()));
        let mut look = Look { blocks, ..Look::default() };
        look.nodes = self.lists.nodes().await?;
        look.leases = self.lists.leases().await?;
        observe(&look, &mut self.leases, self.shared.now());
        let abandoned = abandoned(&look, &self.leases, self.shared.now());
        let suspects = suspects(&look, &self.leases, self.shared.now());
        look.out_of_service = self.lists.out_of_service(&suspects).await?;
        let returns = plan(look, &self.leases, self.shared.options.rules, self.shared.now());
        for (node, version) in abandoned.into_iter().take(LEASES_MAX) {
            // A right that is missing keeps no block from being returned.
            if let Err(error) = self.lists.delete_lease(&node, version).await {
                return Ok((returns, Some(error.to_string())));
            }
        }
        Ok((returns, None))
    }
}

const INTERVAL_MIN: Duration = Duration::from_secs(1);
/// Well under the gap after which the waits of the fence start anew.
const INTERVAL_MAX: Duration = Duration::from_secs(60);

/// Leases that go in one pass, so that a large scale-down holds nothing else up.
const LEASES_MAX: usize = 50;

/// The longest time for which any peer keeps the routes of a node that is gone (RFC 4724, RFC 9494). With the
/// N bit one that fell silent is given up by the hold time first (RFC 8538).
fn stale_time_max(view: &ClusterView) -> Duration {
    let cluster = view.bgp_configuration.as_ref().map(|c| &c.spec);
    let restart = cluster.map_or(GracefulRestart::default(), |spec| spec.graceful_restart);
    let timers = cluster.map_or(Timers::default(), |spec| spec.timers);
    let of_peer = |peer: &BGPPeerSpec| {
        (peer.graceful_restart.unwrap_or(restart), peer.timers.unwrap_or(timers))
    };
    let peers = view.bgp_peers.values().map(|peer| of_peer(&peer.spec));
    let kept = peers.chain([(restart, timers)]).filter(|(restart, _)| restart.enabled);
    let secs = kept.map(|(restart, timers)| {
        let silence = if restart.notification { timers.hold_time_secs } else { 0 };
        u64::from(restart.restart_time_secs)
            + u64::from(restart.long_lived_stale_time_secs)
            + u64::from(silence)
    });
    Duration::from_secs(secs.max().unwrap_or(0))
}
