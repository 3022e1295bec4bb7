//! Sockets with the options that BGP asks for.

use std::io;
use std::mem::{MaybeUninit, size_of};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::os::fd::{AsRawFd, RawFd};

use socket2::{Domain, Protocol, SockAddr, Socket, Type};
use tokio::net::{TcpListener, TcpSocket, TcpStream};

use crate::config::PeerConfig;
use crate::session::LocalAddresses;
use crate::wire::SessionSort;

/// Connects to a peer, from its source address and with its key and TTL.
pub(super) async fn connect(peer: PeerConfig, sort: SessionSort) -> io::Result<TcpStream> {
    let remote = SocketAddr::new(peer.address, peer.port);
    let socket = match remote {
        SocketAddr::V4(_) => TcpSocket::new_v4()?,
        SocketAddr::V6(_) => TcpSocket::new_v6()?,
    };
    set_ttl(socket.as_raw_fd(), &peer, sort)?;
    if let Some(password) = &peer.password {
        set_md5_key(socket.as_raw_fd(), peer.address, Some(&password.0))?;
    }
    if let Some(source) = peer.source_address {
        socket.bind(SocketAddr::new(source, 0))?;
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

/// Sets or removes the TCP MD5 key for an address (RFC 2385; tcp(7), `TCP_MD5SIG`).
pub(super) fn set_md5_key(fd: RawFd, address: IpAddr, key: Option<&str>) -> io::Result<()> {
    let key = key.unwrap_or_default().as_bytes();
    let mut signature = Md5Signature {
        // SAFETY: all zeroes is a valid sockaddr_storage.
        address: unsafe { MaybeUninit::zeroed().assume_init() },
        flags: 0,
        prefix_len: 0,
        key_len: 0,
        interface: 0,
        key: [0; MD5_KEY_OCTETS_MAX],
    };
    let Some(field) = signature.key.get_mut(..key.len()) else {
        let text = format!("the password is longer than {MD5_KEY_OCTETS_MAX} octets");
        return Err(io::Error::new(io::ErrorKind::InvalidInput, text));
    };
    field.copy_from_slice(key);
    signature.key_len = key.len() as u16;
    let address = SockAddr::from(SocketAddr::new(address, 0));
    // SAFETY: a SockAddr is at most as long as the sockaddr_storage that it is copied into.
    unsafe {
        std::ptr::copy_nonoverlapping(
            address.as_ptr().cast::<u8>(),
            (&raw mut signature.address).cast::<u8>(),
            (address.len() as usize).min(size_of::<libc::sockaddr_storage>()),
        );
    }
    match set_option(fd, libc::IPPROTO_TCP, libc::TCP_MD5SIG, &signature) {
        // There was no key to remove.
        Err(error) if key.is_empty() && error.raw_os_error() == Some(libc::ENOENT) => Ok(()),
        result => result,
    }
}

/// Whether octets wait to be read.
pub(super) fn has_unread(stream: &TcpStream) -> bool {
    let mut octets: libc::c_int = 0;
    // SAFETY: FIONREAD writes one int.
    let result = unsafe { libc::ioctl(stream.as_raw_fd(), libc::FIONREAD, &raw mut octets) };
    result == 0 && octets > 0
}

/// The own addresses that may stand as next hop on a session with this local address: the configured
/// one, itself, and the first fitting one of the other family on the same interface.
pub(super) fn local_addresses(local: IpAddr, configured: Option<Ipv6Addr>) -> LocalAddresses {
    let mut addresses = LocalAddresses { ipv4: None, ipv6: configured };
    match local {
        IpAddr::V4(own) => addresses.ipv4 = Some(own),
        IpAddr::V6(own) if !own.is_unicast_link_local() => {
            addresses.ipv6 = configured.or(Some(own));
        }
        IpAddr::V6(_) => {}
    }
    let all = interface_addresses();
    let Some(interface) = all.iter().find(|(_, a)| *a == local).map(|(name, _)| name.clone())
    else {
        return addresses;
    };
    for (_, address) in all.into_iter().filter(|(name, _)| *name == interface) {
        match address {
            IpAddr::V4(own) => addresses.ipv4 = addresses.ipv4.or(Some(own)),
            IpAddr::V6(own) if own.is_unicast_link_local() => {}
            IpAddr::V6(own) => addresses.ipv6 = addresses.ipv6.or(Some(own)),
        }
    }
    addresses
}

/// The addresses of all interfaces by interface name (getifaddrs(3)).
fn interface_addresses() -> Vec<(Vec<u8>, IpAddr)> {
    let mut list: *mut libc::ifaddrs = std::ptr::null_mut();
    // SAFETY: on success `list` is a list that freeifaddrs takes back below.
    if unsafe { libc::getifaddrs(&raw mut list) } != 0 {
        return Vec::new();
    }
    let mut addresses = Vec::new();
    let mut next = list;
    while !next.is_null() {
        // SAFETY: `next` is an element of the list, which lives until freeifaddrs.
        let entry = unsafe { &*next };
        next = entry.ifa_next;
        if entry.ifa_addr.is_null() || entry.ifa_name.is_null() {
            continue;
        }
        // SAFETY: ifa_name is a string that ends in 0; ifa_addr is of the sort its family says.
        let (name, address) = unsafe {
            let name = std::ffi::CStr::from_ptr(entry.ifa_name).to_bytes().to_vec();
            let address = match i32::from((*entry.ifa_addr).sa_family) {
                libc::AF_INET => {
                    let address = &*entry.ifa_addr.cast::<libc::sockaddr_in>();
                    IpAddr::V4(Ipv4Addr::from_bits(u32::from_be(address.sin_addr.s_addr)))
                }
                libc::AF_INET6 => {
                    let address = &*entry.ifa_addr.cast::<libc::sockaddr_in6>();
                    IpAddr::V6(Ipv6Addr::from(address.sin6_addr.s6_addr))
                }
                _ => continue,
            };
            (name, address)
        };
        addresses.push((name, address));
    }
    // SAFETY: the list comes from getifaddrs and is not used any more.
    unsafe { libc::freeifaddrs(list) };
    addresses
}

fn set_option<T>(fd: RawFd, level: i32, option: i32, value: &T) -> io::Result<()> {
    let length = size_of::<T>() as libc::socklen_t;
    // SAFETY: the kernel reads `length` octets from `value`.
    let result =
        unsafe { libc::setsockopt(fd, level, option, std::ptr::from_ref(value).cast(), length) };
    if result == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
}

/// `struct tcp_md5sig` of linux/tcp.h.
#[repr(C)]
struct Md5Signature {
    address: libc::sockaddr_storage,
    flags: u8,
    prefix_len: u8,
    key_len: u16,
    interface: libc::c_int,
    key: [u8; MD5_KEY_OCTETS_MAX],
}

/// `TCP_MD5SIG_MAXKEYLEN` of linux/tcp.h.
const MD5_KEY_OCTETS_MAX: usize = 80;
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
