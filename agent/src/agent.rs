//! `cairn agent`: joins the parts, and plans anew whenever something that it knows changes.
//!
//! ```text
//!  watch ─────► view ─────┐
//!  ipam ──────► blocks ───┼─► plan() ─► fib.blocks, speaker.apply, pods.set_config, publish
//!  fib ───────► reachable ┘
//! ```

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::path::PathBuf;
use std::process::ExitCode;
use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::Context;
use cairn_api::{
    BGPNode, BGPNodeStatus, BGPNodeStatusSpec, ChangeOver, NodeConfigurationSpec, ObjectReference,
    RepairsStatus, RoutesStatus, TunnelKind,
};
use cairn_bgp::config::{PeerConfig, PeerName, SpeakerConfig};
use cairn_bgp::speaker::{Delivery, Shutdown, SpeakerHandle, SpeakerOptions};
use cairn_ipam::Family;
use clap::Args;
use futures::FutureExt;
use ipnet::IpNet;
use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::{oneshot, watch};

use crate::announced::{ANNOUNCEMENT_WAIT, Announced};
use crate::bfd::follow::Follower;
use crate::disabled::DisabledPeers;
use crate::drain::{Answer, Drain, Told};
use crate::fib::{Fib, FirstRoutes, RouteMemory, RouteSettings, Wrapping};
use crate::firewall::{self, Keeper};
use crate::ipam::Holdings;
use crate::ipam::disk::Owner;
use crate::node_address::OwnAddress;
use crate::plan::{Local, plan};
use crate::problems::ProblemLog;
use crate::publish::{self, StatusPace, Wanted};
use crate::readiness::{Facts, Readiness};
use crate::report::{self, BlockReport, Report};
use crate::topology::Ending;
use crate::tunnels::{LINGER, Ways, device_name};
use crate::underlay::KernelUnderlay;
use crate::view::{ClusterView, WatchFailure};
use crate::witness::SpeakerWitness;
use crate::{
    api_client, bgp_thread, conflist, control, ipam, last_view, memory, node_address, pods, until,
    watch as watches,
};

/// Options of `cairn agent`.
#[derive(Args)]
pub struct Options {
    /// The name of the Node object of this machine.
    #[arg(long, env = "NODE_NAME")]
    node_name: String,
    /// How to reach the API server; without it, as a pod of the cluster.
    #[arg(long, env = "KUBECONFIG")]
    kubeconfig: Option<PathBuf>,
    /// Where the lock and the sockets are.
    #[arg(long, default_value = crate::DEFAULT_RUN_DIR)]
    run_dir: PathBuf,
    /// For how long new pods get addresses while the API server cannot be reached, in seconds.
    /// Blocks of a machine that vanished return to the pool 1.25 times as long after its last sign
    /// of life.
    #[arg(long, env = "CAIRN_OFFLINE_SECS", default_value_t = 8 * 3600, value_parser = clap::value_parser!(u32).range(2..=2_592_000))]
    offline_secs: u32,
    /// Cairn's own namespace: of the leases, and of the Secrets with peers' passwords.
    #[arg(long, default_value = "cairn-system")]
    namespace: String,
    /// After how many seconds a block without pods goes back to its pool, unless it is the node's
    /// last of its family; 0 keeps every block.
    #[arg(long, env = "CAIRN_IDLE_RELEASE_SECS", default_value_t = 900, value_parser = clap::value_parser!(u32).range(0..=2_592_000))]
    idle_release_secs: u32,
    /// The network configuration list that makes the container runtime call the plugin. It is copied into
    /// --cni-conf-dir when the pod network is ready for the first time since the boot.
    #[arg(long, requires = "cni_conf_dir")]
    cni_conflist: Option<PathBuf>,
    /// Where the container runtime looks for it: /etc/cni/net.d of the host.
    #[arg(long, requires = "cni_conflist")]
    cni_conf_dir: Option<PathBuf>,
}

