//! A peer that says what it likes, octet by octet.

use std::io::{Read, Write};
use std::net::{Ipv4Addr, SocketAddrV4, TcpStream};
use std::os::fd::OwnedFd;
use std::time::Duration;

use crate::site::{Site, until};

pub const OPEN: u8 = 1;
pub const UPDATE: u8 = 2;
pub const NOTIFICATION: u8 = 3;
pub const KEEPALIVE: u8 = 4;

pub struct RawPeer {
    stream: TcpStream,
}

impl RawPeer {
    /// Connects `from` to the speaker at `to` and brings the session up, without capabilities: AS
    /// numbers of two octets, IPv4 only.
    pub fn establish(site: &Site, from: Ipv4Addr, asn: u16, to: Ipv4Addr) -> RawPeer {
        let stream = until("a connection to the speaker", || connect(site, from, to));
        stream.set_read_timeout(Some(Duration::from_secs(10))).expect("a timeout");
        let mut peer = RawPeer { stream };
        let mut open = vec![4];
        open.extend(asn.to_be_bytes());
        open.extend(90u16.to_be_bytes());
        open.extend(from.octets());
        open.push(0);
        peer.send(OPEN, &open);
        let (kind, body) = peer.receive();
        assert_eq!(kind, OPEN, "{body:?}");
        peer.send(KEEPALIVE, &[]);
        let (kind, body) = peer.receive();
        assert_eq!(kind, KEEPALIVE, "{body:?}");
        peer
    }

    pub fn send(&mut self, kind: u8, body: &[u8]) {
        self.send_octets(&message([0xff; 16], kind, body));
    }

    pub fn send_octets(&mut self, octets: &[u8]) {
        self.stream.write_all(octets).expect("the speaker reads");
    }

    /// The next message's type and body.
    pub fn receive(&mut self) -> (u8, Vec<u8>) {
        let mut header = [0; 19];
        self.stream.read_exact(&mut header).expect("a header");
        let length = usize::from(u16::from_be_bytes([header[16], header[17]]));
        let mut body = vec![0; length - header.len()];
        self.stream.read_exact(&mut body).expect("a body");
        (header[18], body)
    }

    /// Code, subcode and data of the NOTIFICATION that must come, after which the connection ends.
    pub fn receive_notification(mut self) -> (u8, u8, Vec<u8>) {
        loop {
            match self.receive() {
                (NOTIFICATION, body) => {
                    let mut rest = Vec::new();
                    // An end or a reset: closed in either case.
                    let _ = self.stream.read_to_end(&mut rest);
                    assert!(rest.is_empty(), "{rest:?}");
                    return (body[0], body[1], body[2..].to_vec());
                }
                (UPDATE | KEEPALIVE, _) => {}
                (kind, body) => panic!("a message of type {kind}: {body:?}"),
            }
        }
    }
}

/// A message with the marker and type as given.
pub fn message(marker: [u8; 16], kind: u8, body: &[u8]) -> Vec<u8> {
    let length = u16::try_from(19 + body.len()).expect("a short message");
    let mut octets = marker.to_vec();
    octets.extend(length.to_be_bytes());
    octets.push(kind);
    octets.extend(body);
    octets
}

/// An UPDATE that announces 10.9.0.0/16 with this ORIGIN, of which 0 to 2 exist.
pub fn announcement(asn: u16, next_hop: Ipv4Addr, origin: u8) -> Vec<u8> {
    let mut attributes = vec![0x40, 1, 1, origin, 0x40, 2, 4, 2, 1];
    attributes.extend(asn.to_be_bytes());
    attributes.extend([0x40, 3, 4]);
    attributes.extend(next_hop.octets());
    let mut body = vec![0, 0];
    body.extend(u16::try_from(attributes.len()).expect("few").to_be_bytes());
    body.extend(attributes);
    body.extend([16, 10, 9]);
    body
}

fn connect(site: &Site, from: Ipv4Addr, to: Ipv4Addr) -> std::io::Result<TcpStream> {
    use rustix::net::{AddressFamily, SocketType, bind, connect, socket};
    let connected = site.netns.run(|| -> rustix::io::Result<OwnedFd> {
        let fd = socket(AddressFamily::INET, SocketType::STREAM, None)?;
        bind(&fd, &SocketAddrV4::new(from, 0))?;
        connect(&fd, &SocketAddrV4::new(to, 179))?;
        Ok(fd)
    });
    Ok(TcpStream::from(connected.expect("entered")?))
}
