//! That the network stays as it should be while things break, under a flow between two pods.

use std::collections::BTreeSet;
use std::thread;
use std::time::{Duration, Instant};

use ipnet::IpNet;
use k8s_openapi::jiff::Timestamp;

use super::cast::{Cast, Flows};
use super::{
    drain, network, node_routes, quiet, sessions_back, some_of, spread, topology, tunnels,
};
use crate::cluster::{Block, Cluster};
use crate::datacenter::routers::{detection, timers};
use crate::datacenter::{DataCenter, Layout, Node, Role};
use crate::error::Error;
use crate::interrupt::{Interrupt, Seen};
use crate::lab::Lab;
use crate::report::{Report, Row, millis};
use crate::tables::{self, BgpRoutes};
use crate::workspace::Workspace;

/// Breaks one thing after the other, under flows of `per_sec` packets a second, and adds a row for each.
///
/// # Errors
/// When the run ends. What a failure shows is said in its row.
pub fn all(
    lab: &mut Lab,
    workspace: &Workspace,
    interrupt: &Interrupt,
    report: &mut Report,
    per_sec: u32,
) -> Result<(), Error> {
    let Some(cast) = Cast::choose(lab) else {
        report.row(Row::new("failures", "a flow between two pods", "too few nodes or pods", false));
        return Ok(());
    };
    let flows = Flows::start(lab, &cast, per_sec)?;
    let at = flows.mark();
    interrupt.sleep(SETTLE)?;
    let loss = flows.since(&at);
    report.row(Row::new(
        "flow between racks, undisturbed",
        "0 lost",
        loss.to_string(),
        loss.lost == 0 && loss.sent > 0,
    ));
    report.row(killed(lab, &Killed::Agent(cast.near.name()), &flows, workspace, interrupt)?);
    report.row(killed(lab, &Killed::AllAgents, &flows, workspace, interrupt)?);
    report.row(killed(lab, &Killed::AllRouters, &flows, workspace, interrupt)?);
    report.row(frozen(lab, &cast.near, &flows, interrupt)?);
    report.row(rebooted(lab, &cast.far, &flows, workspace, interrupt)?);
    report.row(routes_deleted(lab, &cast.near, &flows, interrupt)?);
    for row in tunnels::devices_deleted(lab, &cast, &flows, interrupt)? {
        report.row(row);
    }
    report.row(block_filled(lab, &cast, &flows, interrupt)?);
    report.row(quiet::pods_come_and_go(lab, &cast.near, &flows, interrupt)?);
    report.row(api_away(lab, &cast, &flows, interrupt)?);
    if lab.centre.layout.fabric_knows_pods() {
        for row in tunnels::changed_live(lab, &flows, interrupt)? {
            report.row(row);
        }
    }
    for row in topology::changed_live(lab, &cast, &flows, workspace, interrupt)? {
        report.row(row);
    }
    for row in drain::drained(lab, &cast, &flows, interrupt)? {
        report.row(row);
    }
    lab.check()?;
    for row in node_lost(lab, &cast.victim, &flows, interrupt)? {
        report.row(row);
    }
    lab.check()
}

/// Whose processes end at once.
enum Killed {
    Agent(String),
    AllAgents,
    AllRouters,
}

impl Killed {
    fn machines(&self, layout: &Layout) -> Vec<String> {
        let of = |wanted: fn(Role) -> bool| {
            let machines = layout.machines().into_iter();
            machines.filter(|(_, role)| wanted(*role)).map(|(name, _)| name).collect()
        };
        match self {
            Killed::Agent(name) => vec![name.clone()],
            Killed::AllAgents => of(|role| role == Role::Node),
            Killed::AllRouters => of(|role| role != Role::Node),
        }
    }
}

impl std::fmt::Display for Killed {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Killed::Agent(name) => write!(f, "agent of {name}"),
            Killed::AllAgents => f.write_str("all agents"),
            Killed::AllRouters => f.write_str("speakers of all routers"),
        }
    }
}

