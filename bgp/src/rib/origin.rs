//! Who may announce a block: origin validation with the three verdicts of RFC 6811.
//!
//! The owner of a block is an object of the cluster and not a certificate, and BGP overtakes the watch
//! that brings it. So a block that nobody is known to own is accepted and judged again when the table
//! changes; a route against the known owner is not newly used, and one that is in use stays, with a
//! verdict that says so, until the conflict ends: to cut off pods that run would be the worse mistake.

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::sync::Arc;

use crate::prefix::Prefix;

use super::attributes::RouteAttributes;

/// The owners of blocks, as far as they are known.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct OriginTable {
    /// By block. A block of another owner inside of one is a conflict that claims do not allow.
    pub blocks: BTreeMap<Prefix, BlockOwner>,
}

/// Who owns a block.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct BlockOwner {
    /// The node's name, for people.
    pub name: Arc<str>,
    /// The AS in which its routes originate.
    pub asn: u32,
    /// Its addresses, which its routes have as next hop inside the AS.
    pub addresses: Vec<IpAddr>,
}

/// What origin validation says about a route.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum OriginVerdict {
    /// The block's owner announced it.
    Valid,
    /// No owner is known.
    NotFound,
    /// Another one owns the block.
    Invalid {
        /// The owner's name.
        owner: Arc<str>,
    },
}

impl OriginTable {
    /// Judges a route to `prefix`: a block or a part of one. Routes that left the owner's AS are told
    /// by the last AS of their AS_PATH, those that did not by their next hop.
    pub fn verdict(&self, prefix: Prefix, attributes: &RouteAttributes) -> OriginVerdict {
        // Blocks do not overlap, so the one that covers `prefix` is the last at or before it.
        let block = self.blocks.range(..=prefix).next_back();
        let Some((_, owner)) = block.filter(|(block, _)| block.contains(prefix)) else {
            return OriginVerdict::NotFound;
        };
        let is_valid = match attributes.path.origin_as() {
            Some(origin) => origin == owner.asn,
            None => owner.addresses.contains(&attributes.next_hop.address),
        };
        match is_valid {
            true => OriginVerdict::Valid,
            false => OriginVerdict::Invalid { owner: Arc::clone(&owner.name) },
        }
    }
}
