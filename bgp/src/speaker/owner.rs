//! The task that owns sessions and RIB.

use std::collections::{BTreeMap, BTreeSet};
use std::hash::{BuildHasher, RandomState};
use std::io;
use std::sync::Arc;
use std::time::{Duration, Instant, SystemTime};

use foldhash::fast::FixedState;
use hashbrown::HashMap;
use tokio::net::TcpStream;
use tokio::sync::{mpsc, watch};
use tokio::time::{sleep_until, timeout};

use crate::config::{PeerConfig, PeerName, SpeakerConfig};
use crate::prefix::Families;
use crate::rib::{Output, PeerId, PeerSession, Rib, RibConfig, RibPeerConfig};
use crate::session::{
    Action, ConnectionId, DownReason, Event, Jitter, Message, Restart, Session, SessionConfig,
    SessionState, StopReason,
};
use crate::status::SpeakerSnapshot;
use crate::wire::{RefreshKind, keepalive};

use super::connection::{Connection, Item, Mailbox, ReaderConfig};
use super::listener::Listeners;
use super::peer::{Peer, Throttle};
use super::{
    Command, Endpoints, FAREWELL_WAIT, FIB_BATCH_CHANGES_MAX, FibBatch, INPUTS_MAX, Shutdown,
    SpeakerOptions, socket,
};

/// A peer in the life of a speaker; never used twice, so that what arrives late finds nobody.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub(super) struct PeerKey(u64);

/// What other tasks tell the owner.
#[derive(Debug)]
pub(super) enum Input {
    Accepted { stream: TcpStream, endpoints: Endpoints },
    Connection { peer: PeerKey, connection: ConnectionId, kind: InputKind },
}

/// What is told about one connection.
#[derive(Debug)]
pub(super) enum InputKind {
    Connected(io::Result<TcpStream>),
    Read(Vec<Item>),
    Writable,
}

pub(super) struct Owner {
    config: SpeakerConfig,
    wanted: watch::Receiver<SpeakerConfig>,
    commands: mpsc::Receiver<Command>,
    inputs: mpsc::Receiver<Input>,
    mailbox: mpsc::Sender<Input>,
    changes: watch::Sender<u64>,
    fib: Option<mpsc::Sender<FibBatch>>,
    /// Whether the feed knows that the start's deferral is over.
    fib_in_sync: bool,
    restart: Restart,
    rib: Rib,
    peers: BTreeMap<PeerKey, Peer>,
    by_rib_id: HashMap<PeerId, PeerKey, FixedState>,
    listeners: Listeners,
    next_key: u64,
    seed: u64,
    changed: bool,
    /// Prefixes of all batches so far, to bound the work of a turn.
    prefixes_taken: usize,
    output: Vec<Output>,
}

/// How an attempt to bring a session up ended, for the log.
#[derive(Clone, Copy)]
enum Attempt {
    /// One side does not want the other: somebody has to correct something.
    Refused,
    /// There is nobody to talk to, which passes.
    Failed,
}

impl Attempt {
    /// What an event that brings an error means; malformed messages are told where they are read.
    fn of(event: &Event) -> Option<Attempt> {
        match event {
            Event::Received { .. } => Some(Attempt::Refused),
            Event::ConnectFailed { .. } | Event::Lost { .. } | Event::Tick => Some(Attempt::Failed),
            _ => None,
        }
    }
}

enum Wake {
    Configured,
    Command(Option<Command>),
    Input(Option<Input>),
    FibRoom,
    FibGone,
    Deadline,
}

impl Owner {
    pub(super) fn new(
        wanted: watch::Receiver<SpeakerConfig>,
        commands: mpsc::Receiver<Command>,
        changes: watch::Sender<u64>,
        fib: mpsc::Sender<FibBatch>,
        options: SpeakerOptions,
    ) -> Owner {
        let config = wanted.borrow().clone();
        let (mailbox, inputs) = mpsc::channel(INPUTS_MAX);
        let seed = RandomState::new().hash_one(config.router_id);
        let deferral = Duration::from_secs(config.selection_deferral_secs.into());
        let rib = Rib::new(RibConfig {
            router_id: config.router_id,
            multipath: config.multipath,
            seed,
            deferral_until: now() + deferral,
            restarting: options.restarting,
        });
        Owner {
            wanted,
            commands,
            inputs,
            mailbox,
            changes,
            fib: Some(fib),
            fib_in_sync: false,
            restart: Restart {
                restarting: options.restarting,
                forwarding_preserved: options.forwarding_preserved,
            },
            rib,
            peers: BTreeMap::new(),
            by_rib_id: HashMap::default(),
            listeners: Listeners::default(),
            next_key: 0,
            seed,
            changed: false,
            prefixes_taken: 0,
            output: Vec::new(),
            config,
        }
    }