fn killed(
    lab: &mut Lab,
    killed: &Killed,
    flows: &Flows,
    workspace: &Workspace,
    interrupt: &Interrupt,
) -> Result<Row, Error> {
    let machines = killed.machines(&lab.centre.layout);
    let at = flows.mark();
    machines.iter().for_each(|name| lab.kill(name));
    interrupt.sleep(DOWN)?;
    for name in &machines {
        match lab.centre.layout.node(name) {
            Some(_) => lab.start_agent(name, workspace)?,
            None => lab.start_speaker(name, workspace)?,
        }
    }
    let wanted = machines.iter().map(|name| lab.centre.layout.sessions(name)).sum();
    let (back, ok) = sessions_back(lab, &machines, wanted, RECOVERY, interrupt)?;
    // Stale routes are swept after the sessions are back; that must lose nothing either.
    interrupt.sleep(SETTLE)?;
    let loss = flows.since(&at);
    Ok(Row::new(
        format!("{killed} killed -9, started {} later", millis(DOWN)),
        "0 lost, sessions back",
        format!("{loss}, {back}"),
        ok && loss.lost == 0,
    ))
}

/// An agent stands still for half of the hold time.
fn frozen(lab: &Lab, node: &Node, flows: &Flows, interrupt: &Interrupt) -> Result<Row, Error> {
    let name = node.name();
    let still = Duration::from_secs(timers(&lab.centre.layout).hold_time_secs.into()) / 2;
    let before = lab.sessions();
    let at = flows.mark();
    lab.freeze(&name, true);
    let slept = interrupt.sleep(still);
    lab.freeze(&name, false);
    slept?;
    // What is late has had its time by then.
    interrupt.sleep(SETTLE)?;
    let loss = flows.since(&at);
    let ended = before.difference(&lab.sessions()).count();
    Ok(Row::new(
        format!("agent of {name} stands still for {}", millis(still)),
        "0 lost, no session ends",
        format!("{loss}, {ended} of {} ended", before.len()),
        loss.lost == 0 && ended == 0 && !before.is_empty(),
    ))
}

/// The only router of a node's rack reboots: nothing passes meanwhile, and everything afterwards.
fn rebooted(
    lab: &mut Lab,
    node: &Node,
    flows: &Flows,
    workspace: &Workspace,
    interrupt: &Interrupt,
) -> Result<Row, Error> {
    let rack = lab.centre.layout.rack_of(node).cloned();
    let what =
        format!("the router of the rack of {} reboots, dark for {}", node.name(), millis(DOWN));
    let expected = format!("passes within {} of its start, then 0 lost", millis(REBOOTED));
    let Some(rack) = rack else { return Ok(Row::new(what, expected, "no rack", false)) };
    let before = lab.sessions().len();
    let machines: Vec<String> = lab.centre.machines().map(|(name, _)| name.to_owned()).collect();
    let at = flows.mark();
    lab.power_off(&rack)?;
    interrupt.sleep(DOWN)?;
    lab.power_on(&rack, workspace)?;
    let (back, ok) = sessions_back(lab, &machines, before, RECOVERY, interrupt)?;
    interrupt.sleep(SETTLE)?;
    let dark = flows.since(&at);
    let at = flows.mark();
    interrupt.sleep(SETTLE)?;
    let after = flows.since(&at);
    let in_time = dark.gap < DOWN + interrupt.patient(REBOOTED);
    Ok(Row::new(
        what,
        expected,
        format!("gap {} ms, then {after}, sessions {back}", dark.gap.as_millis()),
        ok && in_time && dark.lost > 0 && after.lost == 0 && after.sent > 0,
    ))
}

