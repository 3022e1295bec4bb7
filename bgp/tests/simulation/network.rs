//! The network: TCP connections between hosts, in octets.
//!
//! Each direction of a connection is a pipe: what the application has queued, what flies, what the
//! receiver has not read. Octets of one pipe stay in order whatever happens; different pipes overtake
//! each other freely. A silent link delivers nothing and tells nobody, as a cable that is cut behind
//! a switch; what was sent comes when it is back, as TCP sends it again.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::time::{Duration, Instant};

use bytes::{Bytes, BytesMut};

use super::dice::Dice;

/// A connection's name, never used twice.
pub type Wire = u64;
/// One end of a connection: 0 for who connected, 1 for who accepted.
pub type Side = usize;

#[derive(Debug)]
pub struct Network {
    pub connections: BTreeMap<Wire, Connection>,
    links: BTreeMap<(usize, usize), Link>,
    /// Links that deliver nothing, with a reason each so that two may overlap.
    silent: BTreeSet<(usize, usize, u64)>,
    next: Wire,
    window: usize,
    /// Octets of routes that may be queued before a writer is full.
    pub room: usize,
    pub notices: Vec<Notice>,
}

#[derive(Debug)]
struct Link {
    latency: Duration,
    octets_per_ms: usize,
}

#[derive(Debug)]
pub struct Connection {
    pub hosts: [usize; 2],
    pub ends: [End; 2],
    /// What each side sends.
    pipes: [Pipe; 2],
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum End {
    Open,
    /// The application has let go; the rest is written until then.
    Closing(Instant),
    Gone,
}

#[derive(Debug, Default)]
struct Pipe {
    queue: VecDeque<(Bytes, usize)>,
    /// Octets of routes in the queue.
    counted: usize,
    flying: VecDeque<(Instant, Segment)>,
    flying_octets: usize,
    last_arrival: Option<Instant>,
    received: BytesMut,
    /// How the receiver sees the end, once it has arrived.
    ended: Option<Option<String>>,
    finished: bool,
    /// Octets that the kernel has taken since the last look.
    moved: bool,
}

#[derive(Debug)]
enum Segment {
    Octets(Bytes),
    Fin,
    Reset,
}

/// Something that a host has to look at.
#[derive(Clone, Copy, Debug)]
pub enum Notice {
    /// Octets or the end have come.
    Readable(usize),
    /// A queue that was half full is not any more.
    Writable(Wire, Side),
}

impl Network {
    pub fn new(hosts: usize, dice: &mut Dice) -> Network {
        let mut links = BTreeMap::new();
        for a in 0..hosts {
            for b in a + 1..hosts {
                let latency =
                    Duration::from_micros(100 + dice.next() % dice.pick(&[500, 5_000, 80_000]));
                links.insert((a, b), Link { latency, octets_per_ms: dice.pick(&[2, 20, 2_000]) });
            }
        }
        let window = dice.pick(&[64, 700, 5_000, 60_000]);
        Network {
            connections: BTreeMap::new(),
            links,
            silent: BTreeSet::new(),
            next: 1,
            window,
            room: dice.pick(&[200, 2_000, 100_000]),
            notices: Vec::new(),
        }
    }

    pub fn latency(&self, a: usize, b: usize) -> Duration {
        self.links.get(&(a.min(b), a.max(b))).map_or(Duration::ZERO, |link| link.latency)
    }

    pub fn is_silent(&self, a: usize, b: usize) -> bool {
        let (a, b) = (a.min(b), a.max(b));
        self.silent.range((a, b, 0)..=(a, b, u64::MAX)).next().is_some()
    }

    pub fn silence(&mut self, a: usize, b: usize, reason: u64) {
        self.silent.insert((a.min(b), a.max(b), reason));
    }

    pub fn end_silence(&mut self, reason: u64) {
        self.silent.retain(|(_, _, r)| *r != reason);
    }

    pub fn end_all_silence(&mut self) {
        self.silent.clear();
    }

    pub fn establish(&mut self, caller: usize, called: usize) -> Wire {
        let wire = self.next;
        self.next += 1;
        let connection = Connection {
            hosts: [caller, called],
            ends: [End::Open; 2],
            pipes: [Pipe::default(), Pipe::default()],
        };
        self.connections.insert(wire, connection);
        wire
    }

    /// Queues octets; `counted` of them are routes.
    pub fn send(&mut self, now: Instant, wire: Wire, side: Side, octets: Bytes, counted: usize) {
        let Some(connection) = self.connections.get_mut(&wire) else { return };
        let pipe = &mut connection.pipes[side];
        if connection.ends[side] == End::Open && !pipe.finished {
            pipe.counted += counted;
            pipe.queue.push_back((octets, counted));
        }
        self.pump(now, wire, side);
    }

