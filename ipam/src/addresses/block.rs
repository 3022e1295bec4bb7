//! The addresses of one block: which comes next.

use std::collections::{HashMap, VecDeque};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::time::Duration;

use ipnet::IpNet;

use super::reserved::Reserved;
use super::{FREED_ADDRESSES_MAX, Family, OwnedBlock, bits_of};

#[derive(Clone, Debug)]
pub(super) struct Block {
    pub(super) pool: String,
    pub(super) hand_out: bool,
    pub(super) until: Duration,
    pub(super) revision: u64,
    pub(super) newly_claimed: bool,
    pub(super) size: u128,
    /// When the block entered the book.
    pub(super) since: Duration,
    /// Addresses that are reserved and that nothing holds.
    pub(super) reserved: u128,
    /// Addresses that something holds.
    pub(super) taken: u64,
    pub(super) place: Option<Place>,
    cidr: IpNet,
    base: u128,
    /// The first address, as an offset, that the cursor visits.
    start: u128,
    /// Addresses that the cursor has passed, counted from `start` and round the end.
    passed: u128,
    /// Freed addresses in order. An entry counts only while `freed_at` agrees with it.
    freed: VecDeque<Freed>,
    freed_at: HashMap<u128, Freed>,
    /// Addresses that were freed while they are reserved.
    shelved: Vec<Freed>,
    /// Numbers what is freed.
    count: u64,
}

/// An address, as an offset, and when it was freed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
struct Freed {
    number: u64,
    at: Duration,
    offset: u128,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Place {
    Ready,
    Cooling(Duration),
}

/// Since when an address is free.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Source {
    /// The cursor; the address counts as free since the block entered.
    Cursor,
    /// The queue of freed addresses.
    Freed(Duration),
}

impl Block {
    pub(super) fn new(owned: OwnedBlock, since: Duration) -> Block {
        let host_bits = u32::from(owned.cidr.max_prefix_len() - owned.cidr.prefix_len());
        Block {
            pool: owned.pool,
            hand_out: owned.hand_out,
            until: owned.until,
            revision: owned.revision,
            newly_claimed: owned.newly_claimed,
            // All 2^128 addresses do not fit; one less is as good as all.
            size: 1u128.checked_shl(host_bits).unwrap_or(u128::MAX),
            since,
            reserved: 0,
            taken: 0,
            place: None,
            cidr: owned.cidr,
            base: bits_of(owned.cidr.network()),
            start: 0,
            passed: 0,
            freed: VecDeque::new(),
            freed_at: HashMap::new(),
            shelved: Vec::new(),
            count: 0,
        }
    }

    /// Lets the cursor start behind an address that is live when the block enters: the addresses
    /// before it are more likely to have been in use a moment ago.
    pub(super) fn note_live(&mut self, address: IpAddr) {
        let offset = self.offset(address);
        if self.passed == 0 && offset >= self.start && offset < self.size {
            self.start = (offset + 1) % self.size;
        }
    }

    /// Something holds `address` from now on.
    pub(super) fn note_taken(&mut self, address: IpAddr, is_reserved: bool) {
        self.taken = self.taken.saturating_add(1);
        let offset = self.offset(address);
        if is_reserved {
            self.reserved = self.reserved.saturating_sub(1);
            self.shelved.retain(|freed| freed.offset != offset);
        }
        self.freed_at.remove(&offset);
        // Addresses that are taken out of turn leave entries in the queue.
        if self.freed.len() > 2 * self.freed_at.len() + STALE_ENTRIES_MAX {
            let valid = &self.freed_at;
            self.freed.retain(|freed| valid.get(&freed.offset) == Some(freed));
        }
    }

    /// Nothing holds `address` any more.
    pub(super) fn note_freed(&mut self, address: IpAddr, now: Duration, is_reserved: bool) {
        self.taken = self.taken.saturating_sub(1);
        self.count += 1;
        let freed = Freed { number: self.count, at: now, offset: self.offset(address) };
        if is_reserved {
            self.reserved = self.reserved.saturating_add(1);
            self.shelved.push(freed);
        } else {
            self.freed_at.insert(freed.offset, freed);
            self.freed.push_back(freed);
        }
    }