/// Runs until SIGTERM or SIGINT; then routes and pods stay, and peers are told to keep ours, since
/// what follows is a restart or an upgrade. A node that goes for good is drained, and its Node
/// object is deleted.
///
/// # Errors
/// The node cannot be an agent's: no right to write routes, another agent, no way to the API.
pub async fn run(options: Options) -> anyhow::Result<ExitCode> {
    crate::require_net_admin("cairn agent")?;
    crate::require_pod_links()?;
    let name = options.node_name.clone();
    let (pods, pod_network) = pods::PodsThread::start(pods::PodsOptions {
        run_dir: options.run_dir.clone(),
        network: pods::NetworkOptions {
            cooldown: COOLDOWN,
            address_wait: ADDRESS_WAIT,
            announcement_wait: ANNOUNCEMENT_WAIT,
            clock: ipam::Clock::boottime(),
            rules: cairn_ipam::Rules::ALL,
        },
    })
    .await?;
    let listener = control::bind(&options.run_dir)?;
    let config = reach(options.kubeconfig.as_deref()).await?;
    let server = config.cluster_url.to_string().trim_end_matches('/').to_owned();
    let api_address = api_client::address_of(&config);
    let client = api_client::client(config.clone())?;
    let boot_id = ipam::boot_id().context("cannot read this machine's boot id")?;
    let storage: Arc<dyn ipam::Storage> = Arc::new(ipam::Directory::new(&options.run_dir));
    let readiness = Readiness::open(Arc::clone(&storage), boot_id.clone());
    pods.set_readiness(readiness.verdict());
    let memory = RouteMemory::new(Arc::clone(&storage), boot_id.clone());
    let mut fib = Fib::start_with(Some(pods.clone()), Some(memory)).await?;
    let firewall = Keeper::start().await?;
    let owner =
        Owner { node: name.clone(), boot_id: boot_id.clone(), rules: cairn_ipam::Rules::ALL };
    let relist = watch::Sender::new(0);
    let views = watches::start(
        &client,
        watches::WatchOptions {
            node: name.clone(),
            namespace: options.namespace.clone(),
            relist: relist.subscribe(),
            restored: last_view::read(storage.as_ref(), &owner),
            rules: owner.rules,
        },
    );
    tokio::spawn(last_view::keep(views.clone(), Arc::clone(&storage), owner.clone()));
    let drain = Drain::open(Arc::clone(&storage), owner);
    let (drain_out, drain_told) = watch::channel(drain.told());
    let (holdings_out, holdings) = watch::channel(Arc::default());
    let ipam_options = ipam::IpamOptions {
        node: name.clone(),
        boot_id,
        namespace: options.namespace.clone(),
        offline: Duration::from_secs(options.offline_secs.into()),
        idle_release: idle_release(options.idle_release_secs),
        rules: cairn_ipam::Rules::ALL,
        clock: ipam::Clock::boottime(),
    };
    let (speaker, speakers) = watch::channel(None);
    let (waiting, waiting_told) = watch::channel(0);
    let channels = ipam::IpamChannels {
        view: views.clone(),
        usage: pods.usage(),
        routes: fib.learned.clone(),
        witness: Arc::new(SpeakerWitness::new(speakers.clone(), waiting_told)),
        storage,
        relist,
        drain: drain_told,
        holdings: holdings_out,
    };
    tokio::spawn(ipam::run(client.clone(), ipam_options, channels));
    let served = pod_network.serve(config);

    let (bgp_node, bgp_node_wanted) = watch::channel(Wanted::None);
    let (status, status_wanted) = watch::channel(Wanted::None);
    tokio::spawn(publish::keep::<BGPNode>(client.clone(), name.clone(), bgp_node_wanted));
    tokio::spawn(publish::keep::<BGPNodeStatus>(client.clone(), name.clone(), status_wanted));
    let (report_out, report) =
        watch::channel(Arc::new(Report { node: Some(name.clone()), ..Report::default() }));
    let conflist_problems = match options.cni_conflist.zip(options.cni_conf_dir) {
        Some((source, directory)) => conflist::start(source, directory, pods.readiness()),
        None => watch::channel(Vec::new()).1,
    };
    let bfd = Follower::start(&options.run_dir)?;
    let disabled = Arc::new(DisabledPeers::open(&options.run_dir));
    let service = control::Service {
        report: Box::new(move || {
            let report = Report::clone(&report.borrow());
            async { report }.boxed()
        }),
        speaker: speakers,
        disabled: Arc::clone(&disabled),
        kernel: Some(fib.questions.clone()),
    };
    tokio::spawn(control::serve(listener, Arc::new(service)));
    tokio::spawn(memory::give_back());
    tracing::info!(node = name, run_dir = %options.run_dir.display(), "started");

    let mut agent = Agent {
        name,
        server,
        api_address,
        unreachable: None,
        knows_cluster: false,
        views,
        holdings,
        reachable: fib.reachable.clone(),
        routes: fib.state.clone(),
        repairs: fib.repairs.clone(),
        first_routes: fib.first_routes.clone(),
        readiness,
        configured: false,
        established: None,
        tunnels: fib.tunnels.clone(),
        tunnel_problems: fib.problems.clone(),
        filter_problems: firewall.problems.clone(),
        filter_repairs: firewall.repairs.clone(),
        conflist_problems,
        bfd,
        firewall,
        settings: NodeConfigurationSpec::default(),
        underlay: fib.underlay.clone(),
        usage: pods.usage(),
        pods,
        speaker: None,
        announced: Announced::default(),
        drain,
        drain_told: drain_out,
        unapplied: Some("nothing is known of the cluster yet".into()),
        disabled,
        speaker_for_questions: speaker,
        waiting,
        bgp_node,
        status,
        report: report_out,
        problems: Vec::new(),
        log: ProblemLog::default(),
        status_pace: StatusPace::default(),
        first_plan: None,
        start_by: None,
        ending: None,
        ways: Ways::default(),
        lodges: BTreeMap::new(),
        addresses: pods::TunnelAddresses::default(),
        lost: None,
    };
    agent.follow(&mut fib, served).await?;
    if let Some(speaker) = agent.speaker {
        speaker.handle.shutdown(Shutdown::KeepRoutes).await;
    }
    Ok(ExitCode::SUCCESS)
}

