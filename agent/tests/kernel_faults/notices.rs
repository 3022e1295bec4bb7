//! What the kernel tells of changes, whoever makes them.

use std::io;
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};

/// Subscriptions to the changes of routes, next hops, neighbours, links, addresses, rules and nftables
/// in one namespace.
pub struct Notices {
    sockets: [(&'static str, OwnedFd); 2],
}

/// One change.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Notice {
    /// `rtnetlink` or `nftables`.
    pub by: &'static str,
    /// The type of the message.
    pub kind: u16,
    /// The route's protocol number, if it is about one.
    pub protocol: Option<u8>,
    pub flags: u16,
}

impl Notices {
    /// Subscribes in the namespace of the calling thread.
    pub fn open() -> Notices {
        Notices {
            sockets: [
                ("rtnetlink", subscribe(libc::NETLINK_ROUTE, ROUTE_GROUPS)),
                ("nftables", subscribe(libc::NETLINK_NETFILTER, NFTABLES_GROUP)),
            ],
        }
    }

    /// What came since the last call.
    pub fn take(&self) -> Vec<Notice> {
        let mut taken = Vec::new();
        let mut buffer = vec![0_u8; 1 << 17];
        for (by, socket) in &self.sockets {
            loop {
                // SAFETY: the descriptor is open and the buffer as long as is said.
                let len = unsafe {
                    libc::recv(
                        socket.as_raw_fd(),
                        buffer.as_mut_ptr().cast(),
                        buffer.len(),
                        libc::MSG_DONTWAIT,
                    )
                };
                if len < 0 {
                    let error = io::Error::last_os_error();
                    assert_eq!(error.kind(), io::ErrorKind::WouldBlock, "{by}: {error}");
                    break;
                }
                let mut rest = &buffer[..len as usize];
                while let Some(header) = rest.first_chunk::<16>() {
                    let len = u32::from_ne_bytes([header[0], header[1], header[2], header[3]]);
                    let len = len as usize;
                    let kind = u16::from_ne_bytes([header[4], header[5]]);
                    let is_route = *by == "rtnetlink"
                        && matches!(kind, libc::RTM_NEWROUTE | libc::RTM_DELROUTE);
                    taken.push(Notice {
                        by,
                        kind,
                        protocol: is_route.then(|| rest[16 + 5]),
                        flags: u16::from_ne_bytes([header[6], header[7]]),
                    });
                    rest = rest.get(len.next_multiple_of(4)..).unwrap_or_default();
                }
            }
        }
        taken
    }
}

fn subscribe(family: libc::c_int, groups: u32) -> OwnedFd {
    // SAFETY: plain system calls; the address lives until bind has returned, and the descriptor is owned
    // from here on.
    unsafe {
        let fd = libc::socket(libc::AF_NETLINK, libc::SOCK_RAW | libc::SOCK_CLOEXEC, family);
        assert!(fd >= 0, "a netlink socket: {}", io::Error::last_os_error());
        let fd = OwnedFd::from_raw_fd(fd);
        force_receive_buffer(fd.as_raw_fd(), 256 << 20);
        let mut address: libc::sockaddr_nl = std::mem::zeroed();
        address.nl_family = libc::AF_NETLINK as u16;
        address.nl_groups = groups;
        let size = size_of::<libc::sockaddr_nl>() as libc::socklen_t;
        let bound = libc::bind(fd.as_raw_fd(), (&raw const address).cast(), size);
        assert_eq!(bound, 0, "subscribe: {}", io::Error::last_os_error());
        fd
    }
}

/// Sets the receive buffer of an open socket, above the system's limit too.
pub fn force_receive_buffer(fd: libc::c_int, bytes: libc::c_int) {
    // SAFETY: the value is an int, as the option wants.
    let set = unsafe {
        libc::setsockopt(
            fd,
            libc::SOL_SOCKET,
            libc::SO_RCVBUFFORCE,
            (&raw const bytes).cast(),
            size_of::<libc::c_int>() as libc::socklen_t,
        )
    };
    assert_eq!(set, 0, "a receive buffer: {}", io::Error::last_os_error());
}

/// RTNLGRP_LINK, _NEIGH, _IPV4_IFADDR, _IPV4_ROUTE, _IPV4_RULE, _IPV6_IFADDR, _IPV6_ROUTE, _IPV6_RULE
/// and _NEXTHOP.
const ROUTE_GROUPS: u32 =
    1 | 1 << 2 | 1 << 4 | 1 << 6 | 1 << 7 | 1 << 8 | 1 << 10 | 1 << 18 | 1 << 31;
/// NFNLGRP_NFTABLES.
const NFTABLES_GROUP: u32 = 1 << 6;
