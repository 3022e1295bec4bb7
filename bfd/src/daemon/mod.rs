//! The process `cairn bfd`: one thread that waits for datagrams, clients and deadlines.
//!
//! ```text
//!  network ──datagrams──► sockets ──► Sessions ──► sockets ──datagrams──► network
//!                                        ▲ │
//!  clients ──wanted sessions─────────────┘ └─states, changes──► clients
//! ```
//!
//! Datagrams go before all else, and before the judgement that a peer is silent: what has arrived while the
//! machine was busy counts. Nothing that a client or a peer sends makes it wait or grow beyond bounds; it uses no
//! disk and no API. It knows nothing of BGP and of Kubernetes: it has nothing to be upgraded for when these are.

mod clients;
mod datagram;
mod priority;
mod sockets;

use std::collections::HashMap;
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::net::UnixListener;
use std::time::{Duration, Instant};

use rustix::event::{PollFd, PollFlags, Timespec};

use crate::control::{Overview, REPORT_MAX, Report, Request, encode};
use crate::session::Jitter;
use crate::sessions::{Id, Output, Sessions};
use crate::status::{Discarded, SessionStatus, now_ms};
use crate::wire::State;

use clients::Clients;
use sockets::Sockets;

/// The running process.
#[derive(Debug)]
struct Daemon {
    sessions: Sessions,
    sockets: Sockets,
    clients: Clients,
    outputs: Vec<Output>,
    priority_problem: Option<String>,
    /// What the log has heard of each session.
    logged_states: HashMap<Id, (State, Option<String>)>,
    /// What was discarded when it was logged last, and when it may be again.
    logged: (Discarded, Instant),
}

/// Serves the clients of `listener` until `stop` can be read or is closed; then each session says AdminDown, and
/// the function returns when the peers must have heard it. It takes a real-time priority for the calling thread
/// if that is permitted. `seed` is where all randomness comes from.
///
/// # Errors
/// The kernel refuses to wait.
pub fn run(listener: UnixListener, stop: OwnedFd, seed: u64) -> io::Result<()> {
    listener.set_nonblocking(true)?;
    let priority_problem = priority::raise().err();
    match &priority_problem {
        None => tracing::info!("runs with real-time priority (SCHED_FIFO)"),
        Some(problem) => tracing::warn!("{problem}"),
    }
    let now = Instant::now();
    let mut daemon = Daemon {
        sessions: Sessions::new(Jitter::new(seed)),
        sockets: Sockets::new(now),
        clients: Clients::new(listener),
        outputs: Vec::new(),
        priority_problem,
        logged_states: HashMap::new(),
        logged: (Discarded::default(), now),
    };
    while !daemon.turn(Some(stop.as_fd()))? {}
    tracing::info!("stops: the peers are told that it is by an operator's will (AdminDown)");
    daemon.sessions.retire_all(Instant::now(), &mut daemon.outputs);
    daemon.deliver(Instant::now());
    while !daemon.sessions.is_empty() {
        daemon.turn(None)?;
    }
    Ok(())
}

impl Daemon {
    /// Waits for something to do and does it; true when it is to stop.
    fn turn(&mut self, stop: Option<BorrowedFd<'_>>) -> io::Result<bool> {
        let stopping = self.wait(stop)?;
        let now = Instant::now();
        self.sockets.receive(|arrival, payload| {
            self.sessions.receive(now, &arrival, payload, &mut self.outputs);
        });
        self.sessions.tick(Instant::now(), &mut self.outputs);
        self.deliver(now);
        if stop.is_some() {
            self.serve(now);
        }
        if self.sockets.check_due(now) {
            self.sockets.sync(now, &mut self.sessions, &mut self.outputs);
            self.sessions.discarded_from_afar(self.sockets.dropped());
            self.deliver(now);
        }
        self.log_discarded(now);
        Ok(stopping)
    }