struct Agent {
    name: String,
    /// The API server's address, for messages.
    server: String,
    /// The address in it, if it is one.
    api_address: Option<IpAddr>,
    /// Why the API server could first not be reached, for as long as it cannot.
    unreachable: Option<String>,
    /// There has been a view that was whole: of this process, or of an earlier one.
    knows_cluster: bool,
    views: watch::Receiver<Arc<ClusterView>>,
    holdings: watch::Receiver<Arc<Holdings>>,
    reachable: watch::Receiver<Arc<BTreeSet<IpNet>>>,
    routes: watch::Receiver<RoutesStatus>,
    repairs: watch::Receiver<RepairsStatus>,
    first_routes: watch::Receiver<FirstRoutes>,
    readiness: Readiness,
    /// The pods have been told the node's addresses.
    configured: bool,
    /// The established sessions, as `n/m`, when they were last counted.
    established: Option<String>,
    /// The tunnels from which the kernel takes packets.
    tunnels: watch::Receiver<BTreeSet<TunnelKind>>,
    tunnel_problems: watch::Receiver<Vec<String>>,
    filter_problems: watch::Receiver<Vec<String>>,
    filter_repairs: watch::Receiver<u64>,
    conflist_problems: watch::Receiver<Vec<String>>,
    bfd: Follower,
    firewall: Keeper,
    /// The settings of the node's kernel, as they were last planned.
    settings: NodeConfigurationSpec,
    underlay: watch::Receiver<Arc<KernelUnderlay>>,
    usage: watch::Receiver<pods::Usage>,
    pods: pods::PodsHandle,
    speaker: Option<Running>,
    /// Of which blocks peers have heard.
    announced: Announced,
    drain: Drain,
    /// For the IPAM and its events.
    drain_told: watch::Sender<Told>,
    /// Why BGP does not run as was planned last.
    unapplied: Option<String>,
    disabled: Arc<DisabledPeers>,
    /// For `cairn bgp`.
    speaker_for_questions: watch::Sender<Option<SpeakerHandle>>,
    /// How many peers wait for their passwords.
    waiting: watch::Sender<usize>,
    bgp_node: watch::Sender<Wanted<cairn_api::BGPNodeSpec>>,
    status: watch::Sender<Wanted<BGPNodeStatusSpec>>,
    report: watch::Sender<Arc<Report>>,
    problems: Vec<String>,
    log: ProblemLog,
    status_pace: StatusPace,
    first_plan: Option<tokio::time::Instant>,
    /// When the speaker starts at the latest.
    start_by: Option<tokio::time::Instant>,
    /// What ends with the change-over of the topology, as it was last planned.
    ending: Option<Ending>,
    /// How others' blocks are reached, as it was last planned.
    ways: Ways,
    /// The pools in whose blocks each tunnel device has its address of a family, and until when, if it
    /// is not needed any more.
    lodges: BTreeMap<(TunnelKind, Family), (Vec<String>, Option<tokio::time::Instant>)>,
    /// What the tunnel devices are to have, as it was last told.
    addresses: pods::TunnelAddresses,
    /// Until when an address counts at which others know this node, and which it has no more.
    lost: Option<tokio::time::Instant>,
}

struct Running {
    handle: SpeakerHandle,
    changes: watch::Receiver<u64>,
    config: Arc<SpeakerConfig>,
    started: Instant,
    /// Peers that wait for their passwords.
    waiting: Vec<PeerName>,
}

impl Running {
    /// How far peers are with what is announced, for a drain that has asked about `delivery`.
    async fn answer(&self, delivery: Delivery) -> anyhow::Result<Answer> {
        let delivery = self.handle.delivery(delivery).await?;
        let restarts = self.config.peers.values().filter_map(|peer| peer.graceful_restart.as_ref());
        let restart_secs = restarts.map(|restart| restart.restart_time_secs).max().unwrap_or(0);
        Ok(Answer::Delivery {
            missing: delivery.missing().iter().chain(&self.waiting).cloned().collect(),
            delivery,
            started: self.started,
            restart_time: Duration::from_secs(restart_secs.into()),
        })
    }
}

