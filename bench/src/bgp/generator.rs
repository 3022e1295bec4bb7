//! The load: all peers of a daemon on one thread, which waits for sockets and does nothing else while
//! the clock runs.

use std::io::{self, Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::os::fd::{AsFd, OwnedFd};
use std::sync::Arc;
use std::time::{Duration, Instant};

use rustix::event::{Timespec, epoll};
use rustix::net::{AddressFamily, RecvFlags, SocketType, bind, connect, recv, socket};
use rustix::time::{ClockId, clock_gettime};

use super::cell::{Cell, DAEMON_PORT, Ends, Tables, peer_asn};
use super::ledger::{Ledger, Recording};
use crate::Result;
use crate::process::Process;

/// All peers of a daemon, with established sessions.
pub struct Generator {
    epoll: OwnedFd,
    peers: Vec<Peer>,
    tables: Arc<Tables>,
    /// When anything was last read or written.
    moved_at: Instant,
}

/// What one phase took.
#[derive(Clone, Copy, Debug)]
pub struct Phase {
    /// From the first octet sent to the last receiver complete.
    pub time: Duration,
    /// CPU time of the daemon.
    pub daemon_cpu: Duration,
    /// CPU time of the generator.
    pub own_cpu: Duration,
}

/// What the receivers have to end with.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Goal {
    /// Every prefix with its AS path.
    Complete,
    /// No prefix.
    Empty,
}

/// A phase that went on for longer than it was given.
#[derive(Clone, Copy, Debug)]
pub struct CutOff(pub Duration);

struct Peer {
    number: u32,
    stream: TcpStream,
    /// How much of what it has to send has been sent.
    sent: usize,
    store: Option<(Recording, Ledger)>,
    /// When a peer that stores nothing last read something.
    drained_at: Option<Instant>,
}

impl Generator {
    /// Connects all peers of a cell and brings their sessions up.
    ///
    /// # Errors
    /// The daemon refuses a session.
    pub fn connect(cell: &Cell, tables: &Arc<Tables>, prepends: bool) -> Result<Generator> {
        let epoll = epoll::create(epoll::CreateFlags::CLOEXEC)?;
        let mut peers = Vec::new();
        for number in 0..cell.peers() {
            let (stream, rest) = handshake_at(number, cell.ends(number), 0)?;
            stream.set_nonblocking(true)?;
            // The end of a table must not wait for an acknowledgement.
            stream.set_nodelay(true)?;
            let data = epoll::EventData::new_u64(number.into());
            epoll::add(&epoll, &stream, data, epoll::EventFlags::IN)?;
            let store = (number >= cell.senders).then(|| {
                let reads = vec![(Instant::now(), rest.len())];
                let mut recording = Recording { octets: rest, reads };
                // Growing would copy everything while the clock runs.
                recording.octets.reserve(RECORDING_OCTETS_PER_PREFIX * tables.paths.len());
                (recording, Ledger::new(Arc::clone(tables), prepends))
            });
            peers.push(Peer { number, stream, sent: 0, store, drained_at: None });
        }
        let (tables, moved_at) = (Arc::clone(tables), Instant::now());
        let mut generator = Generator { epoll, peers, tables, moved_at };
        // What a daemon says at the beginning, such as End-of-RIB.
        let nothing = generator.peers.iter().map(|_| Vec::new()).collect::<Vec<_>>();
        let quiet_at = Instant::now() + QUIET;
        while generator.moved_at.max(quiet_at - QUIET) + QUIET > Instant::now() {
            generator.turn(&nothing)?;
        }
        Ok(generator)
    }

    /// Sends all tables, or withdraws them, and waits until all receivers are there.
    ///
    /// # Errors
    /// A session or the daemon has ended, or what has arrived is wrong.
    pub fn run(
        &mut self,
        goal: Goal,
        daemon: &Process,
        at_most: Duration,
    ) -> Result<std::result::Result<Phase, CutOff>> {
        let tables = Arc::clone(&self.tables);
        let payloads: Vec<&[u8]> = (0..self.peers.len())
            .map(|peer| match (tables.senders.get(peer), goal) {
                (Some((announcements, _)), Goal::Complete) => announcements.as_slice(),
                (Some((_, withdrawals)), Goal::Empty) => withdrawals.as_slice(),
                (None, _) => &[],
            })
            .collect();
        for (peer, payload) in self.peers.iter_mut().zip(&payloads) {
            (peer.sent, peer.drained_at) = (0, None);
            if !payload.is_empty() {
                peer.interest(&self.epoll, epoll::EventFlags::IN | epoll::EventFlags::OUT)?;
            }
        }
        let (cpu_before, own_before) = (daemon.cpu()?, own_cpu());
        let start = Instant::now();
        self.moved_at = start;
        let (mut quiet, mut cpu_seen) = (QUIET, Duration::ZERO);
        loop {
            self.turn(&payloads)?;
            let now = Instant::now();
            let finished = self.peers.iter().zip(&payloads).all(|(p, all)| p.sent == all.len());
            if finished && now - self.moved_at > quiet {
                // Both before the recordings are read, which takes longer than what is measured.
                let (daemon_cpu, own_cpu) = (daemon.cpu()? - cpu_before, own_cpu() - own_before);
                // What it has still to read may change nothing for receivers, but costs it as well.
                if daemon_cpu - std::mem::replace(&mut cpu_seen, daemon_cpu) > IDLE_CPU
                    && now - start < at_most
                {
                    self.moved_at = now;
                    continue;
                }
                if let Some(end) = self.reached(goal)? {
                    return Ok(Ok(Phase { time: end - start, daemon_cpu, own_cpu }));
                }
                // A daemon may pause; one that has nothing left to say will not say it any more.
                if quiet > STALLED {
                    return Err(format!("the daemon stopped sending: {}", self.describe()).into());
                }
                quiet *= 2;
            }
            if now - start > at_most {
                return Ok(Err(CutOff(at_most)));
            }
        }
    }

