//! Reads along on a connection: what a peer has really been told, apart from any RIB.

use std::collections::BTreeMap;

use bytes::BytesMut;
use cairn_bgp::prefix::Prefix;
use cairn_bgp::wire::{
    AttributeTypes, Frame, MESSAGE_OCTETS_MAX, MessageType, Negotiated, Open, UpdateBody,
    UpdateContext,
};

use super::model::Route;

#[derive(Debug)]
pub struct Tap {
    local: Open,
    buffer: BytesMut,
    context: Option<(UpdateContext, usize)>,
    pub routes: BTreeMap<Prefix, Route>,
    /// Prefixes that were withdrawn while they were there.
    pub withdrawn: Vec<Prefix>,
}

impl Tap {
    pub fn new(local: Open) -> Tap {
        Tap {
            local,
            buffer: BytesMut::new(),
            context: None,
            routes: BTreeMap::new(),
            withdrawn: Vec::new(),
        }
    }

    pub fn read(&mut self, octets: &[u8]) {
        self.buffer.extend_from_slice(octets);
        loop {
            let octets_max = self.context.map_or(MESSAGE_OCTETS_MAX, |(_, octets)| octets);
            let frame = Frame::split(&mut self.buffer, octets_max).expect("a well-formed frame");
            let Some(frame) = frame else { return };
            match frame.message_type {
                MessageType::Open => {
                    let peer = Open::decode(&frame.body).expect("a well-formed OPEN");
                    let negotiated = Negotiated::new(&self.local, &peer);
                    let context = negotiated.update_context(None, AttributeTypes::NONE);
                    self.context = Some((context, negotiated.receive_octets_max));
                }
                MessageType::Update => self.update(&frame.body),
                _ => {}
            }
        }
    }

    fn update(&mut self, body: &[u8]) {
        let (context, _) = self.context.expect("OPEN comes first");
        let body = UpdateBody::split(body).expect("a well-formed UPDATE");
        let update = body.decode(&context).expect("a valid UPDATE");
        assert!(update.errors.is_empty(), "{:?}", update.errors);
        for prefix in update.withdrawn() {
            if self.routes.remove(&prefix).is_some() {
                self.withdrawn.push(prefix);
            }
        }
        for announcement in update.announcements() {
            let path = update.attributes.as_ref().expect("attributes");
            let route = Route {
                next_hop: announcement.next_hop.address,
                local_pref: path.local_pref(),
                as_path: path.as_path().asns().collect(),
                origin: path.origin(),
                med: path.med(),
                communities: path.communities().map(|c| c.0).collect(),
                originator: path.originator_id(),
                clusters: path.cluster_list().collect(),
            };
            for prefix in announcement.prefixes.iter() {
                self.routes.insert(prefix, route.clone());
            }
        }
    }
}
