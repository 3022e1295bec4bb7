//! Prefixes as they stand in NLRI and withdrawn routes (RFC 4271 section 4.3, RFC 4760 section 5).

use crate::prefix::{Family, Prefix};

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
        todo!("{family} {octets:?}")
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
        todo!("{} {:?} {}", self.family, self.octets, self.left)
    }
}