    /// Runs until it is told to end or nobody is left to tell it anything.
    pub(super) async fn run(mut self) {
        let config = self.config.clone();
        self.rib.set_originated(&config.originate);
        self.listeners.configure(now(), &config, &self.mailbox);
        for (name, peer) in &config.peers {
            self.add_peer(name, peer);
        }
        loop {
            let settled = self.settle();
            if !settled {
                tokio::task::yield_now().await;
            }
            match self.wait(settled).await {
                Wake::Configured => self.configure(),
                Wake::Command(Some(Command::Shutdown(how, done))) => {
                    self.end(how).await;
                    let _ = done.send(());
                    return;
                }
                Wake::Command(Some(command)) => self.answer(command),
                Wake::Command(None) => {
                    let text = "the speaker's last user has gone".to_owned();
                    return self.end(Shutdown::Cease { text }).await;
                }
                Wake::Input(Some(first)) => self.take_input(first),
                Wake::FibRoom => self.feed_fib(),
                Wake::FibGone => self.fib = None,
                Wake::Input(None) | Wake::Deadline => {}
            }
            // Whatever it was: configurations and questions that keep coming leave a turn to peers.
            self.take_inputs();
        }
    }

    async fn wait(&mut self, settled: bool) -> Wake {
        let deadline = if settled { self.next_deadline() } else { Some(now()) };
        let feeds = self.rib.fib_pending() || self.rib.in_sync() != self.fib_in_sync;
        let fib = self.fib.clone();
        let room = async {
            match &fib {
                Some(fib) => fib.reserve().await.map(drop),
                None => std::future::pending().await,
            }
        };
        let at = tokio::time::Instant::from_std(deadline.unwrap_or_else(now));
        // In no fixed order: what is ready without end may not keep the rest waiting.
        tokio::select! {
            Ok(()) = self.wanted.changed() => Wake::Configured,
            command = self.commands.recv() => Wake::Command(command),
            room = room, if feeds => match room {
                Ok(()) => Wake::FibRoom,
                Err(_) => Wake::FibGone,
            },
            input = self.inputs.recv() => Wake::Input(input),
            () = sleep_until(at), if deadline.is_some() => Wake::Deadline,
        }
    }

    fn next_deadline(&self) -> Option<Instant> {
        let sessions = self.peers.values().filter_map(|peer| peer.session.next_deadline());
        sessions.chain(self.rib.next_deadline()).chain(self.listeners.next_deadline()).min()
    }

    /// Does what time and earlier events have made due; false when other tasks have to run before
    /// there can be more.
    fn settle(&mut self) -> bool {
        let now = now();
        self.tick_sessions(now);
        self.rib.tick(now);
        if self.rib.in_sync() && (self.restart.restarting || !self.restart.forwarding_preserved) {
            // From here on only connections end, not this speaker's forwarding.
            self.restart = Restart { restarting: false, forwarding_preserved: true };
            for peer in self.peers.values_mut() {
                peer.session.set_restart(self.restart);
            }
        }
        self.changed |= self.listeners.tick(now, &self.mailbox);
        let flushed = self.flush();
        if self.fib.is_none() {
            // Nobody wants it: drop it instead of letting it grow.
            while self.rib.fib_pending() {
                self.rib.take_fib(FIB_BATCH_CHANGES_MAX);
            }
        }
        if std::mem::take(&mut self.changed) {
            self.changes.send_modify(|generation| *generation += 1);
        }
        flushed
    }

    fn tick_sessions(&mut self, now: Instant) {
        let due: Vec<PeerKey> = self
            .peers
            .iter()
            .filter(|(_, peer)| peer.session.next_deadline().is_some_and(|at| at <= now))
            .map(|(key, _)| *key)
            .collect();
        for key in due {
            // The hold timer may only fire when nothing of the peer is left to read: neither in our
            // queue nor in the socket. After a long pause of this process reads come before deadlines.
            if let Some(peer) = self.peers.get_mut(&key)
                && let Some(expired) = peer.session.hold_expired(now)
                && peer.connections.get(&expired).is_some_and(Connection::has_unread)
            {
                peer.session.put_off_hold(now);
            }
            self.handle(key, Event::Tick);
        }
    }

