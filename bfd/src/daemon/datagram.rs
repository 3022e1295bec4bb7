//! Datagrams with the TTL and the interface that they came with, which the standard library does not tell.

use std::ffi::{c_int, c_void};
use std::io;
use std::mem::size_of;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::os::fd::AsRawFd;

use socket2::{SockFilter, Socket};

/// A datagram that came in.
#[derive(Clone, Copy, Debug)]
pub(super) struct Datagram {
    /// How many octets of the buffer are its payload. What is longer than the buffer is cut.
    pub(super) octets: usize,
    pub(super) source: IpAddr,
    pub(super) ttl: Option<u8>,
    /// The index of the interface; 0 when the kernel does not say.
    pub(super) interface: u32,
}

/// Makes the kernel tell the TTL and the interface of what comes to this socket.
pub(super) fn ask_for_ttl(socket: &Socket, local: IpAddr) -> io::Result<()> {
    let (level, options) = match local {
        IpAddr::V4(_) => (libc::IPPROTO_IP, [libc::IP_RECVTTL, libc::IP_PKTINFO]),
        IpAddr::V6(_) => (libc::IPPROTO_IPV6, [libc::IPV6_RECVHOPLIMIT, libc::IPV6_RECVPKTINFO]),
    };
    for option in options {
        let on: c_int = 1;
        let length = size_of::<c_int>() as libc::socklen_t;
        let value = (&raw const on).cast::<c_void>();
        // SAFETY: the value is an integer of that length, which lives until the call returns.
        if unsafe { libc::setsockopt(socket.as_raw_fd(), level, option, value, length) } != 0 {
            return Err(io::Error::last_os_error());
        }
    }
    Ok(())
}

/// Makes the kernel drop what came over more than one hop (RFC 5881 section 5), however much it is: no packet of it wakes
/// this process, which runs above all others.
pub(super) fn take_from_next_hop_alone(socket: &Socket, local: IpAddr) -> io::Result<()> {
    // A filter of a UDP socket sees the UDP header first; this place counts from the IP header.
    let ttl = match local {
        IpAddr::V4(_) => libc::SKF_NET_OFF + 8,
        IpAddr::V6(_) => libc::SKF_NET_OFF + 7,
    };
    let step = |code: u32, yes, no, k| SockFilter::new(code as u16, yes, no, k);
    socket.attach_filter(&[
        step(libc::BPF_LD | libc::BPF_B | libc::BPF_ABS, 0, 0, ttl.cast_unsigned()),
        step(libc::BPF_JMP | libc::BPF_JEQ | libc::BPF_K, 0, 1, u8::MAX.into()),
        step(libc::BPF_RET | libc::BPF_K, 0, 0, u32::MAX),
        step(libc::BPF_RET | libc::BPF_K, 0, 0, 0),
    ])
}

/// How many packets the kernel has dropped at this socket: by its filter, and for want of room.
pub(super) fn dropped(socket: &Socket) -> io::Result<u32> {
    let mut words = [0_u32; MEMINFO_WORDS];
    let mut length = size_of::<[u32; MEMINFO_WORDS]>() as libc::socklen_t;
    let value = words.as_mut_ptr().cast::<c_void>();
    // SAFETY: the kernel writes at most `length` octets to the array, which lives until the call returns.
    let result = unsafe {
        let fd = socket.as_raw_fd();
        libc::getsockopt(fd, libc::SOL_SOCKET, libc::SO_MEMINFO, value, &raw mut length)
    };
    if result != 0 {
        return Err(io::Error::last_os_error());
    }
    Ok(words[MEMINFO_DROPS])
}

/// The next datagram, without waiting.
pub(super) fn receive(socket: &Socket, buffer: &mut [u8]) -> io::Result<Datagram> {
    let mut control = Control([0; CONTROL_WORDS]);
    // SAFETY: all zeros are a value of both.
    let (mut name, mut message): (libc::sockaddr_storage, libc::msghdr) =
        unsafe { (std::mem::zeroed(), std::mem::zeroed()) };
    let mut slice = libc::iovec { iov_base: buffer.as_mut_ptr().cast(), iov_len: buffer.len() };
    message.msg_name = (&raw mut name).cast();
    message.msg_namelen = size_of::<libc::sockaddr_storage>() as libc::socklen_t;
    message.msg_iov = &raw mut slice;
    message.msg_iovlen = 1;
    message.msg_control = control.0.as_mut_ptr().cast();
    message.msg_controllen = size_of::<Control>() as _;
    // SAFETY: the message points to memory of these lengths that lives until the call returns.
    let count = unsafe { libc::recvmsg(socket.as_raw_fd(), &raw mut message, libc::MSG_DONTWAIT) };
    let octets = usize::try_from(count).map_err(|_| io::Error::last_os_error())?;
    let source = source(&name).ok_or(io::ErrorKind::InvalidData)?;
    let mut datagram = Datagram { octets, source, ttl: None, interface: 0 };
    // SAFETY: the kernel has filled in the control messages and their length.
    let mut header = unsafe { libc::CMSG_FIRSTHDR(&raw const message) };
    while !header.is_null() {
        // SAFETY: the macro gave a header inside the control messages, whose data the kernel has written for its
        // type; it may be unaligned.
        unsafe {
            let data = libc::CMSG_DATA(header);
            match ((*header).cmsg_level, (*header).cmsg_type) {
                (libc::IPPROTO_IP, libc::IP_TTL) | (libc::IPPROTO_IPV6, libc::IPV6_HOPLIMIT) => {
                    datagram.ttl = u8::try_from(data.cast::<c_int>().read_unaligned()).ok();
                }
                (libc::IPPROTO_IP, libc::IP_PKTINFO) => {
                    let info = data.cast::<libc::in_pktinfo>().read_unaligned();
                    datagram.interface = u32::try_from(info.ipi_ifindex).unwrap_or(0);
                }
                (libc::IPPROTO_IPV6, libc::IPV6_PKTINFO) => {
                    let info = data.cast::<libc::in6_pktinfo>().read_unaligned();
                    datagram.interface = info.ipi6_ifindex;
                }
                _ => {}
            }
            header = libc::CMSG_NXTHDR(&raw const message, header);
        }
    }
    Ok(datagram)
}

fn source(name: &libc::sockaddr_storage) -> Option<IpAddr> {
    let pointer = &raw const *name;
    match c_int::from(name.ss_family) {
        libc::AF_INET => {
            // SAFETY: the family says what it is; the storage has room and alignment for it.
            let name = unsafe { &*pointer.cast::<libc::sockaddr_in>() };
            Some(Ipv4Addr::from(u32::from_be(name.sin_addr.s_addr)).into())
        }
        libc::AF_INET6 => {
            // SAFETY: as above.
            let name = unsafe { &*pointer.cast::<libc::sockaddr_in6>() };
            Some(Ipv6Addr::from(name.sin6_addr.s6_addr).into())
        }
        _ => None,
    }
}

/// Room for control messages, aligned as they need.
struct Control([u64; CONTROL_WORDS]);

/// `SK_MEMINFO_VARS` and `SK_MEMINFO_DROPS` of linux/sock_diag.h.
const MEMINFO_WORDS: usize = 9;
const MEMINFO_DROPS: usize = 8;
/// Far more than a TTL and a packet's interface take.
const CONTROL_WORDS: usize = 16;
