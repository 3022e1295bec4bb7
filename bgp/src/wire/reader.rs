//! Reading integers and slices off the front of octets, without a way to read past the end.

use std::net::{Ipv4Addr, Ipv6Addr};

/// What is left to read.
#[derive(Clone, Copy, Debug)]
pub(super) struct Reader<'a>(pub(super) &'a [u8]);

impl<'a> Reader<'a> {
    pub(super) fn is_empty(self) -> bool {
        self.0.is_empty()
    }

    pub(super) fn array<const N: usize>(&mut self) -> Option<[u8; N]> {
        let (head, rest) = self.0.split_first_chunk::<N>()?;
        self.0 = rest;
        Some(*head)
    }

    pub(super) fn u8(&mut self) -> Option<u8> {
        self.array::<1>().map(|[octet]| octet)
    }

    pub(super) fn u16(&mut self) -> Option<u16> {
        self.array().map(u16::from_be_bytes)
    }

    pub(super) fn u32(&mut self) -> Option<u32> {
        self.array().map(u32::from_be_bytes)
    }

    pub(super) fn ipv4(&mut self) -> Option<Ipv4Addr> {
        self.array::<4>().map(Ipv4Addr::from)
    }

    pub(super) fn ipv6(&mut self) -> Option<Ipv6Addr> {
        self.array::<16>().map(Ipv6Addr::from)
    }

    pub(super) fn take(&mut self, octets: usize) -> Option<&'a [u8]> {
        let (head, rest) = self.0.split_at_checked(octets)?;
        self.0 = rest;
        Some(head)
    }

    /// A slice that its own length precedes in one octet.
    pub(super) fn counted_u8(&mut self) -> Option<&'a [u8]> {
        let mut ahead = *self;
        let octets = ahead.u8()?;
        let slice = ahead.take(usize::from(octets))?;
        *self = ahead;
        Some(slice)
    }

    /// A slice that its own length precedes in two octets.
    pub(super) fn counted_u16(&mut self) -> Option<&'a [u8]> {
        let mut ahead = *self;
        let octets = ahead.u16()?;
        let slice = ahead.take(usize::from(octets))?;
        *self = ahead;
        Some(slice)
    }
}
