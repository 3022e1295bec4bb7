//! Ending a pod without an agent: the node's end of its interface is removed here, and the agent frees the
//! addresses when it comes back and sees that the interface has gone.
//!
//! Only while nobody listens on the socket. An agent that listens and is silent may be in the middle of
//! anything, and is asked again. Nothing is removed but a veth interface that has the name which follows
//! from the container and whose alias, the node's record of who holds which address, names it too. One
//! without a readable alias stays, even though the name alone would tell it: it is either half done, and
//! then holds no address and goes at the agent's next start; or somebody took the record away, and what
//! it holds is for the agent to find out. Both end at the latest with the pod's network namespace, which a
//! runtime removes after DEL.

use std::time::Duration;

use rustix::fd::OwnedFd;
use rustix::io::Errno;
use rustix::net::{AddressFamily, RecvFlags, SendFlags, SocketFlags, SocketType, sockopt};

use crate::names::{ContainerId, InterfaceName};

/// Removes the node's end of the interface if it is there and is recorded as this container's. The
/// kernel takes some 30 ms, and the pod's end goes with it.
///
/// # Errors
/// What the kernel answered.
pub fn remove(container_id: &ContainerId, ifname: &InterfaceName) -> Result<(), Errno> {
    let (container_id, ifname) = (container_id.as_str(), ifname.as_str());
    let socket = open()?;
    let name = host_interface_name(container_id, ifname);
    let Some(link) = find(&socket, &name)? else { return Ok(()) };
    if !link.is_veth || !names(&link.alias, container_id, ifname) {
        return Ok(());
    }
    let request = message(RTM_DELLINK, NLM_F_ACK, link.index, &[]);
    match ask(&socket, &request) {
        Err(Errno::NODEV) => Ok(()),
        done => done.map(drop),
    }
}

