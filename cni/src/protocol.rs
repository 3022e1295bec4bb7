//! What the plugin and the agent say to each other over the agent's Unix stream socket.
//!
//! One connection carries one request and one response. Each is a frame:
//!
//! ```text
//! | "CRNI" | version u32 | length u32 | JSON of that length |      numbers big-endian
//! ```
//!
//! The descriptor of the container's network namespace travels with the first byte of a request
//! (SCM_RIGHTS). Everything here is synchronous and bounded in time and memory; it works on blocking
//! sockets, whose timeouts it sets, and is safe against whatever the other side sends.

use std::collections::BTreeMap;
use std::io::{IoSlice, IoSliceMut};
use std::mem::MaybeUninit;
use std::net::IpAddr;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::time::{Duration, Instant};

use rustix::io::Errno;
use rustix::net::{
    RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, SendAncillaryBuffer,
    SendAncillaryMessage, SendFlags, sockopt,
};
use serde::{Deserialize, Serialize};

use crate::error::Code;
use crate::names::{ContainerId, InterfaceName, MacAddress, PodIdentity};

/// The protocol's version. A side that meets another one says so and does nothing: an agent of version
/// 2 would not see the addresses that a runtime asks for.
pub const VERSION: u32 = 3;

/// The longest JSON part of a request in bytes: a GC names every attachment of the node, each with some
/// 110 bytes.
pub const REQUEST_MAX: usize = 512 << 10;

/// The longest JSON part of a response in bytes.
pub const RESPONSE_MAX: usize = 64 << 10;

/// What a plugin asks of the agent.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(tag = "command", rename_all = "camelCase")]
pub enum Request {
    /// Give the container an interface. The namespace's descriptor comes with the request.
    Add(AddRequest),
    /// Take the container's interface away and free its addresses.
    Del(DelRequest),
    /// Compare the container's interface with what was answered to its ADD. The namespace's descriptor
    /// comes with the request.
    Check(CheckRequest),
    /// Take away the network's interfaces of containers that are no more.
    Gc(GcRequest),
    /// Can the agent serve ADD now?
    Status,
}

/// The fields of [`Request::Add`].
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct AddRequest {
    /// The container.
    pub container_id: ContainerId,
    /// The interface to make inside it.
    pub ifname: InterfaceName,
    /// The name of the network configuration.
    pub network: String,
    /// The pod, for people and to find its namespace.
    #[serde(default)]
    pub pod: PodIdentity,
    /// Cairn's annotations of the pod; absent when the runtime does not tell them.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub annotations: Option<BTreeMap<String, String>>,
    /// The addresses that the runtime asks for, at most one of each family; without any the agent
    /// chooses.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub ips: Vec<IpAddr>,
    /// The Ethernet address that the runtime asks for on the container's end.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub mac: Option<MacAddress>,
}

/// The fields of [`Request::Del`].
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct DelRequest {
    /// The container.
    pub container_id: ContainerId,
    /// The interface inside it.
    pub ifname: InterfaceName,
    /// The name of the network configuration.
    pub network: String,
}

/// The fields of [`Request::Check`]: what the result of the ADD says of this interface.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct CheckRequest {
    /// The container.
    pub container_id: ContainerId,
    /// The interface inside it.
    pub ifname: InterfaceName,
    /// The name of the network configuration.
    pub network: String,
    /// The container's addresses.
    pub addresses: Vec<IpAddr>,
    /// The gateways of its default routes through this interface.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub gateways: Vec<IpAddr>,
    /// The MTU in bytes, in results of version 1.1.0.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub mtu: Option<u32>,
}

/// The fields of [`Request::Gc`].
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct GcRequest {
    /// The name of the network configuration: attachments of other networks stay.
    pub network: String,
    /// The attachments that stay.
    pub valid: Vec<ValidAttachment>,
}

/// An attachment that a container runtime still knows.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct ValidAttachment {
    /// The container.
    pub container_id: ContainerId,
    /// The interface inside it.
    pub ifname: InterfaceName,
}

/// The agent's answer.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(tag = "answer", rename_all = "camelCase")]
pub enum Response {
    /// To [`Request::Add`]: the interface is there.
    Added(Added),
    /// To [`Request::Del`], [`Request::Check`], [`Request::Gc`] and [`Request::Status`]: done, no difference,
    /// ready.
    Done,
    /// To any request.
    Failed(Failure),
}

