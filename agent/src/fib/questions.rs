//! What the thread answers about what it wants: in pages, so that a full table neither needs memory
//! nor holds up routes.

use std::net::IpAddr;
use std::ops::Bound;
use std::os::unix::fs::MetadataExt;
use std::time::{SystemTime, UNIX_EPOCH};

use cairn_bgp::prefix::Prefix;
use cairn_kernel::reconcile::Failure;
use cairn_kernel::route::{Route, RouteKey};
use ipnet::IpNet;
use tokio::sync::{mpsc, oneshot};

use super::Worker;
use crate::kernel_command::record::{
    KernelRecord, NodeKernel, Origin, Path, StuckRoute, Tunnel, TunnelPart, WantedRoute,
    WriteFailure,
};

/// Where to ask what the thread wants.
#[derive(Clone)]
pub struct FibQuestions(mpsc::Sender<Question>);

/// The thread's end.
pub(super) type Questions = mpsc::Receiver<Question>;

/// One page, please.
pub(super) struct Question {
    from: Cursor,
    answer: oneshot::Sender<Page>,
}

/// Where a page begins.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Cursor {
    /// With what is the same for all.
    #[default]
    Start,
    /// With the learned routes behind this one.
    Learned(Option<Prefix>),
    /// With own blocks, what cannot be removed, and tunnels.
    Rest,
}

/// Some records, and where the next ones begin.
#[derive(Debug)]
pub struct Page {
    /// The records.
    pub records: Vec<KernelRecord>,
    /// Where to go on.
    pub next: Option<Cursor>,
}

impl FibQuestions {
    pub(super) fn channel() -> (FibQuestions, Questions) {
        let (ask, asked) = mpsc::channel(QUESTIONS_MAX);
        (FibQuestions(ask), asked)
    }

    /// The page at `from`; `None` when the thread has ended.
    pub async fn page(&self, from: Cursor) -> Option<Page> {
        let (answer, answered) = oneshot::channel();
        self.0.send(Question { from, answer }).await.ok()?;
        answered.await.ok()
    }
}

impl Worker {
    pub(super) fn answer(&self, Question { from, answer }: Question) {
        // Who has gone hears nothing.
        let _ = answer.send(self.page(from));
    }

    fn page(&self, from: Cursor) -> Page {
        let after = match from {
            Cursor::Start => {
                let node = KernelRecord::Node(self.node_kernel());
                return Page { records: vec![node], next: Some(Cursor::Learned(None)) };
            }
            Cursor::Learned(after) => after,
            Cursor::Rest => return Page { records: self.rest(), next: None },
        };
        let begin = after.map_or(Bound::Unbounded, Bound::Excluded);
        let prefixes = self.learned.range((begin, Bound::Unbounded)).map(|(prefix, _)| *prefix);
        let prefixes: Vec<Prefix> = prefixes.take(PAGE_ROUTES).collect();
        let records = prefixes.iter().filter_map(|prefix| self.learned_record(*prefix));
        let next = match prefixes.last() {
            Some(last) if prefixes.len() == PAGE_ROUTES => Cursor::Learned(Some(*last)),
            _ => Cursor::Rest,
        };
        Page { records: records.collect(), next: Some(next) }
    }

    fn node_kernel(&self) -> NodeKernel {
        NodeKernel {
            netns: netns(),
            protocol: self.reconciler.protocol(),
            former: self.reconciler.protocols().skip(1).collect(),
            settled: self.swept,
        }
    }

    fn learned_record(&self, prefix: Prefix) -> Option<KernelRecord> {
        let route = self.learned.get(&prefix)?;
        let net = IpNet::from(prefix);
        let paths = route
            .paths
            .iter()
            .map(|path| Path { peer: path.peer.to_string(), next_hop: path.next_hop });
        let tunnel =
            self.wrap.tunnel_of(net).map(|(kind, node)| Tunnel { kind, node: node.into() });
        let origin = Origin::Bgp { paths: paths.collect(), tunnel };
        let waits = self.unresolved.get(&prefix).cloned();
        Some(KernelRecord::Route(self.wanted_record(
            self.marking.marks.learned(net),
            origin,
            waits,
        )))
    }

    fn wanted_record(&self, key: RouteKey, origin: Origin, waits: Option<String>) -> WantedRoute {
        let (leads, source): (_, Option<IpAddr>) = match self.reconciler.wanted(&key) {
            Some(Route { target, prefsrc, .. }) => (Some(target.into()), prefsrc),
            None => (None, None),
        };
        WantedRoute {
            prefix: key.prefix,
            table: key.table,
            metric: key.metric,
            leads,
            source,
            origin,
            waits,
            failure: self.reconciler.failure(&key).map(|failure| write_failure(&key, failure)),
        }
    }

    fn rest(&self) -> Vec<KernelRecord> {
        let keys = self.blocks.iter().flatten().flat_map(|block| self.own_keys(*block));
        let blocks =
            keys.map(|key| KernelRecord::Route(self.wanted_record(key, Origin::OwnBlock, None)));
        let unwanted = |key: &RouteKey| self.reconciler.wanted(key).is_none();
        let stuck =
            self.reconciler.failures().filter(|(key, _)| unwanted(key)).take(STUCK_MAX).map(
                |(key, failure)| {
                    KernelRecord::Stuck(StuckRoute {
                        prefix: key.prefix,
                        table: key.table,
                        metric: key.metric,
                        failure: write_failure(key, failure),
                    })
                },
            );
        let parts = self.wrap.inventory().into_iter().chain(self.uplinks.inventory());
        let parts = parts.map(|((part, name), words)| {
            KernelRecord::Tunnel(TunnelPart { part: part.name().into(), name, words })
        });
        blocks.chain(stuck).chain(parts).collect()
    }
}

fn write_failure(key: &RouteKey, failure: &Failure) -> WriteFailure {
    let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default().as_secs();
    WriteFailure {
        errno: failure.errno.raw_os_error(),
        reason: super::reason(key, failure),
        since_unix_secs: now.saturating_sub(failure.since.elapsed().as_secs()),
        attempts: failure.attempts,
    }
}

/// The inode of the network namespace of the calling thread.
pub(crate) fn netns() -> Option<u64> {
    std::fs::metadata("/proc/thread-self/ns/net").ok().map(|metadata| metadata.ino())
}

/// Pages that wait for their turn.
const QUESTIONS_MAX: usize = 16;
/// The learned routes of a page: some milliseconds of the thread's time.
const PAGE_ROUTES: usize = 512;
/// The routes that cannot be removed which are told.
const STUCK_MAX: usize = 1000;
