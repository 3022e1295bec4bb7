//! The prefixes of one family with their routes: one hash table, shared by everything that keeps
//! something about a prefix.
//!
//! ```text
//!  prefix ──hash──► RouteId ──► slot: prefix, candidates          (Adj-RIB-In, Loc-RIB)
//!                          ├──► Group::sent[RouteId]              (Adj-RIB-Out of a group)
//!                          └──► sets and queues of RouteIds       (what has to be told)
//! ```
//!
//! Ids follow the order in which prefixes came, so that what is told in that order walks through
//! memory; only finding the id costs a cache miss. A prefix without routes keeps its id until nobody
//! has to hear of it any more, then another one may get it.

use foldhash::fast::FixedState;

use super::family::AddressFamily;
use super::index::Index;
use super::secrets::Secrets;
use super::table::Entry;

/// The place of a prefix in a [`Entries`] and in everything beside it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub(crate) struct RouteId(u32);

/// The prefixes of one family.
#[derive(Debug)]
pub(crate) struct Entries<A: AddressFamily> {
    index: Index,
    slots: Vec<Slot<A::Key>>,
    free: Vec<RouteId>,
    /// Prefixes without routes whose ids are still in use.
    gone: Vec<RouteId>,
    /// How many of these it takes until a look at all of them is worth it.
    reap_at: usize,
    /// Prefixes with routes.
    used: usize,
    /// How many of these there are of each length.
    by_length: [u32; LENGTHS],
    hasher: FixedState,
    secrets: Secrets,
}

#[derive(Debug)]
struct Slot<K> {
    key: K,
    entry: Entry,
}

/// A set of ids, one bit each.
#[derive(Debug, Default)]
pub(crate) struct IdSet {
    words: Vec<u64>,
    len: usize,
}

/// Where each id has gone when gaps were closed.
#[derive(Debug)]
pub(crate) struct Renumbering {
    /// For each old id the number of ids below it that have been kept.
    below: Vec<u32>,
    kept: IdSet,
}

impl RouteId {
    pub(crate) fn index(self) -> usize {
        self.0 as usize
    }

    pub(crate) fn at(index: usize) -> RouteId {
        RouteId(index as u32)
    }
}

impl<A: AddressFamily> Entries<A> {
    pub(crate) fn new(hasher: FixedState, secrets: Secrets) -> Entries<A> {
        Entries {
            index: Index::default(),
            slots: Vec::new(),
            free: Vec::new(),
            gone: Vec::new(),
            reap_at: GONE_MIN,
            used: 0,
            by_length: [0; LENGTHS],
            hasher,
            secrets,
        }
    }

    pub(crate) fn hasher(&self) -> &FixedState {
        &self.hasher
    }

    /// How many prefixes have routes.
    pub(crate) fn len(&self) -> usize {
        self.used
    }

    /// Whether a prefix of this length has routes.
    pub(crate) fn has(&self, len: u8) -> bool {
        self.by_length.get(usize::from(len)).is_some_and(|count| *count > 0)
    }

    /// Ids are below this.
    pub(crate) fn ids_end(&self) -> usize {
        self.slots.len()
    }

    /// The routes to a prefix.
    pub(crate) fn get(&self, key: &A::Key) -> Option<&Entry> {
        self.by_id(self.id(key)?).filter(|entry| !entry.is_empty())
    }

    /// All prefixes with routes.
    pub(crate) fn iter(&self) -> impl Iterator<Item = (&A::Key, &Entry)> {
        let used = self.slots.iter().filter(|slot| !slot.entry.is_empty());
        used.map(|slot| (&slot.key, &slot.entry))
    }

    /// The id of a prefix that has routes or had some.
    pub(crate) fn id(&self, key: &A::Key) -> Option<RouteId> {
        self.index.find(self.hash(key), |id| self.is_at(id, key))
    }

    /// Reads from memory what a look-up of these prefixes is going to need. They are independent of each
    /// other, and so the processor waits for many of them at once; look-ups, with all that is done in
    /// between, wait for one after the other.
    pub(crate) fn touch(&self, keys: impl Iterator<Item = A::Key>) {
        let ids = keys.map(|key| self.index.touch(self.hash(&key)));
        let mut found = [None; TOUCHED_MAX];
        found.iter_mut().zip(ids).for_each(|(place, id)| *place = id);
        for id in found.iter().flatten() {
            std::hint::black_box(self.by_id(*id).is_some_and(Entry::is_empty));
        }
    }

    /// The id of a prefix; without one it gets one.
    pub(crate) fn id_or_insert(&mut self, key: A::Key) -> RouteId {
        let hash = self.hash(&key);
        if let Some(id) = self.index.find(hash, |id| self.is_at(id, &key)) {
            return id;
        }
        let id = match self.free.pop() {
            Some(id) => {
                if let Some(slot) = self.slots.get_mut(id.index()) {
                    slot.key = key;
                }
                id
            }
            None => {
                self.slots.push(Slot { key, entry: Entry::default() });
                RouteId::at(self.slots.len() - 1)
            }
        };
        self.index.insert(hash, id);
        id
    }

