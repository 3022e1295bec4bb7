//! All sessions of a process: which are wanted, which packet belongs to which, what is due when.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::net::IpAddr;
use std::num::{NonZeroU8, NonZeroU32};
use std::time::{Duration, Instant};

use crate::config::{Path, SessionSpec, SpecError};
use crate::session::{Action, Jitter, Session, Timing};
use crate::status::{Discarded, PeerStatus, SessionStatus};
use crate::wire::{ControlPacket, DecodeError, PACKET_OCTETS, State};

/// Sessions at most.
pub const SESSIONS_MAX: usize = 1024;

/// A session, by its discriminator.
pub type Id = NonZeroU32;

/// All sessions.
#[derive(Debug)]
pub struct Sessions {
    entries: BTreeMap<Id, Entry>,
    by_path: HashMap<Path, Id>,
    /// Those towards an address, for packets that do not name a session.
    by_remote: HashMap<(IpAddr, bool), Vec<Id>>,
    due: BTreeSet<(Instant, Id)>,
    jitter: Jitter,
    discarded: Discarded,
    actions: Vec<Action>,
}

#[derive(Debug)]
struct Entry {
    spec: SessionSpec,
    session: Session,
    /// Its place in `Sessions::due`.
    due: Option<Instant>,
    /// It is not wanted any more, and the other side is told until then.
    leaves_at: Option<Instant>,
    /// See [`SessionStatus::problem`].
    problem: Option<String>,
}

/// Where a datagram came from.
#[derive(Clone, Copy, Debug)]
pub struct Arrival<'a> {
    /// Its source address.
    pub remote: IpAddr,
    /// Its destination address.
    pub local: IpAddr,
    /// The interface of the socket that took it, where that has one.
    pub interface: Option<&'a str>,
    /// It came to the port of multihop sessions.
    pub multihop: bool,
    /// Its TTL or hop limit on arrival.
    pub ttl: Option<u8>,
}

/// What the caller does.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Output {
    /// Send these octets from the session's socket.
    Send(Id, [u8; PACKET_OCTETS]),
    /// A session is new, or its state, what the other side says or its problem is another one.
    Changed(Id),
    /// The session is gone: close its socket.
    Gone(Id),
}

/// Why a set of sessions is refused.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum SetError {
    /// See [`SESSIONS_MAX`].
    #[error("{0} sessions: {SESSIONS_MAX} is the most")]
    TooMany(usize),
    /// One that cannot be.
    #[error("session with {path}: {error}")]
    Spec {
        /// Which one.
        path: Path,
        /// Why.
        error: SpecError,
    },
    /// Two with the same ends.
    #[error("two sessions with {0}")]
    Twice(Path),
}

impl Sessions {
    /// None; all randomness comes from `jitter`.
    pub fn new(jitter: Jitter) -> Sessions {
        Sessions {
            entries: BTreeMap::new(),
            by_path: HashMap::new(),
            by_remote: HashMap::new(),
            due: BTreeSet::new(),
            jitter,
            discarded: Discarded::default(),
            actions: Vec::new(),
        }
    }

    /// Makes the wanted sessions be all that there are. Equal ones are not touched, others with the same ends
    /// take up their new timing; those that are not wanted any more say AdminDown (RFC 5880 section 6.8.16) until
    /// the other side must have heard it.
    ///
    /// # Errors
    /// The set cannot be, and nothing has changed.
    pub fn set(
        &mut self,
        now: Instant,
        wanted: &[SessionSpec],
        outputs: &mut Vec<Output>,
    ) -> Result<(), SetError> {
        let paths = check(wanted)?;
        let unwanted: Vec<Id> = self
            .entries
            .iter()
            .filter(|(_, entry)| entry.leaves_at.is_none() && !paths.contains(&entry.spec.path))
            .map(|(id, _)| *id)
            .collect();
        for id in unwanted {
            self.retire(now, id, outputs);
        }
        for spec in wanted {
            match self.by_path.get(&spec.path) {
                Some(id) => self.keep(now, *id, spec, outputs),
                None => self.add(now, spec, outputs),
            }
        }
        Ok(())
    }

    /// Ends all: each says AdminDown. They are gone once [`Sessions::is_empty`].
    pub fn retire_all(&mut self, now: Instant, outputs: &mut Vec<Output>) {
        let staying = self.entries.iter().filter(|(_, entry)| entry.leaves_at.is_none());
        for id in staying.map(|(id, _)| *id).collect::<Vec<_>>() {
            self.retire(now, id, outputs);
        }
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.entries.is_empty()
    }

