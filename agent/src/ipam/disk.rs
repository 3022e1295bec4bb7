//! What outlives the agent's process: which blocks may hand out, for how long, and what history of
//! the API server was seen.
//!
//! ```text
//!  confirmed create ──keep()─────────┐                     ┌── what was found: Kept
//!  before a DELETE ──forget()────────┼──► claims.json ─────┤   (API away, fence up: pods start)
//!  own Lease written ─wrote_lease()──┘   written + fsynced └── highest resourceVersion: history
//! ```
//!
//! The document is small and says what is safe, no more: a block stands in it only while this node
//! may hand out from it without asking anybody. It counts under the boot id and the node's name that
//! wrote it only (IPAM rule 5), and in a format that is known; anything else in its place is ignored with one
//! line in the log, since an agent without it is slower but as safe.
//!
//! Calls return when the document is on the disk. The state in memory is what is wanted; a write that
//! failed is made up for by the next one.

use std::collections::BTreeMap;
use std::fmt;
use std::io;
use std::ops::RangeInclusive;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use cairn_api::ObjectReference;
use cairn_ipam::fence::OwnFence;
use cairn_ipam::{Rule, Rules};
use ipnet::IpNet;
use serde::{Deserialize, Serialize};

use super::seams::Storage;

/// Whose documents are valid: those of this node since the machine's last boot.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Owner {
    /// The node's name.
    pub node: String,
    /// The boot id of the running kernel.
    pub boot_id: String,
    /// Which safety rules hold: all, but in tests.
    pub rules: Rules,
}

/// A block that may hand out.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct KeptBlock {
    /// The UID of its IPBlock.
    pub uid: String,
    /// Its pool.
    pub pool: ObjectReference,
}

/// A successful write of the node's own Lease.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct LeaseWrite {
    /// The time since boot before the request left.
    pub sent: Duration,
    /// The promise that the Lease carries.
    pub promise: Duration,
    /// The version that the write gave it; `None` when that is no number.
    pub version: Option<u64>,
}

impl LeaseWrite {
    /// Whether addresses may still be handed out on its strength.
    pub fn is_up(&self, now: Duration) -> bool {
        now < self.sent.saturating_add(self.promise)
    }
}

/// What is kept.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Kept {
    /// The UID of the Node for which the blocks are.
    pub node_uid: Option<String>,
    /// The last write of the node's own Lease.
    pub lease: Option<LeaseWrite>,
    /// The highest resourceVersion seen; 0 when none was.
    pub version: u64,
    /// History of the API server went backwards in this boot.
    pub alarm: bool,
    /// The blocks that may hand out while the Lease's promise lasts.
    pub blocks: BTreeMap<IpNet, KeptBlock>,
}

impl Kept {
    /// The fence with which a process goes on that finds this. `offline` is its own promise: the
    /// shorter of the two counts until the Lease is written again, as a write without an answer may
    /// have told the leader of the new one.
    pub fn fence(&self, offline: Duration) -> OwnFence {
        match self.lease {
            Some(lease) => OwnFence::resumed(offline, lease.sent, lease.promise),
            None => OwnFence::new(offline),
        }
    }
}

/// The document could not be written: the old one may still be what the next process finds.
#[derive(Debug, thiserror::Error)]
#[error("cannot write {CLAIMS} in the run directory ({source}): see that the disk has room")]
pub struct DiskError {
    #[from]
    source: io::Error,
}

/// The owner of `claims.json`. Clones are the same document.
#[derive(Clone, Debug)]
pub struct Disk {
    storage: Arc<dyn Storage>,
    owner: Arc<Owner>,
    state: Arc<Mutex<State>>,
}

#[derive(Debug)]
struct State {
    kept: Kept,
    /// The term of the fence ([`OwnFence::term`]) in which the blocks were confirmed.
    term: u64,
    /// The last write failed.
    behind: bool,
}

impl Disk {
    /// Reads what an earlier process left. Blocks whose promise ended meanwhile are not among it.
    pub fn open(storage: Arc<dyn Storage>, owner: Owner, now: Duration) -> Disk {
        let mut kept = match read::<Document>(storage.as_ref(), &owner, CLAIMS, FORMATS) {
            Found::Document(document) => Kept::from(document),
            Found::Nothing => Kept::default(),
            Found::Unusable(reason) => {
                tracing::warn!(
                    "{CLAIMS} of the run directory is not used: {reason}; blocks hand out again \
                     once the API server has confirmed them"
                );
                Kept::default()
            }
        };
        let up = kept.lease.is_some_and(|lease| lease.is_up(now));
        if !up && owner.rules.hold(Rule::OwnFence) {
            kept.blocks.clear();
        }
        // As OwnFence counts: what was raised before this process is its first term.
        let term = u64::from(kept.lease.is_some());
        let state = Mutex::new(State { kept, term, behind: false });
        Disk { storage, owner: Arc::new(owner), state: Arc::new(state) }
    }

    /// What is kept now.
    pub fn kept(&self) -> Kept {
        self.state().kept.clone()
    }

