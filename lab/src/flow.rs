//! A steady UDP flow between two namespaces, and what of it was lost.
//!
//! Every packet carries its number. Loss is counted by number, and the longest gap is the time that
//! the longest run of lost packets took to send. A busy machine which sends or reads late does not look
//! like a broken network: what it is late with is not sent at once, and what it does not read waits.

use std::io;
use std::net::{IpAddr, SocketAddr, UdpSocket};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use cairn_kernel::NetNs;
use rustix::net::sockopt;

use crate::error::Error;

/// A running flow. Dropping it ends it.
pub struct Flow {
    log: Arc<Mutex<Log>>,
    stop: Arc<AtomicBool>,
    threads: Vec<JoinHandle<()>>,
}

/// Every packet sent so far.
struct Log {
    /// From one packet to the next.
    interval: Duration,
    /// When each was sent, since the beginning of the flow.
    sent: Vec<Duration>,
    arrived: Vec<bool>,
}

/// What became of the packets of a time.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Loss {
    /// Packets sent.
    pub sent: usize,
    /// Packets that did not arrive.
    pub lost: usize,
    /// The longest time without a packet that arrived.
    pub gap: Duration,
}

impl Loss {
    /// Both flows' packets; the longer gap.
    #[must_use]
    pub fn with(self, other: Loss) -> Loss {
        Loss {
            sent: self.sent + other.sent,
            lost: self.lost + other.lost,
            gap: self.gap.max(other.gap),
        }
    }
}

impl std::fmt::Display for Loss {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{} of {} lost", self.lost, self.sent)?;
        if self.lost > 0 {
            write!(f, ", gap {} ms", self.gap.as_millis())?;
        }
        Ok(())
    }
}

impl Flow {
    /// Sends `per_sec` packets a second from `from` to the address `to` of `into`.
    ///
    /// # Errors
    /// [`Error::Io`] or [`Error::Kernel`] when a socket or thread cannot be had.
    pub fn start(from: &NetNs, into: &NetNs, to: IpAddr, per_sec: u32) -> Result<Flow, Error> {
        let any: IpAddr = match to {
            IpAddr::V4(_) => std::net::Ipv4Addr::UNSPECIFIED.into(),
            IpAddr::V6(_) => std::net::Ipv6Addr::UNSPECIFIED.into(),
        };
        let open = |netns: &NetNs, at: SocketAddr| {
            netns
                .run(|| UdpSocket::bind(at))
                .map_err(Error::kernel("a socket of the flow"))?
                .map_err(Error::io("open a socket of the flow"))
        };
        let receiver = open(into, SocketAddr::new(to, 0))?;
        let target = receiver.local_addr().map_err(Error::io("read a socket's address"))?;
        let sender = open(from, SocketAddr::new(any, 0))?;
        receiver
            .set_read_timeout(Some(STOP_INTERVAL))
            .map_err(Error::io("set a socket's timeout"))?;
        // The kernel's default holds a quarter of a second.
        sockopt::set_socket_recv_buffer_size_force(&receiver, RECEIVE_BUFFER_BYTES)
            .map_err(|errno| Error::io("enlarge a socket's buffer")(errno.into()))?;
        let interval = Duration::from_secs(1) / per_sec.max(1);
        let log = Log { interval, sent: Vec::new(), arrived: Vec::new() };
        let mut flow = Flow {
            log: Arc::new(Mutex::new(log)),
            stop: Arc::new(AtomicBool::new(false)),
            threads: Vec::new(),
        };
        let (log, stop) = (Arc::clone(&flow.log), Arc::clone(&flow.stop));
        flow.spawn(move || receive(&receiver, &log, &stop))?;
        let (log, stop) = (Arc::clone(&flow.log), Arc::clone(&flow.stop));
        flow.spawn(move || send(&sender, target, interval, &log, &stop))?;
        Ok(flow)
    }

    /// The number of the next packet, to begin a time with.
    pub fn position(&self) -> usize {
        lock(&self.log).sent.len()
    }

