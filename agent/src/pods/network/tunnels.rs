//! The addresses of the node's tunnel devices: out of its own blocks, as pods' are, and in the same
//! book, so that none is both.
//!
//! ```text
//!  supply ──settle_tunnels()──► TunnelAddresses (a revision) ──► who writes the devices
//!                       free_tunnel_addresses(revision) ◄──────────────┘
//! ```
//!
//! An address is in the book from before it is told to anybody until the devices are without it.

use std::collections::BTreeMap;
use std::net::IpAddr;

use cairn_api::TunnelKind;
use cairn_ipam::{AddressRequest, AttachmentId, Choice, Family};

use super::super::TunnelAddresses;
use super::super::kernel::{PodKernel, TunnelsFound};
use super::PodNetwork;
use crate::tunnels::device_name;

/// What the tunnel devices have.
#[derive(Debug, Default)]
pub(super) struct Tunnels {
    /// What they are to have.
    pub(super) wanted: TunnelAddresses,
    /// What they may have still, each with the revision that is without it.
    leaving: BTreeMap<AttachmentId, u64>,
}

impl<K: PodKernel> PodNetwork<K> {
    /// Records what the kernel's devices have, of each family the first: it is kept where that may
    /// be. Of what they have besides the pods' book knows that it is in use.
    pub(super) fn adopt_tunnels(&mut self, found: TunnelsFound) {
        for (kind, addresses) in found {
            for address in addresses {
                let family = Family::of(address);
                let mut id = AttachmentId::of_device(device_name(kind), family);
                if self.tunnels.wanted.held.contains_key(&(kind, family)) {
                    // One too many: the devices lose it.
                    id.ifname = address.to_string();
                    self.tunnels.wanted.revision = 1;
                    self.tunnels.leaving.insert(id.clone(), 1);
                }
                for clash in self.book.adopt(id, vec![address]) {
                    tracing::error!(address = %clash, "a tunnel device and a pod hold one address");
                }
                self.tunnels.wanted.held.entry((kind, family)).or_insert(address);
            }
        }
    }

    /// Gives each device that is wanted an address of each family, and takes away what is not.
    pub(super) fn settle_tunnels(&mut self) {
        // Before the first word about blocks what an earlier agent has left stays.
        if self.supply.lodgings.is_none() {
            return;
        }
        let before = self.tunnels.wanted.held.clone();
        for kind in [TunnelKind::VXLAN, TunnelKind::IPIP] {
            for family in [Family::V4, Family::V6] {
                self.settle_tunnel(kind, family);
            }
        }
        if self.tunnels.wanted.held != before {
            self.tunnels.wanted.revision += 1;
            let revision = self.tunnels.wanted.revision;
            for (kind, family) in before.keys() {
                if !self.tunnels.wanted.held.contains_key(&(*kind, *family)) {
                    let id = AttachmentId::of_device(device_name(*kind), *family);
                    self.tunnels.leaving.insert(id, revision);
                }
            }
        }
    }

    fn settle_tunnel(&mut self, kind: TunnelKind, family: Family) {
        let id = AttachmentId::of_device(device_name(kind), family);
        let pools = self.supply.tunnels.get(&(kind, family));
        let place = (kind, family);
        if let Some(held) = self.tunnels.wanted.held.get(&place) {
            let stays = pools.is_some_and(|pools| self.may_lodge(*held, pools));
            if !stays {
                self.tunnels.wanted.held.remove(&place);
            }
            // A device is without an address for a moment rather than with one in two blocks.
            return;
        }
        let Some(pools) = pools.filter(|_| !self.tunnels.leaving.contains_key(&id)) else { return };
        let request = AddressRequest { family, choice: Choice::Pools(pools.clone()) };
        // Without a free address now it comes with the next block.
        let now = self.options.clock.now();
        let assigned = self.book.assign(&id, &[request], now).unwrap_or_default();
        match assigned.first() {
            Some(address) if self.may_lodge(*address, pools) => {
                self.tunnels.wanted.held.insert(place, *address);
            }
            // Nobody has heard of it.
            Some(_) => drop(self.book.release(&id, now)),
            None => {}
        }
    }

    /// Whether a device may have `address`, which it has: in a block that stays, of one of `pools`.
    fn may_lodge(&self, address: IpAddr, pools: &[String]) -> bool {
        self.supply.blocks.iter().any(|block| {
            block.cidr.contains(&address)
                && pools.contains(&block.pool)
                && self.supply.lodgings.as_ref().is_some_and(|all| all.contains(&block.cidr))
        })
    }

    /// The devices have what `revision` says: frees what they had before, and gives anew.
    pub(super) fn free_tunnel_addresses(&mut self, revision: u64) {
        let gone: Vec<AttachmentId> = self
            .tunnels
            .leaving
            .extract_if(.., |_, without| *without <= revision)
            .map(|(id, _)| id)
            .collect();
        for id in &gone {
            self.book.release(id, self.options.clock.now());
        }
        if !gone.is_empty() {
            self.settle_tunnels();
            self.retry_waiting();
            self.publish();
        }
    }
}
