//! UPDATE: what a peer announces and withdraws (RFC 4271 section 4.3, RFC 4760, RFC 7606).

use std::borrow::Cow;
use std::fmt;
use std::net::{IpAddr, Ipv6Addr};
use std::sync::Arc;

use bytes::Bytes;

use super::attributes::{PathAttributes, Tlvs, attribute_type};
use super::codes::AttributeTypes;
use super::nlri::Prefixes;
use super::notification::{Notification, NotificationError, UpdateError};
use super::reader::Reader;
use super::validate::{self, AttributeErrors, Checked};
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
    /// Families whose prefixes have the identifiers of their paths in front of them (RFC 7911).
    pub path_ids: Families,
    /// IPv4 routes may have IPv6 next hops (RFC 8950).
    pub extended_next_hop: bool,
    /// The AS number that AS_PATH has to begin with, on eBGP sessions that enforce it.
    pub first_as: Option<u32>,
    /// Attributes that are dropped before anything about them is looked at, which is no error.
    pub discard_attributes: AttributeTypes,
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

/// An UPDATE whose multiprotocol attributes have been found.
///
/// It lies between the cheap part of reading, which depends on the message, and the dear one, which
/// depends on [`LocatedUpdate::attribute_octets`] only.
#[derive(Clone, Debug)]
pub struct LocatedUpdate<'a> {
    body: UpdateBody<'a>,
    reach: Option<MpAttribute<'a>>,
    unreach: Option<MpAttribute<'a>>,
    others: Cow<'a, [u8]>,
}

/// The attributes of an UPDATE after all checks that need nothing but their octets: what a cache
/// keeps under [`LocatedUpdate::attribute_octets`].
#[derive(Clone, Debug)]
pub struct CheckedAttributes(Checked);

#[derive(Clone, Copy, Debug)]
struct MpAttribute<'a> {
    /// Flags, type and length included.
    octets: &'a [u8],
    value: &'a [u8],
}

/// A decoded UPDATE. Prefixes are borrowed from the message.
///
/// Withdrawals come before announcements: a prefix that stands in both is announced (RFC 4271
/// section 4.3).
#[derive(Clone, Debug)]
pub struct Update<'a> {
    /// The attributes of all the announcements; `None` when nothing is announced.
    pub attributes: Option<Arc<PathAttributes>>,
    /// What is wrong with the attributes, for the error history: the first ones only, if there are
    /// very many. Empty in the normal case.
    pub errors: Vec<AttributeError>,
    /// This is the End-of-RIB marker of a family (RFC 4724 section 2).
    pub end_of_rib: Option<Family>,
    withdrawn: [Option<Prefixes<'a>>; 4],
    announced: [Option<Announcement<'a>>; 2],
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
    /// The attribute runs over the end of the attributes (RFC 7606 section 4).
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
    /// Malformed Attribute List, when the lengths do not fit the body (RFC 7606 section 3 a and b).
    pub fn split(body: &'a [u8]) -> Result<UpdateBody<'a>, Notification> {
        let mut reader = Reader(body);
        match (reader.counted_u16(), reader.counted_u16()) {
            (Some(withdrawn), Some(attributes)) => {
                Ok(UpdateBody { withdrawn, attributes, nlri: reader.0 })
            }
            _ => Err(UpdateError::MalformedAttributeList.into()),
        }
    }

    /// Reads and checks everything (RFC 7606).
    ///
    /// # Errors
    /// The NOTIFICATION that ends the session, where RFC 7606 leaves nothing milder.
    pub fn decode(self, context: &UpdateContext) -> Result<Update<'a>, Notification> {
        let located = self.locate()?;
        let checked = located.check(context)?;
        located.finish(context, &checked)
    }

    /// Finds MP_REACH_NLRI and MP_UNREACH_NLRI.
    ///
    /// # Errors
    /// Attribute Flags Error for one with wrong flags: RFC 7606 section 5.3 lets no routes be treated
    /// as withdrawn then. Malformed Attribute List, when one of them stands there twice (section 3 g).
    pub fn locate(self) -> Result<LocatedUpdate<'a>, Notification> {
        let (mut reach, mut unreach) = (None, None);
        let mut others = Cow::Borrowed(self.attributes);
        let mut tlvs = Tlvs(Reader(self.attributes));
        // Where the octets after the last multiprotocol attribute begin, as octets left behind it.
        let mut before = self.attributes.len();
        loop {
            let start = tlvs.0.0;
            let Some((flags, code, value)) = tlvs.next() else { break };
            let after = tlvs.0.0;
            let slot = match code {
                attribute_type::MP_REACH_NLRI => &mut reach,
                attribute_type::MP_UNREACH_NLRI => &mut unreach,
                _ => {
                    before = after.len();
                    continue;
                }
            };
            let octets = start.get(..start.len() - after.len()).unwrap_or_default();
            if validate::flags_verdict(code, flags).is_some() {
                let error = NotificationError::Update(UpdateError::AttributeFlags);
                return Err(Notification::with_data(error, Bytes::copy_from_slice(octets)));
            }
            if slot.replace(MpAttribute { octets, value }).is_some() {
                return Err(UpdateError::MalformedAttributeList.into());
            }
            others = without(others, before, after);
            before = after.len();
        }
        Ok(LocatedUpdate { body: self, reach, unreach, others })
    }
}

