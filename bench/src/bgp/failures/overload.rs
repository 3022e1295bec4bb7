//! Sessions of two routers on a machine that has more to do than it can.

use std::io::{ErrorKind, Read, Write};
use std::net::TcpStream;
use std::path::Path;
use std::sync::atomic::{AtomicBool, AtomicU8, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use cairn_bfd::status::SessionStatus;
use cairn_bfd::wire::State;
use serde_json::Value;

use super::bed::{Bed, NEAR_ADDRESS, PATIENCE, Side, add_peer, objects, wait_for};
use super::witness::{BfdWatch, Joiner};
use super::{Size, bfd};
use crate::Result;
use crate::bgp::cell::{
    DAEMON_ADDRESS, DAEMON_ASN, DAEMON_PORT, FAMILY, encode, peer_address, peer_asn,
};
use crate::bgp::generator::{KEEPALIVE, handshake, next_type};
use crate::feed;
use crate::process::Process;

/// What became of the sessions.
#[derive(Clone, Debug)]
pub struct Outcome {
    /// Busy loops, one a core.
    pub busy_loops: usize,
    /// How long they ran.
    pub lasted: Duration,
    /// CPU time of the two speakers meanwhile.
    pub speakers_cpu: Duration,
    /// Prefixes that the first router was told meanwhile, announced and withdrawn.
    pub moved: u64,
    /// Ends of BGP sessions, counted once at each of our ends.
    pub session_ends: u64,
    /// How often BFD lost the path, counted once at each end.
    pub bfd_downs: u64,
    /// Between two KEEPALIVEs of the first router to the feeder: negotiated is a third of the hold time, less up
    /// to a quarter.
    pub keepalive_intervals: Vec<Duration>,
    /// Between two messages of any sort that show the feeder that the first router is alive.
    pub silences: Vec<Duration>,
    /// Between two BFD packets from it.
    pub bfd_intervals: Vec<Duration>,
    /// From a session with it to the first route, of peers that joined meanwhile.
    pub first_route: Vec<Duration>,
    /// Of the two speakers.
    pub memory: [Memory; 2],
}

/// Resident memory of a speaker, in octets.
#[derive(Clone, Copy, Debug, Default)]
pub struct Memory {
    /// Before the first route.
    pub before: u64,
    /// With all routes in the end.
    pub full: u64,
    /// A minute after they have been withdrawn.
    pub after: u64,
}

/// Moves routes through two routers beside busy loops. In the end the second one has them all.
///
/// # Errors
/// A daemon does not do what it has to, before the load or behind it.
pub fn measure(cairn: &Path, size: &Size) -> Result<Outcome> {
    let mut bed = Bed::new(cairn)?;
    bed.add(peer_address(FEEDER))?;
    bed.add(peer_address(JOINER))?;
    let mut first = objects(DAEMON_ASN, DAEMON_ADDRESS, HOLD_TIME_SECS);
    let other = format!(", port: {DAEMON_PORT}{}", bfd());
    add_peer(&mut first, "other", NEAR_ADDRESS, OTHER_ASN, &other);
    add_peer(&mut first, "feeder", peer_address(FEEDER), peer_asn(FEEDER), ", passive: true");
    add_peer(&mut first, JOINER_NAME, peer_address(JOINER), peer_asn(JOINER), ", passive: true");
    let mut second = objects(OTHER_ASN, NEAR_ADDRESS, HOLD_TIME_SECS);
    let other = format!(", passive: true{}", bfd());
    add_peer(&mut second, "other", DAEMON_ADDRESS, DAEMON_ASN, &other);
    let daemons = [
        bed.speaker(Side::Router, &first)?,
        bed.speaker(Side::Peers, &second)?,
        bed.bfd(Side::Router)?,
        bed.bfd(Side::Peers)?,
    ];
    overload(&bed, &daemons, size).map_err(|error| {
        let logs = daemons.iter().map(Process::log).collect::<Vec<_>>();
        format!("{error}\nthe daemons said: {}", logs.join("\n")).into()
    })
}

fn overload(bed: &Bed, daemons: &[Process], size: &Size) -> Result<Outcome> {
    wait_for("BGP and BFD between the routers are up", || Ok(bgp_is_up(bed)? && bfd_is_up(bed)?))?;
    let mut memory = [Memory::default(); 2];
    for (memory, octets) in memory.iter_mut().zip(resident(daemons)?) {
        memory.before = octets;
    }
    let feeder = Feeder::start(size.moving)?;
    wait_for("the feeder's session is up", || {
        Ok(lasting_peers(bed, Side::Router)?.iter().all(is_established))
    })?;
    let bfd_watch = BfdWatch::start(DAEMON_ADDRESS)?;
    let joiner = Joiner::start(JOINER, HOLD_TIME_SECS);
    let cpu = speakers_cpu(daemons)?;
    let began = Instant::now();
    let loops = BusyLoops::start();
    std::thread::sleep(size.overload);
    let busy_loops = loops.0.len();
    let keepalive_intervals = feeder.intervals(began, &[KEEPALIVE_TYPE]);
    let silences = feeder.intervals(began, &[UPDATE_TYPE, KEEPALIVE_TYPE]);
    let (bfd_intervals, first_route) = (bfd_watch.intervals()?, joiner.waits()?);
    drop(loops);
    let (lasted, moved) = (began.elapsed(), feeder.moved.load(Ordering::Relaxed));
    let speakers_cpu = speakers_cpu(daemons)?.saturating_sub(cpu);
    feeder.wish(REST);
    if count(bed, &feeder)? == (0, 0) {
        wait_for("the second router has every route", || has_received(bed, size.moving))?;
        for (memory, octets) in memory.iter_mut().zip(resident(daemons)?) {
            memory.full = octets;
        }
        feeder.wish(EMPTY);
        wait_for("the second router has no route", || has_received(bed, 0))?;
        std::thread::sleep(MEMORY_WAIT);
        for (memory, octets) in memory.iter_mut().zip(resident(daemons)?) {
            memory.after = octets;
        }
    }
    // It may have taken until now.
    let (session_ends, bfd_downs) = count(bed, &feeder)?;
    Ok(Outcome {
        busy_loops,
        lasted,
        speakers_cpu,
        moved,
        session_ends,
        bfd_downs,
        keepalive_intervals,
        silences,
        bfd_intervals,
        first_route,
        memory,
    })
}

/// Whether this is what the second router has received.
fn has_received(bed: &Bed, routes: u32) -> Result<bool> {
    let peers = bed.peers(Side::Peers)?;
    Ok(peers.iter().any(|peer| received(peer) == u64::from(routes)))
}

/// The peers of a side but the one that comes and goes.
fn lasting_peers(bed: &Bed, side: Side) -> Result<Vec<Value>> {
    let mut peers = bed.peers(side)?;
    peers.retain(|peer| peer["name"] != JOINER_NAME);
    Ok(peers)
}

/// How often BGP and BFD have ended until now.
fn count(bed: &Bed, feeder: &Feeder) -> Result<(u64, u64)> {
    let (mut session_ends, mut bfd_downs) = (u64::from(feeder.has_ended()), 0);
    for side in [Side::Router, Side::Peers] {
        session_ends += lasting_peers(bed, side)?.iter().map(ends).sum::<u64>();
        let (_, overview) = bed.bfd_client(side, PATIENCE)?;
        let downs = |status: &SessionStatus| downs(status.ups, status.state);
        bfd_downs += overview.sessions.iter().map(downs).sum::<u64>();
    }
    Ok((session_ends, bfd_downs))
}

fn bgp_is_up(bed: &Bed) -> Result<bool> {
    let mut up = true;
    for side in [Side::Router, Side::Peers] {
        let peers = bed.peers(side)?;
        up &= peers.iter().any(|peer| peer["name"] == "other" && is_established(peer));
    }
    Ok(up)
}

fn bfd_is_up(bed: &Bed) -> Result<bool> {
    let mut up = true;
    for side in [Side::Router, Side::Peers] {
        let (_, overview) = bed.bfd_client(side, PATIENCE)?;
        up &= overview.sessions.iter().any(|session| session.state == State::Up);
    }
    Ok(up)
}

fn is_established(peer: &Value) -> bool {
    peer["state"] == "Established"
}

fn received(peer: &Value) -> u64 {
    peer["routes"]["IPv4Unicast"]["received"].as_u64().unwrap_or_default()
}

/// How often a session that was brought up once has ended.
fn ends(peer: &Value) -> u64 {
    let established = peer["establishedCount"].as_u64().unwrap_or_default();
    established.saturating_sub(u64::from(is_established(peer)))
}

/// The same of one of BFD.
fn downs(ups: u64, state: State) -> u64 {
    ups.saturating_sub(u64::from(state == State::Up))
}

/// Of the first two.
fn speakers_cpu(daemons: &[Process]) -> Result<Duration> {
    daemons.iter().take(2).map(Process::cpu).sum()
}

/// Memory of the first two, in octets.
fn resident(daemons: &[Process]) -> Result<Vec<u64>> {
    daemons.iter().take(2).map(|daemon| Ok(daemon.memory()?.0)).collect()
}

/// Threads that do nothing as fast as they can, at normal priority; they end when dropped.
struct BusyLoops(Vec<JoinHandle<()>>, Arc<AtomicBool>);

impl BusyLoops {
    fn start() -> BusyLoops {
        let stop = Arc::new(AtomicBool::new(false));
        let cores = std::thread::available_parallelism().map_or(1, usize::from);
        let threads = (0..cores).map(|_| {
            let stop = Arc::clone(&stop);
            std::thread::spawn(move || while !stop.load(Ordering::Relaxed) {})
        });
        BusyLoops(threads.collect(), stop)
    }
}

impl Drop for BusyLoops {
    fn drop(&mut self) {
        self.1.store(true, Ordering::Relaxed);
        for thread in self.0.drain(..) {
            // It cannot have panicked.
            let _ = thread.join();
        }
    }
}

/// A message's time and type.
type Heard = (Instant, u8);

/// A peer that announces and withdraws all its routes without pause. It ends when dropped.
struct Feeder {
    wish: Arc<AtomicU8>,
    moved: Arc<AtomicU64>,
    /// Ends early only when the session does.
    writer: JoinHandle<std::io::Result<()>>,
    /// Ends when the router closes the session or is silent for the hold time.
    reader: JoinHandle<()>,
    /// When messages came, and of which types.
    heard: Arc<Mutex<Vec<Heard>>>,
}

impl Feeder {
    fn start(routes: u32) -> Result<Feeder> {
        let table = feed::table_of(FAMILY, 0..routes, PREFIXES_PER_SET, &[peer_asn(FEEDER)]);
        let (announcements, withdrawals) = encode(peer_address(FEEDER), &table)?;
        let (mut stream, seen) = handshake(FEEDER, HOLD_TIME_SECS)?;
        stream.set_read_timeout(Some(Duration::from_secs(HOLD_TIME_SECS.into())))?;
        let reading = stream.try_clone()?;
        let heard = Arc::default();
        let times = Arc::clone(&heard);
        let reader = std::thread::spawn(move || until_silent_or_closed(reading, seen, &times));
        let (wish, moved) = (Arc::new(AtomicU8::new(MOVE)), Arc::new(AtomicU64::new(0)));
        let (wished, count) = (Arc::clone(&wish), Arc::clone(&moved));
        let writer = std::thread::spawn(move || {
            loop {
                write_all(&stream, &announcements, routes, &count)?;
                if wished.load(Ordering::Relaxed) != MOVE {
                    break;
                }
                write_all(&stream, &withdrawals, routes, &count)?;
            }
            let mut withdrawn = false;
            loop {
                match wished.load(Ordering::Relaxed) {
                    END => return Ok(()),
                    EMPTY if !withdrawn => {
                        write_all(&stream, &withdrawals, routes, &count)?;
                        withdrawn = true;
                    }
                    _ => {
                        stream.write_all(&KEEPALIVE)?;
                        std::thread::sleep(Duration::from_millis(500));
                    }
                }
            }
        });
        Ok(Feeder { wish, moved, writer, reader, heard })
    }

    fn wish(&self, wish: u8) {
        self.wish.store(wish, Ordering::Relaxed);
    }

    /// Between two messages of these types since then.
    fn intervals(&self, began: Instant, types: &[u8]) -> Vec<Duration> {
        let heard = self.heard.lock().unwrap_or_else(PoisonError::into_inner);
        let since = heard.iter().filter(|(at, code)| *at >= began && types.contains(code));
        let times: Vec<Instant> = since.map(|(at, _)| *at).collect();
        times.windows(2).map(|pair| pair[1] - pair[0]).collect()
    }

    fn has_ended(&self) -> bool {
        self.writer.is_finished() || self.reader.is_finished()
    }
}

impl Drop for Feeder {
    fn drop(&mut self) {
        self.wish(END);
    }
}

/// Writes messages about so many routes, and counts those that the socket has taken.
fn write_all(
    mut stream: &TcpStream,
    octets: &[u8],
    routes: u32,
    moved: &AtomicU64,
) -> std::io::Result<()> {
    for (number, chunk) in octets.chunks(WRITE_OCTETS).enumerate() {
        stream.write_all(chunk)?;
        let share =
            |octets_taken: usize| u64::from(routes) * octets_taken as u64 / octets.len() as u64;
        let before = number * WRITE_OCTETS;
        moved.fetch_add(share(before + chunk.len()) - share(before), Ordering::Relaxed);
    }
    Ok(())
}

/// `seen` has come before.
fn until_silent_or_closed(mut stream: TcpStream, mut seen: Vec<u8>, heard: &Mutex<Vec<Heard>>) {
    let mut buffer = vec![0; READ_OCTETS];
    loop {
        match stream.read(&mut buffer) {
            Err(error) if error.kind() == ErrorKind::Interrupted => {}
            Ok(0) | Err(_) => return,
            Ok(octets) => {
                let now = Instant::now();
                seen.extend_from_slice(&buffer[..octets]);
                while let Some(code) = next_type(&mut seen) {
                    heard.lock().unwrap_or_else(PoisonError::into_inner).push((now, code));
                }
            }
        }
    }
}

/// What is wished of the feeder: that it goes on,
const MOVE: u8 = 0;
/// that it lets everything be announced, once more if need be, and goes on as a peer that has nothing to say,
const REST: u8 = 1;
/// that it then withdraws everything,
const EMPTY: u8 = 2;
/// and that it ends.
const END: u8 = 3;
/// Types of messages that show that the other side is alive (RFC 4271 section 8.2.2).
const UPDATE_TYPE: u8 = 2;
const KEEPALIVE_TYPE: u8 = 4;
/// Time for a speaker to give memory back, which it does each minute.
const MEMORY_WAIT: Duration = Duration::from_secs(70);
/// It comes and goes.
const JOINER: u32 = 1;
const JOINER_NAME: &str = "joiner";
const HOLD_TIME_SECS: u16 = 3;
const FEEDER: u32 = 0;
const OTHER_ASN: u32 = 65_001;
const PREFIXES_PER_SET: usize = 5;
const WRITE_OCTETS: usize = 64 * 1024;
const READ_OCTETS: usize = 64 * 1024;
