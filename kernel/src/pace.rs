//! How soon something is repaired that others change again and again.
//!
//! ```text
//!  changed ─► repaired at once, some times ─► changed ─► repaired after a rest ─► changed ─► after twice it ..
//! ```
//!
//! The first repairs come at once, so that an edit lasts for milliseconds. Whoever goes on to change the
//! same thing finds it repaired ever later, up to [`REST_MAX`], so that two programs that fight need no
//! processor for it. Pure.

use std::collections::BTreeMap;
use std::collections::btree_map::Entry;
use std::time::{Duration, Instant};

/// The repairs of one thing.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Pace {
    /// When it was repaired last, and how long it is left alone after that.
    last: Option<Instant>,
    rest: Duration,
    /// How often it was repaired without a longer time of peace in between.
    repairs: u32,
}

impl Pace {
    /// Until when it is left alone; `None`: it may be repaired now.
    pub(crate) fn rests(&self, now: Instant) -> Option<Instant> {
        let last = self.last.filter(|last| *last != now)?;
        Some(last + self.rest).filter(|until| *until > now)
    }

    /// Notes a repair. Several at the same time are one.
    pub(crate) fn repaired(&mut self, now: Instant) {
        if self.last == Some(now) {
            return;
        }
        self.forget(now);
        self.repairs = self.repairs.saturating_add(1);
        if self.repairs > REPAIRS_AT_ONCE {
            self.rest = (self.rest * 2).clamp(REST_MIN, REST_MAX);
        }
        self.last = Some(now);
    }

    /// Begins anew after some time of peace.
    pub(crate) fn forget(&mut self, now: Instant) {
        if self.is_calm(now) {
            *self = Pace::default();
        }
    }

    /// When the fight is over if nothing more happens; `None`: there is none. In one, another program must
    /// be at work.
    pub(crate) fn calm_at(&self) -> Option<Instant> {
        let last = self.last.filter(|_| self.repairs >= FIGHT_REPAIRS)?;
        Some(last + CALM)
    }

    fn is_calm(&self, now: Instant) -> bool {
        self.last.is_none_or(|last| now.saturating_duration_since(last) >= CALM)
    }
}

/// The repairs of many things.
#[derive(Debug)]
pub(crate) struct Paces<K> {
    each: BTreeMap<K, Pace>,
    /// The rest, when more than [`EACH_MAX`] are repaired within a short time.
    others: Pace,
}

impl<K: Ord + Copy> Paces<K> {
    pub(crate) fn new() -> Paces<K> {
        Paces { each: BTreeMap::new(), others: Pace::default() }
    }

    /// Until when `key` is left alone; `None`: it may be repaired now.
    pub(crate) fn rests(&self, key: &K, now: Instant) -> Option<Instant> {
        match self.each.get(key) {
            Some(pace) => pace.rests(now),
            None if self.each.len() < EACH_MAX => None,
            None => self.others.rests(now),
        }
    }

    /// Notes a repair.
    pub(crate) fn repaired(&mut self, key: K, now: Instant) {
        let room = self.each.len() < EACH_MAX;
        match self.each.entry(key) {
            Entry::Occupied(pace) => pace.into_mut().repaired(now),
            Entry::Vacant(place) if room => place.insert(Pace::default()).repaired(now),
            Entry::Vacant(_) => self.others.repaired(now),
        }
    }

    /// Forgets what nobody has changed for a while.
    pub(crate) fn forget(&mut self, now: Instant) {
        self.each.retain(|_, pace| !pace.is_calm(now));
        self.others.forget(now);
    }

    /// What is fought over: the first of it, and how many more there are.
    pub(crate) fn fight(&self) -> Option<(K, usize)> {
        let mut fights = self.each.iter().filter(|(_, pace)| pace.calm_at().is_some());
        let (key, _) = fights.next()?;
        Some((*key, fights.count()))
    }

    /// When the first fight is over, if nothing more happens.
    pub(crate) fn calm_at(&self) -> Option<Instant> {
        self.each.values().filter_map(Pace::calm_at).min()
    }
}

/// A person's edits, one after the other.
const REPAIRS_AT_ONCE: u32 = 4;
/// Below the 50 ms within which a single edit is to be repaired.
const REST_MIN: Duration = Duration::from_millis(20);
/// The longest time for which something stays as others left it.
const REST_MAX: Duration = Duration::from_secs(1);
/// After so much peace it begins anew.
const CALM: Duration = Duration::from_secs(5);
/// A person does not change the same thing so often.
const FIGHT_REPAIRS: u32 = 8;
/// What has a pace of its own at the most.
const EACH_MAX: usize = 4096;

#[cfg(test)]
mod tests {
    use super::*;

    fn ms(millis: u64) -> Duration {
        Duration::from_millis(millis)
    }

    #[test]
    fn the_first_repairs_are_at_once_and_each_further_one_later() {
        let (mut pace, mut now) = (Pace::default(), Instant::now());
        let mut rests = Vec::new();
        for number in 1..=12 {
            assert_eq!(pace.rests(now), None, "repair {number}");
            pace.repaired(now);
            pace.repaired(now);
            assert_eq!(pace.rests(now), None, "in the same pass");
            assert_eq!(pace.calm_at().is_some(), number >= FIGHT_REPAIRS, "repair {number}");
            let next = now + ms(1);
            let until = pace.rests(next).unwrap_or(next);
            rests.push(until - now);
            now = until;
        }
        let expected = [1, 1, 1, 1, 20, 40, 80, 160, 320, 640, 1000, 1000].map(ms);
        assert_eq!(rests, expected);

        // Peace, and what it was before.
        let calm = pace.calm_at().expect("a fight");
        pace.forget(calm - ms(1));
        assert!(pace.calm_at().is_some());
        pace.repaired(calm);
        assert_eq!((pace.rests(calm + ms(1)), pace.calm_at()), (None, None));
    }

    #[test]
    fn keys_do_not_disturb_each_other_until_they_are_too_many() {
        let (mut paces, start) = (Paces::new(), Instant::now());
        let (many, beyond) = (EACH_MAX as u32, EACH_MAX as u32 + 3);
        let later = start + ms(1);
        (0..many + 9).for_each(|key| paces.repaired(key, start));
        assert_eq!(paces.each.len(), EACH_MAX);
        // All that came at one time counts once, for those beyond the bound too.
        assert_eq!((paces.rests(&3, later), paces.rests(&beyond, later)), (None, None));
        for round in 0..5 {
            (0..9).for_each(|key| paces.repaired(many + key, start + ms(round)));
        }
        assert_eq!(paces.rests(&3, later), None);
        assert!(paces.rests(&beyond, start + ms(5)).is_some());

        let mut now = start;
        for _ in 0..12 {
            now = paces.rests(&7, now + ms(1)).unwrap_or(now + ms(1));
            paces.repaired(7, now);
            paces.forget(now);
        }
        assert_eq!(paces.fight(), Some((7, 0)));
        let calm = paces.calm_at().expect("a fight");
        paces.forget(start + CALM);
        assert_eq!(paces.each.len(), 1, "the others have been at peace for long");
        assert_eq!(paces.rests(&beyond, start + CALM), None);
        paces.forget(calm);
        assert_eq!((paces.fight(), paces.calm_at()), (None, None));
    }
}
