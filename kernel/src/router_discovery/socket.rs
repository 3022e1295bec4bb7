//! The socket: raw ICMPv6, for solicitations and advertisements of all links.

use std::ffi::{c_int, c_void};
use std::io;
use std::mem::size_of;
use std::net::{Ipv6Addr, SocketAddrV6};
use std::os::fd::{AsRawFd, OwnedFd};

use rustix::io::Errno;
use rustix::net::{AddressFamily, Protocol, SocketFlags, SocketType, ipproto, sockopt};
use tokio::io::Interest;
use tokio::io::unix::AsyncFd;

use super::link::{Due, LinkEnd};
use super::wire::{self, ADVERTISEMENT, HOP_LIMIT, NEIGHBOUR_ADVERTISEMENT, SOLICITATION};
use crate::error::Error;
use crate::link::Mac;

/// A raw socket that hears solicitations and advertisements, on demand also which addresses are on links, and
/// nothing else. It belongs to the network namespace that it was opened in.
#[derive(Debug)]
pub struct RouterSocket {
    fd: AsyncFd<OwnedFd>,
}

/// A message that came in, not looked at yet.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Received {
    /// How many octets of the buffer are the message. What is longer is cut, and so malformed.
    pub octets: usize,
    /// Where it came from.
    pub source: Ipv6Addr,
    /// The index of the interface that it came by.
    pub index: u32,
    /// Its hop limit on arrival.
    pub hop_limit: u8,
}

impl RouterSocket {
    /// Opens the socket in the network namespace of the calling thread. Must be called within a tokio
    /// runtime.
    ///
    /// # Errors
    /// [`Error::System`] when the kernel gives none: raw sockets need `CAP_NET_RAW`.
    pub fn open() -> Result<RouterSocket, Error> {
        let fd = open().map_err(|errno| Error::system("open a raw ICMPv6 socket", errno))?;
        // SAFETY: an `OwnedFd` always gives the same descriptor, and it stays open until the `AsyncFd`, which
        // owns it, has deregistered it.
        let fd = unsafe { AsyncFd::register_with_interest(fd, Interest::READABLE) }
            .map_err(|error| Error::io("watch a raw ICMPv6 socket", &error.into()))?;
        Ok(RouterSocket { fd })
    }

    /// Hears what is sent to all routers of a link. That it does already is fine.
    ///
    /// # Errors
    /// [`Error::System`], for example when there is no such link.
    pub fn join(&self, index: u32) -> Result<(), Error> {
        match sockopt::set_ipv6_add_membership(self.fd.get_ref(), &ALL_ROUTERS, index) {
            Err(Errno::ADDRINUSE) => Ok(()),
            done => done.map_err(|errno| {
                Error::system(format!("hear what is sent to routers on link {index}"), errno)
            }),
        }
    }

    /// Does not hear it any more. That it did not is fine.
    pub fn leave(&self, index: u32) {
        let _ = sockopt::set_ipv6_drop_membership(self.fd.get_ref(), &ALL_ROUTERS, index);
    }

    /// Sends what is due on a link: each by itself, whatever becomes of the others.
    ///
    /// # Errors
    /// [`Error::System`]: none of it is worth more than a word, as the next follows.
    pub fn send(&self, end: LinkEnd, mac: Option<Mac>, due: Due) -> Result<(), Error> {
        let asked = due.ask_for.map_or(Ok(()), |target| {
            let question = wire::neighbour_solicitation(target, mac);
            self.send_to(end, solicited_node(target), &question)
        });
        let solicited = match due.solicitation {
            true => self.send_to(end, ALL_ROUTERS, &wire::solicitation(mac)),
            false => Ok(()),
        };
        let advertised = match due.advertisement {
            true => self.send_to(end, ALL_NODES, &wire::advertisement(mac)),
            false => Ok(()),
        };
        asked.and(solicited).and(advertised)
    }

    /// Hears which addresses are on links, or does not any more: a machine with many pods hears that all the
    /// time.
    ///
    /// # Errors
    /// [`Error::System`].
    pub fn hear_addresses(&self, hears: bool) -> Result<(), Error> {
        filter(self.fd.get_ref(), hears)
            .map_err(|errno| Error::system("choose the ICMPv6 messages to hear", errno))
    }

    /// A message that has arrived already, if there is one.
    ///
    /// # Errors
    /// When the socket fails.
    pub fn receive_now(&self, buffer: &mut [u8]) -> Result<Option<Received>, Error> {
        loop {
            match receive(self.fd.get_ref(), buffer) {
                Ok(Some(received)) => return Ok(Some(received)),
                Ok(None) => {}
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => return Ok(None),
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return Err(Error::io("receive router advertisements", &error)),
            }
        }
    }

