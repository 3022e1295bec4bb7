//! The control packet (RFC 5880 section 4.1).

use std::num::{NonZeroU8, NonZeroU32};

use serde::{Deserialize, Serialize};

/// Octets of a control packet without authentication: all that is ever sent.
pub const PACKET_OCTETS: usize = 24;

/// A control packet without authentication. Intervals are in microseconds.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ControlPacket {
    /// Why the sender's session last left Up.
    pub diagnostic: Diagnostic,
    /// The sender's state.
    pub state: State,
    /// The sender asks for an answer with the Final bit.
    pub poll: bool,
    /// The answer to a packet with the Poll bit.
    pub is_final: bool,
    /// The sender's BFD does not share fate with its control plane (C bit).
    pub control_plane_independent: bool,
    /// The sender wants no periodic packets (D bit).
    pub demand: bool,
    /// How many missing packets of the sender mean that it is gone.
    pub detect_multiplier: NonZeroU8,
    /// The sender's session.
    pub my_discriminator: NonZeroU32,
    /// The receiver's session, once the sender knows it.
    pub your_discriminator: Option<NonZeroU32>,
    /// The shortest interval at which the sender would like to send.
    pub desired_min_tx_micros: u32,
    /// The shortest interval at which the sender can receive; 0: it wants no periodic packets.
    pub required_min_rx_micros: u32,
    /// The same for echo packets; 0: it does not return any.
    pub required_min_echo_rx_micros: u32,
}

/// The state of a session (RFC 5880 section 4.1, Sta).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub enum State {
    /// Held down by an operator.
    AdminDown,
    /// There is no session.
    #[default]
    Down,
    /// The other side is heard, but does not hear us yet as far as is known.
    Init,
    /// Both sides hear each other.
    Up,
}

/// Why a session last changed its state (RFC 5880 section 4.1, Diag).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub enum Diagnostic {
    /// No diagnostic.
    #[default]
    None,
    /// Nothing was received for the detection time.
    DetectionTimeExpired,
    /// The echo function failed.
    EchoFailed,
    /// The other side said that it is down.
    NeighborDown,
    /// The forwarding plane was reset.
    ForwardingPlaneReset,
    /// The path is down.
    PathDown,
    /// A concatenated path is down.
    ConcatenatedPathDown,
    /// An operator holds it down.
    AdministrativelyDown,
    /// A concatenated path in the other direction is down.
    ReverseConcatenatedPathDown,
    /// A code without a meaning yet, 9 to 31.
    Reserved(u8),
}

/// Why a packet is discarded (RFC 5880 section 6.8.6, in its order).
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum DecodeError {
    /// Not even the mandatory section is there.
    #[error("{0} octets are too short for a control packet")]
    TooShort(usize),
    /// Another version of the protocol.
    #[error("version {0} is not 1")]
    Version(u8),
    /// The length field is shorter than what must be there, or longer than what is.
    #[error("the length field says {0} octets")]
    Length(u8),
    /// The detection multiplier is 0.
    #[error("the detection multiplier is 0")]
    MultiplierZero,
    /// The reserved Multipoint bit is set.
    #[error("the multipoint bit is set")]
    Multipoint,
    /// My Discriminator is 0.
    #[error("its own discriminator is 0")]
    DiscriminatorZero,
    /// A session that has come further than Down must know our discriminator.
    #[error("it is {0:?} without our discriminator")]
    StateWithoutDiscriminator(State),
    /// Authentication is present, and none is offered here.
    #[error(
        "it is authenticated: configure no BFD authentication for this session on the other side"
    )]
    Authenticated,
}

impl ControlPacket {
    /// The packet as it goes over the wire.
    pub fn encode(&self) -> [u8; PACKET_OCTETS] {
        let bit = |is_set: bool, bit: u8| if is_set { bit } else { 0 };
        let flags = bit(self.poll, POLL)
            | bit(self.is_final, FINAL)
            | bit(self.control_plane_independent, CONTROL_PLANE_INDEPENDENT)
            | bit(self.demand, DEMAND);
        let mut octets = [0; PACKET_OCTETS];
        octets[0] = VERSION << 5 | self.diagnostic.code();
        octets[1] = self.state.code() << 6 | flags;
        octets[2] = self.detect_multiplier.get();
        octets[3] = PACKET_OCTETS as u8;
        let words = [
            self.my_discriminator.get(),
            self.your_discriminator.map_or(0, NonZeroU32::get),
            self.desired_min_tx_micros,
            self.required_min_rx_micros,
            self.required_min_echo_rx_micros,
        ];
        for (place, word) in octets[4..].chunks_exact_mut(4).zip(words) {
            place.copy_from_slice(&word.to_be_bytes());
        }
        octets
    }

