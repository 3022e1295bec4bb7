//! That the nodes of one AS change between a full mesh and route reflectors without a word lost, and that
//! a reflector that dies costs nothing while another lives.

use std::time::{Duration, Instant};

use cairn_api::{
    ANNOTATION_DRAIN, DrainPhase, LABEL_ROUTE_REFLECTOR, Topology, TopologyMode, TopologyShape,
};

use super::cast::{Cast, Flows};
use super::{drain, node_routes, sessions_back, some_of, spread};
use crate::datacenter::Node;
use crate::datacenter::routers::{graceful_restart, timers};
use crate::error::Error;
use crate::interrupt::{Interrupt, Seen};
use crate::lab::Lab;
use crate::report::{Row, millis};
use crate::workspace::Workspace;

/// Changes over to reflectors, kills one for longer than anybody keeps its routes, and changes back. No
/// row where the nodes are of several AS, or too few to have some that are no reflectors.
///
/// # Errors
/// When the run ends.
pub fn changed_live(
    lab: &mut Lab,
    cast: &Cast,
    flows: &Flows,
    workspace: &Workspace,
    interrupt: &Interrupt,
) -> Result<Vec<Row>, Error> {
    let nodes: Vec<&Node> = lab.centre.layout.nodes().collect();
    if nodes.len() < NODES_MIN || nodes.iter().any(|node| node.asn != cast.near.asn) {
        return Ok(Vec::new());
    }
    // So that the ends of the flows hear of each other by reflection alone.
    for end in [&cast.near, &cast.far] {
        lab.cluster.label_node(&end.name(), LABEL_ROUTE_REFLECTOR, "false")?;
    }
    let mut rows = Vec::new();
    let (row, shape) = change(lab, Topology::RouteReflectors, flows, interrupt)?;
    rows.push(row);
    if let [reflector, other, ..] = &shape.reflectors[..] {
        rows.push(reflector_drained(lab, other, shape.reflectors.len(), flows, interrupt)?);
        rows.push(reflector_killed(lab, reflector, flows, workspace, interrupt)?);
    }
    rows.push(change(lab, Topology::FullMesh, flows, interrupt)?.0);
    lab.cluster.set_topology(Topology::Auto)?;
    Ok(rows)
}

/// The sessions between nodes of one AS, counted at both ends, with those of nodes and routers.
fn sessions(lab: &Lab, shape: &TopologyShape) -> usize {
    let layout = &lab.centre.layout;
    let nodes = layout.nodes().count();
    let all: usize = layout.nodes().map(|node| layout.sessions(&node.name())).sum();
    match shape.mode {
        TopologyMode::FullMesh => all,
        // All but those among the nodes that are no reflectors.
        TopologyMode::RouteReflectors => {
            let others = nodes.saturating_sub(shape.reflectors.len());
            all.saturating_sub(others * others.saturating_sub(1))
        }
    }
}

fn nodes(lab: &Lab) -> Vec<String> {
    lab.centre.layout.nodes().map(Node::name).collect()
}

fn change(
    lab: &mut Lab,
    to: Topology,
    flows: &Flows,
    interrupt: &Interrupt,
) -> Result<(Row, TopologyShape), Error> {
    let mode = match to {
        Topology::RouteReflectors => TopologyMode::RouteReflectors,
        _ => TopologyMode::FullMesh,
    };
    let at = flows.mark();
    lab.cluster.set_topology(to)?;
    let started = Instant::now();
    let mut shape = TopologyShape { mode, reflectors: Vec::new() };
    let changed = interrupt.poll(CHANGED_WITHIN, || {
        lab.check()?;
        let record = lab.cluster.topologies()?.into_iter().next();
        let Some(record) = record.filter(|record| record.current.mode == mode) else {
            return Ok(Seen::NotYet("nothing is recorded".into()));
        };
        shape = record.current;
        let (up, wanted) = (lab.established_on(&nodes(lab)), sessions(lab, &shape));
        Ok(if record.previous.is_none() && up == wanted {
            Seen::Done(started.elapsed())
        } else {
            let before = record.previous.map_or("", |_| ", the one before is kept");
            Seen::NotYet(format!("{up}/{wanted} session ends{before}"))
        })
    })?;
    // What was withdrawn by mistake would be missed a moment later.
    interrupt.sleep(SETTLE)?;
    let loss = flows.since(&at);
    let (seen, ok) = match changed {
        Ok(time) => (format!("in {}, {loss}", millis(time)), loss.lost == 0),
        Err(seen) => (seen, false),
    };
    let what = match mode {
        TopologyMode::FullMesh => "route reflectors to full mesh".to_owned(),
        TopologyMode::RouteReflectors => {
            format!("full mesh to route reflectors {}", shape.reflectors.join(", "))
        }
    };
    Ok((Row::new(format!("topology changed from {what}"), "0 lost", seen, ok), shape))
}

