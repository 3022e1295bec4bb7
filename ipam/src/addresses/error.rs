//! Why no address was assigned.

use std::net::IpAddr;

use ipnet::IpNet;
use thiserror::Error;

use super::{AttachmentId, Family};
use crate::demand::Demand;

/// Why no address was assigned. Nothing has changed then.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
pub enum AssignError {
    /// The request names no address family.
    #[error("the request names no address family")]
    NoFamily,
    /// This node owns no block of the pools.
    #[error(
        "no {family} address: this node owns no {family} block of IPPool {} (is it ready, does it \
         select this node, has it a free block?)",
        names(pools)
    )]
    NoBlock {
        /// The family that could not be served.
        family: Family,
        /// The pools that were asked for.
        pools: Vec<String>,
    },
    /// This node owns blocks of the pools, but none of them may hand out addresses.
    #[error(
        "no {family} address: none of this node's {blocks} {family} block(s) of IPPool {} may hand \
         out new addresses (the agent's problems say why)",
        names(pools)
    )]
    Closed {
        /// The family that could not be served.
        family: Family,
        /// The pools that were asked for.
        pools: Vec<String>,
        /// Their blocks of the family.
        blocks: usize,
    },
    /// Every address of every block that may hand out is taken.
    #[error(
        "no {family} address: all {addresses} addresses of {open} {family} block(s) of IPPool {} \
         are in use ({foreign} of them by others than pods) or reserved ({reserved}); {closed} \
         more block(s) may not hand out",
        names(pools)
    )]
    Full {
        /// The family that could not be served.
        family: Family,
        /// The pools that were asked for.
        pools: Vec<String>,
        /// Their blocks of the family that may hand out.
        open: usize,
        /// Their blocks of the family that may not.
        closed: usize,
        /// Addresses in the blocks that may hand out.
        addresses: u128,
        /// Addresses in them that the kernel holds for something else.
        foreign: usize,
        /// Addresses in them that are reserved and that nothing holds.
        reserved: u128,
    },
    /// The address that was asked for lies in no block of this node.
    #[error(
        "{address} is in no block of this node: it can be given here only after this node has \
         claimed the whole block that holds it, which no other node may own"
    )]
    NotOurs {
        /// The address.
        address: IpAddr,
    },
    /// The address that was asked for lies in a block that may not hand out.
    #[error(
        "{address} is in {block}, which may not hand out new addresses (the agent's problems say \
         why)"
    )]
    BlockClosed {
        /// The address.
        address: IpAddr,
        /// The block.
        block: IpNet,
    },
    /// The address that was asked for is reserved.
    #[error("{address} is reserved by an IPReservation: ask for another or end the reservation")]
    Reserved {
        /// The address.
        address: IpAddr,
    },
    /// The address that was asked for is another attachment's.
    #[error("{address} is in use by {id}: it is free when that pod has gone")]
    HeldBy {
        /// The address.
        address: IpAddr,
        /// Who holds it.
        id: AttachmentId,
    },
    /// The node's kernel holds the address that was asked for, or routes it elsewhere.
    #[error("{address} is in use on this node by something else than a pod of Cairn")]
    HeldByOthers {
        /// The address.
        address: IpAddr,
    },
    /// The attachment holds addresses already, but not of every family that it asks for now.
    #[error("{id} holds addresses already but no {family} one: delete the attachment first")]
    HeldWithout {
        /// The attachment.
        id: AttachmentId,
        /// The family that it lacks.
        family: Family,
    },
    /// The attachment holds addresses already, but not the one that it asks for now.
    #[error("{id} holds addresses already but not {address}: delete the attachment first")]
    HoldsOther {
        /// The attachment.
        id: AttachmentId,
        /// The address that it asks for.
        address: IpAddr,
    },
}

impl AssignError {
    /// What has to come before a repeated request can be served, if it is a block.
    pub fn demand(&self) -> Option<Demand> {
        match self {
            AssignError::NoBlock { family, pools }
            | AssignError::Closed { family, pools, .. }
            | AssignError::Full { family, pools, .. } => {
                Some(Demand::Pools(*family, pools.clone()))
            }
            AssignError::NotOurs { address } | AssignError::BlockClosed { address, .. } => {
                Some(Demand::Address(*address))
            }
            AssignError::NoFamily
            | AssignError::Reserved { .. }
            | AssignError::HeldBy { .. }
            | AssignError::HeldByOthers { .. }
            | AssignError::HeldWithout { .. }
            | AssignError::HoldsOther { .. } => None,
        }
    }
}

fn names(pools: &[String]) -> String {
    match pools {
        [] => "(none)".into(),
        pools => pools.join(" or "),
    }
}
