//! How this node's routes are marked in the kernel: protocol number, metric and table, all of them
//! settings, and which numbers some of its routes may still have.
//!
//! ```text
//!  NodeConfiguration ──► RouteMarks ──mark()──► reconciler: routes move, the new one before the old
//!                                        └────► routes.json: numbers that are this node's
//! ```
//!
//! A number is written down before the first route has it, and struck out when none has it any more. So an
//! agent that finds another setting after a restart knows which routes were its own, and leaves alone
//! those of a program that uses a number which it never had.

use std::collections::BTreeSet;
use std::io;
use std::sync::Arc;
use std::time::{Duration, Instant};

use cairn_api::{CompatMode, NextHopObjects, NodeConfigurationSpec};
use cairn_bgp::prefix::Prefix;
use cairn_kernel::reconcile::RouteReconciler;
use cairn_kernel::route::{DumpFilter, Family, Route, RouteKey, TABLE_MAIN, Target};
use cairn_kernel::{BLACKHOLE_METRIC, ROUTE_METRIC, ROUTE_PROTOCOL, rule};
use ipnet::IpNet;
use serde::{Deserialize, Serialize};

use super::Worker;
use crate::ipam::{Storage, read_document};

/// What of a node's routes is configured.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct RouteSettings {
    /// How they are marked.
    pub marks: RouteMarks,
    /// Whether objects' next hops are shown with routes.
    pub compat_mode: CompatMode,
    /// Which routes name objects.
    pub next_hop_objects: NextHopObjects,
}

impl From<&NodeConfigurationSpec> for RouteSettings {
    fn from(settings: &NodeConfigurationSpec) -> RouteSettings {
        RouteSettings {
            marks: RouteMarks::from(&settings.routes),
            compat_mode: settings.nexthop_compat_mode,
            next_hop_objects: settings.routes.next_hop_objects,
        }
    }
}

/// How routes from BGP are marked.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct RouteMarks {
    /// The protocol number, by which they are known as Cairn's.
    pub protocol: u8,
    /// Their metric.
    pub metric: u32,
    /// Their table.
    pub table: u32,
}

impl Default for RouteMarks {
    fn default() -> RouteMarks {
        RouteMarks { protocol: ROUTE_PROTOCOL, metric: ROUTE_METRIC, table: TABLE_MAIN }
    }
}

impl From<&cairn_api::Routes> for RouteMarks {
    fn from(routes: &cairn_api::Routes) -> RouteMarks {
        let cairn_api::Routes { protocol, metric, table, next_hop_objects: _ } = *routes;
        RouteMarks { protocol, metric, table }
    }
}

impl RouteMarks {
    /// The key of the route to a learned prefix.
    pub(super) fn learned(self, prefix: IpNet) -> RouteKey {
        RouteKey { prefix, table: self.table, metric: self.metric }
    }

    /// The key of the route that sends packets to an own block on to the main table, where its pods are:
    /// in another table a learned network around it would draw them away.
    pub(super) fn passage(self, block: IpNet) -> Option<RouteKey> {
        let elsewhere = self.table != TABLE_MAIN;
        elsewhere.then_some(RouteKey { prefix: block, table: self.table, metric: BLACKHOLE_METRIC })
    }
}

/// The key of the route that holds an own block, beside the routes to its pods.
pub(super) fn blackhole(block: IpNet) -> RouteKey {
    RouteKey { prefix: block, table: TABLE_MAIN, metric: BLACKHOLE_METRIC }
}

/// The protocol numbers under which this node's routes may be in the kernel, in a file that says so until
/// the next boot.
#[derive(Clone, Debug)]
pub struct RouteMemory {
    storage: Arc<dyn Storage>,
    boot_id: String,
}

/// What stands in the file.
#[derive(Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
struct Document {
    version: u32,
    boot_id: String,
    /// The current one first.
    protocols: Vec<u8>,
}

impl RouteMemory {
    /// The memory in `storage` since the boot with this id.
    pub fn new(storage: Arc<dyn Storage>, boot_id: String) -> RouteMemory {
        RouteMemory { storage, boot_id }
    }

    /// The numbers, the current one first; none when no agent has written routes since the boot.
    pub fn read(&self) -> Vec<u8> {
        let document = read_document::<Document>(self.storage.as_ref(), FILE);
        let valid =
            |document: &Document| document.version == VERSION && document.boot_id == self.boot_id;
        document.filter(valid).map(|document| document.protocols).unwrap_or_default()
    }

