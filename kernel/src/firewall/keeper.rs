//! Keeps the kernel as a [`Firewall`] says.

use std::collections::BTreeSet;
use std::ffi::OsStr;
use std::sync::Arc;
use std::time::{Duration, Instant};

use super::command::{CommandError, Commands, NFT};
use super::hook::{self, Found, Look};
use super::watch::{Seen, Watch};
use super::{Firewall, TABLE, script, update};
use crate::error::Error;
use crate::netns::NetNs;

/// Our table and our rules in chains of others, in one network namespace.
///
/// Nothing is written until [`FirewallKeeper::set`] was called, and afterwards only what differs,
/// over a restart too. [`FirewallKeeper::next`] returns when somebody else changed something, and
/// [`FirewallKeeper::apply`] then repairs it: a table that others edited is written as a whole,
/// without a look at what they did to it. The legacy iptables, which tells nobody, is looked at every
/// half minute where it is in use; all the rest every ten minutes, as the last net.
pub struct FirewallKeeper {
    commands: Commands,
    watch: Watch,
    wanted: Option<Arc<Firewall>>,
    table: Table,
    table_part: Part,
    nftables: Hook,
    legacy: Hook,
    look: Option<Instant>,
    audit: Option<Instant>,
    edits: u64,
    flows: Flows,
}

/// What our table is.
enum Table {
    /// To be read.
    Unknown,
    /// Somebody changed it.
    Edited,
    /// As this says.
    Known(Arc<Firewall>),
}

/// Flows of pods that began before a rule that is for them.
#[derive(Default)]
struct Flows {
    /// When they are looked at.
    due: Option<Instant>,
    /// When they may be looked at again: a look reads every flow of the machine.
    rest_until: Option<Instant>,
    /// Why the last look failed, and how often in a row.
    failure: Option<(String, u32)>,
}

/// Something that is brought in order on its own.
#[derive(Default)]
struct Part {
    dirty: bool,
    /// A pass is under way, or was dropped before its end.
    begun: bool,
    failure: Option<Failure>,
}

struct Failure {
    text: String,
    rest: Duration,
    retry: Instant,
}

/// What the last look at the forward hook found, in one of its two kinds.
#[derive(Default)]
struct Hook {
    part: Part,
    accepting: BTreeSet<String>,
    obstacles: Vec<String>,
}

/// What a pass did.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct FirewallPass {
    /// How often something was written: the table or its sets, or our rules in a chain of others.
    pub writes: usize,
    /// How many of the three parts failed: table, nftables' forward hook, legacy iptables.
    pub failed: usize,
}

impl FirewallKeeper {
    /// Watches the namespace of the calling thread. Must be called within a tokio runtime, and on the
    /// thread that later calls the other functions.
    ///
    /// # Errors
    /// The kernel gives no sockets, for example since it has no nftables.
    pub fn open() -> Result<FirewallKeeper, Error> {
        FirewallKeeper::new(None)
    }

    /// As [`FirewallKeeper::open`], in `netns`, whatever thread uses it.
    ///
    /// # Errors
    /// As [`FirewallKeeper::open`], and those of [`NetNs::run`].
    pub fn open_in(netns: NetNs) -> Result<FirewallKeeper, Error> {
        FirewallKeeper::new(Some(netns))
    }

    fn new(netns: Option<NetNs>) -> Result<FirewallKeeper, Error> {
        let watch = Watch::open(netns.as_ref())?;
        Ok(FirewallKeeper {
            commands: Commands::new(netns),
            watch,
            wanted: None,
            table: Table::Unknown,
            table_part: Part::default(),
            nftables: Hook::default(),
            legacy: Hook::default(),
            look: None,
            audit: None,
            edits: 0,
            flows: Flows::default(),
        })
    }

    /// Looks for programs in the directories of `path` only, instead of the process's own PATH and
    /// the usual directories.
    pub fn set_path(&mut self, path: impl AsRef<OsStr>) {
        path.as_ref().clone_into(&mut self.commands.path);
    }

