//! From a dead path to the withdrawal of its routes at another peer.

use std::collections::{HashMap, HashSet};
use std::io::{Read, Write};
use std::net::{IpAddr, TcpStream};
use std::os::fd::{AsFd, OwnedFd};
use std::path::Path;
use std::sync::mpsc::{Receiver, RecvTimeoutError, channel};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use cairn_bfd::config::{Path as BfdPath, SessionSpec};
use cairn_bfd::control::Report;
use cairn_bfd::status::SessionStatus;
use cairn_bfd::wire::State;
use cairn_bgp::prefix::Prefix;
use rustix::event::epoll;
use rustix::net::{RecvFlags, recv};
use rustix::time::{ClockId, clock_gettime};

use super::bed::{Bed, PATIENCE, Side, add_peer, objects};
use super::{BFD_INTERVAL_MS, BFD_MULTIPLIER, Size, bfd};
use crate::Result;
use crate::bgp::cell::{DAEMON_ADDRESS, DAEMON_ASN, FAMILY, encode, peer_address, peer_asn};
use crate::bgp::generator::handshake;
use crate::bgp::ledger::next_message;
use crate::feed;
use crate::process::Process;

/// What every cut took.
#[derive(Debug, Default)]
pub struct Times {
    /// From the cut to the moment at which `cairn bfd` reported the session Down.
    pub cut_to_down: Vec<Duration>,
    /// From that moment to the arrival of the last withdrawal.
    pub down_to_withdraw: Vec<Duration>,
    /// Both together.
    pub cut_to_withdraw: Vec<Duration>,
}

/// Cuts one path after the other, in rounds.
///
/// # Errors
/// A daemon does not do what it has to.
pub fn measure(cairn: &Path, size: &Size) -> Result<Times> {
    let mut bed = Bed::new(cairn)?;
    for peer in 0..size.supervised + OTHERS {
        bed.add(peer_address(peer))?;
    }
    let daemons = [bed.bfd(Side::Router)?, bed.bfd(Side::Peers)?, speaker(&bed, size)?];
    let said = |error| {
        let logs = daemons.iter().map(Process::log).collect::<Vec<_>>();
        format!("{error}\nthe daemons said: {}", logs.join("\n"))
    };
    let mut times = Times::default();
    rounds(&mut bed, size, &mut times).map_err(said)?;
    Ok(times)
}

fn speaker(bed: &Bed, size: &Size) -> Result<Process> {
    let mut text = objects(DAEMON_ASN, DAEMON_ADDRESS, 90);
    for peer in 0..size.supervised + OTHERS {
        let supervision = if peer < size.supervised { bfd() } else { String::new() };
        let more = format!(", passive: true{supervision}");
        add_peer(&mut text, &format!("p{peer}"), peer_address(peer), peer_asn(peer), &more);
    }
    bed.speaker(Side::Router, &text)
}

fn rounds(bed: &mut Bed, size: &Size, times: &mut Times) -> Result<()> {
    let (mut other_ends, _) = bed.bfd_client(Side::Peers, PATIENCE)?;
    other_ends.want((0..size.supervised).map(session).collect())?;
    let mut paths = Paths::watch(bed)?;
    let feeder = size.supervised;
    let drain = Drain::start()?;
    let mut observer = Observer::connect(feeder + 1)?;
    let table = feed::table_of(FAMILY, 0..size.routes, PREFIXES_PER_SET, &[peer_asn(feeder)]);
    drain.connect(feeder, &encode(peer_address(feeder), &table)?.0)?;
    for _ in 0..size.rounds {
        paths.until_up(size.supervised as usize)?;
        for peer in 0..size.supervised {
            drain.connect(peer, &encode(peer_address(peer), &own_routes(peer, size))?.0)?;
        }
        let all = size.routes + size.supervised * PREFIXES_EACH;
        observer.until("all routes", |held| held.len() == all as usize)?;
        for peer in 0..size.supervised {
            // Nothing of the one before is under way, and BFD's packets are at any place of their interval.
            std::thread::sleep(PAUSE + Duration::from_millis(u64::from(peer * 7 % 50)));
            let cut = monotonic();
            bed.remove(peer_address(peer))?;
            let sets = own_routes(peer, size);
            let gone = |held: &HashSet<Prefix>| {
                sets.iter().flat_map(|set| &set.prefixes).all(|prefix| !held.contains(prefix))
            };
            let withdrawn = observer.until("a withdrawal", gone)?;
            let down = paths.until_down(peer_address(peer).into())?;
            times.cut_to_down.push(down.saturating_sub(cut));
            times.down_to_withdraw.push(withdrawn.saturating_sub(down));
            times.cut_to_withdraw.push(withdrawn.saturating_sub(cut));
        }
        for peer in 0..size.supervised {
            bed.add(peer_address(peer))?;
        }
    }
    Ok(())
}