    fn write(&self, protocols: &[u8]) -> io::Result<()> {
        let document = Document {
            version: VERSION,
            boot_id: self.boot_id.clone(),
            protocols: protocols.to_vec(),
        };
        self.storage.write(FILE, &serde_json::to_vec(&document)?)
    }
}

/// What the thread knows about its marks.
pub(super) struct Marking {
    /// Those in force.
    pub(super) marks: RouteMarks,
    memory: Option<RouteMemory>,
    /// The numbers that are in the file.
    remembered: Vec<u8>,
    /// Those that were asked for last.
    asked: Option<RouteMarks>,
    /// When what is in the way is looked at again.
    pub(super) due: Option<Instant>,
    /// What is in the way, one sentence each.
    pub(super) problems: Vec<String>,
}

impl Marking {
    /// The marks of an earlier process, and a reconciler for its routes.
    pub(super) fn new(memory: Option<RouteMemory>) -> (Marking, RouteReconciler) {
        let remembered = memory.as_ref().map(RouteMemory::read).unwrap_or_default();
        let current = remembered.first().copied().unwrap_or(ROUTE_PROTOCOL);
        let mut reconciler = RouteReconciler::new(current);
        remembered.iter().skip(1).for_each(|former| reconciler.adopt(*former));
        let marks = RouteMarks { protocol: current, ..RouteMarks::default() };
        let (asked, due, problems) = (None, None, Vec::new());
        (Marking { marks, memory, remembered, asked, due, problems }, reconciler)
    }

    fn remember(&mut self, protocols: Vec<u8>) -> io::Result<()> {
        if let Some(memory) = &self.memory {
            memory.write(&protocols)?;
        }
        self.remembered = protocols;
        Ok(())
    }
}

impl Worker {
    /// Brings routes under the wanted marks, before anything is written. What is in the way is told and
    /// looked at again after a while; the marks before stay in force.
    pub(super) fn mark(&mut self, wanted: RouteMarks, now: Instant) {
        let due = self.marking.due.is_some_and(|at| at <= now);
        if self.marking.asked == Some(wanted) && !due {
            return;
        }
        let mut problems = Vec::new();
        self.marking.asked = Some(wanted);
        match self.take_number(wanted.protocol) {
            Ok(()) if self.marking.marks == wanted => {}
            Ok(()) => self.remark(wanted),
            Err(problem) => {
                problems.push(problem);
                if self.marking.remembered.is_empty() {
                    problems.extend(self.take_number(ROUTE_PROTOCOL).err());
                }
            }
        }
        let marks = self.marking.marks;
        if marks.table != TABLE_MAIN {
            problems.extend(self.unused_table(marks.table));
        }
        let again = !problems.is_empty() || marks.table != TABLE_MAIN;
        self.marking.due = again.then(|| now + RECHECK);
        self.marking.problems = problems;
    }

    /// Makes `protocol` the number of routes that are written from now on.
    fn take_number(&mut self, protocol: u8) -> Result<(), String> {
        let remembered = self.marking.remembered.clone();
        if remembered.first() == Some(&protocol) {
            return Ok(());
        }
        let first = remembered.is_empty();
        let ours = remembered.contains(&protocol) || (first && protocol == ROUTE_PROTOCOL);
        let unread = |error| format!("routes keep their protocol number, retrying: {error}");
        if !ours && self.has_routes(protocol).map_err(unread)? {
            return Err(format!(
                "routes keep the protocol number {}: another program, or an agent without this run \
                 directory, has routes with {protocol}; set another routes.protocol in the \
                 NodeConfiguration, or remove them with `ip route flush proto {protocol} table all` \
                 and the same with `ip -6`",
                self.reconciler.protocol()
            ));
        }
        let mut protocols = vec![protocol];
        protocols.extend(remembered.into_iter().filter(|former| *former != protocol));
        self.marking.remember(protocols).map_err(|error| {
            format!(
                "routes keep the protocol number {}: {FILE} in the run directory cannot be written \
                 ({error}); see that the disk has room",
                self.reconciler.protocol()
            )
        })?;
        if first && protocol != self.reconciler.protocol() {
            // Nobody has written routes here since the boot: those with the default number are others'.
            self.reconciler = RouteReconciler::new(protocol);
            if self.swept {
                self.reconciler.allow_sweep();
            }
        } else {
            self.reconciler.set_protocol(protocol);
        }
        Ok(())
    }

