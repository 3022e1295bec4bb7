//! Packets with whatever source, sent by raw sockets.

use std::net::{IpAddr, Ipv6Addr, SocketAddr};
use std::os::fd::{FromRawFd, OwnedFd};
use std::time::Duration;

use cairn_kernel::NetNs;

/// A UDP packet with its IP header.
pub fn udp(source: &str, destination: &str, port: u16, payload: &[u8]) -> Vec<u8> {
    let (source, destination) = (source.parse().unwrap(), destination.parse().unwrap());
    let mut segment = Vec::new();
    segment.extend(SOURCE_PORT.to_be_bytes());
    segment.extend(port.to_be_bytes());
    segment.extend((8 + payload.len() as u16).to_be_bytes());
    segment.extend([0, 0]);
    segment.extend(payload);
    if let (IpAddr::V6(source), IpAddr::V6(destination)) = (source, destination) {
        let sum = checksum_v6(source, destination, &segment);
        segment[6..8].copy_from_slice(&sum.to_be_bytes());
    }
    ip(source, destination, PROTOCOL_UDP, &segment)
}

/// An IP packet.
pub fn ip(source: IpAddr, destination: IpAddr, protocol: u8, payload: &[u8]) -> Vec<u8> {
    let length = payload.len() as u16;
    let mut packet = Vec::new();
    match (source, destination) {
        (IpAddr::V4(source), IpAddr::V4(destination)) => {
            packet.extend([0x45, 0]);
            packet.extend((20 + length).to_be_bytes());
            packet.extend([0, 1, 0, 0, 64, protocol, 0, 0]);
            packet.extend(source.octets());
            packet.extend(destination.octets());
            let sum = fold(sum(&packet));
            packet[10..12].copy_from_slice(&sum.to_be_bytes());
        }
        (IpAddr::V6(source), IpAddr::V6(destination)) => {
            packet.extend([0x60, 0, 0, 0]);
            packet.extend(length.to_be_bytes());
            packet.extend([protocol, 64]);
            packet.extend(source.octets());
            packet.extend(destination.octets());
        }
        _ => panic!("one family"),
    }
    packet.extend(payload);
    packet
}

/// What VXLAN carries in UDP: a frame to `mac` with an IP packet.
pub fn vxlan(vni: u32, mac: [u8; 6], packet: &[u8]) -> Vec<u8> {
    let mut bytes = vec![8, 0, 0, 0];
    bytes.extend((vni << 8).to_be_bytes());
    bytes.extend(mac);
    bytes.extend([2, 0, 0, 0, 0, 9]);
    let ethertype: u16 = if packet[0] >> 4 == 4 { 0x0800 } else { 0x86dd };
    bytes.extend(ethertype.to_be_bytes());
    bytes.extend(packet);
    bytes
}

/// Sends a packet as it stands from a namespace, by that namespace's routes.
pub fn send(netns: &NetNs, packet: &[u8]) {
    let destination: IpAddr = if packet[0] >> 4 == 4 {
        IpAddr::from(<[u8; 4]>::try_from(&packet[16..20]).unwrap())
    } else {
        IpAddr::from(<[u8; 16]>::try_from(&packet[24..40]).unwrap())
    };
    netns
        .run(|| {
            let family = if destination.is_ipv4() { libc::AF_INET } else { libc::AF_INET6 };
            let socket = raw_socket(family, libc::IPPROTO_RAW);
            let to = SocketAddr::new(destination, 0);
            rustix::net::sendto(&socket, packet, rustix::net::SendFlags::empty(), &to).unwrap();
        })
        .unwrap();
}

/// A socket that receives every IPv4 packet of `protocol` to the namespace.
pub fn raw_receiver(netns: &NetNs, protocol: i32) -> std::net::UdpSocket {
    let socket = netns.run(|| raw_socket(libc::AF_INET, protocol)).unwrap();
    // Only its `recv` is used, which any socket has.
    let socket = std::net::UdpSocket::from(socket);
    socket.set_read_timeout(Some(Duration::from_secs(5))).unwrap();
    socket
}

fn raw_socket(family: i32, protocol: i32) -> OwnedFd {
    // SAFETY: no pointers; a descriptor that is returned belongs to the caller.
    let fd = unsafe { libc::socket(family, libc::SOCK_RAW | libc::SOCK_CLOEXEC, protocol) };
    assert!(fd >= 0, "a raw socket: {}", std::io::Error::last_os_error());
    // SAFETY: the descriptor is new and nobody else's.
    unsafe { OwnedFd::from_raw_fd(fd) }
}

fn checksum_v6(source: Ipv6Addr, destination: Ipv6Addr, segment: &[u8]) -> u16 {
    let pseudo = sum(&source.octets()) + sum(&destination.octets());
    fold(pseudo + sum(segment) + segment.len() as u32 + u32::from(PROTOCOL_UDP))
}

fn sum(bytes: &[u8]) -> u32 {
    let word = |pair: &[u8]| u32::from(pair[0]) << 8 | pair.get(1).map_or(0, |low| u32::from(*low));
    bytes.chunks(2).map(word).sum()
}

fn fold(mut sum: u32) -> u16 {
    while sum > 0xffff {
        sum = (sum & 0xffff) + (sum >> 16);
    }
    !(sum as u16)
}

const SOURCE_PORT: u16 = 40_000;
const PROTOCOL_UDP: u8 = 17;
