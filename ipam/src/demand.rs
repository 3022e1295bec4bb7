//! What a node's pods ask for, and what they lack: the words between the owner of the addresses and
//! the owner of the blocks.

use std::fmt;
use std::net::IpAddr;

use cairn_api::LabelSelector;
use ipnet::IpNet;

use crate::addresses::Family;

/// Where the address of one family comes from.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Choice {
    /// From a block of one of these pools, by name; the first that has a free address which is not
    /// cooling serves, else the one whose address was freed first.
    Pools(Vec<String>),
    /// This one and no other.
    Address(IpAddr),
}

/// One address that an attachment asks for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct AddressRequest {
    /// Of which family.
    pub family: Family,
    /// Where from.
    pub choice: Choice,
}

/// What pods lack since the blocks last changed: a block is needed now.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Demand {
    /// A block of one of these pools, by name, in the order of preference.
    Pools(Family, Vec<String>),
    /// The block that holds this address.
    Address(IpAddr),
}

impl Demand {
    /// The family of the address that is lacking.
    pub fn family(&self) -> Family {
        match self {
            Demand::Pools(family, _) => *family,
            Demand::Address(address) => Family::of(*address),
        }
    }
}

impl fmt::Display for Demand {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Demand::Pools(family, pools) => {
                write!(f, "an {family} block of IPPool {}", pools.join(" or "))
            }
            Demand::Address(address) => write!(f, "the block that holds {address}"),
        }
    }
}

/// A pool as the choice of a pod's addresses needs it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PodPool {
    /// The pool's name.
    pub name: String,
    /// The pool's range.
    pub cidr: IpNet,
    /// The namespaces that it serves; all when absent. A namespace that a usable pool of a family
    /// names by its selector is served by such pools only, for that family.
    pub namespaces: Option<LabelSelector>,
    /// Why no pod of this node gets a new address from it; `None` when they may.
    pub unusable: Option<String>,
}