    fn has_routes(&mut self, protocol: u8) -> Result<bool, cairn_kernel::Error> {
        let filter = DumpFilter { protocol: Some(protocol), ..DumpFilter::default() };
        for family in Family::ALL {
            if !self.socket.dump(family, filter)?.is_empty() {
                return Ok(true);
            }
        }
        Ok(false)
    }

    /// Wants the same routes under other marks: first all of the new ones, so that packets find one at
    /// any time.
    fn remark(&mut self, marks: RouteMarks) {
        let before = std::mem::replace(&mut self.marking.marks, marks);
        tracing::info!(?before, ?marks, "routes are marked otherwise from now on");
        let prefixes: Vec<IpNet> = self.learned.keys().map(|prefix| IpNet::from(*prefix)).collect();
        let moved = |prefix: &IpNet| before.learned(*prefix) != marks.learned(*prefix);
        let moved: Vec<IpNet> = prefixes.into_iter().filter(moved).collect();
        for prefix in &moved {
            let held = self.reconciler.wanted(&before.learned(*prefix));
            let (table, metric) = (marks.table, marks.metric);
            let held = held.map(|route| Route { table, metric, ..route });
            self.reconciler.set(marks.learned(*prefix), held);
        }
        for prefix in moved {
            self.reconciler.set(before.learned(prefix), None);
        }
        let blocks = self.blocks.clone().unwrap_or_default();
        for block in &blocks {
            self.reconciler.set(blackhole(*block), Some(self.own_route(blackhole(*block))));
            if let Some(key) = marks.passage(*block) {
                self.reconciler.set(key, Some(self.own_route(key)));
            }
            if let Some(key) =
                before.passage(*block).filter(|key| Some(*key) != marks.passage(*block))
            {
                self.reconciler.set(key, None);
            }
        }
        for key in self.leaving.keys().filter_map(|block| before.passage(*block)) {
            self.reconciler.set(key, None);
        }
        // A reconciler that began anew has been told nothing.
        let untold: Vec<Prefix> = self.learned.keys().copied().collect();
        for prefix in untold {
            if self.reconciler.wanted(&marks.learned(prefix.into())).is_none() {
                self.want(prefix);
            }
        }
        self.state_dirty = true;
    }

    /// The route of an own block under `key`: nothing in the main table, and on to that in any other.
    pub(super) fn own_route(&self, key: RouteKey) -> Route {
        let target = if key.table == TABLE_MAIN { Target::Blackhole } else { Target::THROW };
        Route {
            prefix: key.prefix,
            table: key.table,
            metric: key.metric,
            protocol: self.reconciler.protocol(),
            target,
            prefsrc: None,
        }
    }

    /// Strikes out the numbers that no route has any more.
    pub(super) fn forget_numbers(&mut self) {
        if self.marking.remembered.len() < 2
            || !self.swept
            || self.reconciler.is_dirty()
            || !self.reconciler.forget_former()
        {
            return;
        }
        let current = self.reconciler.protocol();
        match self.marking.remember(vec![current]) {
            Ok(()) => tracing::info!(current, "no route has a former protocol number any more"),
            Err(error) => self.complain(format!("{FILE} cannot be written, retrying: {error}")),
        }
    }

    /// Whether a route with this number is neither one of ours nor one to a pod.
    pub(super) fn is_foreign(&self, protocol: u8) -> bool {
        !self.reconciler.is_ours(protocol) && protocol != cairn_kernel::POD_ROUTE_PROTOCOL
    }

    /// The numbers of our routes.
    pub(super) fn own_protocols(&self) -> BTreeSet<u8> {
        self.reconciler.protocols().collect()
    }

    /// Why no packet is routed by `table`.
    fn unused_table(&mut self, table: u32) -> Option<String> {
        let families: Vec<Family> = super::forwarded().collect();
        for family in families {
            let command = match family {
                Family::V4 => "ip",
                Family::V6 => "ip -6",
            };
            match rule::leads_to(self.socket.netlink(), family, table) {
                Ok(true) => {}
                Ok(false) => {
                    return Some(format!(
                        "no {family:?} packet is routed by table {table}, in which routes.table of \
                         the NodeConfiguration puts routes from BGP: add a rule, such as `{command} \
                         rule add priority 1000 lookup {table}`"
                    ));
                }
                Err(error) => return Some(format!("cannot read the routing rules: {error}")),
            }
        }
        None
    }
}

const FILE: &str = "routes.json";
const VERSION: u32 = 1;
/// What somebody has to put in order is looked at so often.
const RECHECK: Duration = Duration::from_secs(5);
