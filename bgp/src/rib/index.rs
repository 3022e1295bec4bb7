//! From the hash of a prefix to its id: a sorted array with gaps.
//!
//! ```text
//! home(hash) = hash * homes / 2^32                          (grows with the hash)
//! words:  [ - | a | b | c | - | - | d | e | - | ... ]       (- is a gap; a < b < c < d < e)
//!               └ home of a and of b: b stands behind a, c behind b
//! ```
//!
//! A word is half of a prefix's hash and, below it, the id. It stands at its home or behind it, with no gap
//! between, and all are in order: ordered linear probing (Amble and Knuth, "Ordered hash tables", 1974).
//! What that is for:
//!
//! - an id is found with one cache miss, where a table with its tags apart takes two;
//! - a word that is not there is missed as early as one that is there is found;
//! - growing, shrinking and taking out many are one walk from the front to the back of memory;
//! - the place of a look-up is known beforehand, so that many can wait for memory at once
//!   ([`Index::touch`]).

use super::entries::RouteId;

/// Ids by the hashes of their prefixes.
#[derive(Debug, Default)]
pub(super) struct Index {
    /// As many as there are homes, and some behind the last home.
    words: Vec<u64>,
    homes: usize,
    len: usize,
}

impl Index {
    /// The first id with this hash that `is_it`.
    #[inline]
    pub(super) fn find(&self, hash: u32, is_it: impl Fn(RouteId) -> bool) -> Option<RouteId> {
        let words = self.words.get(self.home(hash)..).unwrap_or_default();
        let words = words.iter().take_while(|word| **word < end_of(hash));
        let mut ids = words.filter(|word| hash_of(**word) == hash).map(|word| id_of(*word));
        ids.find(|id| is_it(*id))
    }

    /// Reads what [`Index::find`] is going to look at first: an id that may be it, if that place holds one.
    #[inline]
    pub(super) fn touch(&self, hash: u32) -> Option<RouteId> {
        let word = *self.words.get(self.home(hash))?;
        (hash_of(word) == hash).then(|| id_of(word))
    }

    /// Adds an id that is not there.
    pub(super) fn insert(&mut self, hash: u32, id: RouteId) {
        if self.len >= filled(self.homes) {
            self.resize((self.homes + self.homes / 2).max(HOMES_MIN));
        }
        let home = self.home(hash);
        // The word goes in front of the first larger one, and each of those behind moves by one, up to a gap.
        let mut moving = word(hash, id);
        for place in self.words.get_mut(home..).unwrap_or_default() {
            if *place > moving {
                std::mem::swap(place, &mut moving);
                if moving == GAP {
                    break;
                }
            }
        }
        if moving != GAP {
            // A few more, and not twice as many.
            self.words.reserve_exact(TAIL);
            self.words.push(moving);
        }
        self.len += 1;
    }

    /// Takes an id out.
    pub(super) fn remove(&mut self, hash: u32, id: RouteId) {
        let home = self.home(hash);
        let words = self.words.get(home..).unwrap_or_default();
        let Some(at) = words
            .iter()
            .take_while(|word| **word != GAP)
            .position(|other| *other == word(hash, id))
        else {
            return;
        };
        let at = home + at;
        // Those behind it that are not at home move up.
        let moves = |(at, word): &(usize, &u64)| **word != GAP && self.home(hash_of(**word)) < *at;
        let behind = self.words.iter().enumerate().skip(at + 1);
        let end = at + 1 + behind.take_while(moves).count();
        self.words.copy_within(at + 1..end, at);
        if let Some(last) = self.words.get_mut(end - 1) {
            *last = GAP;
        }
        self.len -= 1;
    }

    /// Takes out all ids but those that `keeps`.
    pub(super) fn retain(&mut self, keeps: impl Fn(RouteId) -> bool) {
        self.rewrite(|id| keeps(id).then_some(id));
    }

    /// Gives each id its new one, which has to be in the order of the old ones, and gives memory back.
    pub(super) fn renumber(&mut self, new_id: impl Fn(RouteId) -> RouteId) {
        self.rewrite(|id| Some(new_id(id)));
        self.resize(homes_for(self.len));
        self.words.shrink_to_fit();
    }

    /// Writes all words anew from the front to the back: none goes further back than it was.
    fn rewrite(&mut self, new_id: impl Fn(RouteId) -> Option<RouteId>) {
        let (mut end, mut len) = (0, 0);
        for at in 0..self.words.len() {
            let Some(place) = self.words.get_mut(at) else { break };
            let old = std::mem::replace(place, GAP);
            if old == GAP {
                continue;
            }
            let Some(id) = new_id(id_of(old)) else { continue };
            let to = self.home(hash_of(old)).max(end);
            if let Some(place) = self.words.get_mut(to) {
                *place = word(hash_of(old), id);
            }
            (end, len) = (to + 1, len + 1);
        }
        self.len = len;
    }

    /// Changes the number of homes.
    fn resize(&mut self, homes: usize) {
        let old = std::mem::take(&mut self.words);
        self.words.resize(homes + TAIL, GAP);
        self.homes = homes;
        let mut end = 0;
        for word in old.into_iter().filter(|word| *word != GAP) {
            let to = self.home(hash_of(word)).max(end);
            if to >= self.words.len() {
                self.words.reserve_exact(TAIL);
                self.words.resize(to + 1, GAP);
            }
            if let Some(place) = self.words.get_mut(to) {
                *place = word;
            }
            end = to + 1;
        }
    }

    #[inline]
    fn home(&self, hash: u32) -> usize {
        ((u64::from(hash) * self.homes as u64) >> 32) as usize
    }
}

#[inline]
fn word(hash: u32, id: RouteId) -> u64 {
    u64::from(hash) << 32 | id.index() as u64
}

