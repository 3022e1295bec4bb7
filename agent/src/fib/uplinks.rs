//! Routes by uplinks that name next-hop objects, which is an option: `routes.nextHopObjects` of the
//! NodeConfiguration.
//!
//! ```text
//!  learned prefix, next hops resolved ──lead()──► plain | object | none yet | no carrier
//!  prepare_uplinks() ── before the routes: objects, and routes that may name one now
//!  clean_uplinks() ──── after the routes: objects that none names go
//! ```
//!
//! A change of the option is a change of every route in its place, the new objects before it and the old
//! ones after it. Objects of an earlier process with the option are known and removed without it.

use std::time::Instant;

use cairn_api::NextHopObjects;
use cairn_bgp::prefix::Prefix;
use cairn_kernel::monitor::KernelEvent;
use cairn_kernel::nexthop::{self, ObjectUse};
use cairn_kernel::reconcile::Pass;
use cairn_kernel::route::{NextHop, RouteSocket, Target};
use cairn_kernel::tunnel::Inventory;
use cairn_kernel::uplink::{self, Lead, UplinkObjects};
use cairn_kernel::{Netlink, link};
use ipnet::IpNet;

use super::Worker;
use super::wrap::Moved;

/// The next-hop objects on this node's uplinks.
pub(super) struct Uplinks {
    wanted: NextHopObjects,
    object_use: ObjectUse,
    objects: UplinkObjects,
}

impl Uplinks {
    /// Finds out whether this kernel has next-hop objects.
    pub(super) fn new(socket: &mut RouteSocket) -> Result<Uplinks, cairn_kernel::Error> {
        Ok(Uplinks::of(match nexthop::supported(socket.netlink())? {
            true => ObjectUse::Objects,
            false => ObjectUse::Plain,
        }))
    }

    fn of(object_use: ObjectUse) -> Uplinks {
        let wanted = NextHopObjects::default();
        Uplinks { wanted, object_use, objects: UplinkObjects::new(object_use) }
    }

    /// What a route to `prefix` that leads to `plain` is told; `None`: what it was told before, until its
    /// object is written.
    ///
    /// # Errors
    /// It leads nowhere: why, as a clause.
    pub(super) fn lead(&mut self, prefix: IpNet, plain: Target) -> Result<Option<Target>, String> {
        let hops = match &plain {
            Target::Unicast(hops) if self.wanted == NextHopObjects::Everywhere => hops,
            _ => {
                self.objects.forget(prefix);
                return Ok(Some(plain));
            }
        };
        match self.objects.lead(prefix, hops) {
            Lead::Object(id) => Ok(Some(Target::Object(id))),
            Lead::Pending => Ok(None),
            Lead::NoCarrier => Err(no_carrier(hops)),
            Lead::Plain => Ok(Some(plain)),
        }
    }

    /// Nothing leads to `prefix` by an uplink any more.
    pub(super) fn forget(&mut self, prefix: IpNet) {
        self.objects.forget(prefix);
    }

    /// Routes were replaced or removed.
    pub(super) fn routes_changed(&mut self) {
        self.objects.routes_changed();
    }

    /// Takes what the kernel tells; whether somebody changed an object of ours.
    pub(super) fn observe(&mut self, event: &KernelEvent) -> bool {
        self.objects.observe(event)
    }

    pub(super) fn allow_sweep(&mut self) {
        self.objects.allow_sweep();
    }

    pub(super) fn request_resync(&mut self) {
        self.objects.request_resync();
    }

    pub(super) fn retry_failures(&mut self) {
        self.objects.retry_failures();
    }

    pub(super) fn is_unsure(&self) -> bool {
        self.objects.is_unsure()
    }

    pub(super) fn is_dirty(&self) -> bool {
        self.objects.is_dirty()
    }

    pub(super) fn next_deadline(&self) -> Option<Instant> {
        self.objects.next_deadline()
    }

