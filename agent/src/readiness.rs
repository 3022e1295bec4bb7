//! When the pod network of a node is ready (docs/adr/0015).
//!
//! ```text
//!  boot ──► no address ──► no routes ──► ready ──► (until the next boot)
//!           configuration,  first End-of-RIB,
//!           blocks          kernel
//! ```
//!
//! It is ready when its configuration is known, it has a block of every family of which it claims one before a
//! pod asks, and the kernel has the routes of BGP's first synchronisation, of which each wait has an end. Pools
//! for other nodes or for some namespaces, and a cordoned node, make nobody wait for a block. Once ready in a
//! boot it stays so, also for the agents that follow: neither a lost peer nor an API server that is away may
//! take a node from the scheduler, and with it the pods that run there.

use std::fs::File;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, Instant, SystemTime};

use cairn_cni::served::{READY_FILE as FILE, Ready};
use cairn_ipam::{Family, OwnedBlock};

use crate::fib::FirstRoutes;
use crate::ipam::{Storage, read_document};
use crate::report::PodNetworkReport;

/// Whether pods start on this node.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Verdict {
    /// They do.
    Ready,
    /// No pod can have an address, for this reason.
    NoAddress {
        /// What is missing.
        reason: String,
        /// Why one that had an address would not reach others either.
        routes: Option<String>,
    },
    /// Pods would have addresses and would not reach others, for this reason.
    NoRoutes(String),
}

/// What a verdict follows from.
#[derive(Clone, Copy, Debug)]
pub struct Facts<'a> {
    /// The node's addresses and the MTU of its pods are known.
    pub configured: bool,
    /// There are pools that give addresses, on this node or on others.
    pub served: bool,
    /// The families of which the node has or claims a block though no pod asks for one.
    pub families: &'a [Family],
    /// All blocks of the node.
    pub blocks: &'a [OwnedBlock],
    /// The established sessions, as `n/m`; `None` before BGP has started.
    pub sessions: Option<&'a str>,
    /// How far the routes are.
    pub routes: FirstRoutes,
}

impl Facts<'_> {
    /// The verdict on a node that has not been ready since its boot, and in whose kernel routes have been
    /// missing for `missing_for`.
    pub fn verdict(&self, missing_for: Duration) -> Verdict {
        match (self.no_address(), self.no_routes(missing_for)) {
            (Some(reason), routes) => Verdict::NoAddress { reason, routes },
            (None, Some(reason)) => Verdict::NoRoutes(reason),
            (None, None) => Verdict::Ready,
        }
    }

    fn no_address(&self) -> Option<String> {
        if !self.configured {
            return Some(NO_CONFIG.into());
        }
        if !self.served {
            return Some(NO_POOL.into());
        }
        let lacks = |family: &&Family| {
            let serves =
                |block: &OwnedBlock| block.hand_out && Family::of_net(block.cidr) == **family;
            !self.blocks.iter().any(serves)
        };
        let family = self.families.iter().find(lacks)?;
        Some(format!(
            "this node has no block of {family} addresses yet (if that does not pass within seconds, see \
             `cairn status` on this node and kubectl get ippools)"
        ))
    }

    fn no_routes(&self, missing_for: Duration) -> Option<String> {
        match (self.routes, self.sessions) {
            (FirstRoutes::Awaited, None) => {
                Some("BGP has not started (`cairn status` on this node tells of problems)".into())
            }
            (FirstRoutes::Awaited, Some(sessions)) => Some(format!(
                "the first routes of its BGP peers are awaited, {sessions} sessions are established; \
                 half a minute after the start of BGP it goes on without those that are missing"
            )),
            (FirstRoutes::Unwritten(count), _) if missing_for < MISSING_WAIT => Some(format!(
                "{count} routes are not in the kernel (`cairn status` on this node tells why); after {} \
                 seconds it goes on without them",
                MISSING_WAIT.as_secs()
            )),
            (FirstRoutes::Unwritten(_) | FirstRoutes::Written, _) => None,
        }
    }
}

