//! One message through the codec: whatever comes of it is bounded, consistent and can be said again.

use bytes::BytesMut;
use cairn_bgp::prefix::Family;
use cairn_bgp::wire::{
    Announcements, EncodedUpdate, Frame, MESSAGE_OCTETS_MAX_EXTENDED, MessageFormat, MessageType,
    NextHop, Nlri, Notification, Open, PathAttributes, RouteRefresh, UpdateBody, UpdateContext,
};

/// How far a message came.
#[derive(Clone, Copy, Debug)]
pub enum Sort {
    Framing,
    Reset,
    Withdrawn,
    Used,
}

#[derive(Debug, Default)]
pub struct Seen {
    pub framing: usize,
    pub reset: usize,
    pub withdrawn: usize,
    pub used: usize,
}

impl Seen {
    pub fn count(&mut self, sort: Sort) {
        match sort {
            Sort::Framing => self.framing += 1,
            Sort::Reset => self.reset += 1,
            Sort::Withdrawn => self.withdrawn += 1,
            Sort::Used => self.used += 1,
        }
    }
}

/// Reads what is in `octets` and looks at all that comes of it.
pub fn check(octets: &[u8], context: &UpdateContext) -> Sort {
    let mut buffer = BytesMut::from(octets);
    let frame = match Frame::split(&mut buffer, MESSAGE_OCTETS_MAX_EXTENDED) {
        Ok(Some(frame)) => frame,
        Ok(None) => return Sort::Framing,
        Err(notification) => {
            check_notification(&notification, octets);
            return Sort::Framing;
        }
    };
    assert!(frame.body.len() + 19 <= octets.len());
    match frame.message_type {
        MessageType::Open => match Open::decode(&frame.body) {
            Ok(open) => {
                assert!(open.capabilities.len() <= octets.len() / 2);
                assert_eq!(Open::decode(&open.encode()[19..]).unwrap(), open);
                Sort::Used
            }
            Err(notification) => check_notification(&notification, octets),
        },
        MessageType::Notification => {
            let notification = Notification::decode(&frame.body).unwrap();
            assert!(notification.to_string().len() <= 200 + 3 * octets.len());
            Sort::Used
        }
        MessageType::RouteRefresh => match RouteRefresh::decode(&frame.body) {
            Ok(refresh) => {
                // What follows an unknown subtype is not kept.
                assert!(frame.body.starts_with(&refresh.encode()[19..]));
                Sort::Used
            }
            Err(notification) => check_notification(&notification, octets),
        },
        MessageType::Keepalive => Sort::Used,
        MessageType::Update => check_update(&frame.body, context),
    }
}

fn check_update(octets: &[u8], context: &UpdateContext) -> Sort {
    let update = match UpdateBody::split(octets).and_then(|body| body.decode(context)) {
        Ok(update) => update,
        Err(notification) => return check_notification(&notification, octets),
    };
    let announced = update.announcements().flat_map(|a| a.prefixes).count();
    assert!(announced + update.withdrawn().count() <= octets.len());
    assert_eq!(update.withdrawn().count(), update.withdrawn_len());
    assert!(update.errors.len() <= 16);
    assert!(update.errors.iter().all(|error| !error.to_string().is_empty()));
    assert_eq!(update.attributes.is_some(), announced > 0);
    let families = update.announcements().map(|a| a.prefixes.family());
    assert!(
        families
            .chain(update.withdrawn().map(|p| p.family()))
            .all(|f| context.families.contains(f))
    );
    if update.end_of_rib.is_some() {
        assert!(announced == 0 && update.withdrawn_len() == 0);
    }
    let Some(attributes) = &update.attributes else {
        return if update.is_treated_as_withdraw() { Sort::Withdrawn } else { Sort::Used };
    };
    assert!(attributes.as_bytes().len() <= 2 * octets.len());
    assert_eq!(attributes.as_path().asns().count() as u32, attributes.as_path_len());
    // What was accepted can be said again and means the same.
    let format = MessageFormat {
        octets_max: MESSAGE_OCTETS_MAX_EXTENDED,
        as4: context.as4,
        extended_next_hop: context.extended_next_hop,
    };
    for announcement in update.announcements() {
        let (family, next_hop) = (announcement.prefixes.family(), announcement.next_hop);
        let Some(first) = announcement.prefixes.paths().next() else { continue };
        let message = match announcement.prefixes.has_path_ids() {
            true => one_message(format, family, attributes, next_hop, first),
            false => one_message(format, family, attributes, next_hop, first.prefix),
        };
        let Some(message) = message else {
            assert!(octets.len() > 20_000, "what came in a short message fits into a long one");
            continue;
        };
        let again = UpdateBody::split(&message.bytes[19..]).unwrap().decode(context).unwrap();
        let announced = again.announcements().flat_map(|a| a.prefixes.paths());
        assert_eq!(announced.collect::<Vec<_>>(), [first]);
        assert!(again.errors.is_empty(), "{:?}", again.errors);
        let again_attributes = again.attributes.as_deref().unwrap();
        let paths = [attributes.as_path(), again_attributes.as_path()];
        let [left, right] = paths.map(|path| path.asns().collect::<Vec<_>>());
        assert_eq!(left, right);
        if context.as4 {
            assert_eq!(again_attributes, &**attributes);
        }
        assert_eq!(again.announcements().next().unwrap().next_hop, next_hop);
    }
    if update.is_treated_as_withdraw() { Sort::Withdrawn } else { Sort::Used }
}

fn one_message<N: Nlri>(
    format: MessageFormat,
    family: Family,
    attributes: &PathAttributes,
    next_hop: NextHop,
    nlri: N,
) -> Option<EncodedUpdate> {
    let mut messages = Announcements::new(format, family, attributes, next_hop, [nlri]).ok()?;
    Some(messages.next().unwrap())
}

fn check_notification(notification: &Notification, octets: &[u8]) -> Sort {
    assert!(notification.data.len() <= octets.len() + 19);
    assert!(notification.encode().len() <= 4096);
    assert!(!notification.to_string().is_empty());
    Sort::Reset
}
