//! The routes of a reconciler: one slot each, found by key or by number.
//!
//! ```text
//!  key ──hash──► index ──► number ──► slot: address, length, scope, what is wanted and present
//!                                      ▲
//!  queue, writes under way ────────────┘
//! ```
//!
//! Numbers follow the order in which routes came, so that writing in that order walks through memory;
//! only finding a number by its key costs a cache miss. A slot has 20 bytes for IPv4 and 32 for IPv6, and
//! the index 9 bytes for each place in it, at least seven sixteenths of which are in use.

use std::collections::BTreeMap;
use std::hash::{BuildHasher, Hasher};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use foldhash::fast::RandomState;
use hashbrown::HashTable;
use ipnet::IpNet;

use crate::paths::PathId;
use crate::route::RouteKey;

/// The number of a route while it is known.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct RouteId(u32);

/// What is known of one route.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Entry {
    pub(crate) wanted: Option<PathId>,
    pub(crate) present: Option<PathId>,
    flags: u8,
    /// The length of the prefix. It belongs to the key, and here is room for it.
    len: u8,
}

/// One fact about a route.
#[derive(Clone, Copy, Debug)]
#[repr(u8)]
pub(crate) enum Flag {
    /// It is in the queue.
    Queued = 1,
    /// A write of it is under way.
    InFlight = 2,
    /// Somebody else has a route under its key.
    Foreign = 4,
    /// It was wanted in this life and is not any more: its removal was asked for and waits for no other
    /// input.
    Withdrawn = 8,
    /// The dump that is being read has shown it.
    Seen = 16,
    /// The slot holds no route.
    Vacant = 32,
}

impl Entry {
    pub(crate) fn is(&self, flag: Flag) -> bool {
        self.flags & flag as u8 != 0
    }

    pub(crate) fn put(&mut self, flag: Flag, on: bool) {
        let bit = flag as u8;
        self.flags = if on { self.flags | bit } else { self.flags & !bit };
    }

    /// Sets a flag; whether it was not set.
    pub(crate) fn raise(&mut self, flag: Flag) -> bool {
        let was = self.is(flag);
        self.put(flag, true);
        !was
    }
}

/// Routes of both families, of whatever tables and metrics.
#[derive(Debug, Default)]
pub(crate) struct Entries {
    v4: Store<u32>,
    v6: Store<[u32; 4]>,
    /// Tables and metrics, by the numbers that stand for them in slots. There are few.
    scopes: Vec<(u32, u32)>,
    scope_numbers: BTreeMap<(u32, u32), u32>,
}

impl Entries {
    /// The number of the route with this key, which is normalized, if it is known.
    pub(crate) fn find(&self, key: &RouteKey) -> Option<RouteId> {
        let scope = *self.scope_numbers.get(&(key.table, key.metric))?;
        let len = key.prefix.prefix_len();
        match key.prefix.network() {
            IpAddr::V4(address) => self.v4.find(address.to_bits(), scope, len).map(RouteId),
            IpAddr::V6(address) => self.v6.find(words(address), scope, len).map(RouteId::v6),
        }
    }

    /// As [`Entries::find`]. One that asks for routes in the order in which they came, as after a dump or
    /// for a change of all, causes no look at the index.
    pub(crate) fn find_next(&mut self, key: &RouteKey) -> Option<RouteId> {
        let scope = *self.scope_numbers.get(&(key.table, key.metric))?;
        let len = key.prefix.prefix_len();
        match key.prefix.network() {
            IpAddr::V4(address) => self.v4.find_next(address.to_bits(), scope, len).map(RouteId),
            IpAddr::V6(address) => self.v6.find_next(words(address), scope, len).map(RouteId::v6),
        }
    }

    /// As [`Entries::find_next`], for a route that becomes known by this if it is not.
    pub(crate) fn find_or_add(&mut self, key: &RouteKey) -> RouteId {
        let len = key.prefix.prefix_len();
        let scopes = &mut self.scopes;
        let scope =
            *self.scope_numbers.entry((key.table, key.metric)).or_insert_with_key(|scope| {
                scopes.push(*scope);
                (scopes.len() - 1) as u32
            });
        match key.prefix.network() {
            IpAddr::V4(address) => RouteId(self.v4.find_or_add(address.to_bits(), scope, len)),
            IpAddr::V6(address) => RouteId::v6(self.v6.find_or_add(words(address), scope, len)),
        }
    }

