//! Prefixes as they stand in NLRI and withdrawn routes (RFC 4271 section 4.3, RFC 4760 section 5).

use bytes::{BufMut, BytesMut};

use crate::prefix::{Family, Ipv4Prefix, Ipv6Prefix, Prefix};

/// Borrowed octets of prefixes of one family whose syntax has been checked.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Prefixes<'a> {
    family: Family,
    octets: &'a [u8],
    count: usize,
}

/// The prefixes of a [`Prefixes`].
#[derive(Clone, Debug)]
pub struct PrefixesIter<'a> {
    family: Family,
    octets: &'a [u8],
    left: usize,
}

impl<'a> Prefixes<'a> {
    /// Checks the syntax of `octets`; `None` when a length is above the family's bits or the last
    /// prefix is cut off. Host bits are irrelevant and dropped (RFC 4271 section 4.3).
    pub fn parse(family: Family, octets: &'a [u8]) -> Option<Prefixes<'a>> {
        let mut rest = octets;
        let mut count = 0;
        while let Some((len, behind)) = rest.split_first() {
            if *len > family.bits() {
                return None;
            }
            rest = behind.get(usize::from(len.div_ceil(8))..)?;
            count += 1;
        }
        Some(Prefixes { family, octets, count })
    }

    /// The family of all the prefixes.
    pub const fn family(&self) -> Family {
        self.family
    }

    /// How many prefixes there are.
    pub const fn len(&self) -> usize {
        self.count
    }

    /// Whether there is none.
    pub const fn is_empty(&self) -> bool {
        self.count == 0
    }

    /// The prefixes in the order of the message; one may stand there twice.
    pub fn iter(&self) -> PrefixesIter<'a> {
        PrefixesIter { family: self.family, octets: self.octets, left: self.count }
    }
}

impl Iterator for PrefixesIter<'_> {
    type Item = Prefix;

    fn next(&mut self) -> Option<Prefix> {
        let (prefix, rest) = split_prefix(self.family, self.octets)?;
        self.octets = rest;
        self.left = self.left.saturating_sub(1);
        Some(prefix)
    }

    fn size_hint(&self) -> (usize, Option<usize>) {
        (self.left, Some(self.left))
    }
}

impl ExactSizeIterator for PrefixesIter<'_> {}

impl<'a> IntoIterator for Prefixes<'a> {
    type Item = Prefix;
    type IntoIter = PrefixesIter<'a>;

    fn into_iter(self) -> PrefixesIter<'a> {
        self.iter()
    }
}

fn split_prefix(family: Family, octets: &[u8]) -> Option<(Prefix, &[u8])> {
    let (&len, rest) = octets.split_first()?;
    let (significant, rest) = rest.split_at_checked(usize::from(len.div_ceil(8)))?;
    let prefix = match family {
        Family::Ipv4Unicast => {
            let mut addr = [0; 4];
            addr.get_mut(..significant.len())?.copy_from_slice(significant);
            Prefix::V4(Ipv4Prefix::new(u32::from_be_bytes(addr), len)?)
        }
        Family::Ipv6Unicast => {
            let mut addr = [0; 16];
            addr.get_mut(..significant.len())?.copy_from_slice(significant);
            Prefix::V6(Ipv6Prefix::new(u128::from_be_bytes(addr), len)?)
        }
    };
    Some((prefix, rest))
}

/// Appends a prefix: its length and as many octets as that needs.
pub(super) fn put_prefix(out: &mut BytesMut, prefix: Prefix) {
    let octets = usize::from(prefix.len().div_ceil(8));
    out.put_u8(prefix.len());
    // A length in range is an invariant of both prefix types, so the slices always exist.
    match prefix {
        Prefix::V4(p) => out.put_slice(p.addr().to_be_bytes().get(..octets).unwrap_or_default()),
        Prefix::V6(p) => out.put_slice(p.addr().to_be_bytes().get(..octets).unwrap_or_default()),
    }
}

/// Octets that a prefix takes in a message.
pub(super) fn prefix_octets(prefix: Prefix) -> usize {
    1 + usize::from(prefix.len().div_ceil(8))
}

/// Octets that the longest prefix of a family takes in a message.
pub(super) const fn prefix_octets_max(family: Family) -> usize {
    1 + family.bits() as usize / 8
}