    pub(crate) fn by_id(&self, id: RouteId) -> Option<&Entry> {
        self.slots.get(id.index()).map(|slot| &slot.entry)
    }

    pub(crate) fn by_id_mut(&mut self, id: RouteId) -> Option<&mut Entry> {
        self.slots.get_mut(id.index()).map(|slot| &mut slot.entry)
    }

    /// The prefix of an id that is in use.
    pub(crate) fn key(&self, id: RouteId) -> Option<A::Key> {
        self.slots.get(id.index()).map(|slot| slot.key)
    }

    /// Notes that a prefix that had none has routes now.
    pub(crate) fn note_filled(&mut self, key: A::Key) {
        self.used += 1;
        if let Some(count) = self.of_length(key) {
            *count += 1;
        }
    }

    /// Notes that a prefix has no routes any more.
    pub(crate) fn note_emptied(&mut self, id: RouteId) {
        self.used = self.used.saturating_sub(1);
        let Some(slot) = self.slots.get_mut(id.index()) else { return };
        if !std::mem::replace(&mut slot.entry.is_gone, true) {
            self.gone.push(id);
        }
        let key = slot.key;
        if let Some(count) = self.of_length(key) {
            *count = count.saturating_sub(1);
        }
    }

    /// Whether enough prefixes have gone for a [`Entries::reap`].
    pub(crate) fn has_many_gone(&self) -> bool {
        self.gone.len() >= self.reap_at
    }

    pub(crate) fn has_gone(&self) -> bool {
        !self.gone.is_empty()
    }

    /// Frees the ids of prefixes that have gone, except those that `holds` names.
    pub(crate) fn reap(&mut self, holds: impl Fn(RouteId) -> bool) {
        let mut gone = std::mem::take(&mut self.gone);
        let first = self.free.len();
        gone.retain(|id| {
            let Some(slot) = self.slots.get_mut(id.index()) else { return false };
            if !slot.entry.is_empty() {
                slot.entry.is_gone = false;
                return false;
            }
            if slot.entry.fib_queued || holds(*id) {
                return true;
            }
            slot.entry.is_gone = false;
            self.free.push(*id);
            false
        });
        self.take_out(first);
        // Amortised: twice as many before the next look.
        self.reap_at = (2 * gone.len()).max(GONE_MIN);
        self.gone = gone;
    }

    /// Takes the free ids, from the one at this place on, out of the index.
    fn take_out(&mut self, first: usize) {
        let freed = self.free.get(first..).unwrap_or_default();
        if freed.len() < self.slots.len() / FEW {
            let mut hashes = [0; TOUCHED_MAX];
            for some in freed.chunks(TOUCHED_MAX) {
                for (hash, id) in hashes.iter_mut().zip(some) {
                    let Some(slot) = self.slots.get(id.index()) else { continue };
                    *hash = self.hash(&slot.key);
                    std::hint::black_box(self.index.touch(*hash));
                }
                for (hash, id) in hashes.iter().zip(some) {
                    self.index.remove(*hash, *id);
                }
            }
            return;
        }
        // Of many, one walk over the index costs less than finding each.
        let mut goes = IdSet::default();
        freed.iter().for_each(|id| {
            goes.insert(*id);
        });
        self.index.retain(|id| !goes.contains(id));
    }

    /// Closes the gaps that free ids leave and gives memory back; says how ids have changed.
    pub(crate) fn close_gaps(&mut self) -> Renumbering {
        let mut kept = IdSet::default();
        for at in 0..self.slots.len() {
            kept.insert(RouteId::at(at));
        }
        for id in self.free.drain(..) {
            kept.remove(id);
        }
        let mut count = 0;
        let below = (0..self.slots.len()).map(|at| {
            let before = count;
            count += u32::from(kept.contains(RouteId::at(at)));
            before
        });
        let renumbering = Renumbering { below: below.collect(), kept };
        let mut at = 0;
        self.slots.retain(|_| {
            at += 1;
            renumbering.kept.contains(RouteId::at(at - 1))
        });
        self.index.renumber(|id| renumbering.new_id(id).unwrap_or(id));
        for id in &mut self.gone {
            *id = renumbering.new_id(*id).unwrap_or(*id);
        }
        self.slots.shrink_to_fit();
        self.free.shrink_to_fit();
        self.gone.shrink_to_fit();
        renumbering
    }

    /// The count of the prefixes as long as this one.
    fn of_length(&mut self, key: A::Key) -> Option<&mut u32> {
        self.by_length.get_mut(usize::from(A::prefix(key).len()))
    }

    fn hash(&self, key: &A::Key) -> u32 {
        self.secrets.hash(key)
    }