/// `octets` without what lies between the last `before` and the last octets `after` of them. At the
/// front, where RFC 7606 section 5.1 wants MP_REACH_NLRI to be, and at the end that needs no copy.
fn without<'a>(octets: Cow<'a, [u8]>, before: usize, after: &'a [u8]) -> Cow<'a, [u8]> {
    let kept = octets.len().saturating_sub(before);
    match octets {
        _ if kept == 0 => Cow::Borrowed(after),
        Cow::Borrowed(octets) if after.is_empty() => {
            Cow::Borrowed(octets.get(..kept).unwrap_or_default())
        }
        octets => {
            let head = octets.get(..kept).unwrap_or_default();
            Cow::Owned([head, after].concat())
        }
    }
}

impl<'a> LocatedUpdate<'a> {
    /// The attributes without MP_REACH_NLRI and MP_UNREACH_NLRI. Under one [`UpdateContext`], equal
    /// octets give equal [`CheckedAttributes`], so that a cache may save [`LocatedUpdate::check`].
    pub fn attribute_octets(&self) -> &[u8] {
        &self.others
    }

    /// Checks the attributes, as far as they do not depend on the prefixes.
    ///
    /// # Errors
    /// Unrecognized Well-known Attribute (RFC 4271 section 6.3).
    pub fn check(&self, context: &UpdateContext) -> Result<CheckedAttributes, Notification> {
        validate::check(&self.others, context).map(CheckedAttributes)
    }

    /// Puts prefixes, next hops and attributes together. `checked` has to come from
    /// [`LocatedUpdate::check`] of equal octets in the same context.
    ///
    /// # Errors
    /// Malformed prefixes or next hops (RFC 7606 sections 5.3 and 7.11), or errors in an UPDATE that
    /// shows no prefix to treat as withdrawn (section 5.2).
    pub fn finish(
        &self,
        context: &UpdateContext,
        CheckedAttributes(checked): &CheckedAttributes,
    ) -> Result<Update<'a>, Notification> {
        let parts = Parts {
            withdrawn: parse_ipv4(context, self.body.withdrawn)?,
            nlri: parse_ipv4(context, self.body.nlri)?,
            unreach: self.unreach.map(|attribute| attribute.unreach(context)).transpose()?,
            reach: self.reach.map(|attribute| attribute.reach(context)).transpose()?,
        };
        let mut errors = checked.errors.clone();
        let announces = parts.announces();
        parts.check(checked, &mut errors);
        // RFC 7606 section 5.2: without any prefix to withdraw, the prefixes may have been lost.
        if errors.withdraws() && !announces {
            return Err(errors.into_reset(&self.others));
        }