impl Agent {
    /// The loop: what changed is planned for as a whole; reports follow more slowly.
    async fn follow(
        &mut self,
        fib: &mut Fib,
        mut served: oneshot::Receiver<()>,
    ) -> anyhow::Result<()> {
        let mut terminate = signal(SignalKind::terminate())?;
        let mut interrupt = signal(SignalKind::interrupt())?;
        let mut report_due: Option<tokio::time::Instant> = None;
        loop {
            tokio::select! {
                changed = self.views.changed() => {
                    changed.context("the watches ended")?;
                    self.plan(fib);
                }
                changed = self.holdings.changed() => {
                    changed.context("the IPAM ended")?;
                    self.plan(fib);
                }
                changed = self.reachable.changed() => {
                    changed.context("the kernel side ended")?;
                    self.plan(fib);
                }
                changed = self.tunnels.changed() => {
                    changed.context("the kernel side ended")?;
                    self.plan(fib);
                }
                changed = self.underlay.changed() => {
                    changed.context("the kernel side ended")?;
                    self.plan(fib);
                }
                changed = self.first_routes.changed() => {
                    changed.context("the kernel side ended")?;
                    // These sessions are there, and their peers may have to hear first.
                    self.ask_peers().await?;
                    self.judge();
                }
                () = until(self.readiness.next_deadline().map(tokio::time::Instant::from_std)) => {
                    self.judge();
                }
                changed = self.routes.changed() => changed.context("the kernel side ended")?,
                changed = self.repairs.changed() => changed.context("the kernel side ended")?,
                changed = self.tunnel_problems.changed() => {
                    changed.context("the kernel side ended")?;
                }
                changed = self.filter_problems.changed() => {
                    changed.context("the packet filter's thread ended")?;
                }
                changed = self.filter_repairs.changed() => {
                    changed.context("the packet filter's thread ended")?;
                }
                changed = self.bfd.view.changed() => changed.context("the BFD client's thread ended")?,
                // Nobody says anything when there is no list to keep.
                Ok(()) = self.conflist_problems.changed() => {}
                changed = self.usage.changed() => {
                    changed.context("the pod network ended")?;
                    // Pods come and go without it, but on a node whose blocks go with its pods.
                    if self.drain.is_under_way() {
                        self.plan(fib);
                    } else if self.knows_cluster && self.usage.borrow().tunnels != self.addresses {
                        self.follow_tunnels(fib);
                    }
                }
                () = until(self.lodges.values().filter_map(|(_, until)| *until).min()) => {
                    self.plan(fib);
                }
                () = until(self.lost.filter(|at| *at > tokio::time::Instant::now())) => {
                    self.plan(fib);
                }
                () = until(self.start_by) => {
                    self.start_by = None;
                    self.plan(fib);
                }
                changed = changed(&mut self.speaker) => {
                    changed.context("the speaker ended")?;
                    self.announced.look(Instant::now());
                    self.drain.look(Instant::now());
                }
                () = until(self.drain.next_deadline().map(tokio::time::Instant::from_std)) => {
                    self.follow_drain(fib).await?;
                }
                () = until(self.announced.next_deadline().map(tokio::time::Instant::from_std)),
                    if self.speaker.is_some() =>
                {
                    if !self.ask_peers().await? {
                        continue;
                    }
                }
                () = until(report_due) => {
                    report_due = self.tell().await?.map(tokio::time::Instant::from_std);
                    continue;
                }
                _ = &mut served => anyhow::bail!("the pod network ended"),
                _ = terminate.recv() => return Ok(()),
                _ = interrupt.recv() => return Ok(()),
            }
            let soon = tokio::time::Instant::now() + REPORT_DELAY;
            report_due = Some(report_due.map_or(soon, |due| due.min(soon)));
        }
    }