    /// When the last receiver got there; `None` while one has not.
    fn reached(&mut self, goal: Goal) -> Result<Option<Instant>> {
        let mut last = None;
        for peer in &mut self.peers {
            let at = match &mut peer.store {
                Some((recording, ledger)) => {
                    ledger.read(recording)?;
                    let at = match goal {
                        Goal::Complete => ledger.complete_at(),
                        Goal::Empty => ledger.empty_at(),
                    };
                    let Some(at) = at else { return Ok(None) };
                    Some(at)
                }
                None => peer.drained_at,
            };
            last = last.max(at);
        }
        Ok(last)
    }

    fn describe(&self) -> String {
        let ledgers = self.peers.iter().filter_map(|peer| peer.store.as_ref());
        ledgers.map(|(_, ledger)| ledger.describe()).collect::<Vec<_>>().join("; ")
    }

    /// Waits for sockets, once, and reads and writes what they have and take.
    fn turn<P: AsRef<[u8]>>(&mut self, payloads: &[P]) -> Result<()> {
        let mut events = Vec::with_capacity(self.peers.len());
        let wait = Timespec { tv_sec: 0, tv_nsec: WAIT.as_nanos() as i64 };
        match epoll::wait(&self.epoll, rustix::buffer::spare_capacity(&mut events), Some(&wait)) {
            Ok(_) | Err(rustix::io::Errno::INTR) => {}
            Err(error) => return Err(error.into()),
        }
        for event in events {
            let number = event.data.u64() as usize;
            let (Some(peer), Some(payload)) = (self.peers.get_mut(number), payloads.get(number))
            else {
                continue;
            };
            let flags = event.flags;
            if flags.contains(epoll::EventFlags::OUT) && peer.write(payload.as_ref())? {
                peer.interest(&self.epoll, epoll::EventFlags::IN)?;
            }
            if flags.intersects(!epoll::EventFlags::OUT) {
                peer.read().map_err(|error| format!("peer {number}: {error}"))?;
            }
            self.moved_at = Instant::now();
        }
        Ok(())
    }
}

impl Peer {
    fn interest(&self, epoll: &OwnedFd, flags: epoll::EventFlags) -> Result<()> {
        let data = epoll::EventData::new_u64(self.number.into());
        Ok(epoll::modify(epoll, &self.stream, data, flags)?)
    }

    /// Writes what the socket takes; true at the end.
    fn write(&mut self, payload: &[u8]) -> io::Result<bool> {
        let rest = payload.get(self.sent..).unwrap_or_default();
        let rest = rest.get(..WRITE_OCTETS).unwrap_or(rest);
        match (&self.stream).write(rest) {
            Ok(written) => self.sent += written,
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
            Err(error) => return Err(error),
        }
        Ok(self.sent == payload.len())
    }

    /// Reads once what the socket has.
    fn read(&mut self) -> io::Result<()> {
        let (octets, at) = match &mut self.store {
            Some((recording, _)) => {
                recording.octets.reserve(READ_OCTETS);
                let spare = rustix::buffer::spare_capacity(&mut recording.octets);
                let (octets, _) = recv(self.stream.as_fd(), spare, RecvFlags::empty())?;
                let at = Instant::now();
                recording.reads.push((at, recording.octets.len()));
                (octets, at)
            }
            None => {
                // The kernel drops the octets of a TCP socket without copying them (tcp(7)).
                let mut nothing = Vec::<u8>::with_capacity(DRAIN_OCTETS);
                let spare = rustix::buffer::spare_capacity(&mut nothing);
                let (_, octets) = recv(self.stream.as_fd(), spare, RecvFlags::TRUNC)?;
                (octets, Instant::now())
            }
        };
        if octets == 0 {
            return Err(io::Error::other("the daemon closed the session"));
        }
        self.drained_at = Some(at);
        Ok(())
    }
}

/// A session's beginning, by blocking reads: nothing is measured yet. Also returns what came after it.
///
/// # Errors
/// The daemon does not take the session in time.
pub fn handshake(peer: u32, hold_time_secs: u16) -> Result<(TcpStream, Vec<u8>)> {
    handshake_at(peer, Ends::of(peer), hold_time_secs)
}