    /// The packet in the payload of a datagram. Octets behind the packet are no part of it.
    ///
    /// # Errors
    /// It is to be discarded (RFC 5880 section 6.8.6).
    pub fn decode(payload: &[u8]) -> Result<ControlPacket, DecodeError> {
        let too_short = DecodeError::TooShort(payload.len());
        let (mandatory, _) = payload.split_first_chunk::<PACKET_OCTETS>().ok_or(too_short)?;
        let [first, second, detect_multiplier, length, ..] = *mandatory;
        if first >> 5 != VERSION {
            return Err(DecodeError::Version(first >> 5));
        }
        let authenticated = second & AUTHENTICATION != 0;
        let least = PACKET_OCTETS + if authenticated { AUTHENTICATION_OCTETS_MIN } else { 0 };
        if usize::from(length) < least || usize::from(length) > payload.len() {
            return Err(DecodeError::Length(length));
        }
        let detect_multiplier =
            NonZeroU8::new(detect_multiplier).ok_or(DecodeError::MultiplierZero)?;
        if second & MULTIPOINT != 0 {
            return Err(DecodeError::Multipoint);
        }
        let word = |at: usize| {
            u32::from_be_bytes([
                mandatory[at],
                mandatory[at + 1],
                mandatory[at + 2],
                mandatory[at + 3],
            ])
        };
        let my_discriminator = NonZeroU32::new(word(4)).ok_or(DecodeError::DiscriminatorZero)?;
        let your_discriminator = NonZeroU32::new(word(8));
        let state = State::from_code(second >> 6);
        if your_discriminator.is_none() && !matches!(state, State::Down | State::AdminDown) {
            return Err(DecodeError::StateWithoutDiscriminator(state));
        }
        if authenticated {
            return Err(DecodeError::Authenticated);
        }
        Ok(ControlPacket {
            diagnostic: Diagnostic::from_code(first & 0x1f),
            state,
            poll: second & POLL != 0,
            is_final: second & FINAL != 0,
            control_plane_independent: second & CONTROL_PLANE_INDEPENDENT != 0,
            demand: second & DEMAND != 0,
            detect_multiplier,
            my_discriminator,
            your_discriminator,
            desired_min_tx_micros: word(12),
            required_min_rx_micros: word(16),
            required_min_echo_rx_micros: word(20),
        })
    }
}

impl State {
    const fn code(self) -> u8 {
        match self {
            State::AdminDown => 0,
            State::Down => 1,
            State::Init => 2,
            State::Up => 3,
        }
    }

    /// The state of the lowest two bits.
    const fn from_code(code: u8) -> State {
        match code & 3 {
            0 => State::AdminDown,
            1 => State::Down,
            2 => State::Init,
            _ => State::Up,
        }
    }
}

impl Diagnostic {
    const fn code(self) -> u8 {
        match self {
            Diagnostic::None => 0,
            Diagnostic::DetectionTimeExpired => 1,
            Diagnostic::EchoFailed => 2,
            Diagnostic::NeighborDown => 3,
            Diagnostic::ForwardingPlaneReset => 4,
            Diagnostic::PathDown => 5,
            Diagnostic::ConcatenatedPathDown => 6,
            Diagnostic::AdministrativelyDown => 7,
            Diagnostic::ReverseConcatenatedPathDown => 8,
            // Five bits are all there is.
            Diagnostic::Reserved(code) => code & 0x1f,
        }
    }

    const fn from_code(code: u8) -> Diagnostic {
        match code {
            0 => Diagnostic::None,
            1 => Diagnostic::DetectionTimeExpired,
            2 => Diagnostic::EchoFailed,
            3 => Diagnostic::NeighborDown,
            4 => Diagnostic::ForwardingPlaneReset,
            5 => Diagnostic::PathDown,
            6 => Diagnostic::ConcatenatedPathDown,
            7 => Diagnostic::AdministrativelyDown,
            8 => Diagnostic::ReverseConcatenatedPathDown,
            code => Diagnostic::Reserved(code),
        }
    }
}

impl std::fmt::Display for Diagnostic {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Diagnostic::None => "no diagnostic",
            Diagnostic::DetectionTimeExpired => "nothing was heard for the detection time",
            Diagnostic::EchoFailed => "the echo function failed",
            Diagnostic::NeighborDown => "the neighbour said that the session is down",
            Diagnostic::ForwardingPlaneReset => "the forwarding plane was reset",
            Diagnostic::PathDown => "the path is down",
            Diagnostic::ConcatenatedPathDown => "a concatenated path is down",
            Diagnostic::AdministrativelyDown => "an operator holds it down",
            Diagnostic::ReverseConcatenatedPathDown => "a reverse concatenated path is down",
            Diagnostic::Reserved(code) => return write!(f, "diagnostic code {code}"),
        })
    }
}

const VERSION: u8 = 1;
const POLL: u8 = 0x20;
const FINAL: u8 = 0x10;
const CONTROL_PLANE_INDEPENDENT: u8 = 0x08;
const AUTHENTICATION: u8 = 0x04;
const DEMAND: u8 = 0x02;
const MULTIPOINT: u8 = 0x01;
/// The authentication section's type and length (RFC 5880 section 6.8.6).
const AUTHENTICATION_OCTETS_MIN: usize = 2;
