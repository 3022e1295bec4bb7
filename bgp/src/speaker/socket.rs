//! Sockets with the options that BGP asks for.

use std::io;
use std::mem::size_of;
use std::net::{IpAddr, Ipv6Addr, SocketAddr};
use std::os::fd::{AsRawFd, RawFd};

use socket2::{Domain, Protocol, Socket, Type};
use tokio::net::{TcpListener, TcpSocket, TcpStream};

use crate::config::PeerConfig;
use crate::wire::SessionSort;

use super::interface::in_scope;
use super::md5;

/// Connects to a peer, from its source address and with its key and TTL.
pub(super) async fn connect(peer: PeerConfig, sort: SessionSort) -> io::Result<TcpStream> {
    let remote = in_scope(peer.address, peer.port, peer.scope_id);
    let socket = match remote {
        SocketAddr::V4(_) => TcpSocket::new_v4()?,
        SocketAddr::V6(_) => TcpSocket::new_v6()?,
    };
    set_ttl(socket.as_raw_fd(), &peer, sort)?;
    if let Some(password) = &peer.password {
        md5::set_key(socket.as_raw_fd(), peer.address.into(), Some(&password.0))?;
    }
    if let Some(source) = peer.source_address {
        socket.bind(in_scope(source, 0, peer.scope_id))?;
    }
    socket.connect(remote).await
}

/// Opens a listening socket.
pub(super) fn listen(address: SocketAddr) -> io::Result<TcpListener> {
    let socket = Socket::new(Domain::for_address(address), Type::STREAM, Some(Protocol::TCP))?;
    // A speaker that restarts must not wait for its former connections to time out.
    socket.set_reuse_address(true)?;
    if address.is_ipv6() {
        // IPv4 peers have a listener of their own.
        socket.set_only_v6(true)?;
    }
    // The SYN-ACK is the listener's: with less, a peer that demands 255 (RFC 5082) never sees one.
    let fd = socket.as_raw_fd();
    match address {
        SocketAddr::V4(_) => set_option(fd, libc::IPPROTO_IP, libc::IP_TTL, &TTL_MAX)?,
        SocketAddr::V6(_) => {
            set_option(fd, libc::IPPROTO_IPV6, libc::IPV6_UNICAST_HOPS, &TTL_MAX)?;
        }
    }
    // For `came_near_enough`; without it those peers alone are refused.
    let _ = set_option(fd, libc::IPPROTO_TCP, TCP_SAVE_SYN, &1_i32);
    socket.set_nonblocking(true)?;
    socket.bind(&address.into())?;
    socket.listen(BACKLOG)?;
    TcpListener::from_std(socket.into())
}

/// What is wrong with a listener's address, and what to do.
pub(super) fn explain_listen_error(address: SocketAddr, error: &io::Error) -> String {
    let port = address.port();
    match error.kind() {
        io::ErrorKind::AddrInUse => format!(
            "port {port} of {} is taken by another process{}: stop it or set another listenPort; \
             outgoing sessions go on",
            address.ip(),
            holder_of(address).map(|holder| format!(" ({holder})")).unwrap_or_default()
        ),
        io::ErrorKind::PermissionDenied => format!(
            "no permission to listen on port {port}: run as root, grant CAP_NET_BIND_SERVICE, or \
             set a listenPort above 1023; outgoing sessions go on"
        ),
        io::ErrorKind::AddrNotAvailable => format!(
            "{} is no address of this machine: correct listenAddresses; outgoing sessions go on",
            address.ip()
        ),
        _ => format!("cannot listen on {address}: {error}; outgoing sessions go on"),
    }
}

/// Which process listens on a port: name and process number, from /proc.
fn holder_of(address: SocketAddr) -> Option<String> {
    let inodes = listening_inodes(address);
    for process in std::fs::read_dir("/proc").ok()?.flatten().take(PROCESSES_MAX) {
        let Ok(pid) = process.file_name().to_string_lossy().parse::<u32>() else { continue };
        let Ok(descriptors) = std::fs::read_dir(process.path().join("fd")) else { continue };
        for descriptor in descriptors.flatten() {
            let Ok(target) = std::fs::read_link(descriptor.path()) else { continue };
            let target = target.to_string_lossy();
            let inode = target.strip_prefix("socket:[").and_then(|rest| rest.strip_suffix(']'));
            if inode.is_some_and(|inode| inodes.iter().any(|i| i == inode)) {
                let name = std::fs::read_to_string(process.path().join("comm")).ok()?;
                return Some(format!("{}, process {pid}", name.trim()));
            }
        }
    }
    None
}