fn routes_deleted(
    lab: &mut Lab,
    node: &Node,
    flows: &Flows,
    interrupt: &Interrupt,
) -> Result<Row, Error> {
    let name = node.name();
    let what = format!("routes of {name} deleted by hand");
    let Some(machine) = lab.centre.machine(&name) else {
        return Ok(Row::new(what, "repaired", "the node is gone", false));
    };
    let before = BgpRoutes::read(machine)?;
    let at = flows.mark();
    let deleted = tables::delete_all(machine)?;
    let started = Instant::now();
    let repaired = interrupt.poll(RECOVERY, || {
        let now = BgpRoutes::read(machine)?;
        let missing = count(&before).saturating_sub(count(&now));
        Ok(if now == before {
            Seen::Done(started.elapsed())
        } else {
            Seen::NotYet(format!("{missing} of {deleted} still missing"))
        })
    })?;
    let loss = flows.since(&at);
    let (seen, ok) = match repaired {
        Ok(time) => (format!("all {deleted} back in {}, {loss}", millis(time)), deleted > 0),
        Err(seen) => (seen, false),
    };
    Ok(Row::new(what, "repaired", seen, ok))
}

fn count(routes: &BgpRoutes) -> usize {
    routes.learned.len() + routes.own.len()
}

fn block_filled(
    lab: &mut Lab,
    cast: &Cast,
    flows: &Flows,
    interrupt: &Interrupt,
) -> Result<Row, Error> {
    let name = cast.victim.name();
    let what = format!("block of {name} filled by {BLOCK_SIZE} more pods");
    let expected = "a second one in all kernels";
    let at = flows.mark();
    let before: BTreeSet<IpNet> = own(&lab.cluster, &name)?.into_iter().map(|b| b.cidr).collect();
    let on: Vec<String> = (0..BLOCK_SIZE).map(|_| name.clone()).collect();
    // The claims are watched while the pods start: the block comes before it is needed.
    let (centre, cluster) = (&lab.centre, &lab.cluster);
    let watcher = Watcher { centre, cluster, node: &name, before: &before };
    let (made, spread_in) = thread::scope(|scope| {
        let seen = scope.spawn(|| watcher.watch(interrupt));
        let made = lab.prepare(&on);
        let seen = seen.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic));
        (made, seen)
    });
    let failed: Vec<String> =
        made.into_iter().filter_map(|pod| lab.keep(pod).err().map(|e| e.to_string())).collect();
    let reached = match (lab.last_pod(&cast.far.name()), lab.last_pod(&name)) {
        (Some(from), Some(to)) => network::reach(from, to, interrupt)?,
        _ => Err("no pod".into()),
    };
    let loss = flows.since(&at);
    let mut wrong = failed;
    wrong.extend(reached.err().map(|why| format!("the last pod is not reached: {why}")));
    Ok(match spread_in? {
        Ok((blocks, time)) if wrong.is_empty() => Row::new(
            what,
            expected,
            format!("{blocks} new, in all within {}, {loss}", millis(time)),
            loss.lost == 0,
        ),
        Ok(_) => Row::new(what, expected, some_of(wrong), false),
        Err(seen) => {
            wrong.insert(0, seen);
            Row::new(what, expected, some_of(wrong), false)
        }
    })
}

/// Watches a node's new blocks spread to the other nodes' kernels.
struct Watcher<'a> {
    centre: &'a DataCenter,
    cluster: &'a Cluster,
    node: &'a str,
    before: &'a BTreeSet<IpNet>,
}

