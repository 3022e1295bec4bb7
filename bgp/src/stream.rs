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

use bytes::BytesMut;

use crate::rib::{Chunk, UpdateBatch};
use crate::session::{LocalAddresses, Received};
use crate::wire::{
    AttributeError, Frame, FsmError, HeaderError, MESSAGE_OCTETS_MAX, MessageType, Negotiated,
    Notification, Open, RouteRefresh, SessionSort, UpdateBody, UpdateContext,
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
    Errors(Vec<AttributeError>),
    /// What ends the session.
    Malformed(Notification),
    /// The connection is over.
    Lost(Option<String>),
}

/// What decoding depends on.
#[derive(Clone, Copy, Debug)]
pub struct ReaderConfig {
    /// The peer's AS number, when an eBGP peer's AS_PATH has to begin with it.
    pub first_as: Option<u32>,
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
            let result = match Frame::split(buffer, octets_max) {
                Ok(None) => return true,
                Ok(Some(frame)) => self.message(&frame, items),
                Err(notification) => Err(notification),
            };
            if let Err(notification) = result {
                items.push(Item::Malformed(notification));
                return false;
            }
        }
    }

    fn message(&mut self, frame: &Frame, items: &mut Vec<Item>) -> Result<(), Notification> {
        match frame.message_type {
            MessageType::Open => {
                let peer = Open::decode(&frame.body)?;
                let negotiated = Negotiated::new(&self.local, &peer);
                let first_as =
                    self.config.first_as.filter(|_| negotiated.sort == SessionSort::Ebgp);
                self.negotiated =
                    Some((negotiated.update_context(first_as), negotiated.receive_octets_max));
                items.push(Item::Message(Received::Open(Box::new(peer))));
            }
            MessageType::Update => {
                let Some((context, _)) = &self.negotiated else {
                    return Err(FsmError::UnexpectedInOpenSent.into());
                };
                update(&frame.body, context, items)?;
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

fn update(body: &[u8], context: &UpdateContext, items: &mut Vec<Item>) -> Result<(), Notification> {
    let update = UpdateBody::split(body)?.decode(context)?;
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
        items.push(Item::Errors(update.errors));
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
