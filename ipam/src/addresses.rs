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
//! Memory follows the addresses in use, not the size of the blocks: addresses that were never handed
//! out are a cursor.

use std::collections::{BTreeMap, BTreeSet, HashMap, HashSet, VecDeque};
use std::fmt;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::time::Duration;

use ipnet::IpNet;
use thiserror::Error;

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
    /// Addresses that can be handed out, cooling ones among them.
    pub free: u128,
    /// Of the free ones those freed within the cooldown, as of the last assignment or release.
    pub cooling: u64,
    /// Addresses that the kernel holds for something else, in order.
    pub foreign: Vec<IpAddr>,
    /// Who holds which address, in the addresses' order.
    pub allocations: Vec<(IpAddr, AttachmentId)>,
}

/// Why no address was assigned. Nothing has changed then.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
pub enum AssignError {
    /// The request names no address family.
    #[error("the request names no address family")]
    NoFamily,
    /// This node owns no block of the family.
    #[error(
        "no {family} address: this node owns no {family} block (is there a ready {family} IPPool \
         that selects this node and has a free block?)"
    )]
    NoBlock {
        /// The family that could not be served.
        family: Family,
    },
    /// This node owns blocks of the family, but none of them may hand out addresses.
    #[error(
        "no {family} address: none of this node's {blocks} {family} block(s) may hand out new \
         addresses (the agent's problems say why)"
    )]
    Closed {
        /// The family that could not be served.
        family: Family,
        /// Blocks of the family.
        blocks: usize,
    },
    /// Every address of every block that may hand out is taken.
    #[error(
        "no {family} address: all {addresses} addresses of {open} {family} block(s) are in use \
         ({foreign} of them by others than pods); {closed} more block(s) may not hand out"
    )]
    Full {
        /// The family that could not be served.
        family: Family,
        /// Blocks of the family that may hand out.
        open: usize,
        /// Blocks of the family that may not.
        closed: usize,
        /// Addresses in the blocks that may hand out.
        addresses: u128,
        /// Addresses in them that the kernel holds for something else.
        foreign: usize,
    },
    /// The attachment holds addresses already, but not of every family that it asks for now.
    #[error("{id} holds addresses already but no {family} one: delete the attachment first")]
    HeldWithout {
        /// The attachment.
        id: AttachmentId,
        /// The family that it lacks.
        family: Family,
    },
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
    blocks: BTreeMap<IpNet, Block>,
    queues: [Queue; 2],
    /// When the first permission to hand out ends.
    closes: Duration,
    /// Blocks that entered since the last time `now` was told.
    unstamped: Vec<IpNet>,
    refusals: [u64; 2],
    early_reuses: u64,
}

/// The blocks of one family that have a free address and may hand it out.
#[derive(Clone, Debug, Default)]
struct Queue {
    /// Blocks whose next address is not cooling.
    ready: BTreeSet<IpNet>,
    /// Blocks whose next address was freed at this time, less than the cooldown ago.
    cooling: BTreeSet<(Duration, IpNet)>,
}

#[derive(Clone, Debug)]
struct Block {
    pool: String,
    hand_out: bool,
    until: Duration,
    revision: u64,
    newly_claimed: bool,
    family: Family,
    base: u128,
    size: u128,
    /// When the block entered the book.
    since: Duration,
    /// The first address, as an offset, that the cursor visited.
    start: u128,
    /// Addresses that the cursor has passed, counted from `start` and round the end.
    passed: u128,
    /// Freed addresses in order. An entry counts only while `freed_at` agrees with it.
    freed: VecDeque<(Duration, u128)>,
    freed_at: HashMap<u128, Duration>,
    taken: u64,
    place: Option<Place>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Place {
    Ready,
    Cooling(Duration),
}

/// The next address of a block.
#[derive(Clone, Copy, Debug)]
struct Next {
    offset: u128,
    source: Source,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Source {
    /// The cursor; the address counts as free since the block entered.
    Cursor,
    /// The queue of freed addresses.
    Freed(Duration),
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
            blocks: BTreeMap::new(),
            queues: [Queue::default(), Queue::default()],
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
            let foreign = self.foreign.iter().filter(|address| !self.holders.contains_key(address));
            for address in self.holders.keys().chain(foreign).filter(|a| cidr.contains(*a)) {
                block.taken += 1;
                block.note_live(*address);
            }
            self.blocks.insert(cidr, block);
            self.unstamped.push(cidr);
        }
        self.queues = [Queue::default(), Queue::default()];
        for block in self.blocks.values_mut() {
            block.place = None;
        }
        self.close_expired();
        let all: Vec<IpNet> = self.blocks.keys().copied().collect();
        for cidr in all {
            self.place(cidr);
        }
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

