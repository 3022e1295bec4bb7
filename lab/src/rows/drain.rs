//! That a node is taken out of use step by step, and back, while others' packets go on.

use std::collections::BTreeSet;
use std::time::{Duration, Instant};

use cairn_api::{ANNOTATION_DRAIN, DrainPhase};
use ipnet::IpNet;

use super::cast::{Cast, Flows};
use super::{network, node_routes, some_of, spread};
use crate::cluster::Block;
use crate::datacenter::Rack;
use crate::error::Error;
use crate::interrupt::{Interrupt, Seen};
use crate::lab::Lab;
use crate::report::{Row, millis};

/// Drains the node that will be lost, with its pods, and takes it back.
///
/// # Errors
/// When the run ends.
pub fn drained(
    lab: &mut Lab,
    cast: &Cast,
    flows: &Flows,
    interrupt: &Interrupt,
) -> Result<Vec<Row>, Error> {
    let victim = cast.victim.name();
    let mut blocks = lab.cluster.blocks()?;
    blocks.retain(|block| block.node == victim);
    let layout = &lab.centre.layout;
    // Routers know no node where the pods' packets are in tunnels.
    let watcher = match layout.fabric_knows_pods() {
        true => layout.rack_of(&cast.victim).map(Rack::tor),
        false => None,
    };
    let watcher = watcher.unwrap_or_else(|| cast.near.name());
    let before = lab.sessions();
    let at = flows.mark();

    lab.cluster.annotate_node(&victim, ANNOTATION_DRAIN, Some("now"))?;
    let leaving = marked(lab, &watcher, &blocks, Some(true), interrupt)?;
    let waits = phase(lab, &victim, DrainPhase::Withdrawing, interrupt)?;
    let reached = match (lab.last_pod(&cast.far.name()), lab.last_pod(&victim)) {
        (Some(from), Some(to)) => network::reach(from, to, interrupt)?,
        _ => Err("no pod".into()),
    };
    let loss = flows.since(&at);
    let ok =
        [&leaving, &waits].iter().all(|step| step.is_ok()) && reached.is_ok() && loss.lost == 0;
    let mut seen = vec![said(leaving), said(waits)];
    seen.push(reached.map_or_else(|why| why, |()| "its pod is reached".into()));
    seen.push(loss.to_string());
    let mut rows = vec![Row::new(
        format!("{victim} drained: seen by {watcher} with GRACEFUL_SHUTDOWN, blocks of pods stay"),
        "pod reached, 0 lost",
        seen.join(", "),
        ok,
    )];

    let at = flows.mark();
    lab.cluster.annotate_node(&victim, ANNOTATION_DRAIN, Some("now-with-pods"))?;
    let gone = spread_is(lab, &victim, &blocks, false, interrupt)?;
    let drained = phase(lab, &victim, DrainPhase::Drained, interrupt)?;
    let loss = flows.since(&at);
    let ok = gone.is_ok() && drained.is_ok() && loss.lost == 0;
    let seen = [said(gone), said(drained), loss.to_string()].join(", ");
    rows.push(Row::new(format!("{victim} drained with its pods"), "withdrawn, 0 lost", seen, ok));

    let at = flows.mark();
    lab.cluster.annotate_node(&victim, ANNOTATION_DRAIN, None)?;
    let back = spread_is(lab, &victim, &blocks, true, interrupt)?;
    let unmarked = marked(lab, &watcher, &blocks, Some(false), interrupt)?;
    let sessions = lab.sessions() == before;
    let loss = flows.since(&at);
    let ok = back.is_ok() && unmarked.is_ok() && sessions && loss.lost == 0;
    let sessions = if sessions { "no session ended" } else { "sessions have ended" };
    let seen = [said(back), said(unmarked), sessions.into(), loss.to_string()].join(", ");
    rows.push(Row::new(format!("{victim} taken back"), "as before, 0 lost", seen, ok));
    Ok(rows)
}

/// What a step took, or what was missing at the end.
pub(super) type Step = Result<(String, Duration), String>;

pub(super) fn said(step: Step) -> String {
    step.map_or_else(|missing| missing, |(what, time)| format!("{what} in {}", millis(time)))
}

fn until(
    interrupt: &Interrupt,
    what: &str,
    mut look: impl FnMut() -> Result<Option<String>, Error>,
) -> Result<Step, Error> {
    let started = Instant::now();
    let done = interrupt.poll(STEP_WITHIN, || {
        Ok(match look()? {
            None => Seen::Done((what.to_owned(), started.elapsed())),
            Some(missing) => Seen::NotYet(missing),
        })
    })?;
    Ok(done)
}

/// Waits until a node's drain is at a phase.
pub(super) fn phase(
    lab: &Lab,
    node: &str,
    wanted: DrainPhase,
    interrupt: &Interrupt,
) -> Result<Step, Error> {
    until(interrupt, &format!("{wanted:?}"), || {
        let drain = lab.report(node).and_then(|report| report.drain);
        let seen =
            drain.as_ref().map_or_else(|| "not drained".into(), |drain| drain.message.clone());
        Ok((drain.map(|drain| drain.phase) != Some(wanted)).then_some(seen))
    })
}

/// Waits until `watcher` has these blocks with the community, or without.
fn marked(
    lab: &Lab,
    watcher: &str,
    blocks: &[Block],
    wanted: Option<bool>,
    interrupt: &Interrupt,
) -> Result<Step, Error> {
    let what = if wanted == Some(true) { "marked" } else { "unmarked" };
    until(interrupt, what, || {
        let wrong: Vec<String> = (blocks.iter())
            .filter(|block| lab.is_marked(watcher, &block.cidr, GRACEFUL_SHUTDOWN) != wanted)
            .map(|block| format!("{} is not {what} on {watcher}", block.cidr))
            .collect();
        Ok((!wrong.is_empty()).then(|| some_of(wrong)))
    })
}

/// Waits until all other nodes' kernels have these blocks, or none.
fn spread_is(
    lab: &Lab,
    owner: &str,
    blocks: &[Block],
    there: bool,
    interrupt: &Interrupt,
) -> Result<Step, Error> {
    let what = if there { "routes back" } else { "routes gone" };
    until(interrupt, what, || {
        let tables = node_routes(&lab.centre)?;
        let wrong: BTreeSet<(IpNet, &str)> = spread(blocks, &tables)
            .filter(|(_, node, route)| *node != owner && route.is_some() != there)
            .map(|(block, node, _)| (block.cidr, node))
            .collect();
        let wrong: Vec<String> =
            wrong.iter().map(|(cidr, node)| format!("{cidr} on {node}: not {what}")).collect();
        Ok((!wrong.is_empty()).then(|| some_of(wrong)))
    })
}

/// RFC 8326.
const GRACEFUL_SHUTDOWN: &str = "65535:0";
/// The agent waits ten seconds of it for others' routers.
const STEP_WITHIN: Duration = Duration::from_secs(30);
