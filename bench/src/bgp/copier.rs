//! `cairn-bench bgp-copier PEERS`: the limit that no BGP speaker can beat by much. It answers OPEN, and
//! hands each UPDATE's octets unread to all other peers. Of senders of the same prefixes it would need
//! a decision process: there, it passes on those of the first peer only.

use std::collections::VecDeque;
use std::io::{self, Read, Write};
use std::net::{IpAddr, Ipv4Addr, SocketAddr, TcpListener, TcpStream};
use std::os::fd::OwnedFd;
use std::process::ExitCode;
use std::rc::Rc;

use rustix::event::epoll;

use super::cell::{DAEMON_ADDRESS, DAEMON_ASN, DAEMON_PORT, peer_address};
use super::generator::{KEEPALIVE, open};
use crate::Result;

struct Copier {
    epoll: OwnedFd,
    peers: Vec<Peer>,
    /// Whether one peer has so much waiting that nothing is read.
    paused: bool,
    only_first: bool,
}

struct Peer {
    stream: TcpStream,
    address: Ipv4Addr,
    /// What has been read and is no complete message yet.
    begun: Vec<u8>,
    waiting: VecDeque<Rc<[u8]>>,
    waiting_octets: usize,
    /// How much of the first one has been written.
    written: usize,
    wants_out: bool,
}

/// Runs until it is killed.
pub fn main(mut arguments: impl Iterator<Item = String>) -> ExitCode {
    let peers = arguments.next().and_then(|peers| peers.parse().ok());
    let only_first = arguments.next().as_deref() == Some(SHARED);
    let Some(peers) = peers else {
        eprintln!("usage: cairn-bench bgp-copier PEERS [{SHARED}]");
        return ExitCode::from(2);
    };
    match run(peers, only_first) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("cairn-bench bgp-copier: {error}");
            ExitCode::FAILURE
        }
    }
}

fn run(peers: usize, only_first: bool) -> Result<()> {
    let listener = TcpListener::bind((Ipv4Addr::UNSPECIFIED, DAEMON_PORT))?;
    let epoll = epoll::create(epoll::CreateFlags::CLOEXEC)?;
    let mut copier = Copier { epoll, peers: Vec::new(), paused: false, only_first };
    while copier.peers.len() < peers {
        let (stream, address) = listener.accept()?;
        copier.peers.push(Peer::answer(stream, address)?);
    }
    for (number, peer) in copier.peers.iter().enumerate() {
        let data = epoll::EventData::new_u64(number as u64);
        epoll::add(&copier.epoll, &peer.stream, data, epoll::EventFlags::IN)?;
    }
    loop {
        copier.turn()?;
    }
}

impl Copier {
    fn turn(&mut self) -> Result<()> {
        let mut events = Vec::with_capacity(self.peers.len());
        match epoll::wait(&self.epoll, rustix::buffer::spare_capacity(&mut events), None) {
            Ok(_) | Err(rustix::io::Errno::INTR) => {}
            Err(error) => return Err(error.into()),
        }
        for event in events {
            let number = event.data.u64() as usize;
            let flags = event.flags;
            if flags.contains(epoll::EventFlags::OUT) {
                self.peers[number].write()?;
            }
            if flags.intersects(!epoll::EventFlags::OUT) && !self.paused {
                self.forward(number)?;
            }
            let full = self.peers.iter().any(|peer| peer.waiting_octets > WAITING_OCTETS_MAX);
            let changed = std::mem::replace(&mut self.paused, full) != full;
            for (number, peer) in self.peers.iter_mut().enumerate() {
                let wants_out = !peer.waiting.is_empty();
                if std::mem::replace(&mut peer.wants_out, wants_out) != wants_out || changed {
                    let mut interest = epoll::EventFlags::empty();
                    interest.set(epoll::EventFlags::IN, !full);
                    interest.set(epoll::EventFlags::OUT, wants_out);
                    let data = epoll::EventData::new_u64(number as u64);
                    epoll::modify(&self.epoll, &peer.stream, data, interest)?;
                }
            }
        }
        Ok(())
    }