    /// Gives `id` one address of each of `families`, or none and the reason. An attachment that
    /// holds addresses of these families already gets the same ones again.
    pub fn assign(
        &mut self,
        id: &AttachmentId,
        families: &[Family],
        now: Duration,
    ) -> Result<Vec<IpAddr>, AssignError> {
        self.advance(now);
        if families.is_empty() {
            return Err(AssignError::NoFamily);
        }
        if let Some(held) = self.attachments.get(id).filter(|held| !held.is_empty()) {
            let lacking = families.iter().find(|f| !held.iter().any(|a| Family::of(*a) == **f));
            return match lacking {
                None => Ok(held.clone()),
                Some(family) => Err(AssignError::HeldWithout { id: id.clone(), family: *family }),
            };
        }
        let mut chosen: Vec<(IpAddr, Source)> = Vec::with_capacity(families.len());
        for family in families {
            if chosen.iter().any(|(address, _)| Family::of(*address) == *family) {
                continue;
            }
            match self.next(*family) {
                Some(next) => chosen.push(next),
                None => {
                    if let Some(refusals) = self.refusals.get_mut(*family as usize) {
                        *refusals = refusals.saturating_add(1);
                    }
                    return Err(self.refusal(*family));
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
                block.note_taken(address);
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
                free: block.size.saturating_sub(block.taken.into()),
                cooling: self.cooling_in(block),
                foreign: self.foreign.iter().filter(|a| cidr.contains(*a)).copied().collect(),
                allocations: Vec::new(),
            })
            .collect();
        for (address, id) in &self.holders {
            let place = usage.partition_point(|block| block.cidr.network() <= *address);
            let block = place.checked_sub(1).and_then(|i| usage.get_mut(i));
            if let Some(block) = block.filter(|block| block.cidr.contains(address)) {
                block.used += 1;
                block.allocations.push((*address, id.clone()));
            }
        }
        for block in &mut usage {
            block.allocations.sort_unstable_by_key(|(address, _)| *address);
        }
        usage
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

    fn cooling_in(&self, block: &Block) -> u64 {
        // The queue is in the order of time, so those still cooling are at its end.
        let cooling = block.freed.iter().rev().take_while(|(at, _)| self.is_cooling(*at));
        cooling.filter(|(at, offset)| block.freed_at.get(offset) == Some(at)).count() as u64
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
        for family in [Family::V4, Family::V6] {
            while let Some((at, cidr)) = self.queue(family).cooling.first().copied()
                && !self.is_cooling(at)
            {
                self.place(cidr);
            }
        }
    }

    fn queue(&mut self, family: Family) -> &mut Queue {
        let [v4, v6] = &mut self.queues;
        match family {
            Family::V4 => v4,
            Family::V6 => v6,
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
            block.next(|a| holders.contains_key(&a) || foreign.contains(&a))
        } else {
            None
        };
        let new = next.map(|next| {
            let since = match next.source {
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
        let queue = self.queue(Family::of_net(cidr));
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
    fn next(&mut self, family: Family) -> Option<(IpAddr, Source)> {
        let queue = self.queue(family);
        let cooling = || queue.cooling.first().map(|(_, cidr)| cidr);
        let cidr = queue.ready.first().or_else(cooling).copied()?;
        let (holders, foreign) = (&self.holders, &self.foreign);
        let block = self.blocks.get_mut(&cidr)?;
        let next = block.next(|a| holders.contains_key(&a) || foreign.contains(&a))?;
        Some((block.address(next.offset), next.source))
    }

    fn take(&mut self, address: IpAddr, id: &AttachmentId) {
        self.holders.insert(address, id.clone());
        let Some(cidr) = self.block_of(address) else { return };
        if !self.foreign.contains(&address)
            && let Some(block) = self.blocks.get_mut(&cidr)
        {
            block.note_taken(address);
        }
        self.place(cidr);
    }

    /// Puts an address that nothing holds any more at the end of its block's queue.
    fn free(&mut self, address: IpAddr) {
        let Some(cidr) = self.block_of(address) else { return };
        if let Some(block) = self.blocks.get_mut(&cidr) {
            block.note_freed(address, self.clock);
        }
        self.place(cidr);
    }

    fn refusal(&self, family: Family) -> AssignError {
        let blocks = || self.blocks.iter().filter(|(cidr, _)| Family::of_net(**cidr) == family);
        let total = blocks().count();
        let open = blocks().filter(|(_, block)| block.hand_out).count();
        match (total, open) {
            (0, _) => AssignError::NoBlock { family },
            (_, 0) => AssignError::Closed { family, blocks: total },
            _ => {
                let open_blocks = || blocks().filter(|(_, block)| block.hand_out);
                let foreign = self.foreign.iter();
                AssignError::Full {
                    family,
                    open,
                    closed: total - open,
                    addresses: open_blocks()
                        .fold(0u128, |sum, (_, block)| sum.saturating_add(block.size)),
                    foreign: foreign
                        .filter(|a| open_blocks().any(|(cidr, _)| cidr.contains(*a)))
                        .count(),
                }
            }
        }
    }
}

impl Block {
    fn new(owned: OwnedBlock, since: Duration) -> Block {
        let host_bits = u32::from(owned.cidr.max_prefix_len() - owned.cidr.prefix_len());
        Block {
            pool: owned.pool,
            hand_out: owned.hand_out,
            until: owned.until,
            revision: owned.revision,
            newly_claimed: owned.newly_claimed,
            family: Family::of_net(owned.cidr),
            base: bits_of(owned.cidr.network()),
            // All 2^128 addresses do not fit; one less is as good as all.
            size: 1u128.checked_shl(host_bits).unwrap_or(u128::MAX),
            since,
            start: 0,
            passed: 0,
            freed: VecDeque::new(),
            freed_at: HashMap::new(),
            taken: 0,
            place: None,
        }
    }

    fn offset(&self, address: IpAddr) -> u128 {
        bits_of(address).wrapping_sub(self.base)
    }

    fn address(&self, offset: u128) -> IpAddr {
        let bits = self.base.wrapping_add(offset);
        match self.family {
            // The base of an IPv4 block plus an offset inside it fits 32 bits.
            Family::V4 => Ipv4Addr::from(bits as u32).into(),
            Family::V6 => Ipv6Addr::from(bits).into(),
        }
    }

    /// Lets the cursor start behind an address that is live when the block enters: the addresses
    /// before it are more likely to have been in use a moment ago.
    fn note_live(&mut self, address: IpAddr) {
        let offset = self.offset(address);
        if self.passed == 0 && offset >= self.start && offset < self.size {
            self.start = (offset + 1) % self.size;
        }
    }

    fn note_taken(&mut self, address: IpAddr) {
        self.taken = self.taken.saturating_add(1);
        self.freed_at.remove(&self.offset(address));
    }

    fn note_freed(&mut self, address: IpAddr, now: Duration) {
        self.taken = self.taken.saturating_sub(1);
        let offset = self.offset(address);
        self.freed_at.insert(offset, now);
        self.freed.push_back((now, offset));
    }

    /// The next free address, which the caller may take or leave. Entries that no longer hold are
    /// dropped on the way, each once, so that the work is constant on average.
    fn next(&mut self, is_taken: impl Fn(IpAddr) -> bool) -> Option<Next> {
        while let Some((at, offset)) = self.freed.front().copied() {
            if self.freed_at.get(&offset) == Some(&at) {
                break;
            }
            self.freed.pop_front();
        }
        let freed = self
            .freed
            .front()
            .map(|(at, offset)| Next { offset: *offset, source: Source::Freed(*at) });
        if self.freed_at.len() >= FREED_ADDRESSES_MAX {
            return freed;
        }
        while self.passed < self.size {
            let to_end = self.size - self.start;
            let offset = match self.passed.checked_sub(to_end) {
                Some(wrapped) => wrapped,
                None => self.start + self.passed,
            };
            if !self.freed_at.contains_key(&offset) && !is_taken(self.address(offset)) {
                return Some(Next { offset, source: Source::Cursor });
            }
            self.passed += 1;
        }
        freed
    }
}

/// The bits of an address as a number, an IPv4 one in the lowest 32.
fn bits_of(address: IpAddr) -> u128 {
    match address {
        IpAddr::V4(address) => u32::from(address).into(),
        IpAddr::V6(address) => address.into(),
    }
}