/// The peer's end of the BFD session.
fn session(peer: u32) -> SessionSpec {
    let path = BfdPath::to(DAEMON_ADDRESS.into());
    let path = BfdPath { local: Some(peer_address(peer).into()), ..path };
    SessionSpec { path, interval_ms: BFD_INTERVAL_MS, multiplier: BFD_MULTIPLIER }
}

/// The routes of a supervised peer, behind those of the table.
fn own_routes(peer: u32, size: &Size) -> Vec<feed::AttributeSet> {
    let first = size.routes + peer * PREFIXES_EACH;
    feed::table_of(FAMILY, first..first + PREFIXES_EACH, PREFIXES_PER_SET, &[peer_asn(peer)])
}

/// What the router's `cairn bfd` says of its sessions.
struct Paths {
    told: Receiver<SessionStatus>,
    states: HashMap<IpAddr, State>,
}

impl Paths {
    fn watch(bed: &Bed) -> Result<Paths> {
        // It is silent while nothing changes.
        let (mut client, overview) = bed.bfd_client(Side::Router, PATIENCE * 60)?;
        let (tell, told) = channel();
        std::thread::spawn(move || {
            for session in overview.sessions {
                let _ = tell.send(session);
            }
            // Until one of the two is gone.
            while let Ok(report) = client.report() {
                if let Report::Changed(session) = report
                    && tell.send(*session).is_err()
                {
                    return;
                }
            }
        });
        Ok(Paths { told, states: HashMap::new() })
    }

    fn until_up(&mut self, count: usize) -> Result<()> {
        while self.states.values().filter(|state| **state == State::Up).count() < count {
            self.next()?;
        }
        Ok(())
    }

    /// When the session with a peer was reported to be lost, in whole milliseconds: at most one too early.
    fn until_down(&mut self, remote: IpAddr) -> Result<Duration> {
        loop {
            let session = self.next()?;
            if session.spec.path.remote == remote && session.lost_for_ms.is_some() {
                return Ok(Duration::from_millis(
                    session.at_ms.ok_or("a report without its time")?,
                ));
            }
        }
    }

    fn next(&mut self) -> Result<SessionStatus> {
        let session = self.told.recv_timeout(PATIENCE).map_err(|_| "BFD does not change")?;
        self.states.insert(session.spec.path.remote, session.state);
        Ok(session)
    }
}

/// A peer that reads what it is told.
struct Observer {
    told: Receiver<std::result::Result<Told, String>>,
    held: HashSet<Prefix>,
}

/// One message, and when it had come.
struct Told {
    at: Duration,
    announced: Vec<Prefix>,
    withdrawn: Vec<Prefix>,
}

impl Observer {
    fn connect(peer: u32) -> Result<Observer> {
        let (mut stream, mut inbox) = handshake(peer, 0)?;
        stream.set_read_timeout(None)?;
        let (tell, told) = channel();
        std::thread::spawn(move || {
            let mut buffer = vec![0; READ_OCTETS];
            let failed = loop {
                let octets = match stream.read(&mut buffer) {
                    Ok(0) => break "the router closed the observer's session".into(),
                    Ok(octets) => octets,
                    Err(error) => break error.to_string(),
                };
                let at = monotonic();
                inbox.extend_from_slice(buffer.get(..octets).unwrap_or_default());
                let taken = take(&mut inbox, at, |told| tell.send(Ok(told)).is_ok());
                if let Err(error) = taken {
                    break error.to_string();
                }
            };
            // The measurement may have ended.
            let _ = tell.send(Err(failed));
        });
        Ok(Observer { told, held: HashSet::new() })
    }