    /// Waits for the next message. Dropping the future loses nothing.
    ///
    /// # Errors
    /// When the socket fails.
    pub async fn receive(&self, buffer: &mut [u8]) -> Result<Received, Error> {
        loop {
            let mut ready = self
                .fd
                .readable()
                .await
                .map_err(|error| Error::io("wait for router advertisements", &error))?;
            match receive(ready.get_inner(), buffer) {
                Ok(Some(received)) => return Ok(received),
                // Without address or interface nobody knows whose it is.
                Ok(None) => tokio::task::consume_budget().await,
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => ready.clear_ready(),
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return Err(Error::io("receive router advertisements", &error)),
            }
        }
    }

    fn send_to(&self, end: LinkEnd, group: Ipv6Addr, octets: &[u8]) -> Result<(), Error> {
        let to = SocketAddrV6::new(group, 0, 0, end.index);
        send(self.fd.get_ref(), to, end, octets)
            .map_err(|error| Error::io(format!("send to {group} on link {}", end.index), &error))
    }
}

fn open() -> Result<OwnedFd, Errno> {
    let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
    let protocol: Option<Protocol> = Some(ipproto::ICMPV6);
    let fd = rustix::net::socket_with(AddressFamily::INET6, SocketType::RAW, flags, protocol)?;
    filter(&fd, false)?;
    set_option(&fd, libc::IPPROTO_IPV6, libc::IPV6_RECVHOPLIMIT, &1_i32)?;
    set_option(&fd, libc::IPPROTO_IPV6, libc::IPV6_RECVPKTINFO, &1_i32)?;
    sockopt::set_ipv6_multicast_hops(&fd, HOP_LIMIT.into())?;
    sockopt::set_ipv6_multicast_loop(&fd, false)?;
    Ok(fd)
}

fn filter(fd: &OwnedFd, addresses: bool) -> Result<(), Errno> {
    // A set bit keeps a type out (RFC 3542 section 3.2).
    let mut filter = [u32::MAX; 8];
    let addresses = addresses.then_some(NEIGHBOUR_ADVERTISEMENT);
    for kind in [SOLICITATION, ADVERTISEMENT].into_iter().chain(addresses) {
        filter[usize::from(kind) / 32] &= !(1 << (kind % 32));
    }
    set_option(fd, libc::IPPROTO_ICMPV6, ICMPV6_FILTER, &filter)
}

/// The group that whoever has `address` hears (RFC 4291 section 2.7.1).
fn solicited_node(address: Ipv6Addr) -> Ipv6Addr {
    let mut octets = SOLICITED_NODE.octets();
    octets[13..].copy_from_slice(&address.octets()[13..]);
    Ipv6Addr::from(octets)
}

fn set_option<T>(fd: &OwnedFd, level: c_int, option: c_int, value: &T) -> Result<(), Errno> {
    let length = size_of::<T>() as libc::socklen_t;
    let value = std::ptr::from_ref(value).cast::<c_void>();
    // SAFETY: the kernel reads `length` octets of the value, which lives until the call returns.
    match unsafe { libc::setsockopt(fd.as_raw_fd(), level, option, value, length) } {
        0 => Ok(()),
        _ => Err(last_errno()),
    }
}

fn last_errno() -> Errno {
    Errno::from_raw_os_error(io::Error::last_os_error().raw_os_error().unwrap_or(libc::EIO))
}