impl Watcher<'_> {
    /// Returns how many new blocks there are and the longest time from a claim to the last kernel.
    fn watch(&self, interrupt: &Interrupt) -> Result<Result<(usize, Duration), String>, Error> {
        let mut claimed: Vec<(Block, Instant, Option<Duration>)> = Vec::new();
        let versions: BTreeSet<bool> = self.before.iter().map(|net| net.addr().is_ipv4()).collect();
        interrupt.poll(RECOVERY, || {
            for block in own(self.cluster, self.node)? {
                let known = claimed.iter().any(|(other, ..)| *other == block);
                if !known && !self.before.contains(&block.cidr) {
                    claimed.push((block, Instant::now(), None));
                }
            }
            let tables = node_routes(self.centre)?;
            for (block, since, time) in claimed.iter_mut().filter(|(.., time)| time.is_none()) {
                let alone = std::slice::from_ref(block);
                if spread(alone, &tables).all(|(_, _, route)| route.is_some()) {
                    *time = Some(since.elapsed());
                }
            }
            let new: BTreeSet<bool> =
                claimed.iter().map(|(block, ..)| block.cidr.addr().is_ipv4()).collect();
            let slowest = claimed.iter().map(|(.., time)| *time).max().flatten();
            let all = claimed.iter().all(|(.., time)| time.is_some());
            Ok(match slowest {
                Some(slowest) if all && new == versions => Seen::Done((claimed.len(), slowest)),
                _ => Seen::NotYet(format!("{} new blocks, not all in all kernels", claimed.len())),
            })
        })
    }
}

fn own(cluster: &Cluster, node: &str) -> Result<Vec<Block>, Error> {
    Ok(cluster.blocks()?.into_iter().filter(|block| block.node == node).collect())
}

fn api_away(
    lab: &mut Lab,
    cast: &Cast,
    flows: &Flows,
    interrupt: &Interrupt,
) -> Result<Row, Error> {
    let name = cast.near.name();
    let at = flows.mark();
    lab.cluster.server().pause();
    let started = interrupt.sleep(DOWN).map(|()| Instant::now());
    let made = started
        .and_then(|started| lab.add(std::slice::from_ref(&name)).map(|()| started.elapsed()));
    let reached = match (lab.last_pod(&cast.far.name()), lab.last_pod(&name)) {
        (Some(from), Some(to)) => network::reach(from, to, interrupt),
        _ => Ok(Err("no pod".into())),
    };
    lab.cluster.server().resume();
    let (made, reached) = match (made, reached?) {
        (Err(Error::Interrupted), _) => return Err(Error::Interrupted),
        (made, reached) => (made, reached),
    };
    let loss = flows.since(&at);
    let (seen, ok) = match (made, reached) {
        (Ok(time), Ok(())) => (format!("ADD in {}, reached, {loss}", millis(time)), true),
        (Ok(_), Err(why)) => (format!("the pod is not reached: {why}"), false),
        (Err(error), _) => (error.to_string(), false),
    };
    Ok(Row::new(
        format!("API away while a pod starts on {name}"),
        "ADD done, pod reached, 0 lost",
        seen,
        ok && loss.lost == 0,
    ))
}

