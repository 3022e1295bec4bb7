//! The addresses of one node: which attachment holds which, and which is handed out next.
//!
//! The book lives in memory and is rebuilt from the kernel at a start ([`AddressBook::adopt`]). It
//! never gives an address to two attachments, gives one attachment the same addresses however often
//! it asks, and gives addresses of all families that were asked for or of none.
//!
//! Inside a block the address that has been free the longest comes first. The first and the last
//! address are ordinary: a routed block has neither a network nor a broadcast address. An address
//! that was freed less than the cooldown ago comes last but is not refused.
//!
//! Several pools may serve a request, in an order. An address that is not cooling of any of them
//! comes before a cooling one: all were named as good enough, and the cooldown protects others, who
//! may still speak to the pod that had the address. Failing that the one freed first is given, of
//! whatever pool.
//!
//! Reserved addresses are never handed out. One that is in use when it becomes reserved stays in use.
//!
//! Memory follows the addresses in use, not the size of the blocks: addresses that were never handed
//! out are a cursor, and reservations are ranges.

mod block;
mod error;
mod reserved;

use std::collections::{BTreeMap, BTreeSet, HashMap, HashSet};
use std::fmt;
use std::net::IpAddr;
use std::time::Duration;

use ipnet::IpNet;

use crate::demand::{AddressRequest, Choice};
use block::{Block, Place, Source};
use reserved::Reserved;

pub use error::AssignError;

/// The freed addresses that a block remembers. Only an IPv6 block can hold more addresses; there the
/// oldest freed one is reused before a new one, so that memory stays bounded.
pub const FREED_ADDRESSES_MAX: usize = 65_536;

/// What holds addresses: one interface of one container, as CNI names it.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct AttachmentId {
    /// The container id of the pod's sandbox (`CNI_CONTAINERID`).
    pub container_id: String,
    /// The interface's name inside the container (`CNI_IFNAME`).
    pub ifname: String,
}

impl AttachmentId {
    /// Stands for the address of `family` of the node's own device `name`. No container has this id:
    /// CNI allows no colon.
    pub fn of_device(name: &str, family: Family) -> AttachmentId {
        AttachmentId { container_id: format!("{DEVICE}{name}"), ifname: family.to_string() }
    }

    /// The node's own device that it stands for, if it does.
    pub fn device(&self) -> Option<&str> {
        self.container_id.strip_prefix(DEVICE)
    }
}

const DEVICE: &str = "device:";

impl fmt::Display for AttachmentId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.container_id, self.ifname)
    }
}

/// An address family.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Family {
    /// IPv4.
    V4,
    /// IPv6.
    V6,
}

impl Family {
    /// The family of `address`.
    pub fn of(address: IpAddr) -> Family {
        if address.is_ipv4() { Family::V4 } else { Family::V6 }
    }

    /// The family of the network `cidr`.
    pub fn of_net(cidr: IpNet) -> Family {
        Family::of(cidr.addr())
    }

    /// Bits in an address of this family.
    pub const fn bits(self) -> u8 {
        match self {
            Family::V4 => 32,
            Family::V6 => 128,
        }
    }
}

impl fmt::Display for Family {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Family::V4 => "IPv4",
            Family::V6 => "IPv6",
        })
    }
}

/// A block that this node owns.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct OwnedBlock {
    /// The block's network.
    pub cidr: IpNet,
    /// The name of the pool that it was claimed from.
    pub pool: String,
    /// Whether new addresses may come from it: not while the fence is down, the block or its pool
    /// ends, or another block overlaps it. What it has given stays.
    pub hand_out: bool,
    /// When that permission ends by itself, on the clock of `now`: a process that stood still, or
    /// whose machine slept, must not hand out before anybody has told it that its time is over.
    pub until: Duration,
    /// Counts what was told about `hand_out`. [`BlockUsage`] repeats it, so that whoever closes a
    /// block knows when it is closed.
    pub revision: u64,
    /// Whether the running agent claimed it. Its addresses then count as free for long; those of a
    /// block found at a start count as just freed, since a pod may have ended a moment before.
    pub newly_claimed: bool,
}