    /// Waits until a descriptor is ready or a deadline has come.
    fn wait(&self, stop: Option<BorrowedFd<'_>>) -> io::Result<bool> {
        let mut polled: Vec<PollFd<'_>> = Vec::new();
        polled.extend(stop.map(|stop| PollFd::from_borrowed_fd(stop, PollFlags::IN)));
        polled
            .extend(self.sockets.receivers().map(|fd| PollFd::from_borrowed_fd(fd, PollFlags::IN)));
        if stop.is_some() {
            self.clients.poll_into(&mut polled);
        }
        let check = self.sockets.check_at();
        let due = self.sessions.next_deadline().into_iter().chain(self.clients.rests_until());
        let until = due.fold(check, Instant::min);
        let left = until.saturating_duration_since(Instant::now());
        match rustix::event::poll(&mut polled, Some(&timespec(left))) {
            Ok(_) | Err(rustix::io::Errno::INTR) => {}
            Err(errno) => return Err(errno.into()),
        }
        Ok(stop.is_some() && polled.first().is_some_and(|first| !first.revents().is_empty()))
    }

    /// Listens to clients and does what they want.
    fn serve(&mut self, now: Instant) {
        for client in self.clients.accept(now) {
            let overview = Report::Overview(self.overview(now));
            self.clients.send(client, &overview);
        }
        for (client, Request::Want { sessions }) in self.clients.read() {
            let report = match self.sessions.set(now, &sessions, &mut self.outputs) {
                Ok(()) => {
                    self.sockets.sync(now, &mut self.sessions, &mut self.outputs);
                    Report::Taken
                }
                Err(error) => Report::Refused { text: error.to_string() },
            };
            self.clients.send(client, &report);
            self.deliver(now);
        }
        self.clients.write();
    }

    /// Does what the sessions say.
    fn deliver(&mut self, now: Instant) {
        let mut outputs = std::mem::take(&mut self.outputs);
        for output in outputs.drain(..) {
            match output {
                Output::Send(id, octets) => {
                    let problem = self.sockets.send(id, &octets);
                    if let Some(problem) = problem {
                        self.sessions.set_problem(id, problem, &mut self.outputs);
                    }
                }
                Output::Changed(id) => self.tell(now, id),
                Output::Gone(id) => {
                    self.sockets.close(id);
                    self.logged_states.remove(&id);
                }
            }
        }
        // Of problems that have come or gone with a packet.
        for output in std::mem::replace(&mut self.outputs, outputs) {
            if let Output::Changed(id) = output {
                self.tell(now, id);
            }
        }
    }

    fn tell(&mut self, now: Instant, id: Id) {
        let Some(status) = self.status(now, id) else { return };
        let state = (status.state, status.problem.clone());
        if self.logged_states.get(&id) != Some(&state) {
            self.logged_states.insert(id, state);
            log(&status);
        }
        if let Ok(frame) = encode(&Report::Changed(Box::new(status)), REPORT_MAX) {
            self.clients.send_all(&frame);
        }
    }

    fn status(&self, now: Instant, id: Id) -> Option<SessionStatus> {
        Some(SessionStatus { at_ms: Some(now_ms()), ..self.sessions.status(now, id)? })
    }

    fn overview(&self, now: Instant) -> Overview {
        let wanted = self.sessions.wanted();
        Overview {
            sessions: wanted.filter_map(|(id, _)| self.status(now, id)).collect(),
            discarded: self.sessions.discarded(),
            priority_problem: self.priority_problem.clone(),
        }
    }

    /// Says now and then that packets are discarded, however many there are.
    fn log_discarded(&mut self, now: Instant) {
        let discarded = self.sessions.discarded();
        let (logged, at) = self.logged;
        if discarded != logged && at <= now {
            tracing::warn!(?discarded, "packets are discarded (counted since the start)");
            self.logged = (discarded, now + DISCARDED_LOG_INTERVAL);
        }
    }
}

fn log(status: &SessionStatus) {
    let (path, state) = (&status.spec.path, status.state);
    match &status.problem {
        Some(problem) => tracing::warn!("{path}: {state:?}: {problem}"),
        None if state == State::Up || status.lost_for_ms.is_some() => {
            tracing::info!("{path}: {state:?}: {}", status.diagnostic);
        }
        None => tracing::debug!("{path}: {state:?}: {}", status.diagnostic),
    }
}

fn timespec(duration: Duration) -> Timespec {
    // A day is as good as longer, and fits.
    let duration = duration.min(Duration::from_secs(86_400));
    Timespec { tv_sec: duration.as_secs().cast_signed(), tv_nsec: duration.subsec_nanos().into() }
}

/// Between two log lines on discarded packets.
const DISCARDED_LOG_INTERVAL: Duration = Duration::from_secs(60);