    /// Forgets a route.
    pub(crate) fn remove(&mut self, id: RouteId) {
        match id.place() {
            Place::V4(number) => self.v4.remove(number),
            Place::V6(number) => self.v6.remove(number),
        }
    }

    pub(crate) fn get(&self, id: RouteId) -> Option<&Entry> {
        match id.place() {
            Place::V4(number) => self.v4.slots.get(number).map(|slot| &slot.entry),
            Place::V6(number) => self.v6.slots.get(number).map(|slot| &slot.entry),
        }
    }

    pub(crate) fn get_mut(&mut self, id: RouteId) -> Option<&mut Entry> {
        match id.place() {
            Place::V4(number) => self.v4.slots.get_mut(number).map(|slot| &mut slot.entry),
            Place::V6(number) => self.v6.slots.get_mut(number).map(|slot| &mut slot.entry),
        }
    }

    /// The key of a route that is known.
    pub(crate) fn key(&self, id: RouteId) -> Option<RouteKey> {
        let (address, scope, len) = match id.place() {
            Place::V4(number) => {
                let slot = self.v4.slots.get(number)?;
                (Ipv4Addr::from_bits(slot.address).into(), slot.scope, slot.entry.len)
            }
            Place::V6(number) => {
                let slot = self.v6.slots.get(number)?;
                (address(slot.address).into(), slot.scope, slot.entry.len)
            }
        };
        let (table, metric) = *self.scopes.get(scope as usize)?;
        Some(RouteKey { prefix: IpNet::new(address, len).ok()?, table, metric })
    }

    /// The numbers of all routes, in their order.
    pub(crate) fn ids(&self) -> impl Iterator<Item = RouteId> + use<> {
        let (v4, v6) = (self.v4.slots.len() as u32, self.v6.slots.len() as u32);
        (0..v4).map(RouteId).chain((0..v6).map(RouteId::v6))
    }

    pub(crate) fn iter(&self) -> impl Iterator<Item = &Entry> {
        let v4 = self.v4.slots.iter().map(|slot| &slot.entry);
        let all = v4.chain(self.v6.slots.iter().map(|slot| &slot.entry));
        all.filter(|entry| !entry.is(Flag::Vacant))
    }

    pub(crate) fn iter_mut(&mut self) -> impl Iterator<Item = &mut Entry> {
        let v4 = self.v4.slots.iter_mut().map(|slot| &mut slot.entry);
        let all = v4.chain(self.v6.slots.iter_mut().map(|slot| &mut slot.entry));
        all.filter(|entry| !entry.is(Flag::Vacant))
    }

    /// Gives memory back after many routes have gone. Numbers change: nobody may hold one.
    pub(crate) fn close_gaps(&mut self) {
        self.v4.close_gaps();
        self.v6.close_gaps();
    }
}

impl RouteId {
    fn v6(number: u32) -> RouteId {
        RouteId(number | IS_V6)
    }

    fn place(self) -> Place {
        let number = (self.0 & !IS_V6) as usize;
        if self.0 & IS_V6 == 0 { Place::V4(number) } else { Place::V6(number) }
    }
}

enum Place {
    V4(usize),
    V6(usize),
}

/// The routes of one family. A slot that is vacant stays its key's until gaps are closed: a route that
/// comes back finds it, and the index has nothing to do when many go.
#[derive(Debug)]
struct Store<A> {
    index: HashTable<Indexed>,
    slots: Vec<Slot<A>>,
    vacant: usize,
    /// The number that is asked for next if everything goes in order.
    next: u32,
    hasher: RandomState,
}

impl<A> Default for Store<A> {
    fn default() -> Store<A> {
        let (index, slots, hasher) = (HashTable::new(), Vec::new(), RandomState::default());
        Store { index, slots, vacant: 0, next: 0, hasher }
    }
}

/// With half of its hash beside it a number is found, and the table grows, without a look at the slots.
#[derive(Clone, Copy, Debug)]
struct Indexed {
    hash: u32,
    number: u32,
}