impl Verdict {
    /// The same for people.
    pub fn report(&self) -> PodNetworkReport {
        let (ready, reason) = match self {
            Verdict::Ready => (true, None),
            Verdict::NoAddress { reason, .. } | Verdict::NoRoutes(reason) => {
                (false, Some(reason.clone()))
            }
        };
        PodNetworkReport { ready, reason }
    }

    /// Why a pod that gets an address would not reach others. That there is none for it, each pod finds out
    /// for itself, since its demand is what has a block claimed where none is ahead of it.
    pub fn shut(&self) -> Option<&str> {
        match self {
            Verdict::Ready => None,
            Verdict::NoAddress { routes, .. } => routes.as_deref(),
            Verdict::NoRoutes(reason) => Some(reason),
        }
    }
}

impl Default for Verdict {
    /// Of an agent that knows nothing yet.
    fn default() -> Verdict {
        Verdict::NoAddress { reason: NO_CONFIG.into(), routes: Some(NO_CONFIG.into()) }
    }
}

/// The readiness of a node since its boot.
#[derive(Debug)]
pub struct Readiness {
    storage: Arc<dyn Storage>,
    boot_id: String,
    verdict: Verdict,
    missing_since: Option<Instant>,
}

impl Readiness {
    /// What an earlier agent of the boot with this id has left in `storage`.
    pub fn open(storage: Arc<dyn Storage>, boot_id: String) -> Readiness {
        let document = read_document::<Ready>(storage.as_ref(), FILE);
        let counts = document.is_some_and(|d| d.version == VERSION && d.boot_id == boot_id);
        let verdict = if counts { Verdict::Ready } else { Verdict::default() };
        Readiness { storage, boot_id, verdict, missing_since: None }
    }

    /// The last verdict.
    pub fn verdict(&self) -> &Verdict {
        &self.verdict
    }

    /// Judges anew. A node that becomes ready is remembered as such.
    pub fn judge(&mut self, now: Instant, facts: &Facts<'_>) -> &Verdict {
        if self.verdict == Verdict::Ready {
            return &self.verdict;
        }
        self.missing_since = match facts.routes {
            FirstRoutes::Unwritten(_) => self.missing_since.or(Some(now)),
            FirstRoutes::Awaited | FirstRoutes::Written => None,
        };
        let since = self.missing_since.unwrap_or(now);
        let verdict = facts.verdict(now.saturating_duration_since(since));
        match &verdict {
            Verdict::Ready => {
                tracing::info!("the pod network is ready");
                self.remember();
            }
            Verdict::NoAddress { reason, .. } | Verdict::NoRoutes(reason) => {
                // Not every count that it names.
                if std::mem::discriminant(&self.verdict) != std::mem::discriminant(&verdict) {
                    tracing::info!(reason, "the pod network is not ready yet");
                }
            }
        }
        self.verdict = verdict;
        &self.verdict
    }

    /// When the verdict may change by itself.
    pub fn next_deadline(&self) -> Option<Instant> {
        let waits = self.verdict.shut().is_some();
        self.missing_since.filter(|_| waits).map(|since| since + MISSING_WAIT)
    }

    fn remember(&self) {
        let document = Ready { version: VERSION, boot_id: self.boot_id.clone() };
        let written = serde_json::to_vec(&document)
            .map_err(std::io::Error::from)
            .and_then(|document| self.storage.write(FILE, &document));
        if let Err(error) = written {
            tracing::warn!(
                "cannot write {FILE} in the run directory ({error}): after a restart of the agent pods \
                 wait for its sessions; see that the disk has room"
            );
        }
    }
}

/// Keeps the time of the file current for as long as it is polled: while no agent runs, the plugin takes the
/// network for there only so long after it.
pub async fn keep_current(run_dir: PathBuf) {
    let path = run_dir.join(FILE);
    loop {
        // It is not there before the node is ready.
        let _ = File::options()
            .write(true)
            .open(&path)
            .and_then(|file| file.set_modified(SystemTime::now()));
        tokio::time::sleep(CURRENT_INTERVAL).await;
    }
}