/// Drains a reflector of `count` and takes it back. Its pods keep it from the last step.
fn reflector_drained(
    lab: &mut Lab,
    reflector: &str,
    count: usize,
    flows: &Flows,
    interrupt: &Interrupt,
) -> Result<Row, Error> {
    let at = flows.mark();
    lab.cluster.annotate_node(reflector, ANNOTATION_DRAIN, Some("now"))?;
    let left = drain::phase(lab, reflector, DrainPhase::Withdrawing, interrupt)?;
    let others =
        lab.cluster.topologies()?.into_iter().next().map(|record| record.current.reflectors);
    let handed = others.filter(|others| !others.iter().any(|name| name == reflector));
    let blocks = lab.cluster.blocks()?;
    let tables = node_routes(&lab.centre)?;
    let missing: Vec<String> = spread(&blocks, &tables)
        .filter(|(.., route)| route.is_none())
        .map(|(block, node, _)| format!("{} on {node}", block.cidr))
        .collect();
    lab.cluster.annotate_node(reflector, ANNOTATION_DRAIN, None)?;
    let settled = interrupt.poll(CHANGED_WITHIN, || {
        lab.check()?;
        let record = lab.cluster.topologies()?.into_iter().next();
        let Some(record) = record.filter(|record| record.previous.is_none()) else {
            return Ok(Seen::NotYet("the topology changes over".into()));
        };
        // The choice without it stands until the leader has read that it is taken back.
        let reflectors = record.current.reflectors.len();
        if reflectors != count {
            return Ok(Seen::NotYet(format!("{reflectors}/{count} reflectors")));
        }
        let (up, wanted) = (lab.established_on(&nodes(lab)), sessions(lab, &record.current));
        let drained = lab.report(reflector).is_none_or(|report| report.drain.is_some());
        Ok(match up == wanted && !drained {
            true => Seen::Done(()),
            false => Seen::NotYet(format!("{up}/{wanted} session ends, drained: {drained}")),
        })
    })?;
    let loss = flows.since(&at);
    let ok = left.is_ok() && handed.is_some() && settled.is_ok() && missing.is_empty();
    let mut seen = vec![drain::said(left)];
    seen.push(match handed {
        Some(others) => format!("{} reflect instead", others.join(", ")),
        None => "it is still one".into(),
    });
    seen.push(match missing.is_empty() {
        true => format!("routes to {} blocks stayed", blocks.len()),
        false => format!("missing: {}", some_of(missing)),
    });
    seen.extend(settled.err());
    seen.push(loss.to_string());
    Ok(Row::new(
        format!("route reflector {reflector} drained and taken back"),
        "others reflect, 0 lost",
        seen.join(", "),
        ok && loss.lost == 0,
    ))
}

fn reflector_killed(
    lab: &mut Lab,
    reflector: &str,
    flows: &Flows,
    workspace: &Workspace,
    interrupt: &Interrupt,
) -> Result<Row, Error> {
    let layout = &lab.centre.layout;
    let kept = timers(layout).hold_time_secs + graceful_restart(layout).restart_time_secs;
    let down = Duration::from_secs(kept.into()) + SETTLE;
    let nodes = nodes(lab);
    let before = lab.established_on(&nodes);
    let at = flows.mark();
    lab.kill(reflector);
    interrupt.sleep(down)?;
    let mut blocks = lab.cluster.blocks()?;
    // Its own go, as those of any node whose agent is away for so long.
    blocks.retain(|block| block.node != reflector);
    let tables = node_routes(&lab.centre)?;
    let living = |node: &str| node != reflector;
    let missing = spread(&blocks, &tables)
        .filter(|(_, node, route)| living(node) && route.is_none())
        .map(|(block, node, _)| format!("{} on {node}", block.cidr))
        .collect::<Vec<_>>();
    lab.start_agent(reflector, workspace)?;
    let (back, ok) = sessions_back(lab, &nodes, before, CHANGED_WITHIN, interrupt)?;
    interrupt.sleep(SETTLE)?;
    let loss = flows.since(&at);
    let ok = ok && loss.lost == 0 && missing.is_empty() && !blocks.is_empty();
    let routes = match missing.is_empty() {
        true => format!("routes to {} blocks stayed", blocks.len()),
        false => format!("missing: {}", some_of(missing)),
    };
    Ok(Row::new(
        format!("route reflector {reflector} killed -9 for {}", millis(down)),
        "0 lost, routes of others stay",
        format!("{loss}, {routes}, {back}"),
        ok,
    ))
}

/// Three are reflectors, and two are the ends of the flows.
const NODES_MIN: usize = 5;
const CHANGED_WITHIN: Duration = Duration::from_secs(30);
const SETTLE: Duration = Duration::from_secs(2);
