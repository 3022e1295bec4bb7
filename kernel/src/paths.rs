//! What routes do, stored once however many routes do it.

use std::hash::BuildHasher;
use std::net::IpAddr;
use std::num::NonZeroU32;

use foldhash::fast::RandomState;
use hashbrown::HashTable;

use crate::route::{Attributes, Family, Route, Target};

/// A route without its key.
#[derive(Debug)]
pub(crate) struct Path {
    pub(crate) target: Target,
    pub(crate) prefsrc: Option<IpAddr>,
    /// Who made it: the current number or a former one.
    pub(crate) protocol: u8,
    family: Family,
    /// The same as the kernel is told it.
    pub(crate) attributes: Attributes,
}

/// The number of a path in [`Paths`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct PathId(NonZeroU32);

/// Counted paths. A node's many routes lead to few neighbours, so that a number of four bytes stands
/// for each.
#[derive(Debug, Default)]
pub(crate) struct Paths {
    slots: Vec<Option<(Path, u32)>>,
    free: Vec<PathId>,
    ids: HashTable<PathId>,
    hasher: RandomState,
}

impl Paths {
    /// The number of what `route` does, counted once more.
    pub(crate) fn acquire(&mut self, route: Route) -> PathId {
        let (family, prefsrc) = (Family::of(route.prefix.addr()), route.prefsrc);
        let protocol = route.protocol;
        let target = route.target.normalized();
        let hash = self.hasher.hash_one((&target, prefsrc, protocol));
        if let Some(id) = self.find_hashed(hash, family, &target, prefsrc, protocol) {
            self.count(id);
            return id;
        }
        let attributes = Attributes::new(family, &target, prefsrc);
        let slot = Some((Path { target, prefsrc, protocol, family, attributes }, 1));
        let id = match self.free.pop() {
            Some(id) => {
                self.slots[index(id)] = slot;
                id
            }
            None => {
                self.slots.push(slot);
                let number = u32::try_from(self.slots.len()).ok().and_then(NonZeroU32::new);
                PathId(number.expect("fewer than 2^32 routes fit into memory"))
            }
        };
        let Paths { slots, ids, hasher, .. } = self;
        ids.insert_unique(hash, id, |id| {
            let path = slots[index(*id)].as_ref();
            path.map_or(0, |(path, _)| hasher.hash_one((&path.target, path.prefsrc, path.protocol)))
        });
        id
    }

    /// The number of what `route`, whose target is normalized, does, uncounted, if any route does it.
    pub(crate) fn find(&self, route: &Route) -> Option<PathId> {
        let Route { target, prefsrc, protocol, .. } = route;
        let hash = self.hasher.hash_one((target, *prefsrc, *protocol));
        self.find_hashed(hash, Family::of(route.prefix.addr()), target, *prefsrc, *protocol)
    }

    /// Whether `route`, whose target is normalized and family the path's, does what this path does.
    pub(crate) fn is(&self, id: PathId, route: &Route) -> bool {
        self.path(id).is_some_and(|path| {
            path.target == route.target
                && path.prefsrc == route.prefsrc
                && path.protocol == route.protocol
        })
    }

    fn find_hashed(
        &self,
        hash: u64,
        family: Family,
        target: &Target,
        prefsrc: Option<IpAddr>,
        protocol: u8,
    ) -> Option<PathId> {
        let is_it = |id: &PathId| {
            self.path(*id).is_some_and(|path| {
                path.family == family
                    && path.target == *target
                    && path.prefsrc == prefsrc
                    && path.protocol == protocol
            })
        };
        self.ids.find(hash, is_it).copied()
    }

    /// Counts `id` once more.
    pub(crate) fn count(&mut self, id: PathId) {
        if let Some(Some((_, count))) = self.slots.get_mut(index(id)) {
            *count += 1;
        }
    }

    /// Counts `id` once less and forgets it at zero.
    pub(crate) fn release(&mut self, id: Option<PathId>) {
        let Some(id) = id else { return };
        let Some(slot) = self.slots.get_mut(index(id)) else { return };
        let Some((path, count)) = slot else { return };
        *count -= 1;
        if *count == 0 {
            let hash = self.hasher.hash_one((&path.target, path.prefsrc, path.protocol));
            if let Ok(found) = self.ids.find_entry(hash, |found| *found == id) {
                found.remove();
            }
            *slot = None;
            self.free.push(id);
        }
    }

    /// All that any route does.
    pub(crate) fn iter(&self) -> impl Iterator<Item = &Path> {
        self.slots.iter().flatten().map(|(path, _)| path)
    }

    pub(crate) fn path(&self, id: PathId) -> Option<&Path> {
        self.slots.get(index(id))?.as_ref().map(|(path, _)| path)
    }
}

fn index(id: PathId) -> usize {
    id.0.get() as usize - 1
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::route::NextHop;

    fn route(ifindex: u32) -> Route {
        Route {
            prefix: "10.0.0.0/24".parse().unwrap(),
            table: 254,
            metric: 0,
            protocol: 222,
            target: Target::Unicast(vec![NextHop::link(ifindex)]),
            prefsrc: None,
        }
    }

    #[test]
    fn equal_paths_share_a_number_until_the_last_is_released() {
        let mut paths = Paths::default();
        let first = paths.acquire(route(1));
        assert_eq!(paths.acquire(route(1)), first);
        let second = paths.acquire(route(2));
        assert_ne!(first, second);
        let other = Route { prefix: "fd00::/64".parse().unwrap(), ..route(1) };
        assert_ne!(paths.acquire(other), first, "IPv6 is told otherwise");
        let former = Route { protocol: 150, ..route(1) };
        assert_ne!(paths.acquire(former), first, "it has to be written anew");
        paths.release(Some(first));
        assert_eq!(paths.find(&route(1)), Some(first));
        paths.release(Some(first));
        assert_eq!(paths.find(&route(1)), None);
        assert!(paths.path(first).is_none());
        assert_eq!(paths.acquire(route(3)), first, "the number is used again");
        assert_eq!(paths.path(second).unwrap().target, route(2).target);
    }
}