/// The name of the node's end, as the agent gives it (`host_interface_name` in the crate cairn-kernel, which
/// is too much for this program; a test of the agent compares them).
pub fn host_interface_name(container_id: &str, ifname: &str) -> String {
    // FNV-1a, and the finalizer of SplitMix64.
    let mut hash: u64 = 0xcbf2_9ce4_8422_2325;
    for byte in container_id.bytes().chain([0]).chain(ifname.bytes()) {
        hash = (hash ^ u64::from(byte)).wrapping_mul(0x0100_0000_01b3);
    }
    hash = (hash ^ (hash >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    hash = (hash ^ (hash >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    hash ^= hash >> 31;
    let digit = |place: u32| char::from_digit((hash >> (5 * place) & 31) as u32, 32).unwrap_or('0');
    PREFIX.chars().chain((0..DIGITS).map(digit)).collect()
}

/// Whether the alias of an interface begins as the record of this container's does.
fn names(alias: &[u8], container_id: &str, ifname: &str) -> bool {
    // The addresses follow and do not matter here.
    alias.starts_with(format!("{RECORD} {container_id} {ifname} ").as_bytes())
}

#[derive(Debug, Default, PartialEq)]
struct Link {
    index: u32,
    is_veth: bool,
    alias: Vec<u8>,
}

fn open() -> Result<OwnedFd, Errno> {
    // Protocol 0 is NETLINK_ROUTE.
    let (family, kind) = (AddressFamily::NETLINK, SocketType::RAW);
    let socket = rustix::net::socket_with(family, kind, SocketFlags::CLOEXEC, None)?;
    sockopt::set_socket_timeout(&socket, sockopt::Timeout::Recv, Some(ANSWER_MAX))?;
    Ok(socket)
}

fn find(socket: &OwnedFd, name: &str) -> Result<Option<Link>, Errno> {
    let mut name = name.as_bytes().to_vec();
    name.push(0);
    let skip_stats = RTEXT_FILTER_SKIP_STATS.to_ne_bytes();
    let attributes = [(IFLA_IFNAME, name.as_slice()), (IFLA_EXT_MASK, &skip_stats)];
    match ask(socket, &message(RTM_GETLINK, 0, 0, &attributes)) {
        Ok(Some(body)) => parse(&body).map(Some),
        Ok(None) | Err(Errno::NODEV) => Ok(None),
        Err(errno) => Err(errno),
    }
}

/// Sends one request and returns the body of its answer, which an acknowledgement has not.
fn ask(socket: &OwnedFd, request: &[u8]) -> Result<Option<Vec<u8>>, Errno> {
    rustix::net::send(socket, request, SendFlags::empty())?;
    let mut buffer = vec![0; ANSWER_BYTES_MAX];
    let (_, length) = loop {
        match rustix::net::recv(socket, &mut buffer[..], RecvFlags::TRUNC) {
            Err(Errno::INTR) => {}
            Err(Errno::AGAIN) => return Err(Errno::TIMEDOUT),
            received => break received?,
        }
    };
    let answer = buffer.get(..length).ok_or(Errno::MSGSIZE)?;
    let (header, body) = answer.split_at_checked(NLMSG_HEADER).ok_or(Errno::BADMSG)?;
    if header.get(4..6) != Some(&NLMSG_ERROR.to_ne_bytes()) {
        return Ok(Some(body.to_vec()));
    }
    let code = body.first_chunk().map_or(0, |code| i32::from_ne_bytes(*code));
    match code {
        0 => Ok(None),
        code => Err(Errno::from_raw_os_error(code.wrapping_neg())),
    }
}

/// A request about the link `index`, or the one that an attribute names.
fn message(kind: u16, flags: u16, index: u32, attributes: &[(u16, &[u8])]) -> Vec<u8> {
    let mut message = vec![0; NLMSG_HEADER + IFINFOMSG];
    message[4..6].copy_from_slice(&kind.to_ne_bytes());
    message[6..8].copy_from_slice(&(flags | NLM_F_REQUEST).to_ne_bytes());
    message[20..24].copy_from_slice(&index.to_ne_bytes());
    for (kind, value) in attributes {
        // Names and numbers: far below 64 KiB.
        message.extend_from_slice(&((value.len() + ATTRIBUTE_HEADER) as u16).to_ne_bytes());
        message.extend_from_slice(&kind.to_ne_bytes());
        message.extend_from_slice(value);
        message.resize(message.len().next_multiple_of(4), 0);
    }
    let length = message.len() as u32;
    message[..4].copy_from_slice(&length.to_ne_bytes());
    message
}

/// Reads the body of an RTM_NEWLINK message.
fn parse(body: &[u8]) -> Result<Link, Errno> {
    let (header, mut rest) = body.split_at_checked(IFINFOMSG).ok_or(Errno::BADMSG)?;
    let index = header.get(4..8).and_then(read_u32).ok_or(Errno::BADMSG)?;
    let mut link = Link { index, ..Link::default() };
    while let Some((kind, value)) = next_attribute(&mut rest) {
        match kind {
            IFLA_IFALIAS => link.alias = value.to_vec(),
            IFLA_LINKINFO => {
                let mut info = value;
                while let Some((kind, value)) = next_attribute(&mut info) {
                    link.is_veth |= kind == IFLA_INFO_KIND && value.starts_with(b"veth\0");
                }
            }
            _ => {}
        }
    }
    Ok(link)
}

/// Takes the first attribute off `rest`: its kind without flags, and its value.
fn next_attribute<'a>(rest: &mut &'a [u8]) -> Option<(u16, &'a [u8])> {
    let [a, b, c, d] = *rest.first_chunk()?;
    let length = usize::from(u16::from_ne_bytes([a, b]));
    let value = rest.get(ATTRIBUTE_HEADER..length)?;
    *rest = rest.get(length.next_multiple_of(4)..).unwrap_or_default();
    Some((u16::from_ne_bytes([c, d]) & NLA_TYPE_MASK, value))
}

fn read_u32(bytes: &[u8]) -> Option<u32> {
    Some(u32::from_ne_bytes(bytes.try_into().ok()?))
}

const PREFIX: &str = "cairn";
const DIGITS: u32 = 10;
/// What the agent's records begin with: the version of their form.
const RECORD: &str = "cairn2";
/// The kernel waits for its readers and for whoever else changes links.
const ANSWER_MAX: Duration = Duration::from_secs(10);
/// Without counters a link has some 1.5 KiB.
const ANSWER_BYTES_MAX: usize = 32 << 10;
/// linux/netlink.h, linux/rtnetlink.h, linux/if_link.h.
const NLMSG_HEADER: usize = 16;
const IFINFOMSG: usize = 16;
const ATTRIBUTE_HEADER: usize = 4;
const NLMSG_ERROR: u16 = 2;
const NLM_F_REQUEST: u16 = 1;
const NLM_F_ACK: u16 = 4;
const NLA_TYPE_MASK: u16 = 0x3fff;
const RTM_DELLINK: u16 = 17;
const RTM_GETLINK: u16 = 18;
const IFLA_IFNAME: u16 = 3;
const IFLA_LINKINFO: u16 = 18;
const IFLA_IFALIAS: u16 = 20;
const IFLA_EXT_MASK: u16 = 29;
const IFLA_INFO_KIND: u16 = 1;
const RTEXT_FILTER_SKIP_STATS: u32 = 8;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_alias_must_name_both_container_and_interface() {
        for (alias, expected) in [
            ("cairn2 c0ffee eth0 - 012abc 10.0.0.1", true),
            ("cairn2 c0ffee eth0 uid-1 012abc 10.0.0.1,fd00::1", true),
            ("cairn2 c0ffee eth1 - 012abc 10.0.0.1", false),
            ("cairn2 c0ffee eth00 - 012abc 10.0.0.1", false),
            ("cairn2 c0ffe eth0 - 012abc 10.0.0.1", false),
            ("cairn3 c0ffee eth0 - 012abc 10.0.0.1", false),
            ("cairn2 c0ffee eth0", false),
            ("rack 7", false),
            ("", false),
        ] {
            assert_eq!(names(alias.as_bytes(), "c0ffee", "eth0"), expected, "{alias:?}");
        }
    }

    #[test]
    fn a_link_is_read_and_what_is_none_does_no_harm() {
        let info = [8u16.to_ne_bytes(), [1, 0]].concat();
        let kind = [&9u16.to_ne_bytes()[..], &1u16.to_ne_bytes(), b"veth\0"].concat();
        let whole =
            message(0, 0, 7, &[(IFLA_IFALIAS, b"cairn2 c"), (IFLA_LINKINFO | 0x8000, &kind)]);
        let body = &whole[NLMSG_HEADER..];
        let expected = Link { index: 7, is_veth: true, alias: b"cairn2 c".to_vec() };
        assert_eq!(parse(body), Ok(expected));
        for end in 0..body.len() {
            let _ = parse(&body[..end]);
            for value in [0, 1, 0xff] {
                let mut damaged = body.to_vec();
                damaged[end] = value;
                let _ = parse(&damaged);
            }
        }
        assert!(next_attribute(&mut info.as_slice()).is_none(), "longer than what is there");
    }
}