    /// Encodes what peers can take and hands it to their writers; false when there may be more.
    fn flush(&mut self) -> bool {
        let mut output = std::mem::take(&mut self.output);
        let mut done = false;
        for _ in 0..FLUSHES_PER_TURN_MAX {
            self.rib.flush(&mut output);
            done = output.is_empty();
            if done {
                break;
            }
            for Output { peer: rib_id, chunk } in output.drain(..) {
                let peer = self.by_rib_id.get(&rib_id).and_then(|key| self.peers.get(key));
                let connection = peer
                    .and_then(|peer| peer.connections.get(&peer.session.established()?.connection));
                if let Some(connection) = connection {
                    connection.send_chunk(chunk);
                    // Only a queue that is really full may stop the RIB: it is what reports room.
                    self.rib.set_room(rib_id, connection.room());
                }
            }
        }
        self.output = output;
        done
    }

    fn feed_fib(&mut self) {
        let Some(fib) = &self.fib else { return };
        let Ok(permit) = fib.try_reserve() else { return };
        let changes = self.rib.take_fib(FIB_BATCH_CHANGES_MAX);
        let in_sync = self.rib.in_sync() && !self.rib.fib_pending();
        self.fib_in_sync = in_sync;
        permit.send(FibBatch { changes, in_sync });
    }

    /// Takes in what has arrived, up to a bound, so that one flush serves many inputs.
    fn take_inputs(&mut self) {
        let before = self.prefixes_taken;
        for _ in 0..INPUTS_PER_TURN_MAX {
            if self.prefixes_taken.wrapping_sub(before) >= PREFIXES_PER_TURN_MAX {
                break;
            }
            let Ok(input) = self.inputs.try_recv() else { break };
            self.take_input(input);
        }
    }

    fn take_input(&mut self, input: Input) {
        match input {
            Input::Accepted { stream, endpoints } => self.accepted(stream, endpoints),
            Input::Connection { peer, connection, kind } => match kind {
                InputKind::Connected(result) => self.connected(peer, connection, result),
                InputKind::Read(items) => self.read(peer, connection, items),
                InputKind::Writable => self.update_room(peer),
            },
        }
    }

    fn accepted(&mut self, stream: TcpStream, endpoints: Endpoints) {
        let (local, remote) = (endpoints.local.ip(), endpoints.remote.ip());
        let found = self.peers.iter_mut().find(|(_, peer)| peer.accepts(local, remote));
        let Some((key, peer)) = found else {
            tracing::debug!(%remote, %local, "connection from an address without a peer: closed");
            return;
        };
        let key = *key;
        let sort = peer.session.config().sort();
        if let Err(error) =
            socket::set_ttl(std::os::fd::AsRawFd::as_raw_fd(&stream), &peer.config, sort)
        {
            tracing::warn!(peer = %peer.name, %error, "cannot set the TTL of a connection");
            return;
        }
        if !socket::came_near_enough(&stream, &peer.config) {
            let peer = &peer.name;
            tracing::debug!(%peer, %remote, "connection from too many hops away: closed");
            return;
        }
        let connection = peer.session.next_connection();
        let addresses = self.start_connection(key, connection, stream, endpoints);
        if let Some(addresses) = addresses {
            self.handle(key, Event::Accepted { connection, addresses });
        }
    }

    fn connected(&mut self, key: PeerKey, connection: ConnectionId, result: io::Result<TcpStream>) {
        let Some(peer) = self.peers.get_mut(&key) else { return };
        if peer.connecting.remove(&connection).is_none() {
            return;
        }
        let endpoints = result.and_then(|stream| {
            let endpoints = Endpoints { local: stream.local_addr()?, remote: stream.peer_addr()? };
            Ok((stream, endpoints))
        });
        match endpoints {
            Ok((stream, endpoints)) => {
                let addresses = self.start_connection(key, connection, stream, endpoints);
                if let Some(addresses) = addresses {
                    self.handle(key, Event::Connected { connection, addresses });
                }
            }
            Err(error) => {
                let error = explain_connect_error(&peer.config, &error);
                self.handle(key, Event::ConnectFailed { connection, error });
            }
        }
    }

