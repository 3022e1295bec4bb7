//! Writing messages.

use std::ops::Range;

use bytes::{BufMut, Bytes, BytesMut};

use super::attributes::PathAttributes;
use super::frame::{HEADER_OCTETS, MESSAGE_OCTETS_MAX, MessageType};
use super::update::NextHop;
use crate::prefix::{Family, Prefix};

/// How UPDATEs to a peer are written.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct MessageFormat {
    /// The largest message, in octets.
    pub octets_max: usize,
    /// AS numbers take four octets; else AS_TRANS and AS4_PATH are used (RFC 6793).
    pub as4: bool,
}

/// An UPDATE that announces.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct EncodedUpdate {
    /// The whole message.
    pub bytes: Bytes,
    /// Where in `bytes` the octets of the next hop stand, to be patched per peer.
    pub next_hop: Range<usize>,
    /// How many prefixes are in it.
    pub prefixes: usize,
}

/// Why UPDATEs cannot be written.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum EncodeError {
    /// Even one prefix does not fit beside the attributes.
    #[error(
        "the path attributes take {octets} octets, which leaves no room in a message of {octets_max}"
    )]
    TooLarge {
        /// Octets of the message with one prefix of the longest length.
        octets: usize,
        /// The largest message.
        octets_max: usize,
    },
}

/// UPDATEs that announce prefixes, as many as fit into each message.
#[derive(Debug)]
pub struct Announcements<I>(I);

/// UPDATEs that withdraw prefixes, as many as fit into each message.
#[derive(Debug)]
pub struct Withdrawals<I>(I);

impl<I: Iterator<Item = Prefix>> Announcements<I> {
    /// Prepares messages about `prefixes`, which have to be of `family`; others are left out.
    ///
    /// IPv4 prefixes with an IPv4 next hop stand in the NLRI field, all others in MP_REACH_NLRI.
    ///
    /// # Errors
    /// [`EncodeError::TooLarge`]: such a route has to be withdrawn from the peer (RFC 8654 section 4).
    pub fn new(
        format: MessageFormat,
        family: Family,
        attributes: &PathAttributes,
        next_hop: NextHop,
        prefixes: impl IntoIterator<Item = Prefix, IntoIter = I>,
    ) -> Result<Announcements<I>, EncodeError> {
        todo!(
            "{format:?} {family} {attributes:?} {next_hop:?} {:?}",
            Announcements(prefixes.into_iter()).0.size_hint()
        )
    }
}

impl<I: Iterator<Item = Prefix>> Iterator for Announcements<I> {
    type Item = EncodedUpdate;

    fn next(&mut self) -> Option<EncodedUpdate> {
        todo!()
    }
}

impl<I: Iterator<Item = Prefix>> Withdrawals<I> {
    /// Prepares messages about `prefixes`, which have to be of `family`; others are left out.
    pub fn new(
        format: MessageFormat,
        family: Family,
        prefixes: impl IntoIterator<Item = Prefix, IntoIter = I>,
    ) -> Withdrawals<I> {
        todo!("{format:?} {family} {:?}", Withdrawals(prefixes.into_iter()).0.size_hint())
    }
}

impl<I: Iterator<Item = Prefix>> Iterator for Withdrawals<I> {
    type Item = Bytes;

    fn next(&mut self) -> Option<Bytes> {
        todo!()
    }
}

/// The End-of-RIB marker of a family (RFC 4724 section 2).
pub fn end_of_rib(family: Family) -> Bytes {
    todo!("{family}")
}

/// A KEEPALIVE.
pub fn keepalive() -> Bytes {
    message(MessageType::Keepalive, |_| {})
}

/// A message whose body `write` puts down; its length is filled in.
pub(super) fn message(message_type: MessageType, write: impl FnOnce(&mut BytesMut)) -> Bytes {
    let mut out = BytesMut::with_capacity(MESSAGE_OCTETS_MAX);
    out.put_slice(&[0xff; 16]);
    out.put_u16(0);
    out.put_u8(message_type.code());
    write(&mut out);
    debug_assert!(out.len() >= HEADER_OCTETS && out.len() <= usize::from(u16::MAX));
    let octets = (out.len() as u16).to_be_bytes();
    if let Some(field) = out.get_mut(16..18) {
        field.copy_from_slice(&octets);
    }
    out.freeze()
}