    /// Plans with what is known now, and hands each part what it has to do.
    fn plan(&mut self, fib: &mut Fib) {
        let view = self.views.borrow_and_update().clone();
        self.knows_cluster |= view.synced || view.restored;
        self.problems = self.watch_problems(&view);
        if !self.knows_cluster {
            return;
        }
        let holdings = self.holdings.borrow_and_update().clone();
        let reachable = self.reachable.borrow_and_update().clone();
        let running = self.speaker.as_ref().map(|running| Arc::clone(&running.config));
        let tunnels = self.tunnels.borrow_and_update().clone();
        let underlay = self.underlay.borrow_and_update().clone();
        let before = self.known_addresses(&view, &underlay.own);
        self.drain.know(
            Instant::now(),
            view.node.as_ref(),
            &self.usage.borrow(),
            &holdings.announced,
        );
        let departure = self.drain.departure();
        let local = Local {
            blocks: &holdings.announced,
            reachable: &reachable,
            running: running.as_deref(),
            tunnels: &tunnels,
            interfaces: &underlay.own,
            towards_api: self.api_address.and_then(node_address::source_towards),
            before: &before,
            departure: &departure,
        };
        let mut plan = plan(&view, &self.name, &local);
        if plan.addresses.is_empty() {
            // What is not known for the moment takes no tunnel down.
            plan.ways.addresses.clone_from(&self.ways.addresses);
        }
        self.announced.want(Instant::now(), &plan.heard_first);
        self.drain.reflects(Instant::now(), plan.reflects);
        self.lodge(plan.tunnel_pools);
        self.pods.set_supply(pods::Supply {
            blocks: holdings.blocks.clone(),
            families: holdings.families.clone(),
            pools: holdings.pools.clone(),
            reserved: holdings.reserved.clone(),
            tunnels: self
                .lodges
                .iter()
                .map(|(place, (pools, _))| (*place, pools.clone()))
                .collect(),
            lodgings: holdings.told.then(|| holdings.lodgings.clone()),
            refusals: holdings.refusals.clone(),
            held_back: self.held_back(),
            namespaces: Arc::clone(&view.namespaces),
        });
        // Before anything is wanted.
        let settings = Some(RouteSettings::from(&plan.settings));
        crate::send_if_changed(&fib.settings, settings);
        crate::send_if_changed(&fib.blocks, Some(plan.blackholes.clone()));
        crate::send_if_changed(&fib.may_sweep, !view.restored);
        if !plan.addresses.is_empty() {
            let mtu = plan.ways.pod_mtu(|address| underlay.mtu(address)).unwrap_or(DEFAULT_MTU);
            self.pods.set_config(pods::PodConfig { node_addresses: plan.addresses.clone(), mtu });
            self.configured = true;
        }
        self.ways = plan.ways;
        self.settings = plan.settings;
        self.follow_tunnels(fib);
        // Others know this node by that object alone, so it comes back when somebody deletes it.
        let shown = view.own_bgp_node.as_ref();
        let drifted = plan.bgp_node.as_ref().is_some_and(|(_, wanted)| Some(wanted) != shown);
        // Nothing is told to others that is known from before only.
        if view.synced {
            self.bgp_node.send_if_modified(|held| {
                let differs = *held != plan.bgp_node;
                held.clone_from(&plan.bgp_node);
                differs || drifted
            });
        }
        self.ending = plan.ending;
        self.waiting.send_replace(plan.waiting.len());
        self.problems.extend(plan.problems);
        self.unapplied = match plan.speaker {
            Some(config) if self.speaker.is_some() || self.may_start(&view, &local) => {
                self.apply(config, &plan.waiting, fib).err()
            }
            Some(_) => Some("it waits for the blocks of this node".into()),
            None => Some(plan.no_speaker.unwrap_or_else(|| "this node is not known".into())),
        };
        crate::send_if_changed(&self.drain_told, self.drain.told());
        self.judge();
    }

    /// The blocks whose pods do not begin yet, as peers have to hear of them first.
    fn held_back(&self) -> BTreeSet<IpNet> {
        self.speaker.as_ref().map(|_| self.announced.held_back()).unwrap_or_default()
    }

    /// Asks how far peers are with the blocks, and lets pods begin; true when there is something to tell.
    async fn ask_peers(&mut self) -> anyhow::Result<bool> {
        let Some(running) = &self.speaker else { return Ok(false) };
        let news = self.announced.ask(&running.handle).await?;
        self.pods.set_held_back(self.held_back());
        Ok(news)
    }

    /// Asks how far peers are with what a node that is drained announces, and goes on to the next phase.
    async fn follow_drain(&mut self, fib: &mut Fib) -> anyhow::Result<()> {
        let answer = match (&self.speaker, &self.unapplied) {
            (Some(running), None) => running.answer(self.drain.delivery()).await?,
            (Some(_), Some(reason)) => Answer::Not(format!("BGP keeps its old settings: {reason}")),
            (None, reason) => Answer::Not(match reason {
                Some(reason) => format!("BGP does not run: {reason}"),
                None => "BGP does not run".into(),
            }),
        };
        if self.drain.heard(Instant::now(), answer) {
            self.plan(fib);
        }
        crate::send_if_changed(&self.drain_told, self.drain.told());
        Ok(())
    }

    /// Says whether pods start, by what is known now.
    fn judge(&mut self) {
        let holdings = self.holdings.borrow();
        let routes = *self.first_routes.borrow_and_update();
        let started = self.speaker.is_some();
        let facts = Facts {
            configured: self.configured,
            served: !holdings.families.is_empty() || holdings.elsewhere,
            families: &holdings.ahead,
            blocks: &holdings.blocks,
            sessions: started.then(|| self.established.as_deref().unwrap_or("no")),
            routes,
        };
        self.pods.set_readiness(self.readiness.judge(Instant::now(), &facts));
    }