    /// Takes in a datagram.
    pub fn receive(
        &mut self,
        now: Instant,
        arrival: &Arrival<'_>,
        payload: &[u8],
        outputs: &mut Vec<Output>,
    ) {
        // RFC 5881 section 5: what comes from farther away is not looked at.
        if !arrival.multihop && arrival.ttl != Some(TTL_MAX) {
            self.discarded.ttl += 1;
            return;
        }
        let packet = match ControlPacket::decode(payload) {
            Ok(packet) => packet,
            Err(DecodeError::Authenticated) => {
                self.discarded.authenticated += 1;
                return;
            }
            Err(_) => {
                self.discarded.malformed += 1;
                return;
            }
        };
        match self.find(arrival, packet.your_discriminator) {
            Some(id) => self.drive(id, outputs, |session, actions| {
                session.receive(now, &packet, actions);
            }),
            None => self.discarded.unknown += 1,
        }
    }

    /// Does what is due.
    pub fn tick(&mut self, now: Instant, outputs: &mut Vec<Output>) {
        while let Some((at, id)) = self.due.first().copied().filter(|(at, _)| *at <= now) {
            match self.entries.get(&id) {
                Some(entry) if entry.leaves_at.is_some_and(|leaves| leaves <= now) => {
                    self.remove(id, outputs);
                }
                Some(_) => self.drive(id, outputs, |session, actions| {
                    session.tick(now, actions);
                }),
                None => drop(self.due.remove(&(at, id))),
            }
        }
    }

    /// When [`Sessions::tick`] is due.
    pub fn next_deadline(&self) -> Option<Instant> {
        self.due.first().map(|(at, _)| *at)
    }

    /// Those that are wanted, with what they are to be.
    pub fn wanted(&self) -> impl Iterator<Item = (Id, &SessionSpec)> {
        let wanted = self.entries.iter().filter(|(_, entry)| entry.leaves_at.is_none());
        wanted.map(|(id, entry)| (*id, &entry.spec))
    }

    /// The state of a session.
    pub fn state(&self, id: Id) -> Option<State> {
        self.entries.get(&id).map(|entry| entry.session.state())
    }

    /// What is told of a session.
    pub fn status(&self, now: Instant, id: Id) -> Option<SessionStatus> {
        let Entry { spec, session, problem, .. } = self.entries.get(&id)?;
        let millis = |time: Duration| u64::try_from(time.as_millis()).unwrap_or(u64::MAX);
        let remote = session.remote();
        Some(SessionStatus {
            spec: spec.clone(),
            at_ms: None,
            state: session.state(),
            diagnostic: session.diagnostic(),
            for_ms: millis(now.saturating_duration_since(session.since())),
            lost_for_ms: session.lost_at().map(|at| millis(now.saturating_duration_since(at))),
            alive_for_ms: session.alive_at().map(|at| millis(now.saturating_duration_since(at))),
            ups: session.ups(),
            peer: PeerStatus {
                heard: remote.discriminator.is_some(),
                state: remote.state,
                diagnostic: remote.diagnostic,
                control_plane_independent: remote.control_plane_independent,
            },
            send_interval_ms: session.send_interval().map_or(0, millis),
            detection_time_ms: millis(session.detection_time()),
            problem: problem.clone(),
        })
    }

    /// Notes what keeps a session's packets from going, or that nothing does.
    pub fn set_problem(&mut self, id: Id, problem: Option<String>, outputs: &mut Vec<Output>) {
        if let Some(entry) = self.entries.get_mut(&id)
            && entry.problem != problem
        {
            entry.problem = problem;
            outputs.push(Output::Changed(id));
        }
    }

    /// The kernel has discarded packets from more than one hop away.
    pub fn discarded_from_afar(&mut self, packets: u64) {
        self.discarded.ttl += packets;
    }

    /// What was discarded until now.
    pub fn discarded(&self) -> Discarded {
        self.discarded
    }

    /// A random number from the same source.
    pub fn random(&mut self) -> u64 {
        self.jitter.random()
    }

    /// The session that a packet belongs to: the one it names, else by addresses (RFC 5880 section 6.3, RFC 5881
    /// section 3, RFC 5883 section 4). No packet from farther away reaches a session of one hop.
    fn find(&self, arrival: &Arrival<'_>, named: Option<NonZeroU32>) -> Option<Id> {
        if let Some(id) = named {
            let entry = self.entries.get(&id)?;
            return (entry.spec.path.multihop == arrival.multihop).then_some(id);
        }
        let matches = |id: &&Id| {
            let Some(Entry { spec: SessionSpec { path, .. }, .. }) = self.entries.get(*id) else {
                return false;
            };
            path.local.is_none_or(|local| local == arrival.local)
                && path.interface.as_deref().is_none_or(|name| Some(name) == arrival.interface)
        };
        // Of several the one that says most about its packets.
        let exactness = |id: &&Id| {
            self.entries
                .get(*id)
                .map(|entry| (entry.spec.path.interface.is_some(), entry.spec.path.local.is_some()))
        };
        let among = self.by_remote.get(&(arrival.remote, arrival.multihop))?;
        among.iter().filter(matches).max_by_key(exactness).copied()
    }

