//! What a client and `cairn bfd` say to each other over its Unix stream socket.
//!
//! ```text
//!  client                                     cairn bfd
//!    │ ◄── overview: every session, at once     CLIENTS_MAX of them, root's alone
//!    │ want: the whole set ──────────────────►  what is equal is not touched
//!    │ ◄── taken, or refused with a reason
//!    │ ◄── changed: one session, as it happens  whoever asked for it
//! ```
//!
//! Both directions are sequences of frames:
//!
//! ```text
//! | "CRNB" | version u32 | length u32 | JSON of that length |      numbers big-endian
//! ```
//!
//! A client that goes takes no session with it. Of several clients the set that was sent last holds.

use std::io::{self, Read, Write};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::time::Duration;

use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};

use crate::config::SessionSpec;
use crate::status::{Discarded, SessionStatus};

/// The version of the protocol. A side that meets another one says so and does nothing.
pub const VERSION: u32 = 1;

/// Octets of a request's JSON at most: [`crate::sessions::SESSIONS_MAX`] sessions take some 150 each.
pub const REQUEST_MAX: usize = 512 << 10;

/// Octets of a report's JSON at most: the same sessions with their state take some 700 each.
pub const REPORT_MAX: usize = 2 << 20;

/// Clients at most.
pub const CLIENTS_MAX: usize = 16;

/// What a client asks.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub enum Request {
    /// Have exactly these sessions.
    Want {
        /// All of them.
        sessions: Vec<SessionSpec>,
    },
}

/// What a client hears.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub enum Report {
    /// The first one: how everything is.
    Overview(Overview),
    /// To [`Request::Want`]: these sessions are all that there are now.
    Taken,
    /// To [`Request::Want`]: such a set cannot be, and the former one stays.
    Refused {
        /// Why.
        text: String,
    },
    /// A session is new, or its state, what the other side says, or its problem has changed.
    Changed(Box<SessionStatus>),
}

/// How everything is.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Overview {
    /// The wanted sessions.
    pub sessions: Vec<SessionStatus>,
    /// Packets that were discarded since the start.
    pub discarded: Discarded,
    /// Why the process has no real-time priority.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub priority_problem: Option<String>,
}

/// What goes wrong on the socket.
#[derive(Debug, thiserror::Error)]
pub enum ControlError {
    /// Nobody is there.
    #[error(
        "`cairn bfd` does not answer on {path}: is it running, and is the run directory the same? ({error})"
    )]
    Connect {
        /// The socket.
        path: PathBuf,
        /// Why.
        error: io::Error,
    },
    /// The connection failed.
    #[error("the connection to `cairn bfd` failed: {0}")]
    Io(#[from] io::Error),
    /// The other side closed it.
    #[error("`cairn bfd` closed the connection: see its log")]
    Closed,
    /// What comes is no frame.
    #[error("what came over the socket is not of this protocol")]
    NotOurs,
    /// See [`VERSION`].
    #[error(
        "the other side speaks version {0} of the protocol, this one {VERSION}: use equal versions of cairn"
    )]
    Version(u32),
    /// See [`REQUEST_MAX`] and [`REPORT_MAX`].
    #[error("a message of {length} octets: {max} is the most")]
    TooLong {
        /// Its length.
        length: usize,
        /// The limit.
        max: usize,
    },
    /// Its JSON is not as it should be.
    #[error("a message cannot be read: {0}")]
    Decode(serde_json::Error),
}

/// The socket in a run directory.
pub fn socket_path(run_dir: &Path) -> PathBuf {
    run_dir.join("bfd.sock")
}

/// A message as a frame.
///
/// # Errors
/// It is longer than `max`.
pub fn encode(message: &impl Serialize, max: usize) -> Result<Vec<u8>, ControlError> {
    let body = serde_json::to_vec(message).map_err(ControlError::Decode)?;
    let too_long = ControlError::TooLong { length: body.len(), max };
    let Some(length) = u32::try_from(body.len()).ok().filter(|_| body.len() <= max) else {
        return Err(too_long);
    };
    let mut frame = Vec::with_capacity(HEADER + body.len());
    frame.extend_from_slice(MAGIC);
    frame.extend_from_slice(&VERSION.to_be_bytes());
    frame.extend_from_slice(&length.to_be_bytes());
    frame.extend_from_slice(&body);
    Ok(frame)
}

/// The octets of a connection, on their way to messages.
#[derive(Debug, Default)]
pub struct Frames(Vec<u8>);

impl Frames {
    /// Octets have come in.
    pub fn push(&mut self, octets: &[u8]) {
        self.0.extend_from_slice(octets);
    }

    /// The next message, once it is whole. Nothing more is to be read after an error.
    ///
    /// # Errors
    /// What came is no frame of this version with a message of at most `max` octets.
    pub fn next<T: DeserializeOwned>(&mut self, max: usize) -> Result<Option<T>, ControlError> {
        let Some((header, rest)) = self.0.split_first_chunk::<HEADER>() else {
            return Ok(None);
        };
        let [a, b, c, d, v0, v1, v2, v3, l0, l1, l2, l3] = *header;
        if [a, b, c, d] != *MAGIC {
            return Err(ControlError::NotOurs);
        }
        let version = u32::from_be_bytes([v0, v1, v2, v3]);
        if version != VERSION {
            return Err(ControlError::Version(version));
        }
        let length = u32::from_be_bytes([l0, l1, l2, l3]) as usize;
        if length > max {
            return Err(ControlError::TooLong { length, max });
        }
        let Some(body) = rest.get(..length) else { return Ok(None) };
        let message = serde_json::from_slice(body).map_err(ControlError::Decode)?;
        self.0.drain(..HEADER + length);
        Ok(Some(message))
    }
}

/// A client that waits for what it reads.
#[derive(Debug)]
pub struct Client {
    stream: UnixStream,
    frames: Frames,
}

impl Client {
    /// Connects to the `cairn bfd` of a run directory, which may be silent for `patience`.
    ///
    /// # Errors
    /// Nobody answers there.
    pub fn connect(run_dir: &Path, patience: Duration) -> Result<Client, ControlError> {
        let path = socket_path(run_dir);
        let stream =
            UnixStream::connect(&path).map_err(|error| ControlError::Connect { path, error })?;
        stream.set_read_timeout(Some(patience))?;
        stream.set_write_timeout(Some(patience))?;
        Ok(Client { stream, frames: Frames::default() })
    }

    /// Asks for these sessions.
    ///
    /// # Errors
    /// The connection failed.
    pub fn want(&mut self, sessions: Vec<SessionSpec>) -> Result<(), ControlError> {
        let frame = encode(&Request::Want { sessions }, REQUEST_MAX)?;
        Ok(self.stream.write_all(&frame)?)
    }

    /// The next report.
    ///
    /// # Errors
    /// There is none in time, or the connection failed.
    pub fn report(&mut self) -> Result<Report, ControlError> {
        let mut octets = [0; 64 << 10];
        loop {
            if let Some(report) = self.frames.next(REPORT_MAX)? {
                return Ok(report);
            }
            match self.stream.read(&mut octets) {
                Ok(0) => return Err(ControlError::Closed),
                Ok(count) => self.frames.push(octets.get(..count).unwrap_or_default()),
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return Err(error.into()),
            }
        }
    }
}

const MAGIC: &[u8; 4] = b"CRNB";
const HEADER: usize = 12;