    /// The addresses at which others know this node. One that it has lost counts for a while: it may come
    /// back.
    fn known_addresses(&mut self, view: &ClusterView, own: &[OwnAddress]) -> Vec<IpAddr> {
        let known = view.own_bgp_node.iter().flat_map(|spec| &spec.addresses);
        let mut known: Vec<IpAddr> = known.filter_map(|text| text.parse().ok()).collect();
        let is_own = |address: &IpAddr| own.iter().any(|own| own.address.addr() == *address);
        if known.iter().all(is_own) {
            self.lost = None;
            return known;
        }
        let now = tokio::time::Instant::now();
        if *self.lost.get_or_insert(now + LINGER) <= now {
            known.retain(is_own);
        }
        known
    }

    /// Says in blocks of which pools tunnel devices have their addresses. Those that no pool needs any
    /// more keep theirs for a while, as the others hear of it later.
    fn lodge(&mut self, needed: BTreeMap<(TunnelKind, Family), Vec<String>>) {
        let now = tokio::time::Instant::now();
        for (place, (_, until)) in &mut self.lodges {
            if !needed.contains_key(place) {
                until.get_or_insert(now + LINGER);
            }
        }
        self.lodges.retain(|_, (_, until)| until.is_none_or(|at| at > now));
        self.lodges.extend(needed.into_iter().map(|(place, pools)| (place, (pools, None))));
    }

    /// The tunnel devices that are to have an address of a family, and of which pools.
    fn lodging(&self) -> Vec<((TunnelKind, Family), Vec<String>)> {
        let holdings = self.holdings.borrow();
        let needed = self.lodges.iter().filter(|(_, (_, until))| until.is_none());
        let lodging = needed.filter(|(place, (pools, _))| {
            // A node without such blocks has none to be reached.
            holdings.blocks.iter().any(|block| {
                Family::of_net(block.cidr) == place.1
                    && pools.contains(&block.pool)
                    && holdings.lodgings.contains(&block.cidr)
            })
        });
        lodging.map(|(place, (pools, _))| (*place, pools.clone())).collect()
    }

    /// Tunnel devices for which no address is free.
    fn lacks_addresses(&self, usage: &pods::Usage) -> Vec<String> {
        let lodging = self.lodging();
        let lacking = lodging.iter().filter(|(place, _)| !usage.tunnels.held.contains_key(place));
        let text = lacking.map(|((kind, family), pools)| {
            format!(
                "{} has no {family} address, so that others do not send through it: no block of this \
                 node has a free one; free addresses of IPPool {}, or enlarge it",
                device_name(*kind),
                pools.join(" or ")
            )
        });
        text.collect()
    }

    /// Tells the kernel side what is reached through tunnels, what their devices have, and what may
    /// pass.
    fn follow_tunnels(&mut self, fib: &Fib) {
        self.addresses = self.usage.borrow().tunnels.clone();
        let addresses = self.addresses.clone();
        let (view, own) = (self.views.borrow().clone(), self.underlay.borrow().clone());
        let wanted = firewall::wanted(&view, &self.ways, &self.settings, &addresses, &own.own);
        crate::send_if_changed(&self.firewall.wanted, Some(wanted));
        let lodging = self.lodging().into_iter().map(|(place, _)| place).collect();
        let (node, ways) = (self.name.clone(), self.ways.clone());
        let wanted = Wrapping { node, ways, addresses, lodging };
        crate::send_if_changed(&fib.wrapping, Arc::new(wanted));
    }

    /// What is wrong with the way to the API server. The reason of an outage is the first one: the
    /// others are its echoes.
    fn watch_problems(&mut self, view: &ClusterView) -> Vec<String> {
        let mut problems = Vec::new();
        let unreachable = view.unwatched.values().find_map(|failure| match failure {
            WatchFailure::Unreachable(reason) => Some(reason),
            WatchFailure::Refused(_) => None,
        });
        self.unreachable =
            unreachable.map(|reason| self.unreachable.take().unwrap_or(reason.clone()));
        if let Some(reason) = &self.unreachable {
            let consequence = match self.knows_cluster {
                true => "sessions, routes and pods go on with what was last known",
                false => "nothing is known of the cluster yet, and pods wait",
            };
            problems.push(format!(
                "the API server at {} cannot be reached ({reason}): check that it runs and that \
                 this address is right; {consequence}",
                self.server
            ));
        }
        problems.extend(view.unwatched.iter().filter_map(|(kind, failure)| match failure {
            WatchFailure::Unreachable(_) => None,
            WatchFailure::Refused(text) => Some(format!("cannot watch {kind}: {text}")),
        }));
        problems
    }

    /// Whether the speaker may start with what is known now; if not, it plans again in time.
    fn may_start(&mut self, view: &ClusterView, local: &Local<'_>) -> bool {
        let now = tokio::time::Instant::now();
        let due = *self.first_plan.get_or_insert(now) + start_wait(view, local);
        self.start_by = (due > now).then_some(due);
        due <= now
    }

