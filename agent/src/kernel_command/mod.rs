//! `cairn kernel`: what Cairn has in the kernel of this machine, and whether it is what the running
//! agent or speaker wants.
//!
//! ```text
//!  daemon ──Ask::Kernel──► wanted ─┐
//!                                  ├─► compare ──► routes, diff
//!  kernel ─────dump──────► present ┘
//! ```
//!
//! The daemon says what it wants; what is there is read from the kernel itself and not from what the
//! daemon believes. Nothing is written. A full table takes no more than the daemon's own model of it.

mod compare;
pub mod record;
mod text;

use std::collections::{BTreeMap, BTreeSet};
use std::io::{self, Write};
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::Duration;

use anyhow::{Context, bail, ensure};
use cairn_kernel::reconcile::RouteReconciler;
use cairn_kernel::route::{DumpFilter, Family, NextHop, Route, RouteKey, RouteSocket};
use cairn_kernel::{POD_ROUTE_PROTOCOL, link, nexthop, pod, tunnel, uplink};
use clap::{Args, Subcommand};
use serde::Serialize;

use crate::control;
use crate::control::protocol::{Ask, Refusal};
use crate::control::server::{Answer, Broken};
use crate::fib::{Cursor, FibQuestions, netns};
use crate::logging::Format;
use compare::{Finding, Names, Parts, Row, State};
use record::{KernelRecord, NodeKernel, StuckRoute};

/// Options of `cairn kernel`.
#[derive(Args)]
pub struct Options {
    #[command(subcommand)]
    command: Command,
    /// The run directory of the agent or speaker.
    #[arg(long, global = true, default_value = crate::DEFAULT_RUN_DIR)]
    run_dir: PathBuf,
    /// The form of the answer; json is one object a line.
    #[arg(short, long, global = true, value_enum, default_value = "text")]
    output: Format,
}

#[derive(Subcommand)]
enum Command {
    /// Every route of Cairn's, where it leads and who wants it; and those that could not be written.
    Routes,
    /// What is missing, differs or is there too much, of routes and tunnels. Ends with 0 when nothing
    /// is, with 1 when something is, and with 2 when it cannot be found out.
    Diff,
}

/// Asks the daemon, reads the kernel, and prints.
///
/// # Errors
/// No daemon answers, or the kernel cannot be read. Of `diff` they are printed, and the exit code is 2.
pub fn run(options: Options) -> anyhow::Result<ExitCode> {
    let Options { command, run_dir, output } = options;
    let printed = match command {
        Command::Routes => routes(&run_dir, output).map(|()| ExitCode::SUCCESS),
        Command::Diff => diff(&run_dir, output).or_else(|error| match is_broken_pipe(&error) {
            true => Err(error),
            false => {
                eprintln!("cairn: {error:#}");
                Ok(ExitCode::from(2))
            }
        }),
    };
    match printed {
        // `cairn kernel routes | head` has seen enough.
        Err(error) if is_broken_pipe(&error) => Ok(ExitCode::SUCCESS),
        printed => printed,
    }
}

fn is_broken_pipe(error: &anyhow::Error) -> bool {
    error.downcast_ref::<io::Error>().is_some_and(|e| e.kind() == io::ErrorKind::BrokenPipe)
}

/// The daemon's side: all that is wanted, a page at a time.
pub(crate) async fn answer(
    fib: Option<&FibQuestions>,
    answer: &mut Answer<'_>,
) -> Result<(), Broken> {
    let Some(fib) = fib else {
        let text = "this speaker writes no routes to the kernel: start it with --fib";
        return Err(Refusal::new(text).into());
    };
    let mut next = Some(Cursor::default());
    while let Some(from) = next {
        let page = fib.page(from).await;
        let page = page.ok_or_else(|| Refusal::new("the kernel side has ended"))?;
        for record in &page.records {
            answer.record(record).await?;
        }
        next = page.next;
    }
    Ok(())
}