/// The sockets that listen where nobody else then can: on the same port of this address, or of all.
fn listening_inodes(address: SocketAddr) -> Vec<String> {
    let read = |table: &str| {
        std::fs::read_to_string(format!("/proc/thread-self/net/{table}")).unwrap_or_default()
    };
    match address {
        SocketAddr::V4(_) => {
            let inodes = inodes_of(&read("tcp"), address);
            // One of both families holds the port of every IPv4 address too.
            let both = || inodes_of(&read("tcp6"), (Ipv6Addr::UNSPECIFIED, address.port()).into());
            if inodes.is_empty() { both() } else { inodes }
        }
        SocketAddr::V6(_) => inodes_of(&read("tcp6"), address),
    }
}

/// From the text of `/proc/net/tcp` or `tcp6`.
fn inodes_of(table: &str, address: SocketAddr) -> Vec<String> {
    let octets = match address.ip() {
        IpAddr::V4(ip) => ip.octets().to_vec(),
        IpAddr::V6(ip) => ip.octets().to_vec(),
    };
    // The kernel prints words of 32 bits in its own order of octets.
    let wanted: String = octets
        .chunks_exact(4)
        .filter_map(|word| word.try_into().ok())
        .map(|word| format!("{:08X}", u32::from_ne_bytes(word)))
        .collect();
    let listens_there = |line: &str| {
        let fields: Vec<&str> = line.split_whitespace().collect();
        let (local, state) = (fields.get(1)?, fields.get(3)?);
        let (host, port) = local.rsplit_once(':')?;
        let all = host.bytes().all(|digit| digit == b'0');
        let there = all || host == wanted || address.ip().is_unspecified();
        let same_port = u16::from_str_radix(port, 16).ok()? == address.port();
        let found = *state == LISTENING && there && same_port;
        if found { fields.get(9).map(|inode| (*inode).to_owned()) } else { None }
    };
    table.lines().skip(1).filter_map(listens_there).collect()
}

/// Sets TTL and, with GTSM, the least TTL accepted (RFC 5082).
pub(super) fn set_ttl(fd: RawFd, peer: &PeerConfig, sort: SessionSort) -> io::Result<()> {
    let hops = i32::from(peer.multihop.max(1));
    let ttl = match (peer.ttl_security, sort) {
        (true, _) | (false, SessionSort::Ibgp) => TTL_MAX,
        (false, SessionSort::Ebgp) => hops,
    };
    let least = if peer.ttl_security { TTL_MAX + 1 - hops } else { 0 };
    match peer.address {
        IpAddr::V4(_) => {
            set_option(fd, libc::IPPROTO_IP, libc::IP_TTL, &ttl)?;
            set_option(fd, libc::IPPROTO_IP, IP_MINTTL, &least)
        }
        IpAddr::V6(_) => {
            set_option(fd, libc::IPPROTO_IPV6, libc::IPV6_UNICAST_HOPS, &ttl)?;
            set_option(fd, libc::IPPROTO_IPV6, IPV6_MINHOPCOUNT, &least)
        }
    }
}

/// Whether an accepted connection began no farther away than the peer may be (RFC 5082). What came in
/// before [`set_ttl`] has not been looked at by the kernel; its SYN tells the distance of all of it.
pub(super) fn came_near_enough(stream: &TcpStream, peer: &PeerConfig) -> bool {
    if !peer.ttl_security {
        return true;
    }
    let mut headers = [0_u8; SYN_HEADER_OCTETS_MAX];
    let mut length = headers.len() as libc::socklen_t;
    // SAFETY: the kernel writes at most `length` octets to `headers`.
    let result = unsafe {
        libc::getsockopt(
            stream.as_raw_fd(),
            libc::IPPROTO_TCP,
            TCP_SAVED_SYN,
            headers.as_mut_ptr().cast(),
            &raw mut length,
        )
    };
    // Time to live of an IPv4 header, hop limit of an IPv6 one.
    let ttl = match peer.address {
        IpAddr::V4(_) => headers.get(8),
        IpAddr::V6(_) => headers.get(7),
    };
    let least = TTL_MAX + 1 - i32::from(peer.multihop.max(1));
    result == 0 && length > 8 && ttl.is_some_and(|ttl| i32::from(*ttl) >= least)
}