#[derive(Clone, Copy, Debug)]
struct Slot<A> {
    address: A,
    scope: u32,
    entry: Entry,
}

const _: () = assert!(size_of::<Slot<u32>>() <= 20 && size_of::<Slot<[u32; 4]>>() <= 32);

/// An address without the alignment of a number of 128 bits.
trait Address: Copy + PartialEq {
    fn feed(self, hasher: &mut impl Hasher);
}

impl Address for u32 {
    fn feed(self, hasher: &mut impl Hasher) {
        hasher.write_u32(self);
    }
}

impl Address for [u32; 4] {
    fn feed(self, hasher: &mut impl Hasher) {
        let [a, b, c, d] = self.map(u64::from);
        hasher.write_u64(a << 32 | b);
        hasher.write_u64(c << 32 | d);
    }
}

impl<A: Address> Slot<A> {
    fn has(&self, address: A, scope: u32, len: u8) -> bool {
        (self.address, self.scope, self.entry.len) == (address, scope, len)
    }
}

impl<A: Address> Store<A> {
    fn find(&self, address: A, scope: u32, len: u8) -> Option<u32> {
        let hash = hash(&self.hasher, address, scope, len);
        let number = self.find_slot(hash, address, scope, len)?;
        let slot = self.slots.get(number as usize)?;
        (!slot.entry.is(Flag::Vacant)).then_some(number)
    }

    fn find_next(&mut self, address: A, scope: u32, len: u8) -> Option<u32> {
        let number = match self.is_next(address, scope, len) {
            true => Some(self.next),
            false => self.find(address, scope, len),
        }?;
        self.next = number + 1;
        let slot = self.slots.get(number as usize)?;
        (!slot.entry.is(Flag::Vacant)).then_some(number)
    }

    fn is_next(&self, address: A, scope: u32, len: u8) -> bool {
        self.slots.get(self.next as usize).is_some_and(|slot| slot.has(address, scope, len))
    }

    /// The number of the slot of a key, which may be vacant.
    fn find_slot(&self, hash: u32, address: A, scope: u32, len: u8) -> Option<u32> {
        let is_it = |indexed: &Indexed| {
            let slot = self.slots.get(indexed.number as usize);
            indexed.hash == hash && slot.is_some_and(|slot| slot.has(address, scope, len))
        };
        self.index.find(spread(hash), is_it).map(|indexed| indexed.number)
    }

    fn find_or_add(&mut self, address: A, scope: u32, len: u8) -> u32 {
        let number = if self.is_next(address, scope, len) {
            self.next
        } else {
            let hash = hash(&self.hasher, address, scope, len);
            let known = self.find_slot(hash, address, scope, len);
            known.unwrap_or_else(|| self.add(hash, address, scope, len))
        };
        self.next = number + 1;
        if let Some(slot) = self.slots.get_mut(number as usize)
            && slot.entry.is(Flag::Vacant)
        {
            slot.entry = Entry { len, ..Entry::default() };
            self.vacant -= 1;
        }
        number
    }

    fn add(&mut self, hash: u32, address: A, scope: u32, len: u8) -> u32 {
        if self.slots.len() == self.slots.capacity() {
            // Doubling would leave up to half of the memory unused.
            self.slots.reserve_exact((self.slots.len() / GROWTH).max(GROWTH));
        }
        let number = self.slots.len() as u32;
        self.slots.push(Slot { address, scope, entry: Entry { len, ..Entry::default() } });
        self.index.insert_unique(spread(hash), Indexed { hash, number }, |i| spread(i.hash));
        number
    }

    fn remove(&mut self, number: usize) {
        if let Some(slot) = self.slots.get_mut(number)
            && slot.entry.raise(Flag::Vacant)
        {
            self.vacant += 1;
        }
    }

    fn close_gaps(&mut self) {
        if self.vacant < GAPS_MIN || self.vacant < self.slots.len() / 3 {
            return;
        }
        self.slots.retain(|slot| !slot.entry.is(Flag::Vacant));
        self.slots.shrink_to_fit();
        (self.vacant, self.next) = (0, 0);
        self.index = HashTable::with_capacity(self.slots.len());
        for (number, slot) in (0..).zip(&self.slots) {
            let hash = hash(&self.hasher, slot.address, slot.scope, slot.entry.len);
            self.index.insert_unique(spread(hash), Indexed { hash, number }, |i| spread(i.hash));
        }
    }
}