/// What one block holds.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct BlockUsage {
    /// The block's network.
    pub cidr: IpNet,
    /// The name of its pool.
    pub pool: String,
    /// Whether it may hand out addresses.
    pub hand_out: bool,
    /// The [`OwnedBlock::revision`] that was heard last.
    pub revision: u64,
    /// Addresses in all.
    pub total: u128,
    /// Addresses that attachments hold.
    pub used: u64,
    /// Of the used ones those of the node's own devices.
    pub devices: u64,
    /// Addresses that can be handed out, cooling ones among them.
    pub free: u128,
    /// Addresses that are reserved and that nothing holds. Together with the used, the free and the
    /// foreign ones that no attachment holds they are all.
    pub reserved: u128,
    /// Reserved addresses that attachments hold, in order: they were given before.
    pub reserved_in_use: Vec<IpAddr>,
    /// Of the free ones those freed within the cooldown, as of the last assignment or release.
    pub cooling: u64,
    /// Addresses that the kernel holds for something else, in order.
    pub foreign: Vec<IpAddr>,
    /// Who holds which address, in the addresses' order.
    pub allocations: Vec<(IpAddr, AttachmentId)>,
}

impl BlockUsage {
    /// Whether no address of the block is in use on this node, by a pod or by anything else.
    pub fn is_vacant(&self) -> bool {
        self.used == 0 && self.foreign.is_empty()
    }

    /// Addresses that pods hold.
    pub fn pods(&self) -> u64 {
        self.used.saturating_sub(self.devices)
    }
}

/// The addresses of one node and who holds them.
///
/// `now` is any clock that never goes back; it orders what is freed and ends the cooldown.
#[derive(Clone, Debug)]
pub struct AddressBook {
    cooldown: Duration,
    clock: Duration,
    attachments: HashMap<AttachmentId, Vec<IpAddr>>,
    holders: HashMap<IpAddr, AttachmentId>,
    foreign: BTreeSet<IpAddr>,
    /// Addresses that more than one adopted attachment names.
    clashes: HashSet<IpAddr>,
    reserved: Reserved,
    blocks: BTreeMap<IpNet, Block>,
    /// By pool.
    queues: BTreeMap<String, Queue>,
    /// When the first permission to hand out ends.
    closes: Duration,
    /// Blocks that entered since the last time `now` was told.
    unstamped: Vec<IpNet>,
    refusals: [u64; 2],
    early_reuses: u64,
}

/// The blocks of one pool, which are of one family, that have a free address and may hand it out.
#[derive(Clone, Debug, Default)]
struct Queue {
    /// Blocks whose next address is not cooling.
    ready: BTreeSet<IpNet>,
    /// Blocks whose next address was freed at this time, less than the cooldown ago.
    cooling: BTreeSet<(Duration, IpNet)>,
}

impl AddressBook {
    /// An empty book. An address freed less than `cooldown` ago is handed out last.
    pub fn new(cooldown: Duration) -> AddressBook {
        AddressBook {
            cooldown,
            clock: Duration::ZERO,
            attachments: HashMap::new(),
            holders: HashMap::new(),
            foreign: BTreeSet::new(),
            clashes: HashSet::new(),
            reserved: Reserved::default(),
            blocks: BTreeMap::new(),
            queues: BTreeMap::new(),
            closes: Duration::MAX,
            unstamped: Vec::new(),
            refusals: [0; 2],
            early_reuses: 0,
        }
    }

    /// Replaces the blocks that this node owns. What attachments hold stays recorded, also in
    /// blocks that are gone. A block that overlaps one before it in the order of networks is left
    /// out.
    pub fn set_blocks(&mut self, blocks: Vec<OwnedBlock>) {
        let mut wanted: BTreeMap<IpNet, OwnedBlock> = BTreeMap::new();
        let mut sorted = blocks;
        sorted.sort_by_key(|block| block.cidr.trunc());
        for mut block in sorted {
            block.cidr = block.cidr.trunc();
            let overlaps = wanted
                .keys()
                .next_back()
                .is_some_and(|last| last.contains(&block.cidr) || block.cidr.contains(last));
            if !overlaps {
                wanted.insert(block.cidr, block);
            }
        }
        self.blocks.retain(|cidr, _| wanted.contains_key(cidr));
        self.unstamped.retain(|cidr| wanted.contains_key(cidr));
        for (cidr, owned) in wanted {
            if let Some(block) = self.blocks.get_mut(&cidr) {
                block.pool = owned.pool;
                block.hand_out = owned.hand_out;
                block.until = owned.until;
                block.revision = owned.revision;
                continue;
            }
            let mut block = Block::new(owned, self.clock);
            let taken: Vec<IpAddr> = self.taken_in(cidr).collect();
            for address in &taken {
                block.taken += 1;
                block.note_live(*address);
            }
            block.reserve(&self.reserved, taken.into_iter());
            self.blocks.insert(cidr, block);
            self.unstamped.push(cidr);
        }
        self.place_all();
    }