/// Whether octets wait to be read.
pub(super) fn has_unread(stream: &TcpStream) -> bool {
    let mut octets: libc::c_int = 0;
    // SAFETY: FIONREAD writes one int.
    let result = unsafe { libc::ioctl(stream.as_raw_fd(), libc::FIONREAD, &raw mut octets) };
    result == 0 && octets > 0
}

/// How many octets the peer has acknowledged so far, and how many wait for it in the kernel.
pub(super) fn sent(stream: &TcpStream) -> Option<(u64, usize)> {
    let mut info = [0_u8; TCP_INFO_OCTETS];
    let mut length = info.len() as libc::socklen_t;
    let mut waiting: libc::c_int = 0;
    // SAFETY: the kernel writes at most `length` octets to `info`, and TIOCOUTQ writes one int.
    let results = unsafe {
        let info = info.as_mut_ptr().cast();
        let (level, option) = (libc::IPPROTO_TCP, libc::TCP_INFO);
        [
            libc::getsockopt(stream.as_raw_fd(), level, option, info, &raw mut length),
            libc::ioctl(stream.as_raw_fd(), libc::TIOCOUTQ, &raw mut waiting),
        ]
    };
    let acknowledged = info.get(BYTES_ACKED..)?.first_chunk::<8>()?;
    let known = results == [0, 0] && length as usize >= BYTES_ACKED + 8;
    known.then_some((u64::from_ne_bytes(*acknowledged), usize::try_from(waiting).unwrap_or(0)))
}

pub(super) fn set_option<T>(fd: RawFd, level: i32, option: i32, value: &T) -> io::Result<()> {
    let length = size_of::<T>() as libc::socklen_t;
    // SAFETY: the kernel reads `length` octets from `value`.
    let result =
        unsafe { libc::setsockopt(fd, level, option, std::ptr::from_ref(value).cast(), length) };
    if result == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
}

/// Octets of `struct tcp_info` (linux/tcp.h) up to what is read of it.
const TCP_INFO_OCTETS: usize = 128;
/// Where `tcpi_bytes_acked` stands in it.
const BYTES_ACKED: usize = 120;
/// The largest TTL and hop limit.
const TTL_MAX: i32 = 255;
/// linux/tcp.h: the listener keeps the headers of each SYN.
const TCP_SAVE_SYN: i32 = 27;
/// linux/tcp.h: the headers of the SYN, once.
const TCP_SAVED_SYN: i32 = 28;
/// More than an IP header with all options and a TCP header.
const SYN_HEADER_OCTETS_MAX: usize = 512;
/// linux/in.h.
const IP_MINTTL: i32 = 21;
/// linux/in6.h.
const IPV6_MINHOPCOUNT: i32 = 73;
/// Peers that may connect in one moment: a reflector's clients all do when it comes back.
const BACKLOG: i32 = 1024;
/// TCP_LISTEN in `/proc/net/tcp`.
const LISTENING: &str = "0A";
/// Processes looked at for the one that has our port.
const PROCESSES_MAX: usize = 10_000;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_listener_in_the_way_is_the_one_at_the_address() {
        let line = |local: &str, state: &str, inode: u32| {
            format!(" 0: {local} 00000000:0000 {state} 0:0 00:0 0 0 0 {inode} 1 0\n")
        };
        let word = |octets| format!("{:08X}", u32::from_ne_bytes(octets));
        let (one, two) = (word([192, 0, 2, 1]), word([192, 0, 2, 2]));
        let table = format!(
            "head\n{}{}{}{}garbage\n",
            line(&format!("{one}:00B3"), "0A", 11),
            line(&format!("{two}:00B3"), "0A", 12),
            line("00000000:0050", "0A", 13),
            line(&format!("{one}:00B3"), "01", 14),
        );
        let found = |address: &str| inodes_of(&table, address.parse().expect("an address"));
        assert_eq!(found("192.0.2.1:179"), ["11"]);
        assert_eq!(found("192.0.2.2:179"), ["12"]);
        assert_eq!(found("192.0.2.3:179"), Vec::<String>::new());
        assert_eq!(found("0.0.0.0:179"), ["11", "12"]);
        assert_eq!(found("192.0.2.3:80"), ["13"], "a listener at all addresses");
    }
}