    fn add(&mut self, now: Instant, spec: &SessionSpec, outputs: &mut Vec<Output>) {
        let id = loop {
            let random = NonZeroU32::new(self.jitter.random() as u32);
            if let Some(id) = random.filter(|id| !self.entries.contains_key(id)) {
                break id;
            }
        };
        let jitter = Jitter::new(self.jitter.random());
        let session = Session::new(now, timing(spec), id, jitter);
        let path = &spec.path;
        self.by_path.insert(path.clone(), id);
        self.by_remote.entry((path.remote, path.multihop)).or_default().push(id);
        let spec = spec.clone();
        let entry = Entry { spec, session, due: None, leaves_at: None, problem: None };
        self.entries.insert(id, entry);
        outputs.push(Output::Changed(id));
        self.note_due(id);
    }

    /// A session that is there and goes on.
    fn keep(&mut self, now: Instant, id: Id, spec: &SessionSpec, outputs: &mut Vec<Output>) {
        let Some(entry) = self.entries.get_mut(&id) else { return };
        let comes_back = entry.leaves_at.take().is_some();
        if !comes_back && entry.spec == *spec {
            return;
        }
        entry.spec = spec.clone();
        self.drive(id, outputs, |session, actions| {
            session.enable(now, actions);
            session.configure(now, timing(spec), actions);
            actions.push(Action::Changed);
        });
    }

    fn retire(&mut self, now: Instant, id: Id, outputs: &mut Vec<Output>) {
        let Some(entry) = self.entries.get_mut(&id) else { return };
        // RFC 5880 section 6.8.16: for at least a detection time, and so that a second packet goes.
        let long = entry.session.detection_time().clamp(FAREWELL_MIN, FAREWELL_MAX);
        entry.leaves_at = Some(now + long);
        self.drive(id, outputs, |session, actions| session.disable(now, actions));
    }

    fn remove(&mut self, id: Id, outputs: &mut Vec<Output>) {
        let Some(entry) = self.entries.remove(&id) else { return };
        if let Some(at) = entry.due {
            self.due.remove(&(at, id));
        }
        let path = entry.spec.path;
        self.by_path.remove(&path);
        if let Some(among) = self.by_remote.get_mut(&(path.remote, path.multihop)) {
            among.retain(|other| *other != id);
            if among.is_empty() {
                self.by_remote.remove(&(path.remote, path.multihop));
            }
        }
        outputs.push(Output::Gone(id));
    }

    fn drive(
        &mut self,
        id: Id,
        outputs: &mut Vec<Output>,
        handle: impl FnOnce(&mut Session, &mut Vec<Action>),
    ) {
        let Some(entry) = self.entries.get_mut(&id) else { return };
        handle(&mut entry.session, &mut self.actions);
        let output = |action| match action {
            Action::Send(packet) => Output::Send(id, packet.encode()),
            Action::Changed => Output::Changed(id),
        };
        outputs.extend(self.actions.drain(..).map(output));
        self.note_due(id);
    }

    fn note_due(&mut self, id: Id) {
        let Some(entry) = self.entries.get_mut(&id) else { return };
        let due = match (entry.session.next_deadline(), entry.leaves_at) {
            (Some(deadline), Some(leaves)) => Some(deadline.min(leaves)),
            (deadline, leaves) => deadline.or(leaves),
        };
        if due != entry.due {
            if let Some(at) = entry.due {
                self.due.remove(&(at, id));
            }
            if let Some(at) = due {
                self.due.insert((at, id));
            }
            entry.due = due;
        }
    }
}

fn check(wanted: &[SessionSpec]) -> Result<BTreeSet<&Path>, SetError> {
    if wanted.len() > SESSIONS_MAX {
        return Err(SetError::TooMany(wanted.len()));
    }
    let mut paths = BTreeSet::new();
    for spec in wanted {
        spec.check().map_err(|error| SetError::Spec { path: spec.path.clone(), error })?;
        if !paths.insert(&spec.path) {
            return Err(SetError::Twice(spec.path.clone()));
        }
    }
    Ok(paths)
}

fn timing(spec: &SessionSpec) -> Timing {
    // A checked specification has no 0.
    let multiplier = NonZeroU8::new(spec.multiplier).unwrap_or(NonZeroU8::MIN);
    Timing { interval: spec.interval(), multiplier }
}

const TTL_MAX: u8 = 255;
/// For how long a session that ends says so, at least: two packets at the slow interval of a session
/// that is not Up.
const FAREWELL_MIN: Duration = Duration::from_millis(1100);
/// At most: what ends a process waits for it.
const FAREWELL_MAX: Duration = Duration::from_secs(3);
