//! The octets of one connection and what they mean: decoding what a peer sent, writing what it gets.
//! No IO: whoever owns the socket calls it.
//!
//! ```text
//! socket ─► buffer ──Decoder::decode──► Item ──┬─ Message, Malformed, Lost ─► Session
//!                                              └─ Updates, Refresh ─────────► Rib
//! Rib ─► Chunk ──write (own next hop patched)──► buffer ─► socket
//! ```

#![cfg_attr(
    not(test),
    deny(clippy::unwrap_used, clippy::expect_used, clippy::indexing_slicing, clippy::panic)
)]

use bytes::{Bytes, BytesMut};

use crate::prefix::Prefix;
use crate::rib::{Chunk, UpdateBatch};
use crate::session::{LocalAddresses, Received};
use crate::wire::{
    AttributeError, AttributeTypes, Frame, FsmError, HeaderError, MESSAGE_OCTETS_MAX, MessageType,
    Negotiated, Notification, Open, RouteRefresh, SessionSort, Update, UpdateBody, UpdateContext,
};

/// What was found in a stream.
#[derive(Debug)]
pub enum Item {
    /// A message for the state machine.
    Message(Received),
    /// UPDATEs for the RIB.
    Updates(UpdateBatch),
    /// A ROUTE-REFRESH.
    Refresh(RouteRefresh),
    /// What is wrong in an UPDATE that does not end the session.
    Errors(Vec<AttributeError>, FaultyMessage),
    /// What ends the session.
    Malformed(Notification, FaultyMessage),
    /// The connection is over.
    Lost(Option<String>),
}

/// A message that was malformed, and the routes that it was about.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct FaultyMessage {
    /// The message with its header, or the head of what is no message.
    pub octets: Bytes,
    /// The first of its prefixes, where they can be read.
    pub prefixes: Vec<Prefix>,
    /// How many more there were.
    pub prefixes_left_out: usize,
}

/// What decoding depends on.
#[derive(Clone, Copy, Debug)]
pub struct ReaderConfig {
    /// The peer's AS number, when an eBGP peer's AS_PATH has to begin with it.
    pub first_as: Option<u32>,
    /// Attributes that are dropped unseen.
    pub discard_attributes: AttributeTypes,
    /// Of a global and a link-local next hop (RFC 2545) the link-local one counts: the session runs
    /// between link-local addresses, and nothing says that the global one is on its link.
    pub prefers_link_local: bool,
}

/// Cuts the octets of one connection into messages and decodes them.
#[derive(Debug)]
pub struct Decoder {
    local: Open,
    config: ReaderConfig,
    negotiated: Option<(UpdateContext, usize)>,
}

impl Decoder {
    /// A decoder for a connection over which `local` was sent.
    pub fn new(local: Open, config: ReaderConfig) -> Decoder {
        Decoder { local, config, negotiated: None }
    }

    /// Decodes all complete messages and appends what they say; false when the stream is of no use
    /// any more. What is incomplete stays in the buffer.
    pub fn decode(&mut self, buffer: &mut BytesMut, items: &mut Vec<Item>) -> bool {
        loop {
            let octets_max = self.negotiated.map_or(MESSAGE_OCTETS_MAX, |(_, octets)| octets);
            let (notification, faulty) = match Frame::split(buffer, octets_max) {
                Ok(None) => return true,
                Ok(Some(frame)) => match self.message(&frame, items) {
                    Ok(()) => continue,
                    Err(notification) => (notification, FaultyMessage::frame(&frame)),
                },
                Err(notification) => (notification, FaultyMessage::no_frame(buffer)),
            };
            items.push(Item::Malformed(notification, faulty));
            return false;
        }
    }