    /// The highest resourceVersion seen; 0 when none was.
    pub fn version(&self) -> u64 {
        self.state().kept.version
    }

    /// Keeps a block that may hand out: its create, or the write that took it up, was confirmed in
    /// `term` of the fence ([`OwnFence::term`]) for the Node with `node_uid`. In a later term it has
    /// to be confirmed anew, so that nothing is kept.
    ///
    /// # Errors
    /// It is not on the disk. Nothing is unsafe then; a process that starts with the API server away
    /// may not find the block.
    pub fn keep(
        &self,
        cidr: IpNet,
        block: KeptBlock,
        node_uid: &str,
        term: u64,
    ) -> Result<(), DiskError> {
        let mut state = self.state();
        if state.term != term {
            return Ok(());
        }
        if state.kept.node_uid.as_deref() != Some(node_uid) {
            state.kept.blocks.clear();
            state.kept.node_uid = Some(node_uid.to_owned());
        } else if state.kept.blocks.get(&cidr) == Some(&block) && !state.behind {
            return Ok(());
        }
        state.kept.blocks.insert(cidr, block);
        self.write(&mut state)
    }

    /// Forgets a block: no later process hands out from it. A DELETE is sent only after this has
    /// returned without an error (IPAM rule 2); the same goes for whatever else lets another have the
    /// block, and a block in conflict is forgotten, too.
    ///
    /// # Errors
    /// A later process may find the block: do not send the DELETE.
    pub fn forget(&self, cidr: IpNet) -> Result<(), DiskError> {
        let mut state = self.state();
        if state.kept.blocks.remove(&cidr).is_none() && !state.behind {
            return Ok(());
        }
        self.write(&mut state)
    }

    /// The Lease was written, and the fence is in `term` with it. A new term forgets all blocks in
    /// the same document, before the new promise can make them count. Called before anything is
    /// confirmed in the new term.
    ///
    /// # Errors
    /// A later process counts from an older write, or knows an older term: it hands out for a shorter
    /// time. The fence may be raised all the same, as no block of this term is kept before a write
    /// has succeeded.
    pub fn wrote_lease(&self, lease: LeaseWrite, term: u64) -> Result<(), DiskError> {
        let mut state = self.state();
        if state.term != term {
            state.term = term;
            if self.owner.rules.hold(Rule::OwnFence) {
                state.kept.blocks.clear();
            }
        }
        state.kept.lease = Some(lease);
        self.write(&mut state)
    }

    /// The fence is down before its time: another machine has the Node. No later process hands out
    /// before it has written the Lease.
    ///
    /// # Errors
    /// A later process may find the old promise.
    pub fn lost_lease(&self) -> Result<(), DiskError> {
        let mut state = self.state();
        state.kept.blocks.clear();
        if state.kept.lease.take().is_none() && !state.behind {
            return Ok(());
        }
        self.write(&mut state)
    }

    /// Takes in the resourceVersion of an answer; on the disk with the next write of the Lease. An
    /// older answer changes nothing: compare with [`Disk::version`] first.
    pub fn saw_version(&self, version: u64) {
        let mut state = self.state();
        state.kept.version = state.kept.version.max(version);
    }

    /// The API server's history was put back: what counts from now on is `version`, and no block hands
    /// out until it is confirmed. `alarm`: later processes have to know.
    ///
    /// # Errors
    /// A later process may find the blocks, and notices the old history once more.
    pub fn begin_history(&self, version: u64, alarm: bool) -> Result<(), DiskError> {
        let mut state = self.state();
        state.kept.blocks.clear();
        state.kept.version = version;
        state.kept.alarm |= alarm;
        self.write(&mut state)
    }

    /// Whether history went backwards in this boot.
    pub fn alarm(&self) -> bool {
        self.state().kept.alarm
    }