        let negotiated = |prefixes: &Prefixes<'_>| {
            !prefixes.is_empty() && context.families.contains(prefixes.family())
        };
        let nlri = Some(parts.nlri).filter(negotiated);
        let reach = parts.reach.flatten();
        let reached = reach.map(|reach| reach.prefixes).filter(negotiated);
        let withdrawn = Some(parts.withdrawn).filter(negotiated);
        let unreached = parts.unreach.flatten().filter(negotiated);
        let end_of_rib = self.end_of_rib(&parts).filter(|f| context.families.contains(*f));
        if errors.withdraws() {
            let withdrawn = [withdrawn, unreached, nlri, reached];
            let errors = errors.listed;
            return Ok(Update {
                attributes: None,
                errors,
                end_of_rib,
                withdrawn,
                announced: [None; 2],
            });
        }
        let next_hop = checked.next_hop.map(|address| NextHop::new(IpAddr::V4(address)));
        let announced = [(nlri, next_hop), (reached, reach.and_then(|reach| reach.next_hop))]
            .map(|(prefixes, next_hop)| prefixes.zip(next_hop))
            .map(|both| both.map(|(prefixes, next_hop)| Announcement { next_hop, prefixes }));
        let attributes = checked.attributes.as_ref();
        Ok(Update {
            attributes: attributes.filter(|_| announced.iter().any(Option::is_some)).cloned(),
            errors: errors.listed,
            end_of_rib,
            withdrawn: [withdrawn, unreached, None, None],
            announced,
        })
    }

    /// RFC 4724 section 2: an empty UPDATE for IPv4 unicast, for other families one that holds nothing
    /// but an MP_UNREACH_NLRI without prefixes.
    fn end_of_rib(&self, parts: &Parts<'_>) -> Option<Family> {
        let UpdateBody { withdrawn, attributes, nlri } = self.body;
        if !withdrawn.is_empty() || !nlri.is_empty() {
            return None;
        }
        match parts.unreach {
            None => attributes.is_empty().then_some(Family::Ipv4Unicast),
            Some(unreach) => {
                let alone = self.others.is_empty() && self.reach.is_none();
                unreach.filter(|prefixes| alone && prefixes.is_empty()).map(|p| p.family())
            }
        }
    }
}

/// The four places of an UPDATE where prefixes stand. The inner `None` of the multiprotocol ones is a
/// family that was not negotiated.
#[derive(Clone, Copy, Debug)]
struct Parts<'a> {
    withdrawn: Prefixes<'a>,
    nlri: Prefixes<'a>,
    unreach: Option<Option<Prefixes<'a>>>,
    reach: Option<Option<Reach<'a>>>,
}

impl Parts<'_> {
    /// Whether any prefix is announced, be it of a family that was not negotiated.
    fn announces(&self) -> bool {
        let reaches = self.reach.is_some_and(|r| r.is_none_or(|reach| !reach.prefixes.is_empty()));
        reaches || !self.nlri.is_empty()
    }

    /// What announcements need: the mandatory attributes (RFC 7606 section 3 d) and a next hop.
    fn check(&self, checked: &Checked, errors: &mut AttributeErrors) {
        let mut withdraw =
            |code, fault| errors.push(code, fault, AttributeVerdict::TreatAsWithdraw);
        if self.announces() {
            for code in checked.missing.into_iter().flatten() {
                withdraw(code, AttributeFault::Missing);
            }
        }
        // RFC 4760 section 3: beside MP_REACH_NLRI alone NEXT_HOP is ignored. Its length is not: RFC
        // 7606 section 7.3 makes no exception.
        let counts = !self.nlri.is_empty() || self.reach.is_none();
        match checked.next_hop.map(|address| NextHop::new(IpAddr::V4(address)).checked()) {
            Some(None) if counts => withdraw(attribute_type::NEXT_HOP, AttributeFault::Value),
            None if !self.nlri.is_empty() && !checked.next_hop_is_wrong => {
                withdraw(attribute_type::NEXT_HOP, AttributeFault::Missing);
            }
            _ => {}
        }
        if let Some(Some(Reach { next_hop: None, .. })) = self.reach {
            withdraw(attribute_type::MP_REACH_NLRI, AttributeFault::Value);
        }
    }
}

/// What MP_REACH_NLRI says about a family that this speaker carries.
#[derive(Clone, Copy, Debug)]
struct Reach<'a> {
    /// `None` when it is not a host address.
    next_hop: Option<NextHop>,
    prefixes: Prefixes<'a>,
}