/// The daemon's answer behind its first record.
fn ask(run_dir: &Path) -> anyhow::Result<(NodeKernel, control::Records<KernelRecord>)> {
    let mut records = control::ask::<KernelRecord>(run_dir, Ask::Kernel).context(
        "only the daemon knows what it wants (without it, `ip route show proto 222` shows its routes, or another \
         number if that is configured)",
    )?;
    let Some(KernelRecord::Node(node)) = records.next().transpose()? else {
        bail!("the daemon's answer is not of this version of cairn");
    };
    let here = netns();
    ensure!(
        node.netns.is_none() || here.is_none() || node.netns == here,
        "the daemon is in another network namespace: run this where it runs, for example with \
         `nsenter --net --target PID`"
    );
    Ok((node, records))
}

fn names(socket: &mut RouteSocket) -> anyhow::Result<Names> {
    let links = link::list(socket.netlink())?;
    let objects = nexthop::list(socket.netlink())?;
    let ways: BTreeMap<u32, &nexthop::Way> =
        objects.iter().map(|object| (object.id, &object.way)).collect();
    let hops = |way: &nexthop::Way| match way {
        nexthop::Way::Hop(hop) => vec![*hop],
        nexthop::Way::Group(members) => members
            .iter()
            .filter_map(|(id, weight)| match ways.get(id) {
                Some(nexthop::Way::Hop(hop)) => {
                    Some(NextHop { weight: u8::try_from(*weight).unwrap_or(u8::MAX), ..*hop })
                }
                _ => None,
            })
            .collect(),
        nexthop::Way::Blackhole | nexthop::Way::Other => Vec::new(),
    };
    Ok(Names {
        links: links.into_iter().map(|link| (link.index, link.name)).collect(),
        objects: ways.iter().map(|(id, way)| (*id, hops(way))).collect(),
    })
}

/// The routes to pods of this node.
fn pod_rows(socket: &mut RouteSocket, names: &Names) -> anyhow::Result<Vec<Row>> {
    let pods = pod::list(socket.netlink())?;
    let mut routes = Vec::new();
    for family in Family::ALL {
        let filter = DumpFilter { protocol: Some(POD_ROUTE_PROTOCOL), ..DumpFilter::default() };
        routes.append(&mut socket.dump(family, filter)?);
    }
    routes.sort_by_key(Route::key);
    Ok(compare::pod_rows(&routes, &pods, names))
}

fn routes(run_dir: &Path, output: Format) -> anyhow::Result<()> {
    let (node, records) = ask(run_dir)?;
    let mut socket = RouteSocket::open()?;
    let names = names(&mut socket)?;
    let mut table = RouteReconciler::new(node.protocol);
    node.former.iter().for_each(|former| table.adopt(*former));
    table.look(&mut socket)?;
    let mut out = Output::new(output);
    out.head(text::ROUTES_HEAD)?;
    // What is told of a key although nothing is wanted under it.
    let mut told = BTreeSet::new();
    let mut stuck: BTreeMap<RouteKey, StuckRoute> = BTreeMap::new();
    for record in records {
        match record? {
            KernelRecord::Route(wanted) => {
                let key = wanted.key();
                let row =
                    compare::row(&wanted, node.protocol, table.present(&key).as_ref(), &names);
                out.print(&row, text::row)?;
                match wanted.route(node.protocol) {
                    Some(route) => table.set(key, Some(route)),
                    None => drop(told.insert(key)),
                }
            }
            KernelRecord::Stuck(route) => drop(stuck.insert(route.key(), route)),
            KernelRecord::Node(_) | KernelRecord::Tunnel(_) => {}
        }
    }
    for row in pod_rows(&mut socket, &names)? {
        out.print(&row, text::row)?;
    }
    let unwanted = table.differences().filter(|difference| difference.wanted.is_none());
    let unwanted = unwanted.filter(|difference| !told.contains(&difference.key));
    let mut unwanted: Vec<Route> = unwanted.filter_map(|difference| difference.present).collect();
    unwanted.sort_by_key(Route::key);
    for route in &unwanted {
        let row = compare::unexplained(route, stuck.get(&route.key()), &names);
        out.print(&row, text::row)?;
    }
    out.end()
}

/// By what they are and their names.
type Findings = BTreeMap<(String, String), Finding>;