#[inline]
fn hash_of(word: u64) -> u32 {
    (word >> 32) as u32
}

#[inline]
fn id_of(word: u64) -> RouteId {
    RouteId::at(word as u32 as usize)
}

/// Above all words with this hash, and not above a gap.
#[inline]
fn end_of(hash: u32) -> u64 {
    u64::from(hash) << 32 | u64::from(u32::MAX)
}

/// How many words so many homes take: four fifths, with which a look-up passes two others on average.
fn filled(homes: usize) -> usize {
    homes / 5 * 4
}

/// The least homes for so many words.
fn homes_for(words: usize) -> usize {
    words / 4 * 5 + 2 * 5
}

/// The largest word, of an id that no prefix has.
const GAP: u64 = u64::MAX;
const HOMES_MIN: usize = 60;
/// Words behind the last home, of which there are more when these do not do.
const TAIL: usize = 16;

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use proptest::prelude::*;

    use super::super::secrets::Secrets;
    use super::*;
    use crate::prefix::{Ipv4Prefix, Ipv6Prefix};

    impl Index {
        /// Words are in order, none is in front of its home, and there is no gap between the two.
        fn check(&self) {
            let there = self.words.iter().enumerate().filter(|(_, word)| **word != GAP);
            assert_eq!(there.clone().count(), self.len);
            assert!(there.clone().is_sorted_by_key(|(_, word)| *word), "in order");
            for (at, word) in there {
                let home = self.home(hash_of(*word));
                assert!(home <= at, "behind its home");
                assert!(self.words[home..at].iter().all(|word| *word != GAP), "no gap");
            }
        }

        /// How many words a look-up passes on average.
        fn passed(&self) -> f64 {
            let there = self.words.iter().enumerate().filter(|(_, word)| **word != GAP);
            let passed = there.map(|(at, word)| at - self.home(hash_of(*word))).sum::<usize>();
            passed as f64 / self.len as f64
        }
    }

    #[derive(Clone, Debug)]
    enum Step {
        Insert(u32),
        Remove(usize),
        Retain(u32),
        Renumber,
    }

    /// Few hashes, many of them equal or next to each other, at both ends too.
    fn hash() -> impl Strategy<Value = u32> {
        prop_oneof![0..4_u32, any::<u32>(), (0..40_u32).prop_map(|n| n << 26), Just(u32::MAX)]
    }

    fn step() -> impl Strategy<Value = Step> {
        prop_oneof![
            8 => hash().prop_map(Step::Insert),
            4 => any::<prop::sample::Index>().prop_map(|at| Step::Remove(at.index(1 << 16))),
            1 => (2..5_u32).prop_map(Step::Retain),
            1 => Just(Step::Renumber),
        ]
    }

    proptest! {
        /// As a map of ids to hashes.
        #[test]
        fn does_what_a_map_does(steps in prop::collection::vec(step(), 0..600)) {
            let (mut index, mut map) = (Index::default(), BTreeMap::<RouteId, u32>::new());
            let mut next = 0;
            for step in steps {
                match step {
                    Step::Insert(hash) => {
                        index.insert(hash, RouteId::at(next));
                        map.insert(RouteId::at(next), hash);
                        next += 1;
                    }
                    Step::Remove(at) => {
                        let all = map.len().max(1);
                        if let Some((id, hash)) = map.iter().nth(at % all).map(|(i, h)| (*i, *h)) {
                            index.remove(hash, id);
                            map.remove(&id);
                            index.remove(hash, id);
                        }
                    }
                    Step::Retain(every) => {
                        let keeps = |id: RouteId| !(id.index() as u32).is_multiple_of(every);
                        index.retain(keeps);
                        map.retain(|id, _| keeps(*id));
                    }
                    Step::Renumber => {
                        let ids: Vec<RouteId> = map.keys().copied().collect();
                        let new = |id| RouteId::at(ids.binary_search(&id).expect("is there"));
                        index.renumber(new);
                        map = map.into_iter().map(|(id, hash)| (new(id), hash)).collect();
                        next = map.len();
                    }
                }
                index.check();
                for (id, hash) in &map {
                    prop_assert_eq!(index.find(*hash, |found| found == *id), Some(*id));
                }
                prop_assert_eq!(index.find(7, |_| true), map.iter().find(|(_, h)| **h == 7).map(|(i, _)| *i));
            }
        }
    }

    /// Blocks next to each other and with gaps between, of several lengths and numbers.
    #[test]
    fn look_ups_of_real_keys_are_short() {
        for secrets in (0..3).map(Secrets::new) {
            for (len, every) in
                [(16, 1), (20, 1), (22, 1), (24, 1), (24, 256), (26, 4), (32, 64), (32, 1)]
            {
                for count in [5_000, 100_000] {
                    let mut index = Index::default();
                    for number in 0..count {
                        let at = number * every;
                        let v4 = Ipv4Prefix::new(at << (32 - len), len as u8)
                            .expect("a length in range");
                        let v6 = Ipv6Prefix::new(u128::from(at) << (128 - 2 * len), 2 * len as u8);
                        let v6 = v6.expect("a length in range");
                        let hash = if every == 4 { secrets.hash(&v6) } else { secrets.hash(&v4) };
                        // Beyond the address space they begin anew.
                        if u64::from(at) >> len == 0 || every == 4 {
                            index.insert(hash, RouteId::at(number as usize));
                        }
                    }
                    index.check();
                    // Four fifths full it is two of random hashes: (1 / (1 - 0.8) - 1) / 2.
                    assert!(index.passed() < 2.6, "/{len}, {every}, {count}: {}", index.passed());
                }
            }
        }
    }
}