    /// What became of the packets from number `from` up to now. Waits a moment for those that are
    /// still on their way.
    pub fn since(&self, from: usize) -> Loss {
        let end = self.position();
        thread::sleep(IN_FLIGHT);
        lock(&self.log).loss(from, end)
    }

    fn spawn(&mut self, work: impl FnOnce() + Send + 'static) -> Result<(), Error> {
        let thread = thread::Builder::new()
            .name("flow".into())
            .spawn(work)
            .map_err(Error::io("start a thread"))?;
        self.threads.push(thread);
        Ok(())
    }
}

impl Drop for Flow {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
        for thread in self.threads.drain(..) {
            // It only fails by a panic, which has been printed.
            let _ = thread.join();
        }
    }
}

impl Log {
    fn loss(&self, from: usize, end: usize) -> Loss {
        let end = end.min(self.sent.len());
        let from = from.min(end);
        let mut loss = Loss { sent: end - from, ..Loss::default() };
        let mut run_start = None;
        for index in from..end {
            if self.arrived[index] {
                run_start = None;
                continue;
            }
            loss.lost += 1;
            let start = *run_start.get_or_insert(self.sent[index]);
            loss.gap = loss.gap.max(self.sent[index] - start + self.interval);
        }
        loss
    }
}

fn send(
    socket: &UdpSocket,
    target: SocketAddr,
    interval: Duration,
    log: &Mutex<Log>,
    stop: &AtomicBool,
) {
    let start = Instant::now();
    let mut due = Duration::ZERO;
    while !stop.load(Ordering::Relaxed) {
        let now = start.elapsed();
        if now < due {
            thread::sleep(due - now);
            continue;
        }
        let number = {
            let mut log = lock(log);
            log.sent.push(now);
            log.arrived.push(false);
            log.sent.len() as u64 - 1
        };
        // A packet that the kernel has no route for is lost like any other.
        let _ = socket.send_to(&number.to_be_bytes(), target);
        due = (due + interval).max(now.saturating_sub(LATE_MAX));
    }
}

fn receive(socket: &UdpSocket, log: &Mutex<Log>, stop: &AtomicBool) {
    let mut packet = [0; 8];
    while !stop.load(Ordering::Relaxed) {
        match socket.recv(&mut packet) {
            Ok(len) if len == packet.len() => {
                let number = u64::from_be_bytes(packet) as usize;
                if let Some(arrived) = lock(log).arrived.get_mut(number) {
                    *arrived = true;
                }
            }
            Ok(_) => {}
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
            // The namespace's interface is gone; what is not read counts as lost.
            Err(_) => thread::sleep(STOP_INTERVAL),
        }
    }
}

fn lock(log: &Mutex<Log>) -> MutexGuard<'_, Log> {
    // Every change of the log is complete in itself.
    log.lock().unwrap_or_else(PoisonError::into_inner)
}

/// What a sender makes up for when it is late; more at once would fill queues.
const LATE_MAX: Duration = Duration::from_millis(20);
/// Some seconds of the flow: a packet takes less than a kibibyte with what the kernel holds of it.
const RECEIVE_BUFFER_BYTES: usize = 4 << 20;
const STOP_INTERVAL: Duration = Duration::from_millis(50);
/// No packet in the lab is on its way for longer.
const IN_FLIGHT: Duration = Duration::from_millis(100);

#[cfg(test)]
mod tests {
    use super::*;

    const INTERVAL: Duration = Duration::from_millis(5);

    fn log(arrived: &[bool]) -> Log {
        let sent = (0..arrived.len() as u32).map(|number| INTERVAL * number).collect();
        Log { interval: INTERVAL, sent, arrived: arrived.to_vec() }
    }

    #[test]
    fn loss_counts_packets_and_the_longest_run() {
        let log = log(&[true, false, true, false, false, false, true, false]);
        let loss = log.loss(0, 8);
        assert_eq!((loss.sent, loss.lost, loss.gap), (8, 5, INTERVAL * 3));
        assert_eq!(log.loss(6, 7), Loss { sent: 1, lost: 0, gap: Duration::ZERO });
        // Beyond the end there is nothing.
        assert_eq!(log.loss(20, 30), Loss::default());
    }
}
