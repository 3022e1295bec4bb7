//! The clients on the Unix socket.

use std::io::{self, Read, Write};
use std::os::fd::AsFd;
use std::os::unix::net::{UnixListener, UnixStream};
use std::time::{Duration, Instant};

use rustix::event::{PollFd, PollFlags};

use crate::control::{CLIENTS_MAX, Frames, REPORT_MAX, REQUEST_MAX, Report, Request, encode};

/// All clients. None of them is waited for.
#[derive(Debug)]
pub(super) struct Clients {
    listener: UnixListener,
    clients: Vec<Client>,
    /// How many there have been.
    accepted: u64,
    /// No client can be taken before.
    rests_until: Option<Instant>,
}

#[derive(Debug)]
struct Client {
    number: u64,
    stream: UnixStream,
    input: Frames,
    output: Vec<u8>,
    is_gone: bool,
}

impl Clients {
    pub(super) fn new(listener: UnixListener) -> Clients {
        Clients { listener, clients: Vec::new(), accepted: 0, rests_until: None }
    }

    /// What to wait for.
    pub(super) fn poll_into<'a>(&'a self, polled: &mut Vec<PollFd<'a>>) {
        if self.rests_until.is_none() {
            polled.push(PollFd::from_borrowed_fd(self.listener.as_fd(), PollFlags::IN));
        }
        for client in &self.clients {
            let writes = if client.output.is_empty() { PollFlags::empty() } else { PollFlags::OUT };
            polled.push(PollFd::from_borrowed_fd(client.stream.as_fd(), PollFlags::IN | writes));
        }
    }

    /// When clients that wait can be taken again, if they cannot now.
    pub(super) fn rests_until(&self) -> Option<Instant> {
        self.rests_until
    }

    /// Takes new clients, by their numbers.
    pub(super) fn accept(&mut self, now: Instant) -> Vec<u64> {
        let mut numbers = Vec::new();
        if self.rests_until.is_some_and(|until| now < until) {
            return numbers;
        }
        let rested = self.rests_until.take().is_some();
        loop {
            let stream = match self.listener.accept() {
                Ok((stream, _)) => stream,
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => break,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
                Err(error) => {
                    // Out of descriptors, as a rule: whoever waits goes on waiting, and would wake us without end.
                    if !rested {
                        tracing::warn!("clients have to wait: {error}");
                    }
                    self.rests_until = Some(now + ACCEPT_REST);
                    break;
                }
            };
            // Too many, or not ours to serve: closed at once.
            if self.clients.len() >= CLIENTS_MAX || !is_trusted(&stream) {
                tracing::warn!("a client is refused: there are {}", self.clients.len());
                continue;
            }
            if stream.set_nonblocking(true).is_ok() {
                let (input, output) = Default::default();
                self.accepted += 1;
                let number = self.accepted;
                self.clients.push(Client { number, stream, input, output, is_gone: false });
                numbers.push(number);
            }
        }
        numbers
    }

    /// The requests that have come in whole, a few of each client.
    pub(super) fn read(&mut self) -> Vec<(u64, Request)> {
        let mut requests = Vec::new();
        for client in &mut self.clients {
            client.read(&mut requests);
        }
        self.clients.retain(|client| !client.is_gone);
        requests
    }

    /// Says something to one client.
    pub(super) fn send(&mut self, number: u64, report: &Report) {
        let client = self.clients.iter_mut().find(|client| client.number == number);
        if let (Some(client), Ok(frame)) = (client, encode(report, REPORT_MAX)) {
            client.queue(&frame);
        }
    }

    /// Says something to all.
    pub(super) fn send_all(&mut self, frame: &[u8]) {
        for client in &mut self.clients {
            client.queue(frame);
        }
        self.write();
    }

    /// Writes what fits into the sockets.
    pub(super) fn write(&mut self) {
        for client in &mut self.clients {
            client.write();
        }
        self.clients.retain(|client| !client.is_gone);
    }
}

impl Client {
    fn read(&mut self, requests: &mut Vec<(u64, Request)>) {
        let mut octets = [0; 16 << 10];
        // Whoever sends without end waits for the next turn.
        for _ in 0..READS_MAX {
            match self.stream.read(&mut octets) {
                Ok(0) => {
                    self.is_gone = true;
                    break;
                }
                Ok(count) => self.input.push(octets.get(..count).unwrap_or_default()),
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => break,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(_) => {
                    self.is_gone = true;
                    break;
                }
            }
            if !self.take(requests) {
                break;
            }
        }
    }

    /// Takes whole requests; false when this client is not listened to any more.
    fn take(&mut self, requests: &mut Vec<(u64, Request)>) -> bool {
        loop {
            match self.input.next(REQUEST_MAX) {
                Ok(Some(request)) => requests.push((self.number, request)),
                Ok(None) => return true,
                Err(error) => {
                    tracing::warn!("a client's request: {error}");
                    let refused = Report::Refused { text: error.to_string() };
                    if let Ok(frame) = encode(&refused, REPORT_MAX) {
                        self.queue(&frame);
                        self.write();
                    }
                    self.is_gone = true;
                    return false;
                }
            }
        }
    }

    fn queue(&mut self, frame: &[u8]) {
        if self.output.len() + frame.len() > OUTPUT_MAX {
            tracing::warn!("a client does not read what it is told, and is given up");
            self.is_gone = true;
            return;
        }
        self.output.extend_from_slice(frame);
    }

    fn write(&mut self) {
        while !self.output.is_empty() && !self.is_gone {
            match self.stream.write(&self.output) {
                Ok(count) => drop(self.output.drain(..count)),
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => break,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(_) => self.is_gone = true,
            }
        }
    }
}

/// Root and the process's own user alone, whatever the socket's mode has become.
fn is_trusted(stream: &UnixStream) -> bool {
    let peer = rustix::net::sockopt::socket_peercred(stream);
    peer.is_ok_and(|peer| peer.uid.is_root() || peer.uid == rustix::process::geteuid())
}

/// Until another attempt to take a client when one has failed.
const ACCEPT_REST: Duration = Duration::from_secs(1);
/// Reads of one client in a turn.
const READS_MAX: usize = 8;
/// Octets that may wait for a client: an overview, and some changes of each session.
const OUTPUT_MAX: usize = 4 << 20;