    fn start_connection(
        &mut self,
        key: PeerKey,
        connection: ConnectionId,
        stream: TcpStream,
        endpoints: Endpoints,
    ) -> Option<crate::session::LocalAddresses> {
        let mailbox = Mailbox { inputs: self.mailbox.clone(), peer: key, connection };
        let peer = self.peers.get_mut(&key)?;
        let first_as = peer.config.enforce_first_as.then_some(peer.config.asn);
        let started = Connection::start(stream, endpoints, ReaderConfig { first_as }, mailbox);
        let addresses = started.addresses();
        peer.connections.insert(connection, started);
        Some(addresses)
    }

    fn read(&mut self, key: PeerKey, connection: ConnectionId, items: Vec<Item>) {
        let peer = self.peers.get(&key);
        if let Some(connection) = peer.and_then(|peer| peer.connections.get(&connection)) {
            connection.heard();
        }
        for item in items {
            match item {
                Item::Message(message) => {
                    self.handle(key, Event::Received { connection, message });
                }
                Item::Malformed(notification) => {
                    self.warn(key, || format!("malformed message: {notification}"));
                    self.handle(key, Event::Malformed { connection, notification });
                }
                Item::Lost(error) => {
                    self.handle(key, Event::Lost { connection, error });
                    if let Some(peer) = self.peers.get_mut(&key) {
                        peer.connections.remove(&connection);
                    }
                }
                Item::Errors(errors) => self.warn(key, || {
                    let errors: Vec<String> = errors.iter().map(ToString::to_string).collect();
                    format!("error in an UPDATE, session goes on: {}", errors.join("; "))
                }),
                Item::Updates(batch) => {
                    let Some(rib_id) = self.established_rib_id(key, connection) else { continue };
                    self.prefixes_taken = self.prefixes_taken.wrapping_add(batch.len());
                    if let Err(exceeded) = self.rib.update(rib_id, batch) {
                        let prefixes_max = exceeded.prefixes_max;
                        self.handle(key, Event::Stop(StopReason::PrefixLimit { prefixes_max }));
                    }
                }
                Item::Refresh(refresh) => {
                    let Some(rib_id) = self.established_rib_id(key, connection) else { continue };
                    if let (Some(family), RefreshKind::Request) = (refresh.family(), refresh.kind) {
                        self.rib.refresh(rib_id, family);
                    }
                }
            }
        }
        // A writer that was full may have become empty meanwhile.
        self.update_room(key);
    }

    fn established_rib_id(&self, key: PeerKey, connection: ConnectionId) -> Option<PeerId> {
        let peer = self.peers.get(&key)?;
        let established = peer.session.established()?;
        (established.connection == connection).then_some(peer.rib_id)
    }

    fn update_room(&mut self, key: PeerKey) {
        let Some(peer) = self.peers.get(&key) else { return };
        let Some(established) = peer.session.established() else { return };
        if let Some(connection) = peer.connections.get(&established.connection) {
            self.rib.set_room(peer.rib_id, connection.room());
        }
    }

    fn warn(&mut self, key: PeerKey, text: impl FnOnce() -> String) {
        let Some(peer) = self.peers.get_mut(&key) else { return };
        if let Some(held_back) = peer.warnings.pass(now()) {
            tracing::warn!(peer = %peer.name, held_back, "{}", text());
        }
    }

    /// Hands an event to a session and does what it asks for.
    fn handle(&mut self, key: PeerKey, event: Event) {
        let now = now();
        let mut actions = Vec::new();
        let Some(peer) = self.peers.get_mut(&key) else { return };
        let before = peer.session.state();
        let sort = Attempt::of(&event);
        peer.session.handle(now, event, &mut actions);
        let after = peer.session.state();
        if let (Some(sort), Some(error)) = (sort, peer.session.last_error())
            && before != SessionState::Established
            && error.at == now
            && peer.refusals.len() < REFUSALS_MAX
            && peer.refusals.insert(error.text.clone())
        {
            let (peer, address) = (&peer.name, peer.config.address);
            match sort {
                Attempt::Refused => tracing::warn!(%peer, %address, "{}", error.text),
                Attempt::Failed => tracing::info!(%peer, %address, "no session: {}", error.text),
            }
        }
        if before != after {
            self.changed = true;
            tracing::debug!(peer = %peer.name, from = ?before, to = ?after, "session");
        }
        self.perform(key, actions);
    }