/// What the agent made for a container.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Added {
    /// The interface on the host.
    pub host_interface: String,
    /// Its Ethernet address.
    pub host_mac: String,
    /// The Ethernet address of the container's interface.
    pub pod_mac: String,
    /// The MTU of both in bytes.
    pub mtu: u32,
    /// The container's addresses.
    pub addresses: Vec<AddedAddress>,
}

/// One address of a container.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct AddedAddress {
    /// The address, alone in its subnet.
    pub address: IpAddr,
    /// The link-local gateway of its family.
    pub gateway: IpAddr,
    /// Whether the container's default route leads to the gateway. It does not when another interface
    /// had its default route first.
    pub default_route: bool,
}

/// Why the agent refused.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Failure {
    /// The CNI error code.
    pub code: Code,
    /// One sentence: what is wrong and what to do.
    pub msg: String,
    /// More, if there is more.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub details: Option<String>,
}

/// Why a request or response could not be exchanged.
#[derive(Debug, thiserror::Error)]
pub enum ProtocolError {
    /// The other side did not finish in time.
    #[error("it did not answer within the time limit")]
    TimedOut,
    /// The other side closed the connection in the middle.
    #[error("it closed the connection without a complete message")]
    Closed,
    /// The first bytes are not a frame's.
    #[error("it does not speak this protocol")]
    NotOurs,
    /// The other side speaks another version.
    #[error(
        "it speaks version {0} of the plugin's protocol, not {VERSION}: plugin and agent are of \
         different releases, which an upgrade in progress mends"
    )]
    Version(u32),
    /// The frame is longer than allowed.
    #[error("its message has {length} bytes, {max} are allowed")]
    TooLong {
        /// Its length in bytes.
        length: usize,
        /// The limit in bytes.
        max: usize,
    },
    /// The JSON part is not what the version defines.
    #[error("its message is not understood: {0}")]
    Decode(serde_json::Error),
    /// More than one descriptor came with the request.
    #[error("more than one descriptor came with the request")]
    Descriptors,
    /// A system call failed.
    #[error("the connection failed: {0}")]
    System(Errno),
}

/// Sends `request` with the descriptor of the container's namespace, if it has one, and waits for
/// the answer until `deadline`.
///
/// # Errors
/// Any [`ProtocolError`].
pub fn exchange(
    socket: impl AsFd,
    request: &Request,
    netns: Option<BorrowedFd<'_>>,
    deadline: Instant,
) -> Result<Response, ProtocolError> {
    let socket = socket.as_fd();
    let frame = encode(request, REQUEST_MAX)?;
    let sent = send(socket, &frame, netns, deadline);
    let header = match receive_header(socket, deadline) {
        // A server that refuses a request early answers before it has read all of it.
        Ok((header, _)) => header,
        Err(error) => return Err(sent.err().unwrap_or(error)),
    };
    decode(&receive_body(socket, header, RESPONSE_MAX, deadline)?)
}

/// Receives one request and the descriptor that came with it, for the agent's side.
///
/// # Errors
/// Any [`ProtocolError`]; a descriptor received until then is closed.
pub fn receive_request(
    socket: impl AsFd,
    deadline: Instant,
) -> Result<(Request, Option<OwnedFd>), ProtocolError> {
    let socket = socket.as_fd();
    let (header, mut descriptors) = receive_header(socket, deadline)?;
    let body = receive_body(socket, header, REQUEST_MAX, deadline)?;
    let netns = descriptors.pop();
    if !descriptors.is_empty() {
        return Err(ProtocolError::Descriptors);
    }
    Ok((decode(&body)?, netns))
}

/// Sends the answer, for the agent's side.
///
/// # Errors
/// Any [`ProtocolError`].
pub fn send_response(
    socket: impl AsFd,
    response: &Response,
    deadline: Instant,
) -> Result<(), ProtocolError> {
    send(socket.as_fd(), &encode(response, RESPONSE_MAX)?, None, deadline)
}

impl ProtocolError {
    /// The answer to a request that could not be received.
    pub fn to_failure(&self) -> Failure {
        let code = match self {
            ProtocolError::Version(_) | ProtocolError::TimedOut | ProtocolError::System(_) => {
                Code::TryAgainLater
            }
            _ => Code::Decode,
        };
        let msg = format!("the Cairn agent could not read the plugin's request: {self}");
        Failure { code, msg, details: None }
    }
}

