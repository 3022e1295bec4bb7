//! ICMP echo by raw sockets, at both ends: the sender's for requests and replies, the receiver's to
//! see where requests come from while its kernel answers them.

use std::collections::BTreeMap;
use std::io;
use std::net::{IpAddr, SocketAddr, UdpSocket};
use std::os::fd::OwnedFd;
use std::sync::atomic::{AtomicBool, AtomicU16, Ordering};
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

use cairn_kernel::route::Family;
use rustix::net::{AddressFamily, SocketFlags, SocketType, ipproto};

use super::{Endpoint, Pending, Protocol, STOP_INTERVAL};
use crate::error::Error;

/// Sees the echo requests that reach an endpoint.
pub(super) struct Witness {
    v4: Option<UdpSocket>,
    v6: Option<UdpSocket>,
    seen: Mutex<BTreeMap<(Family, Tag), IpAddr>>,
}

/// What tells one request from all others, in its payload: the sender, and which of its probes. The
/// identifier in the header is another one behind address translation.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
struct Tag {
    sender: u16,
    number: u16,
}

impl Tag {
    fn new(sender: usize, number: usize) -> Tag {
        Tag { sender: sender as u16, number: number as u16 }
    }
}

impl Witness {
    /// # Errors
    /// When the kernel gives no raw socket.
    pub(super) fn open(endpoint: &Endpoint<'_>) -> Result<Witness, Error> {
        let open = |family: Family| {
            let wanted = endpoint.addresses.iter().any(|own| family_of(*own) == family);
            wanted.then(|| open_raw(family)).transpose()
        };
        let what = || format!("see ICMP in {}", endpoint.name);
        let (v4, v6) = endpoint
            .netns
            .run(|| -> io::Result<_> { Ok((open(Family::V4)?, open(Family::V6)?)) })
            .map_err(Error::kernel(what()))?
            .map_err(Error::io(what()))?;
        Ok(Witness { v4, v6, seen: Mutex::default() })
    }

    /// The families that are watched.
    pub(super) fn families(&self) -> Vec<Family> {
        Family::ALL.into_iter().filter(|family| self.socket(*family).is_some()).collect()
    }

    /// Notes the sources of requests of one family until `stop`.
    pub(super) fn watch(&self, family: Family, stop: &AtomicBool) {
        let Some(socket) = self.socket(family) else { return };
        let mut packet = [0; PACKET_MAX];
        while !stop.load(Ordering::Relaxed) {
            let Ok((len, source)) = socket.recv_from(&mut packet) else { continue };
            let message = icmp_part(family, packet.get(..len).unwrap_or_default());
            if let Some(tag) = parse(request_type(family), message) {
                self.seen
                    .lock()
                    .unwrap_or_else(PoisonError::into_inner)
                    .insert((family, tag), source.ip().to_canonical());
            }
        }
    }

    fn socket(&self, family: Family) -> Option<&UdpSocket> {
        match family {
            Family::V4 => self.v4.as_ref(),
            Family::V6 => self.v6.as_ref(),
        }
    }

    /// Where the request `tag` came from. The reply may overtake this witness' thread, so it waits
    /// a moment.
    fn source_of(&self, family: Family, tag: Tag) -> Option<IpAddr> {
        let deadline = Instant::now() + TIMEOUT;
        loop {
            let seen = self.seen.lock().unwrap_or_else(PoisonError::into_inner);
            let seen = seen.get(&(family, tag)).copied();
            if seen.is_some() || Instant::now() >= deadline {
                return seen;
            }
            std::thread::sleep(Duration::from_millis(1));
        }
    }
}

/// Sends one request for each pending ICMP probe and collects the replies. Runs inside the sender's
/// namespace.
pub(super) fn attempt(
    from: usize,
    pending: &mut [Pending],
    witnesses: &[Witness],
) -> Result<(), Error> {
    for family in Family::ALL {
        let ours = |one: &Pending| {
            one.probe.protocol == Protocol::Icmp
                && !one.done
                && family_of(one.probe.address) == family
        };
        if pending.iter().any(ours) {
            let socket = open_raw(family).map_err(Error::io("open a raw socket"))?;
            exchange(&socket, family, from, pending, ours);
            for (number, one) in pending.iter_mut().enumerate() {
                if one.failure.is_some() || one.done {
                    continue;
                }
                let tag = Tag::new(from, number);
                if one.probe.protocol != Protocol::Icmp || family_of(one.probe.address) != family {
                    continue;
                }
                let witness = witnesses.get(one.probe.to);
                one.failure = match witness.and_then(|witness| witness.source_of(family, tag)) {
                    Some(source) if source == one.seen_as => None,
                    Some(source) => {
                        Some(format!("the receiver saw {source} instead of {}", one.seen_as))
                    }
                    None => Some("answered by somebody else than the receiver".into()),
                };
                one.done = one.failure.is_none();
            }
        }
    }
    Ok(())
}