    /// Replaces what is reserved. What attachments hold stays theirs.
    pub fn set_reserved(&mut self, cidrs: Vec<IpNet>) {
        let reserved = Reserved::new(cidrs);
        let mut changed = Vec::new();
        for cidr in self.blocks.keys() {
            if !reserved.within(*cidr).eq(self.reserved.within(*cidr)) {
                changed.push((*cidr, self.taken_in(*cidr).collect::<Vec<IpAddr>>()));
            }
        }
        for (cidr, taken) in changed {
            if let Some(block) = self.blocks.get_mut(&cidr) {
                block.reserve(&reserved, taken.into_iter());
            }
        }
        self.reserved = reserved;
        self.place_all();
    }

    /// Records what the kernel says that an attachment holds, as after a start. Returns those of the
    /// addresses that another attachment holds too: such an address is free only when all of them
    /// have gone.
    pub fn adopt(&mut self, id: AttachmentId, addresses: Vec<IpAddr>) -> Vec<IpAddr> {
        let mut clashing = Vec::new();
        for address in addresses {
            let held = self.attachments.entry(id.clone()).or_default();
            if held.contains(&address) {
                continue;
            }
            held.push(address);
            match self.holders.get(&address) {
                Some(_) => {
                    self.clashes.insert(address);
                    clashing.push(address);
                }
                None => self.take(address, &id),
            }
        }
        clashing
    }

    /// Gives `id` what each of `requests` asks for, or nothing and the reason. Of requests for one
    /// family the first counts. An attachment that holds addresses of these families already gets
    /// the same ones again.
    ///
    /// # Errors
    /// [`AssignError`]; nothing has changed then.
    pub fn assign(
        &mut self,
        id: &AttachmentId,
        requests: &[AddressRequest],
        now: Duration,
    ) -> Result<Vec<IpAddr>, AssignError> {
        self.advance(now);
        if requests.is_empty() {
            return Err(AssignError::NoFamily);
        }
        if let Some(held) = self.attachments.get(id).filter(|held| !held.is_empty()) {
            return match requests.iter().find_map(|request| lacking(id, held, request)) {
                None => Ok(held.clone()),
                Some(error) => Err(error),
            };
        }
        let mut chosen: Vec<(IpAddr, Source)> = Vec::with_capacity(requests.len());
        for AddressRequest { family, choice } in requests {
            if chosen.iter().any(|(address, _)| Family::of(*address) == *family) {
                continue;
            }
            let found = match choice {
                Choice::Pools(pools) => {
                    self.next(pools, *family).ok_or_else(|| self.refusal(*family, pools))
                }
                Choice::Address(address) => self.fixed(*address),
            };
            match found {
                Ok(found) => chosen.push(found),
                Err(error) => {
                    if let Some(refusals) = self.refusals.get_mut(*family as usize) {
                        *refusals = refusals.saturating_add(1);
                    }
                    return Err(error);
                }
            }
        }
        let addresses: Vec<IpAddr> = chosen.iter().map(|(address, _)| *address).collect();
        for (address, source) in chosen {
            if let Source::Freed(at) = source
                && self.is_cooling(at)
            {
                self.early_reuses = self.early_reuses.saturating_add(1);
            }
            self.take(address, id);
        }
        self.attachments.insert(id.clone(), addresses.clone());
        Ok(addresses)
    }

    /// Records that the kernel holds `address` for something that is not in this book. It is not
    /// handed out until [`AddressBook::clear_foreign`]; an attachment that holds it keeps it.
    pub fn mark_foreign(&mut self, address: IpAddr) {
        if self.foreign.insert(address)
            && !self.holders.contains_key(&address)
            && let Some(cidr) = self.block_of(address)
        {
            if let Some(block) = self.blocks.get_mut(&cidr) {
                block.note_taken(address, self.reserved.contains(address));
            }
            self.place(cidr);
        }
    }

