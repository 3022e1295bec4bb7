//! Prefixes as they stand in NLRI and withdrawn routes (RFC 4271 section 4.3, RFC 4760 section 5), each
//! behind the identifier of a path where that was negotiated (RFC 7911 section 3).

use std::fmt::Debug;

use bytes::{BufMut, BytesMut};

use super::reader::Reader;
use crate::prefix::{Family, Ipv4Prefix, Ipv6Prefix, Prefix};

/// A path to a prefix among several from one peer (RFC 7911 section 3).
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct PathPrefix {
    /// The prefix.
    pub prefix: Prefix,
    /// Tells the path from others of the peer to this prefix, and says nothing else; 0 where the
    /// message has no identifiers.
    pub path_id: u32,
}

/// What an UPDATE announces or withdraws: a [`Prefix`], or a [`PathPrefix`] with its identifier.
pub trait Nlri: Copy + Debug {
    /// Octets in front of the prefix.
    const PATH_ID_OCTETS: usize;

    /// The prefix.
    fn prefix(&self) -> Prefix;

    /// Appends what stands in front of the prefix.
    fn put_path_id(&self, out: &mut BytesMut);
}

impl Nlri for Prefix {
    const PATH_ID_OCTETS: usize = 0;

    fn prefix(&self) -> Prefix {
        *self
    }

    fn put_path_id(&self, _: &mut BytesMut) {}
}

impl Nlri for PathPrefix {
    const PATH_ID_OCTETS: usize = PATH_ID_OCTETS;

    fn prefix(&self) -> Prefix {
        self.prefix
    }

    fn put_path_id(&self, out: &mut BytesMut) {
        out.put_u32(self.path_id);
    }
}

/// Borrowed octets of prefixes of one family whose syntax has been checked.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Prefixes<'a> {
    family: Family,
    octets: &'a [u8],
    count: usize,
    path_ids: bool,
}

/// The prefixes of a [`Prefixes`].
#[derive(Clone, Debug)]
pub struct PrefixesIter<'a>(PathsIter<'a>);

/// The prefixes of a [`Prefixes`] with the identifiers of their paths.
#[derive(Clone, Debug)]
pub struct PathsIter<'a> {
    family: Family,
    octets: &'a [u8],
    left: usize,
    path_ids: bool,
}

impl<'a> Prefixes<'a> {
    /// Checks the syntax of `octets`; `None` when a length is above the family's bits or the last
    /// prefix is cut off. Host bits are irrelevant and dropped (RFC 4271 section 4.3). With `path_ids`
    /// four octets stand in front of each prefix (RFC 7911 section 3).
    pub fn parse(family: Family, path_ids: bool, octets: &'a [u8]) -> Option<Prefixes<'a>> {
        let mut rest = octets;
        let mut count = 0;
        while !rest.is_empty() {
            if path_ids {
                rest = rest.get(PATH_ID_OCTETS..)?;
            }
            let (len, behind) = rest.split_first()?;
            if *len > family.bits() {
                return None;
            }
            rest = behind.get(usize::from(len.div_ceil(8))..)?;
            count += 1;
        }
        Some(Prefixes { family, octets, count, path_ids })
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

    /// Whether the message has identifiers of paths.
    pub const fn has_path_ids(&self) -> bool {
        self.path_ids
    }

    /// The prefixes in the order of the message; one may stand there twice.
    pub fn iter(&self) -> PrefixesIter<'a> {
        PrefixesIter(self.paths())
    }

    /// As [`Prefixes::iter`], with the identifiers of the paths.
    pub fn paths(&self) -> PathsIter<'a> {
        let Prefixes { family, octets, count: left, path_ids } = *self;
        PathsIter { family, octets, left, path_ids }
    }
}

impl Iterator for PrefixesIter<'_> {
    type Item = Prefix;

    #[inline]
    fn next(&mut self) -> Option<Prefix> {
        self.0.next().map(|path| path.prefix)
    }

    fn size_hint(&self) -> (usize, Option<usize>) {
        self.0.size_hint()
    }
}

