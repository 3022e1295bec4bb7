//! The model as somebody sees it who only wants to know: nothing is written.

use super::RouteReconciler;
use crate::entries::{Entry, Flag, RouteId};
use crate::error::Error;
use crate::paths::PathId;
use crate::route::{Route, RouteKey, RouteSocket};

/// A key under which the kernel does not hold what is wanted.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Difference {
    /// The key.
    pub key: RouteKey,
    /// What is wanted.
    pub wanted: Option<Route>,
    /// What of ours is there: the first, should there be several.
    pub present: Option<Route>,
    /// How many of ours are there: IPv4 allows several.
    pub copies: u32,
    /// Somebody else has a route there.
    pub foreign: bool,
}

impl RouteReconciler {
    /// Reads the kernel in the namespace of `socket`, and writes nothing.
    ///
    /// # Errors
    /// The kernel could not be read.
    pub fn look(&mut self, socket: &mut RouteSocket) -> Result<(), Error> {
        self.read(socket)
    }

    /// What is wanted under `key`.
    pub fn wanted(&self, key: &RouteKey) -> Option<Route> {
        let id = self.entries.find(&key.normalized())?;
        self.route(id, self.entries.get(id)?.wanted?)
    }

    /// What of ours is under `key`, as far as the model knows.
    pub fn present(&self, key: &RouteKey) -> Option<Route> {
        let id = self.entries.find(&key.normalized())?;
        self.route(id, self.entries.get(id)?.present?)
    }

    /// The keys under which the kernel does not hold what is wanted, in no order.
    pub fn differences(&self) -> impl Iterator<Item = Difference> {
        self.entries.ids().filter_map(|id| {
            let entry = self.entries.get(id).filter(|entry| !entry.is(Flag::Vacant))?;
            let key = self.entries.key(id)?;
            let copies = self.copies(entry, &key);
            let foreign = entry.is(Flag::Foreign) && entry.wanted.is_some();
            if entry.wanted == entry.present && copies <= 1 && !foreign {
                return None;
            }
            Some(Difference {
                key,
                wanted: entry.wanted.and_then(|path| self.route(id, path)),
                present: entry.present.and_then(|path| self.route(id, path)),
                copies,
                foreign,
            })
        })
    }

    fn copies(&self, entry: &Entry, key: &RouteKey) -> u32 {
        let more = self.extra.get(key).copied().unwrap_or(0);
        u32::from(entry.present.is_some()).saturating_add(more)
    }

    pub(super) fn route(&self, id: RouteId, path: PathId) -> Option<Route> {
        let (key, path) = (self.entries.key(id)?, self.paths.path(path)?);
        Some(Route {
            prefix: key.prefix,
            table: key.table,
            metric: key.metric,
            protocol: path.protocol,
            target: path.target.clone(),
            prefsrc: path.prefsrc,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::route::{NextHop, TABLE_MAIN, Target};

    fn route(prefix: &str, ifindex: u32, protocol: u8) -> Route {
        Route {
            prefix: prefix.parse().unwrap(),
            table: TABLE_MAIN,
            metric: 198,
            protocol,
            target: Target::Unicast(vec![NextHop::link(ifindex)]),
            prefsrc: None,
        }
    }

    #[test]
    fn what_is_missing_differs_or_is_there_too_much_is_told_and_nothing_else() {
        let mut reconciler = RouteReconciler::new(222);
        let same = route("10.0.0.0/24", 1, 222);
        let missing = route("10.0.1.0/24", 1, 222);
        let differs = route("10.0.2.0/24", 1, 222);
        let clash = route("fd00::/64", 1, 222);
        for wanted in [&same, &missing, &differs, &clash] {
            reconciler.set(wanted.key(), Some(wanted.clone()));
        }
        let other = route("10.0.2.0/24", 2, 222);
        let extra = route("10.0.3.0/24", 1, 222);
        let doubled = route("10.0.4.0/24", 1, 222);
        reconciler.resync([
            same.clone(),
            other.clone(),
            extra.clone(),
            route("fd00::/64", 9, 4),
            route("10.9.0.0/24", 9, 4),
            doubled.clone(),
            doubled.clone(),
        ]);
        let mut found: Vec<Difference> = reconciler.differences().collect();
        found.sort_by_key(|difference| difference.key);
        let told: Vec<_> = found
            .into_iter()
            .map(|d| (d.key.prefix.to_string(), d.wanted, d.present, d.copies, d.foreign))
            .collect();
        assert_eq!(
            told,
            [
                ("10.0.1.0/24".to_owned(), Some(missing.clone()), None, 0, false),
                ("10.0.2.0/24".to_owned(), Some(differs), Some(other), 1, false),
                ("10.0.3.0/24".to_owned(), None, Some(extra), 1, false),
                ("10.0.4.0/24".to_owned(), None, Some(doubled), 2, false),
                ("fd00::/64".to_owned(), Some(clash), None, 0, true),
            ]
        );
        assert_eq!(reconciler.present(&same.key()), Some(same.clone()));
        assert_eq!(reconciler.wanted(&missing.key()), Some(missing.clone()));
        assert_eq!(reconciler.present(&missing.key()), None);
    }
}