fn encode(message: &impl Serialize, max: usize) -> Result<Vec<u8>, ProtocolError> {
    let body = serde_json::to_vec(message).map_err(ProtocolError::Decode)?;
    let too_long = ProtocolError::TooLong { length: body.len(), max };
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

fn decode<T: for<'de> Deserialize<'de>>(body: &[u8]) -> Result<T, ProtocolError> {
    serde_json::from_slice(body).map_err(ProtocolError::Decode)
}

fn send(
    socket: BorrowedFd<'_>,
    frame: &[u8],
    descriptor: Option<BorrowedFd<'_>>,
    deadline: Instant,
) -> Result<(), ProtocolError> {
    let mut sent = 0;
    while let Some(rest) = frame.get(sent..).filter(|rest| !rest.is_empty()) {
        set_timeout(socket, sockopt::Timeout::Send, deadline)?;
        let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
        let mut ancillary = SendAncillaryBuffer::new(&mut space);
        let passed = descriptor.as_slice();
        if sent == 0 && !passed.is_empty() {
            // The space is computed for one descriptor, so this cannot be refused.
            ancillary.push(SendAncillaryMessage::ScmRights(passed));
        }
        let slices = [IoSlice::new(rest)];
        match rustix::net::sendmsg(socket, &slices, &mut ancillary, SendFlags::NOSIGNAL) {
            Ok(count) => sent += count,
            Err(Errno::INTR) => {}
            Err(errno) => return Err(failed(errno)),
        }
    }
    Ok(())
}

/// Reads a frame's header and returns the length of its body, with all descriptors that came along.
fn receive_header(
    socket: BorrowedFd<'_>,
    deadline: Instant,
) -> Result<(usize, Vec<OwnedFd>), ProtocolError> {
    let mut header = [0; HEADER];
    let mut descriptors = Vec::new();
    receive(socket, &mut header, &mut descriptors, deadline)?;
    let word = |at: usize| {
        u32::from_be_bytes([header[at], header[at + 1], header[at + 2], header[at + 3]])
    };
    if header[..4] != *MAGIC {
        return Err(ProtocolError::NotOurs);
    }
    if word(4) != VERSION {
        return Err(ProtocolError::Version(word(4)));
    }
    Ok((word(8) as usize, descriptors))
}

fn receive_body(
    socket: BorrowedFd<'_>,
    length: usize,
    max: usize,
    deadline: Instant,
) -> Result<Vec<u8>, ProtocolError> {
    if length > max {
        return Err(ProtocolError::TooLong { length, max });
    }
    let mut body = vec![0; length];
    // Descriptors count only with a frame's first byte; others are closed.
    receive(socket, &mut body, &mut Vec::new(), deadline)?;
    Ok(body)
}

fn receive(
    socket: BorrowedFd<'_>,
    buffer: &mut [u8],
    descriptors: &mut Vec<OwnedFd>,
    deadline: Instant,
) -> Result<(), ProtocolError> {
    let mut received = 0;
    while let Some(rest) = buffer.get_mut(received..).filter(|rest| !rest.is_empty()) {
        set_timeout(socket, sockopt::Timeout::Recv, deadline)?;
        // Room for one descriptor too many shows that too many came; the kernel closes the others.
        let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(2))];
        let mut ancillary = RecvAncillaryBuffer::new(&mut space);
        let mut slices = [IoSliceMut::new(rest)];
        match rustix::net::recvmsg(socket, &mut slices, &mut ancillary, RecvFlags::CMSG_CLOEXEC) {
            Ok(message) if message.bytes == 0 => return Err(ProtocolError::Closed),
            Ok(message) => received += message.bytes,
            Err(Errno::INTR) => {}
            Err(Errno::CONNRESET) => return Err(ProtocolError::Closed),
            Err(errno) => return Err(failed(errno)),
        }
        for message in ancillary.drain() {
            if let RecvAncillaryMessage::ScmRights(rights) = message {
                descriptors.extend(rights);
            }
        }
    }
    Ok(())
}

fn set_timeout(
    socket: BorrowedFd<'_>,
    direction: sockopt::Timeout,
    deadline: Instant,
) -> Result<(), ProtocolError> {
    let left = deadline.saturating_duration_since(Instant::now());
    if left < TIMEOUT_MIN {
        return Err(ProtocolError::TimedOut);
    }
    sockopt::set_socket_timeout(socket, direction, Some(left)).map_err(ProtocolError::System)
}

fn failed(errno: Errno) -> ProtocolError {
    match errno {
        Errno::AGAIN => ProtocolError::TimedOut,
        errno => ProtocolError::System(errno),
    }
}

const MAGIC: &[u8; 4] = b"CRNI";
const HEADER: usize = 12;
/// A socket timeout is rounded to microseconds, and zero would mean to wait for ever.
const TIMEOUT_MIN: Duration = Duration::from_micros(100);