    fn message(&mut self, frame: &Frame, items: &mut Vec<Item>) -> Result<(), Notification> {
        match frame.message_type {
            MessageType::Open => {
                let peer = Open::decode(&frame.body)?;
                let negotiated = Negotiated::new(&self.local, &peer);
                let first_as =
                    self.config.first_as.filter(|_| negotiated.sort == SessionSort::Ebgp);
                let context = negotiated.update_context(first_as, self.config.discard_attributes);
                self.negotiated = Some((context, negotiated.receive_octets_max));
                items.push(Item::Message(Received::Open(Box::new(peer))));
            }
            MessageType::Update => {
                let Some((context, _)) = &self.negotiated else {
                    let error = FsmError::UnexpectedInOpenSent;
                    return Err(Notification::unexpected(error, frame.message_type));
                };
                update(frame, context, self.config.prefers_link_local, items)?;
            }
            MessageType::Notification => match Notification::decode(&frame.body) {
                Some(notification) => {
                    items.push(Item::Message(Received::Notification(notification)));
                }
                None => return Err(HeaderError::BadMessageLength.into()),
            },
            MessageType::Keepalive => items.push(Item::Message(Received::Keepalive)),
            MessageType::RouteRefresh => {
                items.push(Item::Message(Received::RouteRefresh));
                items.push(Item::Refresh(RouteRefresh::decode(&frame.body)?));
            }
        }
        Ok(())
    }
}

impl FaultyMessage {
    /// An UPDATE with errors that do not end the session.
    fn update(frame: &Frame, update: &Update<'_>) -> FaultyMessage {
        let mut all = update.affected();
        let prefixes = all.by_ref().take(FAULTY_PREFIXES_MAX).collect();
        FaultyMessage { prefixes, prefixes_left_out: all.count(), ..FaultyMessage::frame(frame) }
    }

    /// A message that could not be read.
    fn frame(frame: &Frame) -> FaultyMessage {
        // A copy: the message is cut out of a read buffer that would live as long.
        FaultyMessage { octets: frame.to_message(), ..FaultyMessage::default() }
    }

    /// Octets that do not begin with a message.
    fn no_frame(buffer: &[u8]) -> FaultyMessage {
        let head = buffer.get(..NO_FRAME_OCTETS_MAX).unwrap_or(buffer);
        FaultyMessage { octets: Bytes::copy_from_slice(head), ..FaultyMessage::default() }
    }
}

fn update(
    frame: &Frame,
    context: &UpdateContext,
    prefers_link_local: bool,
    items: &mut Vec<Item>,
) -> Result<(), Notification> {
    let mut update = UpdateBody::split(&frame.body)?.decode(context)?;
    if prefers_link_local {
        update.prefer_link_local();
    }
    let full = |batch: &UpdateBatch| batch.len() >= UPDATE_BATCH_PREFIXES_MAX;
    match items.last_mut() {
        Some(Item::Updates(batch)) if !full(batch) => batch.push(&update),
        _ => {
            let mut batch = UpdateBatch::default();
            batch.push(&update);
            items.push(Item::Message(Received::Update));
            items.push(Item::Updates(batch));
        }
    }
    if !update.errors.is_empty() {
        let faulty = FaultyMessage::update(frame, &update);
        items.push(Item::Errors(update.errors, faulty));
    }
    Ok(())
}

/// Copies messages into the buffer with the session's own next hop in its place.
pub fn write(chunk: &Chunk, own: LocalAddresses, buffer: &mut BytesMut) {
    for message in &chunk.messages {
        let start = buffer.len();
        buffer.extend_from_slice(&message.bytes);
        let Some(range) = &message.next_hop else { continue };
        let Some(field) = buffer.get_mut(start + range.start..start + range.end) else { continue };
        match (field.len(), own.ipv4, own.ipv6) {
            (4, Some(address), _) => field.copy_from_slice(&address.octets()),
            (16, _, Some(address)) => field.copy_from_slice(&address.octets()),
            // The family would not have been offered.
            _ => {}
        }
    }
}

/// Prefixes that a decoder puts into one batch.
pub const UPDATE_BATCH_PREFIXES_MAX: usize = 8192;
/// Prefixes that are named for one malformed message; all of them stand in its octets.
const FAULTY_PREFIXES_MAX: usize = 64;
/// Octets that are kept of what is no message.
const NO_FRAME_OCTETS_MAX: usize = 4096;