    /// Says what the firewall should be.
    pub fn set(&mut self, wanted: Firewall) {
        let before = self.wanted.as_deref();
        self.table_part.dirty |= before != Some(&wanted);
        if before.is_none_or(|before| {
            (before.accept_forwarded, before.pod_interfaces)
                != (wanted.accept_forwarded, wanted.pod_interfaces)
        }) {
            self.nftables.part.dirty = true;
            self.legacy.part.dirty = true;
        }
        self.wanted = Some(Arc::new(wanted));
    }

    /// Has the next pass read everything again.
    pub fn request_resync(&mut self) {
        self.table = Table::Unknown;
        self.table_part.dirty = true;
        self.nftables.part.dirty = true;
        self.legacy.part.dirty = true;
    }

    /// Whether a pass is due now, apart from deadlines.
    pub fn is_dirty(&self) -> bool {
        self.wanted.is_some()
            && self.parts().iter().any(|part| (part.dirty || part.begun) && part.failure.is_none())
    }

    /// When a pass is due at the latest.
    pub fn next_deadline(&self) -> Option<Instant> {
        self.wanted.as_ref()?;
        let retries = self.parts().map(|part| part.failure.as_ref().map(|failure| failure.retry));
        // Before the rules are there a look is of no use.
        let flows = self.flows.due.filter(|_| self.table_part.failure.is_none());
        retries.into_iter().chain([self.look, self.audit, flows]).flatten().min()
    }

    /// How often others changed or removed what is ours.
    pub fn edits(&self) -> u64 {
        self.edits
    }

    /// What is wrong, each with what to do.
    pub fn problems(&self) -> Vec<String> {
        let mut problems = Vec::new();
        if let Some(failure) = &self.table_part.failure {
            problems.push(format!(
                "the packet filter is not as it should be (masquerading, pods' source addresses, who \
                 may send tunnel packets), retrying: {}",
                failure.text
            ));
        }
        problems.extend(self.flows.failure.as_ref().map(|(text, _)| text.clone()));
        for hook in [&self.nftables, &self.legacy] {
            if let Some(failure) = &hook.part.failure {
                problems.push(format!(
                    "cannot tell whether another packet filter drops what pods send and receive, \
                     retrying: {}",
                    failure.text
                ));
            }
            problems.extend(hook.obstacles.iter().cloned());
        }
        problems
    }

    /// Waits until others changed something that concerns us, so that a pass is due. Dropping the
    /// future loses nothing.
    ///
    /// # Errors
    /// When the socket fails.
    pub async fn next(&mut self) -> Result<(), Error> {
        let seen = self.watch.next().await?;
        self.observe(seen);
        Ok(())
    }

    /// Brings the kernel in order, as far as something differs or is due. A failure is kept as a
    /// problem and tried again later; one part does not hold back another.
    pub async fn apply(&mut self, now: Instant) -> FirewallPass {
        let Some(wanted) = self.wanted.clone() else { return FirewallPass::default() };
        if self.look.is_none_or(|at| at <= now) {
            self.look = Some(now + LOOK_INTERVAL);
            self.legacy.part.dirty = true;
        }
        if self.audit.is_none_or(|at| at <= now) {
            self.audit = Some(now + AUDIT_INTERVAL);
            self.request_resync();
        }
        let mut pass = FirewallPass::default();
        if self.table_part.begin(now) {
            let done = self.settle_table(&wanted, now).await;
            self.table_part.end(done, now, &mut pass);
        }
        if self.flows.due.is_some_and(|at| at <= now) && self.table_part.failure.is_none() {
            self.forget_shown(&wanted, now);
        }
        if self.nftables.part.begin(now) {
            let done = hook::nftables(look(&self.commands, &wanted), &mut self.watch).await;
            let done = done.map(|found| self.found(found, |keeper| &mut keeper.nftables));
            self.nftables.part.end(done, now, &mut pass);
        }
        if self.legacy.part.begin(now) {
            let done = hook::legacy(look(&self.commands, &wanted)).await;
            let done = done.map(|found| self.found(found, |keeper| &mut keeper.legacy));
            self.legacy.part.end(done, now, &mut pass);
        }
        pass
    }

