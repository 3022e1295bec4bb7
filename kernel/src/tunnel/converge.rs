//! The kernel is read and written until it is as wanted.

use std::collections::BTreeMap;
use std::time::Instant;

use rustix::io::Errno;

use super::device::{self, Encapsulation, TunnelKind};
use super::entries;
use super::{DeviceState, Tunnels};
use crate::batch::Batch;
use crate::error::{Error, Refusal};
use crate::nexthop::{ObjectUse, Way};
use crate::objects::{self, ObjectId};
use crate::reconcile::{Failure, Pass};
use crate::socket::{Acknowledge, Netlink};
use crate::{TUNNEL_OBJECTS, nexthop};

impl Tunnels {
    pub(super) fn converge(
        &mut self,
        netlink: &mut Netlink,
        now: Instant,
        pass: &mut Pass,
    ) -> Result<(), Error> {
        for _ in 0..ROUNDS_MAX {
            if self.needs_read {
                self.read(netlink)?;
                pass.resyncs += 1;
            }
            for kind in TunnelKind::ALL {
                self.needs_read |= self.write_device(kind, netlink, now, pass)?;
            }
            if self.needs_read {
                continue;
            }
            self.edits += std::mem::take(&mut self.undone);
            if self.dirty {
                self.want_entries();
            }
            // Objects last: routes may point to them as soon as they are there.
            self.needs_read |= self.neighbours.write(netlink, now, pass)?;
            self.needs_read |= self.forwarding.write(netlink, now, pass)?;
            self.needs_read |= self.objects.write(netlink, now, pass)?;
            if !self.needs_read {
                (self.dirty, self.unwritten) = (false, false);
                return Ok(());
            }
        }
        // Somebody changes things as fast as they are read; go on with the next event.
        Ok(())
    }

    pub(super) fn sweep(
        &mut self,
        netlink: &mut Netlink,
        now: Instant,
        pass: &mut Pass,
    ) -> Result<(), Error> {
        let mut batch = Batch::new();
        for state in self.devices.values() {
            let Some(present) = &state.present else { continue };
            match &state.wanted {
                None if present.has_alias() => {
                    batch.delete_link(present.link.index);
                }
                Some(wanted) if present.is_ours(Some(wanted)) => {
                    let index = present.link.index;
                    for address in present.stale_addresses(wanted) {
                        batch.delete_address(index, address);
                        // With its last address a link loses its neighbours.
                        let of_family = address.addr().is_ipv4();
                        self.neighbours.lose(|key, _| {
                            key.ifindex == index && key.address.is_ipv4() == of_family
                        });
                    }
                }
                _ => {}
            }
        }
        let refusals = netlink.execute(&mut batch, Acknowledge::Each)?;
        pass.deleted += batch.len() - refusals.len();
        pass.refused += refusals.len();
        if batch.len() > refusals.len() {
            // A device took all that was on it along.
            self.needs_read = true;
            return Ok(());
        }
        self.objects.sweep(netlink, now, pass, |_| false)?;
        self.neighbours.sweep(netlink, now, pass, |_| false)?;
        self.forwarding.sweep(netlink, now, pass, |_| false)
    }

