//! Messages in a stream of octets (RFC 4271 sections 4.1 and 6.1).

use bytes::{Buf, BufMut, Bytes, BytesMut};

use super::encode;
use super::notification::{HeaderError, Notification, NotificationError};

/// What a message is (RFC 4271 section 4.1, RFC 2918 section 3).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum MessageType {
    /// Type 1.
    Open,
    /// Type 2.
    Update,
    /// Type 3.
    Notification,
    /// Type 4.
    Keepalive,
    /// Type 5.
    RouteRefresh,
}

/// The header of a message that is complete in the buffer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct FrameHeader {
    /// The sort of message.
    pub message_type: MessageType,
    /// Octets of the whole message, with its header.
    pub octets: usize,
}

/// One message, cut out of the stream.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Frame {
    /// The sort of message.
    pub message_type: MessageType,
    /// What follows the header.
    pub body: Bytes,
}

impl FrameHeader {
    /// Looks at the head of `buffer`: `None` while the first message is not complete.
    ///
    /// `octets_max` is the negotiated limit, [`MESSAGE_OCTETS_MAX`] or
    /// [`MESSAGE_OCTETS_MAX_EXTENDED`]. OPEN and KEEPALIVE stay at the small one (RFC 8654 section 4).
    /// A bad header is reported as soon as it is readable, not when the message is complete.
    ///
    /// # Errors
    /// Connection Not Synchronized, Bad Message Length or Bad Message Type (RFC 4271 section 6.1).
    pub fn peek(buffer: &[u8], octets_max: usize) -> Result<Option<FrameHeader>, Notification> {
        let marker = buffer.get(..MARKER_OCTETS).unwrap_or(buffer);
        if marker.iter().any(|octet| *octet != 0xff) {
            return Err(HeaderError::ConnectionNotSynchronized.into());
        }
        let Some(&[high, low, code]) = buffer.get(MARKER_OCTETS..HEADER_OCTETS) else {
            return Ok(None);
        };
        let length = u16::from_be_bytes([high, low]);
        let octets = usize::from(length);
        let bad_length = || {
            let error = NotificationError::Header(HeaderError::BadMessageLength);
            Notification::with_data(error, Bytes::copy_from_slice(&length.to_be_bytes()))
        };
        if octets < HEADER_OCTETS || octets > octets_max {
            return Err(bad_length());
        }
        let Some(message_type) = MessageType::from_code(code) else {
            let error = NotificationError::Header(HeaderError::BadMessageType);
            return Err(Notification::with_data(error, Bytes::copy_from_slice(&[code])));
        };
        if !message_type.allows(octets) {
            return Err(bad_length());
        }
        Ok((buffer.len() >= octets).then_some(FrameHeader { message_type, octets }))
    }
}

impl Frame {
    /// Cuts the first message out of `buffer`, without copying; `None` while it is not complete.
    ///
    /// # Errors
    /// As [`FrameHeader::peek`]; the buffer is then left as it was.
    pub fn split(buffer: &mut BytesMut, octets_max: usize) -> Result<Option<Frame>, Notification> {
        let Some(header) = FrameHeader::peek(buffer, octets_max)? else { return Ok(None) };
        let mut body = buffer.split_to(header.octets);
        body.advance(HEADER_OCTETS);
        Ok(Some(Frame { message_type: header.message_type, body: body.freeze() }))
    }

    /// All octets of the message, its header included, for the error history.
    pub fn to_message(&self) -> Bytes {
        encode::message(self.message_type, |out| out.put_slice(&self.body))
    }
}

impl MessageType {
    /// The type octet.
    pub const fn code(self) -> u8 {
        match self {
            MessageType::Open => 1,
            MessageType::Update => 2,
            MessageType::Notification => 3,
            MessageType::Keepalive => 4,
            MessageType::RouteRefresh => 5,
        }
    }

    const fn from_code(code: u8) -> Option<MessageType> {
        match code {
            1 => Some(MessageType::Open),
            2 => Some(MessageType::Update),
            3 => Some(MessageType::Notification),
            4 => Some(MessageType::Keepalive),
            5 => Some(MessageType::RouteRefresh),
            _ => None,
        }
    }

    /// Whether a message of this type may have this size. A ROUTE-REFRESH that is too long is not a
    /// header error: RFC 7313 section 5 gives it an error code of its own.
    const fn allows(self, octets: usize) -> bool {
        match self {
            MessageType::Open => octets >= 29 && octets <= MESSAGE_OCTETS_MAX,
            MessageType::Update => octets >= 23,
            MessageType::Notification => octets >= 21,
            MessageType::Keepalive => octets == HEADER_OCTETS,
            MessageType::RouteRefresh => octets >= 23,
        }
    }
}

/// Octets of the marker.
const MARKER_OCTETS: usize = 16;
/// Octets of a message header: marker, length, type.
pub const HEADER_OCTETS: usize = 19;
/// The largest message without the extended message capability (RFC 4271 section 4).
pub const MESSAGE_OCTETS_MAX: usize = 4096;
/// The largest message with the extended message capability (RFC 8654).
pub const MESSAGE_OCTETS_MAX_EXTENDED: usize = 65535;