    fn perform(&mut self, key: PeerKey, actions: Vec<Action>) {
        for action in actions {
            let Some(peer) = self.peers.get_mut(&key) else { return };
            match action {
                Action::Connect(connection) => {
                    let mailbox = self.mailbox.clone();
                    let (config, sort) = (peer.config.clone(), peer.session.config().sort());
                    let connecting = tokio::spawn(async move {
                        let result = socket::connect(config, sort).await;
                        let kind = InputKind::Connected(result);
                        // An owner that has gone does not need the connection.
                        let _ =
                            mailbox.send(Input::Connection { peer: key, connection, kind }).await;
                    });
                    peer.connecting.insert(connection, connecting);
                }
                Action::Send(connection, message) => {
                    let Some(connection) = peer.connections.get_mut(&connection) else { continue };
                    match message {
                        Message::Open(open) => connection.send_open(*open),
                        Message::Keepalive => connection.send(keepalive()),
                        Message::Notification(notification) => {
                            connection.send(notification.encode());
                        }
                    }
                }
                Action::Close(connection) => {
                    if let Some(connecting) = peer.connecting.remove(&connection) {
                        connecting.abort();
                    }
                    peer.connections.remove(&connection);
                }
                Action::Up(established) => {
                    peer.since = SystemTime::now();
                    peer.established_count += 1;
                    peer.refusals.clear();
                    self.changed = true;
                    tracing::info!(
                        peer = %peer.name,
                        address = %peer.config.address,
                        asn = peer.config.asn,
                        "session established"
                    );
                    let session = PeerSession {
                        router_id: established.peer.router_id,
                        families: established.families(),
                        format: established.negotiated.message_format(),
                        addresses: established.addresses,
                        promises_end_of_rib: established.promises_end_of_rib(),
                        stale_kept: established.stale_kept,
                    };
                    self.rib.peer_up(peer.rib_id, session);
                    self.update_room(key);
                }
                Action::Down { reason, keep } => self.session_down(key, &reason, keep),
                Action::FlushStale(families) => {
                    tracing::info!(peer = %peer.name, "stale routes of a restarted peer removed");
                    self.rib.flush_stale(peer.rib_id, families);
                }
            }
        }
    }

    fn session_down(&mut self, key: PeerKey, reason: &DownReason, keep: Families) {
        let Some(peer) = self.peers.get_mut(&key) else { return };
        peer.since = SystemTime::now();
        self.changed = true;
        tracing::info!(
            peer = %peer.name,
            address = %peer.config.address,
            %reason,
            routes_kept = !keep.is_empty(),
            "session down"
        );
        self.rib.peer_down(peer.rib_id, keep);
    }

    fn add_peer(&mut self, name: &PeerName, config: &PeerConfig) {
        let key = PeerKey(self.next_key);
        self.next_key += 1;
        let rib_id = self.rib.add_peer(RibPeerConfig::new(&self.config, name, config));
        let jitter = Jitter::new(self.seed.wrapping_add(key.0));
        let session = Session::new(SessionConfig::new(&self.config, config), self.restart, jitter);
        let peer = Peer {
            name: Arc::clone(name),
            config: config.clone(),
            session,
            rib_id,
            connections: HashMap::default(),
            connecting: HashMap::default(),
            since: SystemTime::now(),
            established_count: 0,
            warnings: Throttle::default(),
            refusals: BTreeSet::new(),
        };
        self.by_rib_id.insert(rib_id, key);
        self.peers.insert(key, peer);
        self.changed = true;
        self.handle(key, Event::Start);
    }

    fn remove_peer(&mut self, key: PeerKey) {
        self.handle(key, Event::Stop(StopReason::Removed));
        if let Some(peer) = self.peers.remove(&key) {
            self.by_rib_id.remove(&peer.rib_id);
            self.rib.remove_peer(peer.rib_id);
        }
        self.changed = true;
    }

    /// Takes up the wanted configuration: only what differs is touched.
    fn configure(&mut self) {
        let new = self.wanted.borrow_and_update().clone();
        let old = std::mem::replace(&mut self.config, new.clone());
        if old == new {
            return;
        }
        let removed: Vec<PeerKey> = self
            .peers
            .iter()
            .filter(|(_, peer)| !new.peers.contains_key(&peer.name))
            .map(|(key, _)| *key)
            .collect();
        removed.into_iter().for_each(|key| self.remove_peer(key));
        self.rib.configure(new.router_id, new.multipath);
        self.changed |= self.listeners.configure(now(), &new, &self.mailbox);
        let keys: BTreeMap<PeerName, PeerKey> =
            self.peers.iter().map(|(key, peer)| (Arc::clone(&peer.name), *key)).collect();
        let identity_changed = (old.asn, old.router_id) != (new.asn, new.router_id);
        for (name, config) in &new.peers {
            match keys.get(name) {
                None => self.add_peer(name, config),
                Some(key) => self.configure_peer(*key, config, identity_changed),
            }
        }
        self.rib.set_originated(&new.originate);
    }

