//! Other codecs of BGP, which exist as libraries.
//!
//! All of them decode into vectors of prefixes and of attribute values. Only [`Rustbgpd`] looks for what RFC
//! 7606 asks for, as ours does. What each encodes is what it has decoded before, into a new buffer for
//! each message, as ours.

use std::collections::HashMap;
use std::hint::black_box;
use std::io::Cursor;
use std::net::Ipv4Addr;

use bytes::Bytes;
use cairn_bgp::wire::{FrameHeader, HEADER_OCTETS, MESSAGE_OCTETS_MAX};
use netgauze_bgp_pkt::BgpMessage as NetgauzeMessage;
use netgauze_bgp_pkt::path_attribute::{MpReach, PathAttributeValue};
use netgauze_bgp_pkt::wire::deserializer::BgpParsingContext;
use netgauze_parse_utils::WritablePdu;
use netgauze_parse_utils::reader::SliceReader;
use netgauze_parse_utils::traits::ParseFromWithOneInput;
use rustbgpd_wire::update::ParsedUpdate;
use rustbgpd_wire::{Ipv4UnicastMode, Message, PathAttribute, UpdateMessage};
use zettabgp::message::update::BgpUpdateMessage;
use zettabgp::prelude::{BgpAddrs, BgpMessageType};
use zettabgp::{BgpMessage, BgpSessionParams, BgpTransportMode};

use crate::Result;

/// A codec that ours is measured beside.
pub trait Codec {
    /// Its name in the rows.
    const NAME: &'static str;
    /// An UPDATE that it has read.
    type Update;

    /// For a session between modern speakers.
    fn new() -> Self;

    /// Reads one whole message.
    fn decode(&mut self, message: &Bytes) -> Result<Self::Update>;

    /// How many prefixes are announced in it.
    fn prefixes(update: &Self::Update) -> usize;

    /// Writes it anew, with its header.
    fn encode(&mut self, update: &Self::Update) -> Result<Vec<u8>>;
}

/// Decodes all messages; says how many prefixes were in them.
pub fn decode_all<C: Codec>(codec: &mut C, messages: &[Bytes]) -> Result<usize> {
    let mut count = 0;
    for message in messages {
        let update = codec.decode(message)?;
        count += C::prefixes(black_box(&update));
    }
    Ok(count)
}

/// Encodes what was decoded before; says how many octets came out.
pub fn encode_all<C: Codec>(codec: &mut C, updates: &[C::Update]) -> Result<usize> {
    let mut octets = 0;
    for update in updates {
        octets += black_box(codec.encode(update)?).len();
    }
    Ok(octets)
}

/// The messages of a stream, each for itself.
///
/// # Errors
/// The stream is none of whole messages.
pub fn split(stream: &[u8]) -> Result<Vec<Bytes>> {
    let mut rest = Bytes::copy_from_slice(stream);
    let mut messages = Vec::new();
    while let Some(header) = FrameHeader::peek(&rest, MESSAGE_OCTETS_MAX)? {
        if header.octets > rest.len() {
            return Err("half a message".into());
        }
        messages.push(rest.split_to(header.octets));
    }
    Ok(messages)
}

/// The crate `zettabgp`.
pub struct Zettabgp(BgpSessionParams);

impl Codec for Zettabgp {
    const NAME: &'static str = "zettabgp";
    type Update = BgpUpdateMessage;

    fn new() -> Zettabgp {
        let mode = BgpTransportMode::IPv4;
        let mut session = BgpSessionParams::new(65000, 90, mode, Ipv4Addr::LOCALHOST, Vec::new());
        // It would look at all prefixes to guess whether identifiers stand in front of them.
        session.fuzzy_pathid = false;
        Zettabgp(session)
    }

    fn decode(&mut self, message: &Bytes) -> Result<BgpUpdateMessage> {
        let (sort, octets) = self.0.decode_message_head(message).map_err(debug)?;
        if sort != BgpMessageType::Update || octets + HEADER_OCTETS != message.len() {
            return Err("no UPDATE".into());
        }
        let mut update = BgpUpdateMessage::new();
        let body = message.get(HEADER_OCTETS..).unwrap_or_default();
        update.decode_from(&self.0, body).map_err(debug)?;
        Ok(update)
    }