    fn write(&self, state: &mut State) -> Result<(), DiskError> {
        let document = Document::from(&state.kept);
        let storage = self.storage.as_ref();
        // What says no more than the version before knows, that reads, too.
        let format = FORMATS.end() - u32::from(!document.alarm);
        let written = write_if_new(storage, &self.owner, CLAIMS, format, &document, None);
        state.behind = written.is_err();
        written?;
        Ok(())
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// What stands in `claims.json` after the header.
#[derive(Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
struct Document {
    node_uid: Option<String>,
    lease: Option<LeaseDocument>,
    version: u64,
    /// Not there before format 3.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    alarm: bool,
    blocks: BTreeMap<IpNet, KeptBlock>,
}

/// Times are of CLOCK_BOOTTIME, which the boot id in the header makes comparable.
#[derive(Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
struct LeaseDocument {
    sent_nanos: u64,
    promise_nanos: u64,
    /// Not there in format 1.
    version: Option<u64>,
}

impl From<&Kept> for Document {
    fn from(kept: &Kept) -> Document {
        // 584 years are enough.
        let nanos = |time: Duration| u64::try_from(time.as_nanos()).unwrap_or(u64::MAX);
        let lease = kept.lease.map(|lease| LeaseDocument {
            sent_nanos: nanos(lease.sent),
            promise_nanos: nanos(lease.promise),
            version: lease.version,
        });
        Document {
            node_uid: kept.node_uid.clone(),
            lease,
            version: kept.version,
            alarm: kept.alarm,
            blocks: kept.blocks.clone(),
        }
    }
}

impl From<Document> for Kept {
    fn from(document: Document) -> Kept {
        let lease = document.lease.map(|lease| LeaseWrite {
            sent: Duration::from_nanos(lease.sent_nanos),
            promise: Duration::from_nanos(lease.promise_nanos),
            version: lease.version,
        });
        Kept {
            node_uid: document.node_uid,
            lease,
            version: document.version,
            alarm: document.alarm,
            blocks: document.blocks,
        }
    }
}

/// What a name of the storage holds.
pub(crate) enum Found<T> {
    Nothing,
    Document(T),
    /// Not this node's of this boot, or not whole: why.
    Unusable(Unusable),
}

/// Why a document does not count.
#[derive(Debug)]
pub(crate) enum Unusable {
    Unreadable(io::Error),
    Damaged,
    Format(u32),
    OtherNode(String),
    OtherBoot,
}

impl fmt::Display for Unusable {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Unusable::Unreadable(error) => write!(f, "it cannot be read ({error})"),
            Unusable::Damaged => write!(f, "it is damaged or cut short"),
            Unusable::Format(format) => {
                write!(f, "it has format {format}, which this version does not know")
            }
            Unusable::OtherNode(node) => write!(f, "it is of node {node}"),
            Unusable::OtherBoot => write!(f, "it is from before the machine's last boot"),
        }
    }
}

/// The first line of each document.
#[derive(Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
struct Header {
    format: u32,
    boot_id: String,
    node: String,
    /// Of what follows the line, which is the document's body.
    length: usize,
    checksum: u64,
}

/// The document under `name`, if it is `owner`'s, of one of `formats` and whole.
pub(crate) fn read<T: for<'de> Deserialize<'de>>(
    storage: &dyn Storage,
    owner: &Owner,
    name: &str,
    formats: RangeInclusive<u32>,
) -> Found<T> {
    match storage.read(name) {
        Ok(None) => Found::Nothing,
        Ok(Some(bytes)) => match decode(&bytes, owner, formats) {
            Ok(document) => Found::Document(document),
            Err(reason) => Found::Unusable(reason),
        },
        Err(error) => Found::Unusable(Unusable::Unreadable(error)),
    }
}

fn decode<T: for<'de> Deserialize<'de>>(
    bytes: &[u8],
    owner: &Owner,
    formats: RangeInclusive<u32>,
) -> Result<T, Unusable> {
    let end = bytes.iter().position(|byte| *byte == b'\n').ok_or(Unusable::Damaged)?;
    let (line, rest) = bytes.split_at(end);
    let body = rest.get(1..).unwrap_or_default();
    let header: Header = serde_json::from_slice(line).map_err(|_| Unusable::Damaged)?;
    if !formats.contains(&header.format) {
        return Err(Unusable::Format(header.format));
    }
    if header.length != body.len() || header.checksum != checksum(body) {
        return Err(Unusable::Damaged);
    }
    if header.node != owner.node {
        return Err(Unusable::OtherNode(header.node));
    }
    if header.boot_id != owner.boot_id && owner.rules.hold(Rule::DiskOfThisBoot) {
        return Err(Unusable::OtherBoot);
    }
    serde_json::from_slice(body).map_err(|_| Unusable::Damaged)
}

/// Puts a document in place unless its checksum is `last`; returns the checksum. Safe when it
/// returns.
pub(crate) fn write_if_new<T: Serialize>(
    storage: &dyn Storage,
    owner: &Owner,
    name: &str,
    format: u32,
    document: &T,
    last: Option<u64>,
) -> io::Result<u64> {
    let body = serde_json::to_vec(document)?;
    let checksum = checksum(&body);
    if last == Some(checksum) {
        return Ok(checksum);
    }
    let header = Header {
        format,
        boot_id: owner.boot_id.clone(),
        node: owner.node.clone(),
        length: body.len(),
        checksum,
    };
    let mut bytes = serde_json::to_vec(&header)?;
    bytes.reserve(body.len() + 1);
    bytes.push(b'\n');
    bytes.extend(body);
    storage.write(name, &bytes)?;
    Ok(checksum)
}

/// FNV-1a, 64 bits: against damage, not against malice; who can write here is root.
fn checksum(bytes: &[u8]) -> u64 {
    bytes.iter().fold(0xcbf2_9ce4_8422_2325, |hash, byte| {
        (hash ^ u64::from(*byte)).wrapping_mul(0x0000_0100_0000_01b3)
    })
}

/// The formats of `claims.json` that are read, of which the last is written where it is needed: raised by every change of
/// what stands in it. An upgrade keeps the blocks and the highest version seen only if the format before
/// it is among these.
const FORMATS: RangeInclusive<u32> = 1..=3;
const CLAIMS: &str = "claims.json";

#[cfg(test)]
#[path = "disk_tests.rs"]
mod tests;