/// Sends from the address and the interface of `end`.
fn send(fd: &OwnedFd, to: SocketAddrV6, end: LinkEnd, octets: &[u8]) -> io::Result<()> {
    let mut control = Control([0; CONTROL_WORDS]);
    // SAFETY: all zeros are a value of all of them.
    let (mut name, mut message): (libc::sockaddr_in6, libc::msghdr) =
        unsafe { (std::mem::zeroed(), std::mem::zeroed()) };
    name.sin6_family = libc::AF_INET6 as libc::sa_family_t;
    name.sin6_addr.s6_addr = to.ip().octets();
    name.sin6_scope_id = to.scope_id();
    let mut slice =
        libc::iovec { iov_base: octets.as_ptr().cast_mut().cast(), iov_len: octets.len() };
    message.msg_name = (&raw mut name).cast();
    message.msg_namelen = size_of::<libc::sockaddr_in6>() as libc::socklen_t;
    message.msg_iov = &raw mut slice;
    message.msg_iovlen = 1;
    message.msg_control = control.0.as_mut_ptr().cast();
    let info = libc::in6_pktinfo {
        ipi6_addr: libc::in6_addr { s6_addr: end.local.octets() },
        ipi6_ifindex: end.index,
    };
    // SAFETY: the control buffer is aligned and has room for one header with its data, which the macros place
    // in it; the message points to memory that lives until the call returns, and sendmsg only reads.
    let sent = unsafe {
        message.msg_controllen = libc::CMSG_SPACE(size_of::<libc::in6_pktinfo>() as u32) as _;
        let header = libc::CMSG_FIRSTHDR(&raw const message);
        (*header).cmsg_level = libc::IPPROTO_IPV6;
        (*header).cmsg_type = libc::IPV6_PKTINFO;
        (*header).cmsg_len = libc::CMSG_LEN(size_of::<libc::in6_pktinfo>() as u32) as _;
        libc::CMSG_DATA(header).cast::<libc::in6_pktinfo>().write_unaligned(info);
        libc::sendmsg(fd.as_raw_fd(), &raw const message, libc::MSG_DONTWAIT)
    };
    if sent < 0 { Err(io::Error::last_os_error()) } else { Ok(()) }
}

/// The next message, without waiting; `None` of one without all that has to be known of it.
fn receive(fd: &OwnedFd, buffer: &mut [u8]) -> io::Result<Option<Received>> {
    let mut control = Control([0; CONTROL_WORDS]);
    // SAFETY: all zeros are a value of both.
    let (mut name, mut message): (libc::sockaddr_in6, libc::msghdr) =
        unsafe { (std::mem::zeroed(), std::mem::zeroed()) };
    let mut slice = libc::iovec { iov_base: buffer.as_mut_ptr().cast(), iov_len: buffer.len() };
    message.msg_name = (&raw mut name).cast();
    message.msg_namelen = size_of::<libc::sockaddr_in6>() as libc::socklen_t;
    message.msg_iov = &raw mut slice;
    message.msg_iovlen = 1;
    message.msg_control = control.0.as_mut_ptr().cast();
    message.msg_controllen = size_of::<Control>() as _;
    // SAFETY: the message points to memory of these lengths that lives until the call returns.
    let count = unsafe { libc::recvmsg(fd.as_raw_fd(), &raw mut message, libc::MSG_DONTWAIT) };
    let octets = usize::try_from(count).map_err(|_| io::Error::last_os_error())?;
    let (mut hop_limit, mut index) = (None, None);
    // SAFETY: the kernel has filled in the control messages and their length.
    let mut header = unsafe { libc::CMSG_FIRSTHDR(&raw const message) };
    while !header.is_null() {
        // SAFETY: the macro gave a header inside the control messages, whose data the kernel has written for
        // its type; it may be unaligned.
        unsafe {
            let data = libc::CMSG_DATA(header);
            match ((*header).cmsg_level, (*header).cmsg_type) {
                (libc::IPPROTO_IPV6, libc::IPV6_HOPLIMIT) => {
                    hop_limit = u8::try_from(data.cast::<c_int>().read_unaligned()).ok();
                }
                (libc::IPPROTO_IPV6, libc::IPV6_PKTINFO) => {
                    let info = data.cast::<libc::in6_pktinfo>().read_unaligned();
                    index = Some(info.ipi6_ifindex);
                }
                _ => {}
            }
            header = libc::CMSG_NXTHDR(&raw const message, header);
        }
    }
    let source = Ipv6Addr::from(name.sin6_addr.s6_addr);
    let known = hop_limit.zip(index);
    Ok(known.map(|(hop_limit, index)| Received { octets, source, index, hop_limit }))
}

/// Room for control messages, aligned as they need.
struct Control([u64; CONTROL_WORDS]);

/// Far more than a hop limit and a packet's interface take.
const CONTROL_WORDS: usize = 16;
/// linux/icmpv6.h.
const ICMPV6_FILTER: c_int = 1;
/// RFC 4291 section 2.7.1.
const ALL_NODES: Ipv6Addr = Ipv6Addr::new(0xff02, 0, 0, 0, 0, 0, 0, 1);
const ALL_ROUTERS: Ipv6Addr = Ipv6Addr::new(0xff02, 0, 0, 0, 0, 0, 0, 2);
const SOLICITED_NODE: Ipv6Addr = Ipv6Addr::new(0xff02, 0, 0, 0, 0, 1, 0xff00, 0);
