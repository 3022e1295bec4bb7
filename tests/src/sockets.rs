//! TCP connections as the kernel shows them, and what can only be done to a socket itself.

use std::io;
use std::net::{IpAddr, Ipv4Addr};
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};

use crate::daemon::Process;

/// One line of /proc/net/tcp, of IPv4 alone.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Connection {
    /// The local port.
    pub local_port: u16,
    /// The remote port.
    pub remote_port: u16,
    /// The state, as the kernel counts them: [`ESTABLISHED`], [`SYN_SENT`].
    pub state: u8,
    /// How often the kernel has sent again what was not confirmed.
    pub retransmits: u8,
}

/// The kernel's TCP_ESTABLISHED.
pub const ESTABLISHED: u8 = 1;
/// The kernel's TCP_SYN_SENT.
pub const SYN_SENT: u8 = 2;

/// The IPv4 connections, but for listening sockets, that a `net/tcp` file lists.
#[must_use]
pub fn connections(text: &str) -> Vec<Connection> {
    let lines = text.lines().skip(1).filter_map(|line| {
        let words: Vec<&str> = line.split_whitespace().collect();
        let port = |word: &str| u16::from_str_radix(word.split_once(':')?.1, 16).ok();
        Some(Connection {
            local_port: port(words.get(1)?)?,
            remote_port: port(words.get(2)?)?,
            state: u8::from_str_radix(words.get(3)?, 16).ok()?,
            retransmits: u8::try_from(u32::from_str_radix(words.get(6)?, 16).ok()?).ok()?,
        })
    });
    lines.filter(|connection| connection.remote_port != 0).collect()
}

/// The established BGP connections of the calling thread's namespace.
///
/// # Panics
/// Without /proc.
#[must_use]
pub fn sessions() -> Vec<Connection> {
    let text = std::fs::read_to_string("/proc/thread-self/net/tcp").expect("/proc");
    let mut found = connections(&text);
    found.retain(|c| c.state == ESTABLISHED && (c.local_port == 179 || c.remote_port == 179));
    found
}

impl Process {
    /// Sets another TCP MD5 key on the process's connection with `peer`, as routers do that change
    /// keys on a live session. The daemons here end theirs when their configuration has another key.
    ///
    /// # Panics
    /// When the process has no such connection, or the kernel refuses.
    pub fn set_md5_key(&self, peer: Ipv4Addr, key: &str) {
        let socket = family(self.0.id()).into_iter().find_map(|pid| connection_with(pid, peer));
        let socket = socket.expect("a connection with the peer");
        set_md5_key(&socket, peer, key).expect("a key for the connection");
    }
}

/// A process and its children.
fn family(pid: u32) -> Vec<u32> {
    let path = format!("/proc/{pid}/task/{pid}/children");
    let children = std::fs::read_to_string(path).unwrap_or_default();
    std::iter::once(pid).chain(children.split_whitespace().flat_map(str::parse)).collect()
}

fn connection_with(pid: u32, peer: Ipv4Addr) -> Option<OwnedFd> {
    // SAFETY: the call takes no memory and returns a descriptor or -1.
    let pidfd = owned(unsafe { libc::syscall(libc::SYS_pidfd_open, pid, 0) }).ok()?;
    std::fs::read_dir(format!("/proc/{pid}/fd")).ok()?.find_map(|entry| {
        let number: i32 = entry.ok()?.file_name().to_str()?.parse().ok()?;
        let pidfd = pidfd.as_raw_fd();
        // SAFETY: as above.
        let copy = unsafe { libc::syscall(libc::SYS_pidfd_getfd, pidfd, number, 0) };
        let socket = std::net::TcpStream::from(owned(copy).ok()?);
        let remote = socket.peer_addr().ok()?;
        (remote.ip() == IpAddr::V4(peer)).then(|| OwnedFd::from(socket))
    })
}

fn owned(descriptor: libc::c_long) -> io::Result<OwnedFd> {
    match i32::try_from(descriptor) {
        // SAFETY: the kernel has just opened it for us.
        Ok(descriptor) if descriptor >= 0 => Ok(unsafe { OwnedFd::from_raw_fd(descriptor) }),
        _ => Err(io::Error::last_os_error()),
    }
}

/// `struct tcp_md5sig` of linux/tcp.h, octet by octet: the address in a sockaddr_storage, flags,
/// length of a prefix, length of the key, number of an interface, key.
fn set_md5_key(socket: &OwnedFd, peer: Ipv4Addr, key: &str) -> io::Result<()> {
    let mut option = Vec::with_capacity(MD5_OPTION_OCTETS);
    option.extend(libc::AF_INET.to_ne_bytes().iter().take(2));
    option.extend([0; 2]); // A port, which does not matter.
    option.extend(peer.octets());
    option.resize(SOCKADDR_STORAGE_OCTETS + 2, 0);
    let key_len = u16::try_from(key.len()).expect("a key of at most 80 octets");
    option.extend(key_len.to_ne_bytes());
    option.extend([0; 4]);
    option.extend(key.bytes());
    assert!(option.len() <= MD5_OPTION_OCTETS, "a key of at most 80 octets");
    option.resize(MD5_OPTION_OCTETS, 0);
    let length = libc::socklen_t::try_from(option.len()).expect("its length");
    // SAFETY: the kernel reads `length` octets of the vector.
    let result = unsafe {
        let value = option.as_ptr().cast();
        libc::setsockopt(socket.as_raw_fd(), libc::IPPROTO_TCP, libc::TCP_MD5SIG, value, length)
    };
    match result {
        0 => Ok(()),
        _ => Err(io::Error::last_os_error()),
    }
}

const SOCKADDR_STORAGE_OCTETS: usize = 128;
const MD5_OPTION_OCTETS: usize = SOCKADDR_STORAGE_OCTETS + 8 + 80;
