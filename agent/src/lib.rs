//! The daemon of a node: watch, view, plan, apply.
//!
//! ```text
//!  API server ──watch──► ClusterView ──plan()──► NodePlan ──┬─► ipam: claims and releases IPBlocks
//!                                                           ├─► speaker: peers, prefixes, policies
//!   kubelet ──CNI──► pods: address, veth, host route         ├─► fib: routes in the kernel
//!                                                           └─► publish: BGPNode, BGPNodeStatus
//! ```
//!
//! [`plan::plan`] is the one place that decides what a node does; the other modules do it. State has
//! one owner each: addresses and pod interfaces [`pods`], blocks [`ipam`], sessions and routes the
//! speaker, the kernel's routes [`fib`]. Nothing in here may take down forwarding: a part that fails
//! says so and is retried, and what is in the kernel stays.
//!
//! The speaker ([`bgp_thread`]), the kernel's routes ([`fib`]), the packet filter ([`firewall`]) and the pods
//! ([`pods`]) have a thread each. The rest shares the main thread, which waits for the disk, the API server and
//! commands: none of these may hold up a session, a route or a pod's start.

pub mod agent;
pub mod announced;
pub mod api_client;
pub mod bfd;
pub mod bgp;
pub mod bgp_thread;
pub mod carrier;
pub mod cleanup;
pub mod conflist;
pub mod control;
pub mod disabled;
pub mod drain;
pub mod drain_command;
pub mod fib;
pub mod file;
pub mod firewall;
pub mod ipam;
pub mod ipam_command;
pub mod kernel_command;
pub mod last_view;
pub mod logging;
pub mod memory;
pub mod node_address;
pub mod objects;
pub mod plan;
pub mod pods;
pub mod problems;
pub mod publish;
pub mod readiness;
pub mod report;
pub mod restart;
pub mod secrets;
pub mod speaker;
pub mod topology;
pub mod tunnels;
pub mod underlay;
pub mod unnumbered;
pub mod view;
pub mod watch;
pub mod witness;

use anyhow::Context;

/// Where a daemon keeps its sockets and what it remembers over a restart of its process.
pub const DEFAULT_RUN_DIR: &str = "/run/cairn";

/// Checks that this process may write routes.
///
/// # Errors
/// It may not; the text says what to do.
pub fn require_net_admin(what: &str) -> anyhow::Result<()> {
    use rustix::thread::{CapabilitySet, capabilities};
    let effective =
        capabilities(None).context("cannot read this process's capabilities")?.effective;
    anyhow::ensure!(
        effective.contains(CapabilitySet::NET_ADMIN),
        "{what} writes routes and needs CAP_NET_ADMIN: run it as root"
    );
    Ok(())
}

/// Checks that the kernel can connect pods; IPv6 may be missing, which is told.
///
/// # Errors
/// What is missing, and which module brings it.
pub fn require_pod_links() -> Result<(), cairn_kernel::feature::FeatureError> {
    cairn_kernel::feature::probe("veth")?;
    if !cairn_kernel::feature::has_ipv6() {
        tracing::info!("this kernel has no IPv6: pods of this node get IPv4 addresses only");
    }
    Ok(())
}

/// Runs `task` to its end on a new thread with a runtime of its own, in the network namespace of the
/// caller, which waits until there is that runtime.
///
/// # Errors
/// There is no thread or no runtime to be had.
pub(crate) fn on_own_thread<F: Future<Output = ()>>(
    name: &str,
    task: impl FnOnce() -> F + Send + 'static,
) -> anyhow::Result<()> {
    let (made, outcome) = std::sync::mpsc::sync_channel(1);
    let mut runtime = tokio::runtime::Builder::new_current_thread();
    runtime.enable_all().event_interval(POLLS_BETWEEN_LOOKS);
    let run = move || match runtime.build() {
        Ok(runtime) => {
            let _ = made.send(Ok(()));
            runtime.spawn(memory::give_back_own());
            runtime.block_on(task());
        }
        Err(error) => drop(made.send(Err(error))),
    };
    std::thread::Builder::new().name(name.into()).spawn(run).context("cannot start a thread")?;
    outcome.recv().context("a thread ended at its start")?.context("cannot start a runtime")
}

/// Tasks that run between two looks at sockets and timers. With tokio's 61, tasks that take tens of milliseconds
/// each keep keepalives from leaving for seconds.
const POLLS_BETWEEN_LOOKS: u32 = 8;

/// Sends `value` unless it is what was sent last, so that listeners wake for changes alone.
pub(crate) fn send_if_changed<T: PartialEq>(sender: &tokio::sync::watch::Sender<T>, value: T) {
    sender.send_if_modified(|held| {
        let differs = *held != value;
        *held = value;
        differs
    });
}

/// Waits until `deadline`; without one for ever.
pub(crate) async fn until(deadline: Option<tokio::time::Instant>) {
    match deadline {
        Some(at) => tokio::time::sleep_until(at).await,
        None => std::future::pending().await,
    }
}