impl Iterator for PathsIter<'_> {
    type Item = PathPrefix;

    #[inline]
    fn next(&mut self) -> Option<PathPrefix> {
        let mut reader = Reader(self.octets);
        let path_id = if self.path_ids { reader.u32()? } else { 0 };
        let (prefix, rest) = split_prefix(self.family, reader.0)?;
        self.octets = rest;
        self.left = self.left.saturating_sub(1);
        Some(PathPrefix { prefix, path_id })
    }

    fn size_hint(&self) -> (usize, Option<usize>) {
        (self.left, Some(self.left))
    }
}

impl ExactSizeIterator for PrefixesIter<'_> {}

impl ExactSizeIterator for PathsIter<'_> {}

impl<'a> IntoIterator for Prefixes<'a> {
    type Item = Prefix;
    type IntoIter = PrefixesIter<'a>;

    fn into_iter(self) -> PrefixesIter<'a> {
        self.iter()
    }
}

#[inline]
fn split_prefix(family: Family, octets: &[u8]) -> Option<(Prefix, &[u8])> {
    let (&len, behind) = octets.split_first()?;
    let (significant, rest) = behind.split_at_checked(usize::from(len.div_ceil(8)))?;
    let prefix = match family {
        Family::Ipv4Unicast => {
            let addr = address_octets(behind, significant)?;
            Prefix::V4(Ipv4Prefix::new(u32::from_be_bytes(addr), len)?)
        }
        Family::Ipv6Unicast => {
            let addr = address_octets(behind, significant)?;
            Prefix::V6(Ipv6Prefix::new(u128::from_be_bytes(addr), len)?)
        }
    };
    Some((prefix, rest))
}

/// The octets of an address that begins with the `significant` ones; what else there is are host bits,
/// for which those of the next prefix do as well. Taking as many as an address has, where they are there,
/// spares a copy whose length is only known when it is made.
#[inline]
fn address_octets<const N: usize>(behind: &[u8], significant: &[u8]) -> Option<[u8; N]> {
    if let Some(octets) = behind.first_chunk::<N>() {
        return Some(*octets);
    }
    let mut octets = [0; N];
    octets.get_mut(..significant.len())?.copy_from_slice(significant);
    Some(octets)
}

/// Appends a prefix: its length and as many octets as that needs, behind the identifier of its path.
#[inline]
pub(super) fn put_nlri(out: &mut BytesMut, nlri: &impl Nlri) {
    let end = out.len() + nlri_octets(nlri);
    nlri.put_path_id(out);
    // The whole address, whose length the compiler knows, and then back to the prefix's end.
    match nlri.prefix() {
        Prefix::V4(prefix) => {
            let [a, b, c, d] = prefix.addr().to_be_bytes();
            out.extend_from_slice(&[prefix.len(), a, b, c, d]);
        }
        Prefix::V6(prefix) => {
            let mut octets = [prefix.len(); 17];
            let [_, address @ ..] = &mut octets;
            *address = prefix.addr().to_be_bytes();
            out.extend_from_slice(&octets);
        }
    }
    out.truncate(end);
}

/// Octets that a prefix takes in a message, with the identifier of its path.
#[inline]
pub(super) fn nlri_octets<N: Nlri>(nlri: &N) -> usize {
    N::PATH_ID_OCTETS + 1 + usize::from(nlri.prefix().len().div_ceil(8))
}

/// Octets that the longest prefix of a family takes in a message, with the identifier of its path.
pub(super) const fn nlri_octets_max<N: Nlri>(family: Family) -> usize {
    N::PATH_ID_OCTETS + 1 + family.bits() as usize / 8
}

/// Octets that [`put_nlri`] writes behind the end of a prefix and takes back.
pub(super) const NLRI_OCTETS_BEYOND: usize = 16;
/// RFC 7911 section 3.
const PATH_ID_OCTETS: usize = 4;