/// Why pods have no address before the node is known.
pub const NO_CONFIG: &str = "the Cairn agent does not know its node's addresses yet: it waits for its \
                             Node object (is the API server reachable?)";
/// Why pods have no address on a node that no pool serves.
pub const NO_POOL: &str = "no IPPool gives this node's pods addresses: create one, or see why the \
                           existing ones are not ready (kubectl get ippools)";

/// For how long routes that cannot be written, or to whose next hop no way is known, hold up the first
/// pods: a tunnel is there sooner, and one broken route does not keep a node from its work.
const MISSING_WAIT: Duration = Duration::from_secs(10);
const CURRENT_INTERVAL: Duration = Duration::from_secs(30);
const VERSION: u32 = 1;

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ipam::Directory;

    fn block(cidr: &str, hand_out: bool) -> OwnedBlock {
        OwnedBlock {
            cidr: cidr.parse().expect("a network"),
            pool: "p".into(),
            hand_out,
            until: Duration::MAX,
            revision: 0,
            newly_claimed: false,
        }
    }

    /// The facts of a node that is ready.
    fn facts(blocks: &[OwnedBlock]) -> Facts<'_> {
        Facts {
            configured: true,
            served: true,
            families: &[Family::V4, Family::V6],
            blocks,
            sessions: Some("1/2"),
            routes: FirstRoutes::Written,
        }
    }

    /// Facts, for how long routes have been missing, and whether the node is ready; if not, whether it is for
    /// routes, and words of the reason.
    type Row<'a> = (Facts<'a>, Duration, Result<(), (bool, &'static str)>);

    #[test]
    fn every_gate_has_its_reason() {
        let blocks = [block("10.0.0.0/26", true), block("fd00::/122", true)];
        let closed = [block("10.0.0.0/26", true), block("fd00::/122", false)];
        let ready = facts(&blocks);
        let missing = FirstRoutes::Unwritten(3);
        let table: [Row<'_>; 12] = [
            (ready, Duration::ZERO, Ok(())),
            (Facts { configured: false, ..ready }, MISSING_WAIT, Err((false, "Node object"))),
            (Facts { served: false, ..ready }, MISSING_WAIT, Err((false, "no IPPool"))),
            // Cordoned, or its pools are for some namespaces, or all pools for other nodes.
            (Facts { families: &[], blocks: &[], ..ready }, Duration::ZERO, Ok(())),
            (
                Facts { blocks: &blocks[..1], ..ready },
                MISSING_WAIT,
                Err((false, "no block of IPv6")),
            ),
            (Facts { blocks: &closed, ..ready }, MISSING_WAIT, Err((false, "no block of IPv6"))),
            (
                Facts { blocks: &blocks[..1], families: &[Family::V4], ..ready },
                Duration::ZERO,
                Ok(()),
            ),
            (
                Facts { routes: FirstRoutes::Awaited, ..ready },
                MISSING_WAIT,
                Err((true, "1/2 sessions are established")),
            ),
            (
                Facts { routes: FirstRoutes::Awaited, sessions: None, ..ready },
                MISSING_WAIT,
                Err((true, "BGP has not started")),
            ),
            (Facts { routes: missing, ..ready }, Duration::ZERO, Err((true, "3 routes"))),
            (
                Facts { routes: missing, ..ready },
                MISSING_WAIT - Duration::from_millis(1),
                Err((true, "3 routes")),
            ),
            (Facts { routes: missing, ..ready }, MISSING_WAIT, Ok(())),
        ];
        for (facts, missing_for, expected) in table {
            let verdict = facts.verdict(missing_for);
            let (limited, words) = match (&verdict, expected) {
                (Verdict::Ready, Ok(())) => continue,
                (Verdict::NoAddress { reason, .. }, Err((false, words))) => (reason, words),
                (Verdict::NoRoutes(reason), Err((true, words))) => (reason, words),
                _ => panic!("{facts:?}: {verdict:?}"),
            };
            assert!(limited.contains(words), "{limited}");
        }
    }

    #[test]
    fn a_pod_whose_addresses_are_there_waits_for_routes_alone() {
        let blockless = facts(&[]);
        assert_eq!(blockless.verdict(Duration::ZERO).shut(), None);
        let both = Facts { routes: FirstRoutes::Awaited, ..blockless }.verdict(Duration::ZERO);
        assert!(both.shut().is_some_and(|reason| reason.contains("awaited")), "{both:?}");
        assert!(Verdict::default().shut().is_some());
    }

    #[tokio::test(start_paused = true)]
    async fn the_file_says_when_an_agent_last_served() {
        let directory = std::env::temp_dir().join(format!("served-{}", std::process::id()));
        std::fs::create_dir_all(&directory).expect("a directory");
        let path = directory.join(FILE);
        let modified = || path.metadata().and_then(|m| m.modified()).expect("a file");
        let keeping = tokio::spawn(keep_current(directory.clone()));
        tokio::time::sleep(CURRENT_INTERVAL / 2).await;
        assert!(!path.exists(), "nobody is ready by it");
        std::fs::write(&path, "{}").expect("written");
        let hour = SystemTime::now() - Duration::from_secs(3600);
        File::options().write(true).open(&path).and_then(|f| f.set_modified(hour)).expect("set");
        tokio::time::sleep(CURRENT_INTERVAL).await;
        assert!(modified() > hour + Duration::from_secs(3000));
        keeping.abort();
        let _ = std::fs::remove_dir_all(&directory);
    }

    #[test]
    fn once_ready_it_stays_so_until_the_next_boot() {
        let directory = std::env::temp_dir().join(format!("ready-{}", std::process::id()));
        std::fs::create_dir_all(&directory).expect("a directory");
        let storage: Arc<dyn Storage> = Arc::new(Directory::new(&directory));
        let open = |boot: &str| Readiness::open(Arc::clone(&storage), boot.into());
        let blocks = [block("10.0.0.0/26", true), block("fd00::/122", true)];
        let ready = facts(&blocks);
        let mut first = open("boot 1");
        let start = Instant::now();
        assert!(matches!(first.verdict(), Verdict::NoAddress { .. }));
        let missing = Facts { routes: FirstRoutes::Unwritten(1), ..ready };
        assert!(matches!(first.judge(start, &missing), Verdict::NoRoutes(_)));
        assert_eq!(first.next_deadline(), Some(start + MISSING_WAIT));
        assert!(
            matches!(open("boot 1").verdict(), Verdict::NoAddress { .. }),
            "nothing to remember"
        );
        // Others are missing, and the patience is the same.
        let others = Facts { routes: FirstRoutes::Unwritten(2), ..ready };
        let later = start + MISSING_WAIT / 2;
        assert!(matches!(first.judge(later, &others), Verdict::NoRoutes(_)));
        assert_eq!(first.judge(start + MISSING_WAIT, &others), &Verdict::Ready);
        assert_eq!(first.next_deadline(), None);
        let nothing =
            Facts { configured: false, blocks: &[], routes: FirstRoutes::Awaited, ..ready };
        assert_eq!(first.judge(start + MISSING_WAIT, &nothing), &Verdict::Ready);

        assert_eq!(open("boot 1").judge(start, &nothing), &Verdict::Ready, "the agent restarted");
        assert!(matches!(open("boot 2").verdict(), Verdict::NoAddress { .. }), "the machine did");
        std::fs::write(directory.join(FILE), "{\"version\":1").expect("written");
        assert!(matches!(open("boot 1").verdict(), Verdict::NoAddress { .. }), "cut short");
        std::fs::remove_dir_all(directory).expect("removed");
    }
}