/// What of the kernel is not as wanted.
fn look(run_dir: &Path) -> anyhow::Result<(NodeKernel, Findings)> {
    let (node, records) = ask(run_dir)?;
    let mut table = RouteReconciler::new(node.protocol);
    node.former.iter().for_each(|former| table.adopt(*former));
    let (mut reasons, mut found) = (BTreeMap::new(), Vec::new());
    let mut wanted_parts = Parts::new();
    for record in records {
        match record? {
            KernelRecord::Route(wanted) => {
                let key = wanted.key();
                if let Some(failure) = &wanted.failure {
                    reasons.insert(key, text::failure(failure));
                }
                match (wanted.route(node.protocol), &wanted.waits) {
                    (Some(route), _) => table.set(key, Some(route)),
                    (None, Some(why)) => found.push(compare::waiting(&key, why)),
                    (None, None) => {}
                }
            }
            KernelRecord::Stuck(stuck) => {
                reasons.insert(stuck.key(), text::failure(&stuck.failure));
            }
            KernelRecord::Tunnel(part) => {
                wanted_parts.insert((part.part, part.name), part.words);
            }
            KernelRecord::Node(_) => {}
        }
    }
    let mut socket = RouteSocket::open()?;
    table.look(&mut socket)?;
    let names = names(&mut socket)?;
    found.extend(table.differences().map(|difference| {
        compare::route_finding(&difference, reasons.get(&difference.key).cloned(), &names)
    }));
    found.extend(pod_rows(&mut socket, &names)?.iter().filter_map(compare::pod_finding));
    let links = link::list(socket.netlink())?;
    let on_uplinks = uplink::inventory(socket.netlink(), uplink::names(&links))?;
    let present_parts = tunnel::inventory(socket.netlink())?
        .into_iter()
        .chain(on_uplinks)
        .map(|((part, name), words)| ((part.name().to_owned(), name), words))
        .collect();
    found.extend(compare::tunnel_findings(&wanted_parts, &present_parts));
    let found = found.into_iter().map(|found| ((found.what.clone(), found.name.clone()), found));
    Ok((node, found.collect()))
}

fn diff(run_dir: &Path, output: Format) -> anyhow::Result<ExitCode> {
    let (mut node, mut found) = look(run_dir)?;
    // The daemon and the kernel cannot be read in one moment. What is under way is no difference.
    for _ in 1..LOOKS {
        if found.is_empty() {
            break;
        }
        std::thread::sleep(BETWEEN_LOOKS);
        let (again, mut still) = look(run_dir)?;
        still.retain(|key, _| found.contains_key(key));
        (node, found) = (again, still);
    }
    let mut out = Output::new(output);
    for finding in found.values() {
        out.print(finding, text::finding)?;
    }
    out.end()?;
    if output == Format::Text {
        if found.is_empty() {
            println!("the kernel holds what is wanted");
        } else if !node.settled && found.values().any(|finding| finding.state == State::Extra) {
            println!("what is extra stays until BGP and the API server have told everything");
        }
    }
    Ok(if found.is_empty() { ExitCode::SUCCESS } else { ExitCode::from(1) })
}

/// Where rows go.
struct Output {
    form: Format,
    out: io::BufWriter<io::StdoutLock<'static>>,
}

impl Output {
    fn new(form: Format) -> Output {
        Output { form, out: io::BufWriter::new(io::stdout().lock()) }
    }

    fn head(&mut self, head: &str) -> io::Result<()> {
        match self.form {
            Format::Text => self.out.write_all(head.as_bytes()),
            Format::Json => Ok(()),
        }
    }

    fn print<T: Serialize>(&mut self, row: &T, text: fn(&T) -> String) -> io::Result<()> {
        match self.form {
            Format::Text => self.out.write_all(text(row).as_bytes()),
            Format::Json => {
                serde_json::to_writer(&mut self.out, row)?;
                self.out.write_all(b"\n")
            }
        }
    }

    fn end(mut self) -> anyhow::Result<()> {
        Ok(self.out.flush()?)
    }
}

/// How often `diff` looks before it calls something a difference.
const LOOKS: usize = 3;
/// A repair takes 50 ms, a route that BGP has just told of some milliseconds.
const BETWEEN_LOOKS: Duration = Duration::from_millis(300);
