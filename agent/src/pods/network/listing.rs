//! The comparison of the book with the kernel: what has gone frees its addresses, what is there holds
//! them.

use std::collections::{BTreeSet, HashSet};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::time::Duration;

use cairn_ipam::{AttachmentId, Rule};
use cairn_kernel::Error;
use cairn_kernel::pod::PodAttachment;
use futures::FutureExt;
use ipnet::IpNet;

use super::super::kernel::{Listed, PodKernel, Question};
use super::{Done, Interface, PodNetwork, id_of, marked, unrecorded};

/// Whether a dump of the kernel's pods is wanted or under way.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Listing {
    Idle,
    Due(Duration),
    Running { again: bool },
}

impl<K: PodKernel> PodNetwork<K> {
    /// Takes in what the kernel holds for others.
    pub(super) fn take_foreign(&mut self, foreign: BTreeSet<IpAddr>) {
        if self.options.rules.hold(Rule::OwnKernel) {
            self.foreign = foreign;
            self.mark_foreign();
        }
    }

    /// Takes in which parts of own blocks the kernel routes elsewhere.
    pub(super) fn take_elsewhere(&mut self, elsewhere: BTreeSet<IpNet>) {
        if self.options.rules.hold(Rule::OwnKernel) {
            self.elsewhere = elsewhere;
            self.mark_foreign();
            // It frees those to which no route leads any more.
            self.request_listing();
            self.publish();
        }
    }

    /// Keeps addresses of own blocks that the kernel holds for others, or routes elsewhere, from being
    /// handed out.
    pub(super) fn mark_foreign(&mut self) {
        for prefix in self.elsewhere.clone() {
            self.mark_network(marked(prefix, prefix.network()));
        }
        for cidr in self.cidrs() {
            for address in self.foreign.range(cidr.network()..=cidr.broadcast()) {
                self.book.mark_foreign(*address);
            }
        }
    }

    /// Keeps what lies in `foreign` and in own blocks from being handed out.
    pub(super) fn mark_network(&mut self, foreign: IpNet) {
        for cidr in self.cidrs() {
            let inside = if cidr.contains(&foreign) { foreign } else { cidr };
            if foreign.contains(&inside) {
                inside_addresses(inside).for_each(|address| self.book.mark_foreign(address));
            }
        }
    }

    /// Records an interface that the kernel has.
    pub(super) fn adopt(&mut self, found: &PodAttachment) {
        let id = match &found.alias {
            Some(alias) => id_of(&alias.container_id, &alias.ifname),
            None => {
                tracing::warn!(
                    interface = found.host_ifname,
                    alias = found.alias_unread,
                    "a pod interface without a readable alias keeps its addresses"
                );
                unrecorded(&found.host_ifname)
            }
        };
        let clashes = self.book.adopt(id.clone(), found.addresses());
        for address in clashes {
            tracing::error!(%address, interface = found.host_ifname, "two pods hold one address");
        }
        let attachment = Interface {
            host_ifname: found.host_ifname.clone(),
            pod: self.names.read(&found.host_ifname),
            network: found.alias.as_ref().map(|alias| alias.network),
            added_at: self.now(),
            since: self.generation,
        };
        self.attachments.insert(id, attachment);
    }

    pub(super) fn request_listing(&mut self) {
        let soon = self.now() + LISTING_DELAY;
        self.listing = match self.listing {
            Listing::Idle => Listing::Due(soon),
            Listing::Running { .. } => Listing::Running { again: true },
            Listing::Due(at) => Listing::Due(at.min(soon)),
        };
    }

    pub(super) fn list(&mut self) {
        self.listing = Listing::Running { again: false };
        let generation = self.generation;
        let node_addresses = self.config.as_ref().map(|config| config.node_addresses.clone());
        let foreign = self.book.foreign().collect();
        let listing = self.kernel.list(Question { node_addresses, foreign, blocks: self.cidrs() });
        self.work.push(listing.map(move |outcome| Done::Listed { generation, outcome }).boxed());
    }

    pub(super) fn finish_listing(&mut self, generation: u64, outcome: Result<Listed, Error>) {
        let again = self.listing == Listing::Running { again: true };
        self.listing = Listing::Idle;
        let listed = match outcome {
            Ok(listed) => listed,
            Err(error) => {
                tracing::warn!(%error, "cannot compare the node's pods with the kernel");
                self.listing = Listing::Due(self.now() + LISTING_RETRY);
                return;
            }
        };
        if again {
            self.request_listing();
        } else if listed.incomplete {
            self.listing = Listing::Due(self.now() + LISTING_RETRY);
        }
        let present: BTreeSet<&str> =
            listed.attachments.iter().map(|found| found.host_ifname.as_str()).collect();
        let vanished: Vec<AttachmentId> = self
            .attachments
            .iter()
            .filter(|(id, held)| {
                held.since <= generation
                    && !present.contains(held.host_ifname.as_str())
                    && !self.busy.contains_key(id)
            })
            .map(|(id, _)| id.clone())
            .collect();
        for id in &vanished {
            self.forget(id, "its interface has gone without a DEL");
        }
        if generation == self.generation && self.options.rules.hold(Rule::KernelIsRecord) {
            let known: HashSet<&str> =
                self.attachments.values().map(|held| held.host_ifname.as_str()).collect();
            let is_new = |found: &&PodAttachment| {
                let under_way = found.alias.as_ref().is_some_and(|alias| {
                    self.busy.contains_key(&id_of(&alias.container_id, &alias.ifname))
                });
                !known.contains(found.host_ifname.as_str()) && !under_way && !found.is_half_done()
            };
            let found: Vec<&PodAttachment> = listed.attachments.iter().filter(is_new).collect();
            found.into_iter().for_each(|found| self.adopt(found));
        }
        self.take_foreign(listed.foreign);
        for &address in &listed.freed {
            self.book.clear_foreign(address, self.now());
        }
        // Of the end of what others use the kernel does not always tell.
        if self.listing == Listing::Idle && self.book.foreign().next().is_some() {
            self.listing = Listing::Due(self.now() + FOREIGN_LOOK);
        }
        if !vanished.is_empty() || !listed.freed.is_empty() {
            self.retry_waiting();
        }
        self.publish();
    }
}

/// Every address of `network`, the first and the last among them.
fn inside_addresses(network: IpNet) -> Box<dyn Iterator<Item = IpAddr>> {
    match network {
        IpNet::V4(net) => {
            let (first, last) = (u32::from(net.network()), u32::from(net.broadcast()));
            Box::new((first..=last).map(|bits| Ipv4Addr::from(bits).into()))
        }
        IpNet::V6(net) => {
            let (first, last) = (u128::from(net.network()), u128::from(net.broadcast()));
            Box::new((first..=last).map(|bits| Ipv6Addr::from(bits).into()))
        }
    }
}

/// While others use addresses of own blocks it is looked so often whether they still do.
const FOREIGN_LOOK: Duration = Duration::from_secs(60);
/// Gathers a burst of kernel events into one dump.
const LISTING_DELAY: Duration = Duration::from_millis(100);
const LISTING_RETRY: Duration = Duration::from_secs(5);
