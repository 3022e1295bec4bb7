//! How far the routes of BGP's first synchronisation are: pods do not start on a node that knows no way to
//! others.

use super::Worker;

/// The routes that peers announce up to their first End-of-RIB, or until BGP waits no longer for it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum FirstRoutes {
    /// BGP waits for them.
    Awaited,
    /// The kernel lacks so many: they are being written, it refuses them, or no way is known to them.
    Unwritten(usize),
    /// The kernel has them. What changes later does not count.
    Written,
}

impl Worker {
    /// Tells how far they are, after a pass.
    pub(super) fn tell_first_routes(&self) {
        if *self.tell.first_routes.borrow() == FirstRoutes::Written || !self.bgp_in_sync {
            return;
        }
        let unwritten =
            self.reconciler.is_dirty() || self.wrap.is_dirty() || self.uplinks.is_dirty();
        let lacking = self.unresolved.len() + self.reconciler.failures().count();
        let first = match lacking.max(usize::from(unwritten)) {
            0 => FirstRoutes::Written,
            lacking => FirstRoutes::Unwritten(lacking),
        };
        crate::send_if_changed(&self.tell.first_routes, first);
    }
}