    /// Records that the kernel holds `address` for nothing else any more. It counts as just freed.
    pub fn clear_foreign(&mut self, address: IpAddr, now: Duration) {
        self.advance(now);
        if self.foreign.remove(&address) && !self.holders.contains_key(&address) {
            self.free(address);
        }
    }

    /// The addresses of blocks that the kernel holds for something else, in order.
    pub fn foreign(&self) -> impl Iterator<Item = IpAddr> {
        self.foreign.iter().copied().filter(|address| self.block_of(*address).is_some())
    }

    /// Frees what `id` holds, and returns it; nothing if it holds nothing.
    pub fn release(&mut self, id: &AttachmentId, now: Duration) -> Vec<IpAddr> {
        self.advance(now);
        let addresses = self.attachments.remove(id).unwrap_or_default();
        for address in &addresses {
            if self.clashes.contains(address) {
                let mut others = self.attachments.iter().filter(|(_, held)| held.contains(address));
                let heir = others.next().map(|(other, _)| other.clone());
                if others.next().is_none() {
                    self.clashes.remove(address);
                }
                if let Some(heir) = heir {
                    self.holders.insert(*address, heir);
                    continue;
                }
            }
            self.holders.remove(address);
            if !self.foreign.contains(address) {
                self.free(*address);
            }
        }
        addresses
    }

    /// What `id` holds.
    pub fn held(&self, id: &AttachmentId) -> &[IpAddr] {
        self.attachments.get(id).map_or(&[], Vec::as_slice)
    }

    /// The attachment that holds `address`.
    pub fn holder(&self, address: IpAddr) -> Option<&AttachmentId> {
        self.holders.get(&address)
    }

    /// Every attachment with what it holds, in no order.
    pub fn attachments(&self) -> impl Iterator<Item = (&AttachmentId, &[IpAddr])> {
        self.attachments.iter().map(|(id, held)| (id, held.as_slice()))
    }

    /// What each block holds, in the blocks' order.
    pub fn usage(&self) -> Vec<BlockUsage> {
        let mut usage: Vec<BlockUsage> = self
            .blocks
            .iter()
            .map(|(cidr, block)| BlockUsage {
                cidr: *cidr,
                pool: block.pool.clone(),
                hand_out: block.hand_out,
                revision: block.revision,
                total: block.size,
                used: 0,
                devices: 0,
                free: block.size.saturating_sub(block.reserved).saturating_sub(block.taken.into()),
                reserved: block.reserved,
                reserved_in_use: Vec::new(),
                cooling: block.count_freed(|at| self.is_cooling(at)),
                foreign: self.foreign.iter().filter(|a| cidr.contains(*a)).copied().collect(),
                allocations: Vec::new(),
            })
            .collect();
        for (address, id) in &self.holders {
            let place = usage.partition_point(|block| block.cidr.network() <= *address);
            let block = place.checked_sub(1).and_then(|i| usage.get_mut(i));
            if let Some(block) = block.filter(|block| block.cidr.contains(address)) {
                block.used += 1;
                block.devices += u64::from(id.device().is_some());
                block.allocations.push((*address, id.clone()));
                if self.reserved.contains(*address) {
                    block.reserved_in_use.push(*address);
                }
            }
        }
        for block in &mut usage {
            block.allocations.sort_unstable_by_key(|(address, _)| *address);
            block.reserved_in_use.sort_unstable();
        }
        usage
    }

    /// The addresses that attachments hold outside of every block, in order, each with its holder: no
    /// block that this node is known to own keeps another node from giving them to its pods.
    pub fn outside(&self) -> Vec<(IpAddr, AttachmentId)> {
        let held = self.holders.iter().filter(|(address, _)| self.block_of(**address).is_none());
        let mut outside: Vec<(IpAddr, AttachmentId)> =
            held.map(|(address, id)| (*address, id.clone())).collect();
        outside.sort_unstable_by_key(|(address, _)| *address);
        outside
    }

    /// How often since the start no address of `family` could be assigned. A rise asks for a block.
    pub fn refusals(&self, family: Family) -> u64 {
        self.refusals.get(family as usize).copied().unwrap_or_default()
    }

    /// How often since the start an address was given again within the cooldown.
    pub fn early_reuses(&self) -> u64 {
        self.early_reuses
    }