    /// Hands the speaker its configuration. One that cannot work leaves the last one in force.
    ///
    /// # Errors
    /// What is wrong with it, which is a problem, too.
    fn apply(
        &mut self,
        config: SpeakerConfig,
        waiting: &BTreeMap<PeerName, PeerConfig>,
        fib: &mut Fib,
    ) -> Result<(), String> {
        match &mut self.speaker {
            Some(running) if *running.config == config => {}
            Some(running) => match running.handle.apply(config.clone()) {
                Ok(()) => running.config = Arc::new(config),
                Err(error) => {
                    self.problems.push(format!("BGP keeps its old settings: {error}"));
                    return Err(error.to_string());
                }
            },
            None => {
                let options = SpeakerOptions {
                    forwarding_preserved: fib.preserved,
                    restarting: fib.preserved,
                    disabled: self.disabled.names(),
                };
                match bgp_thread::start(config.clone(), options, Some(fib.underlay.clone())) {
                    Ok((handle, feed)) => {
                        fib.follow(feed);
                        let changes = handle.changes();
                        self.speaker_for_questions.send_replace(Some(handle.clone()));
                        let (config, started) = (Arc::new(config), Instant::now());
                        let waiting = Vec::new();
                        self.speaker = Some(Running { handle, changes, config, started, waiting });
                    }
                    Err(error) => {
                        self.problems.push(format!("BGP does not start: {error:#}"));
                        return Err(format!("{error:#}"));
                    }
                }
            }
        }
        if let Some(running) = &mut self.speaker {
            running.waiting = waiting.keys().cloned().collect();
            self.bfd.want(&running.config, waiting, &running.handle);
        }
        Ok(())
    }

    /// Gathers the report for `cairn status` and the status object, and tells the log what is new;
    /// returns when the log or the object may have more to hear.
    async fn tell(&mut self) -> anyhow::Result<Option<Instant>> {
        let bfd = self.bfd.view.borrow_and_update().clone();
        let snapshot = match &self.speaker {
            Some(running) => Some(running.handle.snapshot().await?),
            None => None,
        };
        let (sessions, listening) =
            snapshot.as_ref().map(|s| report::sessions(s, &bfd)).unwrap_or_default();
        let in_sync = snapshot.is_some_and(|snapshot| snapshot.in_sync);
        let change_over = if in_sync { self.change_over().await? } else { None };
        self.established = Some(Report::established(&sessions));
        // Its reason names them.
        self.judge();
        let mut problems = self.problems.clone();
        problems.extend(self.holdings.borrow().problems.iter().cloned());
        problems.extend(self.tunnel_problems.borrow_and_update().iter().cloned());
        problems.extend(self.filter_problems.borrow_and_update().iter().cloned());
        problems.extend(self.conflist_problems.borrow_and_update().iter().cloned());
        problems.extend(self.announced.problems().iter().cloned());
        problems.extend(bfd.problems);
        let now = Instant::now();
        let log_due = self.log.log(now, &problems);
        // The speaker logs its own.
        problems.extend(listening);
        problems.extend(self.disabled.problem());
        // Not marked as seen: a change waits for its turn in the loop.
        let usage = self.usage.borrow().clone();
        problems.extend(self.lacks_addresses(&usage));
        let blocks = usage
            .blocks
            .iter()
            .map(|block| BlockReport {
                cidr: block.cidr.to_string(),
                used: block.used.to_string(),
                free: block.free.to_string(),
            })
            .collect();
        let bgp = BGPNodeStatusSpec {
            peers: Report::established(&sessions),
            sessions,
            routes: self.routes.borrow_and_update().clone(),
            repairs: RepairsStatus {
                packet_filter: *self.filter_repairs.borrow_and_update(),
                ..*self.repairs.borrow_and_update()
            },
            change_over,
            drain: self.drain.status(),
            problems,
        };
        let owner = self.views.borrow().node.as_ref().map(|node| ObjectReference {
            name: self.name.clone(),
            uid: node.metadata.uid.clone().unwrap_or_default(),
        });
        let pod_network = Some(self.readiness.verdict().report());
        let report = Report { node: Some(self.name.clone()), pod_network, blocks, bgp };
        let wanted = owner.map(|owner| (owner, report.bgp.clone()));
        let rests = self.status_pace.rests(now, &self.status.borrow(), &wanted);
        if rests.is_none() {
            crate::send_if_changed(&self.status, wanted);
        }
        self.report.send_replace(Arc::new(report));
        // Routes come without a word to this loop.
        let waits = self.ending.is_some() && change_over.is_none_or(|change| change.losing > 0);
        let look = waits.then(|| now + CHANGE_OVER_INTERVAL);
        Ok([log_due, rests, look].into_iter().flatten().min())
    }