impl<'a> MpAttribute<'a> {
    /// MP_UNREACH_NLRI (RFC 4760 section 4); `None` for a family that was not negotiated.
    fn unreach(self, context: &UpdateContext) -> Result<Option<Prefixes<'a>>, Notification> {
        let mut reader = Reader(self.value);
        let malformed = || self.malformed();
        let (afi, safi) = reader.u16().zip(reader.u8()).ok_or_else(malformed)?;
        let family = Family::from_afi_safi(afi, safi).filter(|f| context.families.contains(*f));
        family.map(|family| context.parse(family, reader.0).ok_or_else(malformed)).transpose()
    }

    /// MP_REACH_NLRI (RFC 4760 section 3); `None` for a family that was not negotiated: nothing is
    /// known about the length of its next hops.
    fn reach(self, context: &UpdateContext) -> Result<Option<Reach<'a>>, Notification> {
        let mut reader = Reader(self.value);
        let malformed = || self.malformed();
        let (afi, safi) = reader.u16().zip(reader.u8()).ok_or_else(malformed)?;
        let next_hop = reader.counted_u8().ok_or_else(malformed)?;
        // One reserved octet follows the next hop.
        reader.u8().ok_or_else(malformed)?;
        let Some(family) =
            Family::from_afi_safi(afi, safi).filter(|f| context.families.contains(*f))
        else {
            return Ok(None);
        };
        let ipv6 = family == Family::Ipv6Unicast || context.extended_next_hop;
        let mut address = Reader(next_hop);
        // RFC 7606 section 7.11: a wrong length leaves it open where the prefixes begin.
        let next_hop = match next_hop.len() {
            4 if family == Family::Ipv4Unicast => {
                address.ipv4().map(|address| NextHop::new(IpAddr::V4(address)))
            }
            16 if ipv6 => address.ipv6().map(|address| NextHop::new(IpAddr::V6(address))),
            32 if ipv6 => address.ipv6().zip(address.ipv6()).map(|(address, link_local)| NextHop {
                address: IpAddr::V6(address),
                link_local: Some(link_local),
            }),
            _ => return Err(malformed()),
        };
        let prefixes = context.parse(family, reader.0).ok_or_else(malformed)?;
        Ok(Some(Reach { next_hop: next_hop.and_then(NextHop::checked), prefixes }))
    }

    /// RFC 4760 section 7.
    fn malformed(self) -> Notification {
        let error = NotificationError::Update(UpdateError::OptionalAttribute);
        Notification::with_data(error, Bytes::copy_from_slice(self.octets))
    }
}

impl UpdateContext {
    fn parse<'a>(&self, family: Family, octets: &'a [u8]) -> Option<Prefixes<'a>> {
        Prefixes::parse(family, self.path_ids.contains(family), octets)
    }
}

/// What stands outside of the attributes.
fn parse_ipv4<'a>(context: &UpdateContext, octets: &'a [u8]) -> Result<Prefixes<'a>, Notification> {
    context.parse(Family::Ipv4Unicast, octets).ok_or_else(|| {
        let error = NotificationError::Update(UpdateError::InvalidNetworkField);
        Notification::with_data(error, Bytes::new())
    })
}

