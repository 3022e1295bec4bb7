//! The real agent as a node of a large cluster: its memory, its CPU time, and what it asks of the API
//! server.

use std::path::Path;
use std::time::{Duration, Instant};

use cairn_ipam::election::Candidacy;
use cairn_lab::apiserver::{ApiServer, Options, PatchType};
use serde_json::{Value, json};

use super::Line;
use super::objects::{self, BLOCKS_EACH, RACK};
use super::way::{Counted, Way};
use crate::agent::{Agent, Directory};
use crate::bgp::namespace;
use crate::{Extent, Result};

const NODES: &str = "nodes";
const BGP_NODES: &str = "bgpnodes.cairn.network";
const BLOCKS: &str = "ipblocks.cairn.network";
const POOLS: &str = "ippools.cairn.network";
const LEASES: &str = "leases.coordination.k8s.io";
const SYSTEM: Option<&str> = Some("cairn-system");

pub fn measure(extent: Extent) -> Result<Vec<Line>> {
    namespace::enter()?;
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    runtime.block_on(async {
        let mut lines = measure_agent(extent, Role::Follows).await?;
        lines.extend(measure_agent(extent, Role::Leads).await?);
        Ok(lines)
    })
}

/// What the measured agent is to the cluster.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Role {
    Follows,
    Leads,
}

impl Role {
    /// The first node whose agent has this role.
    fn node(self, nodes: usize) -> Result<usize> {
        let names: Vec<String> = (0..nodes).map(objects::name).collect();
        let mut of_role = (0..nodes).filter(|number| {
            let mut candidacy = Candidacy::new(&names[*number]);
            names.iter().filter(|name| **name != names[*number]).for_each(|n| candidacy.came(n));
            candidacy.stands() == (self == Role::Leads)
        });
        of_role.next().ok_or_else(|| format!("no node of {nodes}: {self:?}").into())
    }
}

async fn measure_agent(extent: Extent, role: Role) -> Result<Vec<Line>> {
    let nodes = extent.pick(5_000, 100);
    let own = role.node(nodes)?;
    let server = fill(nodes, own)?;
    let serving = server.serve(std::net::TcpListener::bind("127.0.0.1:0")?)?;
    let way = Way::open(serving.address()).await?;
    let directory = Directory::new()?;
    let agent = Agent::start(&directory, way.address, &objects::name(own))?;
    let name = objects::name(own);
    let listed = Instant::now();
    // Written after the first whole view, and when the Lease has been taken.
    until(|| server.get("bgpnodestatuses.cairn.network", None, &name).is_ok()).await?;
    until(|| view_written(&directory.0)).await?;
    let (listed, start) = (listed.elapsed(), agent.cpu()?);
    let leader = || server.get(LEASES, SYSTEM, "cairn-leader").is_ok();
    let settle = match role {
        Role::Follows => extent.pick(Duration::from_secs(10), Duration::from_secs(1)),
        // Its looks at the cluster grow apart, to one a minute.
        Role::Leads => {
            until(leader).await?;
            extent.pick(Duration::from_secs(75), Duration::from_secs(2))
        }
    };
    tokio::time::sleep(settle).await;
    if leader() != (role == Role::Leads) {
        return Err(format!("the agent of {name} leads or does not: it should be {role:?}").into());
    }
    let first = way.take();
    let rest = extent.pick(Duration::from_secs(120), Duration::from_secs(2));
    let before = agent.cpu()?;
    tokio::time::sleep(rest).await;
    let cpu = agent.cpu()?.saturating_sub(before);
    let idle = way.take();
    let what = match role {
        Role::Follows => "agent, 5,000 nodes, 20,000 blocks: resident memory",
        Role::Leads => "the agent that leads them: resident memory",
    };
    let mut lines = vec![
        Line::new(what, agent.memory()?, "40 MB"),
        Line::new(
            "  CPU at rest",
            format!("{:.3} % of a core", 100.0 * cpu.as_secs_f64() / rest.as_secs_f64()),
            "< 0.5 %",
        ),
        Line::new(
            "  from its start to the whole view on disk",
            format!("{}, of CPU {}", seconds(listed), seconds(start)),
            "",
        ),
        Line::new("  octets of the first lists, with the rest of the start", octets(&first), ""),
        Line::new("  connections", first.connections.to_string(), ""),
    ];
    lines.extend(requests("  at rest, an hour", &idle, 3600.0 / rest.as_secs_f64()));
    if role == Role::Follows {
        lines.extend(measure_changes(extent, &server, &way, &agent, own, nodes).await?);
    }
    Ok(lines)
}