    /// Reads once and hands the complete messages to all others.
    fn forward(&mut self, from: usize) -> Result<()> {
        let Some(octets) = self.peers[from].read()? else { return Ok(()) };
        if self.only_first && self.peers[from].address != peer_address(0) {
            return Ok(());
        }
        for (_, peer) in self.peers.iter_mut().enumerate().filter(|(number, _)| *number != from) {
            peer.waiting.push_back(Rc::clone(&octets));
            peer.waiting_octets += octets.len();
            peer.write()?;
        }
        Ok(())
    }
}

impl Peer {
    /// The beginning of a session, by blocking reads.
    fn answer(mut stream: TcpStream, from: SocketAddr) -> Result<Peer> {
        let IpAddr::V4(address) = from.ip() else { return Err("not an IPv4 peer".into()) };
        stream.write_all(&open(DAEMON_ASN, DAEMON_ADDRESS))?;
        let mut begun = Vec::new();
        let mut buffer = [0; 4096];
        let mut messages = 0;
        // OPEN and KEEPALIVE; what follows is for the others.
        while messages < 2 {
            match complete(&begun) {
                0 => match stream.read(&mut buffer)? {
                    0 => return Err("a peer closed its session".into()),
                    octets => begun.extend_from_slice(&buffer[..octets]),
                },
                _ => {
                    let length = message_octets(&begun).unwrap_or(0);
                    begun.drain(..length);
                    messages += 1;
                    if messages == 1 {
                        stream.write_all(&KEEPALIVE)?;
                    }
                }
            }
        }
        stream.set_nonblocking(true)?;
        stream.set_nodelay(true)?;
        let (waiting, written) = (VecDeque::new(), 0);
        Ok(Peer { stream, address, begun, waiting, waiting_octets: 0, written, wants_out: false })
    }

    /// The complete messages of one read.
    fn read(&mut self) -> io::Result<Option<Rc<[u8]>>> {
        let before = self.begun.len();
        self.begun.resize(before + READ_OCTETS, 0);
        let read = self.stream.read(&mut self.begun[before..]);
        let octets = match read {
            Ok(0) => Err(io::Error::other("a peer closed its session")),
            Ok(octets) => Ok(octets),
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => Ok(0),
            Err(error) => Err(error),
        }?;
        self.begun.truncate(before + octets);
        let complete = complete(&self.begun);
        let messages = self.begun.get(..complete).filter(|m| !m.is_empty()).map(Rc::from);
        self.begun.drain(..complete);
        Ok(messages)
    }

    fn write(&mut self) -> io::Result<()> {
        while let Some(first) = self.waiting.front() {
            match self.stream.write(&first[self.written..]) {
                Ok(octets) => {
                    self.written += octets;
                    self.waiting_octets -= octets;
                    if self.written == first.len() {
                        self.waiting.pop_front();
                        self.written = 0;
                    }
                }
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => break,
                Err(error) => return Err(error),
            }
        }
        Ok(())
    }
}

/// Octets of the complete messages at the beginning of `octets`.
fn complete(octets: &[u8]) -> usize {
    let mut complete = 0;
    while let Some(length) = octets.get(complete..).and_then(message_octets)
        && complete + length <= octets.len()
    {
        complete += length;
    }
    complete
}

fn message_octets(octets: &[u8]) -> Option<usize> {
    let length = octets.get(16..18)?.as_array().map(|length| u16::from_be_bytes(*length))?;
    Some(usize::from(length.max(19)))
}

/// The second argument in cells whose senders have the same prefixes.
pub const SHARED: &str = "shared";
const READ_OCTETS: usize = 256 * 1024;
const WAITING_OCTETS_MAX: usize = 4 * 1024 * 1024;