/// The same between any two addresses.
///
/// # Errors
/// See [`handshake`].
pub fn handshake_at(peer: u32, ends: Ends, hold_time_secs: u16) -> Result<(TcpStream, Vec<u8>)> {
    let started = Instant::now();
    let mut problem;
    loop {
        match try_handshake(peer, ends, hold_time_secs) {
            Ok(established) => return Ok(established),
            Err(error) => problem = error,
        }
        // The daemon has only just been started.
        if started.elapsed() > START_PATIENCE {
            return Err(format!("no session as peer {peer}: {problem}").into());
        }
        std::thread::sleep(Duration::from_millis(20));
    }
}

fn try_handshake(peer: u32, ends: Ends, hold_time_secs: u16) -> Result<(TcpStream, Vec<u8>)> {
    let socket = socket(AddressFamily::INET, SocketType::STREAM, None)?;
    bind(&socket, &SocketAddr::from((ends.peer, 0)))?;
    connect(&socket, &SocketAddr::from((ends.daemon, DAEMON_PORT)))?;
    let mut stream = TcpStream::from(socket);
    stream.set_read_timeout(Some(START_PATIENCE))?;
    stream.write_all(&open_with(peer_asn(peer), ends.peer, hold_time_secs, &[]))?;
    let mut buffer = vec![0; 4096];
    let mut seen = Vec::new();
    let mut types = Vec::new();
    // Established when the daemon has sent OPEN and KEEPALIVE, and got ours.
    while types.len() < 2 {
        let octets = stream.read(&mut buffer)?;
        if octets == 0 {
            return Err("the daemon closed the connection".into());
        }
        seen.extend_from_slice(&buffer[..octets]);
        while let Some(code) = next_type(&mut seen) {
            types.push(code);
            if types.len() == 1 {
                stream.write_all(&KEEPALIVE)?;
            }
        }
    }
    match types.as_slice() {
        [1, 4, ..] => Ok((stream, seen)),
        _ => Err(format!("messages of types {types:?} instead of OPEN and KEEPALIVE").into()),
    }
}

/// Takes the first message off what has come, if all of it has, and says of which type it is.
pub fn next_type(seen: &mut Vec<u8>) -> Option<u8> {
    let &[high, low, code] = seen.get(16..19)? else { return None };
    let length = usize::from(u16::from_be_bytes([high, low])).max(19);
    if seen.len() < length {
        return None;
    }
    seen.drain(..length);
    Some(code)
}

/// An OPEN without hold time: a peer that is busy sending sends no KEEPALIVE.
pub fn open(asn: u32, router_id: std::net::Ipv4Addr) -> Vec<u8> {
    open_with(asn, router_id, 0, &[])
}

/// The same with a hold time and with more capabilities, encoded.
pub fn open_with(
    asn: u32,
    router_id: std::net::Ipv4Addr,
    hold_time_secs: u16,
    more: &[u8],
) -> Vec<u8> {
    let mut capabilities = vec![1, 4, 0, 1, 0, 1, 65, 4];
    capabilities.extend(asn.to_be_bytes());
    capabilities.extend(more);
    let mut body = vec![4];
    body.extend(AS_TRANS.to_be_bytes());
    body.extend(hold_time_secs.to_be_bytes());
    body.extend(router_id.octets());
    body.extend([capabilities.len() as u8 + 2, 2, capabilities.len() as u8]);
    body.extend(capabilities);
    let mut message = vec![0xff; 16];
    message.extend((19 + body.len() as u16).to_be_bytes());
    message.push(1);
    message.extend(body);
    message
}

/// CPU time of this thread.
fn own_cpu() -> Duration {
    let time = clock_gettime(ClockId::ThreadCPUTime);
    Duration::new(time.tv_sec.unsigned_abs(), time.tv_nsec.unsigned_abs() as u32)
}

/// A KEEPALIVE.
pub const KEEPALIVE: [u8; 19] = [
    0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff,
    0, 19, 4,
];
const AS_TRANS: u16 = 23456;
/// How long nothing has to come before what has come is looked at.
const QUIET: Duration = Duration::from_millis(300);
/// A daemon that needs no more CPU time while nothing comes has read everything.
const IDLE_CPU: Duration = Duration::from_millis(5);
/// After so long nothing is expected to come any more.
const STALLED: Duration = Duration::from_secs(10);
/// How long a daemon may take to start.
const START_PATIENCE: Duration = Duration::from_secs(10);
/// One wait for sockets.
const WAIT: Duration = Duration::from_millis(20);
const WRITE_OCTETS: usize = 256 * 1024;
const READ_OCTETS: usize = 256 * 1024;
const DRAIN_OCTETS: usize = 1024 * 1024;
/// More than a daemon needs that packs prefixes badly, with the attributes of the cells.
const RECORDING_OCTETS_PER_PREFIX: usize = 48;