    /// Octets of routes that may be queued now.
    pub fn room(&self, wire: Wire, side: Side) -> usize {
        let queued = self.connections.get(&wire).map_or(0, |c| c.pipes[side].counted);
        self.room.saturating_sub(queued)
    }

    pub fn has_unread(&self, wire: Wire, side: Side) -> bool {
        self.connections.get(&wire).is_some_and(|c| !c.pipes[1 - side].received.is_empty())
    }

    /// Reads up to `max` octets, and the end once all is read.
    pub fn read(
        &mut self,
        now: Instant,
        wire: Wire,
        side: Side,
        max: usize,
    ) -> (BytesMut, Option<Option<String>>) {
        let Some(connection) = self.connections.get_mut(&wire) else {
            return (BytesMut::new(), Some(None));
        };
        let pipe = &mut connection.pipes[1 - side];
        let take = pipe.received.len().min(max);
        let octets = pipe.received.split_to(take);
        let ended = pipe.received.is_empty().then(|| pipe.ended.clone()).flatten();
        self.pump(now, wire, 1 - side);
        (octets, ended)
    }

    /// The application lets go: what is queued is written for a while, then the end is told.
    pub fn close(&mut self, now: Instant, wire: Wire, side: Side) {
        let Some(connection) = self.connections.get_mut(&wire) else { return };
        if connection.ends[side] == End::Open {
            connection.ends[side] = End::Closing(now + FAREWELL_WAIT);
            connection.pipes[1 - side].received.clear();
            self.pump(now, wire, side);
            self.pump(now, wire, 1 - side);
        }
    }

    /// The application breaks the connection off.
    pub fn abort(&mut self, now: Instant, wire: Wire, side: Side) {
        let Some(connection) = self.connections.get_mut(&wire) else { return };
        let [a, b] = connection.hosts;
        connection.ends[side] = End::Gone;
        connection.pipes[1 - side].received.clear();
        let pipe = &mut connection.pipes[side];
        pipe.queue.clear();
        if !std::mem::replace(&mut pipe.finished, true) {
            let at = pipe.last_arrival.unwrap_or(now).max(now + self.latency(a, b));
            let pipe = self.connections.get_mut(&wire).map(|c| &mut c.pipes[side]);
            pipe.into_iter().for_each(|pipe| pipe.flying.push_back((at, Segment::Reset)));
        }
    }

    /// Whether octets have left an end's queue since the last look, or none wait there.
    pub fn moves(&mut self, wire: Wire, side: Side) -> bool {
        let Some(connection) = self.connections.get_mut(&wire) else { return true };
        let pipe = &mut connection.pipes[side];
        std::mem::take(&mut pipe.moved) || pipe.queue.is_empty()
    }

    /// The process or, without a word to anybody, the host of an end is no more.
    pub fn kill(&mut self, now: Instant, host: usize, silently: bool) {
        for wire in self.connections.keys().copied().collect::<Vec<_>>() {
            let Some(connection) = self.connections.get_mut(&wire) else { continue };
            let Some(side) = connection.hosts.iter().position(|h| *h == host) else { continue };
            let closing = matches!(connection.ends[side], End::Closing(_));
            connection.ends[side] = End::Gone;
            connection.pipes[1 - side].received.clear();
            let pipe = &mut connection.pipes[side];
            if silently {
                pipe.queue.clear();
                pipe.flying.clear();
                pipe.finished = true;
            } else if !closing {
                pipe.queue.clear();
            }
            self.pump(now, wire, side);
        }
    }

    /// Both ends learn that the connection broke.
    pub fn cut(&mut self, now: Instant, wire: Wire) {
        let Some(connection) = self.connections.get_mut(&wire) else { return };
        for pipe in &mut connection.pipes {
            pipe.queue.clear();
            pipe.flying.clear();
            pipe.flying_octets = 0;
            pipe.finished = true;
            pipe.flying.push_back((now, Segment::Reset));
        }
    }

