//! UPDATE: what a peer announces and withdraws (RFC 4271 section 4.3, RFC 4760, RFC 7606).

use std::fmt;
use std::net::{IpAddr, Ipv6Addr};

use super::attributes::PathAttributes;
use super::nlri::Prefixes;
use super::notification::Notification;
use crate::prefix::{Families, Family, Prefix};

/// Whether a session crosses an AS boundary.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum SessionSort {
    /// The peer is in another AS.
    Ebgp,
    /// The peer is in the same AS.
    Ibgp,
}

/// What the reading of an UPDATE depends on besides its octets.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct UpdateContext {
    /// eBGP or iBGP: which attributes may come at all.
    pub sort: SessionSort,
    /// AS numbers take four octets (RFC 6793).
    pub as4: bool,
    /// The negotiated families; prefixes of others are dropped (RFC 4760 section 6).
    pub families: Families,
    /// IPv4 routes may have IPv6 next hops (RFC 8950).
    pub extended_next_hop: bool,
    /// The AS number that AS_PATH has to begin with, on eBGP sessions that enforce it.
    pub first_as: Option<u32>,
}

/// The three parts of an UPDATE, borrowed and not looked into yet.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct UpdateBody<'a> {
    /// Withdrawn Routes.
    pub withdrawn: &'a [u8],
    /// Path Attributes.
    pub attributes: &'a [u8],
    /// Network Layer Reachability Information.
    pub nlri: &'a [u8],
}

/// The attribute octets of an UPDATE without MP_REACH_NLRI and MP_UNREACH_NLRI: under one
/// [`UpdateContext`], equal keys mean equal attributes and equal verdicts.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct AttributeKey<'a>(&'a [u8]);

/// A decoded UPDATE. Prefixes are borrowed from the message.
#[derive(Clone, Debug)]
pub struct Update<'a> {
    /// The attributes of all the announcements; `None` when nothing is announced.
    pub attributes: Option<PathAttributes>,
    /// What is wrong with the attributes, for the error history. Empty in the normal case.
    pub errors: Vec<AttributeError>,
    /// This is the End-of-RIB marker of a family (RFC 4724 section 2).
    pub end_of_rib: Option<Family>,
    parts: std::marker::PhantomData<&'a u8>,
}

/// Prefixes that are announced with one next hop.
#[derive(Clone, Copy, Debug)]
pub struct Announcement<'a> {
    /// Where to.
    pub next_hop: NextHop,
    /// The prefixes, all of one family.
    pub prefixes: Prefixes<'a>,
}

/// A next hop as it stands in NEXT_HOP or MP_REACH_NLRI.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct NextHop {
    /// The address; of the other family than the prefix under RFC 8950.
    pub address: IpAddr,
    /// The link-local address that may follow a global IPv6 one (RFC 2545 section 3).
    pub link_local: Option<Ipv6Addr>,
}

/// One thing wrong in an UPDATE's attributes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct AttributeError {
    /// The type code of the attribute.
    pub attribute_type: u8,
    /// What is wrong with it.
    pub fault: AttributeFault,
    /// What was done about it.
    pub verdict: AttributeVerdict,
}

/// What is wrong with an attribute.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum AttributeFault {
    /// The Optional or Transitive flag contradicts the type (RFC 7606 section 3c).
    Flags,
    /// The length contradicts the type.
    Length,
    /// The value is not allowed.
    Value,
    /// A mandatory attribute is missing (RFC 7606 section 3d).
    Missing,
    /// The attribute stands there again (RFC 7606 section 3g).
    Duplicate,
    /// The attribute may not come on a session of this sort.
    NotOnThisSession,
    /// The attributes run over the end of their field (RFC 7606 section 4).
    Overrun,
    /// The AS_PATH does not begin with the peer's AS (RFC 4271 section 6.3).
    FirstAs,
    /// An AS_SET or a confederation segment (RFC 9774).
    Segment,
}

/// The reaction to an [`AttributeError`] (RFC 7606 section 2), mildest first.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum AttributeVerdict {
    /// The attribute is dropped, the routes are used.
    Discard,
    /// The routes count as withdrawn.
    TreatAsWithdraw,
}

impl<'a> UpdateBody<'a> {
    /// Splits the body of an UPDATE by its two length fields.
    ///
    /// # Errors
    /// Malformed Attribute List, when the lengths do not fit the body (RFC 7606 section 3 b).
    pub fn split(body: &'a [u8]) -> Result<UpdateBody<'a>, Notification> {
        todo!("{body:?}")
    }

    /// The octets that attributes and verdicts depend on.
    pub fn attribute_key(&self) -> AttributeKey<'a> {
        todo!()
    }

    /// Reads and checks everything (RFC 7606).
    ///
    /// # Errors
    /// The NOTIFICATION that ends the session, where RFC 7606 leaves nothing milder.
    pub fn decode(&self, context: &UpdateContext) -> Result<Update<'a>, Notification> {
        todo!("{context:?}")
    }
}

impl<'a> Update<'a> {
    /// The prefixes that are withdrawn, those that are treated so because of an error included.
    pub fn withdrawn(&self) -> impl Iterator<Item = Prefix> + 'a {
        std::iter::empty()
    }

    /// The prefixes that are announced, by next hop. At most one announcement per encoding: MP_REACH_NLRI
    /// and the NLRI field.
    pub fn announcements(&self) -> impl Iterator<Item = Announcement<'a>> + 'a {
        std::iter::empty()
    }

    /// Whether routes are treated as withdrawn because of an error.
    pub fn is_treated_as_withdraw(&self) -> bool {
        self.errors.iter().any(|e| e.verdict == AttributeVerdict::TreatAsWithdraw)
    }
}

impl NextHop {
    /// A next hop without a link-local address beside it.
    pub const fn new(address: IpAddr) -> NextHop {
        NextHop { address, link_local: None }
    }
}

impl fmt::Display for AttributeError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "attribute {}: {:?}: {:?}", self.attribute_type, self.fault, self.verdict)
    }
}