    /// What this node would lose if the change-over that is under way ended now.
    async fn change_over(&self) -> anyhow::Result<Option<ChangeOver>> {
        let Some((running, ending)) = self.speaker.as_ref().zip(self.ending.as_ref()) else {
            return Ok(None);
        };
        let loss = running.handle.loss(ending.peers.clone()).await?;
        if let Some(first) = loss.first {
            let (revision, prefixes) = (ending.revision, loss.prefixes);
            tracing::debug!(revision, prefixes, %first, "the topology before is still needed");
        }
        Ok(Some(ChangeOver { revision: ending.revision, losing: loss.prefixes as u64 }))
    }
}

/// How long after the first plan the speaker starts at the latest.
///
/// Peers that kept our routes over a restart drop those that are missing at our End-of-RIB, so the
/// first configuration should hold every block. They do not keep them for ever, though: a block
/// without pods, which waits for the API server, holds up the start for [`IDLE_WAIT`] only, and any
/// other for [`START_WAIT`].
fn start_wait(view: &ClusterView, local: &Local<'_>) -> Duration {
    let held = |cidr: &str| local.blocks.iter().any(|block| block.to_string() == cidr);
    let known = view
        .own_blocks
        .values()
        .all(|block| block.metadata.deletion_timestamp.is_some() || held(&block.spec.cidr));
    let written = local.blocks.iter().all(|block| local.reachable.contains(block));
    match (known, written) {
        (true, true) => Duration::ZERO,
        (false, true) => IDLE_WAIT,
        (_, false) => START_WAIT,
    }
}

/// The time of a setting of which 0 is never.
fn idle_release(secs: u32) -> Option<Duration> {
    (secs > 0).then(|| Duration::from_secs(secs.into()))
}

async fn changed(speaker: &mut Option<Running>) -> Result<(), watch::error::RecvError> {
    match speaker {
        Some(running) => running.changes.changed().await,
        None => std::future::pending().await,
    }
}

/// The way to the API server: a kubeconfig, or the environment of a pod. The address
/// comes from the environment and not by DNS, since cluster DNS needs the network that this agent
/// makes.
async fn reach(kubeconfig: Option<&std::path::Path>) -> anyhow::Result<kube::Config> {
    match kubeconfig {
        Some(path) => api_client::config_of(path).await,
        None => kube::Config::incluster_env()
            .context("not a pod of a cluster: give --kubeconfig, or run it from the DaemonSet"),
    }
}

/// Ethernet's, where the uplink's cannot be read.
const DEFAULT_MTU: u32 = 1500;

/// A freed address rests before it is given again, so that peers' connections to the old pod fail
/// instead of reaching another one.
const COOLDOWN: Duration = Duration::from_secs(60);

/// How long a CNI ADD waits in all, for a first or next block: below the runtime's patience, above the time
/// of a claim.
const ADDRESS_WAIT: Duration = Duration::from_secs(10);

/// How long the first session waits for an own block without pods. A node with many blocks needs
/// longer to have all of them confirmed, and peers meanwhile count down its restart time.
const IDLE_WAIT: Duration = Duration::from_secs(1);

/// How long the first session waits for a block that does not get into the kernel.
const START_WAIT: Duration = Duration::from_secs(5);

/// Between two looks at what a change-over still needs.
const CHANGE_OVER_INTERVAL: Duration = Duration::from_secs(1);

/// Changes that come together are one report.
const REPORT_DELAY: Duration = Duration::from_millis(100);

#[cfg(test)]
mod tests {
    use cairn_api::IPBlock;
    use serde_json::json;

    use super::*;

    #[test]
    fn the_speaker_waits_for_blocks_but_not_for_long_for_idle_ones() {
        let cidrs: [IpNet; 2] = ["10.0.0.0/26", "10.0.0.64/26"].map(|c| c.parse().expect("a net"));
        let block = |cidr: IpNet| -> (String, IPBlock) {
            let spec = json!({
                "cidr": cidr,
                "range": "10.0.0.0/16",
                "pool": {"name": "p", "uid": "1"},
                "node": {"name": "n1", "uid": "2"},
            });
            let object = json!({
                "apiVersion": "cairn.network/v1alpha1",
                "kind": "IPBlock",
                "metadata": {"name": cairn_api::block_name(cidr)},
                "spec": spec,
            });
            (cidr.to_string(), serde_json::from_value(object).expect("a block"))
        };
        let view = ClusterView { own_blocks: cidrs.map(block).into(), ..ClusterView::default() };
        let wait = |announced: &[IpNet], reachable: &[IpNet]| {
            let reachable = reachable.iter().copied().collect();
            start_wait(&view, &Local::new(announced, &reachable, None))
        };
        assert_eq!(wait(&cidrs, &cidrs), Duration::ZERO);
        assert_eq!(wait(&cidrs[..1], &cidrs[..1]), IDLE_WAIT);
        assert_eq!(wait(&[], &[]), IDLE_WAIT);
        assert_eq!(wait(&cidrs[..1], &[]), START_WAIT);
        assert_eq!(wait(&cidrs, &cidrs[1..]), START_WAIT);
    }
}