    /// Addresses that more than one adopted attachment names, in order.
    pub fn clashes(&self) -> Vec<IpAddr> {
        let mut clashes: Vec<IpAddr> = self.clashes.iter().copied().collect();
        clashes.sort_unstable();
        clashes
    }

    fn is_cooling(&self, freed: Duration) -> bool {
        freed.saturating_add(self.cooldown) > self.clock
    }

    /// The addresses in `cidr` that an attachment or something else holds, each once.
    fn taken_in(&self, cidr: IpNet) -> impl Iterator<Item = IpAddr> {
        let foreign = self.foreign.range(cidr.network()..=cidr.broadcast());
        let foreign = foreign.filter(|address| !self.holders.contains_key(address));
        let held = self.holders.keys().filter(move |address| cidr.contains(*address));
        held.chain(foreign).copied()
    }

    fn block_of(&self, address: IpAddr) -> Option<IpNet> {
        let host = IpNet::from(address);
        let cidr = self.blocks.range(..=host).next_back().map(|(cidr, _)| *cidr);
        cidr.filter(|cidr| cidr.contains(&address))
    }

    /// Closes blocks whose permission has ended.
    fn close_expired(&mut self) {
        let mut closed = Vec::new();
        self.closes = Duration::MAX;
        for (cidr, block) in self.blocks.iter_mut().filter(|(_, block)| block.hand_out) {
            if block.until <= self.clock {
                block.hand_out = false;
                closed.push(*cidr);
            } else {
                self.closes = self.closes.min(block.until);
            }
        }
        for cidr in closed {
            self.place(cidr);
        }
    }

    /// Moves the clock on, closes blocks whose time is over, stamps new ones, and makes blocks ready
    /// whose next address is cold.
    fn advance(&mut self, now: Duration) {
        self.clock = self.clock.max(now);
        if self.clock >= self.closes {
            self.close_expired();
        }
        for cidr in std::mem::take(&mut self.unstamped) {
            if let Some(block) = self.blocks.get_mut(&cidr) {
                block.since = self.clock;
            }
            self.place(cidr);
        }
        let mut cold = Vec::new();
        for queue in self.queues.values() {
            let due = queue.cooling.iter().take_while(|(at, _)| !self.is_cooling(*at));
            cold.extend(due.map(|(_, cidr)| *cidr));
        }
        for cidr in cold {
            self.place(cidr);
        }
    }

    /// Puts every block where it belongs, after any of them changed.
    fn place_all(&mut self) {
        self.queues.clear();
        for block in self.blocks.values_mut() {
            block.place = None;
        }
        self.close_expired();
        let all: Vec<IpNet> = self.blocks.keys().copied().collect();
        for cidr in all {
            self.place(cidr);
        }
    }

    /// Puts a block into the queue where its next address belongs.
    fn place(&mut self, cidr: IpNet) {
        let cooldown = self.cooldown;
        let clock = self.clock;
        let Some(block) = self.blocks.get_mut(&cidr) else { return };
        let old = block.place;
        let next = if block.hand_out {
            let (holders, foreign) = (&self.holders, &self.foreign);
            block.next(|a| holders.contains_key(&a) || foreign.contains(&a), &self.reserved)
        } else {
            None
        };
        let new = next.map(|(_, source)| {
            let since = match source {
                Source::Freed(at) => at,
                Source::Cursor if block.newly_claimed => return Place::Ready,
                Source::Cursor => block.since,
            };
            if since.saturating_add(cooldown) > clock {
                Place::Cooling(since)
            } else {
                Place::Ready
            }
        });
        if old == new {
            return;
        }
        block.place = new;
        let queue = self.queues.entry(block.pool.clone()).or_default();
        match old {
            Some(Place::Ready) => {
                queue.ready.remove(&cidr);
            }
            Some(Place::Cooling(at)) => {
                queue.cooling.remove(&(at, cidr));
            }
            None => {}
        }
        match new {
            Some(Place::Ready) => {
                queue.ready.insert(cidr);
            }
            Some(Place::Cooling(at)) => {
                queue.cooling.insert((at, cidr));
            }
            None => {}
        }
    }