    fn prefixes(update: &BgpUpdateMessage) -> usize {
        let of_family = update.get_mpupdates().map(|reach| &reach.addrs);
        [Some(&update.updates), of_family].into_iter().flatten().map(zettabgp_len).sum()
    }

    fn encode(&mut self, update: &BgpUpdateMessage) -> Result<Vec<u8>> {
        let mut message = vec![0; MESSAGE_OCTETS_MAX];
        let body = message.get_mut(HEADER_OCTETS..).unwrap_or_default();
        let octets = update.encode_to(&self.0, body).map_err(debug)?;
        let header = self.0.prepare_message_buf(&mut message, BgpMessageType::Update, octets);
        message.truncate(header.map_err(debug)?);
        Ok(message)
    }
}

fn zettabgp_len(prefixes: &BgpAddrs) -> usize {
    match prefixes {
        BgpAddrs::IPV4U(prefixes) => prefixes.len(),
        BgpAddrs::IPV6U(prefixes) => prefixes.len(),
        _ => 0,
    }
}

/// The crate `netgauze-bgp-pkt`.
pub struct Netgauze(BgpParsingContext);

impl Codec for Netgauze {
    const NAME: &'static str = "netgauze-bgp-pkt";
    type Update = NetgauzeMessage;

    fn new() -> Netgauze {
        let (labels, add_path) = (HashMap::new(), HashMap::new());
        Netgauze(BgpParsingContext::new(true, labels, add_path, true, true, true, true))
    }

    fn decode(&mut self, message: &Bytes) -> Result<NetgauzeMessage> {
        Ok(NetgauzeMessage::parse(&mut SliceReader::new(message), &mut self.0).map_err(debug)?)
    }

    fn prefixes(update: &NetgauzeMessage) -> usize {
        let NetgauzeMessage::Update(update) = update else { return 0 };
        let of_family = update.path_attributes().iter().map(|attribute| match attribute.value() {
            PathAttributeValue::MpReach(MpReach::Ipv6Unicast { nlri, .. }) => nlri.len(),
            _ => 0,
        });
        update.nlri().len() + of_family.sum::<usize>()
    }

    fn encode(&mut self, update: &NetgauzeMessage) -> Result<Vec<u8>> {
        let mut message = Vec::with_capacity(update.len());
        update.write(&mut Cursor::new(&mut message)).map_err(debug)?;
        Ok(message)
    }
}

/// The crate `rustbgpd-wire`.
pub struct Rustbgpd;

impl Codec for Rustbgpd {
    const NAME: &'static str = "rustbgpd-wire";
    type Update = ParsedUpdate;

    fn new() -> Rustbgpd {
        Rustbgpd
    }

    fn decode(&mut self, message: &Bytes) -> Result<ParsedUpdate> {
        let octets_max = rustbgpd_wire::MAX_MESSAGE_LEN;
        match rustbgpd_wire::decode_message(&mut message.clone(), octets_max)? {
            Message::Update(update) => Ok(update.parse_revised(true, false, false, &[])?.update),
            _ => Err("no UPDATE".into()),
        }
    }

    fn prefixes(update: &ParsedUpdate) -> usize {
        let of_family = update.attributes.iter().map(|attribute| match attribute {
            PathAttribute::MpReachNlri(reach) => reach.announced.len(),
            _ => 0,
        });
        update.announced.len() + of_family.sum::<usize>()
    }

    fn encode(&mut self, update: &ParsedUpdate) -> Result<Vec<u8>> {
        let (announced, attributes) = (&update.announced, &update.attributes);
        let mode = Ipv4UnicastMode::Body;
        let update = UpdateMessage::try_build(announced, &[], attributes, true, false, mode)?;
        Ok(rustbgpd_wire::encode_message(&Message::Update(update))?.into())
    }
}

fn debug(error: impl std::fmt::Debug) -> String {
    format!("{error:?}")
}