    fn configure_peer(&mut self, key: PeerKey, config: &PeerConfig, identity_changed: bool) {
        let Some(peer) = self.peers.get_mut(&key) else { return };
        let reset = identity_changed || peer.config.needs_reset(config).is_some();
        if peer.config == *config && !reset {
            return;
        }
        if reset {
            self.handle(key, Event::Stop(StopReason::ConfigurationChange));
        }
        let Some(peer) = self.peers.get_mut(&key) else { return };
        peer.config = config.clone();
        let rib_config = RibPeerConfig::new(&self.config, &peer.name, config);
        self.rib.configure_peer(peer.rib_id, rib_config);
        let mut actions = Vec::new();
        peer.session.configure(now(), SessionConfig::new(&self.config, config), &mut actions);
        self.perform(key, actions);
        if reset {
            self.handle(key, Event::Start);
        }
    }

    fn answer(&mut self, command: Command) {
        if self.wanted.has_changed().unwrap_or(false) {
            self.configure();
        }
        match command {
            Command::Snapshot(answer) => {
                let _ = answer.send(self.snapshot());
            }
            Command::Routes(filter, answer) => {
                let _ = answer.send(self.rib.routes(&filter));
            }
            // Taken by `run`, which has to end.
            Command::Shutdown(..) => {}
        }
    }

    fn snapshot(&self) -> SpeakerSnapshot {
        let now = now();
        let (prefixes, attribute_sets) = self.rib.sizes();
        let peers = self.peers.values();
        SpeakerSnapshot {
            asn: self.config.asn,
            router_id: self.config.router_id.to_string(),
            in_sync: self.rib.in_sync(),
            peers: peers
                .map(|peer| (peer.name.to_string(), peer.snapshot(now, &self.rib)))
                .collect(),
            listeners: self.listeners.snapshot(),
            prefixes,
            attribute_sets,
        }
    }

    /// Ends all sessions and waits until the last words are out.
    async fn end(mut self, how: Shutdown) {
        self.listeners.close();
        let reason = match how {
            Shutdown::Cease { text } => StopReason::Shutdown { text },
            Shutdown::KeepRoutes => StopReason::KeepRoutes,
        };
        let keys: Vec<PeerKey> = self.peers.keys().copied().collect();
        for key in keys {
            self.handle(key, Event::Stop(reason.clone()));
        }
        self.changes.send_modify(|generation| *generation += 1);
        // Every task of a connection holds a sender: when all have gone, all is written.
        let Owner { mailbox, mut inputs, peers, .. } = self;
        drop((mailbox, peers));
        let _ = timeout(FAREWELL_WAIT, async { while inputs.recv().await.is_some() {} }).await;
    }
}

/// The time that everything counts from: tokio's, so that tests can stop it.
fn now() -> Instant {
    tokio::time::Instant::now().into_std()
}

fn explain_connect_error(peer: &PeerConfig, error: &io::Error) -> String {
    match error.kind() {
        io::ErrorKind::ConnectionRefused => format!(
            "connection refused: no BGP speaker listens on port {} there yet, or it does not accept \
             our address",
            peer.port
        ),
        io::ErrorKind::AddrNotAvailable => match peer.source_address {
            Some(source) => {
                format!("{source} is no address of this machine: correct sourceAddress")
            }
            None => error.to_string(),
        },
        _ => error.to_string(),
    }
}

/// Different reasons that the log hears of between two sessions with a peer.
const REFUSALS_MAX: usize = 8;
/// Rounds of encoding between two looks at inputs.
const FLUSHES_PER_TURN_MAX: usize = 8;
/// Inputs taken in between two looks at deadlines and at what can be sent.
const INPUTS_PER_TURN_MAX: usize = 64;
/// Prefixes after which a turn takes in no more: some ten milliseconds of work.
const PREFIXES_PER_TURN_MAX: usize = 32 * 1024;