fn hash(state: &RandomState, address: impl Address, scope: u32, len: u8) -> u32 {
    let mut hasher = state.build_hasher();
    address.feed(&mut hasher);
    hasher.write_u64(u64::from(scope) << 8 | u64::from(len));
    (hasher.finish() >> 32) as u32
}

/// The half of a hash that is kept, with its bits where the table looks for them: at both ends.
fn spread(hash: u32) -> u64 {
    u64::from(hash).wrapping_mul(0x9e37_79b9_7f4a_7c15)
}

fn words(address: Ipv6Addr) -> [u32; 4] {
    let bits = address.to_bits();
    [bits >> 96, bits >> 64, bits >> 32, bits].map(|word| word as u32)
}

fn address(words: [u32; 4]) -> Ipv6Addr {
    Ipv6Addr::from_bits(words.into_iter().fold(0, |bits, word| bits << 32 | u128::from(word)))
}

/// The bit of a number that says which family's it is: neither has 2^31 routes, which would take 40 GB.
const IS_V6: u32 = 1 << 31;
/// Slots grow by one part in this many.
const GROWTH: usize = 8;
/// So many vacant slots are not worth closing.
const GAPS_MIN: usize = 1024;

#[cfg(test)]
mod tests {
    use super::*;
    use crate::route::TABLE_MAIN;

    fn key(prefix: &str, metric: u32) -> RouteKey {
        RouteKey { prefix: prefix.parse().unwrap(), table: TABLE_MAIN, metric }
    }

    #[test]
    fn keys_are_told_apart_and_come_back() {
        let mut entries = Entries::default();
        let keys = [
            key("10.0.0.0/24", 198),
            key("10.0.0.0/25", 198),
            key("10.0.0.0/24", 4198),
            RouteKey { table: 7, ..key("10.0.0.0/24", 198) },
            key("0.0.0.0/0", 198),
            key("::/0", 198),
            key("fd00:1:2:3:4:5:6:7/128", 198),
        ];
        let ids = keys.map(|key| entries.find_or_add(&key));
        assert_eq!(keys.map(|key| entries.find_or_add(&key)), ids);
        for (key, id) in keys.iter().zip(ids) {
            assert_eq!((entries.find(key), entries.key(id)), (Some(id), Some(*key)));
        }
        entries.get_mut(ids[1]).unwrap().raise(Flag::Foreign);
        entries.remove(ids[1]);
        entries.remove(ids[1]);
        assert_eq!((entries.find(&keys[1]), entries.iter().count()), (None, keys.len() - 1));
        assert_eq!(entries.find_or_add(&keys[1]), ids[1]);
        assert!(!entries.get(ids[1]).unwrap().is(Flag::Foreign), "nothing is left of it");
        assert_eq!(entries.iter().count(), keys.len());
        assert_eq!(entries.find(&key("10.8.0.0/24", 9)), None);
    }

    #[test]
    fn gaps_are_closed_when_they_are_many() {
        let mut entries = Entries::default();
        let numbered = |number: u32| key(&format!("10.{}.{}.0/24", number >> 8, number & 255), 198);
        let ids: Vec<RouteId> =
            (0..4000).map(|number| entries.find_or_add(&numbered(number))).collect();
        for (number, id) in ids.iter().enumerate() {
            if number % 4 != 0 {
                entries.remove(*id);
            }
        }
        entries.close_gaps();
        assert_eq!(entries.ids().count(), 1000);
        let check = |entries: &Entries| {
            for number in 0..4000 {
                let found = entries.find(&numbered(number)).and_then(|id| entries.key(id));
                assert_eq!(found, (number % 4 == 0).then(|| numbered(number)));
            }
        };
        check(&entries);
        for number in (0..4000).rev().filter(|number| number % 4 == 0) {
            entries.find_or_add(&numbered(number));
        }
        check(&entries);
    }
}