    /// Moves what the window has room for from the queue onto the way.
    fn pump(&mut self, now: Instant, wire: Wire, side: Side) {
        let (window, low) = (self.window, self.room / 2);
        let Some(connection) = self.connections.get_mut(&wire) else { return };
        let [a, b] = connection.hosts;
        let Some(link) = self.links.get(&(a.min(b), a.max(b))) else { return };
        let end = connection.ends[side];
        let pipe = &mut connection.pipes[side];
        let before = pipe.counted;
        while let Some((octets, counted)) = pipe.queue.front_mut() {
            let room = window.saturating_sub(pipe.flying_octets + pipe.received.len());
            if room == 0 {
                break;
            }
            let piece = octets.split_to(room.min(octets.len()));
            let done = octets.is_empty();
            if done {
                pipe.counted -= *counted;
                pipe.queue.pop_front();
            }
            let wait = Duration::from_micros((1000 * piece.len() / link.octets_per_ms) as u64);
            let at = pipe.last_arrival.unwrap_or(now).max(now + link.latency) + wait;
            pipe.last_arrival = Some(at);
            pipe.flying_octets += piece.len();
            pipe.moved = true;
            pipe.flying.push_back((at, Segment::Octets(piece)));
        }
        if before >= low && pipe.counted < low {
            self.notices.push(Notice::Writable(wire, side));
        }
        if pipe.queue.is_empty() && end != End::Open && !pipe.finished {
            pipe.finished = true;
            let at = pipe.last_arrival.unwrap_or(now).max(now + link.latency);
            pipe.flying.push_back((at, Segment::Fin));
        }
    }

    /// When something arrives or an end has waited long enough.
    pub fn next_deadline(&self) -> Option<Instant> {
        let connections = self.connections.values();
        let times = connections.flat_map(|c| {
            let silent = self.is_silent(c.hosts[0], c.hosts[1]);
            let arrivals = c.pipes.iter().filter(move |_| !silent);
            let arrivals = arrivals.filter_map(|p| p.flying.front().map(|(at, _)| *at));
            arrivals.chain(c.ends.iter().filter_map(|end| match end {
                End::Closing(until) => Some(*until),
                _ => None,
            }))
        });
        times.min()
    }

    /// Delivers everything that is due.
    pub fn advance(&mut self, now: Instant) {
        let wires: Vec<Wire> = self.connections.keys().copied().collect();
        for wire in wires {
            for side in 0..2 {
                self.deliver(now, wire, side);
            }
            let Some(connection) = self.connections.get_mut(&wire) else { continue };
            for side in 0..2 {
                if matches!(connection.ends[side], End::Closing(until) if until <= now) {
                    connection.ends[side] = End::Gone;
                    connection.pipes[side].queue.clear();
                }
            }
            for side in 0..2 {
                self.pump(now, wire, side);
            }
            let Some(connection) = self.connections.get(&wire) else { continue };
            let over = connection.ends == [End::Gone; 2]
                && connection.pipes.iter().all(|pipe| pipe.flying.is_empty());
            if over {
                self.connections.remove(&wire);
            }
        }
    }

    fn deliver(&mut self, now: Instant, wire: Wire, side: Side) {
        let Some([a, b]) = self.connections.get(&wire).map(|c| c.hosts) else { return };
        if self.is_silent(a, b) {
            return;
        }
        let latency = self.latency(a, b);
        let Some(connection) = self.connections.get_mut(&wire) else { return };
        while connection.pipes[side].flying.front().is_some_and(|(at, _)| *at <= now) {
            let Some((_, segment)) = connection.pipes[side].flying.pop_front() else { break };
            let receiver = connection.ends[1 - side];
            let pipe = &mut connection.pipes[side];
            match segment {
                Segment::Octets(octets) => {
                    pipe.flying_octets = pipe.flying_octets.saturating_sub(octets.len());
                    match receiver {
                        End::Open => pipe.received.extend_from_slice(&octets),
                        // Read and thrown away, so that the farewell is not lost.
                        End::Closing(_) => {}
                        End::Gone => {
                            let back = &mut connection.pipes[1 - side];
                            back.flying.push_back((now + latency, Segment::Reset));
                        }
                    }
                }
                Segment::Fin => {
                    pipe.ended.get_or_insert(None);
                }
                Segment::Reset => {
                    pipe.ended.get_or_insert(Some("connection reset by peer".to_owned()));
                    let back = &mut connection.pipes[1 - side];
                    back.queue.clear();
                    back.counted = 0;
                    back.finished = true;
                }
            }
            self.notices.push(Notice::Readable(connection.hosts[1 - side]));
        }
        self.pump(now, wire, side);
    }

    /// Whether nothing is queued, flies or waits to be read.
    pub fn is_idle(&self) -> bool {
        self.connections.values().all(|c| {
            c.pipes
                .iter()
                .all(|p| p.queue.is_empty() && p.flying.is_empty() && p.received.is_empty())
        })
    }
}

/// As the speaker has it: how long a connection may take to say its last words.
const FAREWELL_WAIT: Duration = Duration::from_secs(2);
