//! How far the routes of BGP's first synchronisation are: pods do not start on a node that knows no way to
//! others.

use super::Worker;

/// The routes that peers announce up to their first End-of-RIB, or until BGP waits no longer for it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum FirstRoutes {
    /// BGP waits for them, or the kernel does not have them yet.
    Awaited,
    /// The kernel has them but for so many, which it refuses or to which no way is known.
    Missing(usize),
    /// The kernel has them. What changes later does not count.
    Written,
}

impl Worker {
    /// Tells how far they are, after a pass.
    pub(super) fn tell_first_routes(&self) {
        let told = *self.tell.first_routes.borrow();
        let unwritten =
            self.reconciler.is_dirty() || self.wrap.is_dirty() || self.uplinks.is_dirty();
        if told == FirstRoutes::Written || !self.bgp_in_sync || unwritten {
            return;
        }
        let first = match self.unresolved.len() + self.reconciler.failures().count() {
            0 => FirstRoutes::Written,
            missing => FirstRoutes::Missing(missing),
        };
        if first != told {
            self.tell.first_routes.send_replace(first);
        }
    }
}