    pub(super) fn edits(&self) -> u64 {
        self.objects.edits()
    }

    pub(super) fn problems(&self) -> Vec<String> {
        let in_vain =
            self.wanted == NextHopObjects::Everywhere && self.object_use == ObjectUse::Plain;
        let in_vain = in_vain.then(|| NO_OBJECTS.to_owned());
        self.objects.problems().into_iter().chain(in_vain).collect()
    }

    /// What should be in the kernel, with links by their names as far as they can be read.
    pub(super) fn inventory(&self) -> Inventory {
        let links = Netlink::open().and_then(|mut netlink| link::list(&mut netlink));
        self.objects.inventory(uplink::names(&links.unwrap_or_default()))
    }
}

impl Worker {
    /// Takes in whether routes by uplinks name objects.
    pub(super) fn use_objects(&mut self, wanted: NextHopObjects) {
        if self.uplinks.wanted != wanted {
            self.uplinks.wanted = wanted;
            self.want_moved(&Moved::All);
        }
    }

    /// Before the routes: writes objects, and has routes lead through those that are there now.
    pub(super) fn prepare_uplinks(&mut self, now: Instant) {
        match self.uplinks.objects.prepare(self.socket.netlink(), now) {
            Ok(Pass { created: 0, replaced: 0, .. }) => {}
            // Somebody may have removed objects that routes name.
            Ok(_) => self.reconciler.retry_failures(),
            Err(error) => self.complain(format!(
                "cannot write next-hop objects on uplinks to the kernel, retrying: {error}"
            )),
        }
        match self.uplinks.objects.take_moved() {
            uplink::Moved::Nothing => {}
            uplink::Moved::These(prefixes) => {
                prefixes.into_iter().map(Prefix::from).for_each(|prefix| self.want(prefix));
                self.state_dirty = true;
            }
            uplink::Moved::All => self.want_moved(&Moved::All),
        }
    }

    /// After the routes: removes objects that none names.
    pub(super) fn clean_uplinks(&mut self, now: Instant) {
        let due = self.uplinks.next_deadline().is_some_and(|at| at <= now);
        if self.reconciler.is_dirty() || !(self.uplinks.is_dirty() || due) {
            return;
        }
        let used = self.reconciler.objects();
        if let Err(error) = self.uplinks.objects.clean(self.socket.netlink(), now, used) {
            self.complain(format!(
                "cannot remove next-hop objects on uplinks from the kernel, retrying: {error}"
            ));
        }
    }
}

fn no_carrier(hops: &[NextHop]) -> String {
    let gateways = hops.iter().filter_map(|hop| hop.gateway).map(|gateway| gateway.to_string());
    format!(
        "the link to the next hop {} is down or has no carrier: see to its cable and the port at its \
         other end",
        gateways.collect::<Vec<_>>().join(", ")
    )
}

const NO_OBJECTS: &str = "routes by uplinks name their next hops, though routes.nextHopObjects of the \
     NodeConfiguration is Everywhere: this kernel has no next-hop objects, which came with Linux 5.3";

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_kernel_without_objects_gets_plain_routes_and_it_is_said() {
        let mut uplinks = Uplinks::of(ObjectUse::Plain);
        let plain = Target::Unicast(vec![NextHop::via("192.0.2.2".parse().unwrap(), 7)]);
        let net = "10.0.0.0/24".parse().unwrap();
        assert_eq!(uplinks.problems(), Vec::<String>::new());
        for wanted in [NextHopObjects::Everywhere, NextHopObjects::TunnelsOnly] {
            uplinks.wanted = wanted;
            assert_eq!(uplinks.lead(net, plain.clone()), Ok(Some(plain.clone())));
            let told = uplinks.problems().iter().any(|problem| problem.contains("Linux 5.3"));
            assert_eq!(told, wanted == NextHopObjects::Everywhere);
            assert!(!uplinks.is_dirty());
        }
    }
}
