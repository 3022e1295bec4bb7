//! Hears of routes that come into a kernel, and when.

use std::net::Ipv4Addr;
use std::os::fd::OwnedFd;
use std::sync::mpsc;
use std::time::{Duration, Instant};

use cairn_kernel::NetNs;
use rustix::net::netlink::SocketAddrNetlink;
use rustix::net::{AddressFamily, RecvFlags, SocketFlags, SocketType, bind, recv, sockopt};

use super::number_of;
use crate::Result;

/// A thread that reads the notifications of a namespace from its beginning on.
pub struct Listener {
    heard: mpsc::Receiver<std::result::Result<(u32, Instant), String>>,
}

impl Listener {
    /// Listens in `netns`.
    ///
    /// # Errors
    /// The kernel gives no socket.
    pub fn open(netns: &NetNs) -> Result<Listener> {
        let socket = netns.run(subscribe)??;
        let (tell, heard) = mpsc::channel();
        std::thread::spawn(move || listen(&socket, &tell));
        Ok(Listener { heard })
    }

    /// When each of so many routes came first.
    ///
    /// # Errors
    /// One did not come for too long, or notifications were lost.
    pub fn collect(&mut self, routes: u32, patience: Duration) -> Result<Vec<Instant>> {
        let mut seen = vec![None; routes as usize];
        let mut left = routes;
        while left > 0 {
            let (number, at) = match self.heard.recv_timeout(patience) {
                Ok(heard) => heard?,
                Err(_) => return Err(format!("{left} of {routes} routes did not come").into()),
            };
            if let Some(first @ None) = seen.get_mut(number as usize) {
                *first = Some(at);
                left -= 1;
            }
        }
        Ok(seen.into_iter().flatten().collect())
    }
}

fn subscribe() -> std::io::Result<OwnedFd> {
    let kind = SocketType::RAW;
    let flags = SocketFlags::CLOEXEC;
    let socket = rustix::net::socket_with(AddressFamily::NETLINK, kind, flags, None)?;
    sockopt::set_socket_recv_buffer_size_force(&socket, BUFFER_OCTETS)?;
    bind(&socket, &SocketAddrNetlink::new(0, RTMGRP_IPV4_ROUTE))?;
    Ok(socket)
}

/// Ends when nobody wants to hear any more.
fn listen(socket: &OwnedFd, tell: &mpsc::Sender<std::result::Result<(u32, Instant), String>>) {
    let _ = sockopt::set_socket_timeout(socket, sockopt::Timeout::Recv, Some(LOOK));
    let mut buffer = vec![0; 1 << 16];
    loop {
        let octets = match recv(socket, &mut buffer[..], RecvFlags::empty()) {
            Ok((octets, _)) => octets,
            Err(rustix::io::Errno::AGAIN | rustix::io::Errno::INTR) => {
                // A message that nobody takes is the only way to learn of that.
                if tell.send(Ok((u32::MAX, Instant::now()))).is_err() {
                    return;
                }
                continue;
            }
            Err(error) => {
                let _ = tell.send(Err(format!("notifications were lost: {error}")));
                return;
            }
        };
        let at = Instant::now();
        for network in added(&buffer[..octets]) {
            if let Some(number) = number_of(network)
                && tell.send(Ok((number, at))).is_err()
            {
                return;
            }
        }
    }
}

/// The networks of the new routes in a datagram.
fn added(mut rest: &[u8]) -> Vec<Ipv4Addr> {
    let mut found = Vec::new();
    while let Some(&[a, b, c, d, kind, kind_high, ..]) = rest.get(..16) {
        let length = u32::from_ne_bytes([a, b, c, d]) as usize;
        let Some(message) = rest.get(16..length) else { break };
        if u16::from_ne_bytes([kind, kind_high]) == RTM_NEWROUTE {
            found.extend(message.get(RTMSG_OCTETS..).and_then(destination));
        }
        rest = rest.get(length.next_multiple_of(4)..).unwrap_or_default();
    }
    found
}

fn destination(mut attributes: &[u8]) -> Option<Ipv4Addr> {
    while let Some(&[low, high, kind, kind_high]) = attributes.get(..4) {
        let length = usize::from(u16::from_ne_bytes([low, high]));
        if u16::from_ne_bytes([kind, kind_high]) == RTA_DST {
            return Some(Ipv4Addr::from(*attributes.get(4..8)?.first_chunk::<4>()?));
        }
        attributes = attributes.get(length.max(4).next_multiple_of(4)..)?;
    }
    None
}

const RTMGRP_IPV4_ROUTE: u32 = 0x40;
const RTM_NEWROUTE: u16 = 24;
const RTA_DST: u16 = 1;
/// `struct rtmsg`.
const RTMSG_OCTETS: usize = 12;
/// For all notifications of a run.
const BUFFER_OCTETS: usize = 256 << 20;
const LOOK: Duration = Duration::from_secs(1);