/// What others do, and what of it reaches the agent of `own`.
async fn measure_changes(
    extent: Extent,
    server: &ApiServer,
    way: &Way,
    agent: &Agent,
    own: usize,
    nodes: usize,
) -> Result<Vec<Line>> {
    let name = objects::name(own);
    let elsewhere = objects::name((own + RACK) % nodes);
    let beside = objects::name(own ^ 1);
    let changes = extent.pick(100, 5);
    let one = json!({"metadata": {"labels": {"changed": "now"}}});
    let bgp_node = |n: usize| json!({"spec": {"addresses": [format!("10.99.0.{}", n + 1)]}});
    let status = |n: usize| json!({"status": {"used": n.to_string()}});
    let heartbeat = |n: usize| objects::node(own, namespace::ADDRESS, &boot_id(), n).1;
    type Change<'a> = (&'a str, &'a dyn Fn(usize) -> Result<()>);
    let write = |answer: std::result::Result<_, _>| {
        answer.map(drop).map_err(|error: cairn_lab::apiserver::ApiError| error.message.into())
    };
    let foreign = first_block(server, &elsewhere)?;
    let kinds: [Change<'_>; 6] = [
        ("a BGPNode of another AS changes", &|n| {
            write(server.patch(BGP_NODES, None, &elsewhere, PatchType::Merge, &bgp_node(n)))
        }),
        ("a BGPNode of the own AS changes its address", &|n| {
            write(server.patch(BGP_NODES, None, &beside, PatchType::Merge, &bgp_node(n)))
        }),
        ("another node's block: a pod starts", &|n| {
            write(server.patch_status(BLOCKS, None, &foreign, &status(n)))
        }),
        ("a pool's sums change", &|n| {
            write(server.patch_status(POOLS, None, "default", &status(n)))
        }),
        ("the own kubelet reports", &|n| {
            write(server.patch_status(NODES, None, &name, &heartbeat(n)))
        }),
        ("another Node changes", &|_| {
            write(server.patch(NODES, None, &elsewhere, PatchType::Merge, &one))
        }),
    ];
    let mut lines = Vec::new();
    for (what, change) in kinds {
        way.take();
        let before = agent.cpu()?;
        for number in 0..changes {
            change(number)?;
            // Far enough apart to be a view each.
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
        // What is still on its way, and the view that is written after it.
        tokio::time::sleep(SETTLE).await;
        let cpu = agent.cpu()?.saturating_sub(before);
        let delivered = way.take().octets_to_agent / changes as u64;
        let micros = cpu.as_secs_f64() * 1e6 / changes as f64;
        lines.push(Line::new(
            format!("  {what}"),
            format!("{delivered} octets, {micros:.0} us CPU"),
            "< 1 ms",
        ));
    }
    lines.push(Line::new("  resident memory after that", agent.memory()?, "40 MB"));
    Ok(lines)
}

/// Longer than anything that follows a change takes: the view is written 2 s after the last one.
const SETTLE: Duration = Duration::from_secs(4);

/// A server with all objects.
fn fill(nodes: usize, own: usize) -> Result<ApiServer> {
    let server = ApiServer::new(Options::default());
    let create_in = |namespace, resource: &str, object: Value| -> Result<String> {
        let created = server.create(resource, namespace, object).map_err(|error| error.message)?;
        let uid = created.pointer("/metadata/uid").and_then(Value::as_str);
        Ok(uid.unwrap_or_default().to_owned())
    };
    let create = |resource: &str, object: Value| create_in(None, resource, object);
    for crd in cairn_api::crds() {
        create("customresourcedefinitions.apiextensions.k8s.io", serde_json::to_value(crd)?)?;
    }
    create("namespaces", json!({"metadata": {"name": "cairn-system"}}))?;
    for number in 0..1000 {
        create("namespaces", objects::namespace(number))?;
    }
    let pool = create(POOLS, objects::pool("default", "10.128.0.0/9"))?;
    let boot_id = boot_id();
    for number in 0..nodes {
        // The measured node's address is one that the namespace has; its agent writes its Lease.
        let address = if number == own { namespace::ADDRESS } else { objects::address(number) };
        let (object, status) = objects::node(number, address, &boot_id, 0);
        let uid = create(NODES, object)?;
        if number != own {
            create_in(SYSTEM, LEASES, objects::lease(number, &uid, &boot_id))?;
        }
        server
            .patch_status(NODES, None, &objects::name(number), &status)
            .map_err(|error| error.message)?;
        create(BGP_NODES, objects::bgp_node(number, address))?;
        for block in 0..BLOCKS_EACH {
            create(BLOCKS, objects::block(block * nodes + number, &pool, number, &uid))?;
        }
    }
    Ok(server)
}

fn first_block(server: &ApiServer, node: &str) -> Result<String> {
    let blocks = server.list(BLOCKS, None, "").map_err(|error| error.message)?;
    let own =
        |block: &&Value| block.pointer("/spec/node/name").and_then(Value::as_str) == Some(node);
    let block = blocks.iter().find(own).and_then(|block| block.pointer("/metadata/name"));
    Ok(block.and_then(Value::as_str).ok_or("the node has no block")?.to_owned())
}

fn boot_id() -> String {
    cairn_agent::ipam::boot_id().unwrap_or_default()
}

fn view_written(directory: &Path) -> bool {
    directory.join("run/view.json").exists()
}

async fn until(holds: impl Fn() -> bool) -> Result<()> {
    let end = Instant::now() + Duration::from_secs(120);
    while !holds() {
        if Instant::now() > end {
            return Err("the agent does not come up within 120 s".into());
        }
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    Ok(())
}

fn seconds(time: Duration) -> String {
    format!("{:.1} s", time.as_secs_f64())
}

fn octets(counted: &Counted) -> String {
    format!("{:.1} MB", counted.octets_to_agent as f64 / 1e6)
}

fn requests(what: &str, counted: &Counted, factor: f64) -> Vec<Line> {
    let per_hour = |count: u64| format!("{:.0}", count as f64 * factor);
    let mut lines = vec![
        Line::new(format!("{what}: octets to the agent"), per_hour(counted.octets_to_agent), ""),
        Line::new(format!("{what}: octets to the server"), per_hour(counted.octets_to_server), ""),
    ];
    lines.extend(
        counted
            .requests
            .iter()
            .map(|(request, count)| Line::new(format!("{what}: {request}"), per_hour(*count), "")),
    );
    lines
}