    fn parts(&self) -> [&Part; 3] {
        [&self.table_part, &self.nftables.part, &self.legacy.part]
    }

    fn observe(&mut self, seen: Seen) {
        if seen.table {
            self.edits += u64::from(matches!(self.table, Table::Known(_)));
            self.table = Table::Edited;
        } else if seen.lost && matches!(self.table, Table::Known(_)) {
            self.table = Table::Unknown;
        }
        self.table_part.dirty |= seen.table || seen.lost;
        self.nftables.part.dirty |= seen.forward || seen.lost;
    }

    async fn settle_table(
        &mut self,
        wanted: &Arc<Firewall>,
        now: Instant,
    ) -> Result<usize, CommandError> {
        let seen = self.watch.drain(None)?;
        self.observe(seen);
        // What was heard until now is seen to by this pass.
        self.table_part.dirty = false;
        // Unknown until it is done: a pass may be dropped, or nft be killed when the kernel is done.
        let present = std::mem::replace(&mut self.table, Table::Unknown);
        let text = match &present {
            Table::Known(present) => update(present, wanted).unwrap_or_else(|| script(wanted)),
            Table::Edited => script(wanted),
            Table::Unknown => {
                let script = script(wanted);
                if self.is_present(&script).await? { String::new() } else { script }
            }
        };
        let hides_more = match &present {
            Table::Known(before) => wanted.hides_beyond(before),
            // An earlier process may have ended between both.
            Table::Edited | Table::Unknown => true,
        };
        let begins_anew = hides_more && wanted.hides_some();
        if text.is_empty() {
            self.written(Seen::default(), wanted);
            self.flows.look(begins_anew, now);
            return Ok(0);
        }
        let seen = match self.watch.write(&self.commands, &text).await {
            // The sets are not what they were taken for.
            Err(CommandError::Refused { .. }) if matches!(present, Table::Known(_)) => {
                self.watch.write(&self.commands, &script(wanted)).await?
            }
            done => done?,
        };
        self.written(seen, wanted);
        self.flows.look(begins_anew, now);
        Ok(1)
    }

    /// The rules decide on a flow's first packet only.
    fn forget_shown(&mut self, wanted: &Firewall, now: Instant) {
        let done = self.watch.forget_shown(wanted);
        // The look's own time does not count as rest.
        let rest = Instant::now().max(now) + FLOWS_REST;
        self.flows.rest_until = Some(rest);
        match done {
            Ok(forgotten) => {
                if forgotten.flows > 0 {
                    let flows = forgotten.flows;
                    tracing::info!(
                        flows,
                        "unanswered flows of pods begin anew, with this node's address"
                    );
                }
                self.flows.due = forgotten.more.then_some(rest);
                self.flows.failure = None;
            }
            Err(error) => {
                let failures = self.flows.failure.take().map_or(0, |(_, failures)| failures);
                self.flows.due = Some(rest + FLOWS_REST * (1 << failures.min(6)));
                let text = format!(
                    "what pods sent to other nodes or out of the cluster before the rules for it were \
                     there may go on without them; looking at it again later: {error}"
                );
                self.flows.failure = Some((text, failures.saturating_add(1)));
            }
        }
    }

    fn written(&mut self, meanwhile: Seen, wanted: &Arc<Firewall>) {
        self.table = Table::Known(Arc::clone(wanted));
        self.observe(meanwhile);
    }

    /// Whether our table is what `script` makes. Both are listed by the same nft of the same kernel:
    /// how these write a rule depends on their versions.
    async fn is_present(&self, script: &str) -> Result<bool, CommandError> {
        let Some(found) = list_table(&self.commands).await? else { return Ok(false) };
        let scratch = self.commands.in_netns(NetNs::scratch()?);
        scratch.nft(script).await?;
        Ok(list_table(&scratch).await? == Some(found))
    }