    /// Takes in what is reserved now. `taken` are the addresses of the block that something holds.
    pub(super) fn reserve(&mut self, reserved: &Reserved, taken: impl Iterator<Item = IpAddr>) {
        let held = taken.filter(|address| reserved.contains(*address)).count() as u128;
        self.reserved = reserved.count_in(self.cidr).saturating_sub(held);
        let mut all: Vec<Freed> = self.freed_at.drain().map(|(_, freed)| freed).collect();
        all.append(&mut self.shelved);
        all.sort_unstable();
        let (shelved, freed): (Vec<Freed>, Vec<Freed>) =
            all.into_iter().partition(|freed| reserved.contains(self.address(freed.offset)));
        self.shelved = shelved;
        self.freed_at = freed.iter().map(|freed| (freed.offset, *freed)).collect();
        self.freed = freed.into();
        // What the cursor passed because it was reserved comes up once more.
        self.start = self.position();
        self.passed = 0;
    }

    /// When `address` was freed, if it waits in the queue.
    pub(super) fn freed_at(&self, address: IpAddr) -> Option<Duration> {
        self.freed_at.get(&self.offset(address)).map(|freed| freed.at)
    }

    /// How many addresses that are free were freed at a time of which `is_cooling` says so. Those
    /// are the newest.
    pub(super) fn count_freed(&self, is_cooling: impl Fn(Duration) -> bool) -> u64 {
        let newest = self.freed.iter().rev().take_while(|freed| is_cooling(freed.at));
        newest.filter(|freed| self.freed_at.get(&freed.offset) == Some(freed)).count() as u64
    }

    /// The next free address, which the caller may take or leave. Entries that no longer hold are
    /// dropped on the way, each once, so that the work is constant on average; a reserved range is
    /// passed in one step.
    pub(super) fn next(
        &mut self,
        is_taken: impl Fn(IpAddr) -> bool,
        reserved: &Reserved,
    ) -> Option<(IpAddr, Source)> {
        while let Some(freed) = self.freed.front() {
            if self.freed_at.get(&freed.offset) == Some(freed) {
                break;
            }
            self.freed.pop_front();
        }
        let front = self.freed.front();
        let freed = front.map(|freed| (self.address(freed.offset), Source::Freed(freed.at)));
        if self.freed_at.len() >= FREED_ADDRESSES_MAX {
            return freed;
        }
        while self.passed < self.size {
            let offset = self.position();
            let address = self.address(offset);
            if let Some(end) = reserved.end_of(address) {
                let rest = self.size - offset;
                let length = bits_of(end).wrapping_sub(bits_of(address)).saturating_add(1);
                self.passed = self.passed.saturating_add(length.min(rest));
            } else if self.freed_at.contains_key(&offset) || is_taken(address) {
                self.passed += 1;
            } else {
                return Some((address, Source::Cursor));
            }
        }
        freed
    }

    /// Where the cursor stands.
    fn position(&self) -> u128 {
        match self.passed.min(self.size).checked_sub(self.size - self.start) {
            Some(wrapped) => wrapped,
            None => self.start + self.passed,
        }
    }

    fn offset(&self, address: IpAddr) -> u128 {
        bits_of(address).wrapping_sub(self.base)
    }

    fn address(&self, offset: u128) -> IpAddr {
        let bits = self.base.wrapping_add(offset);
        match Family::of_net(self.cidr) {
            // The base of an IPv4 block plus an offset inside it fits 32 bits.
            Family::V4 => Ipv4Addr::from(bits as u32).into(),
            Family::V6 => Ipv6Addr::from(bits).into(),
        }
    }
}

/// Entries of the queue that no longer hold and are not worth a sweep.
const STALE_ENTRIES_MAX: usize = 64;