/// Sends and receives; a probe without a reply gets its failure.
fn exchange(
    socket: &UdpSocket,
    family: Family,
    from: usize,
    pending: &mut [Pending],
    ours: impl Fn(&Pending) -> bool,
) {
    let mut missing = BTreeMap::new();
    // As of a `ping` that is started again: by the same one the kernel would know it as part of what an
    // earlier attempt began, and translate its addresses as it did then.
    let identifier = ATTEMPTS.fetch_add(1, Ordering::Relaxed);
    for (index, one) in pending.iter_mut().enumerate().filter(|(_, one)| ours(one)) {
        one.attempts += 1;
        let tag = Tag::new(from, index);
        one.failure = Some("no answer".into());
        match socket
            .send_to(&request(family, tag, identifier), SocketAddr::new(one.probe.address, 0))
        {
            Ok(_) => drop(missing.insert((tag, one.probe.address), index)),
            Err(error) => one.failure = Some(error.to_string()),
        }
    }
    let deadline = Instant::now() + TIMEOUT;
    let mut packet = [0; PACKET_MAX];
    while !missing.is_empty() && Instant::now() < deadline {
        let Ok((len, source)) = socket.recv_from(&mut packet) else { continue };
        let message = icmp_part(family, packet.get(..len).unwrap_or_default());
        let Some(tag) = parse(reply_type(family), message) else { continue };
        if let Some(index) = missing.remove(&(tag, source.ip().to_canonical()))
            && let Some(one) = pending.get_mut(index)
        {
            one.failure = None;
        }
    }
}

fn open_raw(family: Family) -> io::Result<UdpSocket> {
    let (domain, protocol) = match family {
        Family::V4 => (AddressFamily::INET, ipproto::ICMP),
        Family::V6 => (AddressFamily::INET6, ipproto::ICMPV6),
    };
    let fd: OwnedFd =
        rustix::net::socket_with(domain, SocketType::RAW, SocketFlags::CLOEXEC, Some(protocol))?;
    // The type only lends its methods, which are the same for every kind of datagram.
    let socket = UdpSocket::from(fd);
    socket.set_read_timeout(Some(STOP_INTERVAL))?;
    Ok(socket)
}

fn family_of(address: IpAddr) -> Family {
    if address.is_ipv4() { Family::V4 } else { Family::V6 }
}

/// An echo request (RFC 792, RFC 4443 section 4.1).
fn request(family: Family, tag: Tag, identifier: u16) -> [u8; REQUEST_BYTES] {
    let mut message = [0; REQUEST_BYTES];
    message[0] = request_type(family);
    message[4..6].copy_from_slice(&identifier.to_be_bytes());
    message[6..8].copy_from_slice(&tag.number.to_be_bytes());
    message[8..16].copy_from_slice(MAGIC);
    message[16..18].copy_from_slice(&tag.sender.to_be_bytes());
    message[18..].copy_from_slice(&tag.number.to_be_bytes());
    if family == Family::V4 {
        // The kernel does this for ICMPv6 only.
        let sum = checksum(&message);
        message[2..4].copy_from_slice(&sum.to_be_bytes());
    }
    message
}

/// The ICMP message in what a raw socket reads: for IPv4 it stands behind the IP header.
fn icmp_part(family: Family, packet: &[u8]) -> &[u8] {
    match (family, packet.first()) {
        (Family::V4, Some(first)) => packet.get(usize::from(first & 0xf) * 4..).unwrap_or_default(),
        _ => packet,
    }
}

/// The tag of a message of type `kind` that a lab sent.
fn parse(kind: u8, message: &[u8]) -> Option<Tag> {
    let (header, payload) = message.split_first_chunk::<8>()?;
    let tag: &[u8; TAG_BYTES] = payload.strip_prefix(MAGIC)?.try_into().ok()?;
    (header[0] == kind).then_some(Tag {
        sender: u16::from_be_bytes([tag[0], tag[1]]),
        number: u16::from_be_bytes([tag[2], tag[3]]),
    })
}

fn request_type(family: Family) -> u8 {
    match family {
        Family::V4 => 8,
        Family::V6 => 128,
    }
}

fn reply_type(family: Family) -> u8 {
    match family {
        Family::V4 => 0,
        Family::V6 => 129,
    }
}

/// The Internet checksum (RFC 1071) of an even number of bytes.
fn checksum(bytes: &[u8]) -> u16 {
    let words = bytes.chunks_exact(2).map(|word| u32::from(u16::from_be_bytes([word[0], word[1]])));
    let mut sum: u32 = words.sum();
    while sum > 0xffff {
        sum = (sum & 0xffff) + (sum >> 16);
    }
    !(sum as u16)
}

static ATTEMPTS: AtomicU16 = AtomicU16::new(1);
const MAGIC: &[u8; 8] = b"cairnlab";
const TAG_BYTES: usize = 4;
const REQUEST_BYTES: usize = 8 + MAGIC.len() + TAG_BYTES;
const PACKET_MAX: usize = 256;
const TIMEOUT: Duration = Duration::from_millis(500);

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_request_is_read_back_and_its_sum_is_right() {
        let tag = Tag::new(3, 700);
        for family in Family::ALL {
            let mut message = request(family, tag, 1);
            assert_eq!(parse(request_type(family), &message), Some(tag));
            // Address translation may change the identifier.
            message[4] ^= 1;
            assert_eq!(parse(request_type(family), &message), Some(tag));
            assert_eq!(parse(reply_type(family), &message), None);
        }
        // The sum over a message with its own checksum is zero.
        assert_eq!(checksum(&request(Family::V4, tag, 1)), 0);
        assert_eq!(parse(8, b"short"), None);
    }

    #[test]
    fn an_ip_header_with_options_is_skipped() {
        let mut packet = vec![0x46; 24];
        packet.extend_from_slice(&request(Family::V4, Tag::new(1, 2), 1));
        assert!(parse(8, icmp_part(Family::V4, &packet)).is_some());
        assert_eq!(icmp_part(Family::V4, &[0x4f]), &[] as &[u8]);
    }
}