    fn found(&mut self, found: Found, hook: fn(&mut FirewallKeeper) -> &mut Hook) -> usize {
        let silent = self.wanted.as_ref().is_some_and(|wanted| !wanted.accept_forwarded);
        let hook_now = hook(self);
        let edits = found
            .changed
            .iter()
            .filter(|chain| hook_now.accepting.contains(*chain) && found.accepting.contains(*chain))
            .count();
        hook_now.accepting = found.accepting;
        hook_now.obstacles = if silent { Vec::new() } else { found.obstacles };
        self.edits += edits as u64;
        self.observe(found.seen);
        found.changed.len()
    }
}

fn look<'a>(commands: &'a Commands, wanted: &Firewall) -> Look<'a> {
    let (pods, accept) = (wanted.pod_interfaces, wanted.accept_forwarded);
    Look { commands, pods, accept, write: true }
}

impl Flows {
    /// Has them looked at, if that is due, as soon as the last look is long enough ago.
    fn look(&mut self, is_due: bool, now: Instant) {
        if is_due {
            self.due = Some(self.rest_until.map_or(now, |at| at.max(now)));
        }
    }
}

impl Part {
    /// Whether a pass over it is due.
    fn begin(&mut self, now: Instant) -> bool {
        let due = match &self.failure {
            Some(failure) => failure.retry <= now,
            None => self.dirty || self.begun,
        };
        if due {
            // What comes during the pass makes it dirty again.
            self.dirty = false;
            self.begun = true;
        }
        due
    }

    fn end(&mut self, done: Result<usize, CommandError>, now: Instant, pass: &mut FirewallPass) {
        self.begun = false;
        let before = self.failure.take();
        match done {
            Ok(writes) => pass.writes += writes,
            Err(error) => {
                let rest = before.map_or(RETRY_MIN, |failure| RETRY_MAX.min(failure.rest * 2));
                self.failure = Some(Failure { text: error.to_string(), rest, retry: now + rest });
                pass.failed += 1;
            }
        }
    }
}

/// Removes our table and our rules in chains of others from `netns`, or from the namespace of the
/// calling thread, and says what that was; with `dry_run` only says it.
///
/// # Errors
/// [`CommandError`]; then some of it may have been removed.
pub async fn remove(
    netns: Option<NetNs>,
    pod_interfaces: &'static str,
    dry_run: bool,
) -> Result<Vec<String>, CommandError> {
    let mut watch = Watch::open(netns.as_ref())?;
    let commands = Commands::new(netns);
    let mut removed = Vec::new();
    if list_table(&commands).await?.is_some() {
        if !dry_run {
            commands.nft(&format!("delete table inet {TABLE}\n")).await?;
        }
        removed.push(format!("nftables table inet {TABLE}"));
    }
    let look = Look { commands: &commands, pods: pod_interfaces, accept: false, write: !dry_run };
    let found = [hook::nftables(look, &mut watch).await?, hook::legacy(look).await?];
    let chains = found.into_iter().flat_map(|found| found.changed);
    removed.extend(chains.map(|chain| format!("accepting rules in the {chain}")));
    Ok(removed)
}

/// Our table without its counters, as nft writes it; `None` when there is none.
async fn list_table(commands: &Commands) -> Result<Option<String>, CommandError> {
    match commands.run(NFT, &["-s", "list", "table", "inet", TABLE], "").await {
        Err(CommandError::Refused { .. }) => Ok(None),
        done => Ok(Some(done?.text)),
    }
}

/// How often the legacy iptables is looked at.
const LOOK_INTERVAL: Duration = Duration::from_secs(30);
const AUDIT_INTERVAL: Duration = Duration::from_secs(600);
/// Between two looks at all flows: a million of them take a second.
const FLOWS_REST: Duration = Duration::from_secs(5);
const RETRY_MIN: Duration = Duration::from_millis(200);
const RETRY_MAX: Duration = Duration::from_secs(30);