    /// Reads devices, what stands on those that are wanted, and objects.
    fn read(&mut self, netlink: &mut Netlink) -> Result<(), Error> {
        let (mut neighbours, mut forwarding) = (BTreeMap::new(), BTreeMap::new());
        for (kind, state) in &mut self.devices {
            let present = device::read(netlink, *kind)?;
            let (index, was_settled) = (state.index(), state.is_settled());
            state.present = present;
            if state.index() != index {
                // All that was on it went with it: that is one edit and not thousands.
                self.undone = 0;
                self.neighbours.lose(|key, _| Some(key.ifindex) == index);
                self.forwarding.lose(|key, _| Some(key.ifindex) == index);
                self.objects
                    .lose(|_, way| matches!(way, Way::Hop(hop) if Some(hop.ifindex) == index));
            }
            self.edits += u64::from(was_settled && !state.is_settled());
            if let Some(index) = state.index() {
                neighbours.append(&mut entries::neighbours(netlink, index)?);
                if *kind == TunnelKind::Vxlan {
                    forwarding.append(&mut entries::forwarding(netlink, index)?);
                }
            }
        }
        self.edits += self.neighbours.read(neighbours);
        self.edits += self.forwarding.read(forwarding);
        if self.object_use == ObjectUse::Objects {
            self.taken.clear();
            let mut found = BTreeMap::new();
            for object in nexthop::list(netlink)? {
                let id = object.id;
                match objects::own_way(object, &TUNNEL_OBJECTS) {
                    Some(way) => drop(found.insert(ObjectId(id), way)),
                    None if TUNNEL_OBJECTS.contains(&id) => drop(self.taken.insert(id)),
                    None => {}
                }
            }
            self.edits += self.objects.read(found);
        }
        self.needs_read = false;
        (self.dirty, self.unclean) = (true, true);
        Ok(())
    }

    /// Brings a device one round nearer to what is wanted; true when it must be read again.
    fn write_device(
        &mut self,
        kind: TunnelKind,
        netlink: &mut Netlink,
        now: Instant,
        pass: &mut Pass,
    ) -> Result<bool, Error> {
        let Some(state) = self.devices.get_mut(&kind) else { return Ok(false) };
        let Some(wanted) = state.wanted.clone() else { return Ok(false) };
        let steps = match device::plan(&wanted, state.present.as_ref()) {
            Err(problem) => {
                state.settle();
                state.problem = Some(problem);
                return Ok(false);
            }
            Ok(steps) => steps,
        };
        if steps.is_empty() {
            state.settle();
            return Ok(false);
        }
        if steps.iter().all(|step| state.tried.contains(step)) {
            if !state.failed {
                let text = format!(
                    "the kernel takes settings of {} and does not keep them: find out which program \
                     changes them back",
                    kind.device_name()
                );
                state.fail(now, Refusal { index: 0, errno: Errno::AGAIN, text: None }, text);
                return Ok(false);
            }
            if state.failure.as_ref().is_some_and(|failure| failure.waits(now)) {
                return Ok(false);
            }
        }
        let (mut batch, mut actions) = (Batch::new(), Vec::new());
        for step in &steps {
            step.encode(&wanted, &mut batch, &mut actions);
        }
        let refusals = netlink.execute(&mut batch, Acknowledge::Each)?;
        pass.created += actions.len() - refusals.len();
        pass.refused += refusals.len();
        (state.tried, state.failed) = (steps, false);
        if let Some(refusal) = refusals.into_iter().next() {
            let rivals = match wanted.encapsulation {
                Encapsulation::Vxlan(vxlan) => device::rivals(netlink, vxlan.port)?,
                Encapsulation::Ipip => Vec::new(),
            };
            let action = actions.get(refusal.index).map_or("change", String::as_str);
            let text = device::explain(&wanted, action, &refusal, &rivals);
            state.fail(now, refusal, text);
        }
        Ok(true)
    }
}

impl DeviceState {
    fn fail(&mut self, now: Instant, refusal: Refusal, problem: String) {
        let failure = Failure::again(self.failure.as_ref(), now, refusal.errno, refusal.text);
        self.failure = Some(failure);
        (self.failed, self.problem) = (true, Some(problem));
    }

    /// Forgets what failed.
    pub(super) fn settle(&mut self) {
        self.tried.clear();
        (self.failed, self.failure, self.problem) = (false, None, None);
    }

    /// Whether the device is as wanted.
    fn is_settled(&self) -> bool {
        let plan = self.wanted.as_ref().map(|wanted| device::plan(wanted, self.present.as_ref()));
        plan.is_some_and(|plan| plan.is_ok_and(|steps| steps.is_empty()))
    }
}

/// How often one pass reads and writes: creating a device takes three rounds.
const ROUNDS_MAX: usize = 6;