    fn is_at(&self, id: RouteId, key: &A::Key) -> bool {
        self.slots.get(id.index()).is_some_and(|slot| slot.key == *key)
    }
}

impl IdSet {
    /// Whether it was not in the set before.
    pub(crate) fn insert(&mut self, id: RouteId) -> bool {
        let (word, bit) = (id.index() / 64, 1 << (id.index() % 64));
        if word >= self.words.len() {
            self.words.resize(word + 1, 0);
        }
        let Some(word) = self.words.get_mut(word) else { return false };
        let is_new = *word & bit == 0;
        *word |= bit;
        self.len += usize::from(is_new);
        is_new
    }

    /// Whether it was in the set.
    pub(crate) fn remove(&mut self, id: RouteId) -> bool {
        let bit = 1 << (id.index() % 64);
        let Some(word) = self.words.get_mut(id.index() / 64) else { return false };
        let was_in = *word & bit != 0;
        *word &= !bit;
        self.len -= usize::from(was_in);
        was_in
    }

    pub(crate) fn contains(&self, id: RouteId) -> bool {
        self.words.get(id.index() / 64).is_some_and(|word| word & 1 << (id.index() % 64) != 0)
    }

    pub(crate) fn len(&self) -> usize {
        self.len
    }

    /// As the ids have been renumbered.
    pub(crate) fn renumber(&mut self, renumbering: &Renumbering) {
        let old = std::mem::take(self);
        for at in 0..old.words.len() * 64 {
            if old.contains(RouteId::at(at))
                && let Some(new) = renumbering.new_id(RouteId::at(at))
            {
                self.insert(new);
            }
        }
    }
}

impl Renumbering {
    /// The new id; `None` for one that was not in use.
    pub(crate) fn new_id(&self, id: RouteId) -> Option<RouteId> {
        self.kept.contains(id).then_some(self.first_from(id.index()))
    }

    /// The new id of the first one in use from an index on.
    pub(crate) fn first_from(&self, index: usize) -> RouteId {
        RouteId(self.below.get(index).copied().unwrap_or(self.kept.len() as u32))
    }
}

/// Lengths of prefixes: 0 to 128.
const LENGTHS: usize = 129;
/// What [`Entries::touch`] looks at at most: some more than the processor waits for at once.
pub(crate) const TOUCHED_MAX: usize = 32;
/// Ids are taken out of the index one by one when they are fewer than one in so many.
const FEW: usize = 16;
/// Below so many there is nothing to win by reaping.
const GONE_MIN: usize = 4096;

#[cfg(test)]
mod tests {
    use super::super::family::Ipv4;
    use super::super::table::Entry;
    use super::*;
    use crate::prefix::Ipv4Prefix;

    fn key(number: u32) -> Ipv4Prefix {
        Ipv4Prefix::new(number << 8, 24).expect("a length in range")
    }

    #[test]
    fn an_id_is_not_used_again_before_nobody_holds_it() {
        let mut entries = Entries::<Ipv4>::new(FixedState::default(), Secrets::new(1));
        let ids: Vec<RouteId> = (0..100).map(|number| entries.id_or_insert(key(number))).collect();
        for id in &ids {
            entries.note_filled(entries.key(*id).expect("its slot"));
            entries.note_emptied(*id);
        }
        entries.reap(|id| id == ids[7]);
        assert_eq!(entries.id(&key(7)), Some(ids[7]));
        assert_eq!(entries.id(&key(8)), None);
        assert!((200..299).all(|number| entries.id_or_insert(key(number)) != ids[7]));
        assert_eq!(entries.ids_end(), 100);
        assert!(entries.get(&key(7)).is_none(), "it has no routes");
        assert!(!entries.has(24), "no prefix of this length has routes");
    }

    #[test]
    fn closing_gaps_keeps_the_order() {
        let mut entries = Entries::<Ipv4>::new(FixedState::default(), Secrets::new(2));
        for number in 0..1000 {
            let id = entries.id_or_insert(key(number));
            entries.note_filled(key(number));
            if number % 10 != 3 {
                entries.note_emptied(id);
            } else {
                *entries.by_id_mut(id).expect("its slot") = Entry::for_test();
            }
        }
        let before: Vec<RouteId> = (0..100).filter_map(|n| entries.id(&key(n * 10 + 3))).collect();
        entries.reap(|_| false);
        let renumbering = entries.close_gaps();
        assert_eq!((entries.len(), entries.ids_end()), (100, 100));
        for (number, before) in before.into_iter().enumerate() {
            let now = RouteId::at(number);
            assert_eq!(renumbering.new_id(before), Some(now));
            assert_eq!(entries.key(now), Some(key(number as u32 * 10 + 3)));
            assert_eq!(entries.id(&key(number as u32 * 10 + 3)), Some(now));
        }
        assert_eq!(renumbering.new_id(RouteId::at(4)), None);
        assert_eq!(renumbering.first_from(4), RouteId::at(1));
    }
}