    /// Waits until what it holds is as wanted; returns when that had come.
    fn until(&mut self, what: &str, holds: impl Fn(&HashSet<Prefix>) -> bool) -> Result<Duration> {
        let mut at = monotonic();
        while !holds(&self.held) {
            let told = self.told.recv_timeout(PATIENCE).map_err(|error| match error {
                RecvTimeoutError::Timeout => {
                    format!("never: {what}; the observer holds {} routes", self.held.len())
                }
                RecvTimeoutError::Disconnected => "the observer has ended".into(),
            })??;
            for prefix in &told.withdrawn {
                self.held.remove(prefix);
            }
            self.held.extend(told.announced);
            at = told.at;
        }
        Ok(at)
    }
}

/// Takes all whole messages; ends early when nobody hears them any more.
fn take(inbox: &mut Vec<u8>, at: Duration, tell: impl Fn(Told) -> bool) -> Result<()> {
    let mut taken = 0;
    while let Some((octets, update)) = next_message(inbox.get(taken..).unwrap_or_default())? {
        taken += octets;
        let Some(update) = update else { continue };
        let announced = update.announcements().flat_map(|run| run.prefixes).collect();
        if !tell(Told { at, announced, withdrawn: update.withdrawn().collect() }) {
            return Err("nobody hears".into());
        }
    }
    inbox.drain(..taken);
    Ok(())
}

/// Peers that throw away what they are told, all on one thread.
struct Drain {
    epoll: Arc<OwnedFd>,
    streams: Arc<Mutex<HashMap<u32, TcpStream>>>,
}

impl Drain {
    fn start() -> Result<Drain> {
        let epoll = Arc::new(epoll::create(epoll::CreateFlags::CLOEXEC)?);
        let streams = Arc::new(Mutex::new(HashMap::new()));
        let drain = Drain { epoll: Arc::clone(&epoll), streams: Arc::clone(&streams) };
        std::thread::spawn(move || {
            // As long as there are sockets that it is not alone with.
            while Arc::strong_count(&streams) > 1 {
                let mut events = Vec::with_capacity(256);
                let wait = rustix::event::Timespec { tv_sec: 0, tv_nsec: 200_000_000 };
                let spare = rustix::buffer::spare_capacity(&mut events);
                let Ok(_) = epoll::wait(&epoll, spare, Some(&wait)) else { continue };
                let mut streams = streams.lock().unwrap_or_else(PoisonError::into_inner);
                for event in events {
                    let peer = event.data.u64() as u32;
                    if streams.get(&peer).is_some_and(|stream| !throw_away(stream)) {
                        streams.remove(&peer);
                    }
                }
            }
        });
        Ok(drain)
    }

    /// Brings a peer's session up, anew if it had one, and sends what it has to say.
    fn connect(&self, peer: u32, announcements: &[u8]) -> Result<()> {
        self.streams().remove(&peer);
        let (mut stream, _) = handshake(peer, 0)?;
        let data = epoll::EventData::new_u64(peer.into());
        epoll::add(&*self.epoll, &stream, data, epoll::EventFlags::IN)?;
        self.streams().insert(peer, stream.try_clone()?);
        Ok(stream.write_all(announcements)?)
    }

    fn streams(&self) -> MutexGuard<'_, HashMap<u32, TcpStream>> {
        self.streams.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Throws away what a socket has; false at its end.
fn throw_away(stream: &TcpStream) -> bool {
    let mut nothing = Vec::<u8>::with_capacity(READ_OCTETS);
    // The kernel drops the octets of a TCP socket without copying them (tcp(7)).
    let flags = RecvFlags::TRUNC | RecvFlags::DONTWAIT;
    let spare = rustix::buffer::spare_capacity(&mut nothing);
    match recv(stream.as_fd(), spare, flags) {
        Ok((_, octets)) => octets > 0,
        Err(error) => error == rustix::io::Errno::AGAIN || error == rustix::io::Errno::INTR,
    }
}

/// The clock of `cairn bfd`'s reports.
fn monotonic() -> Duration {
    let now = clock_gettime(ClockId::Monotonic);
    Duration::new(now.tv_sec.unsigned_abs(), now.tv_nsec.unsigned_abs() as u32)
}

/// Peers without BFD: the one with the table, and behind it the one that is measured at.
const OTHERS: u32 = 2;
/// Of a supervised peer.
const PREFIXES_EACH: u32 = 3;
const PREFIXES_PER_SET: usize = 5;
const PAUSE: Duration = Duration::from_millis(50);
const READ_OCTETS: usize = 256 * 1024;
