//! What others see of a router that has too much to do: when its packets come, and how soon a peer that
//! joins gets a route.

use std::io::{ErrorKind, Read};
use std::net::Ipv4Addr;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use rustix::fd::{AsRawFd, OwnedFd};
use rustix::net::sockopt::{Timeout, set_socket_timeout};
use rustix::net::{AddressFamily, RecvFlags, SocketType, ipproto, recv, socket};

use crate::Result;
use crate::bgp::generator::handshake;

/// A thread that observes until it is asked what it has seen.
struct Observer {
    stop: Arc<AtomicBool>,
    thread: JoinHandle<std::result::Result<Vec<Duration>, String>>,
}

impl Observer {
    fn start(
        observe: impl FnOnce(&AtomicBool) -> Result<Vec<Duration>> + Send + 'static,
    ) -> Observer {
        let stop = Arc::new(AtomicBool::new(false));
        let asked = Arc::clone(&stop);
        let thread = std::thread::spawn(move || observe(&asked).map_err(|error| error.to_string()));
        Observer { stop, thread }
    }

    fn seen(self) -> Result<Vec<Duration>> {
        self.stop.store(true, Ordering::Relaxed);
        Ok(self.thread.join().map_err(|_| "the observing thread panicked")??)
    }
}

/// Watches BFD packets come in from `source`. Their times are the kernel's, so that nobody has to wake up in
/// time to see them.
pub struct BfdWatch(Observer);

impl BfdWatch {
    /// In the namespace of the calling thread.
    ///
    /// # Errors
    /// Without root.
    pub fn start(source: Ipv4Addr) -> Result<BfdWatch> {
        // Of all UDP that comes in, which here is BFD alone.
        let socket = socket(AddressFamily::INET, SocketType::RAW, Some(ipproto::UDP))?;
        set_socket_timeout(&socket, Timeout::Recv, Some(POLL_PAUSE))?;
        // The first question is what makes the kernel note times.
        let _ = last_received(&socket);
        Ok(BfdWatch(Observer::start(move |stop| {
            let (mut intervals, mut last) = (Vec::new(), None);
            let mut packet = [0; 128];
            while !stop.load(Ordering::Relaxed) {
                let octets = match recv(&socket, &mut packet, RecvFlags::empty()) {
                    Ok((octets, _)) => octets,
                    Err(rustix::io::Errno::AGAIN | rustix::io::Errno::INTR) => continue,
                    Err(error) => return Err(error.into()),
                };
                // The IPv4 header has no options, and its source stands at 12.
                let to = packet.get(..octets).and_then(|packet| packet.get(22..24));
                if to == Some(&BFD_PORT.to_be_bytes()) && packet[12..16] == source.octets() {
                    let at = last_received(&socket)?;
                    intervals.extend(last.map(|last| at.saturating_sub(last)));
                    last = Some(at);
                }
            }
            Ok(intervals)
        })))
    }

    /// The times between two packets until now.
    ///
    /// # Errors
    /// Watching has failed.
    pub fn intervals(self) -> Result<Vec<Duration>> {
        self.0.seen()
    }
}

/// When the packet came that was read last, since 1970.
fn last_received(socket: &OwnedFd) -> Result<Duration> {
    let mut time = libc::timespec { tv_sec: 0, tv_nsec: 0 };
    // SAFETY: SIOCGSTAMPNS writes one timespec.
    let failed = unsafe { libc::ioctl(socket.as_raw_fd(), SIOCGSTAMPNS, &raw mut time) } != 0;
    match failed {
        true => Err(std::io::Error::last_os_error().into()),
        false => Ok(Duration::new(time.tv_sec.unsigned_abs(), time.tv_nsec as u32)),
    }
}

/// A peer that comes and goes. Each time it waits for a route.
pub struct Joiner(Observer);

impl Joiner {
    /// As peer number `peer`, which the router has to know.
    pub fn start(peer: u32, hold_time_secs: u16) -> Joiner {
        Joiner(Observer::start(move |stop| {
            let mut waits = Vec::new();
            while !stop.load(Ordering::Relaxed) {
                waits.push(join(peer, hold_time_secs)?);
                std::thread::sleep(JOIN_PAUSE);
            }
            Ok(waits)
        }))
    }

    /// The times from an established session to its first route, until now.
    ///
    /// # Errors
    /// A session did not come up, or brought no route.
    pub fn waits(self) -> Result<Vec<Duration>> {
        self.0.seen()
    }
}

fn join(peer: u32, hold_time_secs: u16) -> Result<Duration> {
    let (mut stream, mut seen) = handshake(peer, hold_time_secs)?;
    let established = Instant::now();
    let mut buffer = vec![0; 4096];
    // The router would end a silent session.
    let patience = Duration::from_secs(hold_time_secs.into());
    stream.set_read_timeout(Some(patience))?;
    while !announces(&mut seen) {
        match stream.read(&mut buffer) {
            Ok(0) => return Err("the router closed the session of a peer that joins".into()),
            Ok(octets) => seen.extend_from_slice(&buffer[..octets]),
            Err(error) if error.kind() == ErrorKind::Interrupted => {}
            Err(error) => return Err(format!("a peer that joins gets no route: {error}").into()),
        }
    }
    Ok(established.elapsed())
}

/// Whether a whole message in `seen` announces a route; others are taken away.
fn announces(seen: &mut Vec<u8>) -> bool {
    while let Some(head) = seen.get(..19) {
        let octets = usize::from(u16::from_be_bytes([head[16], head[17]])).max(19);
        let Some(message) = seen.get(..octets) else { return false };
        // An UPDATE without withdrawn routes, and with attributes.
        if message[18] == 2 && message.get(19..21) == Some(&[0, 0]) && octets > 23 {
            return true;
        }
        seen.drain(..octets);
    }
    false
}

/// Of RFC 5881 section 4.
const BFD_PORT: u16 = 3784;
/// From `asm-generic/sockios.h`: the time of the last packet, as a timespec.
const SIOCGSTAMPNS: libc::Ioctl = 0x8907;
const POLL_PAUSE: Duration = Duration::from_millis(100);
/// Between two sessions of the peer that joins.
const JOIN_PAUSE: Duration = Duration::from_millis(500);