fn node_lost(
    lab: &mut Lab,
    victim: &Node,
    flows: &Flows,
    interrupt: &Interrupt,
) -> Result<Vec<Row>, Error> {
    let name = victim.name();
    let cidrs: BTreeSet<IpNet> = own(&lab.cluster, &name)?.iter().map(|b| b.cidr).collect();
    let mesh: BTreeSet<String> = (lab.centre.layout.nodes())
        .filter(|node| node.asn == victim.asn && node.number != victim.number)
        .map(Node::name)
        .collect();
    let at = flows.mark();
    let started = Instant::now();
    lab.lose(victim)?;
    // The fence counts from the last word of the node, which lies before its end.
    let silent = Timestamp::now().duration_since(lab.cluster.renewed(&name)?);
    let silent = Duration::try_from(silent).unwrap_or_default().saturating_sub(started.elapsed());
    lab.cluster.delete("nodes", &name)?;
    let mut gone = Gone::default();
    let last = interrupt.poll(BLOCKS_WITHIN + AT_ONCE, || {
        lab.check()?;
        gone.look(lab, &name, &cidrs, &mesh, started)?;
        Ok(match (gone.mesh, gone.others, gone.blocks) {
            (Some(_), Some(_), Some(_)) => Seen::Done(()),
            _ => Seen::NotYet(gone.left.clone()),
        })
    })?;
    let left = last.err().unwrap_or_default();
    let loss = flows.since(&at);
    let fence = Duration::from_secs(lab.centre.layout.offline_secs().into()) * 5 / 4;
    let row = |what: &str, expected: String, time: Option<Duration>, in_time: bool| {
        let seen =
            time.map_or_else(|| format!("not yet: {left}"), |t| format!("after {}", millis(t)));
        Row::new(format!("{name} gone: {what}"), expected, seen, in_time)
    };
    let silence = gone.blocks.map(|time| silent + time);
    let within = |time: Option<Duration>, most: Duration| time.is_some_and(|time| time <= most);
    let at_once = interrupt.patient(AT_ONCE);
    // Routers know no node where the pods' packets are in tunnels: then only the mesh has sessions with it.
    let layout = &lab.centre.layout;
    let detection = match layout.fabric_knows_pods() {
        true => detection(layout),
        false => Duration::from_secs(timers(layout).hold_time_secs.into()),
    };
    let detected = detection + at_once;
    let blocks_within = interrupt.patient(BLOCKS_WITHIN);
    Ok(vec![
        row(
            "its mesh drops the routes",
            format!("at once (up to {})", millis(at_once)),
            gone.mesh,
            within(gone.mesh, at_once),
        ),
        row(
            "all others drop the routes",
            format!("by BFD (up to {})", millis(detected)),
            gone.others,
            within(gone.others, detected),
        ),
        row(
            &format!("its {} blocks return", cidrs.len()),
            format!("silent for {} to {}", millis(fence), millis(blocks_within)),
            silence,
            within(silence, blocks_within) && silence.is_some_and(|time| time >= fence),
        ),
        Row::new(
            format!("{name} gone: flow between others"),
            "0 lost",
            loss.to_string(),
            loss.lost == 0,
        ),
    ])
}

/// Since when nothing of a lost node is left, and where.
#[derive(Default)]
struct Gone {
    mesh: Option<Duration>,
    others: Option<Duration>,
    blocks: Option<Duration>,
    left: String,
}

impl Gone {
    fn look(
        &mut self,
        lab: &Lab,
        node: &str,
        cidrs: &BTreeSet<IpNet>,
        mesh: &BTreeSet<String>,
        started: Instant,
    ) -> Result<(), Error> {
        let mut holders = Vec::new();
        for (name, machine) in lab.centre.machines() {
            let routes = BgpRoutes::read(machine)?;
            if cidrs.iter().any(|cidr| routes.learned.contains_key(cidr)) {
                holders.push(name.to_owned());
            }
        }
        let blocks = own(&lab.cluster, node)?.len();
        let now = started.elapsed();
        // A route that comes back, because a neighbour offers an older one, counts as not gone.
        let note = |time: &mut Option<Duration>, gone: bool| {
            *time = if gone { time.or(Some(now)) } else { None };
        };
        note(&mut self.mesh, !holders.iter().any(|name| mesh.contains(name)));
        note(&mut self.others, holders.iter().all(|name| mesh.contains(name)));
        note(&mut self.blocks, blocks == 0);
        self.left = format!("{blocks} blocks in the API, routes on {holders:?}");
        Ok(())
    }
}

/// Pods that fill a block of the lab's pools.
const BLOCK_SIZE: usize = 16;
/// Between a kill and the restart, as a kubelet would do it.
const DOWN: Duration = Duration::from_secs(1);
const SETTLE: Duration = Duration::from_secs(1);
/// Sessions, and routes behind them, after a router's links are up.
const REBOOTED: Duration = Duration::from_secs(4);
const RECOVERY: Duration = Duration::from_secs(10);
const AT_ONCE: Duration = Duration::from_secs(1);
/// When the lost node's agent led, another must take over first, and it counts the fence from the
/// moment at which it began to watch: 2 s for the leader's Lease, then the fence.
const BLOCKS_WITHIN: Duration = Duration::from_secs(15);