    /// The address that comes next. It stays where it is until [`AddressBook::take`].
    fn next(&mut self, pools: &[String], family: Family) -> Option<(IpAddr, Source)> {
        let queues = || pools.iter().filter_map(|pool| self.queues.get(pool));
        let of_family = |cidr: &&IpNet| Family::of_net(**cidr) == family;
        let ready = queues().find_map(|queue| queue.ready.iter().find(of_family));
        let cooling = || {
            let first =
                |queue: &Queue| queue.cooling.iter().find(|(_, cidr)| of_family(&cidr)).copied();
            queues().filter_map(first).min_by_key(|(at, _)| *at).map(|(_, cidr)| cidr)
        };
        let cidr = ready.copied().or_else(cooling)?;
        let (holders, foreign) = (&self.holders, &self.foreign);
        let block = self.blocks.get_mut(&cidr)?;
        block.next(|a| holders.contains_key(&a) || foreign.contains(&a), &self.reserved)
    }

    /// The address that somebody asks for by itself. Whether it is cooling does not matter.
    fn fixed(&self, address: IpAddr) -> Result<(IpAddr, Source), AssignError> {
        let own = self.block_of(address).and_then(|cidr| Some((cidr, self.blocks.get(&cidr)?)));
        let (cidr, block) = own.ok_or(AssignError::NotOurs { address })?;
        if self.reserved.contains(address) {
            return Err(AssignError::Reserved { address });
        }
        if let Some(id) = self.holders.get(&address) {
            return Err(AssignError::HeldBy { address, id: id.clone() });
        }
        if self.foreign.contains(&address) {
            return Err(AssignError::HeldByOthers { address });
        }
        if !block.hand_out {
            return Err(AssignError::BlockClosed { address, block: cidr });
        }
        let source = block.freed_at(address).map_or(Source::Cursor, Source::Freed);
        Ok((address, source))
    }

    fn take(&mut self, address: IpAddr, id: &AttachmentId) {
        self.holders.insert(address, id.clone());
        let Some(cidr) = self.block_of(address) else { return };
        if !self.foreign.contains(&address)
            && let Some(block) = self.blocks.get_mut(&cidr)
        {
            block.note_taken(address, self.reserved.contains(address));
        }
        self.place(cidr);
    }

    /// Puts an address that nothing holds any more at the end of its block's queue.
    fn free(&mut self, address: IpAddr) {
        let Some(cidr) = self.block_of(address) else { return };
        if let Some(block) = self.blocks.get_mut(&cidr) {
            block.note_freed(address, self.clock, self.reserved.contains(address));
        }
        self.place(cidr);
    }

    fn refusal(&self, family: Family, pools: &[String]) -> AssignError {
        let asked = |cidr: &IpNet, block: &Block| {
            Family::of_net(*cidr) == family && pools.contains(&block.pool)
        };
        let blocks = || self.blocks.iter().filter(|(cidr, block)| asked(cidr, block));
        let pools = pools.to_vec();
        let total = blocks().count();
        let open = blocks().filter(|(_, block)| block.hand_out).count();
        match (total, open) {
            (0, _) => AssignError::NoBlock { family, pools },
            (_, 0) => AssignError::Closed { family, pools, blocks: total },
            _ => {
                let open_blocks = || blocks().filter(|(_, block)| block.hand_out);
                let sum = |of: fn(&Block) -> u128| {
                    open_blocks().fold(0u128, |sum, (_, block)| sum.saturating_add(of(block)))
                };
                let foreign = self.foreign.iter();
                AssignError::Full {
                    family,
                    pools,
                    open,
                    closed: total - open,
                    addresses: sum(|block| block.size),
                    foreign: foreign
                        .filter(|a| open_blocks().any(|(cidr, _)| cidr.contains(*a)))
                        .count(),
                    reserved: sum(|block| block.reserved),
                }
            }
        }
    }
}

/// What an attachment that holds addresses lacks of `request`.
fn lacking(id: &AttachmentId, held: &[IpAddr], request: &AddressRequest) -> Option<AssignError> {
    let id = || id.clone();
    match &request.choice {
        _ if !held.iter().any(|address| Family::of(*address) == request.family) => {
            Some(AssignError::HeldWithout { id: id(), family: request.family })
        }
        Choice::Address(address) if !held.contains(address) => {
            Some(AssignError::HoldsOther { id: id(), address: *address })
        }
        _ => None,
    }
}

/// The bits of an address as a number, an IPv4 one in the lowest 32.
fn bits_of(address: IpAddr) -> u128 {
    match address {
        IpAddr::V4(address) => u32::from(address).into(),
        IpAddr::V6(address) => address.into(),
    }
}