impl<'a> Update<'a> {
    /// The prefixes that are withdrawn, those that are treated so because of an error included.
    pub fn withdrawn(&self) -> impl Iterator<Item = Prefix> + 'a {
        self.withdrawn.into_iter().flatten().flatten()
    }

    /// As [`Update::withdrawn`], in the four places where they stand, which may differ in whether they
    /// have the identifiers of paths.
    pub fn withdrawn_runs(&self) -> impl Iterator<Item = Prefixes<'a>> + 'a {
        self.withdrawn.into_iter().flatten()
    }

    /// The prefixes that are announced, by next hop: those of the NLRI field and those of
    /// MP_REACH_NLRI.
    pub fn announcements(&self) -> impl Iterator<Item = Announcement<'a>> + 'a {
        self.announced.into_iter().flatten()
    }

    /// Leaves of a next hop with a global and a link-local address (RFC 2545 section 3) the latter.
    pub fn prefer_link_local(&mut self) {
        for announcement in self.announced.iter_mut().flatten() {
            if let Some(link_local) = announcement.next_hop.link_local {
                announcement.next_hop = NextHop::new(link_local.into());
            }
        }
    }

    /// How many prefixes are withdrawn.
    pub fn withdrawn_len(&self) -> usize {
        self.withdrawn.iter().flatten().map(Prefixes::len).sum()
    }

    /// Whether routes are treated as withdrawn because of an error.
    pub fn is_treated_as_withdraw(&self) -> bool {
        let [_, _, nlri, reach] = &self.withdrawn;
        nlri.is_some() || reach.is_some()
    }

    /// The prefixes that were announced and count as withdrawn because of an error; they are among
    /// [`Update::withdrawn`], too.
    pub fn treated_as_withdrawn(&self) -> impl Iterator<Item = Prefix> + 'a {
        let [_, _, nlri, reach] = self.withdrawn;
        [nlri, reach].into_iter().flatten().flatten()
    }

    /// The prefixes whose routes [`Update::errors`] are about: those treated as withdrawn, else those
    /// announced with the attributes that are left. RFC 7606 section 6 wants them in the log.
    pub fn affected(&self) -> impl Iterator<Item = Prefix> + 'a {
        let announced = self.announcements().flat_map(|announcement| announcement.prefixes);
        self.treated_as_withdrawn().chain(announced)
    }
}

impl NextHop {
    /// A next hop without a link-local address beside it.
    pub const fn new(address: IpAddr) -> NextHop {
        NextHop { address, link_local: None }
    }

    /// What of it means something to routers that are not on its link (RFC 2545 section 3).
    pub(crate) const fn beyond_its_link(self) -> NextHop {
        NextHop::new(self.address)
    }

    /// Whether it means nothing to routers that are not on its link.
    pub(crate) fn is_link_local(self) -> bool {
        matches!(self.address, IpAddr::V6(address) if address.is_unicast_link_local())
    }

    /// This next hop, when it is a host address (RFC 4271 section 6.3). A speaker without a global
    /// IPv6 address puts `::` in front of the link-local one, which then takes its place.
    pub(super) fn checked(self) -> Option<NextHop> {
        let next_hop = match self {
            NextHop { address: IpAddr::V6(address), link_local: Some(link_local) } => {
                let link_local = Some(link_local).filter(Ipv6Addr::is_unicast_link_local);
                match link_local {
                    Some(only) if address.is_unspecified() => NextHop::new(IpAddr::V6(only)),
                    link_local => NextHop { link_local, ..self },
                }
            }
            _ => self,
        };
        let is_host = match next_hop.address {
            IpAddr::V4(a) => {
                !(a.is_unspecified() || a.is_loopback() || a.octets() >= [224, 0, 0, 0])
            }
            IpAddr::V6(a) => !(a.is_unspecified() || a.is_loopback() || a.is_multicast()),
        };
        is_host.then_some(next_hop)
    }
}

impl fmt::Display for AttributeError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match attribute_type::name(self.attribute_type) {
            Some(name) => f.write_str(name)?,
            None => write!(f, "attribute {}", self.attribute_type)?,
        }
        write!(f, ": {}, {}", self.fault, self.verdict)
    }
}

impl fmt::Display for AttributeFault {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            AttributeFault::Flags => "wrong flags",
            AttributeFault::Length => "wrong length",
            AttributeFault::Value => "value not allowed",
            AttributeFault::Missing => "missing",
            AttributeFault::Duplicate => "stands there twice",
            AttributeFault::NotOnThisSession => "not allowed on this session",
            AttributeFault::Overrun => "longer than the attributes",
            AttributeFault::FirstAs => "does not begin with the peer's AS",
            AttributeFault::Segment => "holds a set or a confederation segment",
        })
    }
}

impl fmt::Display for AttributeVerdict {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            AttributeVerdict::Discard => "attribute discarded",
            AttributeVerdict::TreatAsWithdraw => "routes treated as withdrawn",
        })
    }
}
